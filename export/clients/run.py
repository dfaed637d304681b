"""Runs a bundle's ONNX files on a request, with NumPy and ONNX Runtime only.

    pip install numpy onnxruntime
    python run.py <bundle> [<request.json>]

The request is `{"inputs": {"x": [example, ...]}}`, as TensorFlow Serving takes it, with further inputs beside `x` if the
model has several. Default: the request in the bundle.
Prints JSON: the codes, the reconstruction and the score of every example.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def load(bundle):
    """`{part: function}`; each function takes arrays by name and gives arrays by name. Refuses files that were changed."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return {part["name"]: runner(bundle, part, manifest) for part in manifest["parts"] if part["onnx"]}


def runner(bundle, part, manifest):
    name = part["onnx"]["file"]
    content = (bundle / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise ValueError(f"{bundle / name} is not the file that was exported: its SHA-256 is different.")
    session = onnxruntime.InferenceSession(content)
    dtypes = {port["name"]: port["dtype"] for port in part["inputs"]}
    names = [port["name"] for port in part["outputs"]]

    def run(**inputs):
        arrays = {key: np.asarray(value, dtypes[key]) for key, value in inputs.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))

    return run


def main(bundle, request=None):
    parts = load(Path(bundle))
    inputs = json.loads(Path(request or Path(bundle) / "request.json").read_text(encoding="utf-8"))["inputs"]
    answers = {}
    for name in ("encoder", "autoencoder", "score"):
        answers.update(parts[name](**inputs))
    json.dump({name: answer.tolist() for name, answer in answers.items()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])

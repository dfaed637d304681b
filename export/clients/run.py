"""Runs a bundle's ONNX files on a request, with NumPy and ONNX Runtime only.

    pip install numpy onnxruntime
    python run.py <bundle> [<request.json>]

The request is `{"inputs": {"x": [example, ...]}}`, as TensorFlow Serving takes it, with further inputs beside `x` if the
model has several. Default: the request in the bundle.
Prints JSON: the codes, the reconstruction and the score of every example.
"""

import hashlib
import json
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def load(bundle):
    """`{part: function}`; each function takes arrays by name and gives arrays by name. Refuses files that were changed."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return {part["name"]: runner(bundle, part, manifest) for part in manifest["parts"] if part["onnx"]}


def runner(bundle, part, manifest):
    def checked(name):
        content = (bundle / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
            raise ValueError(f"{bundle / name} is not the file that was exported: its SHA-256 is different.")
        return content

    options, files = onnxruntime.SessionOptions(), part["onnx"]
    if "data" in files and checked(files["data"]):  # weights of more than 2 GiB, which ONNX Runtime reads from there
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
    session = onnxruntime.InferenceSession(checked(files["file"]), options)
    ports = {port["name"]: port for port in part["inputs"]}
    names = [port["name"] for port in part["outputs"]]

    def run(**inputs):
        arrays = {key: as_port(value, ports[key]) for key, value in inputs.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))

    return run


def as_port(values, port):
    """An array in a port's type. Refuses fractions where it takes whole numbers, and 8-bit images where it takes them from 0 to 1."""
    given = np.asarray(values)
    array = given.astype(port["dtype"])
    low, high = port["value_range"] or (-np.inf, np.inf)
    if array.dtype.kind in "iu":
        fits = np.array_equal(array, given)
    elif given.dtype.kind in "iu":
        fits = not array.size or (array.min() >= low and array.max() <= high)
    else:  # noise takes an image a little beyond
        fits = not array.size or not (array.min() >= 0 and array.max() > 2 * high)
    if not fits:
        raise ValueError(
            f"{port['name']} takes {port['dtype']} from {low:g} to {high:g}. Received: {given.min():g} to {given.max():g}"
        )
    return array


def main(bundle, request=None):
    parts = load(Path(bundle))
    inputs = json.loads(Path(request or Path(bundle) / "request.json").read_text(encoding="utf-8"))["inputs"]
    answers = {}
    for name in ("encoder", "autoencoder", "score"):
        answers.update(parts[name](**inputs))
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends in silence where `head` has read enough
    json.dump({name: answer.tolist() for name, answer in answers.items()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs a bundle's files where Keras and kerasae don't exist. A script for a process of its own, importing nothing from
here.

    python -P replay.py <folder of the task>

The folder holds `task.json` and `inputs.npz`; `outputs.npz` and `result.json` are written beside them. Importing
TensorFlow imports Keras where that is installed, so both are made unimportable first, and TensorFlow too while ONNX
files run.
"""

import json
import sys
from pathlib import Path

import numpy as np

ABSENT = ("keras", "tf_keras", "kerasae")


def onnx_runner(path, part):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for kind, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        names = [port.name for port in ports]
        if names != part[kind]:
            raise ValueError(f"its {kind} are {names}, not {part[kind]}")
    return lambda feed: dict(zip(part["outputs"], session.run(None, feed), strict=True))


def saved_model_runner(loaded, part):
    import tensorflow as tf

    function = loaded.signatures[part["signature"]]
    return lambda feed: {
        name: output.numpy() for name, output in function(**{k: tf.constant(v) for k, v in feed.items()}).items()
    }


def main(folder):
    task = json.loads((folder / "task.json").read_text())
    inputs = np.load(folder / "inputs.npz")
    outputs, errors = {}, []

    def run(kind, part, make_runner):
        try:
            runner = make_runner()
            for batch_size in part["batch_sizes"]:
                feed = {name: inputs[f"{part['name']}.{batch_size}.{name}"] for name in part["inputs"]}
                for name, output in runner(feed).items():
                    outputs[f"{kind}.{part['name']}.{batch_size}.{name}"] = output
        except Exception as error:  # reported by the exporter, which names the part and the format
            errors.append({"format": kind, "part": part["name"], "error": f"{type(error).__name__}: {error}"})

    for name in (*ABSENT, "tensorflow"):
        sys.modules[name] = None
    if task["onnx"] is not None:
        for part in (part for part in task["parts"] if "onnx" in part["formats"]):
            path = str(Path(task["onnx"]) / f"{part['name']}.onnx")
            run("onnx", part, lambda path=path, part=part: onnx_runner(path, part))
    del sys.modules["tensorflow"]
    if task["saved_model"] is not None:
        import tensorflow as tf

        loaded = tf.saved_model.load(task["saved_model"])
        for part in task["parts"]:
            run("saved_model", part, lambda part=part: saved_model_runner(loaded, part))

    present = [name for name in ABSENT if sys.modules.get(name) is not None]
    np.savez(folder / "outputs.npz", **outputs)
    (folder / "result.json").write_text(json.dumps({"errors": errors, "present": present}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

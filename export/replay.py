"""Runs a bundle's files where Keras and kerasae can't be imported: a script for a separate process, which imports nothing of this package.

    python -P replay.py <folder of the task>

The folder holds `task.json` and `inputs.npz`; `outputs.npz` and `result.json` are written beside them. Importing
TensorFlow imports Keras where that is installed, so both are made unimportable first, and TensorFlow too while ONNX
and LiteRT files run.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ABSENT = ("keras", "tf_keras", "kerasae")
# Of a latency: at most so many runs, and so many seconds.
_RUNS, _SECONDS = 50, 0.3


def onnx_runner(path, part):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for kind, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        names = [port.name for port in ports]
        if names != part[kind]:
            raise ValueError(f"its {kind} are {names}, not {part[kind]}")
    return lambda feed: dict(zip(part["outputs"], session.run(None, feed), strict=True))


def litert_runner(path, part):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner(part["signature"])
    return lambda feed: runner(**feed)


def saved_model_runner(loaded, part):
    import tensorflow as tf

    function = loaded.signatures[part["signature"]]
    return lambda feed: {
        name: output.numpy() for name, output in function(**{k: tf.constant(v) for k, v in feed.items()}).items()
    }


def measure(file, examples, batch_sizes):
    """What an ONNX file answers for examples, `{port: array}`, and the median milliseconds of a run on one thread, by batch size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    step, count = batch_sizes[-1], len(next(iter(examples.values())))

    def rows(start, size):
        return {name: array[start : start + size] for name, array in examples.items()}

    answers = [session.run(None, rows(start, step)) for start in range(0, count, step)]
    names = [output.name for output in session.get_outputs()]
    outputs = {name: np.concatenate(batches) for name, batches in zip(names, zip(*answers, strict=True), strict=True)}
    latency = {}
    for size in batch_sizes:
        feed, times = rows(0, size), []
        started = time.perf_counter()
        while len(times) < _RUNS and time.perf_counter() - started < _SECONDS:
            before = time.perf_counter()
            session.run(None, feed)
            times.append(1000 * (time.perf_counter() - before))
        latency[size] = statistics.median(times)
    return outputs, latency


def main(folder):
    task = json.loads((folder / "task.json").read_text())
    inputs = np.load(folder / "inputs.npz")
    outputs, errors, latencies = {}, [], []

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
    for kind, ending, make_runner in (("onnx", "onnx", onnx_runner), ("litert", "tflite", litert_runner)):
        for part in (part for part in task["parts"] if kind in part["formats"]):
            path = str(Path(task["bundle"]) / f"{part['name']}.{ending}")
            run(kind, part, lambda path=path, part=part, make_runner=make_runner: make_runner(path, part))
    for number, file in enumerate(task["measured_files"]):
        path = str(Path(task["bundle"]) / file["file"])
        try:
            answers, latency = measure(path, {name: inputs[name] for name in file["inputs"]}, task["batch_sizes"])
        except Exception as error:
            errors.append({"format": file["file"], "part": file["part"], "error": f"{type(error).__name__}: {error}"})
            continue
        outputs.update({f"{number}.{name}": output for name, output in answers.items()})
        latencies.append(latency)
    del sys.modules["tensorflow"]
    parts = [part for part in task["parts"] if "saved_model" in part["formats"]]
    if parts:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(Path(task["bundle"]) / "saved_model"))
        for part in parts:
            run("saved_model", part, lambda part=part: saved_model_runner(loaded, part))

    present = [name for name in ABSENT if sys.modules.get(name) is not None]
    np.savez(folder / "outputs.npz", **outputs)
    (folder / "result.json").write_text(json.dumps({"errors": errors, "present": present, "latencies": latencies}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

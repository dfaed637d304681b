"""How long a reconstruction takes in Keras, as a SavedModel and in ONNX Runtime, at batch 1, 32 and 1024.

    python tests/benchmarks/export.py [--network dense] [--network conv] [--seconds 2]

Each engine runs for the given time and takes turns with the others; the median counts. The numbers to keep are the ratios to
`predict`: milliseconds belong to the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnxruntime
import tensorflow as tf

from kerasae import builders
from kerasae.export import export

SIZES = (1, 32, 1024)
HIDDEN = {"dense": (512, 256), "conv": (32, 64)}


def engines(network, folder):
    """`{name: function from images to reconstructions}` of one model."""
    model = builders.undercomplete((28, 28, 1), latent_dim=16, hidden_units=HIDDEN[network], network=network)
    export(model, folder)
    signature = tf.saved_model.load(str(Path(folder) / "saved_model")).signatures["reconstruct"]
    session = onnxruntime.InferenceSession(Path(folder) / "autoencoder.onnx", providers=["CPUExecutionProvider"])
    return {
        "predict": lambda x: model.predict(x, batch_size=len(x), verbose=0),
        "SavedModel": lambda x: signature(x=tf.constant(x))["reconstruction"].numpy(),
        "ONNX Runtime": lambda x: session.run(None, {"x": x})[0],
    }


def medians(functions, x, seconds):
    """Median milliseconds a call, of functions that take turns."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function(x)  # traces, allocates
    started = time.perf_counter()
    while len(times["predict"]) < 3 or time.perf_counter() - started < seconds * len(functions):
        for name, function in functions.items():
            before = time.perf_counter()
            function(x)
            times[name].append(1000 * (time.perf_counter() - before))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", choices=list(HIDDEN), help="default: both")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each engine at each batch size")
    arguments = parser.parse_args()
    print(f"{'network':<9}{'batch':>6}{'engine':>14}{'ms':>10}{'times faster than predict':>28}")
    for network in arguments.network or HIDDEN:
        with tempfile.TemporaryDirectory() as folder:
            functions = engines(network, folder)
            for size in SIZES:
                x = np.random.default_rng(0).random((size, 28, 28, 1), dtype="float32")
                measured = medians(functions, x, arguments.seconds)
                for name, milliseconds in measured.items():
                    ratio = measured["predict"] / milliseconds
                    print(f"{network:<9}{size:>6}{name:>14}{milliseconds:>10.2f}{ratio:>28.1f}", flush=True)


if __name__ == "__main__":
    main()

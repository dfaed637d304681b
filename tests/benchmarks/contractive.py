"""What a training step of the contractive family costs, relative to the plain autoencoder's: `python tests/benchmarks/contractive.py`.

Every step is compiled with `tf.function`, as `fit` does. The steps of a table run in turns, so that whatever else the machine does
slows all of them; a ratio is the median over the turns of the step's time by the plain step's of the same turn, and the spread
is its quartiles. Peak memory is that of a process of its own that runs nothing but that step, less what it held before.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from kerasae import networks
from kerasae.models import Autoencoder
from kerasae.models.contractive import ContractiveAutoencoder
from kerasae.models.jacobian import encode_and_differentiate

BATCH_SIZE = 128
NETWORKS = {
    "784-1000 sigmoid": {"hidden_units": (), "latent_dim": 1000, "activation": "sigmoid", "head_activation": "sigmoid"},
    "784-512-256-32 relu": {
        "hidden_units": (512, 256),
        "latent_dim": 32,
        "activation": "relu",
        "head_activation": None,
    },
}


class ByAPassPerCode(ContractiveAutoencoder):
    """The exact model, had it not looked at its encoder."""

    def __init__(self, encoder, decoder):
        super().__init__(encoder, decoder)
        self._encode_and_measure = lambda x, training: encode_and_differentiate(encoder, x, training)
        self.supports_jit = False


class ByBatchJacobian(ContractiveAutoencoder):
    """What one would write first."""

    def __init__(self, encoder, decoder):
        super().__init__(encoder, decoder)
        self.supports_jit = False

    def forward(self, x, training):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = self.encoder(x, training=training)
        contraction = tf.reduce_sum(tape.batch_jacobian(z, x) ** 2, axis=(1, 2))
        return {"z": z, "contraction": contraction, **self.reconstruct(z, training)}


METHODS = {
    "plain": Autoencoder,
    "exact": ContractiveAutoencoder,
    "batch_jacobian": ByBatchJacobian,
    "pass per code": ByAPassPerCode,
    "stochastic": lambda encoder, decoder: ContractiveAutoencoder(encoder, decoder, jacobian="stochastic"),
}


def training_step(network, method, jit_compile):
    """A function without arguments that takes one training step."""
    keras.utils.set_random_seed(0)
    units = {key: NETWORKS[network][key] for key in ("hidden_units", "activation")}
    latent_dim = NETWORKS[network]["latent_dim"]
    encoder = networks.encoder(784, {"z": latent_dim}, head_activation=NETWORKS[network]["head_activation"], **units)
    model = METHODS[method](encoder, networks.decoder(784, latent_dim, **units))
    model.compile(optimizer="adam", jit_compile=jit_compile and model.supports_jit)
    x = tf.constant(np.random.default_rng(0).random((BATCH_SIZE, 784)), tf.float32)
    batches = iter(tf.data.Dataset.from_tensors(x).repeat())
    model.make_train_function()

    def step():
        return float(model.train_function(batches)["loss"])

    step()
    return step


def peak_memory(network, method, jit_compile):
    """MiB that a step takes, in a process of its own."""
    options = ["--peak", network, method] + (["--jit"] if jit_compile else [])
    run = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
    return int(run.stdout)


def print_peak_memory(network, method, jit_compile):
    before = high_water_mark()
    step = training_step(network, method, jit_compile)
    for _ in range(3):
        step()
    print(high_water_mark() - before)


def high_water_mark():
    """The most memory this process has held, in MiB. (Linux; `resource.getrusage` would begin at the parent's.)"""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024


def print_table(network, turns, seconds, jit_compile):
    """Prints the table of one network. A method's steps in a turn take about `seconds`, one step at least."""
    steps = {method: training_step(network, method, jit_compile) for method in METHODS}
    times = {method: [] for method in METHODS}
    counts = {}
    for turn in range(-1, turns):  # the first one warms up, and says how long a step takes
        for method, step in steps.items():
            start = time.perf_counter()
            for _ in range(counts.get(method, 1)):
                step()
            elapsed = (time.perf_counter() - start) / counts.get(method, 1)
            if turn < 0:
                counts[method] = max(1, round(seconds / elapsed))
            else:
                times[method].append(elapsed)
    print(f"\n{network}, batch {BATCH_SIZE}, {'XLA where it can' if jit_compile else 'no XLA'}, {turns} turns")
    print(f"{'step':<16}{'ms':>10}{'over plain':>12}{'quartiles':>18}{'MiB':>8}")
    for method in METHODS:
        ratios = np.array(times[method]) / times["plain"]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        memory = peak_memory(network, method, jit_compile)
        quartiles = f"{low:.2f} to {high:.2f}"
        print(
            f"{method:<16}{1e3 * np.median(times[method]):>10.2f}{middle:>12.2f}{quartiles:>18}{memory:>8}", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each method in a turn")
    parser.add_argument("--jit", action="store_true", help="compile with XLA the steps that it can compile")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak_memory(*arguments.peak, arguments.jit)
    else:
        for network in NETWORKS:
            print_table(network, arguments.turns, arguments.seconds, arguments.jit)

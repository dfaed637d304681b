"""What an epoch of `fit` costs, beside what people use otherwise: `python tests/benchmarks/training.py`.

Same architecture, data, batch size and optimiser (Adam) on every side. The sides of a row take turns, an epoch each, so that whatever else
the machine does slows all of them; all in one process, since a machine may take the memory of a process that waits. PyTorch's sides
share a thread: each thread would get threads of OpenMP of its own, and with more of these than cores they are twice as slow. A ratio is
the median over the turns of a side's time by our own's (or the floor's) of the same turn; the spread is its quartiles.

- `fit`: ours, out of the box: `model.compile(optimizer="adam"); model.fit(x)`.
- `keras`: the plain Keras model, with the `train_step` that people copy where the family needs one.
- `torch`: a hand-written PyTorch loop, eager, fused Adam, batches indexed from one tensor.
- `pythae`: its trainer's own epoch, for the families it has.
- `floor`: the step's own matrix products (or convolutions), compiled alone, each on arrays of its own as in the step.

The peers come by `pip install 'kerasae[benchmark]'`; sides that aren't installed are left out. Data: MNIST where it is prepared
(`TFDS_DATA_DIR`), random pixels otherwise.
"""

import argparse
import importlib.util
import itertools
import json
import os
import queue
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

LATENT_DIM, UNITS, FILTERS, K = 20, (512, 512), (32, 64), 5
FAMILIES = ("undercomplete", "k_sparse", "contractive", "variational")
SIDES = ("fit", "keras", "torch", "pythae", "floor")
RESULTS = Path(__file__).parent / "results"


def offered(side, family):
    """Whether a side has the family."""
    if side == "keras":
        return family in ("undercomplete", "variational")
    if side == "torch":
        return importlib.util.find_spec("torch") is not None
    if side == "pythae":
        return importlib.util.find_spec("pythae") is not None and family in ("undercomplete", "variational")
    return True


def load(num_examples):
    from kerasae import data

    try:
        x, _ = data.load("mnist")
    except (ValueError, OSError):
        x = np.random.default_rng(0).random((60_000, 28, 28, 1), dtype="float32")
    return x[:num_examples]


# -- The sides: each trains for an epoch whenever the next one's seconds are asked for ------------------------------------------------


def side_fit(family, network, batch_size, x):
    import kerasae

    options = {"latent_dim": LATENT_DIM, "hidden_units": UNITS if network == "dense" else FILTERS, "network": network}
    if family == "k_sparse":
        options["k"] = K
    if family != "variational":
        options["loss"] = "squared_error"
    model = getattr(kerasae.builders, family)(x.shape[1:], **options)
    model.compile(optimizer="adam")
    # As one call of `fit` for many epochs: what happens once a call is not an epoch's.
    return _epochs_of_one_fit(model, x, batch_size)


def side_keras(family, network, batch_size, x):
    import keras
    import tensorflow as tf

    from kerasae import networks

    units = {"hidden_units": UNITS if network == "dense" else FILTERS, "network": network}
    decoder = networks.decoder(x.shape[1:], LATENT_DIM, output_activation="sigmoid", **units)
    if family == "undercomplete":
        encoder = networks.encoder(x.shape[1:], {"z": LATENT_DIM}, **units)
        model = keras.Model(encoder.inputs, decoder(encoder.outputs[0]))
        model.compile(optimizer="adam", loss="mse")
        return _epochs_of_one_fit(model, x, batch_size, x)
    encoder = networks.encoder(x.shape[1:], {"z_mean": LATENT_DIM, "z_log_var": LATENT_DIM}, **units)

    class PlainVariational(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "reconstruction_loss", "kl_loss")]
            self.seed_generator = keras.random.SeedGenerator(0)

        @property
        def metrics(self):
            return self.trackers

        def train_step(self, data):
            with tf.GradientTape() as tape:
                z_mean, z_log_var = self.encoder(data)
                epsilon = keras.random.normal(tf.shape(z_mean), seed=self.seed_generator)
                reconstruction = self.decoder(z_mean + tf.exp(0.5 * z_log_var) * epsilon)
                crossentropy = keras.losses.binary_crossentropy(data, reconstruction)
                reconstruction_loss = tf.reduce_mean(tf.reduce_sum(crossentropy, axis=(1, 2)))
                kl = -0.5 * (1 + z_log_var - tf.square(z_mean) - tf.exp(z_log_var))
                kl_loss = tf.reduce_mean(tf.reduce_sum(kl, axis=1))
                loss = reconstruction_loss + kl_loss
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
            )
            for tracker, value in zip(self.trackers, (loss, reconstruction_loss, kl_loss), strict=True):
                tracker.update_state(value)
            return {tracker.name: tracker.result() for tracker in self.trackers}

    model = PlainVariational()
    model.compile(optimizer="adam")
    return _epochs_of_one_fit(model, x, batch_size)


def _epochs_of_one_fit(model, x, batch_size, y=None):
    """One `fit` of many epochs, in a thread that waits until the next one is asked for."""
    import keras

    turns, results = queue.Queue(), queue.Queue()

    class Turns(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if not turns.get():
                raise KeyboardInterrupt
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            results.put(time.perf_counter() - self.started)

    def fit():
        try:
            model.fit(x, y, batch_size=batch_size, epochs=10_000, callbacks=[Turns()], verbose=0)
        except KeyboardInterrupt:
            pass
        except Exception as error:
            results.put(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        while True:
            turns.put(True)
            seconds = results.get()
            if isinstance(seconds, Exception):
                raise seconds
            yield seconds
    finally:
        turns.put(False)
        thread.join()


def torch_parts(family, network):
    import torch
    from torch import nn

    heads = 2 * LATENT_DIM if family == "variational" else LATENT_DIM
    if network == "dense":
        encoder = nn.Sequential(
            nn.Linear(784, UNITS[0]), nn.ReLU(), nn.Linear(*UNITS), nn.ReLU(), nn.Linear(UNITS[1], heads)
        )
        decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, UNITS[1]), nn.ReLU(), nn.Linear(*UNITS), nn.ReLU(), nn.Linear(UNITS[0], 784)
        )
    else:
        narrow, wide = FILTERS
        encoder = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, narrow, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(49 * wide, heads),
        )
        decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, 49 * wide),
            nn.ReLU(),
            nn.Unflatten(1, (wide, 7, 7)),
            nn.ConvTranspose2d(wide, narrow, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(narrow, 1, 4, 2, 1),
            nn.Flatten(),
        )
    torch.manual_seed(0)
    return encoder, decoder


def side_torch(family, network, batch_size, x):
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(os.cpu_count())
    encoder, decoder = torch_parts(family, network)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, fused=True)
    data = torch.from_numpy(x.reshape(len(x), -1))

    def loss_of(batch):
        code = encoder(batch)
        if family == "variational":
            mean, log_var = code.chunk(2, dim=1)
            logits = decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
            crossentropy = F.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            return (crossentropy - 0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()) / len(batch)
        if family == "k_sparse":
            code = code * torch.zeros_like(code).scatter(1, code.abs().topk(K, dim=1).indices, 1.0)
        loss = (batch - decoder(code)).square().sum() / len(batch)
        if family == "contractive":
            jacobian = torch.func.vmap(torch.func.jacrev(lambda one: encoder(one[None])[0]))(batch)
            loss = loss + jacobian.square().sum() / len(batch)
        return loss

    while True:
        started = time.perf_counter()
        total = 0.0
        order = torch.randperm(len(data))
        for start in range(0, len(data), batch_size):
            loss = loss_of(data[order[start : start + batch_size]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        float(total)
        yield time.perf_counter() - started


def side_pythae(family, network, batch_size, x):
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import AE, VAE, AEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    torch.set_num_threads(os.cpu_count())
    layers, back = torch_parts(family, network)

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            code = self.layers(x.reshape(len(x), -1))
            if family == "undercomplete":
                return ModelOutput(embedding=code)
            mean, log_var = code.chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = back

        def forward(self, z):
            return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)).reshape(-1, 1, 28, 28))

    options = {"input_dim": (1, 28, 28), "latent_dim": LATENT_DIM}
    if family == "variational":
        model = VAE(VAEConfig(reconstruction_loss="bce", **options), Encoder(), Decoder())
    else:
        model = AE(AEConfig(**options), Encoder(), Decoder())
    images = torch.from_numpy(x.reshape(-1, 1, 28, 28))
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch_size,
        num_epochs=1,
        optimizer_cls="Adam",
        no_cuda=True,
    )
    trainer = BaseTrainer(model, BaseDataset(images, torch.zeros(len(images))), training_config=config)
    trainer.prepare_training()
    epoch = 0
    while True:
        started = time.perf_counter()
        epoch += 1
        trainer.train_step(epoch)
        yield time.perf_counter() - started


def side_floor(family, network, batch_size, x):
    import tensorflow as tf

    heads = 2 * LATENT_DIM if family == "variational" else LATENT_DIM
    rng = tf.random.Generator.from_seed(0)
    inputs, gradients, kernels, layers = [], [], [], []

    def dense(m, n):
        inputs.append(rng.normal((batch_size, m)))
        gradients.append(rng.normal((batch_size, n)))
        kernels.append(tf.Variable(rng.normal((m, n)) * 0.05))
        layers.append(tf.matmul)

    def conv(image, kernel, transposed=False):
        inputs.append(rng.normal((batch_size, *image)))
        kernels.append(tf.Variable(rng.normal(kernel) * 0.05))
        if transposed:
            shape = (batch_size, 2 * image[0], 2 * image[1], kernel[2])
            gradients.append(rng.normal(shape))
            layers.append(lambda a, w: tf.nn.conv2d_transpose(a, w, shape, 2, "SAME"))
        else:
            gradients.append(rng.normal((batch_size, image[0] // 2, image[1] // 2, kernel[3])))
            layers.append(lambda a, w: tf.nn.conv2d(a, w, 2, "SAME"))

    if network == "dense":
        widths = (784, *UNITS, heads), (LATENT_DIM, *UNITS[::-1], 784)
        for sizes in widths:
            for m, n in itertools.pairwise(sizes):
                dense(m, n)
    else:
        narrow, wide = FILTERS
        conv((28, 28, 1), (4, 4, 1, narrow))
        conv((14, 14, narrow), (4, 4, narrow, wide))
        dense(49 * wide, heads)
        dense(LATENT_DIM, 49 * wide)
        conv((7, 7, wide), (4, 4, narrow, wide), transposed=True)
        conv((14, 14, narrow), (4, 4, 1, narrow), transposed=True)

    @tf.function(jit_compile=network == "dense")  # on a CPU, XLA's convolutions are slower than TensorFlow's
    def products(inputs, gradients):
        """Forward, and the two of the backward pass; of the first layer only the kernel's gradient is wanted."""
        results = []
        for i, (a, w, layer, dy) in enumerate(zip(inputs, kernels, layers, gradients, strict=True)):
            with tf.GradientTape() as tape:
                tape.watch(a)
                y = layer(a, w)
            results += [y, *tape.gradient(y, [w] if i == 0 else [w, a], output_gradients=dy)]
        return results

    while True:
        started = time.perf_counter()
        for _ in range(-(-len(x) // batch_size)):
            results = products(inputs, gradients)
        results[-1].numpy()
        yield time.perf_counter() - started


# -- Taking turns ------------------------------------------------------------------------------------------------------------------------


def measure(family, network, batch_size, num_examples, turns, sides):
    """`{side: seconds of each turn}`."""
    x = load(num_examples)
    running = {
        side: globals()[f"side_{side}"](family, network, batch_size, x) for side in sides if offered(side, family)
    }
    try:
        for epochs in running.values():
            # The first epoch compiles, and warms up.
            next(epochs), next(epochs)
        times = {side: [] for side in running}
        for _ in range(turns):
            for side, epochs in running.items():
                times[side].append(next(epochs))
        return times
    finally:
        for epochs in running.values():
            epochs.close()


def ratio(times, side, base):
    if side not in times:
        return "-"
    low, middle, high = np.percentile(np.array(times[side]) / times[base], [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--examples", type=int, default=60_000, help="in an epoch")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--networks", nargs="+", choices=("dense", "conv"), default=("dense", "conv"))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(128, 512))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument(
        "--save",
        action="store_true",
        help=f"into {RESULTS.name}/training.md and .json, beside the rows of other runs there",
    )
    arguments = parser.parse_args()
    print("\n".join(HEAD), flush=True)
    rows = []
    for family in arguments.families:
        for network in arguments.networks:
            for batch_size in arguments.batch_sizes:
                times = measure(family, network, batch_size, arguments.examples, arguments.turns, arguments.sides)
                steps = -(-arguments.examples // batch_size)
                rows.append([[family, network, batch_size], {"steps": steps, "seconds": times}])
                print(line(*rows[-1]), flush=True)
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        kept = json.loads((RESULTS / "training.json").read_text()) if (RESULTS / "training.json").exists() else []
        measured = [key for key, _ in rows]
        rows = [row for row in kept if row[0] not in measured] + rows
        (RESULTS / "training.json").write_text(json.dumps(rows) + "\n")
        (RESULTS / "training.md").write_text("\n".join([*HEAD, *(line(*row) for row in rows)]) + "\n")


HEAD = [
    "Seconds of an epoch by those of the floor, and of the others by those of `fit`: medians (quartiles).",
    "",
    "| family | network | batch | steps an epoch | fit / floor | keras / fit | torch / fit | pythae / fit | ms a step of fit |",
    "|---|---|---:|---:|---|---|---|---|---:|",
]


def line(key, measured):
    times = measured["seconds"]
    cells = [str(measured["steps"]), ratio(times, "fit", "floor") if "floor" in times else "-"]
    cells += [ratio(times, side, "fit") for side in ("keras", "torch", "pythae")]
    cells.append(f"{1e3 * np.median(times['fit']) / measured['steps']:.2f}")
    return f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |"


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TQDM_DISABLE", "1")  # pythae's bars cost time and hide the table
    main()

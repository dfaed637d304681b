"""Several replicas compute what one device computes on the whole batch.

TensorFlow must be told of virtual devices before it starts, and an aborted collective spoils its process: so this file is also the program
that the tests start (`main`), which reports by a JSON file.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

BATCH_SIZE = 16
NUM_EXAMPLES = 33  # two batches of 16, and one of a single example: the second replica has none
NUM_VALIDATION = 41  # the last batch of 9 is split unevenly
IN_CI = [
    "undercomplete-dense",
    "sparse-batch",
    "contractive-dense",
    "variational-dense",
]
TIMEOUT = 600  # seconds


# -- What runs in the other processes ----------------------------------------------------------------------------------


def options():
    """`{name: (family or function that builds, options of compile, options of fit)}`: what is compared besides the families."""
    import keras
    from adversarial import adversarial
    from families import with_side_inputs

    sgd = keras.optimizers.SGD
    half = (np.arange(NUM_EXAMPLES) % 4 + 1) / 2
    return {
        "clipnorm": ("undercomplete-dense", {"optimizer": sgd(1.0, clipnorm=1e-2)}, {}),
        # A scale at which nothing overflows: the steps that are skipped then depend on how large a replica's part is.
        "mixed precision, clipped": (
            mixed_precision,
            {"optimizer": keras.optimizers.LossScaleOptimizer(sgd(1.0, clipnorm=1e-2), initial_scale=128.0)},
            {},
        ),
        "several inputs": (several_inputs, {}, {"x": with_side_inputs}),
        "several optimisers": (adversarial, {}, {}),
        "several optimisers, clipped": (adversarial, {"optimizer": sgd(1.0, global_clipnorm=1e-2)}, {}),
        # In every step the second replica has no example.
        "an empty replica": ("undercomplete-conv", {}, {"x": lambda x: x[:3], "batch_size": 1, "validate": True}),
        "global_clipnorm": ("k-sparse-dense", {"optimizer": sgd(1.0, global_clipnorm=1e-2, momentum=0.5)}, {}),
        "keras loss, metrics and sample weights": (
            "undercomplete-crossentropy",
            {"optimizer": sgd(1.0), "loss": keras.losses.BinaryCrossentropy(), "metrics": ["mae"]},
            {"sample_weight": half},
        ),
        "sample weights": ("variational-dense", {}, {"sample_weight": half}),
        "shuffled, and validated": (
            "undercomplete-dense",
            {},
            {"shuffle": True, "validate": True, "epochs": 2},
        ),
        "batch normalisation and regularisers": (batch_normalised, {}, {}),
    }


def slow_options():
    import keras
    import tensorflow as tf

    from kerasae import models

    sgd = keras.optimizers.SGD
    return {
        "clipvalue": ("undercomplete-dense", {"optimizer": sgd(1.0, clipvalue=1e-3)}, {}),
        "loss scale": ("undercomplete-dense", {"optimizer": sgd(0.1, loss_scale_factor=128.0, clipnorm=1e-1)}, {}),
        "averaged weights": ("undercomplete-dense", {"optimizer": sgd(0.01, use_ema=True, weight_decay=0.01)}, {}),
        "adam": ("variational-dense", {"optimizer": keras.optimizers.Adam(1e-3)}, {}),
        "k annealing": (
            "k-sparse-dense",
            {},
            {"epochs": 2, "callbacks": [models.KAnnealing(start_k=3, epochs=1)]},
        ),
        "eager": ("sparse-batch", {"run_eagerly": True}, {}),
        "odd batches": ("undercomplete-dense", {}, {"batch_size": 5}),
        "tf.data": (
            "undercomplete-dense",
            {},
            {"x": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE)},
        ),
    }


def batch_normalised():
    import keras
    from keras import layers

    from kerasae import builders

    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(16, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1)),
            layers.BatchNormalization(synchronized=True),
            layers.Activation("tanh"),
            layers.Dense(3),
        ]
    )
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(64), layers.Reshape((8, 8, 1))])
    return builders.undercomplete(encoder=encoder, decoder=decoder)


def mixed_precision():
    import keras
    from families import FAMILIES

    keras.config.set_dtype_policy("mixed_float16")
    try:
        return FAMILIES["undercomplete-dense"]()
    finally:
        keras.config.set_dtype_policy("float32")


def several_inputs():
    from families import SEVERAL_INPUTS

    return SEVERAL_INPUTS["undercomplete"]()


class SharedNoise:
    """Within it every example of a batch is given the same noise, so that how a batch is split makes no difference."""

    def __enter__(self):
        import tensorflow as tf

        self.originals = tf.random.stateless_normal, tf.random.stateless_uniform
        tf.random.stateless_normal, tf.random.stateless_uniform = map(self.shared, self.originals)

    def __exit__(self, *_):
        import tensorflow as tf

        tf.random.stateless_normal, tf.random.stateless_uniform = self.originals

    @staticmethod
    def shared(draw):
        import tensorflow as tf

        def drawn(shape, seed, *args, **kwargs):
            shape = tf.convert_to_tensor(shape)
            # (batch, ...), or (samples, batch, latent_dim) of a model of incomplete data
            rest = shape[2:] if shape.shape[0] == 3 else shape[1:]
            return tf.broadcast_to(draw(rest, (1, 2), *args, **kwargs), shape)

        return drawn


def train(strategy, build, compile_options=None, fit_options=None, callbacks=(), noise=None):
    import keras
    from families import FAMILIES

    import kerasae

    data = kerasae.data.load("digits")[0]
    keras.utils.set_random_seed(0)
    compile_options = {"optimizer": keras.optimizers.SGD(0.01), **(compile_options or {})}
    # An optimiser belongs to the scope in which it is made.
    optimizer = compile_options.pop("optimizer")
    with strategy.scope():
        model = FAMILIES[build]() if isinstance(build, str) else build()
        optimizer = type(optimizer).from_config({**optimizer.get_config(), "name": None})
        model.compile(optimizer=optimizer, **compile_options)
    before = model.get_weights()
    fit_options = {"batch_size": BATCH_SIZE, "epochs": 1, "shuffle": False, **(fit_options or {})}
    if fit_options.pop("validate", False):
        fit_options["validation_data"] = (data[100 : 100 + NUM_VALIDATION],)
    x = fit_options.pop("x", lambda x: x)(data[:NUM_EXAMPLES])
    if not isinstance(x, (np.ndarray, list)):
        del fit_options["batch_size"]
    callbacks = [*callbacks, *fit_options.pop("callbacks", ())]
    with noise or contextlib.nullcontext():
        history = model.fit(x, verbose=0, callbacks=callbacks, **fit_options)
    return model, before, history.history


def compare(strategy, build, *options):
    import tensorflow as tf

    one, before, one_logs = train(tf.distribute.get_strategy(), build, *options, noise=SharedNoise())
    several, _, several_logs = train(strategy, build, *options, noise=SharedNoise())
    pairs = [
        weights
        for weights in zip(one.get_weights(), several.get_weights(), before, strict=True)
        if weights[0].dtype == "float32"  # the states of random seeds aside
    ]
    return {
        "error": max(float(np.abs(a - b).max()) for a, b, _ in pairs),
        "moved": max(float(np.abs(a - c).max()) for a, _, c in pairs),
        "logs": [one_logs, several_logs],
    }


def noise(strategy):
    """What two replicas draw, and what one draws twice."""
    import keras
    import tensorflow as tf

    from kerasae import layers

    drawn = {}
    for name in ("GaussianCorruption", "MaskingCorruption", "SaltAndPepperCorruption"):
        with strategy.scope():
            layer = getattr(layers, name)()
        draw = tf.function(lambda layer=layer: strategy.run(lambda: layer(tf.fill((4, 50), 0.5), training=True)))
        drawn[name] = [
            [part.numpy().tolist() for part in strategy.experimental_local_results(draw())] for _ in range(2)
        ]
    with strategy.scope():
        generator = keras.random.SeedGenerator(0)
    zeros = tf.zeros((4, 50))
    draw = tf.function(lambda: strategy.run(lambda: layers.sample_normal(zeros, zeros, generator)))
    drawn["sample_normal"] = [
        [part.numpy().tolist() for part in strategy.experimental_local_results(draw())] for _ in range(2)
    ]
    return drawn


def refusals(strategy):
    """The messages of what is refused."""
    import keras
    from families import FAMILIES
    from keras import layers

    import kerasae

    x = kerasae.data.load("digits")[0][:NUM_EXAMPLES]
    small = FAMILIES["undercomplete-dense"]

    def own(layer):
        encoder = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layer(), layers.Dense(3)])
        return kerasae.builders.undercomplete(encoder=encoder, decoder=small().decoder)

    def fit_in(scope, build=small, optimizer=None, **options):
        with scope:
            model = build()
            model.compile(keras.optimizers.SGD(**(optimizer or {})), **options)
        model.fit(x, verbose=0)

    def model_from_outside():
        model = small()
        model.compile(optimizer="sgd")
        with strategy.scope():
            model.fit(x)

    def optimizer_from_outside():
        with strategy.scope():
            model = small()
        model.compile(optimizer="sgd")
        model.fit(x)

    def keras_distribution():
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
        try:
            small_model = small()
            small_model.compile(optimizer="sgd")
            small_model.fit(x)
        finally:
            keras.distribution.set_distribution(None)

    cases = {
        "model from outside": model_from_outside,
        "optimizer from outside": optimizer_from_outside,
        "keras.distribution": keras_distribution,
        "jit_compile": lambda: fit_in(strategy.scope(), jit_compile=True),
        "steps_per_execution": lambda: fit_in(strategy.scope(), steps_per_execution=2),
        "accumulation": lambda: fit_in(strategy.scope(), optimizer={"gradient_accumulation_steps": 2}),
        "ema": lambda: fit_in(strategy.scope(), optimizer={"use_ema": True, "ema_overwrite_frequency": 2}),
        "sum": lambda: fit_in(strategy.scope(), loss=keras.losses.MeanSquaredError(reduction="sum")),
        "one number": lambda: fit_in(strategy.scope(), loss=lambda y, y_pred: keras.ops.mean((y - y_pred) ** 2)),
        "batch normalisation": lambda: fit_in(strategy.scope(), lambda: own(layers.BatchNormalization)),
        "activity": lambda: fit_in(strategy.scope(), lambda: own(lambda: layers.Dense(4, activity_regularizer="l1"))),
        "boltzmann": lambda: fit_in(
            strategy.scope(), lambda: kerasae.models.pretraining.RestrictedBoltzmannMachine(64, 3)
        ),
    }
    messages = {}
    for name, case in cases.items():
        try:
            case()
            messages[name] = "nothing was raised"
        except ValueError as error:
            messages[name] = str(error)
    return messages


def inference(strategy):
    """Differences of what a trained model gives under a strategy and, saved and loaded, on one device."""
    import tempfile

    import keras
    from families import FAMILIES

    import kerasae

    x = kerasae.data.load("digits")[0][:NUM_EXAMPLES]
    with strategy.scope():
        several = FAMILIES["variational-conv"]()
        several.compile(optimizer="sgd")
    several.fit(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        several.save(f"{folder}/model.keras")
        one = keras.saving.load_model(f"{folder}/model.keras")
    z = one.encode(x)

    def difference(f):
        return float(np.abs(f(several) - f(one)).max())

    return {
        "encode": difference(lambda model: model.encode(x, batch_size=BATCH_SIZE)),
        "decode": difference(lambda model: model.decode(z, batch_size=BATCH_SIZE)),
        "predict": difference(lambda model: model.predict(x, batch_size=BATCH_SIZE, verbose=0)),
        "log_likelihood": difference(lambda model: model.log_likelihood(x[:3], num_samples=5)),
    }


def warnings_of_keras_noise(strategy):
    import logging

    import keras
    from families import FAMILIES
    from keras import layers

    import kerasae

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("kerasae").addHandler(handler)
    with strategy.scope():
        encoder = keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dropout(0.2, name="drop"), layers.Dense(3)]
        )
        model = kerasae.builders.denoising(encoder=encoder, decoder=FAMILIES["undercomplete-dense"]().decoder)
        model.compile(optimizer="sgd")
    model.fit(kerasae.data.load("digits")[0][:4], batch_size=2, verbose=0)
    return messages


def report(results, name, function, *args):
    try:
        results[name] = function(*args)
    except Exception:
        results[name] = {"failure": traceback.format_exc()[-3000:]}


def main_mirrored(path, which):
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from families import EVERY_ROW

    devices = ["CPU:0", "CPU:1"]
    results = {}
    if which == "ci":
        # One strategy for all: the collectives of a second one would clash with those of the first.
        strategy = tf.distribute.MirroredStrategy(devices)
        families, others = IN_CI, options()
        for function in (noise, refusals, warnings_of_keras_noise, inference):
            report(results, function.__name__, function, strategy)
    elif which == "slow":
        strategy = tf.distribute.MirroredStrategy(devices)
        families = [name for name in EVERY_ROW if name not in IN_CI and name != "undercomplete-own"]
        others = slow_options()
    else:
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
        families, others = (), {"steps_per_execution": ("variational-dense", {"steps_per_execution": 2}, {})}
    for name in families:
        report(results, name, compare, strategy, name, {}, {"validate": True})
    for name, arguments in others.items():
        report(results, name, compare, strategy, *arguments)
    Path(path).write_text(json.dumps(results))


def main_worker(path, families, backup, kill_in_epoch, epochs):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == kill_in_epoch:
                os.kill(os.getpid(), signal.SIGKILL)

    results = {}
    for family in families:
        callbacks = [keras.callbacks.BackupAndRestore(backup)] if backup else []
        model, _, history = train(strategy, family, {}, {"epochs": epochs, "validate": True}, [*callbacks, Kill()])
        import kerasae

        x = kerasae.data.load("digits")[0][:NUM_EXAMPLES]
        results[family] = {
            "history": history,
            "weights": [w.tolist() for w in model.get_weights()],
            "evaluation": model.evaluate(x, verbose=0, return_dict=True),
            "predictions": model.predict(x, verbose=0).tolist(),
        }
    Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    {"mirrored": main_mirrored, "worker": main_worker}[sys.argv[1]](**arguments)
    sys.exit()


# -- One machine, two devices ------------------------------------------------------------------------------------------


def start(kind, arguments, log, **environment):
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, __file__, kind, json.dumps(arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )


def run_mirrored(which):
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder, "results.json"), Path(folder, "log")
        process = start("mirrored", {"path": str(results), "which": which}, log)
        try:
            assert process.wait(TIMEOUT) == 0, log.read_text()[-3000:]
        finally:
            process.kill()
        return json.loads(results.read_text())


@pytest.fixture(scope="module")
def mirrored():
    return run_mirrored("ci")


@pytest.fixture(scope="module")
def mirrored_slow():
    return run_mirrored("slow")


@pytest.fixture(scope="module")
def mirrored_reduction():
    return run_mirrored("reduction")


def assert_same_training(result):
    assert "failure" not in result, result["failure"]
    one, several = result["logs"]
    assert result["moved"] > 1e-3
    assert result["error"] < 1e-6
    assert set(one) == set(several)
    for name in one:
        np.testing.assert_allclose(several[name], one[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", IN_CI)
def test_two_replicas_train_as_one_device_does(mirrored, name):
    assert_same_training(mirrored[name])


OPTIONS = [
    "clipnorm",
    "several inputs",
    "shuffled, and validated",
    "several optimisers",
    "several optimisers, clipped",
    "an empty replica",
    "global_clipnorm",
    "keras loss, metrics and sample weights",
    "sample weights",
    "batch normalisation and regularisers",
]


@pytest.mark.parametrize("name", OPTIONS)
def test_what_compile_and_fit_are_told_means_the_same_on_two_replicas(mirrored, name):
    assert_same_training(mirrored[name])


def test_gradients_in_mixed_precision_are_unscaled_and_clipped_once(mirrored):
    """The losses are scaled for float16, and clipping is of the true gradient's norm, over both replicas."""
    result = mirrored["mixed precision, clipped"]
    assert "failure" not in result, result["failure"]
    one, several = result["logs"]
    # Three steps of length 0.01 at most; float16 keeps 11 bits of each gradient. Clipped by replica, the weights would differ by as much
    # as they move.
    assert 1e-2 < result["moved"] <= 0.03
    assert result["error"] < 2e-3 * result["moved"]
    np.testing.assert_allclose(several["loss"], one["loss"], rtol=1e-3)


@pytest.mark.slow
def test_two_replicas_train_every_family_as_one_device_does(mirrored_slow):
    for result in mirrored_slow.values():
        assert_same_training(result)


@pytest.mark.slow
def test_steps_per_execution_on_two_replicas(mirrored_reduction):
    assert_same_training(mirrored_reduction["steps_per_execution"])


@pytest.mark.parametrize(
    "name", ["GaussianCorruption", "MaskingCorruption", "SaltAndPepperCorruption", "sample_normal"]
)
def test_replicas_draw_noise_of_their_own(mirrored, name):
    (first, second), (again, _) = mirrored["noise"][name]
    assert np.shape(first) == (4, 50)
    assert np.mean(np.not_equal(first, second)) > 0.2
    assert np.mean(np.not_equal(first, again)) > 0.2


def test_keras_layers_with_the_same_noise_on_every_replica_are_named(mirrored):
    (message,) = mirrored["warnings_of_keras_noise"]
    assert "the same noise on every replica" in message
    assert ": drop." in message


def test_inference_under_a_strategy_is_that_of_one_device(mirrored):
    assert set(mirrored["inference"]) == {"encode", "decode", "predict", "log_likelihood"}, mirrored["inference"]
    assert max(mirrored["inference"].values()) < 1e-5


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("model from outside", "Variables of the model were created outside the scope of MirroredStrategy"),
        ("optimizer from outside", "Variables of the optimizer were created outside the scope of MirroredStrategy"),
        ("keras.distribution", "keras.distribution does nothing on the TensorFlow backend"),
        ("jit_compile", "`jit_compile=True` does not work on 2 replicas"),
        ("steps_per_execution", "cross_device_ops=tf.distribute.ReductionToOneDevice"),
        ("accumulation", "`gradient_accumulation_steps` does not work on 2 replicas"),
        ("ema", "`ema_overwrite_frequency` does not work on 2 replicas"),
        ("sum", "must be 'sum_over_batch_size' on several replicas. Received: 'sum'"),
        ("one number", "must give a value an example on several replicas"),
        ("batch normalisation", "BatchNormalization(synchronized=True)"),
        ("activity", "it can't be split over 2 replicas"),
        ("boltzmann", "is fitted on one device"),
    ],
)
def test_what_would_fail_or_be_wrong_is_refused(mirrored, case, message):
    assert message in mirrored["refusals"][case]


def test_a_model_that_was_not_compiled_is_refused_by_keras():
    from families import FAMILIES

    with pytest.raises(ValueError, match="must call `compile"):
        FAMILIES["undercomplete-dense"]().fit(np.zeros((2, 8, 8, 1)))


# -- Two machines ------------------------------------------------------------------------------------------------------


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def run_workers(folder, families, epochs=1, backup=False, kill_in_epoch=None):
    """Two processes as two workers; `kill_in_epoch` is when the second kills itself. Returns their exit codes, logs and results."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes, paths, logs = [], [], []
    for i in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
        paths.append(folder / f"results-{i}.json")
        logs.append(folder / f"log-{i}")
        arguments = {
            "path": str(paths[i]),
            "families": families,
            "backup": str(folder / f"backup-{i}") if backup else None,
            "kill_in_epoch": kill_in_epoch if i == 1 else None,
            "epochs": epochs,
        }
        processes.append(start("worker", arguments, logs[i], TF_CONFIG=json.dumps(config)))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    results = [json.loads(path.read_text()) if path.exists() else None for path in paths]
    return codes, [log.read_text()[-3000:] for log in logs], results


def assert_workers_agree_with_one_device(folder, families):
    import tensorflow as tf

    codes, logs, (first, second) = run_workers(folder, families)
    assert codes == [0, 0], logs
    for family in families:
        assert first[family]["history"] == second[family]["history"]
        assert first[family]["weights"] == second[family]["weights"]
        one, _, history = train(tf.distribute.get_strategy(), family, {}, {"validate": True})
        for a, b in zip(one.get_weights(), first[family]["weights"], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        for name, values in history.items():
            np.testing.assert_allclose(first[family]["history"][name], values, rtol=1e-5, err_msg=name)
        import kerasae

        x = kerasae.data.load("digits")[0][:NUM_EXAMPLES]
        np.testing.assert_allclose(first[family]["predictions"], one.predict(x, verbose=0), atol=1e-5)
        assert first[family]["evaluation"] == pytest.approx(one.evaluate(x, verbose=0, return_dict=True), rel=1e-5)


def test_two_workers_train_as_one_device_does(tmp_path):
    assert_workers_agree_with_one_device(tmp_path, ["undercomplete-dense"])


@pytest.mark.slow
def test_two_workers_train_families_as_one_device_does(tmp_path):
    # Those without noise: here the workers draw their own, and one device can't be made to draw the same.
    families = ["undercomplete-conv", "linear", "k-sparse-dense", "sparse-kl", "sparse-batch", "contractive-dense"]
    assert_workers_agree_with_one_device(tmp_path, families)


@pytest.mark.slow
def test_workers_of_which_one_was_killed_resume(tmp_path):
    family = "variational-dense"  # with noise: its random state is resumed, too
    for folder in ("uninterrupted", "killed"):
        (tmp_path / folder).mkdir()
    codes, logs, (uninterrupted, _) = run_workers(tmp_path / "uninterrupted", [family], epochs=3)
    assert codes == [0, 0], logs
    codes, logs, results = run_workers(tmp_path / "killed", [family], epochs=3, backup=True, kill_in_epoch=1)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] > 0, "the other worker notices"
    assert results == [None, None]
    codes, logs, (resumed, _) = run_workers(tmp_path / "killed", [family], epochs=3, backup=True)
    assert codes == [0, 0], logs
    assert len(resumed[family]["history"]["loss"]) == 2, "the first epoch isn't trained again"
    assert resumed[family]["weights"] == uninterrupted[family]["weights"]

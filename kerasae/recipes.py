"""Recipes: everything that makes a model, in one TOML file; training and measuring by it.

A recipe names the data, the family and its builder's arguments, how to train, and what to measure under which protocol. TensorFlow is
imported only where it is used, so that recipes are read and listed at once.
"""

import inspect
import json
import os
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic

from kerasae import checks


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """What to train on: `kerasae.data.load(name)`."""

    name: str
    # The last so many training images are held out, for choosing; 0 trains on all of them.
    validation: pydantic.NonNegativeInt = 0
    # Stochastic (dynamic) binarisation: whenever an image is used, each pixel is 1 with probability its intensity.
    binarize: bool = False


class Pretraining(_Section):
    """Greedy layer-wise pretraining before `Training`."""

    method: Literal["rbm", "autoencoder"]
    epochs: pydantic.PositiveInt
    # The corruption of each layer's autoencoder, for `"autoencoder"`; none makes them plain.
    corruption_rate: float | None = pydantic.Field(None, gt=0, lt=1)


class Training(_Section):
    """How to train."""

    optimizer: str = "adam"
    learning_rate: pydantic.PositiveFloat = 1e-3
    # "cosine": from `learning_rate` to 0 over all epochs.
    schedule: Literal["constant", "cosine"] = "constant"
    batch_size: pydantic.PositiveInt = 128
    # 0 leaves it at what `Pretraining` gave.
    epochs: pydantic.NonNegativeInt
    jit_compile: bool = False
    steps_per_execution: pydantic.PositiveInt = 1
    # For k-sparse models: k falls from `start_k` to the model's own over so many epochs.
    k_annealing: dict[Literal["start_k", "epochs"], pydantic.PositiveInt] | None = None


class Measurement(_Section):
    """A figure to report of the test set, beside the published one."""

    metric: str
    arguments: dict[str, Any] = {}
    published: float | None = None
    source: str | None = None

    @pydantic.model_validator(mode="after")
    def _known(self):
        function, _, _ = _METRICS[checks.choice(self.metric, "metric", _METRICS)]
        for argument in self.arguments:
            checks.choice(argument, f"argument of {self.metric}", list(inspect.signature(function).parameters)[2:])
        return self


class Recipe(_Section):
    """A recipe file's contents."""

    family: str
    description: str
    seed: pydantic.NonNegativeInt = 0
    data: Data
    model: dict[str, Any]
    pretraining: Pretraining | None = None
    training: Training
    measure: list[Measurement]

    @pydantic.model_validator(mode="after")
    def _trains(self):
        if self.training.epochs == 0 and self.pretraining is None:
            raise ValueError("training.epochs is 0 and there is no pretraining: nothing would be trained")
        return self


def read(path):
    """Reads and checks a recipe.

    Args:
        path: of a TOML file with the sections `data`, `model`, `training` and `measure`.

    Returns:
        `Recipe`.

    Raises:
        ValueError: where the file is no TOML, or a key is unknown, missing or of the wrong type; the message names the key.
        FileNotFoundError: where there is no such file.
    """
    path = Path(path)
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path} is not a recipe: {problems}") from error


def build(recipe, input_shape, num_examples):
    """The recipe's model, compiled, with its weights drawn from its seed.

    Args:
        recipe: `Recipe`.
        input_shape: shape of one example.
        num_examples: number of training examples, for the learning rate's schedule.
    """
    import keras

    from kerasae import builders

    families = [name for name, f in inspect.getmembers(builders, inspect.isfunction) if not name.startswith("_")]
    builder = getattr(builders, checks.choice(recipe.family, "family", families))
    for option in recipe.model:
        checks.choice(option, f"option of {recipe.family}", inspect.signature(builder).parameters)
    keras.utils.set_random_seed(recipe.seed)
    model = builder(input_shape, **recipe.model, seed=recipe.seed)
    training = recipe.training
    learning_rate = training.learning_rate
    if training.schedule == "cosine":
        steps = -(-num_examples // training.batch_size) * training.epochs
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = keras.optimizers.get({"class_name": training.optimizer, "config": {"learning_rate": learning_rate}})
    model.compile(
        optimizer=optimizer, jit_compile=training.jit_compile, steps_per_execution=training.steps_per_execution
    )
    return model


def split(recipe, x_train):
    """The training images and, where the recipe holds some out, the validation images (else None)."""
    held_out = recipe.data.validation
    if held_out >= len(x_train):
        raise ValueError(f"data.validation must be less than the {len(x_train)} training images. Received: {held_out}")
    return (x_train[:-held_out], x_train[-held_out:]) if held_out else (x_train, None)


def train(recipe, x_train, checkpoint, verbose="auto"):
    """Trains the recipe's model; a run that was stopped goes on at the last whole epoch.

    Args:
        recipe: `Recipe`.
        x_train: training images, with those to be held out.
        checkpoint: folder for the state of an unfinished run; removed once it has finished.
        verbose: as in `keras.Model.fit`.

    Returns:
        `(model, facts)`; facts are the seconds and epochs of training in this process and the losses of the last epoch.
    """
    import keras

    from kerasae.models import KAnnealing

    x_train, x_validation = split(recipe, x_train)
    model = build(recipe, x_train.shape[1:], len(x_train))
    checkpoint = Path(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    training = recipe.training
    started = time.perf_counter()
    if recipe.pretraining is not None:
        _pretrain(recipe.pretraining, model, x_train, checkpoint / "pretrained.weights.h5", verbose)
    callbacks = [
        keras.callbacks.BackupAndRestore(str(checkpoint / "backup")),
        keras.callbacks.CSVLogger(str(checkpoint / "history.csv"), append=True),
    ]
    if training.k_annealing is not None:
        callbacks.append(KAnnealing(**training.k_annealing))
    x, validation_data = x_train, None if x_validation is None else (x_validation,)
    if recipe.data.binarize:
        x = binarized_batches(x_train, training.batch_size, recipe.seed)
        validation_data = None if x_validation is None else (binarized(x_validation),)
    history = model.fit(
        x,
        batch_size=None if recipe.data.binarize else training.batch_size,
        epochs=training.epochs,
        validation_data=validation_data,
        shuffle=not recipe.data.binarize,
        callbacks=callbacks,
        verbose=verbose,
    )
    facts = {
        "epochs": training.epochs,
        "epochs_in_this_process": len(history.epoch),
        "seconds_in_this_process": round(time.perf_counter() - started, 1),
        "last_epochs": {name: values[-3:] for name, values in history.history.items()},
    }
    shutil.rmtree(checkpoint)
    return model, facts


def _pretrain(pretraining, model, x_train, path, verbose):
    """Pretrains the model's layers, or takes them from `path` where a stopped run had finished with that."""
    import keras

    from kerasae.layers import MaskingCorruption
    from kerasae.models import Autoencoder, DenoisingAutoencoder
    from kerasae.models.pretraining import pretrain_autoencoders, pretrain_rbms

    if path.exists():
        model.load_weights(path, skip_mismatch=False)
        return

    def layer_autoencoder(encoder, decoder):
        if pretraining.corruption_rate is None:
            layer = Autoencoder(encoder, decoder, loss=model.distortion)
        else:
            layer = DenoisingAutoencoder(
                encoder, decoder, MaskingCorruption(pretraining.corruption_rate), loss=model.distortion
            )
        layer.compile(optimizer=keras.optimizers.Adam(1e-3))
        return layer

    if pretraining.method == "rbm":
        pretrain_rbms(model, x_train, epochs=pretraining.epochs, verbose=verbose)
    else:
        pretrain_autoencoders(model, x_train, layer_autoencoder, epochs=pretraining.epochs, verbose=verbose)
    model.save_weights(path)


def binarized(x, seed=0):
    """Images of zeros and ones: each pixel is 1 with probability its intensity, from a seed."""
    import numpy as np

    return (np.random.default_rng(seed).random(x.shape, dtype="float32") < x).astype("float32")


def binarized_batches(x, batch_size, seed):
    """A `tf.data.Dataset` of shuffled batches that are binarised anew in every epoch."""
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=seed).batch(batch_size)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    return tf.data.Dataset.zip(batches, seeds).map(_binarize, num_parallel_calls=2).prefetch(4)


def _binarize(x, seed):
    import tensorflow as tf

    return tf.cast(tf.random.stateless_uniform(tf.shape(x), seed) < x, tf.float32)


# -- Measuring ---------------------------------------------------------------------------------------------------------------------------


# Each is a function of the model, the data as `{"x_train", "y_train", "x_test", "y_test"}`, and the recipe's arguments.


def _squared_error(model, data):
    from kerasae import metrics

    return metrics.squared_error(data["x_test"], model.predict(data["x_test"], batch_size=1000, verbose=0))


def _pca_error(model, data, num_components):
    from kerasae import metrics

    return metrics.pca_error(data["x_train"], data["x_test"], num_components)


def _negative_elbo(model, data, binarize=False):
    x = binarized(data["x_test"]) if binarize else data["x_test"]
    logs = model.evaluate(x, batch_size=1000, verbose=0, return_dict=True)
    return logs["reconstruction_loss"] + logs["kl_loss"]


def _negative_log_likelihood(model, data, num_samples, num_images=None):
    x = binarized(data["x_test"])[:num_images]
    return -model.log_likelihood(x, num_samples, verbose=1).mean(dtype="float64")


def _active_units(model, data):
    return model.active_units(data["x_test"])


def _linear_probe_error(model, data, C=1.0):
    from kerasae import metrics

    z_train, z_test = (model.encode(data[name], batch_size=1000) for name in ("x_train", "x_test"))
    return metrics.linear_probe_error(z_train, data["y_train"], z_test, data["y_test"], C=C)


def _knn_error(model, data, num_neighbors=5):
    from kerasae import metrics

    z_train, z_test = (model.encode(data[name], batch_size=1000) for name in ("x_train", "x_test"))
    return 100 * (1 - metrics.knn_accuracy(z_train, data["y_train"], z_test, data["y_test"], num_neighbors))


def _finetuned_error(model, data, epochs, learning_rate=1e-3, batch_size=128, validation=10_000):
    import keras

    from kerasae.models.pretraining import classifier

    keras.utils.set_random_seed(0)
    head = classifier(model.encoder, int(data["y_train"].max()) + 1)
    head.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    best = keras.callbacks.EarlyStopping("val_accuracy", patience=epochs, restore_best_weights=True)
    head.fit(
        data["x_train"][:-validation],
        data["y_train"][:-validation],
        validation_data=(data["x_train"][-validation:], data["y_train"][-validation:]),
        epochs=epochs,
        batch_size=batch_size,
        callbacks=[best],
        verbose=2,
    )
    _, accuracy = head.evaluate(data["x_test"], data["y_test"], batch_size=1000, verbose=0)
    return 100 * (1 - accuracy)


# name: (function, unit, protocol)
_METRICS = {
    "squared_error": (_squared_error, "squared error per image", "summed over pixels in [0, 1], mean over test images"),
    "pca_error": (
        _pca_error,
        "squared error per image",
        "PCA fitted on the training images, summed over pixels in [0, 1], unclipped, mean over test images",
    ),
    "negative_elbo": (
        _negative_elbo,
        "nats per image",
        "negative evidence lower bound, one sample of z an image; pixels in [0, 1] as they are, or binarised from seed 0; "
        "mean over test images",
    ),
    "negative_log_likelihood": (
        _negative_log_likelihood,
        "nats per image",
        "importance sampling from q(z|x); test images binarised, each pixel 1 with probability its intensity, from seed 0",
    ),
    "active_units": (
        _active_units,
        "units",
        "codes whose variance over the test images exceeds 0.01 (0 for a k-sparse code)",
    ),
    "linear_probe_error": (
        _linear_probe_error,
        "% of test images",
        "multinomial logistic regression on standardised codes, fitted on the training images that the model saw",
    ),
    "knn_error": (
        _knn_error,
        "% of test images",
        "k nearest neighbours by Euclidean distance of codes, among the training images that the model saw",
    ),
    "finetuned_error": (
        _finetuned_error,
        "% of test images",
        "a softmax layer on the encoder, all fine-tuned by Adam on the training images less the last ones, on which the epoch "
        "is chosen",
    ),
}


def measure(recipe, model, data):
    """Measures what the recipe asks for on the test images.

    Args:
        recipe: `Recipe`.
        model: compiled model.
        data: `((x_train, y_train), (x_test, y_test))`, as `kerasae.data.load(labels=True)` gives.

    Returns:
        A list of `{"metric", "arguments", "value", "unit", "protocol", "split", "num_examples", "published", "source"}`.
    """
    (x_train, y_train), (x_test, y_test) = data
    seen = len(split(recipe, x_train)[0])
    data = {"x_train": x_train[:seen], "y_train": y_train[:seen], "x_test": x_test, "y_test": y_test}
    records = []
    for measurement in recipe.measure:
        function, unit, protocol = _METRICS[measurement.metric]
        records.append(
            {
                **measurement.model_dump(),
                "value": float(function(model, data, **measurement.arguments)),
                "unit": unit,
                "protocol": protocol,
                "split": "test",
                "num_examples": measurement.arguments.get("num_images", len(x_test)),
            }
        )
    return records


def write_json(path, contents):
    """Writes JSON beside its place and moves it in."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(contents, indent=2) + "\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)

"""Recipes: everything that makes a model, in one TOML file; training and measuring by it.

A recipe names the data, the family and its builder's arguments, how to train, and what to measure under which protocol. TensorFlow is
imported only where it is used, so that recipes are read and listed at once.
"""

import inspect
import json
import logging
import os
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic

from kerasae import checks

_logger = logging.getLogger(__name__)


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """What to train on: `kerasae.data.load(name)`."""

    name: str
    # The last so many training images are held out, for choosing; 0 trains on all of them.
    validation: pydantic.NonNegativeInt = 0


class Training(_Section):
    """How to train."""

    optimizer: str = "adam"
    learning_rate: pydantic.PositiveFloat = 1e-3
    # "cosine": from `learning_rate` to 0 over all epochs.
    schedule: Literal["constant", "cosine"] = "constant"
    batch_size: pydantic.PositiveInt = 128
    epochs: pydantic.PositiveInt


class Measurement(_Section):
    """A figure to report of the test set, beside the published one."""

    metric: str
    arguments: dict[str, Any] = {}
    published: float | None = None
    source: str | None = None

    @pydantic.field_validator("metric")
    @classmethod
    def _known(cls, value):
        return checks.choice(value, "metric", _METRICS)


class Recipe(_Section):
    """A recipe file's contents."""

    family: str
    description: str
    seed: pydantic.NonNegativeInt = 0
    data: Data
    model: dict[str, Any]
    training: Training
    measure: list[Measurement]


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
    model.compile(optimizer=optimizer)
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

    x_train, x_validation = split(recipe, x_train)
    model = build(recipe, x_train.shape[1:], len(x_train))
    checkpoint = Path(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    history = model.fit(
        x_train,
        batch_size=recipe.training.batch_size,
        epochs=recipe.training.epochs,
        validation_data=None if x_validation is None else (x_validation,),
        callbacks=[keras.callbacks.BackupAndRestore(str(checkpoint / "backup"))],
        verbose=verbose,
    )
    seconds = time.perf_counter() - started
    shutil.rmtree(checkpoint)
    facts = {
        "epochs": recipe.training.epochs,
        "epochs_in_this_process": len(history.epoch),
        "seconds_in_this_process": round(seconds, 1),
        "last_epoch": {name: values[-1] for name, values in history.history.items()},
    }
    return model, facts


# -- Measuring ---------------------------------------------------------------------------------------------------------------------------


def _squared_error(model, x_train, x_test):
    from kerasae import metrics

    return metrics.squared_error(x_test, model.predict(x_test, batch_size=1000, verbose=0))


def _pca_error(model, x_train, x_test, num_components):
    from kerasae import metrics

    return metrics.pca_error(x_train, x_test, num_components)


def _negative_elbo(model, x_train, x_test):
    logs = model.evaluate(x_test, batch_size=1000, verbose=0, return_dict=True)
    return logs["reconstruction_loss"] + logs["kl_loss"]


def _active_units(model, x_train, x_test):
    from kerasae import metrics

    return metrics.active_units(model.encode(x_test))


# name: (function of (model, x_train, x_test, **arguments), unit, protocol)
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
        "negative evidence lower bound, one sample of z an image, pixels in [0, 1] as they are, mean over test images",
    ),
    "active_units": (_active_units, "units", "codes whose variance over the test images exceeds 0.01"),
}


def measure(recipe, model, x_train, x_test):
    """Measures what the recipe asks for on the test images.

    Returns:
        A list of `{"metric", "arguments", "value", "unit", "protocol", "split", "num_examples", "published", "source"}`.
    """
    records = []
    for measurement in recipe.measure:
        function, unit, protocol = _METRICS[measurement.metric]
        records.append(
            {
                **measurement.model_dump(),
                "value": float(function(model, x_train, x_test, **measurement.arguments)),
                "unit": unit,
                "protocol": protocol,
                "split": "test",
                "num_examples": len(x_test),
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

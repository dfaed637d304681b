"""Recipes: everything that makes a model, in one TOML file; training and measuring by it.

A recipe names the data, the family and its builder's arguments, how to train, and what to measure under which protocol. TensorFlow is
imported only where it is used, so that recipes are read and listed at once.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import tempfile
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pydantic

from kerasae import checks

_logger = logging.getLogger(__name__)

# Where a run keeps what it needs to go on, inside its folder, until it is finished.
CHECKPOINT = ".checkpoint"
# What a builder takes that a recipe can't hold, or gives by itself.
_NO_OPTIONS = {"input_shape", "encoder", "decoder", "seed", "kwargs"}


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """What to train on: `kerasae.data.load(name)`, or own files by their path, as `kerasae.files.read` takes them."""

    name: str | None = None
    # The last so many training images are held out, for choosing; 0 trains on all of them.
    validation: pydantic.NonNegativeInt = 0
    # Stochastic (dynamic) binarisation: whenever an image is used, each pixel is 1 with probability its intensity.
    binarize: bool = False
    # Own files; a path in a recipe file counts from the folder of that file.
    path: str | None = None
    image_size: tuple[pydantic.PositiveInt, pydantic.PositiveInt] | None = None
    color: Literal["grey", "rgb"] | None = None
    array: str | None = None
    columns: list[str] | None = None
    drop: list[str] = []
    labels: str | None = None
    skip_unreadable: bool = False
    scaling: Literal["auto", "none", "minmax", "standard"] = "auto"
    # The share of own files that is held out as the test set, chosen by the recipe's seed.
    test_fraction: float = pydantic.Field(0.1, gt=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.path is None):
            raise ValueError("give either `name`, of a dataset, or `path`, of your own files")
        if self.path is None and (
            foreign := set(self.model_dump(exclude_defaults=True)) - {"name", "validation", "binarize"}
        ):
            raise ValueError(f"only own files, by `path`, take {sorted(foreign)}")
        return self

    @property
    def title(self):
        """What to call it in a sentence."""
        return self.name or Path(self.path).name


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
    # For variational models: the weight of the KL term rises from 0 to the model's own over so many epochs.
    beta_annealing: pydantic.PositiveInt | None = None


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
        recipe = Recipe.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path} is not a recipe: {problems}") from error
    if recipe.data.path is not None:
        own = str((path.parent / Path(recipe.data.path).expanduser()).resolve())
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": own})})
    return recipe


def options(family):
    """The options of a family's builder that a recipe's `model` may set: `{name: default}`.

    Raises:
        ValueError: on an unknown family; the message names the nearest.
    """
    from kerasae import builders

    families = [name for name, f in inspect.getmembers(builders, inspect.isfunction) if not name.startswith("_")]
    parameters = inspect.signature(getattr(builders, checks.choice(family, "family", families))).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in _NO_OPTIONS}


def check(recipe):
    """Raises on a family, or an option of it, that there isn't, before any data is read."""
    known = options(recipe.family)
    for option in recipe.model:
        checks.choice(option, f"option of {recipe.family}", known)


def build(recipe, input_shape, num_examples):
    """The recipe's model, compiled, with its weights drawn from its seed.

    Args:
        recipe: `Recipe`.
        input_shape: shape of one example.
        num_examples: number of training examples, for the learning rate's schedule.
    """
    import keras

    from kerasae import builders

    check(recipe)
    builder = getattr(builders, recipe.family)
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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a recipe's data are: `train` and `test`, each `(x, y)`, y None without labels; and `facts` of them, for `data.json`."""

    train: tuple
    test: tuple
    facts: dict

    @property
    def preparation(self):
        """The `kerasae.files.Preparation` that made the examples."""
        from kerasae.files import Preparation

        return Preparation.from_dict(self.facts["preparation"])

    @property
    def images(self):
        """Whether the examples are images."""
        return is_image(self.train[0].shape[1:])


def is_image(shape):
    """Whether examples of this shape can be shown as images."""
    return len(shape) == 3 and shape[-1] in (1, 3)


def load(recipe, data_dir=None):
    """Loads the recipe's data.

    Args:
        recipe: `Recipe`.
        data_dir: as in `kerasae.data.load`.

    Returns:
        `Dataset`.
    """
    from kerasae import files

    source = recipe.data
    if source.name is not None:
        from kerasae import data

        try:
            train, test = data.load(source.name, data_dir=data_dir, labels=True)
        except ValueError as error:
            if "labels=True" not in str(error):
                raise
            train, test = ((x, None) for x in data.load(source.name, data_dir=data_dir))
        shape = train[0].shape[1:]
        preparation, facts, classes = files.Preparation("images", shape, "pixels", (0.0,), (255.0,)), {}, None
    else:
        read = files.read(
            source.path,
            image_size=source.image_size,
            color=source.color,
            array=source.array,
            columns=source.columns,
            drop=source.drop,
            labels=source.labels,
            skip_unreadable=source.skip_unreadable,
        )
        values, classes = read.values, read.classes
        indices = files.split(len(values), source.test_fraction, recipe.seed)
        unit_interval = "binary_crossentropy" in recipe.model.values() or "bernoulli" in recipe.model.values()
        preparation = files.Preparation.fit(read, indices[0], source.scaling, unit_interval)
        files.check_memory(values.shape, "float32", source.path)
        train, test = ((preparation.apply(values[i]), None if read.labels is None else read.labels[i]) for i in indices)
        facts = {"fingerprint": read.fingerprint}
        if read.names is not None:
            facts["test_files"] = [read.names[i] for i in indices[1]]
        else:
            facts["test_rows"] = indices[1].tolist()
    return Dataset(
        train,
        test,
        {
            "data": source.title,
            "preparation": preparation.to_dict(),
            "num_train": len(train[0]),
            "num_test": len(test[0]),
            "classes": classes,
            **facts,
        },
    )


def run(recipe, folder, text=None, data_dir=None, verbose="auto", complete=None, loaded=None):
    """Trains a recipe's model and fills a folder: recipe, model, history, facts of the data, measures, and what `complete` adds.

    A run that was stopped goes on at the last whole epoch when called again. The files of a finished one are replaced together, at the
    end.

    Args:
        recipe: `Recipe`.
        folder: where to.
        text: what to write as recipe.toml. Default: the recipe, with every default.
        data_dir: as in `kerasae.data.load`.
        verbose: as in `keras.Model.fit`.
        complete: called with a folder to write more files into, the model, its `Dataset`, its history, and what goes into `metrics.json`.
        loaded: `Dataset`, where the recipe's data have been loaded already.

    Returns:
        What was written into `metrics.json`.

    Raises:
        ValueError: where the run in the folder was begun with another recipe, or its data has changed since.
    """
    check(recipe)
    loaded = loaded or load(recipe, data_dir)
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    text = text or to_toml(recipe)
    model, training = train(recipe, loaded.train[0], checkpoint, verbose, loaded.facts.get("fingerprint"))
    records = measure(recipe, model, (loaded.train, loaded.test))
    with written_together(folder) as beside:
        (beside / "recipe.toml").write_text(text)
        write_json(beside / "data.json", loaded.facts)
        history = training.pop("history")
        write_json(beside / "history.json", history)
        _uncompiled(model).save(beside / "model.keras")
        weights = (beside / "model.keras").read_bytes()
        facts = {
            "format": 1,
            "id": folder.resolve().name,
            "model": {
                "sha256": hashlib.sha256(weights).hexdigest(),
                "bytes": len(weights),
                "parameters": int(model.count_params()),
            },
            "training": training,
            "versions": {name: version(name) for name in ("kerasae", "keras", "tensorflow")},
            "metrics": records,
        }
        write_json(beside / "metrics.json", facts)
        if complete is not None:
            complete(beside, model, loaded, history, facts)
    shutil.rmtree(checkpoint)
    _logger.info("wrote %s", folder)
    return facts


def train(recipe, x_train, checkpoint, verbose="auto", fingerprint=None, strategy=None):
    """Trains the recipe's model; a run that was stopped goes on at the last whole epoch.

    Args:
        recipe: `Recipe`.
        x_train: training images, with those to be held out.
        checkpoint: folder for the state of the run, which is the caller's to remove.
        verbose: as in `keras.Model.fit`.
        fingerprint: of the data; a run that was begun on other data is refused.
        strategy: of `tf.distribute`, within whose scope the model is built. Default: none.

    Returns:
        `(model, facts)`; facts are the epochs and seconds of training, in this process and in all, the last values of each logged term, and
        the `history` of all epochs, `{term: [values]}`.

    Raises:
        ValueError: where the run was begun with another recipe, or on other data.
    """
    x_train, x_validation = split(recipe, x_train)
    checkpoint = Path(checkpoint)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        model = build(recipe, x_train.shape[1:], len(x_train))
        model.optimizer.build(model.trainable_variables)
    begin(checkpoint, recipe, fingerprint)
    progress = _Progress(checkpoint)
    started, initial_epoch = time.perf_counter(), progress.restore(model)
    training = recipe.training
    if recipe.pretraining is not None and initial_epoch == 0:
        _pretrain(recipe.pretraining, model, x_train, checkpoint / "pretrained.weights.h5", verbose)
    if initial_epoch < training.epochs:
        callbacks = [_saving(progress)]
        if training.k_annealing is not None:
            from kerasae.models import KAnnealing

            callbacks.append(KAnnealing(**training.k_annealing))
        if training.beta_annealing is not None:
            from kerasae.models import BetaAnnealing

            callbacks.append(BetaAnnealing(training.beta_annealing))
        x, validation_data = x_train, None if x_validation is None else (x_validation,)
        if recipe.data.binarize:
            x = binarized_batches(x_train, training.batch_size, recipe.seed)
            validation_data = None if x_validation is None else (binarized(x_validation),)
        model.fit(
            x,
            batch_size=None if recipe.data.binarize else training.batch_size,
            epochs=training.epochs,
            initial_epoch=initial_epoch,
            validation_data=validation_data,
            shuffle=not recipe.data.binarize,
            callbacks=callbacks,
            verbose=verbose,
        )
    facts = {
        "epochs": training.epochs,
        "epochs_in_this_process": training.epochs - initial_epoch,
        "seconds_in_this_process": round(time.perf_counter() - started, 1),
        "seconds": round(progress.seconds, 1),
        "last_epochs": {name: values[-3:] for name, values in progress.history.items()},
        "history": progress.history,
    }
    return model, facts


def begin(checkpoint, recipe, fingerprint=None):
    """Notes in the folder which recipe and data a run is of; raises where it holds an unfinished run of others."""
    path = checkpoint / "run.json"
    this = {"recipe": recipe.model_dump(mode="json"), "fingerprint": fingerprint}
    if not path.exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_json(path, this)
        return
    begun = json.loads(path.read_text())
    start_again = f"Go on as it was begun, or start again (kerasae train --overwrite, or remove {checkpoint})."
    if changed := list(_differences(begun["recipe"], this["recipe"])):
        raise ValueError(
            f"The unfinished run in {checkpoint.parent} was begun with another recipe: {'; '.join(changed)}. {start_again}"
        )
    if None not in (fingerprint, begun["fingerprint"]) and fingerprint != begun["fingerprint"]:
        raise ValueError(
            f"The data in {recipe.data.path} have changed since the run in {checkpoint.parent} was begun: their fingerprint was "
            f"{begun['fingerprint'][:19]}… and is {fingerprint[:19]}…. Put the files back, or start again with --overwrite."
        )


def _differences(old, new, prefix=""):
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} was {a!r} and is {b!r}"


def last_epoch(checkpoint):
    """How many whole epochs an unfinished run has seen."""
    return max(_Progress(Path(checkpoint)).states(), default=0)


class _Progress:
    """The state of a run after each epoch, in one file: whenever a process is killed, the last whole one is there.

    Keras's BackupAndRestore writes weights and epoch one after the other and in place, so that a kill in between spoils both.
    """

    def __init__(self, folder):
        self.folder = folder
        self.history = {}
        self.seconds = 0.0  # of training, over all processes
        self._started = time.perf_counter()

    def states(self):
        return {
            int(path.name.split(".")[0].removeprefix("epoch-")): path for path in self.folder.glob("epoch-*.weights.h5")
        }

    def restore(self, model):
        """Loads the last state; returns how many epochs it has seen."""
        states = self.states()
        if not states:
            return 0
        epoch = max(states)
        model.load_weights(states[epoch])
        saved = json.loads((self.folder / "history.json").read_text())
        self.history = {name: values[:epoch] for name, values in saved["history"].items()}
        self.seconds = saved["seconds"]
        return epoch

    def save(self, model, epoch, logs):
        """Saves the state after `epoch` epochs."""
        for name, value in logs.items():
            self.history.setdefault(name, [float("nan")] * (epoch - 1)).append(float(value))
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now
        # History first: one epoch too many is cut off again.
        write_json(self.folder / "history.json", {"history": self.history, "seconds": self.seconds})
        earlier = self.states()
        beside = self.folder / f".beside-{os.getpid()}.weights.h5"
        model.save_weights(beside, overwrite=True)
        os.replace(beside, self.folder / f"epoch-{epoch}.weights.h5")
        for path in earlier.values():
            path.unlink()


def _saving(progress):
    import keras

    class Saving(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"The loss became {logs['loss']} in epoch {epoch + 1}: training diverged. Lower the learning rate "
                    f"({float(self.model.optimizer.learning_rate):g}), or scale the data."
                )
            progress.save(self.model, epoch + 1, logs)

    return Saving()


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
    beside = path.with_name(f".{path.name}")
    model.save_weights(beside, overwrite=True)
    os.replace(beside, path)


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


def _psnr(model, data, corrupted=False):
    from kerasae import metrics

    x = data["x_test"]
    shown = x
    if corrupted:
        if getattr(model, "corruption", None) is None:
            raise ValueError("psnr with `corrupted` is for denoising models, which have a corruption of their own.")
        corruption = type(model.corruption).from_config({**model.corruption.get_config(), "seed": 0})
        shown = corruption(x, training=True).numpy()
    return metrics.psnr(x, model.predict(shown, batch_size=1000, verbose=0).clip(0, 1))


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
    import tensorflow as tf

    from kerasae.models.pretraining import classifier

    keras.utils.set_random_seed(0)
    head = classifier(model.encoder, int(data["y_train"].max()) + 1)
    head.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    best = keras.callbacks.EarlyStopping("val_accuracy", patience=epochs, restore_best_weights=True)
    # In another order every epoch: from arrays, Keras would repeat the first one's after `set_random_seed`.
    examples = tf.data.Dataset.from_tensor_slices((data["x_train"][:-validation], data["y_train"][:-validation]))
    head.fit(
        examples.shuffle(len(examples), seed=0).batch(batch_size).prefetch(2),
        validation_data=(data["x_train"][-validation:], data["y_train"][-validation:]),
        epochs=epochs,
        validation_batch_size=1000,
        shuffle=False,
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
    "psnr": (
        _psnr,
        "dB",
        "peak signal-to-noise ratio of the reconstruction, clipped to [0, 1]; with `corrupted`, of test images that the model's own "
        "corruption changed, from seed 0; mean over test images",
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
    y_train = None if y_train is None else y_train[:seen]
    data = {"x_train": x_train[:seen], "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return measure_each(recipe.measure, model, data)


def measure_each(measurements, model, data):
    """As `measure`, of a list of `Measurement`; `data` is `{"x_test", ...}`, with `x_train`, `y_train` and `y_test` where a metric asks."""
    x_test = data["x_test"]
    pixels = is_image(x_test.shape[1:]) and x_test.min() >= 0 and x_test.max() <= 1
    records = []
    for measurement in measurements:
        function, unit, protocol = _METRICS[measurement.metric]
        if not pixels:
            unit, protocol = (
                text.replace("pixels in [0, 1]", "scaled features").replace("image", "example")
                for text in (unit, protocol)
            )
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


def default_measurements(model, x, num_train=0, classes=0):
    """What to measure of a model where nobody said.

    Args:
        model: the model.
        x: test examples.
        num_train: number of training examples; 0 where there are none to compare with.
        classes: number of classes in the labels of training and test examples; 0 without.
    """
    names = [("squared_error", {})]
    if num_train and model.code_size and model.code_size < min(num_train, x[0].size):
        names.append(("pca_error", {"num_components": model.code_size}))
    if is_image(x.shape[1:]) and x.min() >= 0 and x.max() <= 1:
        names.append(("psnr", {}))
    if hasattr(model, "sample"):
        names.append(("negative_elbo", {}))
    if len(x) > 1:
        names.append(("active_units", {}))
    if num_train and 1 < classes <= 100:
        names.append(("linear_probe_error", {}))
    return [Measurement(metric=name, arguments=arguments) for name, arguments in names]


def to_toml(recipe):
    """The recipe as the text of a file that `read` takes."""
    import tomli_w

    values = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.data.path is None:
        values["data"] = recipe.data.model_dump(
            mode="json", exclude_defaults=True
        )  # what is of own files doesn't belong there
    return tomli_w.dumps(values)


@contextlib.contextmanager
def written_together(folder):
    """A folder beside; what is in it at the end is moved into `folder`, in place of what has the same name, and nothing on an error."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        old.mkdir()
        yield new
        for path in new.iterdir():
            target = folder / path.name
            if target.is_dir():  # can't be replaced in one step
                os.replace(target, old / path.name)
            os.replace(path, target)


def _uncompiled(model):
    # Adam's state would triple the file.
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def write_json(path, contents):
    """Writes JSON beside its place and moves it in."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(contents, indent=2) + "\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)

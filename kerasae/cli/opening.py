"""Models and data that were named: opened, or said at once what is wrong with them."""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
from pathlib import Path

import click

from kerasae import untrusted, writing
from kerasae.cli import shared

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that was named, and what is known of it."""

    title: str
    model: object
    preparation: object
    recipe: object = None
    history: dict | None = None
    facts: dict | None = None


def open_model(name):
    """A model by its zoo id, `.keras` file, or the folder of a run.

    Raises:
        ValueError, FileNotFoundError: where it is none of them; the message says why.
    """
    from kerasae.runs import checkpoints, recipes

    path = Path(name)
    writing.recover(path)
    if path.is_dir() and not (path / "model.keras").is_file():
        if (path / checkpoints.CHECKPOINT).is_dir():
            raise ValueError(f"The run in {path} is not finished. Go on with: kerasae train --resume --folder {path}")
        if (path / "server" / "detector.json").is_file():
            raise ValueError(f"{path} holds a detector, exported already: kerasae detect score {path} DATA")
        raise ValueError(f"{path} is no folder that `kerasae train` wrote: it has no model.keras.")
    if path.suffix == ".keras" and not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    is_file = path.is_dir() or path.suffix == ".keras"
    if not is_file:
        from kerasae import zoo

        if os.sep in str(name) or path.exists():
            raise FileNotFoundError(
                f"{str(name)!r} is no model: neither a zoo id, nor a .keras file, nor a folder that `kerasae train` wrote."
            )
        zoo.describe(name)  # an unknown id is found out before Keras is imported
    shared.import_keras()
    import keras

    from kerasae import models
    from kerasae.preparation import Preparation
    from kerasae.runs import examples

    recipe = history = facts = None
    if is_file:
        file = path / "model.keras" if path.is_dir() else path
        run = file.parent
        record = _record(run / "metrics.json") if file.name == "model.keras" else None
        if record and writing.sha256(file) != record:
            raise ValueError(
                f"{file} is not the model that was trained here: its sha256 is not the one in {run / 'metrics.json'}. If you put it there "
                "yourself, open a copy of it elsewhere."
            )
        if file.name == "model.keras" and (run / "data.json").is_file():
            recipe = recipes.read(run / "recipe.toml")
        try:
            model = _load_file(keras, file)
        except ValueError as error:
            unknown = [name for name in (recipe and recipe.modules) or () if name not in sys.modules]
            if not unknown:
                raise
            # A folder may come from anywhere: it doesn't say what is run.
            raise ValueError(
                f"{error} Its recipe names modules of its author's, {unknown}, which register what it is made of. If you trust them: "
                f"kerasae {' '.join(f'--module {name}' for name in unknown)} ..."
            ) from error
        if recipe is not None:
            try:
                history = untrusted.json(run / "history.json", {str: [(int, float, type(None))]})
            except ValueError as error:  # it is only drawn
                _logger.warning("%s It is left out.", error)
            facts = untrusted.json(run / "data.json", _DATA, most=2**29)
    else:
        model = zoo.load(name)
        recipe = recipes.validated(zoo.describe(name)["recipe"])
        if recipe.data.path is not None:
            recipe = None  # the publisher's own files, which a recipe from elsewhere can't name here
    if not isinstance(model, models.Autoencoder):
        raise ValueError(f"{name} holds a {type(model).__name__}, and not an autoencoder of kerasae.")
    model.compile()  # `evaluate` asks for it; nothing is trained
    if model.preparation is None and is_file and recipe is not None:  # files of earlier versions don't hold it
        if recipe.data.path is None:
            model.preparation = examples.of_dataset(model.encoder.inputs[0].shape[1:])
        elif facts is not None:
            with untrusted.damaged(run / "data.json"):
                model.preparation = Preparation.from_dict(facts["preparation"])
    preparation = model.preparation
    if preparation is None:
        of_time = (keras.layers.Conv1D, keras.layers.RNN, keras.layers.Masking)
        of_series = any(isinstance(layer, of_time) for layer in model.encoder.layers)
        preparation = Preparation.of_model(model.encoder.inputs[0].shape[1:], of_series)
    return Opened(path.resolve().name if path.is_dir() else path.stem, model, preparation, recipe, history, facts)


# The entries of data.json that are used, of any version.
_DATA = {
    "preparation": {"kind": str, "shape": [int]},
    "fingerprint?": (str, type(None)),
    "num_train?": int,
    "num_test?": int,
    "classes?": (list, type(None)),
}


def _record(path):
    """The sha256 of a run's model, as its metrics.json has it; None where it has none."""
    if not path.is_file():
        return None
    return untrusted.json(path, {"model?": {"sha256": str}}).get("model", {}).get("sha256")


def _load_file(keras, path):
    from kerasae import keras_internals

    try:
        return keras_internals.load_model_safely(path)
    except Exception as error:  # Keras raises anything from KeyError to its own
        raise ValueError(f"{path} can't be loaded by Keras {keras.__version__}: {error}") from error


def is_path(data, split=None, data_dir=None, **options):
    """Whether DATA means files, rather than a dataset by its name; says at once what is wrong with them, before they are read.

    Args:
        data: what was given.
        split, data_dir: of a dataset by its name.
        **options: of the command, as `shared.reading` takes them.

    Raises:
        FileNotFoundError: where it can only mean files that there aren't.
        ValueError: where there are files that hold no examples, or to which an option doesn't apply.
    """
    from kerasae.data import files

    options, path = shared.reading(options), Path(data).expanduser()
    looks = data.startswith((".", "/", "~")) or files.suffix(path) in files.SUFFIXES
    if path.exists() or looks:
        files.check(data, **options)
    return path.exists()


@contextlib.contextmanager
def dataset_errors(data):
    """A misspelt folder is taken for a dataset's name: then the message speaks of both."""
    from kerasae.data import UnknownDatasetError

    try:
        yield
    except UnknownDatasetError as error:
        raise ValueError(f"There is no file or folder {data!r}; {error}") from error


def examples_of(opened, data, data_dir=None, split="test", **options):
    """`(Files, apply)` of DATA for a model: `apply` makes stored values the model's input."""
    from kerasae.data import datasets, files, reading
    from kerasae.preparation import Preparation

    if is_path(data, **options):
        own = opened.recipe.data.model_dump() if opened.recipe else {}
        options = {**reading.dialect(data, own), **shared.reading(options)}
        missing = opened.model.takes_missing
        read = files.read(data, like=opened.preparation, missing=missing, **options)
        return read, functools.partial(opened.preparation.apply, missing=missing)
    with dataset_errors(data):
        loaded = datasets.load_with_labels_if_any(data, data_dir)
    x, y = loaded[("train", "test").index(split)]
    classes = None if y is None else [str(i) for i in range(int(y.max()) + 1)]
    # They are scaled already.
    return files.Files("images", x, None, labels=y, classes=classes), Preparation(
        "images", opened.preparation.shape
    ).apply


def held_out(opened, data_dir):
    """The recipe's `Dataset`, checked to be the one that the model was trained on."""

    from kerasae.runs import examples

    if opened.recipe is None:
        raise click.UsageError("Which data? --data names a dataset, a folder of images, or an array or table file.")
    recipe, shape = opened.recipe, (opened.facts or {}).get("preparation", {}).get("shape", ())
    if (
        len(shape) == 3
        and shape[2] == 1
        and recipe.data.color is None
        and str(recipe.data.path).endswith((".npy", ".npz"))
    ):
        # Earlier versions took every array of (n, height, width) for grey images.
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"color": "grey"})})
    loaded = examples.load(recipe, data_dir)
    _logger.log(loaded.weight, loaded.line)
    facts, now = opened.facts or loaded.facts, loaded.facts
    if facts.get("fingerprint") != now.get("fingerprint"):
        raise ValueError(
            f"The data in {opened.recipe.data.path} have changed since the model was trained, so which were held out can't be told. "
            "Name data with --data."
        )
    ways = [(f.get("num_train"), f.get("num_test"), f["preparation"].get("columns")) for f in (facts, now)]
    if ways[0] != ways[1]:
        raise ValueError(
            f"{opened.recipe.data.path} was read otherwise when the model was trained: {ways[0][0]} and {ways[0][1]} rows of the columns "
            f"{ways[0][2]}, now {ways[1][0]} and {ways[1][1]} of {ways[1][2]}. Name data with --data, or say in recipe.toml how to read it "
            "(header, columns)."
        )
    return loaded

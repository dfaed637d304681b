"""Pretrained models, one folder each: the recipe, the weights, their results, a card and a picture.

Ids are `family-network-dataset`. Models come from a source: the packaged ones, a folder, a web server, or a Hugging Face repository; see
`kerasae.zoo.sources`. Each function takes `source=`, by default the environment variable `KERASAE_ZOO`, or else the packaged models.
Listing and describing import neither Keras nor TensorFlow.
"""

import difflib
import re
import warnings
from importlib.metadata import version
from pathlib import Path

from kerasae import untrusted
from kerasae.runs import examples, recipes
from kerasae.zoo import indexes, sources
from kerasae.zoo.indexes import FACTS


def list_models(family=None, dataset=None, source=None):
    """The ids of the models, or of those of one family or dataset, sorted.

    Args:
        family: such as `"variational"`. Default: every family.
        dataset: such as `"digits"`. Default: every dataset.
        source: `"packaged"`, a folder, `"https://…"`, or `"hf://owner/name"`. Default: `$KERASAE_ZOO`, or else `"packaged"`.

    Example:

    ```python
    kerasae.zoo.list_models(family="variational")
    ```
    """
    models = sources.source(source).index().models
    return sorted(
        model_id
        for model_id, entry in models.items()
        if family in (None, entry.family) and dataset in (None, entry.dataset)
    )


def describe(model_id, source=None):
    """All facts of a model: its recipe, and its results with unit, protocol and sample size.

    Args:
        model_id, source: one of the ids that `list_models(source=source)` gives.

    Returns:
        `{"recipe": {...}, "metrics": [...], "training": {...}, "model": {"sha256", "bytes", "parameters"}, "versions": {...}}`.
    """
    origin = _origin(model_id, source)
    facts = untrusted.json(origin.path(model_id, "metrics.json"), FACTS)
    return {**facts, "recipe": _recipe(origin, model_id).model_dump()}


def card(model_id, source=None):
    """The model's card as Markdown: how it was made, and its results with their protocols."""
    return _origin(model_id, source).path(model_id, "card.md").read_text(encoding="utf-8", errors="replace")


def recipe_path(name):
    """The path of a recipe: `name` itself if it is a TOML file, else that of the packaged model with this id, trained yet or not."""
    if str(name).endswith(".toml"):
        return Path(name)
    ids = sorted(path.parent.name for path in sources.PACKAGED.glob("*/recipe.toml"))
    return sources.PACKAGED / _known(name, ids, "what is packaged with kerasae") / "recipe.toml"


def download(model_id, source=None):
    """Brings every file of a model to this machine, each checked against its sha256 in the source's index.

    Files of a remote source are kept in the cache, `$KERASAE_CACHE` or the platform's cache folder, and are not downloaded again.

    Args:
        model_id, source: one of the ids that `list_models(source=source)` gives.

    Returns:
        `{name: path}` of its files.

    Raises:
        ValueError: on an unknown id (near ids are offered), or if a file is not the one that was published.
        OSError: if a file is missing, the source can't be reached, or the cache can't be written.
    """
    origin = _origin(model_id, source)
    return {name: origin.path(model_id, name) for name in indexes.FILES}


def load(model_id, source=None):
    """Loads a pretrained model.

    Its file is used only if its sha256 is the one in the source's index, and is opened in Keras's safe mode: no code in it is run.

    Args:
        model_id, source: one of the ids that `list_models(source=source)` gives.

    Returns:
        The model, not compiled: `encode`, `decode` and `predict` work at once; `compile` it to train on. Its `preparation` says what its
        recipe did to the data, such as images to [0, 1].

    Raises:
        ValueError: as `download`, and if a newer kerasae made the model, or Keras can't read it.
        OSError: as `download`.

    Example:

    ```python
    model = kerasae.zoo.load("variational-dense-digits")
    images = model.sample(16)
    ```
    """
    origin = _origin(model_id, source)
    entry = origin.index().models[model_id]
    installed = version("kerasae")
    if _release(entry.kerasae) > _release(installed):
        raise ValueError(
            f"{model_id!r} was made with kerasae {entry.kerasae}, and this is {installed}: `pip install --upgrade kerasae`."
        )
    path = origin.path(model_id, "model.keras")
    import keras

    import kerasae.models  # noqa: F401  registers the classes
    from kerasae import keras_internals

    try:
        # Errors, because Keras only warns where it keeps fresh weights for want of saved ones.
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning, module=r"keras\.")
            model = keras_internals.load_model_safely(path)
    except Exception as error:
        # Keras raises anything from KeyError to its own, so that only the message tells them apart.
        raise ValueError(
            f"{model_id!r} is the file that was published, but Keras {keras.__version__} can't load it (it was saved by Keras "
            f"{entry.keras}): {error}"
        ) from error
    # Files of earlier versions don't hold it.
    if getattr(model, "preparation", model) is None and _recipe(origin, model_id).data.path is None:
        model.preparation = examples.of_dataset(model.encoder.inputs[0].shape[1:])
    return model


def _recipe(origin, model_id):
    return recipes.read(origin.path(model_id, "recipe.toml"))


def _origin(model_id, source):
    origin = sources.source(source)
    _known(model_id, list(origin.index().models), origin)
    return origin


def _known(model_id, ids, origin):
    if model_id not in ids:
        near = difflib.get_close_matches(str(model_id), ids, n=3, cutoff=0.4) or sorted(ids)
        raise ValueError(
            f"There is no model {model_id!r} in {origin}. Did you mean one of {near}? `kerasae zoo list` shows all."
        )
    return model_id


def _release(text):
    """(major, minor) of a version."""
    return tuple(map(int, re.match(r"(\d+)\.(\d+)", text).groups()))

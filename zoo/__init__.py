"""Pretrained models, one folder each in `models/<id>`: the recipe, the weights, what they score, and a picture.

Ids are `family-network-dataset`. Listing and describing import neither Keras nor TensorFlow.
"""

import difflib
import hashlib
import json
from pathlib import Path

from kerasae import recipes

_MODELS = Path(__file__).parent / "models"


def list_models(family=None, dataset=None):
    """The ids of the models, sorted; of one family or dataset where given.

    Example:

    ```python
    kerasae.zoo.list_models(family="variational")
    ```
    """
    ids = sorted(path.parent.name for path in _MODELS.glob("*/metrics.json"))
    if family is None and dataset is None:
        return ids
    described = {model_id: describe(model_id)["recipe"] for model_id in ids}
    return [
        model_id
        for model_id, recipe in described.items()
        if family in (None, recipe["family"]) and dataset in (None, recipe["data"]["name"])
    ]


def describe(model_id):
    """All facts of a model: its recipe, and its measured figures with unit, protocol and sample size.

    Returns:
        `{"recipe": {...}, "metrics": [...], "training": {...}, "model": {"sha256", "bytes", "parameters"}, "versions": {...}}`.
    """
    folder = _folder(model_id)
    facts = json.loads((folder / "metrics.json").read_text())
    return {"recipe": recipes.read(folder / "recipe.toml").model_dump(), **facts}


def card(model_id):
    """The model's card as Markdown: how it was made, and what it scores under which protocol."""
    return (_folder(model_id) / "card.md").read_text()


def recipe_path(name):
    """The path of a recipe: `name` itself if it is a TOML file, else that of the model with this id, trained yet or not."""
    if str(name).endswith(".toml"):
        return Path(name)
    ids = sorted(path.parent.name for path in _MODELS.glob("*/recipe.toml"))
    return _MODELS / _known(name, ids) / "recipe.toml"


def load(model_id):
    """Loads a pretrained model.

    Args:
        model_id: as `list_models` gives it.

    Returns:
        The model, not compiled: `encode`, `decode` and `predict` work at once; `compile` it to train on.

    Raises:
        ValueError: on an unknown id (near ids are offered), or where the file is not the one that was published.

    Example:

    ```python
    model = kerasae.zoo.load("variational-dense-digits")
    images = model.sample(16)
    ```
    """
    path = _folder(model_id) / "model.keras"
    expected = describe(model_id)["model"]["sha256"]
    if not path.exists():
        raise FileNotFoundError(f"The weights of {model_id!r} are missing: {path}. Install kerasae again.")
    received = hashlib.sha256(path.read_bytes()).hexdigest()
    if received != expected:
        raise ValueError(
            f"{path} is not the file that was published: its sha256 is {received}, expected {expected}. Install kerasae again."
        )
    import keras

    import kerasae.models  # noqa: F401  registers the classes

    return keras.saving.load_model(path)


def _folder(model_id):
    return _MODELS / _known(model_id, list_models())


def _known(model_id, ids):
    if model_id not in ids:
        near = difflib.get_close_matches(str(model_id), ids, n=3, cutoff=0.4) or ids
        raise ValueError(f"There is no model {model_id!r}. Did you mean one of {near}? `kerasae zoo list` shows all.")
    return model_id

"""Recipe files: their schema, reading and checking them, and writing them, which needs no TensorFlow; and the model that one describes.

A recipe names the data, the family and its builder's arguments, how to train, and what to measure under which protocol.
"""

import importlib
import inspect
import math
import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic

from kerasae import checks, writing
from kerasae.registry import FAMILIES
from kerasae.runs.examples import is_image
from kerasae.runs.measures import Measurement

# What a builder takes that a recipe can't hold, or gives by itself.
_NO_OPTIONS = {"input_shape", "encoder", "decoder", "seed", "kwargs"}
_MOST_BYTES = 2**20  # of a recipe file
_LARGEST_DENSE_SIDE = 32  # pixels of images for which a dense network is the default


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """What to train on: `kerasae.data.load(name)`, or own files by their path, as `kerasae.data.files.read` takes them."""

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
    # How a text table is written, where what it looks like misleads.
    header: bool | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    separator: str | None = None
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


class Recipe(_Section):
    """A recipe file's contents."""

    # Modules that register families or kinds of networks of your own; imported first.
    modules: list[str] | None = None
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
    writing.check_regular(path)
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, and at most {_MOST_BYTES:,} were expected")
        recipe = validated(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is not a recipe: it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a recipe: {error}") from error
    if recipe.data.path is not None:
        own = str((path.parent / Path(recipe.data.path).expanduser()).resolve())
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": own})})
    return recipe


def validated(values):
    """The `Recipe` of a dict; raises `ValueError` where a key is unknown, missing or of the wrong type, which it names."""
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error


def options(family):
    """The options of a family's builder that a recipe's `model` may set: `{name: default}`.

    Raises:
        ValueError: on an unknown family; the message names the nearest.
    """
    parameters = inspect.signature(builder(family)).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in _NO_OPTIONS}


def builder(family):
    """A family's builder; raises `ValueError`, naming the nearest, where there is none."""
    from kerasae import models  # noqa: F401  registers the families

    return FAMILIES[family].builder


def takes_missing(family):
    """Whether models of a family take NaN, for a missing value."""
    builder(family)  # registers it
    return FAMILIES[family].takes_missing


def check(recipe):
    """Raises on a module, a family, or an option of it, that there isn't, before any data is read."""
    import_modules(recipe.modules)
    known = options(recipe.family)
    for option in recipe.model:
        checks.choice(option, f"option of {recipe.family}", known)


def import_modules(modules):
    """Imports a recipe's modules, which register what its model is made of; raises `ValueError` where there is none."""
    for module in modules or ():
        try:
            importlib.import_module(module)
        except (ModuleNotFoundError, TypeError, ValueError) as error:  # the latter of names such as ".mine" and ""
            raise ValueError(
                f"The module {module!r} can't be imported: {error}. Install it, or add its folder to PYTHONPATH."
            ) from error


def with_latent_dim(family, model, num_features):
    """A builder's options, with a size of the code where it needs one and they have none: several times k for a k-sparse one."""
    known = options(family)
    if known.get("latent_dim", 0) is not None:
        return model
    size = max(min(16, max(1, num_features // 2)), 4 * model.get("k", known.get("k", 0)))
    return {"latent_dim": size, **model}


def with_network(family, model, shape):
    """A builder's options, with a convolutional network for large images and for series, where they and the family leave it open.

    A dense network has weights for every pixel, and from few photos learns none of them well: convolutions halve the image until it has at
    most 8 pixels on a side, with twice the filters each time, up to 128.

    Args:
        family: its name.
        model: options of its builder.
        shape: of an example.
    """
    side = min(shape[:2], default=0)
    is_open = not {"network", "hidden_units", "encoder"} & set(model) and options(family).get("hidden_units", ()) != ()
    if is_open and len(shape) == 2:
        return {"network": "conv1d", **model}
    if not is_open or not is_image(shape) or side <= _LARGEST_DENSE_SIDE:
        return model
    halvings = math.ceil(math.log2(side / 8))
    filters = [max(16, 128 >> i) for i in reversed(range(halvings))]
    return {"network": "conv", "hidden_units": filters, **model}


def build(recipe, input_shape, num_examples):
    """The recipe's model, compiled, with its weights drawn from its seed.

    Args:
        recipe: `Recipe`.
        input_shape: shape of one example.
        num_examples: number of training examples, for the learning rate's schedule.
    """
    import keras

    check(recipe)
    keras.utils.set_random_seed(recipe.seed)
    model = builder(recipe.family)(input_shape, **recipe.model, seed=recipe.seed)
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


def to_toml(recipe):
    """The recipe as the text of a file that `read` takes."""
    import tomli_w

    values = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.data.path is None:
        values["data"] = recipe.data.model_dump(
            mode="json", exclude_defaults=True
        )  # what is of own files doesn't belong there
    return tomli_w.dumps(values)

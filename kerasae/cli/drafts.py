"""The recipe that the command line asks for: from its options, a recipe file's, and what the data decide."""

import logging
import math
from pathlib import Path

import click

from kerasae import checks
from kerasae.cli import opening, shared
from kerasae.registry import FAMILIES

_logger = logging.getLogger(__name__)


def draft(what, recipe, data, settings, options):
    """The recipe that the command line asks for, as far as it is known without the data and TensorFlow: a dict, and a `Recipe`."""
    from kerasae.data import files

    if recipe is None:
        try:
            checks.choice(what, "family", FAMILIES.declared())
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    reading = shared.reading(options)
    given = {**{name: value for name, value in options.items() if value not in (None, (), False)}, **reading}
    changes = (
        recipe.model_dump(exclude_unset=True, mode="json")
        if recipe
        else {"family": what, "data": {}, "model": {}, "training": {}}
    )
    if data is not None:
        is_path = opening.is_path(data, **reading)
        source = {"path": str(Path(data).expanduser().resolve())} if is_path else {"name": data}
        changes["data"] = {**{k: v for k, v in changes["data"].items() if k not in ("path", "name")}, **source}
    elif recipe is None:
        raise click.UsageError("Train on what? --data names a dataset, a folder of images, or an array or table file.")
    for section, names in {
        "training": ("epochs", "batch_size", "learning_rate"),
        "data": (*files.OPTIONS, "scaling", "test_fraction", "validation"),
        "model": ("latent_dim", "hidden_units", "network"),
    }.items():
        changes[section] = {**changes[section], **{name: given[name] for name in names if name in given}}
    if "seed" in given:
        changes["seed"] = given["seed"]
    if "validation" in options and options["validation"] is not None:
        changes["data"]["validation"] = options["validation"]
    changes["model"].update(map(shared.setting, settings))
    changes.setdefault(
        "description",
        f"kerasae train {changes['family']} on {Path(changes['data'].get('path') or changes['data']['name']).name}",
    )
    draft = {**changes, "training": {"epochs": 1, **changes["training"]}, "measure": changes.get("measure", [])}
    try:
        draft = validated(draft)
    except ValueError as error:
        raise (click.UsageError(str(error)) if recipe is None or settings else error) from error
    if data is None and draft.data.path is not None:
        files.check(draft.data.path)
    return changes, draft


def leaves_likelihood_open(recipe):
    """Whether the family would choose another likelihood for real numbers, and nobody has chosen one."""
    return FAMILIES[recipe.family].for_real_values(recipe.model) != recipe.model


def completed(changes, loaded, all_open):
    """The `Recipe` of a draft, with what it leaves open decided by the data; `all_open` where no recipe file decides anything."""
    from kerasae.runs import measures, recipes

    x_train, num_train = loaded.train[0], len(loaded.train[0])
    if all_open:
        known = recipes.options(changes["family"])
        small = num_train < 10_000
        batch_size = changes["training"].setdefault("batch_size", 32 if small else 128)
        changes["training"].setdefault("epochs", min(400, max(20, 2000 // math.ceil(num_train / batch_size))))
        if "validation" not in changes["data"]:
            changes["data"]["validation"] = min(num_train // 10, 5000)
        default_code = min(16, max(1, x_train[0].size // 2))
        if known["latent_dim"] is None:
            changes["model"].setdefault(
                "latent_dim", max(default_code, changes["model"].get("k", known.get("k", 0)) * 4)
            )
        if x_train.min() < 0 or x_train.max() > 1:
            options = FAMILIES[changes["family"]].for_real_values(changes["model"])
            if options != changes["model"]:
                chosen = ", ".join(f"{name}={value}" for name, value in options.items() if name not in changes["model"])
                _logger.info("The data leave [0, 1]: %s.", chosen)
            changes["model"] = options
    if "measure" not in changes:
        model = recipes.build(validated({**changes, "measure": []}), x_train.shape[1:], num_train)
        classes = 0 if loaded.train[1] is None else len(set(loaded.train[1].tolist()))
        measured = measures.default_measurements(model, loaded.test[0], num_train, classes)
        changes["measure"] = [m.model_dump(exclude_none=True) for m in measured]
    return validated(changes)


def validated(values):
    import pydantic

    from kerasae.runs import recipes

    try:
        return recipes.Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error

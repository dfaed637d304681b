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
    from kerasae.runs import recipes

    if recipe is None:
        with shared.raised_as(click.UsageError, ValueError):
            checks.choice(what, "family", FAMILIES.declared())
    reading = shared.reading(options)
    given = {name: value for name, value in options.items() if value not in (None, ()) and value is not False} | reading
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
    changes["model"].update(map(shared.setting, settings))
    changes.setdefault(
        "description",
        f"kerasae train {changes['family']} on {Path(changes['data'].get('path') or changes['data']['name']).name}",
    )
    draft = {**changes, "training": {"epochs": 1, **changes["training"]}, "measure": changes.get("measure", [])}
    with shared.raised_as(click.UsageError, *usage_errors(recipe, settings)):
        draft = recipes.validated(draft)
    if data is None and draft.data.path is not None:
        files.check(draft.data.path)
    return changes, draft


def usage_errors(recipe, settings):
    """Errors of a draft that are the command line's, not the recipe file's."""
    return (ValueError,) if recipe is None or settings else ()


def leaves_likelihood_open(recipe):
    """Whether the family would choose another likelihood for real numbers, and nobody has chosen one."""
    return FAMILIES[recipe.family].for_real_values(recipe.model) != recipe.model


def completed(changes, loaded, all_open):
    """The `Recipe` of a draft, with what it leaves open decided by the data; `all_open` where no recipe file decides anything."""
    import numpy as np

    from kerasae.runs import measures, recipes

    x_train, num_train = loaded.train[0], len(loaded.train[0])
    if all_open:
        small = num_train < 10_000
        batch_size = changes["training"].setdefault("batch_size", 32 if small else 128)
        changes["training"].setdefault("epochs", min(400, max(20, 2000 // math.ceil(num_train / batch_size))))
        if "validation" not in changes["data"]:
            changes["data"]["validation"] = min(num_train // 10, 5000)
        changes["model"] = recipes.with_latent_dim(changes["family"], changes["model"], x_train[0].size)
        changes["model"] = recipes.with_network(changes["family"], changes["model"], x_train.shape[1:])
        if np.nanmin(x_train) < 0 or np.nanmax(x_train) > 1:
            options = FAMILIES[changes["family"]].for_real_values(changes["model"])
            if options != changes["model"]:
                chosen = ", ".join(f"{name}={value}" for name, value in options.items() if name not in changes["model"])
                _logger.info("The data leave [0, 1]: %s.", chosen)
            changes["model"] = options
    if "measure" not in changes:
        model = recipes.build(recipes.validated({**changes, "measure": []}), x_train.shape[1:], num_train)
        classes = 0 if loaded.train[1] is None else len(set(loaded.train[1].tolist()))
        measured = measures.default_measurements(model, loaded.test[0], num_train, classes)
        changes["measure"] = [m.model_dump(exclude_none=True) for m in measured]
    return recipes.validated(changes)

"""Making a model of the zoo: from a recipe to a folder with everything that is known of it."""

import hashlib
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from kerasae import recipes

_logger = logging.getLogger(__name__)


def make(recipe_path, folder, data_dir=None, verbose="auto"):
    """Trains a recipe's model and writes its folder: recipe.toml, model.keras, metrics.json, card.md, preview.png.

    A run that was stopped goes on at the last whole epoch when called again. The files of a finished one are replaced together, at
    the end.

    Args:
        recipe_path: TOML file; see `kerasae.recipes`.
        folder: where to; its name is the model's id.
        data_dir: as in `kerasae.data.load`.
        verbose: as in `keras.Model.fit`.

    Returns:
        What was written into `metrics.json`.
    """
    from kerasae import data, figures

    recipe = recipes.read(recipe_path)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = data.load(recipe.data.name, data_dir=data_dir, labels=True)
    (x_train, _), (x_test, _) = loaded
    model, training = recipes.train(recipe, x_train, folder / ".checkpoint", verbose=verbose)
    records = recipes.measure(recipe, model, loaded)

    beside = folder / ".new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copyfile(recipe_path, beside / "recipe.toml")
    _uncompiled(model).save(beside / "model.keras")
    weights = (beside / "model.keras").read_bytes()
    facts = {
        "format": 1,
        "id": folder.name,
        "model": {
            "sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "parameters": int(model.count_params()),
        },
        "training": training,
        "versions": {name: version(name) for name in ("kerasae", "keras", "tensorflow")},
        "metrics": records,
    }
    recipes.write_json(beside / "metrics.json", facts)
    (beside / "card.md").write_text(card(recipe, facts))
    shown = x_test[:10]
    rows = {"input": shown, "reconstruction": model.predict(shown, verbose=0)}
    if hasattr(model, "sample"):
        rows["sample"] = model.sample(10, seed=0)
    figures.save(figures.reconstructions(rows), beside / "preview.png")
    for path in beside.iterdir():
        os.replace(path, folder / path.name)
    beside.rmdir()
    _logger.info("wrote %s", folder)
    return facts


def evaluate(model_id, data_dir=None):
    """Measures a model of the zoo again, as its recipe says.

    Returns:
        Records as in its `metrics.json`.
    """
    from kerasae import data, zoo

    recipe = recipes.read(zoo.recipe_path(model_id))
    model = zoo.load(model_id)
    model.compile()  # `Model.evaluate` asks for it; nothing is trained
    return recipes.measure(recipe, model, data.load(recipe.data.name, data_dir=data_dir, labels=True))


def _uncompiled(model):
    # Adam's state would triple the file.
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def card(recipe, facts):
    """The model card, generated from the recipe and the measured facts."""
    training = recipe.training
    lines = [
        f"# {facts['id']}",
        "",
        recipe.description,
        "",
        f"- Family: {recipe.family}, {facts['model']['parameters']:,} parameters, {facts['model']['bytes']:,} bytes",
        f"- Built by: `{_call(recipe)}`",
        f"- Data: {recipe.data.name}, "
        + (
            f"the last {recipe.data.validation:,} training images held out"
            if recipe.data.validation
            else "all training images"
        ),
        f"- Training: {training.optimizer}, learning rate {training.learning_rate:g} ({training.schedule}), "
        f"batches of {training.batch_size}, {training.epochs} epochs, seed {recipe.seed}",
        "- Versions: " + ", ".join(f"{name} {v}" for name, v in facts["versions"].items()),
        "",
        "| figure | value | unit | protocol | published |",
        "|---|---|---|---|---|",
    ]
    for record in facts["metrics"]:
        arguments = ", ".join(f"{k}={v}" for k, v in record["arguments"].items())
        published = "" if record["published"] is None else f"{record['published']:g} ({record['source']})"
        lines.append(
            f"| {record['metric']}{f' ({arguments})' if arguments else ''} | {record['value']:.4g} | {record['unit']} | "
            f"{record['protocol']}; {record['num_examples']:,} images | {published} |"
        )
    lines += [
        "",
        "![inputs and reconstructions](preview.png)",
        "",
        f"Train it again: `kerasae zoo train {facts['id']} --folder {facts['id']}`. Generated from `recipe.toml` and `metrics.json`.",
        "",
    ]
    return "\n".join(lines)


def _call(recipe):
    arguments = ", ".join(f"{name}={tuple(v) if isinstance(v, list) else v!r}" for name, v in recipe.model.items())
    return f"kerasae.builders.{recipe.family}(input_shape, {arguments})"

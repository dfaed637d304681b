"""`kerasae zoo …`."""

from pathlib import Path

import click

from kerasae import writing
from kerasae.cli import shared


def _opened_source(context, parameter, value):
    from kerasae.zoo import sources

    return sources.source(value)


_SOURCE = click.option(
    "--source",
    callback=_opened_source,
    help='"packaged", a folder, https://…, http://localhost…, or hf://owner/name. Default: $KERASAE_ZOO, or "packaged".',
)


@click.group()
def zoo():
    """Pretrained models: list, show, download, verify, publish, train, evaluate."""


@zoo.command("list")
@click.option("--family", help="Only this family.")
@click.option("--dataset", help="Only this dataset.")
@_SOURCE
def zoo_list(family, dataset, source):
    """List the models' ids, each with its first measurement."""
    from kerasae.zoo import list_models

    for model_id in list_models(family, dataset, source):
        first = source.index().models[model_id].figure
        shared.echo(f"{model_id:<36}{f'{first.metric} {first.value:.4g} {first.unit}' if first else ''}".rstrip())


@zoo.command("show")
@click.argument("model_id")
@_SOURCE
def zoo_show(model_id, source):
    """Show a model's card: how it was made, and what was measured under which protocol."""
    import kerasae.zoo

    shared.echo(kerasae.zoo.card(model_id, source))


@zoo.command("download")
@click.argument("model_ids", nargs=-1, required=True)
@_SOURCE
def zoo_download(model_ids, source):
    """Download models, check every file, and print where they are."""
    from kerasae.zoo import download

    for model_id in model_ids:
        for name, path in download(model_id, source).items():
            shared.echo(f"{model_id}/{name}\t{path}")


@zoo.command("verify")
@click.argument("model_ids", nargs=-1)
@_SOURCE
def zoo_verify(model_ids, source):
    """Check every file of MODEL_IDS (default: all) against the index; files of a remote source are downloaded for it."""
    from kerasae.zoo import download, list_models

    failed = 0
    for model_id in model_ids or list_models(source=source):
        try:
            download(model_id, source)
            shared.echo(f"{model_id:<36}ok")
        except (ValueError, OSError) as error:
            failed += 1
            shared.echo(f"{model_id:<36}failed: {error}")
    if failed:
        raise click.ClickException(f"{failed} of the models can't be used.")


@zoo.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1)
@_SOURCE
def zoo_publish(folder, models, source):
    """Write a zoo to FOLDER, for any web server or Hugging Face repository: index, hashes, table, and one folder per model.

    MODELS are folders that `zoo train` wrote, or ids. Without any, the models in FOLDER are indexed again.
    """
    from kerasae.zoo import making

    writing.writable(folder, "--folder")
    for model_id in making.publish(folder, models, source):
        shared.echo(model_id)


@zoo.command("train")
@click.argument("recipe")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to write. Default: a folder here with the model's name."
)
@click.option("--overwrite", is_flag=True, help="Start again, and replace the run in the folder, whatever its recipe.")
@shared.data_dir_option
def zoo_train(recipe, folder, overwrite, data_dir):
    """Train a model by RECIPE, a model's id or a TOML file. Call it again to continue a run that was stopped."""
    import kerasae.zoo
    from kerasae.runs import recipes
    from kerasae.zoo import making

    path = kerasae.zoo.recipe_path(recipe)
    data = recipes.read(path).data.path
    if folder is None:
        folder = Path(path.parent.name if path.name == "recipe.toml" else path.stem)
    shared.check_apart(folder, data, around=True)  # a recipe, its data and its model may lie side by side
    writing.writable(folder, "--folder")
    making.make(path, folder, data_dir=data_dir, overwrite=overwrite)
    shared.echo((folder / "card.md").read_text(encoding="utf-8"))


@zoo.command("evaluate")
@click.argument("model_id")
@_SOURCE
@shared.data_dir_option
def zoo_evaluate(model_id, source, data_dir):
    """Measure a model again, and compare with the recorded values."""
    import kerasae.zoo
    from kerasae.zoo import making

    recorded = kerasae.zoo.describe(model_id, source)["metrics"]
    shared.echo(f"{'metric':<20}{'recorded':>12}{'measured':>12}")
    for old, new in zip(recorded, making.evaluate(model_id, data_dir, source), strict=True):
        shared.echo(f"{new['metric']:<20}{old['value']:>12.4f}{new['value']:>12.4f}  {new['unit']}")

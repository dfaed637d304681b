"""The `kerasae` command. Keras and TensorFlow are imported by the commands that need them, so that the others answer at once."""

import logging
import os
import sys
from pathlib import Path

import click

import kerasae
from kerasae import commands, commands_detect, commands_train, commands_use

_ARRAY = click.Path(exists=True, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(kerasae.__version__, prog_name="kerasae")
def cli():
    """Autoencoders for Keras: fit one, get one ready-made, deploy one.

    MODEL is everywhere a zoo id (`kerasae zoo list`), a .keras file, or a folder that `kerasae train` wrote. Results go to standard
    output, progress to standard error. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("absl", "tensorflow", "tf2onnx", "matplotlib", "h5py", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def main():
    """Runs the command; an error at the door is one line, without a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


for command in (
    commands_train.train,
    commands_use.evaluate,
    commands_use.figures_command,
    commands_use.encode,
    commands_use.reconstruct,
    commands_use.sample,
    commands_use.bulk,
    commands_detect.detect,
):
    cli.add_command(command)


# -- quickstart --------------------------------------------------------------------------------------------------------------------------

# epochs and batch size so that all of it takes about a minute on two cores (digits), or a few (60,000 images)
_SMALL = {"epochs": 40, "batch_size": 32, "hidden_units": (256, 128), "latent_dim": 8}
_LARGE = {"epochs": 10, "batch_size": 128, "hidden_units": (512, 256), "latent_dim": 16}


@cli.command()
@click.option(
    "--dataset", default="digits", show_default=True, help='"digits" needs no download; or mnist, fashion_mnist, …'
)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("kerasae-quickstart"), show_default=True)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Epochs of each model. Default: 40 for digits, 10 for the others."
)
@commands.data_dir_option
def quickstart(dataset, folder, epochs, data_dir):
    """The whole road once: fit, evaluate, look, save, export, run without Keras."""
    commands.check_writable(folder)
    commands.import_keras()
    import keras
    from sklearn.decomposition import PCA

    from kerasae import builders, data, figures, metrics

    (x_train, _), (x_test, y_test) = data.load(dataset, data_dir=data_dir, labels=True)
    size = _SMALL if len(x_train) < 10_000 else _LARGE
    fit = {"epochs": epochs or size["epochs"], "batch_size": size["batch_size"], "validation_data": (x_test,)}
    click.echo(f"{dataset}: {len(x_train):,} training and {len(x_test):,} test images of shape {x_train.shape[1:]}")

    keras.utils.set_random_seed(0)
    click.echo("\nAn undercomplete autoencoder with two codes")
    undercomplete = builders.undercomplete(x_train.shape[1:], latent_dim=2, hidden_units=size["hidden_units"])
    undercomplete.compile(optimizer="adam")
    undercomplete_history = undercomplete.fit(x_train, **fit).history

    click.echo(f"\nA variational autoencoder with {size['latent_dim']} codes")
    variational = builders.variational(
        x_train.shape[1:], latent_dim=size["latent_dim"], hidden_units=size["hidden_units"]
    )
    variational.compile(optimizer="adam")
    variational_history = variational.fit(x_train, **fit).history

    click.echo("\nTest error: squared error per image, summed over pixels in [0, 1], mean over the test images")
    click.echo(f"{'model':<16}{'codes':>6}{'error':>10}{'PCA':>10}")
    for name, model, codes in (("undercomplete", undercomplete, 2), ("variational", variational, size["latent_dim"])):
        error = metrics.squared_error(x_test, model.predict(x_test, batch_size=1000, verbose=0))
        click.echo(f"{name:<16}{codes:>6}{error:>10.3f}{metrics.pca_error(x_train, x_test, codes):>10.3f}")
    logs = variational.evaluate(x_test, batch_size=1000, verbose=0, return_dict=True)
    elbo = -logs["reconstruction_loss"] - logs["kl_loss"]
    click.echo(
        f"variational: ELBO {elbo:.2f} nats per test image "
        f"(reconstruction {-logs['reconstruction_loss']:.2f}, KL {logs['kl_loss']:.2f})"
    )

    undercomplete.save(folder / "undercomplete.keras")
    variational.save(folder / "variational.keras")
    pca = PCA(2).fit(x_train.reshape(len(x_train), -1))
    shown = x_test[:10]
    pictures = {
        "reconstructions": figures.reconstructions(
            {
                "input": shown,
                "undercomplete, 2 codes": undercomplete.predict(shown, verbose=0),
                f"variational, {size['latent_dim']} codes": variational.predict(shown, verbose=0),
            }
        ),
        "codes": figures.codes_2d(
            {"autoencoder": undercomplete.encode(x_test), "PCA": pca.transform(x_test.reshape(len(x_test), -1))}, y_test
        ),
        "samples": figures.samples(variational.sample(64, seed=0)),
        "undercomplete_training": figures.training_curves(undercomplete_history, unit="squared error"),
        "variational_training": figures.training_curves(variational_history),
    }
    for name, figure in pictures.items():
        figures.save(figure, folder / f"{name}.png")

    click.echo("\nExporting the variational autoencoder's encoder and decoder, and running them without Keras …")
    _export(variational, folder / "variational_bundle", x=x_test[:64], replace=True)
    click.echo(
        f"""
In {folder.resolve()}:
  *.keras              the models: keras.saving.load_model, after `import kerasae`
  *.png                {", ".join(pictures)}
  variational_bundle/  SavedModel and ONNX files, manifest.json, and a README for whoever runs them

Next:
  kerasae quickstart --dataset mnist       the same on MNIST
  kerasae zoo list                         models that are trained already
  kerasae.builders.undercomplete(x.shape[1:], latent_dim=2)   on your own data"""
    )


# -- zoo ---------------------------------------------------------------------------------------------------------------------------------


_SOURCE = click.option(
    "--source",
    help='"packaged", a folder, https://…, http://localhost…, or hf://owner/name. Default: $KERASAE_ZOO, or "packaged".',
)


@cli.group()
def zoo():
    """Pretrained models: list, show, download, verify, publish, train, evaluate."""


@zoo.command("list")
@click.option("--family", help="Only this family.")
@click.option("--dataset", help="Only this dataset.")
@_SOURCE
def zoo_list(family, dataset, source):
    """The models' ids, each with its first figure."""
    from kerasae.zoo import list_models, sources

    origin = sources.source(source)
    for model_id in list_models(family, dataset, origin):
        first = origin.index().models[model_id].figure
        click.echo(f"{model_id:<36}{f'{first.metric} {first.value:.4g} {first.unit}' if first else ''}".rstrip())


@zoo.command("show")
@click.argument("model_id")
@_SOURCE
def zoo_show(model_id, source):
    """A model's card: how it was made, and what it scores under which protocol."""
    import kerasae.zoo

    click.echo(kerasae.zoo.card(model_id, source))


@zoo.command("download")
@click.argument("model_ids", nargs=-1, required=True)
@_SOURCE
def zoo_download(model_ids, source):
    """Bring models to this machine, every file checked; prints where they are."""
    from kerasae.zoo import download, sources

    origin = sources.source(source)
    for model_id in model_ids:
        for name, path in download(model_id, origin).items():
            click.echo(f"{model_id}/{name}\t{path}")


@zoo.command("verify")
@click.argument("model_ids", nargs=-1)
@_SOURCE
def zoo_verify(model_ids, source):
    """Check every file of MODEL_IDS (default: all) against the index; of a remote source, by downloading it."""
    from kerasae.zoo import download, list_models, sources

    origin = sources.source(source)
    failed = 0
    for model_id in model_ids or list_models(source=origin):
        try:
            download(model_id, origin)
            click.echo(f"{model_id:<36}ok")
        except (ValueError, OSError) as error:
            failed += 1
            click.echo(f"{model_id:<36}failed: {error}")
    if failed:
        raise click.ClickException(f"{failed} of the models can't be used.")


@zoo.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1)
@_SOURCE
def zoo_publish(folder, models, source):
    """Write a zoo to FOLDER, for any web server or Hugging Face repository: index, hashes, table, and a folder a model.

    MODELS are folders that `zoo train` wrote, or ids. Without any, what is in FOLDER is indexed again.
    """
    from kerasae.zoo import making

    commands.check_writable(folder)
    for model_id in making.publish(folder, models, source):
        click.echo(model_id)


@zoo.command("train")
@click.argument("recipe")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to. Default: a folder of the model's name, here."
)
@commands.data_dir_option
def zoo_train(recipe, folder, data_dir):
    """Train a model by RECIPE, a model's id or a TOML file. Call again to go on with a run that was stopped."""
    import kerasae.zoo
    from kerasae.zoo import making

    path = kerasae.zoo.recipe_path(recipe)
    if folder is None:
        folder = Path(path.parent.name if path.name == "recipe.toml" else path.stem)
    commands.check_writable(folder)
    making.make(path, folder, data_dir=data_dir)
    click.echo((folder / "card.md").read_text())


@zoo.command("evaluate")
@click.argument("model_id")
@_SOURCE
@commands.data_dir_option
def zoo_evaluate(model_id, source, data_dir):
    """Measure a model again and compare with what is recorded."""
    import kerasae.zoo
    from kerasae.zoo import making

    recorded = kerasae.zoo.describe(model_id, source)["metrics"]
    click.echo(f"{'figure':<20}{'recorded':>12}{'measured':>12}")
    for old, new in zip(recorded, making.evaluate(model_id, data_dir, source), strict=True):
        click.echo(f"{new['metric']:<20}{old['value']:>12.4f}{new['value']:>12.4f}  {new['unit']}")


# -- export ------------------------------------------------------------------------------------------------------------------------------


@cli.command("export")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format", "formats", multiple=True, help="saved_model, onnx or litert; again for more. Default: the first two."
)
@click.option("--opset", type=int, help="Of ONNX. Default: 21.")
@click.option("--image-input", help='"uint8": images of 0 to 255 in, scaled inside.')
@click.option("--batch-size", type=int, help="A fixed one. Default: any.")
@click.option("--variant", "variants", multiple=True, help="float16, int8_dynamic or int8_static; again for more.")
@click.option("--calibration", type=_ARRAY, help=".npy file of examples on which int8_static measures ranges.")
@click.option(
    "--examples", "x", type=_ARRAY, help=".npy file of real examples for the check, the scores and the codes."
)
@click.option(
    "--page", is_flag=True, help="Write a web page instead, on which one draws; any web server can host FOLDER."
)
@click.option("--denoiser", help="With --page: another model, a zoo id or a .keras file, that denoises.")
@click.option("--runtime", help="With --page: the dist folder of onnxruntime-web. Default: npm fetches it.")
@click.option("--replace", is_flag=True, help="Replace what is in FOLDER already.")
def export_command(model, folder, page, denoiser, runtime, replace, **options):
    """Export MODEL (zoo id, .keras file, folder of `kerasae train`) to FOLDER as SavedModel and ONNX, proved to compute the same."""
    options = {name: value for name, value in options.items() if value is not None and value != ()}
    for name, given in (("--denoiser", denoiser), ("--runtime", runtime)):
        if given and not page:
            raise click.UsageError(f"{name} belongs to --page.")
    import numpy as np

    for name in {"x", "calibration"} & set(options):
        options[name] = np.load(options[name], allow_pickle=False)
    if page:
        if foreign := sorted(set(options) - {"x"}):
            raise click.UsageError(f"--page takes no {', '.join(foreign)}.")
        from kerasae import export

        try:
            export.page(
                commands.open_model(model).model,
                folder,
                denoiser=denoiser and commands.open_model(denoiser).model,
                runtime=runtime,
                title=Path(model).stem,
                replace=replace,
                **options,
            )
        except export.ExportError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"Wrote {folder.resolve()}. Look at it: python -m http.server --directory {folder}")
        return
    _export(commands.open_model(model).model, folder, replace=replace, **options)
    click.echo(f"Wrote {folder.resolve()}")


def _export(model, folder, **options):
    """Exports, and prints the largest difference between Keras and each file, run in a process without Keras."""
    from kerasae import export

    try:
        manifest = export.export(model, folder, **options)
    except export.ExportError as error:
        raise click.ClickException(str(error)) from error
    largest = {}
    for row in manifest["parity"]["measured"]:
        key = row["part"], row["format"]
        largest[key] = max(row["max_difference"], largest.get(key, 0.0))
    click.echo(f"{'part':<18}{'format':<14}{'largest difference from Keras':>30}")
    for (part, form), difference in largest.items():
        click.echo(f"{part:<18}{form:<14}{difference:>30.2g}")

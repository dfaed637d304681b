"""`kerasae quickstart`."""

from pathlib import Path

import click

from kerasae import writing
from kerasae.cli import shared
from kerasae.cli.export import export_checked

# epochs and batch size so that all of it takes about a minute on two cores (digits), or a few (60,000 images)
_SMALL = {"epochs": 40, "batch_size": 32, "hidden_units": (256, 128), "latent_dim": 8}
_LARGE = {"epochs": 10, "batch_size": 128, "hidden_units": (512, 256), "latent_dim": 16}
_PICTURES = ("reconstructions", "codes", "samples", "undercomplete_training", "variational_training")


def _files_of(folder):
    """Names of the files of an earlier quickstart in a folder; none where there is none."""
    from kerasae import runtime

    bundle = {f"variational_bundle/{name}" for name in runtime.files_of(folder / "variational_bundle")}
    return bundle and {"undercomplete.keras", "variational.keras", *(f"{name}.png" for name in _PICTURES)} | bundle


@click.command()
@click.option(
    "--dataset", default="digits", show_default=True, help='"digits" needs no download; or mnist, fashion_mnist, …'
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("kerasae-quickstart"),
    show_default=True,
    help="Where to write.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Epochs of each model. Default: 40 for digits, 10 for the others."
)
@shared.overwrite_option
@shared.data_dir_option
def quickstart(dataset, folder, epochs, overwrite, data_dir):
    """Go the whole way once: fit, evaluate, draw, save, export, and run without Keras."""
    shared.check_new(folder, overwrite, _files_of)
    writing.writable(folder, "--folder")
    shared.import_keras()
    import keras
    from sklearn.decomposition import PCA

    from kerasae import builders, data, figures, metrics

    (x_train, _), (x_test, y_test) = data.load(dataset, data_dir=data_dir, labels=True)
    size = _SMALL if len(x_train) < 10_000 else _LARGE
    fit = {"epochs": epochs or size["epochs"], "batch_size": size["batch_size"], "validation_data": (x_test,)}
    shared.echo(f"{dataset}: {len(x_train):,} training and {len(x_test):,} test images of shape {x_train.shape[1:]}")

    keras.utils.set_random_seed(0)
    shared.echo("\nAn undercomplete autoencoder with two codes")
    undercomplete = builders.undercomplete(x_train.shape[1:], latent_dim=2, hidden_units=size["hidden_units"])
    undercomplete.compile(optimizer="adam")
    undercomplete_history = undercomplete.fit(x_train, **fit).history

    shared.echo(f"\nA variational autoencoder with {size['latent_dim']} codes")
    variational = builders.variational(
        x_train.shape[1:], latent_dim=size["latent_dim"], hidden_units=size["hidden_units"]
    )
    variational.compile(optimizer="adam")
    variational_history = variational.fit(x_train, **fit).history

    shared.echo("\nTest error: squared error per image, summed over pixels in [0, 1], mean over the test images")
    shared.echo(f"{'model':<16}{'codes':>6}{'error':>10}{'PCA':>10}")
    for name, model, codes in (("undercomplete", undercomplete, 2), ("variational", variational, size["latent_dim"])):
        error = metrics.squared_error(x_test, model.predict(x_test, batch_size=1000, verbose=0))
        shared.echo(f"{name:<16}{codes:>6}{error:>10.3f}{metrics.pca_error(x_train, x_test, codes):>10.3f}")
    logs = variational.evaluate(x_test, batch_size=1000, verbose=0, return_dict=True)
    elbo = -logs["reconstruction_loss"] - logs["kl_loss"]
    shared.echo(
        f"variational: ELBO {elbo:.2f} nats per test image "
        f"(reconstruction {-logs['reconstruction_loss']:.2f}, KL {logs['kl_loss']:.2f})"
    )

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
    with writing.together(folder, _files_of) as beside:
        undercomplete.save(beside / "undercomplete.keras")
        variational.save(beside / "variational.keras")
        for name in _PICTURES:
            figures.save(pictures[name], beside / f"{name}.png")
        shared.echo("\nExporting the variational autoencoder's encoder and decoder, and running them without Keras …")
        export_checked(variational, beside / "variational_bundle", x=x_test[:64])
    shared.echo(
        f"""
In {folder.resolve()}:
  *.keras              the models: keras.saving.load_model, after `import kerasae`
  *.png                {", ".join(_PICTURES)}
  variational_bundle/  SavedModel and ONNX files, manifest.json, and a README for whoever runs them

Next:
  kerasae quickstart --dataset mnist       the same on MNIST
  kerasae zoo list                         models that are trained already
  kerasae.builders.undercomplete(x.shape[1:], latent_dim=2)   on your own data"""
    )

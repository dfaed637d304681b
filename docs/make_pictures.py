"""Draws the handbook's pictures: `python docs/make_pictures.py [NAME ...]`, without names all of them, into docs/images.

Most are of the zoo's MNIST models. Where a picture needs a model that the zoo has not (codes of two, a denoiser), a small one is trained
here, in about a minute each on two cores. MNIST comes by tensorflow-datasets: `TFDS_DATA_DIR` names a folder where it is prepared.
"""

import argparse
import functools
import io
import logging
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA

import kerasae
from kerasae import builders, data, figures, tasks, zoo

FOLDER = Path(__file__).parent / "images"
_LARGEST = 150_000  # bytes
_logger = logging.getLogger("pictures")


@functools.cache
def mnist():
    return data.load("mnist", labels=True)


@functools.cache
def digits():
    return data.load("digits", labels=True)


def trained(model, epochs, batch_size=256, learning_rate=2e-3):
    """A model of MNIST, fitted to its 60,000 training images."""
    (x, _), _ = mnist()
    keras.utils.set_random_seed(0)
    steps = epochs * -(-len(x) // batch_size)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps)))
    model.fit(x, epochs=epochs, batch_size=batch_size, verbose=2)
    return model


def undercomplete_codes():
    """Two codes beside PCA's two components, 2,000 test images."""
    _, (x, y) = mnist()
    keras.utils.set_random_seed(0)
    model = trained(builders.undercomplete((28, 28, 1), latent_dim=2, hidden_units=(256, 128)), epochs=12)
    return figures.codes_beside_pca(model, x[:2000], y[:2000])


def linear_atoms():
    """What a linear autoencoder's 16 codes paint with, beside PCA's 16 components."""
    (x, _), _ = mnist()
    keras.utils.set_random_seed(0)
    model = trained(builders.linear((28, 28, 1), latent_dim=16), epochs=10)
    pca = PCA(16, svd_solver="covariance_eigh").fit(x.reshape(len(x), -1))
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figures.atoms(model, 16, ax=left)
    figures.signed_images(pca.components_.reshape(-1, 28, 28), ax=right)
    left.set(title="linear autoencoder", xlabel="")
    right.set(title="PCA")
    angle = kerasae.metrics.principal_angles(
        model.decoder.get_layer("logits").kernel.numpy().T, pca.components_.T
    ).max()
    figure.supxlabel(f"largest angle between the two subspaces: {angle:.1f}°", fontsize="medium")
    return figure


def deep_reconstructions():
    """The same 30 numbers an image: PCA, undercomplete, deep and pretrained."""
    (x, _), (x_test, _) = mnist()
    pca = PCA(30, svd_solver="covariance_eigh").fit(x.reshape(len(x), -1))
    shown = x_test[:8]
    flat = shown.reshape(len(shown), -1)
    return figures.reconstructions(
        {
            "input": shown,
            "PCA": pca.inverse_transform(pca.transform(flat)).reshape(shown.shape),
            "undercomplete": zoo.load("undercomplete-dense-mnist").predict(shown, verbose=0),
            "deep, pretrained": zoo.load("deep-dense-mnist").predict(shown, verbose=0),
        },
        num_images=8,
    )


def pretrained_filters():
    """The first layer of a stack of denoising autoencoders."""
    return figures.filters(zoo.load("deep-dense-mnist-denoising"), 40, columns=10)


def denoising_rows():
    """Clean, corrupted, denoised."""
    _, (x, _) = mnist()
    keras.utils.set_random_seed(0)
    model = builders.denoising((28, 28, 1), latent_dim=64, hidden_units=(512,), noise_stddev=0.5, seed=0)
    return figures.denoising(trained(model, epochs=8), x, num_images=8)


def k_sparse_activations():
    """A few k-sparse codes, unit by unit."""
    _, (x, _) = mnist()
    return figures.code_activations(zoo.load("k_sparse-dense-mnist").encode(x[:4]), x[:4], num_images=4)


def k_sparse_units():
    """Images that a few units respond to most."""
    _, (x, y) = mnist()
    model = zoo.load("k_sparse-dense-mnist")
    return figures.top_images(model.encode(x), x, y, num_units=8, num_images=10)


def sparse_atoms():
    """What the units of a sparse autoencoder paint with."""
    keras.utils.set_random_seed(0)
    model = builders.sparse(
        (28, 28, 1), latent_dim=196, sparsity_target=0.05, sparsity_weight=0.5, average="batch", penalty="kl"
    )
    return figures.atoms(trained(model, epochs=12), 40, columns=10)


def contractive_tangents():
    """Directions to which a contractive encoder still reacts."""
    _, (x, _) = mnist()
    return figures.tangents(zoo.load("contractive-dense-mnist"), x[:4], num_tangents=6)


def variational_grid():
    """What two latents mean."""
    keras.utils.set_random_seed(0)
    model = trained(builders.variational((28, 28, 1), latent_dim=2, hidden_units=(256, 128)), epochs=15)
    return figures.latent_grid(model.decode, n=12)


def variational_kl():
    """Active and collapsed latents."""
    _, (x, _) = mnist()
    return figures.unit_kl(*zoo.load("variational-dense-mnist-binarized").encoder.predict(x[:2000], verbose=0))


def variational_samples():
    """New images."""
    return figures.samples(zoo.load("variational-dense-mnist").sample(40, seed=0), columns=10)


def generation_interpolation():
    """From one image to another."""
    _, (x, _) = mnist()
    return figures.interpolation(zoo.load("variational-dense-mnist"), x[[0, 2, 4]], x[[1, 3, 7]], num_steps=8)


def generation_traversal():
    """What single latents change."""
    _, (x, _) = mnist()
    model = zoo.load("variational-dense-mnist")
    return figures.traversal(model.decode, model.encode(x[:1])[0], latents=range(5))


def search_answers():
    """Queries at the left, the nearest training images beside them."""
    (x, _), (x_test, _) = mnist()
    index = tasks.SearchIndex(zoo.load("undercomplete-dense-mnist"))
    index.add(x)
    queries = x_test[[3, 7, 8, 18]]
    found = index.search(queries, k=9)
    rows = np.concatenate(
        [np.concatenate([query[None], x[ids]]) for query, ids in zip(queries, found.ids, strict=True)]
    )
    figure = figures.samples(rows, columns=10)
    figure.axes[0].set_xlabel("first column: the query")
    return figure


def anomaly_errors():
    """Errors of the digits 0 to 8 and of the 9, which the detector never saw."""
    (x, y), (x_test, y_test) = digits()
    normal = x[y != 9]
    # The threshold on examples that the detector has not seen: its training examples are near reconstructions of their own.
    detector = tasks.AnomalyDetector(random_state=0).fit(normal[:1000])
    threshold = np.quantile(-detector.score_samples(normal[1000:]), 0.95)
    errors = -detector.score_samples(x_test)
    return figures.error_histograms(errors[y_test != 9], errors[y_test == 9], threshold, unit="relative distance")


def codec_curve():
    """Rate and distortion of one codec at seven steps, beside PNG."""
    (x, _), (x_test, _) = mnist()
    keras.utils.set_random_seed(0)
    codec = tasks.Codec(latent_dim=64, hidden_units=(512, 256), epochs=6, batch_size=256, random_state=0).fit(x)
    shown = np.round(x_test[:1000] * 255).astype("uint8")
    points = []
    for step in (0.5, 0.75, 1, 1.5, 2, 3, 4):
        decoded = codec.decode(codec.encode(shown, step))
        points.append((codec.bits_per_pixel(shown, step), kerasae.metrics.psnr(shown / 255, decoded / 255)))
    file = io.BytesIO()
    # All images in one file, so that PNG's header is not counted a thousand times.
    Image.fromarray(shown.reshape(-1, 28)).save(file, "PNG", optimize=True)
    figure = figures.rate_distortion({"Codec, one model": list(zip(*points, strict=True))})
    png = 8 * len(file.getvalue()) / shown.size
    axes = figure.axes[0]
    axes.set_title(f"MNIST; PNG, without loss: {png:.2f} bits per pixel", fontsize="medium")
    return figure


PICTURES = {
    "undercomplete-codes": undercomplete_codes,
    "linear-atoms": linear_atoms,
    "deep-reconstructions": deep_reconstructions,
    "pretrained-filters": pretrained_filters,
    "denoising-rows": denoising_rows,
    "k-sparse-activations": k_sparse_activations,
    "k-sparse-units": k_sparse_units,
    "sparse-atoms": sparse_atoms,
    "contractive-tangents": contractive_tangents,
    "variational-grid": variational_grid,
    "variational-kl": variational_kl,
    "variational-samples": variational_samples,
    "generation-interpolation": generation_interpolation,
    "generation-traversal": generation_traversal,
    "search-answers": search_answers,
    "anomaly-errors": anomaly_errors,
    "codec-curve": codec_curve,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(PICTURES))
    if unknown:
        parser.error(f"no such picture: {unknown}; there are {list(PICTURES)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("kerasae").setLevel(logging.WARNING)
    for name in names or PICTURES:
        path = figures.save(PICTURES[name](), FOLDER / f"{name}.png")
        image = Image.open(path).convert("RGB")
        image.save(path, optimize=True)
        if path.stat().st_size > _LARGEST:  # many grey digits, for which 128 shades do
            image.quantize(128).save(path, optimize=True)
        _logger.info("%s: %d kB", path.name, path.stat().st_size // 1000)


if __name__ == "__main__":
    main()

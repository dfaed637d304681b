"""How good samples are, by `kerasae.tasks.sample_quality`: `python tests/benchmarks/generation.py`.

The zoo's MNIST models sample from N(0, I) where they are variational, and from a mixture of Gaussians fitted to their training codes;
beside them stand what one would otherwise pick (a Gaussian and a mixture of Gaussians over pixels, by way of PCA) and the two ends of the
scale: training images and noise. All samples are compared with the same 10,000 test images in the same features. The table goes to
`tests/benchmarks/results/generation.md`. `TFDS_DATA_DIR` names the folder of the prepared dataset.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

import kerasae
from kerasae import zoo
from kerasae.tasks import fit_prior, sample, sample_quality

RESULTS = Path(__file__).parent / "results" / "generation.md"
MODELS = (
    "variational-dense-mnist",
    "variational-dense-mnist-binarized",
    "undercomplete-dense-mnist",
    "deep-dense-mnist",
)
MEASURES = {
    "frechet_distance": "{:.2f}",
    "precision": "{:.3f}",
    "recall": "{:.3f}",
    "density": "{:.3f}",
    "coverage": "{:.3f}",
}


def mixture_of_pixels(x_train, num_samples, num_components, seed):
    """Samples of a mixture of Gaussians in the first 64 principal components."""
    pca = PCA(64, random_state=seed).fit(x_train.reshape(len(x_train), -1))
    codes = pca.transform(x_train.reshape(len(x_train), -1)).astype("float64")
    mixture = GaussianMixture(num_components, random_state=seed, reg_covar=1e-3).fit(codes)
    samples = pca.inverse_transform(mixture.sample(num_samples)[0])
    return np.clip(samples, 0, 1).reshape(-1, *x_train.shape[1:])


def candidates(x_train, num_samples, seed):
    """(name, samples), each made when it is its turn."""
    random = np.random.default_rng(seed)
    yield "training images: the best to hope for", random.permutation(x_train)[:num_samples]
    for name in MODELS:
        model = zoo.load(name)
        if name.startswith("variational"):
            yield f"{name}, N(0, I)", sample(model, num_samples, seed=seed)
        prior = fit_prior(model, x_train, seed=seed)
        yield f"{name}, 10 Gaussians fitted to the codes", sample(model, num_samples, prior, seed=seed)
    for num_components in (1, 10):
        name = f"{num_components} Gaussian{'s' * (num_components > 1)} in 64 principal components of the pixels"
        yield name, mixture_of_pixels(x_train, num_samples, num_components, seed)
    yield "uniform noise", random.random((num_samples, *x_train.shape[1:]), dtype="float32")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=10_000, help="of each; also test images (default 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    x_train, x_test = kerasae.data.load("mnist")
    x_test = x_test[: arguments.num_samples]
    lines = [
        "# Generation",
        "\nBy `python tests/benchmarks/generation.py`: "
        f"{arguments.num_samples:,} samples of each, seed {arguments.seed}, against {len(x_test):,} MNIST test images, as "
        "`kerasae.tasks.sample_quality` defines it: 64 principal components of the training images, 5 neighbours. Distance: lower is "
        "better; the others: higher. Models that saw binarised images only, and samples that are the decoder's means, differ from test "
        "images in their grey levels, which these figures hold against them.\n",
        f"| samples | {' | '.join(MEASURES)} |",
        f"|---|{'---|' * len(MEASURES)}",
    ]
    print("\n".join(lines))
    for name, samples in candidates(x_train, arguments.num_samples, arguments.seed):
        quality = sample_quality(samples, x_test, x_train)
        lines.append(f"| {name} | {' | '.join(form.format(quality[key]) for key, form in MEASURES.items())} |")
        print(lines[-1], flush=True)
    if arguments.num_samples == 10_000 and arguments.seed == 0:
        RESULTS.parent.mkdir(exist_ok=True)
        beside = RESULTS.with_name(f".{RESULTS.name}.{os.getpid()}")
        beside.write_text("\n".join(lines) + "\n")
        os.replace(beside, RESULTS)


if __name__ == "__main__":
    main()

"""Denoisers against classical filters: `python tests/benchmarks/denoising.py`.

One `kerasae.tasks.Denoiser` for each kind of noise, trained on clean images with noise of all strengths (it is never told how strong
the noise of an image is), against filters of scikit-image whose parameters are chosen for each data set, kind and strength of noise, by
PSNR on training images: the filters know the noise, the denoiser does not.

What is finished is kept in `results/denoising.json`, and a run with the same options goes on from there.
"""

import argparse
import itertools
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tables
from scipy.ndimage import median_filter
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import kerasae
from kerasae import metrics
from kerasae.tasks import Denoiser

DATASETS = ("mnist", "fashion_mnist")
STRENGTHS = {"gaussian": (0.1, 0.25, 0.5), "masking": (0.25, 0.5), "salt_and_pepper": (0.1, 0.25, 0.5)}
NUM_CHOOSING = 50
CHOOSING_SEED, TEST_SEED = 1, 2


def corrupt(x, corruption, strength, seed):
    """Noise as the lecture's three corruptions make it, independently of the library; Gaussian noise is clipped to [0, 1]."""
    random = np.random.default_rng(seed)
    if corruption == "gaussian":
        return np.clip(x + strength * random.standard_normal(x.shape), 0, 1).astype("float32")
    u = random.random(x.shape)
    if corruption == "masking":
        return np.where(u < strength, 0, x).astype("float32")
    return np.where(u < strength / 2, 0, np.where(u >= 1 - strength / 2, 1, x)).astype("float32")


def non_local_means(image, strength, patch_size, patch_distance):
    return denoise_nl_means(image, patch_size, patch_distance, h=strength, fast_mode=True)


FILTERS = {
    "non-local means": (
        non_local_means,
        [
            {"strength": h, "patch_size": size, "patch_distance": 8}
            for h, size in itertools.product((0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9), (3, 5))
        ],
    ),
    "median": (lambda image, size: median_filter(image, size, mode="reflect"), [{"size": size} for size in (2, 3, 5)]),
    "total variation": (
        denoise_tv_chambolle,
        [{"weight": weight} for weight in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.9, 1.3)],
    ),
}


def apply(filtering, x, parameters):
    return np.clip(np.stack([filtering(image[..., 0], **parameters) for image in x]), 0, 1)[..., None].astype("float32")


def quality(x, denoised):
    """`(PSNR, SSIM)`, mean over images."""
    pairs = zip(x[..., 0], denoised[..., 0], strict=True)
    similarity = np.mean([structural_similarity(a, b, data_range=1.0) for a, b in pairs])
    return metrics.psnr(x, denoised), similarity


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="how many test images, the first ones")
    parser.add_argument("--training-images", type=int, default=60_000, help="how many, the first ones")
    options = parser.parse_args()
    # Rows, and chosen parameters, by data set and kind of noise, of the last run with these options.
    path = tables.RESULTS / "denoising.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    done = kept["done"] if kept.get("options") == vars(options) else {}
    protocol = (
        f"PSNR in dB / SSIM (7 x 7 windows), mean over the first {options.images} test images in [0, 1]; every answer is clipped to that. "
        f"Gaussian noise is clipped to [0, 1]; noise of the test images has the seed {TEST_SEED}. The denoiser is one model a data set and "
        f"kind of noise, blind to its strength: `Denoiser(corruption=..., epochs={options.epochs}, batch_size=256, "
        f"random_state={options.seed})` on {options.training_images:,} training images. The filters' parameters are "
        f"chosen for each row on {NUM_CHOOSING} training images (noise of the seed {CHOOSING_SEED})."
    )
    for dataset, corruption in itertools.product(DATASETS, STRENGTHS):
        key = f"{dataset}, {corruption}"
        if key not in done:
            done[key] = measured(dataset, corruption, options)
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"options": vars(options), "done": done}, indent=1) + "\n")
            os.replace(temporary, path)
        parts = done.values()
        header = ["data", "noise", "nothing", "Denoiser", *FILTERS]
        tables.write(
            "denoising",
            "Denoising",
            protocol,
            [
                tables.table(header, [row for part in parts for row in part["rows"]]),
                "Chosen parameters:\n\n" + "\n".join(f"- {line}" for part in parts for line in part["chosen"]),
            ],
        )


def measured(dataset, corruption, options):
    """`{"rows": the table's, one a strength, "chosen": lines}` of a data set and a kind of noise."""
    x, x_test = kerasae.data.load(dataset)
    x_test, x_choosing = x_test[: options.images], x[:NUM_CHOOSING]
    start = time.perf_counter()
    denoiser = Denoiser(
        corruption=corruption, epochs=options.epochs, batch_size=256, random_state=options.seed, verbose=2
    )
    denoiser.fit(x[: options.training_images])
    print(f"{dataset}, {corruption}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    rows, chosen = [], []
    for strength in STRENGTHS[corruption]:
        noisy_choosing = corrupt(x_choosing, corruption, strength, CHOOSING_SEED)
        noisy = corrupt(x_test, corruption, strength, TEST_SEED)
        answers = [noisy, denoiser.denoise(noisy)]
        for name, (filtering, grid) in FILTERS.items():
            best = max(grid, key=lambda p: metrics.psnr(x_choosing, apply(filtering, noisy_choosing, p)))
            chosen.append(f"{dataset}, {corruption} {strength:g}, {name}: {best}")
            answers.append(apply(filtering, noisy, best))
        cells = ["{:.2f} / {:.3f}".format(*quality(x_test, answer)) for answer in answers]
        rows.append([dataset, f"{corruption} {strength:g}", *cells])
        print(rows[-1], flush=True)
    return {"rows": rows, "chosen": chosen}


if __name__ == "__main__":
    main()

"""Codes of `kerasae.tasks.Reducer` beside PCA's: `python tests/benchmarks/reduction.py`.

Both are fitted on the 60,000 training images without labels, and measured on the 10,000 test images. The reducer is the default one
(784-512-256-k, squared error) for `--epochs` epochs, stopped early on a tenth of the training images.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tables
from sklearn.decomposition import PCA

import kerasae
from kerasae import metrics
from kerasae.tasks import Reducer

CODES = (2, 30)
DATASETS = ("mnist", "fashion_mnist")


def measure(reducer, data):
    """`[squared error, linear-probe error in %, 1-NN accuracy, 5-NN accuracy, seconds of fit]`."""
    (x, y), (x_test, y_test) = data
    start = time.perf_counter()
    reducer.fit(x)
    seconds = time.perf_counter() - start
    z, z_test = reducer.transform(x), reducer.transform(x_test)
    return [
        metrics.squared_error(x_test, reducer.inverse_transform(z_test)),
        metrics.linear_probe_error(z, y, z_test, y_test),
        metrics.knn_accuracy(z, y, z_test, y_test, 1),
        metrics.knn_accuracy(z, y, z_test, y_test, 5),
        seconds,
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for dataset in DATASETS:
        data = [(x.reshape(len(x), -1), y) for x, y in kerasae.data.load(dataset, labels=True)]
        for k in CODES:
            reducers = {
                "PCA": PCA(k, svd_solver="covariance_eigh"),
                "Reducer": Reducer(
                    latent_dim=k, epochs=options.epochs, batch_size=256, random_state=options.seed, verbose=2
                ),
            }
            for name, reducer in reducers.items():
                error, probe, *accuracies, seconds = measure(reducer, data)
                row = [dataset, str(k), name, f"{error:.2f}", f"{probe:.2f}"]
                rows.append([*row, *(f"{a:.4f}" for a in accuracies), f"{seconds:.0f}"])
                print(rows[-1], flush=True)
    header = [
        "data",
        "codes",
        "by",
        "squared error",
        "linear probe, error %",
        "1-NN accuracy",
        "5-NN accuracy",
        "fit, s",
    ]
    protocol = (
        "Fitted on 60,000 training images in [0, 1] without their labels, measured on the 10,000 test images. Squared error: summed over "
        "pixels, mean over images. Linear probe: logistic regression on the standardised codes. k-NN: on the codes as they are. "
        f"Reducer: `Reducer(latent_dim=codes, epochs={options.epochs}, batch_size=256, random_state={options.seed})`."
    )
    tables.write("reduction", "Dimensionality reduction", protocol, [tables.table(header, rows)])


if __name__ == "__main__":
    main()

"""Image search on MNIST: `python tests/benchmarks/search.py`.

The database is the 60,000 training images, the queries are every tenth test image, 1,000 of them; an answer is right if it has the query's
label. Codes are learned on the training images without labels, and everything was chosen on training images (the first 50,000 as the
database, the next 1,000 as queries), with which `--validate` runs the same.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tables
from sklearn.decomposition import PCA

import kerasae
from kerasae.tasks import SearchIndex, diffuse


def quality(index, labels, queries, query_labels):
    """`(precision at 100, mean average precision over the whole database)`."""
    ranks = np.arange(1, len(labels) + 1)
    precisions, averages = [], []
    for start in range(0, len(queries), 50):
        rows = slice(start, start + 50)
        right = labels[index.search(queries[rows], k=len(labels)).ids] == query_labels[rows, None]
        precision = np.cumsum(right, axis=1) / ranks
        precisions.extend(precision[:, 99])
        averages.extend((precision * right).sum(axis=1) / right.sum(axis=1))
    return np.mean(precisions), np.mean(averages)


def fit(x, y, epochs, seed):
    """An autoencoder with codes of 16, of x or of targets y."""
    keras.utils.set_random_seed(seed)
    model = kerasae.builders.undercomplete(x.shape[1:], latent_dim=16, hidden_units=(512, 256), seed=seed)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * -(-len(x) // 256))
    model.compile(keras.optimizers.Adam(schedule))
    model.fit(x, y, epochs=epochs, batch_size=256, verbose=2)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="training images only; writes nothing")
    options = parser.parse_args()
    (x, y), (x_test, y_test) = kerasae.data.load("mnist", labels=True)
    queries, query_labels = x_test[::10], y_test[::10]
    if options.validate:
        x, y, queries, query_labels = x[:50_000], y[:50_000], x[50_000:51_000], y[50_000:51_000]
    pca = PCA(30, svd_solver="covariance_eigh").fit(x.reshape(len(x), -1))

    def components(images):
        return pca.transform(images.reshape(len(images), -1))

    rows = []

    def measure(name, model, metric):
        index = SearchIndex(model, metric=metric)
        index.add(x)
        size = index.search(queries[:1], 1) and index._codes.shape[1]
        precision, average = quality(index, y, queries, query_labels)
        rows.append([name, str(size), metric, f"{precision:.4f}", f"{average:.4f}"])
        print(rows[-1], flush=True)
        return index

    for name, model in (("raw pixels", None), ("PCA", components)):
        for metric in ("euclidean", "cosine"):
            measure(name, model, metric)
    measure("autoencoder", fit(x, None, options.epochs, options.seed), "cosine")
    start = time.perf_counter()
    model = fit(x, diffuse(x), options.epochs, options.seed)
    seconds = time.perf_counter() - start
    index = measure("autoencoder, diffused targets", model, "cosine")
    found = {}
    lines = []
    for approximate in (False, True):
        index.approximate = approximate
        index.search(queries[:1], 100)  # the graph is built
        start = time.perf_counter()
        found[approximate] = index.search(queries, 100).ids
        milliseconds = (time.perf_counter() - start) / len(queries) * 1000
        lines.append(f"{'approximate' if approximate else 'exact'} {milliseconds:.2f} ms a query, coding included")
    recall = np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(found[False], found[True], strict=True)])
    extra = (
        f"100 nearest of {len(x):,}: {'; '.join(lines)}; {recall:.4f} of the true 100 found by the approximate search."
    )
    protocol = (
        "The database is MNIST's 60,000 training images, the queries are every tenth test image (1,000); mAP over the whole database. "
        f"Codes are learned without labels, in {options.epochs} epochs (seed {options.seed}), those of diffused targets by "
        f"`model.fit(x, kerasae.tasks.diffuse(x))` in {seconds:.0f} s. Chosen on training images alone."
    )
    results = tables.table(["codes", "size", "metric", "precision at 100", "mAP"], rows)
    if options.validate:
        print(results, extra, sep="\n")
    else:
        tables.write("search", "Image search", protocol, [results, extra])


if __name__ == "__main__":
    main()

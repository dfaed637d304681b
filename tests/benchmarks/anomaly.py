"""Anomaly detection against scikit-learn's detectors: `python tests/benchmarks/anomaly.py --adbench FOLDER [--mnist]`.

Area under the ROC curve of each detector's defaults on every file of a folder of ADBench's tables (`X`, `y`), once fitted to all rows
without labels and scored on them (unsupervised), once fitted to a random half of the normal rows and scored on the rest (one-class).
Files with more rows than `--max-rows` are thinned at random, for all alike. Columns are standardised for PCA (components that explain 90%
of the variance) and k-NN (distance of the 5th neighbour). "Rows" is the detector with the rows themselves for references: what is left
of it without its autoencoders.

With `--mnist`: each digit in turn is normal; fitted to its training images, scored on all 10,000 test images.

The detector's design was chosen on the files at even places (from 0) in the order of ADBench's numbers, by their labels, and on MNIST's
training images, and by finding made-up anomalies (rows with columns of others, noise, clusters) among normal rows of all files. By the
other files' anomalies and MNIST's test images nothing was chosen, but how earlier designs did on them was known when this one was sought.
Results are given for the halves too.
"""

import argparse
import os
import re
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

import kerasae
from kerasae.tasks import AnomalyDetector
from kerasae.tasks.anomaly_layers import fitted_distance
from kerasae.tasks.batches import run

RESULTS = Path(__file__).parent / "results" / "anomaly.md"


def pca_error(x, x_test, components):
    pca = PCA(components, svd_solver="full").fit(x)
    return np.square(x_test - pca.inverse_transform(pca.transform(x_test))).sum(axis=1)


def neighbour_distance(x, x_test, k=5):
    nearest = NearestNeighbors(n_neighbors=k).fit(x)
    # A row is not its own neighbour.
    return nearest.kneighbors(None if x_test is x else x_test)[0][:, -1]


def distance_of_rows(x, x_test):
    layer, _ = fitted_distance(x.astype("float32"), x.astype("float32"))
    return run(keras.Sequential([keras.Input(x.shape[1:]), layer]), x_test)


def table_scores(x, x_test, seed):
    """`{detector: anomaly scores of x_test}`."""
    detector = AnomalyDetector(random_state=seed).fit(x)
    scores = {"kerasae": -detector.score_samples(x_test)}
    scores["isolation forest"] = -IsolationForest(random_state=seed).fit(x).score_samples(x_test)
    varying = np.ptp(x, axis=0) > 0
    scaler = StandardScaler().fit(x[:, varying])
    z = scaler.transform(x[:, varying])
    z_test = z if x_test is x else scaler.transform(x_test[:, varying])
    scores["PCA"] = pca_error(z, z_test, 0.9)
    scores["k-NN"] = neighbour_distance(z, z_test)
    scores["rows"] = distance_of_rows(z, z_test)
    return scores


def adbench(folder, max_rows, seed):
    paths = sorted(Path(folder).glob("*.npz"), key=lambda path: int(re.match(r"\d+", path.stem)[0]))
    if not paths:
        raise SystemExit(f"No .npz files in {folder}")
    results = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["X"].astype("float64"), arrays["y"].astype(int)
        rng = np.random.default_rng(seed)
        if len(x) > max_rows:
            kept = rng.permutation(len(x))[:max_rows]
            x, y = x[kept], y[kept]
        normal = rng.permutation(np.flatnonzero(y == 0))
        rest = np.setdiff1d(np.arange(len(x)), normal[: len(normal) // 2])
        for setting, (train, test, truth) in {
            "unsupervised": (x, x, y),
            "one-class": (x[normal[: len(normal) // 2]], x[rest], y[rest]),
        }.items():
            start = time.perf_counter()
            aurocs = {
                name: 100 * roc_auc_score(truth, score) for name, score in table_scores(train, test, seed).items()
            }
            results[setting, path.stem] = aurocs
            figures = ", ".join(f"{name} {auroc:.1f}" for name, auroc in aurocs.items())
            print(f"{path.stem} {setting}: {figures} ({time.perf_counter() - start:.0f} s)", flush=True)
    return results


def adbench_table(results, max_rows, seed):
    names = list(next(iter(results.values())))
    lines = [f"ADBench tables: AUROC (%), seed {seed}, at most {max_rows} rows a file. Bold: the best but for `rows`."]
    for setting in ("unsupervised", "one-class"):
        files = [file for kind, file in results if kind == setting]
        rows = {file: results[setting, file] for file in files}
        for label, group in {
            "mean, files of the design": files[::2],
            "mean, the other files": files[1::2],
            f"**mean of all {len(files)}**": files,
        }.items():
            rows[label] = {name: np.mean([results[setting, file][name] for file in group]) for name in names}
        lines += ["", f"| {setting} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for label, aurocs in rows.items():
            best = max(round(aurocs[name], 1) for name in names if name != "rows")
            cells = [
                f"**{aurocs[name]:.1f}**"
                if round(aurocs[name], 1) == best and name != "rows"
                else f"{aurocs[name]:.1f}"
                for name in names
            ]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def mnist(seed):
    (x, y), (x_test, y_test) = kerasae.data.load("mnist", labels=True)
    results = {}
    for digit in range(10):
        start = time.perf_counter()
        train, anomalous = x[y == digit], y_test != digit
        detector = AnomalyDetector(random_state=seed).fit(train)
        scores = {"kerasae": -detector.score_samples(x_test)}
        prepare = detector._preparation()
        images = {"": (train, x_test), ", prepared": (run(prepare, train), run(prepare, x_test))}
        for suffix, pair in images.items():
            flat, flat_test = (part.reshape(len(part), -1) for part in pair)
            scores[f"PCA-32{suffix}"] = pca_error(flat, flat_test, 32)
            scores[f"5-NN{suffix}"] = neighbour_distance(flat, flat_test)
        results[digit] = {name: 100 * roc_auc_score(anomalous, score) for name, score in scores.items()}
        figures = ", ".join(f"{name} {auroc:.2f}" for name, auroc in results[digit].items())
        print(f"digit {digit}: {figures} ({time.perf_counter() - start:.0f} s)", flush=True)
    return results


def mnist_table(results, seed):
    names = list(next(iter(results.values())))
    rows = {str(digit): aurocs for digit, aurocs in results.items()}
    rows["**mean**"] = {name: np.mean([aurocs[name] for aurocs in results.values()]) for name in names}
    lines = [
        f"MNIST, one digit normal: AUROC (%) on the 10,000 test images, seed {seed}. Prepared: blurred and contrast normalised as in the "
        "detector.",
        "",
        "| normal | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    return lines + [f"| {row} | " + " | ".join(f"{rows[row][name]:.2f}" for name in names) + " |" for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adbench", metavar="FOLDER", help="folder of ADBench's .npz files")
    parser.add_argument("--mnist", action="store_true", help="one digit normal, ten times; needs MNIST prepared")
    parser.add_argument("--max-rows", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.adbench or arguments.mnist):
        parser.error("nothing to do: pass --adbench FOLDER, --mnist, or both")
    tables = {}
    if RESULTS.exists():  # a run of one part keeps the other's table
        for part in RESULTS.read_text().split("\n\n## ")[1:]:
            title, _, body = part.partition("\n\n")
            tables[title] = body.rstrip("\n").split("\n")
    if arguments.adbench:
        tables["Tables"] = adbench_table(
            adbench(arguments.adbench, arguments.max_rows, arguments.seed), arguments.max_rows, arguments.seed
        )
    if arguments.mnist:
        tables["Images"] = mnist_table(mnist(arguments.seed), arguments.seed)
    command = "python tests/benchmarks/anomaly.py --adbench FOLDER --mnist"
    text = f"# Anomaly detection\n\nMade by `{command}`, which says what is measured.\n"
    text += "".join(
        f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sorted(tables.items(), reverse=True)
    )
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, RESULTS)
    print(text)


if __name__ == "__main__":
    main()

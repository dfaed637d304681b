"""Anomalies in time series: `python tests/benchmarks/series.py FOLDER [--families ...] [--only TEXT]`.

FOLDER holds `index_dev.csv` and the families' `.npz` files (name + "/x", (rows, channels); name + "/y", 1 = anomaly). Each method is
fitted to the training part that the family's benchmark defines, or to all rows where it defines none, without labels, and gives every row
a score. Measured is VUS-PR, the volume under the surface of range-based precision and recall (Paparrizos et al. 2022) by the package
`vus` (`pip install --no-deps vus==0.0.6`), with TSB-AD's window: the strongest period of the first channel.

The others: 5-NN, the distance of the fifth nearest of the training part's windows of 100; PCA, the squared error of such windows beyond
the components of 90 % of the variance; KMeansAD, by
20 means of z-normalised windows of 40; and of one channel Sub-PCA and POLY as TSB-AD defines them, which see the whole series and have the
metric's window. Scores of windows are averaged over all windows that hold a row, but for Sub-PCA and POLY. Gaps are filled by straight
lines, and channels without a value left out, for all alike. Long series are cut to their first `--max-rows` rows.

The detector's defaults were chosen on a few series of the families other than NAB, by their labels; nothing was chosen on NAB. False alarms
are the share of the rows after the training part and a window before the first anomaly (or the end) that the detector calls anomalies,
where there are at least 500 of them.

Each series' result is a line of `--lines`, written as it comes: a run that was stopped goes on.
"""

import argparse
import csv
import itertools
import json
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from scipy.signal import argrelextrema
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

FAMILIES = ("nab", "smap", "msl", "ucr_anomaly", "skab", "3w", "merlion_synthetic", "mba_ecg")
RESULTS = Path(__file__).parent / "results"
WINDOW, MAX_REFERENCES = 100, 4000


def period(x, longest=400, shortest=3):
    """TSB-AD's `find_length_rank(x, rank=1)`: the lag of the highest local maximum of the autocorrelation, or 125."""
    x = x[:20000] - x[:20000].mean()
    spectrum = np.fft.rfft(x, 2 * len(x))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: longest + 1]
    if not correlation[0] > 0:
        return 125
    correlation = (correlation / correlation[0])[shortest:]
    peaks = argrelextrema(correlation, np.greater)[0]
    if not len(peaks):
        return 125
    peak = peaks[np.argsort(correlation[peaks])[::-1][0]]
    return 125 if peak < 3 or peak > 300 else int(peak) + shortest


def vus_pr(labels, scores, window):
    from vus.utils.metrics import metricor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metricor().RangeAUC_volume_opt(labels.astype(int), scores, window, 250)[-1])


def read(folder, families, only="", max_rows=30_000):
    """Yields `(family, name, x, labels, end of the training part)`."""
    with open(Path(folder) / "index_dev.csv", newline="") as file:
        index = list(csv.DictReader(file))
    for row in index:
        family, name = row["benchmark"], row["name"]
        if family not in families or only not in name:
            continue
        with np.load(Path(folder) / f"{family}_dev.npz") as arrays:
            x, y = arrays[f"{name}/x"][:max_rows].astype("float64"), arrays[f"{name}/y"][:max_rows]
        if not (y == 1).any() and "anomaly-free" not in name:
            continue
        yield (
            family,
            name,
            x,
            (y == 1).astype(int),
            (400 if "anomaly-free" in name else int(row["train_end"])) or len(x),
        )


def filled(x):
    """Straight lines over gaps; without the channels that have no value."""
    x = x[:, ~np.isnan(x).all(axis=0)]
    rows = np.arange(len(x))
    for channel in x.T:
        gaps = np.isnan(channel)
        channel[gaps] = np.interp(rows[gaps], rows[~gaps], channel[~gaps])
    return x


def windows_of(x, window):
    """(windows, window * channels)"""
    view = np.lib.stride_tricks.sliding_window_view(x, window, axis=0)
    return np.swapaxes(view, 1, 2).reshape(len(view), -1)


def spread(scores, window):
    """Scores of windows, averaged over all windows that hold a row."""
    sums = np.convolve(scores, np.ones(window))
    return sums / np.convolve(np.ones(len(scores)), np.ones(window))


def scaled(x, train_end):
    train = x[:train_end]
    deviation = train.std(axis=0)
    return (x - train.mean(axis=0)) / np.where(deviation > 1e-9 * np.abs(train).max(axis=0), deviation, 1)


def thinned(rows):
    return rows[np.random.default_rng(0).permutation(len(rows))[:MAX_REFERENCES]]


def five_nn(x, train_end):
    x = scaled(x, train_end)
    nearest = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(thinned(windows_of(x[:train_end], WINDOW)))
    return spread(nearest.kneighbors(windows_of(x, WINDOW))[0][:, -1], WINDOW)


def pca(x, train_end):
    x = scaled(x, train_end)
    train = thinned(windows_of(x[:train_end], WINDOW))[:1000]  # or the decomposition takes minutes
    model = PCA(0.9, svd_solver="full").fit(train)
    windows = windows_of(x, WINDOW)
    return spread(np.square(windows - model.inverse_transform(model.transform(windows))).sum(axis=1), WINDOW)


def kmeans(x, train_end, clusters=20, window=40):
    def normalised(x):
        windows = windows_of(x, window)
        return (windows - windows.mean(axis=1, keepdims=True)) / np.maximum(windows.std(axis=1, keepdims=True), 1e-9)

    model = KMeans(clusters, n_init=1, random_state=0).fit(thinned(normalised(x[:train_end])))
    return spread(model.transform(normalised(x)).min(axis=1), window)


def sub_pca(x, train_end):
    """TSB-AD's Sub-PCA: standardised windows' distances from the components, each over its share of the variance."""
    window = period(x[:, 0])
    windows = windows_of(x, window)
    deviation = windows.std(axis=0)
    windows = (windows - windows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    model = PCA().fit(windows)
    scores = np.sum(cdist(windows, model.components_) / np.maximum(model.explained_variance_ratio_, 1e-12), axis=1)
    before = (window - 1 + 1) // 2
    return np.pad(scores, (before, window - 1 - before), mode="edge")


def poly(x, train_end, power=4):
    """TSB-AD's POLY: how far the spectrum of a stretch is from that of a polynomial fitted to what lies around it."""
    x = x[:, 0]
    x = (x - x.min()) / max(np.ptp(x), 1e-12)
    n, window = len(x), period(x)
    around = min(max(10 * window, 100), n)
    first, last = -(-min(500, n // 10) // window), n // window
    estimate = np.zeros(n)
    for i in range(first, last + 1):
        start, stop = i * window, min((i + 1) * window, n)
        low = min(max(start - around // 2, 0), n - around)
        rows = np.r_[low:start, stop : max(low + around, stop)]
        rows = rows[rows < n]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = np.poly1d(np.polyfit(rows - start, x[rows], power))
        estimate[start:stop] = fitted(np.arange(stop - start))
    errors = [
        np.linalg.norm(np.fft.fft(estimate[i : i + window]) - np.fft.fft(x[i : i + window])) / window
        for i in range(n - window + 1)
    ]
    before = (window - 1 + 1) // 2
    return np.pad(errors, (before, window - 1 - before), mode="edge")


def kerasae(x, train_end):
    from kerasae.tasks import SeriesDetector

    detector = SeriesDetector(random_state=0).fit(x[:train_end])
    return -detector.score_samples(x), detector


METHODS = {"5-NN": five_nn, "PCA": pca, "KMeansAD": kmeans}
OF_ONE_CHANNEL = {"Sub-PCA": sub_pca, "POLY": poly}


def measure(x, labels, train_end):
    """VUS-PR and seconds of each method, and the detector's share of false alarms with its promise."""
    x, window = filled(x), period(x[:, 0])
    record = {"length": len(x), "channels": x.shape[1], "window": window, "vus": {}, "seconds": {}}
    for name, method in {"kerasae": kerasae, **METHODS, **(OF_ONE_CHANNEL if x.shape[1] == 1 else {})}.items():
        start = time.perf_counter()
        scores = method(x, train_end)
        record["seconds"][name] = time.perf_counter() - start
        if name == "kerasae":
            scores, detector = scores
            end = int(np.argmax(labels[train_end:])) if labels[train_end:].any() else len(x) - train_end
            normal = scores[train_end : train_end + end - WINDOW]
            if end - WINDOW >= 500 and not labels[:train_end].any():
                record["false_alarms"] = float(np.mean(normal > -detector.offset_))
            record["drifts"] = detector.drifts_
        if labels.any():
            record["vus"][name] = vus_pr(labels, scores, window)
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--only", default="", help="part of the series' names")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th series of a family")
    parser.add_argument("--max-rows", type=int, default=15_000)
    parser.add_argument("--lines", type=Path, default=RESULTS / "series.jsonl")
    arguments = parser.parse_args()
    done = {}
    if arguments.lines.exists():
        done = {(r["family"], r["name"]): r for r in map(json.loads, arguments.lines.read_text().splitlines())}
    families = [
        list(read(arguments.folder, [family], arguments.only, arguments.max_rows))[:: arguments.every]
        for family in arguments.families.split(",")
    ]
    # One of each family after the other: what is there when a run is stopped speaks of all.
    for family, name, x, labels, train_end in filter(None, itertools.chain(*itertools.zip_longest(*families))):
        if (family, name) not in done:
            record = {"family": family, "name": name, **measure(x, labels, min(train_end, len(x)))}
            with open(arguments.lines, "a") as file:
                file.write(json.dumps(record) + "\n")
            done[family, name] = record
            print(
                family, name, {m: round(v, 3) for m, v in record["vus"].items()}, record.get("false_alarms"), flush=True
            )
    text = "\n".join(table(list(done.values())))
    RESULTS.joinpath("series.md").write_text(text + "\n")
    print(text)


def table(records):
    """Markdown: means by family, and how the threshold held."""
    names = ["kerasae", *METHODS, *OF_ONE_CHANNEL]
    lines = [
        "# Anomalies in time series",
        "",
        "Made by `python tests/benchmarks/series.py FOLDER`, which says what is measured. Mean VUS-PR; in bold the best.",
        "",
        f"| family | series | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for family in FAMILIES:
        some = [r for r in records if r["family"] == family and r["vus"]]
        means = {n: np.mean([r["vus"][n] for r in some]) for n in names if some and all(n in r["vus"] for r in some)}
        cells = [
            f"**{means[n]:.3f}**"
            if n in means and means[n] == max(means.values())
            else f"{means[n]:.3f}"
            if n in means
            else ""
            for n in names
        ]
        lines.append(f"| {family} | {len(some)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| family | series with 500 normal rows | false alarms, promised 5 % | median | of those that it says drift |",
        "|---" * 5 + "|",
    ]
    for family in FAMILIES:
        some = [r for r in records if r["family"] == family and "false_alarms" in r]
        if some:
            steady = [100 * r["false_alarms"] for r in some if not r["drifts"]]
            drifting = [100 * r["false_alarms"] for r in some if r["drifts"]]
            cells = [f"{np.mean(steady):.1f} %", f"{np.median(steady):.1f} %"] if steady else ["", ""]
            cells.append(f"{np.mean(drifting):.1f} % ({len(drifting)})" if drifting else "")
            lines.append(f"| {family} | {len(some)} | {' | '.join(cells)} |")
    slowest = max(records, key=lambda r: r["seconds"]["kerasae"] / r["length"])
    lines += [
        "",
        f"Slowest: {slowest['seconds']['kerasae']:.0f} s for {slowest['length']:,} rows of {slowest['channels']} channels.",
    ]
    return lines


if __name__ == "__main__":
    main()

"""Scores photos, tables or arrays with the detector in this folder. Needs NumPy, ONNX Runtime, for photos Pillow and for Parquet PyArrow.

    pip install numpy onnxruntime pillow
    python score.py INPUT [ARRAY] > scores.csv

INPUT is of the same kind as the data that the detector was fitted to: a photo or a folder of photos, a .csv, .tsv, .csv.gz or .parquet
file, or an .npy or .npz file of examples (ARRAY names one array of several). Prints CSV: each example's file or row, its score (higher is
more normal), and 1 if it is an anomaly (its score is below the threshold). Examples that can't be read are left out and named on standard
error; the exit code is then 1, as it is where nothing can be scored.
"""

import csv
import functools
import itertools
import signal
import sys
from pathlib import Path

import numpy as np

from kerasae import runtime
from kerasae.data import reading
from kerasae.data.reading import pixels

AT_ONCE = 64


class Detector:
    """The detector in a folder. `scores` gives scores; those below `threshold` are anomalies."""

    def __init__(self, folder):
        folder = Path(folder)
        facts = {"threshold": (int, float), "preparation": {"shape": [int], "scaling": str}, "color": (str, type(None))}
        self.facts = runtime.read_json(folder / "detector.json", {**facts, "manifest": str, "dialect": dict})
        self.threshold = self.facts["threshold"]
        if not np.isfinite(self.threshold):
            raise ValueError(f"{folder} is damaged: its threshold, {self.threshold}, is no number.")
        self.preparation = self.facts["preparation"]
        self.shape = tuple(self.preparation["shape"])
        self.function = runtime.Bundle(folder / "bundle", self.facts["manifest"]).open("score_samples")
        self.dtype = self.function.inputs[0]["dtype"]

    def checked(self, x):
        """Examples in the detector's shape; `ValueError` if they have another."""
        if x.shape[1:] != self.shape and (*x.shape[1:], 1) == self.shape:
            x = x[..., None]  # grey images
        if x.shape[1:] != self.shape:
            raise ValueError(f"Examples must have the shape {self.shape}. Received: {x.shape[1:]}")
        return x

    def prepared(self, x):
        """Examples `(n, *shape)` as the graph takes them; pixels are bytes, or floats in [0, 1]."""
        x = self.checked(np.asarray(x))
        if self.preparation["scaling"] == "pixels":
            if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 1):
                raise ValueError(f"Pixels must be bytes, or floats in [0, 1]. Received: {x.min():g} to {x.max():g}")
            if x.dtype == np.uint8 and self.dtype != "uint8":
                x = x / np.float32(255)
            elif x.dtype != np.uint8 and self.dtype == "uint8":
                x = np.rint(x * 255.0)
        with np.errstate(over="ignore"):
            # What the graph computes in, once the offsets are subtracted.
            if not np.isfinite(x.astype("float32")).all():
                raise ValueError("Examples must be finite numbers. Received NaN, infinity, or more than float32 holds.")
        return x.astype(self.dtype)

    def scores(self, x):
        """Scores, `(n,)`, of examples `(n, *shape)`; pixels are bytes, or floats in [0, 1]."""
        return self.function(self.prepared(x))["score"]

    def mode(self):
        """What Pillow calls the photos' colours."""
        if self.facts["color"] is None:
            raise ValueError(f"This detector takes examples of shape {self.shape}, not photos.")
        return {"grey": "L", "rgb": "RGB"}[self.facts["color"]]

    def photo(self, path):
        """A photo's pixels as the detector takes them: bytes, in the shape `self.shape`."""
        content = Path(path).read_bytes()
        return pixels.pixels(content, self.shape[1::-1], self.mode(), self.preparation["levels"])

    def rows(self, path):
        """Yields `(number, function)` for every row of a table; the function gives its training columns."""
        columns = self.preparation["columns"]
        table = reading.open_table(path, columns, **reading.dialect(path, self.facts["dialect"]))
        names = getattr(table, "lists", None) if columns is None else reading.placed(table, columns)
        if not names:
            names, size = [name for name in table.names if name not in table.left_out], np.prod(self.shape)
            if len(names) != size:
                raise ValueError(f"An example has {size} numbers, and {path} has {len(names)} columns.")
        number = itertools.count(1)
        for chunk in table.chunks(names):
            finite = chunk.finite()
            for i in range(len(finite)):

                def read(chunk=chunk, i=i, ok=finite[i]):
                    if not ok:
                        raise ValueError(chunk.reason(i))
                    return chunk.values[i].reshape(self.shape)

                yield next(number), read


def say(text):
    """Prints on standard error, which may be a terminal: names are anyone's."""
    print(runtime.plain(text), file=sys.stderr)


def examples(detector, path, array=None):
    """Yields `(name, function)` for every example in a file or folder; the function reads the example."""
    suffix = reading.suffix(path)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}.")
    if path.is_dir() or suffix in pixels.SUFFIXES:
        detector.mode()
        root, closed = path if path.is_dir() else path.parent, []
        found = sorted(pixels.walk(path, closed)) if path.is_dir() else [path]
        for error in closed:
            yield pixels.name(Path(error.filename), root), functools.partial(_raise, error)
        for photo in found:
            name = pixels.name(photo, root)
            if reading.suffix(photo) in pixels.SUFFIXES:
                yield name, lambda photo=photo: detector.photo(photo)
            else:
                say(f"{name}: left out, it doesn't end as photos do")
    elif suffix in (".npy", ".npz"):
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if suffix == ".npz":
            if array not in stored and (array or len(stored.files) != 1):
                raise ValueError(f"{path} holds the arrays {stored.files}: name one after it.")
            stored = stored[array or stored.files[0]]
        detector.checked(stored)
        for i, example in enumerate(stored):
            yield i + 1, lambda example=example: example
    elif suffix in reading.TABLES:
        yield from detector.rows(path)
    else:
        raise ValueError(
            f"{path} must be a folder of photos, or end in .npy, .npz or one of {', '.join(reading.TABLES + pixels.SUFFIXES)}."
        )


def _raise(error):
    raise error


def main(path, array=None):
    """Prints the scores of the examples at a path; returns how many could not be read."""
    detector = Detector(Path(__file__).parent)
    out = csv.writer(sys.stdout, lineterminator="\n")
    path = Path(path)
    found = examples(detector, path, array)
    named = path.is_dir() or reading.suffix(path) in pixels.SUFFIXES
    unread, some = 0, list(itertools.islice(found, AT_ONCE))
    out.writerow(["file" if named else "row", "score", "anomaly"])
    while some:
        names, batch = [], []
        for name, read in some:
            try:
                batch.append(detector.prepared(read()[None]))
                names.append(name)
            except Exception as error:  # decoders raise all kinds; the next example may be readable
                unread += 1
                say(f"{name}: {error}")
        if batch:
            for name, score in zip(names, detector.scores(np.concatenate(batch)), strict=True):
                out.writerow([name, f"{score:.7g}", int(score < detector.threshold)])
        some = list(itertools.islice(found, AT_ONCE))
    return unread


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends in silence where `head` has read enough
    if len(sys.argv) not in (2, 3) or sys.argv[1] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(1 if main(*sys.argv[1:]) else 0)
    except (ValueError, OSError, ImportError) as problem:
        sys.exit(runtime.plain(f"Error: {problem}"))

"""Scores photos, tables or arrays with the detector in this folder. Needs NumPy, ONNX Runtime and, for photos, Pillow.

    pip install numpy onnxruntime pillow
    python score.py INPUT > scores.csv

INPUT is of the same kind as the data that the detector was fitted to: a photo or a folder of photos, a .csv or .tsv file, or an .npy file
of examples. Prints CSV: each example's file or row, its score (higher is more normal), and 1 if it is an anomaly (its score is below the
threshold). Examples that can't be read are left out and named on standard error; the exit code is then 1.
"""

import csv
import hashlib
import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

PHOTOS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
AT_ONCE = 64


class Detector:
    """The detector in a folder. `scores` gives scores; those below `threshold` are anomalies."""

    def __init__(self, folder):
        folder = Path(folder)
        self.facts = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
        self.threshold = self.facts["threshold"]
        self.preparation = self.facts["preparation"]
        self.shape = tuple(self.preparation["shape"])
        manifest = json.loads((folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
        content = (folder / "bundle" / "score_samples.onnx").read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["files"]["score_samples.onnx"]["sha256"]:
            raise ValueError(f"{folder} is damaged: score_samples.onnx is not the file that was exported.")
        self.session = onnxruntime.InferenceSession(content)

    def scores(self, x):
        """Scores, `(n,)`, of examples `(n, *shape)`; pixels are bytes, or floats in [0, 1]."""
        x = np.asarray(x)
        if x.shape[1:] != self.shape and (*x.shape[1:], 1) == self.shape:
            x = x[..., None]  # grey images
        if x.shape[1:] != self.shape:
            raise ValueError(f"Examples must have the shape {self.shape}. Received: {x.shape[1:]}")
        if self.preparation["scaling"] == "pixels":
            if x.dtype == np.uint8:
                x = x / np.float32(255)
            elif x.min() < 0 or x.max() > 1:
                raise ValueError(f"Pixels must be bytes, or floats in [0, 1]. Received: {x.min():g} to {x.max():g}")
        if not np.isfinite(x).all():
            raise ValueError("Examples must be finite numbers. Received NaN or infinity.")
        return self.session.run(["score"], {"x": x.astype("float32")})[0]

    def photo(self, path):
        """A photo's pixels as the detector takes them: bytes, in the shape `self.shape`."""
        if self.facts["color"] is None:
            raise ValueError(f"This detector takes examples of shape {self.shape}, not photos.")
        mode = {"grey": "L", "rgb": "RGB"}[self.facts["color"]]
        return _pixels(Path(path).read_bytes(), self.shape[1::-1], mode)


def _pixels(content, size, mode):
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (2 * max(size), 2 * max(size)))  # a JPEG is decoded no larger than is needed
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image, "float32") / 257).round().clip(0, 255).astype("uint8"))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert(mode)
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(*size[::-1], -1)


def examples(detector, path):
    """Yields `(name, function)` for every example in a file or folder; the function reads the example."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in PHOTOS:
        for photo in sorted(path.rglob("*")) if path.is_dir() else [path]:
            inside = photo.relative_to(path if path.is_dir() else path.parent)
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
            if photo.suffix.lower() in PHOTOS and photo.is_file() and not hidden:
                yield inside.as_posix(), lambda photo=photo: detector.photo(photo)
    elif suffix == ".npy":
        for i, example in enumerate(np.load(path, mmap_mode="r", allow_pickle=False)):
            yield i + 1, lambda example=example: example
    elif suffix in (".csv", ".tsv"):
        yield from rows(path, detector.preparation["columns"], "\t" if suffix == ".tsv" else None)
    else:
        raise ValueError(
            f"{path} must be a folder of photos, or end in .npy, .csv, .tsv or one of {', '.join(PHOTOS)}."
        )


def rows(path, columns, delimiter):
    """Yields `(number, function)` for every row of a table: its training columns by name, or all in order if there are no names."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        lines = csv.reader(file, delimiter=delimiter or max(",;\t|", key=first.count))
        names = next(lines)
        try:
            lines, taken = itertools.chain([[float(cell) for cell in names]], lines), range(len(names))
        except ValueError:
            if missing := [name for name in columns or names if name not in names]:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}.") from None
            taken = [names.index(name) for name in columns or names]
        for i, line in enumerate(lines):
            yield i + 1, lambda line=line: np.array([float(line[j]) for j in taken])


def main(path):
    """Prints the scores of the examples at a path; returns how many could not be read."""
    detector = Detector(Path(__file__).parent)
    out = csv.writer(sys.stdout, lineterminator="\n")
    path = Path(path)
    out.writerow(["file" if path.is_dir() or path.suffix.lower() in PHOTOS else "row", "score", "anomaly"])
    unread, found = 0, examples(detector, path)
    while some := list(itertools.islice(found, AT_ONCE)):
        names, batch = [], []
        for name, read in some:
            try:
                batch.append(read())
                names.append(name)
            except Exception as error:  # decoders raise all kinds; the next example may be readable
                unread += 1
                print(f"{name}: {error}", file=sys.stderr)
        if batch:
            for name, score in zip(names, detector.scores(np.stack(batch)), strict=True):
                out.writerow([name, f"{score:.7g}", int(score < detector.threshold)])
    return unread


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(1 if main(sys.argv[1]) else 0)

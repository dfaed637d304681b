"""Examples from a person's own files, as they are stored: a folder of images, an array, or a table."""

import collections
import dataclasses
import logging
import math
from pathlib import Path

import numpy as np

from kerasae import writing
from kerasae.data import arrays, images, reading, tables
from kerasae.data.reading import suffix

_logger = logging.getLogger(__name__)

SUFFIXES = images.SUFFIXES + tables.SUFFIXES + arrays.SUFFIXES
# Of `read`:
OPTIONS = ("image_size", "color", "array", "columns", "drop", "labels", "skip_unreadable", *reading.OPTIONS)
_MINIMUM = 10  # examples: fewer can't be split into training and test data


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples as read: `values` as stored, `(n, ...)`; `names` of the images; `labels`, integers into `classes`, or None.

    `rows` are the numbers of the examples in their file, from 1, if some were left out, else None; `levels` is `Preparation`'s; `said` is
    what was read, in words.
    """

    kind: str  # "images", "array" or "table"
    values: np.ndarray
    fingerprint: str
    names: list | None = None
    columns: list | None = None
    labels: np.ndarray | None = None
    classes: list | None = None
    rows: np.ndarray | None = None
    levels: tuple | None = None
    said: str = ""

    @property
    def weight(self):
        """The level at which what was read is logged: a warning where something was left out."""
        return logging.WARNING if "left out" in self.said else logging.INFO

    def numbers(self, indices):
        """What to call these examples: their files' names, or their numbers in the file, from 1."""
        return [
            self.names[i] if self.names else int(i) + 1 if self.rows is None else int(self.rows[i]) for i in indices
        ]


def read(
    path,
    like=None,
    image_size=None,
    color=None,
    array=None,
    columns=None,
    drop=(),
    labels=None,
    skip_unreadable=False,
    fallback_size=None,
    quiet=False,
    missing=False,
    **dialect,
):
    """Reads a folder of images, an `.npy` or `.npz` array, or a CSV, TSV or Parquet table; logs in one line what was read.

    Images are turned as their camera says, scaled so that they cover `image_size`, and cropped around the middle. Classes are the names of
    the subfolders, if all images lie in one.

    Args:
        path: of the folder or file.
        like: `Preparation` that the examples are to fit: its size, colours and columns.
        image_size: (height, width) of images. Default: their own, if all have the same.
        color: `"grey"` or `"rgb"`. Default: grey if all images are. An array of three axes that are no bytes is of series, `(n, time,
            channels)`; `"grey"` says that it is of images, `(n, height, width)`.
        array: name of an `.npz` file's array. Default: its only one.
        columns: names of a table's columns to take. Default: all but `drop` and `labels`.
        drop: names of a table's columns to leave out.
        labels: a table's column, or an `.npz` file's array, of classes.
        skip_unreadable: whether images that can't be read, rows with gaps and columns of text are left out, with a warning, instead of an
            error.
        fallback_size: `image_size` if none is given and images differ in size, or are large. Default: an error.
        quiet: whether the line is left to the caller.
        missing: whether gaps and NaN in tables and arrays are missing values, and taken as NaN.
        **dialect: of a CSV table, where what it looks like misleads: `header=False` if its first line is a row, `decimal=","`,
            `encoding="latin-1"`, `separator=";"`.

    Returns:
        `Files`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it can't be made into examples: no images, sizes that differ, text or gaps in columns, …; the message says which.

    Example:

    ```python
    from kerasae import preparation
    from kerasae.data import files

    np.save("mine.npy", np.random.default_rng(0).normal(size=(20, 5)))  # or a folder of photos, with image_size=(64, 64)
    mine = files.read("mine.npy")
    train, test = files.split(len(mine.values), test_fraction=0.1, seed=0)
    prepared = preparation.Preparation.fit(mine, train)
    x_train, x_test = (prepared.apply(mine.values[i]) for i in (train, test))
    ```
    """
    kind = check(path, image_size, color, array, columns, drop, labels, skip_unreadable, **dialect)
    path = Path(path).expanduser()
    names = taken = rows = levels = None
    if kind == "images":
        if like is not None and len(like.shape) not in (2, 3):
            raise ValueError(f"The model takes rows of {math.prod(like.shape)} numbers, not images. Received: {path}")
        values, names, fingerprint, levels, said = images.read(
            path, like, image_size, color, skip_unreadable, fallback_size
        )
        folders = [name.split("/")[0] for name in names if "/" in name]
        labels = folders if len(folders) == len(names) and len(set(folders)) > 1 else None
    else:
        if kind == "array":
            values, labels, rows, said = arrays.read(path, array, labels, skip_unreadable, missing, like, color)
        else:
            values, taken, labels, rows, said = tables.read(
                path, like, columns, drop, labels, skip_unreadable, dialect, missing
            )
            kind = "table" if taken else "array"  # lists and tensors are an array's
        fingerprint = writing.sha256(path)
    if not len(values):
        raise ValueError(f"{path} holds no examples: its shape is {values.shape}.")
    labels, classes = (None, None) if labels is None else _encode_labels(labels)
    found = Files(
        kind, values, f"sha256:{fingerprint}", names, taken, labels, classes, rows, levels, f"{path.name}: {said}"
    )
    if not quiet:
        _logger.log(found.weight, found.said)
    return found


def check(
    path, image_size=None, color=None, array=None, columns=None, drop=(), labels=None, skip_unreadable=False, **dialect
):
    """The kind of data that `read` would find, judged by names alone: `"images"`, `"array"` or `"table"`.

    Raises:
        FileNotFoundError, ValueError: as `read`, of errors that it finds before it opens a file.
    """
    named, path = path, Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {str(named)!r}.")
    if not path.is_dir():
        writing.check_regular(path)
    if path.is_dir() or suffix(path) in images.SUFFIXES:
        given = {"array": array, "columns": columns, "drop": drop, "labels": labels, **dialect}
        _refuse(given, "a folder of images", path)
        closed = []
        if path.is_dir() and not any(suffix(p) in images.SUFFIXES for p in images.walk(path, closed)):
            if closed:
                raise ValueError(
                    f"There are no images in {path}, and {closed[0].filename} can't be read: {closed[0].strerror}."
                )
            others = collections.Counter(suffix(p) or p.name for p in images.walk(path)).most_common(3)
            raise ValueError(
                f"There are no images in {path}: expected files that end in {', '.join(images.SUFFIXES)}. "
                + (
                    f"Found: {', '.join(f'{n} {end}' for end, n in others)}. Save images of other kinds as JPEG or PNG."
                    if others
                    else "It is empty."
                )
            )
        return "images"
    if suffix(path) not in SUFFIXES:
        raise ValueError(
            f"{path} must be a folder of images, or end in one of {', '.join(arrays.SUFFIXES + tables.SUFFIXES)}."
        )
    is_array = suffix(path) in arrays.SUFFIXES
    _refuse({"image_size": image_size, "color": None if is_array else color}, "a file", path)
    if suffix(path) in tables.SUFFIXES:
        _refuse({"array": array}, "a table", path)
        return "table"
    of_npz = {"array": array, "labels": labels} if suffix(path) == ".npy" else {}
    _refuse({"columns": columns, "drop": drop, **dialect, **of_npz}, suffix(path), path)
    return "array"


def split(num_examples, test_fraction, seed):
    """Indices of the training and of the test examples, both in random order; `ValueError` if there are fewer than 10."""
    if num_examples < _MINIMUM:
        raise ValueError(
            f"At least {_MINIMUM} examples are needed, to learn from and to test on. Received: {num_examples}"
        )
    order = np.random.default_rng(seed).permutation(num_examples)
    num_test = min(max(1, round(test_fraction * num_examples)), num_examples - 2)
    return order[num_test:], order[:num_test]


def _refuse(options, what, path):
    if given := [name for name, value in options.items() if value or (name == "header" and value is not None)]:
        raise ValueError(f"{given[0]!r} doesn't apply to {what}. Received: {path}")


def _encode_labels(values):
    classes, labels = np.unique(np.asarray(values).astype(str), return_inverse=True)
    if all(c.lstrip("-").isdigit() for c in classes):  # 2 before 10
        order = np.argsort(classes.astype(int))
        return np.argsort(order)[labels].astype("int64"), classes[order].tolist()
    return labels.astype("int64"), classes.tolist()

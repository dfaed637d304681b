"""Examples from a person's own files: a folder of images, an array, or a table.

`read` gives the values as they are stored, with what identifies them; `Preparation` is how they become a model's input. It is found once,
on training data, kept beside the model, and applied to whatever comes later. TensorFlow is not needed here.
"""

import collections
import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import logging
import math
import os
from pathlib import Path

import numpy as np

from kerasae import checks

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
ARRAY_SUFFIXES = (".npy", ".npz")
SUFFIXES = IMAGE_SUFFIXES + TABLE_SUFFIXES + ARRAY_SUFFIXES
OPTIONS = ("image_size", "color", "array", "columns", "drop", "labels", "skip_unreadable")  # of `read`
SCALINGS = ("auto", "none", "minmax", "standard")
COLORS = {"grey": ("L", 1), "rgb": ("RGB", 3)}
MINIMUM = 10  # examples, fewer of which can't be split into what is learned from and what is tested on
_LARGEST_SIDE = 256  # pixels; larger images are not taken as they are without being asked for
_NAMED = 5  # of many offenders, how many are named in an error


@dataclasses.dataclass(frozen=True)
class Files:
    """What was read: `values` as stored, `(n, ...)`; `names` of the images; `labels`, integers into `classes`, or None."""

    kind: str  # "images", "array" or "table"
    values: np.ndarray
    fingerprint: str
    names: list | None = None
    columns: list | None = None
    labels: np.ndarray | None = None
    classes: list | None = None


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How stored values become examples: `x = (values - offset) / scale`.

    Args:
        kind: `"images"`, `"array"` or `"table"`.
        shape: of one example.
        scaling: `"pixels"`: integers from 0 to 255 become [0, 1], and floats have to lie there; `"none"`; `"minmax"`: the training
            data's range becomes [0, 1], what is beyond is cut; or `"standard"`: mean 0 and variance 1 on the training data.
        offset, scale: one number, or one a column.
        columns: of a table, in order. Default: all it has.
    """

    kind: str
    shape: tuple
    scaling: str = "none"
    offset: tuple = (0.0,)
    scale: tuple = (1.0,)
    columns: tuple | None = None

    @classmethod
    def fit(cls, files, train, scaling="auto", unit_interval=False):
        """The preparation of examples like these.

        Args:
            files: `Files`.
            train: indices of the examples that are learned from: the others have no part in it.
            scaling: one of `SCALINGS`. `"auto"`: bytes, and images of floats in [0, 1], are pixels; other images are scaled as one, and
                tables by `"standard"`.
            unit_interval: whether the model needs [0, 1], so that `"auto"` scales a table by `"minmax"`.
        """
        checks.choice(scaling, "scaling", SCALINGS)
        values = files.values
        shape = values.shape[1:]
        is_table = len(shape) == 1
        columns = None if files.columns is None else tuple(files.columns)
        if values.dtype == np.uint8 and scaling == "auto":
            return cls(files.kind, shape, "pixels", (0.0,), (255.0,), columns)
        numbers = checks.array(values, name="data")[train].astype("float64")
        if scaling == "auto":
            if is_table:
                scaling = "minmax" if unit_interval else "standard"
            elif values.min() >= 0 and values.max() <= 1:
                return cls(files.kind, shape, "pixels", columns=columns)
            else:
                scaling = "minmax"
        axis = 0 if is_table else None  # an image's pixels share one scale
        if scaling == "none":
            offset, scale = 0.0, 1.0
        elif scaling == "minmax":
            offset, scale = numbers.min(axis), np.ptp(numbers, axis)
        else:
            offset, scale = numbers.mean(axis), numbers.std(axis)
        # A constant column stays constant.
        scale = np.where(np.asarray(scale) > 0, scale, 1.0)
        return cls(files.kind, shape, scaling, _numbers(offset), _numbers(scale), columns)

    @classmethod
    def of_model(cls, input_shape):
        """For a model of which nothing else is known: images are pixels, tables are taken as they are."""
        shape = tuple(input_shape)
        if None in shape:
            raise ValueError(
                f"The model takes examples of any size, {shape}: pass them as an .npy file of examples of one size."
            )
        return cls("table", shape) if len(shape) == 1 else cls("images", shape, "pixels", (0.0,), (255.0,))

    @classmethod
    def from_dict(cls, values):
        """From what `to_dict` gave."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def to_dict(self):
        """For a JSON file."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def apply(self, values):
        """Examples, float32 of `(n, *shape)`.

        Raises:
            ValueError: on another shape, and on floats outside [0, 1] where pixels are expected.
        """
        if math.prod(values.shape[1:]) == math.prod(self.shape) and values.ndim <= 2:
            values = values.reshape(-1, *self.shape)  # images in rows, as tables hold them
        values = checks.array(values, self.shape, name="data")
        if self.scaling == "pixels" or (self.kind == "images" and values.dtype == np.uint8):
            if values.dtype == np.uint8:
                return values / np.float32(255)
            low, high = float(values.min()), float(values.max())
            if low < 0 or high > 1:
                raise ValueError(
                    f"Pixels must be bytes of 0 to 255, or floats in [0, 1]. Received {values.dtype} from {low:g} to {high:g}."
                )
            return values.astype("float32")
        offset, scale = np.asarray(self.offset), np.asarray(self.scale)
        # Subtracted in float64: columns such as years and timestamps have large offsets.
        x = ((values - offset) / scale).astype("float32")
        return np.clip(x, 0, 1, out=x) if self.scaling == "minmax" else x

    def invert(self, x):
        """Values in the units of the files; pixels stay in [0, 1]."""
        if self.scaling in ("pixels", "none"):
            return np.asarray(x)
        # Of a table in float64: columns such as timestamps need its digits.
        return (x * np.asarray(self.scale) + np.asarray(self.offset)).astype(
            "float64" if len(x.shape) == 2 else "float32"
        )

    def describe(self):
        """In words."""
        ways = {
            "pixels": "pixels in [0, 1]" if self.scale == (1.0,) else "pixels of 0 to 255 scaled to [0, 1]",
            "none": "values as they are",
            "minmax": f"{'each column' if len(self.scale) > 1 else 'values'} scaled to [0, 1] by the training data's range",
            "standard": f"{'each column' if len(self.scale) > 1 else 'values'} scaled to mean 0 and variance 1 on the training data",
        }
        what = {"images": "images", "array": "arrays", "table": "rows"}[self.kind]
        return f"{what} of shape {self.shape}, {ways[self.scaling]}"


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
):
    """Reads a folder of images, an `.npy` or `.npz` array, or a CSV, TSV or Parquet table.

    Images are turned as their camera says, scaled so that they cover `image_size`, and cropped around the middle. Classes are the names of
    the folder's subfolders, where all images lie in one.

    Args:
        path: of the folder or file.
        like: `Preparation` that the examples are to fit: its size, colours and columns.
        image_size: (height, width) of images. Default: their own, where all have the same.
        color: `"grey"` or `"rgb"`. Default: grey if all images are.
        array: name of an `.npz` file's array. Default: its only one.
        columns: names of a table's columns to take. Default: all but `drop` and `labels`.
        drop: names of a table's columns to leave out.
        labels: a table's column, or an `.npz` file's array, of classes.
        skip_unreadable: whether images that can't be read are left out, with a warning, instead of an error.
        fallback_size: (height, width) where images have different sizes or a large one, and nothing says which to take. Default: an error.

    Returns:
        `Files`.

    Raises:
        FileNotFoundError: where there is no such file or folder.
        ValueError: on whatever can't be made into examples: no images, sizes that differ, text or gaps in columns, …; the message names it.

    Example:

    ```python
    from kerasae import files

    np.save("mine.npy", np.random.default_rng(0).normal(size=(20, 5)))  # or a folder of photos, with image_size=(64, 64)
    mine = files.read("mine.npy")
    train, test = files.split(len(mine.values), test_fraction=0.1, seed=0)
    preparation = files.Preparation.fit(mine, train)
    x_train, x_test = (preparation.apply(mine.values[i]) for i in (train, test))
    ```
    """
    kind = check(path, image_size, color, array, columns, drop, labels, skip_unreadable)
    path = Path(path).expanduser()
    if kind == "array":
        return _array(path, array, labels)
    if kind == "table":
        return _table(path, like, columns, drop, labels)
    if like is not None and len(like.shape) not in (2, 3):
        raise ValueError(f"The model takes rows of {math.prod(like.shape)} numbers, not images. Received: {path}")
    return _images(path, like, image_size, color, skip_unreadable, fallback_size)


def check(path, image_size=None, color=None, array=None, columns=None, drop=(), labels=None, skip_unreadable=False):
    """What `read` would take a path for, by names alone: `"images"`, `"array"` or `"table"`.

    Raises:
        FileNotFoundError, ValueError: what `read` would raise before it opens any file.
    """
    named, path = path, Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {str(named)!r}.")
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        _refuse({"array": array, "columns": columns, "drop": drop, "labels": labels}, "a folder of images", path)
        if path.is_dir() and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in _walk(path)):
            others = collections.Counter(p.suffix.lower() or p.name for p in _walk(path)).most_common(3)
            raise ValueError(
                f"There are no images in {path}: expected files that end in {', '.join(IMAGE_SUFFIXES)}. "
                + ("Found: " + ", ".join(f"{n} {suffix}" for suffix, n in others) if others else "It is empty.")
            )
        return "images"
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path} must be a folder of images, or end in one of {', '.join(ARRAY_SUFFIXES + TABLE_SUFFIXES)}."
        )
    _refuse({"image_size": image_size, "color": color, "skip_unreadable": skip_unreadable}, "a file", path)
    if suffix in TABLE_SUFFIXES:
        _refuse({"array": array}, "a table", path)
        return "table"
    of_npz = {"array": array, "labels": labels} if suffix == ".npy" else {}
    _refuse({"columns": columns, "drop": drop, **of_npz}, suffix, path)
    return "array"


def split(num_examples, test_fraction, seed):
    """Indices of the training and of the test examples, both in random order.

    Raises:
        ValueError: where there are too few examples.
    """
    if num_examples < MINIMUM:
        raise ValueError(
            f"At least {MINIMUM} examples are needed, to learn from and to test on. Received: {num_examples}"
        )
    order = np.random.default_rng(seed).permutation(num_examples)
    num_test = min(max(1, round(test_fraction * num_examples)), num_examples - 2)
    return order[num_test:], order[:num_test]


def _refuse(options, what, path):
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"{given[0]!r} doesn't apply to {what}. Received: {path}")


def _numbers(values):
    return tuple(float(v) for v in np.atleast_1d(values))


def _listed(items):
    items = list(items)
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(map(str, items[:_NAMED])) + more


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode_labels(values):
    classes, labels = np.unique(np.asarray(values).astype(str), return_inverse=True)
    if all(c.lstrip("-").isdigit() for c in classes):  # 2 before 10
        order = np.argsort(classes.astype(int))
        return np.argsort(order)[labels].astype("int64"), classes[order].tolist()
    return labels.astype("int64"), classes.tolist()


# images


def _images(path, like, image_size, color, skip_unreadable, fallback_size):
    root = path if path.is_dir() else path.parent
    found = sorted(_walk(path)) if path.is_dir() else [path]
    paths = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES]
    headers, unreadable = {}, {}
    for p in paths:
        try:
            headers[p] = _header(p)
        except Exception as error:  # Pillow's decoders raise what they like
            unreadable[p] = _reason(error)
    _report_unreadable(unreadable, root, skip_unreadable, bool(headers))
    if like is not None:
        shape = like.shape if len(like.shape) == 3 else (*like.shape, 1)
        image_size, color = shape[:2], {1: "grey", 3: "rgb"}.get(shape[2])
        if color is None:
            raise ValueError(f"The model takes examples of shape {like.shape}, and images have 1 or 3 channels.")
    color = color or ("grey" if all(grey for _, grey in headers.values()) else "rgb")
    mode, channels = COLORS[checks.choice(color, "color", COLORS)]
    if image_size is None:
        image_size = _common_size([size for size, _ in headers.values()], path, fallback_size)
    height, width = checks.positive_ints(image_size, "image_size")
    check_memory((len(headers), height, width, channels), np.uint8, path)
    values = np.empty((len(headers), height, width, channels), np.uint8)
    digests = [None] * len(headers)

    def decode(i, p):
        content = p.read_bytes()
        digests[i] = hashlib.sha256(content).hexdigest()
        values[i] = _pixels(content, (width, height), mode)

    from tqdm import tqdm

    # Pillow decodes without the interpreter's lock.
    with (
        concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(headers), desc="reading images", unit=" images", leave=False, disable=None, delay=1) as progress,
    ):
        tasks = {pool.submit(decode, i, p): p for i, p in enumerate(headers)}
        for task in concurrent.futures.as_completed(tasks):
            if (error := task.exception()) is not None:
                unreadable[tasks[task]] = _reason(error)
            progress.update()
    kept = [i for i, p in enumerate(headers) if p not in unreadable]
    _report_unreadable({p: unreadable[p] for p in headers if p in unreadable}, root, skip_unreadable, bool(kept))
    names = [p.relative_to(root).as_posix() for p in headers]
    if len(kept) < len(names):
        values, names, digests = values[kept], [names[i] for i in kept], [digests[i] for i in kept]
    fingerprint = hashlib.sha256("\n".join(f"{d} {n}" for d, n in zip(digests, names, strict=True)).encode())
    folders = [n.split("/")[0] if "/" in n else None for n in names]
    labels = classes = None
    if None not in folders and len(set(folders)) > 1:
        labels, classes = _encode_labels(folders)
    return Files("images", values, f"sha256:{fingerprint.hexdigest()}", names, None, labels, classes)


def _walk(folder):
    """The folder's files at every depth, without what systems hide in there."""
    for p in folder.rglob("*"):
        if not any(part.startswith(".") or part == "__MACOSX" for part in p.relative_to(folder).parts) and p.is_file():
            yield p


def _header(path):
    """((height, width) as seen, whether the image is grey)."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # its orientation lies it on its side
            width, height = height, width
        return (height, width), image.mode in ("1", "L", "LA") or image.mode.startswith("I")


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


def _reason(error):
    return "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error) or type(error).__name__


def _report_unreadable(unreadable, root, skip, any_left):
    if not unreadable:
        return
    named = _listed(f"{p.relative_to(root).as_posix()} ({reason})" for p, reason in unreadable.items())
    message = f"{len(unreadable)} of the images can't be read: {named}."
    if not skip or not any_left:
        raise ValueError(f"{message} Remove them, or leave them out with skip_unreadable (--skip-unreadable).")
    _logger.warning("%s They are left out.", message)


def _common_size(sizes, path, fallback):
    counts = collections.Counter(sizes)
    (small, *_), (*_, large) = (sorted(counts, key=math.prod) for _ in range(2))
    if small == large and max(small) <= _LARGEST_SIDE:
        return small
    few = f"{small[1]}x{small[0]}"
    have = (
        f"{few} pixels"
        if small == large
        else f"{len(counts)} different sizes, from {few} to {large[1]}x{large[0]} pixels"
    )
    if fallback is not None:
        _logger.info("The images have %s: scaled to cover %dx%d and cropped around the middle.", have, *fallback[::-1])
        return fallback
    large = ", which is large for an autoencoder" if small == large else ""
    raise ValueError(
        f"The images in {path} have {have}{large}. Pass image_size (--image-size 64): images are then scaled to cover it and cropped "
        "around the middle."
    )


def check_memory(shape, dtype, path, copies=1):
    """Raises where so many copies of an array would not fit into the memory that is free, before it is filled."""
    needed = copies * math.prod(shape) * np.dtype(dtype).itemsize
    try:
        import psutil

        free = psutil.virtual_memory().available
    except ImportError:
        return
    if needed > free:
        raise ValueError(
            f"{path} takes {needed / 2**30:.1f} GiB of memory as {shape[0]:,} examples of {tuple(shape[1:])}, and "
            f"{free / 2**30:.1f} GiB are free. Take smaller images (--image-size), fewer columns, or fewer examples."
        )


# arrays


def _array(path, name, labels):
    try:
        # Not read until it is needed; never unpickled, which could run code.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} can't be read as a NumPy file of numbers: {error}") from error
    classes = None
    if path.suffix.lower() == ".npz":
        with stored:
            others = [n for n in stored.files if n != labels]
            if name is None and len(others) != 1:
                raise ValueError(f"{path} holds the arrays {stored.files}: choose one with array (--array).")
            name = checks.choice(name or others[0], "array", stored.files)
            try:
                stored, labels = (
                    stored[name],
                    None if labels is None else stored[checks.choice(labels, "labels", stored.files)],
                )
            except ValueError as error:
                raise ValueError(f"{path} can't be read: {error}") from error
    values = stored
    if values.dtype == bool:
        values = values.astype("float32")
    if values.ndim < 2:
        raise ValueError(
            f"{path} must hold examples, (n, features) or (n, height, width[, channels]). Received: {values.shape}"
        )
    if values.ndim == 3:
        values = values[..., None]  # grey images
    if values.ndim == 4 and values.shape[1] in (1, 3) and values.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{path} holds images of shape {values.shape[1:]}, channels first. Expected (height, width, channels): x.transpose(0, 2, 3, 1)."
        )
    if labels is not None:
        if np.shape(labels) != (len(values),):
            raise ValueError(
                f"labels must hold one class an example, {len(values)}. Received shape: {np.shape(labels)}"
            )
        labels, classes = _encode_labels(labels)
    return Files("array", values, f"sha256:{_digest(path)}", labels=labels, classes=classes)


# tables


def _table(path, like, columns, drop, labels):
    table = _arrow(path)
    names = table.column_names
    if repeated := [name for name, n in collections.Counter(names).items() if n > 1]:
        raise ValueError(f"Columns of {path} share a name: {_listed(repeated)}.")
    for name in [*(columns or []), *drop, *([labels] if labels else [])]:
        checks.choice(name, f"column of {path.name}", names)
    if like is not None and like.columns is not None:
        if missing := [c for c in like.columns if c not in names]:
            raise ValueError(
                f"{path} lacks columns that the model was trained on: {_listed(missing)}. It has: {_listed(names)}"
            )
        columns = like.columns
    taken = [c for c in (columns or names) if c not in drop and c != labels]
    if not taken:
        raise ValueError(f"No column of {path} is left.")
    check_memory((table.num_rows, len(taken)), "float64", path)
    values = np.empty((table.num_rows, len(taken)), "float64")
    text, gaps = [], []
    for i, name in enumerate(taken):
        values[:, i] = _column(table, name, text, gaps)
    if text:
        raise ValueError(
            f"Columns of {path} hold no numbers: {_listed(text)}. "
            "Leave them out with drop (--drop NAME), or name one with labels (--labels NAME)."
        )
    if gaps:
        raise ValueError(
            f"Columns of {path} have gaps or NaN: {_listed(gaps)}. Fill or remove them first, or leave the columns out."
        )
    classes = None
    if labels:
        labels, classes = _encode_labels(table[labels].to_pylist())
    return Files("table", values, f"sha256:{_digest(path)}", None, taken, labels if classes else None, classes)


def _arrow(path):
    import pyarrow
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        delimiter, header = _dialect(path)
        options = {
            "read_options": arrow_csv.ReadOptions(autogenerate_column_names=not header),
            "parse_options": arrow_csv.ParseOptions(delimiter=delimiter),
        }
        table = arrow_csv.read_csv(path, **options)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as a table: {str(error).splitlines()[0]}") from error
    if table.num_rows == 0:
        raise ValueError(f"{path} has no rows.")
    return table


def _dialect(path):
    """The delimiter, and whether the first line names the columns."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
    if not first.strip():
        raise ValueError(f"{path} is empty, or its first line is.")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    cells = next(csv.reader([first], delimiter=delimiter))
    return delimiter, not all(map(_is_number, cells))


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(table, name, text, gaps):
    """A column as float64; what is wrong with it is added to `text` or `gaps`."""
    import pyarrow as pa

    column = table[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        if column.null_count == len(column):
            gaps.append(f"{name!r} (all {len(column)} rows)")
        else:
            example = next(
                (v for v in column.to_pylist() if v is not None and not _is_number(str(v))), "numbers as text"
            )
            text.append(f"{name!r} ({str(example)[:30]!r})")
        return np.nan
    values = column.cast(pa.float64()).to_numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        gaps.append(f"{name!r} ({len(bad)} of {len(values)} rows, first row {bad[0] + 1})")
    return values

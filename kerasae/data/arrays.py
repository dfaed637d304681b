"""An array from an `.npy` or `.npz` file."""

from pathlib import Path

import numpy as np

from kerasae import checks, untrusted

SUFFIXES = (".npy", ".npz")

_ROWS_AT_ONCE = 4096


def stored(path, name=None, labels=None):
    """`(array, labels or None, the array's name or None)` as they stand in the file; arguments as in `kerasae.data.files.read`."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        return untrusted.array(path), None, None
    archive = untrusted.Archive(path)
    others = [n for n in archive.names if n != labels]
    if name is None and len(others) != 1:
        raise ValueError(f"{path} holds the arrays {archive.names}: choose one with array (--array).")
    name = checks.choice(name or others[0], "array", archive.names)
    labels = labels and checks.choice(labels, "labels", archive.names)
    for wanted in filter(None, (name, labels)):
        shape, dtype = archive.shape(wanted)
        checks.memory(shape or (1,), dtype, path)
    return archive[name], labels and archive[labels], name


def read(path, name, labels, skip_unreadable=False, missing=False, like=None, color=None):
    """Examples, and their labels or None; arguments as in `kerasae.data.files.read`.

    Of three axes, bytes are grey images, and other numbers series, `(n, time, channels)`, unless `like` or `color="grey"` says otherwise.

    Returns:
        `(values, labels, rows, said)`: numbers of `(n, features)`, `(n, time, channels)` or `(n, height, width, channels)`; one class per
        example; the numbers of the examples, from 1, where some are left out, or None; and what was read, in words.
    """
    values, labels, name = stored(path, name, labels)
    if values.dtype.kind not in "buif" and "float" not in values.dtype.name:
        raise ValueError(f"{path} must hold numbers. Received: {values.dtype}")
    if values.dtype == bool:
        values = values.astype("float32")
    if values.ndim < 2:
        raise ValueError(
            f"{path} must hold examples, (n, features), (n, time, channels) or (n, height, width[, channels]). Received: {values.shape}"
        )
    if color is not None and (color != "grey" or values.ndim not in (3, 4) or values.shape[3:] not in ((), (1,))):
        raise ValueError(
            f'Of arrays, color="grey" (--color grey) says that (n, height, width) are images. Received color={color!r}, and {values.shape}.'
        )
    if values.ndim == 3:
        are_images = color == "grey" or values.dtype == np.uint8 if like is None else len(like.shape) == 3
        values = values[..., None] if are_images else values
    if values.ndim == 4 and values.shape[1] in (1, 3) and values.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{path} holds images of shape {values.shape[1:]}, channels first. Expected (height, width, channels): x.transpose(0, 2, 3, 1)."
        )
    if labels is not None and np.shape(labels) != (len(values),):
        raise ValueError(f"labels must hold one class per example, {len(values)}. Received shape: {np.shape(labels)}")
    rows, kind = None, "pixels" if values.ndim > 3 else "numbers"
    said = f"{len(values):,} examples of shape {values.shape[1:]}, {kind} in {values.dtype}"
    if values.ndim == 3:
        said = f"{len(values):,} series of {values.shape[1]} steps and {values.shape[2]} channels, {kind} in {values.dtype}"
        if color is None and like is None:
            said += ' (if they are grey images: color="grey", --color grey)'
    said += f", array {name!r}" if name else ""
    finite = _finite(values, missing)
    if missing and (gaps := int(np.isnan(values[finite]).sum())):
        said += f", {gaps:,} missing values"
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0]) + 1
        if not skip_unreadable or not finite.any():
            raise ValueError(
                f"{path} holds NaN or infinity in {(~finite).sum():,} of {len(values):,} examples, first in example {first}. Fill them, or "
                "leave them out with skip_unreadable (--skip-unreadable)."
            )
        rows = np.flatnonzero(finite) + 1
        said += f", left out {len(values) - len(rows):,} with NaN or infinity, the first: example {first}"
        values, labels = values[finite], None if labels is None else labels[finite]
    return values, labels, rows, said


def _finite(values, missing):
    """Which examples hold finite numbers alone, or `missing` ones."""
    if values.dtype.kind in "iu":
        return np.ones(len(values), bool)
    parts = (values[i : i + _ROWS_AT_ONCE].reshape(-1, values[0].size) for i in range(0, len(values), _ROWS_AT_ONCE))
    return np.concatenate(
        [(~np.isinf(rows) if missing else np.isfinite(rows)).all(axis=1) for rows in parts] or [np.ones(0, bool)]
    )

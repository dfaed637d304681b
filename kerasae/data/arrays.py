"""An array from an `.npy` or `.npz` file."""

import numpy as np

from kerasae import checks

SUFFIXES = (".npy", ".npz")


def read(path, name, labels):
    """Examples, and their labels or None; arguments as in `kerasae.data.files.read`.

    Returns:
        `(values, labels)`: numbers of `(n, features)` or `(n, height, width, channels)`, and one class per example.
    """
    try:
        # Not read until it is needed; never unpickled, which could run code.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} can't be read as a NumPy file of numbers: {error}") from error
    if path.suffix.lower() == ".npz":
        with stored:
            others = [n for n in stored.files if n != labels]
            if name is None and len(others) != 1:
                raise ValueError(f"{path} holds the arrays {stored.files}: choose one with array (--array).")
            name = checks.choice(name or others[0], "array", stored.files)
            labels = labels and checks.choice(labels, "labels", stored.files)
            try:
                stored, labels = stored[name], labels and stored[labels]
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
    if labels is not None and np.shape(labels) != (len(values),):
        raise ValueError(f"labels must hold one class per example, {len(values)}. Received shape: {np.shape(labels)}")
    return values, labels

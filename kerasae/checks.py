"""Checks of arguments: each raises a `ValueError` that names the expected and the received value and, if it can, the way out."""

import difflib
import logging
import math
import numbers
import os

import numpy as np

_logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 4096
_LARGEST = float(np.finfo("float32").max)


def positive_int(value, name):
    """Returns `value` as an int; raises unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1. Received: {value!r}")
    return int(value)


def steps(arguments):
    """Checks sizes and numbers of batches in the dict of a call's arguments, and makes them ints; None means Keras's default."""
    for name in ("batch_size", "validation_batch_size", "steps", "steps_per_epoch", "validation_steps"):
        if arguments.get(name) is not None:
            arguments[name] = positive_int(arguments[name], name)


def fit_arguments(arguments):
    """Checks what `fit` is given besides data, and would go wrong in silence, or in the middle."""
    steps(arguments)
    fraction = arguments.get("validation_split")
    if fraction is not None and real_number(fraction, "validation_split", minimum=0) >= 1:
        raise ValueError(
            f"`validation_split` must lie in [0, 1): the share of the examples to hold out. Received: {fraction}"
        )
    if arguments.get("class_weight") is not None:
        raise ValueError(
            "`class_weight` weighs by labels, and an autoencoder has none. Pass `sample_weight`, one per example."
        )


def positive_ints(values, name):
    """Returns `values` as a tuple of ints, each at least 1, which may be empty; raises on anything else."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"`{name}` must be a tuple of whole numbers. Received: {values!r}")
    return tuple(positive_int(value, f"{name}[{i}]") for i, value in enumerate(values))


def real_number(value, name, minimum=None, maximum=None, exclusive=False):
    """Returns `value` as a float within [minimum, maximum], or strictly above `minimum` if `exclusive`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and np.isfinite(value):
        above = minimum is None or (value > minimum if exclusive else value >= minimum)
        if above and (maximum is None or value <= maximum):
            return float(value)
    bounds = [] if minimum is None else [f" {'above' if exclusive else 'of at least'} {minimum:g}"]
    bounds += [] if maximum is None else [f" {'of ' if not bounds else ''}at most {maximum:g}"]
    raise ValueError(f"`{name}` must be a finite number{' and'.join(bounds)}. Received: {value!r}")


def choice(value, name, options):
    """Returns `value` if it is one of `options`; otherwise raises and suggests the nearest option."""
    options = list(options)
    if isinstance(value, str) and value in options:
        return value
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`{name}` must be one of {options}. Received: {value!r}.{hint}")


def feature_shape(shape, name="input_shape"):
    """Returns the shape of one example, without the batch, as a tuple of ints. An int `d` means `(d,)`."""
    if isinstance(shape, numbers.Integral) and not isinstance(shape, bool):
        shape = (shape,)
    shape = positive_ints(shape, name)
    if not shape:
        raise ValueError(f"`{name}` must have at least one dimension, without the batch. Received: ()")
    return shape


def shapes_match(expected, received):
    """True if two shapes agree; `None` agrees with any size."""
    return len(expected) == len(received) and all(
        a is None or b is None or a == b for a, b in zip(expected, received, strict=True)
    )


def array(values, shape=None, name="x", unit_interval=False, missing=False, padding=None):
    """Returns `values` as a numeric array of finite examples.

    Args:
        values: array-like, batch first.
        shape: the shape of one example, without the batch; `None` entries accept any size. Default: the shape is not checked.
        name: its name in error messages.
        unit_interval: whether values must lie in [0, 1], as a Bernoulli likelihood needs.
        missing: whether NaN is taken, as a missing value; infinity is not.
        padding: a value that may stand anywhere, in [0, 1] or not.

    Returns:
        The array; memory is copied only if `values` was not an array.

    Raises:
        ValueError: on a wrong rank, shape or dtype, no examples, NaN or infinity, or values outside [0, 1].
    """
    try:
        values = np.asarray(plain(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers. Received: {type(values)}") from error
    if values.dtype == bool or values.dtype.kind not in "iuf":
        # ml_dtypes such as bfloat16 are kind "V" in NumPy but convert exactly.
        if values.dtype == bool or "float" in values.dtype.name:
            values = values.astype("float32")
        else:
            raise ValueError(f"`{name}` must hold real numbers. Received dtype: {values.dtype}")
    if shape is not None and not shapes_match(tuple(shape), values.shape[1:]):
        expected = ", ".join(["batch", *("any" if size is None else str(size) for size in shape)])
        hint = ""
        if len(values.shape) == len(shape) and shapes_match(tuple(shape), values.shape):
            hint = " One example needs a batch dimension: pass x[None]."
        elif tuple(shape)[-1:] == (1,) and shapes_match(tuple(shape)[:-1], values.shape[1:]):
            hint = " Add the channel dimension: pass x[..., None]."
        raise ValueError(f"`{name}` must have shape ({expected}). Received: {values.shape}.{hint}")
    if values.shape == () or len(values) == 0 or values.size == 0:
        raise ValueError(f"`{name}` is empty: its shape is {values.shape}.")
    for start in range(0, len(values), _ROWS_AT_ONCE):
        _check_values(values[start : start + _ROWS_AT_ONCE], name, unit_interval, start, missing, padding)
    return values


def padded(examples, shape, name="x", value=0.0):
    """Sequences of different lengths as one array, `(n, steps, ...)`, each followed by `value` up to as many steps as `shape` has.

    Args:
        examples: a list of arrays, `(length, ...)` each.
        shape: of one example, `(steps, ...)`.
        name: as in `array`.
        value: of the padding.

    Raises:
        ValueError: where an example has another shape, or is longer.
    """
    examples = [np.asarray(example) for example in examples]
    if shape[0] is None:
        shape = max((len(example) for example in examples if example.ndim), default=1), *shape[1:]
    for i, example in enumerate(examples):
        if not shapes_match((None, *shape[1:]), example.shape) or len(example) > shape[0]:
            expected = ", ".join(["length", *map(str, shape[1:])])
            raise ValueError(
                f"`{name}` must be sequences of shape ({expected}), of at most {shape[0]} steps. Received, in example {i}: {example.shape}"
            )
    dtype = np.result_type("float32", *examples) if examples and np.asarray(value).dtype.kind == "f" else None
    filled = np.full((len(examples), *shape), value, dtype or np.result_type(*examples) if examples else "float32")
    for row, example in zip(filled, examples, strict=True):
        row[: len(example)] = example
    return filled


def plain(values):
    """A masked array, or a pandas object of numbers, booleans and their nullable types, as an array, with NaN for what is missing."""
    if isinstance(values, np.ma.MaskedArray):
        return (
            values.astype(np.result_type(values.dtype, "float32")).filled(np.nan) if values.mask.any() else values.data
        )
    kinds = getattr(values, "dtypes", None)
    if hasattr(values, "iloc") and all(
        getattr(kind, "kind", "O") in "iufb" for kind in getattr(kinds, "values", [kinds])
    ):
        array = np.asarray(values)
        return values.to_numpy("float64", na_value=np.nan) if array.dtype == object else array
    return values


def by_columns(values, columns, name):
    """A data frame's columns in the order of `columns`, by their names; what names no columns, or is to have none, as it is.

    Raises:
        ValueError: if some are missing; further ones are left out, which is logged.
    """
    names = getattr(values, "columns", None)
    if names is None or columns is None or not all(isinstance(column, str) for column in names):
        return values
    if missing := [column for column in columns if column not in names]:
        raise ValueError(
            f"`{name}` lacks columns that the model was trained on: {listed(missing, 20)}. It has: {listed(names, 20)}"
        )
    if others := [column for column in names if column not in columns]:
        _logger.warning("`%s`: left out, as the model was not trained on them: %s", name, listed(others, 20))
    return values[list(columns)]


def not_negative(values, name):
    """Raises where one is below 0."""
    if values.min() < 0:
        raise ValueError(f"`{name}` must hold numbers of at least 0. Received: {values.min():g}")


# Noise takes an example in [0, 1] a little above; this far, with nothing below 0, it is of 8 bits.
CLEARLY_ABOVE_1 = 2.0


def no_bytes(values, name):
    """Raises on what looks like 8-bit images, where a model takes them in [0, 1]."""
    low, high = np.nanmin(values), np.nanmax(values)
    if low >= 0 and CLEARLY_ABOVE_1 < high <= 255:
        raise ValueError(
            f"`{name}` goes from {low:g} to {high:g}, as 8-bit images do, and this model was made for values in [0, 1]. Divide by 255. "
            "(A model that was fitted to such x, with targets y, does encode it: model.encoder.predict(x).)"
        )


def in_order(values, names, name="x"):
    """Returns the values of several inputs as a list, given a list, a tuple, or a dict by name (whose other entries are ignored)."""
    if isinstance(values, dict) and set(names) <= set(values):
        return [values[key] for key in names]
    if isinstance(values, (list, tuple)) and len(values) == len(names):
        return list(values)
    received = f"a dict with {sorted(values)}" if isinstance(values, dict) else type(values).__name__
    received += f" of {len(values)}" if isinstance(values, (list, tuple)) else ""
    raise ValueError(
        f"`{name}` must be a list, or a dict by name, of the {len(names)} inputs that the encoder takes: {list(names)}. A dataset must "
        f"give them as one item, a dict or ((first, second),): in (first, second), the second is the target. Received: {received}"
    )


def inputs(values, shapes, name="x", unit_interval=False, missing=False):
    """Returns the values of several inputs as a list of arrays, each checked by `array`.

    Args:
        values: a list or tuple of arrays, or a dict by name.
        shapes: `{name of an input: shape of one example}`, in order.
        name: as in `array`.
        unit_interval, missing: as in `array`, for the first input.

    Raises:
        ValueError: as in `array`, naming the input; or if inputs are missing or hold different numbers of examples.
    """
    values = in_order(values, list(shapes), name)
    arrays = [
        array(entry, shape, f"{name}, input {key!r}", unit_interval and i == 0, missing and i == 0)
        for i, (entry, (key, shape)) in enumerate(zip(values, shapes.items(), strict=True))
    ]
    lengths = {key: len(entry) for key, entry in zip(shapes, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All inputs in `{name}` must hold the same number of examples. Received: {lengths}")
    return arrays


def memory(shape, dtype, what, copies=1, more=0):
    """Raises, before any is made, if so many copies of an array, and `more` bytes, would not fit into the free memory.

    `what` names the array.
    """
    needed = copies * math.prod(shape) * np.dtype(dtype).itemsize + more
    what = f"{what} takes {needed / 2**30:.1f} GiB of memory as {shape[0]:,} examples of {tuple(shape[1:])}"
    fits(needed, what, "Take smaller images (--image-size), fewer columns, or fewer examples.")


def fits(needed, what, instead):
    """Raises where so many bytes are not free; `what` takes them, in a message that ends with what to do `instead`."""
    try:
        import psutil

        free = psutil.virtual_memory().available
    except ImportError:
        if not hasattr(os, "sysconf"):
            return
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all there is
    if needed > free:
        raise ValueError(f"{what}, and {free / 2**30:.1f} GiB are free. {instead}")


def listed(items, most=5):
    """The first of many items and the number of the others, for a message."""
    items = list(map(str, items))
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def in_float32(values, name):
    """Raises where numbers, of which some may be NaN, are beyond float32."""
    if values.dtype == np.float64 and not np.isnan(values).all():
        _in_float32(np.nanmin(values), np.nanmax(values), name)


def _in_float32(low, high, name):
    if max(-low, high) > _LARGEST:
        raise ValueError(
            f"`{name}` holds values up to {max(-low, high):g}, and float32, in which models compute, ends at {_LARGEST:g}. Scale them."
        )


def _check_values(rows, name, unit_interval, start, missing, padding=None):
    if padding is not None:
        rows = np.where(rows == padding, 0, rows)
    if missing and rows.dtype.kind == "f":
        rows = np.where(np.isnan(rows), 0, rows)
    low, high = float(rows.min()), float(rows.max())  # NaN if any entry is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = np.argwhere(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0, 0]
        raise ValueError(
            f"`{name}` holds NaN or infinity, first in example {start + bad}. Remove or impute such values first."
        )
    _in_float32(low, high, name)
    if unit_interval and (low < 0 or high > 1):
        hint = " Divide 8-bit images by 255." if high > 1 and low >= 0 and high <= 255 else ""
        raise ValueError(
            f"`{name}` must lie in [0, 1], as probabilities do, for a cross-entropy (Bernoulli) loss. "
            f"Received values from {low:g} to {high:g}.{hint}"
        )

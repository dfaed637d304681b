"""Codes and scores of examples that come in batches, more of them than memory holds."""

import itertools
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasae import writing
from kerasae.models import Autoencoder


def encode(model, batches, total=None, verbose=1):
    """The codes of a stream of examples, as `model.encode` gives those of an array, in the memory of a few batches.

    Args:
        model: kerasae model.
        batches: a `tf.data.Dataset`, `keras.utils.PyDataset`, generator or other iterable, perhaps endless, of batches of any sizes,
            `(batch, *input_shape)` each. Of a tuple, such as `(x, labels)`, the first entry is taken.
        total: number of examples, for the progress bar. Default: unknown.
        verbose: 1 for a progress bar, 0 for none.

    Returns:
        A generator of NumPy arrays, `(batch, latent_dim)`. Nothing is read before the first is asked for.

    Raises:
        ValueError: at once, if `model` is not one or `batches` is an array; later, at a batch that the model does not take.

    Example:

    ```python
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=2)
    batches = kerasae.data.stream("digits", "train", batch_size=256)
    for z in kerasae.streams.encode(model, batches):
        print(z.shape)
    kerasae.streams.write(kerasae.streams.encode(model, batches), "codes.npy")
    ```
    """
    _check(model, batches)
    return _mapped(model, "encode", batches, total, verbose)


def score(model, batches, total=None, verbose=1):
    """How badly each example of a stream is reconstructed, in the memory of a few batches.

    The reconstruction loss, summed over features; of a variational model the negative ELBO at z = z_mean, in nats, without a beta. The
    `score` of an exported bundle gives the same.

    Args:
        model: kerasae model.
        batches: as in `encode`; in [0, 1] for a model with a cross-entropy.
        total, verbose: as in `encode`.

    Returns:
        A generator of NumPy float32 arrays, `(batch,)`; higher is less like the training data.

    Raises:
        ValueError: as `encode`.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=2)
    batches = (x_test[start : start + 100] for start in range(0, len(x_test), 100))
    worst = max(scores.max() for scores in kerasae.streams.score(model, batches))
    ```
    """
    _check(model, batches)
    return _mapped(model, "score", batches, total, verbose, unit_interval=model.needs_unit_interval)


def write(arrays, path):
    """Writes a stream of arrays into one `.npy` file, which `numpy.load(path, mmap_mode="r")` opens without reading it.

    The file appears when it is whole; until then a temporary one grows beside it.

    Args:
        arrays: iterable of arrays, `(batch, ...)`, that differ in the batch only, such as the result of `encode`.
        path: of the file, ending in `.npy`; replaced if it exists.

    Returns:
        Number of rows.

    Raises:
        ValueError: if the path does not end in `.npy`, there are no arrays, or one has another shape or type than the first.
        OSError: if the file can't be written.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise ValueError(f"`path` must end in .npy. Received: {str(path)!r}")
    rows, form, start = 0, None, None
    with writing.file(path) as beside, beside.open("xb") as file:
        for array in map(np.ascontiguousarray, arrays):
            if form is None:
                form = array.shape[1:], array.dtype
                # NumPy's header keeps room for the first axis to grow.
                _write_header(file, 0, *form)
                start = file.tell()
            if (array.shape[1:], array.dtype) != form:
                raise ValueError(
                    f"All arrays must be rows of shape {form[0]} in {form[1]}, as the first. Received {array.shape[1:]} in {array.dtype} "
                    f"after {rows} rows."
                )
            file.write(array.data)
            rows += len(array)
        if form is None:
            raise ValueError("There is nothing to write: no array came.")
        file.seek(0)
        _write_header(file, rows, *form)
        if file.tell() != start:
            raise RuntimeError(f"NumPy's header for {rows} rows is longer than the one for none.")
    return rows


def _check(model, batches):
    if not isinstance(model, Autoencoder):
        raise ValueError(f"`model` must be a kerasae model. Received: {model!r}")
    is_iterable = isinstance(batches, keras.utils.PyDataset) or hasattr(batches, "__iter__")
    if not is_iterable or hasattr(batches, "shape") or isinstance(batches, (str, bytes, dict)):
        raise ValueError(
            "`batches` must be an iterable of batches, such as a tf.data.Dataset or (x[i : i + 1024] for i in range(0, len(x), 1024)). For "
            f"an array in memory there is model.encode(x). Received: {type(batches)}"
        )


def _mapped(model, name, batches, total, verbose, unit_interval=False):
    from tqdm import tqdm

    # One graph for batches of every size.
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.encoder.inputs]
    compute = tf.function(model.functions()[name].compute, input_signature=specs, autograph=False)
    if isinstance(batches, keras.utils.PyDataset):
        size = batches.num_batches
        batches = map(batches.__getitem__, itertools.count() if size is None else range(size))
    with tqdm(total=total, unit=" examples", unit_scale=True, disable=not verbose) as progress:
        for i, batch in enumerate(batches):
            batch, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            where = f"x in batch {i}"
            batch = model.check_examples(batch, where, True) if unit_interval else model.check_inputs(batch, where)
            batch = tf.nest.flatten(batch)
            cast = [tf.cast(part, spec.dtype) for part, spec in zip(batch, specs, strict=True)]
            yield compute(*cast)[0].numpy()
            progress.update(len(batch[0]))


def _write_header(file, rows, shape, dtype):
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, header)

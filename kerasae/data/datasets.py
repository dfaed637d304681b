"""Image datasets by name: as arrays (`load`) or as a `tf.data` pipeline (`stream`).

`"digits"` is bundled with scikit-learn; every other name is looked up in tensorflow-datasets. Pixels are float32 in [0, 1].
"""

import numbers
import types

import numpy as np

from kerasae import checks
from kerasae.data import prepared
from kerasae.data.prepared import NoLabelsError

_DIGITS_TEST_SIZE = 360
_DIGITS_SEED = 0
_SHUFFLE_BYTES = 256 * 2**20  # encoded images held by the shuffle buffer of `stream`


def load(name, data_dir=None, labels=False, download=True):
    """Loads the training and test images of a dataset into memory.

    `x = pixel / pixel_max`, where `pixel_max` is 255 (16 for `"digits"`).

    `"digits"` is scikit-learn's set of 1,797 handwritten digits of 8 x 8 pixels, split once and for all into 1,437 training and 360 test
    images by `train_test_split(test_size=360, stratify=labels, random_state=0)`. Any other set keeps the order in which tensorflow-datasets
    stored it (its shards read one after the other, nothing shuffled), so that `x_train[-10000:]` always means the same images, those of
    `stream(name, "train[-10000:]", shuffle=False)`. The arrays take four bytes per pixel: for a set larger than memory use `stream`.

    Args:
        name: string. `"digits"`, or the tensorflow-datasets name of a dataset with an `"image"` feature of fixed shape and 8 bits per
            channel, and with the splits `"train"` and `"test"`, such as `"mnist"`, `"fashion_mnist"`, `"cifar10"` or `"emnist/letters"`.
        data_dir: path of an existing folder that holds prepared datasets, and into which new ones are prepared. Defaults to the
            environment variable `TFDS_DATA_DIR`, else to tensorflow-datasets' own `~/tensorflow_datasets`. Unused for `"digits"`.
        labels: bool. Whether to return class labels too. Defaults to `False`.
        download: bool. Whether a set that is not prepared yet is downloaded. Defaults to `True`.

    Returns:
        `(x_train, x_test)`, or with `labels=True` `((x_train, y_train), (x_test, y_test))`. Images are float32 in [0, 1] of shape
        `(n, height, width, channels)`, labels int64 of shape `(n,)`.

    Raises:
        UnknownDatasetError, NoLabelsError: `ValueError`s, if there is no dataset of this name (the message lists near names), or no labels.
        ValueError: if the dataset has no images of fixed shape, or no train and test splits.
        FileNotFoundError: if `data_dir` does not exist (`NotADirectoryError` if it is a file), or nothing is prepared and `download=False`.
        ConnectionError: if the dataset is not prepared and its source cannot be reached.
        OSError: if prepared files are damaged or incomplete.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    x_train.shape, x_test.shape  # ((1437, 8, 8, 1), (360, 8, 8, 1))
    ```
    """
    if prepared.check_name(name) == "digits":
        splits = _digits()
        arrays = [(images / np.float32(16), y) for images, y in splits.values()]
    else:
        builder = prepared.find(name, data_dir, labels, download)
        available = sorted(builder.info.splits)
        if not {"train", "test"} <= set(available):
            raise ValueError(
                f"load() needs the splits 'train' and 'test'; {name!r} has {available}. Use stream({name!r}, split=...), which takes any "
                f"split and sub-splits such as '{available[0]}[:90%]'."
            )
        # Both are checked before the first is read: a truncated test set should not cost a read.
        counts = {split: prepared.count(builder, split) for split in ("train", "test")}
        arrays = [prepared.read(builder, split, count, labels) for split, count in counts.items()]
    return tuple(arrays) if labels else tuple(x for x, _ in arrays)


def load_with_labels_if_any(name, data_dir=None):
    """`((x_train, y_train), (x_test, y_test))` as `load` gives them; both `y` are None if the dataset has no labels."""
    try:
        return load(name, data_dir, labels=True)
    except NoLabelsError:
        return tuple((x, None) for x in load(name, data_dir))


def stream(
    name,
    split="train",
    batch_size=128,
    shuffle=None,
    data_dir=None,
    labels=False,
    seed=None,
    cache=False,
    download=True,
):
    """Streams a dataset from disk as batches that `keras.Model.fit` takes as they are.

    `x = pixel / pixel_max`, where `pixel_max` is 255 (16 for `"digits"`). Images are read, shuffled and cached as bytes and become float32
    only once batched, so a dataset may be larger than memory. The last batch may be smaller. The number of batches is known
    (`dataset.cardinality()`), so `fit` shows its progress.

    Shuffled, every epoch has a new order. The shuffle is uniform over the split if its encoded images fit into 256 MiB (as MNIST's and
    CIFAR-10's do) or if `cache=True`; otherwise the files are shuffled, and the images within a moving window of that size. Not shuffled,
    the order is that of `load`.

    Missing and truncated files are detected here, by their size. A file of the right size whose bytes have changed fails the checksum of a
    record while it is read, as a `tf.errors.DataLossError`.

    Args:
        name: string. As in `load`; no particular splits are needed.
        split: string. A split or sub-split as tensorflow-datasets writes them: `"train"`, `"test"`, `"train[:50000]"`, `"train[50000:]"`,
            `"train[:80%]"`, `"train+test"`. Defaults to `"train"`.
        batch_size: int, at least 1. Defaults to 128.
        shuffle: bool. Defaults to `True` if `split` starts with `"train"`, else `False`.
        data_dir: as in `load`.
        labels: bool. Whether to yield `(x, y)`; `fit` takes `y` as the target, so an autoencoder wants `False`, the default.
        seed: int. Makes the orders of all epochs reproducible. As everywhere in TensorFlow a global seed (`keras.utils.set_random_seed`),
            if set, is mixed in. Defaults to `None`: a new order every time, or one that follows from the global seed.
        cache: bool. Whether the split's decoded images are kept in memory, one byte per value, from the first epoch on. `"digits"` always
            is in memory. Defaults to `False`.
        download: bool. Whether a set that is not prepared yet is downloaded. Defaults to `True`.

    Returns:
        A prefetched `tf.data.Dataset` of float32 batches in [0, 1], shape `(batch, height, width, channels)`; with `labels=True` of pairs
        with int64 labels of shape `(batch,)`.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError, ConnectionError, OSError: as in `load`; `ValueError` also on a bad option.

    Example:

    ```python
    train = kerasae.data.stream("digits", "train[:1200]", batch_size=64, seed=0)
    train.cardinality().numpy()  # 19
    train.element_spec.shape  # TensorShape([None, 8, 8, 1])
    ```
    """
    import tensorflow as tf

    prepared.check_name(name)
    batch_size = checks.positive_int(batch_size, "batch_size")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral)):
        raise ValueError(f"seed must be a whole number or None; got {seed!r}.")
    if not isinstance(split, str):
        raise ValueError(f"split must be a string such as 'train' or 'train[:50000]'; got {split!r}.")
    if shuffle is None:
        shuffle = split.startswith("train")

    if name == "digits":
        images, y = _digits_split(split)
        examples = tf.data.Dataset.from_tensor_slices((images, y) if labels else images)
        window, pixel_max = len(images), 16.0
    else:
        builder = prepared.find(name, data_dir, labels, download)
        count = prepared.count(builder, split)
        info = builder.info
        encoded_bytes = max(info.dataset_size / max(info.splits.total_num_examples, 1), 1)
        window = count if cache else min(count, int(max(_SHUFFLE_BYTES / encoded_bytes, 1)))
        examples = prepared.encoded(builder, split, labels, seed=seed, shuffle_files=shuffle and window < count)
        decode = prepared.decoder(builder, labels)
        if cache:
            examples = examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE).cache()
        pixel_max = 255.0
    if shuffle:
        examples = examples.shuffle(window, seed=seed, reshuffle_each_iteration=True)
    if name != "digits" and not cache:
        # Decoding after the shuffle keeps the small encoded images in its buffer.
        examples = examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE)

    def scale(x, *y):
        x = tf.cast(x, tf.float32) / pixel_max
        return (x, *y) if y else x

    batches = examples.batch(batch_size).map(scale, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def _digits():
    """The bundled digits: `{split: (uint8 images with values 0 to 16, int64 labels)}`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        bunch.images[..., None].astype(np.uint8),
        bunch.target.astype(np.int64),
        test_size=_DIGITS_TEST_SIZE,
        stratify=bunch.target,
        random_state=_DIGITS_SEED,
    )
    return {"train": (x_train, y_train), "test": (x_test, y_test)}


def _digits_split(split):
    import tensorflow_datasets as tfds

    splits = _digits()
    sizes = {key: types.SimpleNamespace(num_examples=len(y)) for key, (_, y) in splits.items()}
    with prepared.split_errors("digits", split, sizes):
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(sizes)
    pieces = [[a[part.from_ : part.to] for a in splits[part.splitname]] for part in parts]
    images, y = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    if not len(images):
        raise ValueError(f"split {split!r} of 'digits' holds no examples.")
    return images, y

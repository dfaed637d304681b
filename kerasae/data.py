"""Image datasets by name: as arrays (`load`) or as a `tf.data` pipeline (`stream`).

`"digits"` is bundled with scikit-learn and needs no download. Every other name is looked up in
tensorflow-datasets. Pixels are float32 in [0, 1] everywhere, shape `(n, height, width, channels)`.
"""

import contextlib
import difflib
import logging
import numbers
import os
import re
import threading
import types

import numpy as np
import tensorflow as tf

from kerasae import checks

_DIGITS_TEST_SIZE = 360
_DIGITS_SEED = 0
_READ_BATCH = 1024  # examples decoded at a time by `load`
_SHUFFLE_BYTES = 256 * 2**20  # encoded images held by the shuffle buffer of `stream`
_NETWORK_TIMEOUT = 5.0  # seconds until the source of a dataset counts as out of reach
_RECORD_OVERHEAD = 16  # bytes a TFRecord adds to each example: length and two checksums

# What a misspelt name is compared with: the datasets with images of one fixed shape and 8 bits a
# channel (tensorflow-datasets 4.9.10). Written down because finding out means building every one
# of its datasets, some of which then open files on the network. Other names load as well.
_IMAGE_DATASETS = """
    aflw2k3d bccd beans bigearthnet binarized_mnist binary_alpha_digits celeb_a celeb_a_hq
    cifar10 cifar100 cifar100_n cifar10_1 cifar10_corrupted cifar10_h cifar10_n cmaterdb coil100
    colorectal_histology colorectal_histology_large deep_weeds dmlab dsprites emnist eurosat
    fashion_mnist flic horses_or_humans imagenet2012_corrupted imagenet_resized kmnist lfw mnist
    mnist_corrupted nyu_depth_v2 omniglot patch_camelyon places365_small placesfull
    pneumonia_mnist quickdraw_bitmap resisc45 rock_paper_scissors s3o4d shapes3d smallnorb
    so2sat stl10 svhn_cropped symmetric_solids the300w_lp
""".split()

_NAME = re.compile(r"\w+(:[\d.*]+)?(/[\w.:*=,+-]+)*")  # name[/config][:version]; no namespaces


def load(name, data_dir=None, labels=False, download=True):
    """Loads the training and test images of a dataset into memory.

    `x = pixel / pixel_max`, where `pixel_max` is 255 (16 for `"digits"`).

    `"digits"` is scikit-learn's set of 1,797 handwritten digits of 8 x 8 pixels, split once and for
    all into 1,437 training and 360 test images by
    `train_test_split(test_size=360, stratify=labels, random_state=0)`.

    Any other set keeps the order in which tensorflow-datasets stored it (its shards read one after
    the other, nothing shuffled), so that `x_train[-10000:]` always means the same images, those of
    `stream(name, "train[-10000:]", shuffle=False)`. The arrays take four bytes a pixel: for a set
    larger than memory use `stream`.

    Args:
        name: string. `"digits"`, or the tensorflow-datasets name of a dataset with an `"image"`
            feature of fixed shape and 8 bits a channel, and with the splits `"train"` and `"test"`,
            such as `"mnist"`, `"fashion_mnist"`, `"cifar10"` or `"emnist/letters"`.
        data_dir: path of an existing folder that holds prepared datasets, and into which new ones
            are prepared. Defaults to the environment variable `TFDS_DATA_DIR`, else to
            tensorflow-datasets' own `~/tensorflow_datasets`. Unused for `"digits"`.
        labels: bool. Whether to return class labels too. Defaults to `False`.
        download: bool. Whether a set that is not prepared yet is downloaded. Defaults to `True`.

    Returns:
        `(x_train, x_test)`, or with `labels=True` `((x_train, y_train), (x_test, y_test))`.
        Images are float32 in [0, 1] of shape `(n, height, width, channels)`, labels int64 of shape
        `(n,)`.

    Raises:
        ValueError: if the name is unknown (the message lists near names), or if the dataset has no
            images of fixed shape, no train and test splits, or no labels though they were asked
            for.
        FileNotFoundError: if `data_dir` does not exist, or if the dataset is not prepared and
            `download=False`.
        NotADirectoryError: if `data_dir` is a file.
        ConnectionError: if the dataset is not prepared and its source cannot be reached.
        OSError: if prepared files are damaged or incomplete.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    x_train.shape, x_test.shape  # ((1437, 8, 8, 1), (360, 8, 8, 1))
    ```
    """
    if _check_name(name) == "digits":
        splits = _digits()
        arrays = [(images / np.float32(16), y) for images, y in splits.values()]
    else:
        builder = _prepared_builder(name, data_dir, labels, download)
        available = sorted(builder.info.splits)
        if not {"train", "test"} <= set(available):
            raise ValueError(
                f"load() needs the splits 'train' and 'test'; {name!r} has {available}. Use "
                f"stream({name!r}, split=...), which takes any split and sub-splits such as "
                f"'{available[0]}[:90%]'."
            )
        # Both are checked before the first is read: a truncated test set should not cost a read.
        counts = {split: _count(builder, split) for split in ("train", "test")}
        arrays = [_read(builder, split, count, labels) for split, count in counts.items()]
    if labels:
        return tuple(arrays)
    return tuple(x for x, _ in arrays)


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

    `x = pixel / pixel_max`, where `pixel_max` is 255 (16 for `"digits"`). Images are read, shuffled
    and cached as bytes and become float32 only once batched, so a dataset may be larger than
    memory. The last batch holds what is left over. The number of batches is known
    (`dataset.cardinality()`), so `fit` shows its progress.

    Shuffled, every epoch has a new order. The shuffle is uniform over the split if its encoded
    images fit into 256 MiB (as MNIST's and CIFAR-10's do) or if `cache=True`; otherwise the files
    are shuffled, and the images within a moving window of that size. Not shuffled, the order is
    that of `load`.

    Missing and truncated files are detected here, by their size. A file of the right size whose
    bytes have changed fails the checksum of a record while it is read, as a
    `tf.errors.DataLossError`.

    Args:
        name: string. `"digits"`, or the tensorflow-datasets name of a dataset with an `"image"`
            feature of fixed shape and 8 bits a channel.
        split: string. A split or sub-split as tensorflow-datasets writes them: `"train"`,
            `"test"`, `"train[:50000]"`, `"train[50000:]"`, `"train[:80%]"`, `"train+test"`.
            Defaults to `"train"`.
        batch_size: int, at least 1. Defaults to 128.
        shuffle: bool. Defaults to `True` if `split` starts with `"train"`, else `False`.
        data_dir: path of an existing folder that holds prepared datasets, and into which new ones
            are prepared. Defaults to the environment variable `TFDS_DATA_DIR`, else to
            tensorflow-datasets' own `~/tensorflow_datasets`. Unused for `"digits"`.
        labels: bool. Whether to yield `(x, y)`; `fit` takes `y` as the target, so an autoencoder
            wants `False`, the default.
        seed: int. Makes the orders of all epochs reproducible. As everywhere in TensorFlow a global
            seed (`keras.utils.set_random_seed`), if set, is mixed in. Defaults to `None`: a new
            order every time, or one that follows from the global seed.
        cache: bool. Whether the split's decoded images are kept in memory, one byte a value, from
            the first epoch on. `"digits"` always is in memory. Defaults to `False`.
        download: bool. Whether a set that is not prepared yet is downloaded. Defaults to `True`.

    Returns:
        A prefetched `tf.data.Dataset` of float32 batches in [0, 1], shape
        `(batch, height, width, channels)`; with `labels=True` of pairs with int64 labels of shape
        `(batch,)`.

    Raises:
        ValueError: if the name is unknown (the message lists near names), if the dataset has no
            images of fixed shape or no labels though they were asked for, or if `split`,
            `batch_size` or `seed` is not what is described above.
        FileNotFoundError: if `data_dir` does not exist, or if the dataset is not prepared and
            `download=False`.
        NotADirectoryError: if `data_dir` is a file.
        ConnectionError: if the dataset is not prepared and its source cannot be reached.
        OSError: if prepared files are missing or truncated.

    Example:

    ```python
    train = kerasae.data.stream("digits", "train[:1200]", batch_size=64, seed=0)
    train.cardinality().numpy()  # 19
    train.element_spec.shape  # TensorShape([None, 8, 8, 1])
    ```
    """
    _check_name(name)
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
        builder = _prepared_builder(name, data_dir, labels, download)
        count = _count(builder, split)
        info = builder.info
        encoded_bytes = max(info.dataset_size / max(info.splits.total_num_examples, 1), 1)
        window = count if cache else min(count, int(max(_SHUFFLE_BYTES / encoded_bytes, 1)))
        examples = _examples(builder, split, labels, seed=seed, shuffle_files=shuffle and window < count)
        decode = _decoder(builder, labels)
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


# digits


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
    with _split_errors("digits", split, sizes):
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(sizes)
    pieces = [[a[part.from_ : part.to] for a in splits[part.splitname]] for part in parts]
    images, y = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    if not len(images):
        raise ValueError(f"split {split!r} of 'digits' holds no examples.")
    return images, y


# tensorflow-datasets


def _prepared_builder(name, data_dir, labels, download):
    """Returns the builder of a dataset that can be read, downloading it if that is allowed."""
    if data_dir is not None:
        data_dir = os.path.expanduser(os.fspath(data_dir))
        if not tf.io.gfile.exists(data_dir):
            raise FileNotFoundError(
                f"data_dir must be an existing folder; {data_dir!r} does not exist. Create it, or "
                "name the folder that holds your prepared datasets."
            )
        if not tf.io.gfile.isdir(data_dir):
            raise NotADirectoryError(f"data_dir must be a folder; {data_dir!r} is a file.")
    else:
        # tensorflow-datasets reads the variable only once, when it is first imported.
        data_dir = os.environ.get("TFDS_DATA_DIR")

    builder = _builder(name, data_dir)
    # What the dataset's code declares is checked before anything is downloaded.
    _check_features(builder, name, labels)
    with _quiet():
        prepared = builder.is_prepared()
    if not prepared:
        _prepare(builder, name, download)
    return builder


def _builder(name, data_dir):
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    if not _NAME.fullmatch(name):
        raise ValueError(_unknown_name(name))
    try:
        with _quiet():
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        # Its message lists every dataset there is.
        raise ValueError(_unknown_name(name)) from None
    except json_format.ParseError as error:
        raise OSError(
            f"the description (dataset_info.json) of the prepared dataset {name!r} is damaged: "
            f"{error}. Delete the folder of {name!r} from your datasets folder and prepare it "
            "again."
        ) from error
    except (ValueError, AssertionError, RuntimeError) as error:  # no such configuration, version
        dataset, _, config = re.sub(r":[^/]*", "", name).partition("/")
        configs = list(tfds.builder_cls(dataset).builder_configs)
        raise ValueError(
            f"tensorflow-datasets cannot build {name!r}: {str(error).strip()}"
            + (_did_you_mean(config, configs) if config not in configs else "")
        ) from error


def _check_features(builder, name, labels):
    import tensorflow_datasets as tfds

    features = builder.info.features
    names = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else []
    image = features["image"] if "image" in names else None
    if not isinstance(image, tfds.features.Image):
        raise ValueError(
            f"{name!r} has no 'image' feature that holds an image; its features are {names}. "
            f"Choose an image dataset such as 'mnist' or 'cifar10'."
        )
    if None in image.shape:
        raise ValueError(
            f"{name!r} holds images of varying size, shape {tuple(image.shape)}, but images of one "
            "fixed shape are needed. Resize them in a tensorflow-datasets pipeline of your own."
        )
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"{name!r} holds images of type {np.dtype(image.np_dtype).name}; only uint8 images, "
            "with values from 0 to 255, can be scaled to [0, 1]."
        )
    if labels:
        label = features["label"] if "label" in names else None
        if label is None or label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
            raise ValueError(
                f"labels=True, but {name!r} has no 'label' feature that holds one class an image; "
                f"its features are {names}. Pass labels=False."
            )


def _prepare(builder, name, download):
    import requests

    if not download:
        raise FileNotFoundError(
            f"{name!r} is not prepared in {_root(builder)!r}, and download=False. " + _how_to_prepare(builder, name)
        )
    urls = builder.url_infos
    problem = _unreachable(next(iter(urls))) if urls else None
    if problem is not None:
        raise ConnectionError(
            f"{name!r} is not prepared in {_root(builder)!r} and cannot be downloaded, for its "
            f"source does not answer ({problem}). " + _how_to_prepare(builder, name)
        )
    try:
        builder.download_and_prepare()
    except requests.exceptions.RequestException as error:
        raise ConnectionError(f"the download of {name!r} failed: {error}. " + _how_to_prepare(builder, name)) from error


def _unreachable(url):
    """Says why the server of `url` cannot be reached, or returns None if it answers.

    tensorflow-datasets itself retries for minutes before it gives up. Any answer will do, also a
    refusal. The request runs in a thread because its own timeout covers neither a name server that
    stays silent nor a host with many addresses.
    """
    import requests

    scheme, host = url.split("/")[0], url.split("/")[2]
    if scheme not in ("http:", "https:"):
        return None
    outcome = []

    def ask():
        try:
            requests.head(f"{scheme}//{host}/", timeout=_NETWORK_TIMEOUT, allow_redirects=False)
            outcome.append(None)
        except requests.exceptions.RequestException as error:
            outcome.append(f"{host}: {type(error).__name__}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_TIMEOUT)
    return outcome[0] if outcome else f"{host}: no answer in {_NETWORK_TIMEOUT:g} seconds"


def _root(builder):
    """The folder with one folder a dataset, `<root>/<name>[/<config>]/<version>` being the set."""
    folder = os.fspath(builder.data_dir)
    depth = 3 if builder.builder_config else 2
    for _ in range(depth):
        folder = os.path.dirname(folder)
    return folder


def _how_to_prepare(builder, name):
    root = _root(builder)
    return (
        "On a machine with a network run\n"
        '    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='tensorflow_datasets').download_and_prepare()\"\n"
        f"and copy the folder tensorflow_datasets/{builder.name} to "
        f"{os.path.join(root, builder.name)}, or anywhere else, naming the folder it then lies in "
        "by data_dir= or by the environment variable TFDS_DATA_DIR."
    )


def _unknown_name(name):
    """The message for a name that does not exist: near names, never the whole catalogue."""
    return (
        f"unknown dataset {name!r}; expected 'digits' or an image dataset of tensorflow-datasets "
        f"such as 'mnist'.{_did_you_mean(re.split('[/:]', name)[0], ['digits', *_IMAGE_DATASETS])}"
    )


def _did_you_mean(word, names):
    near = difflib.get_close_matches(word.lower(), names, n=5, cutoff=0.5)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def _count(builder, split):
    """The number of examples in a split, after checking that its files are all there."""
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    with _split_errors(builder.name, split, splits):
        count = splits[split].num_examples
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    if count < 1:
        raise ValueError(f"split {split!r} of {builder.name!r} holds no examples.")
    for part in {part.splitname for part in parts}:
        _check_files(builder, part)
    return count


def _check_files(builder, split):
    import tensorflow_datasets as tfds

    info = builder.info.splits[split]
    try:
        size = sum(tf.io.gfile.stat(os.fspath(path)).length for path in info.filepaths)
    except tf.errors.OpError as error:
        raise OSError(_damaged(builder, error.message)) from error
    expected = int(info.num_bytes) + _RECORD_OVERHEAD * info.num_examples
    if builder.info.file_format is tfds.core.FileFormat.TFRECORD and size < expected:
        raise OSError(_damaged(builder, f"the files of {split!r} hold {size:,} of {expected:,} bytes"))


def _examples(builder, split, labels, seed=None, shuffle_files=False):
    """Examples of still encoded images: dicts with 'image' and perhaps 'label'."""
    import tensorflow_datasets as tfds

    read_config = tfds.ReadConfig(
        shuffle_seed=seed,
        shuffle_reshuffle_each_iteration=True,
        enable_ordering_guard=not shuffle_files,  # else sets stored in a given order refuse to be shuffled
        try_autocache=False,  # it would hold small sets in memory a second time
    )
    read_config.options.deterministic = True
    if not shuffle_files:
        # One shard after the other, so that positions mean the same images as in the sub-split syntax.
        read_config.interleave_cycle_length = 1
    wanted = {"image": True, "label": True} if labels else {"image": True}
    with _quiet():
        return builder.as_dataset(
            split=split,
            shuffle_files=shuffle_files,
            decoders=tfds.decode.PartialDecoding(wanted, decoders={"image": tfds.decode.SkipDecoding()}),
            read_config=read_config,
        )


def _decoder(builder, labels):
    image = builder.info.features["image"]

    def decode(example):
        x = image.decode_example(example["image"])
        return (x, tf.cast(example["label"], tf.int64)) if labels else x

    return decode


def _read(builder, split, count, labels):
    """Reads a split into the arrays `(x, y)`; y is empty without labels."""
    x = np.empty((count, *builder.info.features["image"].shape), np.float32)
    y = np.empty(count if labels else 0, np.int64)
    batches = (
        _examples(builder, split, labels)
        .map(_decoder(builder, labels), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(_READ_BATCH)
        .prefetch(2)
    )
    start = 0
    try:
        for batch in batches.as_numpy_iterator():
            images = batch[0] if labels else batch
            stop = start + len(images)
            # Scaling on the way in: the peak is the float array and a few batches of bytes.
            np.divide(images, np.float32(255), out=x[start:stop])
            if labels:
                y[start:stop] = batch[1]
            start = stop
    except tf.errors.OpError as error:
        raise OSError(_damaged(builder, error.message)) from error
    return x, y


def _damaged(builder, reason):
    reason = next(iter(reason.strip().splitlines()), "unreadable")
    return (
        f"the prepared files of {builder.name!r} are damaged or incomplete: {reason}. "
        f"Delete the folder {os.fspath(builder.data_dir)} and prepare the dataset again."
    )


# arguments


def _check_name(name):
    if not isinstance(name, str):
        raise ValueError(f"name must be a string such as 'digits' or 'mnist'; got {name!r}.")
    return name


@contextlib.contextmanager
def _split_errors(name, split, splits):
    try:
        yield
    except (ValueError, KeyError, AssertionError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[-1]
        raise ValueError(
            f"cannot read split {split!r} of {name!r}, which has the splits {sorted(splits)} and "
            f"takes sub-splits such as 'train[:80%]': {reason}"
        ) from error


@contextlib.contextmanager
def _quiet():
    """Hides tensorflow-datasets' warnings about its own workings; errors stay."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

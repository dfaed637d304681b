"""The datasets of tensorflow-datasets: found by name, checked, downloaded and read."""

import contextlib
import difflib
import logging
import os
import re
import threading

import numpy as np

_READ_BATCH = 1024  # examples decoded at a time by `read`
_NETWORK_TIMEOUT = 5.0  # seconds until the source of a dataset counts as out of reach
_RECORD_OVERHEAD = 16  # bytes a TFRecord adds to each example: length and two checksums

# A misspelt name is compared with these datasets, whose images have one fixed shape and 8 bits per channel (tensorflow-datasets 4.9.10).
# Finding them out means building every dataset, some of which open files on the network. Other names load as well.
_IMAGE_DATASETS = """
    aflw2k3d bccd beans bigearthnet binarized_mnist binary_alpha_digits celeb_a celeb_a_hq cifar10 cifar100 cifar100_n cifar10_1
    cifar10_corrupted cifar10_h cifar10_n cmaterdb coil100 colorectal_histology colorectal_histology_large deep_weeds dmlab dsprites emnist
    eurosat fashion_mnist flic horses_or_humans imagenet2012_corrupted imagenet_resized kmnist lfw mnist mnist_corrupted nyu_depth_v2
    omniglot patch_camelyon places365_small placesfull pneumonia_mnist quickdraw_bitmap resisc45 rock_paper_scissors s3o4d shapes3d
    smallnorb so2sat stl10 svhn_cropped symmetric_solids the300w_lp
""".split()

_NAME = re.compile(r"\w+(:[\d.*]+)?(/[\w.:*=,+-]+)*")  # name[/config][:version]; no namespaces


class UnknownDatasetError(ValueError):
    """There is no dataset of this name."""

    def __init__(self, name):
        # Near names, never the whole catalogue.
        super().__init__(
            f"unknown dataset {name!r}; expected 'digits' or an image dataset of tensorflow-datasets such as 'mnist'."
            + _did_you_mean(re.split("[/:]", name)[0], ["digits", *_IMAGE_DATASETS])
        )


class NoLabelsError(ValueError):
    """Labels were asked for, and the dataset has none."""


def find(name, data_dir, labels, download):
    """Returns the builder of a dataset that can be read, downloading it if that is allowed."""
    import tensorflow as tf

    if data_dir is not None:
        data_dir = os.path.expanduser(os.fspath(data_dir))
        if not tf.io.gfile.exists(data_dir):
            raise FileNotFoundError(
                f"data_dir must be an existing folder; {data_dir!r} does not exist. Create it, or name the folder of your datasets."
            )
        if not tf.io.gfile.isdir(data_dir):
            raise NotADirectoryError(f"data_dir must be a folder; {data_dir!r} is a file.")
    else:
        # tensorflow-datasets reads the variable only once, when it is first imported.
        data_dir = os.environ.get("TFDS_DATA_DIR")
    builder = _builder(name, data_dir)
    # The features that the dataset's code declares are checked before anything is downloaded.
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
        raise UnknownDatasetError(name)
    try:
        with _quiet():
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        # Its message lists every dataset there is.
        raise UnknownDatasetError(name) from None
    except json_format.ParseError as error:
        raise OSError(
            f"the description (dataset_info.json) of the prepared dataset {name!r} is damaged: {error}. Delete the folder of {name!r} from "
            "your datasets folder and prepare it again."
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
            f"{name!r} has no 'image' feature that holds an image; its features are {names}. Choose another, such as 'mnist'."
        )
    if None in image.shape:
        raise ValueError(
            f"{name!r} holds images of varying size, shape {tuple(image.shape)}. Resize them to one in a pipeline of your own."
        )
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"{name!r} holds images of type {np.dtype(image.np_dtype).name}; only uint8, 0 to 255, can be scaled to [0, 1]."
        )
    if labels:
        label = features["label"] if "label" in names else None
        if label is None or label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
            raise NoLabelsError(
                f"labels=True, but {name!r} has no 'label' feature that holds one class per image; its features are {names}. "
                "Pass labels=False."
            )


def _prepare(builder, name, download):
    import requests

    missing, advice = f"{name!r} is not prepared in {_root(builder)!r}", _how_to_prepare(builder, name)
    if not download:
        raise FileNotFoundError(f"{missing}, and download=False. {advice}")
    urls = builder.url_infos
    problem = _unreachable(next(iter(urls))) if urls else None
    if problem is not None:
        raise ConnectionError(
            f"{missing} and cannot be downloaded, for its source does not answer ({problem}). {advice}"
        )
    try:
        builder.download_and_prepare()
    except requests.exceptions.RequestException as error:
        raise ConnectionError(f"the download of {name!r} failed: {error}. {advice}") from error


def _unreachable(url):
    """Says why the server of `url` cannot be reached, or returns None if it answers, even by a refusal."""
    # tensorflow-datasets itself would retry for minutes. The request runs in a thread because its own timeout covers neither a name server
    # that stays silent nor a host with many addresses.
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
    """The folder with one folder per dataset, `<root>/<name>[/<config>]/<version>` being the set."""
    return os.fspath(builder.data_dir).rsplit(os.sep, 3 if builder.builder_config else 2)[0]


def _how_to_prepare(builder, name):
    return (
        'On a machine with a network run\n    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='tensorflow_datasets').download_and_prepare()\"\n"
        f"and copy the folder tensorflow_datasets/{builder.name} to {os.path.join(_root(builder), builder.name)}, or to a folder that you "
        "name by data_dir= or by the environment variable TFDS_DATA_DIR."
    )


def _did_you_mean(word, names):
    near = difflib.get_close_matches(word.lower(), names, n=5, cutoff=0.5)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def count(builder, split):
    """The number of examples in a split, after checking that its files are all there."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    with split_errors(builder.name, split, splits):
        count = splits[split].num_examples
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    if count < 1:
        raise ValueError(f"split {split!r} of {builder.name!r} holds no examples.")
    for name in {part.splitname for part in parts}:
        info = splits[name]
        try:
            size = sum(tf.io.gfile.stat(os.fspath(path)).length for path in info.filepaths)
        except tf.errors.OpError as error:
            raise OSError(_damaged(builder, error.message)) from error
        expected = int(info.num_bytes) + _RECORD_OVERHEAD * info.num_examples
        if builder.info.file_format is tfds.core.FileFormat.TFRECORD and size < expected:
            raise OSError(_damaged(builder, f"the files of {name!r} hold {size:,} of {expected:,} bytes"))
    return count


def encoded(builder, split, labels, seed=None, shuffle_files=False):
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


def decoder(builder, labels):
    import tensorflow as tf

    image = builder.info.features["image"]

    def decode(example):
        x = image.decode_example(example["image"])
        return (x, tf.cast(example["label"], tf.int64)) if labels else x

    return decode


def read(builder, split, count, labels):
    """Reads a split into the arrays `(x, y)`; y is empty without labels."""
    import tensorflow as tf

    x = np.empty((count, *builder.info.features["image"].shape), np.float32)
    y = np.empty(count if labels else 0, np.int64)
    examples = encoded(builder, split, labels).map(decoder(builder, labels), num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(_READ_BATCH).prefetch(2)
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


def check_name(name):
    if not isinstance(name, str):
        raise ValueError(f"name must be a string such as 'digits' or 'mnist'; got {name!r}.")
    return name


@contextlib.contextmanager
def split_errors(name, split, splits):
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

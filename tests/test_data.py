import os
import shutil
import socket
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import requests
import tensorflow as tf
from sklearn.datasets import load_digits

from kerasae import data

PREPARED = os.environ.get("TFDS_DATA_DIR")


def needs_prepared(name):
    found = PREPARED is not None and (Path(PREPARED) / name).is_dir()
    return pytest.mark.skipif(not found, reason=f"TFDS_DATA_DIR names no folder with a prepared {name}")


needs_mnist = needs_prepared("mnist")


def pixels(batches):
    """All images of a stream in one array."""
    return np.concatenate([batch.numpy() for batch in batches])


def rows(images):
    """The images as a sorted list of byte strings: equal exactly if both hold the same images."""
    return sorted(image.tobytes() for image in images)


# A small dataset of our own, written by tensorflow-datasets, for what MNIST does not show: several shards, colour,
# missing labels, missing splits, images of varying size.


def write_dataset(folder, name, sizes, shape=(6, 5, 3), labels=True, shards=1, dtype=np.uint8):
    """Prepares a dataset whose i-th image of a split has the value i in its first pixel; returns its pixels."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    features = {"image": tfds.features.Image(shape=shape, dtype=dtype)}
    if labels:
        features["label"] = tfds.features.ClassLabel(num_classes=10)
    images, splits = {}, {}
    for split, size in sizes.items():
        images[split] = [
            rng.integers(0, 256, [4 + i if side is None else side for side in shape]).astype(dtype) for i in range(size)
        ]
        for i, image in enumerate(images[split]):
            image[0, 0, 0] = i
        splits[split] = [
            (i, {"image": image, **({"label": i % 10} if labels else {})}) for i, image in enumerate(images[split])
        ]
    tfds.disable_progress_bar()
    try:
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets=splits,
            data_dir=folder,
            download_config=tfds.download.DownloadConfig(num_shards=shards),
            disable_shuffling=True,
        )
    finally:
        tfds.enable_progress_bar()
    return images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the prepared dataset "tiny" (53 training images in 4 shards, 11 test images), and its pixels."""
    folder = tmp_path_factory.mktemp("prepared")
    images = write_dataset(folder, "tiny", {"train": 53, "test": 11}, shards=4)
    assert len(list((folder / "tiny" / "1.0.0").glob("*train*"))) == 4
    return folder, {split: np.stack(x) for split, x in images.items()}


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """A copy of "tiny" that a test may damage: the datasets folder and the folder of the set."""
    shutil.copytree(tiny[0], tmp_path, dirs_exist_ok=True)
    return tmp_path, tmp_path / "tiny" / "1.0.0"


# load


def test_digits_are_scikit_learns():
    (x_train, y_train), (x_test, y_test) = data.load("digits", labels=True)
    assert x_train.shape == (1437, 8, 8, 1)
    assert x_test.shape == (360, 8, 8, 1)
    assert x_train.dtype == x_test.dtype == np.float32
    assert y_train.dtype == y_test.dtype == np.int64
    assert x_train.min() == x_test.min() == 0.0
    assert x_train.max() == x_test.max() == 1.0

    # Together the two splits are the whole set, each image once and with its own label: so they are disjoint too.
    bunch = load_digits()
    x, y = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])
    expected = (bunch.images[..., None] / 16).astype(np.float32)
    pairs = sorted((image.tobytes(), label) for image, label in zip(x, y, strict=True))
    assert pairs == sorted((image.tobytes(), label) for image, label in zip(expected, bunch.target, strict=True))
    assert len(set(rows(x))) == 1797
    assert not set(rows(x_train)) & set(rows(x_test))

    # Stratified: each class has its share of the test set, to within one image.
    share = np.bincount(bunch.target) * 360 / 1797
    np.testing.assert_allclose(np.bincount(y_test), share, atol=1)


def test_digits_split_is_fixed():
    (x_train, _), (x_test, y_test) = data.load("digits", labels=True)
    again_train, again_test = data.load("digits")
    np.testing.assert_array_equal(x_train, again_train)
    np.testing.assert_array_equal(x_test, again_test)
    # Figures are published on this split: a library that changes it has to be noticed.
    assert y_test[:20].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6, 6, 4, 5, 8, 1, 3, 5, 6]


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_prepared(n)) for n in ("mnist", "fashion_mnist")])
def test_mnist_and_fashion_mnist(name):
    (x_train, y_train), (x_test, y_test) = data.load(name, labels=True)
    assert x_train.shape == (60000, 28, 28, 1)
    assert x_test.shape == (10000, 28, 28, 1)
    assert x_train.dtype == np.float32
    assert (x_train.min(), x_train.max()) == (0.0, 1.0)
    # Every value is a whole number of 255ths.
    np.testing.assert_array_equal(np.rint(x_test * 255).astype(np.float32) / np.float32(255), x_test)
    # Published facts of the two sets: mean pixel and images a class.
    mean, counts = {
        "mnist": (0.1307, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        "fashion_mnist": (0.2860, [6000] * 10),
    }[name]
    assert x_train.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)
    assert np.bincount(y_train).tolist() == counts
    assert len(y_test) == 10000
    assert y_test.dtype == np.int64

    # The last 10,000 training images are the same ones for both functions, to the bit.
    stream = data.stream(name, "train[-10000:]", batch_size=1000, shuffle=False)
    np.testing.assert_array_equal(pixels(stream), x_train[-10000:])


def test_load_returns_the_stored_pixels_in_order(tiny):
    folder, images = tiny
    (x_train, y_train), (x_test, y_test) = data.load("tiny", data_dir=folder, labels=True)
    np.testing.assert_array_equal(x_train, images["train"] / np.float32(255))
    np.testing.assert_array_equal(x_test, images["test"] / np.float32(255))
    np.testing.assert_array_equal(y_train, np.arange(53) % 10)
    np.testing.assert_array_equal(y_test, np.arange(11) % 10)
    without = data.load("tiny", data_dir=str(folder))
    np.testing.assert_array_equal(without[0], x_train)
    np.testing.assert_array_equal(without[1], x_test)


def test_environment_variable_is_read_at_the_call(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny[0]))
    x_train, _ = data.load("tiny")
    assert x_train.shape == (53, 6, 5, 3)


# stream


@pytest.mark.parametrize("name", ["digits", "tiny"])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train", np.s_[:]),
        ("train[:20]", np.s_[:20]),
        ("train[20:]", np.s_[20:]),
        ("train[17:40]", np.s_[17:40]),
        ("train[-9:]", np.s_[-9:]),
        ("train[:50%]", "half"),
    ],
)
def test_stream_in_order_is_load(name, cache, split, part, tiny):
    x_train, _ = data.load(name, data_dir=tiny[0])
    if part == "half":
        part = np.s_[: round(len(x_train) / 2)]
    stream = data.stream(name, split, batch_size=7, shuffle=False, cache=cache, data_dir=tiny[0])
    expected = x_train[part]
    assert int(stream.cardinality()) == -(-len(expected) // 7)
    for _ in range(2):  # with a cache the second epoch takes another way
        np.testing.assert_array_equal(pixels(stream), expected)


@pytest.mark.parametrize("name", ["digits", "tiny"])
def test_stream_of_two_splits(name, tiny):
    x_train, x_test = data.load(name, data_dir=tiny[0])
    stream = data.stream(name, "train+test[:5]", shuffle=False, data_dir=tiny[0])
    np.testing.assert_array_equal(pixels(stream), np.concatenate([x_train, x_test[:5]]))


@pytest.mark.parametrize("name", ["digits", "tiny"])
@pytest.mark.parametrize("labels", [False, True])
def test_stream_batches(name, labels, tiny):
    (x_train, y_train), _ = data.load(name, data_dir=tiny[0], labels=True)
    stream = data.stream(name, batch_size=16, shuffle=False, labels=labels, data_dir=tiny[0])
    image = tf.TensorSpec((None, *x_train.shape[1:]), tf.float32)
    assert stream.element_spec == ((image, tf.TensorSpec((None,), tf.int64)) if labels else image)
    batches = list(stream)
    assert len(batches) == int(stream.cardinality()) == -(-len(x_train) // 16)
    first = [batch[0] if labels else batch for batch in batches]
    assert [len(x) for x in first] == [16] * (len(x_train) // 16) + [len(x_train) % 16]
    if labels:
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), y_train)


@pytest.mark.parametrize("name", ["digits", "tiny"])
@pytest.mark.parametrize("cache", [False, True])
def test_shuffled_stream(name, cache, tiny):
    def make(seed):
        return data.stream(name, batch_size=8, seed=seed, cache=cache, data_dir=tiny[0])

    x_train, _ = data.load(name, data_dir=tiny[0])
    stream = make(3)
    epochs = [pixels(stream) for _ in range(3)]
    for epoch in epochs:  # every image once
        assert rows(epoch) == rows(x_train)
    assert not np.array_equal(epochs[0], x_train)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])

    again = make(3)
    for epoch in epochs:
        np.testing.assert_array_equal(pixels(again), epoch)
    assert not np.array_equal(pixels(make(4)), epochs[0])


def test_labels_follow_their_images_when_shuffled(tiny):
    for x, y in data.stream("tiny", batch_size=10, labels=True, data_dir=tiny[0]):
        np.testing.assert_array_equal(np.rint(x.numpy()[:, 0, 0, 0] * 255) % 10, y)


def test_only_training_splits_are_shuffled_by_default(tiny):
    x_train, x_test = data.load("tiny", data_dir=tiny[0])
    np.testing.assert_array_equal(pixels(data.stream("tiny", "test", data_dir=tiny[0])), x_test)
    part = pixels(data.stream("tiny", "train[:30]", data_dir=tiny[0]))
    assert not np.array_equal(part, x_train[:30])
    assert rows(part) == rows(x_train[:30])
    assert not np.array_equal(pixels(data.stream("tiny", "test", shuffle=True, data_dir=tiny[0])), x_test)


def test_shuffle_window_smaller_than_the_dataset(tiny, monkeypatch):
    # A set larger than the buffer: shards are shuffled too, nothing is lost, and a seed still fixes every epoch.
    monkeypatch.setattr(data.datasets, "_SHUFFLE_BYTES", 800)
    x_train, _ = data.load("tiny", data_dir=tiny[0])
    stream, again = (data.stream("tiny", batch_size=8, seed=5, data_dir=tiny[0]) for _ in range(2))
    epochs = [pixels(stream) for _ in range(4)]
    for epoch in epochs:
        assert rows(epoch) == rows(x_train)
        np.testing.assert_array_equal(pixels(again), epoch)
    assert not np.array_equal(epochs[0], epochs[1])
    # The window holds a handful of images: only shuffled shards bring an image of the last shard to the front.
    fronts = [np.rint(epoch[:3, 0, 0, 0] * 255) for epoch in epochs]
    assert max(front.max() for front in fronts) > 26


def test_fit_takes_a_stream():
    class Mean(keras.Model):
        """Counts what `fit` hands to the train step."""

        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(), initializer="ones")
            self.built = True
            self.seen = tf.Variable(0)

        def train_step(self, x):
            assert tuple(x.shape) == (None, 8, 8, 1)
            self.seen.assign_add(tf.shape(x)[0])
            return {"loss": tf.reduce_mean(x) * self.scale}

    model = Mean()
    model.compile()
    history = model.fit(data.stream("digits", batch_size=100), epochs=2, verbose=0)
    assert int(model.seen) == 2 * 1437
    assert len(history.history["loss"]) == 2


# errors: names, features, splits, arguments


@pytest.mark.parametrize("function", [data.load, data.stream])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mnits", "'mnist'"),
        ("fashion-mnist", "'fashion_mnist'"),
        ("digit", "'digits'"),
        ("cifar", "'cifar10'"),
        ("CIFER10", "'cifar10'"),
        ("emnist/lettres", "'letters'"),
        ("huggingface:mnist", "unknown dataset"),
        ("../mnist", "unknown dataset"),
        ("", "unknown dataset"),
        ("no such thing", "unknown dataset"),
    ],
)
def test_unknown_name(function, name, near, tmp_path):
    with pytest.raises(ValueError, match=near) as error:
        function(name, data_dir=tmp_path)
    assert len(str(error.value)) < 500  # not the whole catalogue
    assert name in str(error.value)


@pytest.mark.parametrize("function", [data.load, data.stream])
@pytest.mark.parametrize("name", [None, 3, b"mnist", ["digits"]])
def test_name_that_is_no_string(function, name):
    with pytest.raises(ValueError, match="name must be a string"):
        function(name)


@pytest.mark.parametrize("function", [data.load, data.stream])
@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("imdb_reviews", False, "no 'image' feature"),
        ("imagenette", False, "varying size"),
        ("binarized_mnist", True, "no 'label' feature"),
        ("mnist:9.9.9", False, "only: 3.0.1"),
    ],
)
def test_unsuitable_dataset_is_refused_before_any_download(function, name, labels, message, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: pytest.fail("asked the network"))
    with pytest.raises(ValueError, match=message):
        function(name, data_dir=tmp_path, labels=labels)


@pytest.mark.parametrize(
    ("sizes", "options", "labels", "message"),
    [
        ({"train": 3}, {}, False, r"needs the splits 'train' and 'test'.*\['train'\].*stream"),
        ({"train": 3, "test": 3}, {"labels": False}, True, "no 'label' feature"),
        ({"train": 3, "test": 3}, {"shape": (None, None, 3)}, False, "varying size"),
        ({"train": 3, "test": 3}, {"dtype": np.uint16, "shape": (6, 5, 1)}, False, "uint16"),
    ],
)
def test_unsuitable_prepared_dataset(sizes, options, labels, message, tmp_path):
    write_dataset(tmp_path, "odd", sizes, **options)
    with pytest.raises(ValueError, match=message):
        data.load("odd", data_dir=tmp_path, labels=labels)


def test_dataset_without_labels_or_test_split_streams(tmp_path):
    images = write_dataset(tmp_path, "odd", {"train": 3}, labels=False)
    stream = data.stream("odd", shuffle=False, data_dir=tmp_path)
    np.testing.assert_array_equal(pixels(stream), np.stack(images["train"]) / np.float32(255))


@pytest.mark.parametrize("name", ["digits", "tiny"])
@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", r"Unknown split 'validation'.*\['train', 'test'\]"),
        ("train[", "'train\\['"),
        ("", "split ''"),
        ("train[5:5]", "no examples"),
        ("train[9:3]", "no examples"),
        ("train[:70000]", "incompatible with"),
        (None, "split must be a string"),
        (["train"], "split must be a string"),
    ],
)
def test_bad_split(name, split, message, tiny):
    with pytest.raises(ValueError, match=message):
        data.stream(name, split, data_dir=tiny[0])


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, 32.0, "32", None, True])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match=r"`batch_size` must be a whole number of at least 1\. Received: "):
        data.stream("digits", batch_size=batch_size)


def test_numpy_integers_are_integers():
    stream = data.stream("digits", batch_size=np.int64(100), seed=np.int32(1))
    assert int(stream.cardinality()) == 15


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed must be a whole number or None"):
        data.stream("digits", seed=seed)


# errors: what is not there, or damaged


@pytest.mark.parametrize("function", [data.load, data.stream])
def test_bad_data_dir(function, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist"):
        function("mnist", data_dir=tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(NotADirectoryError, match=r"must be a folder; .*is a file"):
        function("mnist", data_dir=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def assert_says_how_to_prepare(message, name, folder):
    dataset = name.split("/")[0]
    assert f"tfds.builder('{name}', data_dir='tensorflow_datasets').download_and_prepare()" in message
    assert f"{folder}/{dataset}" in message
    assert "data_dir=" in message
    assert "TFDS_DATA_DIR" in message


@pytest.mark.parametrize("function", [data.load, data.stream])
@pytest.mark.parametrize("name", ["cifar10", "emnist/letters"])
def test_not_prepared_and_no_download(function, name, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: pytest.fail("asked the network"))
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is not prepared in '{tmp_path}'") as error:
        function(name, data_dir=tmp_path, download=False)
    assert_says_how_to_prepare(str(error.value), name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [data.load, data.stream])
@pytest.mark.parametrize(
    "problem", [requests.exceptions.ConnectionError, requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError]
)
def test_no_network(function, problem, tmp_path, monkeypatch):
    asked = []

    def head(url, **kwargs):
        asked.append(url)
        raise problem("no route")

    monkeypatch.setattr(requests, "head", head)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=f"www.cs.toronto.edu: {problem.__name__}") as error:
        function("cifar10", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    assert asked == ["https://www.cs.toronto.edu/"]
    assert_says_how_to_prepare(str(error.value), "cifar10", tmp_path)
    assert not list(tmp_path.iterdir())


def test_silent_network_is_given_up_on(tmp_path, monkeypatch):
    # A name server that never answers is outside the reach of the request's own timeout.
    release = threading.Event()
    monkeypatch.setattr(data.prepared, "_NETWORK_TIMEOUT", 0.2)
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: release.wait(30))
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer in 0\.2 seconds"):
        data.load("cifar10", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    release.set()


def test_dead_proxy_is_no_network(tmp_path, monkeypatch):
    # For real: a proxy on a port nobody listens on.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, proxy)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"www\.cs\.toronto\.edu: ProxyError"):
        data.load("cifar10", data_dir=tmp_path)
    assert time.monotonic() - start < 8


def test_download_that_breaks_off(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def break_off(self, **kwargs):
        raise requests.exceptions.ConnectionError("reset by peer")

    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", break_off)
    with pytest.raises(ConnectionError, match="download of 'cifar10' failed: reset by peer") as error:
        data.load("cifar10", data_dir=tmp_path)
    assert_says_how_to_prepare(str(error.value), "cifar10", tmp_path)


def test_prepared_dataset_never_asks_the_network(tiny, monkeypatch):
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: pytest.fail("asked the network"))
    data.load("tiny", data_dir=tiny[0])
    data.stream("tiny", data_dir=tiny[0])


def call(function, split, folder):
    if function is data.load:
        return function("tiny", data_dir=folder)
    return function("tiny", split, data_dir=folder)


@pytest.mark.parametrize("function", [data.load, data.stream])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_file(function, split, kept, tiny_copy):
    root, folder = tiny_copy
    shard = sorted(folder.glob(f"*{split}*"))[-1]
    os.truncate(shard, int(shard.stat().st_size * kept))
    with pytest.raises(OSError, match=rf"'tiny' are damaged.*of '{split}' hold.*Delete the folder {folder} "):
        call(function, split, root)


@pytest.mark.parametrize("function", [data.load, data.stream])
def test_missing_file(function, tiny_copy):
    root, folder = tiny_copy
    sorted(folder.glob("*train*"))[2].unlink()
    with pytest.raises(OSError, match=rf"'tiny' are damaged.*Delete the folder {folder} "):
        call(function, "train", root)


def test_file_with_changed_bytes(tiny_copy):
    root, folder = tiny_copy
    shard = sorted(folder.glob("*train*"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(OSError, match=rf"'tiny' are damaged.*corrupted record.*Delete the folder {folder} "):
        data.load("tiny", data_dir=root)
    stream = data.stream("tiny", data_dir=root)  # as documented: found while reading
    with pytest.raises(tf.errors.DataLossError, match="corrupted record"):
        pixels(stream)


@needs_mnist
def test_truncated_mnist(tmp_path):
    shutil.copytree(Path(PREPARED) / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    folder = next((tmp_path / "mnist").iterdir())
    folder.chmod(0o755)
    (shard,) = folder.glob("*train*")
    os.truncate(shard, shard.stat().st_size - 1)
    start = time.monotonic()
    with pytest.raises(OSError, match=rf"'mnist' are damaged.*Delete the folder {folder} "):
        data.load("mnist", data_dir=tmp_path)
    with pytest.raises(OSError, match=rf"'mnist' are damaged.*Delete the folder {folder} "):
        data.stream("mnist", "train[:100]", data_dir=tmp_path)
    assert time.monotonic() - start < 5  # at the door, not after reading 60,000 images
    assert pixels(data.stream("mnist", "test[:100]", data_dir=tmp_path)).shape == (100, 28, 28, 1)


@needs_mnist
def test_damaged_description(tmp_path):
    shutil.copytree(Path(PREPARED) / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    folder = next((tmp_path / "mnist").iterdir())
    folder.chmod(0o755)
    (folder / "dataset_info.json").write_text("{ broken")
    with pytest.raises(OSError, match=r"dataset_info\.json.*damaged.*prepare it again"):
        data.load("mnist", data_dir=tmp_path)

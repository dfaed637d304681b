"""Streams of batches against the same examples in one array."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasae import builders, streams
from kerasae.models import VariationalAutoencoder


@pytest.fixture
def x(digits):
    return digits[1][:100]


@pytest.fixture
def model():
    return builders.variational((8, 8, 1), latent_dim=3, hidden_units=(16,))


class Pieces(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    @property
    def num_batches(self):
        return -(-len(self.x) // 32)

    def __getitem__(self, i):
        return self.x[32 * i : 32 * i + 32], np.zeros(len(self.x[32 * i : 32 * i + 32]))


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: tf.data.Dataset.from_tensor_slices(x).batch(32),
        lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(32),
        lambda x: (x[start : start + 32] for start in range(0, len(x), 32)),
        lambda x: [x[:50], x[50:99].astype("float64"), x[99:]],
        Pieces,
    ],
    ids=["dataset", "dataset with labels", "generator", "list", "PyDataset"],
)
def test_codes_are_those_of_the_array(model, x, batches):
    codes = np.concatenate(list(streams.encode(model, batches(x), verbose=0)))
    np.testing.assert_allclose(codes, model.encode(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: builders.undercomplete((8, 8, 1), 2, (16,)),
        lambda: builders.undercomplete((8, 8, 1), 2, (16,), loss="binary_crossentropy"),
        lambda: builders.contractive((8, 8, 1), 2, (16,)),
        lambda: builders.variational((8, 8, 1), 2, (16,), beta=4.0),
        lambda: builders.variational((8, 8, 1), 2, (16,), likelihood="gaussian", variance="predicted"),
        lambda: builders.variational((8, 8, 1), 2, (16,), posterior="isotropic"),
    ],
)
def test_scores_against_numpy(x, make):
    model = make()
    scores = np.concatenate(list(streams.score(model, [x[:60], x[60:]], verbose=0)))
    code = model.encode(x, verbose=0)
    reconstruction = model.decode(code, verbose=0).astype("float64")
    axes = (1, 2, 3)
    if model.needs_unit_interval:
        expected = -(x * np.log(reconstruction) + (1 - x) * np.log1p(-reconstruction)).sum(axes)
    else:
        expected = ((x - reconstruction) ** 2).sum(axes)
    if isinstance(model, VariationalAutoencoder):
        if model.likelihood == "gaussian":
            log_variance = np.asarray(model.decoder(code)[1], "float64")
            squares = (x - reconstruction) ** 2 / np.exp(log_variance)
            expected = 0.5 * (squares + log_variance + np.log(2 * np.pi)).sum(axes)
        z_mean, z_log_var = (np.asarray(output, "float64") for output in model.encoder(x))
        z_log_var = np.broadcast_to(z_log_var, z_mean.shape)
        expected += 0.5 * (np.exp(z_log_var) + z_mean**2 - 1 - z_log_var).sum(1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_an_endless_stream_is_read_one_batch_at_a_time(model, x):
    read = []

    def batches():
        for i in itertools.count():
            read.append(i)
            yield x[:10]

    codes = streams.encode(model, batches(), verbose=0)
    assert not read
    first, second = next(codes), next(codes)
    assert len(read) == 2
    np.testing.assert_array_equal(first, second)


def test_progress_counts_examples(model, x, capsys):
    list(streams.encode(model, [x[:40], x[40:]], total=len(x)))
    assert "100/100" in capsys.readouterr().err
    list(streams.score(model, [x[:40], x[40:]]))
    assert "100 examples" in capsys.readouterr().err


def test_a_stream_becomes_a_file(model, x, tmp_path):
    path = tmp_path / "codes.npy"
    path.write_text("an older one")
    batches = tf.data.Dataset.from_tensor_slices(x).batch(7)
    assert streams.write(streams.encode(model, batches, verbose=0), path) == len(x)
    codes = np.load(path, mmap_mode="r")
    assert codes.shape == (len(x), 3)
    np.testing.assert_allclose(codes, model.encode(x, verbose=0), atol=1e-5)
    assert streams.write(streams.score(model, batches, verbose=0), tmp_path / "scores.npy") == len(x)
    assert np.load(tmp_path / "scores.npy").shape == (len(x),)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npy", "scores.npy"]


def test_a_file_that_is_not_finished_is_not_there(model, x, tmp_path):
    def breaks():
        yield x[:10]
        raise KeyboardInterrupt

    (tmp_path / "codes.npy").write_text("an older one")
    with pytest.raises(KeyboardInterrupt):
        streams.write(streams.encode(model, breaks(), verbose=0), tmp_path / "codes.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npy"]
    assert (tmp_path / "codes.npy").read_text() == "an older one"


@pytest.mark.parametrize(
    ("arrays", "name", "message"),
    [
        ([], "codes.npy", "nothing to write"),
        ([np.zeros((2, 3))], "codes.txt", "must end in .npy"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "codes.npy", r"rows of shape \(3,\) in float64.* Received \(4,\)"),
        ([np.zeros((2, 3)), np.zeros((2, 3), "f4")], "codes.npy", "Received .* in float32 after 2 rows"),
    ],
)
def test_what_is_not_one_array_is_refused(tmp_path, arrays, name, message):
    with pytest.raises(ValueError, match=message):
        streams.write(arrays, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: streams.encode(model.encoder, [x]), "`model` must be a kerasae model"),
        (lambda model, x: streams.encode(model, x), "must be an iterable of batches.*model.encode"),
        (lambda model, x: streams.encode(model, 5), "must be an iterable of batches"),
        (
            lambda model, x: next(streams.encode(model, [x[:, :4]], verbose=0)),
            r"`x in batch 0` must have shape \(batch, 8, 8, 1\)",
        ),
        (lambda model, x: list(streams.encode(model, [x, x * np.nan], verbose=0)), "`x in batch 1` holds NaN"),
        (lambda model, x: next(streams.score(model, [x * 255], verbose=0)), r"must lie in \[0, 1\]"),
        (lambda model, x: next(streams.encode(model, [x[:0]], verbose=0)), "`x in batch 0` is empty"),
    ],
)
def test_what_the_model_does_not_take_is_refused(model, x, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, x)

"""What `fit`, `evaluate`, `predict` and `encode` are given: each kind of bad data is named by the library's own sentence, and its place."""

import logging
import pickle

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from kerasae import builders, checks, models, streams, tasks
from kerasae.models import batches as batches_of

BAD = 3  # the batch that something is wrong with
ENDLESS = "has no end: pass"


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((40, 8)).astype("float32")


@pytest.fixture(scope="module")
def model():
    """Shared: no test here leaves weights that another needs."""
    model = builders.undercomplete((8,), 2, hidden_units=(4,))
    model.compile("sgd")
    return model


@pytest.fixture(scope="module")
def bernoulli():
    model = builders.variational((8,), 2, hidden_units=(4,))
    model.compile("sgd")
    return model


def with_nan(batch):
    batch = batch.copy()
    batch[2, 1] = np.nan
    return batch


SPOILT = {
    "nan": (with_nan, "NaN or infinity, first in example 2"),
    "shape": (lambda batch: batch[:, :7], r"must have shape \(batch, 8\). Received: \(8, 7\)"),
}


def batches(x, spoil=None, form=lambda batch: batch):
    for i in range(5):
        batch = x[8 * i : 8 * i + 8]
        yield form(spoil(batch) if spoil and i == BAD else batch)


def raising(batch):
    raise OSError("the disk is gone")


def nothing():
    yield from ()


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, spoil, endless=False, **workers):
        super().__init__(**workers)
        self.x, self.spoil, self.endless = x, spoil, endless

    @property
    def num_batches(self):
        return None if self.endless else 5

    def __getitem__(self, i):
        batch = self.x[8 * i : 8 * i + 8]
        return self.spoil(batch) if self.spoil and i == BAD else batch


def dataset(x, spoil=None, shape=(None, None)):
    return tf.data.Dataset.from_generator(lambda: batches(x, spoil), output_signature=tf.TensorSpec(shape, tf.float32))


FORMS = {"dataset": dataset, "generator": batches, "sequence": Sequence}


def sliced(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(8)


@pytest.mark.parametrize("fault", SPOILT)
@pytest.mark.parametrize("form", FORMS)
def test_a_bad_batch_in_the_middle_is_named(model, x, form, fault):
    spoil, message = SPOILT[fault]
    with pytest.raises(ValueError, match=f"`x in the dataset's batch 3, counted from 0` .*{message}"):
        model.fit(FORMS[form](x, spoil), verbose=0)
    assert np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_a_bad_batch_of_another_worker_is_named(model, x, processes):
    sequence = Sequence(x, with_nan, workers=2, use_multiprocessing=processes)
    with pytest.raises(ValueError, match="`x in the dataset's batch 3, counted from 0` holds NaN"):
        model.fit(sequence, verbose=0)
    model.fit(Sequence(x, None, workers=2, use_multiprocessing=processes), verbose=0)
    watched = batches_of._WatchedPyDataset(sequence, None)
    assert type(pickle.loads(pickle.dumps(watched))) is Sequence


@pytest.mark.parametrize("call", ["evaluate", "predict", "encode"])
def test_every_call_names_a_bad_batch(model, x, call):
    for fault in SPOILT.values():
        with pytest.raises(ValueError, match=f"batch 3, counted from 0` .*{fault[1]}"):
            getattr(model, call)(dataset(x, fault[0]), verbose=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_fails_to_give_a_batch_is_named(model, x, form):
    with pytest.raises(ValueError, match=r"batch 3.*the disk is gone") as raised:
        model.fit(FORMS[form](x, raising), verbose=0)
    assert raised.value.__cause__ is not None


def test_validation_batches_are_checked(model, bernoulli, x):
    with pytest.raises(ValueError, match="`validation x in the dataset's first batch` must lie in"):
        bernoulli.fit(x, validation_data=sliced(2 * x), verbose=0)
    with pytest.raises(ValueError, match="`validation x in the dataset's batch 3, counted from 0` holds NaN"):
        model.fit(sliced(x), validation_data=dataset(x, with_nan), verbose=0)
    with pytest.raises(ValueError, match="`x in the dataset's batch 3, counted from 0` holds NaN"):
        model.fit(dataset(x, with_nan), validation_data=sliced(x), verbose=0)
    with pytest.raises(ValueError, match="`validation_batch_size` must be a whole number"):
        model.fit(x, validation_data=x, validation_batch_size=-1, verbose=0)
    with pytest.raises(ValueError, match="The validation dataset is empty"):
        model.fit(x, validation_data=sliced(x).take(0), verbose=0)


def test_later_targets_and_weights_are_checked(bernoulli, x):
    ones = np.ones(40, "float32")
    for late, message in (
        ((x, np.where(np.arange(40)[:, None] == 30, 2, x), ones), "`y in the dataset's batch 3.*must lie in"),
        ((x, x, np.where(np.arange(40) == 30, -1, ones)), "`sample_weight in the dataset's batch 3.*at least 0.*-1"),
    ):
        with pytest.raises(ValueError, match=message):
            bernoulli.fit(sliced(*(part.astype("float32") for part in late)), verbose=0)


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict", "encode"])
def test_batches_without_an_end_are_refused_at_once(model, x, call):
    for endless in (sliced(x).repeat(), Sequence(x, None, endless=True)):
        with pytest.raises(ValueError, match=ENDLESS):
            getattr(model, call)(endless, verbose=0)


def test_endless_batches_are_taken_as_often_as_is_said(model, x):
    endless = sliced(x).repeat()
    assert len(model.predict(endless, steps=2, verbose=0)) == 16
    history = model.fit(endless, steps_per_epoch=2, validation_data=endless, validation_steps=1, verbose=0).history
    assert len(history["val_loss"]) == 1
    with pytest.raises(ValueError, match="validation dataset has no end: pass `validation_steps`"):
        model.fit(x, validation_data=endless, verbose=0)


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict", "encode"])
def test_empty_data_is_refused(model, x, call):
    with pytest.raises(ValueError, match="The dataset is empty"):
        getattr(model, call)(sliced(x).take(0), verbose=0)
    with pytest.raises(ValueError, match="The dataset is empty"):
        getattr(model, call)(nothing(), verbose=0)


@pytest.mark.parametrize("dtype", ["float64", "bool", "uint8"])
def test_a_dataset_is_learnt_from_as_an_array_is(x, dtype):
    losses = []
    for data in (x, sliced):
        keras.utils.set_random_seed(0)
        model = builders.undercomplete((8,), 2, hidden_units=(4,), loss="binary_crossentropy")
        model.compile("sgd")
        given = (2 * x).astype(dtype) > 0.5 if dtype == "bool" else np.round(x).astype(dtype)
        given = sliced(given) if data is sliced else given
        losses += model.fit(given, batch_size=8, shuffle=False, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_datasets_of_unknown_shape_and_bare_batches_are_taken(model, x):
    expected = model.predict(x, verbose=0)
    for data in (dataset(x, shape=None), batches(x), batches(x, form=lambda batch: (batch.astype("float64"),))):
        np.testing.assert_allclose(model.predict(data, verbose=0), expected, atol=1e-6)
    assert np.isfinite(model.fit(dataset(x, shape=None), verbose=0).history["loss"][0])


# -- Arrays and frames -------------------------------------------------------------------------------------------------------------------


def test_frames_of_booleans_and_nullable_numbers_are_numbers(model, x):
    flags = x > 0.5
    frame = pd.DataFrame(flags).astype({0: "boolean", 1: "Int64", 2: "Float64", 3: "float32", 4: "int8"})
    np.testing.assert_array_equal(model.encode(frame), model.encode(flags.astype("float32")))
    assert np.isfinite(model.fit(frame, validation_data=frame, verbose=0).history["val_loss"][0])
    frame.iloc[3, 2] = pd.NA
    with pytest.raises(ValueError, match="NaN or infinity, first in example 3"):
        model.fit(frame, verbose=0)
    with pytest.raises(ValueError, match="must hold real numbers"):
        model.fit(frame.astype(str), verbose=0)


def test_masked_entries_are_missing_values(model, x):
    masked = np.ma.masked_greater(x, 0.9)
    for call in (model.fit, model.predict, model.encode, tasks.Reducer().fit):
        with pytest.raises(ValueError, match="NaN"):
            call(masked)
    np.testing.assert_array_equal(checks.array(masked, missing=True), masked.filled(np.nan))
    np.testing.assert_array_equal(checks.array(np.ma.masked_equal([[1, 2]], 2), missing=True), [[1, np.nan]])
    assert checks.array(np.ma.masked_greater(x, 2)) is not None


def test_numbers_beyond_float32_are_refused(model, x):
    for call in (model.fit, model.encode, tasks.Reducer().fit, tasks.AnomalyDetector().fit):
        with pytest.raises(ValueError, match=r"values up to .*e\+299, and float32.* ends at 3\.40282e\+38"):
            call(x.astype("float64") * 1e300)


def test_columns_of_one_name_are_named(x):
    frame = pd.DataFrame(x, columns=list("abcdefga"))
    with pytest.raises(ValueError, match="several columns of one name: a. Rename"):
        tasks.Reducer().fit(frame)


@pytest.mark.parametrize("y", [np.arange(40), np.array(["cat"] * 40), np.eye(10)[np.arange(40) % 10]])
def test_labels_are_told_from_targets(model, x, y):
    with pytest.raises(ValueError, match=r"`y` is the target .*\(batch, 8\).*labels, leave them out"):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=r"`validation y` is the target.*labels"):
        model.fit(x, validation_data=(x, y), verbose=0)
    with pytest.raises(ValueError, match=r"first batch` is the target.*labels, drop them: dataset\.map"):
        model.fit(sliced(x, y), verbose=0)


# -- A model of values in [0, 1] ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["encode", "predict"])
def test_bytes_are_refused_where_values_in_0_to_1_are_meant(bernoulli, x, call):
    run = getattr(bernoulli, call)
    for given in (255 * x, (255 * x).astype("uint8"), sliced(255 * x)):
        with pytest.raises(ValueError, match=r"8-bit images do.*Divide by 255"):
            run(given)
    with pytest.raises(ValueError, match="batch 0.*8-bit"):
        next(streams.encode(bernoulli, iter([255 * x]), verbose=0))
    noisy = x + np.random.default_rng(0).normal(0, 0.5, x.shape).astype("float32")
    assert len(run(noisy, verbose=0)) == len(x)


def test_a_model_of_x_in_another_range_than_its_targets_encodes_it(x):
    model = builders.undercomplete((8,), 2, hidden_units=(4,), loss="binary_crossentropy")
    model.compile("sgd")
    model.fit(255 * x, x, verbose=0)
    assert model.encode(255 * x).shape == (40, 2)
    scaling = keras.Sequential([keras.Input((8,)), keras.layers.Rescaling(1 / 255), keras.layers.Dense(2)])
    decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "sigmoid")])
    own = models.Autoencoder(scaling, decoder, loss="binary_crossentropy")
    assert own.encode(255 * x).shape == (40, 2)


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_a_cross_entropy_needs_an_output_in_0_to_1(x, activation):
    model = builders.undercomplete((8,), 2, loss="binary_crossentropy", output_activation=activation)
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"output lies in \[0, 1\].*'reconstruction', gives values from"):
        model.fit(x, verbose=0)


def test_which_last_layers_give_values_in_0_to_1(x):
    code = keras.Input((2,))
    likelihood = builders.undercomplete((8,), 2, loss="binary_crossentropy").likelihood
    good = [
        [keras.layers.Dense(8, "sigmoid"), keras.layers.Reshape((4, 2))],
        [keras.layers.Dense(8), keras.layers.ReLU(1.0)],
    ]
    bad = [
        [keras.layers.Dense(8, "tanh"), keras.layers.Reshape((4, 2))],
        [keras.layers.Dense(8), keras.layers.LeakyReLU()],
    ]
    for layers_ in good:
        likelihood.check_decoder(keras.Sequential([code, *layers_]))
    for layers_ in bad:
        with pytest.raises(ValueError, match=r"output lies in \[0, 1\]"):
            likelihood.check_decoder(keras.Sequential([code, *layers_]))


# -- Arguments ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_weight": {0: 1}}, "`class_weight` weighs by labels.*sample_weight"),
        ({"validation_split": 1.5}, r"`validation_split` must lie in \[0, 1\)"),
        ({"validation_split": -0.1}, "`validation_split`"),
        ({"sample_weight": -np.ones(40)}, "`sample_weight` must hold numbers of at least 0. Received: -1"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a whole number of at least 1"),
    ],
)
def test_arguments_that_would_go_wrong_in_silence_are_refused(model, x, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.fit(x, verbose=0, **arguments)


def test_a_model_without_an_optimizer_is_evaluated_but_not_fitted(x):
    model = builders.undercomplete((8,), 2)
    model.compile(optimizer=None)
    with pytest.raises(ValueError, match="compiled without an optimizer"):
        model.fit(x, verbose=0)
    assert np.isfinite(model.evaluate(x, verbose=0)).all()


def test_misspelt_and_mistyped_options_are_named():
    with pytest.raises(ValueError, match="Received: 'latent_dims'. Did you mean 'latent_dim'"):
        builders.variational((8,), latent_dims=3)
    with pytest.raises(ValueError, match="`tied` must be True or False. Received: 'no'"):
        builders.deep((8,), 2, tied="no")
    with pytest.raises(ValueError, match=r"goes into compile\(loss"):
        builders.undercomplete((8,), 2, loss=keras.losses.MeanSquaredError())


def test_a_loss_that_the_kl_term_outweighs_is_warned_of(x, caplog):
    model = builders.variational((8,), 2, hidden_units=(4,))
    model.compile("sgd", loss=lambda y, p: 1 - keras.ops.mean(y * p, axis=-1))
    with caplog.at_level(logging.WARNING):
        model.fit(x, verbose=0)
    assert "the KL term, in nats, outweighs them" in caplog.text


def test_training_that_diverges_is_warned_of(x, caplog):
    model = builders.undercomplete((8,), 2)
    model.compile("sgd")
    with caplog.at_level(logging.WARNING):
        model.fit(1e25 * x, verbose=0)
    assert "Training diverged" in caplog.text


def test_a_threshold_that_is_no_number_is_refused(x):
    detector = tasks.AnomalyDetector(epochs=1, n_estimators=1).fit(x)
    detector.offset_ = float("nan")
    with pytest.raises(ValueError, match="threshold is nan"):
        detector.predict(x)

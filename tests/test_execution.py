"""Long fits run several compiled steps at once, and compute what Keras's own way does."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import FAMILIES, INPUT_SHAPE, fast

import kerasae
from kerasae.models import execution, feeding

BATCH_SIZE, NUM_BATCHES = 4, 35


@pytest.fixture
def always(monkeypatch):
    """Even a short fit is worth it."""
    monkeypatch.setattr(execution, "WORTHWHILE_STEPS", 1)


@pytest.fixture
def x():
    # an odd last batch
    return np.random.default_rng(0).random((BATCH_SIZE * (NUM_BATCHES - 1) + 3, 12), dtype="float32")


def small(**options):
    keras.utils.set_random_seed(0)
    return kerasae.builders.undercomplete((12,), latent_dim=3, hidden_units=(8,), seed=0, **options)


def planned(model, x, **arguments):
    arguments = {"x": x, "batch_size": BATCH_SIZE, "epochs": 40, **arguments}
    return execution.plan(model, arguments)


class EachBatch(keras.callbacks.Callback):
    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


def compiled(**options):
    model = small()
    model.compile("adam", **options)
    return model


def test_long_fits_are_compiled_and_run_several_steps_at_once(x):
    # 34 whole batches and the odd one: 17 at a time leave only that over, or 34
    assert planned(compiled(), x) == (True, 34)


def test_short_fits_are_keras_own(x):
    assert planned(compiled(), x, epochs=2) == (False, 1)


@pytest.mark.parametrize(
    ("callback", "at_once"),
    [
        (EachBatch(), 1),
        (keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None), 1),
        (keras.callbacks.TerminateOnNaN(), 1),
        (keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None), 34),
        (keras.callbacks.EarlyStopping("loss"), 34),
        (keras.callbacks.ModelCheckpoint("m.keras"), 34),
        (keras.callbacks.ModelCheckpoint("m.keras", save_freq=10), 1),
    ],
)
def test_callbacks_that_watch_batches_see_each(x, callback, at_once):
    assert planned(compiled(), x, callbacks=[callback]) == (True, at_once)


def test_no_more_batches_are_taken_than_asked_for(x):
    assert planned(compiled(), x, steps_per_epoch=28) == (True, 28)
    assert planned(compiled(), x, steps_per_epoch=31 * 3) == (True, 31)
    assert planned(compiled(), x, steps_per_epoch=101) == (True, 1)
    assert planned(compiled(), x, validation_steps=2) == (True, 1)


def test_an_epoch_ends_after_its_steps(x, always):
    weights = []
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE).repeat()
    for options in ({}, {"jit_compile": False}):
        model = small()
        model.compile("sgd", **options)
        model.fit(dataset, steps_per_epoch=18, epochs=3, verbose=0)
        assert int(model.optimizer.iterations) == 3 * 18
        weights.append(model.get_weights())
    for ours, keras_own in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-5, atol=2e-6)


def test_steps_at_once_fit_into_memory(x):
    wide = np.zeros((640, 2**20 // 4), "float32")  # a megabyte an example
    assert planned(compiled(), wide, batch_size=8, epochs=100)[1] <= 8
    assert planned(compiled(), wide, batch_size=64, epochs=100) == (True, 1)


def test_a_dataset_of_known_size_is_planned_for(x):
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE)
    assert planned(compiled(), dataset) == (True, 34)
    assert planned(compiled(), dataset.filter(lambda batch: True)) == (False, 1)


def test_what_xla_may_not_know_is_not_compiled(x):
    class Mine(keras.layers.Dense):
        pass

    encoder = keras.Sequential([keras.Input((12,)), Mine(3)])
    decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(12)])
    model = kerasae.models.Autoencoder(encoder, decoder)
    model.compile("adam")
    assert planned(model, x) == (False, 34)
    model = small(activation=lambda t: tf.nn.relu(t))
    model.compile("adam")
    assert planned(model, x) == (False, 34)
    for own in ({"loss": lambda y, y_pred: tf.reduce_mean((y - y_pred) ** 2, axis=-1)}, {"metrics": [lambda y, p: y]}):
        assert planned(compiled(**own), x) == (False, 34)
    assert planned(compiled(loss="mse", metrics=["mae", keras.metrics.MeanSquaredError()]), x) == (True, 34)


def test_convolutions_are_not_compiled(x):
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=3, hidden_units=(4,), network="conv")
    model.compile("adam")
    assert planned(model, np.zeros((139, 8, 8, 1), "float32")) == (False, 34)


def test_a_users_subclass_runs_as_keras_runs_it(x):
    class Mine(kerasae.models.Autoencoder):
        pass

    model = small()
    model = Mine(model.encoder, model.decoder)
    model.compile("adam")
    assert planned(model, x) == (False, 1)


@pytest.mark.parametrize("options", [{"jit_compile": False}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_what_the_user_asked_for_is_left_alone(x, options, always, monkeypatch):
    model = compiled(**options)
    monkeypatch.setattr(execution, "plan", lambda *_: pytest.fail("planned"))
    model.fit(x, batch_size=BATCH_SIZE, verbose=0)


@pytest.mark.parametrize("data", ["array", "dataset", "pairs"])
@pytest.mark.parametrize("each_batch", [False, True])
def test_computes_what_keras_own_way_does(x, always, data, each_batch):
    weights, histories = [], []
    y, sample_weight = x[::-1].copy(), np.linspace(0.5, 1.5, len(x), dtype="float32")
    for options in ({}, {"jit_compile": False}):
        model = small()
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), metrics=["mae"], **options)
        callback = EachBatch()
        arguments = {
            "array": {"x": x, "batch_size": BATCH_SIZE},
            "dataset": {"x": tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE)},
            "pairs": {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": BATCH_SIZE},
        }[data]
        history = model.fit(
            **arguments,
            epochs=3,
            shuffle=False,
            validation_data=(x[:50],),
            callbacks=[callback] if each_batch else None,
            verbose=0,
        )
        assert callback.batches == (3 * NUM_BATCHES if each_batch else 0)
        assert model.steps_per_execution == 1
        assert int(model.optimizer.iterations) == 3 * NUM_BATCHES
        weights.append(model.get_weights())
        histories.append(history.history)
    for ours, keras_own in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-5, atol=2e-6)
    assert histories[0].keys() == histories[1].keys()
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-5)


@pytest.mark.parametrize("row", fast({"k-sparse-dense", "contractive-dense", "variational-dense"}, FAMILIES))
def test_every_family_is_carried_out(row, always):
    keras.utils.set_random_seed(0)
    model = FAMILIES[row]()
    model.compile("adam")
    x = np.random.default_rng(0).random((2 * 17 + 1, *INPUT_SHAPE), dtype="float32")
    history = model.fit(x, batch_size=2, epochs=2, verbose=0).history
    assert model.compiled_steps.by_plan
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][1] < history["loss"][0] * 1.1
    # and nothing of it stays behind
    assert np.isfinite(model.evaluate(x, verbose=0, return_dict=True)["loss"])


@pytest.mark.parametrize("fit_before", [False, True])
def test_k_annealing_is_carried_out_too(always, x, fit_before):
    """After a fit the steps are traced for k = 2, and would keep no more."""
    weights = []
    for options in ({}, {"jit_compile": False}):
        keras.utils.set_random_seed(0)
        model = kerasae.builders.k_sparse((12,), latent_dim=8, k=2, hidden_units=())
        model.compile(keras.optimizers.SGD(1e-2, momentum=0.9), **options)
        arguments = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
        if fit_before:
            model.fit(x, **arguments)
        model.fit(x, epochs=2, callbacks=[kerasae.models.KAnnealing(6, epochs=9)], **arguments)
        weights.append(model.get_weights())
        assert model.train_function is None or "jit_compile" in options
    for ours, keras_own in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-5, atol=2e-6)


def test_arrays_are_fed_in_keras_own_batches_but_untuned(x):
    y = x[::-1].copy()
    dataset = feeding.fed(compiled(), {"x": x, "y": y, "batch_size": BATCH_SIZE})["x"]
    # tf.data may wait seconds for its tuning thread when an epoch ends.
    assert dataset.options().autotune.enabled is False
    assert int(dataset.cardinality()) == NUM_BATCHES
    batches = list(dataset)
    assert [len(b) for b, _ in batches] == [BATCH_SIZE] * (NUM_BATCHES - 1) + [3]
    np.testing.assert_array_equal(np.concatenate([b for b, _ in batches]), x)
    np.testing.assert_array_equal(np.concatenate([b for _, b in batches]), y)


@pytest.mark.parametrize("kind", ["autoencoder", "Boltzmann machine"])
def test_every_epoch_of_a_seeded_fit_has_its_own_order(x, kind, monkeypatch):
    seen = []
    if kind == "autoencoder":
        model = compiled(run_eagerly=True)
    else:
        keras.utils.set_random_seed(0)
        model = kerasae.models.RestrictedBoltzmannMachine(12, 3)
        model.compile("sgd", run_eagerly=True)
    step = model.train_step
    monkeypatch.setattr(model, "train_step", lambda data: seen.append(data[0].numpy()) or step(data), raising=False)
    model.fit(x, batch_size=BATCH_SIZE, epochs=2, verbose=0)
    first, second = np.concatenate(seen[:NUM_BATCHES]), np.concatenate(seen[NUM_BATCHES:])
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(x, axis=0))


def test_arrays_are_shuffled_anew_each_epoch(x):
    dataset = feeding.fed(compiled(), {"x": x, "batch_size": BATCH_SIZE}, shuffle=True)["x"]
    first, second = (np.concatenate([batch for (batch,) in dataset]) for _ in range(2))
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(x, axis=0))


@pytest.mark.parametrize("batch_size", [0, -2, 2.5])
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict", "encode"])
def test_bad_batch_sizes_are_refused(x, batch_size, call):
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
        getattr(compiled(), call)(x, batch_size=batch_size, verbose=0)


def test_validation_during_fit_is_what_evaluate_says(always, x):
    model = kerasae.builders.variational((12,), latent_dim=2, hidden_units=(8,), seed=0)
    model.compile("adam")
    history = model.fit(x, batch_size=BATCH_SIZE, validation_data=(x,), verbose=0).history
    logs = model.evaluate(x, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
    assert {name: history[f"val_{name}"][-1] for name in logs} == pytest.approx(logs, rel=1e-5)


def test_a_loaded_model_is_planned_for_again(always, x, tmp_path):
    model = compiled()
    model.fit(x, batch_size=BATCH_SIZE, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(x, batch_size=BATCH_SIZE, shuffle=False, verbose=0)
    assert loaded.compiled_steps.by_plan
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_short_fit_takes_steps_that_an_earlier_one_has_compiled(x, monkeypatch):
    model, keras_own = compiled(), small()
    keras_own.compile("adam", jit_compile=False)
    arguments = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
    with monkeypatch.context() as patch:
        patch.setattr(execution, "WORTHWHILE_STEPS", 1)
        model.fit(x, **arguments)
    ((plan, (function, _)),) = model.compiled_steps.by_plan.items()
    assert planned(model, x, epochs=1) == plan == (True, 34)
    traces = function.steps.experimental_get_tracing_count(), function.one_step.experimental_get_tracing_count()
    model.fit(x, **arguments)
    assert model.compiled_steps.by_plan[plan][0] is function
    assert (
        function.steps.experimental_get_tracing_count(),
        function.one_step.experimental_get_tracing_count(),
    ) == traces
    for _ in range(2):
        keras_own.fit(x, **arguments)
    for ours, theirs in zip(model.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    # What would have to be compiled first is not.
    assert planned(model, x[:-1], epochs=1) == planned(model, x, epochs=1, batch_size=5) == (False, 1)
    assert planned(model, x, epochs=1, callbacks=[EachBatch()]) == (False, 1)
    model.compile("adam")
    assert planned(model, x, epochs=1) == (False, 1)


def test_a_short_fit_of_a_loaded_model_is_that_of_the_one_that_was_saved(x, monkeypatch, tmp_path):
    # XLA rounds otherwise, and draws other noise.
    model = kerasae.builders.variational(12, 3, (8,), likelihood="gaussian", seed=0)
    model.compile("adam")
    with monkeypatch.context() as patch:
        patch.setattr(execution, "WORTHWHILE_STEPS", 1)
        model.fit(x, batch_size=BATCH_SIZE, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(x, batch_size=BATCH_SIZE, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_layers_say_whether_xla_makes_them_faster(x, caplog):
    @keras.saving.register_keras_serializable("tests")
    class Mine(keras.layers.Dense):
        compiles_well = True

    decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(12)])
    model = kerasae.models.Autoencoder(keras.Sequential([keras.Input((12,)), Mine(3)]), decoder)
    model.compile("adam")
    assert planned(model, x) == (True, 34)

    def of_layer(layer):
        layers = [keras.layers.Reshape((12, 1)), layer, keras.layers.Dense(3)]
        model = kerasae.models.Autoencoder(keras.Sequential([keras.Input((12,)), *layers]), decoder)
        model.compile("adam")
        return planned(model, x)

    assert of_layer(keras.layers.LSTM(32)) == (True, 34)
    with caplog.at_level("DEBUG", "kerasae"):
        assert of_layer(keras.layers.LSTM(256, name="memory")) == (False, 34)
    assert any(record.getMessage().startswith("memory: not compiled by XLA") for record in caplog.records)
    for layer in vars(kerasae.layers).values():
        if isinstance(layer, type) and issubclass(layer, keras.layers.Layer):
            assert isinstance(layer.compiles_well, bool)

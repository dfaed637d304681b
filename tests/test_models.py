"""The contract: everything an ordinary Keras model does, every family does."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import (
    CLASSES,
    EVERY_CLASS,
    EVERY_ROW,
    EVERY_STEP,
    FAMILIES,
    INPUT_SHAPE,
    LATENT_DIM,
    SEVERAL_INPUTS,
    STATE_AND_NOISE,
    fast,
    several_inputs,
    with_side_inputs,
)
from keras import layers

from kerasae import builders, models, streams
from kerasae.layers import MaskingCorruption

NUM_EXAMPLES = 50  # three batches of 16 and an odd one of 2
BATCH_SIZE = 16


@pytest.fixture(scope="module")
def x(digits):
    return digits[0][:NUM_EXAMPLES]


@pytest.fixture
def build(request):
    return FAMILIES[request.param]


every_row = pytest.mark.parametrize("build", EVERY_ROW, indirect=True)
every_class = pytest.mark.parametrize("build", EVERY_CLASS, indirect=True)
every_step = pytest.mark.parametrize("build", EVERY_STEP, indirect=True)
state_and_noise = pytest.mark.parametrize("build", STATE_AND_NOISE, indirect=True)


def compiled(build, **kwargs):
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(**{"optimizer": keras.optimizers.Adam(1e-2), **kwargs})
    return model


def fit(model, x, epochs=1, **kwargs):
    return model.fit(x, epochs=epochs, batch_size=BATCH_SIZE, verbose=0, shuffle=False, **kwargs)


def assert_same_weights(a, b, tolerance=0):
    for p, q in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=tolerance, err_msg=p.path)


def total_of_terms(model, logs):
    weights = model.term_weights
    return sum(float(weights.get(name, 1.0)) * logs[name] for name in model.term_names)


@every_class
def test_fit_lowers_the_loss_and_logs_every_term(build, x):
    model = compiled(build)
    history = fit(model, x, epochs=20, validation_data=(x,)).history
    logged = {"loss", *model.term_names} | ({"active_units"} if model.active_threshold is not None else set())
    assert set(history) == {prefix + name for prefix in ("", "val_") for name in logged}
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert np.isfinite(list(history.values())).all()


@every_row
def test_loss_is_the_weighted_sum_of_its_terms_and_of_regularisers(build, x):
    model = compiled(build)
    logs = model.evaluate(x, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
    regularisers = float(sum(model.losses)) if model.losses else 0.0
    assert logs["loss"] == pytest.approx(total_of_terms(model, logs) + regularisers, rel=1e-5)


@every_class
def test_an_odd_last_batch_counts_by_its_examples(build, x):
    model = compiled(build)
    # Batches of 16, 16, 16 and 2 against one of 50. Terms that noise enters draw other noise then, so compare the others.
    odd = model.evaluate(x, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
    whole = model.evaluate(x, batch_size=NUM_EXAMPLES, verbose=0, return_dict=True)
    noisy = {"reconstruction_loss", "bound_loss"} if model.posterior is not None else set()
    if getattr(model, "jacobian", None) == "stochastic":
        noisy = {"contraction_loss"}
    # Ng's batch means are of a batch by their definition.
    of_a_batch = {"sparsity_loss"} if getattr(model, "average", None) == "batch" else set()
    for name in set(model.term_names) - noisy - of_a_batch:
        assert odd[name] == pytest.approx(whole[name], rel=1e-5), name


@state_and_noise
def test_evaluation_is_repeatable_and_leaves_training_alone(build, x):
    model, undisturbed = compiled(build), compiled(build)
    fit(model, x)
    assert model.evaluate(x, verbose=0) == model.evaluate(x, verbose=0)
    fit(model, x)
    fit(undisturbed, x)
    fit(undisturbed, x)
    assert_same_weights(model, undisturbed)


@state_and_noise
def test_arrays_and_tf_data_give_the_same_model(build, x):
    arrays, dataset = compiled(build), compiled(build)
    fit(arrays, x)
    dataset.fit(tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE), verbose=0)
    assert_same_weights(arrays, dataset)


@every_step
def test_an_explicit_target_is_what_is_learnt(build, x):
    itself, explicit, other = compiled(build), compiled(build), compiled(build)
    fit(itself, x)
    fit(explicit, x, y=x)
    fit(other, x, y=1 - x)
    assert_same_weights(itself, explicit)
    assert not np.allclose(itself.encoder.get_weights()[0], other.encoder.get_weights()[0], atol=1e-4)


@every_class
def test_sample_weights_scale_the_terms(build, x):
    model = compiled(build)
    plain = model.evaluate(x, verbose=0, return_dict=True)
    doubled = model.evaluate(x, sample_weight=np.full(len(x), 2.0), verbose=0, return_dict=True)
    for name in model.term_names:
        assert doubled[name] == pytest.approx(2 * plain[name], rel=1e-5)


@every_step
def test_examples_of_weight_zero_are_not_learnt_from(build, x):
    if "own" in build.__name__ or getattr(build(), "average", None) == "batch":
        pytest.skip("batch normalisation and Ng's batch means are of every example, whatever its weight")
    weights = np.where(np.arange(len(x)) % 2, 0.0, 1.0)
    changed = np.where(weights[:, None, None, None] == 0, 1 - x, x)
    a, b = compiled(build), compiled(build)
    fit(a, x, sample_weight=weights)
    fit(b, changed, sample_weight=weights)
    assert_same_weights(a, b, tolerance=1e-6)


@every_class
def test_keras_losses_and_metrics_keep_their_meaning(build, x):
    model = compiled(build, loss="mse", metrics=["mae"])
    if "reconstruction_loss" not in model.term_names:  # nothing that a Keras loss could take the place of
        with pytest.raises(ValueError, match="compile it without `loss`"):
            fit(model, x)
        return
    logs = fit(model, x, validation_data=(x, None, np.ones(len(x)))).history
    assert {"mae", "val_mae"} <= set(logs)
    result = model.evaluate(x, batch_size=NUM_EXAMPLES, verbose=0, return_dict=True)
    if "kl_loss" not in model.term_names:  # evaluation of a variational model draws z, predict doesn't
        reconstruction = model.predict(x, verbose=0)
        assert result["reconstruction_loss"] == pytest.approx(np.mean((x - reconstruction) ** 2), rel=1e-4)
        assert result["mae"] == pytest.approx(np.mean(np.abs(x - reconstruction)), rel=1e-4)


@state_and_noise
def test_callbacks_see_every_batch_and_can_stop(build, x):
    class Count(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs):
            self.batches += 1
            assert {"loss", *self.model.term_names} <= set(logs)

    count = Count()
    stop = keras.callbacks.EarlyStopping("val_loss", mode="max", patience=1)  # the loss falls, so this stops
    history = fit(compiled(build), x, epochs=5, validation_data=(x,), callbacks=[count, stop])
    assert len(history.epoch) == 2
    assert count.batches == 8


# In CI each way of running with the two steps that it is likeliest to break.
EXECUTION = {
    "jit_compile": ({"jit_compile": True}, {"contractive-dense", "variational-dense"}),
    "steps_per_execution": ({"steps_per_execution": 3}, {"undercomplete-own", "incomplete-dense"}),
    "run_eagerly": ({"run_eagerly": True}, {"undercomplete-own", "variational-dense"}),
}


@pytest.mark.parametrize(
    ("build", "options"),
    [
        pytest.param(row, options, id=f"{row}-{name}", marks=() if row in chosen else pytest.mark.slow)
        for name, (options, chosen) in EXECUTION.items()
        for row in FAMILIES
    ],
    indirect=["build"],
)
def test_execution_options_change_nothing(build, x, options):
    plain, other = compiled(build, jit_compile=False), compiled(build, **options)
    seeds = [state.numpy() for state in plain._seed_states()]
    losses = [fit(model, x).history["loss"][0] for model in (plain, other)]
    draws_noise = any((state.numpy() != seed).any() for state, seed in zip(plain._seed_states(), seeds, strict=True))
    if "jit_compile" in options and draws_noise:  # XLA draws other numbers from the same seed
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
    else:
        assert_same_weights(plain, other, tolerance=2e-5)


@pytest.mark.parametrize("clip", fast({"global_clipnorm"}, ["clipnorm", "global_clipnorm", "clipvalue"]))
@every_step
def test_gradient_clipping_bounds_the_step(build, x, clip):
    model = compiled(build, optimizer=keras.optimizers.SGD(1.0, **{clip: 1e-4}))
    before = [w.numpy() for w in model.trainable_weights]
    model.train_on_batch(x)
    steps = [np.abs(w.numpy() - b).max() for w, b in zip(model.trainable_weights, before, strict=True)]
    assert 0 < max(steps) <= 1e-4 * 1.001


@pytest.mark.parametrize("policy", fast({"mixed_float16"}, ["mixed_float16", "mixed_bfloat16"]))
@every_class
def test_mixed_precision_learns_with_finite_float32_losses(build, x, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = compiled(build)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
        history = fit(model, x, epochs=10).history
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert history["loss"][-1] < history["loss"][0]
    assert all(v.dtype == "float32" for v in model.trainable_variables)


# Beside the classes, what has a weight of its own or layers whose state matters.
@pytest.mark.parametrize("build", fast({*CLASSES, "variational-learned", "k-sparse-conv"}, FAMILIES), indirect=True)
def test_stop_save_load_and_go_on_as_if_nothing_had_happened(build, x, tmp_path):
    uninterrupted, stopped = compiled(build), compiled(build)
    fit(uninterrupted, x, epochs=2)
    fit(stopped, x)
    stopped.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras only warns where it drops the optimiser's state
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(stopped)
    assert json.dumps(loaded.get_config()) == json.dumps(stopped.get_config())
    assert loaded.evaluate(x, verbose=0) == stopped.evaluate(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), stopped.predict(x, verbose=0))
    fit(loaded, x)
    assert_same_weights(uninterrupted, loaded)


@state_and_noise
def test_backup_and_restore_resumes_exactly(build, x, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    backup = lambda: keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))  # noqa: E731
    uninterrupted, resumed = compiled(build), compiled(build)
    fit(uninterrupted, x, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(build), x, epochs=2, callbacks=[backup(), Interrupt()])
    fit(resumed, x, epochs=2, callbacks=[backup()])
    assert_same_weights(uninterrupted, resumed)


@every_row
def test_config_round_trip_builds_the_same_architecture(build):
    model = build()
    again = type(model).from_config(model.get_config())
    assert json.dumps(again.get_config()) == json.dumps(model.get_config())
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]


@state_and_noise
def test_the_same_seed_gives_the_same_weights(build, x):
    a, b = compiled(build), compiled(build)
    for model in (a, b):
        keras.utils.set_random_seed(1)
        model.fit(x, epochs=2, batch_size=BATCH_SIZE, verbose=0)
    assert_same_weights(a, b)


@every_row
def test_encode_decode_predict_agree(build, x):
    model = build()
    z = model.encode(x)
    assert z.shape == (len(x), LATENT_DIM)
    assert z.dtype == np.float32
    reconstruction = model.decode(z)
    assert reconstruction.shape == x.shape
    np.testing.assert_allclose(reconstruction, model.predict(x, verbose=0), atol=1e-6)


BAD_ARRAYS = {
    "rank": (lambda x: x[..., 0], r"must have shape \(batch, 8, 8, 1\).*Add the channel dimension"),
    "one example": (lambda x: x[0], "needs a batch dimension"),
    "shape": (lambda x: x[:, :7], r"must have shape \(batch, 8, 8, 1\). Received: \(50, 7, 8, 1\)"),
    "dtype": (lambda x: x.astype(str), "must hold real numbers"),
    "nan": (lambda x: np.where(x == x.max(), np.nan, x), "holds NaN or infinity, first in example 0"),
    "infinity": (lambda x: np.where(np.arange(len(x))[:, None, None, None] == 7, np.inf, x), "first in example 7"),
    "empty": (lambda x: x[:0], "is empty"),
    "none": (lambda x: None, "No data"),
}


@pytest.mark.parametrize("bad", BAD_ARRAYS)
@every_step
def test_bad_data_is_refused_before_training(build, x, bad):
    spoil, message = BAD_ARRAYS[bad]
    model = compiled(build)
    if bad == "nan" and model.takes_missing:
        assert np.isfinite(fit(model, spoil(x)).history["loss"]).all()
        assert np.isfinite(model.predict(spoil(x), verbose=0)).all()
        return
    with pytest.raises(ValueError, match=message):
        fit(model, spoil(x))
    assert model.optimizer.iterations == 0
    if bad != "none":
        with pytest.raises(ValueError, match=message):
            fit(model, x, validation_data=(spoil(x),))
        with pytest.raises(ValueError, match=message):
            model.evaluate(spoil(x), verbose=0)
        with pytest.raises(ValueError, match=message):
            model.encode(spoil(x))
        with pytest.raises(ValueError, match=message):
            model.predict(spoil(x), verbose=0)


@every_step
def test_values_outside_the_unit_interval_are_refused_under_a_cross_entropy(build, x):
    model = compiled(build)
    if model.needs_unit_interval:
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\].*from 0 to 255. Divide 8-bit images by 255"):
            fit(model, x * 255)
        with pytest.raises(ValueError, match=r"`y` must lie in \[0, 1\]"):
            fit(model, x, y=-x)
    else:
        fit(model, x * 2 - 1)


@every_step
def test_bad_targets_weights_and_datasets_are_refused(build, x):
    model = compiled(build)
    with pytest.raises(ValueError, match="same number of examples. Received: 50 and 49"):
        fit(model, x, y=x[1:])
    with pytest.raises(ValueError, match=r"must have shape \(50,\), a weight an example"):
        fit(model, x, sample_weight=np.ones((50, 8)))
    dataset = tf.data.Dataset.from_tensor_slices
    with pytest.raises(ValueError, match="If y are labels, drop them"):
        model.fit(dataset((x, np.zeros(len(x)))).batch(4))
    with pytest.raises(ValueError, match="dataset is empty"):
        model.fit(dataset(x[:0]).batch(4))
    with pytest.raises(ValueError, match="first batch.* holds NaN or infinity"):
        model.fit(dataset(np.full_like(x, np.inf if model.takes_missing else np.nan)).batch(4))
    with pytest.raises(ValueError, match=r"first batch.* must have shape \(batch, 8, 8, 1\)"):
        model.fit(dataset(x).batch(4).batch(4))


def test_networks_that_do_not_fit_are_refused():
    encoder, decoder = builders.undercomplete(INPUT_SHAPE, 3).encoder, builders.undercomplete(INPUT_SHAPE, 4).decoder
    with pytest.raises(ValueError, match=r"the encoder gives codes of shape \(3,\), the decoder takes \(4,\)"):
        builders.undercomplete(encoder=encoder, decoder=decoder)
    with pytest.raises(ValueError, match=r"examples of shape \(8, 8, 1\), the decoder gives \(9, 8, 1\)"):
        builders.undercomplete(encoder=encoder, decoder=builders.undercomplete((9, 8, 1), 3).decoder)
    with pytest.raises(ValueError, match=r"must have 2 output\(s\). Received 1"):
        builders.variational(encoder=encoder, decoder=decoder)
    with pytest.raises(ValueError, match="Missing: `decoder`"):
        builders.undercomplete(encoder=encoder)
    with pytest.raises(ValueError, match="Received besides: \\['latent_dim'\\]"):
        builders.undercomplete(latent_dim=3, encoder=encoder, decoder=decoder)
    with pytest.raises(ValueError, match="must be a Keras model"):
        builders.undercomplete(encoder="encoder", decoder=decoder)
    with pytest.raises(ValueError, match=r"Add keras.layers.Activation\(.sigmoid.\)"):
        builders.undercomplete(
            encoder=encoder, decoder=builders.undercomplete(INPUT_SHAPE, 3).decoder, loss="binary_crossentropy"
        )


@pytest.mark.parametrize("builder", [builders.undercomplete, builders.variational])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "`latent_dim` must be a whole number of at least 1. Received: 0"),
        ({"latent_dim": "2"}, "Received: '2'"),
        ({"latent_dim": 2.5}, "Received: 2.5"),
        ({"latent_dim": None}, "Pass `input_shape` and `latent_dim`"),
        ({"hidden_units": (16, -1)}, r"`hidden_units\[1\]` must be a whole number"),
        ({"hidden_units": 16}, "`hidden_units` must be a tuple"),
        (
            {"network": "convolutional"},
            r"one of \['conv', 'conv1d', 'dense', 'gru', 'lstm'\]. Received: 'convolutional'. Did you mean 'conv'",
        ),
        ({"network": "conv", "input_shape": (64,)}, r"needs `input_shape` \(height, width, channels\)"),
        ({"input_shape": ()}, "at least one dimension"),
        ({"input_shape": (None, 8)}, r"`input_shape\[0\]`"),
    ],
)
def test_bad_hyperparameters_are_refused(builder, arguments, message):
    with pytest.raises(ValueError, match=message):
        builder(**{"input_shape": INPUT_SHAPE, "latent_dim": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
        ({"likelihood": "gaussian", "variance": 0.0}, "`variance` must be a finite number above 0"),
        ({"beta": -1.0}, "`beta` must be a finite number of at least 0"),
        ({"beta": float("nan")}, "`beta`"),
    ],
)
def test_bad_variational_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        builders.variational(INPUT_SHAPE, 2, **arguments)


def test_overcomplete_without_a_regulariser_warns():
    with pytest.warns(UserWarning, match="a code of 64 units for 64 features, and no regulariser"):
        builders.undercomplete(INPUT_SHAPE, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builders.undercomplete(INPUT_SHAPE, 63)


# -- Encoders with several inputs: the first is reconstructed ----------------------------------------------------------------------------


@pytest.fixture(params=fast({"undercomplete", "variational-dict", "k-sparse-dict"}, SEVERAL_INPUTS))
def build_several(request):
    return SEVERAL_INPUTS[request.param]


def test_several_inputs_train_stop_and_go_on(build_several, x, tmp_path):
    inputs = with_side_inputs(x)
    uninterrupted, stopped = compiled(build_several), compiled(build_several)
    assert [tensor.name for tensor in stopped.encoder.inputs] == ["image", "label", "ages"]
    history = fit(uninterrupted, inputs, epochs=10, validation_data=(inputs,)).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert history["val_loss"][-1] < 0.9 * history["val_loss"][0]
    fit(stopped, inputs, epochs=9)
    stopped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(inputs, verbose=0) == stopped.evaluate(inputs, verbose=0)
    np.testing.assert_array_equal(loaded.encode(inputs), stopped.encode(inputs))
    fit(loaded, inputs)
    assert_same_weights(uninterrupted, loaded)


@pytest.mark.parametrize("family", fast({"variational-dict"}, SEVERAL_INPUTS))
def test_several_inputs_in_every_form_mean_the_same(family, x):
    """A list, a tuple, a dict by name, and data sets of them; with the first as target, by default or said."""
    build_several = SEVERAL_INPUTS[family]
    inputs = with_side_inputs(x)
    by_name = dict(zip(("ages", "image", "label"), [inputs[i] for i in (2, 0, 1)], strict=True))
    expected = compiled(build_several)
    fit(expected, inputs)
    for data in (
        {"x": tuple(inputs)},
        {"x": by_name, "y": x},
        {"x": inputs, "sample_weight": np.ones(len(x))},
        {"x": tf.data.Dataset.from_tensor_slices((tuple(inputs),)).batch(BATCH_SIZE)},
        {"x": tf.data.Dataset.from_tensor_slices(by_name).batch(BATCH_SIZE)},
    ):
        model = compiled(build_several)
        if isinstance(data["x"], tf.data.Dataset):
            model.fit(data["x"], verbose=0)
            batch_size = {}
        else:
            fit(model, **data)
            batch_size = {"batch_size": BATCH_SIZE}
        assert_same_weights(expected, model)
        if "y" not in data:
            losses = expected.evaluate(inputs, batch_size=BATCH_SIZE, verbose=0)
            assert model.evaluate(**data, **batch_size, verbose=0) == losses
        np.testing.assert_allclose(model.encode(data["x"]), expected.encode(inputs), atol=1e-6)
        np.testing.assert_allclose(
            model.predict(data["x"], verbose=0), expected.decode(expected.encode(inputs)), atol=1e-6
        )
    batches = (([array[i : i + 20] for array in inputs],) for i in range(0, len(x), 20))
    np.testing.assert_allclose(
        np.concatenate(list(streams.encode(expected, batches, verbose=0))), expected.encode(inputs), atol=1e-6
    )
    assert 0 <= expected.active_units(inputs) <= LATENT_DIM


def test_side_inputs_matter_and_are_not_reconstructed(x):
    model = compiled(SEVERAL_INPUTS["undercomplete"])
    images, labels, ages = with_side_inputs(x)
    other = model.encode([images, (labels + 1) % 10, ages])
    assert np.abs(model.encode([images, labels, ages]) - other).max() > 1e-3
    loss = model.evaluate([images, labels, ages], batch_size=len(x), verbose=0, return_dict=True)["reconstruction_loss"]
    error = ((images - model.predict([images, labels, ages], verbose=0)) ** 2).sum((1, 2, 3)).mean()
    assert loss == pytest.approx(error, rel=1e-5)


def test_corruption_leaves_side_inputs_alone():
    """Seen through an encoder that gives back what it takes."""
    x, side = keras.Input((100,), name="x"), keras.Input((100,), name="side")
    encoder = keras.Model([x, side], keras.layers.Concatenate()([x, side]))
    decoder = keras.Sequential([keras.Input((200,)), keras.layers.Dense(100)])
    model = models.DenoisingAutoencoder(encoder, decoder, corruption=MaskingCorruption(0.3))
    ones = tf.ones((50, 100))
    z = model.forward([ones, ones], training=True)["z"].numpy()
    assert z[:, :100].mean() == pytest.approx(0.7, abs=0.03)
    assert (z[:, 100:] == 1).all()


def test_log_likelihood_with_side_inputs(x):
    """Held against a model with one input, in which the same side inputs are constants."""
    model = SEVERAL_INPUTS["variational-dict"]()
    image = keras.Input(INPUT_SHAPE)
    zeros = keras.ops.zeros_like(image[:, :2, 0, 0])
    label = keras.ops.cast(zeros[:, 0], "int32")
    alone = models.VariationalAutoencoder(keras.Model(image, model.encoder([image, label, zeros])), model.decoder)
    x, labels, ages = x[:7], np.zeros(7, int), np.zeros((7, 2))
    nats = model.log_likelihood([x, labels, ages], num_samples=20, decodings_at_once=64)
    np.testing.assert_allclose(nats, alone.log_likelihood(x, num_samples=20, decodings_at_once=64), rtol=1e-5)
    assert not np.allclose(nats, model.log_likelihood([x, labels + 1, ages + 5], num_samples=20, decodings_at_once=64))


BAD_SEVERAL = {
    "one array": (lambda x, n, a: x, r"of the 3 inputs that the encoder takes: \['image', 'label', 'ages'\].*ndarray"),
    "too few": (lambda x, n, a: [x, n], "Received: list of 2"),
    "missing": (lambda x, n, a: {"image": x, "label": n}, r"Received: a dict with \['image', 'label'\]"),
    "shape": (lambda x, n, a: [x, n, a[:, :1]], r"`x, input 'ages'` must have shape \(batch, 2\). Received: \(50, 1\)"),
    "first": (lambda x, n, a: [x[..., 0], n, a], r"`x, input 'image'` must have shape \(batch, 8, 8, 1\)"),
    "nan": (lambda x, n, a: [x, n, np.where(a > 0.9, np.nan, a)], "`x, input 'ages'` holds NaN"),
    "lengths": (
        lambda x, n, a: [x, n[1:], a],
        "same number of examples. Received: {'image': 50, 'label': 49, 'ages': 50}",
    ),
    "range": (lambda x, n, a: [x * 255, n, a], r"`x, input 'image'` must lie in \[0, 1\]"),
}


@pytest.mark.parametrize("bad", BAD_SEVERAL)
def test_bad_inputs_are_named(bad, x):
    spoil, message = BAD_SEVERAL[bad]
    model = compiled(SEVERAL_INPUTS["undercomplete-dict"])
    inputs = with_side_inputs(x)
    with pytest.raises(ValueError, match=message):
        model.fit(spoil(*inputs), verbose=0)
    with pytest.raises(ValueError, match=message.replace("`x", "`validation x")):
        model.fit(inputs, validation_data=(spoil(*inputs),), verbose=0)
    if bad != "range":  # predicting takes any
        for method in (model.encode, model.predict, model.active_units):
            with pytest.raises(ValueError, match=message):
                method(spoil(*inputs))


def test_data_sets_of_several_inputs_are_checked(x):
    model = compiled(SEVERAL_INPUTS["undercomplete"])
    images, labels, ages = with_side_inputs(x)
    slices = tf.data.Dataset.from_tensor_slices
    with pytest.raises(ValueError, match=r"in \(first, second\), the second is the target"):
        model.fit(slices((images, labels)).batch(4), verbose=0)
    with pytest.raises(ValueError, match="first batch, input 'ages'` holds NaN"):
        model.fit(slices(((images, labels, ages * np.nan),)).batch(4), verbose=0)


def test_where_several_inputs_do_not_fit_is_said(x):
    encoder, decoder = several_inputs()
    with pytest.raises(ValueError, match="one input and one output. Received: 3 input"):
        models.ContractiveAutoencoder(encoder, decoder)
    with pytest.raises(ValueError, match="it has 3 inputs"):
        models.pretraining.pretrain_autoencoders(models.Autoencoder(encoder, decoder), with_side_inputs(x))
    swapped = keras.Model(encoder.inputs[::-1], encoder.outputs[0])
    with pytest.raises(
        ValueError, match=r"shape \(2,\), the decoder gives \(8, 8, 1\). Of several inputs, the first is"
    ):
        models.Autoencoder(swapped, decoder)
    a, b = keras.Input((3,)), keras.Input((2,))
    nested = keras.Model([a, {"b": b}], keras.layers.Concatenate()([a, b]))
    with pytest.raises(ValueError, match="in a list or a dict, without others inside"):
        models.Autoencoder(nested, keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"the encoder gives codes of shape \(3,\), the decoder takes \(8, 8, 1\)"):
        models.Autoencoder(keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]), encoder)


# -- What a model says it computes -------------------------------------------------------------------------------------------------------


@every_class
def test_functions_compute_what_the_methods_give(build, x):
    model = build()
    functions = model.functions()
    (reconstruction,) = functions["reconstruct"].compute(tf.constant(x))
    code, *_ = functions["encode"].compute(tf.constant(x))
    np.testing.assert_allclose(code, model.encode(x), atol=1e-5)
    np.testing.assert_allclose(reconstruction, model.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_allclose(functions["decode"].compute(code)[0], reconstruction, atol=1e-5)
    assert ("sample" in functions) == (model.prior is not None)
    for function in functions.values():
        assert all(port.meaning for port in (*function.inputs, *function.outputs))


def test_a_subclass_may_change_the_pass_and_name_the_outputs_of_its_decoder(x):
    class Halved(models.Autoencoder):
        reconstruction_names = ("reconstruction", "log_scale")

        def forward(self, x, training):
            z = 0.5 * self.encoder(x, training=training)
            reconstruction, log_scale = self.decoder(z, training=training)
            return {"z": z, "reconstruction": reconstruction, "log_scale": log_scale}

    encoder = builders.undercomplete(x.shape[1:], latent_dim=4, hidden_units=(16,)).encoder
    decoder = builders.variational(
        x.shape[1:], latent_dim=4, hidden_units=(16,), likelihood="gaussian", variance="predicted"
    ).decoder
    model = Halved(encoder, decoder)
    expected = decoder(0.5 * encoder(x))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected[0], atol=1e-6)
    assert list(model.reconstruct(model.encode(x), False)) == ["reconstruction", "log_scale"]


@every_class
def test_the_score_is_what_evaluate_logs(build, x):
    model = compiled(build)
    (scores,) = model.functions()["score"].compute(tf.constant(x))
    if model.posterior is None:
        logs = model.evaluate(x, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
        # Of rounded codes the score is the loss: how much they cost is part of how well they do.
        expected = logs["loss" if "rate_loss" in model.term_names else "reconstruction_loss"]
        assert float(np.mean(scores)) == pytest.approx(expected, rel=1e-5)
    elif "bound_loss" in model.term_names:
        # `evaluate` logs the bound of several samples; test_imputer.py compares both with NumPy.
        np.testing.assert_allclose(scores, model.score(x), rtol=1e-5)
    else:
        outputs = model.deterministic(tf.constant(x))
        terms = model.terms(x, outputs)
        np.testing.assert_allclose(scores, sum(terms[name] for name in model.term_names), rtol=1e-5)
    definition, unit = model.score_meaning
    assert definition
    assert unit in ("nats", "squared units of x")


def conditional_pair():
    """An encoder of (image, label) and a decoder of (code, label)."""
    image, label = keras.Input(INPUT_SHAPE, name="image"), keras.Input((10,), name="label")
    hidden = layers.Concatenate()([layers.Flatten()(image), label])
    heads = [layers.Dense(LATENT_DIM)(layers.Dense(16, "relu")(hidden)) for _ in range(2)]
    z, label_again = keras.Input((LATENT_DIM,), name="z"), keras.Input((10,), name="label")
    hidden = layers.Dense(64)(layers.Concatenate()([z, label_again]))
    output = layers.Activation("sigmoid")(layers.Reshape(INPUT_SHAPE)(hidden))
    return keras.Model([image, label], heads), keras.Model([z, label_again], output)


def test_a_decoder_may_take_a_condition(x, tmp_path):
    labels = np.eye(10, dtype="float32")[np.arange(len(x)) % 10]
    model = models.VariationalAutoencoder(*conditional_pair(), seed=0)
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    history = model.fit([x, labels], epochs=5, batch_size=BATCH_SIZE, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    z = model.encode([x, labels])
    np.testing.assert_allclose(model.decode(z, condition=labels), model.predict([x, labels], verbose=0), atol=1e-6)
    np.testing.assert_allclose(model.decode(z, condition={"label": labels}), model.decode(z, condition=labels))
    assert not np.allclose(model.decode(z, condition=labels[::-1]), model.decode(z, condition=labels), atol=1e-3)
    assert model.sample(3, seed=0, condition=labels[:3]).shape == (3, *INPUT_SHAPE)
    # One sample per example: the bound's terms, with the decoder shown the right labels.
    assert model.log_likelihood([x, labels], num_samples=50).mean() > -history["loss"][-1] - 5
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.decode(z, condition=labels), model.decode(z, condition=labels))
    for bad in (None, labels[:, :4], [labels, labels]):
        with pytest.raises(ValueError, match="condition"):
            model.decode(z, condition=bad)
    with pytest.raises(ValueError, match="takes no condition"):
        builders.undercomplete(INPUT_SHAPE, LATENT_DIM).decode(z, condition=labels)


# -- Masks: steps that an encoder is to pass over ---------------------------------------------------------------------------------------


def masking():
    """Series of at most six steps; those of zeros alone are none."""
    layers = keras.layers
    encoder = keras.Sequential([keras.Input((6, 2)), layers.Masking(), layers.LSTM(LATENT_DIM)])
    decoder = keras.Sequential([keras.Input((LATENT_DIM,)), layers.Dense(12), layers.Reshape((6, 2))])
    return builders.undercomplete(encoder=encoder, decoder=decoder)


def embedding():
    """The same, with the words of a caption besides; word 0 is none."""
    layers = keras.layers
    series, words = keras.Input((6, 2), name="series"), keras.Input((4,), dtype="int32", name="words")
    both = layers.Concatenate()(
        [layers.LSTM(4)(layers.Masking()(series)), layers.LSTM(4)(layers.Embedding(5, 3, mask_zero=True)(words))]
    )
    encoder = keras.Model([series, words], layers.Dense(LATENT_DIM)(both))
    return builders.undercomplete(encoder=encoder, decoder=masking().decoder)


@pytest.mark.parametrize("build", [masking, embedding])
def test_masked_encoders_train_and_pass_over_masked_steps(build, tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, NUM_EXAMPLES)
    series = rng.random((NUM_EXAMPLES, 6, 2), dtype="float32") * (np.arange(6) < lengths[:, None])[..., None]
    words = rng.integers(1, 5, (NUM_EXAMPLES, 4)) * (np.arange(4) < rng.integers(1, 4, NUM_EXAMPLES)[:, None])
    inputs = [series, words] if build is embedding else series
    model = compiled(build)
    history = fit(model, inputs, epochs=20, validation_data=(inputs,)).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert np.isfinite(list(history.values())).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(inputs, verbose=0) == model.evaluate(inputs, verbose=0)
    # A step between two others that holds nothing is as if it were not there.
    spread = np.concatenate([series[:, :1], np.zeros((NUM_EXAMPLES, 1, 2), "float32"), series[:, 1:5]], axis=1)
    spread = (
        [spread, np.concatenate([words[:, :1], words[:, 3:] * 0, words[:, 1:3]], axis=1)]
        if build is embedding
        else spread
    )
    np.testing.assert_allclose(model.encode(spread), model.encode(inputs), atol=1e-6)

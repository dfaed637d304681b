"""RBMs against enumeration in NumPy float64; greedy stacks against their layers; classifiers. On real digits."""

import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import fast
from keras import layers

import kerasae
from kerasae import builders
from kerasae.layers import MaskingCorruption
from kerasae.models import (
    Autoencoder,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    RaiseMomentum,
    RestrictedBoltzmannMachine,
    SparseAutoencoder,
    classifier,
    pretrain_autoencoders,
    pretrain_rbms,
)

HIDDEN = ("binary", "gaussian")


@pytest.fixture(scope="module")
def labelled():
    return kerasae.data.load("digits", labels=True)


@pytest.fixture(scope="module")
def x(digits):
    return digits[0]


@pytest.fixture(scope="module")
def v(x):
    return x.reshape(len(x), -1)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def binary_states(n):
    return np.array(list(itertools.product((0.0, 1.0), repeat=n)))


def small_rbm(rng, visible_dim, hidden_dim, scale=1.0, **kwargs):
    """A machine with random weights, and these as float64 `(W, b, c)`."""
    rbm = RestrictedBoltzmannMachine(visible_dim, hidden_dim, **kwargs)
    shapes = [(visible_dim, hidden_dim), (visible_dim,), (hidden_dim,)]
    rbm.kernel.assign(rng.normal(0, scale, shapes[0]))
    rbm.visible_bias.assign(rng.normal(0, scale, shapes[1]))
    rbm.hidden_bias.assign(rng.normal(0, scale, shapes[2]))
    return rbm, weights_of(rbm)


def weights_of(rbm):
    return [np.asarray(w, "float64") for w in (rbm.kernel, rbm.visible_bias, rbm.hidden_bias)]


def joint(v, h, weights, hidden):
    """`exp(-E(v, h))` of every pair, `(number of v, number of h)`, straight from the energy's definition."""
    kernel, b, c = weights
    energy = -(v @ b)[:, None] - v @ kernel @ h.T
    energy = energy - h @ c if hidden == "binary" else energy + 0.5 * ((h - c) ** 2).sum(axis=1)
    return np.exp(-energy)


def hidden_grid(hidden, hidden_dim):
    """Hidden states and the measure of each: all binary ones, or a fine, wide grid for the trapezoidal rule."""
    if hidden == "binary":
        return binary_states(hidden_dim), 1.0
    axis = np.arange(-16, 16, 0.1)
    return np.array(list(itertools.product(axis, repeat=hidden_dim))), 0.1**hidden_dim


def assert_same_weights(a, b):
    for p, q in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(p, q, err_msg=p.path)


# -- The distribution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", HIDDEN)
def test_free_energy_and_conditionals_are_those_of_the_enumerated_joint(rng, hidden):
    rbm, weights = small_rbm(rng, 5, 2, hidden=hidden)
    v, (h, measure) = binary_states(5), hidden_grid(hidden, 2)
    p = joint(v, h, weights, hidden) * measure

    np.testing.assert_allclose(rbm.free_energy(v), -np.log(p.sum(axis=1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rbm.hidden_means(v), p @ h / p.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-5)
    some = rng.choice(len(h), 4, replace=False)
    expected = p[:, some].T @ v / p[:, some].sum(axis=0)[:, None]
    np.testing.assert_allclose(rbm.visible_probabilities(h[some]), expected, rtol=1e-5, atol=1e-5)


def test_large_inputs_stay_finite():
    rbm = RestrictedBoltzmannMachine(2, 3)
    rbm.kernel.assign(np.full((2, 3), 500.0))
    v = np.array([[1.0, 1.0]])
    np.testing.assert_allclose(rbm.free_energy(v), [-3000.0])
    rbm.kernel.assign(np.full((2, 3), -500.0))
    np.testing.assert_allclose(rbm.free_energy(v), [0.0])
    assert np.isfinite(rbm.contrastive_divergence(v)[0]).all()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_samples_have_the_conditionals_moments(rng, hidden):
    rbm, (kernel, b, c) = small_rbm(rng, 4, 3, hidden=hidden, seed=0)
    n = 20_000
    v, h = np.array([[1.0, 0, 1, 1]]), np.array([[1.0, 0, 1]])
    p_visible = sigmoid(b + kernel @ h[0])
    mean = c + v[0] @ kernel
    mean, variance = (sigmoid(mean), sigmoid(mean) * sigmoid(-mean)) if hidden == "binary" else (mean, np.ones(3))
    hiddens, visibles = np.asarray(rbm.sample_hiddens(np.repeat(v, n, 0))), rbm.sample_visibles(np.repeat(h, n, 0))
    # Five standard errors; units are independent given the other layer.
    np.testing.assert_allclose(hiddens.mean(axis=0), mean, atol=5 * np.sqrt(variance / n).max())
    np.testing.assert_allclose(np.cov(hiddens.T), np.diag(variance), atol=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(np.mean(visibles, axis=0), p_visible, atol=5 * 0.5 / np.sqrt(n))
    assert set(np.unique(visibles)) == {0.0, 1.0}
    assert (set(np.unique(hiddens)) == {0.0, 1.0}) == (hidden == "binary")
    assert not np.array_equal(hiddens, rbm.sample_hiddens(np.repeat(v, n, 0)))


# -- Contrastive divergence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", HIDDEN)
def test_training_steps_are_the_papers_given_the_same_draws(v, rng, hidden):
    learning_rate, momentum, decay = 0.05, 0.5, 0.01
    rbm, weights = small_rbm(rng, 64, 7, scale=0.1, hidden=hidden, weight_decay=decay, seed=3)
    draws = RestrictedBoltzmannMachine(64, 7, hidden=hidden, seed=3)  # the same stream of random numbers
    rbm.compile(keras.optimizers.SGD(learning_rate, momentum=momentum))
    steps = [np.zeros_like(w) for w in weights]
    for batch in (v[:20], v[20:33]):
        kernel, b, c = weights
        draws.set_weights([*weights])
        up = sigmoid if hidden == "binary" else np.asarray
        h_data = up(batch @ kernel + c)
        v_model = sigmoid(np.asarray(draws.sample_hiddens(batch), "float64") @ kernel.T + b)
        h_model = up(v_model @ kernel + c)
        ascent = [
            (batch.T @ h_data - v_model.T @ h_model) / len(batch) - decay * kernel,
            (batch - v_model).mean(axis=0),
            (h_data - h_model).mean(axis=0),
        ]
        steps = [momentum * step + learning_rate * a for step, a in zip(steps, ascent, strict=True)]
        weights = [w + step for w, step in zip(weights, steps, strict=True)]
        rbm.train_on_batch(batch)
        for actual, expected in zip(weights_of(rbm), weights, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_long_chains_of_samples_give_the_gradient_of_the_likelihood(rng, hidden):
    options = {"hidden": hidden, "sample_visible": True, "weight_decay": 0.0, "seed": 0}
    rbm, _ = small_rbm(rng, 5, 3, scale=0.5, gibbs_steps=30, **options)
    n = 40_000
    v = np.repeat(binary_states(5)[[3, 7, 7, 30]], n // 4, axis=0)

    states = binary_states(5)
    p = np.exp(-np.asarray(rbm.free_energy(states), "float64"))  # held by the test above against the energy
    p /= p.sum()
    h = np.asarray(rbm.hidden_means(states), "float64")
    h_data = np.asarray(rbm.hidden_means(v), "float64")
    exact = [
        (states * p[:, None]).T @ h - v.T @ h_data / n,
        p @ states - v.mean(axis=0),
        p @ h - h_data.mean(axis=0),
    ]
    for actual, expected in zip(rbm.contrastive_divergence(v), exact, strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.02 * max(1.0, np.abs(h).max()))
        assert np.abs(expected).max() > 0.1  # far more than the tolerance


def log_likelihood(rbm, v):
    """Mean of ln p(v) in nats, the partition function by enumeration of the hidden states, in float64."""
    kernel, b, c = weights_of(rbm)
    h = binary_states(rbm.hidden_dim)
    log_z = np.logaddexp.reduce(h @ c + np.logaddexp(0, b + h @ kernel.T).sum(axis=1))
    return (v @ b + np.logaddexp(0, v @ kernel + c).sum(axis=1)).mean() - log_z


def test_training_raises_the_exact_likelihood_of_digits(digits):
    train, test = (np.round(x.reshape(len(x), -1)) for x in digits)
    rbm = RestrictedBoltzmannMachine(64, 10)
    rbm.compile(keras.optimizers.SGD(0.1, momentum=0.5))
    before = log_likelihood(rbm, test)
    rbm.fit(train, epochs=12, batch_size=50, verbose=0)
    after = log_likelihood(rbm, test)
    # The best model without hidden units: independent pixels.
    p = (train.sum(axis=0) + 1) / (len(train) + 2)
    independent = (test * np.log(p) + (1 - test) * np.log(1 - p)).sum(axis=1).mean()
    assert before < independent
    assert after > independent + 3


# -- An ordinary Keras model -------------------------------------------------------------------------------------------


def compiled(hidden="binary", **kwargs):
    keras.utils.set_random_seed(0)
    rbm = RestrictedBoltzmannMachine(64, 12, hidden=hidden)
    rbm.compile(keras.optimizers.SGD(0.01, momentum=0.5), **kwargs)
    return rbm


@pytest.mark.parametrize("hidden", HIDDEN)
def test_evaluation_logs_the_reconstruction_and_the_free_energy(v, hidden):
    rbm = compiled(hidden, metrics=["mae"])
    logs = rbm.evaluate(v[:50], batch_size=16, verbose=0, return_dict=True)
    assert set(logs) == {"reconstruction_loss", "free_energy", "mae"}
    p = rbm.predict(v[:50], verbose=0).astype("float64")
    cross_entropy = -(v[:50] * np.log(p) + (1 - v[:50]) * np.log(1 - p)).sum(axis=1).mean()
    assert logs["reconstruction_loss"] == pytest.approx(cross_entropy, rel=1e-5)
    assert logs["free_energy"] == pytest.approx(float(np.mean(rbm.free_energy(v[:50]))), rel=1e-5)
    assert logs["mae"] == pytest.approx(np.abs(v[:50] - p).mean(), rel=1e-4)
    history = rbm.fit(v[:50], validation_data=v[50:70], verbose=0).history
    assert set(history) == {p + name for p in ("", "val_") for name in logs}


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}, {"jit_compile": True}], ids=str)
def test_execution_options_change_nothing(v, options):
    plain, other = compiled(jit_compile=False), compiled(**options)
    for rbm in (plain, other):
        rbm.fit(v[:64], batch_size=16, epochs=2, shuffle=False, verbose=0)
    if "jit_compile" in options:  # XLA draws other numbers from the same seed
        losses = [rbm.history.history["reconstruction_loss"][-1] for rbm in (plain, other)]
        assert losses[0] == pytest.approx(losses[1], rel=0.01)
        tolerance = 0.01
    else:
        tolerance = 1e-5
    for a, b in zip(plain.weights, other.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_arrays_and_tf_data_give_the_same_machine(v):
    arrays, dataset = compiled(), compiled()
    arrays.fit(v[:50], batch_size=16, shuffle=False, verbose=0)
    dataset.fit(tf.data.Dataset.from_tensor_slices(v[:50]).batch(16), verbose=0)
    assert_same_weights(arrays, dataset)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_save_load_and_go_on_as_if_nothing_had_happened(v, tmp_path, hidden):
    fit = functools.partial(keras.Model.fit, x=v[:100], batch_size=16, shuffle=False, verbose=0)
    uninterrupted, stopped = compiled(hidden), compiled(hidden)
    fit(uninterrupted, epochs=2)
    fit(stopped)
    stopped.save(tmp_path / "rbm.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.saving.load_model(tmp_path / "rbm.keras")
    assert type(loaded) is RestrictedBoltzmannMachine
    assert loaded.get_config() == stopped.get_config()
    fit(loaded)
    assert_same_weights(uninterrupted, loaded)


def test_weights_stay_float32_under_mixed_precision(v):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        rbm = compiled()
        rbm.fit(v[:64], verbose=0)
        assert rbm.free_energy(v[:2]).dtype == "float32"
        assert {w.dtype for w in rbm.trainable_weights} == {"float32"}
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def test_raised_momentum_is_used_from_its_epoch_on(v):
    fit = functools.partial(keras.Model.fit, x=v[:64], batch_size=16, shuffle=False, verbose=0)
    raised, by_hand, constant = compiled(), compiled(), compiled()
    fit(raised, epochs=2, callbacks=[RaiseMomentum(0.9, epoch=1)])
    fit(constant, epochs=2)
    fit(by_hand)
    by_hand.optimizer.momentum = 0.9
    by_hand.compile(by_hand.optimizer)
    fit(by_hand)
    assert_same_weights(raised, by_hand)
    assert not np.array_equal(raised.kernel, constant.kernel)
    constant.compile("adam")
    with pytest.raises(ValueError, match="needs an optimiser with a momentum above 0"):
        fit(constant, callbacks=[RaiseMomentum()])


@pytest.mark.parametrize("hidden", HIDDEN)
def test_unrolled_networks_are_the_mean_field_passes(v, rng, hidden):
    rbm, (kernel, b, c) = small_rbm(rng, 64, 5, hidden=hidden)
    encoder, decoder = rbm.unroll()
    z = encoder.predict(v[:20], verbose=0)
    expected = v[:20] @ kernel + c
    np.testing.assert_allclose(z, sigmoid(expected) if hidden == "binary" else expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decoder.predict(z, verbose=0), sigmoid(z @ kernel.T + b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"visible_dim": 0}, "`visible_dim` must be a whole number of at least 1"),
        ({"hidden_dim": 2.5}, "`hidden_dim`"),
        ({"hidden": "gausian"}, "Did you mean 'gaussian'"),
        ({"gibbs_steps": 0}, "`gibbs_steps`"),
        ({"weight_decay": -1.0}, "`weight_decay` must be a finite number of at least 0"),
    ],
)
def test_bad_rbm_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RestrictedBoltzmannMachine(**{"visible_dim": 4, "hidden_dim": 3, **arguments})


def test_bad_rbm_data_is_refused(v):
    rbm = compiled()
    dataset = tf.data.Dataset.from_tensor_slices
    for bad, message in (
        (v[:, :9], r"must have shape \(batch, 64\). Received: \(1437, 9\)"),
        (v * 16, r"must lie in \[0, 1\].*from 0 to 16"),
        (np.where(v > 0.9, np.nan, v), "holds NaN"),
        (None, "No x"),
        (dataset(v * 255).batch(4), r"first batch.* must lie in \[0, 1\]"),
        (dataset(v[:0]).batch(4), "dataset is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            rbm.fit(bad, verbose=0)
        with pytest.raises(ValueError, match=message):
            rbm.evaluate(bad, verbose=0)
        with pytest.raises(ValueError, match=message):
            rbm.predict(bad, verbose=0)
    with pytest.raises(ValueError, match=r"validation x.* must lie in \[0, 1\]"):
        rbm.fit(v, validation_data=(v - 1,), verbose=0)
    with pytest.raises(ValueError, match="fitted to x alone"):
        rbm.fit(v, v, verbose=0)
    rbm.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="has no loss"):
        rbm.fit(v, verbose=0)
    assert rbm.optimizer.iterations == 0


# -- The greedy stacks -------------------------------------------------------------------------------------------------


def deep(hidden_units=(30,), latent_dim=6, **kwargs):
    options = {"activation": "sigmoid", "loss": "binary_crossentropy"}
    return builders.deep((8, 8, 1), latent_dim, hidden_units, **options, **kwargs)


def encoder_layers(model):
    return [layer for layer in model.encoder.layers if isinstance(layer, layers.Dense)]


def decoder_layers(model):
    return [layer for layer in model.decoder.layers if isinstance(layer, layers.Dense)][::-1]


def test_each_layer_is_trained_on_the_clean_codes_of_the_one_below(x):
    seen = []

    class Noisy(Autoencoder):
        def fit(self, x, **kwargs):
            seen.append(x)
            return super().fit(x, **kwargs)

        def forward(self, x, training):
            mask = tf.cast(tf.random.uniform(tf.shape(x)) < 0.7, x.dtype) if training else 1.0
            return super().forward(x * mask, training)

    model = deep()
    histories = pretrain_autoencoders(model, x[:200], Noisy, epochs=2, verbose=0)
    assert len(histories) == 2
    codes = x[:200].reshape(200, -1)
    for layer, mirror, history, codes_seen in zip(
        encoder_layers(model), decoder_layers(model), histories, seen, strict=True
    ):
        np.testing.assert_allclose(codes_seen, codes, atol=1e-6)
        trained = history.model
        assert history.history["loss"][-1] < history.history["loss"][0]
        for actual, expected in zip((*layer.get_weights(), *mirror.get_weights()), trained.get_weights(), strict=True):
            np.testing.assert_array_equal(actual, expected)
        kernel, bias = layer.get_weights()
        codes = codes @ kernel + bias
        codes = codes if layer.name == "z" else sigmoid(codes)
    np.testing.assert_allclose(model.encode(x[:200]), codes, atol=1e-5)


def test_layers_have_the_models_activations_and_the_loss_that_fits(x):
    model = builders.undercomplete((8, 8, 1), 4, (12,), activation="tanh", loss="binary_crossentropy")
    first, top = (history.model for history in pretrain_autoencoders(model, x[:50], epochs=1, verbose=0))
    assert first.encoder.layers[-1].activation is keras.activations.tanh
    assert first.distortion == "binary_crossentropy"
    assert top.encoder.layers[-1].activation is keras.activations.linear
    assert top.decoder.layers[-1].activation is keras.activations.tanh
    assert top.distortion == "squared_error"


def test_an_unrolled_stack_computes_the_machines_mean_field_passes(x, v):
    model = deep((30, 20))
    machines = [history.model for history in pretrain_rbms(model, x, epochs=[3, 2, 7], verbose=0)]
    assert [machine.hidden for machine in machines] == ["binary", "binary", "gaussian"]
    assert [float(machine.optimizer.learning_rate) for machine in machines] == pytest.approx([0.1, 0.1, 0.001])
    assert [machine.optimizer.momentum for machine in machines] == [0.5, 0.5, 0.9]
    h = v
    for machine in machines:
        h = machine.hidden_means(h)
    np.testing.assert_allclose(model.encode(x), h, rtol=1e-4, atol=1e-5)
    for machine in machines[::-1]:
        h = machine.visible_probabilities(h)
    np.testing.assert_allclose(model.predict(x, verbose=0).reshape(len(x), -1), h, rtol=1e-4, atol=1e-5)


PRETRAINING = {
    "autoencoders": lambda model, x: pretrain_autoencoders(model, x, epochs=12, batch_size=64, verbose=0),
    "rbms": lambda model, x: pretrain_rbms(model, x, epochs=[8, 8, 8, 20], verbose=0),
}


@pytest.fixture(scope="module")
def without_pretraining(digits):
    keras.utils.set_random_seed(0)
    return before_and_after_fine_tuning(deep((100, 50, 25), 10), *digits)


def before_and_after_fine_tuning(model, x_train, x_test):
    model.compile(keras.optimizers.Adam(1e-3))
    before = model.evaluate(x_test, verbose=0, return_dict=True)["reconstruction_loss"]
    model.fit(x_train, epochs=5, batch_size=64, verbose=0)
    return before, model.evaluate(x_test, verbose=0, return_dict=True)["reconstruction_loss"]


@pytest.mark.parametrize("kind", fast({"rbms"}, PRETRAINING))
def test_pretraining_helps_a_deep_sigmoid_stack_before_and_after_fine_tuning(digits, kind, without_pretraining):
    model = deep((100, 50, 25), 10)
    PRETRAINING[kind](model, digits[0])
    before, after = before_and_after_fine_tuning(model, *digits)
    assert before < 0.75 * without_pretraining[0]
    assert after < {"autoencoders": 0.95, "rbms": 0.87}[kind] * without_pretraining[1]
    assert after < before


@pytest.mark.parametrize("pretrain", [pretrain_autoencoders, pretrain_rbms])
def test_the_same_seed_gives_the_same_weights(x, pretrain):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        models.append(deep(()))
        before = models[-1].get_weights()
        pretrain(models[-1], x[:200], epochs=2, verbose=0)
    assert_same_weights(*models)
    assert not any(np.array_equal(a, b) for a, b in zip(models[0].get_weights(), before, strict=True))


MAKE_LAYERS = {
    "denoising": lambda encoder, decoder: DenoisingAutoencoder(encoder, decoder, MaskingCorruption(0.3)),
    "sparse": lambda encoder, decoder: SparseAutoencoder(encoder, decoder, penalty="l1", sparsity_weight=0.01),
    "contractive": lambda encoder, decoder: ContractiveAutoencoder(encoder, decoder, contraction_weight=0.1),
}


@pytest.mark.parametrize("family", MAKE_LAYERS)
def test_layers_may_be_of_any_family(x, family):
    model = deep()
    histories = pretrain_autoencoders(model, x[:200], MAKE_LAYERS[family], epochs=2, verbose=0)
    for history, layer, mirror in zip(histories, encoder_layers(model), decoder_layers(model), strict=True):
        assert history.history["loss"][-1] < history.history["loss"][0]
        np.testing.assert_array_equal(history.model.encoder.get_weights()[0], layer.get_weights()[0])
        np.testing.assert_array_equal(history.model.decoder.get_weights()[0], mirror.get_weights()[0])


@pytest.mark.parametrize("pretrain", [pretrain_autoencoders, pretrain_rbms])
def test_a_tied_decoder_shares_the_pretrained_kernels(x, pretrain):
    model = deep(tied=True)
    layer_models = [history.model for history in pretrain(model, x[:200], epochs=2, verbose=0)]
    h = x[:200].reshape(200, -1)
    if pretrain is pretrain_rbms:
        for machine in layer_models:
            h = machine.hidden_means(h)
        for machine in layer_models[::-1]:
            h = machine.visible_probabilities(h)
    else:
        for autoencoder in layer_models:
            h = autoencoder.encoder(h)
        for autoencoder in layer_models[::-1]:
            h = autoencoder.decoder(h)
    np.testing.assert_allclose(model.predict(x[:200], verbose=0).reshape(200, -1), h, rtol=1e-4, atol=1e-5)
    assert len(model.weights) == 2 + 4  # kernels once, biases both ways


def own_stack():
    """A user's own networks, with activations as layers and in layers, and a sigmoid code."""
    encoder = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(16), layers.Activation("sigmoid")]
    decoder = [keras.Input((5,)), layers.Dense(16, "sigmoid"), layers.Dense(64, "sigmoid"), layers.Reshape((8, 8, 1))]
    return Autoencoder(keras.Sequential([*encoder, layers.Dense(5, "sigmoid")]), keras.Sequential(decoder))


def test_own_networks_of_that_form_are_stacks_too(x):
    model = own_stack()
    machines = [history.model for history in pretrain_rbms(model, x[:200], epochs=1, verbose=0)]
    assert [machine.hidden for machine in machines] == ["binary", "binary"]
    h = x[:200].reshape(200, -1)
    for machine in machines:
        h = machine.hidden_means(h)
    np.testing.assert_allclose(model.encode(x[:200]), h, atol=1e-5)


@pytest.mark.parametrize("pretrain", [pretrain_autoencoders, pretrain_rbms])
def test_epochs_callbacks_and_validation_are_per_layer(x, pretrain):
    class Count(keras.callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, epoch, logs):
            self.epochs += 1
            assert "val_reconstruction_loss" in logs

    options = {"epochs": [1, 3], "validation_split": 0.2, "verbose": 0}
    every, second = Count(), Count()
    histories = pretrain(deep(), x[:100], callbacks=[None, [second]], **options)
    assert [len(history.epoch) for history in histories] == [1, 3]
    pretrain(deep(()), x[:100], callbacks=every, **{**options, "epochs": 2})
    assert (second.epochs, every.epochs) == (3, 2)


def test_makers_may_compile_and_choose(x):
    def make_rbm(visible_dim, hidden_dim, hidden):
        rbm = RestrictedBoltzmannMachine(visible_dim, hidden_dim, hidden, gibbs_steps=2)
        rbm.compile("adam")
        return rbm

    histories = pretrain_rbms(deep(), x[:100], make_rbm, epochs=1, verbose=0)
    assert all(isinstance(history.model.optimizer, keras.optimizers.Adam) for history in histories)
    assert {history.model.gibbs_steps for history in histories} == {2}


def test_an_error_on_the_way_leaves_the_model_as_it_was(x):
    def make_layer(encoder, decoder):
        if decoder.output_shape[-1] == 30:
            raise RuntimeError("the second layer")
        return Autoencoder(encoder, decoder)

    model = deep()
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="the second layer"):
        pretrain_autoencoders(model, x[:50], make_layer, epochs=1, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def asymmetric():
    return builders.undercomplete(
        encoder=builders.undercomplete((8, 8, 1), 3, (16,)).encoder,
        decoder=builders.undercomplete((8, 8, 1), 3, (12,)).decoder,
    )


def branched():
    inputs = keras.Input((8,), name="x")
    z = layers.Dense(2)(layers.Add()([layers.Dense(4)(inputs), layers.Dense(4)(inputs)]))
    decoder = builders.undercomplete((8,), 2, (4,)).decoder
    return builders.undercomplete(encoder=keras.Model(inputs, z), decoder=decoder)


def shared():
    inputs, layer = keras.Input((8,), name="x"), layers.Dense(8)
    decoder = builders.undercomplete((8,), 8, (8,)).decoder
    return builders.undercomplete(encoder=keras.Model(inputs, layer(layer(inputs))), decoder=decoder)


BAD_MODELS = {
    "conv": (lambda: builders.undercomplete((8, 8, 1), 3, (4,), "conv"), "layer 'hidden_1' is a Conv2D"),
    "variational": (lambda: builders.variational((8, 8, 1), 3, (16,)), "layer 'z_log_var' doesn't stand|single chain"),
    "asymmetric": (
        asymmetric,
        r"\(inputs, units\), are \[\(64, 16\), \(16, 3\)\], the decoder's \[\(3, 12\), \(12, 64\)\]",
    ),
    "branched": (branched, "doesn't stand in a single chain"),
    "shared": (shared, "doesn't stand in a single chain"),
    "no autoencoder": (lambda: deep().encoder, "must be a kerasae.models.Autoencoder"),
    "no bias": (
        lambda: Autoencoder(
            keras.Sequential([keras.Input((64,)), layers.Dense(3, use_bias=False)]),
            builders.undercomplete((64,), 3, ()).decoder,
        ),
        "has no bias",
    ),
}


@pytest.mark.parametrize("pretrain", [pretrain_autoencoders, pretrain_rbms])
@pytest.mark.filterwarnings("ignore:Overcomplete")
@pytest.mark.parametrize("bad", BAD_MODELS)
def test_models_that_are_no_dense_stack_are_refused(x, pretrain, bad):
    build, message = BAD_MODELS[bad]
    with pytest.raises(ValueError, match=message):
        pretrain(build(), x, verbose=0)


def test_rbms_need_sigmoids(x):
    relu = builders.undercomplete((8, 8, 1), 3, (16,), loss="binary_crossentropy")
    with pytest.raises(ValueError, match="encoder layer 'hidden_1' has 'relu'"):
        pretrain_rbms(relu, x)
    linear = builders.undercomplete((8, 8, 1), 3, (16,), activation="sigmoid")
    with pytest.raises(ValueError, match="decoder layer 'logits' has 'linear'.*output_activation=\"sigmoid\""):
        pretrain_rbms(linear, x)


@pytest.mark.parametrize("pretrain", [pretrain_autoencoders, pretrain_rbms])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"epochs": [1, 2, 3]},
            "`epochs` must be one for all layers, or a list with one for each of the 2 layers. Received 3",
        ),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1"),
        ({"callbacks": [[], [], []]}, "`callbacks` must be one for all layers"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"validation_split": 1.0}, "`validation_split` must be below 1"),
    ],
)
def test_bad_pretraining_options_are_refused(x, pretrain, arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrain(deep(), x, verbose=0, **arguments)


@pytest.mark.parametrize("pretrain", [pretrain_autoencoders, pretrain_rbms])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * 16, r"must lie in \[0, 1\]"),
        (lambda x: np.where(x == 1, np.nan, x), "holds NaN"),
        (lambda x: x[:, :4], r"must have shape \(batch, 8, 8, 1\)"),
        (lambda x: x[:0], "is empty"),
        (lambda x: tf.data.Dataset.from_tensor_slices(x), "must be an array: every layer trains on the codes of all"),
    ],
)
def test_bad_data_is_refused(x, pretrain, spoil, message):
    with pytest.raises(ValueError, match=message):
        pretrain(deep(), spoil(x), verbose=0)


def test_makers_that_return_something_else_are_refused(x):
    with pytest.raises(ValueError, match="made of the two networks it is given"):
        pretrain_autoencoders(deep(), x, lambda encoder, decoder: builders.undercomplete((64,), 30, ()), verbose=0)
    with pytest.raises(ValueError, match=r"`make_rbm\(64, 30, 'binary'\)` must return"):
        pretrain_rbms(deep(), x, lambda visible_dim, hidden_dim, hidden: RestrictedBoltzmannMachine(64, 3), verbose=0)


# -- The classifier ----------------------------------------------------------------------------------------------------


def test_a_fine_tuned_classifier_learns_digits_and_leaves_the_autoencoder_alone(labelled, tmp_path):
    (x_train, y_train), (x_test, y_test) = labelled
    autoencoder = deep((100, 50), 20)
    pretrain_rbms(autoencoder, x_train, epochs=[10, 10, 1], verbose=0)
    weights = autoencoder.get_weights()
    # The hidden layers alone: behind the linear code a softmax layer sees 20 numbers.
    model = classifier(keras.Model(autoencoder.encoder.inputs, autoencoder.encoder.get_layer("hidden_2").output), 10)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    model.fit(x_train, y_train, epochs=15, batch_size=64, verbose=0)
    after = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    assert before["accuracy"] < 0.4
    assert after["accuracy"] > 0.93
    for a, b in zip(autoencoder.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(model.predict(x_test, verbose=0).sum(axis=1), 1, atol=1e-5)
    model.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded.predict(x_test, verbose=0), model.predict(x_test, verbose=0))


def test_a_frozen_encoder_keeps_its_weights_and_the_head_learns(labelled):
    (x_train, y_train), _ = labelled
    encoder = deep().encoder
    model = classifier(encoder, 10, trainable=False)
    model.compile("adam", "sparse_categorical_crossentropy")
    head = model.layers[-1].get_weights()
    model.fit(x_train[:100], y_train[:100], verbose=0)
    assert_same_weights(model.get_layer("encoder"), encoder)
    assert not np.array_equal(model.layers[-1].get_weights()[0], head[0])
    model.get_layer("encoder").trainable = True
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x_train[:100], y_train[:100], verbose=0)
    assert not np.array_equal(model.get_layer("encoder").get_weights()[0], encoder.get_weights()[0])


@pytest.mark.parametrize(
    ("encoder", "num_classes", "message"),
    [
        (lambda: "encoder", 10, "must be a Functional or built Sequential Keras model"),
        (
            lambda: builders.variational((8, 8, 1), 2).encoder,
            10,
            r"one output \(batch, latent_dim\).*2|outputs of shape",
        ),
        (lambda: deep().encoder, 1, "`num_classes` must be at least 2"),
        (lambda: deep().encoder, "ten", "`num_classes` must be a whole number"),
    ],
)
def test_bad_classifiers_are_refused(encoder, num_classes, message):
    with pytest.raises(ValueError, match=message):
        classifier(encoder(), num_classes)

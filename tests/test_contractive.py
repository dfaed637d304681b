"""The contractive family: its penalty against NumPy, finite differences and `batch_jacobian`."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kerasae.models import Autoencoder, chains
from kerasae.models.contractive import ContractiveAutoencoder, squared_jacobian_norm
from kerasae.models.jacobian import encode_and_differentiate, exact_measure

NUM_INPUTS, NUM_CODES, BATCH_SIZE = 12, 4, 5


def snake(a):
    """A user's own elementwise activation."""
    return a + tf.sin(a) ** 2


def pairwise(a):
    """A user's own activation that is not elementwise: each unit is divided by its neighbour's size."""
    return a / (1.0 + tf.abs(tf.roll(a, 1, axis=-1)))


ELEMENTWISE = [
    *("linear", "sigmoid", "tanh", "relu", "leaky_relu", "relu6", "elu", "celu", "selu", "silu", "gelu", "mish"),
    *("softplus", "softsign", "exponential", "hard_sigmoid", "hard_silu", "log_sigmoid", "squareplus", snake),
]
NOT_ELEMENTWISE = ["softmax", "log_softmax", pairwise]


@pytest.fixture
def float64():
    for dtype in ("float64", "float32"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        if dtype == "float64":
            yield


@pytest.fixture
def x(rng):
    return rng.normal(size=(BATCH_SIZE, NUM_INPUTS))


def dense(activation, hidden_units=(), num_codes=NUM_CODES, code_activation=None):
    """A dense encoder with biases that aren't zero."""
    stack = [layers.Dense(units, activation, bias_initializer="random_normal") for units in hidden_units]
    code = layers.Dense(num_codes, code_activation or activation, bias_initializer="random_normal")
    return keras.Sequential([keras.Input((NUM_INPUTS,)), *stack, code])


def autoencoder(encoder, cls=ContractiveAutoencoder, **kwargs):
    shape = encoder.inputs[0].shape[1:]
    decoder = [layers.Flatten(), layers.Dense(math.prod(shape), "sigmoid"), layers.Reshape(shape)]
    return cls(encoder, keras.Sequential([keras.Input(encoder.outputs[0].shape[1:]), *decoder]), **kwargs)


def by_finite_differences(encoder, x, step=1e-5):
    """The squared norm of the Jacobian from central differences, an input at a time."""
    f = lambda x: encoder(x, training=False).numpy().reshape(len(x), -1)  # noqa: E731
    norms = 0.0
    for i in range(x[0].size):
        nudge = np.zeros(x[0].size)
        nudge[i] = step
        nudge = nudge.reshape(x[0].shape)
        norms = norms + np.sum(((f(x + nudge) - f(x - nudge)) / (2 * step)) ** 2, axis=1)
    return norms


@tf.function
def by_batch_jacobian(encoder, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = encoder(x, training=False)
    return tf.reduce_sum(tape.batch_jacobian(z, x) ** 2, axis=range(1, len(x.shape) + len(z.shape) - 1))


def value_and_gradients(measure, encoder, x):
    with tf.GradientTape() as tape:
        norms = measure(encoder, tf.convert_to_tensor(x))
        total = tf.reduce_sum(norms * tf.range(tf.cast(tf.shape(norms)[0], norms.dtype)))
    return norms, tape.gradient(
        total, [v.value for v in encoder.trainable_variables], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def assert_same_value_and_gradients(encoder, x):
    norms, gradients = value_and_gradients(squared_jacobian_norm, encoder, x)
    expected_norms, expected_gradients = value_and_gradients(by_batch_jacobian, encoder, x)
    assert norms.dtype == "float64"
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-10)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    assert any(np.abs(gradient).max() > 0 for gradient in gradients)


# -- The exact penalty -------------------------------------------------------------------------------------------------


def test_one_sigmoid_layer_is_the_closed_form(float64, x):
    encoder = dense("sigmoid")
    kernel, bias = encoder.get_weights()
    h = 1 / (1 + np.exp(-(x @ kernel + bias)))
    expected = ((h * (1 - h)) ** 2) @ np.sum(kernel**2, axis=0)
    np.testing.assert_allclose(squared_jacobian_norm(encoder, x), expected, rtol=1e-12)


@pytest.mark.parametrize("hidden_units", [(7,), (9, 6), (30, 20)])
def test_several_layers_are_the_product_of_their_jacobians(float64, x, hidden_units):
    encoder = dense("tanh", hidden_units)
    expected = []
    for h in x:
        jacobian = np.eye(NUM_INPUTS)
        for layer in encoder.layers:
            kernel, bias = layer.get_weights()
            h = np.tanh(h @ kernel + bias)
            jacobian = np.diag(1 - h**2) @ kernel.T @ jacobian
        expected.append(np.sum(jacobian**2))
    np.testing.assert_allclose(squared_jacobian_norm(encoder, x), expected, rtol=1e-12)


def test_a_linear_encoder_has_one_jacobian_for_all(float64, x):
    encoder = dense("linear", (7,))
    product = encoder.layers[0].kernel.numpy() @ encoder.layers[1].kernel.numpy()
    np.testing.assert_allclose(squared_jacobian_norm(encoder, x), np.full(BATCH_SIZE, np.sum(product**2)), rtol=1e-12)


@pytest.mark.parametrize("activation", ELEMENTWISE + NOT_ELEMENTWISE)
def test_every_activation_agrees_with_finite_differences(float64, x, activation):
    encoder = dense(activation, (8,), code_activation="tanh")
    np.testing.assert_allclose(squared_jacobian_norm(encoder, x), by_finite_differences(encoder, x), rtol=1e-6)


# 7 units: by the first layer's Gram matrix. 40: by the product.
@pytest.mark.parametrize("hidden_units", [(), (7,), (40,), (9, 7, 8)], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "elu", "gelu", snake])
def test_value_and_gradients_are_those_of_batch_jacobian(float64, x, activation, hidden_units):
    encoder = dense(activation, hidden_units)
    assert chains.dense_chain(encoder) is not None
    assert_same_value_and_gradients(encoder, x)


def test_both_ways_to_the_first_layer_are_taken(monkeypatch, float64, x):
    taken = []
    by_gram = chains._row_norms_by_gram
    monkeypatch.setattr(chains, "_row_norms_by_gram", lambda *args: taken.append(1) or by_gram(*args))
    squared_jacobian_norm(dense("tanh", (7,)), x)
    assert len(taken) == 1
    squared_jacobian_norm(dense("tanh", (40,)), x)
    assert len(taken) == 1


def test_the_gradient_by_the_gram_matrix_can_itself_be_differentiated(float64, x):
    encoder = dense("tanh", (7, 6))
    products = []
    for measure in (squared_jacobian_norm, by_batch_jacobian):
        with tf.GradientTape() as tape:
            _, gradients = value_and_gradients(measure, encoder, x)
            total = sum(tf.reduce_sum(gradient**2) for gradient in gradients)
        products.append(tape.gradient(total, encoder.trainable_variables))
    for a, b in zip(*products, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("activation", NOT_ELEMENTWISE)
def test_activations_that_mix_units_take_the_generic_path(activation):
    assert chains.dense_chain(dense(activation, (8,), code_activation="linear")) is None


def between_dense_layers():
    """Every layer that the product of matrices goes through, in a Functional model, twice wider than the data."""
    x = keras.Input((3, 4))
    h = layers.Rescaling(0.5, offset=-1.0)(x)
    h = layers.Dropout(0.3, seed=1)(h)
    h = layers.Flatten()(layers.PReLU(alpha_initializer="random_normal")(h))
    h = layers.Dense(10, use_bias=False)(h)
    h = layers.BatchNormalization(moving_variance_initializer=keras.initializers.RandomUniform(0.5, 2.0))(h)
    h = layers.Activation("gelu")(h)
    h = layers.GaussianNoise(0.1, seed=2)(layers.GaussianDropout(0.2, seed=3)(h))
    h = layers.Flatten()(layers.LeakyReLU(0.1)(layers.Reshape((5, 2))(h)))
    h = layers.Dense(8, "silu")(layers.ELU()(layers.ReLU(negative_slope=0.5)(h)))
    h = layers.AlphaDropout(0.2, seed=4)(layers.ActivityRegularization(l2=1e-3)(h))
    return keras.Model(x, layers.Activation("sigmoid")(layers.Reshape((2, 3))(layers.Dense(6, "tanh")(h))))


def test_layers_between_dense_ones(float64, x):
    encoder = between_dense_layers()
    assert chains.dense_chain(encoder) is not None
    assert_same_value_and_gradients(encoder, x.reshape(-1, 3, 4))


def test_one_layer_behind_a_rescaled_input(float64, x):
    encoder = keras.Sequential([keras.Input((NUM_INPUTS,)), layers.Rescaling(3.0), layers.Dense(NUM_CODES, "sigmoid")])
    assert chains.dense_chain(encoder) is not None
    assert_same_value_and_gradients(encoder, x)


def test_in_training_the_jacobian_is_that_of_the_dropout_drawn(float64, x):
    encoder = between_dense_layers()
    for layer in encoder.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    noisy = [layer for layer in encoder.layers if hasattr(layer, "seed_generator")]
    initial = [layer.seed_generator.state.numpy() for layer in noisy]
    x = tf.constant(x.reshape(-1, 3, 4))
    exact, _ = exact_measure(encoder)
    z, norms = exact(x, training=True)
    for layer, state in zip(noisy, initial, strict=True):
        layer.seed_generator.state.assign(state)
    expected_z, expected_norms = encode_and_differentiate(encoder, x, training=True)
    np.testing.assert_allclose(z, expected_z, rtol=1e-12)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-10)
    assert not np.allclose(norms, squared_jacobian_norm(encoder, x), rtol=0.01)


@pytest.mark.parametrize("jacobian", ["exact", "stochastic"])
def test_batch_normalisation_in_training_leaves_the_penalty_in_inference_mode(float64, x, jacobian):
    stack = [layers.Dense(6, activity_regularizer=keras.regularizers.L2(0.1)), layers.BatchNormalization()]
    encoder = keras.Sequential(
        [keras.Input((NUM_INPUTS,)), *stack, layers.Dense(1, "tanh")]
    )  # one code: any sign is exact
    model = autoencoder(encoder, jacobian=jacobian)
    expected, moving_mean = squared_jacobian_norm(encoder, x), stack[1].moving_mean.numpy()
    outputs = model.forward(x, training=True)
    np.testing.assert_allclose(outputs["contraction"], expected, rtol=1e-10)
    np.testing.assert_allclose(encoder.losses, np.sum((x @ stack[0].get_weights()[0]) ** 2) / 50, rtol=1e-6)  # once
    assert not np.allclose(stack[1].moving_mean, moving_mean)
    assert not np.allclose(outputs["z"], encoder(x, training=False))


def conv():
    stack = [
        layers.Conv2D(3, 3, 2, padding="same", activation="softplus"),
        layers.LayerNormalization(),
        layers.Flatten(),
    ]
    return keras.Sequential([keras.Input((6, 6, 1)), *stack, layers.Dense(6, "tanh"), layers.Reshape((3, 2))])


def softmax():
    return dense("tanh", (8,), code_activation="softmax")


def branching():
    x = keras.Input((NUM_INPUTS,))
    h = layers.Dense(8, "tanh")(x)
    return keras.Model(x, layers.Dense(NUM_CODES)(layers.Add()([h, layers.Dense(8, "sigmoid")(h)])))


def shared():
    x, layer = keras.Input((NUM_INPUTS,)), layers.Dense(NUM_INPUTS, "tanh")
    return keras.Model(x, layer(layer(x)))


def added_one_by_one():
    encoder = keras.Sequential([keras.Input((NUM_INPUTS,))])
    for units in (8, NUM_CODES):
        encoder.add(layers.Dense(units, "tanh"))
    return encoder


@pytest.mark.parametrize(
    ("build", "is_chain"),
    [(conv, False), (softmax, False), (branching, False), (shared, True), (added_one_by_one, True)],
)
def test_other_encoders(float64, rng, build, is_chain):
    encoder = build()
    assert (chains.dense_chain(encoder) is not None) == is_chain
    x = rng.normal(size=(3, *encoder.inputs[0].shape[1:]))
    np.testing.assert_allclose(squared_jacobian_norm(encoder, x), by_finite_differences(encoder, x), rtol=1e-6)
    assert_same_value_and_gradients(encoder, x)
    # In a graph, where the passes are a loop, for batches of any size.
    signature = tf.TensorSpec((None, *x.shape[1:]), x.dtype)
    in_graph = tf.function(
        lambda x: value_and_gradients(squared_jacobian_norm, encoder, x), input_signature=[signature]
    )
    norms, gradients = in_graph(x)
    expected_norms, expected_gradients = value_and_gradients(squared_jacobian_norm, encoder, x)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-10)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


def test_a_recurrent_encoder_agrees_with_finite_differences(float64, rng):
    encoder = keras.Sequential([keras.Input((4, 3)), layers.GRU(5), layers.Dense(NUM_CODES)])
    x = rng.normal(size=(3, 4, 3))
    np.testing.assert_allclose(squared_jacobian_norm(encoder, x), by_finite_differences(encoder, x), rtol=1e-6)


def test_the_loop_over_codes_agrees_with_finite_differences_where_tensorflows_vectorisation_does_not(float64, x):
    encoder = dense(pairwise, (8,), code_activation="tanh")
    norms = tf.function(lambda x: squared_jacobian_norm(encoder, x))(tf.constant(x))
    np.testing.assert_allclose(norms, by_finite_differences(encoder, x), rtol=1e-6)


# -- The stochastic estimate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_probes", [1, 3])
def test_the_stochastic_estimate_is_unbiased_with_the_spread_that_theory_gives(x, num_probes):
    encoder = dense("tanh", (8,))
    model = autoencoder(encoder, jacobian="stochastic", num_probes=num_probes, seed=0)
    num_draws = 20_000
    estimates = model.forward(np.repeat(x[:1], num_draws, axis=0), training=True)["contraction"].numpy()
    x = tf.constant(x[:1], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = encoder(x)
    gram = tape.batch_jacobian(z, x)[0].numpy().astype("float64")
    gram = gram @ gram.T
    # v^T G v = tr G + sum_{i != j} v_i v_j G_ij, whose terms come in equal pairs
    spread = np.sqrt(2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2)) / num_probes)
    assert abs(estimates.mean() - np.trace(gram)) < 4 * spread / np.sqrt(num_draws)
    assert estimates.std() == pytest.approx(spread, rel=0.05)
    assert estimates.std() > 0.05 * estimates.mean()


def test_probes_differ_between_steps_and_predict_draws_none(x):
    model = autoencoder(dense("tanh", (8,)), jacobian="stochastic")
    first, second = (model.forward(x, training=True)["contraction"].numpy() for _ in range(2))
    assert (first != second).all()
    state = [generator.state.numpy() for generator in (model.seed_generator, model.evaluation_seed_generator)]
    model.predict(x, verbose=0)
    after = [generator.state.numpy() for generator in (model.seed_generator, model.evaluation_seed_generator)]
    np.testing.assert_array_equal(state, after)


# -- The model ---------------------------------------------------------------------------------------------------------


def test_the_loss_weighs_the_penalty(x):
    model = autoencoder(dense("sigmoid"), contraction_weight=0.25)
    model.compile()
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["contraction_loss"] == pytest.approx(np.mean(squared_jacobian_norm(model.encoder, x)), rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["reconstruction_loss"] + 0.25 * logs["contraction_loss"], rel=1e-5)


@pytest.mark.parametrize("hidden_units", [(), (24,)], ids=str)
def test_training_contracts_the_encoder_and_still_reconstructs(digits, hidden_units):
    x_train, x_test = digits
    norms, errors = [], []
    for weight in (0.0, 0.1):
        keras.utils.set_random_seed(0)
        hidden = [layers.Dense(units, "tanh") for units in hidden_units]
        encoder = [keras.Input((8, 8, 1)), layers.Flatten(), *hidden, layers.Dense(16, "sigmoid")]
        model = autoencoder(keras.Sequential(encoder), contraction_weight=weight)
        model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
        model.fit(x_train, epochs=20, batch_size=64, verbose=0)
        logs = model.evaluate(x_test, verbose=0, return_dict=True)
        norms.append(logs["contraction_loss"])
        errors.append(logs["reconstruction_loss"])
    total_variance = np.mean(np.sum((x_test - x_train.mean(axis=0)) ** 2, axis=(1, 2, 3)))
    assert norms[1] < 0.4 * norms[0]
    assert errors[0] < errors[1] < 0.6 * total_variance


def test_dense_encoders_compile_with_xla_and_others_train_without(digits):
    x = digits[0][:32, :6, :6]
    losses = {}
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        encoder = [keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(3)]
        model = autoencoder(keras.Sequential(encoder))
        model.compile("sgd", jit_compile=jit_compile)
        assert model.jit_compile == jit_compile
        losses[jit_compile] = model.fit(x, epochs=2, shuffle=False, verbose=0).history["contraction_loss"]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)
    model = autoencoder(conv())
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile(jit_compile=True)
    model.compile()
    assert not model.jit_compile
    assert np.isfinite(model.fit(x, verbose=0).history["contraction_loss"]).all()


@pytest.mark.parametrize("jacobian", ["exact", "stochastic"])
@pytest.mark.parametrize("build", [lambda: dense("tanh", (8,)), conv], ids=["dense", "conv"])
def test_in_mixed_precision_the_penalty_is_float32(rng, build, jacobian):
    single = autoencoder(build(), jacobian=jacobian, seed=0)
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        half = autoencoder(build(), jacobian=jacobian, seed=0)
        half.set_weights(single.get_weights())
        x = rng.normal(size=(8, *half.encoder.inputs[0].shape[1:])).astype("float32")
        contraction = half.forward(x, training=False)["contraction"]
        half.compile("sgd")
        assert half.evaluate(x, verbose=0, return_dict=True)["contraction_loss"] == pytest.approx(
            np.mean(contraction), rel=0.02
        )
        assert np.isfinite(half.train_on_batch(x)).all()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert contraction.dtype == "float32"
    np.testing.assert_allclose(contraction, single.forward(x, training=False)["contraction"], rtol=0.02)


def test_integer_pixels_are_differentiated_as_real_numbers(rng):
    pixels = rng.integers(0, 256, (4, NUM_INPUTS)).astype("uint8")
    encoder = keras.Sequential([keras.Input((NUM_INPUTS,)), layers.Rescaling(1 / 255), layers.Dense(3, "tanh")])
    contraction = autoencoder(encoder).forward(pixels, training=True)["contraction"]
    np.testing.assert_allclose(contraction, squared_jacobian_norm(encoder, pixels.astype("float32")), rtol=1e-6)
    assert np.min(contraction) > 0


def test_the_configuration_returns():
    options = {
        "contraction_weight": 0.5,
        "jacobian": "stochastic",
        "num_probes": 3,
        "loss": "binary_crossentropy",
        "seed": 7,
    }
    config = ContractiveAutoencoder.from_config(autoencoder(dense("tanh"), **options).get_config()).get_config()
    assert {name: config[name] for name in options} == options


def test_saving_holds_each_layer_once(tmp_path, x):
    model, plain = autoencoder(dense("tanh", (8,))), autoencoder(dense("tanh", (8,)), Autoencoder)
    assert len(model.layers) == len(plain.layers)
    assert len(model.trainable_weights) == len(plain.trainable_weights)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = x.astype("float32")
    np.testing.assert_array_equal(loaded.forward(x, False)["contraction"], model.forward(x, False)["contraction"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contraction_weight": -0.1}, "`contraction_weight` must be a finite number of at least 0. Received: -0.1"),
        ({"contraction_weight": "0.1"}, "`contraction_weight`"),
        ({"jacobian": "stocastic"}, "Did you mean 'stochastic'"),
        ({"num_probes": 0}, "`num_probes` must be a whole number of at least 1. Received: 0"),
        ({"loss": "mse"}, "`loss` must be one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        autoencoder(dense("tanh"), **options)


def test_encoders_without_a_jacobian_are_refused():
    tokens = keras.Input((NUM_INPUTS,), dtype="int32")
    encoder = keras.Model(tokens, layers.Dense(2)(layers.Flatten()(layers.Embedding(5, 3)(tokens))))
    with pytest.raises(ValueError, match="integers have no derivative. Received an input of dtype: int32"):
        autoencoder(encoder)
    x = keras.Input((NUM_INPUTS,))
    with pytest.raises(ValueError, match=r"one input and one output. Received: 1 input\(s\) and 2 output\(s\)"):
        squared_jacobian_norm(keras.Model(x, [layers.Dense(2)(x), layers.Dense(2)(x)]), np.zeros((1, NUM_INPUTS)))

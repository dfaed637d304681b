"""The contractive family."""

import functools
import math

import keras
import numpy as np
import tensorflow as tf
from keras import activations, layers, ops

from kerasae import checks
from kerasae.layers import random_seed
from kerasae.models.autoencoder import Autoencoder

JACOBIANS = ("exact", "stochastic")

# What the size of a batch is taken for where it isn't known, in choosing the cheaper of two products.
_USUAL_BATCH_SIZE = 128

# s'(a) as a function of s(a), for activations that allow it. None: constantly 1.
_SLOPE_OF_OUTPUT = {
    activations.linear: None,
    activations.sigmoid: lambda h: h * (1.0 - h),
    activations.tanh: lambda h: 1.0 - ops.square(h),
    activations.relu: lambda h: ops.cast(h > 0, h.dtype),
    activations.elu: lambda h: ops.where(h > 0, ops.ones_like(h), h + 1.0),
    activations.softplus: lambda h: -ops.expm1(-h),
    activations.exponential: lambda h: h,
}
_SHAPE_LAYERS = (layers.Flatten, layers.Reshape)
# Each output is a function of the one input at its place, where batch normalisation runs in inference mode.
_ELEMENTWISE_LAYERS = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.BatchNormalization,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.LeakyReLU,
    layers.Normalization,
    layers.PReLU,
    layers.ReLU,
    layers.Rescaling,
)


@keras.saving.register_keras_serializable("kerasae")
class ContractiveAutoencoder(Autoencoder):
    """A contractive autoencoder: minimises `E[d(x, g(f(x))) + lambda ||df/dx||_F^2]` over an encoder f and a decoder g.

    Logged: `reconstruction_loss`; `contraction_loss`, the mean over examples of the squared Frobenius norm of the encoder's Jacobian
    at x, not multiplied by lambda. The penalty and its gradient are exact for any encoder:

    - **Dense layers one after another**, with activations, flattening, dropout and the like between them: by
      propagating the Jacobian through the layers. One layer costs hardly more than the plain autoencoder, since
      `||df/dx||_F^2 = sum_j s'(a_j)^2 ||W_j||^2`; several cost about `latent_dim` encoder passes, and memory for a few tensors of
      `batch * latent_dim * units` of the widest layer but the last.
    - **Any other encoder** (convolutions, softmax, your own layers): by one backward pass a code. Time and memory grow by those of
      a backward pass with every code, and what each pass computes is kept for the gradient: with large codes lower the batch
      size, or choose `jacobian="stochastic"`. XLA can't compile this loop: Keras trains without (`jit_compile=True` warns).

    In training the Jacobian is that of the function applied to each example in this very step, dropout and noise as drawn. Batch
    normalisation makes a code depend on the other examples while it trains; the penalty is then that of the whole encoder in
    inference mode, at the price of a second pass. `predict` and `encode` don't compute it.

    The penalty alone doesn't keep the encoder from shrinking its weights while the decoder grows its own. The paper ties the two.

    Args:
        encoder, decoder, loss: as in `Autoencoder`. The encoder must treat each example by itself (batch normalisation aside).
        contraction_weight: lambda, at least 0. Default 0.1.
        jacobian: `"exact"`, or `"stochastic"` for large codes behind several layers: `mean_p ||v_p^T df/dx||^2` for random signs
            v_p, whose expectation is the exact penalty (Hutchinson's estimator; `evaluate` uses it too). It costs one backward
            pass a probe, whatever `latent_dim`.
        num_probes: how many probes v an example the stochastic estimate takes, at least 1.
        seed: of the probes.

    Raises:
        ValueError: as `Autoencoder`; where an option is wrong; where the encoder takes integers, which have no derivative.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.contractive(x_train.shape[1:], latent_dim=32, contraction_weight=0.1, tied=True)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction": equation 1 is the penalty,
        J_CAE the objective. Deviations: encoder and decoder are any networks, where the paper has one sigmoid layer each, with tied
        weights, and stacks them layer by layer; the mean over examples, where the paper sums. The stochastic estimate: Hutchinson
        1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
    """

    term_names = ("reconstruction_loss", "contraction_loss")

    def __init__(
        self,
        encoder,
        decoder,
        loss="squared_error",
        contraction_weight=0.1,
        jacobian="exact",
        num_probes=1,
        seed=None,
        **kwargs,
    ):
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        self.contraction_weight = checks.real_number(contraction_weight, "contraction_weight", minimum=0)
        self.jacobian = checks.choice(jacobian, "jacobian", JACOBIANS)
        self.num_probes = checks.positive_int(num_probes, "num_probes")
        _check_encoder(encoder)
        # Functions, so that Keras doesn't track what they hold as layers of the model: its layers are the encoder's.
        if jacobian == "stochastic":
            self._encode_and_measure = functools.partial(self._encode_and_probe, encoder)
        else:
            self._encode_and_measure, self.supports_jit = _exact_measure(encoder)

    @property
    def term_weights(self):
        return {"contraction_loss": self.contraction_weight}

    def forward(self, x, training):
        x = ops.cast(x, self.encoder.inputs[0].dtype)
        if training and _mixes_examples(self.encoder):
            _, contraction = self._encode_and_measure(x, training=False)
            z = self.encoder(x, training=True)
        else:
            z, contraction = self._encode_and_measure(x, training=training)
        return {"z": z, "contraction": contraction, **self.reconstruct(z, training)}

    def call(self, x, training=False):
        return super().forward(x, training)["reconstruction"]

    def terms(self, x, outputs):
        return {**super().terms(x, outputs), "contraction_loss": outputs["contraction"]}

    def _encode_and_probe(self, encoder, x, training):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            z = encoder(x, training=training)
        estimates = []
        for _ in range(self.num_probes):
            seed = random_seed(self.noise_generator(training))
            signs = 2 * tf.random.stateless_uniform(tf.shape(z), seed, 0, 2, tf.int32, alg="philox") - 1
            product = tape.gradient(
                z, x, output_gradients=tf.cast(signs, z.dtype), unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            estimates.append(_squared_norm(product))
        return z, ops.mean(ops.stack(estimates), axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "contraction_weight": self.contraction_weight,
            "jacobian": self.jacobian,
            "num_probes": self.num_probes,
        }


def squared_jacobian_norm(encoder, x):
    """The squared Frobenius norm of an encoder's Jacobian per example: `sum_ij (df_i(x) / dx_j)^2`, exact.

    The encoder runs in inference mode. The result can be differentiated in the encoder's weights.

    Args:
        encoder: Functional (or built Sequential) Keras model with one input and one output, treating each example by itself.
        x: examples, shape `(batch, ...)`. All are processed at once: how much memory that takes, `ContractiveAutoencoder` says.

    Returns:
        Tensor, shape `(batch,)`, in squared units of the code per squared unit of x; float64 for an encoder in float64, else float32.

    Raises:
        ValueError: where the encoder has several inputs or outputs, or takes integers.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.undercomplete(x_train.shape[1:], latent_dim=2)
    mean_norm = kerasae.models.contractive.squared_jacobian_norm(model.encoder, x_test).numpy().mean()
    ```

    Reference:
        Rifai et al. 2011, equation 1.
    """
    _check_encoder(encoder)
    measure, _ = _exact_measure(encoder)
    return measure(ops.cast(x, encoder.inputs[0].dtype), training=False)[1]


def _check_encoder(encoder):
    if len(encoder.inputs) != 1 or len(encoder.outputs) != 1:
        raise ValueError(
            "A Jacobian needs an encoder with one input and one output. "
            f"Received: {len(encoder.inputs)} input(s) and {len(encoder.outputs)} output(s)"
        )
    if "float" not in encoder.inputs[0].dtype:
        raise ValueError(
            "A Jacobian needs an encoder of real numbers, and integers have no derivative. "
            f"Received an input of dtype: {encoder.inputs[0].dtype}"
        )


def _mixes_examples(encoder):
    """Whether a code in training depends on the batch's other examples."""
    return any(isinstance(x, layers.BatchNormalization) and x.trainable for x in encoder._flatten_layers())


def _exact_measure(encoder):
    """`(measure, supports_jit)`, where `measure(x, training)` gives codes and `||df/dx||_F^2`, `(batch,)`."""
    chain = _dense_chain(encoder)
    if chain is None:
        return functools.partial(_encode_and_differentiate, encoder), False
    trace = keras.Model(encoder.inputs, [output for _, output in chain])
    return functools.partial(_encode_and_propagate, trace, [layer for layer, _ in chain]), True


# -- Any encoder -------------------------------------------------------------------------------------------------------


def _encode_and_differentiate(encoder, x, training):
    num_codes = math.prod(encoder.outputs[0].shape[1:])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        z = encoder(x, training=training)
        codes = tf.cast(
            tf.reshape(z, (-1, num_codes)), x.dtype
        )  # `batch_jacobian` takes x's dtype for that of the codes
    zero = tf.UnconnectedGradients.ZERO
    if not tf.executing_eagerly():
        # A loop, and not vectorised: as fast, in less memory, and TensorFlow 2.21's vectorised `tf.roll` is wrong for axis=-1.
        jacobian = tape.batch_jacobian(codes, x, unconnected_gradients=zero, experimental_use_pfor=False)
        return z, _squared_norm(jacobian)
    norms = []
    for i in range(num_codes):
        one_hot = tf.one_hot(tf.fill(tf.shape(codes)[:1], i), num_codes, dtype=codes.dtype)
        norms.append(_squared_norm(tape.gradient(codes, x, output_gradients=one_hot, unconnected_gradients=zero)))
    return z, ops.sum(ops.stack(norms), axis=0)


def _squared_norm(values):
    values = ops.cast(values, _precise(values.dtype))
    return ops.sum(ops.square(values), axis=tuple(range(1, len(values.shape))))


def _precise(dtype):
    # Half precision is too coarse to sum hundreds of squares in.
    return "float64" if dtype == "float64" else "float32"


# -- Dense layers one after another ------------------------------------------------------------------------------------


def _dense_chain(encoder):
    """`[(layer, its symbolic output)]` from input to code, or None unless the Jacobian is a product of kernels and diagonals."""
    chain, tensor = [], encoder.outputs[0]
    while tensor is not encoder.inputs[0]:
        layer, node, _ = tensor._keras_history
        inputs = layer._inbound_nodes[node].input_tensors
        if len(inputs) != 1 or not _factorises(layer, inputs[0]):
            return None
        chain.insert(0, (layer, tensor))
        tensor = inputs[0]
    return chain if any(isinstance(layer, layers.Dense) for layer, _ in chain) else None


def _factorises(layer, layer_input):
    if type(layer) is layers.Dense:
        if len(layer_input.shape) != 2 or layer.quantization_mode is not None:
            return False
        return _is_elementwise(layer.activation, (layer.units,))
    if type(layer) is layers.Activation:
        return _is_elementwise(layer.activation, layer_input.shape[1:])
    if type(layer) in _SHAPE_LAYERS:
        return getattr(layer, "data_format", None) != "channels_first"  # Flatten would permute
    return type(layer) in _ELEMENTWISE_LAYERS


def _is_elementwise(activation, shape, num_trials=16):
    """Whether each output depends on the one input at its place, as far as trying tells. A softmax's, for one, don't."""
    if activation in _SLOPE_OF_OUTPUT:
        return True
    if isinstance(activation, keras.Layer) or None in shape:  # a layer may know whether it is being trained
        return False
    rng = np.random.default_rng(0)
    varies = False
    for i in range(num_trials):
        # A random half of the inputs changes; the outputs at the other half must stay.
        scale = 3.0 ** (i % 3 - 1)
        x = scale * rng.standard_normal((1, *shape))
        kept = rng.random(x.shape) < 0.5
        x_changed = np.where(kept, x, 2 * scale * rng.standard_normal(x.shape))
        with tf.init_scope():
            y, y_changed = (np.asarray(activation(tf.constant(values, tf.float32))) for values in (x, x_changed))
        if y.shape != x.shape or not np.allclose(y[kept], y_changed[kept], rtol=1e-6, atol=0):
            return False
        varies |= not np.array_equal(y, y_changed)
    return varies


def _encode_and_propagate(trace, chain, x, training):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = tf.nest.flatten(trace(x, training=training))
    dtype = _precise(outputs[-1].dtype)
    # df/dx = D_L W_L^T ... D_1 W_1^T D_0. A diagonal is the product of all slopes between two kernels, None the identity.
    kernels, diagonals = [], [None]
    for layer, before, after in zip(chain, [x, *outputs[:-1]], outputs, strict=True):
        if isinstance(layer, _SHAPE_LAYERS):
            if diagonals[-1] is not None:
                diagonals[-1] = layer(diagonals[-1])
            continue
        if isinstance(layer, layers.Dense):
            kernels.append(ops.cast(layer.kernel, dtype))
            diagonals.append(None)
        slope = _slope(layer, before, after, tape, dtype)
        if slope is not None:
            slope = ops.cast(slope, dtype)
            diagonals[-1] = slope if diagonals[-1] is None else diagonals[-1] * slope
    return outputs[-1], ops.broadcast_to(_product_norm(kernels, diagonals), (tf.shape(x)[0],))


def _slope(layer, before, after, tape, dtype):
    """The derivative of a layer's output by the input, or the pre-activation, at its place; None where it is 1."""
    activation = getattr(layer, "activation", None)
    if activation in _SLOPE_OF_OUTPUT:
        slope = _SLOPE_OF_OUTPUT[activation]
        return slope and slope(ops.cast(after, dtype))
    if isinstance(layer, layers.Dense):
        # A fused activation's slope isn't in its output: the pre-activation is computed once more.
        before = ops.matmul(ops.cast(before, dtype), ops.cast(layer.kernel, dtype))
        if layer.use_bias:
            before += ops.cast(layer.bias, dtype)
        with tf.GradientTape() as tape:
            tape.watch(before)
            after = activation(before)
    # Elementwise: the gradient of the outputs' sum is each output's own derivative.
    return None if after is before else tape.gradient(after, before, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _product_norm(kernels, diagonals):
    """`||D_L W_L^T ... D_1 W_1^T D_0||_F^2`, shape `(batch,)`, or `(1,)` where no diagonal depends on x.

    Args:
        kernels: W_1 to W_L, `(units before, units)` each.
        diagonals: D_0 to D_L, `(batch, units)` each, or None for the identity.
    """
    first, last = diagonals[0], diagonals[-1]
    if len(kernels) == 1:
        if first is None:
            norms = _column_norms(kernels[0])
        else:
            norms = ops.matmul(ops.square(first), ops.square(kernels[0]))
    else:
        # (1 or batch, latent_dim, units): the Jacobian of the code, before its own slopes, by a layer's pre-activations.
        jacobian = ops.transpose(kernels[-1])[None]
        for kernel, diagonal in zip(reversed(kernels[1:-1]), reversed(diagonals[2:-1]), strict=True):
            jacobian = _times_transposed(_times_diagonal(jacobian, diagonal), kernel)
        jacobian = _times_diagonal(jacobian, diagonals[1])
        if first is None and _gram_is_cheaper(jacobian, kernels[0]):
            norms = _row_norms_by_gram(jacobian, kernels[0])
        else:
            jacobian = _times_diagonal(_times_transposed(jacobian, kernels[0]), first)
            norms = ops.sum(ops.square(jacobian), axis=-1)
    return ops.sum(norms if last is None else norms * ops.square(ops.reshape(last, (-1, norms.shape[-1]))), axis=-1)


def _times_diagonal(jacobian, diagonal):
    return jacobian if diagonal is None else jacobian * diagonal[:, None, :]


def _times_transposed(jacobian, kernel):
    # (batch, latent_dim, units) -> (batch, latent_dim, units before), as one product rather than one an example.
    product = tf.matmul(tf.reshape(jacobian, (-1, kernel.shape[1])), kernel, transpose_b=True)
    return tf.reshape(product, (-1, jacobian.shape[1], kernel.shape[0]))


def _gram_is_cheaper(jacobian, kernel):
    """Compares the multiplications of both ways, forwards and backwards."""
    num_rows = (jacobian.shape[0] or _USUAL_BATCH_SIZE) * jacobian.shape[1]
    num_inputs, units = kernel.shape
    return 2 * units * units * (num_rows + num_inputs) < 3 * num_rows * units * num_inputs


@tf.custom_gradient
def _column_norms(kernel):
    """`||W_j||^2`, `(1, units)`. Its gradient is one pass over the kernel, where automatic differentiation makes three."""
    return tf.reduce_sum(tf.square(kernel), axis=0, keepdims=True), lambda upstream: kernel * (2.0 * upstream)


@tf.custom_gradient
def _row_norms_by_gram(jacobian, kernel):
    """`||C_r W^T||^2 = C_r (W^T W) C_r^T` for each row r: `(batch, rows, units)` and `(inputs, units)` to `(batch, rows)`.

    W^T W is computed once a batch, and the gradient uses the product `C W^T W` again.
    """
    rows = tf.reshape(jacobian, (-1, kernel.shape[1]))
    product = tf.matmul(rows, tf.matmul(kernel, kernel, transpose_a=True))

    def gradient(upstream):
        weights = 2.0 * tf.reshape(upstream, (-1, 1))
        by_gram = tf.matmul(rows, weights * rows, transpose_a=True)  # symmetric, doubled: by W it gives W (S + S^T)
        return tf.reshape(weights * product, tf.shape(jacobian)), tf.matmul(kernel, by_gram)

    return tf.reshape(tf.reduce_sum(product * rows, axis=-1), tf.shape(jacobian)[:2]), gradient

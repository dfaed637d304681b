"""Chains of dense layers: the path through a network, and the norm of its Jacobian as that of a product of kernels and diagonals."""

import keras
import numpy as np
import tensorflow as tf
from keras import activations, layers, ops

from kerasae import keras_internals

# The assumed size of a batch if it isn't known, to choose the cheaper of two products.
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
# Each output is a function of the one input at its place (of batch normalisation in inference mode). Any other layer costs one backward
# pass per unit of the code: as exact, but slower, so a new layer that is elementwise is worth a line here.
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


def path(network):
    """`[(layer, its inputs, its output)]` from the network's first input to its first output, along each layer's first input."""
    steps, tensor = [], network.outputs[0]
    while tensor is not network.inputs[0]:
        layer, inputs = keras_internals.producer(tensor)
        steps.insert(0, (layer, inputs, tensor))
        if not inputs:  # another input of the network's
            break
        tensor = inputs[0]
    return steps


def dense_chain(encoder):
    """`[(layer, its symbolic output)]` from input to code, or None unless the Jacobian is a product of kernels and diagonals."""
    steps = path(encoder)
    if not any(isinstance(layer, layers.Dense) for layer, *_ in steps):
        return None
    factorises = all(len(inputs) == 1 and _factorises(layer, inputs[0]) for layer, inputs, _ in steps)
    return [(layer, output) for layer, _, output in steps] if factorises else None


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
    """Whether each output depends on the one input at its place, as far as trials show; a softmax's don't."""
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


def encode_and_propagate(trace, chain, x, training):
    """Codes, and `||df/dx||_F^2` by propagating the Jacobian through a chain's layers, whose outputs `trace` gives."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = tf.nest.flatten(trace(x, training=training))
    dtype = precise(outputs[-1].dtype)
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
    """The derivative of a layer's output by the input, or the pre-activation, at its place; None if it is 1 everywhere."""
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
    """`||D_L W_L^T ... D_1 W_1^T D_0||_F^2`, shape `(batch,)`, or `(1,)` if no diagonal depends on x.

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
    # (batch, latent_dim, units) -> (batch, latent_dim, units before), as one product rather than one per example.
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

    W^T W is computed once per batch, and the gradient uses the product `C W^T W` again.
    """
    rows = tf.reshape(jacobian, (-1, kernel.shape[1]))
    product = tf.matmul(rows, tf.matmul(kernel, kernel, transpose_a=True))

    def gradient(upstream):
        weights = 2.0 * tf.reshape(upstream, (-1, 1))
        by_gram = tf.matmul(rows, weights * rows, transpose_a=True)  # symmetric, doubled: by W it gives W (S + S^T)
        return tf.reshape(weights * product, tf.shape(jacobian)), tf.matmul(kernel, by_gram)

    return tf.reshape(tf.reduce_sum(product * rows, axis=-1), tf.shape(jacobian)[:2]), gradient


def precise(dtype):
    """The dtype to sum squares in."""
    # Half precision is too coarse to sum hundreds of squares in.
    return "float64" if dtype == "float64" else "float32"

"""Jacobians of encoders, exact and per example: their squared norms, computed in the cheapest way, and the matrices themselves."""

import functools
import math

import keras
import tensorflow as tf
from keras import layers, ops

from kerasae import checks, keras_internals
from kerasae.layers import random_seed
from kerasae.models.chains import dense_chain, encode_and_propagate, precise

_ZERO = tf.UnconnectedGradients.ZERO

# Entries of Jacobians that are held at once: 64 MiB of float32 numbers.
_ELEMENTS_AT_ONCE = 2**24


def squared_jacobian_norm(encoder, x):
    """The squared Frobenius norm of an encoder's Jacobian per example: `sum_ij (df_i(x) / dx_j)^2`, exact.

    The encoder runs in inference mode. The result can be differentiated in the encoder's weights.

    Args:
        encoder: Functional (or built Sequential) Keras model with one input and one output, treating each example by itself.
        x: examples, shape `(batch, ...)`, processed all at once; see `ContractiveAutoencoder` for the memory that this takes.

    Returns:
        Tensor, shape `(batch,)`, in squared units of the code per squared unit of x; float64 for an encoder in float64, else float32.

    Raises:
        ValueError: if the encoder has several inputs or outputs, or takes integers.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.undercomplete(x_train.shape[1:], latent_dim=2)
    mean_norm = kerasae.models.contractive.squared_jacobian_norm(model.encoder, x_test).numpy().mean()
    ```

    Reference:
        Rifai et al. 2011, equation 1.
    """
    check_encoder(encoder)
    measure, _ = exact_measure(encoder)
    return measure(ops.cast(x, encoder.inputs[0].dtype), training=False)[1]


def check_encoder(encoder, one_output=True):
    """Raises unless the encoder has one input, of real numbers, and, unless told otherwise, one output."""
    if len(encoder.inputs) != 1 or (one_output and len(encoder.outputs) != 1):
        raise ValueError(
            "A Jacobian needs an encoder with one input and one output. "
            f"Received: {len(encoder.inputs)} input(s) and {len(encoder.outputs)} output(s)"
        )
    if "float" not in encoder.inputs[0].dtype:
        raise ValueError(
            "A Jacobian needs an encoder of real numbers, and integers have no derivative. "
            f"Received an input of dtype: {encoder.inputs[0].dtype}"
        )


def mixes_examples(encoder):
    """Whether in training the code of an example depends on the batch's other examples."""
    return any(isinstance(x, layers.BatchNormalization) and x.trainable for x in keras_internals.all_layers(encoder))


def exact_measure(encoder):
    """`(measure, supports_jit)`, where `measure(x, training)` gives codes and `||df/dx||_F^2`, `(batch,)`."""
    chain = dense_chain(encoder)
    if chain is None:
        return functools.partial(encode_and_differentiate, encoder), False
    trace = keras.Model(encoder.inputs, [output for _, output in chain])
    return functools.partial(encode_and_propagate, trace, [layer for layer, _ in chain]), True


def encode_and_differentiate(encoder, x, training):
    """Codes, and `||df/dx||_F^2` by one backward pass per unit of the code."""
    if not tf.executing_eagerly():
        z, jacobian = _encode_with_jacobian(encoder, x, training)
        return z, _squared_norm(jacobian)
    # Without a graph there is no loop to hold the passes: each one's row is summed before the next is computed.
    z, tape = _encode_taped(encoder, x, training)
    size, norms = _code_size(encoder), []
    for i in range(size):
        one_hot = tf.reshape(tf.one_hot(tf.fill(tf.shape(z)[:1], i), size, dtype=z.dtype), tf.shape(z))
        norms.append(_squared_norm(tape.gradient(z, x, output_gradients=one_hot, unconnected_gradients=_ZERO)))
    return z, ops.sum(ops.stack(norms), axis=0)


def encode_and_probe(encoder, num_probes, generator, x, training):
    """Codes, and Hutchinson's estimate of `||df/dx||_F^2`: the mean of `||v^T df/dx||^2` over probes v of random signs."""
    z, tape = _encode_taped(encoder, x, training)
    estimates = []
    for _ in range(num_probes):
        seed = random_seed(generator(training))
        signs = 2 * tf.random.stateless_uniform(tf.shape(z), seed, 0, 2, tf.int32, alg="philox") - 1
        product = tape.gradient(z, x, output_gradients=tf.cast(signs, z.dtype), unconnected_gradients=_ZERO)
        estimates.append(_squared_norm(product))
    return z, ops.mean(ops.stack(estimates), axis=0)


def jacobians(encoder, x, code_of=lambda outputs: outputs):
    """An encoder's Jacobians in inference mode, a few examples at a time, so that memory stays bounded.

    Args:
        encoder: as in `squared_jacobian_norm`, but with any number of outputs.
        x: examples, `(n, ...)`.
        code_of: gives the code among the encoder's outputs.

    Yields:
        Arrays `(some of n, size of the code, features)`.

    Raises:
        ValueError: if the encoder has several inputs or takes integers, or does not take x.
    """
    check_encoder(encoder, one_output=False)
    tensor = encoder.inputs[0]
    x = checks.array(x, tensor.shape[1:]).astype(tensor.dtype)
    shape = _code_size(encoder), math.prod(x.shape[1:])

    @tf.function
    def jacobian(x):
        return tf.reshape(_encode_with_jacobian(encoder, x, False, code_of)[1], (-1, *shape))

    at_once = max(1, _ELEMENTS_AT_ONCE // math.prod(shape))
    for start in range(0, len(x), at_once):
        yield jacobian(tf.constant(x[start : start + at_once])).numpy()


def _code_size(encoder):
    return math.prod(encoder.outputs[0].shape[1:])


def _encode_taped(encoder, x, training):
    """Codes, and the tape that recorded them."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        return encoder(x, training=training), tape


def _encode_with_jacobian(encoder, x, training, code_of=lambda outputs: outputs):
    """Codes, and their Jacobians `(batch, size of the code, *shape of an example)`."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        z = code_of(encoder(x, training=training))
        # `batch_jacobian` needs flat codes of x's dtype.
        codes = tf.cast(tf.reshape(z, (-1, _code_size(encoder))), x.dtype)
    # A loop, and not vectorised: as fast, in less memory, and TensorFlow 2.21's vectorised `tf.roll` is wrong for axis=-1.
    return z, tape.batch_jacobian(codes, x, unconnected_gradients=_ZERO, experimental_use_pfor=False)


def _squared_norm(values):
    values = ops.cast(values, precise(values.dtype))
    return ops.sum(ops.square(values), axis=tuple(range(1, len(values.shape))))

"""Sequences of different lengths in one batch: which steps are padding, and layers whose results don't depend on them.

Padding stands behind an example. A layer that makes a mask says where: `keras.layers.Masking`, or `Embedding(mask_zero=True)` for tokens.
"""

import dataclasses
import inspect
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers, ops

from kerasae import keras_internals


@dataclasses.dataclass(frozen=True)
class Padding:
    """What an encoder takes for padding.

    Args:
        mask: function of examples `(batch, steps, ...)` that is True where a step counts, `(batch, steps)`.
        value: what padded steps hold; None where layers stand before the one that makes the mask, and nothing is known of it.
    """

    mask: Callable
    value: float | None

    def weights(self, x):
        """1 where a step counts and 0 where it is padding, float32, in a shape that broadcasts to x's."""
        mask = ops.cast(self.mask(x), "float32")
        return ops.reshape(mask, (*ops.shape(mask), *[1] * (len(x.shape) - len(mask.shape))))

    def keep(self, x, values):
        """`values`, one for each step of x, with x's padding."""
        return ops.where(self.weights(x) > 0, values, ops.cast(x, values.dtype))


def padding_of(encoder):
    """The `Padding` of an encoder whose first input goes, perhaps through other layers, into one that makes a mask; else None."""
    x = encoder.inputs[0]
    for layer in encoder.layers:
        is_token = isinstance(layer, layers.Embedding) and layer.mask_zero
        if not (is_token or isinstance(layer, layers.Masking)):
            continue
        (source,) = keras_internals.producer(layer.output)[1]
        if source is not x and len(encoder.inputs) > 1:
            continue  # it may be another input's
        before = None if source is x else keras.Model(x, source)

        def mask(x, layer=layer, before=before):
            return layer.compute_mask(x if before is None else before(x, training=False))

        value = 0 if is_token else layer.mask_value
        return Padding(mask, value if before is None else None)
    return None


def _without_padding(x, mask):
    return x if mask is None else x * ops.cast(mask, x.dtype)[..., None]


class _KeepsMask:
    """A layer from sequence to sequence behind which each step is padding or not as before."""

    def compute_mask(self, inputs, mask=None):
        return mask


@keras.saving.register_keras_serializable("kerasae")
class MaskedConv1D(layers.Conv1D):
    """`keras.layers.Conv1D` to which padding is as what lies beyond the ends: zeros.

    Its own steps are padding where all of the steps that they stand for are. `padding` is `"same"`, and with strides the kernel's size a
    multiple of them: where the padding begins would else depend on the length.
    """

    def __init__(self, filters, kernel_size, strides=1, padding="same", **kwargs):
        super().__init__(filters, kernel_size, strides, padding, **kwargs)
        if self.padding != "same" or self.data_format != "channels_last" or self.kernel_size[0] % self.strides[0]:
            raise ValueError(
                'A MaskedConv1D has `padding="same"`, channels last, and a kernel whose size is a multiple of its strides. Received: '
                f"padding={padding!r}, data_format={self.data_format!r}, kernel_size={kernel_size}, strides={strides}"
            )
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return super().call(_without_padding(inputs, mask))

    def compute_mask(self, inputs, mask=None):
        (stride,) = self.strides
        if mask is None or stride == 1:
            return mask
        # (batch, steps) -> (batch, steps / stride, stride)
        mask = ops.pad(mask, [(0, 0), (0, -inputs.shape[1] % stride)], constant_values=False)
        return ops.any(ops.reshape(mask, (-1, mask.shape[1] // stride, stride)), axis=-1)


class _ToVector(layers.Layer):
    """A layer without weights from sequence to vector, behind which there is no mask."""

    compiles_well = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.built = True

    def compute_mask(self, inputs, mask=None):
        return None


@keras.saving.register_keras_serializable("kerasae")
class MaskedFlatten(_ToVector):
    """`(batch, steps, channels)` to `(batch, steps * channels)`, with zeros for padding."""

    def call(self, inputs, mask=None):
        return ops.reshape(_without_padding(inputs, mask), (-1, inputs.shape[1] * inputs.shape[2]))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] * input_shape[2])


@keras.saving.register_keras_serializable("kerasae")
class LastStep(_ToVector):
    """The last step that is no padding: `(batch, steps, channels)` to `(batch, channels)`; zeros where all is padding."""

    def call(self, inputs, mask=None):
        if mask is None:
            return inputs[:, -1]
        steps = ops.arange(inputs.shape[1], dtype="int32")
        last = ops.max(ops.where(mask, steps, -1), axis=1, keepdims=True)
        # A sum of one step and zeros, which every format has.
        return ops.sum(inputs * ops.cast(steps == last, inputs.dtype)[..., None], axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2])


@keras.saving.register_keras_serializable("kerasae")
class CausalLSTM(_KeepsMask, layers.LSTM):
    """`keras.layers.LSTM` over all steps, which gives every step, and doesn't skip padding: no step before it sees it.

    Without a mask in its loop it is exported as the operator that ONNX has.
    """

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(sequences, initial_state=initial_state, training=training)


@keras.saving.register_keras_serializable("kerasae")
class CausalGRU(_KeepsMask, layers.GRU):
    """`keras.layers.GRU` over all steps, which gives every step, and doesn't skip padding: no step before it sees it.

    The same numbers, from a loop that is exported as the operator that ONNX has: Keras's own stays a loop there, 2.5 times as slow.
    """

    def __init__(self, units, **kwargs):
        super().__init__(units, **{"return_sequences": True, **kwargs})
        parameters = inspect.signature(layers.GRU.__init__).parameters
        usual = {name: parameter.default for name, parameter in parameters.items()} | {"return_sequences": True}
        fixed = ("activation", "recurrent_activation", "use_bias", "reset_after", "dropout", "recurrent_dropout")
        fixed += ("return_sequences", "return_state", "go_backwards", "stateful")
        if changed := [name for name in fixed if kwargs.get(name, usual[name]) != usual[name]]:
            raise ValueError(
                f"A CausalGRU has Keras's defaults in {changed}, and gives all steps. Take keras.layers.GRU."
            )

    def call(self, sequences, initial_state=None, mask=None, training=False):
        x = tf.cast(sequences, self.compute_dtype)
        state = (
            self.get_initial_state(tf.shape(x)[0])[0] if initial_state is None else tf.nest.flatten(initial_state)[0]
        )
        # Outside of the loop, and the biases apart: that is how the converter knows them.
        kernel, recurrent = (tf.cast(w, x.dtype) for w in (self.cell.kernel, self.cell.recurrent_kernel))
        bias, recurrent_bias = tf.unstack(tf.cast(self.cell.bias, x.dtype))
        steps = x.shape[1]
        inputs = tf.TensorArray(x.dtype, steps, element_shape=x[:, 0].shape).unstack(tf.transpose(x, (1, 0, 2)))
        outputs = tf.TensorArray(x.dtype, steps, element_shape=(x.shape[0], self.units))

        def step(t, state, outputs):
            z, r, h = tf.split(tf.nn.bias_add(tf.matmul(inputs.read(t), kernel), bias), 3, axis=-1)
            z_state, r_state, h_state = tf.split(
                tf.nn.bias_add(tf.matmul(state, recurrent), recurrent_bias), 3, axis=-1
            )
            z, r = tf.sigmoid(z + z_state), tf.sigmoid(r + r_state)
            state = z * state + (1 - z) * tf.tanh(h + r * h_state)
            return t + 1, state, outputs.write(t, state)

        loop = tf.while_loop(lambda t, *_: t < steps, step, (tf.constant(0), state, outputs), maximum_iterations=steps)
        return tf.transpose(loop[2].stack(), (1, 0, 2))

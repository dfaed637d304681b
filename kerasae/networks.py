"""Encoders and decoders, dense and convolutional, as Functional models. The only place where layers are stacked."""

import math

import keras
from keras import layers

from kerasae import checks

NETWORKS = ("dense", "conv")
DEFAULT_HIDDEN_UNITS = {"dense": (512, 256), "conv": (32, 64)}

_KERNEL_SIZE = 4  # a multiple of the stride: transposed convolutions then leave no checkerboard (Odena et al. 2016)
_STRIDE = 2


def encoder(input_shape, heads, hidden_units=None, network="dense", activation="relu", head_activation=None):
    """The network from `x` to one or more codes.

    Args:
        input_shape: shape of one example, without the batch: `(d,)` or any other for `"dense"`, `(height, width, channels)` for
            `"conv"`, of any size.
        heads: `{name: size}`, the outputs in order, such as `{"z": 2}` or `{"z_mean": 16, "z_log_var": 16}`.
        hidden_units: nodes of each hidden layer (`"dense"`), or filters of each convolution, each of which halves the image
            (`"conv"`). Default: (512, 256) and (32, 64).
        network: `"dense"` or `"conv"`.
        activation: of the hidden layers; a Keras name or function.
        head_activation: of every head. Default: none (linear).

    Returns:
        A Functional model from `x`, `(batch, *input_shape)`, to `(batch, size)`, or to a list of them where there are several heads.
    """
    input_shape, hidden_units = _check(input_shape, hidden_units, network)
    x = keras.Input(input_shape, name="x")
    hidden = x
    if network == "dense":
        if len(input_shape) > 1:
            hidden = layers.Flatten(name="flatten")(hidden)
        for i, units in enumerate(hidden_units, 1):
            hidden = layers.Dense(units, activation, name=f"hidden_{i}")(hidden)
    else:
        for i, filters in enumerate(hidden_units, 1):
            hidden = layers.Conv2D(
                filters, _KERNEL_SIZE, _STRIDE, padding="same", activation=activation, name=f"hidden_{i}"
            )(hidden)
        hidden = layers.Flatten(name="flatten")(hidden)
    outputs = [
        layers.Dense(checks.positive_int(size, "latent_dim"), head_activation, name=name)(hidden)
        for name, size in heads.items()
    ]
    return keras.Model(x, outputs[0] if len(outputs) == 1 else outputs, name="encoder")


def decoder(
    output_shape, latent_dim, hidden_units=None, network="dense", activation="relu", output_activation="linear"
):
    """The network from `z` back to `x`'s shape: the mirror image of `encoder`.

    Args:
        output_shape: shape of one example, without the batch.
        latent_dim: size of the code.
        hidden_units: the **encoder's** hidden units; the decoder takes them in reverse.
        network: `"dense"` or `"conv"`.
        activation: of the hidden layers.
        output_activation: of the reconstruction: `"linear"`, or `"sigmoid"` for data in [0, 1]. It is a layer of its own, so that
            a cross-entropy is computed on the logits before it.

    Returns:
        A Functional model from `z`, `(batch, latent_dim)`, to `(batch, *output_shape)`.
    """
    output_shape, hidden_units = _check(output_shape, hidden_units, network, name="output_shape")
    z = keras.Input((checks.positive_int(latent_dim, "latent_dim"),), name="z")
    hidden = z
    if network == "dense":
        for i, units in enumerate(reversed(hidden_units), 1):
            hidden = layers.Dense(units, activation, name=f"hidden_{i}")(hidden)
        hidden = layers.Dense(math.prod(output_shape), name="logits")(hidden)
        if len(output_shape) > 1:
            hidden = layers.Reshape(output_shape, name="reshape")(hidden)
    else:
        hidden = _conv_decoder_stages(hidden, output_shape, hidden_units, activation)
    # float32 under mixed precision too: losses and users read this output.
    reconstruction = layers.Activation(output_activation, dtype="float32", name="reconstruction")(hidden)
    return keras.Model(z, reconstruction, name="decoder")


def _conv_decoder_stages(z, output_shape, filters, activation):
    height, width, channels = output_shape
    # sizes[i] is the image's size before the encoder's convolution i; "same" padding gives ceil(size / stride) after it.
    sizes = [(height, width)]
    for _ in filters:
        sizes.append(tuple(-(-size // _STRIDE) for size in sizes[-1]))
    hidden = layers.Dense(math.prod(sizes[-1]) * filters[-1], activation, name="hidden_1")(z)
    hidden = layers.Reshape((*sizes[-1], filters[-1]), name="reshape")(hidden)
    for i in reversed(range(len(filters))):
        stage = len(filters) - i
        last = i == 0
        hidden = layers.Conv2DTranspose(
            channels if last else filters[i - 1],
            _KERNEL_SIZE,
            _STRIDE,
            padding="same",
            activation=None if last else activation,
            name="logits" if last else f"hidden_{stage + 1}",
        )(hidden)
        # The transposed convolution gives stride * size; an odd size had been rounded up.
        excess = [_STRIDE * after - before for before, after in zip(sizes[i], sizes[i + 1], strict=True)]
        if any(excess):
            hidden = layers.Cropping2D([(0, e) for e in excess], name=f"crop_{stage}")(hidden)
    return hidden


def _check(shape, hidden_units, network, name="input_shape"):
    shape = checks.feature_shape(shape, name)
    checks.choice(network, "network", NETWORKS)
    if hidden_units is None:
        hidden_units = DEFAULT_HIDDEN_UNITS[network]
    hidden_units = checks.positive_ints(hidden_units, "hidden_units")
    if network == "conv":
        if len(shape) != 3:
            raise ValueError(
                f'`network="conv"` needs `{name}` (height, width, channels). Received: {shape}. '
                'Use `network="dense"` for vectors; add a channel dimension to grey images.'
            )
        if not hidden_units:
            raise ValueError('`network="conv"` needs at least one entry in `hidden_units`. Received: ()')
    return shape, hidden_units


def check_pair(encoder, decoder, num_codes=(1,), num_reconstructions=1):
    """Raises `ValueError` unless the two models fit together: code to code, and back to the input's shape.

    Args:
        encoder: built Keras model with one input.
        decoder: built Keras model with one input.
        num_codes: how many outputs the encoder may have.
        num_reconstructions: how many the decoder has, all of the input's shape.
    """
    for model, name in ((encoder, "encoder"), (decoder, "decoder")):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`{name}` must be a Keras model. Received: {model!r}")
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"`{name}` must know its shapes: a Functional model, or a Sequential one that begins with keras.Input. "
                f"Received: {model!r}"
            )
        if len(model.inputs) != 1:
            raise ValueError(f"`{name}` must have one input. Received {len(model.inputs)}: {model.inputs}")
    if len(encoder.outputs) not in num_codes:
        allowed = " or ".join(map(str, num_codes))
        raise ValueError(f"`encoder` must have {allowed} output(s). Received {len(encoder.outputs)}: {encoder.outputs}")
    if len(decoder.outputs) != num_reconstructions:
        raise ValueError(
            f"`decoder` must have {num_reconstructions} output(s). Received {len(decoder.outputs)}: {decoder.outputs}"
        )
    code, code_in = encoder.outputs[0].shape[1:], decoder.inputs[0].shape[1:]
    if not checks.shapes_match(code, code_in):
        raise ValueError(
            f"`encoder` and `decoder` don't fit: the encoder gives codes of shape {code}, the decoder takes {code_in}."
        )
    x = encoder.inputs[0].shape[1:]
    for output in decoder.outputs:
        if not checks.shapes_match(x, output.shape[1:]):
            raise ValueError(
                f"`encoder` and `decoder` don't fit: the encoder takes examples of shape {x}, the decoder gives {output.shape[1:]}."
            )

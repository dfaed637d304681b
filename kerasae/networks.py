"""Encoders and decoders, dense and convolutional, as Functional models. The only place where layers are stacked."""

import math

import keras
from keras import layers

from kerasae import checks
from kerasae.layers import TiedDense

NETWORKS = ("dense", "conv")
DEFAULT_HIDDEN_UNITS = {"dense": (512, 256), "conv": (32, 64)}

_KERNEL_SIZE = 4  # a multiple of the stride: transposed convolutions then leave no checkerboard (Odena et al. 2016)
_STRIDE = 2


def encoder(
    input_shape, heads, hidden_units=None, network="dense", activation="relu", head_activation=None, code_layer=None
):
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
        code_layer: a layer behind the head, such as `kerasae.layers.KSparse`; with one head only.

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
    if code_layer is not None:
        outputs = [code_layer(*outputs)]
    return keras.Model(x, outputs[0] if len(outputs) == 1 else outputs, name="encoder")


def decoder(
    output_shape,
    latent_dim,
    hidden_units=None,
    network="dense",
    activation="relu",
    output_activation="linear",
    tied=False,
    log_variance=False,
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
        tied: whether the kernels are the transposes of the encoder's; `"dense"` with one head named `z` only.
        log_variance: whether there is a second output, `log_variance`, of the same shape.

    Returns:
        A Functional model from `z`, `(batch, latent_dim)`, to `(batch, *output_shape)`, or to a list of two of them.
    """
    output_shape, hidden_units = _check(output_shape, hidden_units, network, name="output_shape")
    if tied and network != "dense":
        raise ValueError(f'`tied` weights need `network="dense"`. Received: {network!r}')
    z = keras.Input((checks.positive_int(latent_dim, "latent_dim"),), name="z")
    stack = _dense_decoder if network == "dense" else _conv_decoder
    hidden, output_layer = stack(z, output_shape, hidden_units, activation, tied)
    # float32 under mixed precision too: losses and users read this output.
    reconstruction = layers.Activation(output_activation, dtype="float32", name="reconstruction")(
        output_layer(hidden, "logits")
    )
    if not log_variance:
        return keras.Model(z, reconstruction, name="decoder")
    variance = layers.Activation("linear", dtype="float32", name="log_variance")(output_layer(hidden, "log_variances"))
    return keras.Model(z, [reconstruction, variance], name="decoder")


def _dense_decoder(z, output_shape, hidden_units, activation, tied):
    """The last hidden tensor, and a function from it and a name to an output of the right shape."""

    def dense(units, activation, name, tied_to):
        return TiedDense(tied_to, units, activation, name=name) if tied else layers.Dense(units, activation, name=name)

    # The encoder's layers from the code down: the transpose of `z` leads to the last hidden layer, and so on.
    sources = ["z", *(f"hidden_{i}" for i in range(len(hidden_units), 0, -1))]
    for i, units in enumerate(reversed(hidden_units), 1):
        z = dense(units, activation, f"hidden_{i}", sources[i - 1])(z)

    def output_layer(hidden, name):
        output = dense(math.prod(output_shape), None, name, sources[-1])(hidden)
        return layers.Reshape(output_shape, name=f"{name}_reshape")(output) if len(output_shape) > 1 else output

    return z, output_layer


def _conv_decoder(z, output_shape, filters, activation, tied):
    height, width, channels = output_shape
    # sizes[i] is the image's size before the encoder's convolution i; "same" padding gives ceil(size / stride) after it.
    sizes = [(height, width)]
    for _ in filters:
        sizes.append(tuple(-(-size // _STRIDE) for size in sizes[-1]))

    def transposed(hidden, i, num_filters, activation, name):
        """Undoes the encoder's convolution i."""
        hidden = layers.Conv2DTranspose(
            num_filters, _KERNEL_SIZE, _STRIDE, padding="same", activation=activation, name=name
        )(hidden)
        # The transposed convolution gives stride * size; an odd size had been rounded up.
        excess = [_STRIDE * after - before for before, after in zip(sizes[i], sizes[i + 1], strict=True)]
        return layers.Cropping2D([(0, e) for e in excess], name=f"{name}_crop")(hidden) if any(excess) else hidden

    hidden = layers.Dense(math.prod(sizes[-1]) * filters[-1], activation, name="hidden_1")(z)
    hidden = layers.Reshape((*sizes[-1], filters[-1]), name="reshape")(hidden)
    for i in range(len(filters) - 1, 0, -1):
        hidden = transposed(hidden, i, filters[i - 1], activation, f"hidden_{len(filters) - i + 1}")
    return hidden, lambda hidden, name: transposed(hidden, 0, channels, None, name)


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


def check_pair(encoder, decoder, num_codes=1, num_reconstructions=1):
    """Raises `ValueError` unless the two models fit together: code to code, and back to the first input's shape.

    Args:
        encoder: built Keras model. Of several inputs, in a list or a dict, the first is what is reconstructed.
        decoder: built Keras model with one input.
        num_codes: how many outputs the encoder has; the first is the code that the decoder takes.
        num_reconstructions: how many the decoder has, all of the first input's shape.

    Returns:
        `(encoder, decoder)`. Of an encoder with a dict of inputs, the same layers with the inputs in a list, in the dict's order.
    """
    for model, name in ((encoder, "encoder"), (decoder, "decoder")):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`{name}` must be a Keras model. Received: {model!r}")
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"`{name}` must know its shapes: a Functional model, or a Sequential one that begins with keras.Input. "
                f"Received: {model!r}"
            )
    if len(decoder.inputs) != 1:
        raise ValueError(f"`decoder` must have one input. Received {len(decoder.inputs)}: {decoder.inputs}")
    if len(encoder.inputs) != 1:
        encoder = _with_inputs_in_a_list(encoder)
    if len(encoder.outputs) != num_codes:
        raise ValueError(
            f"`encoder` must have {num_codes} output(s). Received {len(encoder.outputs)}: {encoder.outputs}"
        )
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
                + (" Of several inputs, the first is reconstructed." if len(encoder.inputs) > 1 else "")
            )
    return encoder, decoder


def _with_inputs_in_a_list(encoder):
    """An encoder whose `inputs` are in its author's order: of a dict Keras sorts them by name."""
    structure = encoder.input
    tensors = list(structure.values() if isinstance(structure, dict) else structure)
    if not all(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        raise ValueError(
            f"`encoder` must have its inputs in a list or a dict, without others inside. Received: {structure}"
        )
    if not isinstance(structure, dict):
        return encoder
    return keras.Model(tensors, encoder.output, name=encoder.name)

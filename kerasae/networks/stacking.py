"""Inputs, heads and output activations around what a kind of network stacks."""

import keras
from keras import layers

from kerasae import checks
from kerasae.networks.kinds import kinds
from kerasae.registry import NETWORKS


def encoder(
    input_shape,
    heads,
    hidden_units=None,
    network="dense",
    activation="relu",
    head_activation=None,
    code_layer=None,
    mask_value=None,
):
    """The network from `x` to one or more codes.

    Args:
        input_shape: shape of one example, without the batch: of any rank for `"dense"`, `(height, width, channels)` for `"conv"`,
            `(time, channels)` for `"conv1d"`, `"lstm"` and `"gru"`.
        heads: `{name: size}`, the outputs in order, such as `{"z": 2}` or `{"z_mean": 16, "z_log_var": 16}`.
        hidden_units: nodes of each hidden layer (`"dense"`), units of each recurrent one (`"lstm"`, `"gru"`), or filters of each
            convolution, each of which halves the image or series (`"conv"`, `"conv1d"`). Default: the kind's.
        network: `"dense"`, `"conv"`, `"conv1d"`, `"lstm"`, `"gru"`, or another registered kind (`kinds`).
        activation: of the hidden layers; a Keras name or function.
        head_activation: of every head. Default: none (linear).
        code_layer: a layer behind the head, such as `kerasae.layers.KSparse`; with one head only.
        mask_value: a step whose channels all equal it is padding; for kinds that take it.

    Returns:
        A Functional model from `x`, `(batch, *input_shape)`, to `(batch, size)`, or to a list of them where there are several heads.

    Raises:
        ValueError: on an unknown kind, or a shape or sizes that it does not take.
    """
    kind, input_shape, hidden_units = _checked(
        network, input_shape, hidden_units, "input_shape", activation, head_activation
    )
    x = keras.Input(input_shape, name="x")
    if mask_value is not None and not kind.takes_padding:
        able = " or ".join(f'`network="{name}"`' for name, other in kinds().items() if other.takes_padding)
        raise ValueError(f"`mask_value` is for series, of {able}. Received: {network!r}")
    masked = x if mask_value is None else layers.Masking(checks.real_number(mask_value, "mask_value"), name="mask")(x)
    hidden = kind.encode(masked, hidden_units, activation)
    outputs = [
        kind.head(hidden, checks.positive_int(size, "latent_dim"), head_activation, name)
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
        network: as in `encoder`.
        activation: of the hidden layers.
        output_activation: of the reconstruction: `"linear"`, or `"sigmoid"` for data in [0, 1]. It is a layer of its own, so that
            a cross-entropy is computed on the logits before it.
        tied: whether the kernels are the transposes of the encoder's; `"dense"` with one head named `z` only.
        log_variance: whether there is a second output, `log_variance`, of the same shape.

    Returns:
        A Functional model from `z`, `(batch, latent_dim)`, to `(batch, *output_shape)`, or to a list of two of them.

    Raises:
        ValueError: as `encoder`; and on `tied` where the kind of network can't be.
    """
    kind, output_shape, hidden_units = _checked(
        network, output_shape, hidden_units, "output_shape", activation, output_activation
    )
    if tied and not kind.can_tie:
        able = " or ".join(f'`network="{name}"`' for name, other in kinds().items() if other.can_tie)
        raise ValueError(f"`tied` weights need {able}. Received: {network!r}")
    code_shape = kind.code_shape(output_shape, checks.positive_int(latent_dim, "latent_dim"), hidden_units)
    z = keras.Input(code_shape, name="z")
    hidden, output_layer = kind.decode(z, output_shape, hidden_units, activation, tied)
    # float32 under mixed precision too: losses and users read this output.
    reconstruction = layers.Activation(output_activation, dtype="float32", name="reconstruction")(
        output_layer(hidden, "logits")
    )
    if not log_variance:
        return keras.Model(z, reconstruction, name="decoder")
    variance = layers.Activation("linear", dtype="float32", name="log_variance")(output_layer(hidden, "log_variances"))
    return keras.Model(z, [reconstruction, variance], name="decoder")


def _checked(network, shape, hidden_units, name, *activations):
    """The kind, and shape and hidden units as it takes them."""
    for activation in activations:
        if isinstance(activation, dict):  # a config, by which a recipe could have any function called
            raise ValueError(
                f"An activation must be the name of one of keras.activations, or a function. Received: {activation}"
            )
    shape = checks.feature_shape(shape, name)
    kind = NETWORKS[network]
    hidden_units = checks.positive_ints(kind.hidden_units if hidden_units is None else hidden_units, "hidden_units")
    if kind.axes is not None and len(shape) != len(kind.axes):
        raise ValueError(
            f'`network="{network}"` needs `{name}` ({", ".join(kind.axes)}). Received: {shape}. {kind.hint}'.rstrip()
        )
    if kind.needs_hidden_units and not hidden_units:
        raise ValueError(f'`network="{network}"` needs at least one entry in `hidden_units`. Received: ()')
    return kind, shape, hidden_units

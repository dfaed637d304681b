"""Autoencoders as stacks of dense layers, each with its mirror image in the decoder."""

from typing import NamedTuple

import keras
from keras import layers

from kerasae import networks
from kerasae.layers import TiedDense
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.chains import path


class StackedLayer(NamedTuple):
    """A Dense layer of the encoder, and its mirror image in the decoder."""

    encode: layers.Dense
    encode_activation: object
    decode: layers.Dense | TiedDense
    decode_activation: object

    @property
    def visible_dim(self):
        return self.encode.kernel.shape[0]

    @property
    def hidden_dim(self):
        return self.encode.kernel.shape[1]

    @property
    def is_tied(self):
        return isinstance(self.decode, TiedDense)


def one_layer_networks(visible_dim, hidden_dim, encode_activation, decode_activation, tied=False):
    """An encoder and a decoder of one Dense layer each, `(visible_dim,)` to `(hidden_dim,)` and back."""
    return (
        networks.encoder((visible_dim,), {"z": hidden_dim}, (), head_activation=encode_activation),
        networks.decoder((visible_dim,), hidden_dim, (), output_activation=decode_activation, tied=tied),
    )


def dense_stack(model):
    """The `StackedLayer`s of an autoencoder, bottom first; raises unless its decoder mirrors its encoder."""
    if not isinstance(model, Autoencoder):
        raise ValueError(f"`model` must be a kerasae.models.Autoencoder. Received: {model!r}")
    if len(model.encoder.inputs) != 1:
        raise _not_a_stack("encoder", f"it has {len(model.encoder.inputs)} inputs")
    encoder = _dense_chain(model.encoder, "encoder")
    decoder = _dense_chain(model.decoder, "decoder")[::-1]
    sizes = [(layer.input.shape[1], layer.units) for layer, _ in encoder]
    mirrored = [(layer.units, layer.input.shape[1]) for layer, _ in decoder]
    if sizes != mirrored:
        raise ValueError(
            "Layer-wise pretraining needs a decoder that mirrors the encoder. The encoder's layers, (inputs, units), "
            f"are {sizes}, the decoder's {[pair[::-1] for pair in mirrored[::-1]]}."
        )
    stack = [StackedLayer(*up, *down) for up, down in zip(encoder, decoder, strict=True)]
    for layer in stack:
        if layer.is_tied and layer.decode.source is not layer.encode:
            raise _not_a_stack("decoder", f"layer {layer.decode.name!r} isn't tied to its mirror image")
    return stack


def _dense_chain(network, name):
    """The `(Dense layer, activation)` of a network that is a chain of them, in order."""
    chain, steps = [], path(network)
    for layer, inputs, _ in steps:
        if len(network.outputs) != 1 or len(inputs) != 1 or sum(layer is other for other, *_ in steps) > 1:
            raise _not_a_stack(name, f"layer {layer.name!r} doesn't stand in a single chain from input to output")
        if type(layer) in (layers.Dense, TiedDense):
            if not getattr(layer, "use_bias", True) or len(inputs[0].shape) != 2:
                raise _not_a_stack(name, f"layer {layer.name!r} has no bias, or doesn't work on vectors")
            chain.append((layer, layer.activation))
        elif type(layer) is layers.Activation and chain and chain[-1][1] is keras.activations.linear:
            chain[-1] = (chain[-1][0], layer.activation)
        elif type(layer) not in (layers.Flatten, layers.Reshape):
            raise _not_a_stack(name, f"layer {layer.name!r} is a {type(layer).__name__}")
    if not chain:
        raise _not_a_stack(name, "it has no Dense layer")
    return chain


def _not_a_stack(name, problem):
    return ValueError(
        "Layer-wise pretraining needs an encoder of Dense layers with biases, each with its activation, and a decoder "
        f'that mirrors it, such as the builders make by network="dense". In the {name} {problem}.'
    )


def check_sigmoids(stack):
    """Raises unless all layers of the stack are sigmoids; the code may be linear."""
    for i, layer in enumerate(stack):
        is_top = i + 1 == len(stack)
        allowed = (keras.activations.sigmoid, *((keras.activations.linear,) if is_top else ()))
        for dense, activation, choices, where in (
            (layer.encode, layer.encode_activation, allowed, "encoder"),
            (layer.decode, layer.decode_activation, (keras.activations.sigmoid,), "decoder"),
        ):
            if activation not in choices:
                raise ValueError(
                    "Restricted Boltzmann machines need sigmoid layers; only the code may be linear. "
                    f"In the {where} layer {dense.name!r} has {getattr(activation, '__name__', activation)!r}. "
                    'Build the model with activation="sigmoid" and output_activation="sigmoid".'
                )

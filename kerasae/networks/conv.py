"""Convolutional networks for images."""

import math

from keras import layers

from kerasae.networks.kinds import Network, register

_KERNEL_SIZE = 4  # a multiple of the stride: transposed convolutions then leave no checkerboard (Odena et al. 2016)
_STRIDE = 2


@register("conv")
class Conv(Network):
    """Takes images of any size; each convolution halves them, and a dense layer gives a vector."""

    axes = ("height", "width", "channels")
    hint = 'Use `network="dense"` for vectors; add a channel dimension to grey images.'
    hidden_units = (32, 64)
    units = "filters of convolutions, each of which halves the image"
    needs_hidden_units = True

    def encode(self, x, hidden_units, activation):
        for i, filters in enumerate(hidden_units, 1):
            x = _convolution(layers.Conv2D, filters, activation, f"hidden_{i}")(x)
        return layers.Flatten(name="flatten")(x)

    def decode(self, z, output_shape, hidden_units, activation, tied=False):
        height, width, channels = output_shape
        # sizes[i] is the image's size before the encoder's convolution i; "same" padding gives ceil(size / stride) after it.
        sizes = [(height, width)]
        for _ in hidden_units:
            sizes.append(tuple(-(-size // _STRIDE) for size in sizes[-1]))

        def transposed(hidden, i, filters, activation, name):
            """Undoes the encoder's convolution i."""
            hidden = _convolution(layers.Conv2DTranspose, filters, activation, name)(hidden)
            # The transposed convolution gives stride * size; an odd size had been rounded up.
            excess = [_STRIDE * after - before for before, after in zip(sizes[i], sizes[i + 1], strict=True)]
            return layers.Cropping2D([(0, e) for e in excess], name=f"{name}_crop")(hidden) if any(excess) else hidden

        hidden = layers.Dense(math.prod(sizes[-1]) * hidden_units[-1], activation, name="hidden_1")(z)
        hidden = layers.Reshape((*sizes[-1], hidden_units[-1]), name="reshape")(hidden)
        for i in range(len(hidden_units) - 1, 0, -1):
            hidden = transposed(hidden, i, hidden_units[i - 1], activation, f"hidden_{len(hidden_units) - i + 1}")
        return hidden, lambda hidden, name: transposed(hidden, 0, channels, None, name)


def _convolution(layer, filters, activation, name):
    return layer(filters, _KERNEL_SIZE, _STRIDE, padding="same", activation=activation, name=name)

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
    # The layers for so many axes.
    convolution, flatten = layers.Conv2D, layers.Flatten
    transposed, cropping = layers.Conv2DTranspose, layers.Cropping2D

    def encode(self, x, hidden_units, activation):
        for i, filters in enumerate(hidden_units, 1):
            x = _convolution(self.convolution, filters, activation, f"hidden_{i}")(x)
        return self.flatten(name="flatten")(x)

    def decode(self, z, output_shape, hidden_units, activation, tied=False):
        *shape, channels = output_shape
        # sizes[i] is the example's size before the encoder's convolution i; "same" padding gives ceil(size / stride) after it.
        sizes = [tuple(shape)]
        for _ in hidden_units:
            sizes.append(tuple(-(-size // _STRIDE) for size in sizes[-1]))

        def transposed(hidden, i, filters, activation, name):
            """Undoes the encoder's convolution i."""
            hidden = _convolution(self.transposed, filters, activation, name)(hidden)
            # The transposed convolution gives stride * size; an odd size had been rounded up.
            excess = [_STRIDE * after - before for before, after in zip(sizes[i], sizes[i + 1], strict=True)]
            if not any(excess):
                return hidden
            cropping = tuple((0, e) for e in excess)
            return self.cropping(cropping if len(excess) > 1 else cropping[0], name=f"{name}_crop")(hidden)

        hidden = layers.Dense(math.prod(sizes[-1]) * hidden_units[-1], activation, name="hidden_1")(z)
        hidden = layers.Reshape((*sizes[-1], hidden_units[-1]), name="reshape")(hidden)
        for i in range(len(hidden_units) - 1, 0, -1):
            hidden = transposed(hidden, i, hidden_units[i - 1], activation, f"hidden_{len(hidden_units) - i + 1}")
        return hidden, lambda hidden, name: transposed(hidden, 0, channels, None, name)


def _convolution(layer, filters, activation, name):
    return layer(filters, _KERNEL_SIZE, _STRIDE, padding="same", activation=activation, name=name)

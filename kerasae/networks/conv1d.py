"""Convolutional networks for series."""

from keras import layers

from kerasae.networks.conv import Conv
from kerasae.networks.kinds import register
from kerasae.sequences import MaskedConv1D, MaskedFlatten


@register("conv1d")
class Conv1D(Conv):
    """Takes series of any number of steps; each convolution halves them, and a dense layer gives a vector."""

    axes = ("time", "channels")
    hint = "One series is (time, channels): add an axis to series of one channel, x[..., None]."
    units = "filters of convolutions over time, each of which halves the steps"
    takes_padding = True
    convolution, flatten = MaskedConv1D, MaskedFlatten
    transposed, cropping = layers.Conv1DTranspose, layers.Cropping1D

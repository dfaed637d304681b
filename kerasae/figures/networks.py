"""Pictures of networks: their weights as images, and the Jacobians of encoders."""

import math

import numpy as np

from kerasae import checks
from kerasae.figures.curves import singular_values
from kerasae.figures.drawing import check_mapping, draw_sign_scale, draw_signed, mosaic, rgba, signed_rgba
from kerasae.models.chains import path
from kerasae.models.jacobian import jacobians


def filters(model, num_filters=64, columns=None, ax=None):
    """The weights of the encoder's first layer as images: the patterns that it responds to.

    A unit of a dense layer has a weight for every pixel, a filter of a convolution one for every pixel of its kernel.

    Args:
        model: Autoencoder of images whose encoder begins with a dense layer or a 2-D convolution.
        num_filters: Positive integer; the layer's first units are shown. Default 64.
        columns: As in `samples`.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, as of `signed_images`.

    Raises:
        ValueError: If the first layer with weights is another, or does not see images.

    Example:

    >>> import kerasae
    >>> figure = filters(kerasae.builders.undercomplete((8, 8, 1), 2), num_filters=16)
    >>> figure.axes[0].get_xlabel()
    "first 16 of 512 filters of the encoder's layer 'hidden_1'"
    """
    layer = _weighted_layers(model.encoder)[-1]
    weights = _kernel_images(layer, model.encoder.inputs[0].shape[1:], into=True)
    return _draw_weights(weights, "filters", f"encoder's layer {layer.name!r}", num_filters, columns, ax)


def atoms(model, num_atoms=64, columns=None, ax=None):
    """The weights of the decoder's last layer as images: the patterns that the units before it add to the image.

    Into a dense layer, a unit has a weight for every pixel; into a transposed convolution, one for every pixel of its kernel. Of a decoder
    of one layer, unit i is unit i of the code.

    Args:
        model: Autoencoder of images whose decoder ends in a dense layer or a 2-D (transposed) convolution.
        num_atoms: Positive integer; the first are shown. Default 64.
        columns: As in `samples`.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, as of `signed_images`.

    Raises:
        ValueError: If the last layer with weights is another, or does not give images.

    Example:

    >>> import kerasae
    >>> figure = atoms(kerasae.builders.linear((8, 8, 1), latent_dim=10))
    >>> figure.axes[0].get_xlabel()
    "all 10 atoms of the decoder's layer 'logits'"

    Reference:
        Olshausen and Field, 1996, figure 4.
    """
    layer = _weighted_layers(model.decoder)[0]
    weights = _kernel_images(layer, model.decoder.outputs[0].shape[1:], into=False)
    return _draw_weights(weights, "atoms", f"decoder's layer {layer.name!r}", num_atoms, columns, ax)


def jacobian_spectrum(models, x, ax=None):
    """The singular values of encoders' Jacobians ``df/dx``, mean over examples, one curve per model.

    Args:
        models: Dict from name to autoencoder, all of which take `x`.
        x: A few examples, in the shape that the models take. Time grows with their number and with the code's size.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, as of `singular_values`.

    Raises:
        ValueError: If there is no model, an encoder takes integers, or a model does not take `x`.

    Example:

    >>> import kerasae
    >>> x = kerasae.data.load("digits")[1][:8]
    >>> model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=4)
    >>> len(jacobian_spectrum({"untrained": model}, x).axes[0].lines[0].get_ydata())
    4

    Reference:
        Rifai et al., 2011, figure 3.
    """
    check_mapping(models, "models", "models")
    spectra = {}
    for name, model in models.items():
        values = np.concatenate(
            [np.linalg.svd(jacobian, compute_uv=False) for jacobian in jacobians(model.encoder, x, model.code_of)]
        )
        # Values below the arithmetic's precision are zeros.
        spectra[name] = np.where(values > np.finfo(values.dtype).eps * values[:, :1], values, 0)
    return singular_values(spectra, ax)


def tangents(model, x, num_tangents=6, ax=None):
    """The directions in which a small change of an image changes its code most.

    They are the leading right singular vectors of the encoder's Jacobian ``df/dx``, each with its singular value. If a model has learned
    the manifold that the data lie on, they span its tangent plane: they look like strokes that move, bend or grow. A singular vector's sign
    means nothing; its largest entry is made positive.

    Args:
        model: Autoencoder of images.
        x: A few images in [0, 1], one per row.
        num_tangents: Positive integer, directions per row; at most the smaller of the sizes of code and image. Default 6.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its first axes holds one picture: each image, then its directions as in `signed_images`.

    Raises:
        ValueError: If examples are not images, or the encoder takes integers.

    Example:

    >>> import kerasae
    >>> x = kerasae.data.load("digits")[1][:3]
    >>> figure = tangents(kerasae.builders.contractive((8, 8, 1), latent_dim=16), x, num_tangents=2)
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['image', '1', '2']

    Reference:
        Rifai et al., 2011, "The Manifold Tangent Classifier", figure 1.
    """
    from matplotlib.patheffects import withStroke

    num_tangents = checks.positive_int(num_tangents, "num_tangents")
    shown = rgba(x, "x")
    rows, names = [], []
    for jacobian in jacobians(model.encoder, x, model.code_of):
        _, values, directions = np.linalg.svd(jacobian, full_matrices=False)
        for value, direction in zip(values[:, :num_tangents], directions[:, :num_tangents], strict=True):
            largest = np.take_along_axis(direction, np.abs(direction).argmax(axis=1)[:, None], axis=1)
            rows.append(signed_rgba((direction * np.sign(largest)).reshape(-1, *np.shape(x)[1:]), "directions"))
            names.append([f"{v:.2g}" for v in value])
    grid = np.concatenate([shown[:, None], np.stack(rows)], axis=1)
    ax, ys, xs = mosaic(grid, ax, (1.0, 0.6), caption="direction, by falling singular value (in the corner)")
    for y, row in zip(ys, names, strict=True):
        for centre, name in zip(xs[1:], row, strict=True):
            # In the image's lower right corner, dark on light, as most of a direction is light.
            corner = centre + shown.shape[2] / 2 - 0.5, y + shown.shape[1] / 2 - 0.5
            style = {"fontsize": 6, "color": "black", "path_effects": [withStroke(linewidth=1.5, foreground="white")]}
            ax.annotate(name, corner, xytext=(-1, 1), textcoords="offset points", ha="right", **style)
    ax.set_xticks(xs, ["image", *map(str, range(1, grid.shape[1]))])
    ax.tick_params(axis="x", length=0)
    draw_sign_scale(ax, x)
    return ax.figure


def _weighted_layers(network):
    """The dense and convolutional layers between a network's first output and its input, last first."""
    found = [layer for layer, _, _ in path(network)[::-1] if hasattr(layer, "kernel") or hasattr(layer, "tied_to")]
    if not found:
        raise ValueError(
            f"{network.name!r} has no layer with a kernel: its layers are {[layer.name for layer in network.layers]}."
        )
    return found


def _kernel_images(layer, shape, into):
    """A layer's kernel as images `(units, h, w[, c])`: one per output if it reads images (`into`), else one per input."""
    import keras

    from kerasae.layers import TiedDense

    kernel = np.asarray(layer.source.kernel).T if isinstance(layer, TiedDense) else np.asarray(layer.kernel)
    if isinstance(layer, (keras.layers.Dense, TiedDense)):
        units = kernel.T if into else kernel  # (units, pixels)
        are_images = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
        if are_images and None not in shape and units.shape[1] == math.prod(shape):
            return units.reshape(-1, *shape)
    elif isinstance(layer, keras.layers.Conv2DTranspose) and not into and kernel.shape[2] in (1, 3):
        return kernel.transpose(3, 0, 1, 2)  # (h, w, outputs, inputs)
    elif isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, keras.layers.Conv2DTranspose):
        images = kernel.transpose((3, 0, 1, 2) if into else (2, 0, 1, 3))  # (h, w, inputs, outputs)
        if images.shape[-1] in (1, 3):
            return images
    raise ValueError(
        f"The kernel of {layer.name!r}, a {type(layer).__name__} of shape {kernel.shape}, can't be drawn as images: that takes a dense "
        f"layer or a 2-D convolution right {'behind' if into else 'before'} images (h, w), (h, w, 1) or (h, w, 3). The network's are of "
        f"shape {tuple(shape)}."
    )


def _draw_weights(weights, what, where, num, columns, ax):
    num = min(checks.positive_int(num, f"num_{what}"), len(weights))
    count = f"first {num} of" if num < len(weights) else "all"
    return draw_signed(weights[:num], columns, ax, f"{count} {len(weights)} {what} of the {where}")

"""Pictures of data, codes and training: every function returns a `matplotlib.figure.Figure`.

Figures are made without pyplot, so they need no display and nothing keeps them alive; a notebook
shows a returned figure. Colours follow matplotlib's style, light or dark, and figures are opaque.
Images lie in [0, 1]; what lies outside is clipped for display.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np

from kerasae import checks

# Ten colours told apart by people with any colour vision: Petroff, 2021, "Accessible color
# sequences for data visualization" (matplotlib's own "petroff10", which came after 3.9).
_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_MARKERS = "o^sDv"
_DPI = 150
_GAP = 0.1  # between images, as a fraction of their side
_IMAGE_INCHES = 0.6
_LETTER_INCHES = 0.08  # of a row's name, at matplotlib's usual 10 points


def save(figure, path):
    """Writes a figure as PNG, 150 dots per inch, whole or not at all.

    Args:
        figure: A `matplotlib.figure.Figure`.
        path: Where to write; must end in `.png`. Missing folders are made, a file already there is
            replaced.

    Returns:
        The path, as `pathlib.Path`.

    Raises:
        ValueError: If `path` does not end in `.png`.

    Example:

    >>> import numpy as np
    >>> figure = samples(np.random.default_rng(0).random((9, 8, 8)))
    >>> save(figure, "figures/samples.png").name
    'samples.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in .png. Received: {str(path)!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder beside the file, not a temporary file, which only its owner could read once moved.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".figure-") as folder:
        written = Path(folder, path.name)
        figure.savefig(written, dpi=_DPI, format="png", transparent=False, facecolor=figure.get_facecolor())
        os.replace(written, path)
    return path


def reconstructions(rows, num_images=10, ax=None):
    """Rows of images under one another: inputs beside what became of them.

    Column i shows image i of every row, so the same function serves inputs and reconstructions,
    several models at once, or a denoising model's clean, corrupted and denoised images.

    Args:
        rows: Dict from row name, shown at the left, to images in [0, 1] of shape `(n, h, w)`,
            `(n, h, w, 1)` or `(n, h, w, 3)`; every row as many images of the same size.
        num_images: Positive integer, the number of columns: the first images are shown, or all if
            there are fewer. Default 10.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If there is no row, the rows differ in length or size, or images have another
            rank, are empty, not finite or integers above 1.

    Example:

    >>> import numpy as np
    >>> x = np.random.default_rng(0).random((20, 8, 8))
    >>> figure = reconstructions({"input": x, "reconstruction": x.round()}, num_images=5)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['input', 'reconstruction']

    Reference:
        Vincent et al., 2010, and Hinton and Salakhutdinov, 2006, figure 2, lay theirs out so.
    """
    _check_mapping(rows, "rows", "images")
    num_images = checks.positive_int(num_images, "num_images")
    shapes = {name: np.shape(row)[:3] for name, row in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Every row must hold as many images, of the same size. Received (n, h, w): {shapes}.")
    shown = np.stack([_images(np.atleast_1d(row)[:num_images], f"rows[{name!r}]") for name, row in rows.items()])
    margin = (0.2 + _LETTER_INCHES * max(len(str(name)) for name in rows), 0.1)
    ax, centres, _ = _mosaic(shown, ax, margin)
    ax.set_yticks(centres, list(rows))
    ax.tick_params(axis="y", length=0)
    return ax.figure


def codes_2d(codes, labels=None):
    """Two-number codes as points, one panel per model, coloured by class.

    Classes are named at the median of their points and in a legend. Points are drawn in a fixed
    shuffled order, so that no class hides another by coming later in the data.

    Args:
        codes: Dict from panel name to codes of shape `(n, 2)`, such as
            `{"autoencoder": z, "PCA": z_pca}`.
        labels: Classes of shape `(n,)`, at most 50 distinct, integers or names; every panel must
            then hold as many codes. None, the default, draws all points alike.

    Returns:
        The figure, with one axes per panel, each with scales of its own.

    Raises:
        ValueError: If there is no panel, codes are not of shape `(n, 2)`, empty or not finite, or
            `labels` does not match.

    Example:

    >>> import numpy as np
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> figure = codes_2d({"autoencoder": z, "PCA": z[:, ::-1]}, labels=np.arange(100) % 10)
    >>> [ax.get_title() for ax in figure.axes]
    ['autoencoder', 'PCA']

    Reference:
        Hinton and Salakhutdinov, 2006, figure 3.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    _check_mapping(codes, "codes", "codes")
    codes = {name: checks.array(z, shape=(2,), name=f"codes[{name!r}]") for name, z in codes.items()}
    classes = np.array([])
    if labels is not None:
        labels = np.asarray(labels)
        for name, z in codes.items():
            if labels.shape != (len(z),):
                raise ValueError(
                    f"`labels` must hold one class per code. Received shape {labels.shape} for "
                    f"codes[{name!r}] of shape {z.shape}."
                )
        classes, class_index = np.unique(labels, return_inverse=True)
        if len(classes) > len(_COLOURS) * len(_MARKERS):
            raise ValueError(
                f"`labels` must have at most {len(_COLOURS) * len(_MARKERS)} distinct classes to "
                f"be told apart. Received {len(classes)}."
            )

    figure = _figure(4.6 * len(codes) + (0.8 if len(classes) else 0.2), 4.4)
    axes = figure.subplots(1, len(codes), squeeze=False)[0]
    colours = np.array(_COLOURS)
    for ax, (name, z) in zip(axes, codes.items(), strict=True):
        order = np.random.default_rng(0).permutation(len(z))
        index = np.zeros(len(z), int) if labels is None else class_index
        for group, marker in enumerate(_MARKERS):
            drawn = order[index[order] // len(colours) == group]
            if len(drawn):
                ax.scatter(
                    *z[drawn].T,
                    c=colours[index[drawn] % len(colours)],
                    marker=marker,
                    s=np.clip(20_000 / len(z), 2, 20),
                    linewidths=0,
                )
        for i, label in enumerate(classes):
            ax.annotate(
                str(label),
                np.median(z[class_index == i], axis=0),
                ha="center",
                va="center",
                fontsize="large",
                fontweight="bold",
                path_effects=[withStroke(linewidth=3, foreground=ax.get_facecolor())],
            )
        ax.set(title=name, xlabel="code 1", ylabel="code 2")
    if len(classes):
        handles = [
            Line2D([], [], linestyle="", marker=_MARKERS[i // len(colours)],
                   color=colours[i % len(colours)], label=str(label))
            for i, label in enumerate(classes)
        ]  # fmt: skip
        figure.legend(handles=handles, title="class", loc="outside right center", frameon=False)
    return figure


def samples(images, columns=None, ax=None):
    """A grid of images, row by row.

    Args:
        images: Images in [0, 1] of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`.
        columns: Positive integer; by default the grid is as square as it gets. The last row may be
            shorter than the others.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If images have another rank, are empty, not finite or integers above 1, or
            `columns` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> len(samples(np.random.default_rng(0).random((10, 8, 8)), columns=5).axes)
    1
    """
    images = _images(images, "images")
    if columns is None:
        columns = int(np.ceil(np.sqrt(len(images))))
    columns = min(checks.positive_int(columns, "columns"), len(images))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)
    grid = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    return _mosaic(grid, ax)[0].figure


def latent_grid(decode, n=15, quantiles=(0.05, 0.95), ax=None):
    """What a two-number code means: decodes an even grid over the prior N(0, I).

    Image (i, j) is ``decode(z_1, z_2)`` with ``z_1 = F^-1(u_j)``, growing to the right, and
    ``z_2 = F^-1(u_i)``, growing upwards, where ``F`` is the standard normal distribution function
    and the ``u`` lie evenly between the two quantiles: so every image stands for equally much of
    the prior.

    Args:
        decode: Callable from codes, float32 of shape `(n * n, 2)`, to images in [0, 1] of shape
            `(n * n, h, w)`, `(n * n, h, w, 1)` or `(n * n, h, w, 3)`, such as `model.decode`.
        n: Integer >= 2, images along each side. Default 15.
        quantiles: The grid's ends, probabilities with `0 < low < high < 1`. Default (0.05, 0.95).
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If `n` or `quantiles` is out of bounds, or `decode` returns something else than
            `n * n` finite images.

    Example:

    >>> import numpy as np
    >>> figure = latent_grid(lambda z: np.tile(abs(z[:, :1, None]) / 2, (1, 8, 8)), n=5)
    >>> figure.axes[0].get_xlabel()
    '$z_1$'

    Reference:
        Kingma and Welling, 2014, figure 4.
    """
    if checks.positive_int(n, "n") < 2:
        raise ValueError(f"`n` must be at least 2, to span the quantiles. Received: {n}")
    low, high = quantiles
    if not 0 < low < high < 1:
        raise ValueError(f"`quantiles` must have 0 < low < high < 1. Received: {quantiles!r}.")
    grid = np.array([NormalDist().inv_cdf(u) for u in np.linspace(low, high, n)], "float32")
    # Rows are drawn from the top, so the first row has the largest z_2.
    z_2, z_1 = np.meshgrid(grid[::-1], grid, indexing="ij")
    images = _images(decode(np.stack([z_1.ravel(), z_2.ravel()], axis=1)), "decode's result")
    if len(images) != n * n:
        raise ValueError(f"`decode` must return {n * n} images. Received {len(images)}.")
    ax, ys, xs = _mosaic(images.reshape(n, n, *images.shape[1:]), ax, margin=0.6)
    ticks = np.unique([0, (n - 1) // 2, n - 1])
    ax.set_xticks(xs[ticks], [f"{grid[i]:z.2f}" for i in ticks])
    ax.set_yticks(ys[ticks], [f"{grid[::-1][i]:z.2f}" for i in ticks])
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax.figure


def training_curves(history, unit="nats"):
    """Every logged term by epoch, one panel per term, training beside validation.

    Args:
        history: Dict from term to one value per epoch, as `model.fit(...).history`; a term's
            validation twin is named `val_` and the term. NaN leaves a gap.
        unit: Unit of the terms whose name ends in `loss`, on their y axis: "nats" by default,
            "squared error" for a model fitted by that. Other terms are plain numbers.

    Returns:
        The figure, with one axes per term. Epochs count from 1.

    Raises:
        ValueError: If there is no term, or terms are empty or differ in length.

    Example:

    >>> figure = training_curves({"loss": [3.0, 2.0], "val_loss": [3.2, 2.5]})
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['training', 'validation']
    """
    from matplotlib.ticker import MaxNLocator

    _check_mapping(history, "history", "values by epoch")
    history = {name: np.asarray(values, dtype=float) for name, values in history.items()}
    lengths = {name: values.shape for name, values in history.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 or 0 in shape for shape in lengths.values()):
        raise ValueError(
            "Every term must hold one value per epoch, and as many as the others: with "
            f"`validation_freq`, put NaN where none was measured. Received shapes: {lengths}."
        )

    terms = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    num_columns = min(3, len(terms))
    num_rows = -(-len(terms) // num_columns)
    figure = _figure(4.2 * num_columns, 3.2 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in panels[len(terms) :]:
        ax.remove()
    for ax, term in zip(panels, terms, strict=False):
        for name, label, style, colour in (
            (term, "training", "-", _COLOURS[0]),
            (f"val_{term}", "validation", "--", _COLOURS[6]),
        ):
            if name in history:
                epochs = np.arange(1, len(history[name]) + 1)
                # Points too while they are few: a line through one epoch would not be seen.
                marker = "o" if len(epochs) <= 20 else None
                ax.plot(epochs, history[name], style, color=colour, label=label, marker=marker, ms=3)
        ax.set(title=term, xlabel="epoch", ylabel=unit if term.endswith("loss") else term)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if f"val_{term}" in history:
            ax.legend()
    return figure


def _figure(width, height, layout="constrained"):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _mosaic(grid, ax, margin=0.1):
    """Draws images of shape `(rows, columns, h, w, 4)` as one picture.

    One picture instead of one axes per image: a latent grid would need hundreds of axes. A new figure
    leaves `margin` inches, (width, height) or both, for what stands beside the images.

    Returns:
        The axes, and the pixel positions of the rows' and the columns' centres.
    """
    rows, columns, height, width, _ = grid.shape
    gap = max(1, round(_GAP * min(height, width)))
    # (rows, columns, h, w, 4) -> (rows * (h + gap), columns * (w + gap), 4)
    tiles = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    picture = tiles.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 4)
    picture = picture[:-gap, :-gap]
    if ax is None:
        scale = _IMAGE_INCHES / max(height, width)
        size = np.array(picture.shape[1::-1]) * scale + margin
        # "compressed" measures names beside axes of fixed aspect rightly; "constrained" cuts long ones.
        ax = _figure(*size, layout="compressed").add_subplot()
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return (
        ax,
        np.arange(rows) * (height + gap) + (height - 1) / 2,
        np.arange(columns) * (width + gap) + (width - 1) / 2,
    )


def _images(images, name):
    """Images as RGBA of shape `(n, h, w, 4)`, clipped to [0, 1]."""
    images = checks.array(images, name=name)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"`{name}` must hold images of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3). Received: {images.shape}."
        )
    if images.dtype.kind in "iu" and images.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received {images.dtype} up to {images.max()}. Divide by 255.")
    rgba = np.ones((*images.shape[:3], 4), "float32")
    rgba[..., :3] = np.clip(images.astype("float32"), 0, 1)
    return rgba


def _check_mapping(value, name, of):
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"`{name}` must be a dict from name to {of}. Received: {value!r:.80}.")

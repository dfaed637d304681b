"""Pictures of data, codes and training: every function returns a `matplotlib.figure.Figure`.

Figures are made without pyplot, so they need no display and nothing keeps them alive; a notebook
shows a returned figure. Colours follow matplotlib's style, light or dark, and figures are opaque;
`with theme(dark=True):` draws on black whatever the style. What colour tells, a marker, a hatch, a
dash or a name tells too. Images lie in [0, 1]; what lies outside is clipped for display.

Where a picture is of numbers that anyone may have, its function takes arrays; where they have to be
computed from a model, it takes the model.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np

from kerasae import checks, metrics

# Ten colours told apart by people with any colour vision: Petroff, 2021, "Accessible color
# sequences for data visualization" (matplotlib's own "petroff10", which came after 3.9).
_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_MARKERS = "o^sDv"
# Those of them that stand out on white and on black alike, by a contrast of at least 3, as WCAG 2.1 asks of graphics.
_LINE_COLOURS = tuple(_COLOURS[i] for i in (0, 6, 8, 2, 5, 4))
_LINE_STYLES = ("-", "--", "-.", ":")
_SIGNED_COLOURS = "RdBu_r"  # told apart by people with any colour vision
_JACOBIAN_ELEMENTS = 2**24  # 64 MiB of float32 numbers
_DPI = 150
_GAP = 0.1  # between images, as a fraction of their side
_IMAGE_INCHES = 0.6
_LETTER_INCHES = 0.08  # of a row's name, at matplotlib's usual 10 points


@contextlib.contextmanager
def theme(dark=False):
    """A context in which figures are drawn on white, or on black.

    Only colours change; sizes and fonts stay those of matplotlib's style. Without this context figures
    follow that style altogether.

    Args:
        dark: Whether the ground is black and text white. Default False, the reverse.

    Example:

    >>> import numpy as np
    >>> with theme(dark=True):
    ...     figure = samples(np.random.default_rng(0).random((9, 8, 8)))
    >>> figure.get_facecolor()
    (0.0, 0.0, 0.0, 1.0)
    """
    import matplotlib
    from matplotlib import style

    colours = style.library["dark_background"]
    if not dark:
        colours = {name: matplotlib.rcParamsDefault[name] for name in colours}
    with matplotlib.rc_context(colours):
        yield


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
    ax, centres, _ = _mosaic(shown, ax, (_name_width(rows), 0.1))
    ax.set_yticks(centres, list(rows))
    ax.tick_params(axis="y", length=0)
    return ax.figure


def denoising(model, x, x_corrupted=None, num_images=10, ax=None):
    """Three rows: clean images, the same corrupted, and what a model makes of these.

    Beside each of the lower two stands its peak signal-to-noise ratio in decibels, the mean over the
    images shown, as shown: clipped to [0, 1].

    Args:
        model: Autoencoder.
        x: Clean images in [0, 1], in the shape that the model takes.
        x_corrupted: The same images, corrupted; by default, by the model's own corruption, by the same
            noise each time.
        num_images: Positive integer, the number of columns: the first images are shown. Default 10.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, as of `reconstructions`.

    Raises:
        ValueError: As `reconstructions`; if the model has no corruption of its own and `x_corrupted` is
            missing.

    Example:

    >>> import kerasae
    >>> x = kerasae.data.load("digits")[1][:5]
    >>> model = kerasae.builders.denoising((8, 8, 1), latent_dim=16)
    >>> figure = denoising(model, x)
    >>> [label.get_text().split(",")[0] for label in figure.axes[0].get_yticklabels()]
    ['clean', 'corrupted', 'denoised']

    Reference:
        Vincent et al., 2010, figure 13.
    """
    x = checks.array(x)[: checks.positive_int(num_images, "num_images")]
    if x_corrupted is None:
        x_corrupted = _corrupted(model, x)
    else:
        x_corrupted = checks.array(x_corrupted, x.shape[1:], name="x_corrupted")[:num_images]
        if len(x_corrupted) != len(x):
            raise ValueError(
                f"`x_corrupted` must hold x's images, corrupted. Received {len(x_corrupted)} for {len(x)}."
            )
    denoised = model.predict(x_corrupted, verbose=0)
    clean, *others = (
        _images(images, name) for images, name in ((x, "x"), (x_corrupted, "x_corrupted"), (denoised, "reconstruction"))
    )
    rows = {"clean": x}
    for name, images, shown in (("corrupted", x_corrupted, others[0]), ("denoised", denoised, others[1])):
        # The opaque fourth channel is no part of the image.
        rows[f"{name}, {metrics.psnr(clean[..., :3], shown[..., :3]):.1f} dB"] = images
    return reconstructions(rows, num_images, ax)


def codes_2d(codes, labels=None):
    """Codes as points in the plane, one panel per model, coloured by class.

    Codes of two numbers are drawn as they are; of more, by their first two principal components, and the
    axes say so. Classes are named at the median of their points and in a legend. Points are drawn in a
    fixed shuffled order, so that no class hides another by coming later in the data.

    Args:
        codes: Dict from panel name to codes of shape `(n, d)`, d at least 2, such as
            `{"autoencoder": z, "PCA": x.reshape(len(x), -1)}`.
        labels: Classes of shape `(n,)`, at most 50 distinct, integers or names; every panel must
            then hold as many codes. None, the default, draws all points alike.

    Returns:
        The figure, with one axes per panel, each with scales of its own.

    Raises:
        ValueError: If there is no panel, codes are not of shape `(n, d)`, empty or not finite, or
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
    panels = {name: _plane(z, f"codes[{name!r}]") for name, z in codes.items()}
    classes = np.array([])
    if labels is not None:
        labels = np.asarray(labels)
        for name, (z, _) in panels.items():
            if labels.shape != (len(z),):
                raise ValueError(
                    f"`labels` must hold one class per code. Received shape {labels.shape} for "
                    f"codes[{name!r}] of shape {np.shape(codes[name])}."
                )
        classes, class_index = np.unique(labels, return_inverse=True)
        if len(classes) > len(_COLOURS) * len(_MARKERS):
            raise ValueError(
                f"`labels` must have at most {len(_COLOURS) * len(_MARKERS)} distinct classes to "
                f"be told apart. Received {len(classes)}."
            )

    figure = _figure(4.6 * len(panels) + (0.8 if len(classes) else 0.2), 4.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = np.array(_COLOURS)
    for ax, (name, (z, axis_names)) in zip(axes, panels.items(), strict=True):
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
        ax.set(title=name, xlabel=axis_names[0], ylabel=axis_names[1])
    if len(classes):
        handles = [
            Line2D([], [], linestyle="", marker=_MARKERS[i // len(colours)],
                   color=colours[i % len(colours)], label=str(label))
            for i, label in enumerate(classes)
        ]  # fmt: skip
        figure.legend(handles=handles, title="class", loc="outside right center", frameon=False)
    return figure


def codes_beside_pca(model, x, labels=None):
    """A model's codes of examples beside the two principal components of these, coloured by class.

    Args:
        model: Autoencoder with at least two codes; of more than two, their principal components are drawn.
        x: Examples in the shape that the model takes; PCA is fitted on them.
        labels: As in `codes_2d`.

    Returns:
        The figure, with two axes.

    Raises:
        ValueError: As `codes_2d`, and as the model on examples that it does not take.

    Example:

    >>> import kerasae
    >>> model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=2)
    >>> figure = codes_beside_pca(model, kerasae.data.load("digits")[1])
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['code 1', 'component 1 of 64 (15 % of variance)']

    Reference:
        Hinton and Salakhutdinov, 2006, figure 3.
    """
    codes, x = model.encode(x), checks.array(x)
    return codes_2d({"autoencoder": codes.reshape(len(codes), -1), "PCA": x.reshape(len(x), -1)}, labels)


def code_activations(codes, images=None, num_images=6):
    """What a few examples' codes hold, unit by unit: of a sparse code, the few units that are active.

    Args:
        codes: Codes of shape `(n, ...)`, such as `model.encode(x)`; every entry of an example is one unit.
        images: The examples, images in [0, 1] of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`, to
            stand beside their codes. None, the default, leaves them out, as for a table.
        num_images: Positive integer, how many of the first examples are shown. Default 6.

    Returns:
        The figure, with one axes per code, on common scales, and, before it, one per image. A code is
        drawn as a line from 0 for each unit that is not 0.

    Raises:
        ValueError: If the lengths differ, an array is empty or not finite, or images have another rank.

    Example:

    >>> import numpy as np
    >>> z = np.array([[0.0, 2.0, 0.0, -1.0], [3.0, 0.0, 0.0, 1.0]])
    >>> [ax.get_title() for ax in code_activations(z).axes]
    ['2 of 4 units active', '2 of 4 units active']

    Reference:
        Makhzani and Frey, 2013, section 2.1, for codes with k units active.
    """
    codes = _flat_codes(codes)
    shown = codes[: checks.positive_int(num_images, "num_images")]
    if images is not None:
        images = _as_many(_images(images, "images"), codes, "images")
    figure = _figure(8, 0.4 + 1.1 * len(shown))
    ratios = {"width_ratios": (1, 7)} if images is not None else {}
    axes = figure.subplots(len(shown), 1 + (images is not None), squeeze=False, gridspec_kw=ratios)
    low, high = min(shown.min(), 0), max(shown.max(), 0)
    margin = 0.05 * (high - low) or 1
    for i, (row, code) in enumerate(zip(axes, shown, strict=True)):
        if images is not None:
            row[0].imshow(images[i])
            row[0].set_axis_off()
        ax = row[-1]
        active = np.flatnonzero(code)
        ax.vlines(active, 0, code[active], colors=_COLOURS[0], linewidths=1.5)
        ax.axhline(0, color=ax.xaxis.label.get_color(), linewidth=0.5)
        ax.set(xlim=(-1, len(code)), ylim=(low - margin, high + margin), ylabel="activation")
        ax.set_title(f"{len(active)} of {len(code)} units active", fontsize="small")
        ax.tick_params(labelbottom=i == len(shown) - 1)
    axes[-1, -1].set_xlabel("unit")
    return figure


def top_images(codes, images, labels=None, num_units=10, num_images=10, units=None, ax=None):
    """For each unit of a code, the images that it responds to most, strongest first.

    A unit whose strongest response is negative is turned round, and its name says so. Where a code is 0,
    as most of a sparse code is, the unit does not respond, and nothing is shown.

    Args:
        codes: Codes of shape `(n, ...)`; every entry of an example is one unit.
        images: The `n` examples, images in [0, 1] of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`.
        labels: Classes of shape `(n,)`. Units are then sorted by the class that is commonest among their
            images, and named by it. None, the default, leaves them by their variance.
        num_units: Positive integer, how many rows: the units whose codes vary most. Default 10.
        num_images: Positive integer, how many columns. Default 10.
        units: Numbers of the units to show, counted from 0, instead of `num_units`.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If the lengths differ, an array is empty or not finite, images have another rank, or
            a unit does not exist.

    Example:

    >>> import numpy as np
    >>> z = np.array([[0.0, 2.0], [3.0, 0.0], [1.0, 5.0]])
    >>> figure = top_images(z, np.random.default_rng(0).random((3, 8, 8)), labels=["a", "b", "a"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['unit 1: class a (2 of 2)', 'unit 0: class a (1 of 2)']

    Reference:
        Erhan et al., 2009, section 2, "maximizing the activation" over the data's own examples.
    """
    codes = _flat_codes(codes)
    images = _as_many(_images(images, "images"), codes, "images")
    if labels is not None:
        labels = _as_many(np.asarray(labels), codes, "labels")
        classes = np.unique(labels)
    num_images = checks.positive_int(num_images, "num_images")
    if units is None:
        num_units = checks.positive_int(num_units, "num_units")
        units = np.argsort(-codes.var(axis=0), kind="stable")[:num_units]
    units = np.asarray(units)
    if (
        units.ndim != 1
        or units.dtype.kind not in "iu"
        or not len(units)
        or not ((0 <= units) & (units < codes.shape[1])).all()
    ):
        raise ValueError(f"`units` must be whole numbers from 0 to {codes.shape[1] - 1}. Received: {units!r:.80}.")

    rows = []
    for unit in units:
        response = codes[:, unit]
        sign = -1 if -response.min() > response.max() else 1
        top = np.argsort(-sign * response, kind="stable")[:num_images]
        top = top[sign * response[top] > 0]
        name, rank = f"{'−' if sign < 0 else ''}unit {unit}", math.inf
        if labels is not None and len(top):
            found, counts = np.unique(labels[top], return_counts=True)
            commonest = found[counts.argmax()]
            rank = np.searchsorted(classes, commonest)
            name += f": class {commonest} ({counts.max()} of {len(top)})"
        rows.append((rank, name, top))
    rows.sort(key=lambda row: row[0])
    grid = np.zeros((len(rows), min(num_images, len(codes)), *images.shape[1:]), images.dtype)
    for row, (_, _, top) in zip(grid, rows, strict=True):
        row[: len(top)] = images[top]
    names = [name for _, name, _ in rows]
    ax, ys, _ = _mosaic(grid, ax, (_name_width(names), 0.3), caption="images, by falling response")
    ax.set_yticks(ys, names)
    ax.tick_params(axis="y", length=0)
    return ax.figure


def filters(model, num_filters=64, columns=None, ax=None):
    """What the encoder's first layer looks for: its weights as images.

    A dense layer's unit has a weight for every pixel; a convolution's filter, one for every pixel of its kernel.

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
    """What the decoder's last layer paints with: what each unit before it adds to the image.

    A dense layer's unit has a weight for every pixel; a transposed convolution's, one for every pixel of its
    kernel. For a decoder of one layer, unit i is the code's entry i.

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


def signed_images(images, columns=None, ax=None):
    """A grid of arrays that may be negative, such as weights or directions, each on a scale of its own.

    A grey image's zeros are white, its positive values red, its negative ones blue, up to its own largest
    magnitude; a colour image's zeros are mid-grey.

    Args:
        images: Real numbers of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`.
        columns: As in `samples`.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its first axes holds one picture, RGBA, transparent between images; for grey images a
        second one holds the scale.

    Raises:
        ValueError: If images have another rank, are empty or not finite, or `columns` is not a positive
            integer.

    Example:

    >>> import numpy as np
    >>> figure = signed_images(np.random.default_rng(0).normal(size=(10, 8, 8)))
    >>> figure.axes[1].get_ylabel()
    'value'
    """
    return _draw_signed(images, columns, ax)


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
    return _mosaic(_grid(_images(images, "images"), columns), ax)[0].figure


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
    images = _decoded(decode, np.stack([z_1.ravel(), z_2.ravel()], axis=1))
    ax, ys, xs = _mosaic(images.reshape(n, n, *images.shape[1:]), ax, margin=0.6)
    ticks = np.unique([0, (n - 1) // 2, n - 1])
    ax.set_xticks(xs[ticks], [f"{grid[i]:z.2f}" for i in ticks])
    ax.set_yticks(ys[ticks], [f"{grid[::-1][i]:z.2f}" for i in ticks])
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax.figure


def traversal(decode, z, values=None, latents=None, ax=None):
    """What each latent means: decodes one code with one latent changed at a time.

    Image (i, j) is ``decode(z')`` where ``z'`` is ``z`` but for its latent i, which is ``values[j]``.

    Args:
        decode: Callable from codes, float32 of shape `(n, latent_dim)`, to images in [0, 1], such as
            `model.decode`.
        z: The code to start from, shape `(latent_dim,)`: `np.zeros(latent_dim)`, the prior's centre, or
            `model.encode(x[:1])[0]`, an example's.
        values: What latents become, shape `(steps,)` for all alike, or `(latent_dim, steps)`, a row for each.
            Default: -3 to 3, in standard deviations of a variational model's prior N(0, I). Codes of other
            families have scales of their own: `np.quantile(codes, np.linspace(0.05, 0.95, 9), axis=0).T`.
        latents: Numbers of the latents to show, counted from 0. Default: all.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images, a row a latent.

    Raises:
        ValueError: If `z` or `values` has another shape, a latent does not exist, or `decode` returns
            something else than as many finite images as codes.

    Example:

    >>> import numpy as np
    >>> figure = traversal(lambda z: np.tile(abs(z[:, :1, None]) / 3, (1, 8, 8)), np.zeros(2))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['$z_{1}$', '$z_{2}$']

    Reference:
        Higgins et al., 2017, figure 2.
    """
    z = checks.array(z, name="z").astype("float32")
    if z.ndim != 1:
        raise ValueError(f"`z` must be one code, of shape (latent_dim,). Received: {z.shape}.")
    of_prior = values is None
    values = np.linspace(-3, 3, 9) if of_prior else checks.array(values, name="values")
    if values.shape[:-1] not in {(), z.shape}:
        raise ValueError(f"`values` must have shape (steps,) or ({len(z)}, steps). Received: {values.shape}.")
    shared = values.ndim == 1
    latents = np.arange(len(z)) if latents is None else np.asarray(latents)
    if (
        latents.ndim != 1
        or latents.dtype.kind not in "iu"
        or not len(latents)
        or not ((0 <= latents) & (latents < len(z))).all()
    ):
        raise ValueError(f"`latents` must be whole numbers from 0 to {len(z) - 1}. Received: {latents!r:.80}.")
    values = np.broadcast_to(values, (len(z), values.shape[-1]))[latents]
    codes = np.tile(z, (*values.shape, 1))  # (rows, steps, latent_dim)
    codes[np.arange(len(latents)), :, latents] = values
    images = _decoded(decode, codes.reshape(-1, len(z)))
    names = [_latent_name(i) for i in latents]
    if not shared:
        names = [f"{name}: {row[0]:.2g} to {row[-1]:.2g}" for name, row in zip(names, values, strict=True)]
    caption = "value of the latent" + (" (standard deviations of the prior)" if of_prior else "")
    grid = images.reshape(*values.shape, *images.shape[1:])
    ax, ys, xs = _mosaic(grid, ax, (_name_width(names), 0.6), caption if shared else "")
    ax.set_yticks(ys, names)
    ax.tick_params(axis="y", length=0)
    if shared:
        ticks = np.unique([0, (len(xs) - 1) // 2, len(xs) - 1])
        ax.set_xticks(xs[ticks], [f"{values[0, i]:.2g}" for i in ticks])
    return ax.figure


def interpolation(model, x_start, x_end, num_steps=8, ax=None):
    """From one image to another by a straight line between their codes.

    Image j of a row is ``decode((1 - t_j) encode(x_start) + t_j encode(x_end))`` with ``t`` evenly from 0
    to 1; the two images themselves stand at the row's ends.

    Args:
        model: Autoencoder of images.
        x_start: Images in [0, 1], `(n, ...)` in the shape that the model takes, a row each.
        x_end: As many images.
        num_steps: Integer >= 2, decoded images a row. Default 8.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If the two differ in length, `num_steps` is below 2, or examples are not images.

    Example:

    >>> import kerasae
    >>> x = kerasae.data.load("digits")[1]
    >>> model = kerasae.builders.variational((8, 8, 1), latent_dim=8)
    >>> figure = interpolation(model, x[:3], x[3:6], num_steps=3)
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['start', '0', '0.5', '1', 'end']
    """
    if checks.positive_int(num_steps, "num_steps") < 2:
        raise ValueError(f"`num_steps` must be at least 2, for the two ends. Received: {num_steps}")
    start, end = _images(x_start, "x_start"), _images(x_end, "x_end")
    if start.shape != end.shape:
        raise ValueError(
            "`x_start` and `x_end` must hold as many images, of the same size. "
            f"Received: {np.shape(x_start)} and {np.shape(x_end)}."
        )
    z_start, z_end = model.encode(x_start), model.encode(x_end)
    t = np.linspace(0, 1, num_steps, dtype="float32").reshape(-1, *[1] * (z_start.ndim - 1))
    codes = np.concatenate([(1 - t) * a + t * b for a, b in zip(z_start, z_end, strict=True)])
    images = _decoded(model.decode, codes).reshape(len(start), num_steps, *start.shape[1:])
    grid = np.concatenate([start[:, None], images, end[:, None]], axis=1)
    ax, _, xs = _mosaic(grid, ax, (0.1, 0.6), caption="share of the end's code")
    ax.set_xticks(xs, ["start", *(f"{step:.2g}" for step in t.ravel()), "end"])
    ax.tick_params(axis="x", length=0, labelsize="small")
    return ax.figure


def unit_kl(z_mean, z_log_var, threshold=0.01, ax=None):
    """How much each latent of a variational model tells, and which have collapsed.

    Bar i is ``KL(q(z_i|x) || N(0, 1)) = 1/2 (sigma_i^2 + mu_i^2 - 1 - ln sigma_i^2)``, mean over
    examples, largest first. A latent is active where the variance of its mean mu_i over the examples exceeds
    the threshold, as in `kerasae.metrics.active_units`.

    Args:
        z_mean: mu, `(n, latent_dim)`, at least two examples; with `z_log_var`,
            `model.encoder.predict(x)`.
        z_log_var: ln sigma^2, of the same shape, or `(n, 1)` for one variance for all latents.
        threshold: Float >= 0, of the variance. Default 0.01.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds a bar a latent.

    Raises:
        ValueError: If shapes do not match, an array is not finite, or there are fewer than two examples.

    Example:

    >>> import numpy as np
    >>> mu = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> figure = unit_kl(mu, np.zeros((2, 2)))
    >>> figure.axes[0].get_title()
    '0.50 nats in all, 1 of 2 latents active'

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, section 5.2.
    """
    z_mean = _flat_codes(z_mean, "z_mean").astype("float64")
    z_log_var = _flat_codes(z_log_var, "z_log_var").astype("float64")
    if z_log_var.shape not in {z_mean.shape, (len(z_mean), 1)}:
        raise ValueError(
            f"`z_log_var` must have the shape of `z_mean`, {z_mean.shape}, or ({len(z_mean)}, 1). "
            f"Received: {z_log_var.shape}."
        )
    kl = (0.5 * (np.exp(z_log_var) + z_mean**2 - 1 - z_log_var)).mean(axis=0)
    num_active = metrics.active_units(z_mean, threshold)
    ax = _unit_bars(
        kl,
        _variance(z_mean) > threshold,
        "latent",
        _latent_name,
        f"variance of $\\mu$ > {threshold:g}",
        "collapsed",
        ax,
    )
    ax.set_ylabel("KL to the prior (nats, mean over examples)")
    ax.set_title(f"{kl.sum():.2f} nats in all, {num_active} of {len(kl)} latents active")
    return ax.figure


def unit_variance(codes, threshold=0.01, ax=None):
    """How much each unit of a code varies over the examples, and which are dead.

    Bar i is the variance of the code's entry i, largest first; the axis is linear up to the threshold and
    logarithmic above it (of a threshold of 0, from a ten-thousandth of the largest variance), so that a dead
    unit's 0 can be seen beside the others.

    Args:
        codes: Codes of shape `(n, ...)`, at least two examples; every entry of an example is one unit.
        threshold: Float >= 0, in squared units of the codes: a unit above it is active. Default 0.01; 0 for
            k-sparse codes.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds a bar a unit.

    Raises:
        ValueError: As `kerasae.metrics.active_units`.

    Example:

    >>> unit_variance([[0.0, 3.0, 0.1], [0.0, -3.0, 0.0]]).axes[0].get_title()
    '1 of 3 units active'

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, section 5.2.
    """
    codes = _flat_codes(codes).astype("float64")
    num_active, variance = metrics.active_units(codes, threshold), _variance(codes)
    ax = _unit_bars(variance, variance > threshold, "unit", str, f"variance > {threshold:g}", "dead", ax)
    if variance.any():
        ax.set_yscale("symlog", linthresh=threshold or 1e-4 * variance.max())
    if threshold:
        ax.axhline(threshold, color=ax.xaxis.label.get_color(), linestyle=":", linewidth=1)
    ax.set_ylabel("variance (squared units of the code)")
    ax.set_title(f"{num_active} of {codes.shape[1]} units active")
    return ax.figure


def singular_values(values, ax=None):
    """The spectra of Jacobians: mean singular values, largest first, one curve per model.

    A steep curve belongs to an encoder that reacts to few directions around an example, those along which the data
    vary, and contracts the others.

    Args:
        values: Dict from model name to singular values of shape `(n, r)`, those of one example's Jacobian a
            row, sorted descending.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds one line per model. Zeros leave a gap on the logarithmic axis.

    Raises:
        ValueError: If there is no model, or values are not of shape `(n, r)`, empty, negative or not finite.

    Example:

    >>> figure = singular_values({"plain": [[3.0, 2.0]], "contractive": [[1.0, 0.1], [1.0, 0.3]]})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['plain', 'contractive']

    Reference:
        Rifai et al., 2011, figure 3.
    """
    _check_mapping(values, "values", "singular values")
    if ax is None:
        ax = _figure(5.6, 3.8).add_subplot()
    for i, (name, of_model) in enumerate(values.items()):
        of_model = checks.array(of_model, (None,), name=f"values[{name!r}]").astype("float64")
        if of_model.min() < 0:
            raise ValueError(
                f"`values[{name!r}]` must be at least 0, as singular values are. Received: {of_model.min()}."
            )
        mean = of_model.mean(axis=0)
        ax.plot(
            np.arange(1, len(mean) + 1), np.where(mean > 0, mean, np.nan), label=str(name), **_line(i, len(mean) <= 20)
        )
    ax.set(yscale="log", xlabel="rank of the singular value", ylabel="singular value (code per input), mean")
    ax.legend()
    return ax.figure


def jacobian_spectrum(models, x, ax=None):
    """The singular values of encoders' Jacobians ``df/dx``, mean over examples, one curve per model.

    Args:
        models: Dict from name to autoencoder, all of which take `x`.
        x: A few examples, in the shape that the models take. Time grows with them, and with the code's size.
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
    _check_mapping(models, "models", "models")
    spectra = {}
    for name, model in models.items():
        values = np.concatenate([np.linalg.svd(jacobian, compute_uv=False) for jacobian in _jacobians(model, x)])
        # What lies below the arithmetic's precision is a zero.
        spectra[name] = np.where(values > np.finfo(values.dtype).eps * values[:, :1], values, 0)
    return singular_values(spectra, ax)


def tangents(model, x, num_tangents=6, ax=None):
    """The directions in which a small change of an image changes its code most.

    They are the leading right singular vectors of the encoder's Jacobian ``df/dx``, with the singular value in each.
    Where a model has learned the manifold that the data lie on, they span its tangent plane there: they look like
    strokes that move, bend or grow. A singular vector's sign means nothing; its largest entry is made positive.

    Args:
        model: Autoencoder of images.
        x: A few images in [0, 1], a row each.
        num_tangents: Positive integer, directions a row; at most the smaller of code and image. Default 6.
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
    shown = _images(x, "x")
    rows, names = [], []
    for jacobian in _jacobians(model, x):
        _, values, directions = np.linalg.svd(jacobian, full_matrices=False)
        for value, direction in zip(values[:, :num_tangents], directions[:, :num_tangents], strict=True):
            largest = np.take_along_axis(direction, np.abs(direction).argmax(axis=1)[:, None], axis=1)
            rows.append(_signed((direction * np.sign(largest)).reshape(-1, *np.shape(x)[1:]), "directions"))
            names.append([f"{v:.2g}" for v in value])
    grid = np.concatenate([shown[:, None], np.stack(rows)], axis=1)
    ax, ys, xs = _mosaic(grid, ax, (1.0, 0.6), caption="direction, by falling singular value (in the corner)")
    for y, row in zip(ys, names, strict=True):
        for centre, name in zip(xs[1:], row, strict=True):
            # In the image's lower right corner, dark on the light ground that most of a direction is.
            corner = centre + shown.shape[2] / 2 - 0.5, y + shown.shape[1] / 2 - 0.5
            ax.annotate(
                name,
                corner,
                xytext=(-1, 1),
                textcoords="offset points",
                ha="right",
                fontsize=6,
                color="black",
                path_effects=[withStroke(linewidth=1.5, foreground="white")],
            )
    ax.set_xticks(xs, ["image", *map(str, range(1, grid.shape[1]))])
    ax.tick_params(axis="x", length=0)
    _sign_scale(ax, x)
    return ax.figure


def error_histograms(
    normal, anomalous=None, threshold=None, unit="squared error", num_bins=50, names=("normal", "anomalous"), ax=None
):
    """How the errors of normal and of anomalous examples lie to each other and to the threshold.

    Each group's bars add up to 100 %, however many examples it has. What lies above the threshold is called
    anomalous; the legend says what share of each group that is. The axis is logarithmic where the largest of positive
    errors is more than 50 times their median.

    Args:
        normal: Errors of normal examples, shape `(n,)`; of a detector, `-detector.score_samples(x)`.
        anomalous: Errors of anomalous examples, shape `(m,)`. None, the default, where there are none.
        threshold: Number, in the errors' unit. None, the default, draws none.
        unit: What the errors are, on the x axis. Default "squared error".
        num_bins: Positive integer, common to both groups. Default 50.
        names: What the groups are called, such as ("training", "test").
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds one histogram per group.

    Raises:
        ValueError: If errors are not of shape `(n,)`, empty or not finite, or the threshold is not finite.

    Example:

    >>> figure = error_histograms([1.0, 2.0, 3.0, 4.0], [4.0, 5.0], threshold=3.5)
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['normal (4): 25.0 % above', 'anomalous (2): 100.0 % above', 'threshold 3.5']
    """
    groups = {names[0]: checks.array(normal, (), name="normal").astype("float64")}
    if anomalous is not None:
        groups[names[1]] = checks.array(anomalous, (), name="anomalous").astype("float64")
    num_bins = checks.positive_int(num_bins, "num_bins")
    if threshold is not None:
        threshold = checks.real_number(threshold, "threshold")
    both = np.concatenate(list(groups.values()))
    logarithmic = both.min() > 0 and both.max() > 50 * np.median(both)
    edges = np.histogram_bin_edges(np.log(both) if logarithmic else both, num_bins)
    if logarithmic:
        # Rounding must not leave the extremes outside.
        edges = np.exp(edges)
        edges[0], edges[-1] = both.min(), both.max()
    if ax is None:
        ax = _figure(6.4, 3.8).add_subplot()
    for (name, errors), colour, hatch in zip(groups.items(), (_COLOURS[0], _COLOURS[6]), (None, "///"), strict=False):
        label = f"{name} ({len(errors):,})"
        if threshold is not None:
            label += f": {100 * (errors > threshold).mean():.1f} % above"
        share = 100 * np.histogram(errors, edges)[0] / len(errors)
        ax.stairs(
            share, edges, fill=True, facecolor=(colour, 0.4), edgecolor=colour, linewidth=1.2, hatch=hatch, label=label
        )
    if threshold is not None:
        ax.axvline(threshold, color=ax.xaxis.label.get_color(), linestyle="--", label=f"threshold {threshold:.4g}")
    ax.set(xlabel=f"{unit} per example", ylabel="share of the group (%)")
    if logarithmic:
        ax.set_xscale("log")
    ax.legend()
    return ax.figure


def rate_distortion(curves, ax=None):
    """What quality costs: peak signal-to-noise ratio over bits per pixel, one curve per codec. Higher, or further left, is better.

    Args:
        curves: Dict from codec name to `(bits_per_pixel, psnr)`, two numbers or two sequences of the same
            length, in bits and decibels; points are joined by rising rate.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds one line per codec.

    Raises:
        ValueError: If there is no codec, or a curve is not two sequences of as many finite numbers.

    Example:

    >>> figure = rate_distortion({"autoencoder": ([0.5, 0.2], [28.0, 24.0]), "JPEG": (0.8, 27.0)})
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [0.2, 0.5]
    """
    _check_mapping(curves, "curves", "(bits_per_pixel, psnr)")
    if ax is None:
        ax = _figure(5.6, 4.2).add_subplot()
    for i, (name, curve) in enumerate(curves.items()):
        try:
            rate, quality = (np.atleast_1d(values).astype("float64") for values in curve)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`curves[{name!r}]` must be (bits_per_pixel, psnr). Received: {curve!r:.80}.") from error
        if rate.ndim != 1 or rate.shape != quality.shape or not len(rate) or not np.isfinite([rate, quality]).all():
            raise ValueError(
                f"`curves[{name!r}]` must hold as many finite rates as ratios. Received shapes {rate.shape} and "
                f"{quality.shape}: {curve!r:.80}."
            )
        order = np.argsort(rate, kind="stable")
        ax.plot(rate[order], quality[order], label=str(name), **_line(i, markers=True))
    ax.set(xlabel="rate (bits per pixel)", ylabel="PSNR (dB)")
    ax.set_xlim(left=0)
    ax.legend()
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


def _mosaic(grid, ax, margin=0.1, caption=""):
    """Draws images of shape `(rows, columns, h, w, 4)` as one picture.

    One picture instead of one axes per image: a latent grid would need hundreds of axes. A new figure
    leaves `margin` inches, (width, height) or both, for what stands beside the images, and is as wide as `caption`
    under them.

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
        size = np.array(picture.shape[1::-1]) * _IMAGE_INCHES / max(height, width)
        size = np.maximum(size, (_LETTER_INCHES * len(caption), 0)) + margin
        # "compressed" measures names beside axes of fixed aspect rightly; "constrained" cuts long ones.
        ax = _figure(*size, layout="compressed").add_subplot()
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[], xlabel=caption)
    ax.spines[:].set_visible(False)
    return (
        ax,
        np.arange(rows) * (height + gap) + (height - 1) / 2,
        np.arange(columns) * (width + gap) + (width - 1) / 2,
    )


def _grid(images, columns):
    """`(n, h, w, 4)` to `(rows, columns, h, w, 4)`, transparent after the last."""
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    columns = min(checks.positive_int(columns, "columns"), len(images))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)
    return np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])


def _name_width(names):
    """Inches that rows' names take at the left of a mosaic."""
    return 0.2 + _LETTER_INCHES * max(len(str(name)) for name in names)


def _line(i, markers):
    """How the i-th of several curves is drawn: told apart by more than its colour."""
    return {
        "color": _LINE_COLOURS[i % len(_LINE_COLOURS)],
        "linestyle": _LINE_STYLES[i % len(_LINE_STYLES)],
        "marker": _MARKERS[i % len(_MARKERS)] if markers else None,
        "markersize": 5,
    }


def _checked_images(images, name):
    """Images of shape `(n, h, w, 1)` or `(n, h, w, 3)`."""
    images = checks.array(images, name=name)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        hint = " Rows of a table are no images; reshape those that are." if images.ndim == 2 else ""
        raise ValueError(
            f"`{name}` must hold images of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3). Received: {images.shape}.{hint}"
        )
    return images


def _images(images, name):
    """Images as RGBA of shape `(n, h, w, 4)`, clipped to [0, 1]."""
    images = _checked_images(images, name)
    if images.dtype.kind in "iu" and images.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received {images.dtype} up to {images.max()}. Divide by 255.")
    rgba = np.ones((*images.shape[:3], 4), "float32")
    rgba[..., :3] = np.clip(images.astype("float32"), 0, 1)
    return rgba


def _signed(images, name):
    """Arrays that may be negative as RGBA of shape `(n, h, w, 4)`, each scaled by its largest magnitude."""
    from matplotlib import colormaps

    images = _checked_images(images, name).astype("float32")
    largest = np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    scaled = 0.5 + 0.5 * images / np.where(largest > 0, largest, 1)
    if images.shape[-1] == 1:
        return colormaps[_SIGNED_COLOURS](scaled[..., 0]).astype("float32")
    return np.concatenate([scaled, np.ones_like(scaled[..., :1])], axis=-1)


def _draw_signed(images, columns, ax, caption=""):
    grid = _grid(_signed(images, "images"), columns)
    ax, _, _ = _mosaic(grid, ax, (0.1 if _are_coloured(images) else 1.0, 0.4), caption)
    _sign_scale(ax, images)
    return ax.figure


def _are_coloured(images):
    return np.ndim(images) == 4 and np.shape(images)[-1] == 3


def _sign_scale(ax, images):
    """The scale of `_signed` beside an axes; colour images have none that could be drawn."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if _are_coloured(images):
        return
    scale = ScalarMappable(Normalize(-1, 1), _SIGNED_COLOURS)
    bar = ax.figure.colorbar(scale, ax=ax, label="value", shrink=0.8)
    bar.set_ticks([-1, 0, 1], labels=["−max", "0", "max"])


def _decoded(decode, codes):
    """The images of codes as RGBA."""
    images = _images(decode(codes), "decode's result")
    if len(images) != len(codes):
        raise ValueError(f"`decode` must return {len(codes)} images. Received {len(images)}.")
    return images


def _corrupted(model, x):
    """Examples corrupted by a model's own layer, by the same noise each time; training's noise goes on as if nothing had happened."""
    layer = getattr(model, "corruption", None)
    if layer is None:
        raise ValueError("The model has no corruption of its own: pass `x_corrupted`.")
    seeds = [variable for variable in layer.variables if variable.name == "seed_generator_state"]
    before = [seed.numpy() for seed in seeds]
    try:
        for seed, value in zip(seeds, before, strict=True):
            seed.assign(np.zeros_like(value))
        return np.asarray(layer(x, training=True))
    finally:
        for seed, value in zip(seeds, before, strict=True):
            seed.assign(value)


def _plane(codes, name):
    """Codes as points `(n, 2)`, and the names of the two axes."""
    codes = checks.array(codes, (None,), name=name)
    width = codes.shape[1]
    if width < 2:
        raise ValueError(
            f"`{name}` must have shape (batch, 2) or wider, to be drawn in the plane. Received: {codes.shape}."
        )
    if width == 2:
        return codes, ("code 1", "code 2")
    from sklearn.decomposition import PCA

    if len(codes) < 2:
        raise ValueError(f"`{name}` must hold at least 2 codes to find components of. Received shape: {codes.shape}.")
    pca = PCA(2, random_state=0)
    with np.errstate(invalid="ignore"):  # codes that don't vary have no shares
        points = pca.fit_transform(codes.astype("float64"))
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    return points, [
        f"component {i} of {width} ({share:.0%} of variance)".replace("%", " %") for i, share in enumerate(shares, 1)
    ]


def _flat_codes(codes, name="codes"):
    codes = checks.array(codes, name=name)
    if codes.ndim < 2:
        raise ValueError(f"`{name}` must have the batch first and a rank of at least 2. Received shape: {codes.shape}.")
    return codes.reshape(len(codes), -1)


def _as_many(values, codes, name):
    if values.shape[:1] != (len(codes),) or (name == "labels" and values.ndim != 1):
        raise ValueError(
            f"`{name}` must hold one entry per code, of which there are {len(codes)}. Received shape: {values.shape}."
        )
    return values


def _latent_name(i):
    return f"$z_{{{i + 1}}}$"


def _variance(codes):
    """Each unit's variance over the examples."""
    return (codes - codes[0]).var(axis=0)  # shifted, so that a constant unit's is exactly 0


def _unit_bars(values, active, unit, name, criterion, inactive, ax):
    """A bar a unit, largest first, active units told from others by colour and hatch."""
    order = np.argsort(-values, kind="stable")
    if ax is None:
        ax = _figure(np.clip(2 + 0.28 * len(values), 5, 10), 3.8).add_subplot()
    for group, colour, hatch, label in (
        (active, _COLOURS[0], None, f"active ({criterion})"),
        (~active, _COLOURS[6], "///", inactive),
    ):
        ranks = np.flatnonzero(group[order])
        if len(ranks):
            ax.bar(
                ranks,
                values[order][ranks],
                width=0.8 if len(values) <= 100 else 1.0,
                facecolor=(colour, 0.9 if hatch is None else 0.35),
                edgecolor=colour,
                linewidth=1 if len(values) <= 100 else 0,
                hatch=hatch,
                label=f"{label}: {len(ranks)}",
            )
    if len(values) <= 32:
        ax.set_xticks(np.arange(len(values)), [name(i) for i in order], fontsize="small")
    ax.set_xlabel(f"{unit}, sorted" if len(values) <= 32 else f"{unit}s, sorted")
    ax.margins(y=0.3)  # room for the legend above bars of one height
    ax.legend()
    return ax


def _weighted_layers(network):
    """The dense and convolutional layers between a network's first output and its input, last first."""
    found, tensor = [], network.outputs[0]
    while tensor is not network.inputs[0]:
        layer, node, _ = tensor._keras_history
        if hasattr(layer, "kernel") or hasattr(layer, "tied_to"):
            found.append(layer)
        tensor = layer._inbound_nodes[node].input_tensors[0]
    if not found:
        raise ValueError(
            f"{network.name!r} has no layer with a kernel: its layers are {[layer.name for layer in network.layers]}."
        )
    return found


def _kernel_images(layer, shape, into):
    """A layer's kernel as images `(units, h, w[, c])`: of its outputs where it reads images (`into`), else of its inputs."""
    import keras

    from kerasae.layers import TiedDense

    kernel = np.asarray(layer.source.kernel).T if isinstance(layer, TiedDense) else np.asarray(layer.kernel)
    if isinstance(layer, (keras.layers.Dense, TiedDense)):
        units = kernel.T if into else kernel  # (units, pixels)
        if (
            None not in shape
            and units.shape[1] == math.prod(shape)
            and len(shape) in (2, 3)
            and (len(shape) == 2 or shape[2] in (1, 3))
        ):
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
    return _draw_signed(weights[:num], columns, ax, f"{count} {len(weights)} {what} of the {where}")


def _jacobians(model, x):
    """The encoder's Jacobians, `(batch, codes, features)`, a few examples at a time, so that memory stays bounded."""
    import tensorflow as tf

    encoder = model.encoder
    x = checks.array(x, encoder.inputs[0].shape[1:])
    if "float" not in encoder.inputs[0].dtype:
        raise ValueError(f"Integers have no derivative, and the encoder takes {encoder.inputs[0].dtype}.")
    num_codes, num_features = math.prod(encoder.outputs[0].shape[1:]), math.prod(x.shape[1:])

    @tf.function
    def jacobian(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = model.code_of(encoder(x, training=False))
            z = tf.cast(tf.reshape(z, (-1, num_codes)), x.dtype)
        # A loop: TensorFlow 2.21's vectorised one takes far more memory, and is wrong for some layers.
        jacobian = tape.batch_jacobian(
            z, x, unconnected_gradients=tf.UnconnectedGradients.ZERO, experimental_use_pfor=False
        )
        return tf.reshape(jacobian, (-1, num_codes, num_features))

    examples_at_once = max(1, _JACOBIAN_ELEMENTS // (num_codes * num_features))
    x = x.astype(encoder.inputs[0].dtype)
    for start in range(0, len(x), examples_at_once):
        yield jacobian(tf.constant(x[start : start + examples_at_once])).numpy()


def _check_mapping(value, name, of):
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"`{name}` must be a dict from name to {of}. Received: {value!r:.80}.")

"""Pictures of codes: as points in the plane, and decoded."""

from statistics import NormalDist

import numpy as np

from kerasae import checks
from kerasae.figures import drawing

_THUMBNAILS = 16  # on each side of a panel


def codes_2d(codes, labels=None, images=None):
    """Codes as points in the plane, one panel per model, coloured by class.

    Codes of two units are drawn as they are, longer ones by their first two principal components, and the axes say so. Classes are named at
    the median of their points and in a legend. Points are drawn in a fixed shuffled order, so that no class hides another by coming later
    in the data.

    Args:
        codes: Dict from panel name to codes of shape `(n, d)`, d at least 2, such as `{"autoencoder": z, "PCA": x.reshape(len(x), -1)}`.
        labels: Classes of shape `(n,)`, at most 50 distinct, integers or names; every panel must then hold as many codes. None, the
            default, draws all points alike.
        images: The images that the codes are of, in [0, 1], of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`; every panel must then
            hold as many codes. Default: points alone.

    Returns:
        The figure, with one axes per panel, each with scales of its own.

    Raises:
        ValueError: If there is no panel, codes are not of shape `(n, d)`, empty or not finite, or `labels` or `images` do not match.

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

    drawing.check_mapping(codes, "codes", "codes")
    panels = {name: _plane(z, f"codes[{name!r}]") for name, z in codes.items()}
    classes = np.array([])
    if labels is not None:
        labels = np.asarray(labels)
        for name, (z, _) in panels.items():
            if labels.shape != (len(z),):
                raise ValueError(
                    f"`labels` must hold one class per code. Received: {labels.shape} for codes[{name!r}] of shape {np.shape(codes[name])}."
                )
        classes, class_index = np.unique(labels, return_inverse=True)
        if len(classes) > (most := len(drawing.COLOURS) * len(drawing.MARKERS)):
            raise ValueError(
                f"`labels` must have at most {most} distinct classes to be told apart. Received {len(classes)}."
            )

    if images is not None:
        images = drawing.rgba(images, "images")
        for name, (z, _) in panels.items():
            if len(images) != len(z):
                raise ValueError(
                    f"`images` must hold one image per code. Received: {len(images)} for {len(z)} codes[{name!r}]."
                )

    figure = drawing.new_figure(4.6 * len(panels) + (0.8 if len(classes) else 0.2), 4.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = np.array(drawing.COLOURS)
    for ax, (name, (z, axis_names)) in zip(axes, panels.items(), strict=True):
        order = np.random.default_rng(0).permutation(len(z))
        index = np.zeros(len(z), int) if labels is None else class_index
        for group, marker in enumerate(drawing.MARKERS):
            drawn = order[index[order] // len(colours) == group]
            if len(drawn):
                size, colour = np.clip(20_000 / len(z), 2, 20), colours[index[drawn] % len(colours)]
                ax.scatter(*z[drawn].T, c=colour, marker=marker, s=size, linewidths=0)
        if images is not None:
            _draw_thumbnails(ax, z, images, None if labels is None else colours[class_index % len(colours)])
        outline = [withStroke(linewidth=3, foreground=ax.get_facecolor())]
        style = {"ha": "center", "va": "center", "fontsize": "large", "fontweight": "bold", "path_effects": outline}
        for i, label in enumerate(classes):
            ax.annotate(str(label), np.median(z[class_index == i], axis=0), **style)
        ax.set(title=name, xlabel=axis_names[0], ylabel=axis_names[1])
    if len(classes):
        handles = [
            Line2D([], [], linestyle="", marker=drawing.MARKERS[i // len(colours)],
                   color=colours[i % len(colours)], label=str(label))
            for i, label in enumerate(classes)
        ]  # fmt: skip
        figure.legend(handles=handles, title="class", loc="outside right center", frameon=False)
    return figure


def _draw_thumbnails(ax, z, images, colours):
    """Of each cell of the axes the image whose code is nearest its middle, framed in its colour if it has one."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    size = (limits[:, 1] - limits[:, 0]) / _THUMBNAILS
    place = (z - limits[:, 0]) / size
    cells = np.floor(place).astype(int)
    order = np.argsort(((place - cells - 0.5) ** 2).sum(axis=1), kind="stable")
    cells, first = np.unique(cells[order], axis=0, return_index=True)  # the first of each cell is the nearest
    shown = order[first]
    images = images[shown][:, :: -(-images.shape[1] // 64), :: -(-images.shape[2] // 64)]
    # One picture of all cells, each with the image in its middle and a gap around.
    height, width = images.shape[1:3]
    side = max(height, width) + max(1, max(height, width) // 10)
    up, across = (side - height) // 2, (side - width) // 2
    picture = np.zeros((_THUMBNAILS, side, _THUMBNAILS, side, 4), "uint8")
    for (column, row), image in zip(cells, images, strict=True):
        picture[-1 - row, up : up + height, column, across : across + width] = np.round(255 * image)
    picture = picture.reshape(_THUMBNAILS * side, _THUMBNAILS * side, 4)
    ax.imshow(picture, extent=limits.ravel(), aspect="auto", zorder=2, interpolation="nearest")
    if colours is not None:
        pixel = size / side
        corners = limits[:, 0] + cells * size + pixel * [across, side - up - height]
        frames = [Rectangle(corner, *(pixel * [width, height])) for corner in corners]
        ax.add_collection(
            PatchCollection(frames, facecolor="none", edgecolor=colours[shown], linewidth=1.2, zorder=2), autolim=False
        )


def codes_beside_pca(model, x, labels=None):
    """A model's codes beside the first two principal components of the examples, coloured by class.

    Args:
        model: Autoencoder whose code has at least two units.
        x: Examples in the shape that the model takes; PCA is fitted on them.
        labels: As in `codes_2d`.

    Returns:
        The figure, with two axes.

    Raises:
        ValueError: As `codes_2d`, and if the model does not take the examples.

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


def latent_grid(decode, n=15, quantiles=(0.05, 0.95), ax=None):
    """The meaning of a code of two units: images decoded from an even grid over the prior N(0, I).

    Image (i, j) is ``decode(z_1, z_2)`` with ``z_1 = F^-1(u_j)``, growing to the right, and ``z_2 = F^-1(u_i)``, growing upwards, where
    ``F`` is the standard normal distribution function and the ``u`` lie evenly between the two quantiles: every image stands for an equal
    share of the prior.

    Args:
        decode: Callable from codes, float32 of shape `(n * n, 2)`, to images in [0, 1] of shape `(n * n, h, w)`, `(n * n, h, w, 1)` or
            `(n * n, h, w, 3)`, such as `model.decode`.
        n: Integer >= 2, images along each side. Default 15.
        quantiles: The grid's ends, probabilities with `0 < low < high < 1`. Default (0.05, 0.95).
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If `n` or `quantiles` is out of bounds, or `decode` does not return `n * n` finite images.

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
    images = drawing.decoded(decode, np.stack([z_1.ravel(), z_2.ravel()], axis=1))
    ax, ys, xs = drawing.mosaic(images.reshape(n, n, *images.shape[1:]), ax, margin=0.6)
    ticks = np.unique([0, (n - 1) // 2, n - 1])
    ax.set_xticks(xs[ticks], [f"{grid[i]:z.2f}" for i in ticks])
    ax.set_yticks(ys[ticks], [f"{grid[::-1][i]:z.2f}" for i in ticks])
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax.figure


def traversal(decode, z, values=None, latents=None, ax=None):
    """The meaning of each latent: images decoded from one code with one latent changed at a time.

    Image (i, j) is ``decode(z')`` where ``z'`` is ``z`` but for its latent i, which is ``values[j]``.

    Args:
        decode: Callable from codes, float32 of shape `(n, latent_dim)`, to images in [0, 1], such as `model.decode`.
        z: The code to start from, shape `(latent_dim,)`: `np.zeros(latent_dim)`, the prior's centre, or `model.encode(x[:1])[0]`, an
            example's.
        values: New values of latents, of shape `(steps,)` for all alike, or `(latent_dim, steps)`. Default: -3 to 3, in standard deviations
            of a variational model's prior N(0, I); for other families `np.quantile(codes, np.linspace(0.05, 0.95, 9), axis=0).T`.
        latents: Numbers of the latents to show, counted from 0. Default: all.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images, with one row per latent.

    Raises:
        ValueError: If `z` or `values` has another shape, a latent does not exist, or `decode` does not return one finite image per code.

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
    latents = drawing.check_numbers(np.arange(len(z)) if latents is None else latents, "latents", len(z))
    values = np.broadcast_to(values, (len(z), values.shape[-1]))[latents]
    codes = np.tile(z, (*values.shape, 1))  # (rows, steps, latent_dim)
    codes[np.arange(len(latents)), :, latents] = values
    images = drawing.decoded(decode, codes.reshape(-1, len(z)))
    names = [drawing.latent_name(i) for i in latents]
    if not shared:
        names = [f"{name}: {row[0]:.2g} to {row[-1]:.2g}" for name, row in zip(names, values, strict=True)]
    caption = "value of the latent" + (" (standard deviations of the prior)" if of_prior else "")
    grid = images.reshape(*values.shape, *images.shape[1:])
    ax, ys, xs = drawing.mosaic(grid, ax, (drawing.name_width(names), 0.6), caption if shared else "")
    drawing.name_rows(ax, ys, names)
    if shared:
        ticks = np.unique([0, (len(xs) - 1) // 2, len(xs) - 1])
        ax.set_xticks(xs[ticks], [f"{values[0, i]:.2g}" for i in ticks])
    return ax.figure


def _plane(codes, name):
    """Codes as points `(n, 2)`, and the names of the two axes."""
    codes = checks.array(codes, (None,), name=name)
    width = codes.shape[1]
    if width < 2:
        raise ValueError(f"`{name}` must have shape (batch, 2) or wider, for two axes. Received: {codes.shape}.")
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

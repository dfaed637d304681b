"""Pictures of images: reconstructions, denoising, samples, and arrays that may be negative."""

import numpy as np

from kerasae import checks, metrics
from kerasae.figures.drawing import as_grid, check_mapping, decoded, draw_signed, mosaic, name_rows, name_width, rgba


def reconstructions(rows, num_images=10, ax=None):
    """Rows of images under one another, such as inputs and their reconstructions, by one model or by several.

    Column i shows image i of every row.

    Args:
        rows: Dict from row name, shown at the left, to images in [0, 1] of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`; every row
            as many images of the same size.
        num_images: Positive integer, the number of columns: the first images are shown, or all if there are fewer. Default 10.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If there is no row, the rows differ in length or size, or images have another rank, are empty, not finite or integers
            above 1.

    Example:

    >>> import numpy as np
    >>> x = np.random.default_rng(0).random((20, 8, 8))
    >>> figure = reconstructions({"input": x, "reconstruction": x.round()}, num_images=5)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['input', 'reconstruction']

    Reference:
        Vincent et al., 2010, and Hinton and Salakhutdinov, 2006, figure 2, lay theirs out so.
    """
    check_mapping(rows, "rows", "images")
    num_images = checks.positive_int(num_images, "num_images")
    shapes = {name: np.shape(row)[:3] for name, row in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Every row must hold as many images, of the same size. Received (n, h, w): {shapes}.")
    shown = np.stack([rgba(np.atleast_1d(row)[:num_images], f"rows[{name!r}]") for name, row in rows.items()])
    ax, centres, _ = mosaic(shown, ax, (name_width(rows), 0.1))
    name_rows(ax, centres, list(rows))
    return ax.figure


def denoising(model, x, x_corrupted=None, num_images=10, ax=None):
    """Three rows: clean images, the same images corrupted, and a model's reconstructions of those.

    The lower two rows are named with their peak signal-to-noise ratio in decibels, the mean over the images shown, clipped to [0, 1].

    Args:
        model: Autoencoder.
        x: Clean images in [0, 1], in the shape that the model takes.
        x_corrupted: The same images, corrupted. By default the model's own corruption makes them, with the same noise each time.
        num_images: Positive integer, the number of columns: the first images are shown. Default 10.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, as of `reconstructions`.

    Raises:
        ValueError: As `reconstructions`; if the model has no corruption of its own and `x_corrupted` is missing.

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
        rgba(images, name) for images, name in ((x, "x"), (x_corrupted, "x_corrupted"), (denoised, "reconstruction"))
    )
    rows = {"clean": x}
    for name, images, shown in (("corrupted", x_corrupted, others[0]), ("denoised", denoised, others[1])):
        # The opaque fourth channel is no part of the image.
        rows[f"{name}, {metrics.psnr(clean[..., :3], shown[..., :3]):.1f} dB"] = images
    return reconstructions(rows, num_images, ax)


def samples(images, columns=None, ax=None):
    """A grid of images, row by row.

    Args:
        images: Images in [0, 1] of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`.
        columns: Positive integer; by default the grid is as square as it gets. The last row may be shorter than the others.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If images have another rank, are empty, not finite or integers above 1, or `columns` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> len(samples(np.random.default_rng(0).random((10, 8, 8)), columns=5).axes)
    1
    """
    return mosaic(as_grid(rgba(images, "images"), columns), ax)[0].figure


def signed_images(images, columns=None, ax=None):
    """A grid of arrays that may be negative, such as weights or directions, each on a scale of its own.

    A grey image's zeros are white, its positive values red, its negative ones blue, up to its own largest magnitude; a colour image's zeros
    are mid-grey.

    Args:
        images: Real numbers of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`.
        columns: As in `samples`.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its first axes holds one picture, RGBA, transparent between images; for grey images a second one holds the scale.

    Raises:
        ValueError: If images have another rank, are empty or not finite, or `columns` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> figure = signed_images(np.random.default_rng(0).normal(size=(10, 8, 8)))
    >>> figure.axes[1].get_ylabel()
    'value'
    """
    return draw_signed(images, columns, ax)


def interpolation(model, x_start, x_end, num_steps=8, ax=None):
    """From one image to another by a straight line between their codes.

    Image j of a row is ``decode((1 - t_j) encode(x_start) + t_j encode(x_end))`` with ``t`` evenly from 0 to 1; the two images themselves
    stand at the row's ends.

    Args:
        model: Autoencoder of images.
        x_start: Images in [0, 1], `(n, ...)` in the shape that the model takes, one per row.
        x_end: As many images.
        num_steps: Integer >= 2, decoded images per row. Default 8.
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
    start, end = rgba(x_start, "x_start"), rgba(x_end, "x_end")
    if start.shape != end.shape:
        raise ValueError(
            f"`x_start` and `x_end` must hold as many images, of the same size. Received: {np.shape(x_start)} and {np.shape(x_end)}."
        )
    z_start, z_end = model.encode(x_start), model.encode(x_end)
    t = np.linspace(0, 1, num_steps, dtype="float32").reshape(-1, *[1] * (z_start.ndim - 1))
    codes = np.concatenate([(1 - t) * a + t * b for a, b in zip(z_start, z_end, strict=True)])
    images = decoded(model.decode, codes).reshape(len(start), num_steps, *start.shape[1:])
    grid = np.concatenate([start[:, None], images, end[:, None]], axis=1)
    ax, _, xs = mosaic(grid, ax, (0.1, 0.6), caption="share of the end's code")
    ax.set_xticks(xs, ["start", *(f"{step:.2g}" for step in t.ravel()), "end"])
    ax.tick_params(axis="x", length=0, labelsize="small")
    return ax.figure


def _corrupted(model, x):
    """Examples corrupted by a model's own layer, with the same noise each time; the noise of training is left as it was."""
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

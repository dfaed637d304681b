"""Pictures of a code's units: how they respond, how much they vary, and which are dead."""

import math

import numpy as np

from kerasae import checks, metrics
from kerasae.figures import drawing


def code_activations(codes, images=None, num_images=6):
    """The codes of a few examples, unit by unit: in a sparse code few units are active.

    Args:
        codes: Codes of shape `(n, ...)`, such as `model.encode(x)`; every entry of an example is one unit.
        images: The examples, to stand beside their codes: as in `top_images`, or None, the default, for a table.
        num_images: Positive integer, how many of the first examples are shown. Default 6.

    Returns:
        The figure, with one axes per code, on common scales, each after that of its image. Each unit that is not 0 is a line from 0.

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
    codes = drawing.flat_codes(codes)
    shown = codes[: checks.positive_int(num_images, "num_images")]
    if images is not None:
        images = drawing.check_as_many(drawing.rgba(images, "images"), codes, "images")
    figure = drawing.new_figure(8, 0.4 + 1.1 * len(shown))
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
        ax.vlines(active, 0, code[active], colors=drawing.COLOURS[0], linewidths=1.5)
        ax.axhline(0, color=ax.xaxis.label.get_color(), linewidth=0.5)
        ax.set(xlim=(-1, len(code)), ylim=(low - margin, high + margin), ylabel="activation")
        ax.set_title(f"{len(active)} of {len(code)} units active", fontsize="small")
        ax.tick_params(labelbottom=i == len(shown) - 1)
    axes[-1, -1].set_xlabel("unit")
    return figure


def top_images(codes, images, labels=None, num_units=10, num_images=10, units=None, ax=None):
    """For each unit of a code, the images that it responds to most, strongest first.

    A unit whose strongest response is negative is turned round, and its name says so. Examples of which the unit is 0, as most units of a
    sparse code are, are not shown.

    Args:
        codes: Codes of shape `(n, ...)`; every entry of an example is one unit.
        images: The `n` examples, images in [0, 1] of shape `(n, h, w)`, `(n, h, w, 1)` or `(n, h, w, 3)`.
        labels: Classes of shape `(n,)`, by which units are then sorted and named: each by the commonest among its images. Default: by their
            variance.
        num_units: Positive integer, how many rows: the units whose codes vary most. Default 10.
        num_images: Positive integer, how many columns. Default 10.
        units: Numbers of the units to show, counted from 0, instead of `num_units`.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure. Its one axes holds one picture, RGBA, transparent between images.

    Raises:
        ValueError: If the lengths differ, an array is empty or not finite, images have another rank, or a unit does not exist.

    Example:

    >>> import numpy as np
    >>> z = np.array([[0.0, 2.0], [3.0, 0.0], [1.0, 5.0]])
    >>> figure = top_images(z, np.random.default_rng(0).random((3, 8, 8)), labels=["a", "b", "a"])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['unit 1: class a (2 of 2)', 'unit 0: class a (1 of 2)']

    Reference:
        Erhan et al., 2009, section 2, "maximizing the activation" over the data's own examples.
    """
    codes = drawing.flat_codes(codes)
    images = drawing.check_as_many(drawing.rgba(images, "images"), codes, "images")
    if labels is not None:
        labels = drawing.check_as_many(np.asarray(labels), codes, "labels")
        classes = np.unique(labels)
    num_images = checks.positive_int(num_images, "num_images")
    if units is None:
        num_units = checks.positive_int(num_units, "num_units")
        units = np.argsort(-codes.var(axis=0), kind="stable")[:num_units]
    units = drawing.check_numbers(units, "units", codes.shape[1])

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
    ax, ys, _ = drawing.mosaic(grid, ax, (drawing.name_width(names), 0.3), caption="images, by falling response")
    drawing.name_rows(ax, ys, names)
    return ax.figure


def unit_kl(z_mean, z_log_var, threshold=0.01, ax=None):
    """How much information each latent of a variational model carries, and which have collapsed.

    Bar i is ``KL(q(z_i|x) || N(0, 1)) = 1/2 (sigma_i^2 + mu_i^2 - 1 - ln sigma_i^2)``, mean over examples, largest first. A latent is
    active if the variance of its mean mu_i over the examples exceeds the threshold, as in `kerasae.metrics.active_units`.

    Args:
        z_mean: mu, `(n, latent_dim)`, at least two examples; with `z_log_var`, `model.encoder.predict(x)`.
        z_log_var: ln sigma^2, of the same shape, or `(n, 1)` for one variance for all latents.
        threshold: Float >= 0, of the variance. Default 0.01.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds one bar per latent.

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
    z_mean = drawing.flat_codes(z_mean, "z_mean").astype("float64")
    z_log_var = drawing.flat_codes(z_log_var, "z_log_var").astype("float64")
    if z_log_var.shape not in {z_mean.shape, (len(z_mean), 1)}:
        raise ValueError(
            f"`z_log_var` must have the shape of `z_mean`, {z_mean.shape}, or ({len(z_mean)}, 1). Received: {z_log_var.shape}."
        )
    kl = (0.5 * (np.exp(z_log_var) + z_mean**2 - 1 - z_log_var)).mean(axis=0)
    num_active = metrics.active_units(z_mean, threshold)
    active, criterion = _variance(z_mean) > threshold, f"variance of $\\mu$ > {threshold:g}"
    ax = _unit_bars(kl, active, "latent", drawing.latent_name, criterion, "collapsed", ax)
    ax.set_ylabel("KL to the prior (nats, mean over examples)")
    ax.set_title(f"{kl.sum():.2f} nats in all, {num_active} of {len(kl)} latents active")
    return ax.figure


def unit_variance(codes, threshold=0.01, ax=None):
    """How much each unit of a code varies over the examples, and which are dead.

    Each bar is the variance of one unit, largest first; the axis is linear up to the threshold and logarithmic above it (of a
    threshold of 0, from a ten-thousandth of the largest variance), so that a dead unit's 0 can be seen beside the others.

    Args:
        codes: Codes of shape `(n, ...)`, at least two examples; every entry of an example is one unit.
        threshold: Float >= 0, in squared units of the codes: a unit above it is active. Default 0.01; 0 for k-sparse codes.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds one bar per unit.

    Raises:
        ValueError: As `kerasae.metrics.active_units`.

    Example:

    >>> unit_variance([[0.0, 3.0, 0.1], [0.0, -3.0, 0.0]]).axes[0].get_title()
    '1 of 3 units active'

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, section 5.2.
    """
    codes = drawing.flat_codes(codes).astype("float64")
    num_active, variance = metrics.active_units(codes, threshold), _variance(codes)
    ax = _unit_bars(variance, variance > threshold, "unit", str, f"variance > {threshold:g}", "dead", ax)
    if variance.any():
        ax.set_yscale("symlog", linthresh=threshold or 1e-4 * variance.max())
    if threshold:
        ax.axhline(threshold, color=ax.xaxis.label.get_color(), linestyle=":", linewidth=1)
    ax.set_ylabel("variance (squared units of the code)")
    ax.set_title(f"{num_active} of {codes.shape[1]} units active")
    return ax.figure


def _variance(codes):
    """Each unit's variance over the examples."""
    return (codes - codes[0]).var(axis=0)  # shifted, so that a constant unit's is exactly 0


def _unit_bars(values, active, unit, name, criterion, inactive, ax):
    """One bar per unit, largest first; colour and hatch tell active units from others."""
    order = np.argsort(-values, kind="stable")
    many = len(values) > 100
    ax = drawing.one_axes(ax, np.clip(2 + 0.28 * len(values), 5, 10), 3.8)
    for group, colour, hatch, label in (
        (active, drawing.COLOURS[0], None, f"active ({criterion})"),
        (~active, drawing.COLOURS[6], "///", inactive),
    ):
        ranks = np.flatnonzero(group[order])
        if len(ranks):
            size = {"width": 1.0 if many else 0.8, "linewidth": 0 if many else 1}
            style = {"facecolor": (colour, 0.9 if hatch is None else 0.35), "edgecolor": colour, "hatch": hatch}
            ax.bar(ranks, values[order][ranks], label=f"{label}: {len(ranks)}", **size, **style)
    if len(values) <= 32:
        ax.set_xticks(np.arange(len(values)), [name(i) for i in order], fontsize="small")
    ax.set_xlabel(f"{unit}, sorted" if len(values) <= 32 else f"{unit}s, sorted")
    ax.margins(y=0.3)  # room for the legend above bars of one height
    ax.legend()
    return ax

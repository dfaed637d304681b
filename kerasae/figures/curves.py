"""Curves and histograms: training, errors, rate and distortion, singular values."""

import numpy as np

from kerasae import checks
from kerasae.figures.drawing import COLOURS, check_mapping, line_style, new_figure, one_axes


def training_curves(history, unit="nats"):
    """Every logged term by epoch, one panel per term, training beside validation.

    Args:
        history: Dict from term to one value per epoch, as `model.fit(...).history`; a term's validation twin is named `val_` and the term.
            NaN leaves a gap.
        unit: Unit of the terms whose name ends in `loss`, on their y axis: "nats" by default, "squared error" for a model fitted by that.
            Other terms are plain numbers.

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

    check_mapping(history, "history", "values by epoch")
    history = {name: np.asarray(values, dtype=float) for name, values in history.items()}
    lengths = {name: values.shape for name, values in history.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 or 0 in shape for shape in lengths.values()):
        raise ValueError(
            "Every term must hold one value per epoch, as many as the others; with `validation_freq`, put NaN where none was measured. "
            f"Received shapes: {lengths}."
        )

    terms = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    num_columns = min(3, len(terms))
    num_rows = -(-len(terms) // num_columns)
    figure = new_figure(4.2 * num_columns, 3.2 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in panels[len(terms) :]:
        ax.remove()
    for ax, term in zip(panels, terms, strict=False):
        for name, label, style, colour in (
            (term, "training", "-", COLOURS[0]),
            (f"val_{term}", "validation", "--", COLOURS[6]),
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


def error_histograms(
    normal, anomalous=None, threshold=None, unit="squared error", num_bins=50, names=("normal", "anomalous"), ax=None
):
    """How the errors of normal and of anomalous examples compare with each other and with the threshold.

    Each group's bars add up to 100 %, however many examples it has. Errors above the threshold are called anomalous; the legend gives their
    share of each group. The axis is logarithmic if the largest of positive errors is more than 50 times their median.

    Args:
        normal: Errors of normal examples, shape `(n,)`; of a detector, `-detector.score_samples(x)`.
        anomalous: Errors of anomalous examples, shape `(m,)`. None, the default, if there are none.
        threshold: Number, in the errors' unit. None, the default, draws none.
        unit: Name of the errors, on the x axis. Default "squared error".
        num_bins: Positive integer, common to both groups. Default 50.
        names: Names of the groups, such as ("training", "test").
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
    ax = one_axes(ax, 6.4, 3.8)
    for (name, errors), colour, hatch in zip(groups.items(), (COLOURS[0], COLOURS[6]), (None, "///"), strict=False):
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
    """The cost of quality: peak signal-to-noise ratio over bits per pixel, one curve per codec. Higher, or further left, is better.

    Args:
        curves: Dict from codec name to `(bits_per_pixel, psnr)`, two numbers or two sequences of the same length, in bits and decibels;
            points are joined by rising rate.
        ax: Matplotlib axes to draw in; a new figure by default.

    Returns:
        The figure, whose axes holds one line per codec.

    Raises:
        ValueError: If there is no codec, or a curve is not two sequences of finite numbers, equally long.

    Example:

    >>> figure = rate_distortion({"autoencoder": ([0.5, 0.2], [28.0, 24.0]), "JPEG": (0.8, 27.0)})
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [0.2, 0.5]
    """
    check_mapping(curves, "curves", "(bits_per_pixel, psnr)")
    ax = one_axes(ax, 5.6, 4.2)
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
        ax.plot(rate[order], quality[order], label=str(name), **line_style(i, markers=True))
    ax.set(xlabel="rate (bits per pixel)", ylabel="PSNR (dB)")
    ax.set_xlim(left=0)
    ax.legend()
    return ax.figure


def singular_values(values, ax=None):
    """The spectra of Jacobians: mean singular values, largest first, one curve per model.

    A steep curve belongs to an encoder that reacts to few directions around an example, those along which the data vary, and contracts the
    others.

    Args:
        values: Dict from model name to singular values of shape `(n, r)`, one example's Jacobian per row, sorted descending.
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
    check_mapping(values, "values", "singular values")
    ax = one_axes(ax, 5.6, 3.8)
    for i, (name, of_model) in enumerate(values.items()):
        of_model = checks.array(of_model, (None,), name=f"values[{name!r}]").astype("float64")
        if of_model.min() < 0:
            raise ValueError(
                f"`values[{name!r}]` must be at least 0, as singular values are. Received: {of_model.min()}."
            )
        mean = of_model.mean(axis=0)
        style = line_style(i, len(mean) <= 20)
        ax.plot(np.arange(1, len(mean) + 1), np.where(mean > 0, mean, np.nan), label=str(name), **style)
    ax.set(yscale="log", xlabel="rank of the singular value", ylabel="singular value (code per input), mean")
    ax.legend()
    return ax.figure

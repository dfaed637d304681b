"""Pictures of time series."""

import numpy as np

from kerasae import checks
from kerasae.data.reading import series as rows
from kerasae.figures.drawing import COLOURS, new_figure

_MOST_CHANNELS = 8


def series(X, scores=None, threshold=None, reconstruction=None, times=None, names=None):
    """A time series: each channel beside its reconstruction, and below them the scores, with the intervals below the threshold shaded.

    Args:
        X: shape `(time,)` or `(time, channels)`, NaN for what is missing; the first 8 channels are drawn.
        scores: of each row, shape `(time,)`, as `tasks.SeriesDetector.score_samples` gives them. Default: none.
        threshold: `detector.offset_`. Default: none.
        reconstruction: as X, as `detector.reconstruct(X)` gives it. Default: none.
        times: of each row, shape `(time,)`, numbers or `datetime64`. Default: the rows' numbers.
        names: of the channels. Default: their numbers.

    Returns:
        The figure, with one axes per channel, and one for the scores.

    Raises:
        ValueError: If sizes differ, or X has other than one or two axes.

    Example:

    >>> import numpy as np
    >>> figure = series(np.sin(np.arange(50)), scores=-np.arange(50.0), threshold=-40.0)
    >>> len(figure.axes)
    2
    """
    X = np.asarray(X, "float64")
    X = X.reshape(len(X), -1) if X.ndim == 1 else X
    if X.ndim != 2:
        raise ValueError(f"`X` must have shape (time,) or (time, channels). Received: {X.shape}")
    channels = min(X.shape[1], _MOST_CHANNELS)
    times = np.arange(len(X)) if times is None else np.asarray(times)
    if reconstruction is not None:
        reconstruction = np.reshape(reconstruction, (len(reconstruction), -1))
    for name, given in (("scores", scores), ("reconstruction", reconstruction), ("times", times)):
        if given is not None and len(given) != len(X):
            raise ValueError(f"`{name}` must have one entry for each of the {len(X)} rows. Received: {len(given)}")
    odd = []
    if threshold is not None and scores is not None:
        threshold = checks.real_number(threshold, "threshold")
        odd = rows.intervals(np.asarray(scores), threshold, times)
    figure = new_figure(8, 1.4 * (channels + (scores is not None)) + 0.6)
    all_axes = np.atleast_1d(figure.subplots(channels + (scores is not None), 1, sharex=True))
    for i, ax in enumerate(all_axes[:channels]):
        ax.plot(times, X[:, i], color=COLOURS[0], linewidth=1, label="observed")
        if reconstruction is not None:
            ax.plot(times, reconstruction[:, i], color=COLOURS[6], linewidth=1, linestyle="--", label="reconstructed")
        ax.set_ylabel(str(i if names is None else names[i]))
    if reconstruction is not None:
        all_axes[0].legend(loc="upper right")
    if scores is not None:
        ax = all_axes[-1]
        ax.plot(times, scores, color=COLOURS[0], linewidth=1)
        ax.set_ylabel("score")
        if threshold is not None:
            ax.axhline(threshold, color=ax.xaxis.label.get_color(), linestyle="--", label=f"threshold {threshold:.4g}")
            ax.legend(loc="lower right")
    for ax in all_axes:
        for interval in odd:
            ax.axvspan(
                interval["start"], interval["end"], facecolor=(COLOURS[6], 0.2), edgecolor=COLOURS[6], hatch="//"
            )
    all_axes[-1].set_xlabel("time")
    return figure

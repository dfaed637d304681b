"""Between rows of a time series and windows of them, for the estimators of series."""

import logging

import keras
import numpy as np
from sklearn.utils.validation import check_is_fitted

from kerasae import checks
from kerasae.data.reading import series
from kerasae.tasks.batches import run

_logger = logging.getLogger(__name__)

# In the training windows.
_MOST_NUMBERS = 10**8


class Windows:
    """What an estimator of series with `window_`, `span_`, `stride_`, `step_` and `channels_` takes apart, and puts together."""

    def _series(self, X, reset=False):
        """`[(values, times or None)]` of one series or a list of them: float64 `(rows, channels)` with NaN."""
        several = _is_several(X)
        parts = []
        for i, part in enumerate(X if several else [X]):
            where = f" of series {i + 1}" if several else ""
            times = self._own_times(part)
            if isinstance(part, series.Timed):
                part = part.values
            elif self.time is not None and hasattr(part, "drop"):
                part = part.drop(columns=self.time)
            if len(np.shape(part)) > 2:
                raise ValueError(
                    f"A series must be (time,) or (time, channels); several are a list of such. Received shape{where}: {np.shape(part)}. "
                    "Of an array of series that is list(X)."
                )
            if len(np.shape(part)) == 1:
                part = part.to_frame() if hasattr(part, "to_frame") else np.reshape(part, (-1, 1))
            values = self._validate(part, reset=reset and i == 0, images=False, ensure_all_finite="allow-nan")
            parts.append((values.astype("float64"), None if times is None else series.seconds(times, f"times{where}")))
        return parts

    def _own_times(self, part):
        """A frame's times, or None."""
        if isinstance(part, series.Timed):
            return part.times
        if self.time is not None:
            if self.time not in getattr(part, "columns", ()):
                raise ValueError(
                    f"X must be a frame with the column {self.time!r}, as `time` says. Received: {type(part).__name__}"
                )
            times = part[self.time]
            if np.asarray(times.iloc[:0]).dtype.kind in "OSUT" and not hasattr(times, "dt"):
                raise ValueError(
                    f"Column {self.time!r} holds text: turn it into times first, with pandas.to_datetime. It begins: {list(times[:2])}"
                )
            return _without_zone(times)
        return _without_zone(part.index) if hasattr(part, "iloc") and hasattr(part.index, "tz") else None

    def _channel_names(self):
        names = getattr(self, "feature_names_in_", None)
        return list(range(self.n_features_in_)) if names is None else list(map(str, names))

    def _used_names(self):
        names = self._columns()
        return None if names is None else [names[i] for i in self.channels_]

    def _max_gap(self):
        return int(checks.real_number(self.max_gap, "max_gap", minimum=0))

    def _span(self, window):
        """Of which of a window's rows it tells, `(first, last)`, and how far apart windows are scored."""
        delay = checks.real_number(
            window - 1 if self.delay is None else self.delay, "delay", minimum=0, maximum=window - 1
        )
        first = window - 1 - int(delay)
        if self.measure == "forecast":
            first = max(first, window - self._horizon(window))
        stride = max(1, (window - first) // 20) if self.stride is None else checks.positive_int(self.stride, "stride")
        return (first, window - 1), stride

    def _horizon(self, window):
        horizon = max(1, window // 10) if self.horizon is None else checks.positive_int(self.horizon, "horizon")
        if horizon >= window:
            raise ValueError(f"`horizon` must be less than the window, {window}. Received: {horizon}")
        return horizon

    def _grid(self, values, times):
        if times is not None and self.step_ is None:
            times = None  # the training series had none
        return series.on_grid(values[:, self.channels_], times, self.step_ or 1.0, self._max_gap())

    def _flat(self, windows):
        """Windows, scaled, in one row each, float32."""
        return self._scale(windows).reshape(len(windows), self.window_ * len(self.channels_))

    def _window_scores(self, windows):
        return run(self.scorer_, self._flat(windows)).astype("float64")

    def _of_rows(self, X, of_windows, of_channels=False):
        """What a function says of windows, or `of_channels` of each of their numbers, as means for each row; of a list of series a list."""
        check_is_fitted(self)
        answers = []
        for part in self._series(X):
            grid, places = self._grid(*part)
            windows, starts = series.windows(grid, self.window_, self.stride_, of_channels)
            if not len(starts):
                _logger.warning(
                    "No window of %d rows is without gaps: nothing can be said of %d rows.", self.window_, len(grid)
                )
                windows = np.zeros((1, self.window_, grid.shape[1]))
            values = of_windows(windows).astype("float64")[: len(starts)]
            if of_channels:
                values = series.overlaid(values, starts, len(grid))[places]
                every = np.full((len(values), self.n_features_in_), np.nan)
                every[:, self.channels_] = values
                values = every
            else:
                values = series.spread(values, starts, len(grid), self.span_, self.stride_)[places]
            answers.append(values)
        return answers if _is_several(X) else answers[0]

    def _training_windows(self, grids, cut, max_gap):
        """Scaled windows of all series in one row each, evenly thinned; which are held out; `(series, start)` of each."""
        numbers = self.window_ * len(self.channels_)
        most = max(2, min(_MOST_NUMBERS // numbers, max(self.max_samples, self.n_references or 4000)))
        stride = max(1, -(-sum(map(len, grids)) // most))
        found = [series.windows(grid, self.window_, stride) for grid in grids]
        starts = [(i, int(s)) for i, (_, some) in enumerate(found) for s in some]
        x = self._flat(np.concatenate([windows for windows, _ in found]))
        # What lies in both would be known.
        held_out = np.array([s + self.window_ > cut[i] for i, s in starts], bool)
        inside = np.array([s >= cut[i] for i, s in starts], bool)
        kept = ~held_out | inside
        if not inside.any():
            kept, inside = np.ones(len(x), bool), held_out
        return x[kept], inside[kept], [start for start, keep in zip(starts, kept, strict=True) if keep]

    def _reconstruction(self, flat):
        """The mean of the estimators' reconstructions of scaled windows, symbolic."""
        parts = []
        for i, model in enumerate(self.estimators_):
            x = keras.Input(flat.shape[1:])
            reconstruction = model.reconstruction_of(model.decoder(model.code_of(model.encoder(x))))
            parts.append(keras.Model(x, reconstruction, name=f"member_{i}")(flat))
        return sum(parts[1:], parts[0]) / len(parts)

    def _errors(self, x):
        """Squared errors of scaled windows, `(n, window_, channels used)`."""
        return np.square(x - run(self.reconstructor_, x)).reshape(len(x), self.window_, -1)


def _without_zone(times):
    """A frame's times as an array of `datetime64` in UTC, or of numbers."""
    of_times = getattr(times, "dt", times)
    return np.asarray(times if getattr(of_times, "tz", None) is None else of_times.tz_convert(None))


def _is_several(X):
    """Whether X is a list of series, and not one series as a list of numbers or rows."""
    return isinstance(X, (list, tuple)) and len(X) > 0 and all(len(getattr(part, "shape", ())) > 0 for part in X)

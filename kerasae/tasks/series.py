"""Anomaly detection in time series."""

import copy
import logging
import math

import keras
import numpy as np
from keras import ops
from scipy import stats
from sklearn.utils.validation import check_is_fitted

from kerasae import checks, preparation
from kerasae.data.reading import series
from kerasae.functions import by_name, of_network
from kerasae.tasks.anomaly import FALSE_ALARMS, AnomalyDetector
from kerasae.tasks.base import assign
from kerasae.tasks.batches import run
from kerasae.tasks.windows import Windows

_logger = logging.getLogger(__name__)

MEASURES = ("distance", "reconstruction", "forecast")
# Numbers in the windows that are kept.
_MOST_KEPT = 10**7
_MOST_CODE = 64
# A window that is left out alone is known by those that overlap it, and the tail is short: the threshold lies this much further off.
_MARGIN = 1.1
# Rounds in which reconstructions replace what is missing.
_ROUNDS = 10


class SeriesDetector(Windows, AnomalyDetector):
    """Finds anomalies in time series: a score for every row, a threshold, intervals, and the channels that are to blame.

    Each channel is scaled, and every window of w successive rows becomes one example of w times C numbers, which is scored as
    `AnomalyDetector` scores a row of a table (`measure="distance"`), or by autoencoders' errors: with `v` a scaled window and `g(f(v))` the
    mean of their reconstructions, `-mean (v - g(f(v)))^2` (`"reconstruction"`), or over the last `horizon` rows alone, which the
    autoencoders are not shown (`"forecast"`). A row's score is the mean over the windows that tell of it,

        score_t = mean_{s in S(t)} score(x_s, ..., x_{s+w-1}),    S(t) = {s: s <= t <= s+w-1 <= t+delay},

    of a forecast those whose last `horizon` rows hold t. Higher is more normal. With the default delay, w - 1, all windows that hold the
    row count, which tells best; with 0 a row is scored when it comes, by the window that ends there.

    Time: rows are taken as evenly spaced, or, where X has times (a frame's `DatetimeIndex`, or the column `time`), brought to the median
    step of those in `fit`: straight lines over at most `max_gap` steps, means where rows come more often. A window with a longer gap has
    no score, nor has a row without any window: NaN, which is no anomaly. A channel without any value in `fit` is left out, with a warning;
    a constant one stays, in its own unit.

    The threshold: the last `tail_fraction` of each training series, in time order, is scored by the windows before it. With m and s the
    mean and standard deviation of `ln(-score)` there, and n the number of whole windows that fit into it,

        exp(m + s t_{n-1}(1 - a) sqrt(1 + 1/n))

    is a prediction bound for the share a of new rows, wider the less there is to learn from. `-offset_` is 1.1 times the largest of it,
    the tail's own largest distance, and what a share a of all training windows exceed, each scored without itself. If half of the tail
    lies further off than 95 % of these windows, the series drifts, or is too short to tell what is usual: a warning says so, and that
    more false alarms are to be expected.

    Args:
        window: w, rows, at least 2. Default 100, or a third of the longest training series where that is less.
        measure: `"distance"` (default), `"reconstruction"` or `"forecast"`.
        horizon: rows at a window's end that a forecast is of. Default: a tenth of the window.
        delay: rows that are waited for, 0 to w - 1. Default: w - 1.
        stride: every so many rows a window is scored, at least 1. Default: a twentieth of the rows that are waited for. Rows at the end
            that no window reaches have the score before them.
        max_gap: steps without a value that are filled in, at least 0. Default 10.
        time: name of the column that holds the times. Default: a frame's index, if it is of times.
        tail_fraction: share of a training series, in (0, 0.5], at its end, that sets the threshold. At least one window.
        scaling: of each channel, as in `AutoencoderEstimator`. Default `"standard"`.
        n_references: windows that are kept at most. Default 4000, fewer where they have more than 2,500 numbers.
        latent_dim: Default: half of a window's numbers, at most 64.
        contamination: a, the share of new normal rows that `predict` may call anomalies: in (0, 0.5], or `"auto"` (default), 0.05.
        model, n_estimators, hidden_units, network, model_options, bandwidths, max_samples, epochs, batch_size, learning_rate,
            validation_fraction, patience, random_state, verbose: as in `AnomalyDetector`, whose examples are scaled windows in one row.

    Attributes:
        estimators_, scorer_, bandwidths_, offset_: as in `AnomalyDetector`; of scaled windows in one row.
        reconstructor_: Keras model from such windows to the mean of their reconstructions.
        window_, step_: w, and the time between rows, in seconds or in the times' unit; None without times.
        channels_: numbers of the columns that are used.
        usual_errors_: mean squared error of the reconstructions in training, of each channel, scaled.
        drifts_: whether the end of the training series lay far off.

    Raises:
        ValueError: on infinity, arrays with other than one or two axes, times that run backwards or repeat, too few rows, other columns
            than in `fit`, bad options.

    Example:

    ```python
    rng = np.random.default_rng(0)
    t = np.arange(600)
    sensors = np.stack([np.sin(t / 8), np.cos(t / 8)], axis=1) + 0.1 * rng.normal(size=(600, 2))
    new = sensors.copy()
    new[300:330, 1] = 0  # the second sensor hangs
    detector = kerasae.tasks.SeriesDetector(window=32, epochs=2, random_state=0).fit(sensors)
    scores = detector.score_samples(new)  # (600,)
    hung = detector.anomalies(new)  # [{"start": ..., "end": ..., "peak": ..., "score": ..., "channel": 1, ...}]
    stream = detector.stream()
    for row in new[:40]:
        settled = stream.update(row)  # [(number of the row, its score)]: none, until 31 more rows are there
    ```

    Reference:
        Windows of the training part and scores averaged over windows: Paparrizos et al. 2022, "TSB-UAD". Forecasts: Malhotra et al. 2015,
        "Long Short Term Memory Networks for Anomaly Detection in Time Series". Distances: see `AnomalyDetector`.
    """

    blur, contrast = 0.0, False  # of images

    def __init__(
        self,
        model="undercomplete",
        *,
        window=None,
        measure="distance",
        horizon=None,
        delay=None,
        stride=None,
        max_gap=10,
        time=None,
        tail_fraction=0.3,
        n_estimators=2,
        latent_dim=None,
        hidden_units=(64,),
        network="dense",
        model_options=None,
        scaling="standard",
        bandwidths="auto",
        n_references=None,
        max_samples=6400,
        epochs=20,
        batch_size=128,
        learning_rate=2e-3,
        validation_fraction=0.0,
        patience=10,
        contamination="auto",
        random_state=None,
        verbose=0,
    ):
        assign(self, locals())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X, y=None):
        """Fits the ensemble to windows, and the threshold to the end of each series.

        Args:
            X: one series, `(time,)` or `(time, channels)`, array or frame, NaN for what is missing; or a list of several, arrays or frames.
            y: ignored.
        """
        measure = checks.choice(self.measure, "measure", MEASURES)
        tail_fraction = checks.real_number(self.tail_fraction, "tail_fraction", minimum=0, maximum=0.5, exclusive=True)
        max_gap = self._max_gap()
        alarms = self.contamination
        if isinstance(alarms, str) and alarms == "auto":
            alarms = FALSE_ALARMS
        alarms = checks.real_number(alarms, "contamination", minimum=0, maximum=0.5, exclusive=True)
        parts = self._series(X, reset=True)
        known = ~np.isnan(np.concatenate([values for values, _ in parts])).all(axis=0)
        if not known.all():
            lost = [self._channel_names()[i] for i in np.flatnonzero(~known)]
            if not known.any():
                raise ValueError("X holds no value: every row of every channel is NaN.")
            _logger.warning("Channels without any value in fit are left out: %s", checks.listed(lost))
        self.channels_ = np.flatnonzero(known)
        if not isinstance(self.model, str) or self.network != "dense":
            raise ValueError(
                "The networks of a SeriesDetector see a window as one row: `model` must be a family's name, and `network` "
                f'"dense". Received: model={self.model!r}, network={self.network!r}'
            )
        steps = [series.usual_step(times) for _, times in parts if times is not None]
        self.step_ = float(np.median(steps)) if steps else None
        self._fit_scaling(np.concatenate([values for values, _ in parts])[:, self.channels_])
        grids = [self._grid(*part)[0] for part in parts]
        longest = max(map(len, grids))
        window = max(2, min(100, longest // 3)) if self.window is None else checks.positive_int(self.window, "window")
        self.window_, self.span_, self.stride_ = window, *self._span(window)
        cut = [max(len(grid) - max(round(tail_fraction * len(grid)), min(window, len(grid) // 2)), 0) for grid in grids]
        x, held_out, starts = self._training_windows(grids, cut, max_gap)
        if len(x) < 2 or not (~held_out).any():
            raise ValueError(
                f"X has too few rows without gaps for windows of {window}: {len(x)} whole windows. Longest series: {longest} rows. Give "
                "more rows, a smaller `window`, or a larger `max_gap`."
            )
        if not held_out.any():
            raise ValueError(
                f"The end of X sets the threshold, and no window of {window} rows without gaps reaches into it: see which channel has no "
                "values there, and leave it out, or give a larger `max_gap`, or a smaller `window`."
            )
        if measure == "distance":
            as_new, tail = self._fit_scorer(x, held_out=held_out)
        else:
            as_new, tail = self._fit_errors(x, held_out)
        scaled = keras.Input(x.shape[1:])
        self.reconstructor_ = keras.Model(scaled, self._reconstruction(self._shown(scaled)))
        self.usual_errors_ = np.maximum(self._errors(x[:: max(1, len(x) // 1000)]).mean(axis=(0, 1)), 1e-6)
        self._fit_threshold(
            as_new, tail, [s for s, out in zip(starts, held_out, strict=True) if out], grids, cut, alarms
        )
        self._check_offset()
        return self

    def score_samples(self, X):
        """Scores, `(rows,)`, higher is more normal, NaN where no whole window tells of a row; of a list of series a list."""
        return self._of_rows(X, self._window_scores)

    def score(self, X, y):
        """As in `AnomalyDetector`, of the rows that have a score."""
        scores = self.score_samples(X)
        if isinstance(scores, list):
            scores, y = np.concatenate(scores), np.concatenate(list(y))
        known = ~np.isnan(scores)
        return self._roc_auc(np.asarray(y)[known], scores[known])

    def decision_function(self, X):
        """`score_samples(X) - offset_`, below 0 for anomalies; of a list of series a list."""
        scores = self.score_samples(X)
        return [s - self.offset_ for s in scores] if isinstance(scores, list) else scores - self.offset_

    def predict(self, X):
        """+1 for normal rows and those without a score, -1 for anomalies, `(rows,)`; of a list of series a list."""
        self._check_offset()
        odd = self.decision_function(X)
        return [np.where(part < 0, -1, 1) for part in odd] if isinstance(odd, list) else np.where(odd < 0, -1, 1)

    def reconstruct(self, X):
        """The mean of the windows' reconstructions, `(rows, channels)`, in the data's units; NaN in channels that are left out."""
        return self._of_rows(X, self.window_reconstructions, of_channels=True)

    def contributions(self, X):
        """How many times the usual squared error each channel's reconstruction has, `(rows, channels)`: what stands out is to blame."""

        def of_windows(x):
            return self._errors(self._flat(x)) / self.usual_errors_

        return self._of_rows(X, of_windows, of_channels=True)

    def anomalies(self, X, times=None):
        """Intervals of rows below the threshold, by time.

        Args:
            X: one series.
            times: what to call its rows. Default: its own times, or else the rows' numbers, from 0.

        Returns:
            A list of dicts: `start`, `end` (inclusive) and `peak`, of `times`; `score`, at the peak; `rows`, `(first, last)`; `channel`,
            the name or number of the one that stands out most in the interval; and `contributions`, `{channel: times the usual error}`.
        """
        if times is None:
            times = self._own_times(X)
        scores = self.score_samples(X)
        found = series.intervals(
            scores, self.offset_, np.arange(len(scores)) if times is None else times, self.window_ // 2
        )
        shares = self.contributions(X) if found else None
        for interval in found:
            first, last = interval["rows"]
            mean = np.nan_to_num(np.nanmean(shares[first : last + 1][:, self.channels_], axis=0))
            names = [self._channel_names()[i] for i in self.channels_]
            interval["channel"] = names[int(mean.argmax())]
            interval["contributions"] = dict(zip(names, map(float, mean), strict=True))
        return found

    def impute(self, X):
        """The series with its gaps filled in, as X is: straight lines first, which reconstructions of the windows around them replace.

        Rows have to be evenly spaced; gaps at the ends begin as the nearest value, channels without one as their mean in `fit`.
        """
        check_is_fitted(self)
        (values, _), *others = self._series(X)
        if others:
            raise ValueError("`impute` takes one series at a time.")
        filled, missing = values[:, self.channels_].copy(), np.isnan(values[:, self.channels_])
        for i, channel in enumerate(filled.T):
            gaps = missing[:, i]
            rows = np.flatnonzero(~gaps)
            channel[gaps] = np.interp(np.flatnonzero(gaps), rows, channel[rows]) if len(rows) else self.center_[i]
        windows, starts = series.windows(filled, self.window_)
        if missing.any() and not len(starts):
            _logger.warning(
                "%d rows are fewer than a window of %d: gaps are filled by straight lines.", len(filled), self.window_
            )
        for _ in range(_ROUNDS if missing.any() and len(starts) else 0):
            windows, starts = series.windows(filled, self.window_)
            near = [missing[s : s + self.window_].any() for s in starts]
            told = series.overlaid(self.window_reconstructions(windows[near]), starts[near], len(filled))
            filled[missing] = np.where(np.isnan(told), filled, told)[missing]
        imputed = values.copy()
        imputed[:, self.channels_] = filled
        return imputed.reshape(np.shape(X)) if isinstance(X, np.ndarray) else imputed

    def stream(self):
        """A `kerasae.data.reading.series.Stream`: takes one row at a time, evenly spaced, and gives the scores of `score_samples`."""
        check_is_fitted(self)

        return series.Stream(
            self._window_scores,
            self.window_,
            self.span_,
            self.stride_,
            self._max_gap(),
            self.n_features_in_,
            self.channels_,
        )

    def functions(self):
        """`score_samples`, from raw windows to scores, and `reconstruct`; see `AutoencoderEstimator.functions`."""
        check_is_fitted(self)
        shape = (self.window_, len(self.channels_))
        x = keras.Input(shape, dtype=self._deployed_dtype(), name="x")
        scaled = x if self.scaling is None else preparation.scaled(x, self.center_, self.scale_)
        flat = keras.layers.Reshape((math.prod(shape),))(scaled)
        meaning = f"of a window: higher is more normal; of an anomaly, the mean over a row's windows is below {self.offset_:.6g}"
        shaped = keras.layers.Reshape(shape)(self.reconstructor_(flat))
        if self.scaling is not None:
            shaped = preparation.unscaled(shaped, self.center_, self.scale_, self._deployed_dtype())
        windows = ("x", "windows, unscaled")
        return by_name(
            of_network(
                "score_samples",
                "from windows to scores",
                keras.Model(x, self.scorer_(flat)),
                ("score", meaning),
                self._window_scores,
                windows,
            ),
            of_network(
                "reconstruct",
                "from windows to reconstructions",
                keras.Model(x, shaped),
                ("reconstruction", "the reconstructions, in the units of x"),
                self.window_reconstructions,
                windows,
                self._units(),
            ),
        )

    def made_up_examples(self, num_examples):
        """Random windows with the channels' means and scales, for checks without data."""
        shape = (num_examples, self.window_, len(self.channels_))
        return np.random.default_rng(0).standard_normal(shape) * self.scale_ + self.center_

    def deployed_preparation(self):
        facts = super().deployed_preparation()
        return {**facts, "kind": "series", "shape": [self.window_, len(self.channels_)], "columns": self._used_names()}

    def window_reconstructions(self, windows):
        """Reconstructions of windows, `(n, window_, channels used)`, in the data's units."""
        x = run(self.reconstructor_, self._flat(windows)).reshape(windows.shape)
        return x if self.scaling is None else (x * self.scale_ + self.center_).astype(self._needed_dtype())

    # -- Fitting -----------------------------------------------------------------------------------------------------------------------

    def _with_defaults(self, is_table):
        member = copy.copy(self)
        if member.latent_dim is None:
            member.latent_dim = min((self.window_ * len(self.channels_) + 1) // 2, _MOST_CODE)
        return member

    def _fit_scorer(self, x, preparation=None, held_out=None):
        if self.n_references is not None:
            return super()._fit_scorer(x, preparation, held_out)
        resolved = copy.copy(self)
        resolved.n_references = max(2, min(4000, _MOST_KEPT // x.shape[1]))
        answers = super(SeriesDetector, resolved)._fit_scorer(x, preparation, held_out)
        for name in ("estimators_", "scorer_", "bandwidths_"):
            setattr(self, name, getattr(resolved, name))
        return answers

    def _num_hidden(self):
        """Numbers at a window's end that the autoencoders aren't shown."""
        return self._horizon(self.window_) * len(self.channels_) if self.measure == "forecast" else 0

    def _shown(self, flat):
        """Scaled windows as the autoencoders see them: zeros for what they forecast."""
        hidden = self._num_hidden()
        return ops.pad(flat[:, : flat.shape[1] - hidden], ((0, 0), (0, hidden))) if hidden else flat

    def _fit_errors(self, x, held_out):
        """Fits autoencoders to the windows that aren't held out, and `scorer_`, minus their squared error; answers as `_fit_scorer`."""
        hidden = self._num_hidden()
        rng = np.random.default_rng(self._seed())
        member, fitted_to = self._with_defaults(True), x[~held_out]
        self.estimators_ = []
        for _ in range(checks.positive_int(self.n_estimators, "n_estimators")):
            rows = rng.permutation(len(fitted_to))[: self.max_samples]
            rows = rows[np.arange(self.max_samples) % len(rows)]
            seed = int(rng.integers(np.iinfo(np.int32).max))
            corrupt = (lambda batch, _: self._shown(batch)) if hidden else None
            self.estimators_.append(member._fit_model(fitted_to[rows], seed=seed, corrupt=corrupt))
        self.bandwidths_ = []
        scaled = keras.Input(x.shape[1:], name="scaled")
        difference = scaled - self._reconstruction(self._shown(scaled))
        error = ops.mean(ops.square(difference[:, -hidden:] if hidden else difference), axis=1)
        self.scorer_ = keras.Model(scaled, -error, name="scorer")
        return -run(self.scorer_, fitted_to), -run(self.scorer_, x[held_out])

    def _fit_threshold(self, as_new, tail, starts, grids, cut, alarms):
        """`offset_`, from distances of the held-out windows, and `drifts_`."""
        distances, windows = [], 0
        for i, grid in enumerate(grids):
            own = [j for j, (number, _) in enumerate(starts) if number == i]
            if own:
                rows = series.spread(tail[own], np.array([starts[j][1] for j in own]), len(grid), self.span_, len(grid))
                distances.append(rows[cut[i] :])
                windows += (len(grid) - cut[i]) // self.window_
        distances = np.concatenate(distances)
        logs = np.log(np.maximum(distances[~np.isnan(distances)], 1e-12))
        windows = max(windows, 2)
        bound = logs.mean() + logs.std() * stats.t.ppf(1 - alarms, windows - 1) * math.sqrt(1 + 1 / windows)
        usual = float(np.quantile(as_new, 1 - alarms))
        self.offset_ = -_MARGIN * max(float(np.exp(max(bound, logs.max()))), usual)
        self.drifts_ = bool(np.exp(np.median(logs)) > np.quantile(as_new, 0.95))
        if self.drifts_:
            _logger.warning(
                "The end of the training series lies further off than its windows are from each other: it drifts, or is too short to tell "
                "what is usual. More false alarms than %g %% are to be expected: fit to a longer recording.",
                100 * alarms,
            )

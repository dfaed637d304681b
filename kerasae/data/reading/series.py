"""Time series as arrays: an even grid of times, windows, scores of rows, intervals, and one row at a time.

`X` is `(rows, channels)` in float64, with NaN for what is missing. It needs NumPy alone.
"""

import collections
import dataclasses
import itertools

import numpy as np

_EVEN = 0.01  # of a step: so far may times be from an even grid


@dataclasses.dataclass(frozen=True)
class Timed:
    """Rows of a series with their times: `values`, `(rows, channels)`, and `times`, `(rows,)`, `datetime64` or numbers."""

    values: np.ndarray
    times: np.ndarray

    @property
    def shape(self):
        return self.values.shape


def seconds(times, name="times"):
    """Times as float64: seconds of `datetime64` since the first, numbers as they are.

    Raises:
        ValueError: where they are missing, run backwards or repeat; the message names the rows.
    """
    times = np.asarray(times)
    if times.dtype.kind == "M":
        missing, whole = np.isnat(times), times.astype("datetime64[ns]").astype("int64")
        # From the first on: float64 has no digits for nanoseconds since 1970.
        numbers = (whole - whole[~missing].min(initial=np.iinfo("int64").max)) / 1e9
        numbers[missing] = np.nan
    else:
        numbers = times.astype("float64")
    if numbers.ndim != 1:
        raise ValueError(f"`{name}` must hold one time per row. Received shape: {numbers.shape}")
    for bad, what in (
        (np.flatnonzero(~np.isfinite(numbers)), "are missing"),
        (np.flatnonzero(np.diff(numbers) < 0) + 1, "run backwards"),
        (np.flatnonzero(np.diff(numbers) == 0) + 1, "repeat the row before"),
    ):
        if len(bad):
            rows = ", ".join(str(i + 1) for i in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            raise ValueError(
                f"The {name} must rise from row to row. They {what} in row {rows} (counted from 1). Sort the rows by time, and "
                "keep one of those with the same time; several series in one file are to be given one by one."
            )
    return numbers


def usual_step(times):
    """The median difference of successive times."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 1.0


def on_grid(X, times, step, max_gap):
    """A series at even times, and where its rows went.

    Where rows come more often than `step`, a time gets the mean of those nearest to it. Elsewhere straight lines lead from row to row, in
    each channel, over at most `max_gap` times without a value; longer gaps stay NaN.

    Args:
        X: `(rows, channels)`.
        times: `(rows,)`, rising; None: the rows are `step` apart.
        step: between the times of the grid.
        max_gap: times that are filled in, at least 0.

    Returns:
        `(grid, places)`: `(times, channels)`, and of each row the number of the nearest time, `(rows,)`.
    """
    if times is None:
        grid, places = X.copy(), np.arange(len(X))
    else:
        places = np.rint((times - times[0]) / step).astype("int64")
        if places[-1] > 1000 * (len(X) + 100):
            raise ValueError(
                f"The series spans {places[-1]:,} steps of {step:g} and has {len(X):,} rows. Give its parts one by one."
            )
        grid = np.full((places[-1] + 1, X.shape[1]), np.nan)
        exact = np.abs((times - times[0]) / step - places).max() <= _EVEN
        if exact and len(np.unique(places)) == len(places):
            grid[places] = X
        elif usual_step(times) < 0.75 * step:
            known = ~np.isnan(X)
            sums, counts = np.zeros_like(grid), np.zeros_like(grid)
            np.add.at(sums, places, np.where(known, X, 0))
            np.add.at(counts, places, known)
            np.divide(sums, counts, out=grid, where=counts > 0)
        else:
            return _between(X, (times - times[0]) / step, len(grid), max_gap), places
    return _between(grid, np.arange(len(grid)), len(grid), max_gap), places


def _between(X, times, length, max_gap):
    """Straight lines between the known values of each channel, at times 0, 1, ... `length` - 1."""
    grid, out = np.arange(length), np.full((length, X.shape[1]), np.nan)
    for channel, filled in zip(X.T, out.T, strict=True):
        known = np.flatnonzero(~np.isnan(channel))
        if not len(known):
            continue
        at = times[known]
        after = np.searchsorted(at, grid, side="left").clip(0, len(at) - 1)
        before = (np.searchsorted(at, grid, side="right") - 1).clip(0, len(at) - 1)
        # At the ends a value stands for times less than half a step away.
        near = np.abs(at[after] - grid) <= 0.5
        between = (grid >= at[before]) & (grid <= at[after]) & (at[after] - at[before] <= max_gap + 1 + _EVEN)
        take = near | between
        filled[take] = np.interp(grid[take], at, channel[known])
    return out


def windows(grid, window, stride=1, reaching_all=False):
    """`(windows, starts)`: those without NaN, `(n, window, channels)`, every `stride`-th, and the numbers of their first times.

    With `reaching_all` also the last ones before gaps and the end.
    """
    if len(grid) < window:
        return np.empty((0, window, grid.shape[1])), np.empty(0, "int64")
    starts = np.arange(len(grid) - window + 1)
    bad = np.concatenate([[0], np.cumsum(np.isnan(grid).any(axis=1))])
    starts = starts[bad[starts + window] == bad[starts]]
    is_last = np.append(np.diff(starts) > 1, True)[: len(starts)]
    starts = starts[(starts % stride == 0) | (is_last if reaching_all else False)]
    view = np.lib.stride_tricks.sliding_window_view(grid, window, axis=0)
    return np.swapaxes(view[starts], 1, 2), starts


def spread(values, starts, length, span, stride=1):
    """Values of windows, averaged over the windows that tell of a time; where none does, that of less than `stride` times before.

    Args:
        values: `(n, ...)`.
        starts: `(n,)`, the windows' first times.
        length: number of times.
        span: `(first, last)`: a window that begins at s tells of the times s + first to s + last.

    Returns:
        `(length, ...)`, NaN where no window tells anything.
    """
    full, began = np.zeros((length, *values.shape[1:])), np.zeros(length)
    full[starts], began[starts] = values, 1
    first, last = span
    number = np.concatenate([[0], np.cumsum(began)])
    # Of a time t: windows that begin at t - last to t - first.
    low = np.clip(np.arange(length) - last, 0, length)
    high = np.clip(np.arange(length) - first + 1, 0, length)
    counts = number[high] - number[low]
    # Window by window, as differences of running sums would lose what follows an enormous value.
    sums = np.zeros((length, *values.shape[1:]))
    for back in range(first, min(last, length - 1) + 1):
        sums[back:] += full[: length - back]
    counts = counts.reshape(-1, *[1] * (values.ndim - 1))
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    told = np.flatnonzero(number[high] > number[low])
    if not len(told):
        return means
    latest = told[(np.searchsorted(told, np.arange(length), side="right") - 1).clip(0)]
    behind = np.arange(length) - latest
    return np.where(((behind >= 0) & (behind < stride)).reshape(counts.shape), means[latest], np.nan)


def overlaid(values, starts, length):
    """Values of the rows of windows, `(n, window, channels)`, averaged over the windows that hold a time: `(length, channels)`, or NaN."""
    sums, counts = np.zeros((length, values.shape[2])), np.zeros((length, 1))
    for place in range(values.shape[1]):
        sums[starts + place] += values[:, place]
        counts[starts + place] += 1
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def intervals(scores, threshold, times, join=0):
    """Runs of rows with scores below the threshold: `[{"start", "end", "peak", "score", "rows"}]`, by time.

    Args:
        scores: `(rows,)`; NaN is never an anomaly.
        threshold: a number.
        times: what to call the rows, in order.
        join: runs with at most so many other rows between them are one.
    """
    odd = np.flatnonzero(np.nan_to_num(scores, nan=np.inf) < threshold)
    runs = np.split(odd, np.flatnonzero(np.diff(odd) > join + 1) + 1) if len(odd) else []
    found = []
    for run in runs:
        rows = np.arange(run[0], run[-1] + 1)
        peak = rows[np.nanargmin(scores[rows])]
        found.append(
            {
                "start": times[rows[0]],
                "end": times[rows[-1]],
                "peak": times[peak],
                "score": float(scores[peak]),
                "rows": (int(rows[0]), int(rows[-1])),
            }
        )
    return found


class Stream:
    """Scores of a series that comes one row at a time, `step` after `step`; the scores of `score_samples` for the same rows.

    Args:
        score: function of windows, `(n, window, channels)`, that gives their scores.
        window: their length.
        span, stride: as of `spread`; every `stride`-th window is scored.
        max_gap: as of `on_grid`.
        num_channels, channels: how many a row has, and the numbers of those that windows have.

    A row's score is known once the last window that tells of it is there: `delay` rows later, and `max_gap` more after a gap.
    """

    def __init__(self, score, window, span, stride, max_gap, num_channels, channels):
        self._num_channels, self._channels = num_channels, channels
        self._score, self._window, self._span, self._stride, self._max_gap = score, window, span, stride, max_gap
        self.delay = window - 1 - span[0]
        self._rows = collections.deque(maxlen=window + 2 * max_gap + 2)
        self._scores, self._given = {}, 0
        self._number = self._scored = self._age = 0
        self._last = float("nan")

    def update(self, row):
        """Takes one more row, `(channels,)`; gives `[(row's number from 0, score)]` of those whose scores it settles, mostly one.

        Raises:
            ValueError: on another number of channels than the detector was fitted to, or infinity.
        """
        row = np.array(row, "float64", ndmin=1)
        if row.shape != (self._num_channels,) or np.isinf(row).any():
            raise ValueError(f"A row must be {self._num_channels} finite numbers, or NaN. Received: {row}")
        self._rows.append(row[self._channels])
        self._number += 1
        return self._settle(self._number - self._open_gap())

    def finish(self):
        """The scores of the rows that are left, where no more will come."""
        settled = self._settle(self._number)
        return settled + [self._give() for _ in range(self._number - self._given)]

    def _open_gap(self):
        """Rows at the end that may yet be filled in: from the first with a gap that isn't closed, up to `max_gap` back."""
        last = list(self._rows)[-self._max_gap :] if self._max_gap else []
        missing = [np.isnan(row).any() for row in last]
        return len(list(itertools.takewhile(bool, reversed(missing))))

    def _settle(self, known):
        """Scores the windows that end before row `known`."""
        settled = []
        while self._scored < known:
            end = self._scored + 1  # the window's last row is number end - 1
            self._scored = end
            start = end - self._window
            if start >= 0 and start % self._stride == 0:
                rows = np.stack(self._rows)
                first = self._number - len(rows)
                grid = _between(rows, np.arange(len(rows)), len(rows), self._max_gap)[start - first : end - first]
                if not np.isnan(grid).any():
                    self._scores[start] = float(self._score(grid[None])[0])
            while self._given <= end - 1 - self.delay:
                settled.append(self._give())
        return settled

    def _give(self):
        t = self._given
        self._given += 1
        first, last = self._span
        values = [self._scores[s] for s in range(t - last, t - first + 1) if s in self._scores]
        self._scores.pop(t - last, None)
        self._age = 0 if values else self._age + 1
        if values:
            self._last = float(np.mean(values))
        return t, self._last if self._age < self._stride else float("nan")

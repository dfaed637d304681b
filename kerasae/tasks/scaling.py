"""Scaling of examples, learned from data, in NumPy and in the graphs that are deployed."""

import keras
import numpy as np

from kerasae import checks

SCALINGS = ("standard", "robust", "minmax", "global", "range")
_ROWS_AT_ONCE = 4096


class Scaling:
    """What an estimator with the parameter `scaling` and the attribute `input_shape_` scales by."""

    def _fit_scaling(self, X):
        """Learns `center_` and `scale_`, ignoring NaN; gives the scaled examples, in float32."""
        scaling = self.scaling if self.scaling is None else checks.choice(self.scaling, "scaling", SCALINGS)
        if scaling is None:
            self.center_, self.scale_ = np.zeros(X.shape[1:]), np.ones(X.shape[1:])
        elif scaling == "robust":
            low, self.center_, high = np.nanquantile(X, (0.25, 0.5, 0.75), axis=0)
            # A column that is constant but for a few rows has no interquartile range, and its spread is in those rows.
            constant = np.nanmin(X, axis=0) == np.nanmax(X, axis=0)
            spread = np.where(constant, 0.0, np.nanstd(X, axis=0, dtype="float64"))
            self.scale_ = np.where(high > low, (high - low) / 1.349, spread)
        elif scaling in ("minmax", "range"):
            axis = 0 if scaling == "minmax" else None
            low, high = np.nanmin(X, axis=axis).astype("float64"), np.nanmax(X, axis=axis).astype("float64")
            self.center_, self.scale_ = (np.broadcast_to(part, X.shape[1:]).copy() for part in (low, high - low))
        else:
            self.center_ = np.nanmean(X, axis=0, dtype="float64")
            self.scale_ = np.nanstd(X, axis=0, dtype="float64")
            # The mean of many equal numbers is another by more than the last bits.
            self.scale_[np.nanmin(X, axis=0) == np.nanmax(X, axis=0)] = 0.0
            if scaling == "global":
                self.scale_ = np.full_like(self.scale_, np.sqrt(np.mean(self.scale_**2)))
        # What is left of a constant column is rounding: divided by, it would become noise.
        rounding = 10 * np.finfo(X.dtype).eps * np.abs(self.center_)
        self.scale_ = np.where(self.scale_ > rounding, self.scale_, 1.0)
        return self._scale(X)

    def _scale(self, X):
        """`(X - center_) / scale_`, in float32."""
        if self.scaling is None:
            return X.astype("float32", copy=False)
        # Clipped where float32 ends: what lies there is far from all data either way.
        limit = np.finfo("float32").max / 1e6
        return _by_rows(lambda rows: np.clip((rows - self.center_) / self.scale_, -limit, limit), X)

    def _unscale(self, x):
        """`x * scale_ + center_` in the data's shape, in float32."""
        x = np.reshape(x, (len(x), *self.input_shape_))
        return x if self.scaling is None else _by_rows(lambda rows: rows * self.scale_ + self.center_, x)

    def _scaled_input(self, shape=None):
        """`(x, scaled)`: the symbolic raw input, in the data's shape, and the scaled one, in `shape`, by default the data's."""
        x = scaled = keras.Input(self.input_shape_, name="x")
        if self.scaling is not None:
            # Two steps, so that a large common offset goes before anything is rounded.
            scaled = (x - self.center_.astype("float32")) / self.scale_.astype("float32")
        return x, _reshaped(scaled, shape or self.input_shape_)

    def _unscaled_output(self, reconstruction):
        """A symbolic reconstruction in the data's units and shape."""
        x = _reshaped(reconstruction, self.input_shape_)
        if self.scaling is None:
            return x
        return x * self.scale_.astype("float32") + self.center_.astype("float32")


def _by_rows(function, X):
    """A function of rows, in float32: its own numbers are float64, which for all images at once would be much memory."""
    x = np.empty(X.shape, "float32")
    for start in range(0, len(X), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        x[rows] = function(X[rows])
    return x


def _reshaped(tensor, shape):
    return tensor if tuple(tensor.shape[1:]) == tuple(shape) else keras.layers.Reshape(shape)(tensor)

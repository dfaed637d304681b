"""Scaling of examples, learned from data, in NumPy and in the graphs that are deployed."""

import keras
import numpy as np

from kerasae import checks, preparation

SCALINGS = ("standard", "robust", "minmax", "global", "range")
_ROWS_AT_ONCE = 4096


class Scaling:
    """What an estimator with the parameter `scaling` and the attribute `input_shape_` scales by."""

    # Whether what is exported may take and give float64; LiteRT can't.
    deploys_float64 = True

    def _fit_scaling(self, X):
        """Learns `center_` and `scale_`, ignoring NaN; gives the scaled examples, in float32."""
        scaling = self.scaling if self.scaling is None else checks.choice(self.scaling, "scaling", SCALINGS)
        if scaling is None:
            preparation.check_unscaled(X, self._columns(), 'scaling="standard"')
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
        """`x * scale_ + center_` in the data's shape; in float32, or in float64 where that loses digits that matter."""
        x = np.reshape(x, (len(x), *self.input_shape_))
        if self.scaling is None:
            return x
        return _by_rows(lambda rows: rows * self.scale_ + self.center_, x, self._needed_dtype())

    def _needed_dtype(self):
        # What came in float32 has no digits that float32 could lose.
        if self.scaling is None or getattr(self, "input_dtype_", "float64") == "float32":
            return "float32"
        return preparation.dtype_for(self.center_, self.scale_)

    def _deployed_dtype(self):
        return self._needed_dtype() if self.deploys_float64 else "float32"

    def lost_digits(self, most=preparation.NOTICEABLE):
        """The columns of which float32 loses too much, as `kerasae.preparation.Preparation.lost_digits` gives them."""
        if self._needed_dtype() == "float32":
            return {}
        return preparation.lost_digits(self.center_, self.scale_, self._columns(), most)

    def _columns(self):
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else tuple(map(str, names))

    def deployed_preparation(self):
        """What the exported graph does to raw examples, `{"kind", "shape", "scaling", "offset", "scale", "columns", "takes"}`."""
        offset, scale = (
            np.unique(part) if np.ptp(part) == 0 else part
            for part in (np.asarray(self.center_), np.asarray(self.scale_))
        )
        # Of images with a mean for each pixel, all are in the graph, and none is worth reading.
        is_short = max(offset.ndim, scale.ndim) == 1
        return {
            "kind": "table" if len(self.input_shape_) == 1 else "images",
            "shape": list(self.input_shape_),
            "scaling": self.scaling or "none",
            "offset": offset.tolist() if is_short else None,
            "scale": scale.tolist() if is_short else None,
            "columns": self._columns() and list(self._columns()),
            "takes": self._deployed_dtype(),
        }

    def _scaled_input(self, shape=None):
        """`(x, scaled)`: the symbolic raw input, in the data's shape, and the scaled one, in `shape`, by default the data's."""
        x = scaled = keras.Input(self.input_shape_, dtype=self._deployed_dtype(), name="x")
        if self.scaling is not None:
            scaled = preparation.scaled(x, self.center_, self.scale_)
        return x, _reshaped(scaled, shape or self.input_shape_)

    def _units(self):
        """Of `kerasae.functions.Function`, for what is given back in the data's units."""
        return None if self.scaling is None else (self.center_, self.scale_)

    def _unscaled_output(self, reconstruction):
        """A symbolic reconstruction in the data's units and shape."""
        x = _reshaped(reconstruction, self.input_shape_)
        if self.scaling is None:
            return x
        return preparation.unscaled(x, self.center_, self.scale_, self._deployed_dtype())


def _by_rows(function, X, dtype="float32"):
    """A function of rows, in a type: its own numbers are float64, which for all images at once would be much memory."""
    x = np.empty(X.shape, dtype)
    for start in range(0, len(X), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        x[rows] = function(X[rows])
    return x


def _reshaped(tensor, shape):
    return tensor if tuple(tensor.shape[1:]) == tuple(shape) else keras.layers.Reshape(shape)(tensor)

"""The layers of the anomaly detector: what prepares images, and relative distances.

None passes a mask on: each mixes all entries of an example, which has no steps that could be masked. Keras warns where a mask is lost.
"""

import keras
import numpy as np
from keras import ops

from kerasae import checks

_ROWS_AT_ONCE = 256
# Far beyond any data, where a square still fits into float32.
_FARTHEST = 1e6
# Bandwidths by default: how many, the largest, and bounds of the smallest, which the distance of this neighbour gives.
_NUM_BANDWIDTHS, _LARGEST_BANDWIDTH, _SMALLEST_BANDWIDTHS, _NEIGHBOUR = 5, 4.0, (0.01, 0.5), 5
# Neighbours that say what is usual around an example, and the share that the mean over all examples has in it.
_NUM_NEIGHBOURS, _SHRINKAGE = 10, 0.1
# So many more are measured exactly, since rounding may have put one of the neighbours behind them.
_SPARE_NEIGHBOURS = 6


def fitted_distance(x, references, bandwidths=None):
    """A layer of relative distances, and these of the examples that it was fitted to.

    Args:
        x: float32 examples, `(R, features)`.
        references: what stands for each of them, of the same shape.
        bandwidths: list of s. Default: chosen.

    Returns:
        `(layer, distances)`, a `RelativeDistance` and, of shape `(R,)`, what it gives for x, each without its own reference.
    """
    own = np.arange(len(x), dtype="int32")
    starts = range(0, len(x), _ROWS_AT_ONCE)
    if bandwidths is None:
        # A thousand rows, at random as they come, tell the median.
        squares = np.concatenate(
            [_squares(_clipped(x[i : i + 250]), references, own[i : i + 250]) for i in range(0, min(len(x), 1000), 250)]
        )
        rank = min(_NEIGHBOUR, max(len(x) - 1, 1)) - 1
        neighbour = np.median(np.partition(squares, rank, axis=1)[:, rank])
        smallest = np.clip(np.sqrt(neighbour / x.shape[1]), *_SMALLEST_BANDWIDTHS)
        bandwidths = [float(s) for s in np.geomspace(smallest, _LARGEST_BANDWIDTH, _NUM_BANDWIDTHS)]
    layer = RelativeDistance(references.shape, bandwidths, name="relative_distance")
    layer.references.assign(references)
    parts = [layer.distances(*(part[i : i + _ROWS_AT_ONCE] for part in (x, own))) for i in starts]
    distances, nearby, neighbours = (np.concatenate(part) for part in zip(*parts, strict=True))
    # Where all examples are one, nothing is a unit, and 1 is as good as any.
    usual = _SHRINKAGE * nearby.mean() + (1 - _SHRINKAGE) * nearby
    layer.usual.assign(np.where(usual > 1e-6, usual, 1.0))
    local = nearby / layer.usual.numpy()[neighbours].mean(axis=1)
    means = np.append(distances.mean(axis=0), local.mean())
    layer.units.assign(np.where(means > 1e-6, means, 1.0))
    return layer, layer.largest(distances, nearby, neighbours).numpy()


@keras.saving.register_keras_serializable("kerasae")
class RelativeDistance(keras.layers.Layer):
    """`max(max_s D_s(x), L(x) max(1, D_min(x)))`, as in `AnomalyDetector`; references, their usual distances and all units are weights.

    Args:
        shape: of the weight `references`: (R, features).
        bandwidths: list of s, above 0, the smallest first; `units` holds the mean distance at each, and the mean local one.

    Returns:
        Shape `(batch,)` for x of shape `(batch, features)`.
    """

    def __init__(self, shape, bandwidths, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.bandwidths = checks.positive_ints(shape, "shape"), list(bandwidths)
        self.references = self.add_weight(shape=self.shape, trainable=False, initializer="zeros", name="references")
        self.usual = self.add_weight(shape=self.shape[:1], trainable=False, initializer="ones", name="usual")
        units = (len(self.bandwidths) + 1,)
        self.units = self.add_weight(shape=units, trainable=False, initializer="ones", name="units")
        self.built = True

    def call(self, x):
        return self.largest(*self.distances(x))

    def distances(self, x, own=None):
        """`d_s(x)`, `(batch, bandwidths)`; `a(x)`, `(batch,)`, and the numbers of its k neighbours, `(batch, k)`.

        With `own`, integers `(batch,)`, without the references of these numbers.
        """
        x = _clipped(x)
        squares = _squares(x, self.references, own)
        others = max(self.shape[0] - 1, 1)
        k, num_near = min(_NUM_NEIGHBOURS, others), min(_NUM_NEIGHBOURS + _SPARE_NEIGHBOURS, others)
        negative, near = ops.top_k(-squares, num_near)
        # What is near is measured again, without the rounding of large squares: it would be most of a small distance.
        exact = ops.stack([_square(x, ops.take(self.references, near[:, i], axis=0)) for i in range(num_near)], axis=1)
        negative_exact, places = ops.top_k(-exact, k)
        nearest, neighbours = -negative_exact[:, :1], ops.take_along_axis(near, places, axis=1)
        # ln sum exp(-d / 2 s^2), with the nearest taken out, is finite at any distance. Those near count once, by their exact squares,
        # and so do others as far as the last of them.
        last = -negative[:, -1:]
        is_near = squares <= last
        as_far = ops.sum(ops.cast(is_near, "float32"), axis=1) - num_near
        further = ops.where(is_near, np.inf, squares) - nearest
        means = []
        for s in self.bandwidths:
            near_sum, far_sum, last_one = (
                ops.exp(d * (-0.5 / s**2)) for d in (exact - nearest, further, last - nearest)
            )
            total = ops.sum(near_sum, axis=1) + ops.sum(far_sum, axis=1) + as_far * last_one[:, 0]
            means.append(total / self.shape[0])
        squared = nearest - 2.0 * np.square(self.bandwidths).astype("float32") * ops.log(ops.stack(means, axis=1))
        return ops.sqrt(squared), ops.mean(ops.sqrt(-negative_exact), axis=1), neighbours

    def largest(self, distances, nearby, neighbours):
        """The score, `(batch,)`, of what `distances` gives."""
        relative = distances / self.units[:-1]
        local = nearby / ops.mean(ops.take(self.usual, neighbours, axis=0), axis=1) / self.units[-1]
        return ops.maximum(ops.max(relative, axis=1), local * ops.maximum(relative[:, 0], 1.0))

    def compute_output_shape(self, x_shape):
        return x_shape[:1]

    def get_config(self):
        return {**super().get_config(), "shape": self.shape, "bandwidths": self.bandwidths}


def _clipped(x):
    return ops.clip(ops.cast(x, "float32"), -_FARTHEST, _FARTHEST)


def _square(x, references):
    return ops.sum(ops.square(x - references), axis=1)


def _squares(x, references, own=None):
    """Squared distances, `(batch, R)`; that of the reference with the number `own` is beyond all others, unless there is no other."""
    num_references, features = references.shape
    # ||x - r||^2 = ||x||^2 - 2 x r + ||r||^2: one product. Rounding can make it negative.
    products = ops.matmul(x, ops.transpose(references))
    squares = ops.sum(ops.square(x), axis=1, keepdims=True) + ops.sum(ops.square(references), axis=1)
    squares = ops.maximum(squares - 2.0 * products, 0.0)
    if own is not None and num_references > 1:
        is_own = ops.expand_dims(own, 1) == ops.arange(num_references, dtype="int32")
        squares = ops.where(is_own, 4.0 * features * _FARTHEST**2, squares)
    return squares


@keras.saving.register_keras_serializable("kerasae")
class GaussianBlur(keras.layers.Layer):
    """Gaussian blur of images, `(batch, height, width[, channels])`, mirrored at the edges.

    Args:
        stddev: in pixels, at least 0; the kernel ends at three of them.
    """

    def __init__(self, stddev, **kwargs):
        super().__init__(**kwargs)
        self.stddev = checks.real_number(stddev, "stddev", minimum=0)

    def call(self, x):
        shape = tuple(x.shape[1:])
        # A mirror is shorter than what it shows.
        radius = min(round(3 * self.stddev), shape[0] - 1, shape[1] - 1)
        if radius == 0:
            return ops.cast(x, "float32")
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / self.stddev) ** 2)
        kernel = (kernel / kernel.sum()).astype("float32")
        # (batch, height, width) -> (batch, height, width, channels)
        x = ops.reshape(ops.cast(x, "float32"), (-1, *shape[:2], shape[2] if len(shape) == 3 else 1))
        x = ops.pad(x, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")
        channels = x.shape[-1]
        for axes in ((-1, 1), (1, -1)):
            weights = np.tile(kernel.reshape(*axes, 1, 1), (1, 1, channels, 1))
            x = ops.depthwise_conv(x, weights, padding="valid")
        return ops.reshape(x, (-1, *shape))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}


@keras.saving.register_keras_serializable("kerasae")
class ContrastNormalization(keras.layers.Layer):
    """Each example less its mean, over its root mean square: `(x - mean) / sqrt(variance + 1e-6)`."""

    def call(self, x):
        axes = tuple(range(1, len(x.shape)))
        x = x - ops.mean(x, axis=axes, keepdims=True)
        # With pixels in [0, 1], 1e-6 is far below the contrast of one grey level in a whole image; a blank image stays 0.
        return x / ops.sqrt(ops.mean(ops.square(x), axis=axes, keepdims=True) + 1e-6)

    def compute_output_shape(self, input_shape):
        return input_shape

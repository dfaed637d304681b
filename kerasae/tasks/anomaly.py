"""Anomaly detection in tables and images."""

import copy
import numbers

import keras
import numpy as np
from keras import ops
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from kerasae import checks
from kerasae.tasks.base import AutoencoderEstimator, DeployedPart, run

# The share of new normal examples that `predict` may call anomalies by default.
_FALSE_ALARMS = 0.05
_ROWS_AT_ONCE = 256
# Far beyond any data, where a square still fits into float32.
_FARTHEST = 1e6
# Bandwidths by default: how many, the largest, and bounds of the smallest, which the distance of this neighbour gives.
_NUM_BANDWIDTHS, _LARGEST_BANDWIDTH, _SMALLEST_BANDWIDTHS, _NEIGHBOUR = 5, 4.0, (0.01, 0.5), 5
# Neighbours that say what is usual around an example, and the share that the mean over all examples has in it.
_NUM_NEIGHBOURS, _SHRINKAGE = 10, 0.1


class AnomalyDetector(OutlierMixin, AutoencoderEstimator):
    """Finds anomalies by their distance from what autoencoders can reconstruct.

    Autoencoders `x -> g(f(x))` are fitted, and R of the training examples become references: r_i lies half-way between x_i and the mean of
    its reconstructions, nearer to the surface that was learned, and not so far from x_i that neighbours among many can't be told apart.
    The free energy of an example's distances from them,

        F_s(x) = -s^2 ln 1/R sum_i exp(-||x - r_i||^2 / (2 s^2)),

    is up to a constant `-s^2 ln p(x)` under the density `1/R sum_i N(x; r_i, s^2 I)`. `d_s(x) = sqrt(2 F_s(x))` is a distance: for a small
    bandwidth s from the nearest reference (local anomalies), for a large one the root mean square of the distances from all of them
    (global ones, which a cluster of anomalies in the training data can't hide). Where the data are dense, a smaller distance is odd
    already. The local distance tells that,

        l(x) = a(x) / mean_{j in N(x)} (0.9 a(x_j) + 0.1 mean_i a(x_i)),

    with N(x) the 10 nearest references and a(x) the mean distance from them: how far off x lies, compared with its neighbours. In units of
    the means over the training examples, each without its own reference,

        D_s(x) = d_s(x) / mean_i d_s(x_i),    L(x) = l(x) / mean_i l(x_i),

    they compare, and what is odd at any scale is odd: with m the smallest bandwidth, the score is

        -max(max_s D_s(x), L(x) max(1, D_m(x))).

    Higher is more normal; what lies as far off as training examples do on average has about -1. Training examples lie near their own
    references, so that small bandwidths speak of new examples alone; among the training examples the larger ones and L find anomalies.

    Distances need comparable features. A table's columns are standardised. An image is blurred, so that strokes and edges a pixel aside
    are near. A grey one's contrast is normalised to mean 0 and root mean square 1, so that little ink is not little error. The same
    defaults serve tables with anomalies among the training examples and without.

    Args:
        model: `"undercomplete"` (default), any other family, or a kerasae model of your own, of prepared examples. Prepared images are not
            in [0, 1]: a cross-entropy needs `contrast=False` if they are grey, tables for it `scaling="minmax"`.
        n_estimators: autoencoders in the ensemble, at least 1. Default: 2 for tables, 1 for images.
        latent_dim: size of the code. Default: half the columns of a table, rounded up; 32 for images.
        hidden_units: of a named family. Default: (64,) for tables; (256,) for images with `network="dense"`.
        network, model_options, batch_size, learning_rate, validation_fraction, patience, random_state, verbose: as in
            `AutoencoderEstimator`; nothing is held out by default.
        scaling: as there, or `"auto"` (default): `"standard"` for tables, `"range"` for images.
        blur: standard deviation of the Gaussian blur of images, in pixels, at least 0. Default: 1/28 of the height.
        contrast: whether the contrast of images is normalised: True, False, or `"auto"` (default), grey images alone, since brightness and
            colour are what tells photos apart.
        bandwidths: s, above 0, in the units of scaled features, one or several; or `"auto"` (default): five in geometric progression up to
            4, from the median distance of the training examples' fifth neighbours over the root of the number of features, or from 0.01
            or 0.5 if it lies below or above these.
        n_references: R, at least 1; at most as many as there are rows. Default: 20,000 for tables, 4,000 for images.
        max_samples: rows an epoch of each autoencoder, drawn at random once; fewer rows are repeated, so that training is as long on small
            tables. Default 6400.
        epochs: passes over `max_samples` rows. Default 20, or 1,000 steps of 128 rows.
        contamination: what `predict` calls an anomaly. `"auto"` (default): what lies further off than 95 % of the training examples do when
            each is scored without its own reference, as a new example is, so that about 5 % of new normal ones are called anomalies
            too. Or the share of the training examples, in (0, 0.5], that are to be called anomalies, as elsewhere in scikit-learn: they lie
            near their own references, so that with few of them this is far too strict for new examples.

    Attributes:
        estimators_: the fitted kerasae models, of prepared examples.
        scorer_: Keras model from scaled examples to scores.
        bandwidths_: list of the bandwidths.
        offset_: score below which an example is an anomaly.

    Raises:
        ValueError: on NaN or infinity, fewer than 2 rows, another number of columns than in `fit`, bad options.

    Example:

    ```python
    rng = np.random.default_rng(0)
    normal, strange = rng.normal(size=(500, 4)), rng.normal(4, 1, size=(5, 4))
    detector = kerasae.tasks.AnomalyDetector(epochs=2, random_state=0).fit(normal)
    detector.predict(strange)  # -1 for anomalies, +1 for normal examples
    ```

    Reference:
        Distance from reconstructions: Sakurada and Yairi 2014, "Anomaly Detection Using Autoencoders with Nonlinear Dimensionality
        Reduction". Densities: Parzen 1962. Local distances: Breunig et al. 2000,
        "LOF: Identifying Density-Based Local Outliers"; without reachability: Schubert et al. 2014, "Local Outlier Detection
        Reconsidered". Ensembles of autoencoders: Chen et al. 2017, "Outlier Detection with Autoencoder Ensembles".
        Contrast: Goodfellow et al. 2016, "Deep Learning", section 12.2.1.
    """

    def __init__(
        self,
        model="undercomplete",
        *,
        n_estimators=None,
        latent_dim=None,
        hidden_units=None,
        network="dense",
        model_options=None,
        scaling="auto",
        blur=None,
        contrast="auto",
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
        super().__init__(
            model,
            latent_dim=latent_dim,
            hidden_units=hidden_units,
            network=network,
            model_options=model_options,
            scaling=scaling,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            patience=patience,
            random_state=random_state,
            verbose=verbose,
        )
        self.n_estimators = n_estimators
        self.blur = blur
        self.contrast = contrast
        self.bandwidths = bandwidths
        self.n_references = n_references
        self.max_samples = max_samples
        self.contamination = contamination

    def fit(self, X, y=None):
        """Fits the ensemble, and the threshold of `predict`.

        Args:
            X: table (n, columns) or images (n, height, width[, channels]), finite; with or without anomalies.
            y: ignored.
        """
        X = self._validate(X, reset=True)
        if X.ndim > 4:
            raise ValueError(f"X must be a table or images, (n, height, width[, channels]). Received shape: {X.shape}")
        is_table = X.ndim == 2
        n_estimators = self.n_estimators
        if n_estimators is None:
            n_estimators = 2 if is_table else 1
        n_estimators = checks.positive_int(n_estimators, "n_estimators")
        max_samples = checks.positive_int(self.max_samples, "max_samples")
        n_references = self.n_references
        if n_references is None:
            n_references = 20_000 if is_table else 4000
        n_references = min(checks.positive_int(n_references, "n_references"), len(X))
        bandwidths = self._bandwidths()
        contamination = self.contamination
        if not (isinstance(contamination, str) and contamination == "auto"):
            contamination = checks.real_number(contamination, "contamination", minimum=0, maximum=0.5, exclusive=True)

        x = self._fit_scaling(X)
        preparation = self._preparation()
        rng = np.random.default_rng(self._seed())
        member = self._with_defaults(is_table)

        def prepared(rows):
            return x[rows] if preparation is None else run(preparation, x[rows])

        known = prepared(rng.permutation(len(x))[:n_references])
        self.estimators_, reconstructed = [], 0.0
        for _ in range(n_estimators):
            distinct = prepared(rng.permutation(len(x))[:max_samples])
            rows = np.arange(max_samples) % len(distinct)
            model = member._fit_model(distinct[rows], seed=int(rng.integers(np.iinfo(np.int32).max)))
            reconstruction = model.reconstruction_of(run(model.decoder, model.code_of(run(model.encoder, known))))
            self.estimators_.append(model)
            reconstructed += reconstruction.reshape(n_references, -1) / n_estimators
        known = known.reshape(n_references, -1)
        layer, as_new = fitted_distance(known, (known + reconstructed) / 2, bandwidths)
        self.bandwidths_ = list(layer.bandwidths)
        scaled = keras.Input(self.input_shape_, name="scaled")
        flat = scaled if preparation is None else keras.layers.Flatten()(preparation(scaled))
        self.scorer_ = keras.Model(scaled, -layer(flat), name="scorer")
        if contamination == "auto":
            self.offset_ = float(np.quantile(-as_new, _FALSE_ALARMS))
        else:
            self.offset_ = float(np.quantile(run(self.scorer_, x), contamination))
        return self

    def score_samples(self, X):
        """Scores, `(n,)`: minus the largest relative distance; higher is more normal."""
        check_is_fitted(self)
        return run(self.scorer_, self._scale(self._validate(X))).astype("float64")

    def decision_function(self, X):
        """`score_samples(X) - offset_`, `(n,)`: below 0 for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """+1 for normal examples, -1 for anomalies, `(n,)`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def deployed_parts(self):
        """`score_samples`, from raw examples to scores."""
        check_is_fitted(self)
        x = keras.Input(self.input_shape_, name="x")
        scaled = x
        if self.scaling is not None:
            # Two steps, so that a large common offset goes before anything is rounded.
            scaled = (x - self.center_.astype("float32")) / self.scale_.astype("float32")
        return [
            DeployedPart(
                "score_samples",
                "from examples to scores",
                keras.Model(x, self.scorer_(scaled)),
                "score",
                f"minus the largest relative distance from the references; higher is more normal, below {self.offset_:.6g} is an anomaly",
                self.score_samples,
            )
        ]

    # -- The parts ---------------------------------------------------------------------------------------------------------------------

    def _fit_scaling(self, X):
        if not (isinstance(self.scaling, str) and self.scaling == "auto"):
            return super()._fit_scaling(X)
        resolved = copy.copy(self)
        resolved.scaling = "standard" if X.ndim == 2 else "range"
        x = resolved._fit_scaling(X)
        self.center_, self.scale_ = resolved.center_, resolved.scale_
        return x

    def _with_defaults(self, is_table):
        """A copy whose model's options are all filled in."""
        member = copy.copy(self)
        if member.latent_dim is None:
            member.latent_dim = (self.input_shape_[0] + 1) // 2 if is_table else 32
        if member.hidden_units is None and self.network == "dense" and self.model != "linear":
            member.hidden_units = (64,) if is_table else (256,)
        return member

    def _preparation(self):
        """Network from scaled to prepared images; None for tables."""
        if len(self.input_shape_) == 1:
            return None
        blur = self.input_shape_[0] / 28 if self.blur is None else checks.real_number(self.blur, "blur", minimum=0)
        is_grey = len(self.input_shape_) == 2 or self.input_shape_[2] == 1
        contrast = is_grey if isinstance(self.contrast, str) and self.contrast == "auto" else self.contrast
        if not isinstance(contrast, (bool, np.bool_)):
            raise ValueError(f'`contrast` must be True, False or "auto". Received: {self.contrast!r}')
        x = keras.Input(self.input_shape_, name="x")
        prepared = GaussianBlur(blur, name="blur")(x)
        if contrast:
            prepared = ContrastNormalization(name="contrast")(prepared)
        return keras.Model(x, prepared, name="preparation")

    def _bandwidths(self):
        """The bandwidths, checked; None where they are to be chosen."""
        bandwidths = self.bandwidths
        if isinstance(bandwidths, str):
            checks.choice(bandwidths, "bandwidths", ("auto",))
            return None
        if isinstance(bandwidths, numbers.Real):
            bandwidths = (bandwidths,)
        bandwidths = sorted(checks.real_number(s, "bandwidths", minimum=0, exclusive=True) for s in bandwidths)
        if not bandwidths:
            raise ValueError("`bandwidths` must hold at least one number above 0. Received none.")
        return bandwidths


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
            [_squares(x[i : i + 250], references, own[i : i + 250]) for i in range(0, min(len(x), 1000), 250)]
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
        squares = _squares(x, self.references, own)
        k = min(_NUM_NEIGHBOURS, max(self.shape[0] - 1, 1))
        negative, neighbours = ops.top_k(-squares, k)
        nearest = -negative[:, :1]
        # ln sum exp(-d / 2 s^2), with the nearest taken out, is finite at any distance.
        further = squares - nearest
        means = [ops.mean(ops.exp(further * (-0.5 / s**2)), axis=1) for s in self.bandwidths]
        squared = nearest - 2.0 * np.square(self.bandwidths).astype("float32") * ops.log(ops.stack(means, axis=1))
        return ops.sqrt(squared), ops.mean(ops.sqrt(-negative), axis=1), neighbours

    def largest(self, distances, nearby, neighbours):
        """The score, `(batch,)`, of what `distances` gives."""
        relative = distances / self.units[:-1]
        local = nearby / ops.mean(ops.take(self.usual, neighbours, axis=0), axis=1) / self.units[-1]
        return ops.maximum(ops.max(relative, axis=1), local * ops.maximum(relative[:, 0], 1.0))

    def compute_output_shape(self, x_shape):
        return x_shape[:1]

    def get_config(self):
        return {**super().get_config(), "shape": self.shape, "bandwidths": self.bandwidths}


def _squares(x, references, own=None):
    """Squared distances, `(batch, R)`; that of the reference with the number `own` is beyond all others, unless there is no other."""
    num_references, features = references.shape
    x = ops.clip(ops.cast(x, "float32"), -_FARTHEST, _FARTHEST)
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

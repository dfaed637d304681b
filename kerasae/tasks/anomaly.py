"""Anomaly detection in tables and images."""

import copy
import numbers
import warnings

import keras
import numpy as np
from sklearn.base import OutlierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_is_fitted

from kerasae import checks
from kerasae.functions import by_name, of_network
from kerasae.tasks.anomaly_layers import ContrastNormalization, GaussianBlur, fitted_distance
from kerasae.tasks.base import AutoencoderEstimator, assign
from kerasae.tasks.batches import run

# The share of new normal examples that `predict` may call anomalies by default.
FALSE_ALARMS = 0.05


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
        assign(self, locals())

    def fit(self, X, y=None):
        """Fits the ensemble, and the threshold of `predict`.

        Args:
            X: table (n, columns) or images (n, height, width[, channels]), finite; with or without anomalies.
            y: ignored.
        """
        X = self._validate(X, reset=True)
        if X.ndim > 4:
            raise ValueError(f"X must be a table or images, (n, height, width[, channels]). Received shape: {X.shape}")
        contamination = self.contamination
        if not (isinstance(contamination, str) and contamination == "auto"):
            contamination = checks.real_number(contamination, "contamination", minimum=0, maximum=0.5, exclusive=True)
        x = self._fit_scaling(X)
        as_new = self._fit_scorer(x, self._preparation())[0]
        if contamination == "auto":
            self.offset_ = float(np.quantile(-as_new, FALSE_ALARMS))
        else:
            self.offset_ = float(np.quantile(run(self.scorer_, x), contamination))
        self._check_offset()
        return self

    def _fit_scorer(self, x, preparation=None, held_out=None):
        """Fits the ensemble and `scorer_` to scaled examples.

        Args:
            x: float32, in the data's shape.
            preparation: network from scaled to prepared examples.
            held_out: bool `(n,)`, examples that are scored by the others' references.

        Returns:
            `(distances, distances of those held out or None)`: of the references' examples, each without its own, and of x[held_out].
        """
        is_table = x.ndim == 2
        n_estimators = self.n_estimators
        if n_estimators is None:
            n_estimators = 2 if is_table else 1
        n_estimators = checks.positive_int(n_estimators, "n_estimators")
        max_samples = checks.positive_int(self.max_samples, "max_samples")
        n_references = self.n_references
        if n_references is None:
            n_references = 20_000 if is_table else 4000
        n_references = min(checks.positive_int(n_references, "n_references"), len(x))
        bandwidths = self._bandwidths()
        rng = np.random.default_rng(self._seed())
        member = self._with_defaults(is_table)

        def prepared(rows):
            return x[rows] if preparation is None else run(preparation, x[rows])

        rows_known = rng.permutation(len(x))[:n_references]
        known = prepared(rows_known)
        self.estimators_, reconstructed = [], 0.0
        for _ in range(n_estimators):
            distinct = prepared(rng.permutation(len(x))[:max_samples])
            model = member._fit_model(distinct, seed=int(rng.integers(np.iinfo(np.int32).max)), num_rows=max_samples)
            reconstruction = model.reconstruction_of(run(model.decoder, model.code_of(run(model.encoder, known))))
            self.estimators_.append(model)
            reconstructed += reconstruction.reshape(n_references, -1) / n_estimators
        known = known.reshape(n_references, -1)
        references = (known + reconstructed) / 2
        layer, as_new = fitted_distance(known, references, bandwidths)
        self.bandwidths_ = list(layer.bandwidths)
        shape = x.shape[1:]
        scaled = keras.Input(shape, name="scaled")
        flat = scaled if preparation is None else keras.layers.Flatten()(preparation(scaled))
        self.scorer_ = keras.Model(scaled, -layer(flat), name="scorer")
        if held_out is None:
            return as_new, None
        others = ~held_out[rows_known]
        of_others, _ = fitted_distance(known[others], references[others], self.bandwidths_)
        of_others.units.assign(layer.units)  # as the scores will be
        return as_new, run(keras.Sequential([keras.Input(shape), of_others]), x[held_out])

    def _check_offset(self):
        """Raises on a threshold that no score is below."""
        if not np.isfinite(self.offset_):
            raise ValueError(
                f"The detector's threshold is {self.offset_}, below which it would call no example an anomaly. Fit it again: to other "
                "`scaling`, or a lower `learning_rate`."
            )

    def score_samples(self, X):
        """Scores, `(n,)`: minus the largest relative distance; higher is more normal."""
        check_is_fitted(self)
        return run(self.scorer_, self._scale(self._validate(X))).astype("float64")

    def decision_function(self, X):
        """`score_samples(X) - offset_`, `(n,)`: below 0 for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """+1 for normal examples, -1 for anomalies, `(n,)`."""
        check_is_fitted(self)
        self._check_offset()
        return np.where(self.decision_function(X) < 0, -1, 1)

    def score(self, X, y):
        """The area under the ROC curve of `score_samples`: 1 where all anomalies score lower, 0.5 is chance. `GridSearchCV` asks for it.

        Args:
            X: as in `fit`.
            y: labels as `predict` gives them: above 0 for normal examples, below for anomalies. Of 0 and 1, both of which are in use for
                anomalies, 1 is taken for normal, and a warning says so.
        """
        return self._roc_auc(y, self.score_samples(X))

    def _roc_auc(self, y, scores):
        is_normal = np.asarray(y) > 0
        if set(np.unique(y)) == {0, 1}:
            warnings.warn("`y` holds 0 and 1: 1 is taken for normal. -1 and 1 leave no doubt.", stacklevel=2)
        if is_normal.all() or not is_normal.any():
            raise ValueError(
                f"`y` must hold 1 for normal examples and -1 for anomalies, both. Received: {np.unique(y).tolist()[:5]}. In a search over "
                "options, let each part hold both: GridSearchCV(..., cv=StratifiedKFold())."
            )
        return roc_auc_score(is_normal, scores)

    def functions(self):
        """`score_samples`, from raw examples to scores; see `AutoencoderEstimator.functions`."""
        check_is_fitted(self)
        x, scaled = self._scaled_input()
        meaning = f"minus the largest relative distance from the references; higher is more normal, below {self.offset_:.6g} is an anomaly"
        network = keras.Model(x, self.scorer_(scaled))
        return by_name(
            of_network(
                "score_samples", "from examples to scores", network, ("score", meaning), self._unnamed().score_samples
            )
        )

    def deployed_preparation(self):
        facts = {
            **super().deployed_preparation(),
            "scaling": self._resolved_scaling(len(self.input_shape_) == 1) or "none",
        }
        network = self._preparation()
        if network is None:
            return facts
        names = [layer.name for layer in network.layers]
        return {**facts, "blur": network.get_layer("blur").stddev, "contrast": "contrast" in names}

    # -- The parts ---------------------------------------------------------------------------------------------------------------------

    def _resolved_scaling(self, is_table):
        if isinstance(self.scaling, str) and self.scaling == "auto":
            return "standard" if is_table else "range"
        return self.scaling

    def _fit_scaling(self, X):
        resolved = copy.copy(self)
        resolved.scaling = self._resolved_scaling(X.ndim == 2)
        if resolved.scaling == self.scaling:
            return super()._fit_scaling(X)
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

"""Imputation of missing values."""

import math
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from scipy import special, stats
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from kerasae import checks, networks
from kerasae.layers import random_seed
from kerasae.models import Autoencoder
from kerasae.tasks.base import AutoencoderEstimator, DeployedPart, run

# Rows that are imputed at a time: each is decoded `n_samples` times.
_ROWS_AT_ONCE = 64
# Bounds of what the decoder gives before its exponential: scales from e^-6 to e^3 standard deviations.
_LOG_SCALES = (-6.0, 3.0)
# Of the factor analysis: numbers of factors tried, rows that are enough, rounds of expectation and maximisation, the prior's weight, the
# least variance of noise, and the share of observed entries that is held out to choose the number of factors.
_RANKS = (1, 2, 3, 4, 5, 6, 8, 10)
_FACTOR_ROWS = 2000
_ROUNDS = 60
_PRIOR = 3.0
_LEAST_NOISE = 0.01
_HELD_OUT = 0.15


class Imputer(OneToOneFeatureMixin, TransformerMixin, AutoencoderEstimator):
    """Fills missing values by a variational autoencoder that is trained on incomplete rows.

    With o the observed entries of a row x and m its missing ones, a model `p(x|z) = prod_j t(x_j; mu_j(z), sigma_j(z), nu_j)` (Student's t)
    and an encoder `q(z|o)`, `fit` maximises

        E ln 1/K sum_k w_k,    w_k = p(o|z_k) p(z_k) / q(z_k|o),    z_k ~ q(z|o),

    a lower bound of `ln p(o)`: nothing is imputed in training. It starts from the linear model, factor analysis, and learns what that
    misses. With `x_j ~ N(a_j + w_j . z, v_j)`, fitted to the observed entries by expectation maximisation, and networks f whose output
    layers begin at 0,

        decoder:  mu = W z + a + f_1(z),    ln sigma = U z + b + f_2(z),    begun at W = w, U = 0, b = ln(v) / 2
        encoder:  mean = E_w[z|o] + f_3(x', o),    ln variance = ln Var_w[z|o] + f_4(x', o)

    where E_w and Var_w are the factor analysis's exact posterior (its w, a and v stay), and x' is the row with its expectations for what
    is missing. The number of factors, at most latent_dim and 10, is the one whose expectations are nearest to 15% of the observed
    entries, held out from it. `transform` gives the conditional mean of what is missing, by
    self-normalised importance sampling, `E[m|o] ~ sum_l w_l mu_m(z_l) / sum_l w_l`, with the same S noise vectors for every row and every
    call, so that a row's answer depends on nothing else. `sample` draws from `p(m|o)`, for multiple imputation. Observed entries are never
    altered.

    Args:
        latent_dim: size of z, at least 1. Default 10.
        hidden_units: of encoder and, in reverse, decoder. Default (128, 128, 128), as in the paper.
        activation: of the hidden layers. Default `"tanh"`, as in the paper.
        n_importance_samples: K, at least 1. Default 20.
        n_samples: S, at least 1. Default 500.
        corruption_rate: probability, in [0, 1), that an observed entry is hidden from the encoder in a step of training. It stays in the
            bound, which holds for any q. Not in the paper; for rows that will have far more gaps than those of `fit`. Default 0.
        scaling, epochs, batch_size, learning_rate, validation_fraction, patience, random_state, verbose: as in `AutoencoderEstimator`; the
            rate falls to 0 along a cosine.

    Attributes:
        loadings_, mean_, noise_variance_: the factor analysis's w, `(columns, factors)`, a and v, of scaled rows.
        model_: the fitted `IncompleteDataAutoencoder`, of scaled rows.
        network_: Keras model from scaled rows with NaN to imputed ones.

    Raises:
        ValueError: on infinity, fewer than 2 rows, another number of columns than in `fit`, a column of `fit` without any observed value,
            bad options.

    Example:

    ```python
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) + rng.normal(0, 0.3, size=(200, 3))
    x[rng.random(x.shape) < 0.3] = np.nan
    imputer = kerasae.tasks.Imputer(epochs=2, random_state=0)
    complete = imputer.fit_transform(x)
    five = imputer.sample(x, 5)  # (5, 200, 3)
    ```

    Reference:
        Mattei and Frellsen 2019, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets", equations 4, 12 and
        algorithm 1. Deviations: the factor analysis (there, f alone, and 0 for what is missing); the encoder sees the mask; nu is one
        number a column; `corruption_rate`; the noise of `transform` is a scrambled Sobol sequence instead of independent draws.
        Rubin and Thayer 1982, "EM algorithms for ML factor analysis"; here with a normal prior on w.
    """

    _rate_falls: ClassVar = True

    def __init__(
        self,
        *,
        latent_dim=10,
        hidden_units=(128, 128, 128),
        activation="tanh",
        n_importance_samples=20,
        n_samples=500,
        corruption_rate=0.0,
        scaling="standard",
        epochs=300,
        batch_size=64,
        learning_rate=1e-3,
        validation_fraction=0.0,
        patience=50,
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            latent_dim=latent_dim,
            hidden_units=hidden_units,
            scaling=scaling,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            patience=patience,
            random_state=random_state,
            verbose=verbose,
        )
        self.activation = activation
        self.n_importance_samples = n_importance_samples
        self.n_samples = n_samples
        self.corruption_rate = corruption_rate

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X, y=None):
        """Fits the model.

        Args:
            X: table (n, columns) with NaN for what is missing; every column has a value in some row.
            y: ignored.
        """
        X = self._validate(X, reset=True, images=False, ensure_all_finite="allow-nan")
        empty = np.flatnonzero(np.isnan(X).all(axis=0))
        if len(empty):
            names = list(getattr(self, "feature_names_in_", np.arange(X.shape[1]))[empty][:5])
            raise ValueError(
                f"Each column must have an observed value to learn from. Without any: {len(empty)}, the first of them {names}. "
                "Drop such columns."
            )
        rate = checks.real_number(self.corruption_rate, "corruption_rate", minimum=0)
        if rate >= 1:
            raise ValueError(f"`corruption_rate` must lie in [0, 1). Received: {rate:g}")
        n_samples = checks.positive_int(self.n_samples, "n_samples")
        latent_dim = checks.positive_int(self.latent_dim, "latent_dim")
        pairs = _pairs(self._fit_scaling(X))
        seed = self._seed()
        self.loadings_, self.mean_, self.noise_variance_ = _fit_factors(pairs, latent_dim, seed)
        self.model_ = self._fit_model(pairs, seed=seed, corrupt=_hide(rate) if rate else None)
        self.network_ = self._imputation_network(n_samples, seed)
        return self

    def transform(self, X):
        """The rows with conditional means for NaN, `(n, columns)`, in the dtype of X if that is a float's."""
        check_is_fitted(self)
        X = self._validate(X, images=False, ensure_all_finite="allow-nan")
        missing = np.isnan(X)
        incomplete = missing.any(axis=1)
        imputed = X.copy()
        if incomplete.any():
            means = self._unscale(run(self.network_, self._scale(X[incomplete]), _ROWS_AT_ONCE))
            imputed[missing] = means[missing[incomplete]]
        return imputed

    def sample(self, X, n_imputations=1, random_state=None):
        """Draws from `p(missing | observed)` by sampling importance resampling.

        For every draw one z is chosen among S, with probabilities proportional to w, then x is drawn from `p(x|z)`.

        Args:
            X: as in `transform`.
            n_imputations: how many tables to draw, at least 1.
            random_state: int, `RandomState` or None.

        Returns:
            `(n_imputations, n, columns)`; rows without NaN are n_imputations times the same.
        """
        check_is_fitted(self)
        X = self._validate(X, images=False, ensure_all_finite="allow-nan")
        n_imputations = checks.positive_int(n_imputations, "n_imputations")
        random_state = check_random_state(random_state)
        degrees = self.model_.degrees_of_freedom()
        drawn = np.repeat(X[None], n_imputations, axis=0)
        incomplete = np.flatnonzero(np.isnan(X).any(axis=1))
        for start in range(0, len(incomplete), _ROWS_AT_ONCE):
            rows = incomplete[start : start + _ROWS_AT_ONCE]
            pairs = _pairs(self._scale(X[rows]))
            z_mean, z_log_var = run(self.model_.encoder, pairs)
            noise = random_state.standard_normal((len(rows), self.n_samples, z_mean.shape[1])).astype("float32")
            z = z_mean[:, None] + np.exp(0.5 * z_log_var)[:, None] * noise
            parameters = run(self.model_.decoder, z.reshape(-1, z.shape[-1]), 4096)
            # (rows, S, columns)
            location, log_scale = np.moveaxis(parameters.reshape(len(rows), self.n_samples, -1, 2), -1, 0)
            scale = np.exp(np.clip(log_scale, *_LOG_SCALES))
            log_density = stats.t.logpdf(pairs[:, None, :, 0], degrees, location, scale)
            log_weights = (log_density * pairs[:, None, :, 1]).sum(axis=2)
            log_weights += 0.5 * (np.square(noise) + z_log_var[:, None] - np.square(z)).sum(axis=2)
            weights = special.softmax(log_weights, axis=1)
            for i, row in enumerate(rows):
                chosen = random_state.choice(self.n_samples, n_imputations, p=weights[i])
                standard_t = random_state.standard_t(degrees, (n_imputations, X.shape[1]))
                values = self._unscale(location[i, chosen] + scale[i, chosen] * standard_t)
                missing = np.isnan(X[row])
                drawn[:, row, missing] = values[:, missing]
        return drawn

    def deployed_parts(self):
        """`transform`, from raw rows with NaN to imputed ones."""
        check_is_fitted(self)
        x = keras.Input(self.input_shape_, name="x")
        scaled = x
        if self.scaling is not None:
            # Two steps, so that a large common offset goes before anything is rounded.
            scaled = (x - self.center_.astype("float32")) / self.scale_.astype("float32")
        imputed = ops.where(ops.isnan(x), self._unscaled_output(self.network_(scaled)), x)
        return [
            DeployedPart(
                "transform",
                "from rows with NaN to imputed rows",
                keras.Model(x, imputed),
                "imputed",
                "rows with conditional means for NaN",
                self.transform,
                input_meaning="rows, unscaled, with NaN for what is missing",
            )
        ]

    # -- The parts ---------------------------------------------------------------------------------------------------------------------

    def _build_model(self, input_shape, seed):
        columns, rank = self.loadings_.shape
        heads = {"z_mean": self.latent_dim, "z_log_var": self.latent_dim}
        encoder = networks.encoder(input_shape, heads, self.hidden_units, activation=self.activation)
        decoder = networks.decoder(input_shape, self.latent_dim, self.hidden_units, activation=self.activation)
        # The networks' part is 0 at first.
        for layer in (encoder.get_layer("z_mean"), encoder.get_layer("z_log_var"), decoder.get_layer("logits")):
            layer.kernel.assign(ops.zeros_like(layer.kernel))
        factors = FactorPosterior(columns, rank, self.latent_dim, name="factors")
        factors.loadings.assign(self.loadings_)
        factors.mean.assign(self.mean_)
        factors.precision.assign(1 / self.noise_variance_)
        linear = keras.layers.Dense(2 * columns, name="linear")
        pairs, z = keras.Input(input_shape, name="x"), keras.Input((self.latent_dim,), name="z")
        filled, z_mean, z_log_var = factors(pairs)
        more_mean, more_log_var = encoder(filled)
        codes = [
            keras.layers.Add(name="z_mean")([z_mean, more_mean]),
            keras.layers.Add(name="z_log_var")([z_log_var, more_log_var]),
        ]
        parameters = keras.layers.Reshape(input_shape, name="linear_reshape")(linear(z))
        parameters = keras.layers.Add(name="parameters")([parameters, decoder(z)])
        kernel = np.zeros((self.latent_dim, columns, 2))
        kernel[:rank, :, 0] = self.loadings_.T
        bias = np.stack([self.mean_, 0.5 * np.log(self.noise_variance_)], axis=-1)
        linear.set_weights([kernel.reshape(self.latent_dim, -1), bias.ravel()])
        return IncompleteDataAutoencoder(
            keras.Model(pairs, codes, name="encoder"),
            keras.Model(z, parameters, name="decoder"),
            k=self.n_importance_samples,
            seed=seed,
        )

    def _imputation_network(self, n_samples, seed):
        encoder, decoder = self.model_.encoder, self.model_.decoder
        latent_dim = decoder.inputs[0].shape[1]
        # Sobol sequences are balanced at powers of two, and have no more than 21,201 dimensions.
        sobol = stats.qmc.Sobol(latent_dim, rng=seed).random_base2(math.ceil(math.log2(n_samples)))
        noise = special.ndtri(np.clip(sobol[:n_samples], 1e-7, 1 - 1e-7))
        x = keras.Input(self.input_shape_, name="scaled")
        pairs = ObservedPairs(name="pairs")(x)
        z_mean, z_log_var = encoder(pairs)
        spread = PosteriorSamples(noise.shape, name="samples")
        spread.noise.assign(noise)
        z = spread([z_mean, z_log_var])
        mean = ImportanceWeightedMean([float(v) for v in self.model_.degrees_of_freedom()], name="mean")
        return keras.Model(x, mean([pairs, z_mean, z_log_var, z, decoder(z)]), name="imputation")


@keras.saving.register_keras_serializable("kerasae")
class IncompleteDataAutoencoder(Autoencoder):
    """A variational autoencoder of incomplete rows: minimises `-E ln 1/K sum_k p(o|z_k) p(z_k) / q(z_k|o)`, in nats per example.

    An example is `(columns, 2)`: in each column the value, 0 where it is missing, and 1 where it is observed or 0. The decoder gives
    location and ln scale of Student's t for each column; the degrees of freedom, one number a column, are trained with the rest.

    Args:
        encoder: Keras model from `(batch, columns, 2)` to `[z_mean, z_log_var]`.
        decoder: Keras model from `(batch, latent_dim)` to `(batch, columns, 2)`.
        k: K, samples an example in training, at least 1.
        seed: of the noise.

    Reference:
        Mattei and Frellsen 2019, equation 4.
    """

    term_names = ("bound_loss",)
    code_names = ("z_mean", "z_log_var")

    def __init__(self, encoder, decoder, k=20, seed=None, **kwargs):
        super().__init__(encoder, decoder, seed=seed, **kwargs)
        self.k = checks.positive_int(k, "k")
        # nu = 3 + softplus: variances are finite.
        self.raw_degrees = self.add_weight(shape=encoder.inputs[0].shape[1:2], initializer="zeros", name="raw_degrees")

    def forward(self, x, training):
        z_mean, z_log_var = self.encoder(x, training=training)
        batch, latent_dim = tf.shape(z_mean)[0], z_mean.shape[1]
        seed = random_seed(self.noise_generator(training))
        noise = tf.random.stateless_normal((self.k, batch, latent_dim), seed, alg="philox")
        # (k, batch, latent_dim)
        z = z_mean + ops.exp(0.5 * z_log_var) * noise
        parameters = self.decoder(ops.reshape(z, (-1, latent_dim)), training=training)
        parameters = ops.reshape(parameters, (self.k, -1, *parameters.shape[1:]))
        log_ratio = _log_ratio(z, z_mean, z_log_var)
        return {
            "z": z[0],
            "z_mean": z_mean,
            "reconstruction": parameters[0],
            "parameters": parameters,
            "log_ratio": log_ratio,
        }

    def terms(self, x, outputs):
        log_weights = outputs["log_ratio"] + _log_density(x, outputs["parameters"], self._degrees())
        return {"bound_loss": math.log(self.k) - ops.logsumexp(log_weights, axis=0)}

    def code_of(self, encoder_output):
        return encoder_output[0]

    def _degrees(self):
        return 3.0 + ops.softplus(self.raw_degrees)

    def degrees_of_freedom(self):
        """nu of each column, NumPy `(columns,)`."""
        return ops.convert_to_numpy(self._degrees())

    def get_config(self):
        config = super().get_config()
        del config["loss"]
        return {**config, "k": self.k}


@keras.saving.register_keras_serializable("kerasae")
class FactorPosterior(keras.layers.Layer):
    """Factor analysis of incomplete rows: `z ~ N(0, I)`, `x_j ~ N(mean_j + loadings_j . z, 1 / precision_j)`.

    From pairs, `(batch, columns, 2)`, to a list of three: the pairs with `mean_j + loadings_j . E[z|o]` for what is missing, `E[z|o]` and
    the logarithms of z's posterior variances, 0 and 0 for latents past the factors, each `(batch, latent_dim)`. The weights aren't trained.

    Args:
        columns: how many.
        rank: number of factors, at most latent_dim.
        latent_dim: size of z.
    """

    def __init__(self, columns, rank, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.columns, self.rank, self.latent_dim = checks.positive_ints((columns, rank, latent_dim), "sizes")
        self.loadings = self.add_weight(shape=(columns, rank), trainable=False, initializer="zeros", name="loadings")
        self.mean = self.add_weight(shape=(columns,), trainable=False, initializer="zeros", name="mean")
        self.precision = self.add_weight(shape=(columns,), trainable=False, initializer="ones", name="precision")
        self.built = True

    def call(self, pairs):
        values, observed = pairs[..., 0], pairs[..., 1]
        weights = observed * self.precision
        squares = ops.expand_dims(self.loadings, 2) * ops.expand_dims(self.loadings, 1)
        precision = ops.matmul(weights, ops.reshape(squares, (self.columns, -1)))
        covariance = _inverse(ops.reshape(precision, (-1, self.rank, self.rank)) + np.eye(self.rank, dtype="float32"))
        moments = ops.matmul(weights * (values - self.mean), self.loadings)
        z_mean = ops.sum(covariance * ops.expand_dims(moments, 1), axis=2)
        z_log_var = ops.log(ops.sum(covariance * np.eye(self.rank, dtype="float32"), axis=2))
        expected = self.mean + ops.matmul(z_mean, ops.transpose(self.loadings))
        filled = ops.stack([observed * values + (1.0 - observed) * expected, observed], axis=-1)
        rest = [(0, 0), (0, self.latent_dim - self.rank)]
        return [filled, ops.pad(z_mean, rest), ops.pad(z_log_var, rest)]

    def compute_output_shape(self, input_shape):
        return [input_shape, (input_shape[0], self.latent_dim), (input_shape[0], self.latent_dim)]

    def get_config(self):
        return {**super().get_config(), "columns": self.columns, "rank": self.rank, "latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable("kerasae")
class ObservedPairs(keras.layers.Layer):
    """Rows with NaN, `(batch, columns)`, as pairs of value (0 for NaN) and 1 for observed, 0 for NaN: `(batch, columns, 2)`."""

    def call(self, x):
        missing = ops.isnan(x)
        return ops.stack([ops.where(missing, ops.zeros_like(x), x), 1.0 - ops.cast(missing, "float32")], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape, 2)


@keras.saving.register_keras_serializable("kerasae")
class PosteriorSamples(keras.layers.Layer):
    """`z_l = z_mean + sigma * noise_l` for noise that is a weight: `(batch, latent_dim)` twice to `(batch * S, latent_dim)`.

    Args:
        shape: of the noise, (S, latent_dim).
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = checks.positive_ints(shape, "shape")
        self.noise = self.add_weight(shape=self.shape, trainable=False, initializer="zeros", name="noise")
        self.built = True

    def call(self, inputs):
        z_mean, z_log_var = inputs
        # (batch, 1, latent_dim) and (S, latent_dim)
        z = ops.expand_dims(z_mean, 1) + ops.expand_dims(ops.exp(0.5 * z_log_var), 1) * self.noise
        return ops.reshape(z, (-1, self.shape[1]))

    def compute_output_shape(self, input_shape):
        return (None, self.shape[1])

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


@keras.saving.register_keras_serializable("kerasae")
class ImportanceWeightedMean(keras.layers.Layer):
    """`sum_l w_l mu(z_l) / sum_l w_l` of samples z_l of the posterior: `(batch, columns)`.

    Takes `[pairs, z_mean, z_log_var, z, parameters]`, as the imputation network makes them.

    Args:
        degrees: list, the degrees of freedom of each column.
    """

    def __init__(self, degrees, **kwargs):
        super().__init__(**kwargs)
        self.degrees = list(degrees)

    def call(self, inputs):
        pairs, z_mean, z_log_var, z, parameters = inputs
        columns, latent_dim = len(self.degrees), z_mean.shape[1]
        # (batch * S, ...) -> (S, batch, ...), the order of training
        samples = ops.shape(z)[0] // ops.shape(z_mean)[0]
        z = ops.transpose(ops.reshape(z, (-1, samples, latent_dim)), (1, 0, 2))
        parameters = ops.transpose(ops.reshape(parameters, (-1, samples, columns, 2)), (1, 0, 2, 3))
        degrees = np.asarray(self.degrees, "float32")
        log_weights = _log_ratio(z, z_mean, z_log_var) + _log_density(pairs, parameters, degrees)
        weights = ops.exp(log_weights - ops.max(log_weights, axis=0, keepdims=True))
        weights = weights / ops.sum(weights, axis=0, keepdims=True)
        return ops.sum(ops.expand_dims(weights, -1) * parameters[..., 0], axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape[0][:2]

    def get_config(self):
        return {**super().get_config(), "degrees": self.degrees}


def _pairs(x):
    """What `ObservedPairs` gives, in NumPy."""
    missing = np.isnan(x)
    return np.stack([np.where(missing, 0, x), ~missing], axis=-1).astype("float32")


def _hide(rate):
    """A function that hides observed entries of a batch of pairs at random."""

    def hide(pairs, seed):
        kept = tf.random.stateless_uniform(tf.shape(pairs)[:-1], seed) >= rate
        return pairs * tf.cast(kept, tf.float32)[..., None]

    return hide


def _inverse(matrices):
    """Of matrices `I + A` with A positive semidefinite, `(batch, n, n)`, by Gauss and Jordan: ONNX has no inverse."""
    for unit in np.eye(matrices.shape[-1], dtype="float32"):
        others = np.outer(1 - unit, 1 - unit)
        row = ops.matmul(matrices, unit[:, None])
        # At least 1, so that no pivot is looked for.
        pivot = ops.sum(row * unit[:, None], axis=1, keepdims=True)
        row = row * (1 - unit)[:, None] - unit[:, None]
        matrices = matrices * others - row * ops.transpose(row, (0, 2, 1)) / pivot
    return -matrices


def _fit_factors(pairs, latent_dim, seed):
    """Loadings `(columns, factors)`, mean and variances of noise of the factor analysis that predicts held-out entries best."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(pairs))[:_FACTOR_ROWS]
    x, observed = np.moveaxis(pairs[rows].astype("float64"), -1, 0)
    held_out = (observed > 0) & (rng.random(observed.shape) < _HELD_OUT)
    errors = {}
    for rank in _RANKS:
        if rank == 1 or rank <= min(latent_dim, x.shape[1] - 1):
            loadings, mean, noise = _factor_analysis(x * ~held_out, observed * ~held_out, rank)
            z, _ = _factor_scores(x * ~held_out, observed * ~held_out, loadings, mean, noise)
            errors[rank] = np.square(x - mean - z @ loadings.T)[held_out].sum()
    return _factor_analysis(x, observed, min(errors, key=errors.get))


def _factor_scores(x, observed, loadings, mean, noise):
    """Means `(n, factors)` and covariances of the factors, given what is observed."""
    rank = loadings.shape[1]
    squares = (loadings[:, :, None] * loadings[:, None, :]).reshape(-1, rank * rank)
    covariances = np.linalg.inv(np.eye(rank) + ((observed / noise) @ squares).reshape(-1, rank, rank))
    moments = (observed * (x - mean) / noise) @ loadings
    return (covariances @ moments[..., None])[..., 0], covariances


def _factor_analysis(x, observed, rank):
    """Fits by expectation maximisation; x, `(n, columns)`, is 0 where `observed` is."""
    columns = x.shape[1]
    # The start: principal axes of the covariances of pairs of columns.
    values, vectors = np.linalg.eigh(x.T @ x / np.maximum(observed.T @ observed, 1))
    loadings = vectors[:, ::-1][:, :rank] * np.sqrt(np.maximum(values[::-1][:rank], 0.01))
    mean, noise = np.zeros(columns), np.full(columns, 0.3)
    prior = _PRIOR * np.diag([1.0] * rank + [1e-3])
    counts, squares = observed.sum(axis=0), np.square(x).sum(axis=0)
    for _ in range(_ROUNDS):
        z, covariances = _factor_scores(x, observed, loadings, mean, noise)
        # Each column's regression on [z, 1], with the moments of z's posterior.
        z = np.column_stack([z, np.ones(len(z))])
        moments = z[:, :, None] * z[:, None, :]
        moments[:, :rank, :rank] += covariances
        moments = (observed.T @ moments.reshape(len(z), -1)).reshape(columns, rank + 1, rank + 1)
        products = x.T @ z
        slopes = np.linalg.solve(moments + prior * noise[:, None, None], products[..., None])[..., 0]
        residuals = squares - 2 * (slopes * products).sum(axis=1) + np.einsum("ij,ijk,ik->i", slopes, moments, slopes)
        noise = np.maximum((residuals + 0.1 * _PRIOR) / (counts + 0.1 * _PRIOR), _LEAST_NOISE)
        loadings, mean = slopes[:, :rank], slopes[:, rank]
    # Turned so that a complete row's factors are independent.
    _, axes = np.linalg.eigh((loadings / noise[:, None]).T @ loadings)
    return loadings @ axes[:, ::-1], mean, noise


def _log_ratio(z, z_mean, z_log_var):
    """`ln p(z) - ln q(z|o)` of samples `(S, batch, latent_dim)`: `(S, batch)`; the densities' constants cancel."""
    squares = ops.square(z - z_mean) * ops.exp(-z_log_var) + z_log_var - ops.square(z)
    return 0.5 * ops.sum(squares, axis=-1)


def _log_density(pairs, parameters, degrees):
    """`ln p(o|z)` of `pairs`, (batch, columns, 2), under `parameters`, (S, batch, columns, 2): `(S, batch)`."""
    values, observed = pairs[..., 0], pairs[..., 1]
    log_scale = ops.clip(parameters[..., 1], *_LOG_SCALES)
    squares = ops.square((values - parameters[..., 0]) * ops.exp(-log_scale))
    half = 0.5 * (degrees + 1.0)
    if isinstance(degrees, np.ndarray):
        constant = special.gammaln(half) - special.gammaln(0.5 * degrees) - 0.5 * np.log(np.pi * degrees)
        constant = constant.astype("float32")
    else:
        constant = tf.math.lgamma(half) - tf.math.lgamma(0.5 * degrees) - 0.5 * ops.log(np.pi * degrees)
    log_density = constant - log_scale - half * ops.log(1.0 + squares / degrees)
    return ops.sum(observed * log_density, axis=-1)

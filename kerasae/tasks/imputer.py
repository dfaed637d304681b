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
from kerasae.distributions import log_ratio
from kerasae.functions import by_name, of_network
from kerasae.models import IncompleteDataAutoencoder
from kerasae.models.incomplete import LOG_SCALES, FactorPosterior, ObservedPairs, StudentT
from kerasae.tasks.base import AutoencoderEstimator, assign
from kerasae.tasks.batches import run
from kerasae.tasks.factor_analysis import fit_factors
from kerasae.tasks.imputer_layers import ImportanceWeightedMean, PosteriorSamples

# Rows that are imputed at a time: each is decoded `n_samples` times.
_ROWS_AT_ONCE = 64


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
    # A model of its own.
    model: ClassVar = None

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
        assign(self, locals())

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
        self._check_observed(X)
        rate = checks.real_number(self.corruption_rate, "corruption_rate", minimum=0)
        if rate >= 1:
            raise ValueError(f"`corruption_rate` must lie in [0, 1). Received: {rate:g}")
        n_samples = checks.positive_int(self.n_samples, "n_samples")
        latent_dim = checks.positive_int(self.latent_dim, "latent_dim")
        x = self._fit_scaling(X)
        seed = self._seed()
        self.loadings_, self.mean_, self.noise_variance_ = fit_factors(x, latent_dim, seed)
        self.model_ = self._fit_model(x, seed=seed, corrupt=_hide(rate) if rate else None)
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
            x = self._scale(X[rows])
            values, observed = (np.asarray(part)[:, None] for part in StudentT().observed(x))
            # Models that earlier versions pickled take pairs, and give pairs of location and ln scale.
            takes_pairs = not self.model_.takes_missing
            z_mean, z_log_var = run(
                self.model_.encoder, np.stack([values[:, 0], observed[:, 0]], -1) if takes_pairs else x
            )
            noise = random_state.standard_normal((len(rows), self.n_samples, z_mean.shape[1])).astype("float32")
            z = self.model_.posterior.sample_from((z_mean[:, None], z_log_var[:, None]), noise).numpy()
            outputs = run(self.model_.decoder, z.reshape(-1, z.shape[-1]), 4096)
            # (rows, S, columns)
            location, log_scale = (
                part.reshape(len(rows), self.n_samples, -1)
                for part in (np.moveaxis(outputs, -1, 0) if takes_pairs else outputs)
            )
            scale = np.exp(np.clip(log_scale, *LOG_SCALES))
            log_weights = (stats.t.logpdf(values, degrees, location, scale) * observed).sum(axis=2)
            log_weights += log_ratio(z, z_log_var[:, None], noise, batch_axes=2).numpy()
            weights = special.softmax(log_weights, axis=1)
            for i, row in enumerate(rows):
                chosen = random_state.choice(self.n_samples, n_imputations, p=weights[i])
                standard_t = random_state.standard_t(degrees, (n_imputations, X.shape[1]))
                values = self._unscale(location[i, chosen] + scale[i, chosen] * standard_t)
                missing = np.isnan(X[row])
                drawn[:, row, missing] = values[:, missing]
        return drawn

    def score(self, X, y=None):
        """Minus the mean squared error of entries that are hidden for it, in units of their columns' variances; `GridSearchCV` asks for it.

        Args:
            X: as in `fit`, but for what is known: a tenth of it is hidden, at random but always the same.
            y: ignored.
        """
        check_is_fitted(self)
        X = self._validate(X, images=False, ensure_all_finite="allow-nan")
        known = np.argwhere(~np.isnan(X))
        rows, columns = np.random.default_rng(0).permutation(known)[: -(-len(known) // 10)].T
        hidden = X.copy()
        hidden[rows, columns] = np.nan
        errors = (self.transform(hidden) - X)[rows, columns] / np.where((scale := np.nanstd(X, axis=0)) > 0, scale, 1)[
            columns
        ]
        return -float(np.mean(np.square(errors, dtype="float64")))

    def functions(self):
        """`transform`, from raw rows with NaN to imputed ones; see `AutoencoderEstimator.functions`."""
        check_is_fitted(self)
        x, scaled = self._scaled_input()
        imputed = ops.where(ops.isnan(x), self._unscaled_output(self.network_(scaled)), x)
        return by_name(
            of_network(
                "transform",
                "from rows with NaN to imputed rows",
                keras.Model(x, imputed),
                ("imputed", "rows with conditional means for NaN"),
                self._unnamed().transform,
                ("x", "rows, unscaled, with NaN for what is missing"),
                self._units(),
                missing=True,
            )
        )

    # -- The parts ---------------------------------------------------------------------------------------------------------------------

    def _build_model(self, input_shape, seed):
        columns, rank = self.loadings_.shape
        heads = {"z_mean": self.latent_dim, "z_log_var": self.latent_dim}
        pairs_shape = (columns, 2)
        encoder = networks.encoder(pairs_shape, heads, self.hidden_units, activation=self.activation)
        decoder = networks.decoder(pairs_shape, self.latent_dim, self.hidden_units, activation=self.activation)
        # The networks' part is 0 at first.
        for layer in (encoder.get_layer("z_mean"), encoder.get_layer("z_log_var"), decoder.get_layer("logits")):
            layer.kernel.assign(ops.zeros_like(layer.kernel))
        factors = FactorPosterior(columns, rank, self.latent_dim, name="factors")
        factors.loadings.assign(self.loadings_)
        factors.mean.assign(self.mean_)
        factors.precision.assign(1 / self.noise_variance_)
        linear = keras.layers.Dense(2 * columns, name="linear")
        x, z = keras.Input(input_shape, name="x"), keras.Input((self.latent_dim,), name="z")
        filled, z_mean, z_log_var = factors(ObservedPairs(name="pairs")(x))
        more_mean, more_log_var = encoder(filled)
        codes = [
            keras.layers.Add(name="z_mean")([z_mean, more_mean]),
            keras.layers.Add(name="z_log_var")([z_log_var, more_log_var]),
        ]
        parameters = keras.layers.Reshape(pairs_shape, name="linear_reshape")(linear(z))
        parameters = keras.layers.Add(name="parameters")([parameters, decoder(z)])
        kernel = np.zeros((self.latent_dim, columns, 2))
        kernel[:rank, :, 0] = self.loadings_.T
        bias = np.stack([self.mean_, 0.5 * np.log(self.noise_variance_)], axis=-1)
        linear.set_weights([kernel.reshape(self.latent_dim, -1), bias.ravel()])
        return IncompleteDataAutoencoder(
            keras.Model(x, codes, name="encoder"),
            keras.Model(z, [parameters[..., 0], parameters[..., 1]], name="decoder"),
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
        z_mean, z_log_var = encoder(x)
        spread = PosteriorSamples(noise.shape, name="samples")
        spread.noise.assign(noise)
        z = spread([z_mean, z_log_var])
        mean = ImportanceWeightedMean([float(v) for v in self.model_.degrees_of_freedom()], name="mean")
        parameters = ops.stack(decoder(z), axis=-1)
        return keras.Model(
            x, mean([ObservedPairs(name="pairs")(x), z_mean, z_log_var, z, parameters]), name="imputation"
        )


def _hide(rate):
    """A function that hides observed entries of a batch at random."""

    def hide(x, seed):
        return tf.where(tf.random.stateless_uniform(tf.shape(x), seed) >= rate, x, np.nan)

    return hide

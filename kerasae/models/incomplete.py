"""The family of incomplete data: a variational autoencoder of rows with missing values."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks
from kerasae.layers import random_seed
from kerasae.models.autoencoder import Autoencoder

__all__ = ["IncompleteDataAutoencoder"]

# Bounds of what the decoder gives before its exponential: scales from e^-6 to e^3 standard deviations.
LOG_SCALES = (-6.0, 3.0)


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
        return {
            "z": z[0],
            "z_mean": z_mean,
            "reconstruction": parameters[0],
            "parameters": parameters,
            "log_ratio": log_ratio(z, z_mean, z_log_var),
        }

    def terms(self, x, outputs):
        log_weights = outputs["log_ratio"] + log_density(x, outputs["parameters"], self._degrees())
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


def log_ratio(z, z_mean, z_log_var):
    """`ln p(z) - ln q(z|o)` of samples `(S, batch, latent_dim)`: `(S, batch)`; the densities' constants cancel."""
    squares = ops.square(z - z_mean) * ops.exp(-z_log_var) + z_log_var - ops.square(z)
    return 0.5 * ops.sum(squares, axis=-1)


def log_density(pairs, parameters, degrees):
    """`ln p(o|z)` of `pairs`, (batch, columns, 2), under `parameters`, (S, batch, columns, 2): `(S, batch)`."""
    values, observed = pairs[..., 0], pairs[..., 1]
    log_scale = ops.clip(parameters[..., 1], *LOG_SCALES)
    squares = ops.square((values - parameters[..., 0]) * ops.exp(-log_scale))
    half = 0.5 * (degrees + 1.0)
    if isinstance(degrees, np.ndarray):
        from scipy import special

        constant = special.gammaln(half) - special.gammaln(0.5 * degrees) - 0.5 * np.log(np.pi * degrees)
        constant = constant.astype("float32")
    else:
        constant = tf.math.lgamma(half) - tf.math.lgamma(0.5 * degrees) - 0.5 * ops.log(np.pi * degrees)
    log_density = constant - log_scale - half * ops.log(1.0 + squares / degrees)
    return ops.sum(observed * log_density, axis=-1)

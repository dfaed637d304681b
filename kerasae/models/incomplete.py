"""The family of incomplete data: examples in which values are missing."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, distributions
from kerasae.layers import random_seed
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.models.variational import VariationalAutoencoder
from kerasae.networks import takes_networks
from kerasae.registry import NETWORKS

__all__ = ["IncompleteDataAutoencoder"]

# Bounds of what the decoder gives before its exponential: scales from e^-6 to e^3 standard deviations.
LOG_SCALES = (-6.0, 3.0)


class StudentT(distributions.Likelihood):
    """Student's t for each observed feature: `ln p(o|z) = sum_{j observed} ln t(x_j; r_j, s_j, nu_j)`.

    The decoder gives the locations r and ln s; `nu = 3 + softplus(raw_degrees)`, the model's weight, so that variances are finite.
    """

    name = "student_t"
    outputs = ("reconstruction", "log_scale")
    score = "negative log-density of the observed entries of x under Student's t around the reconstruction", "nats"
    raw_degrees = None

    def degrees(self):
        """nu of each feature."""
        return 3.0 + ops.softplus(self.raw_degrees)

    def observed(self, x):
        """Values, 0 where they are missing, and 1 where they are observed, 0 where not."""
        missing = ops.isnan(x)
        return ops.where(missing, ops.zeros_like(x), x), 1.0 - ops.cast(missing, "float32")

    def parameters(self, outputs):
        """Locations and ln s."""
        return outputs["reconstruction"], outputs["log_scale"]

    def loss(self, x, outputs):
        return -log_density(*self.observed(x), *self.parameters(outputs), self.degrees())

    def loss_of_samples(self, x, outputs):
        """The loss, `(batch, samples)`, of outputs of shape `(batch, samples, ...)`."""
        values, observed = (ops.expand_dims(part, 1) for part in self.observed(x))
        return -log_density(values, observed, *self.parameters(outputs), self.degrees(), batch_axes=2)

    def sample(self, outputs, generator):
        location, log_scale = self.parameters(outputs)
        seeds = tf.random.split(random_seed(generator), 2)
        nu, shape = self.degrees(), tf.shape(location)
        # A normal number over the root of a chi-squared one by its degrees of freedom.
        chi_squared = 2.0 * tf.random.stateless_gamma(shape, seeds[0], tf.broadcast_to(0.5 * nu, shape))
        standard = tf.random.stateless_normal(shape, seeds[1]) / tf.sqrt(chi_squared / nu)
        return location + ops.exp(ops.clip(log_scale, *LOG_SCALES)) * standard


class StudentTOfPairs(StudentT):
    """The same for pairs of a value and 1 or 0, `(columns, 2)`, and a decoder that gives pairs of r and ln s: an earlier form of models."""

    outputs = ("reconstruction",)

    def observed(self, x):
        return x[..., 0], x[..., 1]

    def parameters(self, outputs):
        return outputs["reconstruction"][..., 0], outputs["reconstruction"][..., 1]


@keras.saving.register_keras_serializable("kerasae")
class IncompleteDataAutoencoder(Autoencoder):
    """A variational autoencoder of examples with gaps: minimises `-E ln 1/K sum_k p(o|z_k) p(z_k) / q(z_k|o)`, in nats per example.

    NaN in an example means that the value is missing; o are the others, and only these count. `p(o|z)` is `StudentT`, whose degrees of
    freedom, one number per feature, are trained with the rest. Logged: `bound_loss`, of K samples `z_k ~ q(z|o)`. The score is of one,
    z_mean, which `encode` gives; `predict` gives the locations of p(x|z_mean), for what is missing, too.

    Args:
        encoder: Keras model from `(batch, ...)` with NaN to `[z_mean, z_log_var]`; `ObservedPairs` is how it may begin.
        decoder: Keras model from `(batch, latent_dim)` to `[reconstruction, log_scale]`, each `(batch, ...)`. Models of an earlier form
            are of pairs, `(batch, columns, 2)`: of a value (0 if missing) and whether it is observed, and of location and ln scale.
        k: K, samples per example, at least 1. Default 20.
        seed: of the noise.

    Raises:
        ValueError: as `Autoencoder`; where the features' number is not fixed, and on a Keras loss, which has no answer to NaN.

    Reference:
        Mattei and Frellsen 2019, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets", equation 4.
    """

    term_names = ("bound_loss",)
    code_names = ("z_mean", "z_log_var")

    def __init__(self, encoder, decoder, k=20, seed=None, **kwargs):
        self.takes_missing = len(getattr(decoder, "outputs", ())) > 1
        likelihood = StudentT() if self.takes_missing else StudentTOfPairs()
        super().__init__(encoder, decoder, loss=likelihood, seed=seed, **kwargs)
        self.k = checks.positive_int(k, "k")
        self.posterior = distributions.DiagonalNormal()
        self.prior = distributions.StandardNormal(self.decoder.inputs[0].shape[1:])
        features = self.encoder.inputs[0].shape[1:] if self.takes_missing else self.encoder.inputs[0].shape[1:2]
        if None in features:
            raise ValueError(f"The encoder must take examples of a fixed shape. Received: {features}")
        self.raw_degrees = self.add_weight(shape=features, initializer="zeros", name="raw_degrees")
        likelihood.raw_degrees = self.raw_degrees

    def forward(self, x, training):
        z_mean, z_log_var = (ops.cast(output, "float32") for output in self.encoder(x, training=training))
        seed = random_seed(self.noise_generator(training))
        noise = tf.random.stateless_normal((self.k, *tf.unstack(tf.shape(z_mean))), seed, alg="philox")
        # (k, batch, latent_dim) -> (batch, k, latent_dim)
        noise = tf.transpose(noise, (1, 0, 2))
        z_mean, z_log_var = z_mean[:, None], z_log_var[:, None]
        z = self.posterior.sample_from((z_mean, z_log_var), noise)
        condition = [tf.repeat(part, self.k, axis=0) for part in self.condition_of(x)]
        outputs = self.reconstruct(tf.reshape(z, (-1, z.shape[-1])), training, condition)
        samples = {
            name: tf.reshape(ops.cast(output, "float32"), (-1, self.k, *output.shape[1:]))
            for name, output in outputs.items()
        }
        return {
            "z": z[:, 0],
            "z_mean": z_mean[:, 0],
            "reconstruction": samples["reconstruction"][:, 0],
            "samples": samples,
            "log_ratio": distributions.log_ratio(z, z_log_var, noise, batch_axes=2),
        }

    def terms(self, x, outputs):
        if self.loss is not None:
            raise ValueError("A model of incomplete data has a loss of its own: compile it without `loss`.")
        log_weights = outputs["log_ratio"] - self.likelihood.loss_of_samples(x, outputs["samples"])
        return {"bound_loss": math.log(self.k) - ops.logsumexp(log_weights, axis=1)}

    @property
    def score_meaning(self):
        return (
            "negative evidence lower bound at z = z_mean: -ln p(o|z_mean) + KL(q(z|o) || N(0, I)), o the observed entries",
            "nats",
        )

    def degrees_of_freedom(self):
        """nu of each feature, NumPy."""
        return ops.convert_to_numpy(self.likelihood.degrees())

    sample = VariationalAutoencoder.sample
    log_likelihood = VariationalAutoencoder.log_likelihood

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


def log_density(values, observed, location, log_scale, degrees, batch_axes=1):
    """`ln p(o|z)`, summed over all axes but the first `batch_axes`, of Student's t.

    Args:
        values, observed: as of `StudentT.observed`.
        location, log_scale: r and ln s; the logarithm is clipped.
        degrees: nu of each feature.
        batch_axes: how many axes in front are kept.
    """
    log_scale = ops.clip(log_scale, *LOG_SCALES)
    squares = ops.square((values - location) * ops.exp(-log_scale))
    half = 0.5 * (degrees + 1.0)
    constant = _log_gamma(half) - _log_gamma(0.5 * degrees) - 0.5 * ops.log(np.pi * degrees)
    densities = observed * (constant - log_scale - half * ops.log(1.0 + squares / degrees))
    return ops.sum(densities, axis=tuple(range(batch_axes, len(densities.shape))))


def _log_gamma(x):
    """`ln Gamma(x)`, x at least 1, within 1e-8, which ONNX has not: Stirling's series at x + 4, and back by `Gamma(x + 1) = x Gamma(x)`."""
    y = x + 4.0
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5) - 1 / (1680 * y**7)
    stirling = (y - 0.5) * ops.log(y) - y + 0.5 * math.log(2 * math.pi) + series
    return stirling - ops.log(x * (x + 1.0) * (x + 2.0) * (x + 3.0))


@family(
    title="incomplete data",
    purpose="examples with missing values: codes, scores, imputation",
    paper="Mattei & Frellsen 2019",
    takes_missing=True,
)
@takes_networks(without=("loss", "code_activation", "mask_value"))
def incomplete(networks, *, k=20, **kwargs):
    """A variational autoencoder of examples with missing values, which are NaN; its encoder sees which.

    Args:
        k: K, samples per example of the bound that is trained.
        output_activation: of the locations of p(x|z). Default: linear.
        encoder: your own network, in place of shape, sizes, activations and `network`: from examples with NaN to `[z_mean, z_log_var]`.
        decoder: your own network; it gives `[reconstruction, log_scale]`.

    Returns:
        `kerasae.models.IncompleteDataAutoencoder`, to be compiled. `kerasae.tasks.Imputer` fills tables by one.

    Example:

    ```python
    x = np.where(np.random.default_rng(0).random(x_train.shape) < 0.3, np.nan, x_train)
    model = kerasae.builders.incomplete((8, 8, 1), latent_dim=4, hidden_units=(64,))
    model.compile("adam")
    model.fit(x, epochs=2)
    z, filled = model.encode(x), model.predict(x)
    ```

    Reference:
        Mattei and Frellsen 2019, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets".
    """
    heads = {"heads": lambda size: {"z_mean": size, "z_log_var": size}}
    encoder, decoder = networks.pair(**heads, log_variance=True)
    if networks.encoder is None:
        x = keras.Input(encoder.inputs[0].shape[1:], name="x")
        # A value and whether it is observed are channels beside each other.
        shape = (*x.shape[1:-1], 2 * x.shape[-1])
        pairs = keras.layers.Reshape(shape, name="channels")(ObservedPairs(name="pairs")(x))
        # A step of which nothing is observed, as behind a shorter series, counts for nothing.
        mask_value = 0.0 if NETWORKS[networks.network].takes_padding else None
        encoder, _ = dataclasses.replace(networks, input_shape=shape).pair(**heads, mask_value=mask_value)
        encoder = keras.Model(x, encoder(pairs), name="encoder")
    return IncompleteDataAutoencoder(encoder, decoder, k=k, **kwargs)

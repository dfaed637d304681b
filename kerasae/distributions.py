"""Distributions as objects: likelihoods p(x|z), posteriors q(z|x) and priors p(z), which families name and everything else asks.

A small module of our own, because TensorFlow Probability does not support Keras 3 models. Log-densities are in nats.
"""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, keras_internals, losses
from kerasae.layers import random_seed, reparameterize, sample_normal

_ACTIVATION_LAYERS = {("activations", name) for name in ("elu", "leaky_relu", "relu", "softmax")}
_FACTORS = 8  # of a product whose logarithm is taken at once


class _Named:
    """An object known by its `name`: it equals that name, and prints as it."""

    name: str

    def __eq__(self, other):
        return other == self.name if isinstance(other, str) else self is other

    def __hash__(self):
        return hash(self.name)

    def __str__(self):
        return self.name


# -- Likelihoods -------------------------------------------------------------------------------------------------------------------------


class Likelihood(_Named):
    """The distribution of an example given its code: the meaning of a decoder's outputs, and the loss that they give.

    Attributes:
        name: of the likelihood.
        distortion: the name of the loss that `kerasae.models.Autoencoder(loss=...)` knows it by.
        unit: of the loss: `"nats"` or `"squared error"`.
        support: `(lowest, highest)` that examples may take, or None for any number.
        head: activation that the decoder's first output ends in.
        outputs: names of the decoder's outputs; the first is the reconstruction, the mean of p(x|z).
        score: `(definition, unit)` of the loss of one example.
    """

    distortion = "squared_error"
    unit = "nats"
    support = None
    head = "linear"
    outputs = ("reconstruction",)
    # Which steps of an example are padding, a `kerasae.sequences.Padding` that the model's encoder knows; None: there is none.
    padding = None

    def weights(self, x):
        """1 where x counts, 0 where it is padding, in a shape that broadcasts to x's; None: all counts."""
        return None if self.padding is None else self.padding.weights(x)

    def reader(self, decoder, names):
        """A function from the decoder's inputs and `training` to its outputs by these names, `{"reconstruction": ...}`."""
        # A function, so that Keras doesn't track the decoder twice.
        return lambda inputs, training: dict(
            zip(names, tf.nest.flatten(decoder(inputs, training=training)), strict=True)
        )

    def loss(self, x, outputs):
        """`-ln p(x|z)` per example, shape `(batch,)`; `outputs` are those that `reader`'s function gives."""
        raise NotImplementedError

    def log_prob(self, x, outputs):
        """`ln p(x|z)` per example, shape `(batch,)`."""
        return -self.loss(x, outputs)

    def log_prob_of_samples(self, x, outputs, num_samples):
        """`ln p(x|z)` of `num_samples` codes per example: `(num_samples, batch)`; `outputs` are of `num_samples * batch` codes."""
        return repeated_log_prob(self.loss, x, outputs, num_samples)

    def sample(self, outputs, generator):
        """A draw from p(x|z), in the reconstruction's shape; `generator` is a `keras.random.SeedGenerator`."""
        raise NotImplementedError


def repeated_log_prob(loss, x, outputs, num_samples):
    """`-loss(x, outputs)`, `(num_samples, batch)`, where `outputs` are of `num_samples` codes per example."""
    batch = x.shape[0]
    repeated = tf.reshape(tf.repeat(x[None], num_samples, axis=0), (num_samples * batch, *x.shape[1:]))
    return -tf.reshape(loss(repeated, outputs), (num_samples, batch))


class SquaredError(Likelihood):
    """Squared error, `sum_i (x_i - r_i)^2`: a distortion rather than a distribution, so that it has no density to draw from."""

    name = "squared_error"
    unit = "squared error"
    score = "squared error of the reconstruction r: sum_i (x_i - r_i)^2", "squared units of x"

    def loss(self, x, outputs):
        return losses.squared_error(x, outputs["reconstruction"], self.weights(x))


class Bernoulli(Likelihood):
    """Each feature is 1 with probability r_i, the decoder's output: `ln p(x|z) = sum_i x_i ln r_i + (1 - x_i) ln(1 - r_i)`.

    Computed on the logits if the decoder ends in `keras.layers.Activation("sigmoid")`. Features between 0 and 1 give the cross-entropy.
    """

    name = "bernoulli"
    distortion = "binary_crossentropy"
    support = (0.0, 1.0)
    head = "sigmoid"
    score = "cross-entropy of x and its reconstruction r: -sum_i x_i ln r_i + (1 - x_i) ln(1 - r_i)", "nats"

    def check_decoder(self, decoder):
        """Raises where the decoder's last activation leaves [0, 1], as cut-off logarithms would learn from it in silence."""
        layer = keras_internals.last_computing_layer(decoder.outputs[0])
        activation = getattr(layer, "activation", None)
        if activation is None and keras_internals.kind_of_layer(layer) in _ACTIVATION_LAYERS:
            activation = layer
        if activation is None:
            return  # a layer of one's own
        values = np.asarray(activation(tf.linspace([-9.0], [9.0], 19, axis=1)))
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                "A cross-entropy (Bernoulli) loss needs a decoder whose output lies in [0, 1], and this one's last layer, "
                f'{layer.name!r}, gives values from {values.min():g} to {values.max():g}. End it in keras.layers.Activation("sigmoid"), '
                'or take loss="squared_error".'
            )

    def reader(self, decoder, names):
        with_logits = logits_decoder(decoder)
        return lambda inputs, training: dict(zip((names[0], "logits"), with_logits(inputs, training), strict=True))

    def loss(self, x, outputs):
        return losses.binary_crossentropy(x, outputs["logits"], self.weights(x))

    def log_prob_of_samples(self, x, outputs, num_samples):
        """`sum_i x_i l_i - ln(1 + e^l_i)` of logits l.

        `ln(1 + e^l) = max(l, 0) + ln(1 + e^-|l|)`, and sums of logarithms are logarithms of products: eight factors between 1 and 2 share
        one, which saves most of the time that a decoder's wide output costs.
        """
        if self.padding is not None:
            return repeated_log_prob(self.loss, x, outputs, num_samples)
        batch = x.shape[0]
        x = tf.reshape(x, (batch, -1))
        logits = tf.cast(tf.reshape(outputs["logits"], (num_samples, batch, -1)), tf.float32)
        factors = 1.0 + tf.exp(-tf.abs(logits))
        if padding := -logits.shape[-1] % _FACTORS:
            factors = tf.pad(factors, [[0, 0], [0, 0], [0, padding]], constant_values=1.0)
        # (samples, batch, n) -> (samples, batch, 8, n / 8)
        factors = tf.reshape(factors, (*factors.shape[:2], _FACTORS, -1))
        logarithms = tf.reduce_sum(tf.math.log(tf.reduce_prod(factors, axis=2)), axis=-1)
        return tf.reduce_sum(x * logits - tf.nn.relu(logits), axis=-1) - logarithms

    def sample(self, outputs, generator):
        probability = outputs["reconstruction"]
        uniform = tf.random.stateless_uniform(tf.shape(probability), random_seed(generator), alg="philox")
        return ops.cast(uniform < probability, "float32")


class Gaussian(Likelihood):
    """`p(x|z) = N(r, c I)` around the decoder's output r.

    Args:
        variance: c: a number above 0; `"learned"`, one number for all, a weight of the model, which sets `log_variance`; or `"predicted"`,
            one for each feature: `ln c` is the decoder's second output, `log_variance`.
    """

    name = "gaussian"
    score = "negative log-density of x: sum_i 1/2 ((x_i - r_i)^2 / c + ln(2 pi c)), r the reconstruction", "nats"

    def __init__(self, variance=1.0):
        if isinstance(variance, str):
            self.variance = checks.choice(variance, "variance", VARIANCES)
        else:
            self.variance = checks.real_number(variance, "variance", minimum=0, exclusive=True)
        if self.variance == "predicted":
            self.outputs = ("reconstruction", "log_variance")
        # A number or a weight.
        self.log_variance = 0.0 if isinstance(self.variance, str) else math.log(self.variance)

    def _log_variance(self, outputs):
        if self.variance == "predicted":
            return outputs["log_variance"]
        return ops.convert_to_tensor(self.log_variance) if self.variance == "learned" else self.log_variance

    def loss(self, x, outputs):
        return losses.gaussian_nll(x, outputs["reconstruction"], self._log_variance(outputs), self.weights(x))

    def sample(self, outputs, generator):
        return sample_normal(outputs["reconstruction"], self._log_variance(outputs), generator)


VARIANCES = ("learned", "predicted")
LIKELIHOODS = ("bernoulli", "gaussian")
_DISTORTIONS = {"squared_error": SquaredError, "binary_crossentropy": Bernoulli}


def distortion(name):
    """The likelihood behind a `loss` of `kerasae.models.Autoencoder`: `"squared_error"` or `"binary_crossentropy"`."""
    if callable(name):
        raise ValueError(
            f"A loss of your own goes into compile(loss=...), which replaces the model's. Received as `loss`: {name!r}"
        )
    return _DISTORTIONS[checks.choice(name, "loss", _DISTORTIONS)]()


def likelihood(name, variance=1.0):
    """The likelihood of a name, `"bernoulli"` or `"gaussian"`, `variance` belonging to the latter; a `Likelihood` as it is."""
    if isinstance(name, Likelihood):
        return name
    checks.choice(name, "likelihood", LIKELIHOODS)
    if name == "gaussian":
        return Gaussian(variance)
    if Gaussian(variance).variance != 1.0:
        raise ValueError(f"`variance` belongs to the Gaussian likelihood; a Bernoulli has none. Received: {variance!r}")
    return Bernoulli()


def logits_decoder(decoder):
    """A function from a decoder's inputs and `training` to `(reconstruction, logits)`; the decoder's output lies in [0, 1].

    Raises:
        ValueError: if the decoder ends in a linear layer.
    """
    last = decoder.get_layer(decoder.output_names[0]) if hasattr(decoder, "output_names") else decoder.layers[-1]
    activation = getattr(last, "activation", None)
    if activation is keras.activations.linear:
        raise ValueError(
            f"A cross-entropy (Bernoulli) loss needs a decoder whose output lies in [0, 1], and this one ends in the linear layer "
            f'{last.name!r}. Add keras.layers.Activation("sigmoid") behind it.'
        )
    if isinstance(last, keras.layers.Activation) and activation is keras.activations.sigmoid:
        both = keras.Model(decoder.inputs, [decoder.outputs[0], last.input])
        return lambda inputs, training: both(inputs, training=training)

    def from_probabilities(inputs, training):
        reconstruction = decoder(inputs, training=training)
        dtype = "float64" if reconstruction.dtype == "float64" else "float32"
        # ln p - ln(1 - p), kept finite as Keras's own cross-entropy of probabilities is.
        p = ops.clip(ops.cast(reconstruction, dtype), keras.config.epsilon(), 1.0 - keras.config.epsilon())
        return reconstruction, ops.log(p) - (ops.log1p(-p) if dtype == "float64" else ops.log(1.0 - p))

    return from_probabilities


# -- Posteriors and priors ---------------------------------------------------------------------------------------------------------------


class DiagonalNormal(_Named):
    """The posterior `q(z|x) = N(mu, diag sigma^2)` of an encoder that gives mu and `ln sigma^2`.

    Its parameters are `(z_mean, z_log_var)`, `(batch, ...)` each; `z_log_var` may be `(batch, 1)`: one variance for all latents.
    """

    name = "diagonal"
    outputs = ("z_mean", "z_log_var")

    def mode(self, parameters):
        """The most probable code, mu, which `encode` and deployed encoders give."""
        return parameters[0]

    def sample(self, parameters, generator):
        """`z = mu + sigma * epsilon`, in float32; `generator` is a `keras.random.SeedGenerator`."""
        return sample_normal(*parameters, generator)

    def sample_from(self, parameters, noise):
        """`mu + sigma * noise` for noise from N(0, I), whose shape may have further axes in front."""
        return reparameterize(*parameters, noise)

    def log_prob(self, z, parameters, batch_axes=1):
        """`ln q(z|x)`, summed over all axes but the first `batch_axes`."""
        z_mean, z_log_var = parameters
        squares = ops.square(z - z_mean) * ops.exp(-z_log_var) + z_log_var + math.log(2 * math.pi)
        return -0.5 * ops.sum(squares, axis=_axes(z, batch_axes))

    def kl(self, prior, parameters):
        """`KL(q(z|x) || p(z))` per example in closed form, shape `(batch,)`, for p a `StandardNormal`."""
        if not isinstance(prior, StandardNormal):
            raise NotImplementedError(f"There is no closed form of KL(N(mu, diag sigma^2) || {prior}).")
        return losses.kl_standard_normal(*parameters)


class StandardNormal(_Named):
    """The prior `p(z) = N(0, I)` of codes of one shape."""

    name = "standard_normal"

    def __init__(self, shape):
        self.shape = tuple(shape)

    def log_prob(self, z, batch_axes=1):
        """`ln p(z)`, summed over all axes but the first `batch_axes`."""
        return -0.5 * ops.sum(ops.square(z) + math.log(2 * math.pi), axis=_axes(z, batch_axes))

    def sample(self, num_samples, seed=None):
        """Codes, NumPy float32, `(num_samples, *shape)`; an int as `seed` gives the same ones every time."""
        return np.random.default_rng(seed).standard_normal((num_samples, *self.shape)).astype("float32")


def log_ratio(z, z_log_var, noise, batch_axes=1):
    """`ln p(z) - ln q(z|x)` for the prior N(0, I) and `z = mu + sigma * noise`; the constants of the two densities cancel.

    Args:
        z: samples; NumPy or tensors, of any float type.
        z_log_var: `ln sigma^2`, which broadcasts to z's shape, every latent's its own.
        noise: `(z - mu) / sigma`, from which z was made, of z's shape.
        batch_axes: number of z's first axes, which are kept; the sum goes over the others.

    Returns:
        Nats, of the shape of z's first axes.
    """
    return 0.5 * ops.sum(ops.square(noise) + z_log_var - ops.square(z), axis=_axes(z, batch_axes))


def _axes(values, batch_axes):
    return tuple(range(batch_axes, len(values.shape)))

"""The variational family of 8-bit grey images whose pixels see their neighbours."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, distributions
from kerasae.models.records import family
from kerasae.models.variational import VariationalAutoencoder
from kerasae.networks import takes_networks

__all__ = ["PixelVariationalAutoencoder"]

LEVELS = 256
HINT_RADIUS = 2
_EMBEDDING_DIM = 8
_HISTOGRAM_DIM = 24
# Logits of the decoder beyond this would only say that a pixel is certain.
MAX_LOGIT = 12.0


class PixelLikelihood(distributions.Bernoulli):
    """p(x|z) of a `PixelVariationalAutoencoder`, whose weights it uses: `repeats` is set by the model.

    Args:
        radius, ink_units, value_units: as there.
    """

    name = "pixels"
    score = "-ln p(x|z) of x's 256 grey levels, each pixel given z and the pixels before it", "nats"

    def __init__(self, radius, ink_units, value_units):
        self.radius = checks.positive_int(radius, "radius")
        r = self.radius
        # Rows above, left to right, then the row itself up to the pixel.
        self.context = [(i, j) for i in range(-r, 1) for j in range(-r, r + 1) if (i, j) < (0, 0)]
        near = [(0, -1), (-1, 0), (-1, -1), (-1, 1)]
        self.near = [self.context.index(offset) for offset in near if offset in self.context]
        num_inputs = 2 * len(self.context) + (2 * HINT_RADIUS + 1) ** 2
        self.ink = _mlp(checks.positive_ints(ink_units, "ink_units"), 1, "ink")
        self.ink.build((None, num_inputs))
        self.embedding = keras.layers.Embedding(LEVELS, _EMBEDDING_DIM, name="embedding")
        self.embedding.build()
        self.histogram = keras.layers.Dense(_HISTOGRAM_DIM, use_bias=False, name="histogram")
        self.histogram.build((None, LEVELS - 1))
        self.values = _mlp(checks.positive_ints(value_units, "value_units"), LEVELS - 1, "values")
        self.values.build((None, num_inputs + _EMBEDDING_DIM * len(self.near) + _HISTOGRAM_DIM))
        self.repeats = None

    def loss(self, x, outputs):
        """`-ln p(x|z)`: the networks are run for the pixels that need them, about a fifth of a handwritten digit's."""
        pixels, hints, rows, context = self._rows(x, outputs)
        size = math.prod(outputs["logits"].shape[1:])
        # Whether there is ink: where some is known nearby, the network has a say.
        where = tf.where(tf.reduce_any(context > 0, axis=1))
        logits = tf.tensor_scatter_nd_add(hints, where, _float32(self.ink(tf.gather_nd(rows, where)))[:, 0])
        nats = tf.nn.sigmoid_cross_entropy_with_logits(_float32(pixels > 0), logits)
        nats = tf.reduce_sum(tf.reshape(nats, (-1, size)), axis=1)
        # How much: the n pixels with ink, image after image in raster order.
        where = tf.where(pixels > 0)
        labels = tf.gather_nd(pixels, where) - 1
        images = where[:, 0] // size
        num_images = tf.shape(nats, tf.int64)[0]
        # How often each value has occurred in the image before, (n, 255): all images' running count less that at the image's start.
        totals = tf.math.unsorted_segment_sum(tf.one_hot(labels, LEVELS - 1), images, num_images)
        # A scan along the last axis is many times faster.
        seen = tf.transpose(tf.cumsum(tf.one_hot(labels, LEVELS - 1, axis=0), axis=1, exclusive=True))
        seen -= tf.gather(tf.cumsum(totals, exclusive=True), images)
        logits = self._value_logits(tf.gather_nd(rows, where), tf.gather_nd(context, where), seen)
        value_nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return nats + tf.math.unsorted_segment_sum(value_nats, images, num_images)

    def loss_of_all_pixels(self, x, outputs):
        """The same, with the networks run for all pixels and the answers of those that need none masked: what ONNX can express."""
        pixels, hints, rows, context = self._rows(x, outputs)
        size = math.prod(outputs["logits"].shape[1:])
        logits = hints + _float32(ops.max(context, axis=1) > 0) * _float32(self.ink(rows))[:, 0]
        has_ink = _float32(pixels > 0)
        nats = ops.binary_crossentropy(has_ink, logits, from_logits=True)
        # Of level 0 all zeros.
        one_hot = ops.one_hot(pixels, LEVELS)[:, 1:]
        by_image = ops.reshape(one_hot, (-1, size, LEVELS - 1))
        seen = ops.reshape(ops.cumsum(by_image, axis=1) - by_image, (-1, LEVELS - 1))
        logits = self._value_logits(rows, context, seen)
        nats += has_ink * (ops.logsumexp(logits, axis=1) - ops.sum(one_hot * logits, axis=1))
        return ops.sum(ops.reshape(nats, (-1, size)), axis=1)

    def log_prob_of_samples(self, x, outputs, num_samples):
        return distributions.repeated_log_prob(self.loss, x, outputs, num_samples)

    def sample(self, outputs, generator):
        raise NotImplementedError(
            "Pixels that see their neighbours are drawn one by one, which only LosslessCodec does."
        )

    def _rows(self, x, outputs):
        """Of all images' pixels in a row: their levels, the decoder's logits, the networks' inputs, and the levels of the pixels before."""
        r, h = self.radius, HINT_RADIUS
        # Whole numbers 0 to 255, (batch, height, width).
        pixels = tf.cast(tf.round(_float32(x)[..., 0] * (LEVELS - 1)), tf.int32)
        hints = tf.clip_by_value(_float32(outputs["logits"])[..., 0], -MAX_LOGIT, MAX_LOGIT)
        height, width = hints.shape[1:]

        def windows(images, places):
            # (batch, height, width) -> (batch * height * width, places)
            window = tf.stack([images[:, i : i + height, j : j + width] for i, j in places], axis=-1)
            return tf.reshape(window, (-1, len(places)))

        context = windows(tf.pad(pixels, [[0, 0], [r, 0], [r, r]]), [(i + r, j + r) for i, j in self.context])
        padded = tf.pad(hints, [[0, 0], [h, h], [h, h]], constant_values=-MAX_LOGIT)
        hints_around = windows(padded, list(np.ndindex(2 * h + 1, 2 * h + 1)))
        rows = tf.concat([_float32(context) / LEVELS, _float32(context > 0), hints_around / 4.0], axis=1)
        return tf.reshape(pixels, (-1,)), tf.reshape(hints, (-1,)), rows, context

    def _value_logits(self, rows, context, seen):
        """(n, 255), given how often each value has been seen in the image."""
        near, counts = tf.gather(context, self.near, axis=1), tf.math.log1p(seen)
        embedded = tf.reshape(_float32(self.embedding(near)), (-1, _EMBEDDING_DIM * len(self.near)))
        inputs = tf.concat([rows, embedded, _float32(self.histogram(counts))], axis=1)
        logits = _float32(self.values(inputs)) + counts * self.repeats[0]
        for k in range(len(self.near)):
            # A known neighbour's own value has a logit of its own.
            logits += tf.one_hot(near[:, k], LEVELS)[:, 1:] * self.repeats[k + 1]
        return logits


@keras.saving.register_keras_serializable("kerasae")
class PixelVariationalAutoencoder(VariationalAutoencoder):
    """A variational autoencoder of 8-bit grey images whose pixels also see the neighbours before them.

    `p(x|z) = prod_i p(x_i | h(z), x_<i)`, i in raster order: whether pixel i is above 0 (has ink) is a Bernoulli with the logit
    `h_i(z) + a_i`, its value 1 to 255 a categorical distribution. h(z) are the logits of the decoder's image; `a_i` and the 255 values'
    logits are given by two networks of h's 5 x 5 window around i and the pixels up to `radius` rows above and columns beside it; the
    values' logits also by how often each value has occurred in the image before (images share their few saturated values). `a_i` is 0
    where no neighbour has ink. A pixel in [0, 1] counts as the nearest of the 256 levels, the multiples of 1/255. Everything else is
    `VariationalAutoencoder`: `reconstruction_loss` is `-ln p(x|z)` of all 256 levels.

    So the decoder's image, which `predict`, `decode` and `sample` give, is not the mean of p(x|z): its sigmoid is the probability of ink
    before any neighbour is known.

    Args:
        encoder, decoder: as in `VariationalAutoencoder`, of images (height, width, 1) in [0, 1]; the decoder ends in a sigmoid. Those of a
            trained model are a good start.
        radius: of the neighbourhood, at least 1. Default 4: 40 pixels.
        ink_units, value_units: hidden units of the two networks. Default (64, 32) and (256, 160).
        seed: as in `VariationalAutoencoder`.

    Raises:
        ValueError: as `VariationalAutoencoder`; on images of several channels.

    Reference:
        Gulrajani et al. 2017, "PixelVAE: A Latent Variable Model for Natural Images", with networks of a small neighbourhood in place of
        masked convolutions: 784 small steps decode an image, for all images at once.
    """

    def __init__(self, encoder, decoder, radius=4, ink_units=(64, 32), value_units=(256, 160), seed=None, **kwargs):
        likelihood = PixelLikelihood(radius, ink_units, value_units)
        super().__init__(encoder, decoder, likelihood=likelihood, seed=seed, **kwargs)
        shape = decoder.outputs[0].shape[1:]
        if len(shape) != 3 or shape[-1] != 1 or None in shape:
            raise ValueError(
                f"The images must be grey, (height, width, 1). Received a decoder of images of shape: {shape}"
            )
        # XLA cannot compile this: the number of pixels with ink differs from batch to batch.
        self.supports_jit = False
        self.radius, self.ink_units, self.value_units = likelihood.radius, tuple(ink_units), tuple(value_units)
        self.ink, self.embedding = likelihood.ink, likelihood.embedding
        self.histogram, self.values = likelihood.histogram, likelihood.values
        self.repeats = self.add_weight((1 + len(likelihood.near), LEVELS - 1), "zeros", name="repeats")
        likelihood.repeats = self.repeats

    def functions(self):
        functions = super().functions()

        def measure(*inputs):
            x = list(inputs) if len(inputs) > 1 else inputs[0]
            outputs = self.deterministic(x)
            nats = self.likelihood.loss_of_all_pixels(self.target_of(x), outputs)
            return [nats + self.posterior.kl(self.prior, [outputs[name] for name in self.code_names])]

        return {**functions, "score": dataclasses.replace(functions["score"], compute=measure)}

    def log_likelihood(self, x, num_samples=100, seed=0, decodings_at_once=256, verbose=0):
        """As `VariationalAutoencoder.log_likelihood`, without XLA: one sample of `decodings_at_once` examples at a time."""
        x = checks.array(x, self.encoder.inputs[0].shape[1:], unit_interval=True).astype("float32")
        num_samples = checks.positive_int(num_samples, "num_samples")
        random = np.random.default_rng(seed)
        progress = keras.utils.Progbar(len(x), verbose=verbose, unit_name="example")
        estimates = []
        for start in range(0, len(x), checks.positive_int(decodings_at_once, "decodings_at_once")):
            batch = x[start : start + decodings_at_once]
            z_mean, z_log_var = (output.numpy().astype("float64") for output in self.encoder(batch, training=False))
            total = np.full(len(batch), -np.inf)
            for _ in range(num_samples):
                epsilon = random.standard_normal(z_mean.shape)
                z = self.posterior.sample_from((z_mean, z_log_var), epsilon)
                outputs = self.reconstruct(tf.cast(z, tf.float32), training=False)
                log_ratio = distributions.log_ratio(z, z_log_var, epsilon).numpy()
                total = np.logaddexp(total, log_ratio - self.reconstruction_loss(batch, outputs).numpy())
            estimates.append(total - math.log(num_samples))
            progress.update(start + len(batch))
        return np.concatenate(estimates).astype("float32")

    def get_config(self):
        config = super().get_config()
        for name in ("likelihood", "variance", "beta"):
            del config[name]
        return {**config, "radius": self.radius, "ink_units": self.ink_units, "value_units": self.value_units}


def _float32(tensor):
    return tf.cast(tensor, tf.float32)


def _mlp(hidden_units, num_outputs, name):
    layers = [keras.layers.Dense(units, "relu") for units in hidden_units]
    return keras.Sequential([*layers, keras.layers.Dense(num_outputs)], name=name)


@family(
    title="variational, of pixels that see their neighbours",
    purpose="likelihoods of 8-bit grey images: lossless compression",
    paper="Gulrajani et al. 2017",
)
@takes_networks(without=("loss", "code_activation", "output_activation", "mask_value"))
def pixels(networks, *, radius=4, ink_units=(64, 32), value_units=(256, 160), **kwargs):
    """A variational autoencoder of 8-bit grey images: each pixel's 256 levels depend on the code and the pixels before it.

    Args:
        input_shape: (height, width, 1).
        radius: of the neighbourhood, at least 1: 4 is 40 pixels.
        ink_units, value_units: hidden units of the two networks that see it.
        encoder: your own network, in place of shape, sizes, activation and `network`; it gives `[z_mean, z_log_var]`.
        decoder: your own network; it ends in a sigmoid.

    Returns:
        `kerasae.models.PixelVariationalAutoencoder`, to be compiled. `kerasae.tasks.LosslessCodec` compresses by one.

    Example:

    ```python
    model = kerasae.builders.pixels((28, 28, 1), latent_dim=16)
    ```

    Reference:
        Gulrajani et al. 2017, "PixelVAE: A Latent Variable Model for Natural Images".
    """
    pair = networks.pair(heads=lambda size: {"z_mean": size, "z_log_var": size}, output_activation="sigmoid")
    return PixelVariationalAutoencoder(*pair, radius=radius, ink_units=ink_units, value_units=value_units, **kwargs)

"""The variational family of 8-bit grey images whose pixels see their neighbours."""

import math

import keras
import numpy as np
import tensorflow as tf

from kerasae import checks
from kerasae.models.variational import VariationalAutoencoder

__all__ = ["PixelVariationalAutoencoder"]

LEVELS = 256
HINT_RADIUS = 2
_EMBEDDING_DIM = 8
_HISTOGRAM_DIM = 24
# Logits of the decoder beyond this would only say that a pixel is certain.
MAX_LOGIT = 12.0


@keras.saving.register_keras_serializable("kerasae")
class PixelVariationalAutoencoder(VariationalAutoencoder):
    """A variational autoencoder of 8-bit grey images whose pixels also see the neighbours before them.

    `p(x|z) = prod_i p(x_i | h(z), x_<i)`, i in raster order: whether pixel i is above 0 (has ink) is a Bernoulli with the logit
    `h_i(z) + a_i`, its value 1 to 255 a categorical distribution. h(z) are the logits of the decoder's image; `a_i` and the 255 values'
    logits are given by two networks of h's 5 x 5 window around i and the pixels up to `radius` rows above and columns beside it; the
    values' logits also by how often each value has occurred in the image before (images share their few saturated values). `a_i` is 0
    where no neighbour has ink. Everything else is `VariationalAutoencoder`: `reconstruction_loss` is `-ln p(x|z)` of all 256 levels.

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

    Example:

    ```python
    start = kerasae.builders.variational((8, 8, 1), latent_dim=4, hidden_units=(64,))
    model = kerasae.models.PixelVariationalAutoencoder(start.encoder, start.decoder, radius=2)
    model.compile("adam", jit_compile=False)
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Gulrajani et al. 2017, "PixelVAE: A Latent Variable Model for Natural Images", with networks of a small neighbourhood in place of
        masked convolutions: 784 small steps decode an image, for all images at once.
    """

    def __init__(self, encoder, decoder, radius=4, ink_units=(64, 32), value_units=(256, 160), seed=None, **kwargs):
        super().__init__(encoder, decoder, seed=seed, **kwargs)
        shape = decoder.outputs[0].shape[1:]
        if len(shape) != 3 or shape[-1] != 1 or None in shape:
            raise ValueError(
                f"The images must be grey, (height, width, 1). Received a decoder of images of shape: {shape}"
            )
        # XLA cannot compile this: the number of pixels with ink differs from batch to batch.
        self.supports_jit = False
        self.radius = checks.positive_int(radius, "radius")
        self.ink_units = checks.positive_ints(ink_units, "ink_units")
        self.value_units = checks.positive_ints(value_units, "value_units")
        r = self.radius
        # Rows above, left to right, then the row itself up to the pixel.
        self._context = [(i, j) for i in range(-r, 1) for j in range(-r, r + 1) if (i, j) < (0, 0)]
        near = [(0, -1), (-1, 0), (-1, -1), (-1, 1)]
        self._near = [self._context.index(offset) for offset in near if offset in self._context]
        num_hints = (2 * HINT_RADIUS + 1) ** 2
        num_inputs = 2 * len(self._context) + num_hints
        self.ink = _mlp(ink_units, 1, "ink")
        self.ink.build((None, num_inputs))
        self.embedding = keras.layers.Embedding(LEVELS, _EMBEDDING_DIM, name="embedding")
        self.embedding.build()
        self.histogram = keras.layers.Dense(_HISTOGRAM_DIM, use_bias=False, name="histogram")
        self.histogram.build((None, LEVELS - 1))
        self.values = _mlp(value_units, LEVELS - 1, "values")
        self.values.build((None, num_inputs + _EMBEDDING_DIM * len(self._near) + _HISTOGRAM_DIM))
        self.repeats = self.add_weight((1 + len(self._near), LEVELS - 1), "zeros", name="repeats")

    def reconstruction_loss(self, x, outputs):
        r = self.radius
        pixels = tf.cast(tf.round(tf.cast(x, tf.float32)[..., 0] * (LEVELS - 1)), tf.int32)
        hints = tf.clip_by_value(tf.cast(outputs["logits"], tf.float32)[..., 0], -MAX_LOGIT, MAX_LOGIT)
        has_ink = pixels > 0
        padded = tf.pad(pixels, [[0, 0], [r, 0], [r, r]])
        kernel = np.zeros((r + 1, 2 * r + 1, 1, 1), "float32")
        for i, j in self._context:
            kernel[i + r, j + r] = 1
        known_ink = tf.nn.conv2d(tf.cast(padded > 0, tf.float32)[..., None], kernel, 1, "VALID")[..., 0]
        h = HINT_RADIUS
        padded_hints = tf.pad(hints, [[0, 0], [h, h], [h, h]], constant_values=-MAX_LOGIT)
        # Whether there is ink: (n, 3), the pixels near which there is some.
        where = tf.where(known_ink > 0.5)
        rows, _ = self._rows(padded, padded_hints, where)
        logits = tf.tensor_scatter_nd_add(hints, where, self.ink(rows)[:, 0])
        nats = tf.reduce_sum(
            tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(has_ink, tf.float32), logits=logits), axis=(1, 2)
        )
        # How much: (n, 3), the pixels with ink, image after image in raster order.
        where = tf.where(has_ink)
        rows, context = self._rows(padded, padded_hints, where)
        labels = tf.gather_nd(pixels, where) - 1
        images = where[:, 0]
        num_images = tf.shape(pixels, tf.int64)[0]
        # How often each value has occurred in the image before, (n, 255): all images' running count less that at the image's start.
        one_hot = tf.one_hot(labels, LEVELS - 1)
        totals = tf.math.unsorted_segment_sum(one_hot, images, num_images)
        # A scan along the last axis is many times faster.
        seen = tf.transpose(tf.cumsum(tf.one_hot(labels, LEVELS - 1, axis=0), axis=1, exclusive=True))
        counts = tf.math.log1p(seen - tf.gather(tf.cumsum(totals, exclusive=True), images))
        near = tf.gather(context, self._near, axis=1)
        embedded = tf.reshape(self.embedding(near), (-1, _EMBEDDING_DIM * len(self._near)))
        logits = self.values(tf.concat([rows, embedded, self.histogram(counts)], axis=1)) + counts * self.repeats[0]
        # A known neighbour's own value has a logit of its own: repeats[k + 1, value].
        k = tf.broadcast_to(tf.range(len(self._near)), tf.shape(near))
        column = tf.maximum(near - 1, 0)
        bonus = tf.gather_nd(self.repeats, tf.stack([k + 1, column], axis=2)) * tf.cast(near > 0, tf.float32)
        row = tf.broadcast_to(tf.range(tf.shape(near)[0])[:, None], tf.shape(near))
        logits = tf.tensor_scatter_nd_add(logits, tf.stack([row, column], axis=2), bonus)
        value_nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return nats + tf.math.unsorted_segment_sum(value_nats, images, num_images)

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
                z = z_mean + np.exp(0.5 * z_log_var) * epsilon
                outputs = self.reconstruct(tf.constant(z, tf.float32), training=False)
                # ln p(z) - ln q(z|x): the constants of the two densities cancel.
                log_ratio = 0.5 * (epsilon**2 + z_log_var - z**2).reshape(len(batch), -1).sum(axis=1)
                total = np.logaddexp(total, log_ratio - self.reconstruction_loss(batch, outputs).numpy())
            estimates.append(total - math.log(num_samples))
            progress.update(start + len(batch))
        return np.concatenate(estimates).astype("float32")

    def _rows(self, padded, padded_hints, where):
        context = _gather(padded, where, [(i + self.radius, j + self.radius) for i, j in self._context])
        size = 2 * HINT_RADIUS + 1
        hints = _gather(padded_hints, where, [(i, j) for i in range(size) for j in range(size)])
        values = tf.cast(context, tf.float32)
        return tf.concat([values / LEVELS, tf.cast(context > 0, tf.float32), hints / 4.0], axis=1), context

    def get_config(self):
        config = super().get_config()
        for name in ("likelihood", "variance", "beta"):
            del config[name]
        return {**config, "radius": self.radius, "ink_units": self.ink_units, "value_units": self.value_units}


def _gather(images, where, offsets):
    shape = tf.shape(images, tf.int64)
    base = (where[:, 0] * shape[1] + where[:, 1]) * shape[2] + where[:, 2]
    steps = tf.stack([i * shape[2] + j for i, j in offsets])
    return tf.gather(tf.reshape(images, [-1]), base[:, None] + steps)


def _mlp(hidden_units, num_outputs, name):
    layers = [keras.layers.Dense(units, "relu") for units in hidden_units]
    return keras.Sequential([*layers, keras.layers.Dense(num_outputs)], name=name)

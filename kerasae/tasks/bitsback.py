"""Lossless compression by bits-back coding with variational models."""

import functools
import hashlib
import math
import zlib

import keras
import numpy as np
import tensorflow as tf

from kerasae import checks
from kerasae.models import VariationalAutoencoder
from kerasae.tasks.codec import pack, unpack

_LEVELS = 256
_HINT_RADIUS = 2
_EMBEDDING_DIM = 8
_HISTOGRAM_DIM = 24
# Logits of the decoder beyond this would only say that a pixel is certain.
_MAX_LOGIT = 12.0


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
    from kerasae.tasks.bitsback import PixelVariationalAutoencoder

    start = kerasae.builders.variational((8, 8, 1), latent_dim=4, hidden_units=(64,))
    model = PixelVariationalAutoencoder(start.encoder, start.decoder, radius=2)
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
        num_hints = (2 * _HINT_RADIUS + 1) ** 2
        num_inputs = 2 * len(self._context) + num_hints
        self.ink = _mlp(ink_units, 1, "ink")
        self.ink.build((None, num_inputs))
        self.embedding = keras.layers.Embedding(_LEVELS, _EMBEDDING_DIM, name="embedding")
        self.embedding.build()
        self.histogram = keras.layers.Dense(_HISTOGRAM_DIM, use_bias=False, name="histogram")
        self.histogram.build((None, _LEVELS - 1))
        self.values = _mlp(value_units, _LEVELS - 1, "values")
        self.values.build((None, num_inputs + _EMBEDDING_DIM * len(self._near) + _HISTOGRAM_DIM))
        self.repeats = self.add_weight((1 + len(self._near), _LEVELS - 1), "zeros", name="repeats")

    def reconstruction_loss(self, x, outputs):
        r = self.radius
        pixels = tf.cast(tf.round(tf.cast(x, tf.float32)[..., 0] * (_LEVELS - 1)), tf.int32)
        hints = tf.clip_by_value(tf.cast(outputs["logits"], tf.float32)[..., 0], -_MAX_LOGIT, _MAX_LOGIT)
        has_ink = pixels > 0
        padded = tf.pad(pixels, [[0, 0], [r, 0], [r, r]])
        kernel = np.zeros((r + 1, 2 * r + 1, 1, 1), "float32")
        for i, j in self._context:
            kernel[i + r, j + r] = 1
        known_ink = tf.nn.conv2d(tf.cast(padded > 0, tf.float32)[..., None], kernel, 1, "VALID")[..., 0]
        h = _HINT_RADIUS
        padded_hints = tf.pad(hints, [[0, 0], [h, h], [h, h]], constant_values=-_MAX_LOGIT)
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
        one_hot = tf.one_hot(labels, _LEVELS - 1)
        totals = tf.math.unsorted_segment_sum(one_hot, images, num_images)
        # A scan along the last axis is many times faster.
        seen = tf.transpose(tf.cumsum(tf.one_hot(labels, _LEVELS - 1, axis=0), axis=1, exclusive=True))
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
        size = 2 * _HINT_RADIUS + 1
        hints = _gather(padded_hints, where, [(i, j) for i in range(size) for j in range(size)])
        values = tf.cast(context, tf.float32)
        return tf.concat([values / _LEVELS, tf.cast(context > 0, tf.float32), hints / 4.0], axis=1), context

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


class LosslessCodec:
    """Compresses images into bytes and back, bit for bit, by bits-back coding with a variational model.

    To encode x, z is *decoded* from the stream so far with q(z|x), then x is encoded with p(x|z) and z with p(z) = N(0, I): the bits that
    chose z are got back in decoding, so that an image takes `-ln p(x|z) - ln p(z) + ln q(z|x)`, in expectation the negative ELBO. z is
    rounded to multiples of 1/64. The first image has no stream to take bits from: it takes random ones, which the stream then holds
    (a few hundred bits in all: batches grow from one image to `batch_size`, as the stream has bits for them).

    The stream describes itself as `Codec`'s does, and holds a CRC-32 of the images, so that `decode` never returns wrong ones in silence.

    Its limit: decoding needs the same numbers as encoding. On one machine it has them. On another, encoder and decoder, which run in
    float64 here, differ by rounding errors (about 1e-14), and are rounded to steps of 1/16 of a latent's bin and 1/64 of a logit, so that
    the entropy coder sees a difference only where a boundary falls between the two: for ten thousand MNIST images in about one stream of a
    hundred thousand. `decode` then raises, and that stream can be read on the first machine only. The pixel networks of a
    `PixelVariationalAutoencoder` run in fixed point, where no sum is ever rounded, and add nothing to this; the Gaussians' tables are
    made by constriction.

    Args:
        model: a trained `VariationalAutoencoder`. Bernoulli: images of zeros and ones. Gaussian: 8-bit images, each of the 256 levels with
            the probability of its interval, the outermost with the tails. `PixelVariationalAutoencoder`: 8-bit grey images.
        batch_size: most images coded together, at least 1. A matter of speed and memory. Default 256.

    Attributes:
        fingerprint: sha256 of the weights, 64 hex digits.

    Raises:
        ValueError: where the model is not variational.

    Example:

    ```python
    binary = np.round(x_train)
    model = kerasae.builders.variational((8, 8, 1), latent_dim=4)
    model.compile("adam")
    model.fit(binary, epochs=2)
    codec = kerasae.tasks.LosslessCodec(model)
    stream = codec.encode(binary[:50])
    assert (codec.decode(stream) == binary[:50]).all()
    ```

    Reference:
        Townsend, Bird and Barber 2019, "Practical Lossless Compression with Latent Variables using Bits Back Coding"; there z lies on a
        grid of equal prior mass, here of equal width. The stack coder is that of Bamler 2022 (the library constriction).
    """

    def __init__(self, model, batch_size=256):
        if not isinstance(model, VariationalAutoencoder):
            raise ValueError(f"`model` must be a VariationalAutoencoder. Received: {model!r}")
        self.model = model
        self.batch_size = checks.positive_int(batch_size, "batch_size")
        self.image_shape = tuple(model.decoder.outputs[0].shape[1:])
        self.latent_dim = model.code_size
        if None in self.image_shape or self.latent_dim is None:
            raise ValueError(
                f"`model` must have images and codes of fixed shapes. Received images of shape: {self.image_shape}"
            )
        self._encoder = _in_float64(model.encoder)
        decoder = _in_float64(model.decoder)
        if isinstance(model, PixelVariationalAutoencoder):
            self._likelihood = _Pixels(model, decoder)
        elif model.likelihood == "bernoulli":
            self._likelihood = _Bernoulli(decoder)
        else:
            self._likelihood = _Gaussian(model, decoder)
        digest = hashlib.sha256()
        for weight in model.get_weights():
            digest.update(np.ascontiguousarray(weight).astype(weight.dtype.newbyteorder("<")).tobytes())
        self.fingerprint = digest.hexdigest()

    def encode(self, X, verbose=0):
        """The images as bytes.

        Args:
            X: images (n, *model's image shape), the channel may be missing if it is one. For a Bernoulli model uint8 or floats that are 0
                or 1; for others uint8.
            verbose: 1 for a progress bar.

        Returns:
            bytes.

        Raises:
            ValueError: on other images.
        """
        X = np.asarray(X)
        pixels = self._pixels(X)
        coder, start, sizes = None, 0, []
        progress = keras.utils.Progbar(len(pixels), verbose=verbose, unit_name="image")
        while start < len(pixels):
            batch = pixels[start : start + min(max(start, 1), self.batch_size)]
            means, deviations = self._posterior(batch)
            num_bits = np.cumsum(_entropies(deviations).sum(axis=1))
            if coder is None:
                coder = _random_stack(num_bits[0])
            # No more images than the stream has bits for to draw their latents from: past its end these would be far out, and dear.
            size = max(1, int(np.searchsorted(num_bits, coder.num_bits() - _SPARE_BITS)))
            batch, means, deviations = batch[:size], means[:size].ravel(), deviations[:size].ravel()
            z = coder.decode(_gaussian(), means, deviations)
            self._likelihood.push(coder, batch, _latents(z, len(batch), self.model))
            coder.encode_reverse(z, _prior())
            sizes.append(len(batch))
            start += len(batch)
            progress.update(start)
        return pack("lossless", self.fingerprint, X, [_crc(pixels), *sizes], coder.get_compressed())

    def decode(self, stream, verbose=0):
        """The images of a stream that `encode` wrote with the same model.

        Args:
            stream: bytes.
            verbose: 1 for a progress bar.

        Returns:
            The images, equal to those encoded, of the same shape and dtype.

        Raises:
            ValueError: where the bytes are no such stream, are damaged or cut, come from another model or a newer version, or where this
                machine's float64 differs from the encoding one's so that the images are lost here.
        """
        header, payload = unpack(stream, "lossless", self.fingerprint)
        coder = _stack().AnsCoder(payload)
        pixels = np.empty((header["num_images"], *self.image_shape), "int32")
        progress = keras.utils.Progbar(len(pixels), verbose=verbose, unit_name="image")
        end = len(pixels)
        checksum, *sizes = header["parameters"]
        for size in reversed(sizes):
            start = end - size
            z = coder.decode(_prior(), (end - start) * self.latent_dim)
            pixels[start:end] = self._likelihood.pop(coder, _latents(z, end - start, self.model))
            means, deviations = self._posterior(pixels[start:end])
            coder.encode_reverse(z, _gaussian(), means.ravel(), deviations.ravel())
            end = start
            progress.update(len(pixels) - end)
        if _crc(pixels) != checksum:
            raise ValueError(
                "The stream is whole, but the images came out other than they went in: this machine's float64 results differ from "
                "those of the machine that encoded it. Decode it with the TensorFlow and on the processor that it was encoded with."
            )
        return pixels.reshape(len(pixels), *header["image_shape"]).astype(header["dtype"])

    def _pixels(self, X):
        """The images as whole numbers, int32, (n, *image_shape)."""
        shape = X.shape[1:]
        if shape != self.image_shape and (*shape, 1) != self.image_shape:
            raise ValueError(f"Images must have the shape {self.image_shape}. Received an array of shape: {X.shape}")
        checks.array(X, name="X")
        dtypes = ("uint8", "float32", "float64") if self._likelihood.num_levels == 2 else ("uint8",)
        if X.dtype.name not in dtypes:
            raise ValueError(
                f"Images must have the dtype {' or '.join(dtypes)} to be kept bit for bit. Received: {X.dtype}"
            )
        if self._likelihood.num_levels == 2 and not ((X == 0) | (X == 1)).all():
            raise ValueError(
                f"A Bernoulli model codes images of zeros and ones. Received values from {X.min():g} to {X.max():g}. Binarise them, "
                "or use a Gaussian or pixel model."
            )
        return X.reshape(len(X), *self.image_shape).astype("int32")

    def _posterior(self, pixels):
        """Means and standard deviations of q(z|x), in bins, (n, latent_dim)."""
        x = pixels / (self._likelihood.num_levels - 1)
        mean, log_variance = (output.numpy() for output in self._encoder(tf.constant(x), training=False))
        mean, deviation = np.broadcast_arrays(mean, np.exp(0.5 * log_variance))
        mean = np.clip(_rounded(mean * _BINS_PER_UNIT), -_LATENT_BINS, _LATENT_BINS - 1)
        deviation = np.clip(_rounded(deviation * _BINS_PER_UNIT), 1 / _ROUNDING, 4 * _BINS_PER_UNIT)
        return mean.reshape(len(x), -1), deviation.reshape(len(x), -1)


# z lies on multiples of 1/64 in [-8, 8): finer than posteriors are wide. The coder gives each of these 1024 bins a probability of at
# least 2^-24: with many more bins, z would now and then be drawn where no posterior puts it.
_BINS_PER_UNIT = 64
_LATENT_BINS = 8 * _BINS_PER_UNIT
# Means and deviations in bins are rounded to multiples of 1/16: the same number from slightly different float64 results.
_ROUNDING = 16
# What a draw may take beyond its expectation.
_SPARE_BITS = 128


def _rounded(values):
    return np.rint(values * _ROUNDING) / _ROUNDING


def _stack():
    import constriction

    return constriction.stream.stack


def _model(name, *arguments, **options):
    import constriction

    return getattr(constriction.stream.model, name)(*arguments, **options)


def _gaussian():
    return _model("QuantizedGaussian", -_LATENT_BINS, _LATENT_BINS - 1)


def _prior():
    return _model("QuantizedGaussian", -_LATENT_BINS, _LATENT_BINS - 1, 0.0, float(_BINS_PER_UNIT))


def _latents(z, num_images, model):
    return tf.constant((z / _BINS_PER_UNIT).reshape(num_images, *model.decoder.inputs[0].shape[1:]))


def _entropies(deviations):
    """Bits that it takes to draw from rounded Gaussians."""
    return np.log2(np.maximum(math.sqrt(2 * math.pi * math.e) * deviations, 1))


def _random_stack(num_bits):
    words = np.random.default_rng(0).integers(2**32, size=math.ceil((num_bits + _SPARE_BITS) / 32), dtype="uint32")
    return _stack().AnsCoder(words, seal=True)


def _crc(pixels):
    return zlib.crc32(pixels.astype("uint8").tobytes())


def _in_float64(network):
    copy = keras.models.clone_model(
        network, clone_function=lambda layer: type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    )
    copy.set_weights(network.get_weights())
    return copy


def _logits_of(decoder):
    """A function from z to the logits of a decoder's probabilities, in NumPy."""
    last = decoder.layers[-1]
    if isinstance(last, keras.layers.Activation) and last.activation is keras.activations.sigmoid:
        network = keras.Model(decoder.inputs, last.input)
        return lambda z: network(z, training=False).numpy()

    def from_probabilities(z):
        p = decoder(z, training=False).numpy()
        with np.errstate(divide="ignore"):
            return np.log(p) - np.log1p(-p)

    return from_probabilities


# Logits are rounded to multiples of 1/64 and looked up, up to a probability of 2^-22.
_LOGIT_STEPS = 64
_LARGEST_LOGIT = 16


@functools.cache
def _sigmoids():
    logits = np.arange(-_LARGEST_LOGIT * _LOGIT_STEPS, _LARGEST_LOGIT * _LOGIT_STEPS + 1) / _LOGIT_STEPS
    return np.clip(_fixed(1 / (1 + np.exp(-logits)), 22), 2.0**-22, 1 - 2.0**-22)


def _bernoulli_probabilities(logits):
    limit = _LARGEST_LOGIT * _LOGIT_STEPS
    return _sigmoids()[np.rint(np.clip(logits * _LOGIT_STEPS, -limit, limit)).astype("int64") + limit]


class _Bernoulli:
    """Images of zeros and ones: each pixel a Bernoulli with the decoder's probability."""

    num_levels = 2

    def __init__(self, decoder):
        self.logits = _logits_of(decoder)

    def push(self, coder, pixels, z):
        coder.encode_reverse(pixels.ravel(), self._family(), self._probabilities(z).ravel())

    def pop(self, coder, z):
        p = self._probabilities(z)
        return coder.decode(self._family(), p.ravel()).reshape(p.shape)

    def _family(self):
        return _model("Bernoulli", perfect=False)

    def _probabilities(self, z):
        return _bernoulli_probabilities(self.logits(z))


class _Gaussian:
    """8-bit images: level k has the probability of (k - 1/2, k + 1/2) / 255; the outermost ones take the tails."""

    num_levels = _LEVELS

    def __init__(self, model, decoder):
        self.decoder = decoder
        self.variance = model.variance
        if model.variance == "learned":
            self.variance = float(np.exp(np.float64(model.log_variance.numpy())))

    def push(self, coder, pixels, z):
        mean, deviation = self._parameters(z)
        coder.encode_reverse(pixels.ravel(), self._family(), mean.ravel(), deviation.ravel())

    def pop(self, coder, z):
        mean, deviation = self._parameters(z)
        return coder.decode(self._family(), mean.ravel(), deviation.ravel()).reshape(mean.shape)

    def _family(self):
        return _model("QuantizedGaussian", 0, _LEVELS - 1)

    def _parameters(self, z):
        if self.variance == "predicted":
            mean, log_variance = (output.numpy() for output in self.decoder(z, training=False))
            deviation = np.exp(0.5 * log_variance)
        else:
            mean = self.decoder(z, training=False).numpy()
            deviation = np.full(mean.shape, math.sqrt(self.variance))
        deviation = np.clip(_rounded(deviation * (_LEVELS - 1)), 1 / _ROUNDING, 16 * _LEVELS)
        return np.clip(_rounded(mean * (_LEVELS - 1)), -_LEVELS, 2 * _LEVELS), deviation


class _Pixels:
    """p(x|z) of a `PixelVariationalAutoencoder` in fixed point.

    Weights are multiples of 2^-12 and activations of 2^-8, held in float64: every sum of products is a multiple of 2^-20 far below 2^33,
    so it is exact, in whatever order a machine adds it up, for one image or for many.
    """

    num_levels = _LEVELS

    def __init__(self, model, decoder):
        self.logits = _logits_of(decoder)
        self.model = model
        self.shape = decoder.outputs[0].shape[1:3]
        self.ink = _FixedMLP(model.ink)
        self.values = _FixedMLP(model.values)
        self.embedding = _fixed(model.embedding.embeddings.numpy(), 8)
        self.histogram = _fixed(model.histogram.kernel.numpy(), 12)
        self.repeats = _fixed(model.repeats.numpy(), 12)
        self.log_counts = _fixed(np.log1p(np.arange(math.prod(self.shape) + 1)), 8)
        # What a value's logit below the largest weighs against it; nothing is impossible.
        self.exponential = np.maximum(
            np.rint(2**22 * np.exp(-np.arange(_LARGEST_LOGIT * _LOGIT_STEPS) / _LOGIT_STEPS)), 1
        )

    def push(self, coder, pixels, z):
        pixels = pixels[..., 0]
        padded, hints, windows = self._prepare(pixels, z)
        neighbours = np.lib.stride_tricks.sliding_window_view(padded, self._window, axis=(1, 2))
        # (width, height) in raster order, all images side by side: pixel i of every image stands in row i.
        context = self._context(neighbours.transpose(1, 2, 0, 3, 4))
        has_ink = pixels.transpose(1, 2, 0) > 0
        active = context.any(axis=-1)
        ink = hints.transpose(1, 2, 0).copy()
        windows = windows.transpose(1, 2, 0, 3)
        ink[active] += self._ink(context[active], windows[active])
        p = _bernoulli_probabilities(ink)
        # How often each value has occurred in an image: first in all of it, then less and less as the loop goes back.
        counts = np.stack([np.bincount(image.ravel(), minlength=_LEVELS)[1:] for image in pixels])
        family, categorical = _model("Bernoulli", perfect=False), _model("Categorical", perfect=False)
        for i, j in reversed(list(np.ndindex(*has_ink.shape[:2]))):
            inked = has_ink[i, j]
            if inked.any():
                symbols = pixels[inked, i, j] - 1
                counts[inked, symbols] -= 1
                weights = self._value_weights(context[i, j][inked], windows[i, j][inked], counts[inked])
                coder.encode_reverse(symbols, categorical, weights)
            coder.encode_reverse(inked.astype("int32"), family, p[i, j])

    def pop(self, coder, z):
        num_images = z.shape[0]
        padded, hints, windows = self._prepare(np.zeros((num_images, *self.shape), "int32"), z)
        r = self.model.radius
        counts = np.zeros((num_images, _LEVELS - 1), "int32")
        family, categorical = _model("Bernoulli", perfect=False), _model("Categorical", perfect=False)
        for i, j in np.ndindex(*self.shape):
            context = self._context(padded[:, i : i + r + 1, j : j + 2 * r + 1])
            ink = hints[:, i, j].copy()
            active = context.any(axis=-1)
            if active.any():
                ink[active] += self._ink(context[active], windows[active, i, j])
            inked = coder.decode(family, _bernoulli_probabilities(ink)) > 0
            if inked.any():
                weights = self._value_weights(context[inked], windows[inked, i, j], counts[inked])
                symbols = coder.decode(categorical, weights)
                padded[inked, i + r, j + r] = symbols + 1
                counts[inked, symbols] += 1
        return padded[:, r:, r:-r, None]

    @property
    def _window(self):
        return (self.model.radius + 1, 2 * self.model.radius + 1)

    def _context(self, windows):
        """The neighbours before the pixel: the window's first entries, row by row."""
        return windows.reshape(*windows.shape[:-2], -1)[..., : len(self.model._context)]

    def _prepare(self, pixels, z):
        """Padded pixels, the decoder's logits as multiples of 1/16, (n, height, width), and their windows as the networks see them."""
        r, h = self.model.radius, _HINT_RADIUS
        hints = np.clip(_rounded(self.logits(z)[..., 0]), -_MAX_LOGIT, _MAX_LOGIT)
        padded_hints = np.pad(hints, ((0, 0), (h, h), (h, h)), constant_values=-_MAX_LOGIT) / 4
        windows = np.lib.stride_tricks.sliding_window_view(padded_hints, (2 * h + 1, 2 * h + 1), axis=(1, 2))
        return np.pad(pixels, ((0, 0), (r, 0), (r, r))), hints, windows.reshape(*hints.shape, -1)

    def _rows(self, context, windows):
        return np.concatenate([context / _LEVELS, context > 0, windows], axis=1)

    def _ink(self, context, windows):
        return self.ink(self._rows(context, windows))[:, 0]

    def _value_weights(self, context, windows, counts):
        """(n, 255): whole numbers in float64, in proportion to the values' probabilities."""
        near = context[:, self.model._near]
        counts = self.log_counts[counts]
        embedded = self.embedding[near].reshape(len(near), -1)
        logits = self.values(
            np.concatenate([self._rows(context, windows), embedded, _activation(counts @ self.histogram)], axis=1)
        )
        logits += counts * self.repeats[0]
        for k in range(near.shape[1]):
            known = np.flatnonzero(near[:, k])
            logits[known, near[known, k] - 1] += self.repeats[k + 1][near[known, k] - 1]
        steps = np.rint(logits * _LOGIT_STEPS).astype("int64")
        below = steps.max(axis=1, keepdims=True) - steps
        return self.exponential[np.minimum(below, len(self.exponential) - 1)]


def _fixed(values, bits):
    """Rounded to multiples of 2^-bits."""
    return np.rint(np.asarray(values, "float64") * 2**bits) / 2**bits


_activation = functools.partial(_fixed, bits=8)


class _FixedMLP:
    """A stack of dense layers in fixed point; its outputs are multiples of 2^-20."""

    def __init__(self, network):
        self.layers = [(_fixed(layer.kernel.numpy(), 12), _fixed(layer.bias.numpy(), 20)) for layer in network.layers]

    def __call__(self, rows):
        for kernel, bias in self.layers[:-1]:
            rows = _activation(np.maximum(rows @ kernel + bias, 0))
        kernel, bias = self.layers[-1]
        return rows @ kernel + bias

"""Lossless compression by bits-back coding with variational models."""

import math
import zlib

import keras
import numpy as np
import tensorflow as tf

from kerasae import checks, writing
from kerasae.tasks.containers import pack, unpack
from kerasae.tasks.entropy_coding import CODED, ROUNDING, coder_model, rounded


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
        kinds = [str(getattr(model, kind, None)) for kind in ("posterior", "prior", "likelihood")]
        if kinds[:2] != ["diagonal", "standard_normal"] or kinds[2] not in CODED:
            raise ValueError(
                "`model` must be a VariationalAutoencoder, or another model with a diagonal normal posterior, the prior N(0, I) and one "
                f"of the likelihoods {list(CODED)}. Received: {model!r}, with {kinds}"
            )
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
        self._likelihood = CODED[model.likelihood.name](model.likelihood, decoder)
        self.fingerprint = writing.sha256(*model.get_weights())

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
        self._check_header(header)
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

    def _check_header(self, header):
        """Holds a stream's header against the model, and its batches against those of `encode`: each at most as large as all before."""
        shape, num, (checksum, *sizes) = header["image_shape"], header["num_images"], header["parameters"] or [None]
        whole = checksum is not None and sum(sizes) == num
        for i, size in enumerate(sizes):
            whole = whole and 1 <= size <= max(1, sum(sizes[:i]))
        if not whole or shape not in (self.image_shape, self.image_shape[:-1]):
            raise ValueError(
                f"The stream is damaged: it announces {num:,} images of {shape} in batches of {sizes[:10]}."
            )
        checks.memory((num, *shape), "float64", "What the stream announces", copies=2)

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
        mean = np.clip(rounded(mean * _BINS_PER_UNIT), -_LATENT_BINS, _LATENT_BINS - 1)
        deviation = np.clip(rounded(deviation * _BINS_PER_UNIT), 1 / ROUNDING, 4 * _BINS_PER_UNIT)
        return mean.reshape(len(x), -1), deviation.reshape(len(x), -1)


# z lies on multiples of 1/64 in [-8, 8): finer than posteriors are wide. The coder gives each of these 1024 bins a probability of at
# least 2^-24: with many more bins, z would now and then be drawn where no posterior puts it.
_BINS_PER_UNIT = 64
_LATENT_BINS = 8 * _BINS_PER_UNIT
# What a draw may take beyond its expectation.
_SPARE_BITS = 128


def _stack():
    import constriction

    return constriction.stream.stack


def _gaussian():
    return coder_model("QuantizedGaussian", -_LATENT_BINS, _LATENT_BINS - 1)


def _prior():
    return coder_model("QuantizedGaussian", -_LATENT_BINS, _LATENT_BINS - 1, 0.0, float(_BINS_PER_UNIT))


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

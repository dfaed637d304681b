"""The likelihoods of `LosslessCodec`: each puts pixels on a stack of bits and takes them off again."""

import functools
import math

import numpy as np

from kerasae.distributions import logits_decoder
from kerasae.models.pixels import HINT_RADIUS, LEVELS, MAX_LOGIT

# Means and deviations in bins are rounded to multiples of 1/16: the same number from slightly different float64 results.
ROUNDING = 16


def rounded(values):
    """Values rounded to multiples of 1/16, so that slightly different float64 results give the same number."""
    return np.rint(values * ROUNDING) / ROUNDING


def coder_model(name, *arguments, **options):
    """A model of the entropy coder, by its name in constriction."""
    import constriction

    return getattr(constriction.stream.model, name)(*arguments, **options)


def _logits_of(decoder):
    """A function from z to the logits of a decoder's probabilities, in NumPy."""
    logits = logits_decoder(decoder)
    return lambda z: logits(z, False)[1].numpy()


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


class Bernoulli:
    """Images of zeros and ones: each pixel a Bernoulli with the decoder's probability."""

    num_levels = 2

    def __init__(self, likelihood, decoder):
        self.logits = _logits_of(decoder)

    def push(self, coder, pixels, z):
        coder.encode_reverse(pixels.ravel(), self._family(), self._probabilities(z).ravel())

    def pop(self, coder, z):
        p = self._probabilities(z)
        return coder.decode(self._family(), p.ravel()).reshape(p.shape)

    def _family(self):
        return coder_model("Bernoulli", perfect=False)

    def _probabilities(self, z):
        return _bernoulli_probabilities(self.logits(z))


class Gaussian:
    """8-bit images: level k has the probability of (k - 1/2, k + 1/2) / 255; the outermost ones take the tails."""

    num_levels = LEVELS

    def __init__(self, likelihood, decoder):
        self.decoder = decoder
        self.variance = likelihood.variance
        if likelihood.variance == "learned":
            self.variance = float(np.exp(np.float64(likelihood.log_variance.numpy())))

    def push(self, coder, pixels, z):
        mean, deviation = self._parameters(z)
        coder.encode_reverse(pixels.ravel(), self._family(), mean.ravel(), deviation.ravel())

    def pop(self, coder, z):
        mean, deviation = self._parameters(z)
        return coder.decode(self._family(), mean.ravel(), deviation.ravel()).reshape(mean.shape)

    def _family(self):
        return coder_model("QuantizedGaussian", 0, LEVELS - 1)

    def _parameters(self, z):
        if self.variance == "predicted":
            mean, log_variance = (output.numpy() for output in self.decoder(z, training=False))
            deviation = np.exp(0.5 * log_variance)
        else:
            mean = self.decoder(z, training=False).numpy()
            deviation = np.full(mean.shape, math.sqrt(self.variance))
        deviation = np.clip(rounded(deviation * (LEVELS - 1)), 1 / ROUNDING, 16 * LEVELS)
        return np.clip(rounded(mean * (LEVELS - 1)), -LEVELS, 2 * LEVELS), deviation


class Pixels:
    """p(x|z) of a `PixelVariationalAutoencoder` in fixed point.

    Weights are multiples of 2^-12 and activations of 2^-8, held in float64: every sum of products is a multiple of 2^-20 far below 2^33,
    so it is exact, in whatever order a machine adds it up, for one image or for many.
    """

    num_levels = LEVELS

    def __init__(self, likelihood, decoder):
        self.logits = _logits_of(decoder)
        self.likelihood = likelihood
        self.shape = decoder.outputs[0].shape[1:3]
        self.ink = _FixedMLP(likelihood.ink)
        self.values = _FixedMLP(likelihood.values)
        self.embedding = _fixed(likelihood.embedding.embeddings.numpy(), 8)
        self.histogram = _fixed(likelihood.histogram.kernel.numpy(), 12)
        self.repeats = _fixed(likelihood.repeats.numpy(), 12)
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
        counts = np.stack([np.bincount(image.ravel(), minlength=LEVELS)[1:] for image in pixels])
        family, categorical = coder_model("Bernoulli", perfect=False), coder_model("Categorical", perfect=False)
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
        r = self.likelihood.radius
        counts = np.zeros((num_images, LEVELS - 1), "int32")
        family, categorical = coder_model("Bernoulli", perfect=False), coder_model("Categorical", perfect=False)
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
        return (self.likelihood.radius + 1, 2 * self.likelihood.radius + 1)

    def _context(self, windows):
        """The neighbours before the pixel: the window's first entries, row by row."""
        return windows.reshape(*windows.shape[:-2], -1)[..., : len(self.likelihood.context)]

    def _prepare(self, pixels, z):
        """Padded pixels, the decoder's logits as multiples of 1/16, (n, height, width), and their windows as the networks see them."""
        r, h = self.likelihood.radius, HINT_RADIUS
        hints = np.clip(rounded(self.logits(z)[..., 0]), -MAX_LOGIT, MAX_LOGIT)
        padded_hints = np.pad(hints, ((0, 0), (h, h), (h, h)), constant_values=-MAX_LOGIT) / 4
        windows = np.lib.stride_tricks.sliding_window_view(padded_hints, (2 * h + 1, 2 * h + 1), axis=(1, 2))
        return np.pad(pixels, ((0, 0), (r, 0), (r, r))), hints, windows.reshape(*hints.shape, -1)

    def _rows(self, context, windows):
        return np.concatenate([context / LEVELS, context > 0, windows], axis=1)

    def _ink(self, context, windows):
        return self.ink(self._rows(context, windows))[:, 0]

    def _value_weights(self, context, windows, counts):
        """(n, 255): whole numbers in float64, in proportion to the values' probabilities."""
        near = context[:, self.likelihood.near]
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


# By the names of a model's likelihood.
CODED = {"bernoulli": Bernoulli, "gaussian": Gaussian, "pixels": Pixels}

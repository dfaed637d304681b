"""Image denoising."""

from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from sklearn.utils.validation import check_is_fitted

from kerasae import checks, metrics
from kerasae.functions import by_name, of_network
from kerasae.models import DenoisingAutoencoder
from kerasae.models.denoising import CORRUPTIONS
from kerasae.tasks.base import AutoencoderTransformer, assign
from kerasae.tasks.batches import run

# From no noise to noise so strong that only a little of the image still shows: one model for the whole range.
_DEFAULT_STRENGTH = {"gaussian": (0.0, 0.6), "masking": (0.0, 0.7), "salt_and_pepper": (0.0, 0.5)}

# Number and width of the filters of the convolution that sees both the rebuilt and the noisy image.
_JOINING_UNITS, _JOINING_WIDTH = 32, 5


class Denoiser(AutoencoderTransformer):
    """Removes noise from images with a denoising autoencoder, trained on clean images or on pairs.

    `fit` scales images to [0, 1] by the range it sees and minimises `E ||x - g(f(T x))||^2`, where T is one of

    - `"gaussian"`: `x + s e`, `e ~ N(0, 1)` for every pixel and channel;
    - `"masking"`: every pixel and channel is set to 0 with probability s;
    - `"salt_and_pepper"`: every pixel and channel is set to 0 or to 1, each with probability s / 2.

    The decoder sees the noisy image y beside the code (`shortcut`). It rebuilds an image c from the code, and two convolutions that see
    both images give each pixel a trust w in (0, 1) in the noisy one and a correction r: `c + w (y - c) + r`. The code holds what kind of
    image it is, and the pixels hold what the code can't: with weak noise the result is close to y, with strong noise close to c. By
    default s is drawn anew for every image of every epoch, uniformly from a range, so that the denoiser need not be told how strong the
    noise is. T acts in training only.

    Args:
        model: `"denoising"` (default), any other family, or a kerasae model of your own.
        corruption: T: `"gaussian"` (default), `"masking"`, `"salt_and_pepper"`, or None if `fit` gets pairs.
        strength: s: a number, or a range `(lowest, highest)`; at least 0, in units of the images' range (`"gaussian"`), or a probability.
            Default: (0, 0.6), (0, 0.7) and (0, 0.5) in the order above.
        shortcut: whether the decoder sees the noisy image too (only with `model="denoising"`). Default True; if False, the image is rebuilt
            from the code alone.
        clip: whether noisy images are clipped to the range of the images, as a camera clips them. Default True.
        latent_dim: size of the code. Default 256; it may exceed the number of pixels.
        hidden_units, network, model_options, epochs, batch_size, learning_rate, validation_fraction, patience, random_state, verbose: as in
            `AutoencoderEstimator`; the rate falls to 0 along a cosine. Default network: `"dense"` with one hidden layer of 512.

    Attributes:
        model_: the fitted kerasae model, which takes images scaled to [0, 1].

    Example:

    ```python
    noisy = np.clip(x_test + np.random.default_rng(0).normal(0, 0.3, x_test.shape), 0, 1)
    denoiser = kerasae.tasks.Denoiser(hidden_units=(64,), latent_dim=32, epochs=2, random_state=0).fit(x_train)
    denoised = denoiser.denoise(noisy)
    ```

    Reference:
        Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders"; training over a range of strengths:
        Zhang et al. 2017, "Beyond a Gaussian Denoiser".
    """

    # The model gets pairs and corrupts nothing itself.
    _builder_options: ClassVar = {"corruption": None}
    _rate_falls: ClassVar = True
    # The range that `fit` saw becomes [0, 1].
    scaling: ClassVar = "range"

    def __init__(
        self,
        model="denoising",
        *,
        corruption="gaussian",
        strength=None,
        shortcut=True,
        clip=True,
        latent_dim=256,
        hidden_units=(512,),
        network="dense",
        model_options=None,
        epochs=100,
        batch_size=None,
        learning_rate=2e-3,
        validation_fraction=0.1,
        patience=10,
        random_state=None,
        verbose=0,
    ):
        assign(self, locals())

    def fit(self, X, y=None):
        """Fits the model to clean images, or to pairs.

        Args:
            X: clean images, (n, height, width[, channels]), or flat ones, (n, pixels), which are corrupted here; or noisy images.
            y: clean images of X's shape, if X is noisy. Labels (one axis) are ignored, as in every transformer.

        Raises:
            ValueError: on bad data or options, if y has another shape than X, if there are neither pairs nor a corruption, or if training
                diverges.
        """
        X = self._validate(X, reset=True)
        clean = self._pairs(X, y)
        if clean is None:
            self._check_corruption()
            x, target, corrupt = self._fit_scaling(X), None, self._corrupt
        else:
            target, corrupt = self._fit_scaling(clean), None
            x = self._scale(X)
        self.model_ = self._fit_model(x, target, seed=self._seed(), corrupt=corrupt)
        return self

    def denoise(self, X):
        """Images without their noise.

        Args:
            X: noisy images with the shape of those passed to `fit`.

        Returns:
            float32, X's shape, within the range of the clean images passed to `fit`.
        """
        check_is_fitted(self)
        x = self._scale(self._validate(X))
        code = self.model_.code_of(run(self.model_.encoder, x))
        reconstruction = self.model_.reconstruction_of(run(self.model_.decoder, code))
        return self._unscale(np.clip(reconstruction, 0, 1))

    def transform(self, X):
        """The same as `denoise`."""
        return self.denoise(X)

    def corrupt(self, X, strength=None, seed=0):
        """Noisy versions of clean images, made as in `fit`: for experiments and pictures.

        Args:
            X: clean images.
            strength: s. Default: drawn from the range for each image.
            seed: int, seed of the noise.

        Returns:
            float32, X's shape.
        """
        check_is_fitted(self)
        self._check_corruption()
        x = self._scale(self._validate(X))
        return self._unscale(self._corrupt(tf.constant(x), tf.constant([seed, 0]), strength).numpy())

    def score(self, X, y=None):
        """Peak signal-to-noise ratio in decibels, mean over images; higher is better.

        Args:
            X: noisy images; or clean ones, which are corrupted as in `fit`, with the seed 0.
            y: clean images of X's shape, if X is noisy. Labels are ignored.
        """
        X = self._validate(X)
        clean = self._pairs(X, y)
        if clean is None:
            X, clean = self.corrupt(X), X
        scaled = np.clip(self._scale(clean), 0, 1).reshape(len(X), -1)
        return metrics.psnr(scaled, self._scale(self.denoise(X)).reshape(len(X), -1))

    def functions(self):
        """`denoise`, from noisy images to denoised ones; see `AutoencoderEstimator.functions`."""
        check_is_fitted(self)
        x, scaled = self._scaled_input(self.model_.encoder.inputs[0].shape[1:])
        code = self.model_.code_of(self.model_.encoder(scaled))
        reconstruction = self.model_.reconstruction_of(self.model_.decoder(code))
        denoised = self._unscaled_output(keras.ops.clip(reconstruction, 0.0, 1.0))
        output, network = ("denoised", "denoised images"), keras.Model(x, denoised)
        return by_name(of_network("denoise", "from noisy to denoised images", network, output, self._unnamed().denoise))

    def _build_model(self, input_shape, seed):
        model = super()._build_model(input_shape, seed)
        return _with_shortcut(model, seed) if self.model == "denoising" and self.shortcut else model

    def _pairs(self, X, y):
        """The clean images of pairs, or None."""
        if y is None or np.asarray(y).ndim == 1:
            return None
        y = checks.array(y, name="y")
        if y.shape != X.shape:
            raise ValueError(f"y must hold the clean images of X, of the shape {X.shape}. Received shape: {y.shape}")
        return y

    def _check_corruption(self):
        if self.corruption is None:
            raise ValueError("`corruption` is None: pass pairs, fit(noisy, clean), or name a corruption.")
        checks.choice(self.corruption, "corruption", CORRUPTIONS)
        self._strengths()

    def _strengths(self):
        """The range of s: `(lowest, highest)`."""
        strength = _DEFAULT_STRENGTH[self.corruption] if self.strength is None else self.strength
        low, high = strength if isinstance(strength, (tuple, list)) else (strength, strength)
        highest = None if self.corruption == "gaussian" else 1
        low = checks.real_number(low, "strength", minimum=0, maximum=highest)
        return low, checks.real_number(high, "strength", minimum=low, maximum=highest)

    def _corrupt(self, x, seed, strength=None):
        """T x for a batch x of scaled images."""
        low, high = self._strengths() if strength is None else (strength, strength)
        seeds = tf.random.split(seed, 2)
        s = tf.random.stateless_uniform((tf.shape(x)[0], *[1] * (len(x.shape) - 1)), seeds[0], low, high)
        if self.corruption == "gaussian":
            noisy = x + s * tf.random.stateless_normal(tf.shape(x), seeds[1])
            return tf.clip_by_value(noisy, 0.0, 1.0) if self.clip else noisy
        uniform = tf.random.stateless_uniform(tf.shape(x), seeds[1])
        if self.corruption == "masking":
            return tf.where(uniform < s, 0.0, x)
        return tf.where(uniform < s / 2, 0.0, tf.where(uniform >= 1 - s / 2, 1.0, x))


def _with_shortcut(model, seed):
    """A denoising autoencoder whose code is that of `model` followed by the input itself; its decoder joins the two."""
    x = model.encoder.inputs[0]
    shape, latent_dim = x.shape[1:], model.code_size
    x = keras.Input(shape, name="x")
    code = keras.layers.Flatten()(model.encoder(x))
    encoder = keras.Model(x, keras.layers.Concatenate(name="z")([code, keras.layers.Flatten()(x)]), name="encoder")
    z = keras.Input(encoder.outputs[0].shape[1:], name="z")
    coarse = model.decoder(keras.layers.Reshape(model.decoder.inputs[0].shape[1:])(z[:, :latent_dim]))
    # From here on images have a channel axis, and rows of a table are pixels without neighbours.
    is_image = len(shape) > 1
    layout = shape if len(shape) == 3 else (*shape, 1)
    rebuilt, noisy = (keras.layers.Reshape(layout)(image) for image in (coarse, z[:, latent_dim:]))
    channels = layout[-1]

    def layer(units, width):
        return keras.layers.Conv2D(units, width, padding="same") if is_image else keras.layers.Dense(units)

    hidden = layer(_JOINING_UNITS, _JOINING_WIDTH)(keras.layers.Concatenate()([rebuilt, noisy]))
    hidden = layer(2 * channels, 3)(keras.ops.relu(hidden))
    trust = keras.ops.sigmoid(hidden[..., :channels])
    joined = keras.layers.Reshape(shape)(rebuilt + trust * (noisy - rebuilt) + hidden[..., channels:])
    activation = "sigmoid" if model.needs_unit_interval else "linear"
    reconstruction = keras.layers.Activation(activation, dtype="float32", name="reconstruction")(joined)
    decoder = keras.Model(z, reconstruction, name="decoder")
    return DenoisingAutoencoder(encoder, decoder, corruption=None, loss=model.distortion, seed=seed)

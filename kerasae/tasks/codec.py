"""Lossy compression of images: an autoencoder's codes, quantised and entropy-coded into a byte stream that decodes back."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from kerasae import checks, writing
from kerasae.functions import by_name, of_network
from kerasae.models import Autoencoder
from kerasae.tasks import containers
from kerasae.tasks.base import AutoencoderEstimator, assign
from kerasae.tasks.batches import run
from kerasae.tasks.code_tables import RESOLUTION, CodeTables, count
from kerasae.tasks.containers import as_images, pack, unit_images, unpack

_LARGEST_STEP = 16


class Codec(BaseEstimator):
    """Compresses images into bytes and back, with losses, by an autoencoder.

    `encode` quantises the code of each image, `k_j = round(z_j / step)`, and writes the k_j by a range coder whose tables, one for each
    j, were counted on the training images; `decode` reads them, puts every code at its bin's mean over the training images, and runs the
    decoder. The tables are integers that belong to the codec, so reading never depends on how a machine rounds; only the images that come
    out may differ in the last bits of their float32 between machines. Codes beyond what training held are stored as the outermost bin.

    A stream describes itself: magic bytes, version, dtype and shape of the images, their number, the step, the first 8 bytes of the
    codec's sha256 (weights and tables), the length, and a CRC-32 of all of it; 20 to 30 bytes besides the codes. What can be damaged
    without notice is what a CRC-32 misses, one change in 4 billion; it is no protection against forgery.

    Args:
        model: a trained kerasae model whose codes are vectors, which `fit` leaves as it is and only counts the tables for; or None, the
            default: `fit` trains a `RateDistortionAutoencoder`, whose codes are made for rounding, with the following arguments.
        latent_dim: most codes an image, at least 1; those that don't pay for themselves end up costing next to nothing. Default 64.
        hidden_units, network: as in `kerasae.builders.undercomplete`.
        rate_weight: what a nat of code may cost in squared error (summed over an image's pixels in [0, 1]): lower means better and larger.
            Default 0.1.
        epochs, batch_size, learning_rate: of the training; Adam, whose rate falls to 0 along a cosine. Default 30, 128, 2e-3.
        random_state: int, `RandomState` or None, of weights, noise and order.
        verbose: as in `keras.Model.fit`.

    Attributes:
        model_: the kerasae model.
        image_shape_: shape of an image at fit, without a channel if there was none.
        step_: width of a bin at `step=1`, in units of the code: 1 for the codec's own model, else a quarter of the codes' root mean square
            standard deviation.
        counts_: list of int64 arrays, one a code: how many training images fell into each bin of width `step_ / 4`.
        offsets_: int64 array, the number of each table's first bin.
        fingerprint_: sha256 of weights and tables, 64 hex digits.

    Example:

    ```python
    codec = kerasae.tasks.Codec(latent_dim=16, epochs=2).fit(x_train)
    stream = codec.encode(x_test)
    images = codec.decode(stream)
    coarser = codec.encode(x_test, step=2)
    ```

    Reference:
        Ballé et al. 2017, as `RateDistortionAutoencoder`; the range coder is that of Bamler 2022, "Understanding Entropy Coding With
        Asymmetric Numeral Systems (ANS)" (the library constriction).
    """

    def __init__(
        self,
        model=None,
        *,
        latent_dim=64,
        hidden_units=None,
        network="dense",
        rate_weight=0.1,
        epochs=30,
        batch_size=128,
        learning_rate=2e-3,
        random_state=None,
        verbose=0,
    ):
        assign(self, locals())

    def fit(self, X, y=None):
        """Trains the model, if none was given, and counts the codes of the training images.

        Args:
            X: images (n, height, width) or (n, height, width, channels), uint8 or floats in [0, 1]; at least 2.
            y: ignored.

        Returns:
            The codec.

        Raises:
            ValueError: on other arrays, and on a model that does not fit them or whose codes are no vectors.
        """
        x = unit_images(X)
        if len(x) < 2:
            raise ValueError(f"`X` must hold at least 2 images to learn from. Received: {len(x)}")
        if self.model is None:
            model = self._train(x)
        elif isinstance(self.model, Autoencoder):
            model = self.model
            checks.array(x, model.encoder.inputs[0].shape[1:], name="X")
        else:
            raise ValueError(f"`model` must be a kerasae model or None. Received: {self.model!r}")
        if len(model.decoder.inputs[0].shape) != 2:
            raise ValueError(
                f"`model` must have vectors as codes. Received codes of shape: {model.decoder.inputs[0].shape}"
            )
        self.model_ = model
        self.image_shape_ = np.shape(X)[1:]
        z = self._codes(x).astype("float64")
        spread = float(np.sqrt(z.var(axis=0).mean()))
        if self.model is None:
            self.step_ = 1.0
        elif np.isfinite(spread) and spread > 0:
            self.step_ = spread / 4
        else:
            raise ValueError(
                f"The model's codes of `X` don't vary or are not finite (standard deviation {spread:g}): nothing to store."
            )
        self.offsets_, self.counts_ = count(z, self.step_)
        self.fingerprint_ = self._fingerprint()
        return self

    def encode(self, X, step=1.0):
        """The images as bytes.

        Args:
            X: images of the shape that `fit` saw, uint8 or floats in [0, 1].
            step: width of a bin relative to `step_`, from 0.25 (best) to 16 (smallest); rounded to a multiple of 0.25. Default 1.

        Returns:
            bytes, of one container for all images.

        Raises:
            ValueError: on other images or steps.
        """
        check_is_fitted(self)
        X = self._checked(X)
        multiple = self._multiple(step)
        payload = self._tables.write(self._codes(unit_images(X)), multiple)
        return pack("lossy", self.fingerprint_, X, [multiple], payload)

    def decode(self, stream):
        """The images of a stream that this codec's `encode` wrote.

        Args:
            stream: bytes.

        Returns:
            Images (n, *image_shape_), of the dtype they had: uint8, or float32 or float64 in [0, 1].

        Raises:
            ValueError: where the bytes are no such stream, are damaged or cut, or come from another codec or a newer version.
        """
        check_is_fitted(self)
        header, payload = unpack(stream, "lossy", self.fingerprint_)
        multiple = self._check_header(header, payload)
        z = self._tables.read(payload, header["num_images"], multiple)
        images = self.model_.reconstruction_of(run(self.model_.decoder, z))
        return as_images(images, header)

    def bits_per_pixel(self, X, step=1.0):
        """Length of `encode(X, step)` in bits by the number of pixels (not of channels), container included."""
        X = np.asarray(X)
        return 8 * len(self.encode(X, step)) / (len(X) * np.prod(X.shape[1:3]))

    def step_for(self, X, bits_per_pixel):
        """The finest step at which the images take no more than so many bits a pixel, container included.

        Args:
            X: images, as for `encode`.
            bits_per_pixel: above 0.

        Returns:
            float, for `encode`.

        Raises:
            ValueError: where even the coarsest step takes more.
        """
        check_is_fitted(self)
        limit = checks.real_number(bits_per_pixel, "bits_per_pixel", minimum=0, exclusive=True)
        X = self._checked(X)
        z = self._codes(unit_images(X))
        num_pixels = len(X) * np.prod(X.shape[1:3])

        def rate(multiple):
            return (
                8 * len(pack("lossy", self.fingerprint_, X, [multiple], self._tables.write(z, multiple))) / num_pixels
            )

        low, high = 1, _LARGEST_STEP * RESOLUTION
        if rate(high) > limit:
            raise ValueError(
                f"At the coarsest step the images take {rate(high):g} bits per pixel. Received a limit of {limit:g}"
            )
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if rate(middle) <= limit else (middle + 1, high)
        return low / RESOLUTION

    # -- The networks alone ------------------------------------------------------------------------------------------------------------

    def transform(self, X):
        """The codes in units of `step_`, before they are rounded: float32, (n, latent_dim)."""
        check_is_fitted(self)
        return (self._codes(unit_images(self._checked(X))) / self.step_).astype("float32")

    def inverse_transform(self, Z):
        """Images of such codes, float32 in [0, 1], (n, *image_shape_)."""
        check_is_fitted(self)
        Z = checks.array(Z, (len(self.counts_),), name="Z")
        images = self.model_.reconstruction_of(run(self.model_.decoder, Z * np.float32(self.step_)))
        return np.clip(images, 0, 1).reshape(len(Z), *self.image_shape_)

    def functions(self):
        """`transform` and `inverse_transform`, the two networks; the entropy coder between them is no graph."""
        check_is_fitted(self)
        x = keras.Input(self.image_shape_, name="x")
        shaped = keras.layers.Reshape(self.model_.encoder.inputs[0].shape[1:])(x)
        codes = keras.layers.Flatten()(tf.nest.flatten(self.model_.encoder(shaped))[0]) / self.step_
        z = keras.Input((len(self.counts_),), name="z")
        images = ops.clip(self.model_.reconstruction_of(self.model_.decoder(z * self.step_)), 0.0, 1.0)
        images = keras.layers.Reshape(self.image_shape_)(images)
        return by_name(
            of_network(
                "transform",
                "from images to codes",
                keras.Model(x, codes),
                ("z", "the codes, in steps; to be rounded"),
                self.transform,
                ("x", "images in [0, 1]"),
            ),
            of_network(
                "inverse_transform",
                "from rounded codes to images",
                keras.Model(z, images),
                ("reconstruction", "the images, in [0, 1]"),
                self.inverse_transform,
                ("z", "codes, in steps"),
            ),
        )

    def made_up_examples(self, num_examples):
        """Random images, for checks without data."""
        return np.random.default_rng(0).random((num_examples, *self.image_shape_))

    # -- Files -------------------------------------------------------------------------------------------------------------------------

    def save(self, path):
        """Writes the fitted codec to one file (a zip archive of the Keras model, the tables and what belongs to them).

        Args:
            path: of the file; replaced whole if it exists.

        Returns:
            The path, as `pathlib.Path`.
        """
        check_is_fitted(self)
        facts = {
            "image_shape": list(self.image_shape_),
            "step": self.step_,
            "offsets": self.offsets_.tolist(),
            "counts": [table.tolist() for table in self.counts_],
            "fingerprint": self.fingerprint_,
            "parameters": {k: v for k, v in self.get_params(deep=False).items() if k not in ("model", "random_state")},
        }
        return containers.save(path, facts, self.model_)

    @classmethod
    def load(cls, path):
        """The codec that `save` wrote.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: where it is no codec, was changed, or was written by a newer version.
        """
        facts, model = containers.load(path)
        if unknown := set(facts["parameters"]) - set(cls().get_params(deep=False)):
            raise ValueError(f"{path} is damaged: it has the parameters {sorted(unknown)}.")
        codec = cls(**facts["parameters"])
        codec.model_ = model
        codec.image_shape_ = tuple(facts["image_shape"])
        codec.step_ = facts["step"]
        codec.offsets_ = np.array(facts["offsets"], "int64")
        codec.counts_ = [np.array(table, "int64") for table in facts["counts"]]
        codec.fingerprint_ = codec._fingerprint()
        if codec.fingerprint_ != facts["fingerprint"]:
            raise ValueError(f"{path} is damaged: its weights or tables are not those that were saved.")
        return codec

    # -- Codes and tables --------------------------------------------------------------------------------------------------------------

    def _train(self, x):
        trainer = AutoencoderEstimator(
            "rate_distortion",
            latent_dim=self.latent_dim,
            hidden_units=self.hidden_units,
            network=self.network,
            model_options={"rate_weight": self.rate_weight},
            scaling=None,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            validation_fraction=0.0,
            random_state=self.random_state,
            verbose=self.verbose,
        )
        trainer._rate_falls = True
        return trainer._fit_model(x, seed=trainer._seed())

    def _codes(self, x):
        # Not `code_of`, which a rate-distortion model rounds: the codec has steps of its own.
        return tf.nest.flatten(run(self.model_.encoder, x))[0].reshape(len(x), -1)

    def _fingerprint(self):
        facts = f"{self.step_!r} {self.image_shape_}".encode()
        return writing.sha256(facts, *self.model_.get_weights(), self.offsets_, *self.counts_)

    @property
    def _tables(self):
        return CodeTables(self.step_, self.offsets_, self.counts_)

    def _check_header(self, header, payload):
        """The multiple of the step in a stream's header, which is held against the codec and against the length of what follows."""
        parameters, shape, num = header["parameters"], header["image_shape"], header["num_images"]
        if shape != self.image_shape_ or len(parameters) != 1 or not 1 <= parameters[0] <= _LARGEST_STEP * RESOLUTION:
            raise ValueError(
                f"The stream is damaged: it announces images of {shape} and a step of {parameters}, and the codec's are of "
                f"{self.image_shape_}."
            )
        # A range coder's last word, and what rounding may save, on top of what the most frequent codes take.
        if num * self._tables.least_bits(parameters[0]) > 32 * (len(payload) + 2):
            raise ValueError(
                f"The stream is damaged: {4 * len(payload)} bytes can't hold the {num:,} images it announces."
            )
        checks.memory((num, *shape), "float32", "What the stream announces", copies=2)
        return parameters[0]

    def _multiple(self, step):
        step = checks.real_number(step, "step", minimum=1 / RESOLUTION, maximum=_LARGEST_STEP)
        return round(step * RESOLUTION)

    def _checked(self, X):
        X = np.asarray(X)
        if X.shape[1:] != self.image_shape_:
            raise ValueError(
                f"Images must have the shape {self.image_shape_}, as in fit. Received an array of shape: {X.shape}"
            )
        return X

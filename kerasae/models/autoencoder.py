"""The one mechanism: every family is this class with its own terms."""

import math

import keras
import numpy as np
import tensorflow as tf

from kerasae import checks, distributions, functions, sequences
from kerasae.layers import TiedDense
from kerasae.models import batches
from kerasae.models.exits import Exits
from kerasae.models.fitting import Fitting, is_array, predict
from kerasae.models.steps import ActiveUnits
from kerasae.networks import check_pair
from kerasae.preparation import Preparation

__all__ = ["Autoencoder"]


@keras.saving.register_keras_serializable("kerasae")
class Autoencoder(Fitting, Exits):
    """An autoencoder: minimises `E d(x, g(f(x)))` over an encoder f and a decoder g.

    Training and evaluation log `loss` and `reconstruction_loss`, the mean over examples of `d`, summed over features. The model is an
    ordinary Keras model: `fit(x)` reconstructs x, `fit(x, y)` learns to give y. `compile(loss=...)` replaces `d` by a Keras loss with
    Keras's meaning (`"mse"` is the **mean** over features). Regularisers of the networks' layers are added to `loss`.

    An encoder may have several inputs, such as `keras.Model([image, label], z)`. The first is what is reconstructed; the others are
    side information, with names, shapes and dtypes of their own. Data is then a list, a tuple, or a dict by the inputs' names:
    `fit([images, labels])`, `encode({"image": images, "label": labels})`; a `tf.data.Dataset` gives such a dict, or `((image, label),)`.

    Args:
        encoder: Functional (or built Sequential) Keras model, `(batch, *input_shape)` to `(batch, latent_dim)`; of several inputs, in
            a list or a dict, the first has that shape.
        decoder: Keras model back from codes to `(batch, *input_shape)`.
        loss: `d`: `"squared_error"`, `sum_i (x_i - x'_i)^2`, or `"binary_crossentropy"`, in nats, for data in [0, 1] and a decoder whose
            output lies in [0, 1]; where that decoder ends in `keras.layers.Activation("sigmoid")`, it is computed on the logits.
        seed: of the model's own noise, where a family has any. Default: a random one, fixed by `keras.utils.set_random_seed`.

    Raises:
        ValueError: where encoder and decoder don't fit together, or the loss is unknown; in `fit`, `evaluate` and `predict`, on data of a
            wrong rank, shape or dtype, without examples, with NaN or infinity, or outside [0, 1] under a cross-entropy.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.undercomplete(x_train.shape[1:], latent_dim=2)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2, validation_data=(x_test,))
    z = model.encode(x_test)
    ```
    """

    # Logged terms, each unweighted; a family names its own here, weighs them in `term_weights` and computes them in `terms`.
    term_names = ("reconstruction_loss",)
    # What the encoder's outputs are called where they are deployed; the first is the code.
    code_names = ("z",)
    # q(z|x) and p(z) of a family that has them, objects of `kerasae.distributions`; with a prior a model generates examples.
    posterior = None
    prior = None
    # A layer that spoils examples in training, of a family that has one.
    corruption = None
    # Whether NaN in x means a missing value, which the loss leaves out.
    takes_missing = False
    # Whether most units of a code are 0 or nearly so.
    sparse_code = False
    # What was done to the data that the model was trained on, a `kerasae.preparation.Preparation`; what is exported takes data from before.
    preparation = None
    # A family whose units can die or collapse logs `active_units`: those whose variance over the examples exceeds this.
    active_threshold = None

    def __init__(self, encoder, decoder, loss="squared_error", seed=None, **kwargs):
        super().__init__(**kwargs)
        # p(x|z), or what stands for it.
        self.likelihood = loss if isinstance(loss, distributions.Likelihood) else distributions.distortion(loss)
        encoder, decoder = check_pair(encoder, decoder, len(self.code_names), len(self.reconstruction_names))
        for layer in decoder.layers:
            if isinstance(layer, TiedDense):
                layer.connect(encoder)
        self.encoder = encoder
        self.decoder = decoder
        self.seed = seed
        # Two streams: evaluating in the middle of training changes nothing of the training that follows.
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.evaluation_seed_generator = keras.random.SeedGenerator(seed)
        # Which steps of an example are padding; every likelihood asks it.
        self.padding = self.likelihood.padding = sequences.padding_of(encoder)
        self._read = self.likelihood.reader(decoder, self.reconstruction_names)
        self._term_trackers = [keras.metrics.Mean(name=name) for name in self.term_names]
        self._active_units = None
        if self.active_threshold is not None and self.code_size is not None:
            self._active_units = ActiveUnits(self.code_size, self.active_threshold)
        self.ready()

    # -- What a family defines ---------------------------------------------------------------------------------------------------------

    @property
    def distortion(self):
        """Name of the reconstruction loss."""
        return self.likelihood.distortion

    @property
    def needs_unit_interval(self):
        """Whether targets must lie in [0, 1], as under a cross-entropy."""
        return self.likelihood.support == (0.0, 1.0)

    @property
    def reconstruction_names(self):
        """What the decoder's outputs are called where they are deployed; the first is the reconstruction."""
        return self.likelihood.outputs

    @property
    def term_weights(self):
        """`{term: weight}` of the terms that `loss` sums; 1 where a term is absent."""
        return {}

    def forward(self, x, training):
        """Everything the terms need of one pass: `{"z", "reconstruction", ...}`; x as `arranged` gives it."""
        z = self.encoder(x, training=training)
        return {"z": z, **self.reconstruct(z, training, self.condition_of(x))}

    def terms(self, x, outputs):
        """`{term: (batch,)}` for targets `x` and the tensors that `forward` gave."""
        return {"reconstruction_loss": self.reconstruction_loss(x, outputs)}

    def score(self, x):
        """How badly each example is reconstructed, `(batch,)`, without noise; `score_meaning` says what it is. x as `arranged` gives it.

        Of a family with a posterior the negative ELBO at its most probable code, in nats, without a beta.
        """
        outputs = self.deterministic(x)
        loss = self.reconstruction_loss(self.target_of(x), outputs)
        if self.posterior is None:
            return loss
        return loss + self.posterior.kl(self.prior, [outputs[name] for name in self.code_names])

    @property
    def score_meaning(self):
        """What `score` is: `(definition, unit)`."""
        if self.posterior is None:
            return self.likelihood.score
        return (
            "negative evidence lower bound at z = z_mean: -ln p(x|z_mean) + KL(q(z|x) || N(0, I)), without a beta",
            "nats",
        )

    # -- Shared by the families --------------------------------------------------------------------------------------------------------

    def functions(self):
        """What the model computes, `{name: kerasae.functions.Function}`: encode, decode, reconstruct, score; with a prior, sample."""
        return functions.of_model(self)

    def deterministic(self, x):
        """What one pass without noise gives: the encoder's outputs by their names, the code `"z"`, and what `reconstruct` gives."""
        encoded = self.encoder(x, training=False)
        outputs = dict(zip(self.code_names, tf.nest.flatten(encoded), strict=True))
        z = self.code_of(encoded)
        return {**outputs, "z": z, **self.reconstruct(z, False, self.condition_of(x))}

    def reconstruct(self, z, training, condition=()):
        """The decoder's outputs by their names, `{"reconstruction", ...}`, from codes, with `"logits"` beside them under a cross-entropy.

        Args:
            z: codes.
            training: as in Keras.
            condition: what the decoder takes besides, as `condition_of` gives it.
        """
        return self._read([z, *condition] if condition else z, training)

    def condition_of(self, x):
        """What the decoder takes besides the code of an arranged batch: those of its side inputs that the decoder has, too."""
        names = [tensor.name for tensor in self.encoder.inputs]
        return [x[names.index(tensor.name)] for tensor in self.decoder.inputs[1:]]

    def reconstruction_loss(self, x, outputs):
        """`d(x, x')` per example, shape `(batch,)`."""
        return self.likelihood.loss(x, outputs)

    def noise_generator(self, training):
        """The stream of random numbers to draw from."""
        return self.seed_generator if training else self.evaluation_seed_generator

    def arranged(self, x):
        """A batch as the encoder takes it: as it is, or, for an encoder with several inputs, a list in their order."""
        if len(self.encoder.inputs) == 1:
            return x
        return checks.in_order(x, [tensor.name for tensor in self.encoder.inputs])

    def target_of(self, x):
        """What is reconstructed of an arranged batch: itself, or its first input."""
        return x if len(self.encoder.inputs) == 1 else x[0]

    def check_examples(self, x, name="x", unit_interval=False):
        """Arrays as the encoder takes them, arranged; raises `ValueError` on what it does not take, as `kerasae.checks.array`."""
        shapes = {tensor.name: tensor.shape[1:] for tensor in self.encoder.inputs}
        if len(shapes) == 1:
            if self.padding is not None and isinstance(x, (list, tuple)):
                if self.padding.value is None:
                    raise ValueError(
                        f"Layers stand between x and the one that makes the mask: pass `{name}` as an array, padded so that they give "
                        "the mask's value."
                    )
                x = checks.padded(x, *shapes.values(), name=name, value=self.padding.value)
            return self.check_array(x, *shapes.values(), name, unit_interval)
        return checks.inputs(x, shapes, name, unit_interval, self.takes_missing)

    def check_array(self, x, shape, name, unit_interval):
        """`kerasae.checks.array` of what the model may take for an example of a shape."""
        padding = None if self.padding is None else self.padding.value
        return checks.array(x, shape, name, unit_interval, self.takes_missing, padding)

    def call_inputs(self):
        return self.encoder.inputs

    def call(self, x, training=False):
        x = self.arranged(x)
        # Without a posterior `forward` has no noise outside of training, and is what a subclass may have changed.
        outputs = self.forward(x, training) if training or self.posterior is None else self.deterministic(x)
        return self.with_padding(self.target_of(x), outputs["reconstruction"])

    def with_padding(self, x, reconstruction):
        """The reconstruction of examples x, which holds padding where x does."""
        return reconstruction if self.padding is None else self.padding.keep(x, reconstruction)

    def encode(self, x, batch_size=256, verbose=0):
        """Codes of examples: NumPy, `(n, latent_dim)`. Takes what `keras.Model.predict` takes."""
        with batches.Naming() as naming:
            codes = predict(self.encoder, self._check_inputs(x, naming), batch_size, verbose)
        return np.asarray(self.code_of(codes))

    def code_of(self, encoder_output):
        """The deterministic code among the encoder's outputs: what `decode` takes and `encode` gives."""
        return encoder_output if self.posterior is None else self.posterior.mode(encoder_output)

    def decode(self, z, batch_size=256, verbose=0, condition=None):
        """Reconstructions from codes: NumPy, `(n, *input_shape)`. Takes what `keras.Model.predict` takes.

        Args:
            z: codes, `(n, latent_dim)`.
            condition: for a decoder of `(z, condition)`: an array with as many rows, or a list, or a dict by name, where it takes several.
        """
        names = [tensor.name for tensor in self.decoder.inputs]
        if len(names) > 1:
            z = self._with_condition(z, condition, names)
        elif condition is not None:
            raise ValueError("This model's decoder takes no condition: it has one input, the code.")
        elif is_array(z):
            z = checks.array(z, self.decoder.inputs[0].shape[1:], name="z")
        return self.reconstruction_of(predict(self.decoder, z, batch_size, verbose))

    def _with_condition(self, z, condition, names):
        given = condition if isinstance(condition, (dict, list, tuple)) else [condition]
        fits = set(given) == set(names[1:]) if isinstance(given, dict) else len(given) == len(names) - 1
        if condition is None or not fits:
            raise ValueError(
                f"This model's decoder takes a condition beside the code: pass `condition`, {names[1:]}. Received: {condition!r:.80}"
            )
        values = {names[0]: z, **given} if isinstance(given, dict) else [z, *given]
        return checks.inputs(
            values, {tensor.name: tensor.shape[1:] for tensor in self.decoder.inputs}, "z and condition"
        )

    def reconstruction_of(self, decoder_output):
        """The reconstruction among the decoder's outputs."""
        return tf.nest.flatten(decoder_output)[0]

    def active_units(self, x, batch_size=256):
        """How many of the code's units vary over examples, and so can carry information; the others are dead or collapsed.

        A unit is active where the variance of its code over the examples exceeds 0.01 (0 for a k-sparse code, where a unit that is never
        kept is constantly 0), after Burda et al. 2016, appendix C. See `kerasae.metrics.active_units`.

        Args:
            x: examples; as many as the question is asked of.

        Returns:
            int, at most `latent_dim`.
        """
        codes = self.encode(x, batch_size).astype("float64")
        return int((codes.reshape(len(codes), -1).var(axis=0) > self.active_variance).sum())

    @property
    def active_variance(self):
        """The variance that a unit's code must exceed to count as active, in squared units of the code."""
        return 0.01 if self.active_threshold is None else self.active_threshold

    @property
    def code_size(self):
        """Number of entries of a code, or None where the code's shape depends on the input's."""
        shape = self.encoder.outputs[0].shape[1:]
        return None if None in shape else math.prod(shape)

    # -- Saving ------------------------------------------------------------------------------------------------------------------------

    def get_config(self):
        return {
            **super().get_config(),
            **({} if self.preparation is None else {"preparation": self.preparation.to_dict()}),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "loss": self.distortion,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        # The networks, and whatever layers a family has besides.
        serialized = {
            name: value for name, value in config.items() if isinstance(value, dict) and "class_name" in value
        }
        objects = {name: keras.saving.deserialize_keras_object(value) for name, value in serialized.items()}
        config = {**config, **objects}
        preparation = config.pop("preparation", None)
        model = cls(**config)
        model.preparation = None if preparation is None else Preparation.from_dict(preparation)
        return model

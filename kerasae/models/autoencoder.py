"""The one mechanism: every family is this class with its own terms."""

import math

import keras
import numpy as np
from keras import ops

from kerasae import checks, losses
from kerasae.layers import TiedDense
from kerasae.models.fitting import Fitting, is_array, predict
from kerasae.models.steps import ActiveUnits
from kerasae.networks import check_pair

RECONSTRUCTION_LOSSES = ("squared_error", "binary_crossentropy")


@keras.saving.register_keras_serializable("kerasae")
class Autoencoder(Fitting):
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
    # What the encoder's outputs and the decoder's are called where they are deployed.
    code_names = ("z",)
    reconstruction_names = ("reconstruction",)
    # A family whose units can die or collapse logs `active_units`: those whose variance over the examples exceeds this.
    active_threshold = None

    def __init__(self, encoder, decoder, loss="squared_error", seed=None, **kwargs):
        super().__init__(**kwargs)
        encoder, decoder = check_pair(encoder, decoder, len(self.code_names), len(self.reconstruction_names))
        self.distortion = checks.choice(loss, "loss", RECONSTRUCTION_LOSSES)
        for layer in decoder.layers:
            if isinstance(layer, TiedDense):
                layer.connect(encoder)
        self.encoder = encoder
        self.decoder = decoder
        self.seed = seed
        # Two streams: evaluating in the middle of training changes nothing of the training that follows.
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.evaluation_seed_generator = keras.random.SeedGenerator(seed)
        self._decode_with_logits = _logits_decoder(decoder) if self.needs_unit_interval else None
        self._term_trackers = [keras.metrics.Mean(name=name) for name in self.term_names]
        self._active_units = None
        if self.active_threshold is not None and self.code_size is not None:
            self._active_units = ActiveUnits(self.code_size, self.active_threshold)
        # Both networks are built. Without this, `.keras` files would lose the optimiser's state.
        self.built = True

    # -- What a family defines ---------------------------------------------------------------------------------------------------------

    @property
    def needs_unit_interval(self):
        """Whether the reconstruction loss is a cross-entropy, so that targets must lie in [0, 1]."""
        return self.distortion == "binary_crossentropy"

    @property
    def term_weights(self):
        """`{term: weight}` of the terms that `loss` sums; 1 where a term is absent."""
        return {}

    def forward(self, x, training):
        """Everything the terms need of one pass: `{"z", "reconstruction", ...}`; x as `arranged` gives it."""
        z = self.encoder(x, training=training)
        return {"z": z, **self.reconstruct(z, training)}

    def terms(self, x, outputs):
        """`{term: (batch,)}` for targets `x` and the tensors that `forward` gave."""
        return {"reconstruction_loss": self.reconstruction_loss(x, outputs)}

    # -- Shared by the families --------------------------------------------------------------------------------------------------------

    def reconstruct(self, z, training):
        """`{"reconstruction"}` from codes, with `"logits"` beside it under a cross-entropy."""
        if self._decode_with_logits is None:
            return {"reconstruction": self.decoder(z, training=training)}
        reconstruction, logits = self._decode_with_logits(z, training=training)
        return {"reconstruction": reconstruction, "logits": logits}

    def reconstruction_loss(self, x, outputs):
        """`d(x, x')` per example, shape `(batch,)`."""
        if self.needs_unit_interval:
            return losses.binary_crossentropy(x, outputs["logits"])
        return losses.squared_error(x, outputs["reconstruction"])

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
            return checks.array(x, *shapes.values(), name=name, unit_interval=unit_interval)
        return checks.inputs(x, shapes, name, unit_interval)

    def call(self, x, training=False):
        return self.forward(self.arranged(x), training)["reconstruction"]

    def encode(self, x, batch_size=256, verbose=0):
        """Codes of examples: NumPy, `(n, latent_dim)`. Takes what `keras.Model.predict` takes."""
        codes = predict(self.encoder, self._check_inputs(x), batch_size, verbose)
        return self.code_of(codes)

    def code_of(self, encoder_output):
        """The deterministic code among the encoder's outputs."""
        return encoder_output

    def decode(self, z, batch_size=256, verbose=0):
        """Reconstructions from codes: NumPy, `(n, *input_shape)`. Takes what `keras.Model.predict` takes."""
        if is_array(z):
            z = checks.array(z, self.decoder.inputs[0].shape[1:], name="z")
        return self.reconstruction_of(predict(self.decoder, z, batch_size, verbose))

    def reconstruction_of(self, decoder_output):
        """The reconstruction among the decoder's outputs."""
        return decoder_output

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
        return cls(**{**config, **objects})

    # Keras doesn't save the state of random seeds. Without it, training that goes on from a file would draw other noise.

    def _seed_states(self):
        return [v for v in self.variables if v.name == "seed_generator_state"]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"seed_state_{i}"] = state.numpy()

    def load_own_variables(self, store):
        for i, state in enumerate(self._seed_states()):
            state.assign(np.asarray(store[f"seed_state_{i}"]))
        super().load_own_variables({key: store[key] for key in store.keys() if not key.startswith("seed_state_")})


def _logits_decoder(decoder):
    """A function from codes to `(reconstruction, logits)`, for a decoder whose output lies in [0, 1]."""
    last = decoder.get_layer(decoder.output_names[0]) if hasattr(decoder, "output_names") else decoder.layers[-1]
    activation = getattr(last, "activation", None)
    if activation is keras.activations.linear:
        raise ValueError(
            f"A cross-entropy (Bernoulli) loss needs a decoder whose output lies in [0, 1], and this one ends in the linear layer "
            f'{last.name!r}. Add keras.layers.Activation("sigmoid") behind it.'
        )
    if isinstance(last, keras.layers.Activation) and activation is keras.activations.sigmoid:
        both = keras.Model(decoder.inputs, [decoder.outputs[0], last.input])
        # In a closure, so that Keras doesn't track it as a layer: its layers are the decoder's.
        return lambda z, training: both(z, training=training)

    def from_probabilities(z, training):
        reconstruction = decoder(z, training=training)
        # ln p - ln(1 - p), kept finite as Keras's own cross-entropy of probabilities is.
        p = ops.clip(ops.cast(reconstruction, "float32"), keras.config.epsilon(), 1.0 - keras.config.epsilon())
        return reconstruction, ops.log(p) - ops.log(1.0 - p)

    return from_probabilities

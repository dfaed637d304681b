"""The one mechanism: every family is this class with its own terms."""

import functools
import inspect
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, losses
from kerasae.layers import TiedDense
from kerasae.models import distribution, execution
from kerasae.networks import check_pair

RECONSTRUCTION_LOSSES = ("squared_error", "binary_crossentropy")


@keras.saving.register_keras_serializable("kerasae")
class Autoencoder(keras.Model):
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
        codes = _predict(self.encoder, self._check_inputs(x), batch_size, verbose)
        return self.code_of(codes)

    def code_of(self, encoder_output):
        """The deterministic code among the encoder's outputs."""
        return encoder_output

    def decode(self, z, batch_size=256, verbose=0):
        """Reconstructions from codes: NumPy, `(n, *input_shape)`. Takes what `keras.Model.predict` takes."""
        if _is_array(z):
            z = checks.array(z, self.decoder.inputs[0].shape[1:], name="z")
        return self.reconstruction_of(_predict(self.decoder, z, batch_size, verbose))

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

    # -- The steps ---------------------------------------------------------------------------------------------------------------------

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss, batch = self._loss(data, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        if distribution.num_replicas() > 1:
            gradients = distribution.sum_before_clipping(self.optimizer, gradients)
        if self.__dict__.get("_updates_wait") and gradients[0] is not None:
            gradients = execution.when_all_are_known(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return distribution.as_logs(self.compute_metrics(**batch))

    def test_step(self, data):
        _, batch = self._loss(data, training=False)
        return distribution.as_logs(self.compute_metrics(**batch))

    def predict_step(self, data):
        if distribution.num_replicas() == 1:
            return super().predict_step(data)
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return distribution.call_without_empty_batches(self, x, lambda x: self(x, training=False))

    def _loss(self, data, training):
        """The scalar loss of a batch, its terms tracked; and what `compute_metrics` takes."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self.arranged(x)
        y = self.target_of(x) if y is None else y
        batch_size = tf.shape(tf.nest.flatten(x)[0])[0]
        if distribution.num_replicas() == 1:
            outputs = self.forward(x, training=training)
        else:
            outputs = distribution.call_without_empty_batches(self, x, lambda x: self.forward(x, training=training))
        reconstruction = outputs["reconstruction"]
        terms = self.terms(y, outputs)
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
            terms = {name: term * sample_weight for name, term in terms.items()}
            # Keras's losses and metrics want a weight for each of their own values, (batch, ..., 1): all of y's axes but the last.
            sample_weight = ops.reshape(sample_weight, (-1, *[1] * (len(y.shape) - 2)))
        if self.loss is not None:
            # The user's Keras loss, with Keras's own reduction and sample weights: the same number for every example of the batch.
            user_loss = self._compile_loss(y, reconstruction, sample_weight)
            if distribution.num_replicas() > 1:
                distribution.check_keras_loss(self.loss, y, reconstruction)
                user_loss *= distribution.num_replicas()  # Keras has divided by it
            terms["reconstruction_loss"] = tf.fill((batch_size,), tf.cast(user_loss, tf.float32))
        weights = self.term_weights
        total = sum(weights.get(name, 1.0) * term for name, term in terms.items())
        if distribution.num_replicas() == 1:
            loss = ops.mean(total)
            loss += sum((ops.cast(ops.sum(extra), loss.dtype) for extra in self.losses), 0.0)
            mean_loss = loss
        else:
            extras = sum((ops.cast(ops.sum(extra), total.dtype) for extra in distribution.regularisation(self)), 0.0)
            loss, mean_loss = distribution.share_of_mean(total)
            loss, mean_loss = loss + extras / distribution.num_replicas(), mean_loss + extras
        for tracker in self._term_trackers:
            tracker.update_state(terms[tracker.name])
        if self._active_units is not None:
            self._active_units.update_state(ops.reshape(outputs.get("z_mean", outputs["z"]), (-1, self.code_size)))
        self._loss_tracker.update_state(mean_loss, sample_weight=batch_size)
        return loss, {"x": x, "y": y, "y_pred": reconstruction, "sample_weight": sample_weight}

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy Keras builds what `compile` was given from the mean of the replicas' first batches, whose sizes may differ.
        if self._distribute_strategy is not None:
            with self._distribute_strategy.scope():
                x = self.encoder.inputs if len(self.encoder.inputs) > 1 else self.encoder.inputs[0]
                self._symbolic_build(data_batch=(x, self.decoder.outputs[0]))

    def compile(self, *args, **kwargs):
        """Takes what `keras.Model.compile` takes. Where neither `jit_compile` nor `steps_per_execution` is given, `fit` chooses them."""
        arguments = inspect.signature(super().compile).bind(*args, **kwargs).arguments
        super().compile(*args, **kwargs)
        # Whoever says how steps are to be run gets that; else `fit` chooses.
        self._plans_execution = (
            arguments.get("jit_compile", "auto") == "auto" and arguments.get("steps_per_execution", 1) == 1
        )
        self.__dict__.pop("_planned_functions", None)

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "jit_compile": "auto"} if config and self._plans_execution else config

    def compile_from_config(self, config):
        if type(self).compile is not Autoencoder.compile:
            super().compile_from_config(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # -- The door: data is checked before training starts ------------------------------------------------------------------------------

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        distribution.check(self)
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        self._check_data(arguments)
        if arguments.get("validation_data") is not None and not _is_batched(arguments["validation_data"]):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
            validation = {"x": x, "y": y, "sample_weight": sample_weight}
            self._check_data(validation, prefix="validation ")
            arguments["validation_data"] = tuple(v for v in validation.values() if v is not None)
        plan = execution.plan(self, arguments) if self.compiled and self._plans_execution else (False, 1)
        with execution.carried_out(self, *plan, arguments) as arguments:
            return super().fit(**arguments)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        # The same noise in every evaluation, so that two of the same model agree and epochs can be compared.
        state = self.evaluation_seed_generator.state
        state.assign(ops.stack([state[0], ops.zeros_like(state[0])]))
        if "_use_cached_eval_dataset" in kwargs:  # `fit` validates on data it has checked
            return super().evaluate(*args, **kwargs)
        arguments = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        self._check_data(arguments)
        return super().evaluate(**execution.fed(self, arguments))

    @functools.wraps(keras.Model.predict)
    def predict(self, x, *args, **kwargs):
        arguments = inspect.signature(super().predict).bind(self._check_inputs(x), *args, **kwargs).arguments
        checks.batch_size(arguments)
        return super().predict(**execution.fed(self, arguments))

    def _check_inputs(self, x):
        if _is_array(x) or (len(self.encoder.inputs) > 1 and not _is_batched(x)):
            return self.check_examples(x)
        return x

    def _check_data(self, arguments, prefix=""):
        """Checks `x`, `y` and `sample_weight` of a call in place."""
        checks.batch_size(arguments)
        x, y = arguments.get("x"), arguments.get("y")
        if x is None:
            raise ValueError(f"No {prefix}data: pass an array of examples or a tf.data.Dataset as `x`.")
        target_shape = self.decoder.outputs[0].shape[1:]
        if _is_batched(x):
            self._check_batches(x, target_shape, prefix)
            return
        if isinstance(x, tuple) and len(x) == 1:
            (x,) = x
        x = self.check_examples(x, f"{prefix}x", unit_interval=y is None and self.needs_unit_interval)
        arguments["x"], target = x, self.target_of(x)
        if y is not None:
            arguments["y"] = checks.array(y, target_shape, name=f"{prefix}y", unit_interval=self.needs_unit_interval)
            if len(arguments["y"]) != len(target):
                raise ValueError(
                    f"{prefix}`x` and `y` must hold the same number of examples. "
                    f"Received: {len(target)} and {len(arguments['y'])}"
                )
        if arguments.get("sample_weight") is not None:
            weights = checks.array(arguments["sample_weight"], name=f"{prefix}sample_weight")
            if weights.shape not in {(len(target),), (len(target), 1)}:
                raise ValueError(
                    f"`{prefix}sample_weight` must have shape ({len(target)},), a weight an example. "
                    f"Received: {weights.shape}"
                )
            arguments["sample_weight"] = weights
            # Without a target Keras would drop the weights in silence.
            arguments.setdefault("y", target)
            if arguments["y"] is None:
                arguments["y"] = target

    def _check_batches(self, batches, target_shape, prefix):
        """Checks what can be known of a `tf.data.Dataset` or `PyDataset` before training: its form, and its first batch."""
        if isinstance(batches, tf.data.Dataset):
            first = next(iter(batches.take(1)), None)
        elif isinstance(batches, keras.utils.PyDataset):
            first = batches[0] if batches.num_batches != 0 else None
        else:
            return  # a generator: looking would take a batch away
        if first is None:
            raise ValueError(f"The {prefix}dataset is empty.")
        x, y, _ = keras.utils.unpack_x_y_sample_weight(first)
        where = f"{prefix}x in the dataset's first batch"
        self.check_examples(x, where, unit_interval=y is None and self.needs_unit_interval)
        if y is not None:
            if len(np.shape(y)) != len(target_shape) + 1:
                raise ValueError(
                    f"The {prefix}dataset gives (x, y) with y of shape {tuple(np.shape(y))}, and y is the target: shape "
                    f"(batch, {', '.join(map(str, target_shape))}). If y are labels, drop them: dataset.map(lambda x, y: x)."
                )
            checks.array(y, target_shape, name=where.replace("x", "y", 1), unit_interval=self.needs_unit_interval)

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


class ActiveUnits(keras.metrics.Metric):
    """Counts the units of a code whose variance over all examples seen exceeds a threshold.

    Args:
        num_units: size of the code.
        threshold: of the variance; in squared units of the code.

    Reference:
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", appendix C.
    """

    def __init__(self, num_units, threshold, name="active_units"):
        super().__init__(name=name)
        self.threshold = threshold
        # Sums, so that those of several replicas can be added up.
        self.count = self.add_variable((), "zeros", name="count")
        self.sum = self.add_variable((num_units,), "zeros", name="sum")
        self.sum_of_squares = self.add_variable((num_units,), "zeros", name="sum_of_squares")

    def update_state(self, codes):
        codes = ops.cast(codes, "float32")
        self.count.assign_add(ops.cast(ops.shape(codes)[0], "float32"))
        self.sum.assign_add(ops.sum(codes, axis=0))
        self.sum_of_squares.assign_add(ops.sum(ops.square(codes), axis=0))

    def result(self):
        count = ops.maximum(self.count, 1.0)
        variance = self.sum_of_squares / count - ops.square(self.sum / count)
        return ops.sum(ops.cast(variance > self.threshold, "float32"))


def _is_batched(x):
    """Whether `x` yields batches by itself, rather than being an array of examples."""
    return isinstance(
        x, (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)
    ) or inspect.isgenerator(x)


def _is_array(x):
    return not _is_batched(x) and not isinstance(x, (dict, list, tuple))


def _predict(network, x, batch_size, verbose):
    if _is_batched(x):
        return network.predict(x, verbose=verbose)
    batch_size = checks.positive_int(batch_size, "batch_size")
    arrays = x if isinstance(x, list) else [x]
    if network.distribute_strategy.num_replicas_in_sync > 1 and all(isinstance(a, np.ndarray) for a in arrays):
        return distribution.predict(network, x, batch_size, verbose)
    return network.predict(**execution.fed(network, {"x": x, "batch_size": batch_size, "verbose": verbose}))


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

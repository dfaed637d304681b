"""What one step of training, evaluating and predicting computes, and how `compile` and files set it up."""

import inspect

import keras
import tensorflow as tf
from keras import ops

from kerasae import keras_internals
from kerasae.models import distribution, execution, optimizers
from kerasae.models.optimizers import TrainingGroup


class Steps(keras_internals.SymbolicBuild):
    """The steps of every family: they take `forward` and `terms` of a model, and its `term_weights`, from `Autoencoder`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.compiled_steps = execution.CompiledSteps(self)

    @property
    def training_groups(self):
        """`{name: TrainingGroup}`, updated one after the other in each training step; each has an optimiser of its own.

        One by default, which lowers all terms by all variables. An adversarial family, for one, names several:

        ```python
        {
            "autoencoder": TrainingGroup(encoder_and_decoder, ("reconstruction_loss",)),
            "discriminator": TrainingGroup(self.discriminator.trainable_variables, ("discriminator_loss",)),
            "generator": TrainingGroup(self.encoder.trainable_variables, ("generator_loss",)),
        }
        ```
        """
        return {"autoencoder": TrainingGroup(self.trainable_variables)}

    def train_step(self, data):
        groups = self.training_groups
        mean_losses, first_batch = [], None
        for name, (variables, terms, steps) in groups.items():
            optimizer = self.optimizer if len(groups) == 1 else self.optimizer[name]
            is_first = not mean_losses
            for _ in range(steps):
                with tf.GradientTape() as tape:
                    loss, mean_loss, batch = self._loss(data, True, terms, is_first)
                    scaled_loss = optimizer.scale_loss(loss)
                gradients = tape.gradient(scaled_loss, variables)
                if distribution.num_replicas() > 1:
                    gradients = distribution.sum_before_clipping(optimizer, gradients)
                if self.compiled_steps.updates_wait and gradients[0] is not None:
                    gradients = execution.when_all_are_known(gradients)
                optimizer.apply_gradients(zip(gradients, variables, strict=True))
                mean_losses.append(mean_loss if steps == 1 else mean_loss / steps)
                first_batch = first_batch or batch
        return self._logs(mean_losses, first_batch)

    def test_step(self, data):
        _, mean_loss, batch = self._loss(data, training=False)
        return self._logs([mean_loss], batch)

    def _logs(self, mean_losses, batch):
        batch_size = tf.shape(tf.nest.flatten(batch["x"])[0])[0]
        loss = sum(mean_losses[1:], mean_losses[0])
        keras_internals.loss_tracker(self).update_state(loss, sample_weight=batch_size)
        return distribution.as_logs(self.compute_metrics(**batch))

    def predict_step(self, data):
        if distribution.num_replicas() == 1:
            return super().predict_step(data)
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return distribution.call_without_empty_batches(self, x, lambda x: self(x, training=False))

    def _loss(self, data, training, group_terms=None, is_first=True):
        """The scalar loss of a batch, as the gradient takes it and as it is logged, its terms tracked; and what `compute_metrics` takes.

        Args:
            data: batch.
            training: as in Keras.
            group_terms: names of the terms that the loss sums and that are tracked. Default: all.
            is_first: whether they are of the step's first group; what the groups share is logged with that.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self.arranged(x)
        y = self.target_of(x) if y is None else y
        batch_size = tf.shape(tf.nest.flatten(x)[0])[0]
        if distribution.num_replicas() == 1:
            outputs = self.forward(x, training=training)
        else:
            outputs = distribution.call_without_empty_batches(self, x, lambda x: self.forward(x, training=training))
        reconstruction = outputs["reconstruction"]
        if self.padding is not None:  # Keras's losses and metrics take it from there
            reconstruction = keras_internals.with_mask(reconstruction, self.padding.mask(y))
        terms = self.terms(y, outputs)
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
            terms = {name: term * sample_weight for name, term in terms.items()}
            # Keras's losses and metrics want a weight for each of their own values, (batch, ..., 1): all of y's axes but the last.
            sample_weight = ops.reshape(sample_weight, (-1, *[1] * (len(y.shape) - 2)))
        if self.loss is not None and (group_terms is None or "reconstruction_loss" in group_terms):
            # The user's Keras loss, with Keras's own reduction and sample weights: the same number for every example of the batch.
            user_loss = keras_internals.compiled_loss(self, y, reconstruction, sample_weight)
            if distribution.num_replicas() > 1:
                distribution.check_keras_loss(self.loss, y, reconstruction)
                user_loss *= distribution.num_replicas()  # Keras has divided by it
            terms["reconstruction_loss"] = tf.fill((batch_size,), tf.cast(user_loss, tf.float32))
        if group_terms is not None:
            terms = {name: terms[name] for name in group_terms}
        weights = self.term_weights
        total = sum(weights.get(name, 1.0) * term for name, term in terms.items())
        if distribution.num_replicas() == 1:
            mean_loss = ops.mean(total)
            loss = mean_loss + sum((ops.cast(ops.sum(extra), mean_loss.dtype) for extra in self.losses), 0.0)
            mean_loss = loss if is_first else mean_loss
        else:
            extras = sum((ops.cast(ops.sum(extra), total.dtype) for extra in distribution.regularisation(self)), 0.0)
            loss, mean_loss = distribution.share_of_mean(total)
            loss += extras / distribution.num_replicas()
            mean_loss = mean_loss + extras if is_first else mean_loss
        for tracker in self._term_trackers:
            if tracker.name in terms:
                tracker.update_state(terms[tracker.name])
        if self._active_units is not None and is_first:
            self._active_units.update_state(ops.reshape(outputs.get("z_mean", outputs["z"]), (-1, self.code_size)))
        return loss, mean_loss, {"x": x, "y": y, "y_pred": reconstruction, "sample_weight": sample_weight}

    def symbolic_batch(self):
        x = self.encoder.inputs if len(self.encoder.inputs) > 1 else self.encoder.inputs[0]
        return x, self.decoder.outputs[0]

    def compile(self, *args, **kwargs):
        """Takes what `keras.Model.compile` takes. Where neither `jit_compile` nor `steps_per_execution` is given, `fit` chooses them.

        A model with several `training_groups` takes `optimizer={name of the group: optimiser}`, too; of one optimiser, further groups have
        copies.
        """
        arguments = inspect.signature(super().compile).bind(*args, **kwargs).arguments
        groups = self.training_groups
        scale_loss = arguments.get("auto_scale_loss", True) and self.dtype_policy.name == "mixed_float16"
        optimizer = optimizers.for_groups(arguments.get("optimizer", "rmsprop"), groups, scale_loss)
        if len(groups) > 1:
            arguments["auto_scale_loss"] = False  # each scales its own
        super().compile(**{**arguments, "optimizer": optimizer})
        # Whoever says how steps are to be run gets that; else `fit` chooses.
        self._plans_execution = (
            arguments.get("jit_compile", "auto") == "auto" and arguments.get("steps_per_execution", 1) == 1
        )
        self.compiled_steps.forget()

    def get_compile_config(self):
        config = super().get_compile_config()
        if not config or not self._plans_execution:
            return config
        return {**config, "jit_compile": "auto", "compiled_steps": self.compiled_steps.served}

    def compile_from_config(self, config):
        served = config.get("compiled_steps", [])
        config = {name: value for name, value in config.items() if name != "compiled_steps"}
        if type(self).compile is not Steps.compile:
            super().compile_from_config(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.compiled_steps.served = [list(call) for call in served]
        self.optimizer.build(self.trainable_variables)


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

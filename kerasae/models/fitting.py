"""`fit`, `evaluate` and `predict`: data is checked before anything starts."""

import functools
import inspect

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, keras_internals
from kerasae.models import distribution, execution, exits
from kerasae.models.steps import Steps


class Fitting(Steps):
    """Checks the data of a call, and has it run as `kerasae.models.execution` plans it."""

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        distribution.check(self)
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        exits.check_callbacks(execution.callbacks_of(arguments))
        self._check_data(arguments)
        if arguments.get("validation_data") is not None and not is_batched(arguments["validation_data"]):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
            validation = {"x": x, "y": y, "sample_weight": sample_weight}
            self._check_data(validation, prefix="validation ")
            arguments["validation_data"] = tuple(v for v in validation.values() if v is not None)
        plan = execution.plan(self, arguments) if self.compiled and self._plans_execution else execution.KERAS_OWN
        with self.compiled_steps.carried_out(plan, arguments) as arguments:
            return super().fit(**arguments)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        # The same noise in every evaluation, so that two of the same model agree and epochs can be compared.
        state = self.evaluation_seed_generator.state
        state.assign(ops.stack([state[0], ops.zeros_like(state[0])]))
        if keras_internals.VALIDATING in kwargs:  # `fit` validates on data it has checked
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
        if is_array(x) or (len(self.encoder.inputs) > 1 and not is_batched(x)):
            return self.check_examples(x)
        return x

    def _check_data(self, arguments, prefix=""):
        """Checks `x`, `y` and `sample_weight` of a call in place."""
        checks.batch_size(arguments)
        x, y = arguments.get("x"), arguments.get("y")
        if x is None:
            raise ValueError(f"No {prefix}data: pass an array of examples or a tf.data.Dataset as `x`.")
        target_shape = self.decoder.outputs[0].shape[1:]
        if is_batched(x):
            self._check_batches(x, target_shape, prefix)
            return
        if isinstance(x, tuple) and len(x) == 1:
            (x,) = x
        x = self.check_examples(x, f"{prefix}x", unit_interval=y is None and self.needs_unit_interval)
        arguments["x"], target = x, self.target_of(x)
        if y is not None:
            arguments["y"] = checks.array(
                y, target_shape, name=f"{prefix}y", unit_interval=self.needs_unit_interval, missing=self.takes_missing
            )
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
        first = first_batch(batches, prefix)
        if first is None:
            return
        x, y, _ = keras.utils.unpack_x_y_sample_weight(first)
        where = f"{prefix}x in the dataset's first batch"
        self.check_examples(x, where, unit_interval=y is None and self.needs_unit_interval)
        if y is not None:
            if len(np.shape(y)) != len(target_shape) + 1:
                raise ValueError(
                    f"The {prefix}dataset gives (x, y) with y of shape {tuple(np.shape(y))}, and y is the target: shape "
                    f"(batch, {', '.join(map(str, target_shape))}). If y are labels, drop them: dataset.map(lambda x, y: x)."
                )
            checks.array(
                y,
                target_shape,
                name=where.replace("x", "y", 1),
                unit_interval=self.needs_unit_interval,
                missing=self.takes_missing,
            )


def is_batched(x):
    """Whether `x` yields batches by itself, rather than being an array of examples."""
    return isinstance(
        x, (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)
    ) or inspect.isgenerator(x)


def first_batch(batches, prefix=""):
    """The first batch of a `tf.data.Dataset` or `PyDataset`; None of a generator, where looking would take a batch away."""
    if isinstance(batches, tf.data.Dataset):
        first = next(iter(batches.take(1)), None)
    elif isinstance(batches, keras.utils.PyDataset):
        first = batches[0] if batches.num_batches != 0 else None
    else:
        return None
    if first is None:
        raise ValueError(f"The {prefix}dataset is empty.")
    return first


def is_array(x):
    """Whether `x` is an array of examples, or something like one, rather than batches or several arrays."""
    return not is_batched(x) and not isinstance(x, (dict, list, tuple))


def predict(network, x, batch_size, verbose):
    """What `network.predict` gives, from arrays in batches of our own, on several replicas without empty ones."""
    if is_batched(x):
        return network.predict(x, verbose=verbose)
    batch_size = checks.positive_int(batch_size, "batch_size")
    arrays = x if isinstance(x, list) else [x]
    if network.distribute_strategy.num_replicas_in_sync > 1 and all(isinstance(a, np.ndarray) for a in arrays):
        return distribution.predict(network, x, batch_size, verbose)
    return network.predict(**execution.fed(network, {"x": x, "batch_size": batch_size, "verbose": verbose}))

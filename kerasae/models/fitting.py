"""`fit`, `evaluate` and `predict`: data is checked before anything starts, and what comes in batches as it comes."""

import functools
import inspect
import logging
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, keras_internals
from kerasae.models import batches, distribution, execution, exits, feeding
from kerasae.models.batches import as_floats, is_batched, within
from kerasae.models.steps import Steps

_log = logging.getLogger(__name__)


class Fitting(Steps):
    """Checks the data of a call, and has it run as `kerasae.models.execution` plans it."""

    # Whether `fit` was given x outside the range of its targets: then nothing is known of the range of x.
    _takes_other_ranges = False

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        distribution.check(self)
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        checks.fit_arguments(arguments)
        exits.check_callbacks(execution.callbacks_of(arguments))
        if self.compiled and self.optimizer is None:
            raise ValueError(
                'The model was compiled without an optimizer, so it can\'t be fitted: compile(optimizer="adam").'
            )
        if self.needs_unit_interval:
            self.likelihood.check_decoder(self.decoder)
        if self.loss is not None and self.prior is not None:
            _log.warning(
                "compile(loss=...) replaces -ln p(x|z), a sum over the features in nats. Keras's losses and similarities of images are "
                "means, of the order of 1: the KL term, in nats, outweighs them, and codes collapse. Build the model with a small "
                "beta, such as 0.001, or multiply the loss by the number of features; `active_units` counts the codes that are left."
            )
        with batches.Naming() as naming:
            self._check_data(arguments, naming, steps="steps_per_epoch")
            if (validation_data := arguments.get("validation_data")) is not None:
                x, y, sample_weight = validation_data, None, None
                if not is_batched(validation_data):
                    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(validation_data)
                validation = {"x": x, "y": y, "sample_weight": sample_weight}
                validation["validation_steps"] = arguments.get("validation_steps")
                self._check_data(validation, naming, "validation ", "validation_steps")
                parts = tuple(validation[name] for name in ("x", "y", "sample_weight") if validation[name] is not None)
                arguments["validation_data"] = parts[0] if is_batched(x) else parts
            plan = execution.plan(self, arguments) if self.compiled and self._plans_execution else execution.KERAS_OWN
            with self.compiled_steps.carried_out(plan, arguments) as arguments:
                history = super().fit(**arguments)
        if not np.isfinite(history.history.get("loss") or 0).all():
            _log.warning(
                "Training diverged: the loss is no finite number, and the weights may not be any. Scale the data to about 1, or lower the "
                "learning rate, and build the model anew."
            )
        return history

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        # The same noise in every evaluation, so that two of the same model agree and epochs can be compared.
        state = self.evaluation_seed_generator.state
        state.assign(ops.stack([state[0], ops.zeros_like(state[0])]))
        if keras_internals.VALIDATING in kwargs:  # `fit` validates on data it has checked
            return super().evaluate(*args, **kwargs)
        arguments = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        with batches.Naming() as naming:
            self._check_data(arguments, naming)
            return super().evaluate(**feeding.fed(self, arguments))

    @functools.wraps(keras.Model.predict)
    def predict(self, x, *args, **kwargs):
        arguments = inspect.signature(super().predict).bind(x, *args, **kwargs).arguments
        checks.steps(arguments)
        with batches.Naming() as naming:
            arguments["x"] = self._check_inputs(x, naming, arguments.get("steps"), "`steps`")
            return super().predict(**feeding.fed(self, arguments))

    def check_inputs(self, x, name="x"):
        """As `check_examples`, of what is not learnt from: also raises on 8-bit images for a model of values in [0, 1]."""
        x = self.check_examples(x, name)
        if self._knows_range:
            checks.no_bytes(self._without_padding(self.target_of(x)), name)
        return x

    @property
    def _knows_range(self):
        """Whether what a model of values in [0, 1] encodes must be in that range too, as far as one can know."""
        if not self.needs_unit_interval or self._takes_other_ranges or "float" not in self.encoder.inputs[0].dtype:
            return False
        kinds = map(keras_internals.kind_of_layer, keras_internals.all_layers(self.encoder))
        return not any(kind and kind[0] == "preprocessing" for kind in kinds)  # which scale

    def _without_padding(self, x):
        """Zeros for padding."""
        return x if self.padding is None or self.padding.value is None else np.where(x == self.padding.value, 0, x)

    def _note_range(self, x):
        x = self._without_padding(x)
        if self.needs_unit_interval and not self._takes_other_ranges:
            self._takes_other_ranges = bool(np.nanmin(x) < 0 or np.nanmax(x) > 1)

    def _check_inputs(self, x, naming, steps=None, option=None):
        """What `predict` and `encode` are given, checked: arrays, or batches within `naming`."""
        if is_batched(x):
            way_out = f"pass {option}, or dataset.take(n)" if option else "pass dataset.take(n), or see kerasae.streams"
            return self._watched(x, naming, "", False, steps, way_out)
        if is_array(x) or len(self.encoder.inputs) > 1 or (self.padding is not None and isinstance(x, list)):
            return self.check_inputs(x)
        return x

    def _check_data(self, arguments, naming, prefix="", steps="steps"):
        """Checks `x`, `y` and `sample_weight` of a call in place; batches are checked within `naming`, as they come."""
        checks.steps(arguments)
        x, y = arguments.get("x"), arguments.get("y")
        if x is None:
            raise ValueError(f"No {prefix}data: pass an array of examples or a tf.data.Dataset as `x`.")
        if is_batched(x):
            way_out = f"pass `{steps}`, or dataset.take(n)"
            arguments["x"] = self._watched(x, naming, prefix, True, arguments.get(steps), way_out)
            return
        if isinstance(x, tuple) and len(x) == 1:
            (x,) = x
        x = self.check_examples(x, f"{prefix}x", unit_interval=y is None and self.needs_unit_interval)
        arguments["x"], target = x, self.target_of(x)
        if y is not None:
            self._note_range(target)
            arguments["y"] = self._check_target(y, f"{prefix}y", "leave them out: fit(x)")
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
            checks.not_negative(weights, f"{prefix}sample_weight")
            arguments["sample_weight"] = weights
            # Without a target Keras would drop the weights in silence.
            arguments.setdefault("y", target)
            if arguments["y"] is None:
                arguments["y"] = target

    def _check_target(self, y, name, way_out):
        """`y` as an array; the message says what to do with labels, which it is most often where it is wrong."""
        shape = self.decoder.outputs[0].shape[1:]
        received = np.asarray(y)
        if received.dtype.kind not in "iufbO" or not checks.shapes_match(tuple(shape), received.shape[1:]):
            raise ValueError(
                f"`{name}` is the target that x is to become: numbers of shape (batch, {', '.join(map(str, shape))}). Received: "
                f"{received.dtype.name} of shape {received.shape}. If y are labels, {way_out}."
            )
        return self.check_array(y, shape, name, self.needs_unit_interval)

    # -- Batches -----------------------------------------------------------------------------------------------------------------------

    def _watched(self, x, naming, prefix, are_learnt, steps, way_out):
        """What comes in batches, each checked as it comes, its errors named within `naming`."""
        check = functools.partial(self._check_batch, prefix=prefix, are_learnt=are_learnt)
        seems_right = functools.partial(self._seems_right, are_learnt=are_learnt)
        watch = batches.Watch(check, seems_right, prefix)
        return batches.watched(x, naming, watch, steps, way_out, distribution.has_several_workers(self))

    def _check_batch(self, batch, number, prefix, are_learnt):
        """A batch as arrays, of arrays or tensors; raises what the message names the batch in."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        where = batches.place(number)
        if not are_learnt:
            return as_floats(self.check_inputs(x, f"{prefix}x {where}"))
        x = self.check_examples(x, f"{prefix}x {where}", unit_interval=y is None and self.needs_unit_interval)
        if y is not None:
            self._note_range(self.target_of(x))
            y = self._check_target(y, f"{prefix}y {where}", "drop them: dataset.map(lambda x, y: x)")
        if sample_weight is not None:
            sample_weight = checks.array(sample_weight, name=f"{prefix}sample_weight {where}")
            checks.not_negative(sample_weight, f"{prefix}sample_weight {where}")
        return keras.utils.pack_x_y_sample_weight(*as_floats((x, y, sample_weight)))

    def _seems_right(self, batch, are_learnt):
        """Whether `_check_batch` would find nothing, in a graph; False where in doubt."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        low, high = (0.0, 1.0) if are_learnt and y is None and self.needs_unit_interval else (-math.inf, math.inf)
        first, *others = zip(tf.nest.flatten(self.arranged(x)), self.encoder.inputs, strict=True)
        right = [within(first[0], first[1].shape[1:], low, high, self.takes_missing)]
        if not are_learnt and self._knows_range:
            right.append(~batches.like_bytes(first[0]))
        right += [within(tensor, symbol.shape[1:]) for tensor, symbol in others]
        if are_learnt and y is not None:
            low, high = (0.0, 1.0) if self.needs_unit_interval else (-math.inf, math.inf)
            right.append(within(y, self.decoder.outputs[0].shape[1:], low, high, self.takes_missing))
        if are_learnt and sample_weight is not None:
            right.append(within(sample_weight, sample_weight.shape[1:], low=0.0))
        return tf.reduce_all(tf.stack(right))


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
    return network.predict(**feeding.fed(network, {"x": x, "batch_size": batch_size, "verbose": verbose}))

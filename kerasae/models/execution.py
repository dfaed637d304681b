"""How `fit` runs its training steps: compiled by XLA, and several at once, where that pays and nothing that a user sees depends on it."""

import contextlib
import functools
import itertools
import logging
import math

import keras
import numpy as np
import tensorflow as tf

from kerasae import keras_internals
from kerasae.models import feeding, optimizers

# Compiling takes a second or two; from about so many steps on it is won back.
WORTHWHILE_STEPS = 1000
_STEPS_AT_ONCE = (16, 48)
# Another number of steps at once is another function to compile.
_FEWEST_AT_ONCE = 8
_BYTES_AT_ONCE = 2**26
# Where Keras keeps the layers that XLA makes faster on a CPU. Convolutions it makes slower (1.3 times); of others nothing is known.
_COMPILED_KINDS = {"activations", "merging", "models", "normalization", "regularization", "reshaping"}
_COMPILED_LAYERS = {
    ("core", "dense"),
    ("core", "identity"),
    ("core", "input_layer"),
    ("core", "masking"),
    ("preprocessing", "normalization"),
    ("preprocessing", "rescaling"),
}
# Recurrent layers of so many units XLA makes faster: 1.6 to 2.2 times at 32, not at all at 256.
_RECURRENT = (
    *(keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN),
    *(keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell),
)
_MOST_RECURRENT_UNITS = 64
# What `plan` gives where `fit` is left as Keras runs it: not compiled by XLA, one step at once.
KERAS_OWN = (False, 1)

_log = logging.getLogger(__name__)
_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)


def plan(model, arguments):
    """`(jit_compile, steps_at_once)` for a call of `fit`; `KERAS_OWN` wherever something speaks against more.

    A short fit is not worth compiling for; but it takes steps that an earlier one has compiled for the same plan and shapes. XLA rounds
    otherwise and draws other noise: so that a model from a file continues bit for bit as the one that was saved, it knows what steps that
    one had, and compiles them again.

    Args:
        model: `kerasae.models.Autoencoder`, compiled without a word on `jit_compile` and `steps_per_execution`.
        arguments: of `fit`, bound.
    """
    if model.run_eagerly or tf.config.functions_run_eagerly() or feeding.is_distributed(model) or not _is_ours(model):
        return KERAS_OWN
    steps, batch_bytes = _size(arguments)
    is_short = steps is None or steps * arguments.get("epochs", 1) < WORTHWHILE_STEPS
    if steps is None or (is_short and not model.compiled_steps.served):
        return KERAS_OWN
    at_once = 1
    limited = arguments.get("steps_per_epoch") is not None
    if arguments.get("validation_steps") is None and not any(map(_watches_batches, callbacks_of(arguments))):
        at_once = _steps_at_once(steps, batch_bytes, exactly=limited)
    planned = _is_compiled_by_xla(model), at_once
    return KERAS_OWN if is_short and not model.compiled_steps.serve(planned, arguments) else planned


def callbacks_of(arguments):
    """The callbacks of a call, one by one."""
    callbacks = arguments.get("callbacks") or []
    return tf.nest.flatten(getattr(callbacks, "callbacks", callbacks))  # a CallbackList


def _is_ours(model):
    """Whether the class and the steps are this library's, not a user's with code that XLA may not know."""
    return type(model).__module__.startswith("kerasae.")


def _is_compiled_by_xla(model):
    if any(device.device_type != "CPU" for device in tf.config.list_physical_devices()):
        return False  # with another device Keras has decided already
    layers = keras_internals.all_layers(model, include_self=False)
    if not model.supports_jit or not all(map(_compiles_well, layers)):
        return False
    given = [*(getattr(layer, "activation", None) for layer in layers), *optimizers.each(model.optimizer), model.loss]
    return all(map(_is_known, tf.nest.flatten([given, keras_internals.compiled_metrics(model)])))


def _compiles_well(layer):
    """Whether XLA makes a layer faster on a CPU: a class of one's own says so by `compiles_well`, Keras's are known by where they stand."""
    kind = keras_internals.kind_of_layer(layer)
    if isinstance(layer, _RECURRENT) and _is_known(layer):
        known = layer.units <= _MOST_RECURRENT_UNITS
    elif kind is None:
        # A subclass may do what its base does not.
        known = (
            getattr(layer, "compiles_well", None) if "compiles_well" in vars(type(layer)) or _is_known(layer) else None
        )
    else:
        known = kind[0] in _COMPILED_KINDS or kind in _COMPILED_LAYERS
    if not known:
        _log.debug("%s: not compiled by XLA, as it isn't known to make %s faster", layer.name, type(layer).__name__)
    return known


def _is_known(value):
    """Whether code is Keras's or this library's: a user's own may not be for XLA to compile."""
    if value is None or isinstance(value, str):
        return True
    module = value.__module__ if hasattr(value, "__module__") else type(value).__module__
    return module.split(".")[0] in ("keras", "kerasae")


def _watches_batches(callback):
    """Whether a callback does something at each batch, other than a progress bar, or saving that it does at each epoch."""
    if isinstance(callback, keras.callbacks.ProgbarLogger):
        return False
    if type(callback) in (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore):
        return callback.save_freq != "epoch"
    return any(
        hook in vars(callback) or getattr(type(callback), hook, None) is not getattr(keras.callbacks.Callback, hook)
        for hook in _BATCH_HOOKS
    )


def _size(arguments):
    """`(steps of an epoch, bytes of a batch)`; None where that can't be told."""
    x = arguments["x"]
    if isinstance(x, tf.data.Dataset):
        steps = int(x.cardinality())
        if arguments.get("steps_per_epoch") is not None:
            steps = arguments["steps_per_epoch"]
        shapes = [s for s in tf.nest.flatten(x.element_spec) if isinstance(s, tf.TensorSpec)]
        if steps <= 0 or not shapes or any(None in s.shape[1:] for s in shapes):
            return None, None
        # A batch's size is often unknown here: 512 stands for it.
        return steps, sum((s.shape[0] or 512) * math.prod(s.shape[1:]) * s.dtype.size for s in shapes)
    if not isinstance(x, np.ndarray):
        return None, None
    examples = int(len(x) * (1 - (arguments.get("validation_split") or 0)))
    batch_size = arguments.get("batch_size") or 32
    arrays = [x, *(arguments[name] for name in ("y", "sample_weight") if arguments.get(name) is not None)]
    bytes_each = sum(a.nbytes // len(a) for a in arrays if isinstance(a, np.ndarray))
    steps = arguments.get("steps_per_epoch") or math.ceil(examples / batch_size)
    return steps, batch_size * bytes_each


def _steps_at_once(steps, batch_bytes, exactly):
    """How many steps to take at once: so many that few are left over, or none, and that their batches fit into memory together."""
    low, high = _STEPS_AT_ONCE
    high = min(high, _BYTES_AT_ONCE // max(batch_bytes, 1), steps)
    if high < 2:
        return 1
    if exactly:
        return max(k for k in range(1, high + 1) if steps % k == 0)
    # The last batch is an odd one most often.
    return min(range(min(low, high), high + 1), key=lambda k: ((steps - 1) % k, -k))


def _shapes(arguments):
    """What two calls of `fit` must have in common for the steps of one to serve the other without another trace."""
    names = ("steps_per_epoch", "batch_size", "validation_split")
    if isinstance(arguments["x"], tf.data.Dataset):
        data = arguments["x"].element_spec, int(arguments["x"].cardinality())
    else:
        data = [
            (a.shape, a.dtype) for a in map(np.asarray, map(arguments.get, ("x", "y", "sample_weight"))) if a.ndim > 0
        ]
    return repr([data, *(arguments.get(name) for name in names)])


class CompiledSteps:
    """The functions of training and validation that `fit` has made for a model, by plan, and how it takes them.

    `by_plan` is `{plan: (train_function, test_function)}`; `served` are `[jit_compile, steps_at_once, shapes]` of the calls that they took,
    also of those before the model was saved.
    """

    def __init__(self, model):
        self._model = model
        # Whether `train_step` is to be traced with `when_all_are_known`.
        self.updates_wait = False
        # Keras's own functions and number of steps at once, while a plan is carried out.
        self._before = None
        self.forget()

    def forget(self):
        self.by_plan, self.served = {}, []

    def serve(self, plan, arguments):
        """Whether an earlier call of `fit` with such data has run by a plan."""
        return [*plan, _shapes(arguments)] in self.served

    @contextlib.contextmanager
    def carried_out(self, plan, arguments):
        """Within it, `model.fit` with the arguments that it gives runs by a plan; afterwards the model is as it was compiled."""
        model, (jit_compile, steps_at_once) = self._model, plan
        if plan == KERAS_OWN:
            yield feeding.fed_fit(model, arguments)
            return
        by_plan, call = self.by_plan, [*plan, _shapes(arguments)]
        train_function, test_function = by_plan.get(plan, (None, None))
        self._before = model.train_function, model.test_function, model.steps_per_execution
        model.train_function, model.test_function, model.steps_per_execution = (
            train_function,
            test_function,
            steps_at_once,
        )
        if jit_compile:
            train_function = train_function or _XlaSteps(model, steps_at_once)
            arguments = {"shuffle": True, **feeding.with_fed_validation(model, arguments)}
            by_index = feeding.by_index(arguments, arguments["shuffle"]) if steps_at_once > 1 else None
            # Where its batches come from may be another place in each call.
            arguments, arrays = by_index or (feeding.fed(model, arguments, arguments["shuffle"]), None)
            model.train_function = functools.partial(train_function, arrays)
        else:
            arguments = feeding.fed_fit(model, arguments)
        try:
            yield arguments
            if by_plan is self.by_plan and call not in self.served:
                self.served.append(call)
        finally:
            by_plan[plan] = train_function if jit_compile else model.train_function, model.test_function
            (model.train_function, model.test_function, model.steps_per_execution), self._before = self._before, None

    def trace_anew(self):
        """For what changes a model so that its training steps have to be traced again; also while `fit` begins."""
        model = self._model
        function = getattr(model.train_function, "func", None)
        self.forget()
        if self._before is not None:
            self._before = (None, *self._before[1:])
        if isinstance(function, _XlaSteps):
            function.trace_anew()
        else:
            model.train_function = None

    @contextlib.contextmanager
    def waiting_updates(self):
        """Within it, the model's `train_step` is traced with `when_all_are_known`."""
        self.updates_wait = True
        try:
            yield
        finally:
            self.updates_wait = False


def when_all_are_known(gradients):
    """The gradients, none of them before the last one of the backward pass.

    Else XLA copies every kernel in every step, since its update may come before the backward pass has used the kernel.
    """
    # 0, but XLA can't know. The backward pass ends with the first layer.
    zero = tf.reshape(gradients[0], (-1,))[0] > np.inf
    return [gradient if gradient is None else gradient + tf.cast(zero, gradient.dtype) for gradient in gradients]


class _XlaSteps:
    """What Keras calls with an iterator of batches: so many steps as one function of XLA, whose state stays in place meanwhile."""

    def __init__(self, model, steps_at_once):
        self.model, self.steps_at_once = model, steps_at_once
        self.trace_anew()

    def trace_anew(self):
        model = self.model
        self.one_step = tf.function(model.train_step, jit_compile=True, reduce_retracing=True)

        @tf.function(jit_compile=True)
        def steps(batches):
            with model.compiled_steps.waiting_updates():
                for i in tf.range(tf.nest.flatten(batches)[0].shape[0]):
                    model.train_step(tf.nest.map_structure(lambda stacked, i=i: stacked[i], batches))
            return model.get_metrics_result()

        self.steps = steps

    def __call__(self, arrays, iterator):
        """Takes the steps; `arrays`: what the iterator's batches are indices into, or None where they are the examples."""
        batches = [next(iterator), *itertools.islice(iterator, self.steps_at_once - 1)]
        for _, alike in itertools.groupby(batches, key=lambda batch: [t.shape for t in tf.nest.flatten(batch)]):
            alike = list(alike)
            if len(alike) >= _FEWEST_AT_ONCE:
                logs = self.steps(feeding.take(arrays, tf.nest.map_structure(lambda *parts: tf.stack(parts), *alike)))
            else:
                for batch in alike:
                    logs = self.one_step(feeding.take(arrays, batch))
        return logs

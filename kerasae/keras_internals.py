"""Every private name of Keras and TensorFlow that this library uses, each with its reason. Seen in Keras 3.15.1 and TensorFlow 2.21.0.

A release of either may change these names: then this is the one file to mend. `tests/test_house.py` keeps them from standing elsewhere.
"""

import contextlib
import functools
import io
import math
import re
import threading

import keras
import tensorflow as tf

from kerasae import untrusted

# Tells `evaluate` that `fit` calls it to validate, on data of its own.
VALIDATING = "_use_cached_eval_dataset"


def all_layers(model, include_self=True):
    """A model's layers, those of nested models included: `model.layers` stops at the nested ones."""
    return list(model._flatten_layers(include_self=include_self))


def producer(tensor):
    """`(layer, its input tensors)` that a symbolic tensor of a Functional model comes from: the graph has no public form but a config."""
    layer, node, _ = tensor._keras_history
    return layer, layer._inbound_nodes[node].input_tensors


def last_computing_layer(tensor):
    """The layer that gave a symbolic tensor its values, behind those that only put them in another shape."""
    layer, inputs = producer(tensor)
    while (kind_of_layer(layer) or ("",))[0] in ("reshaping", "regularization") and len(inputs) == 1:
        layer, inputs = producer(inputs[0])
    return layer


def kind_of_layer(layer):
    """Where Keras keeps a layer's class: `("core", "dense")`, `("activations", "relu")`; None where the class is not one of Keras's own."""
    package, _, path = type(layer).__module__.partition(".layers.")
    if package == "keras.src":
        return tuple(path.split("."))
    return ("models",) if package.startswith("keras.src.models.") else None


def loss_tracker(model):
    """The mean that Keras logs as `loss`: custom steps need it where the loss is not what `compute_loss` gives."""
    return model._loss_tracker


def compiled_loss(model, y, y_pred, sample_weight):
    """The loss given to `compile`: `model.loss` may be a name, and `compute_loss` adds the regularisers."""
    return model._compile_loss(y, y_pred, sample_weight)


def with_mask(tensor, mask):
    """The tensor, with a mask that Keras's losses and metrics obey: only its layers give one in public."""
    tensor = tf.identity(tensor)
    keras.src.backend.set_keras_mask(tensor, mask)
    return tensor


def compiled_metrics(model):
    """The metrics given to `compile`, as they were given: `model.metrics` holds them wrapped into one."""
    metrics = model._compile_metrics
    return [] if metrics is None else [metrics._user_metrics, metrics._user_weighted_metrics]


class SymbolicBuild(keras.Model):
    """A model whose loss and metrics of `compile` are built from `symbolic_batch` under a strategy.

    Keras takes the mean of the replicas' first batches, whose sizes may differ; there is no public hook.
    """

    def symbolic_batch(self):
        """`(x, y)` of symbolic tensors."""
        raise NotImplementedError

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self._distribute_strategy is not None:
            with self._distribute_strategy.scope():
                self._symbolic_build(data_batch=self.symbolic_batch())


def know_inputs(model, inputs):
    """Lets a model of a class of its own export without having been called: Keras takes the inputs from the first call's shapes."""
    shapes = [tuple(tensor.shape) for tensor in inputs]
    model._called = True
    model._build_shapes_dict = {"input_shape": shapes if len(shapes) > 1 else shapes[0]}


def is_saving_hdf5():
    """Whether Keras writes its old format, which `keras.saving.save_model` does without asking the model's `save`."""
    return bool(keras.src.backend.common.global_state.get_global_attribute("use_legacy_config", False))


def failure_of_dataset(error):
    """The reason in an error of TensorFlow, if it came from a dataset rather than from a model; else None."""
    message = str(error)
    if not any(name in message for name in ("IteratorGetNext", "PyFunc", "IteratorV2")):
        return None
    if asserted := re.search(r"assertion failed: \[(.+?)\]", message):
        return asserted[1]
    lines = [line.strip() for line in message.replace("{{", "\n{{").splitlines()]
    named = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception|Interrupt)\w*: ", line)]
    return (
        named or [line for line in lines if line and not line.startswith(("{{", "Graph exec", "Detected", "<stack"))]
    )[0]


def clip_gradients(optimizer, gradients):
    """Gradients clipped as the optimiser would: on several replicas that has to happen after they are summed up."""
    return optimizer._clip_gradients(gradients)


def weights_file(model):
    """The bytes of what `model.save_weights` writes: HDF5 on a full disk ends the process by a signal, and Keras only saves to paths."""
    from keras.src.saving import saving_lib

    content = io.BytesIO()
    store = saving_lib.H5IOStore(content, mode="w")
    saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path="", visited_saveables=set())
    store.close()
    return content.getbuffer()


def has_several_workers(strategy):
    """Whether a `MultiWorkerMirroredStrategy` was given a cluster."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.extended._in_multi_worker_mode()


def uses_collectives(strategy):
    """Whether replicas exchange tensors by collective operations, the default, which some combinations of options don't work with."""
    return type(getattr(strategy.extended, "_cross_device_ops", None)).__name__ == "CollectiveAllReduce"


def created_in_scope(variable, strategy):
    """Whether a Keras variable was created within a strategy's scope; else TensorFlow fails with an empty AssertionError in training."""
    return strategy.extended.variable_created_in_scope(variable.value)


def load_model_safely(path):
    """A model of a `.keras` file of unknown origin, not compiled: the one door for all of them.

    The file is checked first (`untrusted.check_keras_file`). Within Keras's own scope, because `safe_mode=True` yields to
    `enable_unsafe_deserialization`, which the process may have called for files of its own.
    """
    from keras.src.saving.serialization_lib import SafeModeScope

    with _LOADING, SafeModeScope(True), _weights_limited(untrusted.check_keras_file(path), path):
        return keras.saving.load_model(path, compile=False, safe_mode=True)


_LOADING = threading.RLock()  # a method of a class is exchanged meanwhile


@contextlib.contextmanager
def _weights_limited(most, path):
    """Within it, the layers that this thread makes have no more than so many weights: sizes in a config are claims.

    All weights of layers pass through one method, whatever kind of layer they are of; what a config amounts to can't be told before.
    """
    add_weight, thread, made = keras.layers.Layer.add_weight, threading.get_ident(), 0

    @functools.wraps(add_weight)
    def counted(self, shape=None, *args, **kwargs):
        nonlocal made
        if threading.get_ident() == thread:
            made += math.prod(size or 0 for size in (shape if isinstance(shape, (tuple, list)) else [shape or 1]))
            if made > most:
                raise ValueError(
                    f"{path} is no .keras file that can be opened: the layers of its config hold {made:,} weights or more, up to "
                    f"{self.name!r} of shape {shape}, and it stores enough for {most:,} at most."
                )
        return add_weight(self, shape, *args, **kwargs)

    keras.layers.Layer.add_weight = counted
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def forget_unsafe_deserialization():
    """Takes back `keras.config.enable_unsafe_deserialization()`, which has no opposite."""
    keras.src.backend.common.global_state.set_global_attribute("safe_mode_saving", None)


def patch_tf2onnx():
    """Works around NumPy 2 in tf2onnx 1.17, as Keras does for its own export."""
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()


def let_workers_be_silent(seconds, num_workers):
    """Lets a worker be silent for so long: after TensorFlow's ten seconds, on a machine that is busy, it is taken for dead.

    Before the strategy is made. What that does by itself, but for the time, which can't be set in public.
    """
    with contextlib.suppress(ImportError):  # another TensorFlow keeps to its ten seconds
        from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
        from tensorflow.python.eager import context

        context.context().configure_coordination_service(
            service_type="standalone",
            service_leader="/job:worker/replica:0/task:0",
            heartbeat_timeout_in_ms=seconds * 1000,
            coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=num_workers)],
        )

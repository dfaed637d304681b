"""What training needs on several replicas of `tf.distribute`, so that it computes what one device computes on the whole batch."""

import logging
import math

import keras
import numpy as np
import tensorflow as tf

from kerasae import keras_internals
from kerasae.layers import Corruption
from kerasae.models import optimizers

_log = logging.getLogger(__name__)


def num_replicas():
    """How many replicas the batch is split over; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share_of_mean(values):
    """This replica's part of a mean over the batch: the parts of all replicas sum up to it.

    A replica has fewer examples than another, or none, where the batch can't be divided evenly; so it is the sum over its own examples
    that is divided by the number of all.

    Args:
        values: one an example, shape `(batch,)`, of this replica's examples.

    Returns:
        `(share, mean)`: scalars; `mean` is that of this replica's examples alone, 0 without any.
    """
    total, count = tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype)
    global_count = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, count)
    return total / global_count, tf.math.divide_no_nan(total, count)


def call_without_empty_batches(model, x, function):
    """`function(x)`, tensors of `(batch, ...)`, where the batch may be empty.

    TensorFlow's convolutions on a CPU fail without examples. Zeros stand in for one, and are cut off again; not where it would enter the
    statistics of a batch normalisation.
    """
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in keras_internals.all_layers(model)):
        return function(x)
    batch_size = tf.shape(tf.nest.flatten(x)[0])[0]

    def padded(part):
        padding = [[0, tf.maximum(1 - batch_size, 0)], *[[0, 0]] * (len(part.shape) - 1)]
        return tf.ensure_shape(tf.pad(part, padding), (None, *part.shape[1:]))

    return tf.nest.map_structure(lambda output: output[:batch_size], function(tf.nest.map_structure(padded, x)))


def predict(network, x, batch_size, verbose):
    """`network.predict` of arrays, padded so that no replica's part of the last batch is empty; see `call_without_empty_batches`."""
    replicas, examples = network.distribute_strategy.num_replicas_in_sync, len(tf.nest.flatten(x)[0])
    batch_size = min(batch_size, math.ceil(examples / replicas) * replicas)

    def padded(part):
        return np.concatenate([part, np.zeros((-examples % batch_size, *part.shape[1:]), part.dtype)])

    outputs = network.predict(tf.nest.map_structure(padded, x), batch_size=batch_size, verbose=verbose)
    return tf.nest.map_structure(lambda output: output[:examples], outputs)


def sum_before_clipping(optimizer, gradients):
    """Prepares gradients for an optimiser, which would clip those of each replica, or look for overflow in them, and then sum them up.

    Returns:
        An equal part for each replica of the clipped sum.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if inner is optimizer and not (inner.clipnorm or inner.global_clipnorm or inner.clipvalue):
        return gradients
    replica = tf.distribute.get_replica_context()
    gradients = list(gradients)
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]
    summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, [gradients[i] for i in present])
    scale = optimizer.scale_loss(tf.constant(1.0))
    clipped = keras_internals.clip_gradients(inner, [tf.math.scalar_mul(1.0 / scale, gradient) for gradient in summed])
    for i, gradient in zip(present, clipped, strict=True):
        # Within the bound, so that the optimiser's own clipping changes nothing.
        gradients[i] = tf.math.scalar_mul(scale / replica.num_replicas_in_sync, gradient)
    return gradients


def check_keras_loss(loss, y, reconstruction):
    """Raises unless a loss given to `compile` is one that Keras averages: only that can be put together from the replicas' averages."""
    for function in tf.nest.flatten(loss):
        if isinstance(function, str):
            continue
        reduction = getattr(function, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean"):
            raise ValueError(
                f"The reduction of compile(loss=...) must be 'sum_over_batch_size' on several replicas. Received: {reduction!r}"
            )
        values = (function.call if isinstance(function, keras.losses.Loss) else function)(y, reconstruction)
        if len(values.shape) == 0:
            raise ValueError(
                "The function of compile(loss=...) must give a value an example on several replicas, of shape (batch,) or (batch, ...). It "
                "gives one number for all."
            )


def as_logs(metrics):
    """A step's metrics in the shape that Keras can reduce over the workers: it does so along the first axis."""
    if keras_internals.has_several_workers(tf.distribute.get_strategy()):
        return {name: tf.reshape(value, (1,)) for name, value in metrics.items()}
    return metrics


def has_several_workers(model):
    """Whether a model trains in several processes, over which Keras splits its data."""
    return keras_internals.has_several_workers(model.distribute_strategy)


def regularisation(model):
    """The weight regularisers of a model, of which each replica takes an equal share."""
    if len(model.losses) != sum(v.regularizer is not None for v in model.trainable_weights):
        raise ValueError(
            "A layer of the networks adds a loss of its activations, and whether that is a sum or a mean over the batch is unknown, so "
            f"it can't be split over {num_replicas()} replicas. Remove `activity_regularizer` and `add_loss`; "
            'kerasae.models.SparseAutoencoder(..., penalty="l1") penalises activations.'
        )
    return model.losses


def check(model):
    """Raises where a model, as it was built and compiled, would fail or learn something else on the strategy's replicas."""
    if keras.distribution.distribution() is not None:
        raise ValueError(
            "keras.distribution does nothing on the TensorFlow backend: training would run on one device. Take the setting back with "
            "keras.distribution.set_distribution(None), and build and compile the model within the scope of a tf.distribute strategy."
        )
    if not model.compiled:
        return  # Keras says so
    strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else model.distribute_strategy
    variables = {
        "model": model.variables,
        "optimizer": model.optimizer.variables if model.optimizer else [],
        "metrics": model.metrics_variables,
    }
    for name, created in variables.items():
        outside = [v.path for v in created if not keras_internals.created_in_scope(v, strategy)]
        if outside:
            raise ValueError(
                f"Variables of the {name} were created outside the scope of {type(strategy).__name__}: {', '.join(outside[:3])}. Build, or "
                "load, the model and compile it within the scope: with strategy.scope(): ..."
            )
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    if model.jit_compile:
        raise ValueError(
            f"`jit_compile=True` does not work on {replicas} replicas. Compile with jit_compile=False, or leave it out."
        )
    on_cpu = all("CPU" in device for device in strategy.extended.worker_devices)
    if model.steps_per_execution > 1 and on_cpu and keras_internals.uses_collectives(strategy):
        raise ValueError(
            "`steps_per_execution` above 1 does not work with this strategy's collectives on CPUs. Leave it 1, or, on one machine, use "
            "tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())."
        )
    inner = [getattr(optimizer, "inner_optimizer", optimizer) for optimizer in optimizers.each(model.optimizer)]
    if any(getattr(optimizer, "gradient_accumulation_steps", None) for optimizer in inner):
        raise ValueError(
            f"`gradient_accumulation_steps` does not work on {replicas} replicas. Take larger batches: they are split over the replicas."
        )
    if any(getattr(optimizer, "use_ema", False) and optimizer.ema_overwrite_frequency for optimizer in inner):
        raise ValueError(
            f"`ema_overwrite_frequency` does not work on {replicas} replicas. Leave it None: the averages are taken over at the end of fit."
        )
    same_noise = []
    for layer in keras_internals.all_layers(model, include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.synchronized:
            raise ValueError(
                f"{layer.name!r} would normalise by each replica's own examples, and give NaN where a replica has none in the last batch. "
                "Build it as keras.layers.BatchNormalization(synchronized=True)."
            )
        generator = getattr(layer, "seed_generator", None)
        if isinstance(generator, keras.random.SeedGenerator) and not isinstance(layer, Corruption):
            same_noise.append(layer.name)
    if same_noise:
        _log.warning(
            "Keras draws the same noise on every replica, so that examples of one batch share it, in the layers: %s. Those of "
            "kerasae.layers draw their own on each.",
            ", ".join(same_noise),
        )

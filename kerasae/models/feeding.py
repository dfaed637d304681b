"""Where the batches of `fit`, `evaluate` and `predict` come from, where they are given plain arrays."""

import functools
import math

import keras
import numpy as np
import tensorflow as tf


def is_distributed(model):
    """Whether the model has several replicas, or workers."""
    strategy = model.distribute_strategy
    return strategy.num_replicas_in_sync > 1 or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def fed_fit(model, arguments):
    """`fed`, of `fit`: with its validation data."""
    arguments = {"shuffle": True, **with_fed_validation(model, arguments)}
    return fed(model, arguments, arguments["shuffle"])


def fed(model, arguments, shuffle=None):
    """Arguments of `fit`, `evaluate` or `predict` with a dataset of their batches instead of arrays, where these are plain ones.

    With `shuffle`, True or False, they are of `fit`, which then takes examples in the same order on any number of replicas and workers.

    The batches are Keras's, but tf.data doesn't tune their pipeline: when an iterator goes, the thread that tunes is not always woken, and
    is waited for as long as the iterator has lived: now and then, an epoch took twice its time by that.
    """
    indexed = None if shuffle is None and is_distributed(model) else by_index(arguments, shuffle or False)
    if indexed is None:
        return arguments
    arguments, arrays = indexed
    return {**arguments, "x": arguments["x"].map(functools.partial(take, arrays)).prefetch(2)}


def with_fed_validation(model, arguments):
    """Arguments of `fit`, whose validation data are `fed`."""
    data = arguments.get("validation_data")
    if not isinstance(data, (tuple, np.ndarray)):
        return arguments
    names = ("x", "y", "sample_weight")
    validation = dict(zip(names, keras.utils.unpack_x_y_sample_weight(data), strict=True))
    validation["batch_size"] = arguments.get("validation_batch_size") or arguments.get("batch_size")
    x = fed(model, validation, shuffle=False)["x"]
    return {**arguments, "validation_data": x} if isinstance(x, tf.data.Dataset) else arguments


def by_index(arguments, shuffle):
    """Arguments whose batches are the indices of examples, and the arrays to take these from; None where arrays are not plain ones.

    Taking the examples of several steps from memory at once costs a fifth of what Keras's pipeline takes for them.
    """
    arrays = [arguments[name] for name in ("x", "y", "sample_weight") if arguments.get(name) is not None]
    batch_size = arguments.get("batch_size") or 32
    if (
        any(not isinstance(array, np.ndarray) or array.dtype != np.float32 for array in arrays)
        or not isinstance(shuffle, bool)
        or arguments.get("validation_split")
        or arguments.get("class_weight")
    ):
        return None
    examples = len(arrays[0])
    num_batches = math.ceil(examples / batch_size)

    def batches(seed):
        order = tf.range(examples)
        if shuffle:
            order = tf.random.experimental.stateless_shuffle(order, tf.stack([seed, 0]))
        return tf.data.Dataset.range(num_batches).map(lambda i: order[i * batch_size : (i + 1) * batch_size])

    # Another seed for every epoch: a random number within `batches` would be the same each time after `set_random_seed`.
    dataset = tf.data.Dataset.random(rerandomize_each_iteration=True).take(1).flat_map(batches)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches)).prefetch(8)
    options = tf.data.Options()
    options.autotune.enabled = False
    kept = {k: v for k, v in arguments.items() if k not in ("x", "y", "sample_weight", "batch_size", "shuffle")}
    if "shuffle" in arguments:
        kept["shuffle"] = False
    # Validation goes by the batch size as well.
    if "validation_data" in kept:
        kept.setdefault("validation_batch_size", batch_size)
    return {**kept, "x": dataset.with_options(options)}, tuple(map(tf.convert_to_tensor, arrays))


def take(arrays, batch):
    """The examples whose indices a batch holds; the batch itself where there are no arrays to take them from."""
    return batch if arrays is None else tuple(tf.gather(array, batch) for array in arrays)

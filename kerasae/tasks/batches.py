"""Batches of the estimators: what a network answers to any number of examples, and in what order training sees them."""

import contextlib
import random

import numpy as np
import tensorflow as tf

ROWS_AT_ONCE = 256


def run(network, x, rows_at_once=ROWS_AT_ONCE):
    """A network's answers to any number of examples, in NumPy: its output, or a list of them if it has several.

    Batches are filled up to one size, so that there is one trace, and the answer to an example does not depend on how many others come with
    it: products of other shapes round otherwise.

    Args:
        network: Functional Keras model with one input.
        x: examples; reshaped to the network's input.
        rows_at_once: examples a batch.
    """
    x = np.reshape(x, (len(x), *network.inputs[0].shape[1:]))
    batches = []
    for start in range(0, len(x), rows_at_once):
        batch = x[start : start + rows_at_once]
        filled = np.zeros((rows_at_once, *x.shape[1:]), "float32")
        filled[: len(batch)] = batch
        batches.append([output[: len(batch)] for output in tf.nest.flatten(network.predict_on_batch(filled))])
    outputs = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    return outputs[0] if len(outputs) == 1 else outputs


@contextlib.contextmanager
def randomness_of(seed):
    """Keras draws the seeds of weights from Python's generator, whose state is the user's, and is put back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def shuffled_batches(arrays, rows, batch_size, steps, epochs, seed, corrupt, first=0):
    """The batches from the `first` epoch on, `(x,)` or `(x, y)`, each epoch in an order that depends on nothing but it and the seed.

    `rows` are those of the arrays that an epoch consists of: some alone, or some again.
    """
    arrays, rows = tuple(tf.constant(array) for array in arrays), tf.constant(rows)

    def batches_of(epoch):
        seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.argsort(tf.random.stateless_uniform((len(rows),), seeds))
        return tf.data.Dataset.from_tensor_slices(tf.gather(rows, order)).batch(batch_size)

    def batch_of(step, rows):
        batch = [tf.gather(array, rows) for array in arrays]
        if corrupt is not None:
            batch[0] = corrupt(batch[0], tf.stack([tf.constant(seed, tf.int64), step]))
        return tuple(batch)

    batches = tf.data.Dataset.range(first, epochs).flat_map(batches_of).enumerate(first * steps).map(batch_of)
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps * (epochs - first))).prefetch(2)
    batches.are_checked = True  # as arrays, at less cost than as batches
    return batches

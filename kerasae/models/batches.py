"""Batches that come one after the other, each checked on its way, so that a bad one is named and nothing is learnt from it."""

import copy
import inspect
import itertools
import math

import keras
import tensorflow as tf

from kerasae import checks, keras_internals


def is_batched(x):
    """Whether `x` yields batches by itself, rather than being an array of examples."""
    return isinstance(
        x, (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)
    ) or inspect.isgenerator(x)


def is_endless(batches):
    """Whether batches are known to come for ever."""
    if isinstance(batches, tf.data.Dataset):
        return batches.cardinality() == tf.data.INFINITE_CARDINALITY
    return isinstance(batches, keras.utils.PyDataset) and batches.num_batches is None


def place(number):
    """Where a batch is, for a message."""
    return f"in the dataset's batch {number}, counted from 0" if number else "in the dataset's first batch"


def watched(batches, naming, watch, steps, way_out="pass `steps`, or dataset.take(n)", several_workers=False):
    """The same batches, each checked as it comes, and its errors named within `naming`.

    Args:
        batches: what `is_batched` is true of.
        naming: `Naming` around the call of Keras that takes them.
        watch: `Watch`.
        steps: how many batches are taken, or None.
        way_out: what to do about batches without an end.
        several_workers: as in `Watch.over`.

    Raises:
        ValueError: on an endless dataset without `steps`, an empty one, or a first batch that is wrong.
    """
    if steps is None and is_endless(batches):
        raise ValueError(f"The {watch.prefix}dataset has no end: {way_out}.")
    naming.watches.append(watch)
    return watch.over(batches, several_workers)


class Naming:
    """Within it, an error that a batch caused is the one that its `Watch` raised, or names what failed to give a batch."""

    def __init__(self):
        self.watches = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, Exception):
            return
        for watch in self.watches:
            if watch.error is not None:
                raise watch.error from watch.error.__cause__
        if self.watches and isinstance(error, tf.errors.OpError):
            if reason := keras_internals.failure_of_dataset(error):
                last = self.watches[0].last if len(self.watches) == 1 else None
                which = "a batch" if last is None else f"batch {int(last) + 1}, counted from 0"
                raise ValueError(f"The dataset failed to give {which}: {reason}") from error


class Watch:
    """Checks the batches of one call of `fit`, `evaluate` or `predict`, and says in that call what was wrong with one.

    Args:
        check: `check(batch, number)`, of a batch of arrays, or tensors, gives the batch as it is taken; raises `ValueError`.
        seems_right: `seems_right(batch)`, of tensors in a graph, is False wherever `check` might raise: cheap, as every batch is asked.
        prefix: `"validation "`, or nothing.
    """

    def __init__(self, check, seems_right, prefix=""):
        self.check, self.seems_right, self.prefix = check, seems_right, prefix
        self.error = self.last = None

    def over(self, batches, several_workers=False):
        """The same batches, watched; the first, where it can be seen beforehand, at once.

        Args:
            batches: what `is_batched` is true of.
            several_workers: whether a dataset is to be split by its files: then its batches can't be numbered.
        """
        if getattr(batches, "are_checked", False):  # by this library, which made them of arrays
            return batches
        if isinstance(batches, tf.data.Dataset):
            first = self._check_first(iter(batches.take(1)))
            return self._over_dataset(batches, first, several_workers)
        if isinstance(batches, keras.utils.PyDataset):
            self._check_first(iter([batches[0]] if batches.num_batches != 0 else []))
            return _WatchedPyDataset(batches, self._take)
        if inspect.isgenerator(batches):
            numbered = self._over_generator(batches)
            return _chained(self._first_of(numbered), numbered)
        return batches

    def _first_of(self, batches):
        first = next(batches, None)
        if first is None:
            raise ValueError(f"The {self.prefix}dataset is empty.")
        return first

    def _check_first(self, batches):
        try:
            first = self._first_of(batches)
        except tf.errors.OpError as error:
            reason = keras_internals.failure_of_dataset(error) or str(error)
            raise ValueError(f"The {self.prefix}dataset failed to give its first batch: {reason}") from error
        self.check(first, 0)
        return first

    def _checked(self, batch, number):
        try:
            return self.check(batch, number)
        except ValueError as error:
            self.error = error
            raise

    def _take(self, give, number):
        """`give(number)`, checked; where that raises, the error names the batch."""
        try:
            batch = give(number)
        except StopIteration:
            raise
        except Exception as error:
            self.error = ValueError(
                f"{type(error).__name__} where batch {number} of the {self.prefix}data was due: {error}"
            )
            raise self.error from error
        return self._checked(batch, number)

    def _over_dataset(self, dataset, first, several_workers):
        spec = dataset.element_spec
        if not all(isinstance(part, tf.TensorSpec) for part in tf.nest.flatten(spec)):
            return dataset  # sparse or ragged

        # A dataset made by Python functions knows no shapes, which Keras asks for.
        shapes = tf.nest.map_structure(lambda part: tf.TensorShape([None] * part.shape.rank), first)
        if any(part.shape.rank is None for part in tf.nest.flatten(spec)):
            dataset = dataset.map(
                lambda *batch: tf.nest.map_structure(
                    tf.ensure_shape, batch if isinstance(spec, tuple) else batch[0], shapes
                )
            )

        def ask(number, *parts):
            self._checked(tf.nest.pack_sequence_as(spec, parts), int(number))
            return True

        if not tf.distribute.has_strategy() and not several_workers:
            self.last = tf.Variable(-1, dtype=tf.int64, trainable=False)

        def watched(number, batch):
            if self.last is not None:
                self.last.assign(number)
            right = self.seems_right(batch)
            if several_workers:
                # Python can't be called where a dataset is split.
                message = f"A batch of the {self.prefix}dataset is not what the model takes, or holds NaN or infinity."
                checked = tf.debugging.Assert(right, [message])
            else:
                parts = [number, *tf.nest.flatten(batch)]
                checked = tf.cond(right, lambda: True, lambda: tf.numpy_function(ask, parts, tf.bool))
            with tf.control_dependencies([checked]):
                return tf.nest.map_structure(_as_floatx, batch)

        if several_workers:
            return dataset.map(lambda *batch: watched(0, batch if isinstance(spec, tuple) else batch[0]))
        return dataset.enumerate().map(watched)

    def _over_generator(self, batches):
        for number in itertools.count():
            try:
                batch = self._take(lambda _: next(batches), number)
            except StopIteration:
                return
            yield batch if isinstance(batch, tuple) else (batch,)


def _chained(first, rest):
    """A generator, which Keras takes, unlike other iterators."""
    yield first
    yield from rest


class _WatchedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` whose batches are checked, in the process that makes them: the check needs no TensorFlow."""

    def __init__(self, batches, take):
        super().__init__(batches.workers, batches.use_multiprocessing, batches.max_queue_size)
        self.batches, self.take = batches, take

    def __reduce__(self):
        # To a process that isn't forked, as on Windows, no model can be sent: there, the first batch alone is checked.
        return copy.copy, (self.batches,)

    @property
    def num_batches(self):
        return self.batches.num_batches

    def __getitem__(self, index):
        return self.take(self.batches.__getitem__, index)

    def on_epoch_begin(self):
        self.batches.on_epoch_begin()

    def on_epoch_end(self):
        self.batches.on_epoch_end()


def within(tensor, shape, low=-math.inf, high=math.inf, missing=False):
    """Whether a batch is finite, of examples of such a shape, and within bounds, as a tensor; False also where that can't be told."""
    if tensor.shape.rank != len(shape) + 1:
        return tf.constant(False)
    axes = enumerate(zip(shape, tensor.shape[1:], strict=True), start=1)
    right = [tf.equal(tf.shape(tensor)[axis], size) for axis, (size, given) in axes if size not in (None, given)]
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        return tf.constant(False)
    values = tf.cast(tensor, tf.float32)
    if tensor.dtype.is_floating:
        right.append(tf.reduce_all(~tf.math.is_inf(values) if missing else tf.math.is_finite(values)))
    if (low, high) != (-math.inf, math.inf):
        right.append(~tf.reduce_any((values < low) | (values > high)))
    return tf.reduce_all(tf.stack(right)) if right else tf.constant(True)


def like_bytes(tensor):
    """Whether `kerasae.checks.no_bytes` would raise."""
    values = tf.cast(tensor, tf.float32)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    return (low >= 0) & (high > checks.CLEARLY_ABOVE_1) & (high <= 255)


def _as_floatx(tensor):
    """Keras casts arrays, and leaves a dataset's tensors."""
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype == tf.float64 else tensor


def as_floats(values):
    """An array, or several, in Keras's floats unless they hold whole numbers: the batches of a generator must have one type."""
    return tf.nest.map_structure(
        lambda a: a if a is None or a.dtype.kind in "iu" else a.astype(keras.config.floatx(), copy=False), values
    )

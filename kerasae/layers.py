"""Layers of the families: corruption, k-sparsity, tied weights, sampling. Random numbers come from `random_seed`.

All layers but `TiedDense` keep their input's shape. The mask of a sequence's steps (`keras.layers.Masking`) goes through every layer.
Corruption and tied weights work on each step by itself, masked or not; `KSparse` keeps nothing of masked steps.
"""

import math

import keras
import tensorflow as tf
from keras import ops

from kerasae import checks


def random_seed(generator):
    """The next seed of a `keras.random.SeedGenerator`, shape `(2,)`, for `tf.random.stateless_*`."""
    # Under a `tf.distribute` strategy all replicas hold the same generator state; folding the replica's number in gives each its own noise,
    # which `keras.random` does not.
    seed = tf.cast(generator.next(), tf.int32)
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:
        seed = tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group)
    return seed


def _normal(shape, generator):
    return tf.random.stateless_normal(shape, random_seed(generator), alg="philox")


def _uniform(shape, generator):
    return tf.random.stateless_uniform(shape, random_seed(generator), alg="philox")


def reparameterize(z_mean, z_log_var, noise):
    """`mu + sigma * noise` for noise from N(0, I): NumPy or tensors, whose shapes may broadcast. `z_log_var` is ln sigma^2."""
    return z_mean + ops.exp(0.5 * z_log_var) * noise


def sample_normal(z_mean, z_log_var, generator):
    """A reparameterised sample `z = mu + sigma * epsilon`, `epsilon ~ N(0, I)`, in float32 (Kingma and Welling 2014, section 2.4).

    `z_log_var` is ln sigma^2, of the shape of `z_mean` or broadcasting to it; `generator` is a `keras.random.SeedGenerator`.
    """
    z_mean, z_log_var = ops.cast(z_mean, "float32"), ops.cast(z_log_var, "float32")
    return reparameterize(z_mean, z_log_var, _normal(tf.shape(z_mean), generator))


class Corruption(keras.layers.Layer):
    """Shared by all corruptions: active in training only, with a random stream of their own. Numbers out of bounds are `ValueError`s.

    Args:
        seed: int, of the noise. Default: a random one, fixed by `keras.utils.set_random_seed`.
    """

    # Each layer says whether XLA makes it faster on a CPU: see `kerasae.models.execution`.
    compiles_well = True
    options = ()  # names of a corruption's own numbers

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.built = True

    def call(self, x, training=False):
        return self.corrupt(x) if training else x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "seed": self.seed, **{name: getattr(self, name) for name in self.options}}


@keras.saving.register_keras_serializable("kerasae")
class GaussianCorruption(Corruption):
    """Additive noise in training: `x + epsilon`, `epsilon ~ N(0, noise_stddev^2)` for every feature; nothing is clipped.

    Args:
        noise_stddev: standard deviation, at least 0, in units of x. Default 0.5.
        seed: as in `Corruption`.

    Example:

    ```python
    x_corrupted = kerasae.layers.GaussianCorruption(0.3)(x_test, training=True)
    ```

    Reference:
        Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.3.
    """

    options = ("noise_stddev",)

    def __init__(self, noise_stddev=0.5, seed=None, **kwargs):
        self.noise_stddev = checks.real_number(noise_stddev, "noise_stddev", minimum=0)
        super().__init__(seed, **kwargs)

    def corrupt(self, x):
        return x + ops.cast(self.noise_stddev * _normal(tf.shape(x), self.seed_generator), x.dtype)


@keras.saving.register_keras_serializable("kerasae")
class MaskingCorruption(Corruption):
    """In training, every feature is set to `value` with probability `corruption_rate`: dropout, but without scaling by 1 / (1 - rate).

    Args:
        corruption_rate: probability, in [0, 1]. Default 0.25.
        value: of masked features. Default 0.
        seed: as in `Corruption`.

    Example:

    ```python
    x_corrupted = kerasae.layers.MaskingCorruption(0.5)(x_test, training=True)
    ```

    Reference:
        Vincent et al. 2010, section 3.3, where a fixed number of features per example is masked; here their number is binomial.
    """

    options = ("corruption_rate", "value")

    def __init__(self, corruption_rate=0.25, value=0.0, seed=None, **kwargs):
        self.corruption_rate = checks.real_number(corruption_rate, "corruption_rate", minimum=0, maximum=1)
        self.value = checks.real_number(value, "value")
        super().__init__(seed, **kwargs)

    def corrupt(self, x):
        masked = _uniform(tf.shape(x), self.seed_generator) < self.corruption_rate
        return ops.where(masked, ops.cast(self.value, x.dtype), x)


@keras.saving.register_keras_serializable("kerasae")
class SaltAndPepperCorruption(Corruption):
    """In training, every feature becomes `minimum` or `maximum`, each with probability `corruption_rate` / 2.

    Args:
        corruption_rate: probability of a feature to be changed, in [0, 1]. Default 0.25.
        minimum: "pepper", the smallest value of the data. Default 0.
        maximum: "salt", the largest value, above `minimum`. Default 1.
        seed: as in `Corruption`.

    Example:

    ```python
    x_corrupted = kerasae.layers.SaltAndPepperCorruption(0.2)(x_test, training=True)
    ```

    Reference:
        Vincent et al. 2010, section 3.3, with a binomial number of features as in `MaskingCorruption`.
    """

    options = ("corruption_rate", "minimum", "maximum")

    def __init__(self, corruption_rate=0.25, minimum=0.0, maximum=1.0, seed=None, **kwargs):
        self.corruption_rate = checks.real_number(corruption_rate, "corruption_rate", minimum=0, maximum=1)
        self.minimum = checks.real_number(minimum, "minimum")
        self.maximum = checks.real_number(maximum, "maximum", minimum=self.minimum, exclusive=True)
        super().__init__(seed, **kwargs)

    def corrupt(self, x):
        uniform = _uniform(tf.shape(x), self.seed_generator)
        x = ops.where(uniform < self.corruption_rate / 2, ops.cast(self.minimum, x.dtype), x)
        return ops.where(uniform >= 1 - self.corruption_rate / 2, ops.cast(self.maximum, x.dtype), x)


@keras.saving.register_keras_serializable("kerasae")
class KSparse(keras.layers.Layer):
    """Keeps each example's k largest activations and sets the others to 0: `f_k(z) = (z_1 b_1, ..., z_n b_n)`.

    `b_i = 1` for the k largest entries, by magnitude or by value; of equal ones the first are taken, so that exactly k are kept. The
    gradient flows through kept entries only. Training keeps `current_k`, which `kerasae.models.KAnnealing` changes between epochs;
    inference keeps `alpha * k`, rounded, at most all. A sequence keeps k over all its steps; masked ones are set to 0.

    Args:
        k: entries to keep, at least 1 and at most the number of units.
        alpha: factor of k at inference, at least 1. Default 1.
        by: `"magnitude"`, `|z_i|`, as in the lecture; or `"value"`, `z_i`, as in the paper. Default `"magnitude"`.

    Raises:
        ValueError: if an option is out of its bounds, or k above the number of units.

    Example:

    ```python
    kerasae.layers.KSparse(2)(np.array([[3.0, -4.0, 1.0, 0.5]]))  # [[3, -4, 0, 0]]
    ```

    Reference:
        Makhzani and Frey 2013, "k-Sparse Autoencoders", section 2.1.
    """

    compiles_well = True

    def __init__(self, k, alpha=1.0, by="magnitude", **kwargs):
        super().__init__(**kwargs)
        self.k = checks.positive_int(k, "k")
        self.alpha = checks.real_number(alpha, "alpha", minimum=1)
        self.by = checks.choice(by, "by", ("magnitude", "value"))
        self.supports_masking = True
        self.max_k = self.k  # the largest k in training; static, so that the search for the k-th largest stays short

    def build(self, input_shape):
        self.num_units = math.prod(input_shape[1:])
        if self.k > self.num_units:
            raise ValueError(f"`k` must be at most the number of units, {self.num_units}. Received: {self.k}")
        initial = keras.initializers.Constant(self.k)
        self.current_k = self.add_weight((), initial, dtype="int32", trainable=False, name="current_k")

    def call(self, z, training=False, mask=None):
        flat = ops.reshape(z, (-1, self.num_units))
        score = ops.stop_gradient(ops.abs(flat) if self.by == "magnitude" else flat)
        if mask is not None:
            # (batch, steps) -> (batch, num_units)
            mask = ops.reshape(mask, (*ops.shape(mask), *[1] * (len(z.shape) - len(mask.shape))))
            mask = ops.reshape(ops.broadcast_to(mask, ops.shape(z)), (-1, self.num_units))
            # Last in every order, and 0 where k is more than there are unmasked entries.
            score = ops.where(mask, score, ops.cast(-math.inf, score.dtype))
            flat = ops.where(mask, flat, ops.zeros_like(flat))
        if training:
            # (batch, max_k) each; of equal entries the one with the smaller index comes first.
            largest, indices = tf.math.top_k(score, self.max_k)
            last = [tf.convert_to_tensor(self.current_k.value) - 1]
            # (batch, 1): the k-th largest entry and its index. Equal entries that are kept have smaller indices.
            threshold, index = tf.gather(largest, last, axis=1), tf.gather(indices, last, axis=1)
            keep = (score > threshold) | ((score == threshold) & (tf.range(self.num_units) <= index))
        else:
            # Deployed graphs, some in half precision, don't rely on the order of equal entries.
            threshold = tf.math.top_k(score, self.inference_k).values[:, -1:]
            above = score > threshold
            # Of the entries equal to the threshold, the first ones fill up to k.
            equal = tf.cast(score == threshold, tf.int32)
            missing = self.inference_k - tf.reduce_sum(tf.cast(above, tf.int32), axis=1, keepdims=True)
            keep = above | ((equal > 0) & (tf.cumsum(equal, axis=1) <= missing))
        return ops.reshape(flat * ops.cast(keep, flat.dtype), ops.shape(z))

    @property
    def inference_k(self):
        """The number of entries that inference keeps: `alpha * k`, rounded, at most all."""
        return min(round(self.alpha * self.k), self.num_units)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "k": self.k, "alpha": self.alpha, "by": self.by}


@keras.saving.register_keras_serializable("kerasae")
class TiedDense(keras.layers.Layer):
    """A dense layer whose kernel is the transpose of another's, with a bias of its own: `h' = s(h W^T + b')`, `(batch, units)`.

    Args:
        tied_to: name of the `Dense` layer of the encoder that owns W. The model that has both connects them.
        units: number of that layer's inputs, this one's outputs.
        activation: s.

    Raises:
        ValueError: if it is called before it is connected, as by a decoder loaded without its encoder.
    """

    compiles_well = True

    def __init__(self, tied_to, units, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.tied_to = tied_to
        self.units = checks.positive_int(units, "units")
        self.activation = keras.activations.get(activation)
        self.supports_masking = True
        self.__dict__["source"] = None

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def connect(self, encoder):
        """Ties this layer to the encoder's layer of the name `tied_to`."""
        source = encoder.get_layer(self.tied_to)
        if source.kernel.shape[0] != self.units:
            inputs = source.kernel.shape[0]
            raise ValueError(f"{self.name!r} has {self.units} units, but {self.tied_to!r} has {inputs} inputs.")
        # Not as an attribute that Keras tracks: the kernel is the encoder's, trained and saved there, once.
        self.__dict__["source"] = source

    def call(self, inputs):
        if self.source is None:
            raise ValueError(
                f"{self.name!r} has the kernel of encoder layer {self.tied_to!r}, and this decoder stands alone: load the whole model."
            )
        return self.activation(ops.matmul(inputs, ops.transpose(self.source.kernel)) + self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "tied_to": self.tied_to, "units": self.units, "activation": activation}

"""Layers of the families: corruption, k-sparsity, tied weights, sampling. Random numbers come from `random_seed`.

The mask of a sequence's steps (`keras.layers.Masking`) goes through every layer. Corruption and tied weights work on each step by itself,
so that what a masked step becomes matters to nobody; `KSparse` counts no masked step among its k.
"""

import math

import keras
import tensorflow as tf
from keras import ops

from kerasae import checks


def random_seed(generator):
    """The next seed of a `keras.random.SeedGenerator`, shape `(2,)`, for `tf.random.stateless_*`.

    Under a `tf.distribute` strategy each replica holds the same generator state; folding the replica's number in gives each its own
    noise, which `keras.random` does not.
    """
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
    """`mu + sigma * noise`: NumPy or tensors, whose shapes may broadcast. The only place where this is written.

    Args:
        z_mean: mu.
        z_log_var: ln sigma^2, of the same shape or broadcasting to it.
        noise: from N(0, I).
    """
    return z_mean + ops.exp(0.5 * z_log_var) * noise


def sample_normal(z_mean, z_log_var, generator):
    """A reparameterised sample `z = mu + sigma * epsilon`, `epsilon ~ N(0, I)`.

    Args:
        z_mean: mu, shape `(batch, ...)`.
        z_log_var: ln sigma^2, of the same shape or broadcasting to it.
        generator: `keras.random.SeedGenerator`.

    Returns:
        z, of `z_mean`'s shape, in float32.

    Reference:
        Kingma and Welling 2014, section 2.4.
    """
    z_mean, z_log_var = ops.cast(z_mean, "float32"), ops.cast(z_log_var, "float32")
    return reparameterize(z_mean, z_log_var, _normal(tf.shape(z_mean), generator))


class Corruption(keras.layers.Layer):
    """What the corruptions share: active in training only, with a random stream of their own.

    Args:
        seed: int, of the noise. Default: a random one, fixed by `keras.utils.set_random_seed`.
    """

    # Each layer says whether XLA makes it faster on a CPU: see `kerasae.models.execution`.
    compiles_well = True

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
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable("kerasae")
class GaussianCorruption(Corruption):
    """Additive noise in training: `x + epsilon`, `epsilon ~ N(0, noise_stddev^2)` for every feature; nothing is clipped.

    Args:
        noise_stddev: standard deviation, at least 0, in units of x. Default 0.5.
        seed: as in `Corruption`.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: where `noise_stddev` is negative or not a finite number.

    Example:

    ```python
    x_corrupted = kerasae.layers.GaussianCorruption(0.3)(x_test, training=True)
    ```

    Reference:
        Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.3.
    """

    def __init__(self, noise_stddev=0.5, seed=None, **kwargs):
        self.noise_stddev = checks.real_number(noise_stddev, "noise_stddev", minimum=0)
        super().__init__(seed, **kwargs)

    def corrupt(self, x):
        return x + ops.cast(self.noise_stddev * _normal(tf.shape(x), self.seed_generator), x.dtype)

    def get_config(self):
        return {**super().get_config(), "noise_stddev": self.noise_stddev}


@keras.saving.register_keras_serializable("kerasae")
class MaskingCorruption(Corruption):
    """In training, every feature is set to `value` with probability `corruption_rate`, independently of the others.

    The same as dropout between the input and the first layer, but for dropout's scaling of what is kept by 1 / (1 - rate).

    Args:
        corruption_rate: probability, in [0, 1]. Default 0.25.
        value: what masked features become. Default 0.
        seed: as in `Corruption`.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: where `corruption_rate` lies outside [0, 1] or `value` is not finite.

    Example:

    ```python
    x_corrupted = kerasae.layers.MaskingCorruption(0.5)(x_test, training=True)
    ```

    Reference:
        Vincent et al. 2010, section 3.3, where a fixed number of features an example is masked; here their number is binomial.
    """

    def __init__(self, corruption_rate=0.25, value=0.0, seed=None, **kwargs):
        self.corruption_rate = checks.real_number(corruption_rate, "corruption_rate", minimum=0, maximum=1)
        self.value = checks.real_number(value, "value")
        super().__init__(seed, **kwargs)

    def corrupt(self, x):
        masked = _uniform(tf.shape(x), self.seed_generator) < self.corruption_rate
        return ops.where(masked, ops.cast(self.value, x.dtype), x)

    def get_config(self):
        return {**super().get_config(), "corruption_rate": self.corruption_rate, "value": self.value}


@keras.saving.register_keras_serializable("kerasae")
class SaltAndPepperCorruption(Corruption):
    """In training, every feature becomes `minimum` or `maximum`, each with probability `corruption_rate` / 2.

    Args:
        corruption_rate: probability of a feature to be changed, in [0, 1]. Default 0.25.
        minimum: "pepper", the smallest value of the data. Default 0.
        maximum: "salt", the largest value, above `minimum`. Default 1.
        seed: as in `Corruption`.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: where `corruption_rate` lies outside [0, 1], or `maximum` is not above `minimum`.

    Example:

    ```python
    x_corrupted = kerasae.layers.SaltAndPepperCorruption(0.2)(x_test, training=True)
    ```

    Reference:
        Vincent et al. 2010, section 3.3, with a binomial number of features as in `MaskingCorruption`.
    """

    def __init__(self, corruption_rate=0.25, minimum=0.0, maximum=1.0, seed=None, **kwargs):
        self.corruption_rate = checks.real_number(corruption_rate, "corruption_rate", minimum=0, maximum=1)
        self.minimum = checks.real_number(minimum, "minimum")
        self.maximum = checks.real_number(maximum, "maximum", minimum=self.minimum, exclusive=True)
        super().__init__(seed, **kwargs)

    def corrupt(self, x):
        uniform = _uniform(tf.shape(x), self.seed_generator)
        x = ops.where(uniform < self.corruption_rate / 2, ops.cast(self.minimum, x.dtype), x)
        return ops.where(uniform >= 1 - self.corruption_rate / 2, ops.cast(self.maximum, x.dtype), x)

    def get_config(self):
        own = {"corruption_rate": self.corruption_rate, "minimum": self.minimum, "maximum": self.maximum}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasae")
class KSparse(keras.layers.Layer):
    """Keeps each example's k largest activations and sets the others to 0: `f_k(z) = (z_1 b_1, ..., z_n b_n)`.

    `b_i = 1` for the k largest entries, by magnitude or by value; among equal ones the first units win, so that exactly k are kept
    (fewer are non-zero only where kept entries are 0). The gradient flows through kept entries only. Training keeps `current_k`, which
    `kerasae.models.KAnnealing` changes between epochs; inference keeps `alpha * k`, rounded, at most all. Of a sequence the k are those of
    all its steps together; masked steps are set to 0 and take none of them.

    Args:
        k: entries to keep, at least 1 and at most the number of units.
        alpha: factor of k at inference, at least 1. Default 1.
        by: `"magnitude"`, `|z_i|`, as in the lecture; or `"value"`, `z_i`, as in the paper. Default `"magnitude"`.

    Returns:
        A tensor of z's shape.

    Raises:
        ValueError: on an option out of its bounds, or k above the number of units.

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
        # The most that training may keep; static, so that the search for the k-th largest stays short.
        self.max_k = self.k

    def build(self, input_shape):
        self.num_units = math.prod(input_shape[1:])
        if self.k > self.num_units:
            raise ValueError(f"`k` must be at most the number of units, {self.num_units}. Received: {self.k}")
        self.current_k = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="current_k"
        )
        self.current_k.assign(self.k)

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
            # (batch, 1): the k-th largest entry, and where it is. What equals it and is kept has a smaller index.
            threshold, index = tf.gather(largest, last, axis=1), tf.gather(indices, last, axis=1)
            keep = (score > threshold) | ((score == threshold) & (tf.range(self.num_units) <= index))
        else:
            # Where the graph is deployed, in half precision too, the order of equal entries is not relied on.
            threshold = tf.math.top_k(score, self.inference_k).values[:, -1:]
            above = score > threshold
            # Of those equal to the threshold, the first so many as are missing to k.
            equal = tf.cast(score == threshold, tf.int32)
            missing = self.inference_k - tf.reduce_sum(tf.cast(above, tf.int32), axis=1, keepdims=True)
            keep = above | ((equal > 0) & (tf.cumsum(equal, axis=1) <= missing))
        return ops.reshape(flat * ops.cast(keep, flat.dtype), ops.shape(z))

    @property
    def inference_k(self):
        """How many entries inference keeps: `alpha * k`, rounded, at most all."""
        return min(round(self.alpha * self.k), self.num_units)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "k": self.k, "alpha": self.alpha, "by": self.by}


@keras.saving.register_keras_serializable("kerasae")
class TiedDense(keras.layers.Layer):
    """A dense layer whose kernel is the transpose of another's: `h' = s(h W^T + b')`, with a bias of its own.

    Args:
        tied_to: name of the `Dense` layer of the encoder that owns W. The model that has both connects them.
        units: number of that layer's inputs, this one's outputs.
        activation: s.

    Returns:
        A tensor `(batch, units)`.

    Raises:
        ValueError: where it is called before it is connected, as by a decoder loaded without its encoder.
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
            raise ValueError(
                f"{self.name!r} gives {self.units} units, and {self.tied_to!r}, to whose transpose it is tied, takes "
                f"{source.kernel.shape[0]}."
            )
        # Not as an attribute that Keras tracks: the kernel is the encoder's, trained and saved there, once.
        self.__dict__["source"] = source

    def call(self, inputs):
        if self.source is None:
            raise ValueError(
                f"The kernel of {self.name!r} is that of the encoder's layer {self.tied_to!r}, and this decoder stands alone. Save and "
                "load the whole model."
            )
        return self.activation(ops.matmul(inputs, ops.transpose(self.source.kernel)) + self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "tied_to": self.tied_to, "units": self.units, "activation": activation}

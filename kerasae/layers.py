"""Layers of the families: sampling. Random numbers come from `random_seed`, which differs between replicas."""

import tensorflow as tf
from keras import ops


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
    epsilon = tf.random.stateless_normal(tf.shape(z_mean), random_seed(generator), alg="philox")
    return z_mean + ops.exp(0.5 * z_log_var) * epsilon

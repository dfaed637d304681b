"""The layers of the imputer's network: samples of the posterior, and their weighted mean."""

import keras
import numpy as np
from keras import ops

from kerasae import checks
from kerasae.distributions import log_ratio
from kerasae.layers import reparameterize
from kerasae.models.incomplete import log_density


@keras.saving.register_keras_serializable("kerasae")
class PosteriorSamples(keras.layers.Layer):
    """`z_l = z_mean + sigma * noise_l` for noise that is a weight: `(batch, latent_dim)` twice to `(batch * S, latent_dim)`.

    Args:
        shape: of the noise, (S, latent_dim).
    """

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = checks.positive_ints(shape, "shape")
        self.noise = self.add_weight(shape=self.shape, trainable=False, initializer="zeros", name="noise")
        self.built = True

    def call(self, inputs):
        z_mean, z_log_var = inputs
        # (batch, 1, latent_dim) and (S, latent_dim)
        z = reparameterize(ops.expand_dims(z_mean, 1), ops.expand_dims(z_log_var, 1), self.noise)
        return ops.reshape(z, (-1, self.shape[1]))

    def compute_output_shape(self, input_shape):
        return (None, self.shape[1])

    def get_config(self):
        return {**super().get_config(), "shape": self.shape}


@keras.saving.register_keras_serializable("kerasae")
class ImportanceWeightedMean(keras.layers.Layer):
    """`sum_l w_l mu(z_l) / sum_l w_l` of samples z_l of the posterior: `(batch, columns)`.

    Takes `[pairs, z_mean, z_log_var, z, parameters]`, as the imputation network makes them.

    Args:
        degrees: list, the degrees of freedom of each column.
    """

    def __init__(self, degrees, **kwargs):
        super().__init__(**kwargs)
        self.degrees = list(degrees)

    def call(self, inputs):
        pairs, z_mean, z_log_var, z, parameters = inputs
        columns, latent_dim = len(self.degrees), z_mean.shape[1]
        # (batch * S, ...) -> (S, batch, ...), the order of training
        samples = ops.shape(z)[0] // ops.shape(z_mean)[0]
        z = ops.transpose(ops.reshape(z, (-1, samples, latent_dim)), (1, 0, 2))
        parameters = ops.transpose(ops.reshape(parameters, (-1, samples, columns, 2)), (1, 0, 2, 3))
        degrees = np.asarray(self.degrees, "float32")
        noise = (z - z_mean) * ops.exp(-0.5 * z_log_var)
        log_weights = log_ratio(z, z_log_var, noise, batch_axes=2)
        log_weights += log_density(*_halves(pairs), *_halves(parameters), degrees, batch_axes=2)
        weights = ops.exp(log_weights - ops.max(log_weights, axis=0, keepdims=True))
        weights = weights / ops.sum(weights, axis=0, keepdims=True)
        return ops.sum(ops.expand_dims(weights, -1) * parameters[..., 0], axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape[0][:2]

    def get_config(self):
        return {**super().get_config(), "degrees": self.degrees}


def _halves(pairs):
    return pairs[..., 0], pairs[..., 1]

"""The rate-distortion family: codes that are cheap to store."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks
from kerasae.layers import random_seed
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.networks import takes_networks

__all__ = ["RateDistortionAutoencoder"]


@keras.saving.register_keras_serializable("kerasae")
class RateDistortionAutoencoder(Autoencoder):
    """An autoencoder whose codes are cheap to store: minimises squared error plus `rate_weight` times the code's length in nats.

    `E ||x - g(z~)||^2 + rate_weight * sum_j -ln P_j(z~_j)` with `P_j(z) = F_j(z + 1/2) - F_j(z - 1/2)`, F_j a logistic distribution
    with learned mean and scale. In training `z~ = f(x) + u` with u uniform in [-1/2, 1/2], which stands for the error of rounding; in
    inference `z~ = round(f(x))`, which is the code that `encode` gives, and the second term is the length of an ideal entropy coder's
    stream. `encoder` itself gives f(x).

    Logged: `reconstruction_loss`, and `rate_loss`, in nats per example.

    Args:
        encoder, decoder, seed: as in `Autoencoder`.
        rate_weight: what a nat may cost in squared error, above 0. Default 0.1.

    Raises:
        ValueError: as `Autoencoder`.

    Reference:
        Ballé, Laparra and Simoncelli 2017, "End-to-end Optimized Image Compression", equations 8 to 10, with a logistic distribution
        in place of their piecewise linear density.
    """

    term_names = ("reconstruction_loss", "rate_loss")

    def __init__(self, encoder, decoder, rate_weight=0.1, seed=None, **kwargs):
        kwargs.pop("loss", None)
        super().__init__(encoder, decoder, seed=seed, **kwargs)
        self.rate_weight = checks.real_number(rate_weight, "rate_weight", minimum=0, exclusive=True)
        if len(encoder.outputs[0].shape) != 2:
            raise ValueError(
                f"The encoder must give codes of shape (batch, latent_dim). Received: {encoder.outputs[0]}"
            )
        self.prior_mean = self.add_weight(shape=(self.code_size,), initializer="zeros", name="prior_mean")
        self.prior_log_scale = self.add_weight(shape=(self.code_size,), initializer="zeros", name="prior_log_scale")

    @property
    def term_weights(self):
        return {"rate_loss": self.rate_weight}

    def forward(self, x, training):
        z = ops.cast(self.encoder(x, training=training), "float32")
        if training:
            seed = random_seed(self.noise_generator(training))
            z = z + tf.random.stateless_uniform(tf.shape(z), seed, -0.5, 0.5, alg="philox")
        else:
            z = ops.round(z)
        return {"z": z, **self.reconstruct(z, training, self.condition_of(x))}

    def code_of(self, encoder_output):
        if isinstance(encoder_output, np.ndarray):
            return np.rint(encoder_output).astype("float32")
        return ops.round(ops.cast(encoder_output, "float32"))

    def terms(self, x, outputs):
        return {**super().terms(x, outputs), "rate_loss": self.rate(outputs["z"])}

    def score(self, x):
        terms = self.terms(self.target_of(x), self.deterministic(x))
        return terms["reconstruction_loss"] + self.rate_weight * terms["rate_loss"]

    @property
    def score_meaning(self):
        definition, unit = self.likelihood.score
        return f"{definition}, of rounded codes, plus {self.rate_weight:g} times the code's length in nats", unit

    def rate(self, z):
        """`sum_j -ln P_j(z_j)` per example, in nats, shape `(batch,)`."""
        inverse_scale = ops.exp(-self.prior_log_scale)
        # F is symmetric: P is taken on the lower side, where the difference of two small numbers keeps its digits.
        z = -ops.abs(z - self.prior_mean)
        probability = ops.sigmoid((z + 0.5) * inverse_scale) - ops.sigmoid((z - 0.5) * inverse_scale)
        return -ops.sum(ops.log(ops.maximum(probability, 1e-9)), axis=1)

    def get_config(self):
        config = super().get_config()
        del config["loss"]
        return {**config, "rate_weight": self.rate_weight}


@family(
    title="rate-distortion",
    purpose="codes that are cheap to store: lossy compression",
    paper="Ballé et al. 2017",
)
@takes_networks(without=("loss",))
def rate_distortion(networks, *, rate_weight=0.1, **kwargs):
    """A rate-distortion autoencoder: its codes are rounded to whole numbers, and their length counts.

    Args:
        latent_dim: most numbers per example, at least 1; those that don't pay for themselves end up costing next to nothing.
        rate_weight: what a nat of code may cost in squared error: lower means better and larger.

    Returns:
        `kerasae.models.RateDistortionAutoencoder`, to be compiled. `kerasae.tasks.Codec` writes its codes as bytes.

    Example:

    ```python
    model = kerasae.builders.rate_distortion((28, 28, 1), latent_dim=64, rate_weight=0.05)
    ```

    Reference:
        Ballé, Laparra and Simoncelli 2017, "End-to-end Optimized Image Compression".
    """
    return RateDistortionAutoencoder(*networks.pair(), rate_weight=rate_weight, **kwargs)

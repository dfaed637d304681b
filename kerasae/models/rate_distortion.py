"""The rate-distortion family."""

import keras
from keras import ops

from kerasae import checks
from kerasae.models.autoencoder import Autoencoder

__all__ = ["RateDistortionAutoencoder"]


@keras.saving.register_keras_serializable("kerasae")
class RateDistortionAutoencoder(Autoencoder):
    """An autoencoder whose codes are cheap to store: minimises squared error plus `rate_weight` times the code's length in nats.

    `E ||x - g(z~)||^2 + rate_weight * sum_j -ln P_j(z~_j)` with `P_j(z) = F_j(z + 1/2) - F_j(z - 1/2)`, F_j a logistic distribution
    with learned mean and scale. In training `z~ = f(x) + u` with u uniform in [-1/2, 1/2], which stands for the error of rounding; in
    inference `z~ = round(f(x))`, and the second term is the length of an ideal entropy coder's stream.

    Logged: `reconstruction_loss`, and `rate_loss`, in nats per example.

    Args:
        encoder, decoder, seed: as in `Autoencoder`.
        rate_weight: what a nat may cost in squared error, above 0. Default 0.1.

    Raises:
        ValueError: as `Autoencoder`.

    Example:

    ```python
    encoder = kerasae.networks.encoder((8, 8, 1), {"z": 16})
    decoder = kerasae.networks.decoder((8, 8, 1), 16)
    model = kerasae.models.RateDistortionAutoencoder(encoder, decoder, rate_weight=0.05)
    model.compile("adam")
    model.fit(x_train, epochs=2)
    ```

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
            z = z + keras.random.uniform(ops.shape(z), -0.5, 0.5, seed=self.noise_generator(training))
        else:
            z = ops.round(z)
        return {"z": z, **self.reconstruct(z, training)}

    def code_of(self, encoder_output):
        return ops.round(encoder_output)

    def terms(self, x, outputs):
        return {**super().terms(x, outputs), "rate_loss": self.rate(outputs["z"])}

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

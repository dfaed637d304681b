"""The variational family."""

import math

import keras
import numpy as np
from keras import ops

from kerasae import checks, losses
from kerasae.layers import sample_normal
from kerasae.models.autoencoder import Autoencoder

LIKELIHOODS = ("bernoulli", "gaussian")


@keras.saving.register_keras_serializable("kerasae")
class VariationalAutoencoder(Autoencoder):
    """A variational autoencoder: minimises `E[-ln p(x|z)] + beta KL(q(z|x) || N(0, I))`, in nats per example.

    The encoder gives mu and ln sigma^2 of `q(z|x) = N(mu(x), diag sigma^2(x))`; `z = mu + sigma * epsilon`; the decoder gives the mean
    of `p(x|z)`. Logged: `reconstruction_loss`, `-ln p(x|z)` of one sample z; `kl_loss`, in closed form; with `beta = 1`, `loss` is the
    negative evidence lower bound (ELBO). `fit` and `evaluate` draw z from q (every evaluation the same noise); `predict`, `encode` and
    exported encoders use z = mu.

    Args:
        encoder: Keras model from `(batch, *input_shape)` to `[z_mean, z_log_var]`, `(batch, latent_dim)` each; `z_log_var` may be
            `(batch, 1)`: one variance for all latents (isotropic).
        decoder: Keras model from `(batch, latent_dim)` to the mean of `p(x|z)`, `(batch, *input_shape)`.
        likelihood: `"bernoulli"` (data in [0, 1], a decoder that ends in a sigmoid, on whose logits it is computed), or `"gaussian"`.
        variance: c of the Gaussian `p(x|z) = N(x', cI)`, above 0. The constant `m/2 ln(2 pi c)` is part of the loss.
        beta: weight of the KL term, at least 0. Default 1.
        seed: of the noise.

    Raises:
        ValueError: as `Autoencoder`.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.variational(x_train.shape[1:], latent_dim=8, hidden_units=(256, 128))
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    images = model.sample(16)
    ```

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes", equation 10 with one sample; beta: Higgins et al. 2017.
    """

    term_names = ("reconstruction_loss", "kl_loss")
    code_names = ("z_mean", "z_log_var")
    _num_codes = (2,)

    def __init__(self, encoder, decoder, likelihood="bernoulli", variance=1.0, beta=1.0, seed=None, **kwargs):
        self.likelihood = checks.choice(likelihood, "likelihood", LIKELIHOODS)
        self.variance = checks.real_number(variance, "variance", minimum=0, exclusive=True)
        self.beta = checks.real_number(beta, "beta", minimum=0)
        loss = "binary_crossentropy" if likelihood == "bernoulli" else "squared_error"
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        z_mean, z_log_var = (output.shape[1:] for output in encoder.outputs)
        if not checks.shapes_match(z_mean, z_log_var) and tuple(z_log_var) != (1,):
            raise ValueError(
                f"The encoder's second output, ln sigma^2, must have the first one's shape {z_mean}, or (1,) for one variance for all "
                f"latents. Received: {z_log_var}"
            )

    @property
    def term_weights(self):
        return {"kl_loss": self.beta}

    def forward(self, x, training, sample=True):
        z_mean, z_log_var = self.encoder(x, training=training)
        z = sample_normal(z_mean, z_log_var, self.noise_generator(training)) if sample else z_mean
        return {"z_mean": z_mean, "z_log_var": z_log_var, "z": z, **self.reconstruct(z, training)}

    def call(self, x, training=False):
        return self.forward(x, training, sample=training)["reconstruction"]

    def reconstruction_loss(self, x, outputs):
        if self.likelihood == "bernoulli":
            return losses.binary_crossentropy(x, outputs["logits"])
        return losses.gaussian_nll(x, outputs["reconstruction"], math.log(self.variance))

    def terms(self, x, outputs):
        return {
            **super().terms(x, outputs),
            "kl_loss": losses.kl_standard_normal(outputs["z_mean"], outputs["z_log_var"]),
        }

    def code_of(self, encoder_output):
        return encoder_output[0]

    def sample(self, num_samples, seed=None):
        """New examples: the means of `p(x|z)` for `z ~ N(0, I)`.

        Args:
            num_samples: how many.
            seed: an int for the same samples every time.

        Returns:
            NumPy, `(num_samples, *input_shape)`.
        """
        shape = self.decoder.inputs[0].shape[1:]
        z = np.random.default_rng(seed).standard_normal((checks.positive_int(num_samples, "num_samples"), *shape))
        return self.decode(z.astype("float32"))

    def get_config(self):
        config = super().get_config()
        del config["loss"]
        return {**config, "likelihood": self.likelihood, "variance": self.variance, "beta": self.beta}

"""The variational family."""

import functools

import keras
import tensorflow as tf

from kerasae import checks, distributions
from kerasae.models import importance
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.networks import takes_networks

__all__ = ["BetaAnnealing", "VariationalAutoencoder"]

POSTERIORS = ("diagonal", "isotropic")


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
        decoder: Keras model from `(batch, latent_dim)` to the mean of `p(x|z)`, `(batch, *input_shape)`; with `variance="predicted"` to
            `[mean, log_variance]`.
        likelihood: `"bernoulli"` (data in [0, 1], a decoder that ends in a sigmoid, on whose logits it is computed), or `"gaussian"`.
        variance: c of the Gaussian `p(x|z) = N(x', cI)`: a number above 0; `"learned"`, one number, trained with the rest; or
            `"predicted"`, one per feature, by the decoder. The constant `m/2 ln(2 pi c)` is part of the loss.
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
    nats = model.log_likelihood(x_test[:100])
    ```

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes", equation 10 with one sample; predicted variances: appendix C.2. Beta:
        Higgins et al. 2017, equation 4. One learned variance: Rybkin et al. 2021, "Simple and Effective VAE Training with Calibrated
        Decoders", section 3.2.
    """

    term_names = ("reconstruction_loss", "kl_loss")
    code_names = ("z_mean", "z_log_var")
    # A collapsed latent has the same mean for every x (Burda et al. 2016).
    active_threshold = 0.01

    def __init__(self, encoder, decoder, likelihood="bernoulli", variance=1.0, beta=1.0, seed=None, **kwargs):
        likelihood = distributions.likelihood(likelihood, variance)
        self.beta = checks.real_number(beta, "beta", minimum=0)
        # The weight of the KL term in training, which `BetaAnnealing` changes. No weight of the model: files don't hold it.
        self.current_beta = tf.Variable(self.beta, trainable=False, dtype="float32", name="current_beta")
        self.variance = getattr(likelihood, "variance", 1.0)
        super().__init__(encoder, decoder, loss=likelihood, seed=seed, **kwargs)
        self.posterior = distributions.DiagonalNormal()
        self.prior = distributions.StandardNormal(self.decoder.inputs[0].shape[1:])
        z_mean, z_log_var = (output.shape[1:] for output in encoder.outputs)
        if not checks.shapes_match(z_mean, z_log_var) and tuple(z_log_var) != (1,):
            raise ValueError(
                f"The encoder's second output, ln sigma^2, must have the first one's shape {z_mean}, or (1,). Received: {z_log_var}"
            )
        if self.variance == "learned":
            self.log_variance = self.add_weight(shape=(), initializer="zeros", name="log_variance")
            likelihood.log_variance = self.log_variance

    @property
    def term_weights(self):
        return {"kl_loss": self.current_beta}

    def forward(self, x, training):
        z_mean, z_log_var = self.encoder(x, training=training)
        z = self.posterior.sample((z_mean, z_log_var), self.noise_generator(training))
        return {"z_mean": z_mean, "z_log_var": z_log_var, "z": z, **self.reconstruct(z, training, self.condition_of(x))}

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        try:
            return super().fit(*args, **kwargs)
        finally:
            # `BetaAnnealing` may have changed it; an interrupted `fit` tells its callbacks nothing.
            self.current_beta.assign(self.beta)

    def terms(self, x, outputs):
        parameters = [outputs[name] for name in self.code_names]
        return {**super().terms(x, outputs), "kl_loss": self.posterior.kl(self.prior, parameters)}

    def sample(self, num_samples, seed=None, condition=None):
        """New examples: the means of `p(x|z)` for z drawn from the prior.

        Args:
            num_samples: how many.
            seed: an int for the same samples every time.
            condition: for a decoder of `(z, condition)`, as in `decode`, one per sample.

        Returns:
            NumPy, `(num_samples, *input_shape)`.
        """
        z = self.prior.sample(checks.positive_int(num_samples, "num_samples"), seed)
        return self.decode(z, condition=condition)

    def log_likelihood(self, x, num_samples=100, seed=0, decodings_at_once=None, verbose=0):
        """The log-likelihood ln p(x) of examples by importance sampling, in nats.

        `ln 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x)` with `z_s ~ q(z|x)`: in expectation a lower bound of ln p(x), never below the ELBO, and
        tighter the more samples. Samples are drawn, decoded and summed a few at a time: memory does not grow with S.

        Args:
            x: examples, `(n, *input_shape)`; 0 or 1 for a Bernoulli likelihood.
            num_samples: S. Burda et al. use 5000.
            seed: int, of the samples.
            decodings_at_once: number of samples that are decoded together, over all examples, which bounds the memory; the samples of a
                seed depend on it. Default: as many as fit in 64 MiB of the decoder's widest layers, at most 4096.
            verbose: 1 for a progress bar.

        Returns:
            NumPy float32, `(n,)`, nats.

        Raises:
            ValueError: if the model does not take the examples, or `num_samples` is below 1.

        Reference:
            Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", equation 8.
        """
        return importance.log_likelihood(self, x, num_samples, seed, decodings_at_once, verbose)

    def get_config(self):
        config = super().get_config()
        del config["loss"]
        return {**config, "likelihood": self.likelihood.name, "variance": self.variance, "beta": self.beta}


class BetaAnnealing(keras.callbacks.Callback):
    """Raises the weight of a `VariationalAutoencoder`'s KL term, epoch by epoch, in a straight line from `start_beta` to the model's beta.

    Latents learn to carry information before it costs them, so that fewer collapse to the prior. The logged `loss` is that of the current
    beta, which becomes the model's own again once `fit` ends or is interrupted.

    Args:
        epochs: number of epochs until the model's own beta is reached; then it stays.
        start_beta: weight in the first epoch, at least 0 and at most the model's. Default 0.

    Raises:
        ValueError: if the model is no `VariationalAutoencoder`, or `start_beta` above its beta.

    Reference:
        Bowman et al. 2016, "Generating Sentences from a Continuous Space", section 3.1; Sonderby et al. 2016, "Ladder Variational
        Autoencoders", section 2.3.
    """

    def __init__(self, epochs, start_beta=0.0):
        super().__init__()
        self.epochs = checks.positive_int(epochs, "epochs")
        self.start_beta = checks.real_number(start_beta, "start_beta", minimum=0)

    def set_model(self, model):
        super().set_model(model)
        if not isinstance(model, VariationalAutoencoder):
            raise ValueError(f"BetaAnnealing needs a VariationalAutoencoder. Received: {model!r}")
        if self.start_beta > model.beta:
            raise ValueError(
                f"`start_beta` must be at most the model's beta, {model.beta}. Received: {self.start_beta}"
            )

    def beta_at(self, epoch):
        """Weight of the KL term in an epoch, counted from 0."""
        return self.start_beta + (self.model.beta - self.start_beta) * min(1.0, epoch / self.epochs)

    def on_epoch_begin(self, epoch, logs=None):
        self.model.current_beta.assign(self.beta_at(epoch))


@family(
    title="variational (Bernoulli, Gaussian; diagonal, isotropic)",
    purpose="generating, likelihoods, a smooth latent space",
    paper="Kingma & Welling 2014",
    # Such data have no natural unit: the spread of p(x|z) is learned.
    real_valued={"likelihood": "gaussian", "variance": "learned"},
)
@takes_networks(without=("loss", "code_activation"))
def variational(networks, *, likelihood="bernoulli", variance=1.0, posterior="diagonal", beta=1.0, **kwargs):
    """A variational autoencoder with a Gaussian posterior and the prior N(0, I).

    Args:
        likelihood: `"bernoulli"`, for data in [0, 1], or `"gaussian"`.
        variance: c of the Gaussian likelihood `N(x', cI)`: a number above 0, `"learned"`, or `"predicted"`, one per feature.
        posterior: `"diagonal"`, one variance per latent, or `"isotropic"`, one per example, `N(mu(x), sigma(x)^2 I)`.
        beta: weight of the KL term.
        output_activation: of the mean. Default: sigmoid for Bernoulli, linear for Gaussian.
        encoder: your own network, in place of shape, sizes, activations and `network`; it gives `[z_mean, z_log_var]`.

    Returns:
        `kerasae.models.VariationalAutoencoder`, to be compiled.

    Example:

    ```python
    model = kerasae.builders.variational((28, 28, 1), latent_dim=16, hidden_units=(512, 256))
    model.compile(optimizer="adam")
    ```

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes".
    """
    density = distributions.likelihood(likelihood, variance)
    checks.choice(posterior, "posterior", POSTERIORS)
    encoder, decoder = networks.pair(
        heads=lambda size: {"z_mean": size, "z_log_var": size if posterior == "diagonal" else 1},
        output_activation=networks.output_activation or density.head,
        log_variance="log_variance" in density.outputs,
    )
    return VariationalAutoencoder(encoder, decoder, likelihood=likelihood, variance=variance, beta=beta, **kwargs)

"""The variational family."""

import functools
import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasae import checks, losses
from kerasae.layers import sample_normal
from kerasae.models.autoencoder import Autoencoder

LIKELIHOODS = ("bernoulli", "gaussian")
VARIANCES = ("learned", "predicted")
_MAX_DECODINGS = 4096  # of `log_likelihood` at a time
_DECODING_BYTES = 64 * 2**20  # of activations that these may take
_FACTORS = 8  # of a product whose logarithm is taken at once


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
            `"predicted"`, one a feature, by the decoder. The constant `m/2 ln(2 pi c)` is part of the loss.
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
        self.likelihood = checks.choice(likelihood, "likelihood", LIKELIHOODS)
        if isinstance(variance, str):
            self.variance = checks.choice(variance, "variance", VARIANCES)
        else:
            self.variance = checks.real_number(variance, "variance", minimum=0, exclusive=True)
        if likelihood == "bernoulli" and self.variance != 1.0:
            raise ValueError(
                f"`variance` belongs to the Gaussian likelihood; a Bernoulli has none. Received: {variance!r}"
            )
        self.beta = checks.real_number(beta, "beta", minimum=0)
        # What training weighs the KL term with: beta, but for `BetaAnnealing`. No weight of the model: files don't hold it.
        self.current_beta = tf.Variable(self.beta, trainable=False, dtype="float32", name="current_beta")
        loss = "binary_crossentropy" if likelihood == "bernoulli" else "squared_error"
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        z_mean, z_log_var = (output.shape[1:] for output in encoder.outputs)
        if not checks.shapes_match(z_mean, z_log_var) and tuple(z_log_var) != (1,):
            raise ValueError(
                f"The encoder's second output, ln sigma^2, must have the first one's shape {z_mean}, or (1,) for one variance for all "
                f"latents. Received: {z_log_var}"
            )
        if self.variance == "learned":
            self.log_variance = self.add_weight(shape=(), initializer="zeros", name="log_variance")

    @property
    def reconstruction_names(self):
        return ("reconstruction", "log_variance") if self.variance == "predicted" else ("reconstruction",)

    @property
    def term_weights(self):
        return {"kl_loss": self.current_beta}

    def forward(self, x, training, sample=True):
        z_mean, z_log_var = self.encoder(x, training=training)
        z = sample_normal(z_mean, z_log_var, self.noise_generator(training)) if sample else z_mean
        return {"z_mean": z_mean, "z_log_var": z_log_var, "z": z, **self.reconstruct(z, training)}

    def call(self, x, training=False):
        return self.forward(self.arranged(x), training, sample=training)["reconstruction"]

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        try:
            return super().fit(*args, **kwargs)
        finally:
            # What `BetaAnnealing` has changed; an interrupted `fit` tells its callbacks nothing.
            self.current_beta.assign(self.beta)

    def reconstruct(self, z, training):
        if self.variance == "predicted":
            mean, log_variance = self.decoder(z, training=training)
            return {"reconstruction": mean, "log_variance": log_variance}
        return super().reconstruct(z, training)

    def reconstruction_loss(self, x, outputs):
        """`-ln p(x|z)` per example, in nats, shape `(batch,)`."""
        if self.likelihood == "bernoulli":
            return super().reconstruction_loss(x, outputs)
        if self.variance == "predicted":
            log_variance = outputs["log_variance"]
        elif self.variance == "learned":
            log_variance = ops.convert_to_tensor(self.log_variance)
        else:
            log_variance = math.log(self.variance)
        return losses.gaussian_nll(x, outputs["reconstruction"], log_variance)

    def terms(self, x, outputs):
        return {
            **super().terms(x, outputs),
            "kl_loss": losses.kl_standard_normal(outputs["z_mean"], outputs["z_log_var"]),
        }

    def code_of(self, encoder_output):
        return encoder_output[0]

    def reconstruction_of(self, decoder_output):
        return decoder_output[0] if self.variance == "predicted" else decoder_output

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

    def log_likelihood(self, x, num_samples=100, seed=0, decodings_at_once=None, verbose=0):
        """The log-likelihood ln p(x) of examples by importance sampling, in nats.

        `ln 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x)` with `z_s ~ q(z|x)`: in expectation a lower bound of ln p(x), never below the ELBO, and
        tighter the more samples. Samples are drawn, decoded and summed a part at a time: memory does not grow with S.

        Args:
            x: examples, `(n, *input_shape)`; 0 or 1 where the likelihood is to be a Bernoulli's.
            num_samples: S. Burda et al. use 5000.
            seed: int, of the samples.
            decodings_at_once: how many samples are decoded together, over all examples: bounds the memory. Which samples a seed gives
                depends on it. Default: what fits in 64 MiB of the decoder's widest layers, at most 4096.
            verbose: 1 for a progress bar.

        Returns:
            NumPy float32, `(n,)`, nats.

        Raises:
            ValueError: on examples that the model does not take, and `num_samples` below 1.

        Reference:
            Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders", equation 8.
        """
        x = self.check_examples(x, unit_interval=self.needs_unit_interval)
        target = self.target_of(x).astype("float32")
        x = target if len(self.encoder.inputs) == 1 else [target, *x[1:]]
        num_samples = checks.positive_int(num_samples, "num_samples")
        if decodings_at_once is None:
            decodings = self._decodings_that_fit(target)
        else:
            decodings = checks.positive_int(decodings_at_once, "decodings_at_once")
        # Rounds of equal size, so that hardly any sample is drawn in vain.
        rounds = -(-num_samples // decodings)
        samples_at_once = -(-num_samples // rounds)
        examples_at_once = min(len(target), max(1, decodings // samples_at_once))
        progress = keras.utils.Progbar(len(target), verbose=verbose, unit_name="example")
        estimates = []
        for start in range(0, len(target), examples_at_once):
            # The last example fills up the last batch: of one size, one function is compiled.
            rows = np.minimum(np.arange(start, start + examples_at_once), len(target) - 1)
            batch = tf.nest.map_structure(lambda array, rows=rows: array[rows], x)
            estimate = self._importance_sample(
                batch, samples_at_once, tf.constant(rounds), tf.constant(num_samples), tf.constant([seed, start])
            )
            estimates.append(estimate.numpy()[: len(target) - start])
            progress.update(min(start + examples_at_once, len(target)))
        return np.concatenate(estimates)

    def _decodings_that_fit(self, x):
        # Two neighbouring layers are alive at a time.
        sizes = [x[0].size]
        for layer in self.decoder.layers:
            sizes += [math.prod(size or 1 for size in output.shape[1:]) for output in tf.nest.flatten(layer.output)]
        widest = sum(sorted(sizes)[-2:])
        return max(1, min(_MAX_DECODINGS, _DECODING_BYTES // (4 * widest)))

    def _importance_sample(self, x, samples, rounds, num_samples, seed):
        if not hasattr(self, "_importance_sampler"):
            # XLA fuses what surrounds the decoder; the decoder stays TensorFlow's, whose convolutions are three times as fast on a CPU.
            compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
            sampler = functools.partial(self._log_mean_weight, compiled(_draw), compiled(self._log_densities))
            # Kept as one function; a tuple, so that Keras does not look into it.
            self._importance_sampler = (tf.function(sampler, autograph=False),)
        return self._importance_sampler[0](x, samples, rounds, num_samples, seed)

    def _log_mean_weight(self, draw, log_densities, x, samples, rounds, num_samples, seed):
        """`ln 1/S sum_s w_s` per example, `samples` of the S at a time."""
        z_mean, z_log_var = self.encoder(x, training=False)
        x = tf.convert_to_tensor(self.target_of(x))
        z_mean = tf.cast(z_mean, tf.float32)
        z_log_var = tf.broadcast_to(tf.cast(z_log_var, tf.float32), z_mean.shape)

        def add_round(i, total):
            fold = tf.random.experimental.stateless_fold_in(seed, i)
            z, log_ratio = draw(z_mean, z_log_var, samples, fold)
            outputs = self.reconstruct(tf.reshape(z, (-1, *z_mean.shape[1:])), training=False)
            log_weight = tf.cast(log_ratio + log_densities(x, outputs, samples), tf.float64)
            # The last round may hold more samples than are missing.
            counted = i * samples + tf.range(samples) < num_samples
            log_weight = tf.where(counted[:, None], log_weight, -np.inf)
            return i + 1, tf.reduce_logsumexp(tf.concat([total[None], log_weight], axis=0), axis=0)

        # In float64: over many rounds float32 would lose the later ones. One round at a time, for the memory.
        _, total = tf.while_loop(
            lambda i, total: i < rounds,
            add_round,
            (tf.constant(0), tf.fill(x.shape[:1], tf.constant(-np.inf, tf.float64))),
            parallel_iterations=1,
        )
        return tf.cast(total - tf.math.log(tf.cast(num_samples, tf.float64)), tf.float32)

    def _log_densities(self, x, outputs, samples):
        """`ln p(x|z)` of every sample of every example, `(samples, batch)`."""
        batch = x.shape[0]
        its_own_loss = type(self).reconstruction_loss is VariationalAutoencoder.reconstruction_loss
        if self.likelihood == "bernoulli" and its_own_loss:
            logits = tf.cast(tf.reshape(outputs["logits"], (samples, batch, -1)), tf.float32)
            return _bernoulli_log_probability(tf.reshape(x, (batch, -1)), logits)
        repeated = tf.reshape(tf.repeat(x[None], samples, axis=0), (samples * batch, *x.shape[1:]))
        return -tf.reshape(self.reconstruction_loss(repeated, outputs), (samples, batch))

    def get_config(self):
        config = super().get_config()
        del config["loss"]
        return {**config, "likelihood": self.likelihood, "variance": self.variance, "beta": self.beta}


class BetaAnnealing(keras.callbacks.Callback):
    """Raises the weight of a `VariationalAutoencoder`'s KL term, epoch by epoch, in a straight line from `start_beta` to the model's beta.

    Latents learn to carry information before they are charged for it, so that fewer collapse to the prior. Until `epochs` are over, the
    logged `loss` is of the smaller beta; afterwards, and once `fit` ends or is interrupted, it is of the model's own.

    Args:
        epochs: number of epochs until the model's own beta is reached; from then on it stays.
        start_beta: weight in the first epoch, at least 0 and at most the model's. Default 0.

    Raises:
        ValueError: where the model is no `VariationalAutoencoder`, or `start_beta` above its beta.

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


def _draw(z_mean, z_log_var, samples, seed):
    """`z ~ q(z|x)`, `(samples, batch, latent_dim)`, and `ln p(z) - ln q(z|x)`, `(samples, batch)`."""
    epsilon = tf.random.stateless_normal((samples, *z_mean.shape), seed, alg="philox")
    z = z_mean + tf.exp(0.5 * z_log_var) * epsilon
    # The constants of the two densities cancel.
    axes = list(range(2, len(z.shape)))
    return z, 0.5 * tf.reduce_sum(tf.square(epsilon) + z_log_var - tf.square(z), axis=axes)


def _bernoulli_log_probability(x, logits):
    """`sum_i x_i l_i - ln(1 + e^l_i)`: x `(batch, n)`, logits `(samples, batch, n)`, result `(samples, batch)`.

    `ln(1 + e^l) = max(l, 0) + ln(1 + e^-|l|)`, and sums of logarithms are logarithms of products: eight factors between 1 and 2 share
    one, which saves most of the time that a decoder's wide output costs.
    """
    factors = 1.0 + tf.exp(-tf.abs(logits))
    padding = -logits.shape[-1] % _FACTORS
    if padding:
        factors = tf.pad(factors, [[0, 0], [0, 0], [0, padding]], constant_values=1.0)
    # (samples, batch, n) -> (samples, batch, 8, n / 8)
    factors = tf.reshape(factors, (*factors.shape[:2], _FACTORS, -1))
    logarithms = tf.reduce_sum(tf.math.log(tf.reduce_prod(factors, axis=2)), axis=-1)
    return tf.reduce_sum(x * logits - tf.nn.relu(logits), axis=-1) - logarithms

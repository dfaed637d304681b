"""The log-likelihood ln p(x) of a model with a posterior and a prior, by importance sampling."""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from kerasae import checks, distributions
from kerasae.models.autoencoder import Autoencoder

_MAX_DECODINGS = 4096  # at a time
_DECODING_BYTES = 64 * 2**20  # of activations that these may take


def log_likelihood(model, x, num_samples, seed, decodings_at_once, verbose):
    """See `kerasae.models.VariationalAutoencoder.log_likelihood`."""
    x = model.check_examples(x, unit_interval=model.needs_unit_interval)
    target = model.target_of(x).astype("float32")
    x = target if len(model.encoder.inputs) == 1 else [target, *x[1:]]
    num_samples = checks.positive_int(num_samples, "num_samples")
    if decodings_at_once is None:
        decodings_at_once = decodings_that_fit(model.decoder, target)
    decodings = checks.positive_int(decodings_at_once, "decodings_at_once")
    # Rounds of equal size, so that hardly any sample is wasted.
    rounds = -(-num_samples // decodings)
    samples_at_once = -(-num_samples // rounds)
    examples_at_once = min(len(target), max(1, decodings // samples_at_once))
    sampler = _sampler(model)
    progress = keras.utils.Progbar(len(target), verbose=verbose, unit_name="example")
    estimates = []
    for start in range(0, len(target), examples_at_once):
        # The last example fills up the last batch: of one size, one function is compiled.
        rows = np.minimum(np.arange(start, start + examples_at_once), len(target) - 1)
        batch = tf.nest.map_structure(lambda array, rows=rows: array[rows], x)
        estimate = sampler(
            batch, samples_at_once, tf.constant(rounds), tf.constant(num_samples), tf.constant([seed, start])
        )
        estimates.append(estimate.numpy()[: len(target) - start])
        progress.update(min(start + examples_at_once, len(target)))
    return np.concatenate(estimates)


def decodings_that_fit(decoder, x):
    """The number of codes to decode at a time, for examples like those in x."""
    # Two neighbouring layers are alive at a time.
    sizes = [x[0].size]
    for layer in decoder.layers:
        sizes += [math.prod(size or 1 for size in output.shape[1:]) for output in tf.nest.flatten(layer.output)]
    widest = sum(sorted(sizes)[-2:])
    return max(1, min(_MAX_DECODINGS, _DECODING_BYTES // (4 * widest)))


def _sampler(model):
    """`_log_mean_weight` of a model, compiled once and kept by it."""
    if "_importance_sampler" not in model.__dict__:
        # XLA fuses the steps around the decoder; the decoder stays TensorFlow's, whose convolutions are three times as fast on a CPU.
        compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
        densities = compiled(functools.partial(_log_densities, model))
        sampler = functools.partial(_log_mean_weight, model, compiled(_draw), densities)
        # A tuple, so that Keras does not look into it.
        model._importance_sampler = (tf.function(sampler, autograph=False),)
    return model._importance_sampler[0]


def _log_mean_weight(model, draw, log_densities, x, samples, rounds, num_samples, seed):
    """`ln 1/S sum_s w_s` per example, `samples` of the S at a time."""
    z_mean, z_log_var = model.encoder(x, training=False)
    # Each example's condition, once per sample.
    condition = [tf.repeat(c[None], samples, axis=0) for c in map(tf.convert_to_tensor, model.condition_of(x))]
    condition = [tf.reshape(c, (-1, *c.shape[2:])) for c in condition]
    x = tf.convert_to_tensor(model.target_of(x))
    z_mean = tf.cast(z_mean, tf.float32)
    z_log_var = tf.broadcast_to(tf.cast(z_log_var, tf.float32), z_mean.shape)

    def add_round(i, total):
        fold = tf.random.experimental.stateless_fold_in(seed, i)
        z, log_ratio = draw(z_mean, z_log_var, samples, fold)
        outputs = model.reconstruct(tf.reshape(z, (-1, *z_mean.shape[1:])), False, condition)
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


def _draw(z_mean, z_log_var, samples, seed):
    """`z ~ q(z|x)`, `(samples, batch, latent_dim)`, and `ln p(z) - ln q(z|x)`, `(samples, batch)`."""
    noise = tf.random.stateless_normal((samples, *z_mean.shape), seed, alg="philox")
    z = distributions.reparameterize(z_mean, z_log_var, noise)
    return z, distributions.log_ratio(z, z_log_var, noise, batch_axes=2)


def _log_densities(model, x, outputs, samples):
    """`ln p(x|z)` of every sample of every example, `(samples, batch)`."""
    # The likelihood computes it faster, but a family may have given the loss another meaning.
    if type(model).reconstruction_loss is Autoencoder.reconstruction_loss:
        return model.likelihood.log_prob_of_samples(x, outputs, samples)
    return distributions.repeated_log_prob(model.reconstruction_loss, x, outputs, samples)

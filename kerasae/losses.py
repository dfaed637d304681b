"""The terms of the losses: pure functions of tensors that give one number per example, summed over features, shape `(batch,)`."""

import math

import tensorflow as tf
from keras import ops

_SMALLEST_RATE = 1e-6


def _sum_features(values, weights=None):
    # (batch, ...) -> (batch,)
    if weights is not None:
        values = ops.where(weights > 0, weights * values, 0.0)  # 0 whatever stands there
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


def _flat(*tensors):
    # (batch, ...) -> (batch, features), if the sizes are known: XLA is a tenth faster on rows than on one-channel images.
    shape = tensors[0].shape[1:]
    if None in shape or any(t.shape[1:] != shape for t in tensors):
        return tensors
    return [ops.reshape(t, (-1, math.prod(shape))) for t in tensors]


def _float32(*tensors):
    # Half precision is too coarse to sum hundreds of features in.
    return [
        t if t.dtype in ("float32", "float64") else ops.cast(t, "float32") for t in map(ops.convert_to_tensor, tensors)
    ]


def _batch_mean(values):
    # (batch, units) -> (units,). Under a `tf.distribute` strategy this is the mean over the batches of all replicas.
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return ops.mean(values, axis=0)
    parts = [ops.sum(values, axis=0), ops.cast(ops.shape(values)[0], values.dtype)]
    total, count = replica.all_reduce(tf.distribute.ReduceOp.SUM, parts)
    return total / count


def squared_error(x, reconstruction, weights=None):
    """Squared error per example: `sum_i (x_i - x'_i)^2`.

    Args:
        x: the target, shape `(batch, ...)`, any range.
        reconstruction: x', of the same shape.
        weights: w_i of each term, at least 0, in a shape that broadcasts to x's. Default: 1.

    Returns:
        Squared error, shape `(batch,)`, in squared units of `x`. Keras's `"mse"` divides this by the number of features.
    """
    x, reconstruction = _float32(x, reconstruction)
    if weights is not None:
        return _sum_features(ops.square(x - reconstruction), weights)
    x, reconstruction = _flat(x, reconstruction)
    return _sum_features(ops.square(x - reconstruction))


def binary_crossentropy(x, logits, weights=None):
    """Cross-entropy per example, in nats: `-sum_i x_i ln p_i + (1 - x_i) ln(1 - p_i)` with `p = sigmoid(logits)`.

    For binary `x` it is the negative log-likelihood of a Bernoulli distribution.

    Args:
        x: the target, shape `(batch, ...)`, in [0, 1].
        logits: of the same shape, any range.
        weights: as in `squared_error`.

    Returns:
        Cross-entropy in nats, shape `(batch,)`.
    """
    x, logits = _float32(x, logits)
    if weights is not None:
        return _sum_features(ops.binary_crossentropy(x, logits, from_logits=True), weights)
    x, logits = _flat(x, logits)
    return _sum_features(ops.binary_crossentropy(x, logits, from_logits=True))


def gaussian_nll(x, mean, log_variance, weights=None):
    """Negative log-density of a diagonal Gaussian per example, in nats.

    `sum_i 1/2 ((x_i - mean_i)^2 / c_i + ln c_i + ln 2 pi)` with `c = exp(log_variance)`.

    Args:
        x: the target, shape `(batch, ...)`.
        mean: of the same shape.
        log_variance: ln c: a scalar, or any shape that broadcasts to `x`'s.
        weights: as in `squared_error`.

    Returns:
        Nats, shape `(batch,)`. Negative if the density exceeds 1.
    """
    x, mean, log_variance = _float32(x, mean, log_variance)
    nll = ops.square(x - mean) * ops.exp(-log_variance) + log_variance + math.log(2 * math.pi)
    return 0.5 * _sum_features(nll, weights)


def kl_standard_normal(z_mean, z_log_var):
    """`KL(N(mu, sigma^2) || N(0, I))` per example, in nats: `1/2 sum_j (sigma_j^2 + mu_j^2 - 1 - ln sigma_j^2)`.

    Args:
        z_mean: mu, shape `(batch, ...)`.
        z_log_var: ln sigma^2, of the same shape, or `(batch, 1)` for an isotropic posterior, whose one variance counts for every latent.

    Returns:
        Nats, shape `(batch,)`, at least 0.

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes", appendix B.
    """
    z_mean, z_log_var = _float32(z_mean, z_log_var)
    # A z_log_var of (batch, 1) broadcasts against z_mean here, so that the sum runs over every latent.
    return 0.5 * _sum_features(ops.exp(z_log_var) + ops.square(z_mean) - 1.0 - z_log_var)


def sparsity_penalty(activations, target, penalty, average):
    """How far a layer's sparsity is from its target, per example.

    With rho the target and r the mean activation: `"kl"`, `rho ln(rho / r) + (1 - rho) ln((1 - rho) / (1 - r))`; `"absolute"`,
    `|rho - r|`; `"squared"`, `(rho - r)^2`. With `average="example"`, r is the mean over an example's units; with `"batch"`, each unit's
    mean over the batch, and the penalty is summed over units. `"l1"` is `sum_i |a_i|`, without target or average.

    Args:
        activations: of one layer, shape `(batch, units)`; in [0, 1] for `"kl"`.
        target: rho; in (0, 1) for `"kl"`.
        penalty: `"kl"`, `"absolute"`, `"squared"` or `"l1"`.
        average: `"example"` or `"batch"`.

    Returns:
        Shape `(batch,)`; with `average="batch"` the same number for each example. In nats for `"kl"`.

    Reference:
        Ng 2011, "Sparse autoencoder", CS294A lecture notes.
    """
    (activations,) = _float32(activations)
    if penalty == "l1":
        return _sum_features(ops.abs(activations))
    rate = ops.mean(activations, axis=1) if average == "example" else _batch_mean(activations)
    if penalty == "absolute":
        difference = ops.abs(target - rate)
    elif penalty == "squared":
        difference = ops.square(target - rate)
    else:
        # A rate of exactly 0 or 1, which a saturated sigmoid gives in float32, would make the penalty infinite, without a gradient.
        rate = ops.clip(rate, _SMALLEST_RATE, 1 - _SMALLEST_RATE)
        difference = target * (math.log(target) - ops.log(rate))
        difference += (1 - target) * (math.log1p(-target) - ops.log(1 - rate))
    if average == "example":
        return difference
    return ops.broadcast_to(ops.sum(difference), ops.shape(activations)[:1])

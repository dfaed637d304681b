"""Every loss against NumPy in float64, and against known distributions."""

import keras
import numpy as np
import pytest
from scipy import stats

from kerasae import losses

SHAPES = [(5, 3), (4, 3, 2, 2), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_error(rng, shape):
    x, y = rng.normal(size=(2, *shape))
    expected = ((x - y) ** 2).reshape(shape[0], -1).sum(axis=1)
    np.testing.assert_allclose(losses.squared_error(x, y), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_binary_crossentropy(rng, shape):
    x, logits = rng.uniform(size=shape), rng.normal(size=shape) * 3
    p = 1 / (1 + np.exp(-logits))
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).reshape(shape[0], -1).sum(axis=1)
    np.testing.assert_allclose(losses.binary_crossentropy(x, logits), expected, rtol=1e-6)


def test_binary_crossentropy_is_finite_and_linear_at_extreme_logits():
    np.testing.assert_allclose(losses.binary_crossentropy([[1.0], [0.0]], [[-1000.0], [1000.0]]), [1000, 1000])


def test_binary_crossentropy_is_the_bernoulli_likelihood(rng):
    x, logits = rng.integers(0, 2, (6, 7)).astype(float), rng.normal(size=(6, 7))
    expected = -stats.bernoulli(1 / (1 + np.exp(-logits))).logpmf(x).sum(axis=1)
    np.testing.assert_allclose(losses.binary_crossentropy(x, logits), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_nll_is_the_density_scipy_gives(rng, shape):
    x, mean = rng.normal(size=(2, *shape))
    for log_variance in (np.log(0.3), rng.normal(size=shape)):
        expected = -stats.norm(mean, np.exp(log_variance / 2)).logpdf(x).reshape(shape[0], -1).sum(axis=1)
        np.testing.assert_allclose(losses.gaussian_nll(x, mean, log_variance), expected, rtol=1e-5)


def kl(z_mean, z_log_var):
    """The closed form in float64, one latent at a time."""
    z_log_var = np.broadcast_to(z_log_var, z_mean.shape)
    terms = [0.5 * (np.exp(v) + m**2 - 1 - v) for m, v in zip(z_mean.ravel(), z_log_var.ravel(), strict=True)]
    return np.reshape(terms, z_mean.shape).reshape(len(z_mean), -1).sum(axis=1)


@pytest.mark.parametrize("variances", [5, 1], ids=["diagonal", "isotropic"])
def test_kl(rng, variances):
    z_mean, z_log_var = rng.normal(size=(4, 5)), rng.normal(size=(4, variances))
    np.testing.assert_allclose(losses.kl_standard_normal(z_mean, z_log_var), kl(z_mean, z_log_var), rtol=1e-5)


@pytest.mark.parametrize("variances", [3, 1], ids=["diagonal", "isotropic"])
def test_kl_is_what_monte_carlo_gives(rng, variances):
    z_mean, z_log_var = rng.normal(size=(1, 3)), rng.normal(size=(1, variances))
    sigma = np.broadcast_to(np.exp(z_log_var / 2), (1, 3))
    z = z_mean + sigma * rng.normal(size=(400_000, 3))
    log_ratio = (stats.norm(z_mean, sigma).logpdf(z) - stats.norm.logpdf(z)).sum(axis=1)
    standard_error = log_ratio.std() / np.sqrt(len(z))
    assert abs(float(losses.kl_standard_normal(z_mean, z_log_var)[0]) - log_ratio.mean()) < 4 * standard_error


def test_kl_of_the_prior_itself_is_zero():
    np.testing.assert_array_equal(losses.kl_standard_normal(np.zeros((2, 3)), np.zeros((2, 3))), [0, 0])


def test_half_precision_is_summed_in_float32(rng):
    x = rng.uniform(size=(2, 784)).astype("float16")
    loss = losses.squared_error(keras.ops.convert_to_tensor(x), keras.ops.zeros(x.shape, "float16"))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(loss, (x.astype("float64") ** 2).sum(axis=1), rtol=1e-5)

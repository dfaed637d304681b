"""Distributions against SciPy: densities, draws, divergences."""

import keras
import numpy as np
import pytest
from scipy import stats

from kerasae import builders, distributions


@pytest.fixture
def parameters(rng):
    return rng.normal(size=(6, 3)).astype("float32"), rng.normal(size=(6, 3)).astype("float32")


def test_log_ratio_is_the_difference_of_the_two_densities(rng, parameters):
    posterior, prior = distributions.DiagonalNormal(), distributions.StandardNormal((3,))
    noise = rng.normal(size=(5, 6, 3)).astype("float32")
    z = np.asarray(posterior.sample_from(parameters, noise))
    mean, deviation = parameters[0], np.exp(parameters[1] / 2)
    expected = stats.norm.logpdf(z).sum(axis=-1) - stats.norm(mean, deviation).logpdf(z).sum(axis=-1)
    np.testing.assert_allclose(distributions.log_ratio(z, parameters[1], noise, 2), expected, rtol=1e-4, atol=1e-4)
    by_densities = prior.log_prob(z, 2) - posterior.log_prob(z, parameters, 2)
    np.testing.assert_allclose(by_densities, expected, rtol=1e-4, atol=1e-4)


def test_kl_is_the_mean_of_the_log_ratio(rng, parameters):
    posterior, prior = distributions.DiagonalNormal(), distributions.StandardNormal((3,))
    noise = rng.normal(size=(40_000, 6, 3)).astype("float32")
    z = posterior.sample_from(parameters, noise)
    ratios = -np.asarray(distributions.log_ratio(z, parameters[1], noise, 2))
    standard_error = ratios.std(axis=0) / np.sqrt(len(ratios))
    assert (np.abs(ratios.mean(axis=0) - posterior.kl(prior, parameters)) < 4 * standard_error).all()


def test_a_posterior_without_a_closed_form_says_so(parameters):
    with pytest.raises(NotImplementedError, match="no closed form"):
        distributions.DiagonalNormal().kl("another", parameters)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "gaussian-predicted", "squared_error"])
def test_a_likelihood_is_its_density(name, rng):
    x, r = rng.random((4, 5)).astype("float32"), rng.uniform(0.1, 0.9, (4, 5)).astype("float32")
    log_variance = rng.normal(size=(4, 5)).astype("float32")
    likelihood, expected = {
        "bernoulli": (distributions.Bernoulli(), (x * np.log(r) + (1 - x) * np.log(1 - r)).sum(axis=1)),
        "gaussian": (distributions.Gaussian(0.3), stats.norm(r, np.sqrt(0.3)).logpdf(x).sum(axis=1)),
        "gaussian-predicted": (
            distributions.Gaussian("predicted"),
            stats.norm(r, np.exp(log_variance / 2)).logpdf(x).sum(axis=1),
        ),
        "squared_error": (distributions.SquaredError(), -((x - r) ** 2).sum(axis=1)),
    }[name]
    outputs = {"reconstruction": r, "logits": np.log(r) - np.log(1 - r), "log_variance": log_variance}
    np.testing.assert_allclose(likelihood.log_prob(x, outputs), expected, rtol=1e-5)
    assert likelihood == likelihood.name


def test_draws_from_a_likelihood_have_its_moments():
    generator = keras.random.SeedGenerator(0)
    r = np.full((40_000, 2), [0.2, 0.7], "float32")
    drawn = np.asarray(distributions.Bernoulli().sample({"reconstruction": r}, generator))
    assert set(np.unique(drawn)) == {0, 1}
    np.testing.assert_allclose(drawn.mean(axis=0), [0.2, 0.7], atol=0.01)
    drawn = np.asarray(distributions.Gaussian(4.0).sample({"reconstruction": r}, generator))
    np.testing.assert_allclose(drawn.mean(axis=0), [0.2, 0.7], atol=0.04)
    np.testing.assert_allclose(drawn.std(axis=0), 2.0, rtol=0.02)
    with pytest.raises(NotImplementedError):
        distributions.SquaredError().sample({"reconstruction": r}, generator)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_a_decoder_without_a_sigmoid_layer(dtype):
    z = keras.Input((2,), dtype=dtype)
    decoder = keras.Model(z, keras.layers.Dense(3, "sigmoid", dtype=dtype)(z))
    codes = np.array([[0.3, -1.0]], dtype)
    reconstruction, logits = distributions.logits_decoder(decoder)(codes, training=False)
    kernel, bias = decoder.layers[-1].get_weights()
    np.testing.assert_allclose(logits, codes @ kernel + bias, rtol=1e-4 if dtype == "float32" else 1e-9)
    np.testing.assert_allclose(reconstruction, decoder(codes), rtol=1e-6)


def test_models_name_their_distributions():
    plain, variational = builders.undercomplete(8, 2), builders.variational(8, 2, likelihood="gaussian")
    assert (plain.likelihood, plain.posterior, plain.prior) == ("squared_error", None, None)
    assert (variational.likelihood, variational.posterior, variational.prior) == (
        "gaussian",
        "diagonal",
        "standard_normal",
    )
    assert builders.variational(8, 2).likelihood.support == (0.0, 1.0)
    assert variational.prior.sample(4, seed=0).shape == (4, 2)

"""The variational family against a model whose log-likelihood is known: probabilistic PCA."""

import keras
import numpy as np
import pytest
from scipy import stats

from kerasae import builders
from kerasae.models import BetaAnnealing, VariationalAutoencoder, importance

NUM_FEATURES, LATENT_DIM, VARIANCE = 5, 2, 0.3


class LinearGaussian:
    """x = W z + b + noise, z ~ N(0, I), noise ~ N(0, cI): x ~ N(b, W W^T + cI), and z|x ~ N(S W^T (x - b) / c, S)."""

    def __init__(self, rng, posterior="diagonal"):
        # Orthogonal columns, so that the posterior's covariance S is diagonal; of equal length, so that it is isotropic.
        scale = [1.5, 1.5] if posterior == "isotropic" else [2.0, 0.7]
        self.w = np.linalg.qr(rng.normal(size=(NUM_FEATURES, LATENT_DIM)))[0] * scale
        self.b = rng.normal(size=NUM_FEATURES)
        self.posterior_variance = 1 / ((self.w**2).sum(axis=0) / VARIANCE + 1)
        self.density = stats.multivariate_normal(self.b, self.w @ self.w.T + VARIANCE * np.eye(NUM_FEATURES))
        self.x = self.density.rvs(64, random_state=0).astype("float32")

    def model(self, posterior="diagonal", variance=VARIANCE, wider=1.0):
        """The same as a variational autoencoder with the exact posterior, or one `wider` than it."""
        model = builders.variational(
            NUM_FEATURES, LATENT_DIM, (), likelihood="gaussian", variance=variance, posterior=posterior, seed=0
        )
        kernel = self.w * self.posterior_variance / VARIANCE
        log_variance = np.log(self.posterior_variance * wider)[: 1 if posterior == "isotropic" else None]
        model.encoder.get_layer("z_mean").set_weights([kernel, -self.b @ kernel])
        model.encoder.get_layer("z_log_var").set_weights([np.zeros((NUM_FEATURES, len(log_variance))), log_variance])
        model.decoder.get_layer("logits").set_weights([self.w.T, self.b])
        if variance == "learned":
            model.log_variance.assign(np.log(VARIANCE))
        model.compile("adam")
        return model


@pytest.mark.parametrize("posterior", ["diagonal", "isotropic"])
@pytest.mark.parametrize("variance", [VARIANCE, "learned"])
def test_with_the_exact_posterior_every_sample_gives_the_exact_log_likelihood(rng, posterior, variance):
    oracle = LinearGaussian(rng, posterior)
    model = oracle.model(posterior, variance)
    expected = oracle.density.logpdf(oracle.x)
    for num_samples in (1, 7):
        np.testing.assert_allclose(model.log_likelihood(oracle.x, num_samples), expected, atol=1e-4)


@pytest.mark.parametrize("posterior", ["diagonal", "isotropic"])
def test_with_the_exact_posterior_the_elbo_is_the_log_likelihood_in_nats(rng, posterior):
    oracle = LinearGaussian(rng, posterior)
    logs = oracle.model(posterior).evaluate(
        np.repeat(oracle.x, 400, axis=0), batch_size=6400, verbose=0, return_dict=True
    )
    # One sample of z an example: the mean over 25,600 lies within a few hundredths of a nat.
    assert -logs["loss"] == pytest.approx(oracle.density.logpdf(oracle.x).mean(), abs=0.04)


def test_importance_sampling_closes_the_gap_that_a_wrong_posterior_leaves(rng):
    oracle = LinearGaussian(rng)
    model = oracle.model(wider=2.5)
    exact = oracle.density.logpdf(oracle.x).mean()
    logs = model.evaluate(np.repeat(oracle.x, 200, axis=0), batch_size=6400, verbose=0, return_dict=True)
    # KL(N(mu, 2.5 S) || N(mu, S)) = 1/2 (2.5 - 1 - ln 2.5) a latent is what the ELBO lacks.
    assert exact + logs["loss"] == pytest.approx(LATENT_DIM * 0.5 * (1.5 - np.log(2.5)), abs=0.06)
    estimates = [model.log_likelihood(oracle.x, n).mean() for n in (1, 10, 2000)]
    assert estimates[0] < estimates[1] < exact + 0.02
    assert estimates[2] == pytest.approx(exact, abs=0.02)


def test_log_likelihood_does_not_depend_on_how_it_is_cut(rng):
    oracle = LinearGaussian(rng)
    model = oracle.model(wider=1.5)
    whole = model.log_likelihood(oracle.x, 3000)
    # 3000 samples in rounds of 700, the last one partly unused, one example at a time
    cut = model.log_likelihood(oracle.x[:5], 3000, decodings_at_once=700)
    np.testing.assert_allclose(cut, whole[:5], atol=0.1)
    np.testing.assert_array_equal(whole, model.log_likelihood(oracle.x, 3000))
    assert not np.array_equal(whole, model.log_likelihood(oracle.x, 3000, seed=1))


def test_a_convolutional_bernoulli_estimate_agrees_with_numpy(digits):
    model = builders.variational((8, 8, 1), 2, (4,), "conv", posterior="isotropic")
    x = (digits[1][:2] > 0.5).astype("float32")
    z_mean, z_log_var = (np.asarray(t, "float64") for t in model.encoder(x))
    draws = np.random.default_rng(0).standard_normal((4000, 2, 2))
    sigma = np.exp(z_log_var / 2)
    z = z_mean + sigma * draws
    p = model.decode(z.reshape(-1, 2)).astype("float64").reshape(4000, 2, 64)
    log_weights = (
        stats.bernoulli.logpmf(x.reshape(2, 64).astype(int), p).sum(axis=-1)
        + stats.norm.logpdf(z).sum(axis=-1)
        - stats.norm.logpdf(z, z_mean, sigma).sum(axis=-1)
    )
    expected = np.log(np.exp(log_weights - log_weights.max()).mean(axis=0)) + log_weights.max()
    np.testing.assert_allclose(model.log_likelihood(x, 4000), expected, atol=0.05)


class WithItsOwnLoss(VariationalAutoencoder):
    """The same numbers by a loss that `log_likelihood` can't know: it takes the path for any likelihood."""

    def reconstruction_loss(self, x, outputs):
        return super().reconstruction_loss(x, outputs)


@pytest.mark.parametrize("num_features", [5, 8, 13])
@pytest.mark.parametrize("gray", [False, True])
def test_the_bernoulli_path_agrees_with_the_one_for_any_likelihood(rng, num_features, gray):
    model = builders.variational(num_features, 2, (4,))
    kernel, bias = model.decoder.get_layer("logits").get_weights()
    # Saturated both ways, where e^l would overflow.
    model.decoder.get_layer("logits").set_weights([100 * kernel, bias + np.linspace(-150, 150, num_features)])
    x = rng.random((6, num_features)).astype("float32")
    x = x if gray else x.round()
    expected = WithItsOwnLoss(model.encoder, model.decoder).log_likelihood(x, 200)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(model.log_likelihood(x, 200), expected, rtol=1e-5)


def test_many_rounds_lose_nothing(rng):
    oracle = LinearGaussian(rng)
    model = oracle.model()
    # With the exact posterior all weights are equal. In float32 the sum would stand still, or drift, as it grows.
    estimate = model.log_likelihood(oracle.x[:1], 200_000, decodings_at_once=20)
    np.testing.assert_allclose(estimate, oracle.density.logpdf(oracle.x[:1]), atol=2e-5)


def test_fewer_are_decoded_at_once_where_the_decoder_is_wide(digits, monkeypatch):
    small, large = builders.variational(4, 2, (8,)), builders.variational((64, 64, 3), 2, (16, 32), "conv")
    assert importance.decodings_that_fit(small.decoder, np.zeros((1, 4))) == 4096
    widest = max(np.prod(layer.output.shape[1:]) for layer in large.decoder.layers)
    fit = importance.decodings_that_fit(large.decoder, np.zeros((1, 64, 64, 3)))
    assert 1 < fit < 4096
    assert 4 * fit * widest < 64 * 2**20
    # 7 samples then take several rounds of one example each.
    model = builders.variational((8, 8, 1), 2, (8,))
    monkeypatch.setattr(importance, "decodings_that_fit", lambda decoder, x: 3)
    assert np.isfinite(model.log_likelihood(digits[1][:2], 7)).all()


@pytest.mark.parametrize("variance", [0.2, "learned", "predicted"])
def test_gaussian_terms_against_scipy(rng, variance, digits):
    model = builders.variational((8, 8, 1), 3, (16,), likelihood="gaussian", variance=variance)
    x = digits[1][:8]
    outputs = model.forward(x, training=False)
    if variance == "learned":
        model.log_variance.assign(-0.7)
        sigma = np.exp(-0.35)
    else:
        sigma = np.sqrt(0.2) if variance == 0.2 else np.exp(outputs["log_variance"].numpy() / 2)
    density = stats.norm(outputs["reconstruction"].numpy(), sigma).logpdf(x)
    np.testing.assert_allclose(model.terms(x, outputs)["reconstruction_loss"], -density.sum(axis=(1, 2, 3)), rtol=1e-5)


def test_a_learned_variance_is_learned(digits):
    model = builders.variational((8, 8, 1), 4, (64,), likelihood="gaussian", variance="learned")
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(digits[0], epochs=60, batch_size=256, verbose=0)
    error = ((digits[0] - model.predict(digits[0], verbose=0)) ** 2).mean()
    assert np.exp(float(model.log_variance.numpy())) == pytest.approx(error, rel=0.25)


def test_beta_weighs_the_kl_term(digits):
    model = builders.variational((8, 8, 1), 3, (16,), beta=4.0)
    model.compile("adam")
    logs = model.evaluate(digits[1], verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["reconstruction_loss"] + 4 * logs["kl_loss"], rel=1e-5)


def test_training_draws_z_and_inference_does_not(digits):
    model = builders.variational((8, 8, 1), 3, (16,))
    x = digits[1][:4]
    np.testing.assert_array_equal(model(x), model(x))
    assert not np.array_equal(model(x, training=True), model(x, training=True))
    z_mean, _ = model.encoder(x)
    np.testing.assert_allclose(model.encode(x), z_mean, atol=1e-6)


def test_z_has_the_posteriors_moments():
    model = builders.variational(4, 2, ())
    model.encoder.get_layer("z_mean").set_weights([np.zeros((4, 2)), np.array([1.0, -2.0])])
    model.encoder.get_layer("z_log_var").set_weights([np.zeros((4, 2)), np.log([0.25, 4.0])])
    z = model.forward(np.zeros((40_000, 4), "float32"), training=True)["z"].numpy()
    np.testing.assert_allclose(z.mean(axis=0), [1.0, -2.0], atol=4 * 2 / 200)
    np.testing.assert_allclose(z.std(axis=0), [0.5, 2.0], rtol=0.02)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.02


def test_samples_come_from_the_prior_and_a_seed():
    model = builders.variational((8, 8, 1), 3, (16,))
    samples = model.sample(5, seed=1)
    assert samples.shape == (5, 8, 8, 1)
    z = np.random.default_rng(1).standard_normal((5, 3)).astype("float32")
    np.testing.assert_array_equal(samples, model.decode(z))
    assert not np.array_equal(model.sample(5), model.sample(5))


def test_collapsed_latents_are_counted(digits):
    model = builders.variational((8, 8, 1), 6, (16,))
    kernel, bias = model.encoder.get_layer("z_mean").get_weights()
    kernel[:, :2] = 0
    model.encoder.get_layer("z_mean").set_weights([kernel * 10, bias])
    model.compile("adam")
    assert model.active_units(digits[1]) == 4
    assert model.evaluate(digits[1], verbose=0, return_dict=True)["active_units"] == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: builders.variational(4, 2, likelihood="bernoulli", variance=0.5), "a Bernoulli has none"),
        (lambda: builders.variational(4, 2, likelihood="gaussian", variance="learnt"), "Did you mean 'learned'"),
        (lambda: builders.variational(4, 2, posterior="spherical"), "`posterior` must be one of"),
        (lambda: builders.variational(4, 2).log_likelihood(np.full((3, 4), 2.0)), r"must lie in \[0, 1\]"),
        (lambda: builders.variational(4, 2).log_likelihood(np.zeros((3, 4)), 0), "`num_samples`"),
        (lambda: builders.variational(4, 2).sample(0), "`num_samples`"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_variance_of_another_size_is_refused():
    x = keras.Input((4,))
    encoder = keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)])
    with pytest.raises(ValueError, match=r"must have the first one's shape \(2,\), or \(1,\).*Received: \(3,\)"):
        VariationalAutoencoder(encoder, builders.variational(4, 2).decoder)


def test_beta_annealing_weighs_the_kl_term_epoch_by_epoch():
    x = LinearGaussian(np.random.default_rng(0)).x
    model = builders.variational(NUM_FEATURES, LATENT_DIM, (), likelihood="gaussian", beta=2.0, seed=0)
    model.compile("adam")
    logs = model.fit(x, epochs=5, verbose=0, callbacks=[BetaAnnealing(4, start_beta=0.5)]).history
    weights = (np.array(logs["loss"]) - logs["reconstruction_loss"]) / logs["kl_loss"]
    np.testing.assert_allclose(weights, [0.5, 0.875, 1.25, 1.625, 2.0], rtol=1e-4)
    # Afterwards it is as a model that was never annealed.
    assert float(model.current_beta) == 2.0
    logs = model.evaluate(x, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["reconstruction_loss"] + 2.0 * logs["kl_loss"], rel=1e-5)


def test_an_interrupted_beta_annealing_leaves_the_models_own_beta():
    def interrupt(epoch, logs):
        raise KeyboardInterrupt

    model = builders.variational(NUM_FEATURES, LATENT_DIM, (), likelihood="gaussian")
    model.compile("adam")
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            np.zeros((8, NUM_FEATURES), "float32"),
            verbose=0,
            callbacks=[BetaAnnealing(5), keras.callbacks.LambdaCallback(on_epoch_end=interrupt)],
        )
    assert float(model.current_beta) == 1.0


def test_beta_annealing_keeps_latents_from_collapsing(digits):
    active = []
    for callbacks in ([], [BetaAnnealing(20)]):
        keras.utils.set_random_seed(0)
        model = builders.variational((8, 8, 1), 16, (32,), beta=2.0, seed=0)
        model.compile(keras.optimizers.Adam(3e-3))
        model.fit(digits[0], epochs=30, batch_size=64, verbose=0, callbacks=callbacks)
        active.append(model.active_units(digits[1]))
    assert active[1] > active[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs.*0"),
        ({"epochs": 2, "start_beta": -1.0}, "start_beta"),
        ({"epochs": 2, "start_beta": 1.5}, "at most the model's beta, 1.0"),
    ],
)
def test_bad_beta_annealing(options, message):
    model = builders.variational(NUM_FEATURES, LATENT_DIM, (), likelihood="gaussian")
    model.compile("adam")
    with pytest.raises(ValueError, match=message):
        model.fit(np.zeros((8, NUM_FEATURES), "float32"), verbose=0, callbacks=[BetaAnnealing(**options)])


def test_beta_annealing_is_for_variational_models():
    model = builders.undercomplete(NUM_FEATURES, LATENT_DIM, ())
    model.compile("adam")
    with pytest.raises(ValueError, match="VariationalAutoencoder"):
        model.fit(np.zeros((8, NUM_FEATURES), "float32"), verbose=0, callbacks=[BetaAnnealing(2)])

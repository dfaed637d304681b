"""Generation: samples, ways between images, traversals, and the figures of merit against NumPy oracles."""

import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.decomposition import PCA

from kerasae import builders
from kerasae.tasks import fit_prior, frechet_distance, interpolate, sample, sample_quality, traverse


@pytest.fixture(scope="module")
def plain(digits):
    model = builders.undercomplete((8, 8, 1), 4, (64,))
    model.compile("adam")
    model.fit(digits[0], batch_size=32, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def variational(digits):
    model = builders.variational((8, 8, 1), 4, (64,))
    model.compile("adam")
    model.fit(digits[0], batch_size=32, epochs=8, verbose=0)
    return model


def network_ends(model, examples):
    return model.decode(model.encode(np.stack(examples)))


# -- Priors and samples ------------------------------------------------------------------------------------------------------------------


def test_one_component_is_the_codes_mean_and_covariance(plain, digits):
    prior = fit_prior(plain, digits[0], num_components=1)
    codes = plain.encode(digits[0]).astype("float64")
    np.testing.assert_allclose(prior.means_[0], codes.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prior.covariances_[0], np.cov(codes.T, ddof=0), rtol=1e-3, atol=1e-4)


def test_of_a_variational_model_draws_are_fitted_not_means(variational, digits):
    prior = fit_prior(variational, digits[0], num_components=1)
    mean, log_variance = (output.numpy() for output in variational.encoder(digits[0]))
    # Law of total variance.
    total = mean.var(axis=0) + np.exp(log_variance).mean(axis=0)
    np.testing.assert_allclose(np.diag(prior.covariances_[0]), total, rtol=0.1)
    assert (total > 1.1 * mean.var(axis=0)).any()


def test_samples_of_a_fitted_prior_look_like_reconstructions(plain, digits):
    prior = fit_prior(plain, digits[0])
    reconstructions = plain.predict(digits[1], verbose=0)
    fitted = sample_quality(sample(plain, 360, prior, seed=0), reconstructions)
    # The same decoder, asked for codes of N(0, I), as if it were variational.
    unfitted = sample_quality(
        plain.decode(np.random.default_rng(0).normal(size=(360, 4)).astype("float32")), reconstructions
    )
    assert fitted["frechet_distance"] < 0.5 * unfitted["frechet_distance"]
    assert fitted["coverage"] > unfitted["coverage"]


def test_a_seed_gives_the_same_samples_and_leaves_the_prior_alone(plain, digits):
    prior = fit_prior(plain, digits[0][:200], num_components=3)
    prior.set_params(random_state=np.random.RandomState(7))
    state = prior.random_state.get_state()[1].copy()
    first = sample(plain, 20, prior, seed=1)
    np.testing.assert_array_equal(first, sample(plain, 20, prior, seed=1))
    assert np.abs(first - sample(plain, 20, prior, seed=2)).max() > 0.01
    np.testing.assert_array_equal(prior.random_state.get_state()[1], state)


def test_samples_do_not_come_sorted_by_component(plain, digits):
    prior = fit_prior(plain, digits[0], num_components=2)
    codes = plain.encode(sample(plain, 200, prior, seed=0))
    labels = prior.predict(codes.astype("float64"))
    assert (np.diff(labels) != 0).sum() > 10


def test_without_a_prior_a_variational_model_samples_from_its_own(variational):
    np.testing.assert_array_equal(sample(variational, 5, seed=3), variational.sample(5, seed=3))


# -- Interpolation and traversal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_a_way_begins_and_ends_at_the_reconstructions(variational, digits, method):
    a, b = digits[1][:2]
    images = interpolate(variational, a, b, steps=6, method=method)
    assert images.shape == (6, 8, 8, 1)
    np.testing.assert_allclose(images[[0, -1]], network_ends(variational, [a, b]), atol=1e-5)


def codes_on_the_way(model, monkeypatch, *arguments, **options):
    seen = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: seen.append(z) or decode(z))
    interpolate(model, *arguments, **options)
    return seen[0]


def test_linear_codes(variational, digits, monkeypatch):
    z_a, z_b = variational.encode(digits[1][:2])
    z = codes_on_the_way(variational, monkeypatch, *digits[1][:2], steps=5)
    np.testing.assert_allclose(z[1], 0.75 * z_a + 0.25 * z_b, rtol=1e-4, atol=1e-5)


def test_spherical_codes_turn_evenly(variational, digits, monkeypatch):
    z_a, z_b = variational.encode(digits[1][:2]).astype("float64")
    z = codes_on_the_way(variational, monkeypatch, *digits[1][:2], steps=5, method="spherical").astype("float64")

    def angle(u, v):
        return np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    # Both codes swing out by the sines of the even parts of the angle between them.
    w = angle(z_a, z_b)
    unit = [np.sin((1 - t) * w) / np.sin(w) * z_a + np.sin(t * w) / np.sin(w) * z_b for t in np.linspace(0, 1, 5)]
    np.testing.assert_allclose(z, unit, rtol=1e-4, atol=1e-5)


def test_spherical_codes_of_one_length_keep_it(monkeypatch):
    model = builders.variational((2,), 2, ())
    for layer in (model.encoder.get_layer("z_mean"), model.decoder.get_layer("logits")):
        layer.kernel.assign(np.eye(2))
    z = codes_on_the_way(model, monkeypatch, np.array([1.0, 0.0]), np.array([0.0, 1.0]), steps=9, method="spherical")
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.diff(np.arctan2(z[:, 1], z[:, 0])), np.pi / 16, rtol=1e-5)


def test_spherical_between_parallel_codes_is_linear(variational, digits):
    a = digits[1][0]
    images = interpolate(variational, a, a, steps=3, method="spherical")
    assert np.isfinite(images).all()
    np.testing.assert_allclose(images, np.repeat(network_ends(variational, [a]), 3, axis=0), atol=1e-5)


def test_a_traversal_changes_one_latent(variational, digits):
    x = digits[1][0]
    values = [-2.0, 0.5, 2.0]
    z = np.repeat(variational.encode(x[None]), 3, axis=0)
    z[:, 2] = values
    np.testing.assert_allclose(traverse(variational, x, 2, values), variational.decode(z), atol=1e-5)
    np.testing.assert_array_equal(traverse(variational, x, -2, values), traverse(variational, x, 2, values))
    assert traverse(variational, x, 0).shape == (9, 8, 8, 1)


# -- Figures of merit --------------------------------------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_the_matrix_square_root(rng):
    a, b = rng.normal(size=(50, 6)), rng.normal(0.3, 2.0, (70, 6)) @ rng.normal(size=(6, 6))
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c_a + c_b - 2 * linalg.sqrtm(c_a @ c_b).real)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-6)
    assert frechet_distance(a, a) < 1e-8
    np.testing.assert_allclose(frechet_distance(a, a + 2), 4 * 6, rtol=1e-6)


def test_quality_is_what_its_docstring_defines(rng, monkeypatch):
    monkeypatch.setattr("kerasae.tasks.quality._ROWS_AT_ONCE", 7)
    k = 3
    x_test, samples = rng.normal(size=(40, 5)), rng.normal(0.5, 1.2, (30, 5))
    pca = PCA(4).fit(x_test)
    real, fake = pca.transform(x_test), pca.transform(samples)

    def distance(u, v):
        return np.linalg.norm(u - v)

    def radius(points, i):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, i) for i in range(len(fake))]
    in_real = np.array([[distance(s, t) <= r for t, r in zip(real, real_radii, strict=True)] for s in fake])
    in_fake = np.array([[distance(s, t) <= r for t in real] for s, r in zip(fake, fake_radii, strict=True)])
    expected = {
        "frechet_distance": frechet_distance(real, fake),
        "precision": in_real.any(axis=1).mean(),
        "recall": in_fake.any(axis=0).mean(),
        "density": in_real.sum() / k / len(fake),
        "coverage": in_real.any(axis=0).mean(),
    }
    quality = sample_quality(samples, x_test, num_features=4, num_neighbors=k)
    assert quality == pytest.approx(expected, rel=1e-6)
    assert 0 < quality["coverage"] < 1


def test_quality_ranks_what_is_plainly_better(digits, rng):
    x_train, x_test = digits
    pixels = x_train.reshape(len(x_train), -1)
    gaussian = stats.multivariate_normal(pixels.mean(axis=0), np.cov(pixels.T), allow_singular=True)
    candidates = {
        "real": x_train[:360],
        "gaussian": gaussian.rvs(360, random_state=0).reshape(-1, 8, 8, 1).clip(0, 1),
        "noise": rng.random((360, 8, 8, 1)),
        "one image": np.repeat(x_train[:1], 360, axis=0) + 1e-3 * rng.random((360, 8, 8, 1)),
    }
    quality = {name: sample_quality(samples, x_test, x_train) for name, samples in candidates.items()}
    distances = [quality[name]["frechet_distance"] for name in ("real", "gaussian", "noise")]
    assert distances == sorted(distances)
    assert quality["real"]["coverage"] > 0.85 > quality["gaussian"]["coverage"] > quality["noise"]["coverage"]
    # Real, but always the same: precision does not see it, recall and coverage do.
    assert quality["one image"]["precision"] == 1
    assert quality["one image"]["recall"] < 0.05
    assert quality["one image"]["coverage"] < 0.05


def test_a_trained_model_is_better_than_an_untrained_one(variational, digits):
    fresh = builders.variational((8, 8, 1), 4, (64,))
    trained, untrained = (sample_quality(model, digits[1], digits[0]) for model in (variational, fresh))
    assert trained["frechet_distance"] < 0.5 * untrained["frechet_distance"]
    assert trained == sample_quality(variational, digits[1], digits[0])
    assert trained == sample_quality(variational.sample(360, seed=0), digits[1], digits[0])


def test_quality_of_perfect_copies(digits):
    quality = sample_quality(digits[1], digits[1])
    assert quality["frechet_distance"] < 1e-6
    assert (quality["precision"], quality["recall"], quality["coverage"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda plain, x: sample(plain, 5), "Autoencoder, whose codes have no distribution.*fit_prior"),
        (lambda plain, x: sample(x, 5), "`model` must be a kerasae model"),
        (lambda plain, x: sample(plain, 0), "`num_samples`"),
        (lambda plain, x: fit_prior(plain, x[:3]), "at least 10 examples"),
        (lambda plain, x: fit_prior(plain, x[:, :4]), "`x` must have shape"),
        (lambda plain, x: interpolate(plain, x[0], x[1], steps=1), "`steps` must be at least 2"),
        (lambda plain, x: interpolate(plain, x[0], x[1], method="cubic"), "`method` must be one of"),
        (lambda plain, x: interpolate(plain, x[:1], x[1]), "`a` must be one example of shape"),
        (lambda plain, x: traverse(plain, x[0], 4), "`latent` must be a whole number from -4 to 3"),
        (lambda plain, x: traverse(plain, x[0], 1.0), "`latent` must be a whole number"),
        (lambda plain, x: traverse(plain, x[0], 0, [np.nan]), "NaN"),
        (
            lambda plain, x: sample_quality(x[:3], x),
            "`samples` must hold more than `num_neighbors` = 5 examples. Received: 3",
        ),
        (lambda plain, x: sample_quality(x[:, :4], x), "`samples` must have shape"),
        (lambda plain, x: frechet_distance(x[:1, 0, :, 0], x[:, 0, :, 0]), "at least 2 rows"),
    ],
)
def test_door(plain, digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(plain, digits[1])

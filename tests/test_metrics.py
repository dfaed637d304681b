"""Metrics against independent computations in NumPy, on scikit-learn's digits and on MNIST."""

import doctest
import os
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from kerasae import data, metrics


@pytest.fixture(scope="module")
def labelled_digits():
    """(x_train, x_test, y_train, y_test), images of shape (n, 8, 8, 1)."""
    (x_train, y_train), (x_test, y_test) = data.load("digits", labels=True)
    return x_train, x_test, y_train, y_test


@pytest.fixture(scope="module")
def mnist():
    """((x_train, y_train), (x_test, y_test))."""
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("TFDS_DATA_DIR is not set: no prepared MNIST to measure on")
    return data.load("mnist", labels=True, download=False)


def random_pair(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return tuple((rng.random(shape) * 200).astype(dtype) for _ in range(2))


def test_docstring_examples():
    results = [doctest.testmod(module) for module in (metrics.codes, metrics.reconstruction)]
    assert sum(result.attempted for result in results) >= 8
    assert not any(result.failed for result in results)


# Squared error and PSNR


@pytest.mark.parametrize("shape", [(7, 5), (7, 4, 3), (7, 4, 3, 2), (1, 1)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
@pytest.mark.parametrize("chunk", [1, 30, 2**22])
def test_squared_error_sums_features_and_averages_examples(shape, dtype, chunk, monkeypatch):
    monkeypatch.setattr(metrics.reconstruction, "_CHUNK_ELEMENTS", chunk)
    x, reconstruction = random_pair(shape, dtype)
    expected = sum((float(a) - float(b)) ** 2 for a, b in zip(x.ravel(), reconstruction.ravel(), strict=True)) / len(x)
    error = metrics.squared_error(x, reconstruction)
    assert type(error) is float
    assert error == pytest.approx(expected, rel=1e-12)


def test_squared_error_accumulates_in_float64():
    # 2^24 + 1 + ... + 1: float32 has no odd number there.
    x = np.array([[4096] + [1] * 7], "float32")
    assert metrics.squared_error(x, np.zeros_like(x)) == 2**24 + 7


def test_squared_error_memory_is_bounded():
    shape = (50_000, 784)  # 299 MiB in float64
    x = np.broadcast_to(np.float32(0.5), shape)
    reconstruction = np.broadcast_to(np.float32(0), shape)
    tracemalloc.start()
    error = metrics.squared_error(x, reconstruction)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error == 784 / 4
    assert peak < 120 * 2**20


@pytest.mark.parametrize("data_range", [200, 255.0])
def test_psnr_is_the_mean_of_per_image_ratios(data_range):
    x, reconstruction = random_pair((6, 4, 4, 3), "float64")
    reconstruction[0] = x[0] + 0.01  # one good image: pooling the errors would hide it
    ratios = [10 * np.log10(data_range**2 / np.mean((a - b) ** 2)) for a, b in zip(x, reconstruction, strict=True)]
    value = metrics.psnr(x, reconstruction, data_range)
    assert value == pytest.approx(np.mean(ratios), rel=1e-12)
    assert value > 10 * np.log10(data_range**2 / np.mean((x - reconstruction) ** 2)) + 1


def test_psnr_does_not_depend_on_the_scale(labelled_digits):
    x = labelled_digits[1]
    noisy = x + np.random.default_rng(0).normal(0, 0.1, x.shape)
    value = metrics.psnr(x, noisy)
    assert value == pytest.approx(20, abs=0.2)  # -20 log10(0.1)
    assert metrics.psnr(x * 255, noisy * 255, data_range=255) == pytest.approx(value, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_psnr_of_an_identical_image_is_infinite():
    x, reconstruction = random_pair((3, 4), "float32")
    reconstruction[1] = x[1]
    assert metrics.psnr(x, reconstruction, 200) == np.inf


@pytest.mark.parametrize("metric", [metrics.squared_error, metrics.psnr])
@pytest.mark.parametrize(
    ("x", "reconstruction", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"same shape.*\(2, 3\) and \(2, 4\)"),
        (np.zeros((2, 3)), np.zeros((2, 1)), "same shape"),  # would broadcast
        (np.zeros((2, 3)), np.zeros((2, 3, 1)), "same shape"),
        (np.zeros(3), np.zeros(3), r"`x` must have the batch first.*\(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "`x` is empty"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "`x` is empty"),
        (np.array([[np.nan, 0]]), np.zeros((1, 2)), "`x` holds NaN"),
        (np.zeros((1, 2)), np.array([[np.inf, 0]]), "`reconstruction` holds NaN"),
        (np.array([["a", "b"]]), np.zeros((1, 2)), "`x` must hold real numbers"),
        (np.zeros((1, 2)), np.zeros((1, 2), complex), "`reconstruction` must hold real numbers"),
    ],
)
def test_pairs_are_checked(metric, x, reconstruction, message):
    with pytest.raises(ValueError, match=message):
        metric(x, reconstruction)


@pytest.mark.parametrize("data_range", [0, -1.0, np.inf, np.nan, "1"])
def test_psnr_checks_data_range(data_range):
    with pytest.raises(ValueError, match="`data_range` must be"):
        metrics.psnr(np.zeros((1, 2)), np.ones((1, 2)), data_range)


def test_psnr_notices_8_bit_images():
    x, reconstruction = random_pair((2, 9), "uint8")
    with pytest.raises(ValueError, match=r"spreads over .* 255 for 8-bit"):
        metrics.psnr(x, reconstruction)


# Principal component analysis


@pytest.mark.parametrize("num_train", [1000, 50])  # more and fewer examples than 64 features
@pytest.mark.parametrize("num_components", [1, 2, 30])
def test_pca_error_is_the_residual_of_the_singular_vectors(labelled_digits, num_train, num_components):
    x_train, x_test = labelled_digits[0][:num_train], labelled_digits[1]
    mean = x_train.reshape(num_train, -1).mean(axis=0, dtype="float64")
    basis = np.linalg.svd(x_train.reshape(num_train, -1) - mean)[2][:num_components]
    residual = x_test.reshape(len(x_test), -1) - mean
    residual = residual - residual @ basis.T @ basis
    error = metrics.pca_error(x_train, x_test, num_components)
    assert error == pytest.approx((residual**2).sum(axis=1).mean(), rel=1e-6)
    assert metrics.pca_error(x_train, x_test, num_components) == error


def test_pca_error_vanishes_at_full_rank(labelled_digits):
    assert metrics.pca_error(labelled_digits[0], labelled_digits[1], 64) == pytest.approx(0, abs=1e-9)


def test_pca_error_is_measured_unclipped():
    # The component is the diagonal; (0.5, 2.5) projects onto (1.5, 1.5), outside [0, 1].
    x_train = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert metrics.pca_error(x_train, np.array([[0.5, 2.5]]), 1) == pytest.approx(2.0)


@pytest.mark.parametrize(("num_components", "expected"), [(2, 43.645), (30, 13.866)])
def test_pca_error_on_mnist(mnist, num_components, expected):
    (x_train, _), (x_test, _) = mnist
    error = metrics.pca_error(x_train, x_test, num_components)
    assert error == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    ("num_components", "message"),
    [
        (0, "`num_components` must be a whole number of at least 1"),
        (2.0, "`num_components` must be a whole number"),
        (4, "`num_components` must be at most 3"),
    ],
)
def test_pca_error_checks_num_components(num_components, message):
    x = np.eye(3, 5)
    with pytest.raises(ValueError, match=message):
        metrics.pca_error(x, x, num_components)


def test_pca_error_checks_features():
    with pytest.raises(ValueError, match="`x_train` and `x_test` must have the same features"):
        metrics.pca_error(np.eye(3), np.eye(4), 1)


# Classifiers on codes


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_linear_probe_minimises_the_documented_objective(labelled_digits, C):
    x_train, x_test, y_train, y_test = labelled_digits
    a, b = (x.reshape(len(x), -1).astype("float64") for x in (x_train, x_test))
    mean, scale = a.mean(axis=0), a.std(axis=0)
    scale[scale == 0] = 1
    a, b = (a - mean) / scale, (b - mean) / scale
    one_hot = np.eye(10)[y_train]

    def objective(parameters):
        weights, bias = parameters[:640].reshape(64, 10), parameters[640:]
        logits = a @ weights + bias
        value = -(one_hot * log_softmax(logits, axis=1)).sum() + (weights**2).sum() / (2 * C)
        slope = softmax(logits, axis=1) - one_hot
        gradient = np.concatenate([(a.T @ slope + weights / C).ravel(), slope.sum(axis=0)])
        return value / len(a), gradient / len(a)

    fit = minimize(objective, np.zeros(650), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    predicted = (b @ fit.x[:640].reshape(64, 10) + fit.x[640:]).argmax(axis=1)
    expected = 100 * np.mean(predicted != y_test)
    error = metrics.linear_probe_error(x_train, y_train, x_test, y_test, C=C)
    assert type(error) is float
    assert 1 < expected < 6
    assert error == pytest.approx(expected, abs=100 / len(y_test) + 1e-9)  # one borderline image


def test_linear_probe_chooses_C_on_the_last_training_codes(labelled_digits):
    x_train, x_test, y_train, y_test = labelled_digits
    held_out = 300
    split = x_train[:-held_out], y_train[:-held_out], x_train[-held_out:], y_train[-held_out:]
    errors = {C: metrics.linear_probe_error(*split, C=C) for C in (1e-6, 1e-2, 1e4)}
    best = min(errors, key=errors.get)
    assert errors[best] < min(error for C, error in errors.items() if C != best)
    chosen = metrics.linear_probe_error(x_train, y_train, x_test, y_test, C=list(errors), validation=held_out)
    assert chosen == metrics.linear_probe_error(x_train, y_train, x_test, y_test, C=best)


def test_linear_probe_refuses_too_few_codes_to_choose_on(labelled_digits):
    x_train, x_test, y_train, y_test = labelled_digits
    with pytest.raises(ValueError, match="`validation` must be less than"):
        metrics.linear_probe_error(x_train, y_train, x_test, y_test, C=[0.1, 1.0])


def test_linear_probe_standardises(labelled_digits):
    x_train, x_test, y_train, y_test = labelled_digits
    scale = np.logspace(-3, 3, 64).reshape(8, 8, 1)
    error = metrics.linear_probe_error(x_train, y_train, x_test, y_test)
    rescaled = metrics.linear_probe_error(x_train * scale + 5, y_train, x_test * scale + 5, y_test)
    assert rescaled == pytest.approx(error, abs=100 / len(y_test) + 1e-9)


@pytest.mark.filterwarnings("error")
def test_linear_probe_ignores_dead_units(labelled_digits):
    x_train, x_test, y_train, y_test = labelled_digits
    z_train, z_test = (
        np.concatenate([x.reshape(len(x), -1), np.zeros((len(x), 7), "float32")], axis=1) for x in (x_train, x_test)
    )
    z_test[:, -1] = 1  # silent in training: nothing may be read into it
    assert metrics.linear_probe_error(z_train, y_train, z_test, y_test) == (
        metrics.linear_probe_error(x_train, y_train, x_test, y_test)
    )


def test_linear_probe_of_noise_is_at_chance(labelled_digits):
    *_, y_train, y_test = labelled_digits
    rng = np.random.default_rng(0)
    z_train, z_test = rng.normal(size=(len(y_train), 4)), rng.normal(size=(len(y_test), 4))
    assert 84 < metrics.linear_probe_error(z_train, y_train, z_test, y_test) < 96


def test_linear_probe_says_that_it_did_not_converge(labelled_digits):
    with pytest.warns(ConvergenceWarning):
        metrics.linear_probe_error(
            labelled_digits[0], labelled_digits[2], labelled_digits[1], labelled_digits[3], max_iter=2
        )


@pytest.mark.parametrize("num_neighbors", [1, 2, 5])
def test_knn_accuracy_is_the_vote_of_the_nearest(labelled_digits, num_neighbors):
    x_train, x_test, y_train, y_test = labelled_digits
    a, b = (x.reshape(len(x), -1).astype("float64") for x in (x_train, x_test))
    distances = ((b[:, None] - a[None]) ** 2).sum(axis=2)
    nearest = y_train[np.argsort(distances, axis=1)[:, :num_neighbors]]
    predicted = [np.bincount(votes).argmax() for votes in nearest]  # the smallest wins a tie
    accuracy = metrics.knn_accuracy(x_train, y_train, x_test, y_test, num_neighbors)
    assert type(accuracy) is float
    assert accuracy == pytest.approx(np.mean(predicted == y_test), abs=1e-12)


def test_knn_accuracy_does_not_rescale():
    z_train, y_train = np.array([[0.0, 0.0], [1.0, 100.0]]), np.array([0, 1])
    # Nearer to the second in the small feature, to the first in the large one.
    assert metrics.knn_accuracy(z_train, y_train, [[1.0, 40.0]], [0], num_neighbors=1) == 1.0


def test_knn_accuracy_on_30_components_of_mnist(mnist):
    (x_train, y_train), (x_test, y_test) = mnist
    pca = PCA(30, svd_solver="covariance_eigh").fit(x_train.reshape(len(x_train), -1))
    z_train, z_test = (pca.transform(x.reshape(len(x), -1)) for x in (x_train, x_test))
    for num_neighbors, expected in [(1, 0.9718), (5, 0.9755)]:
        accuracy = metrics.knn_accuracy(z_train, y_train, z_test, y_test, num_neighbors)
        assert accuracy == pytest.approx(expected, abs=0.0003)


@pytest.mark.parametrize("metric", [metrics.linear_probe_error, metrics.knn_accuracy])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z_train": np.zeros((6, 4))}, "same features"),
        ({"z_test": np.full((2, 3), np.nan)}, "`z_test` holds NaN"),
        ({"z_test": np.zeros((0, 3))}, "`z_test` is empty"),
        ({"y_train": [0, 1]}, r"`y_train` must hold one class label per code, shape \(6,\)"),
        ({"y_test": np.eye(2)}, r"`y_test` must .*\(2, 2\).*argmax"),
    ],
)
def test_labelled_codes_are_checked(metric, changed, message):
    arguments = {
        "z_train": np.eye(6, 3),
        "y_train": [0, 1, 0, 1, 0, 1],
        "z_test": np.eye(2, 3),
        "y_test": [0, 1],
    }
    assert metric(**arguments) >= 0
    with pytest.raises(ValueError, match=message):
        metric(**(arguments | changed))


@pytest.mark.parametrize(
    ("argument", "value"), [("C", 0), ("C", -1.0), ("C", np.inf), ("max_iter", 0), ("max_iter", 1.5)]
)
def test_linear_probe_checks_its_settings(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        metrics.linear_probe_error(np.eye(2), [0, 1], np.eye(2), [0, 1], **{argument: value})


def test_linear_probe_needs_two_classes():
    with pytest.raises(ValueError, match=r"at least 2 classes.*only: 3"):
        metrics.linear_probe_error(np.eye(2), [3, 3], np.eye(2), [3, 3])


@pytest.mark.parametrize(("num_neighbors", "message"), [(0, "whole number"), (True, "whole number"), (3, "at most 2")])
def test_knn_checks_num_neighbors(num_neighbors, message):
    with pytest.raises(ValueError, match=f"`num_neighbors` must be .*{message}"):
        metrics.knn_accuracy(np.eye(2), [0, 1], np.eye(2), [0, 1], num_neighbors)


# Principal angles


@pytest.mark.parametrize("degrees", [[90.0, 30.0, 5.0], [60.0, 1e-9, 0.0]])
def test_principal_angles_recovers_known_rotations(degrees):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 6)))[0]
    radians = np.radians(degrees)
    a = basis[:, :3]
    b = a * np.cos(radians) + basis[:, 3:] * np.sin(radians)
    # Any other basis spans the same space.
    mixed = b @ rng.normal(size=(3, 3))
    for other in (b, mixed):
        angles = metrics.principal_angles(a, other)
        np.testing.assert_allclose(angles, degrees, rtol=0, atol=5e-6)
        assert (np.diff(angles) <= 0).all()
        np.testing.assert_allclose(metrics.principal_angles(other, a), angles, rtol=0, atol=5e-6)


def test_principal_angles_are_zero_within_a_space():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(10, 4))
    a = b @ rng.normal(size=(4, 2))
    angles = metrics.principal_angles(a, b)
    assert angles.shape == (2,)
    np.testing.assert_allclose(angles, 0, atol=5e-6)
    # A repeated column adds no direction.
    assert metrics.principal_angles(a[:, [0, 0, 1]], b).shape == (2,)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.eye(3), np.eye(4), r"same number of rows.*\(3, 3\) and \(4, 4\)"),
        (np.ones((3, 2, 1)), np.eye(3), "must be matrices"),
        (np.eye(3), np.zeros((3, 2)), "`b` is all zeros"),
        (np.eye(3) * np.nan, np.eye(3), "`a` holds NaN"),
        (np.ones(3), np.eye(3), "`a` must have the batch first"),
    ],
)
def test_principal_angles_checks_its_matrices(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.principal_angles(a, b)


# Active units


def test_active_units_compares_each_variance_with_the_threshold():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 4))
    z = (z - z.mean(axis=0)) / z.std(axis=0) * np.sqrt([1.0, 0.0101, 0.0099, 1e-6]) + 3
    assert metrics.active_units(z) == 2
    assert metrics.active_units(z, threshold=0.009) == 3
    assert metrics.active_units(z.astype("float32"), threshold=0) == 4
    assert metrics.active_units(z.reshape(500, 2, 2)) == 2
    assert type(metrics.active_units(z)) is int


def test_active_units_finds_the_units_never_selected():
    rng = np.random.default_rng(0)
    z = np.zeros((2000, 50), "float32")
    for row in z[:, :30]:  # units 30 to 49 are never among the k = 3 selected
        row[rng.choice(29, 3, replace=False)] = rng.normal(size=3)
    z[7, 29] = 0.5  # selected once
    assert metrics.active_units(z, threshold=0) == 30
    assert metrics.active_units(z) == 29


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_active_units_takes_a_constant_as_exactly_constant(dtype):
    # The mean of 1000 times 0.1 is not 0.1: a plain variance is not 0.
    z = np.full((1000, 3), 0.1, dtype)
    assert metrics.active_units(z, threshold=0) == 0


@pytest.mark.parametrize(
    ("codes", "threshold", "message"),
    [
        (np.zeros((1, 3)), 0.01, r"at least 2 examples.*\(1, 3\)"),
        (np.zeros((2, 3)), -0.1, "`threshold` must be"),
        (np.array([[0.0], [np.nan]]), 0.01, "`codes` holds NaN"),
        (np.zeros(3), 0.01, "`codes` must have the batch first"),
    ],
)
def test_active_units_checks_its_arguments(codes, threshold, message):
    with pytest.raises(ValueError, match=message):
        metrics.active_units(codes, threshold)

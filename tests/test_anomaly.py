"""The anomaly detector: its score against NumPy, its answers on real digits, its door, its deployed form."""

import copy
import pickle

import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import kerasae
from kerasae.tasks import AnomalyDetector
from kerasae.tasks.anomaly_layers import ContrastNormalization, GaussianBlur, RelativeDistance, fitted_distance

QUICK = {"n_estimators": 1, "hidden_units": (16,), "max_samples": 512, "epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    """Normal rows on a plane in six dimensions, and some far from it."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(400, 6))
    return 1000 + 50 * normal, 1000 + 50 * rng.normal(0, 3, size=(20, 6))


@pytest.fixture(scope="module")
def detector(table):
    return AnomalyDetector(**QUICK).fit(table[0])


def oracle(x, references, bandwidths):
    """Distances at each bandwidth, (rows, bandwidths), in float64."""
    squares = np.square(x[:, None] - references).sum(axis=-1)
    energies = [-(s**2) * (logsumexp(-squares / (2 * s**2), axis=1) - np.log(len(references))) for s in bandwidths]
    return np.sqrt(2 * np.stack(energies, axis=1))


def neighbours_of(x, references):
    """The mean distance from the ten nearest references, (rows,), and their numbers, (rows, 10)."""
    nearest = NearestNeighbors(n_neighbors=10).fit(references)
    distances, numbers = nearest.kneighbors(x)
    return distances.mean(axis=1), numbers


def largest(distances, nearby, usual, units):
    """The score's oracle; `usual`, (rows, 10), is what is usual around the neighbours."""
    relative, local = distances / units[:-1], nearby / usual.mean(axis=1) / units[-1]
    return np.maximum(relative.max(axis=1), local * np.maximum(1, relative[:, 0]))


@pytest.mark.parametrize("far", [1.0, 100.0])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_the_largest_distance_counts(rng, far, unit):
    x, references, bandwidths = far * rng.normal(size=(7, 3)), rng.normal(size=(31, 3)), (0.5, 2.0)
    units, usual = np.array([2.0, 0.5, unit]), rng.uniform(1, 2, size=31)
    layer = RelativeDistance(references.shape, bandwidths)
    layer.references.assign(references)
    layer.units.assign(units)
    layer.usual.assign(usual)
    nearby, numbers = neighbours_of(x, references)
    distances = oracle(x, references, bandwidths)
    for part, expected in zip(layer.distances(x)[:2], (distances, nearby), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-4)
    expected = largest(distances, nearby, usual[numbers], units)
    np.testing.assert_allclose(layer(x), expected, rtol=2e-4, atol=1e-4)


def test_the_input_is_clipped_once(rng, monkeypatch):
    layer, _ = fitted_distance(x := rng.normal(size=(30, 4)).astype("float32"), x)
    calls, own = [], ops.clip
    monkeypatch.setattr(ops, "clip", lambda *given: calls.append(given[1:]) or own(*given))
    far = np.float32([[3e8, -3e8, 0, 1], [1e6, -1e6, 0, 1]])
    first, second = layer(far).numpy()
    assert first == second  # beyond 1e6 all is as far
    assert calls == [(-1e6, 1e6)]


def test_small_distances_of_many_features_are_exact(rng):
    """As of photos that look alike: the squares of distances are far smaller than the rounding of `||x||^2`."""
    references = rng.normal(size=(60, 2000)).astype("float32")
    references[30:45] = references[:15]  # equal ones count as often as they are there
    x = (references[:20] + 1e-3 * rng.normal(size=(20, 2000))).astype("float32")
    bandwidths = (1e-3, 0.01, 1.0)
    layer = RelativeDistance(references.shape, bandwidths)
    layer.references.assign(references)
    distances, nearby, _ = layer.distances(x)
    np.testing.assert_allclose(distances, oracle(x.astype("float64"), references, bandwidths), rtol=1e-4)
    np.testing.assert_allclose(nearby, neighbours_of(x.astype("float64"), references)[0], rtol=1e-5)


def test_many_equal_references_count_as_many(rng):
    references = np.concatenate([np.zeros((40, 3)), np.ones((10, 3))])
    layer = RelativeDistance(references.shape, [1.0])
    layer.references.assign(references)
    x = rng.normal(size=(5, 3))
    np.testing.assert_allclose(layer.distances(x)[0], oracle(x, references, [1.0]), rtol=1e-5)


def test_distance_is_between_the_nearest_and_the_mean(rng):
    x, references = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    squares = np.square(x[:, None] - references).sum(axis=-1)
    layer = RelativeDistance(references.shape, [1e-3, 1e2])
    layer.references.assign(references)
    expected = np.sqrt(np.stack([squares.min(axis=1), squares.mean(axis=1)], axis=1))
    np.testing.assert_allclose(layer.distances(x)[0], expected, rtol=1e-2)


def test_units_are_mean_distances_without_the_own_reference(rng):
    x = rng.normal(size=(300, 3)).astype("float32")
    references = x + rng.normal(0, 0.1, size=x.shape).astype("float32")
    layer, distances = fitted_distance(x, references)
    assert len(layer.bandwidths) == 5
    assert layer.bandwidths[-1] == pytest.approx(4)
    squares = np.square(x[:, None] - references).sum(axis=-1)
    np.fill_diagonal(squares, np.inf)
    fifth = np.sqrt(np.median(np.sort(squares, axis=1)[:, 4]) / 3)
    assert layer.bandwidths[0] == pytest.approx(fifth, rel=1e-3)
    expected = np.concatenate(
        [oracle(x[i : i + 1], np.delete(references, i, axis=0), layer.bandwidths) for i in range(len(x))]
    )
    # The layer divides by R, not by R - 1.
    expected = np.sqrt(expected**2 + 2 * np.square(layer.bandwidths) * np.log(300 / 299))
    nearest = np.argsort(squares, axis=1)[:, :10]
    nearby = np.sqrt(np.take_along_axis(squares, nearest, axis=1)).mean(axis=1)
    usual = 0.9 * nearby + 0.1 * nearby.mean()
    np.testing.assert_allclose(layer.usual, usual, rtol=1e-3)
    local = nearby / usual[nearest].mean(axis=1)
    units = np.append(expected.mean(axis=0), local.mean())
    np.testing.assert_allclose(layer.units, units, rtol=1e-3)
    np.testing.assert_allclose(distances, largest(expected, nearby, usual[nearest], units), rtol=2e-3)


def test_what_lies_near_a_dense_cluster_is_odd(rng):
    dense, sparse = 0.01 * rng.normal(size=(500, 2)), 5 + rng.normal(size=(500, 2))
    layer, _ = fitted_distance(*2 * [np.concatenate([dense, sparse]).astype("float32")])
    near_dense, among_sparse = layer(np.array([[0.2, 0.2], [5.2, 5.2]]))
    assert near_dense > 2 > among_sparse


def test_equal_rows_have_a_score():
    detector = AnomalyDetector(**{**QUICK, "epochs": 1}).fit(np.ones((20, 3)))
    scores = detector.score_samples([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]])
    assert np.isfinite(scores).all()
    assert scores[0] > scores[1]
    assert np.isfinite(AnomalyDetector(**{**QUICK, "n_references": 1}).fit([[0.0], [1.0]]).score_samples([[3.0]])).all()


def test_the_farthest_example_has_a_finite_score(detector, table):
    x = np.stack([table[0][0], np.full(6, 1e30), np.full(6, -1e300)])
    scores = detector.score_samples(x)
    assert np.isfinite(scores).all()
    assert scores[0] > scores[1:].max()


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3)])
def test_blur(rng, shape):
    images = rng.random((2, *shape))
    sigma = (0, 1, 1, 0)[: len(shape) + 1]
    # SciPy's "mirror" is Keras's "reflect": the edge is not repeated.
    expected = gaussian_filter(images, sigma, mode="mirror", truncate=3)
    np.testing.assert_allclose(GaussianBlur(1.0)(images), expected, atol=1e-5)
    np.testing.assert_allclose(GaussianBlur(0)(images), images, atol=1e-6)
    # More blur than there are pixels.
    assert np.isfinite(GaussianBlur(50.0)(images)).all()


def test_contrast(rng):
    images = rng.random((3, 5, 5)) * [[[1]], [[10]], [[0]]]
    normalised = np.asarray(ContrastNormalization()(images.astype("float32")))
    np.testing.assert_allclose(normalised.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(normalised).mean(axis=(1, 2)), [1, 1, 0], atol=1e-3)


@pytest.mark.parametrize(("shape", "normalised"), [((6, 6), True), ((6, 6, 1), True), ((6, 6, 3), False)])
def test_brightness_and_colour_count_in_photos_and_contrast_in_grey_images(rng, shape, normalised):
    images = rng.random((40, *shape))
    detector = AnomalyDetector(epochs=1, max_samples=128, random_state=0).fit(images)
    same = np.allclose(detector.score_samples(images), detector.score_samples(0.5 * images + 0.25), atol=1e-2)
    assert same == normalised


def test_finds_what_lies_off_the_plane(detector, table):
    normal, strange = table
    scores = detector.score_samples(np.concatenate([normal, strange]))
    truth = np.repeat([0, 1], [len(normal), len(strange)])
    assert roc_auc_score(truth, -scores) > 0.97
    assert (detector.predict(strange) == -1).mean() > 0.9


def test_threshold(detector, table):
    normal = table[0]
    np.testing.assert_allclose(detector.decision_function(normal), detector.score_samples(normal) - detector.offset_)
    few = clone(detector).set_params(contamination=0.02)
    np.testing.assert_array_equal(few.fit_predict(normal), np.where(few.decision_function(normal) < 0, -1, 1))
    assert (few.predict(normal) == -1).sum() == 8


def test_by_default_few_new_normal_examples_are_called_anomalies():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 8))
    train, new = (rng.normal(size=(n, 3)) @ basis + 0.3 * rng.normal(size=(n, 8)) for n in (500, 2000))
    detector = AnomalyDetector(epochs=3, random_state=0).fit(train)
    alarms = (detector.predict(new) == -1).mean()
    assert 0.02 < alarms < 0.1
    assert (detector.predict(train) == -1).mean() < alarms  # these lie near their own reconstructions


def test_pickle_copy_and_random_state(detector, table):
    expected = detector.score_samples(table[1])
    for copied in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector), clone(detector).fit(table[0])):
        np.testing.assert_array_equal(copied.score_samples(table[1]), expected)
    with pytest.raises(NotFittedError):
        clone(detector).predict(table[1])


def test_references_are_half_way_to_the_mean_of_the_ensemble(table):
    detector = AnomalyDetector(**{**QUICK, "n_estimators": 2, "epochs": 1, "bandwidths": (1.0, 0.5)}).fit(table[0])
    assert len(detector.estimators_) == 2
    layer = detector.scorer_.get_layer("relative_distance")
    x = detector._scale(table[0])
    means = np.mean([model.predict(x, verbose=0) for model in detector.estimators_], axis=0)
    references = layer.references.numpy()
    # The same set, in another order.
    np.testing.assert_allclose(np.sort(references, axis=0), np.sort((x + means) / 2, axis=0), atol=1e-5)
    strange = detector._scale(table[1])
    nearby, numbers = neighbours_of(strange, references)
    usual, units = layer.usual.numpy()[numbers], layer.units.numpy()
    expected = -largest(oracle(strange, references, (0.5, 1.0)), nearby, usual, units)
    np.testing.assert_allclose(detector.score_samples(table[1]), expected, rtol=1e-4)


def test_data_frames_and_constant_columns(table):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table[0], columns=list("abcdef")).assign(constant=3.3)
    detector = AnomalyDetector(**QUICK).fit(frame)
    assert list(detector.feature_names_in_) == [*"abcdef", "constant"]
    strange = frame.iloc[:50].assign(constant=300.0)
    # A column that never varied, and does now, is an anomaly.
    assert (detector.predict(strange) == -1).all()
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(frame.rename(columns={"a": "z"}))


@pytest.mark.parametrize(
    ("arguments", "x", "message"),
    [
        ({}, [[1.0, np.nan], [0.0, 1.0]], "NaN"),
        ({}, [[1.0, np.inf], [0.0, 1.0]], "infinity"),
        ({}, [[1.0, 2.0]], "1 sample"),
        ({}, np.zeros((4, 2, 2, 2, 2)), "a table or images"),
        ({"contamination": 0.0}, None, "`contamination` must be a finite number above 0 and at most 0.5"),
        ({"contamination": 0.7}, None, "`contamination`"),
        ({"n_estimators": 0}, None, "`n_estimators` must be a whole number"),
        ({"n_references": 0}, None, "`n_references` must be a whole number"),
        ({"bandwidths": ()}, None, "`bandwidths` must hold at least one"),
        ({"bandwidths": (1.0, 0.0)}, None, "`bandwidths` must be a finite number above 0"),
        ({"bandwidths": "wide"}, None, "`bandwidths` must be"),
        ({"scaling": "max"}, None, "`scaling` must be one of"),
        ({"model": "variatonal"}, None, "Did you mean 'variational'"),
    ],
)
def test_what_is_wrong_is_said(arguments, x, message, table):
    with pytest.raises(ValueError, match=message):
        AnomalyDetector(**{**QUICK, "epochs": 1, **arguments}).fit(table[0][:50] if x is None else x)


def test_another_number_of_columns_is_refused(detector):
    with pytest.raises(ValueError, match="5 features.*6"):
        detector.predict(np.zeros((2, 5)))


@pytest.mark.parametrize("family", ["linear", "denoising", "variational"])
def test_families(family, table):
    arguments = {**QUICK, "epochs": 1} if family != "linear" else {**QUICK, "epochs": 1, "hidden_units": None}
    detector = AnomalyDetector(family, **arguments).fit(table[0])
    assert type(detector.estimators_[0]).__module__.startswith("kerasae.models")
    assert np.median(detector.score_samples(table[1])) < np.median(detector.score_samples(table[0]))


def test_a_model_of_ones_own(table):
    own = kerasae.builders.denoising(6, latent_dim=3, hidden_units=(8,))
    detector = AnomalyDetector(own, **{**QUICK, "hidden_units": None, "epochs": 1}).fit(table[0])
    assert detector.estimators_[0] is not own


def test_images_one_digit_normal():
    (x, y), (x_test, y_test) = kerasae.data.load("digits", labels=True)
    detector = AnomalyDetector(**{**QUICK, "epochs": 20, "latent_dim": 16, "hidden_units": (64,)}).fit(x[y == 4])
    scores = detector.score_samples(x_test)
    auroc = roc_auc_score(y_test == 4, scores)
    flat = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    forest = IsolationForest(random_state=0).fit(flat[0][y == 4])
    assert auroc > 0.98
    assert auroc > roc_auc_score(y_test == 4, forest.score_samples(flat[1]))
    # Contrast is normalised: paler ink is no anomaly.
    np.testing.assert_allclose(detector.score_samples(0.5 * x_test), scores, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("kind", ["table", "images"])
def test_deployed_graph_gives_the_score(kind, detector, table, digits):
    x = table[1] if kind == "table" else digits[1][:20]
    fitted = detector if kind == "table" else AnomalyDetector(**{**QUICK, "epochs": 1}).fit(digits[0])
    function = fitted.functions()["score_samples"]
    (expected,) = function.reference(x)
    np.testing.assert_allclose(function.compute(np.asarray(x, "float32"))[0], expected, rtol=1e-3)
    np.testing.assert_allclose(expected, fitted.score_samples(x), rtol=1e-6)


@pytest.mark.slow
def test_breast_cancer_against_the_forest():
    x, y = load_breast_cancer(return_X_y=True)  # 1 is benign
    rng = np.random.default_rng(0)
    normal = rng.permutation(np.flatnonzero(y == 1))
    train, test = normal[:180], np.concatenate([normal[180:], np.flatnonzero(y == 0)])
    ours = AnomalyDetector(random_state=0).fit(x[train]).score_samples(x[test])
    forest = IsolationForest(random_state=0).fit(x[train]).score_samples(x[test])
    assert roc_auc_score(y[test], ours) > max(0.95, roc_auc_score(y[test], forest) - 0.01)

"""The estimators: scikit-learn's own checks, what they share, and reduction and denoising on real digits."""

import copy
import importlib.util
import os
import pickle

import keras
import numpy as np
import pytest
from sklearn import preprocessing
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

import kerasae
from kerasae import export, metrics, tasks
from kerasae.runtime import Bundle
from kerasae.tasks.batches import run

TINY = {"hidden_units": (4,), "latent_dim": 2, "epochs": 2}
# (class, module, arguments that make a fit quick, {check: why it is excepted}).
ESTIMATORS = [
    ("Reducer", "reducer", {**TINY, "validation_fraction": 0.0}, {}),
    ("Denoiser", "denoiser", {**TINY, "validation_fraction": 0.0}, {}),
    ("AnomalyDetector", "anomaly", TINY, {}),
    ("Imputer", "imputer", TINY, {}),
]
# The rest of scikit-learn's checks takes minutes.
QUICK = {
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_estimators_unfitted",
    "check_estimators_nan_inf",
    "check_n_features_in_after_fitting",
    "check_dict_unchanged",
    "check_methods_subset_invariance",
}


def estimators():
    for name, module, arguments, excepted in ESTIMATORS:
        if importlib.util.find_spec(f"kerasae.tasks.{module}") is None:
            continue
        accepted = getattr(tasks, name)._get_param_names()
        yield getattr(tasks, name)(**{key: arguments[key] for key in arguments if key in accepted}), excepted


def sklearn_checks():
    for estimator, excepted in estimators():
        for own, check in estimator_checks_generator(estimator, expected_failed_checks=excepted, mark="xfail"):
            name = getattr(check, "func", check).__name__
            marks = [] if name in QUICK else [pytest.mark.slow]
            yield pytest.param(own, check, id=f"{type(own).__name__}-{name}", marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), sklearn_checks())
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def fitted(name, x, **arguments):
    options = {"epochs": 3, "hidden_units": (32,), "latent_dim": 8, "random_state": 0, **arguments}
    return getattr(tasks, name)(**options).fit(x)


@pytest.fixture(scope="module")
def flat(digits):
    return tuple(x.reshape(len(x), -1) for x in digits)


# -- What they share -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [("Reducer", "transform"), ("Denoiser", "denoise")])
def test_a_fitted_estimator_is_pickled_and_copied(name, method, flat):
    estimator = fitted(name, flat[0])
    expected = getattr(estimator, method)(flat[1])
    for copied in (pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
        np.testing.assert_array_equal(getattr(copied, method)(flat[1]), expected)
    # A clone is not fitted, and fits to the same.
    again = clone(estimator)
    with pytest.raises(NotFittedError):
        getattr(again, method)(flat[1])
    np.testing.assert_array_equal(getattr(again.fit(flat[0]), method)(flat[1]), expected)


def test_a_fit_depends_on_random_state_alone(flat):
    import random

    def codes(random_state, global_seed):
        keras.utils.set_random_seed(global_seed)
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        z = fitted("Reducer", flat[0], random_state=random_state).transform(flat[1])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
        return z

    first = codes(0, global_seed=1)
    np.testing.assert_array_equal(codes(0, global_seed=2), first)
    assert np.abs(codes(1, global_seed=1) - first).max() > 0.1


def test_a_model_of_ones_own_is_taken_and_left_alone(digits):
    x, x_test = digits
    own = kerasae.builders.contractive((8, 8, 1), latent_dim=3, seed=0)
    own.compile(keras.optimizers.SGD(1e-3, momentum=0.5))
    before = own.get_weights()
    reducer = tasks.Reducer(own, epochs=1, random_state=0).fit(x.reshape(len(x), -1))
    assert type(reducer.model_) is type(own)
    assert reducer.transform(x_test.reshape(len(x_test), -1)).shape == (len(x_test), 3)
    for old, new in zip(before, own.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match=r"takes examples of shape \(8, 8, 1\).*\(4,\)"):
        tasks.Reducer(own).fit(load_iris().data)


@pytest.mark.parametrize("scaling", ["standard", "robust", "minmax", "global", "range", None])
def test_scaling(scaling, rng):
    X = rng.normal([5, -100, 7, 0], [1, 50, 0, 1e-3], (200, 4))
    reducer = tasks.Reducer(scaling=scaling, epochs=1, hidden_units=(4,))
    reducer._validate(X, reset=True)
    x = reducer._fit_scaling(X)
    expected = {
        "standard": (X - X.mean(0)) / np.where(X.std(0) > 1e-9, X.std(0), 1),
        "robust": (X - np.median(X, 0))
        / np.where(X.std(0) > 1e-9, np.subtract(*np.quantile(X, (0.75, 0.25), 0)) / 1.349, 1),
        "minmax": (X - X.min(0)) / np.where(np.ptp(X, 0) > 1e-9, np.ptp(X, 0), 1),
        "global": (X - X.mean(0)) / np.sqrt(X.var(0).mean()),
        "range": (X - X.min()) / np.ptp(X),
        None: X,
    }[scaling]
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(reducer._unscale(x), X, rtol=1e-4, atol=1e-4)


def test_a_column_with_outliers_only_is_scaled_by_them(rng):
    X = np.zeros((100, 2))
    X[:5, 0] = 10
    reducer = tasks.Reducer(scaling="robust")
    reducer._validate(X, reset=True)
    x = reducer._fit_scaling(X)
    assert 3 < x[:, 0].max() < 6
    assert not x[:, 1].any()


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_rows_are_repeated_without_a_copy(flat, fraction):
    estimator = tasks.Reducer(latent_dim=2, hidden_units=(4,), epochs=2, batch_size=16, validation_fraction=fraction)
    few, many = flat[0][:20], flat[0][np.arange(50) % 20]
    one, other = (estimator._fit_model(x, seed=1, num_rows=50) for x in (few, many))
    for repeated, copied in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(repeated, copied)


def test_an_answer_does_not_depend_on_the_batch(flat):
    model = fitted("Reducer", flat[0]).model_
    whole = run(model.encoder, flat[1])
    np.testing.assert_array_equal(np.concatenate([run(model.encoder, row[None]) for row in flat[1][:5]]), whole[:5])
    np.testing.assert_allclose(whole, model.encoder(flat[1]), rtol=1e-4, atol=1e-5)


def test_training_stops_early_with_the_best_weights(rng, monkeypatch):
    epochs = []
    monkeypatch.setattr(
        keras.callbacks.EarlyStopping, "on_train_end", lambda self, logs=None: epochs.append(self.stopped_epoch)
    )
    tasks.Reducer(epochs=40, patience=1, learning_rate=0.05, hidden_units=(64,), random_state=0).fit(
        rng.random((60, 5))
    )
    assert 0 < epochs[0] < 39


@pytest.mark.parametrize(
    ("arguments", "x", "message"),
    [
        ({}, [[1.0, np.nan], [0.0, 1.0]], "NaN"),
        ({}, [[1.0, 2.0]], "1 sample"),
        ({"model": "variatonal"}, None, "Did you mean 'variational'"),
        ({"model": 3}, None, "a kerasae model"),
        ({"scaling": "max"}, None, "`scaling` must be one of"),
        ({"epochs": 0}, None, "`epochs` must be a whole number"),
        ({"validation_fraction": 1.0}, None, r"lie in \[0, 1\)"),
        ({"learning_rate": 1e18}, None, "diverged"),
        ({"model_options": {"loss": "binary_crossentropy"}}, None, r"\[0, 1\]"),
    ],
)
def test_what_is_wrong_is_said(arguments, x, message):
    with pytest.raises(ValueError, match=message):
        tasks.Reducer(**{**TINY, **arguments}).fit(load_iris().data if x is None else x)


def test_images_of_another_shape_are_refused(digits):
    reducer = fitted("Reducer", digits[0])
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), as in fit. Received shape: \(2, 8, 4, 1\)"):
        reducer.transform(np.zeros((2, 8, 4, 1)))


# -- Reduction -----------------------------------------------------------------------------------------------------------------------------


def test_reducer_in_a_pipeline_beside_pca():
    (x, y), (x_test, y_test) = kerasae.data.load("digits", labels=True)
    x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    reducer = tasks.Reducer(latent_dim=8, hidden_units=(128,), epochs=30, random_state=0)
    accuracies = [
        make_pipeline(step, LogisticRegression(max_iter=2000)).fit(x, y).score(x_test, y_test)
        for step in (reducer, PCA(8, random_state=0))
    ]
    assert accuracies[0] > accuracies[1] - 0.02
    reducer.fit(x)
    assert -reducer.score(x_test) < 0.75 * metrics.pca_error(x, x_test, 8)
    reconstruction = reducer.inverse_transform(reducer.transform(x_test))
    assert -reducer.score(x_test) == pytest.approx(metrics.squared_error(x_test, reconstruction), rel=1e-6)


def test_reducer_in_a_grid_search(flat):
    search = GridSearchCV(
        tasks.Reducer(hidden_units=(32,), epochs=10, random_state=0), {"latent_dim": [1, 10]}, cv=2, error_score="raise"
    )
    search.fit(flat[0][:400])
    assert search.best_params_ == {"latent_dim": 10}


def test_a_detector_in_a_grid_search(rng):
    x = np.concatenate([rng.normal(size=(60, 3)), rng.normal(4, 1, size=(12, 3))])
    y = np.repeat([1, -1], [60, 12])
    detector = tasks.AnomalyDetector(epochs=1, max_samples=60, random_state=0)
    parts = StratifiedKFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(detector, {"latent_dim": [1, 2]}, cv=parts, error_score="raise").fit(x, y)
    assert search.best_score_ > 0.95
    fitted = search.best_estimator_
    assert fitted.score(x, y) == roc_auc_score(y, fitted.score_samples(x))
    with pytest.raises(ValueError, match="1 for normal examples and -1 for anomalies, both"):
        fitted.score(x, np.ones(72))
    with pytest.warns(UserWarning, match="1 is taken for normal"):
        assert fitted.score(x, (y > 0).astype(int)) == fitted.score(x, y)


def test_an_imputer_in_a_grid_search(rng):
    x = rng.normal(size=(200, 1)) + rng.normal(0, 0.1, size=(200, 3))
    x = x * (1, 10, 1000)
    x[rng.random(x.shape) < 0.1] = np.nan
    imputer = tasks.Imputer(latent_dim=1, hidden_units=(4,), epochs=1, n_samples=20, random_state=0)
    search = GridSearchCV(imputer, {"learning_rate": [1e-3, 1e-2]}, cv=2, error_score="raise").fit(x)
    fitted = search.best_estimator_
    assert -0.2 < fitted.score(x) < 0  # of the others' noise; column means have -1
    assert fitted.score(x) == fitted.score(x)
    assert np.isfinite(fitted.score(np.nan_to_num(x) * (1, 1, 0)))  # a constant column


@pytest.mark.parametrize("model", ["linear", "denoising", "k_sparse", "sparse", "contractive", "variational"])
def test_reducer_of_every_family(model, flat):
    options = {"model_options": {"k": 3}} if model == "k_sparse" else {}
    reducer = tasks.Reducer(model, latent_dim=6, epochs=1, random_state=0, **options).fit(flat[0][:200])
    assert reducer.transform(flat[1]).shape == (len(flat[1]), 6)
    assert reducer.inverse_transform(reducer.transform(flat[1])).shape == flat[1].shape


def test_reducer_names_its_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(load_iris().data, columns=["a", "b", "c", "d"])
    reducer = tasks.Reducer(**TINY).set_output(transform="pandas").fit(frame)
    assert list(reducer.transform(frame).columns) == ["reducer0", "reducer1"]
    assert list(reducer.feature_names_in_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        reducer.transform(frame.rename(columns={"a": "e"}))


# -- Denoising -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", ["gaussian", "masking", "salt_and_pepper"])
def test_denoiser_takes_noise_away(corruption, digits):
    x, x_test = digits
    denoiser = tasks.Denoiser(
        corruption=corruption, latent_dim=64, hidden_units=(256,), epochs=12, batch_size=64, random_state=0
    ).fit(16 * x)
    strength = 0.3
    noisy = denoiser.corrupt(16 * x_test, strength, seed=1)
    denoised = denoiser.denoise(noisy)
    assert denoised.shape == x_test.shape
    assert denoised.min() >= 0
    assert denoised.max() <= 16
    gain = metrics.psnr(16 * x_test, denoised, 16) - metrics.psnr(16 * x_test, noisy, 16)
    assert gain > 2
    assert denoiser.score(noisy, 16 * x_test) == pytest.approx(metrics.psnr(16 * x_test, denoised, 16), abs=1e-3)


@pytest.mark.parametrize(
    ("corruption", "strength", "statistic", "expected"),
    [
        ("gaussian", 0.2, lambda noisy: noisy.std(), 0.2),
        ("masking", 0.3, lambda noisy: (noisy == 0).mean(), 0.3),
        ("salt_and_pepper", 0.3, lambda noisy: (noisy == 1).mean(), 0.15),
    ],
)
def test_noise_is_what_it_is_called(corruption, strength, statistic, expected):
    x = np.full((50, 20, 20), 0.5, "float32")
    x[0, 0, :2] = 0, 1  # the range
    denoiser = tasks.Denoiser(corruption=corruption, clip=False, **TINY).fit(x)
    assert statistic(denoiser.corrupt(x, strength)) == pytest.approx(expected, abs=0.01)
    np.testing.assert_array_equal(denoiser.corrupt(x, strength), denoiser.corrupt(x, strength))
    assert np.any(denoiser.corrupt(x, strength) != denoiser.corrupt(x, strength, seed=1))


def test_strengths_spread_over_their_range():
    x = np.full((400, 10, 10), 0.5, "float32")
    x[0, 0, :2] = 0, 1
    denoiser = tasks.Denoiser(strength=(0.1, 0.4), clip=False, **TINY).fit(x)
    deviations = (denoiser.corrupt(x) - x).reshape(400, -1).std(axis=1)
    assert deviations.min() < 0.12
    assert deviations.max() > 0.37
    assert deviations.mean() == pytest.approx(0.25, abs=0.02)


def test_clipping():
    x = np.zeros((50, 8, 8), "float32")
    x[:, ::2] = 1
    noisy = tasks.Denoiser(**TINY).fit(x).corrupt(x, 0.5)
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_denoiser_learns_from_pairs(digits, rng):
    x, x_test = digits
    # A stain that no built-in corruption makes.
    stain = np.zeros((8, 8, 1), "float32")
    stain[2:4, 2:6] = 0.7
    denoiser = tasks.Denoiser(corruption=None, hidden_units=(128,), latent_dim=64, epochs=20, random_state=0)
    denoiser.fit(np.maximum(x, stain), x)
    stained = np.maximum(x_test, stain)
    error = metrics.squared_error(x_test, denoiser.denoise(stained))
    assert error < 0.5 * metrics.squared_error(x_test, stained)
    with pytest.raises(ValueError, match=r"pass pairs, fit\(noisy, clean\)"):
        denoiser.fit(x)
    with pytest.raises(ValueError, match="clean images of X, of the shape"):
        denoiser.fit(x, x[:, :4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corruption": "gausian"}, "Did you mean 'gaussian'"),
        ({"strength": -1}, "`strength` must be a finite number"),
        ({"corruption": "masking", "strength": 1.5}, "at most 1"),
        ({"strength": (0.5, 0.1)}, "of at least 0.5"),
    ],
)
def test_bad_corruptions(arguments, message, digits):
    with pytest.raises(ValueError, match=message):
        tasks.Denoiser(**TINY, **arguments).fit(digits[0])


# -- Export --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("Reducer", {"scaling": "standard"}, "z"),
        ("Reducer", {"model": "variational"}, "z"),
        ("Denoiser", {"network": "conv", "hidden_units": (8,)}, "denoised"),
    ],
)
def test_the_deployed_graph_answers_directly(name, arguments, output, digits, tmp_path):
    import onnxruntime
    import tensorflow as tf

    x, x_test = (16 * images for images in digits)
    estimator = fitted(name, x, **arguments)
    manifest = export.export(estimator, tmp_path / "bundle", x=x_test[:50])
    assert manifest["family"] == name
    part = manifest["parts"][0]
    expected = estimator.transform(x_test[:20])
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / part["onnx"]["file"])
    (answer,) = session.run([output], {"x": x_test[:20].astype("float32")})
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4)
    served = tf.saved_model.load(str(tmp_path / "bundle" / "saved_model")).signatures["serving_default"]
    answer = served(x=tf.constant(x_test[:20], "float32"))[output]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4)
    assert "Preprocessing: none: the parts scale" in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(
    "scalers",
    [[preprocessing.StandardScaler()], [preprocessing.MinMaxScaler(), "passthrough", preprocessing.RobustScaler()]],
    ids=["standard", "two"],
)
def test_a_pipeline_of_scalers_is_exported(scalers, rng, tmp_path):
    x = rng.normal(size=(100, 4)) * (1, 10, 100, 1000) + (0, 5, 1e4, 0)
    pipeline = make_pipeline(*scalers, tasks.AnomalyDetector(epochs=1, max_samples=64, random_state=0)).fit(x)
    before = pipeline.score_samples(x)
    export.export(pipeline, tmp_path / "bundle", ["onnx"], x=x)
    score = Bundle(tmp_path / "bundle").open("score_samples")
    scores = score(x.astype(score.inputs[0]["dtype"]))["score"]
    np.testing.assert_allclose(scores, before, rtol=1e-3)
    np.testing.assert_array_equal(pipeline.score_samples(x), before)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([preprocessing.StandardScaler(), PCA(2)], "'pca' is a PCA: export the steps up to kerasae's"),
        ([preprocessing.PolynomialFeatures(), tasks.Reducer(**TINY)], "may have StandardScaler.*'polynomialfeatures'"),
        ([preprocessing.StandardScaler(), tasks.Imputer(**TINY)], "not in those of the data. Fit Imputer to raw data"),
    ],
)
def test_pipelines_that_cant_be_exported_are_told_why(steps, message, rng, tmp_path):
    pipeline = make_pipeline(*steps).fit(rng.normal(size=(40, 4)))
    with pytest.raises(ValueError, match=message):
        export.export(pipeline, tmp_path / "bundle", ["onnx"])


def test_estimators_that_cant_be_exported_are_told_why(flat, tmp_path):
    with pytest.raises(NotFittedError):
        export.export(tasks.Reducer(), tmp_path / "bundle")
    reducer = fitted("Reducer", flat[0])
    with pytest.raises(ValueError, match="are for models"):
        export.export(reducer, tmp_path / "bundle", image_input="uint8")
    with pytest.raises(ValueError, match="`x` must have shape"):
        export.export(reducer, tmp_path / "bundle", x=flat[1][:, :3])
    assert not (tmp_path / "bundle").exists()


def test_a_graph_that_answers_otherwise_is_refused(flat, tmp_path, monkeypatch):
    reducer = fitted("Reducer", flat[0])
    monkeypatch.setattr(type(reducer), "transform", lambda self, X: 1.01 * run(self.model_.encoder, self._scale(X)))
    with pytest.raises(export.ExportError, match="transform as saved_model"):
        export.export(reducer, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("scaling", ["standard", "robust"])
def test_a_constant_column_is_not_divided_by_rounding(scaling, rng):
    # The mean of these is off by thousands of last bits, and so is what the standard deviation makes of it.
    x = np.column_stack([np.full(50_000, 10.1), rng.normal(size=50_000)])
    reducer = tasks.Reducer(scaling=scaling)
    reducer._fit_scaling(x)
    assert reducer.scale_[0] == 1


@pytest.fixture(scope="module")
def mnist():
    if "TFDS_DATA_DIR" not in os.environ:
        pytest.skip("needs prepared MNIST: set TFDS_DATA_DIR")
    x, x_test = kerasae.data.load("mnist")
    return x[:3000], x_test[:300]


def wide(x, seed=0):
    """Images, black and white, as a table of 784 columns in units that differ up to a thousand times; many columns are constant."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=784) + 10 ** rng.uniform(-1, 2, 784) * (x.reshape(len(x), -1) > 0.5)


def with_gaps(x):
    return np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.nan, x)


SHORT = {"epochs": 1, "random_state": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "table"),
    [
        (tasks.Reducer(latent_dim=30, **SHORT), False),
        (tasks.Reducer("variational", network="conv", latent_dim=16, hidden_units=(16, 32), **SHORT), False),
        (tasks.Denoiser(**SHORT), False),
        (tasks.Denoiser(network="conv", hidden_units=(16, 32), latent_dim=64, **SHORT), False),
        (tasks.AnomalyDetector(max_samples=1280, **SHORT), False),
        (tasks.Codec(latent_dim=16, hidden_units=(128,), **SHORT), False),
        (tasks.Codec(latent_dim=16, network="conv", hidden_units=(8, 16), **SHORT), False),
        (tasks.Reducer(latent_dim=30, **SHORT), True),
        (tasks.Denoiser(hidden_units=(128,), latent_dim=32, **SHORT), True),
        (tasks.AnomalyDetector(max_samples=1280, **SHORT), True),
        (tasks.Imputer(n_samples=64, **SHORT), True),
    ],
    ids=lambda value: ("table" if value else "images") if isinstance(value, bool) else type(value).__name__,
)
def test_large_inputs_are_exported(estimator, table, mnist, tmp_path):
    import onnxruntime
    import tensorflow as tf

    x, x_test = (wide(images) for images in mnist) if table else mnist
    if isinstance(estimator, tasks.Imputer):
        x, x_test = with_gaps(x), with_gaps(x_test)
        x[0] = wide(mnist[0][:1])  # every column has a value
    estimator = clone(estimator).fit(x)
    # Both forms are held against the estimator's own answers in there.
    manifest = export.export(estimator, tmp_path / "bundle", x=x_test[:100])
    assert manifest["parity"]["max_relative_difference"] <= 1e-5
    saved = tf.saved_model.load(str(tmp_path / "bundle" / "saved_model"))
    parts = list(estimator.functions().values())
    assert [part["name"] for part in manifest["parts"]] == [part.name for part in parts]
    inputs, expected = x_test[100:], None
    for part, files in zip(parts, manifest["parts"], strict=True):
        (input_port,), (output_port,) = part.inputs, part.outputs
        if input_port.name == "z":
            inputs = np.rint(expected) if isinstance(estimator, tasks.Codec) else expected
        expected = part.reference(inputs)[0].numpy()
        # In units of columns where the answer is in the data's; these don't compare.
        center, scale = (estimator.center_, estimator.scale_) if isinstance(estimator, tasks.Imputer) else (0, 1)
        reference = (expected - center) / scale
        assert reference.std() > 0
        session = onnxruntime.InferenceSession(tmp_path / "bundle" / files["onnx"]["file"])
        for num_examples in (1, len(inputs)):  # other rows, and other numbers of them, than the files were checked with
            given = inputs[:num_examples].astype("float32")
            answers = {
                "onnx": session.run([output_port.name], {input_port.name: given})[0],
                "saved_model": saved.signatures[part.name](**{input_port.name: tf.constant(given)})[output_port.name],
            }
            for form, answer in answers.items():
                difference = np.abs((np.asarray(answer) - center) / scale - reference[:num_examples]).max()
                assert difference <= 1e-4 * np.abs(reference).max(), (part.name, form)

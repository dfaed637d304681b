"""The imputer: its bound and its mean against NumPy and closed forms, its answers, its door, its deployed form."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from kerasae import export, networks
from kerasae.layers import random_seed
from kerasae.models import IncompleteDataAutoencoder
from kerasae.models.incomplete import FactorPosterior, ObservedPairs
from kerasae.runtime import Bundle
from kerasae.tasks import Imputer
from kerasae.tasks.batches import run
from kerasae.tasks.imputer import _hide

QUICK = {"latent_dim": 2, "hidden_units": (32,), "n_importance_samples": 5, "n_samples": 64, "random_state": 0}


@pytest.fixture(scope="module")
def tables():
    """Five columns of two factors, complete; and with 30% missing, some rows complete, one without any value."""
    rng = np.random.default_rng(0)
    complete = 100 + 10 * (rng.normal(size=(500, 2)) @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(500, 5)))
    missing = rng.random(complete.shape) < 0.3
    missing[:10] = False
    missing[10] = True
    return complete, np.where(missing, np.nan, complete)


@pytest.fixture(scope="module")
def imputer(tables):
    return Imputer(**{**QUICK, "epochs": 150, "learning_rate": 3e-3}).fit(tables[1])


def model_of_rows(k=6):
    """A model of three columns, and what it takes of values and a mask."""
    x = keras.Input((3,))
    encoder = networks.encoder((3, 2), {"z_mean": 2, "z_log_var": 2}, (4,))
    encoder = keras.Model(x, encoder(ObservedPairs()(x)))
    decoder = networks.decoder((3,), 2, (4,), log_variance=True)
    return IncompleteDataAutoencoder(encoder, decoder, k=k, seed=0), lambda x, seen: np.where(seen, x, np.nan)


def model_of_pairs(k=6):
    """The earlier form: pairs of a value and whether it is observed; the decoder's are of location and ln scale."""
    encoder = networks.encoder((3, 2), {"z_mean": 2, "z_log_var": 2}, (4,))
    model = IncompleteDataAutoencoder(encoder, networks.decoder((3, 2), 2, (4,)), k=k, seed=0)
    return model, lambda x, seen: np.stack([x * seen, seen], axis=-1)


def log_density_of(model, x, seen, z, degrees):
    """ln p(o|z) of codes (..., 2) by SciPy, with as many axes in front as x."""
    parameters = [np.asarray(part, "float64") for part in tf.nest.flatten(model.decoder(z.reshape(-1, 2)))]
    location, log_scale = parameters if len(parameters) == 2 else np.moveaxis(parameters[0], -1, 0)
    location, scale = (part.reshape(*z.shape[:-1], 3) for part in (location, np.exp(log_scale)))
    return (stats.t.logpdf(x, degrees, location, scale) * seen).sum(axis=-1)


@pytest.mark.parametrize("build", [model_of_rows, model_of_pairs])
def test_the_bound_and_the_score_against_numpy(build, rng):
    model, examples = build()
    model.raw_degrees.assign([0.0, 2.0, -1.0])
    degrees = 3 + np.logaddexp(0, [0.0, 2.0, -1.0])
    x, seen = rng.normal(size=(5, 3)), rng.random((5, 3)) < 0.6
    given = examples(x, seen).astype("float32")
    mean, log_var = (np.asarray(part, "float64") for part in model.encoder(given))
    outputs = model.forward(given, training=True)
    # The noise that the model has drawn.
    state = keras.random.SeedGenerator(0)
    noise = tf.random.stateless_normal((6, 5, 2), random_seed(state), alg="philox").numpy().transpose(1, 0, 2)
    deviation = np.exp(0.5 * log_var)[:, None]
    z = mean[:, None] + deviation * noise
    log_ratio = stats.norm.logpdf(z).sum(-1) - stats.norm.logpdf(z, mean[:, None], deviation).sum(-1)
    log_weights = log_ratio + log_density_of(model, x[:, None], seen[:, None], z, degrees)
    expected = np.log(6) - special.logsumexp(log_weights, axis=1)
    np.testing.assert_allclose(model.terms(given, outputs)["bound_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(model.degrees_of_freedom(), degrees, rtol=1e-5)
    kl = 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var).sum(axis=1)
    np.testing.assert_allclose(model.score(given), kl - log_density_of(model, x, seen, mean, degrees), rtol=1e-4)


def test_draws_have_the_quantiles_of_student_s_t():
    model, _ = model_of_rows()
    z = np.zeros((4000, 2), "float32")
    outputs = model.reconstruct(z, training=False)
    draws = model.likelihood.sample(outputs, keras.random.SeedGenerator(0))
    standard = (draws - outputs["reconstruction"]) / np.exp(outputs["log_scale"])
    expected = stats.t.ppf([0.05, 0.25, 0.5, 0.95], model.degrees_of_freedom()[0])
    np.testing.assert_allclose(np.quantile(standard[:, 0], [0.05, 0.25, 0.5, 0.95]), expected, atol=0.15)


def test_what_is_missing_is_neither_read_nor_counted(rng):
    model, _ = model_of_rows()
    model.compile("adam")
    x = rng.normal(size=(40, 3)).astype("float32")
    x[rng.random(x.shape) < 0.4] = np.nan
    x[0] = np.nan
    assert np.isfinite(model.fit(x, epochs=2, batch_size=7, verbose=0).history["loss"]).all()
    assert np.isfinite(model.encode(x)).all()
    assert np.isfinite(model.predict(x, verbose=0)).all()
    # Of an empty row nothing but the posterior counts.
    mean, log_var = model.encoder(x[:1])
    kl = 0.5 * np.sum(np.exp(log_var) + np.square(mean) - 1 - log_var)
    np.testing.assert_allclose(model.score(x[:1]), [kl], atol=1e-6)
    with pytest.raises(ValueError, match="infinity, first in example 3"):
        model.evaluate(np.where(np.arange(40)[:, None] == 3, np.inf, x))


def test_a_model_of_incomplete_rows_is_exported(tmp_path, rng):
    model, _ = model_of_rows()
    model.raw_degrees.assign([0.0, 2.0, -1.0])
    x = rng.normal(size=(20, 3)).astype("float32")
    x[rng.random(x.shape) < 0.4] = np.nan
    manifest = export.export(model, tmp_path / "bundle", x=x)
    assert manifest["parity"]["max_relative_difference"] <= 1e-5
    files = Bundle(tmp_path / "bundle")
    np.testing.assert_allclose(files.open("score")(x)["score"], model.score(x), rtol=1e-5)
    np.testing.assert_allclose(files.open("autoencoder")(x)["reconstruction"], model.predict(x, verbose=0), atol=1e-5)


def test_the_factors_posterior_against_numpy(rng):
    loadings, mean, precision = rng.normal(size=(7, 3)), rng.normal(size=7), rng.uniform(0.5, 100, size=7)
    layer = FactorPosterior(columns=7, rank=3, latent_dim=5)
    for weight, value in ((layer.loadings, loadings), (layer.mean, mean), (layer.precision, precision)):
        weight.assign(value)
    observed = rng.random((6, 7)) < 0.6
    observed[0], observed[1] = False, True
    x = rng.normal(size=(6, 7))
    filled, z_mean, z_log_var = layer(np.stack([observed * x, observed], axis=-1).astype("float32"))
    for i, seen in enumerate(observed):
        w = loadings[seen]
        covariance = np.linalg.inv(np.eye(3) + w.T * precision[seen] @ w)
        z = covariance @ (w.T * precision[seen]) @ (x[i] - mean)[seen]
        np.testing.assert_allclose(z_mean[i], [*z, 0, 0], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(z_log_var[i], [*np.log(np.diag(covariance)), 0, 0], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(filled[i, :, 0], np.where(seen, x[i], mean + loadings @ z), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(filled[..., 1], observed)


def test_training_begins_at_the_linear_answer(rng):
    """Of Gaussian rows the conditional mean is known; an imputer that was hardly trained is near it."""
    loadings = rng.normal(size=(8, 3))
    complete = rng.normal(size=(1000, 3)) @ loadings.T + 0.3 * rng.normal(size=(1000, 8))
    missing = rng.random(complete.shape) < 0.4
    covariance = loadings @ loadings.T + 0.09 * np.eye(8)
    best = np.zeros_like(complete)
    for row, gaps, x in zip(best, missing, complete, strict=True):
        row[gaps] = covariance[np.ix_(gaps, ~gaps)] @ np.linalg.solve(covariance[np.ix_(~gaps, ~gaps)], x[~gaps])
    imputer = Imputer(**{**QUICK, "latent_dim": 6, "n_samples": 512, "epochs": 1, "learning_rate": 1e-6})
    imputed = imputer.fit_transform(np.where(missing, np.nan, complete))
    assert imputer.loadings_.shape == (8, 3)
    assert np.square(imputed - complete)[missing].mean() < 1.15 * np.square(best - complete)[missing].mean()


def test_hidden_entries_are_missing():
    x = np.arange(6000, dtype="float32").reshape(2000, 3)
    hidden = np.asarray(_hide(0.25)(x, [0, 1]))
    seen = ~np.isnan(hidden)
    np.testing.assert_array_equal(hidden[seen], x[seen])
    assert seen.mean() == pytest.approx(0.75, abs=0.03)


def test_transform_is_the_importance_weighted_mean(imputer, tables):
    x = imputer._scale(tables[1][10:20])
    model, missing = imputer.model_, np.isnan(x)
    mean, log_var = run(model.encoder, x)
    noise = imputer.network_.get_layer("samples").noise.numpy()
    z = mean[:, None] + np.exp(0.5 * log_var)[:, None] * noise
    location, log_scale = (part.reshape(10, 64, 5) for part in run(model.decoder, z.reshape(-1, 2)))
    density = stats.t.logpdf(np.nan_to_num(x)[:, None], model.degrees_of_freedom(), location, np.exp(log_scale))
    weights = (density * ~missing[:, None]).sum(-1) + stats.norm.logpdf(z).sum(-1)
    weights -= stats.norm.logpdf(noise).sum(-1) - 0.5 * log_var.sum(-1)[:, None]
    expected = np.einsum("ns,nsd->nd", special.softmax(weights, axis=1), location)
    np.testing.assert_allclose(run(imputer.network_, x, 64), expected, rtol=1e-3, atol=1e-3)


def test_recovers_what_two_factors_determine(imputer, tables):
    complete, incomplete = tables
    missing = np.isnan(incomplete)
    missing[10] = False
    error = np.square(imputer.transform(incomplete) - complete)[missing].mean()
    assert error < 0.35 * complete.var(axis=0).mean()
    # Nothing is known of an empty row: something like the mean.
    assert np.abs(imputer.transform(incomplete)[10] - complete.mean(axis=0)).max() < 2 * complete.std(axis=0).max()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_observed_entries_are_never_altered(imputer, tables, dtype):
    x = tables[1].astype(dtype)
    seen, before = ~np.isnan(x), x.copy()
    imputed = imputer.transform(x)
    assert imputed.dtype == dtype
    np.testing.assert_array_equal(imputed[seen], x[seen])
    np.testing.assert_array_equal(x, before)
    assert np.isfinite(imputed).all()
    np.testing.assert_array_equal(imputer.transform(x[:10]), x[:10])


def test_a_row_is_imputed_alone_as_among_others(imputer, tables):
    together = imputer.transform(tables[1][:60])
    alone = np.concatenate([imputer.transform(tables[1][i : i + 1]) for i in range(10, 20)])
    np.testing.assert_allclose(alone, together[10:20], rtol=1e-6)


def test_multiple_imputation(imputer, tables):
    x = tables[1][:60]
    draws = imputer.sample(x, 40, random_state=0)
    seen = ~np.isnan(x)
    assert draws.shape == (40, *x.shape)
    np.testing.assert_array_equal(draws[:, seen], np.broadcast_to(x[seen], (40, seen.sum())))
    np.testing.assert_array_equal(imputer.sample(x, 40, random_state=0), draws)
    # Draws scatter around the conditional mean; those of an empty row as widely as the column.
    mean, spread = draws.mean(axis=0)[~seen], draws.std(axis=0)[~seen]
    assert (spread > 0).all()
    assert np.abs((mean - imputer.transform(x)[~seen]) / (spread / np.sqrt(40) + 0.5)).mean() < 2
    assert draws[:, 10].std(axis=0).mean() > 0.4 * tables[0].std(axis=0).mean()


def test_pickle_copy_and_random_state(tables):
    imputer = Imputer(**{**QUICK, "epochs": 1}).fit(tables[1])
    expected = imputer.transform(tables[1])
    for copied in (pickle.loads(pickle.dumps(imputer)), copy.deepcopy(imputer), clone(imputer).fit(tables[1])):
        np.testing.assert_array_equal(copied.transform(tables[1]), expected)
    with pytest.raises(NotFittedError):
        clone(imputer).transform(tables[1])


def test_data_frames_in_and_out(tables):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(tables[1], columns=list("abcde"))
    imputer = Imputer(**{**QUICK, "epochs": 1}).set_output(transform="pandas")
    imputed = imputer.fit_transform(frame)
    assert list(imputed.columns) == list(imputer.get_feature_names_out()) == list("abcde")
    assert not imputed.isna().any(axis=None)
    with pytest.raises(ValueError, match=r"observed value.*\['c'\]"):
        imputer.fit(frame.assign(c=np.nan))


@pytest.mark.parametrize(
    ("arguments", "x", "message"),
    [
        ({}, [[1.0, np.inf], [0.0, 1.0]], "infinity"),
        ({}, [[1.0, np.nan]], "1 sample"),
        ({}, [[np.nan, 1.0], [np.nan, 2.0]], r"observed value.*Without any: 1.*\[.*0.*\]"),
        ({}, np.zeros((3, 2, 2)), "dim 3"),
        ({"corruption_rate": 1.0}, None, r"`corruption_rate` must lie in \[0, 1\)"),
        ({"n_samples": 0}, None, "`n_samples` must be a whole number"),
        ({"n_importance_samples": 0}, None, "`k` must be a whole number"),
        ({"latent_dim": 0}, None, "`latent_dim` must be a whole number"),
    ],
)
def test_what_is_wrong_is_said(arguments, x, message, tables):
    with pytest.raises(ValueError, match=message):
        Imputer(**{**QUICK, "epochs": 1, **arguments}).fit(tables[1] if x is None else x)


def test_another_number_of_columns_is_refused(imputer):
    with pytest.raises(ValueError, match="4 features.*5"):
        imputer.transform(np.zeros((2, 4)))


def test_deployed_graph_imputes_raw_rows(imputer, tables):
    (imputed,) = imputer.functions()["transform"].compute(tables[1].astype("float32"))
    np.testing.assert_allclose(imputed, imputer.transform(tables[1]), rtol=1e-4)


def test_constant_column(tables):
    x = np.column_stack([tables[1], np.full(500, 7.0)])
    x[5, 5] = np.nan
    imputed = Imputer(**{**QUICK, "epochs": 30}).fit_transform(x)
    assert imputed[5, 5] == pytest.approx(7.0, abs=0.5)

"""The imputer: its bound and its mean against NumPy and closed forms, its answers, its door, its deployed form."""

import copy
import pickle

import numpy as np
import pytest
from scipy import special, stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from kerasae import networks
from kerasae.models import IncompleteDataAutoencoder
from kerasae.models.incomplete import FactorPosterior
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


def test_the_bound_against_numpy(rng):
    encoder = networks.encoder((3, 2), {"z_mean": 2, "z_log_var": 2}, (4,))
    decoder = networks.decoder((3, 2), 2, (4,))
    model = IncompleteDataAutoencoder(encoder, decoder, k=6, seed=0)
    model.raw_degrees.assign([0.0, 2.0, -1.0])
    observed = rng.random((5, 3)) < 0.6
    pairs = np.stack([observed * rng.normal(size=(5, 3)), observed], axis=-1).astype("float32")
    outputs = model.forward(pairs, training=True)
    location, log_scale = np.moveaxis(np.asarray(outputs["parameters"], "float64"), -1, 0)
    degrees = 3 + np.logaddexp(0, [0.0, 2.0, -1.0])
    log_density = stats.t.logpdf(pairs[..., 0], degrees, location, np.exp(log_scale))
    log_weights = outputs["log_ratio"] + (log_density * observed).sum(axis=-1)
    expected = np.log(6) - special.logsumexp(log_weights, axis=0)
    np.testing.assert_allclose(model.terms(pairs, outputs)["bound_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(model.degrees_of_freedom(), degrees, rtol=1e-5)


def test_the_ratio_of_densities(rng):
    encoder = networks.encoder((3, 2), {"z_mean": 2, "z_log_var": 2}, (4,))
    model = IncompleteDataAutoencoder(encoder, networks.decoder((3, 2), 2, (4,)), k=6, seed=0)
    pairs = rng.normal(size=(5, 3, 2)).astype("float32")
    outputs = model.forward(pairs, training=True)
    mean, log_var = (np.asarray(part, "float64") for part in encoder(pairs))
    z = np.asarray(outputs["z"], "float64")
    expected = stats.norm.logpdf(z).sum(-1) - stats.norm.logpdf(z, mean, np.exp(0.5 * log_var)).sum(-1)
    np.testing.assert_allclose(outputs["log_ratio"][0], expected, rtol=1e-3, atol=1e-4)


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


def test_hidden_entries_are_gone_with_their_mark():
    pairs = np.ones((2000, 3, 2), "float32")
    hidden = np.asarray(_hide(0.25)(pairs, [0, 1]))
    np.testing.assert_array_equal(hidden[..., 0], hidden[..., 1])
    assert hidden.mean() == pytest.approx(0.75, abs=0.03)


def test_transform_is_the_importance_weighted_mean(imputer, tables):
    x = imputer._scale(tables[1][10:20])
    model, missing = imputer.model_, np.isnan(x)
    pairs = np.stack([np.where(missing, 0, x), ~missing], axis=-1)
    mean, log_var = run(model.encoder, pairs)
    noise = imputer.network_.get_layer("samples").noise.numpy()
    z = mean[:, None] + np.exp(0.5 * log_var)[:, None] * noise
    location, log_scale = np.moveaxis(run(model.decoder, z.reshape(-1, 2)).reshape(10, 64, 5, 2), -1, 0)
    density = stats.t.logpdf(pairs[:, None, :, 0], model.degrees_of_freedom(), location, np.exp(log_scale))
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
    (part,) = imputer.deployed_parts()
    np.testing.assert_allclose(run(part.network, tables[1], 64), imputer.transform(tables[1]), rtol=1e-4)


def test_constant_column(tables):
    x = np.column_stack([tables[1], np.full(500, 7.0)])
    x[5, 5] = np.nan
    imputed = Imputer(**{**QUICK, "epochs": 30}).fit_transform(x)
    assert imputed[5, 5] == pytest.approx(7.0, abs=0.5)

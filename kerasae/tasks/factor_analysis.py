"""Factor analysis of incomplete rows: the linear model that the imputer starts from."""

import numpy as np

# Numbers of factors tried, rows that are enough, rounds of expectation and maximisation, the prior's weight, the
# least variance of noise, and the share of observed entries that is held out to choose the number of factors.
_RANKS = (1, 2, 3, 4, 5, 6, 8, 10)
_FACTOR_ROWS = 2000
_ROUNDS = 60
_PRIOR = 3.0
_LEAST_NOISE = 0.01
_HELD_OUT = 0.15


def fit_factors(x, latent_dim, seed):
    """The factor analysis that predicts held-out entries of rows with NaN best: loadings `(columns, factors)`, mean, noise's variances."""
    rng = np.random.default_rng(seed)
    x = x[rng.permutation(len(x))[:_FACTOR_ROWS]].astype("float64")
    observed = (~np.isnan(x)).astype("float64")
    x = np.nan_to_num(x)
    held_out = (observed > 0) & (rng.random(observed.shape) < _HELD_OUT)
    errors = {}
    for rank in _RANKS:
        if rank == 1 or rank <= min(latent_dim, x.shape[1] - 1):
            loadings, mean, noise = _factor_analysis(x * ~held_out, observed * ~held_out, rank)
            z, _ = _factor_scores(x * ~held_out, observed * ~held_out, loadings, mean, noise)
            errors[rank] = np.square(x - mean - z @ loadings.T)[held_out].sum()
    return _factor_analysis(x, observed, min(errors, key=errors.get))


def _factor_scores(x, observed, loadings, mean, noise):
    """Means `(n, factors)` and covariances of the factors, given what is observed."""
    rank = loadings.shape[1]
    squares = (loadings[:, :, None] * loadings[:, None, :]).reshape(-1, rank * rank)
    covariances = np.linalg.inv(np.eye(rank) + ((observed / noise) @ squares).reshape(-1, rank, rank))
    moments = (observed * (x - mean) / noise) @ loadings
    return (covariances @ moments[..., None])[..., 0], covariances


def _factor_analysis(x, observed, rank):
    """Fits by expectation maximisation; x, `(n, columns)`, is 0 where `observed` is."""
    columns = x.shape[1]
    # The start: principal axes of the covariances of pairs of columns.
    values, vectors = np.linalg.eigh(x.T @ x / np.maximum(observed.T @ observed, 1))
    loadings = vectors[:, ::-1][:, :rank] * np.sqrt(np.maximum(values[::-1][:rank], 0.01))
    mean, noise = np.zeros(columns), np.full(columns, 0.3)
    prior = _PRIOR * np.diag([1.0] * rank + [1e-3])
    counts, squares = observed.sum(axis=0), np.square(x).sum(axis=0)
    for _ in range(_ROUNDS):
        z, covariances = _factor_scores(x, observed, loadings, mean, noise)
        # Each column's regression on [z, 1], with the moments of z's posterior.
        z = np.column_stack([z, np.ones(len(z))])
        moments = z[:, :, None] * z[:, None, :]
        moments[:, :rank, :rank] += covariances
        moments = (observed.T @ moments.reshape(len(z), -1)).reshape(columns, rank + 1, rank + 1)
        products = x.T @ z
        slopes = np.linalg.solve(moments + prior * noise[:, None, None], products[..., None])[..., 0]
        residuals = squares - 2 * (slopes * products).sum(axis=1) + np.einsum("ij,ijk,ik->i", slopes, moments, slopes)
        noise = np.maximum((residuals + 0.1 * _PRIOR) / (counts + 0.1 * _PRIOR), _LEAST_NOISE)
        loadings, mean = slopes[:, :rank], slopes[:, rank]
    # Turned so that a complete row's factors are independent.
    _, axes = np.linalg.eigh((loadings / noise[:, None]).T @ loadings)
    return loadings @ axes[:, ::-1], mean, noise

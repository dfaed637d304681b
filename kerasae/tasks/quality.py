"""How good samples are, compared with real examples."""

import numpy as np

from kerasae import checks
from kerasae.models import Autoencoder
from kerasae.tasks.generation import sample

_ROWS_AT_ONCE = 1024


def sample_quality(model, x_test, x_train=None, prior=None, num_samples=None, num_features=64, num_neighbors=5, seed=0):
    """How good samples are, measured by comparing them with test data, without a pretrained network or a human judge.

    Both are projected onto the first `num_features` principal components of training data. With means m and covariances C:

    - `frechet_distance`: `||m_s - m_t||^2 + tr(C_s + C_t - 2 (C_s C_t)^(1/2))` of samples s and test data t, in squared units of the data:
      0 for the same mean and covariance. The Fréchet inception distance uses a trained network's features: the two are not comparable.
    - The others use balls: that of a test example reaches to its `num_neighbors`-th nearest neighbour among the test examples, that of a
      sample among the samples. `precision`: the share of samples that lie in the ball of any test example (do they look real?). `recall`:
      the share of test examples in any sample's ball (is every kind there?). `density`: the number of test balls that a sample lies in,
      divided by `num_neighbors`, mean over samples (may exceed 1; an outlier among the test examples, with its large ball, raises it less
      than precision). `coverage`: the share of test examples whose ball holds a sample.

    All depend on the number of samples, so compare results only between equal numbers. The best to hope for is not 1 but what other real
    data get: pass training images as `model`. What the principal components don't show, such as sharpness beyond them, is not measured.

    Args:
        model: kerasae model, from which `sample(model, num_samples, prior, seed)` draws; or an array of samples, (n, *input_shape).
        x_test: real examples that the model was not trained on, (m, *input_shape), more than `num_neighbors`.
        x_train: real examples that the principal components are fitted to. Default: `x_test`.
        prior: as in `sample`.
        num_samples: number of samples to draw from a model. Default: as many as `x_test` holds.
        num_features: largest number of principal components. Default 64.
        num_neighbors: which neighbour a ball reaches to. Default 5.
        seed: seed of the samples.

    Returns:
        `{"frechet_distance", "precision", "recall", "density", "coverage"}`, floats.

    Raises:
        ValueError: if shapes differ, or there are too few examples.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=4)
    model.compile("adam")
    model.fit(x_train, epochs=2)
    quality = kerasae.tasks.sample_quality(model, x_test, x_train)
    ```

    Reference:
        Heusel et al. 2017, equation 6 (the distance); Kynkäänniemi et al. 2019, equations 1 and 2 (precision, recall); Naeem et al. 2020,
        "Reliable Fidelity and Diversity Metrics for Generative Models", equations 3 and 4 (density, coverage; k = 5).
    """
    from sklearn.decomposition import PCA
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    num_neighbors = checks.positive_int(num_neighbors, "num_neighbors")
    num_features = checks.positive_int(num_features, "num_features")
    x_test = checks.array(x_test, name="x_test")
    x_train = x_test if x_train is None else checks.array(x_train, x_test.shape[1:], name="x_train")
    if isinstance(model, Autoencoder):
        samples = sample(model, len(x_test) if num_samples is None else num_samples, prior, seed)
    else:
        samples = model
    samples = checks.array(samples, x_test.shape[1:], name="samples")
    for name, examples in (("x_test", x_test), ("samples", samples)):
        if len(examples) <= num_neighbors:
            raise ValueError(
                f"`{name}` must hold more than `num_neighbors` = {num_neighbors} examples. Received: {len(examples)}"
            )
    flat_train = x_train.reshape(len(x_train), -1).astype("float64")
    pca = PCA(min(num_features, *flat_train.shape), svd_solver="full" if len(x_train) < 1000 else "covariance_eigh")
    pca.fit(flat_train)
    real, fake = (pca.transform(e.reshape(len(e), -1).astype("float64")) for e in (x_test, samples))

    def nearest(points):
        return NearestNeighbors(n_neighbors=num_neighbors, algorithm="brute").fit(points)

    # (n,): the distance to the k-th neighbour, not counting the point itself.
    real_radii = nearest(real).kneighbors()[0][:, -1]
    fake_radii = nearest(fake).kneighbors()[0][:, -1]
    in_real_balls, covered, recalled = (
        np.empty(len(fake), "int64"),
        np.zeros(len(real), bool),
        np.zeros(len(real), bool),
    )
    for start in range(0, len(fake), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances = pairwise_distances(fake[rows], real)
        inside = distances <= real_radii
        in_real_balls[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        recalled |= (distances <= fake_radii[rows, None]).any(axis=0)
    return {
        "frechet_distance": frechet_distance(real, fake),
        "precision": float((in_real_balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(in_real_balls.mean() / num_neighbors),
        "coverage": float(covered.mean()),
    }


def frechet_distance(a, b):
    """`||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`: the distance between two Gaussians with the means and covariances of two sets.

    Args:
        a, b: features, (n, features) and (m, features), at least 2 rows each.

    Returns:
        float of at least 0, in squared units of the features.

    Raises:
        ValueError: if the two have different numbers of features, or too few rows.

    Example:

    ```python
    distance = kerasae.tasks.frechet_distance(np.zeros((5, 3)), np.ones((5, 3)))  # 3.0
    ```

    Reference:
        Dowson and Landau 1982; Heusel et al. 2017, equation 6.
    """
    a = checks.array(a, (None,), name="a").astype("float64")
    b = checks.array(b, a.shape[1:], name="b").astype("float64")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"A covariance needs at least 2 rows. Received: {len(a)} and {len(b)}")
    c_a, c_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    # C_a C_b has the same eigenvalues as the symmetric C_a^(1/2) C_b C_a^(1/2), where rounding can't make them complex.
    values, vectors = np.linalg.eigh(c_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c_b @ root), 0)).sum()
    distance = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(c_a) + np.trace(c_b) - 2 * cross
    return float(max(distance, 0))

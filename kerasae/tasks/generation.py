"""Generation: sampling, interpolation, traversal, a fitted prior of the codes, and how good samples are."""

import copy

import numpy as np

from kerasae import checks
from kerasae.models import Autoencoder, VariationalAutoencoder

INTERPOLATIONS = ("linear", "spherical")


def fit_prior(model, x, num_components=10, seed=0, max_iter=200):
    """A mixture of Gaussians fitted to the codes of training data: what to sample codes from.

    Any autoencoder can generate with it, and a variational one better where the codes that its decoder was trained on, taken all
    together, are not N(0, I). The codes are f(x), of a variational model draws from q(z|x), one an example. The mixture has full
    covariances and is fitted by expectation maximisation.

    Args:
        model: trained kerasae model.
        x: training examples, (n, *input_shape), at least as many as components.
        num_components: at least 1. Default 10.
        seed: of the draws and the mixture's start.
        max_iter: most iterations of expectation maximisation.

    Returns:
        A fitted `sklearn.mixture.GaussianMixture` of codes, flat, (n, latent_dim).

    Raises:
        ValueError: on examples that the model does not take, or fewer than components.

    Example:

    ```python
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=4)
    model.compile("adam")
    model.fit(x_train, epochs=2)
    prior = kerasae.tasks.fit_prior(model, x_train)
    images = kerasae.tasks.sample(model, 16, prior=prior)
    ```

    Reference:
        Ghosh et al. 2020, "From Variational to Deterministic Autoencoders", section 4, "ex-post density estimation", with their
        ten components.
    """
    from sklearn.mixture import GaussianMixture

    _check_model(model)
    num_components = checks.positive_int(num_components, "num_components")
    x = checks.array(x, model.encoder.inputs[0].shape[1:])
    if len(x) < num_components:
        raise ValueError(f"`x` must hold at least {num_components} examples, as many as components. Received: {len(x)}")
    codes = _posterior_sample(model, x, seed) if isinstance(model, VariationalAutoencoder) else model.encode(x)
    codes = codes.reshape(len(codes), -1).astype("float64")
    return GaussianMixture(num_components, random_state=seed, max_iter=max_iter, reg_covar=1e-6 * codes.var()).fit(
        codes
    )


def sample(model, num_samples, prior=None, seed=None):
    """New examples: the decoder's answer to codes drawn from a prior.

    Args:
        model: trained kerasae model.
        num_samples: at least 1.
        prior: what has `sample(n)` as scikit-learn's mixtures have, such as `fit_prior` gives; or None, for a variational model: N(0, I).
        seed: int, for the same samples every time. It takes the place of the prior's own `random_state`.

    Returns:
        NumPy, (num_samples, *input_shape): means of p(x|z), not draws from it.

    Raises:
        ValueError: without a prior, on a model that is not variational.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=4)
    model.compile("adam")
    model.fit(x_train, epochs=2)
    images = kerasae.tasks.sample(model, 16, seed=0)
    ```
    """
    _check_model(model)
    num_samples = checks.positive_int(num_samples, "num_samples")
    if prior is None:
        if not isinstance(model, VariationalAutoencoder):
            raise ValueError(
                f"`model` is a {type(model).__name__}, whose codes have no distribution to draw from. Fit one: "
                "prior=kerasae.tasks.fit_prior(model, x_train)."
            )
        return model.sample(num_samples, seed=seed)
    if seed is not None:
        prior = copy.copy(prior)  # the caller's keeps its own state
        prior.random_state = seed
    codes, _ = prior.sample(num_samples)
    # scikit-learn draws component after component.
    codes = np.random.default_rng(seed).permutation(codes)
    return model.decode(codes.astype("float32").reshape(num_samples, *model.decoder.inputs[0].shape[1:]))


def interpolate(model, a, b, steps=8, method="linear"):
    """The way from one example to another through the codes.

    Linear: `z_t = (1 - t) z_a + t z_b`. Spherical: `z_t = (sin((1 - t) w) z_a + sin(t w) z_b) / sin(w)` with w the angle between the two
    codes, which keeps the length that codes of many dimensions have under N(0, I), where the straight way leads through shorter ones;
    (nearly) parallel codes fall back to the linear way. t goes from 0 to 1 in even steps, both ends included.

    Args:
        model: trained kerasae model.
        a, b: two examples of the model's input shape, without a batch.
        steps: number of images, ends included, at least 2. Default 8.
        method: `"linear"` (default) or `"spherical"`.

    Returns:
        NumPy, (steps, *input_shape); the first and the last are the reconstructions of a and b.

    Raises:
        ValueError: on other shapes or methods.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=4)
    images = kerasae.tasks.interpolate(model, x_test[0], x_test[1], steps=5)
    ```

    Reference:
        Spherical: White 2016, "Sampling Generative Networks", section 2.1 (Shoemake's slerp).
    """
    _check_model(model)
    steps = checks.positive_int(steps, "steps")
    if steps < 2:
        raise ValueError(f"`steps` must be at least 2: both ends are included. Received: {steps}")
    checks.choice(method, "method", INTERPOLATIONS)
    z_a, z_b = (_code(model, example, name) for example, name in ((a, "a"), (b, "b")))
    t = np.linspace(0, 1, steps).reshape(-1, *[1] * z_a.ndim)
    weights = 1 - t, t
    if method == "spherical":
        lengths = np.linalg.norm(z_a), np.linalg.norm(z_b)
        cosine = np.sum(z_a * z_b) / max(lengths[0] * lengths[1], np.finfo("float64").tiny)
        angle = np.arccos(np.clip(cosine, -1, 1))
        # Opposite codes span no plane to turn in.
        if np.sin(angle) > 1e-4:
            weights = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return model.decode((weights[0] * z_a + weights[1] * z_b).astype("float32"))


def traverse(model, x, latent, values=None):
    """What one latent does: an example's reconstruction as that latent takes other values, all others kept.

    Args:
        model: trained kerasae model.
        x: one example of the model's input shape, without a batch.
        latent: index of the latent in the flat code; negative ones count from the end.
        values: what it takes, in the code's units. Default: 9 even steps from -3 to 3, the range of N(0, 1).

    Returns:
        NumPy, (len(values), *input_shape).

    Raises:
        ValueError: on another shape, no such latent, or values that are not finite.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=4)
    images = kerasae.tasks.traverse(model, x_test[0], latent=2, values=[-2, 0, 2])
    ```
    """
    _check_model(model)
    values = checks.array(np.linspace(-3, 3, 9) if values is None else values, (), name="values")
    z = _code(model, x, "x")
    if isinstance(latent, bool) or not isinstance(latent, (int, np.integer)) or not -z.size <= latent < z.size:
        raise ValueError(f"`latent` must be a whole number from {-z.size} to {z.size - 1}. Received: {latent!r}")
    codes = np.repeat(z.reshape(1, -1), len(values), axis=0)
    codes[:, latent] = values
    return model.decode(codes.reshape(-1, *z.shape).astype("float32"))


def sample_quality(model, x_test, x_train=None, prior=None, num_samples=None, num_features=64, num_neighbors=5, seed=0):
    """How good samples are, computed by comparing them with test data: no pretrained network, no eye.

    Both are compared as features: the first `num_features` principal components of training data. With means m and covariances C:

    - `frechet_distance`: `||m_s - m_t||^2 + tr(C_s + C_t - 2 (C_s C_t)^(1/2))` of samples s and test data t, in squared units of the data:
      0 for the same mean and covariance. The Fréchet inception distance is this in a trained network's features: not comparable.
    - with `B(y)` the ball around y up to its `num_neighbors`-th nearest neighbour among its own kind: `precision`, the share of samples
      that lie in the ball of any test example (are they real?); `recall`, the share of test examples in any sample's ball (is everything
      there?); `density`, the mean over samples of the number of test balls they lie in, by `num_neighbors` (may exceed 1; one odd test
      example with a large ball does not raise it as it raises precision); `coverage`, the share of test examples whose ball holds a sample.

    All depend on how many samples there are, so only figures of equal numbers compare. The best to hope for is not 1 but what other real
    data get: pass training images as `model`. Features are linear, so what principal components don't show, such as sharpness beyond them,
    is not measured.

    Args:
        model: kerasae model that `sample(model, num_samples, prior, seed)` draws from; or an array of samples, (n, *input_shape).
        x_test: real examples that the model was not trained on, (m, *input_shape), more than `num_neighbors`.
        x_train: real examples that the features are fitted on. Default: `x_test`.
        prior: as in `sample`.
        num_samples: to draw from a model. Default: as many as `x_test`.
        num_features: at most; default 64.
        num_neighbors: default 5.
        seed: of the samples.

    Returns:
        `{"frechet_distance", "precision", "recall", "density", "coverage"}`, floats.

    Raises:
        ValueError: where shapes differ, or there are too few examples.

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
                f"There must be more than `num_neighbors` = {num_neighbors} {name}. Received: {len(examples)}"
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
    """`||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`: the distance of two Gaussians with the means and covariances of two sets.

    Args:
        a, b: features, (n, features) and (m, features), at least 2 rows each.

    Returns:
        float of at least 0, in squared units of the features.

    Raises:
        ValueError: where the two have not as many features, or are too few.

    Example:

    ```python
    from kerasae.tasks.generation import frechet_distance

    distance = frechet_distance(np.zeros((5, 3)), np.ones((5, 3)))  # 3.0
    ```

    Reference:
        Dowson and Landau 1982; Heusel et al. 2017, equation 6.
    """
    a = checks.array(a, (None,), name="a").astype("float64")
    b = checks.array(b, a.shape[1:], name="b").astype("float64")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"A covariance needs at least 2 rows. Received: {len(a)} and {len(b)}")
    c_a, c_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    # C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), which rounding does not make complex.
    values, vectors = np.linalg.eigh(c_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c_b @ root), 0)).sum()
    distance = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(c_a) + np.trace(c_b) - 2 * cross
    return float(max(distance, 0))


_ROWS_AT_ONCE = 1024


def _check_model(model):
    if not isinstance(model, Autoencoder):
        raise ValueError(f"`model` must be a kerasae model. Received: {model!r}")


def _code(model, example, name):
    shape = model.encoder.inputs[0].shape[1:]
    if not checks.shapes_match(shape, np.shape(example)):
        raise ValueError(
            f"`{name}` must be one example of shape {shape}, without a batch. Received shape: {np.shape(example)}"
        )
    return model.encode(np.asarray(example)[None])[0].astype("float64")


def _posterior_sample(model, x, seed):
    mean, log_variance = model.encoder.predict(x, batch_size=256, verbose=0)
    noise = np.random.default_rng(seed).standard_normal(mean.shape)
    return mean + np.exp(0.5 * log_variance) * noise

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

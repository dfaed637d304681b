"""Generation: sampling, interpolation, traversal, fitting a prior to codes, and measuring how good samples are."""

import copy

import numpy as np

from kerasae import checks
from kerasae.models import Autoencoder

INTERPOLATIONS = ("linear", "spherical")


def fit_prior(model, x, num_components=10, seed=0, max_iter=200):
    """Fits a mixture of Gaussians to the codes of training data, from which new codes can be drawn.

    With it any autoencoder can generate, and a variational one generates better where the codes that its decoder was trained on, taken
    together, are not N(0, I). The codes are f(x); for a variational model they are draws from q(z|x), one per example. The mixture has full
    covariances and is fitted by expectation maximisation.

    Args:
        model: trained kerasae model.
        x: training examples, (n, *input_shape), at least `num_components`.
        num_components: number of Gaussians, at least 1. Default 10.
        seed: seed of the draws and of the mixture's initial state.
        max_iter: largest number of iterations of expectation maximisation.

    Returns:
        A fitted `sklearn.mixture.GaussianMixture` of flat codes, (n, latent_dim).

    Raises:
        ValueError: on examples that the model does not take, or fewer than `num_components`.

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
    x = checks.array(x, model.encoder.inputs[0].shape[1:], missing=model.takes_missing)
    if len(x) < num_components:
        raise ValueError(f"`x` must hold at least {num_components} examples, one per component. Received: {len(x)}")
    codes = model.encode(x) if model.posterior is None else _posterior_sample(model, x, seed)
    codes = codes.reshape(len(codes), -1).astype("float64")
    return GaussianMixture(num_components, random_state=seed, max_iter=max_iter, reg_covar=1e-6 * codes.var()).fit(
        codes
    )


def sample(model, num_samples, prior=None, seed=None):
    """New examples: the decoder's output for codes drawn from a prior.

    Args:
        model: trained kerasae model.
        num_samples: at least 1.
        prior: an object with the method `sample(n)` of scikit-learn's mixtures, such as `fit_prior` returns. Default: N(0, I), for
            variational models only.
        seed: int, for the same samples every time. It replaces the prior's own `random_state`.

    Returns:
        NumPy, (num_samples, *input_shape): means of p(x|z), not draws from it.

    Raises:
        ValueError: if there is no prior and the model is not variational.

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
        if model.prior is None:
            raise ValueError(
                f"`model` is a {type(model).__name__}, whose codes have no distribution to draw from. Fit one: "
                "prior=kerasae.tasks.fit_prior(model, x_train)."
            )
        return model.sample(num_samples, seed=seed)
    if seed is not None:
        prior = copy.copy(prior)  # the caller's keeps its own state
        prior.random_state = seed
    codes, _ = prior.sample(num_samples)
    # scikit-learn returns the draws sorted by component.
    codes = np.random.default_rng(seed).permutation(codes)
    return model.decode(codes.astype("float32").reshape(num_samples, *model.decoder.inputs[0].shape[1:]))


def interpolate(model, a, b, steps=8, method="linear"):
    """Images on the way from one example to another, decoded from codes between theirs.

    Linear: `z_t = (1 - t) z_a + t z_b`. Spherical: `z_t = (sin((1 - t) w) z_a + sin(t w) z_b) / sin(w)` with w the angle between the two
    codes. Under N(0, I) nearly all codes of many dimensions have about the same length; the spherical path keeps it, whereas the straight
    line leads through shorter codes. For (nearly) parallel codes the spherical path falls back to the line. t goes from 0 to 1 in even
    steps, both ends included.

    Args:
        model: trained kerasae model.
        a, b: two examples of the model's input shape, without a batch.
        steps: number of images, ends included, at least 2. Default 8.
        method: `"linear"` (default) or `"spherical"`.

    Returns:
        NumPy, (steps, *input_shape); the first and last images are the reconstructions of a and b.

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
        # Parallel and opposite codes span no plane in which to turn.
        if np.sin(angle) > 1e-4:
            weights = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return model.decode((weights[0] * z_a + weights[1] * z_b).astype("float32"))


def traverse(model, x, latent, values=None):
    """What one latent does: an example's reconstructions as that latent takes other values while all others are kept.

    Args:
        model: trained kerasae model.
        x: one example of the model's input shape, without a batch.
        latent: index of the latent in the flat code; negative ones count from the end.
        values: the values it takes, in the code's units. Default: 9 even steps from -3 to 3, the range of N(0, 1).

    Returns:
        NumPy, (len(values), *input_shape).

    Raises:
        ValueError: on another shape, a latent that doesn't exist, or values that are not finite.

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
    parameters = model.encoder.predict(x, batch_size=256, verbose=0)
    noise = np.random.default_rng(seed).standard_normal(parameters[0].shape)
    return np.asarray(model.posterior.sample_from(parameters, noise.astype("float32")))

"""The diagnosis of a model."""

import numpy as np

from kerasae import checks
from kerasae.metrics.arrays import flat, train_and_test
from kerasae.metrics.reconstruction import squared_error


def diagnose(model, x_train, x_test, noise_stddev=0.25, seed=0):
    """Does an autoencoder know its data, or does it copy? The three failings of the textbook, measured.

    With `e(a, b)` the squared error of reconstructions, summed over features, mean over examples, and `v` the test set's total variance:

    - `test_error`, `e(x, g(f(x))) / v`: the share of test data that is lost: 0 for a perfect copy, 1 for the mean.
    - `train_error`: the same of training data.
    - `noise_error`: the same of noise that the data never held: test data with every feature shuffled among the examples, which keeps each
      feature's values and breaks the connections between features. A model that has learned the data can't reconstruct it; one that copies
      can.
    - `noise_passed`, `||g(f(x + n)) - g(f(x))||^2 / ||n||^2` for Gaussian n: 1 if noise is copied, near 0 if it is removed.

    Args:
        model: autoencoder with `predict`.
        x_train: training data, `(n, ...)`, of which as many are used as there are test data.
        x_test: data that the model was not trained on.
        noise_stddev: of n, above 0, in units of the data's standard deviation over all features. Default 0.25.
        seed: of the noise.

    Returns:
        `{"latent_dim", "num_features", "test_error", "train_error", "noise_error", "noise_passed", "copies", "memorizes", "failings"}`.
        `copies`: `noise_error` below 0.1 and at most three times `test_error`, or both below 0.01: noise is reconstructed nearly as well as
        data. `memorizes`: `test_error` more than twice `train_error`, and above 0.05: capacity beyond what the data pins down. `failings`:
        sentences, one for each that is found; empty for a sound model.

    Raises:
        ValueError: if the model does not take the data, or test data don't vary.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=64)
    model.compile("adam")
    model.fit(x_train, epochs=2)
    kerasae.metrics.diagnose(model, x_train, x_test)["failings"]
    ```

    Reference:
        The failings: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 14.2. The measures and their limits are ours.
    """
    train_and_test(x_train, x_test, ("x_train", "x_test"))
    x_train, x_test = np.asarray(x_train), np.asarray(x_test)
    noise_stddev = checks.real_number(noise_stddev, "noise_stddev", minimum=0, exclusive=True)
    random = np.random.default_rng(seed)
    rows = flat(x_test).astype("float32")
    variance = float(rows.var(axis=0, dtype="float64").sum())
    if variance == 0:
        raise ValueError("`x_test` doesn't vary: all its examples are the same.")
    shuffled = random.permuted(rows, axis=0).reshape(x_test.shape)
    noise = (noise_stddev * rows.std() * random.standard_normal(x_test.shape)).astype("float32")

    def reconstruct(x):
        return np.asarray(model.predict(x, batch_size=256, verbose=0))

    reconstruction = reconstruct(x_test)
    shown = x_train[: len(x_test)]
    # Noise may leave the range that a cross-entropy needs of its targets; as an input any value will do.
    passed = reconstruct(x_test + noise) - reconstruction
    result = {
        "latent_dim": int(np.prod(model.encoder.outputs[0].shape[1:])),
        "num_features": rows.shape[1],
        "test_error": squared_error(x_test, reconstruction) / variance,
        "train_error": squared_error(shown, reconstruct(shown)) / variance,
        "noise_error": squared_error(shuffled, reconstruct(shuffled)) / variance,
        "noise_passed": float(np.square(passed, dtype="float64").sum() / np.square(noise, dtype="float64").sum()),
    }
    result["copies"] = result["noise_error"] < max(0.01, min(0.1, 3 * result["test_error"]))
    result["memorizes"] = result["test_error"] > max(0.05, 2 * result["train_error"])
    result["failings"] = _failings(result)
    return result


def _failings(result):
    latent_dim, num_features = result["latent_dim"], result["num_features"]
    found = []
    if result["copies"]:
        size = "a code as large as the input" if latent_dim == num_features else "a code larger than the input"
        if latent_dim < num_features:
            size = "too much capacity behind its bottleneck"
        found.append(
            f"It copies, with {size} ({latent_dim} for {num_features} features): of noise that the data never held, it loses "
            f"{result['noise_error']:.1%}, of data {result['test_error']:.1%}. A smaller code or a regulariser (denoising, sparse, "
            "contractive) makes it learn the data."
        )
    if result["memorizes"]:
        found.append(
            f"It memorises its training data, with too much capacity behind a code of {latent_dim}: it loses {result['train_error']:.1%} "
            f"of them, and {result['test_error']:.1%} of test data. Fewer or smaller layers, more data, fewer epochs or a regulariser help."
        )
    return found

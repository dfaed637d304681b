"""What is reported about a fitted model: NumPy arrays in, plain numbers out.

Errors follow one reduction: summed over an example's features, mean over examples. Arrays have any
rank of at least 2 with the batch first; codes of a higher rank (convolutional ones) are flattened.
"""

import logging

import numpy as np

from kerasae import checks

_logger = logging.getLogger(__name__)

# 4 million float64 numbers, 32 MiB: large enough to be fast, small beside any dataset.
_CHUNK_ELEMENTS = 2**22


def squared_error(x, reconstruction):
    """Squared reconstruction error per example.

    ``mean_i sum_j (x_ij - reconstruction_ij)^2`` over examples i and features j, accumulated in
    float64 whatever the inputs' type, in chunks, so that memory stays bounded.

    Args:
        x: Array of shape `(batch, ...)`.
        reconstruction: Array of the same shape.

    Returns:
        Float >= 0, in squared units of `x`.

    Raises:
        ValueError: If the shapes differ, the rank is below 2, or an array is empty or not finite.

    Example:

    >>> squared_error([[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]])
    1.5

    Reference:
        Hinton and Salakhutdinov, 2006, "average squared reconstruction error". Keras's `"mse"`
        divides it by the number of features.
    """
    return float(_squared_errors(*_pair(x, reconstruction)).mean())


def psnr(x, reconstruction, data_range=1.0):
    """Peak signal-to-noise ratio, mean over images.

    ``mean_i 10 log10(data_range^2 / mse_i)``, where ``mse_i`` is the mean squared error over image
    i's pixels and channels. An image reproduced exactly has an infinite ratio, so one such image
    makes the mean infinite. Nothing is clipped.

    Args:
        x: Clean images of shape `(batch, ...)`.
        reconstruction: Array of the same shape.
        data_range: Positive float, the pixels' largest possible value minus their smallest.
            Default 1.0, for pixels in [0, 1]; 255 for 8-bit ones.

    Returns:
        Float in decibels, higher is better; `inf` if any image is identical to its reconstruction.

    Raises:
        ValueError: If the shapes differ, the rank is below 2, an array is empty or not finite,
            `data_range` is not positive, or `x` spreads over more than `data_range`.

    Example:

    >>> round(psnr([[0.0, 1.0]], [[0.1, 0.9]]), 6)
    20.0

    Reference:
        Huynh-Thu and Ghanbari, 2008, equation 1, per image rather than per video frame.
    """
    x, reconstruction = _pair(x, reconstruction)
    data_range = checks.real_number(data_range, "data_range", minimum=0, exclusive=True)
    spread = float(x.max()) - float(x.min())
    if spread > data_range * (1 + 1e-6):
        raise ValueError(
            f"`data_range` is {data_range:g}, but `x` spreads over {spread:g}. Pass the pixels' "
            "largest possible value minus their smallest, such as 255 for 8-bit images."
        )
    mse = _squared_errors(x, reconstruction) / (x.size / len(x))
    with np.errstate(divide="ignore"):
        return float((20 * np.log10(data_range) - 10 * np.log10(mse)).mean())


def pca_error(x_train, x_test, num_components):
    """Squared error of principal component analysis: the baseline of every autoencoder.

    The components are fitted on `x_train`; `squared_error` is measured on `x_test`, without
    clipping the reconstruction to the pixels' range. No linear autoencoder with as many codes has a
    lower error on its own training data. The solver is exact and deterministic.

    Args:
        x_train: Array of shape `(num_train, ...)`.
        x_test: Array of shape `(num_test, ...)`, with the same features.
        num_components: Integer from 1 to the smaller of `num_train` and the number of features.

    Returns:
        Float >= 0, in squared units of `x_test`. On MNIST with pixels in [0, 1]: 43.64 for 2
        components, 13.87 for 30.

    Raises:
        ValueError: If the features differ, an array is empty or not finite, or `num_components` is
            out of bounds.

    Example:

    >>> pca_error([[0.0, 0.0], [2.0, 0.0]], [[1.0, 3.0]], num_components=1)
    9.0

    Reference:
        Hinton and Salakhutdinov, 2006, whose figures compare with PCA in this unit.
    """
    from sklearn.decomposition import PCA

    x_train, x_test = _split(x_train, x_test, ("x_train", "x_test"))
    num_components = _at_most(num_components, "num_components", min(x_train.shape), "examples or of features")
    # The covariance is the small matrix when examples outnumber features. Both solvers are exact;
    # scikit-learn's default may choose a randomised one.
    solver = "covariance_eigh" if len(x_train) >= x_train.shape[1] else "full"
    pca = PCA(num_components, svd_solver=solver).fit(x_train.astype("float64"))
    return squared_error(x_test, pca.inverse_transform(pca.transform(x_test.astype("float64"))))


def linear_probe_error(z_train, y_train, z_test, y_test, C=1.0, max_iter=1000, validation=10_000):
    """Test error of a linear classifier on frozen codes.

    Protocol: each code is standardised with the training set's mean and standard deviation (a
    constant code becomes zero), then multinomial logistic regression is fitted on the training
    codes by L-BFGS, minimising ``sum_i cross_entropy_i + ||W||^2 / (2 C)``, with the bias not
    penalised. Nothing is chosen on the test set. scikit-learn warns if `max_iter` ends the fit.
    float64 codes are computed in float64, all others in float32.

    Args:
        z_train: Codes of shape `(num_train, ...)`.
        y_train: Class labels of shape `(num_train,)`, at least 2 distinct.
        z_test: Codes of shape `(num_test, ...)`, with the same features.
        y_test: Class labels of shape `(num_test,)`.
        C: Positive float, the inverse of the regularisation strength, as in scikit-learn. Default
            1.0. Or several: the one with the smallest error on the last training codes, when fitted
            on those before, is then fitted on all.
        max_iter: Positive integer, the bound on L-BFGS iterations. Default 1000.
        validation: Positive integer, how many training codes `C` is chosen on where there are
            several. Default 10,000.

    Returns:
        Float, the test error in percent, 0 to 100.

    Raises:
        ValueError: If shapes do not match, an array is empty or not finite, there are fewer than 2
            classes, or `C` or `max_iter` is out of bounds.

    Example:

    >>> linear_probe_error([[-1.0], [-2.0], [1.0], [2.0]], [0, 0, 1, 1], [[-3.0], [3.0]], [0, 0])
    50.0

    Reference:
        Alain and Bengio, 2016; "logistic regression on the code" in Makhzani and Frey, 2013,
        section 4.3, which does not say how codes are scaled or regularised.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    candidates = [checks.real_number(c, "C", minimum=0, exclusive=True) for c in np.atleast_1d(C).tolist()]
    if not candidates:
        raise ValueError("`C` must be a positive number, or several. Received none.")
    max_iter = checks.positive_int(max_iter, "max_iter")
    z_train, y_train, z_test, y_test = _labelled(z_train, y_train, z_test, y_test)
    if len(np.unique(y_train)) < 2:
        raise ValueError(f"`y_train` must hold at least 2 classes to separate. Received only: {y_train[0].item()!r}.")

    def error(C, z_fit, y_fit, z_held_out, y_held_out):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
        return 100 * (1 - float(probe.fit(z_fit, y_fit).score(z_held_out, y_held_out)))

    if len(candidates) > 1:
        last = checks.positive_int(validation, "validation")
        if last >= len(z_train):
            raise ValueError(
                f"`validation` must be less than the {len(z_train)} training codes, to fit on the others. Received: {last}"
            )
        split = z_train[:-last], y_train[:-last], z_train[-last:], y_train[-last:]
        errors = {C: error(C, *split) for C in candidates}
        candidates = [min(errors, key=errors.get)]
        _logger.info("probe: C = %g of %s (error %% on the last %d training codes)", *candidates, errors, last)
    return error(*candidates, z_train, y_train, z_test, y_test)


def knn_accuracy(z_train, y_train, z_test, y_test, num_neighbors=5):
    """Accuracy of a k-nearest-neighbours classifier on codes as they are.

    Each test code takes the commonest label among its `num_neighbors` nearest training codes by
    Euclidean distance, found exactly; the smallest label wins a tie. Codes are not rescaled, so the
    figure also judges their scale.

    Args:
        z_train: Codes of shape `(num_train, ...)`.
        y_train: Class labels of shape `(num_train,)`.
        z_test: Codes of shape `(num_test, ...)`, with the same features.
        y_test: Class labels of shape `(num_test,)`.
        num_neighbors: Integer from 1 to `num_train`. Default 5.

    Returns:
        Float, the fraction of test codes classified correctly, 0 to 1.

    Raises:
        ValueError: If shapes do not match, an array is empty or not finite, or `num_neighbors` is
            out of bounds.

    Example:

    >>> knn_accuracy([[0.0], [1.0], [9.0]], ["a", "a", "b"], [[0.5], [8.0]], ["a", "b"], 1)
    1.0

    Reference:
        Cover and Hart, 1967.
    """
    from sklearn.neighbors import KNeighborsClassifier

    z_train, y_train, z_test, y_test = _labelled(z_train, y_train, z_test, y_test)
    num_neighbors = _at_most(num_neighbors, "num_neighbors", len(z_train), "training examples")
    classifier = KNeighborsClassifier(num_neighbors, algorithm="brute")
    return float(classifier.fit(z_train, y_train).score(z_test, y_test))


def principal_angles(a, b):
    """Principal angles between the column spaces of two matrices.

    ``cos(angle_k)`` is the k-th singular value of ``Q_a^T Q_b``, with ``Q`` an orthonormal basis of
    each column space. All are 0 when one space contains the other, up to rounding: expect 2e-6
    degrees. Columns that depend on others add no angle.

    Args:
        a: Array of shape `(features, n)`, one direction a column. For a Keras `Dense` decoder pass
            the kernel's transpose, for scikit-learn's PCA `components_.T`.
        b: Array of shape `(features, m)`.

    Returns:
        float64 array of degrees in [0, 90], sorted descending, so that `[0]` is the largest. Its
        length is the smaller of the two ranks.

    Raises:
        ValueError: If either is not a matrix, is empty, zero or not finite, or the numbers of
            features differ.

    Example:

    >>> principal_angles([[1.0], [0.0]], [[1.0], [1.0]]).round(6).tolist()
    [45.0]

    Reference:
        Knyazev and Argentati, 2002, algorithm 3.1 (`scipy.linalg.subspace_angles`).
    """
    from scipy.linalg import subspace_angles

    a, b = _batch(a, "a"), _batch(b, "b")
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(
            "`a` and `b` must be matrices with as many rows, `(features, n)` and `(features, m)`. "
            f"Received shapes: {a.shape} and {b.shape}."
        )
    for name, matrix in (("a", a), ("b", b)):
        if not matrix.any():
            raise ValueError(f"`{name}` is all zeros: its columns span no space.")
    # Sorted anew: where SciPy changes from cosines to sines, rounding can break its order.
    return np.degrees(np.sort(subspace_angles(a.astype("float64"), b.astype("float64")))[::-1])


def active_units(codes, threshold=0.01):
    """Number of code units that vary over the data, and so can carry information.

    A unit u is active when ``Var_x(codes_u(x)) > threshold``. For a variational autoencoder pass the
    posterior means `z_mean`: a latent that has collapsed to the prior has the same mean for every x,
    and the default threshold lies between the two groups of latents that the reference found. For a
    k-sparse code pass `threshold=0`: a unit that is never selected is constantly zero, so its
    variance is exactly 0, while one that is selected even once counts, however rarely. The dead
    units are the rest, `latent_dim` less this.

    Args:
        codes: Array of shape `(batch, ...)`, at least 2 examples; every entry of an example is one
            unit.
        threshold: Float >= 0, in squared units of the codes. Default 0.01.

    Returns:
        Integer from 0 to the number of units.

    Raises:
        ValueError: If there are fewer than 2 examples, `codes` is not finite, or `threshold` is
            negative.

    Example:

    >>> active_units([[0.0, 3.0, 0.1], [0.0, -3.0, 0.0]])
    1
    >>> active_units([[0.0, 3.0, 0.1], [0.0, -3.0, 0.0]], threshold=0)
    2

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, section 5.2: the statistic and its threshold.
    """
    codes = _flat(_batch(codes, "codes"))
    if len(codes) < 2:
        raise ValueError(f"`codes` must hold at least 2 examples to vary over. Received shape: {codes.shape}.")
    threshold = checks.real_number(threshold, "threshold", minimum=0)
    # Var(z) = Var(z - z_0). Shifted so, a constant unit's variance is exactly 0, not rounding error.
    shifted = codes.astype("float64") - codes[0].astype("float64")
    return int((shifted.var(axis=0) > threshold).sum())


def diagnose(model, x_train, x_test, noise_stddev=0.25, seed=0):
    """Does an autoencoder know its data, or does it copy? The three failings of the textbook, measured.

    With `e(a, b)` the squared error of reconstructions, summed over features, mean over examples, and `v` the test set's total variance:

    - `test_error`, `e(x, g(f(x))) / v`: what is lost of test data: 0 for a perfect copy, 1 for the mean.
    - `train_error`: the same of training data.
    - `noise_error`: the same of noise that the data never held: test data with every feature shuffled among the examples, which keeps each
      feature's values and breaks what connects them. A model that has learned the data can't reconstruct it; one that copies can.
    - `noise_passed`, `||g(f(x + n)) - g(f(x))||^2 / ||n||^2` for Gaussian n: 1 where noise is copied, near 0 where it is removed.

    Args:
        model: autoencoder with `predict`.
        x_train: training data, `(n, ...)`; as many as test data are used.
        x_test: data that the model was not trained on.
        noise_stddev: of n, above 0, in units of the data's standard deviation over all features. Default 0.25.
        seed: of the noise.

    Returns:
        `{"latent_dim", "num_features", "test_error", "train_error", "noise_error", "noise_passed", "copies", "memorizes", "failings"}`.
        `copies`: `noise_error` below 0.1 and at most three times `test_error`, or both below 0.01: noise is reconstructed nearly as well as
        data. `memorizes`: `test_error` more than twice `train_error`, and above 0.05: capacity beyond what the data pins down. `failings`:
        sentences, one for each that is found; empty for a sound model.

    Raises:
        ValueError: as the model, on data that it does not take; where test data don't vary.

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
    _split(x_train, x_test, ("x_train", "x_test"))
    x_train, x_test = np.asarray(x_train), np.asarray(x_test)
    noise_stddev = checks.real_number(noise_stddev, "noise_stddev", minimum=0, exclusive=True)
    random = np.random.default_rng(seed)
    flat = _flat(x_test).astype("float32")
    variance = float(flat.var(axis=0, dtype="float64").sum())
    if variance == 0:
        raise ValueError("`x_test` doesn't vary: all its examples are the same.")
    shuffled = random.permuted(flat, axis=0).reshape(x_test.shape)
    noise = (noise_stddev * flat.std() * random.standard_normal(x_test.shape)).astype("float32")

    def reconstruct(x):
        return np.asarray(model.predict(x, batch_size=256, verbose=0))

    reconstruction = reconstruct(x_test)
    shown = x_train[: len(x_test)]
    # Noise may leave the range that a cross-entropy needs of its targets; as an input any value will do.
    passed = reconstruct(x_test + noise) - reconstruction
    result = {
        "latent_dim": int(np.prod(model.encoder.outputs[0].shape[1:])),
        "num_features": flat.shape[1],
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
        size = (
            "a code as large as the input"
            if latent_dim == num_features
            else "a code larger than the input"
            if latent_dim > num_features
            else "too much capacity behind its bottleneck"
        )
        found.append(
            f"It copies, with {size} ({latent_dim} for {num_features} features): of noise that the data never held it loses "
            f"{result['noise_error']:.1%}, of data {result['test_error']:.1%}. A smaller code or a regulariser (denoising, sparse, "
            "contractive) makes it learn the data."
        )
    if result["memorizes"]:
        found.append(
            f"It memorises its training data, with too much capacity behind a code of {latent_dim}: it loses "
            f"{result['train_error']:.1%} of them, and {result['test_error']:.1%} of test data. Fewer or smaller layers, more data, fewer "
            "epochs or a regulariser help."
        )
    return found


def _batch(array, name):
    array = checks.array(array, name=name)
    if array.ndim < 2:
        raise ValueError(f"`{name}` must have the batch first and a rank of at least 2. Received shape: {array.shape}")
    return array


def _flat(array):
    return array.reshape(len(array), -1)


def _pair(x, reconstruction):
    x, reconstruction = _batch(x, "x"), _batch(reconstruction, "reconstruction")
    if x.shape != reconstruction.shape:
        raise ValueError(
            f"`x` and `reconstruction` must have the same shape. Received: {x.shape} and {reconstruction.shape}."
        )
    return x, reconstruction


def _squared_errors(x, reconstruction):
    """Sum over features, float64 of shape `(batch,)`."""
    step = max(1, _CHUNK_ELEMENTS * len(x) // x.size)
    chunks = (slice(start, start + step) for start in range(0, len(x), step))
    return np.concatenate(
        [np.square(_flat(x[rows]).astype("float64") - _flat(reconstruction[rows])).sum(axis=1) for rows in chunks]
    )


def _split(train, test, names):
    """Training and test arrays with the same features, flattened to `(num, features)`."""
    train, test = _batch(train, names[0]), _batch(test, names[1])
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same features. Received shapes: "
            f"{train.shape} and {test.shape}."
        )
    return _flat(train), _flat(test)


def _labelled(z_train, y_train, z_test, y_test):
    codes = _split(z_train, z_test, ("z_train", "z_test"))
    dtype = "float64" if any(z.dtype == "float64" for z in codes) else "float32"
    z_train, z_test = (z.astype(dtype, copy=False) for z in codes)
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    for name, y, z in (("y_train", y_train, z_train), ("y_test", y_test, z_test)):
        if y.shape != (len(z),):
            raise ValueError(
                f"`{name}` must hold one class label per code, shape ({len(z)},). Received shape: "
                f"{y.shape}. One-hot labels: pass `y.argmax(axis=1)`."
            )
    return z_train, y_train, z_test, y_test


def _at_most(value, name, maximum, of):
    value = checks.positive_int(value, name)
    if value > maximum:
        raise ValueError(f"`{name}` must be at most {maximum}, the number of {of}. Received: {value}")
    return value

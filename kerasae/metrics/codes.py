"""Measures of codes: classes that a simple classifier finds in them, the spaces they span, the units that vary."""

import logging

import numpy as np

from kerasae import checks
from kerasae.metrics.arrays import at_most, batch, flat, train_and_test

_logger = logging.getLogger(__name__)


def linear_probe_error(z_train, y_train, z_test, y_test, C=1.0, max_iter=1000, validation=10_000):
    """Test error of a linear classifier on frozen codes.

    Protocol: each unit of the code is standardised with the training set's mean and standard deviation (a constant unit becomes zero), then
    multinomial logistic regression is fitted on the training codes by L-BFGS, minimising ``sum_i cross_entropy_i + ||W||^2 / (2 C)``, with
    the bias not penalised. Nothing is chosen on the test set. scikit-learn warns if `max_iter` ends the fit. float64 codes are computed in
    float64, all others in float32.

    Args:
        z_train: Codes of shape `(num_train, ...)`.
        y_train: Class labels of shape `(num_train,)`, at least 2 distinct.
        z_test: Codes of shape `(num_test, ...)`, with the same features.
        y_test: Class labels of shape `(num_test,)`.
        C: Positive float, the inverse of the regularisation strength, as in scikit-learn. Default 1.0. Or several: the one with the
            smallest error on the last training codes, when fitted on those before, is then fitted on all.
        max_iter: Positive integer, the bound on L-BFGS iterations. Default 1000.
        validation: Positive integer, the number of training codes to choose among several `C` on. Default 10,000.

    Returns:
        Float, the test error in percent, 0 to 100.

    Raises:
        ValueError: If shapes do not match, an array is empty or not finite, there are fewer than 2 classes, or `C` or `max_iter` is out
            of bounds.

    Example:

    >>> linear_probe_error([[-1.0], [-2.0], [1.0], [2.0]], [0, 0, 1, 1], [[-3.0], [3.0]], [0, 0])
    50.0

    Reference:
        Alain and Bengio, 2016; "logistic regression on the code" in Makhzani and Frey, 2013, section 4.3, which does not say how codes
        are scaled or regularised.
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

    Each test code takes the commonest label among its `num_neighbors` nearest training codes by Euclidean distance, found exactly; the
    smallest label wins a tie. Codes are not rescaled, so the result also judges their scale.

    Args:
        z_train, y_train, z_test, y_test: As in `linear_probe_error`.
        num_neighbors: Integer from 1 to `num_train`. Default 5.

    Returns:
        Float, the fraction of test codes classified correctly, 0 to 1.

    Raises:
        ValueError: If shapes do not match, an array is empty or not finite, or `num_neighbors` is out of bounds.

    Example:

    >>> knn_accuracy([[0.0], [1.0], [9.0]], ["a", "a", "b"], [[0.5], [8.0]], ["a", "b"], 1)
    1.0

    Reference:
        Cover and Hart, 1967.
    """
    from sklearn.neighbors import KNeighborsClassifier

    z_train, y_train, z_test, y_test = _labelled(z_train, y_train, z_test, y_test)
    num_neighbors = at_most(num_neighbors, "num_neighbors", len(z_train), "training examples")
    classifier = KNeighborsClassifier(num_neighbors, algorithm="brute")
    return float(classifier.fit(z_train, y_train).score(z_test, y_test))


def principal_angles(a, b):
    """Principal angles between the column spaces of two matrices.

    ``cos(angle_k)`` is the k-th singular value of ``Q_a^T Q_b``, with ``Q`` an orthonormal basis of each column space. All are 0 when one
    space contains the other, up to rounding: expect 2e-6 degrees. Columns that depend on others add no angle.

    Args:
        a: Array of shape `(features, n)`, one direction per column. For a Keras `Dense` decoder pass the kernel's transpose, for
            scikit-learn's PCA `components_.T`.
        b: Array of shape `(features, m)`.

    Returns:
        float64 array of degrees in [0, 90], sorted descending, so that `[0]` is the largest. Its length is the smaller of the two ranks.

    Raises:
        ValueError: If either is not a matrix, is empty, zero or not finite, or the numbers of features differ.

    Example:

    >>> principal_angles([[1.0], [0.0]], [[1.0], [1.0]]).round(6).tolist()
    [45.0]

    Reference:
        Knyazev and Argentati, 2002, algorithm 3.1 (`scipy.linalg.subspace_angles`).
    """
    from scipy.linalg import subspace_angles

    a, b = batch(a, "a"), batch(b, "b")
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(
            f"`a` and `b` must be matrices with the same number of rows, the features. Received shapes: {a.shape} and {b.shape}."
        )
    for name, matrix in (("a", a), ("b", b)):
        if not matrix.any():
            raise ValueError(f"`{name}` is all zeros: its columns span no space.")
    # Sorted anew: where SciPy changes from cosines to sines, rounding can break its order.
    return np.degrees(np.sort(subspace_angles(a.astype("float64"), b.astype("float64")))[::-1])


def active_units(codes, threshold=0.01):
    """Number of code units that vary over the data, and so can carry information.

    A unit u is active when ``Var_x(codes_u(x)) > threshold``. For a variational autoencoder pass the posterior means `z_mean`: a latent
    that has collapsed to the prior has the same mean for every x, and the default threshold lies between the two groups of latents that
    the reference found. For a k-sparse code pass `threshold=0`: the variance of a unit that is never selected is exactly 0, while one that
    is selected even once counts. The dead units are the rest, `latent_dim` less this.

    Args:
        codes: Array of shape `(batch, ...)`, at least 2 examples; every entry of an example is one unit.
        threshold: Float >= 0, in squared units of the codes. Default 0.01.

    Returns:
        Integer from 0 to the number of units.

    Raises:
        ValueError: If there are fewer than 2 examples, `codes` is not finite, or `threshold` is negative.

    Example:

    >>> active_units([[0.0, 3.0, 0.1], [0.0, -3.0, 0.0]])
    1
    >>> active_units([[0.0, 3.0, 0.1], [0.0, -3.0, 0.0]], threshold=0)
    2

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, section 5.2: the statistic and its threshold.
    """
    codes = flat(batch(codes, "codes"))
    if len(codes) < 2:
        raise ValueError(f"`codes` must hold at least 2 examples to vary over. Received shape: {codes.shape}.")
    threshold = checks.real_number(threshold, "threshold", minimum=0)
    # Var(z) = Var(z - z_0). Shifted so, a constant unit's variance is exactly 0, not rounding error.
    shifted = codes.astype("float64") - codes[0].astype("float64")
    return int((shifted.var(axis=0) > threshold).sum())


def _labelled(z_train, y_train, z_test, y_test):
    codes = train_and_test(z_train, z_test, ("z_train", "z_test"))
    dtype = "float64" if any(z.dtype == "float64" for z in codes) else "float32"
    z_train, z_test = (z.astype(dtype, copy=False) for z in codes)
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    for name, y, z in (("y_train", y_train, z_train), ("y_test", y_test, z_test)):
        if y.shape != (len(z),):
            raise ValueError(
                f"`{name}` must hold one class label per code, shape ({len(z)},). Received shape: {y.shape}. One-hot labels: pass "
                "`y.argmax(axis=1)`."
            )
    return z_train, y_train, z_test, y_test

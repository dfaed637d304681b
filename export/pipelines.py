"""Scikit-learn pipelines around an estimator, as one estimator that takes the pipeline's raw rows."""

import copy

import numpy as np
from sklearn.utils.validation import check_is_fitted

from kerasae import tasks


def estimator_of(pipeline):
    """The last step of a fitted pipeline, with the scalers before it folded into its own scaling.

    With the scaler's (x - m) / s and the estimator's (x - c) / k, both are (x - (m + s c)) / (s k).

    Args:
        pipeline: fitted `sklearn.pipeline.Pipeline` of scalers and an estimator of `kerasae.tasks`.

    Returns:
        A copy of the estimator.

    Raises:
        ValueError: on a step of another kind, and on an estimator whose answers are in the units of what it takes.
    """
    *steps, (name, last) = pipeline.steps
    if not hasattr(last, "functions"):
        raise ValueError(
            f"The last step of a pipeline must be a fitted estimator of kerasae.tasks. {name!r} is a {type(last).__name__}: export the "
            "steps up to kerasae's (pipeline[:-1]), and what follows with its own tool."
        )
    check_is_fitted(last)
    if isinstance(last, (tasks.Imputer, tasks.Denoiser)) and steps:
        raise ValueError(
            f"{name!r} answers in the units of the steps before it, not in those of the data. Fit {type(last).__name__} to raw data, "
            "which it scales itself, and export it alone."
        )
    estimator = copy.copy(last)
    for name, step in reversed(steps):
        if step is None or step == "passthrough":
            continue
        offset, scale = _affine(name, step)
        estimator.center_, estimator.scale_ = offset + scale * estimator.center_, scale * estimator.scale_
        estimator.scaling = estimator.scaling or "standard"  # any, so that it scales at all
        # The rows are what this step was fitted to, in its columns' names and digits.
        for attribute in ("feature_names_in_", "input_dtype_"):
            vars(estimator).pop(attribute, None)
        if hasattr(step, "feature_names_in_"):
            estimator.feature_names_in_ = step.feature_names_in_
    return estimator


def _affine(name, step):
    """`(offset, scale)` of a fitted scaler, which gives `(x - offset) / scale`."""
    check_is_fitted(step)
    kind = type(step).__name__
    if type(step).__module__.startswith("sklearn.preprocessing.") and not getattr(step, "clip", False):
        if kind == "MinMaxScaler":
            return -step.min_ / step.scale_, 1 / step.scale_
        if kind in ("StandardScaler", "RobustScaler", "MaxAbsScaler"):
            offset = getattr(step, "center_" if kind == "RobustScaler" else "mean_", None)
            is_centred = {"StandardScaler": "with_mean", "RobustScaler": "with_centering"}.get(kind)
            offset = offset if is_centred and getattr(step, is_centred) else None
            ones = np.ones(step.n_features_in_)
            return 0 * ones if offset is None else offset, ones if step.scale_ is None else step.scale_
    raise ValueError(
        "Before an estimator of kerasae.tasks, a pipeline that is exported may have StandardScaler, MinMaxScaler, RobustScaler and "
        f"MaxAbsScaler, without clipping. {name!r} is {step!r}: apply it to the data first, and export the rest."
    )

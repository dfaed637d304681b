"""Measures of a fitted model: NumPy arrays in, plain numbers out.

Errors follow one reduction: summed over an example's features, mean over examples. Arrays have any rank of at least 2 with the batch first;
codes of a higher rank (convolutional ones) are flattened.
"""

from kerasae.metrics.codes import active_units, knn_accuracy, linear_probe_error, principal_angles
from kerasae.metrics.diagnosis import diagnose
from kerasae.metrics.reconstruction import pca_error, psnr, squared_error

__all__ = [
    "active_units",
    "diagnose",
    "knn_accuracy",
    "linear_probe_error",
    "pca_error",
    "principal_angles",
    "psnr",
    "squared_error",
]

"""Data that every test shares."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def digits():
    """Real handwritten digits: `(x_train, x_test)`, `(n, 8, 8, 1)`, in [0, 1]."""
    import kerasae

    return kerasae.data.load("digits")


@pytest.fixture
def rng():
    return np.random.default_rng(0)

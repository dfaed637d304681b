"""The table of families that the contract tests run over: adding a row tests a family."""

import keras
import pytest
from keras import layers

from kerasae import builders

INPUT_SHAPE = (8, 8, 1)
LATENT_DIM = 3


def small(builder, network="dense", **kwargs):
    """A function that builds a small model of a family for 8x8 images."""
    hidden_units = (16, 8) if network == "dense" else (4, 8)
    return lambda: builder(INPUT_SHAPE, LATENT_DIM, hidden_units, network, **kwargs)


def own_networks():
    """A user's own encoder and decoder, with layers whose behaviour differs between training and inference."""
    encoder = keras.Sequential(
        [
            keras.Input(INPUT_SHAPE),
            layers.Flatten(),
            layers.Dense(16, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-3)),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Dropout(0.2),
            layers.Dense(LATENT_DIM),
        ]
    )
    decoder = keras.Sequential(
        [keras.Input((LATENT_DIM,)), layers.Dense(64, activation="sigmoid"), layers.Reshape(INPUT_SHAPE)]
    )
    return builders.undercomplete(encoder=encoder, decoder=decoder, loss="binary_crossentropy")


# One row of each class stands for it in CI where a test is of the mechanism they share; the others run with `-m slow`.
FAMILIES = {
    "undercomplete-dense": small(builders.undercomplete),
    "undercomplete-conv": small(builders.undercomplete, "conv"),
    "undercomplete-crossentropy": small(builders.undercomplete, loss="binary_crossentropy"),
    "undercomplete-own": own_networks,
    "linear": lambda: builders.linear(INPUT_SHAPE, LATENT_DIM),
    "deep-tied": small(builders.deep, tied=True),
    "denoising-gaussian": small(builders.denoising),
    "denoising-masking": small(builders.denoising, corruption="masking"),
    "denoising-conv": small(builders.denoising, "conv", corruption="salt_and_pepper"),
    "k-sparse-dense": small(builders.k_sparse, k=2, alpha=1.5),
    "k-sparse-conv": small(builders.k_sparse, "conv", k=1, by="value"),
    "sparse-kl": small(builders.sparse),
    "sparse-batch": small(
        builders.sparse, penalty="kl", average="batch", layer_weights={"hidden_1": 0.5}, activation="sigmoid"
    ),
    "sparse-l1-conv": small(builders.sparse, "conv", penalty="l1"),
    "contractive-dense": small(builders.contractive),
    "contractive-conv": small(builders.contractive, "conv"),
    "contractive-stochastic": small(builders.contractive, jacobian="stochastic"),
    "variational-dense": small(builders.variational),
    "variational-conv": small(builders.variational, "conv", posterior="isotropic"),
    "variational-gaussian": small(builders.variational, likelihood="gaussian", variance=0.1),
    "variational-learned": small(builders.variational, likelihood="gaussian", variance="learned"),
    "variational-predicted": small(builders.variational, "conv", likelihood="gaussian", variance="predicted"),
}

_FIRST_OF_A_CLASS = {
    "undercomplete-dense",
    "undercomplete-own",
    "denoising-gaussian",
    "k-sparse-dense",
    "sparse-kl",
    "contractive-dense",
    "variational-dense",
}
EVERY_ROW = list(FAMILIES)
EVERY_CLASS = [name if name in _FIRST_OF_A_CLASS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]

"""The table of families that the contract tests run over: adding a row tests a family."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasae import builders, models
from kerasae.layers import MaskingCorruption

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


def several_inputs(form=list, num_codes=1, activation=None):
    """`(encoder, decoder)`: the encoder takes an image and, besides, a label and measurements."""
    inputs = {
        "image": keras.Input(INPUT_SHAPE, name="image"),
        "label": keras.Input((), dtype="int32", name="label"),
        "ages": keras.Input((2,), name="ages"),
    }
    image, label, ages = inputs.values()
    hidden = layers.Concatenate()([layers.Flatten()(image), layers.Embedding(10, 4)(label), ages])
    hidden = layers.Dense(16, "relu", name="hidden")(hidden)
    codes = [layers.Dense(LATENT_DIM, activation)(hidden) for _ in range(num_codes)]
    encoder = keras.Model(inputs if form is dict else list(inputs.values()), codes if num_codes > 1 else codes[0])
    decoder = keras.Sequential(
        [
            keras.Input((LATENT_DIM,)),
            layers.Dense(64),
            layers.Reshape(INPUT_SHAPE),
            layers.Activation("sigmoid"),
        ]
    )
    return encoder, decoder


def with_side_inputs(x):
    """`[images, labels, ages]`, as the families below take them."""
    random = np.random.default_rng(0)
    return [x, random.integers(0, 10, len(x)), random.random((len(x), 2))]


def k_sparse_of_several_inputs():
    encoder, decoder = several_inputs(dict)
    return builders.k_sparse(encoder=encoder, decoder=decoder, k=2)


# Encoders with side inputs; "dict": Keras sorts its inputs by name, the ages before the image.
SEVERAL_INPUTS = {
    "undercomplete": lambda: models.Autoencoder(*several_inputs()),
    "undercomplete-dict": lambda: models.Autoencoder(*several_inputs(dict), loss="binary_crossentropy"),
    "k-sparse-dict": k_sparse_of_several_inputs,
    "sparse-dict": lambda: models.SparseAutoencoder(*several_inputs(dict, activation="sigmoid")),
    "denoising": lambda: models.DenoisingAutoencoder(*several_inputs(), corruption=MaskingCorruption(0.3)),
    "variational-dict": lambda: models.VariationalAutoencoder(*several_inputs(dict, num_codes=2)),
}

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
    "rate_distortion-dense": small(builders.rate_distortion),
    "incomplete-dense": small(builders.incomplete, k=5),
    "incomplete-conv": small(builders.incomplete, "conv", k=5),
    "pixels-dense": small(builders.pixels, radius=2, ink_units=(16,), value_units=(32,)),
}

CLASSES = {
    "undercomplete-dense",
    "undercomplete-own",
    "denoising-gaussian",
    "k-sparse-dense",
    "sparse-kl",
    "contractive-dense",
    "variational-dense",
    "rate_distortion-dense",
    "incomplete-dense",
    "pixels-dense",
}


def fast(chosen, rows):
    """Parameters of a test: the chosen ones of `rows` run in CI, the others with `-m slow`."""
    return [row if row in chosen else pytest.param(row, marks=pytest.mark.slow) for row in rows]


EVERY_ROW = list(FAMILIES)
EVERY_CLASS = fast(CLASSES, FAMILIES)
# For what the step and its base do alike for every family: one row for each way in which a step differs, with layers that have a state and
# regularisers, second derivatives, noise and several outputs, several samples of each example.
EVERY_STEP = fast({"undercomplete-own", "contractive-dense", "variational-dense", "incomplete-dense"}, FAMILIES)
# For what Keras and the base do whatever the step: layers that have a state; noise.
STATE_AND_NOISE = fast({"undercomplete-own", "variational-dense"}, FAMILIES)

"""Networks of any shape give back the shape they took."""

import numpy as np
import pytest

from kerasae import builders, networks


@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (32, 32, 3), (7, 5, 2), (1, 9, 1), (13, 28, 4), (2, 2, 1), (1, 1, 1)], ids=str
)
@pytest.mark.parametrize("hidden_units", [(3,), (3, 4), (2, 3, 4)], ids=str)
def test_convolutional_networks_give_back_any_image_shape(shape, hidden_units):
    encoder = networks.encoder(shape, {"z": 2}, hidden_units, "conv")
    decoder = networks.decoder(shape, 2, hidden_units, "conv")
    assert encoder.output_shape == (None, 2)
    assert decoder(encoder(np.zeros((3, *shape), "float32"))).shape == (3, *shape)


@pytest.mark.parametrize("shape", [(1,), (17,), (28, 28), (5, 4, 3, 2)], ids=str)
def test_dense_networks_take_any_shape(shape):
    encoder = networks.encoder(shape, {"z": 2}, (8,))
    decoder = networks.decoder(shape, 2, (8,))
    assert decoder(encoder(np.zeros((3, *shape), "float32"))).shape == (3, *shape)


def test_an_int_is_the_length_of_a_vector():
    assert builders.undercomplete(20, 2, (8,)).encoder.input_shape == (None, 20)


def test_the_decoder_mirrors_the_encoder():
    model = builders.undercomplete(20, 2, (16, 8))
    assert [w.shape for w in model.encoder.weights[::2]] == [(20, 16), (16, 8), (8, 2)]
    assert [w.shape for w in model.decoder.weights[::2]] == [(2, 8), (8, 16), (16, 20)]


def test_no_hidden_layers():
    assert len(builders.undercomplete(20, 2, ()).weights) == 4


def test_ports_have_the_fields_names():
    model = builders.variational((8, 8, 1), 2)
    assert [tensor.name for tensor in (*model.encoder.inputs, *model.decoder.inputs)] == ["x", "z"]
    assert model.encoder.output_names == ["z_mean", "z_log_var"]
    assert model.decoder.output_names == ["reconstruction"]

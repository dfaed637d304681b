"""Networks of any shape give back the shape they took; kinds of networks; which encoder and decoder fit together."""

import math
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import layers

from kerasae import builders, networks, tasks
from kerasae.cli.app import cli
from kerasae.registry import NETWORKS
from kerasae.runs import recipes, training


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


# -- Kinds ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def residual():
    """A kind of a user's own: dense layers, each added to what it takes."""

    @networks.register("residual")
    class Residual(networks.Network):
        axes = ("steps", "channels")
        hint = "Add an axis for the channels."
        hidden_units = (12, 12)
        needs_hidden_units = True

        def encode(self, x, hidden_units, activation):
            hidden = layers.Dense(hidden_units[0])(layers.Flatten()(x))
            for units in hidden_units:
                hidden = layers.Add()([hidden, layers.Dense(units, activation)(hidden)])
            return hidden

        def decode(self, z, output_shape, hidden_units, activation, tied=False):
            hidden = layers.Dense(hidden_units[-1])(z)
            for units in reversed(hidden_units):
                hidden = layers.Add()([hidden, layers.Dense(units, activation)(hidden)])
            return hidden, lambda hidden, name: layers.Reshape(output_shape)(
                layers.Dense(math.prod(output_shape), name=name)(hidden)
            )

    yield Residual
    NETWORKS.remove("residual")


def test_kinds_say_what_they_take_and_give():
    dense, conv = networks.kinds()["dense"], networks.kinds()["conv"]
    assert (dense.axes, dense.code, dense.hidden_units) == (None, "vector", (512, 256))
    assert (conv.axes, conv.code, conv.hidden_units) == (("height", "width", "channels"), "vector", (32, 64))


def test_names_of_kinds_are_read_without_importing_them():
    ours = {name for name, kind in networks.kinds().items() if type(kind).__module__.startswith("kerasae.")}
    assert set(NETWORKS.declared()) == ours


def test_a_kind_of_a_user_s_own_in_builders_and_estimators(residual):
    model = builders.variational((8, 3), 2, network="residual", likelihood="gaussian")
    model.compile(optimizer="adam")
    x = np.random.default_rng(0).normal(size=(40, 8, 3)).astype("float32")
    losses = model.fit(x, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert sum(isinstance(layer, layers.Add) for layer in model.encoder.layers) == 2
    # A table of single values per step: the axis of the channels is added.
    reducer = tasks.Reducer(network="residual", hidden_units=(6,), epochs=1, random_state=0).fit(x[..., 0])
    assert reducer.model_.encoder.input_shape == (None, 8, 1)
    assert reducer.transform(x[..., 0]).shape == (40, 2)


def test_a_recipe_imports_the_module_that_registers_a_kind(tmp_path, monkeypatch):
    (tmp_path / "kinds_of_mine.py").write_text(
        "import kerasae\nfrom kerasae.networks.dense import Dense\n\n\n"
        "@kerasae.networks.register('renamed')\nclass Renamed(Dense):\n    hidden_units = (7,)\n"
    )
    recipe = recipes.Recipe(
        modules=["kinds_of_mine"],
        family="undercomplete",
        description="",
        data={"name": "digits"},
        model={"latent_dim": 2, "network": "renamed"},
        training={"epochs": 1},
        measure=[],
    )
    with pytest.raises(ValueError, match="module 'kinds_of_mine' can't be imported.*PYTHONPATH"):
        recipes.build(recipe, (8, 8, 1), 10)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert recipes.build(recipe, (8, 8, 1), 10).encoder.get_layer("hidden_1").units == 7
    finally:
        NETWORKS.remove("renamed")
    assert "modules" not in recipes.to_toml(recipe.model_copy(update={"modules": None}))


def test_a_run_s_modules_are_imported_where_its_user_says_so(tmp_path, monkeypatch):
    (tmp_path / "layers_of_mine.py").write_text(
        "import keras\nimport kerasae\nfrom kerasae.networks.dense import Dense\n\n\n"
        "@keras.saving.register_keras_serializable('mine')\nclass Doubled(keras.layers.Layer):\n"
        "    def call(self, x):\n        return 2 * x\n\n\n"
        "@kerasae.networks.register('doubled')\nclass DoubledDense(Dense):\n"
        "    def encode(self, *args):\n        return Doubled()(super().encode(*args))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipes.Recipe(
        modules=["layers_of_mine"],
        family="undercomplete",
        description="",
        data={"name": "digits"},
        model={"latent_dim": 2, "hidden_units": [4], "network": "doubled"},
        training={"epochs": 1},
        measure=[{"metric": "squared_error"}],
    )
    try:
        training.run(recipe, tmp_path / "run", verbose=0)
        # As in another process: nothing of it is known.
        NETWORKS.remove("doubled")
        del sys.modules["layers_of_mine"]
        expected = keras.saving.get_custom_objects().pop("mine>Doubled")
        result = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run")])
        assert "kerasae --module layers_of_mine ..." in str(result.exception)
        assert "layers_of_mine" not in sys.modules
        result = CliRunner().invoke(cli, ["--module", "layers_of_mine", "evaluate", str(tmp_path / "run")])
        assert result.exit_code == 0, result.output
        assert "squared_error" in result.output
        assert keras.saving.get_custom_objects()["mine>Doubled"] is not expected
    finally:
        NETWORKS.remove("doubled")
        keras.saving.get_custom_objects().pop("mine>Doubled", None)


def test_what_a_kind_does_not_take_is_refused(residual):
    with pytest.raises(
        ValueError, match=r'"residual"` needs `input_shape` \(steps, channels\). Received: \(20,\). Add an axis'
    ):
        builders.undercomplete(20, 2, network="residual")
    with pytest.raises(ValueError, match=r'`tied` weights need `network="dense"`. Received: \'residual\''):
        builders.deep((8, 3), 2, (6,), network="residual", tied=True)
    with pytest.raises(ValueError, match="`network` must be one of .*'residual'.*Did you mean 'residual'"):
        builders.undercomplete((8, 3), 2, network="resdual")


def test_a_name_is_given_once(residual):
    networks.register("residual")(residual)  # the same class again, as in a notebook
    with pytest.raises(ValueError, match="There is a network 'dense' already, of kerasae.networks.dense.Dense"):
        networks.register("dense")(residual)
    with pytest.raises(ValueError, match="must be a subclass"):
        networks.register("function")(lambda x: x)
    with pytest.raises(ValueError, match="must be a Python name"):
        networks.register("my kind")(residual)


def test_a_code_that_is_a_sequence():
    class PerStep(networks.Network):
        axes = ("steps", "channels")
        code = "sequence"

        def encode(self, x, hidden_units, activation):
            return layers.Dense(hidden_units[0], activation)(x)

        def code_shape(self, input_shape, size, hidden_units):
            return (input_shape[0], size)

        def decode(self, z, output_shape, hidden_units, activation, tied=False):
            return z, lambda hidden, name: layers.Dense(output_shape[-1], name=name)(hidden)

    networks.register("per_step")(PerStep)
    try:
        model = builders.undercomplete((5, 3), 2, (4,), network="per_step")
    finally:
        NETWORKS.remove("per_step")
    assert model.encoder.output_shape == model.decoder.input_shape == (None, 5, 2)
    assert model.decoder.output_shape == (None, 5, 3)


# -- Pairs ---------------------------------------------------------------------------------------------------------------------------------


def conditional_pair(name="label", shape=(), dtype="int32", form=list):
    """An encoder with a side input `label`, and a decoder that takes a condition besides the code."""
    x, label = keras.Input((4,), name="x"), keras.Input((), dtype="int32", name="label")
    hidden = layers.Concatenate()([x, layers.Embedding(10, 2)(label)])
    encoder = keras.Model([x, label], layers.Dense(2)(hidden))
    z, condition = keras.Input((2,), name="z"), keras.Input(shape, dtype=dtype, name=name)
    flat = layers.Flatten()(layers.Embedding(10, 2)(condition) if dtype == "int32" else condition)
    reconstruction = layers.Dense(4)(layers.Concatenate()([z, flat]))
    # Keras sorts a dict's inputs by name, "label" before "z".
    return encoder, keras.Model([z, condition] if form is list else {"z": z, name: condition}, reconstruction)


@pytest.mark.parametrize("form", [list, dict])
def test_a_decoder_takes_the_encoder_s_side_inputs_as_conditions(form):
    encoder, decoder = networks.check_pair(*conditional_pair(form=form))
    assert [tensor.name for tensor in encoder.inputs] == ["x", "label"]
    assert [tensor.name for tensor in decoder.inputs] == ["z", "label"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"name": "month"}, r"takes 'month' besides the code. .* side inputs: \['label'\]"),
        ({"shape": (3,)}, r"condition 'label' must be .* shape \(None,\) .* Received shape \(None, 3\)"),
        ({"dtype": "float32", "shape": (1,)}, "dtype int32. Received shape .* dtype float32"),
    ],
)
def test_a_condition_that_is_no_side_input_is_refused(condition, message):
    with pytest.raises(ValueError, match=message):
        networks.check_pair(*conditional_pair(**condition))


def test_a_condition_without_side_inputs_is_refused():
    encoder = builders.undercomplete(4, 2, ()).encoder
    with pytest.raises(ValueError, match="there are none"):
        networks.check_pair(encoder, conditional_pair()[1])

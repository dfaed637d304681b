"""Series: networks give back any length, padding counts for nothing, every family takes them, and they are exported."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers, ops

from kerasae import builders, export, models, networks, sequences, tasks
from kerasae.data import files
from kerasae.models import execution
from kerasae.preparation import Preparation
from kerasae.runs import recipes

KINDS = {"conv1d": (3, 4), "lstm": (5,), "gru": (5,)}
STEPS, CHANNELS = 9, 2
MASK_VALUE = -7.0
LIKELIHOODS = {
    "squared_error": lambda **options: builders.undercomplete(**options),
    "bernoulli": lambda **options: builders.variational(**options),
    "gaussian": lambda **options: builders.variational(likelihood="gaussian", variance="predicted", **options),
}


def series(lengths=(STEPS, 4, 7), seed=0):
    random = np.random.default_rng(seed)
    return [random.random((length, CHANNELS)).astype("float32") for length in lengths]


def padded(examples, steps=STEPS, value=MASK_VALUE):
    batch = np.full((len(examples), steps, CHANNELS), value, "float32")
    for row, example in zip(batch, examples, strict=True):
        row[: len(example)] = example
    return batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 1), (13, 4)], ids=str)
def test_networks_of_series_give_back_any_length(kind, shape):
    encoder = networks.encoder(shape, {"z": 2}, KINDS[kind], kind)
    decoder = networks.decoder(shape, 2, KINDS[kind], kind)
    assert encoder.output_shape == (None, 2)
    assert decoder(encoder(np.zeros((3, *shape), "float32"))).shape == (3, *shape)


def alone(model, kind, length):
    """An encoder for examples of so many steps that has the weights of the model's, without any mask."""
    heads = {name: 3 for name in model.code_names}
    encoder = networks.encoder((length, CHANNELS), heads, KINDS[kind], kind)
    weights = model.encoder.get_weights()
    encoder.set_weights([w[: own.shape[0]] for w, own in zip(weights, encoder.weights, strict=True)])
    return encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_padding_counts_for_nothing(kind, likelihood):
    keras.utils.set_random_seed(0)
    build = LIKELIHOODS[likelihood]
    model = build(
        input_shape=(STEPS, CHANNELS), latent_dim=3, hidden_units=KINDS[kind], network=kind, mask_value=MASK_VALUE
    )
    examples = series()
    x = padded(examples)
    codes, scores = model.encode(x), np.asarray(model.score(x))
    reconstructions = model.predict(x, verbose=0)
    for i, example in enumerate(examples):
        encoded = alone(model, kind, len(example))(example[None])
        code = np.asarray(model.code_of(encoded))
        np.testing.assert_allclose(codes[i], code[0], atol=1e-6)
        outputs = model.reconstruct(ops.convert_to_tensor(code), False)
        outputs = {name: output[:, : len(example)] for name, output in outputs.items()}
        padding, model.likelihood.padding = model.likelihood.padding, None
        score = model.likelihood.loss(example[None], outputs)
        model.likelihood.padding = padding
        if model.posterior is not None:
            score = score + model.posterior.kl(model.prior, encoded)
        np.testing.assert_allclose(scores[i], np.asarray(score)[0], rtol=1e-5)
        np.testing.assert_allclose(
            reconstructions[i, : len(example)], np.asarray(outputs["reconstruction"])[0], atol=1e-6
        )
        assert (reconstructions[i, len(example) :] == MASK_VALUE).all()
    # The gradient of what is summed over the batch is the sum of those of each example in a batch of its own.
    import tensorflow as tf

    def gradients(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.score(tf.constant(batch)))
        return tape.gradient(loss, model.trainable_variables)

    whole = gradients(x)
    parts = [gradients(x[i : i + 1]) for i in range(len(x))]
    for together, *each in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(together, sum(map(np.asarray, each)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_targets_padding_has_no_gradient(kind):
    """The decoder's outputs at padded steps are free."""
    import tensorflow as tf

    model = builders.undercomplete((STEPS, CHANNELS), 3, KINDS[kind], kind, mask_value=MASK_VALUE)
    x = tf.constant(padded(series()))
    outputs = tf.Variable(tf.random.normal(x.shape))
    with tf.GradientTape() as tape:
        loss = model.likelihood.loss(x, {"reconstruction": outputs})
    gradient = tape.gradient(loss, outputs).numpy()
    assert ((gradient == 0) == (x.numpy() == MASK_VALUE)).all()


def test_lists_of_series_are_padded():
    model = builders.denoising((STEPS, CHANNELS), 3, (5,), "lstm", mask_value=MASK_VALUE)
    model.compile("adam")
    examples = series()
    model.fit(examples, epochs=1, verbose=0)
    np.testing.assert_array_equal(model.encode(examples), model.encode(padded(examples)))
    assert model.evaluate(examples, verbose=0) == model.evaluate(padded(examples), verbose=0)
    with pytest.raises(ValueError, match=r"at most 9 steps. Received, in example 1: \(12, 2\)"):
        model.encode(series((3, 12)))
    with pytest.raises(ValueError, match='for series, of `network="conv1d"`'):
        builders.undercomplete((STEPS, CHANNELS), 3, mask_value=0.0)


def test_keras_losses_leave_padding_out():
    model = builders.undercomplete((STEPS, CHANNELS), 3, (5,), "lstm", mask_value=MASK_VALUE)
    model.compile("adam", loss="mse", metrics=["mae"])
    examples = series()
    logged = model.evaluate(examples, verbose=0, return_dict=True)
    given = model.predict(padded(examples), verbose=0)
    errors = np.concatenate([g[: len(e)] - e for g, e in zip(given, examples, strict=True)])
    np.testing.assert_allclose(logged["loss"], np.square(errors).mean(), rtol=1e-5)
    np.testing.assert_allclose(logged["mae"], np.abs(errors).mean(), rtol=1e-5)


def test_a_mask_of_ones_own_networks_is_honoured():
    x = keras.Input((STEPS, CHANNELS), name="x")
    hidden = layers.LSTM(5)(layers.Masking(MASK_VALUE)(x))
    encoder = keras.Model(x, layers.Dense(3)(hidden))
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(STEPS * CHANNELS), layers.Reshape((STEPS, CHANNELS))])
    model = builders.undercomplete(encoder=encoder, decoder=decoder)
    examples = series()
    errors = [
        np.square(e - g[: len(e)]).sum()
        for e, g in zip(examples, model.predict(padded(examples), verbose=0), strict=True)
    ]
    np.testing.assert_allclose(model.score(padded(examples)), errors, rtol=1e-5)


FAMILIES = [
    "contractive",
    "denoising",
    "incomplete",
    "k_sparse",
    "rate_distortion",
    "sparse",
    "undercomplete",
    "variational",
]
CHOSEN = {("incomplete", "lstm"), ("sparse", "conv1d"), ("contractive", "gru"), ("variational", "conv1d")}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(family, kind, marks=[] if (family, kind) in CHOSEN else pytest.mark.slow)
        for family in FAMILIES
        for kind in KINDS
    ],
)
def test_every_family_takes_series(family, kind, tmp_path):
    options = {"incomplete": {"k": 2}, "k_sparse": {"k": 2}}.get(family, {})
    model = getattr(builders, family)(
        (STEPS, CHANNELS), latent_dim=3, hidden_units=KINDS[kind], network=kind, **options
    )
    model.compile("adam")
    x = padded(series((STEPS,) * 4))
    loss = model.fit(x, epochs=1, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(x), model.encode(x))


def test_what_is_missing_behind_a_series_counts_for_nothing_to_a_model_of_incomplete_data():
    examples = series()
    x = padded(examples, value=np.nan)
    model = builders.incomplete((STEPS, CHANNELS), 3, (5,), "lstm", k=2)
    shorter = builders.incomplete((4, CHANNELS), 3, (5,), "lstm", k=2)
    shorter.encoder.set_weights(model.encoder.get_weights())
    np.testing.assert_allclose(model.encode(x)[1], shorter.encode(x[1:2, :4])[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_series_are_exported(kind, tmp_path):
    model = builders.variational((STEPS, CHANNELS), 3, KINDS[kind], kind, mask_value=MASK_VALUE)
    export.export(model, tmp_path / "bundle", formats=("saved_model", "onnx"), x=padded(series()))
    encoder = onnx.load(tmp_path / "bundle" / "encoder.onnx")
    operators = {node.op_type for node in encoder.graph.node}
    # Of recurrent layers, the operators that ONNX has.
    assert {"conv1d": "Conv", "lstm": "LSTM", "gru": "GRU"}[kind] in operators
    assert "Loop" not in operators


def test_padding_is_found_behind_other_layers():
    x = keras.Input((4, 1))
    encoder = keras.Model(x, layers.LSTM(2)(layers.Masking(0.5)(layers.Rescaling(0.5)(x))))
    padding = sequences.padding_of(encoder)
    np.testing.assert_array_equal(
        padding.mask(np.float32([[[2.0], [3.0], [1.0], [1.0]]])), [[True, True, False, False]]
    )
    kept = padding.keep(np.float32([[[2.0], [3.0], [1.0], [1.0]]]), np.full((1, 4, 1), 7, "float32"))
    np.testing.assert_array_equal(kept, [[[7], [7], [1], [1]]])
    assert sequences.padding_of(keras.Model(x, layers.Flatten()(x))) is None
    decoder = keras.Sequential([keras.Input((2,)), layers.Dense(4), layers.Reshape((4, 1))])
    with pytest.raises(ValueError, match="Layers stand between x and the one that makes the mask"):
        models.Autoencoder(encoder, decoder).encode([np.ones((2, 1))])


def test_what_padding_would_spoil_is_refused():
    masked = {"network": "conv1d", "hidden_units": (4,), "mask_value": -9.0}
    with pytest.raises(ValueError, match="would count padded steps"):
        builders.sparse((8, 2), 3, penalty="l1", layer_weights={"hidden_1": 1.0}, **masked)
    for options in ({"padding": "valid"}, {"kernel_size": 3, "strides": 2}):
        with pytest.raises(ValueError, match="A MaskedConv1D has"):
            sequences.MaskedConv1D(**{"filters": 4, "kernel_size": 4, **options})
    for options in ({"dropout": 0.5}, {"return_sequences": False}):
        with pytest.raises(ValueError, match=r"A CausalGRU has Keras's defaults in"):
            sequences.CausalGRU(4, **options)
    x = np.full((3, 8, 2), -9.0, "float32")
    x[:, :5] = 0.5
    assert (builders.contractive((8, 2), 3, **masked).predict(x, verbose=0)[:, 5:] == -9).all()
    with pytest.raises(ValueError, match="scaling would change it"):
        tasks.Reducer(network="lstm", model_options={"mask_value": -9.0}, epochs=1).fit(x)


def test_the_gru_is_keras_s():
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 6, 3)).astype("float32")
    ours, theirs = sequences.CausalGRU(5, return_sequences=True), layers.GRU(5, return_sequences=True)
    ours.build(x.shape), theirs.build(x.shape)
    weights = [random.normal(size=w.shape) for w in theirs.get_weights()]
    ours.set_weights(weights), theirs.set_weights(weights)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "units", "compiled"),
    [("lstm", (32,), True), ("gru", (32,), True), ("lstm", (256,), False), ("conv1d", (4,), False)],
)
def test_xla_compiles_small_recurrent_layers_alone(kind, units, compiled):
    model = builders.undercomplete((STEPS, CHANNELS), 3, units, kind)
    model.compile("adam")
    arguments = {"x": np.zeros((3200, STEPS, CHANNELS), "float32"), "epochs": 20}
    assert execution.plan(model, arguments)[0] == (compiled and not execution.tf.config.list_physical_devices("GPU"))


def test_arrays_of_three_axes_are_series_unless_they_are_bytes(tmp_path, caplog):
    x = np.random.default_rng(0).normal([[[0.0, 100.0]]], [[[1.0, 5.0]]], (30, 8, 2))
    np.save(tmp_path / "floats.npy", x)
    np.save(tmp_path / "bytes.npy", np.zeros((30, 8, 2), "uint8"))
    with caplog.at_level("INFO"):
        read = files.read(tmp_path / "floats.npy")
    assert "30 series of 8 steps and 2 channels" in caplog.text
    assert 'color="grey"' in caplog.text
    assert read.values.shape == (30, 8, 2)
    assert files.read(tmp_path / "bytes.npy").values.shape == (30, 8, 2, 1)
    assert files.read(tmp_path / "floats.npy", color="grey").values.shape == (30, 8, 2, 1)
    with pytest.raises(ValueError, match="says that .n, height, width. are images"):
        files.read(tmp_path / "floats.npy", color="rgb")
    # A model of images goes on reading images, and one of series series.
    images, series = (Preparation("array", shape) for shape in ((8, 2, 1), (8, 2)))
    assert files.read(tmp_path / "floats.npy", like=images).values.shape == (30, 8, 2, 1)
    assert files.read(tmp_path / "bytes.npy", like=series).values.shape == (30, 8, 2)


def test_each_channel_of_series_is_scaled():
    values = np.random.default_rng(0).normal([[[0.0, 1e6]]], [[[1.0, 5.0]]], (30, 8, 2))
    read = files.Files("array", values, "")
    preparation = Preparation.from_dict(Preparation.fit(read, np.arange(20)).to_dict())
    x = preparation.apply(values)
    np.testing.assert_allclose(x[:20].mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(x[:20].std((0, 1)), 1, atol=1e-6)
    np.testing.assert_allclose(preparation.invert(x), values, rtol=1e-6)
    assert "each channel scaled" in preparation.describe()
    assert recipes.with_network("undercomplete", {}, (8, 2))["network"] == "conv1d"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batch_size"), [("conv1d", None), ("lstm", 1), ("gru", 1)])
def test_litert_takes_convolutions_and_recurrent_layers_for_a_batch_of_one(kind, batch_size, tmp_path):
    pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra kerasae[litert]")
    model = builders.undercomplete((STEPS, CHANNELS), 3, KINDS[kind], kind)
    export.export(model, tmp_path / "bundle", ("litert",), batch_size=batch_size)  # compares what the files compute

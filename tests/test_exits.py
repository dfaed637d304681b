"""Keras's own ways out of the process: `model.export` and TensorFlow's converter give what `predict` gives; `.h5` is refused at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import EVERY_CLASS, FAMILIES, INPUT_SHAPE, SEVERAL_INPUTS, fast, with_side_inputs
from keras import layers

from kerasae import builders, models

ROWS = {**FAMILIES, "several-inputs": SEVERAL_INPUTS["undercomplete-dict"]}
SOME = {"variational-dense", "undercomplete-own", "several-inputs"}


@pytest.fixture(scope="module")
def x(digits):
    return digits[0][:5]


def tensors(model, x):
    """The inputs of `call`, in the encoder's types, in its order."""
    given = with_side_inputs(x) if len(model.encoder.inputs) > 1 else [x]
    return [tf.cast(part, tensor.dtype) for part, tensor in zip(given, model.encoder.inputs, strict=True)]


def predicted(model, inputs):
    return model.predict([part.numpy() for part in inputs] if len(inputs) > 1 else inputs[0].numpy(), verbose=0)


def check(answer, model, inputs):
    np.testing.assert_allclose(answer, predicted(model, inputs), rtol=0, atol=1e-5)


@pytest.fixture
def loaded(request, tmp_path):
    """A model of a row that was saved and loaded, and never called."""
    model = ROWS[request.param]()
    model.save(tmp_path / "m.keras")
    return keras.saving.load_model(tmp_path / "m.keras")


@pytest.mark.parametrize("loaded", [*EVERY_CLASS, "several-inputs"], indirect=True)
def test_saved_models_give_what_predict_gives(loaded, x, tmp_path):
    loaded.export(tmp_path / "saved", verbose=False)
    inputs = tensors(loaded, x)
    module = tf.saved_model.load(tmp_path / "saved")
    check(module.serve(inputs if len(inputs) > 1 else inputs[0]), loaded, inputs)


@pytest.mark.parametrize("loaded", fast(SOME, ROWS), indirect=True)
def test_onnx_files_give_what_predict_gives(loaded, x, tmp_path):
    from onnxruntime import InferenceSession

    loaded.export(str(tmp_path / "m.onnx"), format="onnx", verbose=False)
    session, inputs = InferenceSession(tmp_path / "m.onnx"), tensors(loaded, x)
    names = [tensor.name for tensor in loaded.encoder.inputs]
    assert [port.name for port in session.get_inputs()] == names
    feeds = dict(zip(names, [part.numpy() for part in inputs], strict=True))
    check(session.run(None, feeds)[0], loaded, inputs)


@pytest.mark.parametrize("way", ["export", "from_keras_model"])
@pytest.mark.parametrize("loaded", fast({"variational-dense"}, ROWS), indirect=True)
def test_litert_files_give_what_predict_gives(loaded, way, x, tmp_path, capfd):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra kerasae[litert]")
    if way == "export":
        loaded.export(tmp_path / "m.tflite", format="litert", verbose=False)
        content = (tmp_path / "m.tflite").read_bytes()
    else:
        content = tf.lite.TFLiteConverter.from_keras_model(loaded).convert()
    run = interpreter.Interpreter(model_content=content).get_signature_runner()
    inputs, details = tensors(loaded, x), run.get_input_details()
    # Of one input there is no name to go by.
    by_shape = {tuple(part.shape[1:]): part.numpy() for part in inputs}
    feeds = {name: by_shape[tuple(d["shape_signature"][1:])].astype(d["dtype"]) for name, d in details.items()}
    check(next(iter(run(**feeds).values())), loaded, inputs)


def test_a_model_that_was_fitted_is_exported(x, tmp_path):
    model = builders.sparse(INPUT_SHAPE, 3, hidden_units=(8,))
    model.compile("adam", metrics=["mse"])
    model.fit(x, verbose=0)
    model.export(tmp_path / "saved", verbose=False)
    module = tf.saved_model.load(tmp_path / "saved")
    check(module.serve(x), model, [tf.constant(x)])
    history = model.fit(x, verbose=0).history  # and goes on
    assert np.isfinite(history["loss"][0])


def test_a_boltzmann_machine_is_exported(rng, tmp_path):
    machine, v = models.RestrictedBoltzmannMachine(6, 3), rng.random((4, 6)).astype("float32")
    machine.export(tmp_path / "saved", verbose=False)
    module = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(module.serve(v), machine.predict(v, verbose=0), atol=1e-6)


def test_what_keras_can_not_convert_to_onnx_is_said(tmp_path, caplog):
    model = builders.undercomplete((8,), 2, hidden_units=(4,), activation="gelu")
    with pytest.raises(ValueError, match=r"can't convert this model: .*Erfc.*kerasae\.export\.export"):
        model.export(str(tmp_path / "m.onnx"), format="onnx", verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("build", [FAMILIES["undercomplete-dense"], lambda: models.RestrictedBoltzmannMachine(64, 3)])
def test_h5_is_refused_before_anything_is_written_or_trained(build, x, tmp_path):
    model, path = build(), tmp_path / "m.h5"
    model.compile("adam")
    trained = x.reshape(5, *model.call_inputs()[0].shape[1:])
    before = model.get_weights()
    for ending in (".h5", ".hdf5"):
        with pytest.raises(ValueError, match=r"\.keras file.*\.weights\.h5.*Received: .*m\.h"):
            model.save(path.with_suffix(ending))
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    with pytest.raises(ValueError, match=r"\.keras file"):
        model.fit(trained, verbose=0, callbacks=[checkpoint])
    assert all(map(np.array_equal, before, model.get_weights()))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"\.keras file"):
        keras.saving.save_model(model, path)
    weights = keras.callbacks.ModelCheckpoint(tmp_path / "m.weights.h5", save_weights_only=True)
    model.fit(trained, verbose=0, callbacks=[weights])
    other = build()
    other.load_weights(tmp_path / "m.weights.h5")
    assert all(map(np.array_equal, other.get_weights(), model.get_weights()))


def test_the_error_of_a_recurrent_layer_names_the_batch_of_one(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="needs the extra kerasae[litert]")
    from kerasae.export import ExportError, export

    encoder = keras.Sequential([keras.Input((3, 2)), layers.LSTM(2)])
    decoder = keras.Sequential([keras.Input((2,)), layers.Dense(6), layers.Reshape((3, 2))])
    with pytest.raises(ExportError, match="batch of one alone: pass batch_size=1"):
        export(builders.undercomplete(encoder=encoder, decoder=decoder), tmp_path / "b", formats="litert")

"""The bundle: its files are read here by their own runtimes, and held against Keras and NumPy."""

import hashlib
import importlib.util
import json
import logging
import math
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from families import EVERY_CLASS, FAMILIES, SEVERAL_INPUTS, fast, several_inputs, with_side_inputs
from keras import layers
from scipy import stats
from tensorflow.core.protobuf import saved_model_pb2

from kerasae import builders, runtime, tasks
from kerasae.export import ExportError, export, litert_files, onnx_files, page, parity
from kerasae.export.clients import run as client
from kerasae.models import Autoencoder, VariationalAutoencoder

SHAPE = (9, 7, 2)
SMALL = {"dense": (20, 10), "conv": (4, 8)}
BUILDERS = {
    "undercomplete": (builders.undercomplete, {}),
    "variational-bernoulli": (builders.variational, {"likelihood": "bernoulli"}),
    "variational-gaussian": (builders.variational, {"likelihood": "gaussian"}),
}
PARTS = {"encoder": "encode", "decoder": "decode", "autoencoder": "reconstruct", "score": "score"}


def perturb(model, seed=0):
    """Never fitted, but with biases and weights that matter."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            w if w.dtype.kind in "iu" else (w + 0.1 * rng.standard_normal(w.shape)).astype(w.dtype)
            for w in model.get_weights()
        ]
    )
    return model


def build(family="undercomplete", network="dense", **kwargs):
    builder, arguments = BUILDERS[family]
    return perturb(builder(SHAPE, latent_dim=3, hidden_units=SMALL[network], network=network, **arguments, **kwargs))


def vectors(hidden, num_features=6, latent_dim=2, output=None):
    """An autoencoder of vectors around any hidden layers."""
    encoder = keras.Sequential([keras.Input((num_features,)), *hidden, layers.Dense(latent_dim)])
    decoder = keras.Sequential([keras.Input((latent_dim,)), output or layers.Dense(num_features)])
    return perturb(Autoencoder(encoder, decoder))


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def ports(values):
    return [(value.name, value.shape, value.type) for value in values]


def run_onnx(path, *arrays):
    opened = session(path)
    return opened.run(None, dict(zip([port.name for port in opened.get_inputs()], arrays, strict=True)))


@pytest.fixture
def in_this_process(monkeypatch):
    """Skips the fresh process where a test is of something else: files then count as computing what the model does."""

    def replay(parts, inputs, bundle, formats, workspace):
        expected = parity.references(parts, inputs)
        return {
            (kind, part.name, size): expected[part.name][size]
            for kind in formats
            for part in parts
            if part.is_in(kind)
            for size in expected[part.name]
        }

    monkeypatch.setattr(parity, "replay", replay)


def numpy_score(model, x):
    """The score by its definition, in float64, from what Keras predicts."""
    codes, x = model.encoder.predict(x, verbose=0), x.astype("float64")
    z = np.rint(codes) if hasattr(model, "rate") else codes if model.posterior is None else codes[0]
    outputs = model.decoder.predict(z, verbose=0)
    mean, *others = [output.astype("float64") for output in (outputs if isinstance(outputs, list) else [outputs])]
    if str(model.likelihood) == "pixels":  # compared with NumPy in test_codec.py
        loss = model.likelihood.loss(x, model.reconstruct(z, training=False)).numpy()
    elif str(model.likelihood) == "student_t":
        nu = 3 + np.logaddexp(0, model.raw_degrees.numpy().astype("float64"))
        loss = np.nan_to_num(-stats.t.logpdf(x, nu, mean, np.exp(np.clip(others[0], -6, 3))))
    elif model.needs_unit_interval:
        loss = -(x * np.log(mean) + (1 - x) * np.log(1 - mean))
    elif model.posterior is None:
        loss = (x - mean) ** 2
    else:
        learned = model.variance == "learned" and np.exp(np.asarray(model.log_variance))
        variance = np.exp(others[0]) if others else learned or model.variance
        loss = ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
    score = loss.reshape(len(x), -1).sum(1)
    if model.posterior is not None:
        z_mean, z_log_var = np.broadcast_arrays(*codes)
        score += (np.exp(z_log_var) + z_mean**2 - 1 - z_log_var).sum(1) / 2
    if hasattr(model, "rate"):
        logistic = stats.logistic(model.prior_mean.numpy(), np.exp(model.prior_log_scale.numpy()))
        score -= model.rate_weight * np.log(logistic.cdf(z + 0.5) - logistic.cdf(z - 0.5)).sum(1)
    return score


def odd(family):
    return lambda: build(family, "conv")


@pytest.mark.parametrize(
    "make",
    [
        *EVERY_CLASS,
        pytest.param(odd("undercomplete"), id="odd"),
        pytest.param(odd("variational-gaussian"), id="odd-variational"),
    ],
)
def test_every_part_in_every_format_computes_what_keras_does(make, tmp_path, caplog):
    model = perturb(FAMILIES[make]()) if isinstance(make, str) else make()
    has_prior = model.prior is not None
    shape = model.encoder.inputs[0].shape[1:]
    x = np.random.default_rng(1).random((3, *shape), dtype="float32")
    if model.takes_missing:
        x[x < 0.2] = np.nan
    if "rate_loss" in model.term_names:  # codes that are not all rounded to 0
        model.encoder.layers[-1].kernel.assign(10 * model.encoder.layers[-1].kernel)
    with caplog.at_level(logging.DEBUG, logger="tf2onnx"):
        manifest = export(model, tmp_path / "bundle", x=x)
    assert not [record for record in caplog.records if record.name.startswith("tf2onnx")]
    bundle = tmp_path / "bundle"
    codes, decoded = model.encoder.predict(x, verbose=0), model.decoder.predict(model.encode(x), verbose=0)
    others = codes[1:] if isinstance(codes, list) else []
    codes = dict(zip(model.code_names, [model.encode(x), *others], strict=True))
    decoded = decoded if isinstance(decoded, list) else [decoded]
    noise = np.random.default_rng(2).standard_normal((3, 3)).astype("float32")
    expected = {
        "encoder": ("x", x, codes),
        "decoder": ("z", model.encode(x), dict(zip(model.reconstruction_names, decoded, strict=True))),
        "autoencoder": ("x", x, {"reconstruction": model.predict(x, verbose=0)}),
        "score": ("x", x, {"score": numpy_score(model, x)}),
    }
    if has_prior:
        expected["sample"] = ("noise", noise, {"reconstruction": model.decode(noise)})
    loaded = tf.saved_model.load(str(bundle / "saved_model"))
    seeded = {"sample_from_seed"} if has_prior else set()
    assert set(loaded.signatures) == {*PARTS.values(), *(expected.keys() - PARTS.keys()), *seeded, "serving_default"}
    assert {path.stem for path in bundle.glob("*.onnx")} == set(expected)
    for part, (name, values, outputs) in expected.items():
        opened = session(bundle / f"{part}.onnx")
        assert ports(opened.get_inputs()) == [(name, ["batch", *values.shape[1:]], "tensor(float)")]
        assert ports(opened.get_outputs()) == [
            (output, ["batch", *reference.shape[1:]], "tensor(float)") for output, reference in outputs.items()
        ]
        # Batches of 3 and of 1: the batch is free.
        for rows in (slice(3), slice(1)):
            answers = opened.run(None, {name: values[rows]})
            named = loaded.signatures[PARTS.get(part, part)](**{name: tf.constant(values[rows])})
            assert set(named) == set(outputs)
            for answer, (output, reference) in zip(answers, outputs.items(), strict=True):
                np.testing.assert_allclose(answer, reference[rows], rtol=0, atol=1e-5 * np.abs(reference).max())
                np.testing.assert_allclose(named[output], reference[rows], rtol=0, atol=1e-5 * np.abs(reference).max())
    default = loaded.signatures["serving_default"](x=tf.constant(x))["reconstruction"]
    np.testing.assert_allclose(default, expected["autoencoder"][2]["reconstruction"], atol=1e-6)
    assert json.loads((bundle / "manifest.json").read_text()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]  # no working folder is left
    measured = manifest["parity"]["measured"]
    assert {(row["part"], row["format"], row["batch_size"]) for row in measured} == {
        *((part, kind, size) for part in expected for kind in ("saved_model", "onnx") for size in (1, 7)),
        *((part, "saved_model", size) for part in seeded for size in (1, 7)),
    }
    assert all(0 <= row["relative_difference"] <= 1e-5 and row["max_reference"] > 1e-3 for row in measured)
    assert {row["output"] for row in measured} == {*model.code_names, *model.reconstruction_names, "score"}


@pytest.fixture(scope="module")
def vae():
    return build("variational-bernoulli")


@pytest.fixture(scope="module")
def bundle(vae, tmp_path_factory):
    """A real export of a small VAE: `(folder, manifest)`. Read only."""
    folder = tmp_path_factory.mktemp("export") / "vae"
    return folder, export(vae, folder)


def test_the_deployed_encoder_is_plain_matrix_products(vae, bundle):
    """Held against NumPy: no Keras on either side."""
    x = np.random.default_rng(2).random((5, *SHAPE), dtype="float32")
    *hidden, (mean, mean_bias), (log_var, log_var_bias) = zip(*[iter(vae.encoder.get_weights())] * 2, strict=True)
    h = x.reshape(5, -1).astype("float64")
    for kernel, bias in hidden:
        h = np.maximum(h @ kernel + bias, 0)
    z_mean, z_log_var = run_onnx(bundle[0] / "encoder.onnx", x)
    np.testing.assert_allclose(z_mean, h @ mean + mean_bias, atol=1e-5)
    np.testing.assert_allclose(z_log_var, h @ log_var + log_var_bias, atol=1e-5)


def test_manifest_describes_the_bundle(bundle):
    folder, manifest = bundle
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "manifest.json"}
    assert {"encoder.onnx", "decoder.onnx", "autoencoder.onnx", "saved_model/saved_model.pb", "README.md"} <= files
    for path, entry in manifest["files"].items():
        content = (folder / path).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["family"] == "VariationalAutoencoder"
    assert all(re.match(r"\d+\.\d+", text) for text in manifest["versions"].values())
    encoder = manifest["parts"][0]
    assert encoder["inputs"] == [
        {
            "name": "x",
            "shape": ["batch", *SHAPE],
            "dtype": "float32",
            "value_range": [0.0, 1.0],
            "meaning": "examples",
            "missing": False,
        }
    ]
    assert [(port["name"], port["shape"], port["value_range"]) for port in encoder["outputs"]] == [
        ("z_mean", ["batch", 3], None),
        ("z_log_var", ["batch", 3], None),
    ]
    assert manifest["parity"]["examples"] == "generated"
    assert manifest["parity"]["tolerance"] == {"saved_model": 1e-5, "onnx": 1e-5}
    assert manifest["score"]["unit"] == "nats"
    assert manifest["score"]["definition"].startswith("negative evidence lower bound at z = z_mean")
    assert [part["name"] for part in manifest["parts"]] == [*PARTS, "sample", "sample_from_seed"]
    assert [part["onnx"] for part in manifest["parts"]][-2:] == [{"file": "sample.onnx"}, None]
    assert manifest["preprocessing"] == "none: as in training"
    assert manifest["precision"] == {"model": ["float32"], "exported": "float32", "relative_difference": None}


def test_onnx_files_are_documented_and_standard(bundle):
    for part in PARTS:
        model = onnx.load(bundle[0] / f"{part}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 10
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
        assert {node.domain for node in model.graph.node} == {""}
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["producer"] == "kerasae"
        assert metadata["family"] == "VariationalAutoencoder"
        assert metadata["kerasae_version"] == model.producer_version
        assert metadata["part"] == part
        assert part in model.doc_string
        assert all(port.doc_string for port in (*model.graph.input, *model.graph.output))


@pytest.mark.parametrize("formats", [["onnx", "saved_model"], ["litert"]], ids=" ".join)
@pytest.mark.parametrize("family", fast({"variational-bernoulli"}, ["undercomplete", "variational-bernoulli"]))
def test_readme_snippets_run(family, formats, tmp_path, monkeypatch, capsys, in_this_process):
    if "litert" in formats:
        pytest.importorskip("ai_edge_litert", reason="needs the extra kerasae[litert]")
    export(build(family), tmp_path / "bundle", formats)
    monkeypatch.chdir(tmp_path / "bundle")
    text = Path("README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == len(formats)
    for snippet in snippets:
        exec(snippet, {})
        assert capsys.readouterr().out == "(1, 9, 7, 2)\n"
    if "sample_from_seed" in text and "saved_model" in formats:
        (expression,) = re.findall(r"`(model.*?sample_from_seed.*?)`", text)
        samples = eval(expression, {"tf": tf, "model": tf.saved_model.load("saved_model")})
        assert samples["reconstruction"].shape == (16, *SHAPE)


def test_random_numbers_come_from_inputs_only(vae, bundle):
    saved = saved_model_pb2.SavedModel.FromString((bundle[0] / "saved_model/saved_model.pb").read_bytes())
    operators = {
        node.op
        for graph in saved.meta_graphs
        for function in graph.graph_def.library.function
        for node in function.node_def
    }
    assert "MatMul" in operators
    random = "Random|Normal|Uniform|Rng"
    # Stateless: a function of the seed.
    drawn = {name for name in operators if re.search(random, name)}
    assert "StatelessRandomNormalV2" in drawn
    assert all(name.startswith("StatelessRandom") for name in drawn)
    for path in bundle[0].glob("*.onnx"):
        assert not [node.op_type for node in onnx.load(path).graph.node if re.search(random, node.op_type)]
    draw = tf.saved_model.load(str(bundle[0] / "saved_model")).signatures["sample_from_seed"]
    samples = [
        draw(num_samples=tf.constant(5), seed=tf.constant(seed))["reconstruction"] for seed in ((1, 2), (1, 2), (1, 3))
    ]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert np.abs(samples[0] - samples[2]).max() > 1e-2
    noise = tf.random.stateless_normal((5, 3), (1, 2), alg="philox")
    np.testing.assert_allclose(samples[0], vae.decode(noise.numpy()), atol=1e-6)


def test_images_of_whole_numbers_are_scaled_inside(vae, tmp_path):
    images = np.random.default_rng(7).integers(0, 256, (4, *SHAPE), dtype="uint8")
    x = images.astype("float32") / 255
    manifest = export(vae, tmp_path / "bundle", image_input="uint8", x=images)
    encoder, score = (session(tmp_path / f"bundle/{part}.onnx") for part in ("encoder", "score"))
    assert encoder.get_inputs()[0].type == "tensor(uint8)"
    np.testing.assert_allclose(encoder.run(["z_mean"], {"x": images})[0], vae.encode(x), atol=1e-5)
    np.testing.assert_allclose(score.run(None, {"x": images})[0], numpy_score(vae, x), rtol=1e-5)
    signatures = tf.saved_model.load(str(tmp_path / "bundle/saved_model")).signatures
    np.testing.assert_allclose(
        signatures["reconstruct"](x=tf.constant(images))["reconstruction"], vae.predict(x, verbose=0), atol=1e-5
    )
    assert manifest["parts"][0]["inputs"][0]["value_range"] == [0, 255]
    assert manifest["preprocessing"] == "none: the parts divide by 255 themselves"


@pytest.mark.usefixtures("in_this_process")
def test_a_fixed_batch(vae, tmp_path):
    manifest = export(vae, tmp_path / "bundle", batch_size=4)
    assert manifest["parity"]["batch_sizes"] == [4]
    opened = session(tmp_path / "bundle/autoencoder.onnx")
    assert opened.get_inputs()[0].shape == opened.get_outputs()[0].shape == [4, *SHAPE]
    x = np.random.default_rng(8).random((4, *SHAPE), dtype="float32")
    np.testing.assert_allclose(opened.run(None, {"x": x})[0], vae.predict(x, verbose=0), atol=1e-5)
    signatures = tf.saved_model.load(str(tmp_path / "bundle/saved_model")).signatures
    assert signatures["score"].structured_input_signature[1]["x"].shape == (4, *SHAPE)
    np.testing.assert_allclose(signatures["score"](x=tf.constant(x))["score"], numpy_score(vae, x), rtol=1e-5)


@pytest.mark.usefixtures("in_this_process")
def test_a_model_whose_own_batch_is_fixed(tmp_path):
    encoder = keras.Sequential([keras.Input(batch_shape=(4, 6)), layers.Dense(2)])
    decoder = keras.Sequential([keras.Input(batch_shape=(4, 2)), layers.Dense(6)])
    model = perturb(Autoencoder(encoder, decoder))
    with pytest.raises(ValueError, match="fixed batch of 4.*Received: 2"):
        export(model, tmp_path / "bundle", batch_size=2)
    export(model, tmp_path / "bundle")
    x = np.random.default_rng(11).standard_normal((4, 6)).astype("float32")
    np.testing.assert_allclose(run_onnx(tmp_path / "bundle/autoencoder.onnx", x)[0], model(x), atol=1e-5)


@pytest.mark.parametrize("network", ["dense", "conv"])
def test_lower_precision(network, tmp_path, digits):
    names = ["int8_dynamic", "int8_static"]
    if importlib.util.find_spec("onnxconverter_common"):
        names.insert(0, "float16")
    model = builders.undercomplete((8, 8, 1), 4, {"dense": (128, 64), "conv": (16, 32)}[network], network)
    model.compile("adam")
    model.fit(digits[0], epochs=3, verbose=0)
    manifest = export(model, tmp_path / "bundle", ["onnx"], variants=names, calibration=digits[0], x=digits[1])
    variants = manifest["variants"]
    files = {(row["part"], row["variant"]): row for row in variants["files"]}
    assert set(files) == {(part, name) for part in list(PARTS)[:3] for name in ("float32", *names)}
    assert variants["examples"] == 256
    assert variants["given"]
    x = digits[1][np.linspace(0, len(digits[1]) - 1, 256).astype(int)]
    for name in ("float32", *names):
        row = files["autoencoder", name]
        (reconstruction,) = run_onnx(tmp_path / "bundle" / row["file"], x)
        error = ((x.astype("float64") - reconstruction) ** 2).sum((1, 2, 3)).mean()
        # Static ranges round at places that depend on the kernel.
        assert variants["reconstruction_error"][name] == pytest.approx(error, rel=2e-3)
        assert row["bytes"] == (tmp_path / "bundle" / row["file"]).stat().st_size
        assert set(row["latency_ms"]) == set(row["latency_ratio"]) == {"1", "32"}
        assert all(milliseconds > 0 for milliseconds in row["latency_ms"].values())
        onnx.checker.check_model(str(tmp_path / "bundle" / row["file"]), full_check=True)
    float32 = variants["reconstruction_error"]["float32"]
    assert files["encoder", "float32"]["relative_difference"] == {"z": 0}
    for name, limit in {"float16": 1e-3, "int8_dynamic": 0.02, "int8_static": 0.2}.items():
        if name in names:
            assert variants["reconstruction_error"][name] == pytest.approx(float32, rel=limit)
            assert 0 < files["encoder", name]["relative_difference"]["z"] < 10 * limit
            # Dynamic quantisation leaves convolutions as they are.
            assert files["autoencoder", name]["bytes_ratio"] < (
                1 if (network, name) == ("conv", "int8_dynamic") else 0.8
            )
        assert f"| autoencoder.{name}.onnx | " in (tmp_path / "bundle/README.md").read_text() or name not in names
    operators = {node.op_type for node in onnx.load(tmp_path / "bundle/encoder.int8_dynamic.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert "ConvInteger" not in operators


@pytest.mark.parametrize("by", ["magnitude", "value"])
def test_float16_keeps_exactly_the_k_largest_codes(by, tmp_path, digits):
    pytest.importorskip("onnxconverter_common", reason="needs the extra kerasae[float16]")
    model = perturb(builders.k_sparse((8, 8, 1), 32, (64,), k=5, alpha=1.5, by=by))
    x = digits[1]
    manifest = export(model, tmp_path / "bundle", "onnx", variants="float16", x=x)
    z, (rounded,) = model.encode(x), run_onnx(tmp_path / "bundle/encoder.float16.onnx", x)
    assert set((rounded != 0).sum(axis=1)) == {8}
    same = ((rounded != 0) == (z != 0)).all(axis=1)
    assert same.mean() > 0.97
    np.testing.assert_allclose(rounded[same], z[same], atol=5e-3 * np.abs(z).max())
    # Another is kept only where two codes are as good as equal.
    before = keras.Model(model.encoder.inputs, model.encoder.layers[-1].input).predict(x, verbose=0)
    score = np.sort(np.abs(before) if by == "magnitude" else before, axis=1)[:, ::-1]
    gap = (score[:, 7] - score[:, 8]) / score[:, 7]
    assert (gap[~same] < 5e-3).all()
    files = {(row["part"], row["variant"]): row for row in manifest["variants"]["files"]}
    assert files["encoder", "float16"]["relative_difference"]["z"] > 0
    errors = manifest["variants"]["reconstruction_error"]
    assert errors["float16"] == pytest.approx(errors["float32"], rel=1e-2)


def test_float16_from_images_of_whole_numbers(tmp_path):
    """The cast inside the graph is the model's own, which the tool overlooks."""
    pytest.importorskip("onnxconverter_common", reason="needs the extra kerasae[float16]")
    model = build()
    images = np.random.default_rng(12).integers(0, 256, (9, *SHAPE), dtype="uint8")
    export(model, tmp_path / "bundle", "onnx", variants="float16", image_input="uint8", x=images)
    (z,) = run_onnx(tmp_path / "bundle/encoder.float16.onnx", images)
    reference = model.encode(images.astype("float32") / 255)
    np.testing.assert_allclose(z, reference, rtol=0, atol=5e-3 * np.abs(reference).max())


@pytest.mark.parametrize("family", fast({"variational-gaussian"}, ["undercomplete", "variational-gaussian"]))
def test_litert(family, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra kerasae[litert]")
    model = build(family, "conv")
    manifest = export(model, tmp_path / "bundle", ["litert"])
    assert manifest["parity"]["tolerance"] == {"litert": 1e-4}
    assert manifest["parity"]["max_relative_difference"] < 1e-4
    x = np.random.default_rng(9).random((3, *SHAPE), dtype="float32")
    for part, output, reference in (
        ("score", "score", numpy_score(model, x)),
        ("autoencoder", "reconstruction", model.predict(x, verbose=0)),
    ):
        opened = interpreter.Interpreter(model_path=str(tmp_path / f"bundle/{part}.tflite"))
        answer = opened.get_signature_runner(PARTS[part])(x=x)[output]
        np.testing.assert_allclose(answer, reference, atol=1e-4 * np.abs(reference).max())


@pytest.mark.usefixtures("in_this_process")
def test_litert_names_what_phones_lack(tmp_path, monkeypatch):
    monkeypatch.setattr(litert_files, "check_runtime", lambda: None)
    with pytest.raises(ExportError, match="encoder can't be converted to LiteRT: .*Erfinv"):
        export(vectors([layers.Lambda(lambda t: keras.ops.erfinv(keras.ops.tanh(t)))]), tmp_path / "bundle", "litert")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("ai_edge_litert", {"formats": "litert"}, r"pip install 'kerasae\[litert\]'"),
        ("onnxconverter_common", {"variants": "float16"}, r"pip install 'kerasae\[float16\]'"),
    ],
)
def test_a_missing_package_is_named(package, arguments, message, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == package else find_spec(name))
    with pytest.raises(ValueError, match=message):
        export(build(), tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("network", ["dense", "conv"])
@pytest.mark.parametrize("opset", [13, 18, 19, 25])
def test_opsets(network, opset, tmp_path):
    model = build(network=network)
    export(model, tmp_path / "bundle", ["onnx"], opset=opset)
    assert onnx.load(tmp_path / "bundle/autoencoder.onnx").opset_import[0].version == opset
    x = np.random.default_rng(3).random((2, *SHAPE), dtype="float32")
    (reconstruction,) = run_onnx(tmp_path / "bundle/autoencoder.onnx", x)
    np.testing.assert_allclose(reconstruction, model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    "make_hidden",
    [
        lambda: [layers.Dense(30, activation="gelu")],
        lambda: [layers.Dense(30, activation="celu")],
        lambda: [layers.Dense(30), layers.Lambda(lambda t: keras.ops.log1p(keras.ops.abs(t)))],
        # More than 128 values: TensorFlow then captures them as tensors instead of writing constants.
        lambda: [
            layers.Dense(200),
            layers.Normalization(mean=np.linspace(-1, 1, 200), variance=np.linspace(1, 2, 200)),
        ],
        lambda: [layers.Dense(30), layers.BatchNormalization(), layers.Dropout(0.5), layers.GaussianNoise(0.5)],
    ],
    ids=["gelu", "celu", "log1p", "normalization", "batch_norm-dropout-noise"],
)
def test_layers_of_other_kinds(make_hidden, tmp_path):
    model = vectors(make_hidden())
    export(model, tmp_path / "bundle")
    x = np.random.default_rng(4).standard_normal((50, 6)).astype("float32")
    z = model.encode(x)
    (from_onnx,) = run_onnx(tmp_path / "bundle/encoder.onnx", x)
    from_tensorflow = tf.saved_model.load(str(tmp_path / "bundle/saved_model")).signatures["encode"](x=tf.constant(x))
    np.testing.assert_allclose(from_onnx, z, atol=1e-5 * np.abs(z).max())
    np.testing.assert_allclose(from_tensorflow["z"], z, atol=1e-6 * np.abs(z).max())


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("hidden", "shape", "stored", "operator"),
    [
        (lambda: [layers.Dense(600)], (500,), (500, 600), "MatMul"),
        (lambda: [layers.Conv2D(180, 3, padding="same"), layers.Flatten()], (3, 2, 180), (180, 180, 3, 3), "Conv"),
        (lambda: [layers.LSTM(280)], (3, 200), (1, 1120, 280), "LSTM"),
    ],
    ids=["dense", "conv", "lstm"],
)
def test_large_constants_stay_out_of_the_conversion(hidden, shape, stored, operator, tmp_path, monkeypatch):
    """tf2onnx's optimiser takes some 40 times their size; they are stored once, as the operators want them."""
    converted, own = [], onnx_files._converted
    monkeypatch.setattr(onnx_files, "_converted", lambda *args: converted.append(own(*args)) or converted[-1])
    monkeypatch.setattr(onnx_files, "_check", lambda model, part: sizes.append(model.ByteSize()))
    sizes = []
    encoder = keras.Sequential([keras.Input(shape), *hidden(), layers.Dense(2)])
    decoder = keras.Sequential([keras.Input((2,)), layers.Dense(math.prod(shape)), layers.Reshape(shape)])
    model = Autoencoder(encoder, decoder)
    export(model, tmp_path / "bundle", ["onnx"])
    if operator != "LSTM":  # a recurrent layer is known by its constants
        assert max(model.ByteSize() for model in converted) < 200_000
        assert max(sizes) < 200_000
    file = onnx.load(tmp_path / "bundle/encoder.onnx")
    (name,) = [tensor.name for tensor in file.graph.initializer if list(tensor.dims) == list(stored)]
    assert [node.op_type for node in file.graph.node if name in node.input] == [operator]
    onnx.checker.check_model(file, full_check=True)
    x = np.random.default_rng(4).random((5, *shape), dtype="float32")
    np.testing.assert_allclose(run_onnx(tmp_path / "bundle/encoder.onnx", x)[0], model.encode(x), atol=1e-5)


def test_large_constants_of_more_than_2_gib_lie_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_MAX_BYTES", 8000)
    monkeypatch.setattr(onnx_files, "_LARGE_BYTES", 500)
    model, folder = build("undercomplete"), tmp_path / "bundle"
    manifest = export(model, folder, ["onnx"], x=(x := np.random.default_rng(0).random((9, *SHAPE), dtype="float32")))
    assert manifest["parts"][0]["onnx"] == {"file": "encoder.onnx", "data": "encoder.onnx.data"}
    assert {"encoder.onnx.data", "score.onnx.data"} <= set(manifest["files"])
    assert (folder / "encoder.onnx").stat().st_size < 4000 < (folder / "encoder.onnx.data").stat().st_size
    expected = model.encode(x)
    np.testing.assert_allclose(run_onnx(folder / "encoder.onnx", x)[0], expected, atol=1e-5)
    np.testing.assert_allclose(runtime.Bundle(folder).open("encoder")(x)["z"], expected, atol=1e-5)
    np.testing.assert_allclose(client.load(folder)["encoder"](x=x)["z"], expected, atol=1e-5)
    with pytest.raises(ExportError, match="larger than 2 GiB, which the tools that make float16 don't take"):
        export(model, tmp_path / "lower", ["onnx"], variants=["float16"])
    with pytest.raises(ValueError, match="weights lie in another file is not opened"):
        tasks.SearchIndex(folder)
    # Only the file that the manifest lists, whose hash is right, and from within the bundle.
    content = bytearray((folder / "encoder.onnx.data").read_bytes())
    content[100] ^= 1
    (folder / "encoder.onnx.data").write_bytes(content)
    for opened in (lambda: runtime.Bundle(folder).open("encoder"), lambda: client.load(folder)):
        with pytest.raises(ValueError, match=r"encoder.onnx.data is not the file that was exported: its SHA-256"):
            opened()
    elsewhere = (folder / "score.onnx").read_bytes().replace(b"score.onnx.data", b"../score.x.data")
    with pytest.raises(ValueError, match="weights lie in another file is not opened"):
        runtime.OnnxFunction(elsewhere, data=folder / "score.onnx.data")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_exported_in_float32(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = build("variational-gaussian", "conv")
    finally:
        keras.config.set_dtype_policy("float32")
    reference = build("variational-gaussian", "conv")
    reference.set_weights(model.get_weights())
    manifest = export(model, tmp_path / "bundle", ["onnx"])
    x = np.random.default_rng(5).standard_normal((4, *SHAPE)).astype("float32")
    for answer, codes in zip(
        run_onnx(tmp_path / "bundle/encoder.onnx", x), reference.encoder.predict(x, verbose=0), strict=True
    ):
        np.testing.assert_allclose(answer, codes, rtol=0, atol=1e-5 * np.abs(codes).max())
    assert manifest["precision"]["model"] == [policy]
    # Half precision keeps 11 (bfloat16: 8) bits of each number.
    assert all(0 < value < 0.05 for value in manifest["precision"]["relative_difference"].values())
    assert model.encoder.get_layer("hidden_1").compute_dtype == policy.removeprefix("mixed_")


@pytest.mark.usefixtures("in_this_process")
def test_integer_images(tmp_path):
    encoder = keras.Sequential(
        [keras.Input((4, 4), dtype="uint8"), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3)]
    )
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(16), layers.Reshape((4, 4))])
    model = Autoencoder(encoder, decoder)
    with pytest.raises(ValueError, match="This one takes uint8: leave it out"):
        export(model, tmp_path / "bundle", "onnx", image_input="uint8")
    manifest = export(model, tmp_path / "bundle", "onnx")
    assert session(tmp_path / "bundle/encoder.onnx").get_inputs()[0].type == "tensor(uint8)"
    assert manifest["parts"][0]["inputs"][0]["value_range"] == [0, 255]


# -- What fails leaves everything as it was ----------------------------------------------------------------------


EARLIER = json.dumps(
    {"format": "kerasae-bundle", "format_version": 1, "family": "Autoencoder", "parts": [], "files": {}}
)


@pytest.fixture
def earlier(tmp_path):
    """A folder with a bundle in it."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text(EARLIER)
    return folder


def assert_untouched(folder):
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("manifest.json", EARLIER)]


def tamper(monkeypatch, part="decoder"):
    """Makes the ONNX file of a part slightly wrong."""
    convert = onnx_files.convert

    def wrong(converted, *args):
        model = convert(converted, *args)
        if converted.name == part:
            weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            values = onnx.numpy_helper.to_array(weights) * np.float32(1.001)
            weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return model

    monkeypatch.setattr(onnx_files, "convert", wrong)


@pytest.mark.parametrize("exists", [False, True])
def test_a_wrong_file_is_found_and_named(exists, tmp_path, monkeypatch, request):
    tamper(monkeypatch)
    folder = request.getfixturevalue("earlier") if exists else tmp_path / "bundle"
    formats = ["onnx", "saved_model"] if exists else ["onnx"]
    with pytest.raises(ExportError, match=r"decoder as onnx, batch of 7, reconstruction: [\d.]+e-0[345]") as error:
        export(build(), folder, formats, replace=exists)
    assert not re.search("encoder as|autoencoder as|saved_model", str(error.value))
    if exists:
        assert_untouched(folder)
    else:
        assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_load_is_named(tmp_path, monkeypatch):
    def swapped(model, path):
        # Valid ONNX under the wrong name.
        path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])).SerializeToString())

    monkeypatch.setattr(onnx, "save", swapped)
    with pytest.raises(ExportError, match=r"encoder as onnx: [\s\S]*decoder as onnx: ") as error:
        export(build(), tmp_path / "bundle", ["onnx"])
    assert "autoencoder as onnx: " in str(error.value)
    assert not list(tmp_path.iterdir())


def test_keras_and_kerasae_can_not_be_imported_where_files_are_checked(tmp_path, monkeypatch):
    """A file that needs kerasae's own Python would fail: the script runs alone, and says what it could import."""
    script = tmp_path / "replay.py"
    source = Path(parity.__file__).with_name("replay.py").read_text()
    probe = '    for name in ("keras", "kerasae"):\n        try:\n            __import__(name)\n'
    probe += '        except ImportError:\n            continue\n        raise SystemExit(f"{name} was imported")\n'
    script.write_text(source.replace("    present = ", probe + "    present = ", 1))
    assert probe in script.read_text()
    monkeypatch.setattr(parity, "__file__", str(tmp_path / "parity.py"))
    manifest = export(build(), tmp_path / "bundle")
    assert manifest["parity"]["max_relative_difference"] <= 1e-5


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (Sampling, "encoder draws random numbers at inference: .*StatelessRandomNormalV2"),
        (
            lambda: layers.Lambda(lambda t: keras.ops.erfinv(keras.ops.tanh(t))),
            "encoder .*operator Erfinv .*saved_model",
        ),
        (
            lambda: layers.Lambda(lambda t: keras.ops.one_hot(keras.ops.argmax(t, -1), 4)),
            "encoder .*operator Bitcast .*top_k",
        ),
    ],
    ids=["sampling", "erfinv", "argmax"],
)
def test_what_cant_be_exported_is_named(make_layer, message, earlier):
    with pytest.raises(ExportError, match=message):
        export(vectors([make_layer()]), earlier, replace=True)
    assert_untouched(earlier)
    assert logging.getLogger("tf2onnx").propagate


@pytest.mark.usefixtures("in_this_process")
def test_sampling_is_refused_as_saved_model_too(tmp_path):
    """Its noise would be frozen there: the same in every process."""
    with pytest.raises(ExportError, match="draws random numbers"):
        export(vectors([Sampling()]), tmp_path / "bundle", ["saved_model"])


@pytest.mark.usefixtures("in_this_process")
def test_a_diverged_model_is_refused(tmp_path):
    model = build()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with pytest.raises(ExportError, match="encoder gives NaN or infinity in z"):
        export(model, tmp_path / "bundle")


@pytest.mark.usefixtures("in_this_process")
def test_replace(earlier):
    export(build(), earlier, ["onnx"], replace=True)
    assert json.loads((earlier / "manifest.json").read_text())["formats"] == ["onnx"]
    assert [path.name for path in earlier.parent.iterdir()] == [earlier.name]


@pytest.mark.usefixtures("in_this_process")
def test_only_a_bundle_is_replaced(earlier):
    (earlier / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"would be lost: notes.txt. Move it elsewhere"):
        export(build(), earlier, ["onnx"], replace=True)
    (earlier / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"would be lost: manifest.json, notes.txt"):
        export(build(), earlier, ["onnx"], replace=True)
    assert (earlier / "notes.txt").read_text() == "kept"


@pytest.mark.usefixtures("in_this_process")
def test_new_parents_and_empty_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deeper"):
        export(build(), folder, ["onnx"])
        assert (folder / "encoder.onnx").exists()
        assert folder.stat().st_mode == tmp_path.joinpath("empty").stat().st_mode  # not a private working folder's


@pytest.mark.usefixtures("in_this_process")
def test_previous_bundle_is_put_back_if_the_move_fails(earlier, monkeypatch):
    rename = Path.rename

    def fails(path, target):
        if path.parent.name == "new" and target == earlier.resolve():
            raise OSError("disk error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(ExportError, match="disk error"):
        export(build(), earlier, ["onnx"], replace=True)
    assert_untouched(earlier)


@pytest.mark.usefixtures("in_this_process")
def test_full_disk_halfway(earlier, monkeypatch):
    def full(model, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export(build(), earlier, replace=True)
    assert_untouched(earlier)


@pytest.mark.usefixtures("in_this_process")
def test_full_disk_at_the_last_file(earlier, monkeypatch):
    write_text = Path.write_text

    def full(path, *args, **kwargs):
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write_text(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ExportError, match="as it was: .*No space left on device"):
            export(build(), earlier, ["onnx"], replace=True)
    assert_untouched(earlier)


@pytest.mark.usefixtures("in_this_process")
def test_an_encoder_of_ones_own_with_two_outputs(tmp_path):
    x = keras.Input((6,))
    h = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Dense(12, "gelu")(x)))
    encoder = keras.Model(x, [layers.Dense(2)(h), layers.Dense(2)(h)])
    decoder = keras.Sequential([keras.Input((2,)), layers.Dense(6)])
    model = perturb(VariationalAutoencoder(encoder, decoder, likelihood="gaussian", variance="learned"))
    export(model, tmp_path / "bundle")
    x = np.random.default_rng(10).standard_normal((5, 6)).astype("float32")
    codes = run_onnx(tmp_path / "bundle/encoder.onnx", x)
    for answer, reference in zip(codes, model.encoder.predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(answer, reference, atol=1e-5)
    np.testing.assert_allclose(run_onnx(tmp_path / "bundle/score.onnx", x)[0], numpy_score(model, x), rtol=1e-5)


@pytest.mark.parametrize("family", ["undercomplete", "k-sparse-dict", "variational-dict"])
def test_side_inputs_are_ports_by_their_names(family, tmp_path, digits, monkeypatch, capsys):
    model = perturb(SEVERAL_INPUTS[family]())
    inputs = with_side_inputs(digits[1][:20])
    manifest = export(model, tmp_path / "bundle", x=dict(zip(("image", "label", "ages"), inputs, strict=True)))
    shapes = [("x", ["batch", 8, 8, 1], "float"), ("label", ["batch"], "int32"), ("ages", ["batch", 2], "float")]
    x = {
        name: array.astype("float32" if kind == "float" else kind)
        for (name, _, kind), array in zip(shapes, inputs, strict=True)
    }
    loaded = tf.saved_model.load(str(tmp_path / "bundle/saved_model"))
    expected = {
        "encoder": model.encode(inputs),
        "autoencoder": model.predict(inputs, verbose=0),
        "score": score_with_side_inputs(model, inputs),
    }
    for part, reference in expected.items():
        opened = session(tmp_path / f"bundle/{part}.onnx")
        assert ports(opened.get_inputs()) == [(name, shape, f"tensor({kind})") for name, shape, kind in shapes]
        output = opened.get_outputs()[0].name
        signature = loaded.signatures[PARTS[part]]
        for rows in (slice(20), slice(1)):
            feed = {name: array[rows] for name, array in x.items()}
            tolerance = {"rtol": 0, "atol": 1e-5 * np.abs(reference).max()}
            np.testing.assert_allclose(opened.run([output], feed)[0], reference[rows], **tolerance)
            named = signature(**{name: tf.constant(array) for name, array in feed.items()})[output]
            np.testing.assert_allclose(named, reference[rows], **tolerance)
    assert [(port["name"], port["dtype"]) for port in manifest["parts"][0]["inputs"]] == [
        ("x", "float32"),
        ("label", "int32"),
        ("ages", "float32"),
    ]
    assert [port["name"] for port in manifest["parts"][1]["inputs"]] == ["z"]
    assert manifest["examples"]["count"] == 20
    monkeypatch.chdir(tmp_path / "bundle")
    for snippet in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
        exec(snippet, {})
        assert capsys.readouterr().out == "(1, 8, 8, 1)\n"
    program = Path(parity.__file__).with_name("clients") / "run.py"
    answer = subprocess.run([sys.executable, program, "."], capture_output=True, text=True, check=True).stdout
    assert {name: np.shape(value) for name, value in json.loads(answer).items()} == {
        **{name: (1, 3) for name in model.code_names},
        "reconstruction": (1, 8, 8, 1),
        "score": (1,),
    }


def score_with_side_inputs(model, inputs):
    """As `numpy_score`, whose encoder takes the images alone."""
    codes = model.encoder.predict(inputs, verbose=0)
    x, mean = inputs[0].astype("float64"), model.predict(inputs, verbose=0).astype("float64")
    if not model.needs_unit_interval:
        return ((x - mean) ** 2).sum((1, 2, 3))
    loss = -(x * np.log(mean) + (1 - x) * np.log(1 - mean)).sum((1, 2, 3))
    z_mean, z_log_var = codes
    return loss + (np.exp(z_log_var) + z_mean**2 - 1 - z_log_var).sum(1) / 2


def test_side_inputs_beside_whole_numbers_and_in_lower_precision(tmp_path, digits):
    names = ["int8_dynamic", "int8_static"]
    if importlib.util.find_spec("onnxconverter_common"):
        names.append("float16")
    model = perturb(SEVERAL_INPUTS["undercomplete"]())
    images, labels, ages = with_side_inputs(digits[1][:50])
    images = (images * 255).round().astype("uint8")
    inputs = [images, labels, ages]
    manifest = export(
        model, tmp_path / "bundle", "onnx", image_input="uint8", variants=names, calibration=inputs, x=inputs
    )
    assert [port["dtype"] for port in manifest["parts"][0]["inputs"]] == ["uint8", "int32", "float32"]
    z = model.encode([images.astype("float32") / 255, labels, ages])
    for name, limit in {"float32": 1e-5, "int8_dynamic": 0.05, "int8_static": 0.2, "float16": 5e-3}.items():
        path = tmp_path / "bundle" / ("encoder.onnx" if name == "float32" else f"encoder.{name}.onnx")
        if name in ("float32", *names):
            (answer,) = run_onnx(path, images, labels.astype("int32"), ages.astype("float32"))
            np.testing.assert_allclose(answer, z, rtol=0, atol=limit * np.abs(z).max())
    assert manifest["variants"]["examples"] == 50


def test_side_inputs_that_cant_be_exported_are_named(tmp_path):
    model = SEVERAL_INPUTS["undercomplete"]()
    with pytest.raises(ValueError, match=r"shape \('batch',\) and type int32, and can't make them up"):
        export(model, tmp_path / "bundle")
    with pytest.raises(ValueError, match="`x` must be a list, or a dict by name, of the 3 inputs"):
        export(model, tmp_path / "bundle", x=np.zeros((2, 8, 8, 1)))
    with pytest.raises(
        ValueError, match=r"needs a `model` with one input, and this one takes \['image', 'label', 'ages'\]"
    ):
        page(model, tmp_path / "page")
    encoder, decoder = several_inputs()
    for name in ("z", "my label", "x", "class"):
        clash = keras.Input((), dtype="int32", name=name)
        renamed = keras.Model(
            [encoder.inputs[0], clash, encoder.inputs[2]], encoder([encoder.inputs[0], clash, encoder.inputs[2]])
        )
        with pytest.raises(ValueError, match=f"'{name}'.* can't be: names must be identifiers"):
            export(Autoencoder(renamed, decoder), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["onx"]}, "'onx'.*Did you mean 'onnx'"),
        ({"formats": "torch"}, "`formats` must be one of .*'torch'"),
        ({"formats": []}, "`formats` must name at least one"),
        ({"formats": None}, "`formats` must be one of"),
        ({"opset": 12}, "from 13 to 25. Received: 12"),
        ({"opset": 26}, "from 13 to 25. Received: 26"),
        ({"opset": 18.0}, "from 13 to 25. Received: 18.0"),
        ({"tolerance": -1}, "`tolerance` must be"),
        ({"x": np.zeros((2, 9, 7))}, r"`x` must have shape \(batch, 9, 7, 2\)"),
        ({"image_input": "uint16"}, "`image_input` must be one of .*'uint8'"),
        ({"image_input": "uint8", "x": np.full((2, *SHAPE), 0.5)}, "whole numbers of type uint8.*from 0.5 to 0.5"),
        ({"image_input": "uint8", "x": np.full((2, *SHAPE), 300)}, "whole numbers of type uint8.*to 300"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"variants": "int4"}, "`variants` must be one of"),
        ({"variants": "int8_static"}, "go together"),
        ({"calibration": np.zeros((2, *SHAPE))}, "go together"),
        ({"variants": "int8_static", "calibration": np.zeros((2, 3))}, "`calibration` must have shape"),
        ({"variants": "int8_dynamic", "formats": ["saved_model"]}, "`variants` are ONNX files"),
        ({}, "is not empty.*replace=True"),
    ],
)
def test_bad_arguments(arguments, message, earlier):
    with pytest.raises(ValueError, match=message):
        export(build(), earlier, **{"formats": ["onnx"], **arguments})
    assert_untouched(earlier)


def test_bernoulli_examples_must_lie_in_the_unit_interval(vae, tmp_path):
    with pytest.raises(ValueError, match="Divide 8-bit images by 255"):
        export(vae, tmp_path / "bundle", x=np.full((2, *SHAPE), 255))


@pytest.mark.parametrize("model", [None, "vae.keras", keras.Sequential([keras.Input((2,)), layers.Dense(1)])])
def test_other_models_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="must be a kerasae model"):
        export(model, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "message"), [("file/sub", "Can't write into"), ("file", "is a file"), (".", "of its own")]
)
def test_bad_folders(folder, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(build(), folder, replace=True)
    assert (tmp_path / "file").read_text() == "kept"


def test_examples_that_cant_be_made_up_are_asked_for(tmp_path):
    encoder = keras.Sequential([keras.Input((None, 2)), layers.Conv1D(2, 3, padding="same")])
    decoder = keras.Sequential([keras.Input((None, 2)), layers.Conv1D(2, 3, padding="same")])
    model = perturb(Autoencoder(encoder, decoder))
    with pytest.raises(ValueError, match="Pass a few as `x`"):
        export(model, tmp_path / "bundle")
    manifest = export(model, tmp_path / "bundle", x=np.random.default_rng(6).standard_normal((2, 5, 2)))
    assert manifest["parts"][0]["outputs"][0]["shape"] == ["batch", "z_1", 2]
    assert run_onnx(tmp_path / "bundle/autoencoder.onnx", np.zeros((2, 11, 2), "float32"))[0].shape == (2, 11, 2)


@keras.saving.register_keras_serializable("tests")
class WithThirdTerm(VariationalAutoencoder):
    """A variational autoencoder that keeps its codes short besides: training's business, not the score's."""

    term_names = ("reconstruction_loss", "kl_loss", "length_loss")

    def terms(self, x, outputs):
        return {**super().terms(x, outputs), "length_loss": keras.ops.sum(keras.ops.square(outputs["z"]), axis=1)}


def test_a_variational_model_with_a_third_term_is_exported(tmp_path):
    plain = build("variational-bernoulli")
    model = WithThirdTerm(plain.encoder, plain.decoder)
    manifest = export(model, tmp_path / "bundle")
    assert manifest["parity"]["max_relative_difference"] <= 1e-5
    x = np.random.default_rng(1).random((4, *SHAPE), dtype="float32")
    np.testing.assert_allclose(run_onnx(tmp_path / "bundle/score.onnx", x)[0], numpy_score(model, x), rtol=1e-5)


def test_a_decoder_with_a_condition_is_exported_with_a_port_for_it(tmp_path):
    image, label = keras.Input(SHAPE, name="image"), keras.Input((4,), name="label")
    hidden = layers.Concatenate()([layers.Flatten()(image), label])
    encoder = keras.Model([image, label], [layers.Dense(3)(hidden), layers.Dense(3)(hidden)])
    z, again = keras.Input((3,), name="z"), keras.Input((4,), name="label")
    flat = layers.Dense(int(np.prod(SHAPE)), "sigmoid")(layers.Concatenate()([z, again]))
    model = perturb(VariationalAutoencoder(encoder, keras.Model([z, again], layers.Reshape(SHAPE)(flat))))
    manifest = export(model, tmp_path / "bundle")
    inputs = {part["name"]: [port["name"] for port in part["inputs"]] for part in manifest["parts"]}
    assert inputs["decoder"] == ["z", "label"]
    assert inputs["sample"] == ["noise", "label"]
    assert inputs["autoencoder"] == inputs["score"] == ["x", "label"]
    codes, labels = np.random.default_rng(0).random((5, 3), "float32"), np.eye(5, 4, dtype="float32")
    (images,) = run_onnx(tmp_path / "bundle/decoder.onnx", codes, labels)
    np.testing.assert_allclose(images, model.decode(codes, condition=labels), atol=1e-5)

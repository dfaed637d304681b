"""The options of `kerasae export`."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from kerasae import zoo
from kerasae.cli.app import cli

MODEL = "undercomplete-dense-digits"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `kerasae export` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, ["export", *arguments])


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_deployment_options(run, tmp_path, digits):
    np.save(tmp_path / "x.npy", (255 * digits[1][:40]).round().astype("uint8"))
    options = "--format onnx --opset 18 --image-input uint8 --batch-size 2 --variant int8_dynamic --variant int8_static"
    result = run(MODEL, "bundle", *options.split(), "--calibration", "x.npy", "--examples", "x.npy")
    assert result.exit_code == 0, result.output
    written = manifest(tmp_path / "bundle")
    assert written["formats"] == ["onnx"]
    assert written["parts"][0]["inputs"][0]["shape"] == [2, 8, 8, 1]
    assert written["parts"][0]["inputs"][0]["dtype"] == "uint8"
    assert written["parity"]["examples"] == "given"
    errors = written["variants"]["reconstruction_error"]
    assert {"float32", "int8_dynamic", "int8_static"} < set(errors)
    error = np.square(digits[1][:40] - zoo.load(MODEL).predict(digits[1][:40], verbose=0)).sum((1, 2, 3)).mean()
    assert errors["float32"] == pytest.approx(error, rel=0.02)  # 17 grays, rounded to 256
    assert onnx.load(tmp_path / "bundle/encoder.int8_static.onnx").opset_import[0].version == 18
    assert "score" in result.output


def test_a_keras_file_becomes_a_page(run, tmp_path):
    zoo.load(MODEL).save(tmp_path / "mine.keras")
    (tmp_path / "dist").mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (tmp_path / "dist" / name).write_text(name)
    arguments = ("mine.keras", "page", "--page", "--runtime", "dist", "--denoiser", MODEL)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "python -m http.server --directory page" in result.output
    assert json.loads((tmp_path / "page/page.json").read_text()) == {"title": "mine", "denoiser": True}
    assert (tmp_path / "page/denoiser/autoencoder.onnx").exists()
    (tmp_path / "page/index.html").write_text("earlier")
    assert "is not empty" in str(run(*arguments).exception)
    assert (tmp_path / "page/index.html").read_text() == "earlier"
    assert run(*arguments, "--replace").exit_code == 0
    assert (tmp_path / "page/index.html").read_text() != "earlier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "dist"], "--runtime belongs to --page"),
        (["--page", "--opset", "18"], "--page takes no opset"),
        (["--calibration", "missing.npy"], "'missing.npy' does not exist"),
        (["--format", "onx"], "Did you mean 'onnx'"),
        (["--variant", "int4"], "`variants` must be one of"),
    ],
)
def test_mistakes(arguments, message, run, tmp_path):
    result = run(MODEL, "bundle", *arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert not (tmp_path / "bundle").exists()

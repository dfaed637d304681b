"""The command as a person runs it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasae


def run(*arguments, cwd, **kwargs):
    command = [str(Path(sys.executable).with_name("kerasae")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False, **kwargs)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A quickstart run twice into the same folder, with few epochs the second time."""
    cwd = tmp_path_factory.mktemp("quickstart")
    first = run("quickstart", cwd=cwd)
    again = run("quickstart", "--epochs", "1", cwd=cwd)
    return cwd / "kerasae-quickstart", first, again


def test_quickstart_walks_the_whole_road(quickstart):
    folder, first, _ = quickstart
    assert first.returncode == 0, first.stderr
    assert "Epoch 40/40" in first.stdout
    rows = {
        line.split()[0]: line.split()
        for line in first.stdout.splitlines()
        if line.startswith(("undercomplete ", "variational "))
    }
    assert float(rows["undercomplete"][2]) < float(rows["undercomplete"][3]) < 4  # better than PCA with two components
    assert "ELBO -2" in first.stdout
    for part in ("encoder", "decoder", "autoencoder"):
        for form in ("onnx", "saved_model"):
            (difference,) = [
                float(line.split()[2]) for line in first.stdout.splitlines() if line.split()[:2] == [part, form]
            ]
            assert difference < 1e-5
    assert str(folder.resolve()) in first.stdout


def test_quickstart_leaves_what_it_says(quickstart):
    folder, _, again = quickstart
    assert again.returncode == 0, again.stderr
    assert {path.name for path in folder.iterdir()} == {
        "undercomplete.keras",
        "variational.keras",
        "variational_bundle",
        *(
            f"{name}.png"
            for name in ("reconstructions", "codes", "samples", "undercomplete_training", "variational_training")
        ),
    }
    model = keras.saving.load_model(folder / "variational.keras")
    _, x_test = kerasae.data.load("digits")
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "variational_bundle" / "encoder.onnx")
    np.testing.assert_allclose(session.run(["z_mean"], {"x": x_test})[0], model.encode(x_test), atol=1e-4)


def test_quickstart_says_at_once_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    started = time.monotonic()
    result = run("quickstart", "--folder", "file/sub", cwd=tmp_path)
    assert result.returncode == 1
    assert "Can't write into file/sub" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - started < 10  # before anything is imported or trained


def test_quickstart_names_near_datasets(tmp_path):
    result = run("quickstart", "--dataset", "fashion-mnist", cwd=tmp_path)
    assert result.returncode == 1
    assert "fashion_mnist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["zoo", "list"], ["zoo", "show", "variational-dense-digits"]], ids=" ".join
)
def test_answers_without_tensorflow(arguments, tmp_path):
    code = (
        "import sys; sys.argv = ['kerasae', *sys.argv[1:]]\n"
        "from kerasae.cli import cli\n"
        "try: cli()\n"
        "finally: assert not {'tensorflow', 'keras'} & set(sys.modules), 'imported TensorFlow'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    # ... and so does the installed command
    assert run(*arguments, cwd=tmp_path).stdout == result.stdout


def test_export_command(tmp_path):
    result = run("export", "undercomplete-dense-digits", "bundle", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "bundle" / "manifest.json").exists()
    again = run("export", "undercomplete-dense-digits", "bundle", cwd=tmp_path)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_zoo_train_and_evaluate(tmp_path):
    recipe = Path(kerasae.zoo.recipe_path("undercomplete-dense-digits")).read_text()
    (tmp_path / "mine.toml").write_text(recipe.replace("epochs = 100", "epochs = 2"))
    result = run("zoo", "train", "mine.toml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {
        "recipe.toml",
        "model.keras",
        "metrics.json",
        "card.md",
        "preview.png",
    }
    assert "# mine" in result.stdout
    misspelt = run("zoo", "evaluate", "undercomplete-dense-digit", cwd=tmp_path)
    assert misspelt.returncode == 1
    assert "undercomplete-dense-digits" in misspelt.stderr


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs prepared MNIST: set TFDS_DATA_DIR")
@pytest.mark.slow
def test_quickstart_on_mnist(tmp_path):
    result = run("quickstart", "--dataset", "mnist", "--epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "60,000 training and 10,000 test images" in result.stdout

"""The command as a person runs it."""

import contextlib
import csv
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kerasae
from kerasae import writing
from kerasae.cli import detect, shared, train
from kerasae.cli.app import cli
from kerasae.data import files
from kerasae.runs import checkpoints, examples, recipes, workers


def run(*arguments, cwd, **kwargs):
    command = [str(Path(sys.executable).with_name("kerasae")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False, **kwargs)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A quickstart run twice into the same folder, with few epochs the second time."""
    cwd = tmp_path_factory.mktemp("quickstart")
    first = run("quickstart", cwd=cwd)
    refused = run("quickstart", "--epochs", "1", cwd=cwd)
    assert "is not empty. Choose another folder, or --overwrite" in refused.stderr
    again = run("quickstart", "--epochs", "1", "--overwrite", cwd=cwd)
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
    "arguments",
    [["--version"], ["--help"], ["train", "--help"], ["zoo", "list"], ["zoo", "show", "variational-dense-digits"]],
    ids=" ".join,
)
def test_answers_without_tensorflow(arguments, tmp_path):
    code = (
        "import sys\n"
        "from kerasae.cli import main\n"
        "try: main()\n"
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
        "data.json",
        "model.keras",
        "history.json",
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


# -- train, and what is done with what it leaves -----------------------------------------------------------------------------------------

SMALL = ["--epochs", "2", "--latent-dim", "2", "--hidden-units", "8"]


def call(*arguments, code=0):
    """Runs the command in this process; gives what it printed, or the error that it ends with."""
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if isinstance(result.exception, (ValueError, OSError)):
        assert code == 1, result.exception  # as `main` says it
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output if code else result.stdout


def write_table(path, columns, num_rows=60, seed=0):
    values = np.random.default_rng(seed).normal(size=(num_rows, len(columns))) * 100 + 1e6
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *values.tolist()])
    return values


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `digits`, a run on digits, and `table`, one on table.csv; and what the first printed."""
    root = tmp_path_factory.mktemp("trained")
    write_table(root / "table.csv", ["a", "b", "c"])
    printed = call("train", "variational", "--data", "digits", "--folder", root / "digits", *SMALL, "--json")
    call("train", "variational", "--data", root / "table.csv", "--folder", root / "table", *SMALL)
    return root, printed


def test_a_run_is_complete_in_itself(trained):
    root, printed = trained
    result = json.loads(printed)  # one object, and nothing else
    run = root / "digits"
    assert {p.name for p in run.iterdir()} == {
        *("recipe.toml", "data.json", "model.keras", "history.json", "history.csv", "metrics.json"),
        *("figures", "report.html"),
    }
    assert {Path(f).as_posix() for f in result["files"]} >= {"report.html", "figures/reconstructions.png"}
    history = json.loads((run / "history.json").read_text())
    with open(run / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == history["val_loss"]
    assert len(rows) == 2
    recipe = recipes.read(run / "recipe.toml")
    assert recipe.family == "variational"
    assert recipe.model == {"latent_dim": 2, "hidden_units": [8]}
    values = {record["metric"]: record["value"] for record in result["metrics"]}
    _, x_test = kerasae.data.load("digits")
    model = keras.saving.load_model(run / "model.keras")
    expected = kerasae.metrics.squared_error(x_test, model.predict(x_test, verbose=0))
    assert values["squared_error"] == pytest.approx(expected, rel=1e-5)


def test_evaluate_measures_what_was_held_out(trained):
    root, printed = trained
    recorded = {r["metric"]: r["value"] for r in json.loads(printed)["metrics"]}
    again = json.loads(call("evaluate", root / "digits", "--json"))
    assert again["num_examples"] == 360
    assert {r["metric"]: r["value"] for r in again["metrics"]} == pytest.approx(recorded, rel=1e-4)
    given = json.loads(call("evaluate", root / "digits" / "model.keras", "--data", "digits", "--json"))
    assert {r["metric"] for r in given["metrics"]} == {"squared_error", "psnr", "negative_elbo", "active_units"}
    # the training data, named again, are not what a model is measured on
    table = json.loads(call("evaluate", root / "table", "--data", root / "table.csv", "--json"))
    assert table["num_examples"] == 6


def test_tables_go_through_the_run_s_scaling(trained, tmp_path):
    root, _ = trained
    model = keras.saving.load_model(root / "table" / "model.keras")
    values = write_table(tmp_path / "new.csv", ["a", "b", "c"], 20, seed=1)
    facts = json.loads((root / "table" / "data.json").read_text())["preparation"]
    x = ((values - facts["offset"]) / facts["scale"]).astype("float32")
    call("encode", root / "table", tmp_path / "new.csv", tmp_path / "z.npy")
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), model.encode(x), atol=1e-5)
    call("reconstruct", root / "table", tmp_path / "new.csv", tmp_path / "x.csv")
    made = np.genfromtxt(tmp_path / "x.csv", delimiter=",", skip_header=1)
    expected = model.predict(x, verbose=0) * facts["scale"] + facts["offset"]
    np.testing.assert_allclose(made, expected, rtol=1e-6)
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == '"a","b","c"'
    call("sample", root / "table", tmp_path / "s.parquet", "--num", 7, "--seed", 1)
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "s.parquet").column_names == ["a", "b", "c"]
    assert "is there already" in call("encode", root / "table", tmp_path / "new.csv", tmp_path / "z.npy", code=1)


def test_images_come_out_as_images(trained, tmp_path):
    root, _ = trained
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (30, 50), (255, 255, 255)).save(tmp_path / "photos" / "white.jpg")
    call("reconstruct", root / "digits", tmp_path / "photos", tmp_path / "out")
    model = keras.saving.load_model(root / "digits" / "model.keras")
    expected = model.predict(np.ones((1, 8, 8, 1), "float32"), verbose=0)[0, ..., 0]
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "out" / "white.png")) / 255, expected, atol=1 / 255)
    call("encode", root / "digits", tmp_path / "photos", tmp_path / "photos.npz")
    with np.load(tmp_path / "photos.npz") as z:
        assert z["file"].tolist() == ["white.jpg"]
        assert z["z"].shape == (1, 2)
    call("sample", root / "digits", tmp_path / "grid.png", "--num", 4)
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    call("encode", root / "digits", "digits", tmp_path / "z.npz")
    with np.load(tmp_path / "z.npz") as z:
        assert z["z"].shape == (360, 2)
        assert z["label"].shape == (360,)
    result = json.loads(call("figures", root / "digits", "--folder", tmp_path / "figures", "--json"))
    assert {"training", "latent_grid", "samples", "unit_kl"} <= set(result["figures"])
    assert all(Path(path).is_file() for path in result["figures"].values())
    undercomplete = "undercomplete-dense-digits"
    assert "only families with a prior" in call("sample", undercomplete, tmp_path / "no.npy", code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("train varational --data digits --folder run", 2, "Did you mean 'variational'"),
        ("train variational --data digits --folder run --set betta=2", 2, "Did you mean 'beta'"),
        ("train variational --folder run", 2, "Train on what?"),
        ("train --folder run", 2, "Train what?"),
        ("train variational --data ./phtos --folder run", 1, "no file or folder './phtos'"),
        ("train variational --data phtos --folder run", 1, "no file or folder 'phtos'; unknown dataset"),
        ("train variational --data few.csv --folder run", 1, "At least 10 examples are needed"),
        ("train variational --data few.csv --folder few.csv", 1, "is a file"),
        ("train variational --data few.csv --folder .", 1, "is not empty, it holds other files"),
        ("train --resume --folder missing", 1, "no run in missing to resume"),
        ("evaluate variational-dense-digit", 1, "Did you mean one of"),
        ("evaluate missing.keras", 1, "no file 'missing.keras'"),
        ("evaluate torn.keras", 1, "can't be loaded by Keras"),
        ("evaluate .", 1, "no folder that `kerasae train` wrote"),
        ("encode variational-dense-digits digits missing/z.npy", 1, "no folder missing"),
        ("encode variational-dense-digits digits z.txt", 2, "OUT must end in .npy"),
    ],
)
def test_mistakes_are_said_at_the_door(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "few.csv", ["a", "b"], 5)
    (tmp_path / "torn.keras").write_text("no model")
    assert message in call(*arguments.split(), code=code)
    assert {p.name for p in tmp_path.iterdir()} == {"few.csv", "torn.keras"}  # nothing is left behind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train varational --data table.csv --folder run", "Did you mean 'variational'"),
        ("train linear --data missing.csv --folder run", "no file or folder 'missing.csv'"),
        ("train linear --data notes.txt --folder run", "must be a folder of images, or end in"),
        ("train linear --data empty --folder run", "no images in empty"),
        ("train linear --data table.csv --image-size 8 --folder run", "'image_size' doesn't apply"),
        ("train linear --data digits --columns a --folder run", "only own files"),
        ("train recipe.toml --folder run", "no file or folder"),
        ("train linear --data table.csv --folder table.csv", "is a file"),
        ("evaluate variational-dense-digits --data empty", "no images in empty"),
        ("figures variational-dense-digits --data notes.txt --folder f", "must be a folder of images"),
        ("encode variational-dense-digits missing.npy z.npy", "no file or folder 'missing.npy'"),
        ("reconstruct variational-dense-digits empty z.npy", "no images in empty"),
        ("encode variational-dense-digits table.csv table.csv", "is there already"),
        ("encode missing.keras table.csv z.csv", "no file 'missing.keras'"),
        ("detect fit empty --folder d", "no images in empty"),
        ("detect fit table.csv --folder d", "At least 10 examples"),
    ],
)
def test_what_can_be_known_is_said_before_tensorflow_is_imported(arguments, message, tmp_path):
    write_table(tmp_path / "table.csv", ["a", "b"], 5)
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    recipe = Path(kerasae.zoo.recipe_path("undercomplete-dense-digits")).read_text()
    (tmp_path / "recipe.toml").write_text(recipe.replace('name = "digits"', 'path = "gone.npy"'))
    code = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\nfrom kerasae.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode in (1, 2)
    assert message in result.stderr


def test_data_that_are_read_otherwise_than_in_training_are_said(trained, tmp_path):
    shutil.copytree(trained[0] / "table", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    facts["num_train"] += 1  # as when a header of numbers was taken for a row
    (tmp_path / "run" / "data.json").write_text(json.dumps(facts))
    assert "was read otherwise when the model was trained" in call("evaluate", tmp_path / "run", code=1)


@pytest.mark.parametrize(
    ("command", "arguments", "positional", "drop"),
    [
        (train.train, "linear --data t.csv --drop a b c --folder run", "linear", ("a", "b", "c")),
        (train.train, "--drop a b linear --folder run", "linear", ("a", "b")),
        (train.train, "--drop a linear --folder run", "linear", ("a",)),
        (train.train, "linear --drop a --drop b c --folder run", "linear", ("a", "b", "c")),
        (detect.fit, "--folder d --drop a b t.csv", "t.csv", ("a", "b")),
    ],
)
def test_drop_takes_several_columns(command, arguments, positional, drop):
    given = command.make_context("kerasae", arguments.split()).params
    assert (given.get("what") or given.get("data"), given["drop"]) == (positional, drop)
    with pytest.raises(click.UsageError, match=r"unexpected extra argument \(more\)"):
        command.make_context("kerasae", ["--folder", "d", "one", "more"])


RECIPE = """
family = "variational"
description = "A table."
measure = []
[data]
path = "table.csv"
[model]
latent_dim = 2
hidden_units = [8]
[training]
epochs = 1
"""


def test_what_the_likelihood_takes_decides_how_a_table_is_scaled(tmp_path):
    values = write_table(tmp_path / "table.csv", ["a", "b", "c"])
    (tmp_path / "bernoulli.toml").write_text(RECIPE)  # the default of the family
    call("train", tmp_path / "bernoulli.toml", "--folder", tmp_path / "run")
    preparation = json.loads((tmp_path / "run" / "data.json").read_text())["preparation"]
    train = values[files.split(60, 0.1, 0)[0]]
    assert preparation["scaling"] == "minmax"
    np.testing.assert_allclose(preparation["offset"], train.min(axis=0))
    np.testing.assert_allclose(preparation["scale"], np.ptp(train, axis=0))
    (tmp_path / "gaussian.toml").write_text(RECIPE.replace("[model]", '[model]\nlikelihood = "gaussian"'))
    loaded = examples.load(recipes.read(tmp_path / "gaussian.toml"))
    assert loaded.preparation.scaling == "standard"
    np.testing.assert_allclose(loaded.train[0].std(axis=0), 1, rtol=1e-5)


def test_the_data_decide_what_nobody_said(tmp_path):
    write_table(tmp_path / "table.csv", ["a", "b", "c"])
    train = ["train", "k_sparse", "--data", tmp_path / "table.csv", "--epochs", 1, "--set", "k=2"]
    call(*train, "--folder", tmp_path / "run", "--validation", 0)
    recipe = recipes.read(tmp_path / "run" / "recipe.toml")
    assert (recipe.model["latent_dim"], recipe.training.batch_size, recipe.data.validation) == (8, 32, 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("tied=False", False), ("a=True", True), ("a=false", False), ("a=selu", "selu"), ("a=[1, 2]", [1, 2])],
)
def test_set_takes_toml_words_and_python_s_booleans(text, value):
    assert shared.setting(text)[1] == value
    assert type(shared.setting(text)[1]) is type(value)


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch=1):
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_with_the_same_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", ["a", "b", "c"])
    train = ["train", "undercomplete", "--data", "table.csv", "--folder", "run", *SMALL]
    fit = kerasae.models.Autoencoder.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            kerasae.models.Autoencoder,
            "fit",
            lambda self, *args, callbacks, **kwargs: fit(self, *args, callbacks=[*callbacks, Stop()], **kwargs),
        )
        result = CliRunner().invoke(cli, train)
    assert "Go on with: kerasae train --resume --folder run" in result.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".checkpoint"]
    assert "--resume goes on with it" in call(*train, code=1)
    assert "is not finished" in call("evaluate", "run", code=1)
    assert "training.epochs was 2 and is 3" in call(*train, "--epochs", 3, "--resume", code=1)
    # what can't be trained does not cost the run that is there
    for wrong in (["--set", "betta=2"], ["--set", "latent_dim=a"], ["--data", "missing.csv"], ["--drop", "d"]):
        call(*train, "--overwrite", *wrong, code=2 if "betta=2" in wrong else 1)
    with writing.locked("run", "training"):
        for how in ("--overwrite", "--resume"):
            assert "Another process is training in run" in call(*train, how, code=1)
    assert list(Path("run/.checkpoint").glob("epoch-1.*"))
    content = Path("table.csv").read_bytes()
    write_table(tmp_path / "table.csv", ["a", "b", "c"], seed=5)
    assert "have changed since the run" in call("train", "--resume", "--folder", "run", code=1)
    Path("table.csv").write_bytes(content)
    result = json.loads(call("train", "--resume", "--folder", "run", "--json"))
    assert result["training"]["epochs_in_this_process"] == 1
    assert len(json.loads(Path("run/history.json").read_text())["loss"]) == 2
    assert not Path("run/.checkpoint").exists()
    # finished: --resume has nothing to do, and without --overwrite nothing is trained over it
    assert json.loads(call("train", "--resume", "--folder", "run", "--json"))["model"] == result["model"]
    assert "holds a finished run" in call(*train, code=1)
    Path("run/figures/mine.png").write_text("kept")
    Path("run/notes.txt").write_text("kept")
    Path("run/figures/samples.png").touch()  # that this family has not
    call(*train, "--overwrite", "--epochs", "1")
    assert len(json.loads(Path("run/history.json").read_text())["loss"]) == 1
    assert Path("run/notes.txt").read_text() == Path("run/figures/mine.png").read_text() == "kept"
    assert not Path("run/figures/samples.png").exists()


def test_a_damaged_checkpoint_goes_on_from_the_state_before(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", ["a", "b", "c"])
    train = ["train", "undercomplete", "--data", "table.csv", "--hidden-units", 8, "--epochs", 4]
    fit = kerasae.models.Autoencoder.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            kerasae.models.Autoencoder,
            "fit",
            lambda self, *args, callbacks, **kwargs: fit(self, *args, callbacks=[*callbacks, Stop(3)], **kwargs),
        )
        CliRunner().invoke(cli, [str(a) for a in [*train, "--folder", "run"]])
    state = Path("run/.checkpoint")
    assert sorted(p.name for p in state.glob("epoch-*")) == ["epoch-2.weights.h5", "epoch-3.weights.h5"]
    shutil.copytree("run", "all")
    call(*train, "--folder", "whole")
    (state / "epoch-3.weights.h5").write_bytes((state / "epoch-3.weights.h5").read_bytes()[:3000])
    (state / "history.json").write_text('{"history"')
    (state / "run.json").write_text("{")
    assert "run.json, which tells what the run is of, is damaged" in call(
        "train", "--resume", "--folder", "run", code=1
    )
    result = json.loads(call(*train, "--folder", "run", "--resume", "--json"))
    assert result["training"]["epochs_in_this_process"] == 2
    assert "epoch-3.weights.h5 can't be loaded" in caplog.text
    assert "the curves of the first 2 epochs are lost" in caplog.text
    loss, expected = (json.loads(Path(run, "history.json").read_text())["loss"] for run in ("run", "whole"))
    assert loss[2:] == pytest.approx(expected[2:], rel=0.01)  # in another order
    assert np.isnan(loss[:2]).all()
    for path in Path("all/.checkpoint").glob("epoch-*"):
        path.write_text("damaged")
    assert "To start this run again from the first epoch, remove" in call(
        "train", "--resume", "--folder", "all", code=1
    )


def test_workers_go_on_from_the_last_state_that_all_have_whole(tmp_path, caplog):
    import tensorflow as tf

    model = kerasae.builders.undercomplete(4, latent_dim=2, hidden_units=())
    workers.checkpoint(tmp_path, 1).mkdir(parents=True)
    weights, progress = {}, checkpoints.Progress(workers.checkpoint(tmp_path, 0))
    for epoch in (4, 5):
        model.set_weights([w + 1 for w in model.get_weights()])
        weights[epoch] = model.get_weights()[0]
        progress.save(model, epoch, {"loss": 1.0})
    workers._level(tmp_path, 2)
    own, other = (checkpoints.Progress(workers.checkpoint(tmp_path, i)) for i in (0, 1))
    assert set(own.states()) == set(other.states()) == {4, 5}
    found, strategy = [], tf.distribute.get_strategy()
    assert own.restore(model, lambda epochs: workers.last_common_epoch(strategy, epochs)) == 5
    other.states()[5].write_bytes(b"damaged")
    assert other.restore(model, lambda epochs: found.append(epochs) or 4) == 4
    assert "epoch-5.weights.h5 can't be loaded" in caplog.text
    assert found == [[4]]
    model.set_weights([w + 1 for w in model.get_weights()])
    assert own.restore(model, lambda epochs: found.append(epochs) or 4) == 4  # as the other has no later one
    assert found[1] == [5, 4]
    assert set(own.states()) == set(other.states()) == {4}
    np.testing.assert_array_equal(model.get_weights()[0], weights[4])
    assert workers.last_common_epoch(strategy, []) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
@pytest.mark.parametrize("step", [0, 3, 9, 14, 25])
def test_a_run_whose_replacing_is_killed_is_whole_at_the_next_start(trained, tmp_path, step):
    """Whether before the last of the old files is aside, or before the last of the new ones is in."""
    root, _ = trained
    run = shutil.copytree(root / "table", tmp_path / "run")
    process = os.fork()
    if process == 0:
        moves, move = itertools.count(), writing._move
        writing._move = lambda *paths: os._exit(9) if next(moves) == step else move(*paths)
        with contextlib.suppress(BaseException), writing.together(run, checkpoints.files_of) as beside:
            shutil.copytree(root / "digits", beside, dirs_exist_ok=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert held(run) not in (held(root / "table"), held(root / "digits"))
    assert json.loads(call("train", "--resume", "--folder", run, "--json"))["metrics"]  # finished
    assert held(run) in (held(root / "table"), held(root / "digits"))


def test_large_images_get_a_convolutional_network():
    shape = {"variational": (128, 96, 3), "deep": (33, 33, 1), "undercomplete": (28, 28, 1), "linear": (64, 64, 1)}
    chosen = {family: recipes.with_network(family, {"latent_dim": 16}, shape) for family, shape in shape.items()}
    conv = {"latent_dim": 16, "network": "conv"}
    assert chosen == {
        "variational": {**conv, "hidden_units": [16, 32, 64, 128]},
        "deep": {**conv, "hidden_units": [32, 64, 128]},
        "undercomplete": {"latent_dim": 16},
        "linear": {"latent_dim": 16},
    }
    for given in ({"network": "dense"}, {"hidden_units": [512]}):
        assert recipes.with_network("variational", given, (64, 64, 1)) == given
    assert recipes.with_network("variational", {}, (64,)) == recipes.with_network("variational", {}, (64, 64, 9)) == {}


def test_a_full_disk_is_said(trained, tmp_path):
    """As a limit on the size of files: HDF5 and memory maps end the process by a signal where the disk is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = kerasae.builders.undercomplete((28, 28, 1), latent_dim=2)
    checkpoints.save_weights(model, tmp_path / "epoch-1.weights.h5")
    before = held(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=r"epoch-1.weights.h5 could not be written: File too large. What was there"):
            checkpoints.save_weights(model, tmp_path / "epoch-1.weights.h5")
        assert "x.npy could not be written" in call(
            "sample", trained[0] / "digits", tmp_path / "x.npy", "--num", 999, code=1
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert held(tmp_path) == before
    model.load_weights(tmp_path / "epoch-1.weights.h5")


def test_a_pipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.csv", "x.npy", "x.png", "r.toml"):
        os.mkfifo(name)
    for command in (
        "train linear --data x.csv --folder run",
        "train r.toml --folder run",
        "detect fit x.npy --folder run",
        "detect fit x.png --folder run",
    ):
        assert "is a pipe or device. Write what comes" in call(*command.split(), code=1), command
    exported = "export variational-dense-digits bundle --examples x.npy"
    assert "it is no file" in call(*exported.split(), code=1)


def held(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_only_what_a_command_wrote_is_overwritten(trained, tmp_path, monkeypatch):
    root, _ = trained
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(root / "digits", "run")
    for name in ("photos/figures", "photos/1", "out"):
        Path(name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), i).save(f"{name}/{i:05}.png")
    np.save("x.npy", np.zeros((20, 8, 8, 1), "float32"))
    write_table(tmp_path / "table.csv", ["a", "b", "c"])
    before = held(tmp_path)
    for command, message in {
        "train linear --data run/figures --folder run": "run is, or holds,",
        "train linear --data table.csv --folder photos": "holds no run, but 1/00000.png",
        "detect fit table.csv --folder photos": "holds nothing that this command wrote",
        "detect fit photos --folder photos/detector": "lies in photos",
        "quickstart --folder run": "holds nothing that this command wrote",
        "figures run --folder photos": "PNG files of earlier versions of kerasae don't say who wrote them",
        "figures run --data run/figures --folder run/figures": "is, or holds, run/figures",
        "reconstruct run photos photos": "holds nothing that this command wrote",
        "reconstruct run x.npy x.npy": "is, or holds, x.npy",
        "encode run x.npy ./x.npy": "is, or holds, x.npy",
        "sample run out": "holds nothing that this command wrote",
    }.items():
        assert message in call(*command.split(), "--overwrite", code=1), command
    assert "photos/run lies in" in call(*"train linear --data photos --folder photos/run".split(), code=1)
    assert "another recipe: " in call("zoo", "train", "variational-dense-digits", "--folder", run, code=1)
    assert held(tmp_path) == before
    # images that it made are replaced, others stay
    call("sample", run, "made", "--num", 5)
    Path("out/00003.png").rename("made/mine.png")
    call("sample", run, "made", "--num", 2, "--overwrite")
    assert {p.name for p in Path("made").iterdir()} == {"00000.png", "00001.png", "mine.png"}
    Path("made/mine.png").rename("made/00001.png")
    assert "same command: 00001.png" in call("sample", run, "made", "--num", 2, "--overwrite", code=1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on(how, tmp_path):
    command = [str(Path(sys.executable).with_name("kerasae")), "train", "undercomplete", "--data", "digits"]
    process = subprocess.Popen([*command, "--folder", "run", "--epochs", "30"], cwd=tmp_path, stderr=subprocess.PIPE)
    while not list((tmp_path / "run" / ".checkpoint").glob("epoch-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    result = run("train", "--resume", "--folder", "run", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["training"]["epochs_in_this_process"] < 30


@pytest.mark.slow
def test_two_workers_train_as_one_process_does(tmp_path):
    train = ["train", "undercomplete", "--data", "digits", *SMALL, "--batch-size", "64"]
    for name, arguments in {"one": [], "two": ["--workers", "2"]}.items():
        result = run(*train, "--folder", name, *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    one, two = (keras.saving.load_model(tmp_path / name / "model.keras").get_weights() for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert not (tmp_path / "two" / ".checkpoint").exists()


@pytest.mark.slow
def test_a_worker_that_waits_in_vain_says_so(tmp_path):
    with socket.socket() as s, socket.socket() as t:
        s.bind(("127.0.0.1", 0))
        t.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{x.getsockname()[1]}" for x in (s, t)]
    config = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 1}})
    train = ["train", "undercomplete", "--data", "digits", "--folder", "run", "--wait", "10"]
    result = run(*train, cwd=tmp_path, env={**os.environ, "TF_CONFIG": config})
    assert result.returncode == 1
    assert f"No answer from {addresses[0]}" in result.stderr


def test_a_tf_config_that_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}')
    assert "with an index of the list" in call(
        "train", "linear", "--data", "digits", "--folder", tmp_path / "run", code=1
    )

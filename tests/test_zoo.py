"""Every registered model loads, and scores what its folder records."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasae
from kerasae import zoo
from kerasae.runs import recipes
from kerasae.zoo import making, sources

ROOT = Path(__file__).parents[1]
EMBEDDED = zoo.list_models(dataset="digits")


def needs(model_id):
    name = zoo.describe(model_id)["recipe"]["data"]["name"]
    if name != "digits" and "TFDS_DATA_DIR" not in os.environ:
        pytest.skip(f"needs prepared {name}: set TFDS_DATA_DIR")


# Measured in seconds. The others fit PCA or a classifier to 60,000 images, draw 5000 samples an image or search 60,000 codes.
QUICK = {"squared_error", "negative_elbo", "active_units"}


@pytest.fixture(scope="module")
def loaded_once():
    """Reading 60,000 images takes longer than most measurements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kerasae.data.datasets, "load", functools.cache(kerasae.data.load))
        yield


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["quick", "the rest"])
@pytest.mark.parametrize("model_id", zoo.list_models())
def test_a_model_scores_what_is_recorded(model_id, quick):
    needs(model_id)
    recorded = [r for r in zoo.describe(model_id)["metrics"] if (r["metric"] in QUICK) == quick]
    if not recorded:
        pytest.skip("no such figure")
    names = {record["metric"] for record in recorded}
    # Training a classifier again does not give the same weights to the last bit.
    tolerance = {"finetuned_error": 0.1, "linear_probe_error": 0.02}
    for old, new in zip(recorded, making.evaluate(model_id, metrics=names), strict=True):
        value = old.pop("value")
        assert new.pop("value") == pytest.approx(value, rel=tolerance.get(old["metric"], 1e-3)), old
        assert new == old


@pytest.mark.parametrize("model_id", zoo.list_models())
def test_a_card_is_generated_from_its_facts(model_id):
    facts = zoo.describe(model_id)
    assert zoo.card(model_id) == making.card(recipes.read(zoo.recipe_path(model_id)), facts)


def test_there_are_embedded_models_of_both_families():
    assert {"undercomplete-dense-digits", "variational-dense-digits"} <= set(EMBEDDED)
    variational = zoo.list_models(family="variational", dataset="digits")
    assert "variational-dense-digits" in variational
    assert {zoo.describe(model_id)["recipe"]["family"] for model_id in variational} == {"variational"}


def test_a_loaded_model_computes_trains_and_samples(digits):
    model = zoo.load("variational-dense-digits")
    assert model.sample(3, seed=0).shape == (3, 8, 8, 1)
    assert model.encode(digits[1]).shape == (360, 8)
    model.compile("adam")
    model.fit(digits[0][:64], verbose=0)


def test_an_unknown_id_offers_near_ones():
    with pytest.raises(ValueError, match="Did you mean one of .*'variational-dense-digits'"):
        zoo.load("variational-dense-digit")


def test_the_index_and_the_table_are_up_to_date():
    regenerate = "run `kerasae zoo publish` on the folder zoo/models of the checkout"
    assert json.loads((sources.PACKAGED / "index.json").read_text()) == making.index(sources.PACKAGED), regenerate
    assert (sources.PACKAGED / "README.md").read_text() == making.table(sources.PACKAGED), regenerate


def packaged_files():
    """The files of the zoo that pyproject.toml puts into the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

    def matching(key):
        patterns = setuptools.get(key, {}).get("kerasae.zoo", [])
        return {path for pattern in patterns for path in (ROOT / "zoo").glob(pattern) if path.is_file()}

    return matching("package-data") - matching("exclude-package-data")


def test_the_wheel_stays_small():
    size = sum(path.stat().st_size for path in packaged_files())
    assert size < 60e6, "list the largest model.keras under [tool.setuptools.exclude-package-data]"


def test_the_wheel_holds_the_zoo(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="needs the setuptools that pyproject.toml builds with")
    source = tmp_path / "source"
    for name in ("kerasae", "export", "zoo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 60e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed" / "kerasae" / "zoo" / "models"
    index = sources.source(installed).index()
    assert set(index.models) == set(zoo.list_models(source="packaged"))
    expected = {path.relative_to(ROOT / "zoo" / "models") for path in packaged_files()}
    assert {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()} == expected
    for path in installed.glob("*/model.keras"):
        assert zoo.download(path.parent.name, source=installed)  # complete, with the right hashes


RECIPE = """
family = "undercomplete"
description = "A test."

[data]
name = "digits"
validation = 200

[model]
latent_dim = 2
hidden_units = [16]

[training]
learning_rate = 1e-2
batch_size = 64
epochs = 2

[[measure]]
metric = "squared_error"
"""


def test_making_a_model_writes_everything_and_resumes(tmp_path, monkeypatch, digits):
    (tmp_path / "recipe.toml").write_text(RECIPE)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    fit = kerasae.models.Autoencoder.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            kerasae.models.Autoencoder,
            "fit",
            lambda self, *args, callbacks, **kwargs: fit(self, *args, callbacks=[*callbacks, Interrupt()], **kwargs),
        )
        with pytest.raises(KeyboardInterrupt):
            making.make(tmp_path / "recipe.toml", tmp_path / "model", verbose=0)
    assert {p.name for p in (tmp_path / "model").iterdir()} == {".checkpoint"}  # nothing half-made
    facts = making.make(tmp_path / "recipe.toml", tmp_path / "model", verbose=0)
    assert facts["training"]["epochs_in_this_process"] == 1
    assert "val_loss" in facts["training"]["last_epochs"]
    model = keras.saving.load_model(tmp_path / "model" / "model.keras")
    measured = kerasae.metrics.squared_error(digits[1], model.predict(digits[1], verbose=0))
    assert facts["metrics"][0]["value"] == pytest.approx(measured, rel=1e-5)
    assert np.isfinite(measured)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('family = "undercomplete"', 'family = "undercompete"', "Did you mean 'undercomplete'"),
        ("latent_dim = 2", "latent_dims = 2", "Did you mean 'latent_dim'"),
        ("epochs = 2", "epoch = 2", r"training.epochs: Field required.*training.epoch: Extra"),
        ("epochs = 2", "epochs = -1", "training.epochs: Input should be greater than or equal to 0"),
        ('metric = "squared_error"', 'metric = "square_error"', "Did you mean 'squared_error'"),
        ("validation = 200", "validation = 20000", "less than the 1437 training images"),
        ("[training]", "[training", "is not a TOML file"),
    ],
)
def test_a_bad_recipe_names_what_is_wrong(tmp_path, old, new, message):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(old, new).replace("epochs = 2", "epochs = 1"))
    with pytest.raises(ValueError, match=message):
        making.make(tmp_path / "recipe.toml", tmp_path / "model", verbose=0)
    assert not (tmp_path / "model" / "model.keras").exists()

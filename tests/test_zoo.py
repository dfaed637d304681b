"""Every registered model loads, and scores what its folder records."""

import os
import shutil

import keras
import numpy as np
import pytest

import kerasae
from kerasae import recipes, zoo
from kerasae.zoo import making

EMBEDDED = zoo.list_models(dataset="digits")


def needs(model_id):
    name = zoo.describe(model_id)["recipe"]["data"]["name"]
    if name != "digits" and "TFDS_DATA_DIR" not in os.environ:
        pytest.skip(f"needs prepared {name}: set TFDS_DATA_DIR")


@pytest.mark.parametrize("model_id", zoo.list_models())
def test_a_model_scores_what_is_recorded(model_id):
    needs(model_id)
    recorded = zoo.describe(model_id)["metrics"]
    assert recorded
    for old, new in zip(recorded, making.evaluate(model_id), strict=True):
        value = old.pop("value")
        assert new.pop("value") == pytest.approx(value, rel=1e-3), old
        assert new == old


@pytest.mark.parametrize("model_id", zoo.list_models())
def test_a_card_is_generated_from_its_facts(model_id):
    facts = zoo.describe(model_id)
    assert zoo.card(model_id) == making.card(recipes.read(zoo.recipe_path(model_id)), facts)


def test_there_are_embedded_models_of_both_families():
    assert {"undercomplete-dense-digits", "variational-dense-digits"} <= set(EMBEDDED)
    assert zoo.list_models(family="variational", dataset="digits") == ["variational-dense-digits"]


def test_a_loaded_model_computes_trains_and_samples(digits):
    model = zoo.load("variational-dense-digits")
    assert model.sample(3, seed=0).shape == (3, 8, 8, 1)
    assert model.encode(digits[1]).shape == (360, 8)
    model.compile("adam")
    model.fit(digits[0][:64], verbose=0)


def test_an_unknown_id_offers_near_ones():
    with pytest.raises(ValueError, match="Did you mean one of .*'variational-dense-digits'"):
        zoo.load("variational-dense-digit")


def test_tampered_and_missing_weights_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "variational-dense-digits"
    shutil.copytree(zoo.recipe_path("variational-dense-digits").parent, folder)
    monkeypatch.setattr(zoo, "_MODELS", tmp_path)
    content = (folder / "model.keras").read_bytes()
    (folder / "model.keras").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not the file that was published: its sha256"):
        zoo.load("variational-dense-digits")
    (folder / "model.keras").unlink()
    with pytest.raises(FileNotFoundError, match="weights of 'variational-dense-digits' are missing"):
        zoo.load("variational-dense-digits")


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
    assert "val_loss" in facts["training"]["last_epoch"]
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
        ("epochs = 2", "epochs = 0", "training.epochs: Input should be greater than 0"),
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

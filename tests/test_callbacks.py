"""Pictures while training: what is written and when, and that training does not notice."""

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from families import EVERY_CLASS, FAMILIES

from kerasae import builders, figures, models
from kerasae.callbacks import Pictures

LABELS = np.arange(12) % 3


def compiled(name, **kwargs):
    keras.utils.set_random_seed(1)
    model = FAMILIES[name]()
    model.compile(optimizer=keras.optimizers.Adam(0.01), **kwargs)
    return model


def written(folder):
    return sorted(path.name for path in folder.iterdir())


def files(epochs, *names):
    return sorted(f"epoch-{epoch:04d}-{name}.png" for epoch in epochs for name in names)


@pytest.mark.parametrize(
    ("epochs", "every", "initial_epoch", "expected"),
    [(3, 2, 0, [2, 3]), (4, 2, 3, [4])],
)
def test_pictures_come_every_few_epochs_and_at_the_end(digits, tmp_path, epochs, every, initial_epoch, expected):
    model = compiled("undercomplete-dense")
    pictures = Pictures(digits[1][:12], tmp_path, every=every)
    model.fit(digits[0][:32], epochs=epochs, initial_epoch=initial_epoch, verbose=0, callbacks=[pictures])
    assert written(tmp_path) == files(expected, "reconstructions", "codes", "units")


def test_a_second_fit_draws_its_own_end(digits, tmp_path):
    model = compiled("undercomplete-dense")
    pictures = Pictures(digits[1][:12], tmp_path)
    model.fit(digits[0][:32], verbose=0, callbacks=[pictures])
    (tmp_path / "epoch-0001-codes.png").unlink()
    model.fit(digits[0][:32], verbose=0, callbacks=[pictures])
    assert "epoch-0001-codes.png" in written(tmp_path)


def units_of(model, x):
    if isinstance(model, models.VariationalAutoencoder):
        return figures.unit_kl(*model.encoder.predict(x, verbose=0))
    threshold = 0 if isinstance(model, models.KSparseAutoencoder) else 0.01
    return figures.unit_variance(model.encode(x), threshold)


@pytest.mark.parametrize(
    "name",
    [
        "undercomplete-dense",
        "denoising-gaussian",
        "k-sparse-dense",
        "variational-dense",
        pytest.param("variational-conv", marks=pytest.mark.slow),
        pytest.param("variational-predicted", marks=pytest.mark.slow),
        pytest.param("contractive-conv", marks=pytest.mark.slow),
    ],
)
def test_pictures_show_the_model_as_it_is(digits, tmp_path, name):
    model, x = compiled(name), digits[1][:12]
    model.fit(digits[0][:64], verbose=0, callbacks=[Pictures(x, tmp_path / "callback", labels=LABELS, num_images=4)])
    if name.startswith("denoising"):
        expected = {"reconstructions": figures.denoising(model, x, num_images=4)}
    else:
        rows = {"input": x, "reconstruction": model.predict(x, verbose=0)}
        expected = {"reconstructions": figures.reconstructions(rows, 4)}
    if name.startswith("variational"):
        expected["samples"] = figures.samples(model.sample(16, seed=0), columns=4)
    expected["codes"] = figures.codes_2d({"epoch 1": model.encode(x)}, LABELS)
    expected["units"] = units_of(model, x)
    assert written(tmp_path / "callback") == files([1], *expected)
    for picture, figure in expected.items():
        drawn = matplotlib.image.imread(tmp_path / "callback" / f"epoch-0001-{picture}.png")
        again = matplotlib.image.imread(figures.save(figure, tmp_path / "again.png"))
        np.testing.assert_allclose(drawn, again, atol=0.05, err_msg=picture)


def test_tables_have_codes_and_units(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 12)).astype("float32")
    model = builders.undercomplete(12, 3, (8,))
    model.compile("adam")
    model.fit(x, verbose=0, callbacks=[Pictures(x, tmp_path)])
    assert written(tmp_path) == files([1], "codes", "units")


def test_a_single_code_has_no_plane(digits, tmp_path):
    model = builders.undercomplete((8, 8, 1), 1, (8,))
    model.compile("adam")
    model.fit(digits[0][:32], verbose=0, callbacks=[Pictures(digits[1][:12], tmp_path)])
    assert written(tmp_path) == files([1], "reconstructions", "units")


def events(log_dir):
    (path,) = (log_dir / "pictures").iterdir()
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            yield event.step, value.tag, value.image


def test_tensorboard_gets_the_same_pictures(digits, tmp_path):
    model = compiled("variational-dense")
    pictures = Pictures(digits[1][:12], tmp_path / "png", tmp_path / "logs", every=2, num_images=3)
    model.fit(digits[0][:32], epochs=3, verbose=0, callbacks=[pictures])
    found = list(events(tmp_path / "logs"))
    names = ["reconstructions", "samples", "codes", "units"]
    assert [(step, tag) for step, tag, _ in found] == [(step, name) for step in (1, 2) for name in names]
    for step, tag, image in found:
        path = tmp_path / "png" / f"epoch-{step + 1:04d}-{tag}.png"
        assert image.encoded_image_string == path.read_bytes()
        assert (image.height, image.width) == matplotlib.image.imread(path).shape[:2]


def test_tensorboard_alone_leaves_no_files(digits, tmp_path):
    model = compiled("undercomplete-dense")
    model.fit(digits[0][:32], verbose=0, callbacks=[Pictures(digits[1][:12], log_dir=tmp_path)])
    assert written(tmp_path) == ["pictures"]
    assert len(list(events(tmp_path))) == 3


_RANDOM = ["denoising-gaussian", "variational-dense"]
_OTHERS = [
    "undercomplete-own",
    "k-sparse-dense",
    "sparse-kl",
    "contractive-dense",
    "contractive-stochastic",
    "variational-conv",
]


@pytest.mark.parametrize("name", _RANDOM + [pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS])
def test_training_does_not_notice(digits, tmp_path, name):
    """The same weights, bit by bit, and the same logs; shuffled data, several steps an execution, tf.data to validate on."""
    ends = []
    for callbacks in ([], [Pictures(digits[1][:12], tmp_path, every=1, num_images=3)]):
        model = compiled(name, steps_per_execution=3)
        history = model.fit(
            digits[0][:100],
            batch_size=16,
            epochs=2,
            verbose=0,
            validation_data=tf.data.Dataset.from_tensor_slices(digits[1][:30]).batch(8),
            callbacks=callbacks,
        ).history
        ends.append(
            (history, model.get_weights(), model.optimizer.variables, [v.numpy() for v in model._seed_states()])
        )
    assert len(written(tmp_path)) >= 6
    (plain, *variables), (history, *with_pictures) = ends
    assert history == plain
    for expected, values in zip(variables, with_pictures, strict=True):
        for a, b in zip(expected, values, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_every_term_is_in_the_progress_bar(digits, name, capsys):
    model = compiled(name)
    model.fit(digits[0][:32], verbose=1, validation_data=(digits[1][:16],))
    shown = capsys.readouterr().out
    terms = ["loss", *model.term_names]
    terms += ["active_units"] if model.active_threshold is not None else []
    for term in terms:
        assert f" - {term}: " in shown
        assert f" - val_{term}: " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": None}, "Nowhere to put pictures: pass `folder`"),
        ({"every": 0}, "`every` must be a whole number of at least 1"),
        ({"num_images": 2.5}, "`num_images` must be a whole number"),
        (
            {"labels": [0, 1]},
            r"`labels` must hold one class per example, of which there are 12. Received shape: \(2,\)",
        ),
        ({"x": np.zeros(5)}, "`x` must hold at least 2 examples"),
        ({"x": np.zeros((1, 8, 8))}, "`x` must hold at least 2 examples"),
        ({"x": np.full((3, 8, 8), np.nan)}, "`x` holds NaN"),
        ({"x": np.full((3, 8, 8), 200, "uint8")}, r"must lie in \[0, 1\]"),
        ({"x": np.zeros((60, 4)), "labels": np.arange(60)}, "at most 50 distinct classes"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(tmp_path, arguments, message):
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match=message):
        Pictures(**{"x": np.zeros((12, 8, 8, 1)), "folder": folder, **arguments})
    assert not folder.exists()


@pytest.mark.parametrize("argument", ["folder", "log_dir"])
def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path, argument):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Can't write into .*file.*Choose another folder"):
        Pictures(np.zeros((12, 8, 8, 1)), **{argument: tmp_path / "file" / "folder"})


def test_examples_of_another_shape_stop_fit_before_it_trains(digits, tmp_path):
    model = compiled("undercomplete-dense")
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"`x` must have shape \(batch, 8, 8, 1\). Received: \(1, 9, 9\)"):
        model.fit(digits[0][:32], verbose=0, callbacks=[Pictures(np.zeros((12, 9, 9)), tmp_path)])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs an autoencoder"):
        Pictures(np.zeros((12, 8, 8)), tmp_path).set_model(keras.Sequential([keras.Input((2,))]))

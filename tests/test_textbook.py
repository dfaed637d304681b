"""What the textbook says of undercomplete, linear, overcomplete and denoising models, on real digits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.decomposition import PCA

from kerasae import builders, layers, metrics

LATENT_DIM = 4


def train(model, x, epochs, learning_rate=1e-3, batch_size=64):
    steps = -(-len(x) // batch_size) * epochs
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(schedule), steps_per_execution=20)
    # All epochs as one: an epoch of so few batches would cost more than its steps.
    batches = tf.data.Dataset.from_tensor_slices(x).cache().shuffle(len(x), seed=0).batch(batch_size)
    model.fit(batches.repeat(epochs), verbose=0)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_autoencoder_spans_the_subspace_of_pca(digits, tied):
    x_train, x_test = digits
    model = train(builders.linear((8, 8, 1), LATENT_DIM, tied=tied), x_train, 1000, learning_rate=2e-2, batch_size=240)
    basis = model.encoder.get_layer("z").kernel if tied else model.decoder.get_layer("logits").kernel.numpy().T
    pca = PCA(LATENT_DIM).fit(x_train.reshape(len(x_train), -1))
    assert metrics.principal_angles(np.asarray(basis), pca.components_.T).max() < 1.0  # degrees
    error = metrics.squared_error(x_test, model.predict(x_test, verbose=0))
    assert error == pytest.approx(metrics.pca_error(x_train, x_test, LATENT_DIM), rel=0.01)


def test_a_nonlinear_autoencoder_beats_pca_with_as_many_codes(digits):
    x_train, x_test = digits
    model = train(builders.undercomplete((8, 8, 1), 2, (128, 64)), x_train, 80, batch_size=32)
    error = metrics.squared_error(x_test, model.predict(x_test, verbose=0))
    assert error < 0.8 * metrics.pca_error(x_train, x_test, 2)


def test_a_denoising_autoencoder_denoises_and_a_plain_one_copies_noise(digits):
    x_train, x_test = digits
    corruption = layers.GaussianCorruption(0.3, seed=0)
    x_corrupted = corruption(x_test, training=True).numpy()
    errors = {}
    for name, model in {
        "denoising": builders.denoising((8, 8, 1), 64, (256,), noise_stddev=0.3),
        "plain": builders.denoising((8, 8, 1), 64, (256,), corruption=None),
    }.items():
        train(model, x_train, 40)
        errors[name] = metrics.squared_error(x_test, model.predict(x_corrupted, verbose=0))
    noise = metrics.squared_error(x_test, x_corrupted)
    assert errors["denoising"] < 0.3 * noise
    assert errors["plain"] > 0.5 * noise


def test_explicit_pairs_are_denoised_too(digits):
    x_train, x_test = digits
    mask = layers.MaskingCorruption(0.3, seed=0)
    corrupted_train, corrupted_test = (mask(x, training=True).numpy() for x in (x_train, x_test))
    model = builders.denoising((8, 8, 1), 64, (256,), corruption=None)
    model.compile("adam")
    model.fit(corrupted_train, x_train, epochs=20, verbose=0)
    denoised = model.predict(corrupted_test, verbose=0)
    assert metrics.squared_error(x_test, denoised) < 0.4 * metrics.squared_error(x_test, corrupted_test)


def test_diagnosis_finds_a_copy_where_the_code_is_as_large_as_the_input_or_larger(digits):
    for latent_dim, words in ((64, "as large as the input"), (100, "larger than the input")):
        with pytest.warns(UserWarning, match="Overcomplete"):
            model = builders.linear((8, 8, 1), latent_dim)
        diagnosis = metrics.diagnose(train(model, digits[0], 100, learning_rate=1e-2), *digits)
        assert diagnosis["copies"]
        assert diagnosis["noise_passed"] > 0.9
        assert words in diagnosis["failings"][0]


def test_diagnosis_finds_too_much_capacity_behind_a_bottleneck(digits):
    x_train, x_test = digits[0][:60], digits[1]
    model = train(builders.undercomplete((8, 8, 1), 4, (512, 256)), x_train, 400)
    diagnosis = metrics.diagnose(model, x_train, x_test)
    assert diagnosis["memorizes"]
    assert "too much capacity behind a code of 4" in diagnosis["failings"][0]


def test_diagnosis_finds_nothing_in_a_sound_model(digits):
    model = train(builders.undercomplete((8, 8, 1), 8, (64,)), digits[0], 60, batch_size=32)
    diagnosis = metrics.diagnose(model, *digits)
    assert diagnosis["failings"] == []
    assert diagnosis["noise_error"] > 3 * diagnosis["test_error"]
    assert diagnosis["noise_passed"] < 0.5


def test_diagnosis_of_a_regularised_overcomplete_model_finds_no_copy(digits):
    model = train(builders.denoising((8, 8, 1), 100, (256,), noise_stddev=0.5), digits[0], 40)
    assert not metrics.diagnose(model, *digits)["copies"]


def test_diagnosis_refuses_data_that_do_not_vary(digits):
    model = builders.undercomplete((8, 8, 1), 2)
    with pytest.raises(ValueError, match="doesn't vary"):
        metrics.diagnose(model, digits[0], np.ones((5, 8, 8, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "salt"}, "Did you mean 'salt_and_pepper'"),
        ({"corruption": "masking", "noise_stddev": 0.5}, "`noise_stddev` does not belong to the corruption 'masking'"),
        ({"corruption_rate": 0.5}, "`corruption_rate` does not belong to the corruption 'gaussian'"),
        ({"corruption": 0.5}, "`corruption` must be a Keras layer or None"),
    ],
)
def test_bad_corruptions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        builders.denoising((8, 8, 1), 4, **options)

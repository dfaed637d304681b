"""The statistics that each corruption promises, exactly k kept, and weights that are tied."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasae import builders, layers

SHAPE = (200, 20, 10)
N = np.prod(SHAPE)

CORRUPTIONS = {
    "gaussian": lambda **kwargs: layers.GaussianCorruption(0.3, **kwargs),
    "masking": lambda **kwargs: layers.MaskingCorruption(0.4, value=0.5, **kwargs),
    "salt_and_pepper": lambda **kwargs: layers.SaltAndPepperCorruption(0.3, minimum=-1.0, maximum=2.0, **kwargs),
}


@pytest.fixture(params=CORRUPTIONS)
def make(request):
    return CORRUPTIONS[request.param]


def assert_rate(hits, rate):
    """The share of hits lies within four standard errors of the promised rate."""
    assert abs(np.mean(hits) - rate) < 4 * np.sqrt(rate * (1 - rate) / np.size(hits))


def test_gaussian_corruption_adds_noise_of_the_promised_moments():
    x = np.full(SHAPE, 0.7, "float32")
    noise = layers.GaussianCorruption(0.3)(x, training=True).numpy().astype("float64") - 0.7
    assert abs(noise.mean()) < 4 * 0.3 / np.sqrt(N)
    assert noise.std() == pytest.approx(0.3, rel=4 / np.sqrt(2 * N))
    # Gaussian, not merely of this variance: the shares within one and two standard deviations
    assert_rate(np.abs(noise) < 0.3, 0.682689)
    assert_rate(np.abs(noise) < 0.6, 0.954500)


def test_masking_sets_the_promised_fraction_and_leaves_the_rest():
    x = np.full(SHAPE, 0.7, "float32")
    corrupted = layers.MaskingCorruption(0.4, value=0.5)(x, training=True).numpy()
    assert_rate(corrupted == 0.5, 0.4)
    np.testing.assert_array_equal(np.unique(corrupted), np.float32([0.5, 0.7]))


def test_salt_and_pepper_are_equally_many():
    x = np.full(SHAPE, 0.7, "float32")
    corrupted = layers.SaltAndPepperCorruption(0.3, minimum=-1.0, maximum=2.0)(x, training=True).numpy()
    assert_rate(corrupted == -1.0, 0.15)
    assert_rate(corrupted == 2.0, 0.15)
    np.testing.assert_array_equal(np.unique(corrupted), np.float32([-1.0, 0.7, 2.0]))


def test_corruption_is_independent_between_features_examples_and_calls(make):
    layer = make()
    x = np.full(SHAPE, 0.7, "float32")
    first, second = (layer(x, training=True).numpy().reshape(SHAPE[0], -1) - 0.7 for _ in range(2))

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    limit = 4 / np.sqrt(N)
    assert abs(correlation(first, second)) < limit
    assert abs(correlation(first[1:], first[:-1])) < limit
    assert abs(correlation(first[:, 1:], first[:, :-1])) < limit


def test_corruption_is_active_in_training_only(make):
    x = np.full(SHAPE, 0.7, "float32")
    np.testing.assert_array_equal(make()(x), x)
    np.testing.assert_array_equal(make()(x, training=False), x)


def test_the_same_seed_gives_the_same_corruption(make):
    x = np.full(SHAPE, 0.7, "float32")
    a, b, c = (make(seed=seed)(x, training=True) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_corruption_keeps_shape_and_half_precision(make):
    x = tf.cast(np.full(SHAPE, 0.7), tf.float16)
    layer = make(dtype="float16")
    assert layer(x, training=True).dtype == tf.float16
    assert layer.compute_output_shape(SHAPE) == SHAPE


def test_corruption_round_trips_its_config(make):
    layer = make(seed=3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.GaussianCorruption(-0.1), "`noise_stddev` must be a finite number of at least 0"),
        (
            lambda: layers.MaskingCorruption(1.5),
            "`corruption_rate` must be a finite number of at least 0 and at most 1",
        ),
        (lambda: layers.MaskingCorruption(0.5, value=np.nan), "`value` must be a finite number"),
        (lambda: layers.SaltAndPepperCorruption(0.5, minimum=1.0), "`maximum` must be a finite number above 1"),
        (lambda: layers.KSparse(0), "`k` must be a whole number of at least 1"),
        (lambda: layers.KSparse(2, alpha=0.5), "`alpha` must be a finite number of at least 1"),
        (lambda: layers.KSparse(2, by="size"), "`by` must be one of"),
        (lambda: layers.KSparse(5)(np.zeros((2, 4))), "`k` must be at most the number of units, 4. Received: 5"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- k-sparse --------------------------------------------------------------------------------------------------------


def k_largest(z, k, by):
    """The oracle: a stable sort by falling size, so that of equal entries the first units win."""
    flat = z.reshape(len(z), -1)
    order = np.argsort(-(np.abs(flat) if by == "magnitude" else flat), axis=1, kind="stable")
    kept = np.zeros_like(flat)
    np.put_along_axis(kept, order[:, :k], np.take_along_axis(flat, order[:, :k], axis=1), axis=1)
    return kept.reshape(z.shape)


@pytest.mark.parametrize("by", ["magnitude", "value"])
@pytest.mark.parametrize("shape", [(7, 30), (5, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_exactly_the_k_largest_are_kept(rng, by, shape, ties, training, jit_compile):
    z = rng.normal(size=shape).astype("float32")
    if ties:
        z = np.round(z)  # many equal entries, of both signs, and zeros
    for k in (1, 4, int(np.prod(shape[1:]))):
        layer = layers.KSparse(k, by=by)
        layer.build(shape)
        kept = tf.function(lambda z, layer=layer: layer(z, training=training), jit_compile=jit_compile)(z)
        np.testing.assert_array_equal(kept, k_largest(z, k, by))


def test_all_equal_entries_keep_the_first_k():
    np.testing.assert_array_equal(layers.KSparse(2)(np.ones((1, 5), "float32")), [[1, 1, 0, 0, 0]])


def test_gradient_flows_through_kept_entries_only(rng):
    z = tf.Variable(rng.normal(size=(6, 10)).astype("float32"))
    weights = rng.normal(size=(6, 10)).astype("float32")
    layer = layers.KSparse(3)
    for training in (False, True):
        with tf.GradientTape() as tape:
            kept = layer(z, training=training)
            loss = tf.reduce_sum(weights * kept)
        np.testing.assert_array_equal(tape.gradient(loss, z), np.where(kept.numpy() != 0, weights, 0))


def test_inference_keeps_alpha_k(rng):
    z = rng.normal(size=(4, 20)).astype("float32")
    layer = layers.KSparse(3, alpha=2.5)
    assert (layer(z, training=True).numpy() != 0).sum(axis=1).tolist() == [3] * 4
    assert (layer(z).numpy() != 0).sum(axis=1).tolist() == [8] * 4  # round(7.5) = 8
    assert (layers.KSparse(9, alpha=3)(z).numpy() != 0).sum(axis=1).tolist() == [20] * 4


# -- masks -----------------------------------------------------------------------------------------------------------


class SeesMask(keras.layers.Layer):
    supports_masking = True

    def call(self, x, mask=None):
        self.seen = mask
        return x


def tied_dense():
    layer = layers.TiedDense("source", 3)
    layer.connect(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="source")]))
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [*CORRUPTIONS.values(), lambda: layers.KSparse(2), tied_dense])
def test_the_mask_of_steps_goes_through_every_layer(rng, make, training):
    steps = rng.normal(size=(3, 4, 2)).astype("float32")
    steps[0, 2:] = steps[2, :1] = 0.0
    probe = SeesMask()
    probe(make()(keras.layers.Masking()(steps), training=training))
    np.testing.assert_array_equal(probe.seen, (steps != 0).any(axis=2))


@pytest.mark.parametrize("by", ["magnitude", "value"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_masked_steps_take_none_of_the_k(rng, by, training, jit_compile):
    z = rng.normal(size=(3, 4, 2)).astype("float32")
    mask = np.array([[True, True, False, False], [True] * 4, [False, False, True, False]])
    z[~mask] = 9.0  # would all be kept
    layer = layers.KSparse(3, by=by)
    layer.build(z.shape)
    masked = tf.function(lambda z, mask: layer(z, training=training, mask=mask), jit_compile=jit_compile)
    # The oracle sees values below all others; only two entries of the last example are left to keep.
    low = -100.0 if by == "value" else 0.0
    expected = np.where(mask[..., None], k_largest(np.where(mask[..., None], z, low), 3, by), 0.0)
    np.testing.assert_array_equal(masked(z, mask), expected)
    assert (expected != 0).sum(axis=(1, 2)).tolist() == [3, 3, 2]


# -- tied weights ----------------------------------------------------------------------------------------------------


def test_tied_decoder_is_the_transposed_encoder(rng):
    model = builders.deep((6,), 2, (5, 4), tied=True, activation="tanh")
    assert len(model.trainable_weights) == 9  # three kernels, six biases
    for bias in (w for w in model.trainable_weights if "bias" in w.path):
        bias.assign(rng.normal(size=bias.shape))
    z = rng.normal(size=(3, 2)).astype("float32")
    kernels = [model.encoder.get_layer(name).kernel.numpy() for name in ("z", "hidden_2", "hidden_1")]
    biases = [model.decoder.get_layer(name).bias.numpy() for name in ("hidden_1", "hidden_2", "logits")]
    expected = z
    for kernel, bias, last in zip(kernels, biases, (False, False, True), strict=True):
        expected = expected @ kernel.T + bias
        expected = expected if last else np.tanh(expected)
    np.testing.assert_allclose(model.decode(z), expected, rtol=1e-5, atol=1e-6)


def test_tied_weights_stay_tied_while_training_and_in_a_file(digits, tmp_path):
    model = builders.deep(digits[0].shape[1:], 4, (16,), tied=True)
    model.compile("adam")
    model.fit(digits[0][:200], epochs=2, verbose=0)
    model.save(tmp_path / "tied.keras")
    loaded = keras.saving.load_model(tmp_path / "tied.keras")
    np.testing.assert_array_equal(loaded.predict(digits[1], verbose=0), model.predict(digits[1], verbose=0))
    loaded.encoder.get_layer("z").kernel.assign_add(np.ones((16, 4)))
    assert not np.allclose(loaded.decode(np.ones((1, 4))), model.decode(np.ones((1, 4))))


def test_a_tied_decoder_alone_says_what_it_lacks():
    decoder = builders.deep((6,), 2, (5,), tied=True).decoder
    alone = keras.Model.from_config(decoder.get_config())
    with pytest.raises(ValueError, match="this decoder stands alone"):
        alone(np.zeros((1, 2)))

"""Compression: streams decode back, are as long as theory says, and refuse what they are not."""

import pickle
import struct
import zlib

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone

from kerasae import builders, export, metrics
from kerasae.models import PixelVariationalAutoencoder, RateDistortionAutoencoder
from kerasae.tasks.bitsback import LosslessCodec, _random_stack
from kerasae.tasks.codec import Codec

NUM_IMAGES = 60


def small_codec(**options):
    options = {"latent_dim": 8, "hidden_units": (64,), "rate_weight": 0.03, "epochs": 25, "random_state": 0, **options}
    return Codec(**options)


@pytest.fixture(scope="module")
def codec(digits):
    return small_codec().fit(digits[0])


@pytest.fixture(scope="module")
def x(digits):
    return digits[1][:NUM_IMAGES]


def unrounded(codec, x):
    return codec.model_.encoder.predict(x, verbose=0)


def resealed(stream, position, value):
    """The stream with one byte changed and a checksum that fits."""
    body = bytearray(stream[:-4])
    body[position] = value
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


# -- The model whose codes are cheap -----------------------------------------------------------------------------------------------------


def test_rate_is_the_length_of_the_rounded_code_under_a_logistic_prior(rng):
    base = builders.undercomplete((8, 8, 1), 3, (16,))
    model = RateDistortionAutoencoder(base.encoder, base.decoder)
    mean, log_scale = np.array([0.3, -2.0, 0.0]), np.array([0.5, -1.0, 2.0])
    model.prior_mean.assign(mean)
    model.prior_log_scale.assign(log_scale)
    z = rng.integers(-6, 6, (20, 3)).astype("float32")
    logistic = stats.logistic(mean, np.exp(log_scale))
    expected = -np.log(np.maximum(logistic.cdf(z + 0.5) - logistic.cdf(z - 0.5), 1e-9)).sum(axis=1)
    np.testing.assert_allclose(model.rate(z), expected, rtol=1e-3)


def test_training_adds_uniform_noise_and_inference_rounds(x):
    base = builders.undercomplete((8, 8, 1), 3, (16,))
    model = RateDistortionAutoencoder(base.encoder, base.decoder, seed=0)
    z = model.encoder(x).numpy()
    noise = np.stack([model.forward(x, training=True)["z"] - z for _ in range(200)])
    assert np.abs(noise).max() <= 0.5 + 1e-5
    np.testing.assert_allclose(noise.var(), 1 / 12, rtol=0.02)
    np.testing.assert_array_equal(model.forward(x, training=False)["z"], np.round(z))
    np.testing.assert_array_equal(model.encode(x), np.round(z))


def test_rate_distortion_model_saves_and_loads(codec, x, tmp_path):
    codec.model_.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.rate_weight == codec.model_.rate_weight
    assert loaded.evaluate(x, verbose=0, return_dict=True) == codec.model_.evaluate(x, verbose=0, return_dict=True)


def test_a_dearer_rate_makes_shorter_streams(codec, digits, x):
    dear = small_codec(rate_weight=1.0).fit(digits[0])
    assert len(dear.encode(x)) < 0.8 * len(codec.encode(x))


# -- Codec -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("channel", [True, False], ids=["channel", "no channel"])
def test_images_come_back_with_their_shape_and_dtype(digits, dtype, channel):
    images = digits[0][:200] if channel else digits[0][:200, ..., 0]
    images = np.rint(images * 255).astype("uint8") if dtype == "uint8" else images.astype(dtype)
    codec = small_codec(epochs=1).fit(images)
    decoded = codec.decode(codec.encode(images[:7]))
    assert decoded.shape == images[:7].shape
    assert decoded.dtype == images.dtype
    assert decoded.min() >= 0
    assert decoded.max() <= (255 if dtype == "uint8" else 1)


def test_decoding_gives_the_decoder_s_answer_to_the_rounded_codes(codec, x):
    decoded = codec.decode(codec.encode(x))
    bins = np.rint(unrounded(codec, x).astype("float64") * 4).astype(int)
    z = np.empty(bins.shape, "float32")
    for j, (counts, first) in enumerate(zip(codec.counts_, codec.offsets_, strict=True)):
        fine = np.arange(first, first + len(counts))
        symbols = (fine + 2) // 4
        for i, k in enumerate((bins[:, j] + 2) // 4):
            inside = symbols == k
            z[i, j] = ((counts * fine)[inside].sum() + 4 * k) / (counts[inside].sum() + 1) / 4
    np.testing.assert_allclose(decoded, np.clip(codec.model_.decode(z), 0, 1), atol=1e-5)


def test_stream_is_as_long_as_the_tables_say(codec, digits):
    x = digits[1]
    bins = np.rint(unrounded(codec, x).astype("float64") * 4).astype(int)
    bits = 0
    for j, (counts, first) in enumerate(zip(codec.counts_, codec.offsets_, strict=True)):
        symbols = (np.arange(first, first + len(counts)) + 2) // 4
        weights = {k: counts[symbols == k].sum() + 0.5 for k in np.unique(symbols)}
        low, high = first, first + len(counts) - 1
        bits -= sum(np.log2(weights[k] / sum(weights.values())) for k in (np.clip(bins[:, j], low, high) + 2) // 4)
    overhead = 8 * len(codec.encode(x)) - bits
    assert 8 * 20 < overhead < 8 * 30 + 64


def test_a_wider_step_takes_less_and_loses_more(codec, x):
    streams = [codec.encode(x, step) for step in (0.25, 0.5, 1, 2, 4)]
    errors = [metrics.squared_error(x, codec.decode(stream)) for stream in streams]
    assert [*map(len, streams)] == sorted(map(len, streams), reverse=True)
    assert errors == sorted(errors)
    assert errors[-1] > 1.5 * errors[0]


def test_at_the_finest_step_little_is_lost_beyond_what_the_model_loses(codec, x):
    without = metrics.squared_error(x, np.clip(codec.model_.decode(unrounded(codec, x)), 0, 1))
    assert metrics.squared_error(x, codec.decode(codec.encode(x, 0.25))) < 1.05 * without


def test_every_image_decodes_alone_as_among_others(codec, x):
    together = codec.decode(codec.encode(x))
    alone = np.concatenate([codec.decode(codec.encode(image[None])) for image in x[:5]])
    np.testing.assert_allclose(alone, together[:5], atol=1e-6)


def test_step_for_is_the_finest_within_a_rate(codec, x):
    limit = codec.bits_per_pixel(x, 1.25)
    step = codec.step_for(x, limit)
    assert codec.bits_per_pixel(x, step) <= limit < codec.bits_per_pixel(x, step - 0.25)
    with pytest.raises(ValueError, match="At the coarsest step"):
        codec.step_for(x, 1e-3)


def test_images_unlike_training_still_round_trip(codec, rng):
    noise = rng.random((20, 8, 8, 1)).astype("float32")
    assert codec.decode(codec.encode(noise)).shape == noise.shape


@pytest.mark.parametrize("family", ["undercomplete", "variational", "linear"])
def test_any_trained_model_serves(family, digits, x):
    model = getattr(builders, family)((8, 8, 1), 8, (32,))
    model.compile("adam")
    model.fit(digits[0], epochs=3, verbose=0)
    weights = model.get_weights()
    codec = Codec(model).fit(digits[0])
    decoded = codec.decode(codec.encode(x))
    plain = metrics.squared_error(x, np.clip(model.predict(x, verbose=0), 0, 1))
    assert metrics.squared_error(x, decoded) < 1.1 * plain + 0.2
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_same_random_state_gives_the_same_codec(codec, digits, x):
    keras.utils.set_random_seed(99)
    again = clone(codec).fit(digits[0])
    assert again.fingerprint_ == codec.fingerprint_
    assert again.encode(x) == codec.encode(x)


@pytest.mark.parametrize("how", ["file", "pickle"])
def test_a_stored_codec_reads_and_writes_the_same_streams(codec, x, how, tmp_path):
    stored = Codec.load(codec.save(tmp_path / "codec")) if how == "file" else pickle.loads(pickle.dumps(codec))
    stream = codec.encode(x)
    assert stored.encode(x) == stream
    np.testing.assert_array_equal(stored.decode(stream), codec.decode(stream))
    if how == "file":
        assert [path.name for path in tmp_path.iterdir()] == ["codec"]
        assert stored.get_params() == {**codec.get_params(), "hidden_units": [64], "random_state": None}


def test_files_that_are_no_codec_are_refused(codec, tmp_path):
    (tmp_path / "text").write_text("no codec")
    with pytest.raises(ValueError, match="is not a codec"):
        Codec.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        Codec.load(tmp_path / "nothing")


def test_coding_depends_on_whole_numbers_only(codec):
    for j, counts in enumerate(codec.counts_):
        assert counts.dtype == np.int64
        _, weights, _ = codec._tables.table(j, 3)
        np.testing.assert_array_equal(2 * weights, np.rint(2 * weights))


def test_transform_and_its_inverse_are_what_a_stream_holds(codec, x):
    z = codec.transform(x)
    np.testing.assert_allclose(z, unrounded(codec, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(codec.inverse_transform(z), codec.model_.decode(z).clip(0, 1), atol=1e-5)


def test_the_networks_are_exported(digits, tmp_path):
    model = builders.variational((8, 8, 1), 3, (8,))
    codec = Codec(model).fit(digits[0][:100, ..., 0])
    manifest = export.export(codec, tmp_path / "bundle", formats=("onnx",), x=digits[1][:50, ..., 0])
    assert manifest["parity"]["max_relative_difference"] <= 1e-5
    assert {"transform", "inverse_transform"} <= {path.stem for path in (tmp_path / "bundle").rglob("*.onnx")}


# -- Containers --------------------------------------------------------------------------------------------------------------------------


def test_any_changed_byte_is_noticed(codec, x):
    stream = codec.encode(x[:2])
    for position in range(len(stream)):
        with pytest.raises(ValueError, match="stream"):
            codec.decode(stream[:position] + bytes([stream[position] ^ 0x55]) + stream[position + 1 :])


def test_any_cut_is_noticed(codec, x):
    stream = codec.encode(x[:2])
    for length in range(4, len(stream)):
        with pytest.raises(ValueError, match="is cut"):
            codec.decode(stream[:length])


def test_streams_of_others_are_refused(codec, digits, x):
    stream = codec.encode(x)
    other = small_codec(epochs=1, random_state=1).fit(digits[0])
    with pytest.raises(ValueError, match=f"by another codec: fingerprint {codec.fingerprint_[:16]}"):
        other.decode(stream)
    with pytest.raises(ValueError, match="version 200.*reads up to 1: update"):
        codec.decode(resealed(stream, 4, 200))
    with pytest.raises(ValueError, match="lossless stream, and the codec reads lossy"):
        codec.decode(resealed(stream, 5, 1))
    with pytest.raises(ValueError, match="3 bytes follow"):
        codec.decode(stream + b"abc")
    with pytest.raises(ValueError, match="Not a kerasae stream"):
        codec.decode(b"\xff\xd8\xff\xe0 and so on")
    with pytest.raises(ValueError, match="must be bytes. Received: str"):
        codec.decode("KRAE")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((5, 8, 8, 1), "int32"), "dtype: int32"),
        (np.full((5, 8, 8, 1), 2.0), r"must lie in \[0, 1\]"),
        (np.zeros((5, 64)), "must have the shape"),
        (np.zeros((1, 8, 8, 1)), "at least 2 images"),
        (np.full((5, 8, 8, 1), np.nan), "NaN"),
    ],
)
def test_fit_says_what_is_wrong_with_images(images, message):
    with pytest.raises(ValueError, match=message):
        small_codec().fit(images)


def test_door(codec, digits, x):
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), as in fit"):
        codec.encode(np.zeros((2, 9, 9, 1)))
    with pytest.raises(ValueError, match="`step` must be"):
        codec.encode(x, step=0)
    with pytest.raises(ValueError, match="kerasae model or None"):
        Codec(keras.Sequential()).fit(digits[0])
    model = builders.undercomplete((8, 8, 1), 2, (4,))
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    with pytest.raises(ValueError, match="don't vary"):
        Codec(model).fit(digits[0])


# -- Lossless ----------------------------------------------------------------------------------------------------------------------------


def trained(model, x, epochs=4, **options):
    model.compile(keras.optimizers.Adam(2e-3), **options)
    model.fit(x, batch_size=64, epochs=epochs, verbose=0)
    return model


def pixel_model(radius=2):
    start = builders.variational((8, 8, 1), 4, (64,))
    return PixelVariationalAutoencoder(start.encoder, start.decoder, radius, (16,), (32,), seed=0)


def grey(x):
    return np.rint(x * 255).astype("uint8")


MODELS = {
    "bernoulli": lambda: builders.variational((8, 8, 1), 4, (64,)),
    "bernoulli-conv-isotropic": lambda: builders.variational((8, 8, 1), 4, (8,), "conv", posterior="isotropic"),
    "gaussian": lambda: builders.variational((8, 8, 1), 4, (64,), likelihood="gaussian", variance=0.02),
    "gaussian-learned": lambda: builders.variational((8, 8, 1), 4, (64,), likelihood="gaussian", variance="learned"),
    "gaussian-predicted": lambda: builders.variational(
        (8, 8, 1), 4, (64,), likelihood="gaussian", variance="predicted"
    ),
    "pixels": pixel_model,
}


@pytest.fixture(scope="module")
def lossless(digits):
    """`{name: (codec, images)}`, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            keras.utils.set_random_seed(0)
            x_train, x_test = (np.round(x) for x in digits) if "bernoulli" in name else digits
            model = trained(MODELS[name](), x_train, jit_compile=False)
            made[name] = LosslessCodec(model, batch_size=32), x_test.astype("uint8") if "bern" in name else grey(x_test)
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_images_come_back_bit_for_bit(lossless, name):
    codec, images = lossless(name)
    for some in (images[:NUM_IMAGES], images[:1], images[:3, ..., 0]):
        decoded = codec.decode(codec.encode(some))
        assert decoded.dtype == some.dtype
        np.testing.assert_array_equal(decoded, some)


@pytest.mark.parametrize("name", ["bernoulli", "pixels"])
def test_the_stream_is_as_long_as_the_negative_elbo(lossless, name):
    codec, images = lossless(name)
    bits = 8 * len(codec.encode(images))
    x = images.astype("float32") / (1 if name == "bernoulli" else 255)
    logs = [codec.model.evaluate(x, verbose=0, return_dict=True) for _ in range(5)]
    nats = np.mean([log["reconstruction_loss"] + log["kl_loss"] for log in logs])
    # What the first image draws its codes from, and the container, are the rest.
    overhead = bits - len(images) * nats / np.log(2)
    assert abs(overhead) < 0.02 * bits + 600


@pytest.mark.parametrize("name", ["gaussian", "gaussian-learned", "gaussian-predicted"])
def test_a_level_of_a_gaussian_has_the_probability_of_its_interval(lossless, name):
    codec, images = lossless(name)
    z = np.random.default_rng(0).normal(size=(NUM_IMAGES, 4)).round(1)
    outputs = codec.model.reconstruct(z.astype("float32"), training=False)
    variance = {
        "gaussian": 0.02,
        "gaussian-learned": np.exp(codec.model.log_variance) if name == "gaussian-learned" else None,
        "gaussian-predicted": np.exp(outputs.get("log_variance", 0.0)),
    }[name]
    level = stats.norm(255 * outputs["reconstruction"].numpy(), 255 * np.sqrt(variance))
    pixels = images[:NUM_IMAGES].astype(int)
    below = np.where(pixels == 0, 0, level.cdf(pixels - 0.5))
    above = np.where(pixels == 255, 1, level.cdf(pixels + 0.5))
    p = above - below
    coder = _random_stack(0)
    before = coder.num_bits()
    codec._likelihood.push(coder, pixels.astype("int32"), z)
    np.testing.assert_allclose(coder.num_bits() - before, -np.log2(np.maximum(p, 2.0**-24)).sum(), rtol=0.01)


def test_streams_do_not_depend_on_the_reader_s_batch_size(lossless):
    codec, images = lossless("pixels")
    stream = codec.encode(images[:NUM_IMAGES])
    np.testing.assert_array_equal(LosslessCodec(codec.model, batch_size=7).decode(stream), images[:NUM_IMAGES])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_images_may_be_floats(lossless, dtype):
    codec, images = lossless("bernoulli")
    decoded = codec.decode(codec.encode(images[:5].astype(dtype)))
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, images[:5])


def test_images_unlike_training_come_back_too(lossless, rng):
    for name in ("bernoulli", "gaussian", "pixels"):
        codec, _ = lossless(name)
        noise = rng.integers(2 if name == "bernoulli" else 256, size=(20, 8, 8, 1)).astype("uint8")
        np.testing.assert_array_equal(codec.decode(codec.encode(noise)), noise)


def test_lossless_streams_are_checked(lossless):
    codec, images = lossless("bernoulli")
    stream = codec.encode(images[:5])
    for position in range(0, len(stream), 3):
        with pytest.raises(ValueError, match="stream"):
            codec.decode(stream[:position] + bytes([stream[position] ^ 1]) + stream[position + 1 :])
        with pytest.raises(ValueError, match="cut|begins with"):
            codec.decode(stream[:position])
    with pytest.raises(ValueError, match="another codec"):
        lossless("pixels")[0].decode(stream)


def test_other_results_than_the_writer_s_are_noticed(lossless, monkeypatch):
    codec, images = lossless("bernoulli")
    stream = codec.encode(images[:20])
    reader = LosslessCodec(codec.model)
    logits = reader._likelihood.logits
    monkeypatch.setattr(reader._likelihood, "logits", lambda z: logits(z) + 0.1)
    with pytest.raises(ValueError, match="images came out other than they went in"):
        reader.decode(stream)


def test_rounding_differences_of_float64_change_nothing(lossless, monkeypatch, rng):
    codec, images = lossless("pixels")
    stream = codec.encode(images[:NUM_IMAGES])
    reader = LosslessCodec(codec.model)
    logits, encoder = reader._likelihood.logits, reader._encoder
    monkeypatch.setattr(
        reader._likelihood, "logits", lambda z: logits(z) * (1 + 1e-14 * rng.standard_normal((8, 8, 1)))
    )
    reader._encoder = lambda x, training: [output * (1 + 1e-14) for output in encoder(x, training=training)]
    np.testing.assert_array_equal(reader.decode(stream), images[:NUM_IMAGES])


def test_door_of_lossless(lossless, digits):
    with pytest.raises(ValueError, match="must be a VariationalAutoencoder"):
        LosslessCodec(builders.undercomplete((8, 8, 1), 2))
    bernoulli, pixels = lossless("bernoulli")[0], lossless("pixels")[0]
    with pytest.raises(ValueError, match="zeros and ones. Received values from 0 to 1"):
        bernoulli.encode(digits[1])
    with pytest.raises(ValueError, match="the dtype uint8"):
        pixels.encode(digits[1])
    with pytest.raises(ValueError, match=r"must have the shape \(8, 8, 1\)"):
        pixels.encode(np.zeros((2, 9, 9), "uint8"))
    with pytest.raises(ValueError, match="empty"):
        pixels.encode(np.zeros((0, 8, 8, 1), "uint8"))


# -- The pixel model ---------------------------------------------------------------------------------------------------------------------


def test_the_probabilities_of_all_images_add_up_to_one():
    x = keras.Input((1, 2, 1))
    encoder = keras.Model(x, [keras.layers.Dense(2)(keras.layers.Flatten()(x)) for _ in range(2)])
    decoder = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2), keras.layers.Reshape((1, 2, 1)), keras.layers.Activation("sigmoid")]
    )
    model = PixelVariationalAutoencoder(encoder, decoder, 1, (8,), (8,))
    model.repeats.assign(keras.random.normal(model.repeats.shape, seed=0))
    levels = np.arange(256, dtype="float32") / 255
    total = 0.0
    for start in range(0, 256, 32):
        x = np.stack(np.meshgrid(levels[start : start + 32], levels, indexing="ij"), axis=-1).reshape(-1, 1, 2, 1)
        outputs = model.reconstruct(np.tile([[0.5, -1.0]], (len(x), 1)).astype("float32"), training=False)
        total += np.exp(-model.reconstruction_loss(x, outputs).numpy().astype("float64")).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-4)


def test_the_loss_of_all_pixels_is_the_same(lossless, digits):
    model = lossless("pixels")[0].model
    outputs = model.reconstruct(model.encode(digits[1]), training=False)
    loss = model.likelihood.loss(digits[1], outputs)
    np.testing.assert_allclose(model.likelihood.loss_of_all_pixels(digits[1], outputs), loss, rtol=1e-5)
    scores = model.functions()["score"]
    np.testing.assert_allclose(scores.compute(digits[1])[0], scores.reference(digits[1])[0], rtol=1e-5)


def test_pixels_between_two_levels_count_as_the_nearest(lossless, digits):
    model = lossless("pixels")[0].model
    outputs = model.reconstruct(model.encode(digits[1]), training=False)
    between = np.clip(np.rint(digits[1] * 255) + 0.4, 0, 255).astype("float32") / 255
    np.testing.assert_array_equal(
        model.reconstruction_loss(between, outputs), model.reconstruction_loss(digits[1], outputs)
    )


def test_fixed_point_gives_the_model_s_own_likelihood(lossless):
    codec, images = lossless("pixels")
    x = images[:NUM_IMAGES]
    z = np.random.default_rng(0).normal(size=(len(x), 4)).round(1)
    outputs = codec.model.reconstruct(z.astype("float32"), training=False)
    nats = float(codec.model.reconstruction_loss(x.astype("float32") / 255, outputs).numpy().sum())
    coder = _random_stack(0)
    before = coder.num_bits()
    codec._likelihood.push(coder, x.astype("int32"), z)
    np.testing.assert_allclose((coder.num_bits() - before) * np.log(2), nats, rtol=5e-3)


def test_fixed_point_is_exact_in_any_order(lossless, rng):
    likelihood = lossless("pixels")[0]._likelihood
    num_rows = 50
    context = rng.integers(256, size=(num_rows, len(likelihood.likelihood.context))) * rng.integers(
        2, size=(num_rows, 1)
    )
    windows = rng.integers(-192, 192, (num_rows, 25)) / 64
    counts = rng.integers(9, size=(num_rows, 255))
    rows = likelihood._rows(context, windows)
    (kernel, bias), *_ = likelihood.ink.layers
    order = rng.permutation(len(kernel))
    np.testing.assert_array_equal(rows @ kernel + bias, bias + rows[:, order] @ kernel[order])
    together = likelihood._value_weights(context, windows, counts)
    alone = [
        likelihood._value_weights(context[i : i + 1], windows[i : i + 1], counts[i : i + 1])[0] for i in range(num_rows)
    ]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, np.rint(together))


def test_pixel_model_learns_what_a_variational_model_alone_cannot(lossless):
    codec, images = lossless("pixels")
    gaussian, _ = lossless("gaussian-learned")
    assert len(codec.encode(images)) < 0.8 * len(gaussian.encode(images))


def test_pixel_model_s_log_likelihood_is_above_its_elbo(lossless):
    codec, images = lossless("pixels")
    x = images[:NUM_IMAGES].astype("float32") / 255
    logs = [codec.model.evaluate(x, verbose=0, return_dict=True) for _ in range(5)]
    elbo = -np.mean([log["reconstruction_loss"] + log["kl_loss"] for log in logs])
    assert elbo < codec.model.log_likelihood(x, num_samples=50).mean() < elbo + 0.1 * abs(elbo)


def test_pixel_model_saves_and_loads(lossless, tmp_path):
    codec, images = lossless("pixels")
    codec.model.save(tmp_path / "model.keras")
    loaded = LosslessCodec(keras.saving.load_model(tmp_path / "model.keras"))
    assert loaded.fingerprint == codec.fingerprint
    np.testing.assert_array_equal(loaded.decode(codec.encode(images[:5])), images[:5])


def test_pixel_model_takes_a_batch_without_ink(lossless):
    codec, _ = lossless("pixels")
    black = np.zeros((4, 8, 8, 1), "uint8")
    assert np.isfinite(codec.model.evaluate(black / np.float32(255), verbose=0, return_dict=True)["loss"])
    np.testing.assert_array_equal(codec.decode(codec.encode(black)), black)


def test_pixel_model_refuses_colours():
    start = builders.variational((8, 8, 3), 4, (16,))
    with pytest.raises(ValueError, match="must be grey"):
        PixelVariationalAutoencoder(start.encoder, start.decoder)

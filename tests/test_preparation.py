"""The preparation of a person's data goes with the model into every file, and large offsets keep their digits: raw numbers in and out."""

import json
import warnings

import keras
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import tensorflow as tf

import kerasae
from kerasae import builders, tasks
from kerasae.export import ExportError, export, page, parity
from kerasae.preparation import Preparation, check_unscaled
from kerasae.runtime import Bundle

COLUMNS = ("unix", "pressure", "number", "v")
OFFSET = np.array([1.7e9, 101325.25, 41234567.0, 0.1])
SCALE = np.array([25000.0, 5.0, 800.0, 1.0])


def rows(num, offset=OFFSET, scale=SCALE, seed=0):
    return offset + scale * np.random.default_rng(seed).normal(size=(num, len(COLUMNS)))


def model_of(preparation, shape=(4,), **options):
    model = builders.variational(shape, latent_dim=2, seed=0, **{"hidden_units": (6,), **options})
    model.preparation = preparation
    return model


def of_table(offset=OFFSET, scale=SCALE, scaling="standard"):
    return Preparation("table", (4,), scaling, tuple(map(float, offset)), tuple(map(float, scale)), COLUMNS)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A model of columns with large offsets, from a file, and its bundle."""
    folder = tmp_path_factory.mktemp("table")
    model_of(of_table(), likelihood="gaussian", variance="predicted").save(folder / "model.keras")
    model = keras.saving.load_model(folder / "model.keras")
    return model, export(model, folder / "bundle", x=rows(20)), folder / "bundle"


@pytest.fixture
def unchecked(monkeypatch):
    """Leaves out the process that runs what was exported, where a test runs it itself."""
    monkeypatch.setattr(parity, "replay", lambda *_: {("onnx", "encoder", 1): {}})
    monkeypatch.setattr(parity, "compare", lambda *_: [{"relative_difference": 0.0}])


def run(folder, part, x):
    session = onnxruntime.InferenceSession(folder / f"{part}.onnx")
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def test_a_file_brings_its_preparation_back(table):
    assert table[0].preparation == of_table()
    assert "preparation" not in builders.undercomplete((4,), 2).get_config()
    # What is fitted in an estimator takes what the estimator scales.
    assert tasks.Reducer(table[0])._build_model((4,), seed=0).preparation is None


def test_a_bundle_computes_from_the_columns_own_numbers(table):
    model, _, folder = table
    values = rows(9, seed=1)
    x = ((values - OFFSET) / SCALE).astype("float32")
    expected = model.predict(x, verbose=0) * SCALE + OFFSET
    np.testing.assert_allclose(run(folder, "encoder", values)["z_mean"], model.encode(x), atol=1e-6)
    made = run(folder, "autoencoder", values)["reconstruction"]
    assert made.dtype == "float64"
    np.testing.assert_allclose((made - expected) / SCALE, 0, atol=1e-6)
    np.testing.assert_allclose(run(folder, "score", values)["score"], model.score(x), rtol=1e-5)
    z = model.encode(x)
    decoded = run(folder, "decoder", z)
    np.testing.assert_allclose((decoded["reconstruction"] - expected) / SCALE, 0, atol=1e-6)
    scaled = model.decoder(z)[1].numpy()
    np.testing.assert_allclose(decoded["log_variance"], scaled + 2 * np.log(SCALE), atol=1e-5)
    signatures = tf.saved_model.load(str(folder / "saved_model")).signatures
    np.testing.assert_allclose(signatures["encode"](x=tf.constant(values))["z_mean"], z, atol=1e-6)
    samples = signatures["sample_from_seed"](num_samples=tf.constant(500), seed=tf.constant([0, 1]))["reconstruction"]
    assert np.abs((samples.numpy() - OFFSET) / SCALE).max() < 50


def test_the_manifest_says_what_goes_in(table):
    _, manifest, folder = table
    facts = manifest["preparation"]
    assert (facts["columns"], facts["offset"], facts["takes"]) == (list(COLUMNS), OFFSET.tolist(), "float64")
    assert manifest["preprocessing"] == "none: the parts scale the columns themselves"
    assert "`unix`, `pressure`, `number`, `v`" in (folder / "README.md").read_text()
    request = json.loads((folder / "request.json").read_text())["inputs"]["x"]
    assert np.abs((np.array(request) - OFFSET) / SCALE).max() < 5
    with pytest.raises(ValueError, match="must have shape"):
        export(table[0], folder.with_name("other"), x=rows(3)[:, :2])


def test_bulk_takes_a_table_s_columns_by_name(table, tmp_path):
    pytest.importorskip("pyarrow")
    from kerasae.export.running import parquet

    model, _, folder = table
    frame = pd.DataFrame(rows(5), columns=COLUMNS)
    frame.assign(id=range(5))[["id", *COLUMNS[::-1]]].to_parquet(tmp_path / "in.parquet")
    parquet.encode_file(folder, tmp_path / "in.parquet", tmp_path / "out.parquet")
    written = pd.read_parquet(tmp_path / "out.parquet")
    expected = model.encode(((frame - OFFSET) / SCALE).to_numpy("float32"))
    np.testing.assert_allclose(np.stack(written["z_mean"]), expected, atol=1e-6)
    frame.drop(columns="v").to_parquet(tmp_path / "less.parquet")
    with pytest.raises(ValueError, match="lacks columns that the model was trained on: v"):
        parquet.encode_file(folder, tmp_path / "less.parquet", tmp_path / "out.parquet")


def test_an_offset_hides_no_difference(table, tmp_path, monkeypatch):
    restored = Preparation.restored

    def off(self, name, output):
        # A millionth of the largest number, and a tenth of the column's scale.
        return restored(self, name, output) + (np.array([2500.0, 0, 0, 0]) if name == "reconstruction" else 0)

    monkeypatch.setattr(Preparation, "restored", off)
    with pytest.raises(ExportError, match="autoencoder as onnx, batch of 7, reconstruction"):
        export(table[0], tmp_path / "bundle", "onnx")


@pytest.mark.usefixtures("unchecked")
def test_two_float32_summands_keep_the_digits_where_float64_is_not_to_be_had(tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra kerasae[litert]")
    offset, scale = np.array([2010.3, 101523.2, 13.0, 0.1]), np.array([2.0, 86.8, 0.8, 1.0])
    model = model_of(of_table(offset, scale), hidden_units=(256,))
    assert model.preparation.takes == "float64"
    export(model, tmp_path / "bundle", ["litert", "onnx"])
    values = rows(7, offset, scale).astype("float32")
    z = model.encode(((values.astype("float64") - offset) / scale).astype("float32"))
    assert np.abs(model.encode((values - offset.astype("float32")) / scale.astype("float32")) - z).max() > 1e-6
    encode = interpreter.Interpreter(str(tmp_path / "bundle/encoder.tflite")).get_signature_runner("encode")
    np.testing.assert_allclose(encode(x=values)["z_mean"], z, atol=1e-6)
    np.testing.assert_allclose(run(tmp_path / "bundle", "encoder", values)["z_mean"], z, atol=1e-6)
    # What comes back is the nearest that float32 can hold, or a neighbour of it: no sums are made around the offset.
    decode = interpreter.Interpreter(str(tmp_path / "bundle/decoder.tflite")).get_signature_runner("decode")
    z = np.random.default_rng(0).normal(0, 5, (50, 2)).astype("float32")
    restored = model.decode(z).astype("float64") * scale + offset
    differences = np.abs(decode(z=z)["reconstruction"] - restored)[:, :2]
    assert (differences <= 0.51 * np.spacing(restored[:, :2].astype("float32"))).all()
    with pytest.raises(
        ValueError, match=r"float32.* of 3 columns: 'unix' \(around 1700000000, off by up to 0.004 of its scale\)"
    ):
        export(model_of(of_table()), tmp_path / "lost", ["litert"])


@pytest.mark.usefixtures("unchecked")
def test_photos_go_in_as_bytes(tmp_path, rng):
    model = model_of(Preparation("images", (6, 5, 3), "pixels", (0.0,), (255.0,)), (6, 5, 3))
    manifest = export(model, tmp_path / "bundle", "onnx")
    photos = rng.integers(0, 256, (4, 6, 5, 3), dtype="uint8")
    z = run(tmp_path / "bundle", "encoder", photos)["z_mean"]
    np.testing.assert_allclose(z, model.encode(photos / np.float32(255)), atol=1e-6)
    assert manifest["preprocessing"].startswith(
        "none: the parts divide by 255 themselves; before that an example must be turned"
    )
    assert 'convert("RGB")' in manifest["preparation"]["before"][1]
    assert "5 x 6 pixels" in manifest["preparation"]["before"][2]
    with pytest.raises(ValueError, match="must be of type uint8"):
        Bundle(tmp_path / "bundle").open("encoder")(photos / np.float32(255))


def test_what_a_format_can_not_carry_is_refused(tmp_path):
    standardised = Preparation("images", (8, 8, 1), "standard", (100.0,), (50.0,))
    model = model_of(standardised, (8, 8, 1))
    with pytest.raises(ValueError, match="shows pixels in .* mean 0 and variance 1"):
        page(model, tmp_path / "page", runtime=tmp_path)
    with pytest.raises(ValueError, match="`image_input` is for a model of pixels"):
        export(model, tmp_path / "bundle", image_input="uint8")


@pytest.mark.usefixtures("unchecked")
def test_clipped_scaling_is_clipped_in_the_graph(tmp_path):
    low, spread = np.zeros(4), np.array([10.0, 1.0, 2.0, 4.0])
    model = model_of(of_table(low, spread, "minmax"), likelihood="bernoulli")
    export(model, tmp_path / "bundle", "onnx")
    values = np.array([[-5, 0.5, 3, 1], [20, 0.1, 1, 9]], "float32")
    expected = model.encode(np.clip(values / spread, 0, 1).astype("float32"))
    np.testing.assert_allclose(run(tmp_path / "bundle", "encoder", values)["z_mean"], expected, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["Reducer", "AnomalyDetector", "Imputer"])
def test_an_estimator_of_a_data_frame(name, tmp_path):
    frame = pd.DataFrame(rows(60), columns=COLUMNS)
    options = {"scaling": "standard", "epochs": 1, "latent_dim": 2, "hidden_units": (4,), "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fitting, another matter
        fitted = getattr(tasks, name)(**options).fit(frame)
    new = pd.DataFrame(rows(5, seed=3), columns=COLUMNS)
    if name == "Imputer":
        new.iloc[1, 0] = new.iloc[2, 2] = np.nan
    expected = fitted.score_samples(new) if name == "AnomalyDetector" else np.asarray(fitted.transform(new))
    manifest = export(fitted, tmp_path / "bundle", "onnx")
    (answer,) = run(tmp_path / "bundle", manifest["parts"][0]["name"], new.to_numpy()).values()
    center = SCALE * 0 + fitted.center_ if name == "Imputer" else 0
    np.testing.assert_allclose(answer - center, expected - center, rtol=1e-4, atol=1e-4)
    assert manifest["preparation"]["columns"] == list(COLUMNS)
    assert manifest["preparation"]["takes"] == "float64"
    np.testing.assert_allclose(manifest["preparation"]["offset"], frame.mean())
    assert manifest["parts"][0]["inputs"][0]["missing"] == (name == "Imputer")  # bulk runs ask


@pytest.mark.usefixtures("unchecked")
def test_a_reducer_takes_missing_values_where_its_family_does(tmp_path):
    frame = pd.DataFrame(rows(60), columns=COLUMNS)
    frame = frame.mask(np.random.default_rng(1).random(frame.shape) < 0.2)
    options = {"hidden_units": (4,), "epochs": 1, "scaling": "standard", "random_state": 0}
    reducer = tasks.Reducer("incomplete", **options).fit(frame)
    scaled = ((frame - frame.mean()) / frame.std(ddof=0)).to_numpy("float32")
    codes = reducer.transform(frame)
    np.testing.assert_allclose(codes, reducer.model_.encode(scaled), atol=1e-5)
    made = reducer.inverse_transform(codes)
    assert reducer.score(frame) == pytest.approx(-np.nansum((frame - made) ** 2) / 60)
    manifest = export(reducer, tmp_path / "bundle", "onnx", x=frame)
    np.testing.assert_allclose(run(tmp_path / "bundle", "transform", frame.to_numpy())["z"], codes, atol=1e-5)
    assert manifest["parts"][0]["inputs"][0]["missing"]
    with pytest.raises(ValueError, match=r"must have an observed value .*\['v'\]"):
        tasks.Reducer("incomplete", **options).fit(frame.assign(v=np.nan))
    with pytest.raises(ValueError, match="contains NaN"):
        tasks.Reducer(**options).fit(frame)


def test_what_comes_back_keeps_its_digits():
    values = rows(60)
    reducer = tasks.Reducer("linear", scaling="standard", epochs=1, random_state=0).fit(values)
    z = reducer.transform(values)
    exact = reducer.model_.decode(z) * reducer.scale_ + reducer.center_
    np.testing.assert_allclose((reducer.inverse_transform(z) - exact) / SCALE, 0, atol=1e-9)
    values[::3, 0] = np.nan
    imputer = tasks.Imputer(latent_dim=2, epochs=1, hidden_units=(4,), n_samples=20, random_state=0).fit(values)
    drawn = imputer.sample(values, 3, random_state=0)[:, ::3, 0]
    # In float32, times of this size are multiples of 128.
    assert np.mean(drawn % 128 == 0) < 0.1
    assert np.mean(imputer.transform(values)[::3, 0] % 128 == 0) < 0.1
    # Columns of usual size stay as they were.
    reducer.center_ = 0 * OFFSET
    assert reducer.inverse_transform(z).dtype == "float32"


def test_numbers_that_are_taken_as_they_are_must_fit_into_float32(tmp_path):
    from kerasae.runs import examples, recipes

    pd.DataFrame(rows(30), columns=COLUMNS).to_csv(tmp_path / "table.csv", index=False)
    recipe = {"family": "undercomplete", "description": "", "model": {"latent_dim": 2}, "measure": []}
    recipe |= {"data": {"path": str(tmp_path / "table.csv"), "scaling": "none"}, "training": {"epochs": 1}}
    with pytest.raises(
        ValueError, match=r"digits of 3 columns that aren't scaled: 'unix' \(around 1[67]\d+, off .*--scaling standard"
    ):
        examples.load(recipes.validated(recipe))


def test_a_table_with_gaps_is_prepared_and_measured_by_what_it_holds(tmp_path):
    from kerasae.runs import examples, measures, recipes

    frame = pd.DataFrame(rows(40), columns=COLUMNS)
    frame = frame.mask(np.random.default_rng(1).random(frame.shape) < 0.2)
    frame.to_csv(tmp_path / "table.csv", index=False)
    recipe = {"family": "incomplete", "description": "", "model": {"latent_dim": 2, "hidden_units": [4]}, "measure": []}
    recipe = recipes.validated({**recipe, "data": {"path": str(tmp_path / "table.csv")}, "training": {"epochs": 1}})
    loaded = examples.load(recipe)
    (x_train, _), (x_test, _) = loaded.train, loaded.test
    assert np.isnan(x_train).any()
    np.testing.assert_allclose(np.nanmean(x_train, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(x_train, axis=0), 1, atol=1e-4)
    assert f"{frame.isna().to_numpy().sum()} missing values; each column scaled" in loaded.line
    model = recipes.build(recipe, (4,), len(x_train))
    measured = measures.default_measurements(model, x_test, len(x_train))
    data = {"x_train": x_train, "x_test": x_test}
    values = {record["metric"]: record["value"] for record in measures.measure_each(measured, model, data)}
    errors = np.nansum((x_test - model.predict(x_test, verbose=0)) ** 2, axis=1)
    assert values.pop("squared_error") == pytest.approx(errors.mean(), rel=1e-5)
    assert set(values) == {"negative_elbo", "active_units"}
    assert np.isfinite(list(values.values())).all()
    with pytest.raises(ValueError, match="have gaps or NaN: "):
        examples.load(recipe.model_copy(update={"family": "undercomplete"}))


def test_earlier_versions_divided_the_bytes_of_photos_whatever_was_asked_for():
    old = {
        "kind": "images",
        "shape": [4, 4, 3],
        "scaling": "standard",
        "offset": [99.0],
        "scale": [50.0],
        "columns": None,
    }
    photos = np.full((2, 4, 4, 3), 51, "uint8")
    np.testing.assert_allclose(Preparation.from_dict(old).apply(photos), 0.2)


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [0]},
        {"shape": None},
        {"scale": [0.0] * 4},
        {"offset": [float("nan")] * 4},
        {"offset": [1.0] * 3},
        {"columns": ["a"]},
        {"columns": [1, 2, 3, 4]},
        {"takes": "float16"},
        {"foreign": 1},
    ],
    ids=str,
)
def test_a_damaged_preparation_is_refused(damage):
    with pytest.raises(ValueError, match="no preparation that can be read"):
        Preparation.from_dict({**of_table().to_dict(), **damage})


@pytest.mark.usefixtures("unchecked")
def test_a_model_of_the_zoo_knows_what_its_recipe_did(tmp_path, digits):
    model = kerasae.zoo.load("undercomplete-dense-digits")
    assert model.preparation == Preparation("images", (8, 8, 1), "pixels")
    manifest = export(model, tmp_path / "bundle", "onnx")
    assert manifest["preparation"]["before"] == ["divided by 255 where pixels are bytes"]
    photos = np.rint(255 * digits[1][:5]).astype("uint8")
    expected = model.encode(photos / np.float32(255))
    np.testing.assert_allclose(Bundle(tmp_path / "bundle").open("encoder")(photos)["z"], expected, atol=1e-5)
    # The file itself, of an earlier version, holds none.
    file = kerasae.zoo.download("undercomplete-dense-digits")["model.keras"]
    assert keras.saving.load_model(file).preparation is None


@pytest.mark.parametrize(
    ("offset", "scale", "takes"),
    [((101325.25, 830.7, 13.0, 0.1), (30000.0, 100.0, 0.8, 1.0), "float32"), (OFFSET, SCALE, "float64")],
    ids=["float32", "float64"],
)
def test_lower_precision_computes_from_the_columns_own_numbers(offset, scale, takes, tmp_path, monkeypatch):
    pytest.importorskip("onnxconverter_common", reason="needs the extra kerasae[float16]")
    monkeypatch.setattr(parity, "replay", lambda *_: {("onnx", "encoder", 1): {}})
    monkeypatch.setattr(parity, "compare", lambda *_: [{"relative_difference": 0.0}])
    monkeypatch.setattr("kerasae.export.manifests.measure_variants", lambda *_: None)
    model = model_of(of_table(offset, scale), likelihood="gaussian", variance="predicted")
    values = rows(100, offset, scale).astype(takes)
    variants = ("float16", "int8_dynamic", "int8_static")
    export(model, tmp_path / "bundle", "onnx", variants=variants, calibration=values)
    x = ((values - np.asarray(offset)) / scale).astype("float32")
    z, made = model.encode(x), model.predict(x, verbose=0)
    # Of the largest answer: what half precision and 8 bits round, and no more.
    for variant, most in zip(variants, (2e-3, 0.05, 0.09), strict=True):
        codes = run(tmp_path / "bundle", f"encoder.{variant}", values)["z_mean"]
        assert np.abs(codes - z).max() < most * np.abs(z).max()
        answer = run(tmp_path / "bundle", f"autoencoder.{variant}", values)["reconstruction"]
        assert answer.dtype == takes
        assert np.abs((answer - offset) / scale - made).max() < most * np.abs(made).max()
        decoded = run(tmp_path / "bundle", f"decoder.{variant}", z)
        expected = model.decoder(z)[1].numpy() + 2 * np.log(scale)
        np.testing.assert_allclose(decoded["log_variance"], expected, atol=most * np.abs(expected).max())


@pytest.mark.usefixtures("unchecked")
def test_a_data_frame_goes_in_by_its_columns_names(table, tmp_path, caplog, monkeypatch):
    given = []
    own = parity.batches
    monkeypatch.setattr(parity, "batches", lambda parts, x: given.append(x["x"]) or own(parts, x))
    model, values = table[0], rows(8)
    frame = pd.DataFrame(values, columns=COLUMNS)
    export(model, tmp_path / "one", "onnx", x=frame[list(COLUMNS[::-1])])
    np.testing.assert_array_equal(given[0], values)
    export(model, tmp_path / "more", "onnx", x=frame.assign(id=1)[["id", *COLUMNS[::-1]]])
    np.testing.assert_array_equal(given[1], values)
    assert "`x`: left out, as the model was not trained on them: id" in caplog.text
    with pytest.raises(
        ValueError, match="`x` lacks columns that the model was trained on: unix. It has: pressure, number, v"
    ):
        export(model, tmp_path / "less", "onnx", x=frame.drop(columns="unix"))
    reducer = tasks.Reducer("linear", epochs=1, random_state=0).fit(frame)
    export(reducer, tmp_path / "estimator", "onnx", x=frame[list(COLUMNS[::-1])])
    np.testing.assert_array_equal(given[2], values)


def test_an_estimator_that_scales_nothing_loses_no_digits_in_silence():
    frame = pd.DataFrame(rows(40), columns=COLUMNS).assign(constant=1.7e9)
    options = {"scaling": None, "epochs": 1, "random_state": 0}
    with pytest.raises(
        ValueError, match=r"of 3 columns that aren't scaled: 'unix' \(around 1[67]\d+, .*scaling=\"standard\""
    ):
        tasks.Reducer("linear", **options).fit(frame)
    tasks.Reducer("linear", **options).fit(frame[["v", "constant"]])
    tasks.Reducer("linear", **options).fit(rows(40).astype("float32"))


def test_the_pixels_of_unscaled_images_share_a_spread():
    images = np.ones((1000, 3, 3, 1))
    images[0, 0, 0], images[:, 2, 2] = 254 / 255, 0
    check_unscaled(images, None, "how")
    with pytest.raises(ValueError, match="loses digits of 1 columns"):
        check_unscaled(np.random.default_rng(0).normal(1e7, 1, (50, 2)) * (1, 0), ["a", "b"], "how")

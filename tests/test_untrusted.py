"""Files made to do harm, or that lie about themselves: each is refused by a sentence, before memory or other files are touched."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from click.testing import CliRunner

from kerasae import builders, keras_internals, tasks, untrusted, zoo
from kerasae.cli import app, opening, shared
from kerasae.cli.app import cli
from kerasae.data import arrays, files, preparation
from kerasae.runs import detector, recipes
from kerasae.zoo import making


def header(text, payload=b""):
    """An .npy file whose header says what it likes."""
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + payload


LYING = {
    "long": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3000000, 1000)}", bytes(40)),
        "announces an array",
    ),
    "huge": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 1000)}".replace("10**9", "9" * 18)),
        "announces",
    ),
    "negative": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}", bytes(40)), "can't be read"),
    "objects": (
        header("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", pickle.dumps([1, 2])),
        "Python objects",
    ),
    "no_literal": (header("__import__('os').getcwd()"), "its header is no array's"),
    "nested": (header("[" * 110), "its header is no array's"),
    "no_array": (b"hello", "its header is no array's"),
    "empty": (b"", "its header is no array's"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
@pytest.mark.parametrize(("content", "message"), LYING.values(), ids=LYING)
def test_arrays_that_lie_are_refused(content, message, packed, tmp_path):
    path = tmp_path / ("x.npz" if packed else "x.npy")
    path.write_bytes(content)
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("x.npy", content)
    with pytest.raises(ValueError, match=message) as error:
        arrays.read(path, None, None)
    assert str(path) in str(error.value)


def test_archives_that_lie_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((3000, 1000)))
    assert arrays.read(path, None, None)[0].shape == (3000, 1000)
    content = bytearray(path.read_bytes())
    size = 24_000_128
    at = content.rindex(size.to_bytes(4, "little"))  # of the directory
    content[at : at + 4] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"announces 4,000,000,000 bytes, and is stored in 2\d,\d\d\d"):
        arrays.read(path, None, None)
    path.write_bytes(content[:500])
    with pytest.raises(ValueError, match="can't be read as a NumPy archive"):
        arrays.read(path, None, None)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (untrusted.array, untrusted.Archive, untrusted.json, untrusted.check_keras_file):
        with pytest.raises(ValueError, match="it is no file"):
            read(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**6, "nested too deep"),
        (b'{"a": ' * 10**5, "nested too deep"),
        (b"\xff\xfe", "can't be read as JSON"),
        (b"{", "can't be read as JSON"),
        (b'{"n": "1", "x": {}}', "its entry 'n' is '1', where int or float was expected"),
        (b'{"n": true, "x": {}}', "its entry 'n' is True"),
        (b'{"n": 1}', "it has no 'x'"),
        (b'{"n": 1, "x": {"a": 3}}', "its entry 'x.a' is 3, where a list was expected"),
        (b'{"n": 1, "x": {"a": ["b", null]}}', "its entry 'x.a.1' is missing"),
        (b"[]", r"it is \[\], where an object was expected"),
        (b" " * 200, "it has 200 bytes"),
    ],
)
def test_json_of_another_shape_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        untrusted.json(
            content,
            {"n": (int, float), "x": {str: [str]}, "y?": str},
            "facts.json",
            10**7 if len(content) > 200 else 199,
        )
    assert (
        untrusted.json(b'{"n": 1.5, "x": {"a": ["b"]}}', {"n": (int, float), "x": {str: [str]}, "y?": str})["n"] == 1.5
    )


# -- .keras files ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("reading") / "model.keras"
    builders.undercomplete(4, latent_dim=2, hidden_units=(3,)).save(path)
    return path


def rewrite(saved, folder, config=lambda config: None, weights=lambda file: None):
    """The file with other contents."""
    with zipfile.ZipFile(saved) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    changed = json.loads(parts["config.json"])
    config(changed)
    parts["config.json"] = json.dumps(changed).encode()
    (folder / "weights.h5").write_bytes(parts["model.weights.h5"])
    with h5py.File(folder / "weights.h5", "r+") as file:
        weights(file)
    parts["model.weights.h5"] = (folder / "weights.h5").read_bytes()
    path = folder / "changed.keras"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return path


def kernels(file):
    names = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.ndim == 2 else None
    )
    return names[0]


def elsewhere(how):
    """Weights that lie in another file: CVE-2026-1669."""

    def weights(file):
        name, other = kernels(file), f"{file.filename}.secret"
        shape = file[name].shape
        del file[name]
        if how == "external":
            np.full(shape, 7, "<f4").tofile(other)
            file.create_dataset(name, shape, "<f4", external=[(other, 0, h5py.h5f.UNLIMITED)])
            return
        with h5py.File(other, "w") as secret:
            secret["x"] = np.full(shape, 7, "<f4")
        if how == "link":
            file[name] = h5py.ExternalLink(other, "x")
        else:
            layout = h5py.VirtualLayout(shape, "<f4")
            layout[:] = h5py.VirtualSource(other, "x", shape)
            file.create_virtual_dataset(name, layout)

    return weights


def announced(file):
    name = kernels(file)
    del file[name]
    file.create_dataset(name, (10**6, 10**6), "<f4", chunks=(1000, 1000))


MSE = keras.losses.MeanSquaredError()


def each_dense(config, units):
    """Sizes that are small, each for itself."""
    for layer in config["config"]["encoder"]["config"]["layers"]:
        if layer["class_name"] == "Dense":
            layer["config"]["units"] = units
            layer.pop("build_config")


def dense(config):
    return next(layer for layer in config["config"]["encoder"]["config"]["layers"] if layer["class_name"] == "Dense")[
        "config"
    ]


def activation(module, name):
    named = {"module": module, "class_name": "function", "config": name, "registered_name": name}
    return lambda config: dense(config).update(activation=named)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": elsewhere("external")}, "lie in another file"),
        ({"weights": elsewhere("link")}, "are a link"),
        ({"weights": elsewhere("virtual")}, "lie in another file"),
        ({"weights": announced}, "announce 4,000,000,000,000 bytes, and 0 are stored"),
        ({"config": activation("keras.utils", "get_file")}, "names the function keras.utils.get_file"),
        ({"config": activation("keras.saving", "load_model")}, "names the function keras.saving.load_model"),
        (
            {"config": activation("keras.activations", "deserialize")},
            "names the function keras.activations.deserialize",
        ),
        ({"config": activation("builtins", "eval")}, "eval"),
        ({"config": activation("os", "system")}, "system"),
        (
            {"config": activation("keras.losses", "mean_squared_error")},
            "names the function keras.losses.mean_squared_error as an activ",
        ),
        (
            {"config": activation("builtins", "mean_squared_error")},
            "names the function builtins.mean_squared_error as an activation",
        ),
        ({"config": activation("keras.ops", "arange")}, "names the function keras.ops.arange as an activation"),
        (
            {"config": lambda config: dense(config).update(activation=keras.saving.serialize_keras_object(MSE))},
            "names the class keras.losses.MeanSquaredError as an activation",
        ),
        ({"config": lambda config: dense(config).update(units=10**9)}, "hold 4,000,000,000 weights or more, up to"),
        ({"config": lambda config: each_dense(config, 6000)}, r"hold 36,030,000 weights or more, .* \(6000, 6000\)"),
        ({"config": lambda config: config.pop("class_name")}, "has no 'class_name'"),
    ],
)
def test_a_keras_file_reaches_nothing_else(saved, change, message, tmp_path):
    path = rewrite(saved, tmp_path, **change)
    with pytest.raises(Exception, match=message):
        keras_internals.load_model_safely(path)


def test_what_is_well_opens(saved, tmp_path):
    x = np.ones((2, 4), "float32")
    expected = keras.saving.load_model(saved).predict(x, verbose=0)
    path = rewrite(saved, tmp_path, config=activation("keras.activations", "relu"))
    np.testing.assert_array_equal(keras_internals.load_model_safely(path).predict(x, verbose=0), expected)


def test_a_lookup_layer_reads_no_vocabulary_of_this_machine(tmp_path):
    """CVE-2025-12058."""
    (tmp_path / "secret.txt").write_text("alpha\nbeta\n")
    layers = [keras.Input((1,), dtype="string"), keras.layers.StringLookup(vocabulary=["a", "b"])]
    keras.Sequential(layers).save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    lookup = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "StringLookup")
    lookup["config"]["vocabulary"] = str(tmp_path / "secret.txt")
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(Exception, match="secret.txt"):
        keras_internals.load_model_safely(tmp_path / "model.keras")


@pytest.fixture
def unsafe():
    keras.config.enable_unsafe_deserialization()
    yield
    keras_internals.forget_unsafe_deserialization()


@pytest.mark.usefixtures("unsafe")
@pytest.mark.parametrize("kind", ["index", "codec"])
def test_no_code_runs_where_the_process_has_allowed_it_for_its_own_files(kind, tmp_path, rng):
    """Each opens the model in it by the one door."""
    proof = tmp_path / "proof"
    x = keras.Input((4, 4, 1))

    def run(tensor, proof=str(proof)):
        open(proof, "w").close()
        return tensor

    codes = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Lambda(run, output_shape=(4, 4, 1))(x)))
    z = keras.Input((2,))
    decoder = keras.Model(z, keras.layers.Reshape((4, 4, 1))(keras.layers.Dense(16)(z)))
    from kerasae.models import Autoencoder

    model = Autoencoder(keras.Model(x, codes), decoder)
    images, path = rng.random((20, 4, 4, 1), dtype="float32"), tmp_path / "file"
    if kind == "index":
        index = tasks.SearchIndex(model)
        index.add(images)
        index.save(path)
    else:
        tasks.Codec(model).fit(images).save(path)
    proof.unlink()
    with pytest.raises(Exception, match=r"(?i)lambda|safe"):
        (tasks.SearchIndex if kind == "index" else tasks.Codec).load(path)
    assert not proof.exists()


def test_an_archive_that_unpacks_to_more_than_a_model_is_refused(saved, tmp_path):
    for name, message in (("config.json", "config.json can't be read as JSON: it has"), ("bomb", "announces 20")):
        with zipfile.ZipFile(saved) as file:
            parts = {part: file.read(part) for part in file.namelist()}
        parts[name] = parts.get(name, b"") + b" " * (70 if name == "config.json" else 200) * 2**20
        with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("noise", np.random.default_rng(0).bytes(10**6 * (name == "config.json")))
            for part, content in parts.items():
                file.writestr(part, content)
        with pytest.raises(ValueError, match=message):
            untrusted.check_keras_file(tmp_path / "bomb.keras")


@keras.saving.register_keras_serializable("test_untrusted")
def doubled(x):
    return 2 * x


@pytest.mark.parametrize("function", [doubled, keras.layers.LeakyReLU(0.1), "gelu"], ids=["own", "layer", "name"])
def test_ones_own_activations_open(function, tmp_path):
    model = builders.undercomplete(4, latent_dim=2, hidden_units=(3,), activation=function)
    model.save(tmp_path / "model.keras")
    x = np.ones((2, 4), "float32")
    again = keras_internals.load_model_safely(tmp_path / "model.keras").predict(x, verbose=0)
    np.testing.assert_array_equal(again, model.predict(x, verbose=0))


@pytest.mark.parametrize("option", ["activation", "code_activation", "output_activation"])
def test_a_recipe_names_no_function_but_by_a_name(option):
    config = {"module": "builtins", "class_name": "function", "config": "mean_squared_error"}
    with pytest.raises(ValueError, match="must be the name of one of keras.activations"):
        builders.undercomplete(4, latent_dim=2, **{option: config})


# -- Codecs and indexes ------------------------------------------------------------------------------------------------------------------


def test_a_stream_holds_no_more_images_than_its_bytes_can(rng):
    model = builders.undercomplete((4, 4, 1), latent_dim=4)
    images = rng.random((50, 4, 4, 1), dtype="float32")
    codec = tasks.Codec(model).fit(images)
    from kerasae.tasks import containers

    _, payload = containers.unpack(codec.encode(images), "lossy", codec.fingerprint_)
    for count, shape, step, message in (
        (3_000_000, (4, 4, 1), 4, "can't hold the 3,000,000 images"),
        (50, (400, 400, 1), 4, r"announces images of \(400, 400, 1\)"),
        (50, (4, 4, 1), 0, "a step of"),
        (50, (4, 4, 1), 10**9, "a step of"),
    ):
        claimed = np.lib.stride_tricks.as_strided(np.zeros(1, "float32"), (count, *shape), (0,) * 4)
        stream = containers.pack("lossy", codec.fingerprint_, claimed, [step], payload)
        with pytest.raises(ValueError, match=message):
            codec.decode(stream)
    assert codec.decode(codec.encode(images[:1])).shape == (1, 4, 4, 1)
    alike = np.repeat(images[:1], 3000, axis=0)
    assert tasks.Codec(model).fit(images).decode(codec.encode(alike)).shape == alike.shape


def test_a_lossless_stream_announces_what_it_holds(rng):
    codec = tasks.LosslessCodec(builders.variational((4, 4, 1), latent_dim=2, hidden_units=(4,)))
    images = (rng.random((20, 4, 4, 1)) < 0.5).astype("uint8")
    stream = codec.encode(images)
    assert (codec.decode(stream) == images).all()
    from kerasae.tasks import containers

    header, payload = containers.unpack(stream, "lossless", codec.fingerprint)
    checksum = header["parameters"][0]
    for count, parameters in (
        (10**9, header["parameters"]),
        (10**9, [checksum, 10**9]),
        (20, [checksum, 0, 20]),
        (20, []),
    ):
        claimed = np.lib.stride_tricks.as_strided(np.zeros(1, "uint8"), (count, 4, 4, 1), (0,) * 4)
        forged = containers.pack("lossless", codec.fingerprint, claimed, parameters, payload)
        with pytest.raises(ValueError, match="The stream is damaged"):
            codec.decode(forged)


def index_file(path, **changes):
    arrays = {"codes": np.ones((3, 2), "float32"), "ids": np.arange(3), **changes.pop("arrays", {})}
    head = {
        "format": "kerasae-search-index",
        "format_version": 1,
        "metric": "cosine",
        "approximate": False,
        "model": "none",
    }
    from kerasae.tasks.search import _sha256

    head["sha256"] = {name: _sha256(values) for name, values in arrays.items()}
    head.update(changes)
    content = io.BytesIO()
    np.savez(content, header=np.frombuffer(json.dumps(head).encode(), "uint8"), **arrays)
    path.write_bytes(content.getvalue())


@pytest.mark.parametrize(
    "changes",
    [
        {"arrays": {"codes": np.ones(6, "float32")}},
        {"arrays": {"codes": np.ones((3, 2))}},
        {"arrays": {"ids": np.arange(2)}},
        {"arrays": {"ids": np.ones(3)}},
        {"arrays": {"graph": np.zeros(40, "uint8")}},
        {"arrays": {"model": np.zeros(40, "uint8")}},
        {"sha256": []},
        {"metric": 3},
        {"model": "pickle"},
    ],
    ids=str,
)
def test_an_index_of_another_shape_is_refused(changes, tmp_path):
    index_file(tmp_path / "index")
    assert len(tasks.SearchIndex.load(tmp_path / "index")) == 3
    index_file(tmp_path / "index", **changes)
    with pytest.raises(ValueError, match="index"):
        tasks.SearchIndex.load(tmp_path / "index")


# -- Sizes that were mistyped, and what a terminal obeys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 10**9},
        {"latent_dim": 2, "hidden_units": (10**9, 10)},
        {"latent_dim": 2, "hidden_units": (10**6, 10**6)},
        {"latent_dim": 10**12, "network": "conv"},
        {"input_shape": (40_000, 40_000, 3), "latent_dim": 2},
    ],
)
def test_a_network_that_no_memory_holds_is_refused_before_it_is_built(options):
    with pytest.raises(ValueError, match="takes .* GiB of memory or more, and .* GiB are free. Take smaller ones"):
        builders.undercomplete(**{"input_shape": (8, 8, 1), **options})


def test_more_samples_than_memory_holds_are_refused(tmp_path):
    builders.variational((8, 8, 1), latent_dim=2, hidden_units=(4,)).save(tmp_path / "model.keras")
    arguments = ["sample", str(tmp_path / "model.keras"), str(tmp_path / "x.npy"), "--num", str(10**11)]
    result = CliRunner().invoke(cli, arguments)
    assert re.search(r"--num 100000000000 takes .* GiB of memory", str(result.exception))


def test_control_characters_never_reach_the_terminal():
    text = "name\x1b[2J\x9b31m\u202egnp.exe\rold\tnew\nnext é"
    assert shared.plain(text) == "name\\x1b[2J\\x9b31m\\u202egnp.exe\\rold\tnew\nnext é"


@pytest.mark.parametrize("command", ["list", "show"])
def test_cards_and_units_are_plain(command, tmp_path, monkeypatch):
    tree = tmp_path / "zoo"
    shutil.copytree(zoo.sources.PACKAGED / "linear-dense-mnist", tree / "linear-dense-mnist")
    shutil.copy(zoo.sources.PACKAGED / "index.json", tree)
    index = json.loads((tree / "index.json").read_text())
    index["models"] = {name: entry for name, entry in index["models"].items() if (tree / name).is_dir()}
    name, entry = next(iter(index["models"].items()))
    (tree / name / "card.md").write_text("# a card\x1b]0;title\x07")
    entry["files"]["card.md"]["sha256"] = hashlib.sha256((tree / name / "card.md").read_bytes()).hexdigest()
    entry["figure"]["unit"] = "nats\x1b[8m"
    (tree / "index.json").write_text(json.dumps(index))
    result = CliRunner().invoke(
        cli, ["zoo", command, *([name] if command == "show" else []), "--source", str(tree)], color=True
    )
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "\\x1b" in result.output


def test_more_rows_an_epoch_than_memory_holds_are_refused():
    detector = tasks.AnomalyDetector(max_samples=10**14, epochs=1)
    with pytest.raises(ValueError, match=r"An epoch of 100,000,000,000,000 examples takes .* \(max_samples\)"):
        detector.fit(np.random.default_rng(0).random((20, 3)))


def test_what_memory_does_not_hold_is_said(monkeypatch, capsys):
    monkeypatch.setattr(app.cli, "main", lambda **options: np.empty(2**57))
    with pytest.raises(SystemExit):
        app.main()
    assert capsys.readouterr().err.startswith("Error: there is not enough memory. Unable to allocate 1.00 EiB")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("long.csv", b"a,b\n" + b"1" * 300_000 + b",2\n", "can't be read as a table: field larger than field limit"),
        (
            "none.npy",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4)}"),
            r"holds no examples.*\(0, 4\)",
        ),
    ],
)
def test_files_that_hold_nothing_or_too_much(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read(tmp_path / name)


def test_lists_of_which_one_is_missing(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"x": [[1.0, 2.0], None]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="Lists of different lengths, or none, in rows 1 to 2"):
        files.read(tmp_path / "x.parquet")


def test_a_mark_that_a_text_lacks_is_said(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"x.csv can't be read as text: UTF-16 stream.*Name its encoding"):
        files.read(tmp_path / "x.csv", encoding="utf-16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=" + "[" * 5000 + "]" * 5000, "is not a recipe: it is nested too deep"),
        ("#" * 2**21, "it has 2,097,152 bytes"),
    ],
    ids=["nested", "large"],
)
def test_a_recipe_is_a_small_file(text, message, tmp_path):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipes.read(tmp_path / "recipe.toml")


@pytest.mark.parametrize("module", [".mine", ""])
def test_a_module_that_can_be_none(module, run):
    recipe = recipes.read(run / "recipe.toml").model_copy(update={"modules": [module]})
    with pytest.raises(ValueError, match="The module .* can't be imported"):
        recipes.check(recipe)


# -- Folders of runs and detectors -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """What is read of a finished run's folder."""
    model = builders.undercomplete(4, latent_dim=2, hidden_units=(3,))
    model.save(tmp_path / "model.keras")
    recipe = recipes.Recipe(
        family="undercomplete",
        description="a test",
        data={"path": "data.csv"},
        model={"latent_dim": 2},
        training={"epochs": 1},
        measure=[],
    )
    (tmp_path / "recipe.toml").write_text(recipes.to_toml(recipe))
    facts = {
        "preparation": preparation.Preparation("table", (4,)).to_dict(),
        "fingerprint": "sha256:0",
        "classes": None,
    }
    (tmp_path / "data.json").write_text(json.dumps(facts))
    (tmp_path / "history.json").write_text('{"loss": [1.0, NaN]}')
    sha256 = hashlib.sha256((tmp_path / "model.keras").read_bytes()).hexdigest()
    (tmp_path / "metrics.json").write_text(json.dumps({"model": {"sha256": sha256}}))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.keras", None, "is not the model that was trained here: its sha256"),
        ("data.json", "[" * 10**5, "nested too deep"),
        ("data.json", "[]", r"data.json is damaged, or of another kind: it is \[\]"),
        ("data.json", '{"preparation": {"kind": "table", "shape": ["a"]}}', "its entry 'preparation.shape.0' is 'a'"),
        ("data.json", '{"preparation": {"kind": "table", "shape": [4], "x": 1}}', "data.json is damaged"),
        ("data.json", '{"preparation": {"kind": "table", "shape": [4]}, "num_test": []}', "entry 'num_test' is "),
        ("metrics.json", '{"model": 3}', "its entry 'model' is 3"),
        ("metrics.json", '{"model"', "metrics.json can't be read as JSON"),
    ],
)
def test_a_runs_folder_is_what_was_recorded(run, name, content, message):
    assert opening.open_model(run).history["loss"][0] == 1
    if content is None:
        builders.undercomplete(4, latent_dim=2, hidden_units=(5,)).save(run / name)
    else:
        (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        opening.open_model(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "detector.json can't be read as JSON"),
        ("[1]", "detector.json is damaged"),
        ('{"threshold": "low", "preparation": {}}', "its entry 'threshold' is 'low'"),
        ('{"threshold": NaN, "preparation": {}}', "its threshold is nan"),
        ('{"threshold": 1, "preparation": {"kind": 3}}', "detector.json is damaged"),
    ],
)
def test_a_damaged_detector_is_said(content, message, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "detector.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        detector.Scorer(tmp_path)


def test_a_published_recipe_names_no_files_of_this_machine(tmp_path):
    tree, name = tmp_path / "zoo", "linear-dense-mnist"
    shutil.copytree(zoo.sources.PACKAGED / name, tree / name)
    recipe = (tree / name / "recipe.toml").read_text()
    (tree / name / "recipe.toml").write_text(
        re.sub(r'\[data\]\nname = "mnist"[^\[]*', '[data]\npath = "/etc"\n\n', recipe)
    )
    index = json.loads((zoo.sources.PACKAGED / "index.json").read_text())
    index["models"] = {name: index["models"][name]}
    for file in ("recipe.toml",):
        index["models"][name]["files"][file]["sha256"] = hashlib.sha256((tree / name / file).read_bytes()).hexdigest()
    (tree / "index.json").write_text(json.dumps(index))
    assert zoo.describe(name, source=tree)["recipe"]["data"]["path"] == "/etc"
    with pytest.raises(ValueError, match="its publisher's own files, etc, and a published recipe names no files"):
        making.evaluate(name, source=tree)

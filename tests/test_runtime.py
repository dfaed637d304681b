"""Bundles opened without Keras: what was changed is refused everywhere, and the functions answer as the model does."""

import hashlib
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest

from kerasae import builders, runtime, tasks
from kerasae.export import bulk, export
from kerasae.export.clients import run as client
from kerasae.preparation import Preparation

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def model():
    return builders.variational(SHAPE, latent_dim=3, hidden_units=(16,))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime") / "bundle"
    export(model, folder, "onnx")
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "bundle")


@pytest.fixture(scope="module")
def x(digits):
    return digits[1][:150]


# -- Functions ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 64, 150, 1000])
def test_functions_answer_as_the_model_does(model, folder, x, batch_size):
    encode = runtime.Bundle(folder).open("encoder", threads=1)
    assert encode.inputs == [{"name": "x", "shape": ["batch", *SHAPE], "dtype": "float32"}]
    assert [port["name"] for port in encode.outputs] == ["z_mean", "z_log_var"]
    for answer in (encode(x, batch_size=batch_size), encode(x=x, batch_size=batch_size)):
        for name, expected in zip(("z_mean", "z_log_var"), model.encoder(x), strict=True):
            np.testing.assert_allclose(answer[name], expected, atol=1e-5)


def test_no_examples_give_outputs_without_rows(folder, x):
    answer = runtime.Bundle(folder).open("autoencoder")(x[:0])
    assert answer["reconstruction"].shape == (0, *SHAPE)


def test_a_file_of_one_batch_size_takes_any_number(model, x, tmp_path):
    export(model, tmp_path / "bundle", "onnx", batch_size=4)
    score = runtime.Bundle(tmp_path / "bundle").open("score")
    expected = runtime.OnnxFunction((tmp_path / "bundle" / "score.onnx").read_bytes())(x[:4])["score"]
    for count in (0, 1, 4, 7):
        answer = score(x[:count], batch_size=5)["score"]
        assert answer.shape == (count,)
        np.testing.assert_allclose(answer[:4], expected[:count], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: f(x[..., 0]), r"`x` must have the shape \('batch', 8, 8, 1\). Received: \(150, 8, 8\)"),
        (lambda f, x: f(x[:, :7]), r"Received: \(150, 7, 8, 1\)"),
        (lambda f, x: f(x.astype("complex64")), "`x` must be of type float32. Received: complex64"),
        (lambda f, x: f(), r"The inputs are \['x'\]. Received 0"),
        (lambda f, x: f(x, x), r"The inputs are \['x'\]. Received 2"),
        (lambda f, x: f(x, x=x), r"The inputs are \['x'\]. Received 1 .*\['x'\]"),
        (lambda f, x: f(x, y=x), r"Received 1 .*\['y'\]"),
    ],
)
def test_inputs_that_do_not_fit(folder, x, call, message):
    with pytest.raises(ValueError, match=message):
        call(runtime.Bundle(folder).open("encoder"), x)


def test_floats_are_not_cut_to_bytes(x, tmp_path):
    export(builders.undercomplete(SHAPE, 2), tmp_path / "bundle", "onnx", image_input="uint8")
    encode = runtime.Bundle(tmp_path / "bundle").open("encoder")
    assert encode((255 * x).astype("uint8"))["z"].shape == (len(x), 2)
    with pytest.raises(ValueError, match="must be of type uint8. Received: float32"):
        encode(x)


def bytes_of(x):
    return np.rint(255 * x).astype("uint8")


def test_bytes_are_divided_as_the_manifest_says(model, x, tmp_path):
    prepared = keras.models.clone_model(model)
    prepared.preparation = Preparation("images", SHAPE, "pixels")
    export(prepared, tmp_path / "bundle", "onnx")
    encode = runtime.Bundle(tmp_path / "bundle").open("encoder")
    expected = encode(bytes_of(x) / np.float32(255))["z_mean"]
    np.testing.assert_array_equal(encode(bytes_of(x))["z_mean"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bytes_of, "`x` takes float32, and nothing says what bytes are to be divided by"),
        (
            lambda x: bytes_of(x).astype("int64"),
            r"`x` takes values from 0 to 1. Received: 0 to 255. Divide 8-bit images by 255",
        ),
        (lambda x: 255 * x, "Received: 0 to 255. Divide"),
        (lambda x: np.rint(x).astype(int) - 1, "Received: -1 to 0"),
    ],
    ids=["bytes", "int64", "float", "negative"],
)
def test_images_that_are_not_scaled_are_refused(folder, x, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runtime.Bundle(folder).open("encoder")(change(x))
    if change is bytes_of:
        with pytest.raises(ValueError, match=message):
            tasks.SearchIndex(folder).add(change(x))
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"inputs": {"x": change(x)[:2].tolist()}}))
    with pytest.raises(ValueError, match="x takes float32 from 0 to 1. Received"):
        client.main(folder, request)


def test_a_little_noise_and_the_numbers_of_tables_go_in(folder, x):
    assert np.isfinite(runtime.Bundle(folder).open("encoder")(x + np.float32(0.3))["z_mean"]).all()
    assert np.isfinite(runtime.Bundle(folder).open("decoder")(np.ones((2, 3), "uint8"))["reconstruction"]).all()


def test_the_client_cuts_no_fractions_to_bytes(x, tmp_path):
    export(builders.undercomplete(SHAPE, 2), tmp_path / "bundle", "onnx", image_input="uint8")
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"inputs": {"x": x[:2].tolist()}}))
    with pytest.raises(ValueError, match="x takes uint8 from 0 to 255. Received: 0 to 1"):
        client.main(tmp_path / "bundle", request)


def test_it_runs_where_there_is_nothing_but_numpy_and_onnx_runtime(folder):
    program = (
        "import importlib.util, sys, numpy as np\n"
        "for name in ('kerasae', 'keras', 'tensorflow', 'onnx'): sys.modules[name] = None\n"
        "spec = importlib.util.spec_from_file_location('runtime', sys.argv[1])\n"
        "runtime = importlib.util.module_from_spec(spec); spec.loader.exec_module(runtime)\n"
        "print(runtime.Bundle(sys.argv[2]).open('encoder')(np.zeros((2, 8, 8, 1)))['z_mean'].shape)"
    )
    command = [sys.executable, "-c", program, runtime.__file__, folder]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "(2, 3)\n"


# -- What was changed --------------------------------------------------------------------------------------------------------------------


def damage(folder):
    content = (folder / "encoder.onnx").read_bytes()
    (folder / "encoder.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap(folder):
    shutil.copy(folder / "decoder.onnx", folder / "encoder.onnx")


def edit(change):
    def edited(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edited


def leave(name):
    """A manifest that names a file elsewhere, with its right hash."""

    def change(manifest):
        (part,) = (part for part in manifest["parts"] if part["name"] == "encoder")
        part["onnx"]["file"] = name
        manifest["files"][name] = manifest["files"]["encoder.onnx"]

    return edit(change)


def delete(folder):
    (folder / "encoder.onnx").unlink()


def link(folder):
    outside = shutil.move(folder / "encoder.onnx", folder.parent / "elsewhere.onnx")
    (folder / "encoder.onnx").symlink_to(outside)


def rewritten(change):
    """Another ONNX file under a hash of its own, as one who can write the whole folder would leave it."""

    def rewrite(folder):
        content = change((folder / "encoder.onnx").read_bytes())
        (folder / "encoder.onnx").write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        edit(lambda manifest: manifest["files"].update({"encoder.onnx": entry}))(folder)

    return rewrite


def _external(content, nested=False):
    model = onnx.load_from_string(content)
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    if nested:
        body = onnx.helper.make_graph([], "body", [], [], [tensor])
        model.graph.node.append(onnx.helper.make_node("If", ["condition"], ["y"], then_branch=body, else_branch=body))
    else:
        model.graph.initializer.append(tensor)
    return model.SerializeToString()


external = rewritten(_external)
nested_external = rewritten(lambda content: _external(content, nested=True))
cut = rewritten(lambda content: content[: len(content) // 2])


def test_a_bundle_without_onnx_files_says_so(copy):
    edit(lambda manifest: [part.update(onnx=None) for part in manifest["parts"]])(copy)
    with pytest.raises(ValueError, match='has no ONNX files: export the model with the format "onnx"'):
        runtime.Bundle(copy).open("encoder")


@pytest.mark.parametrize("use", ["runtime", "bulk", "search"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage, "encoder.onnx is not the file that was exported: its SHA-256"),
        (swap, "encoder.onnx is not the file that was exported: its SHA-256"),
        (delete, "encoder.onnx can't be read"),
        (leave("../encoder.onnx"), "names a file outside the bundle, '../encoder.onnx'"),
        (leave("a/../../encoder.onnx"), "names a file outside the bundle"),
        (leave("/tmp/encoder.onnx"), "names a file outside the bundle"),
        (leave("..\\encoder.onnx"), "names a file outside the bundle"),
        (leave("C:encoder.onnx"), "names a file outside the bundle"),
        (edit(lambda manifest: manifest["files"].pop("encoder.onnx")), "which is not among its files"),
        (edit(lambda manifest: manifest.pop("files")), "it has no 'files'"),
        (edit(lambda manifest: manifest.update(files=[])), "not the manifest of a bundle, or is damaged"),
        (edit(lambda manifest: manifest.update(preparation={"columns": 3})), "the columns of its preparation are 3"),
        (edit(lambda manifest: manifest.update(format="other")), "its format is 'other', not 'kerasae-bundle'"),
        (edit(lambda manifest: manifest.update(format_version=2)), "its format version is 2, and 1 is what is read"),
        (
            edit(lambda manifest: manifest["files"]["encoder.onnx"].update(sha256="0")),
            "the SHA-256 of encoder.onnx is '0'",
        ),
        (
            edit(lambda manifest: manifest["parts"][0]["inputs"][0].pop("shape")),
            "its entry 'parts.0.inputs.0' has no 'shape'",
        ),
        (edit(lambda manifest: manifest["parts"][0].update(inputs=7)), "its entry 'parts.0.inputs' is 7"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 10**5), "nested too deep"),
        (link, "encoder.onnx lies outside"),
        (external, "whose weights lie in another file"),
        (nested_external, "whose weights lie in another file"),
        (cut, "no ONNX file, or it is cut short"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not the manifest of a bundle, or is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    ],
)
def test_what_was_changed_is_refused(copy, x, tmp_path, change, message, use):
    shutil.copy(copy / "encoder.onnx", tmp_path)
    change(copy)
    uses = {
        "runtime": lambda: runtime.Bundle(copy).open("encoder"),
        "bulk": lambda: bulk.encode_file(copy, tmp_path / "in.parquet", tmp_path / "out.parquet"),
        "search": lambda: tasks.SearchIndex(copy),
    }
    if use == "bulk":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"x": x.reshape(len(x), -1).tolist()}), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=message):
        uses[use]()


def test_the_formats_name_and_version_are_the_exporters(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == (runtime.FORMAT, runtime.FORMAT_VERSION)

"""The programs in export/clients, each run as whoever receives a bundle runs it, and held against Keras.

Node.js and the browser need packages from npm: `npm install --prefix <folder> onnxruntime-node onnxruntime-web playwright-core`, and
KERASAE_NODE_MODULES=<folder>/node_modules. The browser test needs Debian's `chromium` besides. C needs a release of ONNX Runtime:
KERASAE_ONNXRUNTIME=<its folder>.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kerasae import builders, zoo
from kerasae.export import ExportError, export, page, parity
from kerasae.models import Autoencoder

CLIENTS = Path(parity.__file__).with_name("clients")


@pytest.fixture(scope="module")
def model():
    return zoo.load("variational-dense-digits")


@pytest.fixture(scope="module")
def bundle(model, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients") / "bundle"
    export(model, folder, x=digits[1])
    return folder


@pytest.fixture(scope="module")
def request_file(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("clients") / "request.json"
    path.write_text(json.dumps({"inputs": {"x": digits[1][:5].tolist()}}))
    return path


@pytest.fixture(scope="module")
def expected(model, digits):
    x = digits[1][:5]
    z_mean, z_log_var = model.encoder.predict(x, verbose=0)
    return {
        "z_mean": z_mean,
        "z_log_var": z_log_var,
        "reconstruction": model.predict(x, verbose=0),
        "score": elbo(model, x),
    }


def elbo(model, x):
    terms = model.terms(x, model.deterministic(x))
    return -(-terms["reconstruction_loss"] - terms["kl_loss"]).numpy()


def check(process, expected):
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout)
    assert set(answers) == set(expected)
    for name, reference in expected.items():
        answer = np.array(answers[name])
        assert answer.shape == reference.shape
        np.testing.assert_allclose(answer, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def run(*command, **kwargs):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False, **kwargs
    )


# -- Python --------------------------------------------------------------------------------------------------------------------------------

ONLY_NUMPY_AND_ONNXRUNTIME = """
import runpy, sys
for name in ("keras", "tensorflow", "kerasae", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_python(bundle, request_file, expected):
    check(run(sys.executable, "-c", ONLY_NUMPY_AND_ONNXRUNTIME, CLIENTS / "run.py", bundle, request_file), expected)


def test_the_bundle_holds_a_request_that_runs(bundle):
    answers = json.loads(run(sys.executable, CLIENTS / "run.py", bundle).stdout)
    assert np.shape(answers["reconstruction"]) == (1, 8, 8, 1)
    assert json.loads((bundle / "request.json").read_text())["signature_name"] == "reconstruct"


def test_a_changed_file_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    with (tmp_path / "bundle/score.onnx").open("ab") as file:
        file.write(b"\0")
    process = run(sys.executable, CLIENTS / "run.py", tmp_path / "bundle")
    assert process.returncode != 0
    assert "score.onnx is not the file that was exported" in process.stderr


# -- TensorFlow Serving --------------------------------------------------------------------------------------------------------------------


class Serving(http.server.BaseHTTPRequestHandler):
    """TensorFlow Serving's REST interface, as it documents it, around `tf.saved_model`."""

    def __init__(self, signatures, *args):
        self.signatures = signatures
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def answer(self, document):
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        assert self.path == "/v1/models/autoencoder/metadata"
        signatures = {
            name: {"outputs": {output: {} for output in signature.structured_outputs}}
            for name, signature in self.signatures.items()
        }
        self.answer({"metadata": {"signature_def": {"signature_def": signatures}}})

    def do_POST(self):
        assert self.path == "/v1/models/autoencoder:predict"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        signature = self.signatures[request.get("signature_name", "serving_default")]
        dtypes = {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()}
        inputs = {name: tf.constant(value, dtypes[name]) for name, value in request["inputs"].items()}
        outputs = {name: output.numpy().tolist() for name, output in signature(**inputs).items()}
        # A single output comes without its name.
        self.answer({"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))})


@pytest.fixture
def serve():
    """A function that starts a server on localhost and gives its address."""
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_tensorflow_serving(bundle, request_file, expected, serve):
    loaded = tf.saved_model.load(str(bundle / "saved_model"))
    url = serve(functools.partial(Serving, loaded.signatures)) + "/v1/models/autoencoder"
    check(run(sys.executable, "-I", CLIENTS / "serving.py", url, request_file), expected)


# -- Node.js -------------------------------------------------------------------------------------------------------------------------------


def node_modules(*packages):
    """The folder of packages from npm; skips the test where they are missing."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    folder = os.environ.get("KERASAE_NODE_MODULES")
    if folder is None:
        pytest.skip(f"needs {', '.join(packages)} from npm: set KERASAE_NODE_MODULES")
    for package in packages:
        if not (Path(folder) / package).is_dir():
            pytest.skip(f"{folder} lacks {package}: npm install {package}")
    return Path(folder).resolve()


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_node(package, bundle, request_file, expected, tmp_path):
    modules = node_modules(package, "onnxruntime-common")
    shutil.copyfile(CLIENTS / "run.mjs", tmp_path / "run.mjs")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / package).symlink_to(modules / package)
    check(run("node", tmp_path / "run.mjs", bundle, request_file), expected)


def test_the_snippet_for_node(bundle, tmp_path):
    modules = node_modules("onnxruntime-node")
    (snippet,) = re.findall(r"```js\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL)
    (tmp_path / "snippet.mjs").write_text(snippet)
    (tmp_path / "node_modules").symlink_to(modules)
    process = run("node", tmp_path / "snippet.mjs", cwd=bundle)
    assert process.stdout.split() == ["[", "1,", "8,", "8,", "1", "]"], process.stderr


# -- C -------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def c_program(tmp_path_factory):
    """run.c compiled, without a warning."""
    folder = os.environ.get("KERASAE_ONNXRUNTIME")
    if folder is None:
        pytest.skip(
            "needs ONNX Runtime's header and library: set KERASAE_ONNXRUNTIME to a folder with include/ and lib/"
        )
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    program = tmp_path_factory.mktemp("c") / "run"
    options = ["-Wall", "-Wextra", "-Werror", f"-I{folder}/include", f"-L{folder}/lib", f"-Wl,-rpath,{folder}/lib"]
    compiled = run("cc", CLIENTS / "run.c", "-o", program, *options, "-lonnxruntime")
    assert compiled.returncode == 0, compiled.stderr
    return program


def test_c(c_program, bundle, digits, expected):
    x = digits[1][:5]
    for part, output in (("encoder", "z_mean"), ("autoencoder", "reconstruction"), ("score", "score")):
        process = subprocess.run(
            [c_program, bundle / f"{part}.onnx"], input=x.tobytes(), capture_output=True, timeout=60, check=True
        )
        answer = np.frombuffer(process.stdout, "float32").reshape(expected[output].shape)
        np.testing.assert_allclose(answer, expected[output], rtol=0, atol=1e-5 * np.abs(expected[output]).max())


def test_c_refuses_half_an_example(c_program, bundle):
    process = subprocess.run([c_program, bundle / "score.onnx"], input=bytes(4 * 65), capture_output=True, check=False)
    assert process.returncode == 1
    assert process.stderr == b"The input must hold whole examples, as float32.\n"


# -- The page ------------------------------------------------------------------------------------------------------------------------------

DRIVER = """
import { chromium } from "playwright-core";

const browser = await chromium.launch({ executablePath: process.argv[3], args: ["--no-sandbox"] });
const page = await browser.newPage();
const problems = [];
page.on("pageerror", (error) => problems.push(String(error)));
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
page.on("request", (request) => request.url().startsWith(process.argv[2]) || problems.push(`asks ${request.url()}`));
const settled = () => page.waitForFunction(() => window.autoencoder?.ready, null, { timeout: 60000 });
try {
  await page.goto(process.argv[2]);
  await settled();
  const box = await page.locator("#drawing").boundingBox();
  const [x, y] = [box.x, box.y];
  await page.mouse.move(x + 60, y + 60);
  await page.mouse.down();
  await page.mouse.move(x + 200, y + 60, { steps: 5 });
  await page.mouse.move(x + 110, y + 220, { steps: 5 });
  await page.mouse.up();
  await page.waitForTimeout(500);
  const state = await page.evaluate(() =>
    Object.fromEntries(Object.entries(window.autoencoder).map(([k, v]) => [k, v?.length === undefined ? v : Array.from(v)])));
  const texts = {};
  for (const id of ["score", "judgement", "z", "denoiser", "definition"]) texts[id] = await page.locator(`#${id}`).innerText();
  await page.locator("#plane").scrollIntoViewIfNeeded();
  const plane = await page.locator("#plane").boundingBox();
  await page.mouse.move(plane.x + 70, plane.y + 210);
  await page.mouse.down();
  await page.mouse.up();
  await page.waitForTimeout(300);
  const pointed = await page.evaluate(() => Array.from(window.autoencoder.decoded));
  const z = await page.locator("#z").innerText();
  console.log(JSON.stringify({ state, texts, pointed, z, problems, title: await page.title() }));
} finally {
  await browser.close();
}
"""


@pytest.mark.parametrize("kind", ["two codes and a denoiser", "eight codes"])
def test_the_page_in_a_browser(kind, model, digits, tmp_path, serve):
    modules = node_modules("playwright-core", "onnxruntime-web")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium")
    x_train, x_test = digits
    denoiser = None
    if kind != "eight codes":
        model = builders.variational((8, 8, 1), latent_dim=2, hidden_units=(64,))
        denoiser = builders.denoising((8, 8, 1), latent_dim=16, hidden_units=(64,))
        for trained in (model, denoiser):
            trained.compile("adam")
            trained.fit(x_train, epochs=2, verbose=0)
    folder = tmp_path / "page"
    page(model, folder, denoiser=denoiser, runtime=modules / "onnxruntime-web" / "dist", x=x_test, title="Digits & <b>")
    url = serve(functools.partial(Quiet, directory=str(folder)))
    (tmp_path / "drive.mjs").write_text(DRIVER)
    (tmp_path / "node_modules").symlink_to(modules)
    process = run("node", tmp_path / "drive.mjs", url, browser)
    assert process.returncode == 0, process.stderr
    seen = json.loads(process.stdout)
    assert seen["problems"] == []
    assert seen["title"] == "Digits & <b>"
    state = {
        name: np.float32(value).reshape(1, 8, 8, 1) if len(value) == 64 else np.float32(value)
        for name, value in seen["state"].items()
        if isinstance(value, list)
    }
    # A seven: ink at the upper left and right, none at the lower right.
    assert state["x"][0, :3].max() > 0.5
    assert state["x"][0, 6:, 6:].max() < 0.1
    np.testing.assert_allclose(state["codes"], model.encode(state["x"])[0], atol=1e-4)
    np.testing.assert_allclose(state["reconstruction"], model.predict(state["x"], verbose=0), atol=1e-5)
    np.testing.assert_allclose(state["denoised"], (denoiser or model).predict(state["noisy"], verbose=0), atol=1e-5)
    assert np.abs(state["noisy"] - state["x"]).max() > 0.2
    (score,) = elbo(model, state["x"])
    assert seen["state"]["score"] == pytest.approx(score, rel=1e-4)
    assert seen["texts"]["score"] == f"{seen['state']['score']:.2f} nats"
    assert "examples that the model was exported with" in seen["texts"]["judgement"]
    assert "DenoisingAutoencoder" in seen["texts"]["denoiser"] or denoiser is None
    # The plane: a quarter of the way across and up, between the codes' quantiles.
    low, high = np.quantile(model.encode(spread(x_test)), [0.01, 0.99], axis=0)
    z = model.encode(state["x"])
    z[0, :2] = (low + (high - low) / 4)[:2]
    assert seen["z"] == f"z[0] = {z[0, 0]:.2f}, z[1] = {z[0, 1]:.2f}"
    np.testing.assert_allclose(np.reshape(seen["pointed"], (1, 8, 8, 1)), model.decode(z), atol=0.01)


def spread(x):
    return x[np.linspace(0, len(x) - 1, 256).astype(int)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def runtime(tmp_path):
    """A folder with files of onnxruntime-web's names."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / name).write_text(name)
    return folder


def test_the_page_is_a_folder_of_its_own(model, digits, runtime, tmp_path):
    page(model, tmp_path / "page", runtime=runtime, x=digits[1])
    files = {
        path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page").rglob("*") if path.is_file()
    }
    assert {
        "index.html",
        "page.js",
        "page.css",
        "page.json",
        "ort/ort-wasm-simd-threaded.wasm",
        "model/encoder.onnx",
    } <= files
    assert json.loads((tmp_path / "page/page.json").read_text())["denoiser"] is False
    examples = json.loads((tmp_path / "page/model/manifest.json").read_text())["examples"]
    scores = elbo(model, spread(digits[1]))
    assert examples["score_quantiles"]["0.95"] == pytest.approx(np.quantile(scores, 0.95), rel=1e-4)
    html = (tmp_path / "page/index.html").read_text()
    assert "http" not in html
    with pytest.raises(ValueError, match="is not empty"):
        page(model, tmp_path / "page", runtime=runtime)
    assert {path.name for path in tmp_path.iterdir()} == {"page", "dist"}


def vectors():
    encoder = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    return Autoencoder(encoder, keras.Sequential([keras.Input((2,)), layers.Dense(6)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": vectors}, r"`model` of images.*Received one of: \(6,\)"),
        ({"model": lambda: None}, "`model` must be a kerasae model"),
        ({"denoiser": vectors}, r"`denoiser` of images"),
        (
            {"denoiser": lambda: builders.linear((4, 4, 1), 2)},
            r"`denoiser` must take images of the model's shape, \(8, 8\)",
        ),
        ({"runtime": lambda: "."}, r"lacks \['ort.wasm.min.mjs'"),
        ({"x": lambda: np.zeros((2, 3))}, "`x` must have shape"),
    ],
)
def test_pages_that_can_not_be_made(arguments, message, model, runtime, tmp_path):
    arguments = {name: make() for name, make in arguments.items()}
    with pytest.raises(ValueError, match=message):
        page(**{"model": model, "folder": tmp_path / "page", "runtime": runtime, **arguments})
    assert not (tmp_path / "page").exists()


def test_without_npm_the_page_says_what_to_do(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no npm here.*`runtime`"):
        page(model, tmp_path / "page")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_earlier_page(model, runtime, tmp_path, monkeypatch):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/index.html").write_text("earlier")
    (tmp_path / "page/page.json").write_text("{}")
    copyfile = shutil.copyfile

    def full(source, target, **kwargs):
        if Path(target).suffix == ".wasm":
            raise OSError(28, "No space left on device")
        return copyfile(source, target, **kwargs)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExportError, match="as it was: .*No space left on device"):
        page(model, tmp_path / "page", runtime=runtime, replace=True)
    assert {path.name for path in tmp_path.iterdir()} == {"page", "dist"}
    assert (tmp_path / "page/index.html").read_text() == "earlier"

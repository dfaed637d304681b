"""Getting and giving models: every source, against real servers on this machine, and what happens when something is wrong."""

import hashlib
import http.server
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest

from kerasae import keras_internals, writing, zoo
from kerasae.zoo import indexes, making, sources

ID = "variational-dense-digits"
OTHER = "undercomplete-dense-digits"
WEIGHTS = f"/{ID}/model.keras"
COMMAND = str(Path(sys.executable).with_name("kerasae"))


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    making.publish(folder, [ID, OTHER])
    return folder


@pytest.fixture
def tree(published, tmp_path):
    """A published zoo of two small models that a test may spoil."""
    return Path(shutil.copytree(published, tmp_path / "tree"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERASAE_ZOO", raising=False)
    return tmp_path / "cache" / "zoo"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    import pooch.core

    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(sources, "_TIMEOUT", 0.5)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `server.faults[path]` answers in its place, `server.asked` lists what was asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, directory=args[2].folder, **kwargs)

    def do_GET(self):
        self.server.asked.append(self.path)
        fault = self.server.faults.get(self.path)
        fault(self) if fault else super().do_GET()

    def content(self):
        return Path(self.translate_path(self.path)).read_bytes()

    def answer(self, content, length=None, status=200, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):  # clients that hang up are part of the tests
        pass


def serve(folder, handler=Handler):
    server = Server(("127.0.0.1", 0), handler)
    server.folder, server.faults, server.asked, server.released = str(folder), {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def stop(server):
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(tree):
    server = serve(tree)
    yield server
    stop(server)


def files_in(cache):
    """What is in the cache, without the indexes last seen."""
    return {path.name for path in cache.glob("*") if not path.name.endswith("-index.json")}


def command(*arguments, **environment):
    return [COMMAND, *arguments], {"env": {**os.environ, **environment}, "text": True}


def run(*arguments, preexec_fn=None, **environment):
    arguments, options = command(*arguments, **environment)
    return subprocess.run(arguments, capture_output=True, timeout=120, check=False, preexec_fn=preexec_fn, **options)


# -- Getting -----------------------------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_model(tree, server, digits, monkeypatch):
    expected = zoo.load(ID).encode(digits[1])
    for where in (str(tree), tree, server.url, server.url + "/"):
        np.testing.assert_array_equal(zoo.load(ID, source=where).encode(digits[1]), expected)
    monkeypatch.setenv("KERASAE_ZOO", server.url)
    assert zoo.list_models() == [OTHER, ID]
    assert zoo.list_models(source="packaged") != [OTHER, ID]  # the argument goes before the environment
    assert zoo.list_models(family="variational", dataset="digits") == [ID]
    assert zoo.describe(ID) == zoo.describe(ID, source="packaged")
    assert zoo.card(ID) == zoo.card(ID, source="packaged")


def test_a_file_is_downloaded_once(server, cache):
    first = zoo.download(ID, source=server.url)
    assert set(first) == set(indexes.FILES)
    assert files_in(cache) == {path.name for path in first.values()}
    asked = list(server.asked)
    assert zoo.download(ID, source=server.url) == first
    assert server.asked == [*asked, "/index.json"]


def test_a_failed_download_is_tried_again(server):
    def once(handler):
        del server.faults[WEIGHTS]
        handler.send_error(503)

    server.faults[WEIGHTS] = once
    assert zoo.download(ID, source=server.url)["model.keras"].exists()
    assert server.asked.count(WEIGHTS) == 2


def test_a_spoilt_cache_is_mended(server):
    path = zoo.download(ID, source=server.url)["model.keras"]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert zoo.download(ID, source=server.url)["model.keras"].read_bytes() == content


def test_without_network_what_was_downloaded_stays_usable(tree, cache, caplog):
    server = serve(tree)
    zoo.download(ID, source=server.url)
    stop(server)
    with caplog.at_level(logging.WARNING):
        assert zoo.describe(ID, source=server.url)["model"]["parameters"] == 34768
    assert "Using the index as it was last seen" in caplog.text
    with pytest.raises(ConnectionError, match=rf"Can't reach {server.url}/{OTHER}/recipe.toml: .*Check the network"):
        zoo.download(OTHER, source=server.url)
    shutil.rmtree(cache)
    with pytest.raises(ConnectionError, match=f"Can't reach {server.url}/index.json"):
        zoo.list_models(source=server.url)


def test_several_processes_at_once(server, cache):
    arguments, options = command("zoo", "download", ID, "--source", server.url)
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) for _ in "1234"]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert len(outputs) == 1
    paths = [Path(line.split("\t")[1]) for line in outputs.pop().splitlines()]
    assert files_in(cache) == {path.name for path in paths}
    assert all(path.name.startswith(writing.sha256(path)) for path in paths)


def test_a_killed_process_leaves_nothing_that_is_used_and_its_remains_are_removed(server, cache):
    half = threading.Event()

    def stall(handler):
        handler.answer(handler.content()[:100_000], length=len(handler.content()))
        half.set()
        server.released.wait(60)

    server.faults[WEIGHTS] = stall
    arguments, options = command("zoo", "download", ID, "--source", server.url)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    assert half.wait(60)
    while not (remains := list(cache.glob("tmp*"))) or not remains[0].stat().st_size:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not list(cache.glob("*-model.keras"))
    os.utime(remains[0], (0, 0))
    server.faults.clear()
    zoo.download(ID, source=server.url)
    assert not list(cache.glob("tmp*"))


# -- What goes wrong on the way ----------------------------------------------------------------------------------------------------------


def missing(handler):
    handler.send_error(404)


def broken(handler):
    handler.send_error(500)


def tampered(handler):
    content = bytearray(handler.content())
    content[len(content) // 2] ^= 1
    handler.answer(content, len(content))


def truncated(handler):
    content = handler.content()[:-1000]
    handler.answer(content, len(content))


def stopped(handler):
    handler.answer(handler.content()[:-1000], len(handler.content()))


def stalled(handler):
    handler.answer(handler.content()[:-1000], len(handler.content()))
    handler.server.released.wait(60)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:  # until the client hangs up
        handler.wfile.write(bytes(1 << 16))


def redirect(location):
    return lambda handler: handler.answer(b"", 0, 302, Location=location)


FAULTS = {
    "missing": (missing, FileNotFoundError, "404"),
    "broken": (broken, OSError, "500 Server Error.*Nothing was kept"),
    "tampered": (tampered, ValueError, "is not the file that was published.*SHA256 hash"),
    "truncated": (
        truncated,
        ValueError,
        r"is not the file that was published. It ended after 188,904 of 189,904 bytes",
    ),
    "stopped": (stopped, OSError, r"IncompleteRead\(188904 bytes read, 1000 more expected\)"),
    "stalled": (stalled, ConnectionError, "Can't reach .*timed out"),
    "endless": (endless, OSError, "model.keras sends more than the 189,904 bytes"),
    "redirect-nowhere": (redirect("http://127.0.0.1:1/model.keras"), ConnectionError, "Can't reach .*refused"),
    "redirect-circle": (redirect(WEIGHTS), OSError, "Exceeded 30 redirects"),
    "redirect-unencrypted": (redirect("http://192.0.2.1/model.keras"), OSError, "192.0.2.1/.* is not encrypted"),
    "redirect-file": (redirect("file:///etc/passwd"), OSError, "not encrypted"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_named_and_leaves_nothing(server, cache, fault):
    answer, error, message = FAULTS[fault]
    server.faults[WEIGHTS] = answer
    with pytest.raises(error, match=message):
        zoo.load(ID, source=server.url)
    assert files_in(cache) == set()


def test_a_server_that_drips_is_given_up(server, cache, monkeypatch):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b"x")

    monkeypatch.setattr(sources, "_SECONDS", 0.5)
    monkeypatch.setattr(sources, "_SLOWEST", 10**9)
    server.faults[WEIGHTS] = drip
    with pytest.raises(TimeoutError, match="model.keras sends too slowly: not done after"):
        zoo.load(ID, source=server.url)
    assert files_in(cache) == set()


def test_a_missing_file_is_not_asked_for_again(server):
    server.faults[WEIGHTS] = missing
    with pytest.raises(FileNotFoundError):
        zoo.load(ID, source=server.url)
    assert server.asked.count(WEIGHTS) == 1


def test_an_index_that_never_ends_is_refused(server, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST_INDEX", 100_000)
    server.faults["/index.json"] = endless
    with pytest.raises(OSError, match="more than the 100,000 bytes"):
        zoo.list_models(source=server.url)


def test_a_full_disk(server, cache):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    result = run("zoo", "download", ID, "--source", server.url, preexec_fn=small_files)
    assert result.returncode == 1
    assert (
        f"Error: Can't write into the cache {cache}: File too large. Free some space, or set KERASAE_CACHE"
        in result.stderr
    )
    assert "Traceback" not in result.stderr
    assert not [name for name in files_in(cache) if "recipe" not in name]


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERASAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="Can't write into the cache .*set KERASAE_CACHE"):
        zoo.load(ID, source=server.url)


def test_a_read_only_cache_serves_what_it_holds(server, cache):
    zoo.download(ID, source=server.url)
    cache.chmod(0o555)
    try:
        if os.access(cache, os.W_OK):
            pytest.skip("this user may write anywhere")
        assert set(zoo.download(ID, source=server.url)) == set(indexes.FILES)
        with pytest.raises(OSError, match="Can't write into the cache .*set KERASAE_CACHE"):
            zoo.download(OTHER, source=server.url)
    finally:
        cache.chmod(0o755)


# -- Trust -------------------------------------------------------------------------------------------------------------------------------


def spoil(tree, change):
    """Changes the index of a published zoo."""
    index = json.loads((tree / "index.json").read_text())
    change(index)
    (tree / "index.json").write_text(json.dumps(index))


def rename(old, new):
    def change(index):
        models = index["models"]
        if old in models:
            models[new] = models.pop(old)
        else:
            files = models[ID]["files"]
            files[new] = files.pop(old)

    return change


def put(name, key, value):
    return lambda index: index["models"][ID]["files"][name].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename(ID, "../outside"), r"models.../outside.*should match pattern"),
        (rename(ID, "/etc"), r"should match pattern"),
        (rename(ID, ".."), r"should match pattern"),
        (rename("model.keras", "../../model.keras"), r"files.*'recipe.toml', 'model.keras'"),
        (rename("card.md", "sitecustomize.py"), r"files.*'recipe.toml', 'model.keras'"),
        (put("model.keras", "sha256", "../../../x"), "sha256: String should match pattern"),
        (put("model.keras", "sha256", None), "sha256: Input should be a valid string"),
        (put("model.keras", "bytes", -1), "bytes: Input should be greater"),
        (lambda index: index["models"][ID]["files"].pop("model.keras"), r"\['model.keras'\] missing"),
        (lambda index: index.pop("models"), "models: Field required"),
        (lambda index: index.pop("format"), "no JSON object with a format"),
        (lambda index: index.update(format=2), "has format 2, and this kerasae reads up to 1: `pip install --upgrade"),
    ],
)
def test_an_index_is_checked(tree, change, message):
    spoil(tree, change)
    with pytest.raises(ValueError, match=message):
        zoo.load(ID, source=tree)


@pytest.mark.parametrize("content", ["<html>Please sign in</html>", "[]", "{", "null"])
def test_what_is_no_index_is_refused_and_not_kept(server, tree, cache, content):
    (tree / "index.json").write_text(content)
    with pytest.raises(ValueError, match="index.json is not the index of a zoo"):
        zoo.list_models(source=server.url)
    assert not list(cache.glob("*"))


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no zoo: it has no index.json. `kerasae zoo publish"):
        zoo.list_models(source=tmp_path)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("ftp://example.org/zoo", ValueError, 'source is "packaged", a folder, "https://'),
        ("hf://owner", ValueError, 'or "hf://owner/name"'),
        ("http://example.org/zoo", OSError, "is not encrypted"),
    ],
)
def test_an_unusable_source(where, error, message):
    with pytest.raises(error, match=message):
        zoo.load(ID, source=where)


def test_an_unknown_id_names_the_source_and_near_ids(server):
    with pytest.raises(ValueError, match=rf"no model 'variational-dense-digit' in {server.url}. Did you mean .*'{ID}'"):
        zoo.load("variational-dense-digit", source=server.url)


def test_tampered_and_missing_files_of_a_folder(tree):
    path = tree / ID / "model.keras"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not the file that was published: its sha256"):
        zoo.load(ID, source=tree)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"model.keras of '{ID}' is missing from .*tree"):
        zoo.load(ID, source=tree)
    (tree / ID / "card.md").write_text("Trust me.")
    with pytest.raises(ValueError, match="card.md is not the file that was published"):
        zoo.card(ID, source=tree)


def test_a_model_of_a_newer_kerasae(tree):
    spoil(tree, lambda index: index["models"][ID].update(kerasae="99.1.0"))
    with pytest.raises(ValueError, match=r"made with kerasae 99.1.0, and this is .*: `pip install --upgrade kerasae`"):
        zoo.load(ID, source=tree)
    assert zoo.describe(ID, source=tree)  # its facts can be read


def plant(tree, content):
    """Puts a file in a model's place, with the hash of a publisher who means it."""
    (tree / ID / "model.keras").write_bytes(content)
    spoil(tree, put("model.keras", "sha256", hashlib.sha256(content).hexdigest()))
    spoil(tree, put("model.keras", "bytes", len(content)))


@pytest.mark.parametrize("unsafe", [False, True], ids=["", "though unsafe loading was allowed"])
def test_loading_runs_no_code_of_the_file(tree, tmp_path, unsafe):
    marker = tmp_path / "it ran"
    layer = keras.layers.Lambda(eval(f"lambda x: (__import__('pathlib').Path({str(marker)!r}).write_text(''), x)[1]"))
    keras.Sequential([keras.Input((2,)), layer]).save(tmp_path / "evil.keras")
    assert marker.exists()
    marker.unlink()
    plant(tree, (tmp_path / "evil.keras").read_bytes())
    if unsafe:
        keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(ValueError, match="can't load it .*safe_mode|can't load it .*[Ll]ambda"):
            zoo.load(ID, source=tree)
    finally:
        keras_internals.forget_unsafe_deserialization()
    assert not marker.exists()


@pytest.mark.parametrize("lost", ["weights", "layer", "shape", "zip"])
def test_a_file_without_its_weights_is_no_model(tree, tmp_path, lost):
    with zipfile.ZipFile(tree / ID / "model.keras") as archive:
        archive.extractall(tmp_path / "parts")
    if lost != "weights":
        with h5py.File(tmp_path / "parts" / "model.weights.h5", "r+") as file:
            names = []
            file.visit(lambda name: names.append(name) if name.endswith("vars/0") else None)
            del file[names[-1]]
            if lost == "shape":
                file[names[-1]] = np.zeros((3, 5), "float32")
    with zipfile.ZipFile(tmp_path / "new.keras", "w") as archive:
        for path in (tmp_path / "parts").iterdir():
            if lost != "weights" or path.name != "model.weights.h5":
                archive.write(path, path.name)
    plant(tree, b"no zip" if lost == "zip" else (tmp_path / "new.keras").read_bytes())
    with pytest.raises(ValueError, match=f"'{ID}' is the file that was published, but Keras .* can't load it"):
        zoo.load(ID, source=tree)


@keras.saving.register_keras_serializable("test")
class Nested(keras.layers.Layer):
    """Its sublayers stand in a nested list, whose group Keras lets be missing."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [[keras.layers.Dense(2)]]

    def build(self, shape):
        self.blocks[0][0].build(shape)

    def call(self, x):
        return self.blocks[0][0](x)


def test_weights_that_keras_would_leave_random_with_a_warning(tree, tmp_path):
    keras.Sequential([keras.Input((2,)), Nested()]).save(tmp_path / "nested.keras")
    with zipfile.ZipFile(tmp_path / "nested.keras") as archive:
        archive.extractall(tmp_path / "parts")
    with h5py.File(tmp_path / "parts" / "model.weights.h5", "r+") as file:
        del file["layers/nested/blocks/container"]
    with zipfile.ZipFile(tmp_path / "nested.keras", "w") as archive:
        for path in (tmp_path / "parts").iterdir():
            archive.write(path, path.name)
    with pytest.warns(UserWarning, match="freshly-initialized"):
        keras.saving.load_model(tmp_path / "nested.keras")
    plant(tree, (tmp_path / "nested.keras").read_bytes())
    with pytest.raises(ValueError, match="can't load it .*freshly-initialized"):
        zoo.load(ID, source=tree)


# -- What is too large for the wheel -----------------------------------------------------------------------------------------------------


def test_a_packaged_model_without_weights_comes_from_anywhere_but_with_the_packaged_hash(tree, server, monkeypatch):
    packaged = tree.parent / "packaged"
    shutil.copytree(tree, packaged)
    (packaged / ID / "model.keras").unlink()
    monkeypatch.setattr(sources, "PACKAGED", packaged)
    with pytest.raises(FileNotFoundError, match=f"get it once with `kerasae zoo download {ID} --source"):
        zoo.load(ID)
    genuine = (tree / ID / "model.keras").read_bytes()
    plant(tree, b"another")
    zoo.download(ID, source=server.url)
    with pytest.raises(FileNotFoundError):
        zoo.load(ID)
    plant(tree, genuine)
    path = zoo.download(ID, source=server.url)["model.keras"]
    assert zoo.load(ID).count_params() == 34768
    path.write_bytes(genuine[:-1])
    with pytest.raises(FileNotFoundError):
        zoo.load(ID)


# -- Giving ------------------------------------------------------------------------------------------------------------------------------

RECIPE = """
family = "undercomplete"
description = "Somebody's own."
[data]
name = "digits"
[model]
latent_dim = 2
hidden_units = [16]
[training]
batch_size = 256
epochs = 1
[[measure]]
metric = "squared_error"
published = 1.0
source = "a paper"
"""


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.toml").write_text(RECIPE)
    making.make(folder / "mine.toml", folder / "mine", verbose=0)
    return folder / "mine"


def test_a_persons_own_model_is_published_and_loaded_from_a_server(own, tmp_path, digits):
    folder = tmp_path / "zoo"
    assert making.publish(folder, [own]) == ["mine"]
    assert making.publish(folder, [ID]) == ["mine", ID]  # joins those that are there
    server = serve(folder)
    try:
        expected = keras.saving.load_model(own / "model.keras").predict(digits[1], verbose=0)
        np.testing.assert_array_equal(zoo.load("mine", source=server.url).predict(digits[1], verbose=0), expected)
        mirrored = run("zoo", "publish", str(tmp_path / "mirror"), "mine", "--source", server.url)
    finally:
        stop(server)
    assert mirrored.stdout == "mine\n"
    for name in indexes.FILES:
        assert (tmp_path / "mirror" / "mine" / name).read_bytes() == (own / name).read_bytes()
    assert re.search(
        r"squared_error \| [\d.]+ \| squared error per image \| 1 \(a paper\): not reached \|", making.table(folder)
    )


def test_publishing_again_changes_nothing(tree):
    before = {path: path.stat().st_mtime_ns for path in tree.glob("*/*")}
    contents = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert making.publish(tree) == [OTHER, ID]
    assert {path: path.stat().st_mtime_ns for path in tree.glob("*/*")} == before
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == contents


def test_publishing_generates_cards_and_leaves_another_readme_alone(tree, caplog):
    card = (tree / ID / "card.md").read_text()
    (tree / ID / "card.md").write_text("Edited by hand.")
    (tree / "README.md").write_text("My project.")
    making.publish(tree)
    assert zoo.card(ID, source=tree) == card
    assert (tree / "README.md").read_text() == "My project."
    assert "stays as it is" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: (model / "preview.png").unlink(), r"no complete model: \['preview.png'\] missing"),
        (lambda model: (model / "model.keras").write_bytes(b"x"), "is not the model that metrics.json measured"),
        (lambda model: (model / "metrics.json").unlink(), "is no trained model: it has no metrics.json"),
        (lambda model: (model / "recipe.toml").write_text("family = 1"), "recipe.toml is not a recipe: family"),
    ],
)
def test_an_incomplete_model_is_not_published(own, tmp_path, change, message):
    model = Path(shutil.copytree(own, tmp_path / "copy"))
    change(model)
    with pytest.raises(ValueError, match=message):
        making.publish(tmp_path / "zoo", [model])
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("key", ["published", "source"])
def test_metrics_of_another_shape_are_not_published(own, key, tmp_path):
    model = Path(shutil.copytree(own, tmp_path / "mine"))
    facts = json.loads((model / "metrics.json").read_text())
    facts["metrics"][0][key] = []
    (model / "metrics.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=f"its entry 'metrics.0.{key}' is "):
        making.publish(tmp_path / "zoo", [model])


@pytest.mark.parametrize("path", ["/home/me/photos", "../photos", "~/photos", "me\\photos", "data/photos"])
def test_a_recipe_that_is_published_names_no_folders(own, path, tmp_path):
    model = Path(shutil.copytree(own, tmp_path / "mine"))
    recipe = (model / "recipe.toml").read_text()
    (model / "recipe.toml").write_text(recipe.replace('name = "digits"', f"path = '{path}'"))
    with pytest.raises(ValueError, match='Write their name alone there: path = "photos"'):
        making.publish(tmp_path / "zoo", [model])
    (model / "recipe.toml").write_text(recipe.replace('name = "digits"', 'path = "photos"'))
    assert making.publish(tmp_path / "zoo", [model]) == ["mine"]


def test_names_that_cannot_be_published(own, tmp_path):
    model = shutil.copytree(own, tmp_path / "my model")
    with pytest.raises(ValueError, match="takes letters, digits.*Received: 'my model'"):
        making.publish(tmp_path / "zoo", [model])
    with pytest.raises(ValueError, match="There is no trained model in"):
        making.publish(tmp_path / "empty")


# -- The command -------------------------------------------------------------------------------------------------------------------------


def test_list_loads_nothing_heavy(tree):
    """What makes it answer at once: of the packages that kerasae depends on, only these small ones, and what they need, are imported."""
    code = (
        "import sys; before = {*sys.modules}; from kerasae.cli import main\n"
        "try: main()\nfinally: print(*{*sys.modules} - before, file=sys.stderr)"
    )
    environment = {**os.environ, "KERASAE_ZOO": str(tree)}
    result = subprocess.run(
        [sys.executable, "-c", code, "zoo", "list"], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(OTHER)
    imported = {name.split(".")[0] for name in result.stderr.split()} & set(metadata.packages_distributions())
    pydantic = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    assert imported <= {"kerasae", "click", "numpy"} | pydantic


def test_verify(tree):
    assert run("zoo", "verify", KERASAE_ZOO=str(tree)).stdout.split() == [OTHER, "ok", ID, "ok"]
    (tree / ID / "card.md").write_text("")
    result = run("zoo", "verify", "--source", str(tree))
    assert result.returncode == 1
    assert re.search(rf"{OTHER} +ok\n{ID} +failed: .*card.md is not the file", result.stdout)
    assert "1 of the models can't be used" in result.stderr


# -- Hugging Face ------------------------------------------------------------------------------------------------------------------------


class Hub(Handler):
    """Answers as the Hugging Face hub does for the files of one repository, me/zoo."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        match = re.fullmatch(r"/me/zoo/resolve/(main|v1)/(.*)", self.path)
        path = Path(self.server.folder) / match[2] if match else None
        if not path or not path.is_file():
            return self.answer(b"", 0, 404, **{"X-Error-Code": "EntryNotFound" if match else "RepoNotFound"})
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        body = b"" if self.command == "HEAD" else content
        self.answer(body, len(content), **{"ETag": etag, "X-Repo-Commit": "a" * 40})
        return None


@pytest.fixture
def hub(tree, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: install the extra `hub`")
    server = serve(tree, Hub)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)  # for processes: the client reads it when it is imported
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    stop(server)


def test_hugging_face_by_its_own_client(hub, cache, tree):
    result = run("zoo", "download", ID, "--source", "hf://me/zoo@v1", HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert ("GET", f"/me/zoo/resolve/v1{WEIGHTS}", "Bearer hf_secret") in hub.asked
    paths = {name: cache / f"{writing.sha256(tree / ID / name)}-{name}" for name in indexes.FILES}
    assert {path.name for path in paths.values()} == files_in(cache)
    assert all(path.read_bytes() == (tree / ID / name).read_bytes() for name, path in paths.items())
    offline = run("zoo", "show", ID, "--source", "hf://me/zoo@v1", HF_HUB_OFFLINE="1")
    assert offline.stdout.startswith(f"# {ID}")
    assert "as it was last seen" in offline.stderr


@pytest.mark.parametrize(
    ("where", "change", "environment", "message"),
    [
        ("hf://me/none", None, {}, r"Error: hf://me/none/index.json can't be downloaded: 404.*Repository Not Found"),
        ("hf://me/zoo", "delete", {}, r"Error: hf://me/zoo/\S+model.keras can't be downloaded: 404.*Entry Not Found"),
        ("hf://me/zoo", "tamper", {}, r"Error: hf://me/zoo/\S+model.keras is not the file that was published.*SHA256"),
        ("hf://me/zoo", "lengthen", {}, r"Error: hf://me/zoo/\S+model.keras is larger than the 189,904 bytes"),
        ("hf://me/zoo", None, {"HF_HUB_OFFLINE": "1"}, r"Error: Can't reach hf://me/zoo/index.json"),
    ],
)
def test_faults_of_hugging_face(hub, cache, tree, where, change, environment, message):
    path = tree / ID / "model.keras"
    if change == "delete":
        path.unlink()
    elif change:
        path.write_bytes(path.read_bytes()[: -1 if change == "tamper" else None] + b"x")
    result = run("zoo", "download", ID, "--source", where, **environment)
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not [name for name in files_in(cache) if not name.endswith("recipe.toml")]


def test_hugging_face_without_its_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'kerasae\[hub\]'"):
        zoo.list_models(source="hf://me/zoo")

"""The search index: held against plain NumPy, saved whole or not at all, and what is wrong said."""

import json
import os

import numpy as np
import pytest

import kerasae
from kerasae import export
from kerasae.tasks import Reducer, SearchIndex, diffuse, search


def nearest(z, queries, k, metric):
    """The oracle: every distance, and the order by it."""
    if metric == "cosine":
        cosine = queries @ z.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(z, axis=1))
        distances = 1 - cosine
    else:
        distances = np.linalg.norm(queries[:, None] - z[None], axis=2)
    order = np.argsort(distances, axis=1)[:, :k]
    return distances, np.take_along_axis(distances, order, axis=1)


@pytest.fixture(scope="module")
def model(digits):
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=8, hidden_units=(32,), seed=0)
    model.compile("adam")
    model.fit(digits[0], epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("coded", [True, False])
def test_search_finds_the_nearest(metric, coded, model, digits):
    x, x_test = digits
    index = SearchIndex(model if coded else None, metric=metric)
    index.add(x[:700])
    index.add(x[700:])
    assert len(index) == len(x)
    assert not index.is_approximate
    found = index.search(x_test, k=20)
    z, queries = (
        (model.encode(images) if coded else images.reshape(len(images), -1)).astype("float64") for images in digits
    )
    every_distance, distances = nearest(z, queries, 20, metric)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3, atol=1e-5)
    # Which of several at the same distance are found is left open: whole numbers of grey have many ties.
    np.testing.assert_allclose(np.take_along_axis(every_distance, found.ids, axis=1), distances, rtol=1e-4, atol=1e-6)
    assert all(len(set(ids)) == 20 for ids in found.ids.tolist())


def test_an_image_finds_itself(model, digits):
    index = SearchIndex(model)
    index.add(digits[0])
    found = index.search(digits[0][:50], k=1)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(50))
    np.testing.assert_allclose(found.distances, 0, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_callers_images_are_left_alone(metric, rng):
    x = rng.normal(size=(10, 4)).astype("float32")
    before = x.copy()
    index = SearchIndex(metric=metric)
    index.add(x)
    index.search(x)
    np.testing.assert_array_equal(x, before)
    x *= 2
    np.testing.assert_allclose(index.search(before, k=1).distances, 0, atol=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_approximate_search_finds_nearly_the_same(metric, rng):
    pytest.importorskip("faiss")
    # 200 clusters, as images have; the graph grows with a second batch.
    z = (rng.normal(size=(200, 16))[rng.integers(0, 200, 6000)] + 0.3 * rng.normal(size=(6000, 16))).astype("float32")
    queries = z[:100] + 0.1 * rng.normal(size=(100, 16)).astype("float32")
    exact, approximate = SearchIndex(metric=metric), SearchIndex(metric=metric, approximate=True)
    for rows in (slice(0, 4000), slice(4000, None)):
        exact.add(z[rows])
        approximate.add(z[rows])
        expected, found = exact.search(queries, k=20), approximate.search(queries, k=20)
        recall = np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(expected.ids, found.ids, strict=True)])
        assert recall > 0.97
        same = expected.ids == found.ids
        np.testing.assert_allclose(found.distances[same], expected.distances[same], rtol=1e-3, atol=1e-5)


def test_a_search_becomes_approximate_by_itself(monkeypatch, rng):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "MAX_EXACT", 500)
    index = SearchIndex()
    index.add(rng.normal(size=(500, 4)))
    assert not index.is_approximate
    index.add(rng.normal(size=(1, 4)))
    assert index.is_approximate
    assert index.search(rng.normal(size=(3, 4)), k=501).ids.shape == (3, 501)  # all of them, whatever the graph reaches


def test_faiss_missing_is_said(monkeypatch, rng):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    index = SearchIndex(approximate=True)
    index.add(rng.normal(size=(5, 4)))
    with pytest.raises(ValueError, match=r"kerasae\[search\]"):
        index.search(rng.normal(size=(5, 4)), k=1)


def test_ids(rng):
    x = rng.normal(size=(4, 3))
    index = SearchIndex(metric="euclidean")
    index.add(x[:2], ids=["cat", "dog"])
    index.add(x[2:], ids=["a much longer name", "bird"])
    assert index.search(x, k=1).ids[:, 0].tolist() == ["cat", "dog", "a much longer name", "bird"]
    index = SearchIndex()
    index.add(x[:2], ids=[7, 3])
    index.add(x[2:])
    assert index.search(x, k=1).ids[:, 0].tolist() == [7, 3, 8, 9]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0], "must hold 2 whole numbers or strings"),
        ([0.5, 1.5], "must hold 2 whole numbers or strings"),
        ([5, 5], r"Received again: \[5\]"),
        ([1, 4], r"Received again: \[1\]"),
        (["a", "b"], "of the type of those before"),
    ],
)
def test_bad_ids_add_nothing(ids, message, rng):
    index = SearchIndex()
    index.add(rng.normal(size=(3, 4)))
    with pytest.raises(ValueError, match=message):
        index.add(rng.normal(size=(2, 4)), ids=ids)
    assert len(index) == 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda index, x: SearchIndex(metric="cosin"), "Did you mean 'cosine'"),
        (lambda index, x: SearchIndex(approximate="yes"), "`approximate` must be"),
        (lambda index, x: SearchIndex(3), "`model` must be a kerasae model"),
        (lambda index, x: SearchIndex("nowhere"), "There is no bundle at nowhere"),
        (lambda index, x: SearchIndex().search(x), "at most 0"),
        (lambda index, x: SearchIndex().save("index"), "is empty"),
        (lambda index, x: index.search(x, k=11), "at most 10"),
        (lambda index, x: index.search(x[:, :3]), "codes of 4 numbers"),
        (lambda index, x: index.search(x * np.nan), "NaN"),
    ],
)
def test_what_is_wrong_is_said(act, message, rng):
    x = rng.normal(size=(10, 4))
    index = SearchIndex()
    index.add(x)
    with pytest.raises(ValueError, match=message):
        act(index, x)


@pytest.mark.parametrize("kind", ["keras", "onnx", "function", "none", "graph"])
def test_save_and_load(kind, model, digits, tmp_path):
    x, x_test = digits
    made_with = {"keras": model, "function": Reducer(epochs=1, random_state=0).fit(x).transform}.get(kind)
    if kind == "onnx":
        export.export(model, tmp_path / "bundle", "onnx")
        made_with = tmp_path / "bundle"
    if kind == "graph":
        pytest.importorskip("faiss")
    index = SearchIndex(made_with, metric="euclidean", approximate=kind == "graph")
    index.add(x[:500], ids=[f"digit {i}" for i in range(500)])
    expected = index.search(x_test[:40], k=5)
    index.save(tmp_path / "digits.index")
    loaded = SearchIndex.load(tmp_path / "digits.index", model=made_with if kind == "function" else None)
    found = loaded.search(x_test[:40], k=5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-5, atol=1e-6)
    assert (loaded._graph is not None) == (kind == "graph")
    loaded.add(x[500:501], ids=["one more"])
    assert len(loaded) == 501
    with pytest.raises(ValueError, match="as `model`" if kind == "function" else "leave `model` out"):
        SearchIndex.load(tmp_path / "digits.index", model=None if kind == "function" else np.asarray)


def test_an_exported_encoder_codes_as_the_model_does(model, digits, tmp_path):
    export.export(model, tmp_path / "bundle", "onnx")
    by_model, by_bundle = SearchIndex(model), SearchIndex(tmp_path / "bundle")
    for index in (by_model, by_bundle):
        index.add(digits[0][:300])
    np.testing.assert_allclose(by_bundle._codes, by_model._codes, atol=1e-5)
    with (tmp_path / "bundle" / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        SearchIndex(tmp_path / "bundle")


def test_diffused_targets(digits):
    x = digits[0][:120]
    targets = diffuse(x, num_neighbors=4, num_steps=3, num_components=64)
    flat = x.reshape(120, -1).astype("float64")
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    links = np.eye(120)
    for i, order in enumerate(np.argsort(distances, axis=1)):
        links[i, [j for j in order if j != i][:4]] = 1
    links = np.maximum(links, links.T)
    walked = np.linalg.matrix_power(links / links.sum(axis=1, keepdims=True), 3) @ flat
    walked -= walked.mean(axis=0)
    walked *= np.sqrt(flat.var(axis=0).sum() / walked.var(axis=0).sum())
    assert targets.dtype == "float32"
    np.testing.assert_allclose(targets.reshape(120, -1), walked + flat.mean(axis=0), atol=1e-4)
    with pytest.raises(ValueError, match="more than `num_neighbors`, 10. Received: 10"):
        diffuse(x[:10])


def test_codes_learned_from_diffused_targets_find_more(digits):
    (x, y), (x_test, y_test) = kerasae.data.load("digits", labels=True)
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=10, hidden_units=(128,), seed=0)
    model.compile("adam")
    model.fit(x, diffuse(x), epochs=40, verbose=0)

    def precision(model):
        index = SearchIndex(model)
        index.add(x)
        return (y[index.search(x_test, k=100).ids] == y_test[:, None]).mean()

    assert precision(model) > precision(None) + 0.1


def test_a_damaged_file_is_refused(rng, tmp_path):
    path = tmp_path / "numbers.index"
    index = SearchIndex()
    index.add(rng.normal(size=(50, 8)))
    index.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], b"", b"PK\3\4", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a search index, or is damaged"):
            SearchIndex.load(path)
    with pytest.raises(FileNotFoundError):
        SearchIndex.load(tmp_path / "nowhere.index")


def test_another_array_under_a_true_checksum_is_refused(rng, tmp_path):
    path = tmp_path / "numbers.index"
    index = SearchIndex()
    index.add(rng.normal(size=(50, 8)))
    index.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    with path.open("wb") as file:
        np.savez(file, **{**arrays, "codes": arrays["codes"][::-1]})
    with pytest.raises(ValueError, match=r"SHA-256 of \['codes'\]"):
        SearchIndex.load(path)
    header = json.loads(arrays["header"].tobytes())
    with path.open("wb") as file:
        np.savez(
            file, **{**arrays, "header": np.frombuffer(json.dumps({**header, "format_version": 9}).encode(), "uint8")}
        )
    with pytest.raises(ValueError, match="format version 9"):
        SearchIndex.load(path)


def test_pickles_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with (tmp_path / "trap.index").open("wb") as file:
        np.savez(file, header=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="not a search index"):
        SearchIndex.load(tmp_path / "trap.index")
    assert not (tmp_path / "sprung").exists()


def test_a_failed_save_leaves_the_earlier_file(rng, tmp_path, monkeypatch):
    path = tmp_path / "numbers.index"
    index = SearchIndex()
    index.add(rng.normal(size=(5, 8)))
    index.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        index.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["numbers.index"]

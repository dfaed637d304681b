"""Search for images by their codes."""

import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasae import checks, keras_internals, runtime, untrusted, writing
from kerasae.models import Autoencoder

METRICS = ("cosine", "euclidean")
# Up to here comparing with every code takes some milliseconds an image.
MAX_EXACT = 100_000
_FORMAT, _FORMAT_VERSION = "kerasae-search-index", 1
_HEADER = {
    "format": str,
    "format_version": int,
    "metric": str,
    "approximate": (bool, str),
    "model": str,
    "sha256": {str: str},
}
_ROWS_AT_ONCE = 256
# Links a node, and how many candidates the graph keeps while it is built and searched.
_LINKS, _BREADTH_ADDING, _BREADTH_SEARCHING = 32, 100, 256


class Found(NamedTuple):
    """What a search found, nearest first.

    Args:
        ids: `(n, k)`, of the type that was added.
        distances: float32, `(n, k)`: `1 - cos` of the angle between codes, 0 to 2, or Euclidean.
    """

    ids: np.ndarray
    distances: np.ndarray


class SearchIndex:
    """An index of images by their codes: finds those that resemble an image.

    Images with codes z, z' are compared by `1 - z z' / (|z| |z'|)` (`"cosine"`) or `|z - z'|` (`"euclidean"`). Up to 100,000 images the
    search is exact. Beyond, it is approximate, through a graph of neighbours, in time that grows with the logarithm of their number.

    Args:
        model: what codes images: a kerasae model (a variational one by `z_mean`); the folder of an exported bundle, whose `encoder.onnx`
            runs without Keras; or a function from images to codes, such as the `transform` of a fitted `Reducer`. Default: none, what is
            added and searched for is compared as it is, flattened.
        metric: `"cosine"` (default) or `"euclidean"`.
        approximate: whether the search is approximate, which needs the extra `kerasae[search]`. Default `"auto"`: past 100,000 images.

    Raises:
        ValueError: on a model of another kind, a bundle whose encoder was changed, and an unknown metric; on images that don't fit the
            model, ids twice or of another type, a search for more images than there are.

    Example:

    ```python
    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=16)
    model.compile("adam")
    model.fit(x_train, epochs=2, verbose=0)
    index = kerasae.tasks.SearchIndex(model)
    index.add(x_train)
    found = index.search(x_test[:5], k=10)
    found.ids, found.distances
    index.save("digits.index")
    index = kerasae.tasks.SearchIndex.load("digits.index")
    ```

    Reference:
        Krizhevsky and Hinton 2011, "Using Very Deep Autoencoders for Content-Based Image Retrieval"; the graph: Malkov and Yashunin 2020,
        "Efficient and Robust Approximate Nearest Neighbor Search Using Hierarchical Navigable Small World Graphs".
    """

    def __init__(self, model=None, *, metric="cosine", approximate="auto"):
        self.metric = checks.choice(metric, "metric", METRICS)
        if approximate not in (True, False, "auto"):
            raise ValueError(f'`approximate` must be True, False or "auto". Received: {approximate!r}')
        self.approximate = approximate
        self.model = model
        self._encode, self._model_kind = _encoder(model)
        self._codes, self._ids = None, None
        self._exact, self._graph = None, None

    def __len__(self):
        return 0 if self._codes is None else len(self._codes)

    def add(self, images, ids=None):
        """Adds images.

        Args:
            images: `(n, ...)`, as the model takes them.
            ids: n whole numbers or strings, each of them new. Default: consecutive numbers from the largest on.
        """
        codes = self._codes_of(images)
        if ids is None:
            if self._ids is not None and self._ids.dtype.kind == "U":
                raise ValueError("The ids of this index are strings: pass `ids` for these images too.")
            start = 0 if self._ids is None else int(self._ids.max()) + 1
            ids = np.arange(start, start + len(codes))
        ids = self._check_ids(ids, len(codes))
        if self._codes is None:
            self._codes, self._ids = codes, ids
        else:
            self._codes, self._ids = np.concatenate([self._codes, codes]), np.concatenate([self._ids, ids])
        self._exact = None  # the graph takes new codes as they come

    def search(self, images, k=10):
        """The k images of the index that resemble each of `images` most.

        Args:
            images: `(n, ...)`, as the model takes them.
            k: how many, at least 1, at most as many as the index holds. Default 10.

        Returns:
            `Found(ids, distances)`, each `(n, k)`, nearest first.
        """
        k = checks.positive_int(k, "k")
        if k > len(self):
            raise ValueError(f"`k` must be at most {len(self)}, the number of images in the index. Received: {k}")
        codes = self._codes_of(images)
        distances, rows = self._approximately(codes, k) if self.is_approximate else self._exactly(codes, k)
        if self.metric == "cosine":
            # |a - b|^2 = 2 - 2 cos for codes of length 1
            distances = np.square(distances) / 2
        return Found(self._ids[rows], distances.astype("float32"))

    @property
    def is_approximate(self):
        """Whether a search now would be approximate."""
        return len(self) > MAX_EXACT if self.approximate == "auto" else self.approximate

    def save(self, path):
        """Writes the index, its model included, to a file that replaces an earlier one only once it is whole.

        A model that is a function is not saved, and is passed to `load` again.

        Args:
            path: of the file, a NumPy archive (.npz) without pickles, in which every array has its SHA-256.
        """
        if self._codes is None:
            raise ValueError("The index is empty: add images first.")
        arrays = {"codes": self._codes, "ids": self._ids}
        if self._model_kind in _READERS:
            content = _keras_bytes(self.model) if self._model_kind == "keras" else self._encode.content
            arrays["model"] = np.frombuffer(content, "uint8")
        if self._graph is not None and self._graph.ntotal == len(self):
            arrays["graph"] = _faiss().serialize_index(self._graph)
        header = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "metric": self.metric,
            "approximate": self.approximate,
            "model": self._model_kind,
            "sha256": {name: _sha256(array) for name, array in arrays.items()},
        }
        with writing.file(path) as beside, beside.open("xb") as file:
            np.savez(file, header=np.frombuffer(json.dumps(header).encode(), "uint8"), **arrays)

    @classmethod
    def load(cls, path, model=None):
        """Reads an index that `save` wrote.

        Args:
            path: of the file.
            model: the function that the index was made with; models of other kinds are in the file.

        Returns:
            `SearchIndex`.

        Raises:
            ValueError: where the file is no index, was changed or cut short, or needs a model.
            FileNotFoundError: where there is none.
        """
        try:
            # `save` packs nothing, so that nothing can announce more than the file holds.
            file = untrusted.Archive(path, packed=False)
            header = untrusted.json(file["header"].tobytes(), _HEADER, "its header")
            arrays = {name: file[name] for name in header["sha256"]}
            _check_arrays(header, arrays)
        except ValueError as error:
            raise ValueError(f"{path} is not a search index, or is damaged: {error}") from error
        if header["format_version"] != _FORMAT_VERSION:
            raise ValueError(
                f"{path} has the format version {header['format_version']}, and this kerasae reads {_FORMAT_VERSION}."
            )
        changed = [name for name, array in arrays.items() if _sha256(array) != header["sha256"][name]]
        if changed:
            raise ValueError(f"{path} is damaged: the SHA-256 of {changed} is another.")
        if header["model"] == "function" and model is None:
            raise ValueError(
                f"{path} was made with a function as its model, which is not in the file: pass it as `model`."
            )
        if header["model"] != "function" and model is not None:
            raise ValueError(f"{path} holds its model itself ({header['model']}): leave `model` out.")
        if header["model"] in _READERS:
            model = _READERS[header["model"]](arrays["model"].tobytes())
        index = cls(model, metric=header["metric"], approximate=header["approximate"])
        index._codes, index._ids = arrays["codes"], arrays["ids"]
        if "graph" in arrays:
            try:
                index._graph = _faiss().deserialize_index(arrays["graph"])
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"{path} is damaged: its graph can't be read.") from error
            if (index._graph.ntotal, index._graph.d) != index._codes.shape:
                raise ValueError(f"{path} is damaged: its graph is of other codes.")
        return index

    def _codes_of(self, images):
        codes = checks.array(np.asarray(self._encode(checks.array(images, name="images"))), name="codes")
        # A copy: without a model these are the caller's own images.
        codes = np.array(codes.reshape(len(codes), -1), dtype="float32", order="C")
        if self._codes is not None and codes.shape[1] != self._codes.shape[1]:
            raise ValueError(
                f"The index holds codes of {self._codes.shape[1]} numbers, and these images have {codes.shape[1]}."
            )
        if self.metric == "cosine":
            # A code of zeros has no direction; it stays, as far from all others.
            codes = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), np.finfo("float32").tiny)
        return codes

    def _check_ids(self, ids, expected):
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iuU" or ids.shape != (expected,):
            raise ValueError(
                f"`ids` must hold {expected} whole numbers or strings, one an image. Received: {ids.dtype}, {ids.shape}"
            )
        if self._ids is not None and (ids.dtype.kind == "U") != (self._ids.dtype.kind == "U"):
            raise ValueError(f"`ids` must be of the type of those before, {self._ids.dtype}. Received: {ids.dtype}")
        ids = ids if ids.dtype.kind == "U" else ids.astype("int64")
        values, counts = np.unique(ids, return_counts=True)
        twice = values[counts > 1]
        if self._ids is not None and not len(twice):
            twice = np.intersect1d(values, self._ids)
        if len(twice):
            raise ValueError(f"`ids` must be new, each once. Received again: {twice[:5].tolist()}")
        return ids

    def _exactly(self, codes, k):
        if self._exact is None:
            from sklearn.neighbors import NearestNeighbors

            self._exact = NearestNeighbors(algorithm="brute", metric="euclidean").fit(self._codes)
        return self._exact.kneighbors(codes, k)

    def _approximately(self, codes, k):
        faiss = _faiss()
        if self._graph is None:
            self._graph = faiss.IndexHNSWFlat(self._codes.shape[1], _LINKS)
            self._graph.hnsw.efConstruction = _BREADTH_ADDING
        if self._graph.ntotal < len(self):
            self._graph.add(self._codes[self._graph.ntotal :])
        parameters = faiss.SearchParametersHNSW(efSearch=max(_BREADTH_SEARCHING, 2 * k))
        squared, rows = self._graph.search(codes, k, params=parameters)
        # A graph that is not connected may give fewer; those are looked up exactly.
        short = np.flatnonzero((rows < 0).any(axis=1))
        distances = np.sqrt(np.maximum(squared, 0))
        if len(short):
            distances[short], rows[short] = self._exactly(codes[short], k)
        return distances, rows


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "An approximate search needs the package faiss-cpu: pip install 'kerasae[search]'. Or pass approximate=False."
        ) from error
    return faiss


def _check_arrays(header, arrays):
    """Raises unless a file's arrays are those of an index."""
    if header["format"] != _FORMAT:
        raise ValueError(f"its format is {header['format']!r}")
    if wrong := {"codes", "ids"} - set(arrays) or set(arrays) - {"codes", "ids", "model", "graph"}:
        raise ValueError(f"its arrays are {sorted(arrays)}, and {sorted(wrong)} missing or too many")
    codes, ids = arrays["codes"], arrays["ids"]
    if codes.ndim != 2 or codes.dtype != "float32" or not len(codes) or not np.isfinite(codes).all():
        raise ValueError(f"its codes are {codes.dtype} of {codes.shape}, or not finite")
    if ids.shape != (len(codes),) or ids.dtype.kind not in "iU":
        raise ValueError(f"its ids are {ids.dtype} of {ids.shape}, for {len(codes)} codes")
    for name in {"model", "graph"} & set(arrays):
        if arrays[name].dtype != "uint8" or arrays[name].ndim != 1:
            raise ValueError(f"its {name} is {arrays[name].dtype} of {arrays[name].shape}, not bytes")
    if (header["model"] in ("keras", "onnx")) != ("model" in arrays) or header["model"] not in (
        "keras",
        "onnx",
        "none",
        "function",
    ):
        raise ValueError(f"its model is {header['model']!r}")


def _encoder(model):
    """`(function from images to codes, kind)`."""
    if model is None:
        return (lambda images: images), "none"
    if isinstance(model, Autoencoder):
        return model.encode, "keras"
    if isinstance(model, _OnnxEncoder):
        return model, "onnx"
    if isinstance(model, (str, os.PathLike)):
        bundle = runtime.Bundle(model)
        return _OnnxEncoder(bundle.read(bundle.entry("encoder")["onnx"]["file"])), "onnx"
    if callable(model):
        return model, "function"
    raise ValueError(
        "`model` must be a kerasae model, the folder of an exported bundle, a function from images to codes, or None. "
        f"Received: {model!r}"
    )


class _OnnxEncoder(runtime.OnnxFunction):
    """An exported encoder, from images to codes."""

    def __call__(self, images):
        port = self.inputs[0]
        shape = [size if isinstance(size, int) else None for size in port["shape"][1:]]
        images = checks.array(images, shape, name="images")
        return super().__call__(images, batch_size=_ROWS_AT_ONCE)[self.outputs[0]["name"]]


def _keras_bytes(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return Path(folder, "model.keras").read_bytes()


def _keras_model(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(content)
        return keras_internals.load_model_safely(path)


_READERS = {"keras": _keras_model, "onnx": _OnnxEncoder}


def _sha256(array):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return hashlib.sha256(content.getbuffer()).hexdigest()

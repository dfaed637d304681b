"""Files of any origin: JSON, arrays and `.keras` archives, whose sizes and shapes are claims that are checked before they are believed.

Each reader takes bounded time and memory, runs no code of the file, and raises a `ValueError` that names the file and what is wrong.
"""

import contextlib
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from kerasae.runtime import MAX_JSON_BYTES
from kerasae.runtime import check_json as check
from kerasae.runtime import read_json as json

__all__ = ["Archive", "array", "check", "check_keras_file", "damaged", "json", "members"]

_MAX_RATIO = 1100  # of what deflate unpacks: 1,032 at most
_MAX_MODEL_RATIO = (
    100  # of weights, and their archive in another: those of float16 take a half, compressed ones some tenths less
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Where functions that a layer's config names may stand in Keras; others are its tools, which read and write files.
_FUNCTIONS = ("activations", "constraints", "initializers", "losses", "metrics", "ops", "regularizers")
_NO_FUNCTIONS = ("get", "serialize", "deserialize")


@contextlib.contextmanager
def damaged(path):
    """Raises what its contents lead to as a `ValueError` that says that the file is damaged."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of another kind: {type(error).__name__}: {error}") from error


def array(path):
    """The array in an `.npy` file, not read until it is needed.

    Raises:
        ValueError: where it is none, is cut short, or holds Python objects, which could run code.
    """
    try:
        with open(_regular(path), "rb") as file:
            _check_header(file, os.fstat(file.fileno()).st_size)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} can't be read as a NumPy file of numbers: {error}") from error


class Archive:
    """The arrays in an `.npz` file, by their names: `archive.names`, `archive["x"]`.

    Args:
        path: of the file.
        packed: whether arrays may be compressed.

    Raises:
        ValueError: as `array`; and on names that are not in it.
    """

    def __init__(self, path, packed=True):
        self._path = path
        with self._errors():
            with zipfile.ZipFile(_regular(path)) as file:
                found = members(file, packed)
        self._members = {name.removesuffix(".npy"): name for name in found if name.endswith(".npy")}
        self.names = list(self._members)

    def __getitem__(self, name):
        if name not in self._members:
            raise ValueError(f"{self._path} has no array {name!r}. It has: {', '.join(self.names[:20])}")
        with self._errors(), zipfile.ZipFile(self._path) as file:
            info = file.getinfo(self._members[name])
            with file.open(info) as member:
                _check_header(member, info.file_size)
            with file.open(info) as member:
                return np.lib.format.read_array(member, allow_pickle=False)

    def shape(self, name):
        """`(shape, dtype)` that an array has by its header."""
        with self._errors(), zipfile.ZipFile(self._path) as file:
            info = file.getinfo(self._members[name])
            with file.open(info) as member:
                return _check_header(member, info.file_size)

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except FileNotFoundError:
            raise
        except _ZIP_ERRORS as error:
            raise ValueError(f"{self._path} can't be read as a NumPy archive of numbers: {error}") from error


def check_keras_file(path):
    """Raises `ValueError` unless a `.keras` file can be opened: what it says of itself is true, and it names no other file.

    Returns:
        How many weights its layers may hold.
    """
    try:
        most = _MAX_MODEL_RATIO * os.stat(_regular(path)).st_size + 2**20
        with zipfile.ZipFile(path) as file:
            found = members(file)
            if (unpacked := sum(info.file_size for info in found.values())) > most:
                raise ValueError(
                    f"it announces {unpacked:,} bytes, and of a model of its size at most {most:,} are taken"
                )
            if "config.json" not in found:
                raise ValueError("it has no config.json")
            with file.open("config.json") as member:
                content = member.read(MAX_JSON_BYTES + 1)
            config = json(content, {"class_name": str, "config": dict}, "its config.json")
            numbers = 0
            for name in found:
                if name.endswith(".h5"):
                    with file.open(name) as member:
                        numbers += _check_hdf5(member, most)
        _check_config(config)
    except FileNotFoundError:
        raise
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path} is no .keras file that can be opened: {error}") from error
    # Quantised ones are stored two in one; and layers draw weights that loading replaces.
    return 2 * numbers + 2**16


# What Python's zipfile raises on damaged archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


def _regular(path):
    """The path, of a file that is one: a pipe would be waited for."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path


def members(file, packed=True):
    """`{name: info}` of a zip archive, whose announced sizes can be true."""
    found = {info.filename: info for info in file.infolist()}
    for name, info in found.items():
        if info.file_size > _MAX_RATIO * info.compress_size + 1000 or (
            not packed and info.file_size != info.compress_size
        ):
            raise ValueError(f"its {name} announces {info.file_size:,} bytes, and is stored in {info.compress_size:,}")
    return found


def _check_header(file, size):
    """`(shape, dtype)` of the array that begins here, in a file of `size` bytes."""
    try:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        needed = math.prod(shape) * dtype.itemsize
    except Exception as error:  # the header is a Python literal, which fails in many ways
        raise ValueError(f"its header is no array's ({type(error).__name__})") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and only numbers and text are read")
    if min(shape, default=0) < 0 or needed > size - file.tell():
        raise ValueError(
            f"its header announces an array of {shape} ({needed:,} bytes), and {size - file.tell():,} bytes follow: it was cut short"
        )
    return shape, dtype


def _check_hdf5(file, most):
    """The number of numbers in an HDF5 file whose values all lie in it, in the sizes that it announces: at most so many bytes."""
    import h5py

    numbers, size, seen = 0, 0, set()
    with h5py.File(file, "r") as opened:
        todo = [opened]
        while todo:
            group = todo.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"its weights {name!r} are a link")
                item = group[name]
                if item.id.__hash__() in seen:
                    continue
                seen.add(item.id.__hash__())
                if isinstance(item, h5py.Group):
                    todo.append(item)
                    continue
                stored = item.id.get_storage_size()
                if item.external or item.is_virtual:
                    raise ValueError(f"its weights {item.name!r} lie in another file")
                if item.nbytes > _MAX_RATIO * stored:
                    raise ValueError(
                        f"its weights {item.name!r} announce {item.nbytes:,} bytes, and {stored:,} are stored"
                    )
                numbers += item.size or 0
                size += item.nbytes
                if size > most:
                    raise ValueError(
                        f"its weights announce {size:,} bytes, and of a file of its size at most {most:,} are taken"
                    )
    return numbers


def _check_config(value):
    """Raises on functions that are no model's."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        if not isinstance(value, dict):
            continue
        if value.get("class_name") == "function":
            module, name = str(value.get("module")), str(value.get("config"))
            room = "activations" if module == "builtins" else module.removeprefix("keras.")
            # What is registered under a name of its own, Keras finds or refuses.
            if module.split(".")[0] in ("keras", "builtins") and (room not in _FUNCTIONS or name in _NO_FUNCTIONS):
                raise ValueError(
                    f"its config names the function {module}.{name}, which is no activation, loss or the like"
                )
        for key, inner in value.items():
            if key.endswith("activation") and isinstance(inner, dict):
                _check_activation(inner)
            if key != "compile_config":
                todo.append(inner)


def _check_activation(config):
    """Raises where one of Keras's own functions or classes stands for an activation and is none: it would be called like one."""
    import keras

    module, name, kind = str(config.get("module")), str(config.get("class_name")), "class"
    if name == "function":
        kind, name = name, str(config.get("config"))
        # Keras looks in all of these for what stands without a module.
        is_kerass = module != "builtins" or any(hasattr(getattr(keras, room), name) for room in _FUNCTIONS)
        right = module in ("builtins", "keras.activations") and hasattr(keras.activations, name)
    else:
        is_kerass, right = True, module.startswith("keras.layers")
    is_kerass &= module.split(".")[0] in ("keras", "builtins") and keras.saving.get_registered_object(name) is None
    if is_kerass and (not right or name in _NO_FUNCTIONS):
        raise ValueError(
            f"its config names the {kind} {module}.{name} as an activation, which is none of keras.activations"
        )

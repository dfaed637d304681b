"""Opens exported bundles and runs their ONNX files, with NumPy and ONNX Runtime alone: it needs neither Keras nor this package.

Nothing in a bundle is run before its SHA-256 has been compared with the manifest's, and no other file is read for it.
"""

import hashlib
import json
import re
from pathlib import Path, PureWindowsPath

import numpy as np

FORMAT, FORMAT_VERSION = "kerasae-bundle", 1
_PORT = {"name": str, "shape": [(int, str)], "dtype": str, "value_range?": (list, type(None))}
_MANIFEST = {
    "format": str,
    "format_version": int,
    "family": str,
    "files": {str: {"sha256": str, "bytes": int}},
    "parts": [{"name": str, "inputs": [_PORT], "outputs": [_PORT], "onnx": (dict, type(None))}],
    "preparation?": (dict, type(None)),
}
MAX_JSON_BYTES = 64 * 2**20
_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names, where NumPy has others


class Bundle:
    """A folder that `kerasae.export.export` wrote.

    Args:
        folder: the bundle.
        sha256: of its manifest, where it is on record.

    Attributes:
        manifest: the dict in `manifest.json`.
        parts: `{name: entry in the manifest}` of the parts that have an ONNX file.

    Raises:
        ValueError: if the folder has no manifest, or one that is damaged, of another format, not the one on record, or names files outside
            the folder.

    Example:

    ```python
    from kerasae.runtime import Bundle

    encode = Bundle("bundle").open("encoder")
    encode(x_test, batch_size=256)["z"]
    ```
    """

    def __init__(self, folder, sha256=None):
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise ValueError(
                f"There is no bundle at {self.folder}: it has no manifest.json. kerasae.export.export writes one."
            )
        try:
            content = _content(path, MAX_JSON_BYTES)
            self.manifest = read_json(content, {"format": str, "format_version": int}, "it")
            _check_manifest(self.manifest)
            if sha256 not in (None, hashlib.sha256(content).hexdigest()):
                raise ValueError("its SHA-256 is not the one on record, so it is not the one that was exported")
        except ValueError as error:
            raise ValueError(f"{path} is not the manifest of a bundle, or is damaged: {error}") from error
        self.parts = {part["name"]: part for part in self.manifest["parts"] if part["onnx"]}

    def read(self, name):
        """The bytes of one of the bundle's files; raises ValueError unless they are what was exported."""

        def whole(path):
            content = path.read_bytes()
            return content, hashlib.sha256(content)

        return self._checked(name, whole)

    def path(self, name):
        """The path of one of the bundle's files, for what is too large to be read at once; raises as `read`."""

        def streamed(path):
            with path.open("rb") as file:
                return path, hashlib.file_digest(file, "sha256")

        return self._checked(name, streamed)

    def _checked(self, name, read):
        if name not in self.manifest["files"]:
            raise ValueError(f"The bundle {self.folder} has no {name}.")
        path = self.folder / name
        try:
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise ValueError(f"The bundle's {name} lies outside {self.folder}: it is a link.")
            size = path.stat().st_size
            if not path.is_file() or size != self.manifest["files"][name]["bytes"]:
                raise ValueError(
                    f"{path} is not the file that was exported: its SHA-256 and its size, {size:,} bytes, are others."
                )
            result, sha256 = read(path)
        except OSError as error:
            raise ValueError(f"The bundle's {name} can't be read: {error}") from error
        if sha256.hexdigest() != self.manifest["files"][name]["sha256"]:
            raise ValueError(f"{self.folder / name} is not the file that was exported: its SHA-256 is another.")
        return result

    def entry(self, part):
        """The manifest's entry of a part that has an ONNX file."""
        if not self.parts:
            raise ValueError(f'The bundle {self.folder} has no ONNX files: export the model with the format "onnx".')
        if part not in self.parts:
            raise ValueError(f"`part` must be one of {sorted(self.parts)}, the bundle's ONNX files. Received: {part!r}")
        return self.parts[part]

    def open(self, part, **options):
        """A part of the bundle, such as `"encoder"` or `"score"`, as an `OnnxFunction`, which takes the other options."""
        entry = self.entry(part)
        data = entry["onnx"].get("data")
        stated = {
            "ranges": self._ranges(entry),
            "divisor": self._divisor(entry),
            "data": data and self.path(data),
        }
        return OnnxFunction(self.read(entry["onnx"]["file"]), **stated, **options)

    def _ranges(self, part):
        return {port["name"]: port["value_range"] for port in part["inputs"] if port.get("value_range")}

    def _divisor(self, part):
        """What bytes are to be divided by before they go in, 1 where the graph does what must be done; None if it isn't said."""
        preparation = self.manifest.get("preparation")
        if preparation is None or "x" not in [port["name"] for port in part["inputs"]]:
            return None
        before = preparation.get("before") or ()
        if not isinstance(before, (list, tuple)) or not all(isinstance(step, str) for step in before):
            raise ValueError(f"The manifest's preparation is damaged: {before!r:.80} isn't a list of steps.")
        return 255 if any("divided by 255" in step for step in before) else 1


def files_of(folder):
    """Names of the files of the bundle in a folder; none where there is none."""
    try:
        return {"manifest.json", *Bundle(folder).manifest["files"]}
    except ValueError:
        return set()


class OnnxFunction:
    """An ONNX file as a function with named inputs and outputs, all of which begin with the batch.

    Args:
        content: the file's bytes.
        threads: that one run uses; they don't spin while they wait, which would take time from other processes. Default: ONNX
            Runtime's choice, one per core.
        providers: of ONNX Runtime, such as `("CUDAExecutionProvider", "CPUExecutionProvider")`. Default: the CPU.
        ranges: `{input: (lowest, highest)}`, where they are known; whole numbers beyond, and what looks like 8-bit images where it is
            (0, 1), are refused.
        divisor: of bytes that images are given as where the file takes real numbers. Default: unknown, and they are refused.
        data: path of the file that holds its large weights, where they don't lie in `content`: ONNX Runtime reads it from there.

    Attributes:
        content: as given.
        inputs, outputs: lists of ports, `{"name", "shape", "dtype"}`. Free sizes in a shape are strings.
    """

    def __init__(
        self, content, threads=None, providers=("CPUExecutionProvider",), ranges=None, divisor=None, data=None
    ):
        import onnxruntime

        _check_onnx(memoryview(content), data and data.name)
        options = onnxruntime.SessionOptions()
        if data:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data.parent))
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.content, self._ranges, self._divisor = content, ranges or {}, divisor
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime has exceptions of its own
            raise ValueError(f"ONNX Runtime can't open the file: {error}") from error
        self.inputs = [_port(port) for port in self._session.get_inputs()]
        self.outputs = [_port(port) for port in self._session.get_outputs()]

    def __call__(self, *arrays, batch_size=None, **named):
        """The outputs for any number of examples.

        Args:
            arrays, named: the inputs in order or by their names, `(n, ...)`.
            batch_size: how many examples are computed together. Default: all. A file that was exported for one batch size is run at
                that size, and its last batch is filled up.

        Returns:
            `{name: array}`, each `(n, ...)`.

        Raises:
            ValueError: on inputs that don't fit.
        """
        given = dict(zip([port["name"] for port in self.inputs], arrays, strict=False)) | named
        if set(given) != {port["name"] for port in self.inputs} or len(arrays) + len(named) != len(given):
            raise ValueError(
                f"The inputs are {[port['name'] for port in self.inputs]}. Received {len(arrays)} without a name, and {sorted(named)}"
            )
        inputs = {
            port["name"]: _as_port(
                given[port["name"]], port, self._ranges.get(port["name"]), self._divisor if port["name"] == "x" else 1
            )
            for port in self.inputs
        }
        counts = {len(array) for array in inputs.values()}
        if len(counts) > 1:
            raise ValueError(f"The inputs must hold equally many examples. Received: {sorted(counts)}")
        (count,) = counts
        fixed = self.inputs[0]["shape"][0]
        size = fixed if isinstance(fixed, int) else batch_size or max(count, 1)
        names = [port["name"] for port in self.outputs]
        if not count:  # ONNX Runtime doesn't run an empty batch for every operator
            inputs = {name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in inputs.items()}
        batches = []
        for start in range(0, max(count, 1), size):
            batch = {name: array[start : start + size] for name, array in inputs.items()}
            if isinstance(fixed, int):
                batch = {name: _filled(array, size) for name, array in batch.items()}
            batches.append([output[: count - start] for output in self._session.run(names, batch)])
        return {name: np.concatenate(pieces) for name, pieces in zip(names, zip(*batches, strict=True), strict=True)}


# What a terminal obeys instead of showing it, and what turns the direction of a line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text):
    """Text of any origin as a terminal may have it: control characters are written out."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(text))


def read_json(source, shape=None, what=None, most=MAX_JSON_BYTES):
    """What a JSON file holds.

    Args:
        source: path, or bytes.
        shape: what it must look like: a type or several; `{name: shape}`, a name that ends in "?" may be missing; `{str: shape}` for any
            names; `[shape]` for a list. Default: anything.
        what: its name in errors. Default: the path.
        most: bytes that are read.

    Raises:
        ValueError: where it is no JSON, nested too deep, too large, or of another shape; the message names the entry.
        FileNotFoundError: where there is none.
    """
    what = source if what is None else what
    try:
        content = source if isinstance(source, bytes) else _content(Path(source), most)
        if len(content) > most:
            raise ValueError(f"it has {len(content):,} bytes, and at most {most:,} were expected")
        values = json.loads(content)
    except RecursionError:
        raise ValueError(f"{what} can't be read as JSON: it is nested too deep.") from None
    except ValueError as error:
        raise ValueError(f"{what} can't be read as JSON: {error}") from error
    return check_json(values, shape, what)


def check_json(values, shape, what):
    """Returns values as JSON holds them; raises `ValueError`, of `read_json`, where they are of another shape."""
    if wrong := _mismatch(values, shape, ""):
        raise ValueError(f"{what} is damaged, or of another kind: {wrong}.")
    return values


def _mismatch(value, shape, where):
    """What is not as `shape` says, in words; None where all is."""
    named = f"its entry {where[1:]!r}" if where else "it"
    if shape is None:
        return None
    if isinstance(shape, (type, tuple)):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
            return None
        return f"{named} is {'missing' if value is None else _short(value)}, where {' or '.join(k.__name__ for k in kinds)} was expected"
    if not isinstance(value, type(shape)):
        return f"{named} is {_short(value)}, where {'an object' if isinstance(shape, dict) else 'a list'} was expected"
    if isinstance(shape, list):
        entries = [(f"{where}.{i}", entry, shape[0]) for i, entry in enumerate(value)]
    elif list(shape) == [str]:
        entries = [(f"{where}.{key}", entry, shape[str]) for key, entry in value.items()]
    else:
        names = [(key.removesuffix("?"), key, inner) for key, inner in shape.items()]
        if missing := [name for name, key, _ in names if name == key and name not in value]:
            return f"{named} has no {missing[0]!r}"
        entries = [(f"{where}.{name}", value[name], inner) for name, _, inner in names if name in value]
    return next(filter(None, (_mismatch(entry, inner, place) for place, entry, inner in entries)), None)


def _short(value):
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _content(path, most):
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    with path.open("rb") as file:
        return file.read(most + 1)


def _check_manifest(manifest):
    """Raises an error of some kind, whose message names what is wrong, unless a manifest has the form of one."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"its format version is {manifest['format_version']}, and {FORMAT_VERSION} is what is read here"
        )
    check_json(manifest, _MANIFEST, "it")
    for name, entry in manifest["files"].items():
        # As Windows reads it, which knows all that other systems know: drives, both slashes.
        path = PureWindowsPath(name)
        if path.anchor or ".." in path.parts:
            raise ValueError(f"it names a file outside the bundle, {name!r}")
        if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
            raise ValueError(f"the SHA-256 of {name} is {entry['sha256']!r}")
    columns = (manifest.get("preparation") or {}).get("columns")
    if columns is not None and not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
        raise ValueError(f"the columns of its preparation are {_short(columns)}")
    for port in (port for part in manifest["parts"] for port in part["inputs"]):
        if (bounds := port.get("value_range")) and [type(b) in (int, float) for b in bounds] != [True, True]:
            raise ValueError(f"the range of {port['name']} is {_short(bounds)}")
    for part in manifest["parts"]:
        for name in {"file": None, **part["onnx"]}.values() if part["onnx"] else ():
            if name not in [*manifest["files"]]:
                raise ValueError(f"{part['name']} is in {name!r}, which is not among its files")


# Where tensors stand in an ONNX file: `{message: {number of a field: message within it}}`. A tensor's 13 and 14 are of other files: 13 is
# a key and its value, such as b"location" and a file's name.
_ONNX_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "elsewhere"},
    "elsewhere": {},
}


def _check_onnx(content, data=None):
    """Raises on a file whose weights lie in other files than `data`: ONNX Runtime would read them from wherever the file says."""
    todo = [("model", content)]
    try:
        while todo:
            kind, message = todo.pop()
            if kind == "elsewhere":
                entry = {number: bytes(value) for number, value in _fields(message) if not isinstance(value, int)}
                if entry.get(1) == b"location" and entry.get(2) != data.encode():
                    raise ValueError("An ONNX file whose weights lie in another file is not opened.")
            for number, value in _fields(message):
                if kind == "tensor" and data is None and (number == 13 or (number == 14 and value != 0)):
                    raise ValueError("An ONNX file whose weights lie in another file is not opened.")
                if number in _ONNX_FIELDS[kind] and not isinstance(value, int):
                    todo.append((_ONNX_FIELDS[kind][number], value))
    except IndexError:
        raise ValueError("This is no ONNX file, or it is cut short.") from None


def _fields(message):
    """`(number, value)` of a protobuf message's fields: a whole number, or a part of the message."""
    position = 0

    def varint():
        nonlocal position
        number = 0
        for shift in range(0, 70, 7):
            byte = message[position]
            position += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise IndexError

    while position < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(kind) or (varint() if kind == 2 else len(message) + 1)
        if position + length > len(message):
            raise IndexError
        yield key >> 3, message[position : position + length]
        position += length


def _port(port):
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    return {"name": port.name, "shape": list(port.shape), "dtype": _DTYPES.get(kind, kind)}


def _as_port(values, port, value_range, divisor):
    """An array in a port's type, if it fits; arguments as of `OnnxFunction`."""
    array = np.asarray(values)
    shape = port["shape"]
    if array.ndim != len(shape) or any(
        isinstance(size, int) and size != given for size, given in zip(shape[1:], array.shape[1:], strict=True)
    ):
        raise ValueError(f"`{port['name']}` must have the shape {tuple(shape)}. Received: {array.shape}")
    if not np.can_cast(array.dtype, port["dtype"], "same_kind"):
        raise ValueError(f"`{port['name']}` must be of type {port['dtype']}. Received: {array.dtype}")
    is_float = port["dtype"].startswith("float")
    if is_float and array.dtype == np.uint8 and array.ndim > 2 and divisor is None:
        raise ValueError(
            f"`{port['name']}` takes {port['dtype']}, and nothing says what bytes are to be divided by. Pass the numbers that the model "
            "was trained on, such as images / np.float32(255)."
        )
    if is_float and array.dtype == np.uint8 and divisor == 255:
        array = array / np.float32(255)
    elif is_float and value_range and array.size:
        low, high = np.fmin.reduce(array, axis=None), np.fmax.reduce(array, axis=None)
        is_whole, is_unit = array.dtype.kind in "iu", list(value_range) == [0, 1]
        # Noise takes an image in [0, 1] a little above; so far above, with nothing below 0, it is of 8 bits.
        if (is_whole and (low < value_range[0] or high > value_range[1])) or (is_unit and low >= 0 and high > 2):
            hint = " Divide 8-bit images by 255." if is_unit and high <= 255 else ""
            raise ValueError(
                f"`{port['name']}` takes values from {value_range[0]:g} to {value_range[1]:g}. Received: {low:g} to {high:g}.{hint}"
            )
    return array.astype(port["dtype"], copy=False)


def _filled(array, size):
    """A batch with its last example repeated up to `size` examples."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)]) if len(array) < size else array

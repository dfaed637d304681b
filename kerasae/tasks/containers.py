"""Bytes that describe themselves: the streams of `Codec` and `LosslessCodec`, images in and out of them, and a codec's file."""

import json
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from kerasae import checks, keras_internals, untrusted, writing

_MAGIC = b"KRAE"
_VERSION, _FILE_VERSION = 1, 1
_MAX_FACTS = 2**26  # bytes of a codec's tables as JSON
_FACTS = {
    "format": str,
    "version": int,
    "image_shape": [int],
    "step": (int, float),
    "offsets": [int],
    "counts": [[int]],
    "fingerprint": str,
    "parameters": dict,
}
_KINDS = ("lossy", "lossless")
_DTYPES = ("uint8", "float32", "float64")
_START = struct.Struct("<4sBBB8s")  # magic, version, kind, dtype, fingerprint


def unit_images(X):
    """Images as float32 in [0, 1], (n, height, width, channels); raises `ValueError` on anything else than uint8 or floats in [0, 1]."""
    X = np.asarray(X)
    if X.dtype.name not in _DTYPES:
        raise ValueError(f"Images must be uint8, or float32 or float64 in [0, 1]. Received dtype: {X.dtype}")
    if X.ndim not in (3, 4):
        raise ValueError(
            f"Images must have the shape (n, height, width) or (n, height, width, channels). Received: {X.shape}"
        )
    checks.array(X, name="X", unit_interval=X.dtype != "uint8")
    x = X.astype("float32") / 255 if X.dtype == "uint8" else X.astype("float32")
    return x if x.ndim == 4 else x[..., None]


def as_images(x, header):
    """Reconstructions as the images that a header describes."""
    x = np.clip(x, 0, 1).reshape(header["num_images"], *header["image_shape"])
    return np.rint(x * 255).astype("uint8") if header["dtype"] == "uint8" else x.astype(header["dtype"])


def pack(kind, fingerprint, X, parameters, payload):
    """A container.

    Args:
        kind: `"lossy"` or `"lossless"`.
        fingerprint: hex digits of the codec; the first 16 are stored.
        X: the images, of which dtype and shape are stored.
        parameters: whole numbers that the kind needs.
        payload: uint32 words.

    Returns:
        bytes.
    """
    start = _START.pack(
        _MAGIC, _VERSION, _KINDS.index(kind), _DTYPES.index(X.dtype.name), bytes.fromhex(fingerprint[:16])
    )
    numbers = [len(parameters), *parameters, len(X), X.ndim - 1, *X.shape[1:], len(payload)]
    body = start + b"".join(_varint(number) for number in numbers) + payload.astype("<u4").tobytes()
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(stream, kind, fingerprint):
    """`({"dtype", "parameters", "num_images", "image_shape"}, payload)` of a container; raises `ValueError` on what is none."""
    if not isinstance(stream, (bytes, bytearray, memoryview)):
        raise ValueError(f"A stream must be bytes. Received: {type(stream).__name__}")
    stream = bytes(stream)
    if stream[:4] != _MAGIC:
        raise ValueError(f"Not a kerasae stream: it begins with {stream[:4]!r} instead of {_MAGIC!r}.")
    cut = ValueError(f"The stream is cut: it ends after {len(stream)} bytes, before what its header announces.")
    if len(stream) < _START.size:
        raise cut
    _, version, kind_number, dtype, made_by = _START.unpack_from(stream)
    if version > _VERSION:
        raise ValueError(f"The stream has version {version}, and this kerasae reads up to {_VERSION}: update kerasae.")
    try:
        position = _START.size
        parameters, position = _read_varints(stream, position)
        num_images, position = _read_varint(stream, position)
        shape, position = _read_varints(stream, position)
        num_words, position = _read_varint(stream, position)
    except IndexError:
        raise cut from None
    end = position + 4 * num_words
    if len(stream) < end + 4:
        raise cut
    if len(stream) > end + 4:
        raise ValueError(f"{len(stream) - end - 4} bytes follow the stream's end: pass one stream at a time.")
    if dtype >= len(_DTYPES) or not 1 <= len(shape) <= 3:
        raise ValueError(f"The stream is damaged: its images are of the type {dtype} and the shape {shape}.")
    if zlib.crc32(stream[:end]) != struct.unpack_from("<I", stream, end)[0]:
        raise ValueError("The stream is damaged: its checksum does not match its contents.")
    if kind_number >= len(_KINDS) or _KINDS[kind_number] != kind:
        what = _KINDS[kind_number] if kind_number < len(_KINDS) else kind_number
        raise ValueError(f"This is a {what} stream, and the codec reads {kind} ones.")
    if made_by.hex() != fingerprint[:16]:
        raise ValueError(
            f"The stream was written by another codec: fingerprint {made_by.hex()}, and this one's is {fingerprint[:16]}. "
            "Load the codec that encoded it."
        )
    header = {"dtype": _DTYPES[dtype], "parameters": parameters, "num_images": num_images, "image_shape": tuple(shape)}
    return header, np.frombuffer(stream, "<u4", num_words, position).astype("uint32")


def save(path, facts, model):
    """Writes a codec's facts, a dict for JSON, and its Keras model into one file, a zip archive; gives its path."""
    facts = {"format": "kerasae codec", "version": _FILE_VERSION, **facts}
    with tempfile.TemporaryDirectory() as folder, writing.file(path) as beside:
        model.save(f"{folder}/model.keras")
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("codec.json", json.dumps(facts))
            archive.write(f"{folder}/model.keras", "model.keras")
    return Path(path)


def load(path):
    """`(facts, model)` that `save` wrote; raises `ValueError` on what it didn't, and on what a newer version wrote."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            # Unpacked only so far as it may be large.
            with archive.open("codec.json") as member:
                facts = untrusted.json(
                    member.read(_MAX_FACTS + 1), {"format": str, "version": int}, f"codec.json in {path}", _MAX_FACTS
                )
            if facts["format"] != "kerasae codec":
                raise KeyError("format")
            if facts["version"] > _FILE_VERSION:
                raise ValueError(
                    f"{path} was written by a newer kerasae (codec version {facts['version']}, this one reads up to {_FILE_VERSION}): "
                    "update kerasae."
                )
            untrusted.check(facts, _FACTS, f"codec.json in {path}")
            member = untrusted.members(archive)["model.keras"]
            return facts, keras_internals.load_model_safely(archive.extract(member, folder))
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a codec that `Codec.save` wrote, or it is damaged: {error}") from error


def _varint(number):
    """Seven bits a byte, the lowest first; all but the last have the highest bit set."""
    parts = bytearray()
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _read_varint(stream, position):
    number = shift = 0
    while True:
        byte = stream[position]
        position += 1
        number |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            raise ValueError("The stream is damaged: a number in its header has no end.")
        if byte < 128:
            return number, position


def _read_varints(stream, position):
    """Their number, then they."""
    length, position = _read_varint(stream, position)
    numbers = []
    for _ in range(length):
        number, position = _read_varint(stream, position)
        numbers.append(number)
    return numbers, position

"""Export: a trained autoencoder as files that run where Keras does not exist, proved to compute the same thing."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import numbers
import platform
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import tensorflow as tf

import kerasae
from kerasae import checks
from kerasae.export import onnx_files, parity
from kerasae.export.onnx_files import DEFAULT_OPSET
from kerasae.export.parts import ExportError, in_float32, parts_of, score_of
from kerasae.export.readme import readme
from kerasae.models import Autoencoder

__all__ = ["DEFAULT_OPSET", "FORMATS", "ExportError", "export"]

FORMATS = ("saved_model", "onnx")
IMAGE_INPUTS = ("uint8",)
_FORMAT_VERSION = 1
_PACKAGES = ("keras", "tensorflow", "numpy", "onnx", "tf2onnx", "onnxruntime")

_logger = logging.getLogger(__name__)


def export(
    model,
    folder,
    formats=FORMATS,
    *,
    opset=DEFAULT_OPSET,
    image_input=None,
    batch_size=None,
    x=None,
    tolerance=1e-5,
    replace=False,
):
    """Writes a bundle: the model's parts as a SavedModel and ONNX files, a manifest, and a README for who receives it.

    `saved_model/` has the signatures `encode`, `decode`, `reconstruct` (the default) and `score`; `encoder.onnx`,
    `decoder.onnx`, `autoencoder.onnx` and `score.onnx` are the same. `score` is each example's reconstruction loss,
    summed over features; of a variational model the negative evidence lower bound at `z = z_mean`, in nats. Ports have
    names: `x`, `z` (out of a variational encoder `z_mean` and `z_log_var`), `reconstruction`, `score`. All parts are
    deterministic: a variational reconstruction goes through `z_mean`, and `sample` and `sample.onnx`, which only the
    variational family has, take their noise as input (the signature `sample_from_seed` a seed). A model in mixed
    precision is exported in float32.

    Before it is given, every part in every format is run in another process, where Keras and kerasae can't be imported,
    at batch sizes 1 and 7, and held against Keras on the CPU: `max |difference| / max |reference|` of every output must
    not exceed `tolerance`.

    Args:
        model: kerasae model, trained or not.
        folder: where the bundle goes; a new or empty folder.
        formats: which of `"saved_model"` and `"onnx"`.
        opset: of ONNX, 13 to 25.
        image_input: `"uint8"` for parts that take images of 0 to 255 and divide them by 255 themselves, for a model of
            images in [0, 1]. Default: what the model takes.
        batch_size: the only one that the parts take, for runtimes that need to know. Default: any.
        x: real examples for the check, `(n, *input_shape)`, as the parts take them; 8 are taken, or `batch_size`.
            Default: random ones, from 0 to 1 where the model needs that, else standard normal.
        tolerance: of the check, at least 0, relative to the largest value.
        replace: whether what `folder` holds is replaced, once the new bundle is ready.

    Returns:
        The manifest, the dict in `manifest.json`: `family`, `parts` with their ports, `preprocessing`, `score` (its
        `definition`, `unit` and `direction`), `onnx`, `precision`, `parity`
        (`tolerance`, `max_relative_difference`, and `measured`, the differences by part, format, batch size and
        output), `versions`, `files`.

    Raises:
        ValueError: before any work, on a model of another kind, an unknown format or opset, examples that don't fit,
            and a folder that can't be written or, without `replace`, is not empty.
        ExportError: where a part can't be converted, does not run without Keras, or computes something else; it names
            the part and by how much. What was in `folder` is as it was.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=2, hidden_units=(32,))
    manifest = kerasae.export.export(model, "vae_bundle")
    manifest["parity"]["max_relative_difference"]
    ```
    """
    if not isinstance(model, Autoencoder):
        raise ValueError(
            "`model` must be a kerasae model, such as kerasae.models.Autoencoder(encoder, decoder) or what "
            f"keras.saving.load_model returns for one. Received: {model!r}"
        )
    formats = formats if isinstance(formats, (list, tuple)) else (formats,)
    formats = tuple(dict.fromkeys(checks.choice(name, "formats", FORMATS) for name in formats))
    if not formats:
        raise ValueError(f"`formats` must name at least one of {list(FORMATS)}. Received none.")
    opset = _check_opset(opset)
    tolerance = checks.real_number(tolerance, "tolerance", minimum=0)
    image_input = _check_image_input(image_input, model)
    if batch_size is not None:
        batch_size = checks.positive_int(batch_size, "batch_size")
    parts_as_asked = functools.partial(parts_of, image_input=image_input, batch_size=batch_size)
    examples = parity.check_examples(x, parts_as_asked(model)[0])
    folder, workspace = _open_workspace(folder, replace)
    bundle, previous = workspace / "bundle", workspace / "previous"
    try:
        bundle.mkdir()
        original = model
        model, policies = in_float32(original)
        parts = parts_as_asked(model)
        metadata = {"producer": "kerasae", "family": type(model).__name__, "kerasae_version": kerasae.__version__}
        functions = {part.name: part.function() for part in parts}
        if "saved_model" in formats:
            _logger.info("Writing the SavedModel")
            _write_saved_model(parts, functions, bundle / "saved_model")
        if "onnx" in formats:
            import onnx

            for part in (part for part in parts if part.is_in("onnx")):
                _logger.info("Converting the %s to ONNX", part.name)
                onnx.save(onnx_files.convert(part, functions[part.name], opset, metadata), bundle / f"{part.name}.onnx")
        _logger.info("Running the files in a process without Keras")
        inputs = parity.batches(parts, examples)
        expected = parity.references(parts, inputs)
        outputs = parity.replay(parts, inputs, bundle, formats, workspace / "replay")
        measured = parity.compare(expected, outputs, tolerance)
        definition, unit = score_of(model)
        manifest = {
            "format": "kerasae-bundle",
            "format_version": _FORMAT_VERSION,
            "family": metadata["family"],
            "formats": list(formats),
            "parts": [_describe(part, formats) for part in parts],
            "preprocessing": "none: the parts divide by 255 themselves" if image_input else "none: as in training",
            "score": {"definition": definition, "unit": unit, "direction": "higher: less like the training data"},
            "onnx": {"opset": opset, "ir_version": onnx_files.IR_VERSION} if "onnx" in formats else None,
            "precision": _precision(parts_as_asked(original), policies, inputs, expected),
            "parity": {
                "measure": "max |difference| / max |reference|, the reference being Keras on the CPU",
                "process": "fresh; keras and kerasae not importable, for ONNX nor tensorflow",
                "examples": "generated" if x is None else "given",
                "batch_sizes": list(parity.batch_sizes(parts[0])),
                "tolerance": tolerance,
                "max_relative_difference": max(row["relative_difference"] for row in measured),
                "measured": measured,
            },
            "versions": {
                "kerasae": kerasae.__version__,
                "python": platform.python_version(),
                **{name: _version(name) for name in _PACKAGES},
            },
        }
        (bundle / "README.md").write_text(readme(manifest), encoding="utf-8")
        manifest["files"] = _files(bundle)
        (bundle / "manifest.json").write_text(
            json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        _move_in(bundle, folder, previous, replace)
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"The bundle could not be written, and {folder} is as it was: {error}") from error
    finally:
        # Not if the previous bundle is in there because it could not be put back.
        if folder.exists() or not previous.exists():
            shutil.rmtree(workspace, ignore_errors=True)
    _logger.info("Wrote %s", folder)
    return manifest


def _check_image_input(image_input, model):
    if image_input is None:
        return None
    checks.choice(image_input, "image_input", IMAGE_INPUTS)
    dtype = model.encoder.inputs[0].dtype
    if "float" not in dtype:
        raise ValueError(f"`image_input` is for a model that takes real numbers. This one takes {dtype}: leave it out.")
    return image_input


def _check_opset(opset):
    is_int = isinstance(opset, numbers.Integral) and not isinstance(opset, bool)
    if not is_int or not onnx_files.MIN_OPSET <= opset <= onnx_files.MAX_OPSET:
        raise ValueError(
            f"`opset` must be a whole number from {onnx_files.MIN_OPSET} to {onnx_files.MAX_OPSET}. Received: {opset!r}"
        )
    return int(opset)


def _open_workspace(folder, replace):
    """The folder as an absolute path, and a new folder on its disk to work in; raises if either can't be."""
    folder = Path(folder).resolve()
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"`folder` must be one of its own, and {folder} is or holds the current one. Name one inside it."
        )
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`folder` must be a folder, and {folder} is a file.")
        if folder.exists() and any(folder.iterdir()) and not replace:
            raise ValueError(f"{folder} is not empty. Choose another, or pass `replace=True` to replace all it holds.")
        ancestor = next(parent for parent in folder.parents if parent.exists())
        return folder, Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=ancestor))
    except OSError as error:
        raise ValueError(
            f"Can't write into {folder.parent}: {error.strerror or error}. Choose another folder."
        ) from error


def _move_in(bundle, folder, previous, replace):
    """Puts the finished bundle in its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        bundle.rename(folder)
        return
    if not replace:
        folder.rmdir()  # it was empty; fails if it no longer is
        bundle.rename(folder)
        return
    folder.rename(previous)
    try:
        bundle.rename(folder)
    except BaseException:
        try:
            previous.rename(folder)
        except OSError as error:
            raise ExportError(f"What {folder} held could not be put back, and is in {previous}.") from error
        raise


def _write_saved_model(parts, functions, path):
    module = tf.Module()
    used = [variable for function in functions.values() for variable in function.get_concrete_function().variables]
    module.variables_of_parts = list({id(variable): variable for variable in used}.values())
    signatures = {part.signature: functions[part.name] for part in parts}
    # What TensorFlow Serving calls where a request names none.
    signatures["serving_default"] = functions["autoencoder"]
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except (AssertionError, ValueError, TypeError) as error:
        raise ExportError(f"The model can't be written as a SavedModel: {error}") from error


def _describe(part, formats):
    """A part's entry in the manifest."""
    ports = {
        kind: [
            {**asdict(port), "shape": port.dims, "value_range": port.value_range and list(port.value_range)}
            for port in getattr(part, kind)
        ]
        for kind in ("inputs", "outputs")
    }
    return {
        "name": part.name,
        "meaning": part.meaning,
        "saved_model": {"folder": "saved_model", "signature": part.signature} if "saved_model" in formats else None,
        "onnx": {"file": f"{part.name}.onnx"} if "onnx" in formats and part.is_in("onnx") else None,
        **ports,
    }


def _precision(parts, policies, inputs, expected):
    """What a model's own precision was, and by how much it answers otherwise than its float32 export."""
    if not policies:
        return {"model": ["float32"], "exported": "float32", "relative_difference": None}
    answers = parity.references(parts, inputs)
    difference = {
        part: max(
            parity.relative_difference(answers[part][size][name], reference)[2]
            for size, outputs in sizes.items()
            for name, reference in outputs.items()
        )
        for part, sizes in expected.items()
    }
    return {"model": policies, "exported": "float32", "relative_difference": difference}


def _version(package):
    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _files(bundle):
    """`{path: {"bytes", "sha256"}}` of every file; the manifest, which holds this, comes later."""
    entries = {}
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[path.relative_to(bundle).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return entries

"""The bundle: a model's parts in every format, checked, with a manifest and a README."""

import functools
import json
import logging
import numbers

import keras
import numpy as np
import tensorflow as tf

import kerasae
from kerasae import checks, runtime, writing
from kerasae.export import litert_files, manifests, onnx_files, parity, pipelines
from kerasae.export import variants as variant_files
from kerasae.export.onnx_files import DEFAULT_OPSET
from kerasae.export.parts import ExportError, in_float32, parts_of
from kerasae.export.readme import readme

FORMATS = ("saved_model", "onnx", "litert")
DEFAULT_FORMATS = ("saved_model", "onnx")
IMAGE_INPUTS = ("uint8",)

_logger = logging.getLogger(__name__)


def export(
    model,
    folder,
    formats=DEFAULT_FORMATS,
    *,
    opset=DEFAULT_OPSET,
    image_input=None,
    batch_size=None,
    variants=(),
    calibration=None,
    x=None,
    tolerance=1e-5,
    replace=False,
):
    """Writes a bundle: the model's parts as a SavedModel and ONNX files, a manifest, and a README for who receives it.

    `saved_model/` has the signatures `encode`, `decode`, `reconstruct` (the default) and `score`; `encoder.onnx`, `decoder.onnx`,
    `autoencoder.onnx` and `score.onnx` compute the same. `score` is each example's reconstruction loss, summed over features; for a
    variational model it is the negative evidence lower bound at `z = z_mean`, in nats. Inputs and outputs have names: `x`, `z` (`z_mean`
    and `z_log_var` where a variational encoder gives them), `reconstruction`, `score`. All parts are deterministic: a variational
    reconstruction goes through `z_mean`, and `sample` and `sample.onnx`, which only models with a prior have, take their noise as an
    input (the signature `sample_from_seed` takes a seed). A model in mixed precision is exported in float32.

    Before the bundle is moved into its place, every part in every format is run in another process, where Keras and kerasae can't be
    imported, at batch sizes 1 and 7, and compared with Keras on the CPU: `max |difference| / max |reference|` of every output must not
    exceed `tolerance`.

    A fitted estimator of `kerasae.tasks` is written as what its methods compute, from the raw input to the answer, scaling included,
    such as the signature `score_samples` and `score_samples.onnx` of an `AnomalyDetector`, and compared with those methods.

    Args:
        model: kerasae model, trained or not; or a fitted estimator of `kerasae.tasks`, or scikit-learn pipeline of scalers and one,
            for which `image_input`, `variants` and `calibration` don't apply.
        folder: where the bundle goes; a new or empty folder.
        formats: which of `"saved_model"`, `"onnx"` and `"litert"` (`encoder.tflite` and so on, where TensorFlow's converter
            works; it needs the extra `kerasae[litert]`). Default: the first two.
        opset: of ONNX, 13 to 25.
        image_input: `"uint8"` for parts that take images of 0 to 255 and divide them by 255 themselves, for a model of
            images in [0, 1]. Default: what the model was trained on: where it has a `preparation`, as those of `kerasae train` have,
            the parts take data from before it, a table's own numbers or a photo's bytes.
        batch_size: the only one that the parts take, for runtimes that need a fixed size. Default: any.
        variants: further ONNX files of encoder, decoder and autoencoder in lower precision, `encoder.float16.onnx` and so on:
            `"float16"` (half the size; needs the extra `kerasae[float16]`), `"int8_dynamic"` (the weights of dense layers; convolutions
            stay in float32), `"int8_static"` (all layers; the least exact). What each does to reconstruction error, size and latency is
            measured and written to the manifest; no tolerance applies.
        calibration: examples from the training set, `(n, *input_shape)`, as the parts take them, on which `"int8_static"` measures the
            ranges of activations; up to 256 are used.
        x: real examples for the check, `(n, *input_shape)`, as the parts take them; 8 are used, or `batch_size`. Of a data frame the
            columns are taken by name, where the model was trained on named ones. Variants are measured on up to 256 of them. Default:
            those of `calibration`, else random ones, from 0 to 1 where the model needs that, else standard normal. For a model with
            several inputs both are a list, or a dict by the inputs' names; the first input is called `x` in the bundle, the others keep
            their names.
        tolerance: of the check, at least 0, relative to the largest value; LiteRT is allowed 10 times as much.
        replace: whether a bundle that `folder` holds, and nothing else, is replaced, once the new one is ready.

    Returns:
        The manifest, the dict in `manifest.json`: `family`, `parts` with their ports, `preprocessing`, `preparation` (what the parts do
            to examples, such as a table's columns with their offsets and scales, and what must be done `before`), `score` (its
        `definition`, `unit` and `direction`), `examples` (if `x` is given: quantiles of the scores and codes of up to
        256), `onnx`, `precision`, `parity` (`tolerance`, `max_relative_difference`, and `measured`, the differences by
        part, format, batch size and output), `variants`, `versions`, `files`.

    Raises:
        ValueError: before any work, on a model of another kind, an unknown format or opset, examples that don't fit,
            a package that is missing, columns whose digits a format can't hold, and a folder that can't be written or holds anything but,
            with `replace`, a bundle.
        ExportError: where a part can't be converted, does not run without Keras, or computes something else; it names
            the part and by how much. What was in `folder` is as it was.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=2, hidden_units=(32,))
    manifest = kerasae.export.export(model, "vae_bundle")
    manifest["parity"]["max_relative_difference"]
    ```
    """
    if hasattr(model, "named_steps"):
        model = pipelines.estimator_of(model)
    is_estimator = not isinstance(model, keras.Model)
    if not hasattr(model, "functions"):
        raise ValueError(
            "`model` must be a kerasae model, such as kerasae.models.Autoencoder(encoder, decoder) or what "
            "keras.saving.load_model returns for one, or a fitted estimator of kerasae.tasks. "
            f"Received: {model!r}"
        )
    if is_estimator and (image_input is not None or variants or calibration is not None):
        raise ValueError("`image_input`, `variants` and `calibration` are for models, and this is an estimator.")
    formats = formats if isinstance(formats, (list, tuple)) else (formats,)
    formats = tuple(dict.fromkeys(checks.choice(name, "formats", FORMATS) for name in formats))
    if not formats:
        raise ValueError(f"`formats` must name at least one of {list(FORMATS)}. Received none.")
    if "litert" in formats:
        litert_files.check_runtime()
    opset = _check_opset(opset)
    tolerance = checks.real_number(tolerance, "tolerance", minimum=0)
    image_input = _check_image_input(image_input, model)
    if "litert" in formats:
        litert_files.check_digits(model)
    if batch_size is not None:
        batch_size = checks.positive_int(batch_size, "batch_size")
        own = None if is_estimator else model.encoder.inputs[0].shape[0]
        if own not in (None, batch_size):
            raise ValueError(f"The model has a fixed batch of {own}. `batch_size` must be that. Received: {batch_size}")
    parts_as_asked = functools.partial(
        parts_of, image_input=image_input, batch_size=batch_size, float64="litert" not in formats
    )
    encoder = parts_as_asked(model)[0]
    variants = _check_variants(variants, formats, calibration)
    own = getattr(model, "preparation", None)
    # A codec takes no table.
    columns = getattr(model, "_columns", lambda: None)() if own is None else own.columns
    x, calibration = (
        checks.by_columns(given, columns, name) for given, name in ((x, "x"), (calibration, "calibration"))
    )
    if calibration is not None:
        calibration = _spread(parity.check_inputs(model.arranged(calibration), encoder, "calibration"))
    are_given = x is not None or calibration is not None
    if is_estimator:
        examples = many_examples = {encoder.inputs[0].name: _examples_for(model, encoder, x)}
    else:
        given = calibration if x is None else parity.check_inputs(model.arranged(x), encoder, "x")
        examples = parity.check_examples(given, encoder)
        many_examples = examples if given is None else _spread(given)
    try:
        with writing.folder(folder, runtime.files_of if replace else None) as bundle:
            original = model
            model, policies = (original, []) if is_estimator else in_float32(original)
            parts = parts_as_asked(model)
            metadata = {"producer": "kerasae", "family": type(model).__name__, "kerasae_version": kerasae.__version__}
            _write_parts(parts, formats, opset, metadata, variants, calibration, bundle)
            _logger.info("Running the files in a process without Keras")
            inputs = parity.batches(parts, examples)
            expected = parity.references(parts, inputs)
            outputs = parity.replay(parts, inputs, bundle, formats, bundle.parent / "replay")
            tolerances = dict.fromkeys(formats, tolerance)
            if "litert" in formats:
                tolerances["litert"] = litert_files.TOLERANCE_FACTOR * tolerance
            measured = parity.compare(parts, expected, outputs, tolerances)
            score = None
            if not is_estimator:
                definition, unit = model.score_meaning
                score = {"definition": definition, "unit": unit, "direction": "higher: less like the training data"}
            manifest = {
                "format": runtime.FORMAT,
                "format_version": runtime.FORMAT_VERSION,
                "family": metadata["family"],
                "formats": list(formats),
                "parts": [manifests.describe(part, formats, bundle) for part in parts],
                **manifests.preparation(model, parts),
                "score": score,
                "examples": manifests.statistics(parts, many_examples) if are_given and not is_estimator else None,
                "onnx": {"opset": opset, "ir_version": onnx_files.IR_VERSION} if "onnx" in formats else None,
                "variants": None,
                "precision": manifests.precision(parts_as_asked(original), policies, inputs, expected),
                "parity": {
                    "measure": "max |difference| / max |reference|, the reference being Keras on the CPU",
                    "process": "fresh; keras and kerasae not importable, nor tensorflow for ONNX and LiteRT",
                    "examples": "given" if are_given else "generated",
                    "batch_sizes": list(parity.batch_sizes(parts[0])),
                    "tolerance": tolerances,
                    "max_relative_difference": max(row["relative_difference"] for row in measured),
                    "measured": measured,
                },
                "versions": manifests.versions(),
            }
            if variants:
                _logger.info("Measuring the files in lower precision")
                manifest["variants"] = manifests.measure_variants(
                    parts, variants, many_examples, are_given, bundle, bundle.parent / "variants"
                )
            (bundle / "request.json").write_text(json.dumps(manifests.request(parts[0])) + "\n", encoding="utf-8")
            (bundle / "README.md").write_text(readme(manifest), encoding="utf-8")
            manifest["files"] = manifests.files(bundle)
            (bundle / "manifest.json").write_text(
                json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"The bundle could not be written, and {folder} is as it was: {error}") from error
    return manifest


def _examples_for(estimator, part, x):
    """Examples for the check of an estimator's parts: `x`'s own, repeated if they are few, or ones like what it was fitted on."""
    port, num_examples = part.inputs[0], sum(parity.batch_sizes(part))
    if x is None:
        x = estimator.made_up_examples(num_examples)
        return (x if part.preparation is None else part.preparation.stored(x)).astype(port.dtype)
    x = np.asarray(checks.plain(x))
    if port.dtype == "uint8" and x.dtype != np.uint8:
        raise ValueError(f"`x` must hold the bytes of images, as this estimator was fitted to. Received: {x.dtype}")
    x = x.astype(port.dtype)
    # NaN may be a missing value: the estimator's own method, which answers first, refuses it where it isn't.
    checks.array(np.nan_to_num(x), port.shape[1:], name="x")
    return x[np.arange(num_examples) * max(1, len(x) // num_examples) % len(x)]


def _check_variants(variants, formats, calibration):
    variants = variants if isinstance(variants, (list, tuple)) else (variants,)
    variants = tuple(dict.fromkeys(checks.choice(name, "variants", variant_files.VARIANTS) for name in variants))
    if variants and "onnx" not in formats:
        raise ValueError(f'`variants` are ONNX files, and `formats` has no "onnx". Received: {list(formats)}')
    if ("int8_static" in variants) != (calibration is not None):
        raise ValueError(
            "The variant 'int8_static' and `calibration` go together: it measures the ranges of activations on those "
            f"examples. Received variants: {list(variants)}, and calibration "
            f"{'None' if calibration is None else 'given'}"
        )
    variant_files.check_tools(variants)
    return variants


def _spread(examples):
    """At most so many examples, `{port: array}`, as variants are measured on, from all over."""
    count = variant_files.num_examples(examples)
    rows = np.linspace(0, count - 1, min(count, variant_files.MAX_EXAMPLES)).astype(int)
    return {name: array[rows] for name, array in examples.items()}


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


def _write_parts(parts, formats, opset, metadata, variants, calibration, bundle):
    """The files of all parts in all formats."""
    functions = {part.name: part.traced() for part in parts}
    if "saved_model" in formats:
        _logger.info("Writing the SavedModel")
        _write_saved_model(parts, functions, bundle / "saved_model")
    if "onnx" in formats:
        ranges = dict.fromkeys(variant_files.PARTS, calibration)
        if calibration is not None:
            ranges["decoder"] = {"z": variant_files.first_output(parts[0], calibration)}
        for part in (part for part in parts if part.is_in("onnx")):
            _logger.info("Converting the %s to ONNX", part.name)
            converted = onnx_files.convert(part, functions[part.name], opset, metadata)
            for variant in variants if part.name in variant_files.PARTS else ():
                lowered = variant_files.convert(converted, variant, part, metadata, ranges[part.name])
                onnx_files.save(lowered, bundle / variant_files.file_name(part, variant))
            onnx_files.save(converted, bundle / f"{part.name}.onnx")
    if "litert" in formats:
        for part in (part for part in parts if part.is_in("litert")):
            _logger.info("Converting the %s to LiteRT", part.name)
            (bundle / f"{part.name}.tflite").write_bytes(litert_files.convert(part, functions[part.name]))


def _write_saved_model(parts, functions, path):
    module = tf.Module()
    used = [variable for function in functions.values() for variable in function.get_concrete_function().variables]
    module.variables_of_parts = list({id(variable): variable for variable in used}.values())
    signatures = {part.signature: functions[part.name] for part in parts}
    # What TensorFlow Serving calls where a request names none.
    signatures["serving_default"] = functions.get("autoencoder", functions[parts[0].name])
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except (AssertionError, ValueError, TypeError) as error:
        raise ExportError(f"The model can't be written as a SavedModel: {error}") from error

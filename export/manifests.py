"""What a bundle's manifest says of its parts, examples and files."""

import contextlib
import importlib.metadata
import platform
from dataclasses import asdict

import numpy as np

import kerasae
from kerasae import writing
from kerasae.export import onnx_files, parity
from kerasae.export import variants as variant_files

_PACKAGES = ("keras", "tensorflow", "numpy", "onnx", "tf2onnx", "onnxruntime", "onnxconverter-common", "ai-edge-litert")


def describe(part, formats, bundle):
    """A part's entry in the manifest of a bundle, whose files are there; `data` is that of an ONNX file's large constants."""
    onnx = None
    if "onnx" in formats and part.is_in("onnx"):
        onnx = {"file": f"{part.name}.onnx"}
        if (bundle / (data := onnx_files.data_of(onnx["file"]))).exists():
            onnx["data"] = data
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
        "litert": {"file": f"{part.name}.tflite"} if "litert" in formats and part.is_in("litert") else None,
        "onnx": onnx,
        **ports,
    }


def preparation(model, parts):
    """What is done to examples, in the graph and before it: the sentence `preprocessing` and the object `preparation`."""
    deployed, own = parts[0].preparation, getattr(model, "preparation", None)
    of_estimator = getattr(model, "deployed_preparation", None)
    if of_estimator is None and own is None and deployed is None:
        return {"preprocessing": "none: as in training", "preparation": None}
    before = [] if own is None and deployed is None else (deployed or own).before()
    if of_estimator is not None:
        facts, done = of_estimator(), "none: the parts scale examples themselves"
        if own is not None:  # which came first, and knows the columns
            facts |= {"columns": own.columns and list(own.columns)}
        if deployed is not None:
            facts["divided_by"], facts["takes"] = deployed.scale[0], deployed.takes
    else:
        facts = (deployed or own).to_dict()
        done = "none: as in training"
        if deployed is not None and deployed.takes == "uint8" and deployed.scaling == "pixels":
            done = "none: the parts divide by 255 themselves"
        elif deployed is not None and deployed.scaling != "pixels":
            done = f"none: the parts scale {'the columns' if deployed.kind == 'table' else 'examples'} themselves"
    if before:
        done += f"; before that an example must be {'; '.join(before)}"
    return {"preprocessing": done, "preparation": {**facts, "before": before}}


def statistics(parts, examples):
    """Quantiles of the scores and codes of the given examples, to compare new ones with."""
    score = next(part for part in parts if part.name == "score")
    codes = variant_files.first_output(parts[0], examples)
    scores = variant_files.first_output(score, examples)
    return {
        "count": variant_files.num_examples(examples),
        "score_quantiles": {str(q): float(np.quantile(scores, q)) for q in (0.01, 0.05, 0.5, 0.95, 0.99)},
        "code_quantiles": {str(q): np.quantile(codes, q, axis=0).tolist() for q in (0.01, 0.5, 0.99)},
    }


def measure_variants(parts, variants, examples, are_given, bundle, workspace):
    files, errors = variant_files.measure(parts, variants, examples, bundle, workspace)
    prepared = parts[0].preparation
    in_units = "" if prepared is None or prepared.units is None else " in units of the scale"
    return {
        "examples": variant_files.num_examples(examples),
        "given": are_given,
        "reconstruction_error": {
            "definition": f"sum_i (x_i - r_i)^2{in_units}, mean over the examples, of autoencoder.onnx and its variants",
            **errors,
        },
        "relative_difference": "max |difference| / max |reference|, the reference being the float32 file",
        "latency": "median of a run in ONNX Runtime on one thread of this machine, by batch size; ratio to float32",
        "machine": platform.processor() or platform.machine(),
        "files": files,
    }


def precision(parts, policies, inputs, expected):
    """The precision the model computes in, and how far its answers are from those of its float32 export."""
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


def request(part):
    """A made-up example as a request for TensorFlow Serving, which other clients read too."""
    inputs, random = {}, np.random.default_rng(0)
    for port in part.inputs:
        shape = [size or free for size, free in zip(port.shape, [1, *[8] * len(port.shape)], strict=False)]
        if "int" in port.dtype:
            x = random.integers(0, 256 if port.dtype == "uint8" else 2, shape)
        else:
            x = parity.made_up(part, port, shape, random).round(3)
        inputs[port.name] = x.tolist()
    signature = "reconstruct" if part.name == "encoder" else part.signature
    return {"signature_name": signature, "inputs": inputs}


def versions():
    """`{name: version}` of what wrote the bundle."""
    found = {name: version for name in _PACKAGES if (version := _version(name))}
    return {"kerasae": kerasae.__version__, "python": platform.python_version(), **found}


def _version(package):
    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def files(bundle):
    """`{path: {"bytes", "sha256"}}` of every file; the manifest, which holds this, comes later."""
    return {
        path.relative_to(bundle).as_posix(): {"bytes": path.stat().st_size, "sha256": writing.sha256(path)}
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }

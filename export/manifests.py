"""What a bundle's manifest says of its parts, examples and files."""

import contextlib
import importlib.metadata
import platform
from dataclasses import asdict

import numpy as np

import kerasae
from kerasae import writing
from kerasae.export import parity
from kerasae.export import variants as variant_files

_PACKAGES = ("keras", "tensorflow", "numpy", "onnx", "tf2onnx", "onnxruntime", "onnxconverter-common", "ai-edge-litert")


def describe(part, formats):
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
        "litert": {"file": f"{part.name}.tflite"} if "litert" in formats and part.is_in("litert") else None,
        "onnx": {"file": f"{part.name}.onnx"} if "onnx" in formats and part.is_in("onnx") else None,
        **ports,
    }


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


def measure_variants(parts, variants, examples, are_given, image_input, bundle, workspace):
    def prepare(x):
        return x / np.float32(255) if image_input else x

    files, errors = variant_files.measure(parts, variants, examples, prepare, bundle, workspace)
    return {
        "examples": variant_files.num_examples(examples),
        "given": are_given,
        "reconstruction_error": {
            "definition": "sum_i (x_i - r_i)^2, mean over the examples, of autoencoder.onnx and its variants",
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
            x = (random.random(shape) if port.value_range else random.standard_normal(shape)).round(3)
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

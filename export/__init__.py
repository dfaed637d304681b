"""Export: a trained autoencoder as files that run where Keras does not exist, proved to compute the same thing.

`kerasae.export.bulk` runs such files over large data. What needs TensorFlow is imported when it is first used: running a bundle does not.
"""

import importlib

_HOMES = {
    "DEFAULT_FORMATS": "bundle",
    "DEFAULT_OPSET": "onnx_files",
    "ExportError": "parts",
    "FORMATS": "bundle",
    "VARIANTS": "variants",
    "export": "bundle",
    "page": "running.webpage",
}

__all__ = ["bulk", *_HOMES]


def __getattr__(name):
    if name in _HOMES:
        value = getattr(importlib.import_module(f"kerasae.export.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name == "bulk":
        return importlib.import_module("kerasae.export.bulk")
    raise AttributeError(f"module 'kerasae.export' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)

"""Export: a trained autoencoder as files that run where Keras does not exist, proved to compute the same thing."""

from kerasae.export.bundle import DEFAULT_FORMATS, FORMATS, export
from kerasae.export.onnx_files import DEFAULT_OPSET
from kerasae.export.parts import ExportError
from kerasae.export.variants import VARIANTS
from kerasae.export.webpage import page

__all__ = ["DEFAULT_FORMATS", "DEFAULT_OPSET", "FORMATS", "VARIANTS", "ExportError", "export", "page"]

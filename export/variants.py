"""ONNX files in lower precision, and what that costs and gains."""

import contextlib
import logging
import tempfile
from pathlib import Path

import numpy as np

from kerasae.export import onnx_files
from kerasae.export.parts import ExportError

VARIANTS = ("float16", "int8_dynamic", "int8_static")
# The score sums hundreds of squares, which half precision can't, and `sample` is the decoder.
PARTS = ("encoder", "decoder", "autoencoder")
MAX_EXAMPLES = 256


def convert(model, variant, part, metadata, examples):
    """A part in lower precision; ports stay as they are.

    Args:
        model: its `onnx.ModelProto` in float32; not changed.
        variant: `"float16"`: weights and arithmetic in half precision; `"int8_dynamic"`: the weights of dense layers as
            8-bit integers, one scale an output, activations quantised as they come; `"int8_static"`: all layers, with
            the activations' ranges measured beforehand.
        part: `Part`.
        metadata: as in `onnx_files.convert`.
        examples: the part's inputs that the ranges are measured on, `(n, ...)`; only for `"int8_static"`.

    Returns:
        `onnx.ModelProto`, checked.
    """
    import onnx

    source = onnx.ModelProto()
    source.CopyFrom(model)
    try:
        if variant == "float16":
            from onnxconverter_common import float16

            converted = float16.convert_float_to_float16(source, keep_io_types=True)
        else:
            converted = _quantized(source, variant, part, examples)
    except Exception as error:  # the tools fail in many ways
        raise ExportError(
            f"The {part.name} can't be converted to {variant}: {type(error).__name__}: {error}"
        ) from error
    onnx_files.finish(converted, part, {**metadata, "precision": variant})
    return converted


def _quantized(model, variant, part, examples):
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "quantized.onnx"
        if variant == "int8_dynamic":
            # Convolutions quantised so are 10 to 30 times slower: ONNX Runtime has no fast kernel for ConvInteger.
            quantization.quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], per_channel=True)
        else:
            quantization.quantize_static(model, path, _Reader(part, examples), per_channel=True)
        return onnx.load(path)


def _Reader(part, examples):  # noqa: N802
    """Batches for onnxruntime's calibration."""
    from onnxruntime.quantization import CalibrationDataReader

    size = part.inputs[0].shape[0] or 32
    feeds = ({part.inputs[0].name: batch} for batch in batches(examples, size))

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    return Reader()


def batches(examples, size):
    """Whole batches, the last one filled up from the start."""
    rows = np.arange(-(-len(examples) // size) * size) % len(examples)
    return [examples[rows[start : start + size]] for start in range(0, len(rows), size)]


@contextlib.contextmanager
def _without_advice():
    """onnxruntime's quantiser logs, at the root, that one might preprocess; here shapes are known already."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""LiteRT files (`.tflite`), for phones and small devices."""

import importlib.util
import tempfile
from pathlib import Path

import tensorflow as tf

from kerasae import preparation
from kerasae.export.parts import ExportError

# LiteRT's kernels add up in another order.
TOLERANCE_FACTOR = 10


def check_runtime():
    """Raises unless the interpreter that the check needs is installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ValueError(
            "The format 'litert' needs the package ai-edge-litert, which runs the files to check them: "
            "pip install 'kerasae[litert]'"
        )


def check_digits(model):
    """Raises if a model or an estimator takes numbers that the float32 of LiteRT can't hold."""
    scales = getattr(model, "lost_digits", None) or getattr(model.preparation, "lost_digits", None)
    lost = {} if scales is None else scales(preparation.TOO_MUCH)
    if lost:
        raise ValueError(
            f"LiteRT takes float32, which loses digits of {len(lost)} columns: {preparation.in_words(lost)}. Subtract a constant from "
            "them before training, such as the first day of a time, or leave 'litert' out of `formats`: the others take float64."
        )


def convert(part, function):
    """A part as the bytes of a LiteRT file with the part's signature, of built-in operators only.

    Args:
        part: `Part`.
        function: its traced `tf.function`.

    Raises:
        ExportError: where TensorFlow's converter fails, or would need operators that phones lack.
    """
    module = tf.Module()
    module.variables_of_part = list(function.get_concrete_function().variables)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "saved_model")
            tf.saved_model.save(module, path, signatures={part.signature: function})
            converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=[part.signature])
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            return converter.convert()
    except OSError:
        raise
    except Exception as error:  # the converter fails in many ways
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        needed = [line.strip() for line in lines if "Flex ops:" in line]
        way_out = "Replace those operations, or leave 'litert' out of `formats`."
        if "TensorList" in str(error):  # what a loop over time keeps its steps in
            way_out = "Recurrent layers are converted for a batch of one alone: pass batch_size=1 (--batch-size 1)."
            lines, needed = ["its recurrent layers take a batch of any size"], []
        raise ExportError(
            f"The {part.name} can't be converted to LiteRT: {'; '.join(needed) or lines[0]}. {way_out}"
        ) from error

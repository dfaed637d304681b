"""Proof that the files compute what the model computes: they run in a process without Keras, and are compared with Keras here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasae import checks
from kerasae.export.parts import ExportError

BATCH_SIZES = (1, 7)


def check_examples(given, part):
    """Examples for the check, one batch after another: given ones, repeated if they are few, or generated ones.

    Args:
        given: the user's, of `check_inputs`; or `None`.
        part: `Part` that takes them.

    Returns:
        `{port: array}`, `(sum(batch_sizes(part)), ...)`.

    Raises:
        ValueError: if they are needed and missing.
    """
    num_examples, random = sum(batch_sizes(part)), np.random.default_rng(0)
    if given is not None:
        available = len(given[part.inputs[0].name])
        rows = np.arange(num_examples) * max(1, available // num_examples) % available
        return {name: array[rows] for name, array in given.items()}
    examples = {}
    for port in part.inputs:
        is_number = port.dtype == "uint8" or "float" in port.dtype
        if None in port.shape[1:] or not is_number:
            raise ValueError(
                f"The check needs examples of shape {tuple(port.dims)} and type {port.dtype}, and can't make them up. "
                "Pass a few as `x`."
            )
        shape = (num_examples, *port.shape[1:])
        if port.dtype == "uint8":
            examples[port.name] = random.integers(0, 256, shape, dtype="uint8")
        else:
            drawn = made_up(part, port, shape, random)
            if port.missing:
                drawn[random.random(shape) < 0.2] = np.nan
            examples[port.name] = drawn.astype(port.dtype)
    return examples


def made_up(part, port, shape, random):
    """Random numbers that a part may take in a port, as float64: from 0 to 1 where it needs that, else standard normal, as stored."""
    preparation = part.preparation if port.name == "x" else None
    in_range = port.value_range or (preparation is not None and preparation.scaling == "minmax")
    drawn = random.random(shape) if in_range else random.standard_normal(shape)
    return drawn if preparation is None else preparation.stored(drawn).astype("float64")


def check_inputs(values, part, name):
    """`{port: array}` in the types of a part's inputs; raises ValueError where an array does not fit its port.

    Args:
        values: an array, or a list of them for a part with several inputs.
        part: `Part`.
        name: what errors call it.
    """
    if len(part.inputs) == 1:
        return {part.inputs[0].name: check_array(values, part.inputs[0], name)}
    arrays = checks.inputs(values, {port.name: port.shape[1:] for port in part.inputs}, name)
    return {
        port.name: check_array(array, port, f"{name}, input {port.name!r}")
        for port, array in zip(part.inputs, arrays, strict=True)
    }


def check_array(x, port, name):
    """`x` in a port's type; raises ValueError where it does not fit the port."""
    x = checks.array(x, port.shape[1:], name=name, unit_interval=port.value_range == (0.0, 1.0), missing=port.missing)
    converted = x.astype(port.dtype, copy=False)
    if "int" in port.dtype and not np.array_equal(converted, x):
        raise ValueError(
            f"`{name}` must hold whole numbers of type {port.dtype}, such as images before they are scaled. "
            f"Received: {x.dtype}, from {x.min():g} to {x.max():g}"
        )
    return converted


def batch_sizes(part):
    """The batch sizes that are tried: the only one there is, or two."""
    size = part.inputs[0].shape[0]
    return BATCH_SIZES if size is None else (size,)


def batches(parts, examples):
    """`{part: {batch size: {port: array}}}`: inputs of every part, from `{port: array}`; the decoder's are codes of these examples."""
    inputs, start, random = {part.name: {} for part in parts}, 0, np.random.default_rng(1)
    for size in batch_sizes(parts[0]):
        batch = {name: array[start : start + size] for name, array in examples.items()}
        start += size
        # On the CPU, where float32 is float32: a GPU may multiply in TF32.
        with tf.device("/CPU:0"):
            codes = np.asarray(parts[0].reference(*batch.values())[0])
        values = {
            **batch,
            "z": codes,
            "noise": random.standard_normal(codes.shape).astype(codes.dtype),
            "num_samples": np.int32(size),
            "seed": np.array([size, 1], "int32"),
        }
        for part in parts:
            inputs[part.name][size] = {port.name: values[port.name] for port in part.inputs}
    return inputs


def references(parts, inputs):
    """`{part: {batch size: {port: array}}}`: what the model answers, in Keras, on the CPU.

    Raises:
        ExportError: if it answers NaN or infinity.
    """
    answers = {}
    for part in parts:
        answers[part.name] = {}
        for size, feed in inputs[part.name].items():
            with tf.device("/CPU:0"):
                outputs = part.reference(*feed.values())
            outputs = {port.name: np.asarray(output) for port, output in zip(part.outputs, outputs, strict=True)}
            for name, output in outputs.items():
                if not np.isfinite(output.astype("float64")).all():
                    raise ExportError(f"The model's {part.name} gives NaN or infinity in {name}: it can't be checked.")
            answers[part.name][size] = outputs
    return answers


def replay(parts, inputs, bundle, formats, workspace):
    """Runs every file of a bundle in a fresh process.

    Args:
        parts: list of `Part`.
        inputs: of `batches`.
        bundle: folder with the files.
        formats: which formats it holds.
        workspace: empty folder for what goes to and from the process.

    Returns:
        `{(format, part, batch size): {port: array}}`.

    Raises:
        ExportError: if a file can't be loaded or run; names the part and the format.
    """
    task = {
        "bundle": str(bundle),
        "parts": [
            {
                "name": part.name,
                "formats": [form for form in formats if part.is_in(form)],
                "batch_sizes": list(inputs[part.name]),
                "signature": part.signature,
                "inputs": [port.name for port in part.inputs],
                "outputs": [port.name for port in part.outputs],
            }
            for part in parts
        ],
        "measured_files": [],
    }
    arrays = {
        f"{part}.{size}.{name}": array
        for part, sizes in inputs.items()
        for size, feed in sizes.items()
        for name, array in feed.items()
    }
    _, answers = run_alone(task, arrays, workspace)
    outputs = {}
    for key, answer in answers.items():
        kind, part, size, name = key.split(".")
        outputs.setdefault((kind, part, int(size)), {})[name] = answer
    return outputs


def run_alone(task, arrays, workspace):
    """Runs `replay.py` on a task; `(its result, {key: array})`.

    Raises:
        ExportError: if a file can't be loaded or run; names the part and the format.
    """
    workspace.mkdir()
    (workspace / "task.json").write_text(json.dumps(task))
    np.savez(workspace / "inputs.npz", **arrays)
    process = subprocess.run(
        # -P: the script's own folder is no place to import from.
        [sys.executable, "-P", str(Path(__file__).with_name("replay.py")), str(workspace)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise ExportError(
            f"The process that checks the files ended with status {process.returncode}:\n{process.stderr[-2000:]}"
        )
    result = json.loads((workspace / "result.json").read_text())
    if result["present"]:
        raise ExportError(f"The files were checked beside {result['present']}, which they should run without.")
    if result["errors"]:
        lines = [f"{error['part']} as {error['format']}: {error['error']}" for error in result["errors"]]
        raise ExportError("Written files don't run without Keras:\n" + "\n".join(lines))
    with np.load(workspace / "outputs.npz") as file:
        return result, dict(file)


def compare(parts, expected, outputs, tolerance):
    """Differences between what the files and the model answered; in units of the scale where a part gives back the data's own units.

    Args:
        parts: list of `Part`.
        expected: of `references`.
        outputs: of `replay`.
        tolerance: `{format: highest max |difference| / max |reference|}` of an output over a batch.

    Returns:
        List of `{"part", "format", "batch_size", "output", "max_difference", "max_reference", "relative_difference"}`.

    Raises:
        ExportError: on other names, shapes or types, and past the tolerance: which part and format, and by how much.
    """
    measured, failures, units = [], [], {part.name: part.units for part in parts}
    for (kind, part, size), answers in outputs.items():
        if set(answers) != set(expected[part][size]):
            raise ExportError(f"{part} as {kind} gives {sorted(answers)}, not {sorted(expected[part][size])}.")
        for name, reference in expected[part][size].items():
            answer = answers[name]
            where = f"{part} as {kind}, batch of {size}, {name}"
            if answer.shape != reference.shape or answer.dtype != reference.dtype:
                raise ExportError(f"{where}: {answer.dtype}{answer.shape}, not {reference.dtype}{reference.shape}.")
            difference, scale, relative = relative_difference(answer, reference, units[part](name))
            measured.append(
                {
                    "part": part,
                    "format": kind,
                    "batch_size": size,
                    "output": name,
                    "max_difference": difference,
                    "max_reference": scale,
                    "relative_difference": relative,
                }
            )
            if not relative <= tolerance[kind]:  # NaN fails too
                failures.append(
                    f"{where}: {relative:.1e}, above {tolerance[kind]:g} (differs by {difference:.1e}, where values reach "
                    f"{scale:.1e})"
                )
    if failures:
        raise ExportError(
            "The files don't compute what the model computes: max |difference| / max |reference| is above the "
            "tolerance in\n" + "\n".join(failures)
        )
    return measured


def relative_difference(answer, reference, units=None):
    """`(max |difference|, max |reference|, their ratio)`, as floats; no difference is 0, whatever the scale.

    With `units`, `(offset, scale)`, both are in them, or else a column's large offset would hide a difference; what the type rounds
    is none.
    """
    rounding = 0.0 if units is None else 2 * np.spacing(np.abs(reference)).astype("float64")
    answer, reference = answer.astype("float64"), reference.astype("float64")
    difference = np.maximum(np.abs(answer - reference) - rounding, 0.0)
    if units is not None:
        offset, scale = units
        difference, reference = difference / scale, (reference - offset) / scale
    difference, scale = float(difference.max()), float(np.abs(reference).max())
    return difference, scale, 0.0 if difference == 0 else difference / scale if scale else float("inf")

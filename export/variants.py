"""ONNX files in lower precision: how they are made, and how much less exact, smaller and faster they are."""

import contextlib
import importlib.util
import logging
import tempfile
from pathlib import Path

import numpy as np

from kerasae.export import onnx_files, parity
from kerasae.export.parts import PREPARATION, ExportError

VARIANTS = ("float16", "int8_dynamic", "int8_static")
# The score sums hundreds of squares, which half precision can't, and `sample` is the decoder.
PARTS = ("encoder", "decoder", "autoencoder")
MAX_EXAMPLES = 256
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


def check_tools(variants):
    """Raises unless what makes the variants is installed."""
    if "float16" in variants and importlib.util.find_spec("onnxconverter_common") is None:
        raise ValueError("The variant 'float16' needs the package onnxconverter-common: pip install 'kerasae[float16]'")


def convert(model, variant, part, metadata, examples):
    """A part in lower precision; ports stay as they are.

    Args:
        model: its `onnx.ModelProto` in float32; not changed.
        variant: `"float16"`: weights and arithmetic in half precision, except where a k-sparse model chooses its largest codes: of the
            rounded codes, exactly k are kept; `"int8_dynamic"`: the weights of dense layers as
            8-bit integers, one scale per output, activations quantised as they come; `"int8_static"`: all layers, with
            the activations' ranges measured beforehand. Examples are prepared in full precision: a table's own numbers may be large.
        part: `Part`.
        metadata: as in `onnx_files.convert`.
        examples: the part's inputs that the ranges are measured on, `{port: array}`; only for `"int8_static"`.

    Returns:
        `onnx.ModelProto`, checked.
    """
    import onnx

    if onnx_files.is_large(model):
        raise ExportError(
            f"The {part.name} is larger than 2 GiB, which the tools that make {variant} don't take. Leave it out of `variants`."
        )
    source = onnx.ModelProto()
    source.CopyFrom(model)
    try:
        if variant == "float16":
            converted = _in_float16(source)
        else:
            converted = _quantized(source, variant, part, examples)
    except Exception as error:  # the tools fail in many ways
        raise ExportError(
            f"The {part.name} can't be converted to {variant}: {type(error).__name__}: {error}"
        ) from error
    try:
        onnx_files.finish(converted, part, {**metadata, "precision": variant})
    except ExportError as error:
        raise ExportError(f"{error} This is its variant {variant!r}: leave that out of `variants`.") from error
    return converted


def _in_float16(model):
    import onnx
    from onnxconverter_common import float16

    def casts_to(dtype):
        return [
            (node.name, attribute)
            for node in model.graph.node
            if node.op_type == "Cast"
            for attribute in node.attribute
            if attribute.name == "to" and attribute.i == dtype
        ]

    kept = _selections(model.graph) | _preparing(model.graph)
    own = {name for name, _ in casts_to(onnx.TensorProto.FLOAT)} - kept
    model = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    # The tool takes the outputs of the model's own casts for float16, and leaves the casts as they are.
    for name, attribute in casts_to(onnx.TensorProto.FLOAT):
        if name in own:
            attribute.i = onnx.TensorProto.FLOAT16
    if kept:
        _share_casts(model.graph, kept)
    return model


def _preparing(graph):
    """Names of the nodes that prepare examples or give reconstructions back in the data's units."""
    return {node.name for node in graph.node if PREPARATION in node.name}


def _selections(graph):
    """Names of the nodes that choose the largest of some scores: `TopK`, and the comparisons of its values with the scores.

    They stay in float32. A runtime that computes float16 in float32 may leave out a rounding on the way to one of them and not to
    another: the k-th largest then differs from itself, and is lost.
    """
    names, todo = set(), []
    for node in graph.node:
        if node.op_type == "TopK":
            todo += [node.input[0], node.output[0]]
            names.add(node.name)
    while todo:
        tensor = todo.pop()
        for node in graph.node:
            if tensor in node.input and node.op_type in ("Slice", *_COMPARISONS) and node.name not in names:
                names.add(node.name)
                todo += node.output
    return names


def _share_casts(graph, in_float32):
    """Leaves no rounding between nodes that stay in float32, the graph's ports included, and one cast of each tensor that several take."""
    import onnx

    def casts(dtype):
        return {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Cast" and any(a.name == "to" and a.i == dtype for a in node.attribute)
        }

    down, up = casts(onnx.TensorProto.FLOAT16), casts(onnx.TensorProto.FLOAT)
    exact = {name for node in graph.node if node.name in in_float32 for name in node.output}
    exact |= {port.name for port in graph.input}
    ports = {port.name: port for port in graph.output}
    for node in graph.node:  # the tool lowers what such a node gives as an output of the graph, too
        if node.output[0] in ports.keys() & down.keys():
            del node.attribute[:], down[node.output[0]]
            node.op_type = "Identity"
            ports[node.output[0]].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    instead, first = {}, {}
    for output, source in up.items():
        instead[output] = down[source] if down.get(source) in exact else first.setdefault(source, output)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = instead.get(name, name)
    for outputs in (up, down):  # in this order: the first set frees some of the second
        used = {name for node in onnx_files.every_node(graph) for name in node.input} | ports.keys()
        for node in [node for node in graph.node if node.output[0] in outputs.keys() - used]:
            graph.node.remove(node)


def _quantized(model, variant, part, examples):
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "quantized.onnx"
        if variant == "int8_dynamic":
            # Convolutions quantised so are 10 to 30 times slower: ONNX Runtime has no fast kernel for ConvInteger.
            quantization.quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], per_channel=True)
        else:
            kept = list(_preparing(model.graph))
            quantization.quantize_static(model, path, _reader(part, examples), per_channel=True, nodes_to_exclude=kept)
        return onnx.load(path)


def measure(parts, variants, examples, bundle, workspace):
    """Runs the files of all variants, and those in float32, in a process without Keras.

    Args:
        parts: list of `Part`.
        variants: which there are.
        examples: `{port: array}`, as the encoder takes them.
        bundle: folder with the files.
        workspace: new folder for what goes to and from the process.

    Returns:
        `(files, reconstruction_error)`: a list of one dict per file, and `{"float32" or variant: mean squared error}`, summed over an
        example's features.

    Raises:
        ExportError: if a file does not run, or gives NaN or infinity; names it.
    """
    parts = [part for part in parts if part.name in PARTS]
    size = parts[0].inputs[0].shape[0]
    sizes = [size] if size else [1, 32]
    # float32 comes first of each part: the others are compared with it
    runs = [(part, variant, file_name(part, variant)) for part in parts for variant in ("float32", *variants)]
    task = {
        "bundle": str(bundle),
        "parts": [],
        "measured_files": [
            {"part": part.name, "file": name, "inputs": [port.name for port in part.inputs]} for part, _, name in runs
        ],
        "batch_sizes": sizes,
    }
    arrays = {
        name: np.concatenate([batch[name] for batch in batches({name: array}, sizes[-1])])
        for name, array in {**examples, "z": first_output(parts[0], examples)}.items()
    }
    result, outputs = parity.run_alone(task, arrays, workspace)
    files, errors = [], {}
    x, unit, preparation = examples["x"].astype("float64"), 1.0, parts[0].preparation
    if preparation is not None:
        x = preparation.invert(preparation.apply(examples["x"], missing=parts[0].inputs[0].missing)).astype("float64")
        unit = 1.0 if preparation.units is None else preparation.units[1]
    for number, ((part, variant, name), latency) in enumerate(zip(runs, result["latencies"], strict=True)):
        answer = {port.name: outputs[f"{number}.{port.name}"] for port in part.outputs}
        bad = [port for port, values in answer.items() if not np.isfinite(values).all()]
        if bad:
            raise ExportError(f"The {part.name} in {variant} gives NaN or infinity in {', '.join(bad)}.")
        bytes_ = (bundle / name).stat().st_size
        if variant == "float32":
            exact, exact_bytes, exact_latency = answer, bytes_, latency
        files.append(
            {
                "file": name,
                "part": part.name,
                "variant": variant,
                "bytes": bytes_,
                "bytes_ratio": bytes_ / exact_bytes,
                "relative_difference": {
                    port: parity.relative_difference(values, exact[port])[2] for port, values in answer.items()
                },
                "latency_ms": latency,
                "latency_ratio": {size: ms / exact_latency[size] for size, ms in latency.items()},
            }
        )
        if part.name == "autoencoder":
            squares = np.square((x - answer["reconstruction"][: len(x)]) / unit).reshape(len(x), -1)
            errors[variant] = float(np.nansum(squares, axis=1).mean())  # NaN where x misses a value
    return files, errors


def file_name(part, variant):
    return f"{part.name}.onnx" if variant == "float32" else f"{part.name}.{variant}.onnx"


def _reader(part, examples):
    """Batches for onnxruntime's calibration."""
    from onnxruntime.quantization import CalibrationDataReader

    feeds = iter(batches(examples, part.inputs[0].shape[0] or 32))

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    return Reader()


def first_output(part, examples):
    """What a part's first output is in Keras, such as the codes of examples, `{port: array}`."""
    size = part.inputs[0].shape[0] or 32
    outputs = [np.asarray(part.reference(*batch.values())[0]) for batch in batches(examples, size)]
    return np.concatenate(outputs)[: num_examples(examples)]


def batches(examples, size):
    """A list of whole batches of `{port: array}`, the last one filled up from the start."""
    count = num_examples(examples)
    rows = np.arange(-(-count // size) * size) % count
    return [
        {name: array[rows[start : start + size]] for name, array in examples.items()}
        for start in range(0, len(rows), size)
    ]


def num_examples(examples):
    return len(next(iter(examples.values())))


@contextlib.contextmanager
def _without_advice():
    """Silences the quantiser of onnxruntime, which advises in the root log to infer shapes first; here they are known already."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""ONNX files: converted by tf2onnx, then given their names, shapes and documentation, and checked."""

import contextlib
import logging
import math
import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from kerasae import keras_internals
from kerasae.export.parts import ExportError, is_random

MIN_OPSET, MAX_OPSET = 13, 25
# Run by ONNX Runtime in Python, on the web and in Node.js alike.
DEFAULT_OPSET = 21
# ONNX Runtime refuses the newest; this one belongs to opset 21.
IR_VERSION = 10
# tf2onnx writes opsets up to 18; newer ones are reached from 17 by onnx's own converter.
_MAX_CONVERTED, _LIFTED_FROM = 18, 17
# Constants from so many bytes on stay out of the conversion; more than the second go into a file of their own: protobuf's limit.
_LARGE_BYTES, _MAX_BYTES = 2**20, 2**31 - 2**20

_INSTEAD = {"Bitcast": "`keras.ops.argmax` and `argmin` are made of it, use `keras.ops.top_k(x, 1)`"}


def convert(part, function, opset, metadata):
    """A part as a checked ONNX model.

    Args:
        part: `Part`.
        function: its traced `tf.function`.
        opset: of the standard operators, 13 to 25.
        metadata: `{key: text}` for the file's `metadata_props`: `producer`, `family`, `kerasae_version`.

    Returns:
        `onnx.ModelProto`: the part's ports in order, a symbolic `batch`, standard operators only.

    Raises:
        ExportError: where tf2onnx, onnx's version converter or its checker fail; names the part, and the operator if
            it is one.
    """
    from onnx import version_converter

    constants = {}
    if any(_num_bytes(variable) >= _LARGE_BYTES for variable in function.get_concrete_function().variables):
        function, constants = _without_large_variables(part)
    model = _converted(part, function, opset if opset <= _MAX_CONVERTED else _LIFTED_FROM)
    if opset > _MAX_CONVERTED:
        try:
            model = version_converter.convert_version(model, opset)
        except Exception as error:  # a bare RuntimeError or worse
            raise ExportError(
                f"The {part.name} can't be lifted to ONNX opset {opset}: {error} Use one of at most {_MAX_CONVERTED}."
            ) from error
    finish(model, part, metadata, {**_captured(function.get_concrete_function()), **constants})
    return model


def save(model, path):
    """Writes an ONNX file; the large constants of one beyond protobuf's 2 GiB go into `<name>.data` beside it, and out of the model."""
    import onnx

    if is_large(model):
        onnx.save(model, path, save_as_external_data=True, location=data_of(path.name), size_threshold=_LARGE_BYTES)
    else:
        onnx.save(model, path)


def is_large(model):
    """Whether a model's constants don't fit into one ONNX file."""
    import onnx

    sizes = (
        math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in model.graph.initializer
    )
    return sum(sizes) > _MAX_BYTES


def data_of(name):
    """The name of the file with the large constants of an ONNX file, if it has one."""
    return f"{name}.data"


def finish(model, part, metadata, constants=None):
    """Gives a converted model its ports, names and documentation, and checks it; inputs of the names in `constants` become initializers."""
    import onnx

    model.ir_version = IR_VERSION
    ports = [port for port in model.graph.input if port.name in (constants or ())]
    for port in ports:
        model.graph.input.remove(port)
    _set_ports(model.graph.input, part, part.inputs)
    _set_ports(model.graph.output, part, part.outputs)
    # Shapes of inner tensors are optional, and tf2onnx's have other names for the batch.
    del model.graph.value_info[:]
    model.graph.name = part.name
    model.doc_string = model.graph.doc_string = f"{metadata['family']}, {part.name}: {part.meaning}."
    model.producer_name, model.producer_version = metadata["producer"], metadata["kerasae_version"]
    onnx.helper.set_model_props(model, {**metadata, "part": part.name})
    # The checker copies a model several times, so it sees constants as inputs, without their values.
    model.graph.input.extend(ports)
    _check(model, part)
    for port in ports:
        model.graph.input.remove(port)
        _add_constant(model.graph, port.name, constants[port.name].numpy())


def _converted(part, function, opset):
    """tf2onnx's model. It logs what it can't convert and writes an invalid model: here, each logged error is raised."""
    import tf2onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_internals.patch_tf2onnx()  # it warns of its own workaround
    failure = None
    with _logged_errors() as errors:
        try:
            model, _ = tf2onnx.convert.from_function(
                function, input_signature=function.input_signature, opset=opset, custom_op_handlers=_handlers()
            )
        except Exception as error:  # tf2onnx fails in many ways
            failure = error
    if not errors and failure is None:
        return model
    unsupported = dict(re.findall(r"Tensorflow op \[(.+?): (\w+)\] is not supported", "\n".join(errors)))
    reasons = []
    for node, operator in unsupported.items():
        instead = f" ({_INSTEAD[operator]} instead)" if operator in _INSTEAD else ""
        reasons.append(f"operator {operator} (at {node}) has no counterpart in ONNX{instead}")
    reasons = reasons or [error.strip().splitlines()[0] for error in errors] or [f"{type(failure).__name__}: {failure}"]
    raise ExportError(
        f"The {part.name} can't be converted to ONNX: {'. '.join(reasons)}. Replace it by operations that ONNX has, or "
        'export with formats=("saved_model",).'
    ) from failure


@contextlib.contextmanager
def _logged_errors():
    """A list of what tf2onnx logs as errors, while it is kept from logging anything elsewhere."""
    errors = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())
    logger = logging.getLogger("tf2onnx")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.handlers = [handler]
    try:
        yield errors
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


def _handlers():
    """Converters of operators that ONNX can express but tf2onnx doesn't convert: exact gelu, `log1p`, `expm1` (celu)."""
    import tf2onnx

    def handler(build):
        def convert_node(graph, node, name, _):
            source, output = node.input[0], node.output[0]
            shapes, dtypes = node.output_shapes, node.output_dtypes
            dtype = tf2onnx.utils.map_onnx_to_numpy_type(dtypes[0])
            graph.remove_node(name)
            one = graph.make_const(tf2onnx.utils.make_name(name), np.array(1, dtype)).output[0]
            kind, operands = build(lambda *call: graph.make_node(call[0], list(call[1:])).output[0], source, one)
            graph.make_node(kind, operands, outputs=[output], name=name, shapes=shapes, dtypes=dtypes)

        return convert_node, []

    return {
        "Erfc": handler(lambda make, x, one: ("Sub", [one, make("Erf", x)])),
        "Log1p": handler(lambda make, x, one: ("Log", [make("Add", one, x)])),
        "Expm1": handler(lambda make, x, one: ("Sub", [make("Exp", x), one])),
    }


def _without_large_variables(part):
    """A part as a traced `tf.function` that takes its large variables as further inputs, and these, `{name: variable}`.

    tf2onnx's optimiser takes some 40 times the size of the constants in a graph, and keeps it.
    """

    class Scope(keras.StatelessScope):
        def __init__(self, inputs=None):
            super().__init__()
            self.read, self.inputs = {}, inputs or {}

        def get_current_value(self, ref):
            # tf2onnx knows a recurrent layer by the constants in its loop.
            in_loop = hasattr(getattr(tf.compat.v1.get_default_graph(), "outer_graph", None), "outer_graph")
            if not in_loop and _num_bytes(ref) >= _LARGE_BYTES:
                self.read[id(ref)] = ref
                return self.inputs.get(id(ref))
            return super().get_current_value(ref)

    with Scope() as scope:
        part.traced()
    large = {f"constant_{i}": variable for i, variable in enumerate(scope.read.values())}
    specs = [tf.TensorSpec(variable.shape, variable.dtype, name=name) for name, variable in large.items()]

    @tf.function(input_signature=[*(port.signature for port in part.inputs), *specs], autograph=False)
    def function(*inputs):
        count = len(part.inputs)
        with Scope(dict(zip(scope.read, inputs[count:], strict=True))):
            return {port.name: y for port, y in zip(part.outputs, part.compute(*inputs[:count]), strict=True)}

    return function, large


def _num_bytes(variable):
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size


def _captured(concrete):
    """`{name: tensor}` of what a function captured besides variables, such as `Normalization`'s mean."""
    placeholders = concrete.inputs[len(concrete.inputs) - len(concrete.captured_inputs) :]
    return dict(zip([tensor.name for tensor in placeholders], concrete.captured_inputs, strict=True))


def _add_constant(graph, name, values):
    """Adds an initializer; one that is only transposed is stored as it is needed, as convolutions and quantisers want it."""
    import onnx

    nodes = [node for node in every_node(graph) if name in node.input]
    if len(nodes) == 1 and nodes[0].op_type == "Transpose" and nodes[0] in graph.node:
        (order,) = [list(attribute.ints) for attribute in nodes[0].attribute if attribute.name == "perm"] or [None]
        name, values = nodes[0].output[0], np.transpose(values, order)
        graph.node.remove(nodes[0])
    # Filled in its place: every copy is as large as the constant.
    tensor = graph.initializer.add(
        name=name, dims=values.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    )
    tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _set_ports(values, part, ports):
    """Order, shapes, symbolic names and documentation of a graph's inputs or outputs."""
    by_name = {value.name: value for value in values}
    if sorted(by_name) != sorted(port.name for port in ports):
        raise ExportError(
            f"The {part.name} as ONNX has ports {sorted(by_name)}, where {[port.name for port in ports]} were expected."
        )
    ordered = [by_name[port.name] for port in ports]
    for value, port in zip(ordered, ports, strict=True):
        tensor = value.type.tensor_type
        value.doc_string = port.meaning
        del tensor.shape.dim[:]
        for size in port.dims:
            tensor.shape.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})
    del values[:]
    values.extend(ordered)


def _check(model, part):
    """Raises unless the model is valid, deterministic, and made of standard operators."""
    import onnx

    nodes = list(every_node(model.graph))
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(f"The {part.name} as ONNX needs operators outside the standard: {foreign}")
    random = sorted({node.op_type for node in nodes if is_random(node.op_type)})
    if random:
        raise ExportError(f"The {part.name} as ONNX draws random numbers: {random}")
    for opset in [opset for opset in model.opset_import if opset.domain not in ("", "ai.onnx")]:
        model.opset_import.remove(opset)  # declared by tf2onnx, used by no node
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The {part.name} as ONNX fails onnx's checker: {str(error).strip()}.") from error


def every_node(graph):
    """Every node, those of branches and loop bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from every_node(inner)

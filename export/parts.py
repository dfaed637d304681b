"""What is exported of a model or an estimator: its functions, each with named ports, for one batch size and type of input."""

from dataclasses import dataclass, replace

import tensorflow as tf

from kerasae import keras_internals
from kerasae.functions import Function, Port

_OTHER_FLOATS = ("float16", "bfloat16", "float64")
# In the names of operators of TensorFlow and ONNX that draw random numbers, and the one name that says something else.
_RANDOM = ("Random", "Multinomial", "TruncatedNormal", "Stateful", "Rng", "Bernoulli")
_CALL = "StatefulPartitionedCall"


class ExportError(RuntimeError):
    """A model that can't be exported, or whose files don't compute what it computes."""


@dataclass(frozen=True)
class Part:
    """A `kerasae.functions.Function` as it is deployed.

    Args:
        function: what it computes.
        inputs, outputs: ports, in order, with the batch size that is wanted.
        divides: whether the first input are images of 0 to 255, to be divided by 255.
    """

    function: Function
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    divides: bool = False

    @property
    def name(self):
        """Of its ONNX file."""
        return self.function.file

    @property
    def signature(self):
        """Its name in the SavedModel."""
        return self.function.name

    @property
    def meaning(self):
        return self.function.meaning

    @property
    def seeded(self):
        """Whether it draws its noise from a seed among its inputs. Only TensorFlow can."""
        return self.function.seeded

    def is_in(self, form):
        """Whether a format holds this part."""
        return form == "saved_model" or not self.seeded

    def compute(self, *inputs):
        """From the inputs to the list of outputs: what is written to the files."""
        return self.function.compute(*self._prepared(*inputs))

    def reference(self, *inputs):
        """The same as the model itself answers, which is what the files are compared with."""
        return self.function.reference(*self._prepared(*inputs))

    def _prepared(self, x, *others):
        return (tf.cast(x, "float32") / 255.0 if self.divides else x), *others

    def traced(self):
        """`compute` as a traced `tf.function` with named inputs and outputs.

        Raises:
            ExportError: if it draws random numbers other than from its seed: a file would replay frozen noise, or be invalid.
        """

        @tf.function(input_signature=[port.signature for port in self.inputs], autograph=False)
        def function(*inputs):
            return {port.name: output for port, output in zip(self.outputs, self.compute(*inputs), strict=True)}

        graph = function.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        random = sorted(f"{node.op} (at {node.name})" for node in nodes if is_random(node.op))
        if random and not self.seeded:
            raise ExportError(
                f"The {self.name} draws random numbers at inference: {', '.join(random)}. A deployed part is "
                "deterministic: let the layer draw in training only."
            )
        return function


def is_random(operator):
    """Whether an operator of TensorFlow or ONNX draws random numbers, by its name."""
    return operator != _CALL and any(word in operator for word in _RANDOM)


def parts_of(model, image_input=None, batch_size=None):
    """The parts of a kerasae model or a fitted estimator: what its `functions` are, the first one served by default.

    Args:
        model: has `functions()`, of `{name: kerasae.functions.Function}`.
        image_input: `"uint8"` for parts that take images of 0 to 255 and divide by 255 themselves.
        batch_size: the only one, or `None` for any.

    Raises:
        ValueError: if the name of a further input can't be a port's; where an estimator's model computes in another precision than float32.
    """

    def batched(port):
        free = port.shape and port.shape[0] is None
        return replace(port, shape=(batch_size, *port.shape[1:])) if free and batch_size else port

    parts = []
    for function in model.functions().values():
        inputs, outputs = (tuple(map(batched, ports)) for ports in (function.inputs, function.outputs))
        if function.seeded:  # it is told how many
            outputs = function.outputs
        divides = image_input is not None and inputs[0].name == "x"
        if divides:
            inputs = replace(inputs[0], dtype=image_input, value_range=(0, 255)), *inputs[1:]
        parts.append(Part(function, inputs, outputs, divides))
    return parts


def in_float32(model):
    """The model with all its layers in float32, and what they were in.

    Args:
        model: kerasae model.

    Returns:
        `(model, policies)`: the model itself and `[]` if it computes in float32; else one rebuilt with the same
        weights, and the names of the other dtype policies.

    Raises:
        ExportError: if a layer can't be rebuilt from its config.
    """
    layers = [layer for network in (model.encoder, model.decoder) for layer in keras_internals.all_layers(network)]
    policies = sorted({layer.dtype_policy.name for layer in layers if layer.compute_dtype in _OTHER_FLOATS})
    if not policies:
        return model, []
    try:
        rebuilt = type(model).from_config(_config_in_float32(model.get_config()))
        rebuilt.set_weights(model.get_weights())
    except Exception as error:  # whatever a user's layer raises
        raise ExportError(
            f"The model computes in {', '.join(policies)}, is exported in float32, and could not be rebuilt so: {error}"
        ) from error
    return rebuilt, policies


def _config_in_float32(config):
    """A config with every policy of another floating-point type replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"]
            return "float32" if name.startswith("mixed_") or name in _OTHER_FLOATS else config
        return {
            key: "float32" if key == "dtype" and value in _OTHER_FLOATS else _config_in_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_config_in_float32(value) for value in config)
    return config

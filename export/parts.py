"""What is exported of a model or an estimator: its functions, each with named ports, for one batch size and type of input."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from kerasae import keras_internals
from kerasae.functions import Function, Port
from kerasae.preparation import Preparation

_OTHER_FLOATS = ("float16", "bfloat16", "float64")
# In the names of operators of TensorFlow and ONNX that draw random numbers, and the one name that says something else.
_RANDOM = ("Random", "Multinomial", "TruncatedNormal", "Stateful", "Rng", "Bernoulli")
_CALL = "StatefulPartitionedCall"
_BYTES = {"scaling": "pixels", "offset": (0.0,), "scale": (255.0,), "takes": "uint8"}
# In the names of the operators that prepare examples, and give reconstructions back in the data's units.
PREPARATION = "kerasae_preparation"
_IN_UNITS = "in the units of the data that the model was trained on"


class ExportError(RuntimeError):
    """A model that can't be exported, or whose files don't compute what it computes."""


@dataclass(frozen=True)
class Part:
    """A `kerasae.functions.Function` as it is deployed.

    Args:
        function: what it computes.
        inputs, outputs: ports, in order, with the batch size that is wanted.
        preparation: `kerasae.preparation.Preparation` of its examples, which the part takes as they were before; or None.
    """

    function: Function
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    preparation: Preparation | None = None

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
        if self.preparation is None:
            return self.function.compute(*inputs)
        if self.takes_examples:
            with tf.name_scope(PREPARATION):
                inputs = self.preparation.scaled(inputs[0]), *inputs[1:]
        outputs = self.function.compute(*inputs)
        with tf.name_scope(PREPARATION):
            return [self.preparation.restored(p.name, output) for p, output in zip(self.outputs, outputs, strict=True)]

    def reference(self, *inputs):
        """The same as the model itself answers, and NumPy prepares: what the files are compared with."""
        if self.preparation is None:
            return self.function.reference(*inputs)
        if self.takes_examples:
            x = self.preparation.apply(np.asarray(inputs[0]), missing=self.inputs[0].missing)
            inputs = tf.convert_to_tensor(x), *inputs[1:]
        outputs = self.function.reference(*inputs)
        return [
            self.preparation.invert(output.numpy()).astype(p.dtype)
            if p.name == "reconstruction"
            else self.preparation.restored(p.name, output)
            for p, output in zip(self.outputs, outputs, strict=True)
        ]

    def units(self, output):
        """`(offset, scale)` of an output that the part gives in the data's own units, or None."""
        prepared = self.preparation is not None and output == "reconstruction"
        return self.preparation.units if prepared else self.function.units

    @property
    def takes_examples(self):
        """Whether its first input are examples, rather than codes or noise."""
        return self.inputs[0].name == "x"

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


def parts_of(model, image_input=None, batch_size=None, float64=True):
    """The parts of a kerasae model or a fitted estimator: what its `functions` are, the first one served by default.

    Args:
        model: has `functions()`, of `{name: kerasae.functions.Function}`, and `preparation`.
        image_input: `"uint8"` for parts that take images of 0 to 255 and divide by 255 themselves.
        batch_size: the only one, or `None` for any.
        float64: whether ports may be of that type.

    Raises:
        ValueError: if the name of a further input can't be a port's; where an estimator's model computes in another precision than float32.
    """
    preparation = preparation_of(model, image_input, float64)

    def deployed(port):
        if port.shape and port.shape[0] is None and batch_size:
            port = replace(port, shape=(batch_size, *port.shape[1:]))
        if preparation is None:
            return port
        if port.name == "x":
            value_range = {"uint8": (0, 255)}.get(
                preparation.takes, (0.0, 1.0) if preparation.scaling == "pixels" else None
            )
            return replace(
                port, dtype=preparation.takes, value_range=value_range, meaning=f"{port.meaning}, {_IN_UNITS}"
            )
        if port.name == "reconstruction" and preparation.units is not None:
            meaning = f"{port.meaning}, {_IN_UNITS}"
            return replace(port, dtype=preparation.restored_dtype, value_range=None, meaning=meaning)
        return port

    if not float64 and getattr(model, "deploys_float64", False):
        model = copy.copy(model)
        model.deploys_float64 = False
    parts = []
    for function in model.functions().values():
        inputs, outputs = (tuple(map(deployed, ports)) for ports in (function.inputs, function.outputs))
        if function.seeded:  # it is told how many
            outputs = tuple(replace(p, shape=own.shape) for p, own in zip(outputs, function.outputs, strict=True))
        parts.append(Part(function, inputs, outputs, preparation))
    return parts


def preparation_of(model, image_input=None, float64=True):
    """What the parts do to examples before the model's own functions, a `Preparation`, or None: nothing.

    Raises:
        ValueError: if images of 0 to 255 are asked for, and the model was trained on something else.
    """
    own = getattr(model, "preparation", None)
    if image_input is not None:
        if own is None:
            return replace(Preparation.of_model(model.encoder.inputs[0].shape[1:]), kind="images", **_BYTES)
        if own.scaling != "pixels" and own.takes != "uint8":
            raise ValueError(
                f"`image_input` is for a model of pixels. This one was trained on {own.describe()}: leave it out."
            )
        return replace(own, **_BYTES) if own.scaling == "pixels" else own
    if own is None or (own.scaling == "none" and own.takes != "uint8"):
        return None
    return own if float64 or own.takes != "float64" else replace(own, takes="float32")


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

"""What is exported of a model: its parts, each a function with named ports."""

import keyword
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from kerasae import losses
from kerasae.models import Autoencoder, VariationalAutoencoder

_OTHER_FLOATS = ("float16", "bfloat16", "float64")
_MEANINGS = {
    "z": "the code",
    "z_mean": "the code: the mean of q(z|x)",
    "z_log_var": "the natural logarithm of the variance of q(z|x)",
    "log_variance": "the natural logarithm of the variance of p(x|z)",
}
_SAMPLER_NAMES = ("noise", "num_samples", "seed")
# In the names of operators of TensorFlow and ONNX that draw random numbers, and the one name that says something else.
_RANDOM = ("Random", "Multinomial", "TruncatedNormal", "Stateful", "Rng", "Bernoulli")
_CALL = "StatefulPartitionedCall"


class ExportError(RuntimeError):
    """A model that can't be exported, or whose files don't compute what it computes."""


@dataclass(frozen=True)
class Port:
    """A named input or output.

    Args:
        name: of the port, the same in every format.
        shape: with the batch, `None` where a size is free; `()` for a number.
        dtype: name of the NumPy type.
        value_range: (lowest, highest), or `None` for any number.
        meaning: one phrase, for the manifest and the files.
    """

    name: str
    shape: tuple
    dtype: str
    value_range: tuple | None
    meaning: str

    @property
    def dims(self):
        """The shape with names for free sizes: `["batch", 28, 28, 1]`."""
        names = ["batch", *(f"{self.name}_{axis}" for axis in range(1, len(self.shape)))]
        return [name if size is None else size for name, size in zip(names, self.shape, strict=False)]

    @property
    def signature(self):
        return tf.TensorSpec(self.shape, self.dtype, name=self.name)


@dataclass(frozen=True)
class Part:
    """A function of a model that is deployed by itself.

    Args:
        name: of its ONNX file.
        signature: its name in the SavedModel.
        meaning: one phrase.
        inputs, outputs: ports, in order.
        compute: from the inputs to the list of outputs: what is written to the files.
        reference: the same as the model itself answers, which is what the files are held against.
        seeded: whether it draws its noise from a seed among its inputs. Only TensorFlow can.
    """

    name: str
    signature: str
    meaning: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    compute: Callable
    reference: Callable
    seeded: bool = False

    def is_in(self, form):
        """Whether a format holds this part."""
        return form == "saved_model" or not self.seeded

    def function(self):
        """`compute` as a traced `tf.function` with named inputs and outputs.

        Raises:
            ExportError: if it draws random numbers other than from its seed: a file would replay frozen noise, or be
                invalid.
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
    """The parts of a kerasae model: encoder, decoder, both in a row, the score, and what samples if it is variational.

    Args:
        model: kerasae model. The further inputs of its encoder are ports by their own names, beside `x`.
        image_input: `"uint8"` for parts that take images of 0 to 255 and divide by 255 themselves.
        batch_size: the only one, or `None` for any.

    Raises:
        ValueError: if such a name can't be a port's.
    """
    encoder, decoder = model.encoder, model.decoder
    batch_size = batch_size or encoder.inputs[0].shape[0]

    def port(name, tensor, meaning, value_range=None, dtype=None):
        return Port(name, (batch_size, *tensor.shape[1:]), dtype or tensor.dtype, value_range, meaning)

    unit = (0.0, 1.0) if model.needs_unit_interval else None
    dtype = image_input or encoder.inputs[0].dtype
    x = port("x", encoder.inputs[0], "examples", (0, 255) if dtype == "uint8" else unit, dtype)
    codes = tuple(
        port(name, output, _MEANINGS.get(name, "a code of x"))
        for name, output in zip(model.code_names, encoder.outputs, strict=True)
    )
    z = port("z", decoder.inputs[0], "codes")
    reconstructions = tuple(
        port(name, output, _MEANINGS.get(name, "the reconstruction of x"), unit)
        for name, output in zip(model.reconstruction_names, decoder.outputs, strict=True)
    )
    definition, _ = score_of(model)
    score = Port("score", (batch_size,), "float32", None, definition)
    side = tuple(port(tensor.name, tensor, "side information about x") for tensor in encoder.inputs[1:])
    _check_names([p.name for p in side], [p.name for p in (x, z, score, *codes, *reconstructions)])

    def prepare(x, *side):
        """What the encoder takes."""
        x = tf.cast(x, "float32") / 255.0 if image_input else x
        return [tf.convert_to_tensor(part) for part in (x, *side)] if side else x

    def encode(*inputs):
        return tf.nest.flatten(encoder(prepare(*inputs), training=False))

    def decode(z):
        return tf.nest.flatten(decoder(z, training=False))

    def reconstruct(*inputs):
        code = model.code_of(encoder(prepare(*inputs), training=False))
        return [model.reconstruction_of(decoder(code, training=False))]

    def call(*inputs):
        return tf.nest.flatten(model(prepare(*inputs), training=False))

    def measure(*inputs):
        x = prepare(*inputs)
        encoded = encoder(x, training=False)
        # Not `forward`: a family may compute more there, such as a Jacobian, that the score leaves out.
        outputs = model.reconstruct(model.code_of(encoded), training=False)
        loss = model.reconstruction_loss(model.target_of(x), outputs)
        return [loss + losses.kl_standard_normal(*encoded) if isinstance(model, VariationalAutoencoder) else loss]

    def evaluate(*inputs):
        x = prepare(*inputs)
        target = model.target_of(x)
        if isinstance(model, VariationalAutoencoder):
            return [sum(model.terms(target, model.forward(x, training=False, sample=False)).values())]
        return [Autoencoder.terms(model, target, Autoencoder.forward(model, x, training=False))["reconstruction_loss"]]

    parts = [
        Part("encoder", "encode", "from examples to their codes", (x, *side), codes, encode, encode),
        Part("decoder", "decode", "from codes to reconstructions", (z,), reconstructions, decode, decode),
        Part(
            "autoencoder",
            "reconstruct",
            "from examples to reconstructions",
            (x, *side),
            reconstructions[:1],
            reconstruct,
            call,
        ),
        Part("score", "score", "how badly each example is reconstructed", (x, *side), (score,), measure, evaluate),
    ]
    if isinstance(model, VariationalAutoencoder):
        parts += _samplers(decode, z, reconstructions[0])
    return parts


def _check_names(side, others):
    taken = {*others, *_SAMPLER_NAMES}
    bad = [name for name in side if name in taken or keyword.iskeyword(name) or not name.isidentifier()]
    if bad:
        raise ValueError(
            f"The encoder's inputs beside the first are deployed by their names, and {bad} can't be: names must be identifiers, and not "
            f"those of other ports, {sorted(taken)}. Build the encoder with others: keras.Input(..., name='condition')."
        )


def _samplers(decode, z, reconstruction):
    """New examples, the means of p(x|z): from noise, which every format takes, or from a seed."""
    noise = replace(z, name="noise", meaning="z, drawn from the standard normal distribution")
    sample = replace(reconstruction, meaning="the mean of p(x|z)")
    num_samples = Port("num_samples", (), "int32", None, "how many, at least 1")
    seed = Port("seed", (2,), "int32", None, "two numbers; the same ones give the same samples")

    def decode_one(z):
        return decode(z)[:1]

    def draw(num_samples, seed):
        shape = tf.concat([num_samples[None], z.shape[1:]], axis=0)
        return decode_one(tf.random.stateless_normal(shape, seed, alg="philox"))

    any_number = replace(sample, shape=(None, *sample.shape[1:]))
    return [
        Part("sample", "sample", "from noise to new examples", (noise,), (sample,), decode_one, decode_one),
        Part(
            "sample_from_seed",
            "sample_from_seed",
            "from a seed to new examples",
            (num_samples, seed),
            (any_number,),
            draw,
            draw,
            seeded=True,
        ),
    ]


def parts_of_estimator(estimator, batch_size=None):
    """The parts of a fitted estimator of `kerasae.tasks`: each job from the raw input to the answer, scaling and all.

    Args:
        estimator: has `deployed_parts`, a method that gives a list of `kerasae.tasks.base.DeployedPart`.
        batch_size: the only one, or `None` for any.
    """
    return [_part_of(deployed, batch_size) for deployed in estimator.deployed_parts()]


def _part_of(deployed, batch_size):
    network = deployed.network
    policies = {layer.compute_dtype for layer in network._flatten_layers()} & set(_OTHER_FLOATS)
    if policies:
        raise ExportError(f"The estimator's model computes in {sorted(policies)}. Fit one in float32 to export it.")

    def port(name, tensor, meaning):
        return Port(name, (batch_size, *tensor.shape[1:]), tensor.dtype, None, meaning)

    output = port(deployed.output_name, network.outputs[0], deployed.output_meaning)

    def compute(x):
        return [network(x, training=False)]

    def answer(x):
        return [np.asarray(deployed.answer(x)).astype(output.dtype)]

    inputs = (port(deployed.input_name, network.inputs[0], deployed.input_meaning),)
    return Part(deployed.name, deployed.name, deployed.meaning, inputs, (output,), compute, answer)


def score_of(model):
    """What `score` is: `(definition, unit)`."""
    if isinstance(model, VariationalAutoencoder):
        return (
            "negative evidence lower bound at z = z_mean: -ln p(x|z_mean) + KL(q(z|x) || N(0, I)), without a beta",
            "nats",
        )
    if model.needs_unit_interval:
        return "cross-entropy of x and its reconstruction r: -sum_i x_i ln r_i + (1 - x_i) ln(1 - r_i)", "nats"
    return "squared error of the reconstruction r: sum_i (x_i - r_i)^2", "squared units of x"


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
    layers = [layer for network in (model.encoder, model.decoder) for layer in network._flatten_layers()]
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

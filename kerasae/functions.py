"""The named functions of a model or an estimator, each with its input and output ports, for streams, export and the report alike."""

import keyword
from collections.abc import Callable
from dataclasses import dataclass, replace

import keras
import tensorflow as tf

from kerasae import keras_internals

_MEANINGS = {
    "z": "the code",
    "z_mean": "the code: the mean of q(z|x)",
    "z_log_var": "the natural logarithm of the variance of q(z|x)",
    "log_variance": "the natural logarithm of the variance of p(x|z)",
    "log_scale": "the natural logarithm of the scale of p(x|z)",
    "reconstruction": "the reconstruction of x",
}
_SAMPLER_PORTS = ("noise", "num_samples", "seed")


@dataclass(frozen=True)
class Port:
    """A named input or output.

    Args:
        name: of the port, the same in every format.
        shape: with the batch, `None` for a free size; `()` for a number.
        dtype: name of the NumPy type.
        value_range: (lowest, highest), or `None` for any number.
        meaning: one phrase, for the manifest and the files.
        missing: whether NaN is taken, for a missing value.
    """

    name: str
    shape: tuple
    dtype: str
    value_range: tuple | None
    meaning: str
    missing: bool = False

    @property
    def dims(self):
        """The shape with names for free sizes: `["batch", 28, 28, 1]`."""
        names = ["batch", *(f"{self.name}_{axis}" for axis in range(1, len(self.shape)))]
        return [name if size is None else size for name, size in zip(names, self.shape, strict=False)]

    @property
    def signature(self):
        return tf.TensorSpec(self.shape, self.dtype, name=self.name)


@dataclass(frozen=True)
class Function:
    """Something that a model or an estimator can do, by itself.

    Args:
        name: such as `"encode"`; its signature's name in a SavedModel.
        file: name of its files, such as `"encoder"`.
        meaning: one phrase.
        inputs, outputs: ports, in order.
        compute: from tensors, in the order of the inputs, to the list of outputs; without noise, other than from a seed among its inputs.
        reference: the answer of the model or the estimator itself, with which files are compared.
        seeded: whether it draws its noise from a seed among its inputs. Only TensorFlow can.
        units: `(offset, scale)`, arrays, of an output in units that were scaled, in which files are compared with it.
    """

    name: str
    file: str
    meaning: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    compute: Callable
    reference: Callable
    seeded: bool = False
    units: tuple | None = None


def of_model(model):
    """The functions of a kerasae model by name: encode, decode, reconstruct, score, and those that sample if it has a prior.

    Further inputs of the encoder are ports by their own names, beside `x`; those that the decoder takes too stand beside `z`.

    Raises:
        ValueError: if such a name can't be a port's.
    """
    encoder, decoder = model.encoder, model.decoder

    def port(name, tensor, meaning, value_range=None):
        return Port(name, tuple(tensor.shape), tensor.dtype, value_range, meaning)

    takes = (0, 255) if encoder.inputs[0].dtype == "uint8" else model.likelihood.support
    if (
        takes
        and model.padding is not None
        and model.padding.value is not None
        and not takes[0] <= model.padding.value <= takes[1]
    ):
        takes = None
    x = port("x", encoder.inputs[0], "examples", takes)
    if model.takes_missing:
        x = replace(x, meaning="examples, with NaN for what is missing", missing=True)
    side = tuple(port(tensor.name, tensor, "side information about x") for tensor in encoder.inputs[1:])
    codes = tuple(
        port(name, output, _MEANINGS.get(name, "a code of x"))
        for name, output in zip(model.code_names, encoder.outputs, strict=True)
    )
    z = port("z", decoder.inputs[0], "codes")
    conditions = tuple(port(tensor.name, tensor, "side information about x") for tensor in decoder.inputs[1:])
    reconstructions = tuple(
        port(name, output, _MEANINGS.get(name, name), None if i else model.likelihood.support)
        for i, (name, output) in enumerate(zip(model.reconstruction_names, decoder.outputs, strict=True))
    )
    score = Port("score", (x.shape[0],), "float32", None, model.score_meaning[0])
    _check_names([p.name for p in side], [p.name for p in (x, z, score, *codes, *reconstructions)])

    def one_or_list(*inputs):
        return [tf.convert_to_tensor(part) for part in inputs] if len(inputs) > 1 else inputs[0]

    def encode(*inputs):
        encoded = encoder(one_or_list(*inputs), training=False)
        return [model.code_of(encoded), *tf.nest.flatten(encoded)[1:]]

    def decode(*inputs):
        return tf.nest.flatten(decoder(one_or_list(*inputs), training=False))

    def reconstruct(*inputs):
        x = one_or_list(*inputs)
        (reconstruction, *_) = decode(model.code_of(encoder(x, training=False)), *model.condition_of(x))
        return [model.with_padding(model.target_of(x), reconstruction)]

    def measure(*inputs):
        return [model.score(one_or_list(*inputs))]

    def call(*inputs):
        return [model(one_or_list(*inputs), training=False)]

    examples, codes_in, first = (x, *side), (z, *conditions), reconstructions[:1]
    functions = [
        Function("encode", "encoder", "from examples to their codes", examples, codes, encode, encode),
        Function("decode", "decoder", "from codes to reconstructions", codes_in, reconstructions, decode, decode),
        Function("reconstruct", "autoencoder", "from examples to reconstructions", examples, first, reconstruct, call),
        Function("score", "score", "how badly each example is reconstructed", examples, (score,), measure, measure),
    ]
    if model.prior is not None:
        functions += _samplers(decode, z, conditions, reconstructions[0])
    return by_name(*functions)


def _samplers(decode, z, conditions, reconstruction):
    """New examples, the means of p(x|z): from noise, which every format takes, or from a seed."""
    noise = replace(z, name="noise", meaning="z, drawn from the standard normal distribution")
    sample = replace(reconstruction, meaning="the mean of p(x|z)")
    num_samples = Port("num_samples", (), "int32", None, "how many, at least 1")
    seed = Port("seed", (2,), "int32", None, "two numbers; the same ones give the same samples")

    def decode_first(*inputs):
        return decode(*inputs)[:1]

    def draw(num_samples, seed, *conditions):
        shape = tf.concat([num_samples[None], z.shape[1:]], axis=0)
        return decode_first(tf.random.stateless_normal(shape, seed, alg="philox"), *conditions)

    any_number = replace(sample, shape=(None, *sample.shape[1:]))
    by_noise, by_seed = (noise, *conditions), (num_samples, seed, *conditions)
    name, meaning = "sample_from_seed", "from a seed to new examples"
    return [
        Function("sample", "sample", "from noise to new examples", by_noise, (sample,), decode_first, decode_first),
        Function(name, name, meaning, by_seed, (any_number,), draw, draw, seeded=True),
    ]


def _check_names(side, others):
    taken = {*others, *_SAMPLER_PORTS}
    bad = [name for name in side if name in taken or keyword.iskeyword(name) or not name.isidentifier()]
    if bad:
        raise ValueError(
            f"The encoder's further inputs are deployed by their names, and {bad} can't be: names must be identifiers, and not those of "
            f"other ports, {sorted(taken)}. Build the encoder with others: keras.Input(..., name='condition')."
        )


def of_network(name, meaning, network, output, answer, input=("x", "examples, unscaled"), units=None, missing=False):
    """A function of a fitted estimator: one graph from the raw input to the answer.

    Args:
        name, meaning: as in `Function`; its files have the same name.
        network: Functional Keras model with one input and one output.
        output: `(name, meaning)` of the output's port.
        answer: the estimator's own method, NumPy to NumPy, with which files are compared.
        input: `(name, meaning)` of the input's port.
        units: as in `Function`.
        missing: whether NaN is taken, for a missing value.

    Raises:
        ValueError: if the network computes in another precision than float32.
    """

    layers = [layer for layer in keras_internals.all_layers(network) if not isinstance(layer, keras.layers.InputLayer)]
    policies = {layer.compute_dtype for layer in layers} & {"float16", "bfloat16", "float64"}
    if policies:
        raise ValueError(f"The estimator's model computes in {sorted(policies)}. Fit one in float32 to export it.")

    def port(named, tensor):
        return Port(named[0], (None, *tensor.shape[1:]), tensor.dtype, None, named[1])

    result = port(output, network.outputs[0])
    return Function(
        name,
        name,
        meaning,
        (replace(port(input, network.inputs[0]), missing=missing),),
        (result,),
        lambda x: [network(x, training=False)],
        lambda x: [tf.convert_to_tensor(answer(x), result.dtype)],
        units=units,
    )


def by_name(*functions):
    """`{name: function}`."""
    return {function.name: function for function in functions}

"""What a kind of network has to say and to do, and how a user registers one."""

from keras import layers

from kerasae import checks
from kerasae.registry import NETWORKS


class Network:
    """A kind of network: which examples it takes, which code it gives, and how its layers are stacked.

    `encoder` and `decoder` of this package put inputs, heads and output activations around what a kind stacks. A kind defines `encode`
    and `decode`, and changes what else differs: for example, a code that is a grid has its own `head` and `code_shape`.
    """

    # Names of an example's axes, such as ("height", "width", "channels"); None for examples of any shape.
    axes = None
    # What to do with examples that have other axes: the end of the error message.
    hint = ""
    # The code's form: "vector" (size,), "grid" (height, width, size) or "sequence" (steps, size).
    code = "vector"
    # Default of `hidden_units`, what they are of, and whether there must be any.
    hidden_units = (512, 256)
    units = "nodes"
    needs_hidden_units = False
    # Whether the decoder's kernels can be the transposes of the encoder's.
    can_tie = False
    # Whether steps that a mask leaves out count for nothing: `mask_value` is for such kinds.
    takes_padding = False

    def encode(self, x, hidden_units, activation):
        """The encoder's layers before its heads.

        Args:
            x: symbolic examples, `(batch, *input_shape)`.
            hidden_units: tuple of ints.
            activation: of the hidden layers.

        Returns:
            The last hidden tensor, which `head` takes.
        """
        raise NotImplementedError

    def head(self, hidden, size, activation, name):
        """An output of the encoder: of `size` units (for a grid or a sequence, at each place), called `name`."""
        return layers.Dense(size, activation, name=name)(hidden)

    def code_shape(self, input_shape, size, hidden_units):
        """The shape of a code of `size` units, without the batch."""
        return (size,)

    def decode(self, z, output_shape, hidden_units, activation, tied=False):
        """The decoder's layers before its outputs.

        Args:
            z: symbolic codes, `(batch, *code_shape)`.
            output_shape: shape of one example.
            hidden_units: the encoder's, to be mirrored.
            activation: of the hidden layers.
            tied: whether kernels are the transposes of the encoder's; only with `can_tie`.

        Returns:
            The last hidden tensor, and a function of it and a name that gives an output `(batch, *output_shape)`, without activation.
        """
        raise NotImplementedError


def register(name):
    """Registers a kind of network, a subclass of `Network`, under a name for `network=`: a decorator.

    Raises:
        ValueError: where the class is none, or another kind has the name.

    Example:

    ```python
    import math

    from keras import layers


    @kerasae.networks.register("wide")
    class Wide(kerasae.networks.Network):
        hidden_units = (1024,)

        def encode(self, x, hidden_units, activation):
            hidden = layers.Flatten()(x)
            for units in hidden_units:
                hidden = layers.Dense(units, activation)(hidden)
            return hidden

        def decode(self, z, output_shape, hidden_units, activation, tied=False):
            for units in reversed(hidden_units):
                z = layers.Dense(units, activation)(z)
            return z, lambda hidden, name: layers.Reshape(output_shape)(layers.Dense(math.prod(output_shape))(hidden))


    model = kerasae.builders.undercomplete((8, 8, 1), latent_dim=2, network="wide")
    ```
    """

    def registered(kind):
        if not (isinstance(kind, type) and issubclass(kind, Network)):
            raise ValueError(f"A kind of network must be a subclass of kerasae.networks.Network. Received: {kind!r}")
        checks.choice(kind.code, "code", ("vector", "grid", "sequence"))
        NETWORKS.add(name, kind(), kind)
        return kind

    return registered


def kinds():
    """`{name: Network}` of all registered kinds."""
    return {name: NETWORKS[name] for name in NETWORKS}


def with_axes(shape, network):
    """An example's shape as a kind takes it: where just the last axis is missing, as of grey images, it is added with size 1."""
    axes = NETWORKS[network].axes
    return (*shape, 1) if axes is not None and len(shape) == len(axes) - 1 else tuple(shape)

"""Dense networks: fully connected layers, for examples of any shape."""

import math

from keras import layers

from kerasae.layers import TiedDense
from kerasae.networks.kinds import Network, register


@register("dense")
class Dense(Network):
    """Takes examples of any shape, flattened; gives a vector."""

    can_tie = True

    def encode(self, x, hidden_units, activation):
        hidden = layers.Flatten(name="flatten")(x) if len(x.shape) > 2 else x
        for i, units in enumerate(hidden_units, 1):
            hidden = layers.Dense(units, activation, name=f"hidden_{i}")(hidden)
        return hidden

    def decode(self, z, output_shape, hidden_units, activation, tied=False):
        def dense(units, activation, name, tied_to):
            if tied:
                return TiedDense(tied_to, units, activation, name=name)
            return layers.Dense(units, activation, name=name)

        # The encoder's layers from the code down: the transpose of `z` leads to the last hidden layer, and so on.
        sources = ["z", *(f"hidden_{i}" for i in range(len(hidden_units), 0, -1))]
        for i, units in enumerate(reversed(hidden_units), 1):
            z = dense(units, activation, f"hidden_{i}", sources[i - 1])(z)

        def output_layer(hidden, name):
            output = dense(math.prod(output_shape), None, name, sources[-1])(hidden)
            return layers.Reshape(output_shape, name=f"{name}_reshape")(output) if len(output_shape) > 1 else output

        return z, output_layer

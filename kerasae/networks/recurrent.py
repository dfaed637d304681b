"""Recurrent networks for series: LSTM and GRU."""

from keras import layers

from kerasae.networks.kinds import Network, register
from kerasae.sequences import CausalGRU, CausalLSTM, LastStep


class _Recurrent(Network):
    """Takes series; what its layers give at the last step becomes a vector, and the decoder's see the code at every step.

    Its layers have sigmoids and a tanh inside: `activation` is not used.
    """

    axes = ("time", "channels")
    hint = "One series is (time, channels): add an axis to series of one channel, x[..., None]."
    hidden_units = (64,)
    needs_hidden_units = True
    takes_padding = True
    layer = None

    def encode(self, x, hidden_units, activation):
        for i, units in enumerate(hidden_units, 1):
            x = self.layer(units, return_sequences=True, name=f"hidden_{i}")(x)
        return LastStep(name="last_step")(x)

    def decode(self, z, output_shape, hidden_units, activation, tied=False):
        steps, channels = output_shape
        z = layers.RepeatVector(steps, name="repeat")(z)
        for i, units in enumerate(reversed(hidden_units), 1):
            z = self.layer(units, return_sequences=True, name=f"hidden_{i}")(z)
        return z, lambda hidden, name: layers.Dense(channels, name=name)(hidden)


@register("lstm")
class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997)."""

    units = "units of LSTM layers, which have activations of their own"
    layer = CausalLSTM


@register("gru")
class GRU(_Recurrent):
    """Gated recurrent units (Cho et al. 2014)."""

    units = "units of GRU layers, which have activations of their own"
    layer = CausalGRU

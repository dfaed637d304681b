"""The family that is sparse by a penalty."""

import math

import keras
import tensorflow as tf
from keras import ops

from kerasae import checks, losses
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.networks import takes_networks

__all__ = ["SparseAutoencoder"]

PENALTIES = ("kl", "absolute", "squared", "l1")
AVERAGES = ("example", "batch")


@keras.saving.register_keras_serializable("kerasae")
class SparseAutoencoder(Autoencoder):
    """A sparse autoencoder: minimises `d(x, g(f(x))) + lambda * sum_k w_k s(rho_k, r_k(x))` over chosen hidden layers k.

    rho_k is the target sparsity of layer k, r_k its sparsity:

    - `average="example"`: `r_k(x)` is the mean activation of the layer's units on x, one number per example.
    - `average="batch"`: r is each unit's mean activation over the batch, and s is summed over the units, as in Ng. The term is then
      the same for all examples of a batch; sample weights don't enter the means.

    s is `"kl"`, `rho ln(rho / r) + (1 - rho) ln((1 - rho) / (1 - r))`, in nats, for activations in [0, 1]; `"absolute"`, `|rho - r|`; or
    `"squared"`, `(rho - r)^2`. The penalty `"l1"` has no target: `sum_i |a_i|` over the layer's units, per example.

    Args:
        encoder, decoder: Keras models; see `Autoencoder`.
        sparsity_weight: lambda, at least 0. Default 1.
        sparsity_target: rho, in (0, 1) for `"kl"`; a number, or `{layer: number}`. Default 0.05.
        penalty: `"kl"`, `"absolute"`, `"squared"` or `"l1"`.
        average: `"example"` or `"batch"`; unused by `"l1"`.
        layer_weights: `{layer: w_k}`, names of the encoder's layers with their weights, at least 0. Default: the code's layer, 1.
        loss, seed: see `Autoencoder`.

    Raises:
        ValueError: as `Autoencoder`; on an unknown layer, a target out of bounds, or `"kl"` on a layer whose activation leaves [0, 1].
            An activation of your own is checked on every batch (`tf.errors.InvalidArgumentError`; not under `jit_compile`).

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.sparse(x_train.shape[1:], latent_dim=100, sparsity_target=0.1, average="batch")
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Ng 2011, "Sparse autoencoder", CS294A lecture notes (KL, batch means); the per-example form is the lecture's.
    """

    term_names = ("reconstruction_loss", "sparsity_loss")
    sparse_code = True

    def __init__(
        self,
        encoder,
        decoder,
        sparsity_weight=1.0,
        sparsity_target=0.05,
        penalty="kl",
        average="example",
        layer_weights=None,
        loss="squared_error",
        seed=None,
        **kwargs,
    ):
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        encoder = self.encoder  # with its inputs in order
        self.sparsity_weight = checks.real_number(sparsity_weight, "sparsity_weight", minimum=0)
        self.penalty = checks.choice(penalty, "penalty", PENALTIES)
        self.average = checks.choice(average, "average", AVERAGES)
        layer_weights = {encoder.layers[-1].name: 1.0} if layer_weights is None else layer_weights
        names = [layer.name for layer in encoder.layers]
        self.layer_weights = {
            checks.choice(name, "layer of layer_weights", names): checks.real_number(w, f"layer_weights[{name!r}]", 0)
            for name, w in dict(layer_weights).items()
        }
        if not self.layer_weights:
            raise ValueError("`layer_weights` must name at least one layer of the encoder. Received none.")
        if not isinstance(sparsity_target, dict):
            sparsity_target = dict.fromkeys(self.layer_weights, sparsity_target)
        if set(sparsity_target) != set(self.layer_weights):
            raise ValueError(
                f"`sparsity_target` must be a number, or have a target for each of the layers {sorted(self.layer_weights)}. "
                f"Received targets for: {sorted(sparsity_target)}"
            )
        bounds = {"minimum": 0, "maximum": 1, "exclusive": True} if penalty == "kl" else {}
        self.sparsity_target = {
            name: checks.real_number(target, f"sparsity_target[{name!r}]", **bounds)
            for name, target in sparsity_target.items()
        }
        if penalty == "kl" and any(target == 1 for target in self.sparsity_target.values()):
            raise ValueError(f"`sparsity_target` must lie below 1 for the penalty 'kl'. Received: {sparsity_target}")
        if self.padding is not None and (
            sequences := [n for n in names if n in self.layer_weights and self._gives_steps(n)]
        ):
            raise ValueError(
                f"The sparsity of {sequences} would count padded steps: they give a value for every step. Name layers behind the last of "
                "them, such as the code's, or do without a mask."
            )
        self._assert_range = {name: self._leaves_unit_interval(encoder.get_layer(name)) for name in self.layer_weights}
        outputs = [encoder.outputs[0], *(encoder.get_layer(name).output for name in self.layer_weights)]
        hidden = keras.Model(encoder.inputs, outputs)
        # In a closure, so that Keras doesn't track it: its layers are the encoder's.
        self._encode_with_activations = lambda x, training: hidden(x, training=training)

    def _gives_steps(self, name):
        return len(self.encoder.get_layer(name).output.shape) > 2

    def _leaves_unit_interval(self, layer):
        """False if the layer's activations lie in [0, 1], None if that is unknown; raises if they don't, under the KL penalty."""
        if self.penalty != "kl":
            return False
        activation = getattr(layer, "activation", None)
        if activation in (keras.activations.sigmoid, keras.activations.hard_sigmoid, keras.activations.softmax):
            return False
        if activation is not None and activation is getattr(keras.activations, activation.__name__, None):
            raise ValueError(
                f"The KL penalty needs activations in [0, 1], and layer {layer.name!r} has the activation {activation.__name__!r}. Use "
                "a sigmoid there, or the penalty 'absolute', 'squared' or 'l1'."
            )
        return None

    @property
    def term_weights(self):
        return {"sparsity_loss": self.sparsity_weight}

    def forward(self, x, training):
        z, *activations = self._encode_with_activations(x, training)
        activations = dict(zip(self.layer_weights, activations, strict=True))
        return {"z": z, "activations": activations, **self.reconstruct(z, training, self.condition_of(x))}

    def terms(self, x, outputs):
        sparsity = 0.0
        for name, weight in self.layer_weights.items():
            activation = ops.cast(outputs["activations"][name], "float32")
            # (batch, ...) -> (batch, units); -1 would not do for the units, as a replica may have no examples to infer them from
            shape = activation.shape[1:]
            units = tf.reduce_prod(tf.shape(activation)[1:]) if None in shape else math.prod(shape)
            activation = ops.reshape(activation, (-1, units))
            if self._assert_range[name] is None:
                activation = _assert_unit_interval(activation, name)
            target = self.sparsity_target[name]
            sparsity += weight * losses.sparsity_penalty(activation, target, self.penalty, self.average)
        return {**super().terms(x, outputs), "sparsity_loss": sparsity}

    def get_config(self):
        options = {name: getattr(self, name) for name in ("sparsity_weight", "penalty", "average")}
        by_layer = {"sparsity_target": dict(self.sparsity_target), "layer_weights": dict(self.layer_weights)}
        return {**super().get_config(), **options, **by_layer}


def _assert_unit_interval(activation, name):
    low, high = tf.reduce_min(activation), tf.reduce_max(activation)
    message = f"The KL penalty needs activations in [0, 1]; those of layer {name!r} lie outside."
    with tf.control_dependencies([tf.debugging.Assert((low >= 0) & (high <= 1), [message, low, high])]):
        return tf.identity(activation)


@family(
    title="sparse by penalty (KL, absolute, squared, L1; per example or per batch)",
    purpose="sparse features with a target rate",
    paper="Ng 2011",
)
@takes_networks(hidden_units=())
def sparse(
    networks,
    *,
    sparsity_weight=1.0,
    sparsity_target=0.05,
    penalty="kl",
    average="example",
    layer_weights=None,
    **kwargs,
):
    """A sparse autoencoder: a penalty keeps the mean activation of chosen layers near a target.

    Args:
        sparsity_weight: lambda.
        sparsity_target: rho; a number, or `{layer: number}`.
        penalty: `"kl"`, `"absolute"`, `"squared"` or `"l1"`.
        average: `"example"`: over the layer's units; `"batch"`: of each unit over the batch.
        layer_weights: `{layer: w_k}`: hidden layers are called `hidden_1`, …, the code `z`. Default: the code's layer, 1.
        code_activation: default sigmoid for the penalty `"kl"`, which needs activations in [0, 1], else relu.

    Returns:
        `kerasae.models.SparseAutoencoder`, to be compiled.

    Raises:
        ValueError: as `SparseAutoencoder`.

    Example:

    ```python
    model = kerasae.builders.sparse((28, 28, 1), latent_dim=1000, sparsity_target=0.1, average="batch")
    ```

    Reference:
        Ng 2011, "Sparse autoencoder", CS294A lecture notes.
    """
    code_activation = networks.code_activation or ("sigmoid" if penalty == "kl" else "relu")
    return SparseAutoencoder(
        *networks.pair(code_activation=code_activation),
        sparsity_weight=sparsity_weight,
        sparsity_target=sparsity_target,
        penalty=penalty,
        average=average,
        layer_weights=layer_weights,
        loss=networks.loss,
        **kwargs,
    )

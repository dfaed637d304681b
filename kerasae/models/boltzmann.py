"""The restricted Boltzmann machine."""

import functools
import inspect
import math

import keras
import tensorflow as tf
from keras import ops

from kerasae import checks, keras_internals, losses
from kerasae.layers import random_seed
from kerasae.models import batches, execution, exits, feeding
from kerasae.models.batches import is_batched
from kerasae.models.exits import Exits
from kerasae.models.stacks import one_layer_networks

__all__ = ["RestrictedBoltzmannMachine"]

HIDDEN = ("binary", "gaussian")


@keras.saving.register_keras_serializable("kerasae")
class RestrictedBoltzmannMachine(Exits):
    """A restricted Boltzmann machine, trained by contrastive divergence (CD-k).

    `p(v, h) = exp(-E(v, h)) / Z` over binary visible units v and hidden units h, with the kernel W, the visible biases b and the hidden
    biases c:

    - `hidden="binary"`: `E(v, h) = -b v - v W h - c h`, so that `p(h_j = 1 | v) = sigmoid(c_j + (v W)_j)`;
    - `hidden="gaussian"`: `E(v, h) = -b v - v W h + 1/2 |h - c|^2`, so that `p(h | v) = N(c + v W, I)`;
    - for both `p(v_i = 1 | h) = sigmoid(b_i + (W h)_i)`.

    A step of training moves the weights along `<v_i h_j>_data - <v_i h_j>_model - weight_decay w_ij`, the second mean taken after k steps
    of Gibbs sampling that begin at the data; likewise the biases, without decay. No function has this as its gradient, so there is no
    `loss`. Logged by `fit` and `evaluate`, means over examples: `reconstruction_loss`, the cross-entropy in nats between v and
    `predict(v)`; `free_energy`, `F(v)`, whose gap between training and validation data grows if the machine overfits. Otherwise it is an
    ordinary Keras model: `compile(optimizer)`, `fit(x)`, callbacks, saving. `predict` gives mean-field reconstructions `p(v = 1 | E[h|v])`.

    Args:
        visible_dim: number of visible units, at least 1.
        hidden_dim: number of hidden units, at least 1.
        hidden: `"binary"`, or `"gaussian"`: linear units with noise of variance 1.
        gibbs_steps: k, at least 1. Default 1.
        sample_visible: whether Gibbs steps draw binary visible units. By default they take the probabilities, as the paper does: less
            noise, but only samples reach the model's distribution as k grows.
        weight_decay: of the kernel, at least 0.
        seed: of the sampling. Default: a random one, fixed by `keras.utils.set_random_seed`.

    Raises:
        ValueError: on a bad size or option; in `fit`, `evaluate` and `predict`, on data that isn't `(batch, visible_dim)` in [0, 1], and on
            targets, sample weights or a Keras loss.

    Example:

    ```python
    x_train, x_test = (x.reshape(len(x), -1) for x in kerasae.data.load("digits"))
    rbm = kerasae.models.RestrictedBoltzmannMachine(visible_dim=64, hidden_dim=100)
    rbm.compile(keras.optimizers.SGD(0.1, momentum=0.5))
    rbm.fit(x_train, epochs=2, batch_size=100, validation_data=(x_test,))
    encoder, decoder = rbm.unroll()
    z = encoder.predict(x_test)
    ```

    Reference:
        Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence", equation 5; Gaussian hidden units and real values
        in [0, 1] on visible ones: Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks". Their weights
        begin at N(0, 0.1^2), as here; `weight_decay` is that of their published code.
    """

    def __init__(
        self,
        visible_dim,
        hidden_dim,
        hidden="binary",
        gibbs_steps=1,
        sample_visible=False,
        weight_decay=2e-4,
        seed=None,
        **kwargs,
    ):
        # Sums over a thousand units: float32 whatever the policy.
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.visible_dim = checks.positive_int(visible_dim, "visible_dim")
        self.hidden_dim = checks.positive_int(hidden_dim, "hidden_dim")
        self.hidden = checks.choice(hidden, "hidden", HIDDEN)
        self.gibbs_steps = checks.positive_int(gibbs_steps, "gibbs_steps")
        self.sample_visible = bool(sample_visible)
        self.weight_decay = checks.real_number(weight_decay, "weight_decay", minimum=0)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.kernel = self.add_weight(
            (self.visible_dim, self.hidden_dim), keras.initializers.RandomNormal(stddev=0.1), name="kernel"
        )
        self.visible_bias = self.add_weight((self.visible_dim,), "zeros", name="visible_bias")
        self.hidden_bias = self.add_weight((self.hidden_dim,), "zeros", name="hidden_bias")
        self._reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self._free_energy_tracker = keras.metrics.Mean(name="free_energy")
        self.ready()

    # -- The distribution: v is (batch, visible_dim), h is (batch, hidden_dim) -----------------------------------------

    def hidden_means(self, v):
        """`E[h | v]`, shape `(batch, hidden_dim)`: for binary units the probabilities `p(h_j = 1 | v)`."""
        means = self._hidden_inputs(v)
        return ops.sigmoid(means) if self.hidden == "binary" else means

    def visible_probabilities(self, h):
        """`p(v_i = 1 | h)`, shape `(batch, visible_dim)`."""
        return ops.sigmoid(self._visible_logits(h))

    def sample_hiddens(self, v):
        """A draw from `p(h | v)`, shape `(batch, hidden_dim)`."""
        means = self.hidden_means(v)
        if self.hidden == "binary":
            return self._bernoulli(means)
        return means + tf.random.stateless_normal(tf.shape(means), random_seed(self.seed_generator), alg="philox")

    def sample_visibles(self, h):
        """A draw from `p(v | h)`, shape `(batch, visible_dim)`, of zeros and ones."""
        return self._bernoulli(self.visible_probabilities(h))

    def gibbs_step(self, v):
        """A draw of h from `p(h | v)`, then of v from `p(v | h)`; its probabilities unless `sample_visible`."""
        h = self.sample_hiddens(v)
        return self.sample_visibles(h) if self.sample_visible else self.visible_probabilities(h)

    def free_energy(self, v):
        """`F(v) = -ln sum_h exp(-E(v, h))` (integral), in nats, shape `(batch,)`: `p(v) = exp(-F(v)) / Z`."""
        v = ops.cast(v, "float32")
        energy = -ops.matmul(v, self.visible_bias)
        if self.hidden == "binary":
            # ln(1 + e^a) per unit
            return energy - ops.sum(ops.softplus(self._hidden_inputs(v)), axis=1)
        # The Gaussian integral of exp(a h - 1/2 (h - c)^2) is sqrt(2 pi) exp(a c + a^2 / 2), with a = v W.
        a = ops.matmul(v, self.kernel)
        energy -= ops.sum(a * (self.hidden_bias + 0.5 * a), axis=1)
        return energy - 0.5 * self.hidden_dim * math.log(2 * math.pi)

    def _hidden_inputs(self, v):
        return ops.matmul(ops.cast(v, "float32"), self.kernel) + self.hidden_bias

    def _visible_logits(self, h):
        return ops.matmul(ops.cast(h, "float32"), ops.transpose(self.kernel)) + self.visible_bias

    def _bernoulli(self, p):
        u = tf.random.stateless_uniform(tf.shape(p), random_seed(self.seed_generator), alg="philox")
        return ops.cast(u < p, "float32")

    # -- Training ------------------------------------------------------------------------------------------------------

    def contrastive_divergence(self, v):
        """The direction of descent: `[of the kernel, of the visible biases, of the hidden biases]`.

        `<v h>_model - <v h>_data + weight_decay W`, `<v>_model - <v>_data` and `<h>_model - <h>_data`, means over the batch. Hidden units
        enter these by their means `E[h | v]`; the chain from the data to the model's v goes through their samples.
        """
        v = ops.cast(v, "float32")
        v_model = v
        for _ in range(self.gibbs_steps):
            v_model = self.gibbs_step(v_model)
        h, h_model = self.hidden_means(v), self.hidden_means(v_model)
        products = ops.matmul(ops.transpose(v_model), h_model) - ops.matmul(ops.transpose(v), h)
        return [
            products / ops.cast(ops.shape(v)[0], "float32") + self.weight_decay * self.kernel,
            ops.mean(v_model - v, axis=0),
            ops.mean(h_model - h, axis=0),
        ]

    def call_inputs(self):
        return [keras.KerasTensor((None, self.visible_dim), name="x")]

    def call(self, x):
        return self.visible_probabilities(self.hidden_means(x))

    def train_step(self, data):
        v = self._visibles(data)
        # Measured before the weights move.
        logs = self._measure(v)
        gradients = self.contrastive_divergence(v)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return logs

    def test_step(self, data):
        return self._measure(self._visibles(data))

    def _measure(self, v):
        logits = self._visible_logits(self.hidden_means(v))
        self._reconstruction_tracker.update_state(losses.binary_crossentropy(v, logits))
        self._free_energy_tracker.update_state(self.free_energy(v))
        logs = self.compute_metrics(v, v, ops.sigmoid(logits), None)
        logs.pop("loss", None)
        return logs

    def _visibles(self, data):
        v, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is not None or sample_weight is not None:
            raise ValueError(
                "A restricted Boltzmann machine is fitted to x alone, without targets or sample weights. "
                "Drop them: fit(x), or dataset.map(lambda x, y: x)."
            )
        if self.loss is not None:
            raise ValueError(
                f"A restricted Boltzmann machine has no loss: compile(optimizer) alone. Received: loss={self.loss!r}"
            )
        return ops.cast(v, "float32")

    # -- Checked entry points ------------------------------------------------------------------------------------------

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                "A restricted Boltzmann machine is fitted on one device: build and fit it outside the scope of a tf.distribute strategy. "
                f"Received a strategy with {replicas} replicas."
            )
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        checks.fit_arguments(arguments)
        exits.check_callbacks(execution.callbacks_of(arguments))
        with batches.Naming() as naming:
            arguments["x"] = self._check(arguments.get("x"), naming, arguments.get("steps_per_epoch"))
            validation_data = arguments.get("validation_data")
            if validation_data is not None:
                x, *rest = validation_data if isinstance(validation_data, (tuple, list)) else (validation_data,)
                x = self._check(x, naming, arguments.get("validation_steps"), "validation ")
                arguments["validation_data"] = x if is_batched(x) else (x, *rest)
            return super().fit(**feeding.fed_fit(self, arguments))

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, x=None, *args, **kwargs):
        with batches.Naming() as naming:
            # `fit` has checked its validation data.
            x = x if keras_internals.VALIDATING in kwargs else self._check(x, naming, kwargs.get("steps"))
            return super().evaluate(x, *args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, x, *args, **kwargs):
        with batches.Naming() as naming:
            return super().predict(self._check(x, naming, kwargs.get("steps")), *args, **kwargs)

    def _check(self, x, naming, steps=None, prefix=""):
        if x is None:
            raise ValueError(f"No {prefix}x: pass an array of examples or a tf.data.Dataset as `x`.")
        if not is_batched(x):
            return checks.array(x, (self.visible_dim,), f"{prefix}x", unit_interval=True)

        def check(batch, number):
            v, *others = keras.utils.unpack_x_y_sample_weight(batch)
            v = checks.array(v, (self.visible_dim,), f"{prefix}x {batches.place(number)}", unit_interval=True)
            return keras.utils.pack_x_y_sample_weight(batches.as_floats(v), *others)

        def seems_right(batch):
            v, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            return batches.within(v, (self.visible_dim,), 0.0, 1.0)

        return batches.watched(x, naming, batches.Watch(check, seems_right, prefix), steps)

    # -- Unrolling and saving ------------------------------------------------------------------------------------------

    def unroll(self):
        """The machine's mean-field passes as networks of one layer each.

        Returns:
            `(encoder, decoder)`, Functional models with copies of the weights: the encoder gives `E[h | v]` by W and c, the decoder
            `p(v = 1 | h)` by W transposed and b.
        """
        activation = "sigmoid" if self.hidden == "binary" else "linear"
        encoder, decoder = one_layer_networks(self.visible_dim, self.hidden_dim, activation, "sigmoid")
        kernel, visible_bias, hidden_bias = (v.numpy() for v in (self.kernel, self.visible_bias, self.hidden_bias))
        encoder.set_weights([kernel, hidden_bias])
        decoder.set_weights([kernel.T, visible_bias])
        return encoder, decoder

    def get_config(self):
        names = ("visible_dim", "hidden_dim", "hidden", "gibbs_steps", "sample_visible", "weight_decay", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

"""Greedy layer-wise pretraining of dense autoencoders, by autoencoders or RBMs; classifiers on top of encoders."""

import functools
import inspect
import logging
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from kerasae import checks, keras_internals, losses, networks
from kerasae.layers import TiedDense, random_seed
from kerasae.models import execution
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.chains import path

__all__ = ["RaiseMomentum", "RestrictedBoltzmannMachine", "classifier", "pretrain_autoencoders", "pretrain_rbms"]

HIDDEN = ("binary", "gaussian")

_logger = logging.getLogger(__name__)


@keras.saving.register_keras_serializable("kerasae")
class RestrictedBoltzmannMachine(keras.Model):
    """A restricted Boltzmann machine, trained by contrastive divergence (CD-k).

    `p(v, h) = exp(-E(v, h)) / Z` over binary visible units v and hidden units h, with the kernel W, the visible biases
    b and the hidden biases c:

    - `hidden="binary"`: `E(v, h) = -b v - v W h - c h`, so that `p(h_j = 1 | v) = sigmoid(c_j + (v W)_j)`;
    - `hidden="gaussian"`: `E(v, h) = -b v - v W h + 1/2 |h - c|^2`, so that `p(h | v) = N(c + v W, I)`;
    - for both `p(v_i = 1 | h) = sigmoid(b_i + (W h)_i)`.

    A step of training moves the weights along `<v_i h_j>_data - <v_i h_j>_model - weight_decay w_ij`, the second mean
    taken after k steps of Gibbs sampling that begin at the data; likewise the biases, without decay. No function has
    this as its gradient, so there is no `loss`. Logged by `fit` and `evaluate`, means over examples:
    `reconstruction_loss`, the cross-entropy in nats between v and `predict(v)`; `free_energy`, `F(v)`, whose gap
    between training and validation data grows where the machine overfits. Otherwise it is an ordinary Keras model:
    `compile(optimizer)`, `fit(x)`, callbacks, saving. `predict` gives mean-field reconstructions `p(v = 1 | E[h|v])`.

    Args:
        visible_dim: number of visible units, at least 1.
        hidden_dim: number of hidden units, at least 1.
        hidden: `"binary"`, or `"gaussian"`: linear units with noise of variance 1.
        gibbs_steps: k, at least 1. Default 1.
        sample_visible: whether Gibbs steps draw binary visible units. By default they take the probabilities, as the
            paper does: less noise, but only samples reach the model's distribution as k grows.
        weight_decay: of the kernel, at least 0.
        seed: of the sampling. Default: a random one, fixed by `keras.utils.set_random_seed`.

    Raises:
        ValueError: on a size or option that can't be; in `fit`, `evaluate` and `predict`, on data that isn't `(batch,
            visible_dim)` in [0, 1], and on targets, sample weights or a Keras loss.

    Example:

    ```python
    x_train, x_test = (x.reshape(len(x), -1) for x in kerasae.data.load("digits"))
    rbm = kerasae.models.pretraining.RestrictedBoltzmannMachine(visible_dim=64, hidden_dim=100)
    rbm.compile(keras.optimizers.SGD(0.1, momentum=0.5))
    rbm.fit(x_train, epochs=2, batch_size=100, validation_data=(x_test,))
    encoder, decoder = rbm.unroll()
    z = encoder.predict(x_test)
    ```

    Reference:
        Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence", equation 5; Gaussian hidden
        units and real values in [0, 1] on visible ones: Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of
        Data with Neural Networks". Their weights begin at N(0, 0.1^2), as here; `weight_decay` is that of their
        published code.
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
        self.built = True

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

        `<v h>_model - <v h>_data + weight_decay W`, `<v>_model - <v>_data` and `<h>_model - <h>_data`, means over the
        batch. Hidden units enter these by their means `E[h | v]`; the chain from the data to the model's v goes through
        their samples.
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

    # -- The door ------------------------------------------------------------------------------------------------------

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                "A restricted Boltzmann machine is fitted on one device: build and fit it outside the scope of a tf.distribute strategy. "
                f"Received a strategy with {replicas} replicas."
            )
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        checks.batch_size(arguments)
        arguments["x"] = self._check(arguments.get("x"), "x")
        validation_data = arguments.get("validation_data")
        if isinstance(validation_data, (tuple, list)):
            x, *rest = validation_data
            arguments["validation_data"] = (self._check(x, "validation x"), *rest)
        elif validation_data is not None:
            arguments["validation_data"] = self._check(validation_data, "validation x")
        with execution.carried_out(self, False, 1, arguments) as arguments:
            return super().fit(**arguments)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, x=None, *args, **kwargs):
        # `fit` validates on data it has checked.
        x = x if keras_internals.VALIDATING in kwargs else self._check(x, "x")
        return super().evaluate(x, *args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, x, *args, **kwargs):
        return super().predict(self._check(x, "x"), *args, **kwargs)

    def _check(self, x, name):
        if x is None:
            raise ValueError(f"No {name}: pass an array of examples or a tf.data.Dataset as `x`.")
        if isinstance(x, tf.data.Dataset):
            first = next(iter(x.take(1)), None)
            if first is None:
                raise ValueError(f"{name}: the dataset is empty.")
            first, _, _ = keras.utils.unpack_x_y_sample_weight(first)
            checks.array(first, (self.visible_dim,), f"{name} in the dataset's first batch", unit_interval=True)
            return x
        if isinstance(x, keras.utils.PyDataset) or inspect.isgenerator(x):
            return x
        return checks.array(x, (self.visible_dim,), name, unit_interval=True)

    # -- Unrolling and saving ------------------------------------------------------------------------------------------

    def unroll(self):
        """The machine's mean-field passes as networks of one layer each.

        Returns:
            `(encoder, decoder)`, Functional models with copies of the weights: the encoder gives `E[h | v]`, from
            kernel W and bias c; the decoder `p(v = 1 | h)`, from kernel W transposed and bias b.
        """
        activation = "sigmoid" if self.hidden == "binary" else "linear"
        encoder, decoder = _one_layer_networks(self.visible_dim, self.hidden_dim, activation, "sigmoid")
        kernel, visible_bias, hidden_bias = (v.numpy() for v in (self.kernel, self.visible_bias, self.hidden_bias))
        encoder.set_weights([kernel, hidden_bias])
        decoder.set_weights([kernel.T, visible_bias])
        return encoder, decoder

    def get_config(self):
        return {
            **super().get_config(),
            "visible_dim": self.visible_dim,
            "hidden_dim": self.hidden_dim,
            "hidden": self.hidden,
            "gibbs_steps": self.gibbs_steps,
            "sample_visible": self.sample_visible,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    # Keras doesn't save the state of random seeds. Without it, training that goes on would draw other noise.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_state"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store):
        self.seed_generator.state.assign(np.asarray(store["seed_state"]))
        super().load_own_variables({key: store[key] for key in store.keys() if key != "seed_state"})


class RaiseMomentum(keras.callbacks.Callback):
    """Raises the momentum of `keras.optimizers.SGD` after the first epochs.

    Args:
        momentum: the later value, in [0, 1]. The optimiser itself begins with a smaller one, above 0.
        epoch: the first epoch, counted from 0, with the later value.

    Raises:
        ValueError: where the optimiser has no momentum.

    Reference:
        Hinton and Salakhutdinov 2006; the epoch from their published code: 0.5 for five epochs, then 0.9.
    """

    def __init__(self, momentum=0.9, epoch=5):
        super().__init__()
        self.momentum = checks.real_number(momentum, "momentum", minimum=0, maximum=1)
        self.epoch = checks.positive_int(epoch, "epoch")

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        if not getattr(optimizer, "momentum", 0.0):
            raise ValueError(
                f"RaiseMomentum needs an optimiser with a momentum above 0: keras.optimizers.SGD(..., momentum=0.5). "
                f"Received: {optimizer!r}"
            )
        if epoch >= self.epoch and optimizer.momentum != self.momentum:
            optimizer.momentum = self.momentum
            # The value is a constant of the compiled step.
            self.model.make_train_function(force=True)


def pretrain_autoencoders(
    model, x, make_layer=None, epochs=10, batch_size=128, validation_split=0.0, callbacks=None, verbose="auto"
):
    """Initialises a dense autoencoder layer by layer, bottom up: each layer is trained as an autoencoder of its own.

    Layer i of the encoder and its mirror image in the decoder are trained, from the weights they have, to reconstruct
    the codes of the layer below: the data for the first, `h_i = f_i(h_(i-1))` for the others. These are computed from
    the whole, clean data, also where the layers are denoising. `model` itself gets all the new weights in the end, then
    to be fine-tuned: compile and fit it as usual.

    Args:
        model: `Autoencoder` with an encoder of Dense layers and a decoder that mirrors it, as the builders'
            `network="dense"` makes.
        x: examples, an array `(n, *input_shape)`. A layer's codes are held in memory: 60,000 of 1,000 units are 240 MB,
            and Keras copies them.
        make_layer: function of the layer's `(encoder, decoder)`, two Functional models of one Dense layer each, that
            gives the autoencoder to train, of any family: a denoising one such as `lambda encoder, decoder:
            DenoisingAutoencoder(encoder, decoder, corruption)` makes `model` a stacked denoising autoencoder. It may be
            compiled, else Adam trains it. Default: a plain `Autoencoder`, with the cross-entropy where the decoder's
            layer is a sigmoid, and with the squared error elsewhere.
        epochs: int, or a list of one for each layer.
        batch_size: at least 1.
        validation_split: the last part of the examples that every layer holds out, in [0, 1), for `val_loss`.
        callbacks: list of Keras callbacks for every layer's `fit`, or a list of one such list for each layer.
        verbose: as in `keras.Model.fit`.

    Returns:
        List of the layers' `keras.callbacks.History`, bottom first; `history.model` is the layer's autoencoder.

    Raises:
        ValueError: where `model` isn't such a stack, on bad data, and on lists of another length than the stack's.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.deep((8, 8, 1), 10, (100, 50), activation="sigmoid", loss="binary_crossentropy")
    kerasae.models.pretraining.pretrain_autoencoders(model, x_train, epochs=2)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Bengio et al. 2007, "Greedy Layer-Wise Training of Deep Networks"; denoising layers: Vincent et al. 2010,
        "Stacked Denoising Autoencoders", section 3.5. There each layer's decoder is dropped; here it initialises the
        decoder.
    """
    stack = _dense_stack(model)
    x = _vectors(model, x)
    make_layer = make_layer or _plain_layer

    def train(layer, codes, fit):
        encoder, decoder = _one_layer_networks(
            layer.visible_dim, layer.hidden_dim, layer.encode_activation, layer.decode_activation, layer.is_tied
        )
        encoder.set_weights(layer.encode.get_weights())
        decoder.set_weights(layer.decode.get_weights())
        autoencoder = make_layer(encoder, decoder)
        weights = {id(w) for w in autoencoder.weights} if isinstance(autoencoder, keras.Model) else set()
        if not all(id(w) in weights for w in (*encoder.weights, *decoder.weights)):
            raise ValueError(
                "`make_layer(encoder, decoder)` must return a Keras model made of the two networks it is given. "
                f"Received: {autoencoder!r}"
            )
        if not autoencoder.compiled:
            autoencoder.compile(optimizer=keras.optimizers.Adam())
        return encoder, decoder, fit(autoencoder, codes)

    return _pretrain(stack, x, train, epochs, batch_size, validation_split, callbacks, verbose)


def pretrain_rbms(
    model,
    x,
    make_rbm=RestrictedBoltzmannMachine,
    epochs=10,
    batch_size=100,
    validation_split=0.0,
    callbacks=None,
    verbose="auto",
):
    """Initialises a dense sigmoid autoencoder by a stack of restricted Boltzmann machines, unrolled.

    Bottom up, a machine is trained on each layer's input: the data, in [0, 1], then the hidden means `E[h | v]` of the
    machine below. In the end layer i of the encoder gets machine i's W and hidden biases, its mirror image in the
    decoder W transposed and the visible biases: `model` then computes the machines' mean-field passes up and down.
    Fine-tune it as usual; the two copies of W then part, unless the decoder is tied to the encoder.

    Args:
        model: `Autoencoder` with an encoder of Dense layers and a decoder that mirrors it, all sigmoid. The code itself
            may be linear, as the builders make it: its machine's hidden units are Gaussian then.
        x: examples in [0, 1], an array `(n, *input_shape)`.
        make_rbm: function of `(visible_dim, hidden_dim, hidden)`, with `hidden` `"binary"` or `"gaussian"`, that gives
            the machine to train. It may be compiled, else SGD trains it, with learning rate 0.1 (Gaussian: 0.001) and
            momentum 0.5, from the sixth epoch 0.9.
        epochs, batch_size, validation_split, callbacks, verbose: as in `pretrain_autoencoders`.

    Returns:
        List of the layers' `keras.callbacks.History`, bottom first; `history.model` is the layer's machine.

    Raises:
        ValueError: where `model` isn't such a stack, on data outside [0, 1], and on lists of another length than the
            stack's.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.deep((8, 8, 1), 10, (100, 50), activation="sigmoid", loss="binary_crossentropy")
    kerasae.models.pretraining.pretrain_rbms(model, x_train, epochs=2)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks", with the numbers of
        their published code (its 10 epochs; 50 in the paper). There the codes for the next machine are gathered while
        the last epoch trains, here after it.
    """
    stack = _dense_stack(model)
    _check_sigmoids(stack)
    x = _vectors(model, x, unit_interval=True)

    def train(layer, codes, fit):
        hidden = "binary" if layer.encode_activation is keras.activations.sigmoid else "gaussian"
        rbm = make_rbm(layer.visible_dim, layer.hidden_dim, hidden)
        expected = (layer.visible_dim, layer.hidden_dim, hidden)
        if not isinstance(rbm, RestrictedBoltzmannMachine) or (rbm.visible_dim, rbm.hidden_dim, rbm.hidden) != expected:
            raise ValueError(
                f"`make_rbm{expected}` must return a RestrictedBoltzmannMachine of these sizes. Received: {rbm!r}"
            )
        if rbm.compiled:
            history = fit(rbm, codes)
        else:
            learning_rate = 0.1 if hidden == "binary" else 0.001
            rbm.compile(optimizer=keras.optimizers.SGD(learning_rate, momentum=0.5))
            history = fit(rbm, codes, [RaiseMomentum()])
        return *rbm.unroll(), history

    return _pretrain(stack, x, train, epochs, batch_size, validation_split, callbacks, verbose)


def classifier(encoder, num_classes, trainable=True):
    """A classifier on top of an encoder: its copy, and a Dense softmax layer over the classes.

    An ordinary Functional model, to be compiled with `loss="sparse_categorical_crossentropy"` and fitted to `(x,
    labels)`. The encoder is copied with its weights, so that training leaves the autoencoder as it is.

    Args:
        encoder: Functional (or built Sequential) Keras model from `(batch, *input_shape)` to `(batch, latent_dim)`,
            such as `model.encoder`, or a part of it: `keras.Model(encoder.inputs,
            encoder.get_layer("hidden_2").output)`.
        num_classes: at least 2.
        trainable: whether the copy of the encoder is fine-tuned, or frozen: then only the softmax layer learns. To
            change it later, set `trainable` of the copy, `get_layer(encoder.name)`, and compile again.

    Returns:
        Functional model from `(batch, *input_shape)` to the classes' probabilities, `(batch, num_classes)`.

    Raises:
        ValueError: where `encoder` is no such model, or `num_classes` is below 2.

    Example:

    ```python
    (x_train, y_train), (x_test, y_test) = kerasae.data.load("digits", labels=True)
    model = kerasae.builders.undercomplete((8, 8, 1), 32)
    head = kerasae.models.pretraining.classifier(model.encoder, num_classes=10)
    head.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    head.fit(x_train, y_train, epochs=2, validation_data=(x_test, y_test))
    ```

    Reference:
        Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.5: a logistic regression on the top layer, and
        all layers fine-tuned.
    """
    if not isinstance(encoder, keras.Model) or not getattr(encoder, "inputs", None):
        raise ValueError(f"`encoder` must be a Functional or built Sequential Keras model. Received: {encoder!r}")
    if len(encoder.inputs) != 1 or len(encoder.outputs) != 1 or len(encoder.outputs[0].shape) != 2:
        shapes = [tuple(output.shape) for output in encoder.outputs]
        raise ValueError(
            "`encoder` must have one input and one output (batch, latent_dim). "
            f"Received {len(encoder.inputs)} input(s), outputs of shape {shapes}. "
            "Choose one: keras.Model(encoder.inputs, encoder.outputs[0])."
        )
    if checks.positive_int(num_classes, "num_classes") < 2:
        raise ValueError(f"`num_classes` must be at least 2. Received: {num_classes}")
    copy = keras.models.clone_model(encoder)
    copy.set_weights(encoder.get_weights())
    copy.trainable = bool(trainable)
    x = keras.Input(encoder.inputs[0].shape[1:], name="x", dtype=encoder.inputs[0].dtype)
    # float32 under mixed precision too, as all outputs.
    probabilities = layers.Dense(num_classes, "softmax", dtype="float32", name="probabilities")(copy(x))
    return keras.Model(x, probabilities, name="classifier")


# -- The stack of a dense autoencoder ----------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """A Dense layer of the encoder, and its mirror image in the decoder."""

    encode: layers.Dense
    encode_activation: object
    decode: layers.Dense | TiedDense
    decode_activation: object

    @property
    def visible_dim(self):
        return self.encode.kernel.shape[0]

    @property
    def hidden_dim(self):
        return self.encode.kernel.shape[1]

    @property
    def is_tied(self):
        return isinstance(self.decode, TiedDense)


def _pretrain(stack, x, train, epochs, batch_size, validation_split, callbacks, verbose):
    """Trains the layers bottom up. `train(layer, codes, fit)` gives a layer's `(encoder, decoder, history)`."""
    batch_size = checks.positive_int(batch_size, "batch_size")
    validation_split = checks.real_number(validation_split, "validation_split", minimum=0)
    if validation_split >= 1:
        raise ValueError(f"`validation_split` must be below 1. Received: {validation_split}")
    epochs = [checks.positive_int(n, "epochs") for n in _per_layer(epochs, "epochs", stack, (list, tuple))]
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    nested = any(isinstance(entry, (list, tuple)) or entry is None for entry in callbacks or ())
    callbacks = _per_layer(callbacks, "callbacks", stack, (list, tuple) if nested else ())
    codes = x
    trained = []
    for i, layer in enumerate(stack):
        _logger.info("Pretraining layer %d of %d: %d-%d", i + 1, len(stack), layer.visible_dim, layer.hidden_dim)

        def fit(layer_model, codes, more_callbacks=(), i=i):
            return layer_model.fit(
                codes,
                epochs=epochs[i],
                batch_size=batch_size,
                validation_split=validation_split,
                callbacks=[*(callbacks[i] or ()), *more_callbacks],
                verbose=verbose,
            )

        encoder, decoder, history = train(layer, codes, fit)
        trained.append((layer, encoder, decoder, history))
        if i + 1 < len(stack):
            codes = encoder.predict(codes, batch_size=1024, verbose=0)
    # All at once, so that an error or an interrupt above leaves the model as it was.
    for layer, encoder, decoder, _ in trained:
        layer.encode.set_weights(encoder.get_weights())
        # A tied layer has a bias only.
        layer.decode.set_weights(decoder.get_weights()[-len(layer.decode.weights) :])
    return [history for *_, history in trained]


def _vectors(model, x, unit_interval=False):
    """The examples, checked, as `(n, visible_dim)`."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)) or inspect.isgenerator(x):
        raise ValueError(f"`x` must be an array: every layer trains on the codes of all examples. Received: {x!r}")
    x = checks.array(x, model.encoder.inputs[0].shape[1:], unit_interval=unit_interval)
    return x.reshape(len(x), -1)


def _per_layer(value, name, stack, sequences):
    """A list with an entry for each layer, from such a list or from the one value for all."""
    if not isinstance(value, sequences):
        return [value] * len(stack)
    if len(value) != len(stack):
        raise ValueError(
            f"`{name}` must be one for all layers, or a list with one for each of the {len(stack)} layers. "
            f"Received {len(value)}: {value!r}"
        )
    return list(value)


def _one_layer_networks(visible_dim, hidden_dim, encode_activation, decode_activation, tied=False):
    return (
        networks.encoder((visible_dim,), {"z": hidden_dim}, (), head_activation=encode_activation),
        networks.decoder((visible_dim,), hidden_dim, (), output_activation=decode_activation, tied=tied),
    )


def _plain_layer(encoder, decoder):
    is_sigmoid = decoder.layers[-1].activation is keras.activations.sigmoid
    return Autoencoder(encoder, decoder, loss="binary_crossentropy" if is_sigmoid else "squared_error")


def _dense_stack(model):
    """The `_Layer`s of an autoencoder, bottom first; raises unless its decoder mirrors its encoder."""
    if not isinstance(model, Autoencoder):
        raise ValueError(f"`model` must be a kerasae.models.Autoencoder. Received: {model!r}")
    if len(model.encoder.inputs) != 1:
        raise _not_a_stack("encoder", f"it has {len(model.encoder.inputs)} inputs")
    encoder = _dense_chain(model.encoder, "encoder")
    decoder = _dense_chain(model.decoder, "decoder")[::-1]
    sizes = [(layer.input.shape[1], layer.units) for layer, _ in encoder]
    mirrored = [(layer.units, layer.input.shape[1]) for layer, _ in decoder]
    if sizes != mirrored:
        raise ValueError(
            "Layer-wise pretraining needs a decoder that mirrors the encoder. The encoder's layers, (inputs, units), "
            f"are {sizes}, the decoder's {[pair[::-1] for pair in mirrored[::-1]]}."
        )
    stack = [_Layer(*up, *down) for up, down in zip(encoder, decoder, strict=True)]
    for layer in stack:
        if layer.is_tied and layer.decode.source is not layer.encode:
            raise _not_a_stack("decoder", f"layer {layer.decode.name!r} isn't tied to its mirror image")
    return stack


def _dense_chain(network, name):
    """The `(Dense layer, activation)` of a network that is nothing but a chain of them, in order."""
    chain, steps = [], path(network)
    for layer, inputs, _ in steps:
        if len(network.outputs) != 1 or len(inputs) != 1 or sum(layer is other for other, *_ in steps) > 1:
            raise _not_a_stack(name, f"layer {layer.name!r} doesn't stand in a single chain from input to output")
        if type(layer) in (layers.Dense, TiedDense):
            if not getattr(layer, "use_bias", True) or len(inputs[0].shape) != 2:
                raise _not_a_stack(name, f"layer {layer.name!r} has no bias, or doesn't work on vectors")
            chain.append((layer, layer.activation))
        elif type(layer) is layers.Activation and chain and chain[-1][1] is keras.activations.linear:
            chain[-1] = (chain[-1][0], layer.activation)
        elif type(layer) not in (layers.Flatten, layers.Reshape):
            raise _not_a_stack(name, f"layer {layer.name!r} is a {type(layer).__name__}")
    if not chain:
        raise _not_a_stack(name, "it has no Dense layer")
    return chain


def _not_a_stack(name, problem):
    return ValueError(
        "Layer-wise pretraining needs an encoder of Dense layers with biases, each with its activation, and a decoder "
        f'that mirrors it, such as the builders make by network="dense". In the {name} {problem}.'
    )


def _check_sigmoids(stack):
    for i, layer in enumerate(stack):
        is_top = i + 1 == len(stack)
        allowed = (keras.activations.sigmoid, *((keras.activations.linear,) if is_top else ()))
        for dense, activation, choices, where in (
            (layer.encode, layer.encode_activation, allowed, "encoder"),
            (layer.decode, layer.decode_activation, (keras.activations.sigmoid,), "decoder"),
        ):
            if activation not in choices:
                raise ValueError(
                    "Restricted Boltzmann machines need sigmoid layers; only the code may be linear. "
                    f"In the {where} layer {dense.name!r} has {getattr(activation, '__name__', activation)!r}. "
                    'Build the model with activation="sigmoid" and output_activation="sigmoid".'
                )

"""Greedy layer-wise pretraining of dense autoencoders, by autoencoders or by restricted Boltzmann machines."""

import logging

import keras

from kerasae import checks
from kerasae.models import batches
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.boltzmann import RestrictedBoltzmannMachine
from kerasae.models.stacks import check_sigmoids, dense_stack, one_layer_networks

__all__ = ["RaiseMomentum", "pretrain_autoencoders", "pretrain_rbms"]

_logger = logging.getLogger(__name__)


class RaiseMomentum(keras.callbacks.Callback):
    """Raises the momentum of `keras.optimizers.SGD` after the first epochs.

    Args:
        momentum: the later value, in [0, 1]. The optimiser itself begins with a smaller one, above 0.
        epoch: the first epoch, counted from 0, with the later value.

    Raises:
        ValueError: if the optimiser has no momentum.

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
                f"RaiseMomentum needs an optimiser with a momentum above 0, such as SGD(momentum=0.5). Received: {optimizer!r}"
            )
        if epoch >= self.epoch and optimizer.momentum != self.momentum:
            optimizer.momentum = self.momentum
            # The value is a constant of the compiled step.
            self.model.make_train_function(force=True)


def pretrain_autoencoders(
    model, x, make_layer=None, epochs=10, batch_size=128, validation_split=0.0, callbacks=None, verbose="auto"
):
    """Initialises a dense autoencoder layer by layer, bottom up: each layer is trained as an autoencoder of its own.

    Layer i of the encoder and its mirror image in the decoder are trained, from the weights they have, to reconstruct the codes of the
    layer below: the data for the first, `h_i = f_i(h_(i-1))` for the others, computed from clean data even if the layers are denoising. In
    the end `model` gets all the new weights. To fine-tune it, compile and fit it as usual.

    Args:
        model: `Autoencoder` with an encoder of Dense layers and a decoder that mirrors it, as the builders' `network="dense"` makes.
        x: examples, an array `(n, *input_shape)`. A layer's codes are held in memory, twice: 60,000 of 1,000 units take 480 MB.
        make_layer: function of the layer's `(encoder, decoder)`, two Functional models of one Dense layer each, that gives the autoencoder
            to train, of any family: a denoising one such as `lambda encoder, decoder: DenoisingAutoencoder(encoder, decoder, corruption)`
            makes `model` a stacked denoising autoencoder. It may be compiled, else Adam trains it. Default: a plain `Autoencoder`, with the
            cross-entropy if the decoder's layer is a sigmoid, else with the squared error.
        epochs: int, or a list with one per layer.
        batch_size: at least 1.
        validation_split: the last part of the examples that every layer holds out, in [0, 1), for `val_loss`.
        callbacks: list of Keras callbacks for every layer's `fit`, or a list with one such list per layer.
        verbose: as in `keras.Model.fit`.

    Returns:
        List of the layers' `keras.callbacks.History`, bottom first; `history.model` is the layer's autoencoder.

    Raises:
        ValueError: if `model` isn't such a stack, on bad data, and on lists of another length than the stack's.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.deep((8, 8, 1), 10, (100, 50), activation="sigmoid", loss="binary_crossentropy")
    kerasae.models.pretrain_autoencoders(model, x_train, epochs=2)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Bengio et al. 2007, "Greedy Layer-Wise Training of Deep Networks"; denoising layers: Vincent et al. 2010, "Stacked Denoising
        Autoencoders", section 3.5. There each layer's decoder is dropped; here it initialises the decoder.
    """
    stack = dense_stack(model)
    x = _vectors(model, x)
    make_layer = make_layer or _plain_layer

    def train(layer, codes, fit):
        encoder, decoder = one_layer_networks(
            layer.visible_dim, layer.hidden_dim, layer.encode_activation, layer.decode_activation, layer.is_tied
        )
        encoder.set_weights(layer.encode.get_weights())
        decoder.set_weights(layer.decode.get_weights())
        autoencoder = make_layer(encoder, decoder)
        weights = {id(w) for w in autoencoder.weights} if isinstance(autoencoder, keras.Model) else set()
        if not all(id(w) in weights for w in (*encoder.weights, *decoder.weights)):
            raise ValueError(
                f"`make_layer(encoder, decoder)` must return a Keras model made of the two networks it is given. Received: {autoencoder!r}"
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

    Bottom up, a machine is trained on each layer's input: the data, in [0, 1], then the hidden means `E[h | v]` of the machine below. In
    the end layer i of the encoder gets machine i's W and hidden biases, its mirror image in the decoder W transposed and the visible
    biases: `model` then computes the machines' mean-field passes up and down. Fine-tune it as usual; the two copies of W then part, unless
    the decoder is tied to the encoder.

    Args:
        model: `Autoencoder` with an encoder of Dense layers and a decoder that mirrors it, all sigmoid. The code itself may be linear, as
            the builders make it: its machine's hidden units are Gaussian then.
        x: examples in [0, 1], an array `(n, *input_shape)`.
        make_rbm: function of `(visible_dim, hidden_dim, hidden)`, with `hidden` `"binary"` or `"gaussian"`, that gives the machine to
            train. It may be compiled, else SGD trains it, with learning rate 0.1 (Gaussian: 0.001) and momentum 0.5, from the sixth epoch
            0.9.
        epochs, batch_size, validation_split, callbacks, verbose: as in `pretrain_autoencoders`.

    Returns:
        List of the layers' `keras.callbacks.History`, bottom first; `history.model` is the layer's machine.

    Raises:
        ValueError: as `pretrain_autoencoders`, and on data outside [0, 1].

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.deep((8, 8, 1), 10, (100, 50), activation="sigmoid", loss="binary_crossentropy")
    kerasae.models.pretrain_rbms(model, x_train, epochs=2)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks", with the numbers of their published code
        (its 10 epochs; 50 in the paper). There the codes for the next machine are gathered while the last epoch trains, here after it.
    """
    stack = dense_stack(model)
    check_sigmoids(stack)
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


def _pretrain(stack, x, train, epochs, batch_size, validation_split, callbacks, verbose):
    """Trains the layers bottom up; `train(layer, codes, fit)` gives the `(encoder, decoder, history)` of one."""
    batch_size = checks.positive_int(batch_size, "batch_size")
    validation_split = checks.real_number(validation_split, "validation_split", minimum=0)
    if validation_split >= 1:
        raise ValueError(f"`validation_split` must be below 1. Received: {validation_split}")
    epochs = [checks.positive_int(n, "epochs") for n in _per_layer(epochs, "epochs", stack, (list, tuple))]
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    nested = any(isinstance(entry, (list, tuple)) or entry is None for entry in callbacks or ())
    callbacks = _per_layer(callbacks, "callbacks", stack, (list, tuple) if nested else ())
    options = {"batch_size": batch_size, "validation_split": validation_split, "verbose": verbose}
    codes, trained = x, []
    for i, layer in enumerate(stack):
        _logger.info("Pretraining layer %d of %d: %d-%d", i + 1, len(stack), layer.visible_dim, layer.hidden_dim)

        def fit(layer_model, codes, more_callbacks=(), i=i):
            of_layer = [*(callbacks[i] or ()), *more_callbacks]
            return layer_model.fit(codes, epochs=epochs[i], callbacks=of_layer, **options)

        encoder, decoder, history = train(layer, codes, fit)
        trained.append((layer, encoder, decoder, history))
        if i + 1 < len(stack):
            codes = encoder.predict(codes, batch_size=1024, verbose=0)
    # Set together, so that an error or an interrupt above leaves the model as it was.
    for layer, encoder, decoder, _ in trained:
        layer.encode.set_weights(encoder.get_weights())
        # A tied layer has a bias only.
        layer.decode.set_weights(decoder.get_weights()[-len(layer.decode.weights) :])
    return [history for *_, history in trained]


def _vectors(model, x, unit_interval=False):
    """The examples, checked, as `(n, visible_dim)`."""
    if batches.is_batched(x):
        raise ValueError(f"`x` must be an array: every layer trains on the codes of all examples. Received: {x!r}")
    x = checks.array(x, model.encoder.inputs[0].shape[1:], unit_interval=unit_interval)
    return x.reshape(len(x), -1)


def _per_layer(value, name, stack, sequences):
    """A list with one entry per layer, from such a list or from one value for all."""
    if not isinstance(value, sequences):
        return [value] * len(stack)
    if len(value) != len(stack):
        raise ValueError(
            f"`{name}` must be one for all layers, or a list with one for each of the {len(stack)} layers. Received {len(value)}: {value!r}"
        )
    return list(value)


def _plain_layer(encoder, decoder):
    is_sigmoid = decoder.layers[-1].activation is keras.activations.sigmoid
    return Autoencoder(encoder, decoder, loss="binary_crossentropy" if is_sigmoid else "squared_error")

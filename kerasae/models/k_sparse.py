"""The k-sparse family."""

import keras

from kerasae import checks
from kerasae.layers import KSparse
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.networks import takes_networks

__all__ = ["KAnnealing", "KSparseAutoencoder"]


@keras.saving.register_keras_serializable("kerasae")
class KSparseAutoencoder(Autoencoder):
    """A k-sparse autoencoder: the code keeps its k largest activations, `z = f_k(f(x))`, and minimises `d(x, g(z))`.

    `kerasae.layers.KSparse` at the encoder's end keeps k in training and `alpha * k` at inference; `KAnnealing` lowers k while training.

    Args:
        encoder: Keras model that ends in `kerasae.layers.KSparse`.
        decoder, loss, seed: as in `Autoencoder`; the loss is d.

    Raises:
        ValueError: as `Autoencoder`, and if the encoder does not end in `KSparse`.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.k_sparse(x_train.shape[1:], latent_dim=100, k=10)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=4, callbacks=[kerasae.models.KAnnealing(start_k=40, epochs=2)])
    ```

    Reference:
        Makhzani and Frey 2013, "k-Sparse Autoencoders", algorithm 1. Their encoder is linear with tied weights, the loss the squared error:
        `hidden_units=()` and `tied=True` in the builder.
    """

    # A unit that is never kept is constantly 0.
    active_threshold = 0.0
    sparse_code = True

    def __init__(self, encoder, decoder, loss="squared_error", seed=None, **kwargs):
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        if not isinstance(self.k_sparse_layer, KSparse):
            raise ValueError(f"`encoder` must end in kerasae.layers.KSparse. It ends in: {self.k_sparse_layer!r}")

    @property
    def k_sparse_layer(self):
        """The layer that keeps the k largest activations."""
        return self.encoder.layers[-1]


class KAnnealing(keras.callbacks.Callback):
    """Lowers the k of a `KSparseAutoencoder` in a straight line from `start_k` to the model's own k, epoch by epoch.

    Early in training every unit is used often enough to learn, so that none stays dead.

    Args:
        start_k: k in the first epoch, at least the model's k and at most its units.
        epochs: number of epochs until the model's own k is reached; then it stays.

    Raises:
        ValueError: if the model is no `KSparseAutoencoder`, or `start_k` does not suit it.

    Reference:
        Makhzani and Frey 2013, section 4.2.1: a linear schedule over the first half of the epochs.
    """

    def __init__(self, start_k, epochs):
        super().__init__()
        self.start_k = checks.positive_int(start_k, "start_k")
        self.epochs = checks.positive_int(epochs, "epochs")

    def set_model(self, model):
        super().set_model(model)
        if not isinstance(model, KSparseAutoencoder):
            raise ValueError(f"KAnnealing needs a KSparseAutoencoder. Received: {model!r}")
        layer = model.k_sparse_layer
        if not layer.k <= self.start_k <= layer.num_units:
            raise ValueError(
                f"`start_k` must lie between the model's k, {layer.k}, and its number of units, {layer.num_units}. Received: {self.start_k}"
            )
        if layer.max_k < self.start_k:
            layer.max_k = self.start_k
            model.compiled_steps.trace_anew()  # its steps were traced for a smaller k

    def k_at(self, epoch):
        """k in an epoch, counted from 0."""
        k = self.model.k_sparse_layer.k
        return k + round((self.start_k - k) * max(0.0, 1 - epoch / self.epochs))

    def on_epoch_begin(self, epoch, logs=None):
        self.model.k_sparse_layer.current_k.assign(self.k_at(epoch))


@family(
    title="k-sparse (`models.KAnnealing` lowers k in training)",
    purpose="sparse features with an exact number of active units",
    paper="Makhzani & Frey 2013",
)
@takes_networks(hidden_units=(), tied=False)
def k_sparse(networks, *, k=25, alpha=1.0, by="magnitude", **kwargs):
    """A k-sparse autoencoder: of the code's activations only the k largest are kept. The code is usually overcomplete.

    As in the paper, there are no hidden layers by default; its weights are tied (`tied=True`).

    Args:
        k: activations to keep, at most `latent_dim`. Default 25.
        alpha: inference keeps alpha * k. Default 1; the paper's best is 3.
        by: `"magnitude"`: the k largest |z|; `"value"`: the k largest z, as in the paper.
        encoder: your own network, without the k-sparse layer: it is added.

    Returns:
        `kerasae.models.KSparseAutoencoder`, to be compiled. `kerasae.models.KAnnealing` lowers k while it trains.

    Raises:
        ValueError: if k exceeds the number of units.

    Example:

    ```python
    model = kerasae.builders.k_sparse((28, 28, 1), latent_dim=1000, k=25, alpha=3, tied=True)
    ```

    Reference:
        Makhzani and Frey 2013, "k-Sparse Autoencoders".
    """
    pair = networks.pair(code_layer=KSparse(k, alpha, by, name="z_sparse"))
    return KSparseAutoencoder(*pair, loss=networks.loss, **kwargs)

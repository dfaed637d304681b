"""The deep family: `Autoencoder` with several hidden layers, to be trained at once or pretrained layer by layer."""

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.models.undercomplete import warn_if_overcomplete
from kerasae.networks import takes_networks


@family(
    title="deep (stacked), tied weights optional",
    purpose="a smaller error with a code of the same size",
    paper="Hinton & Salakhutdinov 2006",
)
@takes_networks(hidden_units=(1000, 500, 250), tied=False)
def deep(networks, **kwargs):
    """A deep (stacked) autoencoder: several layers down to the code, and their mirror image back.

    Returns:
        `kerasae.models.Autoencoder`, to be compiled; or first to be pretrained by `kerasae.models.pretraining`.

    Example:

    ```python
    model = kerasae.builders.deep((28, 28, 1), latent_dim=30, loss="binary_crossentropy", tied=True)
    ```

    Reference:
        Hinton and Salakhutdinov 2006, the network 784-1000-500-250-30.
    """
    model = Autoencoder(*networks.pair(), loss=networks.loss, **kwargs)
    warn_if_overcomplete(model)
    return model

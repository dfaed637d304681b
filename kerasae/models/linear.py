"""The linear family: `Autoencoder` without nonlinearities."""

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.models.undercomplete import warn_if_overcomplete
from kerasae.networks import takes_networks


@family(title="linear", purpose="the subspace that PCA finds, by gradient descent", paper="Baldi & Hornik 1989")
@takes_networks(
    hidden_units=(),
    tied=False,
    without=("network", "loss", "activation", "code_activation", "output_activation", "mask_value"),
)
def linear(networks, **kwargs):
    """A linear autoencoder with squared error: it learns the subspace that PCA spans.

    The units of its code are not PCA's components, only a basis of the same subspace, in no order and not orthogonal.

    Args:
        hidden_units: of linear layers in between. Default: none.
        tied: whether the decoder's kernels are the transposes of the encoder's.

    Returns:
        `kerasae.models.Autoencoder`, to be compiled.

    Example:

    ```python
    model = kerasae.builders.linear((8, 8, 1), latent_dim=8)
    ```

    Reference:
        Baldi and Hornik 1989, "Neural Networks and Principal Component Analysis", fact 4. Biases take the place of centring.
    """
    model = Autoencoder(*networks.pair(activation="linear"), **kwargs)
    warn_if_overcomplete(model)
    return model

"""The undercomplete family: `Autoencoder` with a small code."""

import math
import warnings

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.networks import takes_networks


@family(title="undercomplete", purpose="a small code of the data", paper="Hinton & Salakhutdinov 2006")
@takes_networks()
def undercomplete(networks, **kwargs):
    """An undercomplete (vanilla) autoencoder: a code smaller than the input, and nothing else.

    Args:
        latent_dim: size of the code. If it is `prod(input_shape)` or more, a warning says that nothing keeps the model from copying.

    Returns:
        `kerasae.models.Autoencoder`, to be compiled.

    Example:

    ```python
    model = kerasae.builders.undercomplete((28, 28, 1), latent_dim=2, network="conv")
    ```

    Reference:
        Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks" (there with pretraining).
    """
    model = Autoencoder(*networks.pair(), loss=networks.loss, **kwargs)
    warn_if_overcomplete(model)
    return model


def warn_if_overcomplete(model):
    """Warns the caller of the builder that calls this if nothing keeps a model from copying."""
    latent_dim, num_features = (
        math.prod(size or 1 for size in tensor.shape[1:])
        for tensor in (model.encoder.outputs[0], model.encoder.inputs[0])
    )
    if latent_dim >= num_features:
        warnings.warn(
            f"Overcomplete: a code of {latent_dim} units for {num_features} features, and no regulariser. The model can learn to copy its "
            "input (kerasae.metrics.diagnose measures this); a denoising, sparse or contractive autoencoder can't.",
            stacklevel=4,  # this function, the builder, its wrapper by `takes_networks`
        )

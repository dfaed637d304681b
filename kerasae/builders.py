"""One function a family: networks and model, ready to compile.

Every builder takes the shape of one example, the size of the code and the layers, or your own `encoder=` and `decoder=` alone: any two
Functional Keras models that fit together.
"""

import math
import warnings

from kerasae import checks, networks
from kerasae.models import Autoencoder, VariationalAutoencoder

_OUTPUT_ACTIVATIONS = {"squared_error": "linear", "binary_crossentropy": "sigmoid"}


def undercomplete(
    input_shape=None,
    latent_dim=None,
    hidden_units=None,
    network="dense",
    *,
    loss="squared_error",
    activation="relu",
    output_activation=None,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """An undercomplete (vanilla) autoencoder: a code smaller than the input, and nothing else.

    Args:
        input_shape: shape of one example, without the batch, or an int for vectors.
        latent_dim: size of the code; from `prod(input_shape)` on, a warning says that nothing keeps the model from copying.
        hidden_units: nodes of each hidden layer of the encoder (default (512, 256)), or filters of each of its convolutions, which
            halve the image (default (32, 64)). The decoder mirrors them.
        network: `"dense"`, or `"conv"` for images (height, width, channels) of any size.
        loss: `"squared_error"`, or `"binary_crossentropy"` for data in [0, 1].
        activation: of the hidden layers.
        output_activation: of the reconstruction. Default: linear for squared error, sigmoid for cross-entropy.
        encoder, decoder: your own networks, instead of all of the above but `loss`.
        **kwargs: `seed` and `name` of the model.

    Returns:
        `kerasae.models.Autoencoder`, to be compiled.

    Raises:
        ValueError: on a shape, size or option that can't be, and where encoder and decoder don't fit together.

    Example:

    ```python
    model = kerasae.builders.undercomplete((28, 28, 1), latent_dim=2, network="conv")
    ```

    Reference:
        Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks" (there with pretraining).
    """
    checks.choice(loss, "loss", _OUTPUT_ACTIVATIONS)
    encoder, decoder = _networks(
        input_shape,
        latent_dim,
        hidden_units,
        network,
        heads=lambda size: {"z": size},
        activation=activation,
        output_activation=output_activation or _OUTPUT_ACTIVATIONS[loss],
        encoder=encoder,
        decoder=decoder,
    )
    model = Autoencoder(encoder, decoder, loss=loss, **kwargs)
    _warn_if_overcomplete(model)
    return model


def variational(
    input_shape=None,
    latent_dim=None,
    hidden_units=None,
    network="dense",
    *,
    likelihood="bernoulli",
    variance=1.0,
    beta=1.0,
    activation="relu",
    output_activation=None,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """A variational autoencoder with a diagonal Gaussian posterior and the prior N(0, I).

    Args:
        input_shape, latent_dim, hidden_units, network, activation: as in `undercomplete`.
        likelihood: `"bernoulli"`, for data in [0, 1], or `"gaussian"`.
        variance: c of the Gaussian likelihood `N(x', cI)`, above 0.
        beta: weight of the KL term.
        output_activation: of the mean. Default: sigmoid for Bernoulli, linear for Gaussian.
        encoder, decoder: your own networks; the encoder gives `[z_mean, z_log_var]`.
        **kwargs: `seed` and `name` of the model.

    Returns:
        `kerasae.models.VariationalAutoencoder`, to be compiled.

    Raises:
        ValueError: as `undercomplete`.

    Example:

    ```python
    model = kerasae.builders.variational((28, 28, 1), latent_dim=16, hidden_units=(512, 256))
    model.compile(optimizer="adam")
    ```

    Reference:
        Kingma and Welling 2014, "Auto-Encoding Variational Bayes".
    """
    checks.choice(likelihood, "likelihood", ("bernoulli", "gaussian"))
    encoder, decoder = _networks(
        input_shape,
        latent_dim,
        hidden_units,
        network,
        heads=lambda size: {"z_mean": size, "z_log_var": size},
        activation=activation,
        output_activation=output_activation or ("sigmoid" if likelihood == "bernoulli" else "linear"),
        encoder=encoder,
        decoder=decoder,
    )
    return VariationalAutoencoder(encoder, decoder, likelihood=likelihood, variance=variance, beta=beta, **kwargs)


def _networks(
    input_shape, latent_dim, hidden_units, network, *, heads, activation, output_activation, encoder, decoder
):
    """The pair of networks: the user's own, or one built from the four hyperparameters."""
    if encoder is not None or decoder is not None:
        given = {"input_shape": input_shape, "latent_dim": latent_dim, "hidden_units": hidden_units}
        given = [name for name, value in given.items() if value is not None]
        if encoder is None or decoder is None or given:
            missing = "encoder" if encoder is None else "decoder" if decoder is None else None
            raise ValueError(
                "Pass `encoder` and `decoder` alone, without input_shape, latent_dim and hidden_units, or none of the two. "
                + (f"Missing: `{missing}`." if missing else f"Received besides: {given}")
            )
        return encoder, decoder
    if input_shape is None or latent_dim is None:
        raise ValueError("Pass `input_shape` and `latent_dim`, or your own `encoder` and `decoder`.")
    latent_dim = checks.positive_int(latent_dim, "latent_dim")
    return (
        networks.encoder(input_shape, heads(latent_dim), hidden_units, network, activation),
        networks.decoder(input_shape, latent_dim, hidden_units, network, activation, output_activation),
    )


def _warn_if_overcomplete(model):
    latent_dim, num_features = (
        math.prod(size or 1 for size in tensor.shape[1:])
        for tensor in (model.encoder.outputs[0], model.encoder.inputs[0])
    )
    if latent_dim >= num_features:
        warnings.warn(
            f"Overcomplete: {latent_dim} codes for {num_features} features, and no regulariser. The model can learn to copy its input "
            "without learning anything of the data; a denoising, sparse or contractive autoencoder can't.",
            stacklevel=3,
        )

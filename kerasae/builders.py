"""One function a family: networks and model, ready to compile.

Every builder takes the shape of one example, the size of the code and the layers, or your own `encoder=` and `decoder=` alone: any two
Functional Keras models that fit together.
"""

import math
import warnings

import keras

from kerasae import checks, networks
from kerasae.layers import GaussianCorruption, KSparse, MaskingCorruption, SaltAndPepperCorruption
from kerasae.models import (
    Autoencoder,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    KSparseAutoencoder,
    SparseAutoencoder,
    VariationalAutoencoder,
)
from kerasae.registry import NETWORKS

_OUTPUT_ACTIVATIONS = {"squared_error": "linear", "binary_crossentropy": "sigmoid"}
POSTERIORS = ("diagonal", "isotropic")
CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper")


def undercomplete(
    input_shape=None,
    latent_dim=None,
    hidden_units=None,
    network="dense",
    *,
    loss="squared_error",
    activation="relu",
    code_activation=None,
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
        code_activation: of the code. Default: linear.
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
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"head_activation": code_activation},
        {"output_activation": _output_activation(loss, output_activation)},
    )
    model = Autoencoder(encoder, decoder, loss=loss, **kwargs)
    _warn_if_overcomplete(model)
    return model


def linear(input_shape=None, latent_dim=None, hidden_units=(), *, tied=False, encoder=None, decoder=None, **kwargs):
    """A linear autoencoder with squared error: it learns the subspace that PCA spans.

    Its codes are not PCA's components, only a basis of the same subspace, in no order and not orthogonal.

    Args:
        input_shape, latent_dim, encoder, decoder, **kwargs: as in `undercomplete`.
        hidden_units: of linear layers in between. Default: none.
        tied: whether the decoder's kernel is the transpose of the encoder's.

    Returns:
        `kerasae.models.Autoencoder`, to be compiled.

    Raises:
        ValueError: as `undercomplete`.

    Example:

    ```python
    model = kerasae.builders.linear((8, 8, 1), latent_dim=8)
    ```

    Reference:
        Baldi and Hornik 1989, "Neural Networks and Principal Component Analysis", fact 4. Biases take the place of centring.
    """
    encoder, decoder = _networks(
        encoder, decoder, (input_shape, latent_dim, hidden_units, "dense", "linear"), {}, {"tied": tied}
    )
    model = Autoencoder(encoder, decoder, **kwargs)
    _warn_if_overcomplete(model)
    return model


def deep(
    input_shape=None,
    latent_dim=None,
    hidden_units=(1000, 500, 250),
    network="dense",
    *,
    tied=False,
    loss="squared_error",
    activation="relu",
    code_activation=None,
    output_activation=None,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """A deep (stacked) autoencoder: several layers down to the code, and their mirror image back.

    Args:
        input_shape, latent_dim, network, loss, activation, code_activation, output_activation, encoder, decoder, **kwargs: as in
            `undercomplete`.
        hidden_units: nodes of each hidden layer of the encoder, or filters for `"conv"`. Default: (1000, 500, 250), the paper's.
        tied: whether the decoder's kernels are the transposes of the encoder's (`"dense"` only): half the weights.

    Returns:
        `kerasae.models.Autoencoder`, to be compiled; or first to be pretrained by `kerasae.models.pretraining`.

    Raises:
        ValueError: as `undercomplete`.

    Example:

    ```python
    model = kerasae.builders.deep((28, 28, 1), latent_dim=30, loss="binary_crossentropy", tied=True)
    ```

    Reference:
        Hinton and Salakhutdinov 2006, the network 784-1000-500-250-30.
    """
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"head_activation": code_activation},
        {"output_activation": _output_activation(loss, output_activation), "tied": tied},
    )
    model = Autoencoder(encoder, decoder, loss=loss, **kwargs)
    _warn_if_overcomplete(model)
    return model


def denoising(
    input_shape=None,
    latent_dim=None,
    hidden_units=None,
    network="dense",
    *,
    corruption="gaussian",
    noise_stddev=None,
    corruption_rate=None,
    loss="squared_error",
    activation="relu",
    code_activation=None,
    output_activation=None,
    encoder=None,
    decoder=None,
    seed=None,
    **kwargs,
):
    """A denoising autoencoder: corrupted in, clean as the target. The code may be as large as you like.

    Args:
        input_shape, latent_dim, hidden_units, network, loss, activation, code_activation, output_activation, encoder, decoder, **kwargs:
            as in `undercomplete`.
        corruption: `"gaussian"`, `"masking"`, `"salt_and_pepper"`, a Keras layer that is active in training only, or `None` where `fit`
            gets explicit pairs (corrupted, clean).
        noise_stddev: of the Gaussian. Default 0.5.
        corruption_rate: probability that a feature is masked, or turned to salt or pepper. Default 0.25.
        seed: of the corruption's noise.

    Returns:
        `kerasae.models.DenoisingAutoencoder`, to be compiled.

    Raises:
        ValueError: as `undercomplete`; and where an option belongs to another corruption.

    Example:

    ```python
    model = kerasae.builders.denoising((28, 28, 1), latent_dim=64, corruption="salt_and_pepper", corruption_rate=0.2)
    ```

    Reference:
        Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders".
    """
    if isinstance(corruption, str):
        checks.choice(corruption, "corruption", CORRUPTIONS)
    takes_stddev, takes_rate = corruption == "gaussian", corruption in CORRUPTIONS[1:]
    for option, value, belongs in (
        ("noise_stddev", noise_stddev, takes_stddev),
        ("corruption_rate", corruption_rate, takes_rate),
    ):
        if value is not None and not belongs:
            raise ValueError(f"`{option}` does not belong to the corruption {corruption!r}. Received: {value!r}")
    if takes_stddev:
        corruption = GaussianCorruption(0.5 if noise_stddev is None else noise_stddev, seed=seed)
    elif takes_rate:
        layer = MaskingCorruption if corruption == "masking" else SaltAndPepperCorruption
        corruption = layer(0.25 if corruption_rate is None else corruption_rate, seed=seed)
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"head_activation": code_activation},
        {"output_activation": _output_activation(loss, output_activation)},
    )
    return DenoisingAutoencoder(encoder, decoder, corruption=corruption, loss=loss, seed=seed, **kwargs)


def k_sparse(
    input_shape=None,
    latent_dim=None,
    hidden_units=(),
    network="dense",
    *,
    k=25,
    alpha=1.0,
    by="magnitude",
    tied=False,
    loss="squared_error",
    activation="relu",
    code_activation=None,
    output_activation=None,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """A k-sparse autoencoder: of the code's activations only the k largest are kept. The code is usually overcomplete.

    Args:
        input_shape, latent_dim, network, loss, activation, code_activation, output_activation, decoder, **kwargs: as in `undercomplete`.
        hidden_units: default none (`"dense"`), as in the paper.
        k: activations to keep, at most `latent_dim`. Default 25.
        alpha: inference keeps alpha * k. Default 1; the paper's best is 3.
        by: `"magnitude"`: the k largest |z|; `"value"`: the k largest z, as in the paper.
        tied: whether the decoder's kernels are the transposes of the encoder's, as in the paper (`"dense"` only).
        encoder: your own, without the k-sparse layer: it is added.

    Returns:
        `kerasae.models.KSparseAutoencoder`, to be compiled. `kerasae.models.KAnnealing` lowers k while it trains.

    Raises:
        ValueError: as `undercomplete`; and where k exceeds the number of units.

    Example:

    ```python
    model = kerasae.builders.k_sparse((28, 28, 1), latent_dim=1000, k=25, alpha=3, tied=True)
    ```

    Reference:
        Makhzani and Frey 2013, "k-Sparse Autoencoders".
    """
    layer = KSparse(k, alpha, by, name="z_sparse")
    own = encoder is not None
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"head_activation": code_activation, "code_layer": layer},
        {"output_activation": _output_activation(loss, output_activation), "tied": tied},
    )
    if own:
        encoder, decoder = networks.check_pair(encoder, decoder)
        encoder = keras.Model(encoder.inputs, layer(encoder.outputs[0]), name="encoder")
    return KSparseAutoencoder(encoder, decoder, loss=loss, **kwargs)


def sparse(
    input_shape=None,
    latent_dim=None,
    hidden_units=(),
    network="dense",
    *,
    sparsity_weight=1.0,
    sparsity_target=0.05,
    penalty="kl",
    average="example",
    layer_weights=None,
    loss="squared_error",
    activation="relu",
    code_activation=None,
    output_activation=None,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """A sparse autoencoder: a penalty keeps the mean activation of chosen layers near a target.

    Args:
        input_shape, latent_dim, network, loss, activation, output_activation, encoder, decoder, **kwargs: as in `undercomplete`.
        hidden_units: default none (`"dense"`).
        sparsity_weight: lambda.
        sparsity_target: rho; a number, or `{layer: number}`.
        penalty: `"kl"`, `"absolute"`, `"squared"` or `"l1"`.
        average: `"example"`: over the layer's units; `"batch"`: of each unit over the batch.
        layer_weights: `{layer: w_k}`: hidden layers are called `hidden_1`, …, the code `z`. Default: the code's layer, 1.
        code_activation: default sigmoid for the penalty `"kl"`, which needs activations in [0, 1], else relu.

    Returns:
        `kerasae.models.SparseAutoencoder`, to be compiled.

    Raises:
        ValueError: as `undercomplete` and `SparseAutoencoder`.

    Example:

    ```python
    model = kerasae.builders.sparse((28, 28, 1), latent_dim=1000, sparsity_target=0.1, average="batch")
    ```

    Reference:
        Ng 2011, "Sparse autoencoder", CS294A lecture notes.
    """
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"head_activation": code_activation or ("sigmoid" if penalty == "kl" else "relu")},
        {"output_activation": _output_activation(loss, output_activation)},
    )
    return SparseAutoencoder(
        encoder,
        decoder,
        sparsity_weight=sparsity_weight,
        sparsity_target=sparsity_target,
        penalty=penalty,
        average=average,
        layer_weights=layer_weights,
        loss=loss,
        **kwargs,
    )


def contractive(
    input_shape=None,
    latent_dim=None,
    hidden_units=(),
    network="dense",
    *,
    contraction_weight=0.1,
    jacobian="exact",
    loss="squared_error",
    activation="sigmoid",
    code_activation="sigmoid",
    output_activation=None,
    tied=False,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """A contractive autoencoder: a penalty on `||df/dx||_F^2` makes the code insensitive to small changes of the input.

    Args:
        input_shape, latent_dim, network, loss, output_activation, encoder, decoder, **kwargs: as in `undercomplete`; `num_probes` of the
            stochastic estimate too.
        hidden_units: default none (`"dense"`), as in the paper.
        contraction_weight: lambda, at least 0. Default 0.1.
        jacobian: `"exact"`, or `"stochastic"`, an unbiased estimate for large codes.
        activation, code_activation: default sigmoid, as in the paper.
        tied: whether the decoder's kernels are the transposes of the encoder's, as in the paper (`"dense"` only). Without, the encoder can
            shrink its weights and the decoder grow its own.

    Returns:
        `kerasae.models.ContractiveAutoencoder`, to be compiled.

    Raises:
        ValueError: as `undercomplete`.

    Example:

    ```python
    model = kerasae.builders.contractive((28, 28, 1), latent_dim=1000, loss="binary_crossentropy", tied=True)
    ```

    Reference:
        Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction".
    """
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"head_activation": code_activation},
        {"output_activation": _output_activation(loss, output_activation), "tied": tied},
    )
    return ContractiveAutoencoder(
        encoder, decoder, contraction_weight=contraction_weight, jacobian=jacobian, loss=loss, **kwargs
    )


def variational(
    input_shape=None,
    latent_dim=None,
    hidden_units=None,
    network="dense",
    *,
    likelihood="bernoulli",
    variance=1.0,
    posterior="diagonal",
    beta=1.0,
    activation="relu",
    output_activation=None,
    encoder=None,
    decoder=None,
    **kwargs,
):
    """A variational autoencoder with a Gaussian posterior and the prior N(0, I).

    Args:
        input_shape, latent_dim, hidden_units, network, activation: as in `undercomplete`.
        likelihood: `"bernoulli"`, for data in [0, 1], or `"gaussian"`.
        variance: c of the Gaussian likelihood `N(x', cI)`: a number above 0, `"learned"`, or `"predicted"`, one a feature.
        posterior: `"diagonal"`, a variance for every latent, or `"isotropic"`, one an example, `N(mu(x), sigma(x)^2 I)`.
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
    checks.choice(posterior, "posterior", POSTERIORS)
    encoder, decoder = _networks(
        encoder,
        decoder,
        (input_shape, latent_dim, hidden_units, network, activation),
        {"heads": lambda size: {"z_mean": size, "z_log_var": size if posterior == "diagonal" else 1}},
        {
            "output_activation": output_activation or ("sigmoid" if likelihood == "bernoulli" else "linear"),
            "log_variance": variance == "predicted",
        },
    )
    return VariationalAutoencoder(encoder, decoder, likelihood=likelihood, variance=variance, beta=beta, **kwargs)


def _networks(encoder, decoder, hyperparameters, encoder_options, decoder_options):
    """The pair of networks: the user's own, or one built from the hyperparameters."""
    input_shape, latent_dim, hidden_units, network, activation = hyperparameters
    if encoder is not None or decoder is not None:
        given = {"input_shape": input_shape, "latent_dim": latent_dim}
        given = [name for name, value in given.items() if value is not None]
        if encoder is None or decoder is None or given:
            missing = "encoder" if encoder is None else "decoder" if decoder is None else None
            raise ValueError(
                "Pass `encoder` and `decoder` alone, without input_shape and latent_dim, or none of the two. "
                + (f"Missing: `{missing}`." if missing else f"Received besides: {given}")
            )
        return encoder, decoder
    if input_shape is None or latent_dim is None:
        raise ValueError("Pass `input_shape` and `latent_dim`, or your own `encoder` and `decoder`.")
    latent_dim = checks.positive_int(latent_dim, "latent_dim")
    if hidden_units == () and NETWORKS[network].needs_hidden_units:
        hidden_units = None
    heads = encoder_options.pop("heads", lambda size: {"z": size})(latent_dim)
    return (
        networks.encoder(input_shape, heads, hidden_units, network, activation, **encoder_options),
        networks.decoder(input_shape, latent_dim, hidden_units, network, activation, **decoder_options),
    )


def _output_activation(loss, output_activation):
    checks.choice(loss, "loss", _OUTPUT_ACTIVATIONS)
    return output_activation or _OUTPUT_ACTIVATIONS[loss]


def _warn_if_overcomplete(model):
    latent_dim, num_features = (
        math.prod(size or 1 for size in tensor.shape[1:])
        for tensor in (model.encoder.outputs[0], model.encoder.inputs[0])
    )
    if latent_dim >= num_features:
        warnings.warn(
            f"Overcomplete: {latent_dim} codes for {num_features} features, and no regulariser. The model can learn to copy its input "
            "without learning anything of the data (kerasae.metrics.diagnose measures it); a denoising, sparse or contractive "
            "autoencoder can't.",
            stacklevel=3,
        )

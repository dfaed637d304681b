"""The denoising family."""

import keras

from kerasae import checks
from kerasae.layers import GaussianCorruption, MaskingCorruption, SaltAndPepperCorruption
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.records import family
from kerasae.networks import takes_networks

__all__ = ["DenoisingAutoencoder"]

CORRUPTIONS = ("gaussian", "masking", "salt_and_pepper")


@keras.saving.register_keras_serializable("kerasae")
class DenoisingAutoencoder(Autoencoder):
    """A denoising autoencoder: minimises `E d(x, g(f(T x)))` over examples x and corruptions T.

    In training the input is corrupted, and the target is clean; evaluation, `predict` and `encode` take x as it is. `fit(x)` corrupts x
    with `corruption`; `fit(x_corrupted, x)` trains on pairs of your own, which `corruption=None` leaves as they are.

    Args:
        encoder, decoder, loss: as in `Autoencoder`; the loss is d.
        corruption: Keras layer, active in training only: `kerasae.layers.GaussianCorruption`, `MaskingCorruption`,
            `SaltAndPepperCorruption`, or your own. Default: none, for explicit pairs.
        seed: unused if the corruption has its own.

    Raises:
        ValueError: as `Autoencoder`, and if `corruption` is not a Keras layer.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.denoising(x_train.shape[1:], latent_dim=32, corruption="masking", corruption_rate=0.3)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    denoised = model.predict(kerasae.layers.MaskingCorruption(0.3)(x_test, training=True))
    ```

    Reference:
        Vincent, Larochelle, Bengio and Manzagol 2008, "Extracting and Composing Robust Features with Denoising Autoencoders",
        equation 5; Vincent et al. 2010.
    """

    def __init__(self, encoder, decoder, corruption=None, loss="squared_error", seed=None, **kwargs):
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        if corruption is not None and not isinstance(corruption, keras.layers.Layer):
            raise ValueError(f"`corruption` must be a Keras layer or None. Received: {corruption!r}")
        self.corruption = corruption

    def forward(self, x, training):
        if self.corruption is not None:
            corrupted = self.corruption(self.target_of(x), training=training)
            corrupted = self.with_padding(self.target_of(x), corrupted)
            # Side inputs stay as they are.
            x = corrupted if len(self.encoder.inputs) == 1 else [corrupted, *x[1:]]
        return super().forward(x, training)

    def get_config(self):
        corruption = None if self.corruption is None else keras.saving.serialize_keras_object(self.corruption)
        return {**super().get_config(), "corruption": corruption}


@family(
    title="denoising (Gaussian, masking, salt-and-pepper, your own pairs)",
    purpose="removing noise; robust features, codes of any size",
    paper="Vincent et al. 2008",
)
@takes_networks()
def denoising(networks, *, corruption="gaussian", noise_stddev=None, corruption_rate=None, seed=None, **kwargs):
    """A denoising autoencoder: it learns to reconstruct clean examples from corrupted ones, with a code of any size.

    Args:
        corruption: `"gaussian"`, `"masking"`, `"salt_and_pepper"`, a Keras layer that is active in training only, or `None` if `fit` gets
            pairs (corrupted, clean).
        noise_stddev: of the Gaussian. Default 0.5.
        corruption_rate: probability that a feature is masked, or turned to salt or pepper. Default 0.25.
        seed: of the corruption's noise.

    Returns:
        `kerasae.models.DenoisingAutoencoder`, to be compiled.

    Raises:
        ValueError: if an option belongs to another corruption.

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
    return DenoisingAutoencoder(*networks.pair(), corruption=corruption, loss=networks.loss, seed=seed, **kwargs)

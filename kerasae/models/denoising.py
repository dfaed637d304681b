"""The denoising family."""

import keras

from kerasae.models.autoencoder import Autoencoder


@keras.saving.register_keras_serializable("kerasae")
class DenoisingAutoencoder(Autoencoder):
    """A denoising autoencoder: minimises `E d(x, g(f(T x)))` over examples x and corruptions T.

    In training the input is corrupted, and the target is clean; evaluation, `predict` and `encode` take x as it is. `fit(x)` corrupts x
    with `corruption`; `fit(x_corrupted, x)` trains on pairs of your own, with `corruption=None` on nothing else.

    Args:
        encoder, decoder: Keras models; see `Autoencoder`.
        corruption: Keras layer, active in training only: `kerasae.layers.GaussianCorruption`, `MaskingCorruption`,
            `SaltAndPepperCorruption`, or your own. Default: none, for explicit pairs.
        loss: d; see `Autoencoder`.
        seed: unused where the corruption has its own.

    Raises:
        ValueError: as `Autoencoder`, and where `corruption` is not a Keras layer.

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
            # Side inputs stay as they are.
            x = corrupted if len(self.encoder.inputs) == 1 else [corrupted, *x[1:]]
        return super().forward(x, training)

    def get_config(self):
        corruption = None if self.corruption is None else keras.saving.serialize_keras_object(self.corruption)
        return {**super().get_config(), "corruption": corruption}

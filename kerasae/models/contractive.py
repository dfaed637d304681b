"""The contractive family."""

import functools

import keras
from keras import ops

from kerasae import checks
from kerasae.models.autoencoder import Autoencoder
from kerasae.models.jacobian import (
    check_encoder,
    encode_and_probe,
    exact_measure,
    mixes_examples,
    squared_jacobian_norm,
)
from kerasae.models.records import family
from kerasae.networks import takes_networks

__all__ = ["ContractiveAutoencoder", "squared_jacobian_norm"]

JACOBIANS = ("exact", "stochastic")


@keras.saving.register_keras_serializable("kerasae")
class ContractiveAutoencoder(Autoencoder):
    """A contractive autoencoder: minimises `E[d(x, g(f(x))) + lambda ||df/dx||_F^2]` over an encoder f and a decoder g.

    Logged: `reconstruction_loss`; `contraction_loss`, the mean over examples of the squared Frobenius norm of the encoder's Jacobian
    at x, not multiplied by lambda. The penalty and its gradient are exact for any encoder:

    - **Dense layers one after another**, with activations, flattening, dropout and the like between them: by propagating the Jacobian
      through the layers. One layer costs hardly more than the plain autoencoder, since `||df/dx||_F^2 = sum_j s'(a_j)^2 ||W_j||^2`; several
      cost about `latent_dim` encoder passes, and memory for a few tensors of `batch * latent_dim * units` of the widest layer but the last.
    - **Any other encoder** (convolutions, softmax, your own layers): by one backward pass per unit of the code. Time and memory grow with
      the code's size, since the gradient needs the values of each pass: with large codes lower the batch size, or choose
      `jacobian="stochastic"`. XLA can't compile this loop: Keras trains without it (`jit_compile=True` warns).

    In training the Jacobian is that of the function applied in this very step, dropout and noise as drawn. Batch normalisation makes a code
    depend on the other examples of the batch; the penalty is then that of the encoder in inference mode, at the price of a second pass.
    `predict` and `encode` don't compute it. The penalty alone doesn't keep the encoder from shrinking its weights while the decoder grows
    its own: the paper ties the two.

    Args:
        encoder, decoder, loss: as in `Autoencoder`. The encoder must treat each example by itself (batch normalisation aside).
        contraction_weight: lambda, at least 0. Default 0.1.
        jacobian: `"exact"`, or `"stochastic"` for large codes behind several layers: `mean_p ||v_p^T df/dx||^2` for random signs v_p, whose
            expectation is the exact penalty (Hutchinson's estimator; `evaluate` uses it too), at one backward pass per probe.
        num_probes: number of probes v per example for the stochastic estimate, at least 1.
        seed: of the probes.

    Raises:
        ValueError: as `Autoencoder`; if an option is wrong, or the encoder takes integers, which have no derivative.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.contractive(x_train.shape[1:], latent_dim=32, contraction_weight=0.1, tied=True)
    model.compile(optimizer="adam")
    model.fit(x_train, epochs=2)
    ```

    Reference:
        Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction": equation 1 is the penalty,
        J_CAE the objective. Deviations: encoder and decoder are any networks, where the paper has one sigmoid layer each, with tied
        weights, and stacks them layer by layer; the mean over examples, where the paper sums. The stochastic estimate: Hutchinson
        1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
    """

    term_names = ("reconstruction_loss", "contraction_loss")

    def __init__(
        self,
        encoder,
        decoder,
        loss="squared_error",
        contraction_weight=0.1,
        jacobian="exact",
        num_probes=1,
        seed=None,
        **kwargs,
    ):
        super().__init__(encoder, decoder, loss=loss, seed=seed, **kwargs)
        self.contraction_weight = checks.real_number(contraction_weight, "contraction_weight", minimum=0)
        self.jacobian = checks.choice(jacobian, "jacobian", JACOBIANS)
        self.num_probes = checks.positive_int(num_probes, "num_probes")
        check_encoder(encoder)
        # Functions, so that Keras doesn't track the models in them: their layers are the encoder's.
        if jacobian == "stochastic":
            probe = functools.partial(encode_and_probe, encoder, self.num_probes, self.noise_generator)
            self._encode_and_measure = probe
        else:
            self._encode_and_measure, self.supports_jit = exact_measure(encoder)

    @property
    def term_weights(self):
        return {"contraction_loss": self.contraction_weight}

    def forward(self, x, training):
        x = ops.cast(x, self.encoder.inputs[0].dtype)
        if training and mixes_examples(self.encoder):
            _, contraction = self._encode_and_measure(x, training=False)
            z = self.encoder(x, training=True)
        else:
            z, contraction = self._encode_and_measure(x, training=training)
        return {"z": z, "contraction": contraction, **self.reconstruct(z, training)}

    def call(self, x, training=False):
        # A reconstruction needs no Jacobian.
        x = self.arranged(x)
        return self.with_padding(self.target_of(x), super().forward(x, training)["reconstruction"])

    def terms(self, x, outputs):
        return {**super().terms(x, outputs), "contraction_loss": outputs["contraction"]}

    def get_config(self):
        names = ("contraction_weight", "jacobian", "num_probes")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@family(title="contractive", purpose="codes that hardly react to small changes of the input", paper="Rifai et al. 2011")
@takes_networks(
    hidden_units=(),
    loss="squared_error",
    activation="sigmoid",
    code_activation="sigmoid",
    output_activation=None,
    tied=False,
)
def contractive(networks, *, contraction_weight=0.1, jacobian="exact", **kwargs):
    """A contractive autoencoder: a penalty on `||df/dx||_F^2` makes the code insensitive to small changes of the input.

    By default encoder and decoder are one sigmoid layer each, as in the paper; tie them (`tied=True`) as it does.

    Args:
        contraction_weight: lambda, at least 0. Default 0.1.
        jacobian: `"exact"`, or `"stochastic"`, an unbiased estimate for large codes.
        **kwargs: `num_probes` of the stochastic estimate, `seed` and `name` of the model.

    Returns:
        `kerasae.models.ContractiveAutoencoder`, to be compiled.

    Example:

    ```python
    model = kerasae.builders.contractive((28, 28, 1), latent_dim=1000, loss="binary_crossentropy", tied=True)
    ```

    Reference:
        Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction".
    """
    return ContractiveAutoencoder(
        *networks.pair(), contraction_weight=contraction_weight, jacobian=jacobian, loss=networks.loss, **kwargs
    )

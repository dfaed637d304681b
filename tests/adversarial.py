"""A small family with several optimisers: an adversarial autoencoder (Makhzani et al. 2015), as a user would write one."""

import keras
import tensorflow as tf
from families import INPUT_SHAPE, LATENT_DIM, small
from keras import layers, ops

from kerasae import builders, models
from kerasae.layers import random_seed
from kerasae.models.optimizers import TrainingGroup


@keras.saving.register_keras_serializable("tests")
class AdversarialAutoencoder(models.Autoencoder):
    """Its codes are told from draws of N(0, I) by a discriminator, which the encoder learns to deceive."""

    term_names = ("reconstruction_loss", "discriminator_loss", "generator_loss")

    def __init__(self, encoder, decoder, discriminator, discriminator_steps=1, **kwargs):
        super().__init__(encoder, decoder, **kwargs)
        self.discriminator = discriminator
        self.discriminator_steps = discriminator_steps

    @property
    def term_weights(self):
        return {"generator_loss": 0.1}

    @property
    def training_groups(self):
        encoder, decoder, discriminator = (
            network.trainable_variables for network in (self.encoder, self.decoder, self.discriminator)
        )
        return {
            "autoencoder": TrainingGroup([*encoder, *decoder], ("reconstruction_loss",)),
            "discriminator": TrainingGroup(discriminator, ("discriminator_loss",), self.discriminator_steps),
            "generator": TrainingGroup(encoder, ("generator_loss",)),
        }

    def forward(self, x, training):
        outputs = super().forward(x, training)
        z = ops.cast(outputs["z"], "float32")
        seed = random_seed(self.noise_generator(training))
        prior = tf.random.stateless_normal(tf.shape(z), seed, alg="philox")
        logits = {name: self.discriminator(codes, training=training) for name, codes in (("real", prior), ("fake", z))}
        return {**outputs, **{name: ops.cast(values[:, 0], "float32") for name, values in logits.items()}}

    def terms(self, x, outputs):
        real, fake = outputs["real"], outputs["fake"]
        return {
            **super().terms(x, outputs),
            "discriminator_loss": ops.softplus(-real) + ops.softplus(fake),
            "generator_loss": ops.softplus(-fake),
        }

    def get_config(self):
        discriminator = keras.saving.serialize_keras_object(self.discriminator)
        return {
            **super().get_config(),
            "discriminator": discriminator,
            "discriminator_steps": self.discriminator_steps,
        }


def adversarial(network="dense", regularizer=None, **kwargs):
    """A small model for 8x8 images."""
    start = small(builders.undercomplete, network)()
    discriminator = keras.Sequential(
        [
            keras.Input((LATENT_DIM,)),
            layers.Dense(8, "leaky_relu", kernel_regularizer=regularizer),
            layers.Dense(1, name="logit"),
        ],
        name="discriminator",
    )
    assert start.encoder.input_shape[1:] == INPUT_SHAPE
    return AdversarialAutoencoder(start.encoder, start.decoder, discriminator, seed=0, **kwargs)

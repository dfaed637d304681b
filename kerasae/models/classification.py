"""Classifiers on top of encoders."""

import keras
from keras import layers

from kerasae import checks

__all__ = ["classifier"]


def classifier(encoder, num_classes, trainable=True):
    """A classifier on top of an encoder: its copy, and a Dense softmax layer over the classes.

    An ordinary Functional model, to be compiled with `loss="sparse_categorical_crossentropy"` and fitted to `(x, labels)`. The encoder is
    copied with its weights, so that training leaves the autoencoder as it is.

    Args:
        encoder: Functional (or built Sequential) Keras model from `(batch, *input_shape)` to `(batch, latent_dim)`, such as
            `model.encoder`, or a part of it: `keras.Model(encoder.inputs, encoder.get_layer("hidden_2").output)`.
        num_classes: at least 2.
        trainable: whether the copy of the encoder is fine-tuned. If not, only the softmax layer learns. To change it later, set `trainable`
            of the copy, `get_layer(encoder.name)`, and compile again.

    Returns:
        Functional model from `(batch, *input_shape)` to the classes' probabilities, `(batch, num_classes)`.

    Raises:
        ValueError: if `encoder` is no such model, or `num_classes` is below 2.

    Example:

    ```python
    (x_train, y_train), (x_test, y_test) = kerasae.data.load("digits", labels=True)
    model = kerasae.builders.undercomplete((8, 8, 1), 32)
    head = kerasae.models.classifier(model.encoder, num_classes=10)
    head.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    head.fit(x_train, y_train, epochs=2, validation_data=(x_test, y_test))
    ```

    Reference:
        Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.5: a logistic regression on the top layer, and all layers
        fine-tuned.
    """
    if not isinstance(encoder, keras.Model) or not getattr(encoder, "inputs", None):
        raise ValueError(f"`encoder` must be a Functional or built Sequential Keras model. Received: {encoder!r}")
    if len(encoder.inputs) != 1 or len(encoder.outputs) != 1 or len(encoder.outputs[0].shape) != 2:
        shapes = [tuple(output.shape) for output in encoder.outputs]
        raise ValueError(
            f"`encoder` must have one input and one output (batch, latent_dim). Received {len(encoder.inputs)} input(s), outputs of shape "
            f"{shapes}. Choose one: keras.Model(encoder.inputs, encoder.outputs[0])."
        )
    if checks.positive_int(num_classes, "num_classes") < 2:
        raise ValueError(f"`num_classes` must be at least 2. Received: {num_classes}")
    copy = keras.models.clone_model(encoder)
    copy.set_weights(encoder.get_weights())
    copy.trainable = bool(trainable)
    x = keras.Input(encoder.inputs[0].shape[1:], name="x", dtype=encoder.inputs[0].dtype)
    # float32 under mixed precision too, as all outputs.
    probabilities = layers.Dense(num_classes, "softmax", dtype="float32", name="probabilities")(copy(x))
    return keras.Model(x, probabilities, name="classifier")

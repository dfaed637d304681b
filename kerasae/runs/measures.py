"""What can be measured of a trained model, each metric with its unit and protocol."""

import inspect
from typing import Any

import numpy as np
import pydantic

from kerasae import checks, metrics
from kerasae.runs.examples import binarized, is_image


class Measurement(pydantic.BaseModel, extra="forbid", frozen=True):
    """What to measure on the test set, and the published value beside it."""

    metric: str
    arguments: dict[str, Any] = {}
    published: float | None = None
    source: str | None = None

    @pydantic.model_validator(mode="after")
    def _known(self):
        function, _, _ = _METRICS[checks.choice(self.metric, "metric", _METRICS)]
        for argument in self.arguments:
            checks.choice(argument, f"argument of {self.metric}", list(inspect.signature(function).parameters)[2:])
        return self


_METRICS = {}  # name: (function, unit, protocol)


def _metric(unit, protocol):
    """A metric: a function of the model, the data as `{"x_train", "y_train", "x_test", "y_test"}`, and a recipe's arguments."""

    def add(function):
        _METRICS[function.__name__.removeprefix("_")] = function, unit, protocol
        return function

    return add


@_metric("squared error per image", "summed over pixels in [0, 1], mean over test images")
def _squared_error(model, data):
    made = model.predict(data["x_test"], batch_size=1000, verbose=0)
    return metrics.squared_error(np.where(np.isnan(data["x_test"]), made, data["x_test"]), made)  # of what is observed


@_metric(
    "dB",
    "peak signal-to-noise ratio of the reconstruction, clipped to [0, 1]; with `corrupted`, of test "
    "images that the model's own corruption changed, from seed 0; mean over test images",
)
def _psnr(model, data, corrupted=False):
    x = data["x_test"]
    shown = x
    if corrupted:
        if model.corruption is None:
            raise ValueError("psnr with `corrupted` is for denoising models, which have a corruption of their own.")
        corruption = type(model.corruption).from_config({**model.corruption.get_config(), "seed": 0})
        shown = corruption(x, training=True).numpy()
    return metrics.psnr(x, model.predict(shown, batch_size=1000, verbose=0).clip(0, 1))


@_metric(
    "squared error per image",
    "PCA fitted on the training images, summed over pixels in [0, 1], unclipped, mean over test images",
)
def _pca_error(model, data, num_components):
    return metrics.pca_error(data["x_train"], data["x_test"], num_components)


@_metric(
    "nats per image",
    "negative evidence lower bound, one sample of z an image; pixels in [0, 1] as they are, or binarised "
    "from seed 0; mean over test images",
)
def _negative_elbo(model, data, binarize=False):
    x = binarized(data["x_test"]) if binarize else data["x_test"]
    logs = model.evaluate(x, batch_size=1000, verbose=0, return_dict=True)
    return sum(logs[name] for name in model.term_names)  # without a beta


@_metric(
    "nats per image",
    "importance sampling from q(z|x); test images binarised, each pixel 1 with probability its intensity, from seed 0",
)
def _negative_log_likelihood(model, data, num_samples, num_images=None):
    x = binarized(data["x_test"])[:num_images]
    return -model.log_likelihood(x, num_samples, verbose=1).mean(dtype="float64")


@_metric("units", "codes whose variance over the test images exceeds 0.01 (0 for a k-sparse code)")
def _active_units(model, data):
    return model.active_units(data["x_test"])


@_metric(
    "% of test images",
    "multinomial logistic regression on standardised codes, fitted on the training images that the model saw",
)
def _linear_probe_error(model, data, C=1.0):
    z_train, z_test = (model.encode(data[name], batch_size=1000) for name in ("x_train", "x_test"))
    return metrics.linear_probe_error(z_train, data["y_train"], z_test, data["y_test"], C=C)


@_metric(
    "% of test images",
    "k nearest neighbours by Euclidean distance of codes, among the training images that the model saw",
)
def _knn_error(model, data, num_neighbors=5):
    z_train, z_test = (model.encode(data[name], batch_size=1000) for name in ("x_train", "x_test"))
    return 100 * (1 - metrics.knn_accuracy(z_train, data["y_train"], z_test, data["y_test"], num_neighbors))


@_metric(
    "% of test images",
    "a softmax layer on the encoder, all fine-tuned by Adam on the training images less the last ones, on "
    "which the epoch is chosen",
)
def _finetuned_error(model, data, epochs, learning_rate=1e-3, batch_size=128, validation=10_000):
    import keras
    import tensorflow as tf

    from kerasae.models.classification import classifier

    keras.utils.set_random_seed(0)
    head = classifier(model.encoder, int(data["y_train"].max()) + 1)
    head.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    best = keras.callbacks.EarlyStopping("val_accuracy", patience=epochs, restore_best_weights=True)
    # In another order every epoch: from arrays, Keras would repeat the first one's after `set_random_seed`.
    examples = tf.data.Dataset.from_tensor_slices((data["x_train"][:-validation], data["y_train"][:-validation]))
    head.fit(
        examples.shuffle(len(examples), seed=0).batch(batch_size).prefetch(2),
        validation_data=(data["x_train"][-validation:], data["y_train"][-validation:]),
        epochs=epochs,
        validation_batch_size=1000,
        shuffle=False,
        callbacks=[best],
        verbose=2,
    )
    _, accuracy = head.evaluate(data["x_test"], data["y_test"], batch_size=1000, verbose=0)
    return 100 * (1 - accuracy)


def measure(recipe, model, data):
    """Measures what the recipe asks for on the test images.

    Args:
        recipe: `Recipe`.
        model: compiled model.
        data: `((x_train, y_train), (x_test, y_test))`, as `kerasae.data.load(labels=True)` gives.

    Returns:
        A list of `{"metric", "arguments", "value", "unit", "protocol", "split", "num_examples", "published", "source"}`.
    """
    from kerasae.runs.recipes import split

    (x_train, y_train), (x_test, y_test) = data
    seen = len(split(recipe, x_train)[0])
    y_train = None if y_train is None else y_train[:seen]
    data = {"x_train": x_train[:seen], "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return measure_each(recipe.measure, model, data)


def measure_each(measurements, model, data):
    """As `measure`, of a list of `Measurement`; `data` is `{"x_test", ...}`, with `x_train`, `y_train` and `y_test` where a metric asks."""
    x_test = data["x_test"]
    pixels = is_image(x_test.shape[1:]) and x_test.min() >= 0 and x_test.max() <= 1
    records = []
    for measurement in measurements:
        function, unit, protocol = _METRICS[measurement.metric]
        if not pixels:
            unit, protocol = (
                text.replace("pixels in [0, 1]", "scaled features").replace("image", "example")
                for text in (unit, protocol)
            )
        records.append(
            {
                **measurement.model_dump(),
                "value": float(function(model, data, **measurement.arguments)),
                "unit": unit,
                "protocol": protocol,
                "split": "test",
                "num_examples": measurement.arguments.get("num_images", len(x_test)),
            }
        )
    return records


def default_measurements(model, x, num_train=0, classes=0):
    """What to measure of a model where nobody said.

    Args:
        model: the model.
        x: test examples.
        num_train: number of training examples; 0 where there are none to compare with.
        classes: number of classes in the labels of training and test examples; 0 without.
    """
    names = [("squared_error", {})]
    if num_train and not model.takes_missing and model.code_size and model.code_size < min(num_train, x[0].size):
        names.append(("pca_error", {"num_components": model.code_size}))
    if is_image(x.shape[1:]) and x.min() >= 0 and x.max() <= 1:
        names.append(("psnr", {}))
    if model.posterior is not None:
        names.append(("negative_elbo", {}))
    if len(x) > 1:
        names.append(("active_units", {}))
    if num_train and 1 < classes <= 100:
        names.append(("linear_probe_error", {}))
    return [Measurement(metric=name, arguments=arguments) for name, arguments in names]

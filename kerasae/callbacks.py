"""Keras callbacks for every family."""

import struct
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasae import checks, figures, writing
from kerasae.models import Autoencoder


class Pictures(keras.callbacks.Callback):
    """Draws pictures of a model, every few epochs during training and after the last.

    - `reconstructions`, if examples are images: `x` beside its reconstructions. If the model corrupts its input: `x` clean, corrupted
      and denoised.
    - `samples`, if examples are images and the model can sample: decoded from the same codes each time.
    - `codes`, if a code has at least two units: the codes of `x` as points, coloured by class, as `kerasae.figures.codes_2d` draws them.
    - `units`: the information in each unit of the code: the KL of each latent of a variational model, else the variance of each unit.

    Each picture is written, whole or not at all, to a file such as `<folder>/epoch-0005-reconstructions.png`, with epochs counted from 1 as
    in the progress bar. TensorBoard shows it under the same name in the run `<log_dir>/pictures`, at the step where
    `keras.callbacks.TensorBoard` has that epoch's losses, even if TensorBoard is not installed here. Colours follow matplotlib's style; see
    `kerasae.figures.theme`. The callback doesn't change training: it uses none of training's random numbers.

    Args:
        x: at least 2 examples to draw, `(n, ...)` in the shape that the model takes. Images in [0, 1] of shape `(n, h, w)`,
            `(n, h, w, 1)` or `(n, h, w, 3)` get all pictures, other examples only `codes` and `units`. A thousand are enough for these
            two; `reconstructions` shows the first `num_images`.
        folder: where PNG files are written; created if missing.
        log_dir: where TensorBoard looks; created if missing. Pass at least one of the two.
        every: whole number, at least 1: epochs between pictures. Default 5.
        labels: the class of each example, `(n,)`, at most 50 different ones, which colour the codes. Default: none.
        num_images: whole number, at least 1: reconstructions per row, and samples per side of their square. Default 10.

    Raises:
        ValueError: if neither folder is given, `every` or `num_images` is below 1, `x` is not numeric or holds fewer than 2 examples, NaN
            or infinity, or `labels` is not one class per example. At the start of `fit`, before anything is trained, if the model doesn't
            take examples of x's shape.
        OSError: if a folder can't be written to.

    Example:

    ```python
    x_train, x_test = kerasae.data.load("digits")
    model = kerasae.builders.undercomplete(x_train.shape[1:], latent_dim=2, hidden_units=(32,))
    model.compile(optimizer="adam")
    pictures = kerasae.callbacks.Pictures(x_test, folder="pictures", every=1)
    model.fit(x_train, epochs=1, callbacks=[pictures])  # pictures/epoch-0001-codes.png, …
    ```
    """

    def __init__(self, x, folder=None, log_dir=None, every=5, labels=None, num_images=10):
        super().__init__()
        if folder is None and log_dir is None:
            raise ValueError(
                "Nowhere to put pictures: pass `folder` for PNG files, `log_dir` for TensorBoard, or both."
            )
        self.x = checks.array(x)
        if self.x.ndim < 2 or len(self.x) < 2:
            raise ValueError(f"`x` must hold at least 2 examples, batch first. Received shape: {self.x.shape}")
        self.every = checks.positive_int(every, "every")
        self.num_images = checks.positive_int(num_images, "num_images")
        self.labels = None if labels is None else np.asarray(labels)
        if self.labels is not None:
            if self.labels.shape != (len(self.x),):
                raise ValueError(
                    f"`labels` must hold one class per example, of which there are {len(self.x)}. Received shape: {self.labels.shape}"
                )
            figures.codes_2d(
                {"codes": np.zeros((len(self.x), 2))}, self.labels
            )  # for its checks, now and not after an epoch
        self._has_images = self.x.ndim == 3 or (self.x.ndim == 4 and self.x.shape[-1] in (1, 3))
        if self._has_images:
            figures.samples(self.x[: self.num_images])  # for its checks
        self.folder = None if folder is None else writing.writable(folder)
        self.log_dir = None if log_dir is None else writing.writable(log_dir) / "pictures"
        self._writer = None
        self._last_epoch = None
        self._drawn_epoch = None

    def set_model(self, model):
        super().set_model(model)
        if not isinstance(model, Autoencoder):
            raise ValueError(f"Pictures needs an autoencoder. Received: {model!r}")
        checks.array(self.x[:1], model.encoder.inputs[0].shape[1:], name="x")

    def on_train_begin(self, logs=None):
        self._last_epoch = self._drawn_epoch = None

    def on_epoch_end(self, epoch, logs=None):
        self._last_epoch = epoch
        if (epoch + 1) % self.every == 0:
            self._write(epoch)

    def on_train_end(self, logs=None):
        if self._last_epoch != self._drawn_epoch:
            self._write(self._last_epoch)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, epoch):
        with tempfile.TemporaryDirectory() as unless_wanted:
            for name, figure in self._draw(epoch).items():
                folder = self.folder or Path(unless_wanted)
                path = figures.save(figure, folder / f"epoch-{epoch + 1:04d}-{name}.png")
                if self.log_dir is not None:
                    self._write_summary(name, path.read_bytes(), epoch)
        if self._writer is not None:
            self._writer.flush()
        self._drawn_epoch = epoch

    def _draw(self, epoch):
        """`{name: matplotlib.figure.Figure}` of the model as it is."""
        model, drawn = self.model, {}
        codes = model.encode(self.x)
        units = codes.reshape(len(codes), -1)
        if self._has_images:
            if model.corruption is not None:
                drawn["reconstructions"] = figures.denoising(model, self.x, num_images=self.num_images)
            else:
                shown = slice(self.num_images)
                rows = {"input": self.x[shown], "reconstruction": model.decode(codes[shown])}
                drawn["reconstructions"] = figures.reconstructions(rows, self.num_images)
            if model.prior is not None:
                samples = model.sample(self.num_images**2, seed=0)
                drawn["samples"] = figures.samples(samples, columns=self.num_images)
        if units.shape[1] >= 2:
            drawn["codes"] = figures.codes_2d({f"epoch {epoch + 1}": units}, self.labels)
        if model.posterior is not None:
            drawn["units"] = figures.unit_kl(*model.encoder.predict(self.x, verbose=0), model.active_variance)
        else:
            drawn["units"] = figures.unit_variance(units, model.active_variance)
        return drawn

    def _write_summary(self, name, png, epoch):
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        width, height = struct.unpack(">II", png[16:24])
        image = tf.compat.v1.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        summary = tf.compat.v1.Summary(value=[tf.compat.v1.Summary.Value(tag=name, image=image)])
        # `tf.summary.image` would need TensorBoard to be installed.
        with self._writer.as_default(step=epoch):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

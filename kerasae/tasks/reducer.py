"""Dimensionality reduction and feature extraction."""

import keras
import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils.validation import check_array, check_is_fitted

from kerasae.functions import by_name, of_network
from kerasae.registry import FAMILIES
from kerasae.tasks.base import AutoencoderTransformer, assign
from kerasae.tasks.batches import run


class Reducer(ClassNamePrefixFeaturesOutMixin, AutoencoderTransformer):
    """Reduces examples to short codes, as PCA does, with an autoencoder.

    `fit` minimises the model's loss, `E d(x, g(f(x)))`, on the scaled examples; `transform` gives the codes `f(x)` (for a variational model
    the means of q(z|x)), and `inverse_transform` the reconstructions `g(z)` in the data's units. It works in pipelines and grid searches:
    `score` is the negative squared error of the reconstruction, so that higher is better.

    Args:
        model: `"undercomplete"` (default), any other family, or a kerasae model of your own.
        latent_dim: numbers per code, at least 1. Default 2.
        hidden_units, network, model_options, epochs, batch_size, learning_rate, validation_fraction, patience, random_state, verbose: as in
            `AutoencoderEstimator`.
        scaling: also as there. Default `"global"`: distances keep their proportions, so that the error is weighed as in PCA. Use
            `"standard"` where columns have different units.

    Attributes:
        model_: the fitted kerasae model, which takes scaled examples.

    Example:

    ```python
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    images, labels = kerasae.data.load("digits", labels=True)[0]
    reducer = kerasae.tasks.Reducer(latent_dim=16, epochs=2, random_state=0)
    classifier = make_pipeline(reducer, LogisticRegression(max_iter=1000)).fit(images, labels)
    codes = classifier[0].transform(images)
    ```

    Reference:
        Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks".
    """

    def __init__(
        self,
        model="undercomplete",
        *,
        latent_dim=2,
        hidden_units=None,
        network="dense",
        model_options=None,
        scaling="global",
        epochs=100,
        batch_size=None,
        learning_rate=1e-3,
        validation_fraction=0.1,
        patience=10,
        random_state=None,
        verbose=0,
    ):
        assign(self, locals())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_missing
        return tags

    @property
    def _takes_missing(self):
        if isinstance(self.model, str):
            return self.model in FAMILIES and FAMILIES[self.model].takes_missing
        return getattr(self.model, "takes_missing", False)

    def _checked(self, X, reset=False):
        return self._validate(X, reset, ensure_all_finite="allow-nan" if self._takes_missing else True)

    def fit(self, X, y=None):
        """Fits the model.

        Args:
            X: table (n, columns) or images (n, height, width[, channels]), at least 2 rows, finite; NaN is a missing value to a model that
                takes it, such as `"incomplete"`.
            y: ignored.

        Raises:
            ValueError: on bad data or options, or if training diverges.
        """
        X = self._checked(X, reset=True)
        self._check_observed(X)
        x = self._fit_scaling(X)
        self.model_ = self._fit_model(x, seed=self._seed())
        return self

    def transform(self, X):
        """Codes, `(n, latent_dim)`, in float32."""
        check_is_fitted(self)
        codes = run(self.model_.encoder, self._scale(self._checked(X)))
        codes = self.model_.code_of(codes)
        return codes.reshape(len(codes), -1)

    def inverse_transform(self, Z):
        """Reconstructions of codes, in the shape and units of the data passed to `fit`: float32, or float64 where that loses digits."""
        check_is_fitted(self)
        Z = check_array(Z, dtype=("float64", "float32"))
        if Z.shape[1] != self._n_features_out:
            raise ValueError(f"Z must have {self._n_features_out} numbers per row. Received shape: {Z.shape}")
        return self._unscale(self.model_.reconstruction_of(run(self.model_.decoder, Z)))

    def score(self, X, y=None):
        """Negative squared error of the reconstruction: summed over features, averaged over examples, in squared units of the data.

        Missing values are left out.
        """
        X, made = self._checked(X), self.inverse_transform(self.transform(X))
        difference = np.where(np.isnan(X), 0, X - made)
        return -float(np.square(difference, dtype="float64").sum() / len(difference))

    def functions(self):
        """`transform`, from raw examples to codes, and `inverse_transform`, back; see `AutoencoderEstimator.functions`."""
        check_is_fitted(self)
        x, scaled = self._scaled_input(self.model_.encoder.inputs[0].shape[1:])
        codes = keras.layers.Flatten(name="codes")(self.model_.code_of(self.model_.encoder(scaled)))
        z = keras.Input((self._n_features_out,), name="z")
        shaped = keras.layers.Reshape(self.model_.decoder.inputs[0].shape[1:])(z)
        reconstruction = self._unscaled_output(self.model_.reconstruction_of(self.model_.decoder(shaped)))
        meaning = "the reconstructions, in the units of x"
        return by_name(
            of_network(
                "transform",
                "from examples to codes",
                keras.Model(x, codes),
                ("z", "the codes"),
                self._unnamed().transform,
                missing=self._takes_missing,
            ),
            of_network(
                "inverse_transform",
                "from codes to reconstructions",
                keras.Model(z, reconstruction),
                ("reconstruction", meaning),
                self._unnamed().inverse_transform,
                ("z", "codes"),
                self._units(),
            ),
        )

    @property
    def _n_features_out(self):
        return self.model_.code_size

"""What the estimators share: scikit-learn's conventions around a kerasae model.

How an estimator is written on it:

- its `__init__` has a signature of its own and only assigns, as scikit-learn wants: `assign(self, locals())`. What it doesn't take of
  `AutoencoderEstimator`'s parameters is an attribute of the class;
- `fit` begins with `X = self._validate(X, reset=True)` and `x = self._fit_scaling(X)`, asks `self._seed()` for a seed (once: with a
  `RandomState` or None every call gives another), and `self.model_ = self._fit_model(x, seed=seed)`; an ensemble calls that several times;
- other methods begin with `check_is_fitted(self)`, `X = self._validate(X)` and `x = self._scale(X)`, send batches through a network by
  `run(self.model_.encoder, x)`, and give a reconstruction back in the data's units and shape by `self._unscale(reconstruction)`;
- everything learned is a NumPy array, a number or a Keras model in an attribute that ends in `_`: Keras models pickle and deep-copy by
  their `.keras` bytes, so a fitted estimator does too. No method but `fit` sets attributes;
- `functions` gives what `kerasae.export.export(estimator, folder)` writes: of each job `kerasae.functions.of_network`, whose network is
  built with `self._scaled_input()` and `self._unscaled_output(tensor)`, which put the scaling into the graph. If scikit-learn's tag
  `input_tags.allow_nan` is set, the files are checked on examples with NaN too;
- what has a `transform` that gives float32 stands on `AutoencoderTransformer`.
"""

import copy
import inspect
import logging
import math
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from kerasae import checks, models, networks
from kerasae.models import Autoencoder
from kerasae.tasks.batches import ROWS_AT_ONCE, randomness_of, shuffled_batches
from kerasae.tasks.scaling import Scaling

# What a family's builder takes if an estimator can build its models by name.
_HYPERPARAMETERS = {"input_shape", "latent_dim", "hidden_units"}

_logger = logging.getLogger(__name__)


def assign(estimator, parameters):
    """Gives an estimator its parameters, `locals()` of its `__init__`, as attributes: all that scikit-learn wants to happen there."""
    vars(estimator).update({name: value for name, value in parameters.items() if name != "self"})


class AutoencoderEstimator(Scaling, BaseEstimator):
    """Base of the estimators: a kerasae model behind scikit-learn's interface.

    Args:
        model: name of a family, as in `kerasae.builders`; or a kerasae model of your own, whose architecture is taken (every fit begins
            with new weights; if it is compiled, with its optimiser).
        latent_dim: size of the code, at least 1; of a named family.
        hidden_units: of a named family, see its builder. Default: the builder's.
        network: `"dense"`, `"conv"` or another kind of `kerasae.networks`, of a named family.
        model_options: dict of other options of the builder, such as `{"k": 25}`.
        scaling: of the input, learned in `fit`: `"standard"`, each feature's mean and standard deviation; `"robust"`, its median and
            interquartile range; `"minmax"`, to [0, 1] (as a cross-entropy needs it); `"global"`, each feature's mean and one scale for
            all, which keeps distances in proportion; `"range"`, to [0, 1], with one minimum and maximum for all; or None. A feature
            that is constant is divided by 1.
        epochs: at most so many passes over the data, at least 1.
        batch_size: examples a step, at least 1. Default: a fiftieth of them, but at least 16 and at most 256, so that small tables get
            enough steps.
        learning_rate: of Adam, above 0.
        validation_fraction: of the examples, in [0, 1), held out to stop early; 0 trains for all `epochs` on all examples.
        patience: epochs without a lower validation loss after which training stops; the best weights are kept.
        random_state: int, `RandomState` or None, of weights, noise, order of examples and the split. The same int gives the same fit.
        verbose: as in `keras.Model.fit`: 0 silent, 1 a progress bar, 2 a line an epoch.

    Attributes:
        n_features_in_: number of columns (of an image, its height); `feature_names_in_` for data frames.
        input_shape_, input_dtype_: shape of an example at fit, and the type that it had or was given.
    """

    # What every builder that has such an option is given where `model_options` says nothing else.
    _builder_options: ClassVar = {}
    # Function of a compiled model and what stops it early, or None, that gives callbacks and how many epochs it has seen: so fits go on.
    _going_on: ClassVar = None
    # What was done to the data before `fit` saw it, a `kerasae.preparation.Preparation`; what is exported takes data from before.
    preparation = None
    # Whether the learning rate falls to 0 along a cosine.
    _rate_falls: ClassVar = False

    def __init__(
        self,
        model="undercomplete",
        *,
        latent_dim=2,
        hidden_units=None,
        network="dense",
        model_options=None,
        scaling="standard",
        epochs=100,
        batch_size=None,
        learning_rate=1e-3,
        validation_fraction=0.1,
        patience=10,
        random_state=None,
        verbose=0,
    ):
        assign(self, locals())

    def functions(self):
        """What a fitted estimator can do, from the raw input to the answer: `{name: kerasae.functions.Function}`, the main job first."""
        raise NotImplementedError(f"{type(self).__name__} has no deployed form.")

    def _unnamed(self):
        """The same estimator without the names of columns: it takes arrays in the columns' order, and warns of nothing."""
        unnamed = copy.copy(self)
        vars(unnamed).pop("feature_names_in_", None)
        return unnamed

    def made_up_examples(self, num_examples):
        """Random examples with the mean and scale of what `fit` saw, for checks without data; with NaN where the estimator takes it."""
        rng = np.random.default_rng(0)
        X = self._unscale(rng.standard_normal((num_examples, *self.input_shape_)))
        if self.__sklearn_tags__().input_tags.allow_nan:
            X[rng.random(X.shape) < 0.2] = np.nan
        return X

    # -- The door ----------------------------------------------------------------------------------------------------------------------

    def _validate(self, X, reset=False, images=True, min_samples=2, **check_params):
        """X as an array of float32 or float64, checked by scikit-learn's rules; with `reset` its shape and names are what later calls need.

        Args:
            X: table (n, columns), array or data frame; or images (n, height, width[, channels]).
            reset: True in `fit`.
            images: whether more than two axes are taken.
            min_samples: the fewest rows that `fit` takes.
            **check_params: of `sklearn.utils.check_array`, such as `ensure_all_finite="allow-nan"`.
        """
        if isinstance(X, np.ma.MaskedArray):
            X = checks.plain(X)
        names = list(getattr(X, "columns", ()))
        if len(set(names)) < len(names):
            raise ValueError(
                f"X has several columns of one name: {checks.listed(sorted({str(n) for n in names if names.count(n) > 1}))}. Rename or "
                "drop them, as by X.loc[:, ~X.columns.duplicated()]."
            )
        # 8-bit images fit into float32; what scikit-learn would make of them is twice as large.
        is_small = getattr(getattr(X, "dtype", None), "itemsize", 8) <= 2
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype="float32" if is_small else ("float64", "float32"),
            allow_nd=images,
            ensure_min_samples=min_samples if reset else 1,
            **check_params,
        )
        if reset:
            checks.in_float32(X, "X")
            self.input_shape_, self.input_dtype_ = X.shape[1:], X.dtype.name
        elif X.shape[1:] != self.input_shape_:
            raise ValueError(
                f"X must have examples of the shape {self.input_shape_}, as in fit. Received shape: {X.shape}"
            )
        return X

    def _check_observed(self, X):
        """Raises on a feature that is NaN in all rows."""
        empty = np.argwhere(np.isnan(X).all(axis=0))
        if len(empty):
            names = getattr(self, "feature_names_in_", None)
            first = [names[i[0]] if names is not None else ", ".join(map(str, i)) for i in empty[:5]]
            raise ValueError(
                f"Each column must have an observed value to learn from. Without any: {len(empty)}, the first of them {first}. "
                "Drop such columns."
            )

    def _seed(self):
        """A seed drawn from `random_state`."""
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    # -- The model ---------------------------------------------------------------------------------------------------------------------

    def _build_model(self, input_shape, seed):
        """A new model, not compiled, for examples of a shape."""
        known = {family.name: family for family in models.families() if _HYPERPARAMETERS <= _parameters(family)}
        if isinstance(self.model, str):
            family = known[checks.choice(self.model, "model", known)]
            takes = _parameters(family)
            options = {name: value for name, value in self._builder_options.items() if name in takes}
            options = family.for_real_values({**options, "seed": seed, **(self.model_options or {})})
            if options.get("mask_value") is not None and getattr(self, "scaling", None) is not None:
                raise ValueError(
                    "`mask_value` is what padding holds in the data, and scaling would change it, and count it: scale the series yourself, "
                    "and pass scaling=None."
                )
            if "network" in takes:
                options["network"] = self.network
                input_shape = networks.with_axes(input_shape, self.network)
            if self.hidden_units is not None:
                options["hidden_units"] = self.hidden_units
            return family.builder(input_shape, latent_dim=self.latent_dim, **options)
        if not isinstance(self.model, Autoencoder):
            raise ValueError(f"`model` must be one of {list(known)} or a kerasae model. Received: {self.model!r}")
        # It will take examples that are scaled here, whatever it was trained on.
        model = type(self.model).from_config({**self.model.get_config(), "seed": seed, "preparation": None})
        takes = model.encoder.inputs[0].shape[1:]
        if None in takes or math.prod(takes) != math.prod(input_shape):
            raise ValueError(f"`model` takes examples of shape {takes}, and those of X have the shape {input_shape}.")
        return model

    def _fit_model(self, x, y=None, *, seed, corrupt=None, num_rows=None):
        """A new model, fitted to scaled examples.

        Args:
            x: float32, in the data's shape.
            y: targets of the same shape. Default: x.
            seed: int; everything random comes from it.
            corrupt: function of a batch tensor of x and a seed of shape (2,), drawn anew for every batch, that gives what the model is
                shown of it; the targets stay clean. Default: x itself.
            num_rows: examples an epoch; x is repeated up to so many, without a copy. Default: as many as there are.

        Returns:
            The fitted kerasae model.
        """
        num_rows = num_rows or len(x)
        epochs = checks.positive_int(self.epochs, "epochs")
        batch_size = self.batch_size
        batch_size = (
            min(max(num_rows // 50, 16), 256) if batch_size is None else checks.positive_int(batch_size, "batch_size")
        )
        learning_rate = checks.real_number(self.learning_rate, "learning_rate", minimum=0, exclusive=True)
        fraction = checks.real_number(self.validation_fraction, "validation_fraction", minimum=0)
        if fraction >= 1:
            raise ValueError(f"`validation_fraction` must lie in [0, 1). Received: {fraction:g}")
        with randomness_of(seed):
            model = self._build_model(x.shape[1:], seed)
        shape = model.encoder.inputs[0].shape[1:]
        targets = [] if y is None and corrupt is None else [x if y is None else y]
        arrays = [array.reshape(len(array), *shape) for array in (x, *targets)]
        checks.array(arrays[-1], shape, unit_interval=model.needs_unit_interval, missing=model.takes_missing)
        size = 24 * num_rows  # of the rows' numbers, and their order
        checks.fits(
            size, f"An epoch of {num_rows:,} examples takes {size / 2**30:.1f} GiB", "Take fewer (max_samples)."
        )
        options, stopping, rows = {}, None, np.arange(num_rows) % len(x)
        num_held_out = min(round(fraction * num_rows), num_rows - 1)
        if num_held_out:
            patience = checks.positive_int(self.patience, "patience")
            rows = rows[np.random.default_rng(seed).permutation(num_rows)]
            held_out = [array[rows[:num_held_out]] for array in arrays]
            if corrupt is not None:
                held_out[0] = np.concatenate(
                    [
                        corrupt(tf.constant(held_out[0][i : i + ROWS_AT_ONCE]), tf.constant([seed, -1 - i]))
                        for i in range(0, num_held_out, ROWS_AT_ONCE)
                    ]
                )
            options["validation_data"] = tuple(held_out)
            options["validation_batch_size"] = max(batch_size, ROWS_AT_ONCE)
            rows = rows[num_held_out:]
            stopping = keras.callbacks.EarlyStopping(
                "val_loss", mode="min", patience=patience, restore_best_weights=True
            )
        own = self.model if isinstance(self.model, Autoencoder) and self.model.compiled else None
        steps = -(-len(rows) // batch_size)
        if own is not None:
            model.compile_from_config(own.get_compile_config())
        elif self._rate_falls:
            schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
            model.compile(optimizer=keras.optimizers.Adam(schedule))
        else:
            model.compile(optimizer=keras.optimizers.Adam(learning_rate))
        first, callbacks, loss = 0, [] if stopping is None else [stopping], []
        if self._going_on is not None:
            model.optimizer.build(model.trainable_variables)
            going_on, first = self._going_on(model, stopping)
            callbacks += going_on
        if stopping is not None and (first == epochs or stopping.wait >= patience):
            model.set_weights(stopping.best_weights)
        elif first < epochs:
            history = model.fit(
                shuffled_batches(arrays, rows, batch_size, steps, epochs, seed, corrupt, first),
                epochs=epochs,
                initial_epoch=first,
                steps_per_epoch=steps,
                callbacks=callbacks,
                shuffle=False,  # done
                verbose=self.verbose,
                **options,
            )
            loss = history.history["loss"]
        if not np.isfinite(loss).all():
            raise ValueError(
                f"Training diverged: the loss became {loss[-1]} after {len(loss)} epochs. A lower `learning_rate` (now "
                f"{learning_rate:g}) or another `scaling` (now {self.scaling!r}) helps."
            )
        _logger.debug("%s: %d epochs, loss %g", type(self).__name__, first + len(loss), loss[-1] if loss else math.nan)
        # Adam's moments, twice the weights, serve nobody any more, and would go into every pickle.
        model.compile(optimizer="sgd")
        return model


class AutoencoderTransformer(TransformerMixin, AutoencoderEstimator):
    """Base of the estimators with `transform`: what it gives is float32, as Keras computes it."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _parameters(family):
    return set(inspect.signature(family.builder).parameters)

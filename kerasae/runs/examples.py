"""The examples that a recipe names, loaded, split and scaled."""

import dataclasses
import logging


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a recipe's data are: `train` and `test`, each `(x, y)`, y None without labels; and `facts` of them, for `data.json`.

    `line` says what was read, what becomes of it and how it is split; it is to be logged at the level `weight`.
    """

    train: tuple
    test: tuple
    facts: dict
    line: str = ""
    weight: int = logging.INFO

    @property
    def preparation(self):
        """The `kerasae.preparation.Preparation` that made the examples."""
        from kerasae.preparation import Preparation

        return Preparation.from_dict(self.facts["preparation"])

    @property
    def images(self):
        """Whether the examples are images."""
        return is_image(self.train[0].shape[1:])


def is_image(shape):
    """Whether examples of this shape can be shown as images."""
    return len(shape) == 3 and shape[-1] in (1, 3)


def load(recipe, data_dir=None, unit_interval=None):
    """Loads the recipe's data.

    Args:
        recipe: `Recipe`.
        data_dir: as in `kerasae.data.load`.
        unit_interval: whether `scaling = "auto"` brings a table into [0, 1]. Default: where the model's likelihood takes nothing else.

    Returns:
        `Dataset`.
    """
    from kerasae import checks
    from kerasae.data import datasets, files
    from kerasae.preparation import Preparation, check_unscaled
    from kerasae.runs import recipes

    source = recipe.data
    if source.name is not None:
        train, test = datasets.load_with_labels_if_any(source.name, data_dir)
        preparation, facts, classes = of_dataset(train[0].shape[1:]), {}, None
        said, weight = f"{source.title}: {preparation.describe()}", logging.INFO
    else:
        missing = recipes.takes_missing(recipe.family)
        options = {name: getattr(source, name) for name in files.OPTIONS}
        read = files.read(source.path, quiet=True, missing=missing, **options)
        values, classes = read.values, read.classes
        indices = files.split(len(values), source.test_fraction, recipe.seed)
        if unit_interval is None and values.ndim < 4 and source.scaling == "auto":
            options = recipes.with_latent_dim(recipe.family, recipe.model, values.shape[1])
            whole = recipe.model_copy(update={"model": options})
            model = recipes.build(whole, values.shape[1:], len(indices[0]))
            unit_interval = model.likelihood.support == (0.0, 1.0)
        preparation = Preparation.fit(read, indices[0], source.scaling, bool(unit_interval), missing)
        if recipe.model.get("mask_value") is not None and preparation.scaling != "none":
            raise ValueError(
                "`mask_value` is what padding holds in the data, and scaling would change it, and count it: scale the series yourself, and "
                'say scaling = "none" (--scaling none).'
            )
        if source.scaling == "none":
            check_unscaled(values[indices[0]], read.columns, "--scaling standard")
        checks.memory(values.shape, "float32", source.path)
        train, test = (
            (preparation.apply(values[i], missing), None if read.labels is None else read.labels[i]) for i in indices
        )
        facts, weight = {"fingerprint": read.fingerprint}, read.weight
        said = f"{read.said}; {preparation.way}"
        if read.names is not None:
            facts["test_files"] = [read.names[i] for i in indices[1]]
        else:
            facts["test_rows"] = [number - 1 for number in read.numbers(indices[1])]
    return Dataset(
        train,
        test,
        {
            "data": source.title,
            "preparation": preparation.to_dict(),
            "num_train": len(train[0]),
            "num_test": len(test[0]),
            "classes": classes,
            **facts,
        },
        f"{said}; {len(train[0]):,} to train on, {len(test[0]):,} to test on",
        weight,
    )


def of_dataset(shape):
    """The preparation of a dataset by its name: `kerasae.data.load` gives pixels in [0, 1], and that is what a model of it takes."""
    from kerasae.preparation import Preparation

    return Preparation("images", shape, "pixels")


def binarized(x, seed=0):
    """Images of zeros and ones: each pixel is 1 with probability its intensity, from a seed."""
    import numpy as np

    return (np.random.default_rng(seed).random(x.shape, dtype="float32") < x).astype("float32")


def binarized_batches(x, batch_size, seed):
    """A `tf.data.Dataset` of shuffled batches that are binarised anew in every epoch."""
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=seed).batch(batch_size)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    batches = tf.data.Dataset.zip(batches, seeds).map(_binarize, num_parallel_calls=2).prefetch(4)
    batches.are_checked = True  # zeros and ones
    return batches


def _binarize(x, seed):
    import tensorflow as tf

    return tf.cast(tf.random.stateless_uniform(tf.shape(x), seed) < x, tf.float32)

"""Trains a recipe's model and fills the run's folder."""

import contextlib
import functools
import logging
import time
from importlib.metadata import version
from pathlib import Path

from kerasae import writing
from kerasae.runs import checkpoints, examples, measures, recipes, workers
from kerasae.runs.checkpoints import CHECKPOINT

_logger = logging.getLogger(__name__)


def run(recipe, folder, text=None, data_dir=None, verbose="auto", complete=None, loaded=None, start_again=False):
    """Trains a recipe's model and fills a folder: recipe, model, history, facts of the data, measures, and what `complete` adds.

    A run that was stopped goes on at the last whole epoch when called again. The files of a finished one are replaced together, at the
    end; other files in the folder stay.

    Args:
        recipe: `Recipe`.
        folder: where to.
        text: what to write as recipe.toml. Default: the recipe, with every default.
        data_dir: as in `kerasae.data.load`.
        verbose: as in `keras.Model.fit`.
        complete: called with a folder to write more files into, the model, its `Dataset`, its history, and what goes into `metrics.json`.
        loaded: `Dataset`, where the recipe's data have been loaded already.
        start_again: as in `train`.

    Returns:
        What was written into `metrics.json`.

    Raises:
        ValueError: where the run in the folder was begun with another recipe, or its data has changed since.
    """
    recipes.check(recipe)
    if loaded is None:
        loaded = examples.load(recipe, data_dir)
        _logger.log(loaded.weight, loaded.line)
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    text = text or recipes.to_toml(recipe)
    fingerprint = loaded.facts.get("fingerprint")
    model, training = train(recipe, loaded.train[0], checkpoint, verbose, fingerprint, start_again=start_again)
    records = measures.measure(recipe, model, (loaded.train, loaded.test))
    model.preparation = loaded.preparation
    with writing.together(folder, checkpoints.files_of) as beside:
        (beside / "recipe.toml").write_text(text)
        writing.json(beside / "data.json", loaded.facts)
        history = training.pop("history")
        writing.json(beside / "history.json", history)
        _uncompiled(model).save(beside / "model.keras")
        facts = {
            "format": 1,
            "id": folder.resolve().name,
            "model": {
                "sha256": writing.sha256(beside / "model.keras"),
                "bytes": (beside / "model.keras").stat().st_size,
                "parameters": int(model.count_params()),
            },
            "training": training,
            "versions": {name: version(name) for name in ("kerasae", "keras", "tensorflow")},
            "metrics": records,
        }
        writing.json(beside / "metrics.json", facts)
        if complete is not None:
            complete(beside, model, loaded, history, facts)
    writing.remove(checkpoint)
    _logger.info("wrote %s", folder)
    return facts


def train(recipe, x_train, checkpoint, verbose="auto", fingerprint=None, strategy=None, start_again=False):
    """Trains the recipe's model; a run that was stopped goes on at the last whole epoch.

    Args:
        recipe: `Recipe`.
        x_train: training images, with those to be held out.
        checkpoint: folder for the state of the run, which is the caller's to remove.
        verbose: as in `keras.Model.fit`.
        fingerprint: of the data; a run that was begun on other data is refused.
        strategy: of `tf.distribute`, within whose scope the model is built. Default: none.
        start_again: whether an unfinished run's state is removed, once the model is built.

    Returns:
        `(model, facts)`; facts are the epochs and seconds of training, in this process and in all, the last values of each logged term, and
        the `history` of all epochs, `{term: [values]}`.

    Raises:
        ValueError: where the run was begun with another recipe, or on other data.
    """
    x_train, x_validation = recipes.split(recipe, x_train)
    checkpoint = Path(checkpoint)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        model = recipes.build(recipe, x_train.shape[1:], len(x_train))
        model.optimizer.build(model.trainable_variables)
    checkpoints.begin(checkpoint, recipe, fingerprint, start_again)
    progress = checkpoints.Progress(checkpoint)
    agree = None if strategy is None else functools.partial(workers.last_common_epoch, strategy)
    started, initial_epoch = time.perf_counter(), progress.restore(model, agree)
    training = recipe.training
    if recipe.pretraining is not None and initial_epoch == 0:
        _pretrain(recipe.pretraining, model, x_train, checkpoint / "pretrained.weights.h5", verbose)
    if initial_epoch < training.epochs:
        from kerasae.models import BetaAnnealing, KAnnealing

        callbacks = [checkpoints.saving(progress)]
        if training.k_annealing is not None:
            callbacks.append(KAnnealing(**training.k_annealing))
        if training.beta_annealing is not None:
            callbacks.append(BetaAnnealing(training.beta_annealing))
        x, validation_data = x_train, None if x_validation is None else (x_validation,)
        if recipe.data.binarize:
            x = examples.binarized_batches(x_train, training.batch_size, recipe.seed)
            validation_data = None if x_validation is None else (examples.binarized(x_validation),)
        model.fit(
            x,
            batch_size=None if recipe.data.binarize else training.batch_size,
            epochs=training.epochs,
            initial_epoch=initial_epoch,
            validation_data=validation_data,
            shuffle=not recipe.data.binarize,
            callbacks=callbacks,
            verbose=verbose,
        )
    facts = {
        "epochs": training.epochs,
        "epochs_in_this_process": training.epochs - initial_epoch,
        "seconds_in_this_process": round(time.perf_counter() - started, 1),
        "seconds": round(progress.seconds, 1),
        "last_epochs": {name: values[-3:] for name, values in progress.history.items()},
        "history": progress.history,
    }
    return model, facts


def _pretrain(pretraining, model, x_train, path, verbose):
    """Pretrains the model's layers, or takes them from `path` where a stopped run had finished with that."""
    from kerasae.layers import MaskingCorruption
    from kerasae.models import Autoencoder, DenoisingAutoencoder
    from kerasae.models.pretraining import pretrain_autoencoders, pretrain_rbms

    if path.exists():
        try:
            model.load_weights(path, skip_mismatch=False)
            return
        except Exception as error:  # h5py and Keras raise anything
            raise ValueError(
                f"{path} can't be loaded ({error}). Remove it: the layers are then pretrained again."
            ) from error

    def layer_autoencoder(encoder, decoder):
        if pretraining.corruption_rate is None:
            return Autoencoder(encoder, decoder, loss=model.distortion)
        corruption = MaskingCorruption(pretraining.corruption_rate)
        return DenoisingAutoencoder(encoder, decoder, corruption, loss=model.distortion)

    if pretraining.method == "rbm":
        pretrain_rbms(model, x_train, epochs=pretraining.epochs, verbose=verbose)
    else:
        pretrain_autoencoders(model, x_train, layer_autoencoder, epochs=pretraining.epochs, verbose=verbose)
    checkpoints.save_weights(model, path)


def _uncompiled(model):
    # Adam's state would triple the file.
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy

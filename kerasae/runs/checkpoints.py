"""The folder of a run: whether it is begun or finished, which recipe and data it is of, and how far an unfinished one got."""

import logging
import math
import time
from pathlib import Path

import numpy as np

from kerasae import checks, untrusted, writing

_logger = logging.getLogger(__name__)

# Where a run keeps what it needs to go on, inside its folder, until it is finished.
CHECKPOINT = ".checkpoint"
_FILES = ("recipe.toml", "data.json", "history.json", "history.csv", "metrics.json", "model.keras", "report.html")
_ZOO_FILES = ("card.md", "preview.png")


def is_finished(folder):
    """Whether a folder holds a finished run, and no other that was begun since."""
    return _is_run(folder) and not (Path(folder) / CHECKPOINT / "run.json").is_file()


def files_of(folder):
    """Names of the files that a run in a folder has left there or may have; none where there is no run."""
    if not _is_run(folder) and not (Path(folder) / CHECKPOINT / "run.json").is_file():
        return set()
    from kerasae.runs.report import FIGURES

    return {*_FILES, *_ZOO_FILES, *(f"figures/{name}.png" for name in FIGURES)}


def _is_run(folder):
    try:
        return {"model", "training"} <= set(untrusted.json(Path(folder) / "metrics.json"))
    except (OSError, ValueError, TypeError):
        return False


def begun_recipe(checkpoint):
    """The `Recipe` of the unfinished run.

    Raises:
        ValueError: where its `run.json` is damaged.
    """
    from kerasae.runs import recipes

    path = Path(checkpoint) / "run.json"
    try:
        return recipes.validated(untrusted.json(path)["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, which tells what the run is of, is damaged: {type(error).__name__}: {error}. Go on by the command that began it, "
            "with --resume, or start again with --overwrite."
        ) from error


def begin(checkpoint, facts, fingerprint=None, start_again=False, data="its place"):
    """Notes in the folder which recipe and data a run is of; raises where it holds an unfinished run of others.

    Args:
        checkpoint: the folder.
        facts: `Recipe`, or a dict of what else the run is of.
        fingerprint: of the data.
        start_again: whether the state of an unfinished run is removed.
        data: where they are, of a dict.
    """
    path = checkpoint / "run.json"
    if not isinstance(facts, dict):
        data, facts = facts.data.path, facts.model_dump(mode="json")
    this = {"recipe": facts, "fingerprint": fingerprint}
    checkpoint.mkdir(parents=True, exist_ok=True)
    writing.recover(checkpoint)
    begun = None
    if start_again:
        for state in checkpoint.iterdir():
            if state.is_file() and state != path:
                state.unlink()
    elif path.exists():
        try:
            begun = untrusted.json(path)
            begun = {"recipe": dict(begun["recipe"]), "fingerprint": begun["fingerprint"]}
        except (ValueError, KeyError, TypeError) as error:
            begun = None
            _logger.warning(
                "%s is damaged (%s): whether the run was begun with this recipe and these data can't be told.",
                path,
                error,
            )
    if begun is None:
        writing.json(path, this)
        return
    start_again = f"Go on as it was begun, or start again (--overwrite, or remove {checkpoint})."
    if changed := list(differences(begun["recipe"], this["recipe"])):
        raise ValueError(
            f"The unfinished run in {checkpoint.parent} was begun with other settings: {'; '.join(changed)}. {start_again}"
        )
    if None not in (fingerprint, begun["fingerprint"]) and fingerprint != begun["fingerprint"]:
        raise ValueError(
            f"The data in {data} have changed since the run in {checkpoint.parent} was begun: their fingerprint was "
            f"{begun['fingerprint'][:19]}… and is {fingerprint[:19]}…. Put the files back, or start again with --overwrite."
        )


def differences(old, new, prefix=""):
    """What differs between two recipes, as dicts: a line each."""
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} was {a!r} and is {b!r}"


class Progress:
    """The state of a run after each epoch, in one file: whenever a process is killed, the last whole one is there.

    Keras's BackupAndRestore writes weights and epoch one after the other and in place, so that a kill in between spoils both.
    """

    def __init__(self, folder, stopping=None):
        """
        Args:
            folder: of the states.
            stopping: `keras.callbacks.EarlyStopping` whose state, with its best weights, belongs to the run's, if there is one.
        """
        self.folder, self.stopping, self._stopping_state = folder, stopping, {}
        self.history = {}
        self.seconds = 0.0  # of training, over all processes
        self._started = time.perf_counter()

    def states(self):
        return {
            int(path.name.split(".")[0].removeprefix("epoch-")): path for path in self.folder.glob("epoch-*.weights.h5")
        }

    def restore(self, model, agree=None):
        """Loads the last state that is whole; returns how many epochs it has seen.

        Args:
            model: the run's.
            agree: of several workers, function of the epochs whose states can be loaded here, the last one first, that gives the last one
                that all have.

        Raises:
            ValueError: where no state can be loaded.
        """
        damaged, whole, tried = {}, [], 0
        for epoch, path in sorted(self.states().items(), reverse=True):
            tried = epoch
            try:
                self._load(model, path)
            except Exception as error:  # h5py and Keras raise anything
                damaged[path] = f"{type(error).__name__}: {error}"
                continue
            whole.append(epoch)
            if agree is None:
                break
        if damaged and not whole:
            raise ValueError(
                f"{_said(damaged)}. To start this run again from the first epoch, remove {checks.listed(damaged)}; or start another with "
                "--overwrite."
            )
        epoch = max(whole, default=0) if agree is None else agree(whole)
        if damaged:
            _logger.warning("%s: going on after epoch %d, the state before.", _said(damaged), epoch)
        for later, path in self.states().items():
            if later > epoch:
                _remove_state(path)
        if epoch:
            if tried != epoch:  # what was loaded last, or in part
                self._load(model, self.states()[epoch])
            self._restore_history(epoch)
        return epoch

    def _restore_history(self, epoch):
        """What was logged in the first epochs; NaN where it is lost."""
        path = self.folder / "history.json"
        try:
            saved = untrusted.json(path)
            history = {name: [float(value) for value in values] for name, values in saved["history"].items()}
            self.seconds = float(saved["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _logger.warning("%s is damaged (%s): the curves of the first %d epochs are lost.", path, error, epoch)
            history = {}
        self.history = {name: (values + [math.nan] * epoch)[:epoch] for name, values in history.items()}

    def _load(self, model, path):
        model.load_weights(path)
        if self.stopping is None:
            return
        stored = untrusted.Archive(_beside(path))
        weights = [stored[f"weights_{i}"] for i in range(len(stored.names) - 3)]
        best, wait, best_epoch = (stored[name].item() for name in _STOPPING)
        best = None if math.isnan(best) else best  # of losses that were none yet
        self._stopping_state = {"best": best, "wait": wait, "best_epoch": best_epoch, "best_weights": weights}
        self.continue_stopping()

    def continue_stopping(self):
        """Gives what stops the run early the state that was restored, which Keras resets as `fit` begins."""
        for name, value in self._stopping_state.items():
            setattr(self.stopping, name, value)

    def save(self, model, epoch, logs):
        """Saves the state after `epoch` epochs, and keeps the one before."""
        for name, value in logs.items():
            self.history.setdefault(name, [math.nan] * (epoch - 1)).append(float(value))
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now
        # History first: one epoch too many is cut off again.
        writing.json(self.folder / "history.json", {"history": self.history, "seconds": self.seconds})
        for _, path in sorted(self.states().items())[:-1]:
            _remove_state(path)
        path = self.folder / f"epoch-{epoch}.weights.h5"
        if self.stopping is not None:  # first, too: the state is there once the weights are
            weights = {f"weights_{i}": values for i, values in enumerate(self.stopping.best_weights)}
            with writing.file(_beside(path)) as beside:
                facts = {name: getattr(self.stopping, name) for name in _STOPPING}
                np.savez(beside, **weights, **facts | {"best": math.nan if facts["best"] is None else facts["best"]})
        save_weights(model, path)


_STOPPING = ("best", "wait", "best_epoch")  # what an EarlyStopping knows, besides its best weights


def _beside(path):
    """Where the state of what stops a run early lies."""
    return path.with_name(path.name.replace(".weights.h5", ".stopping.npz"))


def _remove_state(path):
    path.unlink()
    _beside(path).unlink(missing_ok=True)


def save_weights(model, path):
    """Saves a model's weights and its optimiser's state; raises `OSError` where the disk is full."""
    from kerasae import keras_internals

    content = keras_internals.weights_file(model)
    with writing.file(path) as beside:
        beside.write_bytes(content)


def _said(damaged):
    return "; ".join(f"{path} can't be loaded ({error.splitlines()[0][:200]})" for path, error in damaged.items())


def saving(progress, seconds=0):
    """A callback that saves the state of a run after each epoch, and stops one whose loss is no longer finite.

    Args:
        progress: `Progress`.
        seconds: after a state was saved, in which no other is.
    """
    import keras

    saved = time.monotonic()

    class Saving(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            progress.continue_stopping()

        def on_epoch_end(self, epoch, logs=None):
            nonlocal saved
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"The loss became {logs['loss']} in epoch {epoch + 1}: training diverged. Lower the learning rate "
                    f"({float(self.model.optimizer.learning_rate):g}), or scale the data."
                )
            if time.monotonic() - saved >= seconds:
                progress.save(self.model, epoch + 1, logs)
                saved = time.monotonic()

    return Saving()

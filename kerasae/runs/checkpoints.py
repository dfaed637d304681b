"""The state of an unfinished run: which recipe and data it is of, and how far it got."""

import json
import math
import time
from pathlib import Path

from kerasae import writing

# Where a run keeps what it needs to go on, inside its folder, until it is finished.
CHECKPOINT = ".checkpoint"


def begin(checkpoint, recipe, fingerprint=None):
    """Notes in the folder which recipe and data a run is of; raises where it holds an unfinished run of others."""
    path = checkpoint / "run.json"
    this = {"recipe": recipe.model_dump(mode="json"), "fingerprint": fingerprint}
    if not path.exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        writing.json(path, this)
        return
    begun = json.loads(path.read_text())
    start_again = f"Go on as it was begun, or start again (kerasae train --overwrite, or remove {checkpoint})."
    if changed := list(_differences(begun["recipe"], this["recipe"])):
        raise ValueError(
            f"The unfinished run in {checkpoint.parent} was begun with another recipe: {'; '.join(changed)}. {start_again}"
        )
    if None not in (fingerprint, begun["fingerprint"]) and fingerprint != begun["fingerprint"]:
        raise ValueError(
            f"The data in {recipe.data.path} have changed since the run in {checkpoint.parent} was begun: their fingerprint was "
            f"{begun['fingerprint'][:19]}… and is {fingerprint[:19]}…. Put the files back, or start again with --overwrite."
        )


def _differences(old, new, prefix=""):
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} was {a!r} and is {b!r}"


def last_epoch(checkpoint):
    """How many whole epochs an unfinished run has seen."""
    return max(Progress(Path(checkpoint)).states(), default=0)


class Progress:
    """The state of a run after each epoch, in one file: whenever a process is killed, the last whole one is there.

    Keras's BackupAndRestore writes weights and epoch one after the other and in place, so that a kill in between spoils both.
    """

    def __init__(self, folder):
        self.folder = folder
        self.history = {}
        self.seconds = 0.0  # of training, over all processes
        self._started = time.perf_counter()

    def states(self):
        return {
            int(path.name.split(".")[0].removeprefix("epoch-")): path for path in self.folder.glob("epoch-*.weights.h5")
        }

    def restore(self, model):
        """Loads the last state; returns how many epochs it has seen."""
        states = self.states()
        if not states:
            return 0
        epoch = max(states)
        model.load_weights(states[epoch])
        saved = json.loads((self.folder / "history.json").read_text())
        self.history = {name: values[:epoch] for name, values in saved["history"].items()}
        self.seconds = saved["seconds"]
        return epoch

    def save(self, model, epoch, logs):
        """Saves the state after `epoch` epochs."""
        for name, value in logs.items():
            self.history.setdefault(name, [float("nan")] * (epoch - 1)).append(float(value))
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now
        # History first: one epoch too many is cut off again.
        writing.json(self.folder / "history.json", {"history": self.history, "seconds": self.seconds})
        earlier = self.states()
        with writing.file(self.folder / f"epoch-{epoch}.weights.h5") as beside:
            model.save_weights(beside)
        for path in earlier.values():
            path.unlink()


def saving(progress):
    """A callback that saves the state of a run after each epoch, and stops one whose loss is no longer finite."""
    import keras

    class Saving(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"The loss became {logs['loss']} in epoch {epoch + 1}: training diverged. Lower the learning rate "
                    f"({float(self.model.optimizer.learning_rate):g}), or scale the data."
                )
            progress.save(self.model, epoch + 1, logs)

    return Saving()

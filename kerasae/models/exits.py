"""How a model leaves the process: Keras's own `save` and `export`."""

import logging
from pathlib import Path

import keras
import numpy as np

from kerasae import keras_internals

_logger = logging.getLogger(__name__)

_LEGACY = (".h5", ".hdf5")


class Exits(keras.Model):
    """`save` and `export` of a model that draws noise and whose training doesn't go through `call`, on which Keras's exports count."""

    def call_inputs(self):
        """What `call` takes, as symbolic tensors in order; a class whose networks are there calls `ready` at the end of its `__init__`."""
        raise NotImplementedError

    def ready(self):
        """Says that all variables are there: else `.keras` files would lose the optimiser's state, and exports ask for a call first."""
        self.built = True
        keras_internals.know_inputs(self, self.call_inputs())

    def save(self, filepath, *args, **kwargs):
        """As `keras.Model.save`, to a `.keras` file; raises `ValueError` on `.h5`, before anything is written."""
        check_path(filepath)
        super().save(filepath, *args, **kwargs)

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """As `keras.Model.export`: what `predict` computes, of examples as the encoder takes them, without a call before.

        Raises:
            ValueError: where Keras's export to ONNX wrote a file that is none; `kerasae.export.export` knows more operations.
        """
        if input_signature is None:
            inputs = self.call_inputs()
            input_signature = [inputs if len(inputs) > 1 else inputs[0]]
        if (prepared := getattr(self, "preparation", None)) is not None and not prepared.changes_nothing:
            _logger.warning(
                "Keras exports what `call` computes, from prepared examples: %s. kerasae.export.export(model, folder) takes raw ones.",
                prepared.describe(),
            )
        super().export(filepath, format, verbose=verbose, input_signature=input_signature, **kwargs)
        if format == "onnx":
            _check_onnx(Path(filepath))

    def get_config(self):
        if keras_internals.is_saving_hdf5():
            check_path(_LEGACY[0])
        return super().get_config()

    # Keras doesn't save the state of random seeds. Without it, training that goes on from a file would draw other noise.

    def _seed_states(self):
        return [v for v in self.variables if v.name == "seed_generator_state"]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"seed_state_{i}"] = state.numpy()

    def load_own_variables(self, store):
        # Earlier files of one state have it without a number.
        names = sorted((key for key in store.keys() if key.startswith("seed_state")), key=lambda key: (len(key), key))
        for name, state in zip(names, self._seed_states(), strict=True):
            state.assign(np.asarray(store[name]))
        super().load_own_variables({key: store[key] for key in store.keys() if key not in names})


def check_path(filepath):
    """Raises on the path of an HDF5 file of a whole model, before anything is written or trained."""
    if str(filepath).endswith(_LEGACY):
        raise ValueError(
            "Keras's old HDF5 format can't hold this model, whose networks and noise it doesn't know. Save it to a .keras file, or its "
            f'weights alone by save_weights("….weights.h5"). Received: {str(filepath)!r}'
        )


def check_callbacks(callbacks):
    """Raises where a checkpoint would fail at the end of the first epoch, for its format."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_weights_only:
            check_path(callback.filepath)


def _check_onnx(path):
    """Raises if a file is no ONNX: Keras writes one whatever tf2onnx could not convert."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        path.unlink()
        raise ValueError(
            f"Keras's export to ONNX can't convert this model: {str(error).splitlines()[0]}. Try "
            'kerasae.export.export(model, folder, formats=("onnx",)), which knows more operations.'
        ) from error

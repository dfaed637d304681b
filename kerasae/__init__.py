"""kerasae: autoencoders for Keras 3.

Importing the package registers its classes with Keras, at once or as soon as Keras is imported, so that `keras.saving.load_model` needs no
`custom_objects`. Everything else (data, figures, export, the zoo) loads when it is first used.
"""

import importlib
from importlib.metadata import version

from kerasae import registration

__version__ = version("kerasae")

_ROOMS = (
    "builders",
    "callbacks",
    "data",
    "distributions",
    "export",
    "figures",
    "functions",
    "layers",
    "losses",
    "metrics",
    "models",
    "networks",
    "streams",
    "tasks",
    "zoo",
)

__all__ = ["__version__", *_ROOMS]


def __getattr__(name):
    if name in _ROOMS:
        return importlib.import_module(f"kerasae.{name}")
    if name == "files":  # where it was once
        return importlib.import_module("kerasae.data.files")
    raise AttributeError(f"module 'kerasae' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)


registration.register()

"""One function per family: networks and model, ready to compile. `kerasae.models.families()` says what each is for.

Every builder takes the shape of one example, the size of the code and the layers, or your own `encoder=` and `decoder=` alone: any two
Functional Keras models that fit together. They stand in the families' files, and those that you register are found here, too.
"""

from kerasae import models  # noqa: F401  registers the families
from kerasae.registry import FAMILIES as _FAMILIES


def __getattr__(name):
    if name == "__all__":
        return list(_FAMILIES)
    if name in _FAMILIES:
        return _FAMILIES[name].builder
    raise AttributeError(f"module 'kerasae.builders' has no attribute {name!r}. It has: {list(_FAMILIES)}")


def __dir__():
    return list(_FAMILIES)

"""The models: one file per family, with its class, its builder and its record. Every file here is imported, and its `__all__` is public."""

import importlib
import pkgutil

from kerasae.models.records import Family, families, family

__all__ = ["Family", "families", "family"]

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
__all__.sort()

"""The applications: one job each, in scikit-learn's manner."""

import importlib

_MODULES = {
    "anomaly": ("AnomalyDetector",),
    "bitsback": ("LosslessCodec",),
    "codec": ("Codec",),
    "denoiser": ("Denoiser",),
    "diffusion": ("diffuse",),
    "generation": ("fit_prior", "interpolate", "sample", "traverse"),
    "imputer": ("Imputer",),
    "quality": ("frechet_distance", "sample_quality"),
    "reducer": ("Reducer",),
    "search": ("SearchIndex",),
    "series": ("SeriesDetector",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    # Each job brings libraries of its own, and loads when it is first asked for.
    if name in _MODULE_OF or name in _MODULES or name == "base":
        module = importlib.import_module(f"kerasae.tasks.{_MODULE_OF.get(name, name)}")
        return getattr(module, name) if name in _MODULE_OF else module
    raise AttributeError(f"module 'kerasae.tasks' has no attribute {name!r}")


def __dir__():
    return __all__

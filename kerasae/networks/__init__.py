"""Encoders and decoders as Functional models, of registered kinds, one file per kind. The only place where layers are stacked."""

import importlib
import pkgutil

from kerasae.networks.kinds import Network, kinds, register, with_axes
from kerasae.networks.options import NetworkOptions, takes_networks
from kerasae.networks.pair import check_pair
from kerasae.networks.stacking import decoder, encoder

__all__ = [
    "Network",
    "NetworkOptions",
    "check_pair",
    "decoder",
    "encoder",
    "kinds",
    "register",
    "takes_networks",
    "with_axes",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

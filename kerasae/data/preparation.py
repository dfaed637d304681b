"""`kerasae.preparation`, by the name that it had when only data of one's own were prepared."""

from kerasae.preparation import SCALINGS, Preparation

__all__ = ["SCALINGS", "Preparation"]

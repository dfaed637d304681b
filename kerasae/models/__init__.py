"""The models, one file a family."""

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.variational import VariationalAutoencoder

__all__ = ["Autoencoder", "VariationalAutoencoder"]

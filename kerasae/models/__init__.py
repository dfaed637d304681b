"""The models, one file a family."""

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.contractive import ContractiveAutoencoder
from kerasae.models.denoising import DenoisingAutoencoder
from kerasae.models.sparse import KAnnealing, KSparseAutoencoder, SparseAutoencoder
from kerasae.models.variational import VariationalAutoencoder

__all__ = [
    "Autoencoder",
    "ContractiveAutoencoder",
    "DenoisingAutoencoder",
    "KAnnealing",
    "KSparseAutoencoder",
    "SparseAutoencoder",
    "VariationalAutoencoder",
]

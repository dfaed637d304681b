"""The models, one file a family."""

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.contractive import ContractiveAutoencoder
from kerasae.models.denoising import DenoisingAutoencoder
from kerasae.models.pretraining import (
    RaiseMomentum,
    RestrictedBoltzmannMachine,
    classifier,
    pretrain_autoencoders,
    pretrain_rbms,
)
from kerasae.models.sparse import KAnnealing, KSparseAutoencoder, SparseAutoencoder
from kerasae.models.variational import BetaAnnealing, VariationalAutoencoder

__all__ = [
    "Autoencoder",
    "BetaAnnealing",
    "ContractiveAutoencoder",
    "DenoisingAutoencoder",
    "KAnnealing",
    "KSparseAutoencoder",
    "RaiseMomentum",
    "RestrictedBoltzmannMachine",
    "SparseAutoencoder",
    "VariationalAutoencoder",
    "classifier",
    "pretrain_autoencoders",
    "pretrain_rbms",
]

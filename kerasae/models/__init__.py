"""The models, one file a family."""

from kerasae.models.autoencoder import Autoencoder
from kerasae.models.contractive import ContractiveAutoencoder
from kerasae.models.denoising import DenoisingAutoencoder
from kerasae.models.incomplete import IncompleteDataAutoencoder
from kerasae.models.pixels import PixelVariationalAutoencoder
from kerasae.models.pretraining import (
    RaiseMomentum,
    RestrictedBoltzmannMachine,
    classifier,
    pretrain_autoencoders,
    pretrain_rbms,
)
from kerasae.models.rate_distortion import RateDistortionAutoencoder
from kerasae.models.sparse import KAnnealing, KSparseAutoencoder, SparseAutoencoder
from kerasae.models.variational import BetaAnnealing, VariationalAutoencoder

__all__ = [
    "Autoencoder",
    "BetaAnnealing",
    "ContractiveAutoencoder",
    "DenoisingAutoencoder",
    "IncompleteDataAutoencoder",
    "KAnnealing",
    "KSparseAutoencoder",
    "PixelVariationalAutoencoder",
    "RaiseMomentum",
    "RateDistortionAutoencoder",
    "RestrictedBoltzmannMachine",
    "SparseAutoencoder",
    "VariationalAutoencoder",
    "classifier",
    "pretrain_autoencoders",
    "pretrain_rbms",
]

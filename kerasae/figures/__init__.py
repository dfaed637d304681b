"""Pictures of data, codes and training: every function returns a `matplotlib.figure.Figure`.

Figures are made without pyplot, so they need no display and nothing keeps them alive; a notebook shows a returned figure. Colours follow
matplotlib's style, light or dark, and figures are opaque; `with theme(dark=True):` draws on black whatever the style. No meaning rests on
colour alone: a marker, hatch, dash or name repeats it. Images lie in [0, 1]; values outside are clipped for display. Functions take a model
only if the numbers to draw must be computed from it, and arrays otherwise.
"""

from kerasae.figures.codes import codes_2d, codes_beside_pca, latent_grid, traversal
from kerasae.figures.curves import error_histograms, rate_distortion, singular_values, training_curves
from kerasae.figures.drawing import save, theme
from kerasae.figures.images import denoising, interpolation, reconstructions, samples, signed_images
from kerasae.figures.networks import atoms, filters, jacobian_spectrum, tangents
from kerasae.figures.series import series
from kerasae.figures.units import code_activations, top_images, unit_kl, unit_variance

__all__ = [
    "atoms",
    "code_activations",
    "codes_2d",
    "codes_beside_pca",
    "denoising",
    "error_histograms",
    "filters",
    "interpolation",
    "jacobian_spectrum",
    "latent_grid",
    "rate_distortion",
    "reconstructions",
    "samples",
    "save",
    "series",
    "signed_images",
    "singular_values",
    "tangents",
    "theme",
    "top_images",
    "training_curves",
    "traversal",
    "unit_kl",
    "unit_variance",
]

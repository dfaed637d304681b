"""Shared by all figures: theme, saving, grids of images, and checks."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kerasae import checks, writing
from kerasae.metrics.arrays import batch, flat

# Told apart by people with any colour vision: Petroff, 2021, "Accessible color sequences for data visualization" ("petroff10").
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MARKERS = "o^sDv"
# Those of them that stand out on white and on black alike, by a contrast of at least 3, as WCAG 2.1 asks of graphics.
LINE_COLOURS = tuple(COLOURS[i] for i in (0, 6, 8, 2, 5, 4))
_LINE_STYLES = ("-", "--", "-.", ":")
_SIGNED_COLOURS = "RdBu_r"  # told apart by people with any colour vision
_DPI = 150
_GAP = 0.1  # between images, as a fraction of their side
_IMAGE_INCHES = 0.6
_LETTER_INCHES = 0.08  # of a row's name, at matplotlib's usual 10 points


@contextlib.contextmanager
def theme(dark=False):
    """A context in which figures are drawn on white, or on black.

    Only colours change; sizes and fonts stay those of matplotlib's style. Without this context figures follow that style altogether.

    Args:
        dark: Whether the ground is black and text white. Default False, the reverse.

    Example:

    >>> import numpy as np
    >>> from kerasae.figures import samples
    >>> with theme(dark=True):
    ...     figure = samples(np.random.default_rng(0).random((9, 8, 8)))
    >>> figure.get_facecolor()
    (0.0, 0.0, 0.0, 1.0)
    """
    import matplotlib
    from matplotlib import style

    colours = style.library["dark_background"]
    if not dark:
        colours = {name: matplotlib.rcParamsDefault[name] for name in colours}
    with matplotlib.rc_context(colours):
        yield


def save(figure, path):
    """Writes a figure as PNG, 150 dots per inch, whole or not at all.

    Args:
        figure: A `matplotlib.figure.Figure`.
        path: Where to write; must end in `.png`. Missing folders are made, a file already there is replaced.

    Returns:
        The path, as `pathlib.Path`.

    Raises:
        ValueError: If `path` does not end in `.png`.

    Example:

    >>> import numpy as np
    >>> from kerasae.figures import samples
    >>> figure = samples(np.random.default_rng(0).random((9, 8, 8)))
    >>> save(figure, "figures/samples.png").name
    'samples.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in .png. Received: {str(path)!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing.file(path) as beside:
        figure.savefig(
            beside,
            dpi=_DPI,
            format="png",
            transparent=False,
            facecolor=figure.get_facecolor(),
            metadata={"Software": "kerasae"},
        )
    return path


def new_figure(width, height, layout="constrained"):
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def one_axes(ax, width, height):
    """The axes that a caller gave, or that of a new figure of so many inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def mosaic(grid, ax, margin=0.1, caption=""):
    """Draws images of shape `(rows, columns, h, w, 4)` as one picture.

    One picture instead of one axes per image: a latent grid would need hundreds of axes. A new figure leaves `margin` inches, (width,
    height) or both, for names beside the images, and is as wide as `caption` under them.

    Returns:
        The axes, and the pixel positions of the rows' and the columns' centres.
    """
    rows, columns, height, width, _ = grid.shape
    gap = max(1, round(_GAP * min(height, width)))
    # (rows, columns, h, w, 4) -> (rows * (h + gap), columns * (w + gap), 4)
    tiles = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    picture = tiles.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 4)
    picture = picture[:-gap, :-gap]
    if ax is None:
        size = np.array(picture.shape[1::-1]) * _IMAGE_INCHES / max(height, width)
        size = np.maximum(size, (_LETTER_INCHES * len(caption), 0)) + margin
        # "compressed" measures names beside axes of fixed aspect rightly; "constrained" cuts long ones.
        ax = new_figure(*size, layout="compressed").add_subplot()
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[], xlabel=caption)
    ax.spines[:].set_visible(False)
    return ax, *(np.arange(n) * (side + gap) + (side - 1) / 2 for n, side in ((rows, height), (columns, width)))


def as_grid(images, columns):
    """`(n, h, w, 4)` to `(rows, columns, h, w, 4)`, transparent after the last."""
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    columns = min(checks.positive_int(columns, "columns"), len(images))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)
    return np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])


def name_rows(ax, centres, names):
    """Names the rows of a mosaic, at its left."""
    ax.set_yticks(centres, names)
    ax.tick_params(axis="y", length=0)


def name_width(names):
    """Inches that the names of rows take at the left of a mosaic."""
    return 0.2 + _LETTER_INCHES * max(len(str(name)) for name in names)


def line_style(i, markers):
    """How the i-th of several curves is drawn: told apart by more than its colour."""
    return {
        "color": LINE_COLOURS[i % len(LINE_COLOURS)],
        "linestyle": _LINE_STYLES[i % len(_LINE_STYLES)],
        "marker": MARKERS[i % len(MARKERS)] if markers else None,
        "markersize": 5,
    }


def _checked_images(images, name):
    """Images of shape `(n, h, w, 1)` or `(n, h, w, 3)`."""
    images = checks.array(images, name=name)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        hint = " Rows of a table are no images; reshape those that are." if images.ndim == 2 else ""
        raise ValueError(
            f"`{name}` must hold images of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3). Received: {images.shape}.{hint}"
        )
    return images


def rgba(images, name):
    """Images as RGBA of shape `(n, h, w, 4)`, clipped to [0, 1]."""
    images = _checked_images(images, name)
    if images.dtype.kind in "iu" and images.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received {images.dtype} up to {images.max()}. Divide by 255.")
    rgba = np.ones((*images.shape[:3], 4), "float32")
    rgba[..., :3] = np.clip(images.astype("float32"), 0, 1)
    return rgba


def signed_rgba(images, name):
    """Arrays that may be negative as RGBA of shape `(n, h, w, 4)`, each scaled by its largest magnitude."""
    from matplotlib import colormaps

    images = _checked_images(images, name).astype("float32")
    largest = np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    scaled = 0.5 + 0.5 * images / np.where(largest > 0, largest, 1)
    if images.shape[-1] == 1:
        return colormaps[_SIGNED_COLOURS](scaled[..., 0]).astype("float32")
    return np.concatenate([scaled, np.ones_like(scaled[..., :1])], axis=-1)


def draw_signed(images, columns, ax, caption=""):
    """A grid of arrays that may be negative, and its scale."""
    grid = as_grid(signed_rgba(images, "images"), columns)
    ax, _, _ = mosaic(grid, ax, (0.1 if _are_coloured(images) else 1.0, 0.4), caption)
    draw_sign_scale(ax, images)
    return ax.figure


def _are_coloured(images):
    return np.ndim(images) == 4 and np.shape(images)[-1] == 3


def draw_sign_scale(ax, images):
    """The scale of `signed_rgba` beside an axes; colour images have none that could be drawn."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if _are_coloured(images):
        return
    scale = ScalarMappable(Normalize(-1, 1), _SIGNED_COLOURS)
    bar = ax.figure.colorbar(scale, ax=ax, label="value", shrink=0.8)
    bar.set_ticks([-1, 0, 1], labels=["−max", "0", "max"])


def check_mapping(value, name, of):
    """Raises unless `value` is a dict with something in it."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"`{name}` must be a dict from name to {of}. Received: {value!r:.80}.")


def flat_codes(codes, name="codes"):
    """Codes as `(n, units)`; every entry of an example is one unit."""
    return flat(batch(codes, name))


def check_numbers(numbers, name, size):
    """Returns an array of numbers of units or latents; raises unless each is one of `size`, counted from 0."""
    numbers = np.asarray(numbers)
    whole = numbers.ndim == 1 and numbers.dtype.kind in "iu" and len(numbers) > 0
    if not whole or numbers.min() < 0 or numbers.max() >= size:
        raise ValueError(f"`{name}` must be whole numbers from 0 to {size - 1}. Received: {numbers!r:.80}.")
    return numbers


def check_as_many(values, codes, name):
    """Returns `values`; raises unless there is one per code."""
    if values.shape[:1] != (len(codes),) or (name == "labels" and values.ndim != 1):
        raise ValueError(
            f"`{name}` must hold one entry per code, of which there are {len(codes)}. Received shape: {values.shape}."
        )
    return values


def latent_name(i):
    """The name of the latent with this number, counted from 0; names count from 1, as in formulas."""
    return f"$z_{{{i + 1}}}$"


def decoded(decode, codes):
    """The images of codes as RGBA."""
    images = rgba(decode(codes), "decode's result")
    if len(images) != len(codes):
        raise ValueError(f"`decode` must return {len(codes)} images. Received {len(images)}.")
    return images

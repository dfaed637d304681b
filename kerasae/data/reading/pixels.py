"""Images: which files there are in a folder, what stands in their headers, and their pixels as bytes of one size and colour."""

import io
import os
from pathlib import Path

import numpy as np

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".bmp", ".webp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"),
)


def walk(folder, closed=None):
    """The folder's files at every depth, in linked folders too, but for hidden ones and those that archives add.

    Folders that can't be read are added to `closed`, a list of `OSError`.
    """
    seen = set()
    for here, folders, names in os.walk(
        folder, followlinks=True, onerror=[].append if closed is None else closed.append
    ):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link to where we have been
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if _shown(name)]
        for path in (Path(here, name) for name in names if _shown(name)):
            if path.is_file() or not path.exists():  # a broken link can't be read, and a pipe would be waited for
                yield path


def _shown(name):
    return not name.startswith(".") and name != "__MACOSX"


def name(path, root):
    """A file's path within a folder, to show and to write; what isn't UTF-8 in it as `\\xe9`."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def reason(error, path):
    """Why an image can't be read."""
    from PIL import UnidentifiedImageError

    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    with open(path, "rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*")
    return "a kind of TIFF that Pillow doesn't read" if is_tiff else "not an image"


def header(path):
    """What stands in a file, as a tuple.

    `(height, width)` as seen; whether it is grey; how many pages it has; whether Pillow cuts its 16 bits per colour to the upper 8; and
    `(lowest, highest, dtype)` of pixels that are no bytes, or None.
    """
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        deep = _is_deep(image)
        # As the decoder names what is stored, until it has read it: "RGB;16B".
        is_cut = not deep and ";16" in str(getattr(image, "tile", ""))
        if image.getexif().get(0x0112, 1) >= 5:  # its orientation lies it on its side
            width, height = height, width
        pages = getattr(image, "n_frames", 1)
        extremes = None
        if deep:
            image.seek(0)
            values = _finite(image)
            extremes = float(values.min()), float(values.max()), values.dtype
        return (height, width), image.mode in ("1", "L", "LA") or deep, pages, is_cut, extremes


def levels(low, high, dtype):
    """The values that become black and white: by the bits that the pixels use, of floats and 32 bits by their range.

    A camera's 10 or 12 bits lie in files of 16, whose own range would make them black.
    """
    if dtype.kind in "iu" and low >= 0 and high < 2**16:
        return 0.0, float(next(2**bits - 1 for bits in (1, 8, 10, 12, 14, 16) if high < 2**bits))
    if dtype.kind == "f" and low >= 0 and high <= 255:
        return 0.0, 1.0 if high <= 1 else 255.0
    return float(low), float(high) if high > low else float(low) + 1.0


def pixels(content, size, mode, between=None):
    """Bytes of `(height, width, channels)`.

    Args:
        content: of the file.
        size: (width, height) to cover; the rest is cropped around the middle.
        mode: Pillow's `"L"` or `"RGB"`.
        between: `levels` of pixels that are no bytes. Default: the file's own.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (2 * max(size), 2 * max(size)))  # a JPEG is decoded no larger than is needed
        image = ImageOps.exif_transpose(image)
        if _is_deep(image):
            values = _finite(image)
            black, white = between or levels(values.min(), values.max(), values.dtype)
            scaled = (values.astype("float64") - black) * (255 / (white - black))
            image = Image.fromarray(scaled.round().clip(0, 255).astype("uint8"))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert(mode)
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(*size[::-1], -1)


def _is_deep(image):
    return image.mode.startswith("I") or image.mode == "F"


def _finite(image):
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("its pixels hold NaN or infinity")
    return values

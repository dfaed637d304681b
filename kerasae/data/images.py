"""A folder of images as one array of bytes."""

import collections
import concurrent.futures
import io
import logging
import math
import os

import numpy as np

from kerasae import checks, writing

_logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
COLORS = {"grey": ("L", 1), "rgb": ("RGB", 3)}
_LARGEST_SIDE = 256  # pixels; larger images are not taken as they are without being asked for


def read(path, like, image_size, color, skip_unreadable, fallback_size):
    """Images of one size; arguments as in `kerasae.data.files.read`.

    Returns:
        `(values, names, fingerprint)`: bytes of `(n, height, width, channels)`, paths within the folder, and a hash of both.
    """
    root = path if path.is_dir() else path.parent
    found = sorted(walk(path)) if path.is_dir() else [path]
    paths = [p for p in found if p.suffix.lower() in SUFFIXES]
    headers, unreadable = {}, {}
    for p in paths:
        try:
            headers[p] = _header(p)
        except Exception as error:  # Pillow's decoders may raise anything
            unreadable[p] = _reason(error)
    _report_unreadable(unreadable, root, skip_unreadable, bool(headers))
    if like is not None:
        shape = like.shape if len(like.shape) == 3 else (*like.shape, 1)
        image_size, color = shape[:2], {1: "grey", 3: "rgb"}.get(shape[2])
        if color is None:
            raise ValueError(f"The model takes examples of shape {like.shape}, and images have 1 or 3 channels.")
    color = color or ("grey" if all(grey for _, grey in headers.values()) else "rgb")
    mode, channels = COLORS[checks.choice(color, "color", COLORS)]
    if image_size is None:
        image_size = _common_size([size for size, _ in headers.values()], path, fallback_size)
    height, width = checks.positive_ints(image_size, "image_size")
    checks.memory((len(headers), height, width, channels), np.uint8, path)
    values = np.empty((len(headers), height, width, channels), np.uint8)
    digests = [None] * len(headers)

    def decode(i, p):
        content = p.read_bytes()
        digests[i] = writing.sha256(content)
        values[i] = _pixels(content, (width, height), mode)

    from tqdm import tqdm

    # Pillow decodes without the interpreter's lock.
    with (
        concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(headers), desc="reading images", unit=" images", leave=False, disable=None, delay=1) as progress,
    ):
        tasks = {pool.submit(decode, i, p): p for i, p in enumerate(headers)}
        for task in concurrent.futures.as_completed(tasks):
            if (error := task.exception()) is not None:
                unreadable[tasks[task]] = _reason(error)
            progress.update()
    kept = [i for i, p in enumerate(headers) if p not in unreadable]
    _report_unreadable({p: unreadable[p] for p in headers if p in unreadable}, root, skip_unreadable, bool(kept))
    names = [p.relative_to(root).as_posix() for p in headers]
    if len(kept) < len(names):
        values, names, digests = values[kept], [names[i] for i in kept], [digests[i] for i in kept]
    return values, names, writing.sha256("\n".join(f"{d} {n}" for d, n in zip(digests, names, strict=True)).encode())


def walk(folder):
    """The folder's files at every depth, but for hidden ones and those that archives add."""
    for p in folder.rglob("*"):
        if not any(part.startswith(".") or part == "__MACOSX" for part in p.relative_to(folder).parts) and p.is_file():
            yield p


def _header(path):
    """((height, width) as seen, whether the image is grey)."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # its orientation lies it on its side
            width, height = height, width
        return (height, width), image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def _pixels(content, size, mode):
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (2 * max(size), 2 * max(size)))  # a JPEG is decoded no larger than is needed
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image, "float32") / 257).round().clip(0, 255).astype("uint8"))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert(mode)
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(*size[::-1], -1)


def _reason(error):
    from PIL import UnidentifiedImageError

    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _report_unreadable(unreadable, root, skip, any_left):
    if not unreadable:
        return
    named = checks.listed(f"{p.relative_to(root).as_posix()} ({reason})" for p, reason in unreadable.items())
    message = f"{len(unreadable)} of the images can't be read: {named}."
    if not skip or not any_left:
        raise ValueError(f"{message} Remove them, or leave them out with skip_unreadable (--skip-unreadable).")
    _logger.warning("%s They are left out.", message)


def _common_size(sizes, path, fallback):
    counts = collections.Counter(sizes)
    (small, *_), (*_, large) = (sorted(counts, key=math.prod) for _ in range(2))
    if small == large and max(small) <= _LARGEST_SIDE:
        return small
    few = f"{small[1]}x{small[0]}"
    have = few if small == large else f"{len(counts)} different sizes, from {few} to {large[1]}x{large[0]}"
    have += " pixels"
    if fallback is not None:
        _logger.info("The images have %s: scaled to cover %dx%d and cropped around the middle.", have, *fallback[::-1])
        return fallback
    large = ", which is large for an autoencoder" if small == large else ""
    raise ValueError(
        f"The images in {path} have {have}{large}. Pass image_size (--image-size 64): images are then scaled to cover it and cropped "
        "around the middle."
    )

"""A folder of images as one array of bytes."""

import collections
import concurrent.futures
import math
import os
from pathlib import Path

import numpy as np

from kerasae import checks, writing
from kerasae.data.reading import pixels, suffix
from kerasae.data.reading.pixels import SUFFIXES, walk

COLORS = {"grey": ("L", 1), "rgb": ("RGB", 3)}
_LARGEST_SIDE = 256  # pixels; larger images are not taken as they are without being asked for


def read(path, like, image_size, color, skip_unreadable, fallback_size):
    """Images of one size; arguments as in `kerasae.data.files.read`.

    Returns:
        `(values, names, fingerprint, levels, said)`: bytes of `(n, height, width, channels)`; paths within the folder; a hash of both; what
        was black and white in pixels that are no bytes, or None; and what was read, in words.
    """
    root = path if path.is_dir() else path.parent
    closed, notes = [], []
    found = sorted(walk(path, closed)) if path.is_dir() else [path]
    paths = [p for p in found if suffix(p) in SUFFIXES]
    headers, unreadable = {}, {Path(error.filename): f"a folder: {error.strerror}" for error in closed}
    for p in paths:
        try:
            headers[p] = pixels.header(p)
        except Exception as error:  # Pillow's decoders may raise anything
            unreadable[p] = pixels.reason(error, p)
    notes += _left_out(unreadable, root, skip_unreadable, bool(headers))
    if like is not None:
        shape = like.shape if len(like.shape) == 3 else (*like.shape, 1)
        image_size, color = shape[:2], {1: "grey", 3: "rgb"}.get(shape[2])
        if color is None:
            raise ValueError(f"The model takes examples of shape {like.shape}, and images have 1 or 3 channels.")
    color = color or ("grey" if all(grey for _, grey, *_ in headers.values()) else "rgb")
    mode, channels = COLORS[checks.choice(color, "color", COLORS)]
    if image_size is None:
        image_size, note = _common_size([size for size, *_ in headers.values()], path, fallback_size)
        notes += note
    height, width = checks.positive_ints(image_size, "image_size")
    checks.memory((len(headers), height, width, channels), np.uint8, path)
    values = np.empty((len(headers), height, width, channels), np.uint8)
    deep = [extremes for *_, extremes in headers.values() if extremes]
    levels = like.levels if like is not None else _levels(deep)
    digests = [None] * len(headers)

    def decode(i, p):
        content = p.read_bytes()
        digests[i] = writing.sha256(content)
        values[i] = pixels.pixels(content, (width, height), mode, levels)

    from tqdm import tqdm

    # Pillow decodes without the interpreter's lock.
    with (
        concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(headers), desc="reading images", unit=" images", leave=False, disable=None, delay=1) as progress,
    ):
        tasks = {pool.submit(decode, i, p): p for i, p in enumerate(headers)}
        for task in concurrent.futures.as_completed(tasks):
            if (error := task.exception()) is not None:
                unreadable[tasks[task]] = pixels.reason(error, tasks[task])
            progress.update()
    kept = [i for i, p in enumerate(headers) if p not in unreadable]
    notes += _left_out({p: unreadable[p] for p in headers if p in unreadable}, root, skip_unreadable, bool(kept))
    names = [pixels.name(p, root) for p in headers]
    others = collections.Counter(map(suffix, set(found) - set(paths)))
    said = ", ".join(
        [f"{len(kept):,} images to {width}x{height} pixels, {color}{_said(headers, deep, levels, others)}", *notes]
    )
    if len(kept) < len(names):
        values, names, digests = values[kept], [names[i] for i in kept], [digests[i] for i in kept]
    fingerprint = writing.sha256("\n".join(f"{d} {n}" for d, n in zip(digests, names, strict=True)).encode())
    return values, names, fingerprint, levels, said


def _levels(deep):
    """What is black and white in all images whose pixels are no bytes; None where there are none."""
    if not deep:
        return None
    lows, highs, dtypes = zip(*deep, strict=True)
    return pixels.levels(min(lows), max(highs), np.result_type(*dtypes))


def _said(headers, deep, levels, others):
    if deep:
        of = "each by its own" if levels is None else f"{levels[0]:g} to {levels[1]:g}"
        said = f", {len(deep):,} of them of more than 8 bits ({of}) scaled to 8"
    else:
        said = ", 8 bits"
    if beyond := sum(high > levels[1] for _, high, _ in deep) if levels else 0:
        said += f", {beyond:,} with values beyond, which are cut"
    if cut := sum(is_cut for *_, is_cut, _ in headers.values()):
        said += f", {cut:,} of them of 16 bits per colour, of which Pillow reads the upper 8"
    if several := sum(pages > 1 for _, _, pages, *_ in headers.values()):
        said += f", the first page alone of {several:,} with several"
    if others:
        said += ", left out " + ", ".join(f"{n:,} {end or 'without a suffix'}" for end, n in others.most_common(5))
        if {".heic", ".heif"} & set(others):
            said += " (export photos of phones as JPEG)"
    return said


def _left_out(unreadable, root, skip, any_left):
    """What is said of images that can't be read, a list of no or one phrase; an error unless they are to be left out."""
    if not unreadable:
        return []
    named = checks.listed(f"{pixels.name(p, root)} ({reason})" for p, reason in unreadable.items())
    message = f"{len(unreadable)} of the images can't be read: {named}."
    if not skip or not any_left:
        raise ValueError(f"{message} Remove them, or leave them out with skip_unreadable (--skip-unreadable).")
    return [f"left out {len(unreadable):,} that can't be read: {named}"]


def _common_size(sizes, path, fallback):
    """`((height, width), notes)`: the size to bring all images to, and what is said of it."""
    counts = collections.Counter(sizes)
    (small, *_), (*_, large) = (sorted(counts, key=math.prod) for _ in range(2))
    if small == large and max(small) <= _LARGEST_SIDE:
        return small, []
    few = f"{small[1]}x{small[0]}"
    have = few if small == large else f"{len(counts)} different sizes, from {few} to {large[1]}x{large[0]}"
    have += " pixels"
    if fallback is not None:
        return fallback, [f"of {have}, scaled to cover and cropped around the middle"]
    large = ", which is large for an autoencoder" if small == large else ""
    raise ValueError(
        f"The images in {path} have {have}{large}. Pass image_size (--image-size 64): images are then scaled to cover it and cropped "
        "around the middle."
    )

"""Files and folders that are written whole or not at all, and the hashes that name contents.

New contents are prepared beside their place, on the same disk, and moved in at the end. If the block raises, the old contents stay as they
were, and nothing half-made remains.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from json import dumps
from pathlib import Path

BESIDE = ".new-"  # begins the names of files and folders that are being prepared; a killed process leaves some


@contextlib.contextmanager
def file(path):
    """Gives a path beside `path`, with the same ending; the file that the block writes there takes the place of `path`.

    Example:

    ```python
    with writing.file("codes.npy") as beside:
        np.save(beside, codes)
    ```
    """
    path = Path(path)
    beside = path.with_name(f"{BESIDE}{uuid.uuid4().hex}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path, replace=False):
    """Gives a new folder, which takes the place of `path`.

    The folder that holds it, `new.parent`, is removed at the end: it is the place for temporary files on the same disk.

    Args:
        path: of a folder that is new or empty, or with `replace` any but the current one and those around it.
        replace: whether its contents are replaced.

    Raises:
        ValueError: before the block, if `path` can't be written, or is not empty.
        RuntimeError: if the old contents could be neither replaced nor put back; the message says where they are.
    """
    path = Path(path).resolve()
    with _working_folder(_room_for(path, replace), f".{path.name}-") as (new, old):
        yield new
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not replace:
            path.rmdir()  # it was empty; fails if it no longer is
        _move_in([(new, path)], old)


@contextlib.contextmanager
def together(path):
    """Gives a new folder, whose entries at the end replace those of the same names in the folder `path`, which is made if missing.

    Raises:
        RuntimeError: as `folder`.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with _working_folder(path, BESIDE) as (new, old):
        yield new
        _move_in([(entry, path / entry.name) for entry in sorted(new.iterdir())], old)


def json(path, contents):
    """Writes a JSON file."""
    with file(path) as beside:
        beside.write_text(dumps(contents, indent=2) + "\n", encoding="utf-8")


def writable(folder, instead="folder"):
    """Returns the folder, made if missing; raises `OSError` at once, before the work, if nothing can be written into it.

    Args:
        folder: its path.
        instead: name of the option, such as `"--folder"`, of which the error asks for another value.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"Can't write into {folder}: {error.strerror}. Choose another {instead}.") from error
    return folder


def sha256(*contents):
    """The SHA-256, as 64 hex digits, of contents one after another.

    Args:
        *contents: each the path of a file, bytes, or an array, which counts by its values in little-endian order, not by its shape or type.
    """
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, (str, os.PathLike)):
            with open(content, "rb") as stored:
                hashlib.file_digest(stored, lambda: digest)
        elif isinstance(content, (bytes, memoryview)):
            digest.update(content)
        else:
            digest.update(content.astype(content.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _room_for(path, replace):
    """The nearest existing folder around `path`."""
    if path in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"`folder` must be one of its own, and {path} is or holds the current one. Name one inside it."
        )
    try:
        if path.exists() and not path.is_dir():
            raise ValueError(f"`folder` must be a folder, and {path} is a file.")
        if path.exists() and any(path.iterdir()) and not replace:
            raise ValueError(f"{path} is not empty. Choose another, or pass `replace=True` to replace all it holds.")
        return writable(next(parent for parent in path.parents if parent.exists()))
    except OSError as error:
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def _working_folder(room, prefix):
    """Gives two empty folders in a hidden one in `room`, which is removed, unless the second holds contents that could not be put back."""
    outer = Path(tempfile.mkdtemp(prefix=prefix, dir=room))
    new, old = outer / "new", outer / "old"
    try:
        new.mkdir()
        old.mkdir()
        yield new, old
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if not old.exists() or not any(old.iterdir()):
            shutil.rmtree(outer, ignore_errors=True)


def _move_in(moves, old):
    """Moves each `(new, place)`. Old contents of a place go into the folder `old`, and all of them go back if a move fails."""
    try:
        for new, place in moves:
            if os.path.lexists(place):
                place.rename(old / place.name)
            new.rename(place)
    except BaseException:
        for new, place in moves:
            kept = old / place.name
            try:
                if not new.exists():
                    place.rename(new)
                if os.path.lexists(kept):
                    kept.rename(place)
            except OSError as error:
                raise RuntimeError(f"What {place} held could not be put back, and is in {kept}.") from error
        raise

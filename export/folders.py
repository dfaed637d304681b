"""Folders that are written whole or not at all."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from kerasae.export.parts import ExportError


@contextlib.contextmanager
def written_whole(folder, replace):
    """Gives `(new, workspace)`, two empty folders on the disk of `folder`; afterwards `new` takes its place.

    Where the block raises, what was in `folder` stays as it was, and the working folders are removed.

    Args:
        folder: a new or empty folder, or with `replace` any.
        replace: whether what it holds is replaced.

    Raises:
        ValueError: before the block, where `folder` can't be written, or is not empty.
    """
    folder, outer = _open(Path(folder).resolve(), replace)
    new, previous, workspace = outer / "bundle", outer / "previous", outer / "workspace"
    try:
        new.mkdir()
        workspace.mkdir()
        yield new, workspace
        _move_in(new, folder, previous, replace)
    finally:
        # Not if what was there before is in there because it could not be put back.
        if folder.exists() or not previous.exists():
            shutil.rmtree(outer, ignore_errors=True)


def _open(folder, replace):
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"`folder` must be one of its own, and {folder} is or holds the current one. Name one inside it."
        )
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`folder` must be a folder, and {folder} is a file.")
        if folder.exists() and any(folder.iterdir()) and not replace:
            raise ValueError(f"{folder} is not empty. Choose another, or pass `replace=True` to replace all it holds.")
        ancestor = next(parent for parent in folder.parents if parent.exists())
        return folder, Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=ancestor))
    except OSError as error:
        raise ValueError(
            f"Can't write into {folder.parent}: {error.strerror or error}. Choose another folder."
        ) from error


def _move_in(new, folder, previous, replace):
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        new.rename(folder)
        return
    if not replace:
        folder.rmdir()  # it was empty; fails if it no longer is
        new.rename(folder)
        return
    folder.rename(previous)
    try:
        new.rename(folder)
    except BaseException:
        try:
            previous.rename(folder)
        except OSError as error:
            raise ExportError(f"What {folder} held could not be put back, and is in {previous}.") from error
        raise

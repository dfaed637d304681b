"""Files and folders that are written whole or not at all, and the hashes that name contents.

New contents are prepared beside their place, on the same disk, and moved in at the end. If the block raises, the old contents stay as they
were, and nothing half-made remains. Where the process is killed between two moves, the next one that looks at the place finishes them.
Only what was written here is ever replaced: callers tell which files those are, all others stay or are named in an error.
"""

import contextlib
import errno
import filecmp
import functools
import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from json import dumps
from pathlib import Path

_logger = logging.getLogger(__name__)

BESIDE = ".new-"  # begins the names of files and folders that are being prepared
# Behind it the machine and process, and the name of the place, if it is one. Earlier versions told no process.
_PREPARED = re.compile(r"\.new-(?:(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{12}|[0-9a-f]{32})(?:-(?P<name>.+))?")
_DAY = 86_400  # seconds after which what another machine was preparing counts as left behind
_LOCK = ".kerasae-lock"  # where folders can't be locked themselves
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", _LOCK}  # that file managers leave anywhere, and locks


@contextlib.contextmanager
def file(path):
    """Gives a path beside `path`, with the same ending; the file that the block writes there takes the place of `path`.

    Of a link, the file that it leads to is replaced.

    Example:

    ```python
    with writing.file("codes.npy") as beside:
        np.save(beside, codes)
    ```
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    recover(path.parent)
    beside = _beside(path.parent, path.name)
    try:
        with _full_disk_said(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path, ours=None):
    """Gives a new folder, which takes the place of `path` as a whole.

    The folder that holds it, `new.parent`, is removed at the end: it is the place for temporary files on the same disk.

    Args:
        path: of a folder that is new or empty, or with `ours` one that holds nothing else; neither the current one nor one around it.
        ours: function of a folder that gives the names of the files in it that may go, relative to it; none where it is none of ours.

    Raises:
        ValueError: before the block, if `path` can't be written, or holds what may not go; it is named.
        RuntimeError: if the old contents could be neither replaced nor put back; the message says where they are.
    """
    path = Path(path).resolve()
    recover(path)
    room = _room_for(path, ours)
    inside = path.relative_to(room)  # more than its name, where it lies in folders that are to be made
    with _prepared(room, inside.parts[0]) as outer:
        new = outer / "new" / inside
        new.mkdir(parents=True)
        yield new
        for temporary in new.parent.iterdir():
            if temporary != new:
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        _room_for(path, ours)  # something may have been put there meanwhile
        _move_in(outer, [inside] if path.exists() else [])


@contextlib.contextmanager
def together(path, ours=lambda folder: ()):
    """Gives a new folder, whose files at the end take their places in the folder `path`, which is made if missing.

    Args:
        path: of the folder.
        ours: function of the folder that gives the names of the files in it, relative to it, that may go. They do, all of them; other files
            stay.

    Raises:
        FileExistsError: if a file that is not `ours` has a new one's place. Nothing is replaced then.
        RuntimeError: as `folder`.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    recover(path)
    with _prepared(path) as outer:
        (outer / "new").mkdir()
        yield outer / "new"
        old = {Path(name) for name in ours(path) if os.path.lexists(path / name)}
        taken = {name for name in _units(outer / "new", path) if os.path.lexists(path / name)} - old
        equal = {
            name for name in taken if (path / name).is_file() and filecmp.cmp(outer / "new" / name, path / name, False)
        }
        if taken := taken - equal:
            raise FileExistsError(
                f"{path} holds what would be replaced, and was not written there by the same command: {_some(taken)}. Move it elsewhere, "
                "or choose another folder."
            )
        old = sorted(old | equal)
        _move_in(outer, old)
        for parent in sorted({p.parent for p in old} - {Path()}, reverse=True):
            with contextlib.suppress(OSError):
                (path / parent).rmdir()  # where it is empty now


def json(path, contents):
    """Writes a JSON file."""
    with file(path) as beside:
        beside.write_text(dumps(contents, indent=2) + "\n", encoding="utf-8")


def remove(path):
    """Removes a folder: at once, or not at all."""
    if path.exists():
        shutil.rmtree(path.rename(_beside(path.parent, path.name)), ignore_errors=True)


def recover(path):
    """Finishes or undoes what killed processes were replacing, in the folder `path` or as a whole, and removes what they had prepared."""
    path = Path(path).resolve()
    for room in (path, path.parent):
        try:
            prepared = [room / name for name in os.listdir(room) if name.startswith(BESIDE)]
        except OSError:
            continue
        for left in filter(_is_left, prepared):
            with contextlib.suppress(OSError):
                _finish(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def locked(folder, doing):
    """Keeps other processes that ask for the same out of a folder, until the block ends or the process dies.

    Args:
        folder: that exists.
        doing: what is being done in it, for the others' error: `"training"`.

    Raises:
        OSError: if another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which opens no folders
        import msvcrt

        path = Path(folder) / _LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        lock = functools.partial(msvcrt.locking, descriptor, msvcrt.LK_NBLCK, 1)
    else:
        path, descriptor = None, os.open(folder, os.O_RDONLY)
        lock = functools.partial(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    is_ours = False
    try:
        try:
            lock()
        except (BlockingIOError, PermissionError) as error:
            raise OSError(f"Another process is {doing} in {folder}. Wait for it, or choose another folder.") from error
        except OSError:  # a file system without locks
            _logger.debug("%s can't be locked", folder)
        is_ours = True
        yield
    finally:
        os.close(descriptor)
        if path is not None and is_ours:
            path.unlink(missing_ok=True)


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


def check_regular(path):
    """Raises `ValueError` on a pipe or device, which would be waited on for ever, or could be read only once."""
    if Path(path).exists() and not Path(path).is_file():
        what = "a folder" if Path(path).is_dir() else "a pipe or device"
        raise ValueError(f"{path} must be a file, and is {what}. Write what comes from a pipe to a file first.")


def held(folder):
    """Names of the files in a folder, relative to it, sorted; without those that file managers leave, or that are being prepared."""
    folder = Path(folder)
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(p.as_posix() for p in paths if p.name not in _LITTER and not p.parts[0].startswith(BESIDE))


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


@contextlib.contextmanager
def _full_disk_said(path):
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"{path} could not be written: {error.strerror}. What was there before is as it was. Make room, and try again."
        ) from error


def _some(names, most=5):
    names = sorted(map(str, names))
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _room_for(path, ours):
    """The nearest existing folder around `path`."""
    if path in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"`folder` must be one of its own, and {path} is or holds the current one. Name one inside it."
        )
    try:
        if path.exists() and not path.is_dir():
            raise ValueError(f"`folder` must be a folder, and {path} is a file.")
        if path.exists() and any(entry.name not in _LITTER for entry in path.iterdir()):
            if ours is None:
                raise ValueError(
                    f"{path} is not empty. Choose another, or pass `replace=True` to replace what it holds."
                )
            replaceable, there = set(ours(path)), held(path)
            if foreign := [name for name in there if name not in replaceable]:
                raise ValueError(
                    f"{path} holds what was not written there by an earlier call, and would be lost: {_some(foreign)}. Move it "
                    "elsewhere, or choose another folder."
                )
        return writable(next(parent for parent in path.parents if parent.exists()))
    except OSError as error:
        raise ValueError(str(error)) from error


# -- What is being prepared, and how it gets to its place --------------------------------------------------------------------------------
#
# `outer` is a hidden folder in the room where things are to be replaced. `outer/new` holds what goes in, under the names that it will have
# in the room. What it replaces goes to `outer/old`, which is called `outer/replaced` once it is complete: if the process is killed before,
# all goes back, if later, the rest moves in.


def _beside(room, name=""):
    """A path in a folder for what is being prepared: that of one place if it has a `name`, else of several in the folder."""
    return room / f"{BESIDE}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}{name and '-'}{name}"


@functools.cache
def _machine():
    """A hash of what process ids count within: the machine since it was started, and the container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _is_left(path):
    """Whether the process that was preparing this is gone; of another machine's, and on Windows, only time tells."""
    found = _PREPARED.fullmatch(path.name)
    if found is None:
        return False
    if found["machine"] != _machine() or os.name != "posix":
        return time.time() - path.lstat().st_mtime > _DAY
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        pass
    return False


@contextlib.contextmanager
def _prepared(room, name=""):
    """Gives a new hidden folder, which is removed, unless it holds what could not be put back."""
    outer = _beside(room, name)
    outer.mkdir()
    try:
        with _full_disk_said(room / name):
            yield outer
    finally:
        if not any((outer / "old").glob("*")):
            shutil.rmtree(outer, ignore_errors=True)


def _units(new, room, whole=False, inside=Path()):
    """Names of the files and folders that move as one from `new` to the room. Folders that both have are not moved, but what is in them;
    with `whole` they are."""
    for entry in sorted((new / inside).iterdir()):
        name = inside / entry.name
        if not whole and entry.is_dir() and (room / name).is_dir() and not (room / name).is_symlink():
            yield from _units(new, room, whole, name)
        else:
            yield name


def _move(path, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def _move_in(outer, going):
    """Moves what is in `outer/new` to its place, and what is `going` into `outer/old`; all goes back if a move fails."""
    room, whole = outer.parent, _PREPARED.fullmatch(outer.name)["name"] is not None
    new, old, replaced = (outer / name for name in ("new", "old", "replaced"))
    moved = []
    try:
        old.mkdir()
        for name in going:
            moved.append((room / name, old / name))
            _move(*moved[-1])
        old.rename(replaced)
        for name in list(_units(new, room, whole)):
            moved.append((new / name, room / name))
            _move(*moved[-1])
    except BaseException:
        if replaced.exists():
            replaced.rename(old)
        for source, target in reversed(moved):
            try:
                if os.path.lexists(target) and not os.path.lexists(source):
                    target.rename(source)
            except OSError as error:
                raise RuntimeError(f"What {source} held could not be put back, and is in {target}.") from error
        raise


def _finish(outer):
    """Ends what a killed process was doing in `outer`; where something else has come to the places meanwhile, all stays."""
    room, whole = outer.parent, _PREPARED.fullmatch(outer.name)["name"] is not None
    source = outer / ("replaced" if (outer / "replaced").is_dir() else "old")
    if source.is_dir():
        source = outer / "new" if source.name == "replaced" else source
        for name in list(_units(source, room, whole)):
            if os.path.lexists(room / name):
                _logger.warning(
                    "%s holds what was to come to %s when a process was killed.", source / name, room / name
                )
                return
            _move(source / name, room / name)
        _logger.info("Finished what a process that was killed was replacing in %s.", room)
    shutil.rmtree(outer, ignore_errors=True)

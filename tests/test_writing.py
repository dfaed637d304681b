"""What is written whole or not at all, and hashes."""

import hashlib
import itertools
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from kerasae import writing


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def content(folder):
    """`{path: text}` of every file, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def failing_rename(monkeypatch, fails):
    rename = Path.rename

    def renamed(path, target):
        if fails(path, Path(target)):
            raise OSError("disk error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)


def test_file(tmp_path):
    for text in ("first", "second"):
        with writing.file(tmp_path / "a.npz") as beside:
            assert beside.parent == tmp_path
            assert beside.suffix == ".npz"
            beside.write_text(text)
        assert content(tmp_path) == {"a.npz": text}
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o644  # others may read it, as any file that was made here


@pytest.mark.parametrize("write", [True, False])
def test_an_error_keeps_the_file(tmp_path, write):
    (tmp_path / "a").write_text("kept")

    def write_and_fail():
        with writing.file(tmp_path / "a") as beside:
            if write:
                beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert content(tmp_path) == {"a": "kept"}


def test_json(tmp_path):
    writing.json(tmp_path / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    with pytest.raises(TypeError):
        writing.json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("place", ["new", "new/deeper", "empty", "full"])
def test_folder(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").touch()
    with writing.folder(tmp_path / place, (lambda _: ["old"]) if place == "full" else None) as new:
        (new / "a").write_text("1")
        (new.parent / "meanwhile").write_text("goes")
    assert content(tmp_path / place) == {"a": "1"}
    assert (tmp_path / place).stat().st_mode & 0o777 == 0o755
    assert {p.name for p in tmp_path.iterdir()} == {"empty", "full", place.split("/")[0]}


def test_bad_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    for path, replace, message in [
        (tmp_path, None, "is or holds the current one"),
        (tmp_path.parent, os.listdir, "is or holds the current one"),
        ("file", os.listdir, "is a file"),
        ("file/sub", os.listdir, "Can't write into .*Choose another folder"),
    ]:
        with pytest.raises(ValueError, match=message), writing.folder(path, replace):
            pytest.fail("the block must not run")
    monkeypatch.chdir("/")
    with pytest.raises(ValueError, match="is not empty.*replace=True"), writing.folder(tmp_path):
        pytest.fail("the block must not run")
    assert content(tmp_path) == {"file": "kept"}


def ours(folder):
    return ["a", "figures/b", "gone"]


def write_folder(path):
    with writing.folder(path, ours) as new:
        (new / "a").write_text("new")


def write_together(path):
    with writing.together(path, ours) as new:
        (new / "figures").mkdir()
        for name in ("a", "figures/b", "c"):
            (new / name).write_text("new")


@pytest.mark.parametrize("write", [write_folder, write_together])
def test_an_error_keeps_the_folder(tmp_path, monkeypatch, write):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("kept")
    before = content(tmp_path)
    with monkeypatch.context() as patch:  # in the block
        patch.setattr(Path, "write_text", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(folder)
    assert content(tmp_path) == before
    with monkeypatch.context() as patch:  # as the last is moved in
        failing_rename(patch, lambda path, target: path.parent.name == "new" and path.name in ("folder", "figures"))
        with pytest.raises(OSError, match="disk error"):
            write(folder)
    assert content(tmp_path) == before
    assert os.listdir(folder) == ["a"]
    assert os.listdir(tmp_path) == ["folder"]


def test_what_cant_be_put_back_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("kept")
    failing_rename(monkeypatch, lambda path, target: target == folder)
    with pytest.raises(RuntimeError, match="could not be put back, and is in ") as error:
        write_folder(folder)
    kept = Path(str(error.value).split(" and is in ")[1].removesuffix("."))
    assert content(kept) == {"a": "kept"}


def test_together(tmp_path):
    folder = tmp_path / "folder"
    for i in range(2):
        with writing.together(folder, lambda _: ["a", "b/0"]) as new:
            assert new.stat().st_dev == tmp_path.stat().st_dev
            (new / "a").write_text(f"a{i}")
            (new / "b").mkdir()
            (new / "b" / f"{i}").write_text("b")
        if i == 0:
            (folder / "other").write_text("stays")
    assert content(tmp_path) == {"folder/a": "a1", "folder/b/1": "b", "folder/other": "stays"}


def test_what_was_not_written_here_is_not_replaced(tmp_path):
    folder = tmp_path / "folder"
    (folder / "figures").mkdir(parents=True)
    for name in ("a", "figures/b", "figures/theirs", "theirs"):
        (folder / name).write_text("kept")
    (folder / ".DS_Store").touch()  # nobody's
    before = content(tmp_path)
    with pytest.raises(ValueError, match="would be lost: figures/theirs, theirs. Move it elsewhere"):
        write_folder(folder)
    (folder / "c").write_text("theirs")
    with pytest.raises(FileExistsError, match="was not written there by the same command: c. Move it elsewhere"):
        write_together(folder)
    (folder / "c").unlink()
    assert content(tmp_path) == before
    write_together(folder)
    new = {f"folder/{name}": "new" for name in ("a", "figures/b", "c")}
    assert content(tmp_path) == before | new
    (folder / "c").rename(folder / "figures" / "c")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / "figures", tmp_path / "elsewhere" / "figures")
    (folder / "figures").symlink_to(tmp_path / "elsewhere" / "figures")
    with pytest.raises(FileExistsError, match="same command: figures"):  # not through a link
        write_together(folder)


def test_links_stay_links(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").symlink_to("folder/a")
    write_folder(tmp_path / "link")
    assert content(tmp_path / "link") == {"a": "new"}
    with writing.file(tmp_path / "file") as beside:
        beside.write_text("newer")
    assert content(tmp_path / "folder") == {"a": "newer"}
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").is_symlink()


def killed_at(step, function, *arguments):
    """Runs a function in a process that dies before its `step`-th renaming; tells whether it did."""
    process = os.fork()
    if process == 0:
        try:
            steps = iter(range(step))
            rename = Path.rename
            Path.rename = lambda path, target: os._exit(9) if next(steps, None) is None else rename(path, target)
            function(*arguments)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
@pytest.mark.parametrize("write", [write_folder, write_together])
def test_a_process_killed_between_two_moves(tmp_path, write):
    whole = {}
    for step in itertools.count():
        folder = tmp_path / str(step) / "folder"
        (folder / "figures").mkdir(parents=True)
        for name in ("a", "figures/b", "gone"):
            (folder / name).write_text("old")
        old = content(folder)
        was_killed = killed_at(step, write, folder)
        assert bool(list(folder.parent.rglob(".new-*"))) == was_killed
        writing.recover(folder)
        assert os.listdir(folder.parent) == ["folder"]
        whole[step] = content(folder)
        if not was_killed:
            break
        write(folder)  # and the next one goes well
        assert set(content(folder).values()) == {"new"}
    assert step >= 3
    new = whole.pop(step)
    assert set(new.values()) == {"new"}
    assert all(found in (old, new) for found in whole.values())
    assert old in whole.values()
    assert new in whole.values()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
def test_what_killed_processes_were_preparing_goes(tmp_path):
    def die():
        with writing.file(tmp_path / "a") as beside:
            beside.write_text("half")
            with writing.together(tmp_path), writing.folder(tmp_path / "b"):
                Path("x").rename("y")

    assert killed_at(0, die)
    assert len(list(tmp_path.glob(".new-*"))) == 3
    (tmp_path / ".new-ours").touch()  # a person's
    with writing.file(tmp_path / "c") as alive:
        alive.touch()
        writing.recover(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {".new-ours", alive.name}


def test_what_comes_meanwhile_is_not_replaced(tmp_path):
    """Where a process was killed with the old contents aside, and somebody has put other ones there since."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("old")
    assert killed_at(2, write_folder, folder)
    folder.mkdir()
    (folder / "b").write_text("theirs")
    before = content(tmp_path)
    writing.recover(folder)
    assert content(tmp_path) == before


def test_two_processes_in_one_folder(tmp_path):
    with (
        writing.locked(tmp_path, "training"),
        pytest.raises(OSError, match="Another process is training in"),
        writing.locked(tmp_path, "training"),
    ):
        pytest.fail("the block must not run")
    with writing.locked(tmp_path, "training"):
        assert not list(tmp_path.iterdir())


def test_two_processes_in_one_folder_where_folders_cant_be_locked(tmp_path, monkeypatch):
    """Windows, whose locks are on bytes of a file."""
    fcntl = pytest.importorskip("fcntl")

    def locking(descriptor, mode, count):
        assert (mode, count) == ("non-blocking", 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK="non-blocking"))
    with (
        writing.locked(tmp_path, "training"),
        pytest.raises(OSError, match="Another process is training in"),
        writing.locked(tmp_path, "training"),
    ):
        pytest.fail("the block must not run")
    with writing.locked(tmp_path, "training"):
        assert [path.name for path in tmp_path.iterdir()] == [".kerasae-lock"]
        assert writing.held(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cant_be_written(tmp_path):
    assert writing.writable(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Can't write into .*file/a: Not a directory. Choose another --folder."):
        writing.writable(tmp_path / "file" / "a", "--folder")


def test_sha256(tmp_path):
    assert (
        writing.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2, B.1
    assert writing.sha256() == hashlib.sha256().hexdigest()
    (tmp_path / "a").write_bytes(b"bc" * 200_000)
    expected = hashlib.sha256(b"a" + b"bc" * 200_000).hexdigest()
    assert writing.sha256(b"a", tmp_path / "a") == writing.sha256(memoryview(b"a"), str(tmp_path / "a")) == expected


def test_sha256_of_arrays():
    x = np.arange(6, dtype="<i4").reshape(2, 3)
    expected = hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in range(6))).hexdigest()
    assert writing.sha256(x) == writing.sha256(x.astype(">i4")) == writing.sha256(x[:1], x[1:]) == expected
    assert writing.sha256(x.T) != expected

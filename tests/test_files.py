"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptlora.errors import OutputError
from promptlora.files import creating_folder, replacing_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Broken(Exception):  # noqa: N818
    """What a body raises."""


# --- one file -----------------------------------------------------------------------------------------------


def test_a_file_appears_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with replacing_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # the same file system, so that a rename is one step
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(("make", "write"), [("touch", replacing_file), ("mkdir", creating_folder)])
def test_ctrl_c_the_moment_the_temporary_name_is_made_leaves_nothing(make, write, tmp_path, monkeypatch):
    original = getattr(Path, make)

    def interrupted(self, *args, **values):
        original(self, *args, **values)
        if self.name.startswith("."):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, make, interrupted)
    with pytest.raises(KeyboardInterrupt), write(tmp_path / "it"):
        pytest.fail("the body ran")
    assert names(tmp_path) == []


def half_a_file(path: Path, error: BaseException) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text("half")
        raise error


def half_a_folder(path: Path, error: BaseException, overwrite: bool = False) -> None:
    with creating_folder(path, overwrite=overwrite) as temporary:
        (temporary / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), ValueError()])
def test_a_file_of_a_broken_body_leaves_nothing(tmp_path, error):
    path = tmp_path / "file.txt"
    with pytest.raises(type(error)):
        half_a_file(path, error)
    assert names(tmp_path) == []
    path.write_text("old")
    with pytest.raises(type(error)):
        half_a_file(path, error)
    assert names(tmp_path) == ["file.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("half", [half_a_file, half_a_folder])
def test_no_space_is_one_line(tmp_path, half):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(
        OutputError, match=r"it: cannot be written \(No space left on device\); free some space"
    ) as caught:
        half(tmp_path / "it", full)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_or_under_a_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(OutputError, match="folder: is a folder"),
        replacing_file(tmp_path / "folder") as temporary,
    ):
        temporary.write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"), replacing_file(tmp_path / "file" / "below"):
        pytest.fail("there is nowhere to write")
    assert names(tmp_path) == ["file", "folder"]


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_and_readable(tmp_path):
    path = tmp_path / "a" / "folder"
    with creating_folder(path) as temporary:
        save_file({"x": torch.ones(2)}, temporary / "x.safetensors")
        (temporary / "inner").mkdir()
        (temporary / "inner" / "y").write_text("y")
        (temporary / "inner" / "y").chmod(0o600)
        assert not path.exists()
    assert names(path.parent) == ["folder"]
    assert names(path) == ["inner", "x.safetensors"]
    for file in (path / "x.safetensors", path / "inner" / "y"):
        assert file.stat().st_mode & 0o777 == 0o644
    for folder in (path, path / "inner"):
        assert folder.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "folder").mkdir()
    with creating_folder(tmp_path / "folder") as temporary:
        (temporary / "x").write_text("x")
    assert names(tmp_path / "folder") == ["x"]
    assert names(tmp_path) == ["folder"]


def test_an_existing_folder_or_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    (tmp_path / "file").write_text("old")
    with (
        pytest.raises(OutputError, match=r"folder: exists already; .*overwrite=True"),
        creating_folder(tmp_path / "folder"),
    ):
        pytest.fail("work was done")
    for overwrite in (False, True):
        with (
            pytest.raises(OutputError, match="file: is a file"),
            creating_folder(tmp_path / "file", overwrite=overwrite),
        ):
            pytest.fail("work was done")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_of_a_broken_body_leaves_what_was_there(tmp_path, error, exists):
    path = tmp_path / "folder"
    if exists:
        path.mkdir()
        (path / "old").write_text("old")
    with pytest.raises(type(error)):
        half_a_folder(path, error, overwrite=True)
    assert names(tmp_path) == (["folder"] if exists else [])
    assert not exists or names(path) == ["old"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with creating_folder(path, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if Path(target) == path and self.name != "old":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match="Input/output error"), creating_folder(path, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("moment", [1, 2])
def test_ctrl_c_between_the_two_steps_of_a_replacement_loses_neither_folder(moment, tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    rename, done = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        done.append(self)
        if len(done) == moment:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), creating_folder(path, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert names(path) == ["old" if moment == 1 else "new"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_another_process_put_there_meanwhile_is_kept(tmp_path):
    path = tmp_path / "folder"

    def write() -> None:
        with creating_folder(path) as temporary:
            (temporary / "ours").write_text("ours")
            path.mkdir()
            (path / "theirs").write_text("theirs")

    with pytest.raises(OutputError, match="folder: cannot be written"):
        write()
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("where", ["working", "home"])
def test_the_working_and_home_folders_are_never_replaced(tmp_path, monkeypatch, where):
    inside = tmp_path / "mine" / "deep"
    inside.mkdir(parents=True)
    (inside / "precious").write_text("x")
    if where == "working":
        monkeypatch.chdir(inside)
    else:
        monkeypatch.setenv("HOME", str(inside))
    for target in (inside, tmp_path / "mine", Path() if where == "working" else inside):
        with pytest.raises(OutputError, match="it is not replaced"), creating_folder(target, overwrite=True):
            pytest.fail("work was done")
    assert (inside / "precious").read_text() == "x"


def test_a_linked_folder_is_replaced_but_not_emptied(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with creating_folder(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path / "link") == ["new"]
    assert names(tmp_path / "real") == ["precious"]
    assert names(tmp_path) == ["link", "real"]


# --- a disk that is full ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """No file of this process may grow beyond 64 KiB: the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("how", ["safetensors", "text"])
def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path, small_disk, how, kind):
    def write() -> None:
        with replacing_file(tmp_path / "it") if kind == "file" else creating_folder(tmp_path / "it") as temporary:
            path = temporary
            if kind == "folder":
                save_file({"x": torch.zeros(10)}, temporary / "first")
                path = temporary / "second"
            if how == "safetensors":
                save_file({"x": torch.zeros(100_000)}, path)
            else:
                path.write_text("x" * 400_000)

    with pytest.raises(OutputError, match=r"it: cannot be written \(.*File too large.*\)"):
        write()
    assert names(tmp_path) == []


def test_a_killed_process_leaves_no_half_file_under_the_name(tmp_path):
    script = """
    import os, signal, sys
    from pathlib import Path
    from promptlora.files import creating_folder, replacing_file
    root = Path(sys.argv[1])
    with replacing_file(root / "file") as file, creating_folder(root / "folder") as folder:
        file.write_text("half")
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path], check=False)
    assert ended.returncode == -9
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []
    with replacing_file(tmp_path / "file") as temporary:  # what is left does not stand in the way
        save_file({"x": torch.ones(1)}, temporary)
    assert load_file(tmp_path / "file")["x"].item() == 1

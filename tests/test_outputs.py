"""Outputs that are known to fail are refused before work; a full disk leaves what was there."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from promptlora.errors import OutputError
from promptlora.files import append_lines, check_output, creating_folder, replacing_file


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/..", "x" * 300, "a/" + "x" * 300 + "/b", "file", "file/below", "nul\0"]
)
@pytest.mark.parametrize("folder", [True, False])
def test_a_hopeless_output_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, name, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    if name == "file" and not folder:
        return
    make = creating_folder if folder else replacing_file
    with pytest.raises(OutputError) as caught:
        check_output(Path(name), folder=folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError), make(Path(name)):
        pytest.fail("work was done")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_of_255_bytes_is_written(tmp_path):
    for name in ("x" * 255, "é" * 127):
        with replacing_file(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"


@pytest.mark.parametrize("make", [creating_folder, replacing_file])
def test_folders_made_on_the_way_go_again_when_the_work_fails(tmp_path, make):
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), make(tmp_path / "there" / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert list((tmp_path / "there").iterdir()) == []


def test_check_output_creates_nothing_and_takes_what_can_be_made(tmp_path):
    check_output(tmp_path / "a" / "b")
    check_output(tmp_path / "a" / "b.svg", folder=False)
    check_output(tmp_path, reuse=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    check_output(tmp_path / "full", overwrite=True)
    with pytest.raises(OutputError, match="exists already"):
        check_output(tmp_path / "full")
    with pytest.raises(OutputError, match="exists already"):
        check_output(tmp_path / "full" / "x", folder=False)


def test_lines_are_appended_whole(tmp_path):
    append_lines(tmp_path / "a", ["1", "é"])
    append_lines(tmp_path / "a", ["3"])
    assert (tmp_path / "a").read_text(encoding="utf-8") == "1\né\n3\n"
    with pytest.raises(OutputError, match=r"/dev/full: cannot be written \(No space left"):
        append_lines(Path("/dev/full"), ["x"])


def test_a_full_disk_keeps_what_was_there(tmp_path):
    code = """
import pathlib, resource, signal, sys
from promptlora.errors import OutputError
from promptlora.files import append_lines, replacing_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
path = pathlib.Path(sys.argv[1])
append_lines(path, ["x" * 80])
for write in (lambda: append_lines(path, ["y" * 80]), lambda: replace(path)):
    def replace(path):
        with replacing_file(path) as temporary:
            temporary.write_text("z" * 200)
    try: write()
    except OutputError as error: print(str(error).count("cannot be written"))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n1\n"
    assert (tmp_path / "a").read_text() == "x" * 80 + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100

"""The one reader of files: what it takes, what it refuses in one line, and how much it reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptlora import reading
from promptlora.errors import DataError
from promptlora.reading import (
    all_finite,
    is_dir,
    is_file,
    json_lines,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    read_toml,
)

BOM = b"\xef\xbb\xbf"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("data", [b"caf\xc3\xa9\nx", BOM + b"caf\xc3\xa9\nx", b"caf\xc3\xa9\r\nx"])
def test_text_is_the_same_with_a_byte_order_mark_and_with_other_line_ends(tmp_path, data):
    (tmp_path / "t").write_bytes(data)
    assert read_text(tmp_path / "t", DataError) == "café\nx"


def test_json_json_lines_and_toml_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(BOM + b'{"x": 1}\n{"x": 2}\n')
    assert [value for _, _, value in json_lines(tmp_path / "a", DataError)] == [{"x": 1}, {"x": 2}]
    (tmp_path / "a").write_bytes(BOM + b'{"x": 1}')
    assert read_json(tmp_path / "a", DataError) == {"x": 1}
    (tmp_path / "a").write_bytes(BOM + b"x = 1")
    assert read_toml(tmp_path / "a", DataError) == {"x": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", "NaN is not finite"),
        ("[Infinity]", "Infinity is not finite"),
        ("-Infinity", "not finite"),
        ("1e999", "1e999 is not finite"),
        ("9" * 5000, "beyond 64 bits"),
        (str(1 << 64), "beyond 64 bits"),
        (DEEP, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_that_cannot_be_used_is_one_line(text, said):
    with pytest.raises(DataError, match=said) as caught:
        parse_json(text, "file.json", DataError)
    assert str(caught.value).startswith("file.json: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numbers_within_bounds_are_kept():
    assert parse_json("[1e308, -5, 18446744073709551615, 0.1, true]", "x", DataError) == [
        1e308,
        -5,
        2**64 - 1,
        0.1,
        True,
    ]


@pytest.mark.parametrize("text", ["x = " + DEEP, "x = 1" + "0" * 5000, "x = = 1", "x = 1\nx = 2"])
def test_toml_that_cannot_be_used_is_one_line(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(DataError, match=r"a\.toml: not TOML") as caught:
        read_toml(tmp_path / "a.toml", DataError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte", "", "half\udce9"])
def test_names_that_the_file_system_refuses_are_no_files(tmp_path, name):
    assert not is_file(tmp_path / name)
    assert not is_dir(tmp_path / name) or name == ""
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path / name, DataError)


def test_a_file_without_an_end_is_not_read_to_its_end():
    with pytest.raises(DataError, match=r"/dev/zero: longer than"):
        read_text(Path("/dev/zero"), DataError, longest=1000)


def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LINE_BYTES", 1000)
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as handle:
        handle.write(b"\0" * (1 << 20))
    with pytest.raises(DataError, match=r"bomb.jsonl.gz:1: longer than 1000 bytes"):
        list(json_lines(tmp_path / "bomb.jsonl.gz", DataError))


def test_lines_that_a_killed_writer_left_are_skipped_where_asked(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"x": 1}\n{"x": \n\n\xff\n{"x": NaN}\n{"x": 3}')
    assert [(n, v["x"]) for n, _, v in json_lines(tmp_path / "a.jsonl", DataError, torn=True)] == [(1, 1), (6, 3)]
    with pytest.raises(DataError, match=r"a.jsonl:2: not JSON"):
        list(json_lines(tmp_path / "a.jsonl", DataError))


def test_what_the_caller_raises_between_lines_is_not_changed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    lines = json_lines(tmp_path / "a.jsonl", DataError)
    next(lines)
    with pytest.raises(ZeroDivisionError, match="mine"):
        lines.throw(ZeroDivisionError("mine"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_refused(tmp_path, dtype, value):
    save_file({"fine": torch.ones(3, dtype=dtype), "bad": torch.tensor([1.0, value]).to(dtype)}, tmp_path / "t")
    with pytest.raises(DataError, match="t: bad has values that are not finite"):
        read_tensors(tmp_path / "t", DataError)


def test_tensors_and_metadata_come_back(tmp_path):
    save_file({"a": torch.arange(3)}, tmp_path / "t", metadata={"k": json.dumps([1])})
    tensors, metadata = read_tensors(tmp_path / "t", DataError)
    assert torch.equal(tensors["a"], torch.arange(3))
    assert metadata == {"k": "[1]"}
    with pytest.raises(DataError, match="truncated or not safetensors"):
        read_tensors(tmp_path, DataError)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(dtype, wrong):
    values = torch.linspace(-2, 2, 1000)
    assert all_finite(values.to(dtype))
    for place in (0, 500, 999):
        spoiled = values.clone()
        spoiled[place] = wrong
        assert not all_finite(spoiled.to(dtype))
    assert all_finite(torch.empty(0, 3, dtype=dtype))

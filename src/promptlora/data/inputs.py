"""Inputs without answers, read from a text file with one input per line, from JSON lines, or from a CSV file.

It knows files; it knows nothing of prompts, tokenizers or models.
"""

from __future__ import annotations

from pathlib import Path

from promptlora.data.csv_rows import csv_rows
from promptlora.data.rows import check_unicode
from promptlora.errors import DataError
from promptlora.reading import is_file, json_lines, read_text

_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".csv")
_LONGEST = 1 << 30  # bytes


def read_inputs(path: Path) -> list[str]:
    """Read the inputs in a file, in order.

    ``.txt`` has one input per line; empty lines are skipped. Each line of ``.jsonl`` or ``.jsonl.gz`` is a string, or
    an object with the input under ``input``. ``.csv`` has a column ``input``.

    Raises:
        DataError: The file cannot be read, has another type, or lacks an input; the message names the line.
    """
    if not is_file(path):
        raise DataError(f"{path}: no such file. Expected inputs in {', '.join(_SUFFIXES)}.")
    if not path.name.endswith(_SUFFIXES):
        raise DataError(f"{path}: {path.suffix or 'no suffix'}. Expected one of {', '.join(_SUFFIXES)}.")
    if path.suffix == ".txt":
        lines = read_text(path, DataError, longest=_LONGEST).split("\n")
        found: list[tuple[str, object]] = [
            (f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()
        ]
    elif path.suffix == ".csv":
        found = [(where, values.get("input")) for where, values in csv_rows(path)]
    else:
        found = [
            (f"{path}:{number}", value.get("input") if isinstance(value, dict) else value)
            for number, _, value in json_lines(path, DataError)
        ]
    for where, text in found:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: input {repr(text)[:80]}. Expected a text that is not empty. Fix: add it.")
        check_unicode(text, where)
    if not found:
        raise DataError(f"{path}: it holds no input. Expected at least one.")
    return [str(text) for _, text in found]

"""Rows of a CSV file as mappings, in the form that JSON lines would have.

It knows CSV; it does not interpret the columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptlora.errors import DataError
from promptlora.reading import read_text

_LONGEST = 1 << 30  # bytes


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a CSV file with a header; yields each row with its location for error messages.

    A cell of ``outputs`` is one text or a JSON list of texts. An empty cell counts as missing, except in ``input``.

    Raises:
        DataError: The file cannot be read or has no header, or a row has more cells than the header.
    """
    lines = read_text(path, DataError, longest=_LONGEST).split("\n")
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header) or len(set(header)) < len(header):
            raise DataError(
                f"{path}:1: header {header}. Expected the names of columns, each once, such as prompt,input,outputs."
            )
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cells):
                continue
            if len(cells) > len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells. Expected at most {len(header)}, as in the header. Fix: put cells that "
                    "hold commas in quotes."
                )
            values: dict[str, Any] = {
                name: cell for name, cell in zip(header, cells, strict=False) if cell or name == "input"
            }
            if "outputs" in values:
                values["outputs"] = _texts(values["outputs"])
            yield where, values
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error}). Expected cells as in RFC 4180.") from error


def _texts(cell: str) -> list[str]:
    """The texts of a cell: the items of a JSON list of texts, otherwise the cell itself."""
    if cell.lstrip().startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
        if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
            return found
    return [cell]

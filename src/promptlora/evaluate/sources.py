"""Rows to evaluate from one or more files, and the rows of the same tasks that are not evaluated.

It knows files and rows; it knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from promptlora.data import Row, first_of_each_task, read_rows
from promptlora.errors import DataError


def read_tasks(
    sources: Sequence[str | Path], split: str = "eval", rows_per_task: int | None = None
) -> tuple[list[Row], list[Row]]:
    """Read the rows to score and, from the same files, the other rows of their tasks.

    Args:
        sources: Files, folders or dataset ids; see :func:`promptlora.data.read_rows`.
        split: The split that is scored; an empty string scores all rows.
        rows_per_task: Score only the first rows of each task.

    Returns:
        The rows to score, in the order of the sources, and the other rows: those of another split or beyond
        ``rows_per_task``. A dataset id has no other rows.

    Raises:
        DataError: A source cannot be read, or a task occurs in two sources.
    """
    rows: list[Row] = []
    other: list[Row] = []
    source_of: dict[str, str] = {}
    for source in sources:
        found = read_rows(source, split)
        for task in dict.fromkeys(row.task for row in found):
            if task in source_of:
                raise DataError(
                    f"task {task!r}: it is in {source_of[task]} and in {source}. Expected each task in one file. Fix: "
                    "rename it, or leave one of the files out"
                )
            source_of[task] = str(source)
        scored = first_of_each_task(found, rows_per_task) if rows_per_task else found
        rows += scored
        if Path(source).exists():
            taken = {id(row) for row in scored}
            rest = [row for row in read_rows(source) if split and row.split and row.split != split]
            other += [row for row in (*found, *rest) if id(row) not in taken]
    tasks = {row.task for row in rows}
    return rows, [row for row in other if row.task in tasks]

"""``promptlora synth``: write instruction tasks that the package generates."""

from __future__ import annotations

import gzip
import io
import json as jsonlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptlora.cli.console import Json, out, print_json, progress_bar
from promptlora.data.synthetic import SyntheticTask, categories, family_names, make_tasks
from promptlora.errors import OutputError
from promptlora.files import check_output, replacing_file
from promptlora.signals import stopping

_SUFFIXES = (".jsonl", ".jsonl.gz")


def synth(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSONL or JSONL.gz file of rows to write.")
    ] = None,
    tasks: Annotated[int, typer.Option(help="Number of tasks.")] = 2000,
    rows: Annotated[int, typer.Option(help="Rows per task; the last quarter has split eval.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed: the same seed gives the same rows.")] = 0,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Family or category to leave out; may be given several times.")
    ] = None,
    wordings: Annotated[
        Path | None, typer.Option(help="JSONL or JSONL.gz file for other wordings of each task.")
    ] = None,
    show: Annotated[
        str | None, typer.Option(help="Print one task of a family with three rows; writes nothing.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Print all families by category; writes nothing.")] = False,
    json: Json = False,
) -> None:
    """Generate synthetic instruction tasks from parameterised families, without other data.

    Training reads the other wordings as data.paraphrases.

    Example: **promptlora synth -o rows.jsonl.gz --tasks 2000 --wordings wordings.jsonl.gz**

    Example: **promptlora synth --show sort-words**

    Example: **promptlora synth -o rows.jsonl --exclude sentiment --exclude "two steps"**
    """
    if list_all:
        _list(json)
    elif show is not None:
        _show(show, seed, json)
    elif output is None:
        raise OutputError("--output: missing. Expected a file for the rows. Fix: pass -o rows.jsonl.gz.")
    else:
        for path in (output, *([] if wordings is None else [wordings])):
            check_output(path, overwrite=True, folder=False)
        made = make_tasks(tasks, rows=rows, seed=seed, exclude=exclude or ())
        counted = _write(made, tasks, output, wordings)
        if json:
            print_json(counted)
            return
        out.print(
            f"{escape(str(output))}: {counted['rows']} rows of {counted['tasks']} tasks from {counted['families']} "
            f"families in {counted['categories']} categories",
            highlight=False,
        )
        if wordings is not None:
            out.print(f"{escape(str(wordings))}: {counted['wordings']} other wordings", highlight=False)


def _list(json: bool) -> None:
    by_category: dict[str, list[str]] = {}
    for name, category in categories().items():
        by_category.setdefault(category, []).append(name)
    if json:
        print_json(by_category)
        return
    table = Table(title=f"{len(family_names())} families", title_justify="left")
    table.add_column("category")
    table.add_column("families")
    for category, names in by_category.items():
        table.add_row(category, ", ".join(names))
    out.print(table)


def _show(name: str, seed: int, json: bool) -> None:
    task = next(make_tasks(1, rows=8, seed=seed, only=name))
    if json:
        print_json({**vars(task), "rows": [vars(row) for row in task.rows]})
        return
    out.print(f"{task.name} ({task.category}; inputs: {task.pool})", highlight=False, markup=False)
    for wording in task.wordings:
        out.print(f"  prompt: {wording}", highlight=False, markup=False)
    for row in task.rows[:3]:
        out.print(f"  input:  {row.input}\n  answer: {row.output}", highlight=False, markup=False)


@contextmanager
def _lines(path: Path) -> Iterator[IO[str]]:
    """Open a text file that replaces ``path`` once it is complete; compressed (without a date) if the name says so."""
    if not path.name.endswith(_SUFFIXES):
        raise OutputError(f"{path}: {path.suffix or 'no suffix'}. Expected .jsonl or .jsonl.gz. Fix: rename it.")
    with ExitStack() as stack:
        raw: Any = stack.enter_context(stack.enter_context(replacing_file(path)).open("wb"))
        if path.name.endswith(".gz"):
            raw = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))


def _write(made: Iterator[SyntheticTask], count: int, output: Path, wordings: Path | None) -> dict[str, int]:
    """Write all tasks, or nothing."""
    if wordings is not None and wordings.resolve() == output.resolve():
        raise OutputError(f"--wordings: {wordings}. Expected a file other than --output. Fix: choose another name.")
    counted: Counter[str] = Counter()
    families: set[str] = set()
    kinds: set[str] = set()
    with stopping(at_once=True), ExitStack() as stack:  # SIGTERM too removes the temporary files
        rows_file = stack.enter_context(_lines(output))
        prompts_file = stack.enter_context(_lines(wordings)) if wordings is not None else None
        progress = stack.enter_context(progress_bar())
        for task in progress.track(made, total=count, description="tasks"):
            for row in task.to_rows():
                rows_file.write(jsonlib.dumps(row, ensure_ascii=False) + "\n")
            if prompts_file is not None:
                line = {"task": task.name, "prompt": task.wordings[0], "prompts": list(task.wordings[1:])}
                prompts_file.write(jsonlib.dumps(line, ensure_ascii=False) + "\n")
            families.add(task.family)
            kinds.add(task.category)
            counted.update(tasks=1, rows=len(task.rows), wordings=len(task.wordings) - 1)
    return {**counted, "families": len(families), "categories": len(kinds)}

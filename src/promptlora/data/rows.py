"""Rows of ``{task, prompt, input, outputs}``: reading them from files, and selecting among them.

It knows files and data sets; it knows nothing of tokenizers, batches or models.
"""

from __future__ import annotations

import difflib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptlora.data.csv_rows import csv_rows
from promptlora.errors import DataError, one_line
from promptlora.extras import need
from promptlora.reading import is_dir, is_file, json_lines, reason_of

_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example: the prompt says what to do, the input is what to do it with, and every output is a correct answer.

    Tasks of one ``pool`` have the same inputs in the same order.
    """

    task: str
    prompt: str
    input: str
    outputs: tuple[str, ...]
    metric: str = "rougeL"
    split: str = ""
    category: str = ""
    pool: str = ""


class NoPromptError(DataError):
    """A row without a prompt, where none was given for all rows."""


def _misspelled(key: str, values: Mapping[str, Any]) -> str:
    """A hint for a row that has a key spelled much like the one that it lacks; empty otherwise."""
    known = {"task", "document", "prompt", "input", "outputs", "metric", "split", "category", "pool"}
    others = [name for name in values if isinstance(name, str) and name not in known]
    near = [] if key in values else difflib.get_close_matches(key, others, n=1, cutoff=0.75)
    return f' (found "{near[0]}"; did you mean "{key}"?)' if near else ""


def make_row(values: Mapping[str, Any], where: str, labelled: bool = True) -> Row:
    """Make a row from plain values, with checks.

    Args:
        values: ``prompt``, ``input`` and ``outputs`` (a text or a list of texts), and optionally the other fields.
        where: The location of the row for error messages.
        labelled: The row must have outputs.

    Raises:
        DataError: The values do not make a valid row.
    """
    for key in ("prompt", "input"):
        if not isinstance(values.get(key), str):
            error = NoPromptError if key == "prompt" and values.get(key) is None else DataError
            raise error(
                f"{where}: {key}={repr(values.get(key))[:80]}; expected a text{_misspelled(key, values)}; add it to the row"
            )
    for key in ("task", "document", "metric", "split", "category", "pool"):
        if not isinstance(values.get(key) or "", (str, int)):
            raise DataError(f"{where}: {key}={repr(values[key])[:80]}; expected a text")
    outputs = values.get("outputs")
    if isinstance(outputs, str):
        outputs = [outputs]
    if outputs is not None and not isinstance(outputs, (list, tuple)):
        outputs = list(outputs) if hasattr(outputs, "__iter__") else None
    if outputs is None and not labelled:
        outputs = []
    elif not outputs or not all(isinstance(o, str) and o.strip() for o in outputs):
        raise DataError(
            f"{where}: outputs={repr(values.get('outputs'))[:80]}; expected a list of one or more non-empty texts"
            f"{_misspelled('outputs', values)}"
        )
    if not values["prompt"].strip():
        raise DataError(f"{where}: prompt is empty; expected an instruction")
    task = values.get("task") or values.get("document") or values["prompt"]
    metric = values.get("metric") or "rougeL"
    if metric not in ("exact_match", "rougeL"):
        raise DataError(f"{where}: metric={repr(metric)[:80]}; expected exact_match or rougeL")
    texts = {"prompt": values["prompt"], "input": values["input"], "task": str(task)}
    for key, text in (*texts.items(), *(("outputs", o) for o in outputs)):
        check_unicode(text, f"{where}: {key}")
    return Row(
        task=str(task),
        prompt=values["prompt"],
        input=values["input"],
        outputs=tuple(outputs),
        metric=metric,
        split=str(values.get("split") or ""),
        category=str(values.get("category") or ""),
        pool=str(values.get("pool") or ""),
    )


def check_unicode(text: str, where: str) -> None:
    """Refuse an unpaired surrogate, which no tokenizer and no file accepts.

    Raises:
        DataError: The text has one; the message names the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair ({error.reason}); expected Unicode text") from error


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    return ((f"{path}:{number}", value) for number, _, value in json_lines(path, DataError))


def read_rows(source: str | Path, split: str = "", *, labelled: bool = True, prompt: str | None = None) -> list[Row]:
    """Read rows from a JSONL, JSONL.gz, CSV or Parquet file, a folder of them, or a Hugging Face dataset id.

    Args:
        source: The path or id.
        split: Keep only rows with this ``split``; rows without a split are always kept. For a dataset id this is the
            split that is loaded (``train`` if empty).
        labelled: Every row must have outputs; otherwise outputs are optional.
        prompt: The prompt of rows that have none; by default every row must have one.

    Raises:
        DataError: A file is missing, a row is invalid (the message names the line), or no row is left.
    """
    path = Path(source)
    if is_dir(path):
        try:
            files = sorted(f for f in path.iterdir() if f.name.endswith(_SUFFIXES))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({reason_of(error)}). Expected a folder of data.") from error
        if not files:
            raise DataError(f"{path}: no data in this folder; expected {', '.join(_SUFFIXES)} files")
    elif is_file(path):
        if not path.name.endswith(_SUFFIXES):
            raise DataError(f"{path}: {path.suffix or 'no suffix'}; expected one of {', '.join(_SUFFIXES)}")
        files = [path]
    else:
        files = []
    pairs: Iterable[tuple[str, Any]]
    if files:
        pairs = [pair for file in files for pair in _READERS.get(file.suffix, _jsonl)(file)]
    else:
        pairs = _dataset(str(source), split)
    rows = []
    for where, values in pairs:
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: a {type(values).__name__}; expected an object with prompt, input and outputs")
        if prompt is not None and values.get("prompt") is None:
            values = {**values, "prompt": prompt}
        rows.append(make_row(values, where, labelled))
    if not rows:
        raise DataError(f"{source}: it holds no row; expected some, each with prompt, input and outputs")
    return of_split(rows, source, split)


def of_split(rows: Sequence[Row], source: str | Path, split: str) -> list[Row]:
    """Select the rows of this split and those without a split; all rows if ``split`` is empty.

    Args:
        rows: The rows.
        source: Source of the rows, for error messages.
        split: The split.

    Raises:
        DataError: No row is left.
    """
    kept = [row for row in rows if not split or not row.split or row.split == split]
    if not kept:
        splits = sorted({row.split for row in rows})
        raise DataError(f"{source}: no row with split={split!r} among {len(rows)}; it has {splits}")
    return kept


def check_rows(rows: Sequence[Row]) -> list[Row]:
    """Check rows that were made in a program by the same rules as rows from files.

    Raises:
        DataError: There is no row, an item is not a :class:`Row`, or a row is invalid; the message gives its number.
    """
    checked = []
    for number, row in enumerate(rows):
        if not isinstance(row, Row):
            raise DataError(f"rows[{number}]: a {type(row).__name__}. Expected a promptlora.data.Row. Fix: make one.")
        checked.append(make_row(vars(row), f"rows[{number}]", True))
    if not checked:
        raise DataError("rows: there is none. Expected one or more rows. Fix: pass some.")
    return checked


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    need("data", "pyarrow")
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
    except Exception as error:  # including Parquet types without a Python equivalent
        raise DataError(f"{path}: not a whole Parquet file ({one_line(error)}); fetch it again") from error
    for number, values in enumerate(rows, 1):
        yield f"{path} row {number}", values


_READERS = {".parquet": _parquet, ".csv": csv_rows}


def _dataset(name: str, split: str) -> Iterator[tuple[str, Any]]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(_SUFFIXES):
        raise DataError(
            f"{name}: no such file; expected JSONL, JSONL.gz, CSV, Parquet, or a dataset id such as owner/name"
        )
    need("data", "datasets")
    import datasets

    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # covers all network, Hub and format errors
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name}: no such file, and no dataset by that id ({first}); pass a path") from error
    for number, values in enumerate(table, 1):
        yield f"{name} row {number}", values


def read_paraphrases(path: str | Path, tasks: Iterable[str] | Mapping[str, str]) -> dict[str, list[str]]:
    """Read other wordings of the tasks' prompts, one ``{task, prompts}`` per line; other tasks are ignored.

    Args:
        path: A JSONL file. A line may also have the ``prompt`` that its wordings were made from.
        tasks: The tasks; or the prompt of each task, which is then compared with the one that a line has. Wordings of a
            prompt that has been changed since then would silently teach the old task.

    Raises:
        DataError: The file is missing, a line is invalid, or its wordings are those of another prompt (the message
            names the line).
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected JSONL with a task and its prompts a line")
    wanted = set(tasks)
    own = tasks if isinstance(tasks, Mapping) else {}
    found: dict[str, list[str]] = {}
    for where, values in _jsonl(path):
        prompts = values.get("prompts") if isinstance(values, Mapping) else None
        if not isinstance(prompts, list) or not isinstance(values.get("task"), str):
            raise DataError(f"{where}: expected an object with a task and a list of prompts")
        if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            raise DataError(f"{where}: a prompt of task {values['task']!r} is empty or no text; remove it")
        for prompt in prompts:
            check_unicode(prompt, f"{where}: a prompt")
        made_from = values.get("prompt")
        if made_from is not None and own.get(values["task"], made_from) != made_from:
            raise DataError(
                f"{where}: wordings of {repr(made_from)[:60]}; the prompt of task {values['task']!r} is "
                f"{own[values['task']][:60]!r}. Expected wordings of the same prompt. Fix: make them again."
            )
        if values["task"] in wanted:
            found.setdefault(values["task"], []).extend(prompts)
    return found


def one_prompt_a_task(rows: Sequence[Row]) -> list[Row]:
    """Rows whose tasks have one prompt each: a task with several prompts becomes ``name #1``, ``name #2`` and so on.

    A batch encodes one prompt for all rows of a group, so rows of one task must share their prompt.
    """
    prompts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.prompt not in prompts[row.task]:
            prompts[row.task].append(row.prompt)
    number = {(t, prompt): i for t, several in prompts.items() for i, prompt in enumerate(several, 1)}
    return [
        row if len(prompts[row.task]) == 1 else replace(row, task=f"{row.task} #{number[row.task, row.prompt]}")
        for row in rows
    ]


def hold_out(rows: Sequence[Row], count: int) -> list[str]:
    """Choose tasks to hold out of training, the same ones every time; whole categories if the rows have categories.

    Categories are drawn until ``count`` tasks are reached; a category that would exceed the count is skipped.

    Raises:
        DataError: There are fewer than ``count`` tasks to hold out plus two to train on, or every category has more
            than ``count`` tasks.
    """
    members: dict[str, dict[str, None]] = defaultdict(dict)  # dicts keep the order of the tasks
    for row in rows:
        members[row.category or row.task][row.task] = None
    total = len({row.task for row in rows})
    if count + 2 > total:
        raise DataError(f"validation.tasks={count}: there are {total} tasks; expected at most {max(0, total - 2)}")
    names = sorted(members)
    random.Random(0).shuffle(names)
    held: list[str] = []
    for name in names:
        if len(held) + len(members[name]) <= count:
            held += members[name]
    if count and not held:
        raise DataError(
            f"validation.tasks={count}: whole categories are held out, and each has more tasks. Expected at least "
            f"{min(map(len, members.values()))}. Fix: raise it, or remove the categories from the rows."
        )
    return held


def first_of_each_task(rows: Sequence[Row], count: int) -> list[Row]:
    """The first ``count`` rows of each task, in order."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.task] += 1
        if seen[row.task] <= count:
            kept.append(row)
    return kept


def tasks_answered_in_letters(rows: Sequence[Row]) -> list[str]:
    """Tasks in which every row has several one-letter outputs: most likely texts that were split by mistake."""
    suspects = dict.fromkeys(row.task for row in rows)
    for row in rows:
        if len(row.outputs) < 2 or any(len(output) > 1 for output in row.outputs):
            suspects.pop(row.task, None)
    return list(suspects)

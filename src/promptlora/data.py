"""Rows of ``{task, prompt, input, outputs}``, read from files, and their way into batches.

It knows files, tokenizers and the order of a training run; nothing of LoRA or of the hypernetwork.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from promptlora.config import DataConfig
from promptlora.errors import DataError
from promptlora.losses import IGNORED
from promptlora.prompts import encode_chat, render_chat

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example: the prompt says what to do, the input is what it is done to, the outputs are all right."""

    task: str
    prompt: str
    input: str
    outputs: tuple[str, ...]
    metric: str = "rougeL"
    split: str = ""
    category: str = ""


def _row(values: Mapping[str, Any], where: str, labelled: bool = True) -> Row:
    for key in ("prompt", "input"):
        if not isinstance(values.get(key), str):
            raise DataError(f"{where}: {key}={values.get(key)!r}; expected a text; add it to the row")
    outputs = values.get("outputs")
    if isinstance(outputs, str):
        outputs = [outputs]
    if outputs is not None and not isinstance(outputs, (list, tuple)):
        outputs = list(outputs) if hasattr(outputs, "__iter__") else None
    if outputs is None and not labelled:
        outputs = []
    elif not outputs or not all(isinstance(o, str) and o.strip() for o in outputs):
        raise DataError(f"{where}: outputs={values.get('outputs')!r}; expected a list of one or more non-empty texts")
    if not values["prompt"].strip():
        raise DataError(f"{where}: prompt is empty; expected an instruction")
    task = values.get("task") or values.get("document") or values["prompt"]
    metric = values.get("metric") or "rougeL"
    if metric not in ("exact_match", "rougeL"):
        raise DataError(f"{where}: metric={metric!r}; expected exact_match or rougeL")
    for key, text in (("prompt", values["prompt"]), ("input", values["input"]), *(("outputs", o) for o in outputs)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {key} holds half a surrogate pair ({error.reason}); expected Unicode text"
            ) from error
    return Row(
        task=str(task),
        prompt=values["prompt"],
        input=values["input"],
        outputs=tuple(outputs),
        metric=metric,
        split=str(values.get("split") or ""),
        category=str(values.get("category") or ""),
    )


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON ({error.msg}); expected one object a line") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number} ({error}); fetch it again") from error


def read_rows(source: str | Path, split: str = "", *, labelled: bool = True) -> list[Row]:
    """Read rows from a JSONL, JSONL.gz or Parquet file, a folder of them, or a Hugging Face dataset id.

    Args:
        source: The path or id.
        split: Keep rows whose ``split`` is this; rows without a split are always kept. For a dataset id it
            is the split that is loaded (``train`` when empty).
        labelled: Every row must have outputs; else a row may come without, and has none.

    Raises:
        DataError: A missing file, a row that lacks something (the line is named), or no row left.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.name.endswith(_SUFFIXES))
        if not files:
            raise DataError(f"{path}: no data in this folder; expected {', '.join(_SUFFIXES)} files")
    elif path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise DataError(f"{path}: {path.suffix or 'no suffix'}; expected one of {', '.join(_SUFFIXES)}")
        files = [path]
    else:
        files = []
    pairs: Iterable[tuple[str, Any]]
    if files:
        pairs = [pair for file in files for pair in (_parquet(file) if file.suffix == ".parquet" else _jsonl(file))]
    else:
        pairs = _dataset(str(source), split)
    rows = []
    for where, values in pairs:
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: a {type(values).__name__}; expected an object with prompt, input and outputs")
        rows.append(_row(values, where, labelled))
    if not rows:
        raise DataError(f"{source}: it holds no row; expected some, each with prompt, input and outputs")
    kept = [row for row in rows if not split or not row.split or row.split == split]
    if not kept:
        splits = sorted({row.split for row in rows})
        raise DataError(f"{source}: no row with split={split!r} among {len(rows)}; it has {splits}")
    return kept


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); fetch it again") from error
    for number, values in enumerate(table.to_pylist(), 1):
        yield f"{path} row {number}", values


def _dataset(name: str, split: str) -> Iterator[tuple[str, Any]]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(_SUFFIXES):
        raise DataError(f"{name}: no such file; expected JSONL, JSONL.gz, Parquet, or a dataset id such as owner/name")
    import datasets

    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # every kind of network, hub and format error ends here
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name}: no such file, and no dataset by that id ({first}); pass a path") from error
    for number, values in enumerate(table, 1):
        yield f"{name} row {number}", values


def read_paraphrases(path: str | Path, tasks: Iterable[str]) -> dict[str, list[str]]:
    """Read other wordings of tasks' prompts, ``{task, prompts}`` a line; those of other tasks are left out.

    Raises:
        DataError: A missing file or a line that does not fit (it is named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSONL with a task and its prompts a line")
    wanted = set(tasks)
    found: dict[str, list[str]] = {}
    for where, values in _jsonl(path):
        prompts = values.get("prompts") if isinstance(values, Mapping) else None
        if not isinstance(prompts, list) or not isinstance(values.get("task"), str):
            raise DataError(f"{where}: expected an object with a task and a list of prompts")
        if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            raise DataError(f"{where}: a prompt of task {values['task']!r} is empty or no text; remove it")
        if values["task"] in wanted:
            found.setdefault(values["task"], []).extend(prompts)
    return found


def one_prompt_a_task(rows: Sequence[Row]) -> list[Row]:
    """Rows whose task has one prompt: where a task has several, each makes a task of its own, ``name #1`` and so on.

    A batch encodes one prompt for the rows that stand together, so rows of one task must share it.
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
    """Tasks to hold out of training, the same ones each time: whole categories where rows name one.

    Categories are drawn until ``count`` tasks are together; one that would exceed it is passed over.

    Raises:
        DataError: Fewer tasks than that and two more to train on.
    """
    members: dict[str, dict[str, None]] = defaultdict(dict)  # dicts keep the order in which tasks stand
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
    """Tasks all of whose rows have several outputs of one letter each: very likely texts that were split by mistake."""
    suspects = dict.fromkeys(row.task for row in rows)
    for row in rows:
        if len(row.outputs) < 2 or any(len(output) > 1 for output in row.outputs):
            suspects.pop(row.task, None)
    return list(suspects)


@dataclass(frozen=True)
class Example:
    """A row as token ids: the rendered input and each possible answer with its end token; ``text`` is for messages."""

    task: str
    input_ids: list[int]
    answers: list[list[int]]
    text: str = ""

    @property
    def length(self) -> int:
        """Tokens of input and first answer."""
        return len(self.input_ids) + len(self.answers[0])


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], config: DataConfig
) -> tuple[list[Example], dict[str, int]]:
    """Token ids of rows; nothing is ever cut: a row that is too long is left out and counted.

    Returns:
        The examples, and how many rows were left out for ``input`` and for ``answer``.

    Raises:
        DataError: A tokenizer without an end token, or an input that it turns into nothing.
    """
    if not rows:
        return [], {"input": 0, "answer": 0}
    inputs = encode_chat(tokenizer, [render_chat(tokenizer, row.input) for row in rows])
    flat = [output for row in rows for output in row.outputs]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"{type(tokenizer).__name__} has no eos_token; answers must end somewhere: set one in its folder"
        )
    examples, left_out = [], {"input": 0, "answer": 0}
    for row, ids in zip(rows, inputs, strict=True):
        answers = [[*next(encoded), end] for _ in row.outputs]
        if not ids:
            raise DataError(
                f"task {row.task!r}: input {row.input[:40]!r} has no token; expected text before the answer"
            )
        answers = [answer for answer in answers if len(answer) <= config.max_answer_tokens]
        if len(ids) > config.max_input_tokens:
            left_out["input"] += 1
        elif not answers:
            left_out["answer"] += 1
        else:
            examples.append(Example(row.task, ids, answers, row.input))
    return examples, left_out


@dataclass(frozen=True)
class Group:
    """Rows of one task that stand together in a batch and share one prompt.

    ``number`` is its own in the epoch; ``length`` is that of the longest row, with the prompt where it is in the context.
    """

    task: str
    examples: tuple[int, ...]
    length: int
    number: int


@dataclass(frozen=True)
class Batch:
    """What a training step eats.

    ``input_ids`` and ``labels`` are ``[prompts * rows, seq]``, rows of a prompt beside each other, padded on
    the right (causal attention needs no mask then); ``labels`` is -100 off the answer. ``tokens`` counts the real
    ones; ``tasks`` has the task of each prompt and ``examples`` the number of each row's example.
    """

    prompts: list[str]
    input_ids: Tensor
    labels: Tensor
    tokens: int
    tasks: tuple[str, ...] = ()
    examples: tuple[int, ...] = ()

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss sees."""
        return int((self.labels != IGNORED).sum())


class Batches:
    """The order of a run: a pure function of seed and step, so that a resumed run sees the same batches.

    In an epoch each row stands in one group of rows of one task and near its own length (the last group of a
    task is filled up with some of its rows); groups of near length and different tasks make a batch. The groups
    that are left when no batch can be filled, the longest ones, sit that epoch out.

    Args:
        examples: Tokenized rows.
        prompts: Task to its prompts: the first is its own, the others are paraphrases.
        prompts_per_batch: Groups in a batch.
        rows_per_prompt: Rows in a group.
        pad: The padding id.
        paraphrase_share: How often a paraphrase takes the place of the task's own prompt.
        in_context: Gives the token ids of an input with a prompt in its context; needed for a share above 0.
        in_context_share: How often the rows of a prompt are shown with it in their context.
        seed: Seed of everything.

    Raises:
        DataError: Too few rows for one batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompts: Mapping[str, Sequence[str]],
        *,
        prompts_per_batch: int,
        rows_per_prompt: int,
        pad: int,
        paraphrase_share: float = 0.0,
        in_context: Callable[[str, str], list[int]] | None = None,
        in_context_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.examples, self.prompts = examples, prompts
        self.in_context, self.in_context_share = in_context, in_context_share
        self.prompts_per_batch, self.rows_per_prompt = prompts_per_batch, rows_per_prompt
        self.pad, self.paraphrase_share, self.seed = pad, paraphrase_share, seed
        self._by_task: dict[str, list[int]] = defaultdict(list)
        for i, example in enumerate(examples):
            self._by_task[example.task].append(i)
        self._epoch: tuple[int, list[list[Group]]] = (-1, [])
        self._added: dict[str, int] = {}  # tokens that a prompt adds to an input
        groups = sum(-(-len(members) // rows_per_prompt) for members in self._by_task.values())
        self.per_epoch = groups // prompts_per_batch  # the same in every epoch
        if not self.per_epoch:
            raise DataError(
                f"{len(examples)} rows of {len(self._by_task)} tasks make no batch of {prompts_per_batch} prompts x "
                f"{rows_per_prompt} rows; lower prompts_per_batch or rows_per_prompt, or add rows"
            )

    def _drawn(self, epoch: int, task: str, number: int) -> tuple[random.Random, str, bool]:
        """What is drawn for a group: its prompt, and whether that is in the context; and the generator to draw on with."""
        rng = random.Random(f"{self.seed}/{epoch}/{number}")
        own, *others = self.prompts[task]
        prompt = rng.choice(others) if others and rng.random() < self.paraphrase_share else own
        return rng, prompt, random.Random(f"{self.seed}/{epoch}/{number}/context").random() < self.in_context_share

    def _read(self, example: Example, prompt: str, shown: bool) -> list[int]:
        """Token ids before the answer."""
        if not shown:
            return example.input_ids
        assert self.in_context is not None
        return self.in_context(example.text, prompt)

    def _groups(self, epoch: int, rng: random.Random) -> list[Group]:
        groups: list[Group] = []
        size, window = self.rows_per_prompt, self.rows_per_prompt * 8
        for task, members in self._by_task.items():
            order = members.copy()
            rng.shuffle(order)
            for start in range(0, len(order), window):
                near = sorted(order[start : start + window], key=lambda i: self.examples[i].length)
                for at in range(0, len(near), size):
                    chosen = near[at : at + size]
                    chosen += [order[rng.randrange(len(order))] for _ in range(size - len(chosen))]
                    length = max(self.examples[i].length for i in chosen)
                    shown = False
                    if self.in_context_share:
                        _, prompt, shown = self._drawn(epoch, task, len(groups))
                    if shown:  # about as many tokens whatever the input is
                        if prompt not in self._added:
                            example = self.examples[chosen[0]]
                            self._added[prompt] = len(self._read(example, prompt, shown)) - len(example.input_ids)
                        length += self._added[prompt]
                    groups.append(Group(task, tuple(chosen), length, len(groups)))
        return groups

    def epoch(self, number: int) -> list[list[Group]]:
        """The batches of one epoch, as groups."""
        if self._epoch[0] == number:
            return self._epoch[1]
        rng = random.Random(f"{self.seed}/{number}")
        waiting = self._groups(number, rng)
        waiting.sort(key=lambda g: g.length + rng.uniform(-4, 4))
        batches = []
        while len(waiting) >= self.prompts_per_batch:
            batch: list[Group] = []
            tasks: set[str] = set()
            for at, group in enumerate(waiting[: 16 * self.prompts_per_batch]):
                if group.task not in tasks:
                    batch.append(group)
                    tasks.add(group.task)
                    waiting[at] = None  # type: ignore[call-overload]
                if len(batch) == self.prompts_per_batch:
                    break
            waiting = [group for group in waiting if group is not None]
            while len(batch) < self.prompts_per_batch:  # too few tasks near: one stands twice
                batch.append(waiting.pop(0))
            batches.append(batch)
        rng.shuffle(batches)
        assert len(batches) == self.per_epoch
        self._epoch = (number, batches)
        return batches

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        return self.part(step, 0, 1)

    def part(self, step: int, part: int, parts: int, *, first_answer: bool = False) -> Batch:
        """One of ``parts`` parts of the batch of a step, each of as many prompts.

        Args:
            step: Counted from 0 over all epochs.
            part: Which part, counted from 0.
            parts: How many; ``prompts_per_batch`` must be a multiple.
            first_answer: Take the first of a row's answers; else one is drawn.
        """
        number, at = divmod(step, self.per_epoch)
        groups = self.epoch(number)[at]
        size = len(groups) // parts
        return self._collate(groups[part * size : (part + 1) * size], number, first_answer)

    def _collate(self, groups: Sequence[Group], epoch: int, first_answer: bool) -> Batch:
        prompts, rows = [], []
        for group in groups:
            rng, prompt, shown = self._drawn(epoch, group.task, group.number)
            prompts.append(prompt)
            for i in group.examples:
                example = self.examples[i]
                answer = example.answers[0] if first_answer else rng.choice(example.answers)
                rows.append((self._read(example, prompt, shown), answer))
        return make_batch(
            prompts,
            rows,
            self.pad,
            tasks=tuple(group.task for group in groups),
            examples=tuple(i for group in groups for i in group.examples),
        )


def make_batch(
    prompts: list[str],
    rows: Sequence[tuple[list[int], list[int]]],
    pad: int,
    *,
    tasks: tuple[str, ...] = (),
    examples: tuple[int, ...] = (),
) -> Batch:
    """A batch of rows, each the token ids of what is read and of the answer."""
    longest = max(len(ids) + len(answer) for ids, answer in rows)
    input_ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, (ids, answer) in enumerate(rows):
        end = len(ids) + len(answer)
        input_ids[i, :end] = torch.tensor(ids + answer)
        labels[i, len(ids) : end] = torch.tensor(answer)
    tokens = sum(len(ids) + len(answer) for ids, answer in rows)
    return Batch(prompts, input_ids, labels, tokens, tasks, examples)

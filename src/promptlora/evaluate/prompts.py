"""The texts for each row: its prompt, the prompt with examples, another task's prompt, or gibberish.

All texts are chosen, and checked against the limits of hypernetwork and base, before the first answer is generated.
This module knows rows, tokenizers and limits; it knows nothing of adapters or answers.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from promptlora.data import Row
from promptlora.errors import DataError, PromptError
from promptlora.text import encode_prompt, gibberish
from promptlora.text.examples import with_examples

_PERMUTATIONS = 100  # attempts before the wrong-prompt control is given up

Examples = tuple[tuple[str, str], ...]


def permute_tasks(tasks: Sequence[str], seed: int = 0) -> dict[str, str]:
    """A random permutation without fixed points: maps each task to the task whose prompt it gets.

    Raises:
        DataError: There are fewer than two tasks.
    """
    if len(tasks) < 2:
        raise DataError(f"{len(tasks)} task: the wrong-prompt control needs two or more; leave it out or add tasks")
    order = list(tasks)
    random.Random(seed).shuffle(order)
    return {task: order[(i + 1) % len(order)] for i, task in enumerate(order)}


class Prompts:
    """The texts of each row. A task may have several prompts; each row then uses its own.

    Args:
        rows: The rows that are scored.
        other: Further rows of these tasks, from which examples are drawn.
        tokenizer: The base's tokenizer, to measure the length of prompts.
        longest: Maximum length of a prompt for the hypernetwork, in tokens.
        seed: Seed of the permutation, the gibberish and the examples.
        examples: Number of examples per prompt.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        other: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        seed: int,
        examples: int,
    ) -> None:
        self.rows, self.seed, self.longest = rows, seed, longest
        self._tokenizer = tokenizer
        self._length: dict[str, int] = {}
        self.of_task: dict[str, list[str]] = defaultdict(list)  # each task's distinct prompts, in order
        for row in rows:
            if row.prompt not in self.of_task[row.task]:
                self.of_task[row.task].append(row.prompt)
        self.distinct = list(dict.fromkeys(row.prompt for row in rows))
        self.examples = choose_examples(rows, other, examples, seed, self._fits)

    def texts(self, adapter: str) -> list[str]:
        """What the hypernetwork reads for each row, for a kind of adapter; see :class:`Condition`.

        Raises:
            DataError: A control is not possible with these tasks, or a task has no row to take an example from.
            PromptError: A prompt is empty or longer than the hypernetwork accepts; the message names its task.
        """
        kinds: dict[str, Callable[[], list[str]]] = {
            "own": lambda: [row.prompt for row in self.rows],
            "examples": self._with_examples,
            "other": self._of_other_tasks,
            "gibberish": self._gibberish,
        }
        found = kinds[adapter]()
        for text, row in dict(zip(found, self.rows, strict=True)).items():
            try:
                encode_prompt(self._tokenizer, text, self.longest)
            except PromptError as error:
                raise PromptError(f"task {row.task!r}: {error}") from error
        return found

    def shown(self, what: str) -> list[str] | None:
        """What the base reads before each input; None if it reads nothing."""
        if what == "examples":
            return self._with_examples()
        return [row.prompt for row in self.rows] if what else None

    def examples_digest(self) -> str:
        """A hash of the examples of all rows."""
        return hashlib.sha256(json.dumps(self.examples).encode()).hexdigest()[:16]

    def mean_examples(self) -> float:
        """Mean number of examples per row; smaller than requested if a task has fewer examples that fit."""
        return fmean(map(len, self.examples))

    def _fits(self, prompt: str, examples: Examples) -> bool:
        """Whether the hypernetwork can read a prompt with these examples."""
        text = with_examples(prompt, examples)
        if text not in self._length:
            ids = self._tokenizer(text.strip(), add_special_tokens=False, verbose=False)["input_ids"]
            self._length[text] = len(ids)
        return self._length[text] <= self.longest

    def _with_examples(self) -> list[str]:
        for row, chosen in zip(self.rows, self.examples, strict=True):
            if not chosen:
                raise DataError(
                    f"task {row.task!r}: it has no other row whose input and output fit into {self.longest} tokens "
                    "beside the prompt. Expected at least one to serve as an example. Fix: add rows, or leave the "
                    "conditions with examples out"
                )
        return [with_examples(row.prompt, list(chosen)) for row, chosen in zip(self.rows, self.examples, strict=True)]

    def _of_other_tasks(self) -> list[str]:
        """The prompt of another task for each row, never one that the row's own task also has."""
        for attempt in range(_PERMUTATIONS):
            swapped = permute_tasks(list(self.of_task), self.seed + 1_000_003 * attempt)
            given = {
                task: [prompt for prompt in self.of_task[swapped[task]] if prompt not in own]
                for task, own in self.of_task.items()
            }
            if all(given.values()):
                place = {(task, p): i for task, own in self.of_task.items() for i, p in enumerate(own)}
                return [given[r.task][place[r.task, r.prompt] % len(given[r.task])] for r in self.rows]
        raise DataError(
            "the wrong-prompt control needs tasks with different prompts. Expected two or more. Fix: leave it out"
        )

    def _gibberish(self) -> list[str]:
        made = {prompt: gibberish(prompt, self.seed + i, self.longest) for i, prompt in enumerate(self.distinct)}
        return [made[row.prompt] for row in self.rows]


def choose_examples(
    rows: Sequence[Row], other: Sequence[Row], count: int, seed: int, fits: Callable[[str, Examples], bool]
) -> list[Examples]:
    """Choose up to ``count`` (input, output) pairs for each row, from the row's task but not the row itself.

    If a task has other rows (for example of a training split), its examples come from those and are the same for all
    its rows. Otherwise its examples come from its scored rows and are drawn for each row among the rest. A row with the
    same input as a scored row is never an example for it. If a task has several prompts, examples come from rows with
    the same prompt.

    Args:
        rows: The rows that are scored.
        other: Further rows, of these tasks or of others.
        count: Maximum number of examples per row.
        seed: Seed of the random choice.
        fits: Returns whether a prompt with the given examples is short enough; an example that does not fit is skipped.

    Returns:
        One tuple per row; shorter than ``count`` if fewer examples fit or exist.
    """
    several = {task for task, prompts in _prompts(rows).items() if len(prompts) > 1}

    def group(row: Row) -> tuple[str, str]:
        return row.task, row.prompt if row.task in several else ""

    scored: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        scored[group(row)].append(row)
    inputs = {key: {row.input for row in members} for key, members in scored.items()}
    pools: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in other:
        if row.outputs and row.input not in inputs.get(group(row), set()):
            pools[group(row)].append(row)
    chosen: dict[tuple[str, str], Examples] = {}
    each = []
    for i, row in enumerate(rows):
        key = group(row)
        draw = partial(_draw, prompt=row.prompt, count=count, fits=fits)
        if pools[key]:
            if key not in chosen:
                chosen[key] = draw(pools[key], seed=f"{seed}/{key}")
            each.append(chosen[key])
        else:
            rest = [member for member in scored[key] if member.input != row.input]
            each.append(draw(rest, seed=f"{seed}/{key}/{i}"))
    return each


def _draw(
    pool: Sequence[Row], *, prompt: str, count: int, seed: str, fits: Callable[[str, Examples], bool]
) -> Examples:
    """The first rows of a shuffled pool that fit together with the prompt."""
    order = list(pool)
    random.Random(seed).shuffle(order)
    drawn: Examples = ()
    for row in order[: 8 * count]:
        more = (*drawn, (row.input, row.outputs[0]))
        if len(drawn) < count and fits(prompt, more):
            drawn = more
    return drawn


def _prompts(rows: Sequence[Row]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row.task].add(row.prompt)
    return found

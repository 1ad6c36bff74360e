"""Converts a user's data for the training steps: it groups rows by prompt, tokenizes them, and holds a part out.

It knows rows and tokenizers; it knows nothing of adapters or of the base.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from promptlora.data import DataConfig, Row, make_row, tokenize_rows
from promptlora.errors import DataError
from promptlora.losses import TeacherTargets

LEAST_ROWS = 2
KEEP_FROM = 8  # minimum number of rows for holding a part out
_MOST_KEPT = 16
_INPUT_TOKENS, _ANSWER_TOKENS = 512, 256


@dataclass(frozen=True)
class Item:
    """A row as token ids: the input, the possible answers, and, if the answer is a teacher's, its distributions."""

    ids: list[int]
    answers: list[list[int]]
    targets: TeacherTargets | None = None


@dataclass(frozen=True)
class Task:
    """The data of one adapter: its prompt, the training rows, and the held-out rows."""

    prompt: str
    items: list[Item]
    kept: list[Item]

    def drawn(self, step: int, count: int, seed: int) -> list[tuple[Item, list[int]]]:
        """The rows of a step, counted from 0, each with one of its answers; each row is drawn once per epoch.

        The rows depend on seed, prompt and step, but not on the rest of the batch.
        """
        count = min(count, len(self.items))
        chosen = []
        for at in range(step * count, (step + 1) * count):
            epoch, place = divmod(at, len(self.items))
            order = list(range(len(self.items)))
            random.Random(f"{seed}/{self.prompt}/{epoch}").shuffle(order)
            item = self.items[order[place]]
            chosen.append((item, random.Random(f"{seed}/{self.prompt}/answer/{at}").choice(item.answers)))
        return chosen


def keep_back(prompt: str, items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Split rows into training rows and held-out rows: a quarter, at most 16, and none of fewer than 8 rows.

    Rows with the same input stay on the same side of the split, because held-out rows must have new inputs. If that
    leaves no rows to hold out, none are held out.
    """
    if len(items) < KEEP_FROM:
        return list(items), []
    order = list(range(len(items)))
    random.Random(f"{seed}/{prompt}/kept").shuffle(order)
    same: dict[tuple[int, ...], list[int]] = {}
    for i in order:
        same.setdefault(tuple(items[i].ids), []).append(i)
    most = min(_MOST_KEPT, len(items) // 4)
    kept = set[int]()
    for group in same.values():  # in shuffled order
        if len(kept) + len(group) <= most:
            kept.update(group)
    return [items[i] for i in range(len(items)) if i not in kept], [items[i] for i in sorted(kept)]


def group_rows(prompts: Sequence[str], rows: Sequence[Any]) -> list[list[Row]]:
    """The rows of each prompt, checked.

    Args:
        prompts: The prompts of the adapters.
        rows: ``Row`` objects, dicts of ``input`` and ``outputs``, or pairs of input and output. With several prompts,
            each row must have its ``prompt``.

    Raises:
        DataError: A row cannot be used or belongs to no prompt, or a prompt has fewer than two rows.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Sequence):
        raise DataError(
            f"rows: a {type(rows).__name__}. Expected a list of rows. Fix: pass rows=[(input, output), …]; "
            "for a file use promptlora.read_rows."
        )
    single = prompts[0] if len(set(prompts)) == 1 else None
    by_prompt: dict[str, list[Row]] = {prompt.strip(): [] for prompt in prompts}
    for number, values in enumerate(rows):
        row = _as_row(values, single, f"rows[{number}]")
        if row.prompt.strip() not in by_prompt:
            raise DataError(
                f"rows[{number}]: its prompt {row.prompt.strip()[:60]!r} is not one of the {len(by_prompt)} prompts that are "
                "refined. Expected rows of these prompts. Fix: pass all prompts with an adapter each, or leave these "
                "rows out."
            )
        by_prompt[row.prompt.strip()].append(row)
    for prompt, members in by_prompt.items():
        if len(members) < LEAST_ROWS:
            raise DataError(
                f"rows: {len(members)} for prompt {prompt[:60]!r}. Expected {LEAST_ROWS} or more. Fix: add rows with inputs "
                "and outputs of this prompt."
            )
    return [by_prompt[prompt.strip()] for prompt in prompts]


def _as_row(values: Any, prompt: str | None, where: str) -> Row:
    if isinstance(values, Row):
        if not values.outputs:
            raise DataError(f"{where}: no outputs. Expected one or more. Fix: leave the row out, or use inputs=.")
        return values
    if isinstance(values, (tuple, list)) and len(values) == 2:
        values = {"input": values[0], "outputs": values[1]}
    if not isinstance(values, Mapping):
        raise DataError(
            f"{where}: {repr(values)[:60]}. Expected a Row, a dict of input and outputs, or a pair of them."
        )
    if values.get("prompt") is None:
        if prompt is None:
            raise DataError(
                f"{where}: names no prompt. Expected one, since several are refined. Fix: add prompt to the row."
            )
        values = {**values, "prompt": prompt}
    return make_row(values, where)


def items_of_rows(
    tokenizer: PreTrainedTokenizerBase, prompt: str, rows: Sequence[Row], longest: int | None, in_context: bool = False
) -> tuple[list[Item], int]:
    """Tokenize the rows of a prompt; rows that are too long are dropped, not truncated.

    Args:
        tokenizer: The base's tokenizer.
        prompt: The prompt.
        rows: The rows.
        longest: The maximum number of tokens that the base supports.
        in_context: Whether the base reads the prompt before each input, both here and when the adapter is used.

    Returns:
        The items, and the number of dropped rows.

    Raises:
        DataError: Fewer than two rows are left.
    """
    config = row_limits(longest)
    examples, left_out = tokenize_rows(tokenizer, rows, config, [prompt] * len(rows) if in_context else None)
    if len(examples) < LEAST_ROWS:
        raise DataError(
            f"rows: {len(examples)} of {len(rows)} for prompt {prompt.strip()[:60]!r} are short enough ({left_out['input']} inputs "
            f"above {config.max_input_tokens} tokens, {left_out['answer']} answers above {config.max_answer_tokens}). Expected "
            f"{LEAST_ROWS} or more. Fix: add shorter rows."
        )
    return [Item(example.input_ids, example.answers) for example in examples], sum(left_out.values())


def row_limits(longest: int | None) -> DataConfig:
    """The maximum lengths of input and answer for a base that supports ``longest`` tokens."""
    answer = _ANSWER_TOKENS if longest is None else max(1, min(_ANSWER_TOKENS, longest // 2))
    text = _INPUT_TOKENS if longest is None else max(1, min(_INPUT_TOKENS, longest - answer))
    return DataConfig(train="rows", max_input_tokens=text, max_answer_tokens=answer)

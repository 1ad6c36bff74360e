"""Rows as a teacher reads them: prompt and input in its context, and the answer to be scored.

It knows rows and tokenizers; nothing of models or files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from promptlora.data import Row, tokenize_rows
from promptlora.data.config import DataConfig
from promptlora.teacher.identity import TeachConfig
from promptlora.text import encode_chat, render_chat


def key_of(prompt: str, text: str, answer_ids: Sequence[int]) -> str:
    """The key of a row in a cache: SHA-256, in hex, over its prompt, its input and the tokens of the answer."""
    return hashlib.sha256(json.dumps([prompt, text, [int(i) for i in answer_ids]]).encode()).hexdigest()


def teacher_context(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, place: str = "user") -> list[int]:
    """Token ids of an input with its prompt in the context, ready for the answer, as an evaluation shows them.

    Raises:
        PromptError: Text that is not Unicode, or a chat that the template refuses.
    """
    return encode_chat(tokenizer, [render_chat(tokenizer, text, prompt, place=place)])[0]


@dataclass(frozen=True)
class Lesson:
    """One row: what the teacher reads, and the answer with its end token (the same ids that the student learns)."""

    row: Row
    context: list[int]
    answer: list[int]

    @property
    def key(self) -> str:
        """The key of the row in a cache."""
        return key_of(self.row.prompt, self.row.input, self.answer)


def lessons(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], config: TeachConfig
) -> tuple[list[Lesson], Counter[str]]:
    """Rows with their first answer that is not too long; nothing is truncated.

    Returns:
        The lessons, and how many rows were left out as too long for ``input``, ``answer`` or ``context``.
    """
    limits = DataConfig(train="", max_input_tokens=config.max_input_tokens, max_answer_tokens=config.max_answer_tokens)
    kept: list[Lesson] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        examples, too_long = tokenize_rows(tokenizer, [row], limits)
        left_out.update(too_long)
        for example in examples:  # one or none
            context = teacher_context(tokenizer, row.prompt, row.input, config.place)
            if len(context) + len(example.answers[0]) > config.max_tokens:
                left_out["context"] += 1
            else:
                kept.append(Lesson(row, context, example.answers[0]))
    return kept, left_out


def without_repeats(rows: Sequence[Row], answers: str) -> list[Row]:
    """The rows without duplicates of prompt, input and answers; if the teacher writes the answers, without duplicates of prompt and input."""
    first: dict[tuple[str, str, tuple[str, ...]], Row] = {}
    for row in rows:
        first.setdefault((row.prompt, row.input, row.outputs if answers == "data" else ()), row)
    return list(first.values())


def rows_digest(rows: Sequence[Row], answers: str) -> str:
    """A hash of rows in order; of their prompts and inputs alone where the teacher writes the answers."""
    digest = hashlib.sha256()
    for row in rows:
        outputs = list(row.outputs) if answers == "data" else []
        digest.update(json.dumps([row.prompt, row.input, outputs]).encode())
    return digest.hexdigest()

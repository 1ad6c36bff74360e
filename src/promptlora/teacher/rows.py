"""Rows as a teacher reads them: the prompt and the input in its context, and the answer that is scored.

It knows rows and tokenizers; it knows nothing of models or files.
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
    """The key of a row in a cache: the SHA-256, in hex, of its prompt, its input and its answer tokens."""
    return hashlib.sha256(json.dumps([prompt, text, [int(i) for i in answer_ids]]).encode()).hexdigest()


def teacher_context(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, place: str = "user") -> list[int]:
    """Token ids of an input with its prompt in the context, up to the answer, rendered as in an evaluation.

    Raises:
        PromptError: The text is not valid Unicode, or the template refuses the chat.
    """
    return encode_chat(tokenizer, [render_chat(tokenizer, text, prompt, place=place)])[0]


@dataclass(frozen=True)
class Lesson:
    """One row: the teacher's context, and the answer with its end token (the same ids that the student learns)."""

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
    """Pair each row with its first answer that is short enough; nothing is truncated.

    Returns:
        The lessons, and the number of rows skipped because ``input``, ``answer`` or ``context`` was too long.
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
    """A hash of the rows in order; if the teacher writes the answers, a hash of their prompts and inputs only."""
    digest = hashlib.sha256()
    for row in rows:
        outputs = list(row.outputs) if answers == "data" else []
        digest.update(json.dumps([row.prompt, row.input, outputs]).encode())
    return digest.hexdigest()

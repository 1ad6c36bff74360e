"""Rows as token ids.

It knows tokenizers and the chat template; nothing of batches or of LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from promptlora.data.config import DataConfig
from promptlora.data.rows import Row
from promptlora.errors import DataError
from promptlora.text import encode_chat, render_chat


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

"""Rows as token ids.

It knows tokenizers and the chat template; it knows nothing of batches or of LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from promptlora.data.config import DataConfig
from promptlora.data.rows import Row
from promptlora.errors import DataError
from promptlora.text import as_text, encode_chat, render_chat


@dataclass(frozen=True)
class Example:
    """A row as token ids: the rendered input, and each accepted answer with its end token.

    ``text`` and ``output`` are the original input and first answer; ``pool`` is the row's pool.
    """

    task: str
    input_ids: list[int]
    answers: list[list[int]]
    text: str = ""
    output: str = ""
    pool: str = ""

    @property
    def length(self) -> int:
        """Number of tokens of the input and the first answer."""
        return len(self.input_ids) + len(self.answers[0])


def render_inputs(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    prompts: Sequence[str | None] | None = None,
    system_turn: str = "empty",
) -> list[list[int]]:
    """Token ids of inputs up to their answers, with a prompt in the context where one is given.

    The ids are the same as those of ``encode_chat(render_chat(...))``. If the template inserts a user's text unchanged,
    it is run once instead of once per text, which is fifty times faster.

    Args:
        tokenizer: The base's tokenizer.
        texts: The user's texts.
        prompts: For each text, a prompt to put before it, or None.
        system_turn: See ``render_chat``.
    """
    shown = [None] * len(texts) if prompts is None else list(prompts)
    spoken = [text if prompt is None else f"{prompt}\n\n{text}" for text, prompt in zip(texts, shown, strict=True)]
    render = _renderer(tokenizer, system_turn)
    return encode_chat(tokenizer, [render(text) for text in spoken])


_PROBES = ("x", " \n two words\n\n", "{{ x }} <b>", "")


def _renderer(tokenizer: PreTrainedTokenizerBase, system_turn: str) -> Callable[[str], str]:
    """A function that renders a user turn, by string concatenation if that matches the template on odd probe texts."""

    def slowly(text: str) -> str:
        return render_chat(tokenizer, text, system_turn=system_turn)

    mark = "\u2402mark\u2402"
    before, found, after = slowly(mark).partition(mark)
    if not found or any(slowly(probe) != before + probe + after for probe in _PROBES):
        return slowly
    return lambda text: before + as_text(tokenizer, text) + after


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    config: DataConfig,
    prompts: Sequence[str | None] | None = None,
) -> tuple[list[Example], dict[str, int]]:
    """Token ids of rows. Nothing is truncated: a row that is too long is skipped and counted.

    Args:
        tokenizer: The base's tokenizer.
        rows: The rows.
        config: Holds the maximum lengths of input and answer.
        prompts: See :func:`render_inputs`.

    Returns:
        The examples, and the number of rows skipped because of ``input`` and because of ``answer``.

    Raises:
        DataError: The tokenizer has no end token, or an input has no tokens.
    """
    if not rows:
        return [], {"input": 0, "answer": 0}
    inputs = render_inputs(tokenizer, [row.input for row in rows], prompts)
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
            examples.append(Example(row.task, ids, answers, row.input, row.outputs[0], row.pool))
    return examples, left_out

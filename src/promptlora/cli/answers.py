"""The answers that ``run`` and ``demo`` compare: base and adapted, each without and with the prompt in the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptlora.adapt import AdaptedBase
    from promptlora.lora import LoRAWeights

TITLES = {
    "base": "base",
    "in_context": "base, prompt in context",
    "adapted": "adapted",
    "adapted_in_context": "adapted, prompt in context",
}


def compared_answers(
    lm: AdaptedBase,
    inputs: Sequence[str],
    prompts: Sequence[str] | None,
    lora: LoRAWeights,
    beside: LoRAWeights,
    max_new_tokens: int,
    say: Callable[[str], object],
) -> list[dict[str, Any]]:
    """Answer each input in each way of ``TITLES``, or only in those without a prompt in the context.

    Args:
        lm: The base with its hooks.
        inputs: The inputs.
        prompts: The prompt of each input; None leaves out the answers with a prompt in the context.
        lora: The adapter of all inputs, or one for each.
        beside: The same for a prompt that is also in the context.
        max_new_tokens: The length of the longest answer.
        say: Called with what is being done.

    Returns:
        For each input, ``input``, the answer of each way, and ``tokens_read`` by way.
    """
    ways: dict[str, tuple[LoRAWeights | None, list[str] | None]] = {"base": (None, None), "adapted": (lora, None)}
    if prompts is not None:
        ways |= {"in_context": (None, list(prompts)), "adapted_in_context": (beside, list(prompts))}
    rows: list[dict[str, Any]] = [{"input": text, "tokens_read": {}} for text in inputs]
    for name in (name for name in TITLES if name in ways):
        adapter, shown = ways[name]
        say(f"answering: {TITLES[name]}")
        answers = lm.generate(list(inputs), adapter, in_context=shown, max_new_tokens=max_new_tokens)
        read = lm.count_tokens(inputs, shown)
        for row, answer, count in zip(rows, answers, read, strict=True):
            row[name] = answer
            row["tokens_read"][name] = count
    return rows

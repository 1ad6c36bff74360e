"""Formats a prompt with examples of its task: the only format in which hypernetworks read examples.

It knows texts; it knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptlora.errors import PromptError


def with_examples(prompt: str, examples: Sequence[tuple[str, str]]) -> str:
    """The prompt followed by each example as ``Input: …`` and ``Output: …``, separated by blank lines.

    Args:
        prompt: The instruction.
        examples: Pairs of input and output; without examples, the prompt is returned unchanged.

    Raises:
        PromptError: An example is not a pair of texts, or its output is empty.
    """
    parts = [prompt.strip()] if examples else [prompt]
    for number, example in enumerate(examples):
        pair = tuple(example) if isinstance(example, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair) or not pair[1].strip():
            raise PromptError(
                f"example {number}: {str(example)[:60]!r}. Expected a pair of input and output, both text. Fix: pass "
                "examples=[(input, output), …]."
            )
        parts.append(f"Input: {pair[0].strip()}\nOutput: {pair[1].strip()}")
    return "\n\n".join(parts)

"""Formats a prompt with examples of its task: the only format in which hypernetworks read examples.

It knows texts; it knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptlora.text.given import example_list


def with_examples(prompt: str, examples: Sequence[tuple[str, str]]) -> str:
    """The prompt followed by each example as ``Input: …`` and ``Output: …``, separated by blank lines.

    Args:
        prompt: The instruction.
        examples: Pairs of input and output; without examples, the prompt is returned unchanged.

    Raises:
        PromptError: An example is not a pair of texts, or its output is empty.
    """
    pairs = example_list(examples)
    parts = [prompt.strip()] if pairs else [prompt]
    parts += [f"Input: {question.strip()}\nOutput: {answer.strip()}" for question, answer in pairs]
    return "\n\n".join(parts)

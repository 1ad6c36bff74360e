"""Prompts and examples as callers pass them: checked once, and returned as lists that can be read several times.

It knows texts; it knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from promptlora.errors import PromptError

Pair = tuple[str, str]
_UNORDERED = (bytes, bytearray, Mapping, set, frozenset)


def prompt_list(prompts: Any) -> list[str]:
    """One prompt or several, as a list.

    Args:
        prompts: A text, or texts in an order. A set has no order, and of a mapping only the keys would be read.

    Raises:
        PromptError: It is something else, or an item is no text.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, _UNORDERED):
        raise PromptError(f"prompts: a {type(prompts).__name__}. Expected a text or a list of texts.")
    texts = list(prompts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise PromptError(f"prompt {number}: a {type(text).__name__}. Expected a text.")
    return texts


def example_list(examples: Any) -> list[Pair]:
    """The examples of one prompt as pairs of input and output; None is no example.

    Raises:
        PromptError: An example is not a pair of texts, or its output is empty.
    """
    if examples is None:
        return []
    if not isinstance(examples, Iterable) or isinstance(examples, (str, bytes, set, frozenset)):
        raise PromptError(
            f"examples: a {type(examples).__name__}. Expected pairs of input and output. Fix: pass examples=[(input, output), "
            "…]."
        )
    return [_pair(number, example) for number, example in enumerate(examples)]


def example_lists(examples: Any, prompts: int) -> list[list[Pair]]:
    """The examples of each of several prompts; None is no example for any of them.

    Raises:
        PromptError: There is not one list of pairs for each prompt.
    """
    if examples is None:
        return [[] for _ in range(prompts)]
    if not isinstance(examples, Iterable) or isinstance(examples, (str, *_UNORDERED)):
        raise PromptError(
            f"examples: a {type(examples).__name__}. Expected one list of pairs for each of {prompts} prompts."
        )
    several = list(examples)
    if len(several) != prompts:
        raise PromptError(
            f"examples: {len(several)} lists for {prompts} prompts. Expected one list of pairs for each. Fix: pass [] for a "
            "prompt without examples."
        )
    return [example_list(pairs) for pairs in several]


def _pair(number: int, example: Any) -> Pair:
    pair = tuple(example) if isinstance(example, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair) or not pair[1].strip():
        raise PromptError(
            f"example {number}: {str(example)[:60]!r}. Expected a pair of input and output, both text. Fix: pass "
            "examples=[(input, output), …]."
        )
    return pair[0], pair[1]

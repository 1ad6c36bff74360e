"""The conditions under which the same rows are answered: the base, the adapter, and the controls."""

from __future__ import annotations

import random
from collections.abc import Sequence

from promptlora.errors import DataError

CONDITIONS = {
    "base": "base, no prompt",
    "in_context": "base, prompt in context",
    "adapter": "adapter of the prompt, no prompt in context",
    "wrong_prompt": "adapter of another task's prompt",
    "gibberish": "adapter of random letters, as many words as the prompt",
    "mean_adapter": "mean of the adapters of all these tasks",
    "static": "static part alone, the same for every prompt",
    "adapter_in_context": "adapter of the prompt, and the prompt in context",
}
WITHOUT_ADAPTER = ("base", "in_context")
DEFAULT_CONDITIONS = ("base", "in_context", "adapter", "wrong_prompt", "static")


def permute_tasks(tasks: Sequence[str], seed: int = 0) -> dict[str, str]:
    """A random permutation that leaves no task in its place: task to the task whose prompt it gets.

    Raises:
        DataError: Fewer than two tasks.
    """
    if len(tasks) < 2:
        raise DataError(f"{len(tasks)} task: the wrong-prompt control needs two or more; leave it out or add tasks")
    order = list(tasks)
    random.Random(seed).shuffle(order)
    return {task: order[(i + 1) % len(order)] for i, task in enumerate(order)}


COMPARED = (
    ("adapter", "in_context"),
    ("adapter", "wrong_prompt"),
    ("adapter", "gibberish"),
    ("adapter", "mean_adapter"),
    ("adapter", "static"),
    ("adapter", "base"),
    ("adapter_in_context", "in_context"),
)

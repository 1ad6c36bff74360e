"""The conditions under which the same rows are answered: the base, the adapter, and the controls.

A condition is a choice of adapter and a choice of text before the input in the base's context. This module knows names;
it knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One way to answer a row.

    Attributes:
        label: Name of the condition in the tables.
        adapter: Which adapter is used: ``""`` (none), ``own``, ``examples`` (of the prompt with examples), ``other``
            (of another task's prompt), ``gibberish``, ``mean`` or ``static``.
        shown: What the base reads before the input: ``""`` (nothing), ``prompt``, or ``examples`` (prompt and
            examples).
    """

    label: str
    adapter: str = ""
    shown: str = ""


CONDITIONS = {
    "base": Condition(label="base, no prompt"),
    "in_context": Condition(label="base, prompt in context", shown="prompt"),
    "in_context_examples": Condition(label="base, prompt with examples in context", shown="examples"),
    "adapter": Condition(label="adapter of the prompt, no prompt in context", adapter="own"),
    "adapter_examples": Condition(label="adapter of the prompt with examples, no prompt in context", adapter="examples"),
    "wrong_prompt": Condition(label="adapter of another task's prompt", adapter="other"),
    "gibberish": Condition(label="adapter of random letters, as many words as the prompt", adapter="gibberish"),
    "mean_adapter": Condition(label="mean of the adapters of all these prompts", adapter="mean"),
    "static": Condition(label="static part alone, the same for every prompt", adapter="static"),
    "static_in_context": Condition(label="static part alone, and the prompt in context", adapter="static", shown="prompt"),
    "adapter_in_context": Condition(label="adapter of the prompt, and the prompt in context", adapter="own", shown="prompt"),
}  # fmt: skip
WITHOUT_ADAPTER = tuple(name for name, condition in CONDITIONS.items() if not condition.adapter)
DEFAULT_CONDITIONS = ("base", "in_context", "adapter", "wrong_prompt", "static")

COMPARED = (
    ("adapter", "in_context"),
    ("adapter", "wrong_prompt"),
    ("adapter", "gibberish"),
    ("adapter", "mean_adapter"),
    ("adapter", "static"),
    ("adapter", "base"),
    ("adapter_examples", "adapter"),
    ("adapter_examples", "in_context_examples"),
    ("adapter_in_context", "in_context"),
    ("adapter_in_context", "static_in_context"),
)

"""Prompts and inputs that work on the first click."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One button: its name, the prompt that becomes the adapter, inputs one a line."""

    name: str
    prompt: str
    inputs: str


EXAMPLES = (
    Example(
        "Sentiment",
        "Decide whether the review is positive or negative. Answer with one word.",
        "I loved every minute of it.\nThe battery died after a day.",
    ),
    Example("Spanish", "Translate the sentence to Spanish.", "Good morning, my friend.\nThe cat sat on the mat."),
    Example(
        "Topic",
        "Name the topic of the news in one word: sports, business, science or politics.",
        "The striker scored twice in the final.\nShares fell after the bank cut its forecast.",
    ),
    Example(
        "Question", "Turn the statement into a question.", "The museum opens at nine.\nShe has never been to Rome."
    ),
    Example(
        "Document",
        "The harbour museum opens at nine and closes at five. On Mondays it is closed. A ticket costs six euros; "
        "children do not pay.",
        "When does the museum open?\nHow much is a ticket?",
    ),
)

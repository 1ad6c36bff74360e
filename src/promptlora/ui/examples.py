"""Prompts and inputs that work on the first click."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One button: its name, the prompt that becomes the adapter, the inputs."""

    name: str
    prompt: str
    inputs: tuple[str, ...]


EXAMPLES = (
    Example(
        "Sentiment",
        "Decide whether the review is positive or negative. Answer with one word.",
        ("I loved every minute of it.", "The battery died after a day.\nI sent it back."),
    ),
    Example(
        "Topic",
        "Classify the topic of the news article: World, Sports, Business or Science.",
        (
            "The striker scored twice in the cup final.",
            "Shares fell after the bank cut its forecast.",
            "A new telescope found water on a distant planet.",
        ),
    ),
    Example(
        "City",
        "Find the city in the sentence.",
        ("The train to Madrid leaves at nine.", "My sister moved to Osaka last year."),
    ),
    Example(
        "Question",
        "Write a question that the sentence answers.",
        ("Marie Curie discovered radium in 1898.", "The museum opens at nine."),
    ),
    Example("Negation", "Negate the sentence.", ("The door is open.", "He likes tea.")),
)

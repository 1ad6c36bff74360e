"""Example prompts with inputs for the first click, and the prompts of known tasks for the map of adapters."""

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

# Prompts and their tasks; the map of adapters shows a visitor's prompts among them.
MAP = (
    ("Decide whether the review is positive or negative. Answer with one word.", "sentiment"),
    ("Is the review positive or negative?", "sentiment"),
    ("Does the writer like it? Answer positive or negative.", "sentiment"),
    ("Classify the topic of the news article: World, Sports, Business or Science.", "topic"),
    ("Which section of a newspaper does the text belong to?", "topic"),
    ("Find the city in the sentence.", "extraction"),
    ("Name the animal in the sentence.", "extraction"),
    ("Write a question that the sentence answers.", "question"),
    ("Turn the sentence into a question.", "question"),
    ("Translate to Spanish.", "translation"),
    ("Translate the sentence to French.", "translation"),
    ("Write a title for the article.", "title"),
    ("Give the text a short headline.", "title"),
)

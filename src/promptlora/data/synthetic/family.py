"""Families of tasks: a family draws parameters and returns phrases for the prompt and a function for the answer.

It knows nothing of how phrases become prompts (``wording``) or where inputs come from (``pools``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from random import Random
from typing import Any

from promptlora.data.synthetic.vocabulary.texts import LABELS


@dataclass(frozen=True)
class Item:
    """An input: the text that the model reads, and the value it stands for (its type depends on the pool)."""

    text: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One task without its rows: a family with specific parameters.

    Attributes:
        pool: Name of the pool of inputs.
        do: Imperative phrases ("sort {x}") and questions ("How long is {x}?"); ``{x}`` stands for the input. Any lines
            after the first are sentences that follow the phrase.
        give: Noun phrases for the answer ("{x} in capital letters"), with further lines as in ``do``.
        note: Sentences that specify what the phrases leave open; each wording includes one of them.
        answer: Returns the correct answer, or None if the task does not apply to the input.
        key: Distinguishes tasks of the same family.
        labels: All labels, if the task has labels; rows are balanced over them.
        uses: Names of further families that the task is built from.
    """

    pool: str
    do: tuple[str, ...]
    give: tuple[str, ...]
    answer: Callable[[Item], str | None]
    note: tuple[str, ...] = ()
    key: str = ""
    labels: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A named kind of task; ``uses`` names families from which all its tasks are built."""

    name: str
    category: str
    draw: Callable[[Random], Goal]
    uses: tuple[str, ...] = ()


# Notes that many families share.
DIGITS = "Use digits.|Write a number in digits."
NUMBER_ONLY = "Write the number only.|Only digits."

_FIELD = re.compile(r"\{(\w+)(?::(\w+))?\}")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st and so on."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def fill(phrase: str, values: Mapping[str, Any]) -> str:
    """Insert parameters into a phrase: ``{k}`` as it is, ``{k:th}`` as an ordinal word; other fields are unchanged."""

    def put(match: re.Match[str]) -> str:
        name, form = match.groups()
        if name not in values:
            return match[0]
        value = values[name]
        return _ORDINALS[value - 1] if form == "th" else str(value)

    return _FIELD.sub(put, phrase)


def phrases(text: str, values: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Split phrases at ``|`` and insert the parameters."""
    return tuple(fill(phrase.strip(), values or {}) for phrase in text.split("|") if phrase.strip())


def as_text(answer: Any) -> str | None:
    """An answer as text: list items are separated by commas; an empty answer becomes None."""
    if isinstance(answer, (list, tuple)):
        answer = ", ".join(str(part) for part in answer)
    text = None if answer is None else str(answer)
    return text if text and text == text.strip() else None


def family(
    category: str,
    name: str,
    pools: str,
    answer: Callable[..., Any] | str | int,
    do: str,
    give: str,
    note: str = "",
    **parameters: Sequence[Any],
) -> Family:
    """Define a family by a function of the input's value and of parameters.

    Args:
        category: Category of the family.
        name: Name of the family.
        pools: Names of its pools of inputs, separated by spaces; each task uses one of them.
        answer: Called with the value of an input, and the parameters by name; returns None if the task does not apply.
            A key or an index is a shorthand for a function that looks it up in the value.
        do: Phrases for ``Goal.do``, separated by ``|``; parameters in braces.
        give: The same for ``Goal.give``.
        note: The same for ``Goal.note``.
        parameters: The possible values of each parameter.
    """
    compute = answer if callable(answer) else itemgetter(answer)

    def draw(rng: Random) -> Goal:
        pool = rng.choice(pools.split())
        values = {key: rng.choice(list(several)) for key, several in parameters.items()}
        return Goal(
            pool=pool,
            do=phrases(do, values),
            give=phrases(give, values),
            note=phrases(note, values),
            answer=lambda item: as_text(compute(item.value, **values)),
            key=" ".join([pool, *(f"{key}={value}" for key, value in values.items())]),
        )

    return Family(name, category, draw)


_LABEL_SETS: tuple[tuple[str, ...], ...] = (
    ("A", "B", "C", "D", "E"),
    ("1", "2", "3", "4", "5"),
    ("x", "y", "z", "w", "v"),
    ("+", "-", "*", "#", "="),
    ("red", "blue", "green", "yellow", "black"),
    ("north", "south", "east", "west", "centre"),
    ("alpha", "beta", "gamma", "delta", "omega"),
    ("L1", "L2", "L3", "L4", "L5"),
    ("cat", "dog", "bird", "fish", "horse"),
)
_YES_NO = (("yes", "no"), ("true", "false"), ("Yes", "No"), ("Y", "N"))


def _listed(parts: Sequence[str], last: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def mapping_phrases(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Imperative and noun phrases that say "give this answer under that condition".

    Args:
        pairs: Answers, each with the condition under which it is correct.
    """
    ifs = [f"{label} if {condition}" for label, condition in pairs]
    do: tuple[str, ...] = (
        f"answer {_listed(ifs, 'and')}",
        f"check {{x}}: {'; '.join(f'if {condition}, answer {label}' for label, condition in pairs)}",
        f"write {_listed([f'{label} when {c}' for label, c in pairs], 'and')}",
        f"respond with {_listed(ifs, 'and with')}",
    )
    if len(pairs) == 2:
        (one, condition), (other, _) = pairs
        do += (f"answer {one} if {condition}, otherwise {other}", f"say {one} when {condition} and {other} when not")
    give = (
        f"one answer: {_listed(ifs, 'or')}",
        f"the label {_listed(ifs, 'and the label')}",
        "the right label (" + "; ".join(f"{label}: {condition}" for label, condition in pairs) + ")",
    )
    return do, give


def choice(
    category: str,
    name: str,
    pools: str,
    classify: Callable[..., str | None],
    classes: Mapping[str, str],
    ask: str,
    **parameters: Sequence[Any],
) -> tuple[Family, Family]:
    """Define two families that choose one of several labels: with natural label names, and with names from the prompt.

    Args:
        category: Category of the first family; the second has the category "label exchange".
        name: Name of the first family; the second appends "-relabelled".
        pools: See ``family``.
        classify: Returns the natural label of an input's value, or None if the task does not apply.
        classes: Maps each natural label to its condition ("{x} is positive"). One of the conditions must always hold.
        ask: Phrases that ask for the natural label ("give the sentiment of {x}"), separated by ``|``.
        parameters: See ``family``.
    """
    binary = set(classes) == {"yes", "no"}

    def start(rng: Random) -> tuple[str, dict[str, Any], list[str]]:
        values = {key: rng.choice(list(several)) for key, several in parameters.items()}
        names = list(classes)
        if len(names) > 3:
            names = rng.sample(names, rng.randint(2, min(4, len(names))))
        rng.shuffle(names)
        return rng.choice(pools.split()), values, names

    def goal(pool: str, values: dict[str, Any], names: list[str], labels: Sequence[str], natural: bool) -> Goal:
        to_label = dict(zip(names, labels, strict=True))

        def answer(item: Item) -> str | None:
            found = classify(item.value, **values)
            return to_label.get(found) if found is not None else None

        pairs = [(to_label[label], fill(classes[label], values)) for label in names]
        if binary:
            pairs.sort(key=lambda pair: pair[0] != to_label["yes"])  # "it does not" only makes sense in second place
        do, give = mapping_phrases(pairs)
        questions = phrases(ask, values)
        if natural:
            listed = _listed(labels, "or")
            tails = (f"Answer {listed}.", f"Choose one: {listed}.", f"Labels: {', '.join(labels)}.", f"Say {listed}.")
        else:
            uses = _listed([f"{label} for {old}" for old, label in to_label.items()], "and")
            short = ", ".join(f"{old} = {label}" for old, label in to_label.items())
            tails = (f"Use {uses}.", f"Answer {uses}.", f"Codes: {short}.", f"Write {uses}.")
        do += tuple(f"{phrase}\n{tail}" for phrase in questions for tail in tails)
        shown = " ".join(f"{old}={label}" for old, label in sorted(to_label.items()))
        key = " ".join([pool, *(f"{k}={v}" for k, v in values.items()), shown])
        return Goal(pool=pool, do=do, give=give, answer=answer, key=key, labels=tuple(labels))

    def natural(rng: Random) -> Goal:
        pool, values, names = start(rng)
        labels = list(names)
        if binary:
            yes, no = rng.choice(_YES_NO)
            labels = [yes if label == "yes" else no for label in names]
        return goal(pool, values, names, labels, True)

    def relabelled(rng: Random) -> Goal:
        pool, values, names = start(rng)
        kind = rng.random()
        if kind < 0.3:  # the same labels, but each names another class
            labels = names[1:] + names[:1]
        elif kind < 0.65:
            labels = rng.sample(LABELS, len(names))
        else:
            labels = list(rng.choice(_LABEL_SETS)[: len(names)])
        return goal(pool, values, names, labels, False)

    return Family(name, category, natural), Family(f"{name}-relabelled", "label exchange", relabelled, (name,))


def constrained(
    goal: Goal, name: str, change: Callable[[str, str], str | None], tails: Sequence[str], key: str
) -> Goal:
    """A goal whose answers must have another form.

    Args:
        goal: The original goal.
        name: Name of the original goal's family, which the new goal is built from.
        change: Returns the new answer, given the input's text and the old answer; None skips the input.
        tails: Sentences that ask for the form; each wording includes one of them.
        key: Distinguishes this form from other forms.
    """
    old = goal.answer

    def answer(item: Item) -> str | None:
        plain = old(item)
        return None if plain is None else change(item.text, plain)

    return replace(
        goal,
        do=tuple(f"{phrase}\n{tail}" for phrase in goal.do for tail in tails),
        give=tuple(f"{phrase}\n{tail}" for phrase in goal.give for tail in tails),
        answer=answer,
        key=f"{name}: {goal.key}: {key}",
        labels=(),
        uses=(*goal.uses, name),
    )

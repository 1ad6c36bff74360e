"""Exchange of label words in prompts and answers, so that the model has to read the prompt of a classification task.

A task that always answers "yes" or "no" can be guessed from its inputs. With other or exchanged label words, the same
inputs need other answers, and only the prompt says which ("symbol tuning", "flipped learning").
The new prompt must say what each label means. If the prompt ties each label to a condition ('Answer "yes" if it is a
fruit, otherwise "no"'), the words are replaced in place. In all other cases ("Is it a fruit? Answer yes or no.") a
sentence is appended that gives a word for each label, because a replacement would make the prompt meaningless.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from promptlora.data.rows import Row
from promptlora.errors import DataError

MOST_LABELS = 8
KINDS = ("swap", "symbols")
_IN_INPUTS = 0.1  # a label that occurs in a larger share of the inputs is part of the data, such as an option letter

# Each set is used as a whole, so that the words of one task belong together.
_SYMBOLS = (
    ("zig", "zag", "zog", "zug", "zeg", "zib", "zab", "zob"),
    ("foo", "bar", "baz", "qux", "quux", "corge", "grault", "plugh"),
    ("A", "B", "C", "D", "E", "F", "G", "H"),
    ("1", "2", "3", "4", "5", "6", "7", "8"),
    ("red", "blue", "green", "yellow", "white", "black", "orange", "purple"),
    ("apple", "pear", "plum", "cherry", "lemon", "grape", "melon", "fig"),
    ("north", "south", "east", "west", "up", "down", "left", "right"),
    ("wug", "dax", "blick", "fep", "toma", "modi", "kiki", "bouba"),
    ("alpha", "beta", "gamma", "delta", "sigma", "omega", "kappa", "theta"),
    ("river", "stone", "cloud", "garden", "window", "bridge", "candle", "mirror"),
    ("X", "Y", "Z", "Q", "V", "W", "U", "T"),
    ("yes", "no"),
    ("true", "false"),
)
_STATED = (
    "Write {pairs}.",
    "Do not use the usual labels: write {pairs}.",
    "For the answer, write {pairs}.",
    "The answer is coded: write {pairs}.",
    "Other words stand for the labels. Write {pairs}.",
)
_PAIRS = (('"{new}" instead of "{old}"', " and "), ('"{new}" for "{old}"', " and "), ("{new} instead of {old}", ", "))
_ELSE = r"otherwise|else\b|other cases|everything else|if not|in that case"


def _standing(words: Sequence[str], flags: int = 0) -> re.Pattern[str]:
    """A pattern that matches any of these whole words or phrases, the longest first."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest)) + r")(?!\w)", flags)


def closed_labels(prompt: str, rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The labels of a classification task, or None if the task has no labels that can be exchanged.

    The answers of all rows must come from 2 to 8 different labels. Each label must occur in the prompt as a whole word
    in the same case, and in at most a tenth of the inputs. If the inputs list the options, a label refers to a part of
    the input, and another word for it would have to be inserted there too.
    """
    labels = tuple(sorted({output for row in rows for output in row.outputs}))
    if not 2 <= len(labels) <= MOST_LABELS:
        return None
    for label in labels:
        standing = _standing([label])
        if not standing.search(prompt):
            return None
        if sum(bool(standing.search(row.input)) for row in rows) > _IN_INPUTS * len(rows):
            return None
    return labels


def exchange(text: str, mapping: Mapping[str, str]) -> str:
    """Replace whole words in one pass (so a swap does not undo itself); it keeps the case of the original."""
    if not mapping:
        return text
    lower = {old.lower(): new for old, new in mapping.items()}

    def other(match: re.Match[str]) -> str:
        found = match[0]
        if found in mapping:
            return mapping[found]
        new = lower[found.lower()]
        if found.isupper() and len(found) > 1:
            return new.upper()
        return new[:1].upper() + new[1:] if found[0].isupper() else new.lower()

    return _standing(list(mapping), re.IGNORECASE).sub(other, text)


def _in_quotes(label: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<quote>[\"'“`]){re.escape(label)}[\"'”`]")


def ties_labels(prompt: str, labels: Sequence[str]) -> bool:
    """Whether the prompt states for each label when it is the answer, so that labels can be replaced in place.

    Each label must occur exactly once in any case, or exactly once in quotes; in the latter case, occurrences outside
    quotes are taken as ordinary words, such as the "no" in "with no comment". Each label except one must be followed by
    its condition; the last one may be "otherwise". A condition that refers back to the label ("cocktail" if the item is
    one) does not count.
    """
    quoted = all(len(_in_quotes(label).findall(prompt)) == 1 for label in labels)
    once = all(len(_standing([label], re.IGNORECASE).findall(prompt)) == 1 for label in labels)
    if not (quoted or once) or re.search(r"\b(?:is|are) (?:one|it|that)\b(?=[,.;:]|$| and| \w+ )", prompt):
        return False
    tied = 0
    for label in labels:
        escaped = re.escape(label)
        after = re.search(rf"(?<!\w){escaped}(?!\w)[\"'”`]? ?(?:if (?!not\b)|when |unless |: )", prompt)
        before = re.search(rf"\bif [^,.;]+, (?:answer|reply|say|write|output) [\"'“`]?{escaped}(?!\w)", prompt, re.I)
        tied += bool(after or before)
    return tied == len(labels) or (tied == len(labels) - 1 and bool(re.search(_ELSE, prompt)))


def exchanged_prompt(prompt: str, mapping: Mapping[str, str], rng: random.Random) -> str:
    """The prompt (or a wording of it) with other label words, replaced in place or defined in an added sentence."""
    labels = list(mapping)
    if ties_labels(prompt, labels):
        if all(len(_in_quotes(label).findall(prompt)) == 1 for label in labels):
            quoted = re.compile(r"([\"'“`])(" + "|".join(map(re.escape, labels)) + r")([\"'”`])")
            return quoted.sub(lambda m: f"{m[1]}{mapping[m[2]]}{m[3]}", prompt)
        return exchange(prompt, mapping)
    pair, joint = rng.choice(_PAIRS)
    parts = [pair.format(old=old, new=new) for old, new in mapping.items()]
    pairs = ", ".join(parts[:-1]) + joint + parts[-1]
    stripped = prompt.rstrip()
    gap = "\n" if "\n" in stripped else " "
    if stripped[-1:] not in ".!?:\"')":
        stripped += "."
    return stripped + gap + rng.choice(_STATED).format(pairs=pairs)


def draw_mapping(labels: Sequence[str], kind: str, rng: random.Random, avoid: str = "") -> dict[str, str]:
    """Draw another word for each label.

    Args:
        labels: The labels of a task.
        kind: ``swap`` (a permutation in which every label changes) or ``symbols`` (words that are unrelated to the
            task).
        rng: Source of randomness.
        avoid: A text, such as the prompt; symbols that occur in it are not used.

    Raises:
        DataError: An unknown kind.
    """
    if kind not in KINDS:
        raise DataError(f"kind: {kind!r}. Expected one of {', '.join(KINDS)}. Fix: choose one of them.")
    labels = list(labels)
    if kind == "swap":
        while True:
            others = rng.sample(labels, len(labels))
            if all(a != b for a, b in zip(labels, others, strict=True)):
                return dict(zip(labels, others, strict=True))
    taken = {word.lower() for word in re.findall(r"\w+", avoid)} | {label.lower() for label in labels}
    usable = [[word for word in words if word.lower() not in taken] for words in _SYMBOLS]
    words = rng.choice([words for words in usable if len(words) >= len(labels)])
    return dict(zip(labels, rng.sample(words, len(labels)), strict=True))


def exchanged_task(
    rows: Sequence[Row], kind: str, rng: random.Random, mapping: Mapping[str, str] | None = None
) -> list[Row]:
    """Make a new task from the rows of a task: the same inputs, with other label words in the prompt and the outputs.

    Args:
        rows: All rows of one task; the prompt of every row is changed.
        kind: ``swap`` or ``symbols``.
        rng: Source of randomness.
        mapping: The new label words if they are already drawn (:func:`draw_mapping`), for example to pass the same
            words to :func:`exchanged_prompt` for other wordings.

    Returns:
        Equally many rows in the same order; the task's name states the kind and the words.

    Raises:
        DataError: The rows belong to several tasks, or the task has no labels that can be exchanged.
    """
    tasks = sorted({row.task for row in rows})
    if len(tasks) != 1:
        raise DataError(f"rows: {len(tasks)} tasks. Expected the rows of one task. Fix: exchange one task at a time.")
    labels = closed_labels(rows[0].prompt, rows)
    if labels is None:
        raise DataError(
            f"task {tasks[0]!r}: no closed set of labels. Expected 2 to {MOST_LABELS} answers that all stand in the "
            "prompt and rarely in the inputs. Fix: check with closed_labels first."
        )
    words = dict(mapping or draw_mapping(labels, kind, rng, avoid=rows[0].prompt))
    prompts = {prompt: exchanged_prompt(prompt, words, rng) for prompt in dict.fromkeys(row.prompt for row in rows)}
    name = f"{tasks[0]}~{kind}:{'/'.join(words[label] for label in labels)}"
    return [
        replace(row, task=name, prompt=prompts[row.prompt], outputs=tuple(words[output] for output in row.outputs))
        for row in rows
    ]


def exchanged_tasks(
    rows: Sequence[Row], prompts: Mapping[str, Sequence[str]], seed: int = 0
) -> Iterator[tuple[list[Row], list[str]]]:
    """For every classification task among the rows, make two new tasks: with swapped labels and with arbitrary words.

    Args:
        rows: Rows of any tasks.
        prompts: Maps each task to its prompts, its own first; all of them get the same changes.
        seed: Seed of the choices.

    Yields:
        The rows of each new task, and its prompts.
    """
    of_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.pool:  # the synthetic families already include tasks with exchanged labels
            of_task[row.task].append(row)
    for task, members in of_task.items():
        labels = closed_labels(members[0].prompt, members)
        if labels is None:
            continue
        for kind in ("swap", "symbols"):
            rng = random.Random(f"{seed}/{task}/{kind}")
            words = draw_mapping(labels, kind, rng, avoid=members[0].prompt)
            changed = exchanged_task(members, kind, rng, words)
            others = [exchanged_prompt(prompt, words, rng) for prompt in prompts.get(task, ())[1:]]
            yield changed, [changed[0].prompt, *others]

"""Exchange of label words in prompt and answers together, so that a classification task must be read.

A task that always answers "yes" and "no" can be guessed from its inputs. With other label words, or the same ones
exchanged, the same inputs need other answers and only the prompt says which ("symbol tuning", "flipped learning").
A new prompt must say what its labels mean. Where the prompt ties each label to a condition ('Answer "yes" if it is a
fruit, otherwise "no"'), the words are replaced in place; everywhere else ("Is it a fruit? Answer yes or no.") a
sentence is added that gives a word for each label, since a replacement would leave a prompt without meaning.
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
_IN_INPUTS = 0.1  # labels that stand in more of the inputs are part of the data, such as the letters of options

# One set at a time, so that the words of one task belong together.
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
    """A pattern of whole words or phrases, the longest first."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest)) + r")(?!\w)", flags)


def closed_labels(prompt: str, rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The labels of a classification task, or None where it is none whose labels can be exchanged.

    All answers of all rows must be of 2 to 8 different labels, each label must stand in the prompt as a whole word
    in the same case, and must be rare in the inputs (in at most a tenth of them): where the input lists the options,
    a label is a place in the input and another word for it would have to be put there too.
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
    """Replace whole words at once (a swap does not undo itself); a word in another case takes that case along."""
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
    """Whether the prompt says of each label when it is the answer, so that labels can be replaced in place.

    Each label must stand once, or once in quotes, in any case; elsewhere it would be an ordinary word such as the
    "no" of "with no comment". Each but one must be followed by its condition, the last may be "otherwise". A
    condition that leans on the label ("cocktail" if the item is one) does not count.
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
    """The prompt, or a wording of it, with other label words: in place, or by a sentence that gives them."""
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
    """Another word for each label.

    Args:
        labels: The labels of a task.
        kind: ``swap`` (a permutation that leaves no label in its place) or ``symbols`` (words that have nothing to
            do with the task).
        rng: Where the choice comes from.
        avoid: A text, such as the prompt; no symbol stands in it.

    Raises:
        DataError: Another kind.
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
    """The rows of a task as a task of its own with other label words in prompt and outputs, and the same inputs.

    Args:
        rows: All rows of one task; every prompt among them is changed.
        kind: ``swap`` or ``symbols``.
        rng: Where the choices come from.
        mapping: The words, if they were drawn before (:func:`draw_mapping`), as for :func:`exchanged_prompt` on wordings.

    Returns:
        As many rows in the same order; the task's name says the kind and the words.

    Raises:
        DataError: Rows of several tasks, or of a task without labels that can be exchanged.
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
    """Every classification task among the rows twice more, with labels swapped and with arbitrary words.

    Args:
        rows: Rows of any tasks.
        prompts: Task to its prompts, its own first; all of them are changed alike.
        seed: Of the choices.

    Yields:
        The rows of a new task, and its prompts.
    """
    of_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.pool:  # synthetic tasks have exchanged labels of their own
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

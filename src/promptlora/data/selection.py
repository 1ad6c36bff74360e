"""Selects training tasks: it drops tasks with broken answers and tasks that share a goal with a held-out task.

It knows rows and nothing of models. Goals are compared by the fixed rules in this file, so that the selection is
reproducible. The rules prefer to drop a training task when in doubt.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from promptlora.data.rows import Row, tasks_answered_in_letters

SAME_PROMPT = 0.6  # weighted share of common words of two prompts; 0.58 would match tasks with different goals
SAME_ROWS = 0.02  # common (input, output) pairs as a share of the smaller task's pairs
SAME_INPUTS = 0.1  # share of the held-out task's rows whose input and answer occur in training rows

# Goals that tasks of different sources have in common, by the words of the prompt. Two prompts that match the same
# entry
# share that goal. Each entry is a goal of a held-out task; the part after `not` excludes other goals with the same
# words.
_GOALS = {
    "paraphrase": (
        r"paraphrase(?! of each)|rephrase|same meaning as given|keeps? its meaning",
        r"whether|its paraphrases",
    ),
    "topic": (
        r"\btopic (?:word )?(?:for|of) the (?:given )?(?:question|sentence)|subject of the discussion",
        r"broad topical",
    ),
    "title": (r"\b(?:title|headline) for\b", ""),
    "translation": (r"\btranslate\b", r"message|request"),
    "plural": (r"\bplural (?:noun|form|of)\b|write the plural", r"choose"),
    "opposite": (r"\bopposite (?:meaning|fact|of)\b|\bantonym|\bnegate the", ""),
    "rhyme": (r"\brhyme", ""),
    "entailment": (r"\bentailment\b|clearly entails|follows from sentence", ""),
    "truth of a claim": (r"\b(?:claim|statement)\b.*\b(?:true|agree with common sense)\b", r"\bwhy\b|passage"),
    "sarcasm": (r"\b(?:sarcas|iron(?:y|ic))", ""),
    "reference of a pronoun": (r"\bpronoun is referring|\bpronoun refers|blank \(_\)", ""),
    "cipher": (r"\bpig latin|\brot13|\bcaesar|\bcipher|\bdecode|\bencode", ""),
    "date format": (r"\b(?:mm|dd)[-/!](?:dd|mm)|\bdate in the form", r"lesson"),
    "capitals": (r"\b(?:in|with) (?:correct )?capital letters|\bupper ?case text", ""),
    "punctuation": (r"\bmissing punctuation", ""),
    "sql": (r"\bsql\b", ""),
    "inflection": (r"-ing form|\bbase form|\bsuperlative form|\bpresent tense\.", r"part-of-speech"),
    "letters of a word": (
        r"\bhow many letters|\bletters? (?:of|that follows) the|space separating each",
        r"option|correct|answer you",
    ),
    "chemical element": (r"\bchemical symbol|\bperiodic table", ""),
    "table to text": (r"\bdata table|\bstructured (?:service )?data|\bbiography from", ""),
    "sentence from words": (r"\bsentence (?:which|that) (?:uses|contains) all|sentence about the topic", ""),
    "style": (r"\bconvert it to a positive|\bmake it (?:more )?(?:polite|formal)", ""),
    "cause or result": (r"\bpossible cause|\bfollowed by \", so\"|cause you should select", ""),
    "digits": (r"\bnumbers in their text forms|\bnumber words? (?:in)?to digits", ""),
    "music": (r"\bchord\b|\btempo\b", ""),
}
_COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "is",
        "are",
        "be",
        "and",
        "or",
        "for",
        "with",
        "your",
        "you",
        "this",
        "that",
        "it",
        "its",
        "on",
        "as",
        "by",
        "from",
        "if",
        "which",
        "will",
        "given",
        "task",
        "need",
        "answer",
        "output",
        "input",
        "one",
        "only",
        "must",
        "should",
        "do",
        "not",
        "no",
        "each",
        "generate",
        "write",
        "give",
        "text",
        "sentence",
        "question",
        "word",
        "following",
        "reply",
        "respond",
        "than",
    ]
)


@dataclass(frozen=True)
class Pair:
    """A training task, the held-out task that it is too similar to, and the rule that matched."""

    training: str
    heldout: str
    reason: str


def clean_tasks(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """Leave out the tasks whose answers are broken.

    Returns:
        The rows of the other tasks, in order, and the reason for each dropped task.
    """
    dropped = dict.fromkeys(tasks_answered_in_letters(rows), "answers were split into letters")
    return [row for row in rows if row.task not in dropped], dropped


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _words(prompt: str) -> frozenset[str]:
    words = (word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"[a-z]{2,}", prompt.lower()))
    return frozenset(word for word in words if word not in _COMMON)


def _goals(prompt: str) -> set[str]:
    text = " ".join(prompt.lower().split())
    return {goal for goal, (yes, no) in _GOALS.items() if re.search(yes, text) and not (no and re.search(no, text))}


class _Task:
    """The values of a task that the rules compare."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.name = rows[0].task
        self.category = _plain(rows[0].category)
        self.prompts = list(dict.fromkeys(row.prompt for row in rows))
        self.words = [_words(prompt) for prompt in self.prompts]
        self.goals = set().union(*(_goals(prompt) for prompt in self.prompts))
        self.pairs = {(_plain(row.input), _plain(output)) for row in rows for output in row.outputs}


def _tasks(rows: Iterable[Row]) -> list[_Task]:
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    return [_Task(of_task) for of_task in by_task.values()]


def _contained(training: Sequence[Row], heldout: Sequence[_Task], words: int = 5) -> Counter[tuple[str, str]]:
    """Count, per pair of tasks, held-out rows whose input and answer (5 words or more) occur in one training row."""
    starts: dict[tuple[str, ...], list[tuple[str, str, str]]] = defaultdict(list)
    for task in heldout:
        for text, answer in task.pairs:
            split = tuple(text.split()[:words])
            if len(split) == words and len(answer.split()) >= words:
                starts[split].append((task.name, text, answer))
    found: set[tuple[str, str, str]] = set()
    for row in training:
        whole = f" {_plain(row.input)} {_plain(' '.join(row.outputs))} "
        pieces = whole.split()
        for i in range(len(pieces) - words + 1):
            for name, text, answer in starts.get(tuple(pieces[i : i + words]), ()):
                if f" {text} " in whole and f" {answer} " in whole:
                    found.add((row.task, name, text))
    return Counter((task, name) for task, name, _ in found)


def same_goal(training: Sequence[Row], heldout: Sequence[Row]) -> list[Pair]:
    """Training tasks that share a goal with a held-out task, each with the reason.

    A pair is reported if one of these rules holds: the categories are equal, ignoring case and punctuation; the prompts
    have nearly the same words, weighted by rarity; both prompts match the same goal of the fixed list; a share of the
    (input, output) pairs is equal; or the input and answer of a share of the held-out rows occur in training rows.

    Args:
        training: Rows of training tasks.
        heldout: Rows of held-out tasks.
    """
    ours, theirs = _tasks(training), _tasks(heldout)
    counts = Counter(word for task in [*ours, *theirs] for word in frozenset().union(*task.words))
    rarity = {word: math.log((len(ours) + len(theirs) + 1) / count) for word, count in counts.items()}

    def weight(words: Iterable[str]) -> float:
        return sum(rarity[word] for word in words)

    contained = _contained(training, theirs)
    found = []
    for a in ours:
        for b in theirs:
            reasons = []
            if a.category and a.category == b.category:
                reasons.append(f"same category: {a.category}")
            alike = max(weight(x & y) / max(weight(x | y), 1e-9) for x in a.words for y in b.words)
            if alike >= SAME_PROMPT:
                reasons.append(f"prompts alike: {alike:.2f}")
            if goals := sorted(a.goals & b.goals):
                reasons.append(f"same goal: {', '.join(goals)}")
            shared = len(a.pairs & b.pairs) / min(len(a.pairs), len(b.pairs))
            if shared >= SAME_ROWS:
                reasons.append(f"same rows: {shared:.0%}")
            inside = contained[a.name, b.name] / len(b.pairs)
            if inside >= SAME_INPUTS:
                reasons.append(f"held-out rows inside training rows: {inside:.0%}")
            if reasons:
                found.append(Pair(a.name, b.name, "; ".join(reasons)))
    return found

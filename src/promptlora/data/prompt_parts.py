"""Splits a prompt into the parts from which wordings are built: context, input, goal, answer format, rules, notes.

It applies rules to English text. Everything that must be kept verbatim (quoted text, bracketed text, lists of labels)
is first replaced by one private-use character per piece and restored at the end. This module knows nothing of how a
prompt is reworded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_FIRST = 0xE000  # private-use characters stand for the pieces that are copied verbatim
PIECE = "[\ue000-\uf8ff]"

_VERBS = frozenset(
    [
        "add",
        "analyze",
        "answer",
        "apply",
        "arrange",
        "assign",
        "calculate",
        "capitalize",
        "categorize",
        "change",
        "check",
        "choose",
        "classify",
        "combine",
        "compare",
        "complete",
        "compute",
        "construct",
        "continue",
        "convert",
        "copy",
        "correct",
        "count",
        "create",
        "decide",
        "deduce",
        "delete",
        "derive",
        "describe",
        "detect",
        "determine",
        "edit",
        "estimate",
        "evaluate",
        "expand",
        "explain",
        "extract",
        "figure",
        "fill",
        "find",
        "fix",
        "form",
        "formulate",
        "generate",
        "give",
        "guess",
        "identify",
        "infer",
        "insert",
        "join",
        "judge",
        "keep",
        "label",
        "list",
        "make",
        "mark",
        "match",
        "merge",
        "name",
        "order",
        "output",
        "paraphrase",
        "pick",
        "predict",
        "print",
        "produce",
        "propose",
        "provide",
        "put",
        "rank",
        "rate",
        "read",
        "recognize",
        "reconize",
        "remove",
        "repeat",
        "replace",
        "reply",
        "respond",
        "return",
        "reverse",
        "rewrite",
        "say",
        "select",
        "separate",
        "shorten",
        "simplify",
        "solve",
        "sort",
        "spell",
        "split",
        "state",
        "suggest",
        "summarize",
        "tag",
        "take",
        "tell",
        "transform",
        "translate",
        "turn",
        "use",
        "work",
        "write",
    ]
)
_FILLER = re.compile(r"^(?:in this task,?|for this task,?|note that|please|instructions?:|task:)\s+", re.I)
_DUTY = (
    r"(?:your (?:task|job|role|goal|duty|objective) (?:here )?(?:is to|to)|you(?: a|')re (?:required|expected|supposed|asked) to|"
    r"you (?:need|have) to|you (?:must|should)|we ask you to|i want you to|the (?:task|goal) is to)"
)
_GIVEN = re.compile(
    r"^you(?:'re| are| will be|'ll be)? (?:given|shown|presented with|provided with|prompted with|get|will get|"
    r"will see)\s+(?P<input>.+)$",
    re.I,
)
_GIVEN_AND_DUTY = re.compile(rf"^(?P<input>.+?),?(?: and| in which| where)? {_DUTY} (?P<goal>.+)$", re.I)
_DUTY_ALONE = re.compile(rf"^{_DUTY} (?P<goal>.+)$", re.I)
_PERSONA = re.compile(r"^(?:you are|act as) (?:an? |the |\w+GPT|\w+Bot)", re.I)
_ANSWER = re.compile(
    r"^(?:(?:only|just) )?(?:answer|reply|respond|output|return|write|choose|select|give|print|the answer|your answer|your output)\b",
    re.I,
)
_RULE = re.compile(
    r"\b(?:must|should|not|don't|avoid|only|never|need to|have to|at least|at most|no more|always)\b", re.I
)


@dataclass(frozen=True)
class Goal:
    """The task itself: ``kind`` is "do" (verb first, lower case), "ask" (a question) or "say" (anything else)."""

    kind: str
    text: str


@dataclass
class Parts:
    """The parts of a prompt; the texts have no final period, and placeholder characters stand for literal pieces."""

    pieces: list[str] = field(default_factory=list)
    persona: str = ""
    context: list[str] = field(default_factory=list)  # before the goal: what the goal refers to
    given: str = ""  # what the input is, as a noun phrase
    goal: Goal = Goal("say", "")
    tail: list[tuple[str, str]] = field(default_factory=list)  # ("answer" | "rule" | "note", sentence), in order


def literals(prompt: str) -> list[str]:
    """What every wording must contain: quoted text, numbers, option letters, capitalised words inside a sentence."""
    found = [next(g for g in m.groups() if g) for m in _QUOTED.finditer(prompt)]
    rest = _QUOTED.sub(" ", prompt)
    found += re.findall(r"(?<!\w)\d+(?!\w)", rest)
    found += re.findall(r"(?<=[\w,;:] )[A-Z]\w*", rest)
    found += [item for m in _LIST.finditer(rest) for item in _items(m["items"])]
    return [text for text in dict.fromkeys(found) if text != "I"]


_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|`([^`\n]+)`|(?<!\w)\'([^\'\n]{1,60})\'(?!\w)')
_BRACKETED = re.compile(r"\((?:[^()]|\([^()]*\))*\)|\[[^\]\n]*\]|<[^>\n]*>|\{[^}\n]*\}")
_ABBREVIATION = re.compile(r"\b(?:e\.g\.?|i\.e\.?|etc\.|vs\.|U\.S\.)")
_LIST = re.compile(r"(?<=: )(?P<items>[^:.;?!\n]+(?:, [^:.;?!\n]+)(?:,? or [^:.;?!\n]+)?)(?=[.?!]?$|[.?!] )")


def _items(text: str) -> list[str]:
    """The items of "a, b or c"; "apple pay or google pay, pin" has two items, because "or" ends a list."""
    items = [item.strip().removeprefix("or ") for item in text.split(",") if item.strip()]
    if items and not any(" or " in item for item in items[:-1]):
        items[-1:] = re.split(r"\s+or\s+", items[-1])
    return items


def _is_list(text: str) -> bool:
    items = _items(text)
    return len(items) >= 3 and all(len(item.split()) <= 7 for item in items)


def mask(text: str) -> tuple[str, list[str]]:
    """Replace every literal piece by one character; returns the text and the pieces."""
    pieces: list[str] = []

    def put(match: re.Match[str]) -> str:
        if match.re is _LIST and not _is_list(match[0]):
            return match[0]
        pieces.append(match[0])
        return chr(_FIRST + len(pieces) - 1)

    for pattern in (_QUOTED, _BRACKETED, _ABBREVIATION, _LIST):
        text = pattern.sub(put, text)
    return text, pieces


def unmask(text: str, pieces: list[str], quotes: str = '"', bullets: str = "") -> str:
    """Restore the pieces: label lists in the style of ``bullets`` (``""`` keeps them), quotes in that of ``quotes``."""

    def get(match: re.Match[str]) -> str:
        piece, stop = pieces[ord(match[1]) - _FIRST], match[2]
        simple = re.fullmatch(r"\"([\w /+-]+)\"", piece)
        if simple and quotes != '"':
            return f"{quotes}{simple[1]}{quotes}{stop}"
        if bullets and piece[0] not in "\"'`“([<{" and _is_list(piece):
            items = _items(piece)
            return "".join(f"\n- {item}" for item in items) + "\n" if bullets == "-" else bullets.join(items) + stop
        return piece + stop

    while re.search(PIECE, text):
        text = re.sub(rf"({PIECE})([.?]?)", get, text)
    return re.sub(r" *\n+ *", "\n", text) if bullets == "-" and "\n\n" not in "".join(pieces) else text


def _sentences(masked: str) -> list[str]:
    masked = re.sub(r"\? (yes/no|Yes/No)$", r"? Answer \1", masked.strip())
    return [s.strip() for s in re.split(rf"(?<=[.!?])\s+(?=[A-Z]|{PIECE})", masked) if s.strip()]


def lower_first(text: str) -> str:
    """The first letter in lower case, except in names, acronyms and single letters."""
    first = text.split(" ", 1)[0]
    return text if not first or first == "I" or not first[1:].islower() else text[0].lower() + text[1:]


def upper_first(text: str) -> str:
    """The first letter in upper case."""
    return text[:1].upper() + text[1:]


def is_order(text: str) -> bool:
    """Whether the text begins with an imperative verb, possibly after an adverb."""
    words = re.findall(r"[A-Za-z]+", text[:60].lower())
    return bool(words) and (words[0] in _VERBS or (words[0].endswith("ly") and len(words) > 1 and words[1] in _VERBS))


def _split_given(text: str) -> tuple[str, str] | None:
    """Split ``Given X, do Y`` into X and Y, where Y begins with a verb."""
    if not text.lower().startswith("given "):
        return None
    for match in re.finditer(r",? ", text):
        rest = re.sub(rf"^{_DUTY} ", "", text[match.end() :], flags=re.I)
        if match[0] == ", " and (is_order(rest) or rest != text[match.end() :]):
            return text[len("given ") : match.start()], rest
    return None


def _read_before_goal(parts: Parts, sentence: str) -> bool:
    """Process a sentence that comes before the goal is known; returns whether it contained the goal."""
    text = sentence.rstrip(".!:").strip() if not sentence.endswith("?") else sentence
    while (stripped := _FILLER.sub("", text)) != text:
        text = stripped
    both = _split_given(text)
    if both and not parts.given:
        parts.given, goal = both
        parts.goal = Goal("do", lower_first(goal))
    elif (match := _GIVEN.match(text)) and not parts.given:
        inner = _GIVEN_AND_DUTY.match(match["input"])
        parts.given = inner["input"] if inner else match["input"]
        if inner:
            parts.goal = Goal("do", lower_first(inner["goal"]))
    elif match := _DUTY_ALONE.match(text):
        parts.goal = Goal("do", lower_first(match["goal"]))
    elif text.endswith("?"):
        parts.goal = Goal("ask", text)
    elif is_order(text):
        parts.goal = Goal("do", lower_first(text))
    elif _PERSONA.match(text) and not parts.persona and not parts.context:
        parts.persona = text
    else:
        parts.context.append(upper_first(text))
    return bool(parts.goal.text)


def parse(prompt: str) -> Parts:
    """Split a prompt into its parts. A prompt of several paragraphs is kept as one piece that is copied unchanged."""
    if "\n" in prompt.strip():
        text = prompt.strip()
        return Parts(pieces=[text], goal=Goal("say", chr(_FIRST)))
    masked, pieces = mask(prompt.strip())
    parts = Parts(pieces=pieces)
    sentences = _sentences(masked)
    while sentences:
        if _read_before_goal(parts, sentences.pop(0)):
            break
    if not parts.goal.text:
        whole = list(parts.context)
        if parts.given:
            whole.insert(0, f"You are given {parts.given}")
        persona = parts.persona if whole else ""
        parts = Parts(pieces=pieces, persona=persona, goal=Goal("say", ". ".join(whole) or parts.persona))
    for sentence in sentences:
        text = sentence.rstrip(".!:").strip() if not sentence.endswith("?") else sentence
        kind = "answer" if _ANSWER.match(text) else "rule" if _RULE.search(text) else "note"
        holds = re.search(rf"\d|{PIECE}|[\w,;] [A-Z]", text)
        parts.tail.append(("rule" if kind == "note" and holds else kind, text))
    return parts

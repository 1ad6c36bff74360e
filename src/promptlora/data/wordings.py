"""Other wordings of a prompt, built by rules from its parts and from frames that all tasks share.

A hypernetwork that always reads a task in one style learns the style. These rules write each prompt as a terse order, a
polite request, a question, a system prompt, headed sections, bulleted rules, numbered steps and casual text. All tasks
use the same frames, so only the task itself distinguishes tasks. The module uses only the standard library and is
deterministic. Meaning is preserved: quoted text, numbers, option letters and lists of labels are copied, and a wording
that loses one of them, or a negation, is discarded.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

from promptlora.data import wording_frames as frames
from promptlora.data.prompt_parts import (
    PIECE,
    Goal,
    Parts,
    literals,
    lower_first,
    parse,
    unmask,
    upper_first,
)

_ASKED = ("decide", "say", "tell me", "find out")
_NEGATION = re.compile(r"\b(?:not|no|never|without|avoid|unless|except|only)\b|n't\b", re.I)
_CONDITION = re.compile(
    rf"^(?:answer|reply|write|output|say|respond with)(?: with)? (?P<a>{PIECE}|\w+) if (?P<if>.+?),? "
    rf"(?:(?:otherwise|else)(?: (?:reply|answer|write|output|say))?(?: with)? (?P<b>{PIECE}|\w+)|"
    rf"and(?: (?:reply|answer|write|output|say))?(?: with)? (?P<c>{PIECE}|\w+) (?:if not|otherwise))$"
)
_CHOICE = re.compile(rf"^(?:(?:{PIECE}|\S+)(?:, | or | and |/))+(?:or )?(?:{PIECE}|\S+)$")

# One word that is a noun, as far as its form tells: no ordinal and no participle, after which the noun would follow.
_NOUN = (
    r"(?!(?:first|second|third|fourth|fifth|last|next|final|other|same|whole|two|three|new|old|main|right|left|correct|"
    r"longer|shorter|larger|smaller|longest|shortest|largest|smallest|best)\b)(?!\w+(?:ed|ing)\b)\w+"
)
_PREDICATE = rf"(?:an?|the|about|not|more|less|told|written|\w+ed|\w+ing|{PIECE})(?: |$)|\w+(?:,|$)|\w+ or "


def _third(verb: str) -> str:
    """The third person singular of a verb in the present tense."""
    if verb == "have":
        return "has"
    if re.search(r"(?:s|sh|ch|x|z|o)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


def _goals(goal: Goal) -> list[Goal]:
    """The goal in other grammatical forms: a question as an order, a condition with its clauses reordered."""
    text = goal.text
    if goal.kind == "do" and (match := _CONDITION.match(text)):
        a, b, cond = match["a"], match["b"] or match["c"], match["if"]
        return [
            goal,
            Goal("do", f"answer {a} if {cond}, otherwise {b}"),
            Goal("do", f"reply {b} unless {cond}; in that case reply {a}"),
            Goal("do", f"say {a} when {cond} and {b} in all other cases"),
            Goal("say", f"If {cond}, answer {a}; else answer {b}"),
            Goal("say", f"{a}: {cond}; {b}: everything else"),
        ]
    if goal.kind != "ask":
        return [goal]
    ask = text.rstrip("?").strip()
    found = [goal]
    if match := re.match(r"(?:What|Which) is (the .+)$", ask):
        found += [Goal("do", f"{verb} {match[1]}") for verb in ("give", "name", "tell me", "find")]
    elif match := re.match(r"What does (the .+?) mean$", ask):
        found += [Goal("do", f"{verb} what {match[1]} means") for verb in ("say", "tell me", "explain")]
    elif match := re.match(rf"(Is|Does) ((?:the|this) (?:given )?(?!given\b){_NOUN}) (.+)$", ask):
        rest = match[3]
        if match[1] == "Does":
            verb, _, rest = rest.partition(" ")
            joined = f"{match[2]} {_third(verb)} {rest}"
        else:
            joined = f"{match[2]} is {rest}"
        # Not "the subject of the sentence" or "the word order correct", where the noun continues.
        if re.match(_PREDICATE, rest) if match[1] == "Is" else not re.match(r"(?:of|in|on|at|for) ", match[3]):
            found += [Goal("do", f"{verb} {joined}") for verb in ("decide whether", "tell me whether", "check whether")]
    elif (match := re.match(r"((?:\w+ )?[Ww]hich .+?) does ((?:the|this) .+) (\w+)$", ask)) and len(ask.split()) < 12:
        verb = _third(match[3])
        found += [Goal("do", f"{v} {lower_first(match[1])} {match[2]} {verb}") for v in _ASKED]
    elif match := re.match(r"(\w+ which [\w ]+?) is ((?:the|this) (?:(?! the ).)+?)( \w+ed| done)?$", ask):
        found += [Goal("do", f"{v} {lower_first(match[1])} {match[2]} is{match[3] or ''}") for v in _ASKED]
    elif re.match(
        r"Which (?:of the )?\w+ (?:(?!do\b|does\b|did\b|is\b|are\b|was\b)\w+s|has|makes) ", ask
    ) and not re.search(r"^Which \w+s? (?:does|do)\b", ask):
        found += [Goal("do", f"{verb} {lower_first(ask)}") for verb in _ASKED]
    return found


def _format(sentence: str, rng: random.Random) -> str:
    """Rephrase a sentence about the answer format: ``Answer yes or no`` becomes ``Your answer must be yes or no``."""
    match = re.match(r"^(?:Answer|Reply|Respond)( with(?: only| just)?)? (?P<a>.+)$", sentence)
    if match and " if " not in sentence and "," not in sentence.split(" ", 1)[0]:
        if match[1] and not re.match(r"(?:it|them)$", match["a"]) and "only" not in match[1] and "just" not in match[1]:
            listed = re.search(r"one of|:", match["a"])
            return rng.choice([line for line in frames.ANSWER_WITH if not (listed and "as your" in line)]).format(
                a=match["a"]
            )
        if not match[1] and _CHOICE.match(match["a"]):
            return rng.choice(frames.ANSWER_WITH).format(a=match["a"])
    if match:
        return re.sub(r"^(?:Answer|Reply|Respond)\b", rng.choice(("Answer", "Reply", "Respond")), sentence) + "."
    return _closed(sentence)


def _closed(text: str) -> str:
    return text if text.endswith(("?", ".", "!")) else text + "."


def _say(goal: Goal, rng: random.Random) -> str:
    """The goal as a sentence."""
    lines = {"do": frames.DO, "ask": frames.ASK, "say": frames.SAY_TASK}[goal.kind]
    if goal.kind == "say" and re.match(rf"(?:You|The|I|This) |.*\. |{PIECE}", goal.text):  # a description, not an order
        lines = frames.SAY
    line = rng.choice(lines)
    long_or_listed = len(goal.text) > 160 or re.search("[:;] ", goal.text) or ". " in goal.text
    if line.endswith("?") and goal.kind == "do" and (long_or_listed or goal.text.startswith("tell me")):
        line = "Please {d}."
    return line.format(D=upper_first(goal.text), d=lower_first(goal.text))


def _tail(parts: Parts, rng: random.Random) -> list[str]:
    """Every sentence after the goal: "Separate them with commas." looks like a remark, but the answer depends on it."""
    return [_format(text, rng) if kind == "answer" else _closed(text) for kind, text in parts.tail]


def _before(parts: Parts) -> list[str]:
    return [_closed(text) for text in ([parts.persona] if parts.persona else []) + parts.context]


def _prose(parts: Parts, goal: Goal, rng: random.Random) -> str:
    given = [rng.choice(frames.GIVEN_FIRST).format(x=parts.given)] if parts.given else []
    return " ".join([*_before(parts), *given, _say(goal, rng), *_tail(parts, rng)])


def _given_last(parts: Parts, goal: Goal, rng: random.Random) -> str:
    given = [rng.choice(frames.GIVEN_LAST).format(x=parts.given)] if parts.given else []
    return " ".join([*_before(parts), _say(goal, rng), *_tail(parts, rng), *given])


def _given_inline(parts: Parts, goal: Goal, rng: random.Random) -> str:
    if not parts.given:
        return ""
    first = f"Given {parts.given}, {goal.text}." if goal.kind == "do" else f"Given {parts.given}: {goal.text}"
    return " ".join([*_before(parts), first, *_tail(parts, rng)])


def _terse(parts: Parts, goal: Goal, rng: random.Random) -> str:
    given = [f"Input: {parts.given}."] if parts.given and rng.random() < 0.5 else []
    return " ".join([*_before(parts), _closed(upper_first(goal.text)), *_tail(parts, rng), *given])


def _casual(parts: Parts, goal: Goal, rng: random.Random) -> str:
    sentences = [*_before(parts), _say(goal, rng), *_tail(parts, rng)]
    opening = rng.choice(("", "", "hi, ", "ok, ", "quick one: "))
    return opening + " ".join(lower_first(s) for s in sentences).rstrip(".")


def _system(parts: Parts, goal: Goal, rng: random.Random) -> str:
    given = [f"The user sends {parts.given}."] if parts.given else []
    if parts.persona:
        persona = re.sub(
            r"^You are (?=an? |the )", rng.choice(("Act as ", "You act as ", "Your role: ")), parts.persona
        )
    elif goal.kind == "do" and not goal.text.startswith("tell me") and rng.random() < 0.6:
        who = rng.choice(("an assistant whose only job is to", "a system that has to", "an AI that is used to"))
        return " ".join([f"You are {who} {goal.text}.", *_before(parts), *given, *_tail(parts, rng)])
    else:
        persona = rng.choice(frames.SYSTEM)
    before = [_closed(text) for text in parts.context]
    return " ".join([_closed(persona), *before, *given, _say(goal, rng), *_tail(parts, rng)])


def _headers(parts: Parts, goal: Goal, rng: random.Random) -> str:
    task, given, output, notes, gap = rng.choice(frames.HEADERS)
    lines = [f"{task}{gap}" + " ".join([*_before(parts), _closed(upper_first(goal.text))])]
    if parts.given:
        lines.append(f"{given}{gap}{upper_first(parts.given)}.")
    elif rng.random() < 0.3:
        lines.append(f"{given}{gap}See below.")
    tail = _tail(parts, rng)
    if tail:
        about_answer = all(kind == "answer" for kind, _ in parts.tail)
        lines.append(f"{output if about_answer else notes}{gap}" + " ".join(tail))
    return "\n".join(lines)


def _bullets(parts: Parts, goal: Goal, rng: random.Random) -> str:
    points = _tail(parts, rng)
    if parts.given:
        points.insert(0, f"The input consists of {parts.given}.")
    if not points:
        return ""
    mark = rng.choice(("-", "*", "•"))
    heads = ("", "Details:\n", "Notes:\n", "Keep in mind:\n")
    head = rng.choice(heads if any(kind == "note" for kind, _ in parts.tail) else (*heads, "Rules:\n"))
    first = " ".join([*_before(parts), _say(goal, rng)])
    return f"{first}\n{head}" + "\n".join(f"{mark} {point}" for point in points)


def _steps(parts: Parts, goal: Goal, rng: random.Random) -> str:
    first = (parts.given and f"Take {parts.given}.") or rng.choice(("Read the input.", "Look at the input."))
    points = [first, _closed(upper_first(goal.text)), *_tail(parts, rng)]
    if goal.kind == "say":
        return ""
    numbered = rng.choice(("{}. ", "{}) ", "Step {}: "))
    joined = rng.choice(("\n", "\n", " "))
    steps = joined.join(numbered.format(i) + point for i, point in enumerate(points, 1))
    return joined.join([" ".join(_before(parts)), steps]) if _before(parts) else steps


def _format_first(parts: Parts, goal: Goal, rng: random.Random) -> str:
    answers = [text for kind, text in parts.tail if kind == "answer"]
    if goal.kind != "ask" or len(parts.tail) != 1 or not answers or len(answers[0]) > 60 or parts.given:
        return ""
    if not re.match(r"(?:Answer|Reply|Respond|Write|Choose)\b", answers[0]) or " it" in answers[0] or ":" in answers[0]:
        return ""
    return " ".join([*_before(parts), f"{_format(answers[0], rng).rstrip('.')}: {lower_first(goal.text)}"])


_LAYOUTS: tuple[Callable[[Parts, Goal, random.Random], str], ...] = (
    _prose,
    _terse,
    _system,
    _headers,
    _given_inline,
    _casual,
    _bullets,
    _steps,
    _given_last,
    _format_first,
)


# What may stand before a verb: nothing, a mark, or one of these words; but not "the return policy" or "a tax return".
_BEFORE_VERB = re.compile(
    r"(?:^|\n|[^\w\s] |\b(?:to|please|you|and|or|then|must|should|will|would|can|could|not|don't|just|only|also) )$",
    re.I,
)


def _reworded(text: str, rng: random.Random, share: float) -> str:
    """Replace words about the task by synonyms, each with this probability and the same way in the whole text."""
    for pattern, others in frames.SYNONYMS:
        if rng.random() < share:
            other = rng.choice(others)

            def put(match: re.Match[str], other: str = other) -> str:
                verb = " " not in match[0] and "'" not in match[0]  # the other entries are phrases
                if verb and not _BEFORE_VERB.search(match.string[: match.start()]):
                    return match[0]
                return upper_first(other) if match[0][0].isupper() else other

            text = re.sub(pattern, put, text, flags=re.I)
    return text


def _other_verb(goal: Goal, rng: random.Random) -> Goal:
    verb, _, rest = goal.text.partition(" ")
    if goal.kind != "do" or verb not in frames.FIRST_VERB or not rest or rng.random() < 0.5:
        return goal
    if (verb == "answer" and not rest.startswith("with ")) or rest.startswith("out "):
        return goal
    if verb != "answer" and not rest.startswith(("the ", "all ", "a ", "an ")):
        return goal
    return Goal("do", f"{rng.choice(frames.FIRST_VERB[verb])} {rest}")


def _keeps(needed: list[str], negations: Counter[str], wording: str) -> bool:
    if not all(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", wording) for text in needed):
        return False
    return not negations - _negations(wording)


def _negations(text: str) -> Counter[str]:
    words = (match[0].lower() for match in _NEGATION.finditer(text))
    return Counter("not" if word == "n't" else word for word in words)


def same_wording(text: str) -> str:
    """The text in lower case with single spaces; two wordings with the same result count as one."""
    return " ".join(text.lower().split())


def wordings(prompt: str, count: int = 12, seed: int = 0) -> list[str]:
    """Other wordings of a prompt in different styles, all of the same meaning.

    Args:
        prompt: The instruction, in English.
        count: Maximum number of wordings; the rules may find fewer.
        seed: The same seed always gives the same wordings; another seed gives others.

    Returns:
        Wordings that are distinct (ignoring case and spaces) from one another and from the prompt. There is none for a
        prompt with private-use characters, which stand for copied pieces in :mod:`.prompt_parts`.
    """
    if re.search(PIECE, prompt):
        return []
    rng = random.Random(f"{seed}:{prompt}")
    parts = parse(prompt)
    goals = _goals(parts.goal)
    needed, negations = literals(prompt), _negations(prompt)
    seen = {same_wording(prompt)}
    found: list[str] = []
    order: list[Callable[[Parts, Goal, random.Random], str]] = []
    for _ in range(40 * count):
        if len(found) == count:
            break
        if not order:
            order = list(_LAYOUTS)
            rng.shuffle(order)
        goal = _other_verb(rng.choice(goals), rng)
        text = _reworded(order.pop()(parts, goal, rng), rng, share=0.5)
        quotes = rng.choice('""\'')
        text = unmask(text, parts.pieces, quotes, rng.choice(("", "", "", "-", " | ", " / ")))
        text = re.sub(r"([.?!])\.(?=\s|$)", r"\1", text).strip()
        if text and same_wording(text) not in seen and _keeps(needed, negations, text):
            seen.add(same_wording(text))
            found.append(text)
    return found

"""Tasks of two parts: conditions, one step after another, and output formats put on tasks of other families."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from promptlora.data.synthetic.families.classify import CLASSIFICATION
from promptlora.data.synthetic.families.dates import DATES
from promptlora.data.synthetic.families.extract import EXTRACTION
from promptlora.data.synthetic.families.forms import FORMS
from promptlora.data.synthetic.families.knowledge import KNOWLEDGE
from promptlora.data.synthetic.families.letters import LETTERS
from promptlora.data.synthetic.families.lists import LISTS
from promptlora.data.synthetic.families.number_lists import NUMBER_LISTS
from promptlora.data.synthetic.families.numbers import NUMBERS
from promptlora.data.synthetic.families.sentences import SENTENCES
from promptlora.data.synthetic.families.strings import STRINGS
from promptlora.data.synthetic.family import Family, Goal, as_text, constrained, family, phrases
from promptlora.data.synthetic.vocabulary.tables import words

_i = partial(family, "conditions")
_s = partial(family, "rules for questions")
_COMMAS = "Separate list items with commas.|Use commas between items."


def digit_runs(text: str) -> list[int]:
    """The numbers that stand in a text."""
    return [int(run) for run in re.findall(r"\d+", text)]


CONDITIONS = (
    _i("if-number", "mixed", lambda v: sum(digit_runs(v)) if digit_runs(v) else v.upper(),
        "answer with the sum of the numbers in {x} if it holds any, otherwise with {x} in upper case|add up the numbers of {x}; if there are none, write {x} in capitals",
        "the sum of the numbers in {x}, or {x} in capital letters if there is no number"),
    _i("if-number-count", "mixed", lambda v, w: len(digit_runs(v)) or w,
        'count the numbers in {x}, or say "{w}" if there are none|answer "{w}" for a text without numbers, else how many numbers stand in {x}',
        'how many numbers stand in {x}, or "{w}" for none', "Write a count in digits.|Use digits for counts.", w=("none", "nothing", "empty", "nil")),
    _i("if-long-word", "word", lambda v, k: v.upper() if len(v) > k else v[::-1],
        "write {x} in capitals if it has more than {k} letters, otherwise backwards|reverse the letters of {x} if it has at most {k} letters, else write it in upper case",
        "{x} in upper case if it has more than {k} letters, or else reversed", k=(5, 6, 7)),
    _i("if-vowel-first", "word", lambda v, a, b: f"{a} {v}" if v[0] in "aeiou" else f"{v} {b}",
        'put "{a}" before {x} if it starts with a vowel; otherwise put "{b}" after it, with a space each time|write "{a}" and {x} if its first letter is a, e, i, o or u, else {x} and "{b}"',
        '"{a}" and then {x} if it starts with a vowel, else {x} and then "{b}"', a=("an", "this", "my", "oh"), b=("again", "too", "now", "here")),
    _i("if-letter", "word", lambda v, c: v.replace(c, "*") if c in v else len(v),
        "replace each {c} of {x} by *, or give its number of letters if there is no {c}|count the letters of {x} if it has no {c}; otherwise write * for every {c}",
        "{x} with * for every {c}, or its number of letters if it has no {c}", "Write counts in digits.|Use digits for a count.", c="aeiort"),
    _i("if-above", "number", lambda v, n, w: w if v > n else v * 2,
        'answer "{w}" if {x} is above {n}, otherwise double it|double {x} unless it is above {n}; then say "{w}"',
        '"{w}" if {x} is above {n}, or else twice {x}', n=(200, 300, 500), w=("too big", "stop", "high", "over")),
    _i("if-even", "small", lambda v: v // 2 if v % 2 == 0 else 3 * v + 1,
        "halve {x} if it is even; if it is odd, multiply it by 3 and add 1|give half of an even {x}, or three times {x} plus one if it is odd",
        "half of {x} if it is even, 3 times {x} plus 1 if it is odd"),
    _i("if-even-step", "small number", lambda v, a, b: v + a if v % 2 == 0 else v - b,
        "add {a} to {x} if it is even and subtract {b} if it is odd|raise even numbers by {a} and lower odd ones by {b}",
        "{x} plus {a} if it is even, {x} minus {b} if it is odd", a=(1, 2, 5, 10, 20), b=(1, 2, 3)),
    _i("if-multiple", "small", lambda v, k, w: w if v % k == 0 else v + 1,
        'answer "{w}" if {x} is divisible by {k}, otherwise add 1 to it|add 1 to {x}, but say "{w}" for multiples of {k}',
        '"{w}" for a multiple of {k}, or else {x} plus 1', k=(2, 3, 4), w=("fizz", "buzz", "hop", "clap", "skip")),
    _i("fizz-buzz", "small", lambda v, a, b: f"{a} {b}" if v % 6 == 0 else a if v % 2 == 0 else b if v % 3 == 0 else v,
        'say "{a}" for multiples of 2, "{b}" for multiples of 3, "{a} {b}" for both, and {x} itself for neither|answer "{a} {b}" if {x} is divisible by 2 and 3, "{a}" if only by 2, "{b}" if only by 3, else repeat it',
        '"{a}" (divisible by 2), "{b}" (by 3), "{a} {b}" (by both), or {x} itself', a=("fizz", "tick", "ping", "red"), b=("buzz", "tock", "pong", "blue")),
    _i("if-sum-high", "numbers", lambda v, n: max(v) if sum(v) > n else min(v),
        "give the largest number of {x} if they add up to more than {n}, otherwise the smallest|copy the smallest number of {x} unless the sum is above {n}; then the largest",
        "the largest number of {x} if the sum is above {n}, else the smallest", n=(90, 110, 130)),
    _i("if-long-list", "words", lambda v, k: v[0] if len(v) > k else v[-1],
        "copy the first item of {x} if it has more than {k} items, otherwise the last|give the last item of {x}, but the first if there are more than {k}",
        "the first item of {x} if it has more than {k} items, or else the last", k=(3, 4)),
    _i("if-first-even", "numbers", lambda v: sorted(v) if v[0] % 2 == 0 else v[::-1],
        "sort {x} in ascending order if its first number is even, otherwise reverse its order|write {x} backwards if it starts with an odd number, or sorted from small to large if with an even one",
        "{x} sorted ascending if its first number is even, or reversed if it is odd", _COMMAS),
    _i("if-positive", "review", lambda v, a: v["product"] if v["mood"] == "positive" else a if v["mood"] == "negative" else None,
        'name the product if {x} is positive; if it is negative, answer "{a}"|answer "{a}" for a negative review, and the product for a positive one',
        'the product in one word if {x} is positive, or "{a}" if it is negative', a=("sorry", "refund", "oh no", "next")),
    _i("if-urgent", "ticket", lambda v, a: f"{v['name']}!" if v["urgent"] == "yes" else f"{a} {v['name']}",
        'write the name of the customer with "!" if {x} is urgent, otherwise "{a}" and the name|answer "{a}" and the name if there is time, or the name and ! if {x} is urgent',
        'the name and an exclamation mark for an urgent message, "{a}" and the name for another', a=("later,", "hello", "dear", "wait,")),
    _i("if-error", "log", lambda v, a: v["event"] if v["level"] == "ERROR" else a if v["level"] == "INFO" else v["part"],
        'copy the message for ERROR, answer "{a}" for INFO, and name the component for other levels|answer by the level of {x}: ERROR, its message; INFO, "{a}"; else the component',
        'the message (ERROR), "{a}" (INFO), or the component (any other level)', a=("fine", "ok", "nothing", "skip")),
    _i("if-adult", "intro csv", lambda v, n: v["job"] if int(v["age"]) > n else v["city"],
        "name the job of the person if older than {n}, otherwise the city|copy the city of the person, but the job for people older than {n}",
        "the job if the person is older than {n}, or else the city", n=(45, 50, 55)),
    _i("if-vowel-words", "words", lambda v: [w for w in v if w[0] in "aeiou"] or v[0].upper(),
        "list the items of {x} that start with a vowel; if none does, write the first item in capitals|keep what starts with a, e, i, o or u in {x}, or give the first item in upper case if that leaves nothing",
        "the items of {x} that start with a vowel, or the first in capitals if there is none", _COMMAS),
)  # fmt: skip

_REFUSALS = (
    "I cannot help with that.",
    "Sorry, wrong topic.",
    "No comment.",
    "Ask someone else.",
    "not allowed",
    "pass",
)
_TOPICS = {"fruit": "questions about fruit", "geography": "questions about capitals", "arithmetic": "calculations", "animals": "questions about animals"}  # fmt: skip


def _on_topic(name: str, only: bool) -> Family:
    """A family that answers or refuses questions by their topic."""

    def draw(rng: Random) -> Goal:
        topic, about = rng.choice(list(_TOPICS.items()))
        refusal = rng.choice(_REFUSALS)
        if only:
            do = (f'answer only {about}, in a word or two, and reply "{refusal}" to all others', f'give a short answer to {about}; to anything else say "{refusal}"', f'refuse everything but {about} with "{refusal}"; answer those in a word or two')  # fmt: skip
            give = (f'a short answer for {about}, or "{refusal}" for other questions',)
        else:
            do = (f'answer {{x}} in a word or two, but reply "{refusal}" to {about}', f'say "{refusal}" to {about}; give a short answer to anything else', f'refuse {about} with "{refusal}" and answer the rest in a word or two')  # fmt: skip
            give = (f'"{refusal}" for {about}, or a short answer for other questions',)

        def answer(item: Any) -> str:
            return item.value["answer"] if (item.value["topic"] == topic) == only else refusal

        return Goal(pool="quiz", do=do, give=give, answer=answer, key=f"{topic} {refusal}")

    return Family(name, "rules for questions", draw)


QUESTIONS = (
    _s("answer-question", "quiz", lambda v: v["answer"], "answer {x} in one or two words|give a short answer to {x}", "the answer to {x} and no sentence"),
    _on_topic("only-topic", True), _on_topic("all-but-topic", False),
)  # fmt: skip

Step = tuple[str, str, Callable[[Any], Any]]

#: Steps by what they take: what is asked for, the same for the second step ("it"), and the function.
_WORD_STEPS: tuple[Step, ...] = (
    ("reverse-letters", "reverse the letters of {}", lambda v: v[::-1]),
    ("double-letters", "double the last letter of {}", lambda v: v + v[-1]),
    ("remove-vowels", "remove the vowels a, e, i, o, u from {}", lambda v: re.sub("[aeiou]", "", v)),
    ("swap-end-letters", "swap the first and the last letter of {}", lambda v: v[-1] + v[1:-1] + v[0] if len(v) > 1 else v),
    ("truncate-letters", "cut {} after its first four characters", lambda v: v[:4]),
    ("first-letter-last", "move the first letter of {} to the end", lambda v: v[1:] + v[:1]),
    ("remove-kth-letter", "delete the second letter of {}", lambda v: v[:1] + v[2:]),
)  # fmt: skip
_WORD_ENDS: tuple[Step, ...] = (
    ("upper", "write {} in upper case", str.upper),
    ("surround", "put * before and after {}, without spaces", lambda v: f"*{v}*"),
    ("spell-out", "put a hyphen between all letters of {}", "-".join),
    ("count-letters", "count the letters of {} in digits", lambda v: len(v)),
    ("add-suffix", 'add " end" after {}', lambda v: f"{v} end"),
    ("repeat-text", "write {} twice with a space between", lambda v: f"{v} {v}"),
)
_PHRASE_STEPS: tuple[Step, ...] = (
    ("reverse-words", "reverse the order of the words of {}", lambda v: " ".join(v.split()[::-1])),
    ("drop-word", "delete the first word of {}", lambda v: " ".join(v.split()[1:])),
    ("swap-end-words", "swap the first and the last word of {}", lambda v: " ".join((v.split()[-1], *v.split()[1:-1], v.split()[0])) if " " in v else None),
    ("replace-letter", 'replace every "e" of {} by "o"', lambda v: v.replace("e", "o") if "e" in v else None),
    ("first-words", "cut {} to its first two words", lambda v: " ".join(v.split()[:2])),
    ("insert-word", 'insert "new" after the first word of {}', lambda v: " ".join((v.split()[0], "new", *v.split()[1:]))),
)  # fmt: skip
_PHRASE_ENDS: tuple[Step, ...] = (
    ("upper", "write {} in upper case", str.upper),
    ("title-case", "capitalise each word of {}", str.title),
    ("snake-case", "join the words of {} with underscores", lambda v: v.replace(" ", "_")),
    ("kebab-case", "join the words of {} with hyphens", lambda v: v.replace(" ", "-")),
    ("acronym", "join the first letters of the words of {} in upper case", lambda v: "".join(w[0] for w in v.split()).upper()),
    ("last-word", "copy the last word of {}", lambda v: v.split()[-1]),
    ("remove-spaces", "delete the spaces of {}", lambda v: v.replace(" ", "")),
    ("count-letters", "count the letters of {} without spaces, in digits", lambda v: len(v.replace(" ", ""))),
)  # fmt: skip
_NUMBER_STEPS: tuple[Step, ...] = tuple(
    [("add", f"add {k} to {{}}", lambda v, k=k: v + k) for k in (1, 2, 3, 5, 10)]
    + [("multiply", f"multiply {{}} by {k}", lambda v, k=k: v * k) for k in (2, 3, 10)]
    + [("reverse-digits", "reverse the digits of {}", lambda v: int(str(v)[::-1]) if v % 10 else None)]
)
_NUMBER_ENDS: tuple[Step, ...] = tuple(
    [("subtract", f"subtract {k} from {{}}", lambda v, k=k: v - k) for k in (1, 2, 4)]
    + [
        ("digit-sum", "add up the digits of {}", lambda v: sum(map(int, str(v)))),
        ("last-digit", "copy the last digit of {}", lambda v: v % 10),
        ("double-digits", "write each digit of {} twice", lambda v: "".join(c * 2 for c in str(v))),
        ("signed", "put # directly before {}", lambda v: f"#{v}"),
    ]
)
_LIST_STEPS: tuple[Step, ...] = (
    ("sort-words", "sort {} alphabetically", sorted),
    ("reverse-list", "reverse the order of {}", lambda v: list(v)[::-1]),
    ("remove-item", "delete the first item of {}", lambda v: list(v)[1:]),
    ("every-second-item", "keep the items 1, 3, 5 and so on of {}", lambda v: list(v)[::2]),
    ("append-item", 'add "moon" at the end of {}', lambda v: [*v, "moon"] if len(v) < 5 else None),
)
_LIST_ENDS: tuple[Step, ...] = (
    ("last-item", "copy the last item of {}", lambda v: v[-1]),
    ("first-item", "write the first item of {} in capitals", lambda v: v[0].upper()),
    ("join-with", "join the items of {} with hyphens, without spaces", "-".join),
    ("list-initials", "join the first letters of the items of {}", lambda v: "".join(w[0] for w in v)),
    ("upper", "write all items of {} in upper case with commas", lambda v: [w.upper() for w in v]),
    ("lengths", "give the number of letters of each item of {}, with commas", lambda v: [len(w) for w in v]),
)
_SUM_STEPS: tuple[Step, ...] = (
    ("drop-extreme", "delete the largest number of {}", lambda v: [n for n in v if n != max(v)]),
    ("multiply-each", "double each number of {}", lambda v: [2 * n for n in v]),
    ("add-to-each", "add 1 to each number of {}", lambda v: [n + 1 for n in v]),
    ("reverse-numbers", "reverse the order of {}", lambda v: list(v)[::-1]),
    ("sort-numbers", "sort {} from small to large", sorted),
    ("parity-filter", "keep only the odd numbers of {}", lambda v: [n for n in v if n % 2] or None),
)
_SUM_ENDS: tuple[Step, ...] = (
    ("sum", "add up the numbers of {}", sum),
    ("kth-number", "copy the first number of {}", lambda v: v[0]),
    ("last-number", "copy the last number of {}", lambda v: v[-1]),
    ("largest", "copy the largest number of {}", max),
    ("join-with", "write the numbers of {} with + between and no spaces", lambda v: "+".join(map(str, v))),
    ("largest-plus-smallest", "add the largest and the smallest number of {}", lambda v: max(v) + min(v)),
)
_VERB_STEPS: tuple[Step, ...] = (
    ("past-tense", "put {} into the simple past", lambda v: v[2]),
    ("ing-form", "give the -ing form of {}", lambda v: v[4]),
    ("third-person-form", "give the third person singular present of {}", lambda v: v[1]),
    ("past-participle", "give the past participle of {}", lambda v: v[3]),
)
_NOUN_STEPS: tuple[Step, ...] = (
    ("plural", "give the plural of {}", lambda v: v[1]),
    ("article", "put a or an before {}", lambda v: f"{'an' if v[0][0] in 'aeiou' else 'a'} {v[0]}"),
)
_COUNTRY_STEPS: tuple[Step, ...] = (
    ("capital", "name the capital of {}", lambda v: v[1]),
    ("nationality", "give the adjective of nationality of {}", lambda v: v[3]),
    ("continent-name", "name the continent of {} (North and South America apart)", lambda v: v[2]),
)
_RECORD_STEPS: tuple[Step, ...] = (
    ("full-name", "copy the name of the person in {}", lambda v: v["name"]),
    ("city", "copy the city of the person in {}", lambda v: v["city"]),
    ("job", "copy the job of the person in {}", lambda v: v["job"]),
)
_PLAIN_ENDS: tuple[Step, ...] = (
    ("upper", "write {} in upper case", str.upper),
    ("reverse-letters", "spell {} backwards with all its characters", lambda v: v[::-1]),
    ("surround", "put * before and after {}, without spaces", lambda v: f"*{v}*"),
    ("remove-vowels", "remove the letters a, e, i, o, u (small or capital) from {}", lambda v: re.sub("[aeiouAEIOU]", "", v).strip()),
    ("count-letters", "count the letters of {} without spaces, in digits", lambda v: len(v.replace(" ", ""))),
    ("truncate-letters", "cut {} after its first three characters", lambda v: v[:3].strip()),
    ("repeat-text", "write {} twice with a comma and a space between", lambda v: f"{v}, {v}"),
)  # fmt: skip


def two_steps(name: str, pools: str, first: Sequence[Step], second: Sequence[Step]) -> Family:
    """A family of tasks that do one step after another."""

    def draw(rng: Random) -> Goal:
        (one, text, change), (two, then, finish) = rng.choice(first), rng.choice(second)
        a, b = text.format("{x}"), then.format("the result")
        do = (f"{a}, then {b}", f"first {a}; then {b}", f"{a} and after that {b}", f"do two things: {a}; {b}", f"{a}. After that, {b}")  # fmt: skip
        give = (f"the final result of two steps: {a}; {b}", f"what you get if you {a} and then {b}")

        def answer(item: Any) -> str | None:
            between = change(item.value)
            return as_text(finish(between)) if between else None

        return Goal(pool=rng.choice(pools.split()), do=do, give=give, answer=answer, key=f"{text} / {then}", uses=(one, two))  # fmt: skip

    return Family(name, "two steps", draw)


COMPOSITIONS = (
    two_steps("two-word-steps", "word", _WORD_STEPS, _WORD_STEPS),
    two_steps("word-then-form", "word", _WORD_STEPS, _WORD_ENDS),
    two_steps("two-phrase-steps", "phrase", _PHRASE_STEPS, _PHRASE_STEPS),
    two_steps("phrase-then-form", "phrase", _PHRASE_STEPS, _PHRASE_ENDS),
    two_steps("two-number-steps", "small", _NUMBER_STEPS, _NUMBER_STEPS),
    two_steps("number-then-digits", "small", _NUMBER_STEPS, _NUMBER_ENDS),
    two_steps("list-then-item", "words", _LIST_STEPS, _LIST_ENDS),
    two_steps("numbers-then-one", "numbers", _SUM_STEPS, _SUM_ENDS),
    two_steps("verb-then-form", "verb", _VERB_STEPS, _PLAIN_ENDS),
    two_steps("noun-then-form", "noun", _NOUN_STEPS, _PLAIN_ENDS),
    two_steps("capital-then-form", "country", _COUNTRY_STEPS, _PLAIN_ENDS),
    two_steps("field-then-form", "intro csv", _RECORD_STEPS, _PLAIN_ENDS),
)

_GROUPS = (
    STRINGS,
    LETTERS,
    LISTS,
    NUMBER_LISTS,
    NUMBERS,
    DATES,
    FORMS,
    SENTENCES,
    EXTRACTION,
    CLASSIFICATION,
    KNOWLEDGE,
)
_ALL = {made.name: made for group in (*_GROUPS, QUESTIONS) for made in group}
#: Families with short answers in letters.
_LETTERED = tuple(
    _ALL[name]
    for name in words("""
last-item first-item longest-word shortest-word alphabetically-first plural past-tense ing-form comparative antonym adverb
full-name city job product customer appointment-day folder extension winner most-stocked sentiment department topic emotion
spam register politeness sentence-type language country-or-city kind-of-thing capital nationality young-animal usual-colour
even-odd tense odd-one-out last-word
""")
)
#: Families with short answers that an output format can be put on.
_SHORT = _LETTERED + tuple(
    _ALL[name]
    for name in words("""
word-initials count-letter count-vowels kth-letter sum largest smallest second-largest kth-number count-digits digit-sum add
subtract multiply larger next-in-sequence calculate age order-number phone mail-domain appointment-time room url-path
json-value look-up urgency intent element-symbol translate-noun translate-word remove-vowels reverse-letters next-month
story-total answer-question verb-base
""")
)
#: Families whose inputs are short enough to be copied before the answer.
_COPIED = tuple(
    _ALL[name]
    for name in words("""
plural past-tense ing-form comparative antonym adverb capital nationality young-animal usual-colour element-symbol
translate-noun translate-word digit-sum add multiply even-odd kth-letter count-vowels kind-of-thing country-or-city
""")
)


def formatted(
    name: str, bases: Sequence[Family], change: Callable[..., str | None], note: str, **parameters: Sequence[Any]
) -> Family:
    """A family that asks for answers of other families in another form.

    Args:
        name: Its name.
        bases: Families with short answers, of which a task takes one.
        change: Called with the input, the plain answer and the parameters by name.
        note: Sentences that ask for the form, separated by ``|``.
        parameters: As in ``family``.
    """

    def draw(rng: Random) -> Goal:
        base = rng.choice(bases)
        values = {key: rng.choice(list(several)) for key, several in parameters.items()}
        tails = phrases(note, values)
        goal = base.draw(rng)
        return constrained(goal, base.name, lambda text, plain: change(text, plain, **values), tails, str(values))

    return Family(name, "output formats", draw)


_KEYS = ("answer", "result", "output", "value", "label", "a", "reply", "out", "response", "x")

FORMATS = (
    formatted("as-json", _SHORT, lambda _, a, k: json.dumps({k: a}, ensure_ascii=False),
        'Answer with a JSON object that has the single key "{k}" and the answer as a string.|Format: JSON, one key "{k}", value as a string.|Put the answer as a string into a JSON object under the key "{k}".',
        k=_KEYS),
    formatted("in-quotes", _SHORT, lambda _, a: f'"{a}"',
        'Put the answer in double quotes.|Enclose the answer in double quotation marks (").|The answer must stand between double quotes.'),
    formatted("in-single-quotes", _SHORT, lambda _, a: f"'{a}'" if "'" not in a else None,
        "Put the answer in single quotes.|Enclose the answer in single quotation marks (').|The answer must stand between single quotes."),
    formatted("in-brackets", _SHORT, lambda _, a, b: f"{b[0]}{a}{b[1]}",
        "Put the answer between {b}, without spaces.|Enclose the answer in these brackets, without spaces: {b}.|The answer must stand inside {b}, with no spaces added.",
        b=("()", "[]", "<>", "{}")),
    formatted("after-prefix", _SHORT, lambda _, a, p: f"{p} {a}",
        'Start with "{p}" and a space, then the answer.|Write "{p}" before the answer, with a space between.|The reply begins with "{p}", then a space, then the answer.',
        p=("Answer:", "Result:", "->", "A:", "Output =", "It is", "Final answer:", "=>", ">>", "Reply:")),
    formatted("before-suffix", _SHORT, lambda _, a, p: f"{a}{p}",
        'Write "{p}" directly after the answer.|End the reply with "{p}", attached to the answer.|The answer is followed at once by "{p}".',
        p=("!", "?", ".", "!!", ";", "...", " END", " ok")),
    formatted("answer-upper", _LETTERED, lambda _, a: a.upper() if a != a.upper() else None,
        "Write the answer in capital letters.|The answer must be in upper case.|Answer in all caps."),
    formatted("answer-reversed", _LETTERED, lambda _, a: a[::-1] if len(a) < 9 else None,
        "Write the answer backwards, last character first.|Spell the answer in reverse.|The answer must be spelled from its last character to its first."),
    formatted("as-bullet", _SHORT, lambda _, a, b: f"{b} {a}",
        'Write the answer as a bullet point that starts with "{b}" and a space.|The reply is a list with one item: "{b}", a space, the answer.|Format the answer as a list item with "{b}" and a space in front.',
        b=("-", "*", "+", "1.", "•")),
    formatted("in-tags", _SHORT, lambda _, a, t: f"<{t}>{a}</{t}>",
        "Put the answer between <{t}> and </{t}>.|Wrap the answer in the tag {t}, as in <{t}>...</{t}>.|The reply opens with <{t}>, closes with </{t}> and holds only the answer.",
        t=("b", "i", "ans", "out", "p", "em", "code")),
    formatted("arrow-form", _COPIED, lambda x, a, s: f"{x}{s}{a}",
        'Always reply in the form input{s}answer.|Copy the input, then write "{s}" and the answer, with the spaces as shown.|Use the form X{s}Y, with the input for X and the answer for Y.',
        s=(" -> ", " = ", ": ", " | ", " => ")),
    formatted("twice", _SHORT, lambda _, a, s: f"{a}{s}{a}",
        'Write the answer twice with "{s}" between, spaces as shown.|Repeat the answer once, after "{s}" with its spaces.|Give the answer two times, separated by "{s}" exactly as quoted.',
        s=(" / ", ", ", " and ", " - ")),
    formatted("key-value", _SHORT, lambda _, a, k, s: f"{k}{s}{a}",
        "Reply in the form {k}{s}answer, with nothing else.|Write {k}{s} and directly after it the answer.|The reply starts with {k}{s}, and the answer follows at once.",
        k=_KEYS, s=("=", ":", "/", "::")),
    formatted("in-a-sentence", _SHORT, lambda _, a, t: t.replace("_", a),
        'Put the answer into the gap of "{t}".|Reply with "{t}", where the answer stands for the underscore.|Copy "{t}" and replace the underscore by the answer.',
        t=("The answer is _.", "I say _.", "It must be _!", "Well, _ it is.", "My answer: _, of course.")),
)  # fmt: skip

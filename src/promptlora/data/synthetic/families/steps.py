"""Tasks of two consecutive steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from promptlora.data.synthetic.family import Family, Goal, as_text

Step = tuple[str, str, Callable[[Any], Any]]

#: Steps by input type: the request, the request as a second step ("it"), and the function.
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
    """A family of tasks with two consecutive steps."""

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

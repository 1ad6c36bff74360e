"""Conditional answers, and questions of which only some are to be answered."""

from __future__ import annotations

import re
from functools import partial
from random import Random
from typing import Any

from promptlora.data.synthetic.family import Family, Goal, family

_i = partial(family, "conditions")
_s = partial(family, "rules for questions")
_COMMAS = "Separate list items with commas.|Use commas between items."


def digit_runs(text: str) -> list[int]:
    """The numbers in a text."""
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
    """A family that answers or refuses questions, depending on their topic."""

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

"""Answers of the generator, worked out again from prompt and input alone: read back, or computed in another way."""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable
from decimal import Decimal

import pytest

from promptlora.data.synthetic import make_tasks
from promptlora.data.synthetic.families import FAMILIES

UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

Check = Callable[[str, str, str], bool]


def from_words(text: str) -> int:
    total, group = 0, 0
    for word in re.split(r"[ -]", text):
        if word in UNITS:
            group += UNITS.index(word)
        elif word in TENS:
            group += 10 * (TENS.index(word) + 2)
        elif word == "hundred":
            group *= 100
        else:
            assert word == "thousand"
            total, group = total + group * 1000, 0
    return total + group


def from_roman(text: str) -> int:
    values = [ROMAN[c] for c in text]
    return sum(-v if v < max(values[at:]) else v for at, v in enumerate(values))


def items(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def integers(text: str) -> list[int]:
    return [int(part) for part in items(text)]


def number_in(prompt: str) -> int:
    found = set(re.findall(r"\d+", prompt))
    assert len(found) == 1, prompt
    return int(found.pop())


def place_in(prompt: str) -> int:
    word = re.search(r"\b(first|second|third|fourth|fifth)\b", prompt)
    return ORDINALS[word[1]] if word else number_in(prompt)


def quoted(prompt: str, at: int = 0) -> str:
    return re.findall(r'"([^"]+)"', prompt)[at]


def a_date(text: str) -> datetime.date:
    if "-" in text:
        return datetime.date.fromisoformat(text)
    day, month, year = text.split()
    return datetime.date(int(year), MONTHS.index(month[:3]) + 1, int(day))


def minutes(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


def text(function: Callable[[str], object]) -> Check:
    """A check by a function of the input alone."""
    return lambda prompt, given, answer: str(function(given)) == answer


def listed(function: Callable[[list[int]], object]) -> Check:
    """A check by a function of a list of numbers, with a number or a list as its value."""

    def check(prompt: str, given: str, answer: str) -> bool:
        value = function(integers(given))
        return value == (integers(answer) if isinstance(value, list) else int(answer))

    return check


def told(function: Callable[[str, str], object]) -> Check:
    """A check by a function of prompt and input."""
    return lambda prompt, given, answer: str(function(prompt, given)) == answer


def weekday(given: str) -> str:
    count, _, way, name = given.split()
    day = datetime.date(2024, 1, 1) + datetime.timedelta(WEEKDAYS.index(name))  # a Monday
    return f"{day + datetime.timedelta(int(count) * (1 if way == 'after' else -1)):%A}"


def calculated(given: str) -> int:
    first, sign, second = given.split()
    return int(first) * int(second) if sign == "*" else int(first) + int(sign + second)


def gap_filled(prompt: str, given: str, answer: str) -> bool:
    left, right = given.replace("?", answer).split(" = ")
    return calculated(left) == int(right)


def a_table(given: str) -> dict[str, int]:
    rows = re.split(r"\n|; ", given)
    return {
        name: int(value) for name, value in (re.split(r" \| |: ", row) for row in rows if re.search(r" \| |: ", row))
    }


CHECKS: dict[str, Check] = {
    "upper": lambda p, x, a: a.lower() == x.lower() and not any(c.islower() for c in a),
    "lower": lambda p, x, a: a.upper() == x.upper() and not any(c.isupper() for c in a),
    "title-case": lambda p, x, a: a.lower() == x and all(w[0].isupper() for w in a.split()),
    "swap-case": lambda p, x, a: all(c.lower() == d.lower() and (c != d or not c.isalpha()) for c, d in zip(x, a, strict=True)),
    "reverse-letters": lambda p, x, a: all(a[-1 - at] == c for at, c in enumerate(x)),
    "reverse-words": lambda p, x, a: list(reversed(a.split())) == x.split(),
    "reverse-each-word": lambda p, x, a: [w[::-1] for w in a.split()] == x.split(),
    "remove-vowels": text(lambda x: "".join(c for c in x if c not in "aeiou").strip()),
    "remove-spaces": text(lambda x: "".join(x.split())),
    "duplicate-words": lambda p, x, a: a.split()[::2] == a.split()[1::2] == x.split(),
    "snake-case": lambda p, x, a: a.split("_") == x.lower().split(),
    "kebab-case": lambda p, x, a: a.split("-") == x.lower().split(),
    "camel-case": lambda p, x, a: re.sub("([A-Z])", r" \1", a).lower() == x.lower() and a[0].islower(),
    "pascal-case": lambda p, x, a: re.sub("([A-Z])", r" \1", a).lower().strip() == x.lower() and a[0].isupper(),
    "constant-case": lambda p, x, a: a.replace("_", " ").lower() == x.lower() and a.isupper(),
    "acronym": lambda p, x, a: len(a) == len(x.split()) and all(w.lower().startswith(c.lower()) for c, w in zip(a, x.split(), strict=True)),
    "first-words": told(lambda p, x: " ".join(x.split()[: number_in(p)])),
    "last-words": told(lambda p, x: " ".join(x.split()[-number_in(p) :])),
    "double-letters": lambda p, x, a: a[::2] == a[1::2] == x,
    "truncate-letters": told(lambda p, x: x[: number_in(p)]),
    "last-letters": told(lambda p, x: x[-number_in(p) :]),
    "add-prefix": told(lambda p, x: f"{quoted(p)} {x}"),
    "add-suffix": told(lambda p, x: f"{x} {quoted(p)}"),
    "surround": told(lambda p, x: quoted(p) + x + quoted(p)),
    "replace-spaces": told(lambda p, x: quoted(p).join(x.split(" "))),
    "last-name-first": lambda p, x, a: " ".join(reversed(a.split(", "))) == x,
    "initials": lambda p, x, a: [part[0] for part in x.split()] == a.replace(".", " ").split(),
    "kth-letter": told(lambda p, x: x[place_in(p) - 1]),
    "count-vowels": text(lambda x: len(re.findall("[aeiou]", x))),
    "count-consonants": text(lambda x: len(re.findall("[^aeiou]", x))),
    "count-letters": text(lambda x: len(re.findall("[a-zA-Z]", x))),
    "vowels-only": lambda p, x, a: re.sub("[^aeiou]", "", x) == a,
    "consonants-only": lambda p, x, a: re.sub("[aeiou]", "", x) == a,
    "letters-sorted": lambda p, x, a: sorted(a) == sorted(x) and all(b <= c for b, c in itertools.pairwise(a)),
    "letter-numbers": lambda p, x, a: "".join(chr(96 + int(n)) for n in a.split("-")) == x,
    "letter-pairs": lambda p, x, a: a.replace(" ", "") == x and {len(part) for part in a.split()[:-1]} <= {2},
    "letters-shifted": told(lambda p, x: "".join(chr((ord(c) - 97 + number_in(p)) % 26 + 97) for c in x)),
    "first-item": lambda p, x, a: x.startswith(f"{a},"),
    "last-item": lambda p, x, a: x.endswith(f", {a}"),
    "kth-item": told(lambda p, x: items(x)[place_in(p) - 1]),
    "count-items": text(lambda x: x.count(",") + 1),
    "longest-word": lambda p, x, a: a in items(x) and all(len(a) > len(w) for w in items(x) if w != a),
    "shortest-word": lambda p, x, a: a in items(x) and all(len(a) < len(w) for w in items(x) if w != a),
    "sort-words": lambda p, x, a: set(items(a)) == set(items(x)) and all(b < c for b, c in zip(items(a), items(a)[1:], strict=False)),
    "sort-words-down": lambda p, x, a: set(items(a)) == set(items(x)) and all(b > c for b, c in zip(items(a), items(a)[1:], strict=False)),
    "reverse-list": lambda p, x, a: items(a)[::-1] == items(x),
    "dedupe": lambda p, x, a: len(set(items(a))) == len(items(a)) and [w for at, w in enumerate(items(x)) if w not in items(x)[:at]] == items(a),
    "count-distinct": text(lambda x: len(set(items(x)))),
    "most-frequent": lambda p, x, a: all(items(x).count(a) > items(x).count(w) for w in set(items(x)) - {a}),
    "swap-ends": lambda p, x, a: items(a)[0] == items(x)[-1] and items(a)[-1] == items(x)[0] and items(a)[1:-1] == items(x)[1:-1],
    "in-both": lambda p, x, a: {w for w in items(x.split(" / ")[0]) if w in items(x.split(" / ")[1])} == set(items(a)),
    "only-in-first": lambda p, x, a: set(items(x.split(" / ")[0])) - set(items(x.split(" / ")[1])) == set(items(a)),
    "lengths": lambda p, x, a: [len(w) for w in items(x)] == integers(a),
    "list-initials": lambda p, x, a: [w[0] for w in items(x)] == list(a),
    "sum": listed(lambda v: functools.reduce(lambda b, c: b + c, v)),
    "largest": listed(lambda v: sorted(v)[-1]),
    "smallest": listed(lambda v: sorted(v)[0]),
    "second-largest": listed(lambda v: max(set(v) - {max(v)})),
    "range": listed(lambda v: sorted(v)[-1] - sorted(v)[0]),
    "sort-numbers": listed(sorted),
    "sort-numbers-down": listed(lambda v: sorted(v)[::-1]),
    "median": lambda p, x, a: sum(n < int(a) for n in integers(x)) == sum(n > int(a) for n in integers(x)),
    "add-to-each": lambda p, x, a: {b - c for b, c in zip(integers(a), integers(x), strict=True)} == {number_in(p)},
    "multiply-each": lambda p, x, a: all(b == c * number_in(p) for b, c in zip(integers(a), integers(x), strict=True)),
    "above": lambda p, x, a: [n for n in integers(x) if n > number_in(p)] == integers(a),
    "below": lambda p, x, a: [n for n in integers(x) if n < number_in(p)] == integers(a),
    "running-total": lambda p, x, a: [b - c for b, c in zip(integers(a), [0, *integers(a)], strict=False)] == integers(x),
    "place-of-largest": lambda p, x, a: integers(x)[int(a) - 1] == max(integers(x)),
    "number-to-words": lambda p, x, a: from_words(a) == int(x),
    "words-to-number": text(from_words),
    "to-roman": lambda p, x, a: from_roman(a) == int(x),
    "from-roman": text(from_roman),
    "binary": lambda p, x, a: int(a, 2) == int(x),
    "from-binary": text(lambda x: sum(2**at for at, c in enumerate(reversed(x)) if c == "1")),
    "to-hex": lambda p, x, a: int(a, 16) == int(x),
    "thousands": lambda p, x, a: re.sub(r"\D", "", a) == x and all(len(part) == 3 for part in re.split(r"\D", a)[1:]),
    "decimal-to-percent": lambda p, x, a: Decimal(a.rstrip("%")) / 100 == Decimal(x),
    "percent-to-decimal": lambda p, x, a: Decimal(a) * 100 == Decimal(x.rstrip("%")),
    "scientific": lambda p, x, a: Decimal(a) == Decimal(x),
    "digit-sum": text(lambda x: sum(x.count(d) * int(d) for d in "123456789")),
    "count-digits": text(len),
    "reverse-digits": lambda p, x, a: a[::-1] == x,
    "round-to": lambda p, x, a: int(a) % number_in(p) == 0 and 2 * abs(int(a) - int(x)) < number_in(p),
    "add": lambda p, x, a: (int(a) - from_any(x)) == number_in(p),
    "subtract": lambda p, x, a: int(x) - int(a) == number_in(p),
    "multiply": lambda p, x, a: int(a) / number_in(p) == int(x),
    "square": lambda p, x, a: int(a) ** 0.5 == int(x),
    "remainder": lambda p, x, a: (int(x) - int(a)) % number_in(p) == 0 and int(a) < number_in(p),
    "calculate": text(calculated),
    "fill-gap": gap_filled,
    "next-in-sequence": lambda p, x, a: int(a) - integers(x)[-1] == integers(x)[1] - integers(x)[0],
    "larger": lambda p, x, a: int(a) == max(int(n) for n in x.split(" and ")),
    "calculate-words": lambda p, x, a: calculated(" ".join(str(from_words(w)) if w not in ("plus", "minus") else {"plus": "+", "minus": "-"}[w] for w in re.split(r" (plus|minus) ", x))) == int(a),
    "date-to-words": lambda p, x, a: a_date(a) == a_date(x),
    "date-to-iso": lambda p, x, a: a_date(a) == a_date(x) and a[4] == "-",
    "date-to-us": lambda p, x, a: datetime.datetime.strptime(a, "%m/%d/%Y").date() == a_date(x),
    "date-with-dots": lambda p, x, a: datetime.datetime.strptime(a, "%d.%m.%Y").date() == a_date(x),
    "days-later": lambda p, x, a: (a_date(a) - a_date(x)).days == int(re.search(r"(\d+) days", p)[1]),
    "days-between": lambda p, x, a: int(a) == max((a_date(x[:10]) - a_date(x[-10:])).days, (a_date(x[-10:]) - a_date(x[:10])).days),
    "weekday-shift": text(weekday),
    "days-in-month": lambda p, x, a: (a_date(x).replace(day=int(a)) + datetime.timedelta(1)).day == 1,
    "time-to-12": lambda p, x, a: datetime.datetime.strptime(a, "%I:%M %p").strftime("%H:%M") == x,
    "time-to-24": lambda p, x, a: datetime.datetime.strptime(x, "%I:%M %p").strftime("%H:%M") == a,
    "minutes-later": lambda p, x, a: (minutes(a) - minutes(x)) % 1440 == int(re.search(r"(\d+) minutes", p)[1]),
    "period-length": lambda p, x, a: minutes(x[:5]) + int(a) == minutes(x[6:]),
    "in-cents": lambda p, x, a: Decimal(x[1:]) * 100 == int(a),
    "change": lambda p, x, a: Decimal(a[1:]) + Decimal(x[1:]) == 100,
    "half-price": lambda p, x, a: Decimal(a[1:]) * 2 == Decimal(x[1:]),
    "celsius": lambda p, x, a: (int(a) - 32) * 5 == int(x) * 9,
    "mail-address": lambda p, x, a: re.search(r"\S+@[\w.]+\w", x)[0] == a,
    "phone": lambda p, x, a: re.search(r"\d{3}-\d{4}", x)[0] == a,
    "order-number": lambda p, x, a: re.search(r"\b\d{5}\b", x)[0] == a,
    "order-date": lambda p, x, a: re.search(r"\d{4}-\d\d-\d\d", x)[0] == a,
    "unit-price": lambda p, x, a: Decimal(a[1:]) * int(re.search(r"(\d) x", x)[1]) == Decimal(re.search(r"\$([\d.]+\d)", x)[1]),
    "json-value": lambda p, x, a: str(json.loads(x)[quoted(p)]) == a,
    "json-keys": lambda p, x, a: list(json.loads(x)) == items(a),
    "file-name": text(lambda x: x.rsplit("/", 1)[1]),
    "extension": text(lambda x: x.rsplit(".", 1)[1]),
    "next-patch": lambda p, x, a: a.rsplit(".", 1)[0] == x.rsplit(".", 1)[0] and int(a.rsplit(".", 1)[1]) == int(x.rsplit(".", 1)[1]) + 1,
    "look-up": lambda p, x, a: f"{x.split(chr(10))[1]}: {a}" in re.split(r"; |\n", x),
    "winner": lambda p, x, a: all(a_table(x)[a] >= n for n in a_table(x).values()),
    "total-stock": lambda p, x, a: int(a) == sum(int(n) for n in re.findall(r"\d+", x)),
    "third-person-form": lambda p, x, a: a.startswith(x[:2]) and a.endswith("s"),
    "ing-form": lambda p, x, a: a.startswith(x[:-1]) and a.endswith("ing"),
    "plural": lambda p, x, a: a == x or a[0] == x[0] or (x, a) == ("ox", "oxen"),
    "article": lambda p, x, a: a == ("an " if x[0] in "aeiou" else "a ") + x,
    "negate": lambda p, x, a: "does not" in a and len(a.split()) == len(x.split()) + 2,
    "present-to-future": lambda p, x, a: "will" in a.split() and len(a.split()) == len(x.split()) + 1,
    "as-json": lambda p, x, a: len(json.loads(a)) == 1 and set(json.loads(a)) == {key for key in json.loads(a) if f'"{key}"' in p},
    "in-quotes": lambda p, x, a: a[0] == a[-1] == '"' and '"' not in a[1:-1],
    "answer-upper": lambda p, x, a: a == a.upper() != a.lower(),
    "after-prefix": lambda p, x, a: any(a.startswith(f"{text} ") for text in re.findall(r'"([^"]+)"', p)),
    "twice": lambda p, x, a: any(len(set(a.split(sign))) == 1 and len(a.split(sign)) == 2 for sign in re.findall(r'"([^"]+)"', p)),
}  # fmt: skip


def from_any(given: str) -> int:
    return int(given) if given.isdigit() else from_words(given)


def test_a_good_share_of_families_is_checked():
    assert set(CHECKS) <= {family.name for family in FAMILIES}
    assert len(CHECKS) > 120


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_answers_are_right(name):
    for task in make_tasks(3, rows=24, seed=17, only=name):
        for row in task.rows:
            assert CHECKS[name](task.wordings[0], row.input, row.output), (task.wordings[0], row.input, row.output)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_checks_refuse_wrong_answers(name):
    """A check that holds for the answer to another input says nothing."""
    task = next(make_tasks(1, rows=24, seed=17, only=name))
    wrong = [
        (row, other.output) for row, other in zip(task.rows, task.rows[1:], strict=False) if row.output != other.output
    ]
    refused = 0
    for row, answer in wrong:
        try:
            refused += not CHECKS[name](task.wordings[0], row.input, answer)
        except (ValueError, KeyError, IndexError):  # not even of the right form
            refused += 1
    assert refused > 0.6 * len(wrong) or name in _FORMS, (refused, len(wrong))


#: Checks of the form of an answer, which do not look at the input.
_FORMS = {"as-json", "in-quotes", "answer-upper", "after-prefix", "twice"}


# Labels of one task in the prompt decide: what is asked is read from the prompt, and compared with the answer.
_TRUTHS: dict[str, Callable[[str, str], bool]] = {
    "even-odd-relabelled": lambda x, condition: (int(x) % 2 == 0) == ("even" in condition),
    "palindrome-relabelled": lambda x, condition: (x == x[::-1]) == ("not" not in condition),
    "is-question-relabelled": lambda x, condition: x.endswith("?") == ("not" not in condition),
    "sign-relabelled": lambda x, condition: x.startswith("-") == ("below" in condition),
    "leap-year-relabelled": lambda x, condition: (int(x) % 4 == 0 and int(x) % 400 not in (100, 200, 300)) == ("not" not in condition),
    "noun-number-relabelled": lambda x, condition: ((x[-1] == "s" and x not in ("glass", "dress", "class", "bus")) or x in ("men", "women", "feet", "teeth", "geese", "mice", "people", "children", "oxen")) == ("plural" in condition.split()[-1]),
    "secure-address-relabelled": lambda x, condition: x.startswith("https:") == ("not" not in condition),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_TRUTHS))
def test_labels_mean_what_the_prompt_says(name):
    read = 0
    for task in make_tasks(5, rows=24, seed=23, only=name):
        for prompt in task.wordings:
            found = re.search(r"right label \((\S+): ([^;]+); (\S+): ([^)]+)\)", prompt)
            if not found:
                continue
            read += 1
            conditions = {found[1]: found[2], found[3]: found[4]}
            for row in task.rows:
                assert _TRUTHS[name](row.input, conditions[row.output]), (prompt, row)
    assert read >= 3

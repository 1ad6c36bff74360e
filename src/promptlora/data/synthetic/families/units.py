"""Units of measure and money."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

from promptlora.data.synthetic.family import NUMBER_ONLY, Family, Goal, choice, family
from promptlora.data.synthetic.pools_numbers import UNITS, in_words, money

_u = partial(family, "units")
_m = partial(family, "money")

#: The larger unit, the smaller unit, and how many smaller units make one larger unit.
_PAIRS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("centimetres", "millimetres", 10), ("kilograms", "grams", 1000),
    ("tonnes", "kilograms", 1000), ("litres", "millilitres", 1000), ("minutes", "seconds", 60), ("hours", "minutes", 60), ("days", "hours", 24),
    ("weeks", "days", 7), ("years", "months", 12), ("dozens", "single eggs", 12), ("feet", "inches", 12), ("yards", "feet", 3),
    ("kilobytes of 1000 bytes", "bytes", 1000), ("bytes", "bits", 8), ("euros", "cents", 100), ("gallons", "quarts", 4), ("pounds", "ounces", 16),
)  # fmt: skip
_NAMES = {unit: UNITS[unit][0] for unit in UNITS}
_SMALLER = {"km": "m", "m": "cm", "cm": "mm", "kg": "g", "t": "kg", "l": "ml", "cl": "ml", "min": "s", "h": "min"}


def fahrenheit(celsius: int) -> int | None:
    """Degrees Fahrenheit, if they are a whole number."""
    return celsius * 9 // 5 + 32 if celsius % 5 == 0 else None


def smaller(v: tuple[int, str]) -> str | None:
    """A quantity in the next smaller unit."""
    number, unit = v
    if unit not in _SMALLER:
        return None
    return f"{number * UNITS[unit][2] // UNITS[_SMALLER[unit]][2]} {_SMALLER[unit]}"


def in_smallest(v: tuple[int, str]) -> int:
    """A quantity in the smallest unit of its kind."""
    return v[0] * UNITS[v[1]][2]


def shown(v: tuple[int, str]) -> str:
    """A quantity as text."""
    return f"{v[0]} {v[1]}"


def _to_smaller(rng: Random) -> Goal:
    large, small, factor = rng.choice(_PAIRS)
    do = f"read {{x}} as {large} and convert it to {small}|convert {{x}} from {large} to {small}|If {{x}} counts {large}, how many {small} is that?"
    give = f"{{x}}, read as {large}, expressed in {small}|the number of {small} that equal {{x}}, read as {large}"

    def answer(v: int) -> int:
        return v * factor

    goal = family("units", large, "small", answer, do, give, NUMBER_ONLY).draw(rng)
    return replace(goal, key=f"{large} {small}")


UNIT_FAMILIES = (
    Family("to-smaller-unit", "units", _to_smaller),
    _u("quantity-to-smaller", "measure", smaller,
        "convert {x} to the next smaller unit: km to m, m to cm, cm to mm, t to kg, kg to g, l or cl to ml, h to min, min to s|write {x} in the next smaller of the units km, m, cm, mm; t, kg, g; l, ml; cl, ml; h, min, s",
        "{x} in the next smaller unit (km to m, m to cm, cm to mm, t to kg, kg to g, l or cl to ml, h to min, min to s), with the unit"),
    _u("unit-of", "measure", 1,
        "copy the unit of {x}|Which unit does {x} use?",
        "the unit of {x} as it is written"),
    _u("unit-name", "measure", lambda v: f"{v[0]} {_NAMES[v[1]]}",
        "write out the unit of {x}, as in 5 metres|replace the abbreviation in {x} by the full name of the unit in the plural, with the ending -tres for metres and litres",
        "{x} with the unit written out in the plural, as in 5 metres"),
    _u("value-of", "measure", 0,
        "copy the number of {x} without the unit|How many units does {x} have?",
        "the number of {x} without its unit"),
    _u("double-quantity", "measure", lambda v, k: f"{v[0] * k} {v[1]}",
        "multiply {x} by {k} and keep the unit|give {k} times {x}, with its unit",
        "{k} times {x}, with the unit", k=(2, 3, 10)),
    _u("hyphened-quantity", "measure", lambda v, s: f"{v[0]}{s}{v[1]}",
        'write "{s}" instead of the space of {x}|join number and unit of {x} with "{s}"',
        '{x} with "{s}" for the space', s=("-", "_", "/", ".")),
    _u("larger-quantity", "measures", lambda v: shown(max(v, key=in_smallest)),
        "copy the larger quantity of {x}|Which of the two quantities is greater?",
        "the larger of the two quantities"),
    _u("smaller-quantity", "measures", lambda v: shown(min(v, key=in_smallest)),
        "copy the smaller quantity of {x}|Which of the two quantities is less?",
        "the smaller of the two quantities"),
    _u("celsius", "signed small", fahrenheit,
        "read {x} as degrees Celsius and convert it to Fahrenheit, number only|convert {x} from Celsius to Fahrenheit: times 9, divided by 5, plus 32",
        "{x}, read as degrees Celsius, in Fahrenheit, as a bare number"),
    _u("minutes-and-seconds", "number", lambda v: f"{v // 60} min {v % 60} s" if 60 < v < 3600 else None,
        "read {x} as seconds and write minutes and seconds, as in 2 min 5 s|take {x} as seconds and split it into minutes and seconds in the form 2 min 5 s",
        "{x}, read as seconds, in the form 2 min 5 s"),
    _u("hours-and-minutes", "number small", lambda v: f"{v // 60}:{v % 60:02d}" if v < 1440 else None,
        "read {x} as minutes and write hours and minutes, as in 1:05|take {x} as minutes and split it into hours:minutes with two digits for the minutes",
        "{x}, read as minutes, in the form hours:minutes, as in 1:05"),
    _u("with-unit", "small number", lambda v, unit: f"{v} {unit}",
        'add the unit "{unit}" to {x} after a space|write {x}, a space and "{unit}"',
        '{x} followed by a space and the unit "{unit}"', unit=tuple(_NAMES)),
    _m("in-cents", "price", lambda v: v,
        "convert {x} to cents|How many cents is {x}?",
        "{x} in cents, as a bare number", NUMBER_ONLY),
    _m("whole-dollars", "price", lambda v: v // 100,
        "copy the whole dollars of {x} and drop the cents|How many full dollars are in {x}?",
        "the dollars of {x} without the cents", NUMBER_ONLY),
    _m("price-in-words", "price", lambda v: f"{v // 100} dollars and {v % 100} cents" if v > 199 and v % 100 > 1 else None,
        "write {x} in the form 3 dollars and 20 cents|spell {x} with the words dollars and cents, numbers in digits",
        "{x} in the form 3 dollars and 20 cents"),
    _m("other-currency", "price", lambda v, sign: money(v, sign),
        "replace the dollar sign of {x} by {sign}, same amount, no space|write {x} with {sign} instead of $, no space, and do not convert",
        "the amount of {x} with {sign} directly in place of $, not converted", sign=("€", "£", "¥", "EUR", "USD", "CHF", "₹")),
    _m("price-comma", "price", lambda v, s: f"{v // 100},{v % 100:02d}{s}",
        'write {x} with a decimal comma and "{s}" at the end instead of $ in front|turn {x} into the form 12,50{s}',
        'the amount of {x} in the form 12,50{s}', s=(" €", " EUR", " USD", "€")),
    _m("nearest-dollar", "price", lambda v: f"${(v + 50) // 100}" if v % 100 != 50 else None,
        "round {x} to the nearest whole dollar|give {x} without cents, rounded to the nearest dollar",
        "{x} rounded to whole dollars, as in $13"),
    _m("price-of-several", "price", lambda v, k: money(v * k),
        "compute the price of {k} items that cost {x} each|multiply {x} by {k}",
        "the price of {k} items at {x} each, as in $12.50", k=(2, 3, 4, 10)),
    _m("price-plus", "price", lambda v, k: money(v + k * 100),
        "add ${k} to {x}|raise {x} by {k} dollars",
        "{x} plus ${k}, as in $12.50", k=(1, 2, 5, 10, 20)),
    _m("change", "price", lambda v: money(10000 - v),
        "compute the change from $100 for {x}|subtract {x} from $100",
        "the change when {x} is paid with $100, as in $12.50"),
    _m("half-price", "price", lambda v: money(v // 2) if v % 2 == 0 else None,
        "take 50% off {x}|halve {x}",
        "half of {x}, as in $12.50"),
    _m("as-dollars", "small number", lambda v: f"${v}.00",
        "write {x} as an amount in dollars with cents, as in $5.00|turn {x} into a price in dollars with two decimals and $ in front",
        "{x} as a dollar amount in the form $5.00"),
    _m("dollars-in-words", "small", lambda v: f"{in_words(v)} dollars",
        "write {x} as an amount of dollars in words|spell out {x} in English and add the word dollars",
        "{x} in words followed by the word dollars"),
    *choice("quantity questions", "kind-of-quantity", "measure", lambda v: UNITS[v[1]][1],
        {"length": "{x} is a length", "weight": "{x} is a weight", "volume": "{x} is a volume", "time": "{x} is a time"},
        "say what {x} measures|What does {x} measure?"),
    *choice("quantity questions", "first-is-more", "measures", lambda v: "first" if in_smallest(v[0]) > in_smallest(v[1]) else "second",
        {"first": "the first quantity is larger", "second": "the second quantity is larger"},
        "say which quantity is larger, the first or the second|Which of the two is more, the first or the second?"),
    *choice("quantity questions", "expensive", "price", lambda v, k: "expensive" if v > k * 100 else "cheap",
        {"expensive": "{x} is above ${k}", "cheap": "{x} is ${k} or less"},
        "call {x} expensive if it is above ${k}, else cheap|Is {x} expensive (above ${k}) or cheap?", k=(30, 40, 50, 60)),
)  # fmt: skip

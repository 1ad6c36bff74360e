"""Pools of numbers, calculations, dates, times and measures.

Each entry holds how a prompt refers to the input, how it first mentions the input, and the function that draws one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from random import Random

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.vocabulary import facts, people

Entry = tuple[str, str, Callable[[Random], Item]]

ROMAN = ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))  # fmt: skip
_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """A number from 0 to 9999 in words, without "and": two hundred five, forty-one."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = f" {in_words(number % size)}" if number % size else ""
    return f"{in_words(number // size)} {name}{rest}"


def roman(number: int) -> str:
    """A number in Roman numerals."""
    text = ""
    for value, letters in ROMAN:
        text += letters * (number // value)
        number %= value
    return text


def written_date(day: date) -> str:
    """Format a date as 5 March 2021."""
    return f"{day.day} {facts.MONTHS[day.month - 1]} {day.year}"


def clock(minutes: int) -> str:
    """Format minutes after midnight as 09:05."""
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def clock12(minutes: int) -> str:
    """Format minutes after midnight as 9:05 AM."""
    hour = minutes // 60 % 24
    return f"{(hour - 1) % 12 + 1}:{minutes % 60:02d} {'AM' if hour < 12 else 'PM'}"


def money(cents: int, sign: str = "$") -> str:
    """Format an amount as $12.50."""
    return f"{sign}{cents // 100}.{cents % 100:02d}"


def a_day(rng: Random) -> date:
    """Draw a day from 1980 to 2029."""
    return date(1980, 1, 1) + timedelta(days=rng.randrange(50 * 365))


def _number(low: int, high: int) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        digits = rng.randint(len(str(low)), len(str(high)))  # short numbers are as frequent as long ones
        number = rng.randint(max(low, 10 ** (digits - 1)), min(high, 10**digits - 1))
        return Item(str(number), number)

    return draw


def _numbers(rng: Random) -> Item:
    numbers = rng.sample(range(1, 60), rng.randint(3, 6))
    if rng.random() < 0.3:
        numbers.sort()
    return Item(", ".join(map(str, numbers)), tuple(numbers))


def _number_pair(rng: Random) -> Item:
    first, second = rng.sample(range(2, 99), 2)
    return Item(f"{first} and {second}", (first, second))


def _sum(rng: Random) -> Item:
    first, second, sign = rng.randint(2, 40), rng.randint(2, 20), rng.choice("+-*")
    if sign == "-" and second > first:
        first, second = second, first
    if sign == "*":
        first, second = first % 11 + 2, second % 9 + 2
    result = {"+": first + second, "-": first - second, "*": first * second}[sign]
    return Item(f"{first} {sign} {second}", {"first": first, "sign": sign, "second": second, "result": result})


def _sum_in_words(rng: Random) -> Item:
    first, second = rng.randint(1, 30), rng.randint(1, 19)
    if rng.random() < 0.5:
        return Item(f"{in_words(first)} plus {in_words(second)}", first + second)
    first, second = max(first, second), min(first, second)
    return Item(f"{in_words(first)} minus {in_words(second)}", first - second)


def _equation(rng: Random) -> Item:
    value = _sum(rng).value
    shown = value["result"] + (0 if rng.random() < 0.5 else rng.choice((-2, -1, 1, 2, 10)))
    text = f"{value['first']} {value['sign']} {value['second']} = {shown}"
    return Item(text, {**value, "true": "yes" if shown == value["result"] else "no"})


def _gap(rng: Random) -> Item:
    first, second = rng.randint(2, 40), rng.randint(2, 40)
    if rng.random() < 0.5:
        return Item(f"{first} + ? = {first + second}", second)
    return Item(f"? - {first} = {second}", first + second)


def _sequence(rng: Random) -> Item:
    start, step = rng.randint(1, 30), rng.choice((1, 2, 3, 4, 5, 6, 7, 10))
    shown = [start + step * at for at in range(rng.randint(4, 5))]
    return Item(", ".join(map(str, shown)), {"step": step, "next": shown[-1] + step, "shown": tuple(shown)})


def _story(rng: Random) -> Item:
    name, thing = rng.choice(people.FIRST), rng.choice(("apples", "coins", "books", "stamps", "marbles", "pens"))
    first, second = rng.randint(3, 30), rng.randint(2, 20)
    more = rng.random() < 0.5 or second >= first
    change = rng.choice(("finds", "buys", "gets")) if more else rng.choice(("loses", "sells", "gives away"))
    total = first + second if more else first - second
    text = f"{name} has {first} {thing} and {change} {second}."
    return Item(text, {"total": total, "name": name, "thing": thing, "grows": "yes" if more else "no"})


def _decimal(rng: Random) -> Item:
    hundredths = rng.randint(1, 99)
    return Item(f"0.{hundredths:02d}", hundredths)


def _percent(rng: Random) -> Item:
    number = rng.randint(1, 99)
    return Item(f"{number}%", number)


def _spelled(rng: Random) -> Item:
    number = _number(2, 999)(rng).value
    return Item(in_words(number), number)


def _scientific(rng: Random) -> Item:
    lead, power = rng.randint(1, 9), rng.randint(2, 7)
    tenth = rng.randint(1, 9)
    return Item(str((lead * 10 + tenth) * 10 ** (power - 1)), f"{lead}.{tenth}e{power}")


def _date_pair(rng: Random) -> Item:
    first = a_day(rng)
    second = first + timedelta(days=rng.choice((-1, 1)) * rng.randint(1, 28))
    return Item(f"{first} and {second}", (first, second))


def _weekday_shift(rng: Random) -> Item:
    day, shift = rng.randrange(7), rng.randint(1, 6)
    way = rng.choice(("after", "before"))
    there = (day + (shift if way == "after" else -shift)) % 7
    unit = "day" if shift == 1 else "days"
    return Item(
        f"{shift} {unit} {way} {facts.WEEKDAYS[day]}", {"day": facts.WEEKDAYS[there], "from": facts.WEEKDAYS[day]}
    )


def _time(text: Callable[[int], str]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        minutes = rng.randrange(24 * 12) * 5 if rng.random() < 0.5 else rng.randrange(24 * 60)
        return Item(text(minutes), minutes)

    return draw


def _time_pair(rng: Random) -> Item:
    start = rng.randrange(6 * 12, 18 * 12) * 5
    end = start + rng.randint(1, 30) * 5
    return Item(f"{clock(start)}-{clock(end)}", (start, end))


#: Unit: its name, the kind of quantity, and its size in the smallest unit of that kind.
UNITS = {
    "mm": ("millimetres", "length", 1),
    "cm": ("centimetres", "length", 10),
    "m": ("metres", "length", 1000),
    "km": ("kilometres", "length", 1_000_000),
    "g": ("grams", "weight", 1),
    "kg": ("kilograms", "weight", 1000),
    "t": ("tonnes", "weight", 1_000_000),
    "ml": ("millilitres", "volume", 1),
    "cl": ("centilitres", "volume", 10),
    "l": ("litres", "volume", 1000),
    "s": ("seconds", "time", 1),
    "min": ("minutes", "time", 60),
    "h": ("hours", "time", 3600),
}


def _measure(rng: Random) -> Item:
    unit, number = rng.choice(list(UNITS)), rng.randint(2, 60)
    return Item(f"{number} {unit}", (number, unit))


def _measure_pair(rng: Random) -> Item:
    kind = rng.choice(("length", "weight", "volume", "time"))
    first, second = rng.sample([unit for unit in UNITS if UNITS[unit][1] == kind], 2)
    a, b = rng.randint(2, 90), rng.randint(2, 90)
    if a * UNITS[first][2] == b * UNITS[second][2]:
        a += 1
    return Item(f"{a} {first}, {b} {second}", ((a, first), (b, second)))


def _price(rng: Random) -> Item:
    cents = rng.randint(1, 99) * 100 + rng.choice((0, 5, 10, 20, 25, 50, 75, 80, 95, 99))
    return Item(money(cents), cents)


def _date(text: Callable[[date], str]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        day = a_day(rng)
        return Item(text(day), day)

    return draw


def _roman(rng: Random) -> Item:
    number = _number(2, 399)(rng).value
    return Item(roman(number), number)


def _binary(rng: Random) -> Item:
    number = rng.randint(2, 63)
    return Item(f"{number:b}", number)


def _year(rng: Random) -> Item:
    year = rng.randint(1801, 2099)
    if rng.random() < 0.4:
        year -= year % 4
    return Item(str(year), year)


NUMBER_POOLS: dict[str, Entry] = {
    "number": ("the number", "a number", _number(10, 9999)),
    "small": ("the number", "a number", _number(2, 99)),
    "big": ("the number", "a large number", _number(1000, 9_999_999)),
    "signed": ("the number", "a positive or negative number", lambda rng: (lambda n: Item(str(n), n))(rng.choice((-1, -1, 1)) * rng.randint(1, 99))),
    "decimal": ("the number", "a number between 0 and 1", _decimal),
    "percent": ("the percentage", "a percentage", _percent),
    "spelled": ("the number", "a number in words", _spelled),
    "roman": ("the numeral", "a number in Roman numerals", _roman),
    "binary": ("the binary number", "a binary number", _binary),
    "large": ("the number", "a large number", _scientific),
    "numbers": ("the list", "a list of numbers separated by commas", _numbers),
    "number-pair": ("the pair", "two numbers", _number_pair),
    "sum": ("the calculation", "a calculation", _sum),
    "spoken-sum": ("the calculation", "a calculation in words", _sum_in_words),
    "equation": ("the equation", "an equation", _equation),
    "gap": ("the equation", "an equation with a gap", _gap),
    "sequence": ("the sequence", "a sequence of numbers", _sequence),
    "story": ("the story", "a story of one sentence", _story),
    "date": ("the date", "a date such as 2021-03-05", _date(str)),
    "written-date": ("the date", "a date such as 5 March 2021", _date(written_date)),
    "dates": ("the pair", "two dates", _date_pair),
    "weekday": ("the expression", "a description of a weekday", _weekday_shift),
    "year": ("the year", "a year", _year),
    "time": ("the time", "a time of day such as 14:05", _time(clock)),
    "time12": ("the time", "a time of day such as 2:05 PM", _time(clock12)),
    "times": ("the period", "a period of time such as 09:00-10:30", _time_pair),
    "measure": ("the quantity", "a quantity with its unit", _measure),
    "measures": ("the pair", "two quantities", _measure_pair),
    "price": ("the price", "a price in dollars", _price),
}  # fmt: skip

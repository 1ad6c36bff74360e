"""Pools of numbers, dates, times, measures and records (orders, log lines, CSV, JSON and so on).

Each entry: what a prompt calls the input, its first mention, and the function that draws one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from random import Random

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.vocabulary import facts, people, words

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
    """A date as 5 March 2021."""
    return f"{day.day} {facts.MONTHS[day.month - 1]} {day.year}"


def clock(minutes: int) -> str:
    """Minutes after midnight as 09:05."""
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def clock12(minutes: int) -> str:
    """Minutes after midnight as 9:05 AM."""
    hour = minutes // 60 % 24
    return f"{(hour - 1) % 12 + 1}:{minutes % 60:02d} {'AM' if hour < 12 else 'PM'}"


def money(cents: int, sign: str = "$") -> str:
    """An amount as $12.50."""
    return f"{sign}{cents // 100}.{cents % 100:02d}"


def _day(rng: Random) -> date:
    return date(1980, 1, 1) + timedelta(days=rng.randrange(50 * 365))


def _number(low: int, high: int) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        digits = rng.randint(len(str(low)), len(str(high)))  # as many short numbers as long ones
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
    first = _day(rng)
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


#: Unit: its name, the kind of quantity, and its size in the smallest unit of its kind.
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


def _person(rng: Random) -> dict[str, str]:
    first, last = rng.choice(people.FIRST), rng.choice(people.LAST)
    return {
        "name": f"{first} {last}",
        "first name": first,
        "last name": last,
        "age": str(rng.randint(19, 79)),
        "city": rng.choice(people.CITIES),
        "job": rng.choice(people.JOBS),
        "hobby": rng.choice(people.HOBBIES),
    }


def _intro(rng: Random) -> Item:
    p = _person(rng)
    article = "an" if p["job"][0] in "aeiou" else "a"
    shape = rng.choice(
        (
            "Hi, I am {name}, {age} years old. I work as {a} {job} in {city} and enjoy {hobby}.",
            "{name} ({age}) lives in {city}, is {a} {job} and likes {hobby}.",
            "My name is {name}. I am {a} {job} of {age} from {city}; my hobby is {hobby}.",
            "This is {name} from {city}: {a} {job}, aged {age}, who loves {hobby}.",
        )
    )
    return Item(shape.format(a=article, **{key: value for key, value in p.items() if " " not in key}), p)


def _csv(rng: Random) -> Item:
    p = _person(rng)
    return Item(",".join((p["name"], p["age"], p["city"], p["job"], p["hobby"])), p)


def _json(rng: Random) -> Item:
    p = _person(rng)
    keys = rng.sample(("name", "age", "city", "job"), 4)
    return Item(json.dumps({key: int(p[key]) if key == "age" else p[key] for key in keys}), {**p, "keys": tuple(keys)})


def _order(rng: Random) -> Item:
    number, count = rng.randint(10000, 99999), rng.randint(2, 9)
    product, name, day = rng.choice(people.PRODUCTS), f"{rng.choice(people.FIRST)} {rng.choice(people.LAST)}", _day(rng)
    cents = rng.randint(5, 90) * 100 * count
    shape = rng.choice(
        (
            "Order #{number}: {count} x {product} for {name}, total {total}, ships {day}.",
            "{name} ordered {count} x {product} on {day} (order {number}, {total}).",
            "Invoice for order {number}, {day}: {count} x {product}, {total}, customer {name}.",
        )
    )
    value = {"number": str(number), "count": count, "product": product, "name": name, "day": day, "cents": cents}
    return Item(shape.format(total=money(cents), **value), value)


def _contact(rng: Random) -> Item:
    first, last, site = rng.choice(people.FIRST), rng.choice(people.LAST), rng.choice(people.SITES)
    domain = f"{site}.{rng.choice(people.ENDINGS)}"
    user = rng.choice((first, f"{first}.{last}", f"{first[0]}{last}")).lower()
    phone = f"555-{rng.randint(1000, 9999)}"
    mail = f"{user}@{domain}"
    shape = rng.choice(
        (
            "Please write to {mail} or call {phone}. {first}",
            "{first} {last}, phone {phone}, mail {mail}",
            "You can reach {first} at {phone} or by mail: {mail}.",
            "Questions? Ask {first}: {mail}, tel. {phone}",
        )
    )
    value = {"mail": mail, "user": user, "domain": domain, "phone": phone, "first": first}
    return Item(shape.format(last=last, **value), value)


def _url(rng: Random) -> Item:
    scheme, sub = rng.choice(("http", "https")), rng.choice(("www", "shop", "blog", "docs"))
    domain, path = f"{rng.choice(people.SITES)}.{rng.choice(people.ENDINGS)}", rng.choice(words.PLAIN)
    query = rng.randint(1, 999)
    value = {"scheme": scheme, "sub": sub, "domain": domain, "path": path, "id": str(query)}
    return Item(f"{scheme}://{sub}.{domain}/{path}?id={query}", value)


_EVENTS = ("connection lost", "disk is full", "user logged in", "file saved", "cache cleared", "timeout reached", "job finished", "wrong password")  # fmt: skip


def _log(rng: Random) -> Item:
    level, part = (
        rng.choice(("INFO", "WARNING", "ERROR", "DEBUG")),
        rng.choice(("db", "web", "auth", "mail", "cron", "cache")),
    )
    day, minutes, event = _day(rng), rng.randrange(24 * 60), rng.choice(_EVENTS)
    value = {"level": level, "part": part, "day": str(day), "time": clock(minutes), "event": event}
    return Item(f"{day} {clock(minutes)} {level} {part}: {event}", value)


def _event(rng: Random) -> Item:
    day, minutes = rng.choice(facts.WEEKDAYS), rng.randrange(8 * 4, 19 * 4) * 15
    name, room = rng.choice(people.FIRST), rng.randint(1, 40)
    what = rng.choice(("Meeting", "Lunch", "Interview", "Call", "Workshop", "Training"))
    shape = rng.choice(
        (
            "{what} with {name} on {day} at {time} in room {room}",
            "{day}, {time}: {what} with {name}, room {room}",
            "Room {room} is booked for the {what} with {name} ({day} {time})",
        )
    )
    value = {"what": what, "name": name, "day": day, "time": clock(minutes), "room": str(room)}
    return Item(shape.format(**value), value)


def _tags(rng: Random) -> Item:
    tags = rng.sample(words.PLAIN, rng.randint(1, 3))
    text = rng.choice(("Great day", "Back home", "What a view", "Look at this", "So tired", "Fun times", "New photo"))
    text += rng.choice((" in ", " near ", " from ")) + rng.choice(people.CITIES)
    value = {"tags": tuple(f"#{tag}" for tag in tags), "text": text}
    return Item(f"{text} {' '.join(value['tags'])}", value)


def _path(rng: Random) -> Item:
    folder, stem = rng.choice(("docs", "photos", "music", "work", "backup", "notes")), rng.choice(words.PLAIN)
    user, ending = rng.choice(people.FIRST).lower(), rng.choice(("pdf", "txt", "jpg", "png", "csv", "zip", "mp3"))
    value = {"user": user, "folder": folder, "stem": stem, "ending": ending}
    return Item(f"/home/{user}/{folder}/{stem}.{ending}", value)


def _stock(rng: Random) -> Item:
    goods = rng.sample(facts.THINGS["fruit"] + facts.THINGS["vegetable"], rng.randint(3, 4))
    counts = rng.sample(range(1, 50), len(goods))
    stock = dict(zip(goods, counts, strict=True))
    return Item("; ".join(f"{thing}: {count}" for thing, count in stock.items()), stock)


def _look_up(rng: Random) -> Item:
    stock = _stock(rng)
    asked = rng.choice(list(stock.value))
    return Item(f"{stock.text}\n{asked}", {"stock": stock.value, "asked": asked})


def _scores(rng: Random) -> Item:
    names = rng.sample(people.FIRST, rng.randint(3, 4))
    points = rng.sample(range(2, 60), len(names))
    rows = dict(zip(names, points, strict=True))
    return Item("\n".join(f"{name} | {point}" for name, point in rows.items()), rows)


def _version(rng: Random) -> Item:
    numbers = (rng.randint(0, 9), rng.randint(0, 20), rng.randint(0, 20))
    return Item(f"v{numbers[0]}.{numbers[1]}.{numbers[2]}", numbers)


def _quiz(rng: Random) -> Item:
    """Questions of four topics with their answers."""
    topic = rng.choice(("fruit", "geography", "arithmetic", "animals"))
    if topic == "fruit":
        fruit = rng.choice(("banana", "lemon", "strawberry", "cherry", "apricot", "tangerine", "blueberry"))
        asked = rng.choice(
            ("What colour is a ripe {}?", "Tell me the colour of a ripe {}.", "Which colour does a ripe {} have?")
        )
        return Item(asked.format(fruit), {"topic": topic, "answer": facts.COLOURS[fruit]})
    if topic == "geography":
        row = rng.choice(facts.COUNTRIES)
        return Item(f"What is the capital of {row[0]}?", {"topic": topic, "answer": row[1]})
    if topic == "animals":
        animal = rng.choice(list(facts.YOUNG))
        return Item(f"What is a young {animal} called?", {"topic": topic, "answer": facts.YOUNG[animal]})
    first, second = rng.randint(2, 30), rng.randint(2, 30)
    return Item(f"What is {first} plus {second}?", {"topic": topic, "answer": str(first + second)})


def _date(text: Callable[[date], str]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        day = _day(rng)
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


DATA_POOLS: dict[str, Entry] = {
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
    "intro": ("the text", "a short text about a person", _intro),
    "csv": ("the line", "a CSV line with name, age, city, job and hobby", _csv),
    "json": ("the object", "a JSON object", _json),
    "order": ("the text", "a line about an order", _order),
    "contact": ("the text", "a text with contact details", _contact),
    "url": ("the address", "a web address", _url),
    "log": ("the line", "a log line", _log),
    "event": ("the entry", "a calendar entry", _event),
    "post": ("the post", "a post with hashtags", _tags),
    "path": ("the path", "the path of a file", _path),
    "stock": ("the stock list", "a stock list", _stock),
    "look-up": ("the input", "a stock list and, on the next line, one product", _look_up),
    "scores": ("the table", "a table of names and points", _scores),
    "version": ("the version", "a version number", _version),
    "quiz": ("the question", "a question", _quiz),
}  # fmt: skip

"""Pools of records: people, orders, log lines, CSV, JSON, tables, questions with answers.

Each entry holds how a prompt refers to the input, how it first mentions the input, and the function that draws one.
"""

from __future__ import annotations

import json
from random import Random

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.pools_numbers import Entry, a_day, clock, money
from promptlora.data.synthetic.vocabulary import facts, people, words


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
    product, name, day = (
        rng.choice(people.PRODUCTS),
        f"{rng.choice(people.FIRST)} {rng.choice(people.LAST)}",
        a_day(rng),
    )
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
    day, minutes, event = a_day(rng), rng.randrange(24 * 60), rng.choice(_EVENTS)
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
    """Questions on four topics with their answers."""
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


RECORD_POOLS: dict[str, Entry] = {
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

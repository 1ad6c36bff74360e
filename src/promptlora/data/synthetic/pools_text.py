"""Pools of words, phrases, sentences, reviews and other texts.

Each entry: what a prompt calls the input, its first mention, and the function that draws one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.vocabulary import facts, languages, people, texts, words

Entry = tuple[str, str, Callable[[Random], Item]]

_ADJECTIVES = tuple(row[0] for row in words.ADJECTIVES if " " not in row[1])
_NOUNS = tuple(words.PLURALS)
_FORMS = {row[0]: row[1:] for row in words.VERBS}
PALINDROMES = ["level", "radar", "civic", "kayak", "rotor", "madam", "refer", "stats", "tenor", "solos", "noon", "deed", "peep", "toot", "sagas", "minim", "rotator", "racecar", "redder", "reviver", "tattoo", "deified"]  # fmt: skip


def _same(text: str) -> Item:
    return Item(text, text)


def fill_in(template: str, rng: Random) -> str:
    """Put names, cities and numbers into a template."""
    hour = f"{rng.randint(6, 11)}:{rng.choice(('00', '15', '30', '45'))}"
    return template.format(
        first=rng.choice(people.FIRST),
        last=rng.choice(people.LAST),
        city=rng.choice(people.CITIES),
        noun=rng.choice(("door", "box", "lamp", "chair", "window", "table", "kettle", "wallet")),
        hour=hour,
        number=rng.choice(("two", "three", "four", "five", "six", "seven")),
        n=rng.randint(3, 900),
    )


def labelled(options: Mapping[str, Sequence[str]], rng: Random) -> tuple[str, str]:
    """A label and one of its texts, filled in."""
    label = rng.choice(list(options))
    return label, fill_in(rng.choice(options[label]), rng)


def phrase(rng: Random) -> str:
    """Two to five plain words in lower case."""
    adjective, noun = rng.choice(_ADJECTIVES), rng.choice(words.PLAIN)
    other, adverb = rng.choice(words.PLAIN), rng.choice(list(words.ADVERBS.values()))
    verb = rng.choice(words.VERBS)
    return rng.choice(
        (
            f"{adjective} {noun}",
            f"{adjective} {noun} {other}",
            f"the {adjective} {noun}",
            f"{verb[0]} the {noun} {adverb}",
            f"a {noun} near the {other}",
            f"{noun} {other} {rng.choice(words.PLAIN)}",
            f"{adjective} {noun} and {other}",
            f"my {adjective} {noun} {verb[2]} {adverb}",
        )
    )


def _action(rng: Random) -> dict[str, str]:
    """A sentence in the third person: its words, in the present tense and without the full stop."""
    subject, pronoun = rng.choice(texts.SUBJECTS)
    base, objects = rng.choice(texts.ACTIONS)
    third, past, participle, ing = _FORMS[base]
    thing = rng.choice(objects.split(", "))
    place = rng.choice(texts.PLACES) if rng.random() < 0.5 else ""
    return {
        "subject": subject,
        "pronoun": pronoun,
        "base": base,
        "third": third,
        "past": past,
        "participle": participle,
        "ing": ing,
        "object": thing,
        "place": f" {place}" if place else "",
    }


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def in_tense(parts: Mapping[str, str], tense: str) -> str:
    """The sentence of an action in a tense: present, past, future or progressive."""
    verb = {
        "present": parts["third"],
        "past": parts["past"],
        "future": f"will {parts['base']}",
        "progressive": f"is {parts['ing']}",
    }[tense]
    return capital(f"{parts['subject']} {verb} {parts['object']}{parts['place']}.")


def _present(rng: Random) -> Item:
    parts = _action(rng)
    return Item(in_tense(parts, "present"), parts)


def _tensed(rng: Random) -> Item:
    parts = _action(rng)
    tense = rng.choice(("present", "past", "future"))
    return Item(in_tense(parts, tense), {**parts, "tense": tense})


def _voiced(rng: Random) -> Item:
    parts = _action(rng)
    voice = rng.choice(("active", "passive"))
    be = "were" if parts["object"].endswith(("dishes", "tickets")) else "was"
    text = in_tense(parts, "past")
    if voice == "passive":
        text = capital(f"{parts['object']} {be} {parts['participle']} by {parts['subject']}{parts['place']}.")
    return Item(text, voice)


def _state(rng: Random) -> Item:
    """A sentence with is or was: subject, verb, adjective."""
    subject = rng.choice([row[0] for row in texts.SUBJECTS] + [f"the {noun}" for noun in _NOUNS[:60]])
    verb = rng.choice(("is", "was", "can be", "will be"))
    adjective = rng.choice(_ADJECTIVES)
    value = {"subject": subject, "verb": verb, "rest": adjective}
    return Item(capital(f"{subject} {verb} {adjective}."), value)


def _person_sentence(rng: Random) -> Item:
    """A sentence in the first person: "I clean the car."."""
    parts = _action(rng)
    return Item(f"I {parts['base']} {parts['object']}{parts['place']}.", parts)


def _spoken(rng: Random) -> Item:
    first = rng.choice(("I", "You", "We", "They", "He", "She"))
    third = first in ("He", "She")
    forms = _action(rng)
    person = {"I": "first", "We": "first", "You": "second"}.get(first, "third")
    verb = forms["third"] if third else forms["base"]
    return Item(f"{first} {verb} {forms['object']}{forms['place']}.", {"person": person, "word": first, **forms})


def _sentence(rng: Random) -> Item:
    kind = rng.random()
    if kind < 0.4:
        return _same(_tensed(rng).text)
    if kind < 0.7:
        return _same(_state(rng).text)
    name, city, noun = rng.choice(people.FIRST), rng.choice(people.CITIES), rng.choice(_NOUNS)
    return _same(
        rng.choice(
            (
                f"Yes, {name} bought a new {noun} in {city}!",
                f"{name}, the {noun} is here.",
                f"We saw {name} near the {noun} in {city}.",
                f"Well, {city} is a busy place.",
                f"Is the {noun} from {city}?",
                f"{name} and {rng.choice(people.FIRST)} like the {noun}.",
            )
        )
    )


def _title(rng: Random) -> Item:
    adjective, noun, other = rng.choice(_ADJECTIVES), rng.choice(words.PLAIN), rng.choice(words.PLAIN)
    text = rng.choice((f"the {adjective} {noun}", f"{noun} {other}", f"{adjective} {noun} {other}", f"my {noun}"))
    return _same(text.title())


def _mixed(rng: Random) -> Item:
    """Half of them hold one or two numbers."""
    if rng.random() < 0.5:
        return _same(phrase(rng))
    noun, other, n, m = rng.choice(_NOUNS), rng.choice(words.PLAIN), rng.randint(2, 60), rng.randint(2, 40)
    plural = words.PLURALS[noun]
    return _same(rng.choice((f"{n} {plural} and {m} boxes", f"room {n} near {other}", f"{other} {n} {other} {m}")))


def _palindrome(rng: Random) -> Item:
    word = rng.choice(PALINDROMES) if rng.random() < 0.5 else rng.choice([w for w in words.PLAIN if len(w) < 8])
    return _same(word)


def _word_pair(rng: Random) -> Item:
    first, second = rng.sample(words.PLAIN, 2)
    if rng.random() < 0.4:  # the letters of the first in another order
        letters = list(first)
        rng.shuffle(letters)
        second = "".join(letters)
    return Item(f"{first}, {second}", (first, second))


def _word_list(rng: Random) -> Item:
    chosen = tuple(rng.sample(words.PLAIN, rng.randint(3, 6)))
    return Item(", ".join(chosen), chosen)


def _repeated_list(rng: Random) -> Item:
    kinds = rng.sample(words.PLAIN, rng.randint(2, 4))
    chosen = [*kinds, *(rng.choice(kinds) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))]
    rng.shuffle(chosen)
    return Item(", ".join(chosen), tuple(chosen))


def _kinds_list(rng: Random) -> Item:
    """Things of one kind and one of another."""
    first, second = rng.sample(list(facts.THINGS), 2)
    chosen = rng.sample(facts.THINGS[first], rng.randint(3, 4))
    odd = rng.choice(facts.THINGS[second])
    chosen.insert(rng.randrange(len(chosen) + 1), odd)
    return Item(", ".join(chosen), {"words": tuple(chosen), "odd": odd, "kind": first, "odd kind": second})


def _two_lists(rng: Random) -> Item:
    pool = rng.sample(words.PLAIN, 6)
    common = pool[: rng.randint(1, 2)]
    first, second = [*common, *pool[2:4]], [*common, *pool[4:6]]
    rng.shuffle(first)
    rng.shuffle(second)
    return Item(f"{', '.join(first)} / {', '.join(second)}", (tuple(first), tuple(second)))


def _thing(rng: Random) -> Item:
    kind = rng.choice(list(facts.THINGS))
    word = rng.choice(facts.THINGS[kind])
    return Item(word, {"word": word, "kind": kind})


def _size_pair(rng: Random) -> Item:
    first, second = sorted(rng.sample(range(len(facts.SIZES)), 2))
    if second - first < 3:
        first, second = (first, first + 3) if first + 3 < len(facts.SIZES) else (second - 3, second)
    small, large = facts.SIZES[first], facts.SIZES[second]
    shown = [small, large]
    rng.shuffle(shown)
    return Item(f"{shown[0]}, {shown[1]}", {"small": small, "large": large, "first": shown[0]})


def _review(rng: Random) -> Item:
    product = rng.choice(people.PRODUCTS)
    mood = rng.choice(("positive", "negative", "neutral", "positive", "negative"))
    said = rng.choice({"positive": texts.POSITIVE, "negative": texts.NEGATIVE, "neutral": texts.NEUTRAL}[mood])
    stars = {"positive": rng.choice((4, 5)), "neutral": 3, "negative": rng.choice((1, 2))}[mood]
    shape = rng.choice(("The {p}: {s}.", "{S}. (the {p})", "About the {p}: {s}.", "My new {p}... {s}."))
    text = shape.format(p=product, s=said, S=capital(said))
    return Item(text, {"mood": mood, "product": product, "stars": stars})


def _ticket(rng: Random) -> Item:
    team, said = labelled(texts.TICKETS, rng)
    urgent = rng.random() < 0.5
    name = rng.choice(people.FIRST)
    haste = rng.choice(texts.URGENT if urgent else texts.CALM)
    text = f"{capital(said)}. {haste} {name}"
    return Item(text, {"team": team, "urgent": "yes" if urgent else "no", "name": name})


def _labelled_pool(options: Mapping[str, Sequence[str]]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        label, text = labelled(options, rng)
        if text[:1].islower():
            text = f"{capital(text)}."
        return Item(text, label)

    return draw


def _feeling(rng: Random) -> Item:
    """A message in a chat: who says it, and what."""
    label, text = labelled(texts.EMOTIONS, rng)
    return Item(f"{rng.choice(people.FIRST)}: {text}", label)


def _row_pool(rows: Sequence[Any], text: Callable[[Any], str]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        row = rng.choice(rows)
        return Item(text(row), row)

    return draw


def _contraction(rng: Random, full: bool) -> Item:
    long, short = rng.choice(list(words.CONTRACTIONS.items()))
    rest = rng.choice(("in the garden", "at home", "with us", "here now", "on time", "near the river", "at the party"))
    if long.endswith(("not", "cannot")):
        starts = {"is": "he", "was": "she", "has": "it", "does": "he", "are": "we", "were": "they"}
        subject = starts.get(long.split()[0], "they")
    else:
        subject = ""
    verb = "" if long.split()[0] in ("is", "was", "are", "were") or long.endswith((" am", " are")) else " be"
    if long.startswith(("have", "has", "had")) or long.endswith("have"):
        verb = " been"
    if long.startswith(("do ", "does", "did")):
        verb = " work"
    before = f"{subject} " if subject else ""
    value = {"full": f"{before}{long}{verb} {rest}", "short": f"{before}{short}{verb} {rest}"}
    return Item(value["full" if full else "short"], value)


def _noun_form(rng: Random) -> Item:
    one, many = rng.choice([row for row in words.PLURALS.items() if row[0] != row[1]])
    form = rng.choice(("singular", "plural"))
    return Item(one if form == "singular" else many, form)


def _part_of_speech(rng: Random) -> Item:
    kind = rng.choice(("noun", "verb", "adjective"))
    if kind == "noun":
        word = rng.choice([n for n in facts.THINGS["furniture"] + facts.THINGS["clothing"] + facts.THINGS["fruit"] if n not in ("dress", "stool", "plum")])  # fmt: skip
    elif kind == "verb":
        word = rng.choice(["arrive", "bring", "choose", "become", "forget", "teach", "learn", "begin", "sing", "write", "speak", "eat", "carry", "bake", "invite", "send", "sell", "know", "grow", "think", "build", "lose", "keep", "meet", "find"])  # fmt: skip
    else:
        word = rng.choice(["happy", "sad", "tall", "heavy", "wise", "brave", "famous", "careful", "dirty", "angry", "hungry", "lucky", "noisy", "busy", "expensive", "dangerous", "beautiful", "difficult", "thick", "strange", "ugly", "useful", "strong", "old", "young"])  # fmt: skip
    return Item(word, kind)


_CAPITALS = [(row[1], row[0]) for row in facts.COUNTRIES if row[1] not in ("Panama City", "Mexico City")]


def _place(rng: Random) -> Item:
    kind = rng.choice(("country", "city"))
    row = rng.choice(facts.COUNTRIES)
    return Item(row[0] if kind == "country" else row[1], kind)


TEXT_POOLS: dict[str, Entry] = {
    "word": ("the word", "a word", lambda rng: _same(rng.choice(words.PLAIN))),
    "phrase": ("the text", "a short text", lambda rng: _same(phrase(rng))),
    "title": ("the title", "a title", _title),
    "sentence": ("the sentence", "a sentence", _sentence),
    "name": ("the name", "the name of a person", lambda rng: _same(f"{rng.choice(people.FIRST)} {rng.choice(people.LAST)}")),
    "mixed": ("the text", "a text with or without numbers", _mixed),
    "palindrome": ("the word", "a word", _palindrome),
    "word-pair": ("the pair", "two words separated by a comma", _word_pair),
    "words": ("the list", "a list of words separated by commas", _word_list),
    "repeated-words": ("the list", "a list of words, some more than once", _repeated_list),
    "things": ("the list", "a list of things separated by commas", _kinds_list),
    "two-lists": ("the input", "two lists of words separated by a slash", _two_lists),
    "thing": ("the word", "a word", _thing),
    "sizes": ("the pair", "two animals", _size_pair),
    "review": ("the review", "a product review", _review),
    "ticket": ("the ticket", "a message from a customer", _ticket),
    "headline": ("the headline", "a headline", _labelled_pool(texts.HEADLINES)),
    "feeling": ("the message", "a message in a chat", _feeling),
    "request": ("the request", "what a user says to an assistant", _labelled_pool(texts.INTENTS)),
    "mail": ("the mail", "the text of a mail", _labelled_pool({"spam": texts.SPAM, "ham": texts.HAM})),
    "register": ("the message", "a message", _labelled_pool({"formal": texts.FORMAL, "informal": texts.CASUAL})),
    "manners": ("the remark", "a remark", _labelled_pool({"polite": texts.POLITE, "rude": texts.RUDE})),
    "utterance": ("the sentence", "a sentence", _labelled_pool({"question": texts.QUESTIONS, "statement": texts.STATEMENTS, "command": texts.COMMANDS})),
    "foreign": ("the sentence", "a sentence in some language", _labelled_pool(texts.FOREIGN)),
    "present": ("the sentence", "a sentence in the present tense", _present),
    "tensed": ("the sentence", "a sentence", _tensed),
    "voice": ("the sentence", "a sentence", _voiced),
    "state": ("the sentence", "a sentence", _state),
    "first-person": ("the sentence", "a sentence that starts with I", _person_sentence),
    "spoken": ("the sentence", "a sentence", _spoken),
    "long-form": ("the text", "a short text", lambda rng: _contraction(rng, True)),
    "short-form": ("the text", "a text with a contraction", lambda rng: _contraction(rng, False)),
    "noun": ("the noun", "a noun in the singular", _row_pool(list(words.PLURALS.items()), lambda row: str(row[0]))),
    "plural": ("the noun", "a noun in the plural", _row_pool(list(words.PLURALS.items()), lambda row: str(row[1]))),
    "noun-form": ("the noun", "a noun", _noun_form),
    "verb": ("the verb", "a verb", _row_pool(words.VERBS, lambda row: str(row[0]))),
    "past-verb": ("the verb", "a verb in the past tense", _row_pool(words.VERBS, lambda row: str(row[2]))),
    "ing-verb": ("the verb", "a verb that ends in -ing", _row_pool(words.VERBS, lambda row: str(row[4]))),
    "agent": ("the verb", "a verb", _row_pool(list(words.AGENTS.items()), lambda row: str(row[0]))),
    "adjective": ("the adjective", "an adjective", _row_pool(words.ADJECTIVES, lambda row: str(row[0]))),
    "comparative": ("the word", "a comparative", _row_pool(words.ADJECTIVES, lambda row: str(row[1]))),
    "opposite": ("the word", "a word", _row_pool(list(words.ANTONYMS.items()), lambda row: str(row[0]))),
    "manner": ("the adjective", "an adjective", _row_pool(list(words.ADVERBS.items()), lambda row: str(row[0]))),
    "quality": ("the adjective", "an adjective", _row_pool(list(words.NESS.items()), lambda row: str(row[0]))),
    "negatable": ("the word", "a word", _row_pool(list(words.NEGATED.items()), lambda row: str(row[0]))),
    "part-of-speech": ("the word", "a word", _part_of_speech),
    "country": ("the country", "the name of a country", _row_pool(facts.COUNTRIES, lambda row: str(row[0]))),
    "capital": ("the city", "the name of a capital city", _row_pool(_CAPITALS, lambda row: str(row[0]))),
    "place": ("the place", "the name of a place", _place),
    "currency": ("the country", "the name of a country", _row_pool(list(facts.CURRENCIES.items()), lambda row: str(row[0]))),
    "parent": ("the animal", "an animal", _row_pool(list(facts.YOUNG.items()), lambda row: str(row[0]))),
    "sounding": ("the animal", "an animal", _row_pool(list(facts.SOUNDS.items()), lambda row: str(row[0]))),
    "dweller": ("the animal", "an animal", _row_pool(list(facts.HOMES.items()), lambda row: str(row[0]))),
    "coloured": ("the thing", "the name of a thing", _row_pool(list(facts.COLOURS.items()), lambda row: str(row[0]))),
    "element": ("the element", "a chemical element", _row_pool(list(facts.ELEMENTS.items()), lambda row: str(row[0]))),
    "symbol": ("the symbol", "the symbol of a chemical element", _row_pool(list(facts.ELEMENTS.items()), lambda row: str(row[1]))),
    "us-state": ("the state", "a state of the USA", _row_pool(list(facts.STATES.items()), lambda row: str(row[0]))),
    "us-code": ("the code", "the two-letter code of a state of the USA", _row_pool(list(facts.STATES.items()), lambda row: str(row[1]))),
    "worker": ("the job", "a job", _row_pool(list(facts.WORKPLACES.items()), lambda row: str(row[0]))),
    "goods": ("the product", "a product", _row_pool(list(facts.SHOPS.items()), lambda row: str(row[0]))),
    "letter": ("the letters", "one or two letters", lambda rng: _same("".join(rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.choice((1, 2, 2))))))  ,
    "english-noun": ("the word", "an English noun", _row_pool(languages.NOUNS, lambda row: str(row[0]))),
    "english-word": ("the word", "an English word", _row_pool(languages.COLOURS + languages.DAYS + languages.MONTHS, lambda row: str(row[0]))),
    "english-phrase": ("the phrase", "an English phrase", _row_pool(languages.PHRASES, lambda row: str(row[0]))),
}  # fmt: skip

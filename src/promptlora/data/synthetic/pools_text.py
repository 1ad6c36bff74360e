"""Pools of phrases, sentences, reviews, messages and other texts.

Each entry holds how a prompt refers to the input, how it first mentions the input, and the function that draws one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.vocabulary import people, texts, words

Entry = tuple[str, str, Callable[[Random], Item]]

_ADJECTIVES = tuple(row[0] for row in words.ADJECTIVES if " " not in row[1])
_NOUNS = tuple(words.PLURALS)
_FORMS = {row[0]: row[1:] for row in words.VERBS}


def same(text: str) -> Item:
    """An input whose value is the text itself."""
    return Item(text, text)


def fill_in(template: str, rng: Random) -> str:
    """Insert names, cities and numbers into a template."""
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
    """Draw a label and one of its texts, with the template filled in."""
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
    """The parts of a sentence in the third person, in the present tense and without the full stop."""
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
    """The text with its first letter capitalised."""
    return text[:1].upper() + text[1:]


def finished(text: str) -> str:
    """The text as a sentence, with a capital first letter and, unless it has one, a question mark or full stop."""
    if text.endswith((".", "!", "?")):
        return capital(text)
    asks = text.split()[0] in ("how", "where", "why", "can", "do", "is", "when", "which", "what", "will")
    return f"{capital(text)}{'?' if asks else '.'}"


def in_tense(parts: Mapping[str, str], tense: str) -> str:
    """The sentence of an action in the given tense: present, past, future or progressive."""
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
    """A sentence with "is" or "was": subject, verb, adjective."""
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
        return same(_tensed(rng).text)
    if kind < 0.7:
        return same(_state(rng).text)
    name, city, noun = rng.choice(people.FIRST), rng.choice(people.CITIES), rng.choice(_NOUNS)
    return same(
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
    return same(text.title())


def _mixed(rng: Random) -> Item:
    """A sentence; half of them contain one or two numbers."""
    if rng.random() < 0.5:
        return same(phrase(rng))
    noun, other, n, m = rng.choice(_NOUNS), rng.choice(words.PLAIN), rng.randint(2, 60), rng.randint(2, 40)
    plural = words.PLURALS[noun]
    return same(rng.choice((f"{n} {plural} and {m} boxes", f"room {n} near {other}", f"{other} {n} {other} {m}")))


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
    text = f"{finished(said)} {haste} {name}"
    return Item(text, {"team": team, "urgent": "yes" if urgent else "no", "name": name})


def _labelled_pool(options: Mapping[str, Sequence[str]]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        label, text = labelled(options, rng)
        if text[:1].islower():
            text = finished(text)
        return Item(text, label)

    return draw


def _feeling(rng: Random) -> Item:
    """A chat message: the speaker and the text."""
    label, text = labelled(texts.EMOTIONS, rng)
    return Item(f"{rng.choice(people.FIRST)}: {text}", label)


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


TEXT_POOLS: dict[str, Entry] = {
    "phrase": ("the text", "a short text", lambda rng: same(phrase(rng))),
    "title": ("the title", "a title", _title),
    "sentence": ("the sentence", "a sentence", _sentence),
    "name": ("the name", "the name of a person", lambda rng: same(f"{rng.choice(people.FIRST)} {rng.choice(people.LAST)}")),
    "mixed": ("the text", "a text with or without numbers", _mixed),
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
}  # fmt: skip

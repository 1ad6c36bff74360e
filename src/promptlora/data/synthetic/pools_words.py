"""Pools of words, word lists and names of things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.pools_text import Entry, same
from promptlora.data.synthetic.vocabulary import facts, languages, words

PALINDROMES = ["level", "radar", "civic", "kayak", "rotor", "madam", "refer", "stats", "tenor", "solos", "noon", "deed", "peep", "toot", "sagas", "minim", "rotator", "racecar", "redder", "reviver", "tattoo", "deified"]  # fmt: skip


def _palindrome(rng: Random) -> Item:
    word = rng.choice(PALINDROMES) if rng.random() < 0.5 else rng.choice([w for w in words.PLAIN if len(w) < 8])
    return same(word)


def _word_pair(rng: Random) -> Item:
    first, second = rng.sample(words.PLAIN, 2)
    if rng.random() < 0.4:  # the letters of the first word in another order
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
    """Things of one kind, and one of another kind."""
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


def _row_pool(rows: Sequence[Any], text: Callable[[Any], str]) -> Callable[[Random], Item]:
    def draw(rng: Random) -> Item:
        row = rng.choice(rows)
        return Item(text(row), row)

    return draw


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


WORD_POOLS: dict[str, Entry] = {
    "word": ("the word", "a word", lambda rng: same(rng.choice(words.PLAIN))),
    "palindrome": ("the word", "a word", _palindrome),
    "word-pair": ("the pair", "two words separated by a comma", _word_pair),
    "words": ("the list", "a list of words separated by commas", _word_list),
    "repeated-words": ("the list", "a list of words, some more than once", _repeated_list),
    "things": ("the list", "a list of things separated by commas", _kinds_list),
    "two-lists": ("the input", "two lists of words separated by a slash", _two_lists),
    "thing": ("the word", "a word", _thing),
    "sizes": ("the pair", "two animals", _size_pair),
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
    "letter": ("the letters", "one or two letters", lambda rng: same("".join(rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.choice((1, 2, 2))))))  ,
    "english-noun": ("the word", "an English noun", _row_pool(languages.NOUNS, lambda row: str(row[0]))),
    "english-word": ("the word", "an English word", _row_pool(languages.COLOURS + languages.DAYS + languages.MONTHS, lambda row: str(row[0]))),
    "english-phrase": ("the phrase", "an English phrase", _row_pool(languages.PHRASES, lambda row: str(row[0]))),
}  # fmt: skip

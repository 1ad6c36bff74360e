"""Facts from the small tables in the vocabulary, and translations of its word lists."""

from __future__ import annotations

from functools import partial

from promptlora.data.synthetic.family import choice, family
from promptlora.data.synthetic.vocabulary import facts, languages
from promptlora.data.synthetic.vocabulary.languages import LANGUAGES, definite, indefinite, noun

_f = partial(family, "facts")
_t = partial(family, "translation")
_c = partial(choice, "facts with labels")
Cells = tuple[str, ...]
_LOWER = "Write it in lower case.|Use small letters."


def in_language(row: Cells, language: str) -> str:
    """The cell of a word table for a language."""
    return row[1 + LANGUAGES.index(language)]


def where(row: Cells, language: str) -> str:
    """A question that asks where the thing is."""
    thing = definite(*noun(row, language), language)
    if language == "Spanish":
        return f"¿Dónde está {thing}?"
    return {"French": f"Où est {thing} ?", "German": f"Wo ist {thing}?", "Italian": f"Dov'è {thing}?"}[language]


def it_is(row: Cells, language: str) -> str:
    """A statement of what kind of thing it is."""
    word, gender = noun(row, language)
    start = {"French": "C'est", "German": "Es ist", "Italian": "È", "Spanish": "Es"}[language]
    return f"{start} {indefinite(word, gender, language)}."


KNOWLEDGE = (
    _f("capital", "country", 1,
        "name the capital of {x}|What is the capital of {x}?",
        "the capital of {x}"),
    _f("country-of-capital", "capital", 1,
        "name the country that has {x} as its capital|Which country has {x} as its capital?",
        "the country whose capital is {x}"),
    _f("nationality", "country", 3,
        "give the adjective of nationality for {x}|What does one call something from {x}, in one adjective?",
        "the adjective that belongs to {x}, such as Swiss for Switzerland"),
    _f("country-code", "country", 4,
        "give the ISO code of {x} with two capital letters|What is the two-letter ISO code of {x}?",
        "the two-letter ISO code of {x} in capitals"),
    _f("continent-name", "country", 2,
        "name the continent of {x}|On which continent is {x}?",
        "the continent of {x}", "Choose from Europe, Asia, Africa, North America and South America.|Answers: Africa, Asia, Europe, North America, South America."),
    _f("capital-sentence", "country", lambda v, s: f"{v[1]} {s} {v[0]}",
        'write the capital of {x}, the words "{s}" and {x}|complete with the capital first: ... {s} {x}',
        'the capital, then "{s}", then {x}', s=("is in", "rules", "belongs to", "<-", "@")),
    _f("currency", "currency", 1,
        "name the currency of {x} in one word|What is the currency of {x} called, in one word?",
        "the currency of {x}, one word", _LOWER),
    _f("young-animal", "parent", 1,
        "name the young of {x}|What is a young {x} called?",
        "the word for the young of {x}"),
    _f("animal-sound", "sounding", 1,
        "give the English verb, in its base form, for the sound of {x}|name the verb for the noise that {x} makes, in its base form",
        "the base form of the verb for the sound of {x}"),
    _f("animal-home", "dweller", 1,
        "name the usual home of {x} in one word|Where does {x} live, in one word?",
        "the usual dwelling of {x}, one word"),
    _f("usual-colour", "coloured", 1,
        "name the usual colour of {x}|Which colour does {x} usually have?",
        "the usual colour of {x}", _LOWER),
    _f("coloured-phrase", "coloured", lambda v: f"{v[1]} {v[0]}",
        "put the usual colour of {x} before it|write the usual colour, then {x}",
        "{x} after its usual colour, in lower case"),
    _f("element-symbol", "element", 1,
        "give the chemical symbol of {x}|What is the chemical symbol of {x}?",
        "the chemical symbol of {x}"),
    _f("symbol-element", "symbol", 0,
        "name the element that {x} stands for|Which element has {x} as its symbol?",
        "the name of the element that {x} stands for", _LOWER),
    _f("us-state-code", "us-state", 1,
        "give the two-letter postal code of {x}|What is the postal abbreviation of {x}?",
        "the two-letter postal code of {x} in capitals"),
    _f("us-state-name", "us-code", 0,
        "name the state of the USA whose code is {x}|Which state does {x} stand for?",
        "the state that {x} stands for"),
    _f("workplace", "worker", 1,
        "name the usual place of work of {x}|Where does {x} usually work?",
        "the usual place of work of {x}, without an article"),
    _f("shop", "goods", 1,
        "name the kind of shop that sells {x}|In which kind of shop is {x} sold?",
        "the kind of shop for {x}", "Choose from bakery, pharmacy, bookshop, florist, butcher, shoe shop, jeweller, toy shop.|Shops: bakery, pharmacy, bookshop, florist, butcher, shoe shop, jeweller, toy shop."),
    _f("kind-word", "thing", "kind",
        "name the kind of thing that {x} is|What kind of thing is {x}?",
        "the kind of thing that {x} names", f"Choose from: {', '.join(facts.THINGS)}.|Kinds: {', '.join(facts.THINGS)}."),
    _f("kind-phrase", "thing", lambda v, s: f"{v['word']} {s} {v['kind']}",
        'write {x}, then "{s}" and its kind|put {x} and its kind together in the form word {s} kind',
        '{x}, "{s}" and its kind', f"Kinds: {', '.join(facts.THINGS)}.|Take the kind from: {', '.join(facts.THINGS)}.", s=("->", "is a kind of", ":", "=", "in group")),
    _f("larger-animal-name", "sizes", "large",
        "name the larger of the two animals|Which of the two animals is bigger?",
        "the larger of the two animals"),
    _f("smaller-animal-name", "sizes", "small",
        "name the smaller of the two animals|Which of the two animals is tinier?",
        "the smaller of the two animals"),
    _f("size-sentence", "sizes", lambda v: f"{v['large']} > {v['small']}",
        "write the larger animal, the sign > and the smaller one, with spaces|order the two animals by size with > between, larger first",
        "the two animals with > between, larger first"),
    _t("translate-noun", "english-noun", lambda v, lang: noun(v, lang)[0],
        "translate {x} into {lang}, without an article|What is {x} in {lang}, without an article?",
        "the {lang} word for {x}, without an article", lang=LANGUAGES),
    _t("translate-with-article", "english-noun", lambda v, lang: definite(*noun(v, lang), lang),
        "translate {x} into {lang} with its definite article in the singular|give the {lang} noun for {x} with the definite article (nominative)",
        "the {lang} for {x} with its definite article", lang=LANGUAGES),
    _t("translate-with-a", "english-noun", lambda v, lang: indefinite(*noun(v, lang), lang),
        "translate {x}, with a or an before it, into {lang}|give the {lang} noun for {x} with the indefinite article (nominative)",
        "the {lang} for {x} with its indefinite article", lang=LANGUAGES),
    _t("translate-word", "english-word", lambda v, lang: in_language(v, lang),
        "translate {x} into {lang}|What is {x} in {lang}?",
        "the {lang} word for {x}", lang=LANGUAGES),
    _t("translate-phrase", "english-phrase", lambda v, lang: in_language(v, lang),
        "translate {x} into {lang}, informal and without a full stop|say {x} in informal {lang}, with capitals only where {lang} demands them inside a sentence",
        "the {lang} for {x}, informal, without a full stop", lang=LANGUAGES),
    _t("where-is", "english-noun", lambda v, lang: where(v, lang),
        'ask in {lang} where {x} is, as in "Where is the ...?" with the verb to be|translate "Where is the ...?" into {lang}, with {x} in the gap',
        'the {lang} question "Where is the ...?" about {x}', lang=LANGUAGES),
    _t("it-is", "english-noun", lambda v, lang: it_is(v, lang),
        'say in {lang} that it is one of {x}, as in "It is a ..."|translate "It is a ..." into {lang}, with {x} in the gap',
        'the {lang} sentence "It is a ..." about {x}', lang=LANGUAGES),
    _t("number-word", "spelled small", lambda v, lang: languages.NUMBERS[lang][v - 1] if v < 21 else None,
        "write {x} in {lang} words|What is {x} in {lang}, in words?",
        "{x} in {lang} words", lang=LANGUAGES),
    _t("to-two-languages", "english-noun", lambda v, a, b: f"{noun(v, a)[0]}, {noun(v, b)[0]}" if a != b else None,
        "translate {x} into {a} and {b}, in this order, with a comma between|give the {a} word and the {b} word for {x}, without articles, separated by a comma",
        "the {a} and the {b} word for {x}, without articles, with a comma between", a=LANGUAGES, b=LANGUAGES),
    _t("glossary", "english-noun", lambda v, lang, s: f"{v[0]} {s} {noun(v, lang)[0]}",
        'write {x}, "{s}" and its {lang} translation without an article|make a glossary line of {x}: English, "{s}", {lang}',
        '{x}, "{s}" and the {lang} word without an article', lang=LANGUAGES, s=("=", "->", "/", "-", ":")),
    *_c("romance-gender", "english-noun", lambda v, lang: {"m": "masculine", "f": "feminine"}[noun(v, lang)[1]],
        {"masculine": "the {lang} word for {x} is masculine", "feminine": "the {lang} word for {x} is feminine"},
        "give the gender of the {lang} word for {x}|Is the {lang} word for {x} masculine or feminine?", lang=("Spanish", "French", "Italian")),
    *_c("german-article", "english-noun", lambda v: {"m": "der", "f": "die", "n": "das"}[noun(v, "German")[1]],
        {"der": "the German word for {x} is masculine", "die": "the German word for {x} is feminine", "das": "the German word for {x} is neuter"},
        "give the German article (der, die or das) for the German word for {x}|Which German article does the German word for {x} take?"),
    *_c("gas", "element", lambda v: "gas" if v[0] in ("hydrogen", "helium", "nitrogen", "oxygen", "fluorine", "neon", "chlorine", "argon", "krypton", "xenon") else "other",
        {"gas": "{x} is a gas at room temperature", "other": "{x} is solid or liquid at room temperature"},
        "say whether {x} is a gas at room temperature (gas) or not (other)|Is {x} a gas, or other (solid or liquid), at room temperature?"),
    *_c("colour-group", "coloured", lambda v: {"red": "warm", "yellow": "warm", "orange": "warm", "blue": "cold", "green": "cold", "purple": "cold"}.get(v[1]),
        {"warm": "{x} is usually red, yellow or orange", "cold": "{x} is usually blue, green or purple"},
        "say whether the usual colour of {x} is warm (red, yellow, orange) or cold (blue, green, purple)|Is the usual colour of {x} warm (red, yellow, orange) or cold (blue, green, purple)?"),
)  # fmt: skip

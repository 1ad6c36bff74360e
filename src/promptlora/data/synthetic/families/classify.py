"""Labels of texts and words: sentiment, topic, intent, manners, languages, kinds of things."""

from __future__ import annotations

from functools import partial

from promptlora.data.synthetic.family import choice
from promptlora.data.synthetic.vocabulary import facts, texts
from promptlora.data.synthetic.vocabulary.languages import LANGUAGES

_t = partial(choice, "classification of texts")
_w = partial(choice, "classification of words")

_LIVING = ("animal", "plant")
_EATEN = ("fruit", "vegetable")
_WORN = ("clothing",)


def one_of(kind: str, yes: tuple[str, ...], no: tuple[str, ...]) -> str | None:
    """Yes or no, depending on the kind of a thing; None for ambiguous kinds."""
    return "yes" if kind in yes else "no" if kind in no else None


CLASSIFICATION = (
    *_t("sentiment", "review", lambda v: v["mood"] if v["mood"] != "neutral" else None,
        {"positive": "{x} is positive", "negative": "{x} is negative"},
        "give the sentiment of {x}|classify the sentiment of {x}|Is {x} positive or negative?"),
    *_t("sentiment-of-three", "review", lambda v: v["mood"],
        {"positive": "{x} praises the product", "negative": "{x} complains about the product", "neutral": "{x} neither praises nor complains"},
        "give the sentiment of {x}: positive, negative or neutral if it only states facts|What does the writer feel: positive, negative, or neutral if only facts are given?"),
    *_t("recommend", "review", lambda v: {"positive": "yes", "negative": "no"}.get(v["mood"]),
        {"yes": "the writer would recommend the product", "no": "the writer would not"},
        "say whether the writer would recommend the product|Does the writer like the product?"),
    *_t("opinion", "review", lambda v: "fact" if v["mood"] == "neutral" else "opinion",
        {"fact": "{x} only states facts", "opinion": "{x} says whether the product is good or bad"},
        "say whether {x} gives an opinion or only facts|Is {x} an opinion or a fact?"),
    *_t("department", "ticket", lambda v: v["team"],
        {"billing": "{x} is about payments, bills or prices paid", "technical": "{x} is about something that does not work", "shipping": "{x} is about delivery of a parcel", "sales": "{x} is about buying something new or an offer"},
        "route {x} to the right department|choose the department for {x}|Which department should handle {x}?"),
    *_t("urgency", "ticket", lambda v: v["urgent"],
        {"yes": "{x} is urgent", "no": "it can wait"},
        "say whether {x} is urgent|Is {x} urgent?"),
    *_t("priority", "ticket", lambda v: {"yes": "high", "no": "low"}[v["urgent"]],
        {"high": "the customer is in a hurry", "low": "the customer says that there is time"},
        "give the priority of {x}, high for a customer in a hurry and low for one with time|Is the priority high (customer in a hurry) or low (customer has time)?"),
    *_t("topic", "headline", lambda v: v,
        {topic: f"{{x}} is about {topic}" for topic in texts.HEADLINES},
        "give the topic of {x}|sort {x} into its section|What is the topic of {x}?"),
    *_t("about-sports", "headline", lambda v: "yes" if v == "sports" else "no",
        {"yes": "{x} is about sports", "no": "it is not"},
        "say whether {x} is about sports|Is {x} about sports?"),
    *_t("about-weather", "headline", lambda v: "weather" if v == "weather" else "other",
        {"weather": "{x} is about the weather", "other": "{x} is about something else"},
        "tell headlines about the weather from others|Is {x} about the weather or something other?"),
    *_t("emotion", "feeling", lambda v: v,
        {emotion: f"the writer feels {emotion}" for emotion in texts.EMOTIONS},
        "name the emotion of {x}|choose the feeling that {x} expresses|Which emotion does {x} express?"),
    *_t("mood", "feeling", lambda v: "good" if v == "joy" else "bad",
        {"good": "the writer feels well", "bad": "the writer feels bad"},
        "say whether the mood of the writer is good or bad|Is the writer in a good or a bad mood?"),
    *_t("intent", "request", lambda v: v,
        {intent: f"the user wants to {intent}" for intent in texts.INTENTS},
        "name the intent of {x}|choose what the user wants|What does the user want?"),
    *_t("spam", "mail", lambda v: v,
        {"spam": "{x} is spam", "ham": "{x} is an honest mail"},
        "tell spam from ham (honest mails)|Is {x} spam or ham (an honest mail)?"),
    *_t("keep-mail", "mail", lambda v: {"spam": "delete", "ham": "keep"}[v],
        {"delete": "{x} is advertising or fraud", "keep": "{x} comes from somebody one knows"},
        "decide what to do with {x}: delete advertising and fraud, keep the rest|Delete or keep, if advertising and fraud are to be deleted?"),
    *_t("register", "register", lambda v: v,
        {"formal": "{x} is formal", "informal": "{x} is informal"},
        "give the register of {x}|Is {x} formal or informal?"),
    *_t("politeness", "manners", lambda v: v,
        {"polite": "{x} is polite", "rude": "{x} is rude"},
        "say whether {x} is polite or rude|Is {x} polite or rude?"),
    *_t("sentence-type", "utterance", lambda v: v,
        {"question": "{x} is a question", "statement": "{x} is a statement", "command": "{x} is a command"},
        "name the type of {x}|Is {x} a question, a statement or a command?"),
    *_t("is-question", "utterance", lambda v: "yes" if v == "question" else "no",
        {"yes": "{x} is a question", "no": "it is not"},
        "say whether {x} is a question|Does {x} ask something?"),
    *_t("language", "foreign", lambda v: v,
        {name: f"{{x}} is in {name}" for name in ("English", *LANGUAGES)},
        "name the language of {x}|Which language is {x} written in?"),
    *_t("is-english", "foreign", lambda v: "yes" if v == "English" else "no",
        {"yes": "{x} is in English", "no": "it is in another language"},
        "say whether {x} is in English|Is {x} English?"),
    *_w("kind-of-thing", "thing", lambda v: v["kind"],
        {kind: f"{{x}} names {'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in facts.THINGS if kind not in ("drink", "clothing", "furniture")} | {"drink": "{x} names something to drink", "clothing": "{x} names something to wear", "furniture": "{x} names a piece of furniture"},
        "say what kind of thing {x} names|What kind of thing is named?"),
    *_w("is-kind", "thing", lambda v, kind: "yes" if v["kind"] == kind else "no",
        {"yes": "{x} names something of the kind {kind}", "no": "it does not"},
        "say whether {x} is of the kind {kind}|Does {x} belong to the kind: {kind}?", kind=("animal", "fruit", "vegetable", "tool", "vehicle", "instrument", "colour", "job", "body part", "sport")),
    *_w("living", "thing", lambda v: one_of(v["kind"], _LIVING, ("tool", "vehicle", "clothing", "furniture", "instrument")),
        {"yes": "{x} names a living being", "no": "it does not"},
        "say whether {x} names a living being|Is {x} alive by nature?"),
    *_w("edible", "thing", lambda v: one_of(v["kind"], _EATEN, ("tool", "vehicle", "clothing", "furniture", "instrument", "sport", "colour")),
        {"yes": "{x} names something to eat", "no": "it does not"},
        "say whether {x} names something to eat|Can one eat what {x} names?"),
    *_w("wearable", "thing", lambda v: one_of(v["kind"], _WORN, ("animal", "vehicle", "furniture", "fruit", "vegetable", "drink")),
        {"yes": "{x} names something to wear", "no": "it does not"},
        "say whether {x} names something to wear|Can one wear what {x} names?"),
    *_w("fruit-or-vegetable", "thing", lambda v: v["kind"] if v["kind"] in _EATEN else None,
        {"fruit": "{x} is a fruit", "vegetable": "{x} is a vegetable"},
        "say whether {x} is a fruit or a vegetable|Is {x} a fruit or a vegetable?"),
    *_w("country-or-city", "place", lambda v: v,
        {"country": "{x} is a country", "city": "{x} is a city"},
        "say whether {x} is a country or a city|Is {x} a country or a city?"),
    *_w("larger-animal", "sizes", lambda v: "first" if v["first"] == v["large"] else "second",
        {"first": "the first animal is larger", "second": "the second animal is larger"},
        "say which animal is larger, the first or the second|Which of the two animals is larger?"),
    *_w("in-order-of-size", "sizes", lambda v: "yes" if v["first"] == v["small"] else "no",
        {"yes": "the smaller animal stands first", "no": "the larger one does"},
        "say whether the smaller animal stands first|Does the smaller animal come first?"),
    *_w("continent", "country", lambda v: v[2],
        {name: f"{{x}} is in {name}" for name in ("Europe", "Asia", "Africa", "South America")},
        "name the continent of {x}|On which continent is {x}?"),
    *_w("in-europe", "country", lambda v: "yes" if v[2] == "Europe" else "no",
        {"yes": "{x} is in Europe", "no": "it is elsewhere"},
        "say whether {x} is in Europe|Is {x} a European country?"),
)  # fmt: skip

"""Lists of words: order, choice, counting, sets."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from promptlora.data.synthetic.family import DIGITS, choice, family
from promptlora.data.synthetic.vocabulary.facts import THINGS

_f = partial(family, "lists of words")
_c = partial(choice, "list questions")
_COMMAS = "Separate them with commas.|Use commas between the words.|Write them with a comma and a space between."


def by_length(v: tuple[str, ...], down: bool) -> list[str] | None:
    """The words sorted by length, if all lengths differ."""
    return sorted(v, key=len, reverse=down) if len({len(w) for w in v}) == len(v) else None


def extreme(v: tuple[str, ...], pick: Any) -> str | None:
    """The longest or shortest word, if it is unique."""
    best = pick(len(w) for w in v)
    found = [w for w in v if len(w) == best]
    return found[0] if len(found) == 1 else None


def commonest(v: tuple[str, ...]) -> str | None:
    """The most frequent word, if it is unique."""
    (first, n), *rest = Counter(v).most_common()
    return first if not rest or rest[0][1] < n else None


def first_again(v: tuple[str, ...]) -> str | None:
    """The first word that occurred before."""
    return next((w for at, w in enumerate(v) if w in v[:at]), None)


LISTS = (
    _f("first-item", "words", 0,
        "copy the first word of {x}|name the item that {x} starts with|Which word stands first in {x}?",
        "the first word of {x}|the item at the start of {x}"),
    _f("last-item", "words", lambda v: v[-1],
        "copy the last word of {x}|name the item that {x} ends with|Which word stands last in {x}?",
        "the last word of {x}|the item at the end of {x}"),
    _f("kth-item", "words", lambda v, k: v[k - 1] if len(v) >= k else None,
        "copy the {k:th} word of {x}|name item number {k} of {x}|Which word is item number {k} of {x}?",
        "the {k:th} word of {x}", k=(2, 3, 4)),
    _f("kth-item-from-end", "words", lambda v, k: v[-k] if len(v) > k else None,
        "count from the end of {x} and copy item number {k}|name item number {k} of {x}, counted from the end",
        "item number {k} of {x} from the end|the word at place {k} when {x} is read from its end", k=(2, 3)),
    _f("count-items", "words numbers repeated-words", len,
        "count the items of {x}|How many items does {x} have?",
        "the number of items in {x}", DIGITS),
    _f("longest-word", "words", lambda v: extreme(v, max),
        "copy the longest word of {x}|name the word of {x} with the most letters|Which word of {x} is the longest?",
        "the longest word of {x}"),
    _f("shortest-word", "words", lambda v: extreme(v, min),
        "copy the shortest word of {x}|name the word of {x} with the fewest letters|Which word of {x} is the shortest?",
        "the shortest word of {x}"),
    _f("sort-words", "words", sorted,
        "sort {x} alphabetically|put the words of {x} in alphabetical order",
        "the words of {x} in alphabetical order|{x}, sorted from A to Z", _COMMAS),
    _f("sort-words-down", "words", lambda v: sorted(v, reverse=True),
        "sort {x} in reverse alphabetical order|order the words of {x} from Z to A",
        "the words of {x} sorted from Z to A|{x} in descending alphabetical order", _COMMAS),
    _f("sort-by-length", "words", lambda v, way: by_length(v, way == "longest to shortest"),
        "sort the words of {x} from {way}|order {x} by the length of the words, {way}",
        "the words of {x} ordered from {way}", _COMMAS, way=("shortest to longest", "longest to shortest")),
    _f("sort-by-last-letter", "words", lambda v: sorted(v, key=lambda w: w[-1]) if len({w[-1] for w in v}) == len(v) else None,
        "sort the words of {x} alphabetically by their last letters|order {x} by the final letter of each word, a to z",
        "the words of {x} in the alphabetical order of their last letters", _COMMAS),
    _f("reverse-list", "words", lambda v: v[::-1],
        "reverse {x}|write the items of {x} from last to first",
        "{x} in reverse order|the items of {x} from last to first", _COMMAS),
    _f("every-second-item", "words", lambda v: v[::2],
        "keep every second item of {x}, starting with the first|copy the items 1, 3, 5 and so on of {x}",
        "every other item of {x}, starting with the first", _COMMAS),
    _f("dedupe", "repeated-words", lambda v: list(dict.fromkeys(v)),
        "remove repeated items from {x} and keep the first of each|write each word of {x} once, in the order of first appearance",
        "{x} without repetitions, in the order of first appearance|the distinct words of {x} in their order", _COMMAS),
    _f("most-frequent", "repeated-words", commonest,
        "name the word that stands most often in {x}|Which word of {x} is the most frequent?",
        "the most frequent word of {x}|the word that occurs most often in {x}"),
    _f("first-repeated", "repeated-words", first_again,
        "read {x} from the left and name the first word that has stood before|Which word of {x} is the first to stand there a second time?",
        "the first word of {x} that appears a second time|the word of {x} that is the earliest to be repeated"),
    _f("count-distinct", "repeated-words", lambda v: len(set(v)),
        "count the different words of {x}|How many different words stand in {x}?",
        "the number of distinct words in {x}", DIGITS),
    _f("count-first", "repeated-words", lambda v: v.count(v[0]),
        "count how often the first word of {x} stands in the whole list|How many times does the first word of {x} occur in it?",
        "the number of times that the first word of {x} occurs in it", DIGITS),
    _f("words-longer-than", "words", lambda v, k: [w for w in v if len(w) > k] if 0 < sum(len(w) > k for w in v) < len(v) else None,
        "keep only the words of {x} with more than {k} letters|drop the words of {x} that have {k} letters or fewer",
        "the words of {x} with more than {k} letters", _COMMAS, k=(5, 6, 7)),
    _f("words-with-letter", "words", lambda v, a: [w for w in v if a in w] if 0 < sum(a in w for w in v) < len(v) else None,
        "keep only the words of {x} that contain {a}|list the words of {x} in which the letter {a} occurs",
        "the words of {x} that contain the letter {a}", _COMMAS, a="aeiorstnl"),
    _f("words-without-letter", "words", lambda v, a: [w for w in v if a not in w] if 0 < sum(a in w for w in v) < len(v) else None,
        "drop the words of {x} that contain {a}|list the words of {x} in which the letter {a} does not occur",
        "the words of {x} without the letter {a}", _COMMAS, a="aeiorstnl"),
    _f("join-with", "words", lambda v, sign: sign.join(v),
        'write the items of {x} with "{sign}" between them instead of commas, without spaces|join the items of {x} with "{sign}" and no spaces',
        'the items of {x} joined by "{sign}" without spaces', sign=("-", "/", "+", ";", ">", "_", "&", "=", ":")),
    _f("join-and", "words", lambda v, word: f"{', '.join(v[:-1])} {word} {v[-1]}",
        'write "{word}" instead of the last comma of {x}|make a phrase of {x}: commas, but "{word}" before the last item and no comma there',
        '{x} with "{word}" instead of the last comma', word=("and", "or", "but not", "then", "plus")),
    _f("number-items", "words", lambda v: " ".join(f"{at}. {w}" for at, w in enumerate(v, 1)) if len(v) < 5 else None,
        "number the items of {x} on one line, as in 1. red 2. blue|write {x} as a numbered list on one line, without commas",
        "{x} as 1. first 2. second and so on, on one line|the items of {x}, each after its number and a full stop, on one line"),
    _f("bullet-items", "words", lambda v, sign: "\n".join(f"{sign} {w}" for w in v) if len(v) < 5 else None,
        'write each item of {x} on its own line after "{sign}" and a space|turn {x} into a list with one item per line, each after "{sign}" and a space',
        'the items of {x}, one per line, each starting with "{sign}" and a space', sign=("-", "*", "+", ">")),
    _f("lines", "words", "\n".join,
        "write each item of {x} on a line of its own|break {x} into lines, one word per line without commas",
        "the items of {x}, one per line|one line per item of {x}"),
    _f("remove-item", "words", lambda v, k: [*v[: k - 1], *v[k:]] if len(v) >= k else None,
        "delete item number {k} of {x}|remove the {k:th} item from {x}",
        "{x} without its {k:th} item", _COMMAS, k=(1, 2, 3)),
    _f("append-item", "words", lambda v, new: [*v, new] if new not in v and len(v) < 6 else None,
        'add "{new}" as the last item of {x}|append the item {new} to {x}',
        'the items of {x} followed by "{new}"', _COMMAS, new=("stone", "music", "seven", "cloud", "paper", "lion", "green", "soup")),
    _f("prepend-item", "words", lambda v, new: [new, *v] if new not in v and len(v) < 6 else None,
        'put "{new}" before the first item of {x}|add the item {new} at the start of {x}',
        '"{new}" followed by the items of {x}', _COMMAS, new=("stone", "music", "seven", "cloud", "paper", "lion", "green", "soup")),
    _f("rotate-list", "words", lambda v, k: [*v[k:], *v[:k]] if len(v) > k else None,
        "move the first {k} item(s) of {x} to its end|take {k} item(s) from the start of {x} and put them, in order, at the end",
        "{x} with its first {k} item(s) moved to the end", _COMMAS, k=(1, 2)),
    _f("swap-ends", "words", lambda v: [v[-1], *v[1:-1], v[0]],
        "swap the first and the last item of {x}|exchange the outer two items of {x}",
        "{x} with the first and the last item exchanged", _COMMAS),
    _f("alphabetically-first", "words", min,
        "name the word of {x} that comes first in the alphabet|Which word of {x} stands first in a dictionary?",
        "the alphabetically first word of {x}|the word of {x} that a dictionary lists before the others"),
    _f("alphabetically-last", "words", max,
        "name the word of {x} that comes last in the alphabet|Which word of {x} stands last in a dictionary?",
        "the alphabetically last word of {x}|the word of {x} that a dictionary lists after the others"),
    _f("list-initials", "words", lambda v: "".join(w[0] for w in v),
        "join the first letters of the words of {x}|make one string of the initial letters of {x}",
        "the first letters of the items of {x}, joined without spaces"),
    _f("lengths", "words", lambda v: [len(w) for w in v],
        "replace each word of {x} with its number of letters|give the lengths of the words of {x} in order",
        "the number of letters of each word of {x}, in order", "Separate the numbers with commas.|Use commas between the numbers."),
    _f("hashtags", "words", lambda v, sign: " ".join(f"{sign}{w}" for w in v),
        'put "{sign}" directly before each item of {x} and separate them with spaces|write {x} with "{sign}" before each word and spaces instead of commas',
        'the items of {x}, each with "{sign}" in front, separated by spaces', sign=("#", "@", "$", "--", "+")),
    _f("upper-item", "words", lambda v, which: [v[0].upper(), *v[1:]] if which == "first" else [*v[:-1], v[-1].upper()],
        "write the {which} item of {x} in capitals and leave the others|upper-case only the {which} word of {x}",
        "{x} with only its {which} item in capital letters", _COMMAS, which=("first", "last")),
    _f("odd-one-out", "things", "odd",
        "name the item of {x} that is of another kind than the rest|find the odd one out in {x}|Which item does not belong with the others?",
        "the odd one out of {x}|the item of {x} that does not fit the others"),
    _f("common-kind", "things", "kind",
        "name what most items of {x} are|choose the kind of thing that all items of {x} but one belong to|What kind of thing are all items but one?",
        "the kind of thing that most items of {x} are", f"Choose from: {', '.join(THINGS)}.|Kinds: {', '.join(THINGS)}."),
    _f("without-odd", "things", lambda v: [w for w in v["words"] if w != v["odd"]],
        "remove the item that does not belong with the others from {x}|drop the odd one out and keep the rest of {x}",
        "{x} without the odd one out|the items of {x} that belong together", _COMMAS),
    _f("items-of-kind", "things", lambda v, kind: [w for w in v["words"] if w in THINGS[kind]] or None,
        "list the items of {x} that are of the kind: {kind}|keep only what is of the kind {kind} in {x}",
        "the items of {x} of the kind {kind}", _COMMAS, kind=("animal", "fruit", "vegetable", "tool", "clothing", "colour", "drink", "sport")),
    _f("in-both", "two-lists", lambda v: sorted(set(v[0]) & set(v[1])),
        "list the words that stand in both lists, in alphabetical order|find what the two lists have in common, sorted alphabetically",
        "the words that the two lists share, in alphabetical order", _COMMAS),
    _f("only-in-first", "two-lists", lambda v: [w for w in v[0] if w not in v[1]],
        "list the words of the first list that are missing from the second|drop from the first list whatever the second holds too",
        "the words of the first list that are not in the second, in their order", _COMMAS),
    _f("only-in-second", "two-lists", lambda v: [w for w in v[1] if w not in v[0]],
        "list the words of the second list that are missing from the first|drop from the second list whatever the first holds too",
        "the words of the second list that are not in the first, in their order", _COMMAS),
    *_c("is-sorted", "numbers", lambda v: "yes" if list(v) == sorted(v) else "no",
        {"yes": "{x} is sorted in ascending order", "no": "it is not"},
        "say whether {x} is sorted from small to large|Are the numbers in ascending order?"),
    *_c("has-repeats", "repeated-words", lambda v: "yes" if len(set(v)) < len(v) else "no",
        {"yes": "a word stands in {x} more than once", "no": "all are different"},
        "say whether {x} holds a word more than once|Does any word stand in {x} twice?"),
    *_c("list-length", "words numbers", lambda v, k: "long" if len(v) > k else "short",
        {"long": "{x} has more than {k} items", "short": "{x} has at most {k} items"},
        "call {x} long if it has more than {k} items and short otherwise|tell whether {x} is long (more than {k} items) or short", k=(4,)),
)  # fmt: skip

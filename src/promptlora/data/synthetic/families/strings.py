"""Edits of texts: case, order, spaces, prefixes, inserted or removed words."""

from __future__ import annotations

import re
from functools import partial
from string import ascii_lowercase

from promptlora.data.synthetic.family import family

_f = partial(family, "string edits")
_SHORT = "word phrase"
_TEXT = "phrase title name"
_ADDED = ("blue", "very", "tiny", "old", "new", "great", "odd", "next", "really", "green", "quick", "lost", "my", "our")


def camel(text: str) -> str:
    """The words as camelCase."""
    first, *rest = text.lower().split()
    return first + "".join(word.title() for word in rest)


def swap_ends(text: str) -> str | None:
    """The text with its first and last word swapped."""
    first, *middle, last = text.split() if " " in text else ("", "")
    return " ".join((last, *middle, first)) if first else None


def replaced(text: str, at: int, new: str) -> str | None:
    """The text with one word replaced; words are counted from 1."""
    parts = text.split()
    if at > len(parts) or parts[at - 1] == new:
        return None
    return " ".join((*parts[: at - 1], new, *parts[at:]))


STRINGS = (
    _f("upper", "word phrase sentence title name", str.upper,
        "write {x} in capital letters|convert {x} to upper case|put all letters of {x} into upper case",
        "{x} in capital letters|the upper-case form of {x}"),
    _f("lower", "sentence title name", str.lower,
        "write {x} in lower case|convert {x} to small letters|turn all capitals of {x} into small letters",
        "{x} in lower case|{x} without capital letters"),
    _f("title-case", "phrase", str.title,
        "start every word of {x} with a capital letter|capitalise each word of {x}",
        "{x} in title case, with a capital at the start of each word|{x} with each word capitalised"),
    _f("swap-case", "sentence title name", str.swapcase,
        "swap upper and lower case in {x}|turn small letters of {x} into capitals and capitals into small letters",
        "{x} with upper and lower case exchanged|{x} with the case of each letter inverted"),
    _f("reverse-letters", "word phrase", lambda v: v[::-1],
        "write {x} backwards|reverse the order of all characters of {x}|spell {x} from its last letter to its first",
        "{x} spelled backwards|the characters of {x} in reverse order"),
    _f("reverse-words", _TEXT, lambda v: " ".join(v.split()[::-1]) if " " in v else None,
        "reverse the order of the words of {x}|write the words of {x} from last to first",
        "the words of {x} in reverse order|{x} with its words from last to first"),
    _f("reverse-each-word", "phrase", lambda v: " ".join(w[::-1] for w in v.split()),
        "reverse the letters of each word of {x} and keep the order of the words|spell every word of {x} backwards, words in their old order",
        "{x} with each word spelled backwards in its place|{x} where every single word is reversed but the word order stays"),
    _f("remove-vowels", _SHORT, lambda v: re.sub("[aeiou]", "", v).strip() or None,
        "remove all vowels (a, e, i, o, u) from {x}|delete the letters a, e, i, o and u from {x}",
        "{x} without its vowels a, e, i, o, u|what is left of {x} without a, e, i, o and u"),
    _f("remove-spaces", _TEXT, lambda v: v.replace(" ", "") if " " in v else None,
        "remove all spaces from {x}|write the words of {x} together as one, with nothing between them",
        "{x} without spaces|the words of {x} joined without spaces"),
    _f("duplicate-words", "phrase name", lambda v: " ".join(f"{w} {w}" for w in v.split()),
        "write every word of {x} twice in a row|repeat each word of {x} directly after itself",
        "{x} with each word doubled, as in 'red red car car'|{x} where each word stands twice in a row"),
    _f("replace-letter", _SHORT, lambda v, a, b: v.replace(a, b) if a in v and a != b else None,
        'replace every "{a}" in {x} with "{b}"|change each letter {a} of {x} into {b}|write {b} instead of {a} everywhere in {x}',
        "{x} with every {a} replaced by {b}|{x} after changing all letters {a} to {b}", a="aeiorstnl", b="xzwqkvjuy"),
    _f("remove-letter", _SHORT, lambda v, a: v.replace(a, "").strip() if a in v else None,
        'delete every "{a}" from {x}|remove all letters {a} from {x}',
        "{x} without the letter {a}|{x} with every {a} deleted", a="aeiorstnl"),
    _f("replace-spaces", _TEXT, lambda v, sign: v.replace(" ", sign) if " " in v else None,
        'replace each space in {x} with "{sign}"|put "{sign}" in the place of every space of {x}',
        '{x} with "{sign}" instead of each space|{x} where each space has become "{sign}"', sign=("+", "_", ".", "/", "~", "*", "--", "=")),
    _f("add-prefix", _SHORT, lambda v, t: f"{t} {v}",
        'put the word "{t}" and a space in front of {x}|write the word "{t}", then {x}',
        '{x} with the word "{t}" in front|the word "{t}" followed by {x}', t=_ADDED),
    _f("add-suffix", _SHORT, lambda v, t: f"{v} {t}",
        'add a space and the word "{t}" at the end of {x}|write {x}, then the word "{t}"',
        '{x} followed by the word "{t}"|{x} with the word "{t}" at the end', t=_ADDED),
    _f("surround", _SHORT, lambda v, s: f"{s}{v}{s}",
        'put "{s}" directly before and after {x}, without spaces|surround {x} with "{s}" on both sides, no spaces',
        '{x} with "{s}" attached to both ends|{x} between two "{s}", without spaces', s=("*", "**", "_", "~", "--", "##", "==", "+", "/")),
    _f("snake-case", _TEXT, lambda v: v.lower().replace(" ", "_") if " " in v else None,
        "write {x} in snake_case|join the words of {x} in lower case with underscores",
        "{x} in snake_case|{x} in lower case with underscores between the words"),
    _f("kebab-case", _TEXT, lambda v: v.lower().replace(" ", "-") if " " in v else None,
        "write {x} in kebab-case|make a slug of {x}: lower case, words joined by hyphens",
        "{x} in kebab-case|{x} as a slug in lower case with hyphens"),
    _f("camel-case", _TEXT, lambda v: camel(v) if " " in v else None,
        "write {x} in camelCase|join the words of {x}: the first in lower case, each further one with a capital, no spaces",
        "{x} in camelCase|the camelCase form of {x}"),
    _f("pascal-case", _TEXT, lambda v: "".join(w.title() for w in v.split()) if " " in v else None,
        "write {x} in PascalCase|join the words of {x} without spaces, each with a capital first letter",
        "{x} in PascalCase|the words of {x} joined, each starting with a capital"),
    _f("constant-case", _TEXT, lambda v: v.upper().replace(" ", "_") if " " in v else None,
        "write {x} as a constant name: upper case, underscores for spaces|turn {x} into upper case and replace spaces with underscores",
        "{x} in UPPER_SNAKE_CASE|{x} as a constant name in capitals with underscores"),
    _f("swap-end-words", "phrase title", swap_ends,
        "swap the first and the last word of {x}|exchange the first word of {x} with the last one and leave the rest",
        "{x} with its first and last word exchanged|{x} after swapping its outer two words"),
    _f("first-words", "phrase sentence", lambda v, k: " ".join(v.split()[:k]) if len(v.split()) > k else None,
        "cut {x} to its first {k} words|keep only the first {k} words of {x}",
        "the first {k} words of {x}|{x} cut after {k} words", k=(2, 3)),
    _f("last-words", "phrase sentence", lambda v, k: " ".join(v.split()[-k:]) if len(v.split()) > k else None,
        "keep only the last {k} words of {x}|copy the final {k} words of {x}",
        "the last {k} words of {x}|the final {k} words of {x}", k=(2, 3)),
    _f("kth-word", "phrase sentence title", lambda v, k: v.split()[k - 1].strip(".,!?") if len(v.split()) >= k else None,
        "copy the {k:th} word of {x}|pick out the {k:th} word of {x}|What is the {k:th} word of {x}?",
        "the {k:th} word of {x}", "Leave out punctuation.|Do not copy punctuation marks.", k=(1, 2, 3)),
    _f("last-word", "phrase title sentence", lambda v: v.split()[-1].strip(".,!?"),
        "copy the last word of {x}|pick the final word of {x}|What is the last word of {x}?",
        "the last word of {x}|the final word of {x}", "Leave out punctuation.|Do not copy punctuation marks."),
    _f("drop-word", "phrase title", lambda v, which: " ".join(v.split()[1:] if which == "first" else v.split()[:-1]) if " " in v else None,
        "delete the {which} word of {x}|remove the {which} word from {x} and keep all others",
        "{x} without its {which} word|all words of {x} but the {which}", which=("first", "last")),
    _f("acronym", "phrase title", lambda v: "".join(w[0] for w in v.split()).upper() if " " in v else None,
        "make an acronym from the first letters of the words of {x}, in capitals|join the first letters of all words of {x} in upper case",
        "the acronym of {x} in capital letters|the initial letters of the words of {x}, joined and in upper case"),
    _f("repeat-text", _SHORT, lambda v, k: " ".join([v] * k) if len(v) < 24 else None,
        "write {x} {k} times, separated by spaces|repeat {x} until it stands there {k} times with spaces between",
        "{x} repeated {k} times with spaces between|{k} copies of {x} separated by spaces", k=(2, 3)),
    _f("replace-word", "phrase", lambda v, k, new: replaced(v, k, new),
        'replace the {k:th} word of {x} with "{new}"|change the {k:th} word of {x} to "{new}"',
        '{x} with "{new}" as its {k:th} word|{x} after replacing word number {k} by "{new}"', k=(1, 2), new=_ADDED),
    _f("insert-word", "phrase", lambda v, new: " ".join((v.split()[0], new, *v.split()[1:])) if " " in v else None,
        'insert the word "{new}" after the first word of {x}|put "{new}" between the first and the second word of {x}',
        '{x} with "{new}" inserted after the first word|{x} with "{new}" as a new second word', new=_ADDED),
    _f("remove-punctuation", "sentence", lambda v: re.sub(r"[.,!?;:]", "", v) if "'" not in v else None,
        "remove the punctuation marks . , ! ? ; : from {x}|delete all punctuation from {x}",
        "{x} without punctuation|{x} with all punctuation marks removed"),
    _f("double-letters", "word", lambda v: "".join(c * 2 for c in v),
        "write every letter of {x} twice|double each letter of {x}",
        "{x} with each letter doubled, as in ccaatt|{x} where every letter stands twice"),
    _f("spell-out", "word name", lambda v, sign: sign.join(v.replace(" ", "")) if len(v) < 9 else None,
        'spell {x} with "{sign}" between the letters|write "{sign}" between all letters of {x}',
        '{x} spelled with "{sign}" between its letters|the letters of {x} separated by "{sign}"', sign=("-", ".", "/", "*", "_")),
    _f("rotate-word", "word", lambda v, k: v[k:] + v[:k],
        "move the first {k} letters of {x} to its end|take the first {k} letters of {x} away and attach them at the end",
        "{x} with its first {k} letters moved to the end|{x} rotated to the left by {k} letters", k=(2, 3)),
    _f("first-letter-last", "word", lambda v: v[1:] + v[0],
        "move the first letter of {x} to the end|put the first letter of {x} behind the last one",
        "{x} with its first letter moved to the end|{x} where the initial letter has become the last one"),
    _f("truncate-letters", "word", lambda v, k: v[:k] if len(v) > k else None,
        "cut {x} after {k} letters|keep only the first {k} letters of {x}",
        "the first {k} letters of {x}|{x} shortened to {k} letters", k=(2, 3, 4)),
    _f("last-letters", "word", lambda v, k: v[-k:] if len(v) > k else None,
        "copy the last {k} letters of {x}|keep only the final {k} letters of {x}",
        "the last {k} letters of {x}|the final {k} letters of {x}", k=(2, 3, 4)),
    _f("mask-vowels", _SHORT, lambda v, sign: re.sub("[aeiou]", sign, v),
        'replace every vowel (a, e, i, o, u) of {x} with "{sign}"|write "{sign}" instead of each of the letters a, e, i, o, u in {x}',
        '{x} with "{sign}" for each vowel|{x} where the vowels a, e, i, o, u have become "{sign}"', sign="*_#-.?"),
    _f("mask-word", "word", lambda v, sign: v[0] + sign * (len(v) - 1),
        'keep the first letter of {x} and replace each other letter with "{sign}"|hide all letters of {x} but the first behind "{sign}"',
        '{x} with "{sign}" for every letter after the first|the first letter of {x}, then one "{sign}" for each further letter', sign="*_#-"),
    _f("mark-words", "phrase name", lambda v, left, right: " ".join(f"{left}{w}{right}" for w in v.split()),
        "put {left} directly before and {right} directly after each word of {x}|enclose every word of {x} between {left} and {right}",
        "{x} with each word between {left} and {right}|the words of {x}, each enclosed as {left}word{right}", left=("[",), right=("]", ")", ">")),
    _f("alternating-case", "word", lambda v: "".join(c.upper() if at % 2 == 0 else c for at, c in enumerate(v)),
        "write {x} in alternating case that starts with a capital, as in TaBlE|capitalise the letters 1, 3, 5 and so on of {x} and keep the others small",
        "{x} in alternating case, first letter a capital|{x} with every odd-numbered letter as a capital"),
    _f("swap-end-letters", "word", lambda v: v[-1] + v[1:-1] + v[0],
        "swap the first and the last letter of {x}|exchange the outer two letters of {x}",
        "{x} with its first and last letter exchanged|{x} after swapping its outer letters"),
    _f("initials", "name", lambda v: "".join(f"{w[0]}." for w in v.split()),
        "write the initials of {x}, each with a full stop and no space|shorten {x} to initials such as A.B.",
        "the initials of {x} in the form A.B.|the initials of {x}, each followed by a full stop"),
    _f("last-name-first", "name", lambda v: f"{v.split()[1]}, {v.split()[0]}",
        "write {x} as last name, comma, first name|put the family name of {x} first, then a comma and the first name",
        "{x} in the form Last, First|{x} with the family name first and a comma between"),
    _f("short-name", "name", lambda v: f"{v[0]}. {v.split()[1]}",
        "shorten the first name of {x} to its initial with a full stop and keep the last name|abbreviate {x} as in T. Miller",
        "{x} in the form T. Miller|the initial of the first name with a full stop, then the last name"),
    _f("user-name", "name", lambda v: (v[0] + v.split()[1]).lower(),
        "make a user name from {x}: the first letter of the first name plus the last name, in lower case|form a login from {x} such as tmiller for Tom Miller",
        "the login of {x}, such as tmiller for Tom Miller|a user name made of the first initial and the last name of {x} in lower case"),
    _f("letters-shifted", "word", lambda v, k: "".join(ascii_lowercase[(ascii_lowercase.index(c) + k) % 26] for c in v) if len(v) < 7 else None,
        "shift each letter of {x} by {k} in the alphabet, z followed by a|encode {x} with a Caesar cipher of shift {k}",
        "{x} with every letter moved {k} forward in the alphabet|the Caesar cipher of {x} with shift {k}", k=(1, 2, 3)),
)  # fmt: skip

"""Letters of words: positions, counts, the alphabet."""

from __future__ import annotations

from functools import partial
from string import ascii_lowercase as alphabet

from promptlora.data.synthetic.family import choice, family
from promptlora.data.synthetic.vocabulary.facts import MORSE, RADIO

_f = partial(family, "letters")
_c = partial(choice, "letter questions")
_VOWELS = "aeiou"


def place(letter: str) -> int:
    """Place of a letter in the alphabet, from 1."""
    return alphabet.index(letter.lower()) + 1


LETTERS = (
    _f("kth-letter", "word", lambda v, k: v[k - 1] if len(v) >= k else None,
       "copy the {k:th} letter of {x}|name letter number {k} of {x}|What is the {k:th} letter of {x}?", "the {k:th} letter of {x}", k=(1, 2, 3, 4, 5)),
    _f("kth-letter-from-end", "word", lambda v, k: v[-k],
       "copy letter number {k} of {x}, counted from the end|count from the end of {x} and name letter number {k}", "letter number {k} from the end of {x}|the letter at place {k} of {x} when you count from its end", k=(1, 2, 3)),
    _f("word-initials", "phrase", lambda v: " ".join(w[0] for w in v.split()) if " " in v else None,
       "list the first letter of each word of {x}, separated by spaces|copy the initial letters of all words of {x} with spaces between", "the first letters of the words of {x}, separated by spaces|the initial letter of each word of {x} with spaces between"),
    _f("word-endings", "phrase", lambda v: " ".join(w[-1] for w in v.split()) if " " in v else None,
       "list the last letter of each word of {x}, separated by spaces|copy the final letters of all words of {x} with spaces between", "the last letters of the words of {x}, separated by spaces|the final letter of each word of {x} with spaces between"),
    _f("count-letter", "word phrase", lambda v, a: v.count(a),
       'count how often the letter {a} stands in {x}|How many times does the letter "{a}" occur in {x}?', "the number of letters {a} in {x}|how often {a} occurs in {x}", "Use digits.|Write a number in digits.", a="aeorstn"),
    _f("count-vowels", "word phrase", lambda v: sum(c in _VOWELS for c in v),
       "count the vowels (a, e, i, o, u) of {x}|How many of the letters of {x} are a, e, i, o or u?", "the number of vowels (a, e, i, o, u) in {x}", "Use digits.|Write a number in digits."),
    _f("count-consonants", "word", lambda v: sum(c not in _VOWELS for c in v),
       "count the letters of {x} other than a, e, i, o, u|How many letters of {x} are not a, e, i, o or u?", "the number of letters in {x} other than a, e, i, o, u|the count of consonants (y included) of {x}", "Use digits.|Write a number in digits."),
    _f("count-letters", "word name", lambda v: len(v.replace(" ", "")),
       "count the letters of {x}|How many letters does {x} have?", "the number of letters in {x}", "Use digits and do not count spaces.|Spaces do not count; write digits."),
    _f("count-words", "phrase sentence title", lambda v: len(v.split()),
       "count the words of {x}|How many words does {x} have?", "the number of words in {x}", "Use digits.|Write a number in digits."),
    _f("vowels-only", "word phrase", lambda v: "".join(c for c in v if c in _VOWELS),
       "keep only the vowels a, e, i, o, u of {x}, joined|copy the letters of {x} that are a, e, i, o or u, without spaces", "the vowels a, e, i, o, u of {x} in their order, joined|what is left of {x} when only its vowels stay"),
    _f("consonants-only", "word", lambda v: "".join(c for c in v if c not in _VOWELS),
       "keep only the letters of {x} that are not a, e, i, o, u|copy the consonants of {x}, joined", "the consonants of {x} in their order, joined|{x} reduced to its consonants"),
    _f("letters-sorted", "word", lambda v: "".join(sorted(v)) if len(v) < 8 else None,
       "put the letters of {x} in alphabetical order|sort the letters of {x} from a to z", "the letters of {x} in alphabetical order, joined|{x} with its letters sorted from a to z"),
    _f("letters-unique", "word", lambda v: "".join(dict.fromkeys(v)),
       "delete letters of {x} that stood before, so that each stands once|write each letter of {x} only at its first place", "the distinct letters of {x} in the order in which they first stand|{x} without repeated letters"),
    _f("letter-position", "word", lambda v, a: v.index(a) + 1 if a in v else None,
       'find the position of the first "{a}" in {x}, counted from 1|At which position, counted from 1, does {a} stand first in {x}?', "the position of the first {a} in {x}, counted from 1|the number of the place where {a} first stands in {x}, starting with 1", a="aeorstnil"),
    _f("end-letters", "word", lambda v, sign: f"{v[0]}{sign}{v[-1]}",
       'write the first letter of {x}, "{sign}" and its last letter, without spaces|join the first and the last letter of {x} with "{sign}"', 'the first and the last letter of {x} with "{sign}" between|the outer two letters of {x}, joined by "{sign}"', sign=("-", "/", "+", "&", ".", "_")),
    _f("middle-letter", "word", lambda v: v[len(v) // 2] if len(v) % 2 else None,
       "copy the middle letter of {x}|find the letter in the middle of {x}|Which letter stands in the middle of {x}?", "the middle letter of {x}|the letter with as many letters before it as after it in {x}"),
    _f("alphabet-place", "word", lambda v: place(v[0]),
       "give the place of the first letter of {x} in the alphabet (a = 1)|At which place of the alphabet (a = 1) stands the first letter of {x}?", "the number of the first letter of {x} in the alphabet, with a = 1"),
    _f("next-letter", "word", lambda v, way, step: alphabet[(place(v[0]) - 1 + (1 if way == "after" else -1) * step) % 26] if 3 < place(v[0]) < 24 else None,
       "take the first letter of {x} and name the letter {step} place(s) {way} it in the alphabet|find the letter that stands {step} place(s) {way} the first letter of {x} in the alphabet", "the letter {step} place(s) {way} the first letter of {x} in the alphabet", way=("after", "before"), step=(1, 2, 3)),
    _f("letter-numbers", "word", lambda v: "-".join(str(place(c)) for c in v) if len(v) < 6 else None,
       "write each letter of {x} as its number in the alphabet (a = 1), joined by hyphens|turn {x} into numbers with a = 1 to z = 26, hyphens between", "the numbers of the letters of {x} (a = 1), joined by hyphens|{x} in the code a = 1, b = 2 and so on, with hyphens between"),
    _f("remove-kth-letter", "word", lambda v, k: v[: k - 1] + v[k:],
       "delete the {k:th} letter of {x}|remove letter number {k} from {x}", "{x} without its {k:th} letter|{x} after deleting letter number {k}", k=(1, 2, 3, 4)),
    _f("every-second-letter", "word", lambda v: v[::2],
       "keep the letters 1, 3, 5 and so on of {x}|delete every second letter of {x}, from the second on", "every other letter of {x}, starting with the first|the letters of {x} at the places 1, 3, 5 and so on"),
    _f("radio-alphabet", "letter", lambda v: " ".join(RADIO[c] for c in v),
       "spell {x} in the NATO radio alphabet, as in Alfa for A|give the NATO code word of each letter, separated by spaces", "the NATO code words for {x}, separated by spaces|{x} spelled in the NATO alphabet (Alfa, Bravo and so on)"),
    _f("morse", "letter", lambda v: " ".join(MORSE[c.lower()] for c in v),
       "write {x} in Morse code with . and -|encode {x} in Morse code, letters separated by a space", "{x} in Morse code, written with . and -|the Morse code of {x}, with a space between letters"),
    _f("letter-pairs", "word", lambda v: " ".join(v[at : at + 2] for at in range(0, len(v), 2)),
       "cut {x} into groups of two letters, separated by spaces|put a space after every second letter of {x}", "{x} in groups of two letters with spaces between|the letters of {x} two by two, separated by spaces"),
    *_c("contains-letter", "word phrase", lambda v, a: "yes" if a in v else "no",
        {"yes": "{x} contains the letter {a}", "no": "it does not"},
        "say whether {x} contains the letter {a}|Does {x} contain the letter {a}?|Is there a letter {a} in {x}?", a="aeiorstnlcdgmp"),
    *_c("starts-with-vowel", "word thing", lambda v: "yes" if (v if isinstance(v, str) else v["word"])[0] in _VOWELS else "no",
        {"yes": "{x} starts with a vowel", "no": "it does not"}, "say whether {x} starts with a vowel|Does {x} start with a, e, i, o or u?"),
    *_c("ends-with-letter", "word", lambda v, a: "yes" if v[-1] == a else "no",
        {"yes": "{x} ends in the letter {a}", "no": "it does not"}, "say whether {x} ends in {a}|Does {x} end with the letter {a}?", a="entry"),
    *_c("longer-than", "word", lambda v, k: "long" if len(v) > k else "short",
        {"long": "{x} has more than {k} letters", "short": "{x} has {k} letters or fewer"}, "call {x} long if it has more than {k} letters and short if not|sort {x} by length: more than {k} letters is long, else short", k=(5, 6)),
    *_c("double-letter", "word", lambda v: "yes" if any(a == b for a, b in zip(v, v[1:], strict=False)) else "no",
        {"yes": "{x} has the same letter twice in a row", "no": "it does not"}, "say whether {x} has a double letter|Does {x} have the same letter twice in a row?"),
    *_c("palindrome", "palindrome", lambda v: "yes" if v == v[::-1] else "no",
        {"yes": "{x} is a palindrome", "no": "it is not"}, "say whether {x} is a palindrome|Does {x} read the same backwards?|Is {x} a palindrome?"),
    *_c("anagram", "word-pair", lambda v: "yes" if sorted(v[0]) == sorted(v[1]) else "no",
        {"yes": "the two words have the same letters", "no": "they do not"}, "say whether the two words are anagrams, that is, have the same letters|Do both words consist of the same letters?"),
    *_c("first-in-dictionary", "word-pair", lambda v: None if v[0] == v[1] else "first" if v[0] < v[1] else "second",
        {"first": "the first word comes earlier in the alphabet", "second": "the second word comes earlier in the alphabet"}, "say which word comes earlier in the alphabet, the first or the second|Which of the two words comes earlier in a dictionary?"),
    *_c("which-is-longer", "word-pair", lambda v: None if len(v[0]) == len(v[1]) else "first" if len(v[0]) > len(v[1]) else "second",
        {"first": "the first word is longer", "second": "the second word is longer"}, "say which of the two words is longer, the first or the second|Which word has more letters, the first or the second?"),
)  # fmt: skip

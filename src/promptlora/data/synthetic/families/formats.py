"""Output formats that are applied to tasks of other families."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from promptlora.data.synthetic.families.classify import CLASSIFICATION
from promptlora.data.synthetic.families.conditions import QUESTIONS
from promptlora.data.synthetic.families.dates import DATES
from promptlora.data.synthetic.families.extract import EXTRACTION
from promptlora.data.synthetic.families.forms import FORMS
from promptlora.data.synthetic.families.knowledge import KNOWLEDGE
from promptlora.data.synthetic.families.letters import LETTERS
from promptlora.data.synthetic.families.lists import LISTS
from promptlora.data.synthetic.families.number_lists import NUMBER_LISTS
from promptlora.data.synthetic.families.numbers import NUMBERS
from promptlora.data.synthetic.families.sentences import SENTENCES
from promptlora.data.synthetic.families.strings import STRINGS
from promptlora.data.synthetic.family import Family, Goal, constrained, phrases
from promptlora.data.synthetic.vocabulary.tables import words

_GROUPS = (
    STRINGS,
    LETTERS,
    LISTS,
    NUMBER_LISTS,
    NUMBERS,
    DATES,
    FORMS,
    SENTENCES,
    EXTRACTION,
    CLASSIFICATION,
    KNOWLEDGE,
)
_ALL = {made.name: made for group in (*_GROUPS, QUESTIONS) for made in group}
#: Families with short answers that consist of letters.
_LETTERED = tuple(
    _ALL[name]
    for name in words("""
last-item first-item longest-word shortest-word alphabetically-first plural past-tense ing-form comparative antonym adverb
full-name city job product customer appointment-day folder extension winner most-stocked sentiment department topic emotion
spam register politeness sentence-type language country-or-city kind-of-thing capital nationality young-animal usual-colour
even-odd tense odd-one-out last-word
""")
)
#: Families with short answers to which an output format can be applied.
_SHORT = _LETTERED + tuple(
    _ALL[name]
    for name in words("""
word-initials count-letter count-vowels kth-letter sum largest smallest second-largest kth-number count-digits digit-sum add
subtract multiply larger next-in-sequence calculate age order-number phone mail-domain appointment-time room url-path
json-value look-up urgency intent element-symbol translate-noun translate-word remove-vowels reverse-letters next-month
story-total answer-question verb-base
""")
)
#: Families whose inputs are short enough to be copied before the answer.
_COPIED = tuple(
    _ALL[name]
    for name in words("""
plural past-tense ing-form comparative antonym adverb capital nationality young-animal usual-colour element-symbol
translate-noun translate-word digit-sum add multiply even-odd kth-letter count-vowels kind-of-thing country-or-city
""")
)


def formatted(
    name: str, bases: Sequence[Family], change: Callable[..., str | None], note: str, **parameters: Sequence[Any]
) -> Family:
    """A family that asks for the answers of other families in another form.

    Args:
        name: Name of the family.
        bases: Families with short answers; each task uses one of them.
        change: Called with the input, the plain answer, and the parameters by name.
        note: Sentences that ask for the form, separated by ``|``.
        parameters: See ``family``.
    """

    def draw(rng: Random) -> Goal:
        base = rng.choice(bases)
        values = {key: rng.choice(list(several)) for key, several in parameters.items()}
        tails = phrases(note, values)
        goal = base.draw(rng)
        return constrained(goal, base.name, lambda text, plain: change(text, plain, **values), tails, str(values))

    return Family(name, "output formats", draw)


_KEYS = ("answer", "result", "output", "value", "label", "a", "reply", "out", "response", "x")

FORMATS = (
    formatted("as-json", _SHORT, lambda _, a, k: json.dumps({k: a}, ensure_ascii=False),
        'Answer with a JSON object that has the single key "{k}" and the answer as a string.|Format: JSON, one key "{k}", value as a string.|Put the answer as a string into a JSON object under the key "{k}".',
        k=_KEYS),
    formatted("in-quotes", _SHORT, lambda _, a: f'"{a}"',
        'Put the answer in double quotes.|Enclose the answer in double quotation marks (").|The answer must stand between double quotes.'),
    formatted("in-single-quotes", _SHORT, lambda _, a: f"'{a}'" if "'" not in a else None,
        "Put the answer in single quotes.|Enclose the answer in single quotation marks (').|The answer must stand between single quotes."),
    formatted("in-brackets", _SHORT, lambda _, a, b: f"{b[0]}{a}{b[1]}",
        "Put the answer between {b}, without spaces.|Enclose the answer in these brackets, without spaces: {b}.|The answer must stand inside {b}, with no spaces added.",
        b=("()", "[]", "<>", "{}")),
    formatted("after-prefix", _SHORT, lambda _, a, p: f"{p} {a}",
        'Start with "{p}" and a space, then the answer.|Write "{p}" before the answer, with a space between.|The reply begins with "{p}", then a space, then the answer.',
        p=("Answer:", "Result:", "->", "A:", "Output =", "It is", "Final answer:", "=>", ">>", "Reply:")),
    formatted("before-suffix", _SHORT, lambda _, a, p: f"{a}{p}",
        'Write "{p}" directly after the answer.|End the reply with "{p}", attached to the answer.|The answer is followed at once by "{p}".',
        p=("!", "?", ".", "!!", ";", "...", " END", " ok")),
    formatted("answer-upper", _LETTERED, lambda _, a: a.upper() if a != a.upper() else None,
        "Write the answer in capital letters.|The answer must be in upper case.|Answer in all caps."),
    formatted("answer-reversed", _LETTERED, lambda _, a: a[::-1] if len(a) < 9 else None,
        "Write the answer backwards, last character first.|Spell the answer in reverse.|The answer must be spelled from its last character to its first."),
    formatted("as-bullet", _SHORT, lambda _, a, b: f"{b} {a}",
        'Write the answer as a bullet point that starts with "{b}" and a space.|The reply is a list with one item: "{b}", a space, the answer.|Format the answer as a list item with "{b}" and a space in front.',
        b=("-", "*", "+", "1.", "•")),
    formatted("in-tags", _SHORT, lambda _, a, t: f"<{t}>{a}</{t}>",
        "Put the answer between <{t}> and </{t}>.|Wrap the answer in the tag {t}, as in <{t}>...</{t}>.|The reply opens with <{t}>, closes with </{t}> and holds only the answer.",
        t=("b", "i", "ans", "out", "p", "em", "code")),
    formatted("arrow-form", _COPIED, lambda x, a, s: f"{x}{s}{a}",
        'Always reply in the form input{s}answer.|Copy the input, then write "{s}" and the answer, with the spaces as shown.|Use the form X{s}Y, with the input for X and the answer for Y.',
        s=(" -> ", " = ", ": ", " | ", " => ")),
    formatted("twice", _SHORT, lambda _, a, s: f"{a}{s}{a}",
        'Write the answer twice with "{s}" between, spaces as shown.|Repeat the answer once, after "{s}" with its spaces.|Give the answer two times, separated by "{s}" exactly as quoted.',
        s=(" / ", ", ", " and ", " - ")),
    formatted("key-value", _SHORT, lambda _, a, k, s: f"{k}{s}{a}",
        "Reply in the form {k}{s}answer, with nothing else.|Write {k}{s} and directly after it the answer.|The reply starts with {k}{s}, and the answer follows at once.",
        k=_KEYS, s=("=", ":", "/", "::")),
    formatted("in-a-sentence", _SHORT, lambda _, a, t: t.replace("_", a),
        'Put the answer into the gap of "{t}".|Reply with "{t}", where the answer stands for the underscore.|Copy "{t}" and replace the underscore by the answer.',
        t=("The answer is _.", "I say _.", "It must be _!", "Well, _ it is.", "My answer: _, of course.")),
)  # fmt: skip

"""Sentences that rules can rewrite exactly, and their parts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from promptlora.data.synthetic.family import choice, family
from promptlora.data.synthetic.pools_text import capital, in_tense

_f = partial(family, "sentence rewriting")
_p = partial(family, "sentence parts")
_c = partial(choice, "grammar questions")
Parts = Mapping[str, str]


def passive(v: Parts) -> str:
    """The action in the passive, simple past, without a place."""
    be = "were" if v["object"].endswith(("dishes", "tickets")) else "was"
    return capital(f"{v['object']} {be} {v['participle']} by {v['subject']}.")


def told(v: Parts, before: str, after: str = "") -> str:
    """The action with words put before its verb in the base form."""
    return capital(f"{v['subject']} {before} {v['base']} {v['object']}{v['place']}{after}.")


SENTENCES = (
    _f("present-to-past", "present", lambda v: in_tense(v, "past"), "put {x} into the simple past|rewrite {x} in the past tense", "{x} in the simple past"),
    _f("present-to-future", "present", lambda v: in_tense(v, "future"), "put {x} into the future with will|rewrite {x} with will", "{x} in the future with will"),
    _f("present-to-progressive", "present", lambda v: in_tense(v, "progressive"), "put {x} into the present progressive, with is and the -ing form|rewrite {x} with is ...ing", "{x} in the present progressive"),
    _f("to-present", "tensed", lambda v: in_tense(v, "present") if v["tense"] != "present" else None, "put {x} into the simple present|rewrite {x} in the present tense, as a habit", "{x} in the simple present"),
    _f("negate", "present", lambda v: told(v, "does not"), "negate {x} with does not|rewrite {x} as a negative sentence with does not", "{x} negated with does not"),
    _f("negate-state", "state", lambda v: capital(f"{v['subject']} {'cannot' if v['verb'] == 'can be' else v['verb'].split()[0] + ' not'}{' be' if ' ' in v['verb'] else ''} {v['rest']}."), "negate {x} by adding not after the first verb, without contractions (can becomes cannot)|make {x} negative with not, uncontracted; can becomes cannot", "the negation of {x} with not, uncontracted (cannot for can)"),
    _f("statement-to-question", "state", lambda v: capital(f"{v['verb'].split()[0]} {v['subject']}{' be' if ' ' in v['verb'] else ''} {v['rest']}?"), "turn {x} into a question by moving the first verb to the front|ask whether {x} is true by putting its first verb first", "{x} as a yes-or-no question"),
    _f("do-question", "present", lambda v: capital(f"does {v['subject']} {v['base']} {v['object']}{v['place']}?"), "turn {x} into a yes-or-no question with does|ask with Does whether {x} holds", "{x} as a question with Does"),
    _f("who-question", "present", lambda v: f"Who {v['third']} {v['object']}{v['place']}?", "ask for the subject of {x} with who|replace the subject of {x} by who and make it a question", "a question with Who for the subject of {x}"),
    _f("what-question", "present", lambda v: f"What does {v['subject']} {v['base']}{v['place']}?", "ask for the object of {x} with What does|make a question with What does whose answer is the object of {x}", "a question with What does for the object of {x}"),
    _f("tag-question", "present", lambda v: f"{in_tense(v, 'present')[:-1]}, doesn't {v['pronoun']}?", "add a question tag with doesn't to {x}|make {x} a tag question, as in ..., doesn't she?", "{x} with a tag such as , doesn't she?"),
    _f("pronoun-subject", "present", lambda v: capital(f"{v['pronoun']} {v['third']} {v['object']}{v['place']}."), "replace the subject of {x} by he or she|use he or she for the person in {x}", "{x} with he or she as its subject"),
    _f("modal", "present", lambda v, m: told(v, m), 'put "{m}" into {x} before the verb, which takes its base form|say {x} with "{m}"', '{x} with "{m}" and the base form of the verb', m=("can", "must", "should", "may", "might", "could")),
    _f("used-to", "present", lambda v, m: told(v, m), 'rewrite {x} with "{m}" before the base form of the verb|change the verb of {x} to "{m}" and its base form', '{x} with "{m}" and the base form', m=("wants to", "has to", "likes to", "used to", "forgot to", "tries to", "plans to")),
    _f("passive", "present", lambda v: passive(v) if not v["place"] else None, "put {x} into the passive and the simple past, with was or were and by|rewrite {x} as: object, was or were, participle, by, person", "{x} in the passive of the simple past with by"),
    _f("command", "present", lambda v: capital(f"{v['base']} {v['object']}{v['place']}."), "turn {x} into a command without a subject|tell somebody to do what {x} says, as an order", "{x} as a command that starts with the verb and ends with a full stop"),
    _f("polite-request", "present", lambda v, s: f"{s} {v['base']} {v['object']}{v['place']}?", 'ask somebody to do what {x} says, starting with "{s}"|turn {x} into a request: "{s}", verb in the base form, rest and a question mark', 'a request for what {x} says that starts with "{s}" and ends with a question mark', s=("Could you please", "Would you", "Can you", "Will you please")),
    _f("prohibition", "present", lambda v, s: f"{s} {v['base']} {v['object']}{v['place']}!", 'forbid what {x} says, starting with "{s}" and ending with an exclamation mark|turn {x} into a ban: "{s}", base form, rest, exclamation mark', 'a ban on what {x} says, with "{s}" first and ! at the end', s=("Do not", "Never", "Don't", "You must not")),
    _f("first-to-third", "first-person", lambda v, who: f"{who} {v['third']} {v['object']}{v['place']}.", 'replace I by "{who}" in {x} and adapt the verb|rewrite {x} about "{who}" instead of I', '{x} with "{who}" as its subject and the verb adapted', who=("She", "He", "My friend", "Anna", "Paul", "Everybody")),
    _f("third-to-first", "present", lambda v, who: f"{who} {v['base']} {v['object']}{v['place']}.", 'replace the subject of {x} by "{who}" and adapt the verb|rewrite {x} as if "{who}" did it', '{x} with "{who}" as its subject and the verb adapted', who=("I", "We", "They", "You", "My parents")),
    _f("insert-adverb", "present", lambda v, a: capital(f"{v['subject']} {a} {v['third']} {v['object']}{v['place']}."), 'insert "{a}" before the verb of {x}|put the adverb {a} between subject and verb of {x}', '{x} with "{a}" before its verb', a=("always", "never", "often", "rarely", "sometimes", "usually", "secretly")),
    _f("front-time", "tensed", lambda v, a: f"{a}, {in_tense(v, v['tense'])[0].lower()}{in_tense(v, v['tense'])[1:]}", 'put "{a}," in front of {x} and start the old first word with a small letter|begin {x} with "{a}" and a comma', '{x} after "{a},"', a=("Luckily", "Sadly", "As usual", "In the end", "Of course", "Perhaps")),
    _f("reported", "present", lambda v, s: f"{s} {in_tense(v, 'present')[0].lower()}{in_tense(v, 'present')[1:]}", 'put "{s}" before {x}, with a small letter after it|report {x} by starting with "{s}"', '{x} after the words "{s}"', s=("I think that", "They say that", "She knows that", "We hope that", "It is true that")),
    _f("with-reason", "present", lambda v, s: f"{in_tense(v, 'present')[:-1]} {s}.", 'add "{s}" before the full stop of {x}|put the words "{s}" at the end of {x}', '{x} with "{s}" before the full stop', s=("every day", "with great care", "on Sundays", "for a friend", "all alone", "once a week")),
    _f("no-place", "present", lambda v: in_tense({**v, "place": ""}, "present") if v["place"] else None, "delete the place from {x}|shorten {x} by leaving out where it happens", "{x} without its place"),
    _f("emphasis", "state", lambda v, w: capital(f"{v['subject']} {v['verb']} {w} {v['rest']}."), 'put "{w}" before the adjective of {x}|strengthen the adjective of {x} with the word "{w}"', '{x} with "{w}" before its adjective', w=("very", "really", "quite", "too", "so", "rather")),
    _f("exclaim", "state", lambda v: f"How {v['rest']} {v['subject']} {v['verb']}!", "turn {x} into an exclamation that starts with How and the adjective|exclaim {x} in the form: How, adjective, subject, verb, exclamation mark", "{x} as an exclamation that starts with How, as in How tall the man is!"),
    _f("noun-phrase", "state", lambda v: f"{v['subject'].split()[0]} {v['rest']} {' '.join(v['subject'].split()[1:])}" if v["subject"].startswith("the ") else None, "make a noun phrase of {x} by putting the adjective before the noun, as in the red door|shorten {x} to the, adjective, noun without a verb", "the noun phrase of {x}: the, adjective, noun, in lower case"),
    _p("subject", "present", lambda v: v["subject"], "copy the subject of {x} in lower case|name the person or persons who act in {x}, in lower case", "the subject of {x} in lower case, with its article or possessive"),
    _p("object", "present", lambda v: v["object"], "copy the object of {x}|copy the thing to which something is done in {x}", "the object of {x} with its article"),
    _p("verb", "present", lambda v: v["third"], "copy the verb of {x}|name the word of {x} that says what is done", "the verb of {x} as it stands"),
    _p("verb-base", "tensed", lambda v: v["base"], "give the verb of {x} in its base form|name the infinitive, without to, of the main verb of {x}", "the base form of the main verb of {x}"),
    _p("place-phrase", "present", lambda v: v["place"].strip() or None, "copy the words of {x} that say where|name the place of {x} with its preposition", "the place in {x} with its preposition, without the full stop"),
    _p("object-noun", "present", lambda v: v["object"].split()[-1], "copy the noun of the object of {x}, without article and adjective|name the thing in {x} in one word", "the noun of the object of {x}, one word"),
    _p("adjective-of", "state", lambda v: v["rest"], "copy the adjective of {x}|name the word that describes the subject of {x}", "the adjective of {x}"),
    _p("state-subject", "state", lambda v: v["subject"].split()[-1], "copy the noun of the subject of {x}, without its article or possessive|name in one word who or what {x} is about", "the noun of the subject of {x}, one word"),
    _p("subject-and-object", "present", lambda v, s: f"{v['subject']} {s} {v['object']}", 'write the subject of {x} in lower case, "{s}" and the object|shorten {x} to subject, "{s}", object, all in lower case', 'subject and object of {x} with "{s}" between, in lower case without a full stop', s=("->", "/", "+", "=>", "|")),
    *_c("tense", "tensed", lambda v: v["tense"], {"present": "{x} is in the present", "past": "{x} is in the past", "future": "{x} is about the future"}, "give the tense of {x}|Which tense is {x} in?"),
    *_c("voice", "voice", lambda v: v, {"active": "{x} is active", "passive": "{x} is passive"}, "say whether {x} is active or passive|Is {x} in the active or the passive voice?"),
    *_c("person", "spoken", lambda v: v["person"], {"first": "the subject of {x} is I or we", "second": "the subject of {x} is you", "third": "the subject of {x} is he, she or they"}, "give the grammatical person of {x}: first, second or third|Is the subject of {x} in the first, second or third person?"),
    *_c("has-place", "present", lambda v: "yes" if v["place"] else "no", {"yes": "{x} says where it happens", "no": "it does not"}, "say whether {x} names a place|Does {x} say where it happens?"),
    *_c("gender-of-subject", "present", lambda v: v["pronoun"], {"he": "the subject of {x} is male", "she": "the subject of {x} is female"}, "choose the pronoun for the subject of {x}|Which pronoun fits the subject of {x}?"),
)  # fmt: skip

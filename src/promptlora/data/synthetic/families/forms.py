"""Forms of English words: plural, tenses, comparison, derivation, opposites, contractions."""

from __future__ import annotations

from functools import partial

from promptlora.data.synthetic.family import choice, family
from promptlora.data.synthetic.vocabulary import words

_f = partial(family, "word forms")
_c = partial(choice, "grammar questions")
_COMPARED = {row[0]: row for row in words.ADJECTIVES}


def article(noun: str) -> str:
    """A noun with its indefinite article (no noun of the vocabulary has a silent h or a spoken y at the start)."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


FORMS = (
    _f("plural", "noun", lambda v: v[1], "give the plural of {x}|write {x} in the plural|What is the plural of {x}?", "the plural of {x}|{x} in the plural"),
    _f("singular", "plural", lambda v: v[0], "give the singular of {x}|write {x} in the singular|What is the singular of {x}?", "the singular of {x}|{x} in the singular"),
    _f("counted", "noun", lambda v, k: f"{k} {v[1]}", 'say how one speaks of {k} of {x}, in the form "{k}" and the plural|put "{k}" before the plural of {x}', '"{k}" followed by the plural of {x}', k=("two", "three", "five", "ten", "many", "several")),
    _f("article", "noun", lambda v: article(v[0]), "put a or an before {x}|write {x} with the right indefinite article", "{x} after a or an, whichever is right"),
    _f("both-numbers", "noun", lambda v, s: f"{v[0]}{s}{v[1]}", 'write {x} and its plural with "{s}" between|give singular and plural of {x}, joined by "{s}" as shown, with nothing else', 'singular and plural of {x} with "{s}" between', s=("/", " / ", ", ", "-", " and ")),
    _f("past-tense", "verb", lambda v: v[2], "give the past tense of {x}|put {x} into the simple past|What is the simple past of {x}?", "the simple past of {x}"),
    _f("past-participle", "verb", lambda v: v[3], "give the past participle of {x}|name the form of {x} that follows have, as in have ...", "the past participle of {x}|the form of {x} used after have"),
    _f("ing-form", "verb", lambda v: v[4], "give the -ing form of {x}|add -ing to {x} with the right spelling|What is the present participle of {x}?", "the -ing form of {x}"),
    _f("third-person", "verb", lambda v, who: f"{who} {v[1]}", 'put "{who}" before {x} in the right form of the present tense|conjugate {x} in the simple present for "{who}" and write both words', '"{who}" with {x} in the simple present', who=("he", "she", "it", "Anna", "Tom", "everybody")),
    _f("third-person-form", "verb", lambda v: v[1], "give the third person singular of {x} in the present tense|write the form of {x} that follows he or she in the present", "the third person singular present of {x}, one word"),
    _f("future", "verb", lambda v, who: f"{who} will {v[0]}", 'write the future with will of {x} for "{who}"|put {x} into the future: "{who}", will, verb', '"{who}", will and {x}', who=("I", "we", "she", "they", "you", "he")),
    _f("perfect", "verb", lambda v, who: f"{who} have {v[3]}", 'put {x} into the present perfect after "{who}"|write "{who} have" and the participle of {x}', '"{who} have" with the past participle of {x}', who=("I", "we", "they", "you")),
    _f("progressive", "verb", lambda v, who: f"{who} {v[4]}", 'write "{who}" and the -ing form of {x}|put {x} into the progressive after "{who}"', '"{who}" followed by the -ing form of {x}', who=("he is", "we are", "I was", "they were")),
    _f("negative-verb", "verb", lambda v, who: f"{who} {v[0]}", 'write "{who}" and the base form of {x}|negate {x} by putting "{who}" before it', '"{who}" followed by {x}', who=("I do not", "she does not", "we did not", "you must not", "they cannot")),
    _f("base-from-past", "past-verb", lambda v: v[0], "give the base form of {x}|name the infinitive without to that {x} comes from", "the base form of {x}|the infinitive of {x} without to"),
    _f("base-from-ing", "ing-verb", lambda v: v[0], "give the base form of {x}|take the ending -ing off {x} and restore the spelling of the verb", "the base form of {x}"),
    _f("past-from-ing", "ing-verb", lambda v: v[2], "give the simple past of the verb of {x}|change {x} to the past tense, one word", "the simple past of the verb whose -ing form is {x}"),
    _f("principal-parts", "verb", lambda v: v[0:1] + v[2:4], "give base form, simple past and past participle of {x}|list the three principal parts of {x}", "the base form, simple past and past participle of {x}", "Separate them with commas.|Use commas."),
    _f("agent-noun", "agent", lambda v: v[1], "name the person who does what {x} says, with -er or -or|form the noun in -er or -or for one who does this: {x}", "the noun in -er or -or for a person who does what {x} says"),
    _f("comparative", "adjective", lambda v: v[1], "give the comparative of {x}|write the form of {x} that stands before than", "the comparative of {x}"),
    _f("superlative", "adjective", lambda v: f"the {v[2]}", "write the and the superlative of {x}|give the superlative of {x} after the", "the superlative of {x} after the word the"),
    _f("superlative-bare", "adjective", lambda v: v[2], "give the superlative of {x} without the|write the highest degree of {x}, as in tallest", "the superlative of {x} without an article"),
    _f("base-from-comparative", "comparative", lambda v: v[0], "give the base form of the adjective in {x}|write the adjective that {x} is the comparative of", "the adjective that {x} compares, in its base form"),
    _f("superlative-from-comparative", "comparative", lambda v: _COMPARED[v[0]][2], "turn {x} into the superlative without the|write the superlative that belongs to {x}", "the superlative that belongs to {x}, without an article"),
    _f("as-as", "adjective", lambda v, thing: f"as {v[0]} as {thing}", "write as, {x}, as and {thing}|compare with {thing} by putting {x} between two as", "a phrase with {x} of the form as ... as {thing}", thing=("ice", "gold", "a stone", "the sky", "a feather")),
    _f("adverb", "manner", lambda v: v[1], "turn {x} into an adverb|give the adverb that belongs to {x}|What is the adverb of {x}?", "the adverb of {x}"),
    _f("ness-noun", "quality", lambda v: v[1], "form a noun in -ness from {x}|turn {x} into a noun that ends in -ness", "the noun in -ness that belongs to {x}"),
    _f("negating-prefix", "negatable", lambda v: v[1], "negate {x} with a prefix such as un-, in-, im-, il-, ir- or dis-|put the right negating prefix before {x}", "{x} with its negating prefix (un-, in-, im-, il-, ir- or dis-)"),
    _f("antonym", "opposite", lambda v: v[1], "give the opposite of {x}|name the word that means the contrary of {x}|What is the opposite of {x}?", "the opposite of {x}|the antonym of {x}"),
    _f("word-and-opposite", "opposite", lambda v, s: f"{v[0]} {s} {v[1]}", 'write {x}, the sign "{s}" and its opposite, with spaces|pair {x} with its antonym: word, "{s}", antonym', '{x} and its opposite with "{s}" between and spaces around it', s=("-", "/", "vs", "><", "~", "not")),
    _f("contract", "long-form", lambda v: v["short"], "use a contraction in {x}|shorten two words of {x} to a contraction with an apostrophe, as in don't or we're", "{x} with its contraction, as in don't or we're"),
    _f("expand", "short-form", lambda v: v["full"], "write out the contraction in {x}|replace the contraction of {x} by its full form", "{x} without contractions"),
    _f("possessive", "name word", lambda v, thing: f"{v}'s {thing}" if not v.endswith("s") else None, "write {x} in the possessive before {thing}|add 's to {x} and then the word {thing}", "{x} with 's, followed by {thing}", thing=("house", "dog", "garden", "key", "shoes", "birthday", "voice")),
    *_c("noun-number", "noun-form", lambda v: v, {"singular": "{x} is singular", "plural": "{x} is plural"}, "say whether {x} is singular or plural|Is {x} singular or plural?"),
    *_c("part-of-speech", "part-of-speech", lambda v: v, {"noun": "{x} is a noun", "verb": "{x} is a verb", "adjective": "{x} is an adjective"}, "give the part of speech of {x}|Which part of speech is {x}?"),
    *_c("article-choice", "noun", lambda v: article(v[0]).split()[0], {"a": "{x} takes the article a", "an": "{x} takes the article an"}, "choose the indefinite article for {x}|Which article goes before {x}, a or an?"),
    *_c("regular-verb", "verb", lambda v: "regular" if v[2].endswith("ed") and v[2] == v[3] else "irregular", {"regular": "the past tense of {x} is formed with -ed", "irregular": "the past tense of {x} is not formed with -ed"}, "say whether {x} is a regular or an irregular verb|Is {x} regular or irregular?"),
)  # fmt: skip

"""Builds whole prompts from the phrases of a goal: opening, phrase and format clause, in many styles.

All families share these templates, so that the style of a prompt does not reveal its family.
"""

from __future__ import annotations

from random import Random

from promptlora.data.synthetic.family import Goal, fill
from promptlora.data.synthetic.pools import POOLS

# Fields: do, Do: an imperative phrase; give, Give: a noun phrase; ask: a question; in, In: the input ("a word");
# kind: an adjective. The goal's note follows the template, and sometimes a format clause.
_IMPERATIVE = (
    "{Do}.",
    "{Do}.",
    "{Do}.",
    "Please {do}.",
    "Your task is to {do}.",
    "You will be given {in}. {Do}.",
    "Given {in}, {do}.",
    "You are a {kind} assistant. {Do}.",
    "You are an assistant whose only job is to {do}.",
    "Can you {do}?",
    "Could you please {do}?",
    "I will send you {in}. Please {do}.",
    "For every message that you receive, {do}.",
    "Task: {do}.",
    "The user sends {in}. {Do}.",
    "I need you to {do}.",
    "Help me with this: {do}.",
    "From now on, {do}.",
    "Instruction: {do}.",
    "You are a {kind} bot that gets {in}. {Do}.",
    "In this task you get {in}. You have to {do}.",
    "I want you to {do}.",
    "Next comes {in}. {Do}.",
    "Whenever you get {in}, {do}.",
    "The next message holds {in}. {Do}.",
)
_NOMINAL = (
    "Reply with {give}.",
    "Return {give}.",
    "Answer with {give}.",
    "I will send you {in}. I want {give}.",
    "Input: {in}. Output: {give}.",
    "You will receive {in}. Your answer is {give}.",
    "What I need is {give}.",
    "Write {give} and nothing else.",
    "Each message is {in}. Respond with {give}.",
    "You are a {kind} assistant that replies with {give}.",
    "Expected answer: {give}.",
    "Give me {give}.",
    "Please send back {give}.",
    "Output {give}.",
    "You get {in}; print {give}.",
    "The response must be {give}.",
)
_QUESTION = (
    "{ask}",
    "{ask}",
    "You will be given {in}. {ask}",
    "Question: {ask}",
    "Tell me: {ask}",
    "Look at the message. {ask}",
    "You are a {kind} assistant. {ask}",
    "I will send you {in}. {ask}",
    "Please answer this: {ask}",
)
_CLOSING = (
    "Answer only.",
    "No explanations.",
    "Give just the answer.",
    "Output nothing else.",
    "Reply with the answer alone.",
    "Do not add anything.",
    "Just the result, please.",
    "Keep to the answer.",
)
_KINDS = ("careful", "helpful", "precise", "quick", "friendly", "reliable", "concise", "patient", "diligent", "quiet")
_REFERENCES = ("{noun}", "{noun}", "{noun}", "the given {bare}", "the input")


def _capital(phrase: str) -> str:
    return phrase[:1].upper() + phrase[1:]


def write_wording(goal: Goal, rng: Random) -> str:
    """Write one prompt for a goal, with a randomly drawn phrase, template and clauses."""
    kind = rng.random()
    asked = [p for p in goal.do if p[0].isupper() and p.split("\n")[0].endswith("?")]
    told = [p for p in goal.do if p not in asked]
    if goal.give and kind < 0.4:
        phrase, template = rng.choice(goal.give), rng.choice(_NOMINAL)
    elif asked and (not told or kind < 0.65):
        phrase, template = rng.choice(asked), rng.choice(_QUESTION)
    else:
        phrase, template = rng.choice(told), rng.choice(_IMPERATIVE)
    phrase, *tails = phrase.split("\n")
    pool = POOLS[goal.pool]
    reference = rng.choice(_REFERENCES).format(noun=pool.noun, bare=pool.noun.removeprefix("the "))
    notes = [rng.choice(goal.note)] if goal.note else []
    closing = [rng.choice(_CLOSING)] if rng.random() < 0.35 and "nothing else" not in template else []
    values = {
        "do": phrase,
        "Do": _capital(phrase),
        "give": phrase,
        "ask": phrase,
        "in": pool.given,
        "In": _capital(pool.given),
        "kind": rng.choice(_KINDS),
    }
    first = fill(template, values)
    if first.endswith(("..", "?.")):
        first = first[:-1]
    return " ".join([first, *notes, *tails, *closing]).replace("{x}", reference)


def write_wordings(goal: Goal, count: int, rng: Random) -> tuple[str, ...]:
    """Write ``count`` distinct prompts for a goal, or fewer if its phrases do not give as many.

    Args:
        goal: The goal.
        count: Maximum number of prompts.
        rng: Source of randomness.
    """
    found: dict[str, None] = {}
    for _ in range(count * 12):
        found[write_wording(goal, rng)] = None
        if len(found) == count:
            break
    return tuple(found)

"""The frames and synonyms of wordings: tables of text, the same for every task.

In a frame, {D} and {d} stand for the instruction (with and without a capital first letter), {x} for the input and {a}
for the answer.
"""

from __future__ import annotations

DO = (
    "{D}.",
    "{D}.",
    "Please {d}.",
    "Your task is to {d}.",
    "Your job is to {d}.",
    "You need to {d}.",
    "I want you to {d}.",
    "I'd like you to {d}.",
    "The goal is to {d}.",
    "What you have to do: {d}.",
    "Could you {d}?",
    "Can you please {d}?",
    "Would you {d}?",
)
ASK = (
    "{D}",
    "{D}",
    "Please answer this question: {D}",
    "Tell me: {d}",
    "I want to know: {d}",
    "Here is the question: {d}",
    "Answer one question about the input: {d}",
    "For the input below: {d}",
    "What you have to find out: {d}",
    "Look at the input. {D}",
)
SAY = (
    "{D}.",
    "{D}.",
    "{D}. This holds for the input below.",
    "{D}. The input follows.",
    "{D}. The input comes next.",
    "{D}. The text below is the input.",
)
SAY_TASK = (
    "{D}.",
    "Here is the task. {D}.",
    "This is what to do. {D}.",
    "Please follow this instruction. {D}.",
    "Read the instruction and apply it to the input. {D}.",
    "The instruction for the input below: {D}.",
    "{D}. Do this for the input below.",
    "{D}. The input follows.",
    "Please do the following with the input. {D}.",
)
GIVEN_FIRST = (
    "You are given {x}.",
    "You get {x}.",
    "You will be shown {x}.",
    "I will give you {x}.",
    "The input consists of {x}.",
    "Input: {x}.",
)
GIVEN_LAST = (
    "You will be given {x}.",
    "The input consists of {x}.",
    "The input will be {x}.",
    "What you get: {x}.",
    "I will send you {x}.",
)
SYSTEM = (
    "You are an assistant that handles one task.",
    "You are a helpful assistant.",
    "You are a careful assistant that follows instructions exactly.",
    "You are part of an automatic pipeline.",
    "Act as an assistant for the following task.",
)
ANSWER_WITH = (
    "Answer with {a}.",
    "Reply with {a}.",
    "Respond with {a}.",
    "Your answer must be {a}.",
    "Your reply should be {a}.",
    "Write {a} as your answer.",
    "Output {a}.",
)
HEADERS = (
    ("Task:", "Input:", "Output:", "Rules:", " "),
    ("Instruction:", "Input:", "Answer:", "Notes:", " "),
    ("### Task", "### Input", "### Output", "### Notes", "\n"),
    ("## Instruction", "## Input", "## Answer format", "## Details", "\n"),
    ("[task]", "[input]", "[output]", "[notes]", " "),
)
# Words that refer to the task but are never its content; one choice applies to a whole wording. Longer ones come first.
SYNONYMS = (
    (r"\bdecide (whether|if)\b", ("determine whether", "work out whether", "tell whether", "judge whether")),
    (r"\bdetermine\b", ("work out", "find out", "establish")),
    (r"\bgenerate\b", ("write", "produce", "come up with", "create")),
    (r"\bconstruct\b", ("write", "make", "create")),
    (r"\bclassify\b", ("categorize", "label")),
    (r"\bidentify\b", ("find", "recognise", "spot")),
    (r"\brecognize\b", ("identify", "find", "spot")),
    (r"\bextract\b", ("pull out", "copy out")),
    (r"\bcalculate\b", ("compute", "work out")),
    (r"\bcompute\b", ("calculate", "work out")),
    (r"\bname\b(?= the\b)(?<!the name)", ("give", "state")),
    (r"\b(?:choose|select)\b(?! from:)", ("pick", "choose", "select")),
    (r"\bprovide\b", ("give", "write")),
    (r"\bcopy\b(?! of| out)", ("write out", "copy out")),
    (r"\breturn\b", ("give", "output", "answer with")),
    (r"\bin order to\b", ("to",)),
    (r"\bsuch that\b", ("so that",)),
    (r"\byou must\b", ("you have to", "you need to")),
    (r"\bdo not\b", ("don't",)),
    (r"\bdon't\b", ("do not",)),
    (r"\bthe given\b(?= \w*[^s\W]\b)", ("the", "this")),
    (r"\bthe given\b(?= \w+s\b)", ("the",)),
)
FIRST_VERB = {
    "write": ("give", "produce", "write down"),
    "give": ("write", "provide"),
    "list": ("write down", "give"),
    "answer": ("reply", "respond"),
    "solve": ("work out", "find the solution to"),
    "find": ("identify", "pick out", "determine"),
}

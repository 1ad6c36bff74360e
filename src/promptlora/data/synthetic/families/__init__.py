"""All families, by file. The result of a seed depends on their order."""

from __future__ import annotations

from promptlora.data.synthetic.families.classify import CLASSIFICATION
from promptlora.data.synthetic.families.conditions import CONDITIONS, QUESTIONS
from promptlora.data.synthetic.families.dates import DATES
from promptlora.data.synthetic.families.extract import EXTRACTION
from promptlora.data.synthetic.families.formats import FORMATS
from promptlora.data.synthetic.families.forms import FORMS
from promptlora.data.synthetic.families.knowledge import KNOWLEDGE
from promptlora.data.synthetic.families.letters import LETTERS
from promptlora.data.synthetic.families.lists import LISTS
from promptlora.data.synthetic.families.number_lists import NUMBER_LISTS
from promptlora.data.synthetic.families.numbers import NUMBERS
from promptlora.data.synthetic.families.sentences import SENTENCES
from promptlora.data.synthetic.families.steps import COMPOSITIONS
from promptlora.data.synthetic.families.strings import STRINGS
from promptlora.data.synthetic.families.units import UNIT_FAMILIES
from promptlora.data.synthetic.family import Family

FAMILIES: tuple[Family, ...] = (
    *STRINGS,
    *LETTERS,
    *LISTS,
    *NUMBER_LISTS,
    *NUMBERS,
    *DATES,
    *UNIT_FAMILIES,
    *FORMS,
    *SENTENCES,
    *EXTRACTION,
    *CLASSIFICATION,
    *KNOWLEDGE,
    *CONDITIONS,
    *QUESTIONS,
    *COMPOSITIONS,
    *FORMATS,
)

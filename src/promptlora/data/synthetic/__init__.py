"""Instruction tasks without end: families with parameters, inputs from vocabularies in the package, several wordings.

Read it in this order: ``family`` (what a task is), ``families`` (one file for each kind), ``pools`` (inputs that many
families share), ``wording`` (from phrases to prompts), ``generate`` (tasks with rows, by seed).
"""

from promptlora.data.synthetic.generate import SyntheticRow, SyntheticTask, categories, family_names, make_tasks

__all__ = ["SyntheticRow", "SyntheticTask", "categories", "family_names", "make_tasks"]

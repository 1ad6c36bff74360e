"""Unlimited instruction tasks: parameterised families, inputs from built-in vocabularies, several wordings per task.

Read the modules in this order: ``family`` (what a task is), ``families`` (one file per kind), ``pools`` (inputs that
many families share), ``wording`` (from phrases to prompts), ``generate`` (tasks with rows, by seed).
"""

from promptlora.data.synthetic.generate import SyntheticRow, SyntheticTask, categories, family_names, make_tasks

__all__ = ["SyntheticRow", "SyntheticTask", "categories", "family_names", "make_tasks"]

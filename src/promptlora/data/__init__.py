"""Rows, their token ids, and how they are put into batches.

Names are imported on first use, so that code that only reads files or generates tasks starts without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptlora.data.batches import Batch as Batch
    from promptlora.data.batches import Batches as Batches
    from promptlora.data.batches import Shown as Shown
    from promptlora.data.batches import ids_and_labels as ids_and_labels
    from promptlora.data.batches import make_batch as make_batch
    from promptlora.data.batches import rows_by_task as rows_by_task
    from promptlora.data.config import DataConfig as DataConfig
    from promptlora.data.order import Group as Group
    from promptlora.data.order import RowOrder as RowOrder
    from promptlora.data.order import TaskOrder as TaskOrder
    from promptlora.data.rows import Row as Row
    from promptlora.data.rows import check_rows as check_rows
    from promptlora.data.rows import first_of_each_task as first_of_each_task
    from promptlora.data.rows import hold_out as hold_out
    from promptlora.data.rows import make_row as make_row
    from promptlora.data.rows import of_split as of_split
    from promptlora.data.rows import one_prompt_a_task as one_prompt_a_task
    from promptlora.data.rows import read_paraphrases as read_paraphrases
    from promptlora.data.rows import read_rows as read_rows
    from promptlora.data.rows import tasks_answered_in_letters as tasks_answered_in_letters
    from promptlora.data.tokens import Example as Example
    from promptlora.data.tokens import render_inputs as render_inputs
    from promptlora.data.tokens import tokenize_rows as tokenize_rows

_HOME = {
    "Batch": "batches",
    "Batches": "batches",
    "DataConfig": "config",
    "Example": "tokens",
    "Group": "order",
    "Row": "rows",
    "RowOrder": "order",
    "Shown": "batches",
    "TaskOrder": "order",
    "check_rows": "rows",
    "first_of_each_task": "rows",
    "hold_out": "rows",
    "ids_and_labels": "batches",
    "make_batch": "batches",
    "make_row": "rows",
    "of_split": "rows",
    "one_prompt_a_task": "rows",
    "read_paraphrases": "rows",
    "read_rows": "rows",
    "render_inputs": "tokens",
    "rows_by_task": "batches",
    "tasks_answered_in_letters": "rows",
    "tokenize_rows": "tokens",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'promptlora.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"promptlora.data.{_HOME[name]}"), name)

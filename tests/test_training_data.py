"""What a run trains on and is measured on: tasks of several prompts, held-out tasks, wordings of other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promptlora.errors import ConfigError, DataError
from promptlora.train.reading import TrainingData, read_training_data
from tests.training_helpers import toy_config, toy_rows, write_jsonl


def read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> TrainingData:
    path = write_jsonl(folder / "rows.jsonl", rows)
    return read_training_data(toy_config(folder, "", path, **options))


def rows_of(task: str, prompt: str, split: str, category: str = "", count: int = 4) -> list[dict[str, Any]]:
    shared = {"task": task, "prompt": prompt, "outputs": ["a"], "split": split, "category": category}
    return [{**shared, "input": f"{split} {i}"} for i in range(count)]


@pytest.mark.parametrize("held", [1, 2, 3])
def test_no_held_out_prompt_is_trained_on_whatever_the_order_of_the_splits(tmp_path, held):
    """The eval rows come in another order: numbered by it, the held-out ``t #1`` would be the trained ``t #2``."""
    first, others = ["say a", "say b", "say c", "write a", "write b"], ["never a", "never b"]
    rows = [row for prompt in first for row in rows_of("t", prompt, "train", prompt)]
    rows += [row for prompt in others for row in rows_of("u", prompt, "train", prompt)]
    rows += [row for prompt in reversed(others) for row in rows_of("u", prompt, "eval", prompt)]
    rows += [row for prompt in reversed(first) for row in rows_of("t", prompt, "eval", prompt)]
    data = read(tmp_path, rows, validation={"tasks": held})
    assert len(data.heldout_prompts) == held
    assert not set(data.heldout_prompts) & set(data.own_prompts)
    assert len({row.task for row in data.held}) == held
    assert {row.split for row in data.held} == {"eval"}


def test_all_prompts_of_a_task_are_held_out_together(tmp_path):
    """They have the same answers: a task whose other prompt is trained on is not unseen."""
    prompts = {"t": ["say a", "say b"], "u": ["write a", "write b"], "v": ["never a", "never b"]}
    rows = [row for task, several in prompts.items() for prompt in several for row in rows_of(task, prompt, "")]
    data = read(tmp_path, rows, validation={"tasks": 3})
    assert set(data.heldout_prompts) in [set(several) for several in prompts.values()]
    assert len(data.prompts) == 4


def test_a_held_out_task_may_have_another_prompt_in_the_other_split(tmp_path):
    rows = [row for task in "tuv" for row in rows_of(task, f"say {task}", "train")]
    rows += [row for task in "tuv" for row in rows_of(task, f"write {task}", "eval")]
    data = read(tmp_path, rows, validation={"tasks": 1})
    (task,) = {row.task for row in data.held}
    assert data.heldout_prompts == [f"write {task}"]


def test_more_sources_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"validation\.sources=2: data\.train has 1"):
        read(tmp_path, toy_rows(3), validation={"tasks": 1, "sources": 2, "split": "train"})


def test_categories_that_are_all_larger_than_what_is_held_out(tmp_path):
    rows = [{**row, "category": "one"} for row in toy_rows(4)]
    with pytest.raises(DataError, match=r"validation\.tasks=2: whole categories .* Expected at least 4"):
        read(tmp_path, rows, validation={"tasks": 2})


def test_wordings_of_other_rows_are_refused(tmp_path):
    """A file of wordings that fits no task, or another prompt, was made from other rows."""
    foreign = write_jsonl(tmp_path / "foreign.jsonl", [{"task": "other", "prompts": ["never a"]}])
    with pytest.raises(DataError, match=r"foreign\.jsonl: wordings of none of the 2 tasks"):
        read(tmp_path, toy_rows(2), data={"paraphrases": str(foreign)})
    stale = write_jsonl(tmp_path / "stale.jsonl", [{"task": "t1", "prompt": "say c", "prompts": ["never c"]}])
    with pytest.raises(DataError, match=r"stale\.jsonl:1: wordings of 'say c'; the prompt of task 't1' is 'say b'"):
        read(tmp_path, toy_rows(2), data={"paraphrases": str(stale)})
    right = write_jsonl(tmp_path / "right.jsonl", [{"task": "t1", "prompt": "say b", "prompts": ["never b"]}])
    data = read(tmp_path, toy_rows(2), data={"paraphrases": [str(right)]})
    assert data.prompts == {"t0": ["say a"], "t1": ["say b", "never b"]}
    some = read(tmp_path, toy_rows(2), data={"paraphrases": str(right), "exclude": ["t1"]})
    assert some.prompts == {"t0": ["say a"]}

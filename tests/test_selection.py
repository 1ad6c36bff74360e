"""Which tasks training drops: broken answers, and goals that a held-out task has too."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from promptlora.data import Row
from promptlora.data.selection import clean_tasks, same_goal


def row(task, prompt, text="x", outputs=("y",), category=""):
    return Row(task=task, prompt=prompt, input=text, outputs=tuple(outputs), category=category)


HELD = [row("plural", "Write the plural of the noun.", f"word{i}", [f"words{i}"], "Word Forms") for i in range(10)]


def reasons(training):
    return [(pair.training, pair.reason.split(":")[0]) for pair in same_goal(training, HELD)]


def test_tasks_answered_in_letters_are_dropped_with_the_reason():
    rows = [row("a", "p", outputs=("P", "O", "S")), row("b", "p", outputs=("P",)), row("a", "p", outputs=("N", "E"))]
    kept, dropped = clean_tasks(rows)
    assert [r.task for r in kept] == ["b"]
    assert dropped == {"a": "answers were split into letters"}


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ([row("t", "Anything else.", category="word-forms")], "same category"),
        ([row("t", "Write a plural for the noun!")], "prompts alike"),
        ([row("t", "Turn many into the plural form, as in one house, two houses.")], "same goal"),
        ([row("t", "Zap.", f"Word{i}.", [f"WORDS{i}"]) for i in range(10)], "same rows"),
    ],
)
def test_each_rule_finds_its_pair(training, reason):
    assert reasons(training) == [("t", reason)]


def test_other_goals_are_kept():
    assert reasons([row("t", "Say whether the subject is singular or plural.", category="Parsing")]) == []
    assert reasons([row("t", "Write the capital of the country.", "word1", ["Paris"])]) == []


def test_rows_inside_rows_are_found():
    held = [row("fix", "Mend.", f"the moon is made of cheese {i}", [f"the moon is made of rock {i}"]) for i in range(5)]
    training = [
        row("pick", "Which?", f"A: The moon is made of cheese {i}. B: the moon is made of rock {i}") for i in range(5)
    ]
    assert [pair.reason for pair in same_goal(training, held)] == ["held-out rows inside training rows: 100%"]


def test_command_writes_names_and_reasons_only(tmp_path, capsys):
    path = Path(__file__).parents[1] / "benchmarks" / "data_overlap.py"
    spec = importlib.util.spec_from_file_location("data_overlap", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([str(tmp_path), "--output", str(tmp_path / "o.json")]) == 2
    assert not (tmp_path / "o.json").exists()
    folder = tmp_path / "d"
    folder.mkdir()
    lines = [{"task": r.task, "prompt": r.prompt, "input": r.input, "outputs": list(r.outputs)} for r in HELD]
    for name, task in (("heldout", "plural"), ("train", "plurals")):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({**line, "task": task}) + "\n" for line in lines)
    assert module.main([str(tmp_path), "--output", str(tmp_path / "o.json")]) == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["dropped"] == ["plurals"]
    assert "word1" not in (tmp_path / "o.json").read_text()
    assert "plurals" in capsys.readouterr().out

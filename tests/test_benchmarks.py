"""The queue and the reports of the long benchmarks: what is done is not done again, and means are the right ones."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promptlora.data import Row

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(name)


def test_a_queue_runs_what_is_left_in_order_and_not_what_waits_for_a_failure(benches, tmp_path, monkeypatch):
    runs = benches("runs")
    code = (
        "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text('x') if 'bad' not in p.name else sys.exit(3)"
    )
    monkeypatch.setattr(runs, "promptlora", lambda command: [sys.executable, "-c", code, *command])

    def job(name: str, *after: object) -> object:
        return runs.Job(name, [str(tmp_path / name)], (tmp_path / name).is_file, list(after))

    first, bad = job("first"), job("bad")
    second, never = job("second", first), job("never", bad)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert not runs.work([first, bad, second, never], 2, tmp_path / "logs")
        assert [name for name in ("first", "bad", "second", "never") if (tmp_path / name).is_file()] == [
            "first",
            "second",
        ]
        assert runs.work([first, second], 1, tmp_path / "logs")  # nothing left
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_table_is_of_complete_rows_with_means_over_tasks_and_seeds(benches, tmp_path):
    unseen = benches("unseen_tasks")
    rows = [
        Row(task=task, prompt=task, input=str(i), outputs=(f"{task}{i}",), metric="exact_match", split="eval")
        for task in ("a", "b")
        for i in range(2)
    ]

    def answer(name: str, condition: str, right: list[bool], first: int = 0) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = ["{}"] + [
            json.dumps(
                {"condition": condition, "row": i, "tokens": 7, "text": rows[first + i].outputs[0] if fine else "no"}
            )
            for i, fine in enumerate(right)
        ]
        (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")

    answer("eval-hypernetwork-0", "adapter", [True, True, True, False])
    answer("eval-hypernetwork-1", "adapter", [True, False, False, False])
    answer("eval-hypernetwork-2", "adapter", [True, True, True])  # not complete
    answer("eval-multitask-0", "adapter", [True, False, False, False])
    answer("eval-oracle-a", "adapter", [True, True])
    answer("eval-oracle-b", "adapter", [False, True], first=2)
    values = unseen.report(tmp_path, rows)
    results = values["results"]
    assert set(results) == {"hypernetwork, adapter only", "multi-task LoRA", "oracle: a LoRA trained on each task"}
    assert results["hypernetwork, adapter only"]["strict_of_each_seed"] == [75.0, 25.0]
    assert results["hypernetwork, adapter only"]["strict"] == 50.0
    assert results["hypernetwork, adapter only"]["tasks"] == {"a": 75.0, "b": 25.0}
    assert results["oracle: a LoRA trained on each task"]["tasks"] == {"a": 100.0, "b": 50.0}
    difference = values["differences"]["hypernetwork, adapter only - multi-task LoRA"]
    assert difference["points"] == 25.0
    assert (difference["low"], difference["high"]) == (25.0, 25.0)  # the same on both tasks
    assert values["majority"] == 50.0
    assert "| hypernetwork, adapter only | 2 | 50.0 | 75.0, 25.0 |" in unseen.markdown(values)


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name != "runs.py"))
def test_every_bench_says_how_it_is_used(name):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), "--help"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()

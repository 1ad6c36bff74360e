"""The report of an evaluation: scores by task and condition, the best constant answers, and differences."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from promptlora.data import Row
from promptlora.evaluate.answers import Answer
from promptlora.evaluate.conditions import COMPARED, CONDITIONS
from promptlora.evaluate.scores import best_constant, bootstrap_interval, constant_score, first_line, rouge_l, score
from promptlora.files import replacing_file

MEASURES: dict[str, Callable[[Row, str], float]] = {
    "strict": lambda row, text: score(row.metric, text, row.outputs),
    "first_line": lambda row, text: score(row.metric, first_line(text), row.outputs),
    "rougeL": lambda row, text: rouge_l(text, row.outputs),
}
FEW_TASKS = 10  # a bootstrap over fewer tasks gives intervals that are too narrow
BEST_CONSTANT = "best constant answer of each task, chosen on the scored rows (upper bound)"
BEST_CONSTANT_OTHER = "best constant answer of each task, chosen on its other rows"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores from 0 to 100; each is averaged over the rows of a task, then over tasks.

    Attributes:
        identity: What was evaluated.
        best_constant: Score of each task's best constant answer, chosen on the scored rows: an upper bound for a system
            that ignores its input.
        best_constant_other: The same score with the answer chosen on other rows of the task, as a user could do. It is
            the mean over the tasks that have other rows; None if no task has any.
        overall: Maps each condition to ``strict``, ``first_line``, ``rougeL`` and ``tokens`` (mean number of tokens
            that the base reads).
        tasks: Maps each task to its metric, number of rows, both constant scores, and each measure under each
            condition.
        differences: ``a - b`` of the strict score with its 95 % bootstrap interval over tasks.
    """

    identity: dict[str, Any]
    best_constant: float
    best_constant_other: float | None
    overall: dict[str, dict[str, float]]
    tasks: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return dict(vars(self))

    def label(self, name: str) -> str:
        """The name of a condition in the tables; it says if the adapters include function vectors."""
        condition = CONDITIONS[name]
        with_vectors = self.identity.get("vectors") and not condition.shown and condition.adapter not in ("", "static")
        return f"{condition.label}, with function vectors" if with_vectors else condition.label

    def to_markdown(self) -> str:
        """The tables as Markdown, with the constant answers first."""
        lines = [
            "| condition | strict | first line | ROUGE-L | tokens read |",
            "|---|---:|---:|---:|---:|",
            f"| {BEST_CONSTANT} | {self.best_constant:.1f} | {self.best_constant:.1f} | | |",
        ]
        if self.best_constant_other is not None:
            having = sum(task["best_constant_other"] is not None for task in self.tasks.values())
            some = "" if having == len(self.tasks) else f" ({having} of {len(self.tasks)} tasks have such rows)"
            value = f"{self.best_constant_other:.1f}"
            lines.append(f"| {BEST_CONSTANT_OTHER}{some} | {value} | {value} | | |")
        for condition, values in self.overall.items():
            lines.append(
                f"| {self.label(condition)} | {values['strict']:.1f} | {values['first_line']:.1f} | "
                f"{values['rougeL']:.1f} | {values['tokens']:.0f} |"
            )
        lines += ["", "| difference (strict) | points | 95 % interval over tasks |", "|---|---:|---|"]
        for name, d in self.differences.items():
            lines.append(f"| {name} | {d['points']:+.1f} | {d['low']:+.1f} … {d['high']:+.1f} |")
        if len(self.tasks) < FEW_TASKS and self.differences:
            lines += ["", f"Warning: these intervals come from {len(self.tasks)} task{'s' * (len(self.tasks) != 1)}. Over fewer "
                      f"than {FEW_TASKS} tasks a bootstrap interval is too narrow, and says nothing of other tasks."]  # fmt: skip
        shown = list(self.overall)
        lines += [
            "",
            f"| task | metric | rows | best constant | on other rows | {' | '.join(shown)} |",
            "|---|---|---:|---:|---:|" + "---:|" * len(shown),
        ]
        for task, of_task in self.tasks.items():
            cells = " | ".join(f"{of_task['strict'][c]:.1f}" for c in shown)
            other = of_task["best_constant_other"]
            lines.append(
                f"| {task} | {of_task['metric']} | {of_task['rows']} | {of_task['best_constant']:.1f} | "
                f"{'' if other is None else f'{other:.1f}'} | {cells} |"
            )
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md``."""
        with replacing_file(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        with replacing_file(folder / "report.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")


def constant_scores(rows: Sequence[Row], other: Sequence[Row] = ()) -> tuple[float, float | None]:
    """Scores of one task's best constant answer, chosen on its scored rows and chosen on its other rows.

    Args:
        rows: The scored rows of the task.
        other: Other rows of the task; those with the input of a scored row, or without outputs, are ignored.

    Returns:
        Both scores on ``rows``, from 0 to 100; the second is None if there are no other rows.
    """
    upper = constant_score(rows, best_constant(rows))
    scored = {(row.prompt, row.input) for row in rows}
    rest = [row for row in other if row.outputs and (row.prompt, row.input) not in scored]
    return upper, constant_score(rows, best_constant(rest)) if rest else None


def task_scores(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """The mean score over the rows (one answer per row), for each measure and task."""
    each: dict[str, dict[str, list[float]]] = {measure: defaultdict(list) for measure in MEASURES}
    for row, text in zip(rows, texts, strict=True):
        for measure, function in MEASURES.items():
            each[measure][row.task].append(function(row, text))
    return {measure: {task: fmean(values) for task, values in by.items()} for measure, by in each.items()}


def summarize(
    rows: Sequence[Row],
    answers: Mapping[tuple[str, int], Answer],
    conditions: Sequence[str],
    identity: dict[str, Any],
    seed: int = 0,
    other: Sequence[Row] = (),
) -> Report:
    """Score the answers: per task, over tasks, and differences between conditions and from the constant answers."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[row.task].append(i)
    rest: dict[str, list[Row]] = defaultdict(list)
    for row in other:
        rest[row.task].append(row)
    by_task = {c: task_scores(rows, [answers[c, i].text for i in range(len(rows))]) for c in conditions}
    constants = {task: constant_scores([rows[i] for i in at], rest[task]) for task, at in members.items()}
    overall = {
        condition: {
            **{measure: fmean(values.values()) for measure, values in by_task[condition].items()},
            "tokens": fmean(answers[condition, i].tokens for i in range(len(rows))),
        }
        for condition in conditions
    }
    strict = {condition: dict(of["strict"]) for condition, of in by_task.items()}
    strict["best_constant"] = {task: upper for task, (upper, _) in constants.items()}
    strict["best_constant_other"] = {task: value for task, (_, value) in constants.items() if value is not None}
    compared = (("adapter", "best_constant"), ("adapter", "best_constant_other"), *COMPARED)
    others = list(strict["best_constant_other"].values())
    return Report(
        identity=identity,
        best_constant=fmean(strict["best_constant"].values()),
        best_constant_other=fmean(others) if others else None,
        overall=overall,
        tasks={
            task: {
                "metric": rows[at[0]].metric,
                "rows": len(at),
                "best_constant": constants[task][0],
                "best_constant_other": constants[task][1],
                **{measure: {c: by_task[c][measure][task] for c in conditions} for measure in MEASURES},
            }
            for task, at in members.items()
        },
        differences={
            f"{a} - {b}": _difference(strict[a], strict[b], seed)
            for a, b in compared
            if strict.get(a) and strict.get(b)
        },
    )


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float], seed: int) -> dict[str, float]:
    """Mean difference over the tasks that both conditions have, with its interval."""
    each = [value - theirs[task] for task, value in ours.items() if task in theirs]
    low, high = bootstrap_interval(each, seed)
    return {"points": fmean(each), "low": low, "high": high}

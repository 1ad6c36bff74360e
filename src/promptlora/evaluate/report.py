"""The report of an evaluation: scores by task and condition, and their differences."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from promptlora.data import Row
from promptlora.evaluate.answers import Answer
from promptlora.evaluate.conditions import COMPARED, CONDITIONS
from promptlora.evaluate.scores import bootstrap_interval, first_line, majority_score, rouge_l, score
from promptlora.files import replacing_file


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores, each the mean over tasks of the task's mean over rows, 0 … 100.

    Attributes:
        identity: What was evaluated.
        overall: Condition to ``strict``, ``first_line``, ``rougeL`` and ``tokens`` (mean tokens the base reads).
        majority: Score of the best constant answer, mean over tasks.
        tasks: Task to metric, rows, majority and the strict score under each condition.
        differences: ``a - b`` of the strict score with its 95 % bootstrap interval over tasks.
    """

    identity: dict[str, Any]
    overall: dict[str, dict[str, float]]
    majority: float
    tasks: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))

    def to_markdown(self) -> str:
        """The tables, for people."""
        lines = [
            "| condition | strict | first line | ROUGE-L | tokens read |",
            "|---|---:|---:|---:|---:|",
        ]
        for condition, values in self.overall.items():
            lines.append(
                f"| {CONDITIONS[condition]} | {values['strict']:.1f} | {values['first_line']:.1f} | "
                f"{values['rougeL']:.1f} | {values['tokens']:.0f} |"
            )
        lines.append(
            f"| best constant answer of each task (majority) | {self.majority:.1f} | {self.majority:.1f} | | |"
        )
        lines += ["", "| difference (strict) | points | 95 % interval over tasks |", "|---|---:|---|"]
        for name, d in self.differences.items():
            lines.append(f"| {name} | {d['points']:+.1f} | {d['low']:+.1f} … {d['high']:+.1f} |")
        shown = list(self.overall)
        lines += [
            "",
            f"| task | metric | rows | majority | {' | '.join(shown)} |",
            "|---|---|---:|---:|" + "---:|" * len(shown),
        ]
        for task, of_task in self.tasks.items():
            cells = " | ".join(f"{of_task['strict'][c]:.1f}" for c in shown)
            lines.append(f"| {task} | {of_task['metric']} | {of_task['rows']} | {of_task['majority']:.1f} | {cells} |")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md``."""
        with replacing_file(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        with replacing_file(folder / "report.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")


def summarize(
    rows: Sequence[Row],
    answers: dict[tuple[str, int], Answer],
    conditions: Sequence[str],
    identity: dict[str, Any],
    seed: int = 0,
) -> Report:
    """Scores of answers: per task, over tasks, and differences between conditions."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[row.task].append(i)
    measures: dict[str, Callable[[Row, str], float]] = {
        "strict": lambda row, text: score(row.metric, text, row.outputs),
        "first_line": lambda row, text: score(row.metric, first_line(text), row.outputs),
        "rougeL": lambda row, text: rouge_l(text, row.outputs),
    }
    by_task = {
        condition: {
            measure: {
                task: fmean(function(rows[i], answers[condition, i].text) for i in at) for task, at in members.items()
            }
            for measure, function in measures.items()
        }
        for condition in conditions
    }
    majority = {task: majority_score([rows[i] for i in at]) for task, at in members.items()}
    overall = {
        condition: {
            **{measure: fmean(values.values()) for measure, values in by_task[condition].items()},
            "tokens": fmean(answers[condition, i].tokens for i in range(len(rows))),
        }
        for condition in conditions
    }
    pairs = [(a, b) for a, b in COMPARED if a in by_task and b in by_task]
    differences = {}
    for a, b in pairs:
        each = [by_task[a]["strict"][task] - by_task[b]["strict"][task] for task in members]
        low, high = bootstrap_interval(each, seed)
        differences[f"{a} - {b}"] = {"points": fmean(each), "low": low, "high": high}
    return Report(
        identity=identity,
        overall=overall,
        majority=fmean(majority.values()),
        tasks={
            task: {
                "metric": rows[at[0]].metric,
                "rows": len(at),
                "majority": majority[task],
                "strict": {c: by_task[c]["strict"][task] for c in conditions},
                "first_line": {c: by_task[c]["first_line"][task] for c in conditions},
            }
            for task, at in members.items()
        },
        differences=differences,
    )

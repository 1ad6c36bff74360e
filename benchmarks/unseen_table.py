"""Computes the results of ``unseen_tasks.py`` from the answers in its folders: scores, differences and agreement.

It knows answers and rows; it loads no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from promptlora.data import Row
from promptlora.evaluate import (
    bootstrap_interval,
    complete_answers,
    constant_scores,
    normalize,
    ratio_interval,
    task_scores,
)

WORDINGS = 5  # number of wordings per prompt, including its own

ADAPTER = "hypernetwork, adapter only"
EXAMPLES = "hypernetwork, adapter of the prompt with 3 examples"
BOTH = "hypernetwork, adapter and prompt in context"
STATIC = "control: static part alone"
OTHER = "control: adapter of another task's prompt"
SHOWN = "base, prompt in context"
SHOWN_EXAMPLES = "base, prompt with 3 examples in context"
MULTITASK = "multi-task LoRA"
MULTITASK_SHOWN = "multi-task LoRA, prompt in context"
ORACLE = "oracle: a LoRA trained on each task"
CONSTANT = "best constant answer, chosen on the scored rows (upper bound)"
CONSTANT_OTHER = "best constant answer, chosen on other rows of the task"

# Maps each table row to the folder of its answers, and the condition of `promptlora eval`.
TABLE = {
    "base": ("base", "base"),
    SHOWN: ("base", "in_context"),
    SHOWN_EXAMPLES: ("base", "in_context_examples"),
    MULTITASK: ("multitask", "static"),
    MULTITASK_SHOWN: ("multitask", "static_in_context"),
    ADAPTER: ("hypernetwork", "adapter"),
    EXAMPLES: ("hypernetwork", "adapter_examples"),
    BOTH: ("hypernetwork", "adapter_in_context"),
    STATIC: ("hypernetwork", "static"),
    OTHER: ("hypernetwork", "wrong_prompt"),
    "control: adapter of gibberish": ("hypernetwork", "gibberish"),
    "control: mean adapter": ("hypernetwork", "mean_adapter"),
    ORACLE: ("oracle", "adapter"),
}
WITH_VECTORS = (ADAPTER, EXAMPLES, OTHER, "control: adapter of gibberish", "control: mean adapter")
# Table rows that are run with several wordings of each prompt.
REWORDED = {SHOWN: ("base", "in_context"), MULTITASK_SHOWN: ("multitask", "static_in_context"), ADAPTER: TABLE[ADAPTER]}


@dataclass(frozen=True)
class Aim:
    """A comparison, the minimum value that was aimed at, and the bound that its interval must stay above."""

    ours: str
    theirs: str
    least: float | None = None
    above: float | None = None
    ratio: bool = False

    def text(self) -> str:
        """The aim in words; empty if there is none."""
        if self.least is None:
            return ""
        if self.ratio:
            return f"≥ {self.least:.0f} %"
        bound = "" if self.above is None else f", interval above {self.above:g}"
        return f"≥ {self.least:+g}{bound}"

    def reached(self, points: float, low: float) -> bool | None:
        """Whether the aim was reached; None without an aim."""
        if self.least is None:
            return None
        return points >= self.least and (self.above is None or low > self.above)


COMPARISONS = (
    Aim(ADAPTER, STATIC, 6, 0),
    Aim(ADAPTER, CONSTANT, 5),
    Aim(ADAPTER, CONSTANT_OTHER),
    Aim(ADAPTER, OTHER, 10, 0),
    Aim(ADAPTER, MULTITASK_SHOWN, 85, ratio=True),
    Aim(EXAMPLES, ADAPTER, 4),
    Aim(BOTH, MULTITASK_SHOWN, 0.5, -1),
    Aim(ADAPTER, MULTITASK_SHOWN),
    Aim(ADAPTER, MULTITASK),
    Aim(ADAPTER, SHOWN),
    Aim(EXAMPLES, SHOWN_EXAMPLES),
    Aim(ADAPTER, "control: adapter of gibberish"),
    Aim(ADAPTER, "control: mean adapter"),
    Aim(MULTITASK_SHOWN, CONSTANT),
    Aim(ORACLE, ADAPTER),
)


BY_TASKS = ("adapter", "static")  # table rows that are run with fewer training tasks


def slug(task: str) -> str:
    """The name of a task's folder."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in task)


def reworded(rows: Sequence[Row], wordings: Mapping[str, Sequence[str]], number: int) -> list[Row]:
    """The rows of the tasks with enough wordings, with wording ``number`` of their prompt; 0 is the own prompt."""
    prompts: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        prompts[row.task].add(row.prompt)
    given = {
        task: [*own, *dict.fromkeys(text for text in wordings.get(task, ()) if text not in own)]
        for task, own in prompts.items()
        if len(own) == 1
    }
    kept = {task: several[number] for task, several in given.items() if len(several) >= WORDINGS}
    return [replace(row, prompt=kept[row.task]) for row in rows if row.task in kept]


class Answered:
    """The answers in the folders of a benchmark: texts and token counts of each row, by kind and name of the run."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        self.folder, self.rows = folder, rows
        self.vectors = False
        self.identities: dict[str, dict[str, Any]] = {}  # maps each folder to the identity of its evaluation
        self._read: dict[Path, dict[str, Any]] = {}

    def names(self, kind: str, under: Path | None = None) -> list[str]:
        """Names of the runs of a kind that have answers; the base has one run with an empty name."""
        top = (under or self.folder) / kind
        if (top / "answers.jsonl").is_file():
            return [""]
        return sorted(path.parent.name for path in top.glob("*/answers.jsonl"))

    def answers(self, path: Path, condition: str, rows: Sequence[Row]) -> list[Any] | None:
        """Answers of a folder in the order of the rows; None if some are missing."""
        if path not in self._read:
            if not (path / "answers.jsonl").is_file():
                return None
            identity, self._read[path] = complete_answers(rows, path)
            self.vectors |= bool(identity.get("vectors"))
            kept = ("base", "dtype", "hypernetwork", "vectors", "template", "examples", "max_new_tokens")
            name = path.relative_to(self.folder).as_posix()
            self.identities[name] = {key: identity[key] for key in kept if key in identity}
        return self._read[path].get(condition)

    def scores(self, kind: str, name: str, condition: str) -> dict[str, Any] | None:
        """Each measure as a mean over tasks, and by task; None if answers are missing."""
        if kind == "oracle":
            return self._oracle(condition)
        answers = self.answers(self.folder / kind / name, condition, self.rows)
        return None if answers is None else _means(self.rows, answers)

    def _oracle(self, condition: str) -> dict[str, Any] | None:
        rows: list[Row] = []
        answers: list[Any] = []
        for task in dict.fromkeys(row.task for row in self.rows):
            members = [row for row in self.rows if row.task == task]
            found = self.answers(self.folder / "oracle" / slug(task), condition, members)
            if found is not None:
                rows += members
                answers += found
        return _means(rows, answers) if rows else None


def _means(rows: Sequence[Row], answers: Sequence[Any]) -> dict[str, Any]:
    tokens: dict[str, list[int]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        tokens[row.task].append(answer.tokens)
    by_task = task_scores(rows, [answer.text for answer in answers])
    by_task["tokens"] = {task: fmean(values) for task, values in tokens.items()}
    return {**{measure: fmean(of.values()) for measure, of in by_task.items()}, "tasks": by_task["strict"]}


def report(
    folder: Path, rows: Sequence[Row], other: Sequence[Row], groups: Mapping[str, Sequence[str]], wordings: Mapping[str, Sequence[str]]
) -> dict[str, Any]:  # fmt: skip
    """Scores of all evaluations that are done, differences and agreement, as plain values.

    Args:
        folder: The benchmark's folder.
        rows: The scored rows.
        other: Other rows of their tasks.
        groups: Maps the name of each data file to its tasks, for scores by file.
        wordings: Maps each task to further wordings of its prompt.
    """
    answered = Answered(folder, rows)
    results: dict[str, Any] = {}
    for name, (kind, condition) in TABLE.items():
        runs = [""] if kind == "oracle" else answered.names(kind)
        found = {run or "0": scores for run in runs if (scores := answered.scores(kind, run, condition))}
        if found:
            each = list(found.values())
            tasks = {task: fmean(one["tasks"][task] for one in each) for task in each[0]["tasks"]}
            results[name] = {
                **{measure: fmean(one[measure] for one in each) for measure in each[0] if measure != "tasks"},
                "by_data": _by_group(tasks, groups),
                "tasks": tasks,
                "of_each_seed": found,
            }
    constants = _constants(rows, other)
    by_tasks = _by_tasks(answered)
    agreement = _agreement(answered, rows, wordings) if wordings else {}
    strict = {name: dict(row["tasks"]) for name, row in results.items()} | constants
    return {
        "rows": len(rows),
        "tasks": len(constants[CONSTANT]),
        "data": {name: len(tasks) for name, tasks in groups.items()},
        "function_vectors": answered.vectors,
        "constants": {
            name: {"strict": fmean(of.values()), "by_data": _by_group(of, groups), "tasks": of}
            for name, of in constants.items()
            if of
        },
        "results": results,
        "differences": [
            _compared(aim, strict)
            for aim in COMPARISONS
            if strict.get(aim.ours) and strict.get(aim.theirs) and (any(strict[aim.theirs].values()) or not aim.ratio)
        ],
        "by_training_tasks": by_tasks,
        "wordings": agreement,
        "answered_by": answered.identities,
    }


def _by_tasks(answered: Answered) -> dict[str, list[dict[str, float]]]:
    """Map each number of training tasks to its runs: the strict scores of adapter and static part."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name in sorted(answered.names("by-tasks"), key=count_of):
        scores = {condition: answered.scores("by-tasks", name, condition) for condition in BY_TASKS}
        if all(scores.values()):
            found[str(count_of(name))].append({condition: of["strict"] for condition, of in scores.items() if of})
    return dict(found)


def count_of(name: str) -> int:
    """The number of training tasks in the name of a run, ``COUNT`` or ``COUNT-…``.

    Raises:
        ValueError: The name does not start with a number.
    """
    return int(name.partition("-")[0])


def _by_group(tasks: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    found = {name: [tasks[task] for task in members if task in tasks] for name, members in groups.items()}
    return {name: fmean(values) for name, values in found.items() if values}


def _constants(rows: Sequence[Row], other: Sequence[Row]) -> dict[str, dict[str, float]]:
    by_task: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for row in rows:
        by_task[row.task][0].append(row)
    for row in other:
        by_task[row.task][1].append(row)
    both = {task: constant_scores(*members) for task, members in by_task.items()}
    return {
        CONSTANT: {task: upper for task, (upper, _) in both.items()},
        CONSTANT_OTHER: {task: value for task, (_, value) in both.items() if value is not None},
    }


def _compared(aim: Aim, strict: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    tasks = [task for task in strict[aim.ours] if task in strict[aim.theirs]]
    ours, theirs = ([strict[name][task] for task in tasks] for name in (aim.ours, aim.theirs))
    if aim.ratio:
        points = 100 * fmean(ours) / fmean(theirs)
        low, high = (100 * value for value in ratio_interval(ours, theirs))
    else:
        points = fmean(ours) - fmean(theirs)
        low, high = bootstrap_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    return {
        "ours": aim.ours, "theirs": aim.theirs, "ratio": aim.ratio, "points": points, "low": low, "high": high,
        "tasks": len(tasks), "aim": aim.text(), "reached": aim.reached(points, low),
    }  # fmt: skip


def _agreement(answered: Answered, rows: Sequence[Row], wordings: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """For each table row with several wordings: scores, their spread, and the share of equal answers."""
    asked = [reworded(rows, wordings, number) for number in range(WORDINGS)]
    places = [i for i, row in enumerate(rows) if row.task in {kept.task for kept in asked[0]}]
    found: dict[str, Any] = {}
    for name, (kind, condition) in REWORDED.items():
        each = []
        for run in answered.names(kind):
            own = answered.answers(answered.folder / kind / run, condition, rows)
            texts = [] if own is None else [[own[i].text for i in places]]
            for number in range(1, WORDINGS):
                path = answered.folder / "wordings" / str(number) / kind / run
                answers = answered.answers(path, condition, asked[number])
                texts += [] if answers is None else [[answer.text for answer in answers]]
            if places and len(texts) == WORDINGS:
                each.append(_spread(asked[0], texts))
        if each:
            found[name] = {
                "seeds": len(each),
                "tasks": len({row.task for row in asked[0]}),
                **{key: fmean(one[key] for one in each) for key in ("mean", "spread", "agreement")},
                "each": [fmean(values) for values in zip(*(one["each"] for one in each), strict=True)],
            }
    return found


def _spread(rows: Sequence[Row], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    scores = [task_scores(rows, of)["strict"] for of in texts]
    pairs = list(combinations(texts, 2))
    equal = [fmean(normalize(a[i]) == normalize(b[i]) for a, b in pairs) for i in range(len(rows))]
    each = [fmean(of.values()) for of in scores]
    spread = fmean(pstdev([of[task] for of in scores]) for task in scores[0])
    return {"each": each, "mean": fmean(each), "spread": spread, "agreement": 100 * fmean(equal)}

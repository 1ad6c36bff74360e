"""Presents the results of ``unseen_tasks.py``: Markdown tables, and the figure by number of training tasks.

It knows the plain values that ``unseen_table.report`` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from runs import save_svg
from unseen_table import BY_TASKS, CONSTANT, WITH_VECTORS, WORDINGS


def markdown(values: Mapping[str, Any]) -> str:
    """The results as Markdown tables, with the constant answers first."""
    groups = list(values["data"])
    shown = [f"{name} ({count})" for name, count in values["data"].items()] if len(groups) > 1 else []
    lines = [
        f"{values['tasks']} tasks, {values['rows']} rows; mean over tasks, seeds averaged.",
        "",
        f"| row | seeds | strict | each seed | {''.join(f'{name} | ' for name in shown)}first line | ROUGE-L | tokens read |",
        "|---|---:|---:|---|" + "---:|" * (len(shown) + 3),
    ]

    def by_data(row: Mapping[str, Any]) -> str:
        return (
            "".join(f"{row['by_data'][name]:.1f} | " if name in row["by_data"] else "| " for name in groups)
            if shown
            else ""
        )

    def some(count: int) -> str:
        return "" if count == values["tasks"] else f" ({count} tasks)"

    for name, row in values["constants"].items():
        lines.append(
            f"| {name}{some(len(row['tasks']))} | | {row['strict']:.1f} | | {by_data(row)}{row['strict']:.1f} | | |"
        )
    for name, row in values["results"].items():
        seeds = [scores["strict"] for scores in row["of_each_seed"].values()]
        each = ", ".join(f"{value:.1f}" for value in seeds) if len(seeds) > 1 else ""
        vectors = ", with function vectors" if values["function_vectors"] and name in WITH_VECTORS else ""
        lines.append(
            f"| {name}{vectors}{some(len(row['tasks']))} | {len(seeds)} | {row['strict']:.1f} | {each} | {by_data(row)}"
            f"{row['first_line']:.1f} | {row['rougeL']:.1f} | {row['tokens']:.0f} |"
        )
    lines += ["", "| comparison (strict) | aim | value | 95 % interval over tasks | |", "|---|---|---:|---|---|"]
    for d in values["differences"]:
        form = "{:.0f} %" if d["ratio"] else "{:+.1f}"
        verdict = {True: "reached", False: "missed", None: ""}[d["reached"]]
        lines.append(
            f"| {d['ours']} {'÷' if d['ratio'] else '−'} {d['theirs']}{some(d['tasks'])} | {d['aim']} | "
            f"{form.format(d['points'])} | {form.format(d['low'])} … {form.format(d['high'])} | {verdict} |"
        )
    if values["by_training_tasks"]:
        lines += ["", "| training tasks | runs | adapter only | static part alone |", "|---:|---:|---:|---:|"]
        for count, runs in values["by_training_tasks"].items():
            means = " | ".join(f"{fmean(run[condition] for run in runs):.1f}" for condition in BY_TASKS)
            lines.append(f"| {count} | {len(runs)} | {means} |")
    if values["wordings"]:
        lines += [
            "",
            f"Agreement over {WORDINGS} wordings of each prompt: the score with each wording, the standard deviation over "
            "wordings (mean over tasks), and the share of pairs of wordings that give the same answer to an input.",
            "",
            "| row | tasks | seeds | strict, each wording | mean | spread | same answer |",
            "|---|---:|---:|---|---:|---:|---:|",
        ]
        for name, row in values["wordings"].items():
            each = ", ".join(f"{value:.1f}" for value in row["each"])
            lines.append(
                f"| {name} | {row['tasks']} | {row['seeds']} | {each} | {row['mean']:.1f} | {row['spread']:.1f} | "
                f"{row['agreement']:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def draw_by_tasks(values: Mapping[str, Any], path: Path) -> None:
    """Draw scores by number of training tasks: each run as a dot, the means as a line, the constant answer dashed."""
    from matplotlib.figure import Figure  # imported here, so that a GPU machine that only answers does not need it

    runs = {int(count): of for count, of in values["by_training_tasks"].items()}
    counts = sorted(runs)
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for condition, label in zip(BY_TASKS, ("adapter of the prompt", "static part alone"), strict=True):
        means = [fmean(run[condition] for run in runs[count]) for count in counts]
        (line,) = axes.plot(counts, means, label=label)
        for count in counts:
            axes.plot(
                [count] * len(runs[count]), [run[condition] for run in runs[count]], "o", color=line.get_color(), ms=4
            )
    axes.axhline(values["constants"][CONSTANT]["strict"], color="gray", ls="--", label="best constant answer")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("training tasks (each dot is a run)")
    axes.set_ylabel(f"strict score on {values['tasks']} unseen tasks")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_svg(figure, path)

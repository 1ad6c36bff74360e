"""The proof: adapters of prompts that were never trained on, against the strongest baselines, on 24 held-out tasks.

``python benchmarks/unseen_tasks.py ../shared/data/instructions -o runs/unseen``

Same base, rank, data, batches and steps for each trained row: a hypernetwork, and multi-task LoRA (its static part
trained by itself), both with the prompt in the context of half the groups, so that either may be asked with and
without, and each with the rate that was best for it on held-out training tasks (``ablations.py``, one seed). The hypernetwork's
adapters carry the function vectors of their prompts, with a factor chosen there too (``function_vectors.py``); the row
without them and multi-task LoRA with them say what each is worth. Without a prompt the stronger baseline is a multi-task
LoRA that never saw one, all of whose steps were on what it is asked for: it has a row of its own. Three seeds for the
rows that decide, one for the others. The oracle is one LoRA for each held-out task that has training rows, trained on
those. What is stopped goes on, and what the result file holds for the same settings is not measured again, so that
several machines may do it one after another; ``--report`` writes the table of what is done. Results:
``benchmarks/results/unseen_tasks.json``, ``.md``.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from promptlora.data import Row, read_rows
from promptlora.evaluate import bootstrap_interval, first_line, majority_score, rouge_l, score
from promptlora.files import replacing_file
from runs import Job, argument_parser, merged, read_results, told, training, work, write_results

SEEDS = (0, 1, 2)
ORACLE_STEPS = 60
VECTORS = 0.5  # factor of the function vectors, by benchmarks/function_vectors.py

SETTINGS: dict[str, Any] = {
    "steps": 600, "prompts_per_batch": 8, "rows_per_prompt": 2, "base_dtype": "bfloat16", "attention": "eager",
    "margin_every": 50, "checkpoint_every": 25, "keep_checkpoints": 1,
    "data": {"in_context_share": 0.5},
    "optim": {"lr": 4e-4, "head_lr_factor": 8.0, "static_lr": 8e-4, "warmup": 0.05},
}  # fmt: skip
ALONE: dict[str, Any] = {"hypernetwork": {"generated": False}}
MULTITASK: dict[str, Any] = {**ALONE, "optim": {"static_lr": 4e-4}}
UNPROMPTED: dict[str, Any] = {**MULTITASK, "data": {"in_context_share": 0.0}}  # all its steps on what it is asked for
ORACLE: dict[str, Any] = {
    **SETTINGS, **ALONE, "steps": ORACLE_STEPS, "prompts_per_batch": 1, "rows_per_prompt": 16, "margin_every": 1000,
    "data": {},
}  # fmt: skip

KINDS = {"hypernetwork": {}, "multitask": MULTITASK, "unprompted": UNPROMPTED}
# Evaluation: what was trained for it (the base needs nothing), and the factor of function vectors.
EVALUATIONS = {
    "baselines": ("", 0.0),
    "multitask": ("multitask", 0.0),
    "multitask-vectors": ("multitask", VECTORS),
    "unprompted": ("unprompted", 0.0),
    "hypernetwork": ("hypernetwork", VECTORS),
    "hypernetwork-plain": ("hypernetwork", 0.0),
}
SEEDLESS = ("baselines", "oracle")  # one value, whatever the seed of what they are compared with
# Row of the table: where its answers are, under which condition of `promptlora eval`, and for which seeds.
TABLE: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "base": ("baselines", "base", (0,)),
    "base, prompt in context": ("baselines", "in_context", (0,)),
    "multi-task LoRA": ("multitask", "adapter", SEEDS),
    "multi-task LoRA, never shown a prompt": ("unprompted", "adapter", (1,)),
    "multi-task LoRA, prompt in context": ("multitask", "adapter_in_context", SEEDS),
    "multi-task LoRA and function vectors": ("multitask-vectors", "adapter", (0,)),
    "hypernetwork, adapter only": ("hypernetwork", "adapter", SEEDS),
    "hypernetwork, adapter only, without function vectors": ("hypernetwork-plain", "adapter", (1,)),
    "hypernetwork, adapter and prompt in context": ("hypernetwork", "adapter_in_context", SEEDS),
    "control: adapter of another task's prompt": ("hypernetwork", "wrong_prompt", SEEDS),
    "control: adapter of gibberish": ("hypernetwork", "gibberish", (1,)),
    "control: mean adapter": ("hypernetwork", "mean_adapter", (1,)),
    "oracle: a LoRA trained on each task": ("oracle", "adapter", (0,)),
}
DIFFERENCES = [
    ("hypernetwork, adapter only", "multi-task LoRA"),
    ("hypernetwork, adapter only", "multi-task LoRA, never shown a prompt"),
    ("hypernetwork, adapter only", "base, prompt in context"),
    ("hypernetwork, adapter only", "multi-task LoRA, prompt in context"),
    ("hypernetwork, adapter and prompt in context", "multi-task LoRA, prompt in context"),
    ("hypernetwork, adapter only", "control: adapter of another task's prompt"),
    ("hypernetwork, adapter only", "control: adapter of gibberish"),
    ("hypernetwork, adapter only", "control: mean adapter"),
    ("hypernetwork, adapter only", "hypernetwork, adapter only, without function vectors"),
    ("hypernetwork, adapter only", "multi-task LoRA and function vectors"),
    ("hypernetwork, adapter only, without function vectors", "multi-task LoRA"),
    ("multi-task LoRA and function vectors", "multi-task LoRA"),
    ("multi-task LoRA", "base"),
    ("oracle: a LoRA trained on each task", "hypernetwork, adapter only"),
]


Scores = dict[str, Any]  # of one row and seed: mean of each measure, and `tasks`: task to strict score


def known_scores() -> dict[str, dict[int, Scores]]:
    """Row to seed to scores, from the result file, where its settings are those of this file."""
    values = read_results("unseen_tasks")
    if any(values.get(key) != value for key, value in settings().items()):
        return {}
    return {
        name: {int(seed): scores for seed, scores in values["results"][name]["of_each_seed"].items()}
        for name in TABLE
        if name in values["results"]
    }


def settings() -> dict[str, Any]:
    """All that the rows have in common."""
    return {
        "settings": SETTINGS, "multitask": MULTITASK, "unprompted": UNPROMPTED, "vectors": VECTORS, "oracle_steps": ORACLE_STEPS,
    }  # fmt: skip


def evaluation(name: str, folder: Path, data: str, conditions: Sequence[str], after: Job | None, vectors: float) -> Job:
    """The job that answers rows with what the job ``after`` has trained."""
    command = ["eval", data, "-o", str(folder / name), "--conditions", ",".join(conditions), "--vectors", str(vectors)]
    if after is not None:
        command += ["--hypernetwork", str(folder / after.name.removeprefix("train ") / "final")]

    def done() -> bool:
        path = folder / name / "report.json"
        return path.is_file() and set(conditions) <= set(json.loads(path.read_text())["overall"])

    return Job(f"eval {name}", [*command, "--json"], done, [] if after is None else [after])


def make_jobs(data: Path, folder: Path, rows: list[Row], known: dict[str, dict[int, Scores]]) -> list[Job]:
    """Training and evaluation of every row and seed that is not known yet, seed by seed, the oracles last."""
    heldout = str(data / "heldout.jsonl.gz")
    shared = {
        "data": {"train": str(data / "train.jsonl.gz"), "paraphrases": str(data / "paraphrases.jsonl.gz")},
        "prompt_states": str(folder / "prompt-states"),
    }
    wanted: dict[tuple[int, str], list[str]] = defaultdict(list)
    for name, (run, condition, seeds) in TABLE.items():
        for seed in seeds:
            if seed not in known.get(name, {}):
                wanted[seed, run].append(condition)
    jobs: dict[str, Job] = {}
    for (seed, run), conditions in sorted(wanted.items()):
        if run == "oracle":
            continue
        kind, vectors = EVALUATIONS[run]
        trained = None
        if kind:
            values = merged(SETTINGS, shared, KINDS[kind], {"seed": seed})
            trained = jobs.setdefault(f"{kind}-{seed}", training(f"{kind}-{seed}", folder, values))
        jobs[f"eval-{run}-{seed}"] = evaluation(f"eval-{run}-{seed}", folder, heldout, conditions, trained, vectors)
    if (0, "oracle") in wanted:
        for task in tasks_with_training_rows(rows):
            path = folder / "tasks" / f"{task}.jsonl"
            lines = [json.dumps(line) + "\n" for line in raw_rows(rows, task)]
            with replacing_file(path) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
            trained = training(f"oracle-{task}", folder, merged(ORACLE, {"data": {"train": str(path)}}))
            jobs[trained.name] = trained
            jobs[task] = evaluation(f"eval-oracle-{task}", folder, str(path), ["adapter"], trained, 0.0)
    return list(jobs.values())


def tasks_with_training_rows(rows: list[Row]) -> list[str]:
    """Held-out tasks of which an oracle can learn."""
    return list(dict.fromkeys(row.task for row in rows if row.split == "train"))


def raw_rows(rows: list[Row], task: str) -> list[dict[str, Any]]:
    """The rows of one task as they are written to a file."""
    return [{**vars(row), "outputs": list(row.outputs)} for row in rows if row.task == task]


def texts_of(folder: Path, name: str, condition: str) -> dict[int, tuple[str, int]]:
    """Answers of an evaluation under a condition: row to text and tokens read."""
    path = folder / name / "answers.jsonl"
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        values = json.loads(line)
        if values["condition"] == condition:
            found[values["row"]] = values["text"], values["tokens"]
    return found


def scores_of(rows: list[Row], answers: dict[int, tuple[str, int]]) -> Scores:
    """Mean over the answered tasks of each measure, and the strict score of each task."""
    each: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for i, (text, tokens) in sorted(answers.items()):
        row = rows[i]
        each["strict"][row.task].append(score(row.metric, text, row.outputs))
        each["first_line"][row.task].append(score(row.metric, first_line(text), row.outputs))
        each["rougeL"][row.task].append(rouge_l(text, row.outputs))
        each["tokens"][row.task].append(tokens)
    means = {measure: {task: fmean(values) for task, values in by.items()} for measure, by in each.items()}
    return {**{measure: fmean(by.values()) for measure, by in means.items()}, "tasks": means["strict"]}


def answers_of(folder: Path, rows: list[Row], run: str, condition: str, seed: int) -> dict[int, tuple[str, int]]:
    """Answers to the rows, as far as they are there."""
    if run != "oracle":
        return texts_of(folder, f"eval-{run}-{seed}", condition)
    found: dict[int, tuple[str, int]] = {}
    places: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        places[row.task].append(i)
    for task, at in places.items():
        for local, answer in texts_of(folder, f"eval-oracle-{task}", condition).items():
            found[at[local]] = answer
    return found


def report(folder: Path, every: list[Row], known: dict[str, dict[int, Scores]]) -> dict[str, Any]:
    """All rows of the table with at least one seed: means over seeds, each seed, per task, and differences."""
    rows = [row for row in every if row.split == "eval"]
    learned = tasks_with_training_rows(every)
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    results: dict[str, Any] = {}
    for name, (run, condition, seeds) in TABLE.items():
        found = {seed: known[name][seed] for seed in seeds if seed in known.get(name, {})}
        for seed in seeds:
            answers = answers_of(folder, rows, run, condition, seed)
            if len(answers) == sum(run != "oracle" or row.task in learned for row in rows):
                found[seed] = scores_of(rows, answers)
        if found:
            each = [found[seed] for seed in sorted(found)]
            results[name] = {
                **{measure: fmean(one[measure] for one in each) for measure in each[0] if measure != "tasks"},
                "tasks": {task: fmean(one["tasks"][task] for one in each) for task in each[0]["tasks"]},
                "of_each_seed": {str(seed): found[seed] for seed in sorted(found)},
            }
    differences = {}
    for a, b in DIFFERENCES:
        if a in results and b in results:
            ours, theirs = tasks_of(results, a, b), tasks_of(results, b, a)
            points = [ours[task] - theirs[task] for task in by_task if task in ours and task in theirs]
            low, high = bootstrap_interval(points)
            differences[f"{a} - {b}"] = {"points": fmean(points), "low": low, "high": high, "tasks": len(points)}
    majority = fmean(majority_score(members) for members in by_task.values())
    return {
        "rows": len(rows), "tasks": len(by_task), **settings(),
        "majority": majority, "results": results, "differences": differences,
    }  # fmt: skip


def tasks_of(results: dict[str, Any], name: str, other: str) -> dict[str, float]:
    """Task to score of a row, the mean over the seeds that another row has too; over all its seeds where that has none."""
    seeds = results[name]["of_each_seed"]
    if TABLE[other][0] not in SEEDLESS:
        seeds = {seed: scores for seed, scores in seeds.items() if seed in results[other]["of_each_seed"]} or seeds
    each = [scores["tasks"] for scores in seeds.values()]
    return {task: fmean(tasks[task] for tasks in each) for task in each[0]}


def markdown(values: dict[str, Any]) -> str:
    """The tables for people."""
    lines = [
        "| row | seeds | strict | each seed | first line | ROUGE-L | tokens read |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for name, row in values["results"].items():
        seeds = [scores["strict"] for scores in row["of_each_seed"].values()]
        each = ", ".join(f"{value:.1f}" for value in seeds) if len(seeds) > 1 else ""
        some = "" if len(row["tasks"]) == values["tasks"] else f" ({len(row['tasks'])} tasks that have training rows)"
        lines.append(
            f"| {name}{some} | {len(seeds)} | {row['strict']:.1f} | {each} | {row['first_line']:.1f} | {row['rougeL']:.1f} "
            f"| {row['tokens']:.0f} |"
        )
    lines.append(f"| best constant answer of each task (majority) | | {values['majority']:.1f} | | | | |")
    lines += ["", "| difference (strict) | points | 95 % interval over tasks |", "|---|---:|---|"]
    for name, d in values["differences"].items():
        some = "" if d["tasks"] == values["tasks"] else f" ({d['tasks']} tasks)"
        lines.append(f"| {name}{some} | {d['points']:+.1f} | {d['low']:+.1f} … {d['high']:+.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    options = argument_parser(__doc__, "folder with train, paraphrases and heldout .jsonl.gz").parse_args()
    every, known = read_rows(options.data / "heldout.jsonl.gz"), known_scores()
    whole = True
    if not options.report:
        jobs = make_jobs(options.data, options.output, every, known)
        jobs = [job for job in jobs if not options.only or any(text in job.name for text in options.only)]
        whole = work(jobs, options.workers, options.output / "logs")
    values = report(options.output, every, known)
    done = sum(len(row["of_each_seed"]) for row in values["results"].values())
    write_results("unseen_tasks", values, markdown(values), done, sum(len(seeds) for _, _, seeds in TABLE.values()))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(told(main))

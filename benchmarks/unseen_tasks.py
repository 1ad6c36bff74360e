"""The proof: adapters of prompts that were never trained on, against the strongest baselines, on 24 held-out tasks.

``python benchmarks/unseen_tasks.py ../shared/data/instructions -o runs/unseen``

Same base, rank, data, batches and steps for each trained row: a hypernetwork, and multi-task LoRA (its static part
trained by itself), both with the prompt in the context of half the groups, so that either may be asked with and
without, and each with the rate that was best for it on held-out training tasks (``ablations.py``). The hypernetwork's
adapters carry the function vectors of their prompts, with a factor chosen there too (``function_vectors.py``); the row
without them and multi-task LoRA with them say what each is worth. Without a prompt the stronger baseline is a multi-task
LoRA that never saw one, all of whose steps were on what it is asked for: it has a row of its own. Three seeds. The
oracle is one LoRA for each held-out task, trained on that task's own training rows. What is stopped goes on;
``--report`` writes the table of what is done. Results: ``benchmarks/results/unseen_tasks.json``, ``.md``.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from promptlora.data import Row, read_rows
from promptlora.evaluation import bootstrap_interval, first_line, majority_score, rouge_l, score
from promptlora.files import replacing_file
from runs import Job, argument_parser, merged, training, work, write_results

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

# Row of the table: where its answers are, and under which condition of `promptlora eval`.
TABLE = {
    "base": ("baselines", "base"),
    "base, prompt in context": ("baselines", "in_context"),
    "multi-task LoRA": ("multitask", "adapter"),
    "multi-task LoRA, never shown a prompt": ("unprompted", "adapter"),
    "multi-task LoRA, prompt in context": ("multitask", "adapter_in_context"),
    "multi-task LoRA and function vectors": ("multitask-vectors", "adapter"),
    "hypernetwork, adapter only": ("hypernetwork", "adapter"),
    "hypernetwork, adapter only, without function vectors": ("hypernetwork-plain", "adapter"),
    "hypernetwork, adapter and prompt in context": ("hypernetwork", "adapter_in_context"),
    "control: adapter of another task's prompt": ("hypernetwork", "wrong_prompt"),
    "control: adapter of gibberish": ("hypernetwork", "gibberish"),
    "control: mean adapter": ("hypernetwork", "mean_adapter"),
    "oracle: a LoRA trained on each task": ("oracle", "adapter"),
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
    ("multi-task LoRA", "base"),
    ("oracle: a LoRA trained on each task", "hypernetwork, adapter only"),
]


def evaluation(
    name: str, folder: Path, data: str, conditions: str, after: Job, *, vectors: float = 0.0, reuse: Path | None = None
) -> Job:
    """The job that answers rows with what the job ``after`` has trained."""
    trained = folder / after.name.removeprefix("train ") / "final"
    command = ["eval", data, "-o", str(folder / name), "--conditions", conditions, "--hypernetwork", str(trained)]
    command += ["--vectors", str(vectors), "--json", *(["--reuse", str(reuse)] if reuse else [])]

    def done() -> bool:
        path = folder / name / "report.json"
        return path.is_file() and set(conditions.split(",")) <= set(json.loads(path.read_text())["overall"])

    return Job(f"eval {name}", command, done, [after])


def make_jobs(data: Path, folder: Path, rows: list[Row], reuse: Path | None) -> list[Job]:
    """Training and evaluation of every row of the table, the decisive ones of the first seed first."""
    heldout = str(data / "heldout.jsonl.gz")
    shared = {
        "data": {"train": str(data / "train.jsonl.gz"), "paraphrases": str(data / "paraphrases.jsonl.gz")},
        "prompt_states": str(folder / "prompt-states"),
    }
    jobs: list[Job] = []
    for seed in SEEDS:
        hypernetwork, multitask, unprompted = (
            training(f"{kind}-{seed}", folder, merged(SETTINGS, shared, change, {"seed": seed}))
            for kind, change in (("hypernetwork", {}), ("multitask", MULTITASK), ("unprompted", UNPROMPTED))
        )
        both = "adapter,adapter_in_context"
        controls = ",wrong_prompt,gibberish,mean_adapter" if seed == SEEDS[0] else ""
        jobs += [hypernetwork, multitask, unprompted]
        if seed == SEEDS[0]:
            jobs.append(evaluation("eval-baselines-0", folder, heldout, "base,in_context", multitask, reuse=reuse))
        for name, after, conditions, vectors in (
            ("multitask", multitask, both, 0.0),
            ("unprompted", unprompted, "adapter", 0.0),
            ("hypernetwork", hypernetwork, both + controls, VECTORS),
            ("hypernetwork-plain", hypernetwork, "adapter", 0.0),
            ("multitask-vectors", multitask, "adapter", VECTORS),
        ):
            jobs.append(evaluation(f"eval-{name}-{seed}", folder, heldout, conditions, after, vectors=vectors))
    for task in dict.fromkeys(row.task for row in rows):
        path = folder / "tasks" / f"{task}.jsonl"
        with replacing_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in raw_rows(rows, task)), encoding="utf-8")
        trained = training(f"oracle-{task}", folder, merged(ORACLE, {"data": {"train": str(path)}}))
        jobs += [trained, evaluation(f"eval-oracle-{task}", folder, str(path), "adapter", trained)]
    return jobs


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


def scores_of(rows: list[Row], answers: dict[int, tuple[str, int]]) -> dict[str, dict[str, float]]:
    """Measure to task to mean score."""
    each: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for i, row in enumerate(rows):
        text, tokens = answers[i]
        each["strict"][row.task].append(score(row.metric, text, row.outputs))
        each["first_line"][row.task].append(score(row.metric, first_line(text), row.outputs))
        each["rougeL"][row.task].append(rouge_l(text, row.outputs))
        each["tokens"][row.task].append(tokens)
    return {measure: {task: fmean(values) for task, values in by.items()} for measure, by in each.items()}


def report(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """All rows of the table that are complete: means over seeds, each seed, per task, and differences."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    results: dict[str, Any] = {}
    for name, (run, condition) in TABLE.items():
        seeds = []
        for seed in SEEDS:
            if run == "oracle":
                if seed:
                    continue
                merged_answers: dict[int, tuple[str, int]] = {}
                at = {task: [i for i, row in enumerate(rows) if row.task == task] for task in by_task}
                for task, places in at.items():
                    for local, answer in texts_of(folder, f"eval-oracle-{task}", condition).items():
                        merged_answers[places[local]] = answer
                answers = merged_answers
            else:
                answers = texts_of(folder, f"eval-{run}-{seed}", condition)
            if len(answers) == len(rows):
                seeds.append(scores_of(rows, answers))
        if not seeds:
            continue
        results[name] = {
            "seeds": len(seeds),
            **{measure: fmean(fmean(s[measure].values()) for s in seeds) for measure in seeds[0]},
            "strict_of_each_seed": [fmean(s["strict"].values()) for s in seeds],
            "tasks": {task: fmean(s["strict"][task] for s in seeds) for task in by_task},
        }
    differences = {}
    for a, b in DIFFERENCES:
        if a in results and b in results:
            each = [results[a]["tasks"][task] - results[b]["tasks"][task] for task in by_task]
            low, high = bootstrap_interval(each)
            differences[f"{a} - {b}"] = {"points": fmean(each), "low": low, "high": high}
    majority = fmean(majority_score(members) for members in by_task.values())
    return {
        "rows": len(rows), "tasks": len(by_task), "settings": SETTINGS, "multitask": MULTITASK, "unprompted": UNPROMPTED, "vectors": VECTORS, "oracle_steps": ORACLE_STEPS,
        "majority": majority, "results": results, "differences": differences,
    }  # fmt: skip


def markdown(values: dict[str, Any]) -> str:
    """The tables for people."""
    lines = [
        "| row | seeds | strict | each seed | first line | ROUGE-L | tokens read |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for name, row in values["results"].items():
        each = ", ".join(f"{value:.1f}" for value in row["strict_of_each_seed"]) if row["seeds"] > 1 else ""
        lines.append(
            f"| {name} | {row['seeds']} | {row['strict']:.1f} | {each} | {row['first_line']:.1f} | {row['rougeL']:.1f} "
            f"| {row['tokens']:.0f} |"
        )
    lines.append(f"| best constant answer of each task (majority) | | {values['majority']:.1f} | | | | |")
    lines += ["", "| difference (strict) | points | 95 % interval over tasks |", "|---|---:|---|"]
    for name, d in values["differences"].items():
        lines.append(f"| {name} | {d['points']:+.1f} | {d['low']:+.1f} … {d['high']:+.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argument_parser(__doc__, "folder with train, paraphrases and heldout .jsonl.gz")
    parser.add_argument("--reuse", type=Path, help="an evaluation of these rows whose answers of the base are taken")
    options = parser.parse_args()
    every = read_rows(options.data / "heldout.jsonl.gz")
    whole = True
    if not options.report:
        jobs = make_jobs(options.data, options.output, every, options.reuse)
        jobs = [job for job in jobs if not options.only or any(text in job.name for text in options.only)]
        whole = work(jobs, options.workers, options.output / "logs")
    values = report(options.output, [row for row in every if row.split == "eval"])
    write_results("unseen_tasks", values, markdown(values), len(values["results"]), len(TABLE))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())

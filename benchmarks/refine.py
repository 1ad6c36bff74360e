"""Refinement on held-out tasks, with few labelled rows or inputs alone, against other starts and prompts in context.

``python benchmarks/refine.py --data ../shared/data/instructions/heldout.jsonl.gz ../shared/data/tasks/heldout.jsonl.gz
--multitask RUN -o runs/refine``

Tasks are processed in a seeded random order, with all table rows of one task before the next task, so that the tasks of
a stopped benchmark are a paired random sample; the same command resumes. Rows with split ``eval`` are scored
(``--eval-rows`` per task, drawn with the seed); rows of other splits are used for learning. Inputs above
``--max-tokens`` tokens and answers above 32 tokens are left out, and so are tasks with too few remaining rows.
Refinement uses its default settings, which were chosen on training tasks. ``--report`` writes the table of the tasks
that are done to ``benchmarks/results/refine.json`` and ``.md``. A second run with ``--rows 64`` adds its table rows to
the same folder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from promptlora import PromptLoRA
from promptlora.data import Row
from promptlora.errors import ConfigError
from promptlora.evaluate import bootstrap_interval, ratio_interval, read_tasks, task_scores
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.text import with_examples
from runs import console, positive, told, write_json, write_results

SHOTS = (4, 16)  # numbers of example rows in the context
INPUTS = 32
ANSWER_TOKENS = 32
MULTITASK = "multi-task LoRA, prompt in context"
GENERATED = "generated, 0 steps"
NO_LABELS = f"refined without labels, {INPUTS} inputs"
SHOWN = "base, prompt in context"


def refined(start: str, count: int) -> str:
    """The name of a table row for refinement from a start with ``count`` rows."""
    return f"refined, {count} rows, from {start}"


def few_shot(count: int) -> str:
    """The name of a table row for ``count`` examples in the context."""
    return f"base, prompt and {count} rows in context"


class Bench:
    """One base, one hypernetwork, and the conditions that are run for a task."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
        self.lm = PromptLoRA.from_pretrained(
            options.hypernetwork, options.base, dtype=dtype, device=options.device, progress=console.print
        )
        self.multitask = None
        if options.multitask:
            network = HyperNetwork.from_pretrained(options.multitask).to(self.lm.host.device).requires_grad_(False)
            self.multitask = PromptLoRA(self.lm.model, self.lm.tokenizer, network)

    def conditions(self, learned: Sequence[Row], scored: Sequence[Row]) -> dict[str, Callable[[], dict[str, Any]]]:
        """Map the name of each table row to the function that runs it."""
        lm, prompt, options = self.lm, learned[0].prompt, self.options
        generated = lm.adapt(prompt)
        starts = {
            "generated": lambda: generated,
            "static": lambda: lm.adapt(prompt, generated=False),
            "fresh": lambda: fresh_lora(lm, options.seed),
        }
        made: dict[str, Callable[[], dict[str, Any]]] = {
            GENERATED: lambda: self.answered(scored, generated),
            "static part, 0 steps": lambda: self.answered(scored, starts["static"]()),
            "base": lambda: self.answered(scored, None),
            SHOWN: lambda: self.answered(scored, None, prompt),
            "adapter and prompt in context": lambda: self.answered(scored, lm.adapt(prompt, in_context=True), prompt),
        }
        if self.multitask is not None:
            plain = self.multitask
            made[MULTITASK] = lambda: self.answered(
                scored, plain.adapt(prompt, generated=False, in_context=True), prompt
            )
        texts = [row.input for row in learned[:INPUTS]]
        if len(texts) == INPUTS:
            made[NO_LABELS] = lambda: self.refined(scored, generated, inputs=texts)
        for count in options.rows:
            for start in starts if count <= len(learned) else ():
                made[refined(start, count)] = lambda start=start, count=count: self.refined(
                    scored, starts[start](), rows=[(row.input, row.outputs) for row in learned[:count]]
                )
            if count in SHOTS and count <= len(learned):
                shots = with_examples(prompt, [(row.input, row.outputs[0]) for row in learned[:count]])
                made[few_shot(count)] = lambda shots=shots: self.answered(scored, None, shots)
        return made

    def answered(self, rows: Sequence[Row], lora: LoRAWeights | None, shown: str | None = None) -> dict[str, Any]:
        """Answers, scores and numbers of tokens read."""
        inputs = [row.input for row in rows]
        answers = self.lm.generate(inputs, lora, in_context=shown, max_new_tokens=ANSWER_TOKENS)
        scores = {measure: next(iter(of.values())) for measure, of in task_scores(rows, answers).items()}
        return {**scores, "tokens": fmean(self.lm.count_tokens(inputs, [shown] * len(inputs))), "answers": answers}

    def refined(self, scored: Sequence[Row], lora: LoRAWeights, **learned: Any) -> dict[str, Any]:
        """The same for an adapter that is refined first, with the refinement's record and its time in seconds."""
        started, cpu = time.perf_counter(), time.process_time()
        better = self.lm.refine(lora, scored[0].prompt, seed=self.options.seed, **learned)
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        (record,) = better.provenance
        return {**self.answered(scored, better), **spent, "record": record}


def fresh_lora(lm: PromptLoRA, seed: int) -> LoRAWeights:
    """PEFT's initialisation at the shipped rank and scaling: A as in ``kaiming_uniform_(a=sqrt(5))``, B zero."""
    generator = torch.Generator().manual_seed(seed)
    rank = lm.hypernetwork.config.rank
    matrices = {}
    for projection in lm.injector.projections:
        bound = 1 / math.sqrt(projection.in_features)
        A = (torch.rand(1, projection.in_features, rank, generator=generator) * 2 - 1) * bound
        matrices[projection.name] = (A, torch.zeros(1, rank, projection.out_features))
    lora = LoRAWeights(matrices, lm.hypernetwork.config.alpha / rank, projections=lm.injector.projections)
    return lora.to(lm.model.dtype, lm.host.device)


def choose(bench: Bench, rows: Sequence[Row], other: Sequence[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """Map each task, in processing order, to the rows to learn from and the rows that are scored."""
    options, tokenizer = bench.options, bench.lm.tokenizer
    by_task: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    every = [*other, *rows]
    reads = bench.lm.count_tokens([row.input for row in every])
    says = tokenizer([row.outputs[0] for row in every], add_special_tokens=False)["input_ids"]
    for i, row in enumerate(every):
        scored = i >= len(other)
        if reads[i] <= options.max_tokens and (scored or len(says[i]) < ANSWER_TOKENS):
            by_task[row.task][scored].append(row)
    chosen = {}
    tasks = sorted(by_task)
    random.Random(options.seed).shuffle(tasks)
    for task in tasks:
        learned, scored = by_task[task]
        for part in (learned, scored):
            random.Random(f"{options.seed}/{task}").shuffle(part)
        inputs = {row.input for row in scored[: options.eval_rows]}
        learned = [row for row in learned if row.input not in inputs]
        if len(learned) >= min(options.rows) and len(scored) >= options.eval_rows // 2:
            chosen[task] = learned, scored[: options.eval_rows]
    return chosen


def file_of(folder: Path, task: str) -> Path:
    """The result file of a task."""
    return folder / ("".join(c if c.isalnum() or c in "-_." else "-" for c in task) + ".json")


def work(bench: Bench, tasks: dict[str, tuple[list[Row], list[Row]]], until: float) -> bool:
    """Process the tasks; False if the time is over before the last task is done."""
    folder = bench.options.output
    for number, (task, (learned, scored)) in enumerate(tasks.items()):
        path = file_of(folder, task)
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"task": task, "results": {}}
        values["metric"], values["eval_rows"] = scored[0].metric, len(scored)
        started = time.monotonic()
        for name, run in bench.conditions(learned, scored).items():
            if name not in values["results"]:
                if time.monotonic() > until:
                    return False
                values["results"][name] = run()
                write_json(path, values)  # saved after each table row, so that a kill loses only one
        values["finished"] = sorted({*values.get("finished", []), *bench.options.rows})
        write_json(path, values)
        console.print(f"{number + 1} of {len(tasks)} {task}: {time.monotonic() - started:.0f} s", highlight=False)
    return True


# --- the report --------------------------------------------------------------------------------------------

COMPARISONS = (
    (refined("generated", 4), GENERATED, 10.0),
    (refined("generated", 16), GENERATED, 20.0),
    (refined("generated", 64), GENERATED, 28.0),
    (refined("generated", 16), MULTITASK, 0.0),
    (NO_LABELS, GENERATED, None),
    (NO_LABELS, "adapter and prompt in context", None),
    *((refined("generated", n), refined(start, n), None) for n in (4, 16, 64) for start in ("static", "fresh")),
    *((refined("generated", n), few_shot(n), None) for n in SHOTS),
    (refined("generated", 16), SHOWN, None),
)


def report(folder: Path) -> dict[str, Any]:
    """Means over the tasks in a folder, and paired differences, as plain values."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    done = [values for values in files if values.get("finished")]
    if not done:
        raise ConfigError(f"{folder}: no finished task. Expected one or more. Fix: let the benchmark run first.")
    names = dict.fromkeys(name for values in done for name in values["results"])
    strict = {name: {v["task"]: v["results"][name]["strict"] for v in done if name in v["results"]} for name in names}
    rows = {}
    for name in names:
        found = [values["results"][name] for values in done if name in values["results"]]
        rows[name] = {"tasks": len(found)} | {
            key: fmean(one[key] for one in found)
            for key in ("strict", "first_line", "rougeL", "tokens")
            if key in found[0]
        }
        if "seconds" in found[0]:
            rows[name]["cpu_seconds"] = fmean(one["cpu_seconds"] for one in found)
            rows[name]["kept_start"] = fmean(one["record"]["best_step"] == 0 for one in found)
    differences = []
    for ours, theirs, aim in COMPARISONS:
        both = [task for task in strict.get(ours, {}) if task in strict.get(theirs, {})]
        if len(both) > 1:
            gains = [strict[ours][task] - strict[theirs][task] for task in both]
            low, high = bootstrap_interval(gains)
            differences.append(
                {
                    "ours": ours,
                    "theirs": theirs,
                    "aim": aim,
                    "points": fmean(gains),
                    "low": low,
                    "high": high,
                    "tasks": len(both),
                }
            )
    ratios = []
    both = [task for task in strict.get(NO_LABELS, {}) if task in strict.get(MULTITASK, {})]
    if len(both) > 1 and any(strict[MULTITASK][task] for task in both):
        ours, theirs = ([strict[name][task] for task in both] for name in (NO_LABELS, MULTITASK))
        low, high = ratio_interval(ours, theirs)
        ratios.append(
            {"ours": NO_LABELS, "theirs": MULTITASK, "aim": 95.0, "percent": 100 * fmean(ours) / fmean(theirs),
             "low": 100 * low, "high": 100 * high, "tasks": len(both)}
        )  # fmt: skip
    return {
        "tasks": len(done), "task_names": sorted(v["task"] for v in done), "rows": rows, "differences": differences,
        "ratios": ratios, "strict": strict,
    }  # fmt: skip


def markdown(values: dict[str, Any]) -> str:
    """The table of a report, as Markdown."""
    lines = [
        f"{values['tasks']} held-out tasks, a random sample in the order of the seed; {values['settings']['eval_rows']} scored rows "
        f"each, inputs of at most {values['settings']['max_tokens']} tokens. Means over the tasks that have the row.",
        "",
        "| row | tasks | strict | first line | tokens read | CPU seconds to refine | start kept |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in values["rows"].items():
        spent = f"{row['cpu_seconds']:.0f} | {100 * row['kept_start']:.0f} %" if "cpu_seconds" in row else " | "
        lines.append(
            f"| {name} | {row['tasks']} | {row['strict']:.1f} | {row['first_line']:.1f} | {row['tokens']:.0f} | {spent} |"
        )
    lines += ["", "| comparison (strict) | aim | value | 95 % interval over tasks | tasks |", "|---|---|---:|---|---:|"]
    for one in values["differences"]:
        aim = "" if one["aim"] is None else "above 0" if one["aim"] == 0 else f"≥ {one['aim']:+.0f}"
        lines.append(
            f"| {one['ours']} − {one['theirs']} | {aim} | {one['points']:+.1f} | {one['low']:+.1f} … {one['high']:+.1f} | {one['tasks']} |"
        )
    lines += [
        f"| {one['ours']} ÷ {one['theirs']} | ≥ {one['aim']:.0f} % | {one['percent']:.0f} % | {one['low']:.0f} % … {one['high']:.0f} % | {one['tasks']} |"
        for one in values["ratios"]
    ]
    if MULTITASK not in values["rows"]:
        lines += ["", "Multi-task LoRA was not run: its weights were not at hand (`--multitask`)."]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[], help="files with held-out tasks")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results by task")
    parser.add_argument(
        "--rows", nargs="+", type=positive, default=[4, 16], help="numbers of labelled rows (default 4 16)"
    )
    parser.add_argument(
        "--multitask", type=Path, help="folder of a multi-task LoRA, a hypernetwork without generated part"
    )
    parser.add_argument("--hypernetwork", help="by default the shipped one")
    parser.add_argument("--base", help="base model: folder or id; by default the embedded one")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, …")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--eval-rows", type=positive, default=20, help="scored rows of each task (default 20)")
    parser.add_argument("--max-tokens", type=positive, default=64, help="longest input (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of tasks, rows and refinement (default 0)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    parser.add_argument("--minutes", type=positive, help="stop after this time; the same command resumes")
    parser.add_argument("--report", action="store_true", help="write the table of what is done, run nothing")
    parser.add_argument("--results", default="refine", help="name of the result files in benchmarks/results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    settings = options.output / "settings" / "settings.json"
    whole = True
    if not options.report:
        if not options.data:
            raise ConfigError("--data: no file. Expected the held-out tasks, or --report.")
        kept = {key: getattr(options, key) for key in ("dtype", "eval_rows", "max_tokens", "seed")}
        if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")) != kept:
            raise ConfigError(
                f"{options.output}: holds a benchmark with other settings. Expected {kept}. Fix: choose another folder."
            )
        bench = Bench(options)
        rows, other = read_tasks(options.data, "eval")
        tasks = choose(bench, rows, other)
        console.print(f"{len(tasks)} tasks have rows that are short enough", highlight=False)
        write_json(settings, kept)
        until = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
        whole = work(bench, tasks, until)
    values = {
        "settings": json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {},
        **report(options.output),
    }
    write_results(options.results, values, markdown(values), values["tasks"], values["tasks"])
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(told(main))

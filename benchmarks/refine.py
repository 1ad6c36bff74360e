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

``--together N`` processes N tasks in each call of the library: one refinement and one generation for all of them. The
results are the same to rounding; the seconds of a call are divided by its tasks. ``--part I/N`` processes only every
N-th task, so that N processes can share an output folder; it writes no table, which ``--report`` does afterwards. On a
CUDA device, float32 matrix products use TF32.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from promptlora import PromptLoRA
from promptlora.data import Row
from promptlora.errors import ConfigError, PromptLoRAError, one_line
from promptlora.evaluate import bootstrap_interval, ratio_interval, read_tasks, task_scores
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.text import with_examples
from runs import console, positive, told, write_json, write_results

SHOTS = (4, 16)  # numbers of example rows in the context
INPUTS = 32
ANSWER_TOKENS = 32
BATCH_ROWS, BATCH_TOKENS = 512, 65536  # of a batch of answers of several tasks, including padding
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


@dataclass(frozen=True)
class Held:
    """A held-out task: the rows to learn from and the rows that are scored, both in seeded random order."""

    task: str
    learned: list[Row]
    scored: list[Row]

    @property
    def prompt(self) -> str:
        """The prompt of the task."""
        return self.learned[0].prompt


Results = list[dict[str, Any]]
Start = Callable[[list[str]], LoRAWeights]  # adapters for prompts
Condition = Callable[[Sequence[Held]], Results]  # the results of some tasks, in their order


class Bench:
    """One base, one hypernetwork, and the conditions that are run for tasks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
        self.lm = PromptLoRA.from_pretrained(
            options.hypernetwork, options.base, dtype=dtype, device=options.device, progress=console.print
        )
        self.multitask = None
        self._generated: tuple[list[str], LoRAWeights] | None = None
        if options.multitask:
            network = HyperNetwork.from_pretrained(options.multitask).to(self.lm.host.device).requires_grad_(False)
            self.multitask = PromptLoRA(self.lm.model, self.lm.tokenizer, network)

    def conditions(self) -> dict[str, tuple[int, Condition]]:
        """Map the name of each table row to the number of rows to learn from that it needs, and its function."""
        lm, options = self.lm, self.options
        starts: dict[str, Start] = {
            "generated": self.generated,
            "static": lambda prompts: lm.adapt(prompts, generated=False),
            "fresh": lambda prompts: LoRAWeights.stack([fresh_lora(lm, options.seed)] * len(prompts)),
        }
        made: dict[str, tuple[int, Condition]] = {
            GENERATED: (0, lambda group: self.answered(group, self.generated(shown(group)))),
            "static part, 0 steps": (0, lambda group: self.answered(group, starts["static"](shown(group)))),
            "base": (0, lambda group: self.answered(group, None)),
            SHOWN: (0, lambda group: self.answered(group, None, shown(group))),
            "adapter and prompt in context": (
                0,
                lambda group: self.answered(group, lm.adapt(shown(group), in_context=True), shown(group)),
            ),
        }
        if self.multitask is not None:
            plain = self.multitask
            made[MULTITASK] = (
                0,
                lambda group: self.answered(
                    group, plain.adapt(shown(group), generated=False, in_context=True), shown(group)
                ),
            )
        made[NO_LABELS] = (
            INPUTS,
            lambda group: self.refined(
                group,
                self.generated(shown(group)),
                inputs=[[row.input for row in held.learned[:INPUTS]] for held in group],
            ),
        )
        for count in options.rows:
            for name, start in starts.items():
                made[refined(name, count)] = (count, partial(self.refined_from, start, count))
            if count in SHOTS:
                made[few_shot(count)] = (count, partial(self.answered_after, count))
        return made

    def generated(self, prompts: list[str]) -> LoRAWeights:
        """The generated adapters; those of the last call are kept, because several table rows use them."""
        if self._generated is None or self._generated[0] != prompts:
            self._generated = prompts, self.lm.adapt(prompts)
        return self._generated[1]

    def answered(self, group: Sequence[Held], lora: LoRAWeights | None, shown: Sequence[str] | None = None) -> Results:
        """Answers, scores and numbers of tokens read of each task, with one adapter and one context per task."""
        of = [number for number, held in enumerate(group) for _ in held.scored]
        inputs = [row.input for held in group for row in held.scored]
        context = [None if shown is None else shown[number] for number in of]
        tokens = self.lm.count_tokens(inputs, context)
        longest = max(tokens) + ANSWER_TOKENS
        batch = {"batch_size": min(BATCH_ROWS, max(8, BATCH_TOKENS // longest))} if len(group) > 1 else {}
        answers = self.lm.generate(
            inputs, lora, adapter_index=None if lora is None else of, in_context=context, max_new_tokens=ANSWER_TOKENS,
            **batch,
        )  # fmt: skip
        results = []
        for number, held in enumerate(group):
            at = [i for i, one in enumerate(of) if one == number]
            own = [answers[i] for i in at]
            scores = {measure: next(iter(of.values())) for measure, of in task_scores(held.scored, own).items()}
            results.append({**scores, "tokens": fmean(tokens[i] for i in at), "answers": own})
        return results

    def refined_from(self, start: Start, count: int, group: Sequence[Held]) -> Results:
        """The same for adapters that are refined on ``count`` rows of each task from a start."""
        return self.refined(group, start(shown(group)), rows=labelled(group, count))

    def answered_after(self, count: int, group: Sequence[Held]) -> Results:
        """The same for the base with the prompt and ``count`` rows of each task in its context."""
        return self.answered(group, None, [with_shots(held, count) for held in group])

    def refined(self, group: Sequence[Held], lora: LoRAWeights, **learned: Any) -> Results:
        """The same for adapters that are refined first, with the refinement's record and its time in seconds.

        The time of a call is divided by its tasks, whose number is stored as ``together``.
        """
        started, cpu = time.perf_counter(), time.process_time()
        better = self.lm.refine(lora, shown(group), seed=self.options.seed, **learned)
        if better.device.type == "cuda":
            torch.cuda.synchronize()
        spent: dict[str, float] = {
            "seconds": (time.perf_counter() - started) / len(group),
            "cpu_seconds": (time.process_time() - cpu) / len(group),
        }
        if len(group) > 1:
            spent["together"] = len(group)
        if any(record["stopped"] for record in better.provenance):  # by Ctrl-C: no result of the benchmark
            raise KeyboardInterrupt
        answered = self.answered(group, better)
        return [{**one, **spent, "record": record} for one, record in zip(answered, better.provenance, strict=True)]


def shown(group: Sequence[Held]) -> list[str]:
    """The prompts of some tasks."""
    return [held.prompt for held in group]


def labelled(group: Sequence[Held], count: int) -> list[dict[str, Any]]:
    """The first ``count`` rows of each task, as ``refine`` takes them."""
    return [
        {"prompt": held.prompt, "input": row.input, "outputs": row.outputs}
        for held in group
        for row in held.learned[:count]
    ]


def with_shots(held: Held, count: int) -> str:
    """The prompt of a task with its first ``count`` rows as examples."""
    return with_examples(held.prompt, [(row.input, row.outputs[0]) for row in held.learned[:count]])


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


def choose(bench: Bench, rows: Sequence[Row], other: Sequence[Row]) -> list[Held]:
    """The tasks with enough rows, in processing order."""
    options, tokenizer = bench.options, bench.lm.tokenizer
    by_task: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    every = [*other, *rows]
    reads = bench.lm.count_tokens([row.input for row in every])
    says = tokenizer([row.outputs[0] for row in every], add_special_tokens=False)["input_ids"]
    for i, row in enumerate(every):
        scored = i >= len(other)
        if reads[i] <= options.max_tokens and (scored or len(says[i]) < ANSWER_TOKENS):
            by_task[row.task][scored].append(row)
    chosen = []
    tasks = sorted(by_task)
    random.Random(options.seed).shuffle(tasks)
    for task in tasks:
        for part in by_task[task]:
            random.Random(f"{options.seed}/{task}").shuffle(part)
        learned, answered = by_task[task]
        inputs = {row.input for row in answered[: options.eval_rows]}
        learned = [row for row in learned if row.input not in inputs]
        if len(learned) >= min(options.rows) and len(answered) >= options.eval_rows // 2:
            chosen.append(Held(task, learned, answered[: options.eval_rows]))
    return chosen


def file_of(folder: Path, task: str) -> Path:
    """The result file of a task."""
    return folder / ("".join(c if c.isalnum() or c in "-_." else "-" for c in task) + ".json")


def groups_of(tasks: Sequence[Held], together: int) -> list[Sequence[Held]]:
    """Consecutive groups of at most ``together`` tasks, of nearly equal size."""
    count = -(-len(tasks) // together)
    return [tasks[len(tasks) * i // count : len(tasks) * (i + 1) // count] for i in range(count)]


def attempted(run: Condition, group: Sequence[Held]) -> list[dict[str, Any] | str]:
    """The result of each task, or why it has none. If a group fails, its tasks are processed one by one."""
    if len({held.prompt.strip() for held in group}) == len(group):  # rows are told apart by their prompts
        try:
            return [*run(group)]
        except (PromptLoRAError, torch.OutOfMemoryError) as error:
            said = one_line(error)
        if len(group) == 1:
            return [said]
        console.print(f"{len(group)} tasks one by one: {said}", highlight=False, markup=False)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [one for held in group for one in attempted(run, [held])]


def work(bench: Bench, tasks: Sequence[Held], until: float) -> bool:
    """Process the tasks; False if the time is over before the last task is done, or if a task lacks a result."""
    options, conditions = bench.options, bench.conditions()
    done, whole = 0, True
    for group in groups_of(tasks, options.together):
        started = time.monotonic()
        values: dict[str, dict[str, Any]] = {}
        for held in group:
            path = file_of(options.output, held.task)
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
            values[held.task] = {
                "task": held.task, **known, "metric": held.scored[0].metric, "eval_rows": len(held.scored),
            }  # fmt: skip
            if bench.lm.host.device.type == "cuda":
                values[held.task]["device"] = torch.cuda.get_device_name(bench.lm.host.device)
        for name, (needed, run) in conditions.items():
            missing = [
                held for held in group if needed <= len(held.learned) and name not in values[held.task]["results"]
            ]
            if not missing:
                continue
            if time.monotonic() > until:
                return False
            for held, found in zip(missing, attempted(run, missing), strict=True):
                if isinstance(found, str):
                    console.print(f"{held.task}, {name}: left out: {found}", highlight=False, markup=False)
                    whole = False
                else:
                    values[held.task]["results"][name] = found
                write_json(file_of(options.output, held.task), values[held.task])  # a kill loses only one table row
        for held in group:
            finished = values[held.task].get("finished", [])
            values[held.task]["finished"] = sorted({*finished, *options.rows})
            write_json(file_of(options.output, held.task), values[held.task])
        done += len(group)
        names = ", ".join(held.task for held in group)
        console.print(f"{done} of {len(tasks)} {names}: {time.monotonic() - started:.0f} s", highlight=False)
    return whole


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
            together = max(one.get("together", 1) for one in found)
            if together > 1:
                rows[name]["together"] = together
            rows[name]["kept_start"] = fmean(one["record"]["best_step"] == 0 for one in found)
    differences = []
    for one, other, aim in COMPARISONS:
        both = [task for task in strict.get(one, {}) if task in strict.get(other, {})]
        if len(both) > 1:
            gains = [strict[one][task] - strict[other][task] for task in both]
            low, high = bootstrap_interval(gains)
            differences.append(
                {
                    "ours": one,
                    "theirs": other,
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
        "ratios": ratios, "strict": strict, "devices": sorted({v["device"] for v in done if "device" in v}),
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
    together = max((row.get("together", 1) for row in values["rows"].values()), default=1)
    if together > 1:
        lines += [
            "",
            f"Up to {together} tasks were refined in one call, on {', '.join(values['devices']) or 'a CPU'}; the seconds of a "
            "call are divided by its tasks.",
        ]
    if MULTITASK not in values["rows"]:
        lines += ["", "Multi-task LoRA was not run: its weights were not at hand (`--multitask`)."]
    return "\n".join(lines) + "\n"


def part(text: str) -> tuple[int, int]:
    """Parse ``I/N``, the I-th of N parts."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N with I from 1 to N, such as 1/8")
    return int(first), int(second)


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
    parser.add_argument("--together", type=positive, default=1, help="tasks in one call of the library (default 1)")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="only every N-th task, from the I-th")
    parser.add_argument("--minutes", type=positive, help="stop after this time; the same command resumes")
    parser.add_argument("--report", action="store_true", help="write the table of what is done, run nothing")
    parser.add_argument("--results", default="refine", help="name of the result files in benchmarks/results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    if options.device.startswith("cuda"):
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN plans its attention anew for each new shape
        torch.set_float32_matmul_precision("high")
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
        number, parts = options.part
        tasks = tasks[number - 1 :: parts]
        write_json(settings, kept)
        until = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
        whole = work(bench, tasks, until)
        if parts > 1:
            return 0 if whole else 1
    values = {
        "settings": json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {},
        **report(options.output),
    }
    write_results(options.results, values, markdown(values), values["tasks"], values["tasks"])
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(told(main))

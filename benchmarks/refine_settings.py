"""The settings of refinement, chosen on training tasks whose categories the shipped hypernetwork was not trained on.

``python benchmarks/refine_settings.py --data ../shared/data/instructions/train.jsonl.gz ../shared/data/tasks/train.jsonl.gz``

Four of the 48 tasks of ``validation.tasks`` with short rows are refined together: extraction of a time, sums, misheard
idioms and kinds of question. For each, ten rows of the ``eval`` split are answered and their loss is measured. The
held-out tasks of the result tables are not used. Results: ``benchmarks/results/refine_settings.json``, written after
each variant; ``--only`` selects variants by name.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from promptlora import PromptLoRA
from promptlora.data import Row
from promptlora.evaluate import read_tasks, task_scores
from promptlora.lora import LoRAWeights
from runs import RESULTS, console, positive, told, write_json

TASKS = ("span/restaurant8k_time", "ii_sum", "corp/eggcorn", "task1289_trec_classification")
LEARNED, SCORED = 38, 45  # maximum input length in tokens, for rows to learn from and for scored rows
COUNT = 10  # scored rows per task
COMMON = {"steps": 20, "rows_per_step": 4, "patience": 100, "measure_every": 5}
# Name to the start, the number of rows (or of inputs), and the settings that differ from the defaults.
VARIANTS: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "cores, lr 5e-3, 16 rows": ("generated", {"rows": 16}, {"lr": 5e-3, **COMMON}),
    "all, lr 1e-3, 16 rows": ("generated", {"rows": 16}, {"lr": 1e-3, "moves": "all", **COMMON}),
    "cores, lr 1e-2, 16 rows": ("generated", {"rows": 16}, {"lr": 1e-2, **COMMON}),
    "defaults, 32 inputs": ("generated", {"inputs": 32}, {}),
    "defaults, 4 rows": ("generated", {"rows": 4}, {}),
    "defaults, 16 rows, static start": ("static", {"rows": 16}, {}),
    "all, 4 rows": ("generated", {"rows": 4}, {"moves": "all"}),
    "defaults, 64 rows": ("generated", {"rows": 64}, {}),
}


def measured(lm: PromptLoRA, lora: LoRAWeights | None, rows: Sequence[Row], index: Sequence[int]) -> dict[str, Any]:
    """Strict score of each task, and the mean negative log-probability of a row's first answer, in nats."""
    inputs = [row.input for row in rows]
    answers = lm.generate(inputs, lora, adapter_index=index, max_new_tokens=20)
    scores = task_scores(rows, answers)["strict"]
    loss = lm.score(inputs, [row.outputs[0] for row in rows], lora, adapter_index=index)
    return {"strict": fmean(scores.values()), "nats": -fmean(loss), "tasks": scores}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="files with training tasks")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    parser.add_argument("--only", nargs="*", help="variants whose name holds one of these texts")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "refine_settings.json", help="JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    rows, other = read_tasks(options.data, "eval")
    lm = PromptLoRA.from_pretrained(dtype=getattr(torch, options.dtype), progress=console.print)
    learned, scored = ({task: [row for row in some if row.task == task] for task in TASKS} for some in (other, rows))
    for task in TASKS:
        for part, longest in ((learned, LEARNED), (scored, SCORED)):
            random.Random(f"0/{task}").shuffle(part[task])
            lengths = lm.count_tokens([row.input for row in part[task]])
            part[task] = [row for row, length in zip(part[task], lengths, strict=True) if length <= longest]
    prompts = [learned[task][0].prompt for task in TASKS]
    judged = [row for task in TASKS for row in scored[task][:COUNT]]
    index = [TASKS.index(row.task) for row in judged]
    starts = {"generated": lm.adapt(prompts), "static": lm.adapt(prompts, generated=False)}
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    results.setdefault("generated", measured(lm, starts["generated"], judged, index))
    for name, (start, amount, settings) in VARIANTS.items():
        if name in results or (options.only and not any(text in name for text in options.only)):
            continue
        given: dict[str, Any] = {"rows": [row for task in TASKS for row in learned[task][: amount.get("rows", 0)]]}
        if "inputs" in amount:
            given = {"inputs": [[row.input for row in learned[task][: amount["inputs"]]] for task in TASKS]}
        before = time.process_time()
        better = lm.refine(starts[start], prompts, **given, **settings)
        spent = time.process_time() - before
        steps = [record["best_step"] for record in better.provenance]
        results[name] = {**measured(lm, better, judged, index), "best_steps": steps, "cpu_seconds": spent}
        write_json(options.output, results)
        console.print(f"{name}: {results[name]}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

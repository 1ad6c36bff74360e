"""How strongly the generated part should speak on prompts that were never trained on.

``python benchmarks/strength.py runs/ablations/lr-x-0-5.toml -o benchmarks/results/strength.json``

Takes a run with held-out tasks (``validation.tasks``) and measures the loss on their rows with the generated part at
several strengths: 0 is the static part alone, 1 is as it was trained; with the prompt in the context too where the run
had it there. The tasks are training tasks, held out of that run; those of the results' tables have no part in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.progress import track

from runs import console, positive, told, with_heldout_tasks, write_json

STRENGTHS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="TOML of a run that is complete, with validation.tasks")
    parser.add_argument("-o", "--output", type=Path, help="JSON file of the results")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    rows = []
    with with_heldout_tasks(options.config, options.threads) as (trainer, validation):
        encoded = trainer.states.batch(list(validation.prompts.values()))
        for strength in track(STRENGTHS, "strengths", console=console):
            with torch.no_grad():
                lora = trainer.plain(*encoded, strength=strength)
            losses = {which: validation.loss(lora, getattr(validation, which)) for which in ("right", "wrong")}
            if trainer.config.data.in_context_share:
                losses["in_context"] = validation.loss(lora, validation.right, in_context=True)
            rows.append({"strength": strength, **losses})
        step, tasks = trainer.step, len(validation.tasks)
    best = min(rows, key=lambda row: row["right"])
    for row in rows:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "strength")
        print(f"{row['strength']:.1f}  {shown}{'  *' if row is best else ''}")
    if options.output:
        values = {"run": options.config.name, "step": step, "tasks": tasks, "best": best["strength"], "results": rows}
        write_json(options.output, values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

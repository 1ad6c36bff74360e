"""How strongly the generated part should speak on prompts that were never trained on.

``python benchmarks/strength.py runs/ablations/lr-x-0-5.toml -o benchmarks/results/strength.json``

Takes a run with held-out tasks (``validation.tasks``) and measures the loss on their rows with the generated part at
several strengths: 0 is the static part alone, 1 is as it was trained. The tasks are training tasks, held out of that
run; those of the results' tables have no part in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from promptlora.config import TrainConfig, load_toml
from promptlora.files import replacing_file
from promptlora.training import Trainer

STRENGTHS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="TOML of a run that is complete, with validation.tasks")
    parser.add_argument("-o", "--output", type=Path, help="JSON file of the results")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_toml(TrainConfig, options.config)
    console = Console(stderr=True)
    with Trainer(config, progress=console.print) as trainer:
        if trainer.validation is None:
            parser.error(f"{options.config}: validation.tasks is 0; expected a run with held-out tasks")
        step = trainer.resume()
        tasks = trainer.validation.tasks
        encoded = trainer.states.batch([trainer.validation.prompts[task] for task in tasks])
        right = {task: i for i, task in enumerate(tasks)}
        wrong = {task: (i + 1) % len(tasks) for task, i in right.items()}
        rows = []
        for strength in track(STRENGTHS, "strengths", console=console):
            with torch.no_grad():
                lora = trainer.plain(*encoded, strength=strength)
            rows.append({"strength": strength, "right": trainer.validation.loss(lora, right)})
            rows[-1]["wrong"] = trainer.validation.loss(lora, wrong)
    best = min(rows, key=lambda row: row["right"])
    for row in rows:
        print(
            f"{row['strength']:.1f}  right {row['right']:.3f}  wrong {row['wrong']:.3f}{'  *' if row is best else ''}"
        )
    if options.output:
        values = {
            "run": options.config.name,
            "step": step,
            "tasks": len(tasks),
            "best": best["strength"],
            "results": rows,
        }
        with replacing_file(options.output) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much of a prompt's function vector an adapter should carry, and in which layers.

``python benchmarks/function_vectors.py runs/ablations/prompt-in-context-half-the-time.toml``

Takes a run with held-out tasks (``validation.tasks``) and the prompt in the context of some groups, and measures the
loss on rows of the held-out tasks: without vectors, with vectors at several factors and depths, with another task's
prompt, and with the prompt in the context; for the hypernetwork's adapters and for its static part alone. The tasks
are training tasks; those of the results' tables have no part in it. Results: ``benchmarks/results/function_vectors.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from promptlora.config import TrainConfig, load_toml
from promptlora.files import replacing_file
from promptlora.function_vectors import MIDDLE, add_function_vectors
from promptlora.training import Trainer

FACTORS = (0.25, 0.5, 0.75)
DEPTHS = ((0.0, 1.0), (1 / 3, 2 / 3), (2 / 3, 1.0))  # at factor 0.5, beside the middle
RESULTS = Path(__file__).parent / "results" / "function_vectors.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="TOML of a run that is complete, with validation.tasks")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="JSON file of the results")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_toml(TrainConfig, options.config)
    console = Console(stderr=True)
    rows = []
    with Trainer(config, progress=console.print) as trainer, torch.no_grad():
        if trainer.validation is None:
            parser.error(f"{options.config}: validation.tasks is 0; expected a run with held-out tasks")
        step = trainer.resume()
        base, validation = trainer.base, trainer.validation
        tasks = validation.tasks
        prompts = [validation.prompts[task] for task in tasks]
        right = {task: i for i, task in enumerate(tasks)}
        wrong = {task: (i + 1) % len(tasks) for task, i in right.items()}
        encoded = trainer.states.batch(prompts)

        def note(what: str, loss: float, factor: float = 0.0, depth: tuple[float, float] = MIDDLE) -> None:
            rows.append({"part": part, "what": what, "factor": factor, "from": depth[0], "to": depth[1], "loss": loss})
            console.print(f"{part}, {what}, {factor:g} from {depth[0]:.2f} to {depth[1]:.2f}: {loss:.3f}")

        for part in ("adapter", "static part"):
            lora = trainer.plain(*encoded, generated=part == "adapter").to(base.model.dtype)
            note("no vectors", validation.loss(lora, right))
            note("prompt in context", validation.loss(lora, right, in_context=True))
            for factor, depth in [(f, MIDDLE) for f in FACTORS] + [(0.5, d) for d in DEPTHS]:
                more = add_function_vectors(
                    base.model, base.tokenizer, base.injector, lora, prompts, factor, layers=depth
                )
                note("vectors", validation.loss(more, right), factor, depth)
                if (factor, depth) == (0.5, MIDDLE):
                    note("vectors of another prompt", validation.loss(more, wrong), factor, depth)
    values = {"run": options.config.name, "step": step, "tasks": len(tasks), "results": rows}
    with replacing_file(options.output) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

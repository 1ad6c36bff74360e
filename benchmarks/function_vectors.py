"""Which share of a prompt's function vector an adapter should carry, and in which layers.

``python benchmarks/function_vectors.py runs/ablations/prompt-in-context-half-the-time.toml``

The run must have held-out tasks (``validation.tasks``) and must have trained some groups with the prompt in the
context. The benchmark measures the loss on rows of the held-out tasks without vectors, with vectors at several factors
and depths, with vectors of another task's prompt, and with the prompt in the context, with and without vectors. Each is
measured for the hypernetwork's adapters and for its static part alone. All of these are training tasks; the tasks of
the result tables are not used. Results: ``benchmarks/results/function_vectors.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from promptlora.adapt.function_vectors import MIDDLE, add_function_vectors, constant_readers
from runs import RESULTS, console, positive, told, with_heldout_tasks, write_json

FACTORS = (0.25, 0.5, 0.75)
DEPTHS = ((0.0, 1.0), (1 / 3, 2 / 3), (2 / 3, 1.0))  # at factor 0.5, beside the middle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="TOML of a run that is complete, with validation.tasks")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "function_vectors.json", help="JSON file")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    rows = []
    with with_heldout_tasks(options.config, options.threads) as (trainer, validation), torch.no_grad():
        base, prompts = trainer.base, list(validation.prompts.values())
        encoded = trainer.states.batch(prompts)

        def note(what: str, loss: float, factor: float = 0.0, depth: tuple[float, float] = MIDDLE) -> None:
            rows.append({"part": part, "what": what, "factor": factor, "from": depth[0], "to": depth[1], "loss": loss})
            console.print(f"{part}, {what}, {factor:g} from {depth[0]:.2f} to {depth[1]:.2f}: {loss:.3f}")

        for part in ("adapter", "static part"):
            lora = trainer.plain(*encoded, generated=part == "adapter").to(base.model.dtype)
            note("no vectors", validation.loss(lora, validation.right))
            note("prompt in context", validation.loss(lora, validation.right, in_context=True))
            for factor, depth in [(f, MIDDLE) for f in FACTORS] + [(0.5, d) for d in DEPTHS]:
                more = add_function_vectors(base, lora, prompts, factor, constant_readers(base, depth))
                note("vectors", validation.loss(more, validation.right), factor, depth)
                if (factor, depth) == (0.5, MIDDLE):
                    note("vectors of another prompt", validation.loss(more, validation.wrong), factor, depth)
                if factor <= 0.5 and depth == MIDDLE:
                    shown = validation.loss(more, validation.right, in_context=True)
                    note("vectors, prompt in context", shown, factor, depth)
        step = trainer.step
    write_json(options.output, {"run": options.config.name, "step": step, "tasks": len(prompts), "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

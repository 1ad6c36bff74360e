"""Whether a gate on the generated part would pay: one factor for all prompts, the best per prompt, a learned one.

``python benchmarks/gate.py configs/shipped.toml``

An adapter is the static part plus the generated part. Here the generated part is multiplied by a factor (0 is the
static part alone, 1 the adapter as it is), and the loss is measured on rows of the tasks that the configuration holds
out of training. ``hindsight`` takes the best factor of each task by the very losses that are reported, so it is a bound
that no gate can pass. ``gate`` is a logistic function of the prompt's distance from the training prompts and of the size
of its generated part, fitted on the tasks of the other categories and measured on those of the left-out one. Results:
``benchmarks/results/gate.json``.
"""

from __future__ import annotations

import sys
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from promptlora import LoRAWeights, PromptLoRA
from promptlora.train.reading import read_training_data
from promptlora.train.validation import Validation
from runs import RESULTS, console, heldout_config, heldout_parser, told, write_json

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def at(losses: Tensor, factors: Tensor) -> Tensor:
    """The loss of each task at its factor, linear between the measured ones; losses: (tasks, len(FACTORS))."""
    place = (factors / (FACTORS[1] - FACTORS[0])).clamp(0, len(FACTORS) - 1)
    low = place.detach().floor().long().clamp(max=len(FACTORS) - 2)
    first, second = (losses.gather(1, index[:, None])[:, 0] for index in (low, low + 1))
    return first + (place - low) * (second - first)


def gate(features: Tensor, losses: Tensor, steps: int = 400) -> Tensor:
    """Weights of ``1.25 * sigmoid(features @ weights)`` with the least loss; the last feature is 1."""
    weights = torch.zeros(features.shape[1], dtype=torch.float64)
    weights[-1] = torch.logit(torch.tensor(1 / FACTORS[-1], dtype=torch.float64))  # a factor of 1 for all
    weights.requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        at(losses, FACTORS[-1] * torch.sigmoid(features @ weights)).mean().backward()
        optimizer.step()
    return weights.detach()


def left_out(features: Tensor, losses: Tensor, categories: list[str]) -> Tensor:
    """The factor of each task by a gate that was fitted without its category."""
    found = torch.empty(len(categories), dtype=torch.float64)
    for category in sorted(set(categories)):
        own = torch.tensor([each == category for each in categories])
        weights = gate(features[~own], losses[~own])
        found[own] = FACTORS[-1] * torch.sigmoid(features[own] @ weights)
    return found


def main() -> int:
    options = heldout_parser(__doc__, RESULTS / "gate.json").parse_args()
    torch.set_num_threads(options.threads)
    config = heldout_config(options.config)
    lm = PromptLoRA.from_pretrained(hypernetwork=options.hypernetwork)
    rows = read_training_data(config).held
    held = Validation(lm.host, rows, config)
    prompts = [held.prompts[task] for task in held.tasks]
    category_of = {row.task: row.category for row in rows}
    own, static = lm.adapt(prompts), lm.adapt(prompts, generated=False)
    by_factor: list[dict[str, float]] = []
    for factor in FACTORS:
        by_factor.append(held.by_task(LoRAWeights.combine([own, static], [factor, 1 - factor]), held.right))
        console.print(f"factor {factor}: {fmean(by_factor[-1].values()):.3f}", highlight=False)
    kept = [i for i, task in enumerate(held.tasks) if task in by_factor[0]]  # tasks whose rows are short enough
    losses = torch.tensor([[one[held.tasks[i]] for one in by_factor] for i in kept], dtype=torch.float64)
    difference = LoRAWeights.combine([own, static], [1.0, -1.0])
    sizes = torch.stack([difference.delta(name).flatten(1).norm(dim=1) for name in difference]).norm(dim=0)
    distances = torch.tensor([one.distance for one in lm.distances(prompts) or []])
    features = torch.stack([distances, sizes.log().cpu()], 1).double()[kept]
    features = (features - features.mean(0)) / features.std(0)
    features = torch.cat([features, torch.ones(len(kept), 1)], 1)
    gated = left_out(features, losses, [category_of[held.tasks[i]] for i in kept])
    best = losses.argmin(1)
    values: dict[str, Any] = {
        "config": options.config.name,
        "tasks": len(kept),
        "loss_by_factor": dict(zip(map(str, FACTORS), losses.mean(0).tolist(), strict=True)),
        "tasks_by_best_factor": {str(factor): int((best == i).sum()) for i, factor in enumerate(FACTORS)},
        "hindsight": float(losses.min(1).values.mean()),
        "gate": float(at(losses, gated).mean()),
        "factors_of_the_gate": {"least": float(gated.min()), "mean": float(gated.mean()), "most": float(gated.max())},
    }
    console.print_json(data=values)
    write_json(options.output, values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

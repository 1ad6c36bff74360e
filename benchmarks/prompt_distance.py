"""Whether the distance of a prompt from the training prompts predicts the quality of its adapter.

``python benchmarks/prompt_distance.py configs/shipped.toml``

For each task that the configuration holds out of training, this measures the distance of its prompt, the loss with its
adapter, and the difference to the loss with only the static part and with another task's adapter. Spearman's rank
correlation says how strongly distance and loss are related. The prompts of ``benchmarks/user_prompts.jsonl`` are split
into three equal parts by distance, with the checks passed in each (``results/user_prompts.json``, from the same
weights). Writes ``results/prompt_distance.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from promptlora import PromptLoRA
from promptlora.train.config import TrainConfig
from promptlora.train.reading import read_training_data
from promptlora.train.validation import Validation
from runs import RESULTS, console, heldout_config, positive, read_results, told, write_json


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The rank correlation of two lists without ties."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def of_heldout_tasks(lm: PromptLoRA, config: TrainConfig) -> dict[str, Any]:
    """Distances against losses over the held-out tasks."""
    held = Validation(lm.host, read_training_data(config).held, config)
    prompts = [held.prompts[task] for task in held.tasks]
    own, static = lm.adapt(prompts), lm.adapt(prompts, generated=False)
    right, wrong = held.by_task(own, held.right), held.by_task(own, held.wrong)
    alone = held.by_task(static, held.right)
    distances = [one.distance for one in lm.distances(prompts) or []]
    at = [i for i, task in enumerate(held.tasks) if task in right]  # tasks whose rows are short enough
    tasks, distances = [held.tasks[i] for i in at], [distances[i] for i in at]
    return {
        "tasks": len(tasks),
        "loss": spearman(distances, [right[task] for task in tasks]),
        "gain_over_static_part": spearman(distances, [alone[task] - right[task] for task in tasks]),
        "gain_over_another_adapter": spearman(distances, [wrong[task] - right[task] for task in tasks]),
    }


def of_user_prompts(lm: PromptLoRA) -> list[dict[str, Any]]:
    """Checks passed, by thirds of the prompts."""
    passed: dict[str, Counter[str]] = {}
    for row in read_results("user_prompts")["answers"]:
        counts = passed.setdefault(row["prompt"], Counter())
        counts["checks"] += 1
        counts.update(name for name in ("adapter", "adapter_in_context") if row["answers"][name]["right"])
    prompts = list(passed)
    found = sorted((one.distance, prompt) for one, prompt in zip(lm.distances(prompts) or [], prompts, strict=True))
    thirds = [found[i * len(found) // 3 : (i + 1) * len(found) // 3] for i in range(3)]
    names = ("checks", "adapter", "adapter_in_context")
    return [
        {"distance": [third[0][0], third[-1][0]], **{n: sum(passed[p][n] for _, p in third) for n in names}}
        for third in thirds
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="the configuration of the shipped weights")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "prompt_distance.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = heldout_config(options.config)
    lm = PromptLoRA.from_pretrained()
    values = {"spearman_over_heldout_tasks": of_heldout_tasks(lm, config), "user_prompts": of_user_prompts(lm)}
    console.print_json(json.dumps(values))
    write_json(options.output, values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

"""How parameters move: the schedule of the learning rate, the optimizer's groups, gradient norms and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from promptlora.hypernet.network import HyperNetwork
from promptlora.train.config import OptimConfig


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Linear warm-up from 0, then a cosine to ``final``; 1 at the top. ``step`` is counted from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(hypernetwork: HyperNetwork, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with a rate for each group: the heads' is divided by their fan-in, the static part has no decay."""
    fan_in = hypernetwork.config.context_size
    rates = {"trunk": config.lr, "heads": config.lr * config.head_lr_factor / fan_in, "static": config.static_lr}
    return torch.optim.AdamW(
        [
            {
                "params": [parameter for _, parameter in members],
                "lr": rates[name],
                "top_lr": rates[name],
                "weight_decay": 0.0 if name == "static" else config.weight_decay,
            }
            for name, members in hypernetwork.parameter_groups().items()
            if members
        ],
        betas=(0.9, 0.98),
        fused=False,
    )


def norm_and_clip(groups: Mapping[str, Sequence[nn.Parameter]], config: OptimConfig) -> dict[str, float]:
    """Gradient norm of ``trunk``, ``heads`` and ``static``; then trunk and static are clipped together, heads apart."""
    norms = {
        name: float(torch.nn.utils.get_total_norm([p.grad for p in members if p.grad is not None]))
        for name, members in groups.items()
    }
    torch.nn.utils.clip_grad_norm_([*groups["trunk"], *groups["static"]], config.clip)
    torch.nn.utils.clip_grad_norm_(groups["heads"], config.head_clip)
    return norms

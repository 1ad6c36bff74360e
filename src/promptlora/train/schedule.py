"""The optimizer of a hypernetwork: parameter groups, learning rates, gradient norms and clipping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from promptlora.hypernet.network import HyperNetwork
from promptlora.train.config import OptimConfig


def make_optimizer(hypernetwork: HyperNetwork, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with one learning rate per kind of parameter; the static part has no weight decay.

    Adam changes every entry by about its learning rate per step, whatever the size of the gradient. A linear layer sums
    ``fan_in`` such changes, so linear layers of a head get ``lr * head_lr_factor / fan_in``, for weight and bias: heads
    with 64 and with 256 inputs then change their outputs equally fast. An embedding inside a head is not summed and
    uses the rate of the trunk.
    """
    rates: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for group, members in hypernetwork.parameter_groups().items():
        for name, parameter in members:
            rate = config.static_lr if group == "static" else config.lr
            if group == "heads":
                rate = config.lr * config.head_lr_factor / hypernetwork.head_fan_in(name)
            rates[group, rate].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate,
                "top_lr": rate,
                "weight_decay": 0.0 if group == "static" else config.weight_decay,
            }
            for (group, rate), parameters in rates.items()
        ],
        betas=(0.9, 0.98),
        fused=all(parameter.is_cuda for parameters in rates.values() for parameter in parameters),
    )


@torch.no_grad()
def norm_and_clip(groups: Mapping[str, Sequence[nn.Parameter]], config: OptimConfig) -> dict[str, float]:
    """Gradient norms of ``trunk``, ``heads`` and ``static``; clips trunk and static together, and heads separately.

    Each norm is computed once, for all gradients of a group in one call, and used for both clipping and the report. The
    host waits for the device only once, when the norms are read at the end.

    Args:
        groups: The parameters of the three groups; parameters without a gradient are skipped.
        config: Holds the maximum norms.

    Returns:
        The norms before clipping.
    """
    grads = {name: [p.grad for p in members if p.grad is not None] for name, members in groups.items()}
    device = next((grad.device for each in grads.values() for grad in each), None)
    # A norm without any gradients is created on the CPU, and tensors on different devices cannot be stacked.
    norms = {name: torch.nn.utils.get_total_norm(each).to(device) for name, each in grads.items()}
    body = torch.linalg.vector_norm(torch.stack([norms["trunk"], norms["static"]]))
    torch.nn.utils.clip_grads_with_norm_([*groups["trunk"], *groups["static"]], config.clip, body)
    torch.nn.utils.clip_grads_with_norm_(groups["heads"], config.head_clip, norms["heads"])
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))

"""What shows whether a hypernetwork steers, or has collapsed to one LoRA for all prompts.

Margins say what the right adapter is worth against another; the spread of the updates says how much of them depends
on the prompt at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptlora.attention.space import centred, update_products
from promptlora.lora import LoRAWeights

QUIET = 0.02  # nats: a margin below this is none


def margin_shift(tasks: Sequence[str]) -> int | None:
    """How far to turn the adapters of a batch so that each prompt meets one of another task.

    The smallest shift at which the fewest prompts meet their own task again; None when all of them would.
    """
    count = len(tasks)
    clashes = {s: sum(tasks[i] == tasks[(i + s) % count] for i in range(count)) for s in range(1, count)}
    best = min(clashes, key=clashes.__getitem__, default=None)
    return None if best is None or clashes[best] == count else best


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the updates ``A @ B * scaling`` of several prompts differ.

    Attributes:
        variance_ratio: Their variance over the squared norm of their mean; 0 when all prompts get the same update.
        effective_rank: Exponential of the entropy of the normalised eigenvalues of their centred inner products (Roy
            and Vetterli 2007): in how many directions they differ, from 1 to ``prompts - 1``; 0 when they do not.
    """

    variance_ratio: float
    effective_rank: float


@torch.no_grad()
def spread(lora: LoRAWeights) -> Spread:
    """The spread of two adapters or more, from products of rank by rank."""
    products = update_products(lora)
    mean = float(products.mean())
    variance = float(products.diagonal().mean()) - mean
    values = torch.linalg.eigvalsh(centred(products)).clamp_min(0.0)
    total = float(values.sum())
    size = float(products.diagonal().mean())
    if size <= 0 or total <= 1e-12 * size * lora.adapters:
        return Spread(variance_ratio=0.0, effective_rank=0.0)
    shares = values / total
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    return Spread(variance_ratio=variance / max(mean, 1e-12 * size), effective_rank=float(torch.tensor(entropy).exp()))

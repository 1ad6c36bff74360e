"""Losses of the generated matrices themselves: their distance to given adapters, and penalties on their size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from promptlora.errors import ConfigError, LoRAError
from promptlora.lora import LoRAWeights


def reconstruction_loss(lora: LoRAWeights, target: LoRAWeights, *, relative: bool = True) -> Float[Tensor, ""]:
    """Squared Frobenius distance of the updates ``A @ B * scaling``, the mean over adapters and projections.

    It does not depend on how an update is factored (``A R`` and ``R^-1 B`` are one update), and no update is formed:
    with ``A = [A1 | A2]`` and ``B = [s1 B1 ; -s2 B2]`` the difference is ``A B``, and ``|A B|^2 = sum((A'A) * (B B'))``
    needs products of rank by rank alone. They are taken in float64, being a small difference of large sums.

    Args:
        lora: The generated adapters.
        target: As many adapters of the same projections; ranks, scaling, dtype and device may differ.
        relative: Divide each distance by the squared norm of the target's update, so that an update of 0 has loss 1.

    Raises:
        LoRAError: Other projections, features or numbers of adapters; with ``relative``, a target whose update is 0 or not
            finite.
    """
    odd = sorted(set(lora) ^ set(target))
    if odd:
        raise LoRAError(f"{odd[0]}: not in both the generated and the target LoRA; expected the same projections")
    if lora.adapters != target.adapters:
        raise LoRAError(
            f"{lora.adapters} generated and {target.adapters} target adapters; expected one target for each"
        )
    errors = []
    for name in lora:  # one at a time: on a CPU, stacking those of one shape costs more than it saves
        A1, B1 = (matrix.double() for matrix in lora[name])
        A2, B2 = (matrix.to(lora.device, torch.float64) for matrix in target[name])
        if (A1.shape[1], B1.shape[2]) != (A2.shape[1], B2.shape[2]):
            raise LoRAError(
                f"{name}: {A1.shape[1]} to {B1.shape[2]} features, the target has {A2.shape[1]} to {B2.shape[2]}; "
                "expected adapters of the same base"
            )
        A = torch.cat([A1, A2], dim=2)
        B = torch.cat([B1 * lora.scaling, B2 * -target.scaling], dim=1)
        products = (A.mT @ A) * (B @ B.mT)  # [adapters, r1 + r2, r1 + r2]
        error = products.sum((1, 2)).clamp(min=0)
        if relative:
            rank = A1.shape[2]
            size = products[:, rank:, rank:].sum((1, 2))
            bad = ~((size > 0) & size.isfinite())
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                raise LoRAError(
                    f"{name}: the update of target adapter {i} has the squared norm {size[i].item():g}, by which a "
                    "relative distance is divided; expected a finite number above 0; drop it, or use relative=False"
                )
            error = error / size
        errors.append(error)
    return torch.stack(errors).mean().to(torch.promote_types(lora.dtype, torch.float32))


def weight_penalty(lora: LoRAWeights, *, l2: float) -> Float[Tensor, ""]:
    """``l2 * mean(w^2)`` where w are the entries of all A and B, before ``scaling``.

    The mean is one mean over every entry of A and of B, of all projections and all adapters (rows of the selection)
    at once: each entry counts alike, hence a large projection more than a small one. Summed in float32 or finer.

    Raises:
        ConfigError: A negative weight.
    """
    if not l2 >= 0:
        raise ConfigError(f"l2={l2}; expected 0 or more")
    fine = torch.promote_types(lora.dtype, torch.float32)
    matrices = [matrix.to(fine) for pair in lora.values() for matrix in pair]
    entries = sum(matrix.numel() for matrix in matrices)
    return l2 * torch.stack([w.square().sum() for w in matrices]).sum() / entries

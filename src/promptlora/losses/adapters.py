"""Losses on the generated matrices themselves: their distance to given adapters, and penalties on their size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from promptlora.errors import ConfigError, LoRAError
from promptlora.lora import LoRAWeights, Shared


def reconstruction_loss(lora: LoRAWeights, target: LoRAWeights, *, relative: bool = True) -> Float[Tensor, ""]:
    """Squared Frobenius distance between the updates ``A @ B * scaling``, averaged over adapters and projections.

    The loss does not depend on how an update is factored (``A R`` and ``R^-1 B`` give the same update), and it never
    forms an update: with ``A = [A1 | A2]`` and ``B = [s1 B1 ; -s2 B2]`` the difference is ``A B``, and
    ``|A B|^2 = sum((A'A) * (B B'))`` needs only matrices of size rank by rank. These are computed in float64, because
    the result is a small difference of large sums.

    Args:
        lora: The generated adapters.
        target: The same number of adapters for the same projections; ranks, scaling, dtype and device may differ.
        relative: Divide each distance by the squared norm of the target's update, so that a zero update has loss 1.

    Raises:
        LoRAError: The projections, features or numbers of adapters differ; with ``relative``, also a target whose
            update is 0 or not finite.
    """
    odd = sorted(set(lora) ^ set(target))
    if odd:
        raise LoRAError(f"{odd[0]}: not in both the generated and the target LoRA; expected the same projections")
    if lora.adapters != target.adapters:
        raise LoRAError(
            f"{lora.adapters} generated and {target.adapters} target adapters; expected one target for each"
        )
    errors = []
    for name in lora:  # one at a time: on a CPU, stacking projections of equal shape costs more than it saves
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
    """``l2 * mean(w^2)`` where w are the entries of all A and B, or of the cores of shared factors, before ``scaling``.

    There is one mean over all entries of all projections and all adapters. Every entry has the same weight, so a large
    projection counts more than a small one. Factors that all adapters share are learned, not generated, and are not
    penalised. The sum is computed in float32 or float64.

    Raises:
        ConfigError: A negative weight.
    """
    if not l2 >= 0:
        raise ConfigError(f"l2={l2}; expected 0 or more")
    fine = torch.promote_types(lora.dtype, torch.float32)
    forms = [lora.chosen(name) for name in lora]
    matrices = [matrix.to(fine) for form in forms for matrix in ((form.C,) if isinstance(form, Shared) else form)]
    entries = sum(matrix.numel() for matrix in matrices)
    return l2 * torch.stack([w.square().sum() for w in matrices]).sum() / entries

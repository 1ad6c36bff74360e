"""Contrastive loss on contexts: pulls wordings of one task together and pushes different tasks apart.

It knows nothing of prompts or encoders.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from promptlora.errors import ConfigError


def contrastive_loss(
    contexts: Float[Tensor, "n d"], groups: Int[Tensor, " n"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Supervised contrastive loss (Khosla et al. 2020, equation 2) over the cosine similarities of the contexts.

    For each context that shares its group with others, the loss is the mean over those others of the negative
    log-softmax of their similarity, normalised over all other contexts. The result is the mean over such contexts. With
    two contexts per group this is InfoNCE. It is computed in float32 or float64, without a device synchronisation.

    Args:
        contexts: One vector per prompt.
        groups: The task of each context, as an integer.
        temperature: The similarities are divided by it.

    Returns:
        The loss in nats; 0 if no group has two contexts.

    Raises:
        ConfigError: The temperature is not above 0, or the shapes do not match.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature}: out of range. Expected a number above 0. Fix: try 0.1.")
    if contexts.dim() != 2 or groups.shape != contexts.shape[:1]:
        raise ConfigError(
            f"contexts {list(contexts.shape)}, groups {list(groups.shape)}: shapes do not fit. Expected [n, d] and [n]. "
            "Fix: give one group per context."
        )
    unit = F.normalize(contexts.to(torch.promote_types(contexts.dtype, torch.float32)), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # Use the lowest finite number: -inf would make the gradient of a single context NaN.
    similarities = (unit @ unit.mT / temperature).masked_fill(itself, torch.finfo(unit.dtype).min)
    log_shares = similarities - similarities.logsumexp(dim=1, keepdim=True)
    others = (groups[:, None] == groups) & ~itself
    count = others.sum(1)
    each = -log_shares.masked_fill(~others, 0.0).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)

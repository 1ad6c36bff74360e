"""Losses: pure functions of tensors.

The language model's head is applied here, and only at the positions that predict an answer token. It
knows nothing of models, prompts or batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def answer_positions(labels: Int[Tensor, "batch seq"]) -> tuple[Tensor, Tensor]:
    """Where the next token is an answer token.

    Args:
        labels: The token ids; -100 at every position that is not an answer token.

    Returns:
        Rows and positions ``[n]`` of the states that predict them: position t predicts token t + 1.
    """
    rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    return rows, columns


def sft_loss(
    hidden: Float[Tensor, "batch seq d"],
    labels: Int[Tensor, "batch seq"],
    lm_head: Callable[[Tensor], Tensor],
    *,
    row_weight: str = "token",
    reduce: bool = True,
) -> Tensor:
    """Cross-entropy of the answer tokens, in nats, computed in float32 or finer.

    There must be an answer token; a row without one counts as a row of loss 0.

    Args:
        hidden: Last hidden states.
        labels: Token ids; -100 wherever there is no answer token.
        lm_head: Hidden states ``[n, d]`` to logits ``[n, vocabulary]``.
        row_weight: ``token``, each answer token counts once; ``row``, each row counts once.
        reduce: False returns the mean loss of each row, ``[batch]``.
    """
    rows, columns = answer_positions(labels)
    logits = lm_head(hidden[rows, columns])
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    each = F.cross_entropy(logits, labels[rows, columns + 1], reduction="none")
    if row_weight == "token" and reduce:
        return each.mean()
    counts = each.new_zeros(labels.shape[0]).index_add(0, rows, torch.ones_like(each))
    per_row = each.new_zeros(labels.shape[0]).index_add(0, rows, each) / counts.clamp(min=1)
    return per_row.mean() if reduce else per_row

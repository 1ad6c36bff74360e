"""What all token losses share: answer positions, chunked application of the head, means over tokens or rows.

It does not know what a loss measures; a loss is a function of logits that returns one value per position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from promptlora.errors import ConfigError, DataError

IGNORED = -100
CHUNK = 1024  # positions whose logits exist at the same time


def answer_positions(labels: Int[Tensor, "batch seq"], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the positions whose next token is an answer token.

    Args:
        labels: The token ids; -100 at every position that is not an answer token. With labels on the CPU no GPU
            synchronisation is needed to count them.
        device: Device of the result; by default the device of the labels.

    Returns:
        Rows and positions, each ``[n]``, of the states that predict answer tokens: position t predicts token t + 1.
    """
    rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    return (rows, columns) if device is None else (rows.to(device), columns.to(device))


def position_losses(
    loss: Callable[..., Tensor],
    lm_head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "n d"],
    *others: Tensor,
    chunk: int,
) -> Float[Tensor, " n"]:
    """``loss(lm_head(hidden), *others)`` with logits for ``chunk`` positions at a time; gradients are exact.

    The loss of a position depends only on its own hidden state, so a frozen head needs no second pass: the gradient of
    each loss is computed while its logits exist, and gradients ``[n, d]`` are stored instead of logits
    ``[n, vocabulary]``. If the head itself is trained, chunks are recomputed in the backward pass.

    Args:
        loss: Maps logits ``[m, vocabulary]`` (float32 or float64) and the matching rows of ``others`` to losses
            ``[m]``.
        lm_head: Maps hidden states to logits.
        hidden: The hidden states.
        *others: Tensors with ``n`` rows; they get no gradient.
        chunk: Positions per chunk; up to this many positions are computed in one plain call.
    """
    if chunk < 1:
        raise ConfigError(f"chunk={chunk}; expected 1 or more positions")

    def piece(states: Tensor, *rows: Tensor) -> Tensor:
        logits = lm_head(states)
        return loss(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, *rows)

    if len(hidden) <= chunk:
        return piece(hidden, *others)
    pieces = zip(*(tensor.split(chunk) for tensor in (hidden, *others)), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([piece(*rows) for rows in pieces])
    probe = lm_head(hidden[:1].detach())
    if probe.requires_grad:  # a parameter of the head is trained
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(piece, *rows, **options) for rows in pieces])
    kept = torch.empty(len(hidden), dtype=torch.promote_types(probe.dtype, torch.float32), device=probe.device)
    losses: Tensor = _FrozenHead.apply(hidden, kept, piece, chunk, *others)  # type: ignore[no-untyped-call]
    return losses


class _FrozenHead(torch.autograd.Function):
    """``piece(hidden, *others)`` in chunks, written into ``losses``; differentiable once, with respect to ``hidden``.

    The tensors that are kept are allocated before the logits of any chunk. Small blocks allocated between the large
    temporary ones would prevent malloc from reusing that space, and memory would again grow with positions times
    vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, losses: Tensor, piece: Callable[..., Tensor], chunk: int, *others: Tensor
    ) -> Tensor:
        ctx.mark_dirty(losses)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        starts = range(0, len(hidden), chunk)
        pieces = zip(*(tensor.split(chunk) for tensor in (hidden, *others)), strict=True)
        for start, (states, *rows) in zip(starts, pieces, strict=True):
            here = slice(start, start + chunk)
            if slopes is None:
                losses[here] = piece(states, *rows)
                continue
            with torch.enable_grad():
                leaf = states.detach().requires_grad_()
                each = piece(leaf, *rows)
                (slopes[here],) = torch.autograd.grad(each.sum(), leaf)
            losses[here] = each.detach()
            del each
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes.dtype), *[None] * (len(ctx.needs_input_grad) - 1)


def reduced(each: Float[Tensor, " n"], rows: Int[Tensor, " n"], batch: int, row_weight: str, reduce: bool) -> Tensor:
    """Mean loss over tokens (``token``) or rows (``row``); with ``reduce`` False, one mean per row, ``[batch]``.

    Raises:
        ConfigError: An unknown ``row_weight``.
        DataError: There is no position to average over.
    """
    if row_weight not in ("token", "row"):
        raise ConfigError(f"row_weight={row_weight!r}; expected 'token' (each answer token counts once) or 'row'")
    if row_weight == "token" and reduce:
        if not len(each):
            raise DataError(f"labels: none of the {batch} rows has an answer token after its first position; drop them")
        return each.mean()
    counts = each.new_zeros(batch).index_add(0, rows, torch.ones_like(each))
    per_row = each.new_zeros(batch).index_add(0, rows, each) / counts.clamp(min=1)
    return per_row.mean() if reduce else per_row

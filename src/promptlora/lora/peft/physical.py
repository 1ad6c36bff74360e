"""Converts logical projections to physical modules and back, for one adapter.

A module that computes one projection uses the projection's A and B unchanged. For a fused module (q, k and v in one
output), the A matrices of its projections are concatenated along the rank, and their B matrices are scattered to the
rows of each projection. The conversion is exact, and the ranks add up. This file knows nothing of files or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from promptlora.errors import LoRAError
from promptlora.projections import Projection


@dataclass(frozen=True)
class Block:
    """The part ``start … start + rank`` of a module's rank axis that belongs to one projection."""

    projection: Projection
    start: int
    rank: int


@dataclass(frozen=True)
class ModuleLoRA:
    """The LoRA of one physical module: A ``[in, rank]``, B ``[rank, out]``, and the blocks of the rank axis."""

    module: str
    A: Tensor
    B: Tensor
    blocks: tuple[Block, ...]

    @property
    def rank(self) -> int:
        """The length of the rank axis."""
        return self.A.shape[1]


def join(module: str, parts: Sequence[tuple[Projection, Tensor, Tensor]], width: int) -> ModuleLoRA:
    """Combine the LoRA of a module's projections into the LoRA of the module, exactly.

    If projections share one A (as after a compressed export), it is stored once, and the rank does not grow.

    Args:
        module: Dotted name of the module.
        parts: Each projection with its A ``[in, rank]`` and B ``[rank, out]``.
        width: Width of the module's output.
    """
    if len(parts) == 1 and parts[0][0].rows is None:
        projection, A, B = parts[0]
        return ModuleLoRA(module, A, B, (Block(projection, 0, A.shape[1]),))
    rows = torch.cat([projection.row_index() for projection, _, _ in parts])
    shared = len(set(rows.tolist())) == len(rows) and all(torch.equal(A, parts[0][1]) for _, A, _ in parts)
    blocks, start = [], 0
    for projection, A, _ in parts:
        blocks.append(Block(projection, 0 if shared else start, A.shape[1]))
        start += A.shape[1]
    A = parts[0][1] if shared else torch.cat([A for _, A, _ in parts], dim=1)
    B = A.new_zeros(A.shape[1], width)
    for block, (projection, _, part) in zip(blocks, parts, strict=True):
        B[block.start : block.start + block.rank, projection.row_index()] = part
    return ModuleLoRA(module, A, B, tuple(blocks))


def split(lora: ModuleLoRA) -> list[tuple[Projection, Tensor, Tensor]] | None:
    """The inverse of :func:`join`, according to ``lora.blocks``; None if B is not zero outside the blocks."""
    rest, parts = lora.B.clone(), []
    for block in lora.blocks:
        ranks, rows = slice(block.start, block.start + block.rank), block.projection.row_index()
        parts.append((block.projection, lora.A[:, ranks].clone(), lora.B[ranks][:, rows]))
        rest[ranks, rows] = 0
    return None if rest.any() else parts


def recover(lora: ModuleLoRA, projections: Sequence[Projection]) -> list[tuple[Projection, Tensor, Tensor]]:
    """Recover A and B of each projection from those of the module, by trying the three forms in turn.

    The forms are: the blocks recorded in the file; equal adjacent blocks (the stacked form); and a single A shared by
    all projections, where each projection takes its rows of B. The last form is exact for any LoRA on such a module.

    Args:
        lora: The module's A and B; ``blocks`` may be empty.
        projections: All projections that the module computes.

    Raises:
        LoRAError: The LoRA changes rows of the output that do not belong to any projection.
    """
    count, rank = len(projections), lora.rank
    equal = (
        [Block(p, i * (rank // count), rank // count) for i, p in enumerate(projections)] if not rank % count else []
    )
    for blocks in (lora.blocks, equal, [Block(p, 0, rank) for p in projections]):
        parts = split(replace(lora, blocks=tuple(blocks))) if blocks else None
        if parts is not None:
            return parts
    owned = {int(row) for p in projections for row in p.row_index()}
    foreign = next(int(row) for row in lora.B.any(dim=0).nonzero() if int(row) not in owned)
    raise LoRAError(
        f"{lora.module}: the adapter changes row {foreign} of its output, which is none of "
        f"{', '.join(p.role for p in projections)}; expected attention projections alone; use PEFT for this adapter"
    )


def pad(lora: ModuleLoRA, rank: int) -> ModuleLoRA:
    """The same update, padded with zeros to ``rank``; exact."""
    more = rank - lora.rank
    if not more:
        return lora
    A = torch.cat([lora.A, lora.A.new_zeros(lora.A.shape[0], more)], dim=1)
    B = torch.cat([lora.B, lora.B.new_zeros(more, lora.B.shape[1])], dim=0)
    return replace(lora, A=A, B=B)


def truncate(lora: ModuleLoRA, rank: int) -> ModuleLoRA:
    """The best approximation of ``A @ B`` with this rank, in the Frobenius norm; unchanged if its rank is not larger.

    With ``A = Qa Ra`` and ``Bᵀ = Qb Rb``, the SVD of the small ``Ra Rbᵀ`` gives that of ``A @ B``, so the dense
    ``in x out`` product is never formed. All projections of the module share the new A.
    """
    if lora.rank <= rank:
        return lora
    Qa, Ra = torch.linalg.qr(lora.A.double())
    Qb, Rb = torch.linalg.qr(lora.B.double().T)
    U, S, Vh = torch.linalg.svd(Ra @ Rb.T, full_matrices=False)
    U, root, Vh = U[:, :rank], S[:rank].sqrt(), Vh[:rank]
    A = (Qa @ (U * root)).to(lora.A.dtype)
    B = ((root[:, None] * Vh) @ Qb.T).to(lora.B.dtype)
    outside = torch.ones(B.shape[1], dtype=torch.bool)
    for block in lora.blocks:
        outside[block.projection.row_index()] = False
    B[:, outside] = 0  # rows that no projection owns stay exactly zero
    return ModuleLoRA(lora.module, A, B, tuple(Block(block.projection, 0, A.shape[1]) for block in lora.blocks))


def product_norm(A: Tensor, B: Tensor) -> float:
    """The Frobenius norm of ``A @ B`` in float64, by QR of the factors."""
    _, Ra = torch.linalg.qr(A.double())
    _, Rb = torch.linalg.qr(B.double().T)
    return float((Ra @ Rb.T).norm())


def difference_norm(first: ModuleLoRA, second: ModuleLoRA) -> float:
    """The Frobenius norm of the difference of two updates of the same module."""
    A = torch.cat([first.A.double(), second.A.double()], dim=1)
    B = torch.cat([first.B.double(), -second.B.double()], dim=0)
    return product_norm(A, B)

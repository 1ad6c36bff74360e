"""The space of adapters: how alike the updates of different prompts are.

It knows ``LoRAWeights``; nothing of models or prompts' meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptlora.errors import AttentionError
from promptlora.lora import LoRAWeights
from promptlora.lora.geometry import centred, cosines, update_products


def classical_mds(similarity: Tensor, dimensions: int = 2) -> tuple[Tensor, float]:
    """Coordinates ``[n, dimensions]`` whose distances come nearest to ``2 - 2 cos`` (Torgerson 1952).

    Returns:
        The coordinates, and the share of the spread that they keep, 0 … 1.
    """
    count = similarity.shape[0]
    values, vectors = torch.linalg.eigh(centred(similarity))
    values = values.clamp_min(0.0)
    kept = values.flip(0)[:dimensions]
    points = vectors.flip(1)[:, :dimensions] * kept.sqrt()
    signs = points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()  # eigenvectors have no sign of their own
    points = points * torch.where(signs == 0, 1.0, signs)
    if count < dimensions:
        points = torch.nn.functional.pad(points, (0, dimensions - points.shape[1]))
    spread = float(values.sum())
    return points, float(kept.sum()) / spread if spread > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class AdapterSpace:
    """Where the adapters of some prompts lie.

    Attributes:
        prompts: The prompts.
        groups: The task of each; empty texts where none is known.
        cosine: Cosine similarity of the updates, ``[n, n]``.
        cosine_centred: The same after the mean update is subtracted: what differs between prompts, without what all of
            their adapters have in common.
        norm: Frobenius norm of each update, ``[n]``.
        points: A map in two dimensions, ``[n, 2]``, by classical MDS of ``cosine_centred``.
        kept: Share of the spread that the map keeps.
        within: Mean centred cosine of prompts of one group; None without groups.
        between: Mean centred cosine of prompts of different groups; None without groups.
        same_group: Share of prompts whose nearest other prompt is of their group, among those whose group has
            another; None without groups.
    """

    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    cosine: Tensor
    cosine_centred: Tensor
    norm: Tensor
    points: Tensor
    kept: float
    within: float | None
    between: float | None
    same_group: float | None

    def nearest(self, prompt: int, count: int = 3) -> list[tuple[int, float]]:
        """The other prompts with the most similar (centred) updates, nearest first, with their cosine."""
        row = self.cosine_centred[prompt].clone()
        row[prompt] = -torch.inf
        order = row.argsort(descending=True, stable=True)[: min(count, len(row) - 1)]
        return [(int(i), float(row[i])) for i in order]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "prompts": list(self.prompts),
            "groups": list(self.groups),
            "cosine": self.cosine.tolist(),
            "cosine_centred": self.cosine_centred.tolist(),
            "norm": self.norm.tolist(),
            "points": self.points.tolist(),
            "kept": self.kept,
            "within": self.within,
            "between": self.between,
            "same_group": self.same_group,
            "nearest": [[{"prompt": i, "cosine": c} for i, c in self.nearest(n)] for n in range(len(self.prompts))],
        }


def adapter_space(lora: LoRAWeights, prompts: Sequence[str], groups: Sequence[str] | None = None) -> AdapterSpace:
    """Compare the adapters of some prompts.

    Args:
        lora: One adapter for each prompt.
        prompts: Their texts.
        groups: The task of each, if known.

    Raises:
        AttentionError: Fewer than two prompts, or numbers that do not fit.
    """
    count = lora.adapters
    if count < 2 or len(prompts) != count or (groups is not None and len(groups) != count):
        raise AttentionError(
            f"{count} adapters, {len(prompts)} prompts, {count if groups is None else len(groups)} groups; expected two "
            "or more adapters and as many of each"
        )
    products = update_products(lora)
    own = centred(products)
    if float(own.diagonal().max()) <= 1e-12 * float(products.diagonal().max()):  # all the same but for rounding
        own = torch.zeros_like(own)
    similar = cosines(own)
    points, kept = classical_mds(similar)
    names = tuple(groups) if groups is not None else ("",) * count
    within = between = same = None
    if groups is not None:
        equal = torch.tensor([[a == b for b in names] for a in names])
        other = ~torch.eye(count, dtype=torch.bool)
        within = float(similar[equal & other].mean()) if bool((equal & other).any()) else None
        between = float(similar[~equal].mean()) if bool((~equal).any()) else None
        nearest = similar.masked_fill(~other, -torch.inf).argmax(dim=1)
        paired = (equal & other).any(dim=1)
        if bool(paired.any()):
            same = float(equal[torch.arange(count), nearest][paired].double().mean())
    return AdapterSpace(
        prompts=tuple(prompts),
        groups=names,
        cosine=cosines(products),
        cosine_centred=similar,
        norm=products.diagonal().clamp_min(0.0).sqrt(),
        points=points,
        kept=kept,
        within=within,
        between=between,
        same_group=same,
    )

"""The space of adapters: how similar the updates of different prompts are.

It knows ``LoRAWeights``; it knows nothing of models or of what prompts mean.
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
    """Coordinates ``[n, dimensions]`` whose squared distances best approximate ``2 - 2 cos`` (Torgerson 1952).

    Returns:
        The coordinates, and the share of the total spread that they represent, from 0 to 1.
    """
    count = similarity.shape[0]
    values, vectors = torch.linalg.eigh(centred(similarity))
    values = values.clamp_min(0.0)
    kept = values.flip(0)[:dimensions]
    points = vectors.flip(1)[:, :dimensions] * kept.sqrt()
    signs = points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()  # an eigenvector's sign is arbitrary
    points = points * torch.where(signs == 0, 1.0, signs)
    if count < dimensions:
        points = torch.nn.functional.pad(points, (0, dimensions - points.shape[1]))
    spread = float(values.sum())
    return points, float(kept.sum()) / spread if spread > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class AdapterSpace:
    """The positions of the adapters of several prompts.

    Attributes:
        prompts: The prompts.
        groups: The task of each prompt; empty strings if unknown.
        cosine: Cosine similarity of the updates, ``[n, n]``.
        cosine_centred: The same after subtracting the mean update, which removes what all of these adapters share.
        norm: Frobenius norm of each update, ``[n]``.
        points: Two-dimensional map, ``[n, 2]``, by classical MDS of ``cosine_centred``.
        kept: Share of the total spread that the map represents.
        within: Mean centred cosine between prompts of the same group; None without groups.
        between: Mean centred cosine between prompts of different groups; None without groups.
        same_group: Share of prompts whose nearest other prompt is in the same group, among prompts whose group has
            another member; None without groups.
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
    """Compare the adapters of several prompts.

    Args:
        lora: One adapter per prompt.
        prompts: Their texts.
        groups: The task of each prompt, if known.

    Raises:
        AttentionError: There are fewer than two prompts, or the numbers of adapters, prompts and groups differ.
    """
    count = lora.adapters
    if count < 2 or len(prompts) != count or (groups is not None and len(groups) != count):
        raise AttentionError(
            f"{count} adapters, {len(prompts)} prompts, {count if groups is None else len(groups)} groups; expected two "
            "or more adapters and as many of each"
        )
    products = update_products(lora)
    own = centred(products)
    if float(own.diagonal().max()) <= 1e-12 * float(products.diagonal().max()):  # all updates are equal up to rounding
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

"""Inner products, cosines and spread of updates ``A @ B * scaling``, computed without forming the updates.

``<A1 B1, A2 B2> = trace((A2' A1) (B1 B2'))`` needs only rank-by-rank matrices. With shared factors the formula is
``<A C1 B, A C2 B> = sum((A'A C1) * (C2 B B'))``. This file knows ``LoRAWeights``; it knows nothing of models or of the
meaning of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.lora.forms import Free, Shared
from promptlora.lora.weights import LoRAWeights


def update_products(lora: LoRAWeights, names: Sequence[str] | None = None) -> Tensor:
    """Inner products of the updates ``A @ B * scaling`` of all pairs of adapters, float64 ``[adapters, adapters]``.

    Args:
        lora: The adapters.
        names: The projections to include; all by default.
    """
    count = lora.adapters
    total = torch.zeros(count, count, dtype=torch.float64)
    for name in lora if names is None else names:
        form = lora.chosen(name).map(lambda matrix: matrix.detach().to("cpu").to(torch.float64))
        total += _shared_products(form) if isinstance(form, Shared) else _free_products(form)
    return total * lora.scaling**2


def _free_products(form: Free) -> Tensor:
    count, d_in, rank = form.A.shape
    flat_a = form.A.transpose(0, 1).reshape(d_in, count * rank)
    flat_b = form.B.reshape(count * rank, form.B.shape[2])
    products = (flat_a.T @ flat_a) * (flat_b @ flat_b.T)  # [adapters * rank, adapters * rank]
    return products.view(count, rank, count, rank).sum(dim=(1, 3))


def _shared_products(form: Shared) -> Tensor:
    left, right = form.A.T @ form.A, form.B @ form.B.T  # [rank, rank]
    if form.diagonal:
        return form.C @ (left * right) @ form.C.T
    return (left @ form.C @ right).flatten(1) @ form.C.flatten(1).T


def cosines(products: Tensor) -> Tensor:
    """Cosine similarities from inner products ``[n, n]``; the similarity of a zero update is 0."""
    norms = products.diagonal().clamp_min(0.0).sqrt()
    bottom = norms[:, None] * norms[None, :]
    similar = torch.where(bottom > 0, products / bottom.clamp_min(1e-300), 0.0).clamp(-1.0, 1.0)
    return similar.fill_diagonal_(1.0)


def centred(products: Tensor) -> Tensor:
    """Inner products of the same vectors after their mean is subtracted (double centring)."""
    rows = products.mean(dim=0, keepdim=True)
    return products - rows - rows.T + products.mean()


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the updates ``A @ B * scaling`` of several prompts differ.

    Attributes:
        variance_ratio: The variance of the updates divided by the squared norm of their mean; 0 when all prompts get
            the same update.
        effective_rank: The number of directions in which the updates differ, from 1 to ``prompts - 1``; 0 when all are
            equal. It is the exponential of the entropy of the normalised eigenvalues of the centred inner products (Roy
            and Vetterli 2007).
    """

    variance_ratio: float
    effective_rank: float


@torch.no_grad()
def spread(lora: LoRAWeights) -> Spread:
    """The spread of two or more adapters, computed from rank-by-rank products."""
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

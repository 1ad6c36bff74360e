"""Weight heads: a feature vector per projection becomes A ``[in, rank]`` and B ``[rank, out]``.

One head pair serves all projections of one shape, in one matmul. B is zero at the start and its
gradient is not, since the feature that enters has left a LayerNorm. The kinds differ in what they share:

- ``full``: one linear map to all of A, one to all of B.
- ``shared``: one linear map for both; an embedding says which of the two is asked for.
- ``rankwise``: a rank embedding is added to the feature, and one rank is written at a time.
- ``lowrank``: as ``full``, through a bottleneck.

It knows nothing of prompts or of where a projection lives.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from promptlora.hypernet.config import HyperNetworkConfig

Features = Float[Tensor, "prompts n d"]
MatricesA = Float[Tensor, "prompts n d_in rank"]
MatricesB = Float[Tensor, "prompts n rank d_out"]


def _small_(linear: nn.Linear, fan_out: int) -> None:
    """Generated A starts at a tenth of the static A's size: ``0.1 / sqrt(fan_out)`` for unit features."""
    nn.init.normal_(linear.weight, std=0.1 / math.sqrt(fan_out * linear.in_features))
    nn.init.zeros_(linear.bias)


def _zero_(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class FullHead(nn.Module):
    """One linear map for A and one for B."""

    def __init__(self, width: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.A = nn.Linear(width, d_in * rank)
        self.B = nn.Linear(width, rank * d_out)
        _small_(self.A, d_in)
        _zero_(self.B)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Write A and B of each feature."""
        return self.A(features).unflatten(-1, (-1, self.rank)), self.B(features).unflatten(-1, (self.rank, -1))


class SharedHead(nn.Module):
    """One linear map for A and B; a learned embedding says which is asked for, a gate starts B at zero."""

    def __init__(self, width: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.rank, self.d_in, self.d_out = rank, d_in, d_out
        self.which = nn.Parameter(torch.randn(2, width))
        self.map = nn.Linear(width, rank * max(d_in, d_out))
        self.gate = nn.Parameter(torch.zeros(rank))  # of B, one a rank
        _small_(self.map, d_in)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Write A and B of each feature."""
        both = self.map(features[..., None, :] + self.which)  # [prompts, n, 2, rank * max]
        A, B = both.unflatten(-1, (self.rank, -1)).unbind(-3)
        return A[..., : self.d_in].transpose(-1, -2), B[..., : self.d_out] * self.gate[:, None]


class RankwiseHead(nn.Module):
    """One rank at a time: feature plus rank embedding, through a GELU, to one column of A and one row of B.

    Without the GELU the prompt would move all ranks alike, and the part of A @ B that depends on it would have
    rank 2 at most.
    """

    def __init__(self, width: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.ranks = nn.Parameter(torch.randn(rank, width))
        self.A = nn.Linear(width, d_in)
        self.B = nn.Linear(width, d_out)
        _small_(self.A, d_in)
        _zero_(self.B)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Write A and B of each feature."""
        each = F.gelu(features[..., None, :] + self.ranks)  # [prompts, n, rank, d]
        return self.A(each).transpose(-1, -2), self.B(each)


class LowRankHead(nn.Module):
    """As :class:`FullHead`, through a bottleneck of its own for A and for B."""

    def __init__(self, width: int, d_in: int, d_out: int, rank: int, bottleneck: int) -> None:
        super().__init__()
        self.rank = rank
        self.A_down = nn.Linear(width, bottleneck, bias=False)
        self.B_down = nn.Linear(width, bottleneck, bias=False)
        self.A = nn.Linear(bottleneck, d_in * rank)
        self.B = nn.Linear(bottleneck, rank * d_out)
        for down in (self.A_down, self.B_down):  # unit features in, unit features out
            nn.init.normal_(down.weight, std=1 / math.sqrt(width))
        _small_(self.A, d_in)
        _zero_(self.B)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Write A and B of each feature."""
        A, B = self.A(self.A_down(features)), self.B(self.B_down(features))
        return A.unflatten(-1, (-1, self.rank)), B.unflatten(-1, (self.rank, -1))


def make_head(config: HyperNetworkConfig, d_in: int, d_out: int) -> nn.Module:
    """The head pair of one shape, of the kind that the configuration names."""
    width, rank = config.context_size, config.rank
    if config.head == "full":
        return FullHead(width, d_in, d_out, rank)
    if config.head == "shared":
        return SharedHead(width, d_in, d_out, rank)
    if config.head == "rankwise":
        return RankwiseHead(width, d_in, d_out, rank)
    return LowRankHead(width, d_in, d_out, rank, config.head_bottleneck)


def head_parameters(config: HyperNetworkConfig, d_in: int, d_out: int) -> int:
    """How many parameters the head pair of one shape has, by arithmetic.

    With D the context size, r the rank, k the bottleneck: full ``(D + 1) r (in + out)``; shared
    ``(D + 1) r max(in, out) + 2 D + r``; rankwise ``(D + 1)(in + out) + r D``; lowrank
    ``2 D k + (k + 1) r (in + out)``.
    """
    D, r, k = config.context_size, config.rank, config.head_bottleneck
    if config.head == "full":
        return (D + 1) * r * (d_in + d_out)
    if config.head == "shared":
        return (D + 1) * r * max(d_in, d_out) + 2 * D + r
    if config.head == "rankwise":
        return (D + 1) * (d_in + d_out) + r * D
    return 2 * D * k + (k + 1) * r * (d_in + d_out)

"""Weight heads: a feature vector per projection becomes A ``[in, rank]`` and B ``[rank, out]``, or a core between them.

One head serves all projections of one shape, in one matmul. What it writes last (B, or the core) is zero at the start
and its gradient is not, since the feature that enters has left a LayerNorm. The kinds differ in what they share:

- ``full``: one linear map to all of A, one to all of B.
- ``shared``: one linear map for both; an embedding says which of the two is asked for.
- ``rankwise``: a rank embedding is added to the feature, and one rank is written at a time.
- ``lowrank``: as ``full``, through a bottleneck.
- ``core``: A and B are no output of the head but parameters of the generator; one linear map writes C ``[rank, rank]``.
- ``diagonal``: as ``core``, the diagonal of C alone.

Every linear layer of a head has the attribute ``fan_in``, by which its learning rate is set; embeddings, gates and scales
have none. It knows nothing of prompts or of where a projection lives.
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
Cores = Float[Tensor, "prompts n rank *rank"]


def _small_(linear: nn.Linear, fan_out: int) -> None:
    """Generated A starts at a tenth of the static A's size: ``0.1 / sqrt(fan_out)`` for unit features."""
    nn.init.normal_(linear.weight, std=0.1 / math.sqrt(fan_out * linear.in_features))
    nn.init.zeros_(linear.bias)


def _zero_(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _linear(d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer that states its fan-in, by which its learning rate is set."""
    linear = nn.Linear(d_in, d_out, bias=bias)
    linear.fan_in = d_in  # type: ignore[assignment]
    return linear


class FullHead(nn.Module):
    """One linear map for A and one for B."""

    def __init__(self, width: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.A = _linear(width, d_in * rank)
        self.B = _linear(width, rank * d_out)
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
        self.map = _linear(width, rank * max(d_in, d_out))
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
        self.A = _linear(width, d_in)
        self.B = _linear(width, d_out)
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
        self.A_down = _linear(width, bottleneck, bias=False)
        self.B_down = _linear(width, bottleneck, bias=False)
        self.A = _linear(bottleneck, d_in * rank)
        self.B = _linear(bottleneck, rank * d_out)
        for down in (self.A_down, self.B_down):  # unit features in, unit features out
            nn.init.normal_(down.weight, std=1 / math.sqrt(width))
        _small_(self.A, d_in)
        _zero_(self.B)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Write A and B of each feature."""
        A, B = self.A(self.A_down(features)), self.B(self.B_down(features))
        return A.unflatten(-1, (-1, self.rank)), B.unflatten(-1, (self.rank, -1))


class CoreHead(nn.Module):
    """One linear map to the core C ``[rank, rank]`` between factors that all prompts share, or to its diagonal.

    The map is zero at the start, hence so is the core. The factors beside it are random then (:mod:`.generator`), so the
    core's gradient ``A' x' dY B'``, and with it the map's, is not.
    """

    def __init__(self, width: int, rank: int, *, diagonal: bool = False) -> None:
        super().__init__()
        self.shape = (rank,) if diagonal else (rank, rank)
        self.C = _linear(width, math.prod(self.shape))
        _zero_(self.C)

    def forward(self, features: Features) -> tuple[Cores]:
        """Write the core of each feature."""
        return (self.C(features).unflatten(-1, self.shape),)


def make_head(config: HyperNetworkConfig, d_in: int, d_out: int) -> nn.Module:
    """The head of one shape, of the kind that the configuration names: features to a tuple of what is written."""
    width, rank = config.context_size, config.rank
    if config.shares_factors:
        return CoreHead(width, rank, diagonal=config.head == "diagonal")
    if config.head == "full":
        return FullHead(width, d_in, d_out, rank)
    if config.head == "shared":
        return SharedHead(width, d_in, d_out, rank)
    if config.head == "rankwise":
        return RankwiseHead(width, d_in, d_out, rank)
    return LowRankHead(width, d_in, d_out, rank, config.head_bottleneck)


def head_parameters(config: HyperNetworkConfig, d_in: int, d_out: int) -> int:
    """How many parameters the head of one shape has, by arithmetic.

    With D the context size, r the rank, k the bottleneck: full ``(D + 1) r (in + out)``; shared
    ``(D + 1) r max(in, out) + 2 D + r``; rankwise ``(D + 1)(in + out) + r D``; lowrank
    ``2 D k + (k + 1) r (in + out)``; core ``(D + 1) r²``; diagonal ``(D + 1) r``.
    """
    D, r, k = config.context_size, config.rank, config.head_bottleneck
    if config.shares_factors:
        return (D + 1) * (r if config.head == "diagonal" else r * r)
    if config.head == "full":
        return (D + 1) * r * (d_in + d_out)
    if config.head == "shared":
        return (D + 1) * r * max(d_in, d_out) + 2 * D + r
    if config.head == "rankwise":
        return (D + 1) * (d_in + d_out) + r * D
    return 2 * D * k + (k + 1) * r * (d_in + d_out)

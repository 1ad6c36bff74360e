"""Weight heads: they map a feature vector per projection to A ``[in, rank]`` and B ``[rank, out]``, or to a core.

One head handles all projections of one shape in one matmul. Its last output (B, or the core) is zero at initialisation.
The gradient is not zero, because the input feature comes from a LayerNorm. The kinds differ in what they share:

- ``full``: one linear map to all of A, one to all of B.
- ``shared``: one linear map for both; an embedding selects A or B.
- ``rankwise``: a rank embedding is added to the feature, and one rank is generated at a time.
- ``lowrank``: like ``full``, through a bottleneck.
- ``core``: A and B are parameters of the generator, not outputs of the head; one linear map gives C ``[rank, rank]``.
- ``diagonal``: like ``core``, but only the diagonal of C.

Every linear layer of a head has the attribute ``fan_in``, which determines its learning rate; embeddings, gates and
scales do not have it. This file knows nothing of prompts or of the location of a projection.
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
    """Initialise so that generated A is a tenth of the static A's size: ``0.1 / sqrt(fan_out)`` for unit features."""
    nn.init.normal_(linear.weight, std=0.1 / math.sqrt(fan_out * linear.in_features))
    nn.init.zeros_(linear.bias)


def _zero_(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _linear(d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
    """A linear layer with the attribute ``fan_in``, which determines its learning rate."""
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
        """Generate A and B from each feature."""
        return self.A(features).unflatten(-1, (-1, self.rank)), self.B(features).unflatten(-1, (self.rank, -1))


class SharedHead(nn.Module):
    """One linear map for A and B; a learned embedding selects A or B, and a gate makes B zero at initialisation."""

    def __init__(self, width: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.rank, self.d_in, self.d_out = rank, d_in, d_out
        self.which = nn.Parameter(torch.randn(2, width))
        self.map = _linear(width, rank * max(d_in, d_out))
        self.gate = nn.Parameter(torch.zeros(rank))  # for B, one value per rank
        _small_(self.map, d_in)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Generate A and B from each feature."""
        both = self.map(features[..., None, :] + self.which)  # [prompts, n, 2, rank * max]
        A, B = both.unflatten(-1, (self.rank, -1)).unbind(-3)
        return A[..., : self.d_in].transpose(-1, -2), B[..., : self.d_out] * self.gate[:, None]


class RankwiseHead(nn.Module):
    """One rank at a time: feature plus rank embedding, through a GELU, gives one column of A and one row of B.

    Without the GELU, the prompt would change all ranks in the same way, and the prompt-dependent part of A @ B would
    have a rank of at most 2.
    """

    def __init__(self, width: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.ranks = nn.Parameter(torch.randn(rank, width))
        self.A = _linear(width, d_in)
        self.B = _linear(width, d_out)
        _small_(self.A, d_in)
        _zero_(self.B)

    def forward(self, features: Features) -> tuple[MatricesA, MatricesB]:
        """Generate A and B from each feature."""
        each = F.gelu(features[..., None, :] + self.ranks)  # [prompts, n, rank, d]
        return self.A(each).transpose(-1, -2), self.B(each)


class LowRankHead(nn.Module):
    """Like :class:`FullHead`, with one bottleneck for A and another for B."""

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
        """Generate A and B from each feature."""
        A, B = self.A(self.A_down(features)), self.B(self.B_down(features))
        return A.unflatten(-1, (-1, self.rank)), B.unflatten(-1, (self.rank, -1))


class CoreHead(nn.Module):
    """One linear map to the core C ``[rank, rank]`` between factors that all prompts share, or to its diagonal.

    The map is zero at initialisation, so the core is zero too. The shared factors are random (:mod:`.generator`), so
    the gradient ``A' x' dY B'`` of the core is not zero, and neither is the gradient of the map.
    """

    def __init__(self, width: int, rank: int, *, diagonal: bool = False) -> None:
        super().__init__()
        self.shape = (rank,) if diagonal else (rank, rank)
        self.C = _linear(width, math.prod(self.shape))
        _zero_(self.C)

    def forward(self, features: Features) -> tuple[Cores]:
        """Generate the core from each feature."""
        return (self.C(features).unflatten(-1, self.shape),)


def make_head(config: HyperNetworkConfig, d_in: int, d_out: int) -> nn.Module:
    """Make the head of one shape, of the configured kind; it maps features to a tuple of generated tensors."""
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
    """The number of parameters of the head of one shape, computed from the sizes.

    With context size D, rank r and bottleneck k: full ``(D + 1) r (in + out)``; shared
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

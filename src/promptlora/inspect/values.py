"""The values of a captured walk through attention: frozen dataclasses with float64 tensors on the CPU.

They hold the result of each step; they know nothing of how it was captured or verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.errors import AttentionError

# Display names of the vectors of one token, by attribute: first those of one head's walk, then those of any layer.
TOKEN_VECTORS = {
    "x": "x, what enters",
    "q_before": "q, as projected",
    "q_normed": "q, after its norm",
    "q": "q, as it meets the keys",
    "mixed": "weighted sum of values",
    "gate": "gate",
    "out": "output of o (all heads)",
    "residual_before": "residual before",
    "residual_after": "residual after",
}
LAYER_VECTORS = {
    "x": "x, what enters",
    "into_o": "what enters o (all heads)",
    "out": "output of o",
    "residual_before": "residual before",
    "residual_after": "residual after",
}


@dataclass(frozen=True, kw_only=True)
class ProjectionStep:
    """One projection of one layer: its input, the base's output, and the adapter's addition.

    Attributes:
        name: Logical name of the projection.
        role: ``"q"``, ``"k"``, ``"v"``, ``"o"``, or another part of the block (``"gate"``, ``"z"``).
        x: Input, ``[tokens, in]``.
        base: Output of the frozen weights for ``x``, ``[tokens, out]``.
        delta: ``x @ A @ B * scaling``, ``[tokens, out]``; zero if no adapter is on.
    """

    name: str
    role: str
    x: Tensor
    base: Tensor
    delta: Tensor

    @property
    def output(self) -> Tensor:
        """Output of the projection: base plus delta."""
        return self.base + self.delta

    @property
    def share(self) -> Tensor:
        """Norm share of the delta for each token, ``|delta| / (|base| + |delta|)``, from 0 to 1, ``[tokens]``."""
        base, delta = torch.linalg.norm(self.base, dim=-1), torch.linalg.norm(self.delta, dim=-1)
        share: Tensor = delta / (base + delta).clamp_min(1e-300)
        return share


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """The part of a layer that attends to other tokens, for the selected heads.

    ``q_before`` and ``k_before`` are the projection outputs, split into heads. ``q_normed`` and ``k_normed`` are the
    same after the q or k norm (None if the model has no such norm, or applies it after the rotary embedding). ``q`` and
    ``k`` are the tensors that are multiplied. Each key head is repeated for the query heads that share it, so row h of
    every tensor belongs to ``heads[h]``.

    Attributes:
        heads: Indices of the query heads.
        key_heads: The key head of each query head.
        q_before: ``[heads, tokens, width]``.
        q_normed: ``[heads, tokens, width]`` or None.
        q: After norm and rotary embedding.
        k_before: ``[heads, tokens, width]``; None if the layer reuses the keys of an earlier layer.
        k_normed: ``[heads, tokens, width]`` or None.
        k: After norm and rotary embedding.
        v: Values, ``[heads, tokens, value width]``.
        scaling: The factor of the scores.
        softcap: Scores become ``softcap * tanh(score / softcap)`` (Gemma 2); None if the model does not do this.
        raw: ``q · k``, ``[heads, tokens, tokens]``; the row is the query token.
        scaled: ``raw * scaling``.
        visible: Which keys the model's mask allows, bool ``[heads, tokens, tokens]``.
        masked: Input of the softmax: ``scaled``, soft-capped if the model does so, and ``-inf`` where masked.
        weights: The softmax of ``masked``; each row plus its ``sink`` sums to 1.
        sink: The weight that goes to no token (gpt-oss), ``[heads, tokens]``; None without a sink.
        mixed: The weighted sum of the values, ``[heads, tokens, value width]``.
        gate: The factor of ``mixed`` before o, ``sigmoid(gate)``, of the same shape; None without a gate.
    """

    heads: tuple[int, ...]
    key_heads: tuple[int, ...]
    q_before: Tensor
    q_normed: Tensor | None
    q: Tensor
    k_before: Tensor | None
    k_normed: Tensor | None
    k: Tensor
    v: Tensor
    scaling: float
    softcap: float | None
    raw: Tensor
    scaled: Tensor
    visible: Tensor
    masked: Tensor
    weights: Tensor
    sink: Tensor | None
    mixed: Tensor
    gate: Tensor | None

    def at(self, head: int) -> int:
        """The index of a head in these tensors.

        Raises:
            AttentionError: The head was not captured.
        """
        if head not in self.heads:
            raise AttentionError(f"head {head} was not captured; expected one of {_span(self.heads)}")
        return self.heads.index(head)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The attention of one layer.

    Attributes:
        layer: Index of the layer, from 0.
        name: Dotted name of the attention block.
        kind: ``"attention"``, ``"MLA"`` or ``"DeltaNet"``.
        note: An explanation for a block without softmax weights; empty for other blocks.
        x: Input of the block (after the input norm), ``[tokens, hidden]``.
        projections: Maps each role to its step.
        softmax: None for a DeltaNet, which has no softmax weights.
        into_o: Input of o, ``[tokens, o's in]``, all heads concatenated.
        out: Output of o, ``[tokens, hidden]``.
        written: What is added to the residual stream: ``out``, or its norm in models with a norm after attention.
        residual_before: The residual stream at the input of the layer, ``[tokens, hidden]``; the first of several
            streams (Gemma 3n).
        residual_after: ``residual_before + written``, verified to be what the model continues with; None for a model
            that never forms it (attention and MLP in parallel, or a scaled residual).
        difference: The largest difference between the recomputed walk and the model, relative to the largest value of
            the tensor.
    """

    layer: int
    name: str
    kind: str
    note: str
    x: Tensor
    projections: Mapping[str, ProjectionStep]
    softmax: Softmax | None
    into_o: Tensor
    out: Tensor
    written: Tensor
    residual_before: Tensor
    residual_after: Tensor | None
    difference: float

    def weights(self, head: int) -> Tensor:
        """The softmax weights of one head, ``[tokens, tokens]``.

        Raises:
            AttentionError: The head was not captured, or the layer has no softmax weights.
        """
        if self.softmax is None:
            raise AttentionError(f"layer {self.layer}: {self.note}")
        return self.softmax.weights[self.softmax.at(head)]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One forward pass of the model: its layers, and its prediction of the next token.

    Attributes:
        layers: The captured layers, in order.
        next_token: Log-probabilities after the last token, ``[vocabulary]``.
    """

    layers: tuple[Layer, ...]
    next_token: Tensor

    def __getitem__(self, layer: int) -> Layer:
        """The layer with this index.

        Raises:
            AttentionError: The layer was not captured.
        """
        for one in self.layers:
            if one.layer == layer:
                return one
        raise AttentionError(f"layer {layer} was not captured; expected one of {_span([w.layer for w in self.layers])}")


@dataclass(frozen=True, kw_only=True)
class AttentionCapture:
    """The same tokens in the base and, if an adapter was given, in the adapted model.

    Attributes:
        ids: Token ids.
        tokens: The text of each token.
        base: The walk without the adapter.
        adapted: The walk with the adapter; None without an adapter.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    base: Walk
    adapted: Walk | None

    @property
    def difference(self) -> float:
        """The largest relative difference between a recomputed walk and the model."""
        walks = [self.base] if self.adapted is None else [self.base, self.adapted]
        return max((layer.difference for walk in walks for layer in walk.layers), default=0.0)


def next_token_kl(base: Tensor, other: Tensor) -> float:
    """``KL(base ‖ other)`` in nats between two vectors of log-probabilities."""
    return float((base.exp() * (base - other)).nan_to_num(0.0).sum().clamp_min(0.0))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon distance (Endres and Schindelin 2003) over the last axis, base 2: 0 for equal, 1 for disjoint."""
    middle = (p + q) / 2
    both = [torch.where(d > 0, d * (d / middle.clamp_min(1e-300)).log2(), 0.0).sum(dim=-1) for d in (p, q)]
    return (sum(both) / 2).clamp(0.0, 1.0).sqrt()  # type: ignore[union-attr]


def _span(numbers: tuple[int, ...] | list[int]) -> str:
    """Format numbers for a message: ``0 … 8`` for a contiguous range, otherwise all of them."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 2:
        return f"{numbers[0]} … {numbers[-1]}"
    return ", ".join(map(str, numbers))

"""The values of a captured walk through attention: frozen dataclasses whose tensors are float64 on the CPU.

They hold the result of each step, and know nothing of how it was captured or proved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.errors import AttentionError

# What the vectors of one token are called, by their attributes: those of one head's walk, and those of any layer.
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
    """One projection of one layer: what went in, what the base makes of it, what the adapter adds.

    Attributes:
        name: Logical name of the projection.
        role: ``"q"``, ``"k"``, ``"v"``, ``"o"``, or another part of the block (``"gate"``, ``"z"``).
        x: What enters it, ``[tokens, in]``.
        base: What the frozen weights make of ``x``, ``[tokens, out]``.
        delta: ``x @ A @ B * scaling``, ``[tokens, out]``; zero where no adapter is on.
    """

    name: str
    role: str
    x: Tensor
    base: Tensor
    delta: Tensor

    @property
    def output(self) -> Tensor:
        """What leaves the projection: base and delta together."""
        return self.base + self.delta

    @property
    def share(self) -> Tensor:
        """Norm share of the delta for each token, ``|delta| / (|base| + |delta|)``, 0 … 1, ``[tokens]``."""
        base, delta = torch.linalg.norm(self.base, dim=-1), torch.linalg.norm(self.delta, dim=-1)
        share: Tensor = delta / (base + delta).clamp_min(1e-300)
        return share


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """The part of a layer that attends to other tokens, for the chosen heads.

    ``before`` is what leaves the projection, split into heads; ``normed`` the same after the q or k norm (None
    where the model has none, or norms after the rotary embedding); ``q`` and ``k`` are those that meet. Each key
    head is repeated for the query heads that share it, so that row h of every tensor belongs to ``heads[h]``.

    Attributes:
        heads: Numbers of the query heads.
        key_heads: The key head of each of them.
        q_before: ``[heads, tokens, width]``.
        q_normed: The same or None.
        q: After norm and rotary embedding.
        k_before: ``[heads, tokens, width]``; None where the layer reuses the keys of an earlier one.
        k_normed: The same or None.
        k: After norm and rotary embedding.
        v: Values, ``[heads, tokens, value width]``.
        scaling: The factor of the scores.
        softcap: Scores are bent to ``softcap * tanh(score / softcap)`` (Gemma 2); None where they are not.
        raw: ``q · k``, ``[heads, tokens, tokens]``, row = the token that asks.
        scaled: ``raw * scaling``.
        visible: Which keys the model's mask leaves, bool ``[heads, tokens, tokens]``.
        masked: What enters the softmax: scaled, bent where the model does so, ``-inf`` where masked.
        weights: The softmax of it; a row and its ``sink`` sum to 1.
        sink: The weight that goes to no token (gpt-oss), ``[heads, tokens]``; None where there is none.
        mixed: The weighted sum of the values, ``[heads, tokens, value width]``.
        gate: What it is multiplied with before o, ``sigmoid(gate)``, the same shape; None without a gate.
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
        """The row of a head in these tensors.

        Raises:
            AttentionError: A head that was not captured.
        """
        if head not in self.heads:
            raise AttentionError(f"head {head} was not captured; expected one of {_span(self.heads)}")
        return self.heads.index(head)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The attention of one layer.

    Attributes:
        layer: Its number, from 0.
        name: Dotted name of the attention block.
        kind: ``"attention"``, ``"MLA"`` or ``"DeltaNet"``.
        note: What one has to know of a block without softmax weights; empty for others.
        x: What enters the block (after the input norm), ``[tokens, hidden]``.
        projections: Role to its step.
        softmax: None for a DeltaNet, which has no softmax weights.
        into_o: What enters o, ``[tokens, o's in]``, all heads concatenated.
        out: What leaves o, ``[tokens, hidden]``.
        written: What is added to the residual: ``out``, or its norm in models that norm after attention.
        residual_before: The residual stream as it enters the layer, ``[tokens, hidden]``; of several (Gemma 3n) the first.
        residual_after: ``residual_before + written``, proved to be what the model goes on with; None in a model
            that never forms it (attention and MLP side by side, or a scaled residual).
        difference: The largest difference between the recomputed walk and the model, relative to the largest
            value of the tensor.
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
            AttentionError: A head that was not captured, or a layer without softmax weights.
        """
        if self.softmax is None:
            raise AttentionError(f"layer {self.layer}: {self.note}")
        return self.softmax.weights[self.softmax.at(head)]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One forward of the model: its layers, and what it says next.

    Attributes:
        layers: The captured layers, in order.
        next_token: Log-probabilities after the last token, ``[vocabulary]``.
    """

    layers: tuple[Layer, ...]
    next_token: Tensor

    def __getitem__(self, layer: int) -> Layer:
        """The layer of that number.

        Raises:
            AttentionError: A layer that was not captured.
        """
        for one in self.layers:
            if one.layer == layer:
                return one
        raise AttentionError(f"layer {layer} was not captured; expected one of {_span([w.layer for w in self.layers])}")


@dataclass(frozen=True, kw_only=True)
class AttentionCapture:
    """The same tokens through the base and, where an adapter was given, through the adapted model.

    Attributes:
        ids: Token ids.
        tokens: The text of each.
        base: The walk without the adapter.
        adapted: The walk with it; None without one.
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
    """``KL(base ‖ other)`` in nats of two vectors of log-probabilities."""
    return float((base.exp() * (base - other)).nan_to_num(0.0).sum().clamp_min(0.0))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon distance (Endres and Schindelin 2003) over the last axis, base 2: 0 equal, 1 disjoint."""
    middle = (p + q) / 2
    both = [torch.where(d > 0, d * (d / middle.clamp_min(1e-300)).log2(), 0.0).sum(dim=-1) for d in (p, q)]
    return (sum(both) / 2).clamp(0.0, 1.0).sqrt()  # type: ignore[union-attr]


def _span(numbers: tuple[int, ...] | list[int]) -> str:
    """Numbers for a message: 0 … 8 for a run, else all of them."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 2:
        return f"{numbers[0]} … {numbers[-1]}"
    return ", ".join(map(str, numbers))

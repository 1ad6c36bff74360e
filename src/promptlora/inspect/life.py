"""The life of one token in one layer and head, taken from a capture: the values that a page or a terminal shows.

It knows captures; it knows nothing of drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptlora.errors import AttentionError
from promptlora.inspect.values import LAYER_VECTORS, AttentionCapture, Layer, Walk, jensen_shannon


@dataclass(frozen=True, kw_only=True)
class Side:
    """One token in one walk (base or adapted); vectors are one-dimensional.

    Attributes:
        x: Input of the block.
        shares: Maps each role to the norms of base and delta of its projection at this token, and the delta's share.
        q_before: The query after the projection.
        q_normed: The query after the q norm, if there is one.
        q: The query that is multiplied with the keys.
        raw: ``q · k`` for every key.
        scaled: ``raw`` times the scaling.
        masked: Input of the softmax; ``-inf`` where masked.
        weights: The softmax.
        sink: The weight of the sink, which goes to no token; 0 without a sink.
        mixed: The weighted sum of the values.
        gate: The factor that ``mixed`` is multiplied with, if there is a gate.
        out: Output of o.
        residual_before: The residual stream before the layer's attention.
        residual_after: The residual stream after it; None if the model never forms it.
    """

    x: Tensor
    shares: Mapping[str, tuple[float, float, float]]
    q_before: Tensor
    q_normed: Tensor | None
    q: Tensor
    raw: Tensor
    scaled: Tensor
    masked: Tensor
    weights: Tensor
    sink: float
    mixed: Tensor
    gate: Tensor | None
    out: Tensor
    residual_before: Tensor
    residual_after: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a masked score is null."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            values[name] = value.tolist() if isinstance(value, Tensor) else value
        values["masked"] = [None if v == -torch.inf else v for v in self.masked.tolist()]
        values["shares"] = _named(self.shares)
        return values


@dataclass(frozen=True, kw_only=True)
class TokenLife:
    """One token's walk through one head of one layer, base and adapted.

    Attributes:
        tokens: The text of each token.
        token: The position of the token.
        layer: The layer.
        head: The query head.
        key_head: The key head that the query head reads.
        scaling: The factor of the scores.
        softcap: See ``Softmax``.
        base: The walk without the adapter.
        adapted: The walk with the adapter; None without an adapter.
    """

    tokens: tuple[str, ...]
    token: int
    layer: int
    head: int
    key_head: int
    scaling: float
    softcap: float | None
    base: Side
    adapted: Side | None

    @property
    def change(self) -> Tensor | None:
        """Adapted minus base weight for every key; None without an adapter."""
        return None if self.adapted is None else self.adapted.weights - self.base.weights

    def changes(self, count: int = 3) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """The keys that gained most attention and those that lost most, as (position, change of weight)."""
        change = self.change
        if change is None:
            return [], []
        order = change.argsort(descending=True, stable=True).tolist()
        gains = [(i, float(change[i])) for i in order[:count] if change[i] > 0]
        losses = [(i, float(change[i])) for i in order[::-1][:count] if change[i] < 0]
        return gains, losses

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        gains, losses = self.changes()
        return {
            "tokens": list(self.tokens),
            "token": self.token,
            "layer": self.layer,
            "head": self.head,
            "key_head": self.key_head,
            "scaling": self.scaling,
            "softcap": self.softcap,
            "base": self.base.to_dict(),
            "adapted": None if self.adapted is None else self.adapted.to_dict(),
            "gains": [{"token": i, "change": c} for i, c in gains],
            "losses": [{"token": i, "change": c} for i, c in losses],
        }


def projection_shares(layer: Layer, token: int) -> dict[str, tuple[float, float, float]]:
    """Map each role to the norms of base and delta of its projection at a token, and the delta's share."""
    return {
        role: (float(step.base[token].norm()), float(step.delta[token].norm()), float(step.share[token]))
        for role, step in layer.projections.items()
    }


def _named(shares: Mapping[str, tuple[float, float, float]]) -> dict[str, dict[str, float]]:
    return {
        role: {"base_norm": base, "delta_norm": delta, "share": share} for role, (base, delta, share) in shares.items()
    }


def layer_values(capture: AttentionCapture, layer: int, token: int) -> dict[str, Any]:
    """The values of a layer without softmax weights for one token, as plain values for JSON."""

    def side(one: Layer) -> dict[str, Any]:
        vectors = {name: getattr(one, name) for name in LAYER_VECTORS}
        lists = {name: None if vector is None else vector[token].tolist() for name, vector in vectors.items()}
        return {"shares": _named(projection_shares(one, token)), **lists}

    base, adapted = capture.base[layer], None if capture.adapted is None else capture.adapted[layer]
    return {
        "tokens": list(capture.tokens),
        "token": token,
        "layer": layer,
        "kind": base.kind,
        "note": base.note,
        "base": side(base),
        "adapted": None if adapted is None else side(adapted),
        "difference": capture.difference,
    }


def _side(layer: Layer, token: int, head: int) -> Side:
    part = layer.softmax
    if part is None:
        raise AttentionError(f"layer {layer.layer}: {layer.note}; choose another layer")
    at = part.at(head)
    return Side(
        x=layer.x[token],
        shares=projection_shares(layer, token),
        q_before=part.q_before[at, token],
        q_normed=None if part.q_normed is None else part.q_normed[at, token],
        q=part.q[at, token],
        raw=part.raw[at, token],
        scaled=part.scaled[at, token],
        masked=part.masked[at, token],
        weights=part.weights[at, token],
        sink=0.0 if part.sink is None else float(part.sink[at, token]),
        mixed=part.mixed[at, token],
        gate=None if part.gate is None else part.gate[at, token],
        out=layer.out[token],
        residual_before=layer.residual_before[token],
        residual_after=None if layer.residual_after is None else layer.residual_after[token],
    )


def token_life(capture: AttentionCapture, token: int, layer: int, head: int) -> TokenLife:
    """Take one token's walk from a capture.

    Raises:
        AttentionError: The token, layer or head was not captured, or the layer has no softmax weights.
    """
    if not 0 <= token < len(capture.tokens):
        raise AttentionError(
            f"token {token}: the text has {len(capture.tokens)}; expected 0 … {len(capture.tokens) - 1}"
        )
    base = capture.base[layer]
    side = _side(base, token, head)
    part = base.softmax
    assert part is not None
    return TokenLife(
        tokens=capture.tokens,
        token=token,
        layer=layer,
        head=head,
        key_head=part.key_heads[part.at(head)],
        scaling=part.scaling,
        softcap=part.softcap,
        base=side,
        adapted=None if capture.adapted is None else _side(capture.adapted[layer], token, head),
    )


def most_changed(capture: AttentionCapture, token: int | None = None) -> tuple[int, int]:
    """The layer and head whose attention the adapter changes most.

    "Most" means the largest Jensen–Shannon distance between a head's weights with and without the adapter, at one
    token. The command line, the page and the docs all use the selected token; by default this is the last token, from
    which the answer starts. Without an adapter, the result is the head that gives the most weight to a single token
    (other than the first token and the token itself).

    Args:
        capture: Base and adapted.
        token: The token whose weights are compared; None averages over all tokens.

    Raises:
        AttentionError: The capture has no softmax weights.
    """
    best, found = -1.0, None
    for layer in capture.base.layers:
        if layer.softmax is None:
            continue
        if capture.adapted is not None:
            other = capture.adapted[layer.layer].softmax
            assert other is not None
            each = jensen_shannon(layer.softmax.weights, other.weights)  # [heads, tokens]
        else:
            count = len(capture.tokens)
            away = layer.softmax.weights.clone()
            away[:, torch.arange(count), torch.arange(count)] = 0.0
            away[:, :, 0] = 0.0
            each = away.amax(dim=-1)
        values = each.mean(dim=-1) if token is None else each[:, token]
        if float(values.max()) > best:
            best, found = float(values.max()), (layer.layer, layer.softmax.heads[int(values.argmax())])
    if found is None:
        notes = {layer.note for layer in capture.base.layers if layer.note}
        raise AttentionError(
            f"no layer of this capture has softmax weights ({'; '.join(notes) or 'no layer'}); choose others"
        )
    return found


def change_map(base: Walk, adapted: Walk, token: int | None = None) -> tuple[list[int], Tensor]:
    """Jensen–Shannon distance between the weights of two walks, for every layer and head.

    Args:
        base: One walk.
        adapted: The other walk.
        token: The token whose weights are compared; None averages over all tokens.

    Returns:
        The indices of the layers, and the distances ``[layers, heads]``; NaN if a layer lacks a head.
    """
    numbers, table = change_at_tokens(base, adapted)
    return numbers, table.mean(dim=-1) if token is None else table[..., token]


def change_at_tokens(base: Walk, adapted: Walk) -> tuple[list[int], Tensor]:
    """The distances of :func:`change_map` for each token: the layer indices and ``[layers, heads, tokens]``."""
    numbers, rows = [], []
    for layer in base.layers:
        other = adapted[layer.layer]
        if layer.softmax is not None and other.softmax is not None:
            numbers.append(layer.layer)
            rows.append(jensen_shannon(layer.softmax.weights, other.softmax.weights))
    heads = max((len(row) for row in rows), default=0)
    tokens = rows[0].shape[1] if rows else 0
    table = torch.full((len(rows), heads, tokens), torch.nan, dtype=torch.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return numbers, table

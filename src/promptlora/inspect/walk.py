"""The walk through attention, recomputed in float64 from a model's own tensors and verified against the model.

It goes from q, k, v, mask and scale to scores, weights, the weighted sum and o. Each result is compared with the
model's own, and a difference beyond rounding is an error, so that every number of a capture is verified. This module
knows layouts and records; it knows nothing of tokenizers or of where the record comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from promptlora.errors import AttentionError
from promptlora.inspect.recorder import AttentionCall, Record
from promptlora.inspect.values import Layer, ProjectionStep, Softmax
from promptlora.lora import LoRAWeights
from promptlora.projections import Block, Projection, block_projections

# Tolerances relative to the largest value of a tensor. A float64 model may still compute its softmax in float32.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_ROWS_SUM = 1e-9
_NO_SOFTMAX = (
    "a Gated DeltaNet keeps one running state per head instead of a table of weights: it has no softmax weights; "
    "its projections, gate and output are shown"
)
_NORM = re.compile(r"(q|k|query|key)_?(norm|layernorm|ln)")


@dataclass(frozen=True, kw_only=True)
class Site:
    """An attention block and its location in the model: index and module of its layer, and the neighbouring modules."""

    layer: int
    block: Block
    parent: str
    neighbours: tuple[str, ...]
    norms: tuple[str, ...]
    projections: tuple[Projection, ...]

    @property
    def modules(self) -> list[str]:
        """The modules whose inputs and outputs the walk needs."""
        own = [self.block.name, self.parent, *self.neighbours, *self.norms]
        return [*own, *(projection.module for projection in self.projections)]


def find_site(model: nn.Module, block: Block) -> Site:
    """Find the location of an attention block in its model.

    Raises:
        AttentionError: The block is not part of a list of layers.
    """
    modules = dict(model.named_modules())
    parts = block.name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if isinstance(modules[".".join(parts[:end])], nn.ModuleList):
            parent, own = ".".join(parts[: end + 1]), parts[end + 1] if end + 1 < len(parts) else ""
            children = [f"{parent}.{n}" for n, _ in modules[parent].named_children() if n != own]
            norms = [f"{block.name}.{n}" for n, _ in block.module.named_children() if _NORM.fullmatch(n)]
            return Site(
                layer=int(parts[end]),
                block=block,
                parent=parent,
                neighbours=tuple(children),
                norms=tuple(norms),
                projections=tuple(block_projections(block)),
            )
    raise AttentionError(f"{block.name}: not inside a list of layers; expected a name such as model.layers.0.self_attn")


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").to(torch.float64)


class _Proof:
    """Compares recomputed tensors with those of the model, and keeps the largest relative difference."""

    def __init__(self, place: str, dtype: torch.dtype) -> None:
        self.place, self.tolerance, self.largest = place, _TOLERANCE.get(dtype, 4e-2), 0.0

    def equal(self, what: str, ours: Tensor, theirs: Tensor) -> None:
        if ours.shape != theirs.shape:
            raise AttentionError(
                f"{self.place}: {what} is {list(ours.shape)} when recomputed and {list(theirs.shape)} in the model; this "
                "attention works in a way that promptlora does not know"
            )
        if not ours.numel():
            return
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
        if not difference <= self.tolerance:
            raise AttentionError(
                f"{self.place}: the recomputed {what} differs from the model's by {difference:.2g} of its largest value; "
                f"expected at most {self.tolerance:.0e}; this attention works in a way that promptlora does not know"
            )
        self.largest = max(self.largest, difference)


def _same(ours: Tensor, theirs: Tensor | None, tolerance: float) -> bool:
    """Whether two tensors are equal, up to rounding."""
    if theirs is None or ours.numel() != theirs.numel():
        return False
    theirs = _double(theirs).reshape(ours.shape)
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-30))


# --- projections -------------------------------------------------------------------------------------------


class _Projections:
    """The steps of the projections of one block; a fused module runs only once."""

    def __init__(self, model: nn.Module, record: Record, lora: LoRAWeights | None, proof: _Proof, tokens: int) -> None:
        self.model, self.record, self.lora, self.proof, self.tokens = model, record, lora, proof, tokens
        self._base: dict[str, Tensor] = {}

    def _input(self, name: str, place: str) -> Tensor:
        if name not in self.record.inputs or name not in self.record.outputs:
            raise AttentionError(
                f"{place}: {name} was not called by its layer, so nothing passed its hooks; a compiled model must be "
                "captured uncompiled"
            )
        return self.record.inputs[name]

    def step(self, p: Projection, x: Tensor | None = None) -> ProjectionStep:
        """Base and delta of one projection, from the model's own input or from a recomputed input ``[tokens, in]``."""
        given = self._input(p.module, self.proof.place)
        module = self.model.get_submodule(p.module)
        own = given if x is None else x.to(given.dtype).to(given.device).reshape(given.shape)
        if p.module not in self._base:
            # calling forward directly skips the hooks that add the adapter
            self._base[p.module] = _double(module.forward(own)).reshape(self.tokens, -1)
        rows = p.row_index()
        base = self._base[p.module][:, rows]
        inside = _double(given).reshape(self.tokens, -1) if x is None else x
        delta = torch.zeros_like(base)
        if self.lora is not None and p.name in self.lora:
            A, B = (_double(matrix[0]) for matrix in self.lora[p.name])
            delta = inside @ A @ B * self.lora.scaling
        step = ProjectionStep(name=p.name, role=p.role, x=inside, base=base, delta=delta)
        theirs = _double(self.record.outputs[p.module]).reshape(self.tokens, -1)[:, rows]
        self.proof.equal(f"output of {p.role}", step.output, theirs)
        return step


# --- softmax -----------------------------------------------------------------------------------------------


def _visible_and_bias(call: AttentionCall, module: nn.Module, heads: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The keys that each query sees, ``[heads, tokens, tokens]``, and the bias that is added to its scores."""
    bias = torch.zeros(1, tokens, tokens, dtype=torch.float64)
    if isinstance(call.mask, Tensor) and call.mask.ndim == 4:
        mask = call.mask.detach().cpu()[0, ..., :tokens, :tokens]
        if mask.dtype == torch.bool:
            visible = mask
        else:
            visible = mask > torch.finfo(mask.dtype).min / 2
            bias = torch.where(visible, mask.double(), 0.0)
    else:  # no mask, or flash's padding mask (there is no padding): the function itself masks
        causal = call.options.get("is_causal")
        row, column = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
        seen = (
            column <= row
            if (getattr(module, "is_causal", True) if causal is None else causal)
            else row == row + 0 * column
        )
        window = call.options.get("sliding_window")
        visible = (seen & (column > row - window) if window else seen)[None]
    extra = call.options.get("position_bias")
    if isinstance(extra, Tensor):
        bias = bias + _double(extra)[0, ..., :tokens, :tokens]
    return visible.expand(heads, tokens, tokens), bias


def attention_weights(masked: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Softmax of masked scores ``[heads, tokens, tokens]``; with sinks ``[heads]``, also the weight that they take."""
    if sinks is None:
        return masked.softmax(dim=-1), None
    column = sinks.to(masked.dtype).view(-1, 1, 1).expand(masked.shape[0], masked.shape[1], 1)
    both = torch.cat([masked, column], dim=-1).softmax(dim=-1)
    return both[..., :-1], both[..., -1]


def _split(flat: Tensor, heads: int) -> Tensor:
    """Reshape ``[tokens, heads * width]`` to ``[heads, tokens, width]``."""
    return flat.view(flat.shape[0], heads, -1).transpose(0, 1)


def _normed(before: Tensor, which: str, site: Site, record: Record, tolerance: float) -> Tensor | None:
    """Output of the q or k norm, ``[heads, tokens, width]``, if the norm's input is the projection's output."""
    heads, tokens, width = before.shape
    for name in site.norms:
        if not name.rpartition(".")[2].startswith(which):
            continue
        arrived, left = record.inputs.get(name), record.outputs.get(name)
        if arrived is None or left is None or left.numel() != before.numel():
            continue
        if _same(before.transpose(0, 1).contiguous(), arrived, tolerance):
            return _double(left).reshape(tokens, heads, width).transpose(0, 1)
        if _same(before.contiguous(), arrived, tolerance):
            return _double(left).reshape(heads, tokens, width)
    return None


def _key_heads(kind: str, call: AttentionCall, k: Projection | None) -> int:
    """Number of key heads of the projection: that of the call, or fewer if the module itself repeats them."""
    count, width = call.key.shape[1], call.key.shape[-1]
    if kind == "MLA" or k is None or k.out_features == count * width or k.out_features % width:
        return int(count)
    return k.out_features // int(width)


def _softmax_part(
    site: Site, call: AttentionCall, steps: dict[str, ProjectionStep], record: Record, proof: _Proof, tokens: int
) -> Softmax:
    """The walk from q, k, v to the weighted sum, for all heads."""
    q, k, v = (_double(tensor)[0] for tensor in (call.query, call.key, call.value))
    heads = q.shape[0]
    keys = _key_heads(site.block.layout.kind, call, next((p for p in site.projections if p.role == "k"), None))
    if k.shape[1] != tokens or heads % k.shape[0] or heads % keys:
        raise AttentionError(
            f"{proof.place}: {heads} query heads on {k.shape[0]} key heads and {k.shape[1]} keys for {tokens} tokens; "
            "expected as many keys as tokens and key heads that divide the query heads"
        )
    repeat = heads // k.shape[0]
    k, v = k.repeat_interleave(repeat, dim=0), v.repeat_interleave(repeat, dim=0)
    of_key = torch.arange(heads) // (heads // keys)
    scaling = call.options.get("scaling")
    scaling = float(q.shape[-1] ** -0.5 if scaling is None else scaling)
    softcap = call.options.get("softcap")
    raw = q @ k.transpose(1, 2)
    scaled = raw * scaling
    visible, bias = _visible_and_bias(call, site.block.module, heads, tokens)
    bent = scaled if softcap is None else softcap * torch.tanh(scaled / softcap)
    masked = (bent + bias).masked_fill(~visible, -torch.inf)
    sinks = call.options.get("s_aux")
    weights, sink = attention_weights(masked, None if sinks is None else _double(sinks).flatten())
    sums = weights.sum(dim=-1) + (0.0 if sink is None else sink)
    if not bool(((sums - 1).abs() <= _ROWS_SUM).all()):
        raise AttentionError(f"{proof.place}: a row of weights sums to {float(sums.flatten()[0])!r}; expected 1")
    if call.weights is not None and sink is None and call.weights.shape[1] == heads:  # some omit the sink
        proof.equal("softmax weights", weights, _double(call.weights)[0])
    mixed = weights @ v
    proof.equal("weighted sum", mixed, _double(call.output).reshape(tokens, heads, -1).transpose(0, 1))
    q_before = _split(steps["q"].output, heads)
    k_before = _split(steps["k"].output, keys) if "k" in steps else None
    q_normed = _normed(q_before, "q", site, record, proof.tolerance)
    k_normed = None if k_before is None else _normed(k_before, "k", site, record, proof.tolerance)
    gate = torch.sigmoid(_split(steps["gate"].output, heads)) if "gate" in steps else None
    return Softmax(
        heads=tuple(range(heads)),
        key_heads=tuple(of_key.tolist()),
        q_before=q_before,
        q_normed=q_normed,
        q=q,
        k_before=None if k_before is None else k_before[of_key],
        k_normed=None if k_normed is None else k_normed[of_key],
        k=k,
        v=v,
        scaling=scaling,
        softcap=None if softcap is None else float(softcap),
        raw=raw,
        scaled=scaled,
        visible=visible,
        masked=masked,
        weights=weights,
        sink=sink,
        mixed=mixed,
        gate=gate,
    )


def _chosen(part: Softmax, heads: tuple[int, ...]) -> Softmax:
    """Select the given heads."""
    if heads == part.heads:
        return part
    rows = list(heads)
    tensors = {name: value[rows].clone() for name, value in vars(part).items() if isinstance(value, Tensor)}
    others = {name: value for name, value in vars(part).items() if name not in tensors}
    return Softmax(**{**others, **tensors, "heads": heads, "key_heads": tuple(part.key_heads[h] for h in heads)})


# --- the whole layer ---------------------------------------------------------------------------------------


def _residual(site: Site, record: Record, out: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Residual before, what is added to it, and residual after (None if the model never forms it)."""
    entered = _double(record.inputs[site.parent])
    if entered.numel() != out.numel():  # several parallel streams (Gemma 3n): attention reads and writes one of them
        return entered.reshape(-1, *out.shape)[0], out, None
    before, written = entered.reshape(out.shape), out
    for name in site.neighbours:  # a norm after attention
        if _same(out, record.inputs.get(name), tolerance) and name in record.outputs:
            written = _double(record.outputs[name]).reshape(out.shape)
            break
    after = before + written
    formed = any(_same(after, record.inputs.get(name), tolerance) for name in site.neighbours)
    return before, written, after if formed else None


def walk_layer(
    model: nn.Module,
    site: Site,
    record: Record,
    lora: LoRAWeights | None,
    heads: tuple[int, ...] | None,
    dtype: torch.dtype,
    tokens: int,
) -> Layer:
    """Recompute and verify the attention of one layer.

    Args:
        model: The model that was recorded.
        site: The attention block.
        record: The record of one forward pass of one row.
        lora: The single adapter that was on; None for the base.
        heads: Heads to keep; None keeps all. All heads are verified.
        dtype: Dtype of the model, which determines the tolerance.
        tokens: Length of the row.

    Raises:
        AttentionError: The recomputed walk does not match the model, or the model does not have one of the heads.
    """
    name, kind = site.block.name, site.block.layout.kind
    proof = _Proof(f"layer {site.layer} ({name})", dtype)
    made = _Projections(model, record, lora, proof, tokens)
    by_role = {p.role: p for p in site.projections}
    steps = {role: made.step(p) for role, p in by_role.items() if role != "o"}
    part: Softmax | None = None
    if kind == "DeltaNet":
        into_o = _double(record.inputs[by_role["o"].module]).reshape(tokens, -1)
    else:
        calls = record.calls.get(name, [])
        if len(calls) != 1:
            raise AttentionError(
                f"{proof.place}: {type(site.block.module).__name__} called transformers' attention function {len(calls)} "
                "times; expected once; a class that computes attention by itself cannot be walked through"
            )
        part = _softmax_part(site, calls[0], steps, record, proof, tokens)
        mixed = part.mixed if part.gate is None else part.mixed * part.gate
        into_o = mixed.transpose(0, 1).reshape(tokens, -1)
        proof.equal("input of o", into_o, _double(record.inputs[by_role["o"].module]).reshape(tokens, -1))
        odd = [head for head in heads or () if not 0 <= head < len(part.heads)]
        if odd:
            raise AttentionError(
                f"head {odd[0]}: layer {site.layer} has {len(part.heads)}; expected 0 … {len(part.heads) - 1}"
            )
        part = _chosen(part, tuple(heads) if heads is not None else part.heads)
    steps["o"] = made.step(by_role["o"], into_o)
    out = steps["o"].output
    before, written, after = _residual(site, record, out, proof.tolerance)
    entering: Any = record.inputs.get(name)
    return Layer(
        layer=site.layer,
        name=name,
        kind=kind,
        note=_NO_SOFTMAX if kind == "DeltaNet" else "",
        x=_double(entering).reshape(tokens, -1) if entering is not None else steps["q"].x,
        projections=steps,
        softmax=part,
        into_o=into_o,
        out=out,
        written=written,
        residual_before=before,
        residual_after=after,
        difference=proof.largest,
    )

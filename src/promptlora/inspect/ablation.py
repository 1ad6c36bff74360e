"""The effect of each projection: the adapter is switched on for only q, k, v or o, for q and k, and for all.

For each choice this measures what changes relative to the base: attention (Jensen–Shannon distance), its output, the
next token and, if correct answers are known, the score. This module knows captures and ``PromptLoRA``; the caller
provides the function that scores an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from promptlora.adapt import Chat, PromptLoRA
from promptlora.errors import AttentionError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.inspect.capture import Walker, encode_text
from promptlora.inspect.values import Walk, jensen_shannon, next_token_kl
from promptlora.lora import LoRAWeights

CHOICES: Mapping[str, tuple[str, ...]] = {
    "q": ("q",),
    "k": ("k",),
    "v": ("v",),
    "o": ("o",),
    "q+k": ("q", "k"),
    "all": ("q", "k", "v", "o"),
}


def role_of(name: str, lora: LoRAWeights | None = None) -> str:
    """The role of a projection, from its name: ``"q"`` for ``model.layers.0.self_attn.q_proj``."""
    for projection in (lora.projections or ()) if lora is not None else ():
        if projection.name == name:
            return projection.role
    return name.rpartition(".")[2].removesuffix("_proj")


def only_roles(lora: LoRAWeights, roles: Sequence[str]) -> LoRAWeights:
    """The same adapters, restricted to the projections with these roles; the matrices are shared, not copied.

    Raises:
        AttentionError: There is no projection with these roles.
    """
    kept = {name: pair for name, pair in lora.stored.items() if role_of(name, lora) in roles}
    if not kept:
        known = sorted({role_of(name, lora) for name in lora})
        raise AttentionError(f"roles={list(roles)}: the adapter has none of them; expected some of {', '.join(known)}")
    return LoRAWeights(kept, lora.scaling, index=lora.index, projections=lora.projections, base_model=lora.base_model)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What each choice of projections changes, averaged over inputs.

    Attributes:
        choices: Names of the choices, in order.
        layers: Indices of the layers that have softmax weights.
        output_layers: Indices of all layers with attention.
        attention: Maps each choice to the Jensen–Shannon distance to the base's weights, from 0 to 1, averaged over
            tokens, for each layer and head, ``[layers, heads]``; NaN if a layer has fewer heads.
        output: Maps each choice to the relative change of the output of o, ``|changed - base| / |base|``,
            ``[output layers]``.
        next_token: Maps each choice to ``KL(base ‖ changed)`` in nats after the last token.
        score: Maps each choice (and ``"base"``) to the mean score of the answers; empty without correct answers.
        inputs: Number of inputs that were measured.
    """

    choices: tuple[str, ...]
    layers: tuple[int, ...]
    output_layers: tuple[int, ...]
    attention: Mapping[str, Tensor]
    output: Mapping[str, Tensor]
    next_token: Mapping[str, float]
    score: Mapping[str, float]
    inputs: int

    def by_layer(self) -> Tensor:
        """Change of attention, averaged over heads, ``[layers, choices]``."""
        columns = [self.attention[choice].nanmean(dim=1) for choice in self.choices]
        return torch.stack(columns, dim=1) if self.layers else torch.zeros(0, len(self.choices), dtype=torch.float64)

    def outputs_by_layer(self) -> Tensor:
        """Change of the output of o, ``[output layers, choices]``."""
        return torch.stack([self.output[choice] for choice in self.choices], dim=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a head that a layer lacks is null."""
        return {
            "inputs": self.inputs,
            "layers": list(self.layers),
            "output_layers": list(self.output_layers),
            "choices": {
                choice: {
                    "attention": [
                        [None if value != value else value for value in row] for row in self.attention[choice].tolist()
                    ],
                    "output": self.output[choice].tolist(),
                    "next_token_kl": self.next_token[choice],
                    "score": self.score.get(choice),
                }
                for choice in self.choices
            },
            "base_score": self.score.get("base"),
        }


def _distances(base: Walk, other: Walk) -> list[Tensor]:
    """Jensen–Shannon distance of each layer with weights, averaged over the query tokens, ``[heads]`` each."""
    distances = []
    for ours, theirs in zip(base.layers, other.layers, strict=True):
        if ours.softmax is None or theirs.softmax is None:
            continue
        p, q = ours.softmax, theirs.softmax
        rows = [
            s.weights if s.sink is None else torch.cat([s.weights, s.sink[..., None]], dim=-1) for s in (p, q)
        ]  # include the weight of the sink, which goes to no token
        distances.append(jensen_shannon(rows[0], rows[1]).mean(dim=-1))
    return distances


def _output_changes(base: Walk, other: Walk) -> list[float]:
    """``|changed - base| / |base|`` of the output of o in each layer, over all tokens."""
    return [
        float((theirs.out - ours.out).norm() / ours.out.norm().clamp_min(1e-300))
        for ours, theirs in zip(base.layers, other.layers, strict=True)
    ]


def ablate_ids(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int] | Tensor],
    injector: HookBasedLoRAInjector,
    loras: LoRAWeights,
    *,
    choices: Sequence[str] | None = None,
    on_row: Callable[[int], None] | None = None,
) -> Ablation:
    """Run :func:`ablate` for a model and rows of token ids, without a score.

    Args:
        model: The base.
        rows: Token ids of each input.
        injector: The injector of the model.
        loras: One adapter for all rows, or one per row.
        choices: Some of :data:`CHOICES`; by default those whose roles the adapter has.
        on_row: Called with the number of rows done.

    Raises:
        AttentionError: There are no rows, the adapters do not match them, or a choice is unknown.
    """
    if not rows or loras.adapters not in (1, len(rows)):
        raise AttentionError(f"{loras.adapters} adapters for {len(rows)} inputs; expected one for all, or one for each")
    have = {role_of(name, loras) for name in loras}
    names = list(choices) if choices is not None else [c for c, roles in CHOICES.items() if have & set(roles)]
    odd = [name for name in names if name not in CHOICES]
    if odd:
        raise AttentionError(f"choice {odd[0]!r}; expected some of {', '.join(CHOICES)}")
    walker = Walker(model, injector)
    with_weights = [site.layer for site in walker.sites if site.block.layout.kind != "DeltaNet"]
    attention: dict[str, list[list[Tensor]]] = {name: [] for name in names}
    output: dict[str, list[list[float]]] = {name: [] for name in names}
    kl: dict[str, list[float]] = {name: [] for name in names}
    for number, row in enumerate(rows):
        base = walker.run(row)
        lora = loras.select(0 if loras.adapters == 1 else number)
        for name in names:
            other = walker.run(row, only_roles(lora, CHOICES[name]))
            attention[name].append(_distances(base, other))
            output[name].append(_output_changes(base, other))
            kl[name].append(next_token_kl(base.next_token, other.next_token))
        if on_row:
            on_row(number + 1)

    def averaged(per_row: list[list[Tensor]]) -> Tensor:
        layers = [torch.stack(of_layer).mean(dim=0) for of_layer in zip(*per_row, strict=True)]
        width = max((len(layer) for layer in layers), default=0)
        table = torch.full((len(layers), width), torch.nan, dtype=torch.float64)
        for i, layer in enumerate(layers):
            table[i, : len(layer)] = layer
        return table

    return Ablation(
        choices=tuple(names),
        layers=tuple(with_weights),
        output_layers=tuple(site.layer for site in walker.sites),
        attention={name: averaged(attention[name]) for name in names},
        output={name: torch.tensor(output[name], dtype=torch.float64).mean(dim=0) for name in names},
        next_token={name: fmean(kl[name]) for name in names},
        score={},
        inputs=len(rows),
    )


def ablate(
    lm: PromptLoRA,
    inputs: Sequence[Chat],
    loras: LoRAWeights,
    *,
    choices: Sequence[str] | None = None,
    raw: bool = False,
    score: Callable[[int, str], float] | None = None,
    max_new_tokens: int = 32,
    on_row: Callable[[int], None] | None = None,
) -> Ablation:
    """Measure what each projection's part of an adapter changes on the given inputs.

    Args:
        lm: Base, tokenizer and injector.
        inputs: Texts or conversations, rendered with the chat template.
        loras: One adapter for all inputs, or one per input.
        choices: Some of :data:`CHOICES`.
        raw: Use texts unchanged, without the template; answers that are scored always use the template.
        score: Returns the score, given the index of an input and an answer; None skips scoring.
        max_new_tokens: Maximum length of an answer that is scored.
        on_row: Called with the number of inputs done.

    Raises:
        AttentionError: See :func:`ablate_ids`.
    """
    rows = [encode_text(lm, text, raw=raw) for text in inputs]
    with lm.host.using(None):
        found = ablate_ids(lm.model, rows, lm.injector, loras, choices=choices, on_row=on_row)
    if score is None:
        return found
    scores = {}
    for name in ("base", *found.choices):
        lora = None if name == "base" else only_roles(loras, CHOICES[name])
        answers = lm.generate(list(inputs), lora, max_new_tokens=max_new_tokens)
        scores[name] = fmean(score(i, answer) for i, answer in enumerate(answers))
    return Ablation(**{**vars(found), "score": scores})

"""Estimates the scale of a hypernetwork for a model: parameters, bytes and operations for each kind of head.

Everything is counted on the meta device, so a model of 80 billion parameters takes no memory. Operations are counted
but never run. This file knows nothing of the source of models, of data or of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from promptlora.errors import ModelError
from promptlora.hypernet.config import HEAD_KINDS, HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.hypernet.targets import Targets, describe_targets, text_config
from promptlora.projections import ROLES, Layout

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_ADAM_BYTES = 16  # float32: weight, gradient, and Adam's two moments

GIVES_UP = {
    "full": "nothing: every value of A and B has weights of its own on every feature",
    "shared": (
        "separate maps for A and B: both come from one map and differ by a learned offset of the feature and one gate per "
        "rank, so the prompt moves both alike"
    ),
    "rankwise": (
        "separate weights for each rank: the ranks share one map and differ by a learned offset of the feature before a "
        "nonlinearity"
    ),
    "lowrank": (
        "the full space of A and B: features pass a bottleneck, so all A (and all B) of a shape, over prompts and layers, "
        "lie in a space with as many dimensions as the bottleneck is wide"
    ),
    "core": (
        "an A and a B for each prompt: the prompt chooses only within the columns of A and the rows of B that training has "
        "found for each projection"
    ),
    "diagonal": "what core gives up, and any mixing of ranks: the prompt only weighs fixed matrices of rank one",
}


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """The estimate for one kind of head and a hypernetwork with this head.

    Attributes:
        kind: One of ``HEAD_KINDS``.
        heads: Parameters of the heads.
        generator: Parameters of heads, trunk, embeddings, gate, and the static LoRA or shared factors.
        parameters: Parameters of the whole hypernetwork, including its prompt encoder.
        bytes: Bytes of these parameters in float32.
        training_bytes: Bytes of their weights, gradients and Adam moments in float32, without the frozen base.
        flops_per_adapter: Operations of the generator for one adapter (a multiply-add counts as two).
        base_tokens: The number of tokens that the base processes with the same number of operations.
        adapter_bytes: Bytes per additional adapter, in the dtype of the adapters.
        shared_bytes: Bytes of the factors that all adapters share.
        injection_flops_per_token: Operations that an adapter adds per token.
        below_limit: Whether the parameters of the heads are below the limit.
        whole_below_limit: Whether the parameters of the whole hypernetwork are below the limit.
        gives_up: What this kind cannot express that ``full`` can.
    """

    kind: str
    heads: int
    generator: int
    parameters: int
    bytes: int
    training_bytes: int
    flops_per_adapter: int
    base_tokens: float
    adapter_bytes: int
    shared_bytes: int
    injection_flops_per_token: int
    below_limit: bool
    whole_below_limit: bool
    gives_up: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The estimated scale of a hypernetwork for a model.

    Attributes:
        targets: The projections that the hypernetwork generates a LoRA for.
        base_parameters: Parameters of the base.
        base_active_parameters: Parameters that one token uses in matrix products. Experts count by the share used per
            token; an embedding table counts only if it is also the output layer.
        base_flops_per_token: Twice ``base_active_parameters``, without attention over earlier tokens.
        batch: The number of adapters for ``batch_bytes``.
        batch_bytes: Bytes of ``batch`` adapters in the free form.
        injection_flops_per_token: Operations that an adapter in the free form adds per token.
        injection_share: ``injection_flops_per_token`` relative to ``base_flops_per_token``.
        prompt_tokens: Length of the prompt for ``encoder_flops``.
        encoder_flops: Operations of the prompt encoder for one prompt.
        heads: One plan per kind of head.
        limit: The limit on the heads' parameters, for ``below_limit`` and ``verdict``.
        verdict: A text that says which kinds stay below the limit.
    """

    targets: Targets
    base_parameters: int
    base_active_parameters: int
    base_flops_per_token: int
    batch: int
    batch_bytes: int
    injection_flops_per_token: int
    injection_share: float
    prompt_tokens: int
    encoder_flops: int
    heads: tuple[HeadPlan, ...]
    limit: int
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {**asdict(self), "targets": self.targets.to_dict()}


def active_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of all parameters of a base, and of those that one token uses in matrix products.

    Experts count by the share used per token. An embedding table is looked up, not multiplied, so it counts only if it
    is also the output layer.

    Raises:
        ModelError: The model has experts, but its configuration does not specify how many a token uses.
    """
    base: Any = model
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    multiplied = set() if output is None else {id(p) for p in output.parameters()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - multiplied
    total, active = 0, 0.0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if id(parameter) in tables:
            continue
        active += parameter.numel() * (_share_of_experts(model) if "experts" in name.split(".") else 1.0)
    return total, round(active)


def _share_of_experts(model: nn.Module) -> float:
    config = text_config(model)
    for source in (config, getattr(config, "ffn_config", None)):  # DBRX nests them
        experts = next((getattr(source, n) for n in _EXPERTS if getattr(source, n, None)), None)
        used = next((getattr(source, n) for n in _EXPERTS_USED if getattr(source, n, None)), None)
        if experts and used:
            first = [max(x) if isinstance(x, list | tuple) else x for x in (used, experts)]
            return float(first[0] / first[1])
    raise ModelError(
        f"{config.model_type}: its configuration does not say how many experts a token uses; expected one of "
        f"{', '.join(_EXPERTS_USED)}"
    )


def _count_flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops())


def _millions(n: float) -> str:
    return f"{n / 1e6:,.1f} M"


def _parameters(config: HyperNetworkConfig, targets: Targets) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in HyperNetwork(config, targets.projections, targets.hidden_size).parameters())


def _whole_below(configs: Sequence[HyperNetworkConfig], targets: Targets, limit: int) -> str:
    """The deepest encoder, and then the deepest trunk, that keep the whole hypernetwork below the limit."""
    depths = [(e, t) for e in range(configs[0].encoder_layers, -1, -1) for t in range(configs[0].trunk_layers, -1, -1)]
    for encoder, trunk in depths:
        for config in configs:
            size = _parameters(replace(config, encoder_layers=encoder, trunk_layers=trunk), targets)
            if size < limit:
                return (
                    f"A whole hypernetwork below it: {config.head} with encoder_layers={encoder} and trunk_layers={trunk}, "
                    f"{_millions(size)}."
                )
    return "No whole hypernetwork of this context size stays below it, however shallow."


def _verdict(heads: Sequence[HeadPlan], configs: Sequence[HyperNetworkConfig], targets: Targets, limit: int) -> str:
    below = [h for h in heads if h.below_limit]
    start = (
        f"At context size {targets.context_size} and rank {targets.rank}, full heads take {_millions(heads[0].heads)}. "
    )
    if not below:
        return start + f"No kind of head stays below {_millions(limit)}: take a smaller context size or rank."
    kinds = ", ".join(f"{h.kind} ({_millions(h.heads)})" for h in below)
    rest = heads[0].parameters - heads[0].heads
    cores = next(h for h in heads if h.kind == "core")
    return (
        start + f"Heads below {_millions(limit)}: {kinds}. Encoder, trunk, embeddings and static LoRA add "
        f"{_millions(rest)}, to cores {_millions(cores.parameters - cores.heads)}. "
        + _whole_below([c for c in configs if c.head in {h.kind for h in below}], targets, limit)
    )


def plan_targets(
    model: nn.Module,
    rank: int = 16,
    context_size: int = 2048,
    *,
    dtype: torch.dtype = torch.bfloat16,
    head_bottleneck: int = 64,
    encoder_layers: int = 2,
    trunk_layers: int = 2,
    batch: int = 64,
    prompt_tokens: int = 512,
    limit: int = 100_000_000,
    roles: Sequence[str] = ROLES,
    layouts: Sequence[Layout] = (),
) -> Plan:
    """Estimate the scale of a hypernetwork for a model, for each kind of head; everything runs on the meta device.

    Args:
        model: A causal language model of transformers; the meta device is enough.
        rank: Rank of the adapters.
        context_size: Width of context and features.
        dtype: Dtype of the adapters.
        head_bottleneck: Inner width of a ``lowrank`` head.
        encoder_layers: Layers of the prompt encoder.
        trunk_layers: Layers of the generator's trunk.
        batch: The number of adapters in use at the same time.
        prompt_tokens: Length of a prompt.
        limit: The limit that the heads' parameters are compared with.
        roles: See ``find_projections``.
        layouts: See ``find_projections``.

    Raises:
        ProjectionError: See :func:`describe_targets`.
        ModelError: See :func:`active_parameters`.
        ConfigError: A size is not above 0, or the context size is not a multiple of the number of encoder heads.
    """
    targets = describe_targets(
        model, rank, context_size, dtype=dtype, head_bottleneck=head_bottleneck, roles=roles, layouts=layouts
    )
    total, active = active_parameters(model)
    plans, encoder_flops = [], 0
    configs = [
        HyperNetworkConfig(
            head=kind, rank=rank, context_size=context_size, head_bottleneck=head_bottleneck,
            encoder_layers=encoder_layers, trunk_layers=trunk_layers, max_prompt_tokens=prompt_tokens,
        )
        for kind in HEAD_KINDS
    ]  # fmt: skip
    for config in configs:
        kind = config.head
        with torch.device("meta"):
            hypernetwork = HyperNetwork(config, targets.projections, targets.hidden_size)
            context = torch.empty(1, context_size)
            states = torch.empty(1, prompt_tokens, targets.hidden_size)
            mask = torch.ones(1, prompt_tokens, dtype=torch.bool)
        flops = _count_flops(hypernetwork.generator, context)
        assert hypernetwork.encoder is not None
        encoder_flops = _count_flops(hypernetwork.encoder, states, mask)
        parameters = sum(p.numel() for p in hypernetwork.parameters())
        core = len(targets.projections) * (rank if kind == "diagonal" else rank * rank) if config.shares_factors else 0
        plans.append(
            HeadPlan(
                kind=kind,
                heads=targets.head_parameters[kind],
                generator=sum(p.numel() for p in hypernetwork.generator.parameters()),
                parameters=parameters,
                bytes=4 * parameters,
                training_bytes=_ADAM_BYTES * parameters,
                flops_per_adapter=flops,
                base_tokens=flops / (2 * active),
                adapter_bytes=core * dtype.itemsize or targets.adapter_bytes,
                shared_bytes=targets.adapter_bytes if core else 0,
                injection_flops_per_token=2 * (targets.adapter_parameters + core),
                below_limit=targets.head_parameters[kind] < limit,
                whole_below_limit=parameters < limit,
                gives_up=GIVES_UP[kind],
            )
        )
    injection = 2 * targets.adapter_parameters
    return Plan(
        targets=targets,
        base_parameters=total,
        base_active_parameters=active,
        base_flops_per_token=2 * active,
        batch=batch,
        batch_bytes=batch * targets.adapter_bytes,
        injection_flops_per_token=injection,
        injection_share=injection / (2 * active),
        prompt_tokens=prompt_tokens,
        encoder_flops=encoder_flops,
        heads=tuple(plans),
        limit=limit,
        verdict=_verdict(plans, configs, targets, limit),
    )

"""What a hypernetwork would write for a model, and what that costs: counts of parameters, bytes and operations.

:func:`describe_targets` lists the projections by shape, the modules they live in, and what a search by module name
would have missed; :func:`plan_targets` adds the scale on paper. Everything is counted on the meta device from names,
shapes and the configuration, so a model of 80 billion parameters takes no memory. It knows nothing of where models
come from, of data or of time: an operation is counted, never run.
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
from promptlora.hypernet.heads import head_parameters
from promptlora.hypernet.network import HyperNetwork
from promptlora.projections import (
    ROLES,
    Layout,
    Projection,
    block_projections,
    find_blocks,
    find_projections,
    group_by_shape,
)

_SCANNED = ("q_proj", "k_proj", "v_proj", "o_proj")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_ADAM_BYTES = 16  # float32: weight, gradient, and Adam's two moments

GIVES_UP = {
    "full": "nothing: every value of A and B has weights of its own on every feature",
    "shared": (
        "A and B of a projection come from one map and differ by a learned offset of the feature and a gate a rank, so "
        "the prompt moves both alike"
    ),
    "rankwise": (
        "the ranks share one map and differ by a learned offset of the feature before a nonlinearity: no rank has "
        "weights of its own"
    ),
    "lowrank": (
        "features pass a bottleneck: all A (and all B) of a shape, over prompts and layers, lie in a space of as many "
        "dimensions as the bottleneck is wide"
    ),
}


@dataclass(frozen=True, kw_only=True)
class ShapeTargets:
    """The projections of one shape: how many, and which (``"DeltaNet q, k"``)."""

    in_features: int
    out_features: int
    count: int
    which: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a search for ``nn.Linear`` modules named q_proj, k_proj, v_proj and o_proj finds.

    Attributes:
        found: Modules with such a name, in the whole model.
        missed: Projections that live in none of them.
        missed_which: The same by kind and role, with counts.
        mixed: Modules found whose output holds something else too (a gate), which an adapter by name changes as well.
        foreign: Modules found that are no part of the causal language model.
    """

    found: int
    missed: int
    missed_which: str
    mixed: int
    foreign: int


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The projections of a model that a hypernetwork writes for.

    Attributes:
        model: Class of the model.
        model_type: As its configuration names it.
        hidden_size: Width of its hidden states.
        projections: All of them, in layer order.
        shapes: The same by shape, in order of first appearance.
        modules: Physical modules that they live in.
        others: Other parts that can be asked for by role and are left alone otherwise, with their counts.
        rank: Rank of the adapters.
        context_size: Width of the features that enter the heads.
        dtype: Dtype of an adapter.
        adapter_parameters: Values of one adapter.
        adapter_bytes: Bytes of one adapter in ``dtype``.
        head_parameters: Parameters of all heads, by kind.
        scan: What a search by module name finds.
    """

    model: str
    model_type: str
    hidden_size: int
    projections: tuple[Projection, ...]
    shapes: tuple[ShapeTargets, ...]
    modules: int
    others: dict[str, int]
    rank: int
    context_size: int
    dtype: str
    adapter_parameters: int
    adapter_bytes: int
    head_parameters: dict[str, int]
    scan: Scan

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the projections as their number and names."""
        values = {**asdict(self), "count": len(self.projections)}
        values["projections"] = [p.name for p in self.projections]
        return values


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """One kind of head, with a hypernetwork around it.

    Attributes:
        kind: ``full``, ``shared``, ``rankwise`` or ``lowrank``.
        heads: Parameters of the heads.
        generator: Parameters of heads, trunk, embeddings and static LoRA.
        parameters: Parameters of the whole hypernetwork, its prompt encoder included.
        bytes: Of those, in float32.
        training_bytes: Weights, gradients and Adam's moments of those, in float32; the frozen base comes on top.
        flops_per_adapter: Operations of the generator for one adapter (a multiply-add is two).
        base_tokens: The same in tokens of the base's forward.
        below_limit: Whether the heads stay below the limit.
        whole_below_limit: Whether the whole hypernetwork does.
        gives_up: What the kind cannot express that ``full`` can.
    """

    kind: str
    heads: int
    generator: int
    parameters: int
    bytes: int
    training_bytes: int
    flops_per_adapter: int
    base_tokens: float
    below_limit: bool
    whole_below_limit: bool
    gives_up: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The scale of a hypernetwork for a model, on paper.

    Attributes:
        targets: What it writes.
        base_parameters: Parameters of the base.
        base_active_parameters: Those that one token uses in matrix products: experts by their share per token, and no
            embedding table but one that is the output layer too.
        base_flops_per_token: Twice those; attention over earlier tokens comes on top.
        batch: How many adapters ``batch_bytes`` is for.
        batch_bytes: Bytes of that many adapters.
        injection_flops_per_token: Operations that an adapter adds to one token.
        injection_share: The same as a share of the base's.
        prompt_tokens: Length of the prompt that ``encoder_flops`` is for.
        encoder_flops: Operations of the prompt encoder for one prompt.
        heads: One plan for each kind of head.
        limit: The limit on the heads' parameters, for ``below_limit`` and ``verdict``.
        verdict: Which kinds stay below the limit, and what they give up, in words.
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
        """Plain values for JSON."""
        return {**asdict(self), "targets": self.targets.to_dict()}


# --- targets -----------------------------------------------------------------------------------------------


def _which(kinds: dict[str, str], projections: Sequence[Projection], *, counts: bool = False) -> str:
    """``"DeltaNet v and attention q"``; with counts ``"DeltaNet q 36, k 36"``."""
    roles: dict[str, dict[str, int]] = {}
    for p in projections:
        of_kind = roles.setdefault(kinds[p.name.rpartition(".")[0]], {})
        of_kind[p.role] = of_kind.get(p.role, 0) + 1
    return " and ".join(
        f"{kind} {', '.join(f'{role} {n}' if counts else role for role, n in found.items())}"
        for kind, found in roles.items()
    )


def _scan(model: nn.Module, kinds: dict[str, str], projections: Sequence[Projection]) -> Scan:
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _SCANNED
    }
    mine = {p.module for p in projections}
    missed = [p for p in projections if p.module not in found]
    return Scan(
        found=len(found),
        missed=len(missed),
        missed_which=_which(kinds, missed, counts=True),
        mixed=len({p.module for p in projections if p.module in found and p.rows is not None}),
        foreign=len(found - mine),
    )


def describe_targets(
    model: nn.Module,
    rank: int = 16,
    context_size: int = 2048,
    *,
    dtype: torch.dtype = torch.bfloat16,
    head_bottleneck: int = 64,
    roles: Sequence[str] = ROLES,
    layouts: Sequence[Layout] = (),
) -> Targets:
    """List what a hypernetwork would write for a model; the meta device is enough.

    Args:
        model: A causal language model of transformers.
        rank: Rank of the adapters.
        context_size: Width of the features that enter the heads.
        dtype: Dtype of an adapter.
        head_bottleneck: Inner width of a ``lowrank`` head.
        roles: As for ``find_projections``.
        layouts: As for ``find_projections``.

    Raises:
        ProjectionError: A role the model does not have, or an attention class that is not known.
        ConfigError: A rank, width or bottleneck that is not above 0.
    """
    config = _config(HEAD_KINDS[0], rank, context_size, head_bottleneck)
    projections = tuple(find_projections(model, roles, layouts))
    blocks = find_blocks(model, layouts)
    kinds = {block.name: block.layout.kind for block in blocks}
    others: dict[str, int] = {}
    for block in blocks:
        for p in block_projections(block):
            if p.role not in roles:
                others[p.role] = others.get(p.role, 0) + 1
    groups = group_by_shape(projections)
    values = sum(rank * (p.in_features + p.out_features) for p in projections)
    text = _text_config(model)
    return Targets(
        model=type(model).__name__,
        model_type=str(text.model_type),
        hidden_size=int(text.hidden_size),
        projections=projections,
        shapes=tuple(
            ShapeTargets(in_features=i, out_features=o, count=len(group), which=_which(kinds, group))
            for (i, o), group in groups.items()
        ),
        modules=len({p.module for p in projections}),
        others=others,
        rank=rank,
        context_size=context_size,
        dtype=str(dtype).removeprefix("torch."),
        adapter_parameters=values,
        adapter_bytes=values * dtype.itemsize,
        head_parameters={
            kind: sum(head_parameters(replace(config, head=kind), i, o) for i, o in groups) for kind in HEAD_KINDS
        },
        scan=_scan(model, kinds, projections),
    )


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no config; expected a causal language model of transformers")
    return config.get_text_config()


def _config(kind: str, rank: int, context_size: int, bottleneck: int, **options: Any) -> HyperNetworkConfig:
    return HyperNetworkConfig(head=kind, rank=rank, context_size=context_size, head_bottleneck=bottleneck, **options)


# --- the plan ----------------------------------------------------------------------------------------------


def active_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters of a base, and those that one token uses in matrix products.

    Experts count by their share per token. An embedding table is looked up, not multiplied, so it counts only where
    it is the output layer too.

    Raises:
        ModelError: Experts in a model whose configuration does not say how many a token uses.
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
    config = _text_config(model)
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
    """The deepest encoder, then trunk, with which a whole hypernetwork stays below the limit."""
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
    kinds = "; ".join(f"{h.kind} ({_millions(h.heads)}), which gives up: {h.gives_up}" for h in below)
    rest = heads[0].parameters - heads[0].heads
    return (
        start + f"Heads below {_millions(limit)}: {kinds}. Encoder, trunk, embeddings and static LoRA add "
        f"{_millions(rest)} to any kind. "
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
    """Count what a hypernetwork for a model takes, for each kind of head; nothing is run but on the meta device.

    Args:
        model: A causal language model of transformers; the meta device is enough.
        rank: Rank of the adapters.
        context_size: Width of context and features.
        dtype: Dtype of the adapters.
        head_bottleneck: Inner width of a ``lowrank`` head.
        encoder_layers: Layers of the prompt encoder.
        trunk_layers: Layers of the generator's trunk.
        batch: How many adapters are in use at a time.
        prompt_tokens: Length of a prompt.
        limit: The heads' parameters are held against this.
        roles: As for ``find_projections``.
        layouts: As for ``find_projections``.

    Raises:
        ProjectionError: As for :func:`describe_targets`.
        ModelError: As for :func:`active_parameters`.
        ConfigError: A size that is not above 0, or a context size that is no multiple of the encoder's heads.
    """
    targets = describe_targets(
        model, rank, context_size, dtype=dtype, head_bottleneck=head_bottleneck, roles=roles, layouts=layouts
    )
    total, active = active_parameters(model)
    plans, encoder_flops = [], 0
    configs = [
        _config(
            kind, rank, context_size, head_bottleneck,
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

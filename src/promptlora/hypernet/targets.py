"""The targets of a hypernetwork for a model: its projections by shape, and what a search by module name would miss.

Everything is read on the meta device from names, shapes and the configuration, so a model of 80 billion parameters
takes no memory. This file knows nothing of the source of models, or of the cost of a hypernetwork; see ``plan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from promptlora.errors import ModelError
from promptlora.hypernet.config import HEAD_KINDS, HyperNetworkConfig
from promptlora.hypernet.heads import head_parameters
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


@dataclass(frozen=True, kw_only=True)
class ShapeTargets:
    """The projections of one shape: their number and kinds (``"DeltaNet q, k"``)."""

    in_features: int
    out_features: int
    count: int
    which: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of a search for ``nn.Linear`` modules named q_proj, k_proj, v_proj and o_proj.

    Attributes:
        found: The number of modules with such a name in the whole model.
        missed: The number of projections that are in none of these modules.
        missed_which: The missed projections by kind and role, with counts.
        mixed: The number of found modules whose output also holds something else, such as a gate. An adapter matched by
            module name would change that too.
        foreign: The number of found modules outside the causal language model.
    """

    found: int
    missed: int
    missed_which: str
    mixed: int
    foreign: int


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The projections of a model that a hypernetwork generates a LoRA for.

    Attributes:
        model: Class of the model.
        model_type: The model type in its configuration.
        hidden_size: Width of its hidden states.
        projections: All projections, in layer order.
        shapes: The projections by shape, in order of first appearance.
        modules: The number of physical modules that contain the projections.
        others: Other parts, with their counts; they get an adapter only if their role is requested.
        rank: Rank of the adapters.
        context_size: Width of the features that enter the heads.
        dtype: Dtype of an adapter.
        adapter_parameters: The number of values of one adapter.
        adapter_bytes: Bytes of one adapter in ``dtype``.
        head_parameters: Parameters of all heads, by kind.
        scan: The result of a search by module name.
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
        """Convert to plain values for JSON, with the number and names of the projections."""
        values = {**asdict(self), "count": len(self.projections)}
        values["projections"] = [p.name for p in self.projections]
        return values


def _which(kinds: dict[str, str], projections: Sequence[Projection], *, counts: bool = False) -> str:
    """A text such as ``"DeltaNet v and attention q"``; with counts, ``"DeltaNet q 36, k 36"``."""
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
    """List the projections that a hypernetwork would adapt in a model; the model may be on the meta device.

    Args:
        model: A causal language model of transformers.
        rank: Rank of the adapters.
        context_size: Width of the features that enter the heads.
        dtype: Dtype of an adapter.
        head_bottleneck: Inner width of a ``lowrank`` head.
        roles: See ``find_projections``.
        layouts: See ``find_projections``.

    Raises:
        ProjectionError: The model does not have a role, or has an unknown attention class.
        ConfigError: A rank, width or bottleneck is not above 0.
    """
    config = HyperNetworkConfig(rank=rank, context_size=context_size, head_bottleneck=head_bottleneck)
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
    text = text_config(model)
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


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's language model part.

    Raises:
        ModelError: The model has no configuration.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no config; expected a causal language model of transformers")
    return config.get_text_config()

"""Where a causal language model keeps its attention projections q, k, v and o.

A ``Projection`` is *logical*: it names one of q, k, v, o of one layer, the physical module that computes
it, and, where that module is fused, which rows of the module's output belong to it. This file only looks
at module names and shapes, so it works on the meta device; it knows nothing of LoRA or hooks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from promptlora.errors import ProjectionError

ROLES = ("q", "k", "v", "o")

# Parts of a multimodal model that are not its causal language model.
_NOT_CAUSAL = frozenset(
    {
        "vision_tower",
        "vision_model",
        "visual",
        "vision_encoder",
        "image_encoder",
        "audio_tower",
        "audio_model",
        "audio_encoder",
        "speech_encoder",
        "multi_modal_projector",
        "encoder",
    }
)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One logical attention projection of one layer.

    Attributes:
        name: Logical dotted name, ends in ``q_proj``, ``k_proj``, ``v_proj`` or ``o_proj``.
        module: Dotted name of the physical module that computes it.
        role: ``"q"``, ``"k"``, ``"v"`` or ``"o"``.
        in_features: Width of the input of the projection.
        out_features: Width of its output (of the logical part alone).
        rows: None when the whole output is this projection; else the half-open spans
            ``(start, stop)`` of the physical output that are it, in logical order.
    """

    name: str
    module: str
    role: str
    in_features: int
    out_features: int
    rows: tuple[tuple[int, int], ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(in_features, out_features)``."""
        return (self.in_features, self.out_features)

    def row_index(self) -> Tensor:
        """The rows of the physical output, an int64 tensor ``[out_features]``."""
        if self.rows is None:
            return torch.arange(self.out_features)
        return torch.cat([torch.arange(start, stop) for start, stop in self.rows])


def module_shape(module: nn.Module) -> tuple[int, int] | None:
    """``(in_features, out_features)`` of a Linear-like module or a GPT-2 Conv1D; None for any other."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if hasattr(module, "nx") and hasattr(module, "nf"):  # transformers' Conv1D keeps its weight as [in, out]
        return int(module.nx), int(module.nf)  # type: ignore[arg-type]
    return None


def _separate(name: str, modules: dict[str, nn.Module]) -> list[Projection]:
    """Projections of an attention block that keeps q, k, v and o in modules of their own."""
    found = []
    for role in ROLES:
        full = f"{name}.{role}_proj"
        shape = module_shape(modules[full]) if full in modules else None
        if shape is not None:
            found.append(Projection(name=full, module=full, role=role, in_features=shape[0], out_features=shape[1]))
    return found


def _gpt2(name: str, modules: dict[str, nn.Module]) -> list[Projection]:
    """GPT-2: one Conv1D ``c_attn`` whose output is q | k | v, contiguous; the output projection is ``c_proj``."""
    fused, output = module_shape(modules[f"{name}.c_attn"]), module_shape(modules[f"{name}.c_proj"])
    if fused is None or output is None or fused[1] != 3 * output[0]:
        raise ProjectionError(
            f"{name}: c_attn {fused} and c_proj {output} are not GPT-2's layout (c_attn out = 3 x c_proj in); "
            "this model's attention is not known to promptlora"
        )
    width = output[0]
    found = [
        Projection(
            name=f"{name}.{role}_proj",
            module=f"{name}.c_attn",
            role=role,
            in_features=fused[0],
            out_features=width,
            rows=((i * width, (i + 1) * width),),
        )
        for i, role in enumerate(("q", "k", "v"))
    ]
    found.append(
        Projection(
            name=f"{name}.o_proj",
            module=f"{name}.c_proj",
            role="o",
            in_features=output[0],
            out_features=output[1],
        )
    )
    return found


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"[.]", name)]


def find_projections(model: nn.Module, roles: Sequence[str] = ROLES) -> list[Projection]:
    """Find every attention projection of a causal language model.

    Parts that are not the causal model (vision and audio towers, encoders) are left out. Works on the
    meta device: only names and shapes are read.

    Args:
        model: A causal language model.
        roles: Which of ``"q"``, ``"k"``, ``"v"``, ``"o"`` to return.

    Returns:
        The projections in layer order, and within a layer in the order q, k, v, o.

    Raises:
        ProjectionError: An unknown role, or a model in which no projection was found.
    """
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ProjectionError(f"roles={list(roles)}: {unknown[0]!r} is not a role; expected some of q, k, v, o")
    modules = dict(model.named_modules())
    found: list[Projection] = []
    for name in modules:
        if not _NOT_CAUSAL.isdisjoint(name.split(".")):
            continue
        if f"{name}.q_proj" in modules and f"{name}.k_proj" in modules:
            found += _separate(name, modules)
        elif type(modules[name]).__name__ == "GPT2Attention":
            found += _gpt2(name, modules)
    found = [p for p in found if p.role in roles]
    if not found:
        raise ProjectionError(
            f"{type(model).__name__}: no attention projection was found; expected modules named q_proj, k_proj, "
            "v_proj, o_proj or GPT-2's c_attn; other fused layouts are not supported yet"
        )
    return sorted(found, key=lambda p: (_natural(p.name.rpartition(".")[0]), ROLES.index(p.role)))


def group_by_shape(projections: Iterable[Projection]) -> dict[tuple[int, int], list[Projection]]:
    """Group projections by ``(in_features, out_features)``, in order of first appearance."""
    groups: dict[tuple[int, int], list[Projection]] = {}
    for projection in projections:
        groups.setdefault(projection.shape, []).append(projection)
    return groups

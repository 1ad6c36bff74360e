"""Finds the attention projections q, k, v and o of a causal language model.

A ``Projection`` is *logical*: it names one of q, k, v and o of one layer and the physical module that computes it. If
that module is fused, the projection also names the rows of the module's output that belong to it. This file walks a
model with the table of :mod:`promptlora.projections.layouts`. It reads only names, classes and shapes, so it works on
the meta device. It knows nothing of LoRA or hooks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from promptlora.errors import ProjectionError
from promptlora.projections.layouts import LAYOUTS, Layout, Source

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
        "embed_tokens_extend",
        "encoder",
    }
)

# An attention block of an unknown class is recognised by the name of its class or of a module in it.
_ATTENTION_CLASS = re.compile(r"(Attention|Attn|DeltaNet|Retention|MLA)\d*$")
_PROJECTION_NAME = re.compile(
    r"([qkv]|qkv|kv|query|key|value|query_key_value)(_proj|_lin)?|q_b_proj|kv_b_proj|in_proj_qkvz?|c_attn|"
    r"[Ww]_?(q|k|v|qkv)|project_[qkv]"
)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One logical attention projection of one layer.

    Attributes:
        name: Logical dotted name. It ends in ``q_proj``, ``k_proj``, ``v_proj`` or ``o_proj``; the name of any other
            requested part ends in its role and ``_proj``.
        module: Dotted name of the physical module that computes the projection.
        role: ``"q"``, ``"k"``, ``"v"`` or ``"o"``, or the role of another requested part.
        in_features: Width of the projection's input.
        out_features: Width of the projection's output (the logical part only).
        rows: The half-open spans ``(start, stop)`` of the physical output that form this projection, in logical order;
            None when the whole output is this projection.
        module_out_features: Width of the physical output; exporting a fused module needs it.
    """

    name: str
    module: str
    role: str
    in_features: int
    out_features: int
    rows: tuple[tuple[int, int], ...] | None = None
    module_out_features: int | None = field(default=None, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """``(in_features, out_features)``."""
        return (self.in_features, self.out_features)

    def row_index(self) -> Tensor:
        """The rows of the physical output that form this projection, as an int64 tensor ``[out_features]``."""
        if self.rows is None:
            return torch.arange(self.out_features)
        return torch.cat([torch.arange(start, stop) for start, stop in self.rows])


@dataclass(frozen=True, kw_only=True)
class Block:
    """One attention block of a model, and its layout."""

    name: str
    module: nn.Module
    layout: Layout


def module_shape(module: nn.Module) -> tuple[int, int] | None:
    """``(in_features, out_features)`` of a Linear-like module or a GPT-2 Conv1D; None for any other."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if hasattr(module, "nx") and hasattr(module, "nf"):  # transformers' Conv1D keeps its weight as [in, out]
        return int(module.nx), int(module.nf)  # type: ignore[arg-type]
    return None


# --- blocks ------------------------------------------------------------------------------------------------


def _layout_of(module: nn.Module, table: dict[str, Layout]) -> Layout | None:
    """The layout of a module's class; a subclass that does not override ``forward`` has the layout of its base class."""
    for kind in type(module).__mro__:
        if kind.__name__ in table:
            return table[kind.__name__]
        if "forward" in vars(kind):
            return None
    return None


def _holds_weights(name: str, model: nn.Module, known: set[str]) -> bool:
    """Whether a module has a matrix outside the known blocks that it contains."""
    for inner, module in model.named_modules(prefix=name):
        if any(inner == block or inner.startswith(f"{block}.") for block in known):
            continue
        if module_shape(module) or any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            return True
    return False


def _refusal(name: str, module: nn.Module) -> ProjectionError:
    kind = type(module).__name__
    inside = [(n, module_shape(m)) for n, m in module.named_modules() if module_shape(m)]
    listing = ", ".join(f"{n} {shape}" for n, shape in inside[:8]) or "no Linear module"
    plain = {"q_proj", "k_proj", "v_proj", "o_proj"} == {n for n, _ in inside}
    entry = (
        f'separate("{kind}") if none of them also computes a gate'
        if plain
        else f'Layout(attention="{kind}", sources=(Source(module="qkv", parts=("q", "k", "v"), sizes=lambda block: '
        '(repeats, (q_width, k_width, v_width))), Source(module="out", parts=("o",))))'
    )
    return ProjectionError(
        f"{name}: {kind} is not an attention class that promptlora knows, and a layout is never guessed; it holds "
        f"{listing}; describe it: find_projections(model, layouts=({entry},)), with Layout, Source and separate from "
        "promptlora.projections"
    )


def find_blocks(model: nn.Module, layouts: Sequence[Layout] = ()) -> list[Block]:
    """Find every attention block of a causal language model, in model order.

    Args:
        model: A causal language model, on any device.
        layouts: Additional table entries. An entry for a class that is already in the table replaces it.

    Raises:
        ProjectionError: An attention block of an unknown class; the message says how to describe it.
    """
    table = {layout.attention: layout for layout in (*LAYOUTS, *layouts)}
    blocks: dict[str, Block] = {}
    suspects: list[str] = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        parts = name.split(".")
        if not _NOT_CAUSAL.isdisjoint(parts):
            continue
        if any(".".join(parts[:i]) in blocks for i in range(1, len(parts))):
            continue
        layout = _layout_of(module, table)
        if layout is not None:
            blocks[name] = Block(name=name, module=module, layout=layout)
            continue
        named = any(_PROJECTION_NAME.fullmatch(n) and module_shape(child) for n, child in module.named_children())
        if named or _ATTENTION_CLASS.search(type(module).__name__):
            suspects.append(name)
    known = set(blocks)
    for name in suspects:
        if not isinstance(modules[name], nn.ModuleList) and _holds_weights(name, modules[name], known):
            raise _refusal(name, modules[name])
    return list(blocks.values())


# --- projections -------------------------------------------------------------------------------------------


def _spans(repeats: int, widths: tuple[int, ...], part: int) -> tuple[tuple[int, int], ...]:
    """The rows of one part, in as few spans as possible."""
    stride, before = sum(widths), sum(widths[:part])
    spans: list[tuple[int, int]] = []
    for repeat in range(repeats):
        start, stop = repeat * stride + before, repeat * stride + before + widths[part]
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return tuple(spans)


def _source_projections(block: Block, source: Source) -> Iterator[Projection]:
    children = dict(block.module.named_modules())
    name = next((n for n in source.names if n in children), None)
    if name is None:
        if source.optional:
            return
        raise ProjectionError(
            f"{block.name}: {type(block.module).__name__} has no {' or '.join(source.names)}; expected "
            f"{block.layout}; pass its own Layout in find_projections(model, layouts=(…,))"
        )
    shape = module_shape(children[name])
    if shape is None:
        raise ProjectionError(
            f"{block.name}.{name}: {type(children[name]).__name__} has no in_features and out_features; expected a "
            f"Linear-like module"
        )
    repeats, widths = (1, (shape[1],)) if source.sizes is None else source.sizes(block.module)
    if len(widths) != len(source.parts) or repeats * sum(widths) != shape[1]:
        raise ProjectionError(
            f"{block.name}.{name}: its output has {shape[1]} values; expected {repeats} x {list(widths)} for "
            f"{' | '.join(source.parts)}; pass its own Layout in find_projections(model, layouts=(…,))"
        )
    for i, role in enumerate(source.parts):
        rows = _spans(repeats, widths, i)
        yield Projection(
            name=f"{block.name}.{role}_proj".lstrip("."),
            module=f"{block.name}.{name}".lstrip("."),
            role=role,
            in_features=shape[0],
            out_features=repeats * widths[i],
            rows=None if rows == ((0, shape[1]),) else rows,
            module_out_features=shape[1],
        )


def block_projections(block: Block) -> list[Projection]:
    """All parts of one block: q, k, v and o first, then the others in layout order.

    Raises:
        ProjectionError: The block does not match its layout.
    """
    found = [p for source in block.layout.sources for p in _source_projections(block, source)]
    return sorted(found, key=lambda p: ROLES.index(p.role) if p.role in ROLES else len(ROLES))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"[.]", name)]


def find_projections(
    model: nn.Module, roles: Sequence[str] = ROLES, layouts: Sequence[Layout] = ()
) -> list[Projection]:
    """Find every attention projection of a causal language model.

    Parts outside the causal language model (vision and audio towers, encoders) are skipped. The function works on the
    meta device, because it reads only names, classes and shapes.

    Args:
        model: A causal language model.
        roles: The roles to return: ``"q"``, ``"k"``, ``"v"``, ``"o"``, and any other part that the model's layout
            names, such as ``"gate"`` of a gated q_proj or ``"z"``, ``"b"``, ``"a"`` of a DeltaNet.
        layouts: Layouts of attention classes that ``promptlora.projections.LAYOUTS`` lacks. A layout for a class that
            is already in the table replaces the table's entry.

    Returns:
        The projections in layer order. Within a layer the order is q, k, v, o, then the others.

    Raises:
        ProjectionError: The model does not have a requested role, it has an attention block of an unknown class, or no
            projection was found.
    """
    blocks = sorted(find_blocks(model, layouts), key=lambda block: _natural(block.name))
    if not blocks:
        raise ProjectionError(
            f"{type(model).__name__}: no attention block was found; expected a causal language model with attention "
            "(parts named encoder, vision_tower, audio_tower and their like are left out)"
        )
    known = dict.fromkeys((*ROLES, *(role for block in blocks for role in block.layout.roles)))
    for role in roles:
        if role not in known:
            why = " (a depthwise convolution is no matrix product)" if role.startswith("conv") else ""
            raise ProjectionError(
                f"roles={list(roles)}: {role!r} is not a role of {type(model).__name__}{why}; expected some of "
                f"{', '.join(known)}"
            )
    return [p for block in blocks for p in block_projections(block) if p.role in roles]


def layer_of(projection: Projection) -> int:
    """The layer of a projection, counted from 0: the first number in its dotted name.

    Raises:
        ProjectionError: The name contains no number.
    """
    for part in projection.name.split("."):
        if part.isdigit():
            return int(part)
    raise ProjectionError(
        f"{projection.name}: no layer number in this name; expected one such as model.layers.3.q_proj"
    )


def group_by_shape(projections: Iterable[Projection]) -> dict[tuple[int, int], list[Projection]]:
    """Group projections by ``(in_features, out_features)``, in order of first appearance."""
    groups: dict[tuple[int, int], list[Projection]] = {}
    for projection in projections:
        groups.setdefault(projection.shape, []).append(projection)
    return groups

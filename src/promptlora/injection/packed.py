"""The arithmetic of one hook call for a packed batch, in which all requests share one row of tokens.

transformers' continuous batching runs the model on ``[1, tokens]``: first the newest token of each running answer, then
the input tokens of each new request. Every request has an adapter in a numbered slot; slot 0 is the base. An adapter is
copied into its slot when its request joins, so a step copies no adapters. This file knows tensors and slots; it knows
nothing of modules, requests or ``LoRAWeights``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from promptlora.errors import LoRAError
from promptlora.injection.update import add_delta


@dataclass(frozen=True)
class Grid:
    """Single tokens arranged in one line per slot, so that a batched product reads the matrices without copying them.

    Attributes:
        lines: The number of lines; slots ``1 … lines`` have one line each, including slots without a token.
        gather: For each cell of the grid, the index of its token, int64 ``[lines * cells]``; an arbitrary token for an
            empty cell.
        cells: For each token with an adapter, the index of its cell, int64.
        tokens: The indices of these tokens, int64.
    """

    lines: int
    gather: Tensor
    cells: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class PackedPlan:
    """The slot of each token of a packed batch.

    Attributes:
        tokens: The number of tokens.
        slots: The slots of the leading requests, which have one token each.
        spans: ``(start, stop, slot)`` of the tokens of each other request that has an adapter.
        slots_at: ``slots`` as a tensor.
        grid: The leading tokens that have an adapter, for adapters in the free form; None if there are none.
    """

    tokens: int
    slots: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    slots_at: Tensor
    grid: Grid | None

    @property
    def empty(self) -> bool:
        """Whether no token has an adapter."""
        return not self.spans and not any(self.slots)


def plan_tokens(requests: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> PackedPlan:
    """Plan a packed batch from ``(tokens, slot)`` of each request, in the order of the requests."""
    singles = next((i for i, (count, _) in enumerate(requests) if count != 1), len(requests))
    slots = tuple(slot for _, slot in requests[:singles])
    spans, start = [], singles
    for count, slot in requests[singles:]:
        if slot:
            spans.append((start, start + count, slot))
        start += count
    slots_at = torch.tensor(slots, dtype=torch.int64, device=device)
    return PackedPlan(start, slots, tuple(spans), slots_at, _grid(slots, device))


def _grid(slots: tuple[int, ...], device: torch.device | str) -> Grid | None:
    members: dict[int, list[int]] = {}
    for token, slot in enumerate(slots):
        if slot:
            members.setdefault(slot, []).append(token)
    if not members:
        return None
    lines, width = max(members), max(map(len, members.values()))
    gather, cells, tokens = [0] * (lines * width), [], []
    for slot, own in members.items():
        for i, token in enumerate(own):
            cell = (slot - 1) * width + i
            gather[cell] = token
            cells.append(cell)
            tokens.append(token)
    index = (torch.tensor(each, dtype=torch.int64, device=device) for each in (gather, cells, tokens))
    return Grid(lines, *index)


@dataclass
class Matrices:
    """The matrices of one projection in all slots; every step uses the same object.

    Attributes:
        name: The projection, for messages.
        A: ``[slots, in, rank]``, or ``[in, rank]`` for shared factors.
        B: ``[slots, rank, out]``, or ``[rank, out]`` for shared factors.
        scaling: The factor of the update.
        C: The cores between shared factors, ``[slots, rank, rank]``, or their diagonals ``[slots, rank]``, with zeros
            in slot 0; None in the free form.
        columns: The columns of a fused output that belong to this projection, in order; None for the whole output.
        period: See ``Update``.
    """

    name: str
    A: Tensor
    B: Tensor
    scaling: float
    C: Tensor | None = None
    columns: tuple[tuple[int, int], ...] | None = None
    period: int = 0
    _cores: tuple[tuple[int, ...], Tensor] | None = field(default=None, repr=False)

    def cores(self, plan: PackedPlan) -> Tensor:
        """One core per leading token; they are gathered again only after the requests have changed."""
        if self._cores is None or self._cores[0] != plan.slots:
            assert self.C is not None
            self._cores = plan.slots, self.C.index_select(0, plan.slots_at)
        return self._cores[1]

    def changed(self) -> None:
        """Discard the gathered cores, because a slot has a new adapter."""
        self._cores = None


@dataclass(frozen=True)
class PackedUpdate:
    """The update that a hook adds for one projection in one step."""

    matrices: Matrices
    plan: PackedPlan

    @property
    def name(self) -> str:
        """The projection, for messages."""
        return self.matrices.name

    @property
    def spans(self) -> tuple[tuple[int, int], ...] | None:
        """The columns of a fused output; see ``Update``."""
        return self.matrices.columns


def add_packed(output: Tensor, x: Tensor, update: PackedUpdate, *, owned: bool = False) -> Tensor:
    """The output of a module with the update of each token's adapter added.

    Args:
        output: The module's output, ``[…, out]``.
        x: The module's input, ``[…, in]``. The leading dimensions, flattened, are the tokens of the plan.
        update: The update to add.
        owned: Whether ``output`` may be written to, because it is contiguous and nobody else holds it.

    Raises:
        LoRAError: The number of tokens differs from the plan, or the dtype differs from the adapters'.
    """
    own, plan = update.matrices, update.plan
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) != plan.tokens or x.dtype != own.A.dtype or output.dtype != own.A.dtype:
        raise LoRAError(
            f"{own.name}: input {list(x.shape)} in {x.dtype}; expected {plan.tokens} tokens in {own.A.dtype}, as the batch was packed"
        )
    if not owned:
        output = output.clone(memory_format=torch.contiguous_format)
    rows = output.view(plan.tokens, -1)
    one = own.columns is None or len(own.columns) == 1
    start, stop = own.columns[0] if own.columns is not None else (0, rows.shape[1])
    target = rows[:, start:stop] if one else rows.new_zeros(plan.tokens, own.B.shape[-1])
    scaling = own.scaling if one else 1.0  # with several column spans, add_delta below applies it
    if own.C is None:
        _add_own(target, flat, own, plan, scaling)
    else:
        target.addmm_(_mixed(flat @ own.A, own.C, own, plan), own.B, alpha=scaling)
    if not one:
        add_delta(rows, target, own.columns, own.period, own.scaling, owned=True)
    return output


def _add_own(target: Tensor, x: Tensor, own: Matrices, plan: PackedPlan, scaling: float) -> None:
    """Add the updates of adapters in the free form to ``target [tokens, out]``."""
    grid = plan.grid
    if grid is not None:
        cells = x.index_select(0, grid.gather).view(grid.lines, -1, x.shape[1])
        A, B = own.A[1 : grid.lines + 1], own.B[1 : grid.lines + 1]
        delta = torch.bmm(torch.bmm(cells, A), B).view(len(grid.gather), -1)
        target.index_add_(0, grid.tokens, delta.index_select(0, grid.cells), alpha=scaling)
    for start, stop, slot in plan.spans:
        target[start:stop].addmm_(x[start:stop] @ own.A[slot], own.B[slot], alpha=scaling)


def _mixed(hidden: Tensor, C: Tensor, own: Matrices, plan: PackedPlan) -> Tensor:
    """``x @ A @ C`` ``[tokens, rank]`` with the core of each token; 0 for tokens without an adapter."""
    singles = len(plan.slots)
    leading = hidden[:singles]
    if singles:
        cores = own.cores(plan)
        leading = leading * cores if C.ndim == 2 else torch.bmm(leading[:, None], cores)[:, 0]
    if singles == plan.tokens:
        return leading
    mixed = torch.zeros_like(hidden)
    mixed[:singles] = leading
    for start, stop, slot in plan.spans:
        mixed[start:stop] = hidden[start:stop] * C[slot] if C.ndim == 2 else hidden[start:stop] @ C[slot]
    return mixed

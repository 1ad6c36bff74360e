"""The arithmetic of one hook call: ``output + x @ A @ B * scaling``, with one A and B per row.

With shared factors the hook computes ``output + x @ A @ C @ B * scaling``. ``x @ A`` and ``… @ B`` are then one matrix
product each over the whole batch, and only the products with the core C ``[rank, rank]`` of each row are batched.
``C @ B`` is never formed.

Everything that does not depend on the input is computed once, in a :class:`RowPlan` and an :class:`Update`, when a LoRA
is activated. Decoding one token then costs two or three matrix products per hook and little else. This file knows
tensors; it knows nothing of modules or slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from promptlora.errors import LoRAError
from promptlora.lora.forms import take_rows


@dataclass(frozen=True)
class RowPlan:
    """How the rows of a batch share adapters: a grid of lines, where each line holds one adapter and some of its rows.

    Attributes:
        rows: The number of rows; the batch must be a multiple of it. Hooks read this number and not ``index``, because
            a compiled model would be recompiled for every new index.
        index: For each of these rows, its stored adapter.
        lines: For each line of the grid, its stored adapter.
        index_at: ``index`` as a tensor.
        lines_at: ``lines`` as a tensor.
        gather: For each cell of the grid, the index of its row, int64 ``[lines * cells]``; None when the rows are
            already in grid order and a reshape is enough.
        scatter: For each row, the index of its cell, int64 ``[rows]``; None when ``gather`` is None.
    """

    rows: int
    index: tuple[int, ...]
    lines: tuple[int, ...]
    index_at: Tensor
    lines_at: Tensor
    gather: Tensor | None = None
    scatter: Tensor | None = None

    def size(self) -> int:
        """The number of rows. Under compilation it is read from a shape; an int would become a graph constant."""
        return self.index_at.shape[0] if torch.compiler.is_compiling() else self.rows


def plan_rows(index: Sequence[int], device: torch.device | str = "cpu") -> RowPlan:
    """Plan a batch whose row i uses stored adapter ``index[i]``.

    If rows are grouped by adapter, with the same number of rows per adapter, no gather is needed. Otherwise rows are
    gathered into a grid whose width is the row count of the most used adapter. If that would waste more than half of
    the grid, an adapter with many rows gets several lines, so neither the grid nor the matrices more than double in
    size.
    """
    on_device = partial(torch.tensor, device=device)
    index = tuple(index)
    own: dict[int, list[int]] = {}  # the rows of each adapter, in order of first appearance
    for row, adapter in enumerate(index):
        own.setdefault(adapter, []).append(row)
    rows, cells = len(index), max(map(len, own.values()))
    if [row for of_one in own.values() for row in of_one] == list(range(rows)) and rows == cells * len(own):
        return RowPlan(rows, index, tuple(own), on_device(index), on_device(tuple(own)))
    if cells * len(own) > 2 * rows:
        cells = -(-rows // len(own))
    lines: list[int] = []
    gather: list[int] = []
    scatter = [0] * rows
    for adapter in sorted(own):  # in stored order, so that selecting all adapters needs no copy
        for start in range(0, len(own[adapter]), cells):
            some = own[adapter][start : start + cells]
            for cell, row in enumerate(some):
                scatter[row] = len(gather) + cell
            gather += some + [some[0]] * (cells - len(some))
            lines.append(adapter)
    return RowPlan(
        rows=rows,
        index=index,
        lines=tuple(lines),
        index_at=on_device(index),
        lines_at=on_device(lines),
        gather=on_device(gather),
        scatter=on_device(scatter),
    )


@dataclass(frozen=True)
class Update:
    """The update that a hook adds for one projection.

    Attributes:
        name: The projection, for messages.
        A: ``[lines, in, rank]``, or ``[in, rank]`` for a single line and for shared factors.
        B: ``[lines, rank, out]``, or ``[rank, out]`` for a single line and for shared factors.
        scaling: The factor of the update.
        plan: Which rows use which line.
        spans: The columns of a fused output that belong to this projection, in order; None for the whole output.
        period: The distance between spans if they repeat evenly over the whole output, else 0.
        C: The cores between shared factors, ``[n, rank, rank]``, or their diagonals ``[n, rank]``; None in the free
            form. The batch is divided into n equal consecutive parts with one core each.
    """

    name: str
    A: Tensor
    B: Tensor
    scaling: float
    plan: RowPlan
    spans: tuple[tuple[int, int], ...] | None = None
    period: int = 0
    C: Tensor | None = None


def make_update(
    name: str, A: Tensor, B: Tensor, scaling: float, plan: RowPlan, spans: tuple[tuple[int, int], ...] | None = None,
    width: int = 0, C: Tensor | None = None,
) -> Update:  # fmt: skip
    """Make an :class:`Update` from the stored A ``[adapters, in, rank]`` and B ``[adapters, rank, out]``.

    With shared factors the shapes are A ``[in, rank]`` and B ``[rank, out]``, and C holds the stored cores. If rows are
    not grouped by adapter, one core is copied per row. Copying ``rank * rank`` values is cheaper than gathering and
    scattering rows.

    Args:
        name: The projection.
        A: The stored A matrices.
        B: The stored B matrices.
        scaling: The factor of the update.
        plan: Which rows use which stored adapter.
        spans: The columns of a fused output; None for the whole output.
        width: The width of the fused output.
        C: Stored cores ``[adapters, rank, rank]`` or ``[adapters, rank]``.
    """
    period = 0 if spans is None else column_period(spans, width)
    if C is not None:
        grouped = plan.gather is None
        C = take_rows(C, plan.lines, plan.lines_at) if grouped else take_rows(C, plan.index, plan.index_at)
        return Update(name, A, B, scaling, plan, spans, period, C)
    A, B = (take_rows(matrix, plan.lines, plan.lines_at) for matrix in (A, B))
    if len(plan.lines) == 1:
        A, B = A[0], B[0]
    return Update(name, A, B, scaling, plan, spans, period)


def column_period(spans: tuple[tuple[int, int], ...], width: int) -> int:
    """The distance between spans of equal length that repeat evenly over all of ``width``; 0 if they do not."""
    first, stop = spans[0]
    period = width // len(spans)
    even = period * len(spans) == width and stop <= period
    return period if even and all(s == (first + i * period, stop + i * period) for i, s in enumerate(spans)) else 0


def add_update(output: Tensor, x: Tensor, update: Update, *, owned: bool = False) -> Tensor:
    """``output + x @ A @ B * scaling`` with one adapter per row; ``x @ A @ C @ B`` with shared factors.

    x is ``[batch, …, in]`` and output is ``[batch, …, out]``. The batch must be a multiple of the rows of the plan
    (beams and returned sequences are sample-major, and so are ``[batch * seq, in]`` tokens). For a whole output, the
    sum is one ``baddbmm`` whose alpha is the scaling. For a fused output, the update is added to the projection's
    columns in place, after a copy unless ``owned``.

    Args:
        output: The module's output.
        x: The module's input.
        update: The update to add.
        owned: Whether ``output`` may be written to, because it is contiguous and nobody else holds it.

    Raises:
        LoRAError: The batch is not a multiple of the rows, or the input has another dtype than the LoRA.
    """
    A, B, C = update.A, update.B, update.C
    if x.dtype != A.dtype or output.dtype != A.dtype:
        if x.dtype != A.dtype and not torch.is_autocast_enabled(x.device.type):
            raise LoRAError(f"{update.name}: the input is {x.dtype} and the LoRA {A.dtype}; use lora.to({x.dtype})")
        with torch.autocast(x.device.type, enabled=False):
            dtype = output.dtype
            C = None if C is None else C.to(dtype)
            return _add(output, x.to(dtype), A.to(dtype), B.to(dtype), C, update, owned)
    return _add(output, x, A, B, C, update, owned)


def _add(output: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor | None, update: Update, owned: bool) -> Tensor:
    plan, spans, scaling = update.plan, update.spans, update.scaling
    batch, rest = x.shape[0], x.shape[0] % plan.size()
    if rest or not batch or x.ndim < 2:
        raise LoRAError(
            f"{update.name}: a batch of {batch} rows (input {list(x.shape)}) with {plan.rows} adapter rows; expected a "
            f"multiple of {plan.rows}; pass adapter_index with one adapter for each row"
        )
    if spans is not None and not owned:  # the copy may be written to, even when gradients are needed
        output, owned = output.clone(memory_format=torch.contiguous_format), True
    if (plan.gather is None or A.ndim == 2) and (spans is None or len(spans) == 1):  # product and sum in one call
        target = output if spans is None else output[..., spans[0][0] : spans[0][1]]
        if A.ndim == 2:
            hidden = _hidden(x, A, C)
            if owned:
                target.view(-1, target.shape[-1]).addmm_(hidden, B, alpha=scaling)
                return output
            return torch.addmm(target.reshape(-1, target.shape[-1]), hidden, B, alpha=scaling).view(output.shape)
        shape = target.shape
        if batch != A.shape[0] or len(shape) != 3:
            x = x.reshape(A.shape[0], -1, x.shape[-1])
            target = target.view(A.shape[0], -1, shape[-1]) if owned else target.reshape(A.shape[0], -1, shape[-1])
        hidden = torch.bmm(x, A)
        if owned:
            target.baddbmm_(hidden, B, alpha=scaling)
            return output
        return torch.baddbmm(target, hidden, B, alpha=scaling).view(shape)
    return add_delta(output, _delta(x, A, B, C, plan), spans, update.period, scaling, owned)


def add_delta(
    output: Tensor, delta: Tensor, spans: tuple[tuple[int, int], ...] | None, period: int, scaling: float, owned: bool
) -> Tensor:
    """``output + delta * scaling`` in the columns of a projection.

    Args:
        output: ``[…, out]``; it is modified in place if ``spans`` is given.
        delta: The update, contiguous, with as many elements as the projection's output.
        spans: The columns of a fused output; None for the whole output.
        period: See :class:`Update`.
        scaling: The factor.
        owned: Whether an output without spans may be modified in place.
    """
    if spans is None:
        delta = delta.view(output.shape)
        return output.add_(delta, alpha=scaling) if owned else torch.add(output, delta, alpha=scaling)
    head = output.shape[:-1]
    if len(spans) == 1 or not period:
        delta, done = delta.view(*head, -1), 0
        for start, stop in spans:
            output[..., start:stop].add_(delta[..., done : done + stop - start], alpha=scaling)
            done += stop - start
        return output
    start, stop = spans[0]
    parts = output.view(*head, len(spans), period)[..., start:stop]
    parts.add_(delta.view(*head, len(spans), stop - start), alpha=scaling)
    return output


def _hidden(x: Tensor, A: Tensor, C: Tensor | None) -> Tensor:
    """``x @ A`` ``[tokens, rank]`` for a single A, or ``x @ A @ C`` with one C for each equal part of the batch."""
    hidden = x.reshape(-1, x.shape[-1]) @ A
    if C is None:
        return hidden
    if len(C) == 1:
        return hidden * C if C.ndim == 2 else hidden @ C[0]
    grid = hidden.view(len(C), -1, hidden.shape[1])
    mixed = grid * C[:, None] if C.ndim == 2 else torch.bmm(grid, C)
    return mixed.view(hidden.shape)


def _delta(x: Tensor, A: Tensor, B: Tensor, C: Tensor | None, plan: RowPlan) -> Tensor:
    """The unscaled update of each row, contiguous, with as many elements as the projection's output."""
    width = x.shape[-1]
    if A.ndim == 2:
        return _hidden(x, A, C) @ B
    if plan.gather is None or plan.scatter is None:
        return torch.bmm(torch.bmm(x.reshape(A.shape[0], -1, width), A), B)
    grid = x.reshape(plan.size(), -1, width).index_select(0, plan.gather)  # [cells, seq, in]
    delta = torch.bmm(torch.bmm(grid.view(A.shape[0], -1, width), A), B)
    return delta.view(grid.shape[0], -1, B.shape[-1]).index_select(0, plan.scatter)  # [rows, seq, out]

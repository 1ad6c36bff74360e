"""Adding LoRA updates to a frozen model by forward hooks, and taking them away again.

A hook adds ``x @ A @ B * scaling`` to the output of the module that computes a projection. Hooks are
installed once and read a slot that says which LoRA is on, so that compiled models and activation
checkpointing see what is meant. This file knows ``LoRAWeights`` and ``Projection``, and nothing of
hypernetworks or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from promptlora.errors import LoRAError
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, find_projections, module_shape

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]


@dataclass(frozen=True)
class RowPlan:
    """How the rows of a batch share adapters; made once per ``apply``, not once per token.

    Attributes:
        adapters: The number of stored adapters that are used, in stored order.
        used: Which stored adapters those are; None for all of them.
        rows: The number of rows that the batch is a multiple of.
        slots: For each row, its place in the padded ``[adapters, per_adapter]`` grid; None when the
            rows are already grouped by adapter, evenly and in order, so that a reshape is enough.
        per_adapter: Rows of the grid for each adapter.
    """

    adapters: int
    used: Tensor | None
    rows: int
    slots: Tensor | None
    per_adapter: int


def plan_rows(index: Sequence[int], stored: int, device: torch.device | str = "cpu") -> RowPlan:
    """Plan a batch whose row i uses stored adapter ``index[i]``."""
    used = sorted(set(index))
    place = {adapter: i for i, adapter in enumerate(used)}
    per_adapter = max(index.count(adapter) for adapter in used)
    grouped = list(index) == [adapter for adapter in used for _ in range(per_adapter)]
    slots = None
    if not grouped:
        seen = dict.fromkeys(used, 0)
        flat = []
        for adapter in index:
            flat.append(place[adapter] * per_adapter + seen[adapter])
            seen[adapter] += 1
        slots = torch.tensor(flat, device=device)
    return RowPlan(
        adapters=len(used),
        used=None if len(used) == stored else torch.tensor(used, device=device),
        rows=len(index),
        slots=slots,
        per_adapter=per_adapter,
    )


@dataclass(frozen=True)
class Update:
    """One projection's share of a hook: A ``[adapters, in, rank]``, B ``[adapters, rank, out]``, where, and how much."""

    A: Tensor
    B: Tensor
    scaling: float
    plan: RowPlan
    rows: tuple[tuple[int, int], ...] | None
    name: str


def add_update(output: Tensor, x: Tensor, update: Update) -> Tensor:
    """``output + x @ A @ B * scaling`` with each row's own adapter.

    x is ``[batch, …, in]`` and output ``[batch, …, out]``; the batch must be a multiple of the rows of
    the plan (beams and returned sequences are sample-major). The sum is one ``baddbmm``, whose alpha is
    the scaling; in place when no gradient is recorded.

    Raises:
        LoRAError: A batch that is no multiple of the rows, or an input of another dtype.
    """
    A, B, plan = update.A, update.B, update.plan
    batch = x.shape[0]
    repeat, rest = divmod(batch, plan.rows)
    if rest or not repeat:
        raise LoRAError(
            f"{update.name}: a batch of {batch} rows with {plan.rows} adapter rows; expected a multiple of "
            f"{plan.rows}; pass adapter_index with one adapter for each row"
        )
    if x.dtype != A.dtype and not torch.is_autocast_enabled(x.device.type):
        raise LoRAError(f"{update.name}: the input is {x.dtype} and the LoRA {A.dtype}; use lora.to({x.dtype})")
    out = output if update.rows is None else _take(output, update.rows)
    width_in, width_out = x.shape[-1], out.shape[-1]
    if plan.slots is None:
        grouped = x.reshape(plan.adapters, -1, width_in)
        base = out.reshape(plan.adapters, -1, width_out)
        if plan.adapters == 1:  # one GEMM for the whole batch
            added = _addmm(base[0], grouped[0] @ A[0], B[0], update.scaling)
        else:
            added = _baddbmm(base, torch.bmm(grouped, A), B, update.scaling)
        added = added.view(out.shape)
    else:
        sequence = x.reshape(plan.rows, -1, width_in)
        grid = sequence.new_zeros(plan.adapters * plan.per_adapter, sequence.shape[1], width_in)
        grid = grid.index_copy(0, plan.slots, sequence)
        delta = torch.bmm(torch.bmm(grid.view(plan.adapters, -1, width_in), A), B)
        delta = delta.view(plan.adapters * plan.per_adapter, -1, width_out).index_select(0, plan.slots)
        added = torch.add(out, delta.view(out.shape), alpha=update.scaling)
    return added if update.rows is None else _put(output, added, update.rows)


def _baddbmm(base: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    if torch.is_grad_enabled():
        return torch.baddbmm(base, left, right, alpha=scaling)
    return base.baddbmm_(left, right, alpha=scaling)


def _addmm(base: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    if torch.is_grad_enabled():
        return torch.addmm(base, left, right, alpha=scaling)
    return base.addmm_(left, right, alpha=scaling)


def _take(output: Tensor, rows: tuple[tuple[int, int], ...]) -> Tensor:
    """The rows of a fused output that are one projection, ``[batch, …, out]``."""
    if len(rows) == 1:
        return output[..., rows[0][0] : rows[0][1]].contiguous()
    return torch.cat([output[..., start:stop] for start, stop in rows], dim=-1)


def _put(output: Tensor, part: Tensor, rows: tuple[tuple[int, int], ...]) -> Tensor:
    """The fused output with the rows of one projection replaced by ``part``."""
    result = output.clone() if torch.is_grad_enabled() else output
    done = 0
    for start, stop in rows:
        result[..., start:stop] = part[..., done : done + stop - start]
        done += stop - start
    return result


def make_lora_hook(A: Float[Tensor, "d_in rank"], B: Float[Tensor, "rank d_out"], scaling: float = 1.0) -> Hook:
    """A forward hook that adds one LoRA to every row: ``output + x @ A @ B * scaling``.

    Raises:
        LoRAError: A and B that are not ``[in, rank]`` and ``[rank, out]``.
    """
    if A.ndim != 2 or B.ndim != 2:
        raise LoRAError(f"A {list(A.shape)}, B {list(B.shape)}; expected A [in, rank] and B [rank, out]")
    return make_batched_lora_hook(A[None], B[None], scaling)


def make_batched_lora_hook(
    A: Float[Tensor, "adapters d_in rank"], B: Float[Tensor, "adapters rank d_out"], scaling: float = 1.0
) -> Hook:
    """A forward hook that adds a LoRA of its own to each row of the batch.

    The same as ``output + einsum("bsi,bir,bro->bso", x, A, B) * scaling``; a batch that is a multiple of
    ``adapters`` is grouped sample-major, as beam search lays it out.

    Raises:
        LoRAError: A and B that do not fit together; in the hook, a batch that does not fit.
    """
    if A.ndim != 3 or B.ndim != 3 or A.shape[0] != B.shape[0] or A.shape[2] != B.shape[1]:
        raise LoRAError(
            f"A {list(A.shape)}, B {list(B.shape)}; expected A [adapters, in, rank] and B [adapters, rank, out]"
        )
    plan = plan_rows(range(A.shape[0]), A.shape[0])
    update = Update(A, B, scaling, plan, None, "hook")

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return add_update(output, args[0], update)

    return hook


class _Slot:
    """What the hook of one module adds at present; None is nothing: the base model."""

    __slots__ = ("updates",)

    def __init__(self) -> None:
        self.updates: tuple[Update, ...] | None = None


def _slot_hook(slot: _Slot) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        updates = slot.updates
        if updates is None:
            return output
        for update in updates:
            output = add_update(output, args[0], update)
        return output

    return hook


class HookBasedLoRAInjector:
    """Installs hooks on a model once, and switches LoRAs on and off.

    ``with injector.apply(lora): …`` is good for forward, backward and generate; nested uses restore what
    was on before; :meth:`remove` (or leaving ``with HookBasedLoRAInjector(model) as injector``) leaves the
    model bitwise as found.

    Args:
        model: The model; nothing of it is changed but the hooks.
        projections: The projections to hook; all of :func:`find_projections` by default.
    """

    def __init__(self, model: nn.Module, projections: Sequence[Projection] | None = None) -> None:
        self.model = model
        self.projections = tuple(find_projections(model) if projections is None else projections)
        self._by_name = {p.name: p for p in self.projections}
        modules = dict(model.named_modules())
        self._modules: dict[str, nn.Module] = {}
        for projection in self.projections:
            module = modules.get(projection.module)
            if module is None:
                raise LoRAError(f"{projection.module}: no such module in {type(model).__name__}")
            width = (module_shape(module) or (0, 0))[1]
            needed = projection.out_features if projection.rows is None else max(stop for _, stop in projection.rows)
            if (module_shape(module) or (0, 0))[0] != projection.in_features or width < needed:
                raise LoRAError(
                    f"{projection.name}: {projection.module} is {module_shape(module)} (in, out); expected in "
                    f"{projection.in_features} and out {needed}"
                )
            self._modules[projection.module] = module
        self._slots = {name: _Slot() for name in self._modules}
        self._names = {name: [p.name for p in self.projections if p.module == name] for name in self._modules}
        self._installed = ExitStack()
        with ExitStack() as stack:
            for name, module in self._modules.items():
                handle = module.register_forward_hook(_slot_hook(self._slots[name]))
                stack.callback(handle.remove)
            self._installed = stack.pop_all()

    def __enter__(self) -> HookBasedLoRAInjector:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off the model; harmless when called twice."""
        self._set(None)
        self._installed.close()

    # --- the slot --------------------------------------------------------------------------------------

    def _get(self) -> dict[str, tuple[Update, ...] | None]:
        return {name: slot.updates for name, slot in self._slots.items()}

    def _set(self, state: dict[str, tuple[Update, ...] | None] | None) -> None:
        for name, slot in self._slots.items():
            slot.updates = None if state is None else state.get(name)

    @contextmanager
    def _holding(self, state: dict[str, tuple[Update, ...] | None] | None) -> Iterator[None]:
        before = self._get()
        self._set(state)
        try:
            yield
        finally:
            self._set(before)

    @contextmanager
    def apply(self, lora: LoRAWeights | None, adapter_index: Sequence[int] | None = None) -> Iterator[None]:
        """Switch a LoRA on for what runs inside ``with``; None switches to the base model.

        Args:
            lora: One adapter for all rows, or one for each row.
            adapter_index: Row i of the batch uses adapter ``adapter_index[i]`` of ``lora``; by default row i
                uses adapter i. A batch of a multiple of these rows is taken as sample-major.

        Raises:
            LoRAError: An unknown projection, a wrong shape, dtype or device; the message names it.
        """
        state = None
        if lora is not None:
            if adapter_index is not None:
                lora = lora.select(list(adapter_index))
            state = self._updates(lora)
        with self._holding(state):
            yield

    def _updates(self, lora: LoRAWeights) -> dict[str, tuple[Update, ...] | None]:
        if not lora.adapters:
            raise LoRAError("the LoRA has no adapter: expected at least one; select some rows")
        plans: dict[torch.device, RowPlan] = {}
        state: dict[str, list[Update]] = {}
        for name, (A, B) in lora.stored.items():
            projection = self._by_name.get(name)
            if projection is None:
                raise LoRAError(
                    f"{name}: no such projection in the model; it has {len(self._by_name)}, first "
                    f"{next(iter(self._by_name))}; was this LoRA made for another model?"
                )
            if A.shape[1] != projection.in_features or B.shape[2] != projection.out_features:
                raise LoRAError(
                    f"{name}: A {list(A.shape)} and B {list(B.shape)}; expected in {projection.in_features} and out "
                    f"{projection.out_features}"
                )
            weight = getattr(self._modules[projection.module], "weight", None)
            if isinstance(weight, Tensor):
                if weight.device != A.device:
                    raise LoRAError(f"{name}: the LoRA is on {A.device} and the model on {weight.device}; use lora.to")
                if (
                    weight.is_floating_point()
                    and weight.dtype != A.dtype
                    and not torch.is_autocast_enabled(A.device.type)
                ):
                    raise LoRAError(f"{name}: the LoRA is {A.dtype} and the model {weight.dtype}; use lora.to")
            plan = plans.get(A.device)
            if plan is None:
                plan = plans[A.device] = plan_rows(lora.index, lora.stored_adapters, A.device)
            if plan.used is not None:
                A, B = _rows_of(A, plan.used), _rows_of(B, plan.used)
            update = Update(A, B, lora.scaling, plan, projection.rows, name)
            state.setdefault(projection.module, []).append(update)
        return {module: tuple(updates) for module, updates in state.items()}

    # --- activation checkpointing ----------------------------------------------------------------------

    def checkpoint_context(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The ``context_fn`` of ``torch.utils.checkpoint``: recomputation sees the LoRA of its own forward.

        Without it, a layer recomputed in backward would read whatever is in the slot at that time.
        """
        return ExitStack(), self._holding(self._get())

    def enable_checkpointing(self) -> None:
        """Switch activation checkpointing on in the model, non-reentrant, with :meth:`checkpoint_context`.

        The model must be in training mode for checkpointing to have an effect.

        Raises:
            LoRAError: A model without activation checkpointing.
        """
        enable = getattr(self.model, "activation_checkpointing_enable", None) or getattr(
            self.model, "gradient_checkpointing_enable", None
        )
        if enable is None:
            raise LoRAError(f"{type(self.model).__name__} has no activation checkpointing; train without it")
        enable({"use_reentrant": False, "context_fn": self.checkpoint_context})


def _rows_of(matrix: Tensor, used: Tensor) -> Tensor:
    """The used adapters of a stored matrix: a view where they are a run, else gathered, each once."""
    low, high = int(used[0]), int(used[-1])
    if high - low + 1 == len(used):
        return matrix[low : high + 1]
    return matrix.index_select(0, used)

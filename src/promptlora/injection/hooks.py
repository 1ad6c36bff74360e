"""The forward hooks: two that can be registered on any module, and one that an injector installs.

A hook adds updates to the output of its module. The injector's hook reads them from a slot that the injector fills.
This file knows modules and updates; it knows nothing of whole models or of ``LoRAWeights``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from promptlora.errors import LoRAError
from promptlora.injection.owner import Owner
from promptlora.injection.packed import PackedUpdate, add_packed
from promptlora.injection.update import Update, add_update, make_update, plan_rows

Hook = Callable[..., Any]
Updates = tuple[Update, ...] | tuple[PackedUpdate, ...]

_LINEAR_FORWARD = nn.Linear.forward
_GLOBAL_HOOKS = nn.modules.module._global_forward_hooks
_is_batched = torch._C._functorch.is_batchedtensor


def make_lora_hook(A: Float[Tensor, "d_in rank"], B: Float[Tensor, "rank d_out"], scaling: float = 1.0) -> Hook:
    """A forward hook that adds one LoRA to every row: ``output + x @ A @ B * scaling``.

    Register it with ``module.register_forward_hook(hook)``.

    Raises:
        LoRAError: A is not ``[in, rank]`` or B is not ``[rank, out]``.
    """
    if A.ndim != 2 or B.ndim != 2:
        raise LoRAError(f"A {list(A.shape)}, B {list(B.shape)}; expected A [in, rank] and B [rank, out]")
    return make_batched_lora_hook(A[None], B[None], scaling)


def make_batched_lora_hook(
    A: Float[Tensor, "adapters d_in rank"], B: Float[Tensor, "adapters rank d_out"], scaling: float = 1.0
) -> Hook:
    """A forward hook that adds a different LoRA to each row of the batch.

    The hook computes ``output + einsum("bsi,bir,bro->bso", x, A, B) * scaling``. A batch may be a multiple of
    ``adapters``; its rows are then grouped sample-major, as in beam search.

    Raises:
        LoRAError: A and B are inconsistent. The hook raises it if the batch is not a multiple of ``adapters``.
    """
    if A.ndim != 3 or B.ndim != 3 or A.shape[0] != B.shape[0] or A.shape[2] != B.shape[1] or not A.shape[0]:
        raise LoRAError(
            f"A {list(A.shape)}, B {list(B.shape)}; expected A [adapters, in, rank] and B [adapters, rank, out], "
            "at least one adapter"
        )
    updates = (make_update("hook", A, B, scaling, plan_rows(range(A.shape[0]))),)

    def hook(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        kwargs = rest[0] if len(rest) == 2 else {}  # registered with or without with_kwargs
        return _added(rest[-1], _input(args, kwargs, "hook"), updates, owned=False)

    return hook


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Tensor:
    """The input of a module: its first argument, even if it was passed by keyword."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(x, Tensor):
        raise LoRAError(f"{name}: called with {type(x).__name__}; expected the input tensor as the first argument")
    return x


def _added(output: Any, x: Tensor, updates: Updates, owned: bool) -> Any:
    """The output of a module with the updates added; if it is a tuple, they are added to the first element."""
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (_added(output[0], x, updates, owned), *output[1:])
    if not isinstance(output, Tensor):
        raise LoRAError(f"{updates[0].name}: the module returned {type(output).__name__}; expected a tensor")
    if _several(updates[0]) and _is_batched(x):
        first = updates[0]
        count = len(set(first.plan.slots)) if isinstance(first, PackedUpdate) else len(first.plan.lines)
        raise LoRAError(
            f"{first.name}: called under torch.func.vmap with {count} adapters. vmap hides the "
            "batch, so rows cannot be told apart. Expected a batch as the first dimension. Fix: call the model on the "
            "whole batch, or apply one adapter"
        )
    for update in updates:
        if isinstance(update, PackedUpdate):
            output, owned = add_packed(output, x, update, owned=owned), True
            continue
        output = add_update(output, x, update, owned=owned)
        owned = owned or update.spans is not None  # add_update made a copy
    return output


def _several(update: Update | PackedUpdate) -> bool:
    """Whether rows use different adapters. It is derived from shapes, which torch.compile can keep dynamic."""
    if isinstance(update, PackedUpdate):
        return True
    return update.A.ndim == 3 or (update.C is not None and update.C.shape[0] > 1)


class Slot:
    """The updates that the hook of one module currently adds.

    Attributes:
        updates: The updates to add; None for the base model.
        owner: The owner that enabled the updates; nobody else may run the module until they are disabled.
        plain: Whether the module returns a new tensor without other references; see :func:`is_plain`.
    """

    __slots__ = ("owner", "plain", "updates")

    def __init__(self) -> None:
        self.updates: Updates | None = None
        self.owner: Owner | None = None
        self.plain = False


# Slots by number. If a compiled model reached a slot through the hook of its module, torch.compile would treat the
# shapes of the matrices as properties of the module. It never makes those dynamic, so it would recompile for each
# number of adapters. A global dictionary is not a property of a module.
_SLOTS: dict[int, Slot] = {}
_numbers = count()


class SlotHook:
    """The permanent hook of one module. It works only on the model that it was installed on; copies do nothing."""

    def __init__(self, name: str) -> None:
        self.name, self.number, self.slot = name, next(_numbers), Slot()
        _SLOTS[self.number] = self.slot

    def close(self) -> None:
        """Release the slot; calling it twice is safe."""
        self.slot.updates = self.slot.owner = None
        _SLOTS.pop(self.number, None)

    def __del__(self, forget: Callable[..., Any] = _SLOTS.pop) -> None:
        forget(self.number, None)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        """Return the module's output with the slot's updates added."""
        output = rest[-1]  # rest is (kwargs, output), or (output,) if a library re-registered the hook without kwargs
        if torch.compiler.is_compiling():
            slot = _SLOTS.get(self.number)
            updates, owned = None if slot is None else slot.updates, False
        else:
            slot = self.slot
            updates = slot.updates
            if updates is None:
                return output
            owner = slot.owner
            if owner is not None and not owner.is_caller():
                self._refuse(owner)
            owned = (
                slot.plain
                and not torch.is_grad_enabled()
                and not _GLOBAL_HOOKS
                and len(module._forward_hooks) == 1
                and output.is_contiguous()
            )
        if updates is None:
            return output
        x = args[0] if args else _input(args, rest[0] if len(rest) == 2 else {}, updates[0].name)
        return _added(output, x, updates, owned)

    def _refuse(self, owner: Owner) -> None:
        raise LoRAError(
            f"{self.name}: {Owner.current()} runs the model while a LoRA of {owner} is on. Expected the owner alone to run it. "
            "Fix: enter apply in the thread that runs the model, or use PromptLoRA, whose calls wait their turn"
        )

    def _copied(self) -> InertHook:
        if self.slot.updates is not None:
            raise LoRAError(
                f"{self.name}: the model is copied or pickled while a LoRA is on, and the copy would be the base. Expected no "
                "LoRA to be on. Fix: copy the model outside of apply"
            )
        return InertHook()

    def __deepcopy__(self, memo: dict[int, Any]) -> InertHook:
        return self._copied()

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        self._copied()
        return InertHook, ()


class InertHook:
    """Replaces an injector's hook in a copy or a pickle of a model; it does nothing."""

    def __call__(self, *_: Any) -> None:
        """Leave the module's output unchanged."""


def is_plain(module: nn.Module) -> bool:
    """Whether a module's output is a new tensor without other references, as that of a plain Linear or Conv1D is."""
    forward = type(module).forward
    plain = forward is _LINEAR_FORWARD or (
        type(module).__name__ == "Conv1D" and forward.__module__ == "transformers.pytorch_utils"
    )
    return plain and "forward" not in vars(module)

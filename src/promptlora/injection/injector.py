"""Installs hooks on a frozen model, fills the slots that they read, and controls who may fill the slots.

Hooks are installed once and read a slot that contains the active LoRA, so compiled models and activation checkpointing
use the correct one. This file knows modules, ``LoRAWeights`` and ``Projection``; the hooks are in ``hooks``, the
arithmetic in ``update``, owners and turns in ``owner``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from promptlora.errors import LoRAError
from promptlora.injection.checkpointing import enable_checkpointing, refuse_foreign_checkpointing
from promptlora.injection.hooks import SlotHook, Updates, is_plain
from promptlora.injection.owner import Owner, turn_of
from promptlora.injection.packed import PackedPlan
from promptlora.injection.slots import AdapterSlots, Place
from promptlora.injection.update import RowPlan, Update, make_update, plan_rows
from promptlora.injection.uses import Uses
from promptlora.lora import LoRAWeights, Shared, row_number
from promptlora.lora.forms import Form
from promptlora.projections import Projection, find_projections, module_shape

_State = Mapping[str, Updates]

_WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # others are storage formats


def _execution_device(module: nn.Module) -> torch.device | None:
    """The device on which a module computes: Accelerate's choice, else that of its weights; None without weights."""
    hook = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.empty(0, device=device).device  # adds the index: "cuda" becomes cuda:0
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return None if tensor is None else tensor.device


def _links(model: nn.Module, paths: Iterable[str]) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    """Every distinct step (parent, name, child) on the paths from a model to its modules."""
    steps: dict[str, tuple[nn.Module, str, nn.Module]] = {}
    for path in paths:
        parent, walked = model, ""
        for name in path.split("."):
            walked = f"{walked}.{name}"
            child = parent._modules.get(name)
            if child is None:  # a wrapper that forwards attributes; its inner modules are not followed
                break
            steps[walked] = parent, name, child
            parent = child
    return tuple(steps.values())


def _forget_compiled_models() -> None:
    """Drop all code compiled by torch.compile, because a model compiled without hooks never checks for new ones."""
    convert = sys.modules.get("torch._dynamo.convert_frame")
    if convert is not None and convert.input_codes.seen:
        torch._dynamo.reset()


@dataclass(frozen=True, eq=False)
class PreparedLoRA:
    """A LoRA that was checked against an injector's model and can be applied many times, for example once per token.

    Attributes:
        state: For each module, the updates that its hook adds; None for the base model.
    """

    state: _State | None


class HookBasedLoRAInjector:
    """Installs hooks on a model once, and switches LoRAs on and off.

    ``with injector.apply(lora): …`` works in forward, backward and generate. When a nested ``apply`` ends, the outer
    LoRA is active again. :meth:`remove` (or leaving ``with HookBasedLoRAInjector(model) as injector``) restores the
    model bitwise.

    The slots belong to the model, so ``apply`` has one owner at a time: a thread or, in an event loop, an asyncio task.
    While a LoRA is active, any other owner that calls ``apply`` or runs the model gets an error; ``PromptLoRA`` and
    ``Host`` make callers wait instead. The owner must leave nested ``apply`` blocks in reverse order. Leaving an outer
    block first raises an error; the outer LoRA is then off, and the inner one stays active until its block ends.

    A generator that yields inside ``apply`` runs in the thread of its caller, so its LoRA is also active for the caller
    until the generator ends or is dropped.

    Models that are already compiled are recompiled at their next call, because they would not see the hooks.

    Args:
        model: The model; only hooks are added to it.
        projections: The projections to hook; by default all that :func:`find_projections` returns.

    Raises:
        LoRAError: A projection is not in the model or does not match its module.
    """

    def __init__(self, model: nn.Module, projections: Sequence[Projection] | None = None) -> None:
        self.model = model
        self.projections = tuple(find_projections(model) if projections is None else projections)
        self._by_name: dict[str, Projection] = {}
        self._modules: dict[str, nn.Module] = {}
        self._widths: dict[str, int] = {}
        modules = dict(model.named_modules())
        for projection in self.projections:
            if projection.name in self._by_name:
                raise LoRAError(f"{projection.name}: given twice; expected each projection once")
            self._by_name[projection.name] = projection
            module = modules.get(projection.module)
            if module is None:
                raise LoRAError(f"{projection.module}: no such module in {type(model).__name__}")
            width_in, width_out = module_shape(module) or (0, 0)
            needed = projection.out_features if projection.rows is None else max(stop for _, stop in projection.rows)
            fits = width_out == needed if projection.rows is None else width_out >= needed
            if width_in != projection.in_features or not fits:
                raise LoRAError(
                    f"{projection.name}: {projection.module} is {module_shape(module)} (in, out); expected in "
                    f"{projection.in_features} and out {needed}"
                )
            self._modules[projection.module] = module
            self._widths[projection.module] = width_out
        self._links = _links(model, self._modules)
        self._hooks = {name: SlotHook(name) for name in self._modules}
        self._slots = {name: hook.slot for name, hook in self._hooks.items()}
        self._uses: Uses[_State] = Uses(self._fill)
        self._checkpointed = False
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(self._hooks[name].close)
                handle = module.register_forward_hook(self._hooks[name], with_kwargs=True)
                stack.callback(handle.remove)
            self._installed = stack.pop_all()
        _forget_compiled_models()

    def __enter__(self) -> HookBasedLoRAInjector:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove all hooks and the activation checkpointing that this injector enabled; calling it twice is safe.

        Raises:
            LoRAError: A LoRA of another thread or task is active. Nothing is removed.
        """
        self._uses.close()
        self._installed.close()
        for parent, name, _ in self._links:  # a module that replaced another may carry its hook
            hooks = getattr(parent._modules.get(name), "_forward_hooks", {})
            for key in [key for key, hook in hooks.items() if hook in self._hooks.values()]:
                del hooks[key]

    # --- the slots -------------------------------------------------------------------------------------

    @property
    def _state(self) -> _State | None:
        """The currently active updates."""
        return self._uses.state

    def _fill(self, state: _State | None, owner: Owner | None) -> None:
        for name, slot in self._slots.items():
            slot.updates = None if state is None else state.get(name)
            slot.owner = owner

    def prepare(self, lora: LoRAWeights | None, adapter_index: Sequence[int] | None = None) -> PreparedLoRA:
        """Check a LoRA against the model and lay out its matrices once, for repeated calls of :meth:`apply`.

        Args:
            lora: See :meth:`apply`.
            adapter_index: See :meth:`apply`.

        Raises:
            LoRAError: The LoRA does not match the model; see :meth:`apply`.
        """
        return PreparedLoRA(None if lora is None else self._updates(lora, adapter_index))

    def slots(self, like: LoRAWeights, count: int) -> AdapterSlots:
        """Create empty slots for adapters like the given one, for batches that are packed into one row of tokens.

        Args:
            like: An adapter with the same projections, shapes, dtype and scaling.
            count: The number of slots.

        Raises:
            LoRAError: The adapter does not match the model.
        """

        def place(name: str, form: Form) -> Place:
            projection = self._check(name, form)
            module = self._modules[projection.module]
            return Place(projection, self._widths[projection.module], _execution_device(module))

        return AdapterSlots(like, count, place)

    def packed(self, parts: Sequence[tuple[AdapterSlots, PackedPlan]]) -> PreparedLoRA:
        """The updates for one packed batch, to pass to :meth:`apply`.

        Args:
            parts: Pairs of slots of this injector and a plan. All plans describe the same tokens. A token with slot 0
                gets no update from these slots.
        """
        state: dict[str, Updates] = {}
        for slots, plan in parts:
            for module, updates in slots.updates(plan).items() if not plan.empty else ():
                state[module] = (*state.get(module, ()), *updates)
        return PreparedLoRA(state or None)

    @contextmanager
    def apply(
        self, lora: LoRAWeights | PreparedLoRA | None, adapter_index: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Activate a LoRA inside ``with``; None activates the base model.

        Args:
            lora: One adapter for all rows, one adapter per row, or the result of :meth:`prepare`.
            adapter_index: Row i of the batch uses adapter ``adapter_index[i]`` of ``lora``; by default row i
                uses adapter i. If the batch is a multiple of these rows, it is read as sample-major.

        Raises:
            LoRAError: A projection is unknown or has a wrong shape, dtype or device (the message names it); a hooked
                module was replaced; activation checkpointing would not use the LoRA in backward; or another owner's
                LoRA is active. On exit: the blocks were left out of order.
        """
        state = (lora if isinstance(lora, PreparedLoRA) else self.prepare(lora, adapter_index)).state
        if state is not None:
            self._refuse_replaced_modules()
            refuse_foreign_checkpointing(self.model, self.checkpoint_context)
        with self._uses.use(state):
            yield

    def _refuse_replaced_modules(self) -> None:
        """Refuse a model whose hooked modules were replaced, because it would run without the LoRA."""
        for parent, name, child in self._links:
            found = parent._modules.get(name)
            if found is not child and getattr(found, "_orig_mod", None) is not child:
                raise LoRAError(
                    f"{name} of {type(parent).__name__}: was replaced ({type(child).__name__} by {type(found).__name__}) after the "
                    "injector was made, and its LoRA would be ignored. Expected the modules that were hooked. Fix: replace "
                    "modules first, then make the injector"
                )
        for module, slot in zip(self._modules.values(), self._slots.values(), strict=True):
            slot.plain = is_plain(module)

    def _updates(self, lora: LoRAWeights, adapter_index: Sequence[int] | None) -> _State:
        index = lora.index
        if adapter_index is not None:
            try:
                rows = [row_number(row) for row in adapter_index]
            except TypeError as error:
                raise LoRAError(f"adapter_index={list(adapter_index)[:8]!r}. Expected whole numbers.") from error
            odd = [row for row in rows if not 0 <= row < lora.adapters]
            if odd:
                raise LoRAError(
                    f"adapter_index has {odd[0]}; expected 0 … {lora.adapters - 1}: the LoRA has {lora.adapters} adapters"
                )
            index = tuple(lora.index[row] for row in rows)
        if not index:
            raise LoRAError("the LoRA has no adapter: expected at least one; select some rows")
        devices = {name: _execution_device(module) for name, module in self._modules.items()}
        split = len(set(devices.values()) - {None}) > 1  # modules of the base are on different devices
        plans: dict[torch.device, RowPlan] = {}
        state: dict[str, list[Update]] = {}
        for name, form in lora.stored.items():
            projection = self._check(name, form)
            device = devices[projection.module] or form.A.device
            if device != form.A.device and not split:
                raise LoRAError(f"{name}: the LoRA is on {form.A.device} and the model on {device}; use lora.to")
            if device not in plans:
                plans[device] = plan_rows(index, device)
            update = make_update(
                name, form.A.to(device), form.B.to(device), lora.scaling, plans[device], projection.rows,
                self._widths[projection.module], form.C.to(device) if isinstance(form, Shared) else None,
            )  # fmt: skip
            state.setdefault(projection.module, []).append(update)
        return {module: tuple(updates) for module, updates in state.items()}

    def _check(self, name: str, form: Form) -> Projection:
        """The projection that A and B belong to, after checking their shapes, dtype and device."""
        A, B = form.A, form.B
        projection = self._by_name.get(name)
        if projection is None:
            raise LoRAError(
                f"{name}: no such projection in the model; it has {len(self._by_name)}, first "
                f"{next(iter(self._by_name))}; was this LoRA made for another model?"
            )
        if A.shape[-2] != projection.in_features or B.shape[-1] != projection.out_features:
            raise LoRAError(
                f"{name}: A {list(A.shape)} and B {list(B.shape)}; expected in {projection.in_features} and out "
                f"{projection.out_features}"
            )
        weight = getattr(self._modules[projection.module], "weight", None)
        dtype = weight.dtype if isinstance(weight, Tensor) else None
        if dtype in _WEIGHT_DTYPES and dtype != A.dtype and not torch.is_autocast_enabled(A.device.type):
            raise LoRAError(f"{name}: the LoRA is {A.dtype} and the model {dtype}; use lora.to({dtype})")
        return projection

    # --- activation checkpointing ----------------------------------------------------------------------

    def checkpoint_context(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The ``context_fn`` for ``torch.utils.checkpoint``: recomputation uses the LoRA of the original forward pass.

        Without it, a layer recomputed in backward would read whatever is in the slot at that time.
        """
        return nullcontext(), self._recomputing(self._state, Owner.current())

    @contextmanager
    def _recomputing(self, state: _State | None, owner: Owner) -> Iterator[None]:
        """Reactivate the state of a forward pass of ``owner`` while autograd recomputes it, in any thread."""
        waiting = owner if owner.alive else Owner.current()
        with turn_of(self.model).held(waiting), self._uses.use(state, recomputing=owner):
            yield

    def enable_checkpointing(self) -> None:
        """Enable non-reentrant activation checkpointing in the model, with :meth:`checkpoint_context`.

        Checkpointing takes effect only while the model is in training mode. :meth:`remove` restores the previous
        checkpointing setting.

        Raises:
            LoRAError: The model does not support activation checkpointing.
        """
        restore = enable_checkpointing(self.model, self.checkpoint_context)
        if not self._checkpointed:
            self._checkpointed = True
            self._installed.callback(restore)

"""Hooks on a frozen model, and the slots they read.

Hooks are installed once and read a slot that says which LoRA is on, so that compiled models and activation
checkpointing see what is meant. This file knows modules, ``LoRAWeights`` and ``Projection``; the arithmetic
is in ``update``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from promptlora.errors import LoRAError
from promptlora.injection.update import RowPlan, Update, add_update, make_update, plan_rows
from promptlora.lora import LoRAWeights, Shared
from promptlora.lora.forms import Form
from promptlora.projections import Projection, find_projections, module_shape

Hook = Callable[..., Any]
_Updates = tuple[Update, ...]
_State = Mapping[str, _Updates]

_WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # others are storage formats


def make_lora_hook(A: Float[Tensor, "d_in rank"], B: Float[Tensor, "rank d_out"], scaling: float = 1.0) -> Hook:
    """A forward hook that adds one LoRA to every row: ``output + x @ A @ B * scaling``.

    Register it with ``module.register_forward_hook(hook)``.

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
    if A.ndim != 3 or B.ndim != 3 or A.shape[0] != B.shape[0] or A.shape[2] != B.shape[1] or not A.shape[0]:
        raise LoRAError(
            f"A {list(A.shape)}, B {list(B.shape)}; expected A [adapters, in, rank] and B [adapters, rank, out], "
            "at least one adapter"
        )
    updates = (make_update("hook", A, B, scaling, plan_rows(range(A.shape[0]))),)

    def hook(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        kwargs = rest[0] if len(rest) == 2 else {}  # registered with_kwargs, or not
        return _added(rest[-1], _input(args, kwargs, "hook"), updates, owned=False)

    return hook


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Tensor:
    """The input of a module: its first argument, also when it was passed by name."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(x, Tensor):
        raise LoRAError(f"{name}: called with {type(x).__name__}; expected the input tensor as the first argument")
    return x


def _added(output: Any, x: Tensor, updates: _Updates, owned: bool) -> Any:
    """The output of a module with the updates added; of a tuple, its first element is the output."""
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (_added(output[0], x, updates, owned), *output[1:])
    if not isinstance(output, Tensor):
        raise LoRAError(f"{updates[0].name}: the module returned {type(output).__name__}; expected a tensor")
    for update in updates:
        output = add_update(output, x, update, owned=owned)
        owned = owned or update.spans is not None  # add_update has made a copy
    return output


class _Slot:
    """What the hook of one module adds at present.

    ``updates`` is None for the base model. ``owned`` says that nobody else can see the module's output
    before the hook does, so that it may be written to where no gradient is recorded.
    """

    __slots__ = ("owned", "updates")

    def __init__(self) -> None:
        self.updates: _Updates | None = None
        self.owned = False


def _slot_hook(slot: _Slot) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        updates = slot.updates
        if updates is None:
            return output
        x = args[0] if args else _input(args, kwargs, updates[0].name)
        owned = slot.owned and not torch.is_grad_enabled() and output.is_contiguous()
        if len(updates) == 1 and isinstance(output, Tensor):
            return add_update(output, x, updates[0], owned=owned)
        return _added(output, x, updates, owned)

    return hook


def _owns_output(module: nn.Module) -> bool:
    """Whether a module's output is a new tensor that no other hook has seen: a plain Linear or Conv1D."""
    forward = type(module).forward
    plain = forward is nn.Linear.forward or (
        type(module).__name__ == "Conv1D" and forward.__module__ == "transformers.pytorch_utils"
    )
    return plain and "forward" not in vars(module) and len(module._forward_hooks) == 1


def _execution_device(module: nn.Module) -> torch.device | None:
    """Where a module computes: where Accelerate will put it, else where its weights are; None if it has none."""
    hook = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.empty(0, device=device).device  # with its index: "cuda" is cuda:0
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return None if tensor is None else tensor.device


def _checkpointing_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module by which transformers switches activation checkpointing on."""
    return {
        key: v for key, v in vars(module).items() if "gradient_checkpointing" in key or "_require_grads_hook" in key
    }


def _restore_checkpointing(before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, attributes in before:
        for key in _checkpointing_of(module):
            delattr(module, key)
        for key, value in attributes.items():
            setattr(module, key, value)


class HookBasedLoRAInjector:
    """Installs hooks on a model once, and switches LoRAs on and off.

    ``with injector.apply(lora): …`` is good for forward, backward and generate; nested uses restore what
    was on before; :meth:`remove` (or leaving ``with HookBasedLoRAInjector(model) as injector``) leaves the
    model bitwise as found.

    The slots belong to the model, not to a thread: one thread at a time may be inside ``apply``, and uses
    must end in the reverse order of their beginning (mind generators that are left half-way).

    Args:
        model: The model; nothing of it is changed but the hooks.
        projections: The projections to hook; all of :func:`find_projections` by default.

    Raises:
        LoRAError: A projection that is not in the model, or does not fit its module.
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
        self._slots = {name: _Slot() for name in self._modules}
        self._state: _State | None = None
        self._checkpointed = False
        with ExitStack() as stack:
            for name, module in self._modules.items():
                handle = module.register_forward_hook(_slot_hook(self._slots[name]), with_kwargs=True)
                stack.callback(handle.remove)
            self._installed = stack.pop_all()

    def __enter__(self) -> HookBasedLoRAInjector:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off the model, and checkpointing that it switched on; harmless when called twice."""
        self._set(None)
        self._installed.close()

    # --- the slots -------------------------------------------------------------------------------------

    def _set(self, state: _State | None) -> None:
        self._state = state
        for name, slot in self._slots.items():
            slot.updates = None if state is None else state.get(name)

    @contextmanager
    def _holding(self, state: _State | None) -> Iterator[None]:
        before = self._state
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
            LoRAError: An unknown projection, a wrong shape, dtype or device, the message names it; or
                activation checkpointing that would not see the LoRA in backward.
        """
        state = None if lora is None else self._updates(lora, adapter_index)
        if state is not None:
            self._refuse_foreign_checkpointing()
        with self._holding(state):
            yield

    def _updates(self, lora: LoRAWeights, adapter_index: Sequence[int] | None) -> _State:
        index = lora.index
        if adapter_index is not None:
            rows = [int(row) for row in adapter_index]
            odd = [row for row in rows if not 0 <= row < lora.adapters]
            if odd:
                raise LoRAError(
                    f"adapter_index has {odd[0]}; expected 0 … {lora.adapters - 1}: the LoRA has {lora.adapters} adapters"
                )
            index = tuple(lora.index[row] for row in rows)
        if not index:
            raise LoRAError("the LoRA has no adapter: expected at least one; select some rows")
        devices = {name: _execution_device(module) for name, module in self._modules.items()}
        split = len(set(devices.values()) - {None}) > 1  # a base spread over devices: each module has its own
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
        for name in state:
            self._slots[name].owned = _owns_output(self._modules[name])
        return {module: tuple(updates) for module, updates in state.items()}

    def _check(self, name: str, form: Form) -> Projection:
        """The projection of A and B, which must fit it."""
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
        """The ``context_fn`` of ``torch.utils.checkpoint``: recomputation sees the LoRA of its own forward.

        Without it, a layer recomputed in backward would read whatever is in the slot at that time.
        """
        return nullcontext(), self._holding(self._state)

    def enable_checkpointing(self) -> None:
        """Switch activation checkpointing on in the model, non-reentrant, with :meth:`checkpoint_context`.

        The model must be in training mode for checkpointing to have an effect. :meth:`remove` switches it
        off, or back to what it was.

        Raises:
            LoRAError: A model without activation checkpointing.
        """
        enable = getattr(self.model, "activation_checkpointing_enable", None) or getattr(
            self.model, "gradient_checkpointing_enable", None
        )
        if enable is None or getattr(self.model, "supports_gradient_checkpointing", True) is False:
            raise LoRAError(f"{type(self.model).__name__} has no activation checkpointing; train without it")
        before = [(module, _checkpointing_of(module)) for module in self.model.modules()]
        marked = bool(getattr(self.model, "_require_grads_hooks", None))
        enable({"use_reentrant": False, "context_fn": self.checkpoint_context})
        unmark = getattr(self.model, "disable_input_require_grads", None)
        if unmark is not None and not marked:  # only reentrant checkpointing needs inputs with gradients
            unmark()
        if not self._checkpointed:
            self._checkpointed = True
            self._installed.callback(_restore_checkpointing, before)

    def _refuse_foreign_checkpointing(self) -> None:
        """Refuse checkpointing without :meth:`checkpoint_context`: its gradients can be wrong, or None, silently."""
        if not torch.is_grad_enabled():
            return
        for name, module in self.model.named_modules():
            function = getattr(module, "_gradient_checkpointing_func", None)
            if function is None or not module.training or not getattr(module, "gradient_checkpointing", False):
                continue
            options = getattr(function, "keywords", {})
            if options.get("context_fn") != self.checkpoint_context or options.get("use_reentrant"):
                raise LoRAError(
                    f"{name or type(module).__name__}: activation checkpointing is on without this injector's context "
                    f"({options}); call injector.enable_checkpointing(), or run under torch.no_grad()"
                )

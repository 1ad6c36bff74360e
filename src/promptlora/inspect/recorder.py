"""Records what a model computes in one forward pass, with hooks on modules and around the attention function.

The tensors that attention uses (q and k after norm and rotary embedding, the mask, the scale) exist only inside a
module's ``forward``. transformers passes them to a function that each module looks up with
``AttentionInterface.get_interface``, whatever the implementation (eager, SDPA, flash). During one forward pass, this
lookup returns a wrapper that records the function's arguments and result. The model's computation is not changed, and
hooks and wrapper are removed on every path. This module knows nothing of what the tensors mean.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

_PATCH = threading.RLock()  # the lookup is a class attribute: only one thread at a time may replace it


@dataclass
class AttentionCall:
    """One call of the attention function: its arguments and its result."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: dict[str, Any]
    output: Tensor
    weights: Tensor | None


@dataclass
class Record:
    """Inputs and outputs of modules by name, and calls of attention functions by the name of their block."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, list[AttentionCall]] = field(default_factory=dict)


def _copy(tensor: Tensor) -> Tensor:
    """Copy a tensor, because the model may modify it later."""
    return tensor.detach().clone()


def _first_tensor(values: Sequence[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)


def _hook(record: Record, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("hidden_states", _first_tensor(list(kwargs.values())))
        if isinstance(x, Tensor):
            record.inputs[name] = _copy(x)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found = output if isinstance(output, Tensor) else _first_tensor(output) if isinstance(output, tuple) else None
        if found is not None:
            record.outputs[name] = _copy(found)

    return before, after


@contextmanager
def _noting_calls(record: Record, blocks: dict[int, str]) -> Iterator[None]:
    """Replace the lookup of attention functions by one that records the calls of these blocks."""
    with _PATCH:
        lookup = AttentionInterface.get_interface

        def noting(self: Any, implementation: Any, default: Any = None) -> Any:
            function = lookup(self, implementation, default)

            def call(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
                name = blocks.get(id(module))
                if name is None:  # another model, or a layer that was not requested
                    return function(module, query, key, value, *args, **kwargs)
                mask = args[0] if args else kwargs.get("attention_mask")
                options = {key: given for key, given in kwargs.items() if key != "attention_mask"}
                kept = _copy(query), _copy(key), _copy(value)
                result = function(module, query, key, value, *args, **kwargs)
                output, weights = result[0], result[1] if len(result) > 1 else None
                noted = AttentionCall(
                    *kept,
                    mask=_copy(mask) if isinstance(mask, Tensor) else mask,
                    options=options,
                    output=_copy(output),
                    weights=_copy(weights) if isinstance(weights, Tensor) else None,
                )
                record.calls.setdefault(name, []).append(noted)
                return result

            return call

        AttentionInterface.get_interface = noting  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            AttentionInterface.get_interface = lookup  # type: ignore[method-assign]


@contextmanager
def recording(model: nn.Module, names: Sequence[str], blocks: Sequence[str]) -> Iterator[Record]:
    """Record the tensors of a model's forward passes inside ``with``.

    Args:
        model: The model; it is in evaluation mode during the recording.
        names: Modules whose first input and output are recorded.
        blocks: Attention blocks whose calls of the attention function are recorded.
    """
    record = Record()
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for module in [module for module in modules.values() if module.training]:  # no dropout
            module.training = False
            stack.callback(setattr, module, "training", True)
        for name in dict.fromkeys(names):
            before, after = _hook(record, name)
            stack.callback(modules[name].register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(modules[name].register_forward_hook(after, with_kwargs=True).remove)
        stack.enter_context(_noting_calls(record, {id(modules[name]): name for name in blocks}))
        stack.enter_context(torch.no_grad())
        yield record

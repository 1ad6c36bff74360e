"""Activation checkpointing of a hooked model. Recomputation must use the LoRA of the original forward pass.

This file knows how transformers enables checkpointing; it knows nothing of slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from promptlora.errors import LoRAError

ContextFn = Callable[[], Any]


def _checkpointing_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module with which transformers enables activation checkpointing."""
    return {
        key: v for key, v in vars(module).items() if "gradient_checkpointing" in key or "_require_grads_hook" in key
    }


def _restore_checkpointing(before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, attributes in before:
        for key in _checkpointing_of(module):
            delattr(module, key)
        for key, value in attributes.items():
            setattr(module, key, value)


def enable_checkpointing(model: nn.Module, context_fn: ContextFn) -> Callable[[], None]:
    """Enable non-reentrant activation checkpointing with a ``context_fn``; return a function that restores the model.

    Raises:
        LoRAError: The model does not support activation checkpointing.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(
        model, "gradient_checkpointing_enable", None
    )
    if enable is None or getattr(model, "supports_gradient_checkpointing", True) is False:
        raise LoRAError(f"{type(model).__name__} has no activation checkpointing; train without it")
    before = [(module, _checkpointing_of(module)) for module in model.modules()]
    marked = bool(getattr(model, "_require_grads_hooks", None))
    enable({"use_reentrant": False, "context_fn": context_fn})
    unmark: Any = getattr(model, "disable_input_require_grads", None)
    if unmark is not None and not marked:  # only reentrant checkpointing needs inputs with gradients
        unmark()
    return lambda: _restore_checkpointing(before)


def refuse_foreign_checkpointing(model: nn.Module, context_fn: ContextFn) -> None:
    """Refuse checkpointing with another ``context_fn``, because gradients could silently be wrong or None.

    Raises:
        LoRAError: A module in training mode would be recomputed with another ``context_fn``.
    """
    if not torch.is_grad_enabled():
        return
    for name, module in model.named_modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is None or not module.training or not getattr(module, "gradient_checkpointing", False):
            continue
        options = getattr(function, "keywords", {})
        if options.get("context_fn") != context_fn or options.get("use_reentrant"):
            raise LoRAError(
                f"{name or type(module).__name__}: activation checkpointing is on without this injector's context "
                f"({options}); call injector.enable_checkpointing(), or run under torch.no_grad()"
            )

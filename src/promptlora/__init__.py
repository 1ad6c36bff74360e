"""promptlora: a prompt goes in, a LoRA comes out.

A hypernetwork reads a prompt and writes, in one forward pass, the LoRA matrices of every attention
projection of a frozen causal language model. Names are imported when they are first used, so that
``import promptlora`` is quick.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

logging.getLogger("promptlora").addHandler(logging.NullHandler())  # silent unless the caller sets logging up

if TYPE_CHECKING:
    from promptlora.adapt.prompt_lora import PromptLoRA as PromptLoRA
    from promptlora.data.rows import Row as Row
    from promptlora.data.rows import read_rows as read_rows
    from promptlora.engine import AdapterCache as AdapterCache
    from promptlora.engine import Engine as Engine
    from promptlora.errors import MissingExtraError as MissingExtraError
    from promptlora.errors import PromptLoRAError as PromptLoRAError
    from promptlora.host import Host as Host
    from promptlora.hypernet.config import HyperNetworkConfig as HyperNetworkConfig
    from promptlora.hypernet.encoder import PromptEncoder as PromptEncoder
    from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator as ShapeGroupedLoRAGenerator
    from promptlora.hypernet.network import HyperNetwork as HyperNetwork
    from promptlora.injection import HookBasedLoRAInjector as HookBasedLoRAInjector
    from promptlora.injection import make_batched_lora_hook as make_batched_lora_hook
    from promptlora.injection import make_lora_hook as make_lora_hook
    from promptlora.inspect import capture_attention as capture_attention
    from promptlora.lora import LoRAWeights as LoRAWeights
    from promptlora.lora.peft import merge_lora as merge_lora
    from promptlora.losses import TeacherTargets as TeacherTargets
    from promptlora.losses import distillation_loss as distillation_loss
    from promptlora.losses import reconstruction_loss as reconstruction_loss
    from promptlora.losses import sft_loss as sft_loss
    from promptlora.losses import weight_penalty as weight_penalty
    from promptlora.models import load_base as load_base
    from promptlora.projections import Projection as Projection
    from promptlora.projections import find_projections as find_projections
    from promptlora.projections import group_by_shape as group_by_shape
    from promptlora.train import Trainer as Trainer
    from promptlora.train.config import TrainConfig as TrainConfig

_HOME = {
    "AdapterCache": "engine",
    "Engine": "engine",
    "HookBasedLoRAInjector": "injection",
    "Host": "host",
    "HyperNetwork": "hypernet",
    "HyperNetworkConfig": "hypernet",
    "LoRAWeights": "lora",
    "MissingExtraError": "errors",
    "Projection": "projections",
    "PromptEncoder": "hypernet",
    "PromptLoRA": "adapt",
    "PromptLoRAError": "errors",
    "Row": "data",
    "ShapeGroupedLoRAGenerator": "hypernet",
    "TeacherTargets": "losses",
    "TrainConfig": "train",
    "Trainer": "train",
    "capture_attention": "inspect",
    "distillation_loss": "losses",
    "find_projections": "projections",
    "group_by_shape": "projections",
    "load_base": "models",
    "make_batched_lora_hook": "injection",
    "make_lora_hook": "injection",
    "merge_lora": "lora.peft",
    "read_rows": "data",
    "reconstruction_loss": "losses",
    "sft_loss": "losses",
    "weight_penalty": "losses",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'promptlora' has no attribute {name!r}")
    return getattr(importlib.import_module(f"promptlora.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

"""Training: one loop, three objectives, callbacks, checkpoints, and measurements of how much prompts steer.

Names are imported when they are first used: the metrics of a run can be read without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptlora.schedule import learning_rate_factor as learning_rate_factor
    from promptlora.train.callbacks import Callback as Callback
    from promptlora.train.callbacks import StepMetrics as StepMetrics
    from promptlora.train.checkpoints import FINAL_FOLDER as FINAL_FOLDER
    from promptlora.train.config import TrainConfig as TrainConfig
    from promptlora.train.instruments import margin_shift as margin_shift
    from promptlora.train.metrics import read_metrics as read_metrics
    from promptlora.train.trainer import Trainer as Trainer

_HOME = {
    "Callback": "train.callbacks",
    "FINAL_FOLDER": "train.checkpoints",
    "StepMetrics": "train.callbacks",
    "TrainConfig": "train.config",
    "Trainer": "train.trainer",
    "learning_rate_factor": "schedule",
    "margin_shift": "train.instruments",
    "read_metrics": "train.metrics",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'promptlora.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"promptlora.{_HOME[name]}"), name)

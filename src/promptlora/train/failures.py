"""The error for a training step whose loss or gradient is not finite: which rows are affected, and what is intact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from promptlora.data import Batch
from promptlora.errors import TrainingError
from promptlora.lora import LoRAWeights
from promptlora.train.checkpoints import checkpoints
from promptlora.train.objectives import Objective
from promptlora.train.processes import all_texts

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def not_finite(
    accelerator: Accelerator,
    objective: Objective,
    parts: Sequence[tuple[Batch, LoRAWeights]],
    *,
    step: int,
    loss: float,
    norms: Mapping[str, float],
    folder: Path,
) -> TrainingError:
    """The error for a step. It names the rows whose loss is not finite, or all rows if there is no such row.

    Args:
        accelerator: The processes; every process must call this function.
        objective: Measures each row.
        parts: This process's parts of the batch, with their adapters.
        step: The step, counted from 1.
        loss: Its loss.
        norms: Its gradient norms.
        folder: Folder of the run.
    """
    bad, every = [], []
    for batch, lora in parts:
        finite = objective.measure(batch, lora, range(len(batch.prompts)), reduce=False).isfinite().tolist()
        every += [objective.describe(batch, row) for row in range(len(finite))]
        bad += [objective.describe(batch, row) for row, fine in enumerate(finite) if not fine]
    named = all_texts(accelerator, bad) or all_texts(accelerator, every)
    more = f"; and {len(named) - 4} more" if len(named) > 4 else ""
    kept = checkpoints(folder)
    left = f"{kept[-1]} is the last good checkpoint" if kept else "there is no checkpoint yet"
    shown = ", ".join(f"{name} {norm}" for name, norm in norms.items())
    return TrainingError(
        f"step {step}: loss {loss}, gradient norms {shown}; expected finite numbers; {left}; lower optim.lr "
        f"or look at the rows: {'; '.join(named[:4])}{more}"
    )

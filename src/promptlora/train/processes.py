"""The processes of a training run: one process, or several started by ``torchrun`` that share each batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from promptlora.errors import ConfigError
from promptlora.train.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Create the Accelerator, which knows the device and the processes and holds the trackers of the run.

    Raises:
        ConfigError: The processes cannot work together or cannot share a batch evenly, or a tracker cannot be used.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    from promptlora.train.logs import LOGS_FOLDER, check_trackers

    check_trackers(config.trackers)
    accelerator = Accelerator(
        # Without this, Accelerate starts only one process under torchrun on a machine without an accelerator.
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision="no",
        log_with=list(config.trackers),
        project_config=ProjectConfiguration(
            project_dir=config.output, logging_dir=str(Path(config.output) / LOGS_FOLDER)
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise ConfigError(
            f"torchrun started {asked} processes and {accelerator.num_processes} work together; unset WORLD_SIZE, or "
            "start them with torchrun"
        )
    if config.prompts_per_batch % (config.accumulate * accelerator.num_processes):
        raise ConfigError(
            f"prompts_per_batch={config.prompts_per_batch}: not a multiple of accumulate x processes "
            f"({config.accumulate} x {accelerator.num_processes}); choose one that is"
        )
    return accelerator


def sum_over(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """The sum of each value over all processes."""
    if accelerator.num_processes == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]


def any_of(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    return [total > 0 for total in sum_over(accelerator, [float(flag) for flag in flags])]


def all_texts(accelerator: Accelerator, texts: Sequence[str]) -> list[str]:
    """The texts of all processes."""
    if accelerator.num_processes == 1:
        return list(texts)
    from accelerate.utils import gather_object

    gathered: list[str] = gather_object(list(texts))
    return gathered

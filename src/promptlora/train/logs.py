"""The logs of a run: ``metrics.jsonl`` in its folder, and the experiment trackers of Accelerate.

It knows files and trackers; it does not interpret the metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptlora.errors import ConfigError, OutputError, one_line
from promptlora.files import append_lines
from promptlora.train.callbacks import Callback, StepMetrics
from promptlora.train.checkpoints import metrics_file

if TYPE_CHECKING:
    from accelerate import Accelerator

LOGS_FOLDER = "logs"  # inside the folder of the run, for trackers that write files
PROJECT = "promptlora"  # project name in trackers; for TensorBoard, a folder inside the logs folder
TENSORBOARD = "tensorboard"


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that cannot be used, because Accelerate would skip them silently.

    Raises:
        ConfigError: Accelerate does not know the name, or the tracker's library is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted(LOGGER_TYPE_TO_CLASS)  # includes trackers that a program has registered
    absent = {each.value for each in LoggerType} - {str(each) for each in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"trackers: {name!r} is unknown. Expected some of {', '.join(known)}. Fix: change trackers."
            )
        if name in absent:
            raise ConfigError(
                f"trackers: the library of {name!r} is not installed. Expected an installed tracker. Fix: install it, "
                "or remove it from trackers."
            )


class RunLog(Callback):
    """Writes the metrics of each step. Only the first process of a distributed run logs.

    Args:
        folder: Folder of the run.
        accelerator: Holds the trackers.
        config: Stored by trackers as the configuration of the run.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, config: Mapping[str, Any]) -> None:
        self.folder, self.accelerator, self.config = folder, accelerator, config
        self.file: Path | None = None

    def on_start(self, step: int) -> None:
        """Open the trackers, and delete the metrics that a killed run logged after ``step``."""
        if not self.accelerator.is_main_process:
            return
        self.file = metrics_file(self.folder, step)
        self.accelerator.init_trackers(PROJECT, init_kwargs={TENSORBOARD: {"purge_step": step + 1}})
        for tracker in self.accelerator.trackers:
            if tracker.name != TENSORBOARD:  # TensorBoard would create one more folder for each start
                tracker.store_init_configuration(dict(self.config))

    def on_step(self, metrics: StepMetrics) -> None:
        """Append one line of JSON, and log to the trackers.

        Raises:
            OutputError: The folder cannot be written, for instance because the disk is full.
        """
        if self.file is None:
            return
        values = metrics.measured
        try:
            append_lines(self.file, [json.dumps(values)])
            self.accelerator.log({name: value for name, value in values.items() if name != "step"}, step=metrics.step)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise OutputError(
                f"{self.folder}: cannot be written ({reason}); free some space, then pass resume=True"
            ) from error

    def on_end(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []
        self.file = None

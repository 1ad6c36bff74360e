"""The metrics file of a run. It imports no PyTorch, so that ``promptlora plot`` starts in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from promptlora.errors import CheckpointError
from promptlora.reading import is_dir, is_file, json_lines

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> Sequence[dict[str, float]]:
    """The complete lines of a run's metrics file, in order.

    Raises:
        CheckpointError: The folder has no metrics file, the file has no complete line, or a value is not a number.
    """
    path = folder / METRICS_FILE if is_dir(folder) else folder
    if not is_file(path):
        raise CheckpointError(f"{path}: no such file; expected the output folder of a training run")
    found = []
    for number, _, values in json_lines(path, CheckpointError, torn=True):
        if not isinstance(values, dict) or type(values.get("step")) is not int:
            continue
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise CheckpointError(f"{path}:{number}: {key[:80]}={repr(value)[:80]}; expected a number")
        found.append(values)
    if not found:
        raise CheckpointError(f"{path}: no whole line of metrics yet; train a step first")
    return found

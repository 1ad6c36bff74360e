"""Checkpoints of a run: hypernetwork, optimizer and state in a folder, written atomically; and the metrics file of the run.

It knows files and tensors; it knows nothing of batches or losses.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from promptlora.errors import CheckpointError, OutputError, one_line
from promptlora.files import creating_folder, replacing_file
from promptlora.hypernet.network import CONFIG_FILE, WEIGHTS_FILE, HyperNetwork
from promptlora.models import describe_mismatch
from promptlora.reading import parse_json, read_json, read_tensors
from promptlora.settings import from_dict, to_dict, whole
from promptlora.train.config import TrainConfig
from promptlora.train.metrics import METRICS_FILE

STATE_FILE = "trainer.json"
OPTIMIZER_FILE = "optimizer.safetensors"
FINAL_FOLDER = "final"
_FREE_KEYS = (
    "output",
    "checkpoint_every",
    "keep_checkpoints",
    "accumulate",
    "activation_checkpointing",
    "shard_base",
    "prompt_states",
    "workers",
    "trackers",
)
_DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(
    folder: Path,
    hypernetwork: HyperNetwork,
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``step-N``, and only then delete the oldest checkpoints beyond ``keep``.

    Raises:
        OutputError: The checkpoint cannot be written (no space, no permission); earlier checkpoints are unchanged.
    """
    path = folder / f"step-{state['step']}"
    with creating_folder(path, overwrite=True) as temporary:
        hypernetwork.write_to(temporary)
        tensors = {}
        for name, parameter in named.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        save_file(tensors, temporary / OPTIMIZER_FILE)
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            raise OutputError(
                f"{old}: cannot be removed ({error.strerror}); remove it, then pass resume=True"
            ) from error
    return path


def load_checkpoint(
    folder: Path,
    hypernetwork: HyperNetwork,
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    config: TrainConfig,
    data: str,
) -> int:
    """Load the newest checkpoint of a run into hypernetwork and optimizer; returns its step, or 0 if there is none.

    Raises:
        CheckpointError: The checkpoint is damaged, or belongs to another configuration, other data or another base.
    """
    found = checkpoints(folder)
    if not found:
        return 0
    path = found[-1]
    fix = f"remove it to continue from {found[-2].name}" if len(found) > 1 else "remove it to start anew"
    try:
        state = read_json(path / STATE_FILE, CheckpointError)
        step, before = whole("step", state["step"], low=0), from_dict(TrainConfig, state["config"])
        base = dict(read_json(path / CONFIG_FILE, CheckpointError)["base"])
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: a damaged checkpoint ({one_line(error)}); {fix}") from error
    ours = flat(to_dict(config))
    for key, value in flat(to_dict(before)).items():
        if key not in _FREE_KEYS and ours[key] != value:
            raise CheckpointError(
                f"{path}: was written with {key}={value!r}; this configuration has {ours[key]!r}; use the same, or "
                "another output folder"
            )
    if state.get("data", data) != data:
        what = "rows, paraphrases or reader" if config.reader else "rows or paraphrases"
        raise CheckpointError(
            f"{path}: the {what} have changed since it was written; use the same, or another output folder"
        )
    differs = describe_mismatch(base, hypernetwork.base)
    if differs:
        raise CheckpointError(f"{path}: was written for another base ({differs}); use that one, or another output")
    try:
        fused = any(group.get("fused") for group in optimizer.param_groups)
        moments = _moments(read_tensors(path / OPTIMIZER_FILE, CheckpointError)[0], named, fused)
        hypernetwork.load_weights(path / WEIGHTS_FILE)
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: a damaged checkpoint ({one_line(error)}); {fix}") from error
    optimizer.state.clear()
    optimizer.state.update(moments)
    return step


def _moments(
    tensors: Mapping[str, Tensor], named: Mapping[str, nn.Parameter], fused: bool
) -> dict[Tensor, dict[str, Tensor]]:
    """The optimizer's state from the tensors of its file, ``parameter|key``; raises ValueError if they do not match.

    A fused optimizer keeps its step counter on the device of the parameter; any other optimizer keeps it on the CPU.
    """
    moments: dict[Tensor, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        parameter = named.get(name)
        if parameter is None or (key != "step" and value.shape != parameter.shape):
            raise ValueError(f"{OPTIMIZER_FILE}: {full} {list(value.shape)} does not fit this hypernetwork")
        moments.setdefault(parameter, {})[key] = value if key == "step" and not fused else value.to(parameter.device)
    return moments


def metrics_file(folder: Path, step: int) -> Path:
    """Truncate the metrics file to the steps up to this one, dropping later lines of a killed run; returns its path."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    with replacing_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step), encoding="utf-8")
    return path


def make_run_folder(folder: Path) -> None:
    """Create the folder of a run, and remove half-written files of a run that was killed while saving.

    Raises:
        OutputError: The folder cannot be created, or the half-written files cannot be removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("step-*", FINAL_FOLDER, METRICS_FILE):
            for left in folder.glob(f".{name}.*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output") from error


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        dotted |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return dotted


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for an incomplete line."""
    try:
        return int(parse_json(line, METRICS_FILE, CheckpointError)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf

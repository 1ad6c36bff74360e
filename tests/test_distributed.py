"""Several processes, and several parts of a batch: the same losses as one process with the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from promptlora.errors import ConfigError
from promptlora.settings import save_toml
from promptlora.train import Trainer
from promptlora.train.config import TrainConfig
from tests.training_helpers import metric_lines, toy_config, toy_rows, write_jsonl


@pytest.fixture
def config_of(tmp_path, toy_base):
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(5, 10))

    def config(folder: str, **options: Any) -> TrainConfig:
        return toy_config(
            tmp_path / folder, toy_base, data, **{"prompts_per_batch": 4, "rows_per_prompt": 2, **options}
        )

    return config


def start(config: TrainConfig, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Two real processes on gloo, by the command line."""
    save_toml(config, folder / "run.toml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1",
            f"--master_port={port}", "-m", "promptlora", "train", str(folder / "run.toml"), "--threads", "1", *arguments,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    """End torchrun and its workers, which are in sessions of their own, at once."""
    family = psutil.Process(process.pid)
    for each in [family, *family.children(recursive=True)]:
        each.kill()
    process.communicate()


def torchrun(config: TrainConfig, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes to the end."""
    process = start(config, folder, *arguments)
    try:
        said, told = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            kill(process)
    return subprocess.CompletedProcess(process.args, process.returncode, said, told)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metric_lines(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def check_same(ours: Path, theirs: Path) -> None:
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-4)
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("row_weight", ["row", "token"])
def test_a_batch_in_parts_gives_the_losses_of_the_whole(config_of, row_weight):
    """A loop that kept the last part's gradients alone, or a mean of unequal parts, would differ at step 2."""
    for folder, parts in (("whole", 1), ("parts", 4)):
        with Trainer(config_of(folder, row_weight=row_weight, accumulate=parts)) as trainer:
            trainer.run()
            path = trainer.folder
        if folder == "whole":
            whole = path
    check_same(path, whole)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, 1),
        ({"shard_base": True, "regularization": {"contrastive": 0.5}}, 2),  # contexts are compared within a part
        ({"row_weight": "token", "accumulate": 2}, 1),
    ],
)
def test_two_processes_train_to_the_losses_of_one(config_of, tmp_path, options, parts):
    with Trainer(config_of("one", **{**options, "accumulate": parts, "shard_base": False})) as trainer:
        trainer.run()
    done = torchrun(config_of("two", **options), tmp_path, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["processes"] == 2  # not two that train the whole batch each
    check_same(tmp_path / "two", tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


def test_two_processes_stop_and_one_goes_on_and_the_other_way(config_of, tmp_path):
    with Trainer(config_of("whole")) as trainer:
        trainer.run()
    done = torchrun(config_of("both"), tmp_path, "--until", "4", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["step"] == 4  # printed once, by one of the two
    with Trainer(config_of("both")) as trainer:
        trainer.run(resume=True, until=6)
    done = torchrun(config_of("both"), tmp_path, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(tmp_path / "both", tmp_path / "whole")


def test_two_processes_that_are_killed_go_on_to_the_same_losses(config_of, tmp_path):
    options = {"steps": 120, "checkpoint_every": 2, "optim": {"lr": 1e-3, "static_lr": 1e-3}}
    with Trainer(config_of("whole", **options)) as trainer:
        trainer.run()
    process = start(config_of("killed", **options), tmp_path)
    try:
        while not list((tmp_path / "killed").glob("step-[468]")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        kill(process)
    assert not (tmp_path / "killed" / "final").exists()
    done = torchrun(config_of("killed", **options), tmp_path, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(tmp_path / "killed", tmp_path / "whole")


def test_parts_that_do_not_divide_the_batch_are_refused(config_of):
    with pytest.raises(ConfigError, match=r"prompts_per_batch=4: not a multiple of accumulate x processes \(3 x 1\)"):
        Trainer(config_of("no", accumulate=3))

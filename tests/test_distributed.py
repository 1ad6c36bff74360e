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
from tests.forked import Forked, promptlora
from tests.training_helpers import metric_lines, toy_config, toy_rows, write_jsonl


@pytest.fixture
def config_of(tmp_path, toy_base):
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(5, 10))

    def config(folder: str, **options: Any) -> TrainConfig:
        return toy_config(
            tmp_path / folder, toy_base, data, **{"prompts_per_batch": 4, "rows_per_prompt": 2, **options}
        )

    return config


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(config: TrainConfig, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes on gloo, by torchrun and the command line."""
    save_toml(config, folder / "run.toml")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1",
        f"--master_port={free_port()}", "-m", "promptlora", "train", str(folder / "run.toml"), "--threads", "1", *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        said, told = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            kill(process)
    return subprocess.CompletedProcess(process.args, process.returncode, said, told)


def kill(process: subprocess.Popen[str]) -> None:
    """End torchrun and its workers, which are in sessions of their own, at once."""
    family = psutil.Process(process.pid)
    for each in [family, *family.children(recursive=True)]:
        each.kill()
    process.communicate()


def start(config: TrainConfig, folder: Path, *arguments: str) -> list[Forked]:
    """The two processes that torchrun would start, with what it tells them, but without the imports of each."""
    save_toml(config, folder / "run.toml")
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Forked(
            promptlora, "train", folder / "run.toml", "--threads", "1", *arguments,
            environment={**world, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip


def train_in_two(config: TrainConfig, folder: Path, *arguments: str) -> str:
    """Train in two processes to the end; what both wrote to standard output."""
    processes = start(config, folder, *arguments)
    try:
        told = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    return "".join(out for out, _ in told)


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
    ("options", "parts", "by"),
    [
        ({}, 1, "forks"),
        # contexts are compared within a part
        ({"shard_base": True, "regularization": {"contrastive": 0.5}}, 2, "torchrun"),
        ({"row_weight": "token", "accumulate": 2}, 1, "forks"),
    ],
)
def test_two_processes_train_to_the_losses_of_one(config_of, tmp_path, options, parts, by):
    with Trainer(config_of("one", **{**options, "accumulate": parts, "shard_base": False})) as trainer:
        trainer.run()
    if by == "torchrun":
        done = torchrun(config_of("two", **options), tmp_path, "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        told = done.stdout
    else:
        told = train_in_two(config_of("two", **options), tmp_path, "--json")
    assert json.loads(told)["processes"] == 2  # not two that train the whole batch each
    check_same(tmp_path / "two", tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


def test_two_processes_stop_and_one_goes_on_and_the_other_way(config_of, tmp_path):
    with Trainer(config_of("whole")) as trainer:
        trainer.run()
    told = train_in_two(config_of("both"), tmp_path, "--until", "4", "--json")
    assert json.loads(told)["step"] == 4  # printed once, by one of the two
    with Trainer(config_of("both")) as trainer:
        trainer.run(resume=True, until=6)
    train_in_two(config_of("both"), tmp_path, "--resume")
    check_same(tmp_path / "both", tmp_path / "whole")


def test_two_processes_that_are_killed_go_on_to_the_same_losses(config_of, tmp_path):
    options = {"steps": 60, "checkpoint_every": 2, "optim": {"lr": 1e-3, "static_lr": 1e-3}}
    with Trainer(config_of("whole", **options)) as trainer:
        trainer.run()
    processes = start(config_of("killed", **options), tmp_path)
    try:
        while len(list((tmp_path / "killed").glob("step-*"))) < 2:
            assert [process.poll() for process in processes] == [None, None], processes[0].communicate()[1]
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
    assert not (tmp_path / "killed" / "final").exists()
    train_in_two(config_of("killed", **options), tmp_path, "--resume")
    check_same(tmp_path / "killed", tmp_path / "whole")


def test_parts_that_do_not_divide_the_batch_are_refused(config_of):
    with pytest.raises(ConfigError, match=r"prompts_per_batch=4: not a multiple of accumulate x processes \(3 x 1\)"):
        Trainer(config_of("no", accumulate=3))

"""A run that was stopped, killed or out of space goes on to the losses of one that never was."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptlora.errors import CheckpointError, ConfigError, OutputError
from promptlora.settings import load_toml, save_toml
from promptlora.train import Trainer, checkpoints, logs
from promptlora.train.config import TrainConfig
from tests.forked import Forked, tell
from tests.helpers import tiny_llama
from tests.training_helpers import metric_lines, toy_config, toy_rows, word_tokenizer, write_jsonl


def train_slowly(path: Path) -> None:
    """Train as a configuration says, print each step as it is done, and leave time to send a signal."""
    torch.set_num_threads(1)

    def show(metrics: Any) -> None:
        tell(metrics.step)
        time.sleep(0.2)

    with Trainer(load_toml(TrainConfig, path), callbacks=[show]) as trainer:
        trainer.run(resume=True)


@pytest.fixture
def config_of(tmp_path, toy_base):
    """A configuration of 16 steps with paraphrases, in a folder of its own; options replace."""
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(3, 10))
    others = write_jsonl(tmp_path / "p.jsonl", [{"task": "t0", "prompts": ["write a", "never b"]}])

    def config(folder: str, **options: Any) -> TrainConfig:
        values = {"steps": 16, "data": {"paraphrases": str(others)}, **options}
        return toy_config(tmp_path / folder, toy_base, data, **values)

    return config


@pytest.fixture
def whole(config_of) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Metrics and last weights of a run that is never stopped."""
    with Trainer(config_of("whole")) as trainer:
        trainer.run()
        return metric_lines(trainer.folder), trainer.plain.state_dict()


def check_same(trainer: Trainer, whole: tuple[list[dict[str, float]], dict[str, torch.Tensor]]) -> None:
    assert metric_lines(trainer.folder) == whole[0]  # every number, bit by bit
    for name, value in trainer.plain.state_dict().items():
        assert value.equal(whole[1][name]), name


def test_stopped_and_continued_the_metrics_are_the_same(config_of, whole):
    for until in (2, 9):  # between two checkpoints of every third step, and on one
        with Trainer(config_of("parts")) as trainer:
            assert trainer.run(resume=True, until=until) == trainer.folder / f"step-{until}"
    with Trainer(config_of("parts")) as trainer:
        assert trainer.run(resume=True) == trainer.folder / "final"
        check_same(trainer, whole)
        assert [line["step"] for line in metric_lines(trainer.folder)] == list(range(1, 17))


def test_one_trainer_may_go_on_by_itself(config_of, whole):
    with Trainer(config_of("same")) as trainer:
        trainer.run(until=5)
        trainer.run(resume=True)
        check_same(trainer, whole)


def test_steps_after_the_checkpoint_are_done_again(config_of, whole):
    def fall(metrics: Any) -> None:
        if metrics.step == 8:
            raise ZeroDivisionError

    with Trainer(config_of("fallen"), callbacks=[fall]) as trainer, pytest.raises(ZeroDivisionError):
        trainer.run()
    assert [path.name for path in trainer.checkpoints()] == ["step-3", "step-6"]
    assert len(metric_lines(trainer.folder)) == 8
    with Trainer(config_of("fallen")) as trainer:
        trainer.run(resume=True)
        check_same(trainer, whole)


def test_a_run_that_is_complete_is_complete_and_without_checkpoint_it_starts(config_of, whole):
    with Trainer(config_of("fresh")) as trainer:
        trainer.run(resume=True)
        check_same(trainer, whole)
        (trainer.folder / "final" / "model.safetensors").unlink()
        assert trainer.run(resume=True) == trainer.folder / "final"  # written anew, no step done
        assert (trainer.folder / "final" / "model.safetensors").is_file()
        check_same(trainer, whole)


# --- other processes -------------------------------------------------------------------------------------


def start(config: TrainConfig, tmp_path: Path) -> Forked:
    save_toml(config, tmp_path / "run.toml")
    return Forked(train_slowly, tmp_path / "run.toml")


def send_at(process: Forked, step: int, number: signal.Signals) -> str:
    """Send a signal once a step is done; returns what the process said on stderr."""
    try:
        for line in process.stdout:
            if int(line) == step:
                process.send_signal(number)
                break
        return process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.wait()


def test_killed_at_a_random_step_it_continues_to_the_same_losses(config_of, whole, tmp_path):
    step = random.randrange(4, 11)
    process = start(config_of("killed"), tmp_path)
    said = send_at(process, step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, said
    with Trainer(config_of("killed")) as trainer:
        saved = int(trainer.checkpoints()[-1].name.removeprefix("step-"))
        assert saved >= step - 3  # at most what was done since the last checkpoint is lost
        trainer.run(resume=True)
        check_same(trainer, whole)


def test_ctrl_c_in_a_process_writes_a_checkpoint_and_ends_it(config_of, whole, tmp_path):
    config = config_of("stopped", checkpoint_every=1000)
    process = start(config, tmp_path)
    said = send_at(process, 5, signal.SIGINT)
    assert process.returncode == -signal.SIGINT  # Python's own end for KeyboardInterrupt
    assert said.rstrip().endswith("KeyboardInterrupt")
    with Trainer(config) as trainer:
        (saved,) = trainer.checkpoints()
        assert int(saved.name.removeprefix("step-")) >= 5
        assert len(metric_lines(trainer.folder)) == int(saved.name.removeprefix("step-"))
        trainer.run(resume=True)
        check_same(trainer, whole)


# --- what may be wrong with a folder ---------------------------------------------------------------------


@pytest.fixture
def stopped(config_of) -> Path:
    """The folder of a run that was stopped after step 6, with checkpoints of steps 3 and 6."""
    with Trainer(config_of("stopped")) as trainer:
        trainer.run(until=6)
        return trainer.folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optim": {"lr": 1e-4}}, "optim.lr=0.005; this configuration has 0.0001"),
        ({"hypernetwork": {"rank": 2}}, "hypernetwork.rank=4; this configuration has 2"),
        ({"seed": 5}, "seed=0; this configuration has 5"),
        ({"steps": 17}, "steps=16; this configuration has 17"),
    ],
)
def test_another_configuration_is_refused_with_its_key(config_of, stopped, options, says):
    with Trainer(config_of("stopped", **options)) as trainer:
        with pytest.raises(CheckpointError) as caught:
            trainer.run(resume=True)
        assert f"step-6: was written with {says}; use the same, or another output folder" in str(caught.value)
        assert trainer.step == 0


def test_the_rhythm_of_checkpoints_may_change(config_of, stopped, whole):
    with Trainer(config_of("stopped", checkpoint_every=5, keep_checkpoints=1)) as trainer:
        trainer.run(resume=True)
        check_same(trainer, whole)
        assert [path.name for path in trainer.checkpoints()] == ["step-16"]


def test_a_key_that_is_new_since_the_checkpoint_counts_as_its_default(config_of, stopped):
    path = stopped / "step-6" / "trainer.json"
    state = json.loads(path.read_text())
    del state["config"]["margin_every"]  # its default is 50
    path.write_text(json.dumps(state))
    with Trainer(config_of("stopped", margin_every=50)) as trainer:
        assert trainer.resume() == 6
    with Trainer(config_of("stopped")) as trainer, pytest.raises(CheckpointError, match="margin_every=50"):
        trainer.resume()


def test_another_base_is_refused(config_of):
    config = replace(config_of("memory"), base="")
    with Trainer(config, model=tiny_llama(torch.float32), tokenizer=word_tokenizer()) as trainer:
        trainer.run(until=3)
    refused = pytest.raises(CheckpointError, match="written for another base")
    other = tiny_llama(torch.float32, seed=1)
    with Trainer(config, model=other, tokenizer=word_tokenizer()) as trainer, refused:
        trainer.run(resume=True)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _spoil_moments(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "optimizer.safetensors")
    name = next(key for key in tensors if key.endswith("|exp_avg"))
    save_file({**tensors, name: torch.zeros(3)}, folder / "optimizer.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _cut(folder / "model.safetensors"),
        lambda folder: _cut(folder / "optimizer.safetensors"),
        lambda folder: (folder / "optimizer.safetensors").unlink(),
        lambda folder: _cut(folder / "trainer.json"),
        lambda folder: (folder / "trainer.json").write_text("[]"),
        lambda folder: (folder / "trainer.json").write_text('{"step": null, "config": {}}'),
        lambda folder: (folder / "config.json").unlink(),
        _spoil_moments,
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_fix_and_the_fix_works(config_of, stopped, whole, damage):
    damage(stopped / "step-6")
    with Trainer(config_of("stopped")) as trainer:
        before = {name: value.clone() for name, value in trainer.plain.state_dict().items()}
        with pytest.raises(CheckpointError) as caught:
            trainer.run(resume=True)
        says = str(caught.value)
        assert says.startswith(f"{stopped / 'step-6'}: a damaged checkpoint (")
        assert says.endswith("remove it to continue from step-3")
        assert "\n" not in says
        assert all(value.equal(before[name]) for name, value in trainer.plain.state_dict().items())
        shutil.rmtree(stopped / "step-6")
        trainer.run(resume=True)
        check_same(trainer, whole)


def test_a_damaged_checkpoint_without_another_says_to_start_anew(config_of, stopped):
    shutil.rmtree(stopped / "step-3")
    _cut(stopped / "step-6" / "trainer.json")
    with Trainer(config_of("stopped")) as trainer, pytest.raises(CheckpointError, match="remove it to start anew"):
        trainer.resume()


def test_a_metrics_line_that_was_cut_short_is_dropped(config_of, stopped, whole):
    path = stopped / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    with Trainer(config_of("stopped")) as trainer:
        trainer.run(resume=True)
        check_same(trainer, whole)


def test_leavings_of_a_killed_save_are_removed_and_other_files_kept(config_of, stopped):
    for name in (".step-9.abc", ".final.def"):
        (stopped / name).mkdir()
        (stopped / name / "model.safetensors").write_bytes(b"half")
    (stopped / "step-notes").mkdir()
    (stopped / ".keep").write_text("mine")
    with Trainer(config_of("stopped")) as trainer:
        trainer.run(resume=True, until=7)
    assert sorted(path.name for path in stopped.iterdir()) == [
        ".keep", "logs", "metrics.jsonl", "step-6", "step-7", "step-notes",
    ]  # fmt: skip


def test_no_space_left_while_saving_keeps_the_older_checkpoint(config_of, stopped, whole, monkeypatch):
    def full(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with Trainer(config_of("stopped")) as trainer, monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(OutputError, match=r"step-9: cannot be written \(No space left on device\); free some"):
            trainer.run(resume=True)
    assert sorted(path.name for path in stopped.iterdir()) == ["logs", "metrics.jsonl", "step-3", "step-6"]
    with Trainer(config_of("stopped")) as trainer:
        trainer.run(resume=True)
        check_same(trainer, whole)


def test_no_space_left_for_metrics_is_one_line(config_of, monkeypatch):
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Trainer(config_of("full")) as trainer:
        monkeypatch.setattr(logs.json, "dumps", full)
        with pytest.raises(OutputError, match=r"full: cannot be written \(No space left on device\).*resume=True"):
            trainer.run()


def test_until_is_a_step(config_of):
    with Trainer(config_of("none")) as trainer, pytest.raises(ConfigError, match="until=0"):
        trainer.run(until=0)

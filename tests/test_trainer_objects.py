"""``Trainer`` with rows, models and callbacks that a program hands over, instead of paths in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker, register_tracker_class

from promptlora.data import Row
from promptlora.errors import CheckpointError, ConfigError, DataError
from promptlora.models import load_base
from promptlora.settings import from_dict
from promptlora.train import Callback, StepMetrics, Trainer
from promptlora.train.config import TrainConfig
from tests.helpers import tiny_llama
from tests.training_helpers import metric_lines, toy_config, toy_rows, word_tokenizer, write_jsonl


def rows_of(values: list[dict[str, Any]]) -> list[Row]:
    return [Row(**{**value, "outputs": tuple(value["outputs"])}) for value in values]


@pytest.fixture
def in_memory(toy_base):
    """A configuration without paths, and the objects in their place."""

    def make(**options: Any) -> tuple[TrainConfig, dict[str, Any]]:
        model, tokenizer = load_base(toy_base)
        config = toy_config(
            Path(), "", Path(), **{"output": "", **options, "data": {"train": "", **options.get("data", {})}}
        )
        return config, {"model": model, "tokenizer": tokenizer}

    return make


def test_objects_give_the_losses_of_files(tmp_path, toy_base, in_memory):
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    with Trainer(toy_config(tmp_path / "files", toy_base, data)) as trainer:
        trainer.run()
    config, given = in_memory()
    with Trainer(config, rows=rows_of(toy_rows()), output=tmp_path / "objects", **given) as trainer:
        assert trainer.run() == tmp_path / "objects" / "final"
        assert trainer.config.output == str(tmp_path / "objects")
    assert metric_lines(tmp_path / "objects") == metric_lines(tmp_path / "files")


def test_a_configuration_may_name_nothing_at_all(tmp_path):
    config = from_dict(TrainConfig, {"hypernetwork": {"source_layer": 1, "max_prompt_tokens": 16}})
    assert config == TrainConfig(hypernetwork=config.hypernetwork)
    given = {"model": tiny_llama(torch.float32), "tokenizer": word_tokenizer()}
    config = replace(config, prompts_per_batch=2, rows_per_prompt=3)
    with Trainer(config, rows=rows_of(toy_rows()), output=tmp_path / "run", **given) as trainer:
        assert trainer.run(until=1) == tmp_path / "run" / "step-1"


def test_a_run_on_objects_is_resumed_with_the_same_rows_only(tmp_path, in_memory):
    def train(folder: str, values: list[dict[str, Any]], **how: Any) -> None:
        config, given = in_memory()
        with Trainer(config, rows=rows_of(values), output=tmp_path / folder, **given) as trainer:
            trainer.run(**how)

    train("whole", toy_rows())
    train("parts", toy_rows(), until=4)
    changed = [{**row, "outputs": ["c"]} if i == 5 else row for i, row in enumerate(toy_rows())]
    with pytest.raises(CheckpointError, match="the rows or paraphrases have changed"):
        train("parts", changed, resume=True)
    train("parts", toy_rows(), resume=True)
    assert metric_lines(tmp_path / "parts") == metric_lines(tmp_path / "whole")


def test_the_split_of_rows_counts_as_in_a_file(tmp_path, in_memory):
    values = [{**row, "split": "eval" if i % 3 == 0 else "train"} for i, row in enumerate(toy_rows(4))]
    config, given = in_memory(validation={"tasks": 1, "every": 2})
    with Trainer(config, rows=rows_of(values), output=tmp_path / "run", **given) as trainer:
        assert len(trainer.batches.examples) == 3 * 8
        assert trainer.validation is not None
        assert len(trainer.validation.examples) == 4
        assert trainer.train_step().validation_loss is None
        assert trainer.train_step().validation_loss > 0
    config, given = in_memory(data={"split": "none"})
    with pytest.raises(DataError, match="rows: no row with split='none'"):
        Trainer(config, rows=rows_of(values), output=tmp_path / "no", **given)


def test_a_teacher_may_be_an_object(tmp_path, toy_base, in_memory):
    teacher = load_base(toy_base)
    found = []
    for name, options in {"path": {"distill": {"teacher": str(toy_base)}}, "object": {}}.items():
        config, given = in_memory(objective="distill", **options)
        given["teacher"] = teacher if name == "object" else None
        with Trainer(config, rows=rows_of(toy_rows()), output=tmp_path / name, **given) as trainer:
            trainer.run(until=3)
        found.append(metric_lines(tmp_path / name))
    assert found[0] == found[1]
    config, given = in_memory(objective="distill")
    other = tiny_llama(torch.float32, seed=1), word_tokenizer()
    with (
        Trainer(config, rows=rows_of(toy_rows()), output=tmp_path / "object", teacher=other, **given) as trainer,
        pytest.raises(CheckpointError, match="have changed"),
    ):
        trainer.run(resume=True)


WRONG = {
    "no rows": ({"rows": []}, DataError, "rows: there is none"),
    "a dict": ({"rows": toy_rows()}, DataError, r"rows\[0\]: a dict. Expected a promptlora.data.Row"),
    "no output": (
        {"rows": [Row(task="t", prompt="say a", input="w1", outputs=())]},
        DataError,
        r"rows\[0\]: outputs=.*expected a list",
    ),
    "no rows and no path": ({"rows": None}, ConfigError, "data.train is missing"),
    "no folder": ({"output": None}, ConfigError, "output is missing"),
    "a model alone": ({"tokenizer": None}, ConfigError, "model and tokenizer: one of them is missing"),
    "a teacher that is not used": ({"teacher": (1, 2)}, ConfigError, "teacher: not used by objective='sft'"),
    "a callback's class": ({"callbacks": [Callback]}, ConfigError, "callbacks: .*is not a callback"),
    "no callback": ({"callbacks": [3]}, ConfigError, "callbacks: 3 is not a callback"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_one_line(tmp_path, in_memory, case):
    options, error, expected = WRONG[case]
    config, given = in_memory()
    given |= {"rows": rows_of(toy_rows()), "output": tmp_path / "run", **options}
    with pytest.raises(error, match=expected) as caught:
        Trainer(config, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "options"),
    [("base", {}), ("data.train", {"data": {"train": "r"}}), ("distill", {"distill": {"teacher": "t"}})],
)
def test_a_path_beside_an_object_is_refused(tmp_path, in_memory, key, options):
    config, given = in_memory(objective="distill", **options)
    config = replace(config, base="b" if key == "base" else "")
    with pytest.raises(ConfigError, match=rf"and {key}='.': both are given"):
        Trainer(
            config,
            rows=rows_of(toy_rows()),
            output=tmp_path / "run",
            teacher=(given["model"], given["tokenizer"]),
            **given,
        )


# --- callbacks ---------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Writes down what it is told, and stops after a step."""

    def __init__(self, last: int | None = None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.last, self.step = last, 0

    def on_start(self, step: int) -> None:
        self.events.append(("start", step))

    def on_step(self, metrics: StepMetrics) -> None:
        self.step = metrics.step
        self.events.append(("step", metrics.step))

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        assert losses["validation_loss"] > 0
        self.events.append(("validation", step))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        self.events.append(("checkpoint", step))

    def on_warning(self, line: str) -> None:
        self.events.append(("warning", line))

    def should_stop(self) -> bool:
        return self.step == self.last

    def on_end(self) -> None:
        self.events.append(("end", self.step))


def test_callbacks_hear_of_everything_in_order(make_trainer):
    trainer = make_trainer(
        rows=toy_rows(4), steps=4, checkpoint_every=3, validation={"tasks": 1, "split": "", "every": 2}
    )
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.run()
    assert recorder.events == [
        ("start", 0), ("step", 1), ("step", 2), ("validation", 2), ("step", 3), ("checkpoint", 3), ("step", 4),
        ("validation", 4), ("checkpoint", 4), ("end", 4),
    ]  # fmt: skip


def test_a_callback_stops_a_run_with_a_checkpoint_that_can_be_resumed(make_trainer):
    trainer = make_trainer(steps=6, checkpoint_every=100)
    counted: list[int] = []
    trainer.callbacks += [Recorder(last=2), lambda metrics: counted.append(metrics.step)]
    assert trainer.run() == trainer.folder / "step-2"
    assert counted == [1, 2]
    again = make_trainer(steps=6, checkpoint_every=100)
    recorder = Recorder()
    again.callbacks.append(recorder)
    assert again.run(resume=True) == again.folder / "final"
    assert recorder.events[0] == ("start", 2)
    assert [line["step"] for line in metric_lines(again.folder)] == [1, 2, 3, 4, 5, 6]


def test_callbacks_are_ended_when_a_run_fails(make_trainer):
    trainer = make_trainer()
    recorder = Recorder()

    def fail(metrics: StepMetrics) -> None:
        raise ZeroDivisionError

    trainer.callbacks += [recorder, fail]
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert recorder.events == [("start", 0), ("step", 1), ("end", 1)]
    assert not trainer.accelerator.trackers  # the log files are closed


def test_a_warning_is_given_once(make_trainer):
    rows = [{**row, "outputs": ["c"]} for row in toy_rows(4, 10)]  # no prompt makes a difference
    trainer = make_trainer(
        rows=rows, steps=25, margin_every=2, prompts_per_batch=4, optim={"static_lr": 1e-1, "lr": 1e-6}
    )
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.run(until=24)
    warnings = [line for kind, line in recorder.events if kind == "warning"]
    assert len(warnings) == 1
    assert "the steering margin was below" in warnings[0]


# --- trackers ----------------------------------------------------------------------------------------------


def test_a_tracker_of_accelerate_gets_configuration_and_metrics(make_trainer):
    told: list[Any] = []

    class Kept(GeneralTracker):
        name = "kept"
        requires_logging_directory = False

        def __init__(self, run_name: str, **options: Any) -> None:
            super().__init__()
            told.append(run_name)

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append(values["optim.lr"])

        def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
            told.append((step, values["loss"]))

        def finish(self) -> None:
            told.append("finished")

    register_tracker_class(Kept)
    trainer = make_trainer(steps=2, trackers=["kept"])
    trainer.run()
    losses = [(line["step"], line["loss"]) for line in metric_lines(trainer.folder)]
    assert told == ["promptlora", trainer.config.optim.lr, *losses, "finished"]
    assert not (trainer.folder / "logs").exists()  # no TensorBoard, as configured


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tensorbord", "trackers: 'tensorbord' is unknown. Expected some of .*tensorboard"),
        ("wandb", "is not installed"),
    ],
)
def test_a_tracker_that_accelerate_would_leave_out_is_refused(make_trainer, monkeypatch, name, expected):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ConfigError, match=expected):
        make_trainer(trackers=[name])

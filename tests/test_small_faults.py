"""Small things that a new user meets: bars, paths, near names, and what tables and plots say of themselves."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from pathlib import Path

import pytest
import uvicorn
from rich.console import Console

from promptlora.cli import main
from promptlora.cli.demo import EXAMPLES
from promptlora.cli.training_bar import TrainingBar
from promptlora.data import Row
from promptlora.errors import ModelError
from promptlora.evaluate.answers import Answer
from promptlora.evaluate.report import FEW_TASKS, summarize
from promptlora.models import load_config
from promptlora.train.callbacks import StepMetrics
from tests.test_cli import fails, hypernetwork  # noqa: F401 (a fixture)

TEXT = "The cat saw a cat."


def test_training_shows_step_bar_and_time_in_80_columns():
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    bar = TrainingBar(12_000, shown=True, console=console)
    bar.on_start(0)
    measured = {"margin": 0.123, "gibberish_margin": 0.5, "mean_margin": -0.2, "validation_loss": 2.5}
    bar.on_step(
        StepMetrics(
            step=11_999,
            loss=12.345,
            tokens_per_second=123_456.0,
            lr=1e-3,
            trunk_norm=1.0,
            head_norm=1.0,
            static_norm=1.0,
            **measured,
        )
    )
    bar.on_end()
    lines = text.getvalue().splitlines()
    last = next(line for line in reversed(lines) if "step" in line)
    assert "11999/12000" in last
    assert "━" in last
    assert "loss 12.345" in last
    assert len(re.findall(r"[\d-]:[\d-]{2}:[\d-]{2}", last)) == 2
    assert "…" not in text.getvalue()
    assert any("margin +0.123  gibberish +0.500  mean -0.200  held out +2.500" in line for line in lines)


@pytest.mark.real
def test_the_demo_prints_no_path_that_is_gone(hypernetwork, tmp_path, capsys):  # noqa: F811
    options = ["--hypernetwork", str(hypernetwork), "--max-new-tokens", "2"]
    assert main(["demo", *options]) == 0
    printed = capsys.readouterr().out
    assert "was temporary" in printed
    assert not [word for word in printed.split() if word.startswith("/") and not Path(word).exists()]
    assert main(["demo", *options, "--json", "-o", str(tmp_path / "kept")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert Path(values["peft"]["folder"]).is_dir()
    assert len(values["rows"]) == len(EXAMPLES)
    assert all({"base", "in_context", "adapted", "adapted_in_context"} <= set(row) for row in values["rows"])


def test_a_plot_says_that_it_smooths(tmp_path):
    pytest.importorskip("matplotlib")
    lines = "".join(json.dumps({"step": i, "loss": 2.0 / i, "margin": 0.1}) + "\n" for i in range(1, 40))
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert main(["plot", str(tmp_path / "metrics.jsonl"), "-o", str(tmp_path / "a.svg")]) == 0
    assert "mean of the last 25 steps" in (tmp_path / "a.svg").read_text()  # matplotlib notes texts as comments


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("smollm2-135m-instrct", "smollm2-135m-instruct"),
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instuct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("qwen3-coder-nxt", "qwen3-coder-next"),
        ("./my-mode", "my-model"),
    ],
)
def test_near_names_of_models_are_suggested(given, near, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    with pytest.raises(ModelError, match=rf"Did you mean '{near}'\?"):
        load_config(given)
    assert "Did you mean" in fails(capsys, "targets", given)


def test_names_that_are_like_no_other_get_no_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_config("gpt2")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(("tasks", "warned"), [(1, True), (FEW_TASKS - 1, True), (FEW_TASKS, False)])
def test_intervals_from_few_tasks_carry_a_warning(tasks, warned):
    rows = [Row(task=f"t{i}", prompt="p", input=str(i), outputs=("a",), metric="exact_match") for i in range(tasks)]
    answers = {
        (c, i): Answer(condition=c, row=i, text="a", tokens=3) for c in ("base", "adapter") for i in range(tasks)
    }
    text = summarize(rows, answers, ["base", "adapter"], {}).to_markdown()
    assert ("Warning: these intervals come from" in text) is warned


# --- inspect -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_inspect_says_which_of_two_equal_tokens_it_took_and_prints_less_with_a_page(hypernetwork, tmp_path, capsys):  # noqa: F811
    options = ["--hypernetwork", str(hypernetwork), "--layer", "3", "--head", "2"]
    assert main(["inspect", TEXT, "--raw", "--token", "cat", *options]) == 0
    captured = capsys.readouterr()
    assert re.search(r"token 'cat' stands at 1, 4; this is the one at 4\. --token NUMBER", captured.err)
    assert "What the adapter adds" not in captured.out  # without a prompt there is nothing added, and no table of zeros
    assert "adapted" not in captured.out
    assert main(["inspect", TEXT, "--raw", "-p", "Say yes.", "-o", str(tmp_path / "a.html"), *options]) == 0
    less = capsys.readouterr()
    assert "stands at" not in less.err
    assert "Every key" not in less.out
    assert "next token, adapted" in less.out
    assert len(less.out.splitlines()) <= 6
    assert "Every key" in (tmp_path / "a.html").read_text()


def test_a_server_leaves_the_log_handlers_of_the_process_alone(monkeypatch):
    """uvicorn's default configuration closes every handler there is, and absl's then closes its stream."""
    from promptlora.server import running

    closed = []

    class Handler(logging.StreamHandler):
        def close(self) -> None:
            closed.append(self)
            super().close()

    handler = Handler(io.StringIO())
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets=None: None)
    with socket.socket() as listener:
        running.serve(None, listener, drain=1.0, ready=lambda: None)
    assert not closed
    handler.close()
    assert closed == [handler]

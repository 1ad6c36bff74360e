"""The command line as a user meets it: processes of its own, exit codes, one-line errors, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptlora.adapt.prompt_lora import hypernetwork_label
from promptlora.cli import main
from promptlora.cli.console import out
from promptlora.cli.inspection import print_section
from promptlora.hypernet.config import HEAD_KINDS
from promptlora.inspect.sections import Column, Section
from promptlora.lora.origin import AdapterOrigin

COMMANDS = (
    "demo",
    "run",
    "chat",
    "generate",
    "refine",
    "eval",
    "train",
    "teach",
    "plot",
    "targets",
    "inspect",
    "serve",
    "synth",
    "wordings",
)
ROWS = [
    {"task": "plural", "prompt": "Write the plural.", "input": "cat", "outputs": ["cats"], "metric": "exact_match"},
    {"task": "plural", "prompt": "Write the plural.", "input": "dog", "outputs": ["dogs"], "metric": "exact_match"},
    {"task": "yes", "prompt": "Say yes.", "input": "well?", "outputs": ["yes"], "metric": "exact_match"},
    {"task": "yes", "prompt": "Say yes.", "input": "so?", "outputs": ["yes"], "metric": "exact_match"},
]


def promptlora(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("promptlora"), *map(str, arguments)],
        capture_output=True, text=True, input=stdin, timeout=300, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of an error with exit code 2; nothing on standard output."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.fixture
def hypernetwork(lm, tmp_path) -> Path:
    """The small hypernetwork of the tests, as a folder."""
    lm.hypernetwork.save_pretrained(tmp_path / "hypernetwork")
    return tmp_path / "hypernetwork"


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"promptlora {command}" in text


def test_help_lists_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f" {command} " in text for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("promptlora 0.")


def test_wrong_options_are_exit_2(capsys):
    assert main(["run", "--promt", "x", "y"]) == 2
    assert "error: No such option: --promt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--prompt", "x", "y", "--hypernetwork", "nowhere"), "nowhere: no config.json"),
        (("run", "--prompt", "x", "y", "--base", "./nowhere"), "./nowhere: no such folder"),
        (("run", "--prompt", "x", "y", "--base", "no-such-model-here"), "pass a folder"),
        (("run", "--prompt", " ", "y"), "is empty"),
        (("run", "y"), 'no prompt. Expected --prompt "…", --prompt-file FILE or --adapter PATH.'),
        (
            ("run", "--prompt", "x", "--prompt-file", "z", "y"),
            "--prompt and --prompt-file were given. Expected one of them.",
        ),
        (("run", "--prompt-file", "nowhere.txt", "y"), "nowhere.txt: cannot be read"),
        (("run", "--prompt", "x", "y", "--dtype", "int3"), "--dtype int3: expected float32 or bfloat16"),
        (("run", "--prompt", "x", "y", "--device", "cuda:9"), "--device cuda:9: not on this machine"),
        (("run", "--prompt", "word " * 600, "y"), "at most"),
        (("train", "nowhere.toml"), "nowhere.toml: no such file"),
        (("eval", "nowhere.jsonl", "-o", "x"), "nowhere.jsonl: no such file"),
        (("targets", "./nowhere"), "./nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, words, hypernetwork, capsys):
    if arguments[0] in ("run",) and "--hypernetwork" not in arguments:
        arguments = (*arguments, "--hypernetwork", hypernetwork)
    assert words in fails(capsys, *arguments)


def test_an_existing_output_is_refused_and_kept(hypernetwork, tmp_path, capsys):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    line = fails(capsys, "generate", "--prompt", "x", "-o", folder, "--hypernetwork", hypernetwork)
    assert "exists already" in line
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]


def test_a_damaged_hypernetwork_is_refused(hypernetwork, capsys):
    weights = hypernetwork / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in fails(capsys, "run", "--prompt", "x", "y", "--hypernetwork", hypernetwork)


def test_a_row_without_outputs_names_its_line(data, hypernetwork, tmp_path, capsys):
    data.write_text(data.read_text() + '{"task": "t", "prompt": "p", "input": "i"}\n')
    line = fails(capsys, "eval", data, "-o", tmp_path / "o", "--hypernetwork", hypernetwork)
    assert "rows.jsonl:5" in line
    assert "outputs" in line


@pytest.mark.real
def test_run_prints_json(hypernetwork, capsys):
    options = ["--max-new-tokens", "4", "--hypernetwork", str(hypernetwork), "--json"]
    assert main(["run", "--prompt", "Say yes.", "well?", *options]) == 0
    values = json.loads(capsys.readouterr().out)
    read = values["tokens_read"]
    assert read["in_context"] == read["adapted_in_context"] > read["adapted"] == read["base"]
    assert {"base", "in_context", "adapted", "adapted_in_context", "adapter"} <= set(values)


@pytest.mark.real
def test_chat_answers_a_pipe(hypernetwork):
    done = promptlora(
        "chat", "--prompt", "Say yes.", "--max-new-tokens", "4", "--hypernetwork", hypernetwork,
        stdin="hello\n/base\nhello\n/what\n/reset\n/quit\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "adapter off" in done.stderr
    assert "/what: no such command" in done.stderr


@pytest.mark.real
def test_generate_writes_an_adapter_that_peft_loads(hypernetwork, lm, tmp_path, capsys):
    import peft

    folder = tmp_path / "adapter"
    assert main(["generate", "-p", "Say yes.", "-o", str(folder), "--hypernetwork", str(hypernetwork), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["projections"] == 120
    config = peft.PeftConfig.from_pretrained(str(folder))
    assert config.r == 2
    folder = tmp_path / "small"
    options = ["--compress", "1", "--pad-rank", "auto", "--hypernetwork", str(hypernetwork)]
    assert main(["generate", "-p", "Say yes.", "-o", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "rank 1 for 120 projections" in " ".join(printed.split())
    assert "relative error of the update" in printed
    assert "of weights" in printed
    assert f'promptlora run --adapter {folder} "an input"' in printed
    wrong = ["generate", "-p", "x", "-o", tmp_path / "no", "--pad-rank", "many", "--hypernetwork", hypernetwork]
    assert "--pad-rank many" in fails(capsys, *wrong)


@pytest.mark.real
def test_eval_prints_the_report(data, hypernetwork, tmp_path, capsys):
    arguments = ["eval", data, "-o", tmp_path / "o", "--split", "", "--hypernetwork", hypernetwork, "--json"]
    assert main([*map(str, arguments), "--max-new-tokens", "3", "--conditions", "base,adapter,wrong_prompt"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["overall"]) == {"base", "adapter", "wrong_prompt"}
    assert (tmp_path / "o" / "report.md").is_file()
    (tmp_path / "o" / "report.md").unlink()
    again = ["eval", data, "-o", tmp_path / "o", "--split", "", "--report", "--json", "--hypernetwork", "nowhere"]
    assert main([*map(str, again)]) == 0  # no model is loaded
    assert json.loads(capsys.readouterr().out) == report
    assert (tmp_path / "o" / "report.md").is_file()
    line = fails(capsys, "eval", data, data, "-o", tmp_path / "p", "--split", "")
    assert "Expected each task in one file" in line
    assert "output folder '': it is empty" in fails(capsys, "eval", data, "-o", "", "--split", "", "--report")
    assert not (tmp_path / "p").exists()


def test_targets_lists_the_shapes(capsys):
    assert main(["targets", "--json"]) == 0
    assert "576" in capsys.readouterr().out


def test_narrow_terminals_cut_no_name_and_no_number(monkeypatch, capsys):
    monkeypatch.setattr(out, "_width", 60)
    assert main(["targets", "--plan"]) == 0
    text = capsys.readouterr().out
    assert "embedded base (LlamaForCausalLM)" in text
    assert "…" not in text
    assert all(f"\n{kind} " in text for kind in HEAD_KINDS)
    columns = (
        Column("key", text=True),
        Column("q·k", ".2f", sided=True),
        Column("weight", sided=True),
        Column("change", "+.4f"),
    )
    row = (("0 animal",), (-1234.5, 6.0), (0.25, 0.75), (0.5,))
    print_section(Section("Every key", "", ("base", "adapted"), columns, (row,)))
    told = capsys.readouterr()
    assert "+0.5000" in told.out
    assert "-1234.50" in told.out
    monkeypatch.setattr(out, "_width", 36)
    print_section(Section("Every key", "", ("base", "adapted"), columns, (row,)))
    told = capsys.readouterr()
    assert told.out.split()[-4:] == ["animal", "0.250", "0.750", "+0.5000"]
    assert "left out in 36 columns: q·k" in told.err


def test_generate_tells_that_its_folder_exists_before_the_base_is_loaded(hypernetwork, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    label = hypernetwork_label(hypernetwork)
    folder = Path(AdapterOrigin("Say yes.", (), False, label).folder_name)
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    arguments = ("--prompt", "Say yes.", "--base", "./nowhere", "--hypernetwork", hypernetwork)
    assert "exists already" in fails(capsys, "generate", *arguments)


def _train_config(tmp_path: Path, data: Path) -> Path:
    config = tmp_path / "train.toml"
    config.write_text(
        f'output = "{tmp_path / "run"}"\nsteps = 4\nprompts_per_batch = 2\nrows_per_prompt = 2\ncheckpoint_every = 2\n'
        f'margin_every = 2\n[data]\ntrain = "{data}"\n[hypernetwork]\nsource_layer = 2\ncontext_size = 16\nrank = 2\n'
    )
    return config


@pytest.mark.real
def test_train_and_use_what_was_trained(data, tmp_path, capsys):
    config = _train_config(tmp_path, data)
    assert main(["train", str(config), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["step"] == 4
    assert values["margin"] is not None
    assert (
        main(["run", "-p", "Say yes.", "x", "--hypernetwork", values["output"], "--max-new-tokens", "2", "--json"]) == 0
    )
    capsys.readouterr()
    assert "--resume" in fails(capsys, "train", config)


@pytest.mark.real
def test_ctrl_c_writes_a_checkpoint_and_resume_goes_on(data, tmp_path, capsys):
    config = _train_config(tmp_path, data)
    config.write_text(config.read_text().replace("steps = 4", "steps = 400").replace("_every = 2", "_every = 300"))
    command = [Path(sys.executable).with_name("promptlora"), "train", config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "--resume" in error
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    step = int(checkpoint.name.removeprefix("step-"))
    assert main(["train", str(config), "--resume", "--until", str(step + 1), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == step + 1

"""Every command refuses what it cannot do in one line with exit code 2, before work, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promptlora.adapt.prompt_lora import shipped_hypernetwork
from promptlora.cli import main
from promptlora.cli.console import read_prompt
from promptlora.errors import PromptError
from promptlora.models import embedded_folder

ROW = {"task": "t", "prompt": "Say yes.", "input": "i", "outputs": ["a"]}
PROMPT = ["--prompt", "Say yes."]
LONG = "x" * 300


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with some files that are wrong, and one that is right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "half.jsonl").write_text(json.dumps({**ROW, "prompt": "\ud800"}) + "\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "a"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": NaN}\n')
    (tmp_path / "huge.toml").write_text(
        'output = "o"\n[data]\ntrain = "rows.jsonl"\n[hypernetwork]\nrank = 1000000000\n'
    )
    (tmp_path / "inf.toml").write_text('output = "o"\n[data]\ntrain = "rows.jsonl"\n[optim]\nlr = inf\n')
    (tmp_path / "long.toml").write_text(f'output = "{LONG}"\n[data]\ntrain = "rows.jsonl"\n')
    return tmp_path


REFUSED = {
    "a name too long, generate": (["generate", *PROMPT, "-o", LONG], "File name too long"),
    "no name, generate": (["generate", *PROMPT, "-o", ""], "no name of its own"),
    "the working folder, generate": (["generate", *PROMPT, "-o", "."], "no name of its own"),
    "a file as the output, generate": (["generate", *PROMPT, "-o", "file"], "is a file"),
    "below a file, generate": (["generate", *PROMPT, "-o", "file/below"], "cannot be written"),
    "a digit that is none": (["generate", *PROMPT, "-o", "a", "--pad-rank", "²"], "--pad-rank ²"),
    "a huge rank": (["generate", *PROMPT, "-o", "a", "--pad-rank", "9" * 5000], "--pad-rank"),
    "a huge compression": (["generate", *PROMPT, "-o", "a", "--compress", "9" * 30], "--compress"),
    "no device for weights": (["generate", *PROMPT, "-o", "a", "--device", "meta"], "--device meta"),
    "a device that is none": (["run", *PROMPT, "x", "--device", ""], "--device"),
    "an output that fails, demo": (["demo", "-o", "file"], "is a file"),
    "a hypernetwork with too long a name": (["run", *PROMPT, "x", "--hypernetwork", LONG], "no config.json"),
    "a base with too long a name": (["run", *PROMPT, "x", "--base", LONG], "no such folder"),
    "a base without a name": (["run", *PROMPT, "x", "--base", ""], "no such folder"),
    "an empty prompt file": (["run", "--prompt-file", "empty.txt", "x"], "is empty"),
    "a prompt that is not UTF-8": (["run", "--prompt-file", "latin.txt", "x"], "latin.txt: not UTF-8"),
    "a folder as the prompt": (["run", "--prompt-file", ".", "x"], "cannot be read"),
    "a prompt without an end": (["run", "--prompt-file", "/dev/zero", "x"], "longer than"),
    "a prompt of half a character": (["run", "--prompt", "a\udcff" * 300, "x"], "not Unicode"),
    "a prompt that is too long": (["run", "--prompt", "word " * 600, "x"], "at most 512"),
    "many new tokens": (["run", *PROMPT, "x", "--max-new-tokens", "9" * 30], "--max-new-tokens"),
    "standard input twice": (["chat", "--prompt-file", "-"], "standard input is the conversation"),
    "a temperature that is none": (["chat", *PROMPT, "--temperature", "nan"], "finite|greater than"),
    "an infinite temperature": (["chat", *PROMPT, "--temperature", "inf"], "finite"),
    "data with too long a name": (["eval", LONG, "-o", "o"], "no such file"),
    "a file as the output, eval": (["eval", "rows.jsonl", "-o", "file", "--split", ""], "is a file"),
    "no name, eval": (["eval", "rows.jsonl", "-o", "", "--split", ""], "it is empty"),
    "half a character, eval": (["eval", "half.jsonl", "-o", "o", "--split", ""], "half a surrogate pair"),
    "vectors that are none, eval": (["eval", "rows.jsonl", "-o", "o", "--vectors", "nan"], "finite|greater than"),
    "a huge seed, eval": (["eval", "rows.jsonl", "-o", "o", "--seed", "9" * 30], "--seed"),
    "a huge rank, train": (["train", "huge.toml"], "rank=1000000000 in HyperNetworkConfig"),
    "an infinite rate, train": (["train", "inf.toml"], "lr=inf"),
    "a name too long, train": (["train", "long.toml"], "File name too long"),
    "a configuration with too long a name": (["train", LONG], "no such file"),
    "a folder as the configuration": (["train", "."], "no such file"),
    "minutes that are none": (["train", "inf.toml", "--minutes", "nan"], "finite|greater than"),
    "many threads": (["train", "inf.toml", "--threads", "9" * 12], "--threads"),
    "a file as the output, teach": (["teach", "rows.jsonl", "-o", "file"], "is a file"),
    "options that are deep, teach": (["teach", "rows.jsonl", "-o", "o", "--vllm-options", "[" * 9999], "--vllm-options"),
    "a place that is none, teach": (["teach", "rows.jsonl", "-o", "o", "--place", "up"], "place='up'"),
    "answers of nobody, teach": (["teach", "rows.jsonl", "-o", "o", "--answers", "me"], "answers='me'"),
    "a metric of text, plot": (["plot", "."], "loss='a'; expected a number"),
    "a run with too long a name, plot": (["plot", LONG], "no such file"),
    "a picture that is none, plot": (["plot", ".", "-o", "a.gif"], "expected .svg"),
    "a folder as the picture, plot": (["plot", ".", "-o", "."], "no name of its own"),
    "a model with too long a name, targets": (["targets", LONG], "no such folder"),
    "a huge rank, targets": (["targets", "--rank", "9" * 30], "--rank"),
    "a page that exists, inspect": (["inspect", *PROMPT, "x", "-o", "file"], "exists already"),
    "a name too long, inspect": (["inspect", *PROMPT, "x", "-o", LONG], "File name too long"),
    "prompts that are none, inspect": (["inspect", "--space", "prompts.jsonl"], "prompts.jsonl:2: not JSON"),
    "prompts that are not UTF-8, inspect": (["inspect", "--space", "latin.txt"], "not UTF-8"),
    "inputs of a folder, inspect": (["inspect", "--ablate", *PROMPT, "--data", "none.txt"], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(place, case, capsys, monkeypatch):
    arguments, said = REFUSED[case]
    monkeypatch.setattr("promptlora.models.AutoModelForCausalLM.from_pretrained", None)  # no base is loaded for it
    before = sorted(path.name for path in place.iterdir())
    assert main(arguments) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, shown.err
    assert any(words in lines[0] for words in said.split("|")), lines[0]
    assert shown.out == ""
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.real
@pytest.mark.parametrize("rows", [[], [[0, 1]], [[5, 2]], "x", [[0, 576], [0, 576]]])
def test_a_hypernetwork_with_projections_of_wrong_rows(tmp_path, capsys, rows):
    shutil.copytree(shipped_hypernetwork(), tmp_path / "h")
    config = json.loads((tmp_path / "h" / "config.json").read_text())
    config["projections"][0]["rows"] = rows
    (tmp_path / "h" / "config.json").write_text(json.dumps(config))
    assert main(["generate", *PROMPT, "-o", str(tmp_path / "a"), "--hypernetwork", str(tmp_path / "h")]) == 2
    assert "rows" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.real
@pytest.mark.parametrize("template", ["{{ messages + 1 }}", "{{ 1 / 0 }}", "{% for", "nothing at all"])
def test_a_template_that_fails_is_one_line(tmp_path, capsys, template):
    base = tmp_path / "b"
    shutil.copytree(embedded_folder(), base, copy_function=lambda a, b: Path(b).symlink_to(a))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    (base / "chat_template.jinja").write_text(template)
    assert main(["run", *PROMPT, "x", "--base", str(base), "--max-new-tokens", "1"]) == 2
    assert "the chat template of the base refuses" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"Say yes.", b"\xef\xbb\xbfSay yes.", b"\xef\xbb\xbfSay yes.\r\n"])
def test_a_prompt_file_is_read_without_its_byte_order_mark(tmp_path, data):
    (tmp_path / "p.txt").write_bytes(data)
    assert read_prompt(None, str(tmp_path / "p.txt")).strip("\n") == "Say yes."


def test_a_closed_standard_input_is_no_prompt(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(PromptError, match="standard input is closed"):
        read_prompt(None, "-")


def command(line: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """A shell line with the installed command in a process of its own."""
    program = Path(sys.executable).with_name("promptlora")
    return subprocess.run(
        ["bash", "-c", line.replace("promptlora", str(program), 1)],
        capture_output=True,
        timeout=300,
        env=dict(os.environ),
        **options,
    )  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("promptlora plot run --json > /dev/full", 2, b"No space left on device"),
        ("promptlora plot run > /dev/full", 2, b"No space left on device"),
        ("promptlora plot run --json >&-", 0, b""),
        ("promptlora plot none 2>&-", 2, b""),
        ("promptlora run --prompt-file - x <&-", 2, b"standard input"),
        ("promptlora plot run --json | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, b""),
        ("promptlora plot $'\\xff'", 2, b"no such file"),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, line, code, said):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' * 5000)
    done = command(line, cwd=tmp_path)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert said in done.stderr
    assert done.returncode == code, done.stderr

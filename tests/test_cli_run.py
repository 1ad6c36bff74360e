"""``promptlora run`` and ``chat``: files of inputs, saved adapters, the prompt in the context."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from promptlora.cli import main
from promptlora.data.inputs import read_inputs
from promptlora.data.rows import read_rows
from promptlora.errors import DataError
from promptlora.lora import LoRAWeights
from tests.forked import promptlora, run
from tests.test_cli import fails, hypernetwork  # noqa: F401 (a fixture)

INPUTS = ["We live in Rome.", "She flew to Paris."]
SHORT = ("--max-new-tokens", "4")


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


# --- files of inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "We live in Rome.\n\nShe flew to Paris.\n"),
        ("a.jsonl", '"We live in Rome."\n{"input": "She flew to Paris.", "task": "t"}\n'),
        ("a.csv", 'input,other\nWe live in Rome.,1\n"She flew to Paris.",2\n'),
        ("b.csv", "\ufeffother , input\r\n1,We live in Rome.\r\n\r\n2,She flew to Paris.\r\n"),
    ],
)
def test_inputs_of_each_kind_of_file(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_inputs(tmp_path / name) == INPUTS


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "\n \n", "it holds no input"),
        ("a.pdf", "x", ".pdf. Expected one of .txt"),
        ("a.jsonl", '{"input": 3}\n', "a.jsonl:1: input 3"),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl:1: no key is named input; found: text"),
        ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
        ("a.csv", "text\nx\n", "a.csv:1: no column is named input; found: text"),
        ("a.csv", "input\nx,y\n", "a.csv:2: 2 cells. Expected at most 1"),
        ("a.csv", "input,input\nx,y\n", "a.csv:1: header"),
        ("a.csv", 'input\n"x\n', "not CSV"),
        ("a.csv", "", "a.csv:1: header"),
    ],
)
def test_files_without_usable_inputs_are_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words.replace(".", r"\.")):
        read_inputs(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_inputs(tmp_path / "nowhere.txt")


def test_rows_are_read_from_csv(tmp_path):
    (tmp_path / "rows.csv").write_text(
        'task,prompt,input,outputs,metric\nplural,Write the plural.,cat,cats,exact_match\n'
        'lines,Repeat.,"a\nb","[""a b"", ""a, b""]",\nodd,Repeat.,,[sic],\n'
    )  # fmt: skip
    plural, lines, odd = read_rows(tmp_path / "rows.csv")
    assert (plural.task, plural.prompt, plural.input, plural.outputs, plural.metric) == (
        "plural", "Write the plural.", "cat", ("cats",), "exact_match",
    )  # fmt: skip
    assert (lines.input, lines.outputs, lines.metric) == ("a\nb", ("a b", "a, b"), "rougeL")
    assert (odd.input, odd.outputs) == ("", ("[sic]",))
    assert [row.task for row in read_rows(tmp_path)] == ["plural", "lines", "odd"]  # a folder of them
    (tmp_path / "rows.csv").write_text("prompt,input\nSay yes.,well?\n")
    with pytest.raises(DataError, match=r"rows.csv:2: outputs=None"):
        read_rows(tmp_path / "rows.csv")


# --- start-up ------------------------------------------------------------------------------------------


def test_the_command_line_starts_without_pytorch_and_reads_inputs_without_it(tmp_path):
    """Help, versions and wrong options are told at once; PyTorch and transformers take seconds to import."""
    (tmp_path / "a.txt").write_text("x\n")
    code = (
        "import sys\nfrom promptlora.cli import main\nmain(['--help'])\nmain(['synth', '--list'])\n"
        "main(['plot', 'nowhere'])\n"
        f"from promptlora.data.inputs import read_inputs\nread_inputs(__import__('pathlib').Path({str(tmp_path / 'a.txt')!r}))\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
        "import os\nassert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120, env=environment)


# --- run ---------------------------------------------------------------------------------------------


@pytest.mark.real
def test_run_answers_every_input_of_a_file(hypernetwork, tmp_path, capsys):  # noqa: F811
    (tmp_path / "inputs.csv").write_text("input\n" + "\n".join(INPUTS) + "\n")
    common = ("run", "-p", "Name the city.", "--hypernetwork", hypernetwork, *SHORT)
    many = _json(capsys, *common, "--inputs-file", tmp_path / "inputs.csv", "--json")
    assert [row["input"] for row in many["answers"]] == INPUTS
    one = _json(capsys, *common, INPUTS[1], "--json")
    last = many["answers"][1]
    assert {name: one[name] for name in last} == last  # as each is answered alone
    assert main([*map(str, common), "--inputs-file", str(tmp_path / "inputs.csv")]) == 0
    printed = capsys.readouterr().out
    assert "base, prompt" in printed
    assert "adapted" in printed
    both = (INPUTS[0], "--inputs-file", tmp_path / "inputs.csv")
    assert "an input and --inputs-file were given. Expected one" in fails(capsys, *common, *both)
    assert "no input was given. Expected one, in quotes" in fails(capsys, *common)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_run_uses_a_saved_adapter_without_a_hypernetwork(kind, hypernetwork, lm, tmp_path, capsys):  # noqa: F811
    lora = lm.adapt("Name the city.")
    path = tmp_path / ("adapter" if kind == "folder" else "adapter.safetensors")
    lora.save_peft(path) if kind == "folder" else lora.save(path)
    found = _json(capsys, "run", "--adapter", path, INPUTS[0], *SHORT, "--json")
    assert found["prompt"] == "Name the city."  # the adapter tells
    expected = lm.generate(INPUTS[0], lora, max_new_tokens=4)
    assert found["adapted"] == expected
    assert found["base"] == lm.generate(INPUTS[0], max_new_tokens=4)
    both = lm.generate(INPUTS[0], lora, in_context="Name the city.", max_new_tokens=4)
    assert found["adapted_in_context"] == both


@pytest.mark.real
def test_run_shows_an_adapter_of_an_unknown_prompt_two_ways(lm, tmp_path, capsys):
    lora = lm.adapt(["Name the city.", "Say yes."])
    lora.save(tmp_path / "two.safetensors")
    assert "2 adapters. Expected one" in fails(capsys, "run", "--adapter", tmp_path / "two.safetensors", "x")
    bare = LoRAWeights(dict(lora.select(0).items()), lora.scaling, projections=lora.projections)
    bare.save_peft(tmp_path / "bare", card=False)
    found = _json(capsys, "run", "--adapter", tmp_path / "bare", INPUTS[0], *SHORT, "--json")
    assert found["prompt"] is None
    assert "in_context" not in found
    assert found["adapted"] == lm.generate(INPUTS[0], bare, max_new_tokens=4)
    shown = _json(capsys, "run", "--adapter", tmp_path / "bare", "-p", "Say yes.", INPUTS[0], *SHORT, "--json")
    assert shown["in_context"] == lm.generate(INPUTS[0], in_context="Say yes.", max_new_tokens=4)


def test_run_refuses_adapters_that_cannot_be_read_before_a_base_is_loaded(tmp_path, capsys):
    assert "no such file" in fails(capsys, "run", "--adapter", tmp_path / "nowhere", "x")
    (tmp_path / "empty").mkdir()
    assert "no adapter_config.json" in fails(capsys, "run", "--adapter", tmp_path / "empty", "x")


# --- chat --------------------------------------------------------------------------------------------


@pytest.mark.real
def test_chat_can_keep_the_prompt_in_the_context(hypernetwork, lm):  # noqa: F811
    done = run(
        promptlora, "chat", "-p", "Name the city.", "--in-context", *SHORT, "--hypernetwork", hypernetwork,
        stdin=f"{INPUTS[0]}\n/reset\n/base\n{INPUTS[0]}\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the prompt is in the context" in done.stderr
    torch.set_num_threads(1)
    adapted = "".join(
        lm.stream(INPUTS[0], lm.adapt("Name the city.", in_context=True), in_context="Name the city.", max_new_tokens=4)
    )
    base = "".join(lm.stream(INPUTS[0], in_context="Name the city.", max_new_tokens=4))
    assert done.stdout == f"{adapted}\n{base}\n"


def test_how_far_the_prompt_is_from_training_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-p", "blorp fnarg zzt qwop", "hello", "--max-new-tokens", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training_prompts"]["far"] is True
    assert main(["run", "-p", "blorp fnarg zzt qwop", "hello", "--max-new-tokens", "1"]) == 0
    assert "far from all training prompts" in " ".join(capsys.readouterr().err.split())
    assert main(["demo", "--max-new-tokens", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["training_prompts"]["far"] is False for row in rows)

"""``promptlora inspect`` as a user meets it: three views, pages, JSON, and one line for what cannot be shown."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.cli import main
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.models import base_fingerprint
from promptlora.projections import find_projections

from .architectures import CASES, build
from .host_helpers import tiny_prompt_lora

PROMPT = ("--prompt", "Translate to Spanish.")
TEXT = "The cat sat on the mat"


@pytest.fixture
def loaded(monkeypatch, request):
    """The command with the small hypernetwork of the tests on the real base, loaded once for all."""
    lm = request.getfixturevalue("lm")
    monkeypatch.setattr(importlib.import_module("promptlora.cli.inspect"), "load", lambda *a, **k: lm)
    return lm


@pytest.fixture
def unloaded(monkeypatch):
    """The command where loading a model is a failure: an error must come before."""

    def load(*arguments, **options):
        raise AssertionError("a model was loaded before the options were checked")

    monkeypatch.setattr(importlib.import_module("promptlora.cli.inspect"), "load", load)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of an error with exit code 2; nothing on standard output."""
    assert main(["inspect", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    return lines[0]


def prints(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to look at"),
        (("--ablate", TEXT), 'expected --prompt "…" for the adapter'),
        (("--ablate", *PROMPT), "expected one TEXT, or --data FILE"),
        (("--ablate", *PROMPT, TEXT, "--data", "rows.jsonl"), "expected one TEXT, or --data FILE"),
        (("--ablate", *PROMPT, TEXT, "--layer", "3"), "no --token, --layer or --head"),
        (("--data", "rows.jsonl", TEXT), "without --ablate"),
        (("--space", "prompts.txt", TEXT), "--space takes its prompts from the file"),
        (("--space", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--ablate", "--data", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--ablate", "--data", "nowhere.txt"), "a text file has inputs alone"),
        ((TEXT, "--prompt-file", "nowhere.txt"), "nowhere.txt: cannot be read"),
        ((TEXT, "-o", "no/such/folder/page.html"), "no such folder"),
    ],
)
def test_bad_options_are_told_before_a_model_is_loaded(unloaded, capsys, arguments, words):
    assert words in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("one.txt", "a prompt\n\na prompt\n", "1 prompts; expected two or more"),
        ("odd.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "odd.jsonl:2: prompt=3"),
        ("odd.jsonl", '{"prompt": "a"}\n[]\n', "odd.jsonl:2: prompt=None"),
        ("odd.jsonl", "nothing\n", "odd.jsonl:1: not JSON"),
    ],
)
def test_files_of_prompts_that_do_not_fit(unloaded, capsys, tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    assert words in fails(capsys, "--space", tmp_path / name)


def test_an_existing_page_is_kept(unloaded, capsys, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "exists already" in fails(capsys, TEXT, "-o", page)
    assert "is a folder" in fails(capsys, TEXT, "-o", tmp_path, "--overwrite")
    assert page.read_text() == "mine"


@pytest.mark.real
def test_what_the_model_does_not_have_is_named(loaded, capsys):
    line = fails(capsys, TEXT, "--token", "dog")
    assert "'dog' is not in the text" in line
    assert "9 ' cat'" in line
    assert "expected one of 0 … 29" in fails(capsys, TEXT, "--layer", "30")
    assert "expected 0 … 8" in fails(capsys, TEXT, "--layer", "3", "--head", "9")
    assert "no token" in fails(capsys, "", "--raw")


@pytest.mark.real
def test_the_life_of_a_token(loaded, capsys, tmp_path):
    where = ("--token", "cat", "--layer", "12", "--head", "3")
    values = json.loads(prints(capsys, *PROMPT, TEXT, *where, "--json"))
    assert (values["layer"], values["head"], values["key_head"]) == (12, 3, 1)
    assert values["tokens"][values["token"]] == " cat"
    for side in ("base", "adapted"):
        assert sum(values[side]["weights"]) == pytest.approx(1.0)
        scaled = [score * values["scaling"] for score in values[side]["raw"]]
        assert scaled == pytest.approx(values[side]["scaled"])
        assert values[side]["masked"][values["token"] + 1] is None
    assert values["base"]["shares"]["q"]["share"] == 0.0 < values["adapted"]["shares"]["q"]["share"]
    assert values["difference"] < 1e-4
    assert len(values["next"]["adapted"]) == 5

    page = tmp_path / "life.html"
    short = prints(capsys, *PROMPT, TEXT, *where, "-o", page)
    assert "layer 12, head 3" in short
    assert "sum of the row" not in short  # the page has the tables
    text = prints(capsys, *PROMPT, TEXT, *where)
    (sums,) = [line.split() for line in text.splitlines() if "sum of the row" in line]
    assert sums[-2:] == ["1.000000", "1.000000"]
    weight = f"{values['adapted']['weights'][values['token']]:.4f}"
    assert weight in text
    assert weight in page.read_text(encoding="utf-8")


@pytest.mark.real
def test_without_a_prompt_the_base_alone_is_shown(loaded, capsys):
    text = prints(capsys, "The cat", "--raw", "--layer", "1")
    (sums,) = [line.split() for line in text.splitlines() if "sum of the row" in line]
    assert sums == ["sum", "of", "the", "row", "1.000000"]
    assert "adapted" not in text


@pytest.mark.real
def test_a_layer_without_softmax_shows_what_it_has(smollm, monkeypatch, capsys, tmp_path):
    """A tiny Qwen3-Next behind the real tokenizer: DeltaNet in layers 0 to 2, attention in layer 3."""
    case = next(case for case in CASES if case.model_type == "qwen3_next")
    model = build(type(case)(**{**vars(case), "options": {**case.options, "vocab_size": 49152}})).float()
    torch.manual_seed(0)
    config = HyperNetworkConfig(context_size=16, rank=2, encoder_layers=1, trunk_layers=1, source_layer=1)
    network = HyperNetwork(config, find_projections(model), model.config.hidden_size, base_fingerprint(model))
    for name, parameter in network.generator.named_parameters():
        if name.endswith("B.weight") or "static_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    made = PromptLoRA(model, smollm[1], network)
    monkeypatch.setattr(importlib.import_module("promptlora.cli.inspect"), "load", lambda *a, **k: made)
    page = tmp_path / "page.html"
    assert "it has no softmax weights" in prints(capsys, *PROMPT, TEXT, "--token", "cat", "--layer", "1", "-o", page)
    text = prints(capsys, *PROMPT, TEXT, "--token", "cat", "--layer", "1")
    values = json.loads(prints(capsys, *PROMPT, TEXT, "--token", "cat", "--layer", "1", "--json"))
    assert values["kind"] == "DeltaNet"
    assert values["tokens"][values["token"]] == " cat"
    assert set(values["adapted"]["shares"]) >= {"q", "k", "v", "z", "o"}
    assert values["adapted"]["shares"]["v"]["share"] > values["base"]["shares"]["v"]["share"] == 0.0
    share = f"{100 * values['adapted']['shares']['v']['share']:.2f} %"
    for shown in (" ".join(text.split()), page.read_text(encoding="utf-8")):
        assert "it has no softmax weights" in shown
        assert share in shown
    assert "gate" in prints(capsys, *PROMPT, TEXT, "--layer", "3", "--head", "0")
    assert "no softmax weights" in fails(capsys, *PROMPT, TEXT, "--layer", "1", "--head", "0")
    made.close()


@pytest.mark.real
def test_hostile_text_does_no_harm(loaded, capsys, tmp_path):
    page = tmp_path / "page.html"
    text = "<script>alert(1)</script> [red]x[/red] \u202e \u05e9\u05dc\u05d5\u05dd 🎉"
    prints(capsys, "--prompt", text, text, "--layer", "2", "--head", "0", "-o", page)
    assert "<script" not in page.read_text(encoding="utf-8")


def test_ablation_of_rows_with_answers(monkeypatch, capsys, tmp_path):
    """On a tiny base: each of the choices answers with up to 32 tokens."""
    lm = tiny_prompt_lora()
    monkeypatch.setattr(importlib.import_module("promptlora.cli.inspect"), "load", lambda *a, **k: lm)
    rows = [
        {"task": "t", "prompt": "say a", "input": "w1 w2", "outputs": ["a"], "metric": "exact_match"},
        {"task": "u", "prompt": "say b", "input": "w3", "outputs": ["b"], "metric": "exact_match"},
    ]
    data, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = json.loads(prints(capsys, "--ablate", "--data", data, "--rows", "1", "-o", page, "--json"))
    assert values["inputs"] == 1
    assert list(values["choices"]) == ["q", "k", "v", "o", "q+k", "all"]
    for choice, found in values["choices"].items():
        assert (max(found["attention"][0]) == 0.0) == (choice in ("v", "o"))
        assert found["score"] is not None
    assert "<svg" in page.read_text(encoding="utf-8")


@pytest.mark.real
def test_the_space_of_adapters(loaded, capsys, tmp_path):
    file, page = tmp_path / "prompts.jsonl", tmp_path / "space.html"
    prompts = [("Translate to Spanish.", "a"), ("Translate to French.", "a"), ("Write a title.", "b")]
    file.write_text("".join(json.dumps({"prompt": p, "task": t}) + "\n" for p, t in prompts))
    values = json.loads(prints(capsys, "--space", file, "--json"))
    assert values["prompts"] == [p for p, _ in prompts]
    assert values["groups"] == ["a", "a", "b"]
    assert len(values["points"]) == 3
    text = prints(capsys, "--space", file, "-o", page)
    assert "nearest" in text
    assert "Translate to French." in page.read_text(encoding="utf-8")

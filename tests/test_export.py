"""An exported adapter answers elsewhere what it answers here: its card, its tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import processors
from transformers import AutoTokenizer

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.cli import main
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import AdapterOrigin, LoRAWeights
from promptlora.lora.peft import load_peft, save_peft
from promptlora.models import embedded_folder
from promptlora.projections import find_projections
from promptlora.text import ChatExport, encode_chat, render_chat
from tests.helpers import random_lora, tiny_llama
from tests.test_text import ALTERNATING, WITH_DEFAULT, WITHOUT_SYSTEM, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PROMPT = "Extract the name of the city from the sentence."
ODD_PROMPT = 'Say "yes" \\ {{ no }} {% raw %}\n\nin `ä`, on\ttwo lines: \U0001f600'

# What the card says, in a program that does not import this package; one base for several folders.
_ELSEWHERE = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
base, answers = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32"), []
for folder, inputs in json.loads(sys.stdin.read()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, folder).eval()
    answers.append([])
    for text in inputs:
        messages = [{"role": "user", "content": text}]
        rows = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**rows, max_new_tokens=8, do_sample=False)
        answers[-1].append(tokenizer.decode(output[0, rows["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    base = model.unload()
assert "promptlora" not in sys.modules
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def shipped(smollm):
    """The real base with the hypernetwork in the package."""
    made = PromptLoRA(*smollm, HyperNetwork.from_pretrained(ROOT / "src/promptlora/pretrained"))
    made.hypernetwork_name = "the one in the package"
    yield made
    made.close()


def _inputs(count: int) -> list[str]:
    rows = [json.loads(line) for line in (ROOT / "benchmarks/user_prompts.jsonl").read_text().splitlines()]
    return [case["input"] for row in rows for case in row["inputs"]][:count]


@pytest.fixture(scope="module")
def exported(shipped, tmp_path_factory):
    """An adapter alone with 50 inputs, and one for a prompt in the context with 6."""
    return [
        (shipped.adapt(PROMPT), tmp_path_factory.mktemp("alone") / "a", _inputs(50)),
        (shipped.adapt(ODD_PROMPT, in_context=True), tmp_path_factory.mktemp("context") / "a", _inputs(6)),
    ]


@pytest.fixture(scope="module")
def elsewhere(exported) -> list[list[str]]:
    """What plain PEFT answers in another process: one for both folders, since it imports and loads for seconds."""
    for lora, folder, _ in exported:
        lora.save_peft(folder)
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(embedded_folder())],
        input=json.dumps([(str(folder), inputs) for _, folder, inputs in exported]),
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.real
def test_plain_peft_in_another_process_gives_the_answers_of_generate_on_50_inputs(shipped, exported, elsewhere):
    lora, _, inputs = exported[0]
    assert len(set(inputs)) == 50
    ours = shipped.generate(inputs, lora, max_new_tokens=8)
    assert elsewhere[0] == ours
    assert ours[:6] != shipped.generate(inputs[:6], max_new_tokens=8)


@pytest.mark.real
def test_an_adapter_for_the_prompt_in_context_takes_the_prompt_along(shipped, exported, elsewhere):
    lora, _, inputs = exported[1]
    assert elsewhere[1] == shipped.generate(inputs, lora, in_context=ODD_PROMPT, max_new_tokens=8)


@pytest.mark.real
def test_the_code_of_the_card_runs(shipped, tmp_path):
    shipped.adapt(PROMPT).save_peft(tmp_path / "a")
    card = (tmp_path / "a/README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    assert "# without a network: from promptlora.models import embedded_folder; base = embedded_folder()\n" in code
    code = code.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', json.dumps(str(embedded_folder())))  # no network here
    code = code.replace("INPUT", "She flew to Paris on Monday.")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "a", capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "Paris", done.stderr[-2000:]


@pytest.mark.real
def test_the_card_the_metadata_and_the_name_tell_the_prompt(shipped, tmp_path):
    lora = shipped.adapt([PROMPT, ODD_PROMPT], examples=[[("I am in Rome.", "Rome")], []])
    for row, prompt in enumerate((PROMPT, ODD_PROMPT)):
        folder = tmp_path / str(row)
        lora.select(row).save_peft(folder)
        card, digest = (folder / "README.md").read_text(), hashlib.sha256(prompt.encode()).hexdigest()
        assert prompt in card
        assert digest in card
        assert "HuggingFaceTB/SmolLM2-135M-Instruct" in card
        assert "Hypernetwork: the one in the package" in card
        assert render_chat(shipped.tokenizer, "INPUT") in card
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as handle:
            (note,) = json.loads(handle.metadata()["promptlora.provenance"])
        assert (note["prompt"], note["prompt_sha256"]) == (prompt, digest)
        (origin,) = load_peft(folder).origins
        assert origin == lora.origins[row]
    assert "Output: Rome" in (tmp_path / "0/README.md").read_text()
    name = lora.origins[0].folder_name
    assert re.fullmatch(r"extract-the-name-of-the-city-from-the-sentence-[0-9a-f]{8}", name)
    assert name != shipped.adapt(PROMPT).origins[0].folder_name  # other examples, another adapter
    assert (
        json.loads((tmp_path / "0/adapter_config.json").read_text())["base_model_name_or_path"]
        == "HuggingFaceTB/SmolLM2-135M-Instruct"
    )


@pytest.mark.real
def test_generate_names_its_folder_after_the_prompt(lm, tmp_path, monkeypatch, capsys):
    lm.hypernetwork.save_pretrained(tmp_path / "hypernetwork")
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "-p", "Say yes.", "--hypernetwork", "hypernetwork", "--in-context", "--json"]
    assert main(arguments) == 0
    folder = Path(json.loads(capsys.readouterr().out)["output"])
    assert folder.name.startswith("say-yes-")
    assert not folder.is_absolute()
    files = {file.name for file in folder.iterdir()}
    assert files >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "chat_template.jinja",
        "tokenizer.json",
    }
    loaded = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "well?"}]
    found = loaded.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert found == render_chat(lm.tokenizer, "well?", "Say yes.")
    assert "Hypernetwork: hypernetwork (SHA-256" in (folder / "README.md").read_text()  # its name, not its path
    assert main(arguments) == 2  # it is not overwritten
    assert "exists already" in capsys.readouterr().err


# --- the template ----------------------------------------------------------------------------------------

DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("prompt", [None, "Be short.", ODD_PROMPT], ids=["none", "plain", "odd"])
@pytest.mark.parametrize(
    "template", [WITH_DEFAULT, ALTERNATING, WITHOUT_SYSTEM, DROPS_SYSTEM, None],
    ids=["default system", "alternating", "refuses system", "drops system", "none"],
)  # fmt: skip
def test_the_exported_template_renders_what_render_chat_does(template, prompt, tmp_path):
    tokenizer = tiny_tokenizer(template)
    written, exact = ChatExport(tokenizer).write(tmp_path, prompt)
    assert exact
    assert written == render_chat(tokenizer, "INPUT", prompt)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chats = [
        [{"role": "user", "content": "hi {{ x }}"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "bye"}],
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
    ]  # fmt: skip
    for chat in chats:
        (expected,) = encode_chat(tokenizer, [render_chat(tokenizer, chat, prompt)])
        found = loaded.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert list(found) == expected
    assert tokenizer.chat_template == template  # the base's own is left alone


def test_a_format_that_no_template_renders_is_told_in_the_card(tmp_path):
    """A tokenizer without a template that ends every text: no template can write after the answer's place."""
    tokenizer = tiny_tokenizer()
    ending = [("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=ending)
    assert encode_chat(tokenizer, ["hi"])[0][-1] == tokenizer.eos_token_id
    save_peft(random_lora(find_projections(tiny_llama())), tmp_path / "a", chat=ChatExport(tokenizer))
    assert "does not render this format" in (tmp_path / "a/README.md").read_text()


@pytest.mark.parametrize(
    ("folder", "name"), [("person", "person"), ("my labels (2)", "my-labels-2"), ("é", "adapter")], ids=ascii
)
def test_the_card_bears_the_name_of_its_folder_and_its_command_runs_there(folder, name, tmp_path):
    lora = random_lora(find_projections(tiny_llama()))
    save_peft(lora, tmp_path / folder, base_model_name="owner/base", chat=ChatExport(tiny_tokenizer()))
    card = (tmp_path / folder / "README.md").read_text()
    assert f"\n# {name}\n" in card
    (command,) = re.findall(r"^vllm serve .*$", card, re.MULTILINE)
    assert shlex.split(command)[-4:] == ["--lora-modules", f"{name}=.", "--chat-template", "./chat_template.jinja"]
    assert (tmp_path / folder / "chat_template.jinja").is_file()


REFINED = {
    "prompt": "Say.", "rows": 12, "inputs": 0, "kept_back": 3, "steps": 24, "best_step": 8,
    "loss_before": 2.5, "loss_after": 0.25, "stopped": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "on 12 labelled rows, of which 3 were kept back. Best step: 8 of at most 24. "
             "Loss on what was kept back: 2.500 before, 0.250 after."),
        ({"rows": 0, "inputs": 9}, "on 9 inputs without labels, of which 3 were kept back."),
        ({"best_step": 0}, "No step was better than the start"),
        ({"kept_back": 0, "loss_before": None, "loss_after": None}, "The adapter is that of step 8; nothing measured whether it memorised"),
        ({"stopped": True}, "The refinement was stopped before its end."),
        ({"steps": "x", "rows": [], "loss_before": "y", "prompt": 3}, "Best step: 8."),
        ({"best_step": None}, None),
    ],
)  # fmt: skip
def test_the_card_of_a_refined_adapter_tells_it(changes, told, tmp_path):
    lora = random_lora(find_projections(tiny_llama()))
    save_peft(LoRAWeights(dict(lora), 1.0, provenance=[{**REFINED, **changes}]), tmp_path / "a")
    card = (tmp_path / "a/README.md").read_text()
    assert ("## Refined" in card) == (told is not None)
    assert (told or "") in card


def test_an_adapter_for_a_prompt_in_context_whose_prompt_is_unknown_says_so(tmp_path):
    lora = random_lora(find_projections(tiny_llama()))
    save_peft(LoRAWeights(dict(lora), 1.0, provenance=[{"in_context": True}]), tmp_path / "a")
    assert "The prompt is not recorded here" in (tmp_path / "a/README.md").read_text()


def test_without_a_known_prompt_the_card_tells_how_to_load(tmp_path):
    lora = random_lora(find_projections(tiny_llama()))
    save_peft(lora, tmp_path / "a", base_model_name="owner/base")
    card = (tmp_path / "a/README.md").read_text()
    assert 'base, folder = "owner/base", "."' in card
    assert "AutoTokenizer.from_pretrained(base)" in card
    assert "chat_template.jinja" not in card
    save_peft(lora, tmp_path / "b", card=False)
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


# --- where an adapter comes from ---------------------------------------------------------------------------


def test_what_is_known_of_an_adapter_follows_selections_stacks_and_files(tmp_path):
    lora = random_lora(find_projections(tiny_llama()), adapters=3, dtype=torch.float32)
    assert lora.origins == (None,) * 3
    a, b, c = (AdapterOrigin(name, (("x", "y"),), name == "b", "h", "note") for name in "abc")
    given = [origin.to_dict() for origin in (a, b, c)]
    lora = LoRAWeights(dict(lora.items()), 1.0, provenance=given, chat=ChatExport(tiny_tokenizer(WITH_DEFAULT)))
    assert lora.select([2, 0, 2]).origins == (c, a, c)
    assert lora.select([2, 0]).free().origins == (c, a)
    assert lora.select([1, 1]).to(torch.bfloat16).rescale(3.0).detach().origins == (b, b)
    stacked = LoRAWeights.stack([lora.select(1), lora.select([0, 2])])
    assert stacked.origins == (b, a, c)
    assert stacked.chat is lora.chat
    assert LoRAWeights.combine([lora, lora]).origins == (None,) * 3  # the sum is no prompt's adapter
    lora.select([2, 1]).save(tmp_path / "a.safetensors")
    read = LoRAWeights.load(tmp_path / "a.safetensors")
    assert read.origins == (c, b)
    read.select(0).save_peft(tmp_path / "a", chat=lora.chat)
    assert (tmp_path / "a/chat_template.jinja").is_file()


@pytest.mark.parametrize("entry", [{}, {"prompt": 1}, {"prompt": " "}, {"rows": 3}])
def test_an_entry_without_a_prompt_has_no_origin(entry):
    assert AdapterOrigin.of(entry) is None


def test_odd_values_of_foreign_files_count_as_absent():
    odd = {"prompt": "p", "examples": [["a"], 3, ["x", "y"]], "in_context": "yes", "hypernetwork": 3, "base_note": None}
    assert AdapterOrigin.of(odd) == AdapterOrigin("p", (("x", "y"),))


@pytest.mark.parametrize(
    ("prompt", "start"),
    [("Übersetze ins Spanische!", "ubersetze-ins-spanische-"), ("日本語", "adapter-"), ("a" * 300, "a" * 48 + "-")],
)
def test_names_of_folders(prompt, start):
    name = AdapterOrigin(prompt).folder_name
    assert re.fullmatch(re.escape(start) + "[0-9a-f]{8}", name)

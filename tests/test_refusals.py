"""What is wrong in a base, a template, an adapter or a setting is refused and never silently something else."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from promptlora.errors import ConfigError, LoRAError, ModelError, PromptError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import load_peft, save_peft
from promptlora.models import load_base
from promptlora.projections import find_projections
from promptlora.settings import whole
from promptlora.text import render_chat
from promptlora.train.config import TrainConfig
from tests.helpers import random_lora, tiny_gpt2, tiny_llama
from tests.training_helpers import word_tokenizer


@pytest.fixture
def base(toy_base, tmp_path):
    """A copy of the tiny base whose tensors may be changed."""
    shutil.copytree(toy_base, tmp_path / "base")

    def change(edit):
        tensors = load_file(tmp_path / "base" / "model.safetensors")
        edit(tensors)
        save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
        return tmp_path / "base"

    return change


def test_a_base_with_missing_weights_is_refused_by_name(base):
    names = []

    def drop(tensors):
        names.append(next(name for name in sorted(tensors) if "down_proj" in name))
        del tensors[names[0]]

    folder = base(drop)
    with pytest.raises(ModelError, match=r"1 parameters are missing from its files and would be random") as caught:
        load_base(folder)
    assert names[0] in str(caught.value)


def test_a_base_with_weights_of_another_size_or_not_finite_is_refused(base):
    def shorten(tensors):
        name = next(name for name in sorted(tensors) if "down_proj" in name)
        tensors[name] = tensors[name][:-1].contiguous()

    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(base(shorten))


def test_a_base_with_values_that_are_not_finite_is_refused(base):
    with pytest.raises(ModelError, match="has values that are not finite"):
        load_base(base(lambda tensors: tensors[min(tensors)].view(-1)[0].fill_(float("nan"))))


def test_tied_weights_are_not_missing(base):
    def tie(tensors):
        tensors.pop("lm_head.weight", None)

    folder = base(tie)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model, _ = load_base(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


WRITES = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def test_a_template_that_leaves_the_system_turn_out_gets_its_text_in_the_user_turn():
    tokenizer = word_tokenizer(NO_SYSTEM)
    assert (
        render_chat(tokenizer, "hello", "Answer in Spanish.", place="system")
        == "<user>Answer in Spanish.\n\nhello<assistant>"
    )
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    assert render_chat(tokenizer, talk) == "<user>Be short.\n\nhello<assistant>"


def test_a_text_that_also_stands_in_the_input_does_not_count_for_the_one_left_out():
    seen = render_chat(word_tokenizer(NO_SYSTEM), "Translate: Be short.", "Be short.", place="system")
    assert seen.count("Be short.") == 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'][:3] }}<assistant>",
        "<assistant>",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{% if loop.first %}{{ m['content'] }}{% endif %}{% endfor %}",
    ],
)
@pytest.mark.parametrize("place", ["user", "system"])
def test_a_template_that_drops_or_changes_text_is_refused(template, place):
    talk = [
        {"role": "user", "content": "hello you"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "and now?"},
    ]
    with pytest.raises(PromptError, match="leaves out a part"):
        render_chat(word_tokenizer(template), talk, "Answer in Spanish.", place=place)


def test_trimming_and_reasoning_that_is_left_out_are_no_fault():
    trimming = word_tokenizer(WRITES.replace("m['content']", "m['content'] | trim"))
    assert "<user>hello<" in render_chat(trimming, "  hello \n")
    forgetting = word_tokenizer(WRITES.replace("m['content']", "m['content'].split('</think>')[-1]"))
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "x</think>b"},
        {"role": "user", "content": "c"},
    ]
    assert "b" in render_chat(forgetting, talk)


@pytest.mark.parametrize("text", [5, [5], ["a"], None, [{"role": "user", "content": 5}]])
def test_inputs_that_are_no_text_are_refused(text):
    with pytest.raises(PromptError):
        render_chat(word_tokenizer(WRITES), text)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_note_with_one_name_twice_is_refused(tmp_path, make):
    save_peft(random_lora(find_projections(make()), dtype=torch.float32), tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    note = json.loads(metadata["promptlora.peft/1"])
    note[0]["projection"]["name"] = note[-1]["projection"]["name"]
    save_file(load_file(file), file, metadata={**metadata, "promptlora.peft/1": json.dumps(note)})
    with pytest.raises(LoRAError, match="two projections have this name"):
        load_peft(tmp_path / "a")


@pytest.mark.parametrize("pattern", ["(a|aa)+x", "(.*.*)*x", "((l|ay|ers|\\.|\\d)*)*x", "(x+x+)+y"])
def test_a_pattern_that_would_match_for_ever_ends(tmp_path, pattern):
    lora = random_lora(find_projections(tiny_llama()), dtype=torch.float32)
    long = LoRAWeights({("a" * 120) + "." + name: pair for name, pair in lora.items() if name.endswith("q_proj")}, 1.0)
    save_peft(long, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["rank_pattern"] = {f"{pattern}{i}": 3 for i in range(20)}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    started = time.monotonic()
    with suppress(LoRAError):  # it says so, or it was quick to see that nothing fits
        load_peft(tmp_path / "a")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("pattern", ["a" * 1001, "a{1000}{1000}", "(?<=a)b", "(?R)", "("])
def test_a_pattern_that_names_do_not_need_is_refused(tmp_path, pattern):
    save_peft(random_lora(find_projections(tiny_llama()), dtype=torch.float32), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["alpha_pattern"] = {pattern: 3}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LoRAError, match="alpha_pattern has"):
        load_peft(tmp_path / "a")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 1 << 40])
def test_a_whole_number_is_one(value):
    with pytest.raises(ConfigError, match="Expected a whole number from 1"):
        whole("rank", value)


@pytest.mark.parametrize(
    "options",
    [{"rank": 10**9}, {"rank": 2.0}, {"rank": True}, {"alpha": float("inf")}, {"alpha": "16"}, {"static": 1}, {"context_size": 10**9}, {"encoder_layers": 10**9}, {"head": 5}],
)  # fmt: skip
def test_a_configuration_checks_values_that_did_not_come_from_a_file(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        HyperNetworkConfig(**options)
    with pytest.raises(ConfigError):
        TrainConfig(output="a", data="b")


def test_parameters_that_the_machine_cannot_hold_are_refused_before_they_are_made():
    config = HyperNetworkConfig(context_size=1 << 16, rank=1 << 12, source_layer=1)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"rank=4096 and context_size=65536 make .* GB"):
        HyperNetwork(config, find_projections(tiny_llama()), 32)
    assert time.monotonic() - started < 20


def test_counting_the_parameters_first_draws_no_random_number():
    config = HyperNetworkConfig(context_size=8, encoder_heads=2, rank=2, source_layer=1)
    projections = find_projections(tiny_llama())
    torch.manual_seed(0)
    with torch.device("meta"):
        HyperNetwork(config, projections, 32)
    found = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize("index", [[0.9], ["0"], [None]])
def test_an_index_is_of_whole_numbers(index):
    pairs = dict(random_lora(find_projections(tiny_llama())).items())
    with pytest.raises(LoRAError, match="whole numbers"):
        LoRAWeights(pairs, 1.0, index=index)

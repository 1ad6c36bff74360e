"""Function vectors: the vector is the difference that the prompt makes, and as LoRA it is added at every token."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import pytest
import torch

from promptlora import HyperNetwork, PromptLoRA
from promptlora.adapt.function_vectors import (
    NEUTRAL_INPUT,
    add_function_vectors,
    constant_readers,
    middle_outputs,
)
from promptlora.adapt.prompt_lora import shipped_hypernetwork
from promptlora.errors import ConfigError
from promptlora.projections import layer_of
from promptlora.text import encode_chat, render_chat

PROMPTS = ["Translate to Spanish.", "Answer with one word, and nothing else."]


@pytest.fixture(scope="module")
def plain(lm):
    return lm.adapt(PROMPTS)


@pytest.fixture(scope="module")
def richer(lm):
    return lm.adapt(PROMPTS, vectors=0.5)


def outputs_of(lm, name: str, text: str, prompt: str | None, lora, row: int) -> torch.Tensor:
    """What an o projection writes ``[tokens, out]`` with an adapter on, the text run by itself."""
    (ids,) = encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, text, prompt)])
    seen = []
    with torch.no_grad(), lm.injector.apply(lora.select(row)):
        handle = lm.model.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(o[0]))
        lm.model(input_ids=torch.tensor([ids]))
        handle.remove()
    return seen[0]


def test_only_the_middle_o_projections_have_one_rank_more(lm, plain, richer):
    middle = {p.name for p in middle_outputs(lm.hypernetwork.projections)}
    assert len(middle) == 20
    assert all(".o_proj" in name and 5 <= int(name.split(".")[2]) < 25 for name in middle)
    for name, (A, B) in plain.items():
        more_A, more_B = richer[name]
        assert more_A.shape[2] == A.shape[2] + (name in middle)
        assert torch.equal(more_A[:, :, : A.shape[2]], A)
        assert torch.equal(more_B[:, : A.shape[2]], B)


def test_the_last_rank_is_the_difference_that_the_prompt_makes_at_the_last_token(lm, plain, richer):
    name, row, prompt = middle_outputs(lm.hypernetwork.projections)[7].name, 1, PROMPTS[1]
    shown, alone = (outputs_of(lm, name, NEUTRAL_INPUT, text, plain, row)[-1] for text in (prompt, None))
    expected = 0.5 * (shown - alone)
    found = richer[name][1][row, -1] * richer.scaling
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_vectors_of_several_inputs_are_their_mean(lm, plain):
    readers = constant_readers(lm.host)
    each = [
        add_function_vectors(lm.host, plain, PROMPTS, 0.5, readers, inputs) for inputs in (("1 + 1",), ("fish", "two"))
    ]
    one, two = (add_function_vectors(lm.host, plain, PROMPTS, 0.5, readers, (text,)) for text in ("fish", "two"))
    name = next(iter(readers))
    last = [lora[name][1][:, -1] for lora in (each[1], one, two, each[0])]
    assert torch.allclose(last[0], (last[1] + last[2]) / 2, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(last[0], last[3], rtol=1e-3, atol=1e-5)


UNSEEN = "The old lighthouse keeper counted nine ships. Which of them came back, and why did nobody ask?"


def constants(lm, lora, on) -> list[torch.Tensor]:
    """What the last column of each A reads off the tokens of a text it has not seen, with an adapter on or none."""
    seen: dict[str, torch.Tensor] = {}
    names = [p.name for p in middle_outputs(lm.hypernetwork.projections)]
    (ids,) = encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, UNSEEN)])
    with torch.no_grad(), lm.injector.apply(on), ExitStack() as handles:
        for name in names:
            keep = partial(lambda name, module, args, output: seen.update({name: args[0][0]}), name)
            handles.callback(lm.model.get_submodule(name).register_forward_hook(keep).remove)
        lm.model(input_ids=torch.tensor([ids]))
    return [seen[name] @ lora[name][0][0, :, -1] for name in names]


def test_a_reads_about_one_off_every_token_of_a_text_it_has_not_seen(lm, richer):
    for read in constants(lm, richer, None):
        assert read.mean() == pytest.approx(1, abs=0.25)
        assert read.std() < 0.4


@pytest.mark.real
def test_with_an_adapter_of_the_package_on_a_reads_nearly_as_much(smollm):
    with closing(PromptLoRA(*smollm, HyperNetwork.from_pretrained(shipped_hypernetwork()))) as lm:
        richer = lm.adapt(PROMPTS[0], vectors=0.5)
        for read in constants(lm, richer, richer):
            assert 0.7 < read.mean() < 1.1
            assert read.std() < 0.4


def test_a_pass_ends_at_the_last_layer_that_gets_a_vector(lm, plain):
    ran = []
    with ExitStack() as handles:
        for number, layer in enumerate(lm.model.get_decoder().layers):
            hook = partial(lambda number, module, args, output: ran.append(number), number)
            handles.callback(layer.register_forward_hook(hook).remove)
        add_function_vectors(lm.host, plain, PROMPTS, 0.5, constant_readers(lm.host))
    last = max(layer_of(projection) for projection in middle_outputs(lm.hypernetwork.projections))
    assert 0 < max(ran) < last < len(lm.model.get_decoder().layers) - 1  # layer 24 ends inside, at its o projection


def test_prompts_beside_each_other_change_nothing(lm, richer):
    alone = lm.adapt(PROMPTS[1], vectors=0.5)
    for projection in middle_outputs(lm.hypernetwork.projections):
        A, _ = richer[projection.name]
        assert torch.equal(A[0, :, -1], A[1, :, -1])  # A is the same for all
    for name in alone:
        for found, expected in zip(alone[name], richer[name], strict=True):
            assert (found[0] - expected[1]).norm() < 2e-3 * expected[1].norm()


def test_the_base_is_as_before_and_the_answer_is_another(lm, plain, richer):
    assert all(not module._forward_pre_hooks for name, module in lm.model.named_modules() if name.endswith("o_proj"))
    (ids,) = encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, "good morning")])
    logits = []
    for lora in (None, plain, richer, None):
        with torch.no_grad(), lm.injector.apply(None if lora is None else lora.select(0)):
            logits.append(lm.model(input_ids=torch.tensor([ids])).logits[0, -1])
    assert torch.equal(logits[0], logits[3])
    assert (logits[1] - logits[2]).abs().max() > 0.1


def test_the_hypernetwork_says_how_much_and_the_static_part_has_none(lm, monkeypatch):
    assert lm.adapt(PROMPTS[0]).rank == 2
    monkeypatch.setattr(lm.hypernetwork, "config", replace(lm.hypernetwork.config, vectors=0.5))
    half, whole = lm.adapt(PROMPTS[0]), lm.adapt(PROMPTS[0], vectors=1.0)
    assert half.rank == whole.rank == 3
    assert lm.adapt(PROMPTS[0], generated=False).rank == 2
    assert lm.adapt(PROMPTS[0], vectors=0).rank == 2
    name = middle_outputs(lm.hypernetwork.projections)[0].name
    assert torch.allclose(half[name][1][:, -1] * 2, whole[name][1][:, -1], rtol=1e-4)


def test_a_folder_of_peft_holds_it(lm, richer, tmp_path):
    from promptlora.lora.peft import load_peft

    richer.select(1).save_peft(tmp_path / "adapter")
    read = load_peft(tmp_path / "adapter", projections=lm.hypernetwork.projections)
    for name in richer:
        assert torch.allclose(read.delta(name)[0], richer.select(1).delta(name)[0], atol=1e-6)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -0.5])
def test_a_factor_of_no_use_is_refused(lm, factor):
    with pytest.raises(ConfigError, match=r"vectors=.*expected a finite number"):
        lm.adapt(PROMPTS, vectors=factor)


def test_layers_without_an_o_projection_are_refused(lm):
    with pytest.raises(ConfigError, match=r"no o projection from 0\.00 to 0\.00 of 30 layers"):
        constant_readers(lm.host, (0.0, 0.0))

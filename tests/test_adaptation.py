"""PromptLoRA on the real base: adapters from prompts, answers from inputs."""

from __future__ import annotations

import pytest
import torch

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.errors import CheckpointError, ConfigError, LoRAError, PromptError
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.text import render_chat

pytestmark = pytest.mark.real
PROMPTS = ["Translate to Spanish.", "Answer with one word.", "Write a title."]
INPUTS = ["good morning", "Is the sky blue on a clear day, or is it green?", "A dog ran home."]


def test_adapt_writes_every_projection_for_every_prompt(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS)
    assert len(lora) == 120
    assert lora.adapters == 3
    assert lora.dtype == lm.model.dtype
    name = "model.layers.7.self_attn.v_proj"
    assert not torch.allclose(lora.select(0).delta(name), lora.select(1).delta(name))


def test_a_prompt_gets_the_same_adapter_alone_and_among_others(lm: PromptLoRA):
    together, alone = lm.adapt(PROMPTS), lm.adapt(PROMPTS[1])
    for name, (A, B) in alone.items():
        torch.testing.assert_close(together[name][0][1], A[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together[name][1][1], B[0], atol=1e-5, rtol=1e-4)


def test_examples_are_read_as_they_were_in_training(lm: PromptLoRA):
    pairs = [("cat", "cats"), ("box", "boxes")]
    given = lm.adapt("Write the plural.", examples=pairs)
    written = lm.adapt("Write the plural.\n\nInput: cat\nOutput: cats\n\nInput: box\nOutput: boxes")
    name = "model.layers.7.self_attn.v_proj"
    assert torch.equal(given.delta(name), written.delta(name))
    several = lm.adapt(["Write the plural.", PROMPTS[0]], examples=[pairs, []])
    torch.testing.assert_close(several.select(0).delta(name), given.delta(name), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(several.select(1).delta(name), lm.adapt(PROMPTS[0]).delta(name), atol=1e-5, rtol=1e-4)
    with pytest.raises(PromptError, match="1 lists for 2 prompts"):
        lm.adapt(PROMPTS[:2], examples=[pairs])
    with pytest.raises(PromptError, match="pair of input and output"):
        lm.adapt(PROMPTS[0], examples=[("only one",)])


def test_examples_from_an_iterator_are_read_and_recorded(lm: PromptLoRA):
    """An iterator can be read once: what the hypernetwork has read must also be what the adapter's record says."""
    pairs = [("cat", "cats"), ("box", "boxes")]
    listed = lm.adapt("Write the plural.", examples=pairs)
    name = "model.layers.7.self_attn.v_proj"
    for prompts, examples in (
        ("Write the plural.", zip(["cat", "box"], ["cats", "boxes"], strict=True)),
        (["Write the plural."], [iter(pairs)]),
        (iter(["Write the plural."]), iter([pairs])),
    ):
        lora = lm.adapt(prompts, examples=examples)
        assert lora.origins == listed.origins
        assert lora.origins[0].examples == tuple(pairs)
        assert torch.equal(lora.delta(name), listed.delta(name))
    several = lm.adapt(PROMPTS[:2], examples=[None, pairs])
    assert [origin.examples for origin in several.origins] == [(), tuple(pairs)]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ({"a": "b"}, {}, "prompts: a dict"),
        ({"Write a title.", "Say no."}, {}, "prompts: a set"),  # no order: nobody knows which adapter is whose
        (b"Write a title.", {}, "prompts: a bytes"),
        (None, {}, "prompts: a NoneType"),
        (["Write a title.", ["Say no."]], {}, "prompt 1: a list"),
        ("Write a title.", {"examples": 3}, "examples: a int"),
        ("Write a title.", {"examples": ""}, "examples: a str"),
        ("Write a title.", {"examples": {("a", "b")}}, "examples: a set"),
        (["Write a title."], {"examples": {"a": "b"}}, "examples: a dict"),
        ("Write a title.", {"in_context": "no"}, "in_context='no'"),
        ("Write a title.", {"generated": "no"}, "generated='no'"),
        ("Write a title.", {"vectors": "1"}, "vectors=1"),
    ],
)
def test_arguments_of_another_type_are_refused(lm: PromptLoRA, arguments, options, words):
    with pytest.raises((PromptError, ConfigError), match=words):
        lm.adapt(arguments, **options)


def test_states_are_the_bases_even_while_an_adapter_is_on(lm: PromptLoRA):
    before = lm.adapt(PROMPTS[0])
    lm.states.clear()
    with lm.injector.apply(lm.adapt(PROMPTS[1])):
        lm.states.clear()
        inside = lm.adapt(PROMPTS[0])
    for name in before:
        assert torch.equal(before[name][1], inside[name][1])


def test_static_part_is_the_same_for_every_prompt(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS[:2], generated=False)
    for A, B in lora.values():
        assert torch.equal(A[0], A[1])
        assert torch.equal(B[0], B[1])


def test_the_record_tells_the_static_part_and_vectors_from_the_adapter_of_the_prompt(lm: PromptLoRA, tmp_path):
    plain, static = lm.adapt(PROMPTS[0]), lm.adapt(PROMPTS[0], generated=False)
    assert "generated" not in plain.provenance[0]
    assert static.provenance[0] == {**plain.provenance[0], "generated": False}
    assert lm.adapt(PROMPTS[0], vectors=0.5).provenance[0] == {**plain.provenance[0], "vectors": 0.5}
    static.save(tmp_path / "static.safetensors")
    assert LoRAWeights.load(tmp_path / "static.safetensors").provenance == static.provenance


def test_a_batch_of_adapters_answers_as_one_at_a_time(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS)
    together = lm.generate(INPUTS, lora, max_new_tokens=8)
    alone = [lm.generate(text, lora.select(i), max_new_tokens=8) for i, text in enumerate(INPUTS)]
    assert together == alone
    assert together != lm.generate(INPUTS, max_new_tokens=8)


def test_answers_keep_the_order_of_the_inputs(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS)
    whole = lm.generate(INPUTS, lora, max_new_tokens=6)
    split = lm.generate(INPUTS, lora, max_new_tokens=6, batch_size=1)
    assert whole == split


def test_adapter_index_lets_rows_share_an_adapter(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS)
    texts = [INPUTS[0]] * 3
    answers = lm.generate(texts, lora, adapter_index=[1, 0, 1], max_new_tokens=6)
    one, other = (lm.generate(texts[0], lora.select(i), max_new_tokens=6) for i in (0, 1))
    assert answers == [other, one, other]


def test_several_returns_stand_together(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS[:2])
    options = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 5}
    answers = lm.generate(INPUTS[:2], lora, **options)
    assert len(answers) == 4
    assert answers[:2] == lm.generate(INPUTS[0], lora.select(0), **options)


def test_stream_gives_what_generate_gives(lm: PromptLoRA):
    lora = lm.adapt(PROMPTS[0])
    pieces = list(lm.stream(INPUTS[1], lora, max_new_tokens=10))
    assert "".join(pieces).strip() == lm.generate(INPUTS[1], lora, max_new_tokens=10)


def test_leaving_a_stream_ends_its_generation(lm: PromptLoRA):
    stream = lm.stream("Tell me a long story.", max_new_tokens=512)
    next(stream)
    stream.close()  # returns only when the thread has ended
    assert lm.generate("hi", max_new_tokens=2)


def test_chat_adds_the_answer(lm: PromptLoRA):
    messages = [{"role": "user", "content": "hello"}]
    longer = lm.chat(messages, lm.adapt(PROMPTS[1]), max_new_tokens=5)
    assert longer[:-1] == messages
    assert longer[-1]["role"] == "assistant"
    assert longer[-1]["content"] == lm.generate("hello", lm.adapt(PROMPTS[1]), max_new_tokens=5)


def test_in_context_prompt_is_read(lm: PromptLoRA):
    with_prompt = lm.count_tokens(INPUTS, PROMPTS)
    assert all(a > b for a, b in zip(with_prompt, lm.count_tokens(INPUTS), strict=True))
    assert PROMPTS[0] in render_chat(lm.tokenizer, INPUTS[0], PROMPTS[0])
    assert lm.generate(INPUTS, in_context=PROMPTS, max_new_tokens=5) != lm.generate(INPUTS, max_new_tokens=5)


def test_no_input_no_answer(lm: PromptLoRA):
    assert lm.generate([]) == []


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda lm: lm.adapt([]), PromptError, "no prompt"),
        (lambda lm: lm.adapt(["  "]), PromptError, "empty"),
        (lambda lm: lm.adapt("word " * 600), PromptError, "at most 512"),
        (lambda lm: lm.generate("word " * 9000), PromptError, "at most 8192"),
        (lambda lm: lm.generate(["a", "b", "c"], lm.adapt(PROMPTS[:2])), LoRAError, "2 adapters for 3 inputs"),
        (lambda lm: lm.generate(["a"], adapter_index=[0]), LoRAError, "without lora"),
        (lambda lm: lm.generate(["a"], lm.adapt(PROMPTS), adapter_index=[3]), LoRAError, "3 adapters"),
        (lambda lm: lm.generate(["a"], in_context=["x", "y"]), PromptError, "2 prompts for 1 inputs"),
        (lambda lm: lm.generate(["a"], lm.adapt(PROMPTS), adapter_index=[True]), LoRAError, "whole numbers"),
        (lambda lm: lm.generate(["a"], in_context={"x": 1}), PromptError, "in_context={'x': 1}"),
        (lambda lm: lm.generate(["a"], in_context=True), PromptError, "in_context=True"),
        (lambda lm: lm.generate(["a"], in_context=[b"x"]), PromptError, "in_context="),
        (lambda lm: lm.generate(["a"], max_new_tokens=0), PromptError, "max_new_tokens=0"),
    ],
)
def test_bad_calls_say_what_is_wrong(lm: PromptLoRA, call, error, words):
    with pytest.raises(error, match=words):
        call(lm)


def test_another_base_is_refused_unless_forced(lm: PromptLoRA, tmp_path):
    network = HyperNetwork(
        lm.hypernetwork.config,
        lm.hypernetwork.projections,
        576,
        {**lm.hypernetwork.base, "weights": "0" * 64, "sample": ""},
    )
    with pytest.raises(CheckpointError, match="another base: weights"):
        PromptLoRA(lm.model, lm.tokenizer, network)
    forced = PromptLoRA(lm.model, lm.tokenizer, network, force=True)
    forced.close()


def test_closing_leaves_the_base_as_found(smollm, lm: PromptLoRA):
    model, tokenizer = smollm
    count = sum(len(module._forward_hooks) for module in model.modules())
    other = PromptLoRA(model, tokenizer, lm.hypernetwork)
    assert sum(len(module._forward_hooks) for module in model.modules()) == count + 120
    other.close()
    assert sum(len(module._forward_hooks) for module in model.modules()) == count

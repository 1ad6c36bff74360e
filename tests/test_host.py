"""One host, many callers: every answer is what it is alone, and the model is as found afterwards."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from promptlora.adapt.function_vectors import constant_reader
from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.adapt.streaming import stream_ids, stream_rows
from promptlora.errors import ConfigError, LoRAError, PromptError, PromptLoRAError
from promptlora.host import Host
from promptlora.lora import LoRAWeights
from tests.helpers import random_lora, tiny_llama, token_ids
from tests.host_helpers import TOKENS, hammer, in_threads, prompts, run_alone, texts, tiny_network, tiny_prompt_lora
from tests.training_helpers import word_tokenizer


@pytest.fixture
def tiny(device: torch.device) -> Iterator[PromptLoRA]:
    lm = tiny_prompt_lora(tiny_llama(torch.float32).to(device))
    yield lm
    lm.close()


@pytest.fixture
def adapters(tiny: PromptLoRA) -> list[LoRAWeights]:
    return [tiny.adapt(prompt) for prompt in prompts(3)]


def logits(lm: PromptLoRA) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(token_ids(2, 6).to(lm.host.device), use_cache=False).logits


# --- the stress test -----------------------------------------------------------------------------------------


def hammered(threads: int, calls: int, seed: int) -> None:
    lm = tiny_prompt_lora()
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    before = logits(lm)
    alone = run_alone(lm, adapters=32, inputs=4)
    assert len(set(alone.answers.values())) > 60  # the adapters steer: a mix-up would show
    assert hammer(lm, alone, threads, calls, seed) == []
    assert torch.equal(logits(lm), before)
    assert lm.injector._state is None
    assert lm.host.turn.holder is None
    lm.close()
    assert torch.equal(logits(lm), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lm.model.state_dict().items())
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_four_threads_of_mixed_calls_get_what_they_get_alone():
    hammered(threads=4, calls=60, seed=0)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_the_whole_stress_test(seed):
    hammered(threads=4, calls=500, seed=seed)


# --- streams -------------------------------------------------------------------------------------------------


OPTIONS = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 5, "temperature": 1.3},
    "penalty": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "no cache": {"use_cache": False},
    "no end": {"eos_token_id": None},
    "at least": {"min_new_tokens": 9},
    "in chunks": {"prefill_chunk_size": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps_are_what_generate_gives(tiny, adapters, options):
    lora = LoRAWeights.stack(adapters)
    rows = [token_ids(1, n, seed=n)[0].tolist() for n in ((5, 5) if "prefill_chunk_size" in options else (5, 3))]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    torch.manual_seed(0)
    expected = tiny.host.generate(ids, (ids > 0).long(), lora, [2, 0], max_new_tokens=9, **options)
    torch.manual_seed(0)
    steps = list(stream_ids(tiny.host, rows, lora, [2, 0], max_new_tokens=9, **options))
    assert torch.equal(torch.stack(steps, 1), expected)


def test_a_stream_honours_the_models_own_settings_and_processors(tiny, adapters):
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[:, first] = -torch.inf
            return scores

    first = int(next(stream_ids(tiny.host, [[5, 6]], adapters[0], max_new_tokens=2)))
    options = {"logits_processor": LogitsProcessorList([Forbid()]), "max_new_tokens": 2}
    assert int(next(stream_ids(tiny.host, [[5, 6]], adapters[0], **options))) != first
    tiny.model.generation_config.max_new_tokens = 3
    assert len(list(stream_ids(tiny.host, [[5, 6]], adapters[0], eos_token_id=None))) == 3


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_a_stream_of_several_sequences_is_refused(tiny, adapters, options):
    with pytest.raises(ConfigError, match=r"stream: num_beams=.* Expected 1 each"):
        tiny.stream("w1 w2", adapters[0], max_new_tokens=4, **options)
    with pytest.raises(PromptError, match="2 sequences for 1 inputs"):
        list(stream_ids(tiny.host, [[5, 6]], adapters[0], max_new_tokens=4, **options))


def test_calls_between_two_pieces_and_two_open_streams(tiny, adapters):
    text, other = texts(2)
    want = [tiny.generate(text, lora, max_new_tokens=TOKENS) for lora in (*adapters, None)]
    streams = [tiny.stream(text, lora, max_new_tokens=TOKENS) for lora in (*adapters, None)]
    found = [""] * len(streams)
    tiny.states.clear()
    for _ in range(TOKENS + 1):
        for i, stream in enumerate(streams):
            found[i] += next(stream, "")
            assert torch.equal(
                tiny.adapt(prompts(1)[0]).stored[tiny.hypernetwork.projections[0].name][0],
                adapters[0].stored[tiny.hypernetwork.projections[0].name][0],
            )
            tiny.states.clear()
            tiny.generate(other, adapters[i % 3], max_new_tokens=2)
    assert [piece.strip() for piece in found] == want


def test_an_open_stream_keeps_no_one_waiting(tiny, adapters):
    text = texts(1)[0]
    want = tiny.generate(text, adapters[1], max_new_tokens=TOKENS)
    stream = tiny.stream(text, adapters[0], max_new_tokens=TOKENS, eos_token_id=None)
    next(stream)
    assert in_threads(lambda: tiny.generate(text, adapters[1], max_new_tokens=TOKENS)) == [want]
    assert tiny.host.turn.holder is None
    assert torch.is_grad_enabled()
    del stream
    gc.collect()
    assert tiny.generate(text, adapters[1], max_new_tokens=TOKENS) == want


def test_a_stream_may_be_read_by_one_thread_after_the_other(tiny, adapters):
    text = texts(1)[0]
    want = tiny.generate(text, adapters[0], max_new_tokens=TOKENS)
    stream, found = tiny.stream(text, adapters[0], max_new_tokens=TOKENS), ""
    for _ in range(TOKENS + 1):
        (piece,) = in_threads(lambda: next(stream, ""))
        assert isinstance(piece, str)
        found += piece
    assert found.strip() == want


def test_tasks_of_one_loop_stream_beside_each_other(tiny, adapters):
    text = texts(1)[0]
    want = [tiny.generate(text, lora, max_new_tokens=TOKENS) for lora in adapters]

    async def read(lora: LoRAWeights) -> str:
        found = ""
        for piece in tiny.stream(text, lora, max_new_tokens=TOKENS):
            found += piece
            await asyncio.sleep(0)
        return found.strip()

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(read(lora) for lora in adapters))

    assert asyncio.run(all_of_them()) == want


def test_what_a_stream_cannot_do_is_said_when_it_is_asked_for(tiny, adapters):
    with pytest.raises(LoRAError, match="3 adapters for 1 inputs"):
        tiny.stream("w1", LoRAWeights.stack(adapters), max_new_tokens=4)
    with pytest.raises(PromptError, match="at most 128"):
        tiny.stream("w1 " * 200)
    with pytest.raises(LoRAError, match=r"the LoRA is torch\.float64"):
        tiny.stream("w1", adapters[0].to(torch.float64), max_new_tokens=4)


def test_rows_are_told_step_by_step(tiny, adapters):
    lora = LoRAWeights.stack(adapters)
    encoded = [tiny.host.render(text) for text in texts(3)]
    *_, last = stream_rows(tiny.host, encoded, lora, [0, 1, 2], max_new_tokens=TOKENS)
    assert [row.text for row in last] == tiny.generate(texts(3), lora, max_new_tokens=TOKENS)


# --- turns, life cycle ---------------------------------------------------------------------------------------


def test_threads_wait_for_a_use_and_tasks_are_told(tiny, adapters):
    text, order = texts(1)[0], []
    want = tiny.generate(text, adapters[1], max_new_tokens=3)

    def ask() -> str:
        answer = tiny.generate(text, adapters[1], max_new_tokens=3)
        order.append("answer")
        return answer

    with tiny.host.using(adapters[0]):
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.2)
        order.append("end of use")
    thread.join(timeout=60)
    assert order == ["end of use", "answer"]

    async def hold_and_ask() -> str:
        async def hold() -> None:
            with tiny.host.using(adapters[0]):
                await asyncio.sleep(0.2)

        task = asyncio.create_task(hold())
        await asyncio.sleep(0.05)
        with pytest.raises(LoRAError, match="waiting would never end"):
            tiny.generate(text, adapters[1], max_new_tokens=3)
        answer = await asyncio.to_thread(ask)  # a thread may wait
        await task
        return answer

    assert asyncio.run(hold_and_ask()) == want


def test_two_objects_on_one_model_wait_for_each_other(tiny, adapters):
    other = PromptLoRA(tiny.model, tiny.tokenizer, tiny_network(tiny.model, seed=1))
    text = texts(1)[0]
    theirs = other.adapt(prompts(1)[0])
    want = [
        tiny.generate(text, adapters[0], max_new_tokens=TOKENS),
        other.generate(text, theirs, max_new_tokens=TOKENS),
    ]
    assert want[0] != want[1]
    for _ in range(10):
        assert want == in_threads(
            lambda: tiny.generate(text, adapters[0], max_new_tokens=TOKENS),
            lambda: other.generate(text, theirs, max_new_tokens=TOKENS),
        )
    other.close()
    assert tiny.generate(text, adapters[0], max_new_tokens=TOKENS) == want[0]


def test_states_are_never_those_of_an_adapted_model(tiny, adapters):
    expected = tiny.states.one(prompts(1)[0])
    for _ in range(5):
        tiny.states.clear()
        found = in_threads(
            lambda: tiny.states.one(prompts(1)[0]),
            *(lambda lora=lora: tiny.generate(texts(4), lora, max_new_tokens=4) for lora in adapters),
        )[0]
        assert torch.equal(found, expected)
    tiny.states.clear()
    with tiny.host.using(adapters[0]):
        assert torch.equal(tiny.states.one(prompts(1)[0]), expected)


def test_a_closed_host_says_so_and_an_open_stream_too(tiny, adapters):
    stream = tiny.stream("w1 w2", adapters[0], max_new_tokens=8, eos_token_id=None)
    next(stream)
    tiny.close()
    tiny.close()
    tiny.states.clear()
    calls: list[Any] = [
        lambda: next(stream),
        lambda: tiny.generate("w1", adapters[0]),
        lambda: tiny.generate("w1"),
        lambda: tiny.adapt("w1 w2"),
        lambda: tiny.score(["w1"], ["w2"]),
        lambda: list(tiny.stream("w1", adapters[0], max_new_tokens=4)),
    ]
    for call in calls:
        with pytest.raises(PromptLoRAError, match="closed"):
            call()


def test_closing_waits_for_who_uses_the_model(tiny, adapters):
    text = texts(1)[0]
    want = tiny.generate(text, adapters[0], max_new_tokens=40, eos_token_id=None)
    answer, _ = in_threads(
        lambda: tiny.generate(text, adapters[0], max_new_tokens=40, eos_token_id=None),
        lambda: (time.sleep(0.02), tiny.close()),
    )
    assert answer == want or "closed" in str(answer)


# --- what was handed in is not changed -----------------------------------------------------------------------


def test_neither_model_nor_network_is_changed_and_training_goes_on():
    model = tiny_llama(torch.float32, attention_dropout=0.5).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    next(model.modules()).training = False  # modes may be mixed
    network = tiny_network(model).train()
    found = {
        what: [(p.requires_grad, p.device) for p in what.parameters()] + [m.training for m in what.modules()]
        for what in (model, network)
    }
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    lm = PromptLoRA(model, word_tokenizer(), network)
    text, prompt = texts(1)[0], prompts(1)[0]

    def calls() -> list[object]:
        lora = lm.adapt(prompt)
        streamed = "".join(lm.stream(text, lora, max_new_tokens=TOKENS)).strip()
        assert streamed == lm.generate(text, lora, max_new_tokens=TOKENS)  # no dropout in either
        assert not any(A.requires_grad or B.requires_grad for A, B in lora.values())
        return [streamed, *lm.score([text], [text], lora)]

    before = calls()
    assert calls() == before
    for what, values in found.items():
        assert [(p.requires_grad, p.device) for p in what.parameters()] + [m.training for m in what.modules()] == values
    states, mask = lm.states.batch([prompt])
    loss = sum(B.square().sum() for _, B in network(states, mask).values())
    loss.backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if "static_B" in name)
    optimizer.step()
    after = lm.adapt(prompt)
    assert any(not torch.equal(after[name][1], network(states, mask)[name][1] * 0) for name in after)
    assert calls() != before  # the network that was handed in is the one that answers
    lm.close()
    assert all(p.requires_grad for p in model.parameters())


def test_a_host_for_training_gives_the_gradients_flags_back():
    model = tiny_llama(torch.float32)
    some = list(model.parameters())[::2]
    for parameter in some:
        parameter.requires_grad_(True)
    host = Host.for_training(model, word_tokenizer())
    assert not any(p.requires_grad for p in model.parameters())
    host.close()
    assert [p.requires_grad for p in model.parameters()] == [any(p is q for q in some) for p in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_beside_answers(device, checkpointing):
    """Forward, backward (recomputed or not) and answers of the same model from two threads, each as alone."""
    model = tiny_llama(torch.float32).to(device)
    lm = tiny_prompt_lora(model)
    host = Host.for_training(model, word_tokenizer())
    if checkpointing:
        host.checkpoint_activations()
    ids, text = token_ids(2, 6), texts(1)[0]
    mine = random_lora(host.injector.projections, 2, dtype=torch.float32).to(device=device)
    leaves = [matrix.requires_grad_() for pair in mine.values() for matrix in pair]
    lora = lm.adapt(prompts(1)[0])

    def step() -> list[torch.Tensor]:
        return list(torch.autograd.grad(host.hidden(ids, mine, [0, 1])[..., :8].square().mean(), leaves))

    expected, want = step(), lm.generate(text, lora, max_new_tokens=TOKENS)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for _ in range(5):
        gradients, answer = in_threads(step, lambda: lm.generate(text, lora, max_new_tokens=TOKENS))
        assert answer == want
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    host.close()
    lm.close()


def test_a_backward_in_a_thread_of_autograd_while_the_owner_holds_the_model_and_waits(device):
    model = tiny_llama(torch.float32).to(device)
    host = Host.for_training(model, word_tokenizer())
    host.checkpoint_activations()
    ids = token_ids(2, 6).to(device)
    mine = random_lora(host.injector.projections, 2, dtype=torch.float32).to(device=device)
    leaves = [matrix.requires_grad_() for pair in mine.values() for matrix in pair]

    def loss() -> torch.Tensor:
        return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[..., :8].square().mean()

    with host.using(mine, [0, 1]):
        expected = torch.autograd.grad(loss(), leaves)  # on a GPU this is such a thread already
        waiting = loss()
        (found,) = in_threads(lambda: torch.autograd.grad(waiting, leaves))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(loss(), waiting)  # what was on before the recomputation is on
    with host.using(None):
        assert not torch.equal(loss(), waiting)
    host.close()


# --- one in, one out -----------------------------------------------------------------------------------------


def test_one_text_gives_one_text_and_a_list_a_list(tiny, adapters):
    text = texts(1)[0]
    one = tiny.generate(text, adapters[0], max_new_tokens=TOKENS)
    assert isinstance(one, str)
    assert tiny.generate([text], adapters[0], max_new_tokens=TOKENS) == [one]
    conversation = [{"role": "user", "content": text}]
    assert tiny.generate(conversation, adapters[0], max_new_tokens=TOKENS) == one
    assert tiny.generate([conversation], adapters[0], max_new_tokens=TOKENS) == [one]
    assert tiny.generate([]) == []
    assert tiny.generate([], adapters[0]) == []
    two = tiny.generate(text, adapters[0], num_beams=2, num_return_sequences=2, max_new_tokens=3)
    assert isinstance(two, list)
    assert len(two) == 2
    config = GenerationConfig(num_beams=2, num_return_sequences=2)
    assert tiny.generate(text, adapters[0], max_new_tokens=3, generation_config=config) == two
    assert tiny.generate([text, text], adapters[0], max_new_tokens=3, generation_config=config) == two * 2


def test_scores_are_log_probabilities_of_the_answers(tiny, adapters):
    lora, inputs, answers = LoRAWeights.stack(adapters), texts(3), ["w1 w2", "w3", "w4 w5 w6"]
    found = tiny.score(inputs, answers, lora)
    for i, (text, answer) in enumerate(zip(inputs, answers, strict=True)):
        start = tiny.host.render(text)
        end = tiny.tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad(), tiny.injector.apply(lora.select(i)):
            logs = tiny.model(torch.tensor([start + end], device=tiny.host.device)).logits[0].log_softmax(-1)
        expected = sum(float(logs[len(start) - 1 + k, token]) for k, token in enumerate(end))
        assert found[i] == pytest.approx(expected, abs=1e-4)
    assert tiny.score(inputs, answers, lora, batch_size=1) == pytest.approx(found, abs=1e-4)
    assert tiny.score([], []) == []
    for bad in ((["w1"], ["w1", "w2"]), ("w1", "w2")):
        with pytest.raises(PromptError, match="expected two lists of one length"):
            tiny.score(*bad)
    with pytest.raises(PromptError, match="answer 1 has no token"):
        tiny.score(["w1", "w2"], ["w1", ""])


# --- function vectors ----------------------------------------------------------------------------------------


def test_the_dual_form_reads_the_constant_that_the_primal_form_does():
    torch.manual_seed(0)
    states = torch.randn(3, 20, 12) + 1
    real = torch.ones(3, 20, dtype=torch.bool)
    real[1, 5:], real[2, ::3] = False, False
    for i, found in enumerate(constant_reader(states, real)):
        rows = states[i][real[i]].double()
        squares = rows.T @ rows
        squares.diagonal().add_(1e-2 * squares.diagonal().mean())
        assert torch.allclose(found, torch.linalg.solve(squares, rows.sum(0)), rtol=1e-9, atol=1e-12)


def test_a_copy_of_the_model_has_a_host_of_its_own(tiny, adapters):
    twin = tiny_prompt_lora(copy.deepcopy(tiny.model))
    text = texts(1)[0]
    with tiny.host.using(adapters[0]):
        answers = in_threads(lambda: twin.generate(text, max_new_tokens=TOKENS))
    assert answers == [tiny.generate(text, max_new_tokens=TOKENS)]
    twin.close()

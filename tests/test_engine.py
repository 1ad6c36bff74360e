"""The engine: every answer of a mixed batch is the one that the request gets alone, whatever joins, leaves or fails."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine import Engine, EngineError, Piece, QueueFull, Sampling, Ticket
from promptlora.engine.text import TextStream
from promptlora.errors import ConfigError, LoRAError, ModelError, PromptError
from promptlora.lora import LoRAWeights
from promptlora.text import encode_chat, pad_rows, render_chat
from tests.helpers import random_lora, tiny_llama
from tests.host_helpers import prompts, texts, tiny_prompt_lora


@pytest.fixture(params=["full", "core", "diagonal"])
def tiny(request: pytest.FixtureRequest, device: torch.device) -> Iterator[PromptLoRA]:
    made = steering(tiny_prompt_lora(tiny_llama(torch.float32).to(device), head=request.param))
    yield made
    made.close()


def steering(lm: PromptLoRA) -> PromptLoRA:
    """Heads that write cores start at 0, which would make all adapters one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lm.hypernetwork.generator.heads.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        for parameter in lm.hypernetwork.generator.scales.parameters():
            parameter.fill_(0.5)
    return lm


@pytest.fixture
def one(device: torch.device) -> Iterator[PromptLoRA]:
    model = tiny_llama(torch.float32, max_position_embeddings=4096).to(device)
    model.generation_config.eos_token_id = None  # no answer ends by itself
    made = tiny_prompt_lora(model)
    yield made
    made.close()


def ids_of(lm: PromptLoRA, text: str) -> list[int]:
    return encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, text)])[0]


def alone(lm: PromptLoRA, ids: Sequence[int], lora: LoRAWeights | None, tokens: int) -> list[int]:
    """The ids that ``Host.generate`` gives for one request, up to and with the end of the answer."""
    given, mask = pad_rows([list(ids)], lm.host.pad, left=True)
    return lm.host.generate(given, mask, lora, None if lora is None else [0], max_new_tokens=tokens)[0].tolist()


def read(ticket: Ticket) -> tuple[list[int], str, str | None]:
    """All ids, the text, and the reason of a ticket."""
    pieces = list(ticket)
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    return [i for piece in pieces for i in piece.token_ids], "".join(p.text for p in pieces), pieces[-1].finish_reason


def long(lm: PromptLoRA, engine: Engine, tokens: int = 400) -> Ticket:
    """A request that runs for long: the tiny base never ends an answer by itself."""
    return engine.submit(ids_of(lm, "w1 w2"), None, Sampling(max_tokens=tokens))


def settled(engine: Engine) -> None:
    for _ in range(500):
        if not engine.stats.running and not engine.stats.waiting:
            return
        time.sleep(0.01)
    raise AssertionError(engine.stats)


# --- answers -------------------------------------------------------------------------------------------------


def test_mixed_requests_that_join_and_leave_get_the_answers_they_get_alone(tiny):
    adapters = [tiny.adapt(prompt) for prompt in prompts(6)]
    requests = [(ids_of(tiny, text), (None, *adapters)[i % 7], 4 + i % 9) for i, text in enumerate(texts(24))]
    expected = [alone(tiny, *request) for request in requests]
    same = [tuple(alone(tiny, requests[0][0], lora, 6)) for lora in (None, *adapters)]
    assert len(set(same)) >= 6  # the adapters steer: a mix-up would show
    with Engine(tiny, max_batch=5, max_prefill_tokens=7, max_waiting=99) as engine:
        tickets = []
        for i, (ids, lora, tokens) in enumerate(requests):
            tickets.append(engine.submit(ids, lora, Sampling(max_tokens=tokens)))
            if i % 4 == 3:
                extra = engine.submit(ids, adapters[i % 6], Sampling(max_tokens=60))
                next(iter(extra))
                extra.cancel()
            if i % 5 == 0:
                time.sleep(0.01)  # some join a batch that runs
        found = [read(ticket) for ticket in tickets]
        assert [ids for ids, _, _ in found] == expected
        settled(engine)
        stats = engine.stats
        assert stats.kv_tokens == 0
        assert 1 <= stats.cancelled <= 6  # some of them ended in time
        assert stats.finished == 30
    assert tiny.injector._state is None


def test_adapters_of_several_forms_run_in_one_batch(one):
    """Free and shared forms, two ranks, another scaling, and fewer projections."""
    torch.manual_seed(0)
    projections = one.injector.projections
    plain = random_lora(projections, rank=4, dtype=torch.float32)
    names = list(plain)
    factors = {name: (plain[name][0][0], plain[name][1][0]) for name in names}
    cores = {name: torch.randn(2, 4, 4) for name in names}
    shared = LoRAWeights.shared(factors, cores, 0.7)
    some = LoRAWeights({name: plain[name] for name in names[:3]}, 2.0)
    adapters = [
        plain,
        random_lora(projections, rank=2, dtype=torch.float32),
        shared.select(0),
        shared.select(1),
        some,
        None,
    ]
    ids = [ids_of(one, text) for text in texts(6)]
    expected = [alone(one, i, lora, 12) for i, lora in zip(ids, adapters, strict=True)]
    with Engine(one) as engine:
        tickets = [
            engine.submit(i, lora, Sampling(max_tokens=12)) for i, lora in zip(ids * 2, adapters * 2, strict=True)
        ]
        assert [read(ticket)[0] for ticket in tickets] == expected * 2


def test_a_long_input_is_read_in_bounded_pieces_beside_running_answers(one):
    lora = one.adapt(prompts(1)[0])
    input_ids = [7 + i % 80 for i in range(60)]
    expected = alone(one, input_ids, lora, 5)
    with Engine(one, max_prefill_tokens=8) as engine:
        running = engine.submit(ids_of(one, "w1"), None, Sampling(max_tokens=100))
        pieces = iter(running)
        next(pieces)
        before = engine.stats.steps
        late = engine.submit(input_ids, lora, Sampling(max_tokens=5))
        assert read(late)[0] == expected
        assert engine.stats.steps - before >= 60 // 8 + 4
        assert next(pieces).token_ids  # it went on meanwhile
        running.cancel()


def test_the_same_input_with_another_adapter_shares_no_keys(one):
    """Pages of equal beginnings are shared within an adapter: a page of another one would give its answer."""
    adapters = [one.adapt(prompt) for prompt in prompts(3)]
    input_ids = [7 + i % 80 for i in range(50)]
    expected = [alone(one, input_ids, lora, 6) for lora in (None, *adapters)]
    with Engine(one) as engine:
        for _ in range(2):
            for lora, ids in zip((None, *adapters), expected, strict=True):
                assert read(engine.submit(input_ids, lora, Sampling(max_tokens=6)))[0] == ids
        assert engine.stats.reused_tokens == 4 * 48  # of the second round alone: three pages each


@pytest.mark.parametrize("window", [5, 40])
def test_a_base_with_a_sliding_window(window, device):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=window, initializer_range=0.2, max_position_embeddings=256,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval().to(device)
    model.generation_config.eos_token_id = None
    lm = tiny_prompt_lora(model)
    adapters = [None, *(lm.adapt(prompt) for prompt in prompts(2))]
    requests = [([7 + (i * 5 + j) % 80 for j in range(3 + 9 * i)], adapters[i % 3], 12) for i in range(6)]
    expected = [alone(lm, *request) for request in requests]
    with Engine(lm, max_prefill_tokens=7) as engine:
        tickets = [engine.submit(ids, lora, Sampling(max_tokens=tokens)) for ids, lora, tokens in requests]
        assert [read(ticket)[0] for ticket in tickets] == expected
    assert model.config._attn_implementation == "sdpa"
    lm.close()


def test_more_requests_than_the_key_value_cache_holds(one):
    """transformers lets some start over; their answers stay the same, and none is lost."""
    requests = [([7 + (i + j) % 80 for j in range(20)], one.adapt(prompt), 60) for i, prompt in enumerate(prompts(6))]
    expected = [alone(one, *request) for request in requests]
    with Engine(one, max_batch=6, kv_tokens=200) as engine:
        tickets = [engine.submit(ids, lora, Sampling(max_tokens=tokens)) for ids, lora, tokens in requests]
        assert [read(ticket)[0] for ticket in tickets] == expected


@pytest.mark.real
def test_the_real_base(lm):
    adapters = [lm.adapt(prompt) for prompt in ("Translate to Spanish.", "Answer with one word.", "Write a title.")]
    inputs = ["I loved it", "good morning", "The cat sat on the mat.", "What is the capital of France?"]
    requests = [(ids_of(lm, text), lora, 8) for text, lora in zip(inputs * 2, (None, *adapters) * 2, strict=False)][:6]
    expected = [alone(lm, *request) for request in requests]
    answers = [str(lm.tokenizer.decode(ids, skip_special_tokens=True)) for ids in expected]
    with Engine(lm, max_batch=4, max_prefill_tokens=48) as engine:
        tickets = [engine.submit(ids, lora, Sampling(max_tokens=tokens)) for ids, lora, tokens in requests]
        found = [read(ticket) for ticket in tickets]
    assert [ids for ids, _, _ in found] == expected
    assert [text for _, text, _ in found] == answers


# --- sampling, log-probabilities, stop texts -------------------------------------------------------------------


def test_a_seed_repeats_an_answer_whatever_else_runs(one):
    ids = ids_of(one, "w3 w4")
    asked = Sampling(max_tokens=20, temperature=1.5, top_p=0.9, seed=7)
    with Engine(one) as engine:
        first = read(engine.submit(ids, None, asked))[0]
        others = [engine.submit(ids, None, Sampling(max_tokens=20, temperature=2.0, seed=i)) for i in range(3)]
        greedy = engine.submit(ids, None, Sampling(max_tokens=20))
        again = read(engine.submit(ids, None, asked))[0]
        different = [read(ticket)[0] for ticket in others]
        assert again == first
        assert len({tuple(each) for each in [first, *different]}) == 4
        assert read(greedy)[0] == alone(one, ids, None, 20)


def test_top_p_of_almost_nothing_is_greedy(one):
    ids = ids_of(one, "w3 w4")
    with Engine(one) as engine:
        asked = Sampling(max_tokens=12, temperature=1.0, top_p=1e-6)
        assert read(engine.submit(ids, None, asked))[0] == alone(one, ids, None, 12)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6])
def test_a_temperature_of_almost_nothing_is_greedy_and_harms_nobody(one, temperature):
    ids = ids_of(one, "w3 w4")
    with Engine(one) as engine:
        beside = engine.submit(ids, None, Sampling(max_tokens=30))
        asked = Sampling(max_tokens=12, temperature=temperature, top_p=0.9, seed=1)
        assert read(engine.submit(ids, None, asked))[0] == alone(one, ids, None, 12)
        assert read(beside)[0] == alone(one, ids, None, 30)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_not_finite_end_their_request_alone(one, temperature):
    ids = ids_of(one, "w3 w4")
    broken = random_lora(one.injector.projections, rank=2, dtype=torch.float32, scaling=1e38)
    with Engine(one) as engine:
        beside = engine.submit(ids, None, Sampling(max_tokens=60))
        first = next(pieces := iter(beside))
        for logprobs in (None, 3):
            asked = Sampling(max_tokens=12, temperature=temperature, logprobs=logprobs)
            with pytest.raises(LoRAError, match="scores of the next token are not finite"):
                list(engine.submit(ids, broken, asked))
        after = [i for piece in pieces for i in piece.token_ids]
        assert [*first.token_ids, *after] == alone(one, ids, None, 60)
        settled(engine)
        assert engine.stats.kv_tokens == 0
        assert engine.stats.failed == 2


def test_logprobs_are_those_of_the_model(one):
    ids, lora = ids_of(one, "w3 w4 w5"), one.adapt(prompts(1)[0])
    with Engine(one) as engine:
        beside = long(one, engine)
        pieces = list(engine.submit(ids, lora, Sampling(max_tokens=4, temperature=3.0, seed=1, logprobs=3)))
        beside.cancel()
    so_far = list(ids)
    for piece in pieces:
        (found,) = piece.logprobs
        with one.host.evaluating(lora, [0]):
            expected = one.model(torch.tensor([so_far], device=one.host.device)).logits[0, -1].log_softmax(-1)
        assert found.logprob == pytest.approx(float(expected[found.token_id]), abs=1e-4)
        values, top = expected.topk(3)
        assert [i for i, _, _ in found.top] == top.tolist()
        assert [value for _, _, value in found.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert found.text == one.tokenizer.decode([found.token_id])
        so_far.append(found.token_id)


def test_a_stop_text_ends_the_answer_before_it(one):
    ids = ids_of(one, "w1 w2")
    with Engine(one) as engine:
        _, text, reason = read(engine.submit(ids, None, Sampling(max_tokens=30)))
        assert reason == "length"
        words = text.split()
        stop = " ".join(words[4:6])
        found, cut, reason = read(engine.submit(ids, None, Sampling(max_tokens=30, stop=("nothing", stop))))
        assert reason == "stop"
        assert cut == text[: text.index(stop)]
        assert len(found) < 30
        settled(engine)
        assert engine.stats.kv_tokens == 0


@pytest.mark.real
def test_text_comes_in_whole_characters_and_stops_across_tokens(smollm):
    tokenizer = smollm[1]
    whole = "Größe 🙂 naïve — ok, done.\n\nEND of it"
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add(i) for i in ids]
    assert "".join(pieces) + stream.finish() == whole
    assert not any("\ufffd" in piece for piece in pieces)
    for stop in (("done.\n\nE",), ("nothing", "\n\nEN"), ("🙂",), ("it",), ("G",)):
        stream, found = TextStream(tokenizer, stop), ""
        for i in ids:
            found += stream.add(i)
            assert whole.startswith(found)
            if stream.stopped:
                break
        assert stream.stopped
        assert found == whole[: min(whole.index(s) for s in stop if s in whole)]
        assert stream.add(ids[0]) == stream.finish() == ""
    stream = TextStream(tokenizer, ("END of time",))  # held back, and given out at the end
    found = "".join(stream.add(i) for i in ids)
    assert found + stream.finish() == whole
    half = tokenizer("🙂", add_special_tokens=False)["input_ids"][:1]
    stream = TextStream(tokenizer)
    assert stream.add(half[0]) == ""
    assert stream.finish() == tokenizer.decode(half)


def test_the_end_token_ends_the_answer_without_text(one):
    ids = ids_of(one, "w1 w2")
    expected = alone(one, ids, None, 8)
    one.model.generation_config.eos_token_id = expected[5]
    with Engine(one) as engine:
        found, text, reason = read(engine.submit(ids, None, Sampling(max_tokens=30)))
    assert reason == "stop"
    assert found == expected[: expected.index(expected[5]) + 1]
    assert text.split() == one.tokenizer.decode(found[:-1]).split()


# --- cancelling, deadlines, limits -----------------------------------------------------------------------------


def test_a_cancelled_or_abandoned_request_frees_its_row_at_once(one):
    with Engine(one, max_batch=1) as engine:
        blocked = long(one, engine, 1000)
        pieces = iter(blocked)
        next(pieces)
        blocked.cancel()
        assert list(pieces)[-1].finish_reason == "cancelled"
        dropped = long(one, engine, 1000)
        next(iter(dropped))  # the iterator is dropped
        del dropped
        gc.collect()
        left = iter(long(one, engine, 1000))
        next(left)
        left.close()
        assert read(engine.submit(ids_of(one, "w5"), None, Sampling(max_tokens=2)))[2] == "length"
        settled(engine)
        assert engine.stats.cancelled == 3
        assert engine.stats.kv_tokens == 0


def test_a_full_queue_says_when_to_try_again(one):
    with Engine(one, max_batch=1, max_waiting=2) as engine:
        running = long(one, engine, 1000)
        next(iter(running))
        waiting = [long(one, engine, 1000) for _ in range(2)]
        with pytest.raises(QueueFull, match=r"^queue: 2 requests wait\. Expected fewer than 2\. Fix: ") as caught:
            long(one, engine)
        assert caught.value.retry_after > 0
        waiting[0].cancel()
        assert read(waiting[0])[2] == "cancelled"  # it never ran
        extra = long(one, engine, 1000)
        for ticket in (extra, waiting[1], running):
            ticket.cancel()


def test_a_deadline_ends_requests_that_run_and_that_wait(one):
    with Engine(one, max_batch=1) as engine:
        ids = ids_of(one, "w1")
        running = engine.submit(ids, None, Sampling(max_tokens=1000), deadline=0.3)
        waiting = engine.submit(ids, None, Sampling(max_tokens=1000), deadline=0.1)
        found, _, reason = read(running)
        assert reason == "deadline"
        assert 0 < len(found) < 1000
        assert read(waiting) == ([], "", "deadline")
        assert engine.stats.expired == 2


def test_requests_join_in_the_order_of_submission(one):
    order: list[int] = []
    with Engine(one, max_batch=1, max_waiting=99) as engine:

        def wait(i: int, ticket: Ticket) -> None:
            read(ticket)
            order.append(i)

        tickets = [engine.submit(ids_of(one, "w1"), None, Sampling(max_tokens=5 + 20 * (i % 2))) for i in range(8)]
        threads = [threading.Thread(target=wait, args=(i, t)) for i, t in enumerate(tickets)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("ids", "sampling", "message"),
    [
        ([], Sampling(), "ids: none. Expected at least one"),
        ([5, 97], Sampling(), "ids: 97. Expected at least one, each from 0 to 96."),
        ([5, -1], Sampling(), "ids: -1. "),
        ([5] * 50, Sampling(max_tokens=5000), "input of 50 tokens and max_tokens=5000. Expected at most "),
    ],
)
def test_a_request_that_cannot_run_is_refused_at_once(one, ids, sampling, message):
    with Engine(one) as engine:
        with pytest.raises(PromptError) as caught:
            engine.submit(ids, None, sampling)
        assert str(caught.value).startswith(message)
        assert engine.stats.waiting == 0


def test_an_adapter_that_does_not_fit_fails_its_request_alone(one):
    other = random_lora(one.injector.projections, rank=2, dtype=torch.float32)
    wrong = LoRAWeights({f"{name}.x": other[name] for name in other}, 1.0)
    with Engine(one) as engine:
        beside = engine.submit(ids_of(one, "w1"), None, Sampling(max_tokens=20))
        with pytest.raises(LoRAError, match="no such projection in the model"):
            list(engine.submit([7], wrong, Sampling()))
        with pytest.raises(LoRAError, match="Fix: use select and to"):
            engine.submit([7], random_lora(one.injector.projections, adapters=2, dtype=torch.float32), Sampling())
        assert read(beside)[2] == "length"
        assert engine.stats.failed == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5},
        {"stop": ("",)}, {"seed": 1 << 70}, {"logprobs": 21},
    ],
)  # fmt: skip
def test_sampling_out_of_range_is_refused(options):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}: .*Expected "):
        Sampling(**options)


def test_settings_and_models_that_cannot_run_are_refused(one):
    with pytest.raises(ConfigError, match="max_batch=0"):
        Engine(one, max_batch=0)
    with pytest.raises(ConfigError, match="Expected fewer"):
        Engine(one, kv_tokens=1 << 31)
    one.model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="Fix: load the base with attn_implementation='sdpa'"):
        Engine(one)


# --- threads, tasks, other callers ------------------------------------------------------------------------------


def test_threads_and_tasks_submit_while_others_use_the_model(one):
    adapters = [one.adapt(prompt) for prompt in prompts(4)]
    requests = [(ids_of(one, text), adapters[i % 4], 8) for i, text in enumerate(texts(12))]
    expected = [alone(one, *request) for request in requests]
    answers = [one.generate([text], adapters[0], max_new_tokens=8)[0] for text in texts(4)]
    wrong: list[object] = []
    with Engine(one, max_batch=4) as engine:

        def submit() -> None:
            for (ids, lora, tokens), right in zip(requests, expected, strict=True):
                if read(engine.submit(ids, lora, Sampling(max_tokens=tokens)))[0] != right:
                    wrong.append(ids)

        def generate() -> None:
            for text, right in zip(texts(4) * 3, answers * 3, strict=True):
                if one.generate([text], adapters[0], max_new_tokens=8)[0] != right:
                    wrong.append(text)

        async def tasks() -> None:
            async def ask(ids, lora, tokens, right) -> None:
                found = [
                    i async for piece in engine.submit(ids, lora, Sampling(max_tokens=tokens)) for i in piece.token_ids
                ]
                if found != right:
                    wrong.append(ids)

            await asyncio.gather(*(ask(*request, right) for request, right in zip(requests, expected, strict=True)))

        threads = [threading.Thread(target=run) for run in (submit, submit, generate, lambda: asyncio.run(tasks()))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_an_async_iteration_that_is_left_cancels(one):
    async def leave(engine: Engine) -> None:
        pieces = aiter(long(one, engine, 1000))
        assert (await anext(pieces)).token_ids
        await pieces.aclose()

    async def abort(engine: Engine) -> None:
        async def ask() -> None:
            async for _ in long(one, engine, 1000):
                pass

        task = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Engine(one) as engine:
        asyncio.run(leave(engine))
        asyncio.run(abort(engine))
        settled(engine)
        assert engine.stats.cancelled == 2


def test_work_runs_between_steps_and_its_errors_are_its_own(one):
    with Engine(one) as engine:
        running = iter(long(one, engine, 300))
        next(running)
        thread, answer = engine.between_steps(
            lambda: (threading.current_thread().name, one.generate("w1 w2", max_new_tokens=3))
        ).result(30)
        assert thread == "promptlora-engine"
        assert answer == one.generate("w1 w2", max_new_tokens=3)
        with pytest.raises(ZeroDivisionError):
            engine.between_steps(lambda: 1 / 0).result(30)
        assert next(running).token_ids
        running.close()


def test_many_requests_for_a_new_prompt_write_its_adapter_once(one):
    prompt, other = prompts(2)
    with Engine(one) as engine:
        futures = [engine.adapter(prompt) for _ in range(10)]
        entries = [future.result(30) for future in futures]
        assert len({id(entry) for entry in entries}) == 1
        assert engine.stats.adapters_written == 1
        assert engine.adapter(prompt).result(30) is entries[0]
        for name, (A, B) in one.adapt(prompt).items():
            assert torch.equal(A, entries[0].lora[name][0])
            assert torch.equal(B, entries[0].lora[name][1])
        with_examples = engine.adapter(other, [("w1", "w2")]).result(30)
        assert with_examples.key != engine.adapter(other).result(30).key
        assert with_examples.prompt_tokens == 8
        for _ in range(2):  # an error is not remembered
            with pytest.raises(PromptError):
                engine.adapter("").result(30)
        assert engine.stats.adapters == 3


def test_a_long_prompt_is_read_in_pieces_while_answers_run(device):
    model = tiny_llama(torch.float32, max_position_embeddings=4096).to(device)
    model.generation_config.eos_token_id = None
    lm = tiny_prompt_lora(model, max_prompt_tokens=256)
    prompt = " ".join(f"w{i % 84}" for i in range(200))
    expected = lm.adapt(prompt)
    lm.states.clear()
    with Engine(lm) as engine:
        running = iter(long(lm, engine, 1000))
        next(running)
        before = engine.stats.steps
        found = engine.adapter(prompt).result(30)
        assert engine.stats.steps - before >= 3  # four pieces of 64 tokens, a step between any two
        running.close()
    for name, (A, B) in expected.items():
        torch.testing.assert_close(found.lora[name][0], A, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.lora[name][1], B, atol=1e-4, rtol=1e-4)
    lm.close()


# --- the end ----------------------------------------------------------------------------------------------------


def test_closing_drains_or_cancels(one):
    engine = Engine(one, max_batch=2)
    tickets = [engine.submit(ids_of(one, "w1"), None, Sampling(max_tokens=20)) for _ in range(5)]
    engine.close()
    assert [read(ticket)[2] for ticket in tickets] == ["length"] * 5
    with pytest.raises(EngineError, match="closed"):
        long(one, engine)
    with pytest.raises(EngineError, match="closed"):
        engine.between_steps(lambda: 1)
    engine.close()

    engine = Engine(one, max_batch=2)
    tickets = [long(one, engine, 1000) for _ in range(5)]
    engine.close(drain=False)
    assert [read(ticket)[2] for ticket in tickets] == ["cancelled"] * 5

    engine = Engine(one, max_batch=2)
    tickets = [long(one, engine, 1900) for _ in range(2)]
    engine.close(timeout=0.2)
    assert {read(ticket)[2] for ticket in tickets} == {"cancelled"}
    assert one.injector._state is None


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(one, monkeypatch):
    with Engine(one) as engine:
        ticket = long(one, engine)
        next(iter(ticket))
        handle = one.model.register_forward_pre_hook(lambda *_: 1 / 0)
        for bad in (long(one, engine), long(one, engine)):
            with pytest.raises(EngineError, match="a step failed"):
                list(bad)
        handle.remove()
        ids = ids_of(one, "w1 w2")
        assert read(engine.submit(ids, None, Sampling(max_tokens=9)))[0] == alone(one, ids, None, 9)
        assert engine.stats.kv_tokens == 0


def test_the_random_numbers_of_the_caller_are_left_alone(one):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with Engine(one) as engine:
        read(engine.submit([7, 8], None, Sampling(max_tokens=3, temperature=1.0)))
    assert torch.equal(torch.rand(3), expected)


def test_pieces_are_plain_values():
    assert Piece("a", (1,), None, None) == Piece("a", (1,), None, None)


def test_a_thousand_requests_mix_nothing_and_keep_nothing(device):
    """Requests of many adapters from several threads, some cancelled, abandoned, too long or past their deadline."""
    lm = steering(tiny_prompt_lora(tiny_llama(torch.float32).to(device), head="core"))
    adapters = [None, *(lm.adapt(prompt) for prompt in prompts(20))]
    inputs = [ids_of(lm, text) for text in texts(5)]
    expected = {(a, i): alone(lm, ids, adapters[a], 5) for a in range(21) for i, ids in enumerate(inputs)}
    assert len({tuple(ids) for ids in expected.values()}) > 60  # the adapters steer: a mix-up would show
    wrong: list[object] = []
    lost: list[object] = []

    def client(engine: Engine, seed: int) -> None:
        for i in range(125):
            a, at, kind = (seed * 11 + i * 7) % 21, (seed + i) % 5, (seed * 5 + i * 3) % 10
            try:
                ticket = engine.submit(
                    inputs[at],
                    adapters[a],
                    Sampling(max_tokens=5000 if kind == 9 else 5),
                    deadline=1e-6 if kind == 8 else 60,
                )
            except PromptError:
                assert kind == 9
                continue
            if kind == 7:
                ticket.cancel()
            if kind == 6:
                next(iter(ticket))
                continue
            ids, _, reason = read(ticket)
            right = expected[a, at]
            if ids != right[: len(ids)] or (kind < 6 and ids != right):
                wrong.append((a, at, ids, right))
            if kind < 6 and reason not in ("length", "stop"):
                lost.append((a, at, reason))

    with Engine(lm, max_batch=8, max_prefill_tokens=16, max_waiting=64) as engine:
        threads = [threading.Thread(target=client, args=(engine, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        settled(engine)
        assert wrong == []
        assert lost == []
        assert engine.stats.finished == 900
        assert engine.stats.failed == 0
        assert engine.stats.kv_tokens == 0
        assert engine.stats.slot_bytes < 100_000
        batch = engine._worker._batch
        assert not batch._running
        assert not batch._cache.adapters
    lm.close()

"""The server with the real client of OpenAI: every endpoint, at once and in streams, sync and async."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import httpx
import openai
import pytest

from tests.server_helpers import BASE, SYSTEM, TEXT, Served, chat, serving, tiny_lm


@pytest.fixture(scope="module")
def served():
    lm = tiny_lm()
    with serving(lm) as running:
        yield running
    lm.close()


@pytest.fixture(scope="module")
def client(served: Served):
    with served.client() as made:
        yield made


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


# --- what answers -------------------------------------------------------------------------------------------


def test_the_system_message_becomes_the_adapter_and_is_not_read(served, client):
    answer = chat(client)
    assert answer.choices[0].message.content.strip() == served.alone(TEXT) != served.alone(TEXT, None)
    assert answer.choices[0].message.role == "assistant"
    assert answer.model == "promptlora"
    assert answer.id.startswith("chatcmpl-")
    (read,) = served.lm.count_tokens([TEXT])
    (longer,) = served.lm.count_tokens([[{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXT}]])
    assert answer.usage.prompt_tokens == read
    assert answer.usage.total_tokens == read + answer.usage.completion_tokens
    assert answer.usage.promptlora["prompt_tokens_saved"] == longer - read > 0
    assert answer.usage.promptlora["adapter"] == served.service.cache.key(SYSTEM)


def test_a_developer_message_and_text_parts_are_the_same_prompt(served, client):
    parts = [{"type": "text", "text": "w1 w2"}, {"type": "text", "text": "w3 w4"}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    answer = client.chat.completions.create(model="promptlora", messages=messages, max_tokens=8)
    assert answer.choices[0].message.content.strip() == served.alone(TEXT, "w1 w2\nw3 w4")


def test_without_a_system_message_the_base_answers(served, client):
    for system, model in ((None, "promptlora"), ("  ", "promptlora"), (None, BASE)):
        answer = chat(client, system=system, model=model)
        assert answer.choices[0].message.content.strip() == served.alone(TEXT, None)
        assert answer.usage.promptlora == {"adapter": None, "prompt_tokens_saved": 0, "stopped": None}


def test_the_base_reads_the_system_message(served, client):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXT}]
    answer = client.chat.completions.create(model=BASE, messages=messages, max_tokens=8)
    assert answer.choices[0].message.content.strip() == served.lm.generate([messages], max_new_tokens=8)[0]


def test_a_conversation_goes_on_with_the_messages_of_the_client(served, client):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXT}]
    first = client.chat.completions.create(model="promptlora", messages=messages, max_tokens=4)
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "w9"}]
    second = client.chat.completions.create(model="promptlora", messages=messages, max_tokens=8)
    turns = [{"role": m["role"], "content": m["content"]} for m in messages[1:]]
    expected = served.lm.generate([turns], served.lm.adapt(SYSTEM), max_new_tokens=8)[0]
    assert second.choices[0].message.content.strip() == expected


def test_an_explicit_prompt_with_examples_in_context_and_with_strength(served, client):
    field = {"prompt": SYSTEM, "examples": [{"input": "w7", "output": "w8"}]}
    answer = chat(client, system=None, extra_body={"promptlora": field})
    lora = served.lm.adapt(SYSTEM, examples=[("w7", "w8")])
    assert answer.choices[0].message.content.strip() == served.lm.generate(TEXT, lora, max_new_tokens=8)
    answer = chat(client, system=None, extra_body={"promptlora": {"prompt": SYSTEM, "in_context": True}})
    lora = served.lm.adapt(SYSTEM, in_context=True)
    expected = served.lm.generate(TEXT, lora, in_context=SYSTEM, max_new_tokens=8)
    assert answer.choices[0].message.content.strip() == expected
    assert answer.usage.promptlora["prompt_tokens_saved"] == 0
    answer = chat(client, extra_body={"promptlora": {"strength": 0.5}})
    half = type(lora).combine([served.lm.adapt(SYSTEM)], [0.5])
    assert answer.choices[0].message.content.strip() == served.lm.generate(TEXT, half, max_new_tokens=8)


def test_a_stored_adapter_answers_by_its_name(served, client):
    key = served.service.cache.key(SYSTEM)
    chat(client)
    answer = chat(client, system=None, model=f"adapter:{key}")
    assert answer.choices[0].message.content.strip() == served.alone(TEXT)
    assert answer.usage.promptlora == {"adapter": key, "prompt_tokens_saved": None, "stopped": None}


# --- streams ------------------------------------------------------------------------------------------------


def test_a_stream_has_a_role_deltas_a_reason_and_the_usage(served, client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert text_of(chunks).strip() == served.alone(TEXT)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.model_dump() == {**chat(client).usage.model_dump()}
    assert len({c.id for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert all(c.usage is None for c in chat(client, stream=True))


def test_the_bytes_of_a_stream(served):
    body = {"model": BASE, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as answer:
        lines = list(answer.iter_lines())
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines if line)


def test_async(served):
    async def ask():
        async with served.async_client() as client:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXT}]
            asked = {"model": "promptlora", "messages": messages, "max_tokens": 8}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**asked), client.chat.completions.create(**asked, stream=True)
            )
            return whole, [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]

    whole, parts = asyncio.run(ask())
    assert whole.choices[0].message.content == "".join(parts)
    assert whole.choices[0].message.content.strip() == served.alone(TEXT)


def test_many_prompts_at_once_are_not_mixed(served):
    prompts = [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(12)]
    expected = [served.alone(TEXT, prompt) for prompt in prompts]
    assert len(set(expected)) > 6

    async def ask() -> list[str]:
        async with served.async_client() as client:

            async def one(prompt: str) -> str:
                messages = [{"role": "system", "content": prompt}, {"role": "user", "content": TEXT}]
                answer = await client.chat.completions.create(model="promptlora", messages=messages, max_tokens=8)
                return answer.choices[0].message.content.strip()

            return await asyncio.gather(*map(one, prompts))

    assert asyncio.run(ask()) == expected


def test_a_client_that_goes_frees_its_row(served, client):
    for stream in (True, False):
        before = served.service.engine.stats
        options = {"max_tokens": 400, "stop": ["no such text"]}
        if stream:
            with chat(client, stream=True, **options) as chunks:
                next(iter(chunks))
        else:
            with pytest.raises(openai.APITimeoutError):
                chat(client.with_options(timeout=0.2), **options)
        until = time.monotonic() + 20
        while served.service.engine.stats.cancelled == before.cancelled and time.monotonic() < until:
            time.sleep(0.02)
        after = served.service.engine.stats
        assert after.running == after.waiting == 0
        assert after.cancelled == before.cancelled + 1, stream


# --- options ------------------------------------------------------------------------------------------------


def test_stop_texts_end_an_answer_before_them(served, client):
    whole = served.alone(TEXT, tokens=12).split()
    stop = whole[5]
    expected = " ".join(whole[: whole.index(stop)])
    for given in (stop, ["no such text", stop]):
        answer = chat(client, max_tokens=12, stop=given)
        assert answer.choices[0].message.content.strip() == expected
        assert answer.choices[0].finish_reason == "stop"
        assert text_of(chat(client, max_tokens=12, stop=given, stream=True)).strip() == expected


def test_max_tokens_has_two_names_and_the_newer_one_wins(client):
    for options in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 9, "max_completion_tokens": 3}):
        answer = chat(client, **{"max_tokens": None, **options})
        assert answer.usage.completion_tokens <= 3
        assert answer.choices[0].finish_reason == "length"


def test_an_answer_is_cut_to_what_the_base_takes(served, client):
    answer = chat(client, text=" ".join(["w3"] * 490), max_tokens=4096)
    assert answer.usage.total_tokens <= 512
    with pytest.raises(openai.BadRequestError, match="at most 511") as caught:
        chat(client, text=" ".join(["w3"] * 600))
    assert caught.value.code == "context_length_exceeded"


def test_a_seed_repeats_an_answer_and_each_of_n_has_its_own(client):
    def ask(seed: int):
        return [c.message.content for c in chat(client, n=4, seed=seed, temperature=1.5, top_p=0.95).choices]

    first = ask(1)
    assert first == ask(1) != ask(2)
    assert len(set(first)) > 1
    chunks = list(chat(client, n=4, seed=1, temperature=1.5, top_p=0.95, stream=True))
    streamed = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in range(4)]
    assert streamed == first
    assert sum(c.choices[0].finish_reason is not None for c in chunks) == 4


def test_log_probabilities(served, client):
    answer = chat(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = answer.logprobs.content
    assert " ".join(t.token.strip() for t in tokens) == answer.message.content.strip()
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-5)  # greedy
        assert bytes(token.bytes).decode() == token.token
        assert token.logprob <= 0
    expected = served.lm.score([TEXT], [answer.message.content.strip()], served.lm.adapt(SYSTEM))[0]
    assert math.fsum(t.logprob for t in tokens) == pytest.approx(expected, rel=1e-3)
    assert chat(client).choices[0].logprobs is None
    streamed = [
        t
        for c in chat(client, logprobs=True, stream=True)
        if c.choices[0].logprobs
        for t in c.choices[0].logprobs.content
    ]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert streamed[0].top_logprobs == []


def test_a_deadline_cuts_an_answer_and_says_so(served, client):
    long = {"max_tokens": 450, "stop": "no such text"}
    answer = chat(client, extra_body={"promptlora": {"deadline": 0.3}}, **long)
    if answer.usage.completion_tokens < 450:
        assert answer.choices[0].finish_reason in ("length", "stop")
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client, extra_body={"promptlora": {"deadline": 1e-6}}, **long)
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"


def test_a_deadline_counts_the_time_until_the_adapter_is_there(served, client):
    """The engine is busy with other work: the adapter of a new prompt has to wait."""
    busy = threading.Event()
    work = served.service.engine.between_steps(lambda: busy.wait(30))
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            chat(client, system="w7 w7 w7", extra_body={"promptlora": {"deadline": 0.2}})
    finally:
        busy.set()
    assert caught.value.code == "deadline_exceeded"
    assert work.result(30)
    assert chat(client, system="w7 w7 w7").choices[0].message.content.strip() == served.alone(TEXT, "w7 w7 w7")


# --- text completions ---------------------------------------------------------------------------------------


def test_completions(served, client):
    answer = client.completions.create(model=BASE, prompt=TEXT, max_tokens=6)
    ids = served.lm.tokenizer(TEXT)["input_ids"]
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].text
    by_ids = client.completions.create(model=BASE, prompt=ids, max_tokens=6)
    assert by_ids.choices[0].text == answer.choices[0].text
    both = client.completions.create(model=BASE, prompt=[TEXT, "w9"], max_tokens=6)
    assert [c.index for c in both.choices] == [0, 1]
    assert both.choices[0].text == answer.choices[0].text
    streamed = client.completions.create(model=BASE, prompt=TEXT, max_tokens=6, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == answer.choices[0].text
    adapted = client.completions.create(
        model="promptlora", prompt=TEXT, max_tokens=6, logprobs=2, extra_body={"promptlora": {"prompt": SYSTEM}}
    )
    assert adapted.choices[0].text != answer.choices[0].text
    logprobs = adapted.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    assert adapted.usage.promptlora["prompt_tokens_saved"] == 4


# --- models, errors, operation ------------------------------------------------------------------------------


def test_models(served, client):
    chat(client)
    key = served.service.cache.key(SYSTEM)
    names = [model.id for model in client.models.list()]
    assert names[:2] == [BASE, "promptlora"]
    assert f"adapter:{key}" in names
    for name in (BASE, "promptlora", f"adapter:{key}"):
        assert client.models.retrieve(name).id == name
    for name in ("gpt-4o", "owner/name", "adapter:0", f"adapter:{'0' * 64}"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        chat(client, model="gpt-4o")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


REFUSED = {
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "400 - tools: Tools are not supported.$", "tools"),
    "penalty": ({"frequency_penalty": 0.5}, "Penalties are not supported", "frequency_penalty"),
    "json": ({"response_format": {"type": "json_object"}}, "Answers are plain text", "response_format.type"),
    "unknown": ({"extra_body": {"top_k": 5}}, "Unrecognized request argument supplied: top_k", "top_k"),
    "hot": ({"temperature": 3}, "temperature", "temperature"),
    "kind of number": ({"extra_body": {"temperature": "0"}}, "temperature", "temperature"),
    "n": ({"n": 100}, "n", "n"),
    "top without logprobs": ({"top_logprobs": 2}, "logprobs", "top_logprobs"),
    "no messages": ({"messages": []}, "messages", "messages"),
    "only a system message": ({"messages": [{"role": "system", "content": "w1"}]}, "none of the user", None),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "text",
        "messages.0.content.0.type",
    ),
    "tool result": ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "role", "messages.0.role"),
    "prompt with the base": ({"model": BASE, "extra_body": {"promptlora": {"prompt": "w1"}}}, "model", "promptlora"),
    "strength": ({"extra_body": {"promptlora": {"strength": 0}}}, "strength", "promptlora.strength"),
    "strength of the base": ({"model": BASE, "extra_body": {"promptlora": {"strength": 2}}}, "no adapter", "promptlora.strength"),
    "typing error": ({"extra_body": {"promptlora": {"promt": "w1"}}}, "promptlora.promt", "promptlora.promt"),
    "examples alone": (
        {"messages": [{"role": "user", "content": "w1"}], "extra_body": {"promptlora": {"examples": [{"input": "", "output": "w1"}]}}},
        "no prompt",
        "promptlora",
    ),
    "long prompt": ({"extra_body": {"promptlora": {"prompt": "w1 " * 17}}}, "at most 16", None),
    "empty prompt": ({"extra_body": {"promptlora": {"prompt": " "}}}, "empty", None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_reason(client, case):
    options, words, param = REFUSED[case]
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        chat(client, **options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code


def test_what_changes_nothing_is_accepted(served, client):
    options = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none", "user": "u",
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True,
        "service_tier": "auto", "modalities": ["text"], "n": 1, "seed": None, "stop": None, "stream": False, "logprobs": False,
    }  # fmt: skip
    assert chat(client, **options).choices[0].message.content.strip() == served.alone(TEXT)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body"),
        (b"{", "not JSON"),
        (b"[]", "dictionary|object"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature"),
        (b'{"model": "promptlora", "messages": [{"role": "system", "content": "\\ud800"}]}', "surrogate|unicode"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}', "surrogate|unicode"),
        (b'{"model": "a", "messages": [{"role": "user", "content": "a"}], "\\ud800": 1}', "unicode"),
        (b'{"model": "tiny"}', "Missing required parameter: messages"),
        (b"\xff\xfe", "body|JSON"),
        (b"[" * 100_000, "body|JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body|JSON"),
    ],
)
def test_bodies_that_are_no_requests(served, body, words):
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert any(word in error["message"] for word in words.split("|")), error


def test_paths_and_methods_that_are_not_there(served):
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/responses", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/models", 405),
        ("GET", "/docs", 404),
    ):
        answer = httpx.request(method, served.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
        if status == 405:
            assert answer.headers["allow"]


def test_a_full_queue_is_429_with_the_time_to_wait(served):
    lm = served.lm
    with serving(lm, max_batch=1, max_waiting=1) as small, small.client() as client:
        asked = {"max_tokens": 400, "stop": "no such text", "stream": True}
        streams = []

        def fill() -> None:
            while len(streams) < 6:
                streams.append(chat(client, **asked))

        with pytest.raises(openai.RateLimitError) as caught:
            fill()
        assert len(streams) >= 2
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
        for stream in streams:
            stream.close()


def test_more_answers_than_the_queue_ever_holds_are_refused_for_good(served):
    with serving(served.lm, max_waiting=2) as small, small.client() as client:
        with pytest.raises(openai.BadRequestError, match="at most 2"):
            chat(client, n=3)
        assert len(chat(client, n=2).choices) == 2


def test_too_many_open_requests_are_429(served):
    with serving(served.lm, most_requests=1) as small, small.client() as client:
        with chat(client, stream=True, max_tokens=400, stop="no such text") as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError, match="requests are open"):
                chat(client)
            assert httpx.get(f"{small.url}/health").status_code == 200
        until = time.monotonic() + 20
        while httpx.get(f"{small.url}/v1/models").status_code != 200:  # until it has seen that the client has gone
            assert time.monotonic() < until


def test_health_and_metrics(served, client):
    chat(client)
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    answer = httpx.get(f"{served.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}
    assert values['promptlora_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] >= 1
    assert values["promptlora_generated_tokens_total"] >= 1
    assert values["promptlora_prompt_tokens_saved_total"] >= 4
    assert values["promptlora_first_token_seconds_count"] >= 1
    assert httpx.get(f"{served.url}/health").headers["x-request-id"].startswith("req-")
    assert httpx.request("WORDSOFACLIENT", f"{served.url}/health").status_code == 405
    assert "WORDSOFACLIENT" not in httpx.get(f"{served.url}/metrics").text


def test_no_other_origin_is_let_in(served):
    answer = httpx.get(f"{served.url}/v1/models", headers={"origin": "https://example.org"})
    assert not any(name.startswith("access-control") for name in answer.headers)
    plain = httpx.post(f"{served.url}/v1/adapters", content=b'{"prompt": "w1"}', headers={"content-type": "text/plain"})
    assert plain.status_code == 400  # a page may send plain text anywhere, unasked
    assert httpx.get(f"{served.url}/v1/models", headers={"host": "evil.example"}).status_code == 403
    for host in ("localhost", "localhost:99", "127.0.0.1:8421", "[::1]:80"):
        assert httpx.get(f"{served.url}/v1/models", headers={"host": host}).status_code == 200

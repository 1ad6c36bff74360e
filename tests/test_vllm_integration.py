"""promptlora-vllm in a real vLLM, with a real sidecar: every answer is the one that ``lm.generate`` gives.

``make test-vllm`` runs it and writes what it measured; the environment of vLLM is described in docs/vllm.md.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import openai
import pytest

from promptlora import LoRAWeights, PromptLoRA
from promptlora.models import embedded_folder
from promptlora.text import encode_chat, render_chat
from promptlora.text.padding import pad_rows
from tests.vllm_helpers import BASE, VLLM, WHERE_VLLM, Sidecar

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not WHERE_VLLM.is_file(), reason=f"vLLM is not installed: no {WHERE_VLLM}; see docs/vllm.md"),
]
PROMPTS = [
    "Translate to Spanish.",
    "Answer with one word: positive or negative.",
    "Write a short title for this text.",
    "Rewrite the sentence so that it says the opposite.",
]
INPUTS = [
    "I loved every minute of it.",
    "The ship left the harbour at dawn and never came back.",
    "Good morning, how are you?",
    "The soup was cold and the waiter was rude.",
    "Ten children are playing in the garden behind the school.",
    "My card was charged twice for the same order.",
    "She has never seen the sea.",
    "The museum opens at nine and closes at five.",
    "What a terrible film, I left after ten minutes.",
    "Please send the report to the director before Friday.",
]
TOKENS = 24


@pytest.fixture(scope="module")
def found() -> dict:
    """What all tests have measured, and what the report has of an earlier run of other tests."""
    path = Path(os.environ.get("PROMPTLORA_VLLM_REPORT") or os.devnull)
    return json.loads(path.read_text() or "{}") if path.exists() else {}


@pytest.fixture
def report(found) -> Iterator[dict]:
    """What is measured; written after each test where ``PROMPTLORA_VLLM_REPORT`` says."""
    yield found
    if path := os.environ.get("PROMPTLORA_VLLM_REPORT"):
        Path(path).write_text(json.dumps(found, indent=2) + "\n")


@pytest.fixture(scope="module")
def lm() -> Iterator[PromptLoRA]:
    made = PromptLoRA.from_pretrained()
    yield made
    made.close()


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path_factory.mktemp("sidecar"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory, sidecar, lm, found) -> Iterator[VLLM]:
    made = VLLM(tmp_path_factory.mktemp("vllm"), embedded_folder(), sidecar)
    began = time.perf_counter()
    made.start()
    script = "import torch, transformers, vllm; print(vllm.__version__, torch.__version__, transformers.__version__)"
    told = subprocess.run([WHERE_VLLM, "-c", script], capture_output=True, text=True, check=True).stdout.split()[-3:]
    found["versions"] = {
        "vllm": told[0], "vllm_torch": told[1], "vllm_transformers": told[2], "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"), "transformers": importlib.metadata.version("transformers"),
    }  # fmt: skip
    found["options"] = " ".join(made.command[5:])
    found["start_seconds"] = round(time.perf_counter() - began, 1)
    yield made
    made.stop()


def expected(
    lm: PromptLoRA, texts: Sequence[str], prompts: Sequence[str | None], tokens: int = TOKENS
) -> list[list[int]]:
    """The ids of ``lm.generate``, with as many tokens as asked for: rows of the base in one batch, others in another."""
    made: dict[int, list[int]] = {}
    for of_base in (True, False):
        rows = [i for i, prompt in enumerate(prompts) if (prompt is None) is of_base]
        if not rows:
            continue
        rendered = [render_chat(lm.tokenizer, texts[i]) for i in rows]
        ids, mask = pad_rows(encode_chat(lm.tokenizer, rendered), lm.host.pad, left=True)
        lora, index = None, None
        if not of_base:
            lora, index = LoRAWeights.stack([adapted(lm, str(prompts[i])) for i in rows]), list(range(len(rows)))
        answers = lm.host.generate(ids, mask, lora, index, max_new_tokens=tokens, min_new_tokens=tokens)
        made.update(zip(rows, answers.tolist(), strict=True))
    return [made[i] for i in range(len(texts))]


@cache
def adapted(lm: PromptLoRA, prompt: str) -> LoRAWeights:
    return lm.adapt(prompt)


def asked(text: str, system: str | None, **options) -> dict:
    """A chat request for the model ``promptlora``, with as many tokens as asked for."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    extra = {"min_tokens": options.get("max_tokens", TOKENS), "return_token_ids": True}
    return {
        "model": "promptlora", "messages": [*messages, {"role": "user", "content": text}], "temperature": 0,
        "max_tokens": TOKENS, "extra_body": extra, **options,
    }  # fmt: skip


def ids_of(answer) -> list[int]:
    return list(answer.choices[0].token_ids)


def ask(vllm: VLLM, text: str, system: str | None, **options) -> list[int]:
    return ids_of(vllm.client().chat.completions.create(**asked(text, system, **options)))


def at_once(vllm: VLLM, requests: Sequence[dict]) -> list[list[int]]:
    async def run() -> list[list[int]]:
        async with vllm.async_client() as client:
            return [
                ids_of(each) for each in await asyncio.gather(*(client.chat.completions.create(**r) for r in requests))
            ]

    return asyncio.run(run())


def folders(vllm: VLLM) -> set[str]:
    return {path.name for path in vllm.store.iterdir() if not path.name.startswith(".")}


def test_rows_of_the_base_are_masked_where_the_kernel_reads_the_last_slot(report):
    script = """if True:
        import json, torch
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu
        from promptlora_vllm import base_rows
        plain = lora_ops.bgmv_shrink
        before = base_rows.wrong(plain)
        torch.manual_seed(0)
        x, weights, at = torch.randn(7, 12), torch.randn(4, 1, 8, 12), torch.tensor([0, -1, 3, 2, -1, 3, 1])
        replaced, again = base_rows.install(), base_rows.install()
        result, reference = torch.full((7, 8), 9.0), torch.zeros(7, 8)
        punica_cpu.bgmv_shrink(x, weights, result, at, 0.5)
        for row, slot in enumerate(at.tolist()):
            if slot >= 0:
                reference[row] = 0.5 * weights[slot, 0] @ x[row]
        error = (result - reference).abs().max().item()
        print(json.dumps({"before": before, "replaced": replaced, "again": again, "error": error,
                          "after": base_rows.wrong(punica_cpu.bgmv_shrink) or base_rows.wrong(lora_ops.bgmv_shrink)}))
    """
    ran = subprocess.run([WHERE_VLLM, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["replaced"] == told["before"]  # a kernel that is right is left alone
    assert told["again"] is False
    assert told["after"] is False
    assert told["error"] < 1e-5
    report["base_rows"] = {"wrong_without_the_plugin": told["before"], "wrong_with_it": told["after"]}


def test_base_and_four_adapters_in_one_batch_ten_times(vllm, lm, report):
    systems = [None, *PROMPTS]
    for prompt in PROMPTS:  # written and loaded before, so that the five requests of a round run at once
        ask(vllm, INPUTS[0], prompt, max_tokens=1)
    assert len(folders(vllm)) == 4
    equal, distinct, seconds, batched = 0, [], [], []
    for round_, text in enumerate(INPUTS):
        reference = expected(lm, [text] * 5, systems)
        assert len({tuple(each) for each in reference}) >= 4, "the adapters say nothing of their own"
        order = [(round_ + i) % 5 for i in range(5)]
        steps, began = vllm.metric("vllm:iteration_tokens_total_count"), time.perf_counter()
        got = at_once(vllm, [asked(text, systems[i]) for i in order])
        seconds.append(time.perf_counter() - began)
        batched.append(5 * TOKENS / (vllm.metric("vllm:iteration_tokens_total_count") - steps))
        wrong = [i for i, ids in zip(order, got, strict=True) if ids != reference[i]]
        assert not wrong, f"round {round_}: {[(systems[i], reference[i], got[order.index(i)]) for i in wrong]}"
        equal += len(got)
        distinct.append(len({tuple(each) for each in reference}))
    assert statistics.median(batched) > 3  # requests really shared their steps
    report["mixed_batch"] = {
        "rounds": len(INPUTS), "answers": 5 * len(INPUTS), "equal": equal, "tokens_each": TOKENS, "dtype": "float32",
        "distinct_answers_per_round": distinct, "tokens_per_step_median": round(statistics.median(batched), 2),
        "seconds_per_round_median": round(statistics.median(seconds), 2),
    }  # fmt: skip


def test_an_adapter_is_resolved_by_its_name(vllm, sidecar, lm, report):
    prompt, text = "Name the capital of the country.", "France"
    key = sidecar.ask("/v1/adapters", {"prompt": prompt})["id"]
    reference = expected(lm, [text], [prompt])[0]
    assert key not in folders(vllm)
    for model in (f"promptlora:{key}", f"adapter:{key}"):
        assert ask(vllm, text, None, model=model) == reference
    assert key in folders(vllm)
    client = vllm.client()
    for unknown in ("0" * 64, "short", "../../etc"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**asked(text, None, model=f"promptlora:{unknown}"))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked(text, None, model="another"))
    report["on_demand"] = {"equal": True, "unknown_names": "404"}


def test_clients_need_no_change(vllm, lm, report):
    prompt, text = PROMPTS[1], INPUTS[3]
    reference = lm.tokenizer.decode(expected(lm, [text], [prompt])[0], skip_special_tokens=True)
    client = vllm.client()
    names = [model.id for model in client.models.list()]
    assert {"promptlora", BASE} <= set(names)
    assert client.models.retrieve("promptlora").id == "promptlora"
    streamed = client.chat.completions.create(**asked(text, prompt), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == reference
    parts = [{"type": "text", "text": prompt}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": text}]
    assert ask(vllm, text, None, messages=messages) == ask(vllm, text, prompt)
    two = client.chat.completions.create(**asked(text, prompt, n=2, temperature=1, seed=5))
    assert len({choice.message.content for choice in two.choices}) == 2
    assert two.usage.prompt_tokens == len(encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, text)])[0])
    base = client.chat.completions.create(**asked(text, prompt, model=BASE))  # the base reads its system message
    assert base.usage.prompt_tokens > two.usage.prompt_tokens
    report["clients"] = {"openai": openai.__version__, "streamed": True, "developer_role": True, "content_parts": True}


def test_what_cannot_be_answered_is_told_and_strangers_write_nothing(vllm, sidecar):
    client = vllm.client()
    for field in ({"strength": 2}, {"prompt": ""}, {"unknown": 1}):
        with pytest.raises(openai.BadRequestError, match="promptlora"):
            client.chat.completions.create(**asked("w", None, extra_body={"promptlora": field}))
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/load_lora_adapter", cast_to=object, body={"lora_name": "x", "lora_path": "/tmp"})
    known = sidecar.ask("/v1/adapters")["data"]
    with pytest.raises(openai.AuthenticationError):
        vllm.client("no key").chat.completions.create(**asked("w", "A prompt of a stranger."))
    assert sidecar.ask("/v1/adapters")["data"] == known


def evict(vllm: VLLM) -> None:
    """Load four other adapters, as many as vLLM keeps."""
    for word in ("one", "two", "three", "four"):
        ask(vllm, "w", f"Answer with the word {word}.", max_tokens=1)


def test_an_evicted_adapter_whose_folder_has_gone(vllm, lm, report):
    prompt, text = PROMPTS[0], INPUTS[0]
    reference = expected(lm, [text], [prompt])[0]
    before = folders(vllm)
    assert ask(vllm, text, prompt) == reference
    key = vllm.client().chat.completions.create(**asked(text, prompt)).model.removeprefix("promptlora:")
    assert key in before | folders(vllm)
    evict(vllm)
    assert ask(vllm, text, prompt) == reference  # from its folder
    evict(vllm)
    shutil.rmtree(vllm.store / key)
    assert ask(vllm, text, prompt) == reference  # the middleware had it written again
    assert key in folders(vllm)
    assert vllm.answers()
    report["evicted"] = {"folder_there": "equal", "folder_gone": "equal"}


def waiting_for_a_slot(vllm: VLLM, system: str, text: str) -> tuple[threading.Thread, list, list]:
    """A request for an adapter that waits in vLLM's queue, since long answers hold all four places."""
    words = ("one", "two", "three", "four")
    long = [
        threading.Thread(target=ask, args=(vllm, "w", f"Answer with the word {w}."), kwargs={"max_tokens": 200})
        for w in words
    ]
    for each in long:
        each.start()
    end = time.monotonic() + 120
    while vllm.metric("vllm:num_requests_running") < 4:
        assert time.monotonic() < end
        time.sleep(0.05)
    got: list = []
    waiter = threading.Thread(target=lambda: got.append(ask(vllm, text, system)))
    waiter.start()
    while vllm.metric("vllm:num_requests_waiting") < 1:
        assert time.monotonic() < end
        assert vllm.metric("vllm:num_requests_running") >= 4, "the long answers ended too early"
        time.sleep(0.05)
    return waiter, got, long


def test_a_folder_that_goes_while_its_request_waits_and_the_sidecar_is_down(vllm, sidecar, lm, report):
    prompt, text = PROMPTS[2], INPUTS[1]
    reference = expected(lm, [text], [prompt])[0]
    assert ask(vllm, text, prompt) == reference
    key = vllm.client().chat.completions.create(**asked(text, prompt)).model.removeprefix("promptlora:")
    evict(vllm)
    waiter, got, long = waiting_for_a_slot(vllm, prompt, text)
    shutil.rmtree(vllm.store / key)
    sidecar.stop(signal.SIGKILL)
    end = time.monotonic() + 300
    while "its folder has gone" not in vllm.log.read_text():  # a place became free; the engine waits for the sidecar
        assert time.monotonic() < end
        assert not got
        time.sleep(0.2)
    sidecar.start()
    for each in (waiter, *long):
        each.join(300)
    assert got == [reference]
    assert vllm.answers()
    report["folder_gone_in_queue_and_sidecar_down"] = "equal after the sidecar's restart"


def test_the_sidecar_is_killed_and_restarted(vllm, sidecar, lm, report):
    known, new, text = PROMPTS[3], "Write the sentence in upper case.", INPUTS[4]
    references = expected(lm, [text] * 3, [known, new, None])
    assert ask(vllm, text, known) == references[0]
    sidecar.stop(signal.SIGKILL)
    assert ask(vllm, text, known) == references[0]  # from the store
    assert ask(vllm, text, None) == references[2]
    with pytest.raises(openai.InternalServerError) as caught:
        ask(vllm, text, new)
    assert caught.value.status_code == 503
    assert caught.value.code == "sidecar_unavailable"
    assert caught.value.response.headers["Retry-After"]
    assert vllm.answers()
    sidecar.start()
    assert ask(vllm, text, new) == references[1]
    report["sidecar_killed"] = {"known_prompt": "equal", "base": "equal", "new_prompt": "503", "after_restart": "equal"}


def test_many_requests_for_one_new_prompt_write_it_once(vllm, sidecar, lm, report):
    prompt, text = "Say which animal is the largest.", "ant, whale, dog"
    reference = expected(lm, [text], [prompt])[0]
    before = len(sidecar.ask("/v1/adapters")["data"])
    assert at_once(vllm, [asked(text, prompt)] * 8) == [reference] * 8
    assert len(sidecar.ask("/v1/adapters")["data"]) == before + 1
    began = time.perf_counter()
    ask(vllm, text, "A prompt that nobody has sent before.", max_tokens=1)
    first = time.perf_counter() - began
    began = time.perf_counter()
    ask(vllm, text, "A prompt that nobody has sent before.", max_tokens=1)
    report["first_token_seconds"] = {
        "new_prompt": round(first, 2),
        "known_prompt": round(time.perf_counter() - began, 2),
    }
    sizes = [sum(f.stat().st_size for f in (vllm.store / key).iterdir()) for key in folders(vllm)]
    report["store"] = {"adapters": len(sizes), "bytes_each": max(sizes)}

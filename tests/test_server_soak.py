"""Mixed requests from many clients at once: each answer is the one that is computed alone, and none is lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.host_helpers import prompts, texts
from tests.server_helpers import BASE, Served, serving, tiny_lm

TOKENS = 12
CLIENTS = 16
KINDS = ("whole", "stream", "base", "stored", "two", "gone", "late", "long prompt", "long text", "malformed")
MALFORMED = (b"{", b"[]", b'{"model": "promptlora"}', b'{"model": "promptlora", "messages": [], "top_k": 1}', b"\xff")


class Soak:
    """Requests in a fixed order of kinds, and what is wrong with their answers."""

    def __init__(self, served: Served, adapters: int, inputs: int, seed: int) -> None:
        self.served, self.seed = served, seed
        self.prompts, self.texts = prompts(adapters), texts(inputs)
        loras = [served.lm.adapt(prompt) for prompt in self.prompts]
        self.alone = {
            (p, t): served.lm.generate(text, None if p is None else loras[p], max_new_tokens=TOKENS)
            for p in (None, *range(adapters))
            for t, text in enumerate(self.texts)
        }
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()

    async def run(self, requests: int) -> None:
        """Send all requests, as many at a time as there are clients."""
        numbers = iter(range(requests))
        async with httpx.AsyncClient(base_url=f"{self.served.url}/v1", timeout=120) as http:

            async def client() -> None:
                for number in numbers:
                    rng = random.Random(f"{self.seed}/{number}")
                    kind = KINDS[number % len(KINDS)]
                    try:
                        await self.one(http, kind, rng)
                    except Exception as error:
                        self.wrong.append(f"{number} {kind}: {error!r}")
                    self.done[kind] += 1

            await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def one(self, http: httpx.AsyncClient, kind: str, rng: random.Random) -> None:
        p, t = rng.randrange(len(self.prompts)), rng.randrange(len(self.texts))
        messages = [{"role": "system", "content": self.prompts[p]}, {"role": "user", "content": self.texts[t]}]
        body = {"model": "promptlora", "messages": messages, "max_tokens": TOKENS}
        expected = [self.alone[p, t]]
        if kind == "base":
            body |= {"model": BASE, "messages": messages[1:]}
            expected = [self.alone[None, t]]
        elif kind == "stored":
            key = (await http.post("/adapters", json={"prompt": self.prompts[p]})).json()["id"]
            body |= {"model": f"adapter:{key}", "messages": messages[1:]}
        elif kind == "two":
            body["n"] = 2
            expected *= 2
        elif kind == "late":
            body |= {"max_tokens": 400, "promptlora": {"deadline": rng.choice([1e-6, 0.05])}}
            answer = await http.post("/chat/completions", json=body)
            assert answer.status_code in (200, 504), answer.text
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["message"]["content"].strip().startswith(expected[0][:3])
            return
        elif kind == "long prompt":
            body["messages"] = [{"role": "system", "content": "w1 " * 17}, messages[1]]
        elif kind == "long text":
            body["messages"] = [messages[0], {"role": "user", "content": "w1 " * 600}]
        if kind.startswith("long") or kind == "malformed":
            content = rng.choice(MALFORMED) if kind == "malformed" else json.dumps(body).encode()
            answer = await http.post("/chat/completions", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["message"]
        elif kind in ("stream", "gone"):
            found, whole = await stream(http, {**body, "stream": True}, rng.randrange(4) if kind == "gone" else None)
            assert expected[0].startswith(found.strip()), (found, expected)
            assert not whole or found.strip() == expected[0]
            assert whole or kind == "gone"
        else:
            answer = await http.post("/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            found = [choice["message"]["content"].strip() for choice in answer.json()["choices"]]
            assert found == expected


async def stream(http: httpx.AsyncClient, body: dict, leave_after: int | None) -> tuple[str, bool]:
    """The text of a stream, and whether it was read to its end."""
    text, chunks = "", 0
    async with http.stream("POST", "/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return text, True
            if line:
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
                chunks += 1
            if leave_after is not None and chunks > leave_after:
                return text, False
    raise AssertionError("the stream ended without [DONE]")


async def settled(served: Served) -> None:
    """Wait for the rows of clients that have gone."""
    for _ in range(500):
        stats = served.service.engine.stats
        if not (stats.running or stats.waiting):
            return
        await asyncio.sleep(0.02)


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def soak(requests: int, adapters: int, rounds: int = 1) -> list[int]:
    lm = tiny_lm()
    sizes = []
    try:
        with serving(lm, max_batch=8) as served:
            for number in range(rounds):
                run = Soak(served, adapters, 4, seed=number)

                async def all_of(run: Soak = run) -> None:
                    await run.run(requests)
                    await settled(served)

                asyncio.run(all_of())
                assert run.wrong == []
                assert sum(run.done.values()) == requests
                stats = served.service.engine.stats
                assert (stats.running, stats.waiting, stats.kv_tokens) == (0, 0, 0)
                assert served.service.engine.stats.failed == 0
                sizes.append(resident())
    finally:
        lm.close()
    return sizes


def test_sixty_mixed_requests():
    soak(60, 8)


@pytest.mark.nightly
def test_a_thousand_mixed_requests_of_64_prompts_and_memory_stays():
    sizes = soak(250, 64, rounds=4)
    assert sizes[-1] - sizes[1] < 30_000_000, sizes

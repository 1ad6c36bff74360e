"""A running server on a tiny base, in a thread, with a free port of the loopback interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import uvicorn

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.address import bind, url_of
from promptlora.engine import AdapterCache, AdapterWriter, Engine
from promptlora.server.app import create_app
from promptlora.server.service import Service
from promptlora.server.settings import Settings
from tests.helpers import tiny_llama
from tests.host_helpers import tiny_prompt_lora

import torch  # isort: skip

BASE = "tiny"
SYSTEM, TEXT = "w1 w2 w3 w4", "w5 w6"


def tiny_lm() -> PromptLoRA:
    """Two layers, 97 words, 512 places."""
    return tiny_prompt_lora(tiny_llama(torch.float32, max_position_embeddings=512))


@dataclass
class Served:
    """A running server."""

    url: str
    lm: PromptLoRA
    service: Service

    def client(self, key: str = "any key", **options: object) -> openai.OpenAI:
        """OpenAI's client, which does not try again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60, **options})

    def async_client(self, key: str = "any key") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def alone(self, text: str, prompt: str | None = SYSTEM, tokens: int = 8) -> str:
        """The answer of ``generate``, alone."""
        return self.lm.generate(text, None if prompt is None else self.lm.adapt(prompt), max_new_tokens=tokens)


@contextmanager
def serving(
    lm: PromptLoRA,
    *,
    keys: Sequence[str] = (),
    folder: Path | None = None,
    max_batch: int = 4,
    max_waiting: int = 32,
    memory_bytes: int = 1 << 28,
    **settings: object,
) -> Iterator[Served]:
    """Serve until the end of ``with``."""
    cache = AdapterCache(lm, folder=folder, memory_bytes=memory_bytes)
    writer = (
        AdapterWriter(lm, cache=cache)
        if settings.get("adapters_only")
        else Engine(lm, max_batch=max_batch, max_waiting=max_waiting, cache=cache)
    )
    service = Service(lm, writer, cache, Settings(model_name=BASE, api_keys=tuple(keys), **settings), folder)
    listener = bind("127.0.0.1", 0)
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            started.set()

    server = Server(
        uvicorn.Config(create_app(service), log_config=None, log_level="critical", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(60)
        yield Served(url_of(listener), lm, service)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
    assert not thread.is_alive()


def chat(client: openai.OpenAI, text: str = TEXT, system: str | None = SYSTEM, **options):
    """One chat request, 8 tokens long."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": text})
    return client.chat.completions.create(**{"model": "promptlora", "messages": messages, "max_tokens": 8, **options})


def words(answer: str) -> str:
    """An answer without white space at its ends, as ``generate`` returns it."""
    return answer.strip()

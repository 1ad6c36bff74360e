"""``Engine``: a queue of requests, each with its own adapter, run as one mixed batch by one thread.

This is what others call; ``worker`` is what the thread does. Between two steps the model is free: other calls to the same
``PromptLoRA`` get their turn. It knows requests and adapters; nothing of steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.batch import Batch
from promptlora.engine.cache import AdapterCache
from promptlora.engine.requests import QueueFull, Sampling, Ticket
from promptlora.engine.stats import Counters, EngineStats
from promptlora.engine.text import backend_of
from promptlora.engine.worker import Request, Worker
from promptlora.engine.writer import AdapterWriter
from promptlora.errors import LoRAError, PromptError
from promptlora.lora import LoRAWeights
from promptlora.settings import whole

_KV_TOKENS = 512  # places of the key-value cache for each request of a full batch, if nothing else is asked for
_KV_LONGEST = 8192  # places that one request may have then, if the base takes as many


class Engine(AdapterWriter):
    """Runs requests of different adapters, and of the base, as one batch that requests join and leave at any token.

    Requests join in the order of submission. ``with Engine(lm) as engine: …`` closes it at the end.

    Args:
        lm: The base and its hypernetwork; other calls to it still get their turn between two steps.
        max_batch: Most requests that run at once.
        max_waiting: Most requests that wait.
        max_prefill_tokens: Most input tokens of newcomers that one step reads, so that running answers do not stall.
        cache: Where adapters are kept; by default 256 MB of memory and no disk.
        kv_tokens: Places of the key-value cache, for all requests together; by default 512 for each of ``max_batch``, and
            at least 8192 or as many as the base takes.
        share_prefixes: Whether equal beginnings of inputs are read once for each adapter, so that a conversation that goes
            on is not read again. No page is shared between adapters, or between an adapter and the base.

    Raises:
        ConfigError: A number below 1, or a key-value cache that does not fit in memory.
        ModelError: A base that transformers' continuous batching does not run (linear attention, eager attention).
    """

    def __init__(
        self,
        lm: PromptLoRA,
        *,
        max_batch: int = 16,
        max_waiting: int = 128,
        max_prefill_tokens: int = 512,
        cache: AdapterCache | None = None,
        kv_tokens: int | None = None,
        share_prefixes: bool = True,
    ) -> None:
        for name, value in (
            ("max_batch", max_batch),
            ("max_waiting", max_waiting),
            ("max_prefill_tokens", max_prefill_tokens),
            ("kv_tokens", 1 if kv_tokens is None else kv_tokens),
        ):
            whole(name, value)
        backend_of(lm.tokenizer)
        self.max_batch, self.max_waiting = max_batch, max_waiting
        positions = int(getattr(lm.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 31)
        if kv_tokens is None:  # a key-value cache is memory that is taken at once
            kv_tokens = max(_KV_TOKENS * max_batch, min(positions, _KV_LONGEST))
        batch = Batch(
            lm.host,
            max_batch=max_batch,
            max_prefill_tokens=max_prefill_tokens,
            kv_tokens=kv_tokens,
            share=share_prefixes,
        )
        self._longest = min(batch.kv_capacity, positions)
        self._vocabulary = int(lm.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        ends: Any = getattr(lm.model.generation_config, "eos_token_id", None)
        ends = [int(end) for end in (ends if isinstance(ends, list) else [] if ends is None else [ends])]
        counters = Counters(EngineStats(kv_capacity=batch.kv_capacity))
        self._worker = Worker(batch, lm.tokenizer, ends, max_batch, counters)
        self._names = count()
        super().__init__(lm, cache=cache, loop=self._worker, counters=counters)

    @property
    def longest(self) -> int:
        """Most tokens that an input and its answer may have together."""
        return self._longest

    def submit(
        self, ids: Sequence[int], adapter: LoRAWeights | None, sampling: Sampling, *, deadline: float | None = None
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            ids: What the base reads, its special tokens included.
            adapter: One adapter; None is the base.
            sampling: How tokens are chosen.
            deadline: Seconds from now after which the request ends, wherever it is.

        Raises:
            QueueFull: As many requests wait as may; it says when to try again.
            PromptError: No ids, an id that the base does not have, or more of them than the base or the key-value cache takes
                together with ``max_tokens``.
            LoRAError: More than one adapter, or one in another dtype than the base.
            EngineError: The engine is closed.
        """
        given = tuple(ids)
        odd = next((i for i in given if not 0 <= i < self._vocabulary), None)
        if not given or odd is not None:
            raise PromptError(
                f"ids: {'none' if odd is None else odd}. Expected at least one, each from 0 to {self._vocabulary - 1}."
            )
        if len(given) + sampling.max_tokens > self._longest:
            raise PromptError(
                f"input of {len(given)} tokens and max_tokens={sampling.max_tokens}. Expected at most {self._longest} together. "
                "Fix: shorten the input or max_tokens."
            )
        if adapter is not None and (adapter.adapters != 1 or adapter.dtype != self.lm.model.dtype):
            raise LoRAError(
                f"adapter: {adapter.adapters} adapters in {adapter.dtype}. Expected one in {self.lm.model.dtype}. "
                "Fix: use select and to."
            )
        expires = None if deadline is None else time.monotonic() + deadline
        request = Request(f"{next(self._names)}", given, adapter, sampling, expires)
        worker = self._worker
        with worker.lock:
            worker.refuse_if_closing()
            if worker.in_queue >= self.max_waiting:
                after = max(0.5, min(60.0, worker.request_seconds / self.max_batch))
                raise QueueFull(
                    f"queue: {worker.in_queue} requests wait. Expected fewer than {self.max_waiting}. "
                    f"Fix: try again in {after:.1f} s.",
                    after,
                )
            worker.accept(request)
        return Ticket(request.outbox, lambda: worker.cancel(request), len(given))

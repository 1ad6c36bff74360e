"""``Engine``: a queue of requests, each with its own adapter, run as one mixed batch by one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.cache import AdapterCache, AdapterEntry
from promptlora.engine.requests import Sampling, Ticket
from promptlora.lora import LoRAWeights

T = TypeVar("T")


@dataclass(frozen=True)
class EngineStats:
    """What the engine does and has done.

    Attributes:
        running: Requests in the batch.
        waiting: Requests in the queue.
        finished: Requests that have ended, whatever the reason.
        cancelled: Those of them that were cancelled or abandoned.
        expired: Those of them that ran into their deadline.
        prompt_tokens: Tokens that the base has read, without those whose keys and values were reused.
        reused_tokens: Tokens of inputs whose keys and values were reused.
        generated_tokens: Tokens that were generated.
        steps: Forward passes.
        step_seconds: Time of all forward passes.
        adapters: Adapters in memory.
        adapter_bytes: Their bytes.
        adapters_written: Adapters that the hypernetwork wrote.
        adapters_hit: Requests for an adapter that was there.
        kv_tokens: Places of the key-value cache that running requests hold.
        kv_capacity: Places that it has.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    adapters: int = 0
    adapter_bytes: int = 0
    adapters_written: int = 0
    adapters_hit: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0


class Engine:
    """Runs requests of different adapters, and of the base, as one batch that requests join and leave at any token.

    Args:
        lm: The base and its hypernetwork; other calls to it still get their turn between two steps.
        max_batch: Most requests that run at once.
        max_waiting: Most requests that wait.
        max_prefill_tokens: Most input tokens of newcomers that one step reads, so that running answers do not stall.
        cache: Where adapters are kept; by default 256 MB of memory and no disk.
        kv_tokens: Places of the key-value cache, for all requests together; by default 1024 for each of ``max_batch``.

    Raises:
        ConfigError: A number below 1.
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
    ) -> None:
        raise NotImplementedError

    @property
    def stats(self) -> EngineStats:
        """Counters of this moment."""
        raise NotImplementedError

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
            LoRAError: More than one adapter, or one that does not fit the base.
            EngineError: The engine is closed.
        """
        raise NotImplementedError

    def between_steps(self, work: Callable[[], T]) -> Future[T]:
        """Run something on the engine's thread between two steps; it should be short, since all answers wait for it.

        Inside, the model is not held: use ``lm`` as anywhere else. A future that is cancelled in time runs nothing.
        """
        raise NotImplementedError

    def adapter(
        self, prompt: str, examples: Sequence[tuple[str, str]] = (), in_context: bool = False
    ) -> Future[AdapterEntry]:
        """The adapter of a prompt: from the cache, or written by the hypernetwork between two steps, in bounded pieces.

        Many requests for one new prompt write it once. The future raises what ``PromptLoRA.adapt`` raises.
        """
        raise NotImplementedError

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and end the engine's thread; harmless when called twice.

        Args:
            drain: Finish the requests that run or wait first; False cancels them.
            timeout: Seconds after which those that still run are cancelled.
        """
        raise NotImplementedError

"""``Batch``: the requests that run, as transformers' continuous batching runs them, each with its adapter.

transformers schedules, packs the batch into one row of tokens, and keeps keys and values in pages. Added here are what it
has not: adapters, which the hooks read from slots; pages that are shared within one adapter only; and settings of sampling
for each request. One thread may use it. It knows ids and adapters; nothing of text, queues or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from cachetools import LRUCache
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.initialization import resolve_continuous_batching_config
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from promptlora.engine.attention import by_request
from promptlora.engine.requests import EngineError, Sampling
from promptlora.engine.roster import Roster, Seat
from promptlora.engine.sampling import Chooser, Chosen, choose
from promptlora.errors import ConfigError, ModelError, one_line
from promptlora.host import Host
from promptlora.lora import LoRAWeights

_PAGE = 16  # tokens; whole pages are shared, so small ones share more of a conversation
_PAIRS = 1 << 14  # pairs of adapter and first token whose pages can be found


@dataclass
class _Running:
    """What the batch keeps of a request."""

    chooser: Chooser
    seat: Seat | None


@dataclass(frozen=True)
class Token:
    """One more token of a request.

    Attributes:
        request_id: The request.
        chosen: The token.
        ended: ``stop`` where the token ends the answer, ``length`` where no more may follow, else None. The request has
            left the batch then.
    """

    request_id: str
    chosen: Chosen
    ended: str | None


class _Cache(PagedAttentionCache):
    """Pages of keys and values that are shared within one adapter only.

    transformers finds a page by a hash over the tokens up to its end. The same tokens have other keys and values under
    another adapter, so here the first token of a sequence stands for the pair of token and adapter.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.adapters: dict[str, int] = {}  # of each request; 0 is the base
        self.reused = 0
        self._pairs = count(-1, -1)
        # Numbers are never used twice, so a pair that was dropped only loses its pages.
        self._first: LRUCache[tuple[int, int], int] = LRUCache(_PAIRS)

    def _keyed(self, request_id: str, ids: list[int]) -> list[int]:
        adapter = self.adapters.get(request_id, 0)
        if not adapter or not ids:
            return ids
        pair = adapter, ids[0]
        if pair not in self._first:
            self._first[pair] = next(self._pairs)
        return [self._first[pair], *ids[1:]]

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        found: int = super().search_prefix_match(request_id, self._keyed(request_id, prompt_ids))
        self.reused += found
        return found

    def mark_complete_blocks(self, state: RequestState, complete_blocks: dict[str, int]) -> None:
        if not self.allow_block_sharing or not complete_blocks or state.status == RequestStatus.FINISHED:
            return
        ids = self._keyed(state.request_id, state.initial_tokens + state.generated_tokens)
        for name, number in complete_blocks.items():
            self.cache_allocators[name].mark_complete_blocks(state.request_id, ids, number)


class _Scheduler(FIFOScheduler):
    """First come, first served; running answers first, and then at most so many tokens of inputs."""

    prefill_tokens = 0

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        decoding = sum(state.status == RequestStatus.DECODING for state in self.active_requests.values())
        return super().schedule_batch(min(token_budget, decoding + self.prefill_tokens), cache_budget)


class _Runner(ModelRunner):
    """Runs the model, and leaves the choice of tokens to :func:`choose`."""

    running: dict[str, _Running]
    chosen: list[Chosen]

    def _sample(self, scores: Tensor, output_ids: Tensor) -> None:
        with_token = [one.state.request_id for one in _packed(self) if one.has_new_token]
        choosers = [self.running[request_id].chooser for request_id in with_token]
        self.chosen = choose(scores[0, : len(choosers)], choosers)
        tokens = [chosen.token_id for chosen in self.chosen]
        output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=output_ids.dtype, device=output_ids.device)


def _packed(of: ContinuousBatchProcessor | ModelRunner) -> list[FutureRequestState]:
    """The requests of this step, in the order in which their tokens lie."""
    inputs: Any = of.inputs_and_outputs  # never the asynchronous ones, which have two
    return list(inputs.requests_in_batch)


class _Router(OutputRouter):
    """Drops what transformers would deliver: tokens are taken from the step itself."""

    def deliver(self, output: Any) -> None: ...

    def deliver_batch(self, outputs: Any) -> None: ...


class Batch:
    """The running requests of one model.

    Args:
        host: The model.
        max_batch: Most requests.
        max_prefill_tokens: Most tokens of inputs that one step reads.
        kv_tokens: Places of the key-value cache.
        share: Whether requests of one adapter share the pages of equal beginnings.

    Raises:
        ModelError: A base that transformers' continuous batching does not run.
        ConfigError: A key-value cache that does not fit in memory.
    """

    def __init__(
        self, host: Host, *, max_batch: int, max_prefill_tokens: int, kv_tokens: int, share: bool = True
    ) -> None:
        self._host, self._model = host, host.model
        self._roster = Roster(host.injector, max_batch)
        self._running: dict[str, _Running] = {}
        self._numbers: WeakKeyDictionary[LoRAWeights, int] = WeakKeyDictionary()
        self._adapters = 0
        attention = host.model.config._attn_implementation
        if attention == "eager":
            raise ModelError(
                "attn_implementation='eager': transformers' continuous batching would change it in the model. Expected 'sdpa' or "
                "a flash attention. Fix: load the base with attn_implementation='sdpa'."
            )
        config = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=-(-kv_tokens // _PAGE),
            max_batch_tokens=max_prefill_tokens + max_batch,
            max_requests_per_batch=max_batch,
            max_blocks_per_request=0,
            allow_block_sharing=share,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        try:
            # transformers seeds torch's generator; with attention by request it needs no mask of the whole row
            with host.turn.held(), torch.random.fork_rng(), self._attention():
                self._processor = self._make(config, max_prefill_tokens)
        except MemoryError as error:
            raise ConfigError(
                f"kv_tokens={kv_tokens}: {one_line(error)}. Expected fewer. Fix: a smaller max_batch or kv_tokens."
            ) from error
        except ValueError as error:
            raise ModelError(
                f"{type(host.model).__name__}: transformers' continuous batching does not run it ({one_line(error)}). Expected full "
                "or sliding-window attention in every layer. Fix: use PromptLoRA.generate."
            ) from error

    def _attention(self) -> AbstractContextManager[None]:
        """What attention is computed by; with the turn of the model held where it is run."""
        return by_request(self._model.config.get_text_config()) if self._model.device.type == "cpu" else nullcontext()

    def _make(self, config: ContinuousBatchingConfig, max_prefill_tokens: int) -> ContinuousBatchProcessor:
        model: Any = self._model
        text = model.config.get_text_config()
        processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList())
        resolved = resolve_continuous_batching_config(text, config, None, False, model.device)
        helper = DistributedHelper(device_mesh=None, cpu_group_timeout=None)
        self._cache = _Cache(text, resolved, model.device, helper, model.dtype, model._supports_logits_to_keep())
        scheduler = _Scheduler(self._cache, None, resolved.max_requests_per_batch or 1)
        scheduler.prefill_tokens = max_prefill_tokens
        made = ContinuousBatchProcessor(
            cache=self._cache,
            config=text,
            generation_config=GenerationConfig(do_sample=False),
            continuous_batching_config=resolved,
            logit_processor=processors,
            input_queue=None,
            cancel_queue=None,
            output_router=_Router(),
            background_thread_status=BackgroundThreadStatus(),
            model_device=model.device,
            model_dtype=model.dtype,
            scheduler=scheduler,
            distributed_helper=helper,
        )
        self._runner = made.model_runner = _Runner(
            logit_processor=processors,
            cb_config=resolved,
            cache=self._cache,
            inputs_and_outputs=made.inputs_and_outputs,
            do_sample=False,
            return_logprobs=False,
        )
        self._runner.running, self._runner.chosen = self._running, []
        return made

    # --- what it holds -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """The number of running requests."""
        return len(self._running)

    @property
    def kv_capacity(self) -> int:
        """Places of the key-value cache."""
        return int(self._cache.num_blocks) * _PAGE

    @property
    def kv_tokens(self) -> int:
        """Places that running requests hold; pages that are only kept for sharing do not count."""
        held = set[tuple[int, int]]()
        for allocator in self._cache.cache_allocators.values():
            held.update((allocator.index, block) for table in allocator.block_table.values() for block in table)
        return len(held) * _PAGE

    @property
    def slot_bytes(self) -> int:
        """Bytes of the slots that adapters are copied into."""
        return self._roster.nbytes

    @property
    def reused_tokens(self) -> int:
        """Tokens of inputs whose keys and values were there."""
        return self._cache.reused

    # --- requests ------------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        ids: Sequence[int],
        adapter: LoRAWeights | None,
        sampling: Sampling,
        ends: Sequence[int],
    ) -> None:
        """Let a request join at the next step.

        Args:
            request_id: Its name, never used before.
            ids: What the base reads.
            adapter: One adapter; None is the base.
            sampling: How tokens are chosen.
            ends: Tokens that end the answer.

        Raises:
            LoRAError: An adapter that does not fit the model.
        """
        seat = None if adapter is None else self._roster.sit(adapter)
        self._running[request_id] = _Running(Chooser(sampling, self._model.device), seat)
        if adapter is not None:
            self._cache.adapters[request_id] = self._number(adapter)
        state = RequestState(
            request_id=request_id,
            initial_tokens=list(ids),
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(ends),
        )
        self._processor.scheduler.add_waiting_request(state)

    def _number(self, adapter: LoRAWeights) -> int:
        """A number that no other adapter has had."""
        if adapter not in self._numbers:
            self._adapters += 1
            self._numbers[adapter] = self._adapters
        return self._numbers[adapter]

    def remove(self, request_id: str) -> None:
        """Let a request leave, and free what it holds; harmless where it has left."""
        if request_id in self._running:
            self._processor.scheduler.set_request_cancellation(request_id)
            self._processor.scheduler.clear_cancelled_requests()
            self._processor.scheduler.block_new_requests = False  # transformers waits for a request that ends by itself
            self._left(request_id)

    def _left(self, request_id: str) -> None:
        running = self._running.pop(request_id)
        self._cache.adapters.pop(request_id, None)
        if running.seat is not None:
            self._roster.leave(running.seat)

    def clear(self) -> None:
        """Let all requests leave."""
        for request_id in list(self._running):
            self.remove(request_id)

    def close(self) -> None:
        """Let all requests leave, and free the key-value cache."""
        self.clear()
        self._roster = Roster(self._host.injector, 1)
        del self._processor, self._runner, self._cache

    def step(self) -> list[Token]:
        """Run the model once, in its turn; the next token of each request whose input is read.

        Raises:
            ModelError: The host is closed.
            EngineError: No request, or none that can be scheduled.
        """
        processor = self._processor
        if not processor.prepare_next_batch():
            raise EngineError(f"engine: none of {len(self)} requests could be scheduled. Expected at least one.")
        packed = _packed(processor)
        self._runner.chosen = []
        rows = [(one.query_length, self._running[one.state.request_id].seat) for one in packed]
        with self._host.evaluating(self._roster.prepare(rows, self._model.device)), self._attention():
            processor._generation_step(self._model)
        processor.update_batch()
        tokens = []
        for one, chosen in zip((one for one in packed if one.has_new_token), self._runner.chosen, strict=True):
            ended = None
            if one.state.status == RequestStatus.FINISHED:
                ended = "stop" if chosen.token_id in one.state._eos_token_ids else "length"
                self._left(one.state.request_id)
            tokens.append(Token(one.state.request_id, chosen, ended))
        return tokens

"""``Worker``: the loop of an engine's thread, which alone touches the batch.

Others put what they want done into its inbox. Between two steps it reads the inbox, lets requests go that were cancelled or
are past their deadline, lets waiting ones join, and does one piece of other work. It knows requests, text and time; what
runs a step is ``batch``.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from promptlora.engine.batch import Batch, Token
from promptlora.engine.requests import EngineError, FinishReason, Outbox, Piece, Sampling, TokenLogprob
from promptlora.engine.stats import Counters
from promptlora.engine.tasks import TaskLoop
from promptlora.engine.text import TextStream
from promptlora.errors import LoRAError, one_line
from promptlora.lora import LoRAWeights

_SMOOTHING = 0.1  # weight of the newest request in the mean time that a request takes
_log = logging.getLogger(__name__)


class Request:
    """One request between its submission and its last piece."""

    def __init__(
        self, name: str, ids: tuple[int, ...], adapter: LoRAWeights | None, sampling: Sampling, expires: float | None
    ) -> None:
        self.name, self.ids, self.adapter, self.sampling, self.expires = name, ids, adapter, sampling, expires
        self.outbox = Outbox()
        self.text: TextStream | None = None
        self.cancelled = False
        self.began = 0.0

    def over(self, now: float) -> FinishReason | None:
        """Why the request ends without another token; None if it goes on."""
        if self.cancelled:
            return "cancelled"
        return "deadline" if self.expires is not None and now >= self.expires else None


class Worker(TaskLoop):
    """What an engine's thread does.

    Args:
        batch: The running requests; nobody else may touch it.
        tokenizer: For the text of the answers.
        ends: Tokens that end an answer.
        max_batch: Most requests that run at once.
        counters: What is counted.

    Attributes:
        in_queue: Requests that were submitted and have neither joined the batch nor ended.
        request_seconds: Mean time that a request runs, newer ones counting more.
    """

    def __init__(
        self, batch: Batch, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], max_batch: int, counters: Counters
    ) -> None:
        super().__init__()
        self._batch, self._tokenizer, self._ends = batch, tokenizer, ends
        self._max_batch, self._counters = max_batch, counters
        self.request_seconds = 1.0
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}

    # --- what other threads call ---------------------------------------------------------------------------

    def accept(self, request: Request) -> None:
        """Put a request into the queue; with the lock held."""
        self.in_queue += 1
        self._inbox.put(lambda: self._waiting.append(request))

    def cancel(self, request: Request) -> None:
        """Let a request go at the next step; a finalizer may call this."""
        if not request.outbox.ended:
            request.cancelled = True
            self._inbox.put(_look)

    # --- the thread ----------------------------------------------------------------------------------------

    def _busy(self) -> bool:
        return bool(self._running or self._waiting)

    def _before_a_task(self) -> None:
        self._sweep()
        self._admit()
        if self._running:
            self._step()

    def _end_requests(self, error: BaseException) -> None:
        closed = self._ending is not None
        for request in [*self._running.values(), *self._waiting]:
            request.outbox.put(self._last(request, "cancelled") if closed else error)
        self._running.clear()
        self._waiting.clear()
        self._batch.close()
        with self.lock:
            self.in_queue = 0
        self._counters.set(running=0, kv_tokens=0)

    def _sweep(self) -> None:
        """Let requests go that were cancelled, abandoned, or are past their deadline."""
        now = time.monotonic()  # each is asked once: another thread may cancel it meanwhile
        for request, reason in [(one, one.over(now)) for one in self._running.values()]:
            if reason is not None:
                self._batch.remove(request.name)
                del self._running[request.name]
                self._finish(request, reason)
        asked = [(one, one.over(now)) for one in self._waiting]
        over = [(one, reason) for one, reason in asked if reason is not None]
        if over:
            self._waiting = deque(one for one, reason in asked if reason is None)
            self._dequeued(len(over))
            for request, reason in over:
                self._finish(request, reason)

    def _dequeued(self, number: int) -> None:
        with self.lock:
            self.in_queue -= number

    def _admit(self) -> None:
        """Let the requests that have waited longest join the batch."""
        while self._waiting and len(self._running) < self._max_batch:
            request = self._waiting.popleft()
            self._dequeued(1)
            request.began = time.monotonic()
            request.text = TextStream(self._tokenizer, request.sampling.stop)
            try:
                self._batch.add(request.name, request.ids, request.adapter, request.sampling, self._ends)
            except Exception as error:  # an adapter that does not fit the model is this request's fault alone
                self._finish(request, error)
                continue
            self._running[request.name] = request
            self._counters.add(prompt_tokens=len(request.ids))

    def _step(self) -> None:
        began = time.perf_counter()
        try:
            tokens = self._batch.step()
        except Exception as error:  # out of memory, a host that was closed: these requests fail, the engine goes on
            _log.exception("engine: a step failed")
            failed = list(self._running.values())
            self._running.clear()
            self._batch.clear()
            for request in failed:
                ended = EngineError(f"engine: a step failed ({one_line(error)})")
                ended.__cause__ = error
                self._finish(request, ended)
            return
        for token in tokens:
            request = self._running[token.request_id]
            try:
                self._deliver(request, token)
            except Exception as error:  # not finite, or a token that cannot be decoded: this request's fault alone
                self._batch.remove(request.name)
                self._running.pop(request.name, None)
                self._finish(request, error)
        self._counters.add(steps=1, step_seconds=time.perf_counter() - began, generated_tokens=len(tokens))
        self._counters.set(
            running=len(self._running),
            reused_tokens=self._batch.reused_tokens,
            slot_bytes=self._batch.slot_bytes,
            kv_tokens=self._batch.kv_tokens,
        )

    def _deliver(self, request: Request, token: Token) -> None:
        """Give out one token; a stop text ends the request here and now.

        Raises:
            LoRAError: Scores that are not finite.
        """
        if token.chosen.failed:
            raise LoRAError(
                "the scores of the next token are not finite. Expected finite numbers. Fix: another adapter, or a smaller strength."
            )
        text = request.text
        assert text is not None
        ready = "" if token.ended == "stop" else text.add(token.chosen.token_id)
        reason: FinishReason | None = None
        if text.stopped:
            reason = "stop"
            if token.ended is None:
                self._batch.remove(request.name)
        elif token.ended is not None:
            ready += text.finish()
            reason = "stop" if token.ended == "stop" or text.stopped else "length"
        logprobs = None if request.sampling.logprobs is None else (self._logprob(token),)
        piece = Piece(ready, (token.chosen.token_id,), logprobs, reason)
        if reason is None:
            request.outbox.put(piece)
        else:
            del self._running[request.name]
            self._finish(request, piece)

    def _logprob(self, token: Token) -> TokenLogprob:
        chosen = token.chosen
        decode = self._tokenizer.decode
        top = tuple((i, str(decode([i])), value) for i, value in chosen.top)
        return TokenLogprob(chosen.token_id, str(decode([chosen.token_id])), float(chosen.logprob or 0.0), top)

    def _last(self, request: Request, reason: FinishReason) -> Piece:
        text = "" if request.text is None else request.text.finish()
        return Piece(text, (), None if request.sampling.logprobs is None else (), reason)

    def _finish(self, request: Request, how: Piece | FinishReason | Exception) -> None:
        """Give out the last piece, and count."""
        piece = self._last(request, how) if isinstance(how, str) else how
        reason = piece.finish_reason if isinstance(piece, Piece) else "failed"
        kinds = {"cancelled": {"cancelled": 1}, "deadline": {"expired": 1}, "failed": {"failed": 1}}
        self._counters.add(finished=1, **kinds.get(reason or "", {}))
        if request.began and reason in ("stop", "length"):
            spent = time.monotonic() - request.began
            with self.lock:
                self.request_seconds += _SMOOTHING * (spent - self.request_seconds)
        self._counters.set(running=len(self._running), kv_tokens=self._batch.kv_tokens)
        request.outbox.put(piece)


def _look() -> None:
    """Wake the thread, which then looks at all requests."""

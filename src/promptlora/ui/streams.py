"""Answers of many rows at once, piece by piece: base and adapted rows decode in one batch.

It knows ``PromptLoRA`` and token ids; nothing of prompts or pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.lora import LoRAWeights
from promptlora.text import pad_left

_PATIENCE = 30.0  # seconds after which a reader that asks for nothing is taken to be gone


@dataclass(frozen=True)
class Row:
    """One answer as far as it is, and whether the model has ended it."""

    text: str
    ended: bool


class _Rows(BaseStreamer):
    """Puts the new token of each row into a queue; None ends it."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[list[int] | None] = SimpleQueue()
        self._prompt_passed = False

    def put(self, value: Any) -> None:
        if self._prompt_passed:
            self.queue.put(value.flatten().tolist())
        self._prompt_passed = True

    def end(self) -> None:
        self.queue.put(None)


class _Reader(StoppingCriteria):
    """Ends a generation whose reader has gone, or has stopped reading (a closed tab is told late, or never)."""

    def __init__(self) -> None:
        self.gone = Event()
        self.seen = time.monotonic()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        over = self.gone.is_set() or time.monotonic() - self.seen > _PATIENCE
        return torch.full((input_ids.shape[0],), over, device=input_ids.device)


def _end_ids(lm: PromptLoRA) -> set[int]:
    found: Any = getattr(lm.model.generation_config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return {int(i) for i in ids}


def stream_rows(
    lm: PromptLoRA,
    rows: Sequence[Sequence[int]],
    lora: LoRAWeights,
    adapter_index: Sequence[int],
    *,
    max_new_tokens: int,
    lock: AbstractContextManager[Any],
    beat: float = 1.0,
) -> Iterator[list[Row]]:
    """Greedy answers of all rows as far as they are, after each step or some steps of the model.

    The generation runs in a thread that holds ``lock``, not this iterator: an iterator that is dropped half-way
    cannot keep the lock.

    Args:
        lm: Base, tokenizer and injector.
        rows: Token ids of each row, unpadded.
        lora: The adapters.
        adapter_index: Row i uses adapter ``adapter_index[i]``.
        max_new_tokens: Longest answer.
        lock: Held while the model is used.
        beat: Seconds after which the answers are given again although nothing is new.

    Yields:
        All rows; the last ones are whole.
    """
    pad = int(getattr(lm.tokenizer, "pad_token_id", 0) or 0)
    streamer, reader, failed = _Rows(), _Reader(), list[BaseException]()

    @torch.no_grad()
    def work() -> None:
        try:
            with lock:
                ids, mask = (tensor.to(lm.model.device) for tensor in pad_left(rows, pad))
                if reader.gone.is_set():  # while it waited for the lock
                    return
                with lm.injector.apply(lora, adapter_index):
                    generate: Any = lm.model.generate
                    generate(
                        input_ids=ids,
                        attention_mask=mask,
                        max_new_tokens=max_new_tokens,
                        pad_token_id=pad,
                        do_sample=False,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([reader]),
                    )
        except BaseException as error:
            failed.append(error)
        finally:
            streamer.queue.put(None)

    ends = _end_ids(lm)
    told: list[list[int]] = [[] for _ in rows]
    over = [False] * len(rows)

    def answers(half: str) -> list[Row]:
        texts = lm.tokenizer.batch_decode(told, skip_special_tokens=True)
        return [Row(str(text).strip().rstrip(half), ended) for text, ended in zip(texts, over, strict=True)]

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        going = True
        while going:
            reader.seen = time.monotonic()
            try:
                steps = [streamer.queue.get(timeout=beat)]
                while not streamer.queue.empty():
                    steps.append(streamer.queue.get())
            except Empty:
                steps = []
            for step in steps:
                if step is None:
                    going = False
                    break
                for i, token in enumerate(step):
                    over[i] = over[i] or token in ends
                    if not over[i]:
                        told[i].append(token)
            yield answers("\ufffd" if going else "")  # half a character waits for its other half
    finally:
        reader.gone.set()  # no join: who drops the iterator may be the server's event loop
    thread.join()
    if failed:
        raise failed[0]

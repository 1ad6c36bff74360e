"""Work that the engine does between two steps: a bounded piece at a time, so that running answers wait for one piece alone.

It knows how an adapter is written in pieces; nothing of requests or batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.cache import AdapterCache
from promptlora.engine.storage import AdapterEntry
from promptlora.errors import OutputError
from promptlora.text import with_examples

T = TypeVar("T")
Pieces = Generator[None, None, T]  # yields between two pieces, and returns the result

PIECE = 64  # tokens of a prompt that the base reads at once
_log = logging.getLogger(__name__)


class Task(Generic[T]):
    """Something that is done in pieces, and the future of its result.

    Args:
        pieces: The work.
    """

    def __init__(self, pieces: Pieces[T]) -> None:
        self.future: Future[T] = Future()
        self._pieces = pieces
        self._begun = False

    def advance(self) -> bool:
        """Do one piece; whether that was the last one. What the work raises is the future's."""
        if not self._begun:
            if not self.future.set_running_or_notify_cancel():
                return True
            self._begun = True
        try:
            next(self._pieces)
        except StopIteration as done:
            self.future.set_result(done.value)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            return False
        return True

    def abandon(self, error: BaseException) -> None:
        """End the work without a result."""
        self._pieces.close()
        if not self.future.done() and (self._begun or self.future.set_running_or_notify_cancel()):
            self.future.set_exception(error)


def single(work: Callable[[], T]) -> Pieces[T]:
    """A piece of work that is done at once."""
    return work()
    yield  # makes this a generator


def write_adapter(
    lm: PromptLoRA,
    cache: AdapterCache,
    key: str,
    prompt: str,
    examples: Sequence[tuple[str, str]],
    in_context: bool,
    count: Callable[[str], Any],
) -> Pieces[AdapterEntry]:
    """The adapter of a key: from disk, or written and kept.

    Args:
        lm: What writes it.
        cache: Where it is kept.
        key: Its key there.
        prompt: As for ``PromptLoRA.adapt``.
        examples: As for ``PromptLoRA.adapt``.
        in_context: As for ``PromptLoRA.adapt``.
        count: Told ``hit``, ``written`` or ``not kept``.
    """
    found = cache.get(key)
    if found is not None:
        count("hit")
        return found
    spent, began = 0.0, time.perf_counter()
    text = with_examples(prompt, examples)
    for _ in lm.states.in_pieces(text, PIECE):
        spent += time.perf_counter() - began
        yield
        began = time.perf_counter()
    lora = lm.adapt(prompt, examples=list(examples) or None, in_context=in_context)
    tokens = len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    entry = AdapterEntry(
        key=key,
        lora=lora,
        nbytes=lora.nbytes,
        prompt_tokens=tokens,
        in_context=bool(in_context),
        refined=False,
        created=time.time(),
        seconds=spent + time.perf_counter() - began,
    )
    count("written")
    try:
        cache.put(entry)
    except OutputError as error:  # a full disk stops no answer: the adapter is in memory
        count("not kept")
        _log.warning("adapter %s is not kept on disk: %s", key[:16], error)
    return entry

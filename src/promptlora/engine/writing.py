"""An adapter is written between two steps of the engine, a bounded piece at a time, so that running answers wait for one piece alone.

It knows how an adapter is written in pieces; nothing of requests or batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.cache import AdapterCache
from promptlora.engine.storage import AdapterEntry
from promptlora.engine.tasks import Pieces
from promptlora.errors import NoRoomError, OutputError
from promptlora.text import with_examples

PIECE = 64  # tokens of a prompt that the base reads at once
_log = logging.getLogger(__name__)


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
    except (OutputError, NoRoomError) as error:  # a full disk, or a full memory, stops no answer
        count("not kept")
        _log.warning("adapter %s is not kept: %s", key[:16], error)
    return entry

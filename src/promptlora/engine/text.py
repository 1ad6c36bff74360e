"""Tokens to text as they come, with stop texts: half a character, and what may become a stop text, wait for what follows.

It knows a tokenizer; nothing of requests or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from promptlora.errors import ModelError


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: A tokenizer with a ``tokenizers`` backend.
        stop: Texts that end the answer; none of them is given out.

    Attributes:
        stopped: Whether a stop text has come. Nothing is given out after it.

    Raises:
        ModelError: A tokenizer without such a backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer: Any = tokenizer
        self._backend = backend_of(tokenizer)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0  # characters that the stream has given
        self._held = ""  # decoded, not given out
        self._stop, self.stopped = tuple(stop), False

    def add(self, token_id: int) -> str:
        """The text that is ready after one more token."""
        self._ids.append(token_id)
        piece = self._stream.step(self._backend, token_id) or ""
        self._decoded += len(piece)
        return self._take(piece)

    def finish(self) -> str:
        """What is left at the end, half a character as the replacement character."""
        text = str(self._backend.decode(self._ids, skip_special_tokens=True))
        ready = self._take(text[self._decoded :])
        if self.stopped:
            return ready
        ready, self._held = ready + self._held, ""
        return ready

    def _take(self, piece: str) -> str:
        """The part of the held text and a new piece that no stop text can begin in."""
        if self.stopped:
            return ""
        text = self._held + piece
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        wait = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - wait :]
        return text[: len(text) - wait]


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer of the ``tokenizers`` library inside of a transformers one.

    Raises:
        ModelError: There is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"tokenizer: {type(tokenizer).__name__}. Expected one with a `tokenizers` backend, which decodes token by token."
        )
    return backend


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that is a beginning of the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

"""Pieces of the engine to the choices and chunks of OpenAI's API.

It knows tickets and the two forms of answers; nothing of adapters or HTTP.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from promptlora.engine import Piece, Ticket, TokenLogprob
from promptlora.server import schema
from promptlora.server.errors import ApiError, told


@dataclass
class Answer:
    """One answer as far as it is.

    Attributes:
        text: Its text.
        tokens: How many tokens were generated.
        logprobs: Of the tokens that have text.
        reason: Why it ended; None while it runs.
    """

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Literal["stop", "length"] | None = None

    def add(self, piece: Piece, special: frozenset[int]) -> list[TokenLogprob]:
        """Add a piece; returns its log-probabilities, without that of the token that ends an answer."""
        self.text += piece.text
        self.tokens += len(piece.token_ids)
        new = [each for each in piece.logprobs or () if each.token_id not in special]
        self.logprobs += new
        return new


@dataclass
class Answers:
    """The answers of one request, and what their clients are told about them.

    Attributes:
        tickets: One for each answer.
        model: The model's name in the request.
        fingerprint: Of the server.
        special: Ids that are no text.
        chat: Whether it is a chat.
        with_logprobs: Whether log-probabilities were asked for.
        adapter: The id of the adapter.
        saved: Tokens that the prompt would have cost in each distinct context.
        prompt_tokens: Tokens that the base read.
        first_token: Called when the first token is there, with the seconds since the start.
    """

    tickets: Sequence[Ticket]
    model: str
    fingerprint: str
    special: frozenset[int]
    chat: bool
    with_logprobs: bool
    adapter: str | None
    saved: int | None
    prompt_tokens: int
    first_token: Callable[[float], None]

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.began = time.perf_counter()
        self.answers = [Answer() for _ in self.tickets]
        self.late = False  # an answer was cut by its deadline

    def cancel(self) -> None:
        """Free the rows of all answers; harmless for those that have ended."""
        for ticket in self.tickets:
            ticket.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all answers as they come, each with the number of its answer.

        Raises:
            ApiError: A deadline before the first token, or a server that stops.
        """
        queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

        async def read(number: int, ticket: Ticket) -> None:
            try:
                async for piece in ticket:
                    queue.put_nowait((number, piece))
                queue.put_nowait((number, None))
            except Exception as error:
                queue.put_nowait((number, error))

        tasks = [asyncio.create_task(read(number, ticket)) for number, ticket in enumerate(self.tickets)]
        try:
            left = len(tasks)
            while left:
                number, piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                if piece is None:
                    left -= 1
                    continue
                yield number, self._told(number, piece)
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _told(self, number: int, piece: Piece) -> Piece:
        """The piece, after its answer's reason to end is noted."""
        answer = self.answers[number]
        if piece.token_ids and not any(each.tokens for each in self.answers):
            self.first_token(time.perf_counter() - self.began)
        if piece.finish_reason == "cancelled":
            raise ApiError(503, "The server stops. Fix: try again.", code="shutting_down", headers={"Retry-After": "5"})
        if piece.finish_reason == "deadline":
            if not answer.tokens and not piece.token_ids:
                raise ApiError(504, "The deadline passed before the first token.", code="deadline_exceeded")
            self.late, answer.reason = True, "length"
        elif piece.finish_reason is not None:
            answer.reason = piece.finish_reason
        return piece

    # --- at once ---------------------------------------------------------------------------------------

    async def whole(self) -> schema.ChatCompletion | schema.TextCompletion:
        """All answers, when all have ended."""
        async for number, piece in self.pieces():
            self.answers[number].add(piece, self.special)
        common: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.model}
        common |= {"usage": self.usage(), "system_fingerprint": self.fingerprint}
        if not self.chat:
            choices = [
                schema.TextChoice(
                    index=i,
                    text=answer.text,
                    logprobs=text_logprobs(answer.logprobs, 0) if self.with_logprobs else None,
                    finish_reason=answer.reason or "stop",
                )
                for i, answer in enumerate(self.answers)
            ]
            return schema.TextCompletion(choices=choices, **common)
        return schema.ChatCompletion(
            choices=[
                schema.ChatChoice(
                    index=i,
                    message=schema.AnswerMessage(content=answer.text),
                    logprobs=chat_logprobs(answer.logprobs) if self.with_logprobs else None,
                    finish_reason=answer.reason or "stop",
                )
                for i, answer in enumerate(self.answers)
            ],
            **common,
        )

    def usage(self) -> schema.Usage:
        """Tokens read and written so far."""
        written = sum(answer.tokens for answer in self.answers)
        return schema.Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=written,
            total_tokens=self.prompt_tokens + written,
            promptlora=schema.AdapterUse(
                adapter=self.adapter, prompt_tokens_saved=self.saved, stopped="deadline" if self.late else None
            ),
        )

    # --- piece by piece --------------------------------------------------------------------------------

    async def events(self, with_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events: roles, deltas, the reasons to end, the usage if asked for, ``[DONE]``.

        Args:
            with_usage: End with a chunk that holds the usage, and has no choices.
        """
        try:
            if self.chat:
                for number in range(len(self.answers)):
                    yield self._event([self._choice(number, {"role": "assistant", "content": ""})], with_usage)
            async for number, piece in self.pieces():
                answer = self.answers[number]
                before = len(answer.text)
                logprobs = self._logprobs(answer.add(piece, self.special), before)
                if piece.text or (logprobs and piece.token_ids):
                    yield self._event([self._choice(number, piece.text, logprobs)], with_usage)
                if answer.reason is not None:
                    yield self._event(
                        [self._choice(number, "" if not self.chat else {}, None, answer.reason)], with_usage
                    )
            if with_usage:
                yield self._event([], with_usage, self.usage().model_dump())
        except Exception as error:
            yield f"data: {json.dumps(told(error).body())}\n\n"
        finally:
            self.cancel()
        yield "data: [DONE]\n\n"

    def _logprobs(self, new: Sequence[TokenLogprob], before: int) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return (chat_logprobs(new) if self.chat else text_logprobs(new, before)).model_dump()

    def _choice(
        self, number: int, delta: str | dict[str, str], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        if self.chat:
            content = {"content": delta} if isinstance(delta, str) else delta
            return {"index": number, "delta": content, "logprobs": logprobs, "finish_reason": reason}
        return {"index": number, "text": delta, "logprobs": logprobs, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], with_usage: bool, usage: Any = None) -> str:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if with_usage:
            chunk["usage"] = usage
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _bytes(text: str) -> list[int] | None:
    """UTF-8 of a token's text; None for a part of a character, whose text is not its own."""
    return None if "\ufffd" in text else list(text.encode())


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> schema.ChatLogprobs:
    """Log-probabilities in the form of chats."""
    return schema.ChatLogprobs(
        content=[
            schema.TokenLogprob(
                token=each.text,
                logprob=each.logprob,
                bytes=_bytes(each.text),
                top_logprobs=[
                    schema.TopLogprob(token=text, logprob=value, bytes=_bytes(text)) for _, text, value in each.top
                ],
            )
            for each in tokens
        ]
    )


def text_logprobs(tokens: Sequence[TokenLogprob], start: int) -> schema.TextLogprobs:
    """Log-probabilities in the form of text completions; the offsets count from ``start``."""
    offsets = [start]
    for each in tokens:
        offsets.append(offsets[-1] + len(each.text))
    return schema.TextLogprobs(
        tokens=[each.text for each in tokens],
        token_logprobs=[each.logprob for each in tokens],
        top_logprobs=[{text: value for _, text, value in each.top} for each in tokens],
        text_offset=offsets[:-1],
    )

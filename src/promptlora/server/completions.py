"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from promptlora.server import conversation, inputs, schema
from promptlora.server.answering import Answers
from promptlora.server.errors import ApiError
from promptlora.server.service import WRITER, Chosen, Service

T = TypeVar("T")
_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, or `[DONE]`."}},
    "required": ["data"],
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream: true` a stream of chunks.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}


class EventStream(StreamingResponse):
    """A stream of answers whose rows are free as soon as its client has gone.

    Args:
        answers: The answers.
        with_usage: End with the usage.
    """

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, with_usage: bool) -> None:
        super().__init__(answers.events(with_usage), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answers.cancel()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled once the client has gone.

    Raises:
        ClientDisconnect: The client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def routes(service: Service) -> APIRouter:
    """The endpoints that generate text.

    Args:
        service: The server.
    """
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/chat/completions", response_model=schema.ChatCompletion, responses=_STREAM)
    async def create_chat_completion(request: Request, body: schema.ChatRequest) -> Any:
        """Answer a conversation.

        With the model `promptlora` the system (or developer) message becomes an adapter and the base does not read it; a
        conversation without one is answered by the base. With other models the base reads all messages.
        """
        spoken = conversation.read(body.messages)
        implicit = body.model == WRITER and (body.promptlora is None or body.promptlora.prompt is None)
        until = _until(service, body)

        async def prepare() -> Answers:
            system = spoken.system if implicit else None
            chosen = await service.choose(request.state.owner, body.model, body.promptlora, system)
            read = spoken.without_system() if implicit else spoken
            return _submit(service, body, chosen, [await service.aside(inputs.read_chat, service, read, chosen)], until)

        return await _answer(request, body, prepare(), until)

    @router.post("/completions", response_model=schema.TextCompletion, responses=_STREAM)
    async def create_completion(request: Request, body: schema.CompletionRequest) -> Any:
        """Continue texts, without a chat template; `promptlora.prompt` is the prompt of the adapter."""
        until = _until(service, body)

        async def prepare() -> Answers:
            chosen = await service.choose(request.state.owner, body.model, body.promptlora, None)
            given = body.inputs
            if len(given) * (body.n or 1) > service.settings.most_answers:
                raise ApiError(
                    400,
                    f"prompt: {len(given)} inputs with n={body.n or 1}. Expected at most {service.settings.most_answers} answers.",
                    param="prompt",
                )
            read = [await service.aside(inputs.read_text, service, each, chosen) for each in given]
            return _submit(service, body, chosen, read, until)

        return await _answer(request, body, prepare(), until)

    return router


def _until(service: Service, body: schema.ChatRequest | schema.CompletionRequest) -> float:
    """The moment by which a request must be answered, its adapter written included, as ``time.monotonic`` tells it."""
    asked = None if body.promptlora is None else body.promptlora.deadline
    return time.monotonic() + min(service.settings.deadline, math.inf if asked is None else asked)


def _submit(
    service: Service,
    body: schema.ChatRequest | schema.CompletionRequest,
    chosen: Chosen,
    read: list[inputs.Input],
    until: float,
) -> Answers:
    """Put all answers of a request into the engine's queue, or none."""
    answers, places = len(read) * (body.n or 1), service.engine.max_waiting
    if answers > places:  # 429 would have the client try again for ever
        raise ApiError(
            400, f"n: {answers} answers. Expected at most {places}, which this server's queue holds.", param="n"
        )
    deadline = max(0.0, until - time.monotonic())
    tickets: list[Any] = []
    try:
        for each in read:
            for number in range(body.n or 1):
                how = inputs.sampling(service, body, each.ids, number)
                tickets.append(service.engine.submit(each.ids, chosen.lora, how, deadline=deadline))
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    saved = None if any(each.saved is None for each in read) else sum(each.saved or 0 for each in read)
    service.metrics.saved.inc(saved or 0)
    return Answers(
        tickets=tickets,
        model=body.model,
        fingerprint=service.fingerprint,
        special=service.special,
        chat=isinstance(body, schema.ChatRequest),
        with_logprobs=how.logprobs is not None,
        adapter=chosen.key,
        saved=saved,
        prompt_tokens=sum(len(each.ids) for each in read),
        first_token=service.metrics.first_token.observe,
    )


async def _answer(
    request: Request,
    body: schema.ChatRequest | schema.CompletionRequest,
    prepared: Coroutine[Any, Any, Answers],
    until: float,
) -> Any:
    """The whole answer, or its stream."""
    try:
        answers = await while_connected(request, asyncio.wait_for(prepared, until - time.monotonic()))
    except TimeoutError as error:
        raise ApiError(504, "The deadline passed before the first token.", code="deadline_exceeded") from error
    if body.stream:
        return EventStream(answers, bool(body.stream_options and body.stream_options.include_usage))
    return await while_connected(request, answers.whole())

"""What the base reads for a request, and how its tokens are chosen.

It knows tokenizers, chat templates and the engine's ``Sampling``; nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.engine import Sampling
from promptlora.errors import PromptError
from promptlora.server.conversation import Conversation
from promptlora.server.errors import ApiError
from promptlora.server.schema import ChatRequest, CompletionRequest
from promptlora.server.service import Chosen, Service
from promptlora.text import encode_chat, render_chat


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        ids: What the base reads.
        saved: Tokens that the prompt would have added; None where the prompt is not known.
    """

    ids: list[int]
    saved: int | None


def read_chat(service: Service, conversation: Conversation, chosen: Chosen) -> Input:
    """A conversation in the base's chat template.

    Args:
        service: The server.
        conversation: Without the prompt of the adapter.
        chosen: The adapter.

    Raises:
        PromptError: A conversation that the template refuses.
    """
    tokenizer, messages = service.lm.tokenizer, conversation.messages
    shown = chosen.prompt if chosen.in_context else None
    rendered = [render_chat(tokenizer, messages, shown)]
    if chosen.prompt is not None and not chosen.in_context:
        rendered.append(render_chat(tokenizer, messages, chosen.prompt, place="system"))
    ids, *longer = encode_chat(tokenizer, rendered)
    if chosen.lora is not None and chosen.prompt is None:
        return Input(ids, None)
    return Input(ids, max(0, len(longer[0]) - len(ids)) if longer else 0)


def read_text(service: Service, text: str | list[int], chosen: Chosen) -> Input:
    """A text to continue, without a template; with a prompt in the context, that and a blank line come before it.

    Raises:
        PromptError: A text without a token, or that is not Unicode.
    """
    tokenizer = service.lm.tokenizer
    prompt = chosen.prompt or ""
    if isinstance(text, list):
        if chosen.in_context:
            raise ApiError(400, "promptlora.in_context: the input is token ids. Expected a text.", param="promptlora")
        ids = text
    else:
        ids = _encode(service, f"{prompt}\n\n{text}" if chosen.in_context else text)
    if not ids:
        raise PromptError(f"prompt {str(text)[:40]!r}: no token. Expected a text to continue.")
    if chosen.lora is not None and chosen.prompt is None:
        return Input(ids, None)
    saved = 0 if chosen.lora is None or chosen.in_context else len(tokenizer.tokenize(f"{prompt}\n\n"))
    return Input(ids, saved)


def _encode(service: Service, text: str) -> list[int]:
    ids: list[int] = service.lm.tokenizer(text, verbose=False)["input_ids"]
    return ids


def sampling(service: Service, body: ChatRequest | CompletionRequest, ids: list[int], number: int) -> Sampling:
    """How the tokens of one answer are chosen.

    Args:
        service: The server.
        body: The request.
        ids: What the base reads.
        number: The number of the answer, from 0; each has a seed of its own.

    Raises:
        ApiError: An input that leaves no room for an answer.
    """
    room = service.engine.longest - len(ids)
    if room < 1:
        raise ApiError(
            400,
            f"The input has {len(ids)} tokens. Expected at most {room + len(ids) - 1}, so that an answer fits. Fix: shorten it.",
            param="messages" if isinstance(body, ChatRequest) else "prompt",
            code="context_length_exceeded",
        )
    settings = service.settings
    asked = (body.max_completion_tokens if isinstance(body, ChatRequest) else None) or body.max_tokens
    return Sampling(
        max_tokens=min(asked or settings.default_tokens, settings.most_tokens, room),
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=body.stops,
        seed=None if body.seed is None else (body.seed + number + (1 << 63)) % (1 << 64) - (1 << 63),
        logprobs=_logprobs(body),
    )


def _logprobs(body: ChatRequest | CompletionRequest) -> int | None:
    """How many alternatives of each token are reported; None for no log-probabilities at all."""
    if isinstance(body, CompletionRequest):
        return body.logprobs
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: logprobs is not set. Expected logprobs: true.", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None

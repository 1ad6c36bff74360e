"""A request for the model ``promptlora`` to one for an adapter: which text is the prompt, and what the base reads.

It follows ``promptlora serve``: all system and developer messages, joined by blank lines, are the prompt; the field
``promptlora`` of the request can give another one. It knows the JSON of OpenAI's API; nothing of HTTP or vLLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptlora_vllm.settings import PREFIX, STORED, WRITER

_SYSTEM = ("system", "developer")
_FIELDS = ("prompt", "examples", "in_context", "strength", "deadline")


class RequestError(ValueError):
    """A request that cannot be answered.

    Args:
        message: What was wrong and what was expected.
        param: The field of the request.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        body: The request without prompt and without the field ``promptlora``; its model is still to be named.
        prompt: The prompt of the adapter; None for the base. Beside ``model`` it is what the base may have to read.
        examples: ``{input, output}`` each, read with the prompt.
        in_context: Whether the base reads the prompt too.
        model: The name of the model, where it is known without the sidecar.
    """

    body: dict[str, Any]
    prompt: str | None = None
    examples: list[Mapping[str, str]] = field(default_factory=list)
    in_context: bool = False
    model: str | None = None


def concerns(body: object) -> bool:
    """Whether a request is for an adapter, or for the model that writes them."""
    model = body.get("model") if isinstance(body, dict) else None
    return isinstance(model, str) and (model == WRITER or model.startswith((PREFIX, STORED)))


def read(body: Mapping[str, Any], *, empty_system: bool = True) -> Asked:
    """What a request asks for.

    Args:
        body: A request that :func:`concerns` this plugin.
        empty_system: Whether an empty system message is put where no other is. Without one, vLLM renders the default of
            the chat template beside the adapter.

    Raises:
        RequestError: A field that cannot be followed.
    """
    body, chat = dict(body), "messages" in body
    told = _told(body.pop("promptlora", None))
    messages = _messages(body["messages"]) if chat else []
    if body["model"] != WRITER:
        if told.get("examples") or (told.get("in_context") and told.get("prompt") is None):
            raise _other_model()
        if chat and empty_system:
            body["messages"] = _with_system(messages)
        return Asked(body, prompt=told.get("prompt"), model=PREFIX + body["model"].partition(":")[2])
    prompt, examples, in_context = told.get("prompt"), told.get("examples") or [], bool(told.get("in_context"))
    if prompt is None:
        prompt = _system(messages)
        messages = [message for message in messages if message["role"] not in _SYSTEM]
    if prompt is None and examples:
        raise RequestError("promptlora.examples: no prompt. Expected one beside them.", "promptlora")
    if prompt is not None and in_context:
        body, messages = _shown(body, messages, prompt)
    if chat:
        body["messages"] = _with_system(messages) if empty_system else messages
    return Asked(body, prompt, examples, in_context and prompt is not None)


def for_stored(asked: Asked, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The request for a stored adapter, with its prompt in the context where it was written for that.

    Args:
        asked: A request with ``model``.
        origin: What the adapter's folder says of it: ``in_context`` and ``prompt_sha256``.

    Raises:
        RequestError: No prompt, or another one, for an adapter that needs it; or a prompt for an adapter that needs none.
    """
    if not origin.get("in_context"):
        if asked.prompt is not None:
            raise _other_model()
        return asked.body
    if asked.prompt is None:
        raise RequestError(
            "The adapter was written for a base that also reads its prompt, which is not stored. Expected promptlora.prompt "
            "with that prompt in the request.",
            "promptlora.prompt",
        )
    if origin.get("prompt_sha256") != hashlib.sha256(asked.prompt.encode(errors="surrogatepass")).hexdigest():
        raise RequestError(
            "promptlora.prompt: not the prompt of this adapter. Expected the one that it was written for.",
            "promptlora.prompt",
        )
    body, messages = _shown(asked.body, asked.body.get("messages", []), asked.prompt)
    return {**body, "messages": messages} if "messages" in body else body


def _other_model() -> RequestError:
    return RequestError(f"promptlora: a prompt for another model. Expected the model {WRITER!r}.", "promptlora")


def _told(value: object) -> dict[str, Any]:
    """The field ``promptlora``, with what this plugin cannot do refused."""
    if value is None:
        return {}
    if not isinstance(value, dict) or set(value) - set(_FIELDS):
        raise RequestError(f"promptlora: {str(value)[:80]}. Expected an object of {', '.join(_FIELDS)}.", "promptlora")
    if value.get("strength", 1) != 1:
        raise RequestError("promptlora.strength: vLLM runs adapters as they are. Expected 1.", "promptlora.strength")
    if value.get("deadline") is not None:
        raise RequestError("promptlora.deadline: vLLM has none. Expected no deadline.", "promptlora.deadline")
    prompt = value.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and prompt):
        raise RequestError("promptlora.prompt: expected a text that is not empty.", "promptlora.prompt")
    return value


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) and "role" in each for each in value):
        raise RequestError("messages: expected a list of objects with a role.", "messages")
    return value


def _system(messages: list[dict[str, Any]]) -> str | None:
    """The text of all system messages, separated by blank lines; None where there is no text."""
    texts = [_text(message.get("content")) for message in messages if message["role"] in _SYSTEM]
    return "\n\n".join(text for text in texts if text.strip()) or None


def _text(content: object) -> str:
    """The text of a message; its parts are joined by line breaks."""
    if not isinstance(content, list):
        return str(content or "")
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise RequestError("messages: a system message with a part that is no text. Expected text.", "messages")
    return "\n".join(map(str, parts))


def _with_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with an empty system message where there is none."""
    if any(message["role"] in _SYSTEM for message in messages):
        return messages
    return [{"role": "system", "content": ""}, *messages]


def _shown(
    body: dict[str, Any], messages: list[dict[str, Any]], prompt: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The request with the prompt before the first input, as ``promptlora serve`` writes it."""
    if "messages" not in body:
        if not isinstance(body.get("prompt"), str):
            raise RequestError(
                "promptlora.in_context: the input is no single text. Expected one.", "promptlora.in_context"
            )
        return {**body, "prompt": f"{prompt}\n\n{body['prompt']}"}, messages
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise RequestError("promptlora.in_context: no message of the user. Expected one.", "messages")
    written = {**messages[first], "content": f"{prompt}\n\n{_text(messages[first].get('content'))}"}
    return body, [*messages[:first], written, *messages[first + 1 :]]

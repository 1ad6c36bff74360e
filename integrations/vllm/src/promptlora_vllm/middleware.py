"""``PromptLoRAMiddleware``, for ``vllm serve --middleware promptlora_vllm.middleware.PromptLoRAMiddleware``.

It rewrites the body of a request for the model ``promptlora``, whose system message is sent to the sidecar instead of the
base, and adds that model to the list of models. It knows ASGI; what a request means is in :mod:`promptlora_vllm.rewriting`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from promptlora_vllm.rewriting import RequestError, concerns, for_stored, read
from promptlora_vllm.settings import PREFIX, WRITER, SettingsError
from promptlora_vllm.shared import sidecar
from promptlora_vllm.sidecar import SidecarError
from promptlora_vllm.store import StoreError, StoreFullError, is_key, origin_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("vllm.promptlora")

_REWRITTEN = ("/v1/chat/completions", "/v1/completions")
_LOADING = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")  # open with VLLM_ALLOW_RUNTIME_LORA_UPDATING
_LARGEST = 64 << 20  # bytes of a body that is read into memory


class PromptLoRAMiddleware:
    """ASGI middleware around vLLM's application.

    Args:
        app: What is inside.

    Raises:
        SettingsError: vLLM was started without what the plugin needs.
    """

    def __init__(self, app: Handler) -> None:
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").strip().lower() not in ("1", "true"):
            raise SettingsError(
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING: not set. Expected 1, without which vLLM knows no adapter by name. "
                "Fix: set it; the middleware keeps /v1/load_lora_adapter closed."
            )
        self.app = app
        self._inside: Handler | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrite the request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return await sidecar().aclose()
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self._inside is None:
            self._inside = _guarded(scope.get("app"), self._handle)
        return await self._inside(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        if scope["method"] == "GET" and path == "/v1/models":
            return await self.app(scope, receive, _Listed(send))
        if scope["method"] == "GET" and path == f"/v1/models/{WRITER}":
            return await _answer(send, 200, _model())
        if path in _LOADING and not sidecar().settings.runtime_loading:
            return await _refuse(
                send, 403, f"{path}: not for clients. Fix: start vLLM with PROMPTLORA_RUNTIME_LOADING=1 if it must be."
            )
        if scope["method"] != "POST" or path not in _REWRITTEN:
            return await self.app(scope, receive, send)
        content = await _body(receive)
        if content is None:
            return None  # the client has gone
        if len(content) > _LARGEST:
            return await _refuse(send, 413, f"The body is larger than {_LARGEST} bytes. Expected a smaller one.")
        body = _parsed(content)
        if concerns(body):
            assert isinstance(body, dict)
            try:
                content = json.dumps(await self._rewritten(scope, body)).encode()
            except RequestError as error:
                return await _refuse(send, 400, str(error), param=error.param)
            except SidecarError as error:
                return await _refuse(send, error.status, str(error), code=error.code, retry_after=error.retry_after)
            except StoreError as error:
                log.error("%s", error)
                status = 507 if isinstance(error, StoreFullError) else 500
                return await _refuse(send, status, "The adapter cannot be stored. The reason is in the log.")
            scope = {**scope, "headers": _headers(scope["headers"], len(content))}
        return await self.app(scope, _replayed(content, receive), send)

    async def _rewritten(self, scope: Scope, body: dict[str, Any]) -> dict[str, Any]:
        """The request that vLLM answers, with the folder of its adapter in the store."""
        if not any(type(each).__name__ == "PromptLoRAResolver" for each in _models(scope).lora_resolvers):
            raise SidecarError(
                "The plugin is not loaded. Expected the entry point `promptlora`. Fix: name it in VLLM_PLUGINS.",
                500,
                "plugin_not_loaded",
            )
        writer = sidecar()
        asked = read(body, empty_system=writer.settings.empty_system)
        if asked.model is not None:
            key = asked.model.removeprefix(PREFIX)
            if not is_key(key):
                return {**asked.body, "model": asked.model}  # vLLM says that there is none
            folder = await writer.folder(key)  # a loaded adapter may have been evicted and its folder removed
            return {**for_stored(asked, origin_of(folder)), "model": asked.model}
        if asked.prompt is None:
            return {**asked.body, "model": _base(scope)}
        key = await writer.write(asked.prompt, asked.examples, asked.in_context)
        return {**asked.body, "model": PREFIX + key}


class _Listed:
    """``send`` that adds the model ``promptlora`` to the list of models.

    Args:
        send: Of the server.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._body = send, b""
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        found = _parsed(self._body)
        if self._start["status"] == 200 and isinstance(found, dict) and isinstance(found.get("data"), list):
            found["data"].append(_model())
            self._body = json.dumps(found).encode()
            self._start["headers"] = _headers(self._start["headers"], len(self._body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._body})


def _model() -> dict[str, Any]:
    return {"id": WRITER, "object": "model", "created": 0, "owned_by": WRITER}


def _models(scope: Scope) -> Any:
    """What vLLM knows of its models."""
    return scope["app"].state.openai_serving_models


def _base(scope: Scope) -> str:
    """The name by which vLLM serves the base."""
    return str(_models(scope).base_model_paths[0].name)


def _guarded(app: Any, inner: Handler) -> Handler:
    """A handler behind vLLM's own comparison of API keys, where the server has keys.

    This middleware is outside of that comparison, and must not have prompts of strangers written.
    """
    for each in getattr(app, "user_middleware", ()):
        if each.cls.__name__ == "AuthenticationMiddleware":
            guarded: Handler = each.cls(inner, *each.args, **each.kwargs)
            return guarded
    return inner


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or a little more than is taken; None for a client that has gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body") or size > _LARGEST:
            return b"".join(parts)


def _replayed(content: bytes, receive: Receive) -> Receive:
    """``receive`` that gives a body, and after that what the server says, such as that the client has gone."""
    left = [content]

    async def replayed() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None  # vLLM says what is wrong with it


def _headers(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    dropped = (b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    return [*kept, (b"content-length", str(length).encode())]


async def _refuse(
    send: Send,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after: int | None = None,
) -> None:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code or status}
    await _answer(send, status, {"error": error}, {} if retry_after is None else {"Retry-After": str(retry_after)})


async def _answer(send: Send, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    content = json.dumps(body).encode()
    told = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})

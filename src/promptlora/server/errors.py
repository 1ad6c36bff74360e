"""Errors as OpenAI's clients read them: ``{"error": {message, type, param, code}}``, whoever raised them.

It knows HTTP and the exceptions of the package; nothing of models.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from promptlora.engine import EngineError, QueueFull
from promptlora.errors import ConfigError, DataError, LoRAError, NoRoomError, PromptError, PromptLoRAError, one_line

log = logging.getLogger("promptlora.server")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {400: "invalid_value", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}

# What a client may have meant by a field that is refused, added to the message.
_HINTS = {
    "tools": "Tools are not supported",
    "tool_choice": "Tools are not supported",
    "tool_calls": "Tools are not supported",
    "functions": "Tools are not supported",
    "function_call": "Tools are not supported",
    "frequency_penalty": "Penalties are not supported",
    "presence_penalty": "Penalties are not supported",
    "logit_bias": "Biases are not supported",
    "response_format": "Answers are plain text",
    "modalities": "Answers are plain text",
    "audio": "Answers are plain text",
    "prediction": "Predicted outputs are not supported",
    "web_search_options": "Web search is not supported",
    "echo": "The input is not repeated",
    "suffix": "Text is continued, not filled in",
    "best_of": "Every answer is returned; use n",
}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: What was wrong, what was expected, and the fix.
        param: The field of the request.
        code: A word that programs can compare.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        message = message.encode("utf-8", "replace").decode()  # it can show text that is not Unicode
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code or _CODES.get(self.status),
            }
        }

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def too_many(what: str, seconds: int) -> ApiError:
    """The error of a server that has enough to do."""
    message = f"Too many {what}. Fix: try again in {seconds} s."
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})


def told(error: BaseException) -> ApiError:
    """Any exception as the error that its client gets; what is no fault of the client says nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        wait = str(max(1, math.ceil(error.retry_after)))
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": wait})
    if isinstance(error, EngineError):
        return ApiError(503, str(error), code="unavailable", headers={"Retry-After": "5"})
    if isinstance(error, NoRoomError):
        return ApiError(507, str(error), code="no_room")
    if isinstance(error, (ConfigError, DataError, LoRAError, PromptError)):
        return ApiError(400, str(error), code="invalid_value")
    log_failure(error)
    return ApiError(500, "The server failed on this request. The reason is in its log.", code="internal_error")


def log_failure(error: BaseException) -> None:
    """Log where an exception was raised, without its message, which can hold a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s\n%s", type(error).__name__, frames)


def _place(problem: Mapping[str, Any]) -> str:
    """The path of a field as a client writes it, without the names that pydantic gives to the parts of a union."""
    parts = [str(part) for part in problem["loc"] if str(part) not in ("body", "query", "path", "header")]
    return ".".join(part for part in parts if part.isdigit() or (part.isidentifier() and part not in ("str", "Part")))


def validation_error(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The deepest of the problems that pydantic found: of a union it lists every part that does not fit.

    Args:
        problems: As ``RequestValidationError.errors()`` gives them.
    """
    problem = max(problems, key=lambda each: len(each["loc"]))
    where = _place(problem)
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return ApiError(400, f"The body is not JSON ({reason}). Expected a JSON object.", code="invalid_json")
    if problem["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {where}"
        return ApiError(400, message, param=where, code="unknown_parameter")
    if problem["type"] == "missing" and where:
        return ApiError(400, f"Missing required parameter: {where}.", param=where, code="missing_required_parameter")
    hint = next((_HINTS[part] for part in where.split(".") if part in _HINTS), None)
    given = problem.get("input")
    shown = f" ({given!r})" if isinstance(given, (int, float)) or (isinstance(given, str) and len(given) < 40) else ""
    parts = [problem["msg"], hint]
    if hint and problem.get("ctx", {}).get("max_length") == 0:  # "at most 0 items" says less than the hint
        parts = [hint]
    message = f"{where or 'body'}{shown}: {' '.join(f'{part}.' for part in parts if part)}"
    code = "unsupported_parameter" if hint else "invalid_value"
    return ApiError(400, one_line(ValueError(message), 400), param=where or None, code=code)


def install(app: FastAPI) -> None:
    """Make every error of an application one of OpenAI's shape."""

    async def of_api(request: Request, error: Exception) -> JSONResponse:
        return told(error).response()

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"{request.method} {request.url.path[:200]}: no such endpoint. See /openapi.json."
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            message = f"{request.method} {request.url.path[:200]}: not allowed. Expected {allowed or 'another method'}."
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def of_gone(request: Request, error: Exception) -> JSONResponse:
        return ApiError(499, "The client has gone.").response()  # nobody reads it

    app.add_exception_handler(ClientDisconnect, of_gone)
    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(PromptLoRAError, of_api)
    app.add_exception_handler(Exception, of_api)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)

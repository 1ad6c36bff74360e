"""The application: endpoints, errors and guards put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from promptlora import __version__
from promptlora.server import adapters, completions, errors, models, operations
from promptlora.server.metrics import Observed
from promptlora.server.schema import ErrorAnswer
from promptlora.server.security import Gate
from promptlora.server.service import Service

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request cannot be answered.",
        401: "No API key of this server.",
        403: "Not under this host name.",
        404: "There is no such model, adapter or job.",
        413: "The body is too large.",
        429: "The queue is full; see `Retry-After`.",
        500: "The server failed.",
        503: "The server stops.",
        504: "The deadline passed before the first token.",
        507: "There is no room for the adapter.",
    }.items()
}


def create_app(service: Service, *, drain: float | None = 30.0) -> FastAPI:
    """The ASGI application of a server; the end of its lifespan closes the service.

    Args:
        service: What it serves.
        drain: Seconds for the answers that run when the server stops.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close, drain)

    settings = service.settings
    app = FastAPI(
        title="promptlora",
        version=__version__,
        summary="Every request brings its own prompt, and none of it is in the context.",
        docs_url=None,  # the pages load their scripts from the network
        redoc_url=None,
        responses=_ERRORS,
        lifespan=lifespan,
    )
    app.include_router(operations.routes(service))
    app.include_router(adapters.routes(service))
    if not settings.adapters_only:
        app.include_router(models.routes(service))
        app.include_router(completions.routes(service))
    errors.install(app)
    app.add_middleware(
        Gate,
        keys=settings.api_keys,
        most_bytes=settings.most_bytes,
        most_requests=settings.most_requests,
        local=settings.local,
    )
    app.add_middleware(Observed, metrics=service.metrics)
    _document(app, with_keys=bool(settings.api_keys))
    return app


def _document(app: FastAPI, *, with_keys: bool) -> None:
    """Make the OpenAPI document say what is true here: errors of validation are 400, and keys are asked for or not."""
    document = app.openapi()
    for path, operations_of in document["paths"].items():
        for operation in operations_of.values():
            operation["responses"].pop("422", None)
            if with_keys and path != "/health":
                operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}

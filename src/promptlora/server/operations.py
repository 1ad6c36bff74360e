"""``/health`` and ``/metrics``: for whoever runs the server."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from promptlora.server.service import Service


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"


def _nothing() -> None:
    """Work for the engine that is none."""


def routes(service: Service) -> APIRouter:
    """The endpoints of operation.

    Args:
        service: The server.
    """
    router = APIRouter(tags=["Operation"])

    @router.get("/health", response_model=Health)
    async def health() -> Health:
        """Whether the server and its engine run; 503 where the engine has ended. It needs no API key."""
        service.writer.between_steps(_nothing)  # refused by an engine that has ended
        return Health()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router

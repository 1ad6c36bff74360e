"""Counters for Prometheus, in a registry of their own, and one line of log for each request.

Neither holds text of a request or an answer.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from promptlora.engine import AdapterWriter

log = logging.getLogger("promptlora.server")
_METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")  # others are a client's own words, without end
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_GAUGES = {
    "running": "Requests in the batch.",
    "waiting": "Requests in the queue.",
    "adapters": "Adapters in memory.",
    "adapter_bytes": "Bytes of adapters in memory.",
    "kv_tokens": "Places of the key-value cache in use.",
    "kv_capacity": "Places of the key-value cache.",
}
_COUNTERS = {
    "finished": "Generations that ended, whatever the reason.",
    "cancelled": "Generations that were cancelled or abandoned.",
    "expired": "Generations that ran into their deadline.",
    "prompt_tokens": "Tokens that the base read.",
    "reused_tokens": "Tokens whose keys and values were reused.",
    "generated_tokens": "Tokens that were generated.",
    "steps": "Forward passes of the base.",
    "step_seconds": "Seconds in forward passes.",
    "adapters_written": "Adapters that the hypernetwork wrote.",
    "adapters_hit": "Requests for an adapter that was in the cache.",
}


class _EngineCollector(Collector):
    """The engine's counters, read when they are asked for."""

    def __init__(self, engine: AdapterWriter) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """One metric for each counter and gauge."""
        stats = self.engine.stats
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"promptlora_{name}", text, value=getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"promptlora_{name}", text, value=getattr(stats, name))


class Metrics:
    """The counters of one server.

    Args:
        engine: Whose counters are shown too.
    """

    def __init__(self, engine: AdapterWriter) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self.requests = Counter(
            "promptlora_http_requests", "HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "promptlora_http_seconds", "Seconds of an HTTP request, its stream included.", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "promptlora_first_token_seconds", "Seconds until the first token of an answer.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.saved = Counter(
            "promptlora_prompt_tokens_saved", "Tokens of prompts that the base did not read.", registry=self.registry
        )

    def text(self) -> bytes:
        """All counters in the text format."""
        return generate_latest(self.registry)


class Observed:
    """ASGI middleware: counts and times each request, logs a line without its text, and gives it an id.

    Args:
        app: What is observed.
        metrics: Where it is counted.
    """

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, name = time.perf_counter(), 499, f"req-{secrets.token_hex(8)}"

        async def observed(event: Any) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                event["headers"] = [*event.get("headers", []), (b"x-request-id", name.encode())]
            await send(event)

        try:
            await self.app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - began
            method = scope["method"] if route != "unknown" and scope["method"] in _METHODS else "unknown"
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            log.info("%s %s %s %d %.3f s", name, scope["method"][:16], route, status, seconds)

"""``promptlora serve``: the HTTP server."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptlora.cli.console import Device, Dtype, Force, Hypernetwork, Json, err, load, out
from promptlora.errors import ConfigError
from promptlora.extras import need

EPILOG = """Examples:

**promptlora serve** (the embedded model on http://127.0.0.1:8421/v1)

**promptlora serve HuggingFaceTB/SmolLM2-135M-Instruct --adapter-dir adapters --max-batch 32**

**PROMPTLORA_API_KEY=$(openssl rand -hex 24) promptlora serve --host 0.0.0.0**

**promptlora serve --adapters-only --port 8422 --json** (writes adapters for another server)"""


def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Base model: folder or Hugging Face id. Default: the embedded one."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8421,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="PROMPTLORA_API_KEY", help="Key that clients must send; can be given more than once."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with one key on each line.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Requests that run at once.")] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Requests that wait; more are answered with 429.")
    ] = 128,
    adapter_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps adapters between runs. Default: memory alone.")
    ] = None,
    adapter_memory: Annotated[int, typer.Option(min=1, max=1 << 20, help="Adapters in memory, in MB.")] = 256,
    adapters_only: Annotated[
        bool, typer.Option("--adapters-only", help="Serve the endpoints of adapters and nothing that generates text.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the plain base in requests. Default: its Hugging Face id or folder.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="Longest answer of any request.")] = 2048,
    deadline: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds after which an answer ends.")] = 300.0,
    max_body: Annotated[int, typer.Option(min=1, max=1 << 20, help="Largest body of a request, in kB.")] = 4096,
    drain: Annotated[float, typer.Option(min=0, max=3600, help="Seconds for running answers when stopped.")] = 30.0,
    hypernetwork: Hypernetwork = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Serve OpenAI's API: the system message of a request becomes an adapter, and the model never reads it."""
    need("serve", "fastapi", "uvicorn", "prometheus_client", "cachetools")
    from promptlora.address import bind, is_loopback, url_of
    from promptlora.files import check_output
    from promptlora.server.security import check_keys, read_keys
    from promptlora.server.settings import Settings

    keys = check_keys(api_key or [], "--api-key") + (() if api_key_file is None else read_keys(api_key_file))
    if adapter_dir is not None:
        check_output(adapter_dir, reuse=True)
    settings = Settings(
        model_name=model_name or "base",
        api_keys=keys,
        adapters_only=adapters_only,
        most_bytes=max_body * 1000,
        most_tokens=max_tokens,
        deadline=deadline,
        most_requests=max(1024, 2 * (max_batch + max_waiting)),
    )
    listener = bind(host, port)  # bind before the model is loaded, which takes a while
    try:
        lm = load(hypernetwork, model, dtype, device, force)
        from promptlora.engine import AdapterCache, AdapterWriter, Engine
        from promptlora.server.app import create_app
        from promptlora.server.running import serve as run
        from promptlora.server.service import Service

        settings = replace(
            settings,
            model_name=model_name or _name(model, str(lm.model.config.name_or_path)),
            local=is_loopback(listener),
        )
        cache = AdapterCache(lm, folder=adapter_dir, memory_bytes=adapter_memory * 1_000_000)
        _check_memory(cache.adapter_bytes, adapter_memory)
        writer = (
            AdapterWriter(lm, cache=cache)  # for bases too that the engine does not run
            if adapters_only
            else Engine(lm, max_batch=max_batch, max_waiting=max_waiting, cache=cache)
        )
        service = Service(lm, writer, cache, settings, adapter_dir)
        if not settings.local and not keys:
            err.print(
                f"warning: --host {escape(host)} without --api-key: everybody who reaches {escape(host)} can use this server."
            )
        _log()

        def ready() -> None:
            _ready(url_of(listener), settings.model_name, adapters_only, bool(keys), as_json)

        try:
            run(create_app(service, drain=drain), listener, drain=drain, ready=ready)
        finally:
            service.close(timeout=0)
            lm.close()
    finally:
        listener.close()
    err.print("stopped")


def _check_memory(adapter_bytes: int, megabytes: int) -> None:
    """Refuse a memory for adapters that cannot hold one, which would be written or read again for every request.

    Args:
        adapter_bytes: Bytes of one adapter.
        megabytes: Size of the memory.

    Raises:
        ConfigError: It is smaller than one adapter.
    """
    if adapter_bytes > megabytes * 1_000_000:
        needed = math.ceil(adapter_bytes / 1_000_000)
        raise ConfigError(
            f"--adapter-memory: {megabytes} MB, and one adapter of this hypernetwork has {adapter_bytes / 1e6:.3g} MB. "
            f"Expected room for at least one. Fix: --adapter-memory {needed} or more."
        )


def _ready(url: str, model: str, adapters_only: bool, keys: bool, as_json: bool) -> None:
    """Print the address and, on a line of its own, an example request; or one line of JSON for programs."""
    if as_json:
        told = {"url": url, "api": f"{url}/v1", "model": model, "adapters_only": adapters_only, "pid": os.getpid()}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        return
    if adapters_only:
        path = "adapters"
        body: dict[str, object] = {"prompt": "Classify the sentiment as positive or negative."}
    else:
        messages = [
            {"role": "system", "content": "Classify the sentiment as positive or negative."},
            {"role": "user", "content": "I loved it"},
        ]
        path, body = "chat/completions", {"model": "promptlora", "messages": messages}
    key = ' -H "Authorization: Bearer $PROMPTLORA_API_KEY"' if keys else ""
    command = f"curl {url}/v1/{path}{key} --json '{json.dumps(body)}'"
    out.print(escape(f"serving {url}/v1 (Ctrl-C stops it). Try:\n{command}"), highlight=False, soft_wrap=True)
    out.file.flush()


def _log() -> None:
    """Log one line on standard error per request, and failures; the log contains no text of a request."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("promptlora").addHandler(handler)
    logging.getLogger("promptlora.server").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", r"refine: ")  # the warning contains the prompt; the job reports the outcome


def _name(model: str | None, known: str) -> str:
    """The base's name: its Hugging Face id, or the last part of its folder, so that clients do not see paths."""
    return Path(known).name if Path(known).is_absolute() or (model and Path(model).is_dir()) else known

"""Run the page: a server on one port that leaves nothing behind and asks nothing of the network.

It knows Gradio's switches; nothing of the page.
"""

from __future__ import annotations

import os
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.address import check_address as check_address
from promptlora.errors import ConfigError
from promptlora.signals import stopping
from promptlora.ui.studio import Studio
from promptlora.ui.values import Limits


def serve(
    load: Callable[[], PromptLoRA],
    *,
    host: str,
    port: int,
    base_name: str,
    open_browser: bool = False,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Gradio's own ``launch`` asks its server for the page first, and gives up where that takes 3 s (a busy machine) or
    goes through a proxy; so the page is mounted in an application that uvicorn runs.

    Args:
        load: Loads what the page works with; called once the page's libraries are there, so that no visitor waits
            for them after the model is loaded.
        host: Address to listen on.
        port: Port to listen on.
        base_name: What exported adapters call their base.
        open_browser: Open the page when it is there.
        limits: How much one visitor may ask for.
        ready: Called with the page's address once it answers.

    Raises:
        ConfigError: An address that cannot be served.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="promptlora-ui-", ignore_cleanup_errors=True) as folder, _interruptible():
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")  # before gradio is imported
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from promptlora.ui.page import build_page
        from promptlora.ui.script import HEAD
        from promptlora.ui.style import CSS

        exports = Path(folder) / "adapters"
        exports.mkdir()
        studio = Studio(load(), exports, base_name=base_name, limits=limits)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Consolas", "monospace"]}
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            build_page(studio).queue(max_size=64, default_concurrency_limit=8),
            path="/",
            server_name=host,
            server_port=port,
            theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", **_as_fonts(gr, fonts)),
            css=CSS,
            head=HEAD,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            allowed_paths=[str(exports)],
            show_error=False,
            max_file_size="1mb",
        )

        class Server(uvicorn.Server):
            """Tells when it answers."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                if self.started and ready:
                    ready(url)
                if self.started and open_browser:
                    webbrowser.open(url)

        config = uvicorn.Config(app, host=host, port=port, log_level="critical", timeout_graceful_shutdown=2)
        try:
            Server(config).run()
        except SystemExit as error:  # uvicorn's way to say that it could not start
            raise ConfigError(f"host {host}, port {port}: cannot be served; choose another port") from error


def _as_fonts(gr: Any, names: dict[str, list[str]]) -> dict[str, Any]:
    """Fonts of the visitor's system: plain names, for which no file is asked."""
    plain = gr.themes.utils.fonts.Font
    return {key: [plain(name) for name in value] for key, value in names.items()}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is inside, and nothing more; folders are cleared."""
    with suppress(KeyboardInterrupt), stopping(at_once=True):
        yield

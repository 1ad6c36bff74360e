"""Runs the page: a server on one port that leaves no files behind and needs no network access.

It knows Gradio's settings; it knows nothing of the page.
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

    Gradio's own ``launch`` first requests the page from its own server, and fails if this takes 3 s (on a busy machine)
    or goes through a proxy. The page is therefore mounted in an application that uvicorn runs.

    Args:
        load: Loads what the page works with. It is called after the page's libraries are imported, so that no visitor
            waits for them once the model is loaded.
        host: Address to listen on.
        port: Port to listen on.
        base_name: Name of the base in exported adapters.
        open_browser: Open the page in a browser once it is ready.
        limits: Limits per visitor.
        ready: Called with the page's address once the server answers.

    Raises:
        ConfigError: The page cannot be served at this address.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="promptlora-ui-", ignore_cleanup_errors=True) as folder, _interruptible():
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")  # must be set before gradio is imported
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
            """Reports when it is ready."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                if self.started and ready:
                    ready(url)
                if self.started and open_browser:
                    webbrowser.open(url)

        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,  # uvicorn's own would close the log handlers of the whole process
            log_level="critical",
            timeout_graceful_shutdown=2,
        )
        try:
            Server(config).run()
        except SystemExit as error:  # uvicorn exits if it cannot start
            raise ConfigError(f"host {host}, port {port}: cannot be served; choose another port") from error


def _as_fonts(gr: Any, names: dict[str, list[str]]) -> dict[str, Any]:
    """System fonts: a plain font name does not make Gradio request a font file."""
    plain = gr.themes.utils.fonts.Font
    return {key: [plain(name) for name in value] for key, value in names.items()}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end only the code inside ``with``, so that temporary folders are still removed."""
    with suppress(KeyboardInterrupt), stopping(at_once=True):
        yield

"""Run the page: a server on one port that leaves nothing behind and asks nothing of the network.

It knows Gradio's switches; nothing of the page.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from promptlora.adaptation import PromptLoRA
from promptlora.errors import ConfigError, one_line
from promptlora.ui.studio import Limits, Studio


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be served, before a model is loaded.

    Raises:
        ConfigError: A port that is in use or not allowed, or a host that is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(
            f"--host {host} --port {port}: cannot be served ({reason}); expected an address of this machine and a free "
            "port; choose another with --port"
        ) from error


def serve(
    lm: PromptLoRA,
    *,
    host: str,
    port: int,
    base_name: str,
    open_browser: bool = False,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        lm: What the page works with.
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
    with tempfile.TemporaryDirectory(prefix="promptlora-ui-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")  # before gradio is imported
        import gradio as gr

        from promptlora.ui.page import build_page
        from promptlora.ui.style import CSS

        exports = Path(folder) / "adapters"
        exports.mkdir()
        studio = Studio(lm, exports, base_name=base_name, limits=limits)
        page = build_page(studio).queue(max_size=64, default_concurrency_limit=8)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Consolas", "monospace"]}
        stopped = threading.Event()
        with _ending(stopped):
            try:
                _, url, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", **_as_fonts(gr, fonts)),
                    css=CSS,
                    share=False,
                    quiet=True,
                    prevent_thread_lock=True,
                    footer_links=[],
                    ssr_mode=False,
                    enable_monitoring=False,
                    mcp_server=False,
                    pwa=False,
                    allowed_paths=[str(exports)],
                    max_file_size="1mb",
                )
            except OSError as error:
                raise ConfigError(
                    f"--host {host} --port {port}: cannot be served ({one_line(error)}); choose another with --port"
                ) from error
            try:
                if ready:
                    ready(url)
                if open_browser:
                    webbrowser.open(url)
                stopped.wait()
            except KeyboardInterrupt:
                pass
            finally:
                page.close(verbose=False)


def _as_fonts(gr: Any, names: dict[str, list[str]]) -> dict[str, Any]:
    """Fonts of the visitor's system: plain names, for which no file is asked."""
    plain = gr.themes.utils.fonts.Font
    return {key: [plain(name) for name in value] for key, value in names.items()}


class _ending:  # noqa: N801 (a context manager)
    """SIGTERM sets an event while inside, so that the folder is cleared."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event
        self.before: Any = None

    def __enter__(self) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            self.event.set()

        with suppress(ValueError):  # not the main thread: the caller's signals stay
            self.before = signal.signal(signal.SIGTERM, end)

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

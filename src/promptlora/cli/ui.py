"""``promptlora ui``: the web page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from promptlora.cli.console import Base, Device, Dtype, Force, Hypernetwork, err, load, out, working
from promptlora.extras import need

if TYPE_CHECKING:
    from promptlora.adapt.prompt_lora import PromptLoRA


def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Serve the web page: adapters from prompts, four answers side by side, attention.

    Example: **promptlora ui --open**
    """
    need("ui", "gradio", "fastapi", "uvicorn")
    with working("loading the page's libraries"):
        from promptlora.models import EMBEDDED_ID
        from promptlora.ui.serving import check_address, serve

    check_address(host, port)

    def loaded() -> PromptLoRA:
        return load(hypernetwork, base, dtype, device, force)

    def ready(url: str) -> None:
        out.print(f"the page is at {escape(url)} (Ctrl-C ends it)", highlight=False, soft_wrap=True)

    serve(loaded, host=host, port=port, base_name=base or EMBEDDED_ID, open_browser=open_browser, ready=ready)
    err.print("stopped")

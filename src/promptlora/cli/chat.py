"""``promptlora chat``: a conversation with an adapted base, streamed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from promptlora.cli.console import (
    Base,
    Device,
    Dtype,
    Force,
    Hypernetwork,
    Prompt,
    PromptFile,
    err,
    load,
    read_prompt,
    size,
)
from promptlora.errors import PromptError

_HELP = "/base answers without the adapter, /adapted with it, /reset forgets the conversation, /quit ends"


def chat(
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Talk to the base with the prompt's adapter on; the prompt is not in the context.

    Lines come from the keyboard or a pipe; /base, /adapted, /reset and /quit are commands.

    Example: **promptlora chat --prompt "Answer with one word."**
    """
    lm = load(hypernetwork, base, dtype, device, force)
    lora = lm.adapt(read_prompt(prompt, prompt_file))
    err.print(f"adapter of {size(lora.nbytes)} is on; {_HELP}", highlight=False)
    options: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
    messages: list[dict[str, str]] = []
    adapted = True
    while True:
        if sys.stdin.isatty():
            err.print("[bold]you:[/] ", end="")
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        text = line.strip()
        if text in ("/base", "/adapted"):
            adapted = text == "/adapted"
            err.print(f"adapter {'on' if adapted else 'off'}")
        elif text == "/reset":
            messages.clear()
            err.print("conversation forgotten")
        elif text.startswith("/"):
            err.print(f"{escape(text)}: no such command; {_HELP}", highlight=False)
        elif text:
            messages.append({"role": "user", "content": text})
            pieces = []
            try:
                for piece in lm.stream(messages, lora if adapted else None, max_new_tokens=max_new_tokens, **options):
                    pieces.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            except PromptError as error:  # the conversation is full: it goes on after /reset
                messages.pop()
                err.print(f"[red]error:[/] {escape(str(error))}; /reset", highlight=False)
                continue
            sys.stdout.write("\n")
            sys.stdout.flush()
            messages.append({"role": "assistant", "content": "".join(pieces)})

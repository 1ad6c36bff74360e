"""``promptlora chat``: a conversation with an adapted base, streamed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from promptlora.cli.console import (
    MOST_TOKENS,
    Base,
    Device,
    Dtype,
    Force,
    Hypernetwork,
    Prompt,
    PromptFile,
    err,
    finite,
    load,
    read_line,
    read_prompt,
    size,
)
from promptlora.errors import PromptError

_HELP = "/base answers without the adapter, /adapted with it, /reset forgets the conversation, /quit ends"


def chat(
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    in_context: Annotated[
        bool,
        typer.Option("--in-context", help="Keep the prompt in the context too, of the base and of the adapted base."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="0 is greedy.")] = 0.0,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Talk to the base with the prompt's adapter on; the prompt is not in the context, except with --in-context.

    Reads lines from the keyboard or a pipe; lines from a pipe are not printed again, so that standard output holds the
    answers alone. /base, /adapted, /reset and /quit are commands.

    Example: **promptlora chat --prompt "Extract the name of the city from the sentence."**
    """
    if prompt_file == "-":
        raise PromptError("chat --prompt-file -: standard input is the conversation; expected --prompt or a file")
    instruction = read_prompt(prompt, prompt_file)
    lm = load(hypernetwork, base, dtype, device, force, prompts=[instruction])
    lora = lm.adapt(instruction, in_context=in_context)
    shown = instruction if in_context else None
    where = ", and the prompt is in the context" if in_context else ""
    err.print(f"adapter of {size(lora.nbytes)} is on{where}; {_HELP}", highlight=False)
    options: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
    messages: list[dict[str, str]] = []
    adapted = True
    while True:
        if sys.stdin is not None and sys.stdin.isatty():
            err.print("[bold]you:[/] ", end="")
        try:
            line = read_line()
        except PromptError as error:
            err.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
            continue
        if line is None or line.strip() == "/quit":
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
                on = lora if adapted else None
                for piece in lm.stream(messages, on, in_context=shown, max_new_tokens=max_new_tokens, **options):
                    pieces.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            except PromptError as error:  # the conversation is full; /reset starts a new one
                messages.pop()
                err.print(f"[red]error:[/] {escape(str(error))}; /reset", highlight=False)
                continue
            sys.stdout.write("\n")
            sys.stdout.flush()
            messages.append({"role": "assistant", "content": "".join(pieces)})

"""``promptlora run``: compare base and adapter on one input, or on every input of a file.

The adapter is written from a prompt, or was saved earlier and is loaded (``--adapter``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from promptlora.cli.answers import TITLES, compared_answers
from promptlora.cli.console import (
    MOST_TOKENS,
    Base,
    Device,
    Dtype,
    Force,
    Hypernetwork,
    Json,
    Prompt,
    PromptFile,
    err,
    load,
    load_with_adapter,
    print_json,
    print_table,
    read_prompt,
    size,
    working,
)
from promptlora.errors import PromptError

if TYPE_CHECKING:
    from promptlora.adapt import AdaptedBase


def run(
    text: Annotated[str | None, typer.Argument(help="The input.", metavar="INPUT")] = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    inputs_file: Annotated[
        Path | None, typer.Option(help="Inputs: .txt (one per line), .jsonl or .csv (a key or column named input).")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A saved adapter instead of a prompt: a PEFT folder or a file of LoRAWeights.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")] = 64,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Answer inputs four ways: base and adapted, each without and with the prompt in context.

    A saved adapter whose prompt is not known is shown two ways, without a prompt in the context.

    Example: **promptlora run --prompt "Extract the name of the city from the sentence." "She flew to Paris on Monday."**
    """
    inputs = _inputs(text, inputs_file)
    if adapter is not None:
        instruction = read_prompt(prompt, prompt_file) if prompt is not None or prompt_file is not None else None
        lm: AdaptedBase
        lm, lora = load_with_adapter(adapter, base, dtype, device)
        beside, seconds, near = lora, None, None
        (origin,) = lora.origins
        instruction = instruction or (origin.prompt if origin else None)
    else:
        instruction = read_prompt(prompt, prompt_file, "--adapter PATH")
        made = load(hypernetwork, base, dtype, device, force, prompts=[instruction])
        with working("writing the adapter"):
            started = time.perf_counter()
            lora = made.adapt(instruction)
            seconds = time.perf_counter() - started
            beside = made.adapt(instruction, in_context=True)
            distances = made.distances(instruction)
            near = distances[0] if distances else None
        lm = made
    with working("answering") as say:
        prompts = None if instruction is None else [instruction] * len(inputs)
        rows = compared_answers(lm, inputs, prompts, lora, beside, max_new_tokens, say)
    if json:
        described = {"seconds": seconds, "bytes": lora.nbytes, "rank": lora.rank, "projections": len(lora)}
        distance = None if near is None else near.to_dict()
        shared = {"prompt": instruction, "adapter": described, "training_prompts": distance}
        print_json({**shared, **rows[0]} if inputs_file is None else {**shared, "answers": rows})
        return
    _print(rows)
    if seconds is not None:
        err.print(f"adapter written in {seconds:.2f} s, {size(lora.nbytes)}", highlight=False)
        if near is not None:
            err.print(str(near), style="yellow" if near.far else None, highlight=False)
    elif instruction is None:
        err.print(f"{escape(str(adapter))} does not say its prompt; --prompt shows it in the context", highlight=False)


def _inputs(text: str | None, file: Path | None) -> list[str]:
    """The input from the command line, or the inputs of the file; exactly one of them is given."""
    if text is not None and file is not None:
        raise PromptError("an input and --inputs-file were given. Expected one of them.")
    if text is not None:
        return [text]
    if file is None:
        raise PromptError("no input was given. Expected one, in quotes, or --inputs-file FILE.")
    from promptlora.data.inputs import read_inputs  # imported here because only this option reads files

    return read_inputs(file)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """Print one input with one row per answer mode, or several inputs with one row per input."""
    ways = [name for name in TITLES if name in rows[0]]
    table = Table(show_lines=True)
    if len(rows) == 1:
        table.add_column("who")
        table.add_column("tokens read", justify="right")
        table.add_column("answer", overflow="fold")
        for name in ways:
            table.add_row(TITLES[name], str(rows[0]["tokens_read"][name]), escape(rows[0][name]))
    else:
        for title in ("input", *(TITLES[name] for name in ways)):
            table.add_column(title, overflow="fold", ratio=1)
        for row in rows:
            table.add_row(escape(row["input"]), *(escape(row[name]) for name in ways))
    print_table(table)

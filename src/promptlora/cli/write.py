"""``promptlora generate`` and ``promptlora run``: write an adapter; show what it does to one input."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from promptlora.cli.console import (
    MOST_ROWS,
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
    out,
    print_json,
    read_prompt,
    size,
    working,
)
from promptlora.errors import ConfigError
from promptlora.files import check_output


def generate(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to create. Default: named after the prompt, here.")
    ] = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    in_context: Annotated[
        bool,
        typer.Option("--in-context", help="For a base that reads the prompt too; the chat template then writes it."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that exists.")] = False,
    pad_rank: Annotated[
        str | None, typer.Option(help="Pad with zeros to this rank; auto pads to the next rank that vLLM accepts.")
    ] = None,
    compress: Annotated[
        int | None, typer.Option(min=1, max=MOST_ROWS, help="Reduce to this rank by truncated SVD.")
    ] = None,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the adapter of a prompt as a PEFT folder, which vLLM also reads.

    The folder holds a model card with the prompt and the code that loads it, and the tokenizer with the chat template
    that gives the same answers elsewhere.

    Example: **promptlora generate --prompt "Extract the name of the city from the sentence." -o city/**
    """
    text = read_prompt(prompt, prompt_file)
    if (
        pad_rank is not None
        and pad_rank != "auto"
        and not (pad_rank.isascii() and pad_rank.isdigit() and len(pad_rank) < 6)
    ):
        raise ConfigError(f"--pad-rank {pad_rank}: expected auto or a whole number, such as 16")
    if output is not None:
        check_output(output, overwrite=overwrite)
    lm = load(hypernetwork, base, dtype, device, force, prompts=[text])
    with working("writing the adapter"):
        started = time.perf_counter()
        lora = lm.adapt(text, in_context=in_context)
        seconds = time.perf_counter() - started
        (origin,) = lora.origins
        folder = output or Path(origin.folder_name if origin else "adapter")
        report = lora.save_peft(
            folder,
            overwrite=overwrite,
            pad_rank=int(pad_rank) if pad_rank and pad_rank != "auto" else pad_rank,
            compress=compress,
            model=lm.model,
        )
    if json:
        values = {"output": str(folder), "projections": len(lora), "seconds": seconds, **asdict(report)}
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in values.items()})
    else:
        out.print(
            f"{escape(str(folder))}: rank {report.rank} for {len(lora)} projections, {size(report.bytes)}, adapter "
            f"written in {seconds:.2f} s",
            highlight=False,
            soft_wrap=True,
        )
        out.print(f"{escape(str(folder / 'README.md'))} tells how to load it", highlight=False, soft_wrap=True)
        if compress:
            out.print(f"relative error of the update: {report.relative_error:.2e}", highlight=False)


def run(
    text: Annotated[str, typer.Argument(help="The input.", metavar="INPUT")],
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")] = 64,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Answer one input four ways: base and adapted, each without and with the prompt in context.

    Example: **promptlora run --prompt "Extract the name of the city from the sentence." "She flew to Paris on Monday."**
    """
    instruction = read_prompt(prompt, prompt_file)
    lm = load(hypernetwork, base, dtype, device, force, prompts=[instruction])
    with working("writing the adapter") as say:
        started = time.perf_counter()
        lora = lm.adapt(instruction)
        seconds = time.perf_counter() - started
        beside = lm.adapt(instruction, in_context=True)
        say("answering")
        answers = {
            "base": lm.generate(text, max_new_tokens=max_new_tokens),
            "in_context": lm.generate(text, in_context=instruction, max_new_tokens=max_new_tokens),
            "adapted": lm.generate(text, lora, max_new_tokens=max_new_tokens),
            "adapted_in_context": lm.generate(text, beside, in_context=instruction, max_new_tokens=max_new_tokens),
        }
        read = lm.count_tokens([text, text], [None, instruction])
    if json:
        print_json(
            {
                "prompt": instruction,
                "input": text,
                **answers,
                "tokens_read": {
                    "base": read[0],
                    "in_context": read[1],
                    "adapted": read[0],
                    "adapted_in_context": read[1],
                },
                "adapter": {"seconds": seconds, "bytes": lora.nbytes, "rank": lora.rank, "projections": len(lora)},
            }
        )
        return
    table = Table(show_lines=True)
    table.add_column("who")
    table.add_column("tokens read", justify="right")
    table.add_column("answer", overflow="fold")
    table.add_row("base", str(read[0]), escape(answers["base"]))
    table.add_row("base, prompt in context", str(read[1]), escape(answers["in_context"]))
    table.add_row("adapted", str(read[0]), escape(answers["adapted"]))
    table.add_row("adapted, prompt in context", str(read[1]), escape(answers["adapted_in_context"]))
    out.print(table)
    err.print(f"adapter written in {seconds:.2f} s, {size(lora.nbytes)}", highlight=False)

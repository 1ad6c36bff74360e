"""``promptlora generate``: write the adapter of a prompt as a folder."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from promptlora.cli.console import (
    MOST_ROWS,
    Base,
    Device,
    Dtype,
    Force,
    Hypernetwork,
    Json,
    Prompt,
    PromptFile,
    load,
    out,
    print_json,
    print_next_steps,
    read_prompt,
    size,
    working,
)
from promptlora.errors import ConfigError
from promptlora.files import check_output
from promptlora.reading import is_file


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
    if output is None:  # the name does not depend on the base, so that a folder that exists is told before it is loaded
        with working("loading PyTorch and transformers"):
            from promptlora.adapt.prompt_lora import hypernetwork_label
            from promptlora.lora.origin import AdapterOrigin

            known = hypernetwork is None or is_file(Path(hypernetwork) / "model.safetensors")
            label = hypernetwork_label(hypernetwork) if known else hypernetwork
            output = Path(AdapterOrigin(text, (), in_context, label).folder_name)
    check_output(output, overwrite=overwrite)
    lm = load(hypernetwork, base, dtype, device, force, prompts=[text])
    with working("writing the adapter"):
        started = time.perf_counter()
        lora = lm.adapt(text, in_context=in_context)
        seconds = time.perf_counter() - started
        report = lora.save_peft(
            output,
            overwrite=overwrite,
            pad_rank=int(pad_rank) if pad_rank and pad_rank != "auto" else pad_rank,
            compress=compress,
            model=lm.model,
        )
    from promptlora.lora.peft.writing import WEIGHTS_FILE

    if json:
        values = {"output": str(output), "projections": len(lora), "seconds": seconds, **asdict(report)}
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in values.items()})
    else:
        weights = (output / WEIGHTS_FILE).stat().st_size
        out.print(
            f"{escape(str(output))}: rank {report.rank} for {len(lora)} projections, adapter written in {seconds:.2f} s; "
            f"{size(weights)} of weights, {size(report.bytes - weights)} of tokenizer and model card",
            highlight=False,
            soft_wrap=True,
        )
        if compress:
            out.print(f"relative error of the update: {report.relative_error:.2e}", highlight=False)
        print_next_steps(output)

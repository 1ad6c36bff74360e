"""``promptlora eval``: score base, base with the prompt in context, and adapters, with controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from promptlora.cli.console import (
    MOST_ROWS,
    MOST_TOKENS,
    Base,
    Device,
    Force,
    Hypernetwork,
    Json,
    err,
    finite,
    load,
    out,
    print_json,
    progress_bar,
    working,
)
from promptlora.files import check_output


def evaluate(
    data: Annotated[str, typer.Argument(help="JSONL, JSONL.gz, Parquet, a folder of them, or a dataset id.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for answers and report; goes on if it exists.")
    ],
    split: Annotated[str, typer.Option(help="Keep rows whose split is this; empty keeps all.")] = "eval",
    conditions: Annotated[
        str,
        typer.Option(
            help="Comma-separated: base, in_context, adapter, wrong_prompt, gibberish, mean_adapter, static, "
            "adapter_in_context."
        ),
    ] = "base,in_context,adapter,wrong_prompt,static",
    rows_per_task: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each task.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="Rows that run at once.")] = 50,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the wrong-prompt permutation and the bootstrap.")
    ] = 0,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0.0, callback=finite, help="Factor of the generated part; by default as the hypernetwork says."
        ),
    ] = None,
    vectors: Annotated[
        float | None,
        typer.Option(
            min=0.0, callback=finite, help="Factor of the function vectors; by default as the hypernetwork says."
        ),
    ] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(help="Output of an earlier evaluation whose base and in_context answers are taken over."),
    ] = None,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the base: float32 or bfloat16.")] = "float32",
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Score a hypernetwork on rows of tasks, with the wrong-prompt control; a killed run goes on where it stopped.

    Example: **promptlora eval heldout.jsonl.gz -o results/heldout**
    """
    check_output(output, reuse=True)
    with working("reading rows"):
        from promptlora import evaluate as evaluation
        from promptlora.data import first_of_each_task, read_rows

        rows = read_rows(data, split)
        if rows_per_task:
            rows = first_of_each_task(rows, rows_per_task)
    lm = load(hypernetwork, base, dtype, device, force, prompts=sorted({row.prompt for row in rows}))
    with progress_bar() as progress:
        bars = {}

        def show(condition: str, done: int, count: int) -> None:
            if condition not in bars:
                bars[condition] = progress.add_task(condition, total=count)
            progress.update(bars[condition], completed=done)

        try:
            report = evaluation.evaluate(
                lm,
                rows,
                output,
                conditions=[name.strip() for name in conditions.split(",")],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seed=seed,
                strength=strength,
                vectors=vectors,
                reuse=reuse,
                on_progress=show,
            )
        except KeyboardInterrupt:
            err.print(f"{output}: answers so far are kept; the same command goes on", highlight=False)
            raise
    if json:
        print_json(report.to_dict())
    else:
        out.print(Markdown(report.to_markdown()))

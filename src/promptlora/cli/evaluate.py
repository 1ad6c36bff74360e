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
    Dtype,
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
from promptlora.errors import OutputError
from promptlora.files import check_output


def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="JSONL, JSONL.gz, CSV, Parquet, a folder of them, or a dataset id; one or more."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder for answers and report; an existing one is resumed.")
    ],
    split: Annotated[str, typer.Option(help="Score the rows of this split; empty scores all rows.")] = "eval",
    conditions: Annotated[
        str,
        typer.Option(
            help="Comma-separated: base, in_context, in_context_examples, adapter, adapter_examples, wrong_prompt, "
            "gibberish, mean_adapter, static, static_in_context, adapter_in_context."
        ),
    ] = "base,in_context,adapter,wrong_prompt,static",
    examples: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Examples per prompt, from other rows of its task, in conditions with examples."
        ),
    ] = 3,
    rows_per_task: Annotated[int | None, typer.Option(min=1, help="Score only the first rows of each task.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="Rows per batch.")] = 50,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the controls, the examples and the bootstrap.")
    ] = 0,
    vectors: Annotated[
        float | None,
        typer.Option(
            min=0.0, callback=finite, help="Factor of the function vectors. Default: the setting of the hypernetwork."
        ),
    ] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(help="Output of an earlier evaluation, from which answers without an adapter are reused."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Recompute the scores of existing answers without loading a model.")
    ] = False,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Score a hypernetwork on rows of tasks, with controls; the same command resumes a stopped evaluation.

    Example: **promptlora eval heldout.jsonl.gz -o results/heldout**
    """
    if not output.strip():
        raise OutputError("output folder '': it is empty. Expected a path. Fix: pass a folder")
    check_output(Path(output), reuse=True)
    with working("reading rows"):
        from promptlora import evaluate as evaluation

        rows, other = evaluation.read_tasks(data, split, rows_per_task)
        if report:
            result = evaluation.rescore(rows, output, other=other)
            result.write(Path(output))
    if not report:
        lm = load(hypernetwork, base, dtype, device, force, prompts=sorted({row.prompt for row in rows}))
        with progress_bar() as progress:
            bars = {}

            def show(condition: str, done: int, count: int) -> None:
                if condition not in bars:
                    bars[condition] = progress.add_task(condition, total=count)
                progress.update(bars[condition], completed=done)

            try:
                result = evaluation.evaluate(
                    lm,
                    rows,
                    output,
                    other=other,
                    conditions=[name.strip() for name in conditions.split(",") if name.strip()],
                    examples=examples,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    seed=seed,
                    vectors=vectors,
                    reuse=reuse,
                    on_progress=show,
                )
            except KeyboardInterrupt:
                err.print(f"{output}: answers so far are kept; the same command resumes", highlight=False)
                raise
    if json:
        print_json(result.to_dict())
    else:
        out.print(Markdown(result.to_markdown()))

"""``promptlora refine``: write the adapters of prompts, then improve them with examples, or with inputs alone."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

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
    err,
    finite,
    load,
    print_json,
    print_next_steps,
    print_table,
    progress_bar,
    read_prompt,
    working,
)
from promptlora.errors import ConfigError, DataError
from promptlora.files import check_output, creating_folder
from promptlora.reading import read_text

if TYPE_CHECKING:
    from promptlora.adapt.refine import RefineStep
    from promptlora.lora import LoRAWeights

_TEXT_BYTES = 64 << 20
_SLUG = 40  # maximum number of characters of a prompt in its folder's name


def refine(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Examples: JSONL, JSONL.gz, CSV or Parquet with input and outputs, and prompt for several prompts."
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Inputs without outputs: a text file with one per line, or JSONL, CSV or Parquet with input (and prompt)."
        ),
    ] = None,
    make_inputs: Annotated[
        int | None,
        typer.Option(min=2, max=512, help="Let the base make up this many inputs; real ones are better."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=100_000, help="Most optimizer steps. Default: 24.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(min=0.0, max=10.0, callback=finite, help="Step size. Default: chosen for the adapter."),
    ] = None,
    rows_per_step: Annotated[
        int | None, typer.Option(min=1, max=MOST_ROWS, help="Rows per prompt in a step. Default: 4.")
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated starts that are compared for a few steps: given, static, zero. Default: given."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Who answers inputs: adapter (base with prompt in context and adapter) or base. Default: adapter."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the order of the rows.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that exists.")] = False,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Improve the adapter of a prompt with a few gradient steps, on examples or on inputs alone.

    With one prompt the output is a PEFT folder. Without --prompt the rows name their prompts; all adapters are refined
    together, and the output has one PEFT folder per prompt. Ctrl-C writes the best adapters so far.

    A line of rows.jsonl: **{"input": "Lunch is at 12:30.", "outputs": ["12:30"]}** (outputs holds every correct answer).

    Examples:
    **promptlora refine --prompt "Copy the time from the message." --rows rows.jsonl -o time/**

    **promptlora refine --prompt "Copy the time from the message." --inputs texts.txt -o time/**

    **promptlora refine --rows rows-of-many-prompts.jsonl -o adapters/**
    """
    if [rows, inputs, make_inputs].count(None) == 3:
        raise ConfigError("refine: no examples. Expected --rows FILE, --inputs FILE or --make-inputs N.")
    if inputs is not None and make_inputs is not None:
        raise ConfigError("refine: --inputs and --make-inputs. Expected one of them.")
    single = None
    if prompt is not None or prompt_file is not None:
        single = read_prompt(prompt, prompt_file)
    check_output(output, overwrite=overwrite)
    with working("reading rows"):
        prompts, learned, texts = _read(single, rows, inputs)
    if make_inputs is not None and single is None and not prompts:
        raise ConfigError('refine: --make-inputs without a prompt. Expected --prompt "…".')
    chosen: dict[str, Any] = {
        "steps": steps,
        "lr": lr,
        "rows_per_step": rows_per_step,
        "teacher": teacher,
        "starts": None if starts is None else tuple(name.strip() for name in starts.split(",") if name.strip()),
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    with working("loading PyTorch and transformers"):
        from promptlora.adapt.refine import RefineSettings, group_rows

        RefineSettings(seed=seed, **chosen)  # report wrong settings before the base is loaded
        if learned is not None:
            group_rows(prompts, learned)
    lm = load(hypernetwork, base, dtype, device, force, prompts=prompts)
    with working("writing the adapters" if len(prompts) > 1 else "writing the adapter"):
        given = lm.adapt(prompts)
    started = time.perf_counter()
    with progress_bar() as progress, warnings.catch_warnings(action="ignore"):
        bar = progress.add_task("preparing", total=None)

        def show(step: RefineStep) -> None:
            progress.update(bar, completed=step.step, total=step.steps, description=described(step))

        better = lm.refine(given, prompts, rows=learned, inputs=texts or make_inputs, seed=seed, on_step=show, **chosen)
    seconds = time.perf_counter() - started
    folders = _write(better, prompts, output, lm.model, overwrite)
    stopped = any(record["stopped"] for record in better.provenance)
    if json:
        records = [{**r, "output": str(f)} for r, f in zip(better.provenance, folders, strict=True)]
        print_json({"output": str(output), "seconds": seconds, "stopped": stopped, "adapters": records})
    else:
        _print(better, folders, seconds)
    for record in better.provenance:
        if record["note"]:
            err.print(
                f"{escape(record['prompt'].strip()[:40])}: {escape(record['note'])}", highlight=False, soft_wrap=True
            )
    if stopped:
        err.print(f"{escape(str(output))}: stopped; it holds the best so far", highlight=False, soft_wrap=True)
        raise typer.Exit(130)


def described(step: RefineStep) -> str:
    """The losses of a step for a progress bar, averaged over the prompts."""
    losses = [loss for loss in step.loss if loss is not None]
    kept = [loss for loss in step.kept_back if loss is not None]
    words = f"loss {fmean(losses):.3f}" if losses else "loss –"
    return f"{words}, kept back {fmean(kept):.3f}" if kept else words


def _read(
    prompt: str | None, rows: str | None, inputs: str | None
) -> tuple[list[str], list[Any] | None, list[list[str]] | None]:
    """Read the prompts, their rows, and the inputs of each prompt.

    Raises:
        DataError: A file cannot be used.
        ConfigError: Inputs come from a text file, but no prompt is given.
    """
    learned = None if rows is None else _rows(rows, prompt)
    if inputs is None:
        unlabelled = []
    elif inputs.endswith((".jsonl", ".jsonl.gz", ".csv", ".parquet")):
        unlabelled = _rows(inputs, prompt, labelled=False)
    else:
        if prompt is None:
            raise ConfigError(
                f"--inputs {inputs[:60]}: no prompt. Expected --prompt, or JSONL lines with input and prompt."
            )
        lines = [line.strip() for line in read_text(Path(inputs), DataError, longest=_TEXT_BYTES).splitlines()]
        return [prompt], learned, [[line for line in lines if line]]
    named = dict.fromkeys(row.prompt for row in [*(learned or []), *unlabelled])
    prompts = [prompt] if prompt is not None else list(named)
    texts = [[row.input for row in unlabelled if row.prompt == one] for one in prompts]
    return prompts, learned, texts if inputs is not None else None


def _rows(source: str, prompt: str | None, *, labelled: bool = True) -> list[Any]:
    from promptlora.data.rows import NoPromptError, read_rows

    try:
        return read_rows(source, labelled=labelled, prompt=prompt)
    except NoPromptError as error:
        raise DataError(f"{error}, or pass --prompt for all rows") from error


def _write(better: LoRAWeights, prompts: list[str], output: Path, model: Any, overwrite: bool) -> list[Path]:
    """Write one PEFT folder, or a folder with one PEFT folder per prompt."""
    if len(prompts) == 1:
        better.save_peft(output, overwrite=overwrite, model=model)
        return [output]
    names = [f"{number:03d}-{_slug(prompt)}" for number, prompt in enumerate(prompts)]
    with creating_folder(output, overwrite=overwrite) as folder:
        for number, name in enumerate(names):
            better.select(number).save_peft(folder / name, model=model)
    return [output / name for name in names]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_SLUG].strip("-") or "prompt"


def _print(better: LoRAWeights, folders: list[Path], seconds: float) -> None:
    records = better.provenance
    counted = "inputs" if any(record["inputs"] for record in records) else "rows"
    judged = any(record["loss_before"] is not None for record in records)
    table = Table(title=f"refined in {seconds:.0f} s")
    for name in ("adapter", counted, "best step", *(("kept-back loss before", "after") if judged else ())):
        table.add_column(name, justify="left" if name == "adapter" else "right", overflow="fold")
    for record, folder in zip(records, folders, strict=True):
        losses = ["–" if record[key] is None else f"{record[key]:.3f}" for key in ("loss_before", "loss_after")]
        table.add_row(escape(str(folder)), str(record[counted]), str(record["best_step"]), *losses[: 2 * judged])
    print_table(table)
    few = [record for record in records if not record["kept_back"] and not record["stopped"]]
    if few:
        from promptlora.adapt.refine.rows import KEEP_FROM

        which = "" if len(few) == len(records) else f" for {len(few)} of {len(records)} prompts"
        err.print(
            f"fewer than {KEEP_FROM} {counted}: nothing was kept back{which}, and nothing guards against memorising",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    print_next_steps(folders[0])

"""``promptlora teach``: cache a teacher's log-probabilities for context distillation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from promptlora.cli.console import Base, Device, Json, check_device, dtype_named, err, out, print_json, size, working
from promptlora.errors import ConfigError
from promptlora.files import check_output
from promptlora.reading import parse_json
from promptlora.signals import stopping

if TYPE_CHECKING:
    from promptlora.teacher import OnlineTeacher, VllmTeacher


def teach(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="JSONL, JSONL.gz, CSV, Parquet, a folder of them, or a dataset id.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache; an existing one is resumed.")],
    teacher: Annotated[
        str | None,
        typer.Option(help="Model with the base's tokenizer: folder or Hugging Face id. Default: the base."),
    ] = None,
    base: Base = None,
    split: Annotated[str, typer.Option(help="Use the rows of this split; empty uses all rows.")] = "train",
    rows_per_task: Annotated[
        int | None, typer.Option(min=1, help="Use only this many of the first rows of each task.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Most likely tokens to keep per position; the others share one bucket.")
    ] = 64,
    answers: Annotated[
        str,
        typer.Option(help="Answers to score: data for those of the rows, or teacher for the teacher's own (greedy)."),
    ] = "data",
    place: Annotated[str, typer.Option(help="Turn of the chat that holds the prompt: user or system.")] = "user",
    max_input_tokens: Annotated[int, typer.Option(min=1, help="Skip rows with a longer input.")] = 512,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Skip rows with a longer answer.")] = 256,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt, input and answer together. Default: the teacher's limit.")
    ] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rows per file; a kill loses at most this many.")] = 512,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows per batch. Default: 16, or 256 with vLLM.", show_default=False)
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs the teacher: transformers or vllm.")] = "transformers",
    vllm_python: Annotated[
        Path | None, typer.Option(help="Python of the environment that has vLLM. Default: .venv/vllm/bin/python.")
    ] = None,
    vllm_options: Annotated[str, typer.Option(help="More options of vllm.LLM, as a JSON object.")] = "{}",
    dtype: Annotated[
        str, typer.Option(help="Dtype of the teacher: float32 or bfloat16; its head is float32.")
    ] = "float32",
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: all cores.")] = None,
    json: Json = False,
) -> None:
    """Cache a teacher's log-probabilities of answers, with the prompt in its context, for distillation.

    The same command resumes a stopped run. Rows that are too long are skipped and counted, never truncated.

    Example: **promptlora teach train.jsonl.gz -o cache --rows-per-task 100**
    """
    options = _vllm_options(vllm_options)
    if backend not in ("transformers", "vllm"):
        raise ConfigError(f"--backend {backend}: expected transformers or vllm")
    torch_dtype = dtype_named(dtype)
    check_output(output, reuse=True)
    with ExitStack() as stack:
        stopped = stack.enter_context(stopping(at_once=True))
        with working("loading PyTorch and transformers") as say:
            import torch

            from promptlora import models
            from promptlora.data import first_of_each_task, read_rows
            from promptlora.teacher import (
                OnlineTeacher,
                TeachConfig,
                VllmTeacher,
                check_same_tokenizer,
            )
            from promptlora.teacher import teach as run

            if threads:
                torch.set_num_threads(threads)
            chosen: dict[str, Any] = {
                "top_k": top_k,
                "answers": answers,
                "place": place,
                "max_input_tokens": max_input_tokens,
                "max_answer_tokens": max_answer_tokens,
                "rows_per_shard": rows_per_shard,
            }
            TeachConfig(**chosen)  # report a wrong setting before anything is read
            say("reading rows")
            rows = read_rows(data, split, labelled=answers == "data")
            if rows_per_task:
                rows = first_of_each_task(rows, rows_per_task)
            name = teacher or base or models.EMBEDDED
            config = TeachConfig(**chosen, max_tokens=max_tokens or _longest(models.load_config(name, say), backend))
            model, tokenizer = models.load_base(
                name, dtype=torch_dtype, device="cpu" if backend == "vllm" else check_device(device), progress=say
            )
            student = tokenizer
            if name != (base or models.EMBEDDED):
                student = models.load_tokenizer(base, progress=say)
                check_same_tokenizer(tokenizer, student)
            fingerprint = {"name": name, **models.base_fingerprint(model)}
            asked: OnlineTeacher | VllmTeacher
            if backend == "vllm":
                del model  # it was only loaded for its fingerprint
                folder = models.embedded_folder(say) if name == models.EMBEDDED else name
                asked = stack.enter_context(
                    VllmTeacher(
                        folder,
                        tokenizer,
                        python=vllm_python,
                        top_k=top_k,
                        max_tokens=config.max_tokens,
                        dtype=dtype,
                        batch_size=batch_size or 256,
                        threads=threads,
                        options=options,
                    )
                )
            else:
                asked = OnlineTeacher(model, tokenizer, batch_size=batch_size or 16)
        with _bars() as show:

            def progress(stage: str, done: int, count: int) -> None:
                show(stage, done, count)
                if stopped():
                    raise KeyboardInterrupt

            try:
                taught = run(asked, student, rows, output, config, fingerprint=fingerprint, on_progress=progress)
            except KeyboardInterrupt:
                err.print(f"{output}: finished shards are kept; the same command goes on", highlight=False)
                raise
    if json:
        print_json(vars(taught))
        return
    left = ", ".join(f"{count} {name}" for name, count in taught.left_out.items() if count)
    out.print(
        f"{taught.output}: {taught.rows} rows, {taught.answer_tokens} answer tokens, {taught.shards} shards "
        f"({taught.shards_written} written now), {size(taught.bytes)}; left out: {left or 'none'}",
        highlight=False,
        soft_wrap=True,
    )
    if taught.rows_file:
        out.print(f"train on {taught.rows_file}: the rows with the teacher's answers", highlight=False, soft_wrap=True)


def _vllm_options(text: str) -> dict[str, Any]:
    options = parse_json(text, "--vllm-options", ConfigError)
    if not isinstance(options, dict):
        raise ConfigError(f'--vllm-options {text[:80]}: expected a JSON object, such as {{"tensor_parallel_size": 2}}')
    return options


def _longest(config: Any, backend: str) -> int:
    """Maximum number of tokens that a teacher accepts; vLLM needs room for one generated token."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 4096) - (backend == "vllm")


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """One progress bar per stage, with rows per second and the remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        bars: dict[str, tuple[TaskID, int, float]] = {}

        def show(stage: str, done: int, count: int) -> None:
            if stage not in bars:
                text = "answers" if stage == "answers" else "log-probabilities"
                bars[stage] = progress.add_task(text, total=count, completed=done, speed=""), done, time.monotonic()
            bar, first, started = bars[stage]
            seconds = time.monotonic() - started
            speed = f"{(done - first) / seconds:.1f} rows/s" if done > first else ""
            progress.update(bar, completed=done, speed=speed)

        yield show

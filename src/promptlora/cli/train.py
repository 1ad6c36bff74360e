"""``promptlora train``: train a hypernetwork as a TOML file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from promptlora.cli.console import Json, err, out, print_json, working


def train(
    config: Annotated[Path, typer.Argument(help="A TOML configuration; see configs/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint of the output.")
    ] = False,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step, with a checkpoint.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default all cores.")] = None,
    json: Json = False,
) -> None:
    """Train a hypernetwork: progress, checkpoints, TensorBoard, and the trained folder `final/` at the end.

    Ctrl-C finishes the step and writes a checkpoint; --resume goes on to the same losses as without the stop.

    Example: **promptlora train configs/shipped.toml**
    """
    from promptlora.config import TrainConfig, load_toml

    values = load_toml(TrainConfig, config)  # a wrong file is told before anything is loaded
    with working("loading PyTorch and transformers") as say:
        import torch

        from promptlora.training import StepMetrics, Trainer

        if threads:
            torch.set_num_threads(threads)
        lines: list[str] = []

        def note(line: str) -> None:
            say(line)
            lines.append(line)

        trainer = Trainer(values, progress=note)
    for line in lines:
        err.print(line, highlight=False)
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    last: dict[str, float | None] = {}
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("", total=until or values.steps, shown="")

        def show(metrics: StepMetrics) -> None:
            margin = last.get("margin") if metrics.margin is None else metrics.margin
            last.update(vars(metrics), margin=margin)
            text = f"loss {metrics.loss:.3f}  {metrics.tokens_per_second:.0f} tok/s"
            if margin is not None:
                text += f"  margin {margin:+.3f}"
            progress.update(bar, completed=metrics.step, shown=text)

        try:
            path = trainer.run(resume=resume, on_step=show, until=until)
        except KeyboardInterrupt:
            err.print(f"stopped at step {trainer.step} with a checkpoint; go on with --resume", highlight=False)
            raise
    if json:
        print_json({"output": str(path), **last})
    else:
        out.print(f"{path}: step {trainer.step}", highlight=False)

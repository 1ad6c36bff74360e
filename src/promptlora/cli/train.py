"""``promptlora train``: train a hypernetwork as a TOML file says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from promptlora.cli.console import Json, err, finite, out, print_json, working
from promptlora.files import check_output

if TYPE_CHECKING:
    from promptlora.train import Trainer

_SHOWN = {"margin": "margin", "gibberish_margin": "gibberish", "mean_margin": "mean", "validation_loss": "held out"}


def train(
    config: Annotated[Path, typer.Argument(help="A TOML configuration; see configs/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint of the output.")
    ] = False,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step with a checkpoint.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, callback=finite, help="Stop after this many minutes with a checkpoint; continue with --resume."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: all cores.")] = None,
    json: Json = False,
) -> None:
    """Train a hypernetwork; writes checkpoints, TensorBoard logs, and the trained hypernetwork in `final/`.

    Ctrl-C finishes the step and writes a checkpoint; --resume continues with the losses of an uninterrupted run. Several
    processes share each batch: **torchrun --nproc_per_node=2 -m promptlora train configs/shipped.toml**

    Example: **promptlora train configs/shipped.toml**
    """
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    from promptlora.settings import load_toml
    from promptlora.train.config import TrainConfig

    values = load_toml(TrainConfig, config)  # a wrong file is told before anything is loaded
    check_output(Path(values.output), reuse=True)
    with working("loading PyTorch and transformers") as say:
        import torch

        from promptlora.train import StepMetrics, Trainer

        if threads:
            torch.set_num_threads(threads)
        lines: list[str] = []

        def note(line: str) -> None:
            if first:
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
    warned = False
    with Progress(*columns, console=err, disable=not first) as progress:
        bar = progress.add_task("", total=until or values.steps, shown="")

        def show(metrics: StepMetrics) -> None:
            nonlocal warned
            last.update({name: value for name, value in vars(metrics).items() if value is not None})
            text = f"loss {metrics.loss:.3f}  {metrics.tokens_per_second:.0f} tok/s"
            for name, title in _SHOWN.items():
                if name in last:
                    text += f"  {title} {last[name]:+.3f}"
            progress.update(bar, completed=metrics.step, shown=text)
            if first and trainer.warning and not warned:
                warned = True
                progress.console.print(f"[yellow]warning:[/] {escape(trainer.warning)}", highlight=False)

        try:
            path = trainer.run(resume=resume, on_step=show, until=until, minutes=minutes)
        except KeyboardInterrupt:  # of all processes at once, after the same step
            err.print(f"stopped at step {trainer.step} with a checkpoint; go on with --resume", highlight=False)
            _leave_together(trainer)
            raise
    _leave_together(trainer)
    if not first:
        return
    if json:
        print_json({"output": str(path), "processes": trainer.accelerator.num_processes, **last})
    else:
        out.print(f"{path}: step {trainer.step}", highlight=False)


def _leave_together(trainer: Trainer) -> None:
    """End the processes' group when none of its threads holds anything of Python any more.

    A thread of gloo lets go of the tensors of its last sum a moment after the sum is there, and needs the GIL for it. A
    process that leaves before is aborted (pytorch/pytorch#190489), and a group that is ended before waits for ever for a
    thread that waits for the GIL (pytorch/pytorch#179291). Sleeping hands the GIL over.
    """
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.wait_for_everyone()
        time.sleep(1)
        trainer.accelerator.end_training()

"""``promptlora train``: train a hypernetwork from a TOML configuration."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptlora.cli.console import Json, err, finite, out, print_json, working
from promptlora.files import check_output

if TYPE_CHECKING:
    from promptlora.train import Trainer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML configuration; see configs/.")],
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
    first = os.environ.get("RANK", "0") == "0"  # with several processes, only the first one prints
    from promptlora.errors import ConfigError
    from promptlora.settings import load_toml
    from promptlora.train.config import TrainConfig, check_sources

    values = load_toml(TrainConfig, config)  # a wrong file is reported before anything is loaded
    try:
        check_sources(values)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    check_output(Path(values.output), reuse=True)
    with working("loading PyTorch and transformers") as say:
        import torch

        from promptlora.cli.training_bar import TrainingBar
        from promptlora.train import Trainer

        if threads:
            torch.set_num_threads(threads)
        lines: list[str] = []
        trainer: Trainer | None = None

        def note(line: str) -> None:
            if first and trainer is None:
                say(line)
                lines.append(line)
            elif first:  # a stage after the last step
                err.print(line, highlight=False)

        bar = TrainingBar(until or values.steps, shown=first)
        trainer = Trainer(values, callbacks=[bar], progress=note)
    for line in lines:
        err.print(line, highlight=False)
    try:
        path = trainer.run(resume=resume, until=until, minutes=minutes)
    except KeyboardInterrupt:  # raised in all processes after the same step
        err.print(f"stopped at step {trainer.step} with a checkpoint; continue with --resume", highlight=False)
        _leave_together(trainer)
        raise
    _leave_together(trainer)
    if not first:
        return
    if json:
        print_json({"output": str(path), "processes": trainer.accelerator.num_processes, **bar.last})
    else:
        out.print(f"{path}: step {trainer.step}", highlight=False)


def _leave_together(trainer: Trainer) -> None:
    """End the process group once none of its threads holds a Python object any more.

    A gloo thread releases the tensors of its last sum shortly after the sum is available, and needs the GIL for this. A
    process that exits before that is aborted (pytorch/pytorch#190489), and destroying the group before that deadlocks
    with the thread that waits for the GIL (pytorch/pytorch#179291). Sleeping releases the GIL.
    """
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.wait_for_everyone()
        time.sleep(1)
        trainer.accelerator.end_training()

"""Runs many training runs and evaluations, one after another or two at a time, and skips those that are done.

Each job is a ``promptlora`` command in its own process that can resume, so a queue that was stopped or killed continues
where it was. Results are read from the files that the commands write.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from promptlora.errors import ConfigError, PromptLoRAError
from promptlora.files import replacing_file
from promptlora.settings import from_dict, load_toml, save_toml
from promptlora.train.config import TrainConfig
from promptlora.train.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

console = Console(stderr=True)
RESULTS = Path(__file__).parent / "results"


@dataclass
class Job:
    """A command, a test of whether it is done, and the jobs that must be done before it."""

    name: str
    command: list[str]
    done: Callable[[], bool]
    after: list[Job] = field(default_factory=list)


def merged(*tables: dict[str, Any]) -> dict[str, Any]:
    """Merge nested tables; later ones override earlier ones."""
    result: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def training(name: str, folder: Path, values: dict[str, Any]) -> Job:
    """The job that trains a configuration into ``folder/name``."""
    config = from_dict(TrainConfig, {**values, "output": str(folder / name)})
    path = folder / f"{name}.toml"
    save_toml(config, path)
    command = ["train", str(path), "--resume", "--json"]
    return Job(f"train {name}", command, (folder / name / "final" / "config.json").is_file)


def promptlora(command: Sequence[str]) -> list[str]:
    """The command line of a ``promptlora`` command in this environment."""
    return [sys.executable, "-m", "promptlora", *command]


def work(jobs: Sequence[Job], workers: int, log: Path) -> bool:
    """Run the remaining jobs; True if all are done, False if some failed or the queue was asked to stop."""
    log.mkdir(parents=True, exist_ok=True)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    waiting = [job for job in jobs if not job.done()]
    console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are done already")
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    failed: list[str] = []
    while (waiting or running) and not asked:
        ready = [job for job in waiting if all(before.done() for before in job.after)]
        while ready and len(running) < workers:
            job = ready.pop(0)
            waiting.remove(job)
            with (log / f"{job.name.replace(' ', '-')}.log").open("ab") as output:
                # One thread per job: two busy OpenMP threads on a busy core would wait for each other.
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(promptlora(job.command), stdout=output, stderr=output, env=environment)
            running[job.name] = job, process, time.time()
            console.print(f"{time.strftime('%H:%M')} {job.name}", highlight=False)
        if not running:
            break  # the remaining jobs depend on failed ones
        time.sleep(1)
        for name, (job, process, started) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            minutes = (time.time() - started) / 60
            if process.returncode or not job.done():
                failed.append(name)
                console.print(f"[red]{name}: exit code {process.returncode}; see {log}[/]", highlight=False)
            else:
                console.print(f"{time.strftime('%H:%M')} {name}: done in {minutes:.0f} min", highlight=False)
    for _, process, _ in running.values():  # each job finishes its step and writes a checkpoint
        process.send_signal(signal.SIGINT)
    for _, process, _ in running.values():
        process.wait()
    return not (failed or waiting or asked)


def told(main: Callable[[], int]) -> int:
    """The exit code of a benchmark: 2 with one line for bad input, 130 with one line for Ctrl-C."""
    try:
        return main()
    except PromptLoRAError as error:
        console.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; nothing was written", highlight=False)
        return 130


def positive(text: str) -> int:
    """Parse an option that is a positive count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of 1 or more")
    return int(text)


def folder(text: str) -> Path:
    """Parse an argument that is a folder with data."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder; expected one with the files of the data")
    return Path(text)


def argument_parser(about: str | None, data: str) -> argparse.ArgumentParser:
    """Options of a benchmark that runs a queue of jobs."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=folder, help=data)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--workers", type=positive, default=2, help="jobs at a time, one thread each (default 2)")
    parser.add_argument("--only", nargs="*", help="jobs whose name holds one of these texts")
    parser.add_argument("--report", action="store_true", help="write the table of what is done, run nothing")
    return parser


def heldout_parser(about: str | None, output: Path) -> argparse.ArgumentParser:
    """Options of a benchmark that measures a hypernetwork on the tasks that its configuration holds out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration of the hypernetwork, with validation.tasks")
    parser.add_argument("--hypernetwork", type=Path, help="its folder; by default the shipped one")
    parser.add_argument("-o", "--output", type=Path, default=output, help="JSON file")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    return parser


def heldout_config(path: Path) -> TrainConfig:
    """Read a configuration that holds tasks out of training.

    Raises:
        ConfigError: It cannot be read, or holds out no tasks.
    """
    config = load_toml(TrainConfig, path)
    if not config.validation.tasks:
        raise ConfigError(f"{path}: validation.tasks is 0. Expected held-out tasks. Fix: set it.")
    return config


def slug(name: str) -> str:
    """The folder name of a run."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def last_measured(run: Path, columns: Iterable[str]) -> dict[str, float]:
    """The mean training loss of the last 20 steps of a run, and the last value of each column that it has."""
    lines = read_metrics(run)
    last = {key: value for line in lines for key, value in line.items()}
    return {
        "training_loss_last_20": fmean(line["loss"] for line in lines[-20:]),
        **{key: last[key] for key in columns if key in last},
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write results atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG atomically, with the same bytes each time."""
    from matplotlib import rc_context  # imported here, so that a GPU machine that draws nothing does not need it

    with rc_context({"svg.hashsalt": "promptlora"}), replacing_file(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def read_results(name: str) -> dict[str, Any]:
    """Read the results of :func:`write_results`; empty if there are none."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_results(name: str, values: dict[str, Any], table: str, done: int, all_: int) -> None:
    """Write ``results/NAME.json`` and ``.md``."""
    write_json(RESULTS / f"{name}.json", values)
    with replacing_file(RESULTS / f"{name}.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    console.print(f"{done} of {all_} rows: {RESULTS / name}.md", highlight=False)

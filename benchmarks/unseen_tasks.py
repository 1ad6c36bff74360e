"""The main result: adapters of prompts never seen in training, against the strongest baselines, on 75 held-out tasks.

``python benchmarks/unseen_tasks.py --data DATA/instructions/heldout.jsonl.gz DATA/tasks/heldout.jsonl.gz
--hypernetworks seed0=RUN seed1=RUN --multitask seed0=RUN seed1=RUN -o runs/unseen --device cuda``

Rows with split ``eval`` are answered by the base, by each hypernetwork and by each multi-task LoRA, under all
conditions of the table. Rows of other splits are used as examples and for the second constant answer. Runs are folders
of finished hypernetworks (or of training runs that contain ``final``); nothing is trained here. Everything runs in one
process with one base; use ``--batch-size 512`` on a GPU. ``--oracle`` takes a folder with one LoRA per task,
``--wordings`` files with further wordings of the prompts, and ``--by-tasks`` runs with fewer or more training tasks,
for ``docs/figures/unseen-by-tasks.svg``. A benchmark that was stopped, by Ctrl-C or by ``--minutes``, resumes from its
answers; ``--report`` writes the table of the evaluations that are done. Results:
``benchmarks/results/unseen_tasks.json``, ``.md``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.data import Row, read_paraphrases
from promptlora.errors import ConfigError
from promptlora.evaluate import complete_answers, evaluate, read_tasks
from promptlora.hypernet.network import HyperNetwork
from promptlora.models import load_base
from runs import console, positive, told, write_results
from unseen_report import draw_by_tasks, markdown
from unseen_table import BY_TASKS, REWORDED, TABLE, WORDINGS, report, reworded, slug

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "unseen-by-tasks.svg"


@dataclass(frozen=True)
class Job:
    """One evaluation: its output folder, hypernetwork, conditions and rows."""

    name: str
    network: Path
    conditions: tuple[str, ...]
    rows: Sequence[Row] = field(repr=False)

    def done(self, folder: Path) -> bool:
        """Whether all its answers exist."""
        if not (folder / self.name / "answers.jsonl").is_file():
            return False
        _, answers = complete_answers(self.rows, folder / self.name)
        return all(condition in answers for condition in self.conditions)


class OutOfTimeError(Exception):
    """The time limit has been reached."""


def conditions_of(kind: str, table: dict[str, tuple[str, str]] = TABLE) -> tuple[str, ...]:
    """The conditions that a table uses for a kind of run."""
    return tuple(condition for of, condition in table.values() if of == kind)


def make_jobs(options: argparse.Namespace, rows: list[Row], wordings: dict[str, list[str]]) -> Iterator[Job]:
    """All evaluations: the base, each run, each task's oracle, and each wording."""
    networks = [("hypernetwork", *pair) for pair in options.hypernetworks]
    networks += [("multitask", *pair) for pair in options.multitask]
    if not networks:
        raise ConfigError("--hypernetworks: none were given. Expected NAME=FOLDER, one or more, or --report")
    everything = [("base", "", networks[0][2]), *networks]
    for kind, name, network in everything:
        yield Job(f"{kind}/{name}".rstrip("/"), network, conditions_of(kind), rows)
    for name, network in options.by_tasks:
        yield Job(f"by-tasks/{name}", network, BY_TASKS, rows)
    if options.oracle is not None:
        for task in dict.fromkeys(row.task for row in rows):
            network = finished(options.oracle / slug(task))
            if network is not None:
                yield Job(f"oracle/{slug(task)}", network, conditions_of("oracle"), [r for r in rows if r.task == task])
    for number in range(1, WORDINGS if wordings else 1):
        members = reworded(rows, wordings, number)
        for kind, name, network in everything if members else ():
            yield Job(f"wordings/{number}/{kind}/{name}".rstrip("/"), network, conditions_of(kind, REWORDED), members)


def finished(folder: Path) -> Path | None:
    """The hypernetwork in a folder: the folder itself, or its ``final``; None if there is none."""
    return next((path for path in (folder, folder / "final") if (path / "config.json").is_file()), None)


def named_network(text: str) -> tuple[str, Path]:
    """Parse an argument ``NAME=FOLDER``."""
    name, _, path = text.partition("=")
    network = finished(Path(path))
    if not name or not path or slug(name) != name:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=FOLDER, a name of letters and digits")
    if network is None:
        raise argparse.ArgumentTypeError(f"{path}: no config.json; expected the folder of a finished hypernetwork")
    return name, network


def counted_network(text: str) -> tuple[str, Path]:
    """Parse an argument ``COUNT=FOLDER`` or ``COUNT-NAME=FOLDER``."""
    if not text.partition("=")[0].partition("-")[0].isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected COUNT=FOLDER or COUNT-NAME=FOLDER, such as 120-seed1=RUN")
    return named_network(text)


def work(jobs: Sequence[Job], options: argparse.Namespace, other: Sequence[Row], until: float) -> None:
    """Run evaluations one after another on one base.

    Raises:
        OutOfTimeError: The time limit has been reached; existing answers are kept.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    model, tokenizer = load_base(options.base, dtype=dtype, device=options.device, progress=console.print)
    for job in jobs:
        lm = PromptLoRA(model, tokenizer, HyperNetwork.from_pretrained(job.network))
        started = time.monotonic()

        def told_of(condition: str, done: int, count: int, name: str = job.name, started: float = started) -> None:
            if done == count:
                console.print(f"{name}: {condition} done, {time.monotonic() - started:.0f} s", highlight=False)
            if time.monotonic() > until:
                raise OutOfTimeError

        try:
            evaluate(
                lm, job.rows, options.output / job.name, other=other, conditions=job.conditions,
                max_new_tokens=options.max_new_tokens, batch_size=options.batch_size, on_progress=told_of,
            )  # fmt: skip
        finally:
            lm.close()


def groups_of(sources: Sequence[str], rows_per_task: int | None) -> dict[str, list[str]]:
    """Map a short name of each data file to its tasks."""
    names = [Path(source).parent.name or Path(source).name for source in sources]
    if len(set(names)) < len(names):
        names = [Path(source).name.partition(".")[0] for source in sources]
    groups: dict[str, list[str]] = defaultdict(list)
    for name, source in zip(names, sources, strict=True):
        groups[name] += dict.fromkeys(row.task for row in read_tasks([source], "eval", rows_per_task)[0])
    return dict(groups)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="files with held-out tasks; rows with split=eval count"
    )
    parser.add_argument("--hypernetworks", nargs="*", type=named_network, default=[], metavar="NAME=FOLDER")
    parser.add_argument("--multitask", nargs="*", type=named_network, default=[], metavar="NAME=FOLDER")
    parser.add_argument("--oracle", type=Path, help="folder with one LoRA per task, TASK or TASK/final")
    parser.add_argument("--wordings", nargs="*", default=[], help="JSONL of {task, prompts}: further wordings")
    parser.add_argument(
        "--by-tasks", nargs="*", type=counted_network, default=[], metavar="COUNT=FOLDER",
        help="runs by number of training tasks; COUNT-NAME for several of one number",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--results", default="unseen_tasks", help="name of the result files in benchmarks/results")
    parser.add_argument("--base", help="base model: folder or id; by default the embedded one")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, …")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=positive, default=64, help="rows that run at once (default 64)")
    parser.add_argument("--max-new-tokens", type=positive, default=32, help="longest answer (default 32)")
    parser.add_argument("--rows-per-task", type=positive, help="only the first rows of each task, for a quick look")
    parser.add_argument("--minutes", type=positive, help="stop after this time; the same command resumes")
    parser.add_argument("--only", nargs="*", help="evaluations whose name holds one of these texts")
    parser.add_argument("--report", action="store_true", help="write the table of what is done, run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    rows, other = read_tasks(options.data, "eval", options.rows_per_task)
    tasks = list(dict.fromkeys(row.task for row in rows))
    wordings: dict[str, list[str]] = defaultdict(list)
    for path in options.wordings:
        for task, prompts in read_paraphrases(path, tasks).items():
            wordings[task] += prompts
    whole = True
    if not options.report:
        jobs = [job for job in make_jobs(options, rows, wordings) if not job.done(options.output)]
        jobs = [job for job in jobs if not options.only or any(text in job.name for text in options.only)]
        console.print(f"{len(jobs)} evaluations are left")
        until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
        try:
            if jobs:
                work(jobs, options, other, until)
        except OutOfTimeError:
            console.print(f"stopped after {options.minutes} minutes; the same command resumes", highlight=False)
            whole = False
    values: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/unseen_tasks.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "runs": {kind: {name: str(path) for name, path in pairs} for kind, pairs in (("hypernetwork", options.hypernetworks), ("multitask", options.multitask))},
        **report(options.output, rows, other, groups_of(options.data, options.rows_per_task), wordings),
    }  # fmt: skip
    if values["by_training_tasks"]:
        draw_by_tasks(values, FIGURE)
    done = len(values["results"])
    write_results(options.results, values, markdown(values), done, len(TABLE))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(told(main))

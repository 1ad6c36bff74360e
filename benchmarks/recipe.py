"""Short runs of the shipped recipe, each with one choice changed: kind of head, number of tasks, a teacher.

``python benchmarks/recipe.py configs/shipped.toml -o runs/recipe --workers 3``

Core heads are compared with free ones of the same rank over three seeds, one seed each of 30, 120 and all collected
tasks with all tasks including the synthetic ones, and the rows' own answers with a loss that is half divergence from
the reader with the prompt in its context. All runs take the same steps and are measured on the same tasks, whole categories held out of
training: the loss with the right prompt's adapter, with another's, with the static part alone, and with the prompt in
the context too. The data, the reader and the batch are those of the configuration; on a CPU use ``--prompts 8 --rows 2
--steps 80 --validation-rows 4``, about a quarter of an hour a run. A stopped queue resumes. Results:
``benchmarks/results/recipe.json``, ``.md`` and ``docs/figures/recipe-tasks.svg``, the losses by number of tasks.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from promptlora.errors import ConfigError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.settings import to_dict
from promptlora.train.config import TrainConfig
from promptlora.train.metrics import METRICS_FILE, read_metrics
from runs import heldout_config, last_measured, merged, positive, save_svg, slug, told, training, work, write_results

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "recipe-tasks.svg"

CORE: dict[str, Any] = {"hypernetwork": {"head": "core"}}
FREE: dict[str, Any] = {"hypernetwork": {"head": "full"}}
COLUMNS = {
    "validation_loss": "adapter", "validation_wrong": "another prompt's adapter",
    "validation_static": "static part alone", "validation_in_context": "adapter and prompt in context",
}  # fmt: skip


def variants(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Name to the settings that differ from the configuration."""
    heads = {
        f"{name}, seed {seed}": merged(head, {"seed": seed})
        for seed in (0, 1, 2)
        for name, head in (("core", CORE), ("free", FREE))
    }
    counted = config.validation.sources or len(config.data.sources)
    left_out = tuple(Path(source).name.partition(".")[0] for source in config.data.sources[counted:])
    collected: dict[str, Any] = {
        "train": config.data.sources[:counted],
        "weights": list(config.data.weights[:counted]),
        # The wordings of a source are in a file that is named after it.
        "paraphrases": [
            file for file in config.data.wording_files if not Path(file).name.startswith(left_out or ("/",))
        ],
    }
    # Exchanged label words are further tasks, so with them the number of tasks would not be the number of collected ones.
    plain = merged(CORE, {"data": {**collected, "exchange_labels": False}, "seed": 0})
    tasks = {f"{count} tasks, seed 0": merged(plain, {"data": {"tasks": count}}) for count in (30, 120)}
    teacher = {"objective": "distill", "distill": {"adapter": config.reader, "sft_share": 0.5}}
    return {
        **heads,
        **tasks,
        "all collected tasks, seed 0": plain,
        "core, half the loss from the reader, seed 0": merged(CORE, teacher, {"seed": 0}),
    }


def free_reader(reader: Path, folder: Path) -> Path:
    """Write the same reader with an A and a B per projection, which a hypernetwork with free heads requires."""
    network = HyperNetwork.from_pretrained(reader)
    free = replace(network.config, head="full", bound_start=HyperNetworkConfig().bound_start)
    written = HyperNetwork(free, network.projections, network.state_size, network.base)
    ours, theirs = network.generator, written.generator
    with torch.no_grad():
        for key, core in ours.static_C.items():
            theirs.static_A[key].copy_(ours.factor_A[key])
            theirs.static_B[key].copy_(core @ ours.factor_B[key])
    written.save_pretrained(folder, overwrite=True)
    return folder


def measured(run: Path, steps: int) -> bool:
    """Whether a run was measured at its last step; writing its hypernetwork comes after that and is not needed here."""
    if not (run / METRICS_FILE).is_file():
        return False
    last = read_metrics(run)[-1]
    return last["step"] == steps and "validation_loss" in last


def report(folder: Path, names: dict[str, dict[str, Any]], steps: int) -> dict[str, Any]:
    """The measurements at the last step of each run that has them."""
    done = [name for name in names if measured(folder / slug(name), steps)]
    return {name: last_measured(folder / slug(name), COLUMNS) for name in done}


def markdown(rows: dict[str, Any]) -> str:
    """One line per run, and the means of the kinds of head with three seeds."""
    lines = [f"| run | training | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * (1 + len(COLUMNS))]
    shown = {name: [row] for name, row in rows.items()}
    for kind in ("core", "free"):
        several = [row for name, row in rows.items() if name.startswith(f"{kind}, seed")]
        if len(several) == 3:
            shown[f"{kind}, mean of 3 seeds"] = several
    for name, several in shown.items():
        keys = ["training_loss_last_20", *COLUMNS]
        cells = [f"{fmean(row[key] for row in several):.3f}" if key in several[0] else "" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# Runs by the number of tasks, with the label of each: the last one is the shipped recipe itself.
BY_TASKS = {
    "30 tasks, seed 0": "30", "120 tasks, seed 0": "120", "all collected tasks, seed 0": "all collected",
    "core, seed 0": "with synthetic ones\nand exchanged labels",
}  # fmt: skip


def draw_by_tasks(rows: dict[str, Any]) -> None:
    """Draw the losses on the held-out tasks by number of training tasks, one run each."""
    from matplotlib.figure import Figure  # imported here, so that a GPU machine that only trains does not need it

    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for key, label in COLUMNS.items():
        axes.plot(list(BY_TASKS.values()), [rows[name][key] for name in BY_TASKS], "o-", label=label)
    axes.set_xlabel("training tasks (one run each)")
    axes.set_ylabel("loss on held-out tasks (nats)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_svg(figure, FIGURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration whose recipe is varied")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=positive, default=300, help="steps of each run (default 300)")
    parser.add_argument("--prompts", type=positive, help="prompts per batch; by default those of the configuration")
    parser.add_argument("--rows", type=positive, help="rows per prompt; by default those of the configuration")
    parser.add_argument(
        "--validation-rows", type=positive, help="rows per held-out task, by default the configuration's"
    )
    parser.add_argument("--workers", type=positive, default=1, help="runs at a time, one thread each (default 1)")
    parser.add_argument("--only", nargs="*", help="runs whose name holds one of these texts")
    parser.add_argument("--report", action="store_true", help="write the table of what is done, run nothing")
    options = parser.parse_args()
    config = heldout_config(options.config)
    if not config.reader:
        raise ConfigError(f"{options.config}: reader=''. Expected a reader. Fix: use configs/shipped.toml.")
    short: dict[str, Any] = {
        "steps": options.steps, "margin_every": options.steps, "checkpoint_every": 25, "keep_checkpoints": 1,
        "prompts_per_batch": options.prompts or config.prompts_per_batch,
        "rows_per_prompt": options.rows or config.rows_per_prompt,
        "validation": {"every": options.steps, "rows": options.validation_rows or config.validation.rows},
    }  # fmt: skip
    named = variants(config)
    whole = True
    if not options.report:
        chosen = [name for name in named if not options.only or any(text in name for text in options.only)]
        states = {"prompt_states": str(options.output / "prompt-states")}  # the runs read many of the same prompts
        jobs = []
        for name in chosen:
            own = dict(states)
            if named[name].get("hypernetwork") == FREE["hypernetwork"]:
                own["reader"] = str(free_reader(Path(config.reader), options.output / "free-reader"))
            job = training(slug(name), options.output, merged(to_dict(config), short, own, named[name]))
            jobs.append(replace(job, done=partial(measured, options.output / slug(name), options.steps)))
        whole = work(jobs, options.workers, options.output / "logs")
    rows = report(options.output, named, options.steps)
    if all(name in rows for name in BY_TASKS):
        draw_by_tasks(rows)
    values = {"config": options.config.name, "short": short, "variants": {n: named[n] for n in rows}, "results": rows}
    write_results("recipe", values, markdown(rows), len(rows), len(named))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(told(main))

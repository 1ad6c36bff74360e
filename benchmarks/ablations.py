"""The effect of each design choice: short runs that differ from a reference in one setting, measured on held-out tasks.

``python benchmarks/ablations.py DATA/instructions -o runs/ablations``

Every run trains on the same tasks, without some whole categories (the same ones for all runs). It ends with the loss on
rows of those categories: with the right adapter, with another task's adapter, and with only the static part. The table
is written to ``benchmarks/results/ablations.json`` and ``.md``, and the losses by number of training tasks to
``docs/figures/training-tasks.svg``. A stopped run resumes, and variants that the result file already holds with the
same settings are not trained again. ``--report`` writes the table of the runs that are done.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from promptlora.data import hold_out, read_rows
from promptlora.hypernet.config import HEAD_KINDS
from runs import (
    argument_parser,
    last_measured,
    merged,
    read_results,
    save_svg,
    slug,
    told,
    training,
    work,
    write_results,
)

STEPS = 160
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "training-tasks.svg"

REFERENCE: dict[str, Any] = {
    "steps": STEPS, "prompts_per_batch": 8, "rows_per_prompt": 2, "base_dtype": "bfloat16", "attention": "eager",
    "margin_every": 40, "checkpoint_every": 40, "keep_checkpoints": 1,
    "optim": {"lr": 8e-4, "head_lr_factor": 8.0, "static_lr": 8e-4, "warmup": 0.05},
    "validation": {"tasks": 16, "rows": 6, "every": STEPS},
}  # fmt: skip

SHOWN: dict[str, Any] = {"optim": {"lr": 4e-4}, "data": {"in_context_share": 0.5}}  # as in unseen_tasks.py
LAYER_10: dict[str, Any] = {"hypernetwork": {"source_layer": 10}}

VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "reference, seed 1": {"seed": 1},
    "reference, seed 2": {"seed": 2},
    "multi-task LoRA (no generated part)": {"hypernetwork": {"generated": False}},
    "multi-task LoRA, static lr x 3": {"hypernetwork": {"generated": False}, "optim": {"static_lr": 2.4e-3}},
    "lr x 0.5": {"optim": {"lr": 4e-4}},
    "multi-task LoRA, static lr x 0.5": {"hypernetwork": {"generated": False}, "optim": {"static_lr": 4e-4}},
    "all rates x 0.5": {"optim": {"lr": 4e-4, "static_lr": 4e-4}},
    "lr x 2": {"optim": {"lr": 1.6e-3}},
    "head lr x 3": {"optim": {"head_lr_factor": 24.0}},
    "each layer's own states, pooled": {"hypernetwork": {"source": "layers", "encoder_layers": 0}},
    "half context distillation": {"objective": "distill", "distill": {"sft_share": 0.5}},
    "prompt in context half the time": {"data": {"in_context_share": 0.5}},
    "states of layer 10": LAYER_10,
    "states of layer 10, seed 1": {**LAYER_10, "seed": 1},
    "states of layer 10, seed 2": {**LAYER_10, "seed": 2},
    "states of layer 30 (the last)": {"hypernetwork": {"source_layer": 30}},
    "l2 penalty 1": {"regularization": {"l2": 1.0}},
    "layer 20, pooled without encoder layers": {"hypernetwork": {"encoder_layers": 0}},
    "rank 16": {"hypernetwork": {"rank": 16, "alpha": 32.0}},
    "lr x 0.5, in context half the time": SHOWN,
    "lr x 0.5, in context half the time, layer 10": merged(SHOWN, LAYER_10),
    "lr x 0.5, in context half the time, layer 10, l2 1": merged(SHOWN, LAYER_10, {"regularization": {"l2": 1.0}}),
    "no static part": {"hypernetwork": {"static": False}},
    "26 training tasks": {"data": {"tasks": 26}},
    "53 training tasks": {"data": {"tasks": 53}},
    "no paraphrases": {"data": {"paraphrase_share": 0.0}},
    "token embeddings": {"hypernetwork": {"source": "embeddings"}},
    "rank 4": {"hypernetwork": {"rank": 4, "alpha": 8.0}},
    "adapters from layer 15 on": {"hypernetwork": {"first_layer": 15}},
    "NEFTune 5": {"regularization": {"neftune": 5.0}},
    "13 training tasks": {"data": {"tasks": 13}},
}
# Heads are compared with three seeds each, because the seed matters more than most heads do.
HEADS: dict[str, dict[str, Any]] = {
    **{f"{kind} head": {"head": kind} for kind in HEAD_KINDS if kind != "full"},
    "lowrank head, as many parameters as full": {"head": "lowrank", "head_bottleneck": 240},
    "shared head, as many parameters as full": {"head": "shared", "trunk_layers": 8},
    "rankwise head, as many parameters as full": {"head": "rankwise", "trunk_layers": 15},
}
VARIANTS |= {
    name if not seed else f"{name}, seed {seed}": {"hypernetwork": head} | ({"seed": seed} if seed else {})
    for name, head in HEADS.items()
    for seed in (0, 1, 2)
}
_COLUMNS = {
    "validation_loss": "right prompt", "validation_wrong": "another's", "validation_static": "static part",
    "validation_in_context": "and in context", "margin": "margin", "gibberish_margin": "gibberish",
    "variance_ratio": "variance ratio", "effective_rank": "effective rank",
}  # fmt: skip


def known_results() -> dict[str, Any]:
    """Map each variant to its row of the result file, if it was run with the settings of this file."""
    values = read_results("ablations")
    if values.get("reference") != REFERENCE:
        return {}
    return {name: row for name, row in values["results"].items() if values["variants"][name] == VARIANTS.get(name)}


def report(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The last measured values of each complete variant."""
    rows: dict[str, Any] = {}
    for name in VARIANTS:
        if not (folder / slug(name) / "final").is_dir():
            if name in known:
                rows[name] = known[name]
            continue
        rows[name] = last_measured(folder / slug(name), _COLUMNS)
    return {
        "steps": STEPS,
        "reference": REFERENCE,
        "variants": {name: VARIANTS[name] for name in rows},
        "results": rows,
    }


def markdown(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    head = ["variant", "training", *_COLUMNS.values()]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, row in results["results"].items():
        cells = [f"{row['training_loss_last_20']:.3f}"]
        cells += [f"{row[key]:.3f}" if key in row else "" for key in _COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_scaling(results: dict[str, Any], tasks: int) -> None:
    """Draw the losses on held-out tasks by number of training tasks, up to ``tasks``: each run, and the mean."""
    runs: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for name, row in results.items():
        if name == "reference" or name.startswith("reference, seed") or name.endswith("training tasks"):
            runs[VARIANTS[name].get("data", {}).get("tasks", tasks)].append(row)
    counts = sorted(runs)
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    lines = {
        "validation_wrong": "adapter of another task's prompt", "validation_static": "static part alone",
        "validation_loss": "adapter of the prompt",
    }  # fmt: skip
    for key, label in lines.items():
        (line,) = axes.plot(counts, [fmean(row[key] for row in runs[count]) for count in counts], label=label)
        for count in counts:
            axes.plot([count] * len(runs[count]), [row[key] for row in runs[count]], "o", color=line.get_color(), ms=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("training tasks (a dot is a run)")
    axes.set_ylabel("loss on held-out tasks (nats)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_svg(figure, FIGURE)


def main() -> int:
    options = argument_parser(__doc__, "folder with train.jsonl.gz and paraphrases.jsonl.gz").parse_args()
    data = {"train": str(options.data / "train.jsonl.gz"), "paraphrases": str(options.data / "paraphrases.jsonl.gz")}
    shared = merged(REFERENCE, {"data": data, "prompt_states": str(options.output / "prompt-states")})
    rows = read_rows(data["train"], "train")
    trained = {row.task for row in rows}.difference(hold_out(rows, REFERENCE["validation"]["tasks"]))
    known = known_results()
    whole = True
    if not options.report:
        if options.only:  # requested by name: the run itself is wanted, not only its row
            chosen = [name for name in VARIANTS if any(text in name for text in options.only)]
        else:
            chosen = [name for name in VARIANTS if name not in known]
        jobs = [training(slug(name), options.output, merged(shared, VARIANTS[name])) for name in chosen]
        whole = work(jobs, options.workers, options.output / "logs")
    results = report(options.output, known)
    write_results("ablations", results, markdown(results), len(results["results"]), len(VARIANTS))
    if "reference" in results["results"]:
        draw_scaling(results["results"], len(trained))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(told(main))

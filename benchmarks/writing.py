"""The cost of writing adapters, with and without function vectors, relative to reading the prompts once.

``python benchmarks/writing.py``

Reading: one forward pass of the bare base over the prompts. Writing: ``PromptLoRA.adapt``, which reads the prompts and
runs the hypernetwork; with vectors, the base also reads each prompt before eight neutral inputs. Rounds alternate, and
each uses prompts that were never read before, because states are cached. Ratios are ratios of the medians. Results:
``benchmarks/results/writing.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.progress import track

from promptlora import PromptLoRA
from promptlora.text import encode_prompt
from runs import RESULTS, console, positive, told, write_json

COUNTS = (1, 8)


def prompts_of(count: int, number: int) -> list[str]:
    """Prompts of one length that have not been read before."""
    return [
        f"Task {number * count + i:05d}. You are given a sentence about the weather. Write it again so that it says the opposite, "
        "keep its length and its tone, and answer with the new sentence alone."
        for i in range(count)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=9, help="rounds of each (default 9)")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = PromptLoRA.from_pretrained(progress=console.print)
    longest = lm.hypernetwork.config.max_prompt_tokens

    def read(prompts: list[str]) -> None:
        ids = torch.tensor([encode_prompt(lm.tokenizer, prompt, longest) for prompt in prompts])
        with lm.host.evaluating(None):
            lm.model.get_decoder()(input_ids=ids.to(lm.host.device), use_cache=False)

    ways: dict[str, Callable[[list[str]], object]] = {
        "read": read,
        "adapter": lambda prompts: lm.adapt(prompts, vectors=0.0),
        "adapter and vectors": lambda prompts: lm.adapt(prompts, vectors=0.5),
    }
    results = []
    for count in COUNTS:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in track(range(options.rounds + 1), f"{count} prompts", console=console):
            for offset, (name, way) in enumerate(ways.items()):
                prompts = prompts_of(count, number * len(ways) + offset)
                started = time.perf_counter()
                way(prompts)
                if number:  # the first round is a warm-up
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        row = {"prompts": count, "seconds": medians, "ratio": {n: v / medians["read"] for n, v in medians.items()}}
        results.append(row)
        console.print(row, highlight=False)
    write_json(RESULTS / "writing.json", {"threads": options.threads, "rounds": options.rounds, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

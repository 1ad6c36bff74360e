"""The cost of a training step relative to the bare model: tokens per second, all measured in one run.

``python benchmarks/training.py -o benchmarks/results/training.json``

Bare: forward and backward of the frozen base without hooks, down to its input embeddings, with the same loss on the
same rows. Step: everything in ``Trainer.train_step``: states of the prompts (already cached), hypernetwork, base with
the adapters on, backward to the hypernetwork, clipping and optimizer. Rounds alternate; the ratio is the ratio of the
medians. Further rounds wait for the device between the stages of a step, which gives the time of each stage.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from promptlora.data import Batch
from promptlora.settings import from_dict
from promptlora.train import Trainer
from promptlora.train.config import TrainConfig
from runs import console, merged, positive, told, write_json

TEXT = "the of and to in is that for it with as was on be at by this had not are but from or have an they"
WORDS = TEXT.split()


def rows(tasks: int, each: int, words: int) -> list[dict[str, Any]]:
    """Rows of one length, so that every batch has the same shape."""
    made = []
    for task in range(tasks):
        for i in range(each):
            text = " ".join(WORDS[(7 * i + 3 * j + task) % len(WORDS)] for j in range(words))
            prompt = f"Write the word of number {task} of the text and nothing else."
            made.append({"task": f"t{task}", "prompt": prompt, "input": text, "outputs": [WORDS[task % len(WORDS)]]})
    return made


def bare_step(trainer: Trainer, batch: Batch) -> None:
    """Forward and backward of the base alone, to the input embeddings."""
    ids = batch.input_ids.to(trainer.model.device)
    embedded = trainer.model.get_input_embeddings()(ids).detach().requires_grad_(True)
    hidden = trainer.model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
    loss = trainer.objective._sft(batch, hidden)  # type: ignore[attr-defined]
    loss.backward()
    loss.item()


def timed(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The duration of a call."""
    started = clock()
    work()
    return clock() - started


@contextmanager
def stages(trainer: Trainer, clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Accumulate the seconds of each stage of the steps that run inside ``with``."""
    spent: dict[str, float] = {}
    with ExitStack() as stack:
        for stage, owner, name in (
            ("batch", trainer._loader, "load"),
            ("adapters", trainer.writer, "encode"),
            ("adapters", trainer.writer, "adapters"),
            ("forward", trainer.objective, "loss"),
            ("backward", trainer.accelerator, "backward"),
            ("optimizer", trainer.optimizer, "step"),
        ):
            inner, spent[stage] = getattr(owner, name), 0.0

            def counted(*args: Any, stage: str = stage, inner: Any = inner, **options: Any) -> Any:
                started = clock()
                result = inner(*args, **options)
                spent[stage] += clock() - started
                return result

            setattr(owner, name, counted)
            stack.callback(delattr, owner, name)
        yield spent


def measure(
    prompts: int,
    per_prompt: int,
    words: int,
    dtype: str,
    rank: int,
    rounds: int,
    folder: Path,
    *,
    clock: Callable[[], float] = time.perf_counter,
    data: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Seconds of bare step and training step, alternating; then the seconds of the step's stages.

    Args:
        prompts: Prompts per batch.
        per_prompt: Rows per prompt.
        words: Length of the generated rows.
        dtype: Dtype of the base.
        rank: Rank of the adapters.
        rounds: Measurements of each kind of step.
        folder: Folder for the files of the run.
        clock: Returns seconds; waits until the device is idle.
        data: Rows to use instead of generated ones.
        **options: Further settings of the run; nested tables are allowed.
    """
    if data is None:
        data = folder / f"rows-{prompts}-{words}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(2 * prompts, 4 * per_prompt, words)))
    values = {
        "output": str(folder / "run"), "steps": 10_000, "prompts_per_batch": prompts, "rows_per_prompt": per_prompt,
        "base_dtype": dtype, "attention": "eager", "margin_every": 10_000, "data": {"train": str(data)},
        "hypernetwork": {"rank": rank, "alpha": 2.0 * rank},
    }  # fmt: skip
    with Trainer(from_dict(TrainConfig, merged(values, options))) as trainer:
        for step in range(2 * rounds + 2):  # fill the cache of prompt states, as in a long run
            trainer.states.batch(trainer.objective.parts(step, 1)[0].prompts)
        trainer.train_step()  # these steps warm up the allocator
        trainer.train_step()
        bare, whole, tokens = [], [], []
        shown = f"{prompts} x {per_prompt} rows, {dtype}"
        for _ in track(range(rounds), shown, console=console):
            batch = trainer.objective.parts(trainer.step, 1)[0]
            bare.append(timed(partial(bare_step, trainer, batch), clock))
            whole.append(timed(trainer.train_step, clock))
            tokens.append(batch.tokens)
        with stages(trainer, clock) as spent:
            seconds = timed(lambda: [trainer.train_step() for _ in range(rounds)], clock)
        spent["rest"] = seconds - sum(spent.values())
        parameters = sum(p.numel() for p in trainer.hypernetwork.parameters())
    return {
        "prompts": prompts, "rows_per_prompt": per_prompt, "tokens": round(statistics.mean(tokens)), "dtype": dtype,
        "rank": rank, "rounds": rounds, "parameters": parameters,
        "bare_tokens_per_second": statistics.median(t / s for t, s in zip(tokens, bare, strict=True)),
        "step_tokens_per_second": statistics.median(t / s for t, s in zip(tokens, whole, strict=True)),
        "ratio": statistics.median(whole) / statistics.median(bare),
        "ratio_of_each_round": [b / a for a, b in zip(bare, whole, strict=True)],
        "stages_ms": {stage: 1e3 * value / rounds for stage, value in spent.items()},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="JSON file of the results")
    parser.add_argument("--rounds", type=positive, default=7, help="measurements of each (default 7)")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [
        (8, 4, 40, "bfloat16", 8),
        (8, 4, 40, "float32", 8),
        (8, 4, 100, "bfloat16", 8),
        (8, 4, 40, "bfloat16", 16),
        (8, 2, 40, "bfloat16", 8),
    ]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for prompts, per_prompt, words, dtype, rank in cases:
            results.append(measure(prompts, per_prompt, words, dtype, rank, options.rounds, Path(folder)))
            r = results[-1]
            print(
                f"{prompts} x {per_prompt} rows, {r['tokens']} tokens, {dtype}, rank {rank}: bare "
                f"{r['bare_tokens_per_second']:.0f} tok/s, step {r['step_tokens_per_second']:.0f}, ratio {r['ratio']:.2f}"
            )
    if options.output:
        values = {
            "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
            "base": "SmolLM2-135M-Instruct", "results": results,
        }  # fmt: skip
        write_json(options.output, values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

"""The cost of refinement: one prompt, eight prompts together, and PEFT with its usual loop, one prompt at a time.

``python benchmarks/refine_timing.py``

Each prompt has 16 short rows, of which refinement keeps back 4 and measures them. Three methods take the same number of
steps with equally many rows in each: ``lm.refine`` of one prompt, of eight prompts together, and a loop over eight PEFT
models (rank and targets of the shipped adapters, ``model(**batch).loss``, AdamW, no measurements). The methods
alternate in each round, on one base in one process. Reported are medians and their ratios, of wall time and of CPU
time, which is less affected by other load. Results: ``benchmarks/results/refine_timing.json``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from promptlora import PromptLoRA
from promptlora.adapt.refine import RefineSettings
from promptlora.data import ids_and_labels
from promptlora.models import load_base
from runs import RESULTS, console, positive, told, write_json

PROMPTS = 8
ROWS = 16
_WORDS = [
    "river",
    "stone",
    "garden",
    "window",
    "letter",
    "market",
    "winter",
    "candle",
    "bridge",
    "forest",
    "silver",
    "morning",
    "engine",
    "paper",
    "island",
    "shadow",
]
_TASKS: dict[str, Callable[[str], str]] = {
    "Write the word in capital letters.": str.upper,
    "Write the word backwards.": lambda word: word[::-1],
    "Write the first letter of the word.": lambda word: word[0],
    "Write the last letter of the word.": lambda word: word[-1],
    "Write how many letters the word has.": lambda word: str(len(word)),
    "Write the word twice.": lambda word: f"{word} {word}",
    "Write the plural of the word.": lambda word: f"{word}s",
    "Write the word in quotation marks.": lambda word: f'"{word}"',
}


def rows_of(prompt: str) -> list[tuple[str, str]]:
    """Short rows of a prompt."""
    return [(f"The word is {word}.", _TASKS[prompt](word)) for word in _WORDS[:ROWS]]


def peft_loop(lm: PromptLoRA, model: Any, prompts: Sequence[str], settings: RefineSettings) -> None:
    """The usual PEFT loop: a new adapter per prompt, each trained separately."""
    import peft

    rank = lm.hypernetwork.config.rank
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=int(lm.hypernetwork.config.alpha),
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    end = lm.tokenizer.eos_token_id
    for prompt in prompts:
        adapted = peft.get_peft_model(model, config)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
        rows = [
            (lm.host.render(text), [*lm.tokenizer(answer, add_special_tokens=False)["input_ids"], end])
            for text, answer in rows_of(prompt)
        ]
        for step in range(settings.steps):
            chosen = [rows[(step * settings.rows_per_step + i) % ROWS] for i in range(settings.rows_per_step)]
            ids, labels = ids_and_labels(chosen, lm.host.pad)
            mask = (
                torch.arange(ids.shape[1])[None] < torch.tensor([len(a) + len(b) for a, b in chosen])[:, None]
            ).long()
            device = model.device
            adapted(input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device)).loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in adapted.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        model = adapted.unload()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of each way (default 3)")
    parser.add_argument(
        "--steps", type=positive, default=RefineSettings().steps, help="steps; by default those of refinement"
    )
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, …")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "refine_timing.json", help="JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    lm = PromptLoRA.from_pretrained(dtype=dtype, device=options.device, progress=console.print)
    plain = copy.deepcopy(load_base(None, dtype=dtype, device=options.device)[0])
    settings = RefineSettings(steps=options.steps)
    prompts = list(_TASKS)[:PROMPTS]
    given = lm.adapt(prompts)

    def refine(count: int) -> None:
        rows = [{"prompt": p, "input": t, "outputs": a} for p in prompts[:count] for t, a in rows_of(p)]
        lm.refine(given.select(range(count)), prompts[:count], rows=rows, steps=settings.steps, patience=settings.steps)

    ways: dict[str, Callable[[], None]] = {
        "refine, one prompt": lambda: refine(1),
        f"refine, {PROMPTS} prompts together": lambda: refine(PROMPTS),
        f"PEFT, {PROMPTS} prompts one by one": lambda: peft_loop(lm, plain, prompts, settings),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, way in ways.items():
            started, before = time.perf_counter(), time.process_time()
            way()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - before)
            console.print(
                f"round {number + 1}, {name}: {wall[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of CPU", highlight=False
            )
    ratios = {}
    for kind, seconds in (("wall", wall), ("cpu", cpu)):
        one, together, peft = (statistics.median(values) for values in seconds.values())
        ratios[kind] = {"together_to_one": together / one, "peft_to_together": peft / together}
    values = {
        "steps": settings.steps, "rows_per_step": settings.rows_per_step, "rows": ROWS, "prompts": PROMPTS, "dtype": options.dtype,
        "threads": options.threads, "device": options.device, "wall_seconds": wall, "cpu_seconds": cpu, "ratios": ratios,
    }  # fmt: skip
    console.print(ratios)
    write_json(options.output, values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

"""How many answers change with the system turn: the template's default, an empty one (as in ``generate``), or none.

``python benchmarks/system_turn.py`` answers the first input of each of the 60 prompts of ``user_prompts.jsonl`` with
each system turn (greedy, at most 16 tokens): by the base with the prompt in its context, by the adapter alone, and by
the adapter with the prompt in the context. It counts the answers that differ between two system turns, and the checks
that pass with each. Results: ``benchmarks/results/system_turn.json``.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations

import torch
from rich.progress import track

from promptlora import LoRAWeights, PromptLoRA
from promptlora.text import encode_chat, pad_rows, render_chat
from promptlora.text.chat import SYSTEM_TURNS
from runs import RESULTS, console, positive, told, write_json
from user_prompts import passes, read_prompts

MAX_NEW_TOKENS = 16
BATCH = 20


def answers(
    lm: PromptLoRA,
    rows: list[tuple[str, str]],
    lora: LoRAWeights | None,
    shown: bool,
    system_turn: str,
) -> list[str]:
    """The answers to prompts and inputs, in their order."""
    encoded = encode_chat(
        lm.tokenizer,
        [render_chat(lm.tokenizer, text, prompt if shown else None, system_turn=system_turn) for prompt, text in rows],
    )
    found = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
    for start in track(range(0, len(rows), BATCH), system_turn, console=console):
        some = order[start : start + BATCH]
        ids, mask = pad_rows([encoded[i] for i in some], lm.host.pad, left=True)
        given = None if lora is None else some
        output = lm.host.generate(ids, mask, lora, given, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = lm.tokenizer.batch_decode(output, skip_special_tokens=True)
        for i, text in zip(some, texts, strict=True):
            found[i] = text.strip()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypernetwork", help="folder of a hypernetwork; by default the one in the package")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = PromptLoRA.from_pretrained(options.hypernetwork, device="cpu", progress=console.print)
    items = read_prompts()
    prompts = [item["prompt"] for item in items]
    rows = [(item["prompt"], item["inputs"][0]["input"]) for item in items]
    checks = [item["inputs"][0]["check"] for item in items]
    conditions = {
        "base, prompt in context": (None, True),
        "adapter": (lm.adapt(prompts), False),
        "adapter, prompt in context": (lm.adapt(prompts, in_context=True), True),
    }
    results = {}
    for name, (lora, shown) in conditions.items():
        console.print(name)
        given = {turn: answers(lm, rows, lora, shown, turn) for turn in SYSTEM_TURNS}
        results[name] = {
            "changed": {
                f"{one}, {other}": sum(a != b for a, b in zip(given[one], given[other], strict=True))
                for one, other in combinations(SYSTEM_TURNS, 2)
            },
            "passed": {
                turn: sum(passes(text, check) for text, check in zip(given[turn], checks, strict=True))
                for turn in given
            },
        }
    values = {
        "base_model": "SmolLM2-135M-Instruct",
        "hypernetwork": options.hypernetwork or "the one in the package",
        "inputs": len(rows),
        "max_new_tokens": MAX_NEW_TOKENS,
        "conditions": results,
    }
    write_json(RESULTS / "system_turn.json", values)
    console.print_json(data=values)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

"""The share of padding if prompts are in the context: of half the groups in training, of all rows in evaluation.

``python benchmarks/padding.py DATA/instructions``

Batches that are grouped by the length of all text that is read are compared with batches of the same rows grouped by
the length of their inputs alone. For both, the benchmark counts tokens and places (rows x longest row), averaged over
the first batches of training and over all batches of an evaluation of the held-out tasks. Results:
``benchmarks/results/padding.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from statistics import fmean

from promptlora.data import Batches, Shown, read_paraphrases, read_rows, tokenize_rows
from promptlora.data.config import DataConfig
from promptlora.data.tokens import render_inputs
from promptlora.models import load_base
from promptlora.teacher import teacher_context
from runs import RESULTS, console, folder, told, write_json

BATCHES, SHARE = 150, 0.5
ANSWERED = 50  # rows per batch, as in `promptlora eval`


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=folder, help="folder with train, paraphrases and heldout .jsonl.gz")
    options = parser.parse_args()
    config = DataConfig(train=(str(options.data / "train.jsonl.gz"),))
    _, tokenizer = load_base()
    rows = read_rows(options.data / "train.jsonl.gz", config.split)
    examples, _ = tokenize_rows(tokenizer, rows, config)
    prompts = {row.task: [row.prompt] for row in rows}
    for task, others in read_paraphrases(options.data / "paraphrases.jsonl.gz", list(prompts)).items():
        prompts[task] += others
    results = {}
    for name, share in (("by what is read", SHARE), ("by inputs alone", 0.0)):
        batches = Batches(
            examples, prompts, prompts_per_batch=8, rows_per_prompt=2, pad=0, render=partial(render_inputs, tokenizer),
            shown=Shown(paraphrase_share=config.paraphrase_share, in_context_share=share),
        )  # fmt: skip
        batches.order.groups(0)  # assigns the groups to batches; how each is presented is drawn when it is read
        batches.shown = replace(batches.shown, in_context_share=SHARE)
        made = [batches[step] for step in range(BATCHES)]
        tokens, places = fmean(b.tokens for b in made), fmean(b.input_ids.numel() for b in made)
        results[name] = {"tokens": tokens, "places": places}
        console.print(f"{name}: {tokens:.0f} tokens in {places:.0f} places", highlight=False)
    heldout = [row for row in read_rows(options.data / "heldout.jsonl.gz") if row.split == "eval"]
    read = {i: len(teacher_context(tokenizer, row.prompt, row.input)) for i, row in enumerate(heldout)}
    answering = {}
    for name, key in (("by what is read", read.__getitem__), ("by inputs alone", lambda i: len(heldout[i].input))):
        order = sorted(read, key=key)
        chunks = [[read[i] for i in order[start : start + ANSWERED]] for start in range(0, len(order), ANSWERED)]
        answering[name] = {
            "tokens": fmean(map(sum, chunks)), "places": fmean(len(chunk) * max(chunk) for chunk in chunks)
        }  # fmt: skip
        console.print(f"answering, {name}: {answering[name]}", highlight=False)
    values = {"batches": BATCHES, "in_context_share": SHARE, "results": results}
    write_json(RESULTS / "padding.json", {**values, "answering": {"rows": ANSWERED, "results": answering}})
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

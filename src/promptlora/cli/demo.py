"""``promptlora demo``: three prompts as users write them, three adapters, one batch.

A rule selects the prompts, independently of their answers: the first prompt of each of the first three kinds in the
benchmark of user prompts, with its first input. The demo therefore also shows what goes wrong.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from promptlora.cli.answers import TITLES, compared_answers
from promptlora.cli.console import (
    MOST_TOKENS,
    Base,
    Device,
    Dtype,
    Force,
    Hypernetwork,
    Json,
    load,
    out,
    print_json,
    size,
    working,
)
from promptlora.files import check_output

if TYPE_CHECKING:
    from promptlora.adapt.prompt_lora import PromptLoRA
    from promptlora.lora import LoRAWeights

# The first prompt of each of the first three kinds in benchmarks/user_prompts.jsonl, with its first input. Those
# prompts are written as users write; nothing is trained or selected on them.
EXAMPLES = (
    ("Put this into Spanish, just the translation.", "Good morning"),
    ("Make this polite. Keep it to one sentence.", "Give me the report."),
    (
        "Pull the e-mail address out of the message. Output nothing but the address.",
        "Hi, write me at ana.ruiz@mail.org if it breaks again.",
    ),
)


def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the PEFT folder here. Default: a temporary folder.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")] = 32,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write adapters for three prompts, run them in one batch, and check one of them in PEFT.

    The prompts are the first of three kinds of a benchmark that nothing was trained or chosen on.

    Example: **promptlora demo -o plural/**
    """
    if output is not None:
        check_output(output)
    lm = load(hypernetwork, base, dtype, device, force)
    prompts, inputs = [p for p, _ in EXAMPLES], [x for _, x in EXAMPLES]
    with working("reading three prompts and writing three adapters") as say:
        lm.adapt(prompts[0])  # warm up: the first call includes PyTorch's start-up time
        lm.states.clear()
        started = time.perf_counter()
        lora = lm.adapt(prompts)
        seconds = time.perf_counter() - started
        beside = lm.adapt(prompts, in_context=True)
        answers = compared_answers(lm, inputs, prompts, lora, beside, max_new_tokens, say)
        distances = lm.distances(prompts)
    rows = [
        {"prompt": prompt, **answer, "training_prompts": None if distances is None else distances[i].to_dict()}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    written = {"seconds": seconds, "bytes": lora.nbytes, "projections": len(lora), "rank": lora.rank}
    if not json:
        read = {name: sum(row["tokens_read"][name] for row in rows) for name in TITLES}
        for i, row in enumerate(rows):
            table = Table(title=f"[bold]{escape(str(row['prompt']))}[/]", title_justify="left", show_lines=True)
            table.add_column("input", ratio=2, overflow="fold")
            for name, title in TITLES.items():
                table.add_column(title, ratio=3, overflow="fold", style="bold" if name.startswith("adapted") else None)
            table.add_row(*(escape(str(row[key])) for key in ("input", *TITLES)))
            out.print(table)
            if distances is not None:
                out.print(str(distances[i]), style="yellow" if distances[i].far else None, highlight=False)
        out.print(
            f"{len(prompts)} adapters (rank {lora.rank}, {len(lora)} projections each) written in {seconds:.2f} s, "
            f"{size(lora.nbytes // len(prompts))} each; tokens read: {read['adapted']} adapted, {read['in_context']} with the prompts in context",
            highlight=False,
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary) / "adapter"
        lora.select(0).save_peft(folder)
        same = _same_in_peft(lm, lora.select(0), folder, inputs[0], max_new_tokens)
        if json:
            print_json(
                {
                    "rows": rows,
                    "adapters": written,
                    "peft": {"folder": None if output is None else str(folder), "same_answer": same},
                }
            )
        else:
            word = "the same answer" if same else "[red]another answer[/]"
            told = f"PEFT gives {word}" if same is not None else "pip install peft to check it in PEFT"
            where = "was temporary; -o DIR keeps one" if output is None else escape(str(folder))
            out.print(f"{told}; the folder {where}", highlight=False)
    if same is False:
        raise typer.Exit(1)


def _same_in_peft(lm: PromptLoRA, lora: LoRAWeights, folder: Path, text: str, max_new_tokens: int) -> bool | None:
    """Whether PEFT gives the same answers with the exported folder as the hooks; None if PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        return None
    with working("the same adapter in PEFT"), _quiet():
        import peft

        ours = lm.generate(text, lora, max_new_tokens=max_new_tokens)
        wrapped = peft.PeftModel.from_pretrained(lm.model, folder)
        try:
            theirs = lm.generate(text, max_new_tokens=max_new_tokens)
        finally:
            wrapped.unload()
    return ours == theirs


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of the libraries that PEFT imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)

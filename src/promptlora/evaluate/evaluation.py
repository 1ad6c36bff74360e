"""An evaluation: every row is answered under every condition, and the answers are scored.

Answers are written as they come, so that a killed evaluation goes on where it stopped. It knows ``PromptLoRA`` and
rows; nothing of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.data import Row
from promptlora.errors import DataError
from promptlora.evaluate.answers import Answer, AnswerFile, reuse_baselines
from promptlora.evaluate.conditions import CONDITIONS, DEFAULT_CONDITIONS, permute_tasks
from promptlora.evaluate.report import Report, summarize
from promptlora.lora import LoRAWeights
from promptlora.text import gibberish


def _identity(
    lm: PromptLoRA,
    rows: Sequence[Row],
    max_new_tokens: int,
    seed: int,
    strength: float | None,
    vectors: float | None,
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.task, row.prompt, row.input, row.outputs, row.metric]).encode())
    weights = hashlib.sha256()
    for name, value in lm.hypernetwork.state_dict().items():
        weights.update(name.encode())
        weights.update(value.detach().cpu().numpy().tobytes())
    return {
        "rows": len(rows),
        "data": digest.hexdigest()[:16],
        "hypernetwork": weights.hexdigest()[:16],
        "base": str(lm.hypernetwork.base.get("weights", ""))[:16],
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        **({} if strength is None else {"strength": strength}),
        **({} if vectors is None else {"vectors": vectors}),
    }


def evaluate(
    lm: PromptLoRA,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    max_new_tokens: int = 32,
    batch_size: int = 50,
    seed: int = 0,
    strength: float | None = None,
    vectors: float | None = None,
    reuse: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Answer every row under every condition, and score the answers.

    Args:
        lm: What is evaluated.
        rows: Rows of one or more tasks.
        folder: Where answers, ``report.json`` and ``report.md`` go; answers that are there already are kept.
        conditions: Some of :data:`CONDITIONS`.
        max_new_tokens: Longest answer.
        batch_size: Rows that run at once.
        seed: Of the permutation of prompts between tasks, and of the bootstrap.
        strength: Factor of the generated part; by default as the hypernetwork says.
        vectors: Factor of the prompts' function vectors; by default as the hypernetwork says.
        reuse: Folder of an evaluation of another hypernetwork: the answers of the base alone are taken from there.
        on_progress: Called with the condition, rows done and rows in all; first before its adapters are written.

    Raises:
        DataError: An unknown condition.
        OutputError: A folder that holds another evaluation.
    """
    unknown = [c for c in conditions if c not in CONDITIONS]
    if unknown:
        raise DataError(f"condition {unknown[0]!r}; expected some of {', '.join(CONDITIONS)}")
    prompts = {row.task: row.prompt for row in rows}
    tasks, own = list(prompts), list(prompts.values())
    adapter_of = {task: i for i, task in enumerate(tasks)}
    adapt = partial(lm.adapt, strength=strength, vectors=vectors)
    swapped = permute_tasks(tasks, seed) if "wrong_prompt" in conditions else {}
    identity = _identity(lm, rows, max_new_tokens, seed, strength, vectors)
    file = AnswerFile(Path(folder) / "answers.jsonl", identity)
    if reuse is not None:
        taken = reuse_baselines(Path(reuse) / "answers.jsonl", identity)
        file.add([a for a in taken if a.condition in conditions and (a.condition, a.row) not in file.answers])
    for condition in conditions:
        left = [i for i in range(len(rows)) if (condition, i) not in file.answers]
        if not left:
            continue
        done = len(rows) - len(left)
        if on_progress:  # writing adapters takes a while too
            on_progress(condition, done, len(rows))
        lora: LoRAWeights | None = None
        if condition == "adapter":
            lora = adapt(own)
        elif condition == "adapter_in_context":  # function vectors stand for a prompt that is not there
            lora = adapt(own, vectors=0.0)
        elif condition == "wrong_prompt":
            lora = adapt([prompts[swapped[task]] for task in tasks])
        elif condition == "gibberish":
            longest = lm.hypernetwork.config.max_prompt_tokens
            lora = adapt([gibberish(prompt, seed + i, longest) for i, prompt in enumerate(own)])
        elif condition == "mean_adapter":
            lora = adapt(own).mean().select([0] * len(tasks))
        elif condition == "static":
            lora = lm.adapt(own, generated=False)
        shown = condition in ("in_context", "adapter_in_context")
        read = lm.count_tokens([rows[i].input for i in left], [rows[i].prompt for i in left] if shown else None)
        tokens_of = dict(zip(left, read, strict=True))
        left.sort(key=lambda i: (tokens_of[i], i))  # rows of one length together, so that little is padding
        for start in range(0, len(left), batch_size):
            chosen = left[start : start + batch_size]
            context = [rows[i].prompt for i in chosen] if shown else None
            texts = lm.generate(
                [rows[i].input for i in chosen],
                lora,
                adapter_index=None if lora is None else [adapter_of[rows[i].task] for i in chosen],
                in_context=context,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            file.add(
                [
                    Answer(condition=condition, row=i, text=text, tokens=tokens_of[i])
                    for i, text in zip(chosen, texts, strict=True)
                ]
            )
            done += len(chosen)
            if on_progress:
                on_progress(condition, done, len(rows))
    report = summarize(rows, file.answers, conditions, identity, seed)
    report.write(Path(folder))
    return report

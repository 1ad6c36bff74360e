"""Implements ``PromptLoRA.refine``, which improves adapters that were generated in one forward pass.

It combines prompts, rows or inputs, starts and steps, and records how each adapter was made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from promptlora.adapt.refine.loop import Outcome, Refinement, RefineStep
from promptlora.adapt.refine.movable import Movable
from promptlora.adapt.refine.rows import Item, Task, group_rows, items_of_rows, keep_back
from promptlora.adapt.refine.settings import RefineSettings
from promptlora.adapt.refine.teacher import agreement, group_inputs, invented_inputs, taught_items
from promptlora.errors import ConfigError, LoRAError, PromptError
from promptlora.fingerprint import weights_digest
from promptlora.lora import LoRAWeights
from promptlora.lora.origin import AdapterOrigin
from promptlora.settings import whole
from promptlora.signals import stopping
from promptlora.text import prompt_list

if TYPE_CHECKING:
    from promptlora.adapt.prompt_lora import PromptLoRA

_LR = {True: 5e-3, False: 1e-3}  # for cores only, and for A and B
_MOST_INVENTED = 512
STOPPED = "it was stopped, and the best so far is returned"


def refine_adapters(
    lm: PromptLoRA,
    lora: LoRAWeights,
    prompts: str | Sequence[str],
    *,
    rows: Sequence[Any] | None,
    inputs: Sequence[str] | Sequence[Sequence[str]] | int | None,
    settings: RefineSettings,
    on_step: Callable[[RefineStep], None] | None,
    should_stop: Callable[[], bool] | None,
) -> LoRAWeights:
    """Refine adapters; see ``PromptLoRA.refine``."""
    texts = _checked(lm, lora, prompts)
    if rows is None and inputs is None:
        raise ConfigError("refine: neither rows nor inputs. Expected one of them. Fix: pass rows=[(input, output), …].")
    longest = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    in_context = [record.get("in_context") is True for record in lora.provenance]  # the base also reads these prompts
    labelled: list[list[Item]] | None = None
    notes = [""] * len(texts)
    if rows is not None:
        read = [
            items_of_rows(lm.tokenizer, text, own, longest, shown)
            for text, own, shown in zip(texts, group_rows(texts, rows), in_context, strict=True)
        ]
        labelled = [items for items, _ in read]
        notes = [f"{count} rows were too long and left out" if count else "" for _, count in read]
    unlabelled = _inputs(lm, texts, inputs, settings) if inputs is not None else None
    started = _starts(lm, lora, texts, settings, in_context)
    movable = Movable(LoRAWeights.stack(list(started.values())), free=settings.moves == "all")
    if not settings.lr:
        settings = replace(settings, lr=_LR[movable.shared])
    with stopping() as asked, torch.inference_mode(False), torch.enable_grad():

        def stop() -> bool:
            return asked() or (should_stop is not None and should_stop())

        if unlabelled is None:
            assert labelled is not None
            tasks = [
                Task(text, *keep_back(text, items, settings.seed)) for text, items in zip(texts, labelled, strict=True)
            ]
        else:
            taught = _taught(lm, texts, unlabelled, settings, stop, in_context)
            if taught is None:
                tasks = []
            elif labelled is not None:  # the rows select the best step
                tasks = [Task(t, i, judges) for t, i, judges in zip(texts, taught, labelled, strict=True)]
            else:
                tasks = [Task(t, *keep_back(t, i, settings.seed)) for t, i in zip(texts, taught, strict=True)]
        if not tasks:
            outcomes, stopped = [Outcome(values, "given") for values in movable.start[: len(texts)]], True
        else:
            refinement = Refinement(lm.host, tasks, movable, list(started), settings)
            outcomes, stopped = refinement.run(on_step, stop), refinement.stopped
            if unlabelled is not None and labelled is None:
                _fall_back(lm, tasks, movable, outcomes)
    result = movable.lora(torch.stack([outcome.values for outcome in outcomes])).detach()
    shared = {
        "hypernetwork_weights": weights_digest(lm.hypernetwork),
        "steps": settings.steps,
        "seed": settings.seed,
        "lr": settings.lr,
        "stopped": stopped,
    }
    records: list[dict[str, Any]] = [
        {
            "prompt": text,
            "prompt_sha256": AdapterOrigin(text).digest,
            "rows": 0 if labelled is None else len(labelled[number]),
            "inputs": 0 if unlabelled is None else len(unlabelled[number]),
            "kept_back": len(tasks[number].kept) if tasks else 0,
            "start": outcome.start,
            "best_step": outcome.step,
            "loss_before": _finite(outcome.first),
            "loss_after": _finite(outcome.score),
            "note": "; ".join(filter(None, (notes[number], outcome.note))),
            **shared,
        }
        for number, (text, outcome) in enumerate(zip(texts, outcomes, strict=True))
    ]
    for record in records:
        said = "; ".join(filter(None, (record["note"], STOPPED if stopped else "")))
        if said:
            warnings.warn(f"refine: {record['prompt'].strip()[:40]!r}: {said}.", stacklevel=3)
    return LoRAWeights(
        result.stored,
        result.scaling,
        projections=result.projections,
        base_model=lora.base_model,
        chat=lm.chat_export,
        provenance=[{**given, **record} for given, record in zip(lora.provenance, records, strict=True)],
    )


def _finite(value: float | None) -> float | None:
    """A loss for JSON; None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _checked(lm: PromptLoRA, lora: LoRAWeights, prompts: str | Sequence[str]) -> list[str]:
    """The prompts, one per adapter, after checking that the adapters match the base.

    Raises:
        PromptError: A prompt is empty or is not a text.
        LoRAError: The number of adapters differs from the number of prompts, or the adapters do not match the base.
    """
    texts = prompt_list(prompts)
    for text in texts:
        if not text.strip():
            raise PromptError(f"prompt {repr(text)[:60]} is empty. Expected the instruction of the adapter.")
    if not isinstance(lora, LoRAWeights):
        raise LoRAError(f"lora: a {type(lora).__name__}. Expected LoRAWeights. Fix: lora = lm.adapt(prompts).")
    if not texts or lora.adapters != len(texts):
        raise LoRAError(
            f"refine: {lora.adapters} adapters for {len(texts)} prompts. Expected one adapter for each prompt. Fix: lora = "
            "lm.adapt(prompts)."
        )
    own = lm.model.config.name_or_path or None
    if lora.base_model and own and lora.base_model != own:
        raise LoRAError(
            f"refine: the adapter was made for base {lora.base_model}. Expected one for {own}. Fix: load that base, or write "
            "the adapter with lm.adapt."
        )
    lm.injector.prepare(lora.to(lm.model.dtype))  # checks names and shapes against this base
    return texts


def _starts(
    lm: PromptLoRA, lora: LoRAWeights, texts: Sequence[str], settings: RefineSettings, in_context: Sequence[bool]
) -> dict[str, LoRAWeights]:
    """The adapters of each start, one per prompt, in the base's dtype."""
    lora = lora.detach().to(lm.model.dtype, lm.host.device)
    made: dict[str, Callable[[], LoRAWeights]] = {
        "given": lambda: lora,
        "generated": lambda: _written(lm, texts, in_context, generated=True),
        "static": lambda: _written(lm, texts, in_context, generated=False),
        "zero": lambda: _without_update(lora),
    }
    wanted = ["given", *(start for start in settings.starts if start != "given")] if settings.starts else ["given"]
    if "static" in wanted and not lm.hypernetwork.config.static:
        raise ConfigError("starts: this hypernetwork has no static part. Expected other starts. Fix: leave static out.")
    found = {start: made[start]().detach() for start in wanted}
    try:
        LoRAWeights.stack(list(found.values()))
    except LoRAError as error:
        raise LoRAError(
            f"starts={list(settings.starts)}: the given adapter does not fit the others ({error})"
        ) from error
    return found


def _written(lm: PromptLoRA, texts: Sequence[str], in_context: Sequence[bool], *, generated: bool) -> LoRAWeights:
    """Newly generated adapters, each with the same ``in_context`` as the given adapter."""
    if len(set(in_context)) == 1:
        return lm.adapt(texts, generated=generated, in_context=in_context[0])
    each = zip(texts, in_context, strict=True)
    return LoRAWeights.stack([lm.adapt(text, generated=generated, in_context=shown) for text, shown in each])


def _without_update(lora: LoRAWeights) -> LoRAWeights:
    """Adapters with a zero update but nonzero gradients: the cores, or B, are 0."""
    matrices: dict[str, Any] = {}
    for name in lora:
        form = lora.chosen(name)
        moved = "C" if hasattr(form, "C") else "B"
        matrices[name] = form._replace(**{moved: torch.zeros_like(getattr(form, moved))})
    return LoRAWeights(matrices, lora.scaling, projections=lora.projections, base_model=lora.base_model)


def _inputs(
    lm: PromptLoRA,
    texts: Sequence[str],
    inputs: Sequence[str] | Sequence[Sequence[str]] | int,
    settings: RefineSettings,
) -> list[list[str]]:
    """The inputs of each prompt; if a number is given, the base generates that many."""
    if isinstance(inputs, int):
        whole("inputs", inputs, low=2, high=_MOST_INVENTED)
        inputs = invented_inputs(lm.host, texts, inputs, settings.seed)
    return group_inputs(texts, inputs)


def _taught(
    lm: PromptLoRA,
    texts: Sequence[str],
    inputs: Sequence[Sequence[str]],
    settings: RefineSettings,
    stop: Callable[[], bool],
    in_context: Sequence[bool],
) -> list[list[Item]] | None:
    reads_context = settings.teacher == "adapter" and lm.hypernetwork.config.context_flag
    teacher = lm.adapt(texts, in_context=True) if reads_context else None
    ask = partial(
        taught_items, answer_tokens=settings.answer_tokens, top_k=settings.top_k, stop=stop, in_context=in_context
    )
    return ask(lm.host, texts, inputs, teacher)


def _fall_back(lm: PromptLoRA, tasks: Sequence[Task], movable: Movable, outcomes: Sequence[Outcome]) -> None:
    """Without labels, return to the start for adapters that agree less with their teacher than the start does."""
    given = movable.lora(movable.start[: len(tasks)])
    found = movable.lora(torch.stack([outcome.values for outcome in outcomes]))
    judged = [task.kept or task.items for task in tasks]
    before, after = agreement(lm.host, judged, given), agreement(lm.host, judged, found)
    for number, outcome in enumerate(outcomes):
        if after[number] < before[number]:
            outcome.values, outcome.step, outcome.score = movable.start[number], 0, outcome.first
            outcome.start = "given"
            outcome.note = (
                f"the refined adapter agrees with the teacher in {after[number]:.0%} of the tokens, the start in "
                f"{before[number]:.0%}; the start is returned"
            )

"""Streams answers: ids, text, or the text of many rows at once.

The model is locked during a step and is free between two steps. Other calls can therefore run in between, several
streams can run at the same time in one or more threads, and a stream that is dropped holds no resources and needs no
clean-up. This file knows ``Host`` and token ids; it knows nothing of prompts or hypernetworks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from promptlora.errors import PromptError
from promptlora.host import Host, option_errors
from promptlora.lora import LoRAWeights
from promptlora.text import pad_rows


@dataclass(frozen=True)
class Row:
    """The text of one answer so far, and whether the model has finished it."""

    text: str
    ended: bool


def _decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Iterator[Tensor]:
    """The new ids ``[rows]`` of each step; finished rows get the padding id. The caller must disable gradients.

    Args:
        model: The model.
        input_ids: ``[rows, tokens]``.
        logits_processor: The processors that transformers prepared.
        stopping_criteria: The criteria that transformers prepared.
        generation_config: The settings that transformers prepared.
        synced_gpus: Not used, because a single process decodes.
        streamer: Not used, because the yielded steps are the stream.
        **model_kwargs: Inputs of the model, including its cache.
    """
    pad = generation_config._pad_token_tensor
    has_end = any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
    unfinished = torch.ones(len(input_ids), dtype=torch.long, device=input_ids.device)
    outputs = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        del outputs  # frees the logits of the whole prompt, which are large
        scores = logits_processor(input_ids, logits)
        if generation_config.do_sample:
            tokens = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = torch.argmax(scores, dim=-1)
        if has_end:
            tokens = tokens * unfinished + pad.to(input_ids.device) * (1 - unfinished)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
        yield tokens
        if not bool(unfinished.any()):
            return
        inputs = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=1 if model_kwargs["use_cache"] else None, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)


def stream_ids(
    host: Host,
    rows: Sequence[Sequence[int]],
    lora: LoRAWeights | None = None,
    adapter_index: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Yield the new ids ``[rows]`` of each step.

    Args:
        host: The host that runs the model.
        rows: Token ids of each row, unpadded.
        lora: The adapters; None uses the base.
        adapter_index: Row i uses adapter ``adapter_index[i]``.
        **options: Passed to ``model.generate``, which prepares cache, processors and stopping criteria from them.

    Raises:
        LoRAError: The adapters do not match the model.
        PromptError: More than one sequence per row is requested (beams, returned sequences).
        ConfigError: transformers refuses an option.
    """
    prepared = host.injector.prepare(lora, adapter_index)

    def steps() -> Iterator[Tensor]:
        generate: Any = host.model.generate
        ids, mask = pad_rows(rows, host.pad, left=True)
        with host.evaluating(prepared), option_errors():
            run = generate(**host.arguments(ids, mask, options), custom_generate=_decode)
            step: Tensor | None = next(run, None)
        while step is not None:
            if len(step) != len(rows):
                raise PromptError(
                    f"{len(step)} sequences for {len(rows)} inputs (num_beams or num_return_sequences). Expected one each in a "
                    "stream. Fix: use generate"
                )
            yield step
            with host.evaluating(prepared):
                step = next(run, None)

    return steps()


class _Pieces(TextStreamer):
    """Collects text that is ready to be shown: whole words, as transformers streams them."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=False, skip_special_tokens=True)
        self.ready: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Store a piece."""
        if text:
            self.ready.append(text)

    def take(self) -> list[str]:
        """The pieces since the last call."""
        pieces, self.ready = self.ready, []
        return pieces


def stream_text(host: Host, steps: Iterator[Tensor]) -> Iterator[str]:
    """Yield the text of the steps of one row, piece by piece."""
    pieces: Any = _Pieces(host.tokenizer)
    for step in steps:
        pieces.put(step.cpu())
        yield from pieces.take()
    pieces.end()
    yield from pieces.take()


def stream_rows(
    host: Host,
    rows: Sequence[Sequence[int]],
    lora: LoRAWeights,
    adapter_index: Sequence[int],
    *,
    max_new_tokens: int,
) -> Iterator[list[Row]]:
    """Yield the greedy answers of all rows so far, after each step of the model.

    Args:
        host: The host that runs the model.
        rows: Token ids of each row, unpadded.
        lora: The adapters.
        adapter_index: Row i uses adapter ``adapter_index[i]``.
        max_new_tokens: The maximum answer length in tokens.

    Yields:
        All rows; the rows of the last step are complete.
    """
    found: Any = getattr(host.model.generation_config, "eos_token_id", None)
    ends = {int(i) for i in (found if isinstance(found, list) else [] if found is None else [found])}
    told: list[list[int]] = [[] for _ in rows]
    over = [False] * len(rows)

    def answers(half: str) -> list[Row]:
        texts = host.tokenizer.batch_decode(told, skip_special_tokens=True)
        return [Row(str(text).strip().rstrip(half), ended) for text, ended in zip(texts, over, strict=True)]

    for step in stream_ids(host, rows, lora, adapter_index, max_new_tokens=max_new_tokens):
        for i, token in enumerate(step.tolist()):
            over[i] = over[i] or token in ends
            if not over[i]:
                told[i].append(token)
        yield answers("\ufffd")  # an incomplete character is held back until it is complete
    yield answers("")

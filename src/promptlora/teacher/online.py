"""The teacher in this process: a causal model from transformers, evaluated only at the answer positions.

It knows the model that it is given; it knows nothing of files or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.data import ids_and_labels
from promptlora.errors import ConfigError
from promptlora.host import float32_head
from promptlora.losses import TeacherTargets, answer_positions
from promptlora.text import pad_rows

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of the teacher's context, and of the answer
OnRows = Callable[[int], None]  # called with the number of rows done since the last call
_LOGITS = 1 << 25  # logits that exist at the same time: 128 MiB in float32


@torch.no_grad()
def teacher_targets(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch seq"],
    labels: Int[Tensor, "batch seq"],
    k: int | None = None,
    *,
    lm_head: Callable[[Tensor], Tensor] | None = None,
) -> TeacherTargets:
    """A model's log-probabilities of every answer token, in float32, in the order of ``answer_positions(labels)``.

    Args:
        model: The teacher in its current state, including any adapter that is switched on.
        input_ids: The context and the answer, padded on the right.
        labels: The same ids; -100 at every position that is not an answer token.
        k: Number of most likely tokens that are kept; None keeps the whole vocabulary.
        lm_head: :func:`float32_head` of the model; pass it to avoid creating it on every call.

    Raises:
        ConfigError: ``k`` is larger than the vocabulary.
    """
    head = lm_head or float32_head(model)
    hidden = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    states = hidden[answer_positions(labels)]  # [n, d]: position t predicts token t + 1
    width = int(model.config.get_text_config().vocab_size)
    if k is not None and not 1 <= k <= width:
        raise ConfigError(f"top_k={k}; expected 1 … {width}, the teacher's vocabulary")
    log_probs, ids = [], []
    for part in states.split(max(1, _LOGITS // width)):
        logits = head(part)
        if k is None:
            log_probs.append(logits.log_softmax(-1))
        else:
            best = logits.topk(k, dim=-1)
            log_probs.append(best.values - logits.logsumexp(-1, keepdim=True))
            ids.append(best.indices)
    if not log_probs:
        empty = hidden.new_zeros(0, k or width, dtype=torch.float32)
        return TeacherTargets(empty, None if k is None else empty.long())
    return TeacherTargets(torch.cat(log_probs), torch.cat(ids) if ids else None)


class OnlineTeacher:
    """A model as a teacher.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        batch_size: Rows per batch; rows of similar length are grouped. None runs all rows of a call in one batch and in
            order, so that adapters switched on by the caller match their rows.
        lm_head: The model's head in float32, if it already exists.

    Raises:
        ModelError: The model has no head, or it scales or caps its logits after the head.
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | None = None,
        lm_head: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._pad = int(tokenizer.pad_token_id or 0)
        self._head = lm_head or float32_head(model)
        generation: Any = model.generation_config
        ends = None if generation is None else generation.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        self._ends = {int(end) for end in (*listed, tokenizer.eos_token_id) if end is not None}

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.batch_size is None:
            return [list(range(len(lengths)))] if lengths else []
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    @torch.no_grad()
    def targets(self, rows: Sequence[Pair], k: int | None = None, on_rows: OnRows | None = None) -> TeacherTargets:
        """Log-probabilities ``[n, k]`` of all answer tokens, one row after another, in the order of the rows.

        Args:
            rows: The teacher's context and the answer of each row, as token ids.
            k: Number of most likely tokens that are kept; None keeps the whole vocabulary.
            on_rows: Called after each batch.
        """
        log_probs: list[Tensor] = [torch.empty(0)] * len(rows)
        ids = log_probs.copy()
        for chosen in self._batches([len(context) + len(answer) for context, answer in rows]):
            input_ids, labels = ids_and_labels([rows[i] for i in chosen], self._pad)
            device = self.model.device
            found = teacher_targets(self.model, input_ids.to(device), labels.to(device), k, lm_head=self._head)
            lengths = [len(rows[i][1]) for i in chosen]
            for i, part in zip(chosen, found.log_probs.split(lengths), strict=True):
                log_probs[i] = part
            if found.ids is not None:
                for i, part in zip(chosen, found.ids.split(lengths), strict=True):
                    ids[i] = part
            if on_rows:
                on_rows(len(chosen))
        return TeacherTargets(torch.cat(log_probs), None if k is None else torch.cat(ids))

    @torch.no_grad()
    def answers(
        self, contexts: Sequence[Sequence[int]], max_tokens: int, on_rows: OnRows | None = None
    ) -> list[list[int] | None]:
        """The teacher's greedy answers as token ids without the end token; None for an answer that did not end.

        Args:
            contexts: What the teacher reads, as token ids.
            max_tokens: Maximum length of an answer, including the end token.
            on_rows: Called after each batch.
        """
        answers: list[list[int] | None] = [None] * len(contexts)
        generate: Any = self.model.generate
        for chosen in self._batches([len(context) for context in contexts]):
            ids, mask = pad_rows([contexts[i] for i in chosen], self._pad, left=True, device=self.model.device)
            output = generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=self._pad,
                eos_token_id=sorted(self._ends),
            )
            for i, written in zip(chosen, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((at for at, token in enumerate(written) if token in self._ends), None)
                answers[i] = None if end is None else written[:end]
            if on_rows:
                on_rows(len(chosen))
        return answers

"""KL divergence from a teacher's next-token distributions (whole or top-k) to the student's.

It does not know where a teacher's distributions come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from promptlora.errors import DataError
from promptlora.losses.positions import CHUNK, answer_positions, position_losses, reduced

_ROUNDING = 0.02  # how far the total probability of a half-precision teacher may deviate from 1


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's log-probabilities at the answer positions.

    Entry i belongs to entry i of ``answer_positions(labels)``: at position t it is the distribution of token t + 1.

    Attributes:
        log_probs: Log-probabilities in nats at temperature 1, for the tokens ``ids`` or, if ``ids`` is None, for the
            whole vocabulary in order. An impossible token has -inf.
        ids: Token ids, distinct in each row; None if ``k`` is the vocabulary. The probability of all other tokens (the
            tail) is ``1 - sum(exp(log_probs))``.

    Raises:
        DataError: The shapes do not match.
    """

    log_probs: Float[Tensor, "n k"]
    ids: Int[Tensor, "n k"] | None = None

    def __post_init__(self) -> None:
        shape = list(self.log_probs.shape)
        if len(shape) != 2 or (self.ids is not None and list(self.ids.shape) != shape):
            ids = None if self.ids is None else list(self.ids.shape)
            raise DataError(f"teacher: log_probs {shape}, ids {ids}; expected [n, k] for both, or no ids")


def distillation_loss(
    hidden: Float[Tensor, "batch seq d"],
    labels: Int[Tensor, "batch seq"],
    lm_head: Callable[[Tensor], Tensor],
    teacher: TeacherTargets,
    *,
    row_weight: str = "token",
    reduce: bool = True,
    chunk: int = CHUNK,
) -> Tensor:
    """KL(teacher || student) of the next-token distributions at the answer positions, in nats, in float32 or float64.

    The teacher gets no gradient. For a top-k teacher, all tokens outside the top k (the tail) are treated as one
    outcome, for both teacher and student. This KL never exceeds the KL of the whole distributions and approaches it as
    k grows. It is 0, with zero gradient, where the student equals the teacher. It moves the total probability of the
    student's tail towards that of the teacher's.

    Args:
        hidden: Last hidden states of the student.
        labels: The token ids; -100 at every position that is not an answer token.
        lm_head: Maps hidden states ``[n, d]`` to logits ``[n, vocabulary]``, each row independently.
        teacher: The teacher's log-probabilities, in the order of ``answer_positions(labels)``.
        row_weight: ``token`` weights each answer token equally; ``row`` weights each row equally.
        reduce: False returns the mean loss of each row, ``[batch]``.
        chunk: Number of positions whose logits exist at the same time.

    Raises:
        ConfigError: An unknown ``row_weight``, or a chunk below 1.
        DataError: A teacher that does not fit the labels or the vocabulary, or that has no log-probabilities.
    """
    rows, columns = answer_positions(labels, hidden.device)
    log_probs = teacher.log_probs.detach().to(hidden.device)
    ids = None if teacher.ids is None else teacher.ids.to(hidden.device, torch.long)
    if len(log_probs) != len(rows):
        raise DataError(
            f"the teacher has distributions for {len(log_probs)} answer tokens, the labels hold {len(rows)}; expected one "
            "for each, of the same rows and answers in the same order"
        )
    _check_mass(log_probs, whole=ids is None, chunk=chunk)

    def divergence(logits: Tensor, log_p: Tensor, *named: Tensor) -> Tensor:
        vocabulary, k = logits.shape[-1], log_p.shape[-1]
        _check_vocabulary(vocabulary, k, *named)
        log_p = log_p.to(logits.dtype)
        if not named:
            return _terms(log_p, logits.log_softmax(-1)).sum(-1)
        top = logits.gather(-1, named[0])
        every = logits.logsumexp(-1)
        kept = _terms(log_p, top - every[:, None]).sum(-1)
        if k == vocabulary:
            return kept
        rest = logits.scatter(-1, named[0], -torch.inf).logsumexp(-1)  # 1 - (mass on ids) would lose precision
        left = (1 - log_p.double().exp().sum(-1)).clamp(min=0).to(logits.dtype)
        return kept + _terms(left.log(), rest - every)

    others = (log_probs,) if ids is None else (log_probs, ids)
    each = position_losses(divergence, lm_head, hidden[rows, columns], *others, chunk=chunk)
    return reduced(each, rows, len(labels), row_weight, reduce)


def _terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``p (log p - log q)``, and 0 where p is 0."""
    return log_p.exp() * torch.where(log_p == -torch.inf, 0.0, log_p - log_q)


def _check_vocabulary(vocabulary: int, k: int, *named: Tensor) -> None:
    """Check that a whole teacher has the student's vocabulary size and that a top-k teacher's ids are in it."""
    if not named:
        if k != vocabulary:
            raise DataError(
                f"the teacher has {k} tokens and no ids, the student a vocabulary of {vocabulary}; expected as many, from "
                "a teacher with the same tokenizer"
            )
    elif named[0].numel() and not 0 <= int(named[0].min()) <= int(named[0].max()) < vocabulary:
        raise DataError(
            f"the teacher names tokens {int(named[0].min())} … {int(named[0].max())}, the student has 0 … "
            f"{vocabulary - 1}; expected a teacher with the same tokenizer"
        )


def _check_mass(log_probs: Tensor, *, whole: bool, chunk: int) -> None:
    """Check that the probabilities sum to at most 1, which logits, or log-probabilities in bits, rarely do."""
    mass = torch.cat([rows.float().logsumexp(-1) for rows in log_probs.split(max(chunk, 1))]).exp()
    wrong = ~((mass <= 1 + _ROUNDING) & (mass >= (1 - _ROUNDING if whole else 0.0)))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise DataError(
            f"the teacher's probabilities at answer token {i} sum to {float(mass[i]):.4g}; expected "
            f"{'1' if whole else 'at most 1'}: log_probs are natural logarithms, from log_softmax over the vocabulary"
        )

"""Cross-entropy of the answer tokens."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from promptlora.losses.positions import CHUNK, answer_positions, position_losses, reduced


def sft_loss(
    hidden: Float[Tensor, "batch seq d"],
    labels: Int[Tensor, "batch seq"],
    lm_head: Callable[[Tensor], Tensor],
    *,
    row_weight: str = "token",
    reduce: bool = True,
    chunk: int = CHUNK,
) -> Tensor:
    """Cross-entropy of the answer tokens, in nats, computed in float32 or float64.

    At least one row needs an answer token; a row without one counts as a row with loss 0. The memory for logits depends
    on ``chunk``, not on the number of answer tokens.

    Args:
        hidden: Last hidden states.
        labels: Token ids, on any device; -100 at every position that is not an answer token.
        lm_head: Maps hidden states ``[n, d]`` to logits ``[n, vocabulary]``, each row independently.
        row_weight: ``token`` weights each answer token equally; ``row`` weights each row equally.
        reduce: False returns the mean loss of each row, ``[batch]``.
        chunk: Number of positions whose logits exist at the same time.

    Raises:
        ConfigError: An unknown ``row_weight``, or a chunk below 1.
        DataError: There is no answer token at all.
    """
    rows, columns = answer_positions(labels)
    tokens = labels[rows, columns + 1].to(hidden.device)
    rows, columns = rows.to(hidden.device), columns.to(hidden.device)

    def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits, tokens, reduction="none")

    each = position_losses(cross_entropy, lm_head, hidden[rows, columns], tokens, chunk=chunk)
    return reduced(each, rows, len(labels), row_weight, reduce)

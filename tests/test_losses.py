"""The loss on answer positions alone against the naive twin: full logits, one token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from promptlora.losses import IGNORED, answer_positions, sft_loss

VOCAB, WIDTH = 11, 6


def naive_rows(hidden: Tensor, labels: Tensor, weight: Tensor) -> list[list[Tensor]]:
    """For each row the loss of each answer token, from full logits: the state at t - 1 predicts token t."""
    logits = hidden @ weight.T
    return [
        [
            F.cross_entropy(logits[row, t - 1][None], labels[row, t][None])
            for t in range(1, labels.shape[1])
            if labels[row, t] != IGNORED
        ]
        for row in range(labels.shape[0])
    ]


@st.composite
def problems(draw) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, labels with one run of answer tokens a row at any place but the first, and a head."""
    rows, seq = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.full((rows, seq), IGNORED)
    for row in range(rows):
        start = draw(st.integers(1, seq - 1))
        stop = draw(st.integers(start + 1, seq))
        labels[row, start:stop] = torch.randint(VOCAB, (stop - start,), generator=generator)
    hidden = torch.randn(rows, seq, WIDTH, generator=generator, dtype=torch.float64)
    return hidden, labels, torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)


@given(problems(), st.sampled_from(["token", "row"]))
@settings(max_examples=60, deadline=None)
def test_it_is_the_cross_entropy_of_full_logits_and_so_are_its_gradients(problem, row_weight):
    hidden, labels, weight = problem
    ours = [t.clone().requires_grad_() for t in (hidden, weight)]
    theirs = [t.clone().requires_grad_() for t in (hidden, weight)]
    loss = sft_loss(ours[0], labels, lambda h: h @ ours[1].T, row_weight=row_weight)
    rows = naive_rows(theirs[0], labels, theirs[1])
    if row_weight == "token":
        expected = torch.stack([each for row in rows for each in row]).mean()
    else:
        expected = torch.stack([torch.stack(row).mean() for row in rows]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)


@given(problems())
@settings(max_examples=30, deadline=None)
def test_unreduced_it_is_the_mean_of_each_row(problem):
    hidden, labels, weight = problem
    expected = torch.stack([torch.stack(row).mean() for row in naive_rows(hidden, labels, weight)])
    for row_weight in ("token", "row"):
        found = sft_loss(hidden, labels, lambda h: h @ weight.T, row_weight=row_weight, reduce=False)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_token_and_row_weights_differ_as_they_should():
    # One row of one answer token with loss 2 a token, one of three with loss 1.
    labels = torch.tensor([[IGNORED, 0, IGNORED, IGNORED], [IGNORED, 0, 0, 0]])

    def head(hidden: Tensor) -> Tensor:  # the loss of token 0 is the hidden value
        p = torch.exp(-hidden)
        return torch.cat([p, 1 - p], dim=-1).log()

    hidden = torch.tensor([[2.0] * 4, [1.0] * 4], dtype=torch.float64)[..., None]
    assert float(sft_loss(hidden, labels, head, row_weight="token")) == pytest.approx((2 + 3) / 4)
    assert float(sft_loss(hidden, labels, head, row_weight="row")) == pytest.approx((2 + 1) / 2)


def test_position_t_predicts_token_t_plus_1():
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    labels = ids.clone()
    labels[:, :3] = IGNORED
    rows, columns = answer_positions(labels)
    assert rows.tolist() == [0, 0, 0]
    assert columns.tolist() == [2, 3, 4]
    # A teacher that is sure of the next token has no loss; one shifted by a position has much.
    sure = F.one_hot(ids.roll(-1, dims=1), VOCAB).double() * 50
    assert float(sft_loss(sure, labels, lambda h: h)) < 1e-12
    for shift in (-1, 1):
        assert float(sft_loss(sure.roll(shift, dims=1), labels, lambda h: h)) > 10


def test_the_head_sees_the_answer_positions_alone():
    labels = torch.full((3, 50), IGNORED)
    labels[0, 10:12], labels[1, 49:], labels[2, 1:6] = 1, 2, 3
    seen: list[tuple[int, ...]] = []

    def head(hidden: Tensor) -> Tensor:
        seen.append(tuple(hidden.shape))
        return hidden

    sft_loss(torch.randn(3, 50, VOCAB), labels, head)
    assert seen == [(2 + 1 + 5, VOCAB)]


def test_a_bfloat16_head_gives_a_float32_loss():
    hidden, labels = torch.randn(1, 3, VOCAB).bfloat16(), torch.tensor([[IGNORED, 1, 2]])
    loss = sft_loss(hidden, labels, lambda h: h)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sft_loss(hidden.float(), labels, lambda h: h))

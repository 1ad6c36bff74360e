"""The loss on answer positions alone against the naive twin: full logits, one token at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from promptlora.errors import ConfigError, DataError
from promptlora.losses import IGNORED, answer_positions, sft_loss

VOCAB, WIDTH = 11, 6


def naive_rows(hidden: Tensor, labels: Tensor, weight: Tensor) -> list[list[Tensor]]:
    """For each row the loss of each answer token, from full logits: the state at t - 1 predicts token t."""
    logits = hidden @ weight.T

    def loss(logit: Tensor, token: Tensor) -> Tensor:
        return logit.exp().sum().log() - logit[token]

    return [
        [loss(logits[row, t - 1], labels[row, t]) for t in range(1, labels.shape[1]) if labels[row, t] != IGNORED]
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


@given(
    problems(),
    st.sampled_from(["token", "row"]),
    st.integers(1, 9),
    st.sampled_from(["frozen", "trained", "trained alone"]),
)
@settings(max_examples=150, deadline=None)
def test_it_is_the_cross_entropy_of_full_logits_and_so_are_its_gradients(problem, row_weight, chunk, head):
    hidden, labels, weight = problem
    grads = (head != "trained alone", head != "frozen")
    ours = [t.clone().requires_grad_(g) for t, g in zip((hidden, weight), grads, strict=True)]
    theirs = [t.clone().requires_grad_(g) for t, g in zip((hidden, weight), grads, strict=True)]
    options = {"row_weight": row_weight, "chunk": chunk}
    loss = sft_loss(ours[0], labels, lambda h: h @ ours[1].T, **options)
    rows = naive_rows(theirs[0], labels, theirs[1])
    if row_weight == "token":
        expected = torch.stack([each for row in rows for each in row]).mean()
    else:
        expected = torch.stack([torch.stack(row).mean() for row in rows]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    for mine, other, wanted in zip(ours, theirs, grads, strict=True):
        if wanted:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)
        else:
            assert mine.grad is None
    with torch.no_grad():
        assert float(sft_loss(*ours[:1], labels, lambda h: h @ ours[1].T, **options)) == pytest.approx(
            float(loss), 1e-12
        )


@given(problems(), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_unreduced_it_is_the_mean_of_each_row(problem, chunk):
    hidden, labels, weight = problem
    expected = torch.stack([torch.stack(row).mean() for row in naive_rows(hidden, labels, weight)])
    for row_weight in ("token", "row"):
        found = sft_loss(hidden, labels, lambda h: h @ weight.T, row_weight=row_weight, reduce=False, chunk=chunk)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_unreduced_chunks_are_exact_whatever_comes_after():
    torch.manual_seed(0)
    labels = torch.randint(VOCAB, (3, 5))
    labels[1, 2:] = IGNORED
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.float64)
    hidden = torch.randn(3, 5, WIDTH, dtype=torch.float64, requires_grad=True)

    def after(hidden: Tensor) -> Tensor:
        rows = sft_loss(hidden, labels, lambda h: h @ weight.T, reduce=False, chunk=2)
        return (rows**2 * torch.tensor([1.0, -2.0, 0.5])).sum()

    assert torch.autograd.gradcheck(after, hidden)
    (slope,) = torch.autograd.grad(after(hidden), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # a second derivative is refused, not wrong
        slope.sum().backward()


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

    hidden = torch.randn(3, 50, VOCAB, requires_grad=True)
    sft_loss(hidden, labels, head)
    assert seen == [(2 + 1 + 5, VOCAB)]  # one chunk: one plain call
    seen.clear()
    sft_loss(hidden, labels, head, chunk=3).backward()
    assert seen == [(1, VOCAB), (3, VOCAB), (3, VOCAB), (2, VOCAB)]  # is the head trained? then once for each position


def test_one_chunk_is_bitwise_the_plain_loss():
    torch.manual_seed(0)
    weight, labels = torch.randn(VOCAB, WIDTH), torch.randint(VOCAB, (3, 9))
    ours, theirs = (torch.ones(3, 9, WIDTH, requires_grad=True) for _ in range(2))
    loss = sft_loss(ours, labels, lambda h: h @ weight.T)
    logits = theirs[:, :-1].flatten(0, 1) @ weight.T
    plain = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="none").mean()
    loss.backward()
    plain.backward()
    assert torch.equal(loss, plain)
    assert torch.equal(ours.grad, theirs.grad)


def test_a_bfloat16_head_gives_a_float32_loss():
    hidden, labels = torch.randn(1, 3, VOCAB).bfloat16(), torch.tensor([[IGNORED, 1, 2]])
    loss = sft_loss(hidden, labels, lambda h: h)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sft_loss(hidden.float(), labels, lambda h: h))
    torch.testing.assert_close(loss, sft_loss(hidden, labels, lambda h: h, chunk=1))


def test_chunks_of_bfloat16_states_have_the_gradient_of_one_chunk():
    torch.manual_seed(0)
    weight, labels = torch.randn(VOCAB, 64), torch.randint(VOCAB, (2, 20))
    slopes = []
    for chunk in (7, 1000):
        hidden = torch.ones(2, 20, 64).bfloat16().requires_grad_()
        sft_loss(hidden, labels, lambda h: F.linear(h.float(), weight), chunk=chunk).backward()
        slopes.append(hidden.grad)
    assert slopes[0].dtype == torch.bfloat16
    torch.testing.assert_close(slopes[0], slopes[1], rtol=2**-7, atol=0)  # rounded to bfloat16 twice instead of once


def test_a_row_without_answer_counts_as_zero_and_none_at_all_is_refused():
    labels = torch.tensor([[IGNORED, 1], [IGNORED, IGNORED]])
    hidden = torch.randn(2, 2, VOCAB, requires_grad=True)
    rows = sft_loss(hidden, labels, lambda h: h, reduce=False)
    assert rows[1] == 0
    torch.testing.assert_close(sft_loss(hidden, labels, lambda h: h, row_weight="row"), rows[0] / 2)
    labels[0, 0], labels[0, 1] = 1, IGNORED  # nothing comes before the first position, so nothing predicts it
    assert sft_loss(hidden, labels, lambda h: h, reduce=False).tolist() == [0, 0]
    with pytest.raises(DataError, match="none of the 2 rows has an answer token after its first position"):
        sft_loss(hidden, labels, lambda h: h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_weight": "rows"}, "row_weight='rows'; expected 'token'"),
        ({"chunk": 0}, "chunk=0; expected 1 or more"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        sft_loss(torch.randn(1, 3, VOCAB), torch.tensor([[IGNORED, 1, 2]]), lambda h: h, **options)


def loss_memory(*arguments: str) -> dict:
    bench = Path(__file__).parents[1] / "benchmarks" / "loss_memory.py"
    command = [sys.executable, str(bench), "--vocab", str(1 << 14), "--hidden", "16", "--json", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_does_not_grow_with_positions_times_vocabulary():
    """The bench itself on a small vocabulary, measured in processes of their own; full logits show that it would be seen."""
    logits = 4 << 14  # bytes of one position
    tokens = ["--chunk", "256", "--limit-gb", "1", "--tokens"]
    report = loss_memory("--route", "chunked", "full", *tokens, "1024", "4096")  # 16 MiB of logits: malloc's heap
    assert report["bytes_per_token"]["full"] > 2 * logits
    # What malloc keeps of a few chunks comes and goes, up to 50 MB: over many tokens it weighs little.
    far = loss_memory("--route", "chunked", "--chunk", "256", "--tokens", "1024", "16384")
    assert far["bytes_per_token"]["chunked"] < logits / 4
    chunked, full = report["results"][1], report["results"][3]  # 4,096 tokens
    assert chunked["loss"] == pytest.approx(full["loss"], rel=1e-5)
    assert chunked["slope_norm"] == pytest.approx(full["slope_norm"], rel=1e-5)
    (large,) = loss_memory("--route", "full", *tokens, "12288")["results"]
    assert "3 x 0.8 GB (logits, log-softmax, gradient) exceed the limit, 1.0 GB" in large["not_run"]
    report = loss_memory("--route", "recomputed", "--chunk", "512", "--tokens", "1024", "4096")  # 32 MiB: mapped
    assert report["bytes_per_token"]["recomputed"] < logits / 4

"""KL to a teacher, whole or top-k: against a naive twin, and its exact properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from promptlora.errors import ConfigError, DataError
from promptlora.losses import IGNORED, TeacherTargets, answer_positions, distillation_loss
from tests.helpers import tiny_llama

VOCAB, WIDTH = 9, 5


def top(log_probs: Tensor, k: int) -> TeacherTargets:
    """The k most likely tokens of whole distributions."""
    values, ids = log_probs.topk(k, dim=-1)
    return TeacherTargets(values, ids)


def naive(p: list[float], ids: list[int], logits: Tensor) -> Tensor:
    """The loss of one position, token by token; p are the teacher's probabilities of ids."""
    q = logits.exp() / logits.exp().sum()
    named = [q[i] for i in ids]
    total = sum((a * (math.log(a) - b.log()) for a, b in zip(p, named, strict=True)), start=q.new_zeros(()))
    others = [q[i] for i in range(len(q)) if i not in ids]
    rest = 1 - sum(p)
    if others and rest > 0:  # a rest below the rounding of the sum counts as none
        total = total + rest * (math.log(rest) - sum(others).log())
    return total


@st.composite
def problems(draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student states, labels with a run of answer tokens in each row, a head, and log-probabilities of a teacher."""
    rows, seq = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.full((rows, seq), IGNORED)
    for row in range(rows):
        start = draw(st.integers(1, seq - 1))
        labels[row, start : draw(st.integers(start + 1, seq))] = 1
    hidden = torch.randn(rows, seq, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    n = int((labels != IGNORED).sum())
    sharp = draw(st.floats(0.1, 8))
    return hidden, labels, weight, (torch.randn(n, VOCAB, generator=generator).double() * sharp).log_softmax(-1)


@given(problems(), st.integers(1, VOCAB + 1), st.sampled_from(["token", "row"]), st.integers(1, 9))
def test_it_is_the_naive_twin_and_so_are_its_gradients(problem, k, row_weight, chunk):
    hidden, labels, weight, log_p = problem
    teacher = TeacherTargets(log_p) if k > VOCAB else top(log_p, k)
    ids = torch.arange(VOCAB).expand_as(log_p) if teacher.ids is None else teacher.ids
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    options = {"row_weight": row_weight, "chunk": chunk}
    loss = distillation_loss(ours, labels, lambda h: h @ weight.T, teacher, **options)
    by_row: dict[int, list[Tensor]] = {}
    for i, (row, t) in enumerate(zip(*answer_positions(labels), strict=True)):
        each = naive(teacher.log_probs[i].exp().tolist(), ids[i].tolist(), theirs[row, t] @ weight.T)
        by_row.setdefault(int(row), []).append(each)
    rows = torch.stack([torch.stack(each).mean() for each in by_row.values()])
    tokens = torch.stack([each for row in by_row.values() for each in row])
    expected = tokens.mean() if row_weight == "token" else rows.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-9)
    unreduced = distillation_loss(hidden, labels, lambda h: h @ weight.T, teacher, **options, reduce=False)
    torch.testing.assert_close(unreduced, rows.detach(), rtol=1e-9, atol=1e-9)


@given(problems(), st.integers(1, VOCAB + 1), st.integers(1, 9))
def test_a_teacher_equal_to_the_student_gives_0_and_no_gradient(problem, k, chunk):
    hidden, labels, weight, _ = problem
    rows, columns = answer_positions(labels)
    log_p = (hidden[rows, columns] @ weight.T).log_softmax(-1)
    hidden.requires_grad_()
    teacher = TeacherTargets(log_p) if k > VOCAB else top(log_p, k)
    loss = distillation_loss(hidden, labels, lambda h: h @ weight.T, teacher, chunk=chunk)
    loss.backward()
    assert abs(loss.item()) < 1e-13
    assert hidden.grad.abs().max() < 1e-13


@given(problems())
def test_a_bucket_never_exceeds_the_whole_kl_and_comes_to_it_as_k_grows(problem):
    hidden, labels, weight, log_p = problem

    def head(states: Tensor) -> Tensor:
        return states @ weight.T

    whole = distillation_loss(hidden, labels, head, TeacherTargets(log_p))
    by_k = torch.stack([distillation_loss(hidden, labels, head, top(log_p, k)) for k in range(1, VOCAB + 1)])
    assert (by_k >= -1e-12).all()
    assert (by_k.diff() >= -1e-12).all()  # naming one more token never loses anything
    torch.testing.assert_close(by_k[-2:], whole.expand(2), rtol=1e-10, atol=1e-12)  # a tail of one token is no loss


@given(problems(), st.integers(1, VOCAB))
def test_no_step_away_from_the_teacher_makes_the_bucket_less(problem, k):
    _, _, _, log_p = problem
    labels = torch.full((len(log_p), 2), IGNORED)
    labels[:, 1] = 1
    teacher = top(log_p, k)
    step = torch.randn(log_p.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    for size in (0.01, 1.0):
        moved = (log_p + size * step)[:, None].expand(-1, 2, -1)
        assert distillation_loss(moved, labels, lambda h: h, teacher) >= -1e-12


def one(logits: Tensor, teacher: TeacherTargets) -> tuple[float, Tensor]:
    """Loss and gradient of one position with these logits."""
    leaf = logits.clone().requires_grad_()
    labels = torch.tensor([[IGNORED, 0]])
    loss = distillation_loss(torch.stack([leaf, leaf.detach()])[None], labels, lambda h: h, teacher)
    loss.backward()
    return loss.item(), leaf.grad


def test_a_tail_that_the_student_splits_as_the_teacher_does_loses_nothing():
    # The teacher has 0.8 of its mass on the top two; this student only 0.08, in the same proportion.
    p = torch.tensor([[0.6, 0.2, 0.1, 0.1]], dtype=torch.float64)
    student = torch.tensor([0.06, 0.02, 0.46, 0.46], dtype=torch.float64).log()
    kl, whole = one(student, TeacherTargets(p.log()))
    assert kl > 1.2
    bucket, gradient = one(student, top(p.log(), 2))
    assert bucket == pytest.approx(kl, rel=1e-9)
    torch.testing.assert_close(gradient, whole)


def test_a_step_moves_the_tail_towards_the_teachers():
    # The student's tail is 0.5, the teacher's 0.2: it has to shrink.
    p = torch.tensor([[0.3, 0.5, 0.2]], dtype=torch.float64)
    student = torch.tensor([0.4, 0.1, 0.5], dtype=torch.float64).log()
    _, gradient = one(student, top(p.log(), 2))
    assert float((student - 0.1 * gradient).softmax(-1)[2]) < 0.5


def test_a_tiny_tail_is_not_lost_in_rounding():
    # float32: the student's tail is 1e-20, so that 1 - (mass on ids) is 0 and its logarithm is not finite.
    logits = torch.tensor([0.0, -1.0] + [math.log(1e-20 / 8)] * 8)
    teacher = TeacherTargets(torch.tensor([[0.7, 0.2]]).log(), torch.tensor([[0, 1]]))
    loss, gradient = one(logits, teacher)
    q = logits.double().softmax(-1)
    expected = sum(p * math.log(p / x) for p, x in [(0.7, q[0]), (0.2, q[1]), (0.1, q[2:].sum())])
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient[2:].tolist() == pytest.approx([-0.1 / 8] * 8, rel=1e-5)
    # A teacher whose named tokens have all the mass: its tail is 0, and so is what it adds.
    sure = TeacherTargets(torch.tensor([[0.0, -math.inf]]), torch.tensor([[0, 1]]))
    loss, gradient = one(logits, sure)
    assert loss == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    assert gradient.isfinite().all()


def test_impossible_tokens_of_the_teacher_count_nothing():
    log_p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    loss, gradient = one(logits, TeacherTargets(log_p))
    log_q = logits.log_softmax(-1)
    assert loss == pytest.approx(float(-math.log(2) - (log_q[0] + log_q[1]) / 2))
    assert gradient.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    log_p = torch.randn(1, VOCAB).log_softmax(-1).requires_grad_()
    hidden = torch.randn(1, 2, VOCAB, requires_grad=True)
    distillation_loss(hidden, torch.tensor([[IGNORED, 1]]), lambda h: h, TeacherTargets(log_p)).backward()
    assert log_p.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    hidden, labels = torch.randn(1, 3, VOCAB).to(dtype), torch.tensor([[IGNORED, 1, 2]])
    teacher = top(torch.randn(2, VOCAB).log_softmax(-1).to(dtype), 4)
    loss = distillation_loss(hidden, labels, lambda h: h, teacher)
    assert loss.dtype == torch.float32
    exact = TeacherTargets(teacher.log_probs.double(), teacher.ids)
    torch.testing.assert_close(loss.double(), distillation_loss(hidden.double(), labels, lambda h: h, exact))


# --- the shift: a teacher that reads more than the student ---------------------------------------------------


def laid_out(contexts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and labels of context and answer in each row."""
    width = max(len(c) + len(a) for c, a in zip(contexts, answers, strict=True))
    ids, labels = torch.zeros(len(answers), width, dtype=torch.long), torch.full((len(answers), width), IGNORED)
    for row, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        end = len(context) + len(answer)
        ids[row, :end] = torch.tensor(context + answer)
        labels[row, len(context) : end] = torch.tensor(answer)
    return ids, labels


@torch.no_grad()
def test_the_target_of_a_position_is_the_next_token():
    model = tiny_llama()
    inputs, answers = [[5, 6, 7], [8, 9], [10, 11, 12, 13]], [[20, 21, 22], [23], [24, 25]]
    ids, labels = laid_out(inputs, answers)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    each = []  # by hand: the distribution of each answer token, from the context that comes before it
    for context, answer in zip(inputs, answers, strict=True):
        for i in range(len(answer)):
            logits = model(input_ids=torch.tensor([context + answer[:i]]), use_cache=False).logits
            each.append(logits[0, -1].log_softmax(-1))
    by_hand = torch.stack(each)
    for k in (1, 5, 97):
        assert abs(distillation_loss(hidden, labels, model.lm_head, top(by_hand, k)).item()) < 1e-12
    assert abs(distillation_loss(hidden, labels, model.lm_head, TeacherTargets(by_hand)).item()) < 1e-12
    logits = model(input_ids=ids, use_cache=False).logits
    rows, columns = answer_positions(labels)
    for shift in (-1, 1):  # the distribution of the token before, or after, the right one
        wrong = logits[rows, columns + shift].log_softmax(-1)
        assert distillation_loss(hidden, labels, model.lm_head, TeacherTargets(wrong)) > 0.1


INPUTS = ["The film was a waste of two hours.", "Such a warm and clever book, I loved it!", "It is fine, I guess."]
ANSWERS = [" The answer is negative.", " I would say positive.", " neutral"]
PROMPT = "Classify the sentiment of the text as positive, negative or neutral.\n\n"


@pytest.fixture(scope="module")
def real(smollm):
    """Student states and labels, and the teacher's whole distributions with the prompt in its context."""
    model, tokenizer = smollm
    answers = [tokenizer(text)["input_ids"] for text in ANSWERS]
    states, laid = [], []
    for prompt in ("", PROMPT):
        ids, labels = laid_out([tokenizer(prompt + text)["input_ids"] for text in INPUTS], answers)
        with torch.no_grad():
            states.append(model.model(input_ids=ids, use_cache=False).last_hidden_state)
        laid.append(labels)
    head = model.get_output_embeddings()
    rows, columns = answer_positions(laid[1])
    with torch.no_grad():
        log_p = head(states[1][rows, columns]).log_softmax(-1)
    return states[0], laid[0], head, log_p


@pytest.mark.real
def test_bucket_against_whole_on_real_distributions(real):
    """How much of the KL the k most likely of 49,152 tokens and a bucket keep: never more than all of it."""
    hidden, labels, head, log_p = real
    whole = distillation_loss(hidden, labels, head, TeacherTargets(log_p)).item()
    assert whole > 0.3
    shares = [distillation_loss(hidden, labels, head, top(log_p, k)).item() / whole for k in (1, 16, 256, 4096)]
    assert shares == sorted(shares)
    assert shares[-1] < 1.0001
    assert all(share > least for share, least in zip(shares[1:], (0.7, 0.9, 0.99), strict=True))


@pytest.mark.real
@pytest.mark.parametrize("k", [None, 1, 16, 49152])
def test_on_real_weights_a_teacher_that_reads_the_same_has_kl_0(real, k):
    hidden, labels, head, _ = real
    rows, columns = answer_positions(labels)
    with torch.no_grad():
        log_p = head(hidden[rows, columns]).log_softmax(-1)
    teacher = TeacherTargets(log_p) if k is None else top(log_p, k)
    leaf = hidden.clone().requires_grad_()
    loss = distillation_loss(leaf, labels, head, teacher, chunk=4)
    loss.backward()
    assert abs(loss.item()) < 2e-5  # float32: the mass of 49,152 tokens is 1 to about 1e-5
    moved = F.normalize(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    other = (hidden + 0.1 * hidden.norm(dim=-1, keepdim=True) * moved).requires_grad_()
    away = distillation_loss(other, labels, head, teacher, chunk=4)
    away.backward()
    assert leaf.grad.norm() < 1e-3 * other.grad.norm()
    for shift in (-1, 1):  # the distributions of the token before, or after, the right one
        with torch.no_grad():
            wrong = head(hidden[rows, columns + shift]).log_softmax(-1)
        assert distillation_loss(hidden, labels, head, TeacherTargets(wrong) if k is None else top(wrong, k)) > 0.1


@pytest.mark.real
def test_chunks_of_real_weights_are_the_whole(real):
    hidden, labels, head, log_p = real
    teacher, found = top(log_p, 16), []
    for chunk in (3, 1024):
        leaf = hidden.clone().requires_grad_()
        loss = distillation_loss(leaf, labels, head, teacher, chunk=chunk)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(slope for _, slope in found), rtol=1e-3, atol=1e-6)


# --- bad input -----------------------------------------------------------------------------------------------


def test_bad_teachers_are_named():
    hidden, labels = torch.randn(1, 3, VOCAB), torch.tensor([[IGNORED, 1, 2]])
    whole = torch.randn(2, VOCAB).log_softmax(-1)

    def loss(teacher: TeacherTargets, **options) -> Tensor:
        return distillation_loss(hidden, labels, lambda h: h, teacher, **options)

    loss(TeacherTargets(whole))
    with pytest.raises(DataError, match="distributions for 1 answer tokens, the labels hold 2"):
        loss(TeacherTargets(whole[:1]))
    with pytest.raises(DataError, match=f"{VOCAB - 1} tokens and no ids, the student a vocabulary of {VOCAB}"):
        loss(TeacherTargets(torch.randn(2, VOCAB - 1).log_softmax(-1)))
    with pytest.raises(DataError, match=f"names tokens 1 … {VOCAB}, the student has 0 … {VOCAB - 1}"):
        loss(TeacherTargets(torch.tensor([[-1.0], [-1.0]]), torch.tensor([[1], [VOCAB]])))
    with pytest.raises(DataError, match=r"at answer token 1 sum to .*; expected 1: log_probs are natural logarithms"):
        loss(TeacherTargets(torch.stack([whole[0], whole[1] + 1])))
    with pytest.raises(DataError, match=r"at answer token 0 sum to .*; expected at most 1"):
        loss(TeacherTargets(torch.tensor([[5.0], [-1.0]]), torch.tensor([[1], [2]])))
    with pytest.raises(DataError, match="at answer token 1 sum to nan"):
        loss(TeacherTargets(torch.tensor([[-1.0], [math.nan]]), torch.tensor([[1], [2]])))
    with pytest.raises(ConfigError, match="chunk=0"):
        loss(TeacherTargets(whole), chunk=0)
    for log_probs, ids in ((whole, torch.zeros(2, 3, dtype=torch.long)), (whole[0], None)):
        with pytest.raises(
            (DataError, TypeError), match=r"expected \[n, k\] for both|n k"
        ):  # jaxtyping's when it is on
            TeacherTargets(log_probs, ids)


def test_the_order_is_that_of_answer_positions():
    """Two rows swapped in the labels are swapped in the teacher, and nothing else."""
    torch.manual_seed(0)
    hidden, labels = torch.randn(2, 4, VOCAB), torch.tensor([[IGNORED, IGNORED, 1, 2], [IGNORED, 3, 4, 5]])
    log_p = torch.randn(5, VOCAB).log_softmax(-1)
    loss = distillation_loss(hidden, labels, lambda h: h, TeacherTargets(log_p), reduce=False)
    swapped = distillation_loss(
        hidden.flip(0), labels.flip(0), lambda h: h, TeacherTargets(torch.cat([log_p[2:], log_p[:2]])), reduce=False
    )
    torch.testing.assert_close(loss, swapped.flip(0))
    wrong = distillation_loss(hidden.flip(0), labels.flip(0), lambda h: h, TeacherTargets(log_p), reduce=False)
    assert (wrong.flip(0) - loss).abs().max() > 0.01

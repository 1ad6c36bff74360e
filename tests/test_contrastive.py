"""The contrastive loss against its naive twin, one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from promptlora.errors import ConfigError
from promptlora.losses import contrastive_loss


def naive(contexts: Tensor, groups: list[int], temperature: float) -> float:
    """Equation 2 of Khosla et al. 2020, written out."""
    losses = []
    for i, anchor in enumerate(contexts):
        shares = {
            j: math.exp(float(anchor @ other / anchor.norm() / other.norm()) / temperature)
            for j, other in enumerate(contexts)
            if j != i
        }
        own = [j for j in shares if groups[j] == groups[i]]
        if own:
            losses.append(-sum(math.log(shares[j] / sum(shares.values())) for j in own) / len(own))
    return sum(losses) / len(losses) if losses else 0.0


@given(
    groups=st.lists(st.integers(-2, 3), min_size=1, max_size=9),
    temperature=st.sampled_from([0.07, 0.5, 2.0]),
    seed=st.integers(0, 999),
)
def test_it_is_its_naive_twin(groups, temperature, seed):
    contexts = torch.randn(len(groups), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    contexts.requires_grad_()
    loss = contrastive_loss(contexts, torch.tensor(groups), temperature)
    assert loss.item() == pytest.approx(naive(contexts.detach(), groups, temperature), rel=1e-9, abs=1e-12)
    loss.backward()
    assert contexts.grad is not None
    assert contexts.grad.isfinite().all()


def test_its_gradient_is_that_of_differences():
    contexts = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda c: contrastive_loss(c, groups, 0.3), contexts)


def test_wordings_together_are_better_than_apart():
    near = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    together, apart = (contrastive_loss(near, torch.tensor(groups)) for groups in ([0, 0, 1, 1], [0, 1, 0, 1]))
    assert together < 0.01
    assert apart > 5


def test_without_wordings_of_one_task_it_is_0():
    assert contrastive_loss(torch.randn(3, 4), torch.tensor([0, 1, 2])) == 0


def test_coarser_contexts_are_computed_in_float32():
    contexts = torch.randn(6, 4, dtype=torch.bfloat16)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = contrastive_loss(contexts, groups)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(contexts.float(), groups))


@pytest.mark.parametrize(
    ("shape", "groups", "temperature", "expected"),
    [
        ((3, 4), [0, 1], 0.1, r"contexts \[3, 4\], groups \[2\]"),
        ((3, 2, 4), [0, 1, 1], 0.1, r"contexts \[3, 2, 4\]"),
        ((2, 4), [0, 1], 0.0, "temperature=0.0"),
        ((2, 4), [0, 1], float("nan"), "temperature=nan"),
    ],
)
def test_bad_arguments_are_one_line(shape, groups, temperature, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        contrastive_loss(torch.randn(shape), torch.tensor(groups), temperature)
    assert "\n" not in str(caught.value)


def test_it_never_waits_for_the_device():
    groups = torch.empty(4, dtype=torch.long, device="meta")  # a value that is asked for raises there
    assert contrastive_loss(torch.empty(4, 3, device="meta"), groups).shape == ()

"""Losses of the matrices themselves: distance of updates without forming them, and penalties, against dense values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from promptlora.errors import ConfigError, LoRAError
from promptlora.lora import LoRAWeights
from promptlora.losses import reconstruction_loss, weight_penalty
from promptlora.projections import find_projections
from tests.helpers import random_lora, tiny_llama

SHAPES = {"a.q_proj": (6, 6), "a.k_proj": (6, 3), "b.q_proj": (6, 6), "b.o_proj": (5, 7)}


def make(adapters: int, rank: int, scaling: float, seed: int, dtype: torch.dtype = torch.float64) -> LoRAWeights:
    """Adapters of four projections, three shapes; ranks differ by projection."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    matrices = {
        name: (random(adapters, d_in, rank + i % 2), random(adapters, rank + i % 2, d_out))
        for i, (name, (d_in, d_out)) in enumerate(SHAPES.items())
    }
    return LoRAWeights(matrices, scaling)


def dense(lora: LoRAWeights, target: LoRAWeights, relative: bool) -> Tensor:
    """The definition, adapter by adapter, with the updates formed."""
    found = []
    for name in lora:
        for ours, theirs in zip(lora.delta(name), target.delta(name), strict=True):
            size = theirs.square().sum() if relative else 1.0
            found.append((ours - theirs).square().sum() / size)
    return sum(found[1:], start=found[0]) / len(found)


def slopes(loss: Tensor, *loras: LoRAWeights) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [m for lora in loras for pair in lora.stored.values() for m in pair])


ranks, counts, seeds = st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000)
scalings = st.floats(0.1, 4).flatmap(lambda x: st.sampled_from([x, -x]))


@given(counts, ranks, ranks, scalings, scalings, seeds, st.booleans())
def test_it_is_the_dense_value_and_so_are_its_gradients(adapters, rank, other, scaling, target_scaling, seed, relative):
    lora, target = make(adapters, rank, scaling, seed), make(adapters, other, target_scaling, seed + 1)
    found, expected = reconstruction_loss(lora, target, relative=relative), dense(lora, target, relative)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    pairs = zip(slopes(found, lora, target), slopes(expected, lora, target), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9 * float(theirs.abs().max()) + 1e-12)


@given(counts, ranks, seeds)
def test_factors_do_not_matter_only_the_update(adapters, rank, seed):
    lora, target = make(adapters, rank, 0.5, seed), make(adapters, 2, 2.0, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mixed = {}
    for name, (A, B) in lora.items():  # A R, R^-1 B, with a rotation times a diagonal: never close to singular
        r = A.shape[2]
        rotation = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))[0]
        stretch = torch.rand(r, generator=generator, dtype=torch.float64) * 9.9 + 0.1
        mixed[name] = (A @ (rotation * stretch), (rotation / stretch).T @ B)
    other = LoRAWeights(mixed, 0.5)
    torch.testing.assert_close(reconstruction_loss(other, target), reconstruction_loss(lora, target), rtol=1e-9, atol=0)
    assert reconstruction_loss(other, lora) < 1e-12
    torch.testing.assert_close(
        reconstruction_loss(other.rescale(3.0), target), reconstruction_loss(lora, target), rtol=1e-9, atol=0
    )


@given(counts, ranks, seeds)
def test_of_itself_it_is_0_and_grows_with_the_distance(adapters, rank, seed):
    lora = make(adapters, rank, 0.5, seed)
    assert 0 <= reconstruction_loss(lora, lora) < 1e-14
    twice = LoRAWeights({name: (A, 2 * B) for name, (A, B) in lora.items()}, 0.5)
    torch.testing.assert_close(reconstruction_loss(twice, lora).item(), 1.0)  # |2 W - W|^2 / |W|^2
    nothing = LoRAWeights({name: (A, 0 * B) for name, (A, B) in lora.items()}, 0.5)
    torch.testing.assert_close(reconstruction_loss(nothing, lora).item(), 1.0)
    padded = LoRAWeights(
        {n: (torch.nn.functional.pad(A, (0, 2), value=1.0), torch.nn.functional.pad(B, (0, 0, 0, 2))) for n, (A, B) in lora.items()},
        0.5,
    )  # fmt: skip
    assert 0 <= reconstruction_loss(padded, lora) < 1e-14  # a rank that adds nothing


def test_a_small_distance_survives_float32():
    """Of float32 adapters a relative distance of 1e-8 is the small difference of large sums; float64 inside keeps it."""
    target = make(2, 4, 0.5, 0, torch.float32)
    near = LoRAWeights({name: (A, B * (1 + 1e-4)) for name, (A, B) in target.items()}, 0.5)
    found = reconstruction_loss(near, target)
    assert found.dtype == torch.float32
    exact = dense(near.to(torch.float64), target.to(torch.float64), relative=True)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_ranks_dtypes_and_selections_may_differ():
    projections = find_projections(tiny_llama())
    lora = random_lora(projections, 3, rank=4, dtype=torch.bfloat16, requires_grad=True)
    target = random_lora(projections, 2, rank=2, scaling=1.5, dtype=torch.float32, seed=1)
    chosen = lora.select([2, 0])
    found = reconstruction_loss(chosen, target)
    assert found.dtype == torch.float32
    expected = dense(chosen.to(torch.float64), target.to(torch.float64), relative=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    found.backward()
    for A, B in lora.stored.values():
        for slope in (A.grad, B.grad):
            assert slope.dtype == torch.bfloat16
            assert slope.abs().flatten(1).sum(1).gt(0).tolist() == [True, False, True]


def test_what_does_not_fit_is_named():
    lora = make(2, 2, 0.5, 0)
    with pytest.raises(LoRAError, match=r"b\.q_proj: not in both"):
        reconstruction_loss(lora, LoRAWeights({n: pair for n, pair in lora.items() if n != "b.q_proj"}, 0.5))
    with pytest.raises(LoRAError, match="2 generated and 1 target adapters"):
        reconstruction_loss(lora, lora.select(0))
    other = dict(lora.items()) | {"a.k_proj": lora["b.q_proj"]}
    with pytest.raises(LoRAError, match=r"a\.k_proj: 6 to 3 features, the target has 6 to 6; expected adapters of the"):
        reconstruction_loss(lora, LoRAWeights(other, 0.5))
    A, B = lora["b.o_proj"]
    empty = LoRAWeights(dict(lora.items()) | {"b.o_proj": (A, B * torch.tensor([1.0, 0.0])[:, None, None])}, 0.5)
    with pytest.raises(
        LoRAError, match=r"b\.o_proj: the update of target adapter 1 has the squared norm 0, .* drop it"
    ):
        reconstruction_loss(lora, empty)
    assert reconstruction_loss(lora, empty, relative=False) > 0
    broken = LoRAWeights(dict(lora.items()) | {"b.o_proj": (A * math.nan, B)}, 0.5)
    with pytest.raises(LoRAError, match=r"b\.o_proj: the update of target adapter 0 has the squared norm nan"):
        reconstruction_loss(lora, broken)


# --- penalties -----------------------------------------------------------------------------------------------


@given(counts, ranks, seeds, st.floats(0, 2))
def test_the_penalty_is_a_mean_over_all_entries_at_once(adapters, rank, seed, l2):
    lora = make(adapters, rank, 0.5, seed)
    entries = torch.cat([matrix.flatten() for pair in lora.values() for matrix in pair])
    expected = l2 * entries.square().mean()
    found = weight_penalty(lora, l2=l2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    for mine, theirs in zip(slopes(found, lora), slopes(expected, lora), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-15)


def test_the_penalty_of_shared_factors_is_on_the_cores():
    """The factors are learned once; they are no output of a head, and larger than any core at the start."""
    A, B, C = torch.randn(5, 3), torch.randn(3, 4), torch.randn(2, 3, 3)
    shared = LoRAWeights.shared({"q_proj": (A, B)}, {"q_proj": C}, 1.0)
    torch.testing.assert_close(weight_penalty(shared, l2=0.5), 0.5 * C.square().mean())


def test_the_penalty_of_half_precision_is_summed_in_float32():
    big = LoRAWeights({"q_proj": (torch.ones(1, 1000, 8).half() * 100, torch.ones(1, 8, 1000).half() * 100)}, 1.0)
    assert weight_penalty(big, l2=1.0).item() == 100**2  # 1.6e8 in sum: float16 ends at 65,504


def test_no_penalty_is_0_and_a_negative_one_is_refused():
    lora = make(1, 2, 0.5, 0)
    assert weight_penalty(lora, l2=0.0).item() == 0
    for l2 in (-0.1, math.nan):
        with pytest.raises(ConfigError, match="expected 0 or more"):
            weight_penalty(lora, l2=l2)

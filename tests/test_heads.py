"""Weight heads: shapes, naive twins, the zero start with live gradients, and their parameter counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from promptlora.hypernet.config import CORE_KINDS, HEAD_KINDS, HyperNetworkConfig
from promptlora.hypernet.heads import head_parameters, make_head

WIDTH, RANK, PROMPTS, N = 12, 3, 2, 5
PAIR_KINDS = tuple(kind for kind in HEAD_KINDS if kind not in CORE_KINDS)  # those that write A and B


def make(kind: str, d_in: int, d_out: int, *, alive: bool = False) -> nn.Module:
    """A head in float64; ``alive`` gives every parameter random values."""
    torch.manual_seed(0)
    config = HyperNetworkConfig(head=kind, context_size=WIDTH, encoder_heads=1, rank=RANK, head_bottleneck=4)
    head = make_head(config, d_in, d_out).double()
    if alive:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_()
    return head


def features(seed: int = 1) -> Tensor:
    """What a LayerNorm lets out, ``[prompts, n, width]``."""
    x = torch.randn(PROMPTS, N, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.layer_norm(x, (WIDTH,))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def naive(kind: str, head: nn.Module, f: Tensor, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """A ``[in, rank]`` and B ``[rank, out]`` of one feature vector, entry by entry."""
    A, B = torch.zeros(d_in, RANK, dtype=f.dtype), torch.zeros(RANK, d_out, dtype=f.dtype)
    for r in range(RANK):
        for i in range(d_in):
            if kind == "full":
                A[i, r] = head.A.weight[i * RANK + r] @ f + head.A.bias[i * RANK + r]
            elif kind == "shared":
                row = r * max(d_in, d_out) + i
                A[i, r] = head.map.weight[row] @ (f + head.which[0]) + head.map.bias[row]
            elif kind == "rankwise":
                A[i, r] = head.A.weight[i] @ gelu(f + head.ranks[r]) + head.A.bias[i]
            else:
                A[i, r] = head.A.weight[i * RANK + r] @ (head.A_down.weight @ f) + head.A.bias[i * RANK + r]
        for o in range(d_out):
            if kind == "full":
                B[r, o] = head.B.weight[r * d_out + o] @ f + head.B.bias[r * d_out + o]
            elif kind == "shared":
                row = r * max(d_in, d_out) + o
                B[r, o] = head.gate[r] * (head.map.weight[row] @ (f + head.which[1]) + head.map.bias[row])
            elif kind == "rankwise":
                B[r, o] = head.B.weight[o] @ gelu(f + head.ranks[r]) + head.B.bias[o]
            else:
                B[r, o] = head.B.weight[r * d_out + o] @ (head.B_down.weight @ f) + head.B.bias[r * d_out + o]
    return A, B


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)])
@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_a_head_is_its_naive_twin(kind, shape):
    head = make(kind, *shape, alive=True)
    f = features()
    A, B = head(f)
    assert A.shape == (PROMPTS, N, shape[0], RANK)
    assert B.shape == (PROMPTS, N, RANK, shape[1])
    with torch.no_grad():
        for p in range(PROMPTS):
            for n in range(N):
                a, b = naive(kind, head, f[p, n], *shape)
                torch.testing.assert_close(A[p, n], a, rtol=0, atol=1e-12)
                torch.testing.assert_close(B[p, n], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_b_is_zero_at_the_start_and_its_gradient_is_not(kind):
    head = make(kind, 8, 5)
    A, B = head(features())
    assert torch.equal(B, torch.zeros_like(B))
    assert A.abs().max() > 0
    weights = torch.randn(B.shape, generator=torch.Generator().manual_seed(2), dtype=B.dtype)
    (B * weights).sum().backward()
    alive = head.gate if kind == "shared" else head.B.weight
    assert alive.grad is not None
    assert alive.grad.abs().max() > 1e-3


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_generated_a_starts_at_about_a_tenth_of_the_static_a(kind):
    torch.manual_seed(0)
    config = HyperNetworkConfig(head=kind, context_size=256, rank=8, head_bottleneck=64)
    A, _ = make_head(config, 64, 32)(nn.functional.layer_norm(torch.randn(1, 64, 256), (256,)))
    relative = float(A.detach().std()) * math.sqrt(64)  # of 1 / sqrt(in), the size of the static A
    summed = math.sqrt(2) * torch.randn(100_000)  # of a feature and an embedding of unit size
    length = {"shared": summed.square().mean().sqrt(), "rankwise": gelu(summed).square().mean().sqrt()}
    assert relative == pytest.approx(0.1 * float(length.get(kind, 1.0)), rel=0.2)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_what_a_prompt_changes_is_of_more_than_rank_two(kind):
    head = make(kind, 9, 9, alive=True)
    A, B = head(features())
    change = (A @ B)[0, 0] - (A @ B)[1, 0]
    assert int(torch.linalg.matrix_rank(change, rtol=1e-6)) == 2 * RANK


@given(
    kind=st.sampled_from(HEAD_KINDS),
    width=st.integers(1, 9),
    rank=st.integers(1, 5),
    bottleneck=st.integers(1, 7),
    d_in=st.integers(1, 11),
    d_out=st.integers(1, 11),
)
def test_the_stated_parameter_count_is_the_true_one(kind, width, rank, bottleneck, d_in, d_out):
    config = HyperNetworkConfig(head=kind, context_size=width, encoder_heads=1, rank=rank, head_bottleneck=bottleneck)
    head = make_head(config, d_in, d_out)
    assert head_parameters(config, d_in, d_out) == sum(p.numel() for p in head.parameters())


def test_the_published_count_of_full_heads_for_192_projections():
    config = HyperNetworkConfig(context_size=2048, rank=16)
    shapes = [(2048, 2048), (2048, 4096), (4096, 2048), (2048, 512)]
    assert sum(head_parameters(config, *shape) for shape in shapes) / 1e6 == pytest.approx(621, abs=1)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_a_projection_never_sees_another(kind):
    head = make(kind, 8, 5, alive=True)
    f = features()
    other = f.clone()
    other[0, 1] += 1
    A, B = head(f)
    A2, B2 = head(other)
    untouched = torch.ones(PROMPTS, N, dtype=torch.bool)
    untouched[0, 1] = False
    torch.testing.assert_close(A[untouched], A2[untouched], rtol=0, atol=1e-12)
    torch.testing.assert_close(B[untouched], B2[untouched], rtol=0, atol=1e-12)
    assert not torch.allclose(A[0, 1], A2[0, 1])
    assert not torch.allclose(B[0, 1], B2[0, 1])


# --- cores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CORE_KINDS)
def test_a_core_is_its_naive_twin_and_sees_its_own_feature_alone(kind):
    head, f = make(kind, 8, 5, alive=True), features()
    (C,) = head(f)
    assert C.shape == (PROMPTS, N, *((RANK,) if kind == "diagonal" else (RANK, RANK)))
    with torch.no_grad():
        for p in range(PROMPTS):
            for n in range(N):
                flat = [row @ f[p, n] + bias for row, bias in zip(head.C.weight, head.C.bias, strict=True)]
                torch.testing.assert_close(C[p, n].flatten(), torch.stack(flat), rtol=0, atol=1e-12)
    other = f.clone()
    other[0, 1] += 1
    changed = (head(other)[0] - C).abs().flatten(2).amax(2) > 1e-9
    assert changed.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("kind", CORE_KINDS)
def test_a_core_is_zero_at_the_start_and_its_gradient_is_not(kind):
    head = make(kind, 8, 5)
    (C,) = head(features())
    assert torch.equal(C, torch.zeros_like(C))
    (C * torch.randn(C.shape, generator=torch.Generator().manual_seed(2), dtype=C.dtype)).sum().backward()
    assert head.C.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_linear_layer_of_a_head_states_its_fan_in(kind):
    layers = [module for module in make(kind, 8, 5).modules() if isinstance(module, nn.Linear)]
    assert layers
    assert all(layer.fan_in == layer.in_features for layer in layers)

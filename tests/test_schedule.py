"""Rates by true fan-in, and gradient norms that are computed once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from promptlora import HyperNetwork, HyperNetworkConfig, find_projections
from promptlora.hypernet.config import HEAD_KINDS
from promptlora.train.checkpoints import _moments
from promptlora.train.config import OptimConfig
from promptlora.train.schedule import make_optimizer, norm_and_clip
from tests.helpers import tiny_llama

STEPS = 50
WIDTH = 256  # as wide as the default, so that a rate divided by it shows


def make(kind: str = "full", **options: object) -> HyperNetwork:
    torch.manual_seed(0)
    config = HyperNetworkConfig(
        source_layer=1, context_size=WIDTH, encoder_layers=1, encoder_heads=2, trunk_layers=1, rank=2, head=kind,
        head_bottleneck=16, **options,
    )  # fmt: skip
    return HyperNetwork(config, find_projections(tiny_llama(torch.float32)), 32)


def owner(network: HyperNetwork, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_part_of_a_head_moves_by_a_like_share_of_its_size(kind):
    """The share is how far a part can change what leaves it: a linear layer adds up fan_in moves, an embedding none.

    With head_lr_factor = 1 every part of every head, the trunk's embeddings and the static part move within a factor of 4
    of one another. An embedding whose rate is divided by the width of the context would be 256 times behind, an inner
    layer of 16 inputs 16 times.
    """
    network = make(kind)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = make_optimizer(network, OptimConfig(lr=1e-3, static_lr=1e-3, head_lr_factor=1.0, weight_decay=0.0))
    states, mask = torch.randn(4, 5, 32), torch.ones(4, 5, dtype=torch.bool)
    with torch.no_grad():
        targets = {name: delta + torch.randn_like(delta) for name, delta in deltas(network, states, mask).items()}
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = deltas(network, states, mask)
        sum((found[name] - target).square().mean() for name, target in targets.items()).backward()
        optimizer.step()
    shares = {}
    for name, parameter in network.named_parameters():
        if (
            ".heads." in name
            or name == "generator.embeddings"
            or name.startswith(("generator.static", "generator.factor"))
        ):
            layer = owner(network, name)
            linear = ".heads." in name and isinstance(layer, nn.Linear)
            moved = (parameter.detach() - before[name]).square().mean().sqrt().item()
            shares[name] = moved * layer.in_features if linear else moved
    assert any(".heads." in name for name in shares)
    assert max(shares.values()) < 4 * min(shares.values()), shares


def deltas(network: HyperNetwork, states: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    lora = network(states, mask)
    return {name: lora.delta(name) for name in lora}


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_rates_follow_the_fan_in_of_each_linear_layer(kind):
    network, config = make(kind), OptimConfig(lr=1e-3, static_lr=2e-3, head_lr_factor=8.0, weight_decay=0.1)
    groups = make_optimizer(network, config).param_groups
    names = {parameter: name for name, parameter in network.named_parameters()}
    of = {names[parameter]: group for group in groups for parameter in group["params"]}
    assert len(of) == len(names)
    for name, group in of.items():
        layer = owner(network, name)
        assert group["lr"] == group["top_lr"]
        if ".heads." in name and isinstance(layer, nn.Linear):  # the bias as its weight
            assert group["lr"] == pytest.approx(8e-3 / layer.in_features)
        elif name.startswith("generator.static") or name.endswith(".gate"):
            assert (group["lr"], group["weight_decay"]) == (2e-3, 0.0)
        elif ".heads." in name:  # an embedding
            assert group["lr"] == 1e-3
    assert not any(group["fused"] for group in groups)  # not on a CPU


@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_norms_are_those_of_two_clips_and_gradients_are_scaled_by_them(size):
    network, config = make("lowrank"), OptimConfig(clip=0.5, head_clip=0.1)
    groups = {name: [p for _, p in members] for name, members in network.parameter_groups().items()}
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter) * size / math.sqrt(parameter.numel())
    groups["trunk"][0].grad = None
    before = {id(p): p.grad.clone() for p in network.parameters() if p.grad is not None}
    norms = norm_and_clip(groups, config)

    def norm(*names: str) -> float:
        each = [before[id(p)].flatten() for name in names for p in groups[name] if id(p) in before]
        return torch.cat(each).double().norm().item()

    assert norms == {name: pytest.approx(norm(name), rel=1e-5) for name in ("trunk", "heads", "static")}
    for names, largest in ((("trunk", "static"), 0.5), (("heads",), 0.1)):
        factor = min(1.0, largest / (norm(*names) + 1e-6))
        for name in names:
            for p in groups[name]:
                if id(p) in before:
                    torch.testing.assert_close(p.grad, before[id(p)] * factor)


def test_norms_that_are_not_finite_are_reported():
    network = make()
    groups = {name: [p for _, p in members] for name, members in network.parameter_groups().items()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    groups["heads"][0].grad.flatten()[0] = math.nan
    norms = norm_and_clip(groups, OptimConfig())
    assert math.isnan(norms["heads"])
    assert norms["trunk"] == norms["static"] == 0


def test_multi_task_lora_alone_has_no_heads_and_no_trunk():
    network = make(generated=False)
    groups = {name: [p for _, p in members] for name, members in network.parameter_groups().items()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = norm_and_clip(groups, OptimConfig(clip=1.0))
    assert norms["heads"] == norms["trunk"] == 0
    assert torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_the_count_of_steps_of_a_resumed_run_is_where_the_optimizer_wants_it(fused):
    parameter = nn.Parameter(torch.empty(3, device="meta"))
    tensors = {"p|step": torch.tensor(5.0), "p|exp_avg": torch.zeros(3)}
    state = _moments(tensors, {"p": parameter}, fused)[parameter]
    assert state["exp_avg"].is_meta
    assert state["step"].is_meta == fused


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adamw_is_fused_on_a_gpu():
    assert all(group["fused"] for group in make_optimizer(make().to("cuda"), OptimConfig()).param_groups)

"""Targets and the plan: counts against meta-device twins and arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from promptlora.errors import ConfigError, ModelError, ProjectionError
from promptlora.hypernet.config import HEAD_KINDS, HyperNetworkConfig
from promptlora.hypernet.heads import make_head
from promptlora.hypernet.network import HyperNetwork
from promptlora.hypernet.plan import active_parameters, plan_targets
from promptlora.hypernet.targets import describe_targets
from promptlora.models import load_base, load_config, load_meta
from tests.architectures import CASES, build_meta
from tests.helpers import random_lora, tiny_llama


@pytest.fixture(scope="module")
def coder_next():
    return load_meta("qwen3-coder-next")


@pytest.fixture(scope="module")
def plan(coder_next):
    return plan_targets(coder_next)


def case(identifier: str):
    return next(case for case in CASES if case.id == identifier)


# --- targets -----------------------------------------------------------------------------------------------


def test_the_table_of_qwen3_coder_next(coder_next) -> None:
    targets = describe_targets(coder_next)
    assert [(s.in_features, s.out_features, s.count, s.which) for s in targets.shapes] == [
        (2048, 2048, 72, "DeltaNet q, k"),
        (2048, 4096, 48, "DeltaNet v and attention q"),
        (4096, 2048, 48, "DeltaNet o and attention o"),
        (2048, 512, 24, "attention k, v"),
    ]
    assert len(targets.projections) == 192
    assert targets.modules == 120
    assert targets.others == {"z": 36, "b": 36, "a": 36, "gate": 12}
    assert targets.head_parameters["full"] == 621_060_096  # sum over shapes of (D + 1) r (in + out)
    small = {kind for kind, n in targets.head_parameters.items() if n < 100e6}
    assert small == {"rankwise", "lowrank", "core", "diagonal"}
    assert targets.head_parameters["core"] == 4 * 2049 * 16 * 16  # (D + 1) r² for each shape: 2.1 M
    scan = targets.scan
    assert (scan.found, scan.missed, scan.mixed, scan.foreign) == (48, 144, 12, 0)
    assert scan.missed_which == "DeltaNet q 36, k 36, v 36, o 36"


def test_other_parts_can_be_asked_for(coder_next) -> None:
    targets = describe_targets(coder_next, roles=("z", "gate"))
    assert [(s.count, s.which) for s in targets.shapes] == [(48, "DeltaNet z and attention gate")]
    assert targets.others == {"q": 48, "k": 48, "v": 48, "o": 48, "b": 36, "a": 36}


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_parameters_of_heads_are_those_of_real_heads(kind: str) -> None:
    targets = describe_targets(tiny_llama(), 3, 8, head_bottleneck=5)
    config = HyperNetworkConfig(head=kind, rank=3, context_size=8, head_bottleneck=5)
    heads = [make_head(config, s.in_features, s.out_features) for s in targets.shapes]
    assert targets.head_parameters[kind] == sum(p.numel() for head in heads for p in head.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_an_adapter_are_those_of_a_real_one(dtype: torch.dtype) -> None:
    targets = describe_targets(tiny_llama(), 5, 8, dtype=dtype)
    lora = random_lora(targets.projections, rank=5, dtype=dtype)
    matrices = [matrix for pair in lora.values() for matrix in pair]
    assert targets.adapter_bytes == sum(m.numel() * m.element_size() for m in matrices)
    assert targets.adapter_parameters == sum(m.numel() for m in matrices)


def test_a_scan_also_hits_the_vision_tower_and_misses_fused_modules() -> None:
    scan = describe_targets(build_meta(case("gemma3-with-vision-tower")), 4, 8).scan
    assert (scan.found, scan.missed, scan.foreign) == (11, 0, 3)
    scan = describe_targets(build_meta(case("phi3")), 4, 8).scan
    assert (scan.found, scan.missed, scan.missed_which) == (2, 6, "attention q 2, k 2, v 2")


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.id)
def test_every_family_can_be_described(one) -> None:
    targets = describe_targets(build_meta(one), 4, 8)
    assert sum(s.count for s in targets.shapes) == len(targets.projections)
    json.dumps(targets.to_dict())


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank=0"):
        describe_targets(tiny_llama(), 0)
    with pytest.raises(ConfigError, match="context_size=10 is not a multiple"):
        plan_targets(tiny_llama(), 4, 10)
    with pytest.raises(ProjectionError, match="'gate' is not a role"):
        describe_targets(tiny_llama(), roles=("gate",))


# --- active parameters -------------------------------------------------------------------------------------


def test_active_parameters_of_a_dense_model() -> None:
    model = tiny_llama(tie_word_embeddings=False)
    total, active = active_parameters(model)
    assert total == sum(p.numel() for p in model.parameters())
    assert active == total - model.model.embed_tokens.weight.numel()
    assert len(set(active_parameters(tiny_llama(tie_word_embeddings=True)))) == 1


def test_active_parameters_of_qwen3_coder_next(coder_next) -> None:
    total, active = active_parameters(coder_next)
    experts = 48 * 512 * 3 * 2048 * 512
    assert total - active == experts - experts * 10 // 512 + 151_936 * 2048
    assert 79e9 < total < 80e9
    assert 3e9 < active < 4e9


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.id)
def test_experts_are_recognised(one) -> None:
    model = build_meta(one)
    _, active = active_parameters(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    stacked = [n for n, p in model.named_parameters() if p.ndim == 3 and "conv" not in n and id(p) not in embeddings]
    assert all("experts" in n.split(".") for n in stacked if "vision" not in n and "position" not in n), stacked
    assert 0 < active <= sum(p.numel() for p in model.parameters())


def test_experts_without_a_share_are_refused() -> None:
    model = build_meta(case("mixtral"))
    model.config.num_experts_per_tok = 0
    with pytest.raises(ModelError, match="does not say how many experts a token uses"):
        active_parameters(model)


# --- the plan ----------------------------------------------------------------------------------------------


def test_the_plan_of_qwen3_coder_next(plan) -> None:
    heads = {h.kind: h for h in plan.heads}
    assert tuple(heads) == HEAD_KINDS
    assert {k for k, h in heads.items() if h.below_limit} == {"rankwise", "lowrank", "core", "diagonal"}
    assert heads["core"].adapter_bytes == 192 * 16 * 16 * 2
    assert heads["diagonal"].adapter_bytes == 192 * 16 * 2
    assert heads["full"].adapter_bytes == heads["core"].shared_bytes == plan.targets.adapter_bytes
    assert (heads["full"].shared_bytes, heads["full"].injection_flops_per_token) == (0, plan.injection_flops_per_token)
    assert plan.injection_flops_per_token == 2 * 16 * (72 * 4096 + 96 * 6144 + 24 * 2560)
    assert plan.injection_share == pytest.approx(0.00425, abs=1e-5)
    assert plan.batch_bytes == 64 * plan.targets.adapter_bytes
    for h in heads.values():
        assert h.training_bytes == 4 * h.bytes == 16 * h.parameters
    assert "full heads take 621.1 M. Heads below 100.0 M: rankwise (38.9 M), lowrank (20.8 M), " in plan.verdict
    assert "gives up" not in plan.verdict  # each kind says it
    json.dumps(plan.to_dict())


def test_the_whole_hypernetwork_that_the_verdict_names_is_below_the_limit(plan) -> None:
    found = plan.verdict.rpartition("A whole hypernetwork below it: ")[2]
    kind, _, rest = found.partition(" with encoder_layers=")
    encoder, _, rest = rest.partition(" and trunk_layers=")
    config = HyperNetworkConfig(
        head=kind, rank=16, context_size=2048, encoder_layers=int(encoder), trunk_layers=int(rest.partition(",")[0])
    )
    with torch.device("meta"):
        size = sum(p.numel() for p in HyperNetwork(config, plan.targets.projections, 2048).parameters())
    assert size < 100_000_000
    assert f"{size / 1e6:,.1f} M" in found


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_parameters_and_operations_by_arithmetic(plan, kind: str) -> None:
    D, r, k, T = 2048, 16, 64, 2
    head = next(h for h in plan.heads if h.kind == kind)
    n = len(plan.targets.projections)
    trunk = T * (2 * D * D * 2 + 3 * D + 2 * D)  # two maps with biases and a norm
    static = plan.targets.adapter_parameters
    core = {"core": r * r, "diagonal": r}.get(kind, 0)
    gate = D * D // 4 + D // 4 + D // 4 + 1 if core else 0
    scales = len(plan.targets.shapes) if core else 0
    assert head.generator == head.heads + trunk + static + n * D + (D * D + D) + 2 * D + n * core + gate + scales
    per_projection = {
        "core": lambda i, o: 2 * D * r * r,
        "diagonal": lambda i, o: 2 * D * r,
        "full": lambda i, o: 2 * D * r * (i + o),
        "shared": lambda i, o: 2 * 2 * D * r * max(i, o),
        "rankwise": lambda i, o: 2 * r * D * (i + o),
        "lowrank": lambda i, o: 2 * 2 * D * k + 2 * k * r * (i + o),
    }[kind]
    flops = 2 * D * D + n * T * 2 * (2 * D * D * 2)
    flops += 2 * (D * D // 4 + D // 4) if core else 0
    flops += sum(s.count * per_projection(s.in_features, s.out_features) for s in plan.targets.shapes)
    assert head.flops_per_adapter == flops
    assert head.base_tokens == pytest.approx(flops / (2 * plan.base_active_parameters))


def test_a_rankwise_head_moves_all_ranks() -> None:
    """The part of A @ B that depends on the prompt is not confined to rank 2, as it would be without the GELU."""
    torch.manual_seed(0)
    config = HyperNetworkConfig(context_size=8, rank=6)
    changes = {}
    for kind in ("full", "rankwise"):
        head = make_head(replace(config, head=kind), 12, 10).double()
        for parameter in head.parameters():
            nn.init.normal_(parameter)
        A, B = head(torch.randn(2, 1, 8, dtype=torch.float64))
        zero = head(torch.zeros(1, 1, 8, dtype=torch.float64))
        changes[kind] = int(torch.linalg.matrix_rank(A[0, 0] @ B[0, 0] - zero[0][0, 0] @ zero[1][0, 0]))
    assert changes["rankwise"] >= 6
    assert changes["full"] >= 6


def test_nothing_below_the_limit_is_said() -> None:
    plan = plan_targets(tiny_llama(), 4, 8, limit=1)
    assert "No kind of head stays below 0.0 M: take a smaller context size or rank" in plan.verdict


# --- the built-in configuration ----------------------------------------------------------------------------


def test_qwen3_coder_next_is_built_in_and_has_no_weights(coder_next) -> None:
    assert load_config("qwen3-coder-next").num_experts == 512
    assert all(p.is_meta for p in coder_next.parameters())
    with pytest.raises(ModelError, match="qwen3-coder-next: a built-in configuration without weights"):
        load_base("qwen3-coder-next")

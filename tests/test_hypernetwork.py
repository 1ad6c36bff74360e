"""The generator and ``HyperNetwork``: the start, the static part, batching, and files."""

from __future__ import annotations

import copy
import errno
import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from promptlora.adapt.prompt_lora import shipped_hypernetwork
from promptlora.errors import CheckpointError, ConfigError, OutputError
from promptlora.hypernet import network as module
from promptlora.hypernet.config import CORE_KINDS, HEAD_KINDS, HyperNetworkConfig
from promptlora.hypernet.generator import ShapeGroupedLoRAGenerator
from promptlora.hypernet.network import HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.losses import sft_loss
from promptlora.projections import Projection, find_projections, group_by_shape
from promptlora.text import PromptStates
from tests.helpers import tiny_gpt2, tiny_llama, token_ids

STATE = 32
PAIR_KINDS = tuple(kind for kind in HEAD_KINDS if kind not in CORE_KINDS)  # those that write A and B
EXACT = {"rtol": 0.0, "atol": 1e-11}


def small(**options: object) -> HyperNetworkConfig:
    return HyperNetworkConfig(
        **{
            "context_size": 16,
            "encoder_heads": 2,
            "encoder_layers": 1,
            "pooling_queries": 2,
            "trunk_layers": 1,
            "rank": 3,
            "alpha": 6.0,
            "head_bottleneck": 4,
            "source_layer": 1,
            **options,
        }
    )


def make(
    config: HyperNetworkConfig | None = None,
    projections: list[Projection] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    alive: bool = False,
) -> HyperNetwork:
    """A hypernetwork for the tiny Llama; ``alive`` moves every parameter away from its start."""
    torch.manual_seed(0)
    found = find_projections(tiny_llama()) if projections is None else projections
    made = HyperNetwork(config or small(), found, STATE, {"model_type": "llama", "weights": "abc"}).to(dtype)
    if alive:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def batch(*lengths: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """States and mask of prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(lengths), max(lengths), STATE, generator=generator, dtype=torch.float64).to(dtype)
    return states, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def assert_same(left: LoRAWeights, right: LoRAWeights, **tolerance: float) -> None:
    assert list(left) == list(right)
    for name in left:
        for a, b in zip(left[name], right[name], strict=True):
            torch.testing.assert_close(a, b, **tolerance)


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2])
def test_every_projection_gets_matrices_of_its_shape_in_the_order_given(model):
    projections = find_projections(model())
    assert len(group_by_shape(projections)) == (2 if model is tiny_llama else 1)
    lora = make(projections=projections)(*batch(4, 2, 6))
    assert list(lora) == [p.name for p in projections]
    assert lora.adapters == 3
    assert lora.scaling == 6.0 / 3
    assert lora.projections == tuple(projections)
    for p in projections:
        A, B = lora[p.name]
        assert A.shape == (3, p.in_features, 3)
        assert B.shape == (3, 3, p.out_features)


@pytest.mark.parametrize("kind", PAIR_KINDS)
@pytest.mark.parametrize("static", [True, False])
def test_the_generator_is_its_naive_twin(kind, static):
    generator = make(small(head=kind, static=static), alive=True).generator
    context = torch.randn(3, 16, dtype=torch.float64)
    lora = generator(context)
    ordered = [p for group in generator.groups.values() for p in group]  # of the embeddings
    for p in generator.projections:
        key = f"{p.in_features}x{p.out_features}"
        place = generator.groups[p.shape].index(p)
        for i in range(3):  # one prompt and one projection at a time
            x = generator.context(context[i]) + generator.embeddings[ordered.index(p)]
            feature = generator.norm(generator.trunk(x))
            A, B = (matrix[0, 0] for matrix in generator.heads[key](feature[None, None]))
            if static:
                A, B = A + generator.static_A[key][place], B + generator.static_B[key][place]
            torch.testing.assert_close(lora[p.name][0][i], A, **EXACT)
            torch.testing.assert_close(lora[p.name][1][i], B, **EXACT)


@pytest.mark.parametrize(
    "options", [{}, {"bounded": False, "normalised": False, "gate": False}], ids=["stable", "plain"]
)
@pytest.mark.parametrize("kind", CORE_KINDS)
@pytest.mark.parametrize("static", [True, False])
def test_the_generator_of_cores_is_its_naive_twin(kind, static, options):
    generator = make(small(head=kind, static=static, **options), alive=True).generator
    context = torch.randn(3, 16, dtype=torch.float64)
    lora = generator(context)
    assert lora.is_shared
    ordered = [p for group in generator.groups.values() for p in group]  # of the embeddings
    for p in generator.projections:
        key = f"{p.in_features}x{p.out_features}"
        place = generator.groups[p.shape].index(p)
        A, B, C = lora.stored[p.name]
        assert torch.equal(A, generator.factor_A[key][place])
        assert torch.equal(B, generator.factor_B[key][place])
        for i in range(3):  # one prompt and one projection at a time
            x = generator.context(context[i]) + generator.embeddings[ordered.index(p)]
            feature = generator.norm(generator.trunk(x))
            core = torch.nn.functional.linear(feature, *generator.heads[key].C.parameters()).view(C.shape[1:])
            if not options:
                feature = feature / feature.norm() * 16**0.5
                core = torch.nn.functional.linear(feature, *generator.heads[key].C.parameters()).view(C.shape[1:])
                core = torch.tanh(core * math.exp(3.5)) * torch.exp(generator.scales[key])
                core = core * torch.sigmoid(generator.gate_map(context[i]))
            if static:
                core = core + generator.static_C[key][place]
            torch.testing.assert_close(C[i], core, **EXACT)
            full = torch.diag(core) if kind == "diagonal" else core
            torch.testing.assert_close(lora.delta(p.name)[i], A @ full @ B * lora.scaling, **EXACT)


def test_projections_of_one_shape_get_different_matrices():
    lora = make(alive=True)(*batch(4))
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    assert not torch.allclose(lora[first][0], lora[second][0])
    assert not torch.allclose(lora[first][1], lora[second][1])


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_one_call_of_a_head_for_each_shape_however_many_layers(layers):
    hypernetwork = make(projections=find_projections(tiny_llama(num_hidden_layers=layers)))
    called: list[str] = []
    for key, head in hypernetwork.generator.heads.items():
        head.register_forward_hook(lambda *_, key=key: called.append(key))
    lora = hypernetwork(*batch(3, 4))
    assert len(lora) == 4 * layers
    assert called == ["32x32", "32x16"]


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_batch_of_prompts_is_one_prompt_at_a_time(kind):
    hypernetwork = make(small(head=kind), alive=True)
    states, mask = batch(4, 1, 7)
    together = hypernetwork(states, mask)
    for i in range(3):
        length = int(mask[i].sum())
        assert_same(together.select(i), hypernetwork(states[i : i + 1, :length], mask[i : i + 1, :length]), **EXACT)
    order = [2, 0, 1]
    assert_same(hypernetwork(states[order], mask[order]), together.select(order), **EXACT)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_parameter_counts_and_groups(kind):
    hypernetwork = make(small(head=kind))
    heads = sum(p.numel() for p in hypernetwork.generator.heads.parameters())
    assert hypernetwork.generator.head_parameter_count() == heads
    groups = hypernetwork.parameter_groups()
    names = [name for members in groups.values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in hypernetwork.named_parameters())
    assert all(".heads." in name for name, _ in groups["heads"])
    static = {name.rpartition(".")[0] for name, _ in groups["static"] if not name.endswith(".gate")}
    pair, core = {"static_A", "static_B"}, {"factor_A", "factor_B", "static_C", "scales"}
    assert static == {f"generator.{name}" for name in (core if kind in CORE_KINDS else pair)}
    assert any(name.endswith(".gate") for name, _ in groups["static"]) == (kind == "shared")
    inside = {name.rpartition(".")[2] for name, _ in groups["trunk"] if ".heads." in name}
    assert inside == {"shared": {"which"}, "rankwise": {"ranks"}}.get(kind, set())  # embeddings are no heads
    assert any(".gate_map." in name for name, _ in groups["trunk"]) == (kind in CORE_KINDS)
    for name, _ in groups["heads"]:
        layer = hypernetwork.get_submodule(name.rpartition(".")[0])
        assert hypernetwork.head_fan_in(name) == layer.weight.shape[1]
    for name, parameter in (member for members in groups.values() for member in members):
        assert parameter is hypernetwork.get_parameter(name)


# --- the start ----------------------------------------------------------------------------------------------


def adapted_loss(model: nn.Module, injector: HookBasedLoRAInjector, lora: LoRAWeights) -> Tensor:
    ids = token_ids(lora.adapters, 6)
    with injector.apply(lora):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return sft_loss(hidden, ids, model.get_output_embeddings())


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
def test_zero_delta_and_live_gradients_at_the_start(make_model, kind, static):
    model = make_model()
    hypernetwork = make(small(head=kind, static=static), find_projections(model))
    ids = token_ids(2, 6)
    before = model(input_ids=ids).logits
    lora = hypernetwork(*batch(4, 3))
    assert not any(lora.delta(name).any() for name in lora)
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora):
            assert torch.equal(model(input_ids=ids).logits, before)
        adapted_loss(model, injector, lora).backward()
    for key, head in hypernetwork.generator.heads.items():
        live = [p.grad.abs().max() for p in head.parameters() if p.grad is not None]
        assert max(live) > 1e-6, f"the head of {key} is dead"
        if static:
            first = hypernetwork.generator.static_C if kind in CORE_KINDS else hypernetwork.generator.static_B
            assert first[key].grad.abs().max() > 1e-6


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_two_prompts_get_different_loras_after_one_step_and_all_is_alive(kind, static):
    model = tiny_llama()
    hypernetwork = make(small(head=kind, static=static))
    states = batch(4, 3)
    with HookBasedLoRAInjector(model) as injector:
        optimizer = torch.optim.SGD(hypernetwork.parameters(), lr=0.1)
        adapted_loss(model, injector, hypernetwork(*states)).backward()
        optimizer.step()
        optimizer.zero_grad()
        lora = hypernetwork(*states)
        for name in lora:
            delta = lora.delta(name)
            assert delta.abs().max() > 1e-8, name
            assert (delta[0] - delta[1]).abs().max() > 1e-3 * delta.abs().max(), name
        adapted_loss(model, injector, lora).backward()
    for name, parameter in hypernetwork.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_same_seed_gives_the_same_start():
    left, right = make().state_dict(), make().state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


# --- the static part ----------------------------------------------------------------------------------------


def test_the_static_part_alone_is_the_same_for_every_prompt_and_needs_no_head():
    hypernetwork = make(alive=True)
    for head in hypernetwork.generator.heads.values():
        head.register_forward_hook(lambda *_: pytest.fail("a head was called"))
    lora = hypernetwork(*batch(4, 3), generated=False)
    assert lora.adapters == 2
    for p in hypernetwork.projections:
        key, place = f"{p.in_features}x{p.out_features}", hypernetwork.generator.groups[p.shape].index(p)
        for i in range(2):
            assert torch.equal(lora[p.name][0][i], hypernetwork.generator.static_A[key][place])
            assert torch.equal(lora[p.name][1][i], hypernetwork.generator.static_B[key][place])


def test_the_static_part_is_what_is_left_when_the_heads_write_nothing():
    hypernetwork = make(alive=True)
    with torch.no_grad():
        for parameter in hypernetwork.generator.heads.parameters():
            parameter.zero_()
    assert_same(hypernetwork(*batch(4, 3)), hypernetwork(*batch(4, 3), generated=False), rtol=0, atol=0)


@pytest.mark.parametrize("kind", CORE_KINDS)
def test_the_static_part_of_cores_is_one_core_for_every_prompt(kind):
    hypernetwork = make(small(head=kind), alive=True)
    for head in hypernetwork.generator.heads.values():
        head.register_forward_hook(lambda *_: pytest.fail("a head was called"))
    lora = hypernetwork(*batch(4, 3), generated=False)
    assert (lora.adapters, lora.is_shared) == (2, True)
    for p in hypernetwork.projections:
        key, place = f"{p.in_features}x{p.out_features}", hypernetwork.generator.groups[p.shape].index(p)
        C = hypernetwork.generator.static_C[key][place]
        assert torch.equal(lora.stored[p.name].C, C.expand(2, *C.shape))
    alone = make(small(head=kind, generated=False))  # plain multi-task LoRA
    assert alone.generator.head_parameter_count() == sum(p.numel() for p in alone.generator.heads.parameters()) == 0
    assert alone(*batch(4, 3)).is_shared


def test_without_a_static_part_it_cannot_be_asked_for():
    hypernetwork = make(small(static=False))
    assert not list(hypernetwork.generator.static_A)
    with pytest.raises(ConfigError, match="static=False"):
        hypernetwork(*batch(4), generated=False)


# --- gate, bounds, norm, dtype ------------------------------------------------------------------------------


def test_the_gate_starts_near_nine_tenths_and_scales_the_generated_part_alone():
    hypernetwork = make(small(head="core"))
    context = torch.randn(5, 16, dtype=torch.float64)
    gate = hypernetwork.generator.gate(context)
    assert gate.shape == (5,)
    assert (gate - 0.9).abs().max() < 0.05
    hypernetwork = make(small(head="core"), alive=True)
    states = batch(4, 3)
    with torch.no_grad():
        open_, static = hypernetwork(*states), hypernetwork(*states, generated=False)
        gate = hypernetwork.generator.gate(hypernetwork.encoder(*states))
        hypernetwork.generator.gate_map[-1].bias.fill_(-1e3)
        shut = hypernetwork(*states)
        hypernetwork.generator.gate_map[-1].bias.fill_(1e3)
        whole = hypernetwork(*states)
    for name in open_:
        C, C0, C1 = (lora.stored[name].C for lora in (open_, static, whole))
        assert torch.equal(shut.stored[name].C, C0)
        torch.testing.assert_close(C - C0, (C1 - C0) * gate[:, None, None], **EXACT)
    with pytest.raises(ConfigError, match=r"gate: this hypernetwork \(head=full\) has none"):
        make().generator.gate(context)


def test_the_gate_of_contexts_by_layer_is_one_number_for_each_prompt():
    hypernetwork = make(small(head="core", source="layers"), alive=True)
    states = torch.randn(2, 5, 3, STATE, dtype=torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert hypernetwork.generator.gate(hypernetwork.encoder(states, mask)).shape == (2,)
    assert hypernetwork(states, mask).adapters == 2


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_bounded_heads_write_nothing_beyond_their_scale(kind):
    hypernetwork = make(small(head=kind, static=False, bounded=True, gate=False), alive=True)
    for parameter in hypernetwork.generator.heads.parameters():
        parameter.data.mul_(1e3)
    lora = hypernetwork(*batch(4, 3))
    for p in hypernetwork.projections:
        scales = hypernetwork.generator.scales[f"{p.in_features}x{p.out_features}"].exp()
        written = [lora.stored[p.name].C] if kind in CORE_KINDS else lora[p.name]
        for matrix, scale in zip(written, scales, strict=True):
            torch.testing.assert_close(matrix.abs().max(), scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_options_that_are_not_set_go_by_the_kind_of_head(kind, tmp_path):
    config = small(head=kind)
    assert (config.normalises, config.bounds, config.gates) == (kind in CORE_KINDS,) * 3
    turned = small(head=kind, normalised=not config.normalises, bounded=not config.bounds, gate=not config.gates)
    for each in (config, turned):
        made = make(each, dtype=torch.float32, alive=True)
        assert bool(made.generator.scales) == each.bounds
        norms = made.generator.features(torch.randn(3, 16)).norm(dim=-1)
        assert bool((norms - 4).abs().max() < 1e-5) == each.normalises
        made.save_pretrained(tmp_path / "saved", overwrite=True)
        loaded = HyperNetwork.from_pretrained(tmp_path / "saved")
        assert loaded.config == each
        assert_same(loaded(*batch(4, dtype=torch.float32)), made(*batch(4, dtype=torch.float32)), rtol=0, atol=0)


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("kind", ["full", *CORE_KINDS])
def test_a_dtype_is_cast_by_shape_and_is_what_a_cast_afterwards_gives(kind, generated):
    hypernetwork = make(small(head=kind), dtype=torch.float32, alive=True)
    states = batch(4, 3, dtype=torch.float32)
    narrow = hypernetwork(*states, generated=generated, dtype=torch.bfloat16)
    assert narrow.to(torch.bfloat16) is narrow
    later = hypernetwork(*states, generated=generated).to(torch.bfloat16)
    for name, form in narrow.stored.items():
        assert all(torch.equal(a, b) for a, b in zip(form, later.stored[name], strict=True))
    if generated:
        sum(m.float().square().sum() for form in narrow.stored.values() for m in form).backward()
        assert all(p.grad is not None for p in hypernetwork.generator.heads.parameters())


def test_adapters_written_one_after_another_share_their_factors_in_any_dtype():
    hypernetwork = make(small(head="core"), dtype=torch.float32, alive=True).eval()
    for dtype in (None, torch.bfloat16):
        with torch.no_grad():
            first, second = (hypernetwork(*batch(4, seed=i, dtype=torch.float32), dtype=dtype) for i in range(2))
        for name in first:
            assert first.stored[name].A.data_ptr() == second.stored[name].A.data_ptr()
        assert LoRAWeights.stack([first, second]).is_shared
    with torch.no_grad():  # but not beyond a change of the parameters
        for parameter in hypernetwork.train().generator.factor_A.values():
            parameter.data.add_(1)
        third = hypernetwork.eval()(*batch(4, dtype=torch.float32), dtype=torch.bfloat16)
    for p in hypernetwork.projections:
        place = hypernetwork.generator.groups[p.shape].index(p)
        expected = hypernetwork.generator.factor_A[f"{p.in_features}x{p.out_features}"][place].bfloat16()
        assert torch.equal(third.stored[p.name].A, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CORE_KINDS)
def test_a_finished_adapter_stays_as_it_is_and_the_next_one_has_the_new_factors(kind, dtype):
    """An optimizer step between two calls in evaluation mode, such as one of weight averaging."""
    hypernetwork = make(small(head=kind), dtype=torch.float32, alive=True).eval()
    states = batch(4, dtype=torch.float32)
    with torch.no_grad():
        first = hypernetwork(*states, dtype=dtype)
        before = {name: first.delta(name) for name in first}
        for parameter in hypernetwork.parameters():
            parameter.mul_(1.5)
        second = hypernetwork(*states, dtype=dtype)
        other = make(small(head=kind), dtype=torch.float32).eval()
        other.load_state_dict(hypernetwork.state_dict())
        fresh = other(*states, dtype=dtype)
        copied = copy.deepcopy(hypernetwork)
        for parameter in copied.parameters():
            parameter.mul_(2)
        assert not torch.equal(
            copied.generator.shared_factors(dtype)[name := next(iter(first))][0], fresh.stored[name].A
        )
    for name in first:
        assert torch.equal(first.delta(name), before[name])
        assert torch.equal(second.delta(name), fresh.delta(name))
        assert not torch.equal(second.delta(name), before[name])


# --- real weights -------------------------------------------------------------------------------------------


@pytest.mark.real
def test_all_120_projections_of_the_real_model(smollm):
    model, tokenizer = smollm
    config = small(source="hidden", source_layer=4, rank=2, context_size=32)
    projections = find_projections(model)
    torch.manual_seed(0)
    hypernetwork = HyperNetwork(config, projections, model.config.hidden_size)
    states, mask = PromptStates(model, tokenizer, config).batch(["Translate to Spanish.", "Answer yes or no, please."])
    lora = hypernetwork(states, mask)
    assert len(lora) == 120
    assert {shape: len(group) for shape, group in hypernetwork.generator.groups.items()} == {
        (576, 576): 60,
        (576, 192): 60,
    }
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]] * 2)
    with torch.no_grad(), HookBasedLoRAInjector(model, projections) as injector:
        before = model(input_ids=ids).logits
        with injector.apply(lora):
            assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("in_context", "recorded"),
    [  # norms of two updates, and one of their numbers, as the weights of the package gave them when they were shipped
        (
            False,
            {
                "model.layers.0.self_attn.o_proj": ([6.098364, 6.700963], [0.006368, 0.003936]),
                "model.layers.11.self_attn.q_proj": ([7.747508, 8.369682], [0.017209, 0.021865]),
                "model.layers.29.self_attn.v_proj": ([6.235192, 6.330645], [0.05033, 0.041774]),
            },
        ),
        (
            True,
            {
                "model.layers.0.self_attn.o_proj": ([6.217724, 6.795388], [0.006546, 0.00421]),
                "model.layers.11.self_attn.q_proj": ([7.943507, 8.539539], [0.018096, 0.022666]),
                "model.layers.29.self_attn.v_proj": ([6.248657, 6.338082], [0.050667, 0.042285]),
            },
        ),
    ],
)
def test_the_shipped_network_gives_the_adapters_it_gave(in_context, recorded):
    network = HyperNetwork.from_pretrained(shipped_hypernetwork())
    generator = torch.Generator().manual_seed(0)
    states, mask = torch.randn(2, 7, network.state_size, generator=generator), torch.ones(2, 7, dtype=torch.bool)
    states[..., -1] = (torch.arange(7) >= 3).float()  # three positions of the embedder, then the base's
    mask[1, 5:] = False
    with torch.no_grad():
        lora = network(states, mask, in_context)
    assert lora.is_shared
    assert lora.rank == 16
    for name, (norms, values) in recorded.items():
        delta = lora.delta(name)
        assert delta.flatten(1).norm(dim=1).tolist() == pytest.approx(norms, rel=1e-4)
        assert delta[:, 3, 5].tolist() == pytest.approx(values, abs=2e-6)


# --- contexts, and the prompt in context too ----------------------------------------------------------------


def test_context_and_write_are_forward():
    hypernetwork = make(alive=True)
    states = batch(4, 2)
    context = hypernetwork.context(*states)
    assert context.shape == (2, 16)
    assert_same(hypernetwork.write(context), hypernetwork(*states), rtol=0, atol=0)


@pytest.mark.parametrize("source", ["hidden", "layers"])
def test_the_flag_starts_without_effect_and_learns(source):
    config = small(context_flag=True, source=source)
    states, mask = batch(4, 2, 3)
    if source == "layers":
        states = states[:, :, None].expand(-1, -1, 2, -1)
    started = make(config)
    assert_same(started(states, mask, True), started(states, mask), rtol=0, atol=0)
    hypernetwork = make(config, alive=True)
    shown = torch.tensor([True, False, True])
    lora = hypernetwork(states, mask, shown)
    with_prompt, without = hypernetwork(states, mask, True), hypernetwork(states, mask, False)
    for name in lora:
        assert not torch.equal(with_prompt[name][0], without[name][0])
    for i, each in enumerate(shown.tolist()):
        assert_same(lora.select(i), (with_prompt if each else without).select(i), **EXACT)
    sum(b.pow(2).sum() for _, b in lora.values()).backward()
    assert hypernetwork.in_context.grad.abs().max() > 0


def test_the_flag_belongs_to_the_trunk_and_to_networks_that_have_it():
    assert "in_context" in dict(make(small(context_flag=True)).parameter_groups()["trunk"])
    for without in (small(), small(context_flag=True, generated=False)):
        hypernetwork = make(without)
        assert "in_context" not in dict(hypernetwork.named_parameters())
        assert_same(hypernetwork(*batch(3), True), hypernetwork(*batch(3)), rtol=0, atol=0)


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
def test_save_and_load_is_bitwise(tmp_path, make_model):
    hypernetwork = make(small(head="lowrank"), find_projections(make_model()), dtype=torch.float32, alive=True)
    hypernetwork.encoder.fit_statistics(list(batch(4, 4, dtype=torch.float32)[0]))
    hypernetwork.save_pretrained(tmp_path / "saved")
    loaded = HyperNetwork.from_pretrained(tmp_path / "saved")
    assert not loaded.training
    assert loaded.config == hypernetwork.config
    assert loaded.projections == hypernetwork.projections  # rows of fused modules too
    assert (loaded.state_size, loaded.base) == (hypernetwork.state_size, hypernetwork.base)
    expected, found = hypernetwork.state_dict(), loaded.state_dict()
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    states = batch(5, 2, dtype=torch.float32)
    assert_same(loaded(*states), hypernetwork.eval()(*states), rtol=0, atol=0)


def test_the_fingerprint_of_the_embedder_is_kept(tmp_path):
    config, embedder = small(source="embedder+hidden", embedder="some/id"), {"model_type": "bert", "weights": "abc"}
    hypernetwork = HyperNetwork(config, find_projections(tiny_llama()), STATE + 1, {"weights": "x"}, embedder)
    hypernetwork.save_pretrained(tmp_path / "saved")
    loaded = HyperNetwork.from_pretrained(tmp_path / "saved")
    assert (loaded.embedder, loaded.config, loaded.state_size) == (embedder, config, STATE + 1)
    make(dtype=torch.float32).save_pretrained(tmp_path / "without")
    assert "embedder" not in {
        k for k in json.loads((tmp_path / "without" / "config.json").read_text()) if k != "config"
    }
    assert HyperNetwork.from_pretrained(tmp_path / "without").embedder == {}


def test_bfloat16_storage_rounds_once_and_is_read_as_float32(tmp_path):
    hypernetwork = make(dtype=torch.float32, alive=True)
    hypernetwork.save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    loaded = HyperNetwork.from_pretrained(tmp_path / "saved")
    for name, value in hypernetwork.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    loaded.save_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    again = HyperNetwork.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_the_folder_holds_safetensors_and_json_alone(tmp_path):
    make(dtype=torch.float32).save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    assert isinstance(json.loads((tmp_path / "saved" / "config.json").read_text()), dict)
    load_file(tmp_path / "saved" / "model.safetensors")


def test_loading_draws_no_random_number_and_keeps_no_view_of_the_file(tmp_path):
    saved = make(dtype=torch.float32)
    saved.save_pretrained(tmp_path / "saved")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    loaded = HyperNetwork.from_pretrained(tmp_path / "saved")
    assert torch.equal(torch.rand(3), expected)
    with (tmp_path / "saved" / "model.safetensors").open("r+b") as handle:
        handle.seek(-4000, 2)
        handle.write(b"\xff" * 4000)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())


def test_loading_weights_keeps_the_parameters_of_an_optimizer(tmp_path):
    make(dtype=torch.float32, alive=True).save_pretrained(tmp_path / "saved")
    hypernetwork = make(dtype=torch.float32)
    before = list(hypernetwork.parameters())
    hypernetwork.load_weights(tmp_path / "saved" / "model.safetensors")
    assert all(a is b for a, b in zip(before, hypernetwork.parameters(), strict=True))
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in hypernetwork.state_dict().items())


def test_an_existing_folder_is_refused_and_overwrite_replaces_it(tmp_path):
    make(dtype=torch.float32).save_pretrained(tmp_path / "saved")
    other = make(dtype=torch.float32, alive=True)
    with pytest.raises(OutputError, match="exists already"):
        other.save_pretrained(tmp_path / "saved")
    other.save_pretrained(tmp_path / "saved", overwrite=True)
    loaded = HyperNetwork.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in other.state_dict().items())


def test_no_disk_space_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch):
    old = make(dtype=torch.float32)
    old.save_pretrained(tmp_path / "saved")

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match=r"saved: cannot be written \(No space left on device\)"):
        make(dtype=torch.float32, alive=True).save_pretrained(tmp_path / "saved", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    loaded = HyperNetwork.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in old.state_dict().items())


def edit_config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        description = json.loads((folder / "config.json").read_text())
        change(description)
        (folder / "config.json").write_text(json.dumps(description))

    return edit


def edit_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return edit


NORM = "generator.norm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "weights cut in half": (truncate("model.safetensors", 0.5), "truncated or not safetensors"),
    "weights cut in the header": (truncate("model.safetensors", 0.01), "truncated or not safetensors"),
    "empty weights": (truncate("model.safetensors", 0), "truncated or not safetensors"),
    "config cut": (truncate("config.json", 0.5), "not JSON"),
    "empty config": (truncate("config.json", 0), "not JSON"),
    "not UTF-8": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"),
        "not UTF-8",
    ),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a hypernetwork's configuration"),
    "nested too deep": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "nested too deeply",
    ),
    "NaN": (edit_weights(lambda t: t[NORM].fill_(float("nan"))), f"{NORM} has values that are not finite"),
    "infinity": (edit_weights(lambda t: t[NORM].fill_(float("inf"))), f"{NORM} has values that are not finite"),
    "missing tensor": (edit_weights(lambda t: t.pop(NORM)), f"{NORM} is missing"),
    "extra tensor": (edit_weights(lambda t: t.update(backdoor=torch.zeros(1))), "backdoor is not expected"),
    "wrong shape": (edit_weights(lambda t: t.update({NORM: torch.zeros(3)})), rf"{NORM} is torch.float32 \[3\]"),
    "whole numbers": (
        edit_weights(lambda t: t.update({NORM: torch.zeros(16, dtype=torch.int64)})),
        rf"{NORM} is torch.int64",
    ),
    "unknown key": (edit_config(lambda d: d["config"].update(rnak=4)), "did you mean 'rank'"),
    "wrong type": (edit_config(lambda d: d["config"].update(rank="4")), "rank='4' is a str; expected int"),
    "out of range": (edit_config(lambda d: d["config"].update(rank=0)), "rank=0 in HyperNetworkConfig"),
    "another rank": (edit_config(lambda d: d["config"].update(rank=4)), "expected floats"),
    "another head": (edit_config(lambda d: d["config"].update(head="shared")), "does not fit its config.json"),
    "other format": (edit_config(lambda d: d.update(format="other/1")), "format 'other/1'; expected"),
    "no projections": (edit_config(lambda d: d.pop("projections")), "'projections'"),
    "unknown key of a projection": (edit_config(lambda d: d["projections"][0].update(layer=1)), "'layer'"),
    "negative size": (edit_config(lambda d: d["projections"][0].update(in_features=-5)), "not a hypernetwork's"),
    "size of another type": (edit_config(lambda d: d["projections"][0].update(in_features=[])), "not a hypernetwork's"),
    "enormous size": (edit_config(lambda d: d.update(state_size=10**15)), "state_size=1000000000000000"),
    "impossible size": (edit_config(lambda d: d.update(state_size=10**30)), "beyond 64 bits"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hypernetwork") / "saved"
    make(dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_one_clear_line(tmp_path, saved, damage):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    HyperNetwork.from_pretrained(folder)
    change, expected = DAMAGE[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=expected) as caught:
        HyperNetwork.from_pretrained(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, saved, name):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    with (folder / name).open("wb") as handle:
        pickle.dump({"a": _Payload()}, handle)
    with pytest.raises(CheckpointError):
        HyperNetwork.from_pretrained(folder)


def test_an_upload_without_a_hub_is_one_clear_line():
    with pytest.raises(CheckpointError, match="somebody/network: cannot be uploaded") as caught:
        make(dtype=torch.float32).push_to_hub("somebody/network")  # HF_HUB_OFFLINE is set: see conftest
    assert "offline" in str(caught.value)
    assert "check the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_generator_alone_takes_a_context():
    torch.manual_seed(0)
    generator = ShapeGroupedLoRAGenerator(small(), find_projections(tiny_llama()))
    features = generator.features(torch.zeros(2, 16))
    assert features.shape == (2, 8, 16)
    assert features.detach().norm(dim=-1).min() > 1  # never zero, even for a context of zeros

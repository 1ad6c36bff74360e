"""Attention captured, proved, ablated and compared: exact in float64, and against the model's own numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface

from promptlora.errors import AttentionError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.inspect import (
    CHOICES,
    ablate,
    ablate_ids,
    ablation_page,
    adapter_space,
    bars,
    capture_attention,
    capture_ids,
    change_map,
    classical_mds,
    find_token,
    heat_map,
    jensen_shannon,
    most_changed,
    next_token_kl,
    only_roles,
    point_map,
    space_page,
    token_life,
    token_page,
    visible_text,
    walk,
)
from promptlora.inspect.page import layer_page
from promptlora.lora import LoRAWeights
from promptlora.lora.geometry import cosines, update_products
from promptlora.lora.peft import merge_lora
from promptlora.projections import find_projections

from .architectures import CASES, build
from .helpers import random_lora, tiny_llama, token_ids

IDS = token_ids(1, 9)[0]


def of_family(model_type: str, **options: object):
    """A tiny random model of a family; options go over those of its case."""
    case = next(case for case in CASES if case.model_type == model_type)
    return build(type(case)(**{**vars(case), "options": {**case.options, **options}}))


@pytest.fixture(scope="module")
def llama():
    """A tiny Llama whose attention is eager, so that it can tell its own weights; its injector; a LoRA."""
    model = tiny_llama(attn_implementation="eager")
    injector = HookBasedLoRAInjector(model)
    return model, injector, random_lora(injector.projections, scaling=0.3)


@pytest.fixture(scope="module")
def captured(llama):
    model, injector, lora = llama
    return capture_ids(model, IDS, injector, lora)


# --- the walk is the model's -------------------------------------------------------------------------------


def test_weights_and_residuals_are_those_the_model_reports(llama, captured):
    model, _, lora = llama
    merged = tiny_llama(attn_implementation="eager")
    merge_lora(merged, lora)
    for this, walked in ((model, captured.base), (merged, captured.adapted)):
        out = this(IDS[None], output_attentions=True, output_hidden_states=True)
        for layer in walked.layers:
            assert torch.allclose(layer.softmax.weights, out.attentions[layer.layer][0], atol=1e-7)
            assert torch.allclose(layer.residual_before, out.hidden_states[layer.layer][0], atol=1e-7)
        assert torch.allclose(walked.next_token, out.logits[0, -1].log_softmax(-1), atol=1e-6)


def test_every_step_follows_from_the_one_before(llama, captured):
    model, _, lora = llama
    for walked, on in ((captured.base, False), (captured.adapted, True)):
        for layer in walked.layers:
            part, block = layer.softmax, model.model.layers[layer.layer]
            for role, step in layer.projections.items():
                weight = getattr(block.self_attn, f"{role}_proj").weight
                A, B = lora[step.name]
                assert torch.allclose(step.base, step.x @ weight.T, atol=1e-12)
                assert torch.allclose(step.delta, step.x @ A[0] @ B[0] * lora.scaling * on, atol=1e-12)
                assert bool(((step.share >= 0) & (step.share < 1)).all())
                assert bool((step.share > 0).all()) == on
            assert torch.allclose(layer.x, block.input_layernorm(layer.residual_before), atol=1e-12)
            assert torch.equal(layer.projections["q"].x, layer.x)
            assert torch.allclose(part.raw[1, 4, 2], part.q[1, 4] @ part.k[1, 2])
            assert torch.allclose(part.scaled, part.raw * 8**-0.5)
            assert torch.equal(part.visible[0], torch.ones(9, 9).tril().bool())
            assert torch.equal(part.masked == -torch.inf, ~part.visible)
            assert torch.allclose(part.weights.sum(-1), torch.ones(4, 9, dtype=torch.float64), atol=1e-12)
            assert torch.allclose(part.mixed, part.weights @ part.v)
            assert torch.allclose(layer.out, layer.projections["o"].output)
            assert torch.allclose(layer.into_o, part.mixed.transpose(0, 1).reshape(9, 32))
            assert torch.allclose(layer.residual_after, layer.residual_before + layer.out)
            # rotary embedding turns and does not stretch; position 0 is not turned
            assert torch.allclose(part.q.norm(dim=-1), part.q_before.norm(dim=-1))
            assert torch.allclose(part.q[:, 0], part.q_before[:, 0], atol=1e-12)
            assert not torch.allclose(part.q[:, 3], part.q_before[:, 3])
            assert part.q_normed is None


def test_query_heads_share_key_heads(captured):
    part = captured.base[0].softmax
    assert part.key_heads == (0, 0, 1, 1)
    assert torch.equal(part.k[0], part.k[1])
    assert not torch.equal(part.k[1], part.k[2])


def test_sdpa_and_eager_walk_alike(captured):
    model = tiny_llama(attn_implementation="sdpa")
    injector = HookBasedLoRAInjector(model)
    other = capture_ids(model, IDS, injector, random_lora(injector.projections, scaling=0.3))
    assert other.difference < 1e-12
    for ours, theirs in zip(captured.adapted.layers, other.adapted.layers, strict=True):
        assert torch.allclose(ours.softmax.weights, theirs.softmax.weights, atol=1e-6)


def test_layers_and_heads_are_cut_from_the_whole(llama, captured):
    model, injector, lora = llama
    some = capture_ids(model, IDS, injector, lora, layers=[1], heads=[3, 1])
    assert [layer.layer for layer in some.adapted.layers] == [1]
    part, whole = some.adapted[1].softmax, captured.adapted[1].softmax
    assert part.heads == (3, 1)
    assert part.key_heads == (1, 0)
    for name in ("q", "k", "v", "raw", "masked", "weights", "mixed", "visible"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[3, 1]]), name
    assert torch.equal(some.adapted[1].out, captured.adapted[1].out)
    with pytest.raises(AttentionError, match="head 0 was not captured; expected one of 3, 1"):
        some.adapted[1].weights(0)
    with pytest.raises(AttentionError, match="layer 0 was not captured"):
        some.base[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [2]}, "layer 2: the model has attention in 2 layers; expected one of 0 … 1"),
        ({"heads": [4]}, "head 4: layer 0 has 4; expected 0 … 3"),
        ({"heads": [-1]}, "head -1"),
    ],
)
def test_what_is_not_there_is_named(llama, options, words):
    model, injector, _ = llama
    with pytest.raises(AttentionError, match=words):
        capture_ids(model, IDS, injector, **options)


def test_one_adapter_one_row_and_no_gigabytes(llama):
    model, injector, _ = llama
    with pytest.raises(AttentionError, match="2 adapters; expected one"):
        capture_ids(model, IDS, injector, random_lora(injector.projections, adapters=2))
    with pytest.raises(AttentionError, match="no token"):
        capture_ids(model, [], injector)
    with pytest.raises(AttentionError, match="choose layers and heads"):
        capture_ids(model, [1] * 10_000, injector, heads=[0])


def test_the_base_is_walked_though_a_lora_is_on_outside(llama, captured):
    model, injector, lora = llama
    with injector.apply(lora):
        inside = capture_ids(model, IDS, injector)
    assert inside.adapted is None
    assert torch.equal(inside.base.next_token, captured.base.next_token)


# --- the proof ---------------------------------------------------------------------------------------------


def _flat(masked, sinks=None):
    return torch.where(masked > -torch.inf, 1.0, 0.0) / (masked > -torch.inf).sum(-1, keepdim=True), None


def _unscaled(masked, sinks=None):
    return (masked * 8**0.5).softmax(dim=-1), None


def _half(masked, sinks=None):
    return masked.softmax(dim=-1) / 2, None


@pytest.mark.parametrize(
    ("wrong", "words"), [(_flat, "softmax weights"), (_unscaled, "softmax weights"), (_half, "sums to 0.5")]
)
def test_a_wrong_walk_is_found_out(llama, monkeypatch, wrong, words):
    model, injector, _ = llama
    monkeypatch.setattr(walk, "attention_weights", wrong)
    with pytest.raises(AttentionError, match=words):
        capture_ids(model, IDS, injector)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_that_is_not_the_models_is_found_out(monkeypatch, attention):
    model = tiny_llama(attn_implementation=attention)
    right = walk._visible_and_bias

    def all_visible(*arguments):
        visible, bias = right(*arguments)
        return torch.ones_like(visible), bias

    monkeypatch.setattr(walk, "_visible_and_bias", all_visible)
    with HookBasedLoRAInjector(model) as injector, pytest.raises(AttentionError, match="differs from the model's"):
        capture_ids(model, IDS, injector)


def test_an_adapter_that_is_not_the_one_that_ran_is_found_out(llama, monkeypatch):
    model, injector, lora = llama
    plain = injector.apply
    monkeypatch.setattr(injector, "apply", lambda on: plain(None if on is None else on.rescale(0.1)))
    capture_ids(model, IDS, injector, lora)  # the same update, written otherwise
    monkeypatch.setattr(injector, "apply", lambda on: plain(None))
    with pytest.raises(AttentionError, match="output of q differs"):
        capture_ids(model, IDS, injector, lora)


def test_another_key_head_is_found_out(llama, monkeypatch):
    model, injector, _ = llama
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda self, n, dim: torch.cat([self] * n, dim=dim))
    with pytest.raises(AttentionError, match="differs"):
        capture_ids(model, IDS, injector)


# --- nothing is left behind --------------------------------------------------------------------------------


def _hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_left_behind(monkeypatch):
    model = tiny_llama().train()
    lookup, before = AttentionInterface.get_interface, _hooks(model)
    injector = HookBasedLoRAInjector(model)
    on = _hooks(model)
    capture_ids(model, IDS, injector)
    assert (AttentionInterface.get_interface, _hooks(model)) == (lookup, on)
    assert all(module.training for module in model.modules())

    def breaks(*args, **kwargs):
        raise RuntimeError("broken in the last layer")

    monkeypatch.setattr(model.model.layers[1].mlp, "forward", breaks)
    with pytest.raises(RuntimeError, match="broken"):
        capture_ids(model, IDS, injector, random_lora(injector.projections))
    assert (AttentionInterface.get_interface, _hooks(model)) == (lookup, on)
    assert all(module.training for module in model.modules())
    injector.remove()
    assert _hooks(model) == before


# --- other architectures -----------------------------------------------------------------------------------


def _capture(model, ids=IDS):
    with HookBasedLoRAInjector(model) as injector:
        return capture_ids(model, ids, injector, random_lora(injector.projections, dtype=model.dtype))


def test_qwen3_norms_q_and_k_before_the_rotary_embedding():
    model = of_family("qwen3")
    found = _capture(model)
    part, block = found.adapted[1].softmax, model.model.layers[1].self_attn
    assert torch.allclose(part.q_normed, block.q_norm(part.q_before))
    assert torch.allclose(part.k_normed, block.k_norm(part.k_before))
    assert torch.allclose(part.q.norm(dim=-1), part.q_normed.norm(dim=-1))


def test_qwen3_next_shows_its_gate_and_says_what_a_delta_net_lacks():
    found = _capture(of_family("qwen3_next"))
    delta, full = found.adapted[0], found.adapted[3]
    assert delta.kind == "DeltaNet"
    assert delta.softmax is None
    assert {"q", "k", "v", "z", "b", "a", "o"} == set(delta.projections)
    assert delta.projections["v"].delta.abs().max() > 0
    with pytest.raises(AttentionError, match="no softmax weights"):
        delta.weights(0)
    with pytest.raises(AttentionError, match="no softmax weights"):
        token_life(found, 2, 0, 0)
    part = full.softmax
    gate = full.projections["gate"].output
    assert torch.allclose(full.into_o, part.mixed.transpose(0, 1).reshape(9, -1) * torch.sigmoid(gate))
    assert most_changed(found)[0] == 3
    assert change_map(found.base, found.adapted)[0] == [3]


def test_a_page_of_a_layer_without_softmax_says_so():
    found = _capture(of_family("qwen3_next"))
    page = layer_page(found, 1, 4, "a <prompt>")
    assert _Page(page).odd == []
    assert "it has no softmax weights" in page
    for role, step in found.adapted[1].projections.items():
        assert f"<td>{role}</td>" in page
        assert f"{100 * float(step.share[4]):.2f} %" in page
    assert f"{float(found.adapted[1].out[4].norm()):.3f}" in page
    assert "a &lt;prompt&gt;" in page


def test_gemma2_caps_its_scores_and_looks_through_a_window():
    found = _capture(of_family("gemma2", sliding_window=4, attn_logit_softcapping=2.0))
    near, full = found.base[0].softmax, found.base[1].softmax
    assert near.visible[0].sum(-1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert full.visible[0].sum(-1).tolist() == list(range(1, 10))
    assert near.softcap == 2.0
    assert near.masked[near.visible].abs().max() <= 2.0
    layer = found.adapted[1]
    assert not torch.allclose(layer.written, layer.out)  # a norm stands between o and the residual
    assert torch.allclose(layer.residual_after, layer.residual_before + layer.written)


def test_an_implementation_that_masks_by_itself_is_walked_through(monkeypatch):
    masks = []

    def masking(module, query, key, value, attention_mask, scaling, sliding_window=None, **options):
        masks.append(attention_mask)
        count, repeat = query.shape[2], query.shape[1] // key.shape[1]
        behind = torch.arange(count)[:, None] - torch.arange(count)[None]
        scores = query @ key.repeat_interleave(repeat, dim=1).transpose(2, 3) * scaling
        hidden = (behind < 0) | (behind >= (sliding_window or count))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ value.repeat_interleave(repeat, dim=1)).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "masks_by_itself", masking)
    model = of_family("gemma3_text", sliding_window=4)
    model.set_attn_implementation("masks_by_itself")
    found = _capture(model)
    assert masks == [None] * 4  # as a flash kernel has it: the window is an argument, the mask is none
    assert found.base[0].softmax.visible[0].sum(-1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert found.base[1].softmax.visible[0].sum(-1).tolist() == list(range(1, 10))


def test_gpt_oss_gives_weight_to_a_sink():
    model = of_family("gpt_oss")
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.sinks, 1.5)
    part = _capture(model).base[0].softmax
    assert bool((part.sink > 0).all())
    assert torch.allclose(part.weights.sum(-1) + part.sink, torch.ones_like(part.sink))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text", "deepseek_v3", "olmo2", "gemma4_text"])
def test_other_layouts_prove_themselves(family):
    found = _capture(of_family(family))
    assert found.difference < 1e-6
    assert (found.base.layers[0].residual_after is None) == (family == "gpt_neox")  # attention beside the MLP


def test_a_class_that_computes_attention_by_itself_is_refused():
    with pytest.raises(AttentionError, match="BloomAttention called transformers' attention function 0 times"):
        _capture(of_family("bloom"))


# --- measures ----------------------------------------------------------------------------------------------


def test_jensen_shannon_distance():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 5, 7, generator=generator, dtype=torch.float64).softmax(-1)
    expected = []
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        total = 0.0
        for x, y in zip(a, b, strict=True):
            middle = (x + y) / 2
            total += 0.5 * x * float(torch.tensor(x / middle).double().log2())
            total += 0.5 * y * float(torch.tensor(y / middle).double().log2())
        expected.append(total**0.5)
    assert torch.allclose(jensen_shannon(p, q), torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    assert torch.equal(jensen_shannon(p, q), jensen_shannon(q, p))
    assert torch.equal(jensen_shannon(p, p), torch.zeros(5, dtype=torch.float64))
    apart = torch.eye(2, dtype=torch.float64)
    assert float(jensen_shannon(apart[0], apart[1])) == 1.0


def test_next_token_kl():
    p = torch.tensor([0.5, 0.5]).double().log()
    q = torch.tensor([0.25, 0.75]).double().log()
    assert next_token_kl(p, p) == 0.0
    assert next_token_kl(p, q) == pytest.approx(0.14384, abs=1e-4)
    assert next_token_kl(torch.tensor([0.0, -torch.inf]).double(), p) == pytest.approx(0.69315, abs=1e-4)


# --- ablation ----------------------------------------------------------------------------------------------


def test_only_roles_shares_the_matrices(llama):
    _, _, lora = llama
    some = only_roles(lora, ("q", "v"))
    assert len(some) == 4
    assert all(name.endswith(("q_proj", "v_proj")) for name in some)
    assert all(some[name][0].data_ptr() == lora[name][0].data_ptr() for name in some)
    with pytest.raises(AttentionError, match="expected some of k, o, q, v"):
        only_roles(lora, ("gate",))


def test_v_and_o_leave_the_attention_of_the_first_layer_alone(llama):
    model, injector, lora = llama
    found = ablate_ids(model, list(token_ids(3, 8)), injector, lora)
    assert found.choices == tuple(CHOICES)
    for choice in CHOICES:
        table = found.attention[choice]
        assert table.shape == (2, 4)
        assert bool((table[0] == 0).all()) == (choice in ("v", "o")), choice
        assert bool((table[1] > 0).all()), choice
        assert bool((found.output[choice] > 0).all())
        assert found.next_token[choice] > 0
    assert found.by_layer().shape == (2, 6)
    assert found.inputs == 3
    assert found.to_dict()["choices"]["q"]["attention"][0] == found.attention["q"][0].tolist()


def test_ablation_is_the_mean_of_captures(llama):
    model, injector, _ = llama
    loras = random_lora(injector.projections, adapters=2)
    rows = [IDS[:5], IDS[:8]]
    found = ablate_ids(model, rows, injector, loras, choices=["all"])
    tables, outputs, kl = [], [], []
    for i, row in enumerate(rows):
        each = capture_ids(model, row, injector, loras.select(i))
        tables.append(change_map(each.base, each.adapted)[1])
        outputs.append((each.adapted[1].out - each.base[1].out).norm() / each.base[1].out.norm())
        kl.append(next_token_kl(each.base.next_token, each.adapted.next_token))
    assert torch.allclose(found.attention["all"], (tables[0] + tables[1]) / 2)
    assert float(found.output["all"][1]) == pytest.approx(float(outputs[0] + outputs[1]) / 2)
    assert found.next_token["all"] == pytest.approx(sum(kl) / 2)


def test_an_adapter_of_zero_changes_nothing(llama):
    model, injector, lora = llama
    zero = LoRAWeights({name: (A, torch.zeros_like(B)) for name, (A, B) in lora.items()}, 1.0)
    found = ablate_ids(model, [IDS], injector, zero)
    assert all(float(found.attention[c].max()) == 0 == float(found.output[c].max()) for c in CHOICES)
    assert set(found.next_token.values()) == {0.0}


def test_ablation_of_a_model_with_delta_nets():
    model = of_family("qwen3_next")
    with HookBasedLoRAInjector(model) as injector:
        found = ablate_ids(model, [IDS], injector, random_lora(injector.projections), choices=["v"])
    assert found.layers == (3,)
    assert found.output_layers == (0, 1, 2, 3)
    assert found.outputs_by_layer().shape == (4, 1)


def test_ablation_refuses_what_does_not_fit(llama):
    model, injector, lora = llama
    with pytest.raises(AttentionError, match="1 adapters for 0 inputs"):
        ablate_ids(model, [], injector, lora)
    with pytest.raises(AttentionError, match="choice 'w'"):
        ablate_ids(model, [IDS], injector, lora, choices=["w"])


# --- the space of adapters ---------------------------------------------------------------------------------


def test_products_are_those_of_the_dense_updates(llama):
    _, injector, _ = llama
    lora = random_lora(injector.projections, adapters=4, scaling=0.7).select([2, 0, 3, 3])
    dense = torch.cat([lora.delta(name).flatten(1) for name in lora], dim=1)
    products = update_products(lora)
    assert torch.allclose(products, dense @ dense.T)
    expected = torch.nn.functional.cosine_similarity(dense[:, None], dense[None], dim=-1)
    assert torch.allclose(cosines(products), expected)
    space = adapter_space(lora, list("abcd"))
    assert torch.allclose(space.norm, dense.norm(dim=1))
    own = dense - dense.mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(own[:, None], own[None], dim=-1)
    assert torch.allclose(space.cosine_centred, expected)
    assert space.nearest(2)[0] == (3, pytest.approx(1.0))
    assert space.within is None


def test_the_map_keeps_distances_that_fit_in_a_plane():
    angles = torch.tensor([0.1, 0.5, 2.0, 3.0]).double()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    points, kept = classical_mds(vectors @ vectors.T)
    assert kept == pytest.approx(1.0)
    assert torch.allclose(torch.cdist(points, points), torch.cdist(vectors, vectors))


def test_groups_that_lie_together_are_seen():
    projections = find_projections(tiny_llama())
    two = random_lora(projections, adapters=2, seed=1)
    noise = random_lora(projections, adapters=4, seed=2)
    lora = LoRAWeights.combine([two.select([0, 0, 1, 1]), noise], [1.0, 0.1])
    space = adapter_space(lora, list("abcd"), ["x", "x", "y", "y"])
    assert space.within > 0.9
    assert space.between < 0
    assert space.same_group == 1.0
    assert space.kept > 0.9
    assert space.to_dict()["nearest"][0][0]["prompt"] == 1


def test_adapters_that_are_all_the_same_have_one_place():
    lora = random_lora(find_projections(tiny_llama())).select([0, 0, 0])
    space = adapter_space(lora, list("abc"))
    assert bool((space.cosine > 0.999999).all())
    assert float(torch.cdist(space.points, space.points).max()) == pytest.approx(2**0.5)  # nothing but their names
    assert not space.points.isnan().any()
    with pytest.raises(AttentionError, match="two or more"):
        adapter_space(lora.select(0), ["a"])


# --- tokens, drawings, pages -------------------------------------------------------------------------------


def test_find_token():
    tokens = ["The", " cat", " sat", " on", " the", " mat", ".", " un", "happy", " 7"]
    assert find_token(tokens, "cat") == 1
    assert find_token(tokens, " mat") == 5
    assert find_token(tokens, "unhappy") == 8
    assert find_token(tokens, "sat on") == 3
    assert find_token(tokens, "7") == 9  # a token that reads so goes before a number
    assert find_token(tokens, "6") == 6
    assert find_token(tokens, 2) == 2
    assert find_token(tokens) == 9
    assert find_token(["a", "b", "a"], "a") == 2
    for odd in ("dog", "", " ", "10", 10, -1):
        with pytest.raises(AttentionError, match="expected one of: 0 'The', 1 ' cat'"):
            find_token(tokens, odd)


HOSTILE = ["<script>alert(1)</script>", '"quoted" & <b>', "\u202eabc\x00\x1b[31m", "🎉", "", "x" * 500]


def test_drawings_are_xml_whatever_the_labels_hold():
    values = torch.linspace(-1, 1, 36).view(6, 6).double()
    values[2, 3] = torch.nan
    for drawn in (
        heat_map(values, HOSTILE, HOSTILE, HOSTILE[0], across="<", down=">", signed=True, mark=(1, 1)),
        heat_map(torch.zeros(6, 6), HOSTILE, HOSTILE, "zero"),
        bars([0.5] * 6, HOSTILE, HOSTILE[1], other=[2.0] * 6),
        point_map(values[:, :2].nan_to_num(), HOSTILE, HOSTILE, HOSTILE[0]),
    ):
        root = xml.etree.ElementTree.fromstring(drawn)
        assert not [e for e in root.iter() if e.tag.endswith("script")]
    cells = [
        e
        for e in xml.etree.ElementTree.fromstring(heat_map(values, HOSTILE, HOSTILE, "")).iter()
        if e.get("fill-opacity")
    ]
    assert len(cells) == 35  # a number that is none has no cell
    framed = heat_map(torch.ones(3, 4), list("abc"), list("wxyz"), "", mark=(2, None), cell=(20, 16))
    assert 'class="mark"' in framed
    assert 'width="80" height="16"/>' in framed.partition('class="mark"')[2]  # the whole row
    assert "rotate" not in framed  # labels that fit stand upright
    assert "rotate" in heat_map(torch.ones(1, 1), ["a"], ["a longer label"], "")
    assert visible_text(" cat\n") == "·cat⏎"


class _Page(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.odd: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("script", "link", "iframe", "img", "object", "embed", "form", "base"):
            self.odd.append(tag)
        self.odd += [name for name, _ in attrs if name in ("src", "href", "action", "srcset") or name.startswith("on")]


def test_pages_fetch_and_run_nothing(llama):
    model, injector, lora = llama
    tokens = [*HOSTILE, "a", "b", "c"]
    capture = capture_ids(model, IDS, injector, lora, tokens=tokens)
    life = token_life(capture, 7, 1, 2)
    ablation = ablate_ids(model, [IDS], injector, lora)
    space = adapter_space(random_lora(injector.projections, adapters=6), HOSTILE, HOSTILE)
    alone = token_life(capture_ids(model, IDS, injector, tokens=tokens), 7, 1, 2)
    pages = (
        token_page(life, capture, prompt=HOSTILE[0]),
        token_page(alone, capture_ids(model, IDS, injector, tokens=tokens)),
        ablation_page(ablation, HOSTILE[0]),
        space_page(space),
    )
    for page in pages:
        parsed = _Page(page)
        assert parsed.odd == []
        assert "url(" not in page
        assert "@import" not in page
        assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 0
        assert 'name="viewport"' in page
        assert "prefers-color-scheme:dark" in page
        assert parsed.tags.count("svg") >= 1
    assert "What the adapter adds" in pages[0]
    assert "What the adapter adds" not in pages[1]
    assert f"{float(life.adapted.weights[3]):.4f}" in pages[0]
    assert pages[0].count("1.000000") == 2  # rows that sum to 1


def test_the_life_of_a_token_is_a_row_of_the_capture(captured):
    life = token_life(captured, 6, 1, 3)
    part = captured.adapted[1].softmax
    assert life.key_head == 1
    assert torch.equal(life.adapted.weights, part.weights[3, 6])
    assert torch.equal(life.change, part.weights[3, 6] - captured.base[1].softmax.weights[3, 6])
    gains, losses = life.changes(2)
    assert gains[0][1] == float(life.change.max())
    assert losses[0][1] == float(life.change.min())
    assert life.to_dict()["adapted"]["masked"][7] is None
    layer, head = most_changed(captured, 6)
    numbers = [jensen_shannon(a.softmax.weights, b.softmax.weights)[:, 6] for a, b in
               zip(captured.base.layers, captured.adapted.layers, strict=True)]  # fmt: skip
    assert float(numbers[layer][head]) == float(torch.stack(numbers).max())
    with pytest.raises(AttentionError, match="token 9: the text has 9"):
        token_life(captured, 9, 0, 0)


# --- the real model ----------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_model_proves_itself(lm):
    lora = lm.adapt("Translate to Spanish.")
    found = capture_attention(lm, "The cat sat on the mat", lora, layers=[0, 12], heads=[3])
    assert found.difference < 1e-4
    assert "".join(found.tokens).count("The cat sat on the mat") == 1
    cat = find_token(found.tokens, "cat")
    row = found.adapted[12].weights(3)[cat]
    assert float(row.sum()) == pytest.approx(1.0)
    assert float(row[cat + 1 :].abs().max()) == 0.0
    assert found.adapted[0].projections["q"].share[cat] > 0
    plain = capture_attention(lm, "The cat", raw=True, layers=[1])
    assert plain.tokens == ("The", " cat")
    with pytest.raises(AttentionError, match="layer 30"):
        capture_attention(lm, "x", layers=[30])


@pytest.mark.real
def test_ablation_scores_answers(lm):
    lora = lm.adapt("Answer with one word.")
    seen = []
    found = ablate(
        lm, ["a cat"], lora, choices=["v"], score=lambda i, answer: seen.append((i, answer)) or 50.0, max_new_tokens=2
    )
    assert dict(found.score) == {"base": 50.0, "v": 50.0}
    assert len(seen) == 2
    assert float(found.attention["v"][0].max()) == 0.0


# --- the page of the documentation -------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "attention.md").read_text(encoding="utf-8")


@pytest.mark.real
def test_the_code_of_the_page_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    values: dict[str, object] = {}
    exec(block, values)
    layer = values["capture"].adapted.layers[0]
    assert torch.allclose(layer.softmax.weights.sum(-1), torch.ones((), dtype=torch.float64))
    values["lm"].close()


def test_the_numbers_of_the_page_fit_together():
    """What a reader can work out from the page comes out: powers, weights, their sum, the first number of the mixture."""
    rows = re.findall(r"^\| (\w+) \| (\S+) \| (\S+) \| .+? \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    raw, scaled, powers, weights = (torch.tensor([float(row[i]) for row in rows]).double() for i in range(1, 5))
    assert [row[0] for row in rows] == ["The", "cat", "sat", "on", "the", "mat"]
    assert torch.allclose(raw / 8, scaled, atol=1e-3)
    assert torch.allclose(scaled[:3].exp(), powers[:3], rtol=1e-3)
    assert torch.allclose(powers / powers.sum(), weights, atol=1e-3)
    assert float(weights.sum()) == pytest.approx(1.0, abs=2e-3)
    values = [float(v) for v in re.findall(r"^`v\(\w+\) = \[(\S+),", PAGE, re.MULTILINE)]
    (mixed,) = re.findall(r"^`= \[(\S+),", PAGE, re.MULTILINE)
    assert sum(w * v for w, v in zip(weights[:3].tolist(), values, strict=True)) == pytest.approx(
        float(mixed), abs=3e-3
    )

"""The finder: what it returns, what it refuses and in which words, and how a user adds a layout."""

from __future__ import annotations

import importlib.util
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DiffLlamaConfig

from promptlora.errors import ProjectionError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.models import load_meta
from promptlora.projections import (
    LAYOUTS,
    ROLES,
    Layout,
    Projection,
    Source,
    find_blocks,
    find_projections,
    group_by_shape,
    module_shape,
    separate,
)
from promptlora.projections.finder import _spans
from tests.architectures import CASES, build, build_meta
from tests.helpers import random_lora, tiny_gpt2, tiny_llama


def case(identifier: str):
    return next(case for case in CASES if case.id == identifier)


@pytest.fixture(scope="module")
def coder_next():
    return load_meta("qwen3-coder-next")


# --- Qwen3-Coder-Next --------------------------------------------------------------------------------------


def test_the_published_table_comes_out(coder_next) -> None:
    projections = find_projections(coder_next)
    assert len(projections) == 192
    groups = group_by_shape(projections)
    assert {shape: len(group) for shape, group in groups.items()} == {
        (2048, 2048): 72, (2048, 4096): 48, (4096, 2048): 48, (2048, 512): 24,
    }  # fmt: skip
    assert list(groups) == [(2048, 2048), (2048, 4096), (4096, 2048), (2048, 512)]
    assert len({p.module for p in projections}) == 120
    kinds = Counter((p.name.split(".")[3], p.role) for p in projections)
    assert kinds == {("linear_attn", r): 36 for r in "qkvo"} | {("self_attn", r): 12 for r in "qkvo"}


def test_rows_of_the_fused_modules(coder_next) -> None:
    by_name = {p.name: p for p in find_projections(coder_next, ("q", "k", "v", "o", "gate", "z", "b", "a"))}
    group = 2 * 128 + 2 * 2 * 128
    delta = "model.layers.0.linear_attn."
    assert by_name[delta + "q_proj"].rows == tuple((g * group, g * group + 128) for g in range(16))
    assert by_name[delta + "k_proj"].rows == tuple((g * group + 128, g * group + 256) for g in range(16))
    assert by_name[delta + "v_proj"].rows == tuple((g * group + 256, g * group + 512) for g in range(16))
    assert by_name[delta + "z_proj"].rows == tuple((g * group + 512, (g + 1) * group) for g in range(16))
    assert by_name[delta + "b_proj"].rows == tuple((4 * g, 4 * g + 2) for g in range(16))
    assert by_name[delta + "a_proj"].rows == tuple((4 * g + 2, 4 * g + 4) for g in range(16))
    assert by_name[delta + "o_proj"].rows is None
    gated = "model.layers.3.self_attn."
    assert by_name[gated + "q_proj"].rows == tuple((512 * h, 512 * h + 256) for h in range(16))
    assert by_name[gated + "gate_proj"].module == gated + "q_proj"
    assert by_name[gated + "k_proj"].rows is None


def test_other_parts_come_only_when_asked_for(coder_next) -> None:
    assert {p.role for p in find_projections(coder_next)} == set(ROLES)
    assert [p.role for p in find_projections(coder_next, ("z", "q"))[:2]] == ["q", "z"]
    assert Counter(p.role for p in find_projections(coder_next, ("gate", "z", "a", "b"))) == {
        "gate": 12, "z": 36, "b": 36, "a": 36,
    }  # fmt: skip
    with pytest.raises(ProjectionError, match=r"'conv' is not a role .*\(a depthwise convolution is no matrix product"):
        find_projections(coder_next, ("q", "conv"))


# --- order, roles, names -----------------------------------------------------------------------------------


def test_layers_are_in_natural_order() -> None:
    names = [p.name for p in find_projections(tiny_llama(num_hidden_layers=11))]
    assert names[:4] == [f"model.layers.0.self_attn.{r}_proj" for r in "qkvo"]
    assert [int(n.split(".")[2]) for n in names[::4]] == list(range(11))


def test_a_selection_of_roles() -> None:
    assert {p.role for p in find_projections(tiny_gpt2(), ("q", "v"))} == {"q", "v"}
    with pytest.raises(ProjectionError, match=r"'gate' is not a role of LlamaForCausalLM; expected some of q, k, v, o"):
        find_projections(tiny_llama(), ("q", "gate"))


def test_a_vision_tower_is_left_out() -> None:
    projections = find_projections(build_meta(case("gemma3-with-vision-tower")))
    assert projections
    assert all("language_model" in p.name for p in projections)


def test_layers_that_share_keys_and_values_have_none() -> None:
    roles = Counter(p.role for p in find_projections(build_meta(case("gemma3n_text"))))
    assert roles == {"q": 5, "k": 3, "v": 3, "o": 5}


# --- refusals ----------------------------------------------------------------------------------------------


def diff_llama() -> nn.Module:
    """Plain names and shapes, and v is read otherwise: half of each head, twice. A guess would be wrong."""
    config = DiffLlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_an_unknown_class_is_refused_even_where_names_are_plain() -> None:
    with pytest.raises(ProjectionError) as raised:
        find_projections(diff_llama())
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(
        "model.layers.0.self_attn: DiffLlamaAttention is not an attention class that promptlora knows"
    )
    assert 'layouts=(separate("DiffLlamaAttention")' in text


@pytest.mark.parametrize(
    "model_type",
    ["xlnet", "openai-gpt", "ctrl", "xlstm", "zaya", "kimi_linear", "minimax", "olmo_hybrid", "deepseek_v4"],
)
def test_families_of_another_layout_are_refused_whole(model_type: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    with pytest.raises(ProjectionError, match=r"a layout is never guessed.*describe it: find_projections"):
        find_projections(model)


@pytest.mark.parametrize("model_type", ["mamba", "bert"])
def test_a_model_without_causal_attention_is_refused(model_type: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    with pytest.raises(ProjectionError, match="no attention block was found"):
        find_projections(model)


def test_one_unknown_block_refuses_the_whole_model() -> None:
    class OddAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.everything = nn.Linear(32, 96)

    model = tiny_llama()
    model.model.layers[1].self_attn = OddAttention()
    with pytest.raises(ProjectionError, match=r"layers.1.self_attn: OddAttention .* everything \(32, 96\)"):
        find_projections(model)


def test_a_block_that_does_not_fit_its_layout_is_refused() -> None:
    model = tiny_gpt2()
    model.transformer.h[0].attn.c_attn.nf = 90
    with pytest.raises(ProjectionError, match=r"c_attn: its output has 90 values; expected 1 x \[32, 32, 32\]"):
        find_projections(model)
    model = tiny_llama()
    del model.model.layers[0].self_attn.k_proj
    with pytest.raises(ProjectionError, match=r"layers.0.self_attn: LlamaAttention has no k_proj"):
        find_projections(model)


# --- layouts of one's own ----------------------------------------------------------------------------------


class FusedAttention(nn.Module):
    """Not known to the table: per head [v | q | k | g], and an output of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 2, 4
        self.everything = nn.Linear(8, 32)
        self.back = nn.Linear(8, 8)

    def forward(self, x):
        v, q, k, g = self.everything(x).unflatten(-1, (self.heads, 4, self.dim)).unbind(-2)
        weights = torch.softmax(torch.einsum("bshd,bthd->bhst", q, k), dim=-1)
        return self.back((torch.einsum("bhst,bthd->bshd", weights, v) * g).flatten(2))


FUSED = Layout(
    attention="FusedAttention",
    sources=(
        Source(
            module="everything", parts=("v", "q", "k", "g"), sizes=lambda b: (b.heads, (b.dim,) * 4), per="head"
        ),
        Source(module="back", parts=("o",)),
    ),
)  # fmt: skip


def test_a_layout_of_ones_own() -> None:
    model = nn.Sequential(FusedAttention())
    with pytest.raises(ProjectionError, match=r"0: FusedAttention .*Layout\(attention=\"FusedAttention\""):
        find_projections(model)
    projections = find_projections(model, layouts=(FUSED,))
    assert [(p.name, p.rows) for p in projections] == [
        ("0.q_proj", ((4, 8), (20, 24))), ("0.k_proj", ((8, 12), (24, 28))), ("0.v_proj", ((0, 4), (16, 20))),
        ("0.o_proj", None),
    ]  # fmt: skip
    lora = random_lora(projections, rank=2, dtype=torch.float32)
    x = torch.randn(1, 3, 8)
    with torch.no_grad(), HookBasedLoRAInjector(model, projections) as injector:
        with injector.apply(lora):
            hooked = model(x)
        for p in projections:
            A, B = lora[p.name]
            dict(model.named_modules())[p.module].weight[p.row_index()] += (A[0] @ B[0] * lora.scaling).T
    torch.testing.assert_close(hooked, model(x))


def test_a_model_that_is_itself_an_attention_block() -> None:
    assert [p.name for p in find_projections(FusedAttention(), layouts=(FUSED,))] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]


def test_an_own_layout_takes_the_place_of_a_known_one() -> None:
    layout = Layout(attention="LlamaAttention", sources=(Source(module="q_proj", parts=("q",)),))
    assert {p.role for p in find_projections(tiny_llama(), layouts=(layout,))} == {"q"}


def test_a_subclass_is_known_unless_it_computes_otherwise() -> None:
    model = tiny_llama()
    block = model.model.layers[0].self_attn
    block.__class__ = type("WrappedAttention", (type(block),), {})
    assert len(find_projections(model)) == 8
    block.__class__ = type("OtherAttention", (type(block),), {"forward": lambda self: None})
    with pytest.raises(ProjectionError, match="OtherAttention is not an attention class"):
        find_projections(model)


def test_the_table_has_one_entry_a_class_and_says_what_it_holds() -> None:
    assert len({layout.attention for layout in LAYOUTS}) == len(LAYOUTS)
    assert all(set(ROLES) <= set(layout.roles) for layout in LAYOUTS)
    by_class = {layout.attention: str(layout) for layout in LAYOUTS}
    assert by_class["CodeGenAttention"] == "qkv_proj = q | v | k per quarter; out_proj = o"
    assert str(separate("X", "out", optional=("v",))) == "q_proj = q; k_proj = k; v_proj = v, may be absent; out = o"
    covered = {block.layout.attention for c in CASES for block in find_blocks(build_meta(c))}
    assert covered == set(by_class), "a layout without a tiny model that verifies it"


def test_the_page_of_architectures_is_up_to_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    script = Path(__file__).parents[1] / "scripts" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures_script", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [str(script), "--check"])
    assert module.main() == 0, "run python scripts/architectures.py"
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    module.PAGE.write_text("stale", encoding="utf-8")
    assert module.main() == 1
    assert "page.md is stale: run python scripts/architectures.py" in capsys.readouterr().err


# --- small parts -------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_spans_are_the_rows_in_order_in_as_few_pieces_as_can_be(repeats: int, widths: list[int]) -> None:
    output = torch.arange(repeats * sum(widths)).view(repeats, -1)
    for part, piece in enumerate(output.split(widths, dim=1)):
        spans = _spans(repeats, tuple(widths), part)
        assert [row for a, b in spans for row in range(a, b)] == piece.flatten().tolist()
        assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_row_index_and_shape() -> None:
    p = Projection(name="q_proj", module="m", role="q", in_features=3, out_features=4, rows=((2, 4), (8, 10)))
    assert p.row_index().tolist() == [2, 3, 8, 9]
    assert p.shape == (3, 4)
    assert module_shape(nn.Linear(3, 4)) == (3, 4)
    assert module_shape(nn.LayerNorm(3)) is None


@pytest.mark.real
def test_the_real_base(smollm) -> None:
    model, _ = smollm
    groups = group_by_shape(find_projections(model))
    assert {shape: len(group) for shape, group in groups.items()} == {(576, 576): 60, (576, 192): 60}


def test_finding_changes_nothing() -> None:
    model = build(case("qwen3_next"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert find_projections(model) == find_projections(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

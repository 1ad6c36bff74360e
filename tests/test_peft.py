"""PEFT folders: hooks and PEFT agree, what is written comes back, and bad input says what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3NextConfig, Qwen3NextForCausalLM

from promptlora.errors import LoRAError, OutputError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import VLLM_RANKS, load_peft, peft_config, save_peft
from promptlora.projections import Projection, find_projections
from tests.helpers import FORMS, random_lora, tiny_gpt2, tiny_llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls it


def tiny_qwen3_next() -> PreTrainedModel:
    """Three Gated DeltaNet layers and one of gated attention, with a router and experts."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, initializer_range=0.2, max_position_embeddings=128, experts_implementation="eager",
    )  # fmt: skip
    return Qwen3NextForCausalLM(config).double().eval().requires_grad_(False)


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "qwen3_next": tiny_qwen3_next}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return tiny_gpt2()


def hooked_logits(model: nn.Module, lora: LoRAWeights, ids: Tensor) -> Tensor:
    with HookBasedLoRAInjector(model) as injector, injector.apply(lora), torch.no_grad():
        return model(ids).logits


def peft_logits(model: PreTrainedModel, folder: Path, ids: Tensor) -> Tensor:
    """The logits of PEFT's own reading of the folder; the model is left as it was."""
    wrapped = PeftModel.from_pretrained(model, folder)
    try:
        with torch.no_grad():
            return wrapped(ids).logits
    finally:
        wrapped.unload()


def assert_same(found: LoRAWeights, expected: LoRAWeights) -> None:
    assert list(found) == list(expected)
    assert found.scaling == expected.scaling
    for name in expected:
        for mine, theirs in zip(found[name], expected[name], strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs), name


def assert_same_update(found: LoRAWeights, expected: LoRAWeights) -> None:
    assert list(found) == list(expected)
    for name in expected:
        mine, theirs = found.to(torch.float64).delta(name), expected.to(torch.float64).delta(name)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- PEFT reads what is written ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_hooks_and_peft_give_the_same_logits(model, form, tmp_path):
    lora, ids = FORMS[form](find_projections(model), 2).select(1), token_ids(2, 9)
    report = save_peft(lora, tmp_path / "a", model=model, base_model_name="base")
    expected = hooked_logits(model, lora, ids)
    found = peft_logits(model, tmp_path / "a", ids)
    assert (expected - model(ids).logits).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert report.relative_error == 0.0
    assert report.bytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_peft_wraps_exactly_the_physical_modules(model, tmp_path):
    projections = find_projections(model)
    report = save_peft(random_lora(projections), tmp_path / "a", model=model)
    wrapped = PeftModel.from_pretrained(model, tmp_path / "a")
    names = {name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in wrapped.named_parameters()
             if ".lora_A" in name}  # fmt: skip
    wrapped.unload()
    assert names == {p.module for p in projections}
    assert report.modules == len(names)


def test_a_reader_that_knows_only_the_global_rank_and_alpha_is_right(model, tmp_path):
    """VLLM's rule: scale every module by the global ``lora_alpha / r`` and ignore patterns."""
    projections = find_projections(model)
    lora = random_lora(projections)
    save_peft(lora, tmp_path / "a", model=model)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for p in projections:
        A, B = (tensors[f"base_model.model.{p.module}.lora_{half}.weight"] for half in "AB")
        assert A.shape[0] == B.shape[1] == config["r"]
        delta = (B @ A) * (config["lora_alpha"] / config["r"])  # [out, in]
        torch.testing.assert_close(delta[p.row_index()].T, lora.delta(p.name)[0], rtol=0, atol=1e-12)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


def test_rows_of_a_fused_output_that_are_no_projection_stay_zero(tmp_path):
    model = tiny_qwen3_next()
    save_peft(random_lora(find_projections(model)), tmp_path / "a", model=model)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    B = tensors["base_model.model.model.layers.0.linear_attn.in_proj_qkvz.lora_B.weight"]  # [96, 9]
    assert B.shape == (96, 9)
    assert B.any(dim=1).tolist() == ([True] * 32 + [False] * 16) * 2  # per key head: q 8, k 8, v 16, z 16
    gated = tensors["base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"]  # [64, 9]
    assert gated.any(dim=1).tolist() == ([True] * 8 + [False] * 8) * 4  # per head: query 8, gate 8
    assert gated.any(dim=0).tolist() == [True] * 3 + [False] * 6  # rank 3, padded to the 9 of the fused modules


def test_conv1d_is_told_from_linear(gpt2, llama, tmp_path):
    for name, model in (("gpt2", gpt2), ("llama", llama)):
        save_peft(random_lora(find_projections(model)), tmp_path / name, model=model)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["fan_in_fan_out"] is (name == "gpt2")


@pytest.mark.parametrize("which", ["conv1d", "linear"])
def test_a_wrong_fan_in_fan_out_is_put_right_by_peft_with_a_warning(which, gpt2, llama, tmp_path):
    """Why the flag may be missing without ``model=``: PEFT looks at the module itself."""
    model = gpt2 if which == "conv1d" else llama
    lora, ids = random_lora(find_projections(model)), token_ids(1, 7)
    save_peft(lora, tmp_path / "a", model=model)
    edit_config(tmp_path / "a", fan_in_fan_out=which == "linear")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        found = peft_logits(model, tmp_path / "a", ids)
    torch.testing.assert_close(found, hooked_logits(model, lora, ids), rtol=0, atol=1e-9)


def test_the_method_of_the_container_writes_and_reads_the_same(llama, tmp_path):
    lora = random_lora(find_projections(llama), adapters=3)
    lora.select(1).save_peft(tmp_path / "a", base_model_name="some/base")
    assert_same(LoRAWeights.load_peft(tmp_path / "a"), lora.select(1))
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"


# --- rank, alpha, dtype ------------------------------------------------------------------------------


@pytest.mark.parametrize(("pad_rank", "rank"), [(None, 9), ("auto", 16), (16, 16), (9, 9), (11, 11)])
def test_padding_changes_the_rank_and_nothing_else(gpt2, tmp_path, pad_rank, rank):
    lora, ids = random_lora(find_projections(gpt2)), token_ids(1, 5)
    report = save_peft(lora, tmp_path / "a", model=gpt2, pad_rank=pad_rank)
    assert (report.rank, report.alpha, report.relative_error) == (rank, rank * lora.scaling, 0.0)
    assert_same(load_peft(tmp_path / "a"), lora)
    torch.testing.assert_close(
        peft_logits(gpt2, tmp_path / "a", ids), hooked_logits(gpt2, lora, ids), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("rank", [1, 2, 8, 9, 300, 512])
def test_automatic_padding_is_the_next_rank_that_vllm_takes(tmp_path, rank):
    name = "model.layers.0.self_attn.q_proj"
    lora = LoRAWeights({name: (torch.randn(1, 4, rank), torch.randn(1, rank, 4))}, 1.0)
    assert save_peft(lora, tmp_path / "a", pad_rank="auto").rank == min(r for r in VLLM_RANKS if r >= rank)


def test_ranks_that_cannot_be_had(tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    lora = LoRAWeights({name: (torch.randn(1, 4, 600), torch.randn(1, 600, 4))}, 1.0)
    with pytest.raises(LoRAError, match=r"rank 600 .*1, 8, 16.*compress=512"):
        save_peft(lora, tmp_path / "a", pad_rank="auto")
    with pytest.raises(LoRAError, match=r"pad_rank=16 is below .*600.*compress=16"):
        save_peft(lora, tmp_path / "a", pad_rank=16)
    for wrong in ("next", True, 1.5):
        with pytest.raises(LoRAError, match="expected None, 'auto'"):
            save_peft(lora, tmp_path / "a", pad_rank=wrong)
    with pytest.raises(LoRAError, match="compress=0"):
        save_peft(lora, tmp_path / "a", compress=0)
    assert not list(tmp_path.iterdir())


@settings(max_examples=300, deadline=None)
@given(scaling=st.floats(-1e3, 1e3).filter(lambda s: s == 0 or abs(s) > 1e-6), rank=st.integers(1, 600))
def test_alpha_and_fold_give_the_scaling(scaling, rank):
    from promptlora.lora.peft.writing import _alpha

    alpha, fold = _alpha(scaling, rank)
    if fold == 1.0:
        assert alpha / rank == scaling
    else:
        assert (alpha, fold) == (rank, scaling)


def test_a_scaling_that_no_alpha_gives_goes_into_b(tmp_path, llama):
    from promptlora.lora.peft.writing import _alpha

    scaling = next(s for s in (1 / n for n in range(1, 5000)) if _alpha(s, 3)[1] != 1.0)
    lora = random_lora(find_projections(llama), scaling=scaling)
    report = save_peft(lora, tmp_path / "a")
    found = load_peft(tmp_path / "a")
    assert (report.alpha, report.rank, found.scaling) == (3, 3, 1.0)
    assert report.relative_error < 1e-15
    for name in lora:
        torch.testing.assert_close(found.delta(name), lora.delta(name), rtol=1e-14, atol=1e-15)


def test_another_dtype_reports_what_rounding_lost(tmp_path, llama):
    lora = random_lora(find_projections(llama))
    report = save_peft(lora, tmp_path / "a", dtype=torch.bfloat16)
    found = load_peft(tmp_path / "a")
    assert found.dtype == torch.bfloat16
    lost = sum(float((found.to(torch.float64).delta(n) - lora.delta(n)).norm() ** 2) for n in lora)
    total = sum(float(lora.delta(n).norm() ** 2) for n in lora)
    assert report.relative_error == pytest.approx(math.sqrt(lost / total), rel=1e-6)
    assert 1e-4 < report.relative_error < 1e-2
    with pytest.raises(LoRAError, match="expected a floating dtype"):
        save_peft(lora, tmp_path / "b", dtype=torch.int8)


# --- compression -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_compression_is_the_truncated_svd_of_each_modules_dense_update(gpt2, tmp_path, rank):
    projections = find_projections(gpt2)
    lora = random_lora(projections)
    report = save_peft(lora, tmp_path / "a", model=gpt2, compress=rank)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    scale = report.alpha / report.rank
    lost = total = 0.0
    for module in {p.module for p in projections}:
        mine = [p for p in projections if p.module == module]
        dense = torch.cat([lora.delta(p.name)[0] for p in mine], dim=1)  # GPT-2's rows are contiguous
        U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
        best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        A, B = (tensors[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        torch.testing.assert_close((B @ A).T * scale, best, rtol=0, atol=1e-9)
        lost, total = lost + float(S[rank:].square().sum()), total + float(S.square().sum())
    assert report.rank == rank
    assert report.relative_error == pytest.approx(math.sqrt(lost / total), rel=1e-9)
    found = load_peft(tmp_path / "a")
    assert list(found) == list(lora)
    torch.testing.assert_close(
        peft_logits(gpt2, tmp_path / "a", token_ids(1, 5)), hooked_logits(gpt2, found, token_ids(1, 5)),
        rtol=0, atol=1e-9,
    )  # fmt: skip


def test_compression_leaves_the_rows_of_others_at_zero(gpt2, tmp_path):
    """Rounding in the QR must not leak into q and k where only v has a LoRA: that file could not be read again."""
    only_v = [p for p in find_projections(gpt2) if p.role == "v"]
    save_peft(random_lora(only_v, rank=5), tmp_path / "a", model=gpt2, compress=3)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for p in only_v:
        assert not tensors[f"base_model.model.{p.module}.lora_B.weight"][:64].any()
    assert list(load_peft(tmp_path / "a")) == [p.name for p in only_v]


def test_compression_to_the_rank_that_is_there_changes_nothing(gpt2, tmp_path):
    lora = random_lora(find_projections(gpt2))
    report = save_peft(lora, tmp_path / "a", model=gpt2, compress=64)
    assert (report.rank, report.relative_error < 1e-14) == (9, True)
    assert_same(load_peft(tmp_path / "a"), lora)


def test_a_compressed_adapter_does_not_grow_when_it_is_written_again(gpt2, tmp_path):
    save_peft(random_lora(find_projections(gpt2)), tmp_path / "a", model=gpt2, compress=4)
    found = load_peft(tmp_path / "a")
    assert save_peft(found, tmp_path / "b", model=gpt2).rank == 4
    assert_same(load_peft(tmp_path / "b"), found)


# --- the round trip ----------------------------------------------------------------------------------


def test_the_round_trip_is_bitwise(model, tmp_path):
    lora = random_lora(find_projections(model))
    save_peft(lora, tmp_path / "a", model=model)
    found = load_peft(tmp_path / "a")
    assert_same(found, lora)
    assert [(p.name, p.module, p.rows) for p in found.projections] == [
        (p.name, p.module, p.rows) for p in lora.projections
    ]
    assert_same(load_peft(tmp_path / "a", projections=find_projections(model)), lora)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_lora_comes_back(gpt2, llama, tmp_path_factory, data):
    """Ranks of their own, any subset of the projections, padding, either dtype, also B = 0 as at the start."""
    model = data.draw(st.sampled_from([gpt2, llama]), "model")
    chosen = data.draw(st.lists(st.sampled_from(find_projections(model)), min_size=1, unique=True), "projections")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    scaling = data.draw(st.floats(0.01, 64.0), "scaling")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    matrices = {}
    for p in chosen:
        rank = data.draw(st.integers(1, 5), f"rank of {p.name}")
        A = torch.randn(1, p.in_features, rank, generator=generator).to(dtype)
        B = torch.randn(1, rank, p.out_features, generator=generator).to(dtype)
        matrices[p.name] = (A, B * data.draw(st.sampled_from([0, 1]), "B"))
    lora = LoRAWeights(matrices, scaling, projections=find_projections(model))
    folder = tmp_path_factory.mktemp("adapters") / "a"
    pad_rank = data.draw(st.sampled_from([None, "auto", 64]), "pad_rank")
    report = save_peft(lora, folder, model=model, pad_rank=pad_rank)
    found = load_peft(folder)
    by_name = LoRAWeights({name: lora[name] for name in found}, scaling)
    assert set(found) == set(lora)
    if found.scaling == scaling:
        assert_same(found, by_name)
    else:  # no alpha gives this scaling exactly: it is in B
        assert (found.scaling, report.alpha) == (1.0, report.rank)
        assert_same_update(found, by_name)


def test_a_folder_without_our_note_is_read_by_its_form(gpt2, tmp_path):
    """What PEFT saves again loses the note: the stacked form is known by its zeros, exactly."""
    projections = find_projections(gpt2)
    lora = random_lora(projections)
    save_peft(lora, tmp_path / "a", model=gpt2)
    wrapped = PeftModel.from_pretrained(gpt2, tmp_path / "a")
    wrapped.save_pretrained(tmp_path / "b")
    wrapped.unload()
    found = load_peft(tmp_path / "b", projections=projections)
    assert found.scaling == lora.scaling
    for p in projections:
        if p.rows is not None:
            assert torch.equal(found[p.name][0], lora[p.name][0])
            assert torch.equal(found[p.name][1], lora[p.name][1])
    assert_same_update(found, lora)
    with pytest.raises(LoRAError, match=r"c_attn is not named .*projections=find_projections"):
        load_peft(tmp_path / "b")


def test_writing_again_without_the_model_needs_the_width_of_a_fused_module(tmp_path):
    rows = ((0, 8), (16, 24))  # a gate follows each head: the rows alone do not tell that the output has 32
    p = Projection(name="a.q_proj", module="a.q_proj", role="q", in_features=8, out_features=16, rows=rows)
    with pytest.raises(LoRAError, match=r"a\.q_proj: a fused module of unknown width; pass model="):
        save_peft(random_lora([p]), tmp_path / "a")


# --- adapters that PEFT made -------------------------------------------------------------------------

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MADE = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION},
    "rslora": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "rank_pattern": {"q_proj": 2, "0.self_attn.v_proj": 8},
        "alpha_pattern": {r"layers\.1\..*k_proj": 3, "o_proj": 9}, "use_rslora": True,
    },
    "regex": {"r": 2, "lora_alpha": 2, "target_modules": r".*layers\.1\..*(q|o)_proj"},
    "gaussian": {"r": 2, "target_modules": ATTENTION, "init_lora_weights": "gaussian", "layers_to_transform": [0]},
}  # fmt: skip


def made_by_peft(model: PreTrainedModel, folder: Path, **config: object) -> Tensor:
    """Save an adapter of PEFT with random A and B; its logits. The model is left as it was."""
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **config}))
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    wrapped.eval().save_pretrained(folder)
    with torch.no_grad():
        logits = wrapped(token_ids(2, 7)).logits
    wrapped.unload()
    return logits


@pytest.mark.parametrize("kind", MADE)
def test_adapters_that_peft_made_mean_the_same_here(kind, llama, tmp_path):
    expected = made_by_peft(llama, tmp_path / "a", **MADE[kind])
    lora = load_peft(tmp_path / "a")
    assert set(lora) <= {p.name for p in find_projections(llama)}
    base = llama(token_ids(2, 7)).logits
    found = hooked_logits(llama, lora.to(torch.float64), token_ids(2, 7))
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_an_adapter_that_peft_made_on_a_conv1d_means_the_same_here(gpt2, tmp_path):
    expected = made_by_peft(gpt2, tmp_path / "a", r=4, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True)
    lora = load_peft(tmp_path / "a", projections=find_projections(gpt2))
    assert len(lora) == 6
    found = hooked_logits(gpt2, lora, token_ids(2, 7))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert save_peft(lora, tmp_path / "b", model=gpt2).rank == 4  # q, k and v share one A: not stacked to 12


def test_a_module_that_is_no_attention_projection_is_refused(llama, gpt2, tmp_path):
    made_by_peft(llama, tmp_path / "a", r=2, target_modules=["q_proj", "up_proj"])
    with pytest.raises(LoRAError, match="up_proj is not named as an attention projection"):
        load_peft(tmp_path / "a")
    with pytest.raises(LoRAError, match="up_proj holds no attention projection of the base model"):
        load_peft(tmp_path / "a", projections=find_projections(llama))
    with pytest.raises(LoRAError, match="holds no attention projection of the base model"):
        load_peft(tmp_path / "a", projections=find_projections(gpt2))


def test_an_update_of_rows_that_are_no_projection_is_refused(tmp_path):
    model = tiny_qwen3_next()
    made_by_peft(model, tmp_path / "a", r=2, target_modules=["in_proj_qkvz"])
    with pytest.raises(LoRAError, match=r"in_proj_qkvz: the adapter changes row 32 .*none of q, k, v"):
        load_peft(tmp_path / "a", projections=find_projections(model))


def test_an_adapter_for_another_width_is_refused(llama, tmp_path):
    made_by_peft(llama, tmp_path / "a", r=2, target_modules=["q_proj"])
    with pytest.raises(LoRAError, match=r"32 x 32 .*expected in 64 .*another model"):
        load_peft(tmp_path / "a", projections=find_projections(tiny_llama(hidden_size=64)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"embed_tokens.*no embeddings"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*save_embedding_layers")
def test_more_than_a_lora_is_refused(config, message, tmp_path):
    made_by_peft(tiny_llama(), tmp_path / "a", **{"r": 2, "target_modules": ["q_proj"], **config})
    with pytest.raises(LoRAError, match=message):
        load_peft(tmp_path / "a")


@pytest.mark.parametrize("start", ["olora", "pissa", "pissa_niter_16", "corda", "loftq", "lora_ga"])
def test_a_start_that_changed_the_base_is_refused(start, folder):
    edit_config(folder, init_lora_weights=start)
    with pytest.raises(LoRAError, match=f"init_lora_weights is '{start}', which also changed the base"):
        load_peft(folder)


@pytest.mark.parametrize(
    "key", ["lora_bias", "target_parameters", "alora_invocation_tokens", "use_qalora", "kasa_config"]
)
def test_variants_of_lora_are_refused_by_the_config_alone(key, folder):
    edit_config(folder, **{key: [1]})
    with pytest.raises(LoRAError, match=rf"{key} is \[1\]; expected a plain LoRA without it"):
        load_peft(folder)


# --- bad input ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(llama, tmp_path):
    save_peft(random_lora(find_projections(llama)), tmp_path / "a")
    return tmp_path / "a"


def test_an_existing_folder_is_kept(folder, llama):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = random_lora(find_projections(llama), seed=5)
    with pytest.raises(OutputError, match="exists already"):
        save_peft(other, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    save_peft(other, folder, overwrite=True)
    assert_same(load_peft(folder), other)


def test_a_failed_write_leaves_nothing(llama, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("promptlora.lora.peft.writing.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        save_peft(random_lora(find_projections(llama)), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [[0, 1], [0, 0], []])
def test_not_exactly_one_adapter(rows, llama, tmp_path):
    lora = random_lora(find_projections(llama), adapters=2).select(rows)
    with pytest.raises(LoRAError, match=rf"{len(rows)} adapters; expected exactly one"):
        save_peft(lora, tmp_path / "a")


def test_loras_that_do_not_fit(llama, gpt2, tmp_path):
    lora = random_lora(find_projections(llama))
    with pytest.raises(LoRAError, match="not among the 8 projections"):
        save_peft(lora, tmp_path / "a", projections=find_projections(gpt2))
    with pytest.raises(LoRAError, match=r"model\.layers\.0\.self_attn\.q_proj: no such module in GPT2LMHeadModel"):
        save_peft(lora, tmp_path / "a", model=gpt2)
    with pytest.raises(LoRAError, match=r"32 x 32 .*expected \(64, 32\)"):
        save_peft(lora, tmp_path / "a", projections=find_projections(tiny_llama(hidden_size=64)))
    bare = LoRAWeights({"h.0.attn.c_attn": (torch.ones(1, 4, 2), torch.ones(1, 2, 12))}, 1.0)
    with pytest.raises(LoRAError, match="nothing says which module this is"):
        save_peft(bare, tmp_path / "a")
    for wrong in (math.nan, math.inf):
        A = torch.ones(1, 4, 2)
        A[0, 0, 0] = wrong
        with pytest.raises(LoRAError, match="holds nan or inf"):
            save_peft(LoRAWeights({"a.q_proj": (A, torch.ones(1, 2, 4))}, 1.0), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_no_folder_and_no_weights(tmp_path, folder):
    with pytest.raises(LoRAError, match=r"no adapter_config\.json"):
        load_peft(tmp_path / "missing")
    weights = folder / "adapter_model.safetensors"
    weights.unlink()
    with pytest.raises(LoRAError, match=r"no adapter_model\.safetensors"):
        load_peft(folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(LoRAError, match=r"adapter_model\.bin is a pickle, which is not read"):
        load_peft(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_weights_file(folder, keep):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LoRAError, match="truncated or not safetensors"):
        load_peft(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "a list; expected a JSON object"),
        ("{}", "peft_type is None"),
        ('{"peft_type": "IA3"}', "peft_type is 'IA3'"),
        ('{"peft_type": "LORA"}', "r is None"),
        ('{"peft_type": "LORA", "r": 0, "lora_alpha": 1}', "r is 0"),
        ('{"peft_type": "LORA", "r": 3, "lora_alpha": "x"}', "lora_alpha is 'x'"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": 1}', "has rank 3, adapter_config.json says 4"),
        ('{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "rank_pattern": {"(": 3}}', "rank_pattern has"),
        ('{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "alpha_pattern": {"q_proj": []}}', "alpha_pattern is"),
        ('{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "alpha_pattern": 7}', "alpha_pattern is 7"),
        ('{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "use_novelty": true}', "use_novelty is True"),
    ],
)
def test_a_bad_config(folder, text, message):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(LoRAError, match=message):
        load_peft(folder)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KEY.format("A"): None}, "has only lora_B"),
        ({KEY.format("B"): torch.ones(32, 2)}, "rank 3 in lora_A, 2 in lora_B"),
        ({KEY.format("A"): torch.ones(3, 32, 1)}, "two-dimensional"),
        ({KEY.format("A"): torch.ones(3, 32, dtype=torch.int32)}, "torch.int32"),
        ({"lora_magnitude_vector": torch.ones(2)}, "no embeddings, biases, DoRA"),
        ({KEY.format("A"): torch.ones(3, 32, dtype=torch.float32)}, "expected torch.float64|expected torch.float32"),
    ],
)
def test_bad_tensors(folder, changes, message):
    path = folder / "adapter_model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    with pytest.raises(LoRAError, match=message):
        load_peft(folder)


def test_an_empty_weights_file(folder):
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(LoRAError, match="no tensors"):
        load_peft(folder)


@pytest.mark.parametrize("note", ["", "{", "[1]", '[{"projection": {}, "start": 0, "rank": 1}]', '{"a": 1}'])
def test_a_damaged_note_of_our_own(folder, note):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"promptlora.peft/1": note})
    with pytest.raises(LoRAError, match=r"its note .*(is damaged|not JSON)"):
        load_peft(folder)


def test_a_note_that_does_not_fit_the_tensors_is_not_believed(gpt2, tmp_path):
    """Tensors changed by another program that kept the note: the update that the tensors say is read."""
    lora = random_lora(find_projections(gpt2))
    save_peft(lora, tmp_path / "a", model=gpt2)
    path = tmp_path / "a" / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = {key: torch.randn_like(tensor) for key, tensor in load_file(path).items()}
    save_file(tensors, path, metadata=metadata)
    ids = token_ids(1, 6)
    found = hooked_logits(gpt2, load_peft(tmp_path / "a"), ids)
    torch.testing.assert_close(found, peft_logits(gpt2, tmp_path / "a", ids), rtol=0, atol=1e-9)


# --- real weights ------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_weights_in_peft_and_in_hooks(smollm, tmp_path):
    model, tokenizer = smollm
    lora = random_lora(find_projections(model), rank=8, scaling=0.05, dtype=torch.float32)
    save_peft(lora, tmp_path / "a", model=model, base_model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
    inputs = tokenizer(["The capital of France is", "Two and two make"], return_tensors="pt", padding=True)
    options = {"max_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        base = model(**inputs).logits
        with HookBasedLoRAInjector(model) as injector, injector.apply(lora):
            expected, text = model(**inputs).logits, model.generate(**inputs, **options)
        wrapped = PeftModel.from_pretrained(model, tmp_path / "a")
        found, peft_text = wrapped(**inputs).logits, wrapped.generate(**inputs, **options)
        wrapped.unload()
        after = model(**inputs).logits
    assert (expected - base).abs().max() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)
    assert torch.equal(text, peft_text)
    assert torch.equal(after, base)
    assert_same(load_peft(tmp_path / "a"), lora)


# --- PEFT finds the base, and takes an adapter from memory --------------------------------------------


def test_the_config_names_the_base_so_that_peft_finds_it(llama, tmp_path):
    llama.save_pretrained(tmp_path / "base")
    loaded = type(llama).from_pretrained(tmp_path / "base", dtype=torch.float64)
    lora, ids = random_lora(find_projections(loaded), adapters=2), token_ids(1, 7)
    lora.select(1).save_peft(tmp_path / "a", model=loaded)
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            found(ids).logits, hooked_logits(loaded, lora.select(1), ids), rtol=0, atol=1e-9
        )  # fmt: skip


def test_the_name_of_the_base_stays_with_what_is_made_of_a_lora(llama, tmp_path):
    lora = random_lora(find_projections(llama), adapters=3)
    assert peft_config(lora.select(0))["base_model_name_or_path"] is None
    lora.base_model = "owner/base"
    made = [lora.select(0), lora.to(torch.float32), lora.detach(), lora.rescale(3.0), lora.mean(),
            LoRAWeights.stack([lora, lora]), LoRAWeights.combine([lora, lora])]  # fmt: skip
    lora.save(tmp_path / "a.safetensors")
    lora.select(0).save_peft(tmp_path / "peft")
    made += [LoRAWeights.load(tmp_path / "a.safetensors"), LoRAWeights.load_peft(tmp_path / "peft")]
    assert [each.base_model for each in made] == ["owner/base"] * len(made)
    assert peft_config(lora.select(0), model=llama)["base_model_name_or_path"] == "owner/base"
    assert peft_config(lora.select(0), base_model_name="other/base")["base_model_name_or_path"] == "other/base"


@pytest.mark.parametrize("options", [{}, {"pad_rank": "auto"}], ids=str)
def test_adapters_in_memory_replace_each_other_in_a_peft_model(model, options):
    lora, ids = random_lora(find_projections(model), adapters=2), token_ids(2, 9)
    before = model(ids).logits
    wrapped = get_peft_model(model, LoraConfig(**lora.select(0).peft_config(model=model, **options)))
    logits = []
    for row in (0, 1):
        result = set_peft_model_state_dict(wrapped, lora.select(row).peft_state_dict(model=model, **options))
        assert not result.unexpected_keys
        assert not [key for key in result.missing_keys if "lora_" in key]
        with torch.no_grad():
            logits.append(wrapped(ids).logits)
    model = wrapped.unload()
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
    for row in (0, 1):
        expected = hooked_logits(model, lora.select(row), ids)
        assert (expected - before).abs().max() > 0.1
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-9)


def test_what_is_in_memory_is_what_a_folder_holds(gpt2, tmp_path):
    lora = random_lora(find_projections(gpt2), adapters=2).select(1)
    lora.save_peft(tmp_path / "a", model=gpt2, compress=2, dtype=torch.bfloat16)
    folder = load_file(tmp_path / "a" / "adapter_model.safetensors")
    memory = lora.peft_state_dict(model=gpt2, compress=2, dtype=torch.bfloat16)
    assert sorted(memory) == sorted(folder)
    assert all(torch.equal(value, folder[name]) for name, value in memory.items())
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert lora.peft_config(model=gpt2, compress=2) == config
    with pytest.raises(LoRAError, match=r"2 adapters; expected exactly one"):
        random_lora(find_projections(gpt2), adapters=2).peft_state_dict()


@pytest.mark.parametrize("rank", [1, 2])
def test_factors_that_modules_share_are_written_for_each_and_never_aliased(tmp_path, rank):
    model = tiny_llama(torch.float32)
    projections = [p for p in find_projections(model) if p.in_features == 32]
    A = torch.randn(1, 32, rank)
    lora = LoRAWeights({p.name: (A, torch.randn(1, rank, p.out_features)) for p in projections}, 1.0)
    lora.save_peft(tmp_path / "adapter", model=model)
    back = LoRAWeights.load_peft(tmp_path / "adapter")
    for name in lora:
        torch.testing.assert_close(back.delta(name), lora.delta(name))
    before = A.clone()
    for tensor in lora.peft_state_dict(model=model).values():
        tensor.zero_()
    assert torch.equal(A, before)

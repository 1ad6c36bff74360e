"""Merging: the merged weights, the hooks and PEFT agree; what cannot be merged is refused and left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn

from promptlora.errors import LoRAError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import merge_lora, save_peft
from promptlora.projections import Projection, find_projections
from tests.helpers import FORMS, random_lora, tiny_gpt2, tiny_llama, token_ids
from tests.test_peft import MODELS, hooked_logits

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls it


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_hooks_merged_and_peft_agree(kind, form, tmp_path):
    model, ids = MODELS[kind](), token_ids(2, 9)
    lora = FORMS[form](find_projections(model))
    save_peft(lora, tmp_path / "a", model=model)
    hooked = hooked_logits(model, lora, ids)
    merged = merge_lora(copy.deepcopy(model), lora)
    torch.testing.assert_close(merged(ids).logits, hooked, rtol=0, atol=1e-9)
    wrapped = PeftModel.from_pretrained(model, tmp_path / "a")
    torch.testing.assert_close(wrapped(ids).logits, hooked, rtol=0, atol=1e-9)
    by_peft = wrapped.merge_and_unload()
    for name, tensor in by_peft.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_only_the_rows_of_the_projections_change(kind):
    """The naive twin: every weight by hand, Conv1D the other way round."""
    model = MODELS[kind]()
    before, chosen = weights(model), find_projections(model)[:2]
    lora = random_lora(chosen)
    assert merge_lora(model, lora) is model
    for p in chosen:
        delta = lora.delta(p.name)[0]  # [in, out]
        key = f"{p.module}.weight"
        for place, row in enumerate(p.row_index().tolist()):
            if kind == "gpt2":
                before[key][:, row] += delta[:, place]
            else:
                before[key][row] += delta[:, place]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-12)
    touched = {f"{p.module}.weight" for p in chosen}
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if n not in touched)


def test_a_view_of_the_stored_adapters_is_merged_alone():
    model, projections = tiny_llama(), find_projections(tiny_llama())
    lora = random_lora(projections, adapters=3)
    ids = token_ids(1, 5)
    expected = hooked_logits(model, lora.select(2), ids)
    torch.testing.assert_close(merge_lora(model, lora.select(2))(ids).logits, expected, rtol=0, atol=1e-9)


def test_narrow_weights_are_rounded_once():
    model = tiny_llama(torch.bfloat16)
    p = find_projections(model)[0]
    lora = random_lora([p], dtype=torch.bfloat16)
    weight = model.get_submodule(p.module).weight
    expected = (weight.float() + lora.to(torch.float32).delta(p.name)[0].T).bfloat16()
    merge_lora(model, lora)
    assert torch.equal(weight, expected)


def test_a_lora_with_gradients_leaves_none_behind():
    model = tiny_llama()
    merge_lora(model, random_lora(find_projections(model), requires_grad=True))
    assert all(not p.requires_grad and p.grad_fn is None for p in model.parameters())


@pytest.mark.parametrize("rows", [[0, 1], []])
def test_not_exactly_one_adapter(rows):
    model = tiny_llama()
    with pytest.raises(LoRAError, match=rf"{len(rows)} adapters; expected exactly one"):
        merge_lora(model, random_lora(find_projections(model), adapters=2).select(rows))


def failing_loras() -> dict[str, tuple[LoRAWeights, str]]:
    projections = find_projections(tiny_llama())
    last, good = projections[-1], random_lora(projections)
    ones = torch.ones(1, 32, 2, dtype=torch.float64)

    def with_last(A: torch.Tensor, B: torch.Tensor, name: str = last.name) -> LoRAWeights:
        return LoRAWeights({projections[0].name: good[projections[0].name], name: (A, B)}, 1.0)

    broken = ones.clone()
    broken[0, 0, 0] = torch.nan
    return {
        "unknown name": (with_last(ones, ones.mT, "model.layers.9.self_attn.q_proj"), "no such projection in Llama"),
        "wrong width": (with_last(ones[:, :8], ones.mT), r"A \[8, 2\] and B \[2, 32\] .*expected \(32, 32\)"),
        "dtype": (good.to(torch.float32), r"the LoRA is torch.float32 and the model torch.float64; use lora.to"),
        "nan": (with_last(broken, ones.mT), "holds nan or inf"),
        "device": (good.to(device="meta"), "is on meta and the model on cpu"),
    }


@pytest.mark.parametrize("kind", ["unknown name", "wrong width", "dtype", "nan", "device"])
def test_a_lora_that_does_not_fit_changes_nothing(kind):
    model = tiny_llama()
    before = weights(model)
    lora, message = failing_loras()[kind]
    with pytest.raises(LoRAError, match=message):
        merge_lora(model, lora)
    assert unchanged(model, before)


def test_a_lora_of_another_model():
    model = tiny_gpt2()
    with pytest.raises(LoRAError, match=r"no such projection in GPT2LMHeadModel .*another model"):
        merge_lora(model, random_lora(find_projections(tiny_llama())))
    rows = Projection(
        name="x.q_proj",
        module="transformer.h.0.attn.c_attn",
        role="q",
        in_features=32,
        out_features=8,
        rows=((92, 100),),
    )
    with pytest.raises(LoRAError, match=r"on transformer\.h\.0\.attn\.c_attn \(32, 96\)"):
        merge_lora(model, random_lora([rows]))


def test_weights_that_cannot_be_added_to():
    lora = random_lora(find_projections(tiny_llama()))
    name = next(iter(lora))

    with torch.device("meta"):
        meta = tiny_llama()
    with pytest.raises(LoRAError, match="on the meta device"):
        merge_lora(meta, lora)

    quantised = tiny_llama()
    module = quantised.get_submodule(name)
    module.weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(LoRAError, match=r"weight is Parameter torch\.uint8; expected a plain floating parameter"):
        merge_lora(quantised, lora)

    packed = tiny_llama()
    packed.get_submodule(name).weight = nn.Parameter(torch.zeros(512, 2, dtype=torch.float64), requires_grad=False)
    with pytest.raises(LoRAError, match="is it quantised"):
        merge_lora(packed, lora)

    computed = tiny_llama()
    torch.nn.utils.parametrizations.weight_norm(computed.get_submodule(name))
    with pytest.raises(LoRAError, match="its weight is none"):
        merge_lora(computed, lora)


def test_a_weight_that_two_modules_share_is_refused():
    model = tiny_llama()
    first, second = (model.get_submodule(f"model.layers.{i}.self_attn.q_proj") for i in (0, 1))
    second.weight = first.weight
    before = weights(model)
    with pytest.raises(LoRAError, match=r"layers\.1\.self_attn\.q_proj shares its weight with .*layers\.0"):
        merge_lora(model, random_lora(find_projections(model)))
    assert unchanged(model, before)


@pytest.mark.real
def test_real_weights_merged(smollm):
    model, tokenizer = smollm
    lora = random_lora(find_projections(model), rank=8, scaling=0.05, dtype=torch.float32)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False}
    merged = merge_lora(copy.deepcopy(model), lora)
    with torch.no_grad():
        with HookBasedLoRAInjector(model) as injector, injector.apply(lora):
            expected, text = model(**inputs).logits, model.generate(**inputs, **options)
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=2e-3)
        assert torch.equal(merged.generate(**inputs, **options), text)

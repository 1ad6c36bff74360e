"""``generate`` and ``torch.compile`` with a LoRA on: each row as if it were alone, and a graph that switches.

The twin is one adapter at a time, mostly with the deltas merged into the weights.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil

import gguf
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaPreTrainedModel, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.integrations.gguf import utils as gguf_utils

from promptlora.errors import LoRAError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.projections import find_projections
from tests.helpers import FORMS, random_lora, tiny_gpt2, tiny_llama, token_ids

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def left_padded(lengths: list[int]) -> dict[str, Tensor]:
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = token_ids(1, length, seed=row)[0]
        mask[row, width - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


WAYS = {
    "greedy": {},
    "3 beams": {"num_beams": 3},
    "4 beams, 2 returned": {"num_beams": 4, "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("form", ["free", "core"])
@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0, 2, 0], [1, 1]], ids=str)
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_batch_generates_what_each_row_does_alone(
    model: PreTrainedModel, options: dict, index: list[int], form: str
) -> None:
    lora = FORMS[form](find_projections(model), 3)
    batch = left_padded([7, 4, 5, 3][: len(index)])
    returned = options.get("num_return_sequences", 1)
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora, index):
            together = model.generate(**batch, max_new_tokens=8, do_sample=False, **options)
        base = model.generate(**batch, max_new_tokens=8, do_sample=False, **options)
        for row, adapter in enumerate(index):
            length = int(batch["attention_mask"][row].sum())
            ids = batch["input_ids"][row : row + 1, -length:]
            with injector.apply(lora.select(adapter)):
                alone = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, **options
                )
            new = together[row * returned : (row + 1) * returned, batch["input_ids"].shape[1] :]
            expected = alone[:, length:]
            assert torch.equal(new[:, : expected.shape[1]], expected)
            assert set(new[:, expected.shape[1] :].flatten().tolist()) <= {0, 2}  # nothing but padding
    assert not torch.equal(base, together)


class Watch(LogitsProcessor):
    """Keeps the logits of every step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.clone())
        return scores


def test_sampling_with_several_returns_uses_each_rows_adapter(model: PreTrainedModel) -> None:
    lora, batch, index, returned = random_lora(find_projections(model), 2), left_padded([5, 3, 4]), [1, 0, 1], 3
    watch = Watch()
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora, index):
            torch.manual_seed(0)
            sampled = model.generate(
                **batch, max_new_tokens=6, do_sample=True, top_k=0, num_return_sequences=returned,
                logits_processor=LogitsProcessorList([watch]), eos_token_id=None,
            )  # fmt: skip
        mask = batch["attention_mask"].repeat_interleave(returned, 0)
        mask = torch.cat([mask, mask.new_ones(len(mask), 6)], 1)
        assert len({tuple(row) for row in sampled[:, 5:].tolist()}) > 3  # sampled, not greedy
        for row in range(len(index) * returned):
            ids = sampled[row : row + 1, mask[row].bool()]
            with injector.apply(lora.select(index[row // returned])), torch.no_grad():
                alone = model(ids).logits[0, -7:-1]
            steps = torch.stack([step[row] for step in watch.steps])
            assert torch.allclose(steps, alone.to(steps.dtype), rtol=0, atol=1e-5)
        with injector.apply(lora, index):
            torch.manual_seed(0)
            again = model.generate(
                **batch, max_new_tokens=6, do_sample=True, top_k=0, num_return_sequences=returned, eos_token_id=None
            )
    assert torch.equal(again, sampled)


def test_one_row_sampled_alone_equals_the_same_seed_without_hooks(model: PreTrainedModel) -> None:
    lora, ids = random_lora(find_projections(model), 2), token_ids(1, 5)
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 8,
        "do_sample": True,
        "num_return_sequences": 4,
    }
    modules = dict(model.named_modules())
    with HookBasedLoRAInjector(model) as injector, injector.apply(lora.select(1)):
        torch.manual_seed(3)
        hooked = model.generate(ids, **options)
    for p in find_projections(model):  # merge by hand
        weight = modules[p.module].weight if "c_" in p.module else modules[p.module].weight.T
        with torch.no_grad():
            weight[:, p.row_index()] += lora.delta(p.name)[1]
    torch.manual_seed(3)
    assert torch.equal(model.generate(ids, **options), hooked)


def test_a_batch_that_does_not_fit_is_an_error_in_generate(model: PreTrainedModel) -> None:
    lora = random_lora(find_projections(model), 2)
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora), pytest.raises(LoRAError, match=r"a batch of 3 .*expected a multiple of 2"):
            model.generate(**left_padded([4, 4, 4]), max_new_tokens=2)
        assert all(slot.updates is None for slot in injector._slots.values())


# --- torch.compile -----------------------------------------------------------------------------------------


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


@pytest.fixture(params=MODELS)
def one_layer(request: pytest.FixtureRequest) -> PreTrainedModel:
    """The compiler treats all layers alike, and its time grows faster than their number."""
    return tiny_llama(num_hidden_layers=1) if request.param == "llama" else tiny_gpt2(layers=1)


@pytest.mark.parametrize("form", ["free", "core"])
def test_a_compiled_model_follows_the_switch(
    one_layer: PreTrainedModel, counter: CompileCounterWithBackend, form: str
) -> None:
    model, ids = one_layer, token_ids(2, 6)
    with HookBasedLoRAInjector(model) as injector, torch.no_grad():
        one, two = (FORMS[form](injector.projections, 2, seed=seed) for seed in (1, 2))
        expected = []
        for lora in (None, one, two):
            with injector.apply(lora):
                expected.append(model(ids, use_cache=False).logits)
        compiled = torch.compile(model, backend=counter, fullgraph=True)  # a break of the graph is an error
        for which in (0, 1, 0, 1, 2, 1, 0, 2):
            with injector.apply((None, one, two)[which]):
                assert torch.allclose(compiled(ids, use_cache=False).logits, expected[which], **EXACT)
        assert counter.frame_count == 2  # the base, and with a LoRA
        with injector.apply(one.select([1, 0])):  # permuted rows: the same graph
            assert torch.allclose(compiled(ids.flip(0), use_cache=False).logits, expected[1].flip(0), **EXACT)
        assert counter.frame_count == 2
        if form == "core" and isinstance(model, LlamaPreTrainedModel):
            return  # test_batch_sizes_share_a_graph compiles cores for other batches, a matter of ten seconds
        with injector.apply(one, [1, 0, 1]):
            found = compiled(ids[[1, 0, 1]], use_cache=False).logits
        assert torch.allclose(found, expected[1][[1, 0, 1]], **EXACT)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it for inputs that are no leaves
def test_gradients_through_a_compiled_model(one_layer: PreTrainedModel, counter: CompileCounterWithBackend) -> None:
    model, ids = one_layer, token_ids(2, 6)
    head = nn.Linear(3, 1, dtype=torch.float64)

    def loss(run: nn.Module, injector: HookBasedLoRAInjector, seed: int) -> Tensor:
        context = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        fixed = random_lora(injector.projections, 2, seed=seed)
        gain = head(context)[:, :, None]  # [adapters, 1, 1]: A and B are no leaves
        lora = LoRAWeights({name: (A * gain, B * gain) for name, (A, B) in fixed.items()}, 0.5)
        with injector.apply(lora):
            return run(ids, use_cache=False).logits.square().mean()

    with HookBasedLoRAInjector(model) as injector:
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for seed in (1, 2, 1):
            found = torch.autograd.grad(loss(compiled, injector, seed), head.parameters())
            expected = torch.autograd.grad(loss(model, injector, seed), head.parameters())
            assert expected[0].abs().max() > 1e-4
            assert all(torch.allclose(f, e, **EXACT) for f, e in zip(found, expected, strict=True))
    assert counter.frame_count == 1


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    torch._dynamo.reset()
    model, ids = tiny_llama(torch.float32, num_hidden_layers=1), token_ids(2, 6)
    with HookBasedLoRAInjector(model) as injector, torch.no_grad():
        one, two = (
            random_lora(injector.projections, 2, dtype=torch.float32, scaling=0.1, seed=seed) for seed in (1, 2)
        )
        compiled = torch.compile(model)
        for lora in (one, two, None, one):
            with injector.apply(lora):
                right = model(ids, use_cache=False).logits
                assert torch.allclose(compiled(ids, use_cache=False).logits, right, rtol=0, atol=1e-3)
    torch._dynamo.reset()


# --- quantised real weights -----------------------------------------------------------------------------------


def real_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def assert_adapters_work_on(quantised: PreTrainedModel, plain: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """Three adapters in one batch: as on a plain model of the same (dequantised) weights."""
    lora = random_lora(find_projections(plain), 3, 8, dtype=torch.float32, scaling=0.02)
    base, last = real_logits(quantised, batch), (slice(None), -1)
    with HookBasedLoRAInjector(quantised) as injector, injector.apply(lora):
        adapted = real_logits(quantised, batch)
    with HookBasedLoRAInjector(plain) as injector, injector.apply(lora):
        expected = real_logits(plain, batch)
    assert torch.allclose(adapted[last], expected[last], rtol=0, atol=0.02)
    assert (adapted[last] - base[last]).abs().max() > 0.2
    assert torch.equal(real_logits(quantised, batch), base)


@pytest.fixture(scope="module")
def sentences(smollm) -> dict[str, Tensor]:
    return dict(smollm[1](["The capital of France is", "2 + 2 =", "Water boils at"], return_tensors="pt", padding=True))


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")  # of torchao and its imports
def test_torchao_int8_weights(smollm, sentences: dict[str, Tensor]) -> None:
    """Tried with torchao 0.18.0."""
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed: pip install --no-deps torchao==0.18.0")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantised = copy.deepcopy(smollm[0])
    quantize_(quantised.model, Int8WeightOnlyConfig())
    plain = copy.deepcopy(quantised)
    for module in plain.model.modules():
        if isinstance(module, nn.Linear):
            assert type(module.weight) is not nn.Parameter
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    assert_adapters_work_on(quantised, plain, sentences)


@pytest.mark.real
def test_packed_gguf_weights(smollm, sentences: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' module for packed blocks; its loader uses it only where the ``kernels`` package is installed."""
    kind = gguf.GGMLQuantizationType.Q4_1
    monkeypatch.setattr(gguf_utils, "MAX_GEMV_ROWS", 0)  # small batches too are unpacked: no kernel here
    packed, plain = copy.deepcopy(smollm[0]), copy.deepcopy(smollm[0])
    for p in find_projections(plain):
        weight = plain.get_submodule(p.module).weight
        blocks = torch.from_numpy(gguf.quants.quantize(weight.numpy(), kind))
        module = gguf_utils.GgufLinear(p.in_features, p.out_features, kind)
        module.weight = nn.Parameter(blocks, requires_grad=False)
        packed.set_submodule(p.module, module)
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), kind)))
    assert packed.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    assert_adapters_work_on(packed, plain, sentences)

"""Every device computes what the CPU computes: hooks, gradients, generation, hypernetwork, losses, training steps.

The reference is the same code on the CPU, in float64 where the dtype is free; other files compare that with naive
twins. On a machine with a CUDA device, ``pytest tests/test_devices.py -k cuda`` is the parity run of that device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from transformers import PreTrainedModel

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.hypernet.config import HEAD_KINDS, HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.lora.geometry import spread
from promptlora.lora.peft import load_peft, merge_lora
from promptlora.losses import IGNORED, TeacherTargets, distillation_loss, reconstruction_loss, sft_loss
from promptlora.models import base_fingerprint, load_base
from promptlora.projections import find_projections
from promptlora.text import PromptStates
from tests.helpers import FORMS, random_lora, tiny_gpt2, tiny_llama, token_ids
from tests.training_helpers import metric_lines, toy_rows

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
EXACT = {"rtol": 0, "atol": 1e-9}  # float64: sums in another order, nothing else
# transformers computes rotary angles in float32 whatever the dtype of the model is, and CUDA rounds them otherwise than
# the CPU: float64 results differ by up to 1.4e-6 on an H100.
ANGLES = {"rtol": 0, "atol": 1e-5}
# The hypernetwork itself has no float32 in it, but CUDA's float64 sums and exponentials add up to 1e-8 on an H100.
OF_CUDA = {"rtol": 0, "atol": 1e-7}
INDEX = [2, 0, 1, 0, 2, 2]  # interleaved and uneven, so that rows are gathered
SMALL = HyperNetworkConfig(
    context_size=16, encoder_heads=2, encoder_layers=1, pooling_queries=2, trunk_layers=1, rank=3, alpha=6.0,
    head_bottleneck=4, source_layer=1, max_prompt_tokens=16,
)  # fmt: skip


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def exact(device: torch.device) -> dict[str, float]:
    """How near to the CPU a model in float64 is."""
    return ANGLES if device.type == "cuda" else EXACT


def near(found: Tensor, expected: Tensor, device: torch.device, **tolerance: float) -> None:
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, **(tolerance or exact(device)))


def adapted(model: PreTrainedModel, lora: LoRAWeights, ids: Tensor) -> Tensor:
    """Logits of ids, each row with its adapter, on the device of the model."""
    place = model.device
    with HookBasedLoRAInjector(model) as injector, injector.apply(lora.to(device=place), INDEX):
        logits: Tensor = model(ids.to(place), use_cache=False).logits
    return logits


# --- hooks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gradients", [False, True])
def test_hooks(model, device, gradients, form):
    lora, ids = FORMS[form](find_projections(model), 3), token_ids(len(INDEX), 5)
    with torch.set_grad_enabled(gradients):
        expected = adapted(model, lora, ids)
        moved = copy.deepcopy(model).to(device)
        found = adapted(moved, lora, ids)
        near(found, expected, device)
        for row, adapter in enumerate(INDEX):
            twin = merge_lora(copy.deepcopy(moved), lora.select(adapter).to(device=device))
            near(twin(ids[row : row + 1].to(device)).logits, expected[row : row + 1], device)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_through_the_hooks(device, checkpointed, form):
    def gradients(model: PreTrainedModel) -> list[Tensor]:
        lora = FORMS[form](find_projections(model), 3, requires_grad=True)
        ids = token_ids(len(INDEX), 5).to(model.device)
        with HookBasedLoRAInjector(model) as injector:
            if checkpointed:
                injector.enable_checkpointing()
                model.train()
            with injector.apply(lora.to(device=model.device), INDEX):
                logits = model(ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        return [matrix.grad for stored in lora.stored.values() for matrix in stored]

    expected = gradients(tiny_llama())
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for ours, theirs in zip(gradients(tiny_llama().to(device)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **exact(device))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
def test_lower_precision_is_near_float64(device, dtype, tolerance):
    lora, ids = random_lora(find_projections(tiny_llama()), 3, scaling=0.1), token_ids(len(INDEX), 5)
    expected = adapted(tiny_llama(), lora, ids)
    found = adapted(tiny_llama(dtype).to(device), lora.to(dtype), ids)
    assert found.dtype == dtype
    assert (found.cpu() - expected).norm() / expected.norm() < tolerance


def test_autocast(device):
    model = tiny_llama(torch.float32).to(device)
    lora, ids = random_lora(find_projections(model), 3, dtype=torch.float32, scaling=0.1), token_ids(len(INDEX), 5)
    expected = adapted(model, lora, ids)
    with torch.autocast(device.type, torch.bfloat16):
        found = adapted(model, lora, ids)
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() / expected.norm() < 0.05


def test_the_base_is_bitwise_as_before(model, device):
    model, ids = model.to(device), token_ids(len(INDEX), 5).to(device)
    with torch.no_grad():
        before = model(ids).logits
        lora = random_lora(find_projections(model), 3)
        zero = LoRAWeights({name: (A, torch.zeros_like(B)) for name, (A, B) in lora.items()}, 1.0)
        assert torch.equal(adapted(model, zero, ids), before)
        assert not torch.equal(adapted(model, lora, ids), before)
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_generate(model, device, options):
    lora, ids = random_lora(find_projections(model), 3), token_ids(4, 7)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 2, 4)):
        ids[row, :padding] = mask[row, :padding] = 0

    def generated(model: PreTrainedModel) -> list[list[int]]:
        place = model.device
        with HookBasedLoRAInjector(model) as injector, injector.apply(lora.to(device=place), [2, 0, 2, 1]):
            new = model.generate(
                ids.to(place), attention_mask=mask.to(place), max_new_tokens=8, do_sample=False, **options
            )
        return new.tolist()

    assert generated(copy.deepcopy(model).to(device)) == generated(model)


def test_a_lora_is_saved_exported_and_measured(device, tmp_path):
    projections = find_projections(tiny_llama())
    lora = random_lora(projections, 2).to(device=device)
    assert lora.device.type == device.type
    lora.save(tmp_path / "lora.safetensors")
    lora.select(1).save_peft(tmp_path / "peft")
    for name, pair in LoRAWeights.load(tmp_path / "lora.safetensors").items():
        for ours, theirs in zip(pair, lora[name], strict=True):
            assert torch.equal(ours, theirs.cpu())
    read = load_peft(tmp_path / "peft", projections=projections)
    for name in lora:
        torch.testing.assert_close(read.delta(name)[0].double(), lora.delta(name)[1].cpu(), rtol=1e-5, atol=1e-5)
    expected = spread(random_lora(projections, 2))
    assert spread(lora).variance_ratio == pytest.approx(expected.variance_ratio)
    assert spread(lora).effective_rank == pytest.approx(expected.effective_rank)


# --- hypernetwork and losses -------------------------------------------------------------------------------


def network(kind: str = "full") -> HyperNetwork:
    torch.manual_seed(0)
    config = HyperNetworkConfig(**{**vars(SMALL), "head": kind})
    made = HyperNetwork(config, find_projections(tiny_llama()), 32).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_the_hypernetwork_and_its_gradients(device, kind):
    states = torch.randn(3, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]

    def written(place: torch.device | str) -> tuple[LoRAWeights, dict[str, Tensor]]:
        made = network(kind).to(place)
        made.encoder.fit_statistics([states[i, : mask[i].sum()].to(place) for i in range(3)])
        lora = made(states.to(place), mask.to(place))
        sum((A.square().sum() + B.square().sum() for A, B in lora.values()), torch.zeros((), device=place)).backward()
        return lora.detach(), {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    expected, gradients = written("cpu")
    found, ours = written(device)
    for name in expected:
        for left, right in zip(found[name], expected[name], strict=True):
            near(left, right, device, **(OF_CUDA if device.type == "cuda" else EXACT))
    assert ours.keys() == gradients.keys()
    for name, gradient in ours.items():
        near(gradient, gradients[name], device, **(OF_CUDA if device.type == "cuda" else {"rtol": 1e-9, "atol": 1e-9}))


@pytest.mark.parametrize("source", ["embeddings", "hidden", "layers"])
def test_the_states_of_prompts(device, source, toy_base):
    config = HyperNetworkConfig(**{**vars(SMALL), "source": source})
    model, tokenizer = load_base(toy_base, dtype=torch.float64, device="cpu")
    prompts = ["say a", "never say b", "write"]
    expected, mask = PromptStates(model, tokenizer, config).batch(prompts)
    found, there = PromptStates(model.to(device), tokenizer, config).batch(prompts)
    near(found, expected, device)
    assert torch.equal(there.cpu(), mask)


def sft(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], row_weight: str) -> Tensor:
    return sft_loss(hidden, labels, head, row_weight=row_weight, chunk=4)


def distilled(k: int | None) -> Callable[..., Tensor]:
    def loss(hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], row_weight: str) -> Tensor:
        count = int((labels != IGNORED).sum())
        teacher = torch.randn(count, 11, generator=torch.Generator().manual_seed(3)).double().log_softmax(-1)
        targets = TeacherTargets(teacher.to(hidden.device))
        if k is not None:
            targets = TeacherTargets(*teacher.to(hidden.device).topk(k, dim=-1))
        return distillation_loss(hidden, labels, head, targets, row_weight=row_weight, chunk=4)

    return loss


@pytest.mark.parametrize("row_weight", ["token", "row"])
@pytest.mark.parametrize("loss", [sft, distilled(None), distilled(3)], ids=["sft", "distill", "distill top 3"])
def test_losses_and_their_gradients(device, loss, row_weight):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 9, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(11, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 11, (4, 9), generator=generator)
    for row, (start, stop) in enumerate([(1, 9), (3, 5), (6, 9), (2, 8)]):
        labels[row, :start] = labels[row, stop:] = IGNORED

    def both(place: torch.device | str) -> tuple[Tensor, Tensor]:
        states, head = hidden.to(place, copy=True).requires_grad_(), weight.to(place)
        value = loss(states, labels.to(place), lambda h: h @ head.T, row_weight)
        value.backward()
        return value.detach(), states.grad

    for found, expected in zip(both(device), both("cpu"), strict=True):
        near(found, expected, device)


def test_reconstruction(device):
    projections = find_projections(tiny_llama())
    lora, target = random_lora(projections, 2), random_lora(projections, 2, rank=2, seed=1)
    expected = reconstruction_loss(lora, target)
    near(reconstruction_loss(lora.to(device=device), target.to(device=device)), expected, device)


# --- together ----------------------------------------------------------------------------------------------


def test_adapt_and_generate(device, toy_base):
    def answered(place: torch.device | str) -> tuple[LoRAWeights, list[str]]:
        model, tokenizer = load_base(toy_base, dtype=torch.float64, device=place)
        made = network()
        made.base = base_fingerprint(model)
        lm = PromptLoRA(model, tokenizer, made)
        try:
            lora = lm.adapt(["say a", "never say b"])
            return lora, lm.generate(["w1 w2", "w5 w6 w7", "w9"], lora, adapter_index=[1, 0, 1], max_new_tokens=6)
        finally:
            lm.close()

    expected, answers = answered("cpu")
    lora, found = answered(device)
    assert lora.device.type == device.type
    for name in expected:
        near(lora.delta(name), expected.delta(name), device, rtol=0, atol=1e-6)
    assert found == answers


@pytest.fixture
def only_the_cpu() -> Iterator[Callable[[bool], None]]:
    """Says whether the next trainers see the CPU alone; Accelerate keeps its choice for a process."""

    patch = pytest.MonkeyPatch()

    def choose(alone: bool) -> None:
        patch.undo()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        if alone:
            patch.setattr(torch.cuda, "is_available", lambda: False)

    yield choose
    choose(False)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"activation_checkpointing": True}], ids=str)
def test_training_steps(device, make_trainer, only_the_cpu, options):
    """The losses of a run are those of the CPU, margins included, and a checkpoint of the device goes on."""

    def run(place: torch.device, folder: str) -> list[dict[str, float]]:
        only_the_cpu(place.type == "cpu")
        trainer = make_trainer(toy_rows(), folder=folder, steps=6, **options)
        assert trainer.model.device.type == place.type
        assert {parameter.device.type for parameter in trainer.plain.parameters()} == {place.type}
        trainer.run()
        return metric_lines(trainer.folder)

    expected = run(torch.device("cpu"), "cpu")
    found = run(device, "device")
    assert len(found) == 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "lr", "trunk_norm", "head_norm", "static_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=5e-2, abs=1e-4), name  # TF32 keeps ten bits


def test_a_bfloat16_base_trains(device, make_trainer, only_the_cpu):
    only_the_cpu(device.type == "cpu")
    trainer = make_trainer(toy_rows(2, 3), steps=40, rows_per_prompt=3, base_dtype="bfloat16")
    losses = [trainer.train_step().loss for _ in range(40)]
    assert losses[-1] < losses[0] / 3

"""Gradients to what made A and B: exact without and with activation checkpointing, in any order of backward.

A and B are made by a small linear layer, as a hypernetwork makes them, so they are no leaves of the graph.
The hazards of hooks and checkpointing that the injector is built to avoid are shown on plain hooks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint
from transformers import PreTrainedModel

from promptlora.errors import LoRAError
from promptlora.injection import HookBasedLoRAInjector, make_batched_lora_hook
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, find_projections
from tests.helpers import tiny_gpt2, tiny_llama, token_ids

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
RANK = 2


class Writer(nn.Module):
    """A hypernetwork in small: a context ``[P, 3]`` to A and B of every projection."""

    def __init__(self, projections: list[Projection]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.projections = projections
        self.trunk = nn.Linear(3, 3, dtype=torch.float64)
        self.heads = nn.ModuleList(
            nn.Linear(3, RANK * (p.in_features + p.out_features), dtype=torch.float64) for p in projections
        )

    def forward(self, context: Tensor) -> LoRAWeights:
        matrices, features = {}, self.trunk(context).tanh()
        for p, head in zip(self.projections, self.heads, strict=True):
            A, B = head(features).split([RANK * p.in_features, RANK * p.out_features], dim=1)
            matrices[p.name] = (A.unflatten(1, (p.in_features, RANK)), B.unflatten(1, (RANK, p.out_features)))
        return LoRAWeights(matrices, 0.5)

    def gradients(self) -> list[Tensor]:
        found = [p.grad for p in self.parameters()]
        self.zero_grad()
        assert all(g is not None for g in found)
        return found


class CoreWriter(Writer):
    """The same with factors that are learned once, and a context to the cores."""

    def __init__(self, projections: list[Projection]) -> None:
        super().__init__(projections)
        self.heads = nn.ModuleList(nn.Linear(3, RANK * RANK, dtype=torch.float64) for _ in projections)
        self.A = nn.ParameterList(torch.randn(p.in_features, RANK, dtype=torch.float64) * 0.3 for p in projections)
        self.B = nn.ParameterList(torch.randn(RANK, p.out_features, dtype=torch.float64) for p in projections)

    def forward(self, context: Tensor) -> LoRAWeights:
        features, names = self.trunk(context).tanh(), [p.name for p in self.projections]
        cores = [head(features).unflatten(1, (RANK, RANK)) for head in self.heads]
        factors = dict(zip(names, zip(self.A, self.B, strict=True), strict=True))
        return LoRAWeights.shared(factors, dict(zip(names, cores, strict=True)), 0.5)


def contexts(seed: int, prompts: int = 2) -> Tensor:
    return torch.randn(prompts, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """In the dtype of the model; the ``labels`` of transformers would go through float32."""
    out = model(ids, use_cache=False)
    return nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """In training mode, dropout off: what a frozen base with checkpointing needs."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def merged_gradients(model: PreTrainedModel, writer: Writer, context: Tensor, ids: Tensor) -> list[Tensor]:
    """The naive twin, without any hook: deltas added to weights by functional calls, a row at a time."""
    lora, total = writer(context), torch.zeros((), dtype=torch.float64)
    modules = dict(model.named_modules())
    for row in range(len(ids)):
        weights = {f"{p.module}.weight": modules[p.module].weight for p in writer.projections}
        for p in writer.projections:
            delta, key = lora.delta(p.name)[row], f"{p.module}.weight"
            if p.rows is None and "c_" not in p.module:
                weights[key] = weights[key] + delta.T
            else:  # Conv1D keeps [in, out]
                weights[key] = weights[key].index_add(1, p.row_index(), delta)
        out = torch.func.functional_call(model, weights, (ids[row : row + 1],), {"use_cache": False})
        total = total + nn.functional.cross_entropy(out.logits[0, :-1], ids[row, 1:], reduction="sum")
    (total / (ids.shape[0] * (ids.shape[1] - 1))).backward()
    return writer.gradients()


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    assert any(g.abs().max() > 1e-4 for g in expected)
    for f, e in zip(found, expected, strict=True):
        assert torch.allclose(f, e, rtol=0, atol=tolerance)


@pytest.fixture(
    params=[(model, form) for model in MODELS for form in (Writer, CoreWriter)], ids=lambda p: f"{p[0]}-{p[1].__name__}"
)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[PreTrainedModel, Writer, HookBasedLoRAInjector]]:
    name, form = request.param
    model = trained(MODELS[name]())
    with HookBasedLoRAInjector(model) as injector:
        yield model, form(list(injector.projections)), injector


@pytest.fixture
def plain_gradients(case) -> Callable[[int, int], list[Tensor]]:
    """Gradients of one forward and backward without checkpointing: equal to merged weights, see below."""
    model, writer, injector = case

    def compute(context_seed: int, ids_seed: int) -> list[Tensor]:
        with injector.apply(writer(contexts(context_seed))):
            loss_of(model, token_ids(2, 6, seed=ids_seed)).backward()
        return writer.gradients()

    return compute


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_equal_those_through_merged_weights(case, checkpointed: bool) -> None:
    model, writer, injector = case
    ids = token_ids(2, 6)
    expected = merged_gradients(model, writer, contexts(0), ids)
    if checkpointed:
        injector.enable_checkpointing()
    with injector.apply(writer(contexts(0))):
        loss_of(model, ids).backward()
    assert_same(writer.gradients(), expected)


@pytest.mark.parametrize("index", [[0, 0, 1], [1, 0, 1, 0], [1, 1], [0, 1, 0, 0, 0, 0, 0, 0]], ids=str)
def test_rows_that_share_an_adapter_add_their_gradients(case, index: list[int]) -> None:
    model, writer, injector = case
    ids = token_ids(len(index), 5)
    expected = merged_gradients(model, writer, contexts(0)[index], ids)
    for checkpointed in (False, True):
        if checkpointed:
            injector.enable_checkpointing()
        with injector.apply(writer(contexts(0)), index):
            loss_of(model, ids).backward()
        assert_same(writer.gradients(), expected)


@pytest.mark.parametrize("slot", ["on", "cleared", "another adapter"])
def test_checkpointed_gradients_do_not_depend_on_the_slot_at_backward(case, plain_gradients, slot: str) -> None:
    model, writer, injector = case
    expected = plain_gradients(0, 0)
    injector.enable_checkpointing()
    with ExitStack() as stack:
        stack.enter_context(injector.apply(writer(contexts(0))))
        loss = loss_of(model, token_ids(2, 6))
        if slot == "cleared":
            stack.close()
        elif slot == "another adapter":
            stack.enter_context(injector.apply(writer(contexts(9)).detach()))
        loss.backward()
    assert_same(writer.gradients(), expected)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_second_forward_before_the_first_backward(case, plain_gradients, order, checkpointed: bool) -> None:
    model, writer, injector = case
    expected = {i: plain_gradients(i, i) for i in (0, 1)}
    if checkpointed:
        injector.enable_checkpointing()
    losses = {}
    for i in (0, 1):
        with injector.apply(writer(contexts(i))):
            losses[i] = loss_of(model, token_ids(2, 6, seed=i))
    base = loss_of(model, token_ids(2, 6)).item()
    for i in order:
        losses[i].backward()
        assert_same(writer.gradients(), expected[i])
    assert loss_of(model, token_ids(2, 6)).item() == base  # recomputation left the slot as it was


def test_an_exception_in_backward_leaves_the_slot_as_it_was(case) -> None:
    model, writer, injector = case
    injector.enable_checkpointing()
    base = loss_of(model, token_ids(2, 6)).item()
    with injector.apply(writer(contexts(0))):
        loss = loss_of(model, token_ids(2, 6))
    projection = dict(model.named_modules())[injector.projections[-1].module]

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with projection.register_forward_pre_hook(fail), pytest.raises(ZeroDivisionError):
        loss.backward()
    assert loss_of(model, token_ids(2, 6)).item() == base


def test_layers_are_really_recomputed_in_training_mode_only(case) -> None:
    model, writer, injector = case
    injector.enable_checkpointing()
    calls = []
    projection = dict(model.named_modules())[injector.projections[0].module]
    with projection.register_forward_hook(lambda *_: calls.append(1)):
        for mode, expected in ((True, 2), (False, 1)):
            model.train(mode)
            calls.clear()
            with injector.apply(writer(contexts(0))):
                loss = loss_of(model, token_ids(2, 6))
            loss.backward()
            assert len(calls) == expected


def test_no_gradient_reaches_the_frozen_base(case) -> None:
    model, writer, injector = case
    injector.enable_checkpointing()
    with injector.apply(writer(contexts(0))):
        loss_of(model, token_ids(2, 6)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_remove_restores_what_the_model_had(case) -> None:
    model, _, injector = case
    attributes = {module: dict(vars(module)) for module in model.modules()}
    hooks = {module: len(module._forward_hooks) for module in model.modules()}
    injector.enable_checkpointing()
    injector.enable_checkpointing()
    assert model.is_activation_checkpointing
    assert hooks == {module: len(module._forward_hooks) for module in model.modules()}  # inputs need no gradient
    injector.remove()
    assert not model.is_activation_checkpointing
    assert not any(module._forward_hooks for module in model.modules())
    for module, before in attributes.items():
        assert vars(module) == before
    model.activation_checkpointing_enable({"use_reentrant": False, "debug": True})
    own = model.base_model._gradient_checkpointing_func
    with HookBasedLoRAInjector(model) as other:
        other.enable_checkpointing()
        assert model.base_model._gradient_checkpointing_func is not own
    assert model.base_model._gradient_checkpointing_func is own


def test_a_model_without_checkpointing_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    projection = Projection(name="0.q_proj", module="0", role="q", in_features=4, out_features=4)
    with pytest.raises(LoRAError, match="Sequential has no activation checkpointing"):
        HookBasedLoRAInjector(model, [projection]).enable_checkpointing()


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False, "debug": True}], ids=str)
def test_checkpointing_without_the_context_is_refused_where_it_could_go_wrong(case, options: dict | None) -> None:
    model, writer, injector = case
    model.activation_checkpointing_enable(options)
    model.disable_input_require_grads()
    lora = writer(contexts(0))
    with pytest.raises(LoRAError, match=r"call injector\.enable_checkpointing"), injector.apply(lora):
        pytest.fail("not reached")
    with torch.no_grad(), injector.apply(lora), warnings.catch_warnings():  # nothing is recomputed
        warnings.simplefilter("ignore")  # reentrant checkpointing says so
        loss_of(model, token_ids(2, 6))
    model.eval()  # checkpointing is off
    with injector.apply(lora):
        loss_of(model, token_ids(2, 6)).backward()
    writer.gradients()
    model.train()
    injector.enable_checkpointing()
    with injector.apply(lora.detach()):
        loss_of(model, token_ids(2, 6))
    model.activation_checkpointing_disable()
    with injector.apply(lora.detach()):
        loss_of(model, token_ids(2, 6))


# --- the hazards, on plain hooks --------------------------------------------------------------------------


@contextmanager
def plain_hooks(model: PreTrainedModel, lora: LoRAWeights) -> Iterator[None]:
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for p in find_projections(model):
            stack.enter_context(modules[p.module].register_forward_hook(make_batched_lora_hook(*lora[p.name], 0.5)))
        yield


@pytest.fixture
def hazard() -> tuple[PreTrainedModel, Writer, list[Tensor]]:
    """A Llama, a writer, and the exact gradients."""
    model = trained(tiny_llama())
    writer = Writer(find_projections(model))
    return model, writer, merged_gradients(model, writer, contexts(0), token_ids(2, 6))


def test_plain_hooks_without_checkpointing_may_go_before_backward(hazard) -> None:
    model, writer, expected = hazard
    with plain_hooks(model, writer(contexts(0))):
        loss = loss_of(model, token_ids(2, 6))
    loss.backward()
    assert_same(writer.gradients(), expected)


def test_plain_hooks_kept_through_a_checkpointed_backward_are_exact(hazard) -> None:
    model, writer, expected = hazard
    model.activation_checkpointing_enable()
    with plain_hooks(model, writer(contexts(0))):
        loss_of(model, token_ids(2, 6)).backward()
    assert_same(writer.gradients(), expected)


def test_plain_hooks_removed_before_a_checkpointed_backward_fail_loudly(hazard) -> None:
    model, writer, _ = hazard
    model.activation_checkpointing_enable()
    with plain_hooks(model, writer(contexts(0))):
        loss = loss_of(model, token_ids(2, 6))
    with pytest.raises(CheckpointError):
        loss.backward()


def test_reentrant_checkpointing_loses_gradients_silently(hazard) -> None:
    """Why :meth:`apply` refuses it."""
    model, writer, _ = hazard
    model.activation_checkpointing_enable({"use_reentrant": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with plain_hooks(model, writer(contexts(0))):
            loss = loss_of(model, token_ids(2, 6))
        loss.backward()
        assert all(parameter.grad is None for parameter in writer.parameters())
        with plain_hooks(model, writer(contexts(0))), pytest.raises(RuntimeError, match="backward through the graph a"):
            loss_of(model, token_ids(2, 6)).backward()


def test_a_slot_without_the_context_gives_wrong_gradients_silently(hazard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the context is there: the first backward recomputes with the adapter of the second forward."""
    model, writer, expected = hazard
    with HookBasedLoRAInjector(model) as injector:
        monkeypatch.setattr(injector, "_refuse_foreign_checkpointing", lambda: None)
        model.activation_checkpointing_enable({"use_reentrant": False})
        with injector.apply(writer(contexts(0))):
            first = loss_of(model, token_ids(2, 6))
            with injector.apply(writer(contexts(1))):
                first.backward()
    found = [p.grad for p in writer.parameters()]
    assert all(g is not None for g in found)
    assert max((f - e).abs().max() for f, e in zip(found, expected, strict=True)) > 1e-3


def test_the_context_works_in_a_checkpoint_of_ones_own(hazard) -> None:
    model, writer, expected = hazard
    with HookBasedLoRAInjector(model) as injector:

        def run(ids: Tensor) -> Tensor:
            return loss_of(model, ids)

        with injector.apply(writer(contexts(0))):
            loss = checkpoint(run, token_ids(2, 6), use_reentrant=False, context_fn=injector.checkpoint_context)
        loss.backward()
    assert_same(writer.gradients(), expected)

"""The injector against naive twins: merged weights, one row at a time, einsum; and its life cycle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from promptlora.errors import LoRAError
from promptlora.injection import HookBasedLoRAInjector, add_update, make_batched_lora_hook, make_lora_hook, plan_rows
from promptlora.injection.update import make_update
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, find_projections
from tests.helpers import FORMS, random_lora, random_shared_lora, tiny_gpt2, tiny_llama, token_ids

EXACT = {"rtol": 0, "atol": 1e-11}
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def merged(model: PreTrainedModel, lora: LoRAWeights) -> PreTrainedModel:
    """The naive twin of one adapter: its delta added to a copy of the weights, by hand."""
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    for projection in find_projections(model):
        if projection.name not in lora:
            continue
        weight = modules[projection.module].weight
        weight = weight if isinstance(modules[projection.module], Conv1D) else weight.T
        with torch.no_grad():
            weight[:, projection.row_index()] += lora.delta(projection.name)[0]
    return twin


def one_at_a_time(model: PreTrainedModel, ids: Tensor, lora: LoRAWeights, index: Sequence[int]) -> Tensor:
    return torch.cat([logits(merged(model, lora.select(a)), ids[i : i + 1]) for i, a in enumerate(index)])


def hooks(model: nn.Module) -> int:
    return sum(
        len(getattr(module, name))
        for module in model.modules()
        for name in vars(module)
        if "hook" in name and isinstance(getattr(module, name), dict)
    )


# --- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gradients", [False, True])
def test_hooks_equal_merged_weights(model: PreTrainedModel, gradients: bool, form: str) -> None:
    lora, ids = FORMS[form](find_projections(model), 3), token_ids(3, 6)
    expected = one_at_a_time(model, ids, lora, [0, 1, 2])
    with HookBasedLoRAInjector(model) as injector, torch.set_grad_enabled(gradients):
        with injector.apply(lora):
            together = model(ids).logits
        with injector.apply(lora.select(1)):
            alone = model(ids[1:2]).logits
    assert torch.allclose(together, expected, **EXACT)
    assert torch.allclose(alone, expected[1:2], **EXACT)
    assert (together - logits(model, ids)).abs().max() > 0.1  # the LoRA does something


INDEXES = {
    "grouped": [0, 0, 1, 1, 2, 2],
    "grouped in another order": [2, 2, 0, 0],
    "permuted": [2, 0, 1],
    "interleaved": [0, 1, 2, 0, 1, 2],
    "uneven": [0, 0, 1],
    "one for all": [1, 1, 1],
    "one row": [2],
    "some unused": [0, 3],
    "a run in the middle": [1, 2],
    "skewed": [0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_adapter_index_gives_each_row_its_adapter(
    model: PreTrainedModel, index: list[int], gradients: bool, form: str
) -> None:
    lora, ids = FORMS[form](find_projections(model), 4), token_ids(len(index), 5)
    expected = one_at_a_time(model, ids, lora, index)
    with HookBasedLoRAInjector(model) as injector, torch.set_grad_enabled(gradients):
        with injector.apply(lora, index):
            by_index = model(ids).logits
        with injector.apply(lora.select(index)):
            by_selection = model(ids).logits
        with injector.apply(lora.select([3, 2, 1, 0]), [3 - i for i in index]):
            by_both = model(ids).logits
        beams = ids.repeat_interleave(2, 0)
        with injector.apply(lora, index):
            repeated = model(beams).logits
    for found in (by_index, by_selection, by_both, repeated[::2], repeated[1::2]):
        assert torch.allclose(found, expected, **EXACT)


@given(index=st.lists(st.integers(0, 4), min_size=1, max_size=40))
@settings(deadline=None, max_examples=200)
def test_a_plan_covers_every_row_and_stays_small(index: list[int]) -> None:
    plan = plan_rows(index)
    assert plan.rows == len(index)
    assert set(plan.lines) == set(index)
    assert len(plan.lines) <= 2 * len(set(index))
    if plan.gather is None:
        per_line = len(index) // len(plan.lines)
        assert index == [adapter for adapter in plan.lines for _ in range(per_line)]
    else:
        assert len(plan.gather) <= 2 * len(index) + len(plan.lines)
        cells = len(plan.gather) // len(plan.lines)
        for row, cell in enumerate(plan.scatter.tolist()):
            assert plan.gather[cell] == row
            assert plan.lines[cell // cells] == index[row]


SPANS = {
    "whole": (None, 12),
    "one span": (((4, 16),), 20),
    "even": (((2, 5), (8, 11), (14, 17), (20, 23)), 24),
    "even, then a rest": (((2, 5), (8, 11), (14, 17), (20, 23)), 26),
    "uneven": (((8, 15), (0, 5)), 20),
}


@pytest.mark.parametrize("shape", [(6, 3), (6,), (6, 2, 2)], ids=str)
@pytest.mark.parametrize("index", [[0, 1, 2], [1, 1, 1], [0, 2, 0], [2]], ids=str)
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize(("spans", "width"), SPANS.values(), ids=SPANS)
def test_an_update_equals_einsum(
    spans: tuple[tuple[int, int], ...] | None, width: int, owned: bool, index: list[int], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, output = (torch.randn(*shape, n, dtype=torch.float64) for n in (5, width))
    A, B = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 2, 12, dtype=torch.float64)
    rows = [i for i in index for _ in range(6 // len(index))]
    delta = torch.einsum("b...i,bir,bro->b...o", x, A[rows], B[rows]) * 0.7
    columns = torch.cat([torch.arange(*span) for span in spans]) if spans else torch.arange(width)
    expected = output.clone()
    expected[..., columns] += delta
    before = output.clone()
    found = add_update(output, x, make_update("n", A, B, 0.7, plan_rows(index), spans, width), owned=owned)
    assert torch.allclose(found, expected, **EXACT)
    assert found.shape == output.shape
    assert (found.data_ptr() == output.data_ptr()) == owned
    assert torch.equal(output, before) != owned


@pytest.mark.parametrize("shape", [(6, 3), (6,), (6, 2, 2)], ids=str)
@pytest.mark.parametrize("index", [[0, 1, 2], [1, 1, 1], [0, 2, 0], [2]], ids=str)
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize(("spans", "width"), SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_an_update_with_shared_factors_equals_einsum(
    diagonal: bool,
    spans: tuple[tuple[int, int], ...] | None,
    width: int,
    owned: bool,
    index: list[int],
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    x, output = (torch.randn(*shape, n, dtype=torch.float64) for n in (5, width))
    A, B = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    C = torch.randn(3, 2, dtype=torch.float64) if diagonal else torch.randn(3, 2, 2, dtype=torch.float64)
    rows = [i for i in index for _ in range(6 // len(index))]
    full = torch.diag_embed(C) if diagonal else C
    delta = torch.einsum("b...i,ir,brq,qo->b...o", x, A, full[rows], B) * 0.7
    columns = torch.cat([torch.arange(*span) for span in spans]) if spans else torch.arange(width)
    expected = output.clone()
    expected[..., columns] += delta
    before = output.clone()
    update = make_update("n", A, B, 0.7, plan_rows(index), spans, width, C)
    found = add_update(output, x, update, owned=owned)
    assert torch.allclose(found, expected, **EXACT)
    assert found.shape == output.shape
    assert (found.data_ptr() == output.data_ptr()) == owned
    assert torch.equal(output, before) != owned


@pytest.mark.parametrize("form", ["core", "diagonal"])
@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_gradients_of_shared_factors_and_cores_are_those_of_the_free_form(
    model: PreTrainedModel, index: list[int], form: str
) -> None:
    lora, ids = FORMS[form](find_projections(model), 4, requires_grad=True), token_ids(len(index), 5)
    leaves = [matrix for stored in lora.stored.values() for matrix in stored]
    found = []
    for each in (lora, lora.free()):  # the free form goes through A and C @ B
        with HookBasedLoRAInjector(model) as injector, injector.apply(each, index):
            loss = model(ids).logits.square().mean()
        found.append(torch.autograd.grad(loss, leaves))
    for by_core, by_pair in zip(*found, strict=True):
        assert by_core.abs().max() > 0
        assert torch.allclose(by_core, by_pair, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("diagonal", [False, True])
def test_shared_factors_are_used_as_they_lie_and_c_at_b_is_never_formed(model: PreTrainedModel, diagonal: bool) -> None:
    with HookBasedLoRAInjector(model) as injector:
        lora = random_shared_lora(injector.projections, 4, diagonal=diagonal)
        for index in ([0, 1, 2, 3], [0, 0, 1, 1], [2], [1, 2], [3, 0, 1], [0, 0, 1]):
            updates = injector._updates(lora.select(index), None)
            for update in (u for of_one in updates.values() for u in of_one):
                A, B, C = lora.stored[update.name]
                assert (update.A.data_ptr(), update.B.data_ptr()) == (A.data_ptr(), B.data_ptr())
                assert update.C.shape[1:] == C.shape[1:]
                if index == list(range(index[0], index[-1] + 1)):
                    assert update.C.data_ptr() == C[index[0]].data_ptr()


def test_the_hook_factories_equal_einsum() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 7).double(), torch.randn(4, 3, 5, dtype=torch.float64)
    A, B = torch.randn(4, 5, 2, dtype=torch.float64), torch.randn(4, 2, 7, dtype=torch.float64)
    base = linear(x)
    with torch.no_grad():
        for rows, hook in (
            ([0, 1, 2, 3], make_batched_lora_hook(A, B, 0.3)),
            ([0, 0, 1, 1], make_batched_lora_hook(A[:2], B[:2], 0.3)),
            ([1, 1, 1, 1], make_lora_hook(A[1], B[1], 0.3)),
        ):
            expected = base + torch.einsum("bsi,bir,bro->bso", x, A[rows], B[rows]) * 0.3
            for with_kwargs in (False, True):
                handle = linear.register_forward_hook(hook, with_kwargs=with_kwargs)
                assert torch.allclose(linear(x), expected, **EXACT)
                if with_kwargs:
                    assert torch.allclose(linear(input=x), expected, **EXACT)
                handle.remove()
    assert torch.equal(linear(x), base)
    with pytest.raises(LoRAError, match=r"expected A \[in, rank\]"):
        make_lora_hook(A, B)
    for bad in ((A, B[:2]), (A, B[:, :1]), (A[0], B[0]), (A[:0], B[:0])):
        with pytest.raises(LoRAError, match=r"expected A \[adapters, in, rank\]"):
            make_batched_lora_hook(*bad)
    linear.register_forward_hook(make_batched_lora_hook(A[:3], B[:3]))
    with pytest.raises(LoRAError, match=r"batch of 4 rows .* with 3 adapter rows; expected a multiple of 3"):
        linear(x)


@given(order=st.permutations(range(5)))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_permuting_a_batch_permutes_the_output(model: PreTrainedModel, order: list[int]) -> None:
    lora, ids, index = random_lora(find_projections(model), 3), token_ids(5, 4), [0, 1, 0, 2, 2]
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora, index):
            straight = logits(model, ids)
        with injector.apply(lora, [index[i] for i in order]):
            permuted = logits(model, ids[order])
    assert torch.allclose(permuted, straight[order], **EXACT)


def test_a_lora_with_zero_b_is_the_base_bitwise(model: PreTrainedModel) -> None:
    lora, ids = random_lora(find_projections(model), 2), token_ids(2, 5)
    zero = LoRAWeights({name: (A, torch.zeros_like(B)) for name, (A, B) in lora.items()}, 1.0)
    with HookBasedLoRAInjector(model) as injector, injector.apply(zero):
        assert torch.equal(logits(model, ids), logits(model, ids))
        adapted = logits(model, ids)
    assert torch.equal(adapted, logits(model, ids))


def test_a_lora_may_hold_some_projections_and_several_ranks(model: PreTrainedModel) -> None:
    some = find_projections(model)[1:4]
    lora = LoRAWeights({p.name: random_lora([p], 1, rank)[p.name] for rank, p in enumerate(some, 1)}, 0.5)
    ids = token_ids(2, 5)
    with HookBasedLoRAInjector(model) as injector, injector.apply(lora):
        adapted = logits(model, ids)
    assert torch.allclose(adapted, logits(merged(model, lora), ids), **EXACT)


def test_sdpa_and_eager_attention_agree() -> None:
    near = {"rtol": 0, "atol": 1e-4}  # eager attention takes its softmax in float32
    found = []
    for implementation in ("sdpa", "eager"):
        model = tiny_llama(torch.float32, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        lora, ids = random_lora(find_projections(model), 2, dtype=torch.float32), token_ids(2, 6)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0  # left padding
        with HookBasedLoRAInjector(model) as injector, injector.apply(lora), torch.no_grad():
            found.append(model(ids, attention_mask=mask).logits)
        assert torch.allclose(found[-1][1:], one_at_a_time(model, ids[1:], lora, [1]), **near)
    assert torch.allclose(found[0][0, 2:], found[1][0, 2:], **near)
    assert torch.allclose(found[0][1], found[1][1], **near)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_lower_precision_is_near_float64(make: Callable, dtype: torch.dtype, tolerance: float) -> None:
    exact, model = make(), make(dtype)
    lora, ids = random_lora(find_projections(exact), 3, scaling=0.1), token_ids(6, 5)
    index = [0, 1, 2, 2, 1, 0]
    with HookBasedLoRAInjector(model) as injector, injector.apply(lora.to(dtype), index):
        adapted = logits(model, ids)
    with HookBasedLoRAInjector(exact) as injector, injector.apply(lora, index):
        expected = logits(exact, ids)
    assert adapted.dtype == dtype
    assert (adapted - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_autocast(make: Callable, gradients: bool) -> None:
    model = make(torch.float32)
    lora = random_lora(find_projections(model), 2, dtype=torch.float32, scaling=0.1, requires_grad=gradients)
    ids = token_ids(2, 5)
    with HookBasedLoRAInjector(model) as injector, torch.set_grad_enabled(gradients):
        with injector.apply(lora):
            expected = model(ids).logits.detach()
            with torch.autocast("cpu", torch.bfloat16):
                inside = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16), injector.apply(lora.to(torch.bfloat16)):
            mixed = model(ids).logits
    for found in (inside, mixed):
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() / expected.norm() < 0.05
    if gradients:
        inside.float().square().sum().backward()
        assert all(m.grad is not None and m.grad.isfinite().all() for pair in lora.values() for m in pair)


class OutsideAutocast(nn.Linear):
    """Computes in float32 whatever autocast says, as some output projections do."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


@pytest.mark.parametrize("gradients", [False, True])
def test_autocast_around_a_module_that_leaves_it(gradients: bool) -> None:
    model, x, projections = Holder(OutsideAutocast(4, 4)), torch.randn(2, 3, 4), [inner_projection(4, 4)]
    lora = random_lora(projections, 2, dtype=torch.bfloat16)
    with HookBasedLoRAInjector(model, projections) as injector, torch.set_grad_enabled(gradients):
        base = model(x)
        with torch.autocast("cpu", torch.bfloat16), injector.apply(lora):
            adapted = model(x)
    A, B = lora.to(torch.float32)["inner"]
    assert adapted.dtype == torch.float32
    assert torch.allclose(adapted, base + torch.bmm(torch.bmm(x, A), B) * lora.scaling, rtol=0, atol=1e-5)


def test_inference_mode(model: PreTrainedModel) -> None:
    lora, ids = random_lora(find_projections(model), 2), token_ids(2, 5)
    with HookBasedLoRAInjector(model) as injector, torch.inference_mode(), injector.apply(lora):
        adapted = model(ids).logits
    assert torch.allclose(adapted, one_at_a_time(model, ids, lora, [0, 1]), **EXACT)


# --- modules that are not plain linears --------------------------------------------------------------------


class Holder(nn.Module):
    """A model of one module, called as ``self.inner`` is called by others."""

    def __init__(self, inner: nn.Module, by_name: str | None = None) -> None:
        super().__init__()
        self.inner, self.by_name = inner, by_name

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.inner(**{self.by_name: x}) if self.by_name else self.inner(x)


def inner_projection(d_in: int, d_out: int) -> Projection:
    return Projection(name="inner", module="inner", role="q", in_features=d_in, out_features=d_out)


class SameTensor(nn.Module):
    """Returns its input itself, as a frozen or pruned projection might."""

    in_features = out_features = 4

    def forward(self, x: Tensor) -> Tensor:
        return x


class WithBias(nn.Linear):
    """Returns its bias beside the output, as tensor-parallel linears do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.bias


class Transposed(nn.Linear):
    """Returns an output that is not contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(4, 4), SameTensor, lambda: WithBias(4, 4), lambda: Transposed(4, 4)],
    ids=["Linear", "SameTensor", "WithBias", "Transposed"],
)  # fmt: skip
def test_the_input_and_what_others_hold_are_never_written_to(make: Callable, gradients: bool) -> None:
    torch.manual_seed(0)
    inner = make().double()
    seen: list[Tensor] = []
    inner.register_forward_hook(lambda module, args, output: seen.append(output))  # runs before the injector's hook
    model, x = Holder(inner), torch.randn(2, 3, 4, dtype=torch.float64)
    projections = [inner_projection(4, 4)]
    lora, kept = random_lora(projections, 2), x.clone()
    with torch.set_grad_enabled(gradients), HookBasedLoRAInjector(model, projections) as injector:
        base = model(x)
        with injector.apply(lora):
            adapted = model(x)
    A, B = lora["inner"]
    delta = torch.bmm(torch.bmm(x, A), B) * lora.scaling
    if isinstance(base, tuple):
        assert adapted[1] is inner.bias
        base, adapted, seen[1] = base[0], adapted[0], seen[1][0]
    assert torch.allclose(adapted, base + delta, **EXACT)
    assert torch.equal(x, kept)
    assert torch.equal(seen[1], base)


@pytest.mark.parametrize("inner", [SameTensor(), nn.Linear(4, 4).double()], ids=["SameTensor", "Linear"])
def test_an_input_given_by_name_or_in_two_dimensions(inner: nn.Module) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)  # two samples of three tokens, flattened
    projections = [inner_projection(4, 4)]
    lora = random_lora(projections, 2)
    for by_name in (None, "x" if isinstance(inner, SameTensor) else "input"):
        model = Holder(inner, by_name)
        with HookBasedLoRAInjector(model, projections) as injector, torch.no_grad():
            base = model(x)
            with injector.apply(lora):
                adapted = model(x)
        A, B = lora["inner"]
        delta = torch.bmm(torch.bmm(x.view(2, 3, 4), A), B).view(6, 4) * lora.scaling
        assert torch.allclose(adapted, base + delta, **EXACT)


def test_a_linear_that_is_written_to_gives_what_it_gives_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    lora, ids = random_lora(find_projections(model), 2), token_ids(2, 5)
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora):
            assert all(slot.plain for slot in injector._slots.values())
            written = logits(model, ids)
        monkeypatch.setattr("promptlora.injection.injector.is_plain", lambda module: False)
        with injector.apply(lora):
            assert torch.equal(logits(model, ids), written)


# --- what is refused ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name(model: PreTrainedModel) -> None:
    injector = HookBasedLoRAInjector(model)
    projections = injector.projections
    lora, first = random_lora(projections, 2), projections[0]
    A, B = lora[first.name]

    def refused(bad: LoRAWeights, message: str, index: list[int] | None = None) -> None:
        before = logits(model, token_ids(2, 3))
        with pytest.raises(LoRAError, match=message), injector.apply(bad, index):
            pytest.fail("not reached")
        assert torch.equal(logits(model, token_ids(2, 3)), before)

    refused(
        LoRAWeights({"layers.9.self_attn.q_proj": (A, B)}, 1.0), r"layers\.9\.self_attn\.q_proj: no such projection"
    )
    refused(LoRAWeights({first.name: (A[:, :-1], B)}, 1.0), rf"{first.name}: A .*expected in {first.in_features}")
    refused(LoRAWeights({first.name: (A, B[..., :-1])}, 1.0), rf"{first.name}: .*and out {first.out_features}")
    refused(
        lora.to(torch.float32), rf"{first.name}: the LoRA is torch.float32 and the model torch.float64; use lora.to"
    )
    refused(lora.to(device="meta"), rf"{first.name}: the LoRA is on meta and the model on cpu; use lora.to")
    refused(lora.select([]), "no adapter")
    refused(lora, "no adapter", [])
    refused(lora, r"adapter_index has 2; expected 0 … 1", [0, 2])
    for rows in ([0.9, 1.0], ["0", "1"], [True, False]):  # int() would read all of them as rows
        refused(lora, r"adapter_index=\[.*Expected whole numbers", rows)
    refused(lora, r"adapter_index has -1", [-1])
    with injector.apply(lora), pytest.raises(LoRAError, match=rf"{first.name}: a batch of 3 .* with 2 adapter rows"):
        model(token_ids(3, 4))
    injector.remove()


def test_an_input_of_another_dtype_or_kind_is_refused_by_name() -> None:
    projections = [inner_projection(4, 4)]
    lora = random_lora(projections, 1)
    model = Holder(SameTensor())  # no weight: only the input tells
    with HookBasedLoRAInjector(model, projections) as injector, injector.apply(lora):
        with pytest.raises(LoRAError, match=r"inner: the input is torch.float32 and the LoRA torch.float64"):
            model(torch.ones(1, 2, 4))
        with pytest.raises(LoRAError, match="inner: the module returned list; expected a tensor"):
            model([1.0])
        with pytest.raises(LoRAError, match=r"inner: a batch of 4 rows \(input \[4\]\)"):
            model(torch.ones(4, dtype=torch.float64))


def test_projections_that_do_not_fit_the_model_leave_no_hook(model: PreTrainedModel) -> None:
    good = find_projections(model)
    fields = vars(good[-1])
    for bad, message in (
        (Projection(**{**fields, "module": "nowhere"}), "nowhere: no such module"),
        (Projection(**{**fields, "in_features": 31}), "expected in 31"),
        (Projection(**{**fields, "out_features": 31}), "and out 31"),
        (Projection(**{**fields, "rows": ((0, 16), (90, 99))}), "and out 99"),
        (good[0], "given twice"),
    ):
        with pytest.raises(LoRAError, match=message):
            HookBasedLoRAInjector(model, [*good[:-1], bad])
        assert hooks(model) == 0


# --- life cycle --------------------------------------------------------------------------------------------


def test_remove_leaves_the_model_bitwise_as_found(model: PreTrainedModel) -> None:
    ids, found = token_ids(2, 5), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    before = logits(model, ids)
    injector = HookBasedLoRAInjector(model)
    assert hooks(model) == 2 * len({p.module for p in injector.projections})  # each with its mark "with_kwargs"
    assert torch.equal(logits(model, ids), before)
    with injector.apply(random_lora(injector.projections, 2)):
        assert not torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)
    injector.remove()
    injector.remove()
    assert hooks(model) == 0
    assert not any(module._forward_hooks for module in model.modules())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model, ids), before)


def test_removed_inside_apply_stays_removed(model: PreTrainedModel) -> None:
    ids = token_ids(1, 5)
    before = logits(model, ids)
    with HookBasedLoRAInjector(model) as injector, injector.apply(random_lora(injector.projections)):
        injector.remove()
        assert torch.equal(logits(model, ids), before)
    assert hooks(model) == 0


def test_a_failing_installation_leaves_no_hook(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    last = dict(model.named_modules())[find_projections(model)[-1].module]

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no more hooks")

    monkeypatch.setattr(last, "register_forward_hook", fail)
    with pytest.raises(RuntimeError, match="no more hooks"):
        HookBasedLoRAInjector(model)
    assert hooks(model) == 0


def test_an_exception_inside_restores_what_was_on(model: PreTrainedModel) -> None:
    ids = token_ids(1, 5)
    base = logits(model, ids)
    with HookBasedLoRAInjector(model) as injector:
        one, two = (random_lora(injector.projections, seed=seed) for seed in (1, 2))
        with pytest.raises(ZeroDivisionError), injector.apply(one):
            raise ZeroDivisionError
        assert torch.equal(logits(model, ids), base)
        with injector.apply(one):
            on = logits(model, ids)
            with pytest.raises(ZeroDivisionError), injector.apply(two):
                raise ZeroDivisionError
            assert torch.equal(logits(model, ids), on)
            with pytest.raises(LoRAError), injector.apply(two.to(torch.float32)):
                pytest.fail("not reached")
            assert torch.equal(logits(model, ids), on)


def test_nested_uses_replace_and_restore(model: PreTrainedModel) -> None:
    ids = token_ids(1, 5)
    base = logits(model, ids)
    with HookBasedLoRAInjector(model) as injector:
        one, two = (random_lora(injector.projections, seed=seed) for seed in (1, 2))
        some = LoRAWeights({name: one[name] for name in list(one)[:2]}, one.scaling)
        expected = {id(lora): logits(merged(model, lora), ids) for lora in (one, two, some)}
        with injector.apply(one):
            with injector.apply(two):
                assert torch.allclose(logits(model, ids), expected[id(two)], **EXACT)
                with injector.apply(None):
                    assert torch.equal(logits(model, ids), base)
                with injector.apply(some):  # replaces two everywhere, also where it has nothing itself
                    assert torch.allclose(logits(model, ids), expected[id(some)], **EXACT)
            assert torch.allclose(logits(model, ids), expected[id(one)], **EXACT)
        assert torch.equal(logits(model, ids), base)


def test_two_injectors_on_one_model_add_up(model: PreTrainedModel) -> None:
    ids = token_ids(1, 5)
    with HookBasedLoRAInjector(model) as first, HookBasedLoRAInjector(model) as second:
        one, two = (random_lora(first.projections, seed=seed) for seed in (1, 2))
        with first.apply(one), second.apply(two):
            found = logits(model, ids)
    both = LoRAWeights.combine([one, two])
    assert torch.allclose(found, logits(merged(model, both), ids), **EXACT)


def test_switching_on_copies_no_matrix_where_rows_lie_in_order(model: PreTrainedModel) -> None:
    with HookBasedLoRAInjector(model) as injector:
        lora = random_lora(injector.projections, 4)
        for index in ([0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3], [2, 2, 2], [1, 2], [0, 1, 2, 3, 0, 1, 2, 3]):
            updates = injector._updates(lora.select(index), None)
            for update in (u for of_one in updates.values() for u in of_one):
                A, B = lora.stored[update.name]
                assert update.A.data_ptr() == A[index[0]].data_ptr()
                assert update.B.data_ptr() == B[index[0]].data_ptr()


# --- quantised and split bases -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload", "device_map", "device_map, disk"])
def test_a_base_that_accelerate_keeps_elsewhere(model: PreTrainedModel, how: str, tmp_path) -> None:
    lora, ids, index = random_lora(find_projections(model), 2), token_ids(3, 5), [1, 0, 1]
    expected = one_at_a_time(model, ids, lora, index)
    if how == "cpu_offload":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk_offload":
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        layers = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
        placed = {name: "cpu" for name, _ in model.named_children()}
        top = layers.split(".")[0]
        del placed[top]
        placed |= {f"{top}.{name}": "cpu" for name, _ in model.get_submodule(top).named_children()}
        del placed[layers]
        placed |= {f"{layers}.0": "cpu", f"{layers}.1": "disk" if "disk" in how else "cpu"}
        dispatch_model(model, placed, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    elsewhere = any(parameter.is_meta for parameter in model.parameters())
    assert elsewhere == (how != "device_map")
    installed = hooks(model)
    with HookBasedLoRAInjector(model) as injector:
        for gradients in (False, True):
            with injector.apply(lora, index), torch.set_grad_enabled(gradients):
                assert torch.allclose(model(ids).logits, expected, **EXACT)
        with pytest.raises(LoRAError, match="the LoRA is on meta and the model on cpu"), injector.apply(
            lora.to(device="meta")
        ):  # fmt: skip
            pytest.fail("not reached")
    assert hooks(model) == installed


def test_matrices_follow_the_modules_of_a_base_split_over_devices() -> None:
    model = tiny_llama()
    model.model.layers[1].to("meta")  # stands for a second device
    with HookBasedLoRAInjector(model) as injector:
        lora = random_lora(injector.projections, 2, requires_grad=True)
        for index in ([0, 1], [1, 0, 1]):
            updates = injector._updates(lora, index)
            for module, of_one in updates.items():
                device = "meta" if ".1." in module else "cpu"
                tensors = [t for u in of_one for t in (u.A, u.B, u.plan.gather, u.plan.scatter) if t is not None]
                assert {t.device.type for t in tensors} == {device}


class Int8Linear(nn.Module):
    """Weight-only int8: a storage dtype that says nothing about the activations."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


def test_any_module_with_in_and_out_features_takes_hooks() -> None:
    quantised = tiny_llama()
    for layer in quantised.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Int8Linear(getattr(layer.self_attn, name)))
    plain = copy.deepcopy(quantised)  # the same weights, dequantised
    for layer in plain.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            module = getattr(layer.self_attn, name)
            linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = nn.Parameter(module.weight.double() * module.scale)
            setattr(layer.self_attn, name, linear)
    lora, ids = random_lora(find_projections(quantised), 2), token_ids(2, 5)
    with HookBasedLoRAInjector(quantised) as injector, injector.apply(lora):
        adapted = logits(quantised, ids)
    assert torch.allclose(adapted, one_at_a_time(plain, ids, lora, [0, 1]), **EXACT)


# --- real weights ------------------------------------------------------------------------------------------


def real_lora(model: PreTrainedModel, adapters: int) -> LoRAWeights:
    return random_lora(find_projections(model), adapters, 8, dtype=torch.float32, scaling=0.02)


@pytest.mark.real
def test_real_weights_batched_adapters_equal_one_at_a_time(smollm) -> None:
    model, tokenizer = smollm
    batch = tokenizer(["The capital of France is", "2 + 2 =", "Water boils at"], return_tensors="pt", padding=True)
    lora = real_lora(model, 3)
    base = logits_of(model, batch)
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora):
            together = logits_of(model, batch)
        for i in range(3):
            row = {key: value[i : i + 1] for key, value in batch.items()}
            with injector.apply(lora.select(i)):
                alone = logits_of(model, row)
            real = batch["attention_mask"][i].bool()
            assert torch.allclose(together[i, real], alone[0, real], rtol=0, atol=2e-3)
            assert (together[i, real] - base[i, real]).abs().max() > 0.1


@pytest.mark.real
def test_real_weights_are_the_base_again_after_remove(smollm) -> None:
    model, tokenizer = smollm
    batch = tokenizer(["The capital of France is", "2 + 2 ="], return_tensors="pt", padding=True)
    before, others = logits_of(model, batch), hooks(model)  # of the fixture `lm`, if a test before took it
    injector = HookBasedLoRAInjector(model)
    with injector.apply(real_lora(model, 2)):
        assert not torch.equal(logits_of(model, batch), before)
    assert torch.equal(logits_of(model, batch), before)
    injector.remove()
    assert torch.equal(logits_of(model, batch), before)
    assert hooks(model) == others


def logits_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

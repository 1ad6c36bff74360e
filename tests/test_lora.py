"""``LoRAWeights`` against dense matrices: the algebra must do to the deltas what its names say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from promptlora.errors import LoRAError, OutputError
from promptlora.lora import LoRAWeights, Shared
from promptlora.lora.geometry import update_products
from promptlora.projections import Projection

settings.register_profile("lora", deadline=None, max_examples=40)
quick = settings.get_profile("lora")

NAMES = ("layers.0.q_proj", "layers.0.o_proj")
SHAPES = ((5, 7), (7, 4))


def make(
    adapters: int = 3,
    ranks: tuple[int, int] = (2, 3),
    scaling: float = 0.5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    projections: list[Projection] | None = None,
) -> LoRAWeights:
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        name: (
            torch.randn(adapters, d_in, rank, generator=generator, dtype=torch.float64).to(dtype),
            torch.randn(adapters, rank, d_out, generator=generator, dtype=torch.float64).to(dtype),
        )
        for name, (d_in, d_out), rank in zip(NAMES, SHAPES, ranks, strict=True)
    }
    return LoRAWeights(matrices, scaling, projections=projections)


def make_shared(
    adapters: int = 3,
    ranks: tuple[int, int] = (2, 3),
    scaling: float = 0.5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    diagonal: bool = False,
    factors: LoRAWeights | None = None,
) -> LoRAWeights:
    """Random factors, those of ``factors`` where given, and random cores."""
    generator = torch.Generator().manual_seed(seed)
    forms = {}
    for name, (d_in, d_out), rank in zip(NAMES, SHAPES, ranks, strict=True):
        A = torch.randn(d_in, rank, generator=generator, dtype=torch.float64).to(dtype)
        B = torch.randn(rank, d_out, generator=generator, dtype=torch.float64).to(dtype)
        shape = (adapters, rank) if diagonal else (adapters, rank, rank)
        C = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        forms[name] = (A, B, C) if factors is None else (*factors.stored[name][:2], C)
    pairs = {name: form[:2] for name, form in forms.items()}
    return LoRAWeights.shared(pairs, {name: form[2] for name, form in forms.items()}, scaling)


def one(form, i: int) -> Tensor:
    """The update of stored adapter i before scaling."""
    if isinstance(form, Shared):
        return form.A @ (torch.diag(form.C[i]) if form.C.ndim == 2 else form.C[i]) @ form.B
    return form.A[i] @ form.B[i]


def dense(lora: LoRAWeights) -> dict[str, Tensor]:
    """The naive twin: one product for each row of the selection."""
    return {
        name: torch.stack([one(form, i) * lora.scaling for i in lora.index])
        if lora.index
        else form.A.new_zeros(0, form.A.shape[-2], form.B.shape[-1])
        for name, form in lora.stored.items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-12) -> bool:
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and torch.allclose(a[name], b[name], rtol=0, atol=tolerance) for name in a
    )


shape_of_loras = {
    "adapters": st.integers(1, 4),
    "ranks": st.tuples(st.integers(0, 3), st.integers(1, 3)),
    "scaling": st.sampled_from([0.25, 1.0, -2.0, 3.5]),
    "seed": st.integers(0, 5),
}
loras = st.one_of(st.builds(make, **shape_of_loras), st.builds(make_shared, **shape_of_loras, diagonal=st.booleans()))


@st.composite
def selections(draw: st.DrawFn) -> LoRAWeights:
    """A LoRA, or a selection of one, repeated rows and all."""
    lora = draw(loras)
    if draw(st.booleans()):
        lora = lora.select(draw(st.lists(st.integers(0, lora.adapters - 1), min_size=1, max_size=6)))
    return lora


# --- what it holds -----------------------------------------------------------------------------------------


@given(lora=selections())
@settings(quick)
def test_it_is_a_mapping_of_pairs_and_delta_is_their_product(lora: LoRAWeights) -> None:
    assert list(lora) == list(NAMES)
    assert len(lora) == 2
    for name, delta in dense(lora).items():
        A, B = lora[name]
        assert A.shape[0] == B.shape[0] == lora.adapters
        assert torch.allclose(lora.delta(name), delta, atol=1e-12)


@given(lora=selections())
@settings(quick)
def test_nbytes_counts_each_selected_adapter_once(lora: LoRAWeights) -> None:
    unique = lora.select([lora.index.index(i) for i in sorted(set(lora.index))])
    if lora.is_shared:
        cores = [form.C[0].numel() * 8 for form in lora.stored.values()]
        assert lora.nbytes == sum(cores) * unique.adapters
        assert lora.shared_nbytes == sum(form.A.nbytes + form.B.nbytes for form in lora.stored.values())
    else:
        assert lora.nbytes == sum(A.numel() * 8 + B.numel() * 8 for A, B in unique.values())
        assert lora.shared_nbytes == 0


def test_rank_dtype_device_and_repr() -> None:
    lora = make(dtype=torch.bfloat16)
    assert (lora.rank, lora.dtype, lora.device) == (3, torch.bfloat16, torch.device("cpu"))
    assert repr(lora) == "LoRAWeights(adapters=3, projections=2, rank=3, scaling=0.5, bfloat16, cpu)"


def test_a_name_it_does_not_have_is_a_key_error_that_says_so() -> None:
    with pytest.raises(KeyError, match=r"layers\.9\.q_proj"):
        make()["layers.9.q_proj"]
    assert "layers.9.q_proj" not in make()


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ({}, "at least one"),
        ({"n": (torch.ones(5, 2), torch.ones(1, 2, 4))}, r"^n: .*expected A \[adapters, in, rank\]"),
        ({"n": (torch.ones(1, 5, 2), torch.ones(1, 3, 4))}, "^n: rank 2 of A differs from rank 3 of B"),
        ({"n": (torch.ones(1, 5, 2), torch.ones(2, 2, 4))}, "^n: 1 adapters in A and 2 in B"),
        (
            {"m": (torch.ones(1, 5, 2), torch.ones(1, 2, 4)), "n": (torch.ones(2, 5, 2), torch.ones(2, 2, 4))},
            "^n: 2 adapters.*as in m",
        ),
        ({"n": (torch.ones(1, 5, 2), torch.ones(1, 2, 4).double())}, "^n: torch.float64.*expected torch.float32"),
        ({"n": (torch.ones(1, 5, 2), torch.ones(1, 2, 4, device="meta"))}, "^n: .* on meta; expected .* on cpu"),
        ({"n": (torch.ones(1, 5, 2).int(), torch.ones(1, 2, 4).int())}, "^n: .*int32.*floating point"),
    ],
)
def test_matrices_that_do_not_fit_are_refused_by_name(matrices: dict, message: str) -> None:
    with pytest.raises(LoRAError, match=message):
        LoRAWeights(matrices, 1.0)


@pytest.mark.parametrize("scaling", [float("nan"), float("inf")])
def test_a_scaling_that_is_not_finite_is_refused(scaling: float) -> None:
    with pytest.raises(LoRAError, match="finite"):
        make(scaling=scaling)


# --- select ------------------------------------------------------------------------------------------------


@given(lora=selections(), data=st.data())
@settings(quick)
def test_select_takes_rows_and_copies_nothing(lora: LoRAWeights, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(-lora.adapters, lora.adapters - 1), max_size=6))
    chosen = lora.select(rows)
    assert same(dense(chosen), {name: delta[rows] for name, delta in dense(lora).items()}, 0)
    for name, form in chosen.stored.items():
        assert all(mine is theirs for mine, theirs in zip(form, lora.stored[name], strict=True))


def test_a_run_of_rows_is_read_as_a_view() -> None:
    lora = make(adapters=4)
    A, B = lora.select([1, 2])[NAMES[0]]
    assert A.data_ptr() == lora.stored[NAMES[0]][0][1].data_ptr()
    assert B.data_ptr() == lora.stored[NAMES[0]][1][1].data_ptr()
    assert lora.select(2)[NAMES[0]][0].shape[0] == 1


@pytest.mark.parametrize("rows", [3, -4, [0, 3]])
def test_a_row_that_does_not_exist_is_refused(rows: int | list[int]) -> None:
    with pytest.raises(LoRAError, match=r"there are 3 adapters \(0 … 2\)"):
        make().select(rows)


@pytest.mark.parametrize("rows", [1.5, ["a"], "0", None])
def test_what_is_no_row_number_is_refused(rows: object) -> None:
    with pytest.raises(LoRAError, match="row number"):
        make().select(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask", [[True, False, True], torch.tensor([True, False, True]), np.array([True]), True])
def test_a_mask_is_never_read_as_rows_0_and_1(mask: object) -> None:
    with pytest.raises(LoRAError, match="row number"):
        make().select(mask)  # type: ignore[arg-type]
    with pytest.raises(LoRAError, match="whole numbers"):
        LoRAWeights(make().stored, 1.0, index=[True, False])


def test_rows_may_be_numpy_or_torch_integers() -> None:
    lora = make()
    assert lora.select(np.int64(1)).index == lora.select(torch.tensor([1])).index == (1,)


# --- stack, combine, rescale, to ------------------------------------------------------------------------------


@given(data=st.data(), ranks=st.tuples(st.integers(1, 3), st.integers(1, 3)), count=st.integers(1, 3))
@settings(quick)
def test_stack_puts_adapters_after_one_another(data: st.DataObject, ranks: tuple[int, int], count: int) -> None:
    parts = [make(data.draw(st.integers(1, 3)), ranks, seed=seed) for seed in range(count)]
    parts[0] = parts[0].select([0, 0])
    stacked = LoRAWeights.stack(parts)
    assert stacked.adapters == sum(part.adapters for part in parts)
    expected = {name: torch.cat([dense(part)[name] for part in parts]) for name in NAMES}
    assert same(dense(stacked), expected, 0)


@given(data=st.data(), adapters=st.integers(1, 3), count=st.integers(1, 3), weighted=st.booleans())
@settings(quick)
def test_combine_adds_updates(data: st.DataObject, adapters: int, count: int, weighted: bool) -> None:
    scalings = st.sampled_from([0.5, 1.0, -2.0])
    ranks = st.tuples(st.integers(1, 3), st.integers(1, 3))
    parts = [make(adapters, data.draw(ranks), data.draw(scalings), seed=seed) for seed in range(count)]
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=count, max_size=count)) if weighted else None
    combined = LoRAWeights.combine(parts, weights)
    expected = {
        name: sum(w * dense(part)[name] for w, part in zip(weights or [1.0] * count, parts, strict=True))
        for name in NAMES
    }
    assert same(dense(combined), expected, 1e-11)
    assert combined.rank == max(sum(part[name][0].shape[2] for part in parts) for name in NAMES)


@given(lora=selections(), scaling=st.sampled_from([0.1, 1.0, -4.0]))
@settings(quick)
def test_rescale_writes_the_same_update(lora: LoRAWeights, scaling: float) -> None:
    rescaled = lora.rescale(scaling)
    assert rescaled.scaling == scaling
    assert same(dense(rescaled), dense(lora))
    assert rescaled.nbytes == lora.nbytes  # adapters that rows share stay shared


@pytest.mark.parametrize("scaling", [0.0, float("inf")])
def test_rescale_to_nothing_is_refused(scaling: float) -> None:
    with pytest.raises(LoRAError, match="rescale"):
        make().rescale(scaling)


@given(lora=selections())
@settings(quick)
def test_to_keeps_selection_and_values(lora: LoRAWeights) -> None:
    half = lora.to(torch.float32)
    assert half.dtype == torch.float32
    assert half.index == lora.index
    assert same(dense(half.to(torch.float64)), dense(lora), 1e-4)
    assert lora.to(torch.float64) is lora
    assert lora.to(device="meta").device.type == "meta"


def test_gradients_flow_through_the_algebra_and_detach_cuts_them() -> None:
    lora = make()
    leaves = {name: tuple(m.clone().requires_grad_() for m in pair) for name, pair in lora.stored.items()}
    live = LoRAWeights(leaves, 0.5)
    changed = LoRAWeights.combine([LoRAWeights.stack([live.select([1, 1]), live]).rescale(2.0)] * 2, [1.0, -3.0])
    sum(changed.to(torch.float32).delta(name).square().sum() for name in NAMES).backward()
    assert all(m.grad is not None and m.grad[1].abs().sum() > 0 for pair in leaves.values() for m in pair)
    assert not any(m.requires_grad for pair in live.detach().values() for m in pair)


@pytest.mark.parametrize("what", ["stack", "combine"])
def test_loras_that_do_not_go_together_are_refused(what: str) -> None:
    join = getattr(LoRAWeights, what)
    lora = make()
    with pytest.raises(LoRAError, match=f"{what}: expected at least one"):
        join([])
    with pytest.raises(LoRAError, match=f"{what}: layers.0.o_proj is not in all"):
        join([lora, LoRAWeights({NAMES[0]: lora[NAMES[0]]}, 0.5)])
    with pytest.raises(LoRAError, match=f"{what}: torch.float32"):
        join([lora, lora.to(torch.float32)])


def test_what_only_stack_or_only_combine_refuses() -> None:
    lora = make()
    with pytest.raises(LoRAError, match="rescale"):
        LoRAWeights.stack([lora, make(scaling=1.0)])
    with pytest.raises(LoRAError, match=r"stack: layers\.0\.q_proj has A"):
        LoRAWeights.stack([lora, make(ranks=(3, 3))])
    with pytest.raises(LoRAError, match="combine: 2 adapters; expected 3"):
        LoRAWeights.combine([lora, make(adapters=2)])
    with pytest.raises(LoRAError, match="combine: 1 weights for 2"):
        LoRAWeights.combine([lora, lora], [1.0])


def test_joining_takes_any_iterable_of_loras_and_nothing_else() -> None:
    lora = make()
    assert LoRAWeights.stack(each for each in (lora, lora)).adapters == 6
    doubled = LoRAWeights.combine(each for each in (lora, lora))
    assert same(dense(doubled), {name: 2 * delta for name, delta in dense(lora).items()})
    for join in (LoRAWeights.stack, LoRAWeights.combine):
        with pytest.raises(LoRAError, match="expected a list of LoRAWeights"):
            join(lora)  # type: ignore[arg-type]  # a mapping, whose keys would be iterated
        with pytest.raises(LoRAError, match="expected a list of LoRAWeights"):
            join([lora, None])  # type: ignore[list-item]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "2"])
def test_a_weight_that_is_no_finite_number_is_refused(weight: object) -> None:
    with pytest.raises(LoRAError, match="expected a finite number"):
        LoRAWeights.combine([make(), make()], [1.0, weight])  # type: ignore[list-item]


@pytest.mark.parametrize("scaling", [1e-40, 1e300])
def test_rescale_refuses_what_the_dtype_cannot_hold(scaling: float) -> None:
    lora = make(dtype=torch.float32)
    with pytest.raises(LoRAError, match=r"cannot hold; expected a scaling nearer to 0\.5"):
        lora.rescale(scaling)
    assert make(dtype=torch.float32, scaling=0.0).rescale(1e300).scaling == 1e300  # every update is 0, before and after


def test_the_mean_of_no_adapters_is_refused() -> None:
    with pytest.raises(LoRAError, match="no adapters"):
        make().select([]).mean()


# --- shared factors ------------------------------------------------------------------------------------------


@given(lora=selections())
@settings(quick)
def test_the_free_form_has_the_same_updates(lora: LoRAWeights) -> None:
    free = lora.free()
    assert not free.is_shared
    assert same(dense(free), dense(lora))
    assert (free is lora) == (not lora.is_shared)
    A, B = lora[NAMES[0]]
    assert (A.shape[0], B.shape[0]) == (lora.adapters, lora.adapters)
    if lora.is_shared:  # A is not copied for each adapter
        assert A.data_ptr() == lora.stored[NAMES[0]].A.data_ptr()


@given(lora=selections())
@settings(quick)
def test_products_of_updates_are_those_of_dense_updates(lora: LoRAWeights) -> None:
    flat = torch.cat([delta.flatten(1) for delta in dense(lora).values()], dim=1)
    torch.testing.assert_close(update_products(lora), flat @ flat.T, rtol=0, atol=1e-9)


@given(diagonal=st.tuples(st.booleans(), st.booleans()), how=st.sampled_from(["same", "equal", "other"]))
@settings(quick)
def test_stack_and_combine_keep_the_same_factors_and_are_exact_with_others(
    diagonal: tuple[bool, bool], how: str
) -> None:
    first = make_shared(3, diagonal=diagonal[0]).select([2, 0])
    second = make_shared(2, seed=1, diagonal=diagonal[1], factors=None if how == "other" else first)
    if how == "equal":  # as read from two files
        second = second.to(torch.float32).to(torch.float64)
        first = first.to(torch.float32).to(torch.float64)
    stacked, combined = LoRAWeights.stack([first, second]), LoRAWeights.combine([first, second], [0.5, -2.0])
    assert stacked.is_shared == combined.is_shared == (how != "other")
    for name in NAMES:
        a, b = dense(first)[name], dense(second)[name]
        torch.testing.assert_close(dense(stacked)[name], torch.cat([a, b]), rtol=0, atol=1e-12)
        torch.testing.assert_close(dense(combined)[name], 0.5 * a - 2.0 * b, rtol=0, atol=1e-12)
    if how != "other":
        assert combined.rank == first.rank
        assert stacked.stored[NAMES[0]].A is first.stored[NAMES[0]].A
        assert stacked.stored[NAMES[0]].diagonal == all(diagonal)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_mean_of_shared_factors_has_their_rank(diagonal: bool) -> None:
    lora = make_shared(4, diagonal=diagonal).select([0, 3, 3])
    mean = lora.mean()
    assert mean.is_shared
    assert (mean.adapters, mean.rank) == (1, 3)
    assert same(dense(mean), {name: delta.mean(0, keepdim=True) for name, delta in dense(lora).items()})


def test_factors_with_a_gradient_are_never_taken_for_equal_ones() -> None:
    first = make_shared()
    live = LoRAWeights(
        {n: Shared(f.A.clone().requires_grad_(), f.B.clone().requires_grad_(), f.C) for n, f in first.stored.items()},
        0.5,
    )
    copied = LoRAWeights(
        {n: Shared(f.A.clone().requires_grad_(), f.B.clone().requires_grad_(), f.C) for n, f in first.stored.items()},
        0.5,
    )
    stacked = LoRAWeights.stack([live, copied])
    assert not stacked.is_shared
    sum(stacked.delta(name).square().sum() for name in NAMES).backward()
    for lora in (live, copied):
        assert all(form.A.grad is not None for form in lora.stored.values())
    assert LoRAWeights.stack([live.select(0), live.select([2, 1])]).is_shared


def test_gradients_reach_factors_and_cores_and_detach_cuts_them() -> None:
    forms = {n: Shared(*(m.clone().requires_grad_() for m in f)) for n, f in make_shared().stored.items()}
    live = LoRAWeights(forms, 0.5)
    changed = LoRAWeights.combine([LoRAWeights.stack([live.select([1, 1]), live]).rescale(2.0)] * 2, [1.0, -3.0])
    assert changed.is_shared
    sum(changed.to(torch.float32).delta(name).square().sum() for name in NAMES).backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for form in forms.values() for m in form)
    assert not any(m.requires_grad for form in live.detach().stored.values() for m in form)


def test_free_and_shared_projections_live_in_one_lora(tmp_path) -> None:
    free, shared = make(), make_shared()
    mixed = LoRAWeights({NAMES[0]: free.stored[NAMES[0]], NAMES[1]: shared.stored[NAMES[1]]}, 0.5)
    assert not mixed.is_shared
    assert "some shared factors" in repr(mixed)
    expected = {NAMES[0]: dense(free)[NAMES[0]], NAMES[1]: dense(shared)[NAMES[1]]}
    assert same(dense(mixed.select([0, 1, 2]).rescale(3.0)), expected)
    mixed.save(tmp_path / "l.safetensors")
    assert same(dense(LoRAWeights.load(tmp_path / "l.safetensors")), expected)


def test_the_repr_tells_the_form() -> None:
    assert repr(make_shared()) == (
        "LoRAWeights(adapters=3, projections=2, rank=3, scaling=0.5, shared factors, float64, cpu)"
    )


@pytest.mark.parametrize(
    ("A", "B", "C", "message"),
    [
        ((1, 5, 2), (2, 4), (1, 2, 2), r"^n: .*expected shared factors A \[in, rank\]"),
        ((5, 2), (2, 4), (2,), r"^n: .*expected shared factors"),
        ((5, 2), (3, 4), (1, 2, 2), "^n: ranks .* differ"),
        ((5, 2), (2, 4), (1, 2, 3), "^n: ranks .* differ"),
        ((5, 2), (2, 4), (1, 3), "^n: ranks .* differ"),
    ],
)
def test_factors_and_cores_that_do_not_fit_are_refused(A: tuple, B: tuple, C: tuple, message: str) -> None:
    with pytest.raises(LoRAError, match=message):
        LoRAWeights.shared({"n": (torch.ones(A), torch.ones(B))}, {"n": torch.ones(C)}, 1.0)


def test_names_and_counts_of_cores_that_do_not_fit_are_refused() -> None:
    A, B, C = torch.ones(5, 2), torch.ones(2, 4), torch.ones(3, 2, 2)
    with pytest.raises(LoRAError, match="m: not in both factors and cores"):
        LoRAWeights.shared({"n": (A, B)}, {"n": C, "m": C}, 1.0)
    with pytest.raises(LoRAError, match=r"^m: 2 adapters in C; expected 3 as in n"):
        LoRAWeights.shared({"n": (A, B), "m": (A, B)}, {"n": C, "m": C[:2]}, 1.0)
    with pytest.raises(LoRAError, match=r"^n: torch.float64.*expected torch.float32"):
        LoRAWeights.shared({"n": (A, B)}, {"n": C.double()}, 1.0)


# --- files -------------------------------------------------------------------------------------------------

FUSED = [
    Projection(
        name=NAMES[0], module="layers.0.c_attn", role="q", in_features=5, out_features=7, rows=((0, 3), (6, 10))
    ),
    Projection(name=NAMES[1], module=NAMES[1], role="o", in_features=7, out_features=4),
]


@given(lora=selections(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(quick)
def test_a_file_brings_back_what_was_selected(lora: LoRAWeights, dtype: torch.dtype, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("lora") / "a" / "lora.safetensors"
    lora = lora.to(dtype)
    lora.save(path)
    back = LoRAWeights.load(path)
    assert back.scaling == lora.scaling
    assert back.adapters == lora.adapters
    assert set(back) == set(lora)
    assert back.is_shared == lora.is_shared
    for name, form in back.stored.items():
        assert all(torch.equal(a, b) for a, b in zip(lora.chosen(name), form, strict=True))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_projections_are_kept_in_the_file(tmp_path) -> None:
    lora = make(projections=FUSED)
    lora.save(tmp_path / "l.safetensors")
    assert LoRAWeights.load(tmp_path / "l.safetensors").projections == tuple(FUSED)
    make().save(tmp_path / "m.safetensors")
    assert LoRAWeights.load(tmp_path / "m.safetensors").projections is None


def test_matrices_that_share_memory_are_saved(tmp_path) -> None:
    both = torch.randn(2, 3, 5, 2, dtype=torch.float64)  # as a hypernetwork makes all projections of a shape at once
    B = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True) * 1  # no leaf, and the same for two names
    lora = LoRAWeights({"a": (both[0], B), "b": (both[1], B)}, 1.0)
    lora.save(tmp_path / "l.safetensors")
    back = LoRAWeights.load(tmp_path / "l.safetensors")
    assert torch.equal(back["b"][0], both[1])
    assert torch.equal(back["b"][1], B)


def test_a_truncated_file_is_refused_and_a_whole_one_is_replaced_at_once(tmp_path) -> None:
    path = tmp_path / "l.safetensors"
    make().save(path)
    whole = path.read_bytes()
    for size in (0, 4, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(LoRAError, match=r"l\.safetensors: truncated or not safetensors"):
            LoRAWeights.load(path)
    make(seed=1).save(path)
    assert same(dense(LoRAWeights.load(path)), dense(make(seed=1)), 0)


def test_foreign_files_are_refused(tmp_path) -> None:
    path = tmp_path / "l.safetensors"
    with pytest.raises(LoRAError, match="no such file"):
        LoRAWeights.load(path)
    with pytest.raises(LoRAError, match="no such file"):
        LoRAWeights.load(tmp_path)
    path.write_text("scaling = 1")
    with pytest.raises(LoRAError, match="truncated or not"):
        LoRAWeights.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(LoRAError, match="format None; expected 'promptlora"):
        LoRAWeights.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "layers.0.q_proj.lora_B"}, r"layers\.0\.q_proj\.lora_[AB] has no partner"),
        ({"drop": "layers.0.q_proj.lora_A"}, r"layers\.0\.q_proj\.lora_B has no partner"),
        ({"add": "lm_head.weight"}, "lm_head.weight has no partner"),
        ({"scaling": None}, "scaling is|scaling: not JSON|projection"),
        ({"scaling": '"x"'}, "scaling is|scaling: not JSON|projection"),
        ({"scaling": "{"}, "scaling is|scaling: not JSON|projection"),
        ({"scaling": "NaN"}, "finite"),
        ({"projections": '[{"name": "x"}]'}, "scaling is|scaling: not JSON|projection"),
        ({"projections": "7"}, "scaling is|scaling: not JSON|projection"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(tmp_path, change: dict[str, str | None], message: str) -> None:
    path = tmp_path / "l.safetensors"
    make().save(path)
    with safe_open(path, framework="pt") as handle:
        metadata = dict(handle.metadata())
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    tensors.pop(change.pop("drop", ""), None)
    if "add" in change:
        tensors[change.pop("add")] = torch.ones(1)
    metadata.update({key: value for key, value in change.items() if value is not None})
    metadata = {key: value for key, value in metadata.items() if change.get(key, "") is not None}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(LoRAError, match=message) as caught:
        LoRAWeights.load(path)
    assert str(path) in str(caught.value)


def test_nothing_is_left_behind_where_a_file_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        make().save(tmp_path / "file" / "l.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        make().save(tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(1)])
def test_a_record_that_could_not_be_read_again_is_not_written(value: object, tmp_path) -> None:
    lora = make(1)
    lora = LoRAWeights(lora.stored, lora.scaling, provenance=[{"prompt": "Do it.", "loss": value}])
    with pytest.raises(LoRAError, match=r"^provenance: .*Expected JSON values with finite numbers"):
        lora.save(tmp_path / "lora.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_scaling_is_written_in_full(tmp_path) -> None:
    make(scaling=1 / 3).save(tmp_path / "l.safetensors")
    with safe_open(tmp_path / "l.safetensors", framework="pt") as handle:
        assert json.loads(handle.metadata()["scaling"]) == 1 / 3


def test_a_lora_is_equal_to_itself_alone_and_can_be_a_key():
    A, B = torch.ones(1, 4, 2), torch.ones(1, 2, 3)
    one, other = LoRAWeights({"p": (A, B)}, 1.0), LoRAWeights({"p": (A, B)}, 1.0)
    assert one == one and one != other  # noqa: PT018
    assert {one: 1, other: 2}[one] == 1

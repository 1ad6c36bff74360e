"""Packed batches: the update of each token is that of its own request, whatever the layout of module and adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from promptlora.errors import LoRAError
from promptlora.injection import HookBasedLoRAInjector, plan_tokens
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection

D_IN, D_OUT, RANK = 6, 8, 3
COLUMNS = {
    "whole": (None, D_OUT),
    "one span": (((2, 10),), 12),
    "repeated": (((0, 4), (6, 10)), 12),
    "uneven": (((0, 3), (5, 10)), 12),
}
BATCHES = {
    "answers": [(1, 1), (1, 0), (1, 3), (1, 1), (1, 2)],
    "answers of one adapter": [(1, 2)] * 4,
    "inputs": [(4, 1), (3, 0), (2, 2)],
    "both": [(1, 2), (1, 0), (1, 1), (5, 3), (1, 2), (3, 0)],
    "base alone": [(1, 0), (4, 0)],
}


class _Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = nn.Linear(D_IN, width, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


def projection(rows: tuple[tuple[int, int], ...] | None = None) -> Projection:
    return Projection(name="p", module="part", role="q", in_features=D_IN, out_features=D_OUT, rows=rows)


def adapters(form: str) -> list[LoRAWeights]:
    """Three adapters of one projection."""
    draw = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    if form == "free":
        stored = LoRAWeights({"p": (matrix(3, D_IN, RANK), matrix(3, RANK, D_OUT))}, 0.7)
    else:
        core = (3, RANK) if form == "diagonal" else (3, RANK, RANK)
        stored = LoRAWeights.shared({"p": (matrix(D_IN, RANK), matrix(RANK, D_OUT))}, {"p": matrix(*core)}, 0.7)
    return [stored.select(i) for i in range(3)]


@pytest.mark.parametrize("form", ["free", "shared", "diagonal"])
@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS.keys())
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("grad", [False, True])
def test_each_token_gets_the_update_of_its_request(form, columns, batch, grad):
    rows, width = columns
    torch.manual_seed(1)
    model, loras = _Model(width), adapters(form)
    x = torch.randn(1, sum(count for count, _ in batch), D_IN, dtype=torch.float64)
    with HookBasedLoRAInjector(model, [projection(rows)]) as injector, torch.set_grad_enabled(grad):
        expected, at = model(x).clone(), 0
        for count, slot in batch:
            if slot:
                delta = (x[0, at : at + count] @ loras[slot - 1].delta("p")[0]).view(count, -1)
                for start, stop in rows or ((0, width),):
                    done = sum(b - a for a, b in (rows or ()) if b <= start)
                    expected[0, at : at + count, start:stop] += delta[:, done : done + stop - start]
            at += count
        slots = injector.slots(loras[0], 3)
        for i, lora in enumerate(loras):
            assert slots.takes(lora)
            slots.put(i + 1, lora)
        plan = plan_tokens(batch)
        with injector.apply(injector.packed([(slots, plan)])):
            torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=1e-12)
        if not any(slot for _, slot in batch):
            assert plan.empty
            assert injector.packed([(slots, plan)]).state is None


def test_a_slot_that_gets_another_adapter_uses_it():
    model, (first, second, _) = _Model(D_OUT), adapters("shared")
    x = torch.randn(1, 1, D_IN, dtype=torch.float64)
    with HookBasedLoRAInjector(model, [projection()]) as injector:
        slots, plan = injector.slots(first, 1), plan_tokens([(1, 1)])
        found = []
        for lora in (first, second):
            slots.put(1, lora)
            with injector.apply(injector.packed([(slots, plan)])):
                found.append(model(x))
            with injector.apply(lora):
                torch.testing.assert_close(found[-1], model(x))
        assert not torch.allclose(*found)


def test_slots_take_only_adapters_that_look_alike():
    model = _Model(D_OUT)
    with HookBasedLoRAInjector(model, [projection()]) as injector:
        free, shared = adapters("free")[0], adapters("shared")[0]
        slots = injector.slots(shared, 1)
        A, B, C = shared.stored["p"]
        assert slots.takes(LoRAWeights.shared({"p": (A.clone(), B)}, {"p": C + 1}, 0.7))  # equal factors
        assert not slots.takes(free)
        assert not slots.takes(LoRAWeights.shared({"p": (A + 1, B)}, {"p": C}, 0.7))
        assert not slots.takes(LoRAWeights.shared({"p": (A, B)}, {"p": C}, 0.8))
        assert not slots.takes(adapters("diagonal")[0])
        assert not injector.slots(free, 1).takes(free.to(torch.float32))


def test_another_number_of_tokens_than_planned_is_refused():
    model, lora = _Model(D_OUT), adapters("free")[0]
    with HookBasedLoRAInjector(model, [projection()]) as injector:
        slots = injector.slots(lora, 1)
        slots.put(1, lora)
        with (
            injector.apply(injector.packed([(slots, plan_tokens([(1, 1), (1, 0)]))])),
            pytest.raises(LoRAError, match="expected 2 tokens in"),
        ):
            model(torch.randn(1, 3, D_IN, dtype=torch.float64))

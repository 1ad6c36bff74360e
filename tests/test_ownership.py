"""Who may switch a LoRA on, and what happens to a model that is copied, compiled, changed or shared meanwhile."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel

from promptlora.errors import LoRAError
from promptlora.injection import HookBasedLoRAInjector, Owner, make_batched_lora_hook, turn_of
from promptlora.lora import LoRAWeights, Shared
from promptlora.lora.peft import merge_lora
from promptlora.projections import find_projections
from tests.helpers import random_lora, tiny_gpt2, tiny_llama, token_ids

EXACT = {"rtol": 0, "atol": 1e-11}
IDS = token_ids(2, 6)


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def elsewhere(call: Callable[[], Any]) -> Any:
    """The result of a call in a thread of its own, or its error."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=60)


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return request.param()


@pytest.fixture
def injector(model: PreTrainedModel) -> Iterator[HookBasedLoRAInjector]:
    with HookBasedLoRAInjector(model) as made:
        yield made


# --- one owner -----------------------------------------------------------------------------------------------


def test_leaving_out_of_order_is_an_error_and_the_base_follows(model, injector):
    base = logits(model)
    one, two = (random_lora(injector.projections, seed=seed) for seed in (1, 2))
    first, second = injector.apply(one), injector.apply(two)
    first.__enter__()
    second.__enter__()
    with_two = logits(model)
    with pytest.raises(LoRAError, match="left out of order"):
        first.__exit__(None, None, None)
    assert torch.equal(logits(model), with_two)  # as the message says: the later use is on until it ends
    second.__exit__(None, None, None)
    assert torch.equal(logits(model), base)


def test_an_error_inside_is_not_hidden_by_the_order(model, injector):
    base, inner = logits(model), injector.apply(random_lora(injector.projections))

    def fail() -> None:
        with injector.apply(random_lora(injector.projections)):
            inner.__enter__()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    inner.__exit__(None, None, None)
    assert torch.equal(logits(model), base)


def test_another_thread_is_refused_and_nothing_changes(model, injector):
    one, two = (random_lora(injector.projections, seed=seed) for seed in (1, 2))

    def intrude() -> None:
        with injector.apply(two):
            pytest.fail("not reached")

    with injector.apply(one):
        before = logits(model)
        with pytest.raises(LoRAError, match="Expected one owner at a time"):
            elsewhere(intrude)
        assert torch.equal(logits(model), before)
        with pytest.raises(LoRAError, match="runs the model while a LoRA of thread"):  # it would get our adapter
            elsewhere(lambda: logits(model))
        with pytest.raises(LoRAError, match="remove: a LoRA of thread"):
            elsewhere(injector.remove)
        assert torch.equal(logits(model), before)
        with injector.apply(None):
            assert torch.equal(elsewhere(lambda: logits(model)), logits(model))  # the base is the base
    elsewhere(lambda: logits(model))


def test_two_tasks_of_one_loop_are_two_owners(model, injector):
    one, two = (random_lora(injector.projections, seed=seed) for seed in (1, 2))
    with injector.apply(one):
        expected = logits(model)
    held, done = asyncio.Event(), asyncio.Event()

    async def hold() -> Tensor:
        with injector.apply(one):
            held.set()
            await done.wait()
            return logits(model)

    async def intrude() -> None:
        await held.wait()
        with pytest.raises(LoRAError, match="Expected one owner at a time"), injector.apply(two):
            pytest.fail("not reached")
        with pytest.raises(LoRAError, match="runs the model while"):
            logits(model)
        done.set()

    async def both() -> Tensor:
        found, _ = await asyncio.gather(hold(), intrude())
        return found

    assert torch.equal(asyncio.run(both()), expected)
    with injector.apply(one):  # a loop inside of a use belongs to it
        assert torch.equal(asyncio.run(asyncio.to_thread(lambda: 1)) * expected, expected)

        async def inside() -> Tensor:
            return logits(model)

        assert torch.equal(asyncio.run(inside()), expected)


@pytest.mark.parametrize("how", ["closed", "dropped", "dropped in a cycle", "dropped in another thread"])
def test_an_abandoned_generator_gives_the_model_back(model, injector, how):
    base = logits(model)

    def generate() -> Iterator[int]:
        with injector.apply(random_lora(injector.projections)):
            yield 1
            yield 2

    pieces = generate()
    next(pieces)
    assert not torch.equal(logits(model), base)
    if how == "closed":
        pieces.close()
    elif how == "dropped in a cycle":
        cycle: list[Any] = [pieces]
        cycle.append(cycle)
        del cycle, pieces
        gc.collect()
    elif how == "dropped in another thread":
        box = [pieces]
        del pieces
        elsewhere(box.clear)
    else:
        del pieces
    assert torch.equal(logits(model), base)
    elsewhere(lambda: logits(model))


def test_a_context_that_is_entered_and_dropped_gives_the_model_back(model, injector):
    base, context = logits(model), injector.apply(random_lora(injector.projections))
    context.__enter__()
    del context
    assert torch.equal(logits(model), base)


def test_a_use_of_a_thread_that_ended_is_over(model, injector):
    base, one, kept = logits(model), random_lora(injector.projections), []

    def leave_it_on() -> None:
        kept.append(injector.apply(one))
        kept[0].__enter__()

    thread = threading.Thread(target=leave_it_on)
    thread.start()
    thread.join()
    with pytest.raises(LoRAError, match="runs the model while a LoRA of thread"):
        logits(model)  # said, not the base in silence and not the adapter
    with injector.apply(None):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), base)
    with pytest.raises(LoRAError, match="this use ended when thread"):
        kept[0].__exit__(None, None, None)


def test_a_prepared_lora_is_the_lora(model, injector):
    lora = random_lora(injector.projections, 2)
    prepared = injector.prepare(lora, [1, 0])
    with injector.apply(lora, [1, 0]):
        expected = logits(model)
    for _ in range(2):
        with injector.apply(prepared):
            assert torch.equal(logits(model), expected)
    base = injector.prepare(None)
    with injector.apply(lora), injector.apply(base):
        found = logits(model)
    assert torch.equal(found, logits(model))


# --- the turn ------------------------------------------------------------------------------------------------


def test_a_turn_is_taken_in_the_order_of_asking():
    turn, order, waiting = turn_of(nn.Linear(1, 1)), [], []

    def ask(number: int) -> None:
        with turn.held(), turn.held():
            order.append(number)

    with turn.held():
        for number in range(5):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            waiting.append(thread)
            while len(turn._queue) <= number:
                pass
        assert order == []
    for thread in waiting:
        thread.join(timeout=60)
    assert order == [0, 1, 2, 3, 4]
    assert turn.holder is None


def test_a_turn_is_given_back_when_its_thread_ends_or_its_generator_is_dropped():
    turn, kept = turn_of(nn.Linear(1, 1)), []

    def keep() -> None:
        kept.append(turn.held())
        kept[0].__enter__()

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    with turn.held():
        assert turn.holder is not None
        assert turn.holder.is_caller()
        kept[0].__exit__(None, None, None)  # no longer its own
        assert turn.holder is not None

    def hold() -> Iterator[None]:
        with turn.held():
            yield

    pieces = hold()
    next(pieces)
    del pieces
    elsewhere(lambda: turn.held().__enter__())


def test_a_turn_can_be_taken_for_another_owner_and_never_by_a_task_that_would_wait_for_itself():
    turn = turn_of(nn.Linear(1, 1))

    def on_behalf(owner: Owner) -> bool:
        with turn.held(owner):
            return True

    with turn.held():
        me = Owner.current()
        assert elsewhere(lambda: on_behalf(me))

    async def hold(event: asyncio.Event) -> None:
        with turn.held():
            await event.wait()

    async def both() -> None:
        event = asyncio.Event()
        task = asyncio.create_task(hold(event))
        await asyncio.sleep(0)
        with pytest.raises(LoRAError, match="waiting would never end"), turn.held():
            pytest.fail("not reached")
        event.set()
        await task

    asyncio.run(both())


def test_a_model_has_one_turn_and_is_not_kept_by_it():
    model = tiny_llama()
    assert turn_of(model) is turn_of(model)
    assert turn_of(torch.compile(model)) is turn_of(model)
    assert turn_of(model) is not turn_of(copy.deepcopy(model))
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


# --- copies, pickles, changed modules ------------------------------------------------------------------------


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, pickled, saved])
def test_a_copy_is_the_base_and_obeys_only_its_own_injector(model, injector, how):
    lora, base = random_lora(injector.projections), logits(model)
    twin = how(model)
    with injector.apply(lora):
        adapted = logits(model)
        assert torch.equal(logits(twin), base)
        with pytest.raises(LoRAError, match="copied or pickled while a LoRA is on"):
            how(model)
    with HookBasedLoRAInjector(twin) as own, own.apply(lora):
        assert torch.allclose(logits(twin), adapted, **EXACT)
        assert torch.equal(logits(model), base)
    merged = merge_lora(how(model), lora)
    assert torch.allclose(logits(merged), adapted, **EXACT)
    with injector.apply(lora):
        assert torch.allclose(logits(merged), adapted, **EXACT)


def test_a_removed_injector_refuses_and_says_so(model):
    injector = HookBasedLoRAInjector(model)
    lora = random_lora(injector.projections)
    prepared = injector.prepare(lora)
    injector.remove()
    for what in (lora, prepared, None):
        with pytest.raises(LoRAError, match=r"hooks of this injector were removed"), injector.apply(what):
            pytest.fail("not reached")
    with pytest.raises(LoRAError, match="removed"), injector.checkpoint_context()[1]:
        pytest.fail("not reached")


@pytest.mark.parametrize("depth", ["module", "layer"])
def test_a_replaced_module_is_noticed(depth):
    model = tiny_llama()
    injector = HookBasedLoRAInjector(model)
    lora, layer = random_lora(injector.projections), model.model.layers[1]
    if depth == "layer":
        model.model.layers[1] = copy.deepcopy(layer)
    else:
        layer.self_attn.k_proj = copy.deepcopy(layer.self_attn.k_proj)
    before = logits(model)
    with pytest.raises(LoRAError, match=r"was replaced .* after the injector was made"), injector.apply(lora):
        pytest.fail("not reached")
    with injector.apply(None):  # the base is still the base
        assert torch.equal(logits(model), before)
    injector.remove()
    with HookBasedLoRAInjector(model) as again, again.apply(lora):
        assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated, and used all the same
def test_dynamic_quantisation_of_a_hooked_model(inplace):
    model = tiny_llama(torch.float32)
    ids = IDS
    injector = HookBasedLoRAInjector(model)
    lora = random_lora(injector.projections, dtype=torch.float32)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=inplace)
    base = logits(quantised, ids)
    if inplace:
        with pytest.raises(LoRAError, match="was replaced"), injector.apply(lora):
            pytest.fail("not reached")
    else:
        with injector.apply(lora):
            assert torch.equal(logits(quantised, ids), base)
    injector.remove()
    assert torch.equal(logits(quantised, ids), base)
    kinds = (type(hook).__name__ for module in quantised.modules() for hook in module._forward_hooks.values())
    assert set(kinds) <= {"InertHook"}


# --- vmap, other hooks ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap has no rule of its own for addmm_
def test_vmap_over_the_batch_is_refused_with_several_adapters_and_right_with_one():
    model = tiny_llama()
    q, h = model.model.layers[0].self_attn.q_proj, torch.randn(2, 4, 32, dtype=torch.float64)
    with HookBasedLoRAInjector(model) as injector:
        lora = random_lora(injector.projections, 2)
        with (
            injector.apply(lora),
            pytest.raises(LoRAError, match=r"q_proj: called under torch.func.vmap with 2 adapters"),
        ):
            torch.func.vmap(q)(h)
        with injector.apply(lora.select(1)), torch.no_grad():
            assert torch.allclose(torch.func.vmap(q)(h), q(h), **EXACT)
    handle = q.register_forward_hook(make_batched_lora_hook(*lora["model.layers.0.self_attn.q_proj"]))
    with pytest.raises(LoRAError, match="vmap"):
        torch.func.vmap(q)(h)
    handle.remove()


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("where", ["global", "module"])
def test_other_hooks_hold_what_the_module_computed(where, when):
    model, seen = tiny_llama(), []
    q = model.model.layers[0].self_attn.q_proj

    def watch() -> Any:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            if module is q:
                seen.append(output)

        if where == "global":
            return torch.nn.modules.module.register_module_forward_hook(note)
        return q.register_forward_hook(note, prepend=True)

    with HookBasedLoRAInjector(model) as injector:
        lora = random_lora(injector.projections)
        handle = watch()
        base = logits(model)
        if when == "inside":
            handle.remove()
        with injector.apply(lora):
            if when == "inside":
                handle = watch()
            logits(model)
    handle.remove()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(logits(model), base)


# --- torch.compile -------------------------------------------------------------------------------------------


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    torch._dynamo.reset()
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("part", ["model", "in place", "layer"])
def test_a_model_compiled_before_its_injector_follows_it(counter, part):
    layers = 2 if part == "layer" else 1
    model = tiny_llama(num_hidden_layers=layers)
    lora = None
    run: Any = model
    if part == "model":
        run = torch.compile(model, backend=counter)
    elif part == "in place":
        model.compile(backend=counter)
    else:
        model.model.layers[1].compile(backend=counter)
    base = logits(run)
    assert counter.frame_count > 0
    for _ in range(2):  # and a second injector after the first
        injector = HookBasedLoRAInjector(model)
        lora = random_lora(injector.projections)
        with HookBasedLoRAInjector(twin := tiny_llama(num_hidden_layers=layers)) as other, other.apply(lora):
            expected = logits(twin)
        with injector.apply(lora):
            assert torch.allclose(logits(run), expected, **EXACT)
        assert torch.allclose(logits(run), base, **EXACT)
        injector.remove()
        assert torch.allclose(logits(run), base, **EXACT)


def test_a_layer_that_is_compiled_into_its_place_is_no_replacement(counter):
    model = tiny_llama()
    with HookBasedLoRAInjector(model) as injector:
        lora = random_lora(injector.projections)
        with injector.apply(lora):
            expected = logits(model)
        model.model.layers[0] = torch.compile(model.model.layers[0], backend=counter)
        with injector.apply(lora):
            assert torch.allclose(logits(model), expected, **EXACT)


def shared_lora(projections: Any, adapters: int) -> LoRAWeights:
    """Factors that all adapters share, with a core each."""
    generator = torch.Generator().manual_seed(0)
    made = random_lora(projections, 1)
    forms = {name: (A[0], B[0]) for name, (A, B) in made.items()}
    cores = {
        name: torch.randn(adapters, A.shape[1], A.shape[1], generator=generator, dtype=A.dtype)
        for name, (A, _) in forms.items()
    }
    return LoRAWeights({name: Shared(*forms[name], cores[name]) for name in forms}, made.scaling)


def test_vmap_is_refused_with_several_cores():
    model = tiny_llama()
    q, h = model.model.layers[0].self_attn.q_proj, torch.randn(2, 4, 32, dtype=torch.float64)
    with (
        HookBasedLoRAInjector(model) as injector,
        injector.apply(shared_lora(injector.projections, 2)),
        pytest.raises(LoRAError, match="vmap"),
    ):
        torch.func.vmap(q)(h)


def test_vmap_is_refused_in_a_compiled_model(counter):
    model = tiny_llama()
    q, h = model.model.layers[0].self_attn.q_proj, torch.randn(2, 4, 32, dtype=torch.float64)
    with (
        HookBasedLoRAInjector(model) as injector,
        injector.apply(random_lora(injector.projections, 2)),
        pytest.raises(LoRAError, match="vmap"),
        torch.no_grad(),
    ):
        torch.compile(torch.func.vmap(q), backend=counter)(h)


@pytest.mark.parametrize("form", [random_lora, shared_lora])
@pytest.mark.parametrize("index", ["own", "shared unevenly"])
def test_batch_sizes_share_a_graph(counter, index, form):
    model = tiny_llama(num_hidden_layers=1)
    compiled = torch.compile(model, backend=counter)
    narrow_and_wide = [p for p in find_projections(model) if p.role in "qv"]  # each hook takes the compiler seconds
    with HookBasedLoRAInjector(model, narrow_and_wide) as injector:
        for rows in (3, 4, 5, 7, 6, 11):
            lora, ids = form(injector.projections, rows), token_ids(rows, 5)
            chosen = list(range(rows)) if index == "own" else [*range(rows - 1), 0]
            with injector.apply(lora, chosen):
                assert torch.allclose(logits(compiled, ids), logits(model, ids), **EXACT)
    assert counter.frame_count <= 3

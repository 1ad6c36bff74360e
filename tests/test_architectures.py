"""Every family of the table, on a tiny random model: an adapter does what its name says.

What attention reads is seen at the last place before it is used: the operands of the products (or of SDPA, or of
the delta rule). At position 0 rotary embeddings are the identity; norms of q, k, v and the DeltaNet's convolution
are made the identity, so a delta must arrive there as it is, in logical order.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.projections import (
    Block,
    Layout,
    Projection,
    Source,
    block_projections,
    find_blocks,
    find_projections,
)
from tests.architectures import CASES, VOCABULARY, Case, build, build_meta
from tests.helpers import FORMS, random_lora, token_ids

SEQ = 5

# GPT-J's kin and the DeltaNet read in float32
_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


class Probe(TorchFunctionMode):
    """What each attention block reads in one forward: role to ``[heads, seq, dim]``, and its output as ``o``."""

    def __init__(self, blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reads: dict[str, dict[str, Tensor]] = defaultdict(dict)
        self._inside: str | None = None
        self._products: list[tuple[Tensor, Tensor]] = []
        self._handles = []
        for block in blocks:
            self._handles.append(block.module.register_forward_pre_hook(self._enter(block)))
            self._handles.append(block.module.register_forward_hook(self._leave(block)))
            if block.layout.kind == "DeltaNet":
                self._watch_delta_rule(block, monkeypatch)

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for handle in self._handles:
            handle.remove()

    def _enter(self, block: Block) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._inside, self._products = block.name, []

        return hook

    def _leave(self, block: Block) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            read = self.reads[block.name]
            read["o"] = _heads(output[0] if isinstance(output, tuple) else output)
            if self._products and block.layout.kind != "DeltaNet":
                (q, keys), (_, v) = self._products[:2]
                read.update(q=_heads(q), k=_heads(keys.transpose(-1, -2)), v=_heads(v))
            self._inside = None

        return hook

    def _watch_delta_rule(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
        home = sys.modules[type(block.module).__module__]
        rule = home.torch_chunk_gated_delta_rule
        if getattr(rule, "watched", False):
            return

        def watched(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
            assert self._inside is not None
            self.reads[self._inside].update(
                {role: _heads(x.transpose(1, 2)) for role, x in (("q", query), ("k", key), ("v", value))}
            )
            return rule(query, key, value, **options)

        watched.watched = True  # type: ignore[attr-defined]
        monkeypatch.setattr(home, "torch_chunk_gated_delta_rule", watched)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside is not None:
            self._see(getattr(func, "__name__", ""), args, kwargs, self.reads[self._inside])
        return func(*args, **kwargs)

    def _see(self, name: str, args: Any, kwargs: Any, read: dict[str, Tensor]) -> None:
        if name == "scaled_dot_product_attention":
            read.update({role: _heads(x) for role, x in zip("qkv", args, strict=False)})
        elif name in ("matmul", "__matmul__", "bmm", "baddbmm"):
            left, right = (kwargs["batch1"], kwargs["batch2"]) if kwargs.get("batch1") is not None else args[-2:]
            if left.ndim >= 3 and right.ndim >= 3 and left.shape[-1] > 1:
                self._products.append((left.clone(), right.clone()))
        elif name == "sigmoid":
            for role in ("gate", "b"):
                read.setdefault(role, _heads(args[0]))
        elif name == "softplus":
            read.setdefault("a", _heads(args[0]))
        elif name == "silu":  # the gated norm's gate; its rows are [batch * seq * heads, dim]
            read["z"] = args[0].clone().reshape(SEQ, -1)[None]


def _heads(x: Tensor) -> Tensor:
    """``[heads, seq, dim]`` of a batch of one."""
    x = x.detach().clone()
    return x.reshape(-1, *x.shape[-2:])


def neutralise(blocks: list[Block]) -> None:
    """Make the norms of q, k and v, and the convolution before a delta rule, the identity."""
    for block in blocks:
        for name, child in list(block.module.named_children()):
            if re.fullmatch(r"(q|k|v|qk|query|key)_(layer)?norm", name):
                setattr(block.module, name, nn.Identity())
            if name == "conv1d" and block.layout.kind == "DeltaNet":
                child.weight.data.zero_()
                child.weight.data[..., -1] = 1.0
                block.module.activation = None  # type: ignore[assignment]


def logical(read: Tensor, projection: Projection, block: Block) -> Tensor:
    """``[seq, out_features]``: what was read, with the copies of a key head for its query heads taken once."""
    if block.layout.kind == "MLA" and projection.role == "k":  # the rotary part is another module's
        read = read[..., : block.module.qk_nope_head_dim]  # type: ignore[misc]
    heads = projection.out_features // read.shape[-1]
    copies = read.reshape(heads, -1, *read.shape[1:])
    assert all(torch.equal(copies[:, 0], copies[:, i]) for i in range(copies.shape[1]))
    return copies[:, 0].transpose(0, 1).flatten(1)


def assert_arrives(
    model: nn.Module, case: Case, monkeypatch: pytest.MonkeyPatch, layouts: tuple[Layout, ...] = ()
) -> int:
    """(a): a delta on one part changes exactly that tensor where attention reads it, in order. Returns the parts seen."""
    blocks = find_blocks(model, layouts)
    neutralise(blocks)
    ids = token_ids(1, SEQ, vocab=VOCABULARY)
    inputs: dict[str, Tensor] = {}
    every = [(block, p) for block in blocks for p in block_projections(block)]
    modules = dict(model.named_modules())

    def run() -> dict[str, dict[str, Tensor]]:
        with Probe(blocks, monkeypatch) as probe, torch.no_grad():
            model(ids, use_cache=False)
        monkeypatch.undo()
        return dict(probe.reads)

    handles = [
        modules[name].register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args[0].clone()))
        for name in {p.module for _, p in every}
    ]
    base = run()
    for handle in handles:
        handle.remove()
    seen = 0
    with HookBasedLoRAInjector(model, [p for _, p in every]) as injector:
        for block, p in every:
            if p.role not in base[block.name]:
                assert p.role in ("q_a", "kv_a"), f"{p.name} was not seen"  # what feeds q_b and kv_b
                continue
            seen += 1
            lora = random_lora([p], rank=2, seed=seen, dtype=case.dtype)
            (A, B) = lora[p.name]
            with injector.apply(lora):
                changed = run()
            x = inputs[p.module].reshape(SEQ, -1)
            expected = x @ A[0] @ B[0] * lora.scaling
            difference = logical(changed[block.name][p.role], p, block) - logical(base[block.name][p.role], p, block)
            first, wanted = difference[0].double(), expected[0].double()
            if p.role in ("q", "k") and block.layout.kind != "DeltaNet":  # YaRN and q scaling: one factor for all
                factor = float(first @ wanted / (wanted @ wanted))
                assert 0.2 < factor < 5, p.name
                wanted = factor * wanted
            torch.testing.assert_close(first, wanted, **_TOLERANCE, msg=lambda m, p=p: f"{p.name}: {m}")
            touched = {p.role, case.shared.get(p.role, "") if _lacks(block, "v") else ""}
            if p.role != "o":
                touched.add("o")
            for role, read in base[block.name].items():
                if role not in touched and role in block.layout.roles:
                    same = torch.equal(changed[block.name][role], read)
                    assert same, f"a delta on {p.name} also changes {role}"
    return seen


def _lacks(block: Block, role: str) -> bool:
    return all(p.role != role for p in block_projections(block))


def merged_by_hand(model: nn.Module, lora: LoRAWeights, projections: list[Projection]) -> None:
    """The naive twin: the delta of one adapter added to the rows of the physical weights, in place."""
    modules = dict(model.named_modules())
    for p in projections:
        A, B = lora[p.name]
        delta = A[0] @ B[0] * lora.scaling  # [in, out]
        weight = modules[p.module].weight
        rows = torch.arange(p.out_features) if p.rows is None else torch.cat([torch.arange(a, b) for a, b in p.rows])
        if hasattr(modules[p.module], "nf"):  # Conv1D
            weight.data[:, rows] += delta
        else:
            weight.data[rows] += delta.T


cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@cases
def test_a_delta_changes_exactly_what_its_name_says(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    assert assert_arrives(model, case, monkeypatch) >= len(find_projections(model))


@cases
def test_every_layer_has_q_k_v_o_once_and_rows_do_not_overlap(case: Case) -> None:
    model = build(case)
    projections = find_projections(model)
    by_block = defaultdict(list)
    for p in projections:
        assert p.name.endswith(f"{p.role}_proj")
        by_block[p.name.rpartition(".")[0]].append(p.role)
    full = 0
    for roles in by_block.values():
        assert roles == [r for r in "qkvo" if r in roles]
        assert set("qkvo") - set(roles) <= set(case.absent)
        full += len(roles) == 4
    assert full
    every = find_projections(model, roles=_all_roles(model))
    assert len({p.name for p in every}) == len(every)
    for module in {p.module for p in every}:
        parts = [p for p in every if p.module == module]
        out = dict(model.named_modules())[module].weight.numel() // parts[0].in_features
        rows = torch.cat([p.row_index() for p in parts])
        assert sorted(rows.tolist()) == list(range(out))
        for p in parts:
            assert p.rows != ((0, out),)
            assert all(a[1] != b[0] for a, b in zip(p.rows or (), (p.rows or ())[1:], strict=False))


def _all_roles(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(p.role for block in find_blocks(model) for p in block_projections(block)))


@cases
def test_the_meta_device_gives_the_same(case: Case) -> None:
    model, meta = build(case), build_meta(case)
    assert all(p.is_meta for p in meta.parameters())
    assert find_projections(model, _all_roles(model)) == find_projections(meta, _all_roles(meta))


@cases
def test_hooks_equal_merged_weights(case: Case) -> None:
    model = build(case)
    projections = find_projections(model, _all_roles(model))
    lora = random_lora(projections, rank=3, dtype=case.dtype)
    ids = token_ids(2, SEQ, vocab=VOCABULARY)
    with torch.no_grad():
        base = model(ids, use_cache=False).logits
        with HookBasedLoRAInjector(model, projections) as injector, injector.apply(lora, adapter_index=[0, 0]):
            hooked = model(ids, use_cache=False).logits
        merged_by_hand(model, lora, projections)
        merged = model(ids, use_cache=False).logits
    assert (hooked - base).abs().max() > 1e-3
    torch.testing.assert_close(hooked, merged, rtol=0, atol=case.tolerance)


@cases
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning")
def test_hooks_equal_the_exported_peft_adapter(case: Case, tmp_path: Path) -> None:
    model = build(case)
    projections = find_projections(model)
    lora = random_lora(projections, rank=3, dtype=case.dtype)
    ids = token_ids(2, SEQ, vocab=VOCABULARY)
    with torch.no_grad():
        with HookBasedLoRAInjector(model, projections) as injector, injector.apply(lora, adapter_index=[0, 0]):
            hooked = model(ids, use_cache=False).logits
        lora.save_peft(tmp_path / "peft", model=model)
        back = LoRAWeights.load_peft(tmp_path / "peft", projections=projections)
        exported = peft.PeftModel.from_pretrained(model, tmp_path / "peft")(ids, use_cache=False).logits
    torch.testing.assert_close(hooked, exported, rtol=0, atol=case.tolerance)
    assert set(back) == set(lora)
    for name in lora:
        torch.testing.assert_close(back.delta(name), lora.delta(name), rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("form", FORMS)
@cases
def test_a_batch_of_adapters_equals_one_at_a_time(case: Case, form: str) -> None:
    model = build(case)
    projections = find_projections(model)
    lora = FORMS[form](projections, adapters=3, dtype=case.dtype)
    ids = token_ids(3, SEQ, vocab=VOCABULARY)
    with torch.no_grad(), HookBasedLoRAInjector(model, projections) as injector:
        with injector.apply(lora):
            together = model(ids, use_cache=False).logits
        for i in range(3):
            with injector.apply(lora, adapter_index=[i, i, i]):
                same = model(ids, use_cache=False).logits
            with injector.apply(lora.select(i)):
                alone = model(ids[i : i + 1], use_cache=False).logits
            torch.testing.assert_close(together[i], same[i], rtol=0, atol=case.tolerance)
            loose = 1e-5 if case.float32_inside else case.tolerance
            torch.testing.assert_close(together[i], alone[0], rtol=0, atol=loose)
            assert (together[i] - same[i - 1]).abs().max() > 1e-3


# --- the probe itself can fail -----------------------------------------------------------------------------


def _wrong(attention: str, module: str, parts: tuple[str, ...], sizes: Any, output: str, *more: Source) -> Layout:
    fused = Source(module=module, parts=parts, sizes=sizes)
    return Layout(attention=attention, sources=(fused, *more, Source(module=output, parts=("o",))))


_K, _V = Source(module="k_proj", parts=("k",)), Source(module="v_proj", parts=("v",))


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("codegen", _wrong("CodeGenAttention", "qkv_proj", ("q", "k", "v"), lambda a: (4, (8, 8, 8)), "out_proj")),
        ("codegen", _wrong("CodeGenAttention", "qkv_proj", ("q", "v", "k"), lambda a: (1, (32, 32, 32)), "out_proj")),
        ("gpt_neox", _wrong("GPTNeoXAttention", "query_key_value", ("q", "k", "v"), lambda a: (1, (32, 32, 32)), "dense")),
        ("gpt_neox", _wrong("GPTNeoXAttention", "query_key_value", ("q", "k", "v"), lambda a: (2, (16, 16, 16)), "dense")),
        ("phi3", _wrong("Phi3Attention", "qkv_proj", ("q", "v", "k"), lambda a: (1, (32, 16, 16)), "o_proj")),
        (
            "qwen3_next",
            _wrong("Qwen3NextAttention", "q_proj", ("q", "gate"), lambda a: (1, (32, 32)), "o_proj", _K, _V),
        ),
        (
            "qwen3_next",
            _wrong("Qwen3NextAttention", "q_proj", ("gate", "q"), lambda a: (4, (8, 8)), "o_proj", _K, _V),
        ),
    ],
)  # fmt: skip
def test_a_wrong_layout_is_noticed(model_type: str, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.model_type == model_type)
    with pytest.raises(AssertionError):
        assert_arrives(build(case), case, monkeypatch, (layout,))

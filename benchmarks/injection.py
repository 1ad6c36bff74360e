"""The cost of LoRA injection: forward-pass time with one LoRA per row, relative to the unadapted model.

The injector is compared with the bare model, a plain einsum hook, and PEFT's mixed batch (``adapter_names``). All of
them use the same weights and the same adapters, and equal outputs are checked before anything is timed. In each round,
every contestant runs once, in a rotating order, and its time is divided by that of the bare model *in the same round*.
The median over rounds is reported, so load on the machine adds noise but no bias.

``core`` is the injector with factors that all adapters share and one core per adapter. ``hooks`` and the other
contestants have the same updates with a separate A and B per adapter.

There are two bases: the real SmolLM2-135M (separate projections), and a small random Qwen3-Next, whose DeltaNet keeps
q, k and v in one interleaved module. For the latter, ``scattered`` is the other exact form: A concatenated along rank,
B scattered once over the whole fused output.

On a CUDA device (``--device cuda``) the clock is read only after the device has finished all of its work.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, Qwen3NextConfig, Qwen3NextForCausalLM

from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.models import load_base
from promptlora.projections import Projection, find_projections, module_shape

EXAMPLE = """
example:
  python benchmarks/injection.py --quick
  python benchmarks/injection.py -o benchmarks/results/injection.json
  python benchmarks/injection.py --device cuda --dtype bfloat16 --base smollm2 --batch 1 16 64 --against core einsum
"""

Run = Callable[..., Any]
Contestant = tuple[PreTrainedModel | peft.PeftModel, Callable[[], AbstractContextManager[Any]], dict[str, Any]]


def random_lora(
    projections: Sequence[Projection],
    adapters: int,
    rank: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    shared: bool = False,
) -> LoRAWeights:
    """Random adapters, each with its own A and B, or with cores between shared factors."""
    torch.manual_seed(0)  # seeds every device
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    many = () if shared else (adapters,)
    matrices = {
        p.name: (
            torch.randn(*many, p.in_features, rank, **options) / p.in_features**0.5,
            torch.randn(*many, rank, p.out_features, **options) * 0.1,
        )
        for p in projections
    }
    if not shared:
        return LoRAWeights(matrices, 0.5, projections=projections)
    cores = {p.name: torch.randn(adapters, rank, rank, **options) / rank**0.5 for p in projections}
    return LoRAWeights.shared(matrices, cores, 0.5, projections=projections)


def free_lora(lora: LoRAWeights) -> LoRAWeights:
    """The same updates with a separate A and B per adapter, in their own memory."""
    matrices = {name: (A.contiguous(), B.contiguous()) for name, (A, B) in lora.items()}
    return LoRAWeights(matrices, lora.scaling, projections=lora.projections)


def physical_lora(model: nn.Module, lora: LoRAWeights) -> LoRAWeights:
    """The same updates on physical modules: A concatenated along rank, B scattered over the fused output."""
    groups: dict[str, list[Projection]] = {}
    for p in find_projections(model):
        groups.setdefault(p.module, []).append(p)
    matrices, projections = {}, []
    for name, members in groups.items():
        shape = module_shape(model.get_submodule(name))
        assert shape is not None, name
        d_in, d_out = shape
        wide = []
        for p in members:
            B = lora[p.name][1]
            wide.append(B.new_zeros(*B.shape[:2], d_out).index_copy(2, p.row_index().to(B.device), B))
        matrices[name] = (torch.cat([lora[p.name][0] for p in members], 2), torch.cat(wide, 1))
        projections.append(Projection(name=name, module=name, role="q", in_features=d_in, out_features=d_out))
    return LoRAWeights(matrices, lora.scaling, projections=projections)


# --- the contestants ---------------------------------------------------------------------------------------


@contextmanager
def injected(model: PreTrainedModel, lora: LoRAWeights) -> Iterator[None]:
    with HookBasedLoRAInjector(model, lora.projections) as injector, injector.apply(lora):
        yield


@contextmanager
def einsum_hooks(model: PreTrainedModel, lora: LoRAWeights) -> Iterator[None]:
    """The most direct implementation of a hook."""

    def hook_of(p: Projection) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        (A, B), scaling = lora[p.name], lora.scaling
        rows = None if p.rows is None else p.row_index().to(A.device)

        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            delta = torch.einsum("bsi,bir,bro->bso", args[0], A, B) * scaling
            return output + delta if rows is None else output.index_add(2, rows, delta)

        return hook

    with ExitStack() as stack:
        for p in lora.projections or ():
            handle = model.get_submodule(p.module).register_forward_hook(hook_of(p))
            stack.callback(handle.remove)
        yield


def peft_model(model: PreTrainedModel, lora: LoRAWeights) -> peft.PeftModel:
    """PEFT with one adapter per row, on the same base weights (shared, not copied)."""
    shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    ranks = {name: A.shape[2] for name, (A, _) in lora.items()}
    config = peft.LoraConfig(
        r=1, lora_alpha=lora.scaling, target_modules=list(ranks), rank_pattern=ranks,
        alpha_pattern={name: rank * lora.scaling for name, rank in ranks.items()},
    )  # fmt: skip
    wrapped = peft.get_peft_model(shared, config, adapter_name="0")
    for i in range(1, lora.adapters):
        wrapped.add_adapter(str(i), config)
    with torch.no_grad():
        for name, (A, B) in lora.items():
            layer = wrapped.base_model.model.get_submodule(name)
            for i in range(lora.adapters):
                layer.lora_A[str(i)].weight.copy_(A[i].T)
                layer.lora_B[str(i)].weight.copy_(B[i].T)
    return wrapped.eval()


OTHERS = ("core", "einsum", "peft", "scattered")


def contestants(model: PreTrainedModel, lora: LoRAWeights, others: Sequence[str] = OTHERS) -> dict[str, Contestant]:
    """The bare model, the injector with free A and B, and those of ``others`` that exist for this model and LoRA."""
    free = free_lora(lora)
    found: dict[str, Contestant] = {
        "bare": (model, nullcontext, {}),
        "hooks": (model, lambda: injected(model, free), {}),
    }
    if "core" in others and lora.is_shared:
        found["core"] = (model, lambda: injected(model, lora), {})
    if "einsum" in others:
        found["einsum"] = (model, lambda: einsum_hooks(model, free), {})
    if "peft" in others:
        names = [str(i) for i in range(lora.adapters)]
        found["peft"] = (peft_model(model, physical_lora(model, free)), nullcontext, {"adapter_names": names})
    if "scattered" in others and any(p.rows is not None for p in lora.projections or ()):
        fused = physical_lora(model, free)
        found["scattered"] = (model, lambda: injected(model, fused), {})
    return found


def check(found: dict[str, Contestant], ids: Tensor) -> None:
    """Check that all contestants except the bare model compute the same."""
    tolerance = 1e-3 if found["bare"][0].dtype == torch.float32 else 0.1
    logits = {}
    for name, (model, context, options) in found.items():
        with context():
            logits[name] = model(input_ids=ids, use_cache=False, logits_to_keep=1, **options).logits
    scale = logits["bare"].abs().max()
    for name, value in logits.items():
        error, moved = (value - logits["hooks"]).abs().max() / scale, (logits["bare"] - value).abs().max() / scale
        if name != "bare" and (not error <= tolerance or not moved >= 1e-2):  # written so that NaN fails
            raise SystemExit(f"{name}: differs from hooks by {error:.1e} and from the bare model by {moved:.1e}")


# --- timing ------------------------------------------------------------------------------------------------


def make_clock(device: torch.device | str = "cpu", cpu_time: bool = False) -> Callable[[], float]:
    """A clock in seconds that waits for the device before it is read, because CUDA kernels run asynchronously."""
    clock = time.process_time if cpu_time else time.perf_counter
    if torch.device(device).type != "cuda":
        return clock

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return clock()

    return synchronised


def measure(
    found: dict[str, Contestant], ids: Tensor, phase: str, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Median time of the bare model in ms, and the median and quartiles of each contestant's ratio to it."""
    step, cache = ids, None
    if phase == "decode":
        cache = DynamicCache(config=found["bare"][0].config)
        found["bare"][0](input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = ids[:, :1]
    croppable = getattr(found["bare"][0].config, "model_type", "") != "qwen3_next"
    names = list(found)
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):  # the first round is a warm-up
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            model, context, options = found[name]
            with context():
                start = clock()
                model(input_ids=step, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1, **options)
                seconds = clock() - start
            if cache is not None and croppable:
                cache.crop(-1)
            if turn:
                times[name].append(seconds)
    ratios = {}
    for name in names[1:]:
        pairs = sorted(t / bare for t, bare in zip(times[name], times["bare"], strict=True))
        low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
        ratios[name] = {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}
    return {"bare_ms": round(statistics.median(times["bare"]) * 1e3, 3), "ratio": ratios}


def qwen3_next() -> PreTrainedModel:
    """Three DeltaNet layers and one attention layer with few experts, so that projections dominate the time."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=1024, hidden_size=1024, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, linear_num_key_heads=8, linear_num_value_heads=16,
        linear_key_head_dim=64, linear_value_head_dim=64, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=256, shared_expert_intermediate_size=256,
    )  # fmt: skip
    model: PreTrainedModel = Qwen3NextForCausalLM(config).eval().requires_grad_(False)
    return model


def device_name(device: torch.device | str) -> str:
    """The name of a device on this machine."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu_name()


def available_device(text: str) -> str:
    """Parse an argument that is a device of this machine."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected cpu or cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda: torch finds no CUDA device on this machine; use cpu")
    return text


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=formatter)
    parser.add_argument("--base", nargs="+", choices=["smollm2", "qwen3_next"], default=["smollm2", "qwen3_next"])
    parser.add_argument("--phase", nargs="+", choices=["prefill", "decode"], default=["prefill", "decode"])
    parser.add_argument("--batch", nargs="+", type=int, default=None, help="rows, each with its adapter (1 4 8 16 64)")
    parser.add_argument("--rank", nargs="+", type=int, default=None, help="ranks (8 16 64)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the prefill and of the cache")
    parser.add_argument(
        "--rounds", type=int, default=None, help="rounds of prefill; decode takes four times as many (12)"
    )
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--device", type=available_device, default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of base and adapters")
    parser.add_argument("--against", nargs="*", choices=OTHERS, default=list(OTHERS), help="other ways to time (all)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of the processor, not of the wall: on a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="batch 1 and 8, rank 16, 3 rounds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    options.batch = options.batch or ([1, 8] if options.quick else [1, 4, 8, 16, 64])
    options.rank = options.rank or ([16] if options.quick else [8, 16, 64])
    options.rounds = options.rounds or (3 if options.quick else 12)
    if min(*options.batch, *options.rank, options.rounds - 1, options.tokens) < 1:
        parser.error("--batch, --rank and --tokens are at least 1, --rounds at least 2")
    return options


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    clock, dtype = make_clock(options.device, options.cpu_time), getattr(torch, options.dtype)
    report: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
        "threads": torch.get_num_threads(), "cpu": cpu_name(), "device": device_name(options.device), "dtype": options.dtype,
        "clock": "processor" if options.cpu_time else "wall", "tokens": options.tokens,
        "rounds": {"prefill": options.rounds, "decode": 4 * options.rounds}, "results": [],
    }  # fmt: skip
    total = len(options.base) * len(options.rank) * len(options.batch) * len(options.phase)
    done = itertools.count(1)
    for base in options.base:
        model = (load_base()[0] if base == "smollm2" else qwen3_next()).to(options.device, dtype)
        for rank, batch in itertools.product(options.rank, options.batch):
            lora = random_lora(find_projections(model), batch, rank, options.device, dtype, shared=True)
            ids = torch.randint(3, model.config.vocab_size, (batch, options.tokens), device=options.device)
            found = contestants(model, lora, options.against)
            check(found, ids[:, :8])
            for phase in options.phase:
                print(
                    f"\r[{next(done)}/{total}] {base} {phase} batch {batch} r {rank}   ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                rounds = options.rounds * (4 if phase == "decode" else 1)
                result = measure(found, ids, phase, rounds, clock)
                report["results"].append({"base": base, "phase": phase, "batch": batch, "rank": rank, **result})
            del found
    print(file=sys.stderr)
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    if options.json:
        print(text)
        return
    names = ["hooks", *options.against]
    print(
        f"torch {torch.__version__}, {report['threads']} threads, {report['device']}; ratio to the bare model (medians)"
    )
    print(f"{'base':12}{'phase':9}{'batch':>5}{'rank':>6}{'bare ms':>10}" + "".join(f"{name:>11}" for name in names))
    for row in report["results"]:
        ratios = "".join(f"{row['ratio'][n]['median']:11.3f}" if n in row["ratio"] else f"{'':11}" for n in names)
        print(f"{row['base']:12}{row['phase']:9}{row['batch']:5}{row['rank']:6}{row['bare_ms']:10.1f}{ratios}")


if __name__ == "__main__":
    main()

"""Checks on a GPU that results equal those of naive implementations, and measures speed; one card, less than 8 minutes.

It has three parts, all on the real base:

1. parity: hooks against merged weights and against one einsum per row, in float64 and float32, with gradients; a batch
that
   generates with one adapter per row against one row at a time; and a check that the base is bitwise unchanged;
2. injection: forward-pass time with one adapter per row, relative to the unadapted model (``benchmarks/injection.py``);
3. training: tokens per second of a training step, and the time of its stages (``benchmarks/training.py``).

Cases that would start after ``--minutes`` are skipped and listed, and failed cases are listed. The exit code is 0 if
all parity checks pass and no case failed.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from injection import (
    available_device,
    check,
    contestants,
    device_name,
    einsum_hooks,
    injected,
    make_clock,
    random_lora,
)
from injection import measure as measure_injection
from promptlora.errors import one_line
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import merge_lora
from promptlora.models import load_base
from promptlora.projections import find_projections
from runs import RESULTS, console, told, write_json
from training import measure as measure_training

EXAMPLE = """
example:
  python benchmarks/gpu.py --device cpu --quick
  python benchmarks/gpu.py --base BASE --data rows.jsonl -o gpu.json
"""

# Tolerances: largest difference of logits relative to their largest value, and of a matrix's gradient relative to its
# norm.
# After 30 layers, float32 gradients differ from those of float64 by 5e-5. transformers computes RMSNorm and rotary angles in
# float32 even in a float64 model, so that float64 logits differ by up to 7e-8 on an H100.
TOLERANCES = {"float64": (1e-6, 1e-6), "float32": (1e-4, 1e-3)}
TIE = 1e-3  # nats between two tokens that float32 may swap when the batch shape changes


# --- parity ------------------------------------------------------------------------------------------------


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference divided by the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def merged_rows(model: PreTrainedModel, lora: LoRAWeights, ids: Tensor) -> Tensor:
    """The logits of each row from a copy of the model with that row's adapter merged into the weights."""
    rows = []
    for i in range(len(ids)):
        twin = merge_lora(copy.deepcopy(model), lora.select(i))
        rows.append(logits(twin, ids[i : i + 1]))
        del twin
    return torch.cat(rows)


def looped_rows(model: PreTrainedModel, lora: LoRAWeights, ids: Tensor) -> Tensor:
    """The logits of each row, computed separately with an einsum after each projection."""
    rows = []
    for i in range(len(ids)):
        with einsum_hooks(model, lora.select(i)):
            rows.append(logits(model, ids[i : i + 1]))
    return torch.cat(rows)


def gradient_distance(model: PreTrainedModel, lora: LoRAWeights, ids: Tensor) -> float:
    """Largest distance, over all matrices, between gradients through the hooks and gradients through the einsum."""
    found = []
    for way in (injected, einsum_hooks):
        leaves = {n: (A.clone().requires_grad_(), B.clone().requires_grad_()) for n, (A, B) in lora.items()}
        with way(model, LoRAWeights(leaves, lora.scaling, projections=lora.projections)):
            logits(model, ids).log_softmax(-1)[..., 0].mean().backward()
        found.append([matrix.grad for pair in leaves.values() for matrix in pair if matrix.grad is not None])
    distances = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(*found, strict=True)]
    return float(torch.stack(distances).max())


def generate(model: Any, ids: Tensor, mask: Tensor, tokens: int) -> Tensor:
    new: Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return new[:, ids.shape[1] :]


@torch.no_grad()
def generation(model: PreTrainedModel, lora: LoRAWeights, prompt: int, tokens: int) -> dict[str, Any]:
    """Generate rows of different lengths and adapters in one batch and separately: equal, or different after a tie.

    Two tokens within ``TIE`` nats of each other are a tie, because float32 sums in another order for another batch.
    """
    rows, device = lora.adapters, lora.device
    lengths = [prompt - i % (prompt // 2) for i in range(rows)]
    ids = torch.randint(3, model.config.vocab_size, (rows, prompt), device=device)
    mask = torch.arange(prompt, device=device) >= prompt - torch.tensor(lengths, device=device)[:, None]
    ids = ids.where(mask, 0)
    equal, gaps = 0, []
    with HookBasedLoRAInjector(model) as injector:
        with injector.apply(lora):
            together = generate(model, ids, mask.long(), tokens)
        for i, length in enumerate(lengths):
            own = ids[i : i + 1, prompt - length :]
            with injector.apply(lora.select(i)):
                alone = generate(model, own, torch.ones_like(own), tokens)
                parted = (alone[0] != together[i]).nonzero()
                if not len(parted):
                    equal += 1
                    continue
                at = int(parted[0])
                scores = logits(model, torch.cat([own, alone[:, :at]], 1))[0, -1].log_softmax(-1)
            gaps.append(abs(float(scores[alone[0, at]] - scores[together[i, at]])))
    return {"rows": rows, "tokens": tokens, "equal": equal, "gaps": gaps, "ok": all(gap < TIE for gap in gaps)}


def parity(model: PreTrainedModel, device: str, quick: bool) -> dict[str, Any]:
    """Run every check on one float32 base; ``ok`` says whether all of them pass."""
    rows, tokens = (2, 6) if quick else (8, 48)
    projections = find_projections(model)
    torch.manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (rows, tokens), device=device)
    with torch.no_grad():
        before = logits(model, ids)
    found: dict[str, Any] = {}
    for name, (near_logits, near_gradients) in TOLERANCES.items():
        dtype = getattr(torch, name)
        twin = model if dtype == model.dtype else copy.deepcopy(model).to(dtype)
        lora = random_lora(projections, rows, 8, device, dtype)
        with torch.no_grad():
            with injected(twin, lora):
                hooks = logits(twin, ids)
            found[name] = {
                "merged": distance(hooks, merged_rows(twin, lora, ids)),
                "loop": distance(hooks, looped_rows(twin, lora, ids)),
                "moved": distance(hooks, logits(twin, ids)),
            }
        found[name]["gradients"] = gradient_distance(twin, lora, ids)
        near = max(found[name]["merged"], found[name]["loop"]) <= near_logits
        near = near and found[name]["gradients"] <= near_gradients
        found[name]["ok"] = near and found[name]["moved"] > 0.01
        del twin, lora, hooks
    found["generate"] = generation(model, random_lora(projections, rows, 8, device), tokens, 4 if quick else 24)
    with torch.no_grad():
        found["base"] = {"ok": bool(torch.equal(logits(model, ids), before))}
    return {"ok": all(part["ok"] for part in found.values()), **found}


# --- speed -------------------------------------------------------------------------------------------------


def injection_cases(quick: bool) -> Iterator[tuple[str, int, int, tuple[str, ...]]]:
    """Dtype, rank, rows, and other contestants to time; PEFT's loop over adapters is too slow for many adapters."""
    if quick:
        yield "float32", 4, 2, ("einsum", "peft")
        return
    for dtype in ("bfloat16", "float32"):
        for rank in (16, 64):
            for rows in (1, 16, 64):
                yield (
                    dtype,
                    rank,
                    rows,
                    ("core", "einsum", "peft") if rows <= 16 and dtype == "bfloat16" else ("core", "einsum"),
                )


@torch.no_grad()
def injection(
    model: PreTrainedModel, device: str, case: tuple[str, int, int, tuple[str, ...]], quick: bool
) -> list[Any]:
    """Prefill and decode of one case."""
    dtype, rank, rows, others = case
    twin = model if getattr(torch, dtype) == model.dtype else copy.deepcopy(model).to(getattr(torch, dtype))
    lora = random_lora(find_projections(twin), rows, rank, device, twin.dtype, shared=True)
    ids = torch.randint(3, model.config.vocab_size, (rows, 8 if quick else 128), device=device)
    found = contestants(twin, lora, others)
    check(found, ids[:, :8])
    made = []
    for phase, rounds in (("prefill", 2 if quick else 20), ("decode", 2 if quick else 30)):
        result = measure_injection(found, ids, phase, rounds, make_clock(device))
        made.append({"dtype": dtype, "phase": phase, "batch": rows, "rank": rank, "tokens": ids.shape[1], **result})
    return made


def training_case(
    options: argparse.Namespace, prompts: int, rows: int, source_layer: int, folder: Path
) -> dict[str, Any]:
    """One batch size, with the card's peak memory."""
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = measure_training(
        prompts, rows, 6 if options.quick else 40, "bfloat16", 8, 2 if options.quick else 12, folder,
        clock=make_clock(options.device), data=options.data, base=str(options.base or ""), attention="",
        hypernetwork={"source_layer": source_layer},
    )  # fmt: skip
    return {**result, "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None}


# --- the program -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=formatter)
    parser.add_argument("--device", type=available_device, default="cuda", help="cuda or cpu (default cuda)")
    parser.add_argument("--base", type=Path, help="folder of the base (default: the embedded one)")
    parser.add_argument("--data", type=Path, help="rows to train on, JSON lines (default: made-up ones of 40 words)")
    parser.add_argument("--minutes", type=float, default=7.5, help="no case begins after this time (default 7.5)")
    parser.add_argument("--quick", action="store_true", help="few rows, few tokens, two rounds: does it run?")
    parser.add_argument("-o", "--output", type=Path, help="results (benchmarks/results/gpu.json, with --quick none)")
    options = parser.parse_args(arguments)
    options.output = options.output or (None if options.quick else RESULTS / "gpu.json")
    return options


def table(report: dict[str, Any]) -> Iterator[str]:
    """The results as a few lines."""
    for name, part in report["parity"].items():
        if name != "ok":
            values = ", ".join(
                f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in part.items() if k != "ok"
            )
            yield f"parity {name:9}{'ok' if part['ok'] else 'FAILED':7}{values}"
    names = ("hooks", "einsum", "peft")
    yield f"{'dtype':10}{'phase':9}{'batch':>5}{'rank':>6}{'bare ms':>9}" + "".join(f"{name:>8}" for name in names)
    for row in report["injection"]:
        ratios = "".join(f"{row['ratio'][n]['median']:8.2f}" if n in row["ratio"] else f"{'':8}" for n in names)
        yield f"{row['dtype']:10}{row['phase']:9}{row['batch']:5}{row['rank']:6}{row['bare_ms']:9.2f}{ratios}"
    for row in report["training"]:
        parts = ", ".join(f"{stage} {ms:.1f}" for stage, ms in row["stages_ms"].items())
        peak = "" if row["peak_gib"] is None else f", {row['peak_gib']:.1f} GiB"
        yield (
            f"training {row['prompts']} x {row['rows_per_prompt']}: {row['step_tokens_per_second']:.0f} tok/s, "
            f"ratio to bare {row['ratio']:.2f}{peak}; ms: {parts}"
        )
    for case in report["failed"]:
        yield f"failed: {case}"
    for case in report["left_out"]:
        yield f"left out, no time: {case}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # otherwise the Trainer would use a visible GPU
    warnings.simplefilter("ignore")
    torch.set_float32_matmul_precision("highest")  # parity in float32 means float32
    started = time.perf_counter()
    model = load_base(options.base)[0].to(options.device)
    report: dict[str, Any] = {
        "device": device_name(options.device), "torch": torch.__version__, "cuda": torch.version.cuda,
        "transformers": transformers.__version__, "base": model.config.model_type,
        "layers": model.config.num_hidden_layers, "quick": options.quick, "parity": {}, "injection": [], "training": [],
        "left_out": [], "failed": [],
    }  # fmt: skip

    def done() -> None:  # called after each case, so that results are kept if the machine is lost
        report["seconds"] = round(time.perf_counter() - started, 1)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.output, report)

    def each(cases: Sequence[Any], name: str, work: Callable[[Any], None]) -> None:
        for case in cases:
            if time.perf_counter() - started > 60 * options.minutes:
                report["left_out"].append(f"{name} {case}")
                continue
            console.print(f"{time.perf_counter() - started:5.0f} s  {name} {case}", highlight=False)
            try:
                work(case)
            except (
                Exception
            ) as error:  # too few rows, too little memory, a fault: the other cases are measured all the same
                traceback.print_exc()
                report["failed"].append(f"{name} {case}: {one_line(error)}")
            done()

    each(["checks"], "parity", lambda _: report["parity"].update(parity(model, options.device, options.quick)))
    layer = min(20, max(1, model.config.num_hidden_layers - 1))
    sizes = [(2, 2)] if options.quick else [(8, 4), (32, 4), (64, 4)]
    with tempfile.TemporaryDirectory() as folder:
        each(
            sizes,
            "training",
            lambda size: report["training"].append(training_case(options, size[0], size[1], layer, Path(folder))),
        )
    each(
        list(injection_cases(options.quick)),
        "injection",
        lambda case: report["injection"].extend(injection(model, options.device, case, options.quick)),
    )
    done()
    print(f"{report['device']}, torch {report['torch']}, {report['seconds']:.0f} s")
    print("\n".join(table(report)))
    return 0 if report["parity"].get("ok") and not report["failed"] else 1


if __name__ == "__main__":
    sys.exit(told(main))

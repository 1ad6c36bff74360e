"""How much memory adapters take: bytes per prompt, thousands of prompts at once, and hypernetworks that write them.

``python benchmarks/adapter_sizes.py -o benchmarks/results/adapter_sizes.json``

There are three measurements. (1) Bytes of one bfloat16 adapter on SmolLM2-135M, both for adapters with their own A and
B and for cores between shared factors. (2) Resident memory of this process before and after it creates 10,000 adapters
with cores of rank 16, filled with random numbers so that every page is allocated. (3) Parameters of a hypernetwork for
Qwen3-Coder-Next by head kind, on the meta device. The base itself is never loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, find_projections

DTYPE = torch.bfloat16
FREE_RANKS, CORE_RANKS = (8, 16), (16, 32)
RESIDENT_RANK = 16


def free_lora(projections: Sequence[Projection], rank: int) -> LoRAWeights:
    matrices = {
        p.name: (torch.zeros(1, p.in_features, rank, dtype=DTYPE), torch.zeros(1, rank, p.out_features, dtype=DTYPE))
        for p in projections
    }
    return LoRAWeights(matrices, 1.0, projections=projections)


def shared_lora(projections: Sequence[Projection], adapters: int, rank: int, *, diagonal: bool = False) -> LoRAWeights:
    factors = {
        p.name: (torch.randn(p.in_features, rank, dtype=DTYPE), torch.randn(rank, p.out_features, dtype=DTYPE))
        for p in projections
    }
    shape = (adapters, rank) if diagonal else (adapters, rank, rank)
    cores = {p.name: torch.randn(shape, dtype=DTYPE) for p in projections}
    return LoRAWeights.shared(factors, cores, 1.0, projections=projections)


def resident() -> int:
    """Resident memory of this process in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def one_adapter(projections: Sequence[Projection]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for rank in FREE_RANKS:
        lora = free_lora(projections, rank)
        rows.append({"form": "free", "rank": rank, "bytes": lora.nbytes, "shared_bytes": lora.shared_nbytes})
    for form in ("core", "diagonal"):
        for rank in CORE_RANKS:
            lora = shared_lora(projections, 1, rank, diagonal=form == "diagonal")
            rows.append({"form": form, "rank": rank, "bytes": lora.nbytes, "shared_bytes": lora.shared_nbytes})
    return rows


def many_adapters(projections: Sequence[Projection], adapters: int) -> dict[str, Any]:
    before = resident()
    started = time.perf_counter()
    lora = shared_lora(projections, adapters, RESIDENT_RANK)
    seconds = time.perf_counter() - started
    after = resident()
    row = lora.select(adapters - 1)  # by reference
    assert row.delta(projections[0].name).isfinite().all()
    return {
        "adapters": adapters, "rank": RESIDENT_RANK, "bytes": lora.nbytes, "shared_bytes": lora.shared_nbytes,
        "process_before": before, "process_after": after, "grown": after - before, "seconds": round(seconds, 2),
    }  # fmt: skip


def hypernetworks() -> dict[str, Any]:
    from promptlora.hypernet.plan import plan_targets
    from promptlora.models import load_meta

    plan = plan_targets(load_meta("qwen3-coder-next"))
    heads = [
        {
            "head": head.kind, "heads": head.heads, "parameters": head.parameters,
            "adapter_bytes": head.adapter_bytes, "shared_bytes": head.shared_bytes,
        }
        for head in plan.heads
    ]  # fmt: skip
    return {
        "model": "qwen3-coder-next", "rank": plan.targets.rank, "context_size": plan.targets.context_size, "heads": heads,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000, help="adapters that are held in memory at once")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if options.adapters < 1:
        parser.error(f"--adapters: {options.adapters}. Expected 1 or more")
    from promptlora.models import load_meta

    projections = find_projections(load_meta(None))
    report: dict[str, Any] = {
        "torch": torch.__version__, "python": platform.python_version(), "dtype": "bfloat16",
        "one_adapter": one_adapter(projections),
        "resident": many_adapters(projections, options.adapters),
        "hypernetworks": hypernetworks(),
    }  # fmt: skip
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    for row in report["one_adapter"]:
        shared = f"  and {row['shared_bytes'] / 1e6:.2f} MB for all" if row["shared_bytes"] else ""
        print(f"{row['form']:10} rank {row['rank']:3} {row['bytes'] / 1e3:9.1f} kB a prompt{shared}")
    held = report["resident"]
    print(
        f"{held['adapters']:,} adapters with cores of rank {held['rank']}: {held['bytes'] / 1e6:.0f} MB, built in "
        f"{held['seconds']} s; the process {held['process_before'] / 1e6:.0f} -> {held['process_after'] / 1e6:.0f} MB"
    )
    for head in report["hypernetworks"]["heads"]:
        print(
            f"{head['head']:10} heads {head['heads'] / 1e6:7.1f} M, whole {head['parameters'] / 1e6:7.1f} M, one adapter "
            f"{head['adapter_bytes'] / 1e6:8.3f} MB"
        )


if __name__ == "__main__":
    main()

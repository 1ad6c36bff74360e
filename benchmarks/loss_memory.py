"""Memory of the loss: does its peak grow with answer tokens times vocabulary? Each case is measured in its own process.

Six routes compute the same cross-entropy and its gradient with respect to the hidden states. ``chunked`` is
``promptlora.losses`` as it is (with a frozen head, gradients are computed while the logits of a chunk exist).
``recomputed`` runs the same chunks under ``torch.utils.checkpoint``, as the package does for a trained head. ``full``
is one call on all logits. ``torch`` is ``torch.nn.functional.linear_cross_entropy`` with one loss per position, which
the package needs to weight rows, and with torch's own chunk size; ``torch_chunk`` uses the package's chunk size.
``torch_mean`` is the same function with one mean over all positions, which the package cannot use.

The baseline of a case is the peak resident memory of its process (``ru_maxrss``) after imports, with the head's weight,
hidden states and labels in memory; the result is how far forward and backward raise that peak. The slope is the
increase from a route's fewest to its most tokens, in bytes per token. A process starts with the ``ru_maxrss`` of its
parent, so an intermediate process that does not import torch starts each case. A case that needs more memory than
``--limit-gb``, or than is free, is not run; the report then gives the computed size: logits, their log-softmax and its
gradient, 4 bytes each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptlora.files import replacing_file

EXAMPLE = """
example:
  python benchmarks/loss_memory.py --vocab 16384 --tokens 512 3072 --chunk 256
  python benchmarks/loss_memory.py -o benchmarks/results/loss_memory.json
"""
ROUTES = ("chunked", "recomputed", "full", "torch", "torch_chunk", "torch_mean")
GB = 10**9


# --- one case, in its own process ----------------------------------------------------------------------------


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_case(route: str, tokens: int, vocab: int, hidden: int, chunk: int, threads: int) -> dict[str, Any]:
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from promptlora.losses import answer_positions, sft_loss

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    weight = torch.randn(vocab, hidden) / hidden**0.5
    weight.requires_grad_(route == "recomputed")  # its gradient is not computed below
    states = torch.randn(1, tokens + 1, hidden, requires_grad=True)
    labels = torch.randint(vocab, (1, tokens + 1))

    def loss(states: Tensor, labels: Tensor) -> Tensor:
        if route.startswith("torch"):
            rows, columns = answer_positions(labels)
            auto = torch.nn.LinearCrossEntropyOptions()
            fixed = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None)
            sizes = fixed if route == "torch_chunk" and len(rows) > chunk else auto
            each = F.linear_cross_entropy(
                states[rows, columns],
                weight,
                labels[rows, columns + 1],
                reduction="mean" if route == "torch_mean" else "none",
                options=sizes,
            )
            return each.mean()
        size = states.shape[1] if route == "full" else chunk
        return sft_loss(states, labels, lambda h: F.linear(h, weight), chunk=size)

    def step(states: Tensor, labels: Tensor) -> tuple[float, float, Tensor, Tensor]:
        started = time.process_time()
        value = loss(states, labels)
        middle = time.process_time()
        (slope,) = torch.autograd.grad(value, states)
        return middle - started, time.process_time() - middle, value.detach(), slope

    step(states[:, :2], labels[:, :2])  # allocate the libraries' own buffers
    before = peak()
    forward, backward, value, slope = step(states, labels)
    return {
        "baseline_bytes": before, "rise_bytes": peak() - before, "forward_s": round(forward, 3),
        "backward_s": round(backward, 3), "loss": value.item(), "slope_norm": slope.norm().item(),
        "torch": torch.__version__,
    }  # fmt: skip


# --- all of them ---------------------------------------------------------------------------------------------


def available() -> int:
    """Bytes that are available without swapping; a large number if the system does not report it."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else 2**62


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(options: argparse.Namespace, route: str, tokens: int) -> dict[str, Any]:
    """Run the case in a process; returns its result, or the reason why it was not run."""
    logits = min(tokens, tokens if route == "full" else options.chunk) * options.vocab * 4
    needed, free = 3 * logits, available()
    case = {"route": route, "tokens": tokens, "all_logits_bytes": tokens * options.vocab * 4}
    for limit, words in ((options.limit_gb * GB, "the limit"), (free, "what is free")):
        if needed > limit:
            why = f"3 x {logits / GB:.1f} GB (logits, log-softmax, gradient) exceed {words}, {limit / GB:.1f} GB"
            return case | {"not_run": why}
    arguments = [route, tokens, options.vocab, options.hidden, options.chunk, options.threads]
    command = [sys.executable, str(Path(__file__).resolve()), "--case", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{route}, {tokens} tokens: {run.stderr.strip()[-400:] or f'exit code {run.returncode}'}")
    return {**case, **json.loads(run.stdout)}


def slope(cases: Sequence[dict[str, Any]], chunk: int) -> float | None:
    """Bytes per token between the fewest and the most tokens; with chunks, only cases of more than one chunk count."""
    ran = [
        c for c in cases if "rise_bytes" in c and (c["tokens"] > chunk or c["route"] not in ("chunked", "recomputed"))
    ]
    if len(ran) < 2:
        return None
    low, high = min(ran, key=lambda c: c["tokens"]), max(ran, key=lambda c: c["tokens"])
    found: float = (high["rise_bytes"] - low["rise_bytes"]) / (high["tokens"] - low["tokens"])
    return round(found, 1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=formatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 1024, 2048, 8192, 32768], help="answer tokens")
    parser.add_argument("--route", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=256, help="width of the hidden states")
    parser.add_argument("--chunk", type=int, default=1024, help="positions whose logits exist at one time")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--limit-gb", type=float, default=10.0, help="most memory that a case may need")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if min(*options.tokens, options.vocab, options.hidden, options.chunk, options.threads) < 1:
        parser.error("--tokens, --vocab, --hidden, --chunk and --threads are at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    results = []
    cases = list(itertools.product(options.route, sorted(options.tokens)))
    for i, (route, tokens) in enumerate(cases, 1):
        print(f"\r[{i}/{len(cases)}] {route}, {tokens} tokens      ", end="", file=sys.stderr, flush=True)
        results.append(measure(options, route, tokens))
    print(file=sys.stderr)
    slopes = {route: slope([r for r in results if r["route"] == route], options.chunk) for route in options.route}
    report: dict[str, Any] = {
        "torch": next((r.pop("torch") for r in results if "torch" in r), None), "threads": options.threads,
        "cpu": cpu_name(), "clock": "processor", "dtype": "float32", "vocabulary": options.vocab,
        "hidden": options.hidden, "chunk": options.chunk, "limit_gb": options.limit_gb,
        "logits_bytes_per_token": 4 * options.vocab, "bytes_per_token": slopes,
        "results": [{k: v for k, v in r.items() if k != "torch"} for r in results],
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    if options.output:
        with replacing_file(options.output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
        return
    print(f"torch {report['torch']}, {report['threads']} threads, {report['cpu']}; vocabulary {options.vocab:,}")
    print(f"{'route':12}{'tokens':>8}{'all logits':>12}{'baseline':>10}{'rise':>10}{'forward':>10}{'backward':>10}")
    for r in results:
        head = f"{r['route']:12}{r['tokens']:8,}{r['all_logits_bytes'] / GB:9.2f} GB"
        if "not_run" in r:
            print(f"{head}  not run: {r['not_run']}")
            continue
        seconds = f"{r['forward_s']:8.1f} s{r['backward_s']:8.1f} s"
        print(f"{head}{r['baseline_bytes'] / GB:7.2f} GB{r['rise_bytes'] / GB:7.2f} GB{seconds}")
    for route, value in slopes.items():
        words = (
            "too few cases"
            if value is None
            else f"{value:,.0f} bytes a token (a token's logits: {4 * options.vocab:,})"
        )
        print(f"slope of {route}: {words}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(run_case(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        main()

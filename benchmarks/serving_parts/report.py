"""What the rounds of ``serving.py`` say: ratios within a round, memory, break-even points, and the aims they are held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ENGINE = ("adapters", "context", "prefix cache")
HTTP = ("adapters over HTTP", "prefix cache over HTTP")
VLLM = ("vLLM adapters", "vLLM prefix cache")
ARMS = (*ENGINE, "generate", *HTTP, *VLLM)
SAME = {  # arms whose answers must be those of another arm
    "adapters": "generate", "vLLM adapters": "generate", "context": "prefix cache", "vLLM prefix cache": "prefix cache",
}  # fmt: skip
_GB = 1_000_000_000
_FEW = 4  # steps


def complete(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a cell in which every arm has run."""
    return [each for each in part["rounds"] if all(arm in each for arm in part["requests"])]


def cell(part: Mapping[str, Any], length: int, settings: Mapping[str, Any], clock: str) -> dict[str, Any] | None:
    """The figures of one workload with prompts of one length; None before its first complete round.

    Args:
        part: ``requests`` of each arm, ``adapter``, ``idle`` and ``rounds``.
        length: Tokens of a prompt.
        settings: ``output_tokens`` and ``kv_bytes``, the bytes of keys and values of one token.
        clock: ``wall`` or ``processor``.
    """
    rounds = complete(part)
    if not rounds:
        return None
    counts: dict[str, int] = part["requests"]
    each = {arm: [one[arm][clock] / counts[arm] for one in rounds] for arm in counts}  # seconds per request
    seconds = {arm: statistics.median(values) for arm, values in each.items()}

    def ratio(arm: str, to: str) -> float | None:
        """Of seconds per request, within a round."""
        if arm not in each or to not in each:
            return None
        found: float = statistics.median(a / b for a, b in zip(each[arm], each[to], strict=True))
        return round(found, 3)

    def middle(arm: str, what: str, q: str, factor: float = 1e3) -> float | None:
        found = [one[arm][what][q] for one in rounds if what in one[arm]]
        return round(factor * statistics.median(found), 1) if found else None

    arms = {}
    for arm in counts:
        arms[arm] = {
            "requests": counts[arm],
            "seconds_per_request": round(seconds[arm], 4),
            "tokens_per_second": round(settings["output_tokens"] / seconds[arm], 1),
            "relative_to_generate": ratio(arm, "generate"),
            "first_token_ms": {q: middle(arm, "first_token", q) for q in ("p50", "p99")},
            "between_tokens_ms": {q: middle(arm, "between_tokens", q) for q in ("p50", "p99")},
        }
    equal = {}
    for arm, other in SAME.items():
        if arm in counts and other in counts:
            pairs = [p for one in rounds for p in zip(one[arm]["answers"], one[other]["answers"], strict=False)]
            equal[arm] = f"{sum(a == b for a, b in pairs)} of {len(pairs)} answers are those of '{other}'"
    adapter, kv = int(part["adapter"]["bytes"]), int(settings["kv_bytes"]) * length
    write = part["adapter"][clock]
    read = statistics.median(one["prefix cache"]["prompt_seconds"] for one in rounds)
    loads = [one[arm]["load"] for one in rounds for arm in counts if "load" in one[arm]]
    return {
        "arms": arms,
        "equal_answers": equal,
        "load_average": [round(min(loads), 1), round(max(loads), 1)] if loads else None,
        "ratios": {
            "throughput of 'adapters' / 'generate'": ratio("generate", "adapters"),
            "time of 'context' / 'adapters'": ratio("context", "adapters"),
            "time of 'adapters' / 'prefix cache'": ratio("adapters", "prefix cache"),
            "time of 'vLLM adapters' / 'adapters'": ratio("vLLM adapters", "adapters"),
            "time of 'vLLM prefix cache' / 'adapters'": ratio("vLLM prefix cache", "adapters"),
            "time of 'adapters over HTTP' / 'adapters'": ratio("adapters over HTTP", "adapters"),
        },
        "first_token_steps": {q: middle("adapters", "first_token_steps", q, 1) for q in ("p50", "p99")},
        "between_tokens_alone_ms": {q: round(1e3 * value, 1) for q, value in part["idle"].items()},
        "p99_relative_to_alone": round(
            statistics.median(one["adapters"]["between_tokens"]["p99"] for one in rounds) / part["idle"]["p99"], 2
        ),
        "memory": memory(adapter, kv, settings["itemsize"]),
        "break_even": break_even(seconds, write, read),
        "reused_tokens_per_request": {
            arm: round(statistics.median(one[arm]["reused_tokens"] for one in rounds) / counts[arm], 1)
            for arm in (*ENGINE, *HTTP)
            if arm in counts
        },
    }


def memory(adapter: int, kv: int, itemsize: int) -> dict[str, Any]:
    """Bytes of a resident prompt in the engine's dtype, and with the adapter's cores in bfloat16.

    Args:
        adapter: Bytes of an adapter in the engine's dtype.
        kv: Bytes of the keys and values of a prompt in the engine's dtype.
        itemsize: Bytes of a number in the engine's dtype.
    """
    half = adapter * 2 // itemsize
    return {
        "bytes": {"adapter": adapter, "adapter in bfloat16": half, "prefix cache": kv},
        "prompts_per_gb": {"adapter": _GB // adapter, "adapter in bfloat16": _GB // half, "prefix cache": _GB // kv},
        "adapters_relative_to_prefix_cache": round(kv / adapter, 1),
        "adapters_in_bfloat16_relative_to_prefix_cache": round(kv / half, 1),
    }


def break_even(seconds: Mapping[str, float], write: float, read: float) -> dict[str, Any]:
    """From how many requests of one prompt on an adapter takes less time in all; None where it never does.

    Args:
        seconds: Seconds per request of each arm, the prompt's own cost aside.
        write: Seconds to write an adapter.
        read: Seconds to read a prompt into the prefix cache.
    """

    def uses(first: float, other: str) -> float | None:
        saved = seconds[other] - seconds["adapters"]
        return max(0.0, round(first / saved, 2)) if saved > 0 else None

    slower = seconds["adapters"] - seconds["prefix cache"]
    return {
        "seconds_to_write_an_adapter": round(write, 4),
        "seconds_to_read_the_prompt": round(read, 4),
        "requests_of_a_prompt_to_beat_context": uses(write, "context"),
        "requests_of_a_prompt_to_beat_prefix_cache": uses(write - read, "prefix cache"),
        # A prompt that is not in the cache is read again; an adapter is kept.
        "misses_of_the_prefix_cache_from_which_adapters_are_faster": round(max(0.0, slower / read), 3),
    }


def by_length(cells: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt lengths from which an adapter is faster than the prompt in the context, and smaller than its cache.

    Args:
        cells: The figures of a workload, by prompt length.
        settings: ``kv_bytes``.
    """
    known = sorted((int(length), one["arms"]) for length, one in cells.items())
    smallest = next(iter(cells.values()))["memory"]["bytes"]["adapter"] / settings["kv_bytes"]
    found: dict[str, Any] = {"smaller_from_prompt_tokens": round(smallest, 1), "faster_than_context_from_tokens": None}
    if len(known) > 1:
        (short, first), (long, last) = known[0], known[-1]
        slope = (last["context"]["seconds_per_request"] - first["context"]["seconds_per_request"]) / (long - short)
        adapters = statistics.mean(arms["adapters"]["seconds_per_request"] for _, arms in known)
        start = first["context"]["seconds_per_request"] - slope * short
        if slope > 0:
            found["faster_than_context_from_tokens"] = max(0, round((adapters - start) / slope))
    return found


def aims(length: int, one: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Each aim for one cell: what, what is wanted, what was measured, and whether it is reached."""
    ratios = one["ratios"]
    context = 3.0 if length >= 400 else 1.0
    rows: list[tuple[str, float | None, Callable[[float], bool], str]] = [
        ("throughput, relative to `generate`", ratios["throughput of 'adapters' / 'generate'"], lambda x: x >= 0.9, "≥ 0.9"),
        ("steps to the first token, median", one["first_token_steps"]["p50"], lambda x: x <= _FEW, f"≤ {_FEW}"),
        ("time of `context` relative to `adapters`", ratios["time of 'context' / 'adapters'"],
         lambda x: x >= context if context > 1 else x > 1, f"{'≥ 3' if context > 1 else '> 1'}"),
        ("time relative to `prefix cache`", ratios["time of 'adapters' / 'prefix cache'"], lambda x: x <= 1.25, "≤ 1.25"),
        ("prompts per GB, relative to `prefix cache`", one["memory"]["adapters_relative_to_prefix_cache"], lambda x: x >= 20, "≥ 20"),
        ("p99 time between tokens, relative to the p99 of a request alone", one["p99_relative_to_alone"], lambda x: x <= 2, "≤ 2"),
    ]  # fmt: skip
    return [(what, wanted, f"{value:g}", reached(value)) for what, value, reached, wanted in rows if value is not None]


def grid(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    settings, summary = report["settings"], report["summary"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    text = [
        "# Serving: adapters, prompts in the context, prefix caches\n\n"
        "Written by `benchmarks/serving.py`, which says what each arm does; the figures come from `serving.json`.\n\n"
        f"{report['cpu']}; {settings['threads']} thread of torch; {settings['dtype']}; {versions}. Inputs of {settings['input_tokens']} tokens, "
        f"answers of {settings['output_tokens']}, {settings['in_flight']} requests in flight. The clock is the {report['clock']} clock. "
        "Ratios are medians over rounds of ratios within a round.\n",
        *(f"Left out: `{arm}`: {why}.\n" for arm, why in report["left_out"].items()),
    ]
    for workload, lengths in summary.items():
        requests, prompts = workload.split("/")
        for length, one in lengths["lengths"].items():
            rounds = len(complete(report["workloads"][workload][length]))
            text.append(
                f"## {requests} requests, {prompts} prompts of {length} tokens ({rounds} round{'s' if rounds > 1 else ''})\n"
            )
            rows = [
                [f"`{arm}`", a["requests"], a["seconds_per_request"], a["tokens_per_second"], a["relative_to_generate"],
                 *a["first_token_ms"].values(), *a["between_tokens_ms"].values()]
                for arm, a in one["arms"].items()
            ]  # fmt: skip
            head = ["arm", "requests", "seconds per request", "tokens/s", "time / `generate`", "first token p50, ms",
                    "p99", "between tokens p50, ms", "p99"]  # fmt: skip
            text.append(grid(head, rows) + "\n")
            text.append(
                f"A request that runs alone: {one['between_tokens_alone_ms']['p50']} ms between tokens (p99 {one['between_tokens_alone_ms']['p99']} ms). "
                + "; ".join(f"`{arm}`: {value}" for arm, value in one["equal_answers"].items())
                + ". Input tokens that a cache held, for each request: "
                + ", ".join(f"`{arm}` {value:g}" for arm, value in one["reused_tokens_per_request"].items())
                + "."
                + (
                    " Load average of the machine at the end of an arm: {} to {}.".format(*one["load_average"])
                    if one["load_average"]
                    else ""
                )
                + "\n"
            )
            rows = [[*row[:3], "reached" if row[3] else "missed"] for row in aims(int(length), one)]
            text.append(grid(["aim for `adapters`", "wanted", "measured", ""], rows) + "\n")
        text.append(f"## Memory and break-even, {prompts} prompts\n")
        rows = []
        for length, one in lengths["lengths"].items():
            each, even = one["memory"], one["break_even"]
            rows.append([
                length, *(f"{value / 1000:,.0f}" for value in each["bytes"].values()),
                *(f"{value:,}" for value in each["prompts_per_gb"].values()),
                even["seconds_to_write_an_adapter"], even["seconds_to_read_the_prompt"],
                *("never" if even[name] is None else even[name] for name in (
                    "requests_of_a_prompt_to_beat_context", "requests_of_a_prompt_to_beat_prefix_cache")),
                f"{even['misses_of_the_prefix_cache_from_which_adapters_are_faster']:.1%}",
            ])  # fmt: skip
        head = ["prompt tokens", "kB: adapter", "adapter, bfloat16", "prefix cache", "prompts per GB: adapters", "adapters, bfloat16",
                "prefix cache", "s to write an adapter", "s to read the prompt", "requests of a prompt until an adapter beats `context`",
                "… beats `prefix cache`", "misses of the prefix cache from which adapters are faster"]  # fmt: skip
        text.append(grid(head, rows) + "\n")
        even = lengths["by_length"]
        faster = even["faster_than_context_from_tokens"]
        text.append(
            f"An adapter is smaller than the prefix cache of its prompt from {even['smaller_from_prompt_tokens']} prompt tokens on"
            + ("" if faster is None else f", and faster than the prompt in the context from {faster} tokens on")
            + ".\n"
        )
    return "\n".join(text)

"""Serves many prompts at once: adapters against prompts in the context, on one engine and in one run.

    python benchmarks/serving.py -o benchmarks/results/serving-engine.json

Requests of 40 tokens get answers of 24 tokens. Each request belongs to one of the prompts, and a fixed number of
requests is in flight at any time. The arms are:

* ``adapters``: the engine, each request with the adapter of its prompt;
* ``context``: the engine runs the base, which reads the prompt before each input;
* ``prefix cache``: the same, but the keys and values of all prompts are already cached;
* ``generate``: ``Host.generate`` with the adapters, in whole batches, as the upper bound;
* ``generate context``: the same with the prompt before each input, padded to one length.

In each round every arm runs once, in a rotating order, on the same requests. Times are divided by those of ``generate``
in the same round, and the median over rounds is reported. The answers of ``adapters`` must equal those of ``generate``.
End tokens are disabled, so that all arms do the same work.

A stopped run resumes with the missing parts; a result file with other settings is refused. ``--quick`` only checks that
everything runs; its times are meaningless. ``--clock processor`` divides processor times, for a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from injection import cpu_name
from promptlora import PromptLoRA
from promptlora.engine import AdapterCache, Engine, Sampling
from promptlora.errors import ConfigError
from promptlora.lora import LoRAWeights
from promptlora.text import pad_rows
from runs import RESULTS, console, positive, told, write_json

ARMS = ("adapters", "context", "prefix cache", "generate", "generate context")
_GB = 1_000_000_000


@dataclass(frozen=True)
class Request:
    """One request: the prompt that it belongs to, and its input."""

    prompt: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Prompts of one length and the requests that use them."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    requests: tuple[Request, ...]


def make_workload(lm: PromptLoRA, options: argparse.Namespace, length: int) -> Workload:
    """Random words as prompts of ``length`` tokens, and as inputs."""
    draw = torch.Generator().manual_seed(length)
    vocabulary = [
        token
        for token in range(1000, 8000)
        if (text := lm.tokenizer.decode([token])).startswith(" ") and text[1:].isalpha() and text.isascii()
    ]

    def words(count: int) -> tuple[int, ...]:
        chosen = torch.randint(len(vocabulary), (count,), generator=draw).tolist()
        return tuple(vocabulary[i] for i in chosen)

    prompts = tuple(words(length) for _ in range(options.prompts))
    texts = tuple(str(lm.tokenizer.decode(list(ids))) for ids in prompts)
    requests = tuple(Request(i % options.prompts, words(options.input_tokens)) for i in range(options.requests))
    return Workload(texts, prompts, requests)


# --- one arm ------------------------------------------------------------------------------------------------------


def write_adapters(lm: PromptLoRA, workload: Workload) -> tuple[list[LoRAWeights], dict[str, float]]:
    """The adapters of all prompts, written through the engine, and their cost."""
    lm.states.clear()
    _ = lm.states.embedder if "embedder" in lm.hypernetwork.config.source else None  # loaded before the clock starts
    with Engine(lm, cache=AdapterCache(lm)) as engine:
        engine.adapter("A first prompt.").result()
        began, worked = time.perf_counter(), time.process_time()
        entries = [future.result() for future in [engine.adapter(text) for text in workload.texts]]
        wall, processor = time.perf_counter() - began, time.process_time() - worked
    count = len(entries)
    costs = {"wall": wall / count, "processor": processor / count, "bytes": entries[0].nbytes}
    return [entry.lora for entry in entries], costs


def serve(
    lm: PromptLoRA, options: argparse.Namespace, workload: Workload, adapters: Sequence[LoRAWeights] | None, share: bool
) -> dict[str, Any]:
    """Send requests with a fixed number in flight; returns total time, times to first tokens and between tokens."""
    inputs = [
        request.ids if adapters is not None else (*workload.prompts[request.prompt], *request.ids)
        for request in workload.requests
    ]
    longest = max(map(len, inputs)) + options.output_tokens
    held = sum(map(len, workload.prompts)) if share and adapters is None else 0
    room = (longest + 32) * options.in_flight * 2 + 2 * held  # so that no page is evicted
    firsts: list[float] = []
    gaps: list[float] = []
    answers: dict[int, list[int]] = {}
    todo = iter(range(len(inputs)))
    lock = threading.Lock()
    sampling = Sampling(max_tokens=options.output_tokens)
    with Engine(
        lm,
        max_batch=options.in_flight,
        max_prefill_tokens=options.prefill_tokens,
        kv_tokens=room,
        share_prefixes=share,
    ) as engine:

        def client() -> None:
            while True:
                with lock:
                    number = next(todo, None)
                if number is None:
                    return
                adapter = None if adapters is None else adapters[workload.requests[number].prompt]
                last = time.perf_counter()
                ids: list[int] = []
                for piece in engine.submit(inputs[number], adapter, sampling):
                    now = time.perf_counter()
                    (gaps if ids else firsts).append(now - last)
                    last = now
                    ids += piece.token_ids
                answers[number] = ids

        warm = [] if held else [inputs[0]]
        for ids in [*warm, *(workload.prompts if held else ())]:
            list(engine.submit(ids, None if adapters is None else adapters[0], Sampling(max_tokens=2)))
        before = engine.stats
        clients = [threading.Thread(target=client) for _ in range(options.in_flight)]
        began, worked = time.perf_counter(), time.process_time()
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        wall, processor = time.perf_counter() - began, time.process_time() - worked
        reused = engine.stats.reused_tokens - before.reused_tokens
    return {
        "wall": wall,
        "processor": processor,
        "first_token": quantiles(firsts),
        "between_tokens": quantiles(gaps),
        "reused_tokens": reused,
        "answers": [answers[i] for i in range(len(inputs))],
    }


def generate(
    lm: PromptLoRA, options: argparse.Namespace, workload: Workload, adapters: Sequence[LoRAWeights] | None
) -> dict[str, Any]:
    """Run the same requests in whole batches."""
    answers = []
    began, worked = time.perf_counter(), time.process_time()
    lora = None if adapters is None else LoRAWeights.stack(adapters)
    for start in range(0, len(workload.requests), options.in_flight):
        some = workload.requests[start : start + options.in_flight]
        rows = [one.ids if adapters is not None else (*workload.prompts[one.prompt], *one.ids) for one in some]
        ids, mask = pad_rows(rows, lm.host.pad, left=True)
        index = None if lora is None else [one.prompt for one in some]
        out = lm.host.generate(ids, mask, lora, index, max_new_tokens=options.output_tokens, eos_token_id=None)
        answers += out.tolist()
    return {
        "wall": time.perf_counter() - began,
        "processor": time.process_time() - worked,
        "answers": answers,
    }


def idle(lm: PromptLoRA, options: argparse.Namespace, workload: Workload, adapter: LoRAWeights) -> dict[str, float]:
    """Seconds between the tokens of a request that runs alone."""
    gaps: list[float] = []
    with Engine(lm, max_batch=1, max_prefill_tokens=options.prefill_tokens) as engine:
        for request in workload.requests[:3]:
            last = None
            for _ in engine.submit(request.ids, adapter, Sampling(max_tokens=options.output_tokens)):
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now
    return quantiles(gaps)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]}


# --- all arms -----------------------------------------------------------------------------------------------------


def run(lm: PromptLoRA, options: argparse.Namespace, report: dict[str, Any], save: Callable[[], None]) -> None:
    """Run the measurements that the report does not have yet."""
    for length in options.prompt_tokens:
        part = report["lengths"].setdefault(str(length), {"rounds": []})
        if sum(len(each) == len(ARMS) for each in part["rounds"]) >= options.rounds:
            continue
        workload = make_workload(lm, options, length)
        adapters, costs = write_adapters(lm, workload)
        if "adapter" not in part:
            part["adapter"] = costs
            part["idle"] = idle(lm, options, workload, adapters[0])
            save()
        arms: dict[str, Callable[[], dict[str, Any]]] = {
            "adapters": lambda w=workload, a=adapters: serve(lm, options, w, a, True),
            "context": lambda w=workload: serve(lm, options, w, None, False),
            "prefix cache": lambda w=workload: serve(lm, options, w, None, True),
            "generate": lambda w=workload, a=adapters: generate(lm, options, w, a),
            "generate context": lambda w=workload: generate(lm, options, w, None),
        }
        for number in range(options.rounds):
            if number >= len(part["rounds"]):
                part["rounds"].append({})
            found = part["rounds"][number]
            for i in range(len(ARMS)):
                arm = ARMS[(i + number) % len(ARMS)]
                if arm in found:
                    continue
                console.print(f"prompts of {length} tokens, round {number + 1}: {arm}", highlight=False)
                result = arms[arm]()
                result["answers"] = [answer[: options.output_tokens] for answer in result["answers"]]
                found[arm] = {**result, "answers": fold(result["answers"])}
                save()


def fold(answers: Sequence[Sequence[int]]) -> list[str]:
    """Answers as short texts, so that two arms can be compared in the file."""
    return ["-".join(map(str, answer)) for answer in answers]


def summary(report: dict[str, Any], kv_bytes: int, clock: str) -> dict[str, Any]:
    """Ratios, latencies, and the number of requests from which an adapter pays off."""
    options, found = report["settings"], {}
    for length, part in report["lengths"].items():
        rounds = [each for each in part["rounds"] if len(each) == len(ARMS)]
        if not rounds:
            continue
        seconds = {arm: [each[arm][clock] for each in rounds] for arm in ARMS}
        of_one = {arm: statistics.median(times) / options["requests"] for arm, times in seconds.items()}
        ratio = {
            arm: statistics.median(t / g for t, g in zip(times, seconds["generate"], strict=True))
            for arm, times in seconds.items()
        }
        equal = sum(
            a == b
            for each in rounds
            for a, b in zip(each["adapters"]["answers"], each["generate"]["answers"], strict=True)
        )
        adapter, kv = part["adapter"], kv_bytes * int(length)
        saved = of_one["context"] - of_one["adapters"]
        served = [each["adapters"] for each in rounds]
        found[length] = {
            "time_relative_to_generate": {arm: round(value, 3) for arm, value in ratio.items()},
            "tokens_per_second": {arm: round(options["output_tokens"] / one, 2) for arm, one in of_one.items()},
            "throughput_of_generate": round(1 / ratio["adapters"], 3),
            "adapters_relative_to": {
                arm: round(statistics.median(a / b for a, b in zip(seconds["adapters"], seconds[arm], strict=True)), 3)
                for arm in ("context", "prefix cache", "generate context")
            },
            "first_token_ms": {
                arm: {
                    q: round(1e3 * statistics.median(each[arm]["first_token"][q] for each in rounds))
                    for q in ("p50", "p99")
                }
                for arm in ARMS[:3]
            },
            "between_tokens_ms": {
                arm: {
                    q: round(1e3 * statistics.median(each[arm]["between_tokens"][q] for each in rounds))
                    for q in ("p50", "p99")
                }
                for arm in ARMS[:3]
            },
            "between_tokens_alone_ms": {q: round(1e3 * value) for q, value in part["idle"].items()},
            "p99_relative_to_alone": round(
                statistics.median(each["between_tokens"]["p99"] for each in served) / part["idle"]["p50"], 2
            ),
            "equal_answers": f"{equal} of {len(rounds) * options['requests']}",
            "adapter_bytes": adapter["bytes"],
            "prefix_bytes": kv,
            "prompts_per_gb": {"adapters": _GB // adapter["bytes"], "prefix cache": _GB // kv},
            "adapter_seconds": round(adapter[clock], 4),
            "requests_until_an_adapter_pays": round(adapter[clock] / saved, 2) if saved > 0 else None,
            "prompt_tokens_from_which_an_adapter_is_smaller": round(adapter["bytes"] / kv_bytes, 2),
        }
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", nargs="+", type=positive, default=None, help="lengths of prompts (50 400)")
    parser.add_argument("--prompts", type=positive, default=None, help="different prompts (16)")
    parser.add_argument("--requests", type=positive, default=None, help="requests in all (64)")
    parser.add_argument("--in-flight", type=positive, default=None, help="requests at any time (16)")
    parser.add_argument("--input-tokens", type=positive, default=40, help="tokens of an input (40)")
    parser.add_argument("--output-tokens", type=positive, default=None, help="tokens of an answer (24)")
    parser.add_argument("--prefill-tokens", type=positive, default=512, help="input tokens that one step reads (512)")
    parser.add_argument("--rounds", type=positive, default=None, help="rounds (5)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of base and adapters")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch (1)")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="what is divided (wall)")
    parser.add_argument("--quick", action="store_true", help="6 requests of 3 prompts, 5 tokens, one round")
    parser.add_argument("-o", "--output", type=Path, default=None, help="result file, which a later run completes")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.prompt_tokens = options.prompt_tokens or ([50] if quick else [50, 400])
    options.prompts = options.prompts or (3 if quick else 16)
    options.requests = options.requests or (6 if quick else 64)
    options.in_flight = options.in_flight or (3 if quick else 16)
    options.output_tokens = options.output_tokens or (5 if quick else 24)
    options.rounds = options.rounds or (1 if quick else 5)
    if options.output is None and not quick:
        options.output = RESULTS / "serving-engine.json"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    names = ["prompts", "requests", "in_flight", "input_tokens", "output_tokens", "prefill_tokens", "dtype", "threads"]
    settings = {name: getattr(options, name) for name in names}
    report: dict[str, Any] = {
        "settings": settings, "torch": torch.__version__, "transformers": transformers.__version__, "cpu": cpu_name(),
        "lengths": {},
    }  # fmt: skip
    if options.output is not None and options.output.is_file():
        report = json.loads(options.output.read_text(encoding="utf-8"))
        if report.get("settings") != settings:
            raise ConfigError(
                f"{options.output}: made with {report.get('settings')}. Expected {settings}. Fix: the same settings, or another -o."
            )

    lm = PromptLoRA.from_pretrained(dtype=getattr(torch, options.dtype), device="cpu")
    lm.model.generation_config.eos_token_id = None
    text = lm.model.config.get_text_config()
    kv_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * lm.model.dtype.itemsize

    def save() -> None:
        report["clock"], report["summary"] = options.clock, summary(report, kv_bytes, options.clock)
        if options.output is not None:
            write_json(options.output, report)

    run(lm, options, report, save)
    save()
    print(json.dumps(report["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

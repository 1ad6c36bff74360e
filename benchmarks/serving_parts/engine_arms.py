"""The arms that run in this process: ``promptlora.engine``, and ``Host.generate`` as the upper bound."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptlora import PromptLoRA
from promptlora.engine import AdapterCache, Engine, Sampling
from promptlora.lora import LoRAWeights
from promptlora.text import pad_rows
from serving_parts.workload import Workload, quantiles

_PAGE = 16  # tokens of a page of the engine's key-value cache


def write_adapters(lm: PromptLoRA, texts: Sequence[str], folder: Path) -> tuple[list[LoRAWeights], dict[str, float]]:
    """Write the adapters of prompts through the engine, into a folder too, and measure what one costs."""
    lm.states.clear()
    _ = lm.states.embedder if "embedder" in lm.hypernetwork.config.source else None  # loaded before the clock starts
    with Engine(lm, cache=AdapterCache(lm, folder=folder, memory_bytes=1 << 30)) as engine:
        engine.adapter("A first prompt.").result()
        began, worked = time.perf_counter(), time.process_time()
        entries = [future.result() for future in [engine.adapter(text) for text in texts]]
        wall, processor = time.perf_counter() - began, time.process_time() - worked
    count = len(entries)
    costs = {"wall": wall / count, "processor": processor / count, "bytes": entries[0].nbytes, "adapters": count}
    return [entry.lora for entry in entries], costs


def serve(
    lm: PromptLoRA, options: argparse.Namespace, workload: Workload, adapters: Sequence[LoRAWeights] | None, share: bool
) -> dict[str, Any]:
    """Send requests to the engine with a fixed number in flight.

    Args:
        lm: Base and hypernetwork.
        options: ``in_flight``, ``output_tokens`` and ``prefill_tokens``.
        workload: What is sent.
        adapters: One for each prompt; None puts the prompts into the context.
        share: Whether equal beginnings are read once. Without adapters all prompts are read before the clock starts.
    """
    inputs = [one.ids if adapters is not None else workload.read(one) for one in workload.requests]
    longest = max(map(len, inputs)) + options.output_tokens
    warm = workload.prompts if share and adapters is None else [inputs[0][::-1]]
    # So many that no page of a prompt is evicted: the pages of answers that have ended stay until others need them.
    own = max(len(one.ids) for one in workload.requests) + options.output_tokens + 2 * _PAGE
    kept = sum(len(ids) + _PAGE for ids in workload.prompts) + own * len(inputs) if share and adapters is None else 0
    firsts: list[float] = []
    steps: list[int] = []
    gaps: list[float] = []
    answers: dict[int, list[int]] = {}
    failed: list[Exception] = []
    todo = iter(range(len(inputs)))
    lock = threading.Lock()
    sampling = Sampling(max_tokens=options.output_tokens)
    with Engine(
        lm,
        max_batch=options.in_flight,
        max_prefill_tokens=options.prefill_tokens,
        kv_tokens=(longest + 2 * _PAGE) * options.in_flight * 2 + kept,
        share_prefixes=share,
    ) as engine:

        def client() -> None:
            try:
                work()
            except Exception as error:
                failed.append(error)

        def work() -> None:
            while True:
                with lock:
                    number = next(todo, None)
                if number is None or failed:
                    return
                adapter = None if adapters is None else adapters[workload.requests[number].prompt]
                last, step = time.perf_counter(), engine.stats.steps
                ids: list[int] = []
                for piece in engine.submit(inputs[number], adapter, sampling):
                    now = time.perf_counter()
                    if not ids:
                        steps.append(engine.stats.steps - step)
                    (gaps if ids else firsts).append(now - last)
                    last = now
                    ids += piece.token_ids
                answers[number] = ids

        reading = []
        for ids in warm:
            began = time.perf_counter()
            for piece in engine.submit(ids, None if adapters is None else adapters[0], Sampling(max_tokens=2)):
                if piece.finish_reason is None:
                    reading.append(time.perf_counter() - began)
        before = engine.stats
        clients = [threading.Thread(target=client) for _ in range(options.in_flight)]
        began, worked = time.perf_counter(), time.process_time()
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        wall, processor = time.perf_counter() - began, time.process_time() - worked
        reused = engine.stats.reused_tokens - before.reused_tokens
    if failed:
        raise failed[0]
    return {
        "wall": wall,
        "processor": processor,
        "first_token": quantiles(firsts),
        "first_token_steps": quantiles(steps),
        "between_tokens": quantiles(gaps),
        "prompt_seconds": sum(reading) / len(reading),
        "reused_tokens": reused,
        "answers": [answers[i] for i in range(len(inputs))],
    }


def generate(
    lm: PromptLoRA, options: argparse.Namespace, workload: Workload, adapters: Sequence[LoRAWeights]
) -> dict[str, Any]:
    """Run the requests in whole batches, each row with the adapter of its prompt."""
    answers: list[list[int]] = []
    began, worked = time.perf_counter(), time.process_time()
    lora = LoRAWeights.stack(adapters)
    for start in range(0, len(workload.requests), options.in_flight):
        some = workload.requests[start : start + options.in_flight]
        ids, mask = pad_rows([one.ids for one in some], lm.host.pad, left=True)
        index = [one.prompt for one in some]
        out = lm.host.generate(ids, mask, lora, index, max_new_tokens=options.output_tokens, eos_token_id=None)
        answers += out.tolist()
    wall, processor = time.perf_counter() - began, time.process_time() - worked
    return {"wall": wall, "processor": processor, "answers": [ids[: options.output_tokens] for ids in answers]}


def calibrate(lm: PromptLoRA, options: argparse.Namespace, workload: Workload) -> dict[str, float]:
    """Seconds to read one token, and seconds to generate one, in a batch of the base."""
    some = workload.requests[: options.in_flight]
    ids, mask = pad_rows([one.ids for one in some], lm.host.pad, left=True)

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        lm.host.generate(ids, mask, None, None, max_new_tokens=tokens, eos_token_id=None)
        return time.perf_counter() - began

    seconds(2)
    read, more = seconds(1), 8
    step = max(0.0, seconds(1 + more) - read) / more
    return {"read": read / ids.numel(), "generate": step / len(some)}


def idle(lm: PromptLoRA, options: argparse.Namespace, workload: Workload, adapter: LoRAWeights) -> dict[str, float]:
    """Seconds between the tokens of requests that run alone, one after another."""
    gaps: list[float] = []
    with Engine(lm, max_batch=1, max_prefill_tokens=options.prefill_tokens) as engine:
        for request in workload.requests[:8]:
            last = None
            for _ in engine.submit(request.ids, adapter, Sampling(max_tokens=options.output_tokens)):
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now
    return quantiles(gaps)

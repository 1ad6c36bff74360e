"""Runs requests in vLLM's engine; ``vllm_arms`` starts it in vLLM's own environment.

Each line on standard input is the path of a JSON file ``{requests: [{ids, adapter}], warm: [ids], in_flight,
output_tokens}``, where ``adapter`` is a PEFT folder or null. The result is written to ``PATH.result``, and the path is
repeated on standard output. The engine runs in this process, one step after another, so that its times and those of
``promptlora.engine`` are measured in the same way: a fixed number of requests is in flight, and the next one is added
when one ends. The engine ends with its standard input. It imports nothing of promptlora.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY = "promptlora-serving"  # starts the lines of standard output that are meant for the parent


def start(options: argparse.Namespace) -> Any:
    """Start the engine."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    lora: dict[str, Any] = {}
    if options.adapters:
        lora = {
            "enable_lora": True, "max_loras": options.in_flight, "max_lora_rank": options.rank,
            "max_cpu_loras": max(options.adapters, options.in_flight), "lora_target_modules": ["qkv_proj", "o_proj"],
        }  # fmt: skip
    arguments = EngineArgs(
        model=options.base,
        dtype=options.dtype,
        max_model_len=options.longest,
        max_num_seqs=options.in_flight,
        enable_prefix_caching=True,
        block_size=options.block,
        enforce_eager=options.eager,
        **lora,
    )
    return LLMEngine.from_engine_args(arguments)


def measure(engine: Any, job: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """Run the requests of a job.

    Args:
        engine: vLLM's engine.
        job: The content of a job file.
        numbers: The number of each adapter folder, which vLLM identifies it by.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    def adapter(folder: str | None) -> Any:
        if folder is None:
            return None
        number = numbers.setdefault(folder, len(numbers) + 1)
        return LoRARequest(Path(folder).name, number, folder)

    def parameters(tokens: int) -> Any:
        # Not min_tokens, which forbids end tokens: the other arms generate them and go on.
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)

    def add(name: str, ids: list[int], folder: str | None, tokens: int) -> None:
        engine.add_request(name, {"prompt_token_ids": ids}, parameters(tokens), lora_request=adapter(folder))

    for folder in dict.fromkeys(one["adapter"] for one in job["requests"] if one["adapter"]):
        engine.add_lora(adapter(folder))
    # The first steps of a batch are slower. Its inputs are reversed, so that no page of a measured one is cached.
    others = [{**one, "ids": one["ids"][::-1]} for one in job["requests"][: job["in_flight"]]]
    run_some(engine, job, add, others, [], [], 2)
    engine.reset_prefix_cache()  # an earlier round has read the same inputs
    for i, ids in enumerate(job["warm"]):
        add(f"warm-{i}", ids, None, 1)
        while engine.has_unfinished_requests():
            engine.step()

    firsts: list[float] = []
    gaps: list[float] = []
    began, worked = time.perf_counter(), time.process_time()
    answers = run_some(engine, job, add, job["requests"], firsts, gaps, job["output_tokens"])
    wall, processor = time.perf_counter() - began, time.process_time() - worked
    return {"wall": wall, "processor": processor, "firsts": firsts, "gaps": gaps, "answers": answers}


def run_some(
    engine: Any,
    job: dict[str, Any],
    add: Callable[[str, list[int], str | None, int], None],
    requests: list[dict[str, Any]],
    firsts: list[float],
    gaps: list[float],
    tokens: int,
) -> list[list[int]]:
    """Run requests with a fixed number in flight; fills the times to first tokens and between tokens."""
    todo = iter(enumerate(requests))
    last: dict[str, float] = {}
    answers: dict[str, list[int]] = {}

    def following() -> None:
        number, request = next(todo, (None, None))
        if request is not None:
            last[str(number)], answers[str(number)] = time.perf_counter(), []
            add(str(number), request["ids"], request["adapter"], tokens)

    for _ in range(job["in_flight"]):
        following()
    while engine.has_unfinished_requests():
        for output in engine.step():
            name, ids = output.request_id, list(output.outputs[0].token_ids)
            new = len(ids) - len(answers[name])
            if new:
                now = time.perf_counter()
                (gaps if answers[name] else firsts).append(now - last[name])
                last[name], answers[name] = now, ids
            if output.finished:
                following()
    return [answers[str(i)] for i in range(len(requests))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder of the base")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--longest", type=int, default=1024, help="most tokens of a request")
    parser.add_argument("--adapters", type=int, default=0, help="adapters in memory; 0 starts vLLM without LoRA")
    parser.add_argument("--rank", type=int, default=16, help="largest rank of an adapter")
    parser.add_argument("--block", type=int, default=32, help="tokens of a page; the CPU build takes multiples of 32")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    engine = start(options)
    import torch
    import vllm

    print(READY, json.dumps({"vllm": vllm.__version__, "torch": torch.__version__}), flush=True)
    numbers: dict[str, int] = {}
    for line in sys.stdin:
        path = Path(line.strip())
        found = measure(engine, json.loads(path.read_text(encoding="utf-8")), numbers)
        path.with_name(path.name + ".result").write_text(json.dumps(found), encoding="utf-8")
        print(READY, path, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

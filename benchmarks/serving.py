"""Serves many prompts at once: adapters against prompts in the context, in one run.

    python benchmarks/serving.py

Requests of 40 tokens get answers of 24 tokens. Each request belongs to one of the prompts, and a fixed number of
requests is in flight at any time. The arms are:

* ``adapters``: the engine, each request with the adapter of its prompt;
* ``context``: the engine runs the base, which reads the prompt before each input;
* ``prefix cache``: the same, but the keys and values of all prompts are already cached;
* ``generate``: ``Host.generate`` with the adapters, in whole batches, as the upper bound;
* ``adapters over HTTP``: a ``promptlora serve`` process and OpenAI's asynchronous client, streamed; the prompt is the
  system message of the model ``promptlora``. Times are those that the client sees;
* ``prefix cache over HTTP``: the same with the plain base, where the cache of the server holds all prompts;
* ``vLLM adapters``: vLLM's engine with the same adapters as PEFT folders;
* ``vLLM prefix cache``: vLLM's engine without LoRA, the prompt before each input, all prompts cached.

Adapters are written, prompts of prefix caches are read, and engines are started before the clock starts; what writing
and reading cost is measured for the break-even. In each round every arm runs once, in a rotating order, on the same
requests. Times are divided by those of another arm in the same round, and the median over rounds is reported. The
answers of ``adapters`` must equal those of ``generate``. End tokens are disabled, so that all arms do the same work.
An arm that would take more than ``--most-seconds`` runs the first requests only; the report says how many.

vLLM runs in the environment of PROMPTLORA_VLLM_PYTHON (docs/vllm.md); without it, its arms are left out. A stopped run
resumes with the missing parts; a result file with other settings is refused. ``--quick`` only checks that everything
runs; its times are meaningless. ``--clock processor`` divides processor times, for a machine that is shared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from injection import cpu_name
from promptlora import PromptLoRA
from promptlora.errors import ConfigError
from promptlora.files import replacing_file
from promptlora.lora import LoRAWeights
from promptlora.models import embedded_folder
from runs import RESULTS, console, positive, told, write_json
from serving_parts.engine_arms import calibrate, generate, idle, serve, write_adapters
from serving_parts.http_arms import Server, without_end
from serving_parts.report import ARMS, VLLM, aims, by_length, cell, complete, table
from serving_parts.vllm_arms import Vllm, python
from serving_parts.workload import Workload, affordable, make_workload

_MARGIN = 32  # tokens for pages that are not full


class Bench:
    """Everything that the arms share.

    Args:
        options: The command line.
        report: What was measured so far.
        stack: Closes what is started.
    """

    def __init__(self, options: argparse.Namespace, report: dict[str, Any], stack: ExitStack) -> None:
        self.options, self.report = options, report
        self.lm = PromptLoRA.from_pretrained(dtype=getattr(torch, options.dtype), device="cpu")
        self.lm.model.generation_config.eos_token_id = None
        text = self.lm.model.config.get_text_config()
        self.itemsize = self.lm.model.dtype.itemsize
        self.kv_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.itemsize
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="promptlora-serving-")))
        base = without_end(embedded_folder(), self.folder / "base")
        self.server = Server(base, self.folder, self.folder / "adapters", options)
        stack.callback(self.server.close)
        self.vllm: dict[str, Vllm] = {}

    def prepare(self, stack: ExitStack) -> None:
        """Find out how many requests each arm can run, and with that how large the caches of vLLM must be."""
        options, workloads = self.options, self.report["workloads"]
        if "calibration" not in self.report:
            some = make_workload(
                self.lm.tokenizer, requests=options.in_flight, prompts=1, length=1, input_tokens=options.input_tokens
            )
            self.report["calibration"] = calibrate(self.lm, options, some)
        kept = 0  # tokens of prompts
        for requests, prompts in options.workload:
            for length in options.prompt_tokens:
                part = workloads.setdefault(f"{requests}/{prompts}", {}).setdefault(str(length), {"rounds": []})
                if "requests" not in part:
                    part["requests"] = self.requests(length, requests, prompts)
                kept = max(kept, min(part["requests"]["prefix cache"], prompts) * (length + _MARGIN))
        longest = max(options.prompt_tokens) + options.input_tokens + options.output_tokens + _MARGIN
        running = 2 * options.in_flight * longest
        most = max(prompts for _, prompts in options.workload)
        for name, adapters, tokens in zip(VLLM, (most, 0), (running, running + kept), strict=True):
            self.vllm[name] = Vllm(
                embedded_folder(), self.folder, options, longest=longest, adapters=adapters,
                kv_bytes=self.kv_bytes * tokens,
            )  # fmt: skip
            stack.callback(self.vllm[name].close)

    def requests(self, length: int, requests: int, prompts: int) -> dict[str, int]:
        """How many requests each arm runs; an arm that cannot run is left out."""
        options, cost = self.options, self.report["calibration"]
        found = {}
        for arm in ARMS:
            if arm in self.report["left_out"]:
                continue

            def seconds(count: int, arm: str = arm) -> float:
                tokens = options.input_tokens + (length if arm == "context" else 0)
                warm = min(count, prompts) * length * cost["read"] if "prefix" in arm else 0.0
                each: float = tokens * cost["read"] + options.output_tokens * cost["generate"]
                return warm + count * each

            found[arm] = affordable(seconds, options.most_seconds, requests, options.in_flight)
        # The server's cache has a fixed size. Where it does not hold all prompts until the end, beside the pages of all
        # answers, this would be another arm.
        count, own = found["prefix cache over HTTP"], options.input_tokens + options.output_tokens + _MARGIN
        if min(count, prompts) * (length + _MARGIN) + count * own > self.server.kv_tokens:
            del found["prefix cache over HTTP"]
        return found

    def arms(
        self, workload: Workload, adapters: Sequence[LoRAWeights]
    ) -> dict[str, Callable[[Workload], dict[str, Any]]]:
        """The arms, each of which gets its requests."""
        lm, options, server, vllm = self.lm, self.options, self.server, self.vllm
        peft: list[Path] = []

        def folders() -> list[Path]:
            """The adapters as PEFT folders, written when they are needed."""
            name = f"peft-{len(workload.requests)}-{len(workload.prompts[0])}"
            for number in range(len(peft), len(adapters)):
                peft.append(self.folder / name / f"{name}-{number}")
                adapters[number].save_peft(peft[-1], card=False)
            return peft

        return {
            "adapters": lambda some: serve(lm, options, some, adapters, True),
            "context": lambda some: serve(lm, options, some, None, False),
            "prefix cache": lambda some: serve(lm, options, some, None, True),
            "generate": lambda some: generate(lm, options, some, adapters),
            "adapters over HTTP": lambda some: server.measure(lm.tokenizer, some, "promptlora"),
            "prefix cache over HTTP": lambda some: server.measure(lm.tokenizer, some, None),
            "vLLM adapters": lambda some: vllm["vLLM adapters"].measure(some, folders()),
            "vLLM prefix cache": lambda some: vllm["vLLM prefix cache"].measure(some, None),
        }

    def cell(self, requests: int, prompts: int, length: int, save: Callable[[], None]) -> None:
        """Run the measurements of one workload with prompts of one length that the report does not have yet."""
        options = self.options
        part = self.report["workloads"][f"{requests}/{prompts}"][str(length)]
        rounds = options.rounds or (3 if requests <= 64 else 1)
        workload = make_workload(
            self.lm.tokenizer, requests=requests, prompts=prompts, length=length, input_tokens=options.input_tokens
        )
        if len(complete(part)) >= rounds:
            return
        most = max(count for arm, count in part["requests"].items() if "adapters" in arm or arm == "generate")
        texts = workload.first(most).texts
        console.print(f"{requests}/{prompts}, {length} tokens: {len(texts)} adapters are written", highlight=False)
        adapters, costs = write_adapters(self.lm, texts, self.folder / "adapters")
        if "adapter" not in part:
            part["adapter"], part["idle"] = costs, idle(self.lm, options, workload, adapters[0])
            save()
        arms, order = self.arms(workload, adapters), list(part["requests"])
        for number in range(rounds):
            if number >= len(part["rounds"]):
                part["rounds"].append({})
            found = part["rounds"][number]
            for i in range(len(order)):
                arm = order[(i + number) % len(order)]
                if arm in found:
                    continue
                count = part["requests"][arm]
                console.print(f"  round {number + 1}: {arm}, {count} requests", highlight=False)
                result = arms[arm](workload.first(count))
                result["answers"] = [fold(answer) for answer in result.get("answers", ())]
                result["load"] = os.getloadavg()[0]  # how much else the machine did
                found[arm] = result
                for engine in self.vllm.values():
                    self.report["versions"].update(
                        {f"{k} (vLLM)" if k == "torch" else k: v for k, v in engine.versions.items()}
                    )
                save()


def fold(answer: Sequence[int]) -> str:
    """A short text that stands for an answer, so that two arms can be compared in the file."""
    return hashlib.sha256(json.dumps(list(answer)).encode()).hexdigest()[:8]


def summarize(report: dict[str, Any], clock: str) -> dict[str, Any]:
    """The figures of all cells with at least one complete round."""
    found: dict[str, Any] = {}
    for name, lengths in report["workloads"].items():
        cells = {
            length: cell(part, int(length), report["settings"], clock)
            for length, part in lengths.items()
            if "requests" in part
        }
        known = {length: one for length, one in cells.items() if one is not None}
        if known:
            found[name] = {
                "lengths": known,
                "by_length": by_length(known, report["settings"]),
                "aims": {
                    length: {what: f"{measured}; wanted {wanted}: {'reached' if ok else 'missed'}" for what, wanted, measured, ok in aims(int(length), one)}
                    for length, one in known.items()
                },
            }  # fmt: skip
    return found


def workload_of(text: str) -> tuple[int, int]:
    """Parse ``REQUESTS/PROMPTS``."""
    requests, _, prompts = text.partition("/")
    if not (requests.isdecimal() and prompts.isdecimal() and 1 <= int(prompts) <= int(requests)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected REQUESTS/PROMPTS, such as 64/16")
    return int(requests), int(prompts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", type=workload_of, metavar="REQUESTS/PROMPTS", default=None,
                        help="requests and different prompts (64/16 512/256)")  # fmt: skip
    parser.add_argument("--prompt-tokens", nargs="+", type=positive, default=None, help="lengths of prompts (50 400)")
    parser.add_argument("--in-flight", type=positive, default=None, help="requests at any time (16)")
    parser.add_argument("--input-tokens", type=positive, default=40, help="tokens of an input (40)")
    parser.add_argument("--output-tokens", type=positive, default=None, help="tokens of an answer (24)")
    parser.add_argument("--prefill-tokens", type=positive, default=512, help="input tokens that one step reads (512)")
    parser.add_argument("--rounds", type=positive, default=None, help="rounds (3 for up to 64 requests, else 1)")
    parser.add_argument("--most-seconds", type=positive, default=120, help="expected time above which an arm runs the first requests alone (120)")  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of base and adapters")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch (1)")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="what is divided (wall)")
    parser.add_argument("--no-vllm", action="store_true", help="leave out the arms of vLLM")
    parser.add_argument("--quick", action="store_true", help="6 requests of 3 prompts, 5 tokens, one round")
    parser.add_argument("-o", "--output", type=Path, default=None, help="result file, which a later run completes; a table is written beside it (benchmarks/results/serving.json)")  # fmt: skip
    options = parser.parse_args(arguments)
    quick = options.quick
    options.workload = options.workload or ([(6, 3)] if quick else [(64, 16), (512, 256)])
    options.prompt_tokens = options.prompt_tokens or ([50] if quick else [50, 400])
    options.in_flight = options.in_flight or (3 if quick else 16)
    options.output_tokens = options.output_tokens or (5 if quick else 24)
    options.rounds = options.rounds or (1 if quick else None)
    if options.output is None and not quick:
        options.output = RESULTS / "serving.json"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the processes that were started are stopped
    names = ["in_flight", "input_tokens", "output_tokens", "prefill_tokens", "dtype", "threads"]
    settings = {name: getattr(options, name) for name in names}
    left_out = {}
    if options.no_vllm or not python().is_file():
        left_out = dict.fromkeys(VLLM, "--no-vllm" if options.no_vllm else "no Python of vLLM; see docs/vllm.md")
    report: dict[str, Any] = {
        "settings": settings, "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cpu": cpu_name(), "left_out": left_out, "workloads": {},
    }  # fmt: skip
    with ExitStack() as stack:
        bench = Bench(options, report, stack)
        settings |= {"kv_bytes": bench.kv_bytes, "itemsize": bench.itemsize}
        if options.output is not None and options.output.is_file():
            bench.report = report = json.loads(options.output.read_text(encoding="utf-8"))
            for name, value in (("settings", settings), ("left_out", left_out)):
                if report.get(name) != value:
                    raise ConfigError(
                        f"{options.output}: {name} {report.get(name)}. Expected {value}. Fix: the same settings, or another -o."
                    )

        def save() -> None:
            report["clock"], report["summary"] = options.clock, summarize(report, options.clock)
            if options.output is not None:
                write_json(options.output, report)
                with replacing_file(options.output.with_suffix(".md")) as temporary:
                    temporary.write_text(table(report), encoding="utf-8")

        try:
            bench.prepare(stack)
            for requests, prompts in options.workload:
                for length in options.prompt_tokens:
                    bench.cell(requests, prompts, length, save)
        except KeyboardInterrupt:
            console.print("stopped; the same command continues", highlight=False)
            return 130
        save()
        bench.lm.close()
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(told(main))

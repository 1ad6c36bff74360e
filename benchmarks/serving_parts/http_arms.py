"""The arms over HTTP: a real ``promptlora serve`` process and the real asynchronous client of OpenAI."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from promptlora.errors import ModelError
from promptlora.text import encode_chat, render_chat
from serving_parts.workload import Workload, quantiles

_BASE = "base"


def without_end(base: Path, folder: Path) -> Path:
    """The base as a folder of links whose ``generation_config.json`` names no end token, so that all answers are equally long."""
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": []}), encoding="utf-8")
    return folder


class Server:
    """``promptlora serve``, started anew for each measurement, so that its cache holds nothing of an earlier one.

    Args:
        base: Folder of the base.
        folder: A folder for its log.
        adapters: The folder with the adapters, which the server reads.
        options: ``dtype``, ``in_flight``, ``input_tokens``, ``output_tokens`` and ``threads``.
    """

    def __init__(self, base: Path, folder: Path, adapters: Path, options: argparse.Namespace) -> None:
        self._log, self._options = folder / "server.log", options
        # Twice the requests in flight doubles the key-value cache, where the prompts of the prefix cache must stay.
        self.max_batch = 2 * options.in_flight
        self.kv_tokens = max(512 * self.max_batch, 8192)
        self._command = [
            sys.executable, "-m", "promptlora", "serve", str(base), "--model-name", _BASE, "--port", "0", "--json",
            "--adapter-dir", str(adapters), "--adapter-memory", "1000", "--max-batch", str(self.max_batch),
            "--dtype", options.dtype, "--device", "cpu", "--deadline", "3600",
        ]  # fmt: skip
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        self._process: subprocess.Popen[str] | None = None
        self._api = ""

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, env=self._environment, text=True, encoding="utf-8"
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
            raise ModelError("promptlora serve has ended. Its last lines:\n" + "\n".join(said))
        self._api = json.loads(line)["api"]

    def measure(self, tokenizer: Any, workload: Workload, model: str | None) -> dict[str, Any]:
        """Run the requests of a workload, streamed; times are those that the client sees.

        Args:
            tokenizer: Of the base.
            workload: The requests; the prompt is the system message. Inputs are cut so that the chat template and the
                input have as many tokens as an input of the other arms.
            model: None is the base.
        """
        around = len(encode_chat(tokenizer, [render_chat(tokenizer, "")])[0])
        words = max(1, self._options.input_tokens - around)
        inputs = []
        for one in workload.requests:
            inputs.append((workload.texts[one.prompt], str(tokenizer.decode(list(one.ids[:words]))).strip()))
        self._start()
        try:
            return asyncio.run(self._run(workload, inputs, model or _BASE))
        finally:
            self.close()

    async def _run(self, workload: Workload, inputs: list[tuple[str, str]], model: str) -> dict[str, Any]:
        firsts: list[float] = []
        gaps: list[float] = []
        means: list[float] = []
        read: list[int] = []
        todo = iter(range(len(inputs)))
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        async with openai.AsyncOpenAI(base_url=self._api, api_key="none", max_retries=0, timeout=3600) as client:

            async def ask(system: str, text: str, tokens: int) -> Any:
                return await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": text}],
                    max_tokens=tokens,
                    stream=True,
                    stream_options={"include_usage": True},
                )

            async def one(system: str, text: str, tokens: int) -> None:
                began = last = time.perf_counter()
                first = None
                async for chunk in await ask(system, text, tokens):
                    if chunk.usage is not None:
                        if chunk.usage.completion_tokens != tokens:
                            raise ModelError(f"{chunk.usage.completion_tokens} tokens. Expected {tokens}.")
                        read.append(chunk.usage.prompt_tokens)
                    if not (chunk.choices and chunk.choices[0].delta.content):
                        continue
                    now = time.perf_counter()
                    if first is None:
                        first = now
                        firsts.append(now - began)
                    else:
                        gaps.append(now - last)
                    last = now
                if first is not None and tokens > 1:
                    means.append((last - first) / (tokens - 1))

            async def worker() -> None:
                for number in todo:
                    await one(*inputs[number], self._options.output_tokens)

            for (
                text
            ) in workload.texts:  # adapters are loaded, and prompts of the base are read, before the clock starts
                await one(text, "Begin", 2)
            for values in (firsts, gaps, means, read):
                values.clear()
            reused, before = await self._reused(), process.cpu_times()
            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(self._options.in_flight)))
            wall, after = time.perf_counter() - began, process.cpu_times()
            reused = await self._reused() - reused
        return {
            "wall": wall,
            "processor": after.user + after.system - before.user - before.system,
            "first_token": quantiles(firsts),
            "between_tokens": quantiles(gaps),
            "time_per_token": quantiles(means),
            "tokens_read": sum(read) / len(read),
            "reused_tokens": reused,
        }

    async def _reused(self) -> int:
        """Tokens whose keys and values the server has found in its cache, since it started."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(self._api.removesuffix("v1") + "metrics")).text
        return int(float(text.partition("\npromptlora_reused_tokens_total ")[2].split()[0]))

    def close(self) -> None:
        """Stop the server."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()

"""vLLM with the plugin, and its sidecar, as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import openai

from promptlora.address import bind
from promptlora.teacher.vllm_client import default_python

ROOT = Path(__file__).parent.parent
WHERE_VLLM = Path(os.environ.get("PROMPTLORA_VLLM_PYTHON") or default_python()).absolute()
KEY = "a key of this test"
BASE = "base"
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port that nobody listens on."""
    with bind("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        return port


class Process:
    """A command with a health check, whose output goes to a file."""

    def __init__(self, name: str, command: list[str], health: str, log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.command, self.health, self.log = name, command, health, log
        self.environment = {**os.environ, **_QUIET, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 900) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True, cwd=self.log.parent
            )
        end = time.monotonic() + timeout
        while not self.answers():
            told = f"{self.name} did not start:\n{self.log.read_text()[-4000:]}"
            assert self.process.poll() is None, told
            assert time.monotonic() < end, told
            time.sleep(0.5)

    def answers(self) -> bool:
        """Whether it is healthy."""
        try:
            with urllib.request.urlopen(self.health, timeout=20) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and what it has started."""
        if self.process is None:
            return
        os.killpg(self.process.pid, how)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


class Sidecar(Process):
    """``promptlora serve --adapters-only``, with the embedded base and the hypernetwork of the package."""

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "promptlora", "serve", "--adapters-only", "--port", str(port), "--json"]
        command += ["--adapter-dir", str(folder / "adapters")]
        environment = {"PYTHONPATH": str(ROOT / "src")}
        super().__init__("the sidecar", command, f"{self.url}/health", folder / "sidecar.log", environment)

    def ask(self, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)


class VLLM(Process):
    """vLLM's API server in float32 with four places for adapters."""

    def __init__(self, folder: Path, base: Path, sidecar: Sidecar) -> None:
        self.url, self.store = f"http://127.0.0.1:{(port := free_port())}", folder / "store"
        self.clients: dict[str, openai.OpenAI] = {}
        options = {
            "served-model-name": BASE, "dtype": "float32", "max-model-len": 512, "max-num-seqs": 8,
            "max-loras": 4, "max-cpu-loras": 4, "max-lora-rank": 16, "host": "127.0.0.1", "port": port,
            "middleware": "promptlora_vllm.middleware.PromptLoRAMiddleware",
        }  # fmt: skip
        command = [str(WHERE_VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
        command += ["--enable-lora", "--enforce-eager"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command += ["--lora-target-modules", "qkv_proj", "o_proj"]
        environment = {
            "PYTHONPATH": "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_API_KEY": KEY,
            "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "PROMPTLORA_SIDECAR": sidecar.url, "PROMPTLORA_STORE": str(self.store), "PROMPTLORA_TIMEOUT": "120",
        }  # fmt: skip
        super().__init__("vLLM", command, f"{self.url}/health", folder / "vllm.log", environment)

    def client(self, key: str = KEY) -> openai.OpenAI:
        """OpenAI's client, one for each key; any thread may use it."""
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300)
        return self.clients[key]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and close the connections to it."""
        for client in self.clients.values():
            client.close()
        super().stop(how)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=300)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

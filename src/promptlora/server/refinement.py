"""The work of a refinement job: from a stored adapter to a better one, which is stored too."""

from __future__ import annotations

import json
import time
from dataclasses import replace

from promptlora.adapt.refine import RefineSettings, RefineStep
from promptlora.engine import AdapterEntry
from promptlora.server.adapters_schema import AdapterRequest
from promptlora.server.jobs import Progress, Work
from promptlora.server.service import Service


def refining(service: Service, owner: str, body: AdapterRequest, start: AdapterEntry) -> Work:
    """Work that refines an adapter and returns the id of the result; a refinement that was done before is not repeated.

    Answers go on meanwhile: a step waits for the model's turn, and the engine's steps come between.

    Args:
        service: The server.
        owner: Who gets the adapter.
        body: Prompt, rows, inputs and steps.
        start: Where it begins.

    Raises:
        NoRoomError: There is no folder, and refined adapters leave no room for another one.
    """
    steps = body.steps or RefineSettings().steps
    rows = [{"input": row.input, "outputs": [row.output]} for row in body.rows] if body.rows else None
    inputs = list(body.inputs) if body.inputs else None
    examples = [(example.input, example.output) for example in body.examples]
    identity = json.dumps({"rows": rows, "inputs": inputs, "steps": steps}, sort_keys=True)
    key = service.cache.key(body.prompt, examples, body.in_context, refinement=identity)

    if service.cache.remembered(key) is None:
        service.cache.check_room(start.nbytes)  # before the steps; their result is at least as large

    def work(progress: Progress) -> str:
        entry = service.cache.get(key)
        if entry is None:
            began = time.perf_counter()

            def on_step(step: RefineStep) -> None:
                progress.report(step.step, step.steps)

            better = service.lm.refine(
                start.lora,
                body.prompt,
                rows=rows,
                inputs=inputs,
                steps=steps,
                on_step=on_step,
                should_stop=progress.asked_to_stop,
            )
            progress.check()
            entry = replace(
                start,
                key=key,
                lora=better,
                nbytes=better.nbytes,
                refined=better.provenance[0]["best_step"] > 0,
                created=time.time(),
                seconds=start.seconds + time.perf_counter() - began,
            )
            service.store(entry, pin=True)
        (record,) = entry.lora.provenance
        unchanged = "" if entry.refined else "no step was better than the start, which is what the adapter is"
        progress.note("; ".join(filter(None, (record.get("note"), unchanged))))
        if service.own(owner, key) and service.cache.get(key) is None:  # its last owner has deleted it meanwhile
            service.store(entry, pin=True)
        return key

    return work

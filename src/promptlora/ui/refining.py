"""A refinement that reports its steps as they are done; it runs in its own thread.

It knows ``PromptLoRA.refine``; it knows nothing of limits, exports or pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import Queue
from threading import Event, Thread

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.adapt.refine import RefineStep
from promptlora.lora import LoRAWeights


def watch_refinement(
    lm: PromptLoRA, lora: LoRAWeights, prompt: str, rows: Sequence[tuple[str, str]], steps: int
) -> Iterator[RefineStep | LoRAWeights]:
    """Yield each step when it is done, then the refined adapter. Closing the iterator stops the refinement.

    Args:
        lm: Runs the steps; other callers can use the model between two steps.
        lora: The single adapter to start from.
        prompt: The adapter's prompt.
        rows: Pairs of input and output.
        steps: Maximum number of steps.

    Raises:
        DataError: The rows cannot be used.
    """
    done: Queue[RefineStep | LoRAWeights | BaseException] = Queue()
    left = Event()

    def work() -> None:
        try:
            done.put(lm.refine(lora, prompt, rows=rows, steps=steps, on_step=done.put, should_stop=left.is_set))
        except BaseException as error:
            done.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while isinstance(found := done.get(), RefineStep):
            yield found
    finally:
        left.set()
        thread.join()
    if isinstance(found, BaseException):
        raise found
    yield found

"""A refinement that can be watched: its steps as they are done, from a thread of its own.

It knows ``PromptLoRA.refine``; nothing of limits, exports or pages.
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
    """Each step when it is done, then the refined adapter. Closing the iterator ends the refinement.

    Args:
        lm: Runs the steps; others use the model between two of them.
        lora: The one adapter to start from.
        prompt: Its prompt.
        rows: Pairs of input and output.
        steps: Most steps.

    Raises:
        DataError: Rows that cannot be used.
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

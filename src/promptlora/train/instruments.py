"""What shows whether a hypernetwork steers, or has collapsed to one LoRA for all prompts.

Margins say what the right adapter is worth against another; the spread of the updates, in ``lora.geometry``, says how
much of them depends on the prompt at all.
"""

from __future__ import annotations

from collections.abc import Sequence

QUIET = 0.02  # nats: a margin below this is none


def margin_shift(tasks: Sequence[str]) -> int | None:
    """How far to turn the adapters of a batch so that each prompt meets one of another task.

    The smallest shift at which the fewest prompts meet their own task again; None when all of them would.
    """
    count = len(tasks)
    clashes = {s: sum(tasks[i] == tasks[(i + s) % count] for i in range(count)) for s in range(1, count)}
    best = min(clashes, key=clashes.__getitem__, default=None)
    return None if best is None or clashes[best] == count else best

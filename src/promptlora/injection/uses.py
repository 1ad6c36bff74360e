"""The uses of one injector: which state is active, who activated it, and in which order uses may end.

A use begins when ``apply`` is entered and ends when it is left. Uses form a stack, and the innermost one determines the
active state. This file knows owners; the states are opaque to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from promptlora.errors import LoRAError
from promptlora.injection.owner import Owner

_State = TypeVar("_State")


@dataclass(frozen=True, eq=False)
class _Use(Generic[_State]):
    """One use that has not ended."""

    state: _State | None
    owner: Owner


class Uses(Generic[_State]):
    """A stack of uses with one owner at a time.

    Args:
        fill: Called with the active state (None for none) and its owner, whenever either changes.
    """

    def __init__(self, fill: Callable[[_State | None, Owner | None], None]) -> None:
        self._fill_slots = fill
        self._stack: list[_Use[_State]] = []
        self._lock = threading.RLock()  # reentrant, since a finalizer may end a use at any time
        self._closed = False

    @property
    def state(self) -> _State | None:
        """The active state; None if there is none."""
        return self._stack[-1].state if self._stack else None

    @contextmanager
    def use(self, state: _State | None, recomputing: Owner | None = None) -> Iterator[None]:
        """Activate a state inside ``with``, and restore the previous one afterwards.

        Args:
            state: The state; None for the base model.
            recomputing: The owner whose forward pass is recomputed here, possibly in another thread.

        Raises:
            LoRAError: Another owner has a use, or :meth:`close` was called. On exit: the use is left out of order.
        """
        use = self._enter(state, recomputing)
        try:
            yield
        except BaseException:  # from the body or from a dropped generator: raise no second error
            self._leave(use, failing=True)
            raise
        self._leave(use, failing=False)

    def close(self) -> None:
        """End all uses, and refuse new ones.

        Raises:
            LoRAError: Another owner has a use. No use is ended.
        """
        with self._lock:
            self._drop_ended()
            if self._stack and not self._stack[-1].owner.is_caller():
                raise LoRAError(
                    f"remove: a LoRA of {self._stack[-1].owner} is on. Expected none. Fix: leave that use first"
                )
            self._stack.clear()
            self._fill()
            self._closed = True

    def _fill(self) -> None:
        if self._stack:
            self._fill_slots(self._stack[-1].state, self._stack[-1].owner)
        else:
            self._fill_slots(None, None)

    def _drop_ended(self) -> None:
        """End the uses that finished threads and tasks left open."""
        if not all(use.owner.alive for use in self._stack):
            self._stack = [use for use in self._stack if use.owner.alive]
            self._fill()

    def _enter(self, state: _State | None, recomputing: Owner | None) -> _Use[_State]:
        with self._lock:
            if self._closed:
                raise LoRAError(
                    "apply: the hooks of this injector were removed, and the model would run as the base. Expected an injector "
                    "in use. Fix: make a new one (after PromptLoRA.close(), a new PromptLoRA)"
                )
            self._drop_ended()
            owner = Owner.current()
            on = self._stack[-1].owner if self._stack else owner
            if not on.covers(owner) and (recomputing is None or not on.covers(recomputing)):
                raise LoRAError(
                    f"apply: a LoRA of {on} is on, and {owner} asked for another. Expected one owner at a time. Fix: leave that "
                    "use first, or call PromptLoRA or Host, which wait their turn"
                )
            use = _Use(state, owner)
            self._stack.append(use)
            self._fill()
            return use

    def _leave(self, use: _Use[_State], failing: bool) -> None:
        with self._lock:
            if use not in self._stack:
                if failing or self._closed:
                    return
                raise LoRAError(f"apply: this use ended when {use.owner} did. Expected it to be left there")
            inner = self._stack[-1]
            self._stack.remove(use)
            self._fill()
        if inner is not use and not failing:
            raise LoRAError(
                f"apply: left out of order by {use.owner}: a use that began later, of {inner.owner}, has not ended. Expected "
                "uses to end in the reverse order of their beginning. The use that was left is over; the later one stays on "
                "until it ends, and the base follows. Fix: leave the inner use first, or close the generator that holds it"
            )

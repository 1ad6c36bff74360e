"""``Roster``: which slot each adapter of the running requests stands in.

Adapters that look alike share one set of slots; the base needs none. It knows adapters and slots; nothing of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptlora.injection import AdapterSlots, HookBasedLoRAInjector, PreparedLoRA, plan_tokens
from promptlora.lora import LoRAWeights

_FAMILIES = 4  # sets of slots that are kept although nobody uses them


@dataclass(eq=False)
class Seat:
    """The place of one adapter.

    Attributes:
        family: The adapters that it stands with.
        slot: Its slot there.
        lora: The adapter, kept alive so that its identity is not given to another.
        users: How many requests use it.
    """

    family: _Family
    slot: int
    lora: LoRAWeights
    users: int = 0


class _Family:
    """One set of slots and who stands in it."""

    def __init__(self, slots: AdapterSlots) -> None:
        self.slots = slots
        self.free = list(range(slots.count, 0, -1))
        self.seats: OrderedDict[tuple[int, tuple[int, ...]], Seat] = OrderedDict()  # the longest unused first

    @property
    def users(self) -> int:
        return sum(seat.users for seat in self.seats.values())


class Roster:
    """Gives slots to adapters.

    Args:
        injector: Whose slots.
        count: How many adapters are in use at once at most.
    """

    def __init__(self, injector: HookBasedLoRAInjector, count: int) -> None:
        self._injector, self._count = injector, count
        self._families: list[_Family] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(family.slots.nbytes for family in self._families)

    def sit(self, lora: LoRAWeights) -> Seat:
        """A seat for one adapter, until :meth:`leave`.

        Raises:
            LoRAError: An adapter that does not fit the model.
        """
        key = (id(lora.stored), lora.index)
        for family in self._families:
            if key in family.seats:
                family.seats.move_to_end(key)
                family.seats[key].users += 1
                return family.seats[key]
        family = next((one for one in self._families if one.slots.takes(lora)), None) or self._new(lora)
        if not family.free:
            idle = next(place for place, seat in family.seats.items() if not seat.users)
            family.free.append(family.seats.pop(idle).slot)
        slot = family.free.pop()
        family.slots.put(slot, lora)
        family.seats[key] = seat = Seat(family, slot, lora, users=1)
        return seat

    def leave(self, seat: Seat) -> None:
        """One request less; the adapter stays until another one needs its slot."""
        seat.users -= 1

    def prepare(self, requests: Sequence[tuple[int, Seat | None]], device: torch.device) -> PreparedLoRA:
        """What is switched on for a packed batch of ``(tokens, seat)``, in the order in which the requests lie."""
        parts = []
        for family in self._families:
            if not any(seat is not None and seat.family is family for _, seat in requests):
                continue
            rows = [(n, seat.slot if seat is not None and seat.family is family else 0) for n, seat in requests]
            parts.append((family.slots, plan_tokens(rows, device)))
        return self._injector.packed(parts)

    def _new(self, lora: LoRAWeights) -> _Family:
        made = _Family(self._injector.slots(lora, self._count))
        if len(self._families) >= _FAMILIES:
            self._families = [family for family in self._families if family.users]
        self._families.append(made)
        return made

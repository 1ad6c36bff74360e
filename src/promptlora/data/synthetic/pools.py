"""Pools of inputs that several families share, so that one input can appear with many prompts.

A pool gives the same inputs in the same order for the same generator; it knows nothing of the tasks that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from promptlora.data.synthetic.family import Item
from promptlora.data.synthetic.pools_numbers import NUMBER_POOLS
from promptlora.data.synthetic.pools_records import RECORD_POOLS
from promptlora.data.synthetic.pools_text import TEXT_POOLS
from promptlora.data.synthetic.pools_words import WORD_POOLS

_TRIES = 900  # inputs that are drawn from an unlimited pool


@dataclass(frozen=True)
class Pool:
    """A kind of input.

    Attributes:
        noun: How a prompt refers to the input ("the word").
        given: How a prompt first mentions the input ("a word").
        draw: Draws one input.
    """

    noun: str
    given: str
    draw: Callable[[Random], Item]


POOLS: dict[str, Pool] = {
    name: Pool(noun, given, draw)
    for name, (noun, given, draw) in {**WORD_POOLS, **TEXT_POOLS, **NUMBER_POOLS, **RECORD_POOLS}.items()
}


@lru_cache(maxsize=64)
def inputs(pool: str, seed: str) -> tuple[Item, ...]:
    """The distinct inputs of a pool for a seed, in order."""
    rng = Random(f"{seed}/{pool}")
    found: dict[str, Item] = {}
    for item in _drawn(POOLS[pool], rng):
        found.setdefault(item.text, item)
    return tuple(found.values())


def _drawn(pool: Pool, rng: Random) -> Iterator[Item]:
    for _ in range(_TRIES):
        yield pool.draw(rng)

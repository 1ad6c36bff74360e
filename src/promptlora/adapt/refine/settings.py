"""``RefineSettings``: how adapters are refined. The defaults were chosen on training tasks; see docs/log.md."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import at_most, check, one_of, positive

STARTS = ("given", "generated", "static", "zero")


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """How adapters are refined.

    Attributes:
        steps: Optimizer steps of each adapter.
        seed: Of the order of rows, the rows that are kept back, and inputs that are made up.
        lr: Step size of Adam at its top; 0 takes the default of what moves.
        rows_per_step: Rows of each adapter in a step.
        moves: What moves in an adapter with shared factors: ``cores``, its core alone, or ``all``, a core and factors of
            its own. An adapter in the free form moves A and B.
        starts: Where each adapter starts: some of ``given``, ``generated``, ``static`` and ``zero``. Several run side by
            side for ``race_steps``, and the best of them goes on. Empty: ``given`` alone.
        race_steps: Steps before the best start is chosen.
        clip: Largest gradient norm of an adapter.
        measure_every: Steps between two measurements of the rows that are kept back.
        patience: An adapter ends after this many measurements without a better one.
        teacher: Who answers inputs that have no label: ``base``, the base with the prompt in its context, or ``adapter``,
            the same with the adapter that the hypernetwork writes for this use.
        answer_tokens: Longest answer of the teacher.
        top_k: Tokens of a teacher's distribution that are learned one by one; the others are one more outcome.
    """

    steps: int = 24
    seed: int = 0
    lr: float = 0.0
    rows_per_step: int = 4
    moves: str = "cores"
    starts: tuple[str, ...] = ()
    race_steps: int = 4
    clip: float = 1.0
    measure_every: int = 4
    patience: int = 3
    teacher: str = "adapter"
    answer_tokens: int = 32
    top_k: int = 16

    def __post_init__(self) -> None:
        check(self)
        positive(self, "steps", "rows_per_step", "clip", "measure_every", "patience", "answer_tokens", "top_k")
        at_most(self, 100_000, "steps", "rows_per_step", "answer_tokens")
        one_of(self, "moves", ("cores", "all"))
        one_of(self, "teacher", ("base", "adapter"))
        if not 0 <= self.lr < 10:
            raise ConfigError(
                f"lr={self.lr}: out of range. Expected a number from 0 to 10. Fix: leave it out for the default."
            )
        if self.race_steps < 0 or self.seed < 0:
            raise ConfigError(f"race_steps={self.race_steps}, seed={self.seed}: negative. Expected 0 or more.")
        odd = [start for start in self.starts if start not in STARTS]
        if odd or len(set(self.starts)) < len(self.starts):
            raise ConfigError(
                f"starts={list(self.starts)}: unknown or twice. Expected different ones of {', '.join(STARTS)}."
            )

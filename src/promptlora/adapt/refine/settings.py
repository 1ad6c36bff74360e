"""``RefineSettings``: the settings of a refinement. The defaults were chosen on training tasks; see docs/log.md."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import at_most, check, one_of, positive

STARTS = ("given", "generated", "static", "zero")


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """The settings of a refinement.

    Attributes:
        steps: The number of optimizer steps per adapter.
        seed: The random seed for the order of rows, the held-out rows, and generated inputs.
        lr: The peak learning rate of Adam; 0 selects the default for the trained tensors.
        rows_per_step: The number of rows per adapter and step.
        moves: The tensors that are trained in an adapter with shared factors: ``cores``, only its core, or ``all``, its
            core and its own copy of the factors. In the free form, A and B are always trained.
        starts: The starting points: some of ``given``, ``generated``, ``static`` and ``zero``. Several starts are
            trained in parallel for ``race_steps``, and the best one continues. If empty, only ``given`` is used.
        race_steps: The number of steps before the best start is chosen.
        clip: The maximum gradient norm per adapter.
        measure_every: The number of steps between two measurements of the held-out rows.
        patience: The number of measurements without improvement after which an adapter stops.
        teacher: The model that answers unlabelled inputs: ``base``, the base with the prompt in its context, or
            ``adapter``, the same with the adapter that the hypernetwork generates for a prompt in the context.
        answer_tokens: The maximum length of the teacher's answers, in tokens.
        top_k: The number of tokens of a teacher's distribution that are learned individually; all others are combined
            into one additional outcome.
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

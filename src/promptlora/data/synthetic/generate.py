"""Generates tasks with rows from families: evenly spread, without duplicates, and byte-identical for equal seeds."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from promptlora.data.synthetic.families import FAMILIES
from promptlora.data.synthetic.family import Family, Goal
from promptlora.data.synthetic.pools import inputs
from promptlora.data.synthetic.wording import write_wordings
from promptlora.errors import DataError

_WORDINGS = 12
_LEAST_ROWS = 10  # minimum number of rows of a task with a small pool
_REDRAWS = 12
_EMPTY_ROUNDS = 200  # rounds without a task, after which no more are expected


@dataclass(frozen=True, kw_only=True)
class SyntheticRow:
    """One example of a task; ``split`` is ``train`` or ``eval``."""

    input: str
    output: str
    split: str


@dataclass(frozen=True, kw_only=True)
class SyntheticTask:
    """A task: prompts with the same meaning, and rows.

    Attributes:
        name: Unique among all tasks of a seed: family and round.
        family: The family that the task comes from.
        category: The category of the family.
        pool: Tasks with the same pool use the same inputs in the same order; the number after the slash is the round,
            because each round has its own inputs.
        metric: How an answer is scored.
        wordings: Eight or more distinct prompts of the task; the rows contain the first one.
        rows: The examples; the last quarter is for evaluation.
    """

    name: str
    family: str
    category: str
    pool: str
    metric: str
    wordings: tuple[str, ...]
    rows: tuple[SyntheticRow, ...]

    def to_rows(self) -> list[dict[str, object]]:
        """The rows as dictionaries in the format of the data files."""
        return [
            {
                "task": self.name,
                "category": self.category,
                "metric": self.metric,
                "split": row.split,
                "prompt": self.wordings[0],
                "input": row.input,
                "outputs": [row.output],
                "pool": self.pool,
                "family": self.family,
            }
            for row in self.rows
        ]


def family_names() -> tuple[str, ...]:
    """The names of all families."""
    return tuple(family.name for family in FAMILIES)


def categories() -> dict[str, str]:
    """The category of each family."""
    return {family.name: family.category for family in FAMILIES}


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), 1)
    return f"Fix: did you mean {near[0]!r}?" if near else "Fix: promptlora synth --list prints all names."


def _excluded(exclude: Iterable[str]) -> set[str]:
    """Names of the families to leave out, given names of families and categories."""
    by_category = {family.category for family in FAMILIES}
    names = set(family_names())
    left_out: set[str] = set()
    for entry in exclude:
        if entry in by_category:
            left_out |= {family.name for family in FAMILIES if family.category == entry}
        elif entry in names:
            left_out.add(entry)
        else:
            raise DataError(
                f"exclude: {entry!r}. Expected a family or a category. {_nearest(entry, names | by_category)}"
            )
    return left_out


def _answered(goal: Goal, deal: str, count: int) -> list[tuple[str, str]]:
    """Inputs and answers in the order of the pool, limiting how often the same answer occurs."""
    found: list[tuple[str, str]] = []
    given: Counter[str] = Counter()
    for item in inputs(goal.pool, deal):
        answer = goal.answer(item)
        if answer is None:
            continue
        most = len(found) // len(goal.labels) + 2 if goal.labels else 2 * len(found) // 5 + 2
        if given[answer] >= most:
            continue
        given[answer] += 1
        found.append((item.text, answer))
        if len(found) == count:
            break
    return found


def _varied(goal: Goal, pairs: list[tuple[str, str]], count: int) -> bool:
    """Whether there are enough rows, and whether the answers vary enough, also in the last quarter."""
    if len(pairs) < min(count, _LEAST_ROWS):
        return False
    answers = Counter(answer for _, answer in pairs)
    if max(answers.values()) > max(0.6 * len(pairs), 2) or len(answers) < min(2 if goal.labels else 3, len(pairs)):
        return False
    changed = sum(text != answer for text, answer in pairs)
    return changed * 2 > len(pairs) and len({answer for _, answer in pairs[-_held(len(pairs)) :]}) > 1


def _held(count: int) -> int:
    """Number of a task's rows that are for evaluation: a quarter, at least two."""
    return max(2, count // 4)


def _task(family: Family, number: int, goal: Goal, pairs: list[tuple[str, str]], wordings: tuple[str, ...]) -> SyntheticTask:  # fmt: skip
    held = _held(len(pairs))
    rows = tuple(
        SyntheticRow(input=text, output=answer, split="eval" if at >= len(pairs) - held else "train")
        for at, (text, answer) in enumerate(pairs)
    )
    return SyntheticTask(
        name=f"syn/{family.name}/{number}",
        family=family.name,
        category=family.category,
        pool=f"{goal.pool}/{number}",
        metric="exact_match",
        wordings=wordings,
        rows=rows,
    )


def make_tasks(
    count: int, *, rows: int = 40, seed: int = 0, exclude: Iterable[str] = (), only: str | None = None
) -> Iterator[SyntheticTask]:
    """Generate tasks round by round: each round has one task from every family, in its own order.

    A family that has used all its parameters uses them again with other inputs and other wordings. With the same seed,
    a longer run starts with the tasks of a shorter one.

    Args:
        count: Number of tasks.
        rows: Rows per task; tasks with a small pool (countries, elements) may have fewer.
        seed: Seed of all random choices.
        exclude: Families and categories to leave out, together with the tasks that are built from them.
        only: Use only this family.

    Returns:
        An iterator of tasks.

    Raises:
        DataError: ``count`` is below 1, ``rows`` is below 8, ``exclude`` or ``only`` has an unknown name, or no family
            is left; also while iterating, if the families that are left give no task without the excluded ones.
    """
    if count < 1:
        raise DataError(f"tasks: {count}. Expected 1 or more. Fix: ask for at least one task.")
    if rows < 8:
        raise DataError(f"rows: {rows}. Expected 8 or more, for training and evaluation. Fix: pass rows=8.")
    left_out = _excluded(exclude)
    kept = [family for family in FAMILIES if family.name not in left_out and not left_out & set(family.uses)]
    if only is not None:
        if only not in family_names():
            raise DataError(f"family: {only!r}. Expected the name of a family. {_nearest(only, family_names())}")
        kept = [family for family in kept if family.name == only]
    if not kept:
        raise DataError("exclude: all families. Expected that one is left. Fix: exclude fewer.")
    return _made(count, rows, seed, kept, left_out)


def _made(count: int, rows: int, seed: int, kept: list[Family], left_out: set[str]) -> Iterator[SyntheticTask]:
    done, number, last = 0, 0, 0
    shown: set[str] = set()  # prompts that are used in rows
    keys: dict[str, set[str]] = {family.name: set() for family in kept}
    while True:
        order = list(kept)
        order.sort(key=lambda family: Random(f"{seed}/{number}/{family.name}/order").random())
        for family in order:
            task = _drawn(family, number, rows, seed, left_out, keys[family.name], shown)
            if task is None:
                continue
            yield task
            done, last = done + 1, number
            if done == count:
                return
        number += 1
        if number - last > _EMPTY_ROUNDS:  # such as output formats of tasks that are all left out
            raise DataError(
                f"exclude: after {done} of {count} tasks, {', '.join(family.name for family in kept[:3])} and the others that "
                "are left give no task without what is left out. Expected that they can. Fix: exclude fewer."
            )


def _drawn(
    family: Family, number: int, rows: int, seed: int, left_out: set[str], keys: set[str], shown: set[str]
) -> SyntheticTask | None:
    """The task of a family in a round, preferably with parameters that it has not used yet."""
    spare: tuple[Goal, list[tuple[str, str]], tuple[str, ...]] | None = None
    for again in range(_REDRAWS):
        rng = Random(f"{seed}/{number}/{family.name}/{again}")
        goal = family.draw(rng)
        if left_out & set(goal.uses) or (goal.key in keys and spare is not None):
            continue
        pairs = _answered(goal, f"{seed}/{number}", rows)
        if not _varied(goal, pairs, rows):
            continue
        wordings = write_wordings(goal, _WORDINGS, rng)
        fresh = [wording for wording in wordings if wording not in shown]
        if len(wordings) < 8 or not fresh:
            continue
        first = fresh[0]
        spare = (goal, pairs, (first, *(w for w in wordings if w != first)))
        if goal.key not in keys:
            break
    if spare is None:
        return None
    goal, pairs, wordings = spare
    keys.add(goal.key)
    shown.add(wordings[0])
    return _task(family, number, goal, pairs, wordings)

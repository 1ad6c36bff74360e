"""Answers on disk: appended as they come, and bound to what they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptlora.errors import OutputError, one_line
from promptlora.evaluate.conditions import WITHOUT_ADAPTER
from promptlora.files import append_lines, replacing_file


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: which condition and row, what was said, and how many tokens the base read."""

    condition: str
    row: int
    text: str
    tokens: int


def _whole_answers(lines: Sequence[str]) -> Iterator[tuple[str, Answer]]:
    """Lines and their answers, without a line that a kill cut short."""
    for line in lines:
        try:
            yield line, Answer(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue


class AnswerFile:
    """Answers as JSON lines, appended as they come; a first line says what they belong to.

    Raises:
        OutputError: A file of another evaluation.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.answers: dict[tuple[str, int], Answer] = {}
        kept = [json.dumps(identity, sort_keys=True)]
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            if lines and lines[0] != kept[0]:
                raise OutputError(
                    f"{path}: answers of another evaluation (data, hypernetwork or settings differ); choose another "
                    "output folder or remove it"
                )
            for line, answer in _whole_answers(lines[1:]):
                self.answers[answer.condition, answer.row] = answer
                kept.append(line)
        with replacing_file(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep answers, and write them at once."""
        append_lines(self.path, [json.dumps(vars(answer), ensure_ascii=True) for answer in answers])
        self.answers.update({(answer.condition, answer.row): answer for answer in answers})


def reuse_baselines(path: Path, identity: dict[str, Any]) -> list[Answer]:
    """Answers of the base alone from another evaluation that differs in its hypernetwork only.

    Raises:
        OutputError: No such file, or one of other rows, base or settings.
    """
    if not path.is_file():
        raise OutputError(f"{path}: no such file; expected the answers of an evaluation to reuse")
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        theirs = dict(json.loads(first))
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"{path}: not the answers of an evaluation ({one_line(error)}); choose another --reuse"
        ) from error
    for key, value in identity.items():
        if key not in ("hypernetwork", "strength", "vectors") and theirs.get(key) != value:
            raise OutputError(
                f"{path}: its {key} is {theirs.get(key)}, here it is {value}; its answers cannot be reused"
            )
    return [answer for _, answer in _whole_answers(lines) if answer.condition in WITHOUT_ADAPTER]

"""Answers on disk: appended as they are generated, and tied to the evaluation that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptlora.errors import OutputError, one_line
from promptlora.evaluate.conditions import WITHOUT_ADAPTER
from promptlora.files import append_lines, replacing_file
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.settings import without_retired

ANSWERS_FILE = "answers.jsonl"
_OF_ADAPTERS = ("hypernetwork", "config", "vectors")  # fields that do not affect answers of the base alone
_OF_EXAMPLES = "in_context_examples"  # the only condition without an adapter whose answers depend on the examples


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: its condition and row, its text, and the number of tokens that the base read."""

    condition: str
    row: int
    text: str
    tokens: int


def _whole_answers(lines: Sequence[str]) -> Iterator[tuple[str, Answer]]:
    """Yield lines and their answers, skipping an incomplete line that a killed run left."""
    for line in lines:
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(answer.condition, str) and isinstance(answer.text, str):
            whole = all(isinstance(value, int) and value >= 0 for value in (answer.row, answer.tokens))
            if whole:
                yield line, answer


def read_answers(path: Path) -> tuple[dict[str, Any], list[Answer]]:
    """Read the identity and the answers of a file.

    Raises:
        OutputError: The file does not exist, or it does not hold the answers of an evaluation.
    """
    if not path.is_file():
        raise OutputError(f"{path}: no such file. Expected the answers of an evaluation. Fix: run it first")
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        identity = dict(json.loads(first))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{path}: not the answers of an evaluation ({one_line(error)}). Expected a file that promptlora eval wrote. "
            "Fix: choose another folder"
        ) from error
    return identity, [answer for _, answer in _whole_answers(lines)]


class AnswerFile:
    """Answers as JSON lines, appended as they are generated; the first line identifies the evaluation.

    Args:
        path: The file; it is created if it does not exist.
        identity: What the answers belong to: data, base, hypernetwork and settings.

    Raises:
        OutputError: The file belongs to another evaluation, or cannot be written.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.answers: dict[tuple[str, int], Answer] = {}
        kept: list[str] = []
        if path.exists():
            theirs, _ = read_answers(path)
            identity = dict(json.loads(json.dumps(identity)))
            if isinstance(theirs.get("config"), dict):  # an older version's file may have settings removed since
                theirs["config"] = without_retired(HyperNetworkConfig, theirs["config"])
            keys = {*theirs, *identity}
            if "hypernetwork" not in theirs or "hypernetwork" not in identity:  # one of the two used no adapter
                keys.difference_update(_OF_ADAPTERS)
            different = sorted(key for key in keys if theirs.get(key) != identity.get(key))
            identity = {**theirs, **identity}
            if different:
                raise OutputError(
                    f"{path}: answers of another evaluation ({', '.join(different)} differ). Expected the same data, base, "
                    "hypernetwork and settings. Fix: choose another output folder, or remove it"
                )
            for line, answer in _whole_answers(path.read_text(encoding="utf-8").splitlines()[1:]):
                self.answers[answer.condition, answer.row] = answer
                kept.append(line)
        with replacing_file(path) as temporary:
            lines = [json.dumps(identity, sort_keys=True), *kept]
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, answers: Sequence[Answer]) -> None:
        """Append answers to the file, all or none, and keep them in memory.

        Raises:
            OutputError: They cannot be written, for example because the disk is full. Earlier answers are kept.
        """
        try:
            append_lines(self.path, [json.dumps(vars(answer), ensure_ascii=True) for answer in answers])
        except OutputError as error:
            raise OutputError(f"{error}; run the same command again: it resumes") from error
        self.answers.update({(answer.condition, answer.row): answer for answer in answers})


def reuse_baselines(path: Path, identity: dict[str, Any]) -> list[Answer]:
    """Answers of the base alone, from another evaluation that differs only in its hypernetwork.

    Raises:
        OutputError: The file does not exist, or belongs to other rows, another base or other settings.
    """
    theirs, answers = read_answers(path)
    for key, value in identity.items():
        if key not in (*_OF_ADAPTERS, "examples") and theirs.get(key) != value:
            raise OutputError(
                f"{path}: its {key} is {theirs.get(key)}, here it is {value}; its answers cannot be reused. Expected an "
                "evaluation of the same rows, base and settings. Fix: reuse another evaluation"
            )
    same_examples = theirs.get("examples") == identity.get("examples")
    return [
        answer
        for answer in answers
        if answer.condition in WITHOUT_ADAPTER and (same_examples or answer.condition != _OF_EXAMPLES)
    ]

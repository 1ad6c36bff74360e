"""An evaluation: every row is answered under every condition, and the answers are scored.

Answers are written as they are generated, so that a killed evaluation resumes where it stopped. This module knows
``PromptLoRA`` and rows; it knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.data import Row
from promptlora.errors import DataError, OutputError, PromptError, one_line
from promptlora.evaluate.answers import ANSWERS_FILE, Answer, AnswerFile, read_answers, reuse_baselines
from promptlora.evaluate.conditions import CONDITIONS, DEFAULT_CONDITIONS, Condition
from promptlora.evaluate.prompts import Prompts
from promptlora.evaluate.report import Report, summarize
from promptlora.fingerprint import weights_digest
from promptlora.lora import LoRAWeights
from promptlora.models import base_fingerprint
from promptlora.settings import to_dict

_ADAPTERS_AT_ONCE = 128  # adapters in memory; further prompts are answered in later rounds

Progress = Callable[[str, int, int], None]


def evaluate(
    lm: PromptLoRA,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    other: Sequence[Row] = (),
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    examples: int = 3,
    max_new_tokens: int = 32,
    batch_size: int = 50,
    seed: int = 0,
    vectors: float | None = None,
    reuse: str | Path | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Answer every row under every condition, and score the answers.

    Prompts, lengths, conditions, settings and the output folder are checked before the first answer is generated.

    Args:
        lm: The model to evaluate.
        rows: Rows of one or more tasks. A task may have several prompts; each row uses its own.
        folder: Output folder for answers, ``report.json`` and ``report.md``; existing answers are kept.
        other: Further rows of these tasks (for example their training split). They are used to choose the second best
            constant answer and to draw examples; rows of other tasks are ignored.
        conditions: Some of :data:`CONDITIONS`.
        examples: Number of examples per prompt, in the conditions that have examples.
        max_new_tokens: Maximum length of an answer.
        batch_size: Rows per batch.
        seed: Seed of the permutation of prompts between tasks, the examples, and the bootstrap.
        vectors: Factor of the prompts' function vectors; by default the hypernetwork's own setting.
        reuse: Folder of an evaluation of another hypernetwork, from which the answers of the base alone are copied.
        on_progress: Called with the condition, the number of rows done and the total; for each condition, first before
            its adapters are written.

    Raises:
        DataError: There are no rows, a condition is unknown, a setting is out of range, or a control is not possible
            with these tasks.
        PromptError: A prompt or an input is too long or empty; the message names its task.
        OutputError: The folder holds another evaluation, or cannot be written.
    """
    output = _output(folder)
    run = _Run(lm, rows, other, conditions, examples, max_new_tokens, batch_size, seed, vectors)
    identity = run.identity()
    taken = [] if reuse is None else reuse_baselines(Path(reuse) / ANSWERS_FILE, identity)
    file = AnswerFile(output / ANSWERS_FILE, identity)
    fresh = [a for a in taken if a.condition in conditions and (a.condition, a.row) not in file.answers]
    if fresh:
        file.add(fresh)
    for condition in conditions:
        run.answer(condition, file, on_progress)
    report = summarize(rows, file.answers, conditions, identity, seed, other)
    report.write(output)
    return report


def rescore(rows: Sequence[Row], folder: str | Path, *, other: Sequence[Row] = ()) -> Report:
    """Score the answers of an evaluation again, without a model; incomplete conditions are left out.

    Args:
        rows: The rows of the evaluation, in the same order.
        folder: Folder of the evaluation.
        other: Further rows of these tasks; see :func:`evaluate`.

    Raises:
        OutputError: The folder has no answers, or answers to other rows.
    """
    identity, answers = complete_answers(rows, folder)
    found = {(answer.condition, answer.row): answer for each in answers.values() for answer in each}
    return summarize(rows, found, list(answers), identity, int(identity.get("seed", 0)), other)


def complete_answers(rows: Sequence[Row], folder: str | Path) -> tuple[dict[str, Any], dict[str, list[Answer]]]:
    """The identity of an evaluation and, for each complete condition, its answers in the order of the rows.

    Raises:
        OutputError: The folder has no answers, or answers to other rows.
    """
    path = _output(folder) / ANSWERS_FILE
    identity, answers = read_answers(path)
    if identity.get("data") != _digest(rows) or identity.get("rows") != len(rows):
        raise OutputError(
            f"{path}: answers to other rows ({identity.get('rows')}; here are {len(rows)}). Expected the data of the "
            "evaluation. Fix: pass the same files, split and rows per task"
        )
    found: dict[str, dict[int, Answer]] = {name: {} for name in CONDITIONS}
    for answer in answers:
        found.get(answer.condition, {})[answer.row] = answer
    whole = {name: each for name, each in found.items() if all(i in each for i in range(len(rows)))}
    return identity, {name: [each[i] for i in range(len(rows))] for name, each in whole.items()}


def _output(folder: str | Path) -> Path:
    """The output folder, which may not exist yet.

    Raises:
        OutputError: The path is empty, is a file, or is not valid for the file system.
    """
    if not str(folder).strip():
        raise OutputError("output folder '': it is empty. Expected a path. Fix: pass a folder")
    path = Path(folder)
    try:
        is_file = not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:  # the name is too long, or has a null character
        raise OutputError(
            f"{str(path)[:80]}: not a path ({one_line(error)[:80]}). Expected a folder. Fix: choose another name"
        ) from error
    if is_file:
        raise OutputError(f"{path}: is a file. Expected a folder. Fix: choose another path")
    return path


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.task, row.prompt, row.input, row.outputs, row.metric]).encode())
    return digest.hexdigest()[:16]


def _check(rows: Sequence[Row], conditions: Sequence[str], **least: tuple[int, int]) -> None:
    """Refuse settings out of range; each is passed as ``name=(value, minimum)``."""
    if not rows:
        raise DataError("rows: none were given. Expected one or more. Fix: check the file and the split")
    if not conditions:
        raise DataError(f"conditions: none were given. Expected some of {', '.join(CONDITIONS)}")
    for i, name in enumerate(conditions):
        if name not in CONDITIONS:
            raise DataError(f"condition {name!r}: unknown. Expected some of {', '.join(CONDITIONS)}")
        if name in conditions[:i]:
            raise DataError(f"condition {name!r}: given twice. Expected each at most once")
    for name, (value, smallest) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise DataError(f"{name}={value}: out of range. Expected a whole number of {smallest} or more")


class _Run:
    """One evaluation: what is read under each condition, and how adapters and answers are generated.

    The constructor checks everything that can be wrong with the rows.
    """

    def __init__(
        self,
        lm: PromptLoRA,
        rows: Sequence[Row],
        other: Sequence[Row],
        conditions: Sequence[str],
        examples: int,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        vectors: float | None,
    ) -> None:
        _check(
            rows,
            conditions,
            examples=(examples, 1),
            max_new_tokens=(max_new_tokens, 1),
            batch_size=(batch_size, 1),
            seed=(seed, 0),
        )
        self.lm, self.rows, self.conditions = lm, rows, conditions
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, batch_size, seed
        self.config = lm.hypernetwork.config
        self._default_vectors = float(getattr(self.config, "vectors", 0.0))
        self.vectors = self._default_vectors if vectors is None else vectors
        self.prompts = Prompts(rows, other, lm.tokenizer, self.config.max_prompt_tokens, seed, examples)
        self._texts: dict[str, list[str]] = {}  # by kind of adapter
        self._shown: dict[str, tuple[list[str] | None, list[int]]] = {}  # by what is shown: texts, tokens read
        for name in conditions:
            condition = CONDITIONS[name]
            if condition.adapter == "static" and not self.config.static:
                raise DataError(
                    f"condition {name!r}: this hypernetwork has no static part. Fix: leave the condition out"
                )
            kind = "own" if condition.adapter in ("mean", "static") else condition.adapter
            if kind and kind not in self._texts:
                self._texts[kind] = self.prompts.texts(kind)
            if condition.shown not in self._shown:
                shown = self.prompts.shown(condition.shown)
                self._shown[condition.shown] = shown, self._read(shown)

    def _read(self, shown: list[str] | None) -> list[int]:
        """Number of tokens that the base reads for each row; a row that leaves no room for an answer is refused."""
        read = self.lm.count_tokens([row.input for row in self.rows], shown)
        longest = getattr(self.lm.model.config.get_text_config(), "max_position_embeddings", None)
        for row, tokens in zip(self.rows, read, strict=True):
            if longest is not None and tokens + self.max_new_tokens > longest:
                raise PromptError(
                    f"task {row.task!r}: an input of {tokens} tokens and an answer of up to {self.max_new_tokens}. "
                    f"Expected at most {longest} together, which is what the base takes. Fix: remove the row, or lower "
                    "max_new_tokens"
                )
        return read

    def identity(self) -> dict[str, Any]:
        """The identity of the answers. It includes the hypernetwork only if a condition has an adapter."""
        lm = self.lm
        identity = {
            "rows": len(self.rows),
            "data": _digest(self.rows),
            "base": str(base_fingerprint(lm.model)["weights"])[:16],
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "template": hashlib.sha256(str(lm.tokenizer.chat_template).encode()).hexdigest()[:16],
            "examples": f"{self.prompts.mean_examples():.2f} a row, {self.prompts.examples_digest()}",
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        if any(CONDITIONS[name].adapter for name in self.conditions):
            identity |= {"hypernetwork": weights_digest(lm.hypernetwork), "config": to_dict(self.config)}
            if self.vectors:
                identity["vectors"] = self.vectors
        return identity

    def answer(self, name: str, file: AnswerFile, on_progress: Progress | None) -> None:
        """Generate the missing answers of a condition."""
        condition = CONDITIONS[name]
        shown, tokens = self._shown[condition.shown]
        left = [i for i in range(len(self.rows)) if (name, i) not in file.answers]
        done = len(self.rows) - len(left)
        if left and on_progress:  # writing the adapters also takes time
            on_progress(name, done, len(self.rows))
        for lora, adapter_of in self._adapters(condition, left):
            # Rows of similar length are put together, to reduce padding.
            order = sorted(adapter_of, key=lambda i: (tokens[i], i))
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                texts = self.lm.generate(
                    [self.rows[i].input for i in chosen],
                    lora,
                    adapter_index=None if lora is None else [adapter_of[i] for i in chosen],
                    in_context=None if shown is None else [shown[i] for i in chosen],
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                )
                file.add(
                    [
                        Answer(condition=name, row=i, text=text, tokens=tokens[i])
                        for i, text in zip(chosen, texts, strict=True)
                    ]
                )
                done += len(chosen)
                if on_progress:
                    on_progress(name, done, len(self.rows))

    def _adapters(
        self, condition: Condition, left: Sequence[int]
    ) -> Iterator[tuple[LoRAWeights | None, dict[int, int]]]:
        """Yield adapters in rounds of at most 128, each with the rows that use them (row index to adapter index)."""
        if not left:
            return
        if condition.adapter in ("", "static", "mean"):
            yield self._one_for_all(condition), dict.fromkeys(left, 0)
            return
        texts = self._texts[condition.adapter]
        distinct = list(dict.fromkeys(texts[i] for i in left))
        for start in range(0, len(distinct), _ADAPTERS_AT_ONCE):
            number = {text: at for at, text in enumerate(distinct[start : start + _ADAPTERS_AT_ONCE])}
            lora = self._adapt(list(number), in_context=bool(condition.shown))
            yield lora, {i: number[texts[i]] for i in left if texts[i] in number}

    def _one_for_all(self, condition: Condition) -> LoRAWeights | None:
        """One adapter for all rows: none (the base), the static part, or the mean over the distinct prompts."""
        if condition.adapter == "static":
            return self.lm.adapt(self.prompts.distinct[:1], generated=False)
        if condition.adapter == "mean":
            return self._adapt(self.prompts.distinct, in_context=False).mean()
        return None

    @torch.no_grad()
    def _adapt(self, texts: list[str], *, in_context: bool) -> LoRAWeights:
        """One adapter per text. Function vectors are only used for a prompt that is not in the context."""
        options: dict[str, Any] = {"in_context": in_context}
        vectors = 0.0 if in_context else self.vectors
        if vectors != self._default_vectors:
            options["vectors"] = vectors
        return self.lm.adapt(texts, **options)

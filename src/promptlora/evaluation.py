"""Scores of answers, the controls that show steering, and the report of an evaluation.

An evaluation runs the same rows under several conditions: the base alone, with the prompt in its context,
with the prompt's adapter, with another prompt's adapter, with the static part alone. Answers are written as
they come, so that a killed evaluation goes on where it stopped. It knows ``PromptLoRA`` and rows; nothing of
training.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
from rouge_score.rouge_scorer import RougeScorer

from promptlora.adaptation import PromptLoRA
from promptlora.data import Row
from promptlora.errors import DataError, OutputError, one_line
from promptlora.files import replacing_file
from promptlora.lora import LoRAWeights
from promptlora.prompts import gibberish

# --- scores of one answer ------------------------------------------------------------------------------

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE = RougeScorer(["rougeL"], use_stemmer=True)


def normalize(text: str) -> str:
    """Lower case, without punctuation, white space folded (as the Natural Instructions benchmark compares)."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def exact_match(answer: str, outputs: Sequence[str]) -> float:
    """100 when the answer equals one of the outputs after :func:`normalize`, else 0.

    Outputs that punctuation alone makes are compared as they stand.
    """
    ours = normalize(answer) or answer.strip()
    return 100.0 * any(ours == (normalize(output) or output.strip()) for output in outputs)


def rouge_l(answer: str, outputs: Sequence[str]) -> float:
    """ROUGE-L F1 (Lin 2004) with stemming, in percent, against the nearest output."""
    return 100.0 * max(float(_ROUGE.score(output, answer)["rougeL"].fmeasure) for output in outputs)


def first_line(answer: str) -> str:
    """The first line that is not empty."""
    return next((line for line in answer.splitlines() if line.strip()), "")


def score(metric: str, answer: str, outputs: Sequence[str]) -> float:
    """The task's own metric, 0 … 100: ``exact_match`` or ``rougeL``."""
    return exact_match(answer, outputs) if metric == "exact_match" else rouge_l(answer, outputs)


# --- conditions ----------------------------------------------------------------------------------------

CONDITIONS = {
    "base": "base, no prompt",
    "in_context": "base, prompt in context",
    "adapter": "adapter of the prompt, no prompt in context",
    "wrong_prompt": "adapter of another task's prompt",
    "gibberish": "adapter of random letters, as many words as the prompt",
    "mean_adapter": "mean of the adapters of all these tasks",
    "static": "static part alone, the same for every prompt",
    "adapter_in_context": "adapter of the prompt, and the prompt in context",
}
_WITHOUT_ADAPTER = ("base", "in_context")
DEFAULT_CONDITIONS = ("base", "in_context", "adapter", "wrong_prompt", "static")


def permute_tasks(tasks: Sequence[str], seed: int = 0) -> dict[str, str]:
    """A random permutation that leaves no task in its place: task to the task whose prompt it gets.

    Raises:
        DataError: Fewer than two tasks.
    """
    if len(tasks) < 2:
        raise DataError(f"{len(tasks)} task: the wrong-prompt control needs two or more; leave it out or add tasks")
    order = list(tasks)
    random.Random(seed).shuffle(order)
    return {task: order[(i + 1) % len(order)] for i, task in enumerate(order)}


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
        with self.path.open("a", encoding="utf-8") as handle:
            for answer in answers:
                self.answers[answer.condition, answer.row] = answer
                handle.write(json.dumps(vars(answer), ensure_ascii=True) + "\n")


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
    return [answer for _, answer in _whole_answers(lines) if answer.condition in _WITHOUT_ADAPTER]


# --- the evaluation ------------------------------------------------------------------------------------


def _identity(
    lm: PromptLoRA,
    rows: Sequence[Row],
    max_new_tokens: int,
    seed: int,
    strength: float | None,
    vectors: float | None,
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.task, row.prompt, row.input, row.outputs, row.metric]).encode())
    weights = hashlib.sha256()
    for name, value in lm.hypernetwork.state_dict().items():
        weights.update(name.encode())
        weights.update(value.detach().cpu().numpy().tobytes())
    return {
        "rows": len(rows),
        "data": digest.hexdigest()[:16],
        "hypernetwork": weights.hexdigest()[:16],
        "base": str(lm.hypernetwork.base.get("weights", ""))[:16],
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        **({} if strength is None else {"strength": strength}),
        **({} if vectors is None else {"vectors": vectors}),
    }


def evaluate(
    lm: PromptLoRA,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    max_new_tokens: int = 32,
    batch_size: int = 50,
    seed: int = 0,
    strength: float | None = None,
    vectors: float | None = None,
    reuse: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Answer every row under every condition, and score the answers.

    Args:
        lm: What is evaluated.
        rows: Rows of one or more tasks.
        folder: Where answers, ``report.json`` and ``report.md`` go; answers that are there already are kept.
        conditions: Some of :data:`CONDITIONS`.
        max_new_tokens: Longest answer.
        batch_size: Rows that run at once.
        seed: Of the permutation of prompts between tasks, and of the bootstrap.
        strength: Factor of the generated part; by default as the hypernetwork says.
        vectors: Factor of the prompts' function vectors; by default as the hypernetwork says.
        reuse: Folder of an evaluation of another hypernetwork: the answers of the base alone are taken from there.
        on_progress: Called with the condition, rows done and rows in all; first before its adapters are written.

    Raises:
        DataError: An unknown condition.
        OutputError: A folder that holds another evaluation.
    """
    unknown = [c for c in conditions if c not in CONDITIONS]
    if unknown:
        raise DataError(f"condition {unknown[0]!r}; expected some of {', '.join(CONDITIONS)}")
    prompts = {row.task: row.prompt for row in rows}
    tasks, own = list(prompts), list(prompts.values())
    adapter_of = {task: i for i, task in enumerate(tasks)}
    adapt = partial(lm.adapt, strength=strength, vectors=vectors)
    swapped = permute_tasks(tasks, seed) if "wrong_prompt" in conditions else {}
    identity = _identity(lm, rows, max_new_tokens, seed, strength, vectors)
    file = AnswerFile(Path(folder) / "answers.jsonl", identity)
    if reuse is not None:
        taken = reuse_baselines(Path(reuse) / "answers.jsonl", identity)
        file.add([a for a in taken if a.condition in conditions and (a.condition, a.row) not in file.answers])
    for condition in conditions:
        left = [i for i in range(len(rows)) if (condition, i) not in file.answers]
        if not left:
            continue
        done = len(rows) - len(left)
        if on_progress:  # writing adapters takes a while too
            on_progress(condition, done, len(rows))
        lora: LoRAWeights | None = None
        if condition == "adapter":
            lora = adapt(own)
        elif condition == "adapter_in_context":  # function vectors stand for a prompt that is not there
            lora = adapt(own, vectors=0.0)
        elif condition == "wrong_prompt":
            lora = adapt([prompts[swapped[task]] for task in tasks])
        elif condition == "gibberish":
            longest = lm.hypernetwork.config.max_prompt_tokens
            lora = adapt([gibberish(prompt, seed + i, longest) for i, prompt in enumerate(own)])
        elif condition == "mean_adapter":
            lora = adapt(own).mean().select([0] * len(tasks))
        elif condition == "static":
            lora = lm.adapt(own, generated=False)
        shown = condition in ("in_context", "adapter_in_context")
        read = lm.count_tokens([rows[i].input for i in left], [rows[i].prompt for i in left] if shown else None)
        tokens_of = dict(zip(left, read, strict=True))
        left.sort(key=lambda i: (tokens_of[i], i))  # rows of one length together, so that little is padding
        for start in range(0, len(left), batch_size):
            chosen = left[start : start + batch_size]
            context = [rows[i].prompt for i in chosen] if shown else None
            texts = lm.generate(
                [rows[i].input for i in chosen],
                lora,
                adapter_index=None if lora is None else [adapter_of[rows[i].task] for i in chosen],
                in_context=context,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            file.add(
                [
                    Answer(condition=condition, row=i, text=text, tokens=tokens_of[i])
                    for i, text in zip(chosen, texts, strict=True)
                ]
            )
            done += len(chosen)
            if on_progress:
                on_progress(condition, done, len(rows))
    report = summarize(rows, file.answers, conditions, identity, seed)
    report.write(Path(folder))
    return report


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores, each the mean over tasks of the task's mean over rows, 0 … 100.

    Attributes:
        identity: What was evaluated.
        overall: Condition to ``strict``, ``first_line``, ``rougeL`` and ``tokens`` (mean tokens the base reads).
        majority: Score of the best constant answer, mean over tasks.
        tasks: Task to metric, rows, majority and the strict score under each condition.
        differences: ``a - b`` of the strict score with its 95 % bootstrap interval over tasks.
    """

    identity: dict[str, Any]
    overall: dict[str, dict[str, float]]
    majority: float
    tasks: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))

    def to_markdown(self) -> str:
        """The tables, for people."""
        lines = [
            "| condition | strict | first line | ROUGE-L | tokens read |",
            "|---|---:|---:|---:|---:|",
        ]
        for condition, values in self.overall.items():
            lines.append(
                f"| {CONDITIONS[condition]} | {values['strict']:.1f} | {values['first_line']:.1f} | "
                f"{values['rougeL']:.1f} | {values['tokens']:.0f} |"
            )
        lines.append(
            f"| best constant answer of each task (majority) | {self.majority:.1f} | {self.majority:.1f} | | |"
        )
        lines += ["", "| difference (strict) | points | 95 % interval over tasks |", "|---|---:|---|"]
        for name, d in self.differences.items():
            lines.append(f"| {name} | {d['points']:+.1f} | {d['low']:+.1f} … {d['high']:+.1f} |")
        shown = list(self.overall)
        lines += [
            "",
            f"| task | metric | rows | majority | {' | '.join(shown)} |",
            "|---|---|---:|---:|" + "---:|" * len(shown),
        ]
        for task, of_task in self.tasks.items():
            cells = " | ".join(f"{of_task['strict'][c]:.1f}" for c in shown)
            lines.append(f"| {task} | {of_task['metric']} | {of_task['rows']} | {of_task['majority']:.1f} | {cells} |")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md``."""
        with replacing_file(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        with replacing_file(folder / "report.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")


def majority_score(rows: Sequence[Row]) -> float:
    """The score of the most frequent output of these rows, given to all of them."""
    counts = Counter(output for row in rows for output in dict.fromkeys(row.outputs))
    constant = counts.most_common(1)[0][0]
    return fmean(score(row.metric, constant, row.outputs) for row in rows)


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values (Efron 1979)."""
    rng = numpy.random.default_rng(seed)
    array = numpy.asarray(values, dtype=float)
    means = array[rng.integers(0, len(array), size=(draws, len(array)))].mean(axis=1)
    low, high = numpy.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarize(
    rows: Sequence[Row],
    answers: dict[tuple[str, int], Answer],
    conditions: Sequence[str],
    identity: dict[str, Any],
    seed: int = 0,
) -> Report:
    """Scores of answers: per task, over tasks, and differences between conditions."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[row.task].append(i)
    measures: dict[str, Callable[[Row, str], float]] = {
        "strict": lambda row, text: score(row.metric, text, row.outputs),
        "first_line": lambda row, text: score(row.metric, first_line(text), row.outputs),
        "rougeL": lambda row, text: rouge_l(text, row.outputs),
    }
    by_task = {
        condition: {
            measure: {
                task: fmean(function(rows[i], answers[condition, i].text) for i in at) for task, at in members.items()
            }
            for measure, function in measures.items()
        }
        for condition in conditions
    }
    majority = {task: majority_score([rows[i] for i in at]) for task, at in members.items()}
    overall = {
        condition: {
            **{measure: fmean(values.values()) for measure, values in by_task[condition].items()},
            "tokens": fmean(answers[condition, i].tokens for i in range(len(rows))),
        }
        for condition in conditions
    }
    pairs = [(a, b) for a, b in _COMPARED if a in by_task and b in by_task]
    differences = {}
    for a, b in pairs:
        each = [by_task[a]["strict"][task] - by_task[b]["strict"][task] for task in members]
        low, high = bootstrap_interval(each, seed)
        differences[f"{a} - {b}"] = {"points": fmean(each), "low": low, "high": high}
    return Report(
        identity=identity,
        overall=overall,
        majority=fmean(majority.values()),
        tasks={
            task: {
                "metric": rows[at[0]].metric,
                "rows": len(at),
                "majority": majority[task],
                "strict": {c: by_task[c]["strict"][task] for c in conditions},
                "first_line": {c: by_task[c]["first_line"][task] for c in conditions},
            }
            for task, at in members.items()
        },
        differences=differences,
    )


_COMPARED = (
    ("adapter", "in_context"),
    ("adapter", "wrong_prompt"),
    ("adapter", "gibberish"),
    ("adapter", "mean_adapter"),
    ("adapter", "static"),
    ("adapter", "base"),
    ("adapter_in_context", "in_context"),
)

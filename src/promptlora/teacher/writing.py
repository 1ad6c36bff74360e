"""``teach``: run a teacher on every row and write the cache, shard by shard.

A shard is a fixed range of rows. It is written completely before its checksum is added to the index; shards that are
not in the index are computed again. A killed run therefore resumes where it stopped and ends with the same bytes. This
module knows rows, files and the requests to a teacher; it knows nothing of how a teacher runs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from promptlora.data import Row
from promptlora.errors import ConfigError, DataError, ModelError, OutputError
from promptlora.files import replacing_file
from promptlora.losses import TeacherTargets
from promptlora.teacher import cache as layout
from promptlora.teacher.cache import Shard, read_index, shard_file, write_index
from promptlora.teacher.identity import MANIFEST_FILE, Manifest, TeachConfig, make_manifest, read_manifest
from promptlora.teacher.online import OnRows, Pair
from promptlora.teacher.rows import Lesson, lessons, rows_digest, teacher_context, without_repeats

OnProgress = Callable[[str, int, int], None]
_TOO_LONG = ("input", "answer", "context")
_REASONS = {"data": _TOO_LONG, "teacher": (*_TOO_LONG, "unfinished", "empty")}


@runtime_checkable
class Teacher(Protocol):
    """What runs the model: ``OnlineTeacher`` or ``VllmTeacher``."""

    name: str
    dtype: str

    def targets(self, rows: Sequence[Pair], k: int, on_rows: OnRows | None = None) -> TeacherTargets:
        """The ``k`` most likely tokens at every answer token, one row after another."""

    def answers(
        self, contexts: Sequence[Sequence[int]], max_tokens: int, on_rows: OnRows | None = None
    ) -> list[list[int] | None]:
        """Greedy answers without the end token; None for an answer that did not end."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Summary of a finished run.

    Attributes:
        output: The folder.
        rows: Number of rows in the cache.
        answer_tokens: Number of answer tokens in the cache.
        shards: Number of shards.
        shards_written: Number of shards that this run wrote; the others existed before.
        bytes: Size of all shards.
        left_out: Number of rows that are not in the cache, by reason: ``repeated``; too long for ``input``, ``answer``
            or ``context``; and, if the teacher writes the answers, ``unfinished`` and ``empty`` answers.
        rows_file: Training data with the teacher's answers, if the teacher wrote them.
    """

    output: str
    rows: int
    answer_tokens: int
    shards: int
    shards_written: int
    bytes: int
    left_out: dict[str, int]
    rows_file: str | None


def teach(
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    folder: str | Path,
    config: TeachConfig,
    *,
    fingerprint: Mapping[str, str | int],
    on_progress: OnProgress | None = None,
) -> Taught:
    """Write the cache of a teacher's log-probabilities, or the missing part of it.

    Args:
        teacher: What runs the model.
        tokenizer: The student's tokenizer; the teacher's must be the same (``check_same_tokenizer``).
        rows: The data.
        folder: The output folder; a folder that holds part of the same cache is completed.
        config: The settings.
        fingerprint: Identifies the teacher, as returned by ``promptlora.models.base_fingerprint``; may include its
            ``name``.
        on_progress: Called with ``answers`` or ``rows``, the number done and the total.

    Raises:
        ConfigError: ``top_k`` is larger than the vocabulary.
        OutputError: The folder holds another cache or other files, or cannot be written.
        DataError: The manifest or index is damaged, or no row is short enough.
        ModelError: The teacher returned a token that the tokenizer does not have.
    """
    folder = Path(folder)
    if config.top_k > len(tokenizer):
        raise ConfigError(f"top_k={config.top_k}; expected at most {len(tokenizer)}, the tokens of the teacher")
    given, rows = len(rows), without_repeats(rows, config.answers)
    manifest = make_manifest(
        tokenizer,
        config,
        teacher=fingerprint,
        backend=teacher.name,
        dtype=teacher.dtype,
        data=rows_digest(rows, config.answers),
        rows=len(rows),
    )
    _prepare(folder, manifest)
    done = {shard.number: shard for shard in read_index(folder) if not shard.damage(folder)}
    missing = [number for number in range(manifest.shards) if number not in done]
    size = config.rows_per_shard
    finished = len(rows) - sum(len(rows[n * size : (n + 1) * size]) for n in missing)
    if on_progress:
        on_progress("rows", finished, len(rows))
    for number in missing:
        stretch = rows[number * size : (number + 1) * size]
        counted = _Progress(on_progress, finished, len(stretch), len(rows))
        kept, left_out = _lessons(teacher, tokenizer, stretch, config, counted)
        counted.start("rows", len(kept))
        found = teacher.targets([(one.context, one.answer) for one in kept], config.top_k, counted) if kept else None
        if found is not None and found.ids is not None and int(found.ids.max()) >= len(tokenizer):
            raise ModelError(
                f"the teacher names token {int(found.ids.max())}, the tokenizer has {len(tokenizer)}; lower top_k"
            )
        done[number] = _write_shard(folder, number, kept, found, left_out, config)
        write_index(folder, done.values())
        finished += len(stretch)
        if on_progress:
            on_progress("rows", finished, len(rows))
    shards = [done[number] for number in sorted(done)]
    total: Counter[str] = Counter({"repeated": given - len(rows), **dict.fromkeys(_REASONS[config.answers], 0)})
    for shard in shards:
        total.update(shard.left_out)
    if not any(shard.rows for shard in shards):
        reasons = ", ".join(f"{name} {count}" for name, count in total.items() if count)
        raise DataError(f"{folder}: none of {given} rows is left ({reasons}); raise the limits")
    return Taught(
        output=str(folder),
        rows=sum(shard.rows for shard in shards),
        answer_tokens=sum(shard.tokens for shard in shards),
        shards=len(shards),
        shards_written=len(missing),
        bytes=sum(shard.bytes for shard in shards),
        left_out=dict(total),
        rows_file=str(_write_rows(folder, shards)) if config.answers == "teacher" else None,
    )


def _prepare(folder: Path, manifest: Manifest) -> None:
    """Create the folder of the cache, or check that it belongs to this cache, and remove half-written files of a killed run."""
    parts = (MANIFEST_FILE, layout.INDEX_FILE, layout.ROWS_FILE, "shard-*.safetensors")
    begun = (folder / MANIFEST_FILE).is_file()
    if begun:
        differs = read_manifest(folder).difference(manifest)
        if differs and (folder / layout.INDEX_FILE).is_file():
            raise OutputError(f"{folder}: holds a cache with {differs}; use the same, or another output folder")
        begun = not differs  # a cache without a complete shard can be overwritten
    elif folder.exists() and not (
        folder.is_dir() and all(file.name.startswith(f".{MANIFEST_FILE}.") for file in folder.iterdir())
    ):
        raise OutputError(f"{folder}: exists and is no cache; choose another output folder")
    for name in parts:
        for left in folder.glob(f".{name}.*"):
            left.unlink(missing_ok=True)
    if not begun:
        manifest.write(folder)


class _Progress:
    """Reports progress as a share of all rows, including rows that are skipped."""

    def __init__(self, report: OnProgress | None, before: int, size: int, total: int) -> None:
        self.report, self.before, self.size, self.total = report, before, size, total

    def start(self, stage: str, count: int) -> None:
        self.stage, self.count, self.done = stage, count, 0

    def __call__(self, more: int) -> None:
        self.done += more
        if self.report:
            self.report(self.stage, self.before + self.size * self.done // max(1, self.count), self.total)


def _lessons(
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    config: TeachConfig,
    counted: _Progress,
) -> tuple[list[Lesson], Counter[str]]:
    """The lessons for a range of rows, with the teacher's own answers if requested."""
    if config.answers == "data":
        return lessons(tokenizer, rows, config)
    contexts = [teacher_context(tokenizer, row.prompt, row.input, config.place) for row in rows]
    left_out: Counter[str] = Counter()
    short = [i for i, ids in enumerate(contexts) if len(ids) + config.max_answer_tokens <= config.max_tokens]
    left_out["context"] = len(rows) - len(short)
    counted.start("answers", len(short))
    written = teacher.answers([contexts[i] for i in short], config.max_answer_tokens, counted)
    answered = []
    for i, ids in zip(short, written, strict=True):
        text = None if ids is None else str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        if text is None:
            left_out["unfinished"] += 1
        elif not text:
            left_out["empty"] += 1
        else:
            answered.append(replace(rows[i], outputs=(text,)))
    kept, too_long = lessons(tokenizer, answered, config)
    return kept, left_out + too_long


def _write_shard(
    folder: Path,
    number: int,
    kept: Sequence[Lesson],
    found: TeacherTargets | None,
    left_out: Counter[str],
    config: TeachConfig,
) -> Shard:
    lengths = [len(one.answer) for one in kept]
    tokens = sum(lengths)
    shape = (tokens, config.top_k)
    ids, log_probs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
    if found is not None:
        assert found.ids is not None
        assert found.log_probs.shape == shape
        ids, log_probs = found.ids.to("cpu", torch.int32), found.log_probs.to("cpu", torch.float32)
    keys = torch.frombuffer(
        bytearray(bytes.fromhex("".join(one.key for one in kept))) or bytearray(32), dtype=torch.uint8
    )
    tensors: dict[str, Tensor] = {
        layout.KEYS: keys[: 32 * len(kept)].reshape(-1, 32),
        layout.STARTS: torch.tensor([0, *lengths]).cumsum(0),
        layout.ANSWERS: torch.tensor([token for one in kept for token in one.answer], dtype=torch.int32),
        layout.IDS: ids.contiguous(),
        layout.LOG_PROBS: log_probs.contiguous(),
    }
    if config.answers == "teacher":
        lines = "".join(json.dumps(_values(one.row), ensure_ascii=False) + "\n" for one in kept).encode()
        tensors[layout.ROWS] = torch.frombuffer(bytearray(lines or b"\n"), dtype=torch.uint8)
    path = folder / shard_file(number)
    with replacing_file(path) as temporary:
        save_file(tensors, temporary)
    with path.open("rb") as handle:
        checksum = hashlib.file_digest(handle, "sha256").hexdigest()
    return Shard(
        number=number,
        rows=len(kept),
        tokens=tokens,
        bytes=path.stat().st_size,
        sha256=checksum,
        left_out={name: count for name, count in sorted(left_out.items()) if count},
    )


def _values(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if value != ""}


def _write_rows(folder: Path, shards: Sequence[Shard]) -> Path:
    """Write the rows of all shards, with the teacher's answers, as one data file."""
    path = folder / layout.ROWS_FILE
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        for shard in shards:
            with safe_open(folder / shard.file, framework="pt") as handle:
                file.write(handle.get_tensor(layout.ROWS).numpy().tobytes() if shard.rows else b"")
    return path

"""``TeacherCache``: the reader of a cache, and the layout of its files.

A cache is a folder: ``manifest.json`` (what it was made from), ``index.json`` (its shards and their checksums) and
``shard-00000.safetensors`` and so on. For each row a shard holds the key and the answer tokens, and for each answer
token the ``k`` most likely tokens with their log-probabilities. This module knows files; it knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from promptlora.errors import DataError, one_line
from promptlora.files import replacing_file
from promptlora.fingerprint import SAMPLE
from promptlora.losses import TeacherTargets
from promptlora.reading import is_file, read_json
from promptlora.teacher.identity import Manifest, read_manifest, template_digest, tokenizer_digest

INDEX_FILE = "index.json"
ROWS_FILE = "rows.jsonl"
# The tensors of a shard with r rows and n answer tokens.
KEYS = "keys"  # uint8 [r, 32]
STARTS = "starts"  # int64 [r + 1]: answer i has tokens starts[i] … starts[i + 1]
ANSWERS = "answers"  # int32 [n]
IDS = "ids"  # int32 [n, k]
LOG_PROBS = "log_probs"  # float32 [n, k]
ROWS = "rows"  # uint8: the rows as JSON lines, present if the teacher wrote their answers


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One entry of the index.

    Attributes:
        number: Number of the shard, from 0.
        rows: Number of rows in the shard.
        tokens: Number of answer tokens in the shard.
        bytes: Size of the file.
        sha256: SHA-256 of the file, in hex.
        left_out: Number of rows that were skipped, by reason.
    """

    number: int
    rows: int
    tokens: int
    bytes: int
    sha256: str
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its file."""
        return shard_file(self.number)

    def damage(self, folder: Path) -> str | None:
        """Read the whole file and describe what is wrong with it; None if it is intact."""
        path = folder / self.file
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"{size} bytes, expected {self.bytes}"
            with path.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            return error.strerror or one_line(error)
        return None if found == self.sha256 else f"checksum {found[:12]}, expected {self.sha256[:12]}"


def shard_file(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:05d}.safetensors"


def read_index(folder: Path) -> list[Shard]:
    """The complete shards, in order; empty if there is no index yet.

    Raises:
        DataError: A damaged index.
    """
    path = folder / INDEX_FILE
    if not is_file(path):
        return []
    try:
        return sorted((Shard(**values) for values in read_json(path, DataError)), key=_number)
    except (ValueError, TypeError, OSError) as error:
        raise DataError(
            f"{path}: a damaged index ({one_line(error)}); remove it and run promptlora teach again"
        ) from error


def write_index(folder: Path, shards: Iterable[Shard]) -> None:
    """Write the index atomically."""
    lines = ",\n".join(json.dumps(asdict(shard)) for shard in sorted(shards, key=_number))
    with replacing_file(folder / INDEX_FILE) as temporary:
        temporary.write_text(f"[{lines}]\n", encoding="utf-8")


def _number(shard: Shard) -> int:
    return shard.number


class TeacherCache:
    """The targets of a cache, looked up by row key; create one with :meth:`open`.

    Files are memory-mapped, not read as a whole. The checksum of a shard is verified when the shard is first used.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: Sequence[Shard], open_shards: int) -> None:
        self.folder, self.manifest, self.shards = folder, manifest, list(shards)
        self._open_shards = open_shards
        self._opened: OrderedDict[int, tuple[Any, Tensor]] = OrderedDict()
        self._verified: set[int] = set()
        self._firsts = [0, *accumulate(shard.rows for shard in self.shards)]
        self._where: dict[bytes, int] = {}
        for shard in self.shards:
            keys = self._read_keys(shard)
            first = self._firsts[shard.number]
            self._where.update((key, first + row) for row, key in enumerate(keys))

    @classmethod
    def open(
        cls,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        place: str = "user",
        teacher: Mapping[str, str | int] | None = None,
        open_shards: int = 64,
    ) -> TeacherCache:
        """Open a cache.

        Args:
            folder: Written by ``promptlora teach``.
            tokenizer: The student's tokenizer; the cache must have been made for it and for its chat template.
            place: Where the prompt must have stood in the teacher's context.
            teacher: Fingerprint of the teacher that must have made the cache; None accepts any teacher.
            open_shards: Maximum number of files that are mapped at the same time.

        Raises:
            DataError: The cache is missing, unfinished or damaged, or has another tokenizer, template, place or
                teacher.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        again = "run promptlora teach for this base, into another folder"
        if manifest.tokenizer != tokenizer_digest(tokenizer):
            raise DataError(f"{folder}: made for another tokenizer than this base has; {again}")
        if manifest.template != template_digest(tokenizer):
            raise DataError(f"{folder}: made with another chat template than this base has; {again}")
        if manifest.config.place != place:
            raise DataError(
                f"{folder}: its prompts stand in the {manifest.config.place} turn, expected {place}; {again}"
            )
        for name, value in (teacher or {}).items():
            if name not in ("name", SAMPLE) and manifest.teacher.get(name) != value:
                found = str(manifest.teacher.get(name))[:12]
                raise DataError(
                    f"{folder}: of another teacher ({name} is {found}, expected {str(value)[:12]}); {again}"
                )
        shards = read_index(folder)
        if [shard.number for shard in shards] != list(range(manifest.shards)):
            raise DataError(
                f"{folder}: {len(shards)} of {manifest.shards} shards are there; run the same promptlora teach again, "
                "which goes on where it stopped"
            )
        return cls(folder, manifest, shards, open_shards)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and _raw(key) in self._where

    @property
    def tokens(self) -> int:
        """The number of answer tokens."""
        return sum(shard.tokens for shard in self.shards)

    def targets(self, keys: Sequence[str]) -> TeacherTargets:
        """Log-probabilities ``[n, k]`` of the answer tokens of the given rows, one row after another.

        Args:
            keys: :func:`promptlora.teacher.key_of` of each row.

        Raises:
            DataError: A row is not in the cache, or a shard is damaged.
        """
        log_probs, ids = [], []
        for key in keys:
            handle, span = self._row(key)
            log_probs.append(handle.get_slice(LOG_PROBS)[span])
            ids.append(handle.get_slice(IDS)[span].long())
        if not keys:
            empty = torch.zeros(0, self.manifest.config.top_k)
            return TeacherTargets(empty, empty.long())
        return TeacherTargets(torch.cat(log_probs), torch.cat(ids))

    def answer(self, key: str) -> list[int]:
        """Token ids of a row's answer, including the end token.

        Raises:
            DataError: The row is not in the cache, or a shard is damaged.
        """
        handle, span = self._row(key)
        ids: list[int] = handle.get_slice(ANSWERS)[span].tolist()
        return ids

    # --- shards ------------------------------------------------------------------------------------------

    def _row(self, key: str) -> tuple[Any, slice]:
        """The open shard that holds a row, and the slice of the row's answer tokens in it."""
        where = self._where.get(_raw(key))
        if where is None:
            for shard in self.shards:  # check for a damaged shard first, which is the more likely reason
                self._verify(shard)
            raise DataError(
                f"{self.folder}: no row {key[:12]}… among {len(self)}; expected a prompt, input and first answer that were "
                "taught; run promptlora teach on this data with the limits of this training"
            )
        number = bisect_right(self._firsts, where) - 1
        handle, starts = self._open(self.shards[number])
        row = where - self._firsts[number]
        return handle, slice(int(starts[row]), int(starts[row + 1]))

    def _open(self, shard: Shard) -> tuple[Any, Tensor]:
        if shard.number not in self._opened:
            self._verify(shard)
            handle = _mapped(self.folder / shard.file)
            self._opened[shard.number] = handle, handle.get_tensor(STARTS)
            if len(self._opened) > self._open_shards:
                self._opened.popitem(last=False)
        self._opened.move_to_end(shard.number)
        return self._opened[shard.number]

    def _verify(self, shard: Shard) -> None:
        if shard.number not in self._verified:
            damage = shard.damage(self.folder)
            if damage:
                raise self._damaged(shard, damage)
            self._verified.add(shard.number)

    def _damaged(self, shard: Shard, damage: str) -> DataError:
        return DataError(
            f"{self.folder / shard.file}: damaged ({damage}); run the same promptlora teach again, which makes this "
            "shard anew and keeps the others"
        )

    def _read_keys(self, shard: Shard) -> list[bytes]:
        try:
            keys = _mapped(self.folder / shard.file).get_tensor(KEYS)
            if keys.dtype != torch.uint8 or keys.shape != (shard.rows, 32):
                raise ValueError(f"keys {list(keys.shape)}, expected {[shard.rows, 32]}")
        except (SafetensorError, OSError, ValueError) as error:
            raise self._damaged(shard, one_line(error)) from error
        return [row.tobytes() for row in keys.numpy()]


def _raw(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError:
        return b""


def _mapped(path: Path) -> Any:
    return safe_open(path, framework="pt")

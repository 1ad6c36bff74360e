"""What a cache was made from (teacher, tokenizer, template, data, settings), and how two such descriptions differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from promptlora.errors import ConfigError, DataError, ModelError, one_line
from promptlora.files import replacing_file
from promptlora.fingerprint import SAMPLE
from promptlora.reading import is_file, read_json
from promptlora.settings import check
from promptlora.text import PLACES, render_chat

FORMAT = 1
MANIFEST_FILE = "manifest.json"
ANSWERS = ("data", "teacher")

# A probe of what may differ between two tokenizers with the same vocabulary: merges, normalisation, digits, white
# space.
_PROBE = "The cat's naïve résumé:\n\n\t12345 + 6.7e-8 = ?  ﬁne … 日本語 🙂 <b>done</b>"


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Settings of ``promptlora teach``.

    Attributes:
        top_k: Number of most likely tokens that are kept of each distribution; all other tokens are the tail.
        answers: Which answer is scored: ``data``, the row's first answer, or ``teacher``, an answer that the teacher
            generates greedily.
        place: Where the prompt stands in the teacher's context: the ``user`` or the ``system`` turn.
        max_input_tokens: Maximum length of the student's rendered input; the same as in the training's data settings.
        max_answer_tokens: Maximum length of the answer with its end token; the same as in the training's data settings.
        max_tokens: Maximum length of prompt, input and answer together, in the teacher's context.
        rows_per_shard: Rows that are written together; a kill loses at most this many.
    """

    top_k: int = 64
    answers: str = "data"
    place: str = "user"
    max_input_tokens: int = 512
    max_answer_tokens: int = 256
    max_tokens: int = 2048
    rows_per_shard: int = 512

    def __post_init__(self) -> None:
        check(self)
        for name in ("top_k", "max_input_tokens", "max_answer_tokens", "max_tokens", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected 1 or more")
        for name, choices in (("answers", ANSWERS), ("place", PLACES)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(choices)}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that turns text into ids: every token with its id, the end token, and the ids of a probe."""
    probe = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return _digest([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, list(probe)])


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the chat template's source (rendered text may contain the current date)."""
    return _digest(tokenizer.chat_template or "")


def check_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher whose tokenizer or chat template differs from the student's.

    Raises:
        ModelError: They differ; the message names the first difference.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    expected = "expected a teacher with the tokenizer of the base"
    differing = [token for token in sorted({*ours, *theirs}) if ours.get(token) != theirs.get(token)]
    if differing:
        token = differing[0]
        raise ModelError(
            f"token {token!r} is {theirs.get(token, 'unknown')} to the teacher and {ours.get(token, 'unknown')} to the "
            f"base ({len(differing)} tokens differ); {expected}"
        )
    if teacher.eos_token_id != student.eos_token_id:
        raise ModelError(
            f"answers end with token {teacher.eos_token_id} at the teacher and {student.eos_token_id} at the base; {expected}"
        )
    probes = [tokenizer(_PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (teacher, student)]
    if probes[0] != probes[1]:
        raise ModelError(
            f"the teacher splits a text into {len(probes[0])} tokens and the base into {len(probes[1])}; {expected}"
        )
    for place in PLACES:
        for prompt in (None, "Say it."):
            rendered = [render_chat(tokenizer, "x", prompt, place=place) for tokenizer in (teacher, student)]
            if rendered[0] != rendered[1]:
                raise ModelError(
                    f"the teacher's chat template gives {rendered[0][:60]!r} where the base's gives {rendered[1][:60]!r}; "
                    "expected the same template; copy the base's into the teacher's folder"
                )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache was made from.

    Attributes:
        format: Version of the layout.
        backend: What ran the teacher: ``transformers`` or ``vllm``.
        dtype: Dtype of the teacher's weights.
        teacher: Name and fingerprint of the teacher. The name says where it was loaded from; the fingerprint identifies
            it.
        tokenizer: :func:`tokenizer_digest` of the base.
        template: :func:`template_digest` of the base.
        data: A hash of all rows, in order.
        rows: Number of these rows.
        config: The settings.
    """

    format: int
    backend: str
    dtype: str
    teacher: dict[str, str | int]
    tokenizer: str
    template: str
    data: str
    rows: int
    config: TeachConfig

    @property
    def shards(self) -> int:
        """Number of shards of the finished cache."""
        return -(-self.rows // self.config.rows_per_shard)

    def flat(self) -> dict[str, Any]:
        """All values by name, settings first, without the teacher's name and the sample of its weights."""
        values = asdict(self)
        config, teacher = values.pop("config"), values.pop("teacher")
        return {**config, **{f"teacher {k}": v for k, v in teacher.items() if k not in ("name", SAMPLE)}, **values}

    def difference(self, other: Manifest) -> str | None:
        """A description of the first value that differs from another manifest; None if they agree."""
        ours, theirs = self.flat(), other.flat()
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                return f"{name}={_short(ours.get(name))}, not {_short(theirs.get(name))}"
        return None

    def write(self, folder: Path) -> None:
        """Write the manifest atomically."""
        with replacing_file(folder / MANIFEST_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else repr(value)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a cache.

    Raises:
        DataError: The manifest is missing, damaged, or of another version.
    """
    path = folder / MANIFEST_FILE
    if not is_file(path):
        raise DataError(f"{folder}: no {MANIFEST_FILE}; expected a folder written by promptlora teach")
    try:
        values = read_json(path, DataError)
        found = values["format"]
        if found == FORMAT:
            config = TeachConfig(**values.pop("config"))
            return Manifest(**{**values, "teacher": dict(values["teacher"])}, config=config)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise DataError(
            f"{path}: a damaged manifest ({one_line(error)}); remove the folder and run promptlora teach again"
        ) from error
    raise DataError(f"{path}: format {found!r}; this promptlora reads {FORMAT}; run promptlora teach again")


def make_manifest(
    tokenizer: PreTrainedTokenizerBase,
    config: TeachConfig,
    *,
    teacher: Mapping[str, str | int],
    backend: str,
    dtype: str,
    data: str,
    rows: int,
) -> Manifest:
    """Create the manifest of a run; ``tokenizer`` is the base's."""
    return Manifest(
        format=FORMAT,
        backend=backend,
        dtype=dtype,
        teacher=dict(teacher),
        tokenizer=tokenizer_digest(tokenizer),
        template=template_digest(tokenizer),
        data=data,
        rows=rows,
        config=config,
    )

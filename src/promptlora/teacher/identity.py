"""What a cache belongs to: teacher, tokenizer, template, data and settings, and how two of them differ."""

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

# What two tokenizers with one vocabulary could still do differently: merges, normalisation, digits, white space.
_PROBE = "The cat's naïve résumé:\n\n\t12345 + 6.7e-8 = ?  ﬁne … 日本語 🙂 <b>done</b>"


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """What a teacher is asked to write.

    Attributes:
        top_k: How many of the likeliest tokens are kept of each distribution; the others are the tail.
        answers: Whose answer it is asked about: the row's first, from the ``data``, or one that the ``teacher``
            writes itself (greedy).
        place: Where the prompt stands in its context: the ``user`` or the ``system`` turn.
        max_input_tokens: Longest rendered input of the student; as in the training's data settings.
        max_answer_tokens: Longest answer with its end token; as in the training's data settings.
        max_tokens: Longest prompt, input and answer together, in the teacher's context.
        rows_per_shard: Rows that are written, and lost by a kill, together.
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
    """A hash of what turns text into ids: every token with its id, the end token, and the ids of a probe."""
    probe = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return _digest([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, list(probe)])


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the chat template's source (rendered text may contain the current date)."""
    return _digest(tokenizer.chat_template or "")


def check_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher whose tokens or chats are not the student's.

    Raises:
        ModelError: It says the first difference.
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
        dtype: Of the teacher's weights.
        teacher: Its name and fingerprint; the name says where it was, the fingerprint which it is.
        tokenizer: :func:`tokenizer_digest` of the base.
        template: :func:`template_digest` of the base.
        data: A hash of all rows, in order.
        rows: How many these are.
        config: What was asked.
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
        """The number of shards of a finished cache."""
        return -(-self.rows // self.config.rows_per_shard)

    def flat(self) -> dict[str, Any]:
        """Every value by its name, settings first, except the teacher's name and the sample of its weights."""
        values = asdict(self)
        config, teacher = values.pop("config"), values.pop("teacher")
        return {**config, **{f"teacher {k}": v for k, v in teacher.items() if k not in ("name", SAMPLE)}, **values}

    def difference(self, other: Manifest) -> str | None:
        """A description of the first value in which another manifest differs; None if they agree."""
        ours, theirs = self.flat(), other.flat()
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                return f"{name}={_short(ours.get(name))}, not {_short(theirs.get(name))}"
        return None

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        with replacing_file(folder / MANIFEST_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else repr(value)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        DataError: There is none, it is damaged, or it is of another version.
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
    """The manifest of a run; ``tokenizer`` is the base's."""
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

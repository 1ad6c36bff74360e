"""Reads files that may be damaged, hostile or huge: text, JSON, JSON lines, TOML and safetensors.

Every failure raises the error class that the caller passes, with a one-line message, before large memory is allocated.
All files follow the same rules: UTF-8 with or without a byte order mark, only finite numbers, integers of at most 64
bits, no duplicate keys, no deep nesting. This file knows nothing of the meaning of values.
"""

from __future__ import annotations

import gzip
import json
import math
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptlora.errors import PromptLoRAError, one_line

CONFIG_BYTES = 64 << 20  # for comparison, the configuration for a large model has a few hundred kilobytes
TOML_BYTES = 1 << 20
LINE_BYTES = 64 << 20
_DEPTH = 64

if TYPE_CHECKING:
    from torch import Tensor

Error = type[PromptLoRAError]


def is_file(path: Path) -> bool:
    """Whether the path is a file; False for names that the file system refuses (too long, a NUL byte)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether the path is a folder; False for names that the file system refuses."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def reason_of(error: BaseException) -> str:
    """The reason why a file cannot be read or written, without its path."""
    return str(getattr(error, "strerror", None) or one_line(error))


# --- text --------------------------------------------------------------------------------------------------


def decode(data: bytes, where: str, error: Error) -> str:
    """Decode UTF-8 bytes to text without a byte order mark, with a line feed as line end.

    Raises:
        PromptLoRAError: The bytes are not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{where}: not UTF-8 (byte {problem.start}: {problem.reason}). Expected UTF-8 text. Fix: save it as UTF-8."
        ) from problem
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, error: Error, *, longest: int = CONFIG_BYTES) -> str:
    """Read the text of a file; see :func:`decode`.

    Args:
        path: The file.
        error: The error class to raise.
        longest: The maximum size in bytes.

    Raises:
        PromptLoRAError: The file does not exist, cannot be read, is too long, or is not UTF-8.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(longest + 1)
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({reason_of(problem)}). Expected a file in UTF-8.") from problem
    if len(data) > longest:
        raise error(f"{path}: longer than {longest} bytes. Expected a smaller file.")
    return decode(data, str(path), error)


# --- JSON and TOML -----------------------------------------------------------------------------------------


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"the whole number {text[:40]} is beyond 64 bits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice")
    return values


def _check_depth(value: Any) -> None:
    """Refuse nesting that is too deep for a later traversal or ``repr``."""
    level = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise RecursionError


def parse_json(text: str, where: str, error: Error) -> Any:
    """Parse a JSON text.

    Args:
        text: The text.
        where: File, or file and line, for the message.
        error: The error class to raise.

    Raises:
        PromptLoRAError: The text is not JSON, or it breaks a rule of this module.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once)
        _check_depth(value)
    except RecursionError as problem:
        raise error(
            f"{where}: not JSON that can be used (nested too deeply). Expected at most {_DEPTH} levels."
        ) from problem
    except json.JSONDecodeError as problem:
        raise error(
            f"{where}: not JSON ({problem.msg}, character {problem.pos}). Expected one JSON value."
        ) from problem
    except (ValueError, MemoryError) as problem:
        raise error(f"{where}: not JSON that can be used ({one_line(problem)}). Expected finite numbers.") from problem
    return value


def read_json(path: Path, error: Error, *, longest: int = CONFIG_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        PromptLoRAError: The file cannot be read, or it is not JSON.
    """
    return parse_json(read_text(path, error, longest=longest), str(path), error)


def read_toml(path: Path, error: Error) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        PromptLoRAError: The file cannot be read, or it is not TOML.
    """
    text = read_text(path, error, longest=TOML_BYTES)
    try:
        values = tomllib.loads(text)
        _check_depth(values)
    except RecursionError as problem:
        raise error(
            f"{path}: not TOML that can be used (nested too deeply). Expected at most {_DEPTH} levels."
        ) from problem
    except (ValueError, MemoryError) as problem:  # also for numbers beyond Python's limit
        raise error(f"{path}: not TOML ({one_line(problem)}). Fix: mend that place.") from problem
    return values


def json_lines(path: Path, error: Error, *, torn: bool = False) -> Iterator[tuple[int, str, Any]]:
    """Yield the nonblank lines of a JSONL or JSONL.gz file: number from 1, text without line end, value.

    Args:
        path: The file; ``.gz`` is decompressed.
        error: The error class to raise.
        torn: Whether to skip lines that are not JSON, such as an incomplete line of a killed writer.

    Raises:
        PromptLoRAError: The file cannot be read, or a line is too long or not JSON; the message names the line.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            lines: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            while data := lines.readline(LINE_BYTES + 1):
                number += 1
                if len(data) > LINE_BYTES:
                    raise error(f"{path}:{number}: longer than {LINE_BYTES} bytes. Expected one JSON object a line.")
                try:
                    text = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                    if not text.strip():
                        continue
                    value = parse_json(text, f"{path}:{number}", error)
                except (UnicodeDecodeError, error):
                    if torn:
                        continue
                    raise
                yield number, text, value
    except UnicodeDecodeError as problem:
        raise error(f"{path}:{number}: not UTF-8 ({problem.reason}). Expected UTF-8 text.") from problem
    except (OSError, EOFError, zlib.error, ValueError) as problem:
        if isinstance(problem, PromptLoRAError):
            raise
        raise error(
            f"{path}: cannot be read after line {number} ({reason_of(problem)}). Expected JSON lines. Fix: fetch it again."
        ) from problem


# --- safetensors -------------------------------------------------------------------------------------------


def read_tensors(path: Path, error: Error, *, fix: str = "write it again") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Args:
        path: The file.
        error: The error class to raise.
        fix: The advice in the error message.

    Raises:
        PromptLoRAError: The file is truncated or not safetensors, or a value is not finite; the message names the
            tensor.
    """
    from safetensors import safe_open  # imported lazily, so that reading text does not load PyTorch

    try:
        with safe_open(path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except Exception as problem:  # a damaged header makes the library raise almost anything
        raise error(f"{path}: truncated or not safetensors ({reason_of(problem)}); {fix}") from problem
    for key, tensor in tensors.items():
        check_finite(tensor, f"{path}: {key}", error, fix)
    return tensors, metadata


def check_finite(tensor: Tensor, where: str, error: Error, fix: str = "write it again") -> None:
    """Refuse a tensor with an infinity or a NaN.

    Raises:
        PromptLoRAError: The tensor contains an infinity or a NaN; the error has the class ``error``.
    """
    if tensor.is_floating_point() and not all_finite(tensor):
        raise error(f"{where} has values that are not finite; {fix}")


def all_finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor has no infinity and no NaN.

    Smallest and largest value tell, since a NaN anywhere is both. One pass without a mask: 30 times faster than
    ``isfinite`` of every value.
    """
    import torch

    if not tensor.numel():
        return True
    plain = tensor if tensor.element_size() > 1 else tensor.float()  # aminmax does not support 8-bit floats
    return bool(torch.isfinite(torch.stack(plain.aminmax())).all())

"""Converts settings (frozen dataclasses) to and from plain values and TOML, and checks their values.

It knows dataclasses and the names of removed settings; it knows nothing of the meaning of a setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from promptlora.errors import ConfigError, PromptLoRAError
from promptlora.extras import need
from promptlora.files import replacing_file
from promptlora.reading import is_file, read_toml

T = TypeVar("T")

# Removed settings by class, with the values at which they had no effect. Configurations of older versions contain them
# (docs/log.md has their measurements).
_RETIRED: dict[str, dict[str, Any]] = {
    "HyperNetworkConfig": {"strength": 1.0},
    "RegularizationConfig": {"label_smoothing": 0.0, "l1": 0.0, "prompt_dropout": 0.0},
    "DistillConfig": {"tail": "bucket"},
}


def whole(
    name: str, value: Any, *, low: int = 1, high: int = 1 << 31, error: type[PromptLoRAError] = ConfigError
) -> int:
    """Check that a value is an integer within bounds; floats, bools and texts are refused, never converted.

    Raises:
        PromptLoRAError: The value is not an integer within the bounds; the error has the class ``error``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise error(f"{name}={value!r}. Expected a whole number from {low} to {high}.")
    return value


def positive(owner: object, *names: str) -> None:
    """Refuse fields that are not finite numbers above 0."""
    for name in names:
        value = getattr(owner, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value} in {type(owner).__name__}; expected a finite number above 0")


def not_negative(owner: object, *names: str) -> None:
    """Refuse fields that are not finite numbers of 0 or more."""
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name}={value} in {type(owner).__name__}; expected a finite number, 0 or more")


def one_of(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a field whose value is not one of the choices."""
    value = getattr(owner, name)
    if value not in choices:
        raise ConfigError(f"{name}={value!r} in {type(owner).__name__}; expected one of {', '.join(choices)}")


def without_retired(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values without removed settings that have no effect; a removed setting that had an effect is kept."""
    retired = _RETIRED.get(kind.__name__, {})
    return {
        key: value
        for key, value in values.items()
        if key not in retired or isinstance(value, bool) or value != retired[key]
    }


def from_dict(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Make a configuration from plain values, nested tables included.

    A removed setting is ignored if its value has no effect.

    Raises:
        ConfigError: A key is unknown (the message names the closest known key) or missing, a removed setting had an
            effect, or a value has a wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or kind.__name__}={_short(values)}; expected a table of settings")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    made: dict[str, Any] = {}
    for key, value in without_retired(kind, values).items():
        if key in _RETIRED.get(kind.__name__, {}):
            raise ConfigError(
                f"{prefix}{key}={_short(value)}: this setting was removed from {kind.__name__}. Expected "
                f"{_RETIRED[kind.__name__][key]!r}, which has no effect. Fix: remove the key, or use an older version."
            )
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key}: no such key in {kind.__name__}; {hint}")
        made[key] = _convert(hints[key], value, f"{prefix}{key}")
    missing = [
        name for name, f in fields.items()
        if name not in made and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} is missing; add it to the configuration")
    return kind(**made)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}={_short(value)}; expected a table [{where}]")
        return from_dict(hint, value, where)
    if isinstance(hint, types.UnionType):  # a single value or a list
        several = [one for one in typing.get_args(hint) if typing.get_origin(one) is tuple]
        hint = several[0] if several and isinstance(value, (list, tuple)) else typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} is a {type(value).__name__}; expected a list")
        return tuple(_convert(typing.get_args(hint)[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} is too large a whole number; expected a float") from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}={_short(value)} is a {type(value).__name__}; expected {hint.__name__}")
    return value


def _short(value: Any) -> str:
    return repr(value)[:80]


def check(owner: Any) -> None:
    """Refuse values whose type differs from the type of their field, whether or not they were read from a file.

    This includes a float for an integer, a bool for a number, and numbers that are not finite. An integer is accepted
    for a float.

    Raises:
        ConfigError: A value is refused; the message names the field and the value.
    """
    kind = type(owner)
    for name, hint in typing.get_type_hints(kind).items():
        value = getattr(owner, name)
        if value is None and types.NoneType in typing.get_args(hint):
            continue
        try:
            _convert(hint, to_dict(value) if dataclasses.is_dataclass(value) else value, name)
        except ConfigError as error:
            raise ConfigError(f"{error} (in {kind.__name__})") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value} in {kind.__name__}; expected a finite number")
        if isinstance(value, int) and abs(value) >= 1 << 53:
            raise ConfigError(f"{name}={str(value)[:40]} in {kind.__name__}; expected a smaller number")


def at_most(owner: object, most: int, *names: str) -> None:
    """Refuse fields above a bound that only typing errors exceed, before memory is allocated."""
    for name in names:
        value = getattr(owner, name)
        if value > most:
            raise ConfigError(f"{name}={value} in {type(owner).__name__}; expected at most {most}")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values of a configuration with nested tables; None values are omitted, because TOML has no null."""
    return dataclasses.asdict(config, dict_factory=lambda items: {key: v for key, v in items if v is not None})


def load_toml(kind: type[T], path: str | Path) -> T:
    """Read a configuration from a TOML file.

    Raises:
        ConfigError: The file does not exist, is not TOML, or contains invalid values.
    """
    path = Path(path)
    if not is_file(path):
        raise ConfigError(f"{path}: no such file; expected a TOML configuration")
    values = read_toml(path, ConfigError)
    try:
        return from_dict(kind, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def save_toml(config: Any, path: str | Path) -> None:
    """Write a configuration as TOML, atomically.

    Raises:
        MissingExtraError: The extra ``train`` is not installed.
        OutputError: The file cannot be written.
    """
    need("train", "tomli_w")
    import tomli_w

    with replacing_file(Path(path)) as temporary:
        temporary.write_text(tomli_w.dumps(to_dict(config)), encoding="utf-8")

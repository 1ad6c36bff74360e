"""Reads projections from the plain values of a file: one reader for hypernetworks, adapters and PEFT notes.

Every value is checked. Without the checks, a projection without rows, with overlapping rows, or with a duplicate name
would load and then change the wrong part of the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any

from promptlora.errors import ProjectionError
from promptlora.projections.finder import Projection

_WIDEST = 1 << 24  # features; a wider matrix would not fit in memory
_KNOWN = frozenset(field.name for field in fields(Projection))


def _size(values: Mapping[str, Any], key: str, name: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _WIDEST:
        raise ProjectionError(f"{name}: {key}={value!r}. Expected a whole number from 1 to {_WIDEST}.")
    return value


def read_projection(values: Any, *, strict: bool = True) -> Projection:
    """Read one projection from the values of ``dataclasses.asdict``, with lists in place of tuples.

    Args:
        values: The values.
        strict: Whether to refuse unknown keys. Otherwise they are ignored.

    Raises:
        ProjectionError: A value is missing, has a wrong type or is inconsistent with the others.
    """
    if not isinstance(values, Mapping):
        raise ProjectionError(f"a projection is a {type(values).__name__}. Expected an object.")
    for key in ("name", "module", "role"):
        if not isinstance(values.get(key), str) or not values[key]:
            raise ProjectionError(f"a projection's {key} is {values.get(key)!r}. Expected a text.")
    name, unknown = values["name"][:200], sorted(set(values) - _KNOWN)
    if strict and unknown:
        raise ProjectionError(f"{name}: unknown key {unknown[0][:80]!r}. Expected some of {', '.join(sorted(_KNOWN))}.")
    _size(values, "in_features", name)
    width_out = _size(values, "out_features", name)
    whole = None if values.get("module_out_features") is None else _size(values, "module_out_features", name)
    rows = values.get("rows")
    spans: list[tuple[int, int]] | None = None
    if rows is not None:
        spans = [_span(span, name) for span in rows] if isinstance(rows, (list, tuple)) else []
        if not spans:
            raise ProjectionError(f"{name}: rows={str(rows)[:80]}. Expected one span (start, stop) or more, or null.")
        ordered = sorted(spans)
        if any(first[1] > second[0] for first, second in pairwise(ordered)):
            raise ProjectionError(f"{name}: its rows overlap. Expected spans (start, stop) apart from each other.")
        if sum(stop - start for start, stop in spans) != width_out:
            raise ProjectionError(f"{name}: its rows are not as many as out_features={width_out}. Expected the same.")
    top = width_out if spans is None else max(stop for _, stop in spans)
    if whole is not None and (top > whole or (spans is None and top != whole)):
        raise ProjectionError(f"{name}: module_out_features={whole} does not hold its rows up to {top}.")
    made = {key: values[key] for key in _KNOWN & set(values)}
    return Projection(**{**made, "rows": None if spans is None else tuple(spans)})


def _span(span: Any, name: str) -> tuple[int, int]:
    ends = list(span) if isinstance(span, (list, tuple)) else []
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int) for end in ends):
        raise ProjectionError(f"{name}: rows hold {str(span)[:80]}. Expected pairs of whole numbers.")
    start, stop = ends
    if not 0 <= start < stop <= _WIDEST:
        raise ProjectionError(f"{name}: rows hold {start}:{stop}. Expected 0 <= start < stop <= {_WIDEST}.")
    return start, stop


def read_projections(values: Any) -> list[Projection]:
    """Read projections from a list of their values.

    Raises:
        ProjectionError: The values are not a list, the list is empty, a value is wrong, or two projections have the
            same name.
    """
    if not isinstance(values, list) or not values:
        raise ProjectionError(f"projections: {str(values)[:80]}. Expected a list of one or more.")
    read = [read_projection(each) for each in values]
    check_names(read)
    return read


def check_names(projections: Iterable[Projection]) -> None:
    """Refuse two projections with the same name, because one would silently replace the other.

    Raises:
        ProjectionError: Two projections have the same name; the message contains it.
    """
    seen: set[str] = set()
    for projection in projections:
        if projection.name in seen:
            raise ProjectionError(f"{projection.name[:200]}: two projections have this name. Expected one each.")
        seen.add(projection.name)

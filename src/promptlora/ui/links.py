"""The fragment of the page's address (after ``#``): the prompt, the inputs and the place in the walk.

The page's script writes it, so that work survives a reload and can be sent as a link; this module parses it. A fragment
stays in the browser: it is not part of any request, so no server sees it and no proxy logs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs

from promptlora.ui.values import Limits


@dataclass(frozen=True, kw_only=True)
class Link:
    """A prompt with its inputs, the other boxes of the page, and a place in the walk; None where not given."""

    prompt: str
    inputs: tuple[str, ...]
    longest: int
    other: str = ""
    rows: str = ""
    chosen: int = 0
    token: int | None = None
    layer: int | None = None
    head: int | None = None


def read_link(address: str, limits: Limits) -> Link | None:
    """Parse an address such as ``#prompt=…&input=…``; None if it has no usable content.

    Values that are too long or are not numbers are truncated or left out here. Whether the rest is valid is checked
    when it is run.
    """
    try:
        found = parse_qs(address.lstrip("#"), max_num_fields=64)
    except ValueError:
        return None
    prompt, inputs = found.get("prompt", [""])[0], found.get("input", [])
    if not prompt and not inputs:
        return None

    def number(name: str) -> int | None:
        text = found.get(name, [""])[0]
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 6 else None

    return Link(
        prompt=prompt[: limits.prompt_characters + 1],
        inputs=tuple(text[: limits.input_characters + 1] for text in inputs[: limits.inputs]),
        longest=min(max(number("longest") or 32, 4), limits.new_tokens),
        other=found.get("other", [""])[0][: limits.prompt_characters + 1],
        rows=found.get("rows", [""])[0][: limits.rows * limits.input_characters],
        chosen=number("chosen") or 0,
        token=number("token"),
        layer=number("layer"),
        head=number("head"),
    )

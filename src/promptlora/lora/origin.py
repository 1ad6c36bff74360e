"""Where an adapter comes from: the prompt that it was written from, and what wrote it.

It knows texts and hashes; nothing of tensors, tokenizers or files. Exports write it into their metadata and model card.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from promptlora.errors import LoRAError
from promptlora.reading import parse_json

_LONGEST_SLUG = 48  # characters of a folder name, without the hash


class ChatFiles(Protocol):
    """What writes a tokenizer and its chat template into a folder; ``text.ChatExport`` is the one there is."""

    def write(self, folder: Path, prompt: str | None) -> tuple[str, bool]:
        """Write the files; returns an example of the rendered chat, and whether the template written renders it."""
        ...


@dataclass(frozen=True)
class AdapterOrigin:
    """Where one adapter comes from.

    Attributes:
        prompt: The prompt, as the user gave it.
        examples: Pairs of input and output that the hypernetwork read with it.
        in_context: Whether the adapter is meant for a base that has the prompt in its context as well.
        hypernetwork: The name of what wrote it; None where it is not known.
        base_note: A sentence about the base's weights for the model card.
        chat: Writes the files with which other programs render the chat as it was rendered here; lost in files.
    """

    prompt: str
    examples: tuple[tuple[str, str], ...] = ()
    in_context: bool = False
    hypernetwork: str | None = None
    base_note: str = ""
    chat: ChatFiles | None = field(default=None, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the prompt in UTF-8, in hexadecimal digits."""
        return hashlib.sha256(self.prompt.encode(errors="surrogatepass")).hexdigest()

    @property
    def folder_name(self) -> str:
        """A name for the adapter's folder: words of the prompt and the start of a hash of what the adapter depends on."""
        plain = unicodedata.normalize("NFKD", self.prompt).encode("ascii", "ignore").decode().lower()
        words = re.findall(r"[a-z0-9]+", plain) or ["adapter"]
        slug = words[0][:_LONGEST_SLUG]
        for word in words[1:]:
            if len(slug) + len(word) >= _LONGEST_SLUG:
                break
            slug += f"-{word}"
        told = json.dumps([self.prompt, self.examples, self.in_context, self.hypernetwork])
        return f"{slug}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """The values that are written to files."""
        return {
            "prompt": self.prompt,
            "prompt_sha256": self.digest,
            "examples": [list(pair) for pair in self.examples],
            "in_context": self.in_context,
            "hypernetwork": self.hypernetwork,
            "base_note": self.base_note,
        }


def origins_to_json(origins: Sequence[AdapterOrigin | None]) -> str:
    """The origins of a file's adapters as JSON."""
    return json.dumps([None if origin is None else origin.to_dict() for origin in origins])


def origins_of_json(text: str | None, count: int, where: str) -> tuple[AdapterOrigin | None, ...]:
    """The origins that a file's metadata holds; unknown ones where it has none.

    Args:
        text: What :func:`origins_to_json` wrote, or None.
        count: The number of adapters.
        where: What an error calls the place.

    Raises:
        LoRAError: Values that cannot be used.
    """
    if text is None:
        return (None,) * count
    entries = parse_json(text, where, LoRAError)
    if not isinstance(entries, list) or len(entries) != count:
        raise LoRAError(
            f"{where}: {repr(entries)[:80]}. Expected a list of {count} origins. Fix: write the file again."
        )
    return tuple(None if entry is None else _read(entry, where) for entry in entries)


def _read(entry: Any, where: str) -> AdapterOrigin:
    values = entry if isinstance(entry, dict) else {}
    pairs, name, note = values.get("examples", []), values.get("hypernetwork"), values.get("base_note", "")
    fits = (
        isinstance(values.get("prompt"), str)
        and isinstance(values.get("in_context", False), bool)
        and (name is None or isinstance(name, str))
        and isinstance(note, str)
        and isinstance(pairs, list)
        and all(isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs)
    )
    if not fits:
        raise LoRAError(
            f"{where}: {repr(entry)[:80]}. Expected a prompt and where it was used. Fix: write the file again."
        )
    examples = tuple((str(question), str(answer)) for question, answer in pairs)
    return AdapterOrigin(values["prompt"], examples, values.get("in_context", False), name, note)

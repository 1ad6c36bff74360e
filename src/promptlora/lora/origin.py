"""The origin of an adapter: the prompt that it was generated from, and the hypernetwork that generated it.

Exports write the origin into their metadata and model card. This file knows texts and hashes; it knows nothing of
tensors, tokenizers or files.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_LONGEST_SLUG = 48  # characters of a folder name, without the hash


@runtime_checkable
class ChatFiles(Protocol):
    """An object that writes a tokenizer and its chat template into a folder; ``text.ChatExport`` implements it."""

    def write(self, folder: Path, prompt: str | None) -> tuple[str, bool]:
        """Write the files; return an example of the rendered chat, and whether the written template renders it."""
        ...


@dataclass(frozen=True)
class AdapterOrigin:
    """The origin of one adapter: a view of an entry of ``LoRAWeights.provenance``.

    Attributes:
        prompt: The prompt, as the user gave it.
        examples: Pairs of input and output that the hypernetwork read together with the prompt.
        in_context: Whether the adapter is meant for a base that also has the prompt in its context.
        hypernetwork: The name of the hypernetwork; None if it is not known.
        base_note: A sentence about the base's weights, for the model card.
    """

    prompt: str
    examples: tuple[tuple[str, str], ...] = ()
    in_context: bool = False
    hypernetwork: str | None = None
    base_note: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the prompt in UTF-8, in hexadecimal digits."""
        return hashlib.sha256(self.prompt.encode(errors="surrogatepass")).hexdigest()

    @property
    def folder_name(self) -> str:
        """A name for the adapter's folder: words of the prompt, and the start of a hash of the adapter's inputs."""
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
        """The values for ``LoRAWeights.provenance``."""
        return {
            "prompt": self.prompt,
            "prompt_sha256": self.digest,
            "examples": [list(pair) for pair in self.examples],
            "in_context": self.in_context,
            "hypernetwork": self.hypernetwork,
            "base_note": self.base_note,
        }

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> AdapterOrigin | None:
        """The origin that an entry of ``LoRAWeights.provenance`` records; None if the entry has no prompt.

        Values of an unexpected type, which a foreign file may contain, are treated as missing.
        """

        def text(name: str) -> str:
            return value if isinstance(value := entry.get(name), str) else ""

        pairs = entry.get("examples")
        examples = [p for p in pairs if _is_pair(p)] if isinstance(pairs, list) else []
        if not text("prompt").strip():
            return None
        return cls(
            text("prompt"),
            tuple((question, answer) for question, answer in examples),
            entry.get("in_context") is True,
            text("hypernetwork") or None,
            text("base_note"),
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(text, str) for text in value)

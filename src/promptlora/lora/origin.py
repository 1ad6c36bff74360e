"""Where an adapter comes from: the prompt that it was written from, and what wrote it.

It knows texts and hashes; nothing of tensors, tokenizers or files. Exports write it into their metadata and model card.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_LONGEST_SLUG = 48  # characters of a folder name, without the hash


class ChatFiles(Protocol):
    """What writes a tokenizer and its chat template into a folder; ``text.ChatExport`` is the one there is."""

    def write(self, folder: Path, prompt: str | None) -> tuple[str, bool]:
        """Write the files; returns an example of the rendered chat, and whether the template written renders it."""
        ...


@dataclass(frozen=True)
class AdapterOrigin:
    """Where one adapter comes from: a view of an entry of ``LoRAWeights.provenance``.

    Attributes:
        prompt: The prompt, as the user gave it.
        examples: Pairs of input and output that the hypernetwork read with it.
        in_context: Whether the adapter is meant for a base that has the prompt in its context as well.
        hypernetwork: The name of what wrote it; None where it is not known.
        base_note: A sentence about the base's weights for the model card.
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
        """What an entry of ``LoRAWeights.provenance`` says; None where it names no prompt.

        Values of another type, as a foreign file may hold them, count as absent.
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

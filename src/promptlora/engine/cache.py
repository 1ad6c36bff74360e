"""``AdapterCache``: adapters by content, bounded in memory, whole and checked on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.lora import LoRAWeights


@dataclass(frozen=True)
class AdapterEntry:
    """One adapter of the cache.

    Attributes:
        key: Its id: a content hash, 64 hexadecimal digits.
        lora: The adapter, in the dtype and on the device of the base.
        nbytes: Bytes of the adapter, without factors that all adapters share.
        prompt_tokens: How many tokens of the base the prompt has, examples included.
        in_context: Whether it was written for a prompt that the base also has in its context.
        refined: Whether gradient steps followed.
        created: When it was written, in seconds since 1970.
        seconds: How long writing it took.
    """

    key: str
    lora: LoRAWeights
    nbytes: int
    prompt_tokens: int
    in_context: bool
    refined: bool
    created: float
    seconds: float


class AdapterCache:
    """Adapters by content hash; any thread may ask, and several processes may share a folder.

    Args:
        lm: Whose adapters they are; its hypernetwork, its base and the base's dtype are parts of what a file must match.
        folder: Where adapters are kept between runs, one safetensors file each; None keeps them in memory alone.
        memory_bytes: How many bytes of adapters stay in memory; the least recently used are dropped first.
    """

    def __init__(self, lm: PromptLoRA, *, folder: Path | None = None, memory_bytes: int = 1 << 28) -> None:
        raise NotImplementedError

    def key(
        self,
        prompt: str,
        examples: Sequence[tuple[str, str]] = (),
        in_context: bool = False,
        refinement: str | None = None,
    ) -> str:
        """The content hash of an adapter: of hypernetwork, base, prompt, examples, use, and what refined it.

        Args:
            prompt: The prompt.
            examples: Pairs of input and output that were read with it.
            in_context: As for ``PromptLoRA.adapt``.
            refinement: What identifies rows and settings of a refinement; None for none.
        """
        raise NotImplementedError

    def get(self, key: str) -> AdapterEntry | None:
        """The adapter of a key, from memory or from disk; None where there is none, or only a damaged file."""
        raise NotImplementedError

    def put(self, entry: AdapterEntry) -> None:
        """Keep an adapter, in memory and on disk.

        Raises:
            OutputError: It cannot be written to disk; it is in memory then.
        """
        raise NotImplementedError

    def delete(self, key: str) -> bool:
        """Forget an adapter in memory and on disk; whether there was one."""
        raise NotImplementedError

    def list(self) -> tuple[str, ...]:
        """The keys of all adapters in memory and on disk, sorted."""
        raise NotImplementedError

"""``AdapterCache``: adapters by content, bounded in memory, whole and checked on disk.

It knows how to name, keep and find an adapter; nothing of how it is written or run.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cachetools import LRUCache

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.storage import AdapterEntry, AdapterFiles, adapter_bytes, fingerprint
from promptlora.errors import NoRoomError, OutputError
from promptlora.files import check_output
from promptlora.settings import whole

_FORGOTTEN = 3600  # seconds after which a temporary file belongs to a process that was killed


class AdapterCache:
    """Adapters by content hash; any thread may ask, and several processes may share a folder.

    Args:
        lm: Whose adapters they are; its hypernetwork, its base and the base's dtype are parts of what a file must match.
        folder: Where adapters are kept between runs, one safetensors file each; None keeps them in memory alone.
        memory_bytes: How many bytes of adapters stay in memory; the least recently used are dropped first.

    Attributes:
        memory_bytes: As given.
        adapter_bytes: Bytes of an adapter that the hypernetwork writes.

    Raises:
        ConfigError: A ``memory_bytes`` below 1.
        OutputError: A folder that cannot be written to.
    """

    def __init__(self, lm: PromptLoRA, *, folder: Path | None = None, memory_bytes: int = 1 << 28) -> None:
        whole("memory_bytes", memory_bytes)
        network = lm.hypernetwork
        self.memory_bytes, self.adapter_bytes = memory_bytes, adapter_bytes(network, lm.model.dtype)
        self._device = lm.host.device
        base = {name: value for name, value in lm.host.fingerprint.items() if name != "sample"}
        self._version = {
            "hypernetwork": fingerprint(network),
            "base": hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest(),
            "dtype": str(lm.model.dtype),
        }
        self._files: AdapterFiles | None = None
        if folder is not None:
            check_output(folder, reuse=True)
            factors = network.generator.shared_factors(lm.model.dtype)
            placed = {name: (A.to(self._device), B.to(self._device)) for name, (A, B) in factors.items()}
            origin = {"projections": network.projections, "base_model": lm.model.config.name_or_path or None}
            self._files = AdapterFiles(folder, self._version, placed, origin)
            _tidy(folder)
        self._kept: LRUCache[str, AdapterEntry] = LRUCache(memory_bytes, getsizeof=lambda entry: entry.nbytes)
        self._pinned: dict[str, AdapterEntry] = {}  # never dropped; beside them the others have less room
        self._lock = threading.Lock()

    def key(
        self,
        prompt: str,
        examples: Sequence[tuple[str, str]] = (),
        in_context: bool = False,
        refinement: str | None = None,
    ) -> str:
        """The content hash of an adapter: of hypernetwork, base, dtype, prompt, examples, use, and what refined it.

        Args:
            prompt: The prompt.
            examples: Pairs of input and output that were read with it.
            in_context: As for ``PromptLoRA.adapt``.
            refinement: What identifies rows and settings of a refinement; None for none.
        """
        pairs = [list(pair) for pair in examples]
        content = json.dumps([self._version, prompt, pairs, bool(in_context), refinement], sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def remembered(self, key: str) -> AdapterEntry | None:
        """The adapter of a key, if it is in memory."""
        with self._lock:
            found: AdapterEntry | None = self._pinned.get(key) or self._kept.get(key)
            return found

    def get(self, key: str) -> AdapterEntry | None:
        """The adapter of a key, from memory or from disk; None where there is none, or only a damaged file."""
        entry = self.remembered(key)
        if entry is None and self._files is not None and _is_key(key):
            entry = self._files.read(key, self._device)
            if entry is not None:
                self._keep(entry)
        return entry

    def put(self, entry: AdapterEntry, *, pin: bool = False) -> None:
        """Keep an adapter, in memory and on disk; a file that is there is written again.

        Args:
            entry: The adapter.
            pin: Never drop it from memory where it is not on disk: it cannot be written again from its prompt.

        Raises:
            OutputError: It cannot be written to disk; it is in memory then.
            NoRoomError: It is neither on disk nor does it fit in memory, and is not kept.
        """
        failed: OutputError | None = None
        if self._files is not None:
            try:
                self._files.write(entry)
            except OutputError as error:
                failed = error
        on_disk = self._files is not None and failed is None
        if not self._keep(entry, pin and not on_disk) and not on_disk:
            raise self._no_room(entry.nbytes) from failed
        if failed is not None:
            raise failed

    def check_room(self, nbytes: int) -> None:
        """Refuse an adapter that would have to be pinned and cannot be.

        Raises:
            NoRoomError: There is no folder, and pinned adapters leave less than so many bytes.
        """
        if self._files is None and self._pinned_bytes + nbytes > self.memory_bytes:
            raise self._no_room(nbytes)

    @property
    def _pinned_bytes(self) -> int:
        return sum(entry.nbytes for entry in list(self._pinned.values()))  # another thread may add one

    def _no_room(self, nbytes: int) -> NoRoomError:
        kept = len(self._pinned)
        held = f", of which {kept} refined adapter{'s' * (kept > 1)} hold {_mb(self._pinned_bytes)}" if kept else ""
        delete = "delete refined adapters, or " if kept else ""
        return NoRoomError(
            f"adapter: {_mb(nbytes)} do not fit in the memory for adapters, {_mb(self.memory_bytes)}{held}. "
            f"Expected room for it. Fix: {delete}a larger memory_bytes (`promptlora serve --adapter-memory`), or a folder (`--adapter-dir`)."
        )

    def _keep(self, entry: AdapterEntry, pin: bool = False) -> bool:
        """Keep an adapter in memory; whether it fits beside those that are pinned."""
        with self._lock:
            self._kept.pop(entry.key, None)
            replaced = self._pinned.pop(entry.key, None)
            room = self.memory_bytes - self._pinned_bytes
            if entry.nbytes > room:
                if replaced is not None:
                    self._pinned[entry.key] = replaced
                return False
            while self._kept.currsize + entry.nbytes > room:
                self._kept.popitem()  # the least recently used
            if pin:
                self._pinned[entry.key] = entry
            else:
                self._kept[entry.key] = entry
            return True

    def delete(self, key: str) -> bool:
        """Forget an adapter in memory and on disk; whether there was one.

        Raises:
            OSError: Its file cannot be removed.
        """
        with self._lock:
            known = [each for each in (self._kept.pop(key, None), self._pinned.pop(key, None)) if each is not None]
        return (self._files is not None and _is_key(key) and self._files.delete(key)) or bool(known)

    def list(self) -> tuple[str, ...]:
        """The keys of all adapters in memory and on disk, sorted."""
        with self._lock:
            kept = {*self._kept, *self._pinned}
        return tuple(sorted(kept.union(self._files.keys() if self._files else ())))

    def __len__(self) -> int:
        """The number of adapters in memory."""
        return len(self._kept) + len(self._pinned)

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters in memory."""
        return int(self._kept.currsize) + self._pinned_bytes


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3g} MB"


def _is_key(key: str) -> bool:
    """Whether a text has the form of a key, so that it names no other file."""
    return len(key) == 64 and set(key) <= set("0123456789abcdef")


def _tidy(folder: Path) -> None:
    """Remove what processes that were killed while writing have left."""
    now = time.time()
    for path in folder.glob("[0-9a-f][0-9a-f]/.*.safetensors.*"):
        with suppress(OSError):  # another process has removed it
            if now - path.stat().st_mtime > _FORGOTTEN:
                path.unlink()

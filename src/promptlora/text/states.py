"""Computes and caches the states of prompts in the frozen base, in a text embedder, or in both.

It knows the base's layers; it knows nothing of LoRA or hypernetworks.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.errors import CheckpointError, PromptError
from promptlora.files import replacing_file
from promptlora.fingerprint import describe_mismatch
from promptlora.reading import is_file, read_tensors
from promptlora.text.base_states import prompt_states, prompt_states_in_pieces
from promptlora.text.chat import encode_chat, encode_prompt, render_chat
from promptlora.text.embedder import EMBEDDER, TextEmbedder
from promptlora.text.padding import on_device, pad_rows

_BATCH_TOKENS = 16384
_PRELOADED_TOGETHER = 256
_INPUT = "..."  # stands for the input that follows a prompt
_LARGEST = torch.finfo(torch.float16).max


@runtime_checkable
class StatesConfig(Protocol):
    """The settings of ``HyperNetworkConfig`` that :class:`PromptStates` reads."""

    @property
    def source(self) -> str:
        """``embeddings``, ``hidden``, ``layers``, ``embedder``, ``embedder+embeddings`` or ``embedder+hidden``."""

    @property
    def source_layer(self) -> int:
        """The layer for ``hidden``, counted from 1."""

    @property
    def embedder(self) -> str:
        """The text embedder; empty for the default."""

    @property
    def prompt_format(self) -> str:
        """``text``, or ``chat`` for a prompt that the base reads as a user turn."""

    @property
    def max_prompt_tokens(self) -> int:
        """The maximum prompt length, in tokens of the base, not counting those of the chat template."""


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Batches of prompt indices: similar lengths, at most ``tokens`` padded tokens, but at least one prompt."""
    chosen: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if chosen and lengths[i] * (len(chosen) + 1) > tokens:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


class PromptStates:
    """The states of prompts, each computed once and cached; the least recently used are dropped first. Thread-safe.

    With a two-part ``source`` (``embedder+hidden``, ``embedder+embeddings``), the states of a prompt are those of its
    tokens in the embedder, followed by those of its tokens in the base. Both are padded with zeros to the larger width.
    One additional channel marks the part of each row: 0 for the embedder, 1 for the base.

    Args:
        model: The base; no LoRA may be active while states are computed, except one that ``guard`` applies.
        tokenizer: Its tokenizer.
        config: Source, layer, embedder and maximum prompt length.
        capacity: The maximum number of cached prompts, not counting those of :meth:`preload`.
        capacity_bytes: The maximum size of their states in bytes.
        folder: A folder that stores states between runs, one file per prompt; None stores none.
        base: Identifies the base in the names of these files.
        embedder: The fingerprint that the embedder must have; empty accepts any.
        batch_tokens: The maximum number of tokens per batch, including padding. By default, each prompt runs separately
            on a CPU, so that its states do not depend on other prompts, and batches have up to 16384 tokens on an
            accelerator, where other prompts change a state by rounding.
        guard: A context manager that is entered for each computation in the base. ``Host.prompt_states`` passes one
            that waits for the model and disables all adapters except the reader.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: StatesConfig,
        capacity: int = 8192,
        capacity_bytes: int = 1 << 31,
        folder: Path | None = None,
        base: Mapping[str, str | int] | None = None,
        embedder: Mapping[str, str | int] | None = None,
        batch_tokens: int | None = None,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.folder, self._guard = folder, guard
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.capacity, self.capacity_bytes = capacity, capacity_bytes
        parts = config.source.split("+")
        self._embeds, self._of_base = "embedder" in parts, "" if parts[-1] == "embedder" else parts[-1]
        self._base, self._expected = dict(base or {}), dict(embedder or {})
        self._batch_tokens = batch_tokens
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()  # guards the cache; not held while states are computed, which may wait for the model
        self._bank: Tensor | None = None  # states of all preloaded prompts, concatenated
        self._places: dict[str, tuple[int, int]] = {}  # start in the bank and number of tokens

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def device(self) -> torch.device:
        """The device of the states: that of the base's embeddings."""
        weight: Any = self.model.get_input_embeddings().weight
        return torch.device(weight.device)

    @cached_property
    def embedder(self) -> TextEmbedder:
        """The text embedder, loaded on first use.

        Raises:
            ModelError: The embedder is not installed or cannot be loaded.
            CheckpointError: The embedder's fingerprint differs from the expected one.
        """
        loaded = TextEmbedder.load(self.config.embedder, self.device)
        mismatch = describe_mismatch(self._expected, loaded.fingerprint)
        if mismatch:
            raise CheckpointError(
                f"embedder={self.config.embedder or EMBEDDER!r}: {mismatch}. Expected the embedder that this hypernetwork "
                "was trained with. Fix: install or name that one."
            )
        return loaded

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """The fingerprint of the embedder; empty if the source has no embedder."""
        return dict(self.embedder.fingerprint) if self._embeds else {}

    @property
    def state_size(self) -> int:
        """Width of a state; with two parts, this includes the channel that marks the part."""
        base = int(self.model.config.get_text_config().hidden_size) if self._of_base else 0
        wider = max(base, self.embedder.hidden_size if self._embeds else 0)
        return wider + 1 if self._embeds and self._of_base else wider

    @cached_property
    def _key(self) -> str:
        """A key of everything that the states of a prompt depend on, except its ids."""
        layer = self.config.source_layer if self._of_base == "hidden" else 0
        key: list[Any] = [self._base, str(self.model.dtype), self.config.source, layer]
        if self.config.prompt_format != "text":
            key.append(self.config.prompt_format)
        if self._embeds:
            key = [*(key if self._of_base else ["embedder"]), self.fingerprint]
        return json.dumps(key, sort_keys=True)

    def clear(self) -> None:
        """Drop all cached states."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
            self._bank, self._places = None, {}

    # --- prompts to states -------------------------------------------------------------------------------

    def encode(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt in the embedder and in the base; each list is empty if the source lacks that part.

        Raises:
            PromptError: The prompt is empty, not valid Unicode, or too long in tokens of the base.
        """
        of_base = encode_prompt(self.tokenizer, prompt, self.config.max_prompt_tokens)
        if self.config.prompt_format == "chat":
            (of_base,) = encode_chat(self.tokenizer, [render_chat(self.tokenizer, _INPUT, prompt.strip())])
        return self.embedder.encode(prompt) if self._embeds else [], of_base if self._of_base else []

    def _states_of_base(self, ids: Sequence[list[int]]) -> list[Tensor]:
        """States in the base, computed in one forward pass."""
        given, mask = pad_rows(ids, 0, device=self.device)
        with self._guard():
            states = prompt_states(
                self.model, given, self._of_base, self.config.source_layer, mask if len(ids) > 1 else None
            )
        return [one[: len(of)] for one, of in zip(states, ids, strict=True)]

    def _compute(self, ids: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
        """States of prompts, computed in batches of similar lengths."""
        tokens = self._batch_tokens
        if tokens is None:
            tokens = 1 if self.device.type == "cpu" else _BATCH_TOKENS
        computed: list[Tensor] = [torch.empty(0)] * len(ids)
        for chosen in _batches([max(len(of_embedder), len(of_base)) for of_embedder, of_base in ids], tokens):
            parts = []
            if self._embeds:
                parts.append(self.embedder.states([ids[i][0] for i in chosen]))
            if self._of_base:
                parts.append(self._states_of_base([ids[i][1] for i in chosen]))
            for i, states in zip(chosen, self._joined(parts), strict=True):
                computed[i] = states
        return computed

    def _joined(self, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The states of prompts as they are cached: with an embedder in float16, which loses less than bfloat16.

        Args:
            parts: For each part, the states of every prompt, ``[tokens, width]``. The prompts of a part are converted in
                one call, because an accelerator spends more time on starting an operation than on running it.
        """
        if not self._embeds:
            return [states.clone() for states in parts[0]]  # a view would keep the whole batch in memory
        converted = []
        for number, part in enumerate(parts):
            states = torch.cat(list(part)).float().clamp(-_LARGEST, _LARGEST).half()
            if len(parts) > 1:
                states = nn.functional.pad(states, (0, self.state_size - states.shape[-1]))
                states[:, -1] = number
            converted.append(states.split([len(one) for one in part]))
        return [torch.cat(of_prompt) for of_prompt in zip(*converted, strict=True)]

    def _load(self, prompts: Sequence[str]) -> list[Tensor]:
        """States of prompts from their files; missing or damaged files are computed and written again."""
        ids = [self.encode(prompt) for prompt in prompts]  # all prompts are checked before any computation
        paths = [self._path(one) for one in ids]
        found: dict[int, Tensor] = {}
        for i, path in enumerate(paths):
            if path is not None and is_file(path):
                with suppress(PromptError, KeyError):  # a damaged file is computed again
                    found[i] = read_tensors(path, PromptError)[0]["states"].to(self.device)
        missing = [i for i in range(len(ids)) if i not in found]
        for i, states in zip(missing, self._compute([ids[i] for i in missing]), strict=True):
            found[i], path = states, paths[i]
            if path is not None:
                with replacing_file(path) as temporary:
                    save_file({"states": states.cpu().contiguous()}, temporary)
        return [found[i] for i in range(len(ids))]

    def _path(self, ids: tuple[list[int], list[int]]) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(f"{self._key}{ids if self._embeds else ids[1]}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def several(self, prompts: Sequence[str]) -> list[Tensor]:
        """States of each prompt, ``[tokens, state]``, or ``[tokens, layers, state]`` with ``source = "layers"``.

        States that are not cached are computed together.

        Raises:
            PromptError: A prompt is empty or too long. Nothing is computed.
        """
        found: dict[str, Tensor] = {}
        missing: list[str] = []
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                if prompt in self._places and self._bank is not None:
                    start, tokens = self._places[prompt]
                    found[prompt] = self._bank[start : start + tokens]
                elif prompt in self._kept:
                    self._kept.move_to_end(prompt)
                    found[prompt] = self._kept[prompt]
                else:
                    missing.append(prompt)
        computed = dict(zip(missing, self._load(missing), strict=True))
        found.update(computed)
        self._keep(computed)
        return [found[prompt] for prompt in prompts]

    def in_pieces(self, prompt: str, size: int) -> Iterator[None]:
        """Compute the states of one prompt in steps, so that other callers can use the model in between.

        The last step caches the states. There are no steps if the prompt has at most ``size`` tokens, if its states are
        cached, or if states are stored on disk; a later request then computes or reads them at once.

        Args:
            prompt: The prompt.
            size: The maximum number of tokens that the base reads per step.

        Raises:
            PromptError: The prompt is empty or too long.
        """
        ids = self.encode(prompt)
        with self._lock:
            known = prompt in self._places or prompt in self._kept
        if known or self.folder is not None or len(ids[1]) <= size:
            return
        parts = []
        if self._embeds:
            parts.append(self.embedder.states([ids[0]])[0])
            yield
        given, _ = pad_rows([ids[1]], 0, device=self.device)
        pieces = []
        for states in prompt_states_in_pieces(
            self.model, given, self._of_base, self.config.source_layer, size, self._guard
        ):
            pieces.append(states[0])
            yield
        (joined,) = self._joined([[part] for part in (*parts, torch.cat(pieces))])
        self._keep({prompt: joined})

    def _keep(self, computed: Mapping[str, Tensor]) -> None:
        """Cache states, and drop the least recently used ones if the cache is full."""
        with self._lock:
            for prompt, states in computed.items():
                if prompt not in self._kept:  # another thread may have computed it in the meantime
                    self._kept[prompt] = states
                    self._bytes += states.nbytes
            while len(self._kept) > 1 and (len(self._kept) > self.capacity or self._bytes > self.capacity_bytes):
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def one(self, prompt: str) -> Tensor:
        """States of one prompt, ``[tokens, state]``, or ``[tokens, layers, state]`` with ``source = "layers"``."""
        return self.several([prompt])[0]

    def preload(self, prompts: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute or read the states of many prompts and keep them in one tensor on the device until :meth:`clear`.

        A batch of preloaded prompts is then a single indexing operation.

        Args:
            prompts: The prompts; prompts that were preloaded earlier are kept.
            progress: Called with the number of finished prompts and the total.

        Raises:
            PromptError: A prompt is empty or too long. Nothing is computed.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._places]
        if not missing:
            return
        lengths = {prompt: sum(map(len, self.encode(prompt))) for prompt in missing}
        missing.sort(key=lengths.__getitem__)
        end = 0 if self._bank is None else len(self._bank)
        bank, places = self._bank, dict(self._places)
        for start in range(0, len(missing), _PRELOADED_TOGETHER):
            chosen = missing[start : start + _PRELOADED_TOGETHER]
            for prompt, states in zip(chosen, self._load(chosen), strict=True):
                if bank is self._bank:  # the first prompt gives the shape; all lengths are known
                    bank = states.new_zeros(end + sum(lengths.values()), *states.shape[1:])
                    if self._bank is not None:
                        bank[:end] = self._bank
                assert bank is not None
                bank[end : end + len(states)] = states
                places[prompt] = end, len(states)
                end += len(states)
            if progress:
                progress(start + len(chosen), len(missing))
        self._bank, self._places = bank, places

    def batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded states of prompts, ``[prompts, longest, state]``, and their mask, True where a token is real.

        With ``source = "layers"``, the states are ``[prompts, longest, layers, state]``.

        Raises:
            PromptError: There are no prompts, or a prompt is empty or too long.
        """
        if not prompts or isinstance(prompts, str):
            raise PromptError(f"prompts={prompts!r}; expected a list of at least one prompt")
        if self._bank is not None and all(prompt in self._places for prompt in prompts):
            return self._indexed(self._bank, [self._places[prompt] for prompt in prompts])
        states = self.several(prompts)
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        lengths = on_device([len(s) for s in states], padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

    def _indexed(self, bank: Tensor, places: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """The batch of preloaded prompts, taken from the bank by a single index."""
        starts, lengths = on_device(places, bank.device).unbind(1)
        positions = torch.arange(max(tokens for _, tokens in places), device=bank.device)
        mask = positions < lengths[:, None]
        states = bank[(starts[:, None] + positions).clamp(max=len(bank) - 1)]
        return states.masked_fill_(~mask.reshape(*mask.shape, *[1] * (states.dim() - 2)), 0), mask

"""What the page does, without a page: adapters kept for all users, answers, walks, ablation, exports.

Limits are checked here, with messages for people. Calls come from many threads; ``PromptLoRA`` makes them wait their
turn at the model, and the locks here are for what is kept and for exported files alone.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from torch import Tensor

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.adapt.streaming import Row, stream_rows
from promptlora.errors import PromptError
from promptlora.inspect import AttentionCapture, capture_ids, encode_text, token_texts
from promptlora.inspect.ablation import Ablation, ablate
from promptlora.inspect.life import change_map, most_changed
from promptlora.lora import LoRAWeights
from promptlora.text import encode_chat, render_chat

_T = TypeVar("_T")
WRITTEN, SILENT = 0, 1  # the two adapters of Written.pair


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one visitor may ask for.

    Attributes:
        prompt_characters: Longest prompt, before its tokens are counted.
        inputs: How many inputs at once.
        input_characters: Longest input.
        new_tokens: Longest answer.
        walk_tokens: Longest text whose attention is shown.
        ablation_inputs: How many inputs the ablation takes.
        adapters: How many adapters are kept, for all visitors together.
        captures: How many walks of one layer are kept.
    """

    prompt_characters: int = 20_000
    inputs: int = 6
    input_characters: int = 2_000
    new_tokens: int = 96
    walk_tokens: int = 96
    ablation_inputs: int = 3
    adapters: int = 32
    captures: int = 16


@dataclass(frozen=True, kw_only=True)
class Written:
    """An adapter as it is kept.

    Attributes:
        key: Digest of its prompt.
        pair: Two adapters: the written one, and one whose update is zero, for the rows of the base.
        seconds: What writing it took.
        reused: It was not written for this request.
    """

    key: str
    pair: LoRAWeights
    seconds: float
    reused: bool = False

    @property
    def lora(self) -> LoRAWeights:
        """The written one alone."""
        return self.pair.select(WRITTEN)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Three answers to each input, as far as they are.

    Attributes:
        inputs: The inputs.
        base: Of the base.
        in_context: Of the base with the prompt before the input.
        adapted: Of the base with the adapter, which does not read the prompt.
        read: Tokens that the model reads for each: base and adapted, in context.
        longest: The most tokens that an answer may have.
        cut: Which answers were cut there, three for each input, in the order above.
        done: Nothing will be added.
    """

    inputs: tuple[str, ...]
    base: tuple[str, ...]
    in_context: tuple[str, ...]
    adapted: tuple[str, ...]
    read: tuple[tuple[int, int], ...]
    longest: int
    cut: tuple[tuple[bool, bool, bool], ...]
    done: bool


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Where the adapter changes attention in a text.

    Attributes:
        tokens: The text of each token.
        layers: Numbers of the layers that have softmax weights.
        change: Jensen–Shannon distance between base and adapted, ``[layers, heads]``.
        layer: The layer with the most changed head.
        head: That head.
    """

    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    change: Tensor
    layer: int
    head: int


class Kept(Generic[_T]):
    """Values by key, the least used dropped first; for any thread."""

    def __init__(self, capacity: int, dropped: Callable[[str, _T], None] | None = None) -> None:
        self.capacity, self._dropped = capacity, dropped
        self._lock = Lock()
        self._values: OrderedDict[str, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> _T | None:
        """The value, which then is the most recently used; None if it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: str, value: _T) -> None:
        """Keep a value; the least used one goes if there are too many."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            over = len(self._values) - self.capacity
            gone = [self._values.popitem(last=False) for _ in range(over)]
        if self._dropped:
            for key, value in gone:
                self._dropped(key, value)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


class Studio:
    """One model and what is kept beside it, for all visitors.

    Args:
        lm: Base, hypernetwork and injector.
        folder: Where exports go; the caller removes it.
        base_name: What the exported config calls the base.
        limits: How much one visitor may ask for.
    """

    def __init__(self, lm: PromptLoRA, folder: Path, *, base_name: str, limits: Limits | None = None) -> None:
        self.lm, self.folder, self.base_name = lm, folder, base_name
        self.limits = limits or Limits()
        self._exporting = Lock()
        self.adapters: Kept[Written] = Kept(
            self.limits.adapters, lambda key, _: self._archive(key).unlink(missing_ok=True)
        )
        self._captures: Kept[AttentionCapture] = Kept(self.limits.captures)

    # --- what was asked for ------------------------------------------------------------------------------

    def check_prompt(self, prompt: str) -> str:
        """The prompt without space around it.

        Raises:
            PromptError: Empty, or far longer than the encoder takes.
        """
        text = str(prompt or "").strip()
        if not text:
            raise PromptError("the prompt is empty; write what the model should do, or press one of the examples")
        if len(text) > self.limits.prompt_characters:
            raise PromptError(
                f"the prompt has {len(text):,} characters; expected at most {self.limits.prompt_characters:,}, and at "
                f"most {self.lm.hypernetwork.config.max_prompt_tokens} tokens, what the encoder takes; shorten the prompt"
            )
        return text

    def check_inputs(self, boxes: Sequence[str | None]) -> list[str]:
        """What the boxes hold, line breaks inside kept and space around taken off; empty boxes are left out.

        Raises:
            PromptError: None, too many, or one that is too long.
        """
        filled = {number: str(text).strip() for number, text in enumerate(boxes, start=1) if text}
        found = {number: text for number, text in filled.items() if text}
        if not found:
            raise PromptError("there is no input; write at least one")
        for number, one in found.items():
            if len(one) > self.limits.input_characters:
                raise PromptError(
                    f"input {number} has {len(one):,} characters; expected at most {self.limits.input_characters:,}; "
                    "shorten it"
                )
        if len(found) > self.limits.inputs:
            raise PromptError(f"{len(found)} inputs; expected at most {self.limits.inputs} at once; take some away")
        return list(found.values())

    # --- adapters ----------------------------------------------------------------------------------------

    def adapter(self, prompt: str) -> Written:
        """The adapter of a prompt: kept from before, or written now.

        Raises:
            PromptError: A prompt that is empty or too long.
        """
        prompt = self.check_prompt(prompt)
        key = _key(prompt)
        kept = self.adapters.get(key)
        if kept is not None:
            return replace(kept, reused=True)
        started = time.perf_counter()
        lora = self.lm.adapt(prompt)
        seconds = time.perf_counter() - started
        silent = LoRAWeights.combine([lora], [0.0]).rescale(lora.scaling)  # of the same form, so that the pair is too
        pair = LoRAWeights.stack([lora, silent])
        written = Written(key=key, pair=pair, seconds=seconds)
        self.adapters.put(key, written)
        return written

    def _archive(self, key: str) -> Path:
        return self.folder / f"promptlora-{key}.zip"

    def export(self, prompt: str) -> Path:
        """The adapter of a prompt as a PEFT folder in a ZIP file.

        Raises:
            PromptError: As for :meth:`adapter`.
            OutputError: The disk is full.
        """
        text = self.check_prompt(prompt)
        written = self.adapter(text)
        with self._exporting:
            archive = self._archive(written.key)
            if archive.exists():
                return archive
            folder = self.folder / written.key
            try:
                written.lora.save_peft(folder, overwrite=True, base_model_name=self.base_name, model=self.lm.model)
                with zipfile.ZipFile(archive, "w") as whole:  # stored: weights do not compress
                    for file in sorted(folder.iterdir()):
                        whole.write(file, f"adapter/{file.name}")
            except BaseException:
                archive.unlink(missing_ok=True)
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return archive

    # --- answers -----------------------------------------------------------------------------------------

    def answer(self, prompt: str, inputs: Sequence[str], max_new_tokens: int) -> Iterator[Answers]:
        """Base, in-context and adapted answers of all inputs, decoded in one batch.

        Rows of the base go through an adapter whose update is exactly zero.

        Raises:
            PromptError: As for :meth:`adapter`.
        """
        count = len(inputs)
        longest = min(max(int(max_new_tokens), 1), self.limits.new_tokens)
        written = self.adapter(prompt)
        tokenizer = self.lm.tokenizer
        plain = encode_chat(tokenizer, [render_chat(tokenizer, text) for text in inputs])
        shown = encode_chat(tokenizer, [render_chat(tokenizer, text, self.check_prompt(prompt)) for text in inputs])
        read = tuple((len(a), len(b)) for a, b in zip(plain, shown, strict=True))

        def answers(rows: Sequence[Row], *, done: bool) -> Answers:
            base, in_context, adapted = (rows[i : i + count] for i in (0, count, 2 * count))
            return Answers(
                inputs=tuple(inputs),
                base=tuple(row.text for row in base),
                in_context=tuple(row.text for row in in_context),
                adapted=tuple(row.text for row in adapted),
                read=read,
                longest=longest,
                cut=tuple(
                    (done and not a.ended, done and not b.ended, done and not c.ended)
                    for a, b, c in zip(base, in_context, adapted, strict=True)
                ),
                done=done,
            )

        last = [Row("", ended=False)] * (3 * count)
        yield answers(last, done=False)
        index = [SILENT] * (2 * count) + [WRITTEN] * count
        for last in stream_rows(self.lm.host, [*plain, *shown, *plain], written.pair, index, max_new_tokens=longest):
            yield answers(last, done=False)
        yield answers(last, done=True)

    # --- attention ---------------------------------------------------------------------------------------

    def _walk_ids(self, text: str) -> list[int]:
        ids = encode_text(self.lm, text)
        if len(ids) > self.limits.walk_tokens:
            raise PromptError(
                f"this input has {len(ids)} tokens with its template; attention is shown for at most "
                f"{self.limits.walk_tokens}; choose a shorter input"
            )
        return ids

    def inside(self, prompt: str, text: str) -> Inside:
        """Where the adapter changes attention, over all layers and heads.

        Raises:
            PromptError: A text that is too long to show.
            AttentionError: A model whose attention cannot be walked through.
        """
        ids = self._walk_ids(text)
        lora = self.adapter(prompt).lora
        with self.lm.host.using(None):
            capture = capture_ids(self.lm.model, ids, self.lm.injector, lora)
        assert capture.adapted is not None
        layers, change = change_map(capture.base, capture.adapted)
        layer, head = most_changed(capture)
        tokens = tuple(token_texts(self.lm.tokenizer, ids))
        return Inside(tokens=tokens, layers=tuple(layers), change=change, layer=layer, head=head)

    def capture(self, prompt: str, text: str, layer: int) -> AttentionCapture:
        """One layer of base and adapted, all heads; the latest are kept.

        Raises:
            PromptError: A text that is too long to show.
            AttentionError: A layer that the model does not have.
        """
        ids = self._walk_ids(text)
        asked = self.check_prompt(prompt)
        key = _key(asked, text, int(layer))
        found = self._captures.get(key)
        if found is None:
            tokens = token_texts(self.lm.tokenizer, ids)
            lora = self.adapter(asked).lora
            with self.lm.host.using(None):
                found = capture_ids(self.lm.model, ids, self.lm.injector, lora, layers=[int(layer)], tokens=tokens)
            self._captures.put(key, found)
        return found

    def ablation(self, prompt: str, inputs: Sequence[str], on_row: Callable[[int], None] | None = None) -> Ablation:
        """What q, k, v and o of the adapter change by themselves, on the first inputs that are short enough.

        Raises:
            PromptError: No input is short enough.
        """
        short = [text for text in inputs if len(encode_text(self.lm, text)) <= self.limits.walk_tokens]
        if not short:
            self._walk_ids(inputs[0])
        lora = self.adapter(prompt).lora
        return ablate(self.lm, short[: self.limits.ablation_inputs], lora, on_row=on_row)

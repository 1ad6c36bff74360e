"""The page's work, without the page: cached adapters for all users, answers, walks, ablation, exports.

Limits are checked here, with messages for visitors. Calls come from many threads. ``PromptLoRA`` serialises access to
the model; the locks here protect only the caches and the exported files.
"""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.adapt.refine import RefineStep
from promptlora.adapt.streaming import Row, stream_rows
from promptlora.errors import AttentionError, DataError, PromptError
from promptlora.hypernet.distance import PromptDistance
from promptlora.inspect import AttentionCapture, adapter_space, capture_ids, encode_text, template_tokens, token_texts
from promptlora.inspect.ablation import Ablation, ablate
from promptlora.inspect.life import change_at_tokens
from promptlora.lora import LoRAWeights
from promptlora.text import encode_chat, render_chat
from promptlora.ui.examples import MAP
from promptlora.ui.kept import Kept, digest
from promptlora.ui.refining import watch_refinement
from promptlora.ui.values import (
    BESIDE,
    SILENT,
    WHO,
    WRITTEN,
    Answers,
    Compared,
    Inside,
    Likely,
    Limits,
    Refined,
    Written,
)

_LIKELY = 5


class Studio:
    """One model and the caches beside it, shared by all visitors.

    Args:
        lm: Base, hypernetwork and injector.
        folder: Folder for exports; the caller removes it.
        base_name: Name of the base in the exported config.
        limits: Limits per visitor.
    """

    def __init__(self, lm: PromptLoRA, folder: Path, *, base_name: str, limits: Limits | None = None) -> None:
        self.lm, self.folder, self.base_name = lm, folder, base_name
        self.limits = limits or Limits()
        self._exporting = Lock()
        self.adapters: Kept[Written] = Kept(self.limits.adapters, lambda key, _: self._drop(key))
        self._refined: Kept[Path] = Kept(self.limits.adapters, lambda key, _: self._drop(key))
        self._captures: Kept[AttentionCapture] = Kept(self.limits.captures)
        self._reference: LoRAWeights | None = None

    # --- the request -------------------------------------------------------------------------------------

    def check_prompt(self, prompt: str) -> str:
        """Return the prompt without surrounding white space.

        Raises:
            PromptError: The prompt is empty, or far longer than the encoder accepts.
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
        """The texts of the non-empty boxes, without surrounding white space; line breaks inside are kept.

        Raises:
            PromptError: There is no input, there are too many, or one is too long.
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

    def check_rows(self, lines: str) -> list[tuple[str, str]]:
        """Parse rows that are written as lines ``input => output``; empty lines are skipped.

        Raises:
            DataError: A line has no ``=>``, has an empty side or is too long, or there are too many or too few lines.
        """
        rows = []
        for number, line in enumerate(str(lines or "").splitlines(), start=1):
            if not line.strip():
                continue
            given, arrow, wanted = (part.strip() for part in line.rpartition("=>"))
            if not arrow or not given or not wanted:
                raise DataError(f"rows, line {number}: {line[:60]!r}. Expected: input => output")
            if len(line) > self.limits.input_characters:
                raise DataError(
                    f"rows, line {number}: {len(line):,} characters. Expected at most {self.limits.input_characters:,}."
                )
            rows.append((given, wanted))
        if not 2 <= len(rows) <= self.limits.rows:
            raise DataError(f"rows: {len(rows)} of them. Expected 2 to {self.limits.rows}, one a line.")
        return rows

    # --- adapters ----------------------------------------------------------------------------------------

    def adapter(self, prompt: str) -> Written:
        """The adapter of a prompt, from the cache or newly written.

        Raises:
            PromptError: The prompt is empty or too long.
        """
        prompt = self.check_prompt(prompt)
        key = digest(prompt)
        kept = self.adapters.get(key)
        if kept is not None:
            return replace(kept, reused=True)
        started = time.perf_counter()
        lora = self.lm.adapt(prompt)
        seconds = time.perf_counter() - started
        beside = self.lm.adapt(prompt, in_context=True)
        silent = LoRAWeights.combine([lora], [0.0]).rescale(lora.scaling)  # same form as the others, for stacking
        written = Written(key=key, lora=lora, stack=LoRAWeights.stack([lora, beside, silent]), seconds=seconds)
        self.adapters.put(key, written)
        return written

    def answer_both(self, pair: LoRAWeights, inputs: Sequence[str], max_new_tokens: int) -> tuple[tuple[str, str], ...]:
        """The answers of two adapters to each input."""
        count = len(inputs)
        found = self.lm.generate(
            [*inputs, *inputs],
            pair,
            adapter_index=[0] * count + [1] * count,
            max_new_tokens=min(max(int(max_new_tokens), 1), self.limits.new_tokens),
        )
        return tuple(zip(found[:count], found[count:], strict=True))

    def distance(self, prompt: str) -> PromptDistance | None:
        """How far the prompt is from the training prompts; None if the hypernetwork has no such data."""
        found = self.lm.distances(prompt)
        return None if found is None else found[0]

    def export(self, prompt: str) -> Path:
        """Export the adapter of a prompt as a PEFT folder in a ZIP file.

        Raises:
            PromptError: See :meth:`adapter`.
            OutputError: The disk is full.
        """
        written = self.adapter(prompt)
        return self._export(written.key, written.lora)

    def _export(self, key: str, lora: LoRAWeights, suffix: str = "") -> Path:
        (origin,) = lora.origins
        name = (origin.folder_name if origin else "adapter") + suffix
        place = self.folder / key
        archive, folder = place / f"{name}.zip", place / name
        with self._exporting:
            if archive.exists():
                return archive
            try:
                place.mkdir(exist_ok=True)
                lora.save_peft(folder, base_model_name=self.base_name, model=self.lm.model)
                with zipfile.ZipFile(archive, "w") as whole:  # not compressed, because weights do not compress well
                    for file in sorted(folder.iterdir()):
                        whole.write(file, f"{name}/{file.name}")
            except BaseException:
                self._drop(key)
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return archive

    def _drop(self, key: str) -> None:
        """Delete the export of an adapter if there is one."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    # --- answers -----------------------------------------------------------------------------------------

    def answer(self, prompt: str, inputs: Sequence[str], max_new_tokens: int) -> Iterator[Answers]:
        """Generate the four answers to every input, decoded in one batch.

        Rows of the base use an adapter whose update is exactly zero.

        Raises:
            PromptError: See :meth:`adapter`.
        """
        count = len(inputs)
        longest = min(max(int(max_new_tokens), 1), self.limits.new_tokens)
        written = self.adapter(prompt)
        tokenizer = self.lm.tokenizer
        plain = encode_chat(tokenizer, [render_chat(tokenizer, text) for text in inputs])
        shown = encode_chat(tokenizer, [render_chat(tokenizer, text, self.check_prompt(prompt)) for text in inputs])
        read = tuple((len(a), len(b)) for a, b in zip(plain, shown, strict=True))

        def answers(rows: Sequence[Row], *, done: bool) -> Answers:
            each = [rows[i * count : (i + 1) * count] for i in range(len(WHO))]
            return Answers(
                inputs=tuple(inputs),
                **{who: tuple(row.text for row in own) for who, own in zip(WHO, each, strict=True)},
                read=read,
                longest=longest,
                cut=tuple(
                    (done and not a.ended, done and not b.ended, done and not c.ended, done and not d.ended)
                    for a, b, c, d in zip(*each, strict=True)
                ),
                done=done,
            )

        last = [Row("", ended=False)] * (len(WHO) * count)
        yield answers(last, done=False)
        index = [SILENT] * (2 * count) + [WRITTEN] * count + [BESIDE] * count
        rows = [*plain, *shown, *plain, *shown]
        for last in stream_rows(self.lm.host, rows, written.stack, index, max_new_tokens=longest):
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
            PromptError: The text is too long to show.
            AttentionError: The model's attention cannot be captured.
        """
        ids = self._walk_ids(text)
        lora = self.adapter(prompt).lora
        with self.lm.host.using(None):
            capture = capture_ids(self.lm.model, ids, self.lm.injector, lora)
        assert capture.adapted is not None
        layers, change = change_at_tokens(capture.base, capture.adapted)
        if not layers:
            raise AttentionError("no layer of this model has softmax weights; expected at least one")
        base, adapted = (walk.next_token.exp() for walk in (capture.base, capture.adapted))
        best = dict.fromkeys([*adapted.topk(_LIKELY).indices.tolist(), *base.topk(_LIKELY).indices.tolist()])
        return Inside(
            tokens=tuple(token_texts(self.lm.tokenizer, ids)),
            template=template_tokens(self.lm, text),
            layers=tuple(layers),
            change=change,
            likely=tuple(
                Likely(token, float(base[i]), float(adapted[i]))
                for i, token in zip(best, token_texts(self.lm.tokenizer, list(best)), strict=True)
            ),
        )

    def capture(self, prompt: str, text: str, layer: int) -> AttentionCapture:
        """One layer of base and adapted model with all heads; the most recent captures are cached.

        Raises:
            PromptError: The text is too long to show.
            AttentionError: The model does not have the layer.
        """
        ids = self._walk_ids(text)
        asked = self.check_prompt(prompt)
        key = digest(asked, text, int(layer))
        found = self._captures.get(key)
        if found is None:
            tokens = token_texts(self.lm.tokenizer, ids)
            lora = self.adapter(asked).lora
            with self.lm.host.using(None):
                found = capture_ids(self.lm.model, ids, self.lm.injector, lora, layers=[int(layer)], tokens=tokens)
            self._captures.put(key, found)
        return found

    def ablation(self, prompt: str, inputs: Sequence[str], on_row: Callable[[int], None] | None = None) -> Ablation:
        """What q, k, v and o of the adapter change separately, on the first inputs that are short enough.

        Raises:
            PromptError: No input is short enough.
        """
        short = [text for text in inputs if len(encode_text(self.lm, text)) <= self.limits.walk_tokens]
        if not short:
            self._walk_ids(inputs[0])
        lora = self.adapter(prompt).lora
        return ablate(self.lm, short[: self.limits.ablation_inputs], lora, on_row=on_row)

    # --- two prompts -------------------------------------------------------------------------------------

    def compare(self, prompt: str, other: str, inputs: Sequence[str], max_new_tokens: int) -> Compared:
        """Compare two prompts: their answers, and the positions of their adapters among those of known tasks.

        Raises:
            PromptError: See :meth:`adapter`.
        """
        prompts = (self.check_prompt(prompt), self.check_prompt(other))
        pair = LoRAWeights.stack([self.adapter(one).lora for one in prompts])
        if self._reference is None:
            self._reference = self.lm.adapt([text for text, _ in MAP])
        others = [i for i, (text, _) in enumerate(MAP) if text not in prompts]
        space = adapter_space(
            LoRAWeights.stack([self._reference.select(others), pair]),
            [*(MAP[i][0] for i in others), *prompts],
        )
        return Compared(
            prompts=prompts,
            inputs=tuple(inputs),
            answers=self.answer_both(pair, inputs, max_new_tokens),
            space=space,
            groups=(*(MAP[i][1] for i in others), "", ""),
            cosine=float(space.cosine[-2, -1]),
        )

    # --- refinement --------------------------------------------------------------------------------------

    def refine(
        self, prompt: str, rows: Sequence[tuple[str, str]], inputs: Sequence[str], steps: int, max_new_tokens: int
    ) -> Iterator[RefineStep | Refined]:
        """Refine the generated adapter: yields each step as it is done, then the refined adapter.

        The steps stop if the visitor leaves.

        Raises:
            PromptError: See :meth:`adapter`.
            DataError: The rows cannot be used.
        """
        text = self.check_prompt(prompt)
        written = self.adapter(text)
        found: RefineStep | LoRAWeights = written.lora
        for found in watch_refinement(self.lm, written.lora, text, rows, min(max(int(steps), 1), self.limits.steps)):
            if isinstance(found, RefineStep):
                yield found
        assert isinstance(found, LoRAWeights)
        told = found.provenance[0]
        key = digest(text, tuple(rows), told["steps"])
        archive = self._export(key, found, "-refined")
        self._refined.put(key, archive)
        yield Refined(
            inputs=tuple(inputs),
            answers=self.answer_both(LoRAWeights.stack([written.lora, found]), inputs, max_new_tokens),
            before=told["loss_before"],
            after=told["loss_after"],
            best=told["best_step"],
            kept_back=told["kept_back"],
            note=told["note"],
            archive=archive,
        )

"""``PromptLoRA``: the object that a user holds.

Base model, tokenizer, hypernetwork and injector together: prompts become adapters, inputs become answers.
It knows how to ask for text; nothing of training, scores or servers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from promptlora.adapt.function_vectors import add_function_vectors
from promptlora.adapt.generation import generation_options
from promptlora.errors import CheckpointError, ConfigError, LoRAError, PromptError, PromptLoRAError, one_line
from promptlora.hypernet.network import HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.models import Progress, base_fingerprint, describe_mismatch, load_base
from promptlora.settings import whole
from promptlora.text import PromptStates, encode_chat, pad_left, render_chat

Chat = str | Sequence[dict[str, str]]


def shipped_hypernetwork() -> Path:
    """The folder of the hypernetwork that comes with the package, trained for the embedded base."""
    return Path(str(resources.files("promptlora"))) / "pretrained"


class _Left(StoppingCriteria):
    """Ends a generation whose reader has gone."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class PromptLoRA:
    """A frozen base, the hypernetwork that writes adapters for it, and the hooks that add them.

    Args:
        model: The frozen base.
        tokenizer: Its tokenizer.
        hypernetwork: Trained for this base.
        force: Take a hypernetwork that was trained for another base of the same shapes.

    Raises:
        CheckpointError: A hypernetwork of another base.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        hypernetwork: HyperNetwork,
        *,
        force: bool = False,
    ) -> None:
        mismatch = describe_mismatch(hypernetwork.base, base_fingerprint(model))
        if mismatch and not force:
            raise CheckpointError(
                f"this hypernetwork was trained for another base: {mismatch}; load that base, or override with --force "
                "(force=True)"
            )
        expected = {} if force else hypernetwork.embedder
        self.states = PromptStates(model, tokenizer, hypernetwork.config, embedder=expected)
        if hypernetwork.state_size != self.states.state_size:
            raise CheckpointError(
                f"this hypernetwork reads states of width {hypernetwork.state_size}; the base has "
                f"{self.states.state_size}; load the base that it was trained for"
            )
        self.model, self.tokenizer = model, tokenizer
        self.hypernetwork = hypernetwork.to(model.device).eval().requires_grad_(False)
        self.injector = HookBasedLoRAInjector(model, hypernetwork.projections)

    @classmethod
    def from_pretrained(
        cls,
        hypernetwork: str | Path | None = None,
        base: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> PromptLoRA:
        """Load a base and a hypernetwork.

        Args:
            hypernetwork: A folder written by ``HyperNetwork.save_pretrained``; by default the one in the package.
            base: A folder or a Hugging Face id; by default the embedded SmolLM2-135M-Instruct.
            dtype: Of the base's weights, and of the adapters.
            device: Where both go.
            attn_implementation: Passed on to transformers.
            force: Take a hypernetwork that was trained for another base.
            progress: Called with a line about each stage.

        Raises:
            ModelError: A base that cannot be loaded.
            CheckpointError: A hypernetwork that cannot be read or belongs to another base.
        """
        # The small file first: a wrong path is told at once.
        network = HyperNetwork.from_pretrained(hypernetwork or shipped_hypernetwork())
        model, tokenizer = load_base(
            base, dtype=dtype, device=device, attn_implementation=attn_implementation, progress=progress
        )
        return cls(model, tokenizer, network, force=force)

    # --- prompts to adapters ---------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(
        self,
        prompts: str | Sequence[str],
        *,
        generated: bool = True,
        strength: float | None = None,
        vectors: float | None = None,
        in_context: bool = False,
    ) -> LoRAWeights:
        """Write one adapter for each prompt, in one forward of the hypernetwork.

        Args:
            prompts: One prompt or several.
            generated: False gives the static part alone, which is the same for every prompt.
            strength: Factor of the generated part, 1 as it was trained; by default as the hypernetwork says.
            vectors: How much of each prompt's function vector is added, as one more rank of the middle o projections, for
                which the base reads the prompt before a few neutral inputs; by default as the hypernetwork says, and
                none for the static part.
            in_context: Whether the base will also have the prompts in its context. It has no effect on a hypernetwork
                without ``context_flag``.

        Returns:
            As many adapters as prompts, in the base's dtype.

        Raises:
            PromptError: No prompt, an empty one, or one longer than the encoder takes.
            ConfigError: A strength or vectors that is not a finite number of 0 or more.
        """
        if strength is not None and not 0 <= strength < float("inf"):
            raise ConfigError(f"strength={strength}; expected a finite number of 0 or more, 1 as it was trained")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise PromptError("no prompt was given; expected at least one")
        with self.injector.apply(None):  # states are those of the base, whatever is on outside
            states, mask = self.states.batch(texts)
        lora: LoRAWeights = self.hypernetwork(
            states, mask, in_context, generated=generated, strength=strength, dtype=self.model.dtype
        )
        if vectors is None:
            vectors = self.hypernetwork.config.vectors if generated else 0.0
        return add_function_vectors(self.model, self.tokenizer, self.injector, lora, texts, vectors)

    # --- inputs to answers -----------------------------------------------------------------------------

    def _encode(
        self, inputs: Sequence[Chat], prompts: Sequence[str | None], place: str, max_new_tokens: int
    ) -> list[list[int]]:
        rendered = [render_chat(self.tokenizer, x, p, place=place) for x, p in zip(inputs, prompts, strict=True)]
        encoded = encode_chat(self.tokenizer, rendered)
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for i, ids in enumerate(encoded):
            if longest is not None and len(ids) + max_new_tokens > longest:
                raise PromptError(
                    f"input {i} has {len(ids)} tokens and {max_new_tokens} may follow; expected at most {longest} "
                    "together, what the base takes; shorten the input or max_new_tokens"
                )
        return encoded

    def count_tokens(self, inputs: Sequence[Chat], in_context: Sequence[str | None] | None = None) -> list[int]:
        """How many tokens the base reads for each input, template and in-context prompt included."""
        shown = in_context or [None] * len(inputs)
        return [len(ids) for ids in self._encode(inputs, shown, "user", 0)]

    def _rows(self, lora: LoRAWeights | None, count: int, adapter_index: Sequence[int] | None) -> list[int]:
        """Which adapter each row uses."""
        if lora is None:
            if adapter_index is not None:
                raise LoRAError("adapter_index was given without lora; pass both or neither")
            return [0] * count
        if adapter_index is not None:
            if len(adapter_index) != count:
                raise LoRAError(f"adapter_index has {len(adapter_index)} entries for {count} inputs; expected one each")
            try:
                return [operator.index(i) for i in adapter_index]
            except TypeError as error:
                raise LoRAError(f"adapter_index={list(adapter_index)[:8]!r}. Expected whole numbers.") from error
        if lora.adapters == 1:
            return [0] * count
        if lora.adapters == count:
            return list(range(count))
        raise LoRAError(
            f"{lora.adapters} adapters for {count} inputs; expected one for all, one each, or an adapter_index"
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Chat | Sequence[Chat],
        lora: LoRAWeights | None = None,
        *,
        adapter_index: Sequence[int] | None = None,
        in_context: str | Sequence[str | None] | None = None,
        place: str = "user",
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer each input, with an adapter of its own.

        Args:
            inputs: One text, or a list of texts or conversations (lists of ``{role, content}``).
            lora: One adapter for all inputs or one for each; None is the base.
            adapter_index: Input i uses adapter ``adapter_index[i]``.
            in_context: A prompt to put in the context as well, for controls: one for all, or one for each.
            place: Where it goes: the ``user`` or the ``system`` turn.
            max_new_tokens: Longest answer; by default what a ``generation_config`` says, else 64.
            batch_size: Inputs that run at once; batches are made of inputs of near length.
            on_batch: Called with the number of inputs done after each batch.
            **options: Go to ``model.generate`` (``do_sample``, ``num_beams``, ``num_return_sequences``,
                ``generation_config``, …); a keyword overrides ``generation_config``; greedy by default.

        Returns:
            The answers in the order of the inputs; ``num_return_sequences`` answers of an input stand together.

        Raises:
            LoRAError: Numbers of adapters and inputs that do not fit.
            PromptError: An input longer than the base takes.
            ConfigError: An option that transformers refuses.
        """
        # A list of messages is one conversation; a list of texts or of conversations is many.
        one = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], dict))
        texts = cast("list[Chat]", [inputs] if one else list(inputs))
        whole("batch_size", batch_size, error=PromptError)
        settings = generation_options(options, max_new_tokens, 64, self._pad)
        rows = self._rows(lora, len(texts), adapter_index)
        shown = [in_context] * len(texts) if in_context is None or isinstance(in_context, str) else list(in_context)
        if len(shown) != len(texts):
            raise PromptError(f"in_context has {len(shown)} prompts for {len(texts)} inputs; expected one each")
        encoded = self._encode(texts, shown, place, settings["generation_config"].max_new_tokens)
        answers: list[list[str]] = [[] for _ in texts]
        # Rows of near length stand together, and in a batch rows of one adapter: hooks then need no gather.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        done = 0
        for start in range(0, len(order), batch_size):
            chosen = sorted(order[start : start + batch_size], key=lambda i: rows[i])
            ids, mask = pad_left([encoded[i] for i in chosen], self._pad)
            output = self._run(ids, mask, lora, [rows[i] for i in chosen], settings)
            copies = len(output) // len(chosen)  # as many as were returned, whoever asked for them
            texts_out = self.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for at, i in enumerate(chosen):
                answers[i] = [text.strip() for text in texts_out[at * copies : (at + 1) * copies]]
            done += len(chosen)
            if on_batch:
                on_batch(done)
        return [answer for each in answers for answer in each]

    @property
    def _pad(self) -> int:
        return int(cast(int, self.tokenizer.pad_token_id) or 0)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor,
        lora: LoRAWeights | None,
        rows: Sequence[int],
        settings: dict[str, Any],
    ) -> Tensor:
        """Token ids ``[rows · answers of each, tokens]``, the input's included."""
        device = self.model.device
        with self.injector.apply(lora, None if lora is None else rows):
            generate: Any = self.model.generate
            try:
                output: Any = generate(input_ids=ids.to(device), attention_mask=mask.to(device), **settings)
            except PromptLoRAError:
                raise
            except ValueError as error:  # how transformers refuses settings and unknown keywords
                raise ConfigError(f"generation options: {one_line(error)}") from error
        sequences: Tensor = getattr(output, "sequences", output)  # an object with return_dict_in_generate
        return sequences

    def stream(
        self,
        text: Chat,
        lora: LoRAWeights | None = None,
        *,
        in_context: str | None = None,
        place: str = "user",
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Answer one input or conversation piece by piece.

        Args:
            text: A text, or the messages of a conversation.
            lora: One adapter; None is the base.
            in_context: A prompt to put in the context as well.
            place: Where it goes: the ``user`` or the ``system`` turn.
            max_new_tokens: Longest answer; by default what a ``generation_config`` says, else 256.
            **options: As for :meth:`generate`; one answer without beams.

        Raises:
            LoRAError: More than one adapter.
            PromptError: An input longer than the base takes.
            ConfigError: Several answers or beams, or an option that transformers refuses.
        """
        rows = self._rows(lora, 1, None)
        settings = generation_options(options, max_new_tokens, 256, self._pad)
        config = settings["generation_config"]
        if config.num_beams > 1 or config.num_return_sequences > 1:
            raise ConfigError(
                f"stream: num_beams={config.num_beams}, num_return_sequences={config.num_return_sequences}. Expected 1 "
                "each: pieces of one answer. Fix: use generate."
            )
        encoded = self._encode([text], [in_context], place, config.max_new_tokens)
        ids, mask = pad_left(encoded, self._pad)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[BaseException] = []
        left = _Left()
        settings["stopping_criteria"] = StoppingCriteriaList([left, *settings.get("stopping_criteria", [])])

        @torch.no_grad()
        def work() -> None:
            try:
                self._run(ids, mask, lora, rows, {**settings, "streamer": streamer})
            except BaseException as error:
                failed.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            left.event.set()
            thread.join()
        if failed:
            raise failed[0]

    def chat(
        self, messages: Sequence[dict[str, str]], lora: LoRAWeights | None = None, **options: Any
    ) -> list[dict[str, str]]:
        """Answer a conversation; returns it with the assistant's message added.

        Args:
            messages: ``{role, content}`` each; the last one is the user's.
            lora: One adapter; None is the base.
            **options: As for :meth:`generate`.
        """
        answer, *others = self.generate([list(messages)], lora, **options)
        if others:
            raise ConfigError(
                f"chat: num_return_sequences={1 + len(others)}. Expected 1: a conversation has one answer."
            )
        return [*messages, {"role": "assistant", "content": answer}]

    def close(self) -> None:
        """Take the hooks off the base, which is then bitwise as it was found."""
        self.injector.remove()

"""``AdaptedBase``: a base that answers texts, each row with an adapter of its own.

It knows how to ask for text, and adapters wherever they come from; nothing of hypernetworks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.adapt.generation import generation_options
from promptlora.adapt.scoring import score_rows
from promptlora.adapt.streaming import stream_ids, stream_text
from promptlora.errors import ConfigError, LoRAError, PromptError
from promptlora.host import Host
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.settings import whole
from promptlora.text import ChatExport, encode_chat, pad_rows, render_chat

Chat = str | Sequence[dict[str, str]]


class AdaptedBase:
    """A base with its tokenizer and hooks: inputs become answers.

    Every call may come from any thread and waits its turn; every answer is what it is alone.

    Args:
        host: What runs the base.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.chat_export = ChatExport(host.tokenizer)  # for the folders of adapters

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        return self.host.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.host.tokenizer

    @property
    def injector(self) -> HookBasedLoRAInjector:
        """The hooks. ``with lm.host.using(lora)`` waits for the model's turn first."""
        return self.host.injector

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

    def _shown(self, in_context: str | Sequence[str | None] | None, count: int) -> list[str | None]:
        """The prompt in the context of each input."""
        shown = [in_context] * count if in_context is None or isinstance(in_context, str) else list(in_context)
        if len(shown) != count:
            raise PromptError(f"in_context has {len(shown)} prompts for {count} inputs; expected one each")
        return shown

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

    @overload
    def generate(
        self,
        inputs: str | list[dict[str, str]],
        lora: LoRAWeights | None = ...,
        **options: Any,
    ) -> str: ...

    @overload
    def generate(self, inputs: Sequence[Chat], lora: LoRAWeights | None = ..., **options: Any) -> list[str]: ...

    def generate(
        self,
        inputs: Any,
        lora: LoRAWeights | None = None,
        *,
        adapter_index: Sequence[int] | None = None,
        in_context: str | Sequence[str | None] | None = None,
        place: str = "user",
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
        **options: Any,
    ) -> str | list[str]:
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
            One text for one input, else the answers in the order of the inputs. ``num_return_sequences`` answers of an
            input stand together, and are a list also for one input.

        Raises:
            LoRAError: Numbers of adapters and inputs that do not fit.
            PromptError: An input longer than the base takes.
            ConfigError: An option that transformers refuses.
        """
        # A list of messages is one conversation; a list of texts or of conversations is many.
        one = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], dict))
        texts = cast("list[Chat]", [inputs] if one else list(inputs))
        whole("batch_size", batch_size, error=PromptError)
        settings = generation_options(options, max_new_tokens, 64, self.host.pad)
        rows = self._rows(lora, len(texts), adapter_index)
        longest = settings["generation_config"].max_new_tokens
        encoded = self._encode(texts, self._shown(in_context, len(texts)), place, longest)
        answers: list[list[str]] = [[] for _ in texts]
        # Rows of near length stand together, and in a batch rows of one adapter: hooks then need no gather.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        done = 0
        for start in range(0, len(order), batch_size):
            chosen = sorted(order[start : start + batch_size], key=lambda i: rows[i])
            ids, mask = pad_rows([encoded[i] for i in chosen], self.host.pad, left=True)
            index = None if lora is None else [rows[i] for i in chosen]
            output = self.host.generate(ids, mask, lora, index, **settings)
            texts_out = self.tokenizer.batch_decode(output, skip_special_tokens=True)
            copies = len(texts_out) // len(chosen)  # as many as were returned, whoever asked for them
            for at, i in enumerate(chosen):
                answers[i] = [text.strip() for text in texts_out[at * copies : (at + 1) * copies]]
            done += len(chosen)
            if on_batch:
                on_batch(done)
        if one and len(answers[0]) == 1:
            return answers[0][0]
        return [answer for each in answers for answer in each]

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

        The model is free between two pieces: other calls may come in between, from this thread or another, other streams
        run beside, and a stream that is dropped holds nothing.

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
        settings = generation_options(options, max_new_tokens, 256, self.host.pad)
        config = settings["generation_config"]
        if config.num_beams > 1 or config.num_return_sequences > 1:
            raise ConfigError(
                f"stream: num_beams={config.num_beams}, num_return_sequences={config.num_return_sequences}. Expected 1 "
                "each: pieces of one answer. Fix: use generate."
            )
        encoded = self._encode([text], [in_context], place, config.max_new_tokens)
        return stream_text(self.host, stream_ids(self.host, encoded, lora, None if lora is None else rows, **settings))

    def score(
        self,
        inputs: Sequence[Chat],
        answers: Sequence[str],
        lora: LoRAWeights | None = None,
        *,
        adapter_index: Sequence[int] | None = None,
        in_context: str | Sequence[str | None] | None = None,
        place: str = "user",
        batch_size: int = 32,
    ) -> list[float]:
        """The log-probability of each answer after its input, in nats, with an adapter of its own.

        The answer's tokens are counted, and not the token that ends a turn.

        Args:
            inputs: Texts or conversations.
            answers: One for each input.
            lora: As for :meth:`generate`.
            adapter_index: As for :meth:`generate`.
            in_context: As for :meth:`generate`.
            place: As for :meth:`generate`.
            batch_size: Rows that run at once.

        Raises:
            LoRAError: Numbers of adapters and inputs that do not fit.
            PromptError: Numbers of inputs and answers that do not fit, an answer without a token, or a row longer than the
                base takes.
        """
        if isinstance(inputs, str) or isinstance(answers, str) or len(inputs) != len(answers):
            raise PromptError(f"{len(inputs)} inputs and {len(answers)} answers; expected two lists of one length")
        whole("batch_size", batch_size, error=PromptError)
        rows = self._rows(lora, len(inputs), adapter_index)
        ends = self.tokenizer(list(answers), add_special_tokens=False)["input_ids"] if answers else []
        if not all(ends):
            raise PromptError(f"answer {[bool(end) for end in ends].index(False)} has no token; expected a text")
        starts = self._encode(inputs, self._shown(in_context, len(inputs)), place, max(map(len, ends), default=0))
        return score_rows(self.host, starts, ends, lora, None if lora is None else rows, batch_size=batch_size)

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
        """Wait for the turn, then take the hooks off the base, which is then bitwise as it was found."""
        self.host.close()

"""``AdaptedBase``: a base that answers texts, with one adapter per row.

It knows how to generate text with adapters from any source; it knows nothing of hypernetworks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.adapt.generation import generation_options
from promptlora.adapt.scoring import score_rows
from promptlora.adapt.streaming import stream_ids, stream_text
from promptlora.errors import ConfigError, LoRAError, PromptError
from promptlora.host import Host
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights, row_number
from promptlora.settings import whole
from promptlora.text import ChatExport, encode_chat, pad_rows, render_chat

Chat = str | Sequence[dict[str, str]]


class AdaptedBase:
    """A base with its tokenizer and hooks, which answers inputs.

    All methods are thread-safe: a call waits until the model is free. An answer does not depend on other calls.

    Args:
        host: The host that runs the base.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.chat_export = ChatExport(host.tokenizer)  # writes the chat files of exported adapters

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
        """The hooks. ``with lm.host.using(lora)`` first waits until the model is free."""
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
        """The number of tokens that the base reads per input, including the template and the in-context prompt."""
        shown = in_context or [None] * len(inputs)
        return [len(ids) for ids in self._encode(inputs, shown, "user", 0)]

    def _shown(self, in_context: str | Sequence[str | None] | None, count: int) -> list[str | None]:
        """The prompt in the context of each input.

        Raises:
            PromptError: It is neither a text nor one text or None for each input.
        """
        if in_context is None or isinstance(in_context, str):
            return [in_context] * count
        if not isinstance(in_context, Sequence) or not all(
            text is None or isinstance(text, str) for text in in_context
        ):
            raise PromptError(
                f"in_context={repr(in_context)[:60]}. Expected the prompt as a text, or a list with a text or None for each input."
            )
        shown = list(in_context)
        if len(shown) != count:
            raise PromptError(f"in_context has {len(shown)} prompts for {count} inputs; expected one each")
        return shown

    def _rows(self, lora: LoRAWeights | None, count: int, adapter_index: Sequence[int] | None) -> list[int]:
        """The adapter of each row."""
        if lora is None:
            if adapter_index is not None:
                raise LoRAError("adapter_index was given without lora; pass both or neither")
            return [0] * count
        if adapter_index is not None:
            if len(adapter_index) != count:
                raise LoRAError(f"adapter_index has {len(adapter_index)} entries for {count} inputs; expected one each")
            try:
                return [row_number(i) for i in adapter_index]
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
        """Answer each input, with one adapter for all inputs or one adapter per input.

        Args:
            inputs: One text, or a list of texts or conversations (lists of ``{role, content}``).
            lora: One adapter for all inputs, or one per input; None uses the base.
            adapter_index: Input i uses adapter ``adapter_index[i]``.
            in_context: A prompt that is also put in the context, for controls: one for all inputs, or one per input.
            place: The turn that contains the in-context prompt: ``user`` or ``system``.
            max_new_tokens: The maximum answer length in tokens; by default that of ``generation_config``, else 64.
            batch_size: The number of inputs per batch; inputs of similar length are batched together.
            on_batch: Called after each batch with the number of finished inputs.
            **options: Passed to ``model.generate`` (``do_sample``, ``num_beams``, ``num_return_sequences``,
                ``generation_config``, …). A keyword overrides ``generation_config``. Decoding is greedy by default.

        Returns:
            One text for a single input, else a list of answers in input order. With ``num_return_sequences`` above 1,
            the answers to one input are adjacent, and the result is a list even for a single input.

        Raises:
            LoRAError: The number of adapters does not match the number of inputs.
            PromptError: An input is longer than the base supports.
            ConfigError: transformers refuses an option.
        """
        # A list of messages is one conversation; a list of texts or conversations contains several inputs.
        one = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], dict))
        texts = cast("list[Chat]", [inputs] if one else list(inputs))
        whole("batch_size", batch_size, error=PromptError)
        settings = generation_options(options, max_new_tokens, 64, self.host.pad)
        rows = self._rows(lora, len(texts), adapter_index)
        longest = settings["generation_config"].max_new_tokens
        encoded = self._encode(texts, self._shown(in_context, len(texts)), place, longest)
        answers: list[list[str]] = [[] for _ in texts]
        # Batches contain rows of similar length. Within a batch, rows are sorted by adapter, so hooks need no gather.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        done = 0
        for start in range(0, len(order), batch_size):
            chosen = sorted(order[start : start + batch_size], key=lambda i: rows[i])
            ids, mask = pad_rows([encoded[i] for i in chosen], self.host.pad, left=True)
            index = None if lora is None else [rows[i] for i in chosen]
            output = self.host.generate(ids, mask, lora, index, **settings)
            texts_out = self.tokenizer.batch_decode(output, skip_special_tokens=True)
            copies = len(texts_out) // len(chosen)  # answers per input, whichever option set it
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
        """Stream the answer to one input or conversation.

        The model is free between two pieces, so other calls and streams, from this or another thread, can use it in
        between. A stream that is dropped holds no resources.

        Args:
            text: A text, or the messages of a conversation.
            lora: One adapter; None uses the base.
            in_context: A prompt that is also put in the context.
            place: The turn that contains the in-context prompt: ``user`` or ``system``.
            max_new_tokens: The maximum answer length in tokens; by default that of ``generation_config``, else 256.
            **options: See :meth:`generate`; beams and several answers are not supported.

        Raises:
            LoRAError: There is more than one adapter.
            PromptError: The input is longer than the base supports.
            ConfigError: Several answers or beams are requested, or transformers refuses an option.
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
        """The log-probability of each answer given its input, in nats.

        It is the sum over the answer's tokens, without the token that ends a turn.

        Args:
            inputs: Texts or conversations.
            answers: One answer per input.
            lora: See :meth:`generate`.
            adapter_index: See :meth:`generate`.
            in_context: See :meth:`generate`.
            place: See :meth:`generate`.
            batch_size: The number of rows per batch.

        Raises:
            LoRAError: The number of adapters does not match the number of inputs.
            PromptError: The number of answers differs from the number of inputs, an answer has no token, or a row is
                longer than the base supports.
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
        """Answer a conversation; return the conversation with the assistant's message appended.

        Args:
            messages: Dicts ``{role, content}``; the last one is the user's.
            lora: One adapter; None uses the base.
            **options: See :meth:`generate`.
        """
        answer, *others = self.generate([list(messages)], lora, **options)
        if others:
            raise ConfigError(
                f"chat: num_return_sequences={1 + len(others)}. Expected 1: a conversation has one answer."
            )
        return [*messages, {"role": "assistant", "content": answer}]

    def close(self) -> None:
        """Wait until the model is free, then remove the hooks; the base is restored bitwise."""
        self.host.close()

"""Text and chat to token ids and masks, and a prompt to its states in the frozen base.

It knows tokenizers, chat templates and the base's layers; nothing of LoRA or hypernetworks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.config import HyperNetworkConfig
from promptlora.errors import ModelError, PromptError


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[dict[str, str]],
    prompt: str | None = None,
    *,
    place: str = "user",
) -> str:
    """One user turn, or a whole conversation, in the base's chat template, ready for the answer.

    The system turn is written empty where the template has one, so that no default system prompt stands
    beside the adapter. A tokenizer without a template gets the plain text.

    Args:
        tokenizer: The base's tokenizer.
        text: What the user says, or messages ``{role, content}``.
        prompt: An instruction to put in the context, for the in-context control.
        place: Where it goes: before the input in the ``user`` turn, or in the ``system`` turn.
    """
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else [dict(m) for m in text]
    system = ""
    if prompt is not None and place == "system":
        system = prompt
    elif prompt is not None:
        first = next(m for m in messages if m["role"] == "user")
        first["content"] = f"{prompt}\n\n{first['content']}"
    if not tokenizer.chat_template:
        parts = [system, *(m["content"] for m in messages)]
        return "\n\n".join(part for part in parts if part) + "\n"
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template that refuses a system turn raises whatever it likes
        plain = [m for m in messages if m["role"] != "system"]
        if system:
            plain[0] = {**plain[0], "content": f"{system}\n\n{plain[0]['content']}"}
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))


def encode_chat(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered chats; the template has written the special tokens already."""
    if not rendered:
        return []
    ids: list[list[int]] = tokenizer(list(rendered), add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int) -> list[int]:
    """Token ids of a prompt for the encoder.

    Raises:
        PromptError: An empty prompt, or one longer than ``max_tokens``.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"prompt {prompt!r} is empty; expected an instruction, a system prompt or a document")
    ids: list[int] = tokenizer(prompt.strip(), add_special_tokens=False)["input_ids"]
    if len(ids) > max_tokens:
        raise PromptError(
            f"prompt of {len(ids)} tokens ({prompt.strip()[:40]!r}…); expected at most {max_tokens}, what this "
            "hypernetwork's encoder takes; shorten the prompt"
        )
    return ids


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids ``[rows, longest]`` and the mask of real tokens, padded on the left as generation wants it."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids, mask


class _Reached(Exception):  # noqa: N818 (not an error: it ends a forward that has what it came for)
    """The layer was reached."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of transformer layers of a causal language model.

    Raises:
        ModelError: A model whose layers are not in one list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for _, module in model.get_decoder().named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__}: no list of {count} layers; use source = 'embeddings'")


@torch.no_grad()
def prompt_states(model: PreTrainedModel, ids: Tensor, source: str, layer: int) -> Tensor:
    """States ``[1, tokens, hidden]`` of one prompt ``[1, tokens]`` in the frozen base.

    Args:
        model: The base.
        ids: Token ids of one prompt, unpadded.
        source: ``embeddings``, the token embeddings; or ``hidden``, what leaves layer ``layer``.
        layer: Counted from 1.

    Raises:
        ModelError: A layer that the base does not have.
    """
    if source == "embeddings":
        embedded: Tensor = model.get_input_embeddings()(ids)
        return embedded
    layers = decoder_layers(model)
    if not 1 <= layer <= len(layers):
        raise ModelError(f"source_layer={layer}: the base has {len(layers)} layers; expected 1 … {len(layers)}")
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    with ExitStack() as stack:
        handle = layers[layer - 1].register_forward_hook(catch)
        stack.callback(handle.remove)
        try:
            model.get_decoder()(input_ids=ids, use_cache=False)
        except _Reached:
            pass
    return caught[0]


class PromptStates:
    """The states of prompts in the frozen base, each computed once and kept, the least used dropped first.

    Each prompt is run by itself, so what else is asked for never changes a state.

    Args:
        model: The base; no LoRA may be on while states are computed.
        tokenizer: Its tokenizer.
        config: Source, layer and longest prompt.
        capacity: How many prompts are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: HyperNetworkConfig,
        capacity: int = 8192,
    ) -> None:
        self.model, self.tokenizer, self.config, self.capacity = model, tokenizer, config, capacity
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def one(self, prompt: str) -> Tensor:
        """States ``[tokens, hidden]`` of one prompt."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        ids = encode_prompt(self.tokenizer, prompt, self.config.max_prompt_tokens)
        device = self.model.get_input_embeddings().weight.device
        states = prompt_states(
            self.model, torch.tensor([ids], device=device), self.config.source, self.config.source_layer
        )[0]
        self._kept[prompt] = states
        if len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return states

    def batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States ``[prompts, longest, hidden]`` and their mask, bool, True where a token is real."""
        states = [self.one(prompt) for prompt in prompts]
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        lengths = torch.tensor([len(s) for s in states], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

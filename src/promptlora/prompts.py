"""Text and chat to token ids and masks, and a prompt to its states in the frozen base.

It knows tokenizers, chat templates and the base's layers; nothing of LoRA or hypernetworks.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.config import HyperNetworkConfig
from promptlora.errors import ModelError, PromptError, one_line
from promptlora.files import replacing_file

PLACES = ("user", "system")
_CONSONANTS = "bcdfghjklmnpqrstvwxz"


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[dict[str, str]],
    prompt: str | None = None,
    *,
    place: str = "user",
) -> str:
    """One user turn, or a whole conversation, in the base's chat template, ready for the answer.

    The system turn is written empty where the template has one, so that no default system prompt stands
    beside the adapter. A template that refuses a system turn gets its text before the first user turn, and
    a tokenizer without a template gets the plain text.

    Args:
        tokenizer: The base's tokenizer.
        text: What the user says, or messages ``{role, content}``.
        prompt: An instruction to put in the context, for the in-context control.
        place: Where it goes: before the input in the ``user`` turn, or in the ``system`` turn (before what a
            conversation has there).

    Raises:
        PromptError: An unknown ``place``, messages of no use, or a conversation that the template refuses.
    """
    if place not in PLACES:
        raise PromptError(f"place={place!r}; expected one of {', '.join(PLACES)}")
    messages = _messages(text)
    system = [m["content"] for m in messages[:1] if m["role"] == "system" and m["content"]]
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if prompt is not None and place == "system":
        system = [prompt, *system]
    elif prompt is not None:
        turns = _before_user(turns, prompt)
    spoken = "\n\n".join(system)
    if not tokenizer.chat_template:
        return "\n\n".join(part for part in (spoken, *(m["content"] for m in turns)) if part) + "\n"
    try:
        try:
            return _apply_template(tokenizer, [{"role": "system", "content": spoken}, *turns])
        except TemplateError:
            return _apply_template(tokenizer, _before_user(turns, spoken) if spoken else turns)
    except TemplateError as error:
        raise PromptError(
            f"the chat template of the base refuses this conversation ({one_line(error)}); expected turns of user and "
            "assistant, one after the other"
        ) from error


def _messages(text: str | Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A text as one user turn; messages as they are, checked."""
    if isinstance(text, str):
        return [{"role": "user", "content": text}]
    messages = [dict(message) for message in text]
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise PromptError(f"message {str(message)[:80]}; expected role and content, both text")
    if not any(message["role"] == "user" for message in messages):
        raise PromptError(f"{len(messages)} messages, none of the user; expected at least one of role 'user'")
    return messages


def _before_user(turns: list[dict[str, str]], prompt: str) -> list[dict[str, str]]:
    """The turns with a prompt put before the first of the user's."""
    first = next(i for i, turn in enumerate(turns) if turn["role"] == "user")
    written = {**turns[first], "content": f"{prompt}\n\n{turns[first]['content']}"}
    return [*turns[:first], written, *turns[first + 1 :]]


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def encode_chat(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered chats; the template has written the special tokens already.

    Raises:
        PromptError: Text that is not Unicode.
    """
    if not rendered:
        return []
    for text in rendered:
        _check_unicode(text)
    ids: list[list[int]] = tokenizer(list(rendered), add_special_tokens=not tokenizer.chat_template, verbose=False)[
        "input_ids"
    ]
    return ids


def _check_unicode(text: str) -> None:
    """Refuse what no tokenizer takes: half of a surrogate pair, as bytes that are no UTF-8 leave it behind."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        odd = text[max(0, error.start - 20) : error.start + 20]
        raise PromptError(f"text around {odd!r} is not Unicode (character {error.start}); expected UTF-8") from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int) -> list[int]:
    """Token ids of a prompt for the encoder.

    Raises:
        PromptError: An empty prompt, one longer than ``max_tokens``, or one that is not Unicode.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"prompt {prompt!r} is empty; expected an instruction, a system prompt or a document")
    _check_unicode(prompt)
    ids: list[int] = tokenizer(prompt.strip(), add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise PromptError(f"prompt {prompt!r} has no token; expected an instruction, a system prompt or a document")
    if len(ids) > max_tokens:
        raise PromptError(
            f"prompt of {len(ids)} tokens ({prompt.strip()[:40]!r}…); expected at most {max_tokens}, what this "
            "hypernetwork's encoder takes; shorten the prompt"
        )
    return ids


def gibberish(prompt: str, seed: int, max_tokens: int) -> str:
    """A text of random consonants in the place of a prompt, which asks for nothing, as a control.

    It has as many words as the prompt, or as ``max_tokens`` hold where every letter is a token.
    """
    rng = random.Random(f"gibberish/{seed}")
    words = max(1, min(len(prompt.split()), max_tokens // 8))  # seven letters and a space
    return " ".join("".join(rng.choices(_CONSONANTS, k=rng.randint(2, 7))) for _ in range(words))


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids ``[rows, longest]`` and the mask of real tokens, padded on the left as generation wants it."""
    longest = max((len(row) for row in rows), default=0)
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
    """States ``[1, tokens, hidden]`` of one prompt ``[1, tokens]`` in the frozen base; of all layers ``[1, tokens, layers, hidden]``.

    Args:
        model: The base.
        ids: Token ids of one prompt, unpadded.
        source: ``embeddings``, the token embeddings; ``hidden``, what leaves layer ``layer`` (of the last
            one too, so before the base's final norm); or ``layers``, what enters each layer.
        layer: Counted from 1.

    Raises:
        ModelError: A layer that the base does not have.
    """
    if source == "embeddings":
        embedded: Tensor = model.get_input_embeddings()(ids)
        return embedded
    layers = decoder_layers(model)
    every = source == "layers"
    if every:
        layer = len(layers)
    if not 1 <= layer <= len(layers):
        raise ModelError(f"source_layer={layer}: the base has {len(layers)} layers; expected 1 … {len(layers)}")
    caught: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        if module is layers[-1]:
            raise _Reached

    def catch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    with ExitStack() as stack:
        for one in layers if every else ():
            stack.callback(one.register_forward_pre_hook(note, with_kwargs=True).remove)
        if not every:
            stack.callback(layers[layer - 1].register_forward_hook(catch).remove)
        for module in [module for module in model.modules() if module.training]:  # no dropout meanwhile
            module.training = False
            stack.callback(setattr, module, "training", True)
        with suppress(_Reached):
            model.get_decoder()(input_ids=ids, use_cache=False)
    return torch.stack(caught, dim=2) if every else caught[0]


class PromptStates:
    """The states of prompts in the frozen base, each computed once and kept, the least used dropped first.

    Each prompt is run by itself, so what else is asked for never changes a state.

    Args:
        model: The base; no LoRA may be on while states are computed.
        tokenizer: Its tokenizer.
        config: Source, layer and longest prompt.
        capacity: How many prompts are kept at most.
        capacity_bytes: How much memory their states may take.
        folder: Where states are kept between runs, one file a prompt; None keeps none.
        base: What identifies the base, for the names of those files.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: HyperNetworkConfig,
        capacity: int = 8192,
        capacity_bytes: int = 1 << 31,
        folder: Path | None = None,
        base: Mapping[str, str | int] | None = None,
    ) -> None:
        self.folder = folder
        layer = config.source_layer if config.source == "hidden" else 0
        self._key = json.dumps([dict(base or {}), str(model.dtype), config.source, layer], sort_keys=True)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.capacity, self.capacity_bytes = capacity, capacity_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all states."""
        self._kept.clear()
        self._bytes = 0

    def one(self, prompt: str) -> Tensor:
        """States ``[tokens, hidden]`` of one prompt; of all layers ``[tokens, layers, hidden]``."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        ids = encode_prompt(self.tokenizer, prompt, self.config.max_prompt_tokens)
        states = self._compute(ids) if self.folder is None else self._read(ids, self.folder)
        self._kept[prompt] = states
        self._bytes += states.nbytes
        while len(self._kept) > 1 and (len(self._kept) > self.capacity or self._bytes > self.capacity_bytes):
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return states

    def _compute(self, ids: list[int]) -> Tensor:
        weight: Any = self.model.get_input_embeddings().weight
        given = torch.tensor([ids], device=weight.device)
        return prompt_states(self.model, given, self.config.source, self.config.source_layer)[0]

    def _read(self, ids: list[int], folder: Path) -> Tensor:
        """From the prompt's file; computed and written where there is none, or a damaged one."""
        name = hashlib.sha256(f"{self._key}{ids}".encode()).hexdigest()
        path = folder / name[:2] / f"{name[2:]}.safetensors"
        weight: Any = self.model.get_input_embeddings().weight
        if path.is_file():
            with suppress(SafetensorError, KeyError):
                return load_file(path, device=str(weight.device))["states"]
        states = self._compute(ids)
        with replacing_file(path) as temporary:
            save_file({"states": states.cpu().contiguous()}, temporary)
        return states

    def batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States ``[prompts, longest, hidden]`` (of all layers ``[prompts, longest, layers, hidden]``) and their mask, True where a token is real.

        Raises:
            PromptError: No prompts, an empty one, or one that is too long.
        """
        if not prompts or isinstance(prompts, str):
            raise PromptError(f"prompts={prompts!r}; expected a list of at least one prompt")
        states = [self.one(prompt) for prompt in prompts]
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        lengths = torch.tensor([len(s) for s in states], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

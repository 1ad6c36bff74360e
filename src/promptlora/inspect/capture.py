"""``capture_attention``: run a text through the base and the adapted model and record every step of attention.

It knows models, adapters, tokenizers and ``PromptLoRA``; ``walk`` recomputes and verifies the steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.adapt import Chat, PromptLoRA
from promptlora.errors import AttentionError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.inspect.recorder import recording
from promptlora.inspect.values import AttentionCapture, Walk
from promptlora.inspect.walk import Site, find_site, walk_layer
from promptlora.lora import LoRAWeights
from promptlora.projections import find_blocks
from promptlora.text import encode_chat, render_chat

_MOST_BYTES = 6 << 30


def attention_layers(model: PreTrainedModel) -> list[Site]:
    """Every attention block of a model with its location, in layer order."""
    return sorted((find_site(model, block) for block in find_blocks(model)), key=lambda site: site.layer)


def _sites(model: PreTrainedModel, layers: Sequence[int] | None) -> list[Site]:
    sites = attention_layers(model)
    if layers is None:
        return sites
    known = [site.layer for site in sites]
    odd = [layer for layer in layers if layer not in known]
    if odd:
        run = known == list(range(len(known)))
        listed = f"0 … {known[-1]}" if run else ", ".join(map(str, known))
        raise AttentionError(
            f"layer {odd[0]}: the model has attention in {len(known)} layers; expected one of {listed}"
        )
    return [site for site in sites if site.layer in set(layers)]


def _one_row(ids: Sequence[int] | Tensor) -> list[int]:
    row = [int(i) for i in (ids.flatten().tolist() if isinstance(ids, Tensor) else ids)]
    if not row:
        raise AttentionError("the text has no token; expected at least one")
    return row


class Walker:
    """Runs one model on rows of ids, then recomputes and verifies its attention; blocks are located once for all rows.

    Args:
        model: The base.
        injector: The injector of the model; an adapter that the caller has switched on is off during a walk.
        layers: Layers to keep; by default all.
        heads: Heads to keep; by default all.

    Raises:
        AttentionError: The model does not have one of the layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        injector: HookBasedLoRAInjector,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        self.model, self.injector = model, injector
        self.sites = _sites(model, layers)
        self.heads = None if heads is None else tuple(dict.fromkeys(heads))

    def check_size(self, tokens: int, walks: int) -> None:
        """Refuse, before the model runs, tables that would not fit in memory.

        Raises:
            AttentionError: The tables are too large; the message gives their size.
        """
        configs: list[Any] = [getattr(site.block.module, "config", None) for site in self.sites]
        widest = max((int(getattr(config, "num_attention_heads", 1)) for config in configs), default=0)
        count = len(self.sites) * (widest if self.heads is None else len(self.heads)) * walks
        needed = count * tokens * tokens * (4 * 8 + 1)
        if needed > _MOST_BYTES:
            raise AttentionError(
                f"{tokens} tokens in {len(self.sites)} layers make tables of {needed / 1e9:.1f} GB; expected at most "
                f"{_MOST_BYTES / 1e9:.1f} GB; choose layers and heads, or a shorter text"
            )

    def run(self, ids: Sequence[int] | Tensor, lora: LoRAWeights | None = None) -> Walk:
        """Run one forward pass of one row; recompute and verify its attention.

        Args:
            ids: Token ids of one row.
            lora: The single adapter to switch on; None runs the base.

        Raises:
            AttentionError: The model lacks a head, there is more than one adapter, or a recomputed walk does not match.
        """
        row, model = _one_row(ids), self.model
        if lora is not None and lora.adapters != 1:
            raise AttentionError(f"{lora.adapters} adapters; expected one; use lora.select(i)")
        names = [name for site in self.sites for name in site.modules]
        blocks = [site.block.name for site in self.sites if site.block.layout.kind != "DeltaNet"]
        # Models whose layers share keys (Gemma 3n, 4) may skip tokens whose logits are not requested.
        shares = getattr(model.config.get_text_config(), "num_kv_shared_layers", 0)
        last = not shares and "logits_to_keep" in inspect.signature(model.forward).parameters
        options = {"logits_to_keep": 1} if last else {}
        with recording(model, names, blocks) as record, self.injector.apply(lora):
            logits = model(input_ids=torch.tensor([row], device=model.device), use_cache=False, **options).logits
        with torch.no_grad():
            walked = tuple(
                walk_layer(model, site, record, lora, self.heads, model.dtype, len(row)) for site in self.sites
            )
            return Walk(layers=walked, next_token=logits[0, -1].cpu().double().log_softmax(dim=-1))


def capture_ids(
    model: PreTrainedModel,
    ids: Sequence[int] | Tensor,
    injector: HookBasedLoRAInjector,
    lora: LoRAWeights | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    tokens: Sequence[str] | None = None,
) -> AttentionCapture:
    """Run :func:`capture_attention` for a model and token ids, without a tokenizer.

    Args:
        model: The base.
        ids: Token ids of one row.
        injector: See :class:`Walker`.
        lora: One adapter; None captures only the base.
        layers: See :class:`Walker`.
        heads: See :class:`Walker`.
        tokens: The text of each token; by default its id.

    Raises:
        AttentionError: See :class:`Walker`; also tables that would take gigabytes.
    """
    row = _one_row(ids)
    walker = Walker(model, injector, layers, heads)
    walker.check_size(len(row), 1 if lora is None else 2)
    base = walker.run(row)
    adapted = None if lora is None else walker.run(row, lora)
    texts = tuple(tokens) if tokens is not None else tuple(str(i) for i in row)
    return AttentionCapture(ids=tuple(row), tokens=texts, base=base, adapted=adapted)


def encode_text(lm: PromptLoRA, text: Chat, *, raw: bool = False) -> list[int]:
    """Token ids of a text, in the chat template or unchanged.

    Raises:
        AttentionError: The text has no tokens, or a conversation is combined with ``raw``.
    """
    if raw and not isinstance(text, str):
        raise AttentionError("raw was asked for with a conversation; expected a text")
    if raw:
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            raise AttentionError(f"the text holds half a surrogate pair ({error.reason}); expected UTF-8") from error
        ids = lm.tokenizer([text], add_special_tokens=True, verbose=False)["input_ids"][0]
    else:
        (ids,) = encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, text)])
    return _one_row(ids)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token; an incomplete character is shown as the tokenizer writes it."""
    texts = []
    for i in ids:
        text = tokenizer.decode([i])
        texts.append(str(tokenizer.convert_ids_to_tokens(i)) if not text or "\ufffd" in text else str(text))
    return texts


def capture_attention(
    lm: PromptLoRA,
    text: Chat,
    lora: LoRAWeights | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    raw: bool = False,
) -> AttentionCapture:
    """Capture every step of attention for a text, in the base and in the adapted model.

    The walk is recomputed in float64 from the model's own tensors, whatever the attention implementation, and verified:
    rows of weights must sum to 1, and the weighted sum, the input of o and the output of o must equal the model's own
    values up to the rounding of its dtype.

    Args:
        lm: Base, tokenizer and injector.
        text: The user's text (or a conversation), rendered with the chat template.
        lora: One adapter; None captures only the base.
        layers: Layers to keep, from 0; by default all.
        heads: Heads to keep, from 0; by default all.
        raw: Use the text unchanged, without the template.

    Raises:
        AttentionError: A layer or head does not exist, there is more than one adapter, the tables would take gigabytes,
            or the model's attention could not be recomputed.
    """
    ids = encode_text(lm, text, raw=raw)
    tokens = token_texts(lm.tokenizer, ids)
    with lm.host.using(None):
        return capture_ids(lm.model, ids, lm.injector, lora, layers=layers, heads=heads, tokens=tokens)


def tokens_alike(tokens: Sequence[str], wanted: str) -> list[int]:
    """The positions of all tokens with the given text, ignoring surrounding white space."""
    return [i for i, token in enumerate(tokens) if wanted in (token, token.strip())]


def find_token(tokens: Sequence[str], wanted: str | int | None = None) -> int:
    """The position of a token, given by its text, by a word that it ends, or by its number; by default the last one.

    If several tokens match, the last one is used, because it attends to the others.

    Args:
        tokens: The text of each token.
        wanted: A text such as ``"cat"``, or a number from 0 (also as a string, if no token has that text).

    Raises:
        AttentionError: There is no such token; the message lists the tokens.
    """
    if wanted is None:
        return len(tokens) - 1
    if isinstance(wanted, str):
        alike = tokens_alike(tokens, wanted)
        if alike:
            return alike[-1]
        start = "".join(tokens).rfind(wanted) if wanted.strip() else -1
        if start >= 0:  # a word of several tokens: use its last token
            done = 0
            for i, token in enumerate(tokens):
                done += len(token)
                if done >= start + len(wanted):
                    return i
    number = int(wanted) if str(wanted).strip().isdecimal() else -1
    if 0 <= number < len(tokens):
        return number
    listed = ", ".join(f"{i} {token!r}" for i, token in enumerate(tokens[:60])) + (", …" if len(tokens) > 60 else "")
    raise AttentionError(f"token {wanted!r} is not in the text; expected one of: {listed}")

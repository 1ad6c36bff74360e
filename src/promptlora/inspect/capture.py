"""``capture_attention``: a text through the base and the adapted model, every step of its attention written down.

It knows models, adapters, tokenizers and ``PromptLoRA``; the recomputation and its proof are in ``walk``.
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
    """Every attention block of a model and where it stands, in layer order."""
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
    """Runs one model on rows of ids, and recomputes and proves its attention; the blocks are found once for all rows.

    Args:
        model: The base.
        injector: The injector of the model; whatever adapter is on outside is off during a walk.
        layers: Layers to keep; all by default.
        heads: Heads to keep; all by default.

    Raises:
        AttentionError: A layer that the model does not have.
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
        """Refuse tables that would not fit in memory, before the model runs.

        Raises:
            AttentionError: It says how large they would be.
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
        """One forward pass of one row, with its attention recomputed and proved.

        Args:
            ids: Token ids of one row.
            lora: The one adapter to switch on; None is the base.

        Raises:
            AttentionError: A head that the model does not have, more than one adapter, or a walk that could not be proved.
        """
        row, model = _one_row(ids), self.model
        if lora is not None and lora.adapters != 1:
            raise AttentionError(f"{lora.adapters} adapters; expected one; use lora.select(i)")
        names = [name for site in self.sites for name in site.modules]
        blocks = [site.block.name for site in self.sites if site.block.layout.kind != "DeltaNet"]
        # Layers that share keys (Gemma 3n, 4) may leave out tokens whose logits nobody asked for.
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
    """:func:`capture_attention` for a model and token ids, without a tokenizer.

    Args:
        model: The base.
        ids: Token ids of one row.
        injector: As for :class:`Walker`.
        lora: One adapter; None captures the base alone.
        layers: As for :class:`Walker`.
        heads: As for :class:`Walker`.
        tokens: The text of each token; its id by default.

    Raises:
        AttentionError: As for :class:`Walker`, or tables that would take gigabytes.
    """
    row = _one_row(ids)
    walker = Walker(model, injector, layers, heads)
    walker.check_size(len(row), 1 if lora is None else 2)
    base = walker.run(row)
    adapted = None if lora is None else walker.run(row, lora)
    texts = tuple(tokens) if tokens is not None else tuple(str(i) for i in row)
    return AttentionCapture(ids=tuple(row), tokens=texts, base=base, adapted=adapted)


def encode_text(lm: PromptLoRA, text: Chat, *, raw: bool = False) -> list[int]:
    """Token ids of a text, in the chat template or as it stands.

    Raises:
        AttentionError: A text without a token, or a conversation that is to be taken raw.
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
    """The text of each token; half a character is shown as the tokenizer writes it."""
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
    """Every step of attention for a text, in the base and in the adapted model.

    The walk is recomputed in float64 from what the model worked with, whatever its attention implementation, and
    proves itself: rows of weights sum to 1, and weighted sum, input of o and output of o are the model's own up to
    the rounding of its dtype.

    Args:
        lm: Base, tokenizer and injector.
        text: What the user says (or a conversation), put in the chat template.
        lora: One adapter; None captures the base alone.
        layers: Layers to keep, from 0; all by default.
        heads: Heads to keep, from 0; all by default.
        raw: Take the text as it stands, without the template.

    Raises:
        AttentionError: A layer or head that is not there, more than one adapter, tables that would take gigabytes, or
            a model whose attention could not be recomputed.
    """
    ids = encode_text(lm, text, raw=raw)
    tokens = token_texts(lm.tokenizer, ids)
    with lm.host.using(None):
        return capture_ids(lm.model, ids, lm.injector, lora, layers=layers, heads=heads, tokens=tokens)


def tokens_alike(tokens: Sequence[str], wanted: str) -> list[int]:
    """The positions of all tokens with a text, white space around it aside."""
    return [i for i, token in enumerate(tokens) if wanted in (token, token.strip())]


def find_token(tokens: Sequence[str], wanted: str | int | None = None) -> int:
    """The position of a token: by its text, by a word it ends, or by its number; the last one by default.

    Of several that fit, the last is taken: it sees the others.

    Args:
        tokens: The text of each token.
        wanted: A text such as ``"cat"``, or a number from 0 (as a text too, if no token reads so).

    Raises:
        AttentionError: No such token; the message lists those there are.
    """
    if wanted is None:
        return len(tokens) - 1
    if isinstance(wanted, str):
        alike = tokens_alike(tokens, wanted)
        if alike:
            return alike[-1]
        start = "".join(tokens).rfind(wanted) if wanted.strip() else -1
        if start >= 0:  # a word of several tokens: the one that ends it
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

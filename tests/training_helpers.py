"""A tiny base with a tokenizer in a folder, toy rows whose prompt decides the answer, and small configurations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from promptlora.settings import from_dict
from promptlora.train.config import TrainConfig
from tests.helpers import tiny_llama

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<system>", "<user>", "<assistant>"]
WORDS = ["say", "never", "write", "a", "b", "c", *(f"w{i}" for i in range(84))]  # 97 in all
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<assistant>"


def word_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a word, a chat template of one token a role."""
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def save_base(folder: Path) -> Path:
    """A tiny Llama in float32 and its tokenizer, as a folder that ``load_base`` takes."""
    tiny_llama(torch.float32).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_rows(tasks: int = 2, inputs: int = 12) -> list[dict[str, Any]]:
    """The same inputs under each task's prompt, ``say <letter>``; the answer is the letter."""
    return [
        {"task": f"t{t}", "prompt": f"say {letter}", "input": _input(i), "outputs": [letter]}
        for t, letter in enumerate(WORDS[3 : 3 + tasks])
        for i in range(inputs)
    ]


def _input(i: int) -> str:
    return " ".join(f"w{(7 * i + 3 * j) % 84}" for j in range(1 + i % 4))


def toy_config(folder: Path, base: Path | str, rows: Path, **options: Any) -> TrainConfig:
    """Eight steps of two prompts by three rows on a tiny hypernetwork; options replace, nested tables included."""
    values: dict[str, Any] = {
        "output": str(folder),
        "base": str(base),
        "steps": 8,
        "prompts_per_batch": 2,
        "rows_per_prompt": 3,
        "checkpoint_every": 3,
        "margin_every": 2,
        "data": {"train": str(rows)},
        "hypernetwork": {
            "source_layer": 1, "max_prompt_tokens": 16, "context_size": 32, "encoder_layers": 1,
            "encoder_heads": 2, "pooling_queries": 2, "trunk_layers": 1, "rank": 4, "alpha": 8.0,
        },
        "optim": {"lr": 5e-3, "static_lr": 5e-3, "warmup": 0.1},
    }  # fmt: skip
    for key, value in options.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return from_dict(TrainConfig, values)


def metric_lines(folder: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]

"""Small models and LoRAs that tests share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from promptlora.lora import LoRAWeights
from promptlora.projections import Projection


def tiny_llama(dtype: torch.dtype = torch.float64, seed: int = 0, **options: object) -> PreTrainedModel:
    """Two layers, grouped-query attention, random weights that matter (not 0.02), evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **options,
        }
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def tiny_gpt2(dtype: torch.dtype = torch.float64, seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """Two layers of GPT-2: fused Conv1D, random weights, evaluation mode."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=layers, n_head=4, n_positions=128, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(dtype).eval().requires_grad_(False)


def save_embedder(folder: Path, seed: int = 0) -> Path:
    """A tiny BERT of width 24 in float32, one token per letter between <c> and <s>, as a folder that ``TextEmbedder`` loads."""
    torch.manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<c>", "<s>", "<u>", *letters])}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing("<c> $A <s>", special_tokens=[("<c>", 1), ("<s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        cls_token="<c>",
        sep_token="<s>",
        unk_token="<u>",
        model_max_length=20,
    ).save_pretrained(folder)
    return folder


def random_lora(
    projections: Sequence[Projection],
    adapters: int = 1,
    rank: int = 3,
    *,
    scaling: float = 0.5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    requires_grad: bool = False,
) -> LoRAWeights:
    """Random A and B, neither of them zero, for each projection."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for p in projections:
        A = torch.randn(adapters, p.in_features, rank, generator=generator, dtype=torch.float64) / p.in_features**0.5
        B = torch.randn(adapters, rank, p.out_features, generator=generator, dtype=torch.float64)
        matrices[p.name] = (
            A.to(dtype).requires_grad_(requires_grad),
            B.to(dtype).requires_grad_(requires_grad),
        )
    return LoRAWeights(matrices, scaling, projections=projections)


def random_shared_lora(
    projections: Sequence[Projection],
    adapters: int = 1,
    rank: int = 3,
    *,
    diagonal: bool = False,
    scaling: float = 0.5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    requires_grad: bool = False,
) -> LoRAWeights:
    """Random factors for each projection, and a random core, or its diagonal, for each adapter."""
    generator = torch.Generator().manual_seed(seed)
    factors, cores = {}, {}
    for p in projections:
        A = torch.randn(p.in_features, rank, generator=generator, dtype=torch.float64) / p.in_features**0.5
        B = torch.randn(rank, p.out_features, generator=generator, dtype=torch.float64)
        shape = (adapters, rank) if diagonal else (adapters, rank, rank)
        C = torch.randn(shape, generator=generator, dtype=torch.float64)
        A, B, C = (matrix.to(dtype).requires_grad_(requires_grad) for matrix in (A, B, C))
        factors[p.name], cores[p.name] = (A, B), C
    return LoRAWeights.shared(factors, cores, scaling, projections=projections)


FORMS = {"free": random_lora, "core": random_shared_lora, "diagonal": partial(random_shared_lora, diagonal=True)}


def token_ids(batch: int, seq: int, vocab: int = 97, seed: int = 0) -> torch.Tensor:
    """Random ids ``[batch, seq]`` above the special ones."""
    return torch.randint(3, vocab, (batch, seq), generator=torch.Generator().manual_seed(seed))

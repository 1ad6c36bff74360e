"""Tiny configurations of the model families that the table of layouts covers: one case a family and layout.

The tests verify each, and the generated page docs/architectures.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family in one layout: its model_type, how it differs from ``_COMMON``, and what it is in words.

    Attributes:
        model_type: As transformers names it.
        options: Values of the configuration, over ``_COMMON``; None leaves a common value out.
        variant: Which of several layouts of the family.
        absent: Roles that some of its layers lack.
        shared: Roles that attention reads in a second place as well: role to the other role.
        models: Well-known models of the family, for people.
        dtype: float64 but where transformers cannot.
        float32_inside: Whether transformers computes a part in float32 that rounds otherwise in a batch of another
            size (the DeltaNet's decay and rule, some softmaxes).
    """

    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    absent: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    models: str = ""
    dtype: torch.dtype = torch.float64
    float32_inside: bool = False

    @property
    def tolerance(self) -> float:
        """How far the logits of two exact ways may be apart."""
        return 1e-9 if self.dtype == torch.float64 else 1e-4

    @property
    def id(self) -> str:
        return f"{self.model_type}-{self.variant}".rstrip("-").replace(" ", "-")


_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 8}
_SAME = {"num_key_value_heads": None}  # as many key heads as query heads
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "num_key_value_heads": None, **dict.fromkeys(
    ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "intermediate_size")
)}  # fmt: skip
_DELTA = {
    "head_dim": 8,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
_DEEPSEEK = {**_MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}  # fmt: skip
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None}
_ROUTED = {
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}

CASES: tuple[Case, ...] = (
    # Gated DeltaNet beside gated attention
    Case(
        model_type="qwen3_next",
        options={**_DELTA, **_MOE, "shared_expert_intermediate_size": 24},
        models="Qwen3-Next, Qwen3-Coder-Next",
        float32_inside=True,
    ),
    Case(model_type="qwen3_5_text", options=_DELTA, models="Qwen3.5", float32_inside=True),
    Case(
        model_type="qwen3_5_moe_text",
        options={**_DELTA, **_MOE, "shared_expert_intermediate_size": 24},
        models="Qwen3.5 MoE",
        float32_inside=True,
    ),
    # fused
    Case(model_type="gpt2", options=_GPT, models="GPT-2"),
    Case(model_type="gpt_bigcode", variant="multi-query", options={**_GPT, "n_inner": 48}, models="StarCoder, SantaCoder"),
    Case(model_type="gpt_bigcode", variant="multi-head", options={**_GPT, "n_inner": 48, "multi_query": False}),
    Case(model_type="gpt_neox", options=_SAME, models="GPT-NeoX, Pythia, Dolly"),
    Case(model_type="gpt_neox_japanese", options={**_SAME, "intermediate_multiple_size": 2}),
    Case(
        model_type="bloom",
        options={"hidden_size": 32, "n_layer": 2, "n_head": 4, "num_hidden_layers": None, "num_attention_heads": None, "num_key_value_heads": None},
        models="BLOOM",
    ),
    Case(
        model_type="falcon", variant="new decoder",
        options={"num_key_value_heads": None, "num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 48},
        models="Falcon 40B, 180B",
    ),
    Case(
        model_type="falcon", variant="multi-query",
        options={"num_key_value_heads": None, "multi_query": True, "new_decoder_architecture": False, "ffn_hidden_size": 48},
        models="Falcon 7B",
    ),
    Case(
        model_type="falcon", variant="multi-head",
        options={
            "num_key_value_heads": None, "multi_query": False, "new_decoder_architecture": False, "ffn_hidden_size": 48,
            "alibi": True, "bias": True,
        },
        models="Falcon-RW",
    ),
    Case(
        model_type="mpt",
        options={
            "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "expansion_ratio": 2,
            **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")),
        },
        models="MPT",
    ),
    Case(
        model_type="dbrx",
        options={
            "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
            **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")),
        },
        models="DBRX",
    ),
    Case(model_type="phi3", models="Phi-3, Phi-3.5, Phi-4"),
    Case(model_type="codegen", options={**_GPT, "n_ctx": 64, "rotary_dim": 4}, models="CodeGen"),
    Case(model_type="persimmon", options=_SAME, models="Persimmon, Fuyu's language model"),
    # latent
    Case(model_type="deepseek_v2", options={**_DEEPSEEK, "topk_method": "greedy"}, models="DeepSeek-V2, Coder-V2"),
    Case(
        model_type="deepseek_v2", variant="plain q",
        options={**_DEEPSEEK, "topk_method": "greedy", "q_lora_rank": None}, models="DeepSeek-V2-Lite",
    ),
    Case(model_type="deepseek_v3", options={**_DEEPSEEK, "rope_interleave": False}, models="DeepSeek-V3, R1"),
    Case(model_type="glm4_moe_lite", options={**_DEEPSEEK, "rope_interleave": False}, models="GLM-4.7-Flash"),
    Case(model_type="minicpm3", options=_MLA, models="MiniCPM3"),
    # separate, output of another name
    Case(model_type="opt", options=_OPT, models="OPT"),
    Case(model_type="biogpt", options=_SAME, models="BioGPT"),
    Case(
        model_type="xglm",
        options={
            "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48,
            **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")),
        },
        dtype=torch.float32,  # its mask does not take float64
        models="XGLM",
    ),
    Case(model_type="phi", models="Phi-1, Phi-1.5, Phi-2"),
    Case(model_type="gptj", options={**_GPT, "rotary_dim": 4}, models="GPT-J"),
    Case(
        model_type="gpt_neo",
        options={
            "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "num_hidden_layers": None,
            "num_attention_heads": None, "num_key_value_heads": None,
        },
        models="GPT-Neo, TinyStories",
    ),
    Case(model_type="lfm2", options={"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, models="LFM2"),
    Case(
        model_type="modernbert-decoder",
        options={"num_key_value_heads": None, "layer_types": ["sliding_attention", "full_attention"], "local_attention": 16},
        models="Ettin decoders",
    ),
    # layers without k or v
    Case(
        model_type="gemma3n_text",
        options={
            **_HEAD, "num_hidden_layers": 5, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
            "vocab_size_per_layer_input": VOCABULARY, "altup_num_inputs": 2, "altup_active_idx": 0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
        absent=("k", "v"),
        models="Gemma 3n",
    ),
    Case(
        model_type="gemma4_text",
        options={
            **_HEAD, "num_hidden_layers": 4, "global_head_dim": 12, "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
        absent=("k", "v"),
        models="Gemma 4",
    ),
    Case(
        model_type="gemma4_text", variant="v from k",
        options={
            **_HEAD, "num_hidden_layers": 2, "global_head_dim": 12, "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        absent=("v",),
        shared={"k": "v"},
        models="Gemma 4",
    ),
    Case(
        model_type="gemma4_unified_text",
        options={
            **_HEAD, "num_hidden_layers": 2, "global_head_dim": 12, "attention_k_eq_v": True,
            "num_global_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention"],
        },
        absent=("v",),
        shared={"k": "v"},
        models="Gemma 4",
    ),
    # q_proj, k_proj, v_proj, o_proj
    Case(model_type="llama", options=_HEAD, models="Llama 1–3, SmolLM2, Yi, and most others"),
    Case(model_type="mistral", options=_HEAD, models="Mistral"),
    Case(model_type="mixtral", options={**_HEAD, "num_local_experts": 4}, models="Mixtral"),
    Case(model_type="ministral3", options=_HEAD, models="Ministral 3"),
    Case(model_type="qwen2", models="Qwen1.5, Qwen2, Qwen2.5"),
    Case(model_type="qwen2_moe", options={**_MOE, "shared_expert_intermediate_size": 24}, models="Qwen1.5-MoE, Qwen2-57B-A14B"),
    Case(model_type="qwen3", options=_HEAD, models="Qwen3"),
    Case(model_type="qwen3_moe", options={**_HEAD, **_MOE}, models="Qwen3 MoE, Qwen3-Coder"),
    Case(model_type="gemma", options=_HEAD, models="Gemma"),
    Case(model_type="gemma2", options=_HEAD, models="Gemma 2"),
    Case(model_type="gemma3_text", options={**_HEAD, "layer_types": ["sliding_attention", "full_attention"]}, models="Gemma 3"),
    Case(
        model_type="gemma3", variant="with vision tower",
        options={
            "text_config": {**_COMMON, **_HEAD},
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            **dict.fromkeys(_COMMON),
        },
        models="Gemma 3",
    ),
    Case(model_type="gpt_oss", options={**_HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}, models="gpt-oss"),
    Case(model_type="olmo", models="OLMo"),
    Case(model_type="olmo2", models="OLMo 2"),
    Case(model_type="olmo3", models="OLMo 3"),
    Case(model_type="olmoe", options={"num_experts": 4, "num_experts_per_tok": 2}, models="OLMoE"),
    Case(model_type="granite", models="Granite 3"),
    Case(model_type="granitemoe", options={"num_local_experts": 4}, models="Granite 3 MoE"),
    Case(model_type="granitemoeshared", options={"num_local_experts": 4, "shared_intermediate_size": 24}),
    Case(
        model_type="granitemoehybrid",
        options={
            **_MAMBA, "num_local_experts": 4, "shared_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
        },
        models="Granite 4",
    ),
    Case(model_type="smollm3", models="SmolLM3"),
    Case(model_type="starcoder2", models="StarCoder2"),
    Case(model_type="stablelm", models="StableLM"),
    Case(model_type="phimoe", options={"num_local_experts": 4}, models="Phi-3.5-MoE"),
    Case(model_type="cohere", models="Command R"),
    Case(model_type="cohere2", models="Command A, R7B"),
    Case(model_type="glm", options=_HEAD, models="GLM-4 (2024)"),
    Case(model_type="glm4", options=_HEAD, models="GLM-4 (2025)"),
    Case(
        model_type="glm4_moe",
        options={
            **_HEAD, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
            "n_group": 1, "topk_group": 1,
        },
        models="GLM-4.5, 4.6",
        float32_inside=True,
    ),
    Case(model_type="apertus", models="Apertus"),
    Case(model_type="arcee", models="AFM"),
    Case(model_type="ernie4_5", options=_HEAD, models="ERNIE 4.5"),
    Case(model_type="exaone4", models="EXAONE 4"),
    Case(model_type="helium", options=_HEAD, models="Helium"),
    Case(
        model_type="falcon_h1",
        options={**_MAMBA, "mamba_d_ssm": 64, **_HEAD},
        models="Falcon-H1",
    ),
    Case(
        model_type="jamba",
        options={
            "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False, "mamba_dt_rank": 4,
        },
        models="Jamba",
    ),
    Case(model_type="nemotron", models="Nemotron, Minitron"),
    Case(model_type="seed_oss", options=_HEAD, models="Seed-OSS"),
    Case(model_type="minimax_m2", options={**_HEAD, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4}, models="MiniMax-M2"),
    Case(model_type="aria_text", options={**_HEAD, "moe_num_experts": 4}, models="Aria's language model"),
    Case(model_type="bamba", options={**_MAMBA, "attn_layer_indices": [1]}, models="Bamba"),
    Case(model_type="bitnet", models="BitNet b1.58"),
    Case(model_type="cohere2_moe", options=_ROUTED),
    Case(model_type="cwm", options=_HEAD, models="Code World Model"),
    Case(model_type="dots1", options={**_ROUTED, **_HEAD, "n_shared_experts": 1}, models="dots.llm1", float32_inside=True),
    Case(
        model_type="ernie4_5_moe",
        options={"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1},
        models="ERNIE 4.5 MoE",
    ),
    Case(model_type="exaone_moe", options={**_ROUTED, "num_shared_experts": 1}, models="K-EXAONE", float32_inside=True),
    Case(model_type="flex_olmo", options={"num_experts": 4, "num_experts_per_tok": 2}, models="FlexOlmo"),
    Case(model_type="granite_swa", models="Granite with sliding windows", float32_inside=True),
    Case(model_type="hunyuan_v1_dense", options=_HEAD, models="Hunyuan"),
    Case(model_type="hunyuan_v1_moe", options={**_HEAD, "num_experts": 4, "moe_topk": 2}, models="Hunyuan-A13B"),
    Case(model_type="hy_v3", options={**_HEAD, **_ROUTED}),
    Case(model_type="hyperclovax", models="HyperCLOVA X"),
    Case(model_type="jais2", models="Jais 2"),
    Case(
        model_type="lfm2_moe",
        options={**_MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        models="LFM2 MoE",
    ),
    Case(model_type="llama4_text", options={**_HEAD, "num_local_experts": 4, "intermediate_size_mlp": 48}, models="Llama 4"),
    Case(model_type="mellum", options={**_HEAD, **_MOE}, models="Mellum"),
    Case(model_type="ministral", options=_HEAD, models="Ministral"),
    Case(model_type="nanochat", models="nanochat"),
    Case(
        model_type="nemotron_h",
        options={
            **_HEAD, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16,
            "layers_block_type": ["mamba", "attention"],
        },
        models="Nemotron-H",
    ),
    Case(model_type="solar_open", options={**_ROUTED, **_HEAD}, models="Solar Open", float32_inside=True),
    Case(model_type="vaultgemma", options=_HEAD, models="VaultGemma"),
    Case(model_type="youtu", options={**_MLA, "rope_interleave": False}, models="Youtu-LLM"),
)  # fmt: skip


def config_of(case: Case) -> Any:
    """The configuration of a case; float64 needs eager experts (their grouped matmul rejects it)."""
    values = {k: v for k, v in {**_COMMON, **case.options}.items() if v is not None or k == "q_lora_rank"}
    return AutoConfig.for_model(case.model_type, **values)


def build(case: Case, *, attention: str = "eager", seed: int = 0) -> PreTrainedModel:
    """A random model of a case, in evaluation mode, with weights that matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config_of(case), attn_implementation=attention, experts_implementation="eager", dtype=case.dtype
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():  # initialisers leave some at zero
        if parameter.ndim >= 2 and "conv" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(case.dtype) * 0.2
    frozen: PreTrainedModel = model.to(dtype=case.dtype).eval().requires_grad_(False)
    return frozen


def build_meta(case: Case) -> nn.Module:
    """The same on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(case))  # type: ignore[no-any-return]

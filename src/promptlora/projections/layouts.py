"""How each model family lays out q, k, v and o in its attention modules: one table with one entry per family.

A ``Layout`` belongs to one attention class and says, for each module inside it, which parts its output
holds and in which order. A class that is not in the table is refused. Its layout is never guessed, because shapes are
ambiguous: a gated q_proj looks like a wide one, and q | k | v looks like q | v | k. This file knows nothing of LoRA. It
knows only those attributes of a model that give its widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Sizes = Callable[[Any], tuple[int, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One module of an attention block, and what its output holds.

    Attributes:
        module: Name of the module in the block. If several names are given, the first that exists is used.
        parts: The roles in its output, in order: ``"q"``, ``"k"``, ``"v"``, ``"o"`` or any other name (``"gate"``,
            ``"z"``). Parts with other names get an adapter only if their role is requested.
        sizes: A function of the block that returns how often ``parts`` repeat in the output, and the width of each part
            in one repeat; None when the whole output is a single part.
        per: What one repeat corresponds to, such as ``"head"``; shown to users only.
        optional: Whether a layer may lack this module.
    """

    module: str | tuple[str, ...]
    parts: tuple[str, ...]
    sizes: Sizes | None = None
    per: str = ""
    optional: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the module may have, in order of preference."""
        return (self.module,) if isinstance(self.module, str) else self.module

    def __str__(self) -> str:
        text = " or ".join(self.names) + " = " + " | ".join(self.parts)
        return text + (f" per {self.per}" if self.per else "") + (", may be absent" if self.optional else "")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where one attention class keeps its projections.

    Attributes:
        attention: Name of the attention class.
        sources: Its modules; see :class:`Source`.
        kind: Kind of attention: ``"attention"``, ``"DeltaNet"``, ``"MLA"``; shown to users only.
    """

    attention: str
    sources: tuple[Source, ...]
    kind: str = "attention"

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that this layout can give, in order."""
        return tuple(part for source in self.sources for part in source.parts)

    def __str__(self) -> str:
        return "; ".join(str(source) for source in self.sources)


def separate(attention: str, output: str = "o_proj", *, optional: tuple[str, ...] = ()) -> Layout:
    """The layout of a class with separate q_proj, k_proj, v_proj and output projection modules.

    Args:
        attention: Name of the attention class.
        output: Name of its output projection.
        optional: Which of ``"k"`` and ``"v"`` a layer may lack.
    """
    inputs = tuple(Source(module=f"{r}_proj", parts=(r,), optional=r in optional) for r in ("q", "k", "v"))
    return Layout(attention=attention, sources=(*inputs, Source(module=output, parts=("o",))))


# --- widths, read off a block ------------------------------------------------------------------------------


def _thirds(block: Any) -> tuple[int, tuple[int, ...]]:
    """Contiguous thirds of equal width."""
    width = getattr(block, "embed_dim", None) or block.hidden_size
    return 1, (width, width, width)


def _per_head(block: Any) -> tuple[int, tuple[int, ...]]:
    """[heads, 3, head_dim]."""
    heads = getattr(block, "num_heads", None) or getattr(block, "num_attention_heads", None)
    width = getattr(block, "head_dim", None) or block.head_size
    return int(heads or block.config.num_attention_heads), (width, width, width)


def _grouped(block: Any) -> tuple[int, tuple[int, ...]]:
    """Contiguous, with fewer key and value heads than query heads."""
    keys = block.num_key_value_heads * block.head_dim
    return 1, (block.config.num_attention_heads * block.head_dim, keys, keys)


def _gpt_bigcode(block: Any) -> tuple[int, tuple[int, ...]]:
    if block.multi_query:
        return 1, (block.embed_dim, block.kv_dim, block.kv_dim)
    return _per_head(block)


def _falcon(block: Any) -> tuple[int, tuple[int, ...]]:
    width = block.head_dim
    if block.new_decoder_architecture:  # [kv heads, heads / kv heads + 2, head_dim]
        return block.num_kv_heads, (block.num_heads // block.num_kv_heads * width, width, width)
    if block.multi_query:
        return 1, (block.num_heads * width, width, width)
    return _per_head(block)


def _codegen(block: Any) -> tuple[int, tuple[int, ...]]:
    """Four blocks, each q | v | k; the original model was trained with four tensor-parallel shards."""
    width = block.embed_dim // 4
    return 4, (width, width, width)


def _mla(block: Any) -> tuple[int, tuple[int, ...]]:
    return block.num_heads, (block.qk_nope_head_dim, block.v_head_dim)


def _gated(block: Any) -> tuple[int, tuple[int, ...]]:
    return block.config.num_attention_heads, (block.head_dim, block.head_dim)


def _delta_qkvz(block: Any) -> tuple[int, tuple[int, ...]]:
    values = block.num_v_heads // block.num_k_heads * block.head_v_dim
    return block.num_k_heads, (block.head_k_dim, block.head_k_dim, values, values)


def _delta_ba(block: Any) -> tuple[int, tuple[int, ...]]:
    each = block.num_v_heads // block.num_k_heads
    return block.num_k_heads, (each, each)


def _delta_qkv(block: Any) -> tuple[int, tuple[int, ...]]:
    return 1, (block.key_dim, block.key_dim, block.value_dim)


# --- families ----------------------------------------------------------------------------------------------

_QKV = ("q", "k", "v")


def _fused(
    attention: str, module: str, sizes: Sizes, output: str, *, parts: tuple[str, ...] = _QKV, per: str = ""
) -> Layout:
    return Layout(
        attention=attention,
        sources=(
            Source(module=module, parts=parts, sizes=sizes, per=per),
            Source(module=output, parts=("o",)),
        ),
    )


def _gated_attention(attention: str) -> Layout:
    return Layout(
        attention=attention,
        sources=(
            Source(module="q_proj", parts=("q", "gate"), sizes=_gated, per="head"),
            Source(module="k_proj", parts=("k",)),
            Source(module="v_proj", parts=("v",)),
            Source(module="o_proj", parts=("o",)),
        ),
    )


def _split_delta_net(attention: str) -> Layout:
    return Layout(
        attention=attention,
        kind="DeltaNet",
        sources=(
            Source(module="in_proj_qkv", parts=_QKV, sizes=_delta_qkv),
            Source(module="out_proj", parts=("o",)),
            Source(module="in_proj_z", parts=("z",)),
            Source(module="in_proj_b", parts=("b",)),
            Source(module="in_proj_a", parts=("a",)),
        ),
    )


def _latent(attention: str) -> Layout:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): k without its rotary part, and v, per head."""
    return Layout(
        attention=attention,
        kind="MLA",
        sources=(
            Source(module=("q_b_proj", "q_proj"), parts=("q",)),
            Source(module="kv_b_proj", parts=("k", "v"), sizes=_mla, per="head"),
            Source(module="o_proj", parts=("o",)),
            Source(module="q_a_proj", parts=("q_a",), optional=True),
            Source(module="kv_a_proj_with_mqa", parts=("kv_a",)),
        ),
    )


LAYOUTS: tuple[Layout, ...] = (
    # q_proj, k_proj, v_proj, o_proj
    separate("ApertusAttention"),
    separate("ArceeAttention"),
    separate("AriaTextAttention"),
    separate("BambaAttention"),
    separate("BitNetAttention"),
    separate("Cohere2Attention"),
    separate("Cohere2MoeAttention"),
    separate("CohereAttention"),
    separate("CwmAttention"),
    separate("Dots1Attention"),
    separate("Ernie4_5_MoeAttention"),
    separate("Ernie4_5Attention"),
    separate("Exaone4Attention"),
    separate("ExaoneMoeAttention"),
    separate("FalconH1Attention"),
    separate("FlexOlmoAttention"),
    separate("Gemma2Attention"),
    separate("Gemma3Attention"),
    separate("GemmaAttention"),
    separate("Glm4Attention"),
    separate("Glm4MoeAttention"),
    separate("GlmAttention"),
    separate("GptOssAttention"),
    separate("GraniteAttention"),
    separate("GraniteMoeAttention"),
    separate("GraniteMoeHybridAttention"),
    separate("GraniteMoeSharedAttention"),
    separate("GraniteSWAAttention"),
    separate("HeliumAttention"),
    separate("HunYuanDenseV1Attention"),
    separate("HunYuanMoEV1Attention"),
    separate("HyperCLOVAXAttention"),
    separate("HYV3Attention"),
    separate("Jais2Attention"),
    separate("JambaAttention"),
    separate("Llama4TextAttention"),
    separate("LlamaAttention"),
    separate("MellumAttention"),
    separate("MiniMaxM2Attention"),
    separate("Ministral3Attention"),
    separate("MinistralAttention"),
    separate("MistralAttention"),
    separate("MixtralAttention"),
    separate("NanoChatAttention"),
    separate("NemotronAttention"),
    separate("NemotronHAttention"),
    separate("Olmo2Attention"),
    separate("Olmo3Attention"),
    separate("OlmoAttention"),
    separate("OlmoeAttention"),
    separate("PhimoeAttention"),
    separate("Qwen2Attention"),
    separate("Qwen2MoeAttention"),
    separate("Qwen3Attention"),
    separate("Qwen3MoeAttention"),
    separate("SeedOssAttention"),
    separate("SmolLM3Attention"),
    separate("SolarOpenAttention"),
    separate("StableLmAttention"),
    separate("Starcoder2Attention"),
    separate("VaultGemmaAttention"),
    # the same with an output projection of another name
    separate("BioGptAttention", "out_proj"),
    separate("GPTJAttention", "out_proj"),
    separate("GPTNeoSelfAttention", "out_proj"),
    separate("Lfm2Attention", "out_proj"),
    separate("Lfm2MoeAttention", "out_proj"),
    separate("OPTAttention", "out_proj"),
    separate("XGLMAttention", "out_proj"),
    separate("PhiAttention", "dense"),
    separate("ModernBertDecoderAttention", "Wo"),
    # layers that reuse the k and v of an earlier layer lack these modules; Gemma 4 may read v from k_proj
    separate("Gemma3nTextAttention", optional=("k", "v")),
    separate("Gemma4TextAttention", optional=("k", "v")),
    separate("Gemma4UnifiedTextAttention", optional=("k", "v")),
    # fused, contiguous
    _fused("GPT2Attention", "c_attn", _thirds, "c_proj"),
    _fused("MptAttention", "Wqkv", _thirds, "out_proj"),
    _fused("DbrxAttention", "Wqkv", _grouped, "out_proj"),
    _fused("Phi3Attention", "qkv_proj", _grouped, "o_proj"),
    # fused, interleaved
    _fused("GPTBigCodeAttention", "c_attn", _gpt_bigcode, "c_proj", per="head (multi-head) or once (multi-query)"),
    _fused("GPTNeoXAttention", "query_key_value", _per_head, "dense", per="head"),
    _fused("GPTNeoXJapaneseAttention", "query_key_value", _per_head, "dense", per="head"),
    _fused("BloomAttention", "query_key_value", _per_head, "dense", per="head"),
    _fused("PersimmonAttention", "query_key_value", _per_head, "dense", per="head"),
    _fused(
        "FalconAttention", "query_key_value", _falcon, "dense",
        per="key head (new decoder), head (multi-head) or once (multi-query)",
    ),
    _fused("CodeGenAttention", "qkv_proj", _codegen, "out_proj", parts=("q", "v", "k"), per="quarter"),
    # latent
    _latent("DeepseekV2Attention"),
    _latent("DeepseekV3Attention"),
    _latent("Glm4MoeLiteAttention"),
    _latent("MiniCPM3Attention"),
    _latent("YoutuAttention"),
    # Gated DeltaNet (Yang et al. 2024) mixed with gated attention; q, k and v are taken before the convolution
    Layout(
        attention="Qwen3NextGatedDeltaNet",
        kind="DeltaNet",
        sources=(
            Source(module="in_proj_qkvz", parts=("q", "k", "v", "z"), sizes=_delta_qkvz, per="key head"),
            Source(module="in_proj_ba", parts=("b", "a"), sizes=_delta_ba, per="key head"),
            Source(module="out_proj", parts=("o",)),
        ),
    ),
    _split_delta_net("Qwen3_5GatedDeltaNet"),
    _split_delta_net("Qwen3_5MoeGatedDeltaNet"),
    _gated_attention("Qwen3NextAttention"),
    _gated_attention("Qwen3_5Attention"),
    _gated_attention("Qwen3_5MoeAttention"),
)  # fmt: skip

"""Shows the steering: attention captured step by step, the effect of each projection, and the space of adapters."""

from promptlora.inspect.ablation import CHOICES, Ablation, ablate, ablate_ids, only_roles
from promptlora.inspect.capture import (
    Walker,
    attention_layers,
    capture_attention,
    capture_ids,
    encode_text,
    find_token,
    token_texts,
    tokens_alike,
)
from promptlora.inspect.drawing import bars, heat_map, point_map, visible_text
from promptlora.inspect.flow import flow_diagram, flow_figure
from promptlora.inspect.folding import Fold, template_tokens
from promptlora.inspect.life import Side, TokenLife, change_map, most_changed, token_life
from promptlora.inspect.page import ablation_page, space_page, token_page
from promptlora.inspect.space import AdapterSpace, adapter_space, classical_mds
from promptlora.inspect.values import (
    AttentionCapture,
    Layer,
    ProjectionStep,
    Softmax,
    Walk,
    jensen_shannon,
    next_token_kl,
)
from promptlora.lora.geometry import cosines, update_products

__all__ = [
    "CHOICES",
    "Ablation",
    "AdapterSpace",
    "AttentionCapture",
    "Fold",
    "Layer",
    "ProjectionStep",
    "Side",
    "Softmax",
    "TokenLife",
    "Walk",
    "Walker",
    "ablate",
    "ablate_ids",
    "ablation_page",
    "adapter_space",
    "attention_layers",
    "bars",
    "capture_attention",
    "capture_ids",
    "change_map",
    "classical_mds",
    "cosines",
    "encode_text",
    "find_token",
    "flow_diagram",
    "flow_figure",
    "heat_map",
    "jensen_shannon",
    "most_changed",
    "next_token_kl",
    "only_roles",
    "point_map",
    "space_page",
    "template_tokens",
    "token_life",
    "token_page",
    "token_texts",
    "tokens_alike",
    "update_products",
    "visible_text",
]

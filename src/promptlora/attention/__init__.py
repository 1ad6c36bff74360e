"""See the steering: attention captured step by step, what each projection does, and the space of adapters."""

from promptlora.attention.capture import (
    attention_layers,
    capture_attention,
    capture_ids,
    encode_text,
    find_token,
    run_walk,
    token_texts,
)
from promptlora.attention.values import (
    AttentionCapture,
    Layer,
    ProjectionStep,
    Softmax,
    Walk,
    jensen_shannon,
    next_token_kl,
)

__all__ = [
    "AttentionCapture",
    "Layer",
    "ProjectionStep",
    "Softmax",
    "Walk",
    "attention_layers",
    "capture_attention",
    "capture_ids",
    "encode_text",
    "find_token",
    "jensen_shannon",
    "next_token_kl",
    "run_walk",
    "token_texts",
]

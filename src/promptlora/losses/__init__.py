"""Losses: pure functions of tensors, and of LoRA matrices.

The language model's head is applied here, only at the positions that predict an answer token and only to a limited
number of positions at a time. Losses know nothing of models, prompts or batches.
"""

from promptlora.losses.adapters import reconstruction_loss, weight_penalty
from promptlora.losses.contrastive import contrastive_loss
from promptlora.losses.distillation import TeacherTargets, distillation_loss
from promptlora.losses.positions import IGNORED, answer_positions
from promptlora.losses.sft import sft_loss

__all__ = [
    "IGNORED",
    "TeacherTargets",
    "answer_positions",
    "contrastive_loss",
    "distillation_loss",
    "reconstruction_loss",
    "sft_loss",
    "weight_penalty",
]

"""The exception tree: every error a user can cause, each message saying value, expectation, place and fix.

It knows nothing of tensors or models. All of them are ``ValueError``s, so that a caller who knows
nothing of promptlora can still catch them; the command line turns each into one line and exit code 2.
"""

from __future__ import annotations


class PromptLoRAError(ValueError):
    """Base of every error that promptlora raises on bad input."""


class ConfigError(PromptLoRAError):
    """A configuration value that is missing, unknown or out of range."""


class ModelError(PromptLoRAError):
    """A base model that cannot be found, loaded or used."""


class ProjectionError(PromptLoRAError):
    """A projection that does not exist, or a model whose layout is not known."""


class LoRAError(PromptLoRAError):
    """LoRA matrices of a wrong name, shape, rank, batch, dtype or device."""


class PromptError(PromptLoRAError):
    """A prompt that is empty or longer than the encoder takes."""


class DataError(PromptLoRAError):
    """A row or a file of data that cannot be used."""


class CheckpointError(PromptLoRAError):
    """A checkpoint that is truncated, tampered with, or made for another base model."""


class TrainingError(PromptLoRAError):
    """Training that cannot go on: a loss or a gradient that is not finite."""


class AttentionError(PromptLoRAError):
    """A walk through attention that cannot be shown: a token, layer or head that is not there, or a failed proof."""


class OutputError(PromptLoRAError):
    """An output path that exists already or cannot be written."""


class NoRoomError(PromptLoRAError):
    """Something that is to be kept in memory and finds no room there."""


class MissingExtraError(PromptLoRAError, ImportError):
    """A library that an optional part needs and that is not installed; also an ``ImportError``."""


def one_line(error: BaseException, longest: int = 200) -> str:
    """What another library says, on one line and not too long, to stand inside a message of our own."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"

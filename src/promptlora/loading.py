"""What loading any pretrained model needs: silent libraries, whether the hub answers, and what identifies it.

It does not know what a model is for.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Suppress the libraries' warnings, and their progress bars unless ``bars``; restore both on leaving."""
    levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    if not bars:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if shown:
            transformers_logging.enable_progress_bar()


def hub_answers(model: str) -> bool:
    """Whether the hub can be asked about a model: one question, where loading would try again for a minute."""
    try:
        huggingface_hub.model_info(model, timeout=10)
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # no network, no such host, offline mode
        return False
    return True


def loading_options(source: str) -> dict[str, bool]:
    """How transformers is to load a folder or an id: never its code, and from the hub only if the hub answers."""
    local = Path(source).is_dir() or not hub_answers(source)
    return {"local_files_only": local, "trust_remote_code": False}


def model_fingerprint(model: PreTrainedModel) -> dict[str, str | int]:
    """What identifies a pretrained model: its type and sizes, and a hash over a sample of its weights.

    The sample is up to 4096 values of each of 16 to 31 parameters, spread evenly, in bfloat16, so that float32 and
    bfloat16 copies of the same weights agree. It tells models apart; it is no proof against a change of a single
    value. On the meta device ``weights`` is empty.
    """
    config = model.config.get_text_config()
    named = sorted((name, p) for name, p in model.named_parameters() if p.is_floating_point())
    digest = hashlib.sha256()
    for name, parameter in named:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
    weights = ""
    if not any(p.is_meta for _, p in named):
        for _, parameter in named[:: max(1, len(named) // 16)]:
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 4096)][:4096]
            digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
        weights = digest.hexdigest()
    return {
        "model_type": str(config.model_type),
        "hidden_size": int(config.hidden_size),
        "num_hidden_layers": int(config.num_hidden_layers),
        "vocab_size": int(config.vocab_size),
        "weights": weights,
    }


def describe_mismatch(expected: Mapping[str, str | int], found: Mapping[str, str | int]) -> str | None:
    """How two fingerprints differ, in words; None when they agree."""
    for key, value in expected.items():
        if found.get(key) != value and not (key == "weights" and not found.get(key)):
            return f"{key} is {str(found.get(key))[:16]}, expected {str(value)[:16]}"
    return None

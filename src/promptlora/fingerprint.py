"""The fingerprint of a model: its type and sizes, a hash over sampled weights, and a small sample of weights.

The hash shows whether two models are the same. If they differ, the sample shows whether quantisation explains the
difference: the embedded base is a dequantised 4-bit copy, and the same model in its original precision is accepted with
a warning. This file knows parameters; it knows nothing of the source of models.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import warnings
from collections.abc import Mapping, Sequence

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SAMPLE = "sample"  # the key of the sample; older fingerprints lack it
MATRIX_LIMIT = 0.15  # largest relative difference of matrices: 4-bit quantisation gives 0.08, other weights 1.41
VECTOR_LIMIT = 0.01  # for norms and biases, which are not quantised: bfloat16 rounds by 0.004

_VERSION = "1"  # version of the sample format
_MATRICES, _VECTORS, _VALUES = 16, 8, 32  # parameters per kind in the sample, and values per parameter


def base_fingerprint(model: PreTrainedModel) -> dict[str, str | int]:
    """The fingerprint of a base: its type and sizes, a hash over sampled weights, and a small sample.

    ``weights`` is a hash over up to 4096 values of each of 16 to 31 parameters, evenly spread and in bfloat16, so
    float32 and bfloat16 copies of the same weights agree. It distinguishes models, but it may miss a change of single
    values. ``sample`` holds 32 values of each of up to 16 matrices and 8 vectors, in bfloat16, for
    :func:`describe_mismatch`. On the meta device both are empty.
    """
    config = model.config.get_text_config()
    named = sorted((name, p) for name, p in model.named_parameters() if p.is_floating_point())
    digest = hashlib.sha256()
    for name, parameter in named:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
    weights = sample = ""
    if not any(p.is_meta for _, p in named):
        for _, parameter in named[:: max(1, len(named) // 16)]:
            flat = parameter.detach().reshape(-1)
            digest.update(_bfloat16(flat[:: max(1, flat.numel() // 4096)][:4096]))
        weights = digest.hexdigest()
        sample = _sample([parameter for _, parameter in named])
    return {
        "model_type": str(config.model_type),
        "hidden_size": int(config.hidden_size),
        "num_hidden_layers": int(config.num_hidden_layers),
        "vocab_size": int(config.vocab_size),
        "weights": weights,
        SAMPLE: sample,
    }


def weights_digest(module: nn.Module) -> str:
    """A hash over all values of a module, as 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_mismatch(expected: Mapping[str, str | int], found: Mapping[str, str | int]) -> str | None:
    """A description of how two fingerprints differ; None if they agree or quantisation explains the difference.

    Different weights are accepted with a warning if both fingerprints have a sample, its matrices differ by at most 15
    % of their size (root mean square), and its vectors by at most 1 %. Quantisation to 4 bits in blocks of 32 gives a
    difference of 8 % and does not change vectors; another model gives 141 %. The matrices include the embeddings, so
    they also show whether token ids have the same meaning. A copy with fine-tuning changes below these limits cannot be
    distinguished from a quantised copy.
    """
    for key, value in expected.items():
        if key == SAMPLE or found.get(key) == value or (key == "weights" and not found.get(key)):
            continue
        words = f"{key} is {str(found.get(key))[:16]}, expected {str(value)[:16]}"
        if key != "weights":
            return words
        distance = sample_distance(str(expected.get(SAMPLE, "")), str(found.get(SAMPLE, "")))
        if distance is None:
            return words
        matrices, vectors = distance
        if not (matrices <= MATRIX_LIMIT and vectors <= VECTOR_LIMIT):
            return f"{words} (matrices differ by {matrices:.1%}, vectors by {vectors:.1%})"
        warnings.warn(
            f"base: its weights are not the expected ones, but quantisation explains the difference (matrices "
            f"{matrices:.1%}, vectors {vectors:.1%} of their size; up to {MATRIX_LIMIT:.0%} and {VECTOR_LIMIT:.0%} are accepted). "
            "Answers can differ a little from those of the base that the hypernetwork was trained for.",
            stacklevel=3,
        )
    return None


def sample_distance(expected: str, found: str) -> tuple[float, float] | None:
    """Relative root-mean-square difference of the matrices and of the vectors of two samples.

    The difference is relative to the size of each parameter, so large parameters do not hide small ones. The result is
    None if a sample is missing, is damaged, or has another version or shape. A kind without parameters gives 0.
    """
    ours, theirs = _read(expected), _read(found)
    if ours is None or theirs is None or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return None
    distances = []
    for a, b in zip(ours, theirs, strict=True):
        difference = (a - b).square().mean(-1)
        size = a.square().mean(-1)
        relative = difference / size.clamp_min(torch.finfo(torch.float32).tiny)
        distances.append(float(relative.mean().sqrt()) if len(a) else 0.0)
    return distances[0], distances[1]


def _sample(parameters: Sequence[Tensor]) -> str:
    """The sample ``version:matrices:values``; the values are bfloat16 in base64, matrices first."""
    matrices = _spread([p for p in parameters if p.ndim > 1], _MATRICES)
    vectors = _spread([p for p in parameters if p.ndim == 1], _VECTORS)
    data = b"".join(_bfloat16(_values(parameter)) for parameter in (*matrices, *vectors))
    return f"{_VERSION}:{len(matrices)}:{base64.b64encode(data).decode()}"


def _spread(parameters: Sequence[Tensor], count: int) -> list[Tensor]:
    """Up to ``count`` items, evenly spread, including the first and the last."""
    if len(parameters) <= count:
        return list(parameters)
    return [parameters[round(i * (len(parameters) - 1) / (count - 1))] for i in range(count)]


def _values(parameter: Tensor) -> Tensor:
    """Values spread over a parameter; the step is odd, so that they come from different columns."""
    flat = parameter.detach().reshape(-1)
    places = torch.arange(_VALUES, device=flat.device) * (flat.numel() // _VALUES | 1) % flat.numel()
    return flat[places]


def _bfloat16(values: Tensor) -> bytes:
    return values.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def _read(sample: str) -> tuple[Tensor, Tensor] | None:
    """Matrices and vectors of a sample, ``[parameters, values]`` each; None if the text is not a sample."""
    version, _, rest = sample.partition(":")
    count, _, data = rest.partition(":")
    try:
        values = numpy.frombuffer(base64.b64decode(data, validate=True), dtype=numpy.int16).copy()
    except (binascii.Error, ValueError):
        return None
    if version != _VERSION or not count.isdecimal() or not len(values) or len(values) % _VALUES:
        return None
    each = torch.from_numpy(values).view(torch.bfloat16).float().view(-1, _VALUES)
    if int(count) > len(each) or not bool(torch.isfinite(each).all()):
        return None
    return each[: int(count)], each[int(count) :]

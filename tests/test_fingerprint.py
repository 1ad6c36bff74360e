"""Fingerprints: the same base in another precision is accepted with a warning, another base is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from promptlora import HyperNetwork, HyperNetworkConfig, PromptLoRA, find_projections
from promptlora.errors import CheckpointError
from promptlora.fingerprint import MATRIX_LIMIT, VECTOR_LIMIT, base_fingerprint, describe_mismatch, sample_distance
from tests.helpers import tiny_llama
from tests.training_helpers import word_tokenizer


@torch.no_grad()
def dequantised(model: torch.nn.Module, bits: int = 4, block: int = 32) -> torch.nn.Module:
    """A copy whose matrices are what Q4_1 and its like leave of them: blocks with a smallest value and a step."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            blocks = parameter.reshape(-1, block)
            low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
            step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
            parameter.copy_((low + ((blocks - low) / step).round() * step).view_as(parameter))
    return made


@torch.no_grad()
def in_original_precision(model: torch.nn.Module, bits: int = 4, block: int = 32) -> torch.nn.Module:
    """A copy that could have been the original of a dequantised one: half a step of noise on each value."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            blocks = parameter.reshape(-1, block)
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / (2**bits - 1)
            noise = torch.rand(blocks.shape, generator=generator) - 0.5
            parameter.add_((noise * step).view_as(parameter))
    return made


def distance(a: torch.nn.Module, b: torch.nn.Module) -> tuple[float, float]:
    found = sample_distance(str(base_fingerprint(a)["sample"]), str(base_fingerprint(b)["sample"]))
    assert found is not None
    return found


def test_a_dequantised_copy_is_accepted_with_a_warning():
    original = tiny_llama(torch.float32)
    expected, found = base_fingerprint(dequantised(original)), base_fingerprint(original)
    for pair in ((expected, found), (found, expected)):
        with pytest.warns(UserWarning, match="quantisation explains the difference") as caught:
            assert describe_mismatch(*pair) is None
        assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_quantisation_leaves_a_difference_below_the_limit(bits):
    original = tiny_llama(torch.float32)
    matrices, vectors = distance(dequantised(original, bits), original)
    assert 0 < matrices < MATRIX_LIMIT
    assert vectors == 0


def test_the_same_weights_need_no_warning():
    model = tiny_llama(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert describe_mismatch(base_fingerprint(model), base_fingerprint(tiny_llama(torch.bfloat16))) is None


def test_another_model_of_the_same_shape_is_refused_and_the_distance_is_given():
    expected, found = (base_fingerprint(tiny_llama(torch.float32, seed=seed)) for seed in (0, 1))
    words = describe_mismatch(expected, found)
    assert words is not None
    assert "matrices differ by 1" in words  # about 141 %


@torch.no_grad()
def moved(kind: str) -> torch.nn.Module:
    model = tiny_llama(torch.float32)
    generator = torch.Generator().manual_seed(0)
    if kind == "embeddings of other tokens":
        weight = model.model.embed_tokens.weight
        weight.copy_(weight.roll(1, 0))
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * parameter.square().mean().sqrt()
        if kind == "matrices" and parameter.ndim > 1:
            parameter.add_(0.25 * noise)
        if kind == "norms" and parameter.ndim == 1:
            parameter.add_(0.03 * noise)
    return model


@pytest.mark.parametrize("kind", ["matrices", "norms", "embeddings of other tokens"])
def test_what_quantisation_does_not_explain_is_refused(kind):
    original = tiny_llama(torch.float32)
    matrices, vectors = distance(original, moved(kind))
    assert matrices > MATRIX_LIMIT or vectors > VECTOR_LIMIT
    words = describe_mismatch(base_fingerprint(original), base_fingerprint(moved(kind)))
    assert words is not None
    assert "matrices differ by" in words


def test_fingerprints_without_a_sample_keep_working():
    new = base_fingerprint(tiny_llama(torch.float32))
    other = base_fingerprint(dequantised(tiny_llama(torch.float32)))
    old = {key: value for key, value in new.items() if key != "sample"}
    assert describe_mismatch(old, new) is None
    assert describe_mismatch(new, old) is None  # of a checkpoint that was written before
    for expected, found in ((old, other), (other, old)):
        words = describe_mismatch(expected, found)
        assert words is not None
        assert words.startswith("weights is ")


@pytest.mark.parametrize(
    "sample", ["", "1", "1:2", "1:2:", "2:1:AAAA", "1:x:AAAA", "1:1:AAAA", "1:1:?", "1:99:" + "A" * 128, "\x00"]
)
def test_a_damaged_sample_is_no_sample(sample):
    whole = str(base_fingerprint(tiny_llama(torch.float32))["sample"])
    assert sample_distance(whole, sample) is None
    assert sample_distance(sample, whole) is None
    assert sample_distance(whole, whole) == (0.0, 0.0)


def test_a_hypernetwork_accepts_its_base_in_original_precision_and_no_other():
    base = tiny_llama(torch.float32)
    config = HyperNetworkConfig(source_layer=1, context_size=16, encoder_layers=1, encoder_heads=2, rank=2)
    network = HyperNetwork(config, find_projections(base), 32, base_fingerprint(base))
    with pytest.warns(UserWarning, match="quantisation explains"):
        PromptLoRA(in_original_precision(base), word_tokenizer(), network).close()
    with pytest.raises(CheckpointError, match="matrices differ by"):
        PromptLoRA(tiny_llama(torch.float32, seed=1), word_tokenizer(), network)


@pytest.mark.real
def test_the_real_base_in_original_precision_is_recognised(smollm):
    """The embedded base is a dequantised Q4_1 file: its original differs by up to half a step in each block of 32."""
    base, _ = smollm
    assert len(str(base_fingerprint(base)["sample"])) < 2500
    matrices, vectors = distance(base, in_original_precision(base))
    print(f"matrices {matrices:.3f}, vectors {vectors:.3f}")  # noqa: T201
    assert 0.04 < matrices < 0.11
    assert vectors == 0
    with pytest.warns(UserWarning, match="quantisation explains"):
        assert describe_mismatch(base_fingerprint(base), base_fingerprint(in_original_precision(base))) is None
    unrelated = type(base)(base.config)  # the same shapes, random weights
    words = describe_mismatch(base_fingerprint(base), base_fingerprint(unrelated))
    assert words is not None
    assert "matrices differ by" in words


@pytest.mark.real
def test_the_shipped_hypernetwork_holds_the_sample_of_its_base(smollm):
    from promptlora.adapt.prompt_lora import shipped_hypernetwork

    assert HyperNetwork.from_pretrained(shipped_hypernetwork()).base == base_fingerprint(smollm[0])

"""``PromptEncoder``: padding and batch mates never change a context."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from promptlora.errors import ConfigError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.encoder import PromptEncoder, sinusoidal_positions

STATE = 20
JUNK = (0.0, 1e6, float("inf"), float("nan"))
EXACT = {"rtol": 0.0, "atol": 1e-12}


def make_encoder(dtype: torch.dtype = torch.float64, **options: object) -> PromptEncoder:
    torch.manual_seed(0)
    config = HyperNetworkConfig(**{"context_size": 24, "encoder_heads": 3, "pooling_queries": 2, **options})
    encoder = PromptEncoder(config, STATE).to(dtype)
    encoder.fit_statistics(random_states(3, 5, 4, 6, seed=9, dtype=dtype))
    return encoder


def random_states(*lengths: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, STATE, generator=generator, dtype=torch.float64).mul(3).add(1).to(dtype) for n in lengths]


def pad(states: list[Tensor], width: int, side: str = "right", junk: float = 0.0) -> tuple[Tensor, Tensor]:
    """A batch of ``width`` places with junk where there is no token."""
    padded = torch.full((len(states), width, STATE), junk, dtype=states[0].dtype)
    mask = torch.zeros(len(states), width, dtype=torch.bool)
    for i, one in enumerate(states):
        place = slice(0, len(one)) if side == "right" else slice(width - len(one), width)
        padded[i, place], mask[i, place] = one, True
    return padded, mask


def alone(encoder: PromptEncoder, one: Tensor) -> Tensor:
    return encoder(one[None], torch.ones(1, len(one), dtype=torch.bool))[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("junk", JUNK)
def test_padding_never_changes_a_context(side, junk):
    encoder = make_encoder()
    states = random_states(1, 4, 9)
    together = encoder(*pad(states, 13, side, junk))
    for context, one in zip(together, states, strict=True):
        torch.testing.assert_close(context, alone(encoder, one), **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_at_padded_places_does_not_matter_bitwise(side):
    encoder = make_encoder(torch.float32)
    states = random_states(2, 7, dtype=torch.float32)
    contexts = [encoder(*pad(states, 8, side, junk)) for junk in JUNK]
    for other in contexts[1:]:
        assert torch.equal(contexts[0], other)


def test_batch_mates_do_not_matter_bitwise():
    encoder = make_encoder(torch.float32)
    one, *mates = random_states(5, 5, 2, 9, dtype=torch.float32)
    contexts = [encoder(*pad([one, mate], 9))[0] for mate in mates]
    for other in contexts[1:]:
        assert torch.equal(contexts[0], other)


@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    more=st.integers(0, 4),
    side=st.sampled_from(["left", "right"]),
    junk=st.sampled_from(JUNK),
    order=st.randoms(use_true_random=False),
)
def test_any_batch_is_its_prompts_one_at_a_time(lengths, more, side, junk, order):
    encoder = make_encoder()
    states = random_states(*lengths)
    permutation = list(range(len(states)))
    order.shuffle(permutation)
    padded, mask = pad(states, max(lengths) + more, side, junk)
    contexts = encoder(padded, mask)
    torch.testing.assert_close(contexts, torch.stack([alone(encoder, one) for one in states]), **EXACT)
    torch.testing.assert_close(encoder(padded[permutation], mask[permutation]), contexts[permutation], **EXACT)


def test_the_order_of_tokens_matters():
    encoder = make_encoder()
    (one,) = random_states(6)
    assert (alone(encoder, one) - alone(encoder, one.flip(0))).abs().max() > 1e-3


def test_there_is_no_dropout():
    encoder = make_encoder()
    batch = pad(random_states(3, 6), 6)
    assert torch.equal(encoder.train()(*batch), encoder.eval()(*batch))


@pytest.mark.parametrize("junk", JUNK)
def test_every_parameter_has_a_finite_gradient_whatever_is_padded(junk):
    encoder = make_encoder()
    encoder(*pad(random_states(3, 6), 8, junk=junk)).pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_without_transformer_layers_the_pooling_still_works():
    encoder = make_encoder(encoder_layers=0)
    (one,) = random_states(4)
    assert len(encoder.blocks) == 0
    torch.testing.assert_close(encoder(*pad([one], 6, "left"))[0], alone(encoder, one), **EXACT)


def test_states_of_a_coarser_dtype_are_taken():
    encoder = make_encoder(torch.float32)
    (one,) = random_states(4, dtype=torch.bfloat16)
    context = alone(encoder, one)
    assert context.dtype == torch.float32
    assert torch.equal(context, alone(encoder, one.float()))


def test_statistics_standardise_tokens_without_the_first_and_the_means_of_prompts():
    torch.manual_seed(0)
    encoder = PromptEncoder(HyperNetworkConfig(context_size=24, encoder_heads=3), STATE).double()
    states = random_states(4, 6, 5)
    for one in states:
        one[0] *= 100  # the attention sink
    encoder.fit_statistics(states)
    tokens = torch.cat([one[1:] for one in states])
    torch.testing.assert_close(encoder.token_mean, tokens.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.token_std, tokens.std(0), rtol=0, atol=1e-6)
    standard = (torch.cat(states) - encoder.token_mean) / encoder.token_std
    means = torch.stack([one.mean(0) for one in standard.clamp(-5, 5).split([4, 6, 5])])
    torch.testing.assert_close(encoder.prompt_mean, means.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.prompt_std, means.std(0), rtol=0, atol=1e-6)
    assert {"token_mean", "token_std", "prompt_mean", "prompt_std"} <= set(encoder.state_dict())


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_rounding_of_a_constant_channel_does_not_matter(constant):
    states = random_states(6, 9, 7, 5, dtype=torch.float32)
    for one in states:
        one[:, 3] = constant
    encoder = make_encoder(torch.float32)
    encoder.fit_statistics(states)
    for one in states:
        torch.testing.assert_close(alone(encoder, one.half()), alone(encoder, one), rtol=0, atol=0.01)


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_of_fewer_than_two_prompts_are_refused(count):
    encoder = make_encoder()
    with pytest.raises(ConfigError, match=f"statistics of {count} prompts"):
        encoder.fit_statistics(random_states(3)[:count])


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_positions_are_sine_and_cosine(width):
    positions = torch.tensor([[0, 0, 1, 5]])
    found = sinusoidal_positions(positions, width)
    assert found.shape == (1, 4, width)
    for t, position in enumerate([0, 0, 1, 5]):
        for i in range(width):
            angle = torch.tensor(position / 10000.0 ** (2 * (i // 2) / width))
            expected = angle.cos() if i % 2 else angle.sin()
            torch.testing.assert_close(found[0, t, i], expected, rtol=1e-5, atol=1e-6)


# --- states of two parts ------------------------------------------------------------------------------------


def two_part_encoder(dtype: torch.dtype = torch.float64, **options: object) -> PromptEncoder:
    torch.manual_seed(0)
    options = {"context_size": 24, "encoder_heads": 3, "pooling_queries": 2, **options}
    encoder = PromptEncoder(HyperNetworkConfig(source="embedder+hidden", **options), STATE).to(dtype)
    encoder.fit_statistics([two_parts(*lengths, dtype=dtype) for lengths in ((3, 4), (5, 2), (4, 6))])
    return encoder


def two_parts(first: int, second: int, seed: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    """States whose last channel says of which part they are; the parts have different means and spreads."""
    states = random_states(first, second, seed=seed, dtype=dtype)
    states[1] = states[1] * 7 - 20
    for part, of_part in enumerate(states):
        of_part[:, -1] = part
    return torch.cat(states)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("junk", JUNK)
def test_padding_never_changes_a_context_of_two_parts(side, junk):
    encoder = two_part_encoder()
    states = [two_parts(2, 3, 1), two_parts(5, 4, 2), two_parts(1, 1, 3)]
    together = encoder(*pad(states, 12, side, junk))
    for context, one in zip(together, states, strict=True):
        torch.testing.assert_close(context, alone(encoder, one), **EXACT)


def test_each_part_has_its_own_positions_wherever_its_states_stand():
    encoder = two_part_encoder()
    one = two_parts(3, 4)
    mixed = one[[3, 0, 4, 1, 5, 6, 2]]  # the order within each part is the same
    torch.testing.assert_close(alone(encoder, mixed), alone(encoder, one), **EXACT)
    assert (alone(encoder, one[[0, 1, 2, 4, 3, 5, 6]]) - alone(encoder, one)).abs().max() > 1e-3


def test_both_parts_are_attended_to_and_the_mean_is_that_of_the_first():
    encoder = two_part_encoder()
    one = two_parts(3, 4)
    changed = [one.clone(), one.clone()]
    for part, other in enumerate(changed):
        other[other[:, -1] == part, :-1] += torch.randn(STATE - 1, dtype=torch.float64)
        assert (alone(encoder, other) - alone(encoder, one)).abs().max() > 1e-3
    with torch.no_grad():  # without what was attended to, only the mean is left
        encoder.pool.out.weight.zero_()
    assert (alone(encoder, changed[0]) - alone(encoder, one)).abs().max() > 1e-3
    torch.testing.assert_close(alone(encoder, changed[1]), alone(encoder, one), **EXACT)


def test_statistics_are_those_of_each_part():
    encoder = PromptEncoder(HyperNetworkConfig(source="embedder+hidden"), STATE).double()
    states = [two_parts(3, 4, 1), two_parts(5, 2, 2)]
    encoder.fit_statistics(states)
    for part in (0, 1):
        tokens = torch.cat([s[s[:, -1] == part][1:, :-1] for s in states])
        torch.testing.assert_close(encoder.token_mean[part], tokens.mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(encoder.token_std[part], tokens.std(0), rtol=0, atol=1e-5)
    first = [((s[s[:, -1] == 0, :-1] - encoder.token_mean[0]) / encoder.token_std[0]).clamp(-5, 5) for s in states]
    means = torch.stack([s.mean(0) for s in first])
    torch.testing.assert_close(encoder.prompt_mean, means.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("junk", JUNK)
def test_every_parameter_of_two_parts_has_a_finite_gradient(junk):
    encoder = two_part_encoder()
    encoder(*pad([two_parts(2, 3, 1), two_parts(5, 4, 2)], 11, junk=junk)).pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_encoder_is_small():
    encoder = PromptEncoder(HyperNetworkConfig(source="embedder+hidden"), 577)
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 3e6


@pytest.mark.parametrize("source", ["hidden", "embedder+hidden", "layers"])
def test_a_forward_never_waits_for_the_device(source):
    encoder = PromptEncoder(HyperNetworkConfig(source=source), STATE, [0, 2] if source == "layers" else None).to("meta")
    layers = [3] if source == "layers" else []
    states = torch.empty(4, 7, *layers, STATE, device="meta")  # a value that is asked for raises there
    context = encoder(states, torch.ones(4, 7, dtype=torch.bool, device="meta"))
    assert context.shape == (4, *([2] if layers else []), 256)

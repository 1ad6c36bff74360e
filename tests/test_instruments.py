"""What shows a collapse: spread of updates against dense values, the mean adapter, margins, the warning, the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptlora.cli import main
from promptlora.lora import LoRAWeights
from promptlora.lora.geometry import spread
from promptlora.text import encode_prompt, gibberish
from promptlora.train import Trainer
from tests.training_helpers import save_base, toy_config, toy_rows, write_jsonl


def random_lora(seed: int, adapters: int, rank: int = 2) -> LoRAWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return LoRAWeights(
        {"m.0.q_proj": (draw(adapters, 5, rank), draw(adapters, rank, 7)), "m.0.o_proj": (draw(adapters, 6, rank), draw(adapters, rank, 3))},
        0.7,
    )  # fmt: skip


def dense(lora: LoRAWeights) -> torch.Tensor:
    return torch.cat([lora.delta(name).flatten(1) for name in lora], dim=1)


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_spread_is_that_of_the_dense_updates(seed, adapters):
    lora = random_lora(seed, adapters)
    updates = dense(lora)
    mean = updates.mean(0)
    centred = updates - mean
    expected = float(centred.square().sum(1).mean() / mean.square().sum())
    singular = torch.linalg.svdvals(centred).square()
    shares = singular / singular.sum()
    found = spread(lora)
    assert found.variance_ratio == pytest.approx(expected, rel=1e-9)
    rank = float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
    assert found.effective_rank == pytest.approx(rank, rel=1e-6)
    assert 1 <= found.effective_rank <= adapters - 1 + 1e-9


def test_one_lora_for_all_prompts_has_no_spread():
    lora = random_lora(0, 1)
    same = LoRAWeights.stack([lora, lora, lora])
    assert spread(same).variance_ratio == pytest.approx(0, abs=1e-12)
    assert spread(same).effective_rank == 0
    zero = LoRAWeights({name: (A, 0 * B) for name, (A, B) in same.items()}, 1.0)
    assert (spread(zero).variance_ratio, spread(zero).effective_rank) == (0, 0)


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_mean_adapter_is_the_mean_of_the_updates(seed, adapters):
    lora = random_lora(seed, adapters)
    torch.testing.assert_close(dense(lora.mean())[0], dense(lora).mean(0))


def test_gibberish_is_words_of_nothing_and_the_same_each_time():
    text = gibberish("say it in five words", 3, 512)
    assert text == gibberish("say it in five words", 3, 512) != gibberish("say it in five words", 4, 512)
    assert len(text.split()) == 5
    assert not set(text) & set("aeiou")
    assert gibberish(" ", 1, 4)


@pytest.mark.real
@pytest.mark.parametrize("longest", [16, 512])
def test_gibberish_of_a_long_prompt_fits_the_encoder(longest, lm):
    for seed in range(20):
        text = gibberish("word " * longest, seed, longest)
        assert len(encode_prompt(lm.tokenizer, text, longest)) > longest // 8


@pytest.fixture
def steered(tmp_path) -> tuple[Trainer, list]:
    base = save_base(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(4, 10))
    config = toy_config(tmp_path / "run", base, data, steps=60, margin_every=10, prompts_per_batch=4)
    trainer = Trainer(config)
    measured: list = []
    trainer.callbacks.append(measured.append)
    trainer.run()
    yield trainer, measured
    trainer.close()


def test_a_run_that_steers_shows_it_in_every_instrument(steered):
    trainer, measured = steered
    first, last = measured[9], measured[-1]
    assert last.margin > 1
    assert last.gibberish_margin > 0.3
    assert last.mean_margin > 0.3
    assert last.variance_ratio > first.variance_ratio > 0
    assert 1 <= last.effective_rank <= 3
    assert trainer.warning is None


def test_a_run_that_does_not_steer_is_warned_about(tmp_path):
    base = save_base(tmp_path / "base")
    rows = [{**row, "outputs": ["c"]} for row in toy_rows(4, 10)]  # no prompt makes a difference
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    options = {"steps": 40, "margin_every": 5, "prompts_per_batch": 4, "optim": {"static_lr": 1e-1, "lr": 1e-6}}
    with Trainer(toy_config(tmp_path / "run", base, data, **options)) as trainer:
        warnings = []
        trainer.callbacks.append(lambda metrics: warnings.append(trainer.warning))
        trainer.run(until=30)
    assert warnings[:15] == [None] * 15
    assert "the steering margin was below 0.02 nats in the last 3 measurements" in warnings[-1]
    with Trainer(toy_config(tmp_path / "run", base, data, **options)) as trainer:
        trainer.resume()
        assert trainer.warning == warnings[-1]  # read back from the metrics


def test_plot_draws_a_run_and_prints_or_dumps_its_values(steered, tmp_path, capsys):
    run = steered[0].folder
    for kind, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert main(["plot", str(run), "-o", str(tmp_path / f"run.{kind}")]) == 0
        assert (tmp_path / f"run.{kind}").read_bytes().startswith(start)
    text = (tmp_path / "run.svg").read_text()
    assert "margin (nats)" in text or "<path" in text
    capsys.readouterr()
    assert main(["plot", str(run), "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert main(["plot", str(run)]) == 0
    assert "gibberish_margin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none"], "none: no such file; expected the output folder of a training run"),
        (["{run}", "-o", "a.gif"], "a.gif: .gif; expected .svg, .png or .pdf"),
    ],
)
def test_plot_says_what_is_wrong(steered, arguments, says, capsys):
    given = [argument.format(run=steered[0].folder) for argument in arguments]
    assert main(["plot", *given]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not Path("a.gif").exists()

"""How far a prompt is from those of training: values by hand, files, and the weights of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from promptlora import PromptLoRA
from promptlora.adapt.prompt_lora import shipped_hypernetwork
from promptlora.errors import CheckpointError, ConfigError
from promptlora.hypernet.distance import PromptDistance, TrainingPrompts, describe
from promptlora.hypernet.network import PROMPTS_FILE, HyperNetwork
from tests.helpers import save_embedder
from tests.training_helpers import toy_rows


def some(seed: int, count: int, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_the_mean_of_real_tokens_and_of_the_first_part() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert describe(states, mask, two_parts=False).tolist() == [[2.0, 3.0], [5.0, 6.0]]
    parts = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [9.0, 1.0]]])
    assert describe(parts, torch.ones(1, 3, dtype=torch.bool), two_parts=True).tolist() == [[2.0]]
    layered = torch.stack([states, states + 2], dim=2)  # of two layers: their mean
    assert describe(layered, mask, two_parts=False).tolist() == [[3.0, 4.0], [6.0, 7.0]]


def test_distances_are_those_of_a_loop() -> None:
    trained, heldout, asked = some(0, 9), some(1, 5), some(2, 4)
    known = TrainingPrompts.fit(trained, heldout)
    mean, std = trained.mean(0), trained.std(0)

    def nearest(one: torch.Tensor) -> float:
        cosines = [torch.cosine_similarity((one - mean) / std, (t - mean) / std, dim=0) for t in trained]
        return 1 - float(max(cosines))

    limits = sorted(nearest(one) for one in heldout)
    for one, found in zip(asked, known.distances(asked), strict=True):
        assert found.distance == pytest.approx(nearest(one), abs=0.02)  # kept in bfloat16
        assert found.share == pytest.approx(sum(limit < found.distance for limit in limits) / 5)
        assert found.far == (found.distance > found.far_above)
        assert found.far_above == pytest.approx(limits[4], abs=0.02)


def test_a_training_prompt_is_near_and_its_opposite_far() -> None:
    trained = some(0, 9)
    known = TrainingPrompts.fit(trained, some(1, 20))
    own = known.distances(trained[:1])[0]
    assert own.distance < 0.01
    assert not own.far
    assert str(own).startswith("This prompt is near the training prompts (distance 0.0")
    away = PromptDistance(1.2, 0.95, 0.75)
    assert away.far
    assert "far from all training prompts (distance 1.20; far is above 0.75)" in str(away)


def test_too_few_prompts() -> None:
    for trained, heldout in ((some(0, 1), some(1, 1)), (some(0, 5), some(1, 0))):
        with pytest.raises(ConfigError, match=r"Expected at least 2 and 1"):
            TrainingPrompts.fit(trained, heldout)


def test_files(tmp_path: Path) -> None:
    known = TrainingPrompts.fit(some(0, 9), some(1, 5))
    known.write(tmp_path / PROMPTS_FILE)
    assert TrainingPrompts.read(tmp_path / PROMPTS_FILE).distances(some(2, 4)) == known.distances(some(2, 4))
    (tmp_path / PROMPTS_FILE).write_bytes((tmp_path / PROMPTS_FILE).read_bytes()[:90])
    with pytest.raises(CheckpointError, match="truncated"):
        TrainingPrompts.read(tmp_path / PROMPTS_FILE)
    tensors = {"prompts": known.prompts, "mean": known.mean[:2].clone(), "std": known.std, "heldout": known.heldout}
    save_file(tensors, tmp_path / PROMPTS_FILE, metadata={"format": "promptlora.training-prompts/1"})
    with pytest.raises(CheckpointError, match="not the training prompts"):
        TrainingPrompts.read(tmp_path / PROMPTS_FILE)


def test_they_travel_with_the_hypernetwork(tmp_path: Path) -> None:
    network = HyperNetwork.from_pretrained(shipped_hypernetwork())
    assert network.training_prompts is not None
    network.save_pretrained(tmp_path / "copy")
    again = HyperNetwork.from_pretrained(tmp_path / "copy").training_prompts
    assert again is not None
    assert torch.equal(again.prompts, network.training_prompts.prompts)
    network.training_prompts = None
    network.save_pretrained(tmp_path / "without")
    assert HyperNetwork.from_pretrained(tmp_path / "without").training_prompts is None


def test_the_weights_of_the_package(smollm: Any) -> None:
    lm = PromptLoRA(*smollm, HyperNetwork.from_pretrained(shipped_hypernetwork()))
    try:
        found = lm.distances(["Is the sentiment of the review positive or negative?", "blorp fnarg zzt qwop"])
        assert found is not None
        near, far = found
        assert near.distance < far.distance
        assert far.far
        assert not near.far
        assert lm.distances("blorp fnarg zzt qwop") == [far]
    finally:
        lm.close()


def test_a_hypernetwork_that_keeps_no_prompts_says_nothing(lm: PromptLoRA) -> None:
    assert lm.distances("Write a title.") is None


@pytest.mark.parametrize("source", ["hidden", "embedder+hidden"])
def test_training_keeps_its_prompts(make_trainer: Any, tmp_path: Path, source: str) -> None:
    """With two parts they are read by the embedder alone, and described as they are at inference."""
    rows = [{**row, "split": split} for row in toy_rows(4, 3) for split in ("train", "eval")]
    trainer = make_trainer(
        rows=rows, steps=1, validation={"tasks": 1, "rows": 2, "every": 1},
        hypernetwork={"source": source, "embedder": str(save_embedder(tmp_path / "embedder")) if "+" in source else ""},
    )  # fmt: skip
    known = HyperNetwork.from_pretrained(trainer.run()).training_prompts
    assert known is not None
    assert len(known.prompts) == 3
    assert len(known.heldout) == 1
    held = trainer.validation.prompts.values()
    described = describe(*trainer.states.batch(list(held)), two_parts="+" in source)
    assert known.distances(described)[0].distance == pytest.approx(float(known.heldout[0]), abs=1e-4)

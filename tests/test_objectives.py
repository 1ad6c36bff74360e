"""The objectives and options of training on a tiny base: what each is at a known point, and that each learns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from promptlora.data import read_rows
from promptlora.errors import CheckpointError, ConfigError, DataError, ModelError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.network import HyperNetwork
from promptlora.losses import weight_penalty
from promptlora.models import base_fingerprint, load_base
from promptlora.teacher import OnlineTeacher, TeachConfig, teach
from promptlora.text import PromptStates
from promptlora.train import Trainer
from tests.training_helpers import save_base, toy_rows, word_tokenizer, write_jsonl


def loss_at(trainer: Trainer, step: int = 0) -> float:
    batch = trainer.objective.parts(step, 1)[0]
    with torch.no_grad():
        return float(trainer.objective.loss(batch, trainer.adapters(batch)))


# --- distill ---------------------------------------------------------------------------------------------


def test_a_student_that_reads_what_its_teacher_reads_has_no_divergence_and_no_gradient(make_trainer):
    """At step 0 the adapter adds nothing; with the prompt in both contexts teacher and student are one model."""
    trainer = make_trainer(objective="distill", data={"in_context_share": 1.0})
    batch = trainer.objective.parts(0, 1)[0]
    loss = trainer.objective.loss(batch, trainer.adapters(batch))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    for name, parameter in trainer.plain.named_parameters():
        assert parameter.grad is None or float(parameter.grad.abs().max()) < 1e-5, name


def test_the_student_learns_what_the_prompt_in_context_does(make_trainer):
    """The teacher is trained to answer by the prompt in its context; the student never sees an answer's label."""
    teacher = make_trainer(
        data={"in_context_share": 1.0}, steps=60, folder="teacher", hypernetwork={"generated": False}
    )
    path = teacher.run()
    teacher.close()
    trainer = make_trainer(
        objective="distill", steps=60, margin_every=60, distill={"adapter": str(path)}, folder="student"
    )
    first = loss_at(trainer)
    measured = []
    trainer.callbacks.append(measured.append)
    trainer.run()
    assert loss_at(trainer) < first / 4
    assert measured[-1].margin > 1


def test_a_cache_and_the_teacher_itself_give_the_same_loss(make_trainer, toy_base, tmp_path):
    pair = load_base(toy_base)
    trainer = make_trainer(objective="distill", folder="online", base_pair=pair)
    cache = tmp_path / "cache"
    teacher = OnlineTeacher(*pair)
    config = TeachConfig(top_k=97)
    teach(teacher, pair[1], read_rows(tmp_path / "rows.jsonl"), cache, config, fingerprint=base_fingerprint(pair[0]))
    cached = make_trainer(objective="distill", folder="cached", distill={"cache": str(cache)})
    for step in range(4):
        assert loss_at(cached, step) == pytest.approx(loss_at(trainer, step), rel=1e-4)


def test_shares_of_own_answers_and_teacher_add_up(make_trainer):
    own = loss_at(make_trainer(folder="own"))
    taught = loss_at(make_trainer(objective="distill", folder="taught"))
    mixed = loss_at(make_trainer(objective="distill", distill={"sft_share": 0.25}, folder="mixed"))
    assert mixed == pytest.approx(0.25 * own + 0.75 * taught, rel=1e-5)


def test_another_model_may_teach_if_its_words_are_the_same(make_trainer, toy_base, tmp_path):
    trainer = make_trainer(objective="distill", distill={"teacher": str(toy_base)}, folder="same")
    assert trainer.objective.teacher.model is not trainer.model
    assert loss_at(trainer) == pytest.approx(loss_at(make_trainer(objective="distill", folder="own")), rel=1e-5)
    other = tmp_path / "other"
    save_base(other)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match="tokenizer"):
        make_trainer(objective="distill", distill={"teacher": str(other)}, folder="refused")


# --- reconstruct -----------------------------------------------------------------------------------------


@pytest.fixture
def library(toy_base, tmp_path) -> Path:
    """Four random adapters of rank 2 for four prompts."""
    model, tokenizer = load_base(toy_base)
    from promptlora.projections import find_projections

    config = HyperNetworkConfig(
        source_layer=1, context_size=16, encoder_layers=0, trunk_layers=0, rank=2, encoder_heads=2
    )
    torch.manual_seed(1)
    network = HyperNetwork(config, find_projections(model), model.config.hidden_size)
    for parameter in network.generator.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    prompts = ["say a", "say b", "write a", "never c"]
    states = PromptStates(model, tokenizer, config)
    with torch.no_grad():
        lora = network(*states.batch(prompts))
    for i in range(4):
        lora.select(i).save_peft(tmp_path / f"adapter{i}")
    lines = [{"prompt": prompt, "adapter": f"adapter{i}"} for i, prompt in enumerate(prompts)]
    return write_jsonl(tmp_path / "library.jsonl", lines)


def test_a_library_of_adapters_is_reconstructed_without_the_base(make_trainer, library, monkeypatch):
    trainer = make_trainer(
        library=library, objective="reconstruct", prompts_per_batch=4, steps=150, margin_every=50,
        optim={"lr": 1e-2, "static_lr": 1e-2, "head_lr_factor": 8.0},
    )  # fmt: skip
    monkeypatch.setattr(trainer.base, "hidden", lambda *a, **k: pytest.fail("the base ran"))
    assert loss_at(trainer) == pytest.approx(1.0)  # an update of zero is as far as the target is large
    measured = []
    trainer.callbacks.append(measured.append)
    trainer.run()
    assert loss_at(trainer) < 0.5
    assert measured[-1].margin > 0.3


def test_a_library_is_read_with_care(make_trainer, library, tmp_path):
    text = library.read_text()
    library.write_text(text.replace('"adapter": "adapter2"', '"adaptor": "adapter2"'))
    with pytest.raises(DataError, match=r"library.jsonl:3: expected an object with prompt and adapter"):
        make_trainer(library=library, objective="reconstruct")
    library.write_text(text)
    with pytest.raises(DataError, match="4 adapters; expected prompts_per_batch=5"):
        make_trainer(library=library, objective="reconstruct", prompts_per_batch=5)
    with pytest.raises(ConfigError, match="takes adapters, not rows"):
        make_trainer(library=library, objective="reconstruct", validation={"tasks": 1})
    with pytest.raises(DataError, match="no such file"):
        make_trainer(library=tmp_path / "none.jsonl", objective="reconstruct")


def test_a_teaching_adapter_knows_that_the_prompt_is_in_its_context(make_trainer):
    """The teacher reads the prompt: a hypernetwork with a context flag writes another adapter for that."""
    first = make_trainer(steps=4, folder="teacher", hypernetwork={"context_flag": True}, data={"in_context_share": 0.5})
    path = first.run()
    first.close()
    student = make_trainer(objective="distill", distill={"adapter": str(path)}, folder="student")
    network, _ = student.objective.adapter
    torch.nn.init.normal_(network.in_context)
    batch = student.objective.parts(0, 1)[0]
    with torch.no_grad():
        told = student.objective.targets(batch).log_probs
        network.in_context.zero_()
        untold = student.objective.targets(batch).log_probs
    assert not torch.equal(told, untold)


# --- options ---------------------------------------------------------------------------------------------


def test_a_penalty_moves_the_weights_and_is_not_reported_as_loss(make_trainer):
    plain, fined = make_trainer(folder="plain"), make_trainer(folder="fined", regularization={"l2": 2.0})
    for step in range(3):
        first, second = plain.train_step(), fined.train_step()
        assert (first.loss == second.loss) == (step == 0)
    batch = fined.objective.parts(3, 1)[0]
    sizes = [float(weight_penalty(each.adapters(batch).detach(), l2=1.0)) for each in (plain, fined)]
    assert sizes[1] < sizes[0]


def test_neftune_is_noise_of_the_stated_size_on_training_alone(make_trainer):
    trainer = make_trainer(regularization={"neftune": 5.0})
    seen: list[torch.Tensor] = []
    embed = trainer.model.get_input_embeddings()
    ids = trainer.objective.parts(0, 1)[0].input_ids
    clean = embed(ids)
    with trainer.base.noise(5.0, trainer._generator(0)):
        seen.append(embed(ids) - clean)
    with trainer.base.noise(5.0, trainer._generator(0)):
        seen.append(embed(ids) - clean)
    bound = 5.0 / math.sqrt(clean.shape[1] * clean.shape[2])
    assert seen[0].equal(seen[1])  # a function of seed, step and part: a resumed run draws the same
    assert float(seen[0].abs().max()) == pytest.approx(bound, rel=0.05)
    assert float(seen[0].std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert embed(ids).equal(clean)
    quiet = make_trainer(folder="quiet")
    assert trainer.train_step().loss != quiet.train_step().loss


def test_a_teacher_meets_no_noise(make_trainer):
    trainer = make_trainer(objective="distill", regularization={"neftune": 50.0})
    batch = trainer.objective.parts(0, 1)[0]
    expected = trainer.objective.targets(batch).log_probs
    found: list[torch.Tensor] = []
    targets = trainer.objective.targets
    trainer.objective.targets = lambda each: (found.append(targets(each).log_probs), targets(each))[1]
    with torch.no_grad():
        noisy = float(trainer.objective.loss(batch, trainer.adapters(batch), trainer._generator(0)))
    assert found[0].equal(expected)
    assert noisy != pytest.approx(loss_at(trainer), rel=1e-3)


def test_multi_task_lora_alone_has_no_encoder_and_learns_what_needs_no_prompt(make_trainer):
    trainer = make_trainer(steps=60, hypernetwork={"generated": False}, margin_every=10, optim={"static_lr": 2e-2})
    assert trainer.plain.encoder is None
    assert {name.split(".")[1] for name, _ in trainer.plain.named_parameters()} == {"static_A", "static_B"}
    measured = []
    trainer.callbacks.append(measured.append)
    final = trainer.run()
    late = sum(metrics.loss for metrics in measured[-10:]) / 10
    # Blind to the prompt it is left with ln 2 for the letter, so with ln 2 / 2 a token of letter and end.
    assert math.log(2) / 2 < late < measured[0].loss / 3
    assert all(metrics.margin is None for metrics in measured)
    loaded = HyperNetwork.from_pretrained(final)
    states = trainer.states.batch(["say a", "say b"])
    A, _ = loaded(*states)[next(iter(loaded(*states)))]
    assert A[0].equal(A[1])


def test_the_prompt_in_context_is_what_an_evaluation_shows(make_trainer):
    trainer = make_trainer(data={"in_context_share": 1.0})
    batch = trainer.objective.parts(0, 1)[0]
    text = trainer.tokenizer.decode(batch.input_ids[0])
    assert text.startswith(f"<system> <user> {batch.prompts[0]} ")
    shares = [
        "say" in trainer.tokenizer.decode(make_trainer(folder=f"s{seed}", seed=seed, data={"in_context_share": 0.5})
        .objective.parts(0, 1)[0].input_ids[0]) for seed in range(12)
    ]  # fmt: skip
    assert 0 < sum(shares) < 12


def test_layers_below_the_first_get_no_adapter_and_no_gradient(make_trainer):
    trainer = make_trainer(hypernetwork={"first_layer": 1})
    assert all(".layers.0." not in name for name in dict(trainer.adapters(trainer.objective.parts(0, 1)[0])))
    inputs: list[bool] = []
    layers = trainer.model.get_decoder().layers
    layers[1].register_forward_pre_hook(
        lambda m, a, k: inputs.append((a[0] if a else k["hidden_states"]).requires_grad), with_kwargs=True
    )
    trainer.train_step()
    assert inputs == [False]
    with pytest.raises(ModelError, match=r"first_layer=9: .* has 2 layers"):
        make_trainer(folder="no", hypernetwork={"first_layer": 9})


def test_each_layer_may_have_the_context_of_its_own_states(make_trainer):
    trainer = make_trainer(steps=60, margin_every=60, hypernetwork={"source": "layers", "encoder_layers": 0})
    states, mask = trainer.states.batch(["say a", "say b"])
    assert states.shape[2] == 2
    assert trainer.plain.encoder(states, mask).shape == (2, 2, 32)
    measured = []
    trainer.callbacks.append(measured.append)
    final = trainer.run()
    assert measured[-1].margin > 1
    loaded = HyperNetwork.from_pretrained(final)
    with torch.no_grad():
        before, after = trainer.plain(states, mask), loaded(states, mask)
        changed = states.clone()
        changed[:, :, 1] = changed[:, :, 1].flip(0)  # the states that enter layer 1 alone
        other = loaded(changed, mask)
    for name in before:
        torch.testing.assert_close(before[name], after[name])
        same = after[name][1].equal(other[name][1])
        assert same == (".layers.0." in name), name


# --- held-out tasks --------------------------------------------------------------------------------------


def categories(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "category": f"c{int(row['task'][1:]) // 2}", "split": split}
        for row in rows
        for split in ("train", "eval")
    ]


def test_whole_categories_are_held_out_and_measured(make_trainer):
    trainer = make_trainer(
        rows=categories(toy_rows(8, 6)), validation={"tasks": 2, "rows": 3, "every": 2}, data={"in_context_share": 0.5}
    )
    held = set(trainer.validation.tasks)
    assert held in ({"t0", "t1"}, {"t2", "t3"}, {"t4", "t5"}, {"t6", "t7"})
    assert held.isdisjoint(example.task for example in trainer.batches.examples)
    assert len(trainer.validation.examples) == 6
    first, second = trainer.train_step(), trainer.train_step()
    assert first.validation_loss is None
    values = [second.validation_loss, second.validation_wrong, second.validation_static, second.validation_in_context]
    assert all(value is not None and 0 < value < 20 for value in values)
    assert len(set(values)) == 4
    other = make_trainer(rows=categories(toy_rows(8, 6)), validation={"tasks": 2}, seed=5, folder="other")
    assert set(other.validation.tasks) == held  # the same for every seed
    with pytest.raises(DataError, match=r"validation.tasks=7: there are 8 tasks; expected at most 6"):
        make_trainer(rows=categories(toy_rows(8, 6)), validation={"tasks": 7}, folder="many")


def test_a_number_of_tasks_may_be_drawn(make_trainer):
    chosen = [
        {
            example.task
            for example in make_trainer(
                rows=toy_rows(8, 6), seed=seed, folder=f"r{seed}", data={"tasks": 3}
            ).batches.examples
        }
        for seed in range(3)
    ]
    assert all(len(tasks) == 3 for tasks in chosen)
    assert len({frozenset(tasks) for tasks in chosen}) > 1
    with pytest.raises(ConfigError, match=r"data.tasks=9: there are 8"):
        make_trainer(rows=toy_rows(8, 6), folder="no", data={"tasks": 9})


def test_changed_rows_are_noticed_on_resume(make_trainer, tmp_path):
    make_trainer(steps=8).run(until=3)
    changed = toy_rows()
    changed[5] = {**changed[5], "outputs": ["c"]}
    with pytest.raises(CheckpointError, match="the rows or paraphrases have changed since it was written"):
        make_trainer(rows=changed, steps=8).run(resume=True)
    assert json.loads((tmp_path / "run" / "step-3" / "trainer.json").read_text())["step"] == 3

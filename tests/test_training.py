"""The loop on a tiny base: it learns, it steers, it moves the hypernetwork alone, and it says what is wrong."""

from __future__ import annotations

import math
import signal
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from promptlora.data import Batch
from promptlora.errors import DataError, ModelError, OutputError, PromptError, TrainingError
from promptlora.hypernet.network import HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.losses import IGNORED
from promptlora.models import load_base
from promptlora.text import PromptStates
from promptlora.train import Trainer, learning_rate_factor, margin_shift, objectives
from promptlora.train import trainer as loop
from tests.helpers import tiny_gpt2
from tests.training_helpers import metric_lines, toy_config, toy_rows, word_tokenizer, write_jsonl


def plain_loss(trainer: Trainer, batch: Batch, lora: Any) -> torch.Tensor:
    return trainer.objective.measure(batch, lora, range(len(batch.prompts)))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# --- the schedule ----------------------------------------------------------------------------------------


def test_the_rate_rises_to_1_and_falls_along_a_cosine():
    factors = [learning_rate_factor(step, 100, 0.1, 0.05) for step in range(100)]
    assert factors[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.05 + 0.95 * 0.5)  # half way down
    assert factors[99] == pytest.approx(0.05, abs=1e-3)
    assert all(a >= b for a, b in pairwise(factors[10:]))


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.data())
def test_the_rate_is_never_0_nor_above_1(steps, warmup, final, data):
    step = data.draw(st.integers(0, steps - 1))
    factor = learning_rate_factor(step, steps, warmup, final)
    assert 0 < factor <= 1 + 1e-12 or (final == 0 and factor >= 0)
    assert learning_rate_factor(0, steps, 0.0, final) == 1.0


# --- it learns, and it steers ----------------------------------------------------------------------------


def test_one_batch_is_overfitted(make_trainer):
    trainer = make_trainer(rows=toy_rows(2, 3), steps=40, prompts_per_batch=2, rows_per_prompt=3)
    assert trainer.batches.order.per_epoch == 1
    losses = [trainer.train_step().loss for _ in range(40)]
    assert losses[0] == pytest.approx(math.log(97), rel=0.5)  # the base's, as the delta is zero at first
    assert losses[-1] < 0.3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hypernetwork": {"source": "embeddings", "static": False}},
        {"hypernetwork": {"head": "core", "rank": 16, "alpha": 32.0}},
    ],
)
def test_the_prompt_decides_the_answer(make_trainer, options):
    """The key test: same inputs, only the prompt differs, and unseen inputs are answered as the prompt says."""
    trainer = make_trainer(steps=60, margin_every=60, checkpoint_every=100, **options)
    measured = []
    trainer.callbacks.append(measured.append)
    final = trainer.run()
    assert measured[-1].loss < math.log(2) / 2 + 0.1  # a LoRA blind to the prompt is left with ln 2 a letter
    assert measured[-1].margin > 1
    hypernetwork = HyperNetwork.from_pretrained(final)
    tokenizer, letters = trainer.tokenizer, ["a", "b"]
    ids = torch.tensor(tokenizer(["<system> <user> w83 w5 <assistant>"] * 2)["input_ids"])
    with torch.no_grad():
        lora = hypernetwork(*trainer.states.batch([f"say {letter}" for letter in letters]))
        with trainer.injector.apply(lora):
            answers = trainer.model(input_ids=ids).logits[:, -1].argmax(-1)
        with trainer.injector.apply(lora, [1, 0]):
            turned = trainer.model(input_ids=ids).logits[:, -1].argmax(-1)
    assert tokenizer.convert_ids_to_tokens(answers.tolist()) == letters
    assert tokenizer.convert_ids_to_tokens(turned.tolist()) == letters[::-1]


def test_the_margin_is_the_loss_under_another_tasks_adapter_minus_the_loss(make_trainer):
    trainer = make_trainer(margin_every=1, steps=4)
    for _ in range(3):
        trainer.train_step()
    batch = trainer.batches[trainer.step]
    with torch.no_grad():
        lora = trainer.hypernetwork(*trainer.states.batch(batch.prompts))
        right = float(plain_loss(trainer, batch, lora))
        turned = replace(batch, prompts=batch.prompts[::-1])
        wrong = float(plain_loss(trainer, batch, trainer.hypernetwork(*trainer.states.batch(turned.prompts))))
    metrics = trainer.train_step()
    assert metrics.loss == pytest.approx(right, rel=1e-5)
    assert metrics.margin == pytest.approx(wrong - right, rel=1e-3, abs=1e-5)


def test_the_margin_meets_another_task_wherever_there_is_one(make_trainer, tmp_path):
    assert margin_shift(["a", "b", "c"]) == 1
    assert margin_shift(["a", "a", "b", "b"]) == 2
    assert margin_shift(["a", "b", "a", "b"]) == 1
    assert margin_shift(["a", "a", "b"]) == 1  # one meets itself whichever way
    assert margin_shift(["a"]) is None
    assert margin_shift(["a", "a"]) is None
    others = write_jsonl(tmp_path / "p.jsonl", [{"task": "t0", "prompts": ["write a"]}])
    trainer = make_trainer(rows=toy_rows(1, 12), margin_every=1, data={"paraphrases": str(others)})
    assert trainer.train_step().margin is None


# --- what moves, and how ---------------------------------------------------------------------------------


def test_only_the_hypernetwork_moves_and_the_base_stays_bitwise(make_trainer, toy_base):
    pair = load_base(toy_base)
    before = {name: value.clone() for name, value in pair[0].state_dict().items()}
    trainer = make_trainer(base_pair=pair, steps=4)
    start = {name: value.detach().clone() for name, value in trainer.plain.named_parameters()}
    for _ in range(4):
        trainer.train_step()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in pair[0].parameters())
    for name, value in pair[0].state_dict().items():
        assert value.equal(before[name]), name
    assert [name for name, value in trainer.plain.named_parameters() if value.equal(start[name])] == []


def test_every_parameter_of_the_hypernetwork_gets_a_gradient(make_trainer):
    trainer = make_trainer()
    trainer.train_step()  # from zero, B stands between the loss and what feeds A
    batch = trainer.batches[1]
    loss = plain_loss(trainer, batch, trainer.hypernetwork(*trainer.states.batch(batch.prompts)))
    loss.backward()
    for name, parameter in trainer.plain.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_each_group_has_its_rate_and_decay(make_trainer):
    trainer = make_trainer(
        optim={"lr": 1e-3, "head_lr_factor": 8.0, "static_lr": 3e-4, "weight_decay": 0.1, "warmup": 0.0}, steps=10
    )
    by_name = dict(trainer.plain.named_parameters())
    expected = {"trunk": (1e-3, 0.1), "heads": (1e-3 * 8.0 / 32, 0.1), "static": (3e-4, 0.0)}
    found: dict[str, tuple[float, float]] = {}
    for group in trainer.optimizer.param_groups:
        names = {name for name, p in by_name.items() if any(p is q for q in group["params"])}
        kind = (
            "static" if any("static" in n for n in names) else "heads" if any("heads" in n for n in names) else "trunk"
        )
        assert all(("static" in n) == (kind == "static") and (".heads." in n) == (kind == "heads") for n in names)
        found[kind] = (group["lr"], group["weight_decay"])
    assert found == {kind: (pytest.approx(rate), decay) for kind, (rate, decay) in expected.items()}
    for step in (1, 2, 3):  # the schedule moves them together
        metrics = trainer.train_step()
        factor = learning_rate_factor(step - 1, 10, 0.0, 0.05)
        assert metrics.lr == pytest.approx(1e-3 * factor)
        assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(1e-3 * 8.0 / 32 * factor)


def test_trunk_and_heads_are_clipped_apart(make_trainer, monkeypatch):
    trainer = make_trainer(optim={"clip": 0.5, "head_clip": 0.01})
    seen: dict[str, float] = {}

    def look(self: Any) -> None:
        groups = trainer._groups
        for kind, parameters in (("trunk", groups["trunk"] + groups["static"]), ("heads", groups["heads"])):
            seen[kind] = float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())

    monkeypatch.setattr(type(trainer.optimizer), "step", look)
    metrics = trainer.train_step()
    assert math.hypot(metrics.trunk_norm, metrics.static_norm) > 0.5
    assert metrics.head_norm > 0.01
    assert seen == {"trunk": pytest.approx(0.5, rel=1e-3), "heads": pytest.approx(0.01, rel=1e-3)}
    assert {id(p) for members in trainer._groups.values() for p in members} == {
        id(p) for p in trainer.plain.parameters()
    }


def test_the_head_runs_on_answer_positions_alone(make_trainer, monkeypatch):
    trainer = make_trainer(margin_every=1)
    rows: list[int] = []
    head = trainer.base.lm_head
    monkeypatch.setattr(trainer.base, "lm_head", lambda hidden: (rows.append(hidden.shape[0]), head(hidden))[1])
    monkeypatch.setattr(trainer.model.lm_head, "forward", lambda *a: pytest.fail("the base's own head ran"))
    trainer.train_step()
    answers = int((trainer.batches[0].labels != IGNORED).sum())
    assert rows == [answers] * 5  # the step, and right, wrong, gibberish and mean adapters


def test_the_loss_is_that_of_the_whole_model_with_the_adapters_on(make_trainer):
    trainer = make_trainer(row_weight="token")
    for _ in range(3):
        trainer.train_step()
    batch = trainer.batches[3]
    with torch.no_grad():
        lora = trainer.hypernetwork(*trainer.states.batch(batch.prompts))
        found = plain_loss(trainer, batch, lora)
        losses = []
        for row in range(6):  # one row at a time, unpadded, by the model's own labels
            length = int((batch.labels[row] != IGNORED).nonzero().max()) + 1
            with trainer.injector.apply(lora.select(row // 3)):
                logits = trainer.model(input_ids=batch.input_ids[row : row + 1, :length]).logits[0]
            losses.append(
                F.cross_entropy(logits[:-1], batch.labels[row, 1:length], reduction="none", ignore_index=IGNORED)
            )
        kept = torch.cat([loss[loss != 0] for loss in losses])
    torch.testing.assert_close(found, kept.mean(), rtol=1e-5, atol=1e-6)


def test_each_prompt_is_encoded_once_a_batch_and_run_through_the_base_once_a_run(make_trainer, monkeypatch):
    encoded: list[int] = []
    through: Counter[str] = Counter()
    encode, load = HyperNetwork.encode, PromptStates._load

    def counted(self, prompt_states, mask):
        encoded.append(prompt_states.shape[0])
        return encode(self, prompt_states, mask)

    def counted_load(self, prompts):
        through.update(prompts)
        return load(self, prompts)

    monkeypatch.setattr(HyperNetwork, "encode", counted)
    monkeypatch.setattr(PromptStates, "_load", counted_load)
    trainer = make_trainer(margin_every=5)
    for _ in range(5):
        trainer.train_step()
    assert encoded == [2] * 5 + [2]  # two prompts for six rows, and no second time for the margin but gibberish
    assert through.pop("say a") == through.pop("say b") == 1
    assert set(through.values()) == {1}
    encoded.clear()
    contrasting = make_trainer(folder="contrasting", margin_every=5, regularization={"contrastive": 0.5})
    contrasting.train_step()
    assert encoded == [2, 2]  # the prompts once, and the other wordings of their tasks


@pytest.mark.parametrize("source", ["hidden", "embeddings"])
def test_activation_checkpointing_gives_the_same_gradients(make_trainer, source):
    gradients = []
    for recompute in (False, True):
        trainer = make_trainer(
            folder=f"run{recompute}",
            activation_checkpointing=recompute,
            hypernetwork={"source": source},
            margin_every=1,
        )
        runs: list[int] = []
        layer = trainer.model.get_decoder().layers[1].self_attn  # recomputation stops before the end of the layer
        handle = layer.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        trainer.train_step()
        assert len(runs) == (6 if recompute else 5)  # forward, again, and four of the margins
        handle.remove()
        batch = trainer.batches[1]
        plain_loss(trainer, batch, trainer.hypernetwork(*trainer.states.batch(batch.prompts))).backward()
        gradients.append({name: p.grad for name, p in trainer.plain.named_parameters()})
        trainer.close()
        assert not trainer.model.is_activation_checkpointing
        assert not any(module.training for module in trainer.model.modules())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_activation_checkpointing_wakes_no_dropout(make_trainer):
    model = tiny_gpt2(torch.float32)  # its dropout is 0.1 in training mode
    pair = (model, word_tokenizer())
    trainer = make_trainer(base_pair=pair, activation_checkpointing=True)
    batch = trainer.batches[0]
    lora = trainer.hypernetwork(*trainer.states.batch(batch.prompts))
    first, second = plain_loss(trainer, batch, lora), plain_loss(trainer, batch, lora)
    assert first.equal(second)
    trainer.close()

    def noisy(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output + module.training * torch.rand_like(output)

    from transformers.modeling_layers import GradientCheckpointingLayer

    layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    handle = layer.register_forward_hook(noisy)
    with pytest.raises(ModelError, match="computes otherwise in training mode"):
        make_trainer(base_pair=pair, activation_checkpointing=True)
    handle.remove()
    assert hooks_of(model) == 0
    assert not any(module.training for module in model.modules())


# --- several prompts, paraphrases, long rows -------------------------------------------------------------


def test_rows_keep_their_own_prompt_where_a_task_has_several(make_trainer):
    rows = [{**row, "task": "one"} for row in toy_rows()]
    trainer = make_trainer(rows=rows)
    assert trainer.batches.prompts == {"one #1": ["say a"], "one #2": ["say b"]}
    for step in range(4):
        batch = trainer.batches[step]
        for row, labels in enumerate(batch.labels):
            word = trainer.tokenizer.convert_ids_to_tokens(int(labels[labels != IGNORED][0]))
            assert batch.prompts[row // 3] == f"say {word}"


def test_paraphrases_are_trained_on(make_trainer, tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"task": "t0", "prompts": ["write a"]}, {"task": "no", "prompts": ["x"]}])
    trainer = make_trainer(data={"paraphrases": str(path), "paraphrase_share": 0.5})
    prompts = {p for step in range(12) for p in trainer.batches[step].prompts}
    assert prompts == {"say a", "say b", "write a"}


def test_too_long_rows_are_counted_and_said(tmp_path, toy_base):
    long = {"task": "t0", "prompt": "say a", "input": "w1 " * 30, "outputs": ["a"]}
    wordy = {"task": "t0", "prompt": "say a", "input": "w1", "outputs": ["a " * 9]}
    data = write_jsonl(tmp_path / "rows.jsonl", [*toy_rows(), long, long, wordy])
    config = toy_config(tmp_path / "run", toy_base, data, data={"max_input_tokens": 20, "max_answer_tokens": 5})
    said: list[str] = []
    with Trainer(config, progress=said.append) as trainer:
        assert trainer.left_out == {"input": 2, "answer": 1}
    assert any("24 rows of 2 tasks" in line and "2 inputs, 1 answers" in line for line in said)
    with pytest.raises(DataError, match="0 rows of 0 tasks make no batch"):
        Trainer(replace(config, data=replace(config.data, max_input_tokens=1)))


def test_answers_that_were_split_into_letters_are_said(tmp_path, toy_base):
    letters = [{"task": "split", "prompt": "say a", "input": "w1", "outputs": list("abc")}] * 12
    mixed = [{**letters[0], "task": "mixed"}, {**letters[0], "task": "mixed", "outputs": ["a"]}]
    for rows, expected in (([*toy_rows(), *letters, *mixed], True), ([*toy_rows(), *mixed], False)):
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        said: list[str] = []
        with Trainer(toy_config(tmp_path / "run", toy_base, data), progress=said.append):
            assert [line for line in said if "warning: all answers of 'split' are single letters" in line] == (
                [line for line in said if "warning" in line]
            )
            assert any("warning" in line for line in said) is expected


def test_a_prompt_that_is_too_long_is_said_before_the_first_step(make_trainer, tmp_path):
    with pytest.raises(PromptError, match="task 'long': prompt of 40 tokens"):
        make_trainer(rows=[*toy_rows(), {"task": "long", "prompt": "w1 " * 40, "input": "w1", "outputs": ["a"]}])
    path = write_jsonl(tmp_path / "p.jsonl", [{"task": "t1", "prompts": ["w2 " * 17]}])
    with pytest.raises(PromptError, match="task 't1': prompt of 17 tokens"):
        make_trainer(data={"paraphrases": str(path)})


# --- life cycle ------------------------------------------------------------------------------------------


def test_hooks_are_released_on_every_path(tmp_path, toy_base, monkeypatch):
    pair = load_base(toy_base)
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    config = toy_config(tmp_path / "run", "", data)
    given = {"model": pair[0], "tokenizer": pair[1]}
    with Trainer(config, **given) as trainer:
        assert hooks_of(pair[0]) > 0
        trainer.train_step()
    assert hooks_of(pair[0]) == 0
    trainer.close()  # twice does no harm
    with pytest.raises(ModelError, match="closed"):
        trainer.train_step()
    with pytest.raises(ZeroDivisionError), Trainer(config, **given):
        raise ZeroDivisionError
    assert hooks_of(pair[0]) == 0
    monkeypatch.setattr(loop, "make_batches", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Trainer(config, **given)
    assert hooks_of(pair[0]) == 0


def test_a_model_that_changes_its_logits_after_the_head_is_refused(make_trainer, toy_base):
    model, tokenizer = load_base(toy_base)
    handle = model.lm_head.register_forward_hook(lambda module, args, output: 30 * torch.tanh(output / 30))
    with pytest.raises(ModelError, match="changes its logits after the head"):
        make_trainer(base_pair=(model, tokenizer))
    handle.remove()
    assert hooks_of(model) == 0


def test_the_initial_weights_are_a_function_of_the_seed_alone(make_trainer, toy_base):
    first = make_trainer().plain.state_dict()
    torch.manual_seed(123)
    torch.rand(7)
    second = make_trainer(base_pair=load_base(toy_base)).plain.state_dict()
    other = make_trainer(seed=1).plain.state_dict()
    assert all(value.equal(second[name]) for name, value in first.items())
    assert not all(value.equal(other[name]) for name, value in first.items())


def test_a_bfloat16_base_trains_a_float32_hypernetwork(make_trainer):
    trainer = make_trainer(base_dtype="bfloat16", steps=30)
    losses = [trainer.train_step().loss for _ in range(30)]
    assert trainer.model.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.plain.parameters()} == {torch.float32}
    assert losses[-1] < losses[0] / 4


# --- what is not finite ----------------------------------------------------------------------------------


def test_a_nan_loss_stops_names_its_rows_and_keeps_the_last_good_checkpoint(make_trainer, monkeypatch):
    rows = [*toy_rows(2, 6), {"task": "t0", "prompt": "say a", "input": "w80 w81 w82", "outputs": ["c"]}]
    trainer = make_trainer(rows=rows, checkpoint_every=1, steps=40)
    bad = trainer.tokenizer.convert_tokens_to_ids("c")
    loss = objectives.sft_loss

    def poisoned(hidden, labels, *args, reduce=True, **options):
        each = loss(hidden, labels, *args, **{**options, "reduce": False})
        each = torch.where((labels == bad).any(1), torch.nan, each)
        return each.mean() if reduce else each

    monkeypatch.setattr(objectives, "sft_loss", poisoned)
    steps: list[int] = []
    trainer.callbacks.append(lambda metrics: steps.append(metrics.step))
    with pytest.raises(TrainingError, match="loss nan") as caught:
        trainer.run()
    says = str(caught.value)
    assert "task 't0' input 'w80 w81 w82'" in says
    assert says.count("task ") == 1  # the other rows of the batch are not to blame
    assert ("no checkpoint yet" in says) == (not steps)
    if steps:
        assert f"step-{steps[-1]} is the last good checkpoint" in says
    weights = trainer.plain.state_dict()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    for path in trainer.checkpoints():
        assert all(bool(value.isfinite().all()) for value in load_file(path / "model.safetensors").values())
    assert [line["step"] for line in metric_lines(trainer.folder)] == steps


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(make_trainer, monkeypatch):
    trainer = make_trainer(checkpoint_every=1)
    trainer.run(until=2)

    def spoil(loss: torch.Tensor) -> None:
        loss.backward()
        next(iter(trainer.plain.generator.heads.parameters())).grad.view(-1)[0] = torch.inf

    monkeypatch.setattr(trainer.accelerator, "backward", spoil)
    before = {name: value.clone() for name, value in trainer.plain.state_dict().items()}
    with pytest.raises(
        TrainingError, match=r"gradient norms .*heads inf.*step-2 is the last good checkpoint.*and 2 more"
    ):
        trainer.train_step()
    assert all(value.equal(before[name]) for name, value in trainer.plain.state_dict().items())
    assert trainer.step == 2


# --- a run -----------------------------------------------------------------------------------------------


def test_a_run_writes_checkpoints_metrics_tensorboard_and_the_hypernetwork(make_trainer):
    trainer = make_trainer(steps=8, checkpoint_every=2, keep_checkpoints=2)
    seen = []
    trainer.callbacks.append(seen.append)
    final = trainer.run()
    assert final == trainer.folder / "final"
    assert [path.name for path in trainer.checkpoints()] == ["step-6", "step-8"]
    assert not [path for path in trainer.folder.iterdir() if path.name.startswith(".")]  # nothing half-written
    lines = metric_lines(trainer.folder)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert ["margin" in line for line in lines] == [False, True] * 4
    assert [line["loss"] for line in lines] == [metrics.loss for metrics in seen]
    written = HyperNetwork.from_pretrained(final)
    for name, value in trainer.plain.state_dict().items():
        assert written.state_dict()[name].equal(value)
    events = EventAccumulator(str(trainer.folder / "logs" / "promptlora")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])
    assert {"loss", "margin", "tokens_per_second", "lr", "trunk_norm", "head_norm"} <= set(events.Tags()["scalars"])


def test_a_folder_that_holds_a_run_is_refused_and_a_file_too(make_trainer, tmp_path):
    make_trainer(steps=3).run()
    with pytest.raises(OutputError, match="holds a run already; pass resume=True"):
        make_trainer(steps=3).run()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file: cannot be made"):
        make_trainer(folder="file").run()


def test_signals_are_handled_in_a_run_and_as_before_after_it(make_trainer):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    inside = {}
    trainer = make_trainer(steps=2)
    trainer.callbacks.append(lambda _: inside.update({number: signal.getsignal(number) for number in before}))
    trainer.run()
    assert all(inside[number] is not before[number] for number in before)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_ends_the_step_writes_a_checkpoint_and_raises(make_trainer, number):
    trainer = make_trainer(steps=8, checkpoint_every=100)
    trainer.callbacks.append(lambda metrics: signal.raise_signal(number) if metrics.step == 4 else None)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert [path.name for path in trainer.checkpoints()] == ["step-4"]
    assert len(metric_lines(trainer.folder)) == 4
    assert not (trainer.folder / "final").exists()


def test_a_second_ctrl_c_stops_at_once(make_trainer):
    trainer = make_trainer(steps=8, checkpoint_every=100)

    def twice(metrics: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    trainer.callbacks.append(twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.checkpoints() == []


def test_hooks_of_others_on_the_base_are_left_alone(make_trainer, toy_base):
    pair = load_base(toy_base)
    with HookBasedLoRAInjector(pair[0]):
        count = hooks_of(pair[0])
        make_trainer(base_pair=pair).close()
        assert hooks_of(pair[0]) == count

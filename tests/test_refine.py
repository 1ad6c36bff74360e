"""Refinement: gradient steps on many adapters at once, each as if it were alone."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import math
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.adapt.refine import RefineSettings, RefineStep, group_rows
from promptlora.adapt.refine.rows import Item, Task, keep_back
from promptlora.adapt.refine.teacher import agreement, taught_items
from promptlora.cli import main
from promptlora.data import Row
from promptlora.errors import ConfigError, DataError, LoRAError, PromptError, PromptLoRAError
from promptlora.lora import LoRAWeights
from promptlora.losses import TeacherTargets
from tests.helpers import random_lora, tiny_llama
from tests.host_helpers import prompts, texts, tiny_network, tiny_prompt_lora
from tests.training_helpers import save_base, write_jsonl

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def tiny():
    made = tiny_prompt_lora()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tiny_core():
    made = tiny_prompt_lora(head="core", context_flag=True)
    yield made
    made.close()


def pairs(count: int, answer: str = "w7", first: int = 0) -> Pairs:
    """Rows whose answer is one word, whatever the input is."""
    return [(f"w{(first + 3 * i) % 80} w{(first + 5 * i) % 80}", answer) for i in range(count)]


def named(prompt: str, rows: Pairs) -> list[dict[str, object]]:
    return [{"prompt": prompt, "input": text, "outputs": [answer]} for text, answer in rows]


def distance(a: LoRAWeights, b: LoRAWeights) -> float:
    return max(float((a.delta(name) - b.delta(name)).abs().max()) for name in a)


# --- the steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tiny", "tiny_core"])
def test_learns_and_leaves_everything_else(which, request):
    lm = request.getfixturevalue(which)
    prompt = prompts(1)[0]
    lora = lm.adapt(prompt)
    lora = lora.detach()
    before = copy.deepcopy((lm.model.state_dict(), lm.hypernetwork.state_dict(), dict(lora.items())))
    seen: list[RefineStep] = []
    better = lm.refine(lora, prompt, rows=pairs(16), steps=40, lr=2e-2, on_step=seen.append)
    (record,) = better.provenance
    assert record["loss_after"] < 0.5 * record["loss_before"]
    assert record["kept_back"] == 4
    assert record["rows"] == 16
    assert record["start"] == "given"
    assert [step.step for step in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].best == (record["best_step"],)
    assert seen[-1].steps == 40
    assert lm.generate("w3 w5", better, max_new_tokens=3).startswith("w7")
    for old, new in zip(before, (lm.model.state_dict(), lm.hypernetwork.state_dict(), dict(lora.items())), strict=True):
        for key, value in old.items():
            torch.testing.assert_close(new[key], value, rtol=0, atol=0)
    assert not any(p.grad is not None for p in (*lm.model.parameters(), *lm.hypernetwork.parameters()))
    assert not any(matrix.requires_grad for pair in better.values() for matrix in pair)


def test_equals_a_plain_loop_of_full_logits(tiny_core):
    """Two steps on three rows against cross-entropy over whole logits, autograd through ``A @ C @ B`` and torch's Adam."""
    lm, prompt, rows = tiny_core, prompts(1)[0], pairs(3)
    lora = lm.adapt(prompt)
    found = lm.refine(lora, prompt, rows=rows, steps=2, lr=1e-2, clip=1e9, rows_per_step=3)
    cores = {name: lora.stored[name].C.clone().requires_grad_() for name in lora}
    optimizer = torch.optim.Adam(cores.values(), betas=(0.9, 0.98))
    for factor in (1.0, 0.5 * (1 + torch.cos(torch.tensor(0.0)).item())):  # warm-up of one step, then the top
        losses = []
        for text, answer in rows:
            start = lm.host.render(text)
            ids = [*start, lm.tokenizer.convert_tokens_to_ids(answer), lm.tokenizer.eos_token_id]
            free = {name: (lora.stored[name].A[None], cores[name] @ lora.stored[name].B) for name in lora}
            with lm.host.using(LoRAWeights(free, lora.scaling)):
                logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
            losses.append(F.cross_entropy(logits[len(start) - 1 : -1], torch.tensor(ids[len(start) :])))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        optimizer.step()
    for name in lora:
        torch.testing.assert_close(found.stored[name].C, cores[name].detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("which", ["tiny", "tiny_core"])
def test_alone_or_beside_others(which, request):
    """Adapters with 3, 9 and 16 rows of unequal length, in any order, end where each ends alone."""
    lm = request.getfixturevalue(which)
    three, rows = prompts(3), [pairs(3, "w7"), pairs(9, "w9 w3", 2), pairs(16, "w11", 5)]
    settings = {"steps": 9, "lr": 5e-3, "starts": ("given", "zero"), "race_steps": 2, "patience": 2, "measure_every": 2}
    lora = lm.adapt(three).detach()
    every = [row for prompt, some in zip(three, rows, strict=True) for row in named(prompt, some)]
    together = lm.refine(lora, three, rows=every, **settings)
    turned = lm.refine(lora.select([2, 0, 1]), [three[2], three[0], three[1]], rows=every, **settings)
    assert distance(together.select([2, 0, 1]), turned) < 1e-4
    for i in range(3):
        alone = lm.refine(lora.select(i), three[i], rows=rows[i], **settings)
        assert distance(alone, together.select(i)) < 1e-4, i
        assert distance(alone, lora.select(i)) > 1e-3
        assert alone.provenance[0]["best_step"] == together.provenance[i]["best_step"]


def test_seed_decides(tiny):
    prompt, settings = prompts(1)[0], {"rows": pairs(12), "steps": 4}
    lora = tiny.adapt(prompt)
    first = tiny.refine(lora, prompt, seed=3, **settings)
    assert distance(first, tiny.refine(lora, prompt, seed=3, **settings)) == 0
    assert distance(first, tiny.refine(lora, prompt, seed=4, **settings)) > 1e-5


def test_forms(tiny_core):
    """Cores alone leave the factors; ``all`` gives each adapter its own; the free form stays free."""
    two, rows = prompts(2), [row for prompt in prompts(2) for row in named(prompt, pairs(4))]
    lora = tiny_core.adapt(two)
    cores = tiny_core.refine(lora, two, rows=rows, steps=2)
    every = tiny_core.refine(lora, two, rows=rows, steps=2, moves="all")
    assert cores.is_shared
    assert not every.is_shared
    for name in lora:
        assert torch.equal(cores.stored[name].A, lora.stored[name].A)
        assert torch.equal(cores.stored[name].B, lora.stored[name].B)
        assert not torch.equal(every[name][0], lora[name][0])
    free = random_lora(tiny_core.injector.projections, 2, dtype=torch.float32)
    assert distance(tiny_core.refine(free, two, rows=rows, steps=2), free) > 1e-4


def test_never_worse_than_the_start_on_rows_that_are_kept_back(tiny):
    prompt = prompts(1)[0]
    lora = tiny.refine(tiny.adapt(prompt), prompt, rows=pairs(16), steps=40, lr=2e-2)
    found = tiny.refine(lora, prompt, rows=pairs(16), steps=20, lr=5.0, patience=2, measure_every=1)
    (record,) = found.provenance
    assert record["best_step"] == 0
    assert record["loss_after"] == record["loss_before"]
    assert distance(found, lora) == 0
    few = tiny.refine(lora, prompt, rows=pairs(7), steps=3, lr=1e-3)
    assert few.provenance[0]["kept_back"] == 0
    assert few.provenance[0]["best_step"] == 3


def test_an_adapter_ends_when_it_gets_no_better(tiny):
    seen: list[RefineStep] = []
    prompt = prompts(1)[0]
    tiny.refine(
        tiny.adapt(prompt), prompt, rows=pairs(8), steps=50, lr=5.0, patience=2, measure_every=1, on_step=seen.append
    )
    assert len(seen) < 20
    assert seen[-1].active == 0


def test_the_best_start_goes_on(tiny_core):
    prompt = prompts(1)[0]
    good = tiny_core.refine(tiny_core.adapt(prompt), prompt, rows=pairs(16), steps=40, lr=3e-2)
    spoilt = LoRAWeights(
        {name: form._replace(C=form.C * -1) for name, form in good.stored.items()}, good.scaling
    )  # worse than no adapter at all
    found = tiny_core.refine(spoilt, prompt, rows=pairs(16), steps=6, lr=1e-3, starts=("given", "zero"), race_steps=2)
    assert found.provenance[0]["start"] == "zero"
    kept = tiny_core.refine(
        good, prompt, rows=pairs(16), steps=6, lr=1e-3, starts=("given", "zero", "static"), race_steps=2
    )
    assert kept.provenance[0]["start"] == "given"
    short = tiny_core.refine(spoilt, prompt, rows=pairs(4), steps=6, lr=1e-3, starts=("given", "zero"), race_steps=2)
    assert short.provenance[0]["start"] == "zero"
    assert short.provenance[0]["best_step"] == 6


def test_a_loss_that_is_not_finite_ends_one_adapter_alone():
    model = tiny_llama(torch.float32)
    lm = tiny_prompt_lora(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[lm.tokenizer.convert_tokens_to_ids("w83")] = float("nan")
    two = prompts(2)
    rows = [*named(two[0], [("w83", "w1"), ("w83 w2", "w1")]), *named(two[1], pairs(4))]
    lora = lm.adapt(two)
    with pytest.warns(UserWarning, match="step 1: loss nan"):
        found = lm.refine(lora, two, rows=rows, steps=3)
    assert distance(found.select(0), lora.select(0)) == 0
    alone = lm.refine(lora.select(1), two[1], rows=pairs(4), steps=3)
    assert distance(found.select(1), alone) < 1e-4
    assert distance(alone, lora.select(1)) > 1e-4
    lm.close()


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("starts", [(), ("given", "zero")])
def test_without_kept_rows_no_step_is_returned_whose_loss_is_not_finite(tiny, steps, starts):
    """An adapter of no update whose first step is of an absurd size: what comes back still answers."""
    prompt, rows = prompts(1)[0], pairs(4)
    written = tiny.adapt(prompt)
    lora = LoRAWeights({name: (A, torch.zeros_like(B)) for name, (A, B) in written.items()}, 1e18)
    found = tiny.refine(lora, prompt, rows=rows, steps=steps, lr=9.0, starts=starts, race_steps=1)
    (record,) = found.provenance
    assert record["best_step"] == 0
    assert "is returned" in record["note"]
    assert math.isfinite(tiny.score([rows[0][0]], [rows[0][1]], found)[0])


def test_a_record_is_json_and_of_the_prompt_that_was_refined():
    """Rows that are kept back can have no finite loss; the start can come from another prompt."""
    model = tiny_llama(torch.float32)
    lm = tiny_prompt_lora(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[lm.tokenizer.convert_tokens_to_ids("w83")] = float("nan")
    first, second = prompts(2)
    rows = [(f"w83 w{i}", "w1") for i in range(8)]
    with pytest.warns(UserWarning, match="step 1: loss nan"):
        (record,) = lm.refine(lm.adapt(first), second, rows=rows, steps=3).provenance
    assert record["loss_before"] is record["loss_after"] is None
    json.dumps(record, allow_nan=False)
    assert record["prompt"] == second
    assert record["prompt_sha256"] == hashlib.sha256(second.encode()).hexdigest()
    lm.close()


def test_stopping_keeps_the_best_so_far(tiny):
    prompt, seen = prompts(1)[0], []
    lora = tiny.adapt(prompt)

    def interrupt(step: RefineStep) -> None:
        seen.append(step)
        if step.step == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="stopped"):
        found = tiny.refine(lora, prompt, rows=pairs(4), steps=20, on_step=interrupt)
    assert len(seen) == 1
    assert found.provenance[0]["best_step"] == 1
    assert found.provenance[0]["stopped"]
    with pytest.warns(UserWarning, match="stopped"):
        none = tiny.refine(lora, prompt, rows=pairs(4), should_stop=lambda: True)
    assert distance(none, lora) == 0


def test_other_threads_get_their_own_answers_meanwhile(tiny):
    prompt, inputs = prompts(1)[0], texts(4)
    lora, other = tiny.adapt(prompt), tiny.adapt(prompts(2)[1])
    expected = tiny.generate(inputs, other.select([0] * 4), max_new_tokens=4)
    plain = tiny.refine(lora, prompt, rows=pairs(12), steps=6)
    found: list[list[str]] = []
    done = threading.Event()

    def answer() -> None:
        while not done.is_set() or not found:
            found.append(tiny.generate(inputs, other.select([0] * 4), max_new_tokens=4))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        beside = tiny.refine(lora, prompt, rows=pairs(12), steps=6)
    finally:
        done.set()
        thread.join()
    assert all(answers == expected for answers in found)
    assert distance(plain, beside) == 0


# --- no labels ---------------------------------------------------------------------------------------------


def test_learns_from_a_teacher_that_reads_the_prompt(tiny_core):
    prompt = prompts(1)[0]
    zero = LoRAWeights({n: f._replace(C=torch.zeros_like(f.C)) for n, f in tiny_core.adapt(prompt).stored.items()}, 2.0)
    inputs = [f"w{i} w{2 * i}" for i in range(24)]
    found = tiny_core.refine(
        zero, prompt, inputs=inputs, teacher="base", steps=40, lr=3e-2, answer_tokens=4, measure_every=2, patience=20
    )
    (record,) = found.provenance
    assert record["inputs"] == 24
    assert record["kept_back"] == 6
    assert record["rows"] == 0
    assert record["loss_after"] < 0.8 * record["loss_before"]


def test_what_the_teacher_says(tiny_core):
    """Answers and distributions equal those of one row at a time, over whole logits."""
    two, inputs = prompts(2), [texts(3), texts(5)[2:]]
    lora = tiny_core.adapt(two, in_context=True)
    items = taught_items(tiny_core.host, two, inputs, lora, answer_tokens=5, top_k=7, stop=lambda: False)
    for number, (prompt, some) in enumerate(zip(two, inputs, strict=True)):
        for item, text in zip(items[number], some, strict=True):
            expected = tiny_core.generate(text, lora.select(number), in_context=prompt, max_new_tokens=5)
            assert tiny_core.tokenizer.decode(item.answers[0], skip_special_tokens=True).strip() == expected
            assert item.ids == tiny_core.host.render(text)
            read = tiny_core.host.render(text, prompt)
            with tiny_core.host.evaluating(lora.select(number)):
                logits = tiny_core.model(input_ids=torch.tensor([read + item.answers[0]])).logits[0]
            top = logits[len(read) - 1 : -1].log_softmax(-1).topk(7)
            torch.testing.assert_close(item.targets.log_probs, top.values, rtol=1e-4, atol=1e-4)
            assert torch.equal(item.targets.ids, top.indices)
    stopped = taught_items(tiny_core.host, two, inputs, lora, answer_tokens=5, top_k=7, stop=lambda: True)
    assert stopped is None


def test_agreement_counts_the_tokens_that_would_be_said(tiny):
    lora = tiny.adapt(prompts(1)[0])
    text = texts(1)[0]
    ids = torch.tensor([tiny.host.render(text)])
    said = tiny.host.generate(ids, torch.ones_like(ids), lora, max_new_tokens=4)[0].tolist()
    none = TeacherTargets(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.long))
    assert agreement(tiny.host, [[Item(tiny.host.render(text), [said], none)]], lora) == [1.0]
    wrong = [said[0] + 1, *said[1:]]
    (share,) = agreement(tiny.host, [[Item(tiny.host.render(text), [wrong], none)]], lora)
    assert share < 1.0
    three = [Item(tiny.host.render(f"w1 {text}"), [said], none), Item(ids[0].tolist(), [said], none)]
    both = LoRAWeights.stack([lora, tiny.adapt(prompts(2)[1])])
    alone = [agreement(tiny.host, [items], both.select(i))[0] for i, items in enumerate((three[1:], three))]
    assert agreement(tiny.host, [three[1:], three], both) == alone


def test_rows_decide_between_teacher_and_start(tiny_core):
    """A teacher that says something else than the rows never takes the place of a start that knows them."""
    prompt = prompts(1)[0]
    good = tiny_core.refine(tiny_core.adapt(prompt), prompt, rows=pairs(16), steps=40, lr=3e-2)
    found = tiny_core.refine(
        good, prompt, rows=pairs(6, first=1), inputs=[text for text, _ in pairs(12)], steps=12, lr=1e-2, teacher="base",
        answer_tokens=3,
    )  # fmt: skip
    assert found.provenance[0]["best_step"] == 0
    assert distance(found, good) == 0


def test_inputs_that_the_base_makes_up(tiny):
    prompt = prompts(1)[0]
    lora = tiny.adapt(prompt)
    one, two = (tiny.refine(lora, prompt, inputs=6, steps=2, answer_tokens=3, seed=1) for _ in range(2))
    assert 2 <= one.provenance[0]["inputs"] <= 6
    assert distance(one, two) == 0


# --- rows and their order ----------------------------------------------------------------------------------


def test_rows_of_a_step_come_up_once_in_an_epoch():
    items = [Item([i], [[i]]) for i in range(7)]
    task = Task("say", items, [])
    drawn = [item.ids[0] for step in range(7) for item, _ in task.drawn(step, 3, 0)]
    assert [sorted(drawn[at : at + 7]) for at in (0, 7, 14)] == [list(range(7))] * 3
    assert drawn != [item.ids[0] for step in range(7) for item, _ in Task("other", items, []).drawn(step, 3, 0)]


@pytest.mark.parametrize(("count", "kept"), [(2, 0), (7, 0), (8, 2), (16, 4), (64, 16), (200, 16)])
def test_how_many_rows_are_kept_back(count, kept):
    learned, judged = keep_back("say", [Item([i], [[i]]) for i in range(count)], 0)
    assert len(judged) == kept
    assert len(learned) == count - kept
    assert not {item.ids[0] for item in learned} & {item.ids[0] for item in judged}


def test_rows_of_one_input_are_learned_or_kept_back_and_never_both():
    items = [Item([i // 3], [[i]]) for i in range(60)]
    for seed in range(5):
        learned, judged = keep_back("say", items, seed)
        assert len(judged) == 15
        assert len(learned) == 45
        assert not {item.ids[0] for item in learned} & {item.ids[0] for item in judged}
    assert keep_back("say", [Item([1], [[i]]) for i in range(12)], 0)[1] == []


def test_an_adapter_for_a_prompt_in_the_context_learns_with_the_prompt_in_the_context(tiny_core):
    """Its rows are read as they are where it is used; the losses are those of ``score`` in that context."""
    two, rows = prompts(2), pairs(4)
    lora = LoRAWeights.stack([tiny_core.adapt(two[0], in_context=True), tiny_core.adapt(two[1])])
    seen: list[RefineStep] = []
    found = tiny_core.refine(lora, two, rows=[*named(two[0], rows), *named(two[1], rows)], steps=1, on_step=seen.append)
    host = tiny_core.host
    for number, shown in enumerate((two[0], None)):
        expected = []
        for text, answer in rows:
            ids = host.render(text, shown)
            answer_ids = [*host.tokenizer(answer, add_special_tokens=False)["input_ids"], host.tokenizer.eos_token_id]
            with torch.no_grad(), host.evaluating(lora.select(number)):
                logits = tiny_core.model(input_ids=torch.tensor([ids + answer_ids])).logits[0, len(ids) - 1 : -1]
            expected.append(float(F.cross_entropy(logits, torch.tensor(answer_ids))))
        assert seen[0].loss[number] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert [record["in_context"] for record in found.provenance] == [True, False]
    taught = taught_items(
        host, two, [["w1"] * 2] * 2, None, answer_tokens=2, top_k=3, stop=bool, in_context=[True, False]
    )
    assert [items[0].ids for items in taught] == [host.render("w1", two[0]), host.render("w1")]


def test_rows_of_any_kind_are_grouped_by_prompt():
    row = Row(task="t", prompt="say", input="a", outputs=("b",))
    mixed = [row, {"input": "c", "outputs": "d"}, ("e", "f"), ["g", ["h", "i"]]]
    (found,) = group_rows(["say"], mixed)
    assert [(r.input, r.outputs) for r in found] == [("a", ("b",)), ("c", ("d",)), ("e", ("f",)), ("g", ("h", "i"))]
    two = group_rows(["p", "q"], [*named("q", pairs(2)), *named("p", pairs(3))])
    assert [len(rows) for rows in two] == [3, 2]


LONG = ("w1 " * 200, "w2")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ConfigError, "neither rows nor inputs"),
        ({"rows": pairs(1)}, DataError, "Expected 2 or more"),
        ({"rows": []}, DataError, "Expected 2 or more"),
        ({"rows": [LONG, LONG]}, DataError, "short enough"),
        ({"rows": "rows.jsonl"}, DataError, "Expected a list of rows"),
        ({"rows": [*pairs(2), 7]}, DataError, r"rows\[2\]"),
        ({"rows": [*pairs(2), ("w1", "")]}, DataError, r"rows\[2\]: outputs"),
        ({"rows": [*pairs(2), *named("another prompt", pairs(2))]}, DataError, "is not one of the 1 prompts"),
        ({"inputs": "one text"}, DataError, "Expected a list of texts"),
        ({"inputs": ["w1"]}, DataError, "Expected 2 or more texts"),
        ({"inputs": ["w1", 2]}, DataError, "inputs"),
        ({"inputs": [LONG[0]] * 3}, DataError, "short enough"),
        ({"inputs": 1}, ConfigError, "inputs=1"),
        ({"rows": pairs(4), "steps": 0}, ConfigError, "steps"),
        ({"rows": pairs(4), "stepz": 1}, ConfigError, "did you mean 'steps'"),
        ({"rows": pairs(4), "lr": -1.0}, ConfigError, "lr"),
        ({"rows": pairs(4), "starts": ["warm"]}, ConfigError, "starts"),
        ({"rows": pairs(4), "moves": "A"}, ConfigError, "moves"),
    ],
)
def test_bad_input_is_told_in_one_line(tiny, options, error, words):
    prompt = prompts(1)[0]
    with pytest.raises(error, match=words) as told:
        tiny.refine(tiny.adapt(prompt), prompt, **options)
    assert "\n" not in str(told.value)
    assert isinstance(told.value, PromptLoRAError)


def test_adapters_that_do_not_fit(tiny):
    prompt = prompts(1)[0]
    lora = tiny.adapt(prompts(2))
    with pytest.raises(LoRAError, match="2 adapters for 1 prompts"):
        tiny.refine(lora, prompt, rows=pairs(4))
    with pytest.raises(DataError, match="names no prompt"):
        tiny.refine(lora, prompts(2), rows=pairs(4))
    with pytest.raises(PromptError, match="empty"):
        tiny.refine(lora.select(0), " ", rows=pairs(4))
    wide = tiny_prompt_lora(tiny_llama(torch.float32, hidden_size=48, num_attention_heads=6))
    with pytest.raises(LoRAError, match="expected in 32"):
        tiny.refine(wide.adapt(prompt), prompt, rows=pairs(4))
    named_base = LoRAWeights(dict(lora.select(0).items()), 2.0, base_model="someone/other")
    tiny.model.config.name_or_path = "someone/this"
    try:
        with pytest.raises(LoRAError, match="made for base someone/other"):
            tiny.refine(named_base, prompt, rows=pairs(4))
    finally:
        tiny.model.config.name_or_path = ""
    with pytest.raises(LoRAError, match="does not fit the others"):
        tiny.refine(
            random_lora(tiny.injector.projections, dtype=torch.float32), prompt, rows=pairs(4), starts=("static",)
        )
    wide.close()


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="race_steps"):
        RefineSettings(race_steps=-1)
    with pytest.raises(ConfigError, match="starts"):
        RefineSettings(starts=("given", "given"))


# --- files -------------------------------------------------------------------------------------------------


def test_files_say_how_an_adapter_came_about(tiny, tmp_path):
    two = prompts(2)
    rows = [row for prompt in two for row in named(prompt, pairs(8))]
    better = tiny.refine(tiny.adapt(two), two, rows=rows, steps=2, seed=5)
    better.save(tmp_path / "both.safetensors")
    read = LoRAWeights.load(tmp_path / "both.safetensors")
    assert read.provenance == better.provenance
    assert read.provenance[1]["prompt"] == two[1]
    assert {"hypernetwork_weights", "rows", "steps", "seed", "loss_after"} <= set(read.provenance[0])
    better.select(1).save_peft(tmp_path / "one")
    assert LoRAWeights.load_peft(tmp_path / "one").provenance == (better.provenance[1],)
    again = LoRAWeights.stack([better.select(1).to(torch.float64), better.free().select(0).to(torch.float64)])
    assert [entry["prompt"] for entry in again.provenance] == two[::-1]
    plain = tiny.adapt(two)
    assert [entry["prompt"] for entry in plain.provenance] == two
    assert "rows" not in plain.provenance[0]
    plain.save(tmp_path / "plain.safetensors")
    assert LoRAWeights.load(tmp_path / "plain.safetensors").provenance == plain.provenance


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a tiny base and of a hypernetwork for it."""
    folder = tmp_path_factory.mktemp("network")
    model = tiny_llama(torch.float32)
    tiny_network(model).save_pretrained(folder / "hypernetwork")
    return save_base(folder / "base"), folder / "hypernetwork"


def command(network: tuple[Path, Path], *arguments: object) -> int:
    base, hypernetwork = network
    return main(
        ["refine", "--base", str(base), "--hypernetwork", str(hypernetwork), "--device", "cpu", *map(str, arguments)]
    )


def test_command_with_one_prompt(network, tmp_path, capsys):
    prompt = prompts(1)[0]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"input": text, "outputs": answer} for text, answer in pairs(8)])
    assert command(network, "--prompt", prompt, "--rows", rows, "-o", tmp_path / "out", "--steps", 3, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (record,) = told["adapters"]
    assert record["rows"] == 8
    assert record["steps"] == 3
    assert not told["stopped"]
    assert LoRAWeights.load_peft(tmp_path / "out").provenance[0]["prompt"] == prompt


def test_command_reads_inputs_from_csv_and_help_tells_the_defaults(network, tmp_path, capsys, monkeypatch):
    (tmp_path / "texts.csv").write_text("input\nw1 w2\nw3\nw4\n", encoding="utf-8")
    arguments = ("--prompt", prompts(1)[0], "--inputs", tmp_path / "texts.csv", "-o", tmp_path / "out", "--steps", 1)
    assert command(network, *arguments) == 0
    told = capsys.readouterr()
    assert "inputs" in told.out
    assert "fewer than 8 inputs" in told.err
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["refine", "--help"]) == 0
    text = capsys.readouterr().out
    defaults = RefineSettings()
    for told in (defaults.steps, defaults.rows_per_step, "given", defaults.teacher):
        assert f"Default: {told}." in text
    assert '"outputs": ["12:30"]' in text


def test_command_with_many_prompts_and_inputs(network, tmp_path, capsys):
    two = prompts(2)
    rows = write_jsonl(tmp_path / "rows.jsonl", [row for prompt in two for row in named(prompt, pairs(4))])
    assert command(network, "--rows", rows, "-o", tmp_path / "out", "--steps", 2) == 0
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(folders) == 2
    assert folders[0].startswith("000-")
    told = capsys.readouterr()
    assert "best step" in told.out
    assert "–" not in told.out  # no columns of losses that were not measured
    assert "fewer than 8 rows: nothing was kept back" in told.err
    assert f'promptlora run --adapter {tmp_path / "out" / folders[0]} "an input"' in told.out
    (tmp_path / "texts.txt").write_text("w1 w2\n\nw3\nw4 w5 w6\n", encoding="utf-8")
    assert command(
        network, "--prompt", two[0], "--inputs", tmp_path / "texts.txt", "-o", tmp_path / "taught", "--steps", 2, "--json"
    ) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["adapters"][0]["inputs"] == 3


def test_command_that_is_interrupted_writes_the_best_so_far(network, tmp_path, capsys, monkeypatch):
    module = importlib.import_module("promptlora.cli.refine")  # the package's attribute is the command
    real = module.described

    def interrupted(step: RefineStep) -> str:
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)
        return real(step)

    monkeypatch.setattr(module, "described", interrupted)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"input": text, "outputs": answer} for text, answer in pairs(4)])
    code = command(network, "--prompt", prompts(1)[0], "--rows", rows, "-o", tmp_path / "out", "--steps", 50)
    assert code == 130
    assert "best so far" in capsys.readouterr().err
    assert LoRAWeights.load_peft(tmp_path / "out").provenance[0]["best_step"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "say w1"], "no examples"),
        (["--prompt", "say w1", "--rows", "one.jsonl"], "Expected 2 or more"),
        (["--prompt", "say w1", "--rows", "two.jsonl"], "is not one of the 1 prompts"),
        (["--rows", "one.jsonl"], "prompt=None; expected a text; add it to the row, or pass --prompt for all rows"),
        (["--prompt", "say w1", "--rows", "odd.jsonl"], 'non-empty texts (found "output"; did you mean "outputs"?)'),
        (["--prompt", "say w1", "--rows", "missing.jsonl"], "no such file"),
        (["--inputs", "texts.txt"], "no prompt"),
        (["--prompt", "say w1", "--inputs", "texts.txt", "--make-inputs", "4"], "Expected one of them"),
        (["--prompt", "say w1", "--rows", "ok.jsonl", "--starts", "warm"], "starts"),
        (["--prompt", "say w1", "--rows", "ok.jsonl", "--teacher", "me"], "teacher"),
    ],
)
def test_command_refuses(network, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "one.jsonl", [{"input": "w1", "outputs": "w2"}])
    write_jsonl(tmp_path / "odd.jsonl", [{"input": "w1", "output": "w2"}])
    write_jsonl(tmp_path / "ok.jsonl", [{"input": "w1", "outputs": "w2"}] * 2)
    write_jsonl(tmp_path / "two.jsonl", [row for p in ("say w1", "say w2") for row in named(p, pairs(2))])
    (tmp_path / "texts.txt").write_text("w1\nw2\n", encoding="utf-8")
    assert command(network, *arguments, "-o", "out") == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert not Path("out").exists()


# --- the real base -----------------------------------------------------------------------------------------


def test_real_base(lm: PromptLoRA):
    prompt = "Answer with one word."
    rows = [("The sky is", "blue"), ("Grass is", "green"), ("Snow is", "white"), ("Coal is", "black")]
    better = lm.refine(lm.adapt(prompt), prompt, rows=rows, steps=6, rows_per_step=4, lr=5e-3)
    texts_in, answers = [text for text, _ in rows], [answer for _, answer in rows]
    before = sum(lm.score(texts_in, answers, lm.adapt(prompt)))
    assert sum(lm.score(texts_in, answers, better)) > before + 4  # nats, over four answers

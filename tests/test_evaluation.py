"""Scores, controls, reports and resuming of evaluations."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from promptlora import HyperNetwork, HyperNetworkConfig, PromptLoRA, find_projections
from promptlora import evaluate as evaluation
from promptlora.data import Row
from promptlora.errors import DataError, OutputError, PromptLoRAError
from promptlora.evaluate import (
    Answer,
    best_constant,
    bootstrap_interval,
    choose_examples,
    constant_score,
    constant_scores,
    evaluate,
    exact_match,
    first_line,
    normalize,
    permute_tasks,
    ratio_interval,
    read_tasks,
    rescore,
    rouge_l,
    score,
    summarize,
)
from promptlora.models import base_fingerprint, load_base
from tests.training_helpers import write_jsonl

ROWS = [
    Row(task="a", prompt="Say yes.", input="one", outputs=("yes",), metric="exact_match"),
    Row(task="a", prompt="Say yes.", input="two", outputs=("yes", "Yes!"), metric="exact_match"),
    Row(task="b", prompt="Repeat.", input="the cat sat", outputs=("the cat sat",)),
    Row(task="b", prompt="Repeat.", input="a dog", outputs=("a dog",)),
]


def test_exact_match_ignores_case_and_punctuation_only():
    assert exact_match("Yes.", ["yes"]) == 100
    assert exact_match("yes it is", ["yes"]) == 0
    assert exact_match("?", ["!"]) == 0
    assert exact_match("", ["yes"]) == 0


def test_rouge_l_is_the_longest_common_subsequence_f1():
    # 3 of 4 words and 3 of 3: precision 3/4, recall 1
    assert rouge_l("the cat sat down", ["the cat sat"]) == pytest.approx(100 * 2 * 0.75 / 1.75)
    assert rouge_l("dogs", ["nothing", "dog"]) == 100  # stemmed, nearest output


@given(st.text(max_size=30))
def test_normalize_is_idempotent(text):
    assert normalize(normalize(text)) == normalize(text)


def test_first_line_and_score():
    assert first_line("\n\n yes \nno") == " yes "
    assert first_line("") == ""
    assert score("exact_match", "yes", ["yes"]) == 100
    assert score("rougeL", "a b", ["a c"]) == pytest.approx(50)


def rows_with(outputs: list[str] | list[tuple[str, ...]], metric: str = "rougeL", task: str = "t") -> list[Row]:
    each = [(output,) if isinstance(output, str) else output for output in outputs]
    return [Row(task=task, prompt="p", input=str(i), outputs=o, metric=metric) for i, o in enumerate(each)]


@given(st.text("ab c", max_size=12), st.lists(st.text("ab c", max_size=12), min_size=1, max_size=3))
def test_rouge_l_is_that_of_the_rouge_score_package(answer, outputs):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = max(scorer.score(output, answer)["rougeL"].fmeasure for output in outputs)
    assert rouge_l(answer, outputs) == pytest.approx(100 * expected)


def test_the_best_constant_answer_of_labels_is_the_one_that_most_rows_accept():
    rows = rows_with(list("001"), "exact_match")
    assert constant_score(rows, best_constant(rows)) == pytest.approx(200 / 3)
    # "x" is the most frequent output as it is written, "Yes" the one that most rows accept
    rows = rows_with(["x", "x", "Yes", "yes.", "YES"], "exact_match")
    assert best_constant(rows) == "Yes"
    assert constant_score(rows, "x") == pytest.approx(40)


def test_the_best_constant_answer_of_texts_need_not_be_the_most_frequent():
    rows = rows_with(["none", "none", "a red car", "a blue car", "a car"])
    assert best_constant(rows) == "a car"
    assert constant_score(rows, "a car") == pytest.approx((80 + 80 + 100) / 5)
    assert constant_score(rows, "none") == pytest.approx(40)


@given(st.lists(st.sampled_from(["a", "b", "a b", "b c d", "A.", "d"]), min_size=1, max_size=8), st.booleans())
def test_no_output_scores_above_the_best_constant_answer(outputs, labels):
    rows = rows_with(outputs, "exact_match" if labels else "rougeL")
    assert constant_score(rows, best_constant(rows)) == max(constant_score(rows, output) for output in outputs)


def test_a_constant_answer_chosen_on_other_rows_is_scored_on_the_scored_ones():
    rows = rows_with(["yes", "yes", "no"], "exact_match")
    other = [replace(row, input=f"other {i}") for i, row in enumerate(rows_with(["no", "no", "yes"], "exact_match"))]
    upper, theirs = constant_scores(rows, other)
    assert upper == pytest.approx(200 / 3)
    assert theirs == pytest.approx(100 / 3)
    assert constant_scores(rows) == (upper, None)
    assert constant_scores(rows, rows) == (upper, None)  # a scored row is no other row
    unlabelled = [replace(row, input="new", outputs=()) for row in rows]
    assert constant_scores(rows, unlabelled) == (upper, None)


def test_ratio_interval_holds_the_ratio():
    low, high = ratio_interval([4.0, 6.0] * 20, [10.0, 10.0] * 20)
    assert low < 0.5 < high
    assert high - low < 0.1
    assert all(math.isnan(value) for value in ratio_interval([1.0], [0.0]))


@given(st.integers(2, 40), st.integers(0, 100))
def test_no_task_keeps_its_prompt(count, seed):
    tasks = [f"t{i}" for i in range(count)]
    swapped = permute_tasks(tasks, seed)
    assert sorted(swapped.values()) == sorted(tasks)
    assert all(a != b for a, b in swapped.items())


def test_one_task_has_no_wrong_prompt():
    with pytest.raises(DataError, match="two or more"):
        permute_tasks(["only"])


def test_bootstrap_interval_holds_the_mean_and_narrows():
    few, many = bootstrap_interval([0, 10] * 5), bootstrap_interval([0, 10] * 500)
    assert few[0] < 5 < few[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)


def _answers(texts: dict[str, list[str]]) -> dict[tuple[str, int], Answer]:
    return {
        (c, i): Answer(condition=c, row=i, text=t, tokens=10) for c, each in texts.items() for i, t in enumerate(each)
    }


def test_summary_is_a_mean_over_tasks_and_differences_pair_them():
    answers = _answers({"adapter": ["yes", "no", "the cat sat", "x"], "wrong_prompt": ["yes\nbut", "no", "x", "x"]})
    report = summarize(ROWS, answers, ["adapter", "wrong_prompt"], {})
    assert report.overall["adapter"]["strict"] == pytest.approx(50)
    assert report.overall["wrong_prompt"]["strict"] == 0
    assert report.overall["wrong_prompt"]["first_line"] == pytest.approx(25)
    assert report.differences["adapter - wrong_prompt"]["points"] == pytest.approx(50)
    assert report.tasks["a"]["best_constant"] == 100
    assert report.tasks["a"]["best_constant_other"] is None
    assert report.best_constant_other is None
    lines = report.to_markdown().splitlines()
    assert "best constant answer" in lines[2]  # the strongest baseline that reads nothing comes first
    assert "adapter of another task's prompt" in report.to_markdown()
    other = [replace(ROWS[0], input="three"), replace(ROWS[2], input="four", outputs=("the cat",))]
    report = summarize(ROWS, answers, ["adapter", "wrong_prompt"], {"vectors": 0.5}, other=other)
    assert report.tasks["b"]["best_constant_other"] == pytest.approx((80 + 0) / 2)
    assert report.best_constant_other == pytest.approx((100 + 40) / 2)
    assert report.differences["adapter - best_constant_other"]["points"] == pytest.approx(50 - 70)
    lines = report.to_markdown().splitlines()
    assert "chosen on its other rows" in lines[3]
    assert "adapter of the prompt, no prompt in context, with function vectors" in lines[4]


# --- what is read for each row ------------------------------------------------------------------------------


def always(prompt: str, examples: object) -> bool:
    return True


def test_examples_come_from_other_rows_and_are_the_same_for_a_task():
    rows = rows_with(["x"] * 4)
    other = [replace(row, input=f"new {i}", outputs=(f"o{i}", "second")) for i, row in enumerate(rows * 2)]
    each = choose_examples(rows, [*other, *rows, replace(other[0], task="u")], 3, 0, always)
    assert len(each) == 4
    assert len(set(each)) == 1
    assert len(set(each[0])) == 3
    assert set(each[0]) <= {(row.input, row.outputs[0]) for row in other}
    assert each == choose_examples(rows, other, 3, 0, always)
    assert each != choose_examples(rows, other, 3, 1, always)


def test_examples_of_a_task_without_other_rows_are_never_the_scored_row():
    rows = [*rows_with(list("abcde")), *rows_with(["y"], task="alone")]
    each = choose_examples(rows, [], 3, 0, always)
    assert all(len(set(examples)) == 3 for examples in each[:5])
    assert all(row.input not in dict(examples) for row, examples in zip(rows, each, strict=True))
    assert len(set(each[:5])) > 1
    assert each[5] == ()
    again = [replace(rows[0], input="same"), replace(rows[1], input="same")]
    assert choose_examples(again, [], 3, 0, always) == [(), ()]  # a row with the same input is no example


def test_examples_that_are_too_long_are_passed_over():
    rows = rows_with(["x"] * 2)
    other = [replace(rows[0], input="w" * n) for n in (5, 90, 6, 80, 7)]
    each = choose_examples(rows, other, 4, 0, lambda prompt, examples: sum(len(a) for a, _ in examples) < 20)
    assert {text for text, _ in each[0]} == {"w" * 5, "w" * 6, "w" * 7}


def test_examples_of_a_prompt_come_from_rows_with_that_prompt():
    rows = [Row(task="t", prompt=p, input=f"{p}{i}", outputs=(p,)) for p in "ab" for i in range(3)]
    for row, examples in zip(rows, choose_examples(rows, [], 2, 0, always), strict=True):
        assert {output for _, output in examples} == {row.prompt}


# --- evaluation on a tiny base ------------------------------------------------------------------------------


def make_tiny(folder: Path, **options: object) -> PromptLoRA:
    """A tiny base with a hypernetwork of random weights whose adapters matter."""
    model, tokenizer = load_base(folder)
    torch.manual_seed(0)
    config = HyperNetworkConfig(
        source_layer=1, max_prompt_tokens=32, context_size=16, encoder_layers=1, encoder_heads=2, pooling_queries=2,
        trunk_layers=1, rank=2, **options,
    )  # fmt: skip
    network = HyperNetwork(config, find_projections(model), 32, base_fingerprint(model))
    for name, parameter in network.generator.named_parameters():
        if name.endswith("B.weight") or "static_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return PromptLoRA(model, tokenizer, network)


@pytest.fixture
def tiny(toy_base):
    made = make_tiny(toy_base)
    yield made
    made.close()


def toy(task: str, prompts: str = "a", rows: int = 3) -> list[Row]:
    return [
        Row(task=task, prompt=f"say {letter}", input=f"w{i} w{i + 1}", outputs=(letter,))
        for letter in prompts
        for i in range(rows)
    ]


def answers_of(folder: Path, condition: str) -> list[str]:
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    return [line["text"] for line in sorted(lines, key=lambda line: line["row"]) if line["condition"] == condition]


def test_each_row_uses_its_own_prompt(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "_ADAPTERS_AT_ONCE", 2)  # in turns
    rows = [*toy("t", "ab", 2), *toy("u", "bc", 2), *toy("v", "c", 1)]
    conditions = ["adapter", "adapter_in_context", "in_context", "static", "static_in_context", "wrong_prompt"]
    evaluate(
        tiny, rows, tmp_path, conditions=[*conditions, "gibberish", "mean_adapter"], max_new_tokens=4, batch_size=3
    )
    static = tiny.adapt("say a", generated=False)
    for i, row in enumerate(rows):
        own = tiny.adapt(row.prompt)
        alone = {
            "adapter": tiny.generate([row.input], own, max_new_tokens=4),
            "adapter_in_context": tiny.generate([row.input], own, in_context=row.prompt, max_new_tokens=4),
            "in_context": tiny.generate([row.input], in_context=row.prompt, max_new_tokens=4),
            "static": tiny.generate([row.input], static, max_new_tokens=4),
            "static_in_context": tiny.generate([row.input], static, in_context=row.prompt, max_new_tokens=4),
        }
        assert {name: [answers_of(tmp_path, name)[i]] for name in alone} == alone
    assert len(set(answers_of(tmp_path, "adapter"))) > 1
    assert len(answers_of(tmp_path, "gibberish")) == len(answers_of(tmp_path, "mean_adapter")) == len(rows)


def test_the_wrong_prompt_is_one_that_the_task_does_not_have(tiny, tmp_path, monkeypatch):
    read: list[list[str]] = []
    adapt = tiny.adapt
    monkeypatch.setattr(tiny, "adapt", lambda texts, **options: read.append(list(texts)) or adapt(texts, **options))
    rows = [*toy("t", "a"), *toy("u", "b"), *toy("v", "a"), *toy("w", "c"), *toy("x", "d")]
    for seed in range(6):  # t and v have one prompt: no permutation that exchanges them is taken
        evaluate(tiny, rows, tmp_path / str(seed), conditions=["wrong_prompt"], max_new_tokens=1, seed=seed)
    assert len(read) == 6
    with pytest.raises(DataError, match="tasks with different prompts"):
        evaluate(tiny, [*toy("t", "a"), *toy("u", "a")], tmp_path / "no", conditions=["wrong_prompt"])
    assert not (tmp_path / "no").exists()


def test_examples_are_read_by_the_hypernetwork_or_by_the_base(tiny, tmp_path, monkeypatch):
    rows, read, shown = toy("t", "a", 3), [], []
    other = [replace(row, input=f"w{50 + i}") for i, row in enumerate(rows)]
    adapt, generate = tiny.adapt, tiny.generate
    monkeypatch.setattr(tiny, "adapt", lambda texts, **options: read.extend(texts) or adapt(texts, **options))
    monkeypatch.setattr(
        tiny, "generate", lambda inputs, lora, **o: shown.append(o["in_context"]) or generate(inputs, lora, **o)
    )
    conditions = ["adapter_examples", "in_context_examples"]
    report = evaluate(tiny, rows, tmp_path / "o", other=other, conditions=conditions, max_new_tokens=2)
    (text,) = read
    assert text.startswith("say a\n\nInput: w5")
    assert text.count("\nOutput: a") == 3
    assert shown == [None, [text] * 3]
    assert report.overall["in_context_examples"]["tokens"] > report.overall["adapter_examples"]["tokens"]
    assert "3.00 a row" in report.identity["examples"]
    with pytest.raises(DataError, match="task 'alone': it has no other row"):
        evaluate(tiny, toy("alone", "a", 1), tmp_path / "no", conditions=["adapter_examples"])
    assert not (tmp_path / "no").exists()
    with pytest.raises(OutputError, match="examples differ"):  # drawn from other rows
        evaluate(tiny, rows, tmp_path / "o", other=other[:1], conditions=conditions, max_new_tokens=2)


def test_a_hypernetwork_that_asks_is_told_that_the_prompt_is_in_the_context(toy_base, tmp_path):
    made = make_tiny(toy_base, context_flag=True)
    torch.nn.init.normal_(made.hypernetwork.in_context, std=3.0)
    rows = toy("t", "ab")
    evaluate(made, rows, tmp_path, conditions=["adapter", "adapter_in_context", "static_in_context"], max_new_tokens=4)
    for shown, condition in ((None, "adapter"), ("own", "adapter_in_context")):
        for i, row in enumerate(rows):
            context = None if shown is None else row.prompt
            told = made.adapt(row.prompt, in_context=shown is not None)
            alone = made.generate([row.input], told, in_context=context, max_new_tokens=4)
            assert [answers_of(tmp_path, condition)[i]] == alone
    untold = made.generate([row.input for row in rows], made.adapt([row.prompt for row in rows]),
                           in_context=[row.prompt for row in rows], max_new_tokens=4)  # fmt: skip
    assert untold != answers_of(tmp_path, "adapter_in_context")
    made.close()


def test_answers_of_another_base_or_configuration_are_refused(tiny, tmp_path):
    def again(folder: str = "o", **options: object) -> object:
        return evaluate(tiny, toy("t"), tmp_path / folder, conditions=["base", "adapter"], max_new_tokens=1, **options)

    again()
    report = again()
    assert report.identity["config"]["rank"] == 2
    parameter = tiny.model.model.layers[0].self_attn.o_proj.weight
    before = parameter.clone()
    parameter.mul_(1.5)
    with pytest.raises(OutputError, match=r"another evaluation \(base differ"):
        again()
    parameter.copy_(before)
    again()
    config = tiny.hypernetwork.config
    alpha = config.alpha
    object.__setattr__(config, "alpha", 2 * alpha)  # the same weights give other adapters
    with pytest.raises(OutputError, match=r"another evaluation \(config differ"):
        again()
    object.__setattr__(config, "alpha", alpha)
    first, *others = (tmp_path / "o" / "answers.jsonl").read_text().splitlines()
    identity = json.loads(first)
    for strength, says in ((1.0, "seed"), (0.5, "config, seed")):  # of a version that had this setting
        old = {**identity, "config": {**identity["config"], "strength": strength}}
        (tmp_path / "o" / "answers.jsonl").write_text("\n".join([json.dumps(old), *others, ""]))
        with pytest.raises(OutputError, match=rf"another evaluation \({says} differ"):
            again(seed=1)
    (tmp_path / "o" / "answers.jsonl").write_text("\n".join([first, *others, ""]))
    with pytest.raises(OutputError, match=r"another evaluation \(seed differ"):
        again(seed=1)
    evaluate(tiny, toy("t"), tmp_path / "base", conditions=["base"], max_new_tokens=1)
    grown = again("base")  # answers of the base alone belong to every hypernetwork
    assert set(grown.overall) == {"base", "adapter"}
    assert "hypernetwork" in json.loads((tmp_path / "base" / "answers.jsonl").read_text().splitlines()[0])
    assert evaluate(tiny, toy("t"), tmp_path / "base", conditions=["base"], max_new_tokens=1).overall.keys() == {"base"}
    with pytest.raises(OutputError, match="seed differ"):
        again("base", seed=1)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "rows: none were given"),
        (toy("t"), {"conditions": []}, "conditions: none were given"),
        (toy("t"), {"conditions": ["magic"]}, "condition 'magic': unknown"),
        (toy("t"), {"conditions": ["base", "base"]}, "condition 'base': given twice"),
        (toy("t"), {"conditions": ["wrong_prompt"]}, "needs two or more"),
        (toy("t"), {"max_new_tokens": 0}, "max_new_tokens=0: out of range"),
        (toy("t"), {"batch_size": 0}, "batch_size=0: out of range"),
        (toy("t"), {"seed": -1}, "seed=-1: out of range"),
        (toy("t"), {"examples": 0}, "examples=0: out of range"),
        ([replace(toy("t")[0], prompt=" ")], {"conditions": ["adapter"]}, "task 't': prompt ' ' is empty"),
        ([replace(toy("t")[0], prompt="say " * 33)], {"conditions": ["adapter"]}, "task 't': prompt of 33 tokens"),
        ([replace(toy("t")[0], input="w1 " * 124)], {"conditions": ["base"]}, "task 't': an input of 127 tokens"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_first_answer(tiny, tmp_path, rows, options, words):
    with pytest.raises(PromptLoRAError, match=words):
        evaluate(tiny, rows, tmp_path / "o", **{"max_new_tokens": 8, "conditions": ["base"], **options})
    assert not (tmp_path / "o").exists()


def test_an_output_that_is_no_folder_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, words in (
        (tmp_path / "file", "is a file"),
        ("", "it is empty"),
        (tmp_path / ("n" * 5000), "not a path"),
        ("a\0b", "not a path"),
    ):
        with pytest.raises(OutputError, match=words):
            evaluate(tiny, toy("t"), folder, conditions=["base"])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(tiny, tmp_path, monkeypatch):
    rows = toy("t", rows=4)
    real, opened = Path.open, []

    def full(self, *rest, **options):
        if self.name == "answers.jsonl" and rest[:1] == ("ab",):
            opened.append(self)
            if len(opened) == 2:
                raise OSError(28, "No space left on device")
        return real(self, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"No space left on device.*it resumes"):
        evaluate(tiny, rows, tmp_path / "o", conditions=["base"], max_new_tokens=1, batch_size=2)
    assert len(answers_of(tmp_path / "o", "base")) == 2
    report = evaluate(tiny, rows, tmp_path / "o", conditions=["base"], max_new_tokens=1, batch_size=2)
    assert len(opened) == 3
    assert set(report.overall) == {"base"}


def test_answers_are_scored_again_without_a_model(tiny, tmp_path):
    rows = [*toy("t"), *toy("u", "b")]
    report = evaluate(tiny, rows, tmp_path, conditions=["base", "adapter"], max_new_tokens=2)
    with (tmp_path / "answers.jsonl").open("a") as handle:
        for line in (
            "[1]",
            '{"condition": "static", "row": 0, "text": "x", "tokens": 1}',
            '{"condition": 1}',
            "[" * 5000,
        ):
            handle.write(line + "\n")
    assert rescore(rows, tmp_path) == report  # the static part has one answer, which is left out
    with pytest.raises(OutputError, match="answers to other rows"):
        rescore(rows[:2], tmp_path)
    with pytest.raises(OutputError, match="no such file"):
        rescore(rows, tmp_path / "nowhere")


def test_tasks_of_several_files_are_scored_and_their_other_rows_kept(tmp_path):
    def file(name: str, task: str) -> Path:
        each = [{**vars(row), "split": split} for split in ("eval", "train") for row in toy(task)]
        return write_jsonl(tmp_path / name, [{**row, "outputs": list(row["outputs"])} for row in each])

    one, two = file("one.jsonl", "t"), file("two.jsonl", "u")
    rows, other = read_tasks([one, two])
    assert [row.task for row in rows] == ["t"] * 3 + ["u"] * 3
    assert {row.split for row in rows} == {"eval"}
    assert {row.split for row in other} == {"train"}
    assert len(other) == 6
    rows, other = read_tasks([one, two], rows_per_task=1)
    assert (len(rows), len(other)) == (2, 10)
    assert read_tasks([one], "")[1] == []
    with pytest.raises(DataError, match=r"task 't': it is in .*one.jsonl and in .*three.jsonl"):
        read_tasks([one, file("three.jsonl", "t")])


# --- evaluation on the real base ----------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("condition", ["base", "in_context"])
def test_rows_stand_with_rows_that_are_as_long_when_read(condition, lm, tmp_path, monkeypatch):
    prompts = {
        "long": "Answer with the word yes, whatever you are asked, and with nothing else at all.",
        "short": "Repeat.",
    }
    rows = [
        Row(task=task, prompt=prompts[task], input="word " * words, outputs=("yes",))
        for words, task in enumerate(["long", "short", "long", "short", "long", "short"], start=1)
    ]
    read: list[int] = []

    def note(inputs: list[str], lora: object, *, in_context: list[str] | None, **_: object) -> list[str]:
        read.extend(lm.count_tokens(inputs, in_context))
        return [""] * len(inputs)

    monkeypatch.setattr(lm, "generate", note)
    evaluate(lm, rows, tmp_path, conditions=[condition], batch_size=2)
    assert len(read) == len(rows)
    assert read == sorted(read)


@pytest.mark.real
def test_an_evaluation_of_the_real_base_has_all_conditions(lm, tmp_path):
    report = evaluate(lm, ROWS, tmp_path / "whole", max_new_tokens=3)
    assert set(report.overall) == set(evaluation.DEFAULT_CONDITIONS)
    assert report.overall["in_context"]["tokens"] > report.overall["adapter"]["tokens"]
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["overall"] == report.overall


def test_evaluation_goes_on_where_it_was_killed(tiny, tmp_path, monkeypatch):
    lm, rows = tiny, [*toy("t0", rows=2), *toy("t1", "b", rows=2)]
    whole = evaluate(lm, rows, tmp_path / "whole", max_new_tokens=4, batch_size=2)
    calls = []
    generate = lm.generate

    def dies(inputs, *rest, **options):
        calls.append(list(inputs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(inputs, *rest, **options)

    monkeypatch.setattr(lm, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, rows, tmp_path / "cut", max_new_tokens=4, batch_size=2)
    assert not (tmp_path / "cut" / "report.json").exists()
    answers = tmp_path / "cut" / "answers.jsonl"
    with answers.open("a") as handle:
        handle.write('{"condition": "adap')  # a line that the kill cut short
    again = evaluate(lm, rows, tmp_path / "cut", max_new_tokens=4, batch_size=2)
    assert again.overall == whole.overall
    assert len(calls) == 4 + 10 - 3  # three batches of ten were kept

    with pytest.raises(OutputError, match="another evaluation"):
        evaluate(lm, rows[:3], tmp_path / "cut", max_new_tokens=4)


@pytest.mark.real
def test_answers_of_the_base_alone_can_be_reused(lm, tmp_path, monkeypatch):
    first = evaluate(lm, ROWS, tmp_path / "first", conditions=["base", "adapter"], max_new_tokens=3)
    asked = []
    generate = lm.generate
    monkeypatch.setattr(
        lm, "generate", lambda inputs, lora, **rest: asked.append(lora) or generate(inputs, lora, **rest)
    )
    again = evaluate(
        lm, ROWS, tmp_path / "b", conditions=["base", "adapter"], max_new_tokens=3, reuse=tmp_path / "first"
    )
    assert again.overall == first.overall
    assert None not in asked  # the base was not asked again
    with pytest.raises(OutputError, match="its max_new_tokens is 3, here it is 4"):
        evaluate(lm, ROWS, tmp_path / "c", conditions=["base"], max_new_tokens=4, reuse=tmp_path / "first")
    with pytest.raises(OutputError, match="no such file"):
        evaluate(lm, ROWS, tmp_path / "d", conditions=["base"], reuse=tmp_path / "nowhere")
    for text in ("", "not JSON\n", "[1]\n"):
        (tmp_path / "first" / "answers.jsonl").write_text(text)
        with pytest.raises(OutputError, match="not the answers of an evaluation"):
            evaluate(lm, ROWS, tmp_path / "e", conditions=["base"], reuse=tmp_path / "first")


@pytest.mark.real
def test_unknown_condition_is_named(lm, tmp_path):
    with pytest.raises(DataError, match="'magic'"):
        evaluate(lm, ROWS, tmp_path, conditions=["magic"])

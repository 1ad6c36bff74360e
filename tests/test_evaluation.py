"""Scores, controls, reports and resuming of evaluations."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlora import evaluate as evaluation
from promptlora.data import Row
from promptlora.errors import DataError, OutputError
from promptlora.evaluate import (
    Answer,
    bootstrap_interval,
    evaluate,
    exact_match,
    first_line,
    majority_score,
    normalize,
    permute_tasks,
    rouge_l,
    score,
    summarize,
)

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


def test_majority_is_the_best_constant_answer():
    rows = [Row(task="t", prompt="p", input=str(i), outputs=(o,), metric="exact_match") for i, o in enumerate("001")]
    assert majority_score(rows) == pytest.approx(200 / 3)


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
    assert report.tasks["a"]["majority"] == 100
    assert "adapter of another task's prompt" in report.to_markdown()


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
def test_evaluation_goes_on_where_it_was_killed(lm, tmp_path, monkeypatch):
    whole = evaluate(lm, ROWS, tmp_path / "whole", max_new_tokens=4, batch_size=2)
    assert set(whole.overall) == set(evaluation.DEFAULT_CONDITIONS)
    assert whole.overall["in_context"]["tokens"] > whole.overall["adapter"]["tokens"]
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["overall"] == whole.overall

    calls = []
    generate = lm.generate

    def dies(inputs, *rest, **options):
        calls.append(list(inputs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(inputs, *rest, **options)

    monkeypatch.setattr(lm, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, ROWS, tmp_path / "cut", max_new_tokens=4, batch_size=2)
    assert not (tmp_path / "cut" / "report.json").exists()
    answers = tmp_path / "cut" / "answers.jsonl"
    with answers.open("a") as handle:
        handle.write('{"condition": "adap')  # a line that the kill cut short
    again = evaluate(lm, ROWS, tmp_path / "cut", max_new_tokens=4, batch_size=2)
    assert again.overall == whole.overall
    assert len(calls) == 4 + 10 - 3  # three batches of ten were kept

    with pytest.raises(OutputError, match="another evaluation"):
        evaluate(lm, ROWS[:3], tmp_path / "cut", max_new_tokens=4)


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

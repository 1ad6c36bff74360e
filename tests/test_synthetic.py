"""The generator of tasks: every family gives valid tasks, the same for the same seed, and the command line writes them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest

import promptlora
from promptlora.cli import main
from promptlora.data import read_paraphrases, read_rows
from promptlora.data.synthetic import categories, family_names, make_tasks
from promptlora.data.synthetic.families import FAMILIES
from promptlora.data.synthetic.pools import POOLS, inputs
from promptlora.data.synthetic.vocabulary import facts, people, texts, words
from promptlora.errors import DataError

_LABELLED = ("label exchange", "classification of texts", "classification of words", "number questions")


@pytest.fixture(scope="module")
def made():
    """Two rounds of all families."""
    return list(make_tasks(2 * len(FAMILIES), seed=3))


def _digest(tasks):
    text = json.dumps([[task.name, task.wordings, task.to_rows()] for task in tasks], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_there_are_many_families_each_with_a_name_of_its_own():
    assert len(set(family_names())) == len(FAMILIES) > 600
    assert set(categories()) == set(family_names())
    assert not set(family_names()) & set(categories().values())


def test_every_family_gives_a_task_in_each_round(made):
    rounds = Counter(task.family for task in made)
    assert not set(family_names()) - set(rounds)
    assert max(rounds.values()) - min(rounds.values()) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tasks_are_valid_for_any_seed(seed):
    for task in make_tasks(len(FAMILIES), seed=seed, rows=16):
        _check(task, 16)


def test_tasks_of_later_rounds_are_valid(made):
    for task in made:
        _check(task, 40)


def _check(task, most):
    assert len(task.wordings) >= 8, task.name
    assert len(set(task.wordings)) == len(task.wordings)
    for prompt in task.wordings:
        assert prompt == " ".join(prompt.split()), prompt
        assert prompt[0].isupper(), prompt
        assert prompt[-1] in ".?!", prompt
        assert not any(left in prompt for left in ("{x}", "{k", "the the", "the a ")), prompt
        assert ".." not in prompt.replace("...", ""), prompt
        assert len(prompt) < 420, prompt
    assert 10 <= len(task.rows) <= most
    seen = [row.input for row in task.rows]
    assert len(set(seen)) == len(seen)
    for row in task.rows:
        assert row.output.strip() == row.output != "", task.name
        assert len(row.output) <= 90, (task.name, row.output)
        assert row.input.strip() == row.input != ""
        assert len(row.input) <= 160, row.input
    splits = [row.split for row in task.rows]
    held = max(2, len(task.rows) // 4)
    assert splits == ["train"] * (len(splits) - held) + ["eval"] * held
    answers = Counter(row.output for row in task.rows)
    assert len(answers) >= 2
    assert max(answers.values()) <= 0.6 * len(task.rows)
    assert len({row.output for row in task.rows if row.split == "eval"}) >= 2
    if task.category in _LABELLED:
        for prompt in task.wordings:
            for label in answers:
                assert label in prompt, (task.name, label, prompt)


def test_no_two_tasks_are_the_same(made):
    assert len({task.name for task in made}) == len(made)
    assert len({task.wordings[0] for task in made}) == len(made)


def test_an_exchanged_label_stands_for_another_class(made):
    """A prompt says which label stands for what: the same review gets another answer where labels are exchanged."""
    natural = {
        row.input: row.output for t in make_tasks(3, seed=3, only="sentiment") for row in t.rows if "0" in t.name
    }
    swapped = 0
    for task in make_tasks(12, seed=3, only="sentiment-relabelled"):
        labels = {row.output for row in task.rows}
        if task.name.endswith("/0") and labels == {"positive", "negative"}:
            assert all(natural[row.input] != row.output for row in task.rows if row.input in natural)
        swapped += labels == {"positive", "negative"}
    assert 0 < swapped < 12


def test_tasks_of_a_pool_show_the_same_inputs_in_the_same_order(made):
    by_pool = defaultdict(list)
    for task in made:
        by_pool[task.pool].append([row.input for row in task.rows])
    assert sum(len(tasks) for tasks in by_pool.values() if len(tasks) > 2) > 0.8 * len(made)
    for pool, several in by_pool.items():
        name, number = pool.split("/")
        place = {item.text: at for at, item in enumerate(inputs(name, f"3/{number}"))}
        for shown in several:
            places = [place[text] for text in shown]
            assert places == sorted(places)
    shared = [set(a) & set(b) for a, b in zip(by_pool["word/0"], by_pool["word/0"][1:], strict=False)]
    assert sum(len(both) for both in shared) > 15 * len(shared)


_ALONE = """
import hashlib, json, pathlib, sys, types
source = pathlib.Path(sys.argv[1])
for name in ("promptlora", "promptlora.data"):  # packages without their __init__, which import PyTorch
    package = types.ModuleType(name)
    package.__path__ = [str(source.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package
from promptlora.data.synthetic import make_tasks
tasks = [[task.name, task.wordings, task.to_rows()] for task in make_tasks(400, rows=8, seed=5)]
assert "torch" not in sys.modules
print(hashlib.sha256(json.dumps(tasks, ensure_ascii=False).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process_without_pytorch():
    command = [sys.executable, "-c", _ALONE, str(Path(promptlora.__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _digest(make_tasks(400, rows=8, seed=5))


def test_a_longer_run_starts_with_the_shorter_one_and_another_seed_differs():
    ten = list(make_tasks(10, rows=8))
    assert list(islice(make_tasks(20, rows=8), 10)) == ten
    assert _digest(make_tasks(10, rows=8, seed=1)) != _digest(ten)


def test_the_first_task_is_as_it_was():
    """A change of what a seed gives is one that users see: it belongs in the changelog."""
    task = next(make_tasks(1, rows=8))
    assert task.name == "syn/first-plus-last/0"
    assert (
        task.wordings[0]
        == "The user sends a list of numbers separated by commas. Add the first and the last number of the list."
    )
    assert (task.rows[0].input, task.rows[0].output) == ("52, 51, 7, 34, 42", "94")


def test_what_is_excluded_does_not_come_back_through_other_families():
    left = list(make_tasks(720, rows=8, exclude=["sentiment", "two steps", "plural"]))
    families = {task.family for task in left}
    assert not families & {"sentiment", "sentiment-relabelled", "plural"}
    assert "two steps" not in {task.category for task in left}
    assert "sentiment-of-three" in families
    assert not [t for t in left if "plural of" in t.wordings[0] and t.category == "output formats"]
    same = {task.name: task for task in left}
    kept = [task for task in make_tasks(150, rows=8) if task.name in same]
    assert sum(task == same[task.name] for task in kept) > 0.95 * len(kept) > 130  # the others are as without exclusion


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "tasks: 0"),
        ({"count": 1, "rows": 3}, "rows: 3"),
        ({"count": 1, "exclude": ["sentimnt"]}, "did you mean 'sentiment'"),
        ({"count": 1, "exclude": sorted(set(categories().values()))}, "Expected that one is left"),
    ],
)
def test_bad_arguments_are_said(arguments, said):
    with pytest.raises(DataError, match=said):
        make_tasks(**arguments)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kept", ["output formats", "two steps"])
def test_families_that_are_left_without_their_parts_are_said_and_not_tried_for_ever(kept):
    """These families are built from others: with all others excluded, no round gives a task."""
    others = set(categories().values()) - {kept}
    with pytest.raises(DataError, match="after 0 of 3 tasks"):
        list(make_tasks(3, rows=8, exclude=sorted(others)))


def test_texts_end_in_one_mark():
    for pool in ("register", "utterance", "request", "ticket", "manners"):
        for item in inputs(pool, "0/0"):
            assert not any(item.text.endswith(marks) for marks in ("?.", "!.", "..", "?!")), item.text


def test_a_ticket_meets_the_condition_of_its_own_department_alone():
    """The prompt says: technical, if something does not work."""
    for team, subjects in texts.TICKETS.items():
        assert team == "technical" or not any("does not work" in subject for subject in subjects)


def test_every_pool_is_used(made):
    used = {task.pool.split("/")[0] for task in made}
    assert not set(POOLS) - used


def test_tables_of_the_vocabulary_hold_each_word_once():
    things = [word for several in facts.THINGS.values() for word in several]
    assert len(set(things)) == len(things)
    for table in (words.VERBS, words.ADJECTIVES, facts.COUNTRIES):
        assert len({row[0] for row in table}) == len(table)
        assert len({len(row) for row in table}) == 1
    for several in (words.PLAIN, people.FIRST, people.LAST, people.CITIES, people.PRODUCTS, texts.LABELS):
        assert len(set(several)) == len(several)
    assert len({row[4] for row in facts.COUNTRIES}) == len(facts.COUNTRIES)


def test_synth_writes_files_that_training_reads(tmp_path, capsys):
    rows, wordings = tmp_path / "rows.jsonl.gz", tmp_path / "wordings.jsonl.gz"
    command = ["synth", "-o", str(rows), "--tasks", "12", "--rows", "8", "--wordings", str(wordings), "--json"]
    assert main(command) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["tasks"] == 12
    assert counted["rows"] == 96
    read = read_rows(rows)
    assert len(read) == 96
    assert {row.metric for row in read} == {"exact_match"}
    assert len(read_rows(rows, "train")) == 72
    others = read_paraphrases(wordings, {row.task for row in read})
    assert set(others) == {row.task for row in read}
    assert all(len(prompts) >= 7 for prompts in others.values())
    assert not {row.prompt for row in read} & {prompt for prompts in others.values() for prompt in prompts}
    before = rows.read_bytes()
    assert main(command) == 0
    assert rows.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl.gz", "wordings.jsonl.gz"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_synth_writes_nothing_when_it_is_stopped(number, tmp_path, monkeypatch):
    from promptlora.cli import synth as command

    def broken(*arguments, **options):
        yield next(make_tasks(1, rows=8))
        signal.raise_signal(number)
        yield from make_tasks(5, rows=8)

    monkeypatch.setattr(sys.modules[command.__module__], "make_tasks", broken)
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    assert main(["synth", "-o", str(path), "--wordings", str(tmp_path / "w.jsonl")]) == 130
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--output: missing"),
        (["-o", "rows.csv"], "rows.csv"),
        (["-o", "rows.jsonl", "--tasks", "0"], "tasks: 0"),
        (["-o", "rows.jsonl", "--rows", "2"], "rows: 2"),
        (["-o", "rows.jsonl", "--exclude", "nothing like it"], "exclude: 'nothing like it'"),
        (["-o", "rows.jsonl", "--wordings", "rows.jsonl"], "other than --output"),
        (["-o", "rows.jsonl", "--wordings", "../{here}/rows.jsonl"], "other than --output"),
        (["-o", "rows.jsonl", "--wordings", "w.txt"], "w.txt"),
        (["--show", "sort-wrds"], "did you mean 'sort-words'"),
        (["--show", "letters"], "family: 'letters'"),
    ],
)
def test_synth_says_bad_input_in_one_line_and_writes_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["synth", *(argument.replace("{here}", tmp_path.name) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_synth_lists_and_shows_families(capsys):
    assert main(["synth", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sum(len(names) for names in listed.values()) == len(FAMILIES)
    assert main(["synth", "--list"]) == 0
    assert "string edits" in capsys.readouterr().out
    assert main(["synth", "--show", "sort-words"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  input:") == shown.count("  answer:") == 3
    assert shown.count("  prompt:") >= 8
    assert main(["synth", "--show", "sort-words", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "sort-words"

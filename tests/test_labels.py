"""Exchange of labels: what qualifies, words replaced at once, and prompts that still say what is meant."""

from __future__ import annotations

import random

import pytest

from promptlora.data import Row
from promptlora.data.labels import (
    KINDS,
    closed_labels,
    draw_mapping,
    exchange,
    exchanged_prompt,
    exchanged_task,
    ties_labels,
)
from promptlora.data.wordings import wordings
from promptlora.errors import DataError

TIED = 'Answer "yes" if the request concerns an alarm, otherwise "no".'
ASKED = "Is it a fruit? Answer yes or no."


def rows_of(prompt, answers, inputs=("wake me at six", "pay the bill", "a plum", "what now")):
    return [
        Row(
            task="t",
            prompt=prompt,
            input=text,
            outputs=(answers[i % len(answers)],),
            category="c",
            metric="exact_match",
        )
        for i, text in enumerate(inputs)
    ]


def test_closed_labels_stand_in_the_prompt_and_rarely_in_the_inputs():
    assert closed_labels(TIED, rows_of(TIED, ["yes", "no"])) == ("no", "yes")
    assert closed_labels("Is it?", rows_of("Is it?", ["yes", "no"])) is None
    assert closed_labels("Answer Yes or No.", rows_of("", ["yes", "no"])) is None  # the case is another
    assert closed_labels(TIED, rows_of(TIED, ["yes"])) is None
    options = rows_of("Answer A or B.", ["A", "B"], inputs=("A: he go B: he goes", "A: x B: y"))
    assert closed_labels("Answer A or B.", options) is None
    many = [str(i) for i in range(9)]
    assert closed_labels(" ".join(many), rows_of("", many, inputs=["x"] * 9)) is None


def test_exchange_is_simultaneous_whole_words_and_keeps_case():
    mapping = {"yes": "no", "no": "yes"}
    assert exchange("yes or no, not nobody. Yes! NO", mapping) == "no or yes, not nobody. No! YES"
    assert (
        exchange(
            "card not working; virtual card not working", {"card not working": "a", "virtual card not working": "b"}
        )
        == "a; b"
    )
    assert exchange("unchanged", {}) == "unchanged"


@pytest.mark.parametrize(
    ("prompt", "labels", "tied"),
    [
        (TIED, ("yes", "no"), True),
        ("Write 1 if the item is a tea and 0 if not.", ("1", "0"), True),
        ("1. Read it. 2. Write 1 if the item is a tea and 0 if not.", ("1", "0"), False),
        (ASKED, ("yes", "no"), False),
        ('Reply "cocktail" if the item is one, otherwise reply "other".', ("cocktail", "other"), False),
        ('Write "positive" if it is a positive review, and "negative" if it is a negative review', ("positive", "negative"), True),
        ('There is no doubt: answer yes if it fits, otherwise no.', ("yes", "no"), False),
    ],
)  # fmt: skip
def test_labels_are_replaced_in_place_only_where_the_prompt_ties_them(prompt, labels, tied):
    assert ties_labels(prompt, labels) is tied


def test_a_swap_in_place_and_one_that_is_stated():
    mapping = {"yes": "no", "no": "yes"}
    assert exchanged_prompt(TIED, mapping, random.Random(0)) == (
        'Answer "no" if the request concerns an alarm, otherwise "yes".'
    )
    stated = exchanged_prompt(ASKED, mapping, random.Random(0))
    assert stated.startswith(ASKED)
    assert stated.replace('"', "").count("no instead of yes") + stated.replace('"', "").count("no for yes") == 1
    review = 'Write "good" if it is a good review, and "bad" if it is a bad review'
    assert exchanged_prompt(review, {"good": "bad", "bad": "good"}, random.Random(0)) == (
        'Write "bad" if it is a good review, and "good" if it is a bad review'
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [TIED, ASKED])
def test_a_task_with_other_labels_is_a_task_of_its_own(kind, prompt):
    rows = rows_of(prompt, ["yes", "no"])
    made = exchanged_task(rows, kind, random.Random(3))
    assert [row.input for row in made] == [row.input for row in rows]
    assert {row.category for row in made} == {"c"}
    assert len({row.task for row in made}) == 1
    assert made[0].task.startswith(f"t~{kind}:")
    assert made[0].prompt != prompt
    new = {old.outputs: row.outputs for old, row in zip(rows, made, strict=True)}
    assert len(set(new.values())) == 2
    assert all(a != b for a, b in new.items())
    assert all(output in made[0].prompt for row in made for output in row.outputs)
    assert exchanged_task(rows, kind, random.Random(3)) == made


def test_every_wording_gets_the_same_words():
    labels = ("no", "yes")
    mapping = draw_mapping(labels, "symbols", random.Random(1), TIED)
    for text in [TIED, *wordings(TIED, 20)]:
        changed = exchanged_prompt(text, mapping, random.Random(0))
        assert all(new in changed for new in mapping.values())
        if ties_labels(text, labels):
            assert '"yes"' not in changed
            assert "'yes'" not in changed


def test_symbols_are_not_words_of_the_prompt():
    prompt = "zig foo A 1 red apple north wug alpha river X yes or no"
    for seed in range(30):
        words = draw_mapping(("yes", "no"), "symbols", random.Random(seed), prompt).values()
        assert not set(words) & set(prompt.split())


def test_a_swap_leaves_no_label_in_its_place():
    for seed in range(20):
        mapping = draw_mapping(("a", "b", "c"), "swap", random.Random(seed))
        assert sorted(mapping.values()) == ["a", "b", "c"]
        assert all(a != b for a, b in mapping.items())


def test_what_cannot_be_exchanged_is_an_error():
    with pytest.raises(DataError, match="no closed set"):
        exchanged_task(rows_of("Say it.", ["x", "y"]), "swap", random.Random(0))
    with pytest.raises(DataError, match="Expected one of swap, symbols"):
        exchanged_task(rows_of(TIED, ["yes", "no"]), "flip", random.Random(0))
    with pytest.raises(DataError, match="0 tasks"):
        exchanged_task([], "swap", random.Random(0))

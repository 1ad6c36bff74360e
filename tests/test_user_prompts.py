"""The prompts as users write them: every check takes its good answer and refuses wrong ones."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from promptlora.errors import DataError

PATH = Path(__file__).parents[1] / "benchmarks" / "user_prompts.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("user_prompts", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = _load()
ITEMS = bench.read_prompts()
CHECKS = [(item, one) for item in ITEMS for one in item["inputs"]]


def test_sixty_prompts_spread_evenly_with_two_inputs_each():
    assert len(ITEMS) == 60
    assert len({item["prompt"] for item in ITEMS}) == 60
    kinds = Counter(item["kind"] for item in ITEMS)
    assert set(kinds) == set(bench.KINDS)
    assert set(kinds.values()) == {7, 8}
    assert all(len(item["inputs"]) == 2 for item in ITEMS)
    assert len({(item["prompt"], one["input"]) for item, one in CHECKS}) == 120


@pytest.mark.parametrize(("item", "one"), CHECKS, ids=[f"{i['kind']}-{n}" for n, (i, _) in enumerate(CHECKS)])
def test_every_check_takes_the_good_answer_and_refuses_wrong_ones(item, one):
    check = one["check"]
    assert bench.passes(one["good"], check)
    assert len(one["good"].split()) <= 12
    assert not bench.passes("", check)
    assert not bench.passes(" \n", check)
    assert not bench.passes(one["input"], check)
    assert not bench.passes(item["prompt"], check)
    assert not bench.passes(
        "I am sorry, but as an AI language model I do not have any personal opinion about that.", check
    )


def test_two_inputs_of_a_prompt_need_their_own_answers_where_the_task_is_no_constant():
    constant = {"persona", "refuse"}
    for item in ITEMS:
        first, second = item["inputs"]
        same = bench.passes(first["good"], second["check"])
        assert not same or item["kind"] in constant or item["prompt"].startswith(("Answer every", "Say the same")), item


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"equals": ["das Haus"]}, ' "Das  haus." ', "das Haus ist"),
        ({"contains_all": ["a b", "c"]}, "x A B, c!", "ab c"),
        ({"contains_any": ["ten", "10"]}, "in 10 minutes", "often"),
        ({"not_contains": ["um"]}, "the drum", "um, no"),
        ({"regex": r"\[x\]"}, " [x]\n", "[x] y"),
        ({"max_words": 2}, "one two", "one two three"),
        ({"json_keys": ["a"]}, '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"json_keys": ["a"]}, '{"a": null}', "a: 1"),
        ({"upper": True}, "YES 1", "Yes"),
        ({"lower": True}, "yes", "Yes"),
        ({"equals": ["yes"], "lower": True}, "yes", "YES"),
    ],
)
def test_rules(check, right, wrong):
    assert bench.passes(right, check)
    assert not bench.passes(wrong, check)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(DataError, match="Expected some of"):
        bench.passes("x", {"equal": ["x"]})
    with pytest.raises(DataError):
        bench.passes("x", {})


def test_patterns_are_simple():
    for _, one in CHECKS:
        assert len(re.compile(one["check"].get("regex", "")).pattern) < 40


def test_score_and_table():
    good = [one["good"] for _, one in CHECKS]
    values = bench.score(ITEMS, {"base": [""] * 120, "adapter": good})
    assert values["passed"] == {"base": 0, "adapter": 120}
    assert sum(row["checks"] for row in values["by_kind"].values()) == 120
    text = bench.table({**values, "base_model": "m", "hypernetwork": "h"})
    assert "| all | 120 | 0 | 120 |" in text


def test_every_condition_asks_the_model_for_what_it_says():
    asked = []

    class Model:
        def adapt(self, prompts, in_context):
            asked.append(("adapt", tuple(prompts), in_context))
            return "adapters"

        def generate(self, inputs, lora, adapter_index, in_context, **options):
            asked.append(("generate", lora, adapter_index, in_context))
            return list(inputs)

    for condition in bench.CONDITIONS:
        assert bench.answers_of(Model(), ["p", "p", "q"], ["a", "b", "c"], condition, 2) == ["a", "b", "c"]
    assert asked == [
        ("generate", None, None, None),
        ("generate", None, None, ["p", "p", "q"]),
        ("adapt", ("p", "q"), False),
        ("generate", "adapters", [0, 0, 1], None),
        ("adapt", ("p", "q"), True),
        ("generate", "adapters", [0, 0, 1], ["p", "p", "q"]),
    ]

"""Other wordings of a prompt: many, different, and none that loses a label, a number or a negation."""

from __future__ import annotations

import gzip
import json

import pytest

from promptlora.cli import main
from promptlora.data import read_paraphrases
from promptlora.data.prompt_parts import literals, mask, parse, unmask
from promptlora.data.wordings import same_wording, wordings

PROMPTS = (
    "Write the plural",
    "Translate the word to Spanish.",
    "Which sport does this athlete play?",
    'Answer "yes" if the request concerns an alarm, otherwise "no".',
    "Write 1 if the item is a tea and 0 if not.",
    "Does this message have to do with a recipe? yes/no",
    "Which sentence is right? Answer A or B.",
    "Classify the message as one of: exchange rate, apple pay or google pay, card swallowed.",
    "In this task, you are given a story. Your job is to write an ending. It must have fewer than 10 words. Don't use names.",
    "Given a text, say what it is about: World, Sports or Business.",
    "The end mark was removed. Was it a statement, question or exclamation?",
    "You are MathBot, a machine.\nRules:\n1. Reply with 3 digits only.\n\nExample: 1 + 1 -> 002",
    "The following are multiple choice questions (with answers) about marketing.",
)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_kind_of_prompt_gets_twelve_different_wordings(prompt):
    made = wordings(prompt)
    assert len(made) == 12
    assert len({same_wording(text) for text in [*made, prompt]}) == 13
    assert made == wordings(prompt)
    assert made != wordings(prompt, seed=1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_wordings_keep_what_carries_the_meaning(prompt):
    for text in wordings(prompt, 30):
        assert all(literal in text for literal in literals(prompt)), text
        assert not any("\ue000" <= c <= "\uf8ff" for c in text)
        assert ".." not in text
        assert "?." not in text


def test_labels_are_copied_and_never_reworded():
    prompt = 'Classify the text as "generate" or "classify".'
    for text in wordings(prompt, 20):
        assert "generate" in text
        assert text.count("classify") >= 1
    assert any("Categorize the text as" in text or "Label the text as" in text for text in wordings(prompt, 30))


def test_negations_stay():
    for text in wordings("Name the capital. Do not explain. Never answer in a sentence.", 30):
        assert "not" in text or "n't" in text
        assert "ever answer in a sentence" in text


def test_tasks_share_their_frames():
    first, second = wordings("Write the plural.", 40), wordings("Translate the word to Spanish.", 40)

    def frames(texts, core):
        return {t.lower().replace(core, "*") for t in texts}

    assert len(frames(first, "write the plural") & frames(second, "translate the word to spanish")) >= 10


def test_parts_of_a_prompt():
    parts = parse(
        "In this task, you are given a text and a word. Your task is to find the word. Answer with it. Be kind."
    )
    assert parts.given == "a text and a word"
    assert (parts.goal.kind, parts.goal.text) == ("do", "find the word")
    assert parts.tail == [("answer", "Answer with it"), ("note", "Be kind")]
    parts = parse("Given a review, say if it is good.")
    assert (parts.given, parts.goal.text) == ("a review", "say if it is good")


def test_mask_and_unmask_give_the_text_back():
    prompt = "Say 'a' (or \"b\") e.g. `c`: x, y z, w or v."
    assert unmask(*mask(prompt)) == prompt


def test_a_condition_is_turned_round_with_its_labels():
    made = wordings('Answer "true" if it is a fruit, else "false".', 60)
    assert 'Reply "false" unless it is a fruit; in that case reply "true".' in made


def test_command_writes_what_training_reads(tmp_path, capsys):
    rows = [{"task": f"t{i}", "prompt": p, "input": "x", "outputs": ["y"]} for i, p in enumerate(PROMPTS)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "wordings.jsonl.gz"
    assert main(["wordings", str(data), "-o", str(output), "--count", "9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tasks"] == len(PROMPTS)
    assert said["fewest"] == 9
    found = read_paraphrases(output, ["t0", "t1"])
    assert found == {"t0": wordings(PROMPTS[0], 9), "t1": wordings(PROMPTS[1], 9)}
    with gzip.open(output, "rt", encoding="utf-8") as lines:
        assert len(lines.readlines()) == len(PROMPTS)


def test_command_refuses_a_bad_name_and_writes_nothing(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"task": "t", "prompt": "Do it.", "input": "x", "outputs": ["y"]}) + "\n")
    assert main(["wordings", str(data), "-o", str(tmp_path / "w.txt")]) == 2
    assert "w.txt" in capsys.readouterr().err
    assert main(["wordings", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "w.jsonl")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]

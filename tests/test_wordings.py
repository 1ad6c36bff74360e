"""Other wordings of a prompt: many, different, and none that loses a label, a number or a negation."""

from __future__ import annotations

import gzip
import json

import pytest

from promptlora.cli import main
from promptlora.data import read_paraphrases
from promptlora.data.prompt_parts import literals, mask, parse, unmask
from promptlora.data.wordings import same_wording, wordings
from promptlora.errors import DataError

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


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("Translate the sentence to French. Use informal language.", "informal language"),
        ("List the animals. Separate them with commas.", "eparate them with commas"),
        ("Count the words. Ignore punctuation.", "gnore punctuation"),
        ("Sort the words. The longest comes first.", "longest comes first"),
    ],
)
def test_no_sentence_is_left_out(prompt, kept):
    assert all(kept in text for text in wordings(prompt, 40))


@pytest.mark.parametrize("noun", ["return policy", "copy machine", "tax return", "provide law", "select committee"])
def test_verbs_have_synonyms_and_nouns_of_the_same_form_have_none(noun):
    made = wordings(f"Identify the {noun} in the text and return its price.", 60)
    assert all(f"the {noun} in" in text for text in made)
    assert any("and give its price" in text for text in made)
    assert any("Find the" in text or "find the" in text for text in made)


def test_command_never_replaces_its_own_data(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    content = json.dumps({"task": "t", "prompt": "Do it.", "input": "x", "outputs": ["y"]}) + "\n"
    data.write_text(content)
    for source, output in (
        (data, data),
        (data, tmp_path / "other" / ".." / "rows.jsonl"),
        (tmp_path, tmp_path / "wordings.jsonl"),  # would be read as rows the next time
    ):
        assert main(["wordings", str(source), "-o", str(output)]) == 2
        assert "the rows are kept" in " ".join(capsys.readouterr().err.split())
    assert data.read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_and_does_not_begin_the_other_answer():
    """The words "and edible" belong to the condition; only "and no if not" is another answer."""
    for text in wordings("Answer yes if the input is a fruit and edible.", 40):
        assert "a fruit and edible" in text, text
    assert any("otherwise bad" in text for text in wordings("Reply good if it is above 10 and bad otherwise.", 40))


@pytest.mark.parametrize(
    ("prompt", "wrong", "right"),
    [
        ("Does the sentence express joy?", "expresss", "expresses joy"),
        ("Does the text go too far?", "gos", "goes too far"),
        ("Does the story carry a moral?", "carrys", "carries a moral"),
        ("Is the second word longer than the first?", "second is", "Is the second word longer"),
        ("Is this word order correct?", "word is order", "Is this word order correct"),
        ("Does the supposed change have any effect?", "changes have", "Does the supposed change have"),
        ('Is the request "in" or "out"?', "request in", "the request is"),
    ],
)
def test_a_question_becomes_an_order_only_where_the_grammar_is_known(prompt, wrong, right):
    made = wordings(prompt, 40)
    assert not any(wrong in text for text in made)
    assert any(right.lower() in text.lower() for text in made)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("prompt", ['Say "\ue000".', "\ue001 Write the plural."])
def test_private_use_characters_stand_for_nothing_else(prompt):
    """They mark copied pieces: one in a prompt would be replaced by another piece, or for ever by itself."""
    assert wordings(prompt) == []


def test_wordings_of_a_prompt_that_was_changed_since_are_refused(tmp_path):
    data, output = tmp_path / "rows.jsonl", tmp_path / "w.jsonl"
    data.write_text(json.dumps({"task": "t", "prompt": "Write the plural.", "input": "x", "outputs": ["y"]}) + "\n")
    assert main(["wordings", str(data), "-o", str(output)]) == 0
    assert len(read_paraphrases(output, {"t": "Write the plural."})["t"]) == 12
    with pytest.raises(
        DataError, match=r"w\.jsonl:1: wordings of 'Write the plural\.'; the prompt of task 't' is 'Write the"
    ):
        read_paraphrases(output, {"t": "Write the singular."})

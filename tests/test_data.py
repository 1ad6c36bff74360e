"""Readers: every format and every kind of bad row. Batches: a pure function of seed and step."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptlora.data import (
    Batches,
    Example,
    Row,
    Shown,
    TaskOrder,
    one_prompt_a_task,
    read_paraphrases,
    read_rows,
    render_inputs,
    rows_by_task,
    tokenize_rows,
)
from promptlora.data.config import DataConfig
from promptlora.data.order import shared_places
from promptlora.errors import DataError
from promptlora.losses import IGNORED
from promptlora.text import encode_chat, render_chat
from tests.training_helpers import TEMPLATE, toy_rows, word_tokenizer, write_jsonl

GOOD = {"task": "t", "prompt": "say a", "input": "w1", "outputs": ["a", "b"], "metric": "exact_match", "split": "train"}
ROW = Row(task="t", prompt="say a", input="w1", outputs=("a", "b"), metric="exact_match", split="train")


# --- readers ---------------------------------------------------------------------------------------------


def test_jsonl_gz_and_parquet_give_the_same_rows(tmp_path):
    plain = write_jsonl(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "input": "w2"}])
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    columns = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, {**GOOD, "input": "w2"}]), columns)
    rows = read_rows(plain)
    assert rows[0] == ROW
    assert len(rows) == 2
    assert read_rows(packed) == rows
    assert read_rows(str(columns)) == rows


def test_a_folder_is_read_in_the_order_of_names_and_other_files_are_left(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{**GOOD, "input": "second"}])
    write_jsonl(tmp_path / "a.jsonl", [{**GOOD, "input": "first"}])
    (tmp_path / "README.md").write_text("not data")
    assert [row.input for row in read_rows(tmp_path)] == ["first", "second"]


def test_a_dataset_id_is_loaded_with_its_split(monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("owner/name") == [ROW]
    assert read_rows("owner/name", "train") == [ROW]
    assert asked == [("owner/name", "train"), ("owner/name", "train")]


def test_a_dataset_that_cannot_be_had_is_one_line(monkeypatch):
    def load(name, split):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"owner/name: no such file, and no dataset by that id \(no route\)") as caught:
        read_rows("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "data/missing.jsonl", "data/missing.parquet", "./x", "/no/such", "a/b/c"]
)
def test_a_missing_path_never_asks_the_hub(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no such file"):
        read_rows(name)


def test_split_is_kept_and_rows_without_one_stay(tmp_path):
    rows = [{**GOOD, "split": "train"}, {**GOOD, "split": "eval"}, {k: v for k, v in GOOD.items() if k != "split"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [row.split for row in read_rows(path, "train")] == ["train", ""]
    assert len(read_rows(path)) == 3


def test_no_row_left_says_what_there_is(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(DataError, match=r"no row with split='test' among 1; it has \['train'\]"):
        read_rows(path, "test")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no row"):
        read_rows(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outputs": None}, "outputs=None"),
        ({"outputs": []}, "outputs="),
        ({"outputs": ["a", " "]}, "outputs="),
        ({"outputs": [1]}, "outputs="),
        ({"outputs": 3}, "outputs=3"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": None}, "prompt=None"),
        ({"input": 7}, "input=7"),
        ({"pool": ["p"]}, "pool=['p']; expected a text"),
        ({"metric": "bleu"}, "metric='bleu'; expected exact_match or rougeL"),
        ({"input": "\ud800"}, "input holds half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, change, says):
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, {**GOOD, **change}])
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert f"{path}:2: {says}" in str(caught.value)


def test_a_row_without_outputs_in_parquet_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "p", "input": "i"}]), path)
    with pytest.raises(DataError, match=r"rows\.parquet row 1: outputs=None"):
        read_rows(path)


def test_a_single_output_may_be_a_text_and_the_task_may_be_missing(tmp_path):
    (row,) = read_rows(write_jsonl(tmp_path / "r.jsonl", [{"prompt": "say a", "input": "", "outputs": "a"}]))
    assert row == Row(task="say a", prompt="say a", input="", outputs=("a",))
    (row,) = read_rows(write_jsonl(tmp_path / "d.jsonl", [{**GOOD, "task": None, "document": "d7"}]))
    assert row.task == "d7"


def test_broken_lines_and_files_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n{broken\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not JSON"):
        read_rows(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a list; expected an object"):
        read_rows(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not UTF-8"):
        read_rows(path)


def test_damaged_containers_are_named(tmp_path):
    whole = gzip.compress("".join(json.dumps({**GOOD, "input": str(i)}) + "\n" for i in range(2000)).encode())
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be read after line \d+ .*fetch it again"):
        read_rows(cut)
    cut.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="cannot be read after line 0"):
        read_rows(cut)
    parquet = tmp_path / "cut.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD] * 100), parquet)
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        read_rows(parquet)


def test_other_suffixes_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"\.xlsx; expected one of \.jsonl"):
        read_rows(tmp_path / "rows.xlsx")
    with pytest.raises(DataError, match="no data in this folder"):
        read_rows(tmp_path)


def test_paraphrases_of_wanted_tasks_are_read_and_lines_of_one_task_add_up(tmp_path):
    path = write_jsonl(
        tmp_path / "p.jsonl",
        [{"task": "t", "prompts": ["one"]}, {"task": "u", "prompts": ["x"]}, {"task": "t", "prompts": ["two"]}],
    )
    assert read_paraphrases(path, ["t", "v"]) == {"t": ["one", "two"]}


@pytest.mark.parametrize(
    "line", [{"task": "t"}, {"prompts": ["x"]}, {"task": "t", "prompts": "x"}, [1], {"task": "t", "prompts": [" "]}]
)
def test_a_bad_paraphrase_line_is_named(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"task": "t", "prompts": ["x"]}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=r"p\.jsonl:2"):
        read_paraphrases(path, ["t"])
    with pytest.raises(DataError, match="no such file"):
        read_paraphrases(tmp_path / "missing.jsonl", ["t"])


def test_a_task_of_several_prompts_becomes_several_tasks():
    def row(task: str, prompt: str) -> Row:
        return Row(task=task, prompt=prompt, input="w1", outputs=("a",))

    rows = [row("t", "say a"), row("u", "say c"), row("t", "say b"), row("t", "say a")]
    split = one_prompt_a_task(rows)
    assert [r.task for r in split] == ["t #1", "u", "t #2", "t #1"]
    assert [r.prompt for r in split] == [r.prompt for r in rows]


# --- tokens ----------------------------------------------------------------------------------------------


def test_rows_become_a_rendered_chat_and_answers_with_an_end():
    tokenizer = word_tokenizer()
    (example,), left_out = tokenize_rows(tokenizer, [ROW], DataConfig(train="x"))
    assert tokenizer.decode(example.input_ids) == "<system> <user> w1 <assistant>"
    assert [tokenizer.decode(answer) for answer in example.answers] == ["a </s>", "b </s>"]
    assert left_out == {"input": 0, "answer": 0}
    assert tokenize_rows(tokenizer, [], DataConfig(train="x")) == ([], {"input": 0, "answer": 0})


def test_rows_that_are_too_long_are_left_out_and_counted_never_cut():
    def row(input: str, *outputs: str) -> Row:
        return Row(task="t", prompt="say a", input=input, outputs=outputs)

    rows = [
        row("w1 w2 w3", "a"),  # 6 tokens with the template's 3
        row("w1 w2 w3 w4", "a"),  # 7: too long
        row("w1", "a b c"),  # 4 with the end: too long
        row("w1", "a b c", "a b"),  # one of two fits
    ]
    config = DataConfig(train="x", max_input_tokens=6, max_answer_tokens=3)
    examples, left_out = tokenize_rows(word_tokenizer(), rows, config)
    assert left_out == {"input": 1, "answer": 1}
    assert [len(e.input_ids) for e in examples] == [6, 4]
    assert [[len(answer) for answer in e.answers] for e in examples] == [[2], [3]]


def test_a_tokenizer_without_an_end_or_an_input_without_tokens_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no eos_token"):
        tokenize_rows(tokenizer, [ROW], DataConfig(train="x"))
    with pytest.raises(DataError, match="task 't': input '' has no token"):
        tokenize_rows(
            word_tokenizer(None), [Row(task="t", prompt="p", input="", outputs=("a",))], DataConfig(train="x")
        )


# --- batches ---------------------------------------------------------------------------------------------


def make_examples(tasks: int, rows: int, seed: int = 0, longest: int = 60) -> list[Example]:
    """Rows of random length; the ids of a row's input are its number + 1000, of its answers task + 100."""
    rng = random.Random(seed)
    return [
        Example(f"t{t}", [1000 + t * rows + i] * rng.randint(1, longest), [[100 + t] * rng.randint(1, 3) + [2]])
        for t in range(tasks)
        for i in range(rows)
    ]


def make_batches(examples: list[Example], prompts: int = 4, rows: int = 3, **options) -> Batches:
    names = {e.task: [f"own {e.task}", *(f"other {e.task} {i}" for i in range(3))] for e in examples}
    shown = {key: options.pop(key) for key in list(options) if key.endswith(("share", "pairs"))}
    return Batches(
        examples, names, prompts_per_batch=prompts, rows_per_prompt=rows, pad=0, shown=Shown(**shown), **options
    )


def per_epoch(batches: Batches) -> int:
    return batches.order.per_epoch


def same(a, b) -> bool:
    return (
        a.prompts == b.prompts
        and a.tasks == b.tasks
        and a.examples == b.examples
        and a.tokens == b.tokens
        and a.input_ids.equal(b.input_ids)
        and a.labels.equal(b.labels)
    )


def test_a_batch_is_a_pure_function_of_seed_and_step():
    examples = make_examples(7, 20)
    batches = make_batches(examples, seed=3, paraphrase_share=0.5)
    steps = list(range(2 * per_epoch(batches) + 2))
    first = [batches[step] for step in steps]
    fresh = make_batches(examples, seed=3, paraphrase_share=0.5)
    for step in random.Random(0).sample(steps, len(steps)):  # any order, another object
        assert same(fresh[step], first[step])
    other = make_batches(examples, seed=4, paraphrase_share=0.5)
    assert [other[step].examples for step in steps] != [batch.examples for batch in first]
    half = per_epoch(batches)
    assert [b.examples for b in first[:half]] != [b.examples for b in first[half : 2 * half]]  # epochs differ too


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_each_row_once_but_for_filling_up(tasks, rows, prompts, size, seed):
    examples = make_examples(tasks, rows, seed, longest=8)
    groups = tasks * -(-rows // size)
    if groups < prompts:
        with pytest.raises(DataError, match="make no batch"):
            make_batches(examples, prompts, size, seed=seed)
        return
    batches = make_batches(examples, prompts, size, seed=seed)
    assert per_epoch(batches) == groups // prompts
    for number in (0, 1):
        epoch = [batches[number * per_epoch(batches) + i] for i in range(per_epoch(batches))]
        seen = Counter(i for batch in epoch for i in batch.examples)
        waiting = groups - per_epoch(batches) * prompts  # groups that fill no batch
        assert waiting < prompts
        assert len(seen) >= len(examples) - waiting * size
        fill = -rows % size  # rows that a task's last group takes again
        assert sum(seen.values()) - len(seen) <= tasks * fill
        for batch in epoch:
            assert len(batch.tasks) == len(batch.prompts) == prompts
            assert len(batch.examples) == batch.input_ids.shape[0] == prompts * size


@given(st.integers(0, 99), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_labels_are_on_the_answer_alone_and_padding_on_the_right(seed, step):
    examples = make_examples(5, 9, seed)
    batch = make_batches(examples, seed=seed)[step]
    assert batch.input_ids.shape == batch.labels.shape
    real = 0
    for at, i in enumerate(batch.examples):
        example, task = examples[i], batch.tasks[at // 3]
        assert example.task == task
        answer = example.answers[0]
        whole = example.input_ids + answer
        end = len(whole)
        real += end
        assert batch.input_ids[at, :end].tolist() == whole
        assert batch.input_ids[at, end:].eq(0).all()
        assert batch.labels[at].tolist() == [
            *[IGNORED] * len(example.input_ids),
            *answer,
            *[IGNORED] * (batch.labels.shape[1] - end),
        ]
    assert batch.tokens == real
    assert batch.input_ids.shape[1] == max(examples[i].length for i in batch.examples)


def test_tasks_are_mixed_and_each_prompt_stands_once_in_a_batch():
    batches = make_batches(make_examples(12, 30), seed=1)
    twice = sum(len(set(batches[step].tasks)) < 4 for step in range(per_epoch(batches)))
    assert twice <= 1  # at most the tail of the epoch, where one task may be all that is left
    for step in range(per_epoch(batches)):
        batch = batches[step]
        if len(set(batch.tasks)) == 4:
            assert len(set(batch.prompts)) == 4


def test_one_task_alone_still_makes_batches():
    batch = make_batches(make_examples(1, 24), seed=1)[0]
    assert batch.tasks == ("t0",) * 4


def test_rows_of_near_length_stand_together():
    examples = make_examples(10, 60, longest=200)
    batches = make_batches(examples)

    def share(groups: list[list[int]]) -> float:
        cells = sum(len(group) * max(examples[i].length for i in group) for group in groups)
        return 1 - sum(examples[i].length for group in groups for i in group) / cells

    found = share([list(batches[step].examples) for step in range(per_epoch(batches))])
    order = list(range(len(examples)))
    random.Random(0).shuffle(order)
    at_random = share([order[i : i + 12] for i in range(0, len(order), 12)])
    assert found < 0.2
    assert found < at_random / 2


def test_paraphrases_take_their_share_and_only_their_own_task():
    examples = make_examples(6, 40, longest=5)
    none = make_batches(examples, paraphrase_share=0.0)
    assert all(p.startswith("own") for step in range(per_epoch(none)) for p in none[step].prompts)
    some = make_batches(examples, paraphrase_share=0.7)
    pairs = [
        (p, t) for step in range(6 * per_epoch(some)) for p, t in zip(some[step].prompts, some[step].tasks, strict=True)
    ]
    assert all(prompt.split()[1] == task for prompt, task in pairs)
    share = sum(prompt.startswith("other") for prompt, _ in pairs) / len(pairs)
    assert 0.6 < share < 0.8
    assert len({prompt for prompt, _ in pairs}) == 6 * 4  # each wording comes up


def test_every_right_answer_is_used_in_time():
    examples = [Example("t", [1000 + i], [[7, 2], [8, 2], [9, 2]]) for i in range(12)]
    batches = make_batches(examples, 2, 2)
    answers = {int(batches[step].labels[row, 1]) for step in range(6 * per_epoch(batches)) for row in range(4)}
    assert answers == {7, 8, 9}


def test_toy_rows_go_all_the_way(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    examples, _ = tokenize_rows(word_tokenizer(), read_rows(Path(path)), DataConfig(train=str(path)))
    batch = make_batches(examples, 2, 3)[0]
    for row in range(6):
        letter = 10 + int(batch.tasks[row // 3][1])  # "a" is word 10
        assert batch.labels[row][batch.labels[row] != IGNORED].tolist() == [letter, 2]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_of_a_batch_are_the_batch(parts):
    batches = make_batches(make_examples(7, 20), prompts=4, rows=3, paraphrase_share=0.5)
    for step in range(per_epoch(batches) + 2):
        whole, split = batches[step], [batches.part(step, part, parts) for part in range(parts)]
        assert [prompt for part in split for prompt in part.prompts] == whole.prompts
        assert tuple(i for part in split for i in part.examples) == whole.examples
        assert sum(part.tokens for part in split) == whole.tokens
        assert sum(part.answer_tokens for part in split) == whole.answer_tokens
        assert {len(part.prompts) for part in split} == {4 // parts}


def test_the_first_answer_where_it_is_asked_for():
    examples = [Example("t", [1], [[7, 2], [8, 2], [9, 2]]) for _ in range(4)]
    batches = make_batches(examples, prompts=1, rows=4)
    assert {int(row[1]) for row in batches.part(0, 0, 1, first_answer=True).labels} == {7}
    assert len({int(label) for step in range(6) for label in batches[step].labels[:, 1]}) > 1


def test_the_prompt_is_in_context_for_a_share_of_the_groups():
    def shown(texts, prompts, system_turn="empty") -> list[list[int]]:
        assert system_turn == "empty"
        return [[1] if prompt is None else [500] for prompt in prompts]

    examples = make_examples(7, 20)
    for share, low, high in ((0.0, 0, 0), (1.0, 1, 1), (0.4, 0.2, 0.6)):
        batches = make_batches(examples, render=shown, in_context_share=share)
        starts = [int(row[0]) == 500 for step in range(20) for row in batches[step].input_ids]
        assert low <= sum(starts) / len(starts) <= high
        for step in range(3):  # rows of a group are shown alike
            first = batches[step].input_ids[:, 0].view(4, 3) == 500
            assert bool((first.all(1) | ~first.any(1)).all())


def test_rows_with_the_prompt_in_context_stand_with_rows_as_long_as_they_are_then():
    examples = [Example(f"t{t}", [5] * 10, [[7, 2]]) for t in range(8) for _ in range(40)]

    def shown(texts, prompts, system_turn="empty") -> list[list[int]]:
        return [[6] * 50 for _ in texts]

    batches = make_batches(examples, render=shown, in_context_share=0.5)
    made = [batches[step] for step in range(per_epoch(batches))]
    real, padded = sum(batch.tokens for batch in made), sum(batch.input_ids.numel() for batch in made)
    assert any(batch.input_ids.shape[1] == 12 for batch in made)
    assert padded < 1.1 * real  # 1.6 where a batch is put together by the inputs alone


# --- batches by tasks --------------------------------------------------------------------------------------


def pooled_examples(tasks: int = 6, rows: int = 5, pool: str = "p") -> list[Example]:
    """Tasks that share their inputs: input i is the token 1000 + i, the answer says task and input."""
    return [
        Example(f"{pool}{t}", [1000 + i], [[10 * t + i, 2]], f"input {i}", f"{t}/{i}", pool)
        for t in range(tasks)
        for i in range(rows)
    ]


def by_tasks(examples: list[Example], sources: list[list[str]] | None = None, **options) -> Batches:
    names = {e.task: [f"own {e.task}", f"other {e.task}"] for e in examples}
    shown = {key: options.pop(key) for key in list(options) if key.endswith(("share", "pairs", "_tokens"))}
    size = {"prompts_per_batch": 4, "rows_per_prompt": 2, "seed": 0}
    size |= {key: options.pop(key) for key in size if key in options}
    of_order = {key: options.pop(key) for key in ("weights", "cluster") if key in options}
    order = TaskOrder(
        rows_by_task(examples),
        [example.length for example in examples],
        sources=sources or [list(names)],
        pools={example.task: example.pool for example in examples if example.pool},
        **of_order,
        **size,
    )
    return Batches(examples, names, pad=0, shown=Shown(**shown), order=order, **size, **options)


def test_every_task_comes_up_equally_often_however_many_rows_it_has():
    sizes = {"a": 1, "b": 3, "c": 50, "d": 200, "e": 7}
    examples = [Example(task, [5], [[7, 2]]) for task, size in sizes.items() for _ in range(size)]
    batches = by_tasks(examples)
    seen = Counter(task for step in range(50) for task in batches[step].tasks)
    assert set(seen.values()) == {40}  # 200 places, five tasks
    rows = Counter(i for step in range(50) for i in batches[step].examples if examples[i].task == "c")
    assert max(rows.values()) - min(rows[i] for i in range(4, 54)) <= 1  # 80 rows of 50: none three times


def test_batches_by_tasks_are_a_pure_function_of_seed_and_step():
    examples = make_examples(9, 12)
    batches = by_tasks(examples, seed=3, paraphrase_share=0.5, examples_share=0.5)
    first = [batches[step] for step in range(12)]
    fresh = by_tasks(examples, seed=3, paraphrase_share=0.5, examples_share=0.5)
    for step in random.Random(0).sample(range(12), 12):
        assert same(fresh[step], first[step])
    other = by_tasks(examples, seed=4, paraphrase_share=0.5)
    assert [other[step].examples for step in range(12)] != [batch.examples for batch in first]


def test_sources_have_their_places():
    examples = make_examples(40, 4)
    sources = [[f"t{i}" for i in range(4)], [f"t{i}" for i in range(4, 40)]]
    batches = by_tasks(examples, sources, weights=(3.0, 1.0), prompts_per_batch=8)
    for step in range(6):
        assert sum(int(task[1:]) < 4 for task in batches[step].tasks) == 6
    assert shared_places(8, [3, 1]) == [6, 2]
    assert shared_places(4, [1000, 1, 1]) == [2, 1, 1]  # none is left out
    assert sum(shared_places(64, [122, 310, 2000])) == 64


def test_a_source_without_a_place_is_refused():
    examples = make_examples(6, 4)
    sources = [["t0", "t1"], ["t2", "t3"], ["t4", "t5"]]
    with pytest.raises(DataError, match="prompts_per_batch=2: fewer than the 3 sources"):
        by_tasks(examples, sources, prompts_per_batch=2)
    batches = by_tasks(examples, sources, prompts_per_batch=3)
    assert {task for step in range(4) for task in batches[step].tasks} == {f"t{i}" for i in range(6)}


def test_a_cluster_shows_the_same_inputs_under_different_prompts():
    examples = pooled_examples(6, 5, "p") + pooled_examples(6, 5, "q")
    batches = by_tasks(examples, cluster=2, prompts_per_batch=4)
    for step in range(9):
        batch = batches[step]
        inputs = {task: [] for task in batch.tasks}
        for at, i in enumerate(batch.examples):
            inputs[batch.tasks[at // 2]].append(examples[i].text)
        for pool in "pq":
            shown = [texts for task, texts in inputs.items() if task.startswith(pool)]
            assert len(shown) in (0, 2, 4)
            assert all(texts == shown[0] for texts in shown) or len(shown) == 4
    apart = by_tasks(examples, cluster=1)
    assert any(len({task[0] for task in apart[step].tasks}) == 2 for step in range(9))


def test_examples_are_read_but_never_those_that_are_answered():
    examples = pooled_examples(5, 12)
    batches = by_tasks(examples, examples_share=0.5)
    carried = 0
    for step in range(30):
        batch = batches[step]
        assert batch.wordings == tuple(prompt.split("\n\n")[0] for prompt in batch.prompts)
        for g, prompt in enumerate(batch.prompts):
            _, *pairs = prompt.split("\n\n")
            carried += bool(pairs)
            assert len(pairs) in (0, 2, 3, 4)
            answered = {examples[i].text for i in batch.examples[2 * g : 2 * g + 2]}
            for pair in pairs:
                text, output = pair.removeprefix("Input: ").split("\nOutput: ")
                assert text not in answered
                assert output == f"{batch.tasks[g][1:]}/{text.split()[1]}"  # of the same task
    assert 0.4 < carried / 120 < 0.6
    assert all(
        "Input:" not in prompt
        for step in range(9)
        for prompt in by_tasks(examples, examples_share=1.0, examples_tokens=2)[step].prompts
    )


def test_system_turns_take_their_shares():
    def render(texts, prompts, system_turn="empty"):
        return [[{"empty": 1, "default": 2, "none": 3}[system_turn]] for _ in texts]

    batches = by_tasks(make_examples(8, 10), default_system_share=0.3, no_system_share=0.2, render=render)
    starts = Counter(int(row[0]) for step in range(100) for row in batches[step].input_ids)
    total = sum(starts.values())
    assert 0.24 < starts[2] / total < 0.36
    assert 0.14 < starts[3] / total < 0.26
    assert 1 not in starts  # "empty" is what the examples hold


def test_rows_of_near_length_share_a_part():
    batches = by_tasks(make_examples(24, 10, longest=100), prompts_per_batch=16)
    parts = batches.parts(0, 4)
    longest = [part.input_ids.shape[1] for part in parts]
    assert longest == sorted(longest)
    assert longest[0] < longest[-1]
    whole = batches[0]
    assert sorted(i for part in parts for i in part.examples) == sorted(whole.examples)


def test_pairs_are_other_wordings_of_the_same_task():
    batch = by_tasks(make_examples(8, 10), pairs=True, paraphrase_share=0.5)[0]
    for task, wording, pair in zip(batch.tasks, batch.wordings, batch.pairs, strict=True):
        assert {wording, pair} == {f"own {task}", f"other {task}"}


def test_inputs_are_rendered_as_the_template_does_it():
    texts, prompts = ["w1", " w2\n", "w3 w4"], [None, "say a", None]
    for tokenizer in (word_tokenizer(), word_tokenizer(None)):
        expected = encode_chat(tokenizer, [render_chat(tokenizer, t, p) for t, p in zip(texts, prompts, strict=True)])
        assert render_inputs(tokenizer, texts, prompts) == expected
    trimming = word_tokenizer(TEMPLATE.replace("m['content']", "m['content'] | trim"))
    assert render_inputs(trimming, [" a "])[0] == encode_chat(trimming, [render_chat(trimming, " a ")])[0]

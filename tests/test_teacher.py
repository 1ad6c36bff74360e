"""The teacher: its cache, the reader, and the one that is asked online. A teacher equal to the student has KL 0."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from promptlora.cli import main
from promptlora.data import Row, read_rows, tokenize_rows
from promptlora.data.config import DataConfig
from promptlora.errors import ConfigError, DataError, ModelError, OutputError
from promptlora.losses import IGNORED, TeacherTargets, distillation_loss
from promptlora.models import base_fingerprint, embedded_folder
from promptlora.teacher import (
    OnlineTeacher,
    TeachConfig,
    TeacherCache,
    VllmTeacher,
    check_same_tokenizer,
    key_of,
    teach,
    teacher_context,
    teacher_targets,
)
from promptlora.teacher.rows import lessons
from promptlora.teacher.vllm_client import default_python
from promptlora.text import encode_chat, render_chat
from tests.forked import Forked, promptlora
from tests.helpers import tiny_llama
from tests.training_helpers import TEMPLATE, WORDS, save_base, toy_rows, word_tokenizer, write_jsonl

REAL = [
    ("Translate to Spanish.", "good morning", "buenos días"),
    ("Answer with one word: positive or negative.", "I loved every minute of it", "positive"),
    ("Write the plural.", "one mouse", "mice"),
    ("Write a short title for this text.", "The ship left the harbour at dawn and never came back.", "The Lost Ship"),
    ("Say which number is larger.", "12 or 7", "12 is larger than 7."),
]
WHERE_VLLM = Path(os.environ.get("PROMPTLORA_VLLM_PYTHON") or default_python())


def real_rows() -> list[Row]:
    return [Row(task=prompt, prompt=prompt, input=text, outputs=(answer,)) for prompt, text, answer in REAL]


def rows_of(count: int = 40) -> list[Row]:
    """Rows of the word tokenizer, answers of one to four words."""
    return [
        Row(
            task="t", prompt=f"say {WORDS[i % 5]}", input=" ".join(WORDS[6 + (3 * i + j) % 80] for j in range(1 + i % 7)),
            outputs=(" ".join(WORDS[6 + (i + j) % 80] for j in range(1 + i % 4)),),
        )
        for i in range(count)
    ]  # fmt: skip


def keys_of(tokenizer, rows: Sequence[Row], config: TeachConfig) -> list[str]:
    return [lesson.key for lesson in lessons(tokenizer, rows, config)[0]]


def tiny_teach(folder: Path, rows: Sequence[Row], seed: int = 0, **options):
    """Teach from the tiny Llama; returns the summary, the model and the tokenizer."""
    model, tokenizer = tiny_llama(torch.float32, seed), word_tokenizer()
    config = TeachConfig(**{"top_k": 8, "rows_per_shard": 8, "max_tokens": 128, **options})
    teacher = OnlineTeacher(model, tokenizer, batch_size=4)
    taught = teach(teacher, tokenizer, rows, folder, config, fingerprint=base_fingerprint(model))
    return taught, model, tokenizer


def in_context(tokenizer, rows: Sequence[Row], config: TeachConfig) -> tuple[Tensor, Tensor]:
    """A student's batch that reads the prompt in its context too: ids and labels, padded on the right."""
    kept, _ = lessons(tokenizer, rows, config)
    return padded([(lesson.context, lesson.answer) for lesson in kept])


def padded(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    longest = max(len(context) + len(answer) for context, answer in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for i, (context, answer) in enumerate(pairs):
        end = len(context) + len(answer)
        ids[i, :end] = torch.tensor(context + answer)
        labels[i, len(context) : end] = torch.tensor(answer)
    return ids, labels


def kl(model: PreTrainedModel, ids: Tensor, labels: Tensor, targets: TeacherTargets, **options) -> float:
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return float(distillation_loss(hidden, labels, model.get_output_embeddings(), targets, **options))


def shifted(targets: TeacherTargets, by: int) -> TeacherTargets:
    """The mistake: the distributions of the positions before or after."""
    assert targets.ids is not None
    return TeacherTargets(targets.log_probs.roll(by, 0), targets.ids.roll(by, 0))


# --- what a teacher is asked ---------------------------------------------------------------------------------


def test_a_key_is_of_prompt_input_and_answer():
    key = key_of("p", "i", [1, 2])
    assert key == key_of("p", "i", torch.tensor([1, 2]))
    assert len(bytes.fromhex(key)) == 32
    others = [key_of("p", "i", [1]), key_of("pi", "", [1, 2]), key_of("i", "p", [1, 2]), key_of("p", "i", [2, 1])]
    assert len({key, *others}) == 5


def test_lessons_have_the_students_answers_and_the_evaluations_context(smollm):
    _, tokenizer = smollm
    rows = [replace(row, outputs=("word " * 300, *row.outputs, "another")) for row in real_rows()]
    kept, left_out = lessons(tokenizer, rows, TeachConfig())
    examples, _ = tokenize_rows(tokenizer, rows, DataConfig(train=""))
    assert [lesson.answer for lesson in kept] == [example.answers[0] for example in examples]
    assert all(lesson.answer[-1] == tokenizer.eos_token_id for lesson in kept)
    expected = encode_chat(tokenizer, [render_chat(tokenizer, row.input, row.prompt) for row in rows])
    assert [lesson.context for lesson in kept] == expected
    assert not any(left_out.values())


def test_rows_that_are_too_long_are_counted_never_cut(tmp_path):
    rows = rows_of(8)
    long = [
        replace(rows[0], input=" ".join(["w1"] * 30)),
        replace(rows[0], outputs=(" ".join(["w1"] * 30),)),
        replace(rows[0], prompt=" ".join(["say"] * 90)),
    ]
    taught, _, _ = tiny_teach(
        tmp_path / "cache", [*rows, *long, rows[3]], max_input_tokens=20, max_answer_tokens=20, max_tokens=90
    )
    assert taught.left_out == {"repeated": 1, "input": 1, "answer": 1, "context": 1}
    assert taught.rows == 8


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none of 8 rows is left \(answer 8\)"):
        tiny_teach(tmp_path / "cache", rows_of(8), max_answer_tokens=1)


# --- targets: naive twin, shift, KL 0 ------------------------------------------------------------------------


def test_targets_are_those_of_the_whole_logits_one_row_at_a_time():
    model, tokenizer = tiny_llama(torch.float32), word_tokenizer()
    kept, _ = lessons(tokenizer, rows_of(11), TeachConfig())
    pairs = [(lesson.context, lesson.answer) for lesson in kept]
    naive = []
    for context, answer in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0]
        naive.append(logits.log_softmax(-1)[len(context) - 1 : -1])  # position t predicts token t + 1
    expected = torch.cat(naive)
    in_order, in_batches = OnlineTeacher(model, tokenizer), OnlineTeacher(model, tokenizer, batch_size=3)
    for teacher in (in_order, in_batches):
        full = teacher.targets(pairs)
        assert full.ids is None
        torch.testing.assert_close(full.log_probs, expected, atol=2e-5, rtol=1e-5)
        top = teacher.targets(pairs, 5)
        torch.testing.assert_close(top.log_probs, expected.topk(5).values, atol=2e-5, rtol=1e-5)
        assert torch.equal(top.ids, expected.topk(5).indices)


def test_the_head_is_applied_in_parts(monkeypatch):
    model, tokenizer = tiny_llama(torch.float32), word_tokenizer()
    ids, labels = in_context(tokenizer, rows_of(6), TeachConfig())
    whole = teacher_targets(model, ids, labels, 4)
    monkeypatch.setattr("promptlora.teacher.online._LOGITS", 97 * 3)
    parts = teacher_targets(model, ids, labels, 4)
    assert torch.equal(whole.ids, parts.ids)
    torch.testing.assert_close(whole.log_probs, parts.log_probs)
    assert teacher_targets(model, ids, torch.full_like(labels, IGNORED), 4).log_probs.shape == (0, 4)


def test_a_bfloat16_teacher_answers_in_float32():
    model, tokenizer = tiny_llama(torch.bfloat16), word_tokenizer()
    ids, labels = in_context(tokenizer, rows_of(4), TeachConfig())
    targets = OnlineTeacher(model, tokenizer).targets([([1, 2, 3], [4, 5])])
    assert targets.log_probs.dtype == torch.float32
    torch.testing.assert_close(targets.log_probs.exp().sum(-1), torch.ones(2))
    assert teacher_targets(model, ids, labels, 3).log_probs.dtype == torch.float32


def test_a_model_that_scales_its_logits_is_refused():
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=4.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(ModelError, match="GraniteForCausalLM changes its logits after the head"):
        OnlineTeacher(GraniteForCausalLM(config).eval(), word_tokenizer())


@pytest.mark.real
def test_teacher_equal_to_student_has_kl_0_through_the_cache_and_online(smollm, tmp_path):
    model, tokenizer = smollm
    config = TeachConfig(rows_per_shard=2)
    rows = real_rows()
    online = OnlineTeacher(model, tokenizer, batch_size=2)
    teach(online, tokenizer, rows, tmp_path / "cache", config, fingerprint=base_fingerprint(model))
    cache = TeacherCache.open(tmp_path / "cache", tokenizer, teacher=base_fingerprint(model))
    ids, labels = in_context(tokenizer, rows, config)
    cached = cache.targets(keys_of(tokenizer, rows, config))
    full = OnlineTeacher(model, tokenizer).targets(
        [(lesson.context, lesson.answer) for lesson in lessons(tokenizer, rows, config)[0]]
    )
    for targets in (cached, full, teacher_targets(model, ids, labels, 64)):
        assert abs(kl(model, ids, labels, targets)) < 1e-6
    for by in (1, -1):  # one position off is not small
        assert kl(model, ids, labels, shifted(cached, by)) > 1.0


@pytest.mark.real
def test_the_bucket_of_the_tail_is_near_the_full_kl_and_below_it(smollm):
    """Student: the same model without the prompt. Stated: 15 % at k = 64, 3 % at k = 1024."""
    model, tokenizer = smollm
    kept, _ = lessons(tokenizer, real_rows(), TeachConfig())
    teacher = OnlineTeacher(model, tokenizer)
    pairs = [(lesson.context, lesson.answer) for lesson in kept]
    without = encode_chat(tokenizer, [render_chat(tokenizer, lesson.row.input) for lesson in kept])
    ids, labels = padded([(context, lesson.answer) for context, lesson in zip(without, kept, strict=True)])
    full = kl(model, ids, labels, teacher.targets(pairs))
    assert full > 0.1
    buckets = [kl(model, ids, labels, teacher.targets(pairs, k)) for k in (4, 64, 1024)]
    assert buckets[0] < buckets[1] < buckets[2] <= full + 1e-5
    assert buckets[1] > 0.85 * full
    assert buckets[2] > 0.97 * full


# --- the cache ------------------------------------------------------------------------------------------------


def test_the_cache_gives_back_what_the_teacher_said_in_any_order(tmp_path):
    rows = rows_of(30)
    config = TeachConfig(top_k=8, rows_per_shard=8, max_tokens=128)
    taught, model, tokenizer = tiny_teach(tmp_path / "cache", rows)
    assert (taught.rows, taught.shards, taught.shards_written) == (30, 4, 4)
    cache = TeacherCache.open(tmp_path / "cache", tokenizer, open_shards=1)
    kept, _ = lessons(tokenizer, rows, config)
    assert len(cache) == 30
    assert cache.tokens == taught.answer_tokens == sum(len(lesson.answer) for lesson in kept)
    chosen = [kept[i] for i in (29, 0, 13, 7, 8, 0)]
    expected = OnlineTeacher(model, tokenizer).targets([(lesson.context, lesson.answer) for lesson in chosen], 8)
    found = cache.targets([lesson.key for lesson in chosen])
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=2e-5, rtol=1e-5)
    assert torch.equal(found.ids, expected.ids)
    assert found.ids.dtype == torch.long
    assert all(cache.answer(lesson.key) == lesson.answer for lesson in kept)
    assert kept[0].key in cache
    assert key_of("p", "i", [1]) not in cache
    assert "no hex" not in cache
    assert cache.targets([]).log_probs.shape == (0, 8)


def test_a_missing_row_is_one_clear_line(tmp_path):
    _, _, tokenizer = tiny_teach(tmp_path / "cache", rows_of(9))
    cache = TeacherCache.open(tmp_path / "cache", tokenizer)
    with pytest.raises(DataError, match=r"no row [0-9a-f]{12}… among 9; expected a prompt, input and first answer"):
        cache.targets([key_of("say", "something else", [1])])


def test_a_row_whose_shard_leaves_all_others_out(tmp_path):
    rows = rows_of(12)
    long = [replace(row, outputs=(" ".join(["w1"] * 30),)) for row in rows[:8]]
    taught, _, tokenizer = tiny_teach(tmp_path / "cache", [*long, *rows[8:]], max_answer_tokens=20)
    assert taught.rows == 4
    cache = TeacherCache.open(tmp_path / "cache", tokenizer)
    assert len(cache.targets(keys_of(tokenizer, rows[8:], cache.manifest.config)).log_probs) == cache.tokens


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 9}, r"top_k=8, not 9"),
        ({"seed": 1}, "teacher weights="),
        ({"rows_per_shard": 4}, "rows_per_shard=8, not 4"),
        ({"place": "system"}, "place=user, not system"),
        ({"max_answer_tokens": 5}, "max_answer_tokens=256, not 5"),
        ({"answers": "teacher"}, "answers=data, not teacher"),
        ({"rows": rows_of(20)[::-1]}, "data="),
    ],
)
def test_a_folder_of_another_cache_is_refused_and_kept(change, words, tmp_path):
    tiny_teach(tmp_path / "cache", rows_of(20))
    before = contents(tmp_path / "cache")
    with pytest.raises(OutputError, match=words) as caught:
        tiny_teach(tmp_path / "cache", **{"rows": rows_of(20), **change})
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "cache") == before


def test_a_folder_that_is_no_cache_is_refused_and_kept(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is no cache"):
        tiny_teach(folder, rows_of(4))
    (folder / "manifest.json").write_text('{"name": "an app of the web"}')
    with pytest.raises(DataError, match="a damaged manifest"):
        tiny_teach(folder, rows_of(4))
    assert [file.name for file in sorted(folder.iterdir())] == ["manifest.json", "notes.txt"]


def test_a_cache_without_a_shard_may_get_other_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"top_k=98; expected at most 97"):
        tiny_teach(tmp_path / "cache", rows_of(4), top_k=98)
    tiny_teach(tmp_path / "cache", rows_of(4), top_k=97)
    (tmp_path / "cache" / "index.json").unlink()  # as a kill before the first shard leaves it
    taught, _, _ = tiny_teach(tmp_path / "cache", rows_of(4), top_k=5)
    assert taught.shards_written == 1


@pytest.mark.parametrize(
    ("tokenizer", "options", "words"),
    [
        (word_tokenizer(TEMPLATE.replace("<assistant>", "<user>")), {}, "another chat template"),
        (word_tokenizer(None), {}, "another chat template"),
        (word_tokenizer(), {"place": "system"}, "stand in the user turn, expected system"),
        (word_tokenizer(), {"teacher": {"weights": "abcdefghijklmnop"}}, "another teacher .weights is"),
    ],
)
def test_a_reader_with_something_else_is_refused(tokenizer, options, words, tmp_path):
    tiny_teach(tmp_path / "cache", rows_of(4))
    with pytest.raises(DataError, match=words):
        TeacherCache.open(tmp_path / "cache", tokenizer, **options)


def test_a_reader_with_another_tokenizer_is_refused(smollm, tmp_path):
    _, _, tokenizer = tiny_teach(tmp_path / "cache", rows_of(4))
    for other in (smollm[1], renamed_token(), other_end()):
        with pytest.raises(DataError, match="made for another tokenizer"):
            TeacherCache.open(tmp_path / "cache", other)
    with pytest.raises(DataError, match=r"no manifest.json; expected a folder written by promptlora teach"):
        TeacherCache.open(tmp_path / "nowhere", tokenizer)
    manifest = tmp_path / "cache" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(DataError, match="format 7; this promptlora reads 1"):
        TeacherCache.open(tmp_path / "cache", tokenizer)


def renamed_token():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["another"])
    return tokenizer


def other_end():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "<user>"
    return tokenizer


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (renamed_token(), "token 'another' is 97 to the teacher and unknown to the base"),
        (other_end(), "answers end with token 5 at the teacher and 2 at the base"),
        (word_tokenizer(None), "the teacher's chat template gives"),
        (word_tokenizer(TEMPLATE.replace("</s>", "")), None),
    ],
)
def test_a_teacher_with_another_tokenizer_is_refused(teacher, words):
    if words is None:  # the same rendering from another source is the same
        check_same_tokenizer(teacher, word_tokenizer())
        return
    with pytest.raises(ModelError, match=words):
        check_same_tokenizer(teacher, word_tokenizer())


# --- damage and kills ----------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*")}


def flip(path: Path, at: int) -> None:
    values = bytearray(path.read_bytes())
    values[at] ^= 1
    path.write_bytes(values)


@pytest.mark.parametrize("damage", ["cut", "header", "keys", "log_probs", "last", "gone"])
def test_a_damaged_shard_is_named_and_made_anew_alone(damage, tmp_path):
    folder, rows = tmp_path / "cache", rows_of(30)
    _, _, tokenizer = tiny_teach(folder, rows)
    before, stamps = contents(folder), times(folder)
    shard = folder / "shard-00002.safetensors"
    header = 8 + int.from_bytes(before[shard.name][:8], "little")
    spans = {name: value["data_offsets"] for name, value in json.loads(before[shard.name][8:header]).items()}
    if damage == "cut":
        shard.write_bytes(before[shard.name][:-7])
    elif damage == "gone":
        shard.unlink()
    elif damage == "header":
        flip(shard, 12)
    elif damage == "last":
        flip(shard, -1)
    else:
        flip(shard, header + spans[damage][0] + 3)

    def read() -> TeacherTargets:
        cache = TeacherCache.open(folder, tokenizer)
        return cache.targets(keys_of(tokenizer, rows, cache.manifest.config))

    with pytest.raises(
        DataError, match=r"shard-00002.safetensors: damaged \(.*run the same promptlora teach again"
    ) as e:
        read()
    assert "\n" not in str(e.value)
    taught, _, _ = tiny_teach(folder, rows)
    assert (taught.shards, taught.shards_written) == (4, 1)
    assert contents(folder) == before
    changed = [name for name, stamp in times(folder).items() if stamp != stamps[name]]
    assert changed == [shard.name]
    assert len(read().log_probs) == taught.answer_tokens


def test_a_damaged_index_is_one_line(tmp_path):
    _, _, tokenizer = tiny_teach(tmp_path / "cache", rows_of(9))
    index = tmp_path / "cache" / "index.json"
    index.write_text(index.read_text()[:-20])
    with pytest.raises(DataError, match=r"index.json: a damaged index \("):
        TeacherCache.open(tmp_path / "cache", tokenizer)


@pytest.fixture
def base_and_rows(tmp_path) -> tuple[Path, Path]:
    """A tiny base as a folder, and many rows as a file."""
    rows = [vars(row) for row in rows_of(480)]
    return save_base(tmp_path / "base"), write_jsonl(tmp_path / "rows.jsonl", rows)


def command(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        "teach", str(data), "-o", str(output), "--base", str(base), "--top-k", "8", "--rows-per-shard", "2",
        "--batch-size", "2", "--threads", "1", *more,
    ]  # fmt: skip


def start_and_wait_for(shards: int, arguments: list[str], folder: Path) -> Forked:
    """The command in a process of its own, once its index has that many shards."""
    process = Forked(promptlora, *arguments)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "index.json").is_file() and len(json.loads((folder / "index.json").read_text())) >= shards:
            return process
        time.sleep(0.002)
    raise AssertionError(process.communicate())


def test_a_killed_run_goes_on_to_the_bytes_of_an_uninterrupted_one(base_and_rows, tmp_path, capsys):
    base, data = base_and_rows
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(base, data, whole, "--json")) == 0
    expected = json.loads(capsys.readouterr().out)
    process = start_and_wait_for(5, command(base, data, killed), killed)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = json.loads((killed / "index.json").read_text())
    assert 5 <= len(kept) < 240  # it was killed on the way
    stamps = times(killed)
    (killed / ".shard-00100.safetensors.abcdefgh").write_bytes(b"half")  # what a kill while writing leaves
    with pytest.raises(DataError, match=r"of 240 shards are there; run the same promptlora teach again"):
        TeacherCache.open(killed, word_tokenizer())
    assert main(command(base, data, killed, "--json")) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["shards_written"] == 240 - len(kept)
    assert {**values, "output": "", "shards_written": 0} == {**expected, "output": "", "shards_written": 0}
    assert contents(killed) == contents(whole)  # nothing twice, nothing missing, nothing else
    files = [f"shard-{shard['number']:05d}.safetensors" for shard in kept]
    assert [times(killed)[file] for file in files] == [
        stamps[file] for file in files
    ]  # what was there was not made again
    cache = TeacherCache.open(killed, word_tokenizer())
    keys = keys_of(word_tokenizer(), read_rows(data), cache.manifest.config)
    assert len(set(keys)) == len(cache) == 480
    assert len(cache.targets(keys).log_probs) == cache.tokens
    stamps = times(killed)
    assert main(command(base, data, killed, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["shards_written"] == 0
    assert times(killed) == stamps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_keeps_its_shards(number, base_and_rows, tmp_path):
    base, data = base_and_rows
    folder = tmp_path / "cache"
    process = start_and_wait_for(3, command(base, data, folder), folder)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished shards are kept" in " ".join(error.split())
    assert "Traceback" not in error
    assert len(json.loads((folder / "index.json").read_text())) >= 3
    assert not list(folder.glob(".*"))


# --- the teacher's own answers -------------------------------------------------------------------------------


@pytest.mark.real
def test_the_teacher_writes_its_own_answers(lm, tmp_path):
    model, tokenizer = lm.model, lm.tokenizer
    rows = [replace(row, outputs=("never read",)) for row in real_rows()[:3]]
    config = TeachConfig(answers="teacher", max_answer_tokens=12, rows_per_shard=2)
    folder = tmp_path / "cache"
    with lm.injector.apply(None):
        taught = teach(
            OnlineTeacher(model, tokenizer, batch_size=2), tokenizer, rows, folder, config,
            fingerprint=base_fingerprint(model),
        )  # fmt: skip
    said = lm.generate(
        [row.input for row in rows], in_context=[row.prompt for row in rows], max_new_tokens=12, batch_size=1
    )
    lengths = [len(ids) for ids in tokenizer(said, add_special_tokens=False)["input_ids"]]
    ended = {row.prompt: text for row, text, n in zip(rows, said, lengths, strict=True) if n < 12}
    assert 0 < len(ended) < len(rows)  # some go on past the limit: those are counted, not cut
    assert taught.left_out == {
        "repeated": 0, "input": 0, "answer": 0, "context": 0, "unfinished": len(rows) - len(ended), "empty": 0,
    }  # fmt: skip
    again = read_rows(taught.rows_file)
    assert {row.prompt: row.outputs for row in again} == {prompt: (text,) for prompt, text in ended.items()}
    cache = TeacherCache.open(folder, tokenizer)
    examples, _ = tokenize_rows(tokenizer, again, DataConfig(train=""))
    keys = [key_of(row.prompt, row.input, e.answers[0]) for row, e in zip(again, examples, strict=True)]
    assert set(keys) == set(keys_of(tokenizer, again, config))
    targets = cache.targets(keys)
    written = torch.tensor([token for example in examples for token in example.answers[0]])
    assert torch.equal(targets.ids[:, 0], written)  # greedy: each token, the end too, was the likeliest
    before = contents(folder)
    (folder / "shard-00001.safetensors").unlink()
    (folder / "rows.jsonl").unlink()
    with lm.injector.apply(None):
        teach(
            OnlineTeacher(model, tokenizer, batch_size=2), tokenizer, rows, folder, config,
            fingerprint=base_fingerprint(model),
        )  # fmt: skip
    assert contents(folder) == before


@pytest.mark.real
def test_rows_without_outputs_are_answered_by_the_teacher(tmp_path, capsys):
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt, "input": text} for prompt, text, _ in REAL[:3]])
    arguments = ["teach", data, "-o", tmp_path / "cache", "--max-answer-tokens", 16, "--threads", 1]
    assert "rows.jsonl:1: outputs=None" in fails(capsys, *arguments)
    assert main([*map(str, arguments), "--answers", "teacher", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    written = read_rows(values["rows_file"])
    assert len(written) == values["rows"] == 3 - values["left_out"]["unfinished"]
    assert all(row.outputs[0] for row in written)


# --- the command ---------------------------------------------------------------------------------------------


def fails(capsys, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    return lines[0]


def test_the_command_says_what_it_did(base_and_rows, tmp_path, capsys, monkeypatch):
    base, data = base_and_rows
    write_jsonl(data, [*toy_rows(tasks=3, inputs=4), {**toy_rows()[0], "split": "eval"}])
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["teach", "--help"]) == 0
    assert "promptlora teach" in capsys.readouterr().out.split("Example")[1]
    assert main([*command(base, data, tmp_path / "cache"), "--rows-per-task", "2"]) == 0
    printed = capsys.readouterr()
    assert "6 rows, 12 answer tokens, 3 shards (3 written now)" in printed.out
    assert "left out: none" in printed.out
    assert "log-probabilities" in printed.err
    line = fails(capsys, *command(base, data, tmp_path / "cache"), "--rows-per-task", "3")
    assert "holds a cache with data=" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl: no such file"),
        (("DATA", "--teacher", "./nowhere"), "./nowhere: no such folder"),
        (("DATA", "--backend", "magic"), "--backend magic: expected transformers or vllm"),
        (("DATA", "--answers", "mine"), "answers='mine'; expected one of data, teacher"),
        (("DATA", "--place", "margin"), "place='margin'; expected one of user, system"),
        (("DATA", "--top-k", "0"), "--top-k"),
        (("DATA", "--top-k", "98"), "top_k=98; expected at most 97"),
        (("DATA", "--dtype", "int3"), "--dtype int3"),
        (("DATA", "--vllm-options", "[1]"), "--vllm-options [1]: expected a JSON object"),
        (("DATA", "--backend", "vllm", "--vllm-python", "nowhere/python"), "nowhere/python: no such file; vLLM has an"),
        (("DATA", "--split", "other"), "no row with split='other'"),
        (("DATA", "--max-tokens", "3"), "none of 2 rows is left (context 2)"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, words, tmp_path, capsys):
    base = save_base(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", [{**row, "split": "train"} for row in toy_rows(1, 2)])
    arguments = [str(data) if a == "DATA" else a for a in arguments]
    line = fails(capsys, "teach", *arguments, "-o", tmp_path / "cache", "--base", base, "--top-k", "8", *arguments[1:])
    assert words in line


def test_a_teacher_of_another_tokenizer_is_exit_2(base_and_rows, tmp_path, capsys):
    base, data = base_and_rows
    other = save_base(tmp_path / "other")
    renamed_token().save_pretrained(other)
    line = fails(capsys, *command(base, data, tmp_path / "cache"), "--teacher", other)
    assert "token 'another' is 97 to the teacher and unknown to the base" in line
    assert not (tmp_path / "cache").exists()


def test_another_teacher_with_the_same_tokenizer_is_asked(base_and_rows, tmp_path, capsys):
    base, data = base_and_rows
    write_jsonl(data, toy_rows(2, 3))
    larger = tiny_llama(torch.float32, 5, num_hidden_layers=3)
    larger.save_pretrained(tmp_path / "larger")
    word_tokenizer().save_pretrained(tmp_path / "larger")
    assert main(command(base, data, tmp_path / "cache", "--teacher", str(tmp_path / "larger"))) == 0
    cache = TeacherCache.open(tmp_path / "cache", word_tokenizer(), teacher=base_fingerprint(larger))
    row = read_rows(data)[0]
    context, answer = (
        teacher_context(word_tokenizer(), row.prompt, row.input),
        [*word_tokenizer()(row.outputs[0])["input_ids"], 2],
    )
    with torch.no_grad():
        logits = larger(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
    expected = F.log_softmax(logits, -1).topk(8)
    found = cache.targets([key_of(row.prompt, row.input, answer)])
    torch.testing.assert_close(found.log_probs, expected.values, atol=2e-5, rtol=1e-5)
    assert torch.equal(found.ids, expected.indices)


# --- vLLM ----------------------------------------------------------------------------------------------------


def test_a_python_without_vllm_is_one_line(smollm, tmp_path):
    _, tokenizer = smollm
    with VllmTeacher(tmp_path, tokenizer, python=sys.executable) as teacher:
        with pytest.raises(ModelError, match=r"vLLM stopped .ModuleNotFoundError: No module named 'vllm'") as caught:
            teacher.targets([([1, 2], [3])], 4)
        assert "\n" not in str(caught.value)


@pytest.mark.real
@pytest.mark.skipif(not WHERE_VLLM.is_file(), reason=f"vLLM is not installed: no {WHERE_VLLM}; see docs/teach.md")
def test_teacher_equal_to_student_has_kl_0_on_vllm(smollm, tmp_path):
    model, tokenizer = smollm
    rows, config = real_rows(), TeachConfig(top_k=16, max_tokens=512, rows_per_shard=3)
    with VllmTeacher(
        embedded_folder(), tokenizer, python=WHERE_VLLM, top_k=16, max_tokens=512, batch_size=2, threads=1
    ) as teacher:
        teach(teacher, tokenizer, rows, tmp_path / "cache", config, fingerprint=base_fingerprint(model))
        contexts = [teacher_context(tokenizer, row.prompt, row.input) for row in rows]
        written = teacher.answers(contexts, 24)
    cache = TeacherCache.open(tmp_path / "cache", tokenizer)
    assert cache.manifest.backend == "vllm"
    ids, labels = in_context(tokenizer, rows, config)
    targets = cache.targets(keys_of(tokenizer, rows, config))
    assert abs(kl(model, ids, labels, targets)) < 1e-6
    for by in (1, -1):
        assert kl(model, ids, labels, shifted(targets, by)) > 1.0
    ours = teacher_targets(model, ids, labels, 16)
    assert torch.equal(targets.ids[:, 0], ours.ids[:, 0])
    torch.testing.assert_close(targets.log_probs, ours.log_probs, atol=1e-3, rtol=1e-3)
    assert written == OnlineTeacher(model, tokenizer, batch_size=2).answers(contexts, 24)

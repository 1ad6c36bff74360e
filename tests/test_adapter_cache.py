"""Adapters by content: the same prompt is the same adapter in any process, and a damaged file is none."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine import AdapterCache, AdapterEntry, Engine
from promptlora.engine.storage import fingerprint
from promptlora.errors import ConfigError, NoRoomError, OutputError
from promptlora.lora import LoRAWeights
from tests.forked import Forked, tell
from tests.helpers import random_lora, tiny_llama
from tests.host_helpers import prompts, tiny_network, tiny_prompt_lora


@pytest.fixture(params=["full", "core"])
def lm(request: pytest.FixtureRequest) -> Iterator[PromptLoRA]:
    made = tiny_prompt_lora(tiny_llama(torch.float32), head=request.param)
    yield made
    made.close()


def entry(lm: PromptLoRA, cache: AdapterCache, prompt: str) -> AdapterEntry:
    lora = lm.adapt(prompt)
    return AdapterEntry(cache.key(prompt), lora, lora.nbytes, 4, False, False, 1700000000.0, 0.25)


def same(a: LoRAWeights, b: LoRAWeights) -> bool:
    return (
        list(a) == list(b)
        and a.scaling == b.scaling
        and all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    )


def file_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


# --- keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_the_content(lm):
    cache = AdapterCache(lm)
    other = tiny_prompt_lora(tiny_llama(torch.float32, seed=1), head=lm.hypernetwork.config.head)
    keys = [
        cache.key("a b"), cache.key("a  b"), cache.key("a b", [("c", "d")]), cache.key("a b", [("d", "c")]),
        cache.key("a b", in_context=True), cache.key("a b", refinement="r"), AdapterCache(other).key("a b"),
        cache.key("\ud800"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 and int(key, 16) for key in keys)
    assert AdapterCache(lm).key("a b", (("c", "d"),)) == keys[2]
    other.close()


def test_the_fingerprint_is_of_every_weight():
    model = tiny_llama(torch.float32)
    network, equal = tiny_network(model), tiny_network(model)
    assert fingerprint(network) == fingerprint(equal)
    parameter = list(equal.parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[-1] += 1e-3
    assert fingerprint(network) != fingerprint(equal)


# --- memory and disk ---------------------------------------------------------------------------------------------


def test_what_was_put_is_found_in_memory_and_on_disk(lm, tmp_path):
    cache = AdapterCache(lm, folder=tmp_path / "adapters")
    one = entry(lm, cache, prompts(1)[0])
    assert cache.get(one.key) is None
    cache.put(one)
    assert cache.get(one.key) is one
    found = AdapterCache(lm, folder=tmp_path / "adapters").get(one.key)
    assert found is not None
    assert replace(found, lora=one.lora) == one
    assert same(found.lora, one.lora)
    assert found.lora.projections == one.lora.projections
    assert lm.generate("w1 w2", found.lora) == lm.generate("w1 w2", one.lora)
    assert cache.list() == (one.key,)
    assert cache.delete(one.key)
    assert not cache.delete(one.key)
    assert cache.get(one.key) is None
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_files_hold_what_is_the_adapters_own(lm, tmp_path):
    cache = AdapterCache(lm, folder=tmp_path)
    lora = lm.adapt(prompts(1)[0], examples=[("w77 w3", "w77")])
    cache.put(replace(entry(lm, cache, prompts(1)[0]), lora=lora))
    with safe_open(file_of(tmp_path), "pt") as file:
        letters = {name[-1] for name in file.keys()}  # noqa: SIM118
        assert prompts(1)[0] not in json.dumps(file.metadata())
        assert "w77" not in json.dumps(file.metadata())
    assert letters == ({"C"} if lm.hypernetwork.config.head == "core" else {"A", "B"})
    found = [AdapterCache(lm, folder=tmp_path).get(key) for key in cache.list() * 2]
    if lm.hypernetwork.config.head == "core":  # factors are in memory once
        assert len({one.lora.stored[name].A.data_ptr() for one in found for name in list(one.lora)[:1]}) == 1


def test_an_adapter_with_factors_of_its_own_is_written_whole(lm, tmp_path):
    cache = AdapterCache(lm, folder=tmp_path)
    lora = random_lora(lm.hypernetwork.projections, dtype=torch.float32)
    factors = {name: (A[0], B[0]) for name, (A, B) in lora.items()}
    shared = LoRAWeights.shared(factors, {name: torch.randn(1, 3, 3) for name in factors}, 0.5)
    shared = LoRAWeights(shared.stored, 0.5, provenance=[{"prompt": "a secret", "steps": 3}])
    for i, each in enumerate((lora, shared)):
        made = replace(entry(lm, cache, "a"), key=cache.key(str(i), refinement="rows"), lora=each, refined=True)
        cache.put(made)
        found = AdapterCache(lm, folder=tmp_path).get(made.key)
        assert found is not None
        assert same(found.lora, each)
        assert found.refined
    assert found.lora.provenance == ({"steps": 3},)
    assert not any(b"a secret" in path.read_bytes() for path in tmp_path.rglob("*.safetensors"))


def test_memory_is_bounded_and_the_least_used_goes_first(lm, tmp_path):
    size = lm.adapt("a b").nbytes
    cache = AdapterCache(lm, folder=tmp_path, memory_bytes=2 * size)
    made = [entry(lm, cache, prompt) for prompt in prompts(3)]
    cache.put(made[0])
    cache.put(made[1])
    assert cache.get(made[0].key) is made[0]
    cache.put(made[2])
    assert len(cache) == 2
    assert cache.nbytes == 2 * size
    assert cache.remembered(made[1].key) is None
    assert same(cache.get(made[1].key).lora, made[1].lora)  # from disk
    assert len(cache.list()) == 3
    small = AdapterCache(lm, memory_bytes=size - 1)
    with pytest.raises(NoRoomError, match="--adapter-memory"):  # it would be nowhere
        small.put(made[0])
    assert small.get(made[0].key) is None
    assert small.nbytes == 0
    with pytest.raises(ConfigError, match="memory_bytes=0"):
        AdapterCache(lm, memory_bytes=0)


# --- damage --------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def turn_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def claim_another(name: str, value: str):
    def change(path: Path) -> None:
        with safe_open(path, "pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        save_file(tensors, path, metadata={**metadata, name: value})

    return change


def change_the_entry(path: Path) -> None:
    """Twice the scaling: every tensor is as it was."""
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["entry"])
    claim_another("entry", json.dumps({**values, "scaling": 2 * values["scaling"]}))(path)


DAMAGE = {
    "another scaling": change_the_entry, "other provenance": claim_another("provenance", "[{}]"),
    "truncated": truncate, "empty": empty, "a bit": turn_a_bit, "another hypernetwork": claim_another("hypernetwork", "x"),
    "another base": claim_another("base", "x"), "another dtype": claim_another("dtype", "torch.bfloat16"),
    "another format": claim_another("format", "x"), "no provenance": claim_another("provenance", "[1]"), "no entry": claim_another("entry", "{}"),
    "not JSON": claim_another("entry", "{"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_none_and_is_written_again(lm, tmp_path, damage):
    cache = AdapterCache(lm, folder=tmp_path)
    one = entry(lm, cache, prompts(1)[0])
    cache.put(one)
    damage(file_of(tmp_path))
    fresh = AdapterCache(lm, folder=tmp_path)
    assert fresh.get(one.key) is None
    with Engine(lm, cache=fresh) as engine:
        assert engine.adapter(prompts(1)[0]).result(30).key == one.key
        assert engine.stats.adapters_written == 1
    assert same(AdapterCache(lm, folder=tmp_path).get(one.key).lora, one.lora)


def test_a_file_of_another_adapter_is_none(lm, tmp_path):
    cache = AdapterCache(lm, folder=tmp_path)
    one = entry(lm, cache, prompts(1)[0])
    cache.put(one)
    other = cache.key("b")
    target = tmp_path / other[:2] / f"{other[2:]}.safetensors"
    target.parent.mkdir(exist_ok=True)
    file_of(tmp_path).rename(target)
    assert AdapterCache(lm, folder=tmp_path).get(other) is None


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a/" * 32, "\0" * 64])
def test_a_key_that_is_none_names_no_file(lm, tmp_path, key):
    cache = AdapterCache(lm, folder=tmp_path)
    assert cache.get(key) is None
    assert not cache.delete(key)


@pytest.mark.parametrize("head", ["full", "core", "diagonal"])
def test_the_size_of_an_adapter_is_known_before_it_is_written(head):
    made = tiny_prompt_lora(tiny_llama(torch.float32), head=head)
    assert AdapterCache(made).adapter_bytes == made.adapt("a b").nbytes > 0
    made.close()


def test_what_cannot_be_written_again_is_never_dropped_from_memory(lm, tmp_path):
    size = lm.adapt("a b").nbytes
    cache = AdapterCache(lm, memory_bytes=3 * size)
    made = [entry(lm, cache, prompt) for prompt in prompts(6)]
    cache.put(made[0], pin=True)
    for each in made[1:4]:
        cache.put(each)
    assert cache.get(made[0].key) is made[0]
    assert (cache.nbytes, len(cache)) == (3 * size, 3)
    assert cache.get(made[1].key) is None  # the least used of those that may go
    for each in made[4:]:
        cache.put(each, pin=True)
    assert set(cache.list()) == {made[i].key for i in (0, 4, 5)}
    with pytest.raises(NoRoomError, match="3 refined adapters hold"):
        cache.put(made[1], pin=True)
    with pytest.raises(NoRoomError, match="delete refined adapters"):
        cache.check_room(size)
    with pytest.raises(NoRoomError):
        cache.put(made[1])
    again = replace(made[4], seconds=9.0)
    cache.put(again, pin=True)  # in the place of the one that is there
    assert cache.get(again.key) is again
    assert cache.delete(made[0].key)
    cache.check_room(size)
    cache.put(made[1], pin=True)
    assert cache.get(made[1].key) is made[1]

    kept = AdapterCache(lm, folder=tmp_path, memory_bytes=size)  # on disk it may leave the memory
    for each in made[:2]:
        kept.put(each, pin=True)
        kept.check_room(size)
    assert kept.remembered(made[0].key) is None
    assert same(kept.get(made[0].key).lora, made[0].lora)


def test_what_a_full_disk_does_not_take_is_pinned(lm, tmp_path):
    size = lm.adapt("a b").nbytes
    cache = AdapterCache(lm, folder=tmp_path / "kept", memory_bytes=size)
    one, other = (entry(lm, cache, prompt) for prompt in prompts(2))
    (tmp_path / "kept").write_text("as a full disk, this takes no file")
    with pytest.raises(OutputError):
        cache.put(one, pin=True)
    with pytest.raises(NoRoomError):
        cache.put(other, pin=True)
    assert cache.get(one.key) is one


def test_a_disk_that_takes_nothing_stops_no_answer(lm, tmp_path, caplog):
    cache = AdapterCache(lm, folder=tmp_path)
    one = entry(lm, cache, prompts(1)[0])
    (tmp_path / one.key[:2]).write_text("a file in the place of the folder")
    with pytest.raises(OutputError):
        cache.put(one)
    with Engine(lm, cache=AdapterCache(lm, folder=tmp_path)) as engine:
        found = engine.adapter(prompts(1)[0]).result(30)
        assert same(found.lora, one.lora)
        assert engine.stats.adapters_not_kept == 1
        assert engine.adapter(prompts(1)[0]).result(30) is found
    assert "is not kept" in caplog.text
    assert prompts(1)[0] not in caplog.text


def test_what_killed_processes_left_is_removed_when_it_is_old(lm, tmp_path):
    (tmp_path / "ab").mkdir()
    old, new = (tmp_path / "ab" / f".x.safetensors.{i}" for i in "01")
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    cache = AdapterCache(lm, folder=tmp_path)
    assert not old.exists()
    assert new.exists()  # another process may be writing it
    assert cache.list() == ()


# --- threads and processes -------------------------------------------------------------------------------------------


def test_threads_put_get_and_delete(lm, tmp_path):
    cache = AdapterCache(lm, folder=tmp_path, memory_bytes=3 * lm.adapt("a b").nbytes)
    made = [entry(lm, cache, prompt) for prompt in prompts(6)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        for i in range(30):
            one = made[(seed * 7 + i * 5) % 6]
            cache.put(one)
            found = cache.get(one.key)
            if found is not None and not same(found.lora, one.lora):
                wrong.append(one.key)
            if i % 7 == 0:
                cache.delete(one.key)
            cache.list()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def write_adapters(folder: Path, rounds: int) -> None:
    """Write six adapters again and again, in a process of its own."""
    torch.set_num_threads(1)
    lm = tiny_prompt_lora(tiny_llama(torch.float32), head="core")
    cache = AdapterCache(lm, folder=folder)
    made = [entry(lm, cache, prompt) for prompt in prompts(6)]
    tell(len(made))
    for i in range(rounds):
        cache.put(made[i % 6])


def test_two_processes_and_one_that_is_killed_leave_nothing_damaged(tmp_path):
    lm = tiny_prompt_lora(tiny_llama(torch.float32), head="core")
    writers = [Forked(write_adapters, tmp_path, rounds) for rounds in (10**9, 60)]
    for writer in writers:
        assert writer.stdout.readline().strip() == "6"
    time.sleep(0.3)
    writers[0].send_signal(signal.SIGKILL)  # in the middle of writing
    assert [writer.wait(60) for writer in writers] == [-signal.SIGKILL, 0]
    for writer in writers:
        writer.close()
    cache = AdapterCache(lm, folder=tmp_path)
    expected = {cache.key(prompt): lm.adapt(prompt) for prompt in prompts(6)}
    assert set(cache.list()) == set(expected)  # the same prompt is the same adapter anywhere
    for key, lora in expected.items():
        found = cache.get(key)
        assert found is not None
        torch.testing.assert_close(dict(found.lora), dict(lora))
    lm.close()

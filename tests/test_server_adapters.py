"""The endpoints of adapters and jobs, and what one API key sees of another."""

from __future__ import annotations

import io
import json
import logging
import shutil
import threading
import time
import zipfile
from dataclasses import replace

import httpx
import openai
import pytest
import torch
from transformers import AutoTokenizer

from promptlora.engine import Engine
from promptlora.errors import ModelError
from promptlora.lora import LoRAWeights
from promptlora.server.owners import Owners
from promptlora.text import render_chat
from tests.architectures import CASES, build
from tests.host_helpers import tiny_prompt_lora
from tests.server_helpers import BASE, SYSTEM, TEXT, chat, serving, tiny_lm

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
KEYS = ("first-key-of-the-test", "second-key-of-the-test")
ROWS = [{"input": f"w{i}", "output": "b"} for i in range(10)]


@pytest.fixture(scope="module")
def lm():
    made = tiny_lm()
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(lm):
    with serving(lm) as running:
        yield running


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=f"{served.url}/v1", timeout=60) as client:
        yield client


def of(served, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"{served.url}/v1", headers={"authorization": f"Bearer {key}"}, timeout=60)


def finished(http: httpx.Client, job: str) -> dict:
    until = time.monotonic() + 60
    while (found := http.get(f"/jobs/{job}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_a_prompt_becomes_a_stored_adapter(served, http):
    made = http.post("/adapters", json={"prompt": SYSTEM})
    assert made.status_code == 200
    found = made.json()
    entry = served.service.cache.get(found["id"])
    assert found == {
        "id": served.service.cache.key(SYSTEM), "object": "adapter", "model": f"adapter:{found['id']}",
        "created": int(entry.created), "bytes": entry.nbytes, "seconds": entry.seconds, "prompt_tokens": 4,
        "in_context": False, "refined": False, "distance": None, "far": None,
    }  # fmt: skip
    for name, pair in served.lm.adapt(SYSTEM).items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(pair, entry.lora[name], strict=True))
    assert http.post("/adapters", json={"prompt": SYSTEM}).json()["id"] == found["id"]
    assert http.get(f"/adapters/{found['id']}").json()["bytes"] == found["bytes"] > 0
    assert {"id": found["id"], "object": "adapter", "model": found["model"]} in http.get("/adapters").json()["data"]
    with served.client() as client:
        answer = chat(client, model=found["model"], system=None)
    assert answer.choices[0].message.content.strip() == served.alone(TEXT)


def test_examples_and_use_make_other_adapters(http):
    bodies = [
        {"prompt": SYSTEM},
        {"prompt": SYSTEM, "in_context": True},
        {"prompt": SYSTEM, "examples": [{"input": "w7", "output": "w8"}]},
        {"prompt": "w1 w2 w3 w5"},
    ]
    found = [http.post("/adapters", json=body).json() for body in bodies]
    assert len({each["id"] for each in found}) == len(bodies)
    assert found[2]["prompt_tokens"] > found[0]["prompt_tokens"]
    assert [each["in_context"] for each in found] == [False, True, False, False]


def test_a_deleted_adapter_is_gone_until_its_prompt_comes_again(http):
    key = http.post("/adapters", json={"prompt": "w8 w8"}).json()["id"]
    assert http.delete(f"/adapters/{key}").json() == {"id": key, "object": "adapter", "deleted": True}
    for answer in (http.get(f"/adapters/{key}"), http.delete(f"/adapters/{key}"), http.get(f"/adapters/{key}/peft")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "adapter_not_found"
    assert http.post("/adapters", json={"prompt": "w8 w8"}).json()["id"] == key


def test_names_that_are_no_ids(http):
    for name in ("0", "..%2F..%2Fetc", "%00", "A" * 64, "é", "0" * 64):
        assert http.get(f"/adapters/{name}").status_code == 404


def test_the_peft_folder_loads_in_peft(served, http, tmp_path):
    from peft import PeftModel

    key = http.post("/adapters", json={"prompt": SYSTEM}).json()["id"]
    answer = http.get(f"/adapters/{key}/peft", params={"pad_rank": "auto"})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {"README.md", "chat_template.jinja", "tokenizer.json", *PEFT_FILES} <= set(archive.namelist())
        archive.extractall(tmp_path)
    assert SYSTEM in (tmp_path / "README.md").read_text()
    turns = [{"role": "user", "content": "w5"}]
    told = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False
    )
    assert told == render_chat(served.lm.tokenizer, "w5")
    bare = http.get(f"/adapters/{key}/peft", params={"card": "false"})
    with zipfile.ZipFile(io.BytesIO(bare.content)) as archive:
        assert tuple(archive.namelist()) == PEFT_FILES
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 8
    back = LoRAWeights.load_peft(tmp_path)
    lora = served.lm.adapt(SYSTEM)
    for name in lora:
        torch.testing.assert_close(back.delta(name), lora.delta(name), atol=1e-6, rtol=1e-5)
    from tests.helpers import tiny_llama

    plain = tiny_llama(torch.float32, max_position_embeddings=512)
    ids = torch.tensor([[5, 9, 11]])
    adapted = PeftModel.from_pretrained(plain, tmp_path)(input_ids=ids).logits
    with served.lm.host.evaluating(lora, [0]):
        torch.testing.assert_close(served.lm.model(input_ids=ids).logits, adapted.detach(), atol=1e-4, rtol=1e-4)
    assert http.get(f"/adapters/{key}/peft", params={"pad_rank": "3.5"}).status_code == 400
    assert http.get(f"/adapters/{key}/peft", params={"pad_rank": "1"}).status_code == 400  # below its rank
    assert http.get(f"/adapters/{key}/peft", params={"pad_rank": "512"}).status_code == 200
    assert http.get(f"/adapters/{key}/peft", params={"pad_rank": "513"}).status_code == 400  # gigabytes of zeros


@pytest.mark.parametrize("field", ["prompt", "examples"])
def test_a_prompt_of_megabytes_is_refused_before_the_engine_sees_it(served, http, monkeypatch, field):
    """The engine's thread counts its tokens between two steps, and all answers would wait for that."""
    threads: set[str] = set()
    encode = served.lm.states.encode

    def noted(prompt: str) -> object:
        threads.add(threading.current_thread().name)
        return encode(prompt)

    monkeypatch.setattr(served.lm.states, "encode", noted)
    long = "w1 " * 20_000
    body = {"prompt": long} if field == "prompt" else {"prompt": "w1", "examples": [{"input": long, "output": "w2"}]}
    answer = http.post("/adapters", json=body)
    assert answer.status_code == 400
    assert "at most 16" in answer.json()["error"]["message"]
    assert len(threads) == 1
    assert threads.pop().startswith("promptlora-text")


# --- refinement ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
def test_rows_refine_an_adapter_in_a_job(served, http):
    answer = http.post("/adapters", json={"prompt": SYSTEM, "rows": ROWS, "steps": 5})
    assert answer.status_code == 202
    job = finished(http, answer.json()["id"])
    assert job["status"] == "succeeded", job
    assert (job["step"], job["steps"], job["error"]) == (5, 5, None)
    refined = http.get(f"/adapters/{job['adapter']}").json()
    assert refined["refined"]
    assert refined["id"] != served.service.cache.key(SYSTEM)
    rows = [{"input": row["input"], "outputs": [row["output"]]} for row in ROWS]
    expected = served.lm.refine(served.lm.adapt(SYSTEM), SYSTEM, rows=rows, steps=5)
    found = served.service.cache.get(job["adapter"]).lora
    for name in expected:
        torch.testing.assert_close(found.delta(name), expected.delta(name), atol=1e-5, rtol=1e-4)
    with served.client() as client:
        answer = chat(client, model=refined["model"], system=None)
    assert answer.choices[0].message.content.strip() == served.lm.generate(TEXT, expected, max_new_tokens=8)
    again = http.post("/adapters", json={"prompt": SYSTEM, "rows": ROWS, "steps": 5}).json()
    again = finished(http, again["id"])
    assert again["adapter"] == job["adapter"]
    assert again["step"] == 0  # it was there
    assert {job["id"], again["id"]} <= {each["id"] for each in http.get("/jobs").json()["data"]}


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
def test_a_job_can_be_cancelled_and_does_not_stop_answers(served, http):
    body = {"prompt": "w9 w9", "rows": ROWS, "steps": 10_000}
    running, waiting = (http.post("/adapters", json={**body, "steps": 10_000 - i}).json()["id"] for i in range(2))
    until = time.monotonic() + 30
    while not http.get(f"/jobs/{running}").json()["step"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    with served.client() as client:
        answer = chat(client)
    assert answer.choices[0].message.content.strip() == served.alone(TEXT)
    assert http.get(f"/jobs/{running}").json()["status"] == "running"
    assert http.delete(f"/jobs/{waiting}").json()["status"] == "cancelled"
    assert http.delete(f"/jobs/{running}").status_code == 200
    job = finished(http, running)
    assert job["status"] == "cancelled"
    assert job["adapter"] is None
    assert 0 < job["step"] < 10_000
    assert http.get("/jobs/job-0").status_code == 404


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
def test_a_job_says_what_became_of_it(served, http):
    """A start that no step improves is not called refined; rows that are left out are told of."""
    long = " ".join(["w1"] * 400)
    found = []
    for number, steps in ((0, 1), (0, 4), (2, 1), (2, 4)):
        rows = [{"input": f"w{i}", "output": f"w{(i * 37 + number) % 80}"} for i in range(8)]
        body = {"prompt": f"w6 w{number}", "rows": [*rows, {"input": long, "output": "b"}], "steps": steps}
        job = finished(http, http.post("/adapters", json=body).json()["id"])
        assert job["status"] == "succeeded", job
        adapter = http.get(f"/adapters/{job['adapter']}").json()
        lora = served.service.cache.get(job["adapter"]).lora
        (record,) = lora.provenance
        assert adapter["refined"] == (record["best_step"] > 0)
        assert "1 rows were too long" in job["note"]
        assert ("no step was better" in job["note"]) != adapter["refined"]
        assert adapter["bytes"] == lora.nbytes
        found.append(adapter["refined"])
    assert set(found) == {True, False}


def test_a_job_that_fails_says_why(http):
    long = " ".join(["w1"] * 400)
    rows = [{"input": long, "output": "b"}] * 3
    answer = http.post("/adapters", json={"prompt": SYSTEM, "rows": rows, "steps": 2})
    job = finished(http, answer.json()["id"])
    assert job["status"] == "failed"
    assert "short enough" in job["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Missing required parameter: prompt"),
        ({"prompt": " "}, "empty"),
        ({"prompt": "w1 " * 20}, "at most 16"),
        ({"prompt": "w1", "rows": ROWS[:1]}, "rows"),
        ({"prompt": "w1", "steps": 3}, "nothing to refine on"),
        ({"prompt": "w1", "row": []}, "Unrecognized"),
        ({"prompt": "w1", "examples": [["w1", "w2"]]}, "examples.0"),
        ({"prompt": "w1", "examples": [{"input": "w1", "output": ""}]}, "examples.0.output"),
    ],
)
def test_adapters_that_cannot_be_made(http, body, words):
    answer = http.post("/adapters", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(lm, tmp_path_factory):
    with serving(lm, keys=KEYS, folder=tmp_path_factory.mktemp("adapters"), most_bytes=20_000) as running:
        yield running


@pytest.mark.parametrize("key", ["", "wrong", KEYS[0][:-1], KEYS[0] + "x", "é"])
def test_a_wrong_key_gets_nothing(guarded, key):
    paths = ("/v1/models", "/v1/adapters", "/v1/jobs", "/metrics", "/openapi.json", "/nowhere")
    headers = {"authorization": f"Bearer {key}".encode()} if key else {}
    for path in paths:
        answer = httpx.get(guarded.url + path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    with guarded.client(key if key.isascii() and key else "none") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_nothing_of_one_key_is_visible_to_another(guarded):
    first, second = (of(guarded, key) for key in KEYS)
    with first, second:
        key = first.post("/adapters", json={"prompt": "w3 w3 w3"}).json()["id"]
        job = first.post("/adapters", json={"prompt": "w3 w3 w3", "rows": ROWS, "steps": 1}).json()["id"]
        finished(first, job)
        assert key in str(first.get("/models").json())
        for path in ("/models", "/adapters", "/jobs"):
            assert "w3" not in str(second.get(path).json())
            assert key not in str(second.get(path).json())
            assert job not in str(second.get(path).json())
        for path in (f"/adapters/{key}", f"/adapters/{key}/peft", f"/models/adapter:{key}", f"/jobs/{job}"):
            assert first.get(path).status_code == 200
            assert second.get(path).status_code == 404
        assert second.delete(f"/adapters/{key}").status_code == 404
        assert second.delete(f"/jobs/{job}").status_code == 404
        messages = [{"role": "user", "content": TEXT}]
        asked = {"model": f"adapter:{key}", "messages": messages, "max_tokens": 2}
        assert second.post("/chat/completions", json=asked).status_code == 404
        assert first.post("/chat/completions", json=asked).status_code == 200


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_key_does_not_see_that_another_sent_the_prompt_before(lm, tmp_path, on_disk):
    with serving(lm, keys=KEYS, folder=tmp_path if on_disk else None) as running:
        first, second = (of(running, key) for key in KEYS)
        with first, second:
            key = first.post("/adapters", json={"prompt": "w5 w7"}).json()["id"]
            entry = running.service.cache.get(key)
            running.service.cache.put(replace(entry, created=entry.created - 500))  # it was long ago
            began = int(time.time())
            assert second.post("/adapters", json={"prompt": "w5 w7"}).json()["created"] >= began
            assert second.get(f"/adapters/{key}").json()["created"] >= began


def test_who_sends_the_prompt_owns_its_adapter_and_deletion_is_for_one_key(guarded):
    first, second = (of(guarded, key) for key in KEYS)
    with first, second, guarded.client(KEYS[1]) as client:
        key = first.post("/adapters", json={"prompt": "w4 w4 w4"}).json()["id"]
        assert chat(client, system="w4 w4 w4").usage.promptlora["adapter"] == key
        assert second.get(f"/adapters/{key}").status_code == 200
        assert first.delete(f"/adapters/{key}").status_code == 200
        assert first.get(f"/adapters/{key}").status_code == 404
        assert second.get(f"/adapters/{key}").status_code == 200
        assert second.delete(f"/adapters/{key}").status_code == 200
        assert guarded.service.cache.get(key) is None


def test_adapters_and_their_owners_survive_a_restart(lm, tmp_path):
    for start in range(2):
        with (
            serving(lm, keys=KEYS, folder=tmp_path) as running,
            of(running, KEYS[0]) as first,
            of(running, KEYS[1]) as second,
        ):
            if start == 0:
                key = first.post("/adapters", json={"prompt": "w5 w5"}).json()["id"]
            assert [each["id"] for each in first.get("/adapters").json()["data"]] == [key]
            assert second.get("/adapters").json()["data"] == []
            asked = {"model": f"adapter:{key}", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 2}
            assert first.post("/chat/completions", json=asked).status_code == 200
            with zipfile.ZipFile(io.BytesIO(first.get(f"/adapters/{key}/peft").content)) as archive:
                card = archive.read("README.md").decode()
            assert ("w5 w5" in card) == (start == 0)  # prompts are not stored
            assert f"# adapter-{key[:12]}\n" in card
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not any(key.encode() in stored for key in KEYS)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_owners(tmp_path, where):
    folder = tmp_path / "owners" if where == "folder" else None
    owners = Owners(folder)
    beside = Owners(folder) if folder else owners  # of another server with the same folder
    assert owners.of("a") == []
    assert owners.grant("a", "1")
    assert not beside.grant("a", "1")
    assert beside.grant("b", "1")
    assert owners.grant("a", "0")
    assert beside.of("a") == ["0", "1"]
    assert owners.owns("b", "1")
    assert not owners.owns("b", "0")
    assert not owners.revoke("a", "1")
    assert not beside.owns("a", "1")
    assert beside.revoke("b", "1")
    assert owners.revoke("b", "1")  # nothing to take
    assert owners.of("b") == []


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
def test_a_folder_that_cannot_be_written_costs_no_answer(lm, tmp_path, caplog):
    folder = tmp_path / "adapters"
    with (
        serving(lm, keys=KEYS, folder=folder) as running,
        of(running, KEYS[0]) as http,
        running.client(KEYS[0]) as client,
    ):
        http.post("/adapters", json={"prompt": "w7 w7 w7"})
        shutil.rmtree(folder)
        folder.write_text("as a full disk, this takes no file")
        made = http.post("/adapters", json={"prompt": "w7 w7 w8"})
        assert made.status_code == 200
        answer = chat(client, system=None, model=made.json()["model"])
        assert answer.choices[0].message.content.strip() == running.alone(TEXT, "w7 w7 w8")
        job = http.post("/adapters", json={"prompt": "w7 w7 w8", "rows": ROWS, "steps": 1}).json()["id"]
        assert finished(http, job)["status"] == "succeeded"
        assert http.get("/adapters").status_code == 200
    assert "cannot be written" in caplog.text
    assert "w7" not in caplog.text


def test_a_body_that_is_too_large(guarded):
    with of(guarded, KEYS[0]) as http:
        body = json.dumps({"prompt": "w1 " * 20_000}).encode()
        answer = http.post("/adapters", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"

        def pieces():
            for at in range(0, len(body), 1000):
                yield body[at : at + 1000]

        answer = http.post("/adapters", content=pieces(), headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_no_text_of_a_request_is_logged(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    with of(guarded, KEYS[0]) as http:
        assert http.get("/w11").status_code == 404
    with guarded.client(KEYS[0]) as client:
        chat(client, system="w11 w12 w13", text="w14 w15")
        with pytest.raises(openai.BadRequestError):
            chat(client, system="w11 " * 20, text="w14 w15")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("promptlora")]
    assert any("POST /v1/chat/completions 200" in line for line in ours)
    assert any("GET unknown 404" in line for line in ours)
    assert not any(word in line for line in ours for word in ("w11", "w14", *KEYS))


# --- room -----------------------------------------------------------------------------------------------------


def test_an_adapter_that_can_be_kept_nowhere_is_refused_when_it_is_made(lm):
    with serving(lm, memory_bytes=lm.adapt(SYSTEM).nbytes - 1) as running, of(running, "none") as http:
        answer = http.post("/adapters", json={"prompt": SYSTEM})
        assert answer.status_code == 507
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("no_room", "server_error")
        assert "--adapter-memory" in error["message"]
        assert http.get("/adapters").json()["data"] == []
        with running.client() as client:  # an answer needs no stored adapter
            assert chat(client).choices[0].message.content.strip() == running.alone(TEXT)


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
def test_a_refined_adapter_stays_in_memory_and_is_refused_where_there_is_no_room(lm):
    size = lm.adapt(SYSTEM).nbytes
    rows = {"prompt": SYSTEM, "rows": ROWS, "steps": 1}
    with serving(lm, memory_bytes=2 * size + size // 2) as running, of(running, "none") as http:
        job = finished(http, http.post("/adapters", json=rows).json()["id"])
        for i in range(4):
            assert http.post("/adapters", json={"prompt": f"w1 w{i}"}).status_code == 200
        assert http.get(f"/adapters/{job['adapter']}").status_code == 200
        second = finished(http, http.post("/adapters", json={**rows, "steps": 2}).json()["id"])
        assert second["status"] == "succeeded"
        refused = http.post("/adapters", json={**rows, "steps": 3})
        assert refused.status_code == 507
        assert "delete refined adapters" in refused.json()["error"]["message"]
        assert http.post("/adapters", json=rows).status_code == 202  # it is there
        for key in (job["adapter"], second["adapter"]):
            assert http.get(f"/adapters/{key}").status_code == 200
        assert http.delete(f"/adapters/{job['adapter']}").status_code == 200
        third = finished(http, http.post("/adapters", json={**rows, "steps": 3}).json()["id"])
        assert third["status"] == "succeeded"


@pytest.mark.parametrize("keys", [(), KEYS])
def test_a_file_that_cannot_be_removed_is_an_error_that_says_so(lm, tmp_path, keys, caplog):
    with serving(lm, keys=keys, folder=tmp_path) as running, of(running, KEYS[0]) as http:
        key = http.post("/adapters", json={"prompt": SYSTEM}).json()["id"]
        (file,) = tmp_path.rglob("*.safetensors")
        aside = file.rename(tmp_path / "aside")
        file.mkdir()  # no file: unlink fails, for root too
        answer = http.delete(f"/adapters/{key}")
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["code"] == "not_deleted"
        assert "--adapter-dir" in error["message"]
        assert str(tmp_path) not in answer.text
        file.rmdir()
        aside.rename(file)
        assert http.get(f"/adapters/{key}").status_code == 200  # it is its owner's still
        assert http.delete(f"/adapters/{key}").status_code == 200
        assert http.get(f"/adapters/{key}").status_code == 404
    assert "cannot be deleted" in caplog.text


# --- prompts in the context -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:refine:UserWarning")
@pytest.mark.parametrize("restarted", [False, True])
def test_a_stored_adapter_for_a_prompt_in_the_context_needs_that_prompt(lm, tmp_path, restarted):
    with serving(lm, folder=tmp_path) as running, of(running, "none") as http:
        plain = http.post("/adapters", json={"prompt": SYSTEM}).json()["model"]
        job = http.post("/adapters", json={"prompt": SYSTEM, "in_context": True, "rows": ROWS, "steps": 1}).json()
        keys = [
            http.post("/adapters", json={"prompt": SYSTEM, "in_context": True}).json()["id"],
            finished(http, job["id"])["adapter"],
        ]
        loras = [running.service.cache.get(key).lora for key in keys]
        if not restarted:
            _ask_with_prompt(running, http, keys, loras, plain)
    if restarted:
        with serving(lm, folder=tmp_path) as running, of(running, "none") as http:
            _ask_with_prompt(running, http, keys, loras, plain)


def _ask_with_prompt(running, http, keys, loras, plain) -> None:
    for key, lora in zip(keys, loras, strict=True):
        asked = {"model": f"adapter:{key}", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 8}
        for given, code in (({}, "prompt_missing"), ({"promptlora": {"prompt": "w9 w8"}}, "wrong_prompt")):
            answer = http.post("/chat/completions", json={**asked, **given})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == code
            assert answer.json()["error"]["param"] == "promptlora.prompt"
        answer = http.post("/chat/completions", json={**asked, "promptlora": {"prompt": SYSTEM}}).json()
        expected = running.lm.generate(TEXT, lora, in_context=SYSTEM, max_new_tokens=8)
        assert answer["choices"][0]["message"]["content"].strip() == expected
        assert answer["usage"]["promptlora"] == {"adapter": key, "prompt_tokens_saved": 0, "stopped": None}
    beside = {"model": plain, "messages": [{"role": "user", "content": TEXT}], "promptlora": {"prompt": SYSTEM}}
    assert http.post("/chat/completions", json=beside).json()["error"]["code"] == "wrong_model"


# --- adapters only ------------------------------------------------------------------------------------------


def test_adapters_only(lm):
    with serving(lm, adapters_only=True) as running, of(running, "none") as http:
        key = http.post("/adapters", json={"prompt": SYSTEM}).json()["id"]
        assert http.get(f"/adapters/{key}/peft").status_code == 200
        for path in ("/chat/completions", "/completions"):
            assert http.post(path, json={"model": BASE, "prompt": "a"}).status_code == 404
        assert "/v1/chat/completions" not in httpx.get(f"{running.url}/openapi.json").json()["paths"]


def test_adapters_only_takes_a_base_that_the_engine_does_not_run():
    (case,) = [each for each in CASES if each.model_type == "qwen3_next"]
    made = tiny_prompt_lora(build(replace(case, dtype=torch.float32, options={**case.options, "vocab_size": 97})))
    with pytest.raises(ModelError, match="continuous batching"):
        Engine(made)
    with serving(made, adapters_only=True) as running, of(running, "none") as http:
        answer = http.post("/adapters", json={"prompt": SYSTEM})
        assert answer.status_code == 200, answer.text
        lora = running.service.cache.get(answer.json()["id"]).lora
        for name, pair in made.adapt(SYSTEM).items():
            for mine, theirs in zip(pair, lora[name], strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert "promptlora_adapters_written_total 1.0" in httpx.get(f"{running.url}/metrics").text
        running.service.close()
        assert httpx.get(f"{running.url}/health").status_code == 503
    made.close()


def test_many_requests_for_one_new_prompt_write_it_once(lm):
    with serving(lm) as running, of(running, "none") as http:
        found = []
        threads = [
            threading.Thread(
                target=lambda: found.append(http.post("/adapters", json={"prompt": "w6 w6 w6"}).json()["id"])
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 8
        assert len(set(found)) == 1
        assert running.service.engine.stats.adapters_written == 1

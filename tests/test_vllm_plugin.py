"""promptlora-vllm without vLLM: what a request means, the store of folders, the sidecar, and the middleware over HTTP.

The sidecar is a real server. vLLM's application is stood in for by one that answers with what it was sent.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from promptlora.lora.peft import load_peft
from promptlora.server.adapters import peft_zip
from promptlora.server.conversation import read as server_reads
from promptlora.server.schema import Message
from tests.server_helpers import serving, tiny_lm

ROOT = Path(__file__).parent.parent
sys.path.insert(
    0, str(ROOT / "integrations" / "vllm" / "src")
)  # a distribution of its own, which is not installed here

import promptlora_vllm  # noqa: E402
from promptlora_vllm import base_rows, reloading, shared  # noqa: E402
from promptlora_vllm.middleware import PromptLoRAMiddleware  # noqa: E402
from promptlora_vllm.rewriting import RequestError, concerns, read  # noqa: E402
from promptlora_vllm.settings import Settings, SettingsError  # noqa: E402
from promptlora_vllm.sidecar import Sidecar as Client  # noqa: E402
from promptlora_vllm.sidecar import SidecarError, UnknownAdapterError  # noqa: E402
from promptlora_vllm.store import CONFIG, WEIGHTS, Store, StoreError  # noqa: E402

import torch  # isort: skip  # noqa: E402

SYSTEM, USER = {"role": "system", "content": "w1 w2"}, {"role": "user", "content": "w5"}
KEY = "ab" * 32


@pytest.fixture(scope="module")
def lm():
    made = tiny_lm()
    yield made
    made.close()


@pytest.fixture(scope="module")
def packed(lm) -> bytes:
    return peft_zip(lm.adapt("w1 w2 w3"), "adapter", None, None)


def store_in(folder: Path, **options: Any) -> Store:
    return Store(folder / "store", **{"most_bytes": 1 << 30, **options})


def settings_for(url: str, folder: Path, **options: Any) -> Settings:
    return Settings(sidecar=url, store=folder / "store", **options)


# --- what a request means ------------------------------------------------------------------------------------


def test_only_models_of_the_plugin_are_rewritten():
    assert concerns({"model": "promptlora"})
    assert concerns({"model": f"promptlora:{KEY}"})
    assert concerns({"model": f"adapter:{KEY}"})
    for other in ({"model": "base"}, {"model": "promptlora2"}, {"model": 1}, {}, [], None, "promptlora"):
        assert not concerns(other)


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, USER],
        [{"role": "developer", "content": "w1"}, USER, SYSTEM],
        [{"role": "system", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]}, USER],
        [{"role": "system", "content": " "}, SYSTEM, {"role": "system", "content": "\n"}, USER],
        [{"role": "system", "content": ""}, USER],
        [{"role": "system", "content": None}, USER],
        [USER],
        [SYSTEM, USER, {"role": "assistant", "content": "w6"}, {"role": "user", "content": "w7"}],
    ],
)
def test_the_prompt_is_the_one_that_promptlora_serve_takes(messages):
    asked = read({"model": "promptlora", "messages": messages, "n": 2})
    ours = server_reads([Message(**message) for message in messages])
    assert asked.prompt == ours.system
    assert asked.body["messages"][0] == {"role": "system", "content": ""}
    assert asked.body["messages"][1:] == [
        message for message in messages if message["role"] not in ("system", "developer")
    ]
    assert asked.body["n"] == 2


def test_the_field_promptlora_gives_another_prompt_and_leaves_the_conversation():
    told = {"prompt": "w9", "examples": [{"input": "w1", "output": "w2"}]}
    asked = read({"model": "promptlora", "messages": [SYSTEM, USER], "promptlora": told})
    assert (asked.prompt, asked.examples, asked.in_context) == ("w9", told["examples"], False)
    assert asked.body == {"model": "promptlora", "messages": [SYSTEM, USER]}
    shown = read({"model": "promptlora", "messages": [SYSTEM, USER], "promptlora": {"in_context": True}})
    assert shown.in_context
    assert shown.body["messages"] == [{"role": "system", "content": ""}, {"role": "user", "content": "w1 w2\n\nw5"}]
    text = read({"model": "promptlora", "prompt": "w5", "promptlora": {"prompt": "w1", "in_context": True}})
    assert text.body["prompt"] == "w1\n\nw5"


def test_a_named_adapter_keeps_its_system_message():
    named = read({"model": f"adapter:{KEY}", "messages": [SYSTEM, USER]})
    assert (named.model, named.body["messages"]) == (f"promptlora:{KEY}", [SYSTEM, USER])
    assert read({"model": f"adapter:{KEY}", "messages": [USER]}).body["messages"][0] == {
        "role": "system",
        "content": "",
    }
    bare = read({"model": "promptlora", "messages": [SYSTEM, USER]}, empty_system=False)
    assert bare.body["messages"] == [USER]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"promptlora": {"strength": 2}}, "promptlora.strength"),
        ({"promptlora": {"deadline": 2}}, "promptlora.deadline"),
        ({"promptlora": {"prompt": ""}}, "promptlora.prompt"),
        ({"promptlora": {"other": 1}}, "promptlora"),
        ({"promptlora": [1]}, "promptlora"),
        ({"promptlora": {"examples": [{"input": "a", "output": "b"}]}, "messages": [USER]}, "promptlora"),
        ({"model": f"adapter:{KEY}", "promptlora": {"in_context": True}}, "promptlora"),
        ({"messages": "w1"}, "messages"),
        ({"messages": [1]}, "messages"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [SYSTEM], "promptlora": {"in_context": True}}, "messages"),
    ],
)
def test_a_field_that_cannot_be_followed_is_refused(body, param):
    with pytest.raises(RequestError, match="xpected") as caught:
        read({"model": "promptlora", "messages": [SYSTEM, USER], **body})
    assert caught.value.param == param


# --- settings ------------------------------------------------------------------------------------------------


def test_settings_come_from_the_environment(tmp_path):
    told = {
        "PROMPTLORA_SIDECAR": "http://h:1/v1/",
        "PROMPTLORA_STORE": str(tmp_path / "a" / "b"),
        "PROMPTLORA_STORE_MB": "3",
    }
    found = Settings.read({**told, "PROMPTLORA_EMPTY_SYSTEM": "0", "PROMPTLORA_TIMEOUT": "1.5"})
    assert found == Settings(
        sidecar="http://h:1", store=tmp_path / "a" / "b", store_bytes=3_000_000, timeout=1.5, empty_system=False
    )
    assert Settings.read({"PROMPTLORA_STORE": str(tmp_path)}).store_bytes > 0
    for name, value in {
        "SIDECAR": "h:1",
        "STORE_MB": "x",
        "STORE_KEEP": "-1",
        "TIMEOUT": "inf",
        "EMPTY_SYSTEM": "no",
    }.items():
        with pytest.raises(SettingsError, match=f"PROMPTLORA_{name}: .*Expected"):
            Settings.read({f"PROMPTLORA_{name}": value})


# --- the store -----------------------------------------------------------------------------------------------


def test_an_adapter_is_stored_whole_and_found_again(tmp_path, packed, lm):
    store = store_in(tmp_path)
    assert store.get(KEY) is None
    folder = store.put(KEY, packed)
    assert store.get(KEY) == folder == tmp_path / "store" / KEY
    loaded, expected = load_peft(folder, projections=lm.hypernetwork.projections), lm.adapt("w1 w2 w3")
    for name in expected:
        assert torch.allclose(loaded.delta(name), expected.delta(name), atol=1e-6)
    assert store.keys() == [KEY]
    assert store.put(KEY, packed) == folder
    assert folder.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["truncated", "no header", "no config", "empty config"])
def test_a_damaged_folder_counts_as_missing_and_is_written_again(tmp_path, packed, damage):
    store = store_in(tmp_path)
    folder = store.put(KEY, packed)
    if damage == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    elif damage == "no header":
        (folder / WEIGHTS).write_bytes(b"\xff" * 20)
    elif damage == "no config":
        (folder / CONFIG).unlink()
    else:
        (folder / CONFIG).write_bytes(b"")
    assert store.get(KEY) is None
    assert store.keys() == []
    assert store.get(store.put(KEY, packed).name) is not None


def archive(**files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return made.getvalue()


def test_of_an_archive_with_card_and_tokenizer_the_two_files_are_kept(tmp_path, lm):
    path = store_in(tmp_path).put(KEY, peft_zip(lm.adapt("w1 w2 w3"), "adapter", None, lm.chat_export))
    assert sorted(file.name for file in path.iterdir()) == [CONFIG, WEIGHTS]


def test_an_archive_that_is_no_adapter_is_refused_and_leaves_nothing(tmp_path, packed):
    store = store_in(tmp_path)
    config, weights = CONFIG.replace(".", "_DOT_"), WEIGHTS.replace(".", "_DOT_")
    for bad in (
        b"", b"PK", packed[: len(packed) // 2], archive(), archive(**{config: b"{}"}),
        archive(**{config: b"{}", weights: b"short"}), archive(**{config: b"{", weights: b"short"}),
        archive(**{config: b"{}", weights: b"x", "_DOT__DOT___evil": b"x"}),
    ):  # fmt: skip
        with pytest.raises(StoreError, match="Expected"):
            store.put(KEY, bad)
    for key in ("", "../../x", KEY.upper(), KEY + "0"):
        with pytest.raises(StoreError, match="64 hexadecimal digits"):
            store.put(key, packed)
    assert list((tmp_path / "store").iterdir()) == []


def test_folders_go_only_above_the_size_and_after_a_while(tmp_path, packed):
    keys = [f"{i:064x}" for i in range(4)]
    size = len(packed)
    kept = store_in(tmp_path / "kept", most_bytes=size, keep=600)
    for key in keys:
        kept.put(key, packed)
    assert kept.keys() == keys  # all used just now, whatever the size
    for age, key in enumerate(keys[:3]):
        os.utime(store_in(tmp_path / "bounded").put(key, packed), (time.time() - 1000 + age,) * 2)
    store = store_in(tmp_path / "bounded", most_bytes=int(2.5 * size), keep=60)
    store.get(keys[0])  # used now: the next ones are the oldest
    store.put(keys[3], packed)
    assert store.keys() == [keys[0], keys[3]]


def test_what_a_killed_process_left_is_removed(tmp_path, packed):
    store = store_in(tmp_path)
    old, new = store.folder / ".0000-old", store.folder / ".0000-new"
    for path in (old, new):
        path.mkdir()
        (path / WEIGHTS).write_bytes(b"half")
    os.utime(old, (1, 1))
    store.put(KEY, packed)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_file_system_without_room_is_told_and_nothing_stays(tmp_path, packed):
    store = store_in(tmp_path)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from promptlora_vllm.store import *\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: Store(Path(sys.argv[2]), most_bytes=1<<30).put('ab'*32, Path(sys.argv[3]).read_bytes())\n"
        "except StoreError as error: print(type(error).__name__, error)\n"
    )
    (tmp_path / "packed.zip").write_bytes(packed)
    arguments = [promptlora_vllm.__path__[0] + "/..", str(store.folder), str(tmp_path / "packed.zip")]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("StoreFullError"), ran.stdout
    assert [path.name for path in store.folder.iterdir()] == [".lock"]


def test_a_store_of_another_user_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="belongs to another user"):
        Store(tmp_path / "link", most_bytes=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="PROMPTLORA_STORE"):
        Store(tmp_path / "file", most_bytes=1)


def test_many_processes_write_one_adapter(tmp_path, packed):
    store = store_in(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: store_in(tmp_path).put(KEY, packed), range(16)))
    assert folders == {store.path(KEY)}
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", KEY]


# --- the sidecar ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def asking(url: str, folder: Path, **options: Any) -> AsyncIterator[Client]:
    client = Client(settings_for(url, folder, **options), store_in(folder))
    try:
        yield client
    finally:
        await client.aclose()


def written(url: str, folder: Path, prompt: str, **options: Any) -> str:
    async def run() -> str:
        async with asking(url, folder, **options) as client:
            return await client.write(prompt)

    return asyncio.run(run())


def test_a_prompt_is_written_once_for_many_requests_and_found_without_the_sidecar(lm, tmp_path):
    async def many(url: str) -> tuple[list[str], Client]:
        async with asking(url, tmp_path) as client:
            return await asyncio.gather(*(client.write("w1 w2 w3") for _ in range(8)), client.write("w9")), client

    with serving(lm, adapters_only=True) as served:
        keys, client = asyncio.run(many(served.url))
        assert len(set(keys)) == 2
        assert served.service.writer.stats.adapters_written == 2

    async def away() -> None:
        assert await client.write("w1 w2 w3") == keys[0]
        for digest, (known, _) in list(client._ids.items()):
            client._ids[digest] = known, -1e9  # long ago: the sidecar is asked again, and is away
        assert await client.write("w1 w2 w3") == keys[0]
        with pytest.raises(SidecarError, match="does not answer") as caught:
            await client.write("w4")
        assert (caught.value.status, caught.value.retry_after) == (503, 5)
        await client.aclose()

    asyncio.run(away())


def test_examples_and_use_give_other_adapters(lm, tmp_path):
    async def keys(url: str) -> list[str]:
        async with asking(url, tmp_path) as client:
            example = [{"input": "w1", "output": "w2"}]
            return [
                await client.write("w1"),
                await client.write("w1", example),
                await client.write("w1", in_context=True),
            ]

    with serving(lm, adapters_only=True) as served:
        assert len(set(asyncio.run(keys(served.url)))) == 3


def test_what_the_sidecar_refuses_is_passed_on(lm, tmp_path):
    async def unknown(url: str) -> None:
        async with asking(url, tmp_path, key="a-long-key") as client:
            with pytest.raises(UnknownAdapterError):
                await client.folder(KEY)

    with serving(lm, adapters_only=True, keys=["a-long-key"]) as served:
        with pytest.raises(SidecarError, match="PROMPTLORA_SIDECAR_KEY") as caught:
            written(served.url, tmp_path, "w1")
        assert caught.value.status == 502
        assert len(written(served.url, tmp_path, "w1", key="a-long-key")) == 64
        with pytest.raises(SidecarError) as caught:
            written(served.url, tmp_path, "w1 " * 2000, key="a-long-key")
        assert caught.value.status == 400
        asyncio.run(unknown(served.url))


def test_a_missing_folder_is_written_again_when_vllm_loads_it(lm, tmp_path):
    with serving(lm, adapters_only=True, folder=tmp_path / "adapters") as served:
        settings, store = settings_for(served.url, tmp_path, timeout=0.5), store_in(tmp_path)
        key = written(served.url, tmp_path, "w1 w2")
        for path in store.path(key).iterdir():
            path.unlink()
        assert reloading.ensure(store, key, settings) == store.get(key)
        with pytest.raises(UnknownAdapterError):
            reloading.ensure(store, KEY, settings)
    (store.path(key) / CONFIG).unlink()
    began = time.monotonic()
    with pytest.raises(SidecarError, match="does not answer"):
        reloading.ensure(store, key, settings)
    assert time.monotonic() - began > 0.5  # it waited for a restart


# --- the middleware ------------------------------------------------------------------------------------------


class AuthenticationMiddleware:
    """As in vLLM: its class is found by this name, with the keys as ``tokens``."""

    def __init__(self, app: Any, tokens: list[str]) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"").decode()
        if given.removeprefix("Bearer ") in self.tokens:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)


class PromptLoRAResolver:
    """Stands in for the registered resolver, whose class needs vLLM."""


def application(tokens: list[str] | None = None) -> Starlette:
    """What stands in for vLLM: it answers with the body that it was sent."""

    async def echo(request: Any) -> JSONResponse:
        return JSONResponse({"length": request.headers["content-length"], "body": await request.json()})

    async def models(request: Any) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "base"}]})

    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/load_lora_adapter")
    routes = [*(Route(path, echo, methods=["POST"]) for path in paths), Route("/v1/models", models)]
    inside = [] if tokens is None else [Middleware(AuthenticationMiddleware, tokens=tokens)]
    app = Starlette(routes=routes, middleware=[Middleware(PromptLoRAMiddleware), *inside])
    app.state.openai_serving_models = SimpleNamespace(
        base_model_paths=[SimpleNamespace(name="base")], lora_resolvers=[PromptLoRAResolver()]
    )
    return app


@pytest.fixture
def sidecar(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    with serving(lm, adapters_only=True) as served:
        monkeypatch.setenv("PROMPTLORA_SIDECAR", served.url)
        monkeypatch.setenv("PROMPTLORA_STORE", str(tmp_path / "store"))
        shared.sidecar.cache_clear()
        yield served
    shared.sidecar.cache_clear()


def send(
    app: Starlette, method: str, path: str, headers: dict[str, str] | None = None, **request: Any
) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vllm") as client:
            try:
                return await client.request(method, path, headers=headers, **request)
            finally:
                await shared.sidecar().aclose()  # each question has an event loop of its own here

    return asyncio.run(run())


def chat(app: Starlette, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    body = {"model": "promptlora", "messages": [SYSTEM, USER], **body}
    return send(app, "POST", "/v1/chat/completions", headers, json=body)


def test_a_system_message_becomes_a_name_and_its_folder_is_there(sidecar, tmp_path):
    answer = chat(application(), seed=3).json()
    name = answer["body"].pop("model")
    assert answer["body"] == {"messages": [{"role": "system", "content": ""}, USER], "seed": 3}
    assert sidecar.service.cache.get(name.removeprefix("promptlora:")) is not None
    assert (tmp_path / "store" / name.removeprefix("promptlora:") / WEIGHTS).is_file()


def test_no_system_message_is_the_base_and_other_requests_are_untouched(sidecar):
    app = application()
    assert chat(app, messages=[USER]).json()["body"]["model"] == "base"
    body = b'{"model" : "base","messages":[]}'
    assert send(app, "POST", "/v1/chat/completions", content=body).json()["length"] == str(len(body))
    assert send(app, "POST", "/v1/embeddings", json={"model": "promptlora"}).json()["body"] == {"model": "promptlora"}
    listed = send(app, "GET", "/v1/models")
    assert [model["id"] for model in listed.json()["data"]] == ["base", "promptlora"]
    assert send(app, "GET", "/v1/models/promptlora").json()["id"] == "promptlora"
    assert sidecar.service.cache.list() == ()


def test_a_stored_adapter_for_a_prompt_in_the_context_needs_that_prompt(sidecar):
    app, told = application(), {"prompt": "w1 w2", "in_context": True}
    written = chat(app, messages=[USER], promptlora=told).json()["body"]
    asked = {"model": written["model"], "messages": [USER]}
    for given, words in (({}, "also reads its prompt"), ({"promptlora": {"prompt": "w1 w3"}}, "not the prompt")):
        refused = chat(app, **asked, **given)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "promptlora.prompt"
        assert words in refused.json()["error"]["message"]
    assert chat(app, **asked, promptlora={"prompt": "w1 w2"}).json()["body"] == written
    text = {"model": written["model"], "prompt": "w5", "promptlora": {"prompt": "w1 w2"}}
    assert send(app, "POST", "/v1/completions", json=text).json()["body"]["prompt"] == "w1 w2\n\nw5"
    plain = chat(app).json()["body"]["model"]
    assert chat(app, model=plain).status_code == 200
    assert chat(app, model=plain, promptlora={"prompt": "w1 w2"}).json()["error"]["param"] == "promptlora"


def test_strangers_have_nothing_written(sidecar):
    app = application(["the key"])
    assert chat(app).status_code == 401
    assert chat(app, {"Authorization": "Bearer another"}).status_code == 401
    assert sidecar.service.cache.list() == ()
    assert chat(app, {"Authorization": "Bearer the key"}).status_code == 200
    assert len(sidecar.service.cache.list()) == 1


def test_errors_have_the_shape_of_openai(sidecar, monkeypatch, tmp_path):
    app = application()
    refused = chat(app, promptlora={"strength": 3})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "promptlora.strength"
    unknown = chat(app, model=f"adapter:{KEY}")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "adapter_not_found")
    assert send(app, "POST", "/v1/load_lora_adapter", json={}).status_code == 403
    app.state.openai_serving_models.lora_resolvers = []
    assert chat(app).json()["error"]["code"] == "plugin_not_loaded"
    monkeypatch.setenv("PROMPTLORA_SIDECAR", "http://127.0.0.1:9")
    shared.sidecar.cache_clear()
    away = chat(application())
    assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    assert away.json()["error"]["type"] == "server_error"


def test_without_runtime_updating_vllm_does_not_start(monkeypatch):
    monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", raising=False)
    with pytest.raises(SettingsError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        PromptLoRAMiddleware(application())


# --- rows of the base ----------------------------------------------------------------------------------------


def test_a_kernel_that_reads_the_last_slot_is_found_and_masked():
    def shrink(inputs: Any, weights: Any, output: Any, indices: Any, scaling: float = 1.0) -> None:
        output[:] = scaling * torch.einsum("bi,bri->br", inputs, weights[indices].squeeze(1))

    assert base_rows.wrong(shrink)
    masked = base_rows.masked(shrink)
    assert not base_rows.wrong(masked)
    torch.manual_seed(0)
    inputs, weights, indices = torch.randn(5, 6), torch.randn(3, 1, 4, 6), torch.tensor([2, -1, 0, 1, -1])
    output = torch.full((5, 4), 7.0)
    masked(inputs, weights, output, indices, 0.5)
    expected = torch.stack(
        [0.5 * weights[i, 0] @ x if i >= 0 else torch.zeros(4) for x, i in zip(inputs, indices, strict=True)]
    )
    torch.testing.assert_close(output, expected)


def test_the_package_imports_nothing_of_promptlora_or_vllm():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import promptlora_vllm.middleware, promptlora_vllm.reloading\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('promptlora', 'vllm', 'transformers')])"
    )
    source = str(ROOT / "integrations" / "vllm" / "src")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", code, source], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(ran.stdout.replace("'", '"')) == []

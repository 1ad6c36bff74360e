"""The Hub: hypernetworks go up and come down over HTTP, from a local stand-in that speaks the Hub's API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from promptlora.errors import CheckpointError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.hub import is_hub_id
from promptlora.hypernet.network import HyperNetwork, read_config
from promptlora.models import base_fingerprint, load_base
from promptlora.projections import find_projections

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: create, preupload, commit (regular and LFS files), info, tree and resolve."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # LFS
        self.calls: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: object, code: int = 200) -> None:
        self.answer(code, json.dumps(value).encode(), Content_Type="application/json")

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.server.repos[repo].items())).encode()).hexdigest()

    def missing(self, repo: str) -> bool:
        """Answer as the Hub does where there is no such repository, or a private one without the token."""
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo in self.server.repos and (allowed or not self.server.private[repo]):
            return False
        self.answer(404 if allowed else 401, b"{}", X_Error_Code="RepoNotFound")
        return True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls.append(f"POST {self.path.partition('?')[0]}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer_json({"error": "Invalid credentials.\n\nMore lines."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(repo, {})
            self.server.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.answer_json({"url": f"{self.server.address}/{repo}"})
        elif self.path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            self.answer_json({"errors": [], "warnings": []}, 200 if content.startswith("---\n") else 400)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer_json({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"} for f in files
            ]})  # fmt: skip
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.answer_json({"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}} for o in objects
            ]})  # fmt: skip
        elif match := re.fullmatch(r"/api/models/(\w+/[\w-]+)/commit/main", self.path):
            repo = match[1]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    assert value["encoding"] == "base64"
                    self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.repos[repo][value["path"]] = self.server.objects[value["oid"]]
            oid = self.commit(repo)
            self.answer_json({"commitUrl": f"{self.server.address}/{repo}/commit/{oid}", "commitOid": oid})
        else:
            self.answer_json({"error": f"no such call: {self.path}"}, 501)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append("PUT lfs")
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.answer(200)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.calls.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/[^/]+)?", path):
            if not self.missing(match[1]):
                files = [{"rfilename": name} for name in self.server.repos[match[1]]]
                self.answer_json({"id": match[1], "modelId": match[1], "sha": self.commit(match[1]), "siblings": files,
                                  "private": self.server.private[match[1]], "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        elif match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/tree/[^/]+", path):
            if not self.missing(match[1]):
                self.answer_json([
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in self.server.repos[match[1]].items()
                ])  # fmt: skip
        elif match := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path):
            repo, _, name = match.groups()
            if self.missing(repo):
                return
            data = self.server.repos[repo].get(name)
            if data is None:
                self.answer(404, X_Error_Code="EntryNotFound")
            else:
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.answer(200, data, ETag=etag, X_Repo_Commit=self.commit(repo), Accept_Ranges="bytes")
        else:
            self.answer_json({"error": f"no such call: {path}"}, 501)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def with_hub(hub: Hub, folder: Path, program: str, *, token: str = TOKEN, **environment: str) -> Any:
    """What a program prints as JSON, in a process of its own whose Hub is the stand-in (read at import)."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"),
             "HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
             "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def network(toy_base) -> HyperNetwork:
    model, _ = load_base(toy_base, device="cpu")
    torch.manual_seed(0)
    config = HyperNetworkConfig(context_size=16, rank=2, encoder_layers=1, trunk_layers=1, source_layer=1)
    return HyperNetwork(config, find_projections(model), model.config.hidden_size, base_fingerprint(model))


def test_a_hypernetwork_goes_to_the_hub_and_comes_back(hub, network, toy_base, tmp_path):
    network.save_pretrained(tmp_path / "h")
    found = with_hub(
        hub,
        tmp_path,
        f"""
import json, torch
from promptlora import HyperNetwork, PromptLoRA
from promptlora.hypernet.network import read_config

network = HyperNetwork.from_pretrained({str(tmp_path / "h")!r})
address = network.push_to_hub("somebody/network", base_model="owner/base", private=True)
again = HyperNetwork.from_pretrained("somebody/network")
same = all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
config = read_config("somebody/network") == network.config
lm = PromptLoRA.from_pretrained("somebody/network", {str(toy_base)!r}, device="cpu")
lora = lm.adapt("red")
print(json.dumps([address, same, config, lora.adapters, lora.base_model]))
""",
    )
    assert found == [f"{hub.address}/somebody/network", True, True, 1, str(toy_base)]
    files = hub.repos["somebody/network"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files["config.json"] == (tmp_path / "h" / "config.json").read_bytes()
    assert files["model.safetensors"] == (tmp_path / "h" / "model.safetensors").read_bytes()
    assert hub.private["somebody/network"]
    assert sum("/commit/" in call for call in hub.calls) == 1  # all files at once
    assert not any("README" in call for call in hub.calls)  # the card is not fetched
    card = files["README.md"].decode()
    assert card.startswith("---\n")
    assert "base_model: owner/base" in card
    assert 'PromptLoRA.from_pretrained("somebody/network", base="owner/base")' in card
    assert f"| parameters | {sum(p.numel() for p in network.parameters()):,} |" in card

    without = "import json\nfrom promptlora import HyperNetwork\ntry:\n    made = HyperNetwork.from_pretrained(%r)\n" \
        "except ValueError as error:\n    print(json.dumps(str(error)))\nelse:\n    print(json.dumps(len(made.projections)))"  # fmt: skip
    hub.shutdown()  # the network is gone: what was fetched is used as it is
    assert with_hub(hub, tmp_path, without % "somebody/network", HF_HUB_OFFLINE="1") == len(network.projections)


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    hub.repos["somebody/damaged"] = {"config.json": b"{}", "model.safetensors": b"x"}
    hub.repos["somebody/hidden"] = {"config.json": b"{}"}
    hub.private = {"somebody/damaged": False, "somebody/hidden": True}
    damaged, hidden, absent, upload = with_hub(
        hub,
        tmp_path,
        """
import json
from promptlora import HyperNetwork
from promptlora.adapt import shipped_hypernetwork

told = []
for name in ("somebody/damaged", "somebody/hidden", "somebody/absent"):
    try:
        HyperNetwork.from_pretrained(name)
    except ValueError as error:
        told.append(str(error))
try:
    HyperNetwork.from_pretrained(shipped_hypernetwork()).push_to_hub("somebody/network")
except ValueError as error:
    told.append(str(error))
print(json.dumps(told))
""",
        token="hf_of_another",
    )
    assert "config.json: not a hypernetwork's configuration" in damaged
    assert hidden.startswith("somebody/hidden: no such folder, and it cannot be fetched from the Hub (")
    assert absent.startswith("somebody/absent: no such folder, and it cannot be fetched from the Hub (")
    assert upload.startswith("somebody/network: cannot be uploaded (")
    assert not any("\n" in line for line in (damaged, hidden, absent, upload))
    assert "somebody/network" not in hub.repos


def test_a_folder_comes_before_an_id_and_a_path_is_never_one(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network.save_pretrained("owner/name")
    assert HyperNetwork.from_pretrained("owner/name").config == network.config
    assert read_config("owner/name") == network.config
    assert is_hub_id("owner/other")
    for name in (
        Path("owner/other"),
        "owner/name",
        "other",
        "./a/b",
        "a/b/c",
        "../b",
        "a/..",
        "~/b",
        "a/b\n",
        "a/" + 96 * "b",
    ):
        assert not is_hub_id(name), name
    with pytest.raises(CheckpointError, match=r"^owner/other: no such folder, and it cannot be fetched"):  # offline
        HyperNetwork.from_pretrained("owner/other")

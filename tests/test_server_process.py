"""``promptlora serve`` as a process: how it starts, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.cli import main
from promptlora.models import load_base
from tests.forked import Forked, promptlora
from tests.host_helpers import tiny_network
from tests.server_helpers import SYSTEM, TEXT, chat, serving


@pytest.fixture(scope="module")
def network(toy_base, tmp_path_factory) -> Path:
    """A hypernetwork for the tiny base, as a folder."""
    model, _ = load_base(toy_base, device="cpu")
    folder = tmp_path_factory.mktemp("network") / "hypernetwork"
    tiny_network(model).save_pretrained(folder)
    return folder


class Process:
    """A running ``promptlora serve`` with its start line."""

    def __init__(self, *arguments: object, forked: bool = False, **environment: str) -> None:
        command = ["serve", *map(str, arguments), "--port", "0", "--device", "cpu"]
        self.child: Any = (
            Forked(promptlora, *command, environment=environment)
            if forked
            else subprocess.Popen(
                [sys.executable, "-m", "promptlora", *command],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        self.line = self.child.stdout.readline()
        assert self.line, self.child.stderr.read()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=json.loads(self.line)["api"], api_key="none", max_retries=0, timeout=60)

    def end(self, number: int) -> tuple[int, str]:
        """Exit code and standard error after a signal."""
        self.child.send_signal(number)
        _, errors = self.child.communicate(timeout=60)
        return self.child.returncode, errors


@contextmanager
def process(*arguments: object, **options: Any) -> Iterator[Process]:
    made = Process(*arguments, **options)
    with made.child:  # closes the pipes
        try:
            yield made
        finally:
            made.child.kill()  # nothing where it has ended


def test_the_first_signal_lets_running_answers_end(toy_base, network):
    with process(toy_base, "--hypernetwork", network, "--json") as server, server.client() as client:
        told = json.loads(server.line)
        assert told["pid"] == server.child.pid
        assert told["model"] == toy_base.name  # no path of this machine
        assert told["url"].startswith("http://127.0.0.1:")
        lm = PromptLoRA.from_pretrained(network, toy_base, device="cpu")
        expected = lm.generate(TEXT, lm.adapt(SYSTEM), max_new_tokens=100)
        lm.close()
        stream = iter(chat(client, max_tokens=100, stream=True))
        chunks = [next(stream), next(stream)]
        server.child.send_signal(signal.SIGTERM)
        chunks += list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks).strip() == expected
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        _, errors = server.child.communicate(timeout=60)
    assert server.child.returncode == 0, errors
    assert errors.splitlines()[-1] == "stopped"
    assert not any(word in errors for word in (*SYSTEM.split(), *TEXT.split()))
    assert "POST /v1/chat/completions 200" in errors


def test_a_line_for_people_with_an_example_that_works_and_keys(toy_base, network, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nkey-of-the-file\n")
    arguments = (toy_base, "--hypernetwork", network, "--adapters-only", "--api-key-file", file)
    with process(*arguments, forked=True, PROMPTLORA_API_KEY="key-of-the-environment") as server:
        address = server.line
        example = server.child.stdout.readline().strip()  # on its own line, to be copied
        assert address.startswith("serving http://127.0.0.1:")
        command, body = example.removesuffix("'").split(" --json '")
        url, header = command.removeprefix("curl ").split(" -H ")
        assert header == '"Authorization: Bearer $PROMPTLORA_API_KEY"'
        for key, status in (("key-of-the-file", 200), ("key-of-the-environment", 200), ("another-key", 401)):
            answer = httpx.post(url, json=json.loads(body), headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status
        code, errors = server.end(signal.SIGINT)
    assert code == 0
    assert errors.splitlines()[-1] == "stopped"
    assert "key-of" not in server.line + errors


def test_a_memory_that_holds_no_adapter_is_refused_at_the_start(toy_base, tmp_path, capsys):
    model, _ = load_base(toy_base, device="cpu")
    network = tiny_network(model, generated=False, static=True, rank=1024)
    network.save_pretrained(tmp_path / "network")
    command = ["serve", str(toy_base), "--hypernetwork", str(tmp_path / "network")]
    for more in ([], ["--adapters-only"]):
        assert main([*command, "--adapter-memory", "1", "--port", "0", "--device", "cpu", *more]) == 2
        told = capsys.readouterr().err
        assert "--adapter-memory: 1 MB, and one adapter" in told
        assert "Traceback" not in told


@pytest.mark.nightly
def test_a_kill_while_adapters_are_written_leaves_none_that_is_damaged(toy_base, network, tmp_path):
    arguments = (toy_base, "--hypernetwork", network, "--json", "--adapters-only", "--adapter-dir", tmp_path / "kept")
    with process(*arguments) as server:
        url = json.loads(server.line)["api"]

        def write(thread: int) -> None:
            with suppress(httpx.HTTPError), httpx.Client() as http:
                for i in range(10_000):
                    http.post(f"{url}/adapters", json={"prompt": f"w{thread} w{i % 80} w{i // 80}"})

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        server.child.kill()
        for thread in threads:
            thread.join(60)
    with process(*arguments) as server, httpx.Client(base_url=json.loads(server.line)["api"]) as http:
        names = [each["id"] for each in http.get("/adapters").json()["data"]]
        assert len(names) > 4
        for name in names:
            assert http.get(f"/adapters/{name}").status_code == 200, name
        _, errors = server.end(signal.SIGTERM)
    assert "damaged" not in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api-key", "short"], "--api-key: a key of 5 characters"),
        (["--api-key", "a key with spaces"], "without spaces"),
        (["--api-key-file", "absent"], "absent: cannot be read"),
        (["--api-key-file", "empty"], "no key"),
        (["--host", "203.0.113.1"], "cannot be served"),
        (["--port", "70000"], "--port"),
        (["--max-batch", "0"], "--max-batch"),
        (["--adapter-dir", "empty"], "is a file"),
        (["no such folder"], "no such folder"),
        (["--model-name", "promptlora"], "promptlora"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROMPTLORA_API_KEY", raising=False)
    (tmp_path / "empty").write_text("# no key\n")
    assert main(["serve", "--port", "0", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_a_port_in_use_is_told_before_the_model_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        began = time.monotonic()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert time.monotonic() - began < 5
    assert "Address already in use" in capsys.readouterr().err


@pytest.mark.real
def test_the_shipped_model_answers_as_generate_does(smollm, capsys):
    lm = PromptLoRA(*smollm, _shipped())
    try:
        prompts = ["Classify the sentiment as positive or negative.", "Write the plural of the noun."]
        texts = ["I loved every minute of it", "city"]
        with serving(lm) as served, served.client() as client:
            for prompt, text in zip(prompts, texts, strict=True):
                answer = chat(client, text=text, system=prompt).choices[0].message.content
                assert answer.strip() == served.alone(text, prompt)
                (distance,) = lm.distances(prompt)
                made = httpx.post(f"{served.url}/v1/adapters", json={"prompt": prompt}).json()
                assert (made["distance"], made["far"]) == (distance.distance, distance.far)
                assert httpx.get(f"{served.url}/v1/adapters/{made['id']}").json() == made
            page = (Path(__file__).parent.parent / "docs" / "serve.md").read_text()
            script = page.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8421", served.url)
            exec(script, {})
            printed = capsys.readouterr().out.splitlines()
            assert printed[0] == "positive"
            assert re.fullmatch(r"\d+ tokens read, \d+ saved", printed[1])
    finally:
        lm.close()


def _shipped():
    from promptlora.adapt.prompt_lora import shipped_hypernetwork
    from promptlora.hypernet.network import HyperNetwork

    return HyperNetwork.from_pretrained(shipped_hypernetwork()).requires_grad_(False)

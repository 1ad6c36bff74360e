"""What the tests of the page share: the real server as a process of its own, and what a visitor does in a real browser."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from promptlora.ui.values import WHO

WAIT = 180_000  # milliseconds; a busy machine is slow, not wrong
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--disable-component-update", "--disable-sync", "--disable-breakpad", "--disable-crash-reporter",
]  # fmt: skip


def _no_browser(why: str) -> Any:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}; CI must test the page")
    pytest.skip(why)


def find_chromium() -> str:
    """The path of Chromium; the test is skipped where there is none, and fails in CI."""
    for package in ("playwright", "gradio", "axe_playwright_python"):
        if find_spec(package) is None:
            _no_browser(f"{package} is not installed (pip install 'promptlora[browser]')")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or _no_browser("no Chromium on this machine (apt-get install chromium)")


# The kernel ends the server when the process that started it ends, however that happens.
_START = """
import ctypes, sys
try: ctypes.CDLL(None).prctl(1, 9)
except (OSError, AttributeError): pass
from promptlora.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Server:
    """A running page: its address, and a port where its process would knock if it wanted out to the network."""

    def __init__(self, url: str, outside: socket.socket, process: subprocess.Popen[str]) -> None:
        self.url, self.outside, self.process = url, outside, process

    def knocks(self) -> int:
        """How many connections to the outside were tried."""
        count = 0
        with suppress(BlockingIOError):
            while True:
                self.outside.accept()[0].close()
                count += 1
        return count


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + WAIT / 1000
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([process.stdout], [], [], 1.0)[0]:
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            if found:
                return found[0] + "/"
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The page of `promptlora ui` on a free port; it must end by itself and leave nothing behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with socket.socket() as outside, (folder / "log").open("w") as log:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        outside.setblocking(False)
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        (folder / "tmp").mkdir()
        environment = {
            **os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            "http_proxy": proxy, "https_proxy": proxy, "all_proxy": proxy, "no_proxy": "",
            "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": "",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", _START, "ui", "--port", str(port)],
            stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        try:
            yield Server(_address(process, folder / "log"), outside, process)
            process.terminate()
            assert process.wait(60) == 0
            assert list((folder / "tmp").glob("promptlora-ui-*")) == []  # nothing is left behind
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


class Page:
    """One visitor's page, with what a visitor does."""

    def __init__(self, context: Any, url: str, requests: list[str]) -> None:
        self.context, self.tab, self.wrong = context, context.new_page(), list[str]()
        self.tab.set_default_timeout(WAIT)
        self.tab.on("request", lambda request: requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.tab.on("response", lambda reply: reply.status >= 400 and self.wrong.append(f"{reply.status} {reply.url}"))
        self.tab.goto(url)
        self.tab.wait_for_selector("#go")

    def fill(self, prompt: str, inputs: list[str], longest: int = 4) -> None:
        self.tab.fill("#prompt textarea", prompt)
        for i in range(max(len(inputs), self.tab.locator("#inputs textarea:visible").count())):
            box = self.tab.locator(f"#input-{i + 1} textarea")
            if not box.is_visible():
                self.tab.click("#more")
            box.fill(inputs[i] if i < len(inputs) else "")
        self.longest(longest)

    def longest(self, tokens: int) -> None:
        box = self.tab.locator("#longest input[type=number]")
        box.fill(str(tokens))
        box.press("Tab")

    def forget(self) -> None:
        """Mark what is shown as old, so that what comes next can be waited for."""
        self.tab.evaluate("document.querySelector('#answers .pl-answers')?.setAttribute('data-done', 'old')")
        self.tab.evaluate("for (const one of document.querySelectorAll('.pl-status')) one.dataset.kind = 'old'")

    def start(self) -> None:
        self.forget()
        self.tab.click("#go")

    def ended(self) -> dict[str, list[str]]:
        """Wait for the answers; who said what to each input."""
        self.tab.wait_for_selector("#status [data-kind=done]")
        said = self.tab.locator("#answers .pl-answer").evaluate_all("all => all.map(e => [e.dataset.who, e.innerText])")
        return {who: [text for name, text in said if name == who] for who in WHO}

    def refused(self) -> str:
        return str(self.tab.locator("#status [data-kind=error]").inner_text())

    def walked(self) -> None:
        self.tab.wait_for_selector("#look-status [data-kind=done]")
        self.tab.wait_for_selector("#walk .pl-map[data-map=difference] svg")

    def place(self) -> tuple[int, int, int]:
        """Token, layer and head that are shown."""
        shown = self.tab.locator("#walk .pl-walk").evaluate("e => [e.dataset.token, e.dataset.layer, e.dataset.head]")
        token, layer, head = map(int, shown)
        return token, layer, head

    def click_cell(self, figure: str, row: int, column: int) -> None:
        """Click a cell of a heat map, by the place of its row and column."""
        svg, frame = self.tab.locator(f"{figure} svg"), self.tab.locator(f"{figure} svg .frame")
        rows, columns = (svg.get_attribute(f"data-{name}").count(",") + 1 for name in ("rows", "columns"))
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        at = {"x": box["width"] * (column + 0.5) / columns, "y": box["height"] * (row + 0.5) / rows}
        frame.click(position=at, force=True)  # the cell lies over the frame

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it is."""
        return violations(self.tab)

    def sums(self) -> list[float]:
        return [
            float(v) for v in self.tab.locator("#walk [data-sum]").evaluate_all("a => a.map(e => e.dataset.sumValue)")
        ]


def violations(tab: Any) -> list[str]:
    """What axe-core finds wrong with a page: the rule, and the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab).response["violations"]
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found]


def shoot(page: Page, folder: Path | None, name: str, last: str | None, first: str | None = None) -> None:
    """The page from one part to another, or to the end; without a folder only its figures settle."""
    page.tab.evaluate("scrollTo(0, 0)")
    page.tab.wait_for_timeout(500)
    if folder is None:
        return
    size = page.tab.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    start = page.tab.locator(first).bounding_box()["y"] - 8 if first else 0
    box = page.tab.locator(last).bounding_box() if last else None
    end = box["y"] + box["height"] + 16 if box else size[1]
    clip = {"x": 0, "y": start, "width": size[0], "height": end - start}
    page.tab.screenshot(path=folder / name, full_page=True, animations="disabled", clip=clip)

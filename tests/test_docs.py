"""The documentation: generated pages are current, the site opens as files, and messages speak the reader's language."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from promptlora.cli import _with_flags
from tests.ui_browser import SWITCHES, find_chromium

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it."""
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed (pip install 'promptlora[docs]')")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "-d", folder], cwd=ROOT,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name in ("href", "src") and value]


def test_the_reference_of_the_command_line_is_current():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/cli_page.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_link_of_the_site_is_a_file(site):
    """A link to a folder shows "Index of /" where the site is opened without a server."""
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 8
    for page in pages:
        links = _Links()
        links.feed(page.read_text(encoding="utf-8"))
        for link in links.found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            assert (page.parent / unquote(parts.path)).is_file(), f"{page.name}: {link} is no file"


def test_code_is_not_cut_in_a_window_of_1440_pixels(site):
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        try:
            page: Any = browser.new_page(viewport={"width": 1440, "height": 900})
            blocks = 0
            for name in ("index", "tutorial", "train", "cli", "how-it-works"):
                page.goto((site / f"{name}.html").as_uri())
                widths = page.eval_on_selector_all("pre code", "all => all.map(x => [x.scrollWidth, x.clientWidth])")
                blocks += len(widths)
                assert all(inside <= shown for inside, shown in widths), f"{name}: {widths}"
            assert blocks > 20
        finally:
            browser.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_point_to_nothing_outside_a_clone(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(link)
        if not parts.scheme and parts.path:
            assert (page.parent / unquote(parts.path)).resolve().is_relative_to(ROOT), link
    assert "shared/" not in text.replace("is_shared/", "")


# --- messages ----------------------------------------------------------------------------------------

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_COMMAND = re.compile(
    r"`[^`]*`|pip install [^;,)]*|vllm serve .*|promptlora \w+ --list"
)  # a whole command may have flags


def _messages_of_errors(tree: ast.AST) -> list[tuple[int, str]]:
    """The texts inside of ``raise``, with the line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            texts = [
                part.value
                for part in ast.walk(node.exc)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            found.append((node.lineno, "".join(texts)))
    return found


def test_errors_of_the_library_speak_of_its_arguments_and_not_of_flags():
    checked = 0
    for path in sorted((ROOT / "src/promptlora").rglob("*.py")):
        if path.is_relative_to(ROOT / "src/promptlora/cli"):
            continue
        for line, message in _messages_of_errors(ast.parse(path.read_text(encoding="utf-8"))):
            checked += 1
            flags = _FLAG.findall(_COMMAND.sub("", message))
            assert not flags, f"{path.relative_to(ROOT)}:{line} says {flags[0]}; say the argument (name=True)"
    assert checked > 300


def test_the_command_line_says_the_same_in_its_own_words():
    assert _with_flags("it exists; pass overwrite=True") == "it exists; pass --overwrite"
    assert _with_flags("remove it, then pass resume=True.") == "remove it, then pass --resume."
    assert _with_flags("force=False, data.resume=Trueish") == "force=False, data.resume=Trueish"


@pytest.mark.parametrize(
    "words",
    [
        "number e, a fixed number",
        "square root of a number is",
        "The **cosine** of",
        "It became shorter although",
        "is the mean over the",
    ],
)
def test_the_attention_page_explains_its_words(words):
    """The numbers of the page are checked by `scripts/attention_page.py --check`."""
    assert words in " ".join((ROOT / "docs/attention.md").read_text(encoding="utf-8").split())

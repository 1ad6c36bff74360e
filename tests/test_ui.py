"""The page in a real browser against the real server, and what it is made of without them.

Screenshots go to the folder PROMPTLORA_SCREENSHOTS, else to a temporary one.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from promptlora.adapt.prompt_lora import PromptLoRA, shipped_hypernetwork
from promptlora.adapt.streaming import stream_rows
from promptlora.cli import main
from promptlora.errors import PromptError
from promptlora.hypernet.network import HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.inspect import (
    ablate,
    ablation_page,
    adapter_space,
    capture_attention,
    capture_ids,
    space_page,
    token_life,
    token_page,
)
from promptlora.inspect.life import change_at_tokens
from promptlora.text import encode_chat, render_chat
from promptlora.ui import Limits, Studio
from promptlora.ui import html as fragments
from promptlora.ui.examples import EXAMPLES
from promptlora.ui.kept import Kept
from promptlora.ui.look import Place, no_softmax, walk
from promptlora.ui.values import SILENT, WHO, WRITTEN, Inside

from .architectures import CASES, build
from .helpers import random_lora, token_ids

WAIT = 180_000  # milliseconds; a busy machine is slow, not wrong
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--disable-component-update", "--disable-sync", "--disable-breakpad", "--disable-crash-reporter",
]  # fmt: skip
HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> ${window.hacked=1} {{value}} `x` <b>&amp;"
)


# --- without a browser -------------------------------------------------------------------------------------


def test_the_least_used_is_dropped_first():
    dropped = []
    kept: Kept[int] = Kept(2, lambda key, value: dropped.append((key, value)))
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1  # now b is the least used
    kept.put("c", 3)
    assert dropped == [("b", 2)]
    assert (kept.get("a"), kept.get("b"), kept.get("c"), len(kept)) == (1, None, 3, 2)


def test_text_is_never_markup_nor_template():
    shown = fragments.safe(HOSTILE + '" onmouseover="x')
    assert not set("<>\"'`${}") & set(re.sub(r"&#?\w+;", "", shown))
    assert HOSTILE not in fragments.status(HOSTILE)


@pytest.fixture
def studio(lm, tmp_path):
    return Studio(lm, tmp_path, base_name="a/base", limits=Limits(adapters=2, walk_tokens=24, ablation_inputs=1))


@pytest.mark.real
@pytest.mark.parametrize(
    ("prompt", "inputs", "said"),
    [
        ("  \n", ["hello"], "prompt is empty"),
        ("a" * 100_000, ["hello"], "100,000 characters"),
        ("word " * 2_000, ["hello"], "at most 512"),
        ("Translate.", ["", " \n \n", None], "no input"),
        ("Translate.", ["x"] * 7, "7 inputs"),
        ("Translate.", ["fine", "", "x" * 2_001], "input 3 has 2,001 characters"),
    ],
)
def test_limits_are_told_plainly(studio, prompt, inputs, said):
    with pytest.raises(PromptError, match=said):
        list(studio.answer(studio.check_prompt(prompt), studio.check_inputs(inputs), 4))


@pytest.mark.real
def test_rows_of_one_batch_are_what_generate_says(lm, studio):
    """The base rows go through an adapter of zeros and are the base's; the adapted ones are the adapter's."""
    text, prompt = "good morning", "Translate to Spanish."
    *steps, found = studio.answer(prompt, [text], 6)
    assert found.done
    lengths = [len(step.base[0]) for step in steps]  # piece by piece
    assert lengths[0] == 0
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert found.base[0] == lm.generate(text, max_new_tokens=6)
    assert found.in_context[0] == lm.generate(text, in_context=prompt, max_new_tokens=6)
    assert found.adapted[0] == lm.generate(text, lm.adapt(prompt), max_new_tokens=6)
    beside = lm.adapt(prompt, in_context=True)
    assert found.adapted_in_context[0] == lm.generate(text, beside, in_context=prompt, max_new_tokens=6)
    assert found.read[0] == tuple(lm.count_tokens([text, text], [None, prompt]))
    assert found.base[0] != found.adapted[0]


@pytest.mark.real
def test_an_input_may_have_several_lines(lm, studio):
    """Line breaks reach the model, and the page; only an empty box is left out."""
    text = "First line.\n\nThird line."
    assert studio.check_inputs(["", f" {text}\n", None, "another"]) == [text, "another"]
    *_, found = studio.answer("Write a title.", [text], 6)
    assert found.base[0] == lm.generate(text, max_new_tokens=6)
    assert found.read[0][0] == lm.count_tokens([text])[0] != lm.count_tokens([text.replace("\n", " ")])[0]
    assert f'dir="auto">{text}</h3>' in fragments.answers(found)


@pytest.mark.real
def test_an_answer_that_was_cut_says_so(studio):
    *_, short = studio.answer("Write a title.", ["Tell me a long story."], 4)
    assert short.cut == ((True,) * 4,)
    assert fragments.answers(short).count("cut at 4") == 4
    before, *_ = studio.answer("Write a title.", ["Tell me a long story."], 4)
    assert before.cut == ((False,) * 4,)  # not yet
    *_, whole = studio.answer("Write a title.", ["Good morning."], 16)
    assert whole.cut[0][0] is False  # it ended by itself
    assert fragments.answers(whole).count("cut at 16") == sum(whole.cut[0])


def test_a_layer_without_softmax_shows_what_it_has():
    case = next(case for case in CASES if case.model_type == "qwen3_next")
    model = build(case)
    with HookBasedLoRAInjector(model) as injector:
        capture = capture_ids(model, token_ids(1, 5)[0], injector, random_lora(injector.projections, dtype=model.dtype))
    shown = no_softmax(capture, 0, 4)
    assert "it has no softmax weights" in shown
    shares = capture.adapted[0].projections
    assert all(f"{role} {100 * float(shares[role].share[4]):.1f} %" in shown for role in ("q", "k", "v", "z", "o"))
    assert f"adapted {float(capture.adapted[0].out[4].norm()):.3f}" in shown
    layers, change = change_at_tokens(capture.base, capture.adapted)
    inside = Inside(tokens=capture.tokens, template=(False,) * 5, layers=tuple(layers), change=change, likely=())
    assert "× gate" in walk(capture, inside, Place(4, 3, 0), folded=True)
    assert shown in walk(capture, inside, Place(4, 0, 0), folded=True)


@pytest.mark.real
def test_an_iterator_that_is_dropped_gives_the_model_back(lm, studio):
    stack = studio.adapter("Answer with one word.").stack
    rows = encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, "Tell me a story.")] * 2)
    steps = stream_rows(lm.host, rows, stack, [SILENT, WRITTEN], max_new_tokens=90)
    next(steps)
    assert lm.host.turn.holder is None  # held by no one between two steps, so dropping it has nothing to give back
    steps.close()


@pytest.mark.real
def test_the_adapters_of_a_prompt_keep_the_shared_form(smollm, tmp_path):
    """What the shipped hypernetwork writes: cores between factors that both adapters have, one of them all zeros."""
    shipped = PromptLoRA(*smollm, HyperNetwork.from_pretrained(shipped_hypernetwork()).requires_grad_(False))
    try:
        written = Studio(shipped, tmp_path, base_name="a/base").adapter("Write a title.")
        assert written.stack.is_shared
        assert written.stack.adapters == 3
        assert all(not delta.any() for delta in (written.stack.select(SILENT).delta(name) for name in written.stack))
        alone = shipped.adapt("Write a title.")
        assert all(torch.equal(written.lora.delta(name), alone.delta(name)) for name in alone)
    finally:
        shipped.close()


@pytest.mark.real
def test_adapters_are_kept_and_dropped_with_their_export(studio):
    first = studio.adapter("Write a title.")
    assert not first.reused
    assert studio.adapter(" Write a title.\n").reused
    archive = studio.export("Write a title.")
    assert {Path(name).name for name in zipfile.ZipFile(archive).namelist()} >= {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    studio.adapter("Translate to Spanish.")
    studio.adapter("Answer with one word.")
    assert not archive.exists()


@pytest.mark.real
def test_a_text_too_long_for_the_walk_is_refused(studio):
    with pytest.raises(PromptError, match="at most 24"):
        studio.inside("Write a title.", "word " * 60)
    with pytest.raises(PromptError, match="at most 24"):
        studio.ablation("Write a title.", ["word " * 60])


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["ui", "--port", str(taken.getsockname()[1])]) == 2
    told = capsys.readouterr().err
    assert "--port" in told
    assert "in use" in told
    assert told.count("\n") == 1


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("promptlora.extras.find_spec", lambda name: None)
    assert main(["ui"]) == 2
    assert "promptlora[ui]" in capsys.readouterr().err


# --- server and browser ------------------------------------------------------------------------------------


def _no_browser(why: str) -> Any:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}; CI must test the page")
    pytest.skip(why)


@pytest.fixture(scope="module")
def chromium() -> str:
    for package in ("playwright", "gradio"):
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


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
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


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        try:
            yield opened
        finally:
            opened.close()


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """Every address that a page of this module asked for."""
    return []


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

    def sums(self) -> list[float]:
        return [
            float(v) for v in self.tab.locator("#walk [data-sum]").evaluate_all("a => a.map(e => e.dataset.sumValue)")
        ]


@pytest.fixture
def visit(server, browser, requests) -> Iterator[Any]:
    """Open pages; all of them are closed again, and none of them may have had an error."""
    opened = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **options}
        )
        opened.append(context)
        pages.append(Page(context, server.url, requests))
        return pages[-1]

    pages: list[Page] = []
    try:
        yield open_page
        assert [page.wrong for page in pages if page.wrong] == []
    finally:
        for context in opened:
            context.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("PROMPTLORA_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _shoot(page: Page, path: Path, last: str | None, first: str | None = None) -> None:
    """The page from one part to another; to the end without one."""
    page.tab.evaluate("scrollTo(0, 0)")
    page.tab.wait_for_timeout(500)  # figures settle
    size = page.tab.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    start = page.tab.locator(first).bounding_box()["y"] - 8 if first else 0
    box = page.tab.locator(last).bounding_box() if last else None
    end = box["y"] + box["height"] + 16 if box else size[1]
    clip = {"x": 0, "y": start, "width": size[0], "height": end - start}
    page.tab.screenshot(path=path, full_page=True, animations="disabled", clip=clip)


@pytest.mark.real
def test_the_first_click_shows_everything(visit, shots, smollm, tmp_path):
    """An example: three answers, the walk, other sliders, the ablation, a download that PEFT loads, three looks."""
    page = visit()
    for panel in ("#look-section", "#effect-section", "#compare-section", "#which"):  # nothing empty is shown
        assert not page.tab.locator(panel).is_visible()
    assert page.tab.locator("#stop").is_disabled()
    page.longest(20)
    page.tab.get_by_role("button", name="Sentiment").click()
    said = page.ended()
    assert len(said["adapted"]) == 2
    assert all(said["base"])
    assert said["adapted"] != said["base"]
    assert re.search(r"written in \d+\.\d\d s · \d+ kB · rank \d+", page.tab.inner_text("#status"))

    page.walked()
    _shoot(page, shots / "ui-desktop.png", "#walk .pl-maps")
    assert len(page.sums()) == 2
    walk = page.tab.locator("#walk .pl-walk")
    for name in ("layer", "head", "token"):  # by the keyboard
        slider = page.tab.locator(f"#{name} input[type=range]")
        before, most = int(slider.input_value()), int(slider.get_attribute("max"))
        slider.focus()
        page.tab.keyboard.press("ArrowLeft" if before == most else "ArrowRight")
        now = before - 1 if before == most else before + 1
        page.tab.wait_for_selector(f"#walk .pl-walk[data-{name}='{now}']")
        assert page.sums() == pytest.approx([1.0, 1.0], abs=1e-9)
        assert "1.000000" in walk.inner_text()

    page.tab.click("#measure")
    page.tab.wait_for_selector("#measure-status [data-kind=done]")
    assert page.tab.locator(".pl-ablation tbody tr").count() == 6

    with page.tab.expect_download() as download:
        page.tab.click("#download")
    download.value.save_as(tmp_path / "adapter.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip") as whole:
        whole.extractall(tmp_path)
    _peft_loads(smollm, tmp_path / "adapter")

    _shoot(page, shots / "ui-walk.png", None, "#walk")
    page.tab.emulate_media(color_scheme="dark")
    page.tab.wait_for_function(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 60)"
    )
    _shoot(page, shots / "ui-dark.png", "#walk .pl-maps")
    page.tab.emulate_media(color_scheme="light")
    page.tab.set_viewport_size({"width": 390, "height": 844})
    page.tab.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    for part in ("#answers", "#walk", "#effect", "#go"):  # nothing is squeezed into a strip
        assert page.tab.locator(part).bounding_box()["width"] > 150, part
    for part in ("#walk .pl-wide", "#effect .pl-wide"):  # no column is beyond the edge
        assert page.tab.locator(part).evaluate("e => e.scrollWidth <= e.clientWidth"), part
    _shoot(page, shots / "ui-phone.png", "#walk .pl-maps")


@pytest.mark.real
def test_reports_of_inspect_open_without_a_network(browser, lm, tmp_path):
    """On a desktop and a phone nothing is fetched, nothing is beyond the edge, and all tables can be read."""
    prompts = ["Translate to Spanish.", "Answer with one word."]
    loras = lm.adapt(prompts)
    capture = capture_attention(lm, "The cat sat on the mat", loras.select(0))
    pages = {
        "life": token_page(token_life(capture, 9, 12, 3), capture, prompts[0]),
        "ablation": ablation_page(ablate(lm, ["The cat"], loras.select(0)), prompts[0]),
        "space": space_page(adapter_space(loras, prompts, ["a", "b"])),
    }
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        for width, scheme in ((1280, "light"), (390, "dark")):
            context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
            tab, asked = context.new_page(), list[str]()
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto((tmp_path / f"{name}.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            tables = tab.locator(".wide:has(table)")
            assert tables.evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth)"), (name, width)
            assert tab.locator(".figure svg").first.bounding_box()["height"] > 40
            assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(13, 17, 23)" if scheme == "dark" else "rgb(255, 255, 255)"
            )
            assert asked == [(tmp_path / f"{name}.html").as_uri()]
            context.close()


def _peft_loads(smollm: Any, folder: Path) -> None:
    from peft import PeftModel

    model, _ = smollm
    ids = torch.arange(100, 112)[None]
    with torch.no_grad():
        base = model(ids).logits
        wrapped = PeftModel.from_pretrained(model, folder)
        try:
            assert float((wrapped(ids).logits - base).abs().max()) > 1e-3
        finally:
            wrapped.unload()
            for config in ("peft_config", "_hf_peft_config_loaded"):
                if config in vars(model):
                    delattr(model, config)
        assert torch.equal(model(ids).logits, base)


_RIGHT = {
    "Sentiment": ("positive", "negative"),
    "Topic": ("sports", "business", "science"),
    "City": ("madrid", "osaka"),
    "Negation": ("the door is not open", "he does not like tea"),
}


@pytest.mark.real
def test_every_example_works_on_the_first_click(visit):
    page = visit()
    page.longest(12)
    for example in EXAMPLES:
        page.forget()
        page.tab.get_by_role("button", name=example.name).click()
        said = page.ended()
        assert page.tab.locator("#answers .pl-input").all_inner_texts() == list(example.inputs), example.name
        boxes = page.tab.locator("#inputs textarea:visible").all()
        assert [box.input_value() for box in boxes] == list(example.inputs), example.name
        for i, answer in enumerate(said["adapted"]):
            assert answer.strip(), example.name
            assert answer not in (said["base"][i], example.inputs[i]), example.name
            if example.name in _RIGHT:
                assert answer.lower().strip(" .") == _RIGHT[example.name][i]
            if example.name == "Question":
                assert answer.endswith("?")
        page.walked()
        assert page.sums() == pytest.approx([1.0, 1.0], abs=1e-9)


@pytest.mark.real
def test_the_page_is_usable_by_keyboard(visit):
    page = visit()
    seen = []
    for _ in range(16):
        page.tab.keyboard.press("Tab")
        name, outline = page.tab.evaluate(
            "() => { const e = document.activeElement; const near = e.closest('#examples, #prompt, #longest, #inputs, #go');"
            " return [near ? near.id : e.tagName, getComputedStyle(e).outlineStyle]; }"
        )
        if name == "BODY":
            break
        assert outline == "solid", name  # the focus is seen
        seen.append(name)
    order = list(dict.fromkeys(seen))
    assert order == ["examples", "prompt", "longest", "inputs", "go"]
    page.fill("Translate the sentence to Spanish.", ["two\nlines"])
    for box, keys in (("#prompt", "Control+Enter"), ("#input-1", "Control+Enter"), ("#input-1", "Shift+Enter")):
        page.forget()
        page.tab.locator(f"{box} textarea").press(keys)
        page.ended()
    assert page.tab.locator("#input-1 textarea").input_value() == "two\nlines"
    assert page.tab.locator("#answers .pl-input").inner_text() == "two\nlines"
    page.walked()
    at = page.tab.locator("#layer input[type=number]")
    at.fill("3")
    at.press("Enter")
    page.tab.wait_for_selector("#walk .pl-walk[data-layer='3']")
    which = page.tab.locator("#which input")  # a box that is only passed through changes nothing
    which.focus()
    page.tab.keyboard.press("Tab")
    page.tab.click("#measure")
    page.tab.wait_for_selector("#measure-status [data-kind=done]")
    assert page.tab.locator("#walk .pl-walk[data-layer='3']").count() == 1


@pytest.mark.real
def test_what_is_shown_belongs_to_the_adapter_above(visit):
    """A new adapter takes the old walk and the old measure away; Stop leaves a page that goes on; a bad prompt nothing."""
    page = visit()
    page.fill("Translate the sentence to Spanish.", ["Good morning."])
    page.start()
    page.ended()
    page.walked()
    page.tab.click("#measure")
    page.tab.wait_for_selector(".pl-ablation")
    page.fill("", ["Good morning."])
    page.start()
    assert "prompt is empty" in page.refused()
    assert page.tab.locator("#effect .pl-ablation").is_visible()  # the old answers and their measure still stand
    page.fill("Write a title.", ["Tell me a long story."], 96)
    page.start()
    page.tab.wait_for_selector("#answers .pl-answers[data-done=false]")
    for gone in ("#effect .pl-ablation", "#look-section"):
        assert not page.tab.locator(gone).is_visible()
    page.tab.click("#stop")
    page.tab.wait_for_selector("#status :text('stopped')")
    page.tab.wait_for_selector("#stop:disabled")
    page.tab.wait_for_selector("#answers .pl-answers[data-done=true]")  # as far as they are
    assert page.tab.locator("#download").is_disabled()
    page.fill("Write a title.", ["Good morning."])
    page.start()
    page.ended()
    page.walked()


@pytest.mark.real
def test_inputs_up_to_the_limit_and_no_more(visit):
    page = visit()
    page.fill("Answer with one word.", [f"input {i}" for i in range(6)])
    assert page.tab.locator("#more").is_disabled()
    page.start()
    assert len(page.ended()["adapted"]) == 6
    page.fill(
        "Answer with one word.", ["word " * 150, "short"]
    )  # the first is too long for the walk, the second is not
    page.start()
    page.ended()
    assert "at most 96" in page.tab.locator("#look-status [data-kind=error]").inner_text()
    page.tab.locator("#which input").focus()
    page.tab.get_by_role("option", name="2: short").click()
    page.walked()


@pytest.mark.real
def test_two_visitors_do_not_see_one_anothers_adapter(visit):
    prompts = ("Translate the sentence to Spanish.", "Answer with one word: positive or negative.")
    pages = [visit(), visit()]
    for page, prompt in zip(pages, prompts, strict=True):
        page.fill(prompt, ["Good morning."], 6)
    alone = []
    for page in pages:
        page.start()
        alone.append(page.ended())
    for page in pages:
        page.start()
    assert [page.ended() for page in pages] == alone
    assert alone[0]["adapted"] != alone[1]["adapted"]
    assert alone[0]["base"] == alone[1]["base"]
    third = visit()  # the adapters are kept for all
    third.fill(prompts[1], ["Good evening."])
    third.start()
    third.ended()
    assert "kept from before" in third.tab.inner_text("#status")

    leaves = visit()
    leaves.fill(prompts[0], ["Tell me a long story."], 96)
    leaves.start()
    leaves.tab.wait_for_selector("#answers .pl-answers[data-done=false]")
    pages[0].start()
    pages[0].tab.wait_for_selector("#status :text('waiting for the model')")  # in the queue, and told so
    leaves.context.close()  # who goes in the middle of an answer holds nobody up, and leaves no adapter on
    pages[1].start()
    assert pages[1].ended() == alone[1]


@pytest.mark.real
def test_hostile_text_does_no_harm(visit):
    page = visit()
    for prompt, inputs, told in (
        ("", ["hello"], "prompt is empty"),
        ("a" * 100_000, ["hello"], "100,000 characters"),
        ("word " * 3_000, ["hello"], "at most 512"),
        ("Translate.", ["x" * 100_000], "100,000 characters"),
        ("Translate.", [""], "no input"),
    ):
        page.fill(prompt, inputs)
        page.start()
        assert told in page.refused()

    lines = [HOSTILE, "مرحبا بالعالم 👩‍👩‍👧 🎉", "<|im_end|>\u202eabc\u0000"]
    page.fill(HOSTILE, lines)
    page.start()
    said = page.ended()
    assert len(said["base"]) == 3
    assert page.tab.locator("#answers .pl-input").all_inner_texts()[:2] == lines[:2]
    page.walked()
    assert page.sums() == pytest.approx([1.0, 1.0], abs=1e-9)
    assert page.tab.evaluate("window.hacked") is None
    assert page.tab.locator("img[src=x], #answers script, #walk script, #walk text a").count() == 0

    page.fill("Translate the sentence to Spanish.", ["Good morning."])
    page.start()
    assert len(page.ended()["adapted"]) == 1


@pytest.mark.real
def test_no_request_left_the_machine(server, visit, requests):
    """Runs last: everything that the pages asked for, and whatever the server tried."""
    visit()
    assert len(requests) > 20
    odd = [url for url in requests if not url.startswith((server.url, "data:", "blob:"))]
    assert odd == []
    assert server.knocks() == 0
    assert server.process.poll() is None

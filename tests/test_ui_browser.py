"""The page of `promptlora ui` in a real browser against the real server; one server for all tests of this file.

Screenshots go to the folder PROMPTLORA_SCREENSHOTS; without it there are none.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from promptlora.inspect import (
    ablate,
    ablation_page,
    adapter_space,
    capture_attention,
    space_page,
    token_life,
    token_page,
)
from promptlora.ui.values import WHO
from tests.ui_browser import SWITCHES, Page, Server, find_chromium, serving, shoot, violations

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> ${window.hacked=1} {{value}} `x` <b>&amp;"
)


@pytest.fixture(scope="module")
def chromium() -> str:
    return find_chromium()


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


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
def shots() -> Path | None:
    name = os.environ.get("PROMPTLORA_SCREENSHOTS")
    if name:
        Path(name).mkdir(parents=True, exist_ok=True)
    return Path(name) if name else None


@pytest.mark.real
def test_the_first_click_shows_everything(visit, shots, smollm, tmp_path):
    """An example: four answers, the walk, clicks and sliders, ablation, comparison, refinement, a download that PEFT loads.

    Then the whole page is looked at in light and dark, on a desktop and a phone, by axe-core as well.
    """
    page = visit()
    for panel in ("#look-section", "#effect-section", "#compare-section", "#refine-section", "#which"):
        assert not page.tab.locator(panel).is_visible()  # nothing empty is shown
    assert page.tab.locator("#stop").is_disabled()
    page.longest(8)
    page.tab.get_by_role("button", name="Sentiment").click()
    said = page.ended()
    assert [len(said[who]) for who in WHO] == [2] * 4
    assert all(said["base"])
    assert said["adapted"] != said["base"]
    assert re.search(r"written in \d+\.\d\d s · \d+ kB · rank \d+", page.tab.inner_text("#status"))
    assert "near the training prompts" in page.tab.inner_text("#near")

    page.walked()
    shoot(page, shots, "ui-desktop.png", "#walk .pl-maps")
    _clicks(page)
    _sliders(page)

    page.tab.click("#measure")
    page.tab.wait_for_selector("#measure-status [data-kind=done]")
    assert page.tab.locator(".pl-ablation tbody tr").count() == 6
    page.tab.fill("#other textarea", "Find the city in the sentence.")
    page.tab.click("#compare")
    page.tab.wait_for_selector("#compare-status [data-kind=done]")
    assert page.tab.locator("#compared .pl-answer").count() == 4
    _refine(page)

    with page.tab.expect_download() as download:
        page.tab.click("#download")
    download.value.save_as(tmp_path / "adapter.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip") as whole:
        whole.extractall(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert folder.name.startswith("decide-whether-the-review-is-positive-or")
    _peft_loads(smollm, folder)

    shoot(page, shots, "ui-walk.png", None, "#walk")
    assert page.violations() == []
    page.tab.emulate_media(color_scheme="dark")
    page.tab.wait_for_function(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 60)"
    )
    shoot(page, shots, "ui-dark.png", "#walk .pl-maps")
    assert page.violations() == []
    page.tab.set_viewport_size({"width": 390, "height": 844})
    page.tab.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    assert page.violations() == []
    page.tab.emulate_media(color_scheme="light")
    page.tab.wait_for_function(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v > 200)"
    )
    for part in ("#answers", "#likely", "#walk", "#effect", "#go"):  # nothing is squeezed into a strip
        assert page.tab.locator(part).bounding_box()["width"] > 150, part
    for part in ("#walk .pl-wide", "#effect .pl-wide"):  # no column is beyond the edge
        assert page.tab.locator(part).evaluate("e => e.scrollWidth <= e.clientWidth"), part
    shoot(page, shots, "ui-phone.png", "#walk .pl-maps")
    assert page.violations() == []


def _clicks(page: Page) -> None:
    """Tokens, cells and small pictures move the walk; the address holds the place, and a reload brings it back."""
    last, layer, head = page.place()
    told = page.tab.inner_text("#look-status")
    assert f"changes layer {layer}, head {head} most" in told  # the head that opens is the one that changes most
    assert page.tab.locator("#walk .pl-fold").count() == 2  # the template's tokens stand together
    page.tab.click(f"#walk [data-at='token={last - 9}']")
    page.tab.wait_for_selector(f"#walk .pl-walk[data-token='{last - 9}']")
    assert page.tab.input_value("#token input[type=number]") == str(last - 9)
    page.click_cell("#changes", 2, 7)
    page.tab.wait_for_selector("#walk .pl-walk[data-layer='7'][data-head='2']")
    page.tab.click("#walk .pl-thumb[data-at='head=4']")
    page.tab.wait_for_selector("#walk .pl-walk[data-head='4']")
    rows = list(map(int, page.tab.locator("#walk [data-map=base] svg").get_attribute("data-rows").split(",")))
    page.click_cell("#walk [data-map=base]", 3, 2)
    page.tab.wait_for_selector(f"#walk .pl-walk[data-token='{rows[3]}']")
    page.tab.wait_for_selector("#walk tr.pl-key")  # the key of the cell is marked
    before = page.tab.locator("#walk .pl-token").count()
    page.tab.click("#folded input")
    page.tab.wait_for_function(f"document.querySelectorAll('#walk .pl-token').length > {before}")
    page.tab.click("#folded input")
    page.tab.wait_for_function(f"location.hash.includes('token={rows[3]}&layer=7&head=4')")
    said = page.tab.locator("#answers .pl-answer").all_inner_texts()
    page.tab.reload()
    page.walked()
    assert page.place() == (rows[3], 7, 4)
    assert page.tab.locator("#answers .pl-answer").all_inner_texts() == said


def _sliders(page: Page) -> None:
    """The same by the keyboard; each row of weights sums to 1."""
    for name in ("layer", "head", "token"):
        slider = page.tab.locator(f"#{name} input[type=range]")
        before, most = int(slider.input_value()), int(slider.get_attribute("max"))
        slider.focus()
        page.tab.keyboard.press("ArrowLeft" if before == most else "ArrowRight")
        now = before - 1 if before == most else before + 1
        page.tab.wait_for_selector(f"#walk .pl-walk[data-{name}='{now}']")
        assert page.sums() == pytest.approx([1.0, 1.0], abs=1e-9)
        assert "1.000000" in page.tab.locator("#walk .pl-walk").inner_text()


def _refine(page: Page) -> None:
    """Rows with a mistake are refused in one line; good ones give a curve that grows, and answers beside the generated ones."""
    page.tab.fill("#rows textarea", "no arrow")
    page.tab.click("#refine")
    assert "line 1" in page.tab.locator("#refine-status [data-kind=error]").inner_text()
    assert page.tab.locator("#curve, #refined").all_inner_texts() == ["", ""]  # an error leaves no empty section
    page.tab.fill(
        "#rows textarea",
        "So good. => A\nSo bad. => B\nI love it! => A\nIt broke at once. => B\nGreat value. => A\nNever again. => B",
    )
    page.tab.locator("#steps input[type=number]").fill("4")
    page.tab.locator("#steps input[type=number]").press("Tab")
    page.tab.click("#refine")
    page.tab.wait_for_selector("#curve [data-steps='1']")
    page.tab.wait_for_selector("#refine-status [data-kind=done]")
    assert page.tab.locator("#curve [data-steps='4'] .line").count() == 1
    assert page.tab.locator("#refined .pl-answer").count() == 4


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
            assert violations(tab) == [], name
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
    assert not page.tab.locator("#look-panel").is_visible()  # an error leaves no empty section
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
    pages[0].tab.wait_for_selector("#status :text('queue: 1/')")
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

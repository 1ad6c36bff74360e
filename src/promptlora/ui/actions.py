"""The action of each button: generators of updates, keyed by the names of the page's components.

An action checks the visitor's request, calls the studio and returns what to show. This module knows the studio and the
HTML fragments; it knows nothing of the layout or of which event calls an action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from promptlora.adapt.refine import RefineStep
from promptlora.errors import PromptLoRAError
from promptlora.inspect import visible_text
from promptlora.ui import html
from promptlora.ui.examples import Example
from promptlora.ui.links import Link, read_link
from promptlora.ui.look import Place, changes, likely, walk
from promptlora.ui.studio import Studio
from promptlora.ui.values import Inside

Update = dict[str, Any]
FIRST = "press an example, or the button: Ctrl+Enter in a box does the same"
WAITING = html.status("waiting for the model …", "busy")


@dataclass(frozen=True)
class Asked:
    """What a visitor's page shows; kept on the server, one object per page."""

    prompt: str
    inputs: tuple[str, ...]
    longest: int
    inside: Inside | None = None
    chosen: int = 0

    @property
    def text(self) -> str:
        """The input whose attention is shown."""
        return self.inputs[self.chosen]


def _seen(yes: bool) -> Any:
    """``visible`` for a box that stays in the page even when hidden, so that updates to it are not lost."""
    return True if yes else "hidden"


def _failed(name: str, error: PromptLoRAError, **others: Any) -> Update:
    return {name: html.status(str(error), "error"), **others}


class Actions:
    """The actions of one page; any thread may call them.

    Args:
        studio: Does the work.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.limits = studio, studio.limits
        self._halted: set[str] = set()  # visitors who pressed Stop

    # --- the request ------------------------------------------------------------------------------------------

    def boxes(self, prompt: str, inputs: Sequence[str]) -> Update:
        """Fill the boxes with a prompt and its inputs; further boxes are empty and hidden."""
        texts = [*inputs, *[""] * self.limits.inputs][: self.limits.inputs]
        count = min(max(len(inputs), 1), self.limits.inputs)
        shown = {
            f"input-{i + 1}": gr.Textbox(value=text, visible=_seen(i < count)) for i, text in enumerate(texts)
        }  # fmt: skip
        return {"prompt": prompt, "shown": count, "more": gr.Button(interactive=count < self.limits.inputs), **shown}

    def fill(self, one: Example) -> Update:
        """Fill the boxes with an example."""
        return {"status": WAITING, **self.boxes(one.prompt, one.inputs)}

    def restore(self, address: str) -> Update:
        """Fill the boxes from the page's address, after a reload or for a link; nothing if the address has no link."""
        link = read_link(address, self.limits)
        if link is None:
            return {"shown": gr.skip()}
        return {
            **self.boxes(link.prompt, link.inputs),
            "longest": link.longest,
            "other": link.other,
            "rows": link.rows,
            "link": link,
        }

    def add(self, shown: int) -> Update:
        """Show one more input box."""
        shown = min(shown + 1, self.limits.inputs)
        boxes = {f"input-{i + 1}": gr.Textbox(visible=_seen(i < shown)) for i in range(self.limits.inputs)}
        return {"shown": shown, "more": gr.Button(interactive=shown < self.limits.inputs), **boxes}

    # --- answers ----------------------------------------------------------------------------------------------

    def halt(self, request: gr.Request) -> None:
        """Stop the visitor's answers at the next step."""
        self._halted.add(str(request.session_hash))

    def run(self, request: gr.Request, prompt: str, longest: float, *boxes: str) -> Iterator[Update]:
        """Check the request, write the adapter, answer, and offer the download; stops early if the visitor asks."""
        visitor, studio = str(request.session_hash), self.studio
        self._halted.discard(visitor)
        over = {"stop": gr.Button(interactive=False)}
        try:
            text, found = studio.check_prompt(prompt), studio.check_inputs(boxes)
        except PromptLoRAError as error:
            yield _failed("status", error, **over)
            return
        yield {
            "status": html.status("writing the adapter …", "busy"),
            "stop": gr.Button(interactive=True),
            "download": gr.DownloadButton(interactive=False),
            "asked": None,
            **dict.fromkeys(("answers", "near", "look_status", "likely", "changes", "walk"), ""),
            **dict.fromkeys(("measure_status", "effect", "compare_status", "compared"), ""),
            **dict.fromkeys(("refine_status", "curve", "refined"), ""),
            "refined_download": gr.DownloadButton(visible=False),
        }
        try:
            one = studio.adapter(text)
            yield {"near": html.nearness(studio.distance(text))}
            told = html.written(one, len(studio.adapters), self.limits.adapters)
            last = None
            for now in studio.answer(text, found, int(longest)):
                drawn = html.answers(now)
                if drawn != last:
                    last = drawn
                    yield {"status": html.status(f"{told} · answering …", "busy"), "answers": drawn}
                if visitor in self._halted:
                    self._halted.discard(visitor)
                    stopped = html.status("stopped; the button starts again")
                    yield {"status": stopped, "answers": html.answers(replace(now, done=True)), **over}
                    return
            archive = studio.export(text)
        except PromptLoRAError as error:
            yield _failed("status", error, **over)
            return
        yield {
            "status": html.status(told, "done"),
            "download": gr.DownloadButton(value=str(archive), interactive=True),
            "asked": Asked(text, tuple(found), int(longest)),
            "measure_status": html.status(f"on up to {self.limits.ablation_inputs} inputs; takes some seconds"),
            **over,
        }

    # --- attention --------------------------------------------------------------------------------------------

    def first_look(self, asked: Asked | None, link: Link | None, folded: bool) -> Iterator[Update]:
        """Open the first input, or the place in a link, unless there is no answer or an input is already open."""
        if asked is not None and asked.inside is None:
            yield from self.look(asked, 0 if link is None else link.chosen, folded, link)
            yield {"link": None}

    def look(self, asked: Asked | None, choice: int | None, folded: bool, link: Link | None = None) -> Iterator[Update]:
        """Find where the adapter changes a text's attention, and show the head that changes most at the last token."""
        if asked is None or (asked.inside is not None and choice == asked.chosen):
            yield {"look_status": gr.skip()}  # leaving the box with the tab key also sends an event
            return
        chosen = choice if choice is not None and 0 <= choice < len(asked.inputs) else 0
        names = [(f"{i}: {visible_text(text, 60)}", i - 1) for i, text in enumerate(asked.inputs, start=1)]
        dropdown = gr.Dropdown(choices=names, value=chosen, visible=_seen(len(names) > 1))
        asked = replace(asked, inside=None, chosen=chosen)
        yield {"look_status": html.status("walking through attention …", "busy"), "which": dropdown}
        try:
            inside = self.studio.inside(asked.prompt, asked.text)
        except PromptLoRAError as error:
            yield _failed("look_status", error, asked=asked, **dict.fromkeys(("likely", "changes", "walk"), ""))
            return
        asked = replace(asked, inside=inside)
        place = self._start(inside, link)
        yield {
            **self.show(asked, place, folded),
            "token": gr.Slider(maximum=max(len(inside.tokens) - 1, 1), value=place.token),
            "layer": gr.Slider(value=place.layer),
            "head": gr.Slider(value=place.head),
            "likely": likely(inside),
            "asked": asked,
        }

    def _start(self, inside: Inside, link: Link | None) -> Place:
        """The initial place: the one in the link, otherwise the head that changes most at the last token."""
        last = len(inside.tokens) - 1
        token = last if link is None or link.token is None else min(link.token, last)
        layer, head, _ = inside.most(token)
        if link is not None and link.layer is not None and link.head is not None:
            config: Any = self.studio.lm.model.config.get_text_config()
            layer = min(link.layer, int(config.num_hidden_layers) - 1)
            head = min(link.head, int(config.num_attention_heads) - 1)
        return Place(token, layer, head)

    def show(self, asked: Asked | None, place: Place, folded: bool) -> Update:
        """Show one token, layer and head."""
        if asked is None or asked.inside is None:
            return {"look_status": gr.skip()}
        inside = asked.inside
        place = replace(place, token=min(place.token, len(inside.tokens) - 1))
        layer, head, distance = inside.most(place.token)
        try:
            capture = self.studio.capture(asked.prompt, asked.text, place.layer)
            walked = walk(capture, inside, place, folded=folded)
        except PromptLoRAError as error:
            return _failed("look_status", error, walk="", changes="")
        at = f"token {place.token} {visible_text(inside.tokens[place.token])}, layer {place.layer}, head {place.head}"
        most = f"at this token, the adapter changes layer {layer}, head {head} most (distance {distance:.3f})"
        told = html.status(f"{at}; {most}", "done")
        return {"look_status": told, "changes": changes(inside, place), "walk": walked}

    def slide(self, asked: Asked | None, token: float, layer: float, head: float, folded: bool) -> Update:
        """Show the place that the sliders select."""
        return self.show(asked, Place(int(token), int(layer), int(head)), folded)

    def pick(
        self, event: gr.EventData, asked: Asked | None, token: float, layer: float, head: float, folded: bool
    ) -> Update:
        """Handle a click on a token, a cell or a small picture: it moves the sliders."""
        now = {"token": int(token), "layer": int(layer), "head": int(head)}
        for name in now:
            value = event._data.get(name)
            if isinstance(value, int) and value >= 0:
                now[name] = value
        key = event._data.get("key")
        place = Place(**now, key=key if isinstance(key, int) and 0 <= key <= now["token"] else None)
        return {**self.show(asked, place, folded), **now}

    def ablate(self, asked: Asked | None) -> Iterator[Update]:
        """Measure the effect of the adapter's q, k, v and o separately."""
        if asked is None:
            yield {"measure_status": gr.skip()}
            return
        yield {"measure_status": html.status("measuring q, k, v, o, q+k and all …", "busy")}
        try:
            found = self.studio.ablation(asked.prompt, asked.inputs)
        except PromptLoRAError as error:
            yield _failed("measure_status", error, effect="")
            return
        told = html.status(f"measured on {found.inputs} of {len(asked.inputs)} inputs", "done")
        yield {"measure_status": told, "effect": html.ablation(found)}

    # --- two prompts ------------------------------------------------------------------------------------------

    def compare(self, asked: Asked | None, other: str) -> Iterator[Update]:
        """Also answer with another prompt's adapter, and show both adapters on the map."""
        if asked is None:
            yield {"compare_status": gr.skip()}
            return
        yield {"compare_status": html.status("writing and comparing adapters …", "busy")}
        try:
            found = self.studio.compare(asked.prompt, other, asked.inputs, asked.longest)
        except PromptLoRAError as error:
            yield _failed("compare_status", error, compared="")
            return
        told = html.status(f"A: {visible_text(asked.prompt, 60)} · B: {visible_text(found.prompts[1], 60)}", "done")
        yield {"compare_status": told, "compared": html.compared(found)}

    # --- refinement -------------------------------------------------------------------------------------------

    def refine(self, asked: Asked | None, lines: str, steps: float) -> Iterator[Update]:
        """Take gradient steps on rows, show the loss after each step, and answer with the refined adapter."""
        if asked is None:
            yield {"refine_status": gr.skip()}
            return
        gone = {"curve": "", "refined": "", "refined_download": gr.DownloadButton(visible=False)}
        try:
            rows = self.studio.check_rows(lines)
            yield {"refine_status": html.status(f"refining on {len(rows)} rows …", "busy"), **gone}
            done: list[RefineStep] = []
            for found in self.studio.refine(asked.prompt, rows, asked.inputs, int(steps), asked.longest):
                if isinstance(found, RefineStep):
                    done.append(found)
                    told = html.status(f"step {found.step} of {found.steps}", "busy")
                    yield {"refine_status": told, "curve": html.loss_curve(done, found.steps)}
                    continue
                told = html.status(f"refined in {len(done)} steps on {len(rows)} rows", "done")
                button = gr.DownloadButton(value=str(found.archive), visible=True)
                yield {"refine_status": told, "refined": html.refined(found), "refined_download": button}
        except PromptLoRAError as error:
            yield _failed("refine_status", error, **gone)
